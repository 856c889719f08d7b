"""How the presets `fast` and `best` are chosen: trials scored on a held-out fifth of a train split.

    python benchmarks/fast.py stage1 runs/fast TwoPatterns      # its probes and reconstructions
    python benchmarks/fast.py stage2 runs/fast TwoPatterns      # priors on the first, their samples
    python benchmarks/fast.py decoding runs/fast TwoPatterns    # one prior, many ways to sample it
    python benchmarks/fast.py classifier runs/fast TwoPatterns  # the FCN's accuracy
    python benchmarks/fast.py cas runs/fast TwoPatterns         # CAS by the length of its training
    python benchmarks/fast.py table runs/fast results/          # fast.csv, every trial, and fast.md

A trial is the fast preset with some fields changed, in bf16; TRIALS has them all, those that failed
too. The test split is never read for a choice. Finished trials are skipped, so processes may share
the work by set. `own` is the share of samples that a classifier of real series puts into the class
they were drawn for, `fid_class` the FID of those samples.
"""
import argparse, json, shutil, sys, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data, evaluate, ncvqvae, prior
from benchmarks.tables import markdown, write_csv, write_text

ADAMW = dict(optimizer="adamw", stage2_lr=2e-3)
SLOWER = dict(stage2_lr=2e-3)
TRIALS = {
    "stage1": {"fast": {}, "first edition": dict(stage1_batch=128, projector_dim=4096),
               "400 steps": dict(stage1_steps=400),
               "naive": dict(method="naive", augmentation="none")},
    "stage2": {"fast": {}, "AdamW": ADAMW, "AdamW, lr 4e-3": dict(optimizer="adamw"),
               "AdamW, 4000 steps": ADAMW | dict(stage2_steps=4000),
               "lr 2e-3": SLOWER, "lr 8e-3": dict(stage2_lr=8e-3), "averaged": SLOWER,
               "no class 0.4": SLOWER | dict(class_dropout=0.4),
               "hidden 256": SLOWER | dict(prior_hidden=256, stage2_steps=800),
               "4000 steps": dict(stage2_steps=4000),
               "first edition": dict(optimizer="adamw", stage2_steps=800, stage2_batch=256,
                                     stage2_lr=1e-3, prior_hidden=256)},
    "decoding": {"lr 2e-3": SLOWER | dict(fcn_steps=0, fcn_epochs=100)},
    "classifier": {f"{steps} steps, lr {lr:g}": dict(fcn_steps=steps, fcn_lr=lr)
                   for lr in (1e-3, 3e-3) for steps in (300, 600, 1200, 2400)},
    "cas": {f"{epochs} epochs, batch {batch}": dict(cas_steps=0, cas_epochs=epochs, fcn_batch=batch)
            for epochs, batch in ((5, 64), (10, 64), (20, 64), (20, 256))},
}
# Passes, noise on the confidence, guidance; the first is the thesis'. 1e6 makes the order random.
DECODING = {"class": [(10, 4, 1), (10, 1, 1), (10, 0, 1), (10, 4, 2), (10, 1, 2), (20, 4, 1),
                      (20, 1, 2), (20, 1, 3), (20, 4, 2), (40, 1, 2), (20, 1e6, 1), (20, 1e6, 2)],
            "free": [(10, 4, 1), (10, 1, 1), (10, 8, 1), (20, 4, 1), (20, 8, 1), (20, 16, 1),
                     (40, 8, 1), (20, 1e6, 1), (40, 1e6, 1)]}


def held_out(name, out, fold):
    """An .npz of a set's train split: four fifths are its train split, the rest its test split."""
    path = out / f"{name}-{fold}.npz"
    if not path.exists():
        d = data.load_dataset(name)
        folds = StratifiedKFold(5, shuffle=True, random_state=0).split(d.x_train, d.y_train)
        fit, rest = list(folds)[fold]
        x, y = d.to_original(d.x_train), d.y_train.numpy()
        arrays = dict(X_train=x[fit], y_train=y[fit], X_test=x[rest], y_test=y[rest])
        data.write_atomic(path, lambda file: np.savez(file, **arrays))
    return data.load_dataset(str(path))


def config_of(dataset, out, **fields):
    trial = dict(method="vibcreg", augmentation="slice", precision="bf16", validate_epochs=0)
    return data.Config(dataset=str(out / f"{dataset.name}.npz"),
                       **data.PRESETS["fast"] | trial | fields)


class Averaged(ncvqvae.Training):
    """Ends with an exponential average of the weights, of a half-life of 140 steps."""
    def update(self, loss, **terms):
        super().update(loss, **terms)
        now = [p.detach() for p in self.model.parameters()]
        self.mean = [p.clone() for p in now] if self.step == 1 else self.mean
        torch._foreach_lerp_(self.mean, now, 0.005)
        if self.step == self.total:
            torch._foreach_copy_(now, self.mean)


