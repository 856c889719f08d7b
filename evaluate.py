"""Chapter 3: is it any good? Probes, IS, FID, CAS, figures (thesis §2.7, §5.1.2, §6).

    test split -> stage 1 -> z_q, averaged over H and W' -> KNN, SVM            (representations)
    prior -> unconditional series -> FCN features -> FID; its softmax -> IS             (samples)
    prior -> class-conditional series -> a fresh FCN -> accuracy on the real test split: CAS

    python evaluate.py run     runs/Symbols/vibcreg-slice/seed1  # metrics.json, samples, figures
    python evaluate.py samples x.npz --dataset FordA --preset fast  # scores any model's series
    python evaluate.py compare runs/Symbols/*/seed*  # a row a run

Letters: B batch, n series, L length, D code dimension, N tokens of all bands, in a grid (H, W'), K
classes, P features of the FCN (128).

"Ledger 7" is row 7 of the ledger in README.md: where the thesis' text, the authors' program and
this code differ.
"""

import hashlib
import json
import os
import re
import time
from dataclasses import replace
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

from data import (
    Config,
    InputError,
    Parser,
    Training,
    add_flags,
    as_labels,
    errors_naming,
    finished_metrics,
    first_line,
    hold,
    load_checkpoint,
    load_dataset,
    make_config,
    pick_device,
    read_arrays,
    read_checkpoint,
    read_config,
    read_json,
    read_log,
    ready,
    resume_file,
    run_command,
    say,
    steps_per_epoch,
    use_fast_layout,
    warn,
    write_atomic,
    write_json,
)
from ncvqvae import encode_split, load_stage1
from prior import class_proportions, load_prior, prior_loss, sample, save_samples

# What `compare` shows.
SHOWN = (
    "recon",
    "knn",
    "svm",
    "codes_used",
    "prior_loss",
    "fid",
    "fid_recon",
    "fid_floor",
    "is",
    "is_real",
    "cas",
    "cas_real",
    "cas_on_recon",
    "precision",
    "recall",
    "density",
    "coverage",
    "coverage_real",
    "nn_ratio",
)
# Keys that are always in metrics.json, None where it was not measured; `config`, `stages` and,
# where samples of labelled data were scored, `classifier` stand beside them. nn_ratio: how near
# samples lie to train series. fid_floor, is_real, cas_real, coverage_real: what real series score;
# fid_recon: what reconstructions do. cas_on_recon: what the classifier behind CAS scores on
# reconstructed test series.
METRICS = (
    *SHOWN,
    "recon_time",
    "recon_timefreq",
    "recon_last_batch",
    "perplexity",
    "prior_loss_train",
    "nn_ratio_recon",
    "fcn_accuracy",
    "n_train",
    "n_test",
    "n_generated",
    "length",
    "n_classes",
    "seconds_stage1",
    "seconds_stage2",
    "seconds_evaluate",
    "complete_data",
)

# ---------------------------------------------------------------------------------------------
# Stage 1: probes and codes (§6.1)
# ---------------------------------------------------------------------------------------------


def probe(z_train, y_train, z_test, y_test):
    """Test accuracy of KNN (k = 5) and a linear SVM (C = 1). z (n, D), y (n,). §5.1.2.

    Features are scaled to (-1, 1) by the train split's extremes (ledger 31). What the probes see is
    which codes a series has, hardly where: the average over H and W' forgets the places.
    """
    scores = []
    for classifier in (KNeighborsClassifier(min(5, len(z_train))), SVC(kernel="linear", C=1.0)):
        pipeline = make_pipeline(MinMaxScaler((-1, 1)), classifier)
        pipeline.fit(z_train, y_train)
        scores.append(float(pipeline.score(z_test, y_test)))
    return scores


def code_usage(tokens, n_codes):
    """Codes in use, the perplexity exp(entropy) of their shares. tokens (n, N) -> int, float.

    A perplexity far below the number of codes in use: a few of them do most of the work.
    """
    counts = torch.bincount(tokens.flatten(), minlength=n_codes).double()  # (codes)
    p = counts / counts.sum()  # shares
    entropy = -torch.special.xlogy(p, p).sum()  # 0 log 0 = 0
    return int((p > 0).sum()), float(torch.exp(entropy))


# ---------------------------------------------------------------------------------------------
# The classifier behind IS, FID and CAS (Wang et al. 2017; §2.7.1, ledger 15)
# ---------------------------------------------------------------------------------------------


class FCN(nn.Module):
    """Fully convolutional classifier, filters of width 8, 5, 3. x (B, L) -> logits (B, K)."""

    def __init__(self, n_classes, precision="float32"):
        super().__init__()
        self.precision = precision
        # Conv1d as Conv2d in channels_last: 1.4 times faster on a CPU.
        layers = []
        for channels, filters, width, padding in (
            (1, 128, 8, 0),  # padded in features()
            (128, 256, 5, "same"),
            (256, 128, 3, "same"),
        ):
            conv = nn.Conv2d(channels, filters, (1, width), padding=padding)
            layers.append(nn.Sequential(conv, nn.BatchNorm2d(filters), nn.ReLU(inplace=True)))
        self.convs = nn.Sequential(*layers)
        self.head = nn.Linear(128, n_classes)

    def features(self, x):
        """Average-pooled features (B, L) -> (B, P) float32, what FID compares."""
        bf16 = self.precision == "bf16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            # "same" for width 8: 3 before, 4 behind (ledger 30); torch would warn of it.
            h = self.convs(F.pad(x, (3, 4))[:, None, None])  # (B, P, 1, L)
        # The mean over (B, 1, L, P), its order in memory: the gradient then has the same order, and
        # a training step on a CPU takes an eighth less time in bf16.
        return h.permute(0, 2, 3, 1).float().mean((1, 2))

    def forward(self, x):
        return self.head(self.features(x))


