"""Rows of finished runs, and the published values beside them: what all tables are made of.

A row is a dict of COLUMNS: one metrics.json, the settings that made it, None for what it lacks.
results/runs.csv keeps them, results/logs/ a thinned log of each.

    model    (method, augmentation)
    runs     {seed: row} of one model
    cells    {(dataset, schedule): {model: runs}}, the grid that models are compared in
"""

import csv
import gzip
import hashlib
import io
import itertools
import json
import math
import re
import statistics
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t  # scikit-learn brings SciPy

from data import (
    PRESETS,
    THESIS_SETS,
    Config,
    InputError,
    errors_naming,
    known_fields,
    read_json,
    read_log,
    warn,
    write_atomic,
    write_json,
)
from evaluate import METRICS

RESULTS = Path(__file__).resolve().parent.parent / "results"
NAIVE = ("naive", "none")
NC = tuple(itertools.product(("barlow", "vibcreg"), ("warp", "slice", "gauss")))
MODELS = (NAIVE, *NC)

# In a pass in train mode, as it was published (ledger 12): probes.py.
PROBES = ("knn_train_mode", "svm_train_mode")
# CAS of a run's samples by the published schedule, 1000 epochs of 256 (ledger 34), and the seconds
# it took: probes.py.
THESIS_CAS = ("cas_thesis", "seconds_cas_thesis")
# FID and coverage of samples of classes, of as many series as the test split has: probes.py.
OF_CLASSES = ("fid_class", "coverage_class")
# The settings of CAS's classifier; their defaults are the thesis' schedule.
OF_CAS = ("cas_epochs", "cas_steps", "steps_per_class", "fcn_batch", "fcn_lr", "fcn_weight_decay")
# Ours beside a published metric: the honest value, and as it was published (ledger 12, 13).
RECON = ("recon", "recon_last_batch")
COLUMNS_BESIDE = {
    "recon": RECON,
    "knn": ("knn", "knn_train_mode"),
    "svm": ("svm", "svm_train_mode"),
    "cas": ("cas_thesis",),  # the presets' own is another ruler
}
LOWER_IS_BETTER = {*RECON, "fid"}
# By the classifier that all runs of a dataset on a processor share, fid_floor tells which.
BY_SHARED_FCN = {"fid", "is", "coverage"}
# By a classifier of ours: not to be compared with published ones (ledger 15, 34). Each run trains
# one for CAS on its samples.
BY_CLASSIFIER = BY_SHARED_FCN | {"cas", "cas_on_recon"}

SETTINGS = ("stage1_settings", "later_settings")  # what differs from the thesis, as text
TEXT = (
    "dataset",
    "method",
    "augmentation",
    *SETTINGS,
    "device",
    "processor",
    "torch",
    "commit",
    "date",
)
FROM_PROBES = (*PROBES, *THESIS_CAS, *OF_CLASSES)  # the columns that probe.json has
COLUMNS = (*TEXT[:3], "seed", *METRICS, *FROM_PROBES, *TEXT[3:])
IDENTITY = ("dataset", "method", "augmentation", "seed", *SETTINGS)
SIZES = ("n_train", "n_test", "length", "n_classes")  # other ones are of other data


# ---------------------------------------------------------------------------------------------
# From run folders to runs.csv
# ---------------------------------------------------------------------------------------------


def settings(config):
    """What a run changed against the thesis' values, as text: (stage 1's, the later ones')."""
    of_stage1 = config.settings_of("stage1")
    first = []
    later = []
    for name, value in config.settings_of("metrics").items():
        if name in IDENTITY or value == getattr(Config, name):
            continue
        (first if name in of_stage1 else later).append(f"{name}={value}")
    return " ".join(first), " ".join(later)


