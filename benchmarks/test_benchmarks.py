"""What guards benchmarks/: tables judge by the published noise, keep every value, and take no
ablation for the grid."""

import copy
import csv
import gzip
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import evaluate
import ncvqvae
from benchmarks import (
    choose_presets,
    compare,
    probes,
    straight_through,
    tables,
    thesis_figures,
    tied_prior,
)
from benchmarks.rows import (
    COLUMNS,
    MODELS,
    NAIVE,
    PROBES,
    RESULTS,
    add_to_probes,
    agreement,
    export,
    fill,
    find_runs,
    from_cell,
    grid,
    is_whole,
    log_name,
    name_cells,
    noise,
    noise_bound,
    of_preset,
    pooled_std,
    read_rows,
    schedule,
    schedules,
    settings,
    write_csv,
)
from data import Config
from helpers import draw, own_data, run_all, tiny_config, tiny_model


def test_tables_judge_by_the_published_noise(monkeypatch):
    naive = dict(mean=0.5, std=0.03, best=0.4)
    barlow = naive | dict(std=0.04)
    monkeypatch.setattr(
        "benchmarks.rows.PUBLISHED",
        {("A", "naive", "none", "recon"): naive, ("A", "barlow", "warp", "recon"): barlow},
    )
    pooled = pooled_std("A", "recon")
    assert pooled == pytest.approx(math.sqrt((0.03**2 + 0.04**2) / 2))
    one, four = 2.33 * pooled, 1.47 * pooled

    def judge(difference, n, metric="recon"):
        return agreement(0.5 + difference, n, metric, naive, pooled)

    assert judge(0.99 * one, 1) == judge(-0.99 * four, 4) == "within noise"
    assert judge(1.01 * one, 1) == "worse"
    assert judge(-1.01 * four, 4) == judge(1.01 * one, 1, "cas") == "better"
    runs = {1: dict(recon=0.4), 2: dict(recon=0.6), 3: dict(recon=None)}
    mean, best = (tables.table_cell(runs, kind, "A", NAIVE, "recon") for kind in ("mean", "best"))
    assert (mean, best) == ("0.500 [0.500]", "0.400 [0.400]")
    runs = {1: dict(recon=0.5 + 1.01 * one)}  # further than seeds explain
    assert (
        tables.table_cell(runs, "mean", "A", NAIVE, "recon") == f"{0.5 + 1.01 * one:.3f} [0.500]*"
    )
    assert tables.table_cell({}, "mean", "A", NAIVE, "recon") == "[0.500]"


def fake_run(folder, seed, stages=2, recon=0.5, n_train=20, seconds=None, **fields):
    run = Path(folder) / f"Symbols/naive-none/seed{seed}"
    config = Config(dataset="/some/where/A.npz", seed=seed, cas_epochs=100, **fields)
    metrics = dict.fromkeys(evaluate.METRICS) | dict(
        recon=recon, knn=1 / 3, svm=1.0, complete_data=True, n_train=n_train, seconds_stage1=seconds
    )
    if stages == 2:
        metrics |= {"fid": 3.0, "is": 2.0, "cas": 0.9}
    config = config.settings_of("metrics") | dict(sha256="")
    data.write_json(run / "metrics.json", metrics | dict(stages=stages, config=config))
    start = dict(
        event="start",
        stage="stage1",
        torch="2.13",
        device="cpu",
        commit="abc",
        time="2026-01-02T03:04:05",
        argv=["/home/me/ncvqvae.py", "--dataset=/data/A.npz"],
    )
    log = [start, *(dict(stage="stage1", step=i, loss=1.0) for i in range(500))]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, log)) + "\n")
    return metrics


def test_export_keeps_every_value_and_replaces_a_run_that_ran_again(tmp_path, capsys, monkeypatch):
    out = tmp_path / "results"

    def export(*folders):
        arguments = ["tables", *map(str, folders), "--export", str(out)]
        monkeypatch.setattr(sys, "argv", arguments)
        tables.main()

    def rows():
        with open(out / "runs.csv", newline="") as file:
            return list(csv.DictReader(file))

    metrics = fake_run(tmp_path / "runs", 1)
    fake_run(tmp_path / "runs", 2, stages=1, recon=0.7)
    fake_run(tmp_path / "fast", 1, recon=9.0, stage1_steps=800)
    export(tmp_path / "runs")
    assert not capsys.readouterr().err
    export(tmp_path / "fast")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    export(tmp_path / "runs", tmp_path / "fast")
    warning = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 3 runs" in warning and str(tmp_path / "fast") in warning
    export()
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    shown = ("seed", "stage1_settings", "later_settings")
    assert [tuple(row[k] for k in shown) for row in rows()] == [
        ("1", "", "cas_epochs=100"),
        ("1", "stage1_steps=800", "cas_epochs=100"),
        ("2", "", "none"),
    ]
    assert {k: from_cell(rows()[0][k]) for k in metrics} == metrics
    assert rows()[0]["date"] == "2026-01-02"
    text = (out / "TABLES.md").read_text()
    assert "| Symbols | 0.600 [0.110]* |" in text  # a run without stage 2 counts in stage 1's
    assert "9.000" not in text  # other settings than a preset's
    logs = [
        gzip.decompress(path.read_bytes()).decode().splitlines()
        for path in sorted((out / "logs").iterdir())
    ]
    assert [len(lines) for lines in logs] == [200] * 3 and json.loads(logs[0][-1])["step"] == 499
    assert json.loads(logs[0][0])["argv"] == ["ncvqvae.py", "--dataset=A.npz"]
    fake_run(tmp_path / "runs", 1, recon=0.4)
    export(tmp_path / "runs")
    assert "| Symbols | 0.550 [0.110]* |" in (out / "TABLES.md").read_text()
    fake_run(tmp_path / "runs", 2, recon=0.7)  # went on to stage 2: one row, one log
    export(tmp_path / "runs")
    assert [row["later_settings"] for row in rows()] == ["cas_epochs=100"] * 3
    assert len(list((out / "logs").iterdir())) == 3
    with pytest.raises(data.InputError, match="no metrics.json"):
        export(tmp_path / "nothing here")
    fake_run(tmp_path / "other", 1, recon=0.3, n_train=21)
    with pytest.raises(data.InputError, match="other.*: .*runs.csv has this run of other data"):
        export(tmp_path / "other")
    fake_run(tmp_path / "twice", 1, recon=0.3)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(data.InputError, match="twice.* same settings and seed: export one"):
        export(tmp_path / "runs", tmp_path / "twice")  # which of them counts?
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for text, reason in (("a,b\n1,2\n", "has no column dataset"), ("dataset,seed\nx,abc\n", "abc")):
        (out / "runs.csv").write_text(text)
        with pytest.raises(data.InputError, match=f"runs.csv: cannot be used .*{reason}"):
            export(tmp_path / "runs")
        assert (out / "runs.csv").read_text() == text


