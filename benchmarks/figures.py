"""The figures of a run (thesis §6.1.2, §6.2.5), which evaluate.py asks for.

Matplotlib is imported here alone, once something is drawn.
"""
import os
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from data import write_atomic
from ncvqvae import encode_split, read_log


def pyplot():
    """matplotlib.pyplot without a display, in the house's style."""
    os.environ["MPLBACKEND"] = "Agg"  # a notebook's own, inherited, fails in the import below
    import matplotlib
    matplotlib.use("Agg")  # where it had been imported before
    import matplotlib.pyplot as plt
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9,
                         "savefig.dpi": 130, "axes.titlesize": 9, "legend.frameon": False,
                         "text.parse_math": False})  # a class may be called $0_$50
    return plt


def as_it_is(label):
    """A label that a legend shows: matplotlib hides one that starts with _."""
    text = str(label)
    return "\u200b" + text if text.startswith("_") else text  # a space of no width


def draw_figures(run_dir, dataset, model, test, generated, conditional, labels):
    """All figures of a run into run_dir/figures; the first three where generated is None.

    A figure that fails is a warning: what a run has measured does not hang on a drawing.
    """
    run_dir = Path(run_dir)
    drawings = {"reconstructions": lambda plt: reconstructions(plt, dataset, test["x_hat"]),
                "latents": lambda plt: latents(plt, dataset, test["pooled"]),
                "losses": lambda plt: losses(plt, read_log(run_dir))}
    if generated is not None:
        drawings |= {
            "samples": lambda plt: samples(plt, dataset, generated, conditional, labels),
            "generated": lambda plt: real_and_generated(plt, dataset, model, test["pooled"],
                                                        generated)}
    for name, draw in drawings.items():
        path = run_dir / "figures" / f"{name}.png"
        try:
            plt = pyplot()
            figure, heading = draw(plt)
            figure.suptitle(f"{heading}: {dataset.name}, {run_dir.parent.name}", x=0.02, ha="left")
            figure.tight_layout()
            write_atomic(path, lambda file: figure.savefig(file, format="png"))
            plt.close(figure)
        except Exception as error:  # a library's own: it must not cost the run
            reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
            print(f"WARNING: {path}: not drawn ({reason}); metrics.json has all that was measured",
                  file=sys.stderr)


def some(n, most):
    """A seeded choice of up to `most` of n rows."""
    return np.random.default_rng(0).permutation(n)[:most]


def reconstructions(plt, dataset, x_hat):
    """Six test series and what stage 1 makes of them."""
    x_test, units = dataset.x_test, dataset.to_original
    figure, axes = plt.subplots(2, 3, figsize=(10, 4), sharex=True)
    for axis, i in zip(axes.flat, np.linspace(0, len(x_test) - 1, 6).astype(int)):
        axis.plot(units(x_test[i]), color="0.6", lw=1.8, label="test series")
        axis.plot(units(x_hat[i]), color="C3", lw=1, label="reconstruction")
        axis.set(title=f"test series {i + 1}", xlabel="time step" if axis in axes[1] else "")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper right", ncol=2)
    return figure, "Reconstructions"


def latents(plt, dataset, pooled):
    """PCA and t-SNE of the test split's z_q, by class (thesis Figures 6.4 to 6.6)."""
    rows = some(len(pooled), 1000)
    z = pooled.numpy()[rows]
    y = dataset.y_test.numpy()[rows] if dataset.classes else None
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2))
    for axis, name, points in zip(axes, ("PCA", "t-SNE"), (pca(z), tsne(z))):
        scatter_classes(axis, points, y, dataset.classes)
        axis.set(title=f"{name} of z_q, {len(z)} series", xlabel=f"{name} 1", ylabel=f"{name} 2")
    if 0 < len(dataset.classes) <= 12:
        axes[1].legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure, "Discrete latent representations"


