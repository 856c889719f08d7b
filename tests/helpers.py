"""What more than one file of tests uses."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

import data
import evaluate
import ncvqvae
import prior
from data import Config
from ncvqvae import NCVQVAE

HERE = Path(__file__).resolve().parent.parent  # the repository
os.environ["DEVICE"] = "cpu"  # bit for bit is for a CPU


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


ROWS = [
    ("1", [0.0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ("2", [8.0, 7, 6, 5, 4, 3, 2, 1, 0]),
    ("1", [0.5, 1, 2, 3, 4, 5, 6, 7, 9]),
]


def ts_bytes(cut=None):
    lines = ["@data"] + [",".join(map(str, x)) + ":" + y for y, x in ROWS]
    return "\n".join(lines).encode()[:cut]


def zip_bytes(*names, content=None):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, ts_bytes() if content is None else content)
    return buffer.getvalue()


def npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def own_data(folder, labels=True, length=31, n_test=16, name="own.npz"):
    rng = np.random.default_rng(0)
    x = 50 + 3 * rng.standard_normal((24 + n_test, length)).cumsum(1)
    y = np.array(["up", "down", "flat", "up"] * 99)[: 24 + n_test]
    ys = dict(y_train=y[:24], y_test=y[24:][::-1]) if labels else {}  # no row like the other's
    return npz(Path(folder) / name, X_train=x[:24], X_test=x[24:], **ys)


def tiny_config(**fields):
    tiny = dict(
        width=16,
        projector_dim=64,
        stage1_batch=8,
        prior_hidden=32,
        prior_layers=1,
        decode_steps=3,
        fcn_epochs=1,
        cas_epochs=1,
    )
    return Config(**tiny | fields)


def tiny_model(length=40, **fields):
    torch.manual_seed(0)
    return NCVQVAE(tiny_config(**fields), length)


def linear_training(folder, model, n=9, stage="stage1", batch=128, epochs=1, steps=0, seed=1):
    """A Training that trains nothing by itself, as the loops make it."""
    optimizer = torch.optim.AdamW(model.parameters())
    return data.Training(
        folder,
        stage,
        model,
        [optimizer],
        {"sha256": ""},
        n=n,
        batch=batch,
        epochs=epochs,
        steps=steps,
        seed=seed,
    )


TINY = (
    "--width=16 --projector-dim=64 --stage1-steps=6 --stage1-batch=10 --stage2-steps=6 "
    "--stage2-batch=10 --prior-hidden=32 --prior-layers=1 --decode-steps=3 --fcn-epochs=2 "
    "--cas-epochs=1"
).split()


def shell_environment(cwd):
    return {
        **os.environ,
        "PYTHON": sys.executable,
        "OUT": str(Path(cwd) / "runs"),
        "OMP_NUM_THREADS": "1",
        "DEVICE": "cpu",
    }


def shell(*arguments, cwd, **env):
    env = shell_environment(cwd) | env
    return subprocess.run(
        ["bash", str(HERE / "run.sh"), *arguments], cwd=cwd, env=env, capture_output=True, text=True
    )


def command(module, *words):
    """A module's command line in this process."""
    argv, sys.argv = sys.argv, [module.__name__, *map(str, words)]
    try:
        module.main()
    finally:
        sys.argv = argv


def run_all(run, config):
    """The three stages in this process. -> metrics."""
    ncvqvae.train_stage1(run, config)
    prior.train_stage2(run)
    return evaluate.evaluate_run(run)


def no_figures(monkeypatch):
    """Nothing is drawn, which takes longer than a tiny run; other tests of whole runs draw."""
    monkeypatch.setattr(evaluate, "draw_figures", lambda *inputs: None)
