"""What guards benchmarks/: the tables judge by the published noise, keep every value, and take no ablation for the grid."""
import contextlib, csv, gzip, io, json, math, sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data, evaluate, ncvqvae
from benchmarks import across, ledger, speed, tables
from data import Config
from test_ncvqvae import draw, own_data, run_all, tiny_config, tiny_model


def test_tables_judge_by_the_published_noise():
    published = {("A", m, "none", "recon"): dict(mean="0.5", std=s) for m, s in (("naive", "0.03"), ("barlow", "0.04"))}
    pooled = tables.pooled_std(published, "A", "recon")
    assert pooled == pytest.approx(math.sqrt((0.03 ** 2 + 0.04 ** 2) / 2))
    one, four = 2.33 * pooled, 1.47 * pooled

    def judge(difference, n, metric="recon"):
        return tables.agreement(0.5 + difference, n, metric, published["A", "naive", "none", "recon"], pooled)
    assert judge(0.99 * one, 1) == judge(-0.99 * four, 4) == "within noise"
    assert (judge(1.01 * one, 1), judge(-1.01 * four, 4), judge(1.01 * one, 1, "cas")) == ("worse", "better", "better")
    cell = tables.table_cell([0.4, 0.6], "mean", "recon", published["A", "naive", "none", "recon"], pooled)
    assert cell == "0.500 ± 0.141 (n 2) [0.500 ± 0.030], within noise"


def fake_run(folder, seed, stages=2, recon=0.5, **fields):
    run = Path(folder) / f"A/naive-none/seed{seed}"
    config = Config(dataset="/some/where/A.npz", seed=seed, cas_epochs=100, **fields)
    metrics = {**dict.fromkeys(evaluate.METRICS), **dict(recon=recon, knn=1 / 3, svm=1.0, complete_data=True, n_train=20)}
    if stages == 2:
        metrics |= {"fid": 3.0, "is": 2.0, "cas": 0.9}
    data.write_json(run / "metrics.json", metrics | dict(stages=stages, config=config.behind("metrics") | dict(sha256="")))
    log = [dict(event="start", stage="stage1", argv=["/home/me/ncvqvae.py", "--dataset=/data/A.npz"], torch="2.13", device="cpu",
                commit="abc", time="2026-01-02T03:04:05")] + [dict(stage="stage1", step=i, loss=1.0) for i in range(500)]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, log)) + "\n")
    return metrics


def test_export_keeps_every_value_and_replaces_a_run_that_ran_again(tmp_path, monkeypatch):
    out = tmp_path / "results"

    def export(*folders):
        monkeypatch.setattr(sys, "argv", ["tables.py", *map(str, folders), "--export", str(out)])
        tables.main()

    def rows():
        with open(out / "runs.csv", newline="") as file:
            return list(csv.DictReader(file))
    metrics = fake_run(tmp_path / "runs", 1)
    fake_run(tmp_path / "runs", 2, stages=1, recon=0.7)
    fake_run(tmp_path / "fast", 1, recon=9.0, stage1_steps=800)
    export(tmp_path / "runs")
    export(tmp_path / "fast")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    export(tmp_path / "runs", tmp_path / "fast")
    export()
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert [(r["seed"], r["stage1_epochs"], r["stage1_steps"], r["later_settings"]) for r in rows()] == [
        ("1", "1000", "", "cas_epochs=100"), ("1", "", "800", "cas_epochs=100"), ("2", "1000", "", "none")]
    assert {k: tables.from_cell(rows()[0][k]) for k in metrics} == metrics and rows()[0]["date"] == "2026-01-02"
    text = (out / "TABLES.md").read_text()
    assert "0.600 ± 0.141 (n 2)" in text                                     # a run without stage 2 counts in stage 1's tables
    assert "9.000 (n 1)" in text and "## Stage 1: stage1_steps=800\n" in text
    logs = [gzip.decompress(p.read_bytes()).decode().splitlines() for p in sorted((out / "logs").iterdir())]
    assert [len(lines) for lines in logs] == [200] * 3 and json.loads(logs[0][-1])["step"] == 499
    assert json.loads(logs[0][0])["argv"] == ["ncvqvae.py", "--dataset=A.npz"]
    fake_run(tmp_path / "runs", 1, recon=0.4)
    export(tmp_path / "runs")
    assert "0.550 ± 0.212 (n 2)" in (out / "TABLES.md").read_text()
    fake_run(tmp_path / "runs", 2, recon=0.7)                                # went on to stage 2: one row, one log
    export(tmp_path / "runs")
    assert [r["later_settings"] for r in rows()] == ["cas_epochs=100"] * 3 and len(list((out / "logs").iterdir())) == 3
    with pytest.raises(data.InputError, match="no metrics.json"):
        export(tmp_path / "nothing here")


