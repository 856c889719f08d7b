"""Chapter 2: the prior over tokens, and samples from it (thesis §3.2, §4.1.2; eq. 3.4 to 3.6).

    x --stage 1, frozen--> tokens (B, N) --mask_tokens--> Prior -> logits (B, N, K)         training
    all masked --iterative_decode, T passes--> tokens --codebook, decoder--> series         sampling

    python prior.py train  runs/Symbols/vibcreg-slice/seed1  # 2.5 minutes
    python prior.py sample runs/Symbols/vibcreg-slice/seed1 --n 100 --class 1 --out x.npz

Naive and NC models get the same prior (ledger 11): a difference in samples is due to stage 1.
Letters: B batch, n series, L length, N tokens of all bands, K codes of all bands (chapter 1: of
one), D code dimension (64), E hidden dimension (256), T passes.

"Ledger 7" is row 7 of the ledger in README.md: where the thesis' text, the authors' program and
this code differ.
"""

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from data import (
    Config,
    Dataset,
    InputError,
    Parser,
    Training,
    add_flags,
    hold,
    load_checkpoint,
    load_dataset,
    make_config,
    output_path,
    pick_device,
    read_checkpoint,
    read_config,
    ready,
    remove_resume_file,
    resume_file,
    run_command,
    say,
    warn,
    write_npz,
)
from ncvqvae import gumbel, load_stage1

# ---------------------------------------------------------------------------------------------
# The bidirectional transformer (§4.1.2, Table 5.1)
# ---------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Pre-norm attention and feed-forward, (B, N, E) -> (B, N, E). All tokens see each other."""

    def __init__(self, dim, heads, ff_ratio, dropout):
        super().__init__()
        self.heads = heads
        self.dropout = nn.Dropout(dropout)  # on what attention and feed-forward add to h
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        hidden = ff_ratio * dim
        self.ff = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, h):
        B, N, E = h.shape
        per_head = E // self.heads
        qkv = self.qkv(self.norm1(h)).view(B, N, 3, self.heads, per_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, E/heads) each
        # Written out, as a fused kernel takes 4 times as long in bf16 on a CPU.
        attention = (q @ k.transpose(2, 3) / math.sqrt(per_head)).softmax(-1)  # (B, heads, N, N)
        mixed = (attention @ v).transpose(1, 2).reshape(B, N, E)
        h = h + self.dropout(self.out(mixed))
        return h + self.dropout(self.ff(self.norm2(h)))


class Prior(nn.Module):
    """p(token | unmasked tokens, class). §4.1.2, Table 5.1.

    codebook: stage 1's, (K, D). sizes: how many tokens each band has. n_classes: of the data.
    A call takes
    tokens: int64 (B, N) of all bands; or of the low band alone, to predict it without the high one,
    mask: bool (B, N), True where a token is masked and so not looked at,
    labels: int64 (B,) in 0..n_classes; n_classes itself means "no class",
    and returns logits, float32 (B, N, K).
    """

    def __init__(self, config, codebook, sizes, n_classes):
        super().__init__()
        K, D = codebook.shape
        E = config.prior_hidden
        self.sizes = sizes
        self.no_class = n_classes
        self.precision = config.precision
        self.embedding = nn.Embedding(K, D)
        if config.embedding == "codebook":  # which SSL has ordered, if there was any (§4.1.2)
            self.embedding.weight.data.copy_(codebook)
        # A vector of its own, so that learning "unknown" moves no code (§4.1.2). It, the classes
        # and the positions start as N(0, 1), nn.Embedding's default and the codes' scale in the
        # mean: LayerNorm sees their sum, in which a part that starts smaller would not be heard.
        self.mask_vector = nn.Parameter(torch.randn(D))
        self.classes = nn.Embedding(n_classes + 1, D)  # the last one: no class
        self.positions = nn.Parameter(torch.randn(1 + sum(sizes), D))  # the first one: the class
        self.norm_in = nn.LayerNorm(D)
        self.to_hidden = nn.Linear(D, E)
        blocks = []
        for _ in range(config.prior_layers):
            block = Block(E, config.prior_heads, config.prior_ff_ratio, config.prior_dropout)
            blocks.append(block)
        self.blocks = nn.Sequential(*blocks)
        self.norm_out = nn.LayerNorm(E)
        self.to_code = nn.Linear(E, D)
        self.head = nn.Sequential(nn.GELU(), nn.LayerNorm(D), nn.Linear(D, K))
        # A position may take the codes of its own band only.
        band_of_position = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))  # (N)
        codes_per_band = K // len(sizes)
        band_of_code = torch.arange(len(sizes)).repeat_interleave(codes_per_band)  # (K)
        forbidden = band_of_position[:, None] != band_of_code  # (N, K)
        self.register_buffer("forbidden", forbidden, persistent=False)

    def forward(self, tokens, mask, labels):
        bf16 = self.precision == "bf16"
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=bf16):
            e = torch.where(mask[..., None], self.mask_vector, self.embedding(tokens))  # eq. 3.4
            h = torch.cat([self.classes(labels)[:, None], e], 1)  # (B, 1+N, D)
            h = h + self.positions[: h.shape[1]]
            h = self.blocks(self.to_hidden(self.norm_in(h)))  # (B, 1+N, E)
            logits = self.head(self.to_code(self.norm_out(h[:, 1:])))  # (B, N, K)
        forbidden = self.forbidden[: tokens.shape[1]]  # the low band may come alone
        return logits.float().masked_fill(forbidden, -1e9)


