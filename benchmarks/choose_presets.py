"""How the presets `fast` and `best` are chosen: trials scored on a held-out fifth of a train split.

    python -m benchmarks.choose_presets probes runs/fast TwoPatterns      # stage 1's KNN, SVM
    python -m benchmarks.choose_presets stage1 runs/fast TwoPatterns      # its reconstructions too
    python -m benchmarks.choose_presets stage2 runs/fast TwoPatterns      # priors on the first
    python -m benchmarks.choose_presets decoding runs/fast TwoPatterns    # one prior, many ways
    python -m benchmarks.choose_presets classifier runs/fast TwoPatterns  # the FCN's accuracy
    python -m benchmarks.choose_presets cas runs/fast TwoPatterns         # CAS by its training
    python -m benchmarks.choose_presets table runs/fast results/          # fast.csv, fast.md

A trial is the fast preset with some fields changed, in bf16. TRIALS has those whose settings still
exist, results/fast.csv all, those that failed too. The test split is never read for a choice.
Finished trials are skipped, so processes may share the work by set. Priors are trained on the stage
1 of trial --on. `own` is the share of samples that a classifier of real series puts into the class
they were drawn for, `fid_class` the FID of those samples; `recall`, `coverage` and `nn_ratio` are
of samples of a class too.
"""

import json
import shutil
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold

from benchmarks.rows import fill, markdown, read_csv, write_csv, write_text
from data import (
    PRESETS,
    Config,
    Dataset,
    InputError,
    Parser,
    load_checkpoint,
    load_dataset,
    pick_device,
    run_command,
    write_atomic,
)
from evaluate import (
    accuracy,
    cas_scores,
    classify,
    dataset_fcn,
    fcn_config,
    frechet_distance,
    inception_score,
    nearest_neighbour_ratio,
    precision_recall_density_coverage,
    probe,
    score_prior,
)
from ncvqvae import encode_split, train_stage1
from prior import class_proportions, load_stage2, sample, train_stage2

NAIVE = {"method": "naive", "augmentation": "none"}
BARLOW = {"method": "barlow"}
ADAMW = {"optimizer": "adamw", "stage2_lr": 2e-3}
SLOWER = {"stage2_lr": 2e-3}
TRIALS = {
    "stage1": {
        "fast": {},
        "naive": NAIVE,
        "no warm-up": {"stage1_warmup": 0},
        "barlow": BARLOW,
        "barlow, no warm-up": BARLOW | {"stage1_warmup": 0},
        "naive, no warm-up": NAIVE | {"stage1_warmup": 0},
        "naive, width 16": NAIVE | {"latent_width": 16},
        "naive, width 32": NAIVE | {"latent_width": 32},
        "naive, two bands": NAIVE | {"bands": 2},
        "naive, 3200 steps": NAIVE | {"stage1_steps": 3200},
        "naive, width 32, 3200 steps": NAIVE | {"latent_width": 32, "stage1_steps": 3200},
    },
    "stage2": {
        "fast": {},
        "AdamW": ADAMW,
        "AdamW, lr 4e-3": {"optimizer": "adamw"},
        "AdamW, 4000 steps": ADAMW | {"stage2_steps": 4000},
        "lr 2e-3": SLOWER,
        "lr 8e-3": {"stage2_lr": 8e-3},
        "no class 0.4": SLOWER | {"class_dropout": 0.4},
        "hidden 256": SLOWER | {"prior_hidden": 256, "stage2_steps": 800},
        "4000 steps": {"stage2_steps": 4000},
        "8000 steps": {"stage2_steps": 8000},
        "dropout 0.3": {"prior_dropout": 0.3},
        "dropout 0.3, 8000 steps": {"prior_dropout": 0.3, "stage2_steps": 8000},
        "hidden 256, 4000 steps": {"prior_hidden": 256, "stage2_steps": 4000},
    },
    "decoding": {
        "4000 steps": {"stage2_steps": 4000},
        "8000 steps": {"stage2_steps": 8000},
        "no class 0.5, 4000 steps": {"class_dropout": 0.5, "stage2_steps": 4000},
        "dropout 0.3, 8000 steps": {"prior_dropout": 0.3, "stage2_steps": 8000},
    },
    "classifier": {},
    "cas": {},
}
TRIALS["probes"] = TRIALS["stage1"]
for lr in (1e-3, 3e-3):
    for steps in (300, 600, 1200, 2400):
        fields = {"fcn_steps": steps, "fcn_lr": lr}
        TRIALS["classifier"][f"{steps} steps, lr {lr:g}"] = fields
