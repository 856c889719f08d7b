"""How long a step takes, against the same model in plain PyTorch, and where the time goes.

    python benchmarks/speed.py > results/speed.md  # 15 minutes on 2 CPU cores, alone
    python benchmarks/speed.py --against DIR       # a checkout of the first edition, in turn
    python benchmarks/speed.py --bands             # one and two bands at the same length
    python benchmarks/speed.py --priors            # stage 2 and sampling by each preset

Each measurement runs in a process of its own (its peak memory is its own), times are medians of 20
steps after 3, and what is compared is compared within one run. `textbook`: one view at a time
through the projector, D x D matrices in the losses, contiguous layout, AdamW unfused, glibc's own
allocation, float32.
"""
import argparse, json, os, resource, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data, evaluate, ncvqvae, prior
from benchmarks.tables import markdown
from data import Config

SHAPES = {"FordA": (128, 500, 32), "SonyAIBORobotSurface1": (20, 70, 8)}  # B, L, latent width
METHODS = ("naive", "barlow", "vibcreg")
PRECISIONS = ("float32", "bf16")
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}  # as run.sh sets it
DEVICE = data.pick_device()


def seconds(f, repeats=20):
    """Median seconds of f() after 3 calls to warm up."""
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        f()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def with_backward(f, *inputs):
    """A function that runs f and its backward pass; inputs that are floating get a gradient."""
    inputs = [x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    wanted = [x for x in inputs if x.requires_grad]

    def both():
        out = f(*inputs)
        out = out if isinstance(out, (tuple, list)) else [out]
        torch.autograd.grad(sum(o.float().sum() for o in out), wanted)
    return both


# ---- The textbook variant ----

def unit(z):
    return (z - z.mean(0)) / (z - z.mean(0)).norm(dim=0)


def textbook_barlow(z1, z2, lambd=0.005):
    c = unit(z1).T @ unit(z2)
    off = c.masked_select(~torch.eye(len(c), dtype=torch.bool, device=c.device)).square().sum()
    return (1 - torch.diagonal(c)).square().sum() + lambd * off


def textbook_vibcreg(z1, z2, similarity=25.0, variance=25.0, covariance=100.0):
    def v(z):
        return F.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean()

    def c(z):
        m = unit(z).T @ unit(z)
        off = m.masked_select(~torch.eye(len(m), dtype=torch.bool, device=m.device))
        return off.square().sum() / len(m) ** 2
    return (similarity * F.mse_loss(z1, z2) + variance * (v(z1) + v(z2))
            + covariance * (c(z1) + c(z2)))


class Textbook(ncvqvae.NCVQVAE):
    def ssl_loss(self, *latents):
        p1, p2 = (self.projector(ncvqvae.pool(z[0]))[0] for z in latents)
        if self.config.method == "barlow":
            return textbook_barlow(p1, p2) / self.config.projector_dim
        return 0.01 * textbook_vibcreg(p1, p2)


# ---- What one process measures ----

def series(B, L):
    x = torch.randn(B, L, generator=torch.Generator().manual_seed(0)).cumsum(1)
    return ((x - x.mean()) / x.std()).to(DEVICE)


def measure_stage1(method, B, L, latent_width, precision="float32", variant="ours",
                   residual_norm="encoder", bands=1):
    torch.manual_seed(0)
    augmentation = "none" if method == "naive" else "slice"
    config = Config(method=method, augmentation=augmentation, latent_width=latent_width,
                    precision=precision, residual_norm=residual_norm, bands=bands)
    x, generator, ours = series(B, L), torch.Generator(DEVICE).manual_seed(0), variant == "ours"
    model = (ncvqvae.NCVQVAE if ours else Textbook)(config, L).to(DEVICE).train()
    if ours:
        model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-5, fused=ours)

    def step():
        optimizer.zero_grad()
        model(x, None if method == "naive" else data.slice_and_shuffle(x, generator))[0].backward()
        optimizer.step()
    return dict(seconds=seconds(step))