def test_export_keeps_what_probes_found_of_the_same_weights(tmp_path):
    """CAS by the published training takes hours, and a copied run may lack its probe.json."""
    run = tmp_path / "runs/Symbols/naive-none/seed1"

    def exported():
        export([tmp_path / "runs"], tmp_path / "results")
        (row,) = read_rows(tmp_path / "results/runs.csv")
        return row

    metrics = fake_run(tmp_path / "runs", 1) | {"seconds_stage1": 100 / 3, "seconds_stage2": 0.1}
    config = data.read_json(run / "metrics.json")["config"]
    data.write_json(run / "metrics.json", metrics | {"stages": 2, "config": config})
    add_to_probes(run, {"cas_thesis": 0.7, "knn_train_mode": 1 / 3})
    assert exported()["cas_thesis"] == 0.7
    (run / "probe.json").unlink()
    add_to_probes(run, {"knn_train_mode": 0.5})
    row = exported()
    assert (row["cas_thesis"], row["knn_train_mode"], row["svm_train_mode"]) == (0.7, 0.5, None)
    metrics["seconds_stage2"] = 0.2  # trained anew
    data.write_json(run / "metrics.json", metrics | {"stages": 2, "config": config})
    assert exported()["cas_thesis"] is None


def test_a_run_that_stopped_after_stage_1_is_replaced_by_the_same_that_went_on(tmp_path):
    fake_run(tmp_path / "stage1", 1, stages=1, recon=0.5, seconds=60.0)
    add_to_probes(tmp_path / "stage1/Symbols/naive-none/seed1", {"knn_train_mode": 0.25})

    def exported(folder):
        export([tmp_path / folder], tmp_path / "results")
        rows = read_rows(tmp_path / "results/runs.csv")
        assert len(list((tmp_path / "results/logs").iterdir())) == len(rows)
        return {row["later_settings"]: (row["recon"], row["knn_train_mode"]) for row in rows}

    assert exported("stage1") == {"none": (0.5, 0.25)}
    fake_run(tmp_path / "another", 1, recon=0.4, seconds=70.0, embedding="random")
    another = {"embedding=random cas_epochs=100": (0.4, None)}
    assert exported("another") == {"none": (0.5, 0.25)} | another
    fake_run(tmp_path / "went_on", 1, recon=0.5, seconds=60.0)
    assert exported("went_on") == {"cas_epochs=100": (0.5, 0.25)} | another


def row_of(model, seed=1, first="", later="none", dataset="Symbols", **values):
    """A row of runs.csv, with None for what is not given."""
    method, augmentation = model.split("-")
    return (
        dict.fromkeys(COLUMNS)
        | dict(
            dataset=dataset,
            method=method,
            augmentation=augmentation,
            seed=seed,
            complete_data=True,
            stage1_settings=first,
            later_settings=later,
            n_train=25,
            n_test=993,
            seconds_stage1=60.0,
        )
        | values
    )


BF16 = "precision=bf16"


def test_headline_stars_what_seeds_do_not_explain():
    first, later = settings(Config(**data.PRESETS["fast"], precision="bf16"))
    rows = [
        row_of("naive-none", 1, BF16, recon=0.20, recon_last_batch=0.15, knn=0.50),
        row_of("naive-none", 2, BF16, later="cas_epochs=100", recon=0.22, knn=0.54),
        row_of("barlow-warp", 1, BF16, recon=0.10, knn=0.90),
        row_of("barlow-warp", 2, BF16, recon=0.12, knn=0.90),
        row_of("vibcreg-slice", 1, BF16, recon=0.211, recon_last_batch=0.14, knn=0.53),
        row_of("vibcreg-gauss", 1, BF16, recon=0.01, knn=0.99, complete_data=False),
        row_of("vibcreg-gauss", 1, f"{BF16} zeta=0.2", recon=0.02, knn=0.98),
        row_of("naive-none", dataset="FordA", first=first, later=later),  # alone
        row_of("naive-none", first=first, later=later, recon=0.30, knn=0.40),
        row_of("vibcreg-warp", first=first, recon=0.03, knn=0.97),
        row_of("vibcreg-warp", first=first, later="stage2_epochs=3", recon=9.0, knn=0.97),
    ]
    cells = grid(rows)  # neither incomplete data nor an ablation nor a mixture of schedules
    assert cells["Symbols", "fast, bf16"]["vibcreg", "warp"][1]["recon"] == 0.03
    assert {
        how: {"-".join(m): sorted(runs) for m, runs in models.items()}
        for (name, how), models in cells.items()
        if name == "Symbols"
    } == {
        "thesis, bf16": {"naive-none": [1, 2], "barlow-warp": [1, 2], "vibcreg-slice": [1]},
        "fast, bf16": {"naive-none": [1], "vibcreg-warp": [1]},
    }
    start, by_fast, by_thesis = compare.headline(cells).split("## Schedule: ")
    assert by_fast.startswith("fast, bf16, 1 sets") and "root mean square" in start
    assert "| recon | 0 | 1 | 1 | Symbols naive-none |" in by_fast and "FordA" not in by_fast
    assert by_thesis.startswith("thesis, bf16, 1 sets")
    lines = by_thesis.splitlines()
    *differences, bounds = [line for line in lines if line.startswith("| Symbols")]
    assert [[cell.strip() for cell in line.split("|")[2:7]] for line in differences] == [
        ["barlow-warp", "2", "-0.100 [+0.033]*", "[+0.033]", "+0.380 [+0.085]*"],
        ["vibcreg-slice", "1", "+0.001 [-0.043]", "-0.010 [-0.043]", "+0.010 [-0.084]"],
    ]
    assert "| worse than naive, star or not | 1 | 0 |" in "\n".join(lines)
    std = pooled_std("Symbols", "recon")
    assert bounds.startswith(f"| Symbols | {2.084 * math.sqrt(2) * std:.3f} |")
    assert "| recon | 0 | 1 | 2 | Symbols naive-none, Symbols vibcreg-slice |" in lines
    assert "| knn | 1 | 2 | 0 |  |" in lines


