"""How long a step takes: one band against two, stage 2 and sampling by each preset, neighbours.

    python -m benchmarks.speed --bands       # one and two bands at the same length
    python -m benchmarks.speed --priors      # stage 2 and sampling by each preset
    python -m benchmarks.speed --neighbours  # beside another training, by how long threads spin

Each measurement runs in a process of its own (its peak memory is its own), times are medians of 20
steps after 3 (of sampling, of 3), and what is compared is compared within one run, with nothing
else running.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import torch

from benchmarks.rows import markdown
from data import (
    PRESETS,
    Config,
    InputError,
    Parser,
    pick_device,
    processor,
    run_command,
    slice_and_shuffle,
    steps_per_epoch,
    use_fast_layout,
)
from ncvqvae import NCVQVAE
from prior import Prior, band_losses, make_optimizers, mask_tokens, sample

AS_RUN_SH = {  # what it sets
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "GOMP_SPINCOUNT": "1000",
}
DEVICE = pick_device()


def seconds(step, repeats=20):
    """Median seconds of step() after 3 calls to warm up."""
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


# ---------------------------------------------------------------------------------------------
# What one process measures
# ---------------------------------------------------------------------------------------------


def random_walks(B, L):
    """Standardised random walks (B, L)."""
    x = torch.randn(B, L, generator=torch.Generator().manual_seed(0)).cumsum(1)
    return ((x - x.mean()) / x.std()).to(DEVICE)


def measure_stage1(method, B, L, bands=1, repeats=20):
    """A step of stage 1."""
    torch.manual_seed(0)
    config = Config(
        method=method,
        augmentation="none" if method == "naive" else "slice",
        precision="bf16",
        bands=bands,
    )
    x = random_walks(B, L)
    generator = torch.Generator(DEVICE).manual_seed(0)
    model = NCVQVAE(config, L).to(DEVICE).train()
    use_fast_layout(model)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        x_aug = None if method == "naive" else slice_and_shuffle(x, generator)
        loss, _, _ = model(x, x_aug)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {"seconds": seconds(step, repeats)}


def stage2_step(model, tokens, labels, optimizers):
    """A function that takes one step of stage 2 on tokens (B, N), labels (B,)."""

    def step():
        masks = [mask_tokens(part) for part in tokens.split(model.sizes, 1)]
        loss = band_losses(model, tokens, masks, labels)
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def measure_stage2(B, sizes, precision="float32"):
    """A step of stage 2 by the thesis' settings, sizes: tokens of each band."""
    torch.manual_seed(0)
    config = Config(precision=precision)
    model = Prior(config, torch.randn(32 * len(sizes), 64), sizes, 2).to(DEVICE)
    parts = []
    for k, n in enumerate(sizes):
        parts.append(torch.randint(32 * k, 32 * (k + 1), (B, n), device=DEVICE))
    labels = torch.zeros(B, dtype=torch.int64, device=DEVICE)
    tokens = torch.cat(parts, 1)
    return {"seconds": seconds(stage2_step(model, tokens, labels, make_optimizers(model, config)))}


def measure_prior(preset, n, L, precision="float32"):
    """A step of stage 2 as a preset has it for n series, and 256 samples."""
    config = Config(**PRESETS[preset] | {"precision": precision})
    stage1 = NCVQVAE(config, L, with_projector=False).to(DEVICE).eval()
    model = Prior(config, stage1.codebook(), stage1.sizes, 2).to(DEVICE)
    tokens = stage1.tokens(random_walks(config.stage2_batch, L))
    labels = torch.zeros(256, dtype=torch.int64, device=DEVICE)
    step = stage2_step(model, tokens, labels[: len(tokens)], make_optimizers(model, config))
    epoch = steps_per_epoch(n, config.stage2_batch)
    return {
        "seconds": seconds(step),
        "steps": config.stage2_steps or config.stage2_epochs * epoch,
        "sampling": seconds(lambda: sample(model, stage1, labels, config=config), repeats=3),
    }


