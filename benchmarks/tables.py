"""Tables from finished runs: runs.csv, thesis Tables 6.1 to 6.7, naive against non-contrastive, the ablation.

    python benchmarks/tables.py runs/                          # Tables 6.1 to 6.7 of these runs, published values beside
    python benchmarks/tables.py runs/ --export results/        # merged into results/runs.csv, logs/; then every table
                                                               # of results/ and README's
    python benchmarks/tables.py probe runs/Symbols/*/seed*     # probes frozen and in the authors' train mode (ledger 12)
    python benchmarks/tables.py parts runs/ > results/parts.md # where samples lose: real, reconstructed, generated

A row of runs.csv is one metrics.json with the settings that made it. Rows of other settings never share a table.
The ablation of thesis section 6.3:

    for weight in zeta=0.05 zeta=0.15 zeta=0.2 eta=0.5 eta=2; do
        OUT=runs/ablation/$weight bash run.sh TwoPatterns barlow,vibcreg warp,slice 1 --stages 1 --stage1-epochs 250 --$weight
    done
"""
import contextlib, copy, csv, gzip, hashlib, io, json, math, re, statistics, sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data
from data import Config, InputError, load_dataset, read_json, write_atomic, write_json
from evaluate import METRICS, accuracy, classify, dataset_fcn, frechet_distance, inception_score, probe
from ncvqvae import encode_split, load_stage1, read_log

RESULTS = Path(__file__).resolve().parent.parent / "results"
MODELS = [("naive", "none")] + [(m, a) for m in ("barlow", "vibcreg") for a in ("warp", "slice", "gauss")]
TABLES = [("6.1", "Mean reconstruction error", "mean", ["recon", "recon_train_mode_last_batch"]),
          ("6.2", "Best reconstruction error", "best", ["recon", "recon_train_mode_last_batch"]),
          ("6.3", "Mean probe accuracy", "mean", ["knn", "svm"]), ("6.4", "Best probe accuracy", "best", ["knn", "svm"]),
          ("6.5", "Best FID and IS", "best", ["fid", "is"]), ("6.6", "Mean FID and IS", "mean", ["fid", "is"]),
          ("6.7", "Mean CAS", "mean", ["cas"])]
# Our columns that stand beside a published metric: the honest one, and as it was published (ledger 12, 13).
RECON = ("recon", "recon_last_batch", "recon_train_mode", "recon_train_mode_last_batch")
COLUMNS_BESIDE = {"recon": RECON, "knn": ("knn", "knn_train_mode"), "svm": ("svm", "svm_train_mode")}
LOWER_IS_BETTER = {*RECON, "fid"}
BY_CLASSIFIER = {"fid", "is"}             # hang on the FCN, so they do not compare with the published ones (ledger 15)


PROBES = ("knn_train_mode", "svm_train_mode", "recon_train_mode", "recon_train_mode_last_batch")
COLUMNS = ("dataset", "method", "augmentation", "seed", *METRICS, *PROBES, "stage1_epochs", "stage1_steps", "stage2_epochs",
           "stage2_steps", "fcn_epochs", "fcn_steps", "cas_epochs", "cas_steps", "precision", "stage1_settings", "later_settings", "device", "torch",
           "commit", "date")
IDENTITY = ("dataset", "method", "augmentation", "seed", "stage1_settings", "later_settings")
TEXT = ("dataset", "method", "augmentation", "precision", "stage1_settings", "later_settings", "device", "torch", "commit", "date")


# ---- Rows ----

def settings(config):
    """What a run changed against the thesis' values, as text: (stage 1's, the later ones'), "" for nothing."""
    first = [f"{k}={v}" for k, v in config.behind("stage1").items() if k not in IDENTITY and v != getattr(Config, k)]
    later = [f"{k}={v}" for k, v in config.behind("metrics").items()
             if k not in config.behind("stage1") and v != getattr(Config, k)]
    return " ".join(first), " ".join(later)


def find_runs(folders):
    """A row per finished run below the folders: a dict of COLUMNS, None where a run has no such value, and run_dir."""
    rows = []
    for path in sorted({p for folder in folders for p in Path(folder).rglob("metrics.json")}):
        m = read_json(path)
        with data.usable(path):                                            # of another version, perhaps
            config = Config(**{k: v for k, v in m["config"].items() if k != "sha256"})
        start = next((r for r in read_log(path.parent) if r.get("event") == "start"), {})
        row = dict.fromkeys(COLUMNS) | dict(run_dir=path.parent) | {k: m[k] for k in METRICS}
        if (path.parent / "probe.json").exists():
            row |= read_json(path.parent / "probe.json")
        first, later = settings(config)
        full = m["stages"] == 2
        row |= {k: getattr(config, k) for k in ("method", "augmentation", "seed", "precision")} | dict(
            dataset=path.resolve().parts[-4], stage1_settings=first,     # OUT/DATASET/METHOD-AUG/seedN
            later_settings=later if full else "none",
            date=start.get("time", "")[:10], **{k: start.get(k) for k in ("device", "torch", "commit")})
        for stage in ("stage1", "stage2", "fcn", "cas") if full else ("stage1",):      # steps, where given, replace epochs
            unit = "steps" if getattr(config, f"{stage}_steps") else "epochs"
            row[f"{stage}_{unit}"] = getattr(config, f"{stage}_{unit}")
        rows.append(row)
    if not rows:
        raise InputError(f"{', '.join(map(str, folders))}: no metrics.json of a finished run below")
    return rows


