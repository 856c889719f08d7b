"""Chapter 2: the prior over tokens and how to sample from it (thesis §3.2, §4.1.2; eq. 3.4-3.6).

    x --stage 1, frozen--> tokens (B, N) --mask_tokens--> Prior(tokens, mask, class) -> logits (B, N, K)      training
    all masked --iterative_decode, T passes--> tokens --stage 1's codebook, decoder--> series                 sampling

    python prior.py train  runs/Symbols/vibcreg-slice/seed1
    python prior.py sample runs/Symbols/vibcreg-slice/seed1 --n 100 --class 1 --guidance 1.0 --out x.npz

With --precision bf16 training takes 2.5 minutes on one CPU core (AMD EPYC); prior loss on the test split 2.05 (results/runs.csv).
One prior for naive and NC models (ledger 11), so a difference in samples is due to stage 1.
Letters: B batch, N tokens, K codes, D code dimension (64), E hidden dimension (256), T decoding steps, L length.
"""
import argparse, math, os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from data import (Batches, InputError, Log, Recorded, Resume, adamw, add_flags, check_precision, check_same, cosine,
                  hold, load_checkpoint, load_dataset, make_config, parse_label, pick_device, plain, read_json,
                  run_command, set_lr, write_atomic, write_json)
from ncvqvae import load_stage1


@dataclass
class PriorConfig:
    stage2_epochs: int = 1000         # §5.1.1
    stage2_steps: int = 0             # optimiser steps instead of epochs where not 0 (the fast preset)
    stage2_batch: int = 256           # §5.1.1
    stage2_lr: float = 1e-3           # AdamW, cosine to 0 (§5.1.1)
    stage2_weight_decay: float = 1e-5 # §5.1.1
    prior_hidden: int = 256           # E, Table 5.1
    prior_layers: int = 4             # Table 5.1
    prior_heads: int = 2              # Table 5.1 (4 in the paper; ledger 17)
    prior_ff_ratio: int = 1           # Table 5.1
    class_dropout: float = 0.2        # share of series trained without their class, for unconditional sampling
    embedding: str = "codebook"       # tokens start as copies of stage 1's codes (§4.1.2), or random
    loss_on: str = "masked"           # cross-entropy on masked tokens, eq. 3.5, or on all (ledger 7)
    token_temperature: float = 0.0    # nearest codes; 1 draws them from softmax(-d^2) at each step (ledger 9)
    precision: str = "float32"        # or bf16: the transformer in bfloat16 (autocast)


@dataclass
class SampleConfig:
    decode_steps: int = 10            # T, §5.1.1
    choice_temperature: float = 4.0   # of the Gumbel noise on the confidence, falls linearly to 0
    guidance: float = 1.0             # s in l_0 + s (l_c - l_0); 1 is the plain conditional model
    sample_batch: int = 256           # series decoded at once


PRESETS = {
    "thesis": {},
    "fast": dict(stage2_steps=800, stage2_lr=1e-3),              # best held-out loss on two of three sets: results/fast.md
    "toy": dict(stage2_steps=800, stage2_lr=2e-3, stage2_batch=64, prior_hidden=128),
}


# ---------------------------------------------------------------------------------------------------------------------
# The bidirectional transformer (thesis §4.1.2, Table 5.1)
# ---------------------------------------------------------------------------------------------------------------------