def find_runs(folders, having=None):
    """A row per finished run below the folders, with its run_dir. InputError where none is.

    having: leave runs without this metric out; cas or knn: those without labels.
    """
    paths = set()
    for folder in folders:
        paths.update(Path(folder).rglob("metrics.json"))
    if not paths:
        where = ", ".join(map(str, folders))
        raise InputError(f"{where}: no metrics.json of a finished run below")
    rows = [read_run(path.parent) for path in sorted(paths)]
    return [row for row in rows if having is None or row[having] is not None]


def read_run(run_dir):
    """The row of a run OUT/DATASET/METHOD-AUG/seedN."""
    path = run_dir / "metrics.json"
    metrics = read_json(path)
    with errors_naming(path):  # of another version, perhaps
        made_with = dict(metrics["config"])
        del made_with["sha256"]
        config = Config(**known_fields(path, made_with))
    starts = [record for record in read_log(run_dir) if record.get("event") == "start"]
    start = starts[0] if starts else {}

    row = dict.fromkeys(COLUMNS)
    row["run_dir"] = run_dir
    row["dataset"] = run_dir.resolve().parts[-3]
    for name in ("method", "augmentation", "seed"):
        row[name] = getattr(config, name)
    for name in METRICS:
        row[name] = metrics.get(name)
    for name in ("device", "processor", "torch", "commit"):
        row[name] = start.get(name)
    row["date"] = start.get("time", "")[:10]
    row["stage1_settings"], row["later_settings"] = settings(config)
    if metrics["stages"] == 1:
        row["later_settings"] = "none"
    if all(getattr(config, name) == getattr(Config, name) for name in OF_CAS):
        row["cas_thesis"] = row["cas"]  # its own is by the thesis' schedule
    return row | read_probes(run_dir, metrics)


def read_probes(run_dir, metrics):
    """What probes.py has found of a run with these metrics, {name: value}; else {}."""
    path = Path(run_dir) / "probe.json"
    if not path.exists():
        return {}
    probes = read_json(path)
    return probes["scores"] if probes.get("run") == what_was_scored(metrics) else {}


def add_to_probes(run_dir, scores):
    """Write scores into a run's probe.json, beside what it has."""
    metrics = read_json(Path(run_dir) / "metrics.json")
    probes = {"run": what_was_scored(metrics), "scores": read_probes(run_dir, metrics) | scores}
    write_json(Path(run_dir) / "probe.json", probes)


def what_was_scored(metrics):
    """The settings and data of a run's metrics, and the seconds of its trainings.

    Weights that were trained anew took other seconds.
    """
    return {name: metrics.get(name) for name in ("config", "seconds_stage1", "seconds_stage2")}


def identity(row):
    """What two rows of one run have in common."""
    return tuple(row[name] for name in IDENTITY)


def export(folders, out):
    """Merge the finished runs below folders into out/runs.csv and keep their logs.

    A run that is there already (same identity) is replaced, and so is one that had stopped after
    stage 1, by the same that went on; what probes.py found of the same weights is kept where the
    run's folder has it no more. InputError where two of the folders have one: which of them counts?
    Or where the one that is there is of other data.
    """
    merged = {identity(row): row for row in read_rows(out / "runs.csv")}
    runs = find_runs(folders)
    found = {}
    for row in runs:
        same = found.setdefault(identity(row), row)
        if same is not row:
            raise InputError(
                f"{same['run_dir']} and {row['run_dir']} are runs of the same settings and seed: "
                "export one of them"
            )
        former = merged.get(identity(row), {})
        other_data = any(row[name] != former.get(name) for name in SIZES)
        if former.get("complete_data") and other_data:
            raise InputError(
                f"{row['run_dir']}: {out / 'runs.csv'} has this run of other data; export it into "
                "another folder"
            )
    for row in runs:
        former = merged.get(identity(row), {})
        kept = FROM_PROBES if what_was_scored(row) == what_was_scored(former) else ()
        of_stage1 = identity(row | {"later_settings": "none"})
        stopped = merged.get(of_stage1, {}) if row["later_settings"] != "none" else {}
        if stopped and stopped["seconds_stage1"] == row["seconds_stage1"]:  # and went on
            former, kept = merged.pop(of_stage1), PROBES
            (out / "logs" / log_name(former)).unlink(missing_ok=True)
        for name in kept:
            if row[name] is None:
                row[name] = former.get(name)
        merged[identity(row)] = row
        export_log(row["run_dir"], out / "logs" / log_name(row))
    ordered = sorted(merged.values(), key=lambda row: list(map(str, identity(row))))
    write_csv(out / "runs.csv", COLUMNS, ordered)
    print(f"{out}: {len(ordered)} runs")
    words_of = schedules()
    others = [row["run_dir"] for row in runs if not grid_schedule(row, words_of)]
    if others:
        warn(
            f"{len(others)} of {len(runs)} runs, {others[0]} the first, are of another dataset, "
            "model or schedule than thesis Tables 6.1 to 6.7: runs.csv has them, TABLES.md has not"
        )