def peak_gb():
    """Peak memory of this process, of the GPU where it runs on one."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes / 1e9


MEASURES = {"stage1": measure_stage1, "stage2": measure_stage2, "prior": measure_prior}


def one(kind, arguments):
    """The command that prints what measure_KIND(**arguments) returns, and peak_gb."""
    return [sys.executable, "-m", "benchmarks.speed", "--one", kind, json.dumps(arguments)]


def run(kind, environment=AS_RUN_SH, **arguments):
    """What measure_KIND(**arguments) returns, and peak_gb, of a process of its own."""
    command = one(kind, arguments)
    done = subprocess.run(command, env=os.environ | environment, text=True, capture_output=True)
    if done.returncode:
        raise InputError(f"{kind} {arguments}: {done.stderr[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------------------------------
# The reports
# ---------------------------------------------------------------------------------------------


def report_bands():
    """Steps a second and peak memory of one band and of two, batch 128 in stage 1, 64 after."""
    print("### One band and two: steps a second (peak GB), bf16\n")
    lines = []
    for L in (128, 512):
        for method in ("naive", "vibcreg"):
            spec = {"method": method, "B": 128, "L": L}
            of_one = run("stage1", bands=1, **spec)
            of_two = run("stage1", bands=2, **spec)
            lines.append(bands_row(f"stage 1, {method}, length {L}", of_one, of_two))
        sizes_one = NCVQVAE(Config(bands=1), L, with_projector=False).sizes
        sizes_two = NCVQVAE(Config(bands=2), L, with_projector=False).sizes
        of_one = run("stage2", B=64, sizes=sizes_one, precision="bf16")
        of_two = run("stage2", B=64, sizes=sizes_two, precision="bf16")
        name = f"stage 2, length {L}, {sum(sizes_one)} and {sum(sizes_two)} tokens"
        lines.append(bands_row(name, of_one, of_two))
    print(markdown(["step", "one band", "two bands", "two / one"], lines))


def bands_row(name, of_one, of_two):
    """Steps a second (peak GB) of one band and of two, and the ratio."""
    line = [name]
    for measured in (of_one, of_two):
        line.append(f"{1 / measured['seconds']:.2f} ({measured['peak_gb']:.2f})")
    return [*line, f"{of_one['seconds'] / of_two['seconds']:.2f}"]


def report_priors():
    """Stage 2 and sampling of FordA's shape as the presets have them."""
    print("### Stage 2 and sampling of FordA's shape, by preset, bf16\n")
    lines = []
    for preset in ("thesis", "fast", "best"):
        measured = run("prior", preset=preset, n=3601, L=500, precision="bf16")
        minutes = measured["seconds"] * measured["steps"] / 60
        lines.append(
            [
                preset,
                f"{measured['seconds'] * 1e3:.0f}",
                str(measured["steps"]),
                f"{minutes:.1f}",
                f"{measured['sampling']:.1f}",
                f"{measured['peak_gb']:.2f}",
            ]
        )
    per_class = "256 samples of a class, seconds"
    print(markdown(["preset", "ms a step", "steps", "minutes", per_class, "peak GB"], lines))


def report_neighbours():
    """A step on all cores, alone and beside a training on one of them.

    Of another session, as a colleague's: Linux gives each session as much as the other, so a core
    to the one thread and what is left to ours, two of which then share a core.
    """
    print(
        "### A step of stage 1, naive, length 64, alone and beside another session's training: ms\n"
    )
    spec = {"method": "naive", "B": 32, "L": 64, "repeats": 5}
    ways = {
        "spinning as by default": {"GOMP_SPINCOUNT": "300000"},
        "as run.sh has it": {},
        "on one core": {"OMP_NUM_THREADS": "1"},
    }

    def milliseconds():
        times = [run("stage1", AS_RUN_SH | way, **spec)["seconds"] for way in ways.values()]
        return [f"{1e3 * seconds:.0f}" for seconds in times]

    lines = [["alone", *milliseconds()]]
    endless = one("stage1", spec | {"repeats": 10**9})
    environment = os.environ | AS_RUN_SH | ways["on one core"]
    other = subprocess.Popen(endless, env=environment, start_new_session=True)
    try:
        time.sleep(10)  # its imports
        lines.append(["beside another training, of one thread", *milliseconds()])
    finally:
        other.kill()
    print(markdown(["", *ways], lines))


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--bands", action="store_true", help="one band against two")
    what.add_argument("--priors", action="store_true", help="stage 2 by each preset")
    what.add_argument("--neighbours", action="store_true", help="beside another training")
    what.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        kind, arguments = args.one
        measured = MEASURES[kind](**json.loads(arguments))
        print(json.dumps(measured | {"peak_gb": peak_gb()}))
        return
    date = time.strftime("%Y-%m-%d")
    print(f"{processor(DEVICE)}, torch {torch.__version__}, {date}.\n")
    if args.bands:
        report_bands()
    elif args.priors:
        report_priors()
    else:
        report_neighbours()


if __name__ == "__main__":
    run_command(main)