def export(folders, out):
    """Merge the finished runs below folders into out/runs.csv and keep their logs.

    A run that is there already (same IDENTITY) is replaced. Logs go to out/logs, gzipped, thinned to 200 lines, without paths.
    """
    out = Path(out)
    rows = {tuple(row[k] for k in IDENTITY): row for row in read_runs(out / "runs.csv")}
    for row in find_runs(folders):
        rows[tuple(row[k] for k in IDENTITY)] = row
        if row["later_settings"] != "none":                                # a run that had stopped after stage 1 went on
            stopped = rows.pop((*(row[k] for k in IDENTITY[:-1]), "none"), None)
            if stopped:
                (out / "logs" / log_name(stopped)).unlink(missing_ok=True)
        export_log(row["run_dir"], out / "logs" / log_name(row))
    write_csv(out / "runs.csv", COLUMNS, sorted(rows.values(), key=lambda r: [str(r[k]) for k in IDENTITY]))
    print(f"{out}: {len(rows)} runs")


def write_csv(path, columns, rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, lambda file: file.write(text.getvalue().encode()))


def read_runs(path):
    """The rows of a runs.csv as find_runs makes them, without run_dir; [] where there is none."""
    if not Path(path).exists():
        return []
    with open(path, newline="") as file:
        return [{k: v if k in TEXT else from_cell(v) for k, v in r.items()} for r in csv.DictReader(file)]


def from_cell(text):
    """A cell of runs.csv that is not TEXT: None, True or False, an int or a float."""
    if text in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[text]
    return int(text) if text.lstrip("-").isdigit() else float(text)


def log_name(row):
    what = " ".join(f"{k}={row[k]}" for k in ("stage1_settings", "later_settings") if row[k])
    suffix = "-" + hashlib.sha256(what.encode()).hexdigest()[:6] if what else ""
    return f"{row['dataset']}-{row['method']}-{row['augmentation']}-seed{row['seed']}{suffix}.jsonl.gz"


def export_log(run_dir, path):
    """A run's log with its start lines, its looks at the test split and as many others, evenly spread, as make 200; paths cut
    to their last part."""
    records = read_log(run_dir)
    certain = [i for i, r in enumerate(records) if {"event", "val_recon", "val_prior_loss"} & {*r}]
    others = sorted({*range(len(records))} - {*certain})
    kept = np.linspace(0, len(others) - 1, max(0, min(len(others), 200 - len(certain)))).astype(int)
    lines = []
    for i in sorted([*certain, *(others[k] for k in kept)]):
        r = records[i]
        if "argv" in r:
            r["argv"] = [re.sub(r"[^=\s]*/", "", a) for a in r["argv"]]
        lines.append(json.dumps(r))
    write_atomic(path, lambda file: file.write(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)))


def is_whole(row):
    """Was the data complete, or short of one series? The file of Wafer at hand has 6,163 of 6,164 test series."""
    return row["complete_data"] or sum(data.THESIS_SETS.get(row["dataset"], (0, 0))[:2]) == row["n_train"] + row["n_test"] + 1


def minutes(row):
    return sum(row[f"seconds_{stage}"] or 0 for stage in ("stage1", "stage2", "evaluate")) / 60


def read_published():
    """results/published.csv as {(dataset, method, augmentation, column of ours): row}."""
    with open(RESULTS / "published.csv", newline="") as file:
        return {(r["dataset"], r["method"], r["augmentation"], column): r for r in csv.DictReader(file)
                for column in COLUMNS_BESIDE.get(r["metric"], [r["metric"]])}


def pooled_std(published, name, metric):
    """Root mean square of the published models' std over seeds on a dataset; None where nothing is published."""
    stds = [float(r["std"]) for (d, _, _, m), r in published.items() if (d, m) == (name, metric)]
    return math.sqrt(statistics.mean(s * s for s in stds)) if stds else None


def beyond_noise(difference, n, m, std):
    """Is a difference of means over n and m seeds more than seeds explain? It has std * sqrt(1/n + 1/m) as its own std.

    2.084 of those are 2.33 stds for one seed against four, and 1.47 for four against four.
    """
    return abs(difference) > noise_bound(std, n, m)


def noise_bound(std, n=1, m=1):
    """The difference of means over n and m seeds beyond which it is more than seeds explain."""
    return 2.084 * math.sqrt(1 / n + 1 / m) * std


def agreement(mean, n, metric, published, pooled):
    """"within noise", "better" or "worse" than the published mean of four seeds."""
    difference = mean - float(published["mean"])
    if not beyond_noise(difference, n, 4, pooled):
        return "within noise"
    return "better" if (difference < 0) == (metric in LOWER_IS_BETTER) else "worse"


def table_cell(values, kind, metric, published, pooled):
    """`0.157 ± 0.010 (n 2) [0.110 ± 0.019], worse`, or the best instead of the mean, without a judgement."""
    theirs = ""
    if published:
        theirs = f" [{float(published['mean']):.3f} ± {float(published['std']):.3f}]" if kind == "mean" \
            else f" [{float(published['best']):.3f}]"
    if not values:
        return theirs.strip()
    if kind == "best":
        return f"{(min if metric in LOWER_IS_BETTER else max)(values):.3f} (n {len(values)})" + theirs
    mean = statistics.mean(values)
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    comparable = published and metric not in BY_CLASSIFIER
    judgement = f", {agreement(mean, len(values), metric, published, pooled)}" if comparable else ""
    return f"{mean:.3f}{spread} (n {len(values)}){theirs}{judgement}"


