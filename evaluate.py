"""Chapter 3: is it any good? Probes, IS, FID, CAS, figures (thesis §2.7, §5.1.2, §6).

    test split -> stage 1 -> z_q, averaged over H and W -> KNN, SVM               (representations)
    prior -> unconditional series -> FCN features -> FID; its softmax -> IS               (samples)
    prior -> class-conditional series -> a fresh FCN -> accuracy on the real test split: CAS

    python evaluate.py run     runs/Symbols/vibcreg-slice/seed1      # metrics.json, samples.npz, figures/
    python evaluate.py samples x.npz --dataset FordA                 # scores any model's series
    python evaluate.py compare runs/Symbols/*/seed*                  # one row a run

Letters: n series, L length, D code dimension, K classes or codes, P features of the FCN (128).
"""
import hashlib, json, math, os, sys, time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVC

from data import (InputError, Parser, add_flags, as_series, check_same, hold, load_checkpoint,
                  load_dataset, make_config, pick_device, read_arrays, read_config, read_json,
                  reason, run_command, write_atomic, write_json)
from ncvqvae import Training, encode_split, load_stage1, read_log
from prior import load_stage2, prior_labels, prior_loss, sample, save_samples

METRICS = ("recon", "recon_time", "recon_timefreq", "recon_last_batch", "knn", "svm", "codes_used",
           "perplexity", "prior_loss", "fid", "fid_floor", "fid_recon", "is", "is_real", "cas",
           "nn_ratio", "fcn_accuracy", "n_train", "n_test", "n_generated", "length", "n_classes",
           "seconds_stage1", "seconds_stage2", "seconds_evaluate", "complete_data")


# ---- Stage 1: probes and codes (thesis §6.1) ----

def probe(z_train, y_train, z_test, y_test):
    """Accuracy of KNN (k = 5) and a linear SVM (C = 1) on the test split. z (n, D), y (n,). §5.1.2.

    Features are scaled to (-1, 1) by the train split's extremes, as the program does (ledger 31).
    """
    classifiers = KNeighborsClassifier(min(5, len(z_train))), SVC(kernel="linear", C=1.0)
    scores = [make_pipeline(MinMaxScaler((-1, 1)), classifier).fit(z_train, y_train).score(z_test, y_test)
              for classifier in classifiers]
    return float(scores[0]), float(scores[1])


def code_usage(tokens, n_codes):
    """Codes in use and the perplexity exp(entropy) of their shares. tokens (n, N) -> int, float."""
    p = torch.bincount(tokens.flatten(), minlength=n_codes).double()
    p = p / p.sum()
    return int((p > 0).sum()), float(torch.exp(-torch.special.xlogy(p, p).sum()))


# ---- The classifier behind IS, FID and CAS (Wang et al. 2017; thesis §2.7.1, ledger 15) ----