def measure_stage2(B, sizes, precision="float32"):
    torch.manual_seed(0)
    codebook = torch.randn(32 * len(sizes), 64)
    model = prior.Prior(Config(precision=precision), codebook, sizes, 2).to(DEVICE).train()
    tokens = torch.cat([torch.randint(32 * k, 32 * (k + 1), (B, n), device=DEVICE)
                        for k, n in enumerate(sizes)], 1)
    labels = torch.zeros(B, dtype=torch.int64, device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        masks = [prior.mask_tokens(part) for part in tokens.split(sizes, 1)]
        optimizer.zero_grad()
        prior.band_losses(model, tokens, masks, labels).backward()
        optimizer.step()
    return dict(seconds=seconds(step))


def measure_prior(preset, n, L, precision="float32"):
    """A step of stage 2 as a preset has it for n series, and 256 samples."""
    config = Config(**data.PRESETS[preset] | dict(precision=precision))
    stage1 = ncvqvae.NCVQVAE(config, L, with_projector=False).to(DEVICE).eval()
    model = prior.Prior(config, stage1.codebook(), stage1.sizes, 2).to(DEVICE)
    tokens = stage1.tokens(series(config.stage2_batch, L))
    labels = torch.zeros(max(256, len(tokens)), dtype=torch.int64, device=DEVICE)
    with tempfile.TemporaryDirectory() as folder:
        training = ncvqvae.Training(folder, "stage2", model, config, "", n)

        def step():
            masks = [prior.mask_tokens(part) for part in tokens.split(stage1.sizes, 1)]
            training.update(prior.band_losses(model, tokens, masks, labels[:len(tokens)]))
        per_step = seconds(step)
    sampling = seconds(lambda: prior.sample(model, stage1, labels[:256], config=config), repeats=3)
    return dict(seconds=per_step, steps=training.total, sampling=sampling)


def measure_fcn(B, L, precision="float32"):
    torch.manual_seed(0)
    model = evaluate.FCN(4, precision).to(DEVICE, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x, y = series(B, L), torch.arange(B, device=DEVICE) % 4

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return dict(seconds=seconds(step))


def measure_parts(method, B, L, latent_width, precision="float32"):
    """Seconds of each part of a stage-1 step, alone, forward and backward, all views counted."""
    config = Config(method=method, augmentation="slice", latent_width=latent_width,
                    precision=precision)
    model = ncvqvae.NCVQVAE(config, L).to(DEVICE, memory_format=torch.channels_last).train()
    x = series(B, L)
    band, (u, z) = model.bands[0], model.encode(x)
    p1, p2 = (torch.randn(B, config.projector_dim, device=DEVICE) for _ in range(2))
    loss = ncvqvae.barlow_twins_loss if method == "barlow" else ncvqvae.vibcreg_loss

    def cast(f):
        def inside(*inputs):
            with model._autocast(x):
                return f(*inputs)
        return inside
    pooled = ncvqvae.pool(z[0])
    return dict(parts={
        "STFT and its inverse": 2 * (seconds(lambda: ncvqvae.stft(x)) + seconds(with_backward(
            lambda u: ncvqvae.istft(u, 8, L), u))),
        "encoder": 2 * seconds(with_backward(cast(band.encoder), u)),
        "quantiser": seconds(with_backward(lambda z: band.quantizer(z)[::2], z[0])),
        "decoder": 2 * seconds(with_backward(cast(lambda z: band.decoder(z, u.shape[3])), z[0])),
        "projector": seconds(with_backward(cast(model.projector), pooled, pooled)),
        "SSL loss": seconds(with_backward(loss, p1, p2))})


def peak_gb():
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def device_name():
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    with open("/proc/cpuinfo") as file:
        return next((line.split(":")[1].strip() for line in file if "model name" in line), "CPU")


MEASURES = {f.__name__.removeprefix("measure_"): f
            for f in (measure_stage1, measure_stage2, measure_prior, measure_fcn, measure_parts)}


def run(kind, checkout=None, **arguments):
    """The row of measure_KIND(**arguments), with peak_gb, in a process of its own, of this or
    another checkout."""
    file = Path(checkout) / "benchmarks" / "speed.py" if checkout else Path(__file__)
    env = {**os.environ, **({} if arguments.get("variant") == "textbook" else KEEP)}
    done = subprocess.run([sys.executable, str(file), "--one", kind, json.dumps(arguments)],
                          env=env, text=True, capture_output=True)
    data.refuse(done.returncode, f"{kind} {arguments}: {done.stderr[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- The report ----

def table(head, rows):
    print(markdown(head, [map(str, row) for row in rows]), flush=True)


def specs():
    for shape, (B, L, latent_width) in SHAPES.items():
        for method in METHODS:
            yield f"{shape}, {method}", dict(method=method, B=B, L=L, latent_width=latent_width)


def report():
    print("### A stage-1 step against the same model in textbook PyTorch (float32)\n")
    rows = []
    for name, spec in specs():
        textbook, *ours = (run("stage1", **spec, **how) for how in (
            {"variant": "textbook"}, {"precision": "float32"}, {"precision": "bf16"}))
        rows.append([name, f"{textbook['seconds'] * 1e3:.0f}", *(
            f"{r['seconds'] * 1e3:.0f} ({textbook['seconds'] / r['seconds']:.2f} x)" for r in ours),
            " / ".join(f"{r['peak_gb']:.2f}" for r in (textbook, *ours))])
    table(["shape, method", "textbook ms", "float32 ms", "bf16 ms", "peak GB"], rows)
    print("### Steps of stage 2 and of the classifier, ms\n")
    rows = []
    for kind, spec in (("stage2", dict(B=256, sizes=[40])), ("stage2", dict(B=256, sizes=[75])),
                       ("fcn", dict(B=256, L=128))):
        times = [run(kind, precision=p, **spec)["seconds"] for p in PRECISIONS]
        rows.append([f"{kind} {spec}", *(f"{t * 1e3:.0f}" for t in times)])
    table(["step", *PRECISIONS], rows)
    print("### Parts of a vibcreg step of FordA's shape, alone, forward and backward, ms\n")
    B, L, latent_width = SHAPES["FordA"]
    spec = dict(method="vibcreg", B=B, L=L, latent_width=latent_width)
    parts = [run("parts", precision=p, **spec)["parts"] for p in PRECISIONS]
    table(["part", *PRECISIONS],
          [[name, *(f"{p[name] * 1e3:.1f}" for p in parts)] for name in parts[0]])


def bands():
    """Steps a second and peak memory of one band and of two, batch 128 in stage 1, 64 after."""
    print("### One band and two: steps a second (peak GB), bf16\n")
    rows = []
    for L in (128, 512):
        for method in ("naive", "vibcreg"):
            spec = dict(method=method, B=128, L=L, latent_width=8, precision="bf16")
            found = [run("stage1", bands=n, **spec) for n in (1, 2)]
            rows.append([f"stage 1, {method}, length {L}", *found])
        sizes = [ncvqvae.NCVQVAE(Config(bands=n), L, with_projector=False).sizes for n in (1, 2)]
        found = [run("stage2", B=64, sizes=s, precision="bf16") for s in sizes]
        tokens = " and ".join(str(sum(s)) for s in sizes)
        rows.append([f"stage 2, length {L}, {tokens} tokens", *found])
    table(["step", "one band", "two bands", "two / one"], [
        [name, *(f"{1 / r['seconds']:.2f} ({r['peak_gb']:.2f})" for r in (one, two)),
         f"{one['seconds'] / two['seconds']:.2f}"] for name, one, two in rows])


def priors():
    """Stage 2 and sampling of FordA's shape as the presets have them."""
    print("### Stage 2 and sampling of FordA's shape, by preset, bf16\n")
    rows = []
    for preset in ("thesis", "fast", "best"):
        r = run("prior", preset=preset, n=3601, L=500, precision="bf16")
        rows.append([preset, f"{r['seconds'] * 1e3:.0f}", r["steps"],
                     f"{r['seconds'] * r['steps'] / 60:.1f}", f"{r['sampling']:.1f}",
                     f"{r['peak_gb']:.2f}"])
    table(["preset", "ms a step", "steps", "minutes", "256 samples of a class, seconds", "peak GB"],
          rows)


def against(checkout):
    """The first edition's stage-1 steps and ours, both without BatchNorm in residual blocks, as
    that one had none."""
    print("### A stage-1 step of the first edition and of this one, in turn, no BatchNorm in "
          "residual blocks\n")
    rows = []
    for name, spec in specs():
        for precision in PRECISIONS:
            times = []
            for _ in range(2 if spec["B"] > 100 else 5):
                theirs = run("stage1", checkout, precision=precision, **spec)
                ours = run("stage1", precision=precision, residual_norm="none", **spec)
                times.append([theirs["seconds"], ours["seconds"]])
            before, after = (statistics.median(t) for t in zip(*times))
            rows.append([name, precision, f"{before * 1e3:.1f}", f"{after * 1e3:.1f}",
                         f"{after / before:.3f}", ", ".join(f"{b / a:.3f}" for a, b in times)])
    table(["shape, method", "precision", "before ms", "after ms", "after / before", "each round"],
          rows)


def main():
    parser = argparse.ArgumentParser(description="Benchmark steps.")
    parser.add_argument("--against", metavar="DIR", help="another checkout")
    parser.add_argument("--bands", action="store_true", help="one band against two")
    parser.add_argument("--priors", action="store_true", help="stage 2 by each preset")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        row = MEASURES[args.one[0]](**json.loads(args.one[1]))
        row["peak_gb"] = peak_gb()
        return print(json.dumps(row))
    print(f"{torch.get_num_threads()} threads of {device_name()}, torch {torch.__version__}, "
          f"{time.strftime('%Y-%m-%d')}.\n")
    if args.against:
        against(args.against)
    else:
        (bands if args.bands else priors if args.priors else report)()


if __name__ == "__main__":
    data.run_command(main)