# ---- Tables 6.1 to 6.7 ----

def tables(rows):
    """Thesis Tables 6.1 to 6.7 as Markdown lines: ours, the published value (results/published.csv), and a judgement.

    Runs of different schedules never share a table: stage 1's settings part all of them, the later ones 6.5 to 6.7.
    """
    published = read_published()
    complete = [r for r in rows if is_whole(r) and (r["method"], r["augmentation"]) in MODELS]
    lines = ["Ours: mean ± std over n seeds, or the best of n. [Published: four seeds, train-mode probes (ledger 12), another FCN "
             "(ledger 15).] Within noise: under 2.33 pooled stds of the published seeds for one seed of ours, 1.47 for four.", ""]
    for first in sorted({r["stage1_settings"] for r in complete}):
        chosen = [r for r in complete if r["stage1_settings"] == first]
        lines += [f"## Stage 1: {first or 'the schedule of the thesis'}", ""]
        models = {tuple(r[k] for k in IDENTITY[:4]): r for r in chosen}.values()         # each stage-1 model once
        lines += [line for table in TABLES[:4] for line in one_table(*table, models, published)]
        for later in sorted({r["later_settings"] for r in chosen} - {"none"}):
            lines += [f"## Stage 1: {first or 'the schedule of the thesis'}; then: {later or 'the schedule of the thesis'}", ""]
            lines += [line for table in TABLES[4:] for line in
                      one_table(*table, [r for r in chosen if r["later_settings"] == later], published)]
    left_out = sorted({r["dataset"] for r in rows if not is_whole(r)})
    if left_out:
        lines.append(f"Left out of every mean, their data is incomplete: {', '.join(left_out)}.")
    return lines


def one_table(number, title, kind, metrics, rows, published):
    """A dataset per row, a model per column, a line per metric in each cell."""
    lines = [f"### Table {number}: {title} ({', '.join(m.upper() for m in metrics)})", "",
             "| dataset | " + " | ".join(f"{m} {a}" for m, a in MODELS) + " |", "|---" * (len(MODELS) + 1) + "|"]
    for name in sorted({r["dataset"] for r in rows}):
        cells = []
        for model in MODELS:
            ours = [r for r in rows if (r["dataset"], r["method"], r["augmentation"]) == (name, *model)]
            cells.append("<br>".join(table_cell([r[k] for r in ours if r[k] is not None], kind, k,
                                                published.get((name, *model, k)), pooled_std(published, name, k))
                                     for k in metrics))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines + [""]


# ---- Naive against non-contrastive ----

NAIVE, *NC = MODELS
HEADLINE = ("recon", "knn", "svm", "fid", "is", "cas")
SHOWN = ("recon", *COLUMNS_BESIDE["knn"], *COLUMNS_BESIDE["svm"], "fid", "is", "cas")      # in the table of differences
NOISE = ("\\* = more than seeds explain: over 2.084 (1/n + 1/m)^1/2 stds for n and m seeds, the std being the pooled one of the "
         "published seeds; for our FID and IS, which hang on our classifier, that of our own seeds.")


def schedules():
    """{(stage 1's settings, the later ones'): the schedule in words}. What changed anything else is not the grid."""
    return {settings(Config(**data.PRESETS[preset] | more, precision=precision)): f"{preset}, {precision}"
            for preset in ("thesis", "fast", "best") for precision in ("float32", "bf16")
            for more in ({}, {"cas_epochs": 100}) if preset == "thesis" or not more}


def grid(rows):
    """{(dataset, schedule): {(method, augmentation): {seed: run}}} of the runs on complete data."""
    cells, known_schedules = {}, schedules()
    for row in rows:
        name = next((words for (first, later), words in known_schedules.items()
                     if row["stage1_settings"] == first and row["later_settings"] in (later, "none")), None)
        known = row["dataset"] in data.THESIS_SETS and (row["method"], row["augmentation"]) in MODELS
        if name and known and is_whole(row):
            models = cells.setdefault((row["dataset"], name), {})
            models.setdefault((row["method"], row["augmentation"]), {})[row["seed"]] = row
    return dict(sorted(cells.items()))


def mean(runs, key):
    values = [r[key] for r in runs.values() if r[key] is not None]
    return (statistics.mean(values), len(values)) if values else (None, 0)


def one_schedule(cells):
    """The cells with naive and another model, each dataset once: most models, then the thesis' schedule, then `fast`."""
    compared = {k: models for k, models in cells.items() if NAIVE in models and len(models) > 1}

    def weight(key):
        return len(compared[key]), key[1].startswith("thesis"), key[1].startswith("fast"), sum(map(len, compared[key].values()))
    return {k: models for k, models in compared.items() if k == max((other for other in compared if other[0] == k[0]), key=weight)}


def report(cells, theirs):
    """Print everything. -> the first table"""
    compared = one_schedule(cells)
    table = printed(headline, compared, theirs)
    print(f"# Naive against non-contrastive\n\n{table}")
    differences(compared, cells, theirs)
    agreements(compared, theirs)
    for title, *pair in (("The fast preset against the thesis' schedule", "thesis, bf16", "fast, bf16"),
                         ("bf16 against float32", "thesis, float32", "thesis, bf16")):
        print(f"\n# {title}\n\n{NOISE}\n")
        beside(cells, theirs, *pair)
    return table