def stage1(dataset, out, trial, fields):
    """Recon and probes of the held-out fifth, and what a classifier says to its reconstructions."""
    config = config_of(dataset, out, **fields)
    run = out / dataset.name / "stage1" / trial
    model = ncvqvae.train_stage1(run, config, dataset)
    train, test = (ncvqvae.encode_split(model, x) for x in (dataset.x_train, dataset.x_test))
    knn, svm = evaluate.probe(train["pooled"], dataset.y_train, test["pooled"], dataset.y_test)
    fcn, *_ = evaluate.dataset_fcn(
        out / dataset.name, dataset, evaluate.fcn_config(config, len(dataset.classes)))
    (real, p), (made, p_made) = (evaluate.classify(fcn, x) for x in (dataset.x_test, test["x_hat"]))
    yield dict(recon=test["errors"].sum(1).mean().item(), knn=knn, svm=svm,
               accuracy=evaluate.accuracy(p, dataset.y_test),
               own=evaluate.accuracy(p_made, dataset.y_test),
               fid=evaluate.frechet_distance(made, real),
               minutes=data.load_checkpoint(run / "stage1.pt")["seconds"] / 60)


def prior_of(dataset, out, trial, fields):
    """A prior on the tokens of the first stage-1 trial: its run folder, its models, its minutes."""
    run, config = out / dataset.name / "stage2" / trial, config_of(dataset, out, **fields)
    run.mkdir(parents=True, exist_ok=True)
    shutil.copy(out / dataset.name / "stage1" / "fast" / "stage1.pt", run)
    prior.Training = Averaged if trial == "averaged" else ncvqvae.Training
    prior.train_stage2(run, config, dataset)
    *models, checkpoint = prior.load_stage2(run, config, dataset)
    return run, models, checkpoint["seconds"] / 60


def judged(dataset, out, models, kind, how, n=1000, **fields):
    """Samples of the train split's classes, or of none, scored against the held-out fifth."""
    steps, temperature, guidance = how
    config = config_of(dataset, out, decode_steps=steps, choice_temperature=float(temperature),
                       guidance=float(guidance), **fields)
    labels = evaluate.class_proportions(dataset.y_train, n)
    wanted = labels if kind == "class" else torch.full_like(labels, models[0].no_class)
    start, generator = time.time(), torch.Generator(ncvqvae.pick_device()).manual_seed(1)
    x = prior.sample(*models, wanted, generator, config)
    seconds = time.time() - start
    fcn, *_ = evaluate.dataset_fcn(
        out / dataset.name, dataset, evaluate.fcn_config(config, len(dataset.classes)))
    (real, _), (fake, p) = (evaluate.classify(fcn, series) for series in (dataset.x_test, x))
    fid = evaluate.frechet_distance(fake, real)
    if kind == "class":
        scores = dict(own=evaluate.accuracy(p, labels), fid_class=fid)
    else:
        shares = np.bincount(p.argmax(1), minlength=len(dataset.classes)) / n
        scores = {"fid": fid, "is": evaluate.inception_score(p),
                  "shares": " ".join(f"{s:.2f}" for s in shares)}
    return x, labels, config, scores | dict(sampled=kind, passes=steps, noise=temperature,
                                            guidance=guidance, sampling=seconds)


def cas_of(x, y, dataset, config, run, seeds=2):
    """CAS on the held-out fifth, the mean over classifiers of a few seeds."""
    configs = [replace(config, seed=seed) for seed in range(1, seeds + 1)]
    return sum(evaluate.classification_accuracy_score(x, y, dataset, c, run)
               for c in configs) / seeds


def stage2(dataset, out, trial, fields):
    """A prior, judged by samples of its classes, with CAS, and of none."""
    run, models, minutes = prior_of(dataset, out, trial, fields)
    for how in ((10, 4, 1), (20, 4, 2)):
        x, labels, config, scores = judged(dataset, out, models, "class", how)
        yield scores | dict(cas=cas_of(x, labels, dataset, config, run), minutes=minutes)
    for how in ((10, 4, 1), (20, 4, 1)):
        yield judged(dataset, out, models, "free", how)[3] | dict(minutes=minutes)


def decoding(dataset, out, trial, fields):
    run, models, _ = prior_of(dataset, out, trial, fields)
    for kind, ways in DECODING.items():
        for how in ways:
            x, labels, config, scores = judged(dataset, out, models, kind, how, **fields)
            if kind == "class":
                scores["cas"] = cas_of(x, labels, dataset, config, run)
            yield scores


