"""How long a step takes, where its time goes, and how far it is from what the machine can do.

    python benchmarks/speed.py > results/speed.md       # Markdown, a dated line in results/speed.jsonl; 30 minutes on 2 CPU cores
    python benchmarks/speed.py --quick                  # the comparison with textbook PyTorch and the losses alone; 7 minutes

Each configuration runs in a process of its own (its peak memory is its own), times are medians of 20 steps after 3, and what
is compared is compared within one run. `textbook` is the same model in plain PyTorch: contiguous layout, one view at a time
through the projector, D x D matrices in the losses, AdamW unfused, default allocation, float32.
"""
import argparse, json, math, os, platform, resource, statistics, subprocess, sys, time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))
import data, evaluate, ncvqvae, prior

SHAPES = {"FordA": (128, 500), "SonyAIBORobotSurface1": (20, 70), "ECG5000": (128, 140), "Mallat": (55, 1024)}    # B, L
METHODS = ("naive", "barlow", "vibcreg")
DEVICE = data.pick_device()


# --------------------------------------------------------------------------------------------------------- measuring

def seconds(f, repeats=20):
    """Median seconds of f() after 3 calls to warm up."""
    times = []
    for i in range(repeats + 3):
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        f()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def backward_of(f, *inputs):
    """A function that runs f and its backward pass; inputs that are floating get a gradient."""
    inputs = [x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs]

    def both():
        for x in inputs:
            x.grad = None
        out = f(*inputs)
        loss = sum(o.float().sum() for o in out) if isinstance(out, (tuple, list)) else out.float().sum()
        loss.backward()
    return both


def flops(f):
    """Floating-point operations of f(): those of convolutions, those of matrix products."""
    with FlopCounterMode(display=False) as counter:
        f()
    counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    convolutions = sum(n for op, n in counts.items() if "conv" in op)
    return convolutions, sum(counts.values()) - convolutions


def autocast(precision):
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16")


def product_rate(rows, precision, dim=4096):
    """FLOP/s of a projector layer, forward and backward, on `rows` rows."""
    linear, x = torch.nn.Linear(dim, dim, device=DEVICE), torch.randn(rows, dim, device=DEVICE)

    def layer(x):
        linear.weight.grad = None
        with autocast(precision):
            return linear(x)
    return 6 * rows * dim * dim / seconds(backward_of(layer, x), 10)


def convolution_rate(batch, frames, precision, width=64):
    """FLOP/s of a residual block's 3 x 3 convolution, forward and backward, in the layout and shape it has."""
    convolution = torch.nn.Conv2d(width, width, 3, padding=1).to(DEVICE, memory_format=torch.channels_last)
    x = torch.randn(batch, width, 5, frames, device=DEVICE).to(memory_format=torch.channels_last)

    def layer(x):
        with autocast(precision):
            return convolution(x)
    return 6 * batch * 5 * frames * width * width * 9 / seconds(backward_of(layer, x), 10)


def copy_rate():
    """Bytes moved (read + written) per second by a copy of 128 MB."""
    a = torch.randn(2 ** 25, device=DEVICE)
    b = torch.empty_like(a)
    return 2 * a.numel() * 4 / seconds(lambda: b.copy_(a), 10)


def square_product_rate(precision, n=2048):
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=DEVICE, dtype=dtype) for _ in range(2))
    return 2 * n ** 3 / seconds(lambda: a @ b, 10)


# ---------------------------------------------------------------------------------------------- the textbook variant

def unit(z):
    return (z - z.mean(0)) / (z - z.mean(0)).norm(dim=0)


def textbook_barlow(z1, z2, lambd=0.005):
    c = unit(z1).T @ unit(z2)
    on = (1 - torch.diagonal(c)).square().sum()
    off = c.masked_select(~torch.eye(len(c), dtype=torch.bool, device=c.device)).square().sum()
    return on + lambd * off


def textbook_vibcreg(z1, z2, similarity=25.0, variance=25.0, covariance=100.0):
    def v(z):
        return F.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean()

    def c(z):
        m = unit(z).T @ unit(z)
        off = m.masked_select(~torch.eye(len(m), dtype=torch.bool, device=m.device))
        return off.square().sum() / len(m) ** 2
    return similarity * F.mse_loss(z1, z2) + variance * (v(z1) + v(z2)) + covariance * (c(z1) + c(z2))


