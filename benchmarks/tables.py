"""Tables from finished runs: thesis Tables 6.1 to 6.7, naive against non-contrastive, the ablation.

    python benchmarks/tables.py runs/                           # Tables 6.1 to 6.7 of these runs
    python benchmarks/tables.py runs/ --export results/         # merged into runs.csv, logs/; then
                                                                # every table there, README's
    python benchmarks/tables.py probe runs/Symbols/*/seed*      # also in train mode (ledger 12)
    python benchmarks/tables.py parts runs/ > results/parts.md  # real, reconstructed, generated

A row of runs.csv is one metrics.json with the settings that made it. Rows of other settings never
share a table. The ablation of thesis section 6.3:

    for weight in zeta=0.05 zeta=0.15 zeta=0.2 eta=0.5 eta=2; do
        OUT=runs/ablation/$weight bash run.sh TwoPatterns barlow,vibcreg warp,slice 1 \\
            --stages 1 --stage1-epochs 250 --$weight
    done
"""
import copy, csv, gzip, hashlib, io, json, math, re, statistics, sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data
from data import Config, load_dataset, read_json, write_atomic, write_json
from evaluate import (METRICS, accuracy, classify, dataset_fcn, fcn_config, frechet_distance,
                      inception_score, probe)
from ncvqvae import encode_split, load_stage1, read_log

RESULTS = Path(__file__).resolve().parent.parent / "results"
NAIVE, *NC = MODELS = [("naive", "none"),
                       *((m, a) for m in ("barlow", "vibcreg") for a in ("warp", "slice", "gauss"))]
# Our columns beside a published metric: the honest one, and as it was published (ledger 12, 13).
RECON = ("recon", "recon_last_batch", "recon_train_mode", "recon_train_mode_last_batch")
COLUMNS_BESIDE = {"recon": RECON, "knn": ("knn", "knn_train_mode"),
                  "svm": ("svm", "svm_train_mode")}
LOWER_IS_BETTER = {*RECON, "fid"}
BY_CLASSIFIER = {"fid", "is"}  # hang on the FCN: not to be compared with published ones (ledger 15)

PROBES = ("knn_train_mode", "svm_train_mode", "recon_train_mode", "recon_train_mode_last_batch")
TEXT = ("dataset", "method", "augmentation", "precision", "stage1_settings", "later_settings",
        "device", "torch", "commit", "date")
COLUMNS = (*TEXT[:3], "seed", *METRICS, *PROBES, "stage1_epochs", "stage1_steps", "stage2_epochs",
           "stage2_steps", "fcn_epochs", "fcn_steps", "cas_epochs", "cas_steps", *TEXT[3:])
IDENTITY = ("dataset", "method", "augmentation", "seed", "stage1_settings", "later_settings")


# ---- Rows ----

def settings(config):
    """What a run changed against the thesis' values, as text: (stage 1's, the later ones')."""
    first, every = config.behind("stage1"), config.behind("metrics")

    def changed(fields):
        return " ".join(f"{k}={v}" for k, v in fields.items()
                        if k not in IDENTITY and v != getattr(Config, k))
    return changed(first), changed({k: v for k, v in every.items() if k not in first})


def find_runs(folders):
    """A row per finished run below the folders: a dict of COLUMNS, and run_dir."""
    paths = sorted({p for folder in folders for p in Path(folder).rglob("metrics.json")})
    where = ", ".join(map(str, folders))
    data.refuse(not paths, f"{where}: no metrics.json of a finished run below")
    return [read_run(path.parent) for path in paths]


def read_run(run_dir):
    """The row of a run OUT/DATASET/METHOD-AUG/seedN: None where it has no such value."""
    m = read_json(run_dir / "metrics.json")
    with data.usable(run_dir / "metrics.json"):  # of another version, perhaps
        config = Config(**{k: v for k, v in m["config"].items() if k != "sha256"})
    start = next((r for r in read_log(run_dir) if r.get("event") == "start"), {})
    first, later = settings(config)
    whole = m["stages"] == 2
    row = dict.fromkeys(COLUMNS) | {k: m.get(k) for k in METRICS} | dict(
        run_dir=run_dir, dataset=run_dir.resolve().parts[-3], date=start.get("time", "")[:10],
        stage1_settings=first, later_settings=later if whole else "none")
    row |= {k: getattr(config, k) for k in ("method", "augmentation", "seed", "precision")}
    row |= {k: start.get(k) for k in ("device", "torch", "commit")}
    if (run_dir / "probe.json").exists():
        row |= read_json(run_dir / "probe.json")
    for stage in ("stage1", "stage2", "fcn", "cas") if whole else ("stage1",):
        unit = "steps" if getattr(config, f"{stage}_steps") else "epochs"  # steps replace epochs
        row[f"{stage}_{unit}"] = getattr(config, f"{stage}_{unit}")
    return row