def train_fcn(x, y, n_classes, config, folder, name):
    """Train an FCN on x (n, L), y (n,) in 0..K-1 -> FCN in eval mode, and its Training.

    AdamW, cosine, the last step's weights, as published (ledger 15). name: of its lines in the log
    and of its files. The caller ends it: training.finish(path) keeps a checkpoint,
    training.remove_resume_file() keeps none (CAS). The sha256 of its identity is that of x and y.
    """
    device = pick_device(config.precision)
    torch.manual_seed(config.seed)
    model = FCN(n_classes, config.precision).to(device)
    use_fast_layout(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), weight_decay=config.fcn_weight_decay, fused=True
    )
    digest = hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()
    identity = config.settings_of("fcn") | {"sha256": digest}
    resume = resume_file(folder, name)
    if resume.exists() and load_checkpoint(resume).get("identity") != identity:
        # Of other settings or series: begin anew instead of refusing, as generated series may
        # differ in the last bit where only the number of threads does.
        resume.unlink()
    training = Training(
        folder,
        name,
        model,
        [optimizer],
        identity=identity,
        n=len(x),
        batch=config.fcn_batch,
        epochs=config.fcn_epochs,
        steps=config.fcn_steps,
        seed=config.seed,
    )
    x, y = x.to(device), y.to(device)  # (n, L), (n,)
    model.train()  # BatchNorm of the batch
    for rows in training:  # (B,) indices of a batch's series
        loss = F.cross_entropy(model(x[rows]), y[rows])
        for group in optimizer.param_groups:
            group["lr"] = training.cosine(config.fcn_lr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        training.step_done(loss)
    return model.eval().requires_grad_(False), training


# One recipe trains three classifiers, each by a copy of the run's config whose fcn_steps is its own
# number of steps:
#     FID and IS   on the train split      fcn_config   seed 0
#     CAS          on generated series     cas_config   the run's seed
#     cas_real     on the train split      cas_config   seed 0
# Those of seed 0 are one for all runs of a dataset with the same settings of a classifier.


def classifier_steps(steps, epochs, config, n, n_classes):
    """Steps to train a classifier on n series: `steps`, but at least steps_per_class a class.

    Where `steps` is 0 epochs decide alone.
    """
    if steps == 0:
        return epochs * steps_per_epoch(n, config.fcn_batch)
    return max(steps, config.steps_per_class * n_classes)


def fcn_config(config, dataset):
    """The config of the classifier behind FID and IS."""
    n, n_classes = len(dataset.x_train), len(dataset.classes)
    steps = classifier_steps(config.fcn_steps, config.fcn_epochs, config, n, n_classes)
    # The steps say it all. dataset_fcn names files by all these settings: with fcn_epochs at its
    # default, two ways to ask for the same steps share one file.
    return replace(config, seed=0, fcn_steps=steps, fcn_epochs=Config.fcn_epochs)


def cas_config(config, dataset, n):
    """The config of CAS's classifier, trained on n generated series."""
    n_classes = len(dataset.classes)
    steps = classifier_steps(config.cas_steps, config.cas_epochs, config, n, n_classes)
    return replace(config, fcn_steps=steps, fcn_epochs=Config.fcn_epochs)


def dataset_fcn(folder, dataset, config):
    """Load the dataset's classifier of a config from folder, or train it -> FCN, file, steps.

    The FCN is in eval mode. Runs share it: a second process waits until the first has trained it.
    """
    identity = config.settings_of("fcn") | {"sha256": dataset.sha256}
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    name = f"fcn-{digest[:8]}"  # other settings get another file
    path = Path(folder) / f"{name}.pt"
    n_classes = len(dataset.classes)
    with hold(folder, ".classifiers.lock", wait=True):  # a run may hold the folder as its own
        if not path.exists():
            x, y = dataset.x_train, dataset.y_train
            _, training = train_fcn(x, y, n_classes, config, folder, name)
            training.finish(path)
    # The dataset's sha256 is in the name. The one in the file is train_fcn's, of x and y alone, so
    # it is not compared.
    checkpoint, made_with = read_checkpoint(path, "fcn", config)
    fcn = ready(FCN(n_classes, made_with.precision), checkpoint, path, made_with.precision)
    return fcn, path, checkpoint["step"]


@torch.no_grad()
def classify(fcn, x):
    """Features (n, P) and class probabilities (n, K) of series x (n, L), float64 NumPy."""
    device = next(fcn.parameters()).device
    features = torch.cat([fcn.features(part.to(device)) for part in x.split(256)])  # (n, P)
    p = fcn.head(features).cpu().double().softmax(1)
    return features.cpu().double().numpy(), p.numpy()


def accuracy(p, y):
    """Share of rows of p, NumPy (n, K), whose largest entry is at y, a tensor (n,)."""
    return float((p.argmax(1) == y.numpy()).mean())


# ---------------------------------------------------------------------------------------------
# Sample metrics (§2.7.1)
# ---------------------------------------------------------------------------------------------


def frechet_distance(f1, f2):
    """Squared Fréchet distance of Gaussians fitted to features (n1, P), (n2, P). Eq. 2.21, float64.

    Tr (S1 S2)^1/2 is the sum of the roots of the eigenvalues of S1^1/2 S2 S1^1/2, which is
    symmetric: singular covariances are no trouble. ValueError for under 2 rows.

    It sees means and covariances of what the classifier looks at, and nothing else: what does not
    tell classes apart may be wrong unnoticed. With few rows it is too high, so it is read beside
    that of as many real series (fid_floor).
    """
    f1 = np.asarray(f1, dtype=np.float64)
    f2 = np.asarray(f2, dtype=np.float64)
    if min(len(f1), len(f2)) < 2:
        raise ValueError("frechet_distance: a covariance needs at least 2 rows")
    s1 = np.atleast_2d(np.cov(f1, rowvar=False))  # (P, P); of P = 1 it comes as a scalar
    s2 = np.atleast_2d(np.cov(f2, rowvar=False))
    values, vectors = np.linalg.eigh(s1)  # (P), (P, P)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T  # S1^1/2
    cross = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root).clip(0)).sum()  # Tr (S1 S2)^1/2
    means = ((f1.mean(0) - f2.mean(0)) ** 2).sum()
    return float(means + np.trace(s1) + np.trace(s2) - 2 * cross)