def log_name(row):
    """The file of a row's log; six hex digits tell settings apart."""
    changed = " ".join(f"{name}={row[name]}" for name in SETTINGS if row[name])
    name = f"{row['dataset']}-{row['method']}-{row['augmentation']}-seed{row['seed']}"
    if changed:
        name += "-" + hashlib.sha256(changed.encode()).hexdigest()[:6]
    return f"{name}.jsonl.gz"


def export_log(run_dir, path):
    """A run's log, gzipped, in 200 lines, paths cut to their last part.

    Its start lines, its looks at the test split, and as many others, evenly spread, as make 200.
    """
    records = read_log(run_dir)
    kept = []
    others = []
    for i, record in enumerate(records):
        certain = not record.keys().isdisjoint(("event", "val_recon", "val_prior_loss"))
        (kept if certain else others).append(i)
    room = max(0, min(len(others), 200 - len(kept)))
    for place in np.linspace(0, len(others) - 1, room).astype(int):
        kept.append(others[place])
    lines = ""
    for i in sorted(kept):
        record = records[i]
        if "argv" in record:
            record["argv"] = [re.sub(r"[^=\s]*/", "", word) for word in record["argv"]]
        lines += json.dumps(record) + "\n"
    packed = gzip.compress(lines.encode(), mtime=0)
    write_atomic(path, lambda file: file.write(packed))


def read_rows(path):
    """The rows of a runs.csv as find_runs makes them, without run_dir; [] where there is none."""
    rows = read_csv(path, TEXT)
    return [dict.fromkeys(COLUMNS) | row for row in rows]  # a file of before may lack some


def read_csv(path, text):
    """The rows of a file of write_csv, dicts; [] where there is none. text: columns of text."""
    if not Path(path).exists():
        return []
    rows = []
    with errors_naming(path), open(path, newline="") as file:
        table = csv.DictReader(file)
        if "dataset" not in (table.fieldnames or []):
            raise InputError("has no column dataset")
        for cells in table:
            row = {}
            for name, cell in cells.items():
                row[name] = cell if name in text else from_cell(cell)
            rows.append(row)
    return rows


def from_cell(text):
    """A cell that is not text: None, True or False, an int or a float."""
    words = {"": None, "True": True, "False": False}
    if text in words:
        return words[text]
    return int(text) if text.lstrip("-").isdigit() else float(text)


def write_text(path, text):
    """Write a text file, whole or not at all."""
    write_atomic(path, lambda file: file.write(text.encode()))


def fill(path, tables):
    """Put each table of {name: text} between the lines <!-- name --> and <!-- end --> of a file."""
    if not path.exists():
        return
    text = path.read_text()
    for name, content in tables.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        if mark:
            _, end, after = rest.partition("<!-- end -->")
            text = before + mark + content + end + after
    write_text(path, text)