def export(folders, out):
    """Merge the finished runs below folders into out/runs.csv and keep their logs.

    A run that is there already (same IDENTITY) is replaced. Logs go to out/logs, gzipped, thinned
    to 200 lines, without paths.
    """
    rows = {tuple(row[k] for k in IDENTITY): row for row in read_rows(out / "runs.csv")}
    for row in find_runs(folders):
        rows[tuple(row[k] for k in IDENTITY)] = row
        if row["later_settings"] != "none":  # perhaps one that had stopped after stage 1 went on
            stopped = rows.pop((*(row[k] for k in IDENTITY[:-1]), "none"), None)
            if stopped:
                (out / "logs" / log_name(stopped)).unlink(missing_ok=True)
        export_log(row["run_dir"], out / "logs" / log_name(row))
    rows = sorted(rows.values(), key=lambda row: [str(row[k]) for k in IDENTITY])
    write_csv(out / "runs.csv", COLUMNS, rows)
    print(f"{out}: {len(rows)} runs")


def write_text(path, text):
    write_atomic(path, lambda file: file.write(text.encode()))


def write_csv(path, columns, rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_rows(path):
    """The rows of a runs.csv as find_runs makes them, without run_dir; [] where there is none."""
    if not Path(path).exists():
        return []
    with open(path, newline="") as file:
        return [{k: v if k in TEXT else from_cell(v) for k, v in row.items()}
                for row in csv.DictReader(file)]


def from_cell(text):
    """A cell of runs.csv that is not TEXT: None, True or False, an int or a float."""
    if text in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[text]
    return int(text) if text.lstrip("-").isdigit() else float(text)


def log_name(row):
    changed = " ".join(f"{k}={row[k]}" for k in ("stage1_settings", "later_settings") if row[k])
    suffix = "-" + hashlib.sha256(changed.encode()).hexdigest()[:6] if changed else ""
    run = f"{row['dataset']}-{row['method']}-{row['augmentation']}-seed{row['seed']}"
    return f"{run}{suffix}.jsonl.gz"


def export_log(run_dir, path):
    """A run's log: its start lines, its looks at the test split, and as many others, evenly spread,
    as make 200. Paths are cut to their last part."""
    records = read_log(run_dir)
    certain = [i for i, r in enumerate(records) if {"event", "val_recon", "val_prior_loss"} & {*r}]
    others = sorted({*range(len(records))} - {*certain})
    room = max(0, min(len(others), 200 - len(certain)))
    spread = [others[i] for i in np.linspace(0, len(others) - 1, room).astype(int)]
    lines = []
    for record in (records[i] for i in sorted(certain + spread)):
        if "argv" in record:
            record["argv"] = [re.sub(r"[^=\s]*/", "", a) for a in record["argv"]]
        lines.append(json.dumps(record) + "\n")
    packed = gzip.compress("".join(lines).encode(), mtime=0)
    write_atomic(path, lambda file: file.write(packed))


def is_whole(row):
    """Was the data complete, or one series short? Wafer's file at hand lacks one of test."""
    published = sum(data.THESIS_SETS.get(row["dataset"], (0, 0))[:2])
    return row["complete_data"] or published == row["n_train"] + row["n_test"] + 1


def minutes(row):
    return sum(row[f"seconds_{stage}"] or 0 for stage in ("stage1", "stage2", "evaluate")) / 60


# ---- Published values, and noise ----

def read_published():
    """results/published.csv: {(dataset, method, augmentation, column of ours): mean, std, best}."""
    with open(RESULTS / "published.csv", newline="") as file:
        return {(row["dataset"], row["method"], row["augmentation"], column):
                {k: float(row[k]) for k in ("mean", "std", "best")}
                for row in csv.DictReader(file)
                for column in COLUMNS_BESIDE.get(row["metric"], [row["metric"]])}


PUBLISHED = read_published()
# TimeVQVAE's CAS, means (Lee et al. 2023): naive, two bands.
TIMEVQVAE = {"TwoPatterns": 0.865, "ShapesAll": 0.745, "ECG5000": 0.933, "Wafer": 0.994,
             "Symbols": 0.968, "SonyAIBORobotSurface1": 0.981, "SonyAIBORobotSurface2": 0.972}
NOISE = ("\\* = more than seeds explain: over 2.084 (1/n + 1/m)^1/2 stds for n and m seeds, the "
         "std being the pooled one of the published seeds; for our FID and IS, which hang on our "
         "classifier, that of our own seeds.")


def pooled_std(dataset, metric):
    """Root mean square of the published models' std over seeds; None where none is published."""
    stds = [v["std"] for (name, *_, k), v in PUBLISHED.items() if (name, k) == (dataset, metric)]
    return math.sqrt(statistics.mean(s * s for s in stds)) if stds else None


def noise(cells, dataset, metric):
    """Std over seeds: the published models' pooled one; of FID and IS our own. None: unknown."""
    if metric not in BY_CLASSIFIER:
        return pooled_std(dataset, metric)
    groups = [values_of(runs, metric) for (name, _), models in cells.items() if name == dataset
              for runs in models.values()]
    variances = [statistics.variance(values) for values in groups if len(values) > 1]
    return statistics.mean(variances) ** 0.5 if variances else None


def noise_bound(std, n=1, m=1):
    """The difference of means over n and m seeds beyond which it is more than seeds explain.

    A difference has std * sqrt(1/n + 1/m) as its own std. 2.084 of those are 2.33 std for one seed
    against four, and 1.47 for four against four.
    """
    return 2.084 * math.sqrt(1 / n + 1 / m) * std


def star(difference, n, m, std):
    return "*" if std is not None and abs(difference) > noise_bound(std, n, m) else ""


def agreement(mean, n, metric, published, std):
    """"within noise", "better" or "worse" than the published mean of four seeds."""
    difference = mean - published["mean"]
    if not star(difference, n, 4, std):
        return "within noise"
    return "better" if (difference < 0) == (metric in LOWER_IS_BETTER) else "worse"


def values_of(runs, metric):
    """The metric of those seeds {seed: row} that have it."""
    return [row[metric] for row in runs.values() if row[metric] is not None]


def mean(runs, metric):
    """Mean over the seeds {seed: row} that have the metric, and how many: (None, 0) if none has."""
    values = values_of(runs, metric)
    return (statistics.mean(values), len(values)) if values else (None, 0)


def markdown(columns, rows):
    """A table as Markdown, from the names of its columns and its rows of text."""
    lines = [markdown_row(columns), "|---" * len(columns) + "|", *map(markdown_row, rows)]
    return "\n".join([*lines, ""])


def markdown_row(cells):
    return "| " + " | ".join(cells) + " |"


# ---- Tables 6.1 to 6.7 ----

PROBED = (*COLUMNS_BESIDE["knn"], *COLUMNS_BESIDE["svm"])
TABLES = (("6.1", "Mean reconstruction error", "mean", RECON),
          ("6.2", "Best reconstruction error", "best", RECON),
          ("6.3", "Mean probe accuracy", "mean", PROBED),
          ("6.4", "Best probe accuracy", "best", PROBED),
          ("6.5", "Best FID and IS", "best", ("fid", "is")),
          ("6.6", "Mean FID and IS", "mean", ("fid", "is")),
          ("6.7", "Mean CAS", "mean", ("cas",)))


def tables(rows):
    """Thesis Tables 6.1 to 6.7: ours, the published value, and a judgement.

    Runs of different schedules never share a table: stage 1's settings part all of them, the later
    ones 6.5 to 6.7.
    """
    text = ("Ours: mean ± std over n seeds, or the best of n. [Published: four seeds, train-mode "
            "probes (ledger 12), another FCN (ledger 15).] Within noise: under 2.33 pooled stds of "
            "the published seeds for one seed of ours, 1.47 for four.\n\n")
    complete = [r for r in rows if is_whole(r) and (r["method"], r["augmentation"]) in MODELS]
    for first in sorted({r["stage1_settings"] for r in complete}):
        chosen = [r for r in complete if r["stage1_settings"] == first]
        probed_last = sorted(chosen, key=lambda r: r["knn_train_mode"] is not None)
        once = {tuple(r[k] for k in IDENTITY[:4]): r for r in probed_last}.values()
        heading = f"## Stage 1: {first or 'the schedule of the thesis'}"
        text += f"{heading}\n\n" + "".join(one_table(*table, once) for table in TABLES[:4])
        for later in sorted({r["later_settings"] for r in chosen} - {"none"}):
            alike = [r for r in chosen if r["later_settings"] == later]
            text += f"{heading}; then: {later or 'the schedule of the thesis'}\n\n"
            text += "".join(one_table(*table, alike) for table in TABLES[4:])
    left_out = sorted({r["dataset"] for r in rows if not is_whole(r)})
    if left_out:
        text += f"Left out of every mean, their data is incomplete: {', '.join(left_out)}.\n"
    return text


def one_table(number, title, kind, metrics, rows):
    """A dataset per row, a model per column, a line per metric in each cell."""
    lines = []
    for name in sorted({r["dataset"] for r in rows}):
        lines.append([name])
        for model in MODELS:
            ours = {r["seed"]: r for r in rows
                    if (r["dataset"], r["method"], r["augmentation"]) == (name, *model)}
            cell = [table_cell(ours, kind, name, model, k) for k in metrics]
            lines[-1].append("<br>".join(cell if ours else dict.fromkeys(cell)))
    return (f"### Table {number}: {title} ({', '.join(metrics)})\n\n"
            + markdown(["dataset", *map(" ".join, MODELS)], lines) + "\n")


def table_cell(runs, kind, name, model, metric):
    """`0.157 ± 0.010 (n 2) [0.110 ± 0.019], worse`, or the best, which is not judged."""
    values = values_of(runs, metric)
    published, theirs = PUBLISHED.get((name, *model, metric)), ""
    if published:
        theirs = "[{mean:.3f} ± {std:.3f}]" if kind == "mean" else "[{best:.3f}]"
        theirs = theirs.format(**published)
    if not values:
        return theirs
    n = len(values)
    if kind == "best":
        best = min if metric in LOWER_IS_BETTER else max
        return f"{best(values):.3f} (n {n}) {theirs}".strip()
    ours = statistics.mean(values)
    spread = f" ± {statistics.stdev(values):.3f}" if n > 1 else ""
    cell = f"{ours:.3f}{spread} (n {n}) {theirs}".strip()
    if not published or metric in BY_CLASSIFIER:
        return cell
    return f"{cell}, {agreement(ours, n, metric, published, pooled_std(name, metric))}"


# ---- The grid: seven models, seven sets, known schedules ----

HEADLINE = ("recon", "knn", "svm", "fid", "is", "cas")
SHOWN = ("recon", *PROBED, "fid", "is", "cas")


def schedules():
    """{(stage 1's settings, the later ones'): the schedule in words}: what the grid is made of."""
    found = {}
    for precision in ("float32", "bf16"):
        for preset in ("thesis", "fast", "best"):
            config = Config(**data.PRESETS[preset] | dict(precision=precision))
            found[settings(config)] = f"{preset}, {precision}"
        found[settings(Config(precision=precision, cas_epochs=100))] = f"thesis, {precision}"
    return found


def schedule(row, known):
    """The words of `known` for a run's settings, or None. Without stage 2, stage 1 decides."""
    return next((words for (first, later), words in known.items() if (
        row["stage1_settings"] == first and row["later_settings"] in (later, "none"))), None)


def grid(rows):
    """{(dataset, schedule): {model: {seed: row}}} of the runs on complete data."""
    cells, known = {}, schedules()
    for row in rows:
        model, how = (row["method"], row["augmentation"]), schedule(row, known)
        if how and row["dataset"] in data.THESIS_SETS and model in MODELS and is_whole(row):
            models = cells.setdefault((row["dataset"], how), {})
            models.setdefault(model, {})[row["seed"]] = row
    return dict(sorted(cells.items()))


def one_schedule(cells):
    """The cells with naive and another model, a dataset once: most models, then the thesis'
    schedule, then `fast`."""
    compared = {k: models for k, models in cells.items() if NAIVE in models and len(models) > 1}

    def weight(key):
        how, models = key[1], compared[key]
        return (len(models), how.startswith("thesis"), how.startswith("fast"),
                sum(map(len, models.values())))
    chosen = {max((k for k in compared if k[0] == name), key=weight) for name, _ in compared}
    return {k: models for k, models in compared.items() if k in chosen}


def readme_table(cells, model=("vibcreg", "slice")):
    """Naive -> one NC model: ours, recon also as it was published (ledger 12, 13), in brackets the
    published means; the minutes of the latter run. A row a set."""
    lines, compared = [], one_schedule(cells)

    def both(key, value):
        return "{:.2f}→{:.2f}".format(*(value(m, key) for m in (NAIVE, model)))
    for (name, how), models in compared.items():
        if model not in models:
            continue
        line = [f"{name}, {how.split(',')[0]}"]
        for keys in (("recon", RECON[-1]), ("svm",), ("cas",)):
            ours = "; ".join(both(key, lambda m, k: mean(models[m], k)[0]) for key in keys)
            line.append(f"{ours} [{both(keys[0], lambda m, k: PUBLISHED[(name, *m, k)]['mean'])}]")
        spent = [minutes(row) for row in models[model].values() if row["cas"] is not None]
        lines.append([*line, f"{statistics.mean(spent):.0f}"])
    counts = []
    for name in ("recon", "KNN", "SVM", "CAS"):
        found = {k: len(who) for k, who in judged(compared, name.lower()).items()}
        good = found["within noise"] + found["better"]
        counts.append(f"{name} {good} of {sum(found.values())}")
    return (markdown([f"naive→{'-'.join(model)}", "recon", "SVM", "CAS", "minutes"], lines)
            + f"\nWithin noise of the published mean, or better: {', '.join(counts)}.\n")


def judged(compared, metric):
    """{"within noise", "better", "worse": the models whose mean is that, beside the published}."""
    found = {"within noise": [], "better": [], "worse": []}
    for (name, _), models in compared.items():
        for model, runs in models.items():
            ours, n = mean(runs, metric)
            if n:
                published, std = PUBLISHED[(name, *model, metric)], pooled_std(name, metric)
                judgement = agreement(ours, n, metric, published, std)
                found[judgement].append(f"{name} {'-'.join(model)}")
    return found


# ---- Naive against non-contrastive ----

def report(cells):
    """headline.md."""
    compared = one_schedule(cells)
    found = differences(compared, cells)
    header = [k.replace("_train_mode", ", train mode") for k in SHOWN]
    return f"""# Naive against non-contrastive

Naive → the best non-contrastive model by each metric's mean, and the seeds of both.
FID and IS hang on the classifier: compare along a row.

{headline(compared)}
Non-contrastive minus naive: ours [published]. {NOISE}

{markdown(["dataset", "schedule", "model", "seeds", *header], difference_rows(compared, found))}
Means of these rows by augmentation and by set, over the sets where all models ran; under a set what
one run has to differ by from another.

{markdown(["mean over", *header], average_rows(compared, cells, found))}
Starred rows of all, ours [published]; a gain in both is a published one that ours has too:

{markdown(["", *header], starred_rows(found))}
Each model's mean against the published one (train mode: a throw-away copy after the authors' probe,
ledger 12):

{agreements(compared)}"""


def headline(compared):
    """Two rows a set, ours and the published."""
    lines = []
    for (name, how), models in compared.items():
        ours, theirs = [], []
        for metric in HEADLINE:
            scores = {m: mean(runs, metric) for m, runs in models.items()}
            published = {m: (PUBLISHED[(name, *m, metric)]["mean"], 4) for m in MODELS}
            ours.append(from_naive_to_best(scores, metric))
            theirs.append(from_naive_to_best(published, metric))
        lines.append([name, f"ours: {how}, {len(models) - 1} of {len(NC)} models", *ours])
        lines.append([name, "published", *theirs])
    return markdown(["dataset", "whose", *HEADLINE], lines)


def from_naive_to_best(scores, metric):
    """`0.140 → 0.083<br>vibcreg-warp, n 2, 4` from {model: (mean, n)}; "" where one has no mean."""
    others = [m for m, (_, n) in scores.items() if n and m != NAIVE]
    base, n = scores[NAIVE]
    if not (n and others):
        return ""
    model = (min if metric in LOWER_IS_BETTER else max)(others, key=lambda m: scores[m][0])
    best, count = scores[model]
    return f"{base:.3f} → {best:.3f}<br>{'-'.join(model)}, n {n}, {count}"


def differences(compared, cells):
    """{(dataset, model, metric): (ours, its star), (published, its star)}, NC minus naive. Ours is
    None where one of the two was not run."""
    found = {}
    for (name, _), models in compared.items():
        for model in (m for m in NC if m in models):
            for k in SHOWN:
                (ours, n), (base, m) = mean(models[model], k), mean(models[NAIVE], k)
                if n and m:
                    ours = ours - base, star(ours - base, n, m, noise(cells, name, k))
                else:
                    ours = None
                theirs = PUBLISHED[(name, *model, k)]["mean"] - PUBLISHED[(name, *NAIVE, k)]["mean"]
                theirs = theirs, star(theirs, 4, 4, pooled_std(name, k))
                found[name, model, k] = ours, theirs
    return found


def difference_rows(compared, found):
    for (name, how), models in compared.items():
        for model in (m for m in NC if m in models):
            line = []
            for ours, theirs in (found[name, model, k] for k in SHOWN):
                published = "[{:+.3f}{}]".format(*theirs)
                line.append("{:+.3f}{} {}".format(*ours, published) if ours else published)
            yield [name, how, "-".join(model), str(len(models[model])), *line]


def average_rows(compared, cells, found):
    """Means of the differences by augmentation and by set, over the sets where all models ran."""
    sets = sorted({name for (name, _), models in compared.items() if len(models) == len(MODELS)})
    for group in (*dict.fromkeys(augmentation for _, augmentation in NC), *sets):
        line = []
        for key in SHOWN:
            pairs = [pair for (name, (_, augmentation), k), pair in found.items() if k == key
                     and pair[0] and name in sets and group in (name, augmentation)]
            means = [statistics.mean(value for value, _ in side) for side in zip(*pairs)]
            line.append("{:+.3f} [{:+.3f}]".format(*means) if pairs else "")
        yield [group, *line]
        if group in sets:
            stds = [noise(cells, group, key) for key in SHOWN]
            yield ["noise", *(f"{noise_bound(std):.3f}" if std else "" for std in stds)]


def starred_rows(found):
    """How many differences, ours and published, are more than seeds explain."""
    counts = {"rows": [], "gains": [], "losses": [], "gains in both": []}
    for key in SHOWN:
        pairs = [pair for (*_, k), pair in found.items() if k == key and pair[0]]
        better = -1 if key in LOWER_IS_BETTER else 1
        gains, losses = ([[sign * value > 0 and mark == "*" for value, mark in pair]
                          for pair in pairs] for sign in (better, -better))
        counts["rows"].append(str(len(pairs)))
        for name, hits in (("gains", gains), ("losses", losses)):
            counts[name].append("{} [{}]".format(*map(sum, zip(*hits))) if pairs else "")
        counts["gains in both"].append(str(sum(map(all, gains))))
    return [[name, *line] for name, line in counts.items()]


def agreements(compared):
    """How many means lie within noise of the published ones, and which do not."""
    lines = []
    for key in (*RECON, *(key for key in SHOWN[1:] if key not in BY_CLASSIFIER)):
        found = judged(compared, key)
        lines.append([key.replace("_train_mode", ", train mode"),
                      *(str(len(who)) for who in found.values()), ", ".join(found["worse"])])
    return markdown(["metric", "within noise", "better", "worse", "which are worse"], lines)


# ---- Runs beside others that differ in one thing ----

SCORES = ("recon", "knn", "svm", "fid", "fid_recon", "fid_floor", "is", "is_real", "cas")
LATER = (*SCORES[3:], "seconds_stage2", "seconds_evaluate")


def beside(cells, one, other):
    """Schedule `one`, `other`, their difference and the published means, a model and the seeds that
    both have at a time."""
    columns, lines = (*SCORES, "minutes"), []

    def value(mean, n):
        return f"{mean:.3f}" if n else ""

    def change(name, key, x, n, y, m):
        if not (n and m):
            return ""
        if key == "minutes":
            return f"{x / y:.2f} times as fast"
        return f"{y - x:+.3f}{star(y - x, n, m, noise(cells, name, key))}"
    for name in dict.fromkeys(name for name, _ in cells):
        first, second = (cells.get((name, how), {}) for how in (one, other))
        for model in dict.fromkeys((*MODELS, *first)):
            a, b = (models.get(model, {}) for models in (first, second))
            seeds = sorted(a.keys() & b.keys())
            if not seeds:
                continue
            a, b = ({s: runs[s] | dict(minutes=minutes(runs[s])) for s in seeds} for runs in (a, b))
            a, b = ({k: mean(runs, k) for k in columns} for runs in (a, b))
            who, which = [name, "-".join(model)], ", ".join(map(str, seeds))
            published = [PUBLISHED.get((name, *model, k), {}).get("mean") for k in columns]
            lines += [[*who, one, which, *(value(*a[k]) for k in columns)],
                      [*who, other, which, *(value(*b[k]) for k in columns)],
                      [*who, "difference", "", *(change(name, k, *a[k], *b[k]) for k in columns)]]
            if any(published):
                lines.append([*who, "published", "four", *(value(v, v) for v in published)])
    return markdown(["dataset", "model", "schedule", "seeds", *columns], lines)


# What a run has, against one that has not; the column that says so, and how.
DEPARTURES = (
    ("The zeroed tail of the published views (ledger 18)", "view as it is", "zeroed tail",
     "augmentation", r"\+roundtrip$"),
    ("The naive prior's random embedding and loss on all tokens (ledger 7, 11)", "codebook, masked",
     "random, all", "later_settings", r"(embedding|loss_on)=\S+ ?"),
    ("Two views", "one view", "two views", "stage1_settings", r"views=2 ?"),
    ("Two bands", "one band", "two bands", "stage1_settings", r"bands=2 ?"))


def departures(rows):
    """departures.md: runs beside those that differ from them in nothing else."""
    text = f"""# Runs beside others that differ in one thing

Means over the seeds that both have; nothing was published for two views. {published_cas()}
{NOISE}
"""
    known = schedules()
    for title, here, there, column, words in DEPARTURES:
        found = {}  # schedule -> cells
        for row in rows:
            plain = row | {column: re.sub(words, "", row[column]).strip()}
            if plain == row:
                continue
            how = schedule(plain, known)
            ours = next((r for r in rows if all(r[k] == plain[k] for k in IDENTITY[:-1])
                         and plain["later_settings"] in (r["later_settings"], "none")), None)
            if not (ours and how):
                continue
            only_stage1 = row["later_settings"] == "none"
            for which, run in ((here, ours), (there, row)):
                cell = found.setdefault(how, {}).setdefault((row["dataset"], which), {})
                runs = cell.setdefault((row["method"], plain["augmentation"]), {})
                runs[row["seed"]] = run | (dict.fromkeys(LATER) if only_stage1 else {})
        for how, cells in sorted(found.items()):
            table = beside(dict(sorted(cells.items())), here, there)
            text += f"\n## {title}: {how}\n\n{table}"
    return text


def published_cas():
    return ("TimeVQVAE's CAS (naive, two bands): "
            + ", ".join(f"{name} {value}" for name, value in TIMEVQVAE.items()) + ".")


def presets(cells):
    """presets.md: the presets beside each other."""
    return f"""# The presets

`fid_recon` and `fid_floor`, FID of reconstructions and of train series, and `is_real`, IS of the
real test split, bound FID and IS. Minutes are of one core, the other one busy too. FID, IS and CAS
hang on their classifiers, which `thesis` trains longer. {published_cas()}
{NOISE}

## `fast` against the thesis' schedule

{beside(cells, "thesis, bf16", "fast, bf16")}
## `best` against `fast`

{beside(cells, "fast, bf16", "best, bf16")}"""


# ---- The ablation ----

SWEEPS = {"zeta": (0.05, 0.1, 0.15, 0.2), "eta": (0.5, 1.0, 2.0)}
THESIS = {name: getattr(Config, name) for name in SWEEPS}


def ablation_cells(rows):
    """{(dataset, method, augmentation, other settings): {(name, weight): {seed: row}}}.

    A run at the thesis' weights is in both sweeps.
    """
    found = {}
    for row in filter(is_whole, rows):
        changed = dict(setting.split("=") for setting in row["stage1_settings"].split())
        weights = THESIS | {k: float(changed.pop(k)) for k in SWEEPS if k in changed}
        others = " ".join(map("=".join, changed.items()))
        who = row["dataset"], row["method"], row["augmentation"], others
        for name in SWEEPS:
            if all(weights[k] == THESIS[k] for k in SWEEPS if k != name):
                model = found.setdefault(who, {})
                model.setdefault((name, weights[name]), {})[row["seed"]] = row
    return dict(sorted(found.items()))


def ablation(found):
    """ablation.md: thesis section 6.3, and the factor on eta."""
    text = ("# The weights of eq. 4.5\n\nMean over seeds (n), the thesis' weight in bold. The "
            f"difference from it: {NOISE}\n\n")
    for name, weights in SWEEPS.items():
        lines = []
        for (dataset, method, augmentation, others), model in found.items():
            swept = any(n == name and weight != THESIS[n] for n, weight in model)
            for metric in ("recon", "knn", "svm") if swept else ():
                lines.append([dataset, f"{method}-{augmentation}", others, metric])
                base, m = mean(model.get((name, THESIS[name]), {}), metric)
                for weight in weights:
                    value, n = mean(model.get((name, weight), {}), metric)
                    std = pooled_std(dataset, metric)
                    mark = star(value - base, n, m, std) if n and m else ""
                    lines[-1].append(f"{value:.3f}{mark} ({n})" if n else "")
        header = [f"**{w:g}**" if w == THESIS[name] else f"{w:g}" for w in weights]
        columns = ["dataset", "model", "stage 1", "metric", *header]
        text += f"## {name}\n\n{markdown(columns, lines)}\n"
    return text


# ---- From checkpoints: probes in train mode, and where samples lose ----

def probe_in_train_mode(model, dataset, seed=0):
    """The published probes: train mode, so test batches move BatchNorm and codebook (ledger 12). On
    a throw-away copy.

    Returns the values of PROBES; recon is that of the test split in eval mode afterwards, of all of
    it and of the last mini-batch: what a checkpoint saved after such a pass would score.
    """
    model, batch = copy.deepcopy(model).train(), model.config.stage1_batch
    order = torch.randperm(len(dataset.x_train), generator=torch.Generator().manual_seed(seed))
    z_train = encode_split(model, dataset.x_train[order], batch)["pooled"]
    z_test = encode_split(model, dataset.x_test, batch)["pooled"]  # in the file's order, as theirs
    errors = encode_split(model.eval(), dataset.x_test)["errors"].sum(1)
    knn, svm = probe(z_train, dataset.y_train[order], z_test, dataset.y_test)
    return dict(zip(PROBES, (knn, svm, errors.mean().item(), errors.split(128)[-1].mean().item())))


def command_probe(run_dirs):
    """Probe finished runs in train mode into probe.json; print it beside the frozen values."""
    shown = ("knn", "svm", "recon", "recon_last_batch", *PROBES)
    print(markdown(["run", *shown], []), end="")
    for run_dir in map(Path, run_dirs):
        config = data.read_config(run_dir)
        dataset = load_dataset(config.dataset)
        data.refuse(not dataset.classes, f"{run_dir}: {dataset.name} has no labels to probe for")
        model, _ = load_stage1(run_dir, config=config, dataset=dataset)
        moved = probe_in_train_mode(model, dataset)
        write_json(run_dir / "probe.json", moved)
        scores = read_json(run_dir / "metrics.json") | moved
        run = "/".join(run_dir.resolve().parts[-3:])  # DATASET/METHOD-AUG/seedN
        print(markdown_row([run, *(f"{scores[k]:.3f}" for k in shown)]), flush=True)


def parts(run_dir):
    """FID, IS and share of own class of real test series, their reconstructions and conditional
    samples, with the FID of these repeated or cut to the test split's shares; the shares of the
    classes in train, test and, as the classifier sees them, unconditional samples."""
    config = data.read_config(run_dir)
    dataset = load_dataset(config.dataset)
    model, _ = load_stage1(run_dir, config, dataset)
    fcn, *_ = dataset_fcn(Path(run_dir).parent.parent, dataset,
                         fcn_config(config, len(dataset.classes)))
    samples = data.read_arrays(Path(run_dir) / "samples.npz")
    drawn = [torch.from_numpy(((samples[k][:, 0] - dataset.mean) / dataset.std).astype(np.float32))
             for k in ("X", "X_unconditional")]
    y = torch.tensor([dataset.label(label) for label in samples["y"].tolist()])
    series = (dataset.x_test, encode_split(model, dataset.x_test)["x_hat"], *drawn)
    features, p = zip(*(classify(fcn, x) for x in series))
    shares = [np.bincount(np.asarray(labels), minlength=len(dataset.classes)) / len(labels)
              for labels in (dataset.y_train, dataset.y_test, p[3].argmax(1))]
    scores = [(frechet_distance(f, features[0]), inception_score(q), accuracy(q, labels))
              for f, q, labels in zip(features, p, (dataset.y_test, dataset.y_test, y))]
    as_tested = np.concatenate([np.resize(np.flatnonzero(y.numpy() == k), round(share * len(y)))
                                for k, share in enumerate(shares[1])])
    scores[2] += (frechet_distance(features[2][as_tested], features[0]),)
    return scores, shares


def command_parts(folders):
    print("""# Where samples lose

Own class: the share that the classifier puts into the class a series has or was drawn for.
Class-conditional samples have the train split's shares of classes; last, their FID if repeated or
cut to the test split's. Shares of the classes, %: train / test / unconditional samples (over ten
classes: half the sum of their distances from the test split's, train / samples).
""")
    print(markdown(["run", "schedule", "real: IS, own class", "reconstructed: FID, IS, own class",
                    "class-conditional samples: FID, IS, own class, FID",
                    "unconditional samples: FID, IS", "shares"], []), end="")
    known = schedules()
    for row in find_runs(folders):
        if row["cas"] is None:
            continue
        ((_, *real), *made), shares = parts(row["run_dir"])
        scores = [", ".join(f"{v:.3f}" for v in cell)
                  for cell in (real, *made, (row["fid"], row["is"]))]
        if len(shares[0]) <= 10:
            shown = [":".join(f"{100 * v:.0f}" for v in split) for split in shares]
        else:
            shown = [f"{50 * abs(shares[i] - shares[1]).sum():.0f}" for i in (0, 2)]
        run = f"{row['dataset']}/{row['method']}-{row['augmentation']}/seed{row['seed']}"
        how = known.get((row["stage1_settings"], row["later_settings"]), "")
        print(markdown_row([run, how, *scores, " / ".join(shown)]), flush=True)


def write_tables(out):
    """Every table made from out/runs.csv, and README's, which stands between two markers."""
    rows = read_rows(out / "runs.csv")
    cells = grid(rows)
    for name, text in {
            "TABLES.md": tables(rows), "headline.md": report(cells),
            "presets.md": presets(cells), "departures.md": departures(rows),
            "ablation.md": ablation(ablation_cells(rows))}.items():
        write_text(out / name, text)
    readme = out.resolve().parent / "README.md"
    if readme.exists():
        before, after = r"(?<=<!-- results -->\n)", "(?=<!-- end -->)"
        table = readme_table(cells)
        write_text(readme, re.sub(f"{before}.*?{after}", lambda _: table, readme.read_text(),
                                  flags=re.S))


def main():
    parser = data.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", help="folders of runs; probe or parts before them")
    parser.add_argument("--export", metavar="DIR", type=Path,
                        help="merge the runs into DIR/runs.csv and make every table from it")
    args = parser.parse_args()
    if args.folders[:1] == ["probe"]:
        command_probe(args.folders[1:])
    elif args.folders[:1] == ["parts"]:
        command_parts(args.folders[1:])
    elif not args.export:
        print(tables(find_runs(args.folders)))
    else:
        if args.folders:
            export(args.folders, args.export)
        write_tables(args.export)


if __name__ == "__main__":
    data.run_command(main)
