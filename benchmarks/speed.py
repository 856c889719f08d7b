"""How long a step takes, against the same model in plain PyTorch.

    python -m benchmarks.speed           # stage 1 against textbook PyTorch, 10 minutes, 2 CPU cores
    python -m benchmarks.speed --bands   # one and two bands at the same length
    python -m benchmarks.speed --priors  # stage 2 and sampling by each preset

Each measurement runs in a process of its own (its peak memory is its own), times are medians of 20
steps after 3, and what is compared is compared within one run, with nothing else running.
`textbook`: one view at a time through the projector, P x P matrices in the losses, contiguous
layout, AdamW unfused, glibc's own allocation, float32.
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
import torch.nn.functional as F

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
from ncvqvae import NCVQVAE, pool
from prior import Prior, band_losses, make_optimizers, mask_tokens, sample

SHAPES = {"FordA": (128, 500, 32), "SonyAIBORobotSurface1": (20, 70, 8)}  # B, L, latent width
PRECISIONS = ("float32", "bf16")
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}  # as run.sh sets it
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
# The textbook variant
# ---------------------------------------------------------------------------------------------


def unit(z):
    """Each feature centred over the batch, of length 1: (B, P) -> (B, P)."""
    centred = z - z.mean(0)
    return centred / centred.norm(dim=0)


def off_diagonal(c):
    """Sum of the squares off the diagonal of c (P, P)."""
    mask = ~torch.eye(len(c), dtype=torch.bool, device=c.device)
    return c.masked_select(mask).square().sum()


def textbook_barlow(z1, z2, lambd=0.005):
    """ncvqvae.barlow_twins_loss with the matrix C of eq. 3.7."""
    c = unit(z1).T @ unit(z2)  # (P, P)
    return (1 - torch.diagonal(c)).square().sum() + lambd * off_diagonal(c)


def textbook_vibcreg(z1, z2, similarity=25.0, variance=25.0, covariance=100.0):
    """ncvqvae.vibcreg_loss with the matrices C of eq. 3.12."""
    loss = similarity * F.mse_loss(z1, z2)
    for z in (z1, z2):
        c = unit(z).T @ unit(z)  # (P, P)
        loss = loss + variance * F.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean()
        loss = loss + covariance * off_diagonal(c) / len(c) ** 2
    return loss


class Textbook(NCVQVAE):
    """The model with one view at a time through the projector and textbook losses."""

    def ssl_loss(self, latents, latents_aug):
        (p1,) = self.projector(pool(latents[0]))
        (p2,) = self.projector(pool(latents_aug[0]))
        if self.config.method == "barlow":
            return textbook_barlow(p1, p2) / self.config.projector_dim
        return 0.01 * textbook_vibcreg(p1, p2)


# ---------------------------------------------------------------------------------------------
# What one process measures
# ---------------------------------------------------------------------------------------------


def random_walks(B, L):
    """Standardised random walks (B, L)."""
    x = torch.randn(B, L, generator=torch.Generator().manual_seed(0)).cumsum(1)
    return ((x - x.mean()) / x.std()).to(DEVICE)


def measure_stage1(method, B, L, latent_width, precision="float32", textbook=False, bands=1):
    """A step of stage 1."""
    torch.manual_seed(0)
    config = Config(
        method=method,
        augmentation="none" if method == "naive" else "slice",
        latent_width=latent_width,
        precision=precision,
        bands=bands,
    )
    x = random_walks(B, L)
    generator = torch.Generator(DEVICE).manual_seed(0)
    model = (Textbook if textbook else NCVQVAE)(config, L).to(DEVICE).train()
    if not textbook:
        use_fast_layout(model)
    optimizer = torch.optim.AdamW(model.parameters(), fused=not textbook)

    def step():
        x_aug = None if method == "naive" else slice_and_shuffle(x, generator)
        loss, _, _ = model(x, x_aug)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {"seconds": seconds(step)}


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


def run(kind, **arguments):
    """What measure_KIND(**arguments) returns, and peak_gb, of a process of its own."""
    environment = dict(os.environ)
    if not arguments.get("textbook"):
        environment |= KEEP
    command = [sys.executable, "-m", "benchmarks.speed", "--one", kind, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    if done.returncode:
        raise InputError(f"{kind} {arguments}: {done.stderr[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------------------------------
# The reports
# ---------------------------------------------------------------------------------------------


def report():
    """Steps of stage 1 against the textbook variant, in both precisions."""
    print("### A stage-1 step against the same model in textbook PyTorch (float32)\n")
    lines = []
    for shape, (B, L, latent_width) in SHAPES.items():
        for method in ("naive", "barlow", "vibcreg"):
            spec = {"method": method, "B": B, "L": L, "latent_width": latent_width}
            textbook = run("stage1", **spec, textbook=True)
            line = [f"{shape}, {method}", f"{textbook['seconds'] * 1e3:.0f}"]
            peaks = [f"{textbook['peak_gb']:.2f}"]
            for precision in PRECISIONS:
                ours = run("stage1", **spec, precision=precision)
                times_as_fast = textbook["seconds"] / ours["seconds"]
                line.append(f"{ours['seconds'] * 1e3:.0f} ({times_as_fast:.2f} x)")
                peaks.append(f"{ours['peak_gb']:.2f}")
            lines.append([*line, " / ".join(peaks)])
    columns = ["shape, method", "textbook ms", "float32 ms", "bf16 ms", "peak GB"]
    print(markdown(columns, lines))


def report_bands():
    """Steps a second and peak memory of one band and of two, batch 128 in stage 1, 64 after."""
    print("### One band and two: steps a second (peak GB), bf16\n")
    lines = []
    for L in (128, 512):
        for method in ("naive", "vibcreg"):
            spec = {"method": method, "B": 128, "L": L, "latent_width": 8, "precision": "bf16"}
            one = run("stage1", bands=1, **spec)
            two = run("stage1", bands=2, **spec)
            lines.append(bands_row(f"stage 1, {method}, length {L}", one, two))
        sizes_one = NCVQVAE(Config(bands=1), L, with_projector=False).sizes
        sizes_two = NCVQVAE(Config(bands=2), L, with_projector=False).sizes
        one = run("stage2", B=64, sizes=sizes_one, precision="bf16")
        two = run("stage2", B=64, sizes=sizes_two, precision="bf16")
        name = f"stage 2, length {L}, {sum(sizes_one)} and {sum(sizes_two)} tokens"
        lines.append(bands_row(name, one, two))
    print(markdown(["step", "one band", "two bands", "two / one"], lines))


def bands_row(name, one, two):
    """Steps a second (peak GB) of one band and of two, and the ratio."""
    line = [name]
    for measured in (one, two):
        line.append(f"{1 / measured['seconds']:.2f} ({measured['peak_gb']:.2f})")
    return [*line, f"{one['seconds'] / two['seconds']:.2f}"]


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


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--bands", action="store_true", help="one band against two")
    parser.add_argument("--priors", action="store_true", help="stage 2 by each preset")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
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
        report()


if __name__ == "__main__":
    run_command(main)
