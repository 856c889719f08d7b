"""The thesis' figures across runs: published values hollow, every seed of ours filled.

    python -m benchmarks.thesis_figures results/  # figures/*.png there, of runs.csv and logs/ there

Runs by `fast`; curves of the test split by the thesis' schedule, which looks at it more often.
"""

import gzip
import json
import math
import statistics
from pathlib import Path

import numpy as np
import torch
from matplotlib import ticker
from matplotlib.lines import Line2D

from benchmarks.compare import SWEEPS, ablation_cells, stage1_words
from benchmarks.rows import (
    LOWER_IS_BETTER,
    MODELS,
    NAIVE,
    grid,
    log_name,
    mean,
    of_preset,
    published,
    read_rows,
    seeds_of,
    without_precision,
)
from data import (
    AUGMENTATIONS,
    Config,
    Parser,
    augment,
    load_dataset,
    require_file,
    run_command,
    warn,
    write_atomic,
)
from evaluate import house_style, new_figure
from ncvqvae import NCVQVAE

COLOURS = {"naive": "k", "barlow": "C1", "vibcreg": "C0"}
MARKERS = {"none": "o", "warp": "^", "slice": "s", "gauss": "D"}
LABELS = {
    "recon": "recon",
    "recon_last_batch": "recon as published\n(ledger 13)",
    "knn": "KNN accuracy",
    "svm": "SVM accuracy",
    "fid": "FID\n(ledger 15)",
    "is": "IS\n(ledger 15)",
    "cas_thesis": "CAS as published\n(ledger 34)",
    "ssl": "SSL loss",
}


def look(model):
    """Colour and marker of a model, for matplotlib."""
    method, augmentation = model
    return {"color": COLOURS[method], "marker": MARKERS[augmentation]}


def words(model):
    """A model's name in a legend."""
    return " ".join(model).replace(" none", "")


def runs_of(cells):
    """(cell, model, row) of every run in the cells, a cell being (dataset, schedule)."""
    for cell, models in cells.items():
        for model, runs in models.items():
            for row in runs.values():
                yield cell, model, row


# ---------------------------------------------------------------------------------------------
# Panels and legends
# ---------------------------------------------------------------------------------------------


def panels(count, **shared):
    """A figure with `count` axes in rows of three, room for a legend below."""
    n_rows = math.ceil(count / 3)
    size = (10, 0.8 + 2.7 * n_rows)
    figure, axes = new_figure(n_rows, 3, figsize=size, squeeze=False, **shared)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, axes.flat[:count]


def name_models(figure, models=MODELS, hollow=None):
    """One legend for all panels: a model a marker; what hollow ones stand for, where there are."""
    entries = [(words(model), look(model)) for model in models]
    if hollow:
        grey = {"color": "0.5", "marker": "o"}
        entries.append(("ours, a seed each", grey))
        entries.append((hollow, grey | {"mfc": "none"}))
    handles = []
    for label, style in entries:
        handles.append(Line2D([], [], ls="", ms=5, label=label, **style))
    figure.legend(handles=handles, loc="lower center", ncol=min(5, len(handles)))


def plain_numbers(axis):
    """0.1, 0.2, 0.3, 0.5, 0.7 on a logarithmic y axis instead of powers of ten."""
    if axis.get_yscale() == "log":
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5, 7)))
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())


def set_names(cells, metric, separator="\n"):
    """Tick labels: dataset, schedule, and of how many seeds its models have the metric."""
    names = []
    for (dataset, schedule), models in cells.items():
        name = (dataset, without_precision(schedule), f"n {seeds_of(models, [metric])}")
        names.append(separator.join(name))
    return names


# ---------------------------------------------------------------------------------------------
# The figures, each from the cells of one schedule; None where these have nothing to draw
# ---------------------------------------------------------------------------------------------