class Block(nn.Module):
    """Pre-norm attention and feed-forward. h (B, N, E) -> (B, N, E). Every token sees every other."""

    def __init__(self, dim, heads, ff_ratio):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.out = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.ff = nn.Sequential(nn.Linear(dim, ff_ratio * dim), nn.GELU(), nn.Linear(ff_ratio * dim, dim))

    def forward(self, h):
        B, N, E = h.shape
        qkv = self.qkv(self.norm1(h)).view(B, N, 3, self.heads, E // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                                                  # (B, heads, N, E/heads)
        if h.device.type == "cpu":       # torch's fused kernel takes 4 times as long here in bf16, and no less in float32
            a = (q @ k.transpose(2, 3) / math.sqrt(E // self.heads)).softmax(-1) @ v          # (B, heads, N, E/heads)
        else:
            a = F.scaled_dot_product_attention(q, k, v)
        h = h + self.out(a.transpose(1, 2).reshape(B, N, E))
        return h + self.ff(self.norm2(h))


class Prior(nn.Module):
    """p(token | unmasked tokens, class). Thesis §4.1.2, Table 5.1.

    forward: tokens int64 (B, N), mask bool (B, N) (True = masked, its token is not looked at), labels int64 (B,) in
    0..n_classes, where n_classes means "no class" -> logits float32 (B, N, K). codebook (K, D) starts the embedding.
    """

    def __init__(self, config, codebook, n_tokens, n_classes):
        super().__init__()
        K, D = codebook.shape
        E = config.prior_hidden
        if E % config.prior_heads:
            raise InputError(f"--prior-heads {config.prior_heads}: does not divide --prior-hidden {E}")
        self.config, self.n_tokens, self.n_classes = config, n_tokens, n_classes
        self.embedding = nn.Embedding(K, D)                      # N(0, 1), replaced by the codebook as in §4.1.2
        if config.embedding == "codebook":
            self.embedding.weight.data.copy_(codebook)
        # Mask, class and position vectors start at N(0, 1), the codes' own scale: LayerNorm would drown smaller ones.
        self.mask_vector = nn.Parameter(torch.randn(D))          # separate from the embedding (§4.1.2)
        self.classes = nn.Embedding(n_classes + 1, D)            # the last one is "no class"
        self.positions = nn.Parameter(torch.randn(1 + n_tokens, D))
        self.norm_in, self.into = nn.LayerNorm(D), nn.Linear(D, E)
        self.blocks = nn.Sequential(*[Block(E, config.prior_heads, config.prior_ff_ratio)
                                      for _ in range(config.prior_layers)])
        self.norm_out, self.back = nn.LayerNorm(E), nn.Linear(E, D)
        self.head = nn.Sequential(nn.GELU(), nn.LayerNorm(D), nn.Linear(D, K))

    def forward(self, tokens, mask, labels):
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            e = torch.where(mask[..., None], self.mask_vector, self.embedding(tokens))        # (B, N, D), eq. 3.4
            h = torch.cat([self.classes(labels)[:, None], e], dim=1) + self.positions         # (B, 1+N, D)
            h = self.blocks(self.into(self.norm_in(h)))                                       # (B, 1+N, E)
            logits = self.head(self.back(self.norm_out(h[:, 1:])))                            # (B, N, K)
        return logits.float()


# ---------------------------------------------------------------------------------------------------------------------
# Masked training (thesis §3.2.1)
# ---------------------------------------------------------------------------------------------------------------------

def mask_tokens(tokens, generator=None):
    """A random mask per series: r ~ U(0, 1], ceil(cos(pi r / 2) N) positions, at least 1. (B, N) -> bool (B, N). §3.2.1.

    The mean share is 2/pi. True means masked (ledger 8: for naive and NC models alike).
    """
    B, N = tokens.shape
    r = 1 - torch.rand(B, 1, generator=generator, device=tokens.device)                       # (0, 1]
    count = (torch.cos(r * (math.pi / 2)) * N).ceil().clamp(1, N)                             # (B, 1)
    order = torch.rand(B, N, generator=generator, device=tokens.device).argsort(1)
    return order.argsort(1) < count                              # rank of each position in a random order


def masked_cross_entropy(logits, tokens, mask):
    """Mean -log p(token) over the masked positions. logits (B, N, K), tokens (B, N), mask (B, N). Eq. 3.5."""
    losses = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")        # (B * N)
    weight = mask.flatten().to(losses.dtype)
    return (losses * weight).sum() / weight.sum()


@torch.no_grad()
def prior_loss(prior, tokens, labels, seed=0, batch=256):
    """Masked cross-entropy over a whole split, one seeded mask per series (thesis §6.2.3). tokens (n, N) -> float."""
    mask = mask_tokens(tokens, torch.Generator(tokens.device).manual_seed(seed))
    total = 0.0
    for t, m, y in zip(tokens.split(batch), mask.split(batch), labels.split(batch)):
        total += float(masked_cross_entropy(prior(t, m, y), t, m)) * int(m.sum())
    return total / int(mask.sum())


def class_labels(dataset, split, n_classes):
    """Labels of a split for the prior, all 0 = "no class" for a set without labels. int64 (n,)."""
    x, y = (dataset.x_train, dataset.y_train) if split == "train" else (dataset.x_test, dataset.y_test)
    return torch.full((len(x),), n_classes) if y is None else y


def train_step(prior, optimizer, tokens, mask, labels):
    """One optimiser step on tokens (B, N), mask (B, N), labels (B,). Returns the loss, detached."""
    optimizer.zero_grad()
    counted = mask if prior.config.loss_on == "masked" else torch.ones_like(mask)    # NOTE(ledger 7): --loss-on all
    loss = masked_cross_entropy(prior(tokens, mask, labels), tokens, counted)
    loss.backward()
    optimizer.step()
    return loss.detach()


def train_stage2(run_dir, config, dataset=None, device=None):
    """Train the prior on the run's frozen stage 1 and write run_dir/stage2.pt; skips or resumes as stage 1 does.

    Returns the trained Prior in eval mode.
    """
    for name, value, known in (("--embedding", config.embedding, ("codebook", "random")),
                               ("--loss-on", config.loss_on, ("masked", "all"))):
        if value not in known:
            raise InputError(f"{name} {value}: not one of {', '.join(known)}")
    check_precision(config)
    run_dir, device = Path(run_dir), device or pick_device()
    path = run_dir / "stage2.pt"
    if path.exists():
        check_same(path, "the finished run", load_checkpoint(path).get("config", {}), plain(config))
        return load_stage2(run_dir, device)[0]
    stage1, first = load_stage1(run_dir, device)
    seed = first["config"]["seed"]
    dataset = dataset or load_dataset(first["config"]["dataset"], os.environ.get("UCR_DIR", "datasets"))
    check_same(run_dir / "stage1.pt", "its data", {"sha256": first["data"]["sha256"]}, {"sha256": dataset.sha256})

    # The tokens of the whole split, once: the tokenizer is frozen.
    x_train, n_classes = dataset.x_train.to(device), len(dataset.classes)
    tokens = torch.cat([stage1.tokens(x) for x in x_train.split(256)])                        # (n, N)
    labels = class_labels(dataset, "train", n_classes).to(device)                             # (n,)
    if config.token_temperature > 0:     # NOTE(ledger 9): the authors drew tokens, here that is --token-temperature 1
        with torch.no_grad():
            token_logits = torch.cat([-stage1.quantizer.distances(stage1.encode(x)[1]).flatten(1, 2)
                                      for x in x_train.split(256)]) / config.token_temperature    # (n, N, K)

    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    prior = Prior(config, stage1.quantizer.codebook, tokens.shape[1], n_classes).to(device)
    optimizer = adamw(prior, config.stage2_lr, config.stage2_weight_decay)
    batches = Batches(len(tokens), config.stage2_batch, generator)
    total = config.stage2_steps or config.stage2_epochs * batches.per_epoch
    identity = {**plain(config), "stage1": first["config"], "sha256": dataset.sha256}
    resume = Resume(run_dir / "stage2.resume.pt", identity, generator, prior, optimizer, batches)
    write_json(run_dir / "config.json", read_json(run_dir / "config.json") | {"stage2": plain(config)})
    log = Log(run_dir, "stage2", total, resume, device, dataset.sha256)

    prior.train()
    update = Recorded(partial(train_step, prior, optimizer), device)
    for step in range(resume.step, total):
        rows = next(batches)
        t, y = tokens[rows], labels[rows]                                                     # (B, N), (B,)
        if config.token_temperature > 0:
            noise = torch.rand(token_logits[rows].shape, generator=generator, device=device).clamp_min(1e-20)
            t = (token_logits[rows] - torch.log(-torch.log(noise))).argmax(-1)                # a draw from softmax(-d^2)
        mask = mask_tokens(t, generator)
        drop = torch.rand(len(y), generator=generator, device=device) < config.class_dropout
        set_lr(optimizer, config.stage2_lr * cosine(step, total))
        loss = update(t, mask, torch.where(drop, n_classes, y))
        if log.due(step + 1):
            log(step + 1, step // batches.per_epoch + 1, loss=loss)
        resume.save_when_due(step + 1)

    prior.eval()
    checkpoint = dict(config=plain(config), state={k: v.cpu() for k, v in prior.state_dict().items()}, step=total,
                      stage1=first["config"], data=first["data"], n_tokens=tokens.shape[1], seconds=resume.seconds())
    write_atomic(path, lambda file: torch.save(checkpoint, file))
    resume.remove()
    return prior


def load_stage2(run_dir, device=None):
    """A run's trained models: Prior and NCVQVAE in eval mode, and the stage-2 checkpoint's dict."""
    path, device = Path(run_dir) / "stage2.pt", device or pick_device()
    stage1, first = load_stage1(run_dir, device)
    checkpoint = load_checkpoint(path)
    try:
        check_same(path, "its stage 1", checkpoint["stage1"], first["config"])
        prior = Prior(PriorConfig(**checkpoint["config"]), stage1.quantizer.codebook, checkpoint["n_tokens"],
                      len(checkpoint["data"]["classes"]))
        prior.load_state_dict(checkpoint["state"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: no stage-2 checkpoint of this program ({str(error).splitlines()[0][:120]}); remove "
                         "it and run stage 2 again") from None
    return prior.to(device).eval().requires_grad_(False), stage1, checkpoint


# ---------------------------------------------------------------------------------------------------------------------
# Iterative decoding (thesis §3.2.2)
# ---------------------------------------------------------------------------------------------------------------------

def guided_logits(prior, tokens, mask, labels, guidance=1.0):
    """l_0 + s (l_c - l_0): class-conditional logits pushed away from the unconditional ones. -> (B, N, K).

    One forward pass: conditional and unconditional are stacked, and only the conditional one runs where s = 1.
    """
    if guidance == 1:
        return prior(tokens, mask, labels)
    nothing = torch.full_like(labels, prior.n_classes)
    conditional, unconditional = prior(tokens.repeat(2, 1), mask.repeat(2, 1), torch.cat([labels, nothing])).chunk(2)
    return unconditional + guidance * (conditional - unconditional)


@torch.no_grad()
def iterative_decode(prior, labels, generator=None, steps=10, choice_temperature=4.0, guidance=1.0, tokens=None,
                     mask=None):
    """MaskGIT decoding: fill the masked tokens over `steps` passes. labels int64 (B,) -> tokens int64 (B, N). §3.2.2.

    Starts all masked, or from tokens (B, N) with mask (B, N), True = to be filled; known tokens never change. An all-masked
    start runs its first pass on one row per class.
    After pass t the floor(cos(pi (t+1) / 2T) M) least confident of the M tokens to be filled are masked again (eq. 3.6);
    confidence is log p + choice_temperature (1 - (t+1)/T) Gumbel noise.
    """
    device, fresh = labels.device, tokens is None
    if fresh:
        tokens = torch.zeros(len(labels), prior.n_tokens, dtype=torch.int64, device=device)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        classes, row = labels.unique(return_inverse=True)
    to_fill = mask.sum(1, keepdim=True)                                                       # (B, 1) M
    for t in range(steps):
        if fresh and t == 0:                                     # all masked: the class alone decides, so one row for each
            logits = guided_logits(prior, tokens[:len(classes)], mask[:len(classes)], classes, guidance)[row]
        else:
            logits = guided_logits(prior, tokens, mask, labels, guidance)                     # (B, N, K)
        log_p = logits.log_softmax(-1)
        drawn = torch.multinomial(log_p.exp().flatten(0, 1), 1, generator=generator).view_as(tokens)
        tokens = torch.where(mask, drawn, tokens)
        uniform = torch.rand(tokens.shape, generator=generator, device=device).clamp_min(1e-20)
        gumbel = -torch.log(-torch.log(uniform))
        confidence = log_p.gather(-1, tokens[..., None])[..., 0] + choice_temperature * (1 - (t + 1) / steps) * gumbel
        confidence = confidence.masked_fill(~mask, math.inf)     # what is known stays known
        share = math.cos(math.pi / 2 * (t + 1) / steps)          # as a table over M: exact on any device
        again = torch.tensor([math.floor(share * m) for m in range(prior.n_tokens + 1)], device=device)[to_fill]   # (B, 1)
        mask = confidence.argsort(1).argsort(1) < again          # rank by confidence, the lowest are masked again
    return tokens


@torch.no_grad()
def sample(prior, stage1, labels, generator=None, config=SampleConfig()):
    """Series from the model, in the order of labels. labels int64 (n,), n_classes = "no class" -> float32 (n, L).

    Standardised units; times std plus mean of the checkpoint's `data` gives original ones. generator: on the models'
    device. Thesis §3.2.2, decoded with stage 1's codebook (ledger 10).
    """
    device = next(prior.parameters()).device
    series = []
    for y in labels.to(device).split(config.sample_batch):
        tokens = iterative_decode(prior, y, generator, config.decode_steps, config.choice_temperature, config.guidance)
        series.append(stage1.series(tokens).cpu())
    return torch.cat(series)


def to_original_units(x, data):
    """Standardised series (n, L) as samples.npz holds them: float32 NumPy (n, 1, L) in the data's own units."""
    return (x * data["std"] + data["mean"]).numpy().astype(np.float32)[:, None]


def save_samples(path, series, labels, data):
    """Write an .npz: X (n, 1, L) in original units, and y (n,), the data's own labels, where labels are given."""
    arrays = {"X": to_original_units(series, data)}
    if labels is not None:
        arrays["y"] = np.array(data["classes"])[labels.numpy()]
    write_atomic(path, lambda file: np.savez_compressed(file, **arrays))


def command_sample(given):
    if not given.out.endswith(".npz"):
        raise InputError(f"--out {given.out}: should end in .npz")
    if given.n < 1:
        raise InputError(f"--n {given.n}: at least 1")
    prior, stage1, checkpoint = load_stage2(given.run_dir)
    classes, label = checkpoint["data"]["classes"], prior.n_classes
    if given.label is not None:
        words = [str(c) for c in classes]
        if str(parse_label(given.label)) not in words:
            raise InputError(f"--class {given.label}: the data's classes are {', '.join(words) or 'none'}")
        label = words.index(str(parse_label(given.label)))
    labels = torch.full((given.n,), label)
    generator = torch.Generator(next(prior.parameters()).device).manual_seed(given.seed)
    series = sample(prior, stage1, labels, generator, make_config(SampleConfig, {"": {}}, "", given))
    save_samples(given.out, series, None if given.label is None else labels, checkpoint["data"])
    print(f"{given.out}: {given.n} series of length {series.shape[1]}")


def main():
    parser = argparse.ArgumentParser(description="Train stage 2 (the prior), or sample from it.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train the prior of a run folder", allow_abbrev=False)
    train.add_argument("run_dir", help="run folder with a finished stage 1")
    train.add_argument("--preset", default="thesis", help=f"one of {', '.join(PRESETS)}; flags override it")
    add_flags(train, PriorConfig)
    draw = commands.add_parser("sample", help="draw series into an .npz", allow_abbrev=False)
    draw.add_argument("run_dir", help="run folder with a finished stage 2")
    draw.add_argument("--n", type=int, default=100, help="number of series [100]")
    draw.add_argument("--class", dest="label", help="a class label as in the data; without it: unconditional")
    draw.add_argument("--seed", type=int, default=0, help="of the draws [0]")
    draw.add_argument("--out", default="samples.npz", help="the file to write [samples.npz]")
    add_flags(draw, SampleConfig)
    given = parser.parse_args()
    if given.command == "sample":
        command_sample(given)
    else:
        config = make_config(PriorConfig, PRESETS, given.preset, given)
        with hold(given.run_dir):
            train_stage2(given.run_dir, config)


if __name__ == "__main__":
    run_command(main)