for epochs, batch in ((5, 64), (10, 64), (20, 64), (20, 256)):
    fields = {"cas_steps": 0, "cas_epochs": epochs, "fcn_batch": batch}
    TRIALS["cas"][f"{epochs} epochs, batch {batch}"] = fields

# (passes, noise on the confidence, guidance) of samples of a class and of none; the first is the
# thesis'. Earlier trials in fast.csv had more; 1e6 makes the order random.
DECODING = {
    "class": ((10, 4, 1), (10, 4, 1.5), (10, 8, 1.5), (10, 16, 1), (10, 16, 1.5)),
    "free": ((10, 4, 1), (10, 8, 1), (10, 16, 1)),
}


# ---------------------------------------------------------------------------------------------
# What trials share
# ---------------------------------------------------------------------------------------------


def held_out(name, out):
    """An .npz of a set's train split: four fifths are its train split, the rest its test split."""
    path = out / f"{Path(name).stem}-0.npz"  # the first fold; name: perhaps an own .npz
    if not path.exists():
        whole = load_dataset(name)
        x = whole.to_original(whole.x_train)
        y = whole.y_train.numpy()
        fit, rest = next(StratifiedKFold(5, shuffle=True, random_state=0).split(x, y))
        arrays = {"X_train": x[fit], "y_train": y[fit], "X_test": x[rest], "y_test": y[rest]}
        write_atomic(path, lambda file: np.savez(file, **arrays))
    return load_dataset(str(path))


@dataclass
class Trial:
    """One trial of a kind on a set's fold, below the folder out."""

    kind: str
    name: str
    dataset: Dataset
    out: Path
    on: str = "fast"  # the trial of stage 1 that priors are trained on

    @property
    def fields(self):
        """What it changes of the preset."""
        return TRIALS[self.kind][self.name]

    @property
    def folder(self):
        """The fold's, shared with its other trials."""
        return self.out / self.dataset.name

    @property
    def title(self):
        """Its name in files and tables."""
        return self.name if self.on == "fast" else f"{self.on}: {self.name}"

    def config(self, **fields):
        """The fast preset in bf16, with what stage 1, the trial and the caller change."""
        base = {
            "dataset": str(self.out / f"{self.dataset.name}.npz"),
            "method": "vibcreg",
            "augmentation": "slice",
            "precision": "bf16",
            "validate_epochs": 0,
        }
        of_stage1 = TRIALS["stage1"][self.on]
        return Config(**PRESETS["fast"] | base | of_stage1 | self.fields | fields)

    def classifier(self):
        """The classifier behind FID and IS, trained where missing."""
        config = fcn_config(self.config(), self.dataset)
        return dataset_fcn(self.folder, self.dataset, config)[0]

    def prior(self, title, **fields):
        """A prior on the tokens of stage 1's trial `on`: its run folder, models (2) and minutes."""
        run = self.folder / "stage2" / title
        config = self.config(**fields)
        run.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.folder / "stage1" / self.on / "stage1.pt", run)
        train_stage2(run, config, self.dataset)
        prior, stage1, checkpoint = load_stage2(run, config, self.dataset)
        return run, (prior, stage1), checkpoint["seconds"] / 60


def draw(trial, models, kind, how, n=1000):
    """Samples of the train split's classes (kind "class") or of none ("free").

    -> series (n, L), their classes (n,) and a row of their scores against the held-out fifth.
    """
    steps, noise, guidance = how
    dataset = trial.dataset
    config = trial.config(
        decode_steps=steps, choice_temperature=float(noise), guidance=float(guidance)
    )
    labels = class_proportions(dataset.y_train, n)
    given = labels if kind == "class" else torch.full_like(labels, models[0].no_class)
    start = time.time()
    generator = torch.Generator(pick_device()).manual_seed(1)
    x = sample(*models, given, generator, config)
    row = {"sampled": kind, "passes": steps, "noise": noise, "guidance": guidance}
    row["sampling"] = time.time() - start
    fcn = trial.classifier()
    real, _ = classify(fcn, dataset.x_test)
    fake, p = classify(fcn, x)
    fid = frechet_distance(fake, real)
    if kind == "class":
        row["own"] = accuracy(p, labels)
        row["fid_class"] = fid
        near = precision_recall_density_coverage(real, fake)
        row["recall"] = near["recall"]
        row["coverage"] = near["coverage"]
        row["nn_ratio"] = nearest_neighbour_ratio(x, dataset.x_train, dataset.x_test)
    else:
        row["fid"] = fid
        row["is"] = inception_score(p)
        counts = np.bincount(p.argmax(1), minlength=len(dataset.classes))
        if len(counts) <= 10:  # more do not fit into a cell
            row["shares"] = " ".join(f"{count / n:.2f}" for count in counts)
    return x, labels, row