def test_rows_of_what_the_presets_were_have_cells_of_their_own():
    first = "precision=bf16 stage1_steps=800 stage1_batch=64 stage1_lr=0.003 projector_dim=1024"
    later = "stage2_batch=64 stage2_lr=0.004 optimizer=muon prior_hidden=128"
    guided = "decode_steps=20 guidance=2.0"
    end = "fcn_steps=600 cas_steps=40 fcn_batch=64"  # cas_steps were steps a class
    for preset, then in (
        ("fast", f"stage2_steps=2000 {later} {end}"),
        ("best", f"stage2_steps=4000 {later} {guided} {end}"),
    ):
        assert schedules()[first, then] == f"{preset}, bf16, earlier classifiers"
        assert schedules()[settings(Config(**data.PRESETS[preset], precision="bf16"))] == (
            f"{preset}, bf16"
        )
    of_today, classifiers = settings(Config(**data.PRESETS["fast"], precision="bf16"))
    fcn = f"stage2_steps=2000 {later} {end}"
    for stage1_settings, later_settings, words in (
        (of_today, classifiers, "fast, bf16"),
        (first, classifiers, "fast, bf16, no warm-up"),
        (first, fcn, "fast, bf16, earlier classifiers"),
        (of_today, "none", "fast, bf16"),
        (first, "none", "fast, bf16, no warm-up"),
    ):
        row = row_of("naive-none", first=stage1_settings, later=later_settings)
        assert list(grid([row])) == [("Symbols", words)]
        assert schedule(row, schedules()) == words
    other = row_of("naive-none", first=first, later=f"stage2_steps=2000 {later} {end}0")
    assert not grid([other])


def test_trials_of_the_presets_stand_in_a_table_each_and_stage_2_in_one_more(tmp_path):
    start = {"kind": "stage2", "dataset": "A-0", "trial": "fast", "changed": ""}
    rows = [
        start | {"sampled": "class", "passes": 20, "guidance": 2, "own": 0.75, "minutes": 1.0},
        start | {"sampled": "class", "passes": 20, "guidance": 1, "own": 0.625, "minutes": 1.0},
        start | {"sampled": "class", "passes": 10, "guidance": 1, "own": 0.5, "minutes": 1.0},
        start | {"sampled": "free", "passes": 10, "guidance": 1, "fid": 2.125, "minutes": 1.0},
    ]
    (tmp_path / "A-0").mkdir()
    data.write_json(tmp_path / "A-0" / "stage2-fast.rows.json", rows)
    choose_presets.table(tmp_path, tmp_path)
    text = (tmp_path / "fast.md").read_text()
    assert "| A-0 | fast |  | class | 20 |" in text and "## cas" not in text
    ways = "10 x 1 / 20 x 1 / 20 x 2"
    assert f"| A-0 | fast | 1.0 | {ways} | 0.5 / 0.625 / 0.75 |  |  | 2.12 |" in text
    header, *lines = (tmp_path / "fast.csv").read_text().splitlines()
    assert header.startswith("kind,dataset,trial,changed,sampled,passes") and len(lines) == 4


def test_the_way_from_real_series_to_samples_stands_in_its_order():
    scores = {"coverage": 0.5, "cas": 0.75}
    rows = []
    for i, (_, kind, trial, how) in enumerate(choose_presets.ON_THE_WAY):
        row = {"dataset": "A-0", "kind": kind, "trial": trial, "accuracy": 0.875} | scores
        if how:
            sampling = dict(zip(("passes", "noise", "guidance"), how, strict=True))
            rows.append(row | sampling | {"sampled": "free", "fid": 9.0})
            row |= sampling | {"sampled": "class", "fid_class": float(i)}
        else:
            row |= {"fid": float(i)}
        rows.append(row)
    text = choose_presets.losses([*rows[::-1], {**rows[0], "dataset": "B-0"}])
    assert [line.split(" | ") for line in text.splitlines()[2:]] == [
        ["| A-0", "CAS", "0.875", *["0.75"] * 4, "0.75 |"],
        ["| A-0", "FID", "", "0", "1", "2", "3", "4 |"],
        ["| A-0", "coverage", "", *["0.5"] * 4, "0.5 |"],
    ]


SHORT = {"fcn_steps": 2, "cas_steps": 2, "steps_per_class": 0}


def a_fold(tmp_path):
    x, y = draw(40, 24).numpy(), [k % 2 for k in range(40)]
    whole = {"X_train": x, "y_train": y, "X_test": x, "y_test": y}
    np.savez(tmp_path / "own.npz", **whole)
    dataset = choose_presets.held_out(str(tmp_path / "own.npz"), tmp_path / "out")
    assert (len(dataset.x_train), len(dataset.x_test)) == (32, 8)
    return dataset


