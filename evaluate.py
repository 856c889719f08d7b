"""Chapter 3: is it any good? Probes, IS, FID, CAS, figures (thesis §2.7, §5.1.2, §6).

    test split -> stage 1 -> z_q, averaged over H and W -> KNN, SVM             (representations)
    prior -> unconditional series -> FCN features -> FID; its softmax -> IS             (samples)
    prior -> class-conditional series -> a fresh FCN -> accuracy on the real test split: CAS

    python evaluate.py run     runs/Symbols/vibcreg-slice/seed1  # metrics.json, samples, figures
    python evaluate.py samples x.npz --dataset FordA  # scores any model's series
    python evaluate.py compare runs/Symbols/*/seed*  # a row a run

Letters: n series, L length, D code dimension, K classes or codes, P features of the FCN (128).
"""
import hashlib, json, math, os, sys, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVC

from data import (Config, Parser, add_flags, as_series, check_same, hold, load_dataset, make_config,
                  pick_device, read_arrays, read_config, read_json, refuse, run_command, write_json)
from ncvqvae import Training, batches_per_epoch, encode_split, load_model, load_stage1
from prior import load_stage2, prior_loss, sample, save_samples

# What `compare` shows, and all that metrics.json has.
SHOWN = ("recon", "knn", "svm", "codes_used", "prior_loss", "fid", "fid_recon", "fid_floor", "is",
         "is_real", "cas", "cas_real", "precision", "recall", "density", "coverage", "nn_ratio")
METRICS = (*SHOWN, "recon_time", "recon_timefreq", "recon_last_batch", "perplexity",
           "prior_loss_train", "nn_ratio_recon", "fcn_accuracy", "n_train", "n_test",
           "n_generated", "length", "n_classes", "seconds_stage1", "seconds_stage2",
           "seconds_evaluate", "complete_data")

# ---- Stage 1: probes and codes (§6.1) ----
def probe(z_train, y_train, z_test, y_test):
    """Test accuracy of KNN (k = 5) and a linear SVM (C = 1). z (n, D), y (n,). §5.1.2.

    Features are scaled to (-1, 1) by the train split's extremes (ledger 31).
    """
    def score(classifier):
        pipeline = make_pipeline(MinMaxScaler((-1, 1)), classifier).fit(z_train, y_train)
        return float(pipeline.score(z_test, y_test))
    return score(KNeighborsClassifier(min(5, len(z_train)))), score(SVC(kernel="linear", C=1.0))

def code_usage(tokens, n_codes):
    """Codes in use, the perplexity exp(entropy) of their shares. tokens (n, N) -> int, float."""
    p = torch.bincount(tokens.flatten(), minlength=n_codes).double()  # (K) counts
    p = p / p.sum()  # (K) shares
    return int((p > 0).sum()), float(torch.exp(-torch.special.xlogy(p, p).sum()))

