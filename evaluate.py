"""Chapter 3: is it any good? Probes, IS, FID, CAS, figures, tables (thesis §2.7, §5.1.2, §6).

    test split -> stage 1 -> z_q, averaged over (H, W) -> KNN, SVM                            (representations)
    prior -> unconditional series -> FCN features -> FID against the test split; softmax -> IS (samples)
    prior -> class-conditional series -> a fresh FCN trained on them -> accuracy on the test split: CAS

    python evaluate.py run     runs/Symbols/vibcreg-slice/seed1      # metrics.json, samples.npz, figures/
    python evaluate.py samples x.npz --dataset FordA                 # scores any model's series
    python evaluate.py probe   runs/Symbols/vibcreg-slice/seed1      # frozen, and in the authors' train mode (ledger 12)
    python evaluate.py tables  runs/ --export results/               # thesis Tables 6.1 to 6.7, published values beside

With --precision bf16 --cas-epochs 100 the first one takes 7 minutes on one CPU core (AMD EPYC) where the set's FCN is trained
already, and gives FID 6.7, IS 3.4, CAS 0.97 (results/runs.csv).

Letters: n series, L length, D code dimension, K classes or codes, P feature dimension of the FCN (128).
"""
import argparse, copy, csv, gzip, hashlib, io, json, math, os, re, shlex, statistics, sys, time
from dataclasses import dataclass, fields
from functools import partial
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

import ncvqvae, prior
from data import (AUGMENTATIONS, Batches, InputError, Log, Recorded, Resume, adamw, add_flags, check_precision, check_same,
                  cosine, hold, load_checkpoint, load_dataset, make_config, parse_label, pick_device, plain, read_arrays,
                  read_json, run_command, set_lr, write_atomic, write_json)
from ncvqvae import Stage1Config, load_stage1
from prior import PriorConfig, SampleConfig, class_labels, load_stage2, prior_loss, sample, save_samples


@dataclass
class EvalConfig(SampleConfig):
    stages: int = 2                   # 1 stops after stage 1 and its probes
    fcn_epochs: int = 1000            # of the classifier behind FID and IS, on the real train split (ledger 15)
    cas_epochs: int = 1000            # of the classifier behind CAS, on generated series; scored at the last (ledger 16)
    fcn_batch: int = 256              # both
    fcn_lr: float = 1e-3              # both; AdamW, cosine to 0
    fcn_weight_decay: float = 1e-5    # both
    precision: str = "float32"        # or bf16: the classifiers' convolutions in bfloat16 (autocast)


PRESETS = {
    "thesis": {},
    "fast": dict(fcn_epochs=300, cas_epochs=100),             # FCN on held-out train series: results/fast.md
    "toy": dict(fcn_epochs=25, cas_epochs=15),
}
METRICS = ("recon", "recon_time", "recon_timefreq", "knn", "svm", "codes_used", "perplexity", "prior_loss", "fid",
           "fid_floor", "is", "cas", "nn_ratio", "fcn_accuracy", "n_train", "n_test", "n_generated", "length",
           "n_classes", "seconds_stage1", "seconds_stage2", "seconds_evaluate", "complete_data")


# ---------------------------------------------------------------------------------------------------------------------
# Stage 1: reconstruction and probes (thesis §6.1)
# ---------------------------------------------------------------------------------------------------------------------

@torch.no_grad()
def encode_split(model, x, batch=256):
    """One pass of a split x (n, L) through stage 1, in the mode the model is in.

    Returns a dict of CPU tensors: pooled z_q (n, D), tokens (n, N), squared errors per series recon_time and
    recon_timefreq (n,), x_hat (n, L). In eval mode nothing of the model moves.
    """
    device, parts = next(model.parameters()).device, []
    for xb in x.split(batch):
        xb = xb.to(device)
        u, z = model.encode(xb)
        z_q, indices, _ = model.quantizer(z)
        u_hat, x_hat = model.decode(z_q)
        part = dict(pooled=z_q.mean((2, 3)), tokens=indices.flatten(1), x_hat=x_hat,
                    recon_time=(x_hat - xb).square().mean(1), recon_timefreq=(u_hat - u).square().mean((1, 2, 3)))
        parts.append({k: v.cpu() for k, v in part.items()})
    return {k: torch.cat([part[k] for part in parts]) for k in parts[0]}


def probe(z_train, y_train, z_test, y_test):
    """KNN (k = 5) and linear SVM (C = 1) accuracy on the test split. z (n, D), y (n,), arrays or tensors -> two floats.

    Features are scaled to (-1, 1) by the train split's extremes. Thesis §2.7, §5.1.2.
    """
    neighbours = min(5, len(z_train))
    scores = [make_pipeline(MinMaxScaler((-1, 1)), classifier).fit(z_train, y_train).score(z_test, y_test)
              for classifier in (KNeighborsClassifier(neighbours), SVC(kernel="linear", C=1.0))]
    return float(scores[0]), float(scores[1])