def test_headline_takes_the_best_mean_and_stars_what_seeds_do_not_explain():
    fast = tables.settings(Config(**data.PRESETS["fast"]))
    rows = [dict(dataset="Symbols", method=method, augmentation=augmentation, seed=seed, recon=recon, knn=knn, complete_data=complete,
                 stage1_settings=first, later_settings=later, n_train=25, n_test=993, **dict.fromkeys(set(tables.COLUMNS) - {
                     "dataset", "method", "augmentation", "seed", "recon", "knn", "complete_data", "stage1_settings", "later_settings",
                     "n_train", "n_test"}))
            for (method, augmentation), seed, first, later, recon, knn, complete in (
                (("naive", "none"), 1, "", "none", 0.20, 0.50, True), (("naive", "none"), 2, "", "cas_epochs=100", 0.22, 0.54, True),
                (("barlow", "warp"), 1, "", "none", 0.10, 0.90, True), (("barlow", "warp"), 2, "", "none", 0.12, 0.90, True),
                (("vibcreg", "slice"), 1, "", "none", 0.211, 0.53, True), (("vibcreg", "gauss"), 1, "", "none", 0.01, 0.99, False),
                (("vibcreg", "gauss"), 1, "zeta=0.2", "none", 0.02, 0.98, True), (("naive", "none"), 1, *fast, 0.30, 0.40, True),
                (("vibcreg", "warp"), 1, fast[0], "none", 0.03, 0.97, True),
                (("vibcreg", "warp"), 1, fast[0], "stage2_epochs=3", 9.0, 0.97, True))]    # a prior of another schedule
    cells = tables.grid(rows)                     # neither incomplete data nor an ablation nor a mixture of schedules
    assert cells["Symbols", "fast, float32"]["vibcreg", "warp"][1]["recon"] == 0.03
    assert {how: {"-".join(m): sorted(runs) for m, runs in models.items()} for (_, how), models in cells.items()} == {
        "thesis, float32": {"naive-none": [1, 2], "barlow-warp": [1, 2], "vibcreg-slice": [1]},
        "fast, float32": {"naive-none": [1], "vibcreg-warp": [1]}}
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        table = tables.report(cells, tables.read_published())
    assert [line.split("|")[2].strip() for line in table.splitlines() if line.startswith("| Symbols")] == [
        "ours: thesis, float32, 2 of 6 models", "published, four seeds"]     # the schedule with more models alone
    assert "0.210 → 0.110<br>barlow-warp, n 2, 2" in table and "0.520 → 0.900<br>barlow-warp, n 2, 2" in table
    line = {m: next(x for x in text.getvalue().splitlines() if x.startswith(f"| Symbols | thesis, float32 | {m} "))
            for m in ("barlow-warp", "vibcreg-slice")}
    assert "| -0.100* [+0.033*] | +0.380* [+0.085*] |" in line["barlow-warp"]
    assert "| +0.001 [-0.043*] | +0.010 [-0.084*] |" in line["vibcreg-slice"]
    assert "\n| recon | 0 | 1 | 2 | Symbols naive-none, Symbols vibcreg-slice |\n" in text.getvalue()
    assert "\n| knn | 1 | 2 | 0 |  |\n" in text.getvalue()