class FCN(nn.Module):
    """Fully convolutional classifier, 128-256-128 filters of width 8, 5, 3. x (B, L) -> logits (B, K)."""

    def __init__(self, n_classes, precision="float32"):
        super().__init__()
        self.precision = precision
        # A 1 x k Conv2d in channels_last computes what Conv1d does, 1.4 times faster on a CPU.
        self.convs = nn.Sequential(*[
            nn.Sequential(nn.Conv2d(a, b, (1, k), padding=pad), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
            for a, b, k, pad in ((1, 128, 8, 0), (128, 256, 5, "same"), (256, 128, 3, "same"))])
        self.head = nn.Linear(128, n_classes)

    def features(self, x):
        """Average-pooled features (B, L) -> (B, P) float32, what FID compares."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            # "same" for an even width: 3 before, 4 behind (ledger 30), of which torch would warn.
            h = self.convs(F.pad(x, (3, 4))[:, None, None])              # (B, P, 1, L)
        return h.float().mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))


def fcn_identity(x, y, epochs, config, seed):
    """What a classifier depends on, as plain values."""
    digest = hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()
    return dict(epochs=epochs, batch=config.fcn_batch, lr=config.fcn_lr, seed=seed, sha256=digest,
                weight_decay=config.fcn_weight_decay, precision=config.precision)


def train_fcn(x, y, n_classes, epochs, config, folder, name, seed, device):
    """Train an FCN on x (n, L), y (n,) in 0..K-1. -> FCN in eval mode, its Training (not finished)."""
    torch.manual_seed(seed)
    model = FCN(n_classes, config.precision).to(device)
    if device.type != "mps":
        model.to(memory_format=torch.channels_last)
    training = Training(folder, name, model, fcn_identity(x, y, epochs, config, seed), n=len(x), steps=0,
                        batch=config.fcn_batch, epochs=epochs, lr=config.fcn_lr, seed=seed,
                        weight_decay=config.fcn_weight_decay)
    x, y = x.to(device), y.to(device)
    model.train()
    for rows in training:
        logits = model(x[rows])                                          # (B, K)
        loss = F.cross_entropy(logits, y[rows])
        training.update(loss, accuracy=(logits.argmax(1) == y[rows]).float().mean())
    return model.eval().requires_grad_(False), training


def dataset_fcn(folder, dataset, config, device):
    """The dataset's classifier from folder, trained first where missing. Runs share it: others wait."""
    data = dataset.x_train, dataset.y_train
    identity = fcn_identity(*data, config.fcn_epochs, config, 0)
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
    path, n_classes = Path(folder) / f"fcn-{digest}.pt", len(dataset.classes)
    with hold(folder, wait=True):                # a classifier of other settings is another file
        if not path.exists():
            _, training = train_fcn(*data, n_classes, config.fcn_epochs, config, folder, path.stem, 0, device)
            training.finish(path)
    checkpoint, model = load_checkpoint(path), FCN(n_classes, config.precision)
    check_same(path, checkpoint.get("identity"), identity)
    try:
        model.load_state_dict(checkpoint["state"])
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{path}: no classifier of this program ({reason(error)}); remove it") from None
    return model.to(device).eval().requires_grad_(False)


@torch.no_grad()
def classify(fcn, x, batch=256):
    """Features (n, P) and class probabilities (n, K) of series x (n, L), float64 NumPy."""
    device = next(fcn.parameters()).device
    features = torch.cat([fcn.features(part.to(device)) for part in x.split(batch)])
    return features.cpu().double().numpy(), fcn.head(features).cpu().double().softmax(1).numpy()


# ---- Sample metrics (thesis §2.7.1) ----

def frechet_distance(f1, f2):
    """Fréchet distance of Gaussians fitted to features f1 (n1, P), f2 (n2, P), float64. Eq. 2.21.

    Tr (S1 S2)^1/2 is the sum of the roots of the eigenvalues of S1^1/2 S2 S1^1/2, which is
    symmetric: no scipy, and singular covariances are no trouble. ValueError for under 2 rows.
    """
    f1, f2 = np.asarray(f1, dtype=np.float64), np.asarray(f2, dtype=np.float64)
    if min(len(f1), len(f2)) < 2:
        raise ValueError("frechet_distance: a covariance needs at least 2 rows")
    s1, s2 = (np.atleast_2d(np.cov(f, rowvar=False)) for f in (f1, f2))  # P = 1 comes as a scalar
    values, vectors = np.linalg.eigh(s1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T               # S1^1/2
    cross = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root).clip(0)).sum()  # Tr (S1 S2)^1/2
    return float(((f1.mean(0) - f2.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross)


def inception_score(p, splits=10, seed=0):
    """exp(E KL(p(y|x) || p(y))), the mean over shuffled splits. p (n, K) -> float. Eq. 2.19."""
    p = np.asarray(p, dtype=np.float64)
    parts = np.array_split(p[np.random.default_rng(seed).permutation(len(p))], min(splits, len(p)))
    scores = []
    for part in parts:
        marginal = part.mean(0, keepdims=True)                           # p(y)
        ratio = np.divide(part, marginal, out=np.ones_like(part), where=part > 0)    # 0 log 0 = 0
        scores.append(np.exp((part * np.log(ratio)).sum(1).mean()))
    return float(np.mean(scores))


def classification_accuracy_score(x, y, x_test, y_test, n_classes, config, folder, seed, device):
    """CAS: accuracy on the real test split of an FCN trained on generated x (n, L), y (n,). §2.7.1."""
    fcn, _ = train_fcn(x, y, n_classes, config.cas_epochs, config, folder, "cas", seed, device)
    return accuracy(classify(fcn, x_test)[1], y_test)


def accuracy(p, y):
    """Share of rows of p (n, K) whose largest entry is at y (n,)."""
    return float((p.argmax(1) == y.numpy()).mean())


def nearest_neighbour_ratio(generated, train, test):
    """Mean distance generated -> nearest train over mean distance test -> nearest train, all (n, L).

    Under 1 hints at memorising (§6.4 "Overfitting problem"). None where every test series is a train
    series.
    """
    def mean_nearest(a):                         # differences, not products: those lose small distances
        return torch.cat([torch.cdist(part, train, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
                          for part in a.split(256)]).double().mean().item()
    real = mean_nearest(test)
    return mean_nearest(generated) / real if real > 0 else None


def class_proportions(y, n_classes, total):
    """Labels (total,) in the class proportions of y, at least one per class (total >= n_classes)."""
    share = torch.bincount(y, minlength=n_classes).double() * total / len(y)
    counts = share.floor().clamp_min(1)
    while counts.sum() < total:                  # largest remainders first
        counts[(share - counts).argmax()] += 1
    while counts.sum() > total:                  # small classes were rounded up to one
        counts[(share - counts).masked_fill(counts < 2, math.inf).argmin()] -= 1
    return torch.arange(n_classes).repeat_interleave(counts.long())


def score_samples(generated, conditional, labels, dataset, config, run_dir, seed, device, x_hat=None):
    """Every sample metric of standardised series. generated (n, L); conditional with labels, or None.

    x_hat: the reconstructed test split, for fid_recon. Keys as in metrics.json.
    """
    out = dict(nn_ratio=nearest_neighbour_ratio(generated, dataset.x_train, dataset.x_test))
    if out["nn_ratio"] is not None and out["nn_ratio"] < 0.999:
        print(f"WARNING: nn_ratio {out['nn_ratio']:.2f} < 1: samples lie nearer to the train split than "
              "the test split does; the prior memorises (thesis §6.4)", file=sys.stderr)
    if dataset.y_train is None:
        return out
    fcn = dataset_fcn(Path(run_dir).parent.parent, dataset, config, device)
    (real, p_real), (fake, p_fake) = classify(fcn, dataset.x_test), classify(fcn, generated)
    # A real train sample of the test split's size: what FID a perfect model could reach. Drawn with
    # replacement where the train split is the smaller one.
    n, m = len(dataset.x_train), len(dataset.x_test)
    rows = np.random.default_rng(0).choice(n, m, replace=n < m)
    out |= {"fcn_accuracy": accuracy(p_real, dataset.y_test), "fid": frechet_distance(fake, real),
            "fid_floor": frechet_distance(classify(fcn, dataset.x_train[rows])[0], real),
            "is": inception_score(p_fake), "is_real": inception_score(p_real)}
    if x_hat is not None:
        out["fid_recon"] = frechet_distance(classify(fcn, x_hat)[0], real)
    if conditional is not None:
        out["cas"] = classification_accuracy_score(conditional, labels, dataset.x_test, dataset.y_test,
                                                   len(dataset.classes), config, run_dir, seed, device)
    return out


# ---- A run ----

def evaluate_run(run_dir, config=None, device=None):
    """Write metrics.json, samples.npz and figures/ of a run folder. -> metrics, a dict.

    A finished evaluation of the same settings and data returns at once; of others, it is refused.
    """
    run_dir, config = Path(run_dir), config or read_config(run_dir)
    device, dataset, start = device or pick_device(config.precision), load_dataset(config.dataset), time.time()
    model, first = load_stage1(run_dir, device, config, dataset)
    path, m = run_dir / "metrics.json", dict.fromkeys(METRICS)
    if old := read_json(path):
        depends = config.behind("metrics" if config.stages == old.get("stages") == 2 else "stage1")
        check_same(path, {k: old.get("config", {}).get(k) for k in depends}, depends)
        check_same(path, {"sha256": old.get("sha256")}, {"sha256": dataset.sha256})
        if old.get("stages", 0) >= config.stages:            # a full one answers --stages 1 too
            print(f"{path}: finished before, with these settings and data", file=sys.stderr)
            return old
    n_classes, y_test = len(dataset.classes), dataset.y_test

    train, test = encode_split(model, dataset.x_train), encode_split(model, dataset.x_test)
    errors = test["errors"]                                              # (n, 2): of x, of u
    codes, perplexity = code_usage(test["tokens"], config.n_codes)
    m |= dict(recon=errors.sum(1).mean().item(), recon_time=errors[:, 0].mean().item(),
              recon_timefreq=errors[:, 1].mean().item(), codes_used=codes, perplexity=perplexity,
              # The published recon is that of the last mini-batch of 128 alone (ledger 13).
              recon_last_batch=errors.sum(1).split(128)[-1].mean().item(),
              n_train=len(dataset.x_train), n_test=len(dataset.x_test), length=dataset.length,
              n_classes=n_classes, seconds_stage1=first["seconds"], complete_data=dataset.complete)
    if n_classes:
        m["knn"], m["svm"] = probe(train["pooled"], dataset.y_train, test["pooled"], y_test)
    else:
        print(f"{dataset.name}: no labels, so KNN, SVM, IS, FID and CAS stay null", file=sys.stderr)

    generated = conditional = labels = None
    if config.stages == 2:
        prior, _, second = load_stage2(run_dir, device, config, dataset)
        m["seconds_stage2"] = second["seconds"]
        m["prior_loss"] = prior_loss(prior, test["tokens"].to(device),
                                     prior_labels(y_test, len(errors), prior.no_class, device))
        # One seed for each set of samples, so that one does not hang on the size of the other.
        seeds = (torch.Generator(device).manual_seed(1000 * config.seed + i) for i in range(2))
        unconditional = sample(prior, model, torch.full((max(len(errors), 256),), prior.no_class),
                               next(seeds), config)
        generated = kept = unconditional[:len(errors)]
        if n_classes:
            labels = class_proportions(dataset.y_train, n_classes, max(1000, len(dataset.x_train)))
            conditional = kept = sample(prior, model, labels, next(seeds), config)
        save_samples(run_dir / "samples.npz", kept, labels, dataset)
        m["n_generated"] = len(kept)
        m |= score_samples(generated, conditional, labels, dataset, config, run_dir, config.seed, device,
                           test["x_hat"])
    draw_figures(run_dir, dataset, model, test, generated, conditional, labels)
    m["seconds_evaluate"] = time.time() - start
    write_json(path, m | dict(stages=config.stages, config=config.behind("metrics"), sha256=dataset.sha256))
    (run_dir / "cas.resume.pt").unlink(missing_ok=True)
    return m


# ---- Figures of a run (thesis §6.1.2, §6.2.5) ----

def draw_figures(run_dir, dataset, model, test, generated, conditional, labels):
    """All figures of a run into run_dir/figures. The only place that needs matplotlib."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9,
                         "savefig.dpi": 130, "axes.titlesize": 10})
    folder, title = Path(run_dir) / "figures", f"{dataset.name}, {Path(run_dir).parent.name}"

    def save(figure, name, heading):
        figure.suptitle(f"{heading}: {title}", x=0.02, ha="left")
        figure.tight_layout()
        write_atomic(folder / f"{name}.png", lambda file: figure.savefig(file, format="png"))
        plt.close(figure)

    def some(n, most):                           # a seeded choice of rows
        return np.random.default_rng(0).permutation(n)[:most]

    figure, axes = plt.subplots(2, 3, figsize=(10, 4), sharex=True)
    for axis, i in zip(axes.flat, np.linspace(0, len(dataset.x_test) - 1, 6).astype(int)):
        axis.plot(dataset.to_original(dataset.x_test[i]), color="0.6", lw=1.8, label="test series")
        axis.plot(dataset.to_original(test["x_hat"][i]), color="C3", lw=1, label="reconstruction")
        axis.set(title=f"test series {i + 1}", xlabel="time step" if axis in axes[-1] else "")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="upper right", ncol=2, frameon=False)
    save(figure, "reconstructions", "Reconstructions")

    rows = some(len(dataset.x_test), 1000)       # thesis Figures 6.4 to 6.6
    z = test["pooled"].numpy()[rows]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2))
    for axis, name, points in zip(axes, ("PCA", "t-SNE"), (pca(z), tsne(z))):
        scatter_classes(axis, points, None if dataset.y_test is None else dataset.y_test.numpy()[rows],
                        dataset.classes)
        axis.set(title=f"{name} of z_q, {len(z)} test series", xlabel=f"{name} 1", ylabel=f"{name} 2")
    if 0 < len(dataset.classes) <= 12:
        axes[1].legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    save(figure, "latents", "Discrete latent representations")

    records = [r for r in read_log(run_dir) if "step" in r]
    stages = [s for s in ("stage1", "stage2", "cas") if any(r["stage"] == s for r in records)]
    figure, axes = plt.subplots(1, len(stages), figsize=(4 * len(stages) + 1, 3.6), squeeze=False)
    for axis, stage in zip(axes[0], stages):
        mine = [r for r in records if r["stage"] == stage]
        for key in dict.fromkeys(k for r in mine for k in r if k not in ("stage", "step", "epoch", "accuracy")):
            points = [(r["step"], r[key]) for r in mine if key in r]
            test_curve = key.startswith("val_")
            axis.plot(*zip(*points), lw=1.8 if test_curve else 1, color="k" if test_curve else None,
                      label=f"{key[4:]} of the test split" if test_curve else key)
        axis.set(title=stage, xlabel="optimiser step", ylabel="loss", yscale="log")
        axis.legend(frameon=False, fontsize=8, loc="upper right")
    save(figure, "losses", "Losses in training")
    if generated is None:
        return

    # A column a class, the last one without classes; 50 series each (thesis Figures 6.14 to 6.20).
    classes = range(min(6, len(dataset.classes)))
    figure, axes = plt.subplots(3, len(classes) + 1, figsize=(max(6, 2.3 * len(classes) + 2.3), 6),
                                sharex=True, sharey="col", squeeze=False)
    for row, who, series, y in ((0, "train", dataset.x_train, dataset.y_train),
                                (1, "test", dataset.x_test, dataset.y_test), (2, "samples", conditional, labels)):
        for axis, k in zip(axes[row], [*classes, None]):
            shown = series[y == k] if k is not None else generated if who == "samples" else series
            shown = shown[some(len(shown), 50)]
            axis.plot(dataset.to_original(shown).T, lw=0.5, alpha=0.4, color="C0" if row == 2 else "0.35")
            axis.set_title(f"{who}, {'any class' if k is None else f'class {dataset.classes[k]}'} ({len(shown)})",
                           fontsize=8)
            axis.set_xlabel("time step" if row == 2 else "")
    save(figure, "samples", "Real series and samples")

    # Real beside generated, as series and as z_q; axes of the PCA from the real ones (6.16, 6.17, 6.21).
    rows = some(len(generated), 500)
    latent = test["pooled"].numpy()[rows], encode_split(model, generated[rows])["pooled"].numpy()
    figure, axes = plt.subplots(2, 2, figsize=(9, 7.5))
    for axis_pair, what, pair in zip(axes, ("series", "z_q"), ((dataset.x_test.numpy()[rows],
                                                               generated.numpy()[rows]), latent)):
        joint = np.concatenate(pair)
        for axis, name, points in zip(axis_pair, ("PCA", "t-SNE"), (pca(joint, pair[0]), tsne(joint))):
            for half, who, colour in ((points[:len(rows)], "test", "0.6"), (points[len(rows):], "generated", "C0")):
                axis.scatter(*half.T, s=7, alpha=0.6, lw=0, color=colour, label=f"{who} ({len(half)})")
            axis.set(title=f"{name} of {what}", xlabel=f"{name} 1", ylabel=f"{name} 2")
    axes[0, 1].legend(frameon=False, markerscale=2, loc="upper right")
    save(figure, "generated", "Real and generated")


def pca(z, fitted_on=None):
    """First two principal components of z (n, D) -> (n, 2), fitted on z or on other rows."""
    return PCA(2, random_state=0).fit(z if fitted_on is None else fitted_on).transform(z)


def tsne(z):
    """t-SNE of z (n, D), NumPy -> (n, 2)."""
    start = "pca" if np.ptp(z, axis=0).max() > 0 else "random"           # all alike have no direction
    return TSNE(perplexity=min(30, (len(z) - 1) / 3), init=start, random_state=0).fit_transform(z)


def scatter_classes(axis, points, y, classes):
    """Points (n, 2) on a matplotlib axis, coloured by class index y (n,), or grey where y is None."""
    import matplotlib.pyplot as plt
    few = len(classes) <= 10
    colours = plt.get_cmap("tab10" if few else "nipy_spectral")
    for k, label in enumerate(classes) if y is not None else [(None, None)]:
        colour = "0.4" if k is None else colours(k if few else k / (len(classes) - 1))
        axis.scatter(*(points if k is None else points[y == k]).T, s=7, alpha=0.7, color=[colour],
                     label=str(label), lw=0)


# ---- Commands ----

def command_samples(args):
    """Score the series of an .npz (X in original units, y optional) against a dataset."""
    config = make_config(args)
    dataset, device, arrays = load_dataset(config.dataset), pick_device(config.precision), read_arrays(args.file)
    if "X" not in arrays:
        raise InputError(f"{args.file}: has {sorted(arrays)}, needs X (n, 1, L) or (n, L), for CAS y (n,)")
    x, labels = (as_series(arrays["X"], f"{args.file}, X") - dataset.mean) / dataset.std, None
    if x.shape[1] != dataset.length or len(x) < 2 or not (np.abs(x) < 1e9).all():
        raise InputError(f"{args.file}: X {x.shape}, expected at least 2 finite series of {dataset.name}'s "
                         f"length {dataset.length} in its units")
    x = torch.from_numpy(x.astype(np.float32))
    if "y" in arrays and dataset.classes:
        if arrays["y"].shape != (len(x),):
            raise InputError(f"{args.file}: y {arrays['y'].shape}, expected ({len(x)},)")
        labels = torch.tensor([dataset.label(v) for v in arrays["y"].tolist()])
    folder = Path(os.environ.get("OUT") or "runs") / dataset.name / "scored" / Path(args.file).stem
    with hold(folder):                           # the CAS training's log and resume file
        m = score_samples(x, None if labels is None else x, labels, dataset, config, folder, 0, device)
        (folder / "cas.resume.pt").unlink(missing_ok=True)
    print(json.dumps(dict(file=args.file, n=len(x), **m), indent=1))


def compare(run_dirs):
    """Print one row a run: what `run.sh` ends with."""
    keys = ("recon", "knn", "svm", "codes_used", "prior_loss", "fid", "fid_recon", "fid_floor", "is",
            "is_real", "cas", "nn_ratio")
    print("| dataset | model | seed | " + " | ".join(keys) + " | minutes |\n" + "|---" * (len(keys) + 4) + "|")
    for run_dir in run_dirs:
        m = read_json(Path(run_dir) / "metrics.json")
        if not m.get("config"):
            raise InputError(f"{run_dir}: no metrics.json of a finished run; give the folders of runs")
        c, minutes = m["config"], sum(m[f"seconds_{s}"] or 0 for s in ("stage1", "stage2", "evaluate")) / 60
        cells = ["" if m[k] is None else f"{m[k]:.3f}".removesuffix(".000") for k in keys]
        print(f"| {Path(c['dataset']).stem} | {c['method']}-{c['augmentation']} | {c['seed']} | "
              + " | ".join(cells) + f" | {minutes:.1f} |")


def main():
    parser = Parser(description="Score runs and samples.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="metrics.json, samples.npz, figures/ of a run folder")
    run.add_argument("run_dir", help="run folder; its config.json holds the settings")
    samples = commands.add_parser("samples", help="score the series of an .npz", allow_abbrev=False)
    samples.add_argument("file", help=".npz with X (n, L) in the data's units and, for CAS, y (n,)")
    samples.add_argument("--dataset", required=True, help="toy, a UCR name, or the path of an .npz")
    samples.add_argument("--precision", default="float32", help="of the classifiers [float32]")
    add_flags(samples, "fcn_epochs")
    commands.add_parser("compare", help="one row a run").add_argument("run_dirs", nargs="+")
    args = parser.parse_args()
    if args.command == "run":
        with hold(args.run_dir):
            evaluate_run(args.run_dir)
    else:
        command_samples(args) if args.command == "samples" else compare(args.run_dirs)


if __name__ == "__main__":
    run_command(main)