def cas_of(x, y, trial, run, x_hat=None, seeds=(1, 2)):
    """CAS on the held-out fifth, and on its reconstructions x_hat, if given: {name: value}.

    The mean over classifiers of a few seeds.
    """
    of_seeds = []
    for seed in seeds:
        of_seeds.append(cas_scores(x, y, trial.dataset, trial.config(seed=seed), run, x_hat))
    names = ("cas",) if x_hat is None else ("cas", "cas_on_recon")
    return {name: statistics.mean(scores[name] for scores in of_seeds) for name in names}


# ---------------------------------------------------------------------------------------------
# The kinds of trials, each a generator of rows
# ---------------------------------------------------------------------------------------------


def encoded_and_probed(trial):
    """Stage 1, trained where missing -> its folder, both splits encoded, a row of the probes."""
    dataset = trial.dataset
    run = trial.folder / "stage1" / trial.name
    model = train_stage1(run, trial.config(), dataset)
    train = encode_split(model, dataset.x_train)
    test = encode_split(model, dataset.x_test)
    knn, svm = probe(train["averages"], dataset.y_train, test["averages"], dataset.y_test)
    minutes = load_checkpoint(run / "stage1.pt")["seconds"] / 60
    recon = test["errors"].sum(1).mean().item()
    return run, train, test, {"recon": recon, "knn": knn, "svm": svm, "minutes": minutes}


def probes(trial):
    """Recon and probes of the held-out fifth."""
    *_, row = encoded_and_probed(trial)
    yield row


def stage1(trial):
    """Those, and what a classifier says to the reconstructions.

    CAS is of the reconstructed four fifths: a prior that loses nothing would have it.
    """
    dataset = trial.dataset
    run, train, test, row = encoded_and_probed(trial)
    fcn = trial.classifier()
    real, p_real = classify(fcn, dataset.x_test)
    reconstructed, p_reconstructed = classify(fcn, test["x_hat"])
    near = precision_recall_density_coverage(real, classify(fcn, train["x_hat"])[0])
    row |= {
        "accuracy": accuracy(p_real, dataset.y_test),
        "own": accuracy(p_reconstructed, dataset.y_test),
        "fid": frechet_distance(reconstructed, real),
        "recall": near["recall"],
        "coverage": near["coverage"],
        "nn_ratio": nearest_neighbour_ratio(test["x_hat"], dataset.x_train, dataset.x_test),
    }
    yield row | cas_of(train["x_hat"], dataset.y_train, trial, run, test["x_hat"])


def stage2(trial):
    """A prior, judged by samples of its classes, with CAS, and of none."""
    run, models, minutes = trial.prior(trial.title)
    train, test = (
        encode_split(models[1], x) for x in (trial.dataset.x_train, trial.dataset.x_test)
    )
    of_prior = score_prior(models[0], trial.dataset, train, test) | {"minutes": minutes}
    for how in ((10, 4, 1), (10, 4, 2)):
        x, labels, row = draw(trial, models, "class", how)
        yield row | cas_of(x, labels, trial, run, test["x_hat"]) | of_prior
    _, _, row = draw(trial, models, "free", (10, 4, 1))
    yield row | of_prior


def decoding(trial):
    """One prior's samples, decoded in many ways."""
    run, models, _ = trial.prior(trial.title)
    for kind, ways in DECODING.items():
        for how in ways:
            x, labels, row = draw(trial, models, kind, how)
            if kind == "class":
                row |= cas_of(x, labels, trial, run)
            yield row


def classifier(trial):
    """The classifier behind FID and IS: accuracy on the held-out fifth."""
    start = time.time()
    config = fcn_config(trial.config(), trial.dataset)
    fcn, _, _ = dataset_fcn(trial.folder / "classifier", trial.dataset, config)
    _, p = classify(fcn, trial.dataset.x_test)
    right = accuracy(p, trial.dataset.y_test)
    yield {"accuracy": right, "minutes": (time.time() - start) / 60}