def inception_score(p, splits=10, seed=0):
    """exp(E KL(p(y|x) || p(y))), the mean over shuffled splits. p (n, K) -> float. Eq. 2.19.

    Eq. 2.19 is that of one split; ten are the convention (ledger 31). The score is 1 where all
    samples are alike or vague, K where they are sharp and the classes even; and 1 where there are
    no more rows than splits. It never looks at the data: one sharp series a class, repeated, has
    the best score. ValueError for no rows.
    """
    p = np.asarray(p, dtype=np.float64)
    if len(p) == 0:
        raise ValueError("inception_score: no rows")
    shuffled = p[np.random.default_rng(seed).permutation(len(p))]
    scores = []
    for part in np.array_split(shuffled, min(splits, len(p))):
        part = part + 1e-300  # 0 log 0 = 0
        kl = (part * np.log(part / part.mean(0))).sum(1)  # the mean over rows is p(y)
        scores.append(np.exp(kl.mean()))
    return float(np.mean(scores))


def precision_recall_density_coverage(real, fake, k=5):
    """Are samples near the data, and how much of the data do they cover? Features (n, P) -> dict.

    A ball around each row reaches to its k-th nearest neighbour of the same kind.
    precision: share of fake rows in some real ball. recall: share of real rows in some fake ball
    (Kynkäänniemi et al. 2019). density: how many real balls a fake row lies in, over k. coverage:
    share of real balls that hold a fake row (Naeem et al. 2020); one outlier with a large ball does
    not make these two good. ValueError for under 2 rows.
    """
    real = torch.as_tensor(real, dtype=torch.float64)
    fake = torch.as_tensor(fake, dtype=torch.float64)
    if min(len(real), len(fake)) < 2:
        raise ValueError("precision_recall_density_coverage: a neighbour needs at least 2 rows")

    def radii(f):  # (n) distance to the k-th neighbour
        neighbour = min(k, len(f) - 1) + 1  # the first one is the row itself
        parts = [distances(part, f).kthvalue(neighbour, dim=1).values for part in f.split(256)]
        return torch.cat(parts)

    real_radii, fake_radii = radii(real), radii(fake)
    balls = torch.zeros(len(fake), device=fake.device)  # real balls that a fake row lies in
    recalled, covered = 0, 0  # real rows
    # In parts of 256 real rows: memory grows with n, not with n * n.
    for part, part_radii in zip(real.split(256), real_radii.split(256), strict=True):
        d = distances(part, fake)  # (256, n_fake)
        in_real_ball = d <= part_radii[:, None]
        balls += in_real_ball.sum(0)
        covered += in_real_ball.any(1).sum().item()
        recalled += (d <= fake_radii).any(1).sum().item()
    return {
        "precision": (balls > 0).double().mean().item(),
        "recall": recalled / len(real),
        "density": balls.double().mean().item() / min(k, len(real) - 1),
        "coverage": covered / len(real),
    }


