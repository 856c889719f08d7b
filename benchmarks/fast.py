"""How the fast preset was chosen: schedules tried on four fifths of a train split, scored on the fifth that was held out.

    UCR_DIR=datasets python benchmarks/fast.py stage1 runs/fast ECG5000 TwoPatterns ShapesAll    # 20 minutes a set on one CPU core
    UCR_DIR=datasets python benchmarks/fast.py stage2 runs/fast ECG5000 TwoPatterns ShapesAll    # 12 minutes a set
    UCR_DIR=datasets python benchmarks/fast.py fcn runs/fast ECG5000 TwoPatterns ShapesAll       # 4 minutes a set
    python benchmarks/fast.py table runs/fast > results/fast.md

The test split is never read for a choice. Finished trials are skipped, so several processes may share the work by set.
"""
import json, os, sys, time
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data, evaluate, ncvqvae, prior

STAGE1 = [(400, 3e-3, 0), (800, 3e-3, 0), (800, 6e-3, 40)]       # steps, learning rate, steps of linear warm-up
STAGE2 = [(400, 1e-3, 0), (400, 3e-3, 40), (800, 1e-3, 0)]
FCN_EPOCHS = (100, 300)
MODELS = [("naive", "none"), ("vibcreg", "slice")]


def held_out(name, out):
    """An .npz whose train split is four fifths of a set's train split and whose test split is the rest of it."""
    path = out / f"{name}-heldout.npz"
    if not path.exists():
        d = data.load_dataset(name, os.environ.get("UCR_DIR", "datasets"))
        fit, rest = train_test_split(np.arange(len(d.x_train)), test_size=0.2, random_state=0, stratify=d.y_train)
        x, y = d.x_train.numpy() * d.std + d.mean, d.y_train.numpy()
        arrays = dict(X_train=x[fit], y_train=y[fit], X_test=x[rest], y_test=y[rest])
        data.write_atomic(path, lambda file: np.savez(file, **arrays))
    return data.load_dataset(str(path))


def with_warm_up(steps):
    def factor(step, total):
        return min(1, (step + 1) / steps) * data.cosine(step, total) if steps else data.cosine(step, total)
    return factor


def stage1(name, out):
    dataset, device = held_out(name, out), data.pick_device()
    for method, augmentation in MODELS:
        for steps, lr, warm_up in STAGE1[:3 if method == "naive" else 2]:        # an NC trial costs six times as much
            run = out / name / f"{method}-{augmentation}" / f"{steps}-{lr:g}-{warm_up}"
            if (run / "stage1.json").exists():
                continue
            ncvqvae.cosine = with_warm_up(warm_up)
            config = ncvqvae.Stage1Config(dataset=str(out / f"{name}-heldout.npz"), method=method, augmentation=augmentation,
                                          stage1_steps=steps, stage1_lr=lr, precision="bf16")
            model = ncvqvae.train_stage1(run, config, dataset, device)
            train, test = (evaluate.encode_split(model, x) for x in (dataset.x_train, dataset.x_test))
            knn, svm = evaluate.probe(train["pooled"], dataset.y_train, test["pooled"], dataset.y_test)
            data.write_json(run / "stage1.json", dict(recon=evaluate.recon(test), knn=knn, svm=svm,
                                                      seconds=data.load_checkpoint(run / "stage1.pt")["seconds"]))


def stage2(name, out):
    """Priors on the tokens of the longest stage-1 trial without warm-up; masked cross-entropy of the held-out fifth."""
    dataset, device = held_out(name, out), data.pick_device()
    tokenizer = out / name / "vibcreg-slice" / "800-0.003-0"
    for steps, lr, warm_up in STAGE2:
        run = out / name / "prior" / f"{steps}-{lr:g}-{warm_up}"
        if (run / "stage2.json").exists():
            continue
        run.mkdir(parents=True, exist_ok=True)
        for file in ("stage1.pt", "config.json"):
            (run / file).write_bytes((tokenizer / file).read_bytes())
        prior.cosine = with_warm_up(warm_up)
        model = prior.train_stage2(run, prior.PriorConfig(stage2_steps=steps, stage2_lr=lr, precision="bf16"), dataset, device)
        tokens = ncvqvae.load_stage1(run, device)[0].tokens(dataset.x_test.to(device))
        data.write_json(run / "stage2.json", dict(
            prior_loss=prior.prior_loss(model.requires_grad_(False), tokens, dataset.y_test.to(device)),
            seconds=data.load_checkpoint(run / "stage2.pt")["seconds"]))


def fcn(name, out):
    """The classifier behind FID and IS: accuracy on the held-out fifth."""
    dataset, device = held_out(name, out), data.pick_device()
    for epochs in FCN_EPOCHS:
        run = out / name / "fcn" / f"{epochs} epochs-0.001-0"
        if (run / "fcn.json").exists():
            continue
        run.mkdir(parents=True, exist_ok=True)
        start, config = time.time(), evaluate.EvalConfig(precision="bf16")
        model = evaluate.train_fcn(dataset.x_train, dataset.y_train, len(dataset.classes), epochs, config, run, "fcn", 0, device)
        data.write_json(run / "fcn.json", dict(accuracy=evaluate.accuracy(evaluate.classify(model, dataset.x_test)[1],
                                                                          dataset.y_test), seconds=time.time() - start))


def table(out):
    for stage, metrics in (("stage1", ("recon", "knn", "svm", "seconds")), ("stage2", ("prior_loss", "seconds")),
                           ("fcn", ("accuracy", "seconds"))):
        print(f"| set | model | steps | learning rate | warm-up | {' | '.join(metrics)} |\n" + "|---" * (5 + len(metrics)) + "|")
        for path in sorted(out.rglob(f"{stage}.json")):
            values, (steps, lr, warm_up) = json.loads(path.read_text()), path.parent.name.split("-")
            print(f"| {path.parts[-4]} | {path.parts[-3]} | {steps} | {lr} | {warm_up} | "
                  + " | ".join(f"{values[m]:.3f}" if m != "seconds" else f"{values[m]:.0f}" for m in metrics) + " |")
        print()


if __name__ == "__main__":
    data.keep_freed_memory()
    command, out = sys.argv[1], Path(sys.argv[2])
    if command == "table":
        table(out)
    for name in sys.argv[3:]:
        {"stage1": stage1, "stage2": stage2, "fcn": fcn}[command](name, out)