def printed(function, *arguments):
    """What the function prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        function(*arguments)
    return text.getvalue()


def headline(cells, theirs):
    print("Naive → the best non-contrastive model by each metric's mean. FID and IS hang on the classifier: compare along a row.\n")
    print("| dataset | whose | " + " | ".join(HEADLINE) + " |\n" + "|---" * (len(HEADLINE) + 2) + "|")
    for (name, how), models in cells.items():
        ours, thesis = [], []
        for k in HEADLINE:
            best = min if k in LOWER_IS_BETTER else max
            scores = {m: mean(runs, k) for m, runs in models.items() if mean(runs, k)[1]}
            others = {m: s for m, s in scores.items() if m != NAIVE}
            if NAIVE in scores and others:
                model = best(others, key=lambda m: others[m][0])
                ours.append(f"{scores[NAIVE][0]:.3f} → {others[model][0]:.3f}<br>{'-'.join(model)}, n {scores[NAIVE][1]}, {others[model][1]}")
            else:
                ours.append("")
            model = best(NC, key=lambda m: float(theirs[(name, *m, k)]["mean"]))
            thesis.append(f"{float(theirs[(name, *NAIVE, k)]['mean']):.3f} → {float(theirs[(name, *model, k)]['mean']):.3f}<br>{'-'.join(model)}")
        count = len([m for m in models if m != NAIVE])
        print(f"| {name} | ours: {how}, {count} of {len(NC)} models | " + " | ".join(ours) + " |")
        print(f"| {name} | published, four seeds | " + " | ".join(thesis) + " |")


def differences(compared, cells, theirs):
    """NC minus naive, per dataset and model, then what follows from these differences."""
    print(f"Non-contrastive minus naive: ours [published]. {NOISE}\n")
    header = "".join(f" {k.replace('_train_mode', ', train mode')} |" for k in SHOWN)
    print(f"| dataset | schedule | model | seeds |{header}\n" + "|---" * (4 + len(SHOWN)) + "|")
    pairs = {}                                # (dataset, augmentation, key) -> [(our difference, its star), the published ones]
    for (name, how), models in compared.items():
        for model in (m for m in NC if m in models):
            line = []
            for key in SHOWN:
                (ours, n), (base, m) = mean(models[model], key), mean(models[NAIVE], key)
                thesis, thesis_base = (float(theirs[(name, *who, key)]["mean"]) for who in (model, NAIVE))
                published = thesis - thesis_base, star(thesis - thesis_base, 4, 4, pooled_std(theirs, name, key))
                text = "[{:+.3f}{}]".format(*published)
                if n and m:
                    found = ours - base, star(ours - base, n, m, noise(cells, theirs, name, key))
                    text = "{:+.3f}{} {}".format(*found, text)
                    pairs.setdefault((name, model[1], key), []).append((found, published))
                line.append(text)
            print(f"| {name} | {how} | {'-'.join(model)} | {len(models[model])} | " + " | ".join(line) + " |")
    averages(compared, cells, theirs, pairs, header)
    starred(pairs, header)


def averages(compared, cells, theirs, pairs, header):
    """Means of the differences by augmentation and by dataset, over the sets where all models ran."""
    whole = sorted({name for (name, _), models in compared.items() if len(models) == len(MODELS)})
    print(f"\nMeans of these rows by augmentation and by set, over the {len(whole)} sets where all models ran; "
          "under a set what one run has to differ by from another.\n")
    print(f"| mean over |{header}\n" + "|---" * (1 + len(SHOWN)) + "|")
    for group in (*dict.fromkeys(a for _, a in NC), *whole):
        line = []
        for key in SHOWN:
            both = [pair for (name, augmentation, k), found in pairs.items()
                    if k == key and name in whole and group in (name, augmentation) for pair in found]
            means = [statistics.mean(side[0] for side in sides) for sides in zip(*both)]
            line.append("{:+.3f} [{:+.3f}]".format(*means) if both else "")
        print(f"| {group} | " + " | ".join(line) + " |")
        if group in whole:
            stds = [noise(cells, theirs, group, key) for key in SHOWN]
            print("| noise | " + " | ".join(f"{noise_bound(std):.3f}" if std else "" for std in stds) + " |")


def starred(pairs, header):
    """How many differences, ours and published, are more than seeds explain."""
    print("\nStarred rows of all, ours [published]; a gain in both is a published one that ours has too:\n")
    print(f"| |{header}\n" + "|---" * (1 + len(SHOWN)) + "|")
    counts = {"rows": [], "gains": [], "losses": [], "gains in both": []}
    for key in SHOWN:
        both = [pair for (_, _, k), found in pairs.items() if k == key for pair in found]
        better = -1 if key in LOWER_IS_BETTER else 1
        gains, losses = ([[sign * d > 0 and s == "*" for d, s in pair] for pair in both] for sign in (better, -better))
        counts["rows"].append(str(len(both)))
        for name, hits in (("gains", gains), ("losses", losses)):
            counts[name].append("{} [{}]".format(*map(sum, zip(*hits))) if both else "")
        counts["gains in both"].append(str(sum(map(all, gains))))
    for name, line in counts.items():
        print(f"| {name} | " + " | ".join(line) + " |")


def agreements(compared, theirs):
    """How many of the means above lie within noise of the published ones, and which do not."""
    print("\nEach model's mean against the published one (train mode: a throw-away copy after the authors' probe, ledger 12):\n")
    print("| metric | within noise | better | worse | which are worse |\n|---|---|---|---|---|")
    for key in (*RECON, *(key for key in SHOWN[1:] if key not in BY_CLASSIFIER)):
        found = judged(compared, theirs, key)
        print(f"| {key.replace('_train_mode', ', train mode')} | " + " | ".join(str(len(who)) for who in found.values())
              + f" | {', '.join(found['worse'])} |")


def judged(compared, theirs, key):
    """{"within noise", "better", "worse": the models whose mean is that, beside the published one}."""
    found = {"within noise": [], "better": [], "worse": []}
    for (name, _), models in compared.items():
        for model, runs in models.items():
            ours, n = mean(runs, key)
            if n:
                judgement = agreement(ours, n, key, theirs[(name, *model, key)], pooled_std(theirs, name, key))
                found[judgement].append(f"{name} {'-'.join(model)}")
    return found


def beside(cells, theirs, one, other, seconds=("seconds_stage1", "seconds_stage2")):
    """Schedule `one`, `other`, their difference and the published means, a model and the seeds both have at a time."""
    columns = ("dataset", "model", "schedule", "seeds", *HEADLINE, *seconds)
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    for name in dict.fromkeys(name for name, _ in cells):
        both = [cells.get((name, how), {}) for how in (one, other)]
        for model in (m for m in MODELS if m in both[0] and m in both[1]):
            seeds = both[0][model].keys() & both[1][model].keys()
            a, b = ({s: side[model][s] for s in seeds} for side in both)
            if not seeds:
                continue
            for how, runs in ((one, a), (other, b)):
                cell = [f"{mean(runs, k)[0]:.{3 if k in HEADLINE else 0}f}" if mean(runs, k)[1] else "" for k in (*HEADLINE, *seconds)]
                print(f"| {name} | {'-'.join(model)} | {how} | {', '.join(map(str, sorted(seeds)))} | " + " | ".join(cell) + " |")
            cell = []
            for k in HEADLINE:
                (x, n), (y, m) = mean(a, k), mean(b, k)
                cell.append(f"{y - x:+.3f}{star(y - x, n, m, noise(cells, theirs, name, k))}" if n and m else "")
            for k in seconds:
                x, y = mean(a, k)[0], mean(b, k)[0]
                cell.append(f"{x / y:.2f} times as fast" if x and y else "")
            print(f"| {name} | {'-'.join(model)} | difference | | " + " | ".join(cell) + " |")
            cell = [f"{float(theirs[(name, *model, k)]['mean']):.3f}" for k in HEADLINE] + [""] * len(seconds)
            print(f"| {name} | {'-'.join(model)} | published | four | " + " | ".join(cell) + " |")


def noise(cells, theirs, name, metric):
    """Std over seeds: the published models' pooled one; FID and IS hang on the classifier, so there ours. None: unknown."""
    if metric not in BY_CLASSIFIER:
        return pooled_std(theirs, name, metric)
    groups = [[r[metric] for r in runs.values() if r[metric] is not None]
              for (dataset, _), models in cells.items() if dataset == name for runs in models.values()]
    variances = [statistics.variance(values) for values in groups if len(values) > 1]
    return statistics.mean(variances) ** 0.5 if variances else None