def test_a_trial_runs_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(choose_presets.TRIALS["classifier"], "short", SHORT)
    dataset = a_fold(tmp_path)
    for _ in range(2):
        trial = choose_presets.Trial("classifier", "short", dataset, tmp_path / "out")
        choose_presets.run_trial(trial)
    (line,) = capsys.readouterr().out.splitlines()  # not one more
    assert line.startswith("classifier own-0 short fcn_steps=2")
    assert len(list((tmp_path / "out").rglob("*.rows.json"))) == 1
    arguments = ["choose_presets", "classifier", str(tmp_path / "out"), str(tmp_path / "own.npz")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--only", "longest"])
    with pytest.raises(data.InputError, match="longest: no trial of classifier; there are .*short"):
        choose_presets.main()


def test_a_prior_is_tried_on_the_stage_1_of_another_trial(tmp_path, monkeypatch):
    tiny = SHORT | choose_presets.NAIVE | {"width": 8, "latent_width": 2, "stage1_steps": 2}
    monkeypatch.setitem(choose_presets.TRIALS["stage1"], "tiny", tiny)
    prior_fields = {"stage2_steps": 2, "prior_hidden": 16, "prior_dropout": 0.1}
    monkeypatch.setitem(choose_presets.TRIALS["stage2"], "tiny", prior_fields)
    dataset, out = a_fold(tmp_path), tmp_path / "out"
    for kind, on in (("stage1", "fast"), ("stage2", "tiny")):
        choose_presets.run_trial(choose_presets.Trial(kind, "tiny", dataset, out, on))
    config = data.load_checkpoint(out / "own-0/stage2/tiny: tiny/stage2.pt")["identity"]
    assert tiny.items() - SHORT.items() | prior_fields.items() <= config.items()
    choose_presets.table(out, tmp_path)
    rows = choose_presets.read_trials(tmp_path / "fast.csv")
    assert [row["trial"] for row in rows] == ["tiny", *["tiny: tiny"] * 3]
    for row in rows[:3]:  # reconstructions, then samples of a class
        assert 0 <= row["coverage"] <= 1 and 0 <= row["cas"] <= 1 and row["nn_ratio"] > 0
        assert 0 <= row["cas_on_recon"] <= 1


def test_a_run_by_the_thesis_schedule_has_its_cas_and_counts_before_one_of_100_epochs(tmp_path):
    rows = []
    for epochs in (1000, 100):
        run = tmp_path / f"{epochs}/Symbols/naive-none/seed1"
        run.mkdir(parents=True)
        config = Config(cas_epochs=epochs, seed=1).settings_of("metrics") | {"sha256": ""}
        metrics = {"stages": 2, "cas": 0.5, "complete_data": True, "config": config}
        data.write_json(run / "metrics.json", metrics)
        rows += find_runs([run])
    assert [row["cas_thesis"] for row in rows] == [0.5, None]
    for order in (rows, rows[::-1]):
        ((_, models),) = grid(order).items()
        assert models[NAIVE][1]["cas_thesis"] == 0.5


def test_tables_have_a_schedule_each_and_one_number_a_cell():
    fast = settings(Config(**data.PRESETS["fast"], precision="bf16"))
    intel = {"processor": "Xeon, 1 threads", "seconds_evaluate": 7140.0}
    rows = [
        row_of("naive-none", 1, recon=0.3, fid=9.0, knn_train_mode=0.5),
        row_of("naive-none", 2, recon=0.2, fid=8.0),
        row_of("naive-none", 1, *fast, recon=0.11, cas=0.8, cas_real=0.9, cas_thesis=0.7, **intel),
        row_of("vibcreg-warp", 1, *fast, dataset="FordA", recon=0.1),
        row_of("naive-none", 1, "zeta=0.2", recon=0.5),
        row_of("naive-none", 1, "zeta=0.2", recon=9.0, complete_data=False),
    ]
    text = tables.thesis_tables(grid(rows))
    thesis, fast = text.split("## Schedule: ")[1:]
    assert thesis.startswith("thesis, float32\n") and fast.startswith("fast, bf16\n")
    assert "| Symbols | 0.250 [0.110]* | [0.143] |" in thesis and " | 2 |" in thesis
    assert "best FID\n\n| dataset |" in thesis and "| Symbols | 8.000 [8.0" not in thesis
    assert "KNN accuracy as published" in thesis and "KNN accuracy as published" not in fast
    assert fast.index("| FordA |") < fast.index("| Symbols | 0.110 [0.110] |")  # as Table 5.2
    assert "| Symbols | 0.700 [0.956]* |" in fast
    assert "| Symbols | 0.800 |  |  |  |  |  |  | 0.900 | 1 |" in fast
    assert "| Symbols | 120 |  |  |  |  |  |  | Xeon, 1 threads |" in fast
    assert "stage 1 alone too: 2.0 hours" in fast
    assert "Minutes" not in thesis  # its runs are of stage 1 alone
    assert "9.000 [0.110]" not in text and "0.500 [0.110]" not in text  # incomplete, other settings


def test_questions_have_means_over_models_and_over_sets():
    rows = [row_of("naive-none", 1, BF16, recon=0.20, cas=0.5, fid=3.0)]
    for i, model in enumerate(MODELS[1:]):
        rows.append(row_of("-".join(model), 1, BF16, recon=0.21 + 0.02 * i, cas=0.6, fid=4.0))
    rows.append(row_of("naive-none", 1, BF16, dataset="Wafer", recon=0.1))
    rows.append(row_of("barlow-warp", 1, BF16, dataset="Wafer", recon=0.9))
    asked = compare.questions(grid(rows))
    assert all(table.startswith("By the thesis' schedule:\n\n|") for table in asked.values())
    theirs = {m: compare.published("Symbols", m, "recon")["mean"] for m in MODELS}
    others = sum(theirs[m] for m in MODELS[1:]) / 6 - theirs[NAIVE]
    assert f"| Symbols | 6 | 1 | +0.06 [{others:+.2f}]* |  |  |  |" in asked["rq1"]
    assert "| Wafer | 1 | 1 | +0.80 [" in asked["rq1"]
    warp = (theirs["barlow", "warp"] + theirs["vibcreg", "warp"]) / 2 - theirs[NAIVE]
    assert f"| warp | 1 | +0.04 [{warp:+.2f}] |" in asked["rq2"]  # Wafer lacks models
    assert "| +0.10 |  |" in asked["rq3"] and "| +1.00 [" in asked["rq4"]
    assert "FID is higher than naive's for 6 of 6 models. Its noise is not known" in asked["rq3"]


def test_noise_of_fid_is_of_seeds_of_the_same_schedule():
    """Second seeds of two models tell by how much any may differ; another schedule's do not."""
    fast = settings(Config(**data.PRESETS["fast"], precision="bf16"))
    seeds = [row_of("naive-none", 1, *fast, fid=3.0), row_of("naive-none", 2, *fast, fid=5.0)]
    others = [row_of("-".join(model), 1, *fast, fid=9.0) for model in MODELS[1:]]
    others += [row_of("-".join(model), 2, *fast, fid=10.0) for model in MODELS[1:4]]
    thesis = [row_of("naive-none", seed, BF16, fid=50.0 * seed) for seed in (1, 2)]
    asked = compare.questions(grid(seeds + others + thesis))
    assert "6 of 6 models. The noise of 6 is known: 6 are higher" in asked["rq3"]
    assert "By `fast`:" in asked["rq3"] and "| Symbols | 6 | 1–2 | +5.25 [" in asked["rq3"]
    best = settings(Config(**data.PRESETS["best"], precision="bf16"))
    better = [
        row_of("naive-none", 1, *best, fid=2.0, coverage=0.5),
        row_of("vibcreg-gauss", 1, *best, fid=1.5, coverage=0.625),
    ]
    of_best = compare.questions(grid([*seeds, *others, *better]))
    _, table = of_best["rq3"].split("By `best`:")
    assert "| Symbols | 1 | 1 | -0.50 [" in table and "|  | +0.12 |  |" in table
    assert of_best["rq1"] == asked["rq1"]  # of tokens `best` is no model of the thesis'
    asked = compare.questions(grid(seeds + others[:6] + thesis))  # naive alone is too little
    assert "is known" not in asked["rq3"]


@pytest.mark.parametrize(
    "fids,squares,t", [((3.0, 5.0), 2.0 + 0.5, 4.3027), ((3.0, 5.0, 7.0), 2 * 4.0 + 0.5, 3.1824)]
)
def test_noise_weighs_models_by_their_seeds_and_asks_for_more_of_few(fids, squares, t):
    """Student's t: 4.30 stds with two degrees of freedom, where with many it is 2.08."""
    rows = []
    for model, values in (("naive-none", fids), ("barlow-warp", (9.0, 10.0))):
        for seed, fid in enumerate(values, 1):
            rows.append(row_of(model, seed, BF16, fid=fid))
            rows.append(row_of(model, seed, BF16, dataset="Wafer", fid=100 * fid))
    std = math.sqrt(squares / len(fids))  # as many degrees of freedom
    found = noise(grid(rows), "Symbols", "fid")
    assert noise_bound(found) == pytest.approx(t * math.sqrt(2) * std, rel=1e-4)
    assert noise(grid(rows[:4]), "Symbols", "fid") is None  # one model of two seeds


def difference(ours, n=1, m=1, star="", theirs=None, their_star=""):
    return compare.Difference(
        dataset="Symbols",
        model=("barlow", "warp"),
        metric="fid",
        n=n,
        m=m,
        ours=ours,
        our_star=star,
        noise_known=True,
        published=theirs,
        published_star=their_star,
    )


def test_a_mean_over_models_counts_their_seeds_together_and_naives_fewest():
    models = [difference(1.0, n=2, m=4), difference(1.0, n=1, m=1), difference(None)]
    bound = noise_bound(1.0, 3, 1)
    assert compare.mean_difference(models, 0.999 / bound) == "+1.00* (2)"
    assert compare.mean_difference(models, 1.001 / bound) == "+1.00 (2)"


def test_differences_beyond_noise_are_counted_by_their_direction():
    found = [
        difference(1.0, star="*", theirs=1.0, their_star="*"),  # a loss, as published
        difference(1.0, theirs=-1.0, their_star="*"),
        difference(-1.0, star="*", theirs=-1.0, their_star="*"),
        difference(-1.0, star="*", theirs=1.0, their_star="*"),
        difference(-1.0, theirs=1.0),
    ]
    assert "for 2 of 5 models. The noise of 5 is known: 1 are higher beyond it, 2 lower." in (
        compare.higher_fid(found)
    )
    fid = compare.METRICS.index("fid") + 1
    counts = {line[0]: line[fid] for line in compare.starred_rows(found)}
    assert counts == {
        "rows": "5",
        "gains": "2 [2]",
        "losses": "1 [2]",
        "gains in both": "1",
        "worse than naive, star or not": "2",
    }


def test_runs_are_compared_by_the_classifier_that_they_share():
    """Another processor's classifier gives another FID; CAS has a classifier of each run."""
    fast = settings(Config(**data.PRESETS["fast"], precision="bf16"))
    one, other = {"fid_floor": 0.25}, {"fid_floor": 0.5}
    on_another_machine = {"fid_floor": 0.25000001}
    rows = [
        row_of("naive-none", 1, *fast, fid=3.0, cas=0.5, recon=0.1, **one),
        row_of("naive-none", 2, *fast, fid=9.0, cas=0.7, recon=0.3, **other),
        row_of("barlow-warp", 1, *fast, fid=4.0, cas=0.5, recon=0.2, **on_another_machine),
        row_of("vibcreg-slice", 3, *fast, fid=8.0, cas=0.5, recon=0.2, fid_floor=0.75),
    ]
    found = compare.differences(of_preset(grid(rows), "fast"))
    shown = {(d.model[0], d.metric): (round(d.ours, 3), d.n, d.m) for d in found if d.ours}
    assert shown["barlow", "fid"] == (1, 1, 1)
    assert shown["barlow", "cas"] == (-0.1, 1, 2)
    assert ("barlow", "recon") not in shown  # 0.2 - 0.2, of both seeds of naive
    assert shown["vibcreg", "fid"] == (2, 1, 2)  # none shares its own
    table = compare.questions(grid(rows[:3]))["rq3"]
    assert "| Symbols | 1 | 1–2 | +1.00 [" in table


def test_runs_in_float32_fill_the_tables_where_there_are_no_others():
    rows = []
    for precision, recon in (("float32", 0.5), ("bf16", 0.3)):
        fast = settings(Config(**data.PRESETS["fast"], precision=precision))
        rows.append(row_of("naive-none", 1, *fast, recon=0.2))
        rows.append(row_of("vibcreg-slice", 1, *fast, recon=recon))
    assert "| Symbols | 1 | 1 | +0.30 [" in compare.questions(grid(rows[:2]))["rq1"]
    assert "## Schedule: fast, float32, 1 sets" in compare.headline(grid(rows[:2]))
    assert "| Symbols | 1 | 1 | +0.10 [" in compare.questions(grid(rows))["rq1"]
    assert "## Schedule: fast, bf16, 1 sets" in compare.headline(grid(rows))


def test_the_readmes_table_has_a_row_a_set_in_the_order_of_the_thesis():
    fast = settings(Config(**data.PRESETS["fast"], precision="bf16"))
    as_published = {"recon_last_batch": 0.05}
    rows = [
        row_of("naive-none", 1, *fast, knn=0.5, svm=0.6, cas=0.9),
        row_of("vibcreg-slice", 1, *fast, knn=0.7, svm=0.6, cas=0.9, **as_published),
        row_of("naive-none", 1, *fast, dataset="FordA", knn=0.7),
        row_of("vibcreg-slice", 1, *fast, dataset="FordA", knn=0.8),
        row_of("naive-none", 1, *fast, dataset="Wafer", knn=0.7),  # alone
        row_of("naive-none", 1, BF16, knn=0.1),
        row_of("vibcreg-slice", 1, BF16, knn=0.1),
    ]
    header, _, *lines, _, counts = tables.readme_table(grid(rows)).splitlines()
    assert header.startswith("| set | recon, naive | recon, NC | KNN, naive | KNN, NC |")
    assert [line.split(" |")[0] for line in lines] == ["| FordA", "| Symbols"]
    assert lines[1].startswith("| Symbols | [0.11] | 0.05 [0.07] | 0.50 [0.50] | 0.70 [0.42]")
    assert lines[1].endswith("| 1 |") and lines[0].endswith("|  |")  # no minutes without stage 2
    assert "recon 1 of 1, KNN 4 of 4, SVM 2 of 2; probed the published way, KNN 0 of 0" in counts


def test_tables_are_put_between_their_markers(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(
        "a\n<!-- x -->\nold\n<!-- end -->\nb\n<!-- y -->\n<!-- end -->\nc\n<!-- end -->"
    )
    for _ in range(2):
        fill(path, {"x": "| 1 |\n", "y": "| 2\\1 |\n", "z": "no place"})
    assert path.read_text() == (
        "a\n<!-- x -->\n| 1 |\n<!-- end -->\nb\n<!-- y -->\n| 2\\1 |\n<!-- end -->\nc\n<!-- end -->"
    )


def test_ablation_sets_each_weight_beside_the_thesis_one_of_the_same_schedule():
    fast = "stage1_steps=800"
    rows = [
        row_of("vibcreg-warp", seed, first, recon=recon, knn=0.5, complete_data=complete)
        for seed, first, recon, complete in (
            (1, "eta=2.0 precision=bf16", 0.7, True),
            (1, "precision=bf16", 0.8, True),
            (1, fast, 0.10, True),
            (2, fast, 0.12, True),
            (1, "", 9.0, True),
            (1, f"{fast} zeta=0.2", 0.11, True),
            (2, f"{fast} zeta=0.2", 0.13, True),
            (1, f"{fast} zeta=0.05", 0.60, True),
            (1, f"{fast} zeta=0.15", 9.0, False),
            (1, "stage1_steps=900 zeta=0.3", 9.0, True),
            (1, f"{fast} eta=0.5", 0.30, True),
            (1, f"{fast} zeta=0.2 eta=2.0", 9.0, True),
        )
    ]
    text = compare.ablation(rows)
    zeta, eta = text.split("## eta")
    line = f"| Symbols | vibcreg-warp | {fast} | recon | "
    assert line + "0.600* (1) | 0.110 (2) |  | 0.120 (2) |" in zeta
    assert line + "0.300* (1) | 0.110 (2) |  |" in eta
    assert "| 0.05 | **0.1** | 0.15 | 0.2 |" in zeta and "| 0.5 | **1** | 2 |" in eta
    assert "| thesis, bf16 | recon |  | 0.800 (1) | 0.700* (1) |" in eta
    assert "thesis, bf16" not in zeta and "9.000" not in text
    assert text.count("| knn |") == 3 and "| svm |  |  |  |  |" in zeta


def test_departures_stand_beside_runs_that_differ_in_nothing_else():
    first, later = "precision=bf16", "cas_epochs=100"
    fast, of_fast = settings(Config(**data.PRESETS["fast"], precision="bf16"))
    longer = fast.replace("stage1_steps=800", "stage1_steps=3200")
    rows = [
        row_of("barlow-gauss", 1, recon=9.0),
        row_of("barlow-gauss", 1, first, later, recon=0.1, fid=0.1),
        row_of("barlow-gauss", 2, first, recon=0.2),
        row_of("barlow-gauss", 3, first, recon=9.0),
        row_of("barlow-gauss+roundtrip", 1, first, recon=0.5),
        row_of("barlow-gauss+roundtrip", 2, first, recon=0.7),
        row_of("barlow-slice+roundtrip", 1, first, recon=9.0),
        row_of("naive-none", 1, first, "cas_epochs=99", recon=9.0),
        row_of("naive-none", 1, first, later, recon=0.3, fid=0.3),
        row_of("naive-none", 1, first, f"embedding=random loss_on=all {later}", recon=0.4, fid=0.4),
        row_of("naive-none", 1, first, f"embedding=random {later}", recon=9.0),
        row_of("naive-none", 1, first, f"loss_on=all {later}", recon=9.0),
        row_of("vibcreg-warp", 1, first, recon=9.0),
        row_of("vibcreg-warp", 1, f"bands=2 {first}", recon=9.0, complete_data=False),
        row_of("vibcreg-slice", 1, first, recon=9.0),
        row_of("vibcreg-slice", 1, f"{first} stage1_warmup=300", recon=9.0),
        row_of("barlow-jitter", 1, f"views=2 {first}", dataset="own", recon=0.6),
        row_of("barlow-jitter", 1, first, later, dataset="own", recon=0.8, fid=0.5),
        row_of("barlow-warp", 1, fast, of_fast, dataset="own", recon=0.8, fid=0.5),
        row_of("barlow-warp", 1, longer, "none", dataset="own", recon=0.2),
    ]
    text = compare.departures(rows)
    found = [
        [cell.strip() for cell in line.split("|")[2:9]]
        for line in text.splitlines()
        if line.startswith(("| S", "| own"))
    ]
    assert found == [
        ["barlow-gauss", "view as it is", "1, 2", "0.150", "", "", ""],
        ["barlow-gauss", "zeroed tail", "1, 2", "0.600", "", "", ""],
        ["barlow-gauss", "difference", "", "+0.450*", "", "", ""],
        ["barlow-gauss", "published", "four", "0.173", "0.587", "0.660", "8.611"],
        ["naive-none", "codebook, masked", "1", "0.300", "", "", "0.300"],
        ["naive-none", "random, all", "1", "0.400", "", "", "0.400"],
        ["naive-none", "difference", "", "+0.100*", "", "", "+0.100"],
        ["naive-none", "published", "four", "0.110", "0.503", "0.601", "13.620"],
        ["barlow-jitter", "one view", "1", "0.800", "", "", ""],
        ["barlow-jitter", "two views", "1", "0.600", "", "", ""],
        ["barlow-jitter", "difference", "", "-0.200", "", "", ""],
        ["barlow-warp", "800 steps", "1", "0.800", "", "", ""],
        ["barlow-warp", "3,200 steps", "1", "0.200", "", "", ""],
        ["barlow-warp", "difference", "", "-0.600", "", "", ""],
    ]
    assert "## Steps of stage 1: fast, bf16\n" in text


def test_samples_of_presets_and_bands_stand_above_what_was_published():
    of = {}
    for preset in ("thesis", "fast", "best"):
        of[preset] = settings(Config(**data.PRESETS[preset], precision="bf16"))
    two_bands = settings(Config(**data.PRESETS["fast"], precision="bf16", bands=2))
    of_best = data.PRESETS["best"] | {"bands": 2, "latent_width": 8}
    best_of_two_bands = settings(Config(**of_best, precision="bf16"))
    rows = [
        row_of("vibcreg-slice", 1, *of["best"], cas=0.5, cas_thesis=0.4),
        row_of("naive-none", 1, *two_bands, cas=0.6),
        row_of("vibcreg-slice", 3, *best_of_two_bands, cas=0.3),
        row_of("naive-none", 1, *of["fast"], cas=0.7, fid=1.0),
        row_of("naive-none", 2, *of["fast"], cas=0.9, seconds_stage2=60.0),
        row_of("naive-none", 1, of["fast"][0], "none", cas=9.0),
        row_of("naive-none", 1, *of["thesis"], cas=9.0),
        row_of("vibcreg-warp", 1, *of["fast"], cas=9.0),
        row_of("naive-none", 1, *settings(Config(**data.PRESETS["fast"])), cas=0.1),
    ]
    columns = ("model", "preset", "bands", "seeds", "fid", "cas", "cas_thesis", "minutes")
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in compare.samples(rows).splitlines()
        if line.startswith("|")
    ]
    places = [lines[0].index(name) for name in columns]
    assert [[line[i] for i in places] for line in lines[2:]] == [
        ["naive-none", "fast", "1", "1, 2", "1.000 (1)", "0.800", "", "1.500"],
        ["naive-none", "fast", "2", "1", "", "0.600", "", "1.000"],
        ["naive-none", "fast, float32", "1", "1", "", "0.100", "", "1.000"],
        ["vibcreg-slice", "best", "1", "1", "", "0.500", "0.400", "1.000"],
        ["vibcreg-slice", "best", "2", "3", "", "0.300", "", "1.000"],
        ["naive-none", "published", "1", "four", "13.620", "", "0.956", ""],
        ["vibcreg-slice", "published", "1", "four", "9.740", "", "0.974", ""],
        ["TimeVQVAE", "published", "2", "", "5.6", "", "0.968", ""],
    ]
    named = [name_cells(row)[1] for row in rows[:4]]
    assert named == ["best, bf16", "fast, bf16, two bands", "best, bf16, two bands", "fast, bf16"]


def test_data_that_lacks_one_series_counts():
    wafer = dict(dataset="Wafer", complete_data=False, n_train=1000)
    assert is_whole(wafer | dict(n_test=6163))
    assert not is_whole(wafer | dict(n_test=6162))
    assert is_whole(dict(dataset="own", complete_data=True))


def test_presets_stand_side_by_side_over_the_seeds_of_both():
    fast, best = (
        settings(Config(**data.PRESETS[preset], precision="bf16")) for preset in ("fast", "best")
    )
    rows = [
        row_of("naive-none", 1, *fast, fid=2.0, seconds_evaluate=30.0),
        row_of("naive-none", 2, *fast, fid=9.0),
        row_of("naive-none", 1, *best, fid=1.0, seconds_stage2=120.0),
    ]
    lines = compare.presets(grid(rows)).splitlines()
    found = [
        [cell for cell in map(str.strip, line.split("|")[3:-1]) if cell]
        for line in lines
        if line.startswith("| Symbols")
    ][:3]
    assert found == [
        ["fast, bf16", "1", "2.000", "1.500"],
        ["best, bf16", "1", "1.000", "3.000"],
        ["difference", "-1.000", "0.50 times as fast"],
    ]


def test_cells_of_runs_csv():
    for value in (None, True, False, 3, -3, 0.25, 1e-30):
        assert from_cell("" if value is None else str(value)) == value


def test_probing_in_train_mode_moves_a_copy_alone(monkeypatch):
    model = tiny_model().eval()
    x, y = draw(30, 40, dtype=torch.float32), torch.arange(30) % 2
    own = data.Dataset("own", 40, 0.0, 1.0, [0, 1], True, "", x[:20], y[:20], x[20:] * 3, y[20:])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    probed = []
    monkeypatch.setattr(probes, "probe", lambda *splits: probed.append(splits) or (0.75, 0.5))
    scores = probes.probe_in_train_mode(model, own)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.training
    assert tuple(scores) == PROBES and tuple(scores.values()) == (0.75, 0.5)
    ((z_train, y_train, z_test, y_test),) = probed
    frozen = ncvqvae.encode_split(model, own.x_test)["averages"]
    assert z_test.shape == frozen.shape and not torch.allclose(z_test, frozen)
    copied = copy.deepcopy(model).train()  # the train split goes first, and moves it too
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    expected = ncvqvae.encode_split(copied, own.x_train[order], model.config.stage1_batch)
    torch.testing.assert_close(z_train, expected["averages"])
    assert torch.equal(y_train, own.y_train[order]) and y_test is own.y_test


def test_runs_without_labels_are_left_out_of_every_probe(tmp_path, capsys):
    fake_run(tmp_path, 1)
    path = tmp_path / "Symbols/naive-none/seed1/metrics.json"
    data.write_json(path, data.read_json(path) | {"knn": None, "svm": None, "cas": None})
    for command in ("train_mode", "cas", "parts", "spectrum"):
        getattr(probes, f"command_{command}")([tmp_path])
        assert "| Symbols/" not in capsys.readouterr().out


def test_spectrum_cuts_a_series_and_its_reconstruction_at_a_frequency():
    t = 2 * math.pi * torch.arange(64, dtype=torch.float64) / 64
    slow, quick = torch.sin(3 * t)[None], 0.5 * torch.cos(20 * t)[None]
    x, x_hat = 0.25 + slow + quick, 0.25 + 0.75 * slow
    whole, part = probes.spectrum(x, x_hat, cuts=(0, 8))
    torch.testing.assert_close(whole["low"], x)
    torch.testing.assert_close(whole["high"], x_hat)
    assert whole["power"] == pytest.approx(1)
    power = 0.25**2 + 1 / 2 + 0.5**2 / 2  # a mean square; half of it a wave has
    assert whole["error"] == pytest.approx((0.25**2 / 2 + 0.5**2 / 2) / power)
    torch.testing.assert_close(part["low"], x_hat + quick)
    torch.testing.assert_close(part["high"], 0.25 + slow)
    assert part["power"] == pytest.approx(0.5**2 / 2 / power)
    assert part["error"] == pytest.approx(1)


def test_rows_probes_parts_and_a_tied_prior_of_a_real_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "draw_figures", lambda *inputs: None)
    run = tmp_path / "own/vibcreg-slice/seed1"
    m = run_all(
        run,
        tiny_config(
            dataset=own_data(tmp_path),
            method="vibcreg",
            augmentation="slice",
            stage1_steps=3,
            stage2_steps=3,
        ),
    )
    probes.command_train_mode([run])
    (row,) = find_runs([tmp_path])
    assert row["recon"] == m["recon"]
    assert row["knn_train_mode"] is not None
    assert row["stage1_settings"].startswith("stage1_steps=3 ")
    assert "fcn_epochs=1" in row["later_settings"]
    (real, reconstructed, conditional), (train, test, drawn), of_classes = probes.parts(run)
    assert real[0] == pytest.approx(0, abs=1e-5)
    assert real[1:] == (m["is_real"], m["fcn_accuracy"])
    assert reconstructed[0] == pytest.approx(m["fid_recon"], rel=1e-3, abs=1e-6)
    assert 0 <= conditional[2] <= 1
    assert [split.sum() for split in (train, test, drawn)] == [pytest.approx(1)] * 3
    assert conditional[3] == pytest.approx(conditional[0], rel=1e-3)  # both have the same shares
    # A file of these samples alone, scored by evaluate.py, has the same FID and coverage.
    dataset, _, _ = probes.load_judged(run)
    x = evaluate.read_run_samples(run, dataset)["conditional"]
    chosen = evaluate.as_many(len(x), len(dataset.x_test))
    by_evaluate = evaluate.score_samples(x[chosen], None, None, dataset, data.read_config(run), run)
    assert of_classes["fid_class"] == pytest.approx(by_evaluate["fid"], rel=1e-3, abs=1e-4)
    assert of_classes["coverage_class"] == by_evaluate["coverage"]
    probes.command_parts([tmp_path])
    assert find_runs([tmp_path])[0]["fid_class"] == pytest.approx(of_classes["fid_class"])
    text = capsys.readouterr().out
    assert "| own/vibcreg-slice/seed1 |  | 1.0" in text and " | 25:25:50 / 25:25:50 / " in text
    probes.command_spectrum([tmp_path])
    first = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| own"))
    assert "| own/vibcreg-slice/seed1 |  | 0 | 1 | " in first
    _, below, above, _ = first.rsplit("|", 3)
    assert below.split(", ")[1].strip() == f"{m['fcn_accuracy']:.3f}"
    assert float(above.split(",")[0]) == pytest.approx(m["fid_recon"], rel=1e-2, abs=1e-3)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    tied = tied_prior.tie(tmp_path / "tied", run)
    saved = torch.load(tmp_path / "tied/own/vibcreg-slice/seed1/stage2.pt")["state"]
    assert saved["head.2.weight"].equal(saved["embedding.weight"])
    assert tied["prior_loss"] != m["prior_loss"] and tied["fid_recon"] == m["fid_recon"]
    rounded = straight_through.train(tmp_path / "straight", run)
    assert rounded["recon"] == pytest.approx(m["recon"], rel=0.1) and not rounded["fid"]
    paths = [tmp_path / name / "own/vibcreg-slice/seed1/stage1.pt" for name in ("tied", "straight")]
    exact, published = (torch.load(path)["state"] for path in paths)
    assert not all(exact[name].equal(published[name]) for name in exact)  # other ties
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_cas_by_the_thesis_schedule_is_that_of_the_runs_samples(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "draw_figures", lambda *inputs: None)
    run = tmp_path / "own/naive-none/seed3"
    short = {"stage1_steps": 1, "stage2_steps": 1, "fcn_steps": 2}
    config = tiny_config(dataset=own_data(tmp_path), method="naive", seed=3, **short)
    run_all(run, config)
    probes.command_train_mode([run])
    monkeypatch.setattr(probes, "Config", lambda **given: Config(cas_epochs=2, **given))
    trained = []

    def spy(x, y, n_classes, config, folder, name):
        trained.append(config)
        return evaluate.train_fcn(x, y, n_classes, config, folder, name)

    monkeypatch.setattr(probes, "train_fcn", spy)
    capsys.readouterr()
    for _ in range(2):  # the second time it is there
        probes.command_cas([run])
    (schedule,) = trained
    assert (schedule.fcn_steps, schedule.fcn_batch, schedule.fcn_lr) == (8, 256, 1e-3)  # of 1000
    assert (schedule.seed, Config().cas_epochs) == (3, 1000)
    dataset = data.load_dataset(config.dataset)
    samples = evaluate.read_run_samples(run, dataset)
    x, y = samples["conditional"], samples["labels"]
    expected = evaluate.classification_accuracy_score(
        x, y, dataset, Config(cas_epochs=2, seed=3), tmp_path / "again"
    )
    (row,) = find_runs([tmp_path])
    assert row["cas_thesis"] == expected and row["seconds_cas_thesis"] > 0
    assert row["knn_train_mode"] is not None  # both probes share a file
    metrics = data.read_json(run / "metrics.json")
    guided = metrics | {"config": metrics["config"] | {"guidance": 2.0}}
    for other in (guided, metrics | {"seconds_stage2": 7.0}):  # scored anew, trained anew
        anew = tmp_path / "anew/own/naive-none/seed3"
        data.write_json(anew / "metrics.json", other)
        (anew / "probe.json").write_bytes((run / "probe.json").read_bytes())
        (row,) = find_runs([anew])
        assert row["cas_thesis"] is row["knn_train_mode"] is None  # those were of another one
    assert f"| {expected:.3f} | 0 |" in capsys.readouterr().out
    assert not list(run.rglob("*.resume.pt"))