def probe_in_train_mode(model, dataset, seed=0):
    """The published probes: train mode, so test batches move BatchNorm and codebook (ledger 12). On a throw-away copy.

    Returns KNN, SVM, and recon of the test split in eval mode afterwards: what a checkpoint saved after it would score.
    """
    model, batch = copy.deepcopy(model).train(), model.config.stage1_batch
    order = torch.randperm(len(dataset.x_train), generator=torch.Generator().manual_seed(seed))
    z_train = encode_split(model, dataset.x_train[order], batch)["pooled"]
    z_test = encode_split(model, dataset.x_test, batch)["pooled"]            # in the file's order, as the authors did
    return *probe(z_train, dataset.y_train[order], z_test, dataset.y_test), recon(encode_split(model.eval(), dataset.x_test))


def recon(split):
    """Mean over series of MSE(x, x^) + MSE(u, u^), eq. 4.2."""
    return (split["recon_time"] + split["recon_timefreq"]).mean().item()


def code_usage(tokens, n_codes):
    """Number of codes in use and the perplexity exp(entropy) of their frequencies. tokens (n, N) -> int, float."""
    p = torch.bincount(tokens.flatten(), minlength=n_codes).double()
    p = p / p.sum()
    return int((p > 0).sum()), float(torch.exp(-torch.special.xlogy(p, p).sum()))


# ---------------------------------------------------------------------------------------------------------------------
# The classifier behind IS, FID and CAS (Wang et al. 2017; thesis §2.7.1)
# ---------------------------------------------------------------------------------------------------------------------

