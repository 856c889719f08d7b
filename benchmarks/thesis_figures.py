"""The thesis' figures across runs: published values hollow, every seed of ours filled.

    python benchmarks/across.py results/  # figures/*.png there, from runs.csv and logs/ there

A dataset is shown under the one schedule that most of its models ran by.
"""
import gzip, json, math, statistics, sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import tables
from benchmarks.figures import pyplot
from benchmarks.tables import MODELS, NAIVE, PUBLISHED
from data import AUGMENTATIONS, Config, augment, load_dataset, run_command, write_atomic
from ncvqvae import NCVQVAE

COLOURS = {"naive": "k", "barlow": "C1", "vibcreg": "C0"}
MARKERS = {"none": "o", "warp": "^", "slice": "s", "gauss": "D"}
LABELS = {"recon": "recon", "recon_train_mode_last_batch": "recon as published\n(ledger 12, 13)",
          "knn": "KNN accuracy", "svm": "SVM accuracy", "fid": "FID", "is": "IS", "cas": "CAS",
          "ssl": "SSL loss"}


def look(model):
    return dict(color=COLOURS[model[0]], marker=MARKERS[model[1]])


def words(model):
    return " ".join(model).replace(" none", "")


def name_models(figure, models=MODELS, published=True):
    """One legend for all panels: a model a marker, ours filled, published hollow."""
    def marker(label, **style):
        return pyplot().Line2D([], [], ls="", ms=5, label=label, **style)
    handles = [marker(words(m), **look(m)) for m in models]
    if published:
        handles += [marker("ours, a seed each", color="0.5", marker="o"),
                    marker("published, mean ± std of four", color="0.5", marker="o", mfc="none")]
    figure.legend(handles=handles, loc="lower center", ncol=min(5, len(handles)))


def title(cell, models, metric):
    """Dataset, schedule, and of how many seeds its models have the metric."""
    seeds = sorted(tables.mean(runs, metric)[1] for runs in models.values())
    return "{}\n{}, n {}".format(*cell, "–".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))))


def scores(cells, metrics):
    """A panel a metric, a group a dataset: each seed of each model beside the published mean.

    Figures 6.1, 6.3, 6.9, 6.10.
    """
    figure, axes = pyplot().subplots(len(metrics), 1, figsize=(10, 1 + 2.3 * len(metrics)),
                                     sharex=True, squeeze=False)
    for axis, metric in zip(axes[:, 0], metrics):
        for i, ((name, _), models) in enumerate(cells.items()):
            for j, model in enumerate(MODELS):
                x, theirs = i + 0.12 * (j - 3), PUBLISHED[(name, *model, metric)]
                ours = [row[metric] for row in models.get(model, {}).values()]
                axis.plot([x - 0.02] * len(ours), np.array(ours, float), ls="", ms=4, **look(model))
                axis.errorbar(x + 0.02, theirs["mean"], theirs["std"], ms=4, mfc="none", lw=0.7,
                              **look(model))
        scale = "log" if metric in tables.LOWER_IS_BETTER else "linear"
        axis.set(ylabel=LABELS[metric], yscale=scale, xticks=range(len(cells)))
        axis.grid(axis="y", lw=0.3)
    names = [title(*cell, metrics[-1]).replace("Robot", "-\nRobot") for cell in cells.items()]
    axes[-1, 0].set_xticklabels(names, fontsize=7)
    name_models(figure)
    return figure