def cas(trial):
    """CAS of a prior's samples and of the reconstructed train split, by its training's length."""
    run, models, _ = trial.prior(replace(trial, name="lr 2e-3").title, **SLOWER)
    dataset = trial.dataset
    reconstructed = encode_split(models[1], dataset.x_train)["x_hat"]
    sets = {"reconstructions": (reconstructed, dataset.y_train)}
    for how in ((10, 4, 1), (20, 1, 2)):
        x, labels, _ = draw(trial, models, "class", how)
        sets["class {} {} {}".format(*how)] = (x, labels)
    for name, (x, y) in sets.items():
        start = time.time()
        score = cas_of(x, y, trial, run, seeds=(1,))
        yield {"sampled": name} | score | {"minutes": (time.time() - start) / 60}


KINDS = {
    "probes": probes,
    "stage1": stage1,
    "stage2": stage2,
    "decoding": decoding,
    "classifier": classifier,
    "cas": cas,
}


def run_trial(trial):
    """Run a trial, unless it has run, write its rows and print them."""
    path = trial.folder / f"{trial.kind}-{trial.title}.rows.json"
    if path.exists():
        return
    changed = " ".join(f"{name}={value}" for name, value in trial.fields.items())
    start = {"kind": trial.kind, "dataset": trial.dataset.name}
    start |= {"trial": trial.title, "changed": changed}
    rows = [start | row for row in KINDS[trial.kind](trial)]
    write_text(path, json.dumps(rows))
    for row in rows:
        print(*map(shown, row.values()), flush=True)


# ---------------------------------------------------------------------------------------------
# fast.csv and fast.md, and a table of results/README.md
# ---------------------------------------------------------------------------------------------

TRIAL = ("kind", "dataset", "trial", "changed")
SAMPLING = ("sampled", "passes", "noise", "guidance")
STAGE1 = ("recon", "knn", "svm", "accuracy")
NEAR = ("recall", "coverage", "nn_ratio")
SAMPLES = ("own", "fid_class", "fid", "is", *NEAR, "cas", "cas_on_recon", "shares")
COST = ("prior_loss_train", "prior_loss", "minutes", "sampling")
COLUMNS = (*TRIAL, *SAMPLING, *STAGE1, *SAMPLES, *COST)


def table(out, results):
    """Merge the trials below out into fast.csv; fast.md has its rows, a table a kind.

    results/README.md, where there is one, gets the table of losses.
    """
    trials = {}  # {(dataset, kind-trial): rows}
    for row in read_trials(results / "fast.csv"):
        trials.setdefault((row["dataset"], f"{row['kind']}-{row['trial']}"), []).append(row)
    for path in out.rglob("*.rows.json"):
        of_trial = json.loads(path.read_text())
        trials[of_trial[0]["dataset"], f"{of_trial[0]['kind']}-{of_trial[0]['trial']}"] = of_trial
    rows = []
    for key in sorted(trials, key=lambda key: (key[0], f"{key[1]}.rows.json")):
        rows += trials[key]
    write_csv(results / "fast.csv", COLUMNS, rows)
    text = """# Trials on held-out fifths of train splits

NAME-0 is the first of five folds. What a trial changes is relative to the fast preset and
vibcreg-slice; `naive: 4000 steps` is the trial `4000 steps` on the stage 1 of the trial `naive`.
`texture` is a setting that is gone: it added noise to samples, like the residual of a train series
with similar codes (`of any series`: of any). Of two bands `fast` learns and draws the low one, then
the high one given all of it. Three other ways are gone too: `one mask` over both, which are drawn
together, or the `low band first`; and `low band half masked`, where in half of the series the high
one is learnt from a part of it. recall, coverage, nn_ratio and CAS are of samples of a class; in
stage 1 of reconstructions (recall, coverage, CAS: of those that trained it). cas_on_recon: what the
classifiers behind CAS score on the reconstructed held-out fifth. prior_loss: of the held-out fifth.
Minutes: one core of two in use. FID of TwoPatterns-0 in `no warm-up` and `no warm-up: ...` is by a
classifier of 600 steps at 1e-3, CAS there by 40 steps a class, as the preset then had them, under
decoding by one of 100 epochs: these compare with one another alone, a table at a time.
"""
    for kind in KINDS:
        of_kind = [row for row in rows if row["kind"] == kind]
        if not of_kind:
            continue
        columns = [name for name in COLUMNS[1:] if any(name in row for row in of_kind)]
        lines = []
        for row in of_kind:
            lines.append([shown(row.get(name, "")) for name in columns])
        text += f"\n## {kind}\n\n{markdown(columns, lines)}"
    write_text(results / "fast.md", f"{text}\n{ingredients(rows)}")
    fill(results / "README.md", {"losses": losses(rows)})


