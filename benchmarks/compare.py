r"""Runs compared with each other: headline.md, samples.md, presets.md, departures.md, ablation.md,
and the small tables of results/README.md.

`python -m benchmarks.tables --export results/` writes them. The runs of the ablation (§6.3):

    for zeta in 0.05 0.15 0.2; do
        OUT=runs/ablation/zeta=$zeta bash run.sh TwoPatterns barlow,vibcreg warp,slice 1 \
            --preset fast --precision bf16 --stages 1 --zeta $zeta
    done
"""

import re
import statistics
from dataclasses import dataclass

from benchmarks.rows import (
    BY_CLASSIFIER,
    EARLIER,
    IDENTITY,
    MODELS,
    NAIVE,
    NC,
    NO_WARMUP,
    NOISE,
    PRECISIONS,
    SETTINGS,
    is_gain,
    is_whole,
    judged,
    markdown,
    mean,
    minutes,
    noise,
    noise_bound,
    of_one_classifier,
    of_preset,
    pooled_std,
    published,
    same_floor,
    schedule,
    schedules,
    schedules_and_bands,
    seeds_of,
    star,
)
from data import THESIS_SETS, Config

# ---------------------------------------------------------------------------------------------
# Naive against non-contrastive
# ---------------------------------------------------------------------------------------------

METRICS = (
    "recon",
    "recon_last_batch",
    "knn",
    "knn_train_mode",
    "svm",
    "svm_train_mode",
    "fid",
    "is",
    "coverage",
    "cas",
    "cas_on_recon",
    "cas_thesis",
)


def in_words(metric):
    """`recon, last batch` of recon_last_batch."""
    return metric.replace("_train_mode", ", train mode").replace("_last_batch", ", last batch")


def headline(cells):
    """headline.md of the grid's cells, a section a schedule."""
    names = [in_words(metric) for metric in METRICS]
    text = f"""# Naive against non-contrastive

FID, IS and coverage hang on a classifier, another one of each set, schedule and processor: runs
that share one are compared, where there are any. `2–4` seeds: some metrics are of fewer.
{NOISE}
"""
    for preset in ("fast", "thesis"):
        compared = of_preset(cells, preset)
        if not compared:
            continue
        found = differences(compared)
        words = next(words for _, words in compared)
        text += f"""
## Schedule: {words}, {len(compared)} sets

Non-contrastive minus naive: ours [published].

{markdown(["dataset", "model", "seeds", *names], difference_rows(compared, found))}
What one run has to differ by from another to get a star:

{markdown(["dataset", *names], noise_rows(compared))}
Starred rows of all, ours [published]; a gain in both is a published one that ours has too:

{markdown(["", *names], starred_rows(found))}
Each model's mean against the published one (train mode: a throw-away copy in the authors' probe,
ledger 12):

{agreements(compared, named=True)}"""
    return text


@dataclass
class Difference:
    """A non-contrastive model's mean minus naive's, ours and published, and their stars."""

    dataset: str
    model: tuple
    metric: str
    n: int  # the seeds that are compared, of the model
    m: int  # and of naive
    ours: float | None  # None: one of the two was not run
    our_star: str
    noise_known: bool  # of ours
    published: float | None  # None: of this metric nothing was published
    published_star: str

    def text(self):
        """`+0.016 [+0.019]*`, the published alone where there is none of ours."""
        ours = "" if self.ours is None else f"{self.ours:+.3f}"
        theirs = "" if self.published is None else f" [{self.published:+.3f}]"
        return f"{ours}{theirs}{self.our_star}".strip()


def differences(compared):
    """The Difference of each set, model and metric."""
    found = []
    for (dataset, _), models in compared.items():
        for model in NC:
            if model not in models:
                continue
            for metric in METRICS:
                runs, naive_runs = of_one_classifier(models[model], models[NAIVE], metric)
                value, n = mean(runs, metric)
                naive, m = mean(naive_runs, metric)
                std = noise(compared, dataset, metric)
                ours, our_star = None, ""
                if n and m:
                    ours = value - naive
                    our_star = star(ours, n, m, std)
                theirs, their_star = None, ""
                if published(dataset, NAIVE, metric):
                    theirs = published(dataset, model, metric)["mean"]
                    theirs -= published(dataset, NAIVE, metric)["mean"]
                    their_star = star(theirs, 4, 4, pooled_std(dataset, metric))
                found.append(
                    Difference(
                        dataset=dataset,
                        model=model,
                        metric=metric,
                        n=n,
                        m=m,
                        ours=ours,
                        our_star=our_star,
                        noise_known=std is not None,
                        published=theirs,
                        published_star=their_star,
                    )
                )
    return found