def test_ablation_sets_each_weight_beside_the_thesis_one_of_the_same_schedule():
    rows = [dict(dataset="Symbols", method="vibcreg", augmentation="warp", seed=seed, recon=recon, knn=0.5, svm=None,
                 stage1_settings=settings, complete_data=complete, n_train=25, n_test=993)
            for seed, settings, recon, complete in (
                (1, "eta=2.0 precision=bf16", 0.7, True), (1, "precision=bf16", 0.8, True),
                (1, "stage1_steps=800", 0.10, True), (2, "stage1_steps=800", 0.12, True), (1, "", 9.0, True),
                (1, "stage1_steps=800 zeta=0.2", 0.11, True), (2, "stage1_steps=800 zeta=0.2", 0.13, True),
                (1, "stage1_steps=800 zeta=0.05", 0.60, True), (1, "stage1_steps=800 zeta=0.15", 9.0, False),
                (1, "stage1_steps=800 eta=0.5", 0.30, True), (1, "stage1_steps=800 zeta=0.2 eta=2.0", 9.0, True))]
    text = "\n".join(tables.ablation(tables.ablation_cells(rows), tables.read_published()))
    zeta, eta = text.split("## eta")
    row = "| Symbols | vibcreg-warp | stage1_steps=800 | recon | "
    assert row + "0.600* (1) | 0.110 (2) |  | 0.120 (2) |" in zeta and row + "0.300* (1) | 0.110 (2) |  |" in eta
    assert "| 0.05 | **0.1** | 0.15 | 0.2 |" in zeta and "| 0.5 | **1** | 2 |" in eta and "9.000" not in text
    assert "| precision=bf16 | recon |  | 0.800 (1) | 0.700* (1) |" in eta and "precision=bf16" not in zeta
    assert text.count("| knn |") == 3 and "| svm |  |  |  |  |" in zeta


def test_departures_stand_beside_runs_that_differ_in_nothing_else():
    def row(augmentation, seed, recon, later="none", first="precision=bf16"):
        method = "naive" if augmentation == "none" else "barlow"
        return dict.fromkeys(tables.COLUMNS) | dict(dataset="Symbols", method=method, augmentation=augmentation, seed=seed, recon=recon,
                                                    fid=None if later == "none" else recon, stage1_settings=first, later_settings=later)
    rows = [row("gauss", 1, 9.0, first=""), row("gauss", 1, 0.1, "cas_epochs=100"), row("gauss", 2, 0.2), row("gauss", 3, 9.0),
            row("gauss+roundtrip", 1, 0.5), row("gauss+roundtrip", 2, 0.7), row("slice+roundtrip", 1, 9.0),
            row("none", 1, 9.0, "cas_epochs=99"), row("none", 1, 0.3, "cas_epochs=100"),
            row("none", 1, 0.4, "embedding=random loss_on=all cas_epochs=100")]
    tail, naive = tables.printed(tables.departures, rows, tables.read_published()).split("## ")[1:]
    values = [[cell.strip() for cell in line.split("|")[2:9]] for line in (tail + naive).splitlines() if line.startswith("| Symbols")]
    assert values == [["barlow-gauss", "view as it is", "1, 2", "0.150", "", "", "0.100"],
                      ["barlow-gauss", "view with a zeroed tail", "1, 2", "0.600", "", "", ""],
                      ["barlow-gauss", "difference", "", "+0.450*", "", "", ""],
                      ["barlow-gauss", "published", "four", "0.173", "0.587", "0.660", "8.611"],
                      ["naive-none", "codebook, masked tokens", "1", "0.300", "", "", "0.300"],
                      ["naive-none", "random, all tokens", "1", "0.400", "", "", "0.400"],
                      ["naive-none", "difference", "", "+0.100*", "", "", "+0.100"],
                      ["naive-none", "published", "four", "0.110", "0.503", "0.601", "13.620"]]


def test_data_that_lacks_one_series_counts():
    wafer = dict(dataset="Wafer", complete_data=False, n_train=1000)
    assert tables.is_whole(wafer | dict(n_test=6163)) and not tables.is_whole(wafer | dict(n_test=6162))
    assert tables.is_whole(dict(dataset="own", complete_data=True))