class Textbook(ncvqvae.NCVQVAE):
    def ssl_loss(self, z_q, z_aug):
        (p1,), (p2,) = self.projector(ncvqvae.pool(z_q)), self.projector(ncvqvae.pool(z_aug))
        if self.config.method == "barlow":
            return textbook_barlow(p1, p2) / self.config.projector_dim
        return 0.01 * textbook_vibcreg(p1, p2)


# ---------------------------------------------------------------------------- what one process measures (its row of a table)

def series(B, L):
    x = torch.randn(B, L, generator=torch.Generator().manual_seed(0)).cumsum(1)
    return ((x - x.mean()) / x.std()).to(DEVICE)


def measure_stage1(method, B, L, latent_width, precision="float32", variant="ours", projector_dim=4096, parts=False):
    torch.manual_seed(0)
    config = ncvqvae.Stage1Config(method=method, latent_width=latent_width, precision=precision, projector_dim=projector_dim)
    x, generator = series(B, L), torch.Generator(DEVICE).manual_seed(0)
    if variant == "textbook":
        model = Textbook(config, L).to(DEVICE).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-5)
    else:
        model = ncvqvae.NCVQVAE(config, L).to(DEVICE, memory_format=torch.channels_last).train()
        optimizer = data.adamw(model, 1e-3, 1e-5)

    def step(update=lambda *views: ncvqvae.train_step(model, optimizer, *views)):
        update(x, *([] if method == "naive" else [data.slice_and_shuffle(x, generator)]))
    convolutions, products = flops(step)
    weights = sum(p.numel() for p in model.parameters())
    recorded = data.Recorded(lambda *views: ncvqvae.train_step(model, optimizer, *views), DEVICE)
    row = dict(seconds=seconds(lambda: step(recorded)), flops=convolutions + products)
    if variant == "ours":
        z = model.encode(x)[1]
        conv_rate = convolution_rate(B, z.shape[3], precision)
        state = 7 * 4 * weights / copy_rate()                        # weight, gradient, two moments read; three written
        floor = convolutions / conv_rate + (products / product_rate(2 * B, precision) if products else 0)
        row |= dict(floor_products=floor, floor=floor + state, conv_rate=conv_rate)
    if parts:
        row["parts"] = measure_parts(model, optimizer, config, x, L, generator)
    return row