def write_csv(path, columns, rows):
    """Write those columns of the rows, dicts."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


# ---------------------------------------------------------------------------------------------
# The grid: seven models, the thesis' sets, known schedules
# ---------------------------------------------------------------------------------------------


PRECISIONS = ("bf16", "float32")  # where runs of both are there, the first is compared


def schedules():
    """{(stage 1's settings, the later ones'): the schedule in words}, of what is compared."""
    # Runs of the same presets from before they changed: `best` was `fast` with other steps of the
    # prior and other decoding. Where there is no steps_per_class, cas_steps=40 were steps a class,
    # and fcn_lr was the thesis'.
    no_warmup = PRESETS["fast"] | {"stage1_warmup": 0}
    earlier = no_warmup | {"cas_steps": 40, "steps_per_class": 0, "fcn_lr": Config.fcn_lr}
    earlier_best = earlier | {"stage2_steps": 4000, "decode_steps": 20, "guidance": 2.0}
    words_of = {}
    for preset, edition, fields in (
        ("thesis", "", {}),
        ("thesis", "", {"cas_epochs": 100}),
        ("fast", "", PRESETS["fast"]),
        ("fast", NO_WARMUP, no_warmup),
        ("fast", EARLIER, earlier),
        ("best", "", PRESETS["best"]),
        ("best", EARLIER, earlier_best),
    ):
        for precision in PRECISIONS:
            config = Config(**fields | {"precision": precision})
            words_of[settings(config)] = f"{preset}, {precision}{edition}"
    return words_of


# What `fast` and `best` change for two bands: the low band has 8 frames, the high one 32, as in
# TimeVQVAE, whatever the preset has in one band.
TWO_BANDS = {"bands": 2, "latent_width": Config.latent_width}


def schedules_and_bands():
    """schedules(), and those of two bands that samples.md has."""
    words_of = schedules()
    for preset, precision in itertools.product(("fast", "best"), PRECISIONS):
        config = Config(**PRESETS[preset] | {"precision": precision} | TWO_BANDS)
        words_of[settings(config)] = f"{preset}, {precision}, two bands"
    return words_of


def name_cells(row):
    """The cells that name a run: `Symbols/naive-none/seed1` and its schedule in words, or ""."""
    name = f"{row['dataset']}/{row['method']}-{row['augmentation']}/seed{row['seed']}"
    words = schedules_and_bands().get((row["stage1_settings"], row["later_settings"]), "")
    return [name, words]


def schedule(row, words_of):
    """The words of schedules() for a row's settings, or None. Without stage 2, stage 1 decides."""
    for (first, later), words in words_of.items():
        if row["stage1_settings"] == first and row["later_settings"] in (later, "none"):
            return words
    return None


def is_whole(row):
    """Was the data complete, or one series short? Wafer's file at hand lacks one of test."""
    published = sum(THESIS_SETS.get(row["dataset"], (0, 0))[:2])
    return row["complete_data"] or published == row["n_train"] + row["n_test"] + 1


def grid_schedule(row, words_of):
    """The schedule of a run on complete data of the thesis, by one of its models; else None."""
    model = (row["method"], row["augmentation"])
    of_thesis = row["dataset"] in THESIS_SETS and model in MODELS
    return schedule(row, words_of) if of_thesis and is_whole(row) else None


# What the presets once were: without warm-up, and before that with other classifiers too.
NO_WARMUP = ", no warm-up"
EARLIER = ", earlier classifiers"


def without_precision(words):
    """`fast` of a schedule `fast, bf16`."""
    return words.replace(", bf16", "").replace(", float32", "")


