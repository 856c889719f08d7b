"""Chapter 2: the prior over tokens, and samples from it (thesis §3.2, §4.1.2; eq. 3.4 to 3.6).

    x --stage 1, frozen--> tokens (B, N) --mask_tokens--> Prior -> logits (B, N, K)         training
    all masked --iterative_decode, T passes--> tokens --codebook, decoder--> series         sampling

    python prior.py train  runs/Symbols/vibcreg-slice/seed1  # 2.5 minutes
    python prior.py sample runs/Symbols/vibcreg-slice/seed1 --n 100 --class 1 --out x.npz

Naive and NC models get the same prior (ledger 11): a difference in samples is due to stage 1.
Letters: B batch, N tokens, K codes, D code dimension (64), E hidden dimension (256), T passes.
"""
import math, sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from data import (Config, Dataset, Parser, add_flags, hold, load_dataset, make_config,
                  pick_device, read_config, refuse, run_command, write_atomic)
from ncvqvae import Training, gumbel, load_model, load_stage1

# ---- The bidirectional transformer (§4.1.2, Table 5.1) ----
class Block(nn.Module):
    """Pre-norm attention and feed-forward, (B, N, E) -> (B, N, E). All tokens see each other."""
    def __init__(self, dim, heads, ff_ratio):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim)
        self.out, self.norm2 = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.ff = nn.Sequential(nn.Linear(dim, ff_ratio * dim), nn.GELU(),
                                nn.Linear(ff_ratio * dim, dim))

    def forward(self, h):
        B, N, E = h.shape
        qkv = self.qkv(self.norm1(h)).view(B, N, 3, self.heads, E // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, E/heads)
        # Plain: a fused kernel takes 4 times as long in bf16 on a CPU.
        a = (q @ k.transpose(2, 3) / math.sqrt(E // self.heads)).softmax(-1) @ v
        h = h + self.out(a.transpose(1, 2).reshape(B, N, E))  # (B, N, E)
        return h + self.ff(self.norm2(h))

class Prior(nn.Module):
    """p(token | unmasked tokens, class). §4.1.2, Table 5.1.

    tokens int64 (B, N), mask bool (B, N) (True: masked, not looked at), labels int64 (B,) in
    0..n_classes, the last of which means "no class" -> logits float32 (B, N, K). sizes: tokens of
    each band; N is their sum, or that of the low band, which comes first.
    """
    def __init__(self, config, codebook, sizes, n_classes):
        super().__init__()
        (K, D), E = codebook.shape, config.prior_hidden
        self.sizes, self.no_class, self.precision = sizes, n_classes, config.precision
        bands = torch.arange(len(sizes))
        foreign = bands.repeat_interleave(torch.tensor(sizes))[:, None] != bands.repeat_interleave(
            K // len(sizes))  # (N, K) a band's codes are never at a position of the other
        self.register_buffer("foreign", foreign, persistent=False)
        self.embedding = nn.Embedding(K, D)
        if config.embedding == "codebook":  # whose geometry SSL has shaped (§4.1.2)
            self.embedding.weight.data.copy_(codebook)
        # Apart from the embedding: learning "unknown" moves no code (§4.1.2). All start at the
        # codes' own scale: LayerNorm would drown smaller ones.
        self.mask_vector = nn.Parameter(torch.randn(D))
        self.classes = nn.Embedding(n_classes + 1, D)  # the last one: no class
        self.positions = nn.Parameter(torch.randn(1 + sum(sizes), D))  # the first one: the class
        self.norm_in, self.into = nn.LayerNorm(D), nn.Linear(D, E)  # codes are narrower than E
        self.blocks = nn.Sequential(*[Block(E, config.prior_heads, config.prior_ff_ratio)
                                      for _ in range(config.prior_layers)])
        self.norm_out, self.back = nn.LayerNorm(E), nn.Linear(E, D)
        self.head = nn.Sequential(nn.GELU(), nn.LayerNorm(D), nn.Linear(D, K))

    def forward(self, tokens, mask, labels):
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            e = torch.where(mask[..., None], self.mask_vector, self.embedding(tokens))  # eq. 3.4
            h = torch.cat([self.classes(labels)[:, None], e], 1)  # (B, 1+N, D)
            h = h + self.positions[:h.shape[1]]
            h = self.blocks(self.into(self.norm_in(h)))  # (B, 1+N, E)
            logits = self.head(self.back(self.norm_out(h[:, 1:])))  # (B, N, K)
        return logits.float().masked_fill(self.foreign[:tokens.shape[1]], -1e9)

# ---- Masked training (§3.2.1) ----
def mask_tokens(tokens, generator=None):
    """A random mask per series: r ~ U(0, 1], ceil(cos(pi r / 2) N) places -> bool (B, N). §3.2.1.

    At least one, 2/pi of them in the mean (ledger 8: naive and NC alike). Many masked is the first
    pass of decoding, few the last: training sees all of them.
    """
    B, N = tokens.shape
    r = 1 - torch.rand(B, 1, generator=generator, device=tokens.device)  # (0, 1]
    count = (torch.cos(r * (math.pi / 2)) * N).ceil().clamp(1, N)  # (B, 1)
    order = torch.rand(B, N, generator=generator, device=tokens.device).argsort(1)
    return order.argsort(1) < count  # rank of each position in a random order

def masked_cross_entropy(logits, tokens, mask):
    """Mean -log p(token) over masked positions. logits (B, N, K), tokens, mask (B, N). Eq. 3.5."""
    losses = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")  # (B * N)
    weight = mask.flatten().to(losses.dtype)  # (B * N) 1 where it counts
    return (losses * weight).sum() / weight.sum()

def band_losses(prior, tokens, masks, labels, loss_on="masked"):
    """Eq. 3.5, the mean over bands: low tokens given the class, high ones given the low. Eq. 3.3.

    tokens (B, N), masks: one (B, n) a band, labels (B,) -> scalar.
    """
    loss, end = 0.0, 0
    for mask in masks:
        start, end = end, end + mask.shape[1]
        logits = prior(tokens[:, :end], F.pad(mask, (start, 0)), labels)[:, start:]  # (B, n, K)
        counted = mask if loss_on == "masked" else torch.ones_like(mask)  # ledger 7
        loss = loss + masked_cross_entropy(logits, tokens[:, start:end], counted) / len(masks)
    return loss

@torch.no_grad()
def prior_loss(prior, tokens, labels, seed=0):
    """band_losses of a split (n, N), one seeded mask a series, as a float. §6.2.3."""
    generator, total = torch.Generator(tokens.device).manual_seed(seed), 0.0
    masks = [mask_tokens(part, generator) for part in tokens.split(prior.sizes, 1)]
    counts = torch.cat(masks, 1).sum(1)  # (n) masked
    for rows in torch.arange(len(tokens)).split(256):
        loss = band_losses(prior, tokens[rows], [mask[rows] for mask in masks], labels[rows])
        total += float(loss * counts[rows].sum())
    return total / int(counts.sum())

def train_stage2(run_dir, config=None, dataset=None):
    """Train the prior on the run's frozen stage 1, write run_dir/stage2.pt. -> Prior in eval mode.

    Finished, interrupted, of other settings: as train_stage1.
    """
    run_dir, config = Path(run_dir), config or read_config(run_dir)
    device, dataset = pick_device(config.precision), dataset or load_dataset(config.dataset)
    stage1 = load_stage1(run_dir, config, dataset)[0]
    if (path := run_dir / "stage2.pt").exists():
        prior = load_stage2(run_dir, config, dataset)[0]
        print(f"{path}: finished before, with these settings and data", file=sys.stderr)
        return prior
    # Once, as the tokenizer is frozen:
    no_class, x_train = len(dataset.classes), dataset.x_train.to(device)
    tokens, test_tokens = (torch.cat([stage1.tokens(part.to(device)) for part in x.split(256)])
                           for x in (x_train, dataset.x_test))  # (n, N)
    labels, test_labels = dataset.y_train.to(device), dataset.y_test.to(device)  # (n,)
    torch.manual_seed(config.seed)
    prior = Prior(config, stage1.codebook(), stage1.sizes, no_class).to(device)
    training = Training(run_dir, "stage2", prior, config, dataset.sha256, len(tokens))
    for rows in training:
        t, y = tokens[rows], labels[rows]  # (B, N), (B,)
        if config.token_temperature > 0:  # NOTE(ledger 9): the authors' way, with 1
            t = stage1.tokens(x_train[rows], config.token_temperature, training.generator)
        masks = [mask_tokens(part, training.generator) for part in t.split(prior.sizes, 1)]
        # Series without a class teach unconditional samples and guidance.
        chance = torch.rand(len(y), generator=training.generator, device=device)
        y = torch.where(chance < config.class_dropout, no_class, y)
        training.update(band_losses(prior, t, masks, y, config.loss_on))
        if training.validates(config.validate_epochs):
            # Draws of its own, none of training's (Fig. 6.11).
            training.log(val_prior_loss=prior_loss(prior, test_tokens, test_labels))
    training.finish(path, data=dataset.info())
    return load_stage2(run_dir, config, dataset)[0]

def load_stage2(run_dir, config=None, dataset=None):
    """A run's models: Prior and NCVQVAE in eval mode, and the stage-2 checkpoint's dict."""
    path = Path(run_dir) / "stage2.pt"
    config = config or read_config(run_dir)  # both stages have to be of these settings
    stage1, _ = load_stage1(run_dir, config, dataset)
    prior, checkpoint = load_model(path, "stage2", lambda made_with, saved: Prior(
        made_with, stage1.codebook(), stage1.sizes, len(saved["data"]["classes"])), config, dataset)
    return prior, stage1, checkpoint

# ---- Iterative decoding (§3.2.2) ----
def guided_logits(prior, tokens, mask, labels, guidance=1.0):
    """l_0 + s (l_c - l_0): the class' logits, away from those of no class. -> (B, N, K)."""
    no_class = torch.full_like(labels, prior.no_class)
    if guidance == 1 or labels.equal(no_class):
        return prior(tokens, mask, labels)
    conditional, unconditional = prior(tokens.repeat(2, 1), mask.repeat(2, 1),
                                       torch.cat([labels, no_class])).chunk(2)
    return unconditional + guidance * (conditional - unconditional)

@torch.no_grad()
def iterative_decode(prior, labels, generator=None, steps=10, choice_temperature=4.0, guidance=1.0,
                     tokens=None, mask=None):
    """MaskGIT decoding over `steps` passes. labels int64 (B,) -> tokens int64 (B, N). §3.2.2.

    Starts all masked, or from tokens with mask (B, N), True: to be filled; known ones stay.
    After pass t the floor(cos(pi (t+1) / 2T) M) least confident of M are masked again (eq. 3.6).
    """
    if tokens is None:  # nothing is known
        tokens = torch.zeros(len(labels), sum(prior.sizes), dtype=torch.int64, device=labels.device)
        mask = torch.ones_like(tokens, dtype=torch.bool)
    parts, tokens = zip(tokens.split(prior.sizes, 1), mask.split(prior.sizes, 1)), tokens[:, :0]
    for part, masked in parts:  # the low band, then the high one given it
        mask, tokens = F.pad(masked, (tokens.shape[1], 0)), torch.cat([tokens, part], 1)  # (B, N)
        to_fill = mask.sum(1, keepdim=True)  # (B, 1) M
        for t in range(steps):
            log_p = guided_logits(prior, tokens, mask, labels, guidance).log_softmax(-1)
            drawn = torch.multinomial(log_p.exp().flatten(0, 1), 1, generator=generator)
            tokens = torch.where(mask, drawn.view_as(tokens), tokens)  # (B, N)
            # NOTE(ledger 27): noise that falls to 0, as the program has. Without it the surest
            # places, the same for all series, come first, and samples grow alike.
            noise = choice_temperature * (1 - (t + 1) / steps)
            confidence = (log_p.gather(-1, tokens[..., None])[..., 0]  # (B, N)
                          + noise * gumbel(tokens.shape, generator, tokens.device))
            confidence = confidence.masked_fill(~mask, math.inf)  # what is known stays known
            again = (math.cos(math.pi / 2 * (t + 1) / steps) * to_fill).floor()  # (B, 1)
            mask = confidence.argsort(1).argsort(1) < again  # the lowest ranks
    return tokens

@torch.no_grad()
def sample(prior, stage1, labels, generator=None, config=Config()):
    """Series from the model, one per label (n,), n_classes: none. -> float32 (n, L), standardised.

    Stage 1's codebook decodes (ledger 10).
    """
    device, series = next(prior.parameters()).device, []
    for y in labels.to(device).split(256):  # (B,)
        tokens = iterative_decode(prior, y, generator, config.decode_steps,
                                  config.choice_temperature, config.guidance)
        series.append(stage1.series(tokens).cpu())  # (B, L)
    return torch.cat(series)

def save_samples(path, dataset, labels, **series):
    """An .npz: series (n, L) as float64 (n, 1, L) in original units; y (n,), X's labels, if any."""
    arrays = {name: dataset.to_original(x)[:, None] for name, x in series.items()}
    if labels is not None:
        arrays["y"] = np.array(dataset.classes)[labels.numpy()]  # (n,)
    write_atomic(path, lambda file: np.savez_compressed(file, **arrays))

def command_sample(args):
    """Draw series of one class, or of none, from a run's models into an .npz."""
    refuse(not args.out.endswith(".npz"), f"--out {args.out}: should end in .npz")
    refuse(not 1 <= args.n <= 10**7, f"--n {args.n}: should be from 1 to 10^7")
    config = make_config(args, asdict(read_config(args.run_dir)))
    prior, stage1, checkpoint = load_stage2(args.run_dir)
    dataset = Dataset(**checkpoint["data"])
    label = prior.no_class if args.label is None else dataset.label(args.label)  # 0..K
    labels = torch.full((args.n,), label)
    generator = torch.Generator(next(prior.parameters()).device).manual_seed(config.seed)
    series = sample(prior, stage1, labels, generator, config)
    save_samples(args.out, dataset, None if args.label is None else labels, X=series)
    print(f"{args.out}: {args.n} series of length {series.shape[1]}")

def main():
    parser = Parser(description="Train stage 2 (the prior), or sample from it.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("train", "train a run's prior"), ("sample", "draw series into an .npz")):
        command = commands.add_parser(name, help=text, allow_abbrev=False)
        command.add_argument("run_dir", help="run folder, which holds the settings")
    command.add_argument("--n", type=int, default=100, help="series [100]")
    command.add_argument("--class", dest="label", help="a label of the data; else unconditional")
    command.add_argument("--out", default="samples.npz", help="file to write [samples.npz]")
    add_flags(command, "decode_steps", "guidance", also=("seed",))
    args = parser.parse_args()
    if args.command == "sample":
        return command_sample(args)
    if read_config(args.run_dir).stages == 2:  # --stages 1 wants no prior
        with hold(args.run_dir):
            train_stage2(args.run_dir)

if __name__ == "__main__":
    run_command(main)