# ---- The classifier behind IS, FID and CAS (Wang et al. 2017; §2.7.1, ledger 15) ----
class FCN(nn.Module):
    """Fully convolutional classifier, filters of width 8, 5, 3. x (B, L) -> logits (B, K)."""
    def __init__(self, n_classes, precision="float32"):
        super().__init__()
        self.precision = precision
        # Conv1d as Conv2d in channels_last: 1.4 times faster on a CPU.
        self.convs = nn.Sequential(*[
            nn.Sequential(nn.Conv2d(a, b, (1, k), padding=padding), nn.BatchNorm2d(b),
                          nn.ReLU(inplace=True))
            for a, b, k, padding in ((1, 128, 8, 0), (128, 256, 5, "same"), (256, 128, 3, "same"))])
        self.head = nn.Linear(128, n_classes)

    def features(self, x):
        """Average-pooled features (B, L) -> (B, P) float32, what FID compares."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            # "same" for width 8: 3 before, 4 behind (ledger 30); torch would warn of it.
            h = self.convs(F.pad(x, (3, 4))[:, None, None])  # (B, P, 1, L)
        return h.float().mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))

def train_fcn(x, y, n_classes, config, folder, name):
    """Train an FCN on x (n, L), y (n,) in 0..K-1. -> FCN in eval mode, its unfinished Training.

    AdamW, cosine, all epochs, as published (ledger 15).
    """
    device = pick_device(config.precision)
    torch.manual_seed(config.seed)
    model = FCN(n_classes, config.precision).to(device)
    digest = hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()
    training = Training(folder, "fcn", model, config, digest, len(x), name)
    x, y = x.to(device), y.to(device)  # (n, L), (n,)
    model.train()  # BatchNorm of the batch
    for rows in training:
        training.update(F.cross_entropy(model(x[rows]), y[rows]))
    return model.eval().requires_grad_(False), training

def dataset_fcn(folder, dataset, config):
    """The dataset's classifier from folder, trained where missing. Runs share it: others wait.

    Returns the FCN in eval mode, its file and the number of its steps.
    """
    x, y = dataset.x_train, dataset.y_train
    what = json.dumps(config.behind("fcn") | {"sha256": dataset.sha256})
    name = f"fcn-{hashlib.sha256(what.encode()).hexdigest()[:8]}"  # of other settings: another
    path, n_classes = Path(folder) / f"{name}.pt", len(dataset.classes)
    with hold(folder, wait=True):
        if not path.exists():
            train_fcn(x, y, n_classes, config, folder, name)[1].finish(path)
    fcn, checkpoint = load_model(path, "fcn", lambda c, _: FCN(n_classes, c.precision), config)
    return fcn, path, checkpoint["step"]

@torch.no_grad()
def classify(fcn, x):
    """Features (n, P) and class probabilities (n, K) of series x (n, L), float64 NumPy."""
    device = next(fcn.parameters()).device
    features = torch.cat([fcn.features(part.to(device)) for part in x.split(256)])  # (n, P)
    return features.cpu().double().numpy(), fcn.head(features).cpu().double().softmax(1).numpy()

def accuracy(p, y):
    """Share of rows of p (n, K) whose largest entry is at y (n,)."""
    return float((p.argmax(1) == y.numpy()).mean())

# ---- Sample metrics (§2.7.1) ----
def frechet_distance(f1, f2):
    """Fréchet distance of Gaussians fitted to features f1 (n1, P), f2 (n2, P), float64. Eq. 2.21.

    Tr (S1 S2)^1/2 is the sum of the roots of the eigenvalues of S1^1/2 S2 S1^1/2, which is
    symmetric: singular covariances are no trouble. ValueError for under 2 rows.
    """
    f1, f2 = np.asarray(f1, dtype=np.float64), np.asarray(f2, dtype=np.float64)
    if min(len(f1), len(f2)) < 2:
        raise ValueError("frechet_distance: a covariance needs at least 2 rows")
    s1, s2 = (np.atleast_2d(np.cov(f, rowvar=False)) for f in (f1, f2))  # P = 1 comes as a scalar
    values, vectors = np.linalg.eigh(s1)  # (P), (P, P)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T  # S1^1/2
    cross = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root).clip(0)).sum()  # Tr (S1 S2)^1/2
    return float(((f1.mean(0) - f2.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross)

def inception_score(p, splits=10, seed=0):
    """exp(E KL(p(y|x) || p(y))), the mean over shuffled splits. p (n, K) -> float. Eq. 2.19."""
    p = np.asarray(p, dtype=np.float64)
    parts = np.array_split(p[np.random.default_rng(seed).permutation(len(p))], min(splits, len(p)))
    scores = []  # 1: samples alike or vague; n_classes: sharp and even
    for part in parts:
        part = part + 1e-300  # 0 log 0 = 0
        scores.append(np.exp((part * np.log(part / part.mean(0))).sum(1).mean()))  # the mean: p(y)
    return float(np.mean(scores))

def fcn_config(config, n_classes):
    """The settings of the classifier behind FID and IS, which all seeds share."""
    steps = config.fcn_steps and max(config.fcn_steps, config.steps_per_class * n_classes)
    return replace(config, seed=0, fcn_steps=steps)

def cas_config(config, n, n_classes):
    """Those of a classifier trained on n generated series: as many steps on any other n."""
    if config.cas_steps:
        steps = max(config.cas_steps, config.steps_per_class * n_classes)
    else:
        steps = config.cas_epochs * batches_per_epoch(n, config.fcn_batch)
    return replace(config, fcn_steps=steps, fcn_epochs=Config.fcn_epochs)

def classification_accuracy_score(x, y, dataset, config, folder):
    """CAS: accuracy on the real test split of an FCN trained on generated x (n, L), y (n,).

    None, with a warning, where y lacks a class of the data.
    """
    absent = [c for k, c in enumerate(dataset.classes) if not (y == k).any()]
    if absent:
        print(f"WARNING: class {', '.join(map(str, absent))} of {dataset.name} is not in y: no CAS",
              file=sys.stderr)
        return None
    config = cas_config(config, len(x), len(dataset.classes))
    fcn, training = train_fcn(x, y, len(dataset.classes), config, folder, "cas")  # from scratch
    training.resume.unlink(missing_ok=True)
    return accuracy(classify(fcn, dataset.x_test)[1], dataset.y_test)

def precision_recall_density_coverage(real, fake, k=5):
    """Are samples near the data, and how much of the data do they cover? Features (n, P) -> dict.

    A ball around each row reaches to its k-th nearest of the same kind. precision: share of fake in
    some real ball; recall: share of real in some fake ball (Kynkäänniemi et al. 2019). density:
    real balls around a fake one over k; coverage: share of real balls that hold a fake one (Naeem
    et al. 2020): neither hangs on one outlier's large ball. ValueError for under 2 rows.
    """
    real, fake = (torch.as_tensor(f, dtype=torch.float64) for f in (real, fake))
    if min(len(real), len(fake)) < 2:
        raise ValueError("precision_recall_density_coverage: a neighbour needs at least 2 rows")

    def radii(f):  # (n) to the k-th neighbour; the nearest is the row itself
        return torch.cdist(f, f).kthvalue(min(k, len(f) - 1) + 1, dim=1).values
    distances = torch.cdist(real, fake)  # (n_real, n_fake)
    in_real = distances <= radii(real)[:, None]
    in_fake = distances <= radii(fake)
    shares = dict(precision=in_real.any(0), recall=in_fake.any(1), coverage=in_real.any(1))
    scores = {name: share.double().mean().item() for name, share in shares.items()}
    return scores | dict(density=in_real.double().sum(0).mean().item() / k)

def nearest_neighbour_ratio(generated, train, test):
    """Mean distance generated -> nearest train over that of test -> nearest train; all (n, L).

    Under that of reconstructed test series it hints at memorising (§6.4): smooth series lie nearer
    to others, new ones too. None where every test series is a train series.
    """
    def mean_nearest(a):  # no products: those lose small distances
        nearest = [torch.cdist(part, train, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
                   for part in a.split(256)]
        return torch.cat(nearest).double().mean().item()
    real = mean_nearest(test)  # how near unseen series lie
    return mean_nearest(generated) / real if real > 0 else None

def class_proportions(y, total):
    """Labels (total,) in the proportions of y (n,) to within one. total >= n: none forgotten."""
    return y.sort().values[torch.arange(total) * len(y) // total]

def score_samples(generated, conditional, labels, dataset, config, folder, x_hat=None):
    """Every sample metric, by its key in metrics.json, of standardised series; the classifier's
    file, steps and accuracy as `classifier`.

    generated (n, L) for FID and IS; conditional (n', L) for CAS where it has labels (n',); x_hat:
    the reconstructed test split, where samples are a run's. folder: the run's, two below the
    dataset's.
    """
    out = memorising(generated, dataset, x_hat)
    if not dataset.classes:
        return out  # what is left needs a classifier
    n, n_train, n_test = len(generated), len(dataset.x_train), len(dataset.x_test)
    if n < 256:  # as many as were published at the least
        print(f"WARNING: {n} series are few: their FID is too high and their IS too low; compare "
              "them with fid_floor and is_real, which are those of as many real series",
              file=sys.stderr)
    root = Path(folder).parent.parent
    K = len(dataset.classes)
    fcn, file, steps = dataset_fcn(root, dataset, fcn_config(config, K))
    (real, p_real), (fake, p_fake) = (classify(fcn, x)  # features (n, P), probabilities (n, K)
                                      for x in (dataset.x_test, generated))
    # The FID and the IS that a perfect model could reach: of as many real series.
    some_train = np.random.default_rng(0).choice(n_train, n, replace=n_train < n)
    floor, _ = classify(fcn, dataset.x_train[some_train])
    some_test = np.random.default_rng(0).permutation(n_test)[:n] if n < n_test else slice(None)
    out |= {"fid": frechet_distance(fake, real), "is": inception_score(p_fake),
            "fid_floor": frechet_distance(floor, real),
            "is_real": inception_score(p_real[some_test]),
            "fcn_accuracy": accuracy(p_real, dataset.y_test)}
    out |= precision_recall_density_coverage(real, fake)
    out["classifier"] = dict(file=str(file), steps=steps, accuracy=out["fcn_accuracy"])
    if x_hat is not None:  # what stage 1 alone costs
        out["fid_recon"] = frechet_distance(classify(fcn, x_hat)[0], real)
    if labels is not None:
        out["cas"] = classification_accuracy_score(conditional, labels, dataset, config, folder)
        # What CAS could reach: the same training on the real train split.
        on_real = replace(cas_config(config, len(conditional), K), seed=0)
        ruler, *_ = dataset_fcn(root, dataset, on_real)
        out["cas_real"] = accuracy(classify(ruler, dataset.x_test)[1], dataset.y_test)
    return out

def memorising(generated, dataset, x_hat=None):
    """nn_ratio of samples, of reconstructed test series where they are there; a warning (§6.4)."""
    def ratio(x):
        return nearest_neighbour_ratio(x, dataset.x_train, dataset.x_test)
    out = dict(nn_ratio=ratio(generated))
    limit, who = 0.5, "half of what test series have"  # smoothing alone makes 0.76 to 0.95
    if x_hat is not None:
        limit = out["nn_ratio_recon"] = ratio(x_hat)
        who = "reconstructions of test series"
    if out["nn_ratio"] is not None and out["nn_ratio"] < 0.999 * limit:
        print(f"WARNING: nn_ratio {out['nn_ratio']:.2f} < {limit:.2f}, {who}, hints at memorising "
              "(§6.4): samples lie nearer to train series than new ones would", file=sys.stderr)
    return out

# ---- A run ----
def evaluate_run(run_dir, config=None):
    """Write metrics.json, samples.npz and figures/ of a run folder. -> metrics, a dict."""
    run_dir, config, start = Path(run_dir), config or read_config(run_dir), time.time()
    device, dataset = pick_device(config.precision), load_dataset(config.dataset)
    model, first = load_stage1(run_dir, config, dataset)
    path, n_classes, y_test = run_dir / "metrics.json", len(dataset.classes), dataset.y_test
    if path.exists():  # a full one answers --stages 1 too
        old = read_json(path)
        full = config.stages == 2 == old.get("stages")
        wanted = config.behind("metrics" if full else "stage1") | dict(sha256=dataset.sha256)
        check_same(path, {k: (old.get("config") or {}).get(k) for k in wanted}, wanted)
        if old.get("stages", 0) >= config.stages:
            print(f"{path}: finished before, with these settings and data", file=sys.stderr)
            return old
    # Frozen: eval mode, so that no test series moves BatchNorm or codebook (ledger 12).
    train, test = encode_split(model, dataset.x_train), encode_split(model, dataset.x_test)
    time_error, frequency_error = test["errors"].mean(0).tolist()
    codes, perplexity = code_usage(test["tokens"], len(model.codebook()))
    m = dict.fromkeys(METRICS) | dict(
        recon=time_error + frequency_error, recon_time=time_error, recon_timefreq=frequency_error,
        # The published recon: that of the last mini-batch alone (ledger 13).
        recon_last_batch=test["errors"].sum(1).split(128)[-1].mean().item(),
        codes_used=codes, perplexity=perplexity, n_train=len(dataset.x_train),
        n_test=len(dataset.x_test), length=dataset.length, n_classes=n_classes,
        seconds_stage1=first["seconds"], complete_data=dataset.complete)
    if n_classes:
        m["knn"], m["svm"] = probe(train["pooled"], dataset.y_train, test["pooled"], y_test)
    else:
        print(f"{dataset.name}: no labels, so no KNN, SVM, IS, FID, CAS", file=sys.stderr)
    generated = conditional = labels = None  # of --stages 1
    if config.stages == 2:
        prior, _, second = load_stage2(run_dir, config, dataset)
        n, no_class = m["n_test"], prior.no_class
        # Train below test: the prior has begun to know its series by heart.
        m["prior_loss_train"], m["prior_loss"] = (
            prior_loss(prior, split["tokens"].to(device), y.to(device))
            for split, y in ((train, dataset.y_train), (test, y_test)))
        m["seconds_stage2"] = second["seconds"]
        # A generator each: neither set of samples hangs on the size of the other.
        draws = [torch.Generator(device).manual_seed(1000 * config.seed + i) for i in range(2)]
        generated = sample(prior, model, torch.full((max(n, 256),), no_class), draws[0], config)[:n]
        if n_classes:
            labels = class_proportions(dataset.y_train, max(1000, m["n_train"]))  # (n',)
            conditional = sample(prior, model, labels, draws[1], config)  # (n', L)
        kept = dict(X=conditional, X_unconditional=generated) if n_classes else dict(X=generated)
        save_samples(run_dir / "samples.npz", dataset, labels, **kept)
        m |= score_samples(generated, conditional, labels, dataset, config, run_dir, test["x_hat"])
        m["n_generated"] = len(kept["X"])
    m |= dict(seconds_evaluate=time.time() - start, stages=config.stages,
              config=config.behind("metrics") | dict(sha256=dataset.sha256))
    write_json(path, m)  # before anything is drawn
    from benchmarks.figures import draw_figures  # needs matplotlib, which nothing else does
    draw_figures(run_dir, dataset, model, test, generated, conditional, labels)
    return m

# ---- Commands ----
def command_samples(args):
    """Score the series of an .npz in original units: X, perhaps y, perhaps X_unconditional."""
    config, arrays, labels, series = make_config(args), read_arrays(args.file), None, []
    dataset = load_dataset(config.dataset)
    refuse("X" not in arrays, f"{args.file}: has {[*arrays]}, needs X (n, L)")
    for name in ("X", "X_unconditional"):  # X serves all where it is alone
        where = f"{args.file}, {name}"
        x = (as_series(arrays.get(name, arrays["X"]), where) - dataset.mean) / dataset.std
        refuse(x.shape[1] != dataset.length or len(x) < 2 or not (np.abs(x) < 1e9).all(),
               f"{where} {x.shape}: should be 2 series or more, of length {dataset.length}")
        series.append(torch.from_numpy(x.astype(np.float32)))  # (n, L), standardised
    x, unconditional = series
    if "y" in arrays and dataset.classes:
        refuse(arrays["y"].shape != (len(x),), f"{args.file}: y {arrays['y'].shape}, X {x.shape}")
        labels = torch.tensor([dataset.label(word) for word in arrays["y"].tolist()])
    folder = Path(os.environ.get("OUT") or "runs") / dataset.name / "scored" / Path(args.file).stem
    with hold(folder):  # the CAS training's log and resume file
        m = score_samples(unconditional, x, labels, dataset, config, folder)
    print(json.dumps(dict(file=args.file, n=len(x), **m), indent=1))

def compare(run_dirs):
    """Print one row a run: what `run.sh` ends with."""
    print("| run | " + " | ".join(SHOWN) + " | minutes |\n" + "|---" * (len(SHOWN) + 2) + "|")
    for run_dir in run_dirs:
        m = read_json(Path(run_dir) / "metrics.json")
        cells = ["" if m.get(k) is None else f"{m[k]:.4g}" for k in SHOWN]
        minutes = sum(m[f"seconds_{s}"] or 0 for s in ("stage1", "stage2", "evaluate")) / 60
        name = "/".join(Path(run_dir).resolve().parts[-3:])  # DATASET/METHOD-AUG/seedN
        print(f"| {name} | " + " | ".join(cells) + f" | {minutes:.1f} |")

def main():
    parser = Parser(description="Score runs and samples.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="score a run folder").add_argument("run_dir")
    samples = commands.add_parser("samples", help="score the series of an .npz", allow_abbrev=False)
    samples.add_argument("file", help="X (n, L); for CAS y; for FID, IS perhaps X_unconditional")
    samples.add_argument("--dataset", required=True, help="toy, a UCR name, or the path of an .npz")
    add_flags(samples, "fcn_epochs", also=("seed", "precision"))
    commands.add_parser("compare", help="one row a run").add_argument("run_dirs", nargs="+")
    args = parser.parse_args()
    if args.command == "samples":
        return command_samples(args)
    if args.command == "compare":
        return compare(args.run_dirs)
    with hold(args.run_dir):
        evaluate_run(args.run_dir)

if __name__ == "__main__":
    run_command(main)
