"""Peak memory of each stage on a set of a given shape, random values: a few steps of full batches and a whole evaluation.

    python benchmarks/memory.py StarLightCurves ElectricDevices      # shapes of thesis Table 5.2; Markdown on stdout
"""
import os, subprocess, sys, tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))
import data


def peak(command, env):
    """Run a command; its peak resident memory in GB."""
    process = subprocess.Popen([sys.executable, *command], cwd=HERE, env=env, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def main():
    print("| shape of | train | test | length | stage 1 (vibcreg) GB | stage 2 GB | evaluation GB |\n|" + "---|" * 7)
    for name in sys.argv[1:] or data.THESIS_SETS:
        train, test, classes, length, _ = data.THESIS_SETS[name]
        with tempfile.TemporaryDirectory() as folder:
            rng, own, run = np.random.default_rng(0), f"{folder}/own.npz", f"{folder}/own/vibcreg-slice/seed1"
            x = [rng.standard_normal((n, length), dtype=np.float32) for n in (train, test)]
            y = [np.arange(n) % classes for n in (train, test)]
            np.savez(own, X_train=x[0], y_train=y[0], X_test=x[1], y_test=y[1])
            env = {**os.environ, "OUT": folder}
            gigabytes = [peak(command, env) for command in (
                ["ncvqvae.py", run, "--dataset", own, "--method", "vibcreg", "--augmentation", "slice", "--stage1-steps", "3"],
                ["prior.py", "train", run, "--stage2-steps", "3"],
                ["evaluate.py", "run", run, "--fcn-epochs", "1", "--cas-epochs", "1", "--decode-steps", "2"])]
        print(f"| {name} | {train} | {test} | {length} | " + " | ".join(f"{g:.2f}" for g in gigabytes) + " |", flush=True)


if __name__ == "__main__":
    main()