def star(difference, n, m, std):
    return "*" if std is not None and beyond_noise(difference, n, m, std) else ""


def stage1_table(cells, theirs):
    """Every model's stage 1 beside the published means: recon of all test series and of the last mini-batch, probes, each
    frozen and after a train-mode pass over a throw-away copy (ledger 12, 13). Markdown lines."""
    keys = [key for columns in COLUMNS_BESIDE.values() for key in columns]
    lines = ["| dataset | schedule | model | n | " + " | ".join(keys) + " |", "|---" * (4 + len(keys)) + "|"]
    counted = []
    for (name, how), models in cells.items():
        for model, runs in models.items():
            line = [table_cell([r[key] for r in runs.values() if r[key] is not None], "mean", key,
                               theirs.get((name, *model, key)), pooled_std(theirs, name, key)) for key in keys]
            line = [re.sub(r" \(n \d+\)", "", cell) for cell in line]
            lines.append(f"| {name} | {how} | {'-'.join(model)} | {len(runs)} | " + " | ".join(line) + " |")
            if how.startswith("thesis"):
                counted.append(line)
    within = [f"{key} {sum(line[i].endswith('within noise') for line in counted)}" for i, key in enumerate(keys)]
    return [*lines, "", f"Within noise, of {len(counted)} models by the thesis' schedule: {', '.join(within)}."]


def readme_table(cells, theirs, model=("vibcreg", "slice")):
    """Naive -> one NC model: ours, recon also as it was published (ledger 12, 13), in brackets the
    published means; the minutes of the latter run. A row a set."""
    lines = [f"| naive→{'-'.join(model)} | recon | SVM | CAS | minutes |", "|---" * 5 + "|"]
    compared = one_schedule(cells)
    for (name, how), models in compared.items():
        if model in models:
            line = []
            for key in ("recon", "svm", "cas"):
                keys = (key, RECON[-1]) if key == "recon" else (key,)
                ours = "; ".join("{:.2f}→{:.2f}".format(*(mean(models[m], k)[0] for m in (NAIVE, model))) for k in keys)
                line.append("{} [{:.2f}→{:.2f}]".format(ours, *(float(theirs[(name, *m, key)]["mean"]) for m in (NAIVE, model))))
            spent = statistics.mean(minutes(row) for row in models[model].values() if row["cas"] is not None)
            lines.append(f"| {name}, {how.split(',')[0]} | " + " | ".join(line) + f" | {spent:.0f} |")
    counts = []
    for name in ("recon", "KNN", "SVM", "CAS"):
        found = judged(compared, theirs, name.lower())
        counts.append(f"{name} {len(found['within noise'] + found['better'])} of {sum(map(len, found.values()))}")
    return [*lines, "", f"Within noise of the published mean, or better: {', '.join(counts)}."]