def scores(cells, metrics):
    """A panel a metric, a group a dataset: each seed of each model beside the published mean.

    Metrics that no run has are left out. Figures 6.1, 6.3, 6.9, 6.10.
    """
    rows = [row for *_, row in runs_of(cells)]
    metrics = [metric for metric in metrics if any(row[metric] is not None for row in rows)]
    if not metrics:
        return None
    size = (max(10, 1.2 * len(cells)), 1 + 2.3 * len(metrics))
    figure, axes = new_figure(len(metrics), 1, figsize=size, sharex=True, squeeze=False)
    for axis, metric in zip(axes[:, 0], metrics, strict=True):
        for i, ((dataset, _), models) in enumerate(cells.items()):
            for j, model in enumerate(MODELS):
                x = i + 0.12 * (j - 3)
                for row in models.get(model, {}).values():
                    if row[metric] is not None:
                        axis.plot(x - 0.02, row[metric], ls="", ms=4, **look(model))
                theirs = published(dataset, model, metric)
                hollow = {"ms": 4, "mfc": "none", "lw": 0.7, **look(model)}
                axis.errorbar(x + 0.02, theirs["mean"], theirs["std"], **hollow)
        scale = "log" if metric in LOWER_IS_BETTER else "linear"
        axis.set(ylabel=LABELS[metric], yscale=scale, xticks=range(len(cells)))
        plain_numbers(axis)
        axis.grid(axis="y", lw=0.3)
    names = [name.replace("Robot", "-\nRobot") for name in set_names(cells, metrics[0])]
    axes[-1, 0].set_xticklabels(names, fontsize=7)
    name_models(figure, hollow="published, mean ± std of four")
    return figure


def gains(cells):
    """A row a dataset: naive -> the mean of the non-contrastive models, in KNN and SVM."""
    if not cells:
        return None
    figure, axes = new_figure(1, 2, figsize=(10, 1.2 + 0.36 * len(cells)), sharey=True)
    others_look = {"color": "C0", "marker": "s"}
    for axis, metric in zip(axes, ("knn", "svm"), strict=True):
        for i, ((dataset, _), models) in enumerate(cells.items()):
            ours = {}
            theirs = {}
            for model, runs in models.items():
                ours[model] = mean(runs, metric)[0]
                theirs[model] = published(dataset, model, metric)["mean"]
            for y, values, fill in ((-i + 0.15, ours, {}), (-i - 0.15, theirs, {"mfc": "w"})):
                naive = values.pop(NAIVE)
                others = statistics.mean(values.values())
                axis.plot([naive, others], [y, y], color="0.7", lw=2, zorder=1)
                axis.plot(naive, y, ls="", ms=6, **look(NAIVE), **fill)
                axis.plot(others, y, ls="", ms=6, **others_look, **fill)
        axis.set(xlabel=LABELS[metric], yticks=range(0, -len(cells), -1))
        axis.grid(axis="x", lw=0.3)
    axes[0].set_yticklabels(set_names(cells, "svm", separator=", "), fontsize=8)
    for who, style in (("naive", look(NAIVE)), ("non-contrastive", others_look)):
        axes[0].plot([], [], ls="", label=f"{who}, ours", **style)
        axes[0].plot([], [], ls="", label=f"{who}, published", mfc="w", **style)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4)
    return figure


def read_log(results, row):
    """The records of the log that results/logs/ keeps of a row's run."""
    with gzip.open(results / "logs" / log_name(row), "rt") as file:
        return [json.loads(line) for line in file]