def gains(cells):
    """A row a dataset: naive -> the mean of the non-contrastive models, in KNN and SVM."""
    figure, axes = pyplot().subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, metric in zip(axes, ("knn", "svm")):
        for i, ((name, _), models) in enumerate(cells.items()):
            ours = {m: tables.mean(runs, metric)[0] for m, runs in models.items()}
            theirs = {m: PUBLISHED[(name, *m, metric)]["mean"] for m in models}
            for y, values, filled in ((-i + 0.15, ours, {}), (-i - 0.15, theirs, dict(mfc="w"))):
                naive = values.pop(NAIVE)
                others = statistics.mean(values.values())
                axis.plot([naive, others], [y, y], color="0.7", lw=2, zorder=1)
                axis.plot(naive, y, ls="", ms=6, **look(NAIVE), **filled)
                axis.plot(others, y, ls="", ms=6, color="C0", marker="s", **filled)
        axis.set(xlabel=LABELS[metric], yticks=range(0, -len(cells), -1))
        axis.grid(axis="x", lw=0.3)
    axes[0].set_yticklabels([title(*cell, "svm") for cell in cells.items()], fontsize=7)
    for who, style in (("naive", look(NAIVE)), ("non-contrastive", dict(color="C0", marker="s"))):
        axes[0].plot([], [], ls="", label=f"{who}, ours", **style)
        axes[0].plot([], [], ls="", label=f"{who}, published", mfc="w", **style)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncol=4)
    return figure


def read_log(results, row):
    with gzip.open(results / "logs" / tables.log_name(row), "rt") as file:
        return [*map(json.loads, file)]


def curves(results, cells, key, label, methods=COLOURS):
    """A panel a dataset, a line a model: a value that the log of its lowest seed has at three steps
    or more. Figures 6.2, 6.7."""
    lines = {}
    for cell, models in cells.items():
        for model in (m for m in models if m[0] in methods):
            runs = models[model]
            points = [(r["step"], r[key]) for r in read_log(results, runs[min(runs)]) if key in r]
            if len(points) > 2:
                lines.setdefault(cell, {})[model] = points
    figure, axes = panels(len(lines))
    for axis, ((name, how), models) in zip(axes, lines.items()):
        for model, points in models.items():
            axis.plot(*zip(*points), lw=1, ms=3, markevery=0.2, **look(model))
        axis.set(title=f"{name}, {how}", xlabel="optimiser step", ylabel=label, yscale="log")
    name_models(figure, [m for m in MODELS if m[0] in methods], published=False)
    return figure


def against(cells, x_of, x_label, y, published=True):
    """A panel a dataset, a point a run: metric y over another value of it, a line fitted to ours.

    Figures 6.8, 6.12, 6.13.
    """
    found = {}
    for cell, models in cells.items():
        for model, row in ((model, row) for model, runs in models.items() for row in runs.values()):
            x = x_of(row)
            if x is not None and row[y] is not None:
                found.setdefault(cell, []).append((x, row[y], model))
    figure, axes = panels(len(found))
    for axis, ((name, how), points) in zip(axes, found.items()):
        for a, b, model in points:
            axis.plot(a, b, ls="", ms=5, **look(model))
        if published:
            for model in MODELS:
                a, b = (PUBLISHED[(name, *model, k)]["mean"] for k in (x_label, y))
                axis.plot(a, b, ls="", ms=5, mfc="none", **look(model))
        if len(points) > 2:
            a, b = np.array([p[:2] for p in points]).T
            ends = np.array([a.min(), a.max()])
            axis.plot(ends, np.polyval(np.polyfit(a, b, 1), ends), color="0.6", lw=1)
        axis.set(title=f"{name}, {how}", xlabel=LABELS[x_label], ylabel=LABELS[y])
        axis.locator_params(axis="x", nbins=5)
    drawn = {model for points in found.values() for _, _, model in points}
    name_models(figure, [m for m in MODELS if published or m in drawn], published)
    return figure


def final_ssl(results, row, method):
    """The SSL loss that the log of a run of this method ends with; None for other methods and where
    looks at the test split left no room for it in the thinned log."""
    if row["method"] != method:
        return None
    losses = [r["ssl"] for r in read_log(results, row) if "ssl" in r]
    return statistics.median(losses[-10:]) if losses else None  # a last, small batch is no measure