def difference_rows(compared, found):
    """A row a set and model."""
    lines = []
    for (dataset, _), models in compared.items():
        for model in NC:
            if model in models:
                line = [dataset, "-".join(model), seeds_of({model: models[model]}, METRICS)]
                for difference in found:
                    if (difference.dataset, difference.model) == (dataset, model):
                        line.append(difference.text())
                lines.append(line)
    return lines


def noise_rows(compared):
    """The bound of one run against one run, a set a row; "" where it is not known."""
    lines = []
    for dataset, _ in compared:
        line = [dataset]
        for metric in METRICS:
            std = noise(compared, dataset, metric)
            line.append(f"{noise_bound(std):.3f}" if std else "")
        lines.append(line)
    return lines


def starred_rows(found):
    """How many differences, ours and published, are more than seeds explain."""
    names = ("rows", "gains", "losses", "gains in both", "worse than naive, star or not")
    lines = {name: [name] for name in names}
    for metric in METRICS:
        ours = []  # "gain", "loss" or "" of each
        theirs = []
        for d in found:
            if d.metric == metric and d.ours is not None:
                ours.append(verdict(d.ours, d.our_star, metric))
                theirs.append(verdict(d.published, d.published_star, metric))
        is_published = any(d.published is not None for d in found if d.metric == metric)
        lines["rows"].append(str(len(ours)))
        for name, word in (("gains", "gain"), ("losses", "loss")):
            cell = str(ours.count(word))
            if is_published:
                cell += f" [{theirs.count(word)}]"
            lines[name].append(cell if ours else "")
        in_both = list(zip(ours, theirs, strict=True)).count(("gain", "gain"))
        lines["gains in both"].append(str(in_both))
        chosen = [d.ours for d in found if d.metric == metric and d.ours]
        worse = [difference for difference in chosen if not is_gain(difference, metric)]
        lines["worse than naive, star or not"].append(str(len(worse)))
    return list(lines.values())


def verdict(difference, starred, metric):
    """Is a difference a "gain" or a "loss" beyond noise? "" where it is neither."""
    if not starred:
        return ""
    return "gain" if is_gain(difference, metric) else "loss"


def agreements(compared, named=False):
    """How many means lie within noise of the published ones; named: and which are worse."""
    lines = []
    for metric in METRICS:
        if metric in BY_CLASSIFIER:
            continue
        found = judged(compared, metric)
        if not any(found.values()):
            continue
        line = [in_words(metric)]
        for models in found.values():
            line.append(str(len(models)))
        if named:
            line.append(", ".join(found["worse"]))
        lines.append(line)
    columns = ["metric", "within noise", "better", "worse"]
    return markdown([*columns, "which are worse"] if named else columns, lines)


# ---------------------------------------------------------------------------------------------
# The thesis' questions: small tables of results/README.md
# ---------------------------------------------------------------------------------------------


def questions(cells):
    """{"rq1", ..., "rq4", "published": tables} of the grid's cells, one of each schedule."""
    asked = dict.fromkeys(("rq1", "rq2", "rq3", "rq4", "published"), "")
    of_tokens = ("recon", "recon_last_batch", "knn", "svm")
    of_samples = ("fid", "is", "coverage", "cas", "cas_on_recon", "cas_thesis")
    for preset, heading in (
        ("fast", "By `fast`:"),
        ("best", "By `best`:"),
        ("thesis", "By the thesis' schedule:"),
    ):
        compared = of_preset(cells, preset)
        if not compared:
            continue
        found = differences(compared)
        tables = {"rq3": f"{by_set(compared, found, of_samples)}\n{higher_fid(found)}"}
        if preset != "best":  # which is for samples, and ran for some models
            tables["rq1"] = by_set(compared, found, of_tokens)
            tables["rq2"] = by_augmentation(compared, found, of_tokens)
            tables["rq4"] = by_augmentation(compared, found, of_samples)
            tables["published"] = agreements(compared)
        for name, table in tables.items():
            asked[name] += f"{heading}\n\n{table}\n"
    return asked


