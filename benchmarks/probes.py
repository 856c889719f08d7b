"""What finished runs are asked afterwards: the published probes and CAS, and where samples lose.

python -m benchmarks.probes train_mode runs/                # the published way (ledger 12)
python -m benchmarks.probes cas runs/Symbols                # by the thesis' schedule (ledger 34)
python -m benchmarks.probes parts runs/ > results/parts.md  # real, reconstructed, generated
python -m benchmarks.probes spectrum RUN ... > results/spectrum.md  # what reconstructions lack

RUN is a run's folder. All take folders of runs as well, and leave out what is not finished.
"""

import copy
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.rows import PROBES, add_to_probes, find_runs, markdown, markdown_row, name_cells
from data import Config, Parser, hold, load_dataset, read_config, run_command
from evaluate import (
    accuracy,
    as_many,
    cas_config,
    classify,
    dataset_fcn,
    fcn_config,
    frechet_distance,
    inception_score,
    precision_recall_density_coverage,
    probe,
    read_run_samples,
    shared_folder,
    train_fcn,
)
from ncvqvae import encode_split, load_stage1


def probe_in_train_mode(model, dataset, seed=0):
    """The published probes: train mode, so test batches move BatchNorm and codebook (ledger 12).

    On a throw-away copy, in batches as large as the run trained with -> {PROBES: value}.
    """
    model = copy.deepcopy(model).train()
    batch = model.config.stage1_batch
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(dataset.x_train), generator=generator)
    z_train = encode_split(model, dataset.x_train[order], batch)["averages"]
    # The test split in the file's order, as theirs.
    z_test = encode_split(model, dataset.x_test, batch)["averages"]
    knn, svm = probe(z_train, dataset.y_train[order], z_test, dataset.y_test)
    return {"knn_train_mode": knn, "svm_train_mode": svm}


def command_train_mode(folders):
    """Probe finished runs in train mode into probe.json; print it beside the frozen values."""
    shown = ("knn", "svm", *PROBES)
    print(markdown(["run", "schedule", *shown], []), end="")
    for row in find_runs(folders, having="knn"):
        run_dir = row["run_dir"]
        config = read_config(run_dir)
        dataset = load_dataset(config.dataset)
        model, _ = load_stage1(run_dir, config, dataset)
        scores = probe_in_train_mode(model, dataset)
        add_to_probes(run_dir, scores)
        row |= scores
        values = [f"{row[name]:.3f}" for name in shown]
        print(markdown_row(name_cells(row) + values), flush=True)


def thesis_cas(run_dir):
    """CAS of a run's samples by the thesis' schedule -> {THESIS_CAS: value}.

    Whatever preset the run had: 1000 epochs of batches of 256. It goes on from an interruption.
    """
    config = read_config(run_dir)
    dataset = load_dataset(config.dataset)
    samples = read_run_samples(run_dir, dataset)
    x, y = samples["conditional"], samples["labels"]
    schedule = Config(seed=config.seed, precision=config.precision)  # the rest is the thesis'
    folder = Path(run_dir) / "thesis_cas"  # the training's log and resume file
    with hold(folder):
        fcn, training = train_fcn(
            x, y, len(dataset.classes), cas_config(schedule, dataset, len(x)), folder, "cas"
        )
        seconds = time.time() - training.started
        _, p = classify(fcn, dataset.x_test)
        scores = {"cas_thesis": accuracy(p, dataset.y_test), "seconds_cas_thesis": seconds}
        add_to_probes(run_dir, scores)
        training.remove_resume_file()
    return scores


def command_cas(folders):
    """CAS of finished runs by the thesis' schedule into probe.json, printed beside their own."""
    print(markdown(["run", "schedule", "cas", "cas_real", "cas_thesis", "minutes"], []), end="")
    for row in find_runs(folders, having="cas"):
        if row["cas_thesis"] is None:  # nor was its own CAS by that schedule
            row |= thesis_cas(row["run_dir"])
        cells = name_cells(row)
        for name in ("cas", "cas_real", "cas_thesis"):
            cells.append(f"{row[name]:.3f}")
        seconds = row["seconds_cas_thesis"]
        cells.append("" if seconds is None else f"{seconds / 60:.0f}")
        print(markdown_row(cells), flush=True)


def load_judged(run_dir):
    """A run's dataset, stage 1 and the classifier behind its FID, trained where it is not there."""
    config = read_config(run_dir)
    dataset = load_dataset(config.dataset)
    model, _ = load_stage1(run_dir, config, dataset)
    fcn, _, _ = dataset_fcn(shared_folder(run_dir), dataset, fcn_config(config, dataset))
    return dataset, model, fcn


def parts(run_dir):
    """Scores of real test series, their reconstructions and conditional samples; class shares.

    Scores: (FID, IS, share in the own class), of samples also the FID if they are repeated or cut
    to the test split's shares. Shares (K) in train, test and, as the classifier sees them,
    unconditional samples. Last {OF_CLASSES: value}, which compare with fid_floor, coverage_real.
    """
    dataset, model, fcn = load_judged(run_dir)
    n_classes = len(dataset.classes)
    samples = read_run_samples(run_dir, dataset)
    conditional, y = samples["conditional"], samples["labels"]

    def share(labels):
        return np.bincount(np.asarray(labels), minlength=n_classes) / len(labels)

    _, p = classify(fcn, samples["generated"])
    shares = [share(dataset.y_train), share(dataset.y_test), share(p.argmax(1))]
    real, _ = classify(fcn, dataset.x_test)  # features
    encoded_test = encode_split(model, dataset.x_test)
    scores = []
    for x, labels in (
        (dataset.x_test, dataset.y_test),
        (encoded_test["x_hat"], dataset.y_test),
        (conditional, y),
    ):
        features, p = classify(fcn, x)
        fid = frechet_distance(features, real)
        scores.append((fid, inception_score(p), accuracy(p, labels)))
    # features are now those of the conditional samples
    as_tested = []
    for k in range(n_classes):
        rows = np.flatnonzero(y.numpy() == k)
        as_tested.append(np.resize(rows, round(shares[1][k] * len(y))))
    fid = frechet_distance(features[np.concatenate(as_tested)], real)
    scores[2] += (fid,)
    chosen = features[as_many(len(features), len(real))]
    of_classes = {
        "fid_class": frechet_distance(chosen, real),
        "coverage_class": precision_recall_density_coverage(real, chosen)["coverage"],
    }
    return scores, shares, of_classes