def weights(found):
    """The metrics of stage 1 over ζ, a line a model and dataset. Figures 6.22 to 6.24."""
    figure, axes = pyplot().subplots(1, 3, figsize=(10, 3.6))
    for (dataset, method, augmentation, _), model in found.items():
        swept = sorted(weight for name, weight in model if name == "zeta")
        for axis, metric in zip(axes, ("recon", "knn", "svm")):
            axis.plot(swept, [tables.mean(model["zeta", w], metric)[0] for w in swept],
                      label=f"{dataset}, {method} {augmentation}", **look((method, augmentation)))
            axis.set(xlabel="ζ", ylabel=LABELS[metric])
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def costs(cells):
    """Minutes of stage 1 by model, and parameters by method. Figure 6.25."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 3.4))
    for i, model in enumerate(MODELS):
        for models in cells.values():
            for row in models.get(model, {}).values():
                left.plot(i, row["seconds_stage1"] / 60, ls="", ms=4, **look(model))
    left.set(ylabel="minutes", yscale="log", xticks=range(len(MODELS)),
             title="Stage 1, a point a run of any dataset")
    left.set_xticklabels(map(words, MODELS), rotation=30)
    for method in COLOURS:
        augmentation = "none" if method == "naive" else "warp"
        built = NCVQVAE(Config(method=method, augmentation=augmentation), 128)
        count = sum(p.numel() for p in built.parameters()) / 1e6
        right.bar(method, count, color=COLOURS[method])
        right.annotate(f"{count:.1f}", (method, count), ha="center", va="bottom")
    right.set(ylabel="millions", title="Parameters in training, length 128")
    return figure


def views(dataset):
    """One series, grey, and two draws of every augmentation. Figures 5.2 to 5.4."""
    figure, axes = panels(len(AUGMENTATIONS), sharey=True)
    figure.suptitle(f"A series of {dataset.name}, grey, and two views of it by each augmentation",
                    x=0.02, ha="left")
    x, generator = dataset.x_train[:1], torch.Generator().manual_seed(0)
    for axis, name in zip(axes, AUGMENTATIONS):
        axis.plot(x[0], color="0.6", lw=2)
        axis.plot(torch.cat([augment(x, name, generator) for _ in range(2)]).T, lw=0.8)
        axis.set(title=name, xlabel="time step")
    return figure


def panels(count, **shared):
    """A figure with `count` axes in rows of three, room for a legend below."""
    rows = math.ceil(count / 3)
    figure, axes = pyplot().subplots(rows, 3, figsize=(10, 0.8 + 2.7 * rows), squeeze=False,
                                     **shared)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, axes.flat[:count]


def across(results):
    """Every cross-run figure into results/figures, from results/runs.csv and the logs beside it."""
    rows = tables.read_rows(results / "runs.csv")
    cells, found = tables.one_schedule(tables.grid(rows)), tables.ablation_cells(rows)
    swept = {k: model for k, model in found.items() if sum(name == "zeta" for name, _ in model) > 1}
    drawn = dict(gains=gains(cells), views=views(load_dataset("toy")), costs=costs(cells),
                 recon=scores(cells, ["recon", "recon_train_mode_last_batch"]),
                 probes=scores(cells, ["knn", "svm"]), samples=scores(cells, ["fid", "is", "cas"]),
                 training=curves(results, cells, "val_recon", "recon of the test split"),
                 knn_is=against(cells, lambda row: row["is"], "is", "knn"),
                 knn_fid=against(cells, lambda row: row["fid"], "fid", "knn"))
    for method in ("barlow", "vibcreg"):
        drawn[f"ssl_{method}"] = curves(results, cells, "ssl", "SSL loss", [method])
        drawn[f"knn_ssl_{method}"] = against(cells, lambda row: final_ssl(results, row, method),
                                             "ssl", "knn", published=False)
    if swept:
        drawn["zeta"] = weights(swept)
    for name, figure in drawn.items():
        room = 0.7 / figure.get_figheight() if figure.legends else 0
        figure.tight_layout(rect=(0, room, 1, 1))
        path = results / "figures" / f"{name}.png"
        write_atomic(path, lambda file: figure.savefig(file, format="png"))


if __name__ == "__main__":
    run_command(lambda: across(Path(sys.argv[1])))