def losses(plt, log):
    """The losses of each stage, those of the test split bold (thesis Figures 6.2, 6.11)."""
    records = [r for r in log if "step" in r]
    stages = [s for s in ("stage1", "stage2", "cas") if any(r["stage"] == s for r in records)]
    figure, axes = plt.subplots(1, len(stages), figsize=(4.8 * len(stages), 3.6), squeeze=False)
    for axis, stage in zip(axes[0], stages):
        mine = [r for r in records if r["stage"] == stage]
        for key in dict.fromkeys(k for r in mine for k in r):
            if key in ("stage", "step", "epoch"):
                continue
            label, style = key, {}
            if key.startswith("val_"):
                label = f"{key[4:]} of the test split"
                style = dict(color="k", lw=2, marker="o", ms=3)
            axis.plot(*zip(*((r["step"], r[key]) for r in mine if key in r)), label=label, **style)
        axis.set(title=stage, xlabel="optimiser step", ylabel="loss", yscale="log")
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure, "Losses in training"


def samples(plt, dataset, generated, conditional, labels):
    """A column a class, the last one of any class; up to 50 series each (Figures 6.14 to 6.20)."""
    shown = [*range(min(6, len(dataset.classes))), None]
    rows = (("train", dataset.x_train, dataset.y_train, dataset.x_train),
            ("test", dataset.x_test, dataset.y_test, dataset.x_test),
            ("samples", conditional, labels, generated))
    figure, axes = plt.subplots(3, len(shown), figsize=(2.3 * max(3, len(shown)), 6), sharex=True,
                                sharey="col", squeeze=False)
    for line, (who, series, y, of_any) in zip(axes, rows):
        for axis, k in zip(line, shown):
            lines = of_any if k is None else series[y == k]
            lines = dataset.to_original(lines[some(len(lines), 50)])
            name = "any class" if k is None else f"class {dataset.classes[k]}"
            axis.plot(lines.T, lw=0.5, alpha=0.4, color="C0" if who == "samples" else "0.35")
            axis.set_title(f"{who}, {name} ({len(lines)})")
            axis.set_xlabel("time step" if who == "samples" else "")
    return figure, "Real series and samples"


def real_and_generated(plt, dataset, model, pooled, generated):
    """Both as series and as z_q; the PCA is of the real (Figures 6.16, 6.17, 6.21)."""
    rows = some(len(generated), 500)
    made = encode_split(model, generated[rows])["pooled"]
    figure, axes = plt.subplots(2, 2, figsize=(9, 7.5))
    for line, what, real, fake in zip(axes, ("series", "z_q"),
                                      (dataset.x_test[rows], pooled[rows]),
                                      (generated[rows], made)):
        both = torch.cat([real, fake]).numpy()
        for axis, name, points in zip(line, ("PCA", "t-SNE"), (pca(both, real), tsne(both))):
            axis.scatter(*points[:len(rows)].T, s=7, alpha=0.6, lw=0, color="0.6", label="test")
            axis.scatter(*points[len(rows):].T, s=7, alpha=0.6, lw=0, label="generated")
            axis.set(title=f"{name} of {what}", xlabel=f"{name} 1", ylabel=f"{name} 2")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper right", ncol=2, markerscale=2)
    return figure, f"{len(rows)} real and generated series"


def pca(z, fitted_on=None):
    """First two principal components of z (n, D) -> (n, 2), fitted on z or on other rows."""
    return PCA(2, random_state=0).fit(z if fitted_on is None else fitted_on).transform(z)


def tsne(z):
    """t-SNE of z (n, D), NumPy -> (n, 2)."""
    start = "pca" if np.ptp(z, axis=0).max() > 0 else "random"  # all alike: no direction
    return TSNE(perplexity=min(30, (len(z) - 1) / 3), init=start, random_state=0).fit_transform(z)


def scatter_classes(axis, points, y, classes):
    """Points (n, 2) coloured by class index y (n,), grey where y is None."""
    few = len(classes) <= 10
    colours = pyplot().get_cmap("tab10" if few else "nipy_spectral")
    for k, label in enumerate(classes if y is not None else [None]):
        colour = "0.4" if y is None else colours(k if few else k / (len(classes) - 1))
        chosen = points if y is None else points[y == k]
        axis.scatter(*chosen.T, s=7, alpha=0.7, lw=0, color=[colour], label=as_it_is(label))