def higher_fid(found):
    """How many non-contrastive models have a higher FID than naive, and beyond noise: a line."""
    chosen = [d for d in found if d.metric == "fid" and d.ours is not None]
    higher = [d for d in chosen if not is_gain(d.ours, "fid")]
    beyond = [d for d in higher if d.our_star]
    lower = [d for d in chosen if is_gain(d.ours, "fid") and d.our_star]
    known = [d for d in chosen if d.noise_known]
    text = f"FID is higher than naive's for {len(higher)} of {len(chosen)} models"
    if not known:
        return f"{text}. Its noise is not known: no set has two models with two seeds.\n"
    return (
        f"{text}. The noise of {len(known)} is known: {len(beyond)} are higher beyond it, "
        f"{len(lower)} lower.\n"
    )


def by_set(compared, found, metrics):
    """A set a row: the mean over its non-contrastive models, minus naive, [published]."""
    lines = []
    for (dataset, _), models in compared.items():
        line = [dataset, str(len(models) - 1), seeds_of(models, metrics)]
        for metric in metrics:
            std = noise(compared, dataset, metric)
            chosen = [d for d in found if (d.dataset, d.metric) == (dataset, metric)]
            line.append(mean_difference(chosen, std))
        lines.append(line)
    return markdown(["set", "models", "seeds", *map(in_words, metrics)], lines)


def by_augmentation(compared, found, metrics):
    """An augmentation a row: the mean over methods and sets where all models ran, minus naive."""
    whole = [name for (name, _), models in compared.items() if len(models) == len(MODELS)]
    lines = []
    for augmentation in ("warp", "slice", "gauss"):
        line = [augmentation, str(len(whole))]
        for metric in metrics:
            chosen = []
            for d in found:
                if d.dataset in whole and (d.model[1], d.metric) == (augmentation, metric):
                    chosen.append(d)
            line.append(mean_difference(chosen))
        lines.append(line)
    return markdown(["augmentation", "sets", *map(in_words, metrics)], lines)


def mean_difference(all_models, std=None):
    """`+0.01 [+0.02]*`: the means of ours and of the published ones beside them; "" if none ran.

    Of some of the models alone: how many follow, `(3)`. std: over seeds; None: no mark.
    """
    chosen = [d for d in all_models if d.ours is not None]
    if not chosen:
        return ""
    ours = statistics.mean(d.ours for d in chosen)
    bracket = ""
    if chosen[0].published is not None:
        theirs = statistics.mean(d.published for d in chosen)
        bracket = f" [{theirs:+.2f}]"
    mark = star(ours, sum(d.n for d in chosen), min(d.m for d in chosen), std)
    some = f" ({len(chosen)})" if len(chosen) < len(all_models) else ""
    return f"{ours:+.2f}{bracket}{mark}{some}"


# ---------------------------------------------------------------------------------------------
# Runs beside others that differ in one thing
# ---------------------------------------------------------------------------------------------

SCORES = (
    "recon",
    "knn",
    "svm",
    "fid",
    "fid_recon",
    "fid_floor",
    "is",
    "is_real",
    "cas",
    "cas_real",
    "cas_thesis",
)
LATER = (*SCORES[3:], "seconds_stage2", "seconds_evaluate")  # what stage 1 alone has not


def beside(cells, one, other):
    """Schedule `one`, `other`, their difference and the published means: four rows a model.

    Means are over the seeds that both have; "" where no model has such seeds.
    """
    lines = []
    for dataset in dict.fromkeys(name for name, _ in cells):
        first = cells.get((dataset, one), {})
        second = cells.get((dataset, other), {})
        for model in dict.fromkeys((*MODELS, *first)):
            seeds = sorted(first.get(model, {}).keys() & second.get(model, {}).keys())
            if not seeds:
                continue
            who = [dataset, "-".join(model)]
            which = ", ".join(map(str, seeds))
            ours = means_over(seeds, first[model], second[model])
            theirs = means_over(seeds, second[model], first[model])
            for name, means in ((one, ours), (other, theirs)):
                values = [shown(value, len(seeds)) for value in means.values()]
                lines.append([*who, name, which, *values])
            both = {key: cells[key] for key in ((dataset, one), (dataset, other))}
            lines.append([*who, "difference", "", *changes(both, dataset, ours, theirs)])
            means = [(published(dataset, model, metric) or {}).get("mean") for metric in ours]
            if any(means):
                values = [shown((value, 4), 4) for value in means]
                lines.append([*who, "published", "four", *values])
    columns = ["dataset", "model", "schedule", "seeds", *SCORES, "minutes"]
    return markdown(columns, lines) if lines else ""