def grid(rows):
    """The cells of the runs on complete data by a known schedule.

    The presets have changed: FID, IS and CAS of two classifiers do not compare, and stage 1 has a
    warm-up now, so earlier runs have cells of their own, whose schedule ends in EARLIER or
    NO_WARMUP. Runs of stage 1 alone, which have no classifier, stand in both of the latter, where
    there are both.
    """
    words_of = schedules()
    cells = {}
    without_classifier = []
    # Of two runs by the thesis' schedule that of 1000 epochs for CAS counts: it comes last.
    for row in sorted(rows, key=lambda row: "cas_epochs=100" not in row["later_settings"]):
        words = grid_schedule(row, words_of)
        if not words:
            continue
        model = (row["method"], row["augmentation"])
        if row["later_settings"] == "none":
            without_classifier.append((row, model, words))
            continue
        models = cells.setdefault((row["dataset"], words), {})
        models.setdefault(model, {})[row["seed"]] = row
    for row, model, words in without_classifier:
        cells.setdefault((row["dataset"], words), {})
        for key in ((row["dataset"], words), (row["dataset"], words.replace(NO_WARMUP, EARLIER))):
            if key in cells:
                cells[key].setdefault(model, {}).setdefault(row["seed"], row)
    return dict(sorted(cells.items()))


def of_preset(cells, preset):
    """A preset's cells where naive and another model ran, in the thesis' order of sets.

    Of the first of PRECISIONS that has any.
    """
    chosen = {}
    for precision in PRECISIONS:
        words = f"{preset}, {precision}"
        for dataset in THESIS_SETS:
            models = cells.get((dataset, words), {})
            if NAIVE in models and len(models) > 1:
                chosen[dataset, words] = models
        if chosen:
            break
    return chosen


def values_of(runs, metric):
    """The metric of those runs that have it."""
    return [row[metric] for row in runs.values() if row[metric] is not None]


def mean(runs, metric):
    """The mean over the runs that have the metric, and how many: (None, 0) if none has."""
    values = values_of(runs, metric)
    return (statistics.mean(values) if values else None), len(values)


def seeds_of(models, metrics):
    """How many seeds the runs of models, {model: runs}, have a metric of: `4`, or `2–4`; or ""."""
    counts = set()
    for runs in models.values():
        counts |= {len(values_of(runs, metric)) for metric in metrics}
    ran = sorted(counts - {0})
    if len(ran) > 1:
        return f"{ran[0]}–{ran[-1]}"
    return str(ran[0]) if ran else ""


def minutes(row):
    """Minutes that all stages of a run took."""
    return sum(row[f"seconds_{stage}"] or 0 for stage in ("stage1", "stage2", "evaluate")) / 60


# ---------------------------------------------------------------------------------------------
# Published values, and noise
# ---------------------------------------------------------------------------------------------


def read_published():
    """results/published.csv: {(dataset, method, augmentation, column of ours): mean, std, best}."""
    found = {}
    with open(RESULTS / "published.csv", newline="") as file:
        for row in csv.DictReader(file):
            values = {name: float(row[name]) for name in ("mean", "std", "best")}
            for column in COLUMNS_BESIDE.get(row["metric"], [row["metric"]]):
                found[row["dataset"], row["method"], row["augmentation"], column] = values
    return found


PUBLISHED = read_published()
STDS = 2.084  # so many stds of a difference are exceeded by chance in five of a hundred
NOISE = (
    "\\* = more than seeds explain: over t (1/n + 1/m)^1/2 stds for n and m seeds that have the "
    "metric, t = 2.084, the std being the root mean square of the published models' stds over "
    "seeds; for our FID, IS, coverage and CAS, which depend on our classifier, of our own, where "
    "at least two models have two seeds, with Student's t of so few: 4.30 of two models with two "
    "seeds, 2.36 of seven. Seeds of one model that ran on two processors have two classifiers, so "
    "that noise is of both."
)


def published(dataset, model, metric):
    """The published mean, std and best of four seeds, a dict; None where there are none."""
    return PUBLISHED.get((dataset, *model, metric))