def classifier(dataset, out, trial, fields):
    """The classifier behind FID and IS: accuracy on the held-out fifth."""
    start = time.time()
    config = config_of(dataset, out, **fields)
    fcn, *_ = evaluate.dataset_fcn(
        out / dataset.name / "classifier", dataset,
        evaluate.fcn_config(config, len(dataset.classes)))
    accuracy = evaluate.accuracy(evaluate.classify(fcn, dataset.x_test)[1], dataset.y_test)
    yield dict(accuracy=accuracy, minutes=(time.time() - start) / 60)


def cas(dataset, out, trial, fields):
    """CAS of a prior's samples and of the reconstructed train split, by its training's length."""
    run, models, _ = prior_of(dataset, out, "lr 2e-3", SLOWER)
    changed = config_of(dataset, out, **fields)
    reconstructed = ncvqvae.encode_split(models[1], dataset.x_train)["x_hat"]
    sets = {"reconstructions": (reconstructed, dataset.y_train)}
    for how in ((10, 4, 1), (20, 1, 2)):
        sets["class {} {} {}".format(*how)] = judged(dataset, out, models, "class", how)[:2]
    for name, (x, y) in sets.items():
        start = time.time()
        score = cas_of(x, y, dataset, changed, run, seeds=1)
        yield dict(sampled=name, cas=score, minutes=(time.time() - start) / 60)


KINDS = {f.__name__: f for f in (stage1, stage2, decoding, classifier, cas)}
COLUMNS = ("kind", "dataset", "trial", "changed", "sampled", "passes", "noise", "guidance",
           "recon", "knn", "svm", "accuracy", "own", "fid_class", "fid", "is", "cas", "shares",
           "minutes", "sampling")


def table(out, results):
    """fast.csv of every trial, and fast.md: its rows, a table a kind."""
    paths = sorted(out.rglob("*.rows.json"))
    rows = [row for path in paths for row in json.loads(path.read_text())]
    write_csv(results / "fast.csv", COLUMNS, rows)
    text = """# Trials on held-out fifths of train splits

NAME-0 is the first of five folds. What a trial changes is relative to the fast preset; minutes: one
core of two in use.
"""
    for kind in KINDS:
        mine = [row for row in rows if row["kind"] == kind]
        columns = [c for c in COLUMNS[1:] if any(c in row for row in mine)]
        lines = [[shown(row.get(c, "")) for c in columns] for row in mine]
        text += f"\n## {kind}\n\n{markdown(columns, lines)}"
    lines, priors = [], [row for row in rows if row["kind"] == "stage2"]
    for trial in dict.fromkeys((row["dataset"], row["trial"]) for row in priors):
        mine = sorted((row for row in priors if (row["dataset"], row["trial"]) == trial),
                      key=lambda row: row["passes"])
        cells = [" / ".join(shown(row[key]) for row in mine if key in row)
                 for key in ("own", "fid_class", "cas", "fid")]
        lines.append([*trial, f"{mine[0]['minutes']:.1f}", *cells])
    columns = ["dataset", "trial", "minutes", "own", "FID, class", "CAS", "FID, none"]
    text += f"""
## What each ingredient of stage 2 is worth

Samples of a class: share in their own class, FID, CAS; of none: FID. By the thesis' decoding and,
behind /, by 20 passes, of a class with guidance 2.

{markdown(columns, lines)}"""
    write_text(results / "fast.md", text)


def shown(value):
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=[*KINDS, "table"])
    parser.add_argument("out", type=Path)
    parser.add_argument("sets", nargs="+", help="names, or for table the folder of results")
    parser.add_argument("--fold", type=int, nargs="+", default=[0], help="of five [0]")
    parser.add_argument("--only", nargs="+", help="trials [all]")
    args = parser.parse_args()
    if args.kind == "table":
        return table(args.out, Path(args.sets[0]))
    for name, fold in ((name, fold) for name in args.sets for fold in args.fold):
        dataset = held_out(name, args.out, fold)
        for trial in args.only or TRIALS[args.kind]:
            path = args.out / dataset.name / f"{args.kind}-{trial}.rows.json"
            if not path.exists():
                fields = TRIALS[args.kind][trial]
                what = dict(kind=args.kind, dataset=dataset.name, trial=trial,
                            changed=" ".join(f"{k}={v}" for k, v in fields.items()))
                rows = [what | row for row in KINDS[args.kind](dataset, args.out, trial, fields)]
                write_text(path, json.dumps(rows))
                for row in rows:
                    print(*map(shown, row.values()), flush=True)


if __name__ == "__main__":
    data.run_command(main)