def means_over(seeds, runs, others=None, metrics=SCORES):
    """{metric: (mean, n)} over those seeds, of the metrics and minutes.

    Of stage 1 alone where a run, or that of the seed in others, has no more.
    """
    chosen = {}
    for seed in seeds:
        row = runs[seed]
        if "none" in (row["later_settings"], (others or runs)[seed]["later_settings"]):
            row = row | dict.fromkeys(LATER)
        chosen[seed] = row | {"minutes": minutes(row)}
    return {metric: mean(chosen, metric) for metric in (*metrics, "minutes")}


def shown(mean_and_n, seeds):
    """A mean as text, "" where there is none; of fewer than the row's seeds: `0.706 (1)`."""
    value, n = mean_and_n
    if value is None:
        return ""
    return f"{value:.3f}" if n == seeds else f"{value:.3f} ({n})"


def changes(cells, dataset, ours, theirs):
    """From means_over of one to that of another: differences with stars, and how much faster."""
    texts = []
    for metric, (before, n) in ours.items():
        after, m = theirs[metric]
        if not (n and m):
            texts.append("")
        elif metric == "minutes":
            texts.append(f"{before / after:.2f} times as fast")
        else:
            std = noise(cells, dataset, metric)
            floors = ours["fid_floor"][0], theirs["fid_floor"][0]
            if metric in BY_CLASSIFIER and not same_floor(*floors):
                std = None  # two classifiers
            texts.append(f"{after - before:+.3f}{star(after - before, n, m, std)}")
    return texts


def presets(cells):
    """presets.md: the presets beside each other, runs of one edition of them a table."""
    text = f"""# The presets

`fid_recon` and `fid_floor`, FID of reconstructions and of train series, and `is_real`, IS of the
real test split, bound FID and IS. Minutes are of one core, the other one busy too, and of the
processor that it was (`runs.csv`). FID, IS and CAS hang on their classifiers, which `thesis` trains
longer and each processor anew; where fid_floor differs, two runs had two.
`(1)`: of one seed of the row's.
{NOISE}
"""
    for heading, one, other in (
        ("`fast` against the thesis' schedule", "thesis", "fast"),
        ("`best` against `fast`", "fast", "best"),
    ):
        text += f"\n## {heading}\n"
        for edition in ("", NO_WARMUP, EARLIER):
            edition_of_one = "" if one == "thesis" else edition  # the thesis has one alone
            for precision in PRECISIONS:
                table = beside(
                    cells, f"{one}, {precision}{edition_of_one}", f"{other}, {precision}{edition}"
                )
                if table:
                    text += f"\n{table}"
    return text


@dataclass(frozen=True)
class Departure:
    """One thing in which runs differ, and how a run's row says that it has it.

    Its settings or augmentation hold text that matches pattern; with `instead` in its place the row
    is that of a run `without`.
    """

    heading: str
    without: str
    having: str
    pattern: str
    instead: str = ""


DEPARTURES = (
    Departure(
        "The zeroed tail of the published views (ledger 18)",
        "view as it is",
        "zeroed tail",
        r"\+roundtrip$",
    ),
    Departure(
        "The naive prior's random embedding and loss on all tokens (ledger 7, 11)",
        "codebook, masked",
        "random, all",
        r"embedding=random loss_on=all ?",
    ),
    Departure(
        "Passes of train and test split in train mode, as the published program's (ledger 12)",
        "no passes",
        "passes",
        r"leak_epochs=100 ?",
    ),
    Departure("Two views", "one view", "two views", r"views=2 ?"),
    Departure("Two bands", "one band", "two bands", r"bands=2 ?"),
    Departure(
        "Steps of stage 1", "800 steps", "3,200 steps", "stage1_steps=3200", "stage1_steps=800"
    ),
    Departure("Warm-up (ledger 37)", "no warm-up", "warm-up", r"stage1_warmup=100 ?"),
)


def departures(rows):
    """departures.md: runs beside those whose settings differ from theirs in nothing else."""
    text = f"""# Runs beside others that differ in one thing

Means over the seeds that both have; nothing was published for two views. What runs do not share
beside that: the processor, perhaps, so that minutes say little, and where fid_floor differs, FID,
IS and CAS are by two classifiers.
{NOISE}
"""
    for departure in DEPARTURES:
        found = departure_cells(rows, departure)
        for words, cells in sorted(found.items()):
            table = beside(dict(sorted(cells.items())), departure.without, departure.having)
            text += f"\n## {departure.heading}: {words}\n\n{table}"
    return text