def command_parts(folders):
    """Print parts.md of the finished runs below the folders; write OF_CLASSES into probe.json."""
    print("""# Where samples lose

Own class: the share that the classifier puts into the class a series has or was drawn for.
Class-conditional samples have the train split's shares of classes; last, their FID if repeated or
cut to the test split's. Shares of the classes, %: train / test / unconditional samples (over ten
classes: half the sum of their distances from the test split's, train / samples).
""")
    columns = [
        "run",
        "schedule",
        "real: IS, own class",
        "reconstructed: FID, IS, own class",
        "class-conditional samples: FID, IS, own class, FID",
        "unconditional samples: FID, IS",
        "shares",
    ]
    print(markdown(columns, []), end="")
    for row in find_runs(folders, having="cas"):
        (real, reconstructed, conditional), shares, of_classes = parts(row["run_dir"])
        add_to_probes(row["run_dir"], of_classes)
        cells = name_cells(row)
        for scores in (real[1:], reconstructed, conditional, (row["fid"], row["is"])):
            cells.append(", ".join(f"{value:.3f}" for value in scores))
        cells.append(shares_text(*shares))
        print(markdown_row(cells), flush=True)


def shares_text(train, test, drawn):
    """`50:50 / 50:50 / 61:39`, over ten classes the distances from the test split's alone."""
    if len(test) > 10:
        return f"{50 * abs(train - test).sum():.0f} / {50 * abs(drawn - test).sum():.0f}"
    texts = []
    for shares in (train, test, drawn):
        texts.append(":".join(f"{100 * share:.0f}" for share in shares))
    return " / ".join(texts)


def spectrum(x, x_hat, cuts):
    """Series x (n, L) and reconstructions, cut in two at frequencies -> a list of a dict per cut.

    k counts periods a series. power: the share of x's power at k and above; error: the power of
    x - x_hat there over x's there, 1 where a reconstruction has nothing. low: x_hat below k and x
    from k on; high: x below k and x_hat from k on.
    """
    of_x, of_x_hat = torch.fft.rfft(x), torch.fft.rfft(x_hat)  # (n, L // 2 + 1)
    twice = torch.full((of_x.shape[1],), 2.0)  # a frequency and its negative
    twice[0] = 1
    if x.shape[1] % 2 == 0:
        twice[-1] = 1
    power = twice * of_x.abs().square().sum(0)  # (L // 2 + 1)
    error = twice * (of_x - of_x_hat).abs().square().sum(0)
    rows = []
    for k in cuts:
        low = torch.cat([of_x_hat[:, :k], of_x[:, k:]], 1)
        high = torch.cat([of_x[:, :k], of_x_hat[:, k:]], 1)
        rows.append(
            {
                "k": k,
                "power": float(power[k:].sum() / power.sum()),
                "error": float(error[k:].sum() / power[k:].sum()),
                "low": torch.fft.irfft(low, n=x.shape[1]),
                "high": torch.fft.irfft(high, n=x.shape[1]),
            }
        )
    return rows


def command_spectrum(run_dirs):
    """Print spectrum.md of finished runs: which frequencies of reconstructions FID hangs on."""
    print("""# What reconstructions lack, by frequency

The test split and its reconstructions, cut in two at k periods a series. power: the share of a
series' power from k on. error: that of what the reconstruction misses there, over the power there;
1 where it has nothing. Then FID, and the share that the classifier behind it puts into the right
class, of series that are reconstructed below k and real from k on, and of the opposite. At k = 0
the opposite is the reconstruction whole.
""")
    columns = ["run", "preset", "k", "power", "error", "FID, own class: reconstructed below k"]
    print(markdown([*columns, "reconstructed from k on"], []), end="")
    for row in find_runs(run_dirs, having="knn"):
        dataset, model, fcn = load_judged(row["run_dir"])
        name = name_cells(row)
        x = dataset.x_test
        real, _ = classify(fcn, x)
        cuts = [0, *(k for k in (8, 16, 32, 64, 128, 256) if k < dataset.length // 2)]
        for part in spectrum(x, encode_split(model, x)["x_hat"], cuts):
            cells = [*name, str(part["k"]), f"{part['power']:.2g}", f"{part['error']:.2f}"]
            for half in ("low", "high"):
                features, p = classify(fcn, part[half])
                own = accuracy(p, dataset.y_test)
                cells.append(f"{frechet_distance(features, real):.3f}, {own:.3f}")
            print(markdown_row(cells), flush=True)


def main():
    commands = {
        "train_mode": command_train_mode,
        "cas": command_cas,
        "parts": command_parts,
        "spectrum": command_spectrum,
    }
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=commands)
    parser.add_argument("folders", nargs="+", help="finished runs, or folders of them")
    args = parser.parse_args()
    commands[args.command](args.folders)


if __name__ == "__main__":
    run_command(main)