def curves(results, cells, key, label):
    """A panel a dataset, a line a model: a value that its lowest seed logged at 3 steps or more.

    Figures 6.2, 6.7.
    """
    lines = {}  # {cell: {model: ([steps], [values])}}
    for cell, models in cells.items():
        for model, runs in models.items():
            logged = [r for r in read_log(results, runs[min(runs)]) if key in r]
            if len(logged) > 2:
                steps = [record["step"] for record in logged]
                values = [record[key] for record in logged]
                lines.setdefault(cell, {})[model] = (steps, values)
    if not lines:
        return None
    figure, axes = panels(len(lines))
    for axis, ((dataset, schedule), models) in zip(axes, lines.items(), strict=True):
        for model, (steps, values) in models.items():
            axis.plot(steps, values, lw=1, ms=3, markevery=0.2, **look(model))
        axis.set(title=f"{dataset}, {without_precision(schedule)}", yscale="log")
        plain_numbers(axis)
        axis.set(xlabel="optimiser step", ylabel=label)
    drawn = set().union(*lines.values())
    name_models(figure, [model for model in MODELS if model in drawn])
    return figure


def against(cells, x_of, x_metric, y_metric, with_published=True):
    """A panel a dataset, a point a run: a metric over another value of it, a line fitted to ours.

    x_of(row): the value, None where there is none. Figures 6.8, 6.12, 6.13.
    """
    found = {}  # {cell: [(x, y, model)]}
    drawn = set()
    for cell, model, row in runs_of(cells):
        x, y = x_of(row), row[y_metric]
        if x is not None and y is not None:
            found.setdefault(cell, []).append((x, y, model))
            drawn.add(model)
    if not found:
        return None
    figure, axes = panels(len(found))
    for axis, ((dataset, schedule), points) in zip(axes, found.items(), strict=True):
        for x, y, model in points:
            axis.plot(x, y, ls="", ms=5, **look(model))
        if with_published:
            for model in MODELS:
                x = published(dataset, model, x_metric)["mean"]
                y = published(dataset, model, y_metric)["mean"]
                axis.plot(x, y, ls="", ms=5, mfc="none", **look(model))
        if len(points) >= 8:  # fewer make no line
            xs = np.array([x for x, _, _ in points])
            ys = np.array([y for _, y, _ in points])
            ends = np.array([xs.min(), xs.max()])
            axis.plot(ends, np.polyval(np.polyfit(xs, ys, 1), ends), color="0.6", lw=1)
        axis.set(title=f"{dataset}, {without_precision(schedule)}")
        axis.set(xlabel=LABELS[x_metric], ylabel=LABELS[y_metric])
        axis.locator_params(axis="x", nbins=5)
    shown = [model for model in MODELS if with_published or model in drawn]
    name_models(figure, shown, "published, mean of four" if with_published else None)
    return figure


def final_ssl(results, row):
    """The SSL loss that the log of a run ends with.

    None where looks at the test split left no room in the thinned log.
    """
    losses = [record["ssl"] for record in read_log(results, row) if "ssl" in record]
    return statistics.median(losses[-10:]) if losses else None  # a last, small batch is no measure


def zeta(swept):
    """The metrics of stage 1 over ζ, a column a dataset and its settings. Figures 6.22 to 6.24."""
    if not swept:
        return None
    columns = list(dict.fromkeys((dataset, others) for dataset, _, _, others in swept))
    size = (1.5 + 2.4 * len(columns), 6)
    figure, axes = new_figure(3, len(columns), figsize=size, sharex=True, squeeze=False)
    for (dataset, method, augmentation, others), runs_at in swept.items():
        column = columns.index((dataset, others))
        weights = sorted(weight for name, weight in runs_at if name == "zeta")
        for row, metric in enumerate(("recon", "knn", "svm")):
            means = [mean(runs_at["zeta", weight], metric)[0] for weight in weights]
            axes[row, column].plot(weights, means, ms=4, **look((method, augmentation)))
            axes[row, 0].set(ylabel=LABELS[metric])
        axes[0, column].set(title=f"{dataset}, {without_precision(stage1_words(others))}")
        axes[2, column].set(xlabel="ζ")
    name_models(figure, [model for model in MODELS if model in {who[1:3] for who in swept}])
    return figure