def departure_cells(rows, departure):
    """{schedule: cells} of runs that have a departure, and of those that differ in it alone."""
    words_of = schedules()
    found = {}
    rows = [row for row in rows if is_whole(row)]
    for row in rows:
        plain = dict(row)
        for column in ("augmentation", *SETTINGS):
            plain[column] = re.sub(departure.pattern, departure.instead, row[column]).strip()
        words = schedule(plain, words_of)
        other = counterpart(plain, rows)
        if plain == row or not words or not other:
            continue
        model = (row["method"], plain["augmentation"])
        cells = found.setdefault(words, {})
        for name, run in ((departure.without, other), (departure.having, row)):
            models = cells.setdefault((row["dataset"], name), {})
            models.setdefault(model, {})[row["seed"]] = run
    return found


def counterpart(plain, rows):
    """The row with the settings of `plain`, of stage 1 where that has no others; or None."""
    for row in rows:
        alike = all(row[name] == plain[name] for name in IDENTITY[:-1])
        if alike and plain["later_settings"] in (row["later_settings"], "none"):
            return row
    return None


# ---------------------------------------------------------------------------------------------
# Samples, by preset and bands
# ---------------------------------------------------------------------------------------------

SAMPLE_SCORES = (
    "recon",
    "knn",
    "svm",
    "fid_floor",
    "fid_recon",
    "fid",
    "fid_class",
    "is",
    "is_real",
    "precision",
    "recall",
    "density",
    "coverage",
    "coverage_class",
    "coverage_real",
    "cas",
    "cas_real",
    "cas_on_recon",
    "cas_thesis",
)
SAMPLE_MODELS = (NAIVE, ("vibcreg", "slice"), ("vibcreg", "gauss"))
# TimeVQVAE (Lee et al. 2023: naive, two bands), means; FID and IS are by another classifier.
TIMEVQVAE = {
    "Wafer": {"cas_thesis": 0.994},
    "ECG5000": {"fid": 0.7, "is": 2.0, "cas_thesis": 0.933},
    "TwoPatterns": {"fid": 2.2, "is": 2.8, "cas_thesis": 0.865},
    "ShapesAll": {"cas_thesis": 0.745},
    "Symbols": {"fid": 5.6, "is": 4.0, "cas_thesis": 0.968},
    "SonyAIBORobotSurface1": {"cas_thesis": 0.981},
    "SonyAIBORobotSurface2": {"cas_thesis": 0.972},
}


def samples(rows):
    """samples.md: naive and two non-contrastive models by `fast` and `best`, one band and two."""
    found = sample_cells(rows)
    lines = []
    for dataset in THESIS_SETS:
        here = {key: runs for key, runs in found.items() if key[0] == dataset}
        if not here:
            continue
        for key in sorted(here, key=lambda key: (SAMPLE_MODELS.index(key[3]), *key[1:3])):
            _, preset, bands, model = key
            seeds = sorted(here[key])
            means = means_over(seeds, here[key], metrics=SAMPLE_SCORES)
            line = [dataset, "-".join(model), preset, bands, ", ".join(map(str, seeds))]
            lines.append(line + [shown(value, len(seeds)) for value in means.values()])
        ran = {key[3] for key in here}
        for model in sorted(ran, key=SAMPLE_MODELS.index):
            theirs = [published(dataset, model, metric) for metric in SAMPLE_SCORES]
            values = [f"{each['mean']:.3f}" if each else "" for each in theirs]
            lines.append([dataset, "-".join(model), "published", "1", "four", *values, ""])
        if dataset in TIMEVQVAE:
            values = [str(TIMEVQVAE[dataset].get(metric, "")) for metric in SAMPLE_SCORES]
            lines.append([dataset, "TimeVQVAE", "published", "2", "", *values, ""])
    columns = ["dataset", "model", "preset", "bands", "seeds", *SAMPLE_SCORES, "minutes"]
    return f"""# Samples, by preset and bands

Means over seeds; `(1)`: of one seed of the row's. What real series score: fid_floor (as many train
series), is_real, coverage_real, cas_real; what reconstructions score: fid_recon. FID, IS, precision
to coverage are of unconditional samples, fid_class and coverage_class of samples of classes, in the
train split's shares; guidance is for these alone. cas_on_recon: what the classifier behind CAS
scores on reconstructed test series, which are as smooth as its samples. Where fid_floor of two rows
differs, their FID, IS and coverage are by two classifiers, mostly of two processors. Published FID
and IS are by another one (ledger 15), published CAS by the schedule of cas_thesis (ledger 34).
Minutes are of one of two busy cores, of some runs of one that other programs had too, or that
stood still in between.

{markdown(columns, lines)}"""