def distances(a, b):
    """Euclidean distances (n, m) of rows, not by matrix products, which lose small ones."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def classification_accuracy_score(x, y, dataset, config, folder):
    """CAS: accuracy on the real test split of an FCN trained on generated x (n, L), y (n,).

    For use by itself; a run calls cas_scores, which tells one thing more. None, with a warning,
    where y lacks a class of the data.

    It sees whether generated series have what tells the classes apart. It depends on the length of
    the training: a longer one also learns features of generated series that real ones lack, and
    scores the same samples lower (ledger 34). So it is read beside cas_real, of the same steps.
    """
    return cas_scores(x, y, dataset, config, folder)["cas"]


def cas_scores(x, y, dataset, config, folder, x_hat=None):
    """CAS of generated x (n, L), y (n,), and on reconstructions -> {"cas", "cas_on_recon": value}.

    A classifier that knows smooth series alone may fail on real ones for their noise: cas_on_recon,
    its accuracy on reconstructed test series x_hat (n_test, L), tells this from samples of the
    wrong class. None where x_hat is; both None, with a warning, where y lacks a class of the data.
    """
    scores = {"cas": None, "cas_on_recon": None}
    absent = [str(label) for k, label in enumerate(dataset.classes) if not (y == k).any()]
    if absent:
        warn(f"class {', '.join(absent)} of {dataset.name} is not in y: no CAS")
        return scores
    config = cas_config(config, dataset, len(x))
    fcn, training = train_fcn(x, y, len(dataset.classes), config, folder, "cas")
    training.remove_resume_file()  # no checkpoint of it is kept
    scores["cas"] = accuracy(classify(fcn, dataset.x_test)[1], dataset.y_test)
    if x_hat is not None:
        scores["cas_on_recon"] = accuracy(classify(fcn, x_hat)[1], dataset.y_test)
    return scores


def nearest_neighbour_ratio(generated, train, test):
    """d(generated) / d(test), d being the mean distance to the nearest train series; all (n, L).

    Generated series are smooth, and smooth series lie nearer to others. So compare the ratio with
    that of reconstructed test series: a smaller one hints at memorising (§6.4). None where every
    test series is a train series.
    """

    def mean_nearest(series):
        nearest = [distances(part, train).amin(1) for part in series.split(256)]
        return torch.cat(nearest).double().mean().item()

    real = mean_nearest(test)  # how near unseen series lie
    return mean_nearest(generated) / real if real > 0 else None


def memorising(generated, dataset, x_hat=None):
    """nn_ratio of samples; nn_ratio_recon of reconstructed test series x_hat where they are given.

    Warns of memorising (§6.4) where nn_ratio < 1 and < 0.9 nn_ratio_recon: samples then lie nearer
    to train series than unseen series and, by a tenth, as both ratios are noisy, than their
    reconstructions do. Without x_hat where nn_ratio < 0.5.
    """
    x_train, x_test = dataset.x_train, dataset.x_test
    scores = {"nn_ratio": nearest_neighbour_ratio(generated, x_train, x_test)}
    if x_hat is not None:
        scores["nn_ratio_recon"] = nearest_neighbour_ratio(x_hat, x_train, x_test)
    ratio = scores["nn_ratio"]
    if ratio is None:  # so is the other: both are shares of d(test), which is 0
        return scores
    if x_hat is None:
        least = 0.5  # far below what smoothing alone does: 0.91 or more in results/fast.md
        whose = "half of what test series have"
    else:
        least = 0.9 * scores["nn_ratio_recon"]
        whose = "nine tenths of what reconstructions of test series have"
    if ratio < min(1, least):
        warn(
            f"nn_ratio {ratio:.2f} < {least:.2f}, {whose}, hints at memorising (§6.4): samples lie "
            "nearer to train series than new ones would"
        )
    return scores


def shared_folder(folder):
    """OUT/DATASET of OUT/DATASET/METHOD-AUG/seedN or OUT/DATASET/scored/FILE, else the folder."""
    folder = Path(folder).resolve()
    place = f"{folder.parent.name}/{folder.name}"
    is_run = re.fullmatch(r"((naive|barlow|vibcreg)-.+/seed[0-9]+)|(scored/.+)", place)
    return folder.parent.parent if is_run else folder


def as_many(n_rows, n):
    """A seeded choice of n of n_rows rows, with repetitions where there are fewer."""
    return np.random.default_rng(0).choice(n_rows, n, replace=n_rows < n)


def score_samples(generated, conditional, labels, dataset, config, folder, x_hat=None):
    """Every sample metric of standardised series -> {key of metrics.json: value}.

    generated: (n, L), for FID, IS and what compares features.
    conditional, labels: (n', L) and (n',), for CAS; labels None: no CAS.
    x_hat: (n_test, L), the reconstructed test split where samples are a run's own.
    folder: the run's, OUT/DATASET/METHOD-AUG/seedN; the classifiers are kept in OUT/DATASET, or in
    the folder itself where that is no run's.
    The key `classifier` has the file, steps and accuracy of the one behind FID and IS.
    """
    scores = memorising(generated, dataset, x_hat)
    if not dataset.classes:
        return scores  # what is left needs a classifier
    n = len(generated)
    if n < 256:  # the fewest that the published program draws
        warn(
            f"{n} series are few: their FID is too high and their IS too low; compare them with "
            "fid_floor and is_real, which are those of as many real series"
        )
    root = shared_folder(folder)
    fcn, file, steps = dataset_fcn(root, dataset, fcn_config(config, dataset))
    features_test, p_test = classify(fcn, dataset.x_test)  # features (n, P), probabilities (n, K)
    features_generated, p_generated = classify(fcn, generated)
    # What n real series reach: of the train split for FID and coverage, of the test split for IS.
    # Where a split has fewer, series are repeated, and fid_floor is a little too high.
    features_train, _ = classify(fcn, dataset.x_train[as_many(len(dataset.x_train), n)])  # (n, P)
    # IS hangs on the order of rows, as it splits them: the whole test split keeps its own.
    p_as_many = p_test if n == len(p_test) else p_test[as_many(len(p_test), n)]
    fcn_accuracy = accuracy(p_test, dataset.y_test)
    scores["fid"] = frechet_distance(features_generated, features_test)
    scores["fid_floor"] = frechet_distance(features_train, features_test)
    scores["is"] = inception_score(p_generated)
    scores["is_real"] = inception_score(p_as_many)
    scores["fcn_accuracy"] = fcn_accuracy
    scores["classifier"] = {"file": str(file), "steps": steps, "accuracy": fcn_accuracy}
    scores |= precision_recall_density_coverage(features_test, features_generated)
    of_real = precision_recall_density_coverage(features_test, features_train)
    scores["coverage_real"] = of_real["coverage"]
    if x_hat is not None:  # what stage 1 alone costs
        scores["fid_recon"] = frechet_distance(classify(fcn, x_hat)[0], features_test)
    if labels is None:
        return scores
    scores |= cas_scores(conditional, labels, dataset, config, folder, x_hat) | {"cas_real": None}
    if scores["cas"] is not None:
        # What CAS could reach: the same training on the real train split. If it has as many steps
        # as FID's classifier, dataset_fcn finds that one's file.
        cas_real_config = replace(cas_config(config, dataset, len(conditional)), seed=0)
        fcn_of_cas, _, _ = dataset_fcn(root, dataset, cas_real_config)
        scores["cas_real"] = accuracy(classify(fcn_of_cas, dataset.x_test)[1], dataset.y_test)
    return scores


# ---------------------------------------------------------------------------------------------
# A run
# ---------------------------------------------------------------------------------------------


def evaluate_run(run_dir, config=None):
    """Write metrics.json, samples.npz and figures/ of a run folder -> metrics, a dict."""
    run_dir = Path(run_dir).resolve()  # figures are titled by its parent's name
    config = config or read_config(run_dir)
    start = time.time()
    pick_device(config.precision)  # sets what float32 means
    dataset = load_dataset(config.dataset)
    stage1, checkpoint = load_stage1(run_dir, config, dataset)
    finished = finished_metrics(run_dir, config, dataset)
    if finished and is_of_these_weights(finished, run_dir, checkpoint):
        say(f"{run_dir / 'metrics.json'}: finished before, with these settings and data")
        draw_missing_figures(run_dir, dataset, stage1)
        return finished
    metrics = dict.fromkeys(METRICS)
    metrics |= {
        "n_train": len(dataset.x_train),
        "n_test": len(dataset.x_test),
        "length": dataset.length,
        "n_classes": len(dataset.classes),
        "complete_data": dataset.complete,
        "seconds_stage1": checkpoint["seconds"],
    }
    # Frozen: eval mode, so that no test series moves BatchNorm or codebook (ledger 12).
    encoded_train = encode_split(stage1, dataset.x_train)
    encoded_test = encode_split(stage1, dataset.x_test)
    metrics |= score_tokens(stage1, dataset, encoded_train, encoded_test)
    samples = None
    if config.stages == 2:
        prior, prior_checkpoint = load_prior(run_dir, stage1, config, dataset)
        metrics["seconds_stage2"] = prior_checkpoint["seconds"]
        metrics |= score_prior(prior, dataset, encoded_train, encoded_test)
        samples = draw_samples(prior, stage1, dataset, config)
        save_run_samples(run_dir / "samples.npz", dataset, samples)
        metrics |= score_samples(
            samples["generated"],
            samples["conditional"],
            samples["labels"],
            dataset,
            config,
            run_dir,
            encoded_test["x_hat"],
        )
        in_file = samples["conditional"] if dataset.classes else samples["generated"]
        metrics["n_generated"] = len(in_file)  # series of X in samples.npz
    metrics |= {
        "seconds_evaluate": time.time() - start,
        "stages": config.stages,
        "config": config.settings_of("metrics") | {"sha256": dataset.sha256},
    }
    for name in FIGURES:  # old ones go first, so that a figure that is there is of these metrics
        (run_dir / "figures" / f"{name}.png").unlink(missing_ok=True)
    write_json(run_dir / "metrics.json", metrics)  # before anything is drawn
    draw_figures(run_dir, dataset, stage1, encoded_test, samples)
    return metrics


def is_of_these_weights(metrics, run_dir, stage1_checkpoint):
    """Were a run's metrics measured on the checkpoints that it has now?

    The seconds of their trainings tell: another training never takes exactly as many. A stage2.pt
    that is gone counts as unchanged.
    """
    seconds = {"seconds_stage1": stage1_checkpoint["seconds"]}
    path = run_dir / "stage2.pt"
    if metrics["stages"] == 2 and path.exists():
        seconds["seconds_stage2"] = load_checkpoint(path)["seconds"]
    return all(metrics.get(name) == value for name, value in seconds.items())


def score_tokens(stage1, dataset, encoded_train, encoded_test):
    """What stage 1's tokens are worth, of both splits' encode_split -> {key: value}.

    Reconstruction and code use are the test split's. Probes learn from the train split and are
    scored on the test split.
    """
    errors = encoded_test["errors"]  # (n_test, 2)
    time_error, frequency_error = errors.mean(0).tolist()
    codes_used, perplexity = code_usage(encoded_test["tokens"], len(stage1.codebook()))
    scores = {
        "recon": time_error + frequency_error,
        "recon_time": time_error,
        "recon_timefreq": frequency_error,  # recon_freq of the log, the thesis' time-frequency
        # As the published recon: of the last mini-batch alone (ledger 13).
        "recon_last_batch": errors.sum(1).split(128)[-1].mean().item(),
        "codes_used": codes_used,
        "perplexity": perplexity,
    }
    if dataset.classes:
        scores["knn"], scores["svm"] = probe(
            encoded_train["averages"], dataset.y_train, encoded_test["averages"], dataset.y_test
        )
    else:
        say(f"{dataset.name}: no labels, so no KNN, SVM, IS, FID, CAS")
    return scores


def score_prior(prior, dataset, encoded_train, encoded_test):
    """Masked cross-entropy of both splits' tokens -> {key: float}.

    A low one of the train split beside a high one of the test split: the prior is overfit. Losses
    over the tokens of two different stage-1 models cannot be compared: a collapsed codebook, whose
    tokens say nothing, has the lowest of all.
    """
    device = next(prior.parameters()).device
    scores = {}
    for key, split, y in (
        ("prior_loss_train", encoded_train, dataset.y_train),
        ("prior_loss", encoded_test, dataset.y_test),
    ):
        scores[key] = prior_loss(prior, split["tokens"].to(device), y.to(device))
    return scores


def draw_samples(prior, stage1, dataset, config):
    """The series that a run is judged by, standardised.

    generated (n_test, L): unconditional, for FID and IS; conditional (n', L) with labels (n',) in
    the train split's shares of classes, for CAS, None where there are no classes.
    """
    device = next(prior.parameters()).device
    # A generator each: neither set of samples depends on the size of the other.
    generators = [torch.Generator(device).manual_seed(1000 * config.seed + i) for i in range(2)]
    n_test = len(dataset.x_test)
    # As published: at least 256 are drawn, and as many as the test split has are kept.
    no_class = torch.full((max(n_test, 256),), prior.no_class)
    generated = sample(prior, stage1, no_class, generators[0], config)[:n_test]
    samples = {"generated": generated, "conditional": None, "labels": None}
    if dataset.classes:
        labels = class_proportions(dataset.y_train, max(1000, len(dataset.y_train)))
        samples["labels"] = labels
        samples["conditional"] = sample(prior, stage1, labels, generators[1], config)
    return samples


def save_run_samples(path, dataset, samples):
    """samples.npz of a run: X with its labels y and X_unconditional, or X alone without classes."""
    if samples["labels"] is None:
        series = {"X": samples["generated"]}
    else:
        series = {"X": samples["conditional"], "X_unconditional": samples["generated"]}
    save_samples(path, dataset, samples["labels"], **series)


def read_run_samples(run_dir, dataset):
    """The samples of a finished run as draw_samples made them, but for rounding, from its file."""
    names = ("X", "y", "X_unconditional")
    arrays = read_arrays(Path(run_dir) / "samples.npz", names, needed=("X",))
    series = {}
    for name in ("X", "X_unconditional"):
        if name in arrays:
            series[name] = dataset.standardise(arrays[name][:, 0])
    if "y" not in arrays:
        return {"generated": series["X"], "conditional": None, "labels": None}
    labels = torch.tensor([dataset.label(label) for label in arrays["y"].tolist()])
    generated = series["X_unconditional"]
    return {"generated": generated, "conditional": series["X"], "labels": labels}


# ---------------------------------------------------------------------------------------------
# The figures of a run (§6.1, §6.2). Matplotlib is imported once something is drawn.
# ---------------------------------------------------------------------------------------------

FIGURES = ("reconstructions", "latents", "losses", "samples", "generated")  # two of stage 2


def house_style():
    """A context in which figures look like ours; a notebook's own settings come back after it."""
    import matplotlib

    return matplotlib.rc_context(
        {
            "axes.formatter.min_exponent": 3,  # 0.1, not a power of ten
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 9,
            "font.size": 9,
            "legend.frameon": False,
            "savefig.dpi": 130,
        }
    )