def pooled_std(dataset, metric):
    """Root mean square of the published models' std over seeds; None where none is published."""
    squares = []
    for (name, _, _, column), values in PUBLISHED.items():
        if (name, column) == (dataset, metric):
            squares.append(values["std"] ** 2)
    return math.sqrt(statistics.mean(squares)) if squares else None


def noise(cells, dataset, metric):
    """Std over seeds: the published models' pooled one; of FID, IS, CAS our own. None: unknown.

    Our own is known from few seeds, and so is widened as Student's t is for its degrees of freedom,
    at least two; seven published models of four seeds have 21, where t is 2.08.

    cells: those of the schedules that are compared, as another's classifiers have another noise.
    """
    if metric not in BY_CLASSIFIER:
        return pooled_std(dataset, metric)
    squares, degrees = 0, 0
    for (name, _), models in cells.items():
        for runs in models.values():
            values = values_of(runs, metric)
            if name == dataset and len(values) > 1:
                squares += statistics.variance(values) * (len(values) - 1)
                degrees += len(values) - 1
    if degrees < 2:
        return None
    return math.sqrt(squares / degrees) * student_t.ppf(0.975, degrees) / STDS


def of_one_classifier(runs, others, metric):
    """The runs of two models that share a classifier; all, if none does or the metric has none.

    Another processor trains another one, and FID of train series by it, fid_floor, differs.
    """
    if metric not in BY_SHARED_FCN:
        return runs, others
    chosen = []
    for each, rest in ((runs, others), (others, runs)):
        floors = [row["fid_floor"] for row in rest.values() if row[metric] is not None]
        alike = {}
        for seed, row in each.items():
            if row[metric] is not None and any(same_floor(row["fid_floor"], f) for f in floors):
                alike[seed] = row
        chosen.append(alike or each)
    return chosen


def same_floor(one, other):
    """Are two fid_floor of one classifier? None, of runs without samples, is like None alone.

    From one machine to the next that of one classifier differs in the seventh digit; those of two
    classifiers differ by five ten-thousandths and more.
    """
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-5)


def noise_bound(std, n=1, m=1):
    """The difference of means over n and m seeds beyond which it is more than seeds explain.

    A difference has std * sqrt(1/n + 1/m) as its own std. 2.084 of those are 2.33 std for one seed
    against four, and 1.47 for four against four.
    """
    return STDS * math.sqrt(1 / n + 1 / m) * std


def star(difference, n, m, std):
    """An asterisk where a difference of means over n and m seeds is more than seeds explain."""
    return "*" if std is not None and abs(difference) > noise_bound(std, n, m) else ""


def is_gain(difference, metric):
    """Does a difference go the way that is better?"""
    return (difference < 0) == (metric in LOWER_IS_BETTER)


def agreement(ours, n, metric, theirs, std):
    """Our mean over n seeds is "within noise" of the published one of four, "better" or "worse"."""
    difference = ours - theirs["mean"]
    if not star(difference, n, 4, std):
        return "within noise"
    return "better" if is_gain(difference, metric) else "worse"


def judged(cells, metric):
    """{"within noise", "better", "worse": the models whose mean is that, beside the published}."""
    found = {"within noise": [], "better": [], "worse": []}
    for (dataset, _), models in cells.items():
        std = pooled_std(dataset, metric)
        for model, runs in models.items():
            ours, n = mean(runs, metric)
            if n:
                theirs = published(dataset, model, metric)
                judgement = agreement(ours, n, metric, theirs, std)
                found[judgement].append(f"{dataset} {'-'.join(model)}")
    return found


# ---------------------------------------------------------------------------------------------
# Markdown
# ---------------------------------------------------------------------------------------------


def markdown(columns, rows):
    """A table as Markdown, from the names of its columns and its rows of text."""
    lines = [markdown_row(columns), "|---" * len(columns) + "|"]
    for row in rows:
        lines.append(markdown_row(row))
    return "\n".join(lines) + "\n"


def markdown_row(cells):
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