# ---- The ablation ----

SWEEPS = {"zeta": (0.05, 0.1, 0.15, 0.2), "eta": (0.5, 1.0, 2.0)}
THESIS = {name: getattr(Config, name) for name in SWEEPS}


def ablation_cells(rows):
    """{(dataset, method, augmentation, other settings): {(name, weight): {seed: run}}}; a run at the thesis' weights is in both sweeps."""
    found = {}
    for row in rows:
        if not is_whole(row):
            continue
        changed = dict(s.split("=") for s in row["stage1_settings"].split())
        weights = THESIS | {name: float(changed.pop(name)) for name in SWEEPS if name in changed}
        model = found.setdefault((row["dataset"], row["method"], row["augmentation"], " ".join(map("=".join, changed.items()))), {})
        for name in SWEEPS:
            if all(weights[other] == THESIS[other] for other in SWEEPS if other != name):
                model.setdefault((name, weights[name]), {})[row["seed"]] = row
    return dict(sorted(found.items()))


def ablation(found, theirs):
    lines = ["# The weights of eq. 4.5", "",
             f"Mean over seeds (n), the thesis' weight in bold. The difference from it: {NOISE}", ""]
    for name, weights in SWEEPS.items():
        lines += [f"## {name}", "", "| dataset | model | stage 1 | metric | "
                  + " | ".join(f"**{w:g}**" if w == THESIS[name] else f"{w:g}" for w in weights) + " |", "|---" * (4 + len(weights)) + "|"]
        for (dataset, method, augmentation, settings), model in found.items():
            if not any(n == name and w != THESIS[n] for n, w in model):              # not swept
                continue
            for metric in ("recon", "knn", "svm"):
                line, (base, m) = [], mean(model.get((name, THESIS[name]), {}), metric)
                for weight in weights:
                    value, n = mean(model.get((name, weight), {}), metric)
                    mark = star(value - base, n, m, pooled_std(theirs, dataset, metric)) if n and m else ""
                    line.append(f"{value:.3f}{mark} ({n})" if n else "")
                lines.append(f"| {dataset} | {method}-{augmentation} | {settings} | {metric} | " + " | ".join(line) + " |")
        lines.append("")
    return lines


# ---- Two views, two bands ----

VARIED = ("views", "bands", "eta")
SCORES = ("recon", "knn", "svm", "fid", "fid_recon", "fid_floor", "is", "is_real", "cas")
TIMEVQVAE = {"TwoPatterns": 0.865, "ShapesAll": 0.745, "ECG5000": 0.933, "Wafer": 0.994, "Symbols": 0.968,  # its CAS, means
             "SonyAIBORobotSurface1": 0.981, "SonyAIBORobotSurface2": 0.972}                  # (Lee et al. 2023)


def variants(rows, published):
    """Runs with two views or two bands beside those that differ from them in nothing else. Markdown lines."""
    groups = {}
    for row in rows:
        changed = dict(s.split("=") for s in row["stage1_settings"].split())
        varied = tuple(changed.pop(k, "1") for k in VARIED)
        kind = " ".join(map("=".join, changed.items())), row["later_settings"]
        who = varied, row["method"], row["augmentation"], row["seed"]
        groups.setdefault((row["dataset"], *kind), {})[who] = row
        if varied[1] == "1":                                               # its stage 1, beside those that have no more
            later = dict.fromkeys((*SCORES[3:], "seconds_stage2", "seconds_evaluate"))
            groups.setdefault((row["dataset"], kind[0], "none"), {}).setdefault(who, row | later)
    lines = ["# Two views, two bands", "", "Within a table all runs share one schedule. Both are thesis §7.1's and the drafts'; "
             "nothing was published for two views.", "TimeVQVAE's CAS is published (naive, two bands; means). Noise: what two runs have to "
             "differ by to be more than seeds explain, from the published models' stds (2.084 of a difference's)."]
    for (dataset, first, later), runs in sorted(groups.items()):
        if not any(varied[:2] != ("1", "1") for varied, *_ in runs):
            continue
        stds = {k: pooled_std(published, dataset, k) for k in ("recon", "knn", "svm", "cas")}
        noise = ", ".join(f"{k} {noise_bound(std):.3f}" for k, std in stds.items() if std)
        lines += ["", f"## {dataset}", "", f"Stage 1: {first}. Later: {later}. TimeVQVAE's CAS: {TIMEVQVAE.get(dataset, 'none')}.",
                  f"Noise: {noise or 'unknown'}.", "", "| model | views | bands | factor on η | seed | " + " | ".join(SCORES) + " | minutes |",
                  "|---" * (6 + len(SCORES)) + "|"]
        for (varied, *_), r in sorted(runs.items(), key=lambda run: (run[0][1] != "naive", *run[0][1:3], run[0][0])):
            cells = ["" if r[k] is None else f"{r[k]:.3f}" for k in SCORES]
            lines.append("| " + " | ".join([f"{r['method']}-{r['augmentation']}", *varied, str(r["seed"]), *cells, f"{minutes(r):.1f}"]) + " |")
    return lines