def new_figure(rows, columns, figsize, **options):
    """A matplotlib figure and its axes; figsize in inches, options those of Figure.subplots.

    Not by pyplot, which would look for a display, or show it in a notebook.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=figsize)
    return figure, figure.subplots(rows, columns, **options)


def as_it_is(label):
    """A label for matplotlib, which reads $...$ as mathematics and keeps _... out of a legend."""
    text = str(label).replace("$", r"\$")
    if text.startswith("_"):
        text = "\u200b" + text  # a space of no width
    return text


def draw_missing_figures(run_dir, dataset, stage1):
    """Draw those figures of a finished run that are not there: it was interrupted, or they failed.

    Without samples.npz, which has what two of them show, these are left out.
    """
    has_samples = (run_dir / "samples.npz").exists()
    names = FIGURES if has_samples else FIGURES[:3]
    missing = [name for name in names if not (run_dir / "figures" / f"{name}.png").exists()]
    if missing:
        encoded_test = encode_split(stage1, dataset.x_test)
        samples = read_run_samples(run_dir, dataset) if has_samples else None
        draw_figures(run_dir, dataset, stage1, encoded_test, samples, missing)


def draw_figures(run_dir, dataset, stage1, encoded_test, samples, names=FIGURES):
    """Draw the figures of a run into run_dir/figures; the first three where samples is None.

    samples: the dict of draw_samples. names: those to draw. A figure that fails is a warning, as
    what a run has measured does not depend on a drawing.
    """
    run_dir = Path(run_dir)
    drawings = {
        "reconstructions": lambda: draw_reconstructions(dataset, encoded_test["x_hat"]),
        "latents": lambda: draw_latents(dataset, encoded_test["averages"]),
        "losses": lambda: draw_losses(read_log(run_dir)),
    }
    if samples is not None:
        drawings["samples"] = lambda: draw_series(dataset, samples)
        drawings["generated"] = lambda: draw_real_and_generated(
            dataset, stage1, encoded_test["averages"], samples["generated"]
        )
    for name, draw in drawings.items():
        if name not in names:
            continue
        path = run_dir / "figures" / f"{name}.png"
        try:
            with house_style():
                figure, heading = draw()
                title = f"{heading}: {as_it_is(dataset.name)}, {run_dir.parent.name}"
                figure.suptitle(title, x=0.02, ha="left")
                figure.tight_layout()
                write_atomic(path, lambda file: figure.savefig(file, format="png"))  # noqa: B023
        except Exception as error:  # any of matplotlib's or sklearn's
            reason = first_line(error)
            warn(
                f"{path}: not drawn ({reason}); metrics.json has all that was measured; the same "
                "command draws what is missing"
            )


def some_rows(n, most):
    """A seeded choice of up to `most` of n rows."""
    return np.random.default_rng(0).permutation(n)[:most]


def draw_reconstructions(dataset, x_hat):
    """Up to six test series and what stage 1 makes of them.

    What is missing here no sample can have, as samples pass the same decoder.
    """
    figure, axes = new_figure(2, 3, figsize=(10, 4), sharex=True)
    rows = np.linspace(0, len(x_hat) - 1, min(6, len(x_hat))).astype(int)
    for axis in axes.flat[len(rows) :]:
        axis.axis("off")
    for axis, i in zip(axes.flat, rows, strict=False):
        series = dataset.to_original(dataset.x_test[i])
        reconstruction = dataset.to_original(x_hat[i])
        axis.plot(series, color="0.6", lw=1.8, label="test series")
        axis.plot(reconstruction, color="C3", lw=1, label="reconstruction")
        axis.set_title(f"test series {i + 1}")
    for axis in axes[1]:
        axis.set_xlabel("time step")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncol=2)
    return figure, "Reconstructions"


def draw_latents(dataset, averages):
    """PCA and t-SNE of the test split's z_q, by class (t-SNE: Figures 6.4 to 6.6).

    Clusters by class are what SSL is to bring. In a t-SNE the distance between clusters means
    nothing.
    """
    rows = some_rows(len(averages), 500)
    z = averages.numpy()[rows]
    y = dataset.y_test.numpy()[rows] if dataset.classes else None
    figure, axes = new_figure(1, 2, figsize=(10, 4.2))
    for axis, name, points in ((axes[0], "PCA", pca(z)), (axes[1], "t-SNE", tsne(z))):
        scatter_classes(axis, points, y, dataset.classes)
        axis.set(title=f"{name} of z_q, {len(z)} series", xlabel=f"{name} 1", ylabel=f"{name} 2")
    if 0 < len(dataset.classes) <= 12:
        axes[1].legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure, "Discrete latent representations"


def scatter_classes(axis, points, y, classes):
    """Points (n, 2) coloured by class index y (n,), grey where y is None."""
    from matplotlib import colormaps

    if y is None:
        axis.scatter(points[:, 0], points[:, 1], s=7, alpha=0.7, lw=0, color="0.4")
        return
    few = len(classes) <= 10
    colours = colormaps["tab10" if few else "nipy_spectral"]
    for k, label in enumerate(classes):
        text = as_it_is(label)
        chosen = points[y == k]
        colour = colours(k if few else k / (len(classes) - 1))
        axis.scatter(chosen[:, 0], chosen[:, 1], s=7, alpha=0.7, lw=0, color=[colour], label=text)


def draw_losses(log):
    """The losses of each stage, those of the test split bold (Figures 6.2, 6.11).

    A bold line that rises while the other one falls: the stage overfits. A regular spike is an
    epoch's last, small batch.
    """
    records = [record for record in log if "step" in record]
    present = {record["stage"] for record in records}
    stages = [stage for stage in ("stage1", "stage2", "cas") if stage in present]
    size = (4.8 * len(stages), 3.6)
    figure, axes = new_figure(1, len(stages), figsize=size, squeeze=False)
    for axis, stage in zip(axes[0], stages, strict=True):
        curves = {}  # {name of the loss: ([steps], [values])}
        for record in records:
            if record["stage"] != stage:
                continue
            for name, value in record.items():
                if name in ("stage", "step", "epoch"):
                    continue
                steps, values = curves.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(value)
        for name, (steps, values) in curves.items():
            if name.startswith("val_"):
                label = f"{name[4:]} of the test split"
                axis.plot(steps, values, label=label, color="k", lw=2, marker="o", ms=3)
            else:
                axis.plot(steps, values, label=name)
        axis.set(title=stage, xlabel="optimiser step", ylabel="loss", yscale="log")
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure, "Losses in training"


def draw_series(dataset, samples):
    """A column for each of the first 6 classes and a last one of any class, up to 50 series each.

    Figures 6.14, 6.15, 6.18 to 6.20. Samples of a class should differ among themselves as much as
    its train series do. A column shares its y axis, so that a wrong scale shows. One is black:
    where 50 that oscillate fill the plot, it shows what a series looks like.
    """
    columns = [*range(min(6, len(dataset.classes))), None]
    rows = (  # name, series of classes, their labels, series of any class
        ("train", dataset.x_train, dataset.y_train, dataset.x_train),
        ("test", dataset.x_test, dataset.y_test, dataset.x_test),
        ("samples", samples["conditional"], samples["labels"], samples["generated"]),
    )
    size = (2.3 * max(3, len(columns)), 6)
    figure, axes = new_figure(
        3, len(columns), figsize=size, sharex=True, sharey="col", squeeze=False
    )
    for axis_row, (who, of_class, y, of_any) in zip(axes, rows, strict=True):
        for axis, k in zip(axis_row, columns, strict=True):
            if k is None:
                series, name = of_any, "any class"
            else:
                series, name = of_class[y == k], f"class {as_it_is(dataset.classes[k])}"
            series = dataset.to_original(series[some_rows(len(series), 50)])
            colour = "C0" if who == "samples" else "0.6"
            axis.plot(series.T, lw=0.5, alpha=0.4, color=colour)
            axis.plot(series[:1].T, lw=0.8, color="black")
            axis.set_title(f"{who}, {name} ({len(series)})")
    for axis in axes[-1]:
        axis.set_xlabel("time step")
    return figure, "Real series and samples, one of them black"


def draw_real_and_generated(dataset, stage1, averages, generated):
    """Both as series and as z_q; the PCA is fitted on the real ones (Figures 6.16, 6.17, 6.21).

    Grey without blue: a kind of series that is never generated. Blue without grey: one that the
    data does not have.
    """
    rows = some_rows(len(generated), 250)  # of test series too: there are as many
    n = len(rows)
    made = generated[rows]
    averages_of_made = encode_split(stage1, made)["averages"]
    figure, axes = new_figure(2, 2, figsize=(9, 7.5))
    for axis_row, what, real, fake in (
        (axes[0], "series", dataset.x_test[rows], made),
        (axes[1], "z_q", averages[rows], averages_of_made),
    ):
        both = torch.cat([real, fake]).numpy()
        projections = (("PCA", pca(both, real)), ("t-SNE", tsne(both)))
        for axis, (name, points) in zip(axis_row, projections, strict=True):
            style = {"s": 7, "alpha": 0.6, "lw": 0}
            axis.scatter(points[:n, 0], points[:n, 1], color="0.6", label="test", **style)
            axis.scatter(points[n:, 0], points[n:, 1], label="generated", **style)
            axis.set(title=f"{name} of {what}", xlabel=f"{name} 1", ylabel=f"{name} 2")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncol=2, markerscale=2)
    return figure, f"{n} real and generated series"


def pca(z, fitted_on=None):
    """First two principal components of z (n, D) -> (n, 2), fitted on z or on other rows."""
    return PCA(2, random_state=0).fit(z if fitted_on is None else fitted_on).transform(z)


def tsne(z):
    """t-SNE of z (n, D), NumPy -> (n, 2)."""
    start = "pca" if np.ptp(z, axis=0).max() > 0 else "random"  # all alike: no direction
    perplexity = min(30, (len(z) - 1) / 3)
    return TSNE(perplexity=perplexity, init=start, random_state=0).fit_transform(z)


# ---------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------


def command_samples(args):
    """Score the series of an .npz in original units: X, perhaps y, perhaps X_unconditional.

    The classifier is kept below $OUT [runs]. It is that of runs of the same preset, precision and
    fcn flags.
    """
    config = make_config(args)
    arrays = read_arrays(args.file, ("X", "y", "X_unconditional"), needed=("X",))
    dataset = load_dataset(config.dataset)
    x = dataset.check_and_standardise(arrays["X"], f"{args.file}, X")
    generated = x  # without X_unconditional X serves all metrics
    if "X_unconditional" in arrays:
        where = f"{args.file}, X_unconditional"
        generated = dataset.check_and_standardise(arrays["X_unconditional"], where)
    for name, series in (("X", x), ("X_unconditional", generated)):
        if len(series) < 2:
            raise InputError(f"{args.file}, {name}: {len(series)} series; 2 or more are scored")
    labels = None
    if "y" not in arrays and dataset.classes:
        say(f"{args.file}: no y, the classes of X; so no CAS")
    elif dataset.classes:
        words = as_labels(arrays["y"], len(x), f"{args.file}, y")
        with errors_naming(f"{args.file}, y"):
            labels = torch.tensor([dataset.label(word) for word in words])
    out = Path(os.environ.get("OUT") or "runs").expanduser()
    folder = out / dataset.name / "scored" / Path(args.file).stem
    with hold(folder):  # the CAS training's log and resume file
        scores = score_samples(generated, x, labels, dataset, config, folder)
    print(json.dumps({"file": args.file, "n": len(x), **scores}, indent=1))


def compare(run_dirs):
    """Print one row a run: what `run.sh` ends with. A run that cannot be shown is named."""
    rows = []
    for run_dir in run_dirs:
        path = Path(run_dir) / "metrics.json"
        if not path.exists():
            say(f"{run_dir}: no metrics.json, not finished: left out")
            continue
        try:
            with errors_naming(path):
                rows.append(comparison_row(run_dir, read_json(path)))
        except InputError as error:
            say(f"{error}; left out")
    if not rows:
        raise InputError(f"{', '.join(map(str, run_dirs))}: no metrics.json of a finished run")
    print("| run | " + " | ".join(SHOWN) + " | minutes |")
    print("|---" * (len(SHOWN) + 2) + "|")
    print("\n".join(rows))


def comparison_row(run_dir, metrics):
    """A line of compare's table."""
    cells = ["/".join(Path(run_dir).resolve().parts[-3:])]  # DATASET/METHOD-AUG/seedN
    for key in SHOWN:
        value = metrics.get(key)
        cells.append("" if value is None else f"{value:.4g}")
    seconds = [metrics.get(f"seconds_{stage}") or 0 for stage in ("stage1", "stage2", "evaluate")]
    cells.append(f"{sum(seconds) / 60:.1f}")
    return f"| {' | '.join(cells)} |"


def main():
    parser = Parser(description="Score runs and samples.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="score a run folder")
    run.add_argument("run_dir")
    samples = commands.add_parser("samples", help="score the series of an .npz", allow_abbrev=False)
    samples.add_argument("file", help="X (n, L); for CAS y; for FID, IS perhaps X_unconditional")
    samples.add_argument("--dataset", required=True, help="toy, a UCR name, an own folder or .npz")
    add_flags(samples, first="fcn_epochs", also=("seed", "precision"))
    rows = commands.add_parser("compare", help="one row a run")
    rows.add_argument("run_dirs", nargs="+")
    args = parser.parse_args()
    if args.command == "samples":
        command_samples(args)
    elif args.command == "compare":
        compare(args.run_dirs)
    else:
        read_config(args.run_dir)  # no folder is made where there is none
        with hold(args.run_dir):
            evaluate_run(args.run_dir)


if __name__ == "__main__":
    run_command(main)