def costs(cells):
    """Minutes of stage 1 by model, and parameters by method. Figure 6.25."""
    if not cells:
        return None
    figure, (left, right) = new_figure(1, 2, figsize=(10, 3.4))
    for _, model, row in runs_of(cells):
        left.plot(MODELS.index(model), row["seconds_stage1"] / 60, ls="", ms=4, **look(model))
    left.set(title="Stage 1, a point a run of any dataset", ylabel="minutes", yscale="log")
    plain_numbers(left)
    left.set_xticks(range(len(MODELS)), map(words, MODELS), rotation=30)
    for method in COLOURS:
        augmentation = "none" if method == "naive" else "warp"
        built = NCVQVAE(Config(method=method, augmentation=augmentation), 128)
        count = sum(parameter.numel() for parameter in built.parameters()) / 1e6
        right.bar(method, count, color=COLOURS[method])
        right.annotate(f"{count:.1f}", (method, count), ha="center", va="bottom")
    right.set(title="Parameters in training, thesis' settings, length 128", ylabel="millions")
    return figure


def views(dataset):
    """One series, grey, and two draws of every augmentation. Figures 5.2 to 5.4."""
    figure, axes = panels(len(AUGMENTATIONS), sharey=True)
    heading = f"A series of {dataset.name}, grey, and two views of it by each augmentation"
    figure.suptitle(heading, x=0.02, ha="left")
    generator = torch.Generator().manual_seed(0)
    x = dataset.x_train[:1]  # (1, L)
    for axis, name in zip(axes, AUGMENTATIONS, strict=True):
        axis.plot(x[0], color="0.6", lw=2)
        for _ in range(2):
            axis.plot(augment(x, name, generator)[0], lw=0.8)
        axis.set(title=name, xlabel="time step")
    return figure


def draw_all(results):
    """Every figure across runs into results/figures, of results/runs.csv and the logs beside it.

    Those without a run to draw are left out, and named.
    """
    rows = read_rows(results / "runs.csv")
    cells = of_preset(grid(rows), "fast")
    by_thesis = of_preset(grid(rows), "thesis")
    drawn = {
        "gains": gains(cells),
        "views": views(load_dataset("toy")),
        "costs": costs(cells),
        "recon": scores(cells, ["recon", "recon_last_batch"]),
        "probes": scores(cells, ["knn", "svm"]),
        "sample_metrics": scores(cells, ["fid", "is", "cas_thesis"]),
        "training": curves(results, by_thesis, "val_recon", "recon of the test split"),
        "knn_is": against(cells, lambda row: row["is"], "is", "knn"),
        "knn_fid": against(cells, lambda row: row["fid"], "fid", "knn"),
    }
    for method in ("barlow", "vibcreg"):
        of_method = {}
        for cell, models in cells.items():
            of_method[cell] = {model: runs for model, runs in models.items() if model[0] == method}
        drawn[f"ssl_{method}"] = curves(results, of_method, "ssl", "SSL loss")
        drawn[f"knn_ssl_{method}"] = against(
            of_method, lambda row: final_ssl(results, row), "ssl", "knn", with_published=False
        )
    swept = {}
    for who, runs_at in ablation_cells(rows).items():
        if {("zeta", weight) for weight in SWEEPS["zeta"]} <= set(runs_at):
            swept[who] = runs_at
    drawn["zeta"] = zeta(swept)
    missing = [name for name, figure in drawn.items() if figure is None]
    if missing:
        warn(f"{results}: no runs in runs.csv to draw {', '.join(missing)} from")
    for name, figure in drawn.items():
        if figure is None:
            continue
        room = 0.7 / figure.get_figheight() if figure.legends else 0
        figure.tight_layout(rect=(0, room, 1, 1))
        path = results / "figures" / f"{name}.png"
        write_atomic(path, lambda file, figure=figure: figure.savefig(file, format="png"))


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, help="a folder that benchmarks.tables --export made")
    results = parser.parse_args().results
    require_file(results / "runs.csv", "not there; python -m benchmarks.tables --export makes it")
    with house_style():
        draw_all(results)


if __name__ == "__main__":
    run_command(main)