def read_trials(path):
    """The rows of a fast.csv, without what they lack; [] where there is none."""
    rows = []
    for row in read_csv(path, text=(*TRIAL, "sampled", "shares")):
        given = {name: value for name, value in row.items() if value not in (None, "")}
        rows.append({"changed": ""} | given)
    return rows


def ingredients(rows):
    """A row a trial of stage 2: all ways of decoding in a cell."""
    trials = {}  # {(dataset, trial): rows, the thesis' decoding first}
    for row in rows:
        if row["kind"] == "stage2":
            trials.setdefault((row["dataset"], row["trial"]), []).append(row)
    lines = []
    for names, of_trial in trials.items():
        of_trial.sort(key=lambda row: (row["passes"], row["guidance"]))
        ways = []  # of samples of a class; those of none have no guidance
        for row in of_trial:
            if row["sampled"] == "class":
                ways.append(f"{shown(row['passes'])} x {shown(row['guidance'])}")
        line = [*names, f"{of_trial[0]['minutes']:.1f}", " / ".join(ways)]
        for metric in ("own", "fid_class", "cas", "fid"):
            values = [shown(row[metric]) for row in of_trial if metric in row]
            line.append(" / ".join(values))
        lines.append(line)
    columns = ["dataset", "trial", "minutes", "decoded", "own", "FID, class", "CAS", "FID, none"]
    return f"""## What each ingredient of stage 2 is worth

Samples of a class: share in their own class, FID, CAS; of none, by the same numbers of passes: FID.
decoded: passes x guidance, the first as the thesis decodes.

{markdown(columns, lines)}"""


# The way from real series to samples of a class: what is scored, the kind and trial that scored it,
# and how it was decoded.
ON_THE_WAY = (
    ("reconstructed, width 8", "stage1", "naive", ()),
    ("reconstructed, width 32", "stage1", "naive, width 32", ()),
    ("drawn as in the thesis", "decoding", "naive, width 32: 4000 steps", (10, 4, 1)),
    ("with noise 16", "decoding", "naive, width 32: 4000 steps", (10, 16, 1)),
    ("and guidance 1.5", "decoding", "naive, width 32: 4000 steps", (10, 16, 1.5)),
)


def losses(rows):
    """What each part of the way from real series to samples costs, of sets whose decoding ran."""
    found = {}  # {(dataset, kind, trial, how): row}
    for row in rows:
        how = tuple(row[name] for name in SAMPLING[1:] if name in row)
        if row.get("sampled") != "free":
            found[row["dataset"], row["kind"], row["trial"], how] = row
    lines = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        here = [found.get((dataset, *key)) for _, *key in ON_THE_WAY]
        if None in here:
            continue
        cas = [shown(row["cas"]) for row in here]
        fid = [shown(row["fid_class"] if "fid_class" in row else row["fid"]) for row in here]
        coverage = [shown(row["coverage"]) for row in here]
        lines.append([dataset, "CAS", shown(here[0]["accuracy"]), *cas])
        lines.append([dataset, "FID", "", *fid])
        lines.append([dataset, "coverage", "", *coverage])
    return markdown(["dataset", "score", "real", *(name for name, *_ in ON_THE_WAY)], lines)


def shown(value):
    """A cell: three digits of a float, else the text."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=[*KINDS, "table"])
    parser.add_argument("out", type=Path)
    parser.add_argument("sets", nargs="+", help="names, or for table the folder of results")
    parser.add_argument("--only", nargs="+", help="trials [all]")
    parser.add_argument("--on", default="fast", help="stage 1's trial under a prior [fast]")
    args = parser.parse_args()
    if args.kind == "table":
        table(args.out, Path(args.sets[0]))
        return
    if args.on != "fast" and args.kind in ("probes", "stage1", "classifier"):
        raise InputError(f"--on {args.on}: {args.kind} trains no prior")
    for kind, names in ((args.kind, args.only or []), ("stage1", [args.on])):
        for name in names:
            if name not in TRIALS[kind]:
                raise InputError(f"{name}: no trial of {kind}; there are {', '.join(TRIALS[kind])}")
    for name in args.sets:
        dataset = held_out(name, args.out)
        for trial in args.only or TRIALS[args.kind]:
            run_trial(Trial(args.kind, trial, dataset, args.out, args.on))


if __name__ == "__main__":
    run_command(main)