# ---- What the published numbers owe ----

DEPARTURES = (("The zeroed tail of the published views (ledger 18)", "view as it is", "view with a zeroed tail",
               lambda row: dict(augmentation=row["augmentation"].removesuffix("+roundtrip"))),
              ("The naive prior's random embedding and loss on all tokens (ledger 7, 11)", "codebook, masked tokens",
               "random, all tokens", lambda row: dict(later_settings=" ".join(
                   s for s in row["later_settings"].split() if s not in ("embedding=random", "loss_on=all")))))


def departures(rows, theirs):
    """Print runs that follow the published program in one more thing, beside those that differ
    from them in nothing else."""
    print(f"# What the published numbers owe\n\nMeans over the seeds that both have. {NOISE}")
    for title, here, there, undo in DEPARTURES:
        cells = {}
        for row in rows:
            plain = row | undo(row)
            if plain == row:
                continue
            ours = next((r for r in rows if all(r[k] == plain[k] for k in IDENTITY[:-1])
                         and plain["later_settings"] in (r["later_settings"], "none")), None)
            for how, run in ((here, ours), (there, row)) if ours else ():
                models = cells.setdefault((row["dataset"], how), {})
                models.setdefault((row["method"], plain["augmentation"]), {})[row["seed"]] = run
        print(f"\n## {title}\n")
        beside(dict(sorted(cells.items())), theirs, here, there, seconds=())


# ---- The presets ----

PRESET_COLUMNS = ("thesis, bf16", "fast, bf16", "best, bf16")


def presets(cells, theirs):
    """Whole runs of the three presets side by side, a set and model a row, the published means behind them. Markdown lines."""
    lines = ["# The presets", "", "Means over n seeds. In brackets what bounds a score: FID of reconstructions and of train series; IS of the real "
             "test split.", "Minutes are of one core, the other one busy too. FID, IS and CAS hang on their classifiers, which `thesis` trains longer.",
             "Published: the thesis' means; TimeVQVAE's CAS (naive, two bands). Noise of CAS: what one run has to differ by from another.", "",
             f"| dataset | model | {' | '.join(PRESET_COLUMNS)} | published | noise of CAS |", "|---" * 7 + "|"]
    for name in dict.fromkeys(name for name, _ in cells):
        columns = [cells.get((name, how), {}) for how in PRESET_COLUMNS]
        for model in (m for m in MODELS if any(m in column for column in columns[2:])):
            published = {k: float(theirs[(name, *model, k)]["mean"]) for k in HEADLINE}
            lines.append(f"| {name} | {'-'.join(model)} | " + " | ".join(preset_cell(column.get(model, {})) for column in columns)
                         + " | recon {recon:.3f}<br>KNN {knn:.3f}, SVM {svm:.3f}<br>FID {fid:.2f}<br>IS {is:.2f}<br>CAS {cas:.3f} ".format(**published)
                         + f"[{TIMEVQVAE.get(name, 'unknown')}] | {noise_bound(pooled_std(theirs, name, 'cas')):.3f} |")
    return lines


def preset_cell(runs):
    """The runs that went through all metrics, in six lines of one cell."""
    runs = {seed: row for seed, row in runs.items() if row["fid"] is not None}
    if not runs:
        return ""
    values = {k: mean(runs, k)[0] for k in SCORES} | dict(n=len(runs), minutes=statistics.mean(map(minutes, runs.values())))
    return ("{minutes:.1f} minutes, n {n}<br>recon {recon:.3f}<br>KNN {knn:.3f}, SVM {svm:.3f}<br>FID {fid:.2f} ({fid_recon:.2f}, {fid_floor:.2f})<br>"
            "IS {is:.2f} ({is_real:.2f})<br>CAS {cas:.3f}").format(**values)


# ---- Probes in train mode, and where samples lose ----

def probe_in_train_mode(model, dataset, seed=0):
    """The published probes: train mode, so test batches move BatchNorm and codebook (ledger 12). On a throw-away copy.

    Returns the values of PROBES; recon is that of the test split in eval mode afterwards, of all of it and of the last
    mini-batch: what a checkpoint saved after such a pass would score.
    """
    model, batch = copy.deepcopy(model).train(), model.config.stage1_batch
    order = torch.randperm(len(dataset.x_train), generator=torch.Generator().manual_seed(seed))
    z_train = encode_split(model, dataset.x_train[order], batch)["pooled"]
    z_test = encode_split(model, dataset.x_test, batch)["pooled"]            # in the file's order, as the authors did
    errors = encode_split(model.eval(), dataset.x_test)["errors"].sum(1)
    return dict(zip(PROBES, (*probe(z_train, dataset.y_train[order], z_test, dataset.y_test), errors.mean().item(),
                             errors.split(128)[-1].mean().item())))