# ---------------------------------------------------------------------------------------------
# Masked training (§3.2.1)
# ---------------------------------------------------------------------------------------------


def mask_tokens(tokens, generator=None):
    """A random mask per series: r ~ U(0, 1], ceil(cos(pi r / 2) N) places -> bool (B, N). §3.2.1.

    Of tokens (B, N) only shape and device count. At least one is masked, about 2/pi of them in the
    mean (ledger 8). Decoding starts with many masked and ends with few, so training has to see
    every share.
    """
    B, N = tokens.shape
    r = 1 - torch.rand(B, 1, generator=generator, device=tokens.device)  # (0, 1]
    count = (torch.cos(r * (math.pi / 2)) * N).ceil().clamp(1, N)  # (B, 1)
    order = torch.rand(B, N, generator=generator, device=tokens.device).argsort(1)  # random
    rank = order.argsort(1)  # (B, N) each position's place in that order
    return rank < count


def masked_cross_entropy(logits, tokens, mask):
    """Mean -log p(token) over masked positions. logits (B, N, K), tokens, mask (B, N). Eq. 3.5.

    The thesis prints the equation without the log (ledger 7), and sums over a series' tokens.
    """
    losses = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")  # (B * N)
    weight = mask.flatten().to(losses.dtype)  # (B * N) 1 where it counts
    return (losses * weight).sum() / weight.sum()


def band_losses(prior, tokens, masks, labels, loss_on="masked"):
    """Eq. 3.5; with two bands the mean of -log p(low | class) and -log p(high | low, class).

    That order is TimeVQVAE's. tokens (B, N), masks a list of bool (B, tokens of the band), labels
    (B,) -> scalar. loss_on: the "masked" tokens count, or "all" (ledger 7).
    """
    loss = 0.0
    start = 0
    for mask in masks:
        end = start + mask.shape[1]
        mask_so_far = F.pad(mask, (start, 0))  # (B, end) False, so visible, in the band before
        logits = prior(tokens[:, :end], mask_so_far, labels)[:, start:]  # (B, end - start, K)
        counted = mask if loss_on == "masked" else torch.ones_like(mask)  # ledger 7
        loss = loss + masked_cross_entropy(logits, tokens[:, start:end], counted) / len(masks)
        start = end
    return loss


@torch.no_grad()
def prior_loss(prior, tokens, labels, seed=0):
    """band_losses of a split's tokens (n, N), one seeded mask a series, as a float. §6.2.3.

    Masked tokens alone count, whatever --loss-on says. Batches are weighted by how many they have,
    so that with one band this is the mean over all masked tokens of the split; with two, nearly.
    """
    generator = torch.Generator(tokens.device).manual_seed(seed)
    masks = [mask_tokens(part, generator) for part in tokens.split(prior.sizes, 1)]
    n_masked = torch.cat(masks, 1).sum(1)  # (n)
    total = 0.0
    for rows in torch.arange(len(tokens), device=tokens.device).split(256):
        loss = band_losses(prior, tokens[rows], [mask[rows] for mask in masks], labels[rows])
        total += float(loss * n_masked[rows].sum())
    return total / int(n_masked.sum())