def measure_parts(model, optimizer, config, x, L, generator):
    """Seconds of each part of a step, alone, forward and backward, all views counted."""
    views = 1 if config.method == "naive" else 2
    u, z = (t.detach() for t in model.encode(x))
    with model._autocast(x):
        u_hat = model.decoder(z, model.frames).float().detach()
    out = {"augmentation": 0 if views == 1 else seconds(lambda: data.slice_and_shuffle(x, generator))}
    out["STFT, ISTFT"] = views * (seconds(lambda: ncvqvae.stft(x, config.n_fft))
                                  + seconds(backward_of(lambda u: ncvqvae.istft(u, config.n_fft, L), u_hat)))

    def encoder(u):
        with model._autocast(u):
            return model.encoder(u)

    def decoder(z):
        with model._autocast(z):
            return model.decoder(z, model.frames)
    out["encoder"] = views * seconds(backward_of(encoder, u))
    out["quantiser"] = seconds(backward_of(lambda z: model.quantizer(z)[::2], z))
    out["decoder"] = views * seconds(backward_of(decoder, z))
    if views == 2:
        pooled, dim = ncvqvae.pool(z), config.projector_dim
        p1, p2 = torch.randn(len(x), dim, device=DEVICE), torch.randn(len(x), dim, device=DEVICE)

        def projector(a, b):
            for linear in model.projector.linears:                  # as zero_grad does; else gradients are summed up
                linear.weight.grad = None
            with model._autocast(a):
                return model.projector(a, b)
        out["projector"] = seconds(backward_of(projector, pooled, pooled))
        if config.method == "vibcreg":
            out["(IterNorm)"] = 2 * seconds(backward_of(lambda p: ncvqvae.iter_norm(p, dim // 64), p1))
        out["SSL loss"] = seconds(backward_of(
            ncvqvae.barlow_twins_loss if config.method == "barlow" else ncvqvae.vibcreg_loss, p1, p2))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    out["optimiser"] = seconds(optimizer.step)
    return out


def measure_stage2(B, N, precision="float32"):
    torch.manual_seed(0)
    model = prior.Prior(prior.PriorConfig(precision=precision), torch.randn(32, 64), N, 2).to(DEVICE).train()
    tokens, labels = torch.randint(32, (B, N), device=DEVICE), torch.zeros(B, dtype=torch.int64, device=DEVICE)
    optimizer, generator = data.adamw(model, 1e-3, 1e-5), torch.Generator(DEVICE).manual_seed(0)
    update = data.Recorded(lambda *batch: prior.train_step(model, optimizer, *batch), DEVICE)

    def step(update=lambda *batch: prior.train_step(model, optimizer, *batch)):
        update(tokens, prior.mask_tokens(tokens, generator), labels)
    return dict(seconds=seconds(lambda: step(update)), flops=sum(flops(step)))


def measure_fcn(B, L, precision="float32"):
    torch.manual_seed(0)
    model = evaluate.FCN(4, precision).to(DEVICE, memory_format=torch.channels_last).train()
    optimizer, x, y = data.adamw(model, 1e-3, 1e-5), series(B, L), torch.arange(B, device=DEVICE) % 4
    step = lambda x, y: evaluate.train_step(model, optimizer, x, y)
    update = data.Recorded(step, DEVICE)
    return dict(seconds=seconds(lambda: update(x, y)), flops=sum(flops(lambda: step(x, y))))


def measure_losses(B, D):
    z1, z2 = torch.randn(B, D, device=DEVICE), torch.randn(B, D, device=DEVICE)
    out = {}
    for name, ours, textbook in (("barlow", ncvqvae.barlow_twins_loss, textbook_barlow),
                                 ("vibcreg", ncvqvae.vibcreg_loss, textbook_vibcreg)):
        out[name] = [seconds(backward_of(f, z1, z2)) for f in (ours, textbook)]
    out["IterNorm"] = 2 * seconds(backward_of(lambda z: ncvqvae.iter_norm(z, D // 64), z1))
    return out


def measure_sampling(n, L, guidance, precision="float32"):
    """Seconds for n conditional series: ours, and 32 at a time with a conditional and a null pass at every step, float32."""
    torch.manual_seed(0)
    stage1 = ncvqvae.NCVQVAE(ncvqvae.Stage1Config(precision=precision), L, with_projector=False).to(DEVICE).eval()
    N = stage1.tokens(series(2, L)).shape[1]
    model = prior.Prior(prior.PriorConfig(precision=precision), stage1.quantizer.codebook, N, 2).to(DEVICE).eval()
    labels, generator = torch.arange(n, device=DEVICE) % 2, torch.Generator(DEVICE).manual_seed(0)

    def two_passes(prior_, tokens, mask, labels, guidance):
        nothing = prior_(tokens, mask, torch.full_like(labels, prior_.n_classes))
        return nothing + guidance * (prior_(tokens, mask, labels) - nothing)

    def plain_start(prior_, labels, *rest):
        tokens = torch.zeros(len(labels), N, dtype=torch.int64, device=DEVICE)
        return decode(prior_, labels, *rest, tokens=tokens, mask=torch.ones_like(tokens, dtype=torch.bool))

    def timed(batch):
        draw = lambda y: prior.sample(model, stage1, y, generator, prior.SampleConfig(guidance=guidance, sample_batch=batch))
        draw(labels[:32])                                                # warms up
        start = time.perf_counter()
        draw(labels)
        return time.perf_counter() - start
    ours = timed(prior.SampleConfig.sample_batch)
    stage1.config.precision = model.config.precision = "float32"
    prior.guided_logits, decode, prior.iterative_decode = two_passes, prior.iterative_decode, plain_start
    textbook = timed(32)                                                 # the process ends here: nothing to restore
    return dict(seconds=ours, textbook=textbook)


MEASURES = {f.__name__.removeprefix("measure_"): f for f in
            (measure_stage1, measure_stage2, measure_fcn, measure_losses, measure_sampling)}


def run(kind, **arguments):
    """measure_KIND(**arguments) in a process of its own; its row with peak_gb."""
    done = subprocess.run([sys.executable, __file__, "--one", kind, json.dumps(arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{kind} {arguments}: {done.stderr}")
    return {"kind": kind, **arguments, **json.loads(done.stdout.splitlines()[-1])}


def one(kind, arguments):
    if arguments.get("variant") != "textbook":
        data.keep_freed_memory()
    row = MEASURES[kind](**arguments)
    row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9 if DEVICE.type == "cuda" \
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    print(json.dumps(row))


# ----------------------------------------------------------------------------------------------------------- the report

def table(head, rows):
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)
    print()


def machine():
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line] \
        if os.path.exists("/proc/cpuinfo") else [platform.processor()]
    return f"{torch.get_num_threads()} cores of {names[0]}"


def exponent(sizes, times):
    """Least-squares slope of log time over log size."""
    x, y = [math.log(s) for s in sizes], [math.log(t) for t in times]
    mx, my = statistics.mean(x), statistics.mean(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def report_textbook(rows):
    print("### A whole stage-1 step against textbook PyTorch (float32), same run\n")
    lines = []
    for shape, latent_width in (("FordA", 32), ("SonyAIBORobotSurface1", 8)):
        B, L = SHAPES[shape]
        for method in METHODS:
            spec = dict(method=method, B=B, L=L, latent_width=latent_width)
            textbook = run("stage1", variant="textbook", **spec)
            ours = [run("stage1", precision=p, **spec) for p in ("float32", "bf16")]
            rows += [textbook, *ours]
            lines.append([f"{shape} B {B} L {L}, width {latent_width}", method, f"{textbook['seconds'] * 1e3:.0f}",
                          *(f"{r['seconds'] * 1e3:.0f} ({textbook['seconds'] / r['seconds']:.2f} x faster)" for r in ours),
                          *(f"{r['seconds'] / r['floor_products']:.2f} ({r['seconds'] / r['floor']:.2f})" for r in ours),
                          " / ".join(f"{r['peak_gb']:.2f}" for r in (textbook, *ours))])
    table(["shape", "method", "textbook ms", "float32 ms", "bf16 ms", "float32 / floor", "bf16 / floor", "peak GB"], lines)
    print("Floor: FLOPs of convolutions and products over the rates measured here for a residual convolution and a projector layer "
          "of that shape and type; in brackets with 28 bytes a weight for the optimiser's pass at the measured copy rate.\n")


def report_losses(rows):
    print("### Losses alone, forward and backward, B 128, D 4096\n")
    row = run("losses", B=128, D=4096)
    rows.append(row)
    table(["", "ours ms", "textbook ms", "times faster"],
          [[name, f"{row[name][0] * 1e3:.2f}", f"{row[name][1] * 1e3:.1f}", f"{row[name][1] / row[name][0]:.1f}"]
           for name in ("barlow", "vibcreg")] + [["IterNorm, both views", f"{row['IterNorm'] * 1e3:.1f}", "", ""]])


def report_parts(rows):
    print("### Where a step's time goes: each part alone, forward and backward, all views (ms and share of the step)\n")
    lines, names = [], []
    for shape, latent_width, method, precision in (("FordA", 32, "vibcreg", "float32"), ("FordA", 32, "vibcreg", "bf16"),
                                                   ("FordA", 32, "barlow", "float32"), ("FordA", 8, "vibcreg", "float32"),
                                                   ("SonyAIBORobotSurface1", 8, "naive", "float32"),
                                                   ("SonyAIBORobotSurface1", 8, "vibcreg", "float32"),
                                                   ("SonyAIBORobotSurface1", 8, "vibcreg", "bf16")):
        B, L = SHAPES[shape]
        row = run("stage1", method=method, B=B, L=L, latent_width=latent_width, precision=precision, parts=True)
        rows.append(row)
        names = names or list(row["parts"])
        rest = row["seconds"] - sum(t for n, t in row["parts"].items() if n[0] != "(")
        lines.append([f"{shape} width {latent_width} {method} {precision}", f"{row['seconds'] * 1e3:.1f}",
                      *(f"{row['parts'][n] * 1e3:.1f} ({row['parts'][n] / row['seconds']:.0%})" if n in row["parts"] else ""
                        for n in names), f"{rest * 1e3:.1f} ({rest / row['seconds']:.0%})"])
    table(["step", "ms", *names, "rest"], lines)


def report_steps(rows, rates):
    print("### Stage-1 steps\n")
    lines = []
    for shape, (B, L) in SHAPES.items():
        for latent_width in (8, 32):
            for method in METHODS:
                pair = [run("stage1", method=method, B=B, L=L, latent_width=latent_width, precision=p) for p in ("float32", "bf16")]
                rows += pair
                lines.append([shape, latent_width, method, *(cell for r in pair for cell in (
                    f"{r['seconds'] * 1e3:.1f}", f"{r['flops'] / r['seconds'] / rates[r['precision']]:.2f}",
                    f"{r['seconds'] / r['floor']:.2f}", f"{r['peak_gb']:.2f}"))])
    table(["shape", "width", "method", "float32 ms", "rate", "/ floor", "GB", "bf16 ms", "rate", "/ floor", "GB"], lines)
    print("Rate: achieved FLOP/s over that of a 2048 x 2048 product of that type.\n\n### Stage-2 and FCN steps\n")
    lines = []
    for kind, B, size in (("stage2", 256, 40), ("stage2", 256, 75), ("fcn", 256, 128)):
        pair = [run(kind, B=B, precision=p, **({"N": size} if kind == "stage2" else {"L": size})) for p in ("float32", "bf16")]
        rows += pair
        lines.append([f"{kind} B {B}, {'N' if kind == 'stage2' else 'L'} {size}", *(cell for r in pair for cell in (
            f"{r['seconds'] * 1e3:.0f}", f"{r['flops'] / r['seconds'] / rates[r['precision']]:.2f}", f"{r['peak_gb']:.2f}"))])
    table(["step", "float32 ms", "rate", "GB", "bf16 ms", "rate", "GB"], lines)


def report_sampling(rows):
    print("### Sampling 1,000 series of FordA's shape, T = 10, against 32 at a time with two passes for guidance\n")
    lines = []
    for precision, guidance in (("float32", 1.0), ("float32", 1.5), ("bf16", 1.0), ("bf16", 1.5)):
        row = run("sampling", n=1000, L=500, guidance=guidance, precision=precision)
        rows.append(row)
        lines.append([precision, guidance, f"{1000 / row['seconds']:.0f}", f"{1000 / row['textbook']:.0f}",
                      f"{row['textbook'] / row['seconds']:.2f}"])
    table(["precision", "guidance", "series per second", "two passes, 32 at a time", "times faster"], lines)


def report_growth(rows):
    print("### Growth of a vibcreg step (latent width 8, float32)\n")
    lines = []
    for letter, sizes in (("B", (32, 64, 128)), ("L", (128, 256, 512)), ("D", (1024, 2048, 4096))):
        chosen = []
        for size in sizes:
            spec = {**dict(method="vibcreg", B=64, L=256, latent_width=8, projector_dim=2048),
                    {"B": "B", "L": "L", "D": "projector_dim"}[letter]: size}
            chosen.append(run("stage1", **spec))
        rows += chosen
        lines.append([letter, ", ".join(f"{s}: {r['seconds'] * 1e3:.0f} ms" for s, r in zip(sizes, chosen)),
                      f"{exponent(sizes, [r['seconds'] for r in chosen]):.2f}"])
    table(["", "step (else B 64, L 256, D 2048)", "exponent"], lines)


def main():
    if sys.argv[1:2] == ["--one"]:
        return one(sys.argv[2], json.loads(sys.argv[3]))
    parser = argparse.ArgumentParser(description="Benchmark steps, losses and sampling.")
    parser.add_argument("--quick", action="store_true", help="the comparison with textbook PyTorch and the losses alone")
    quick = parser.parse_args().quick
    rates, rows = {p: square_product_rate(p) for p in ("float32", "bf16")}, []
    print(f"{machine()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}. Product of 2048 x 2048: float32 "
          f"{rates['float32'] / 1e9:.0f}, bf16 {rates['bf16'] / 1e9:.0f} GFLOP/s. Copy: {copy_rate() / 1e9:.0f} GB/s.\n")
    report_textbook(rows)
    report_losses(rows)
    if not quick:
        report_parts(rows)
        report_steps(rows, rates)
        report_sampling(rows)
        report_growth(rows)
    line = dict(date=time.strftime("%Y-%m-%dT%H:%M:%S"), machine=machine(), torch=torch.__version__, commit=data.git_commit(),
                product_rates=rates, rows=rows)
    with open(HERE / "results" / "speed.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