def test_every_figure_across_runs_is_drawn(tmp_path):
    rows = [
        row for row in read_rows(RESULTS / "runs.csv") if row["dataset"] == "SonyAIBORobotSurface1"
    ]
    write_csv(tmp_path / "runs.csv", COLUMNS, rows)
    (tmp_path / "logs").symlink_to(RESULTS / "logs")
    thesis_figures.draw_all(tmp_path)
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert drawn >= {
        "gains",
        "views",
        "recon",
        "probes",
        "sample_metrics",
        "training",
        "ssl_barlow",
        "knn_ssl_vibcreg",
        "knn_is",
        "knn_fid",
        "costs",
    }
    (tmp_path / "logs").unlink()
    (tmp_path / "logs").mkdir()
    looks = gzip.compress(b'{"stage": "stage1", "step": 1, "val_recon": 0.5}\n')
    (tmp_path / "logs" / log_name(rows[0])).write_bytes(looks)
    assert thesis_figures.final_ssl(tmp_path, rows[0]) is None  # nothing but looks


def test_figures_without_a_run_to_draw_are_left_out_and_named(tmp_path, capsys):
    (tmp_path / "logs").mkdir()
    write_csv(tmp_path / "runs.csv", COLUMNS, [row_of("naive-none", 1, BF16, recon=0.2)])
    thesis_figures.draw_all(tmp_path)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["views.png"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "runs.csv" in line and "gains, costs, recon, probes" in line and "zeta" in line


def test_trials_are_merged_into_those_that_are_there(tmp_path):
    for name in ("fast.csv", "fast.md", "README.md"):
        (tmp_path / name).write_bytes((RESULTS / name).read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    choose_presets.table(tmp_path / "none", tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_tables_of_other_folders_leave_the_readme_beside_them_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path.resolve() / "results")
    readme = tmp_path / "README.md"
    before = "mine\n<!-- results -->\nmy own\n<!-- end -->\n"
    readme.write_text(before)
    for name in ("mine", "results"):
        (tmp_path / name).mkdir()
    tables.write_tables(tmp_path / "mine")
    assert readme.read_text() == before and (tmp_path / "mine" / "TABLES.md").exists()
    tables.write_tables(tmp_path / "results")
    assert "my own" not in readme.read_text()


def test_the_tables_of_results_are_those_of_its_runs(tmp_path, monkeypatch):
    out = tmp_path / "results"
    out.mkdir()
    for path in (RESULTS / "runs.csv", RESULTS / "README.md"):
        (out / path.name).write_bytes(path.read_bytes())
    readme = RESULTS.parent / "README.md"
    (tmp_path / "README.md").write_bytes(readme.read_bytes())
    monkeypatch.setattr(tables, "RESULTS", out.resolve())
    tables.write_tables(out)
    made = [path for path in out.iterdir() if path.suffix == ".md"]
    assert len(made) == 7
    for path in made:
        assert path.read_text() == (RESULTS / path.name).read_text(), path.name
    assert (tmp_path / "README.md").read_text() == readme.read_text()


def test_figures_without_runs_are_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["thesis_figures", str(tmp_path)])
    with pytest.raises(data.InputError, match="runs.csv: not there"):
        thesis_figures.main()