def make_optimizers(prior, config):
    """[AdamW] for all parameters; with --optimizer muon [AdamW, Muon].

    Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest orthogonal matrix and
    steps by that. It is for the matrices of the blocks, as is usual; embeddings and ends stay with
    AdamW.
    """
    matrices = []
    others = []
    for name, parameter in prior.named_parameters():
        if config.optimizer == "muon" and "blocks" in name and parameter.ndim == 2:
            matrices.append(parameter)
        else:
            others.append(parameter)
    decay = config.stage2_weight_decay
    optimizers = [torch.optim.AdamW(others, weight_decay=decay, fused=True)]
    if matrices:  # steps of AdamW's size, so that one learning rate serves both
        muon = torch.optim.Muon(matrices, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        optimizers.append(muon)
    return optimizers


def train_stage2(run_dir, config=None, dataset=None):
    """Train the prior on the run's frozen stage 1, write run_dir/stage2.pt -> Prior in eval mode.

    What was finished or interrupted before, or is of other settings, is treated as in train_stage1.
    """
    run_dir = Path(run_dir)
    config = config or read_config(run_dir)
    device = pick_device(config.precision)
    dataset = dataset or load_dataset(config.dataset)
    stage1, _ = load_stage1(run_dir, config, dataset)
    path = run_dir / "stage2.pt"
    if path.exists():
        prior, _ = load_prior(run_dir, stage1, config, dataset)
        remove_resume_file(run_dir, "stage2")
        say(f"{path}: finished before, with these settings and data")
        return prior

    # Tokens are made once, as the tokenizer is frozen.
    x_train = dataset.x_train.to(device)
    tokens = tokens_of_split(stage1, x_train)  # (n, N)
    labels = dataset.y_train.to(device)  # (n,)
    test_tokens = tokens_of_split(stage1, dataset.x_test.to(device))
    test_labels = dataset.y_test.to(device)

    if dataset.classes and config.class_dropout in (0, 1):
        what = "no class" if config.class_dropout == 0 else "a class"
        warn(f"--class-dropout {config.class_dropout}: samples of {what} are not learnt")
    torch.manual_seed(config.seed)
    codebook = stage1.codebook()  # (K, D)
    prior = Prior(config, codebook, stage1.sizes, len(dataset.classes)).to(device)
    optimizers = make_optimizers(prior, config)
    resume = resume_file(run_dir, "stage2")
    if resume.exists():  # Training compares settings and data; the tokens are of a codebook too
        check_codebook(resume, load_checkpoint(resume), codebook)
    training = Training(
        run_dir,
        "stage2",
        prior,
        optimizers,
        identity=config.settings_of("stage2") | {"sha256": dataset.sha256},
        n=len(tokens),
        batch=config.stage2_batch,
        epochs=config.stage2_epochs,
        steps=config.stage2_steps,
        seed=config.seed,
        extra={"data": dataset.info(), "codebook": codebook.cpu()},
    )
    prior.train()  # dropout
    for rows in training:  # (B,) indices of a batch's series
        t, y = tokens[rows], labels[rows]  # (B, N), (B,)
        if config.token_temperature > 0:  # NOTE(ledger 9): the authors' program draws them anew
            t = stage1.tokens(x_train[rows], config.token_temperature, training.generator)
        masks = [mask_tokens(part, training.generator) for part in t.split(prior.sizes, 1)]
        # A random share of series is shown without its class, so that the prior also learns
        # p(tokens), which unconditional samples and guidance need.
        chance = torch.rand(len(y), generator=training.generator, device=device)
        y = torch.where(chance < config.class_dropout, prior.no_class, y)
        loss = band_losses(prior, t, masks, y, config.loss_on)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = training.cosine(config.stage2_lr)
        prior.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        training.step_done(loss)

        if training.just_ended(config.validate_epochs):
            prior.eval()  # no dropout
            # With a generator of its own: training's draws stay as they are (Fig. 6.11).
            training.log(val_prior_loss=prior_loss(prior, test_tokens, test_labels))
            prior.train()
    training.finish(path)
    return load_prior(run_dir, stage1, config, dataset)[0]


def tokens_of_split(stage1, x):
    """Nearest token ids int64 (n, N) of series x (n, L), on x's device; nothing is decoded."""
    return torch.cat([stage1.tokens(part) for part in x.split(256)])


def load_prior(run_dir, stage1, config=None, dataset=None):
    """A run's Prior over stage1's tokens in eval mode, and its checkpoint's dict."""
    path = Path(run_dir) / "stage2.pt"
    checkpoint, made_with = read_checkpoint(path, "stage2", config, dataset)
    n_classes = len(checkpoint["data"]["classes"])
    prior = Prior(made_with, stage1.codebook(), stage1.sizes, n_classes)
    rename_older_layers(checkpoint)
    check_codebook(path, checkpoint, stage1.codebook())
    return ready(prior, checkpoint, path, made_with.precision), checkpoint


def check_codebook(path, checkpoint, codebook):
    """Refuse a file of stage 2 made on the tokens of another codebook (K, D) than stage 1's."""
    codebook = codebook.cpu()
    if not torch.equal(checkpoint.get("codebook", codebook), codebook):  # older files have none
        raise InputError(f"{path}: made on the tokens of another stage1.pt; remove it")


def rename_older_layers(checkpoint):
    """Two layers had other names in older checkpoints."""
    state = {}
    for name, weight in checkpoint["state"].items():
        name = name.replace("into.", "to_hidden.").replace("back.", "to_code.")
        state[name] = weight
    checkpoint["state"] = state


def load_stage2(run_dir, config=None, dataset=None):
    """A run's models: Prior and NCVQVAE in eval mode, and the stage-2 checkpoint's dict."""
    config = config or read_config(run_dir)  # both stages have to be of these settings
    stage1, _ = load_stage1(run_dir, config, dataset)
    prior, checkpoint = load_prior(run_dir, stage1, config, dataset)
    return prior, stage1, checkpoint


# ---------------------------------------------------------------------------------------------
# Iterative decoding (§3.2.2)
# ---------------------------------------------------------------------------------------------


def guided_logits(prior, tokens, mask, labels, guidance=1.0):
    """Logits l_0 + s (l_c - l_0), (B, N, K): l_c given the class, l_0 without one, s guidance.

    Classifier-free guidance (Ho and Salimans 2022); s = 1 is the class alone.
    """
    no_class = torch.full_like(labels, prior.no_class)
    if guidance == 1 or labels.equal(no_class):
        return prior(tokens, mask, labels)
    both = prior(tokens.repeat(2, 1), mask.repeat(2, 1), torch.cat([labels, no_class]))
    conditional, unconditional = both.chunk(2)
    return unconditional + guidance * (conditional - unconditional)


@torch.no_grad()
def fill_masked(logits_of, tokens, mask, generator=None, steps=10, choice_temperature=4.0):
    """MaskGIT's decoding: fill the masked tokens in `steps` passes, the surest first. §3.2.2.

    logits_of: any model, called with tokens and mask, which returns logits (B, N, K).
    tokens: int64 (B, N). mask: bool (B, N), True where a token is to be filled, M of them in a
    series; the others stay.
    Returns tokens int64 (B, N). Pass t = 0 .. T-1 ends by masking floor(cos(pi (t+1) / (2T)) M) of
    the M again, the least confident, none in the last pass. The text before eq. 3.6 has
    ceil(gamma(t/T) N) (ledger 27).
    """
    n_to_fill = mask.sum(1, keepdim=True)  # (B, 1) M
    for t in range(steps):
        # 1. Draw a token at every position, keep those at masked ones.
        log_p = logits_of(tokens, mask).log_softmax(-1)  # (B, N, K)
        p = log_p.exp().flatten(0, 1)  # (B * N, K)
        drawn = torch.multinomial(p, 1, generator=generator)  # (B * N, 1)
        tokens = torch.where(mask, drawn.view_as(tokens), tokens)
        # 2. Confidence: log p of what was drawn, plus noise that falls to 0.
        # NOTE(ledger 27): the noise is that of the authors' program. Without it the surest places,
        # the same in all series, come first, and samples grow alike.
        noise_scale = choice_temperature * (1 - (t + 1) / steps)
        confidence = log_p.gather(-1, tokens[..., None])[..., 0]  # (B, N)
        confidence = confidence + noise_scale * gumbel(tokens.shape, generator, tokens.device)
        confidence = confidence.masked_fill(~mask, math.inf)  # what is known stays known
        # 3. Mask the least confident again.
        n_masked_again = (math.cos(math.pi / 2 * (t + 1) / steps) * n_to_fill).floor()  # (B, 1)
        rank = confidence.argsort(1).argsort(1)  # (B, N) 0: the least confident
        mask = rank < n_masked_again  # eq. 3.6
    return tokens


@torch.no_grad()
def iterative_decode(
    prior,
    labels,
    generator=None,
    steps=10,
    choice_temperature=4.0,
    guidance=1.0,
    tokens=None,
    mask=None,
):
    """Draw tokens (B, N) for labels (B,): fill_masked on one band after the other. §3.2.2.

    Starts with all masked, or from tokens int64 (B, N) and mask bool (B, N), True where they are to
    be filled; the others stay. ValueError where only one of the two is given.
    """
    if (tokens is None) != (mask is None):
        raise ValueError("iterative_decode: tokens and mask go together")
    if tokens is None:  # nothing is known
        shape = (len(labels), sum(prior.sizes))
        tokens = torch.zeros(shape, dtype=torch.int64, device=labels.device)
        mask = torch.ones_like(tokens, dtype=torch.bool)

    def logits_of(some_tokens, some_mask):
        return guided_logits(prior, some_tokens, some_mask, labels, guidance)

    end = 0
    for size in prior.sizes:
        start, end = end, end + size
        masked = F.pad(mask[:, start:end], (start, 0))  # (B, end) False in the band before
        filled = fill_masked(
            logits_of, tokens[:, :end], masked, generator, steps, choice_temperature
        )
        tokens = torch.cat([filled, tokens[:, end:]], 1)
    return tokens


@torch.no_grad()
def sample(prior, stage1, labels, generator=None, config=None):
    """Draw a series for each of labels (n,) -> float32 (n, L), standardised, on the CPU.

    The label n_classes means no class. The codes of stage 1 are decoded, not the prior's embedding,
    which has moved (ledger 10). config: how to decode; None: by Config's defaults.
    """
    config = config or Config()
    device = next(prior.parameters()).device
    series = []
    for y in labels.to(device).split(256):  # (B,)
        tokens = iterative_decode(
            prior, y, generator, config.decode_steps, config.choice_temperature, config.guidance
        )
        series.append(stage1.series(tokens).cpu())  # (B, L)
    return torch.cat(series)


def class_proportions(y, total):
    """Labels (total,) in the shares of y (n,), to within one series.

    If total >= n each of y's labels is taken once or more, so that no class is left out.
    """
    places = (torch.arange(total) * len(y)) // total  # evenly spaced in the sorted labels
    return y.sort().values[places]


# ---------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------


def save_samples(path, dataset, labels, **series):
    """Write an .npz: series (n, L) as float64 (n, 1, L) in original units; y (n,), labels of X."""
    arrays = {name: dataset.to_original(x)[:, None] for name, x in series.items()}
    if labels is not None:
        classes = np.array(dataset.classes)
        # NumPy makes whole numbers over 64 bits objects, which it would pickle, and rounds large
        # ones that stand beside fractions: such labels are written as text.
        if classes.dtype == object or classes.tolist() != dataset.classes:
            classes = np.array([str(label) for label in dataset.classes])
        arrays["y"] = classes[labels.numpy()]  # (n,)
    write_npz(path, **arrays)


def command_sample(args):
    """Draw series of one class, of all, or of none, from a run's models into an .npz."""
    out = output_path(args.out, "X")
    if not 1 <= args.n <= 10**7:
        raise InputError(f"--n {args.n}: should be from 1 to 10^7")
    config = make_config(args, asdict(read_config(args.run_dir)))
    prior, stage1, checkpoint = load_stage2(args.run_dir)
    dataset = Dataset(**checkpoint["data"])
    if args.label is None:
        labels = torch.full((args.n,), prior.no_class)
    elif args.label == "all":
        full_dataset = load_dataset(config.dataset)  # a checkpoint keeps no labels
        if full_dataset.sha256 != dataset.sha256:
            raise InputError(
                f"{args.run_dir}: the data of {dataset.name} have changed since it was trained; "
                "restore them, or name a single class"
            )
        if not full_dataset.classes:
            raise InputError(f"--class all: {dataset.name} has no labels")
        labels = class_proportions(full_dataset.y_train, args.n)
        absent = [str(c) for k, c in enumerate(dataset.classes) if not (labels == k).any()]
        if absent:
            warn(f"--n {args.n}: too few series, none is of class {', '.join(absent)}")
    else:
        labels = torch.full((args.n,), dataset.label(args.label))
    generator = torch.Generator(next(prior.parameters()).device).manual_seed(config.seed)
    series = sample(prior, stage1, labels, generator, config)
    save_samples(out, dataset, None if args.label is None else labels, X=series)
    print(f"{out}: {args.n} series of length {series.shape[1]}")


def main():
    parser = Parser(description="Train stage 2 (the prior), or sample from it.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a run's prior", allow_abbrev=False)
    draw = commands.add_parser("sample", help="draw series into an .npz", allow_abbrev=False)
    for command in (train, draw):
        command.add_argument("run_dir", help="run folder, which holds the settings")
    draw.add_argument("--n", type=int, default=100, help="series [100]")
    draw.add_argument("--class", dest="label", help="a label of the data, or all; else none")
    draw.add_argument("--out", default="samples.npz", help="file to write [samples.npz]")
    add_flags(draw, first="decode_steps", last="guidance", also=("seed",), of_run=True)
    args = parser.parse_args()
    if args.command == "sample":
        command_sample(args)
    elif read_config(args.run_dir).stages == 1:
        say(f"{args.run_dir}: --stages 1 asks for no prior")
    else:
        with hold(args.run_dir):
            train_stage2(args.run_dir)


if __name__ == "__main__":
    run_command(main)