def test_presets_stand_side_by_side_with_whole_runs_alone():
    row = dict(dataset="Wafer", method="naive", augmentation="none", seed=1, complete_data=True, **dict.fromkeys(tables.SCORES, 0.25),
               seconds_stage1=60.0, seconds_stage2=None, seconds_evaluate=30.0)
    first, later = tables.settings(Config(**data.PRESETS["best"], precision="bf16"))
    best = row | dict(stage1_settings=first, later_settings=later)
    thesis = row | dict(stage1_settings="precision=bf16", later_settings="none", fid=None)
    text = "\n".join(tables.presets(tables.grid([best, thesis]), tables.read_published()))
    assert "| Wafer | naive-none |  |  | 1.5 minutes, n 1<br>recon 0.250<br>KNN 0.250, SVM 0.250<br>FID 0.25 (0.25, 0.25)<br>" in text


def test_cells_of_runs_csv():
    for value in (None, True, False, 3, -3, 0.25, 1e-30):
        assert tables.from_cell("" if value is None else str(value)) == value


def test_probing_in_train_mode_moves_a_copy_alone():
    model = tiny_model().eval()
    x, y = draw(30, 40, dtype=torch.float32), torch.arange(30) % 2
    own = data.Dataset("own", 40, 0.0, 1.0, [0, 1], True, "", x[:20], y[:20], x[20:] * 3, y[20:])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    moved = tables.probe_in_train_mode(model, own)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and not model.training
    frozen = ncvqvae.encode_split(model, own.x_test)["errors"].sum(1).mean().item()
    assert tuple(moved) == tables.PROBES and moved["recon_train_mode"] != pytest.approx(frozen)


def test_rows_probes_parts_and_a_tied_prior_of_a_real_run(tmp_path, capsys):
    run = tmp_path / "own/vibcreg-slice/seed1"
    m = run_all(run, tiny_config(dataset=own_data(tmp_path), method="vibcreg", augmentation="slice", stage1_steps=3, stage2_steps=3))
    tables.command_probe([run])
    row, = tables.find_runs([tmp_path])
    assert row["recon"] == m["recon"] and row["knn_train_mode"] is not None and row["stage1_steps"] == 3
    assert row["stage1_settings"].startswith("stage1_steps=3 ") and "fcn_epochs=1" in row["later_settings"]
    (real, reconstructed, conditional), (train, test, drawn) = tables.parts(run)
    assert real[0] == pytest.approx(0, abs=1e-5) and real[1:] == (m["is_real"], m["fcn_accuracy"])
    assert reconstructed[0] == pytest.approx(m["fid_recon"], rel=1e-3, abs=1e-6) and 0 <= conditional[2] <= 1
    assert [split.sum() for split in (train, test, drawn)] == [pytest.approx(1)] * 3
    assert conditional[3] == pytest.approx(conditional[0], rel=1e-3)        # the two splits have the same shares
    tables.command_parts([tmp_path])
    text = capsys.readouterr().out
    assert "| own/vibcreg-slice/seed1 |  | 1.0" in text and " | 25:25:50 / 25:25:50 / " in text
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    tied = ledger.tie(tmp_path / "tied", run)
    saved = torch.load(tmp_path / "tied/own/vibcreg-slice/seed1/stage2.pt")["state"]
    assert saved["head.2.weight"].equal(saved["embedding.weight"]) and tied["prior_loss"] != m["prior_loss"]
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} and tied["fid_recon"] == m["fid_recon"]


def test_textbook_losses_are_ours():
    z1, z2 = draw(9, 7), draw(9, 7, seed=1)
    torch.testing.assert_close(speed.textbook_barlow(z1, z2), ncvqvae.barlow_twins_loss(z1, z2))
    torch.testing.assert_close(speed.textbook_vibcreg(z1, z2), ncvqvae.vibcreg_loss(z1, z2))


def test_every_figure_across_runs_is_drawn(tmp_path):
    rows = [row for row in tables.read_runs(tables.RESULTS / "runs.csv") if row["dataset"] == "SonyAIBORobotSurface1"]
    tables.write_csv(tmp_path / "runs.csv", tables.COLUMNS, rows)
    (tmp_path / "logs").symlink_to(tables.RESULTS / "logs")
    across.across(tmp_path)
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert drawn >= {"views", "recon", "probes", "samples", "training", "ssl_barlow", "knn_ssl_vibcreg", "knn_is", "knn_fid", "costs"}
    assert across.final_ssl(tmp_path, rows[0], "vibcreg") is None
