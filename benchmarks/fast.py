"""How the fast preset is chosen: schedules tried on four fifths of a train split, scored on the fifth that was held out.

    python benchmarks/fast.py stage1 runs/fast ECG5000 TwoPatterns ShapesAll    # 20 minutes a set on one CPU core
    python benchmarks/fast.py stage2 runs/fast ECG5000 TwoPatterns ShapesAll    # 12 minutes a set
    python benchmarks/fast.py fcn runs/fast ECG5000 TwoPatterns ShapesAll       # 4 minutes a set
    python benchmarks/fast.py table runs/fast > results/fast.md

The test split is never read for a choice. Finished trials are skipped, so several processes may share the work by set.
"""
import json, sys, time
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data, evaluate, ncvqvae, prior

STAGE1 = [(400, 3e-3), (800, 3e-3)]                              # steps, learning rate
STAGE2 = [(400, 1e-3), (800, 1e-3)]
FCN_EPOCHS = (100, 300)
MODELS = [("naive", "none"), ("vibcreg", "slice")]


def held_out(name, out):
    """An .npz whose train split is four fifths of a set's train split and whose test split is the rest of it."""
    path = out / f"{name}-heldout.npz"
    if not path.exists():
        d = data.load_dataset(name)
        fit, rest = train_test_split(np.arange(len(d.x_train)), test_size=0.2, random_state=0, stratify=d.y_train)
        x, y = d.to_original(d.x_train), d.y_train.numpy()
        arrays = dict(X_train=x[fit], y_train=y[fit], X_test=x[rest], y_test=y[rest])
        data.write_atomic(path, lambda file: np.savez(file, **arrays))
    return data.load_dataset(str(path))


def config_of(name, out, **fields):
    return data.Config(dataset=str(out / f"{name}-heldout.npz"), precision="bf16", **fields)


def stage1(name, out):
    """Reconstruction and probes of the held-out fifth."""
    dataset, device = held_out(name, out), data.pick_device()
    for method, augmentation in MODELS:
        for steps, lr in STAGE1:
            run = out / name / f"{method}-{augmentation}" / f"{steps}-{lr:g}"
            if not (run / "stage1.json").exists():
                config = config_of(name, out, method=method, augmentation=augmentation, stage1_steps=steps, stage1_lr=lr)
                model = ncvqvae.train_stage1(run, config, dataset)
                train, test = (ncvqvae.encode_split(model, x) for x in (dataset.x_train, dataset.x_test))
                knn, svm = evaluate.probe(train["pooled"], dataset.y_train, test["pooled"], dataset.y_test)
                data.write_json(run / "stage1.json", dict(recon=test["errors"].sum(1).mean().item(), knn=knn, svm=svm,
                                                          seconds=data.load_checkpoint(run / "stage1.pt")["seconds"]))


def stage2(name, out):
    """Priors on the tokens of the longest vibcreg trial; masked cross-entropy of the held-out fifth."""
    dataset, device = held_out(name, out), data.pick_device()
    tokenizer = out / name / "vibcreg-slice" / "{}-{:g}".format(*STAGE1[-1])
    for steps, lr in STAGE2:
        run = out / name / "prior" / f"{steps}-{lr:g}"
        if not (run / "stage2.json").exists():
            run.mkdir(parents=True, exist_ok=True)
            (run / "stage1.pt").write_bytes((tokenizer / "stage1.pt").read_bytes())
            config = data.Config(**(data.read_json(tokenizer / "config.json") | dict(stage2_steps=steps, stage2_lr=lr)))
            model = prior.train_stage2(run, config, dataset)
            tokens = ncvqvae.load_stage1(run)[0].tokens(dataset.x_test.to(device))
            data.write_json(run / "stage2.json", dict(
                prior_loss=prior.prior_loss(model, tokens, dataset.y_test.to(device)),
                seconds=data.load_checkpoint(run / "stage2.pt")["seconds"]))


def fcn(name, out):
    """The classifier behind FID and IS: accuracy on the held-out fifth."""
    dataset, device = held_out(name, out), data.pick_device()
    for epochs in FCN_EPOCHS:
        run, start = out / name / "fcn" / f"{epochs} epochs-0.001", time.time()
        if not (run / "fcn.json").exists():
            model = evaluate.dataset_fcn(run, dataset, config_of(name, out, fcn_epochs=epochs))
            accuracy = evaluate.accuracy(evaluate.classify(model, dataset.x_test)[1], dataset.y_test)
            data.write_json(run / "fcn.json", dict(accuracy=accuracy, seconds=time.time() - start))


def table(out):
    for stage, metrics in (("stage1", ("recon", "knn", "svm", "seconds")), ("stage2", ("prior_loss", "seconds")),
                           ("fcn", ("accuracy", "seconds"))):
        print(f"| set | model | steps | learning rate | {' | '.join(metrics)} |\n" + "|---" * (4 + len(metrics)) + "|")
        for path in sorted(out.rglob(f"{stage}.json")):
            values, (steps, lr) = json.loads(path.read_text()), path.parent.name.split("-", 1)
            print(f"| {path.parts[-4]} | {path.parts[-3]} | {steps} | {lr} | "
                  + " | ".join(f"{values[m]:.3f}" if m != "seconds" else f"{values[m]:.0f}" for m in metrics) + " |")
        print()


def main():
    command, out = sys.argv[1], Path(sys.argv[2])
    if command == "table":
        return table(out)
    for name in sys.argv[3:]:
        {"stage1": stage1, "stage2": stage2, "fcn": fcn}[command](name, out)


if __name__ == "__main__":
    data.run_command(main)