class FCN(nn.Module):
    """Fully convolutional classifier, 128-256-128 filters of width 8, 5, 3. x (B, L) -> logits (B, K). Thesis §2.7.1."""

    def __init__(self, n_classes, precision="float32"):
        super().__init__()
        self.precision = precision
        sizes = [(1, 128, 8), (128, 256, 5), (256, 128, 3)]
        # A 1 x k Conv2d in channels_last computes what Conv1d does, 1.4 times faster on a CPU.
        self.convs = nn.Sequential(*[nn.Sequential(nn.Conv2d(a, b, (1, k), padding=(0, k // 2)), nn.BatchNorm2d(b),
                                                   nn.ReLU(inplace=True)) for a, b, k in sizes])
        self.head = nn.Linear(128, n_classes)

    def features(self, x):
        """Average-pooled features (B, L) -> (B, 128) float32, what FID compares."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            h = self.convs(x[:, None, None])                             # (B, 128, 1, about L)
        return h.float().mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))


def train_step(model, optimizer, x, y):
    """One optimiser step of the classifier on x (B, L), y (B,). Returns loss and accuracy on the batch, detached."""
    optimizer.zero_grad()
    logits = model(x)
    loss = F.cross_entropy(logits, y)
    loss.backward()
    optimizer.step()
    return loss.detach(), (logits.argmax(1) == y).float().mean()


def train_fcn(x, y, n_classes, epochs, config, folder, name, seed, device):
    """Train an FCN on x (n, L), y (n,) in 0..K-1 and return it in eval mode. AdamW, cosine (thesis §2.7.1, ledger 15).

    Goes on from folder/name.resume.pt where that was interrupted; removing it is the caller's, once the result is kept.
    """
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    model = FCN(n_classes, config.precision).to(device, memory_format=torch.channels_last)
    optimizer = adamw(model, config.fcn_lr, config.fcn_weight_decay)
    batches = Batches(len(x), config.fcn_batch, generator)
    total = epochs * batches.per_epoch
    sha256 = hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()     # generated series may change
    identity = dict(fcn_identity(config, epochs), sha256=sha256, seed=seed)
    resume = Resume(Path(folder) / f"{name}.resume.pt", identity, generator, model, optimizer, batches)
    log = Log(folder, name, total, resume, device, sha256)

    x, y = x.to(device), y.to(device)
    model.train()
    update = Recorded(partial(train_step, model, optimizer), device)
    for step in range(resume.step, total):
        rows = next(batches)
        set_lr(optimizer, config.fcn_lr * cosine(step, total))
        loss, hits = update(x[rows], y[rows])
        if log.due(step + 1):
            log(step + 1, step // batches.per_epoch + 1, loss=loss, accuracy=hits)
        resume.save_when_due(step + 1)
    return model.eval()


def fcn_identity(config, epochs):
    return dict(epochs=epochs, batch=config.fcn_batch, lr=config.fcn_lr, weight_decay=config.fcn_weight_decay,
                precision=config.precision)


def dataset_fcn(folder, dataset, config, device):
    """The dataset's FCN from folder/fcn.pt, trained first where missing. Runs of one dataset share it: others wait."""
    path, identity = Path(folder) / "fcn.pt", dict(fcn_identity(config, config.fcn_epochs), sha256=dataset.sha256)
    with hold(folder, wait=True):
        if not path.exists():
            model = train_fcn(dataset.x_train, dataset.y_train, len(dataset.classes), config.fcn_epochs, config, folder,
                              "fcn", 0, device)
            state = {k: v.cpu() for k, v in model.state_dict().items()}
            write_atomic(path, lambda file: torch.save(dict(identity=identity, state=state), file))
            (Path(folder) / "fcn.resume.pt").unlink(missing_ok=True)
        checkpoint = load_checkpoint(path)
    check_same(path, "the classifier", checkpoint.get("identity", {}), identity)
    model = FCN(len(dataset.classes), config.precision)
    try:
        model.load_state_dict(checkpoint["state"])
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{path}: no classifier of this program ({str(error).splitlines()[0]}); remove it") from None
    return model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


@torch.no_grad()
def classify(fcn, x, batch=256):
    """Features (n, P) and class probabilities (n, K) of series x (n, L), float64 NumPy."""
    device = next(fcn.parameters()).device
    features = torch.cat([fcn.features(xb.to(device)) for xb in x.split(batch)])
    return features.cpu().double().numpy(), fcn.head(features).cpu().double().softmax(1).numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Sample metrics (thesis §2.7.1)
# ---------------------------------------------------------------------------------------------------------------------

def frechet_distance(f1, f2):
    """Squared Fréchet distance of two Gaussians fitted to features f1 (n1, P), f2 (n2, P), float64. Eq. 2.21.

    Tr (S1 S2)^1/2 is the sum of the roots of the eigenvalues of S1^1/2 S2 S1^1/2, which is symmetric, so singular
    covariances are no trouble. Raises ValueError for fewer than 2 rows.
    """
    f1, f2 = np.asarray(f1, dtype=np.float64), np.asarray(f2, dtype=np.float64)
    if min(len(f1), len(f2)) < 2:
        raise ValueError("frechet_distance: a covariance needs at least 2 rows")
    s1, s2 = np.cov(f1, rowvar=False), np.cov(f2, rowvar=False)
    s1, s2 = np.atleast_2d(s1), np.atleast_2d(s2)                        # P = 1 comes as a scalar
    values, vectors = np.linalg.eigh(s1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T               # S1^1/2
    cross = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root).clip(0)).sum()  # Tr (S1 S2)^1/2
    return float(((f1.mean(0) - f2.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross)


def inception_score(p, splits=10, seed=0):
    """exp(E KL(p(y|x) || p(y))), mean over `splits` shuffled parts. p (n, K) class probabilities -> float. Eq. 2.19."""
    p = np.asarray(p, dtype=np.float64)
    parts = np.array_split(p[np.random.default_rng(seed).permutation(len(p))], min(splits, len(p)))
    scores = []
    for part in parts:
        marginal = part.mean(0, keepdims=True)                           # p(y)
        ratio = np.divide(part, marginal, out=np.ones_like(part), where=part > 0)             # 0 log 0 = 0
        scores.append(np.exp((part * np.log(ratio)).sum(1).mean()))
    return float(np.mean(scores))


def classification_accuracy_score(x, y, x_test, y_test, n_classes, config, folder, seed, device):
    """CAS: accuracy on the real test split of an FCN trained on generated series x (n, L), y (n,). Thesis §2.7.1."""
    fcn = train_fcn(x, y, n_classes, config.cas_epochs, config, folder, "cas", seed, device)
    return accuracy(classify(fcn, x_test)[1], y_test)


def accuracy(p, y):
    return float((p.argmax(1) == y.numpy()).mean())


def nearest_neighbour_ratio(generated, train, test):
    """Mean distance generated -> nearest train over mean distance test -> nearest train; under 1 hints at memorising.

    All (n, L). Thesis §6.4 "Overfitting problem". Infinite where every test series is a train series.
    """
    def mean_nearest(a):
        return torch.cat([torch.cdist(part, train).amin(1) for part in a.split(256)]).double().mean().item()
    real = mean_nearest(test)
    return mean_nearest(generated) / real if real > 0 else math.inf


def class_proportions(y, n_classes, total):
    """Labels (total,) in the class proportions of y, at least one per class, by largest remainders."""
    share = torch.bincount(y, minlength=n_classes).double() * total / len(y)
    counts = share.floor().clamp_min(1).long()
    for k in (share - share.floor()).argsort(descending=True, stable=True).tolist() * 2:
        counts[k] += int(counts.sum() < total)
    return torch.arange(n_classes).repeat_interleave(counts)


def score_samples(generated, conditional, labels, dataset, config, run_dir, dataset_dir, seed, device):
    """FID, its floor, IS, CAS, nn_ratio of series in standardised units. generated (n, L); conditional with labels or None."""
    out = dict(nn_ratio=nearest_neighbour_ratio(generated, dataset.x_train, dataset.x_test))
    if out["nn_ratio"] < 1:
        print(f"WARNING: nn_ratio {out['nn_ratio']:.2f} < 1: samples lie closer to the train split than the test split "
              "does; the prior memorises (thesis §6.4)", file=sys.stderr)
    if dataset.y_train is None:
        return out
    fcn = dataset_fcn(dataset_dir, dataset, config, device)
    real, p_real = classify(fcn, dataset.x_test)
    fake, p_fake = classify(fcn, generated)
    # A real train sample of the test split's size: what FID a perfect model could reach. Drawn with replacement where
    # the train split is the smaller one.
    n, m = len(dataset.x_train), len(dataset.x_test)
    rows = np.random.default_rng(0).choice(n, m, replace=n < m)
    out |= {"fcn_accuracy": accuracy(p_real, dataset.y_test), "fid": frechet_distance(fake, real),
            "fid_floor": frechet_distance(classify(fcn, dataset.x_train[rows])[0], real), "is": inception_score(p_fake)}
    if conditional is not None:
        out["cas"] = classification_accuracy_score(conditional, labels, dataset.x_test, dataset.y_test,
                                                   len(dataset.classes), config, run_dir, seed, device)
    return out


# ---------------------------------------------------------------------------------------------------------------------
# A run
# ---------------------------------------------------------------------------------------------------------------------

def evaluate_run(run_dir, config, device=None):
    """Write metrics.json, samples.npz and figures/ of a run folder; a finished evaluation returns at once. -> metrics."""
    if config.stages not in (1, 2):
        raise InputError(f"--stages {config.stages}: 1 or 2")
    check_precision(config)
    run_dir, device = Path(run_dir), device or pick_device()
    path = run_dir / "metrics.json"
    if path.exists() and read_json(run_dir / "config.json").get("evaluate") == plain(config) and all(
            path.stat().st_mtime >= p.stat().st_mtime for p in run_dir.glob("stage?.pt")):
        return read_json(path)
    start = time.time()
    model, first = load_stage1(run_dir, device)
    seed, info = first["config"]["seed"], first["data"]
    dataset = load_dataset(first["config"]["dataset"], os.environ.get("UCR_DIR", "datasets"))
    check_same(run_dir / "stage1.pt", "its data", {"sha256": info["sha256"]}, {"sha256": dataset.sha256})
    n_classes = len(dataset.classes)

    train, test = encode_split(model, dataset.x_train), encode_split(model, dataset.x_test)
    codes, perplexity = code_usage(test["tokens"], first["config"]["n_codes"])
    m = dict.fromkeys(METRICS)
    m |= dict(recon_time=test["recon_time"].mean().item(), recon_timefreq=test["recon_timefreq"].mean().item(),
              codes_used=codes, perplexity=perplexity, n_train=len(dataset.x_train), n_test=len(dataset.x_test),
              length=dataset.length, n_classes=n_classes, seconds_stage1=first["seconds"],
              complete_data=dataset.complete)
    m["recon"] = m["recon_time"] + m["recon_timefreq"]                   # full test split, eval mode (ledger 12, 13)
    if n_classes:
        m["knn"], m["svm"] = probe(train["pooled"], dataset.y_train, test["pooled"], dataset.y_test)
    else:
        print(f"{dataset.name}: no labels, so KNN, SVM, IS, FID and CAS stay null", file=sys.stderr)

    generated = conditional = labels = None
    if config.stages == 2:
        pri, _, second = load_stage2(run_dir, device)
        m["seconds_stage2"] = second["seconds"]
        m["prior_loss"] = prior_loss(pri, test["tokens"].to(device), class_labels(dataset, "test", n_classes).to(device))

        def generator(offset):
            return torch.Generator(device).manual_seed(1000 * seed + offset)
        nothing = torch.full((max(len(dataset.x_test), 256),), n_classes)
        unconditional = sample(pri, model, nothing, generator(0), config)
        generated = unconditional[:len(dataset.x_test)]
        if n_classes:
            labels = class_proportions(dataset.y_train, n_classes, max(1000, len(dataset.x_train)))
            conditional = sample(pri, model, labels, generator(1), config)
        kept = unconditional if conditional is None else conditional
        save_samples(run_dir / "samples.npz", kept, labels, info)
        m["n_generated"] = len(kept)
        m |= score_samples(generated, conditional, labels, dataset, config, run_dir, run_dir.parent.parent, seed, device)
    draw_figures(run_dir, dataset, test, generated, conditional, labels)
    m["seconds_evaluate"] = time.time() - start
    write_json(path, m)
    write_json(run_dir / "config.json", read_json(run_dir / "config.json") | {"evaluate": plain(config)})
    (run_dir / "cas.resume.pt").unlink(missing_ok=True)
    return m


# ---------------------------------------------------------------------------------------------------------------------
# Figures (thesis §6.1.2, §6.2.5)
# ---------------------------------------------------------------------------------------------------------------------

def draw_figures(run_dir, dataset, test, generated, conditional, labels):
    """All figures of a run into run_dir/figures. The only place that needs matplotlib."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "savefig.dpi": 130,
                         "axes.titlesize": 10})
    folder = Path(run_dir) / "figures"
    folder.mkdir(exist_ok=True)
    title = f"{dataset.name}, {Path(run_dir).parent.name}"

    def save(figure, name):
        figure.tight_layout()
        write_atomic(folder / name, lambda file: figure.savefig(file, format="png"))
        plt.close(figure)

    # Reconstructions: six test series, evenly spread over the split.
    figure, axes = plt.subplots(2, 3, figsize=(10, 4), sharex=True)
    for axis, i in zip(axes.flat, np.linspace(0, len(dataset.x_test) - 1, 6).astype(int)):
        axis.plot(dataset.x_test[i] * dataset.std + dataset.mean, color="0.6", lw=1.8, label="test series")
        axis.plot(test["x_hat"][i] * dataset.std + dataset.mean, color="C3", lw=1, label="reconstruction")
        axis.set_title(f"test series {i + 1}")
    for axis in axes[-1]:
        axis.set_xlabel("time step")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="upper right", ncol=2, frameon=False)
    figure.suptitle(f"Reconstructions: {title}", x=0.02, ha="left")
    save(figure, "reconstructions.png")

    # Latents: PCA and t-SNE of the pooled z_q by class (thesis Figures 6.4 to 6.6).
    chosen = np.random.default_rng(0).permutation(len(dataset.x_test))[:1000]
    z = test["pooled"].numpy()[chosen]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2))
    for axis, name, points in ((axes[0], "PCA", PCA(2, random_state=0).fit_transform(z)),
                               (axes[1], "t-SNE", tsne(z))):
        scatter_classes(axis, points, None if dataset.y_test is None else dataset.y_test.numpy()[chosen], dataset.classes)
        axis.set(title=f"{name} of z_q, {len(z)} test series", xlabel=f"{name} 1", ylabel=f"{name} 2")
    if 0 < len(dataset.classes) <= 12:
        axes[1].legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=2)
    figure.suptitle(f"Discrete latent representations: {title}", x=0.02, ha="left")
    save(figure, "latents.png")

    # Loss curves, one panel a stage.
    lines = read_log(run_dir)
    stages = [s for s in ("stage1", "stage2", "cas") if any(r["stage"] == s and "loss" in r for r in lines)]
    figure, axes = plt.subplots(1, len(stages), figsize=(4 * len(stages) + 1, 3.4), squeeze=False)
    for axis, stage in zip(axes[0], stages):
        records = [r for r in lines if r["stage"] == stage and "loss" in r]
        for key in records[0]:
            if key not in ("stage", "step", "epoch", "codes", "accuracy"):
                axis.plot([r["step"] for r in records], [r[key] for r in records], label=key, lw=1)
        axis.set(title=stage, xlabel="optimiser step", ylabel="loss", yscale="log")
        axis.legend(frameon=False, fontsize=8, loc="upper right")
    figure.suptitle(f"Training losses: {title}", x=0.02, ha="left")
    save(figure, "losses.png")
    if generated is None:
        return

    # Real and generated series, per class where there are classes, 50 each (thesis §6.2.5).
    shown = range(min(8, len(dataset.classes))) if conditional is not None else [None]
    figure, axes = plt.subplots(2, len(shown), figsize=(max(6, 2.3 * len(shown)), 4), sharex=True, sharey="col",
                                squeeze=False)
    for column, k in enumerate(shown):
        real = dataset.x_test if k is None else dataset.x_test[dataset.y_test == k]
        fake = generated if k is None else conditional[labels == k]
        for axis, series, colour, who in ((axes[0, column], real, "0.35", "test"), (axes[1, column], fake, "C0", "generated")):
            series = series[torch.randperm(len(series), generator=torch.Generator().manual_seed(0))[:50]]
            axis.plot((series * dataset.std + dataset.mean).T.numpy(), color=colour, lw=0.5, alpha=0.4)
            axis.set_title(f"{who}{'' if k is None else f', class {dataset.classes[k]}'} ({len(series)})")
        axes[1, column].set_xlabel("time step")
    more = f" (first {len(shown)} of {len(dataset.classes)} classes)" if len(dataset.classes) > len(shown) else ""
    figure.suptitle(f"Test series and samples{more}: {title}", x=0.02, ha="left")
    save(figure, "samples.png")

    # PCA of real and generated series, axes from the real ones.
    pca = PCA(2, random_state=0).fit(dataset.x_test.numpy())
    figure, axis = plt.subplots(figsize=(5.5, 4.5))
    for series, colour, who in ((dataset.x_test, "0.6", "test"), (generated, "C0", "generated")):
        points = pca.transform(series[np.random.default_rng(0).permutation(len(series))[:1000]].numpy())
        axis.scatter(points[:, 0], points[:, 1], s=7, alpha=0.5, color=colour, label=f"{who} ({len(points)})", lw=0)
    axis.set(xlabel="PCA 1", ylabel="PCA 2", title=f"Real and generated series: {title}")
    axis.legend(frameon=False, markerscale=2)
    save(figure, "generated_pca.png")


def tsne(z):
    """t-SNE of z (n, D), NumPy -> (n, 2)."""
    start = "pca" if np.ptp(z, axis=0).max() > 0 else "random"           # all alike: PCA has no direction to start from
    return TSNE(perplexity=min(30, (len(z) - 1) / 3), init=start, random_state=0).fit_transform(z)


def scatter_classes(axis, points, y, classes):
    import matplotlib.pyplot as plt
    colours = plt.get_cmap("tab10" if len(classes) <= 10 else "nipy_spectral")
    for k, label in enumerate(classes) if y is not None else [(None, None)]:
        p = points if k is None else points[y == k]
        colour = "0.4" if k is None else colours(k) if len(classes) <= 10 else colours(k / (len(classes) - 1))
        axis.scatter(p[:, 0], p[:, 1], s=7, alpha=0.7, color=[colour], label=str(label), lw=0)


# ---------------------------------------------------------------------------------------------------------------------
# Tables: runs beside each other, and thesis Tables 6.1 to 6.7 with the published values
# ---------------------------------------------------------------------------------------------------------------------

MODELS = [("naive", "none")] + [(m, a) for m in ("barlow", "vibcreg") for a in ("warp", "slice", "gauss")]
TABLES = [("6.1", "Mean reconstruction error", "mean", ["recon"]), ("6.2", "Best reconstruction error", "best", ["recon"]),
          ("6.3", "Mean probe accuracy", "mean", ["knn", "svm"]), ("6.4", "Best probe accuracy", "best", ["knn", "svm"]),
          ("6.5", "Best FID and IS", "best", ["fid", "is"]), ("6.6", "Mean FID and IS", "mean", ["fid", "is"]),
          ("6.7", "Mean CAS", "mean", ["cas"])]
LOWER_IS_BETTER = {"recon", "fid"}
BY_CLASSIFIER = {"fid", "is"}             # hang on the FCN, so they do not compare with the published ones (ledger 15)


def settings(saved, config):
    """What a run's saved config changed against the thesis' values: "stage1_steps=800 precision=bf16", "" for nothing."""
    return " ".join(f"{f.name}={saved[f.name]}" for f in fields(config) if f.name not in
                    ("dataset", "method", "augmentation", "seed", "stages") and saved.get(f.name, f.default) != f.default)


COLUMNS = ("dataset", "method", "augmentation", "seed", *METRICS, "knn_train_mode", "svm_train_mode", "recon_train_mode",
           "stage1_epochs", "stage1_steps", "stage2_epochs", "stage2_steps", "fcn_epochs", "cas_epochs", "precision",
           "stage1_settings", "later_settings", "device", "torch", "commit", "date")
IDENTITY = ("dataset", "method", "augmentation", "seed", "stage1_settings", "later_settings")
TEXT = ("dataset", "method", "augmentation", "precision", "stage1_settings", "later_settings", "device", "torch", "commit", "date")


def find_runs(folders):
    """A row per finished run below the folders: a dict of COLUMNS, None where a run has no such value, and run_dir."""
    rows = []
    for path in sorted({p for folder in folders for p in Path(folder).rglob("metrics.json")}):
        config = read_json(path.parent / "config.json")
        if "stage1" not in config or "evaluate" not in config:
            continue
        s1, full = config["stage1"], config["evaluate"]["stages"] == 2
        s2, ev = (config["stage2"], config["evaluate"]) if full else ({}, {})
        start = next((r for r in read_log(path.parent) if r.get("event") == "start"), {})
        row = dict.fromkeys(COLUMNS) | dict(run_dir=path.parent) | read_json(path) | read_json(path.parent / "probe.json")
        row |= {k: s1[k] for k in ("method", "augmentation", "seed", "precision")} | dict(
            dataset=Path(s1["dataset"]).stem, fcn_epochs=ev.get("fcn_epochs"), cas_epochs=ev.get("cas_epochs"),
            stage1_settings=settings(s1, Stage1Config), date=start.get("time", "")[:10],
            later_settings=" ".join(filter(None, [settings(s2, PriorConfig), settings(ev, EvalConfig)])) if full else "none",
            **{k: start.get(k) for k in ("device", "torch", "commit")})
        for stage, s in (("stage1", s1), ("stage2", s2)):                  # steps, where given, replace epochs
            unit = "steps" if s.get(f"{stage}_steps") else "epochs"
            row[f"{stage}_{unit}"] = s.get(f"{stage}_{unit}")
        rows.append(row)
    return rows


def read_log(run_dir):
    """The records of a run's log.jsonl, [] where there is none."""
    path = Path(run_dir) / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def print_comparison(folders):
    """One row a run: what `run.sh` ends with."""
    keys = ("recon", "knn", "svm", "codes_used", "prior_loss", "fid", "fid_floor", "is", "cas", "nn_ratio")
    seconds = ("seconds_stage1", "seconds_stage2", "seconds_evaluate")
    print("| dataset | model | seed | " + " | ".join(keys) + " | minutes |\n" + "|---" * (len(keys) + 4) + "|")
    for r in find_runs(folders):
        cells = ["" if r[k] is None else str(r[k]) if isinstance(r[k], int) else f"{r[k]:.3f}" for k in keys]
        minutes = sum(r[k] or 0 for k in seconds) / 60
        print(f"| {r['dataset']} | {r['method']}-{r['augmentation']} | {r['seed']} | " + " | ".join(cells) + f" | {minutes:.1f} |")


def tables(rows):
    """Thesis Tables 6.1 to 6.7 as Markdown lines: ours, the published value (results/published.csv), and a judgement.

    Runs of different schedules never share a table: stage 1's settings part all of them, the later ones 6.5 to 6.7.
    """
    published = read_published()
    complete = [r for r in rows if r["complete_data"]]
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
    left_out = sorted({r["dataset"] for r in rows if not r["complete_data"]})
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


def export(folders, out):
    """Merge the finished runs below folders into out/runs.csv, keep their logs, and make out/TABLES.md from runs.csv.

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
    ordered = sorted(rows.values(), key=lambda r: [str(r[k]) for k in IDENTITY])
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(ordered)
    write_atomic(out / "runs.csv", lambda file: file.write(text.getvalue().encode()))
    write_atomic(out / "TABLES.md", lambda file: file.write(("\n".join(tables(ordered)) + "\n").encode()))
    print(f"{out}: {len(rows)} runs")


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
    """A run's log with its start lines and as many others, evenly spread, as make 200; paths cut to their last part."""
    records = read_log(run_dir)
    starts = [i for i, r in enumerate(records) if "event" in r]
    others = [i for i, r in enumerate(records) if "event" not in r]
    kept = np.linspace(0, len(others) - 1, min(len(others), 200 - len(starts))).astype(int)
    lines = []
    for i in sorted([*starts, *(others[k] for k in kept)]):
        r = records[i]
        if "argv" in r:
            r["argv"] = [re.sub(r"[^=\s]*/", "", a) for a in r["argv"]]
        lines.append(json.dumps(r))
    write_atomic(path, lambda file: file.write(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)))


def read_published():
    """results/published.csv as {(dataset, method, augmentation, metric): row}."""
    with open(Path(__file__).parent / "results" / "published.csv", newline="") as file:
        return {(r["dataset"], r["method"], r["augmentation"], r["metric"]): r for r in csv.DictReader(file)}


def pooled_std(published, name, metric):
    """Root mean square of the published models' std over seeds on a dataset; None where nothing is published."""
    stds = [float(r["std"]) for (d, _, _, m), r in published.items() if (d, m) == (name, metric)]
    return math.sqrt(statistics.mean(s * s for s in stds)) if stds else None


def beyond_noise(difference, n, m, std):
    """Is a difference of means over n and m seeds more than seeds explain? It has std * sqrt(1/n + 1/m) as its own std.

    2.084 of those are 2.33 stds for one seed against four, and 1.47 for four against four.
    """
    return abs(difference) > 2.084 * math.sqrt(1 / n + 1 / m) * std


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


# ---------------------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------------------

def command_samples(given, config):
    """Score the series of an .npz (X in original units, y optional) against a dataset."""
    dataset, device = load_dataset(given.dataset, os.environ.get("UCR_DIR", "datasets")), pick_device()
    arrays = read_arrays(given.file)
    if "X" not in arrays:
        raise InputError(f"{given.file}: has {sorted(arrays)}, needs X (n, 1, L) or (n, L) and, for CAS, y (n,)")
    x = arrays["X"]
    x = x[:, 0] if x.ndim == 3 and x.shape[1] == 1 else x
    if x.ndim != 2 or x.shape[1] != dataset.length or len(x) < 2 or not np.isfinite(x).all():
        raise InputError(f"{given.file}: X {arrays['X'].shape}, expected at least 2 finite series of {dataset.name}'s "
                         f"length {dataset.length}")
    x, labels = torch.from_numpy(((x - dataset.mean) / dataset.std).astype(np.float32)), None
    if "y" in arrays and dataset.classes:
        words = [parse_label(str(v)) for v in arrays["y"].tolist()]
        strange = sorted({str(v) for v in words} - {str(c) for c in dataset.classes})
        if strange or len(words) != len(x):
            raise InputError(f"{given.file}: y does not label X with {dataset.name}'s classes (strange: {strange})")
        labels = torch.tensor([[str(c) for c in dataset.classes].index(str(v)) for v in words])
    folder = Path(os.environ.get("OUT", "runs")) / dataset.name
    scratch = folder / "samples"                             # the CAS training's log and resume file
    with hold(scratch):
        (scratch / "cas.resume.pt").unlink(missing_ok=True)
        m = score_samples(x, None if labels is None else x, labels, dataset, config, scratch, folder, 0, device)
        (scratch / "cas.resume.pt").unlink(missing_ok=True)
    print(json.dumps(dict(file=given.file, n=len(x), **m), indent=1))


def command_probe(given):
    """Probes and recon of finished stage-1 models, frozen and in the authors' train mode (ledger 12), kept in probe.json."""
    print("| run | KNN | SVM | recon | KNN train mode | SVM train mode | recon after it |\n" + "|---" * 7 + "|")
    for run_dir in given.run_dirs:
        model, first = load_stage1(run_dir)
        dataset = load_dataset(first["config"]["dataset"], os.environ.get("UCR_DIR", "datasets"))
        if dataset.y_train is None:
            raise InputError(f"{run_dir}: {dataset.name} has no labels to probe for")
        train, test = encode_split(model, dataset.x_train), encode_split(model, dataset.x_test)
        moved = probe_in_train_mode(model, dataset)
        write_json(Path(run_dir) / "probe.json", dict(zip(("knn_train_mode", "svm_train_mode", "recon_train_mode"), moved)))
        scores = (*probe(train["pooled"], dataset.y_train, test["pooled"], dataset.y_test), recon(test), *moved)
        run = "/".join(Path(run_dir).resolve().parts[-3:])                   # DATASET/METHOD-AUG/seedN
        print(f"| {run} | " + " | ".join(f"{s:.3f}" for s in scores) + " |", flush=True)


def command_route(flags):
    """Print the flags each stage owns, a line a stage, for run.sh to evaluate; refuse what none owns, or cannot read.

    flags are --name=value; --augmentations=A+B is run.sh's own and only checked.
    """
    owners = [(Stage1Config, ncvqvae.PRESETS), (PriorConfig, prior.PRESETS), (EvalConfig, PRESETS)]
    lines = [[] for _ in owners]
    for flag in flags:
        name, value = flag.removeprefix("--").split("=", 1)
        if name == "augmentations":
            for augmentation in value.split("+"):
                if augmentation not in (*AUGMENTATIONS, "none"):
                    raise InputError(f"AUGMENTATION {augmentation}: not one of {', '.join(AUGMENTATIONS)} (join by +)")
            continue
        found = False
        for (config, presets), line in zip(owners, lines):
            types = {f.name.replace("_", "-"): f.type for f in fields(config)} | {"preset": str}
            if name not in types or name in ("dataset", "method", "augmentation", "seed"):    # those are positions
                continue
            found = True
            try:
                types[name](value)
            except ValueError:
                raise InputError(f"--{name} {value}: not {types[name].__name__}") from None
            if name == "preset" and value not in presets:
                raise InputError(f"--preset {value}: not one of {', '.join(presets)}")
            line.append(shlex.quote(flag))
        if not found:
            raise InputError(f"--{name}: no such flag; see python ncvqvae.py --help, prior.py train --help, "
                             "evaluate.py run --help")
    print("\n".join(" ".join(line) for line in lines))


def main():
    parser = argparse.ArgumentParser(description="Score runs and samples, make figures and tables.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="metrics.json, samples.npz, figures/ of a run folder", allow_abbrev=False)
    run.add_argument("run_dir")
    samples = commands.add_parser("samples", help="score the series of an .npz", allow_abbrev=False)
    samples.add_argument("file")
    samples.add_argument("--dataset", required=True, help="toy, a UCR name, or the path of an .npz")
    for sub in (run, samples):
        sub.add_argument("--preset", default="thesis", help=f"one of {', '.join(PRESETS)}; flags override it")
        add_flags(sub, EvalConfig)
    commands.add_parser("probe", help="probe frozen and in train mode").add_argument("run_dirs", nargs="+")
    table = commands.add_parser("tables", help="thesis Tables 6.1 to 6.7 of the runs below some folders")
    table.add_argument("folders", nargs="*")
    table.add_argument("--export", metavar="DIR", help="merge the runs into DIR/runs.csv and write DIR/logs, DIR/TABLES.md")
    commands.add_parser("compare", help="one row a run").add_argument("folders", nargs="+")
    if sys.argv[1:2] == ["route"]:                           # run.sh's own; its flags are the configs'
        return command_route(sys.argv[2:])
    given = parser.parse_args()
    if given.command in ("run", "samples"):
        config = make_config(EvalConfig, PRESETS, given.preset, given)
    if given.command == "run":
        with hold(given.run_dir):
            evaluate_run(given.run_dir, config)
    elif given.command == "samples":
        command_samples(given, config)
    elif given.command == "probe":
        command_probe(given)
    elif given.command == "tables":
        if given.export:
            export(given.folders, given.export)
        else:
            print("\n".join(tables(find_runs(given.folders))))
    else:
        print_comparison(given.folders)


if __name__ == "__main__":
    run_command(main)