def sample_cells(rows):
    """{(dataset, preset, bands, model): {seed: row}} of runs that differ in nothing else."""
    words_of = schedules_and_bands()
    of_today = [f"{preset}, {each}" for preset in ("fast", "best") for each in PRECISIONS]
    found = {}
    for row in rows:
        model = (row["method"], row["augmentation"])
        words = words_of.get((row["stage1_settings"], row["later_settings"]), "")
        one_band = words.removesuffix(", two bands")
        if one_band in of_today and model in SAMPLE_MODELS and is_whole(row):
            bands = "1" if words == one_band else "2"
            key = (row["dataset"], one_band.removesuffix(f", {PRECISIONS[0]}"), bands, model)
            found.setdefault(key, {})[row["seed"]] = row
    return found


# ---------------------------------------------------------------------------------------------
# The ablation (§6.3)
# ---------------------------------------------------------------------------------------------

SWEEPS = {"zeta": (0.05, 0.1, 0.15, 0.2), "eta": (0.5, 1.0, 2.0)}
THESIS_WEIGHTS = {"zeta": Config.zeta, "eta": Config.eta}


def ablation_cells(rows):
    """{(dataset, method, augmentation, other settings): {(name, weight): runs}}.

    A run at the thesis' weights is in both sweeps.
    """
    found = {}
    for row in rows:
        if not is_whole(row):
            continue
        weights = dict(THESIS_WEIGHTS)
        others = []
        for setting in row["stage1_settings"].split():
            name, value = setting.split("=")
            if name in SWEEPS:
                weights[name] = float(value)
            else:
                others.append(setting)
        who = (row["dataset"], row["method"], row["augmentation"], " ".join(others))
        for name, weight in weights.items():
            without_it = weights | {name: THESIS_WEIGHTS[name]}
            if without_it == THESIS_WEIGHTS:  # the other weight is the thesis'
                runs = found.setdefault(who, {}).setdefault((name, weight), {})
                runs[row["seed"]] = row
    return dict(sorted(found.items()))


def stage1_words(stage1_settings):
    """The first schedule that has these settings of stage 1, or, in lack of one, the settings."""
    for (first, _), words in schedules().items():
        if first == stage1_settings:
            return words
    return stage1_settings


def ablation(rows):
    """ablation.md: the weights of eq. 4.5, whose eta is a factor here."""
    text = (
        "# The weights of eq. 4.5\n\nMean over seeds (n), the thesis' weight in bold. The "
        f"difference from it: {NOISE}\n\n"
    )
    found = ablation_cells(rows)
    for name, weights in SWEEPS.items():
        lines = []
        swept = {(name, weight) for weight in weights if weight != THESIS_WEIGHTS[name]}
        for (dataset, method, augmentation, others), runs_of in found.items():
            if not swept & set(runs_of):
                continue
            who = [dataset, f"{method}-{augmentation}", stage1_words(others)]
            for metric in ("recon", "knn", "svm"):
                lines.append([*who, metric] + ablation_line(dataset, name, metric, runs_of))
        columns = ["dataset", "model", "stage 1", "metric"]
        for weight in weights:
            columns.append(f"**{weight:g}**" if weight == THESIS_WEIGHTS[name] else f"{weight:g}")
        text += f"## {name}\n\n{markdown(columns, lines)}\n"
    return text


def ablation_line(dataset, name, metric, runs_of):
    """The mean at each weight, with a star where it differs from that at the thesis' weight."""
    base, m = mean(runs_of.get((name, THESIS_WEIGHTS[name]), {}), metric)
    texts = []
    for weight in SWEEPS[name]:
        value, n = mean(runs_of.get((name, weight), {}), metric)
        mark = star(value - base, n, m, pooled_std(dataset, metric)) if n and m else ""
        texts.append(f"{value:.3f}{mark} ({n})" if n else "")
    return texts