def command_probe(run_dirs):
    """Probe finished runs in train mode, keep it in probe.json, print it beside the frozen values."""
    print("| run | " + " | ".join(("knn", "svm", "recon", "recon_last_batch", *PROBES)) + " |\n" + "|---" * 9 + "|")
    for run_dir in run_dirs:
        config, m = data.read_config(run_dir), read_json(Path(run_dir) / "metrics.json")
        dataset = load_dataset(config.dataset)
        data.refuse(not dataset.classes, f"{run_dir}: {dataset.name} has no labels to probe for")
        moved = probe_in_train_mode(load_stage1(run_dir, config=config, dataset=dataset)[0], dataset)
        write_json(Path(run_dir) / "probe.json", moved)
        values = [m[k] for k in ("knn", "svm", "recon", "recon_last_batch")] + list(moved.values())
        run = "/".join(Path(run_dir).resolve().parts[-3:])                   # DATASET/METHOD-AUG/seedN
        print(f"| {run} | " + " | ".join(f"{v:.3f}" for v in values) + " |", flush=True)


def parts(run_dir):
    """FID, IS and share of own class of real test series, their reconstructions and class-conditional samples, with the FID of
    these repeated or cut to the test split's shares; the shares of the classes in the train split, the test split and, as
    the classifier sees them, in unconditional samples."""
    config = data.read_config(run_dir)
    dataset = load_dataset(config.dataset)
    model, _ = load_stage1(run_dir, config, dataset)
    fcn = dataset_fcn(Path(run_dir).parent.parent, dataset, config)
    samples = data.read_arrays(Path(run_dir) / "samples.npz")
    drawn = [torch.from_numpy(((samples[name][:, 0] - dataset.mean) / dataset.std).astype(np.float32))
             for name in ("X", "X_unconditional")]
    y = torch.tensor([dataset.label(label) for label in samples["y"].tolist()])
    looked_at = (dataset.x_test, encode_split(model, dataset.x_test)["x_hat"], *drawn)
    features, p = zip(*(classify(fcn, x) for x in looked_at))
    shares = [np.bincount(np.asarray(labels), minlength=len(dataset.classes)) / len(labels)
              for labels in (dataset.y_train, dataset.y_test, p[3].argmax(1))]
    scores = [(frechet_distance(f, features[0]), inception_score(q), accuracy(q, labels))
              for f, q, labels in zip(features, p, (dataset.y_test, dataset.y_test, y))]
    as_tested = np.concatenate([np.resize(np.flatnonzero(y.numpy() == k), round(share * len(y))) for k, share in enumerate(shares[1])])
    scores[2] += (frechet_distance(features[2][as_tested], features[0]),)
    return scores, shares


def command_parts(folders):
    print("# Where samples lose\n\nOwn class: the share that the classifier puts into the class a series has or was drawn for. Class-conditional samples have\n"
          "the train split's shares of classes; last, their FID if repeated or cut to the test split's. Shares of the classes, %: train / test /\n"
          "unconditional samples (over ten classes: half the sum of their distances from the test split's, train / samples).\n\n"
          "| run | schedule | real: IS, own class | reconstructed: FID, IS, own class | class-conditional samples: FID, IS, own class, FID | "
          "unconditional samples: FID, IS | shares |\n" + "|---" * 7 + "|")
    known_schedules = schedules()
    for row in find_runs(folders):
        if row["cas"] is not None:
            ((_, *real), *made), shares = parts(row["run_dir"])
            scores = [", ".join(f"{v:.3f}" for v in cell) for cell in (real, *made, (row["fid"], row["is"]))]
            shown = [":".join(f"{100 * v:.0f}" for v in split) for split in shares] if len(shares[0]) <= 10 else \
                [f"{50 * abs(split - shares[1]).sum():.0f}" for split in (shares[0], shares[2])]
            how = known_schedules.get((row["stage1_settings"], row["later_settings"]), "")
            print(f"| {row['dataset']}/{row['method']}-{row['augmentation']}/seed{row['seed']} | {how} | " + " | ".join(scores)
                  + f" | {' / '.join(shown)} |", flush=True)


def main():
    parser = data.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", help="folders of runs; probe or parts in front of them")
    parser.add_argument("--export", metavar="DIR", help="merge the runs into DIR/runs.csv and make every table from it")
    args = parser.parse_args()
    if args.folders[:1] == ["probe"]:
        return command_probe(args.folders[1:])
    if args.folders[:1] == ["parts"]:
        return command_parts(args.folders[1:])
    if not args.export:
        return print("\n".join(tables(find_runs(args.folders))))
    if args.folders:
        export(args.folders, args.export)
    rows, published = read_runs(Path(args.export) / "runs.csv"), read_published()
    cells = grid(rows)
    readme = Path(args.export).resolve().parent / "README.md"
    if readme.exists():                           # its table of results stands between two markers
        text = re.sub(r"(?<=<!-- results -->\n).*?(?=<!-- end -->)", "\n".join(readme_table(cells, published)) + "\n",
                      readme.read_text(), flags=re.S)
        write_atomic(readme, lambda file: file.write(text.encode()))
    for name, text in (("stage1.md", "\n".join(stage1_table(cells, published)) + "\n"),
                       ("TABLES.md", "\n".join(tables(rows)) + "\n"), ("headline.md", printed(report, cells, published)),
                       ("variants.md", "\n".join(variants(rows, published)) + "\n"),
                       ("presets.md", "\n".join(presets(cells, published)) + "\n"),
                       ("departures.md", printed(departures, rows, published)), ("ablation.md", "\n".join(ablation(ablation_cells(rows), published)))):
        write_atomic(Path(args.export) / name, lambda file, text=text: file.write(text.encode()))


if __name__ == "__main__":
    data.run_command(main)
