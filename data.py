"""Chapter 0: what goes in. Settings, series, augmented views, a run on disk (thesis §5.1.1, §5.2).

    raw files --load_dataset--> Dataset.x_train (n, L), standardised --augment--> views (B, L)

No model is defined here. Letters: B batch, L length, n series, K classes. "Ledger 4" is row 4 of
the ledger in README.md: where the thesis' text, the authors' program and this code differ. "Drafts"
are the project thesis and notes that came before the thesis.

    python -c "import data; print(data.load_dataset('toy').x_train.shape)"  # 1000 series of 64
"""

import argparse
import contextlib
import csv
import hashlib
import importlib.metadata
import inspect
import io
import itertools
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

# Thesis Table 5.2. name: (train series, test series, classes, length, Zenodo record).
THESIS_SETS = {
    "FordA": (3601, 1320, 2, 500, 11191164),
    "ElectricDevices": (8926, 7711, 7, 96, 11190880),
    "StarLightCurves": (1000, 8236, 3, 1024, 11198308),
    "Wafer": (1000, 6164, 2, 152, 11198387),
    "ECG5000": (500, 4500, 5, 140, 11186692),
    "TwoPatterns": (1000, 4000, 4, 128, 11198356),
    "UWaveGestureLibraryAll": (896, 3582, 8, 945, 11198366),
    "FordB": (3636, 810, 2, 500, 11191172),
    "ShapesAll": (600, 600, 60, 512, 11198237),
    "Symbols": (25, 995, 6, 398, 11198322),
    "SonyAIBORobotSurface1": (20, 601, 2, 70, 11198277),
    "Mallat": (55, 2345, 8, 1024, 11197731),
    "SonyAIBORobotSurface2": (27, 953, 2, 65, 11198290),
}


class InputError(ValueError):
    """What the user can mend, said in one line: commands print it and exit 1."""


@contextlib.contextmanager
def errors_naming(what):
    """Turn any exception of the block into an InputError of one line that names `what`."""
    try:
        yield
    except Exception as error:  # a cut, foreign or hostile file raises many kinds
        if isinstance(error, InputError) and str(error).startswith(str(what)):
            raise  # it says all already
        mend = "mend or remove it"
        if lacks_memory(error):
            mend = "free memory and try again"
        elif isinstance(error, OSError) and error.errno:  # said by the system: a disk, a permission
            mend = "see to that and try again"
        reason = f"{what}: cannot be used ({first_line(error)}); {mend}"
        raise InputError(reason) from None


def lacks_memory(error):
    """Does an exception say that memory is full, the computer's or the GPU's?"""
    of_torch = ("out of memory", "not enough memory", "can't allocate memory")
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(phrase in words for phrase in of_torch)


def first_line(error):
    """The first line of an error's text, or its type where it has no text."""
    lines = str(error).splitlines() or [""]
    return lines[0][:300] or type(error).__name__


def say(text):
    """One line on stderr. A terminal that is gone, or a full disk behind it, stops no run."""
    if sys.stderr is None:  # closed by the shell, 2>&-
        return
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def warn(text):
    """One line on stderr for what misleads but does not stop a run."""
    say(f"WARNING: {text}")


# ---------------------------------------------------------------------------------------------
# Settings. `ncvqvae.py RUN --flags` writes RUN/config.json, which the later stages read.
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """What a field accepts: a number from low to high, both included."""

    types: tuple
    low: float
    high: float

    def accepts(self, value):
        # type(), as isinstance takes True for an int. nan fails both comparisons.
        return type(value) in self.types and self.low <= value <= self.high

    def describe(self):
        kind = "a whole number" if self.types == (int,) else "a number"
        return f"{kind} from {self.low} to {self.high}"


@dataclass(frozen=True)
class OneOf:
    """What a field accepts: one of a few values."""

    values: tuple

    def accepts(self, value):
        return value in self.values and type(value) is type(self.values[0])

    def describe(self):
        return f"one of {', '.join(map(str, self.values))}"


def number(default, low, high=10**6):
    """A Config field that holds a number; a whole one where the default is whole."""
    types = (int,) if type(default) is int else (int, float)
    return field(default=default, metadata={"bounds": Number(types, low, high)})


def choice(*values):
    """A Config field that holds one of a few values; the first is the default."""
    return field(default=values[0], metadata={"bounds": OneOf(values)})


@dataclass(frozen=True)
class Config:
    """Every setting of a run. Raises InputError for a value that cannot be.

    A field's comment is its --help (add_flags reads it). The order counts: a stage depends on all
    fields from the top to its last one (LAST_FIELD), stage 2 on those of stage 1 too.
    """

    # The run and stage 1
    dataset: str = "toy"  # toy, a UCR name, an own folder or .npz
    method: str = choice("naive", "barlow", "vibcreg")  # §4.1.1, §3.3.1, §3.3.2
    augmentation: str = "none"  # warp, slice, gauss, ... joined by + (§5.1.1)
    seed: int = number(1, 0, 2**32)  # of weights, batches, views, draws; the thesis ran four
    views: int = choice(1, 2)  # 2: x_A = T(x), x_B = T'(x), x itself unseen (drafts, ledger 32)
    bands: int = choice(1, 2)  # 2: the STFT's bin 0 has a model of its own (§3.1, ledger 33)
    precision: str = choice("float32", "tf32", "bf16")  # of convolutions and products
    stage1_epochs: int = number(1000, 1)  # §5.1.1
    stage1_steps: int = number(0, 0, 10**9)  # 0: epochs decide
    stage1_batch: int = number(128, 2)  # §5.1.1; BatchNorm needs two series
    stage1_lr: float = number(1e-3, 1e-12, 1e3)  # AdamW, cosine to 0 (§5.1.1)
    stage1_warmup: int = number(0, 0, 10**9)  # steps in which the learning rate rises (ledger 37)
    stage1_weight_decay: float = number(1e-5, 0, 10)  # §5.1.1; program: 1e-3 (ledger 3)
    n_fft: int = number(8, 4, 4096)  # §5.1.1; hop n_fft/4
    width: int = number(64, 1, 4096)  # D: channels, and size of a code
    latent_width: int = number(8, 1)  # frames of z aimed at; text: 32 (ledger 1)
    latent_width_high: int = number(32, 1)  # of the high band
    residual_kernel: int = choice(1, 3)  # second convolution of a residual block (ledger 2)
    residual_norm: str = choice("encoder", "both", "none")  # residual blocks' BatchNorm (ledger 20)
    n_codes: int = number(32, 1)  # codebook size (§5.1.1)
    ema_decay: float = number(0.9, 0, 0.999999)  # of the moving averages (§5.1.1)
    ema_initial_count: float = number(1.0, 0)  # uses of each code at the start (ledger 4)
    leak_epochs: int = number(0, 0)  # 0: never; 100: pass over both splits as published (ledger 12)
    beta: float = number(1.0, 0)  # commitment, eq. 4.1
    eta: float = number(1.0, 0)  # multiplies the thesis' eta: 1/P barlow, 0.01 vibcreg (eq. 4.5)
    zeta: float = number(0.1, 0)  # augmented reconstruction, eq. 4.5
    barlow_lambda: float = number(0.005, 0)  # redundancy reduction, eq. 3.7
    similarity_weight: float = number(25.0, 0)  # lambda of eq. 3.15, on a mean (ledger 5)
    variance_weight: float = number(25.0, 0)  # mu of eq. 3.15
    covariance_weight: float = number(100.0, 0)  # nu of eq. 3.15, no 1/(B-1) in C (ledger 6)
    projector_dim: int = number(4096, 1)  # P, all three layers (§5.1.1)
    # Stage 2
    stage2_epochs: int = number(1000, 1)  # §5.1.1
    stage2_steps: int = number(0, 0, 10**9)  # 0: epochs decide
    stage2_batch: int = number(256, 1)  # §5.1.1
    stage2_lr: float = number(1e-3, 1e-12, 1e3)  # AdamW, cosine to 0 (§5.1.1)
    stage2_weight_decay: float = number(1e-5, 0, 10)  # §5.1.1
    optimizer: str = choice("adamw", "muon")  # of the prior's matrices; §5.1.1: AdamW
    prior_hidden: int = number(256, 1, 10**5)  # E, Table 5.1
    prior_layers: int = number(4, 1, 1000)  # Table 5.1
    prior_heads: int = number(2, 1, 1000)  # Table 5.1; 4 in the paper (ledger 17)
    prior_ff_ratio: int = number(1, 1, 1000)  # Table 5.1
    prior_dropout: float = number(0.0, 0, 0.99)  # in the prior's blocks; TimeVQVAE 1.0.1: 0.3
    class_dropout: float = number(0.2, 0, 1)  # share of series trained without their class
    embedding: str = choice("codebook", "random")  # start of the token vectors (§4.1.2)
    loss_on: str = choice("masked", "all")  # tokens in the cross-entropy, eq. 3.5 (ledger 7)
    token_temperature: float = number(0.0, 0)  # 1: drawn from softmax(-d^2) (ledger 9)
    # Sampling and evaluation
    stages: int = choice(2, 1)  # 1 stops after stage 1 and its probes
    validate_epochs: int = number(20, 0)  # between looks at the test split; 0: never
    decode_steps: int = number(10, 1, 10**5)  # T, §5.1.1
    choice_temperature: float = number(4.0, 0)  # Gumbel noise on the confidence, falls to 0
    guidance: float = number(1.0, -1e3, 1e3)  # s in l_0 + s (l_c - l_0); 1: the class alone
    fcn_epochs: int = number(1000, 1)  # classifier behind FID and IS (ledger 15)
    fcn_steps: int = number(0, 0, 10**9)  # 0: epochs decide
    cas_epochs: int = number(1000, 1)  # classifier on generated series (ledger 16)
    cas_steps: int = number(0, 0, 10**9)  # 0: epochs decide
    steps_per_class: int = number(0, 0)  # where steps are given: at least so many for each class
    fcn_batch: int = number(256, 2)  # of both classifiers
    fcn_lr: float = number(1e-3, 1e-12, 1e3)  # of both classifiers; AdamW, cosine to 0
    fcn_weight_decay: float = number(1e-5, 0, 10)  # of both classifiers

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.generic):  # np.int64(3) of a notebook is 3
                value = value.item()
                object.__setattr__(self, f.name, value)  # the class is frozen
            flag = f"--{f.name.replace('_', '-')} {value}"
            bounds = f.metadata.get("bounds")
            if bounds is None and type(value) is not str:
                raise InputError(f"{flag}: should be a name")
            if bounds is not None and not bounds.accepts(value):
                raise InputError(f"{flag}: should be {bounds.describe()}")
            if type(f.default) is float:  # 0 is written as 0.0, so that both name one classifier
                object.__setattr__(self, f.name, float(value))
        names = set(self.augmentation.split("+"))
        flag = f"--augmentation {self.augmentation}"
        if self.method == "naive" and names != {"none"}:
            raise InputError(f"{flag}: naive has none; none is for naive alone")
        if self.method != "naive" and names == {"none"}:
            raise InputError(f"{flag}: none is for naive alone")
        if names != {"none"} and not names <= set(AUGMENTATIONS):
            raise InputError(f"{flag}: should be names of {list(AUGMENTATIONS)} joined by +")
        if self.method == "naive" and self.views == 2:
            raise InputError("--views 2: naive looks at one series")
        if self.n_fft % 4:
            raise InputError(f"--n-fft {self.n_fft}: should be a multiple of 4, its hops")
        if self.method == "vibcreg" and self.projector_dim % 64:  # IterNorm's groups
            raise InputError(
                f"--projector-dim {self.projector_dim}: should be a multiple of 64 for vibcreg"
            )
        if self.prior_hidden % self.prior_heads:
            raise InputError(f"--prior-heads {self.prior_heads}: does not divide --prior-hidden")

    def settings_of(self, result):
        """The fields that "stage1", "stage2", "fcn" or "metrics" depend on: {name: value}."""
        values = asdict(self)
        for name in ("dataset", "stages", "validate_epochs"):
            del values[name]  # no result depends on them; the data's sha256 stands for its name
        if result == "fcn":
            return {name: values[name] for name in FCN_FIELDS}
        names = list(values)
        last = names.index(LAST_FIELD[result])
        return {name: values[name] for name in names[: last + 1]}


# A result depends on all fields of Config up to and including this one, except those that
# settings_of leaves out; a classifier depends on FCN_FIELDS only.
LAST_FIELD = {
    "stage1": "projector_dim",
    "stage2": "token_temperature",
    "metrics": "fcn_weight_decay",
}
FCN_FIELDS = (
    "seed",
    "precision",
    "fcn_epochs",
    "fcn_steps",
    "fcn_batch",
    "fcn_lr",
    "fcn_weight_decay",
)

# Field values, nothing more; a given flag wins.
PRESETS = {"thesis": {}}
PRESETS["fast"] = {  # chosen on held-out series: results/fast.md
    "stage1_steps": 800,
    "stage1_batch": 64,
    "stage1_lr": 3e-3,
    "stage1_warmup": 100,
    "projector_dim": 1024,
    "stage2_steps": 2000,
    "stage2_batch": 64,
    "stage2_lr": 4e-3,
    "prior_hidden": 128,
    "optimizer": "muon",
    "fcn_batch": 64,
    "fcn_lr": 3e-3,
    "fcn_steps": 600,
    "cas_steps": 600,
    "steps_per_class": 20,
    "validate_epochs": 100,
}
PRESETS["best"] = PRESETS["fast"] | {  # two to four times the tokens, and steps to learn them
    "latent_width": 32,
    "stage1_steps": 3200,
    "stage2_steps": 4000,
    "choice_temperature": 16.0,  # nearly a random order of places
    "guidance": 1.5,
}
PRESETS["toy"] = PRESETS["fast"] | {
    "stage1_steps": 300,
    "stage1_warmup": 0,  # it would be a third of them
    "stage2_steps": 550,
    "fcn_steps": 200,
    "cas_steps": 200,
    "validate_epochs": 10,
}


class Parser(argparse.ArgumentParser):
    """Refuses a wrong call in one line, not with a page of usage."""

    def error(self, message):
        raise InputError(f"{message}; see --help")


def add_flags(parser, first="dataset", last="fcn_weight_decay", also=(), of_run=False):
    """Add --preset, and a --flag per field from first to last with Config's comment as its help.

    The comments are read from the source: a field and its help cannot drift apart. of_run: a run's
    saved settings are the defaults, not Config's.
    """
    known = Config.__dataclass_fields__
    comments = dict(re.findall(r"^    (\w+): .*?# (.*)$", inspect.getsource(Config), re.M))
    start = "the run's settings" if of_run else "toy: toy; else thesis"
    parser.add_argument("--preset", choices=PRESETS, help=f"start values [{start}]")
    names = list(known)
    wanted = names[names.index(first) : names.index(last) + 1]
    for name in [*also, *wanted]:
        bounds = known[name].metadata.get("bounds")
        values = map(str, bounds.values) if isinstance(bounds, OneOf) else ["VALUE"]
        default = "the run's" if of_run else known[name].default
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=known[name].type,
            metavar="|".join(values),
            default=argparse.SUPPRESS,  # so that only given flags count
            help=f"{comments[name]} [{default}]",
        )


def make_config(args, start=None, **fixed):
    """The Config of parsed flags. Later ones win: `start`, the preset, the flags, `fixed`.

    start: a run's saved settings. Without --preset they stay; with it the preset decides all fields
    that any preset names, but for those that the run's models were trained with. Without start
    there is always a preset.
    """
    given = {
        name: value for name, value in vars(args).items() if name in Config.__dataclass_fields__
    }
    given |= fixed
    if "dataset" in given:
        given["dataset"] = resolve_dataset(given["dataset"])
    values = dict(start or {})
    if args.preset or not start:
        toy = given.get("dataset", Config.dataset) == "toy"
        of_any_preset = itertools.chain(*PRESETS.values())  # names of fields
        preset = {name: getattr(Config, name) for name in of_any_preset}  # their defaults
        preset |= PRESETS[args.preset or ("toy" if toy else "thesis")]
        trained = Config(**start).settings_of("stage2") if start else {}
        values |= {name: value for name, value in preset.items() if name not in trained}
    for stage in ("stage1", "stage2", "fcn", "cas"):
        if f"{stage}_epochs" in given:
            values[f"{stage}_steps"] = 0  # given epochs win over a preset's steps
    return Config(**values | given)


# ---------------------------------------------------------------------------------------------
# Series (§5.2)
# ---------------------------------------------------------------------------------------------


@dataclass
class Dataset:
    """A dataset, standardised by one scalar mean and std of the train split (ledger 31)."""

    name: str
    length: int  # L
    mean: float
    std: float
    classes: list  # classes[k]: the data's own label of class k
    complete: bool  # False: counts differ from thesis Table 5.2
    sha256: str  # of the raw values and labels of both splits, and of the classes' names
    x_train: torch.Tensor | None = None  # float32 (n, L), standardised
    y_train: torch.Tensor | None = None  # int64 (n,) in 0..K-1; all 0 where there are no labels
    x_test: torch.Tensor | None = None
    y_test: torch.Tensor | None = None

    def info(self):
        """What a checkpoint keeps: Dataset(**info) is the set without its series."""
        names = ("name", "length", "mean", "std", "classes", "complete", "sha256")
        return {name: getattr(self, name) for name in names}

    def to_original(self, x):
        """Standardised series (..., L) -> float64 NumPy (..., L) in the data's own units."""
        return x.double().numpy() * self.std + self.mean

    def standardise(self, x):
        """Series (..., L) in the data's own units, NumPy -> float32 tensor (..., L)."""
        return torch.from_numpy(((x - self.mean) / self.std).astype(np.float32))

    def check_and_standardise(self, x, where):
        """An array of series in the data's units -> standardised tensor (n, L).

        InputError, which names `where`, for no series, another length, NaN or values far off. Warns
        where the scale is so different that they seem to be of other units.
        """
        x = as_series(x, where)
        if x.shape[1] != self.length:
            raise InputError(f"{where}: length {x.shape[1]}, {self.name} has {self.length}")
        if len(x) == 0:
            raise InputError(f"{where}: 0 series")
        with np.errstate(all="ignore"):  # what overflows is refused here; nan is not near either
            near = np.abs((x - self.mean) / self.std).max(1) < 1e9
        if not near.all():
            raise InputError(
                f"{where}: series {near.argmin() + 1} holds NaN, inf, or a value over 1e9 standard "
                "deviations off; mend or remove it"
            )
        off, spread = abs(x.mean() - self.mean) / self.std, x.std() / self.std
        if off > 3 or not 0.03 < spread < 10:
            warn(
                f"{where}: mean {x.mean():.3g}, standard deviation {x.std():.3g}; {self.name} has "
                f"{self.mean:.3g}, {self.std:.3g}: are these its units?"
            )
        return self.standardise(x)

    def label(self, word):
        """Index of the class that the data calls `word`. InputError for an unknown one."""
        words = [str(c) for c in self.classes]
        word = str(word)
        if word not in words:
            word = str(parse_label(word))  # "1.0" finds class 1
        if word not in words:
            raise InputError(f"class {word}: {self.name} has {', '.join(words) or 'none'}")
        return words.index(word)


def load_dataset(name, root=None):
    """Read `toy`, a UCR set in root/NAME, an own folder or an own .npz -> Dataset. §5.2.

    root: $UCR_DIR, else datasets; what is missing there is downloaded. InputError for too few
    or too short series or one class, and, which names file and row, for NaN or a label of the test
    split alone.
    """
    resolved = resolve_dataset(name)
    files = (f"{resolved}, train", f"{resolved}, test")  # for messages, where there are no files
    if resolved == "toy":
        splits = [toy_split(seed) for seed in (0, 1)]
    elif resolved.endswith(".npz"):
        splits = read_npz(resolved)
    else:
        files = find_files(resolved, root)
        splits = [read_split(file) for file in files]
    name = name_of_dataset(resolved)
    (x_train, words_train), (x_test, words_test) = splits
    if (words_train is None) != (words_test is None):
        raise InputError(f"{name}: one split has labels, the other has none; give both or neither")
    check_shapes(name, x_train, x_test)
    if words_train is None:
        classes = []
        y_train, y_test = (np.zeros(len(x), dtype=np.int64) for x in (x_train, x_test))
    else:
        classes, y_train, y_test = index_labels(name, files, words_train, words_test)
    mean, std = mean_and_std(name, files, x_train, x_test)
    found = (len(x_train), len(x_test), len(classes), x_train.shape[1])
    raw = b"".join(array.tobytes() for array in (x_train, x_test, y_train, y_test))
    raw += repr((x_train.shape, [str(label) for label in classes])).encode()  # where test begins
    dataset = Dataset(
        name=name,
        length=x_train.shape[1],
        mean=mean,
        std=std,
        classes=classes,
        complete=agrees_with_thesis(name, found),
        sha256=hashlib.sha256(raw).hexdigest(),
        y_train=torch.from_numpy(y_train),
        y_test=torch.from_numpy(y_test),
    )
    dataset.x_train = dataset.standardise(x_train)
    dataset.x_test = dataset.standardise(x_test)
    return dataset


def resolve_dataset(name):
    """The one place where the name of a dataset becomes a path: absolute where it is one.

    A link keeps its own name, not that of what it points to.
    """
    name = str(name)  # of a Path too
    if name.endswith(".npz") or "/" in name or os.sep in name or name in (".", ".."):
        return os.path.abspath(os.path.expanduser(name))
    return name


def name_of_dataset(resolved):
    """What a resolved dataset is called, and its folder below OUT: the last part of a path."""
    return Path(resolved).stem if resolved.endswith(".npz") else Path(resolved).name


def toy_split(seed):
    """1000 series of two_patterns with little noise, so that minutes are enough to learn them.

    The classifier behind CAS averages features over time, each of which sees 14 values. It can
    learn the order of two steps only where they lie near one another: length 64, not 128.
    """
    x, y = two_patterns(1000, 64, seed, noise=0.2)
    return x.double().numpy(), [str(label) for label in y.tolist()]


def two_patterns(n, length, seed, noise=1.0):
    """The process of Geurts (2002): noise with two steps, each up (-5, 5) or down (5, -5).

    Returns x float32 (n, length) in original units and y int64 (n,) = 2 (first is up) + (second is
    up), balanced to within one series.
    """
    rng = np.random.default_rng(seed)
    x = noise * rng.standard_normal((n, length))
    y = rng.permutation(np.arange(n) % 4)
    least = length // 8  # of a step's width
    for i in range(n):
        # Four cut points split the series into gap, step, gap, step, gap. Sorted places may be
        # equal; the offsets make each step at least `least` wide and end at most at `length`.
        places = np.sort(rng.integers(0, length - 2 * least + 1, 4))
        cuts = places + [0, least, least, 2 * least]
        for begin, end, up in ((cuts[0], cuts[1], y[i] // 2), (cuts[2], cuts[3], y[i] % 2)):
            half = (begin + end) // 2
            x[i, begin:half] += -5 if up else 5
            x[i, half:end] += 5 if up else -5
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


# ---- What a dataset has to be ----


def check_shapes(name, x_train, x_test):
    """Refuse splits (n, L) of different, too few or too short series."""
    n, length = x_train.shape
    n_test, length_test = x_test.shape
    if length != length_test:
        raise InputError(
            f"{name}: train series of {length} values, test series of {length_test}; all need the "
            "same length"
        )
    if length < 8:
        raise InputError(f"{name}: series of {length} values; a frame of the STFT needs 8")
    if min(n, n_test) < 2:
        raise InputError(f"{name}: {n} train and {n_test} test series; each split needs 2")


def index_labels(name, files, words_train, words_test):
    """Labels as they were read -> the classes, sorted, and y_train, y_test int64 (n,) in 0..K-1.

    Numbers where all of them are numbers ("1" and "1.0" are one class), else words.
    """
    for file, words in zip(files, (words_train, words_test), strict=True):
        for row, word in enumerate(words, 1):
            if word.lower() in ("", "?", "nan", "nat", "none", "null", "<na>", "#n/a"):
                raise InputError(
                    f"{name}: {file}, series {row} has label {word!r}, which stands for a missing "
                    "one; fill it in, or call the class something else"
                )
    labels = [[parse_label(word) for word in words] for words in (words_train, words_test)]
    if any(isinstance(label, str) for label in labels[0] + labels[1]):  # a mixture is words
        labels = [words_train, words_test]
    classes = sorted(set(labels[0]), key=lambda label: (isinstance(label, str), label))
    if len(classes) == len(words_train) > 2:
        warn(
            f"{name}: as many classes as train series, {len(classes)}: is {files[0]}'s first "
            "column an index and not a label?"
        )
    if len(classes) < 2:
        raise InputError(
            f"{name}: {files[0]} has one class, {classes[0]!r}; give two or more, or no labels"
        )
    index = {label: k for k, label in enumerate(classes)}
    for file, split in zip(files, labels, strict=True):
        for row, label in enumerate(split, 1):
            if label not in index:
                shown = classes if len(classes) <= 10 else [*classes[:10], "..."]
                raise InputError(
                    f"{name}: {file}, series {row} has label {label!r}; should be one of the "
                    f"train split's: {shown}"
                )
    y_train, y_test = (np.array([index[v] for v in split], dtype=np.int64) for split in labels)
    return classes, y_train, y_test


def parse_label(text):
    """A number where it is one ("1", "1.0", "1e+00" are one class), else the word."""
    if "_" in text:  # Python reads 1_0 as 10
        return text
    for kind in (int, float):  # int first: large ones stay apart
        with contextlib.suppress(ValueError):
            value = kind(text)
            if isinstance(value, int) or math.isfinite(value):
                return int(value) if value == int(value) else value
    return text  # "inf" and "nan" too


def mean_and_std(name, files, x_train, x_test):
    """Mean and std of the train split (n, L). InputError for what they cannot standardise."""
    for file, x in zip(files, (x_train, x_test), strict=True):
        whole = np.isfinite(x).all(1)
        if not whole.all():
            row = whole.argmin() + 1
            raise InputError(
                f"{name}: {file}, series {row} holds NaN or inf; fill the gap or remove it"
            )
    with np.errstate(all="ignore"):  # what overflows is refused here
        mean, std = float(x_train.mean()), float(x_train.std())
        resolution = 1e-13 * np.abs(x_train).max()  # float64 resolves 1e-16
        if not resolution < std < math.inf:
            why = "rescale it" if std > resolution else "its values are all alike"
            raise InputError(
                f"{name}: {files[0]} has mean {mean:g}, standard deviation {std:g}: nothing to "
                f"standardise; {why}"
            )
        for file, x in zip(files, (x_train, x_test), strict=True):
            near = np.abs((x - mean) / std).max(1) < 1e9
            if not near.all():
                row = near.argmin() + 1
                raise InputError(
                    f"{name}: {file}, series {row} lies over 1e9 standard deviations off; mend or "
                    "remove it"
                )
        if not warn_of_codes_for_missing(name, files, x_train, x_test):
            warn_of_unequal_scales(name, files[0], x_train)
    return mean, std


def warn_of_codes_for_missing(name, files, x_train, x_test):
    """Warn of a value so large that it may stand for a missing one, as -9999 -> was there one?

    It may be there many times, as where short series are filled up, so the others are looked at
    without it.
    """
    median = np.median(x_train)
    for file, x in zip(files, (x_train, x_test), strict=True):
        row, column = np.unravel_index(np.abs(x - median).argmax(), x.shape)
        extreme = x[row, column]
        others = x_train[x_train != extreme]
        off = np.abs(others - np.median(others))
        typical = np.percentile(off, 90) or off.max()  # most may be one constant
        is_usual_code = abs(extreme) in (999, 9999, 99999, 999999)
        bound = (50 if is_usual_code else 500) * typical
        if typical > 0 and abs(extreme - np.median(others)) > bound:
            warn(
                f"{name}: {file}, series {row + 1} has a value of {extreme:g} where nine of ten "
                f"others lie within {typical:g} of the median: a code for missing?"
            )
            return True
    return False


def warn_of_unequal_scales(name, file, x_train):
    """Warn of many series that look constant beside the largest ones."""
    spreads = x_train.std(1)  # (n)
    small = (spreads > 0) & (spreads < spreads.max() / 500)
    if small.mean() > 0.1:
        warn(
            f"{name}: {file}, series {small.argmax() + 1} and {small.sum() - 1} others vary 500 "
            "times less than the largest: one mean and std for all hides them"
        )


def agrees_with_thesis(name, found):
    """Are train, test, classes and length those of Table 5.2? Warns where not."""
    if name not in THESIS_SETS or found == THESIS_SETS[name][:4]:
        return True
    warn(f"{name}: train, test, classes, length are {found}, Table 5.2 has {THESIS_SETS[name][:4]}")
    return False


# ---- Files ----
#
# NAME_TRAIN and NAME_TEST have a series a line, its label in front (in a .ts at the end):
#     .tsv   1<tab>0.12<tab>0.34
#     .txt   1 0.12 0.34
#     .csv   walk,0.12,0.34          no labels: a header t0,t1,... in both
#     (all three: a header in the first line is skipped)
#     .ts    0.12,0.34:walk          the lines up to @data are the header
# Or one NAME.npz: X_train (n, L), X_test (n', L) and perhaps y_train (n,), y_test (n',).


def read_npz(path):
    """Own data: [(x float64 (n, L), n labels or None)] of both splits."""
    names = ("X_train", "y_train", "X_test", "y_test")
    arrays = read_arrays(path, names, needed=("X_train", "X_test"))
    if ("y_train" in arrays) != ("y_test" in arrays):
        raise InputError(f"{path}: has {list(arrays)}, needs y_train and y_test, or neither")
    splits = []
    for split in ("train", "test"):
        x = as_series(arrays[f"X_{split}"], f"{path}, X_{split}")
        words = None
        if f"y_{split}" in arrays:
            words = as_labels(arrays[f"y_{split}"], len(x), f"{path}, y_{split}")
        splits.append((x, words))
    return splits


def as_series(x, where):
    """An array (n, L), (n, 1, L) or (n, L, 1) of real numbers as float64 (n, L)."""
    if x.ndim == 3 and x.shape[1] == 1:
        x = x[:, 0]  # (n, L)
    if x.ndim == 3 and x.shape[2] == 1:
        x = x[:, :, 0]  # (n, L)
    if x.ndim == 3 and x.dtype.kind in "fiu":
        raise InputError(f"{where}: {x.shape}: {x.shape[1]} channels, one channel is read (n, L)")
    if x.ndim != 2 or x.dtype.kind not in "fiu":
        raise InputError(f"{where}: {x.dtype} {x.shape}, should be numbers (n, L), one channel")
    return x.astype(np.float64)


def as_labels(y, n, where):
    """An array (n,) of numbers, words or UTF-8 bytes as a list of n words."""
    if y.shape != (n,):
        raise InputError(f"{where}: {y.shape}, expected ({n},)")
    if y.dtype.kind == "S":
        with errors_naming(where):
            y = np.char.decode(y, "utf-8")
    return [str(label).strip() for label in y.tolist()]


def find_files(name, root=None):
    """The files of both splits of a UCR set, which is downloaded if need be, or of an own folder.

    NAME/NAME_TRAIN.tsv (.ts, .txt, .csv) and NAME_TEST, below root for a UCR set.
    """
    if os.sep in name:  # an own folder
        folder = Path(name)
        if folder.is_file():
            raise InputError(
                f"{folder}: own data are an .npz, or a folder: give the folder NAME that holds "
                "NAME_TRAIN.csv and NAME_TEST.csv"
            )
        files = find_splits(folder.name, folder.parent)
        if None in files:
            raise InputError(
                f"{folder}: no such file, or no folder with {folder.name}_TRAIN.csv (.tsv, .ts, "
                f".txt) and {folder.name}_TEST in it"
            )
        return files
    root = Path(os.path.expanduser(root or os.environ.get("UCR_DIR") or "datasets"))
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise InputError(
            f"dataset {name!r}: should be toy, a UCR name, the path of a folder, or one that ends "
            "in .npz"
        )
    files = find_splits(name, root)
    if None in files:
        for here in (Path(name), Path(f"{name}.npz")):
            if here.exists():
                raise InputError(f"{name}: not in {root}; for what is here write ./{here}")
        there = sorted(path.name for path in (root / name).glob(f"{name}_T*"))
        if there:  # nothing of the user's is replaced, or mixed with what comes from elsewhere
            raise InputError(
                f"{root / name}: has {', '.join(there)}; needs {name}_TRAIN and {name}_TEST as "
                ".tsv, .ts, .txt or .csv; remove the folder, and the set is downloaded"
            )
        download_dataset(name, root)
        files = find_splits(name, root)
    return files


def find_splits(name, root):
    """Paths of root/NAME/NAME_TRAIN.tsv (.ts, .txt, .csv) and NAME_TEST; None where missing.

    Of one suffix if there is one that both have.
    """
    there = []  # the suffixes of each split
    for split in ("TRAIN", "TEST"):
        stem = Path(root) / name / f"{name}_{split}"
        suffixes = (".tsv", ".ts", ".txt", ".csv")
        there.append([s for s in suffixes if Path(f"{stem}{s}").is_file()])
    common = [suffix for suffix in there[0] if suffix in there[1]]
    if common and there[0] != there[1]:
        warn(
            f"{Path(root) / name}: TRAIN is there as {', '.join(there[0])}, TEST as "
            f"{', '.join(there[1])}; {common[0]} is read"
        )
    found = []
    for split, suffixes in zip(("TRAIN", "TEST"), there, strict=True):
        suffix = next(iter(common or suffixes), None)
        found.append(Path(root) / name / f"{name}_{split}{suffix}" if suffix else None)
    return found


def read_split(path):
    """Read one split: x float64 (n, L) and n labels, None where it has none. InputError with row.

    .tsv (label first, tabs), .txt (label first, blanks), .csv (label first, commas; with a header,
    the label is the first column where that is called label, class, y or target, else there is
    none), .ts (header, commas, `:label` last).
    """
    path = Path(path)
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:  # -sig: skip a BOM
        lines = list(enumerate(file, 1))
    labelled = True
    names = None  # of the columns, where a first line has them
    if path.suffix == ".ts":
        lines, labelled = skip_ts_header(path, lines)
    rows, labels = [], []
    for line_number, line in lines:
        line = line.strip(" \r\n")  # a tab in front or behind is an empty cell
        comment = not rows and line.startswith("# ")  # numpy.savetxt writes its header so
        if not line.strip() or comment:
            continue
        where = f"{path}, row {line_number}"
        if re.search("[\0\udc80-\udcff]", line):  # the latter: surrogateescape, of other bytes
            raise InputError(f"{where}: not UTF-8 text; save it as UTF-8")
        if path.suffix == ".ts":
            cells, label = split_ts_line(where, line, labelled)
        else:
            cells = split_cells(where, path.suffix, line)
            if cells == names:
                raise InputError(f"{where}: the header once more; remove it")
            if names is None and not rows and is_header(cells):
                names = cells
                labelled = find_label_column(where, path.suffix, names)
                continue
            if names and len(cells) != len(names):
                raise InputError(
                    f"{where}: {len(cells)} cells under a header of {len(names)}; mend it, or the "
                    "header (R: row.names=FALSE)"
                )
            label = cells.pop(0) if labelled else None
        values = read_values(where, cells)
        if rows and len(values) != len(rows[0]):
            raise InputError(
                f"{where}: length {len(values)}, not as before, {len(rows[0])}; mend or remove it"
            )
        rows.append(values)
        labels.append(label)
    if not rows:
        raise InputError(f"{path}: no series in it; replace the file")
    if is_ramp(rows[0]) and not any(is_ramp(row) for row in rows[1:]):
        warn(f"{path}: the first series rises in even steps, no other does: is it a header?")
    x = np.stack(rows)  # (n, L)
    if not labelled and names and looks_like_labels(names, x):
        warn(
            f"{path}: the first column, {names[0]}, is read as a value; if it is a label, call it "
            "label"
        )
    return x, (labels if labelled else None)


# Cells of a table that hold no number, in lower case.
MISSING = ("", "?", "nan", "na", "n/a", "#n/a", "<na>", "none", "null", "missing", "-", "--", ".")
LABEL_COLUMNS = ("label", "labels", "class", "y", "target")
csv.field_size_limit(2**31 - 1)  # else a long line with another separator ends in a traceback
SEPARATORS = {".tsv": ("tabs", "\t"), ".csv": ("commas", ","), ".txt": ("blanks", None)}


def split_cells(where, suffix, line):
    """A line of a .tsv, .csv or .txt -> its cells, without blanks and quotes around them."""
    name, separator = SEPARATORS[suffix]
    if suffix == ".csv" and ";" in line:
        raise InputError(f"{where}: semicolons; .csv has commas, and points in numbers")
    if separator is None:
        cells = line.split()
    else:  # "a, b" in quotes is one cell
        cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    if len(cells) == 1 or (suffix == ".txt" and cells[0].endswith(",")):
        raise InputError(
            f"{where}: expects {name} between values; .csv has commas, .tsv tabs, .txt blanks; a "
            "title has to go"
        )
    return [cell.strip().strip('"') for cell in cells]


def is_header(cells):
    """Is the first line of a table, split into cells, a header and not a series?

    A word among numbers makes none: it is a value that is wrong. Numbers make one where they count
    the columns, as pandas names them, or stand behind a name for the label, as times do: label,0.0,
    0.5,1.0. Behind target, which may be a class too, they have to rise or to fall; behind y to rise
    in even steps.
    """
    first, rest = parse_label(cells[0]), [parse_label(cell) for cell in cells[1:]]
    no_names = (*MISSING, "inf", "-inf")
    names = [cell for cell in rest if isinstance(cell, str) and cell.lower() not in no_names]
    if len(names) > len(rest) / 2:  # label,t0,t1
        return True
    if names:
        return any(name.lower() in LABEL_COLUMNS for name in names)  # 0,1,2,label
    if not isinstance(first, str):
        return [first, *rest] == list(range(len(cells)))  # 0,1,2,3
    counts = rest in (list(range(len(rest))), list(range(1, len(rest) + 1)))
    if counts and len(rest) > 3:  # activity,0,1,2,3
        return True
    if first.lower() not in LABEL_COLUMNS or any(isinstance(cell, str) for cell in rest):
        return False
    if first.lower() == "y":
        return is_ramp(rest)
    steps = np.diff(rest)
    return first.lower() != "target" or bool((steps > 0).all() or (steps < 0).all())


def find_label_column(where, suffix, header):
    """Does the first column under a header hold the labels? InputError where another one does."""
    names = [name.lower() for name in header]
    if names[0] in LABEL_COLUMNS:
        return True
    if names[0] == "":
        raise InputError(
            f"{where}: its first column has no name: an index? leave it out (index=False)"
        )
    for place, name in enumerate(names, 1):
        if name in LABEL_COLUMNS:
            raise InputError(f"{where}: column {place} is called {name}; put it first")
    if suffix != ".csv":  # the others always have the label first
        if not any(isinstance(parse_label(name), str) for name in header[1:]):
            warn(f"{where}: read as a header, not as a series of class {header[0]}")
        return True
    return False


def looks_like_labels(names, x):
    """Does the first of the columns (n, L) under a header look unlike the others, as labels would?

    It has another kind of name (activity,t0,t1), or it alone holds whole numbers, and several.
    """
    stems = [name.lower().rstrip("0123456789.") for name in names[:2]]
    is_whole = (x == np.round(x)).all(0)  # (L)
    several = x[:, 0].min() < x[:, 0].max()
    return stems[0] != stems[1] or bool(several and is_whole[0] and not is_whole[1:].all())


def is_ramp(values):
    """Do numbers (L,) rise in even steps, as the names of columns do?"""
    steps = np.diff(values)
    return len(steps) > 2 and steps[0] > 0 and np.ptp(steps) < 1e-9 * steps[0]


def skip_ts_header(path, lines):
    """The numbered lines behind @data of a .ts file, and whether they end in a label.

    InputError where the header says what is not read: several channels, a regression target, time
    stamps. All in front of @data is header, comments with # or % too.
    """
    header = {}
    for i, (_, line) in enumerate(lines):
        words = line.strip().lower().split()
        if not words or not words[0].startswith("@"):
            continue
        header[words[0]] = words[1:]
        if words[0] == "@data":
            body = lines[i + 1 :]
            break
    else:
        raise InputError(f"{path}: no @data line; is it a .ts file?")

    def says(key, value):
        return header.get(key, [""])[:1] == [value]

    if "@attribute" in header:
        raise InputError(f"{path}: an .arff file; .ts, .tsv, .txt and .csv are read")
    dimensions = header.get("@dimensions") or ["1"]
    if says("@univariate", "false") or dimensions[0] != "1":
        raise InputError(f"{path}: several channels; one is read")
    if says("@targetlabel", "true"):
        raise InputError(f"{path}: a regression target; classes or no labels are read")
    if says("@timestamps", "true"):
        raise InputError(f"{path}: time stamps; equally spaced values are read")
    return body, not says("@classlabel", "false")


def split_ts_line(where, line, labelled):
    """A series of a .ts file -> its cells, and its label, None where it has none."""
    channels = line.split(":")
    label = channels.pop().strip().strip('"') if labelled else None
    if not channels:
        raise InputError(
            f"{where}: no label after a colon; where there are none the header says @classLabel "
            "false"
        )
    if len(channels) > 1:
        raise InputError(f"{where}: {len(channels)} channels; one is read")
    return channels[0].split(","), label


def read_values(where, cells):
    """The cells of a series -> float64 values (L,)."""
    for column, cell in enumerate(cells, 1):
        word = cell.strip().lower()
        if word in MISSING and word != "nan":  # NaN is a number to NumPy, and refused later
            raise InputError(f"{where}: value {column} is missing; fill the gap or remove the row")
        if "_" in cell:  # to Python 1_0 is 10
            raise InputError(f"{where}: {word} is no number")
    try:
        return np.array(cells, dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{where}: {first_line(error)}; mend or remove it") from None


# ---- Download: what can be read is moved into place ----


def _fetch(url, folder):
    """Put the file behind a URL into a folder, of a zip both splits."""
    request = urllib.request.Request(url, headers={"User-Agent": "ncvqvae"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        body = reply.read()  # raises where bytes are missing
        if reply.status != 200:  # a 202 has no content
            raise InputError(f"answered {reply.status}, {len(body)} bytes")
    if not url.endswith(".zip"):
        (folder / Path(url).name).write_bytes(body)
        return
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        for member in archive.namelist():  # flat names alone: ../x cannot climb out
            if re.fullmatch(rf"{folder.name}_(TRAIN|TEST)\.(ts|txt)", member):
                archive.extract(member, folder)


def download_dataset(name, root):
    """Download a UCR set into root/NAME from the first host that has it whole, or InputError."""
    hosts = {"https://timeseriesclassification.com": [f"aeon-toolkit/{name}.zip"]}
    if name in THESIS_SETS:
        record = f"records/{THESIS_SETS[name][4]}/files/{name}"
        hosts["https://zenodo.org"] = [f"{record}_TRAIN.ts", f"{record}_TEST.ts"]
    reasons = []
    place = Path(root) / name
    Path(root).mkdir(parents=True, exist_ok=True)
    for host, paths in hosts.items():
        say(f"{name}: downloading from {host}")
        with tempfile.TemporaryDirectory(dir=root) as staging:
            try:
                folder = Path(staging) / name
                folder.mkdir()
                for path in paths:
                    _fetch(f"{os.environ.get('UCR_MIRROR') or host}/{path}", folder)
                files = find_splits(name, staging)
                if None in files:
                    raise InputError(f"no {name}_TRAIN or _TEST")
                load_dataset(name, staging)  # raises where it is no whole dataset
                for file in set(folder.iterdir()) - set(files):
                    file.unlink()
                if place.exists() and any(place.iterdir()):  # what else is there stays
                    for file in files:
                        os.replace(file, place / file.name)
                else:  # at once: another process sees both splits or none
                    os.replace(folder, place)
                return
            except Exception as error:  # hosts, zips and disks fail in many ways
                if None not in find_splits(name, root):
                    return  # another process was first
                reasons.append(f"{host}: {first_line(error).replace(staging + os.sep, '')}")
    raise InputError(
        f"{name}: not in {root}, and no mirror has it as this program reads it: series of one "
        f"length without gaps ({'; '.join(reasons)}). Get it from "
        "www.cs.ucr.edu/~eamonn/time_series_data_2018 (password: someone), put "
        f"{name}_TRAIN.tsv and {name}_TEST.tsv into {place}/"
    )


# ---------------------------------------------------------------------------------------------
# Augmentations (§5.1.1; drafts): x (B, L) -> (B, L), on x's device, in its dtype, a fresh draw per
# series.
# ---------------------------------------------------------------------------------------------


def _uniform(x, shape, low, high, generator):
    draws = torch.rand(shape, generator=generator, device=x.device, dtype=x.dtype)
    return low + (high - low) * draws


def _normal(x, shape, generator):
    return torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)


def amplitude_resize(x, generator=None, std=0.2):
    """Multiply each series by 1 + N(0, std^2): peaks differ in height. §5.1.1 (ledger 38)."""
    return x * (1 + std * _normal(x, (len(x), 1), generator))


def window_warp(x, generator=None, window=0.4, low=0.9, high=2.0):
    """Stretch a random window to s ~ U[low, high] times its length, then all to L. §5.1.1.

    The window [a, a + w] becomes s w long, so sample i of x moves to place
        tau(i) = i before the window, a + s (i - a) in it, i + (s - 1) w after it.
    The output's L places are spread evenly over the stretched axis, end points stay. Each reads x
    at the i that moved there, so tau is inverted piece by piece. window: of the length (ledger 31).
    """
    B, L = x.shape
    w = max(1, round(window * (L - 1)))  # in steps between samples
    s = _uniform(x, (B, 1), low, high, generator)  # (B, 1)
    a = (_uniform(x, (B, 1), 0, 1, generator) * (L - w)).floor()  # (B, 1) in 0 .. L-1-w
    j = torch.arange(L, device=x.device, dtype=x.dtype)  # (L)
    place = j * ((L - 1 + (s - 1) * w) / (L - 1))  # (B, L) of output j on the stretched axis
    i_in_window = a + (place - a) / s  # solves tau(i) = place
    i_after = place - (s - 1) * w
    i = torch.where(place < a + s * w, i_in_window, i_after)
    i = torch.where(place < a, place, i)  # (B, L) places in x
    left = i.floor().clamp(0, L - 2).long()  # (B, L) linear between neighbours
    weight = (i - left).clamp(0, 1)
    return x.gather(1, left) * (1 - weight) + x.gather(1, left + 1) * weight


def slice_and_shuffle(x, generator=None, pieces=4):
    """Cut each series at random places and permute the pieces. §5.1.1.

    That there is a peak should matter more than where.
    """
    B, L = x.shape
    # Distinct cuts in 1 .. L-1: the places of the smallest of L - 1 random numbers.
    draws = torch.rand(B, L - 1, generator=generator, device=x.device)
    cuts = 1 + draws.argsort(1)[:, : pieces - 1]  # (B, pieces-1) in any order
    place = torch.rand(B, pieces, generator=generator, device=x.device).argsort(1)  # (B, pieces)
    i = torch.arange(L, device=x.device)  # (L)
    piece = (i >= cuts[:, :, None]).sum(1)  # (B, L) how many cuts lie at or before i
    new_place = place.gather(1, piece)  # (B, L) of the piece that i lies in
    order = (new_place * L + i).argsort(1)  # by the piece's new place, in it by the old order
    return x.gather(1, order)


def gaussian_noise(x, generator=None, std=0.05):
    """Add N(0, std^2): high frequencies, which VQ-VAEs reconstruct worst. §5.1.1 (ledger 38)."""
    return x + std * _normal(x, x.shape, generator)


def flip(x, generator=None):
    """Reverse time with probability 1/2. Drafts (ledger 24)."""
    return torch.where(_uniform(x, (len(x), 1), 0, 1, generator) < 0.5, x.flip(1), x)


def slope(x, generator=None, limit=0.01):
    """Add a line through the origin, U[-limit, limit] per time step. Drafts."""
    time_steps = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)  # (L)
    return x + _uniform(x, (len(x), 1), -limit, limit, generator) * time_steps


def phase_shift(x, generator=None, limit=math.pi / 4):
    """Add U[-limit, limit] to the phase of each bin and frame. Drafts (ledger 23)."""
    n_fft = 2 ** math.ceil(math.log2(x.shape[1]))  # hop n_fft/4, a rectangular window
    window = torch.ones(n_fft, device=x.device, dtype=x.dtype)
    u = torch.stft(x, n_fft, window=window, return_complex=True)  # (B, n_fft/2+1, frames)
    angle = _uniform(x, u.shape, -limit, limit, generator)
    turn = torch.polar(torch.ones_like(u.real), angle)
    return torch.istft(u * turn, n_fft, window=window, length=x.shape[1])


def roundtrip(x, generator=None):
    """Set the last L mod 8 samples to 0, as the published views have them (ledger 18).

    The authors' program sends a view through another STFT, of hop 8 (the model's has 2), and back.
    The inverse, not told the length, ends with the last whole hop, and zeros are put after it.
    Apart from that tail the round trip changes nothing, so only the zeros are made here.
    """
    tail = x.shape[1] % 8
    return torch.nn.functional.pad(x[:, : x.shape[1] - tail], (0, tail))


def warp(x, generator=None):
    """Change the height of peaks, then the pace of a window. §5.1.1."""
    return window_warp(amplitude_resize(x, generator), generator)


def jitter(x, generator=None):
    """Add N(0, 0.1^2). Drafts."""
    return gaussian_noise(x, generator, std=0.1)


AUGMENTATIONS = {
    "warp": warp,
    "slice": slice_and_shuffle,
    "gauss": gaussian_noise,
    "amplitude": amplitude_resize,
    "flip": flip,
    "slope": slope,
    "phase": phase_shift,
    "roundtrip": roundtrip,
    "jitter": jitter,
}


def augment(x, spec, generator=None):
    """The view x' = T(x), (B, L) -> (B, L); spec joins names of AUGMENTATIONS by +, in order."""
    for name in spec.split("+"):  # e.g. warp+gauss
        x = AUGMENTATIONS[name](x, generator)
    return x


# ---------------------------------------------------------------------------------------------
# Commands and devices
# ---------------------------------------------------------------------------------------------


def run_command(command):
    """Call command(); what the user can mend becomes one line and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream that someone put there
            stream.reconfigure(errors="backslashreplace")  # where only ASCII can be shown
    try:
        if not hasattr(torch.optim, "Muon"):
            raise InputError(
                f"torch {torch.__version__} is too old: 2.9 or later is needed; pip install -r "
                "requirements.txt, or use run.sh, which does"
            )
        command()
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a reader that left is caught
    except BrokenPipeError:  # who read our table left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except InputError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except OSError as error:
        sys.exit(f"{error.filename or 'disk'}: cannot be read or written ({error.strerror})")
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        sys.exit(f"{text}; make a batch or a width smaller")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again, and it goes on")


def pick_device(precision="float32"):
    """$DEVICE, else cuda, else cpu; sets what float32 means there. InputError for one not there."""
    # mps has to be asked for: some releases of torch compute wrongly on it.
    name = os.environ.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    # By default torch rounds convolutions on a GPU to TF32, and does not round products.
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    with errors_naming(f"DEVICE={name}"):
        tensor = torch.ones(1, device=name)  # fails where there is no such device
        generator = torch.Generator(tensor.device)  # fails where it draws no random numbers
        device = generator.device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # cuda:1: else some calls go to the first
    return device


def likes_channels_last(tensor):
    """False on mps, where gradients through tensors of that layout are wrong; else it is faster."""
    return tensor.device.type != "mps"


def use_fast_layout(model):
    """Lay a model's convolutions out channels last, which is faster for short rows."""
    if likes_channels_last(next(model.parameters())):
        model.to(memory_format=torch.channels_last)


# ---------------------------------------------------------------------------------------------
# A run on disk: files that are whole or not there, the lock, the log, going on after a kill
#
# OUT/DATASET/METHOD-AUG/seedN has
#     config.json           every setting; the later stages read it
#     stage1.pt, stage2.pt  weights, and an identity: the settings and data that made them
#     *.resume.pt           the last saved step of a training that is not finished
#     log.jsonl             a line a logged step, a line a start
#     metrics.json, samples.npz, figures/
#     .lock                 held by the process that works here
# OUT/DATASET has fcn-HASH.pt, the dataset's classifiers, one for each of their settings
# ---------------------------------------------------------------------------------------------


def write_atomic(path, write):
    """Call write(file) under another name, then rename: path is the old file or the new one."""
    temporary = Path(f"{path}.{os.getpid()}.tmp")  # of this process: another may write path too
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # on the disk before it gets its name
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and error.__context__:
            error = error.__context__  # torch.save hides what stopped it, a full disk or a Ctrl-C
        if not isinstance(error, (OSError, RuntimeError)):
            raise error from None
        raise InputError(f"{path}: cannot be written ({error}); what was there is intact") from None
    finally:  # whatever stopped it; gone already where it has its name
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path, value):
    """Write value as JSON, whole or not at all."""
    text = json.dumps(value, indent=1) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def require_file(path, mend):
    """Refuse a path that is not there, with what to do about it."""
    if not Path(path).exists():
        raise InputError(f"{path}: {mend}")


def read_arrays(path, names, needed):
    """Those arrays of an .npz that have these names: {name: array}. Nothing is unpickled.

    InputError where one of the needed ones is missing.
    """
    require_file(path, "no such file")
    arrays = {}
    with errors_naming(path):
        with open(path, "rb") as file:  # is_zipfile takes a file that may not be read for no zip
            is_zip = zipfile.is_zipfile(file)
        if not is_zip:
            arrays_of_it = ", ".join(f"{name}=array" for name in needed)
            raise InputError(
                f"{path}: no .npz, or a cut one; np.savez(file, {arrays_of_it}) makes one"
            )
        with np.load(path, allow_pickle=False) as file:
            if not set(needed) <= set(file.files):
                raise InputError(f"{path}: has {file.files}, needs {list(needed)}")
            for name in names:
                if name not in file.files:
                    continue
                try:
                    arrays[name] = np.asarray(file[name])
                except ValueError as error:
                    if "Object arrays" not in str(error):
                        raise
                    raise InputError(
                        f"{path}, {name}: an object array; save {name}.astype(str) for words, "
                        "numbers as float"
                    ) from None
    return arrays


def write_npz(path, **arrays):
    """Write an .npz that is marked as ours."""
    write_atomic(path, lambda file: np.savez_compressed(file, made_by="ncvqvae", **arrays))


def output_path(path, key):
    """The Path of --out, an .npz that will hold the array `key`.

    InputError for a place that cannot be written, before hours are spent; for a run's own file; for
    a file that is not ours, or of ours without that array: an input is not written over.
    """
    if not path.endswith(".npz"):
        raise InputError(f"--out {path}: should end in .npz")
    path = Path(os.path.expanduser(path))
    if path.exists():
        if (path.parent / "stage1.pt").exists():
            raise InputError(f"--out {path}: is a file of that run; name another")
        ours = False
        with contextlib.suppress(Exception):  # no .npz at all
            with np.load(path, allow_pickle=False) as file:
                ours = {"made_by", key} <= set(file.files)
        if not ours:
            raise InputError(
                f"--out {path}: is there and is no file of ours with {key}; name another"
            )
    there = next(folder for folder in path.parents if folder.is_dir())
    with errors_naming(f"--out {path}"):
        tempfile.TemporaryFile(dir=there).close()
    return path


def read_json(path):
    """A JSON file's object, a dict."""
    require_file(path, "not there; run the stage that makes it")
    with errors_naming(path):
        value = json.loads(Path(path).read_text())
        if not isinstance(value, dict):
            raise InputError(f"holds a {type(value).__name__}")
    return value


def read_config(run_dir):
    """The Config of a run folder; a field that did not exist when it was made has its default."""
    path = Path(run_dir) / "config.json"
    values = known_fields(path, read_json(path))
    with errors_naming(path):
        return Config(**values)


def keep_config(run_dir, config):
    """Write the config.json of a run whose stage 1 is finished, for the later stages.

    With --stages 1, which asks for none of them, their settings stay.
    """
    path = Path(run_dir) / "config.json"
    if config.stages == 1 and path.exists():
        config = replace(read_config(run_dir), stages=1, dataset=config.dataset)  # may have moved
    write_json(path, asdict(config))


def check_later_stages(run_dir, config, dataset):
    """InputError where a later stage, if one is asked for, is finished with other settings."""
    if config.stages == 2:
        if (Path(run_dir) / "stage2.pt").exists():
            read_checkpoint(Path(run_dir) / "stage2.pt", "stage2", config, dataset)
        finished_metrics(run_dir, config, dataset)


def finished_metrics(run_dir, config, dataset):
    """The dict of a run's metrics.json where it has all that this config asks for, else None.

    InputError where it is of other settings or data. A file made with --stages 2 also serves
    --stages 1; the settings of stage 2 are compared only where both have it.
    """
    path = Path(run_dir) / "metrics.json"
    if not path.exists():
        return None
    metrics = read_json(path)
    with errors_naming(path):
        stages = metrics.get("stages", 0)
        both_have_stage2 = stages == 2 and config.stages == 2
        wanted = config.settings_of("metrics" if both_have_stage2 else "stage1")
        wanted["sha256"] = dataset.sha256
        check_same(path, metrics.get("config") or {}, wanted)
        return metrics if stages >= config.stages else None


GONE_FIELDS = {"texture": 0}  # and the value by which a run is the same without them


def known_fields(path, values):
    """A file's saved settings without those that are gone and meant nothing in it.

    The sha256 of the data may be among them. InputError for others that this version of the program
    does not have.
    """
    values = dict(values)
    for name, without in GONE_FIELDS.items():
        if values.get(name) == without:
            del values[name]
    unknown = sorted(set(values) - {*Config.__dataclass_fields__, "sha256"})
    if unknown:
        raise InputError(
            f"{path}: has a setting {', '.join(unknown)}, which is gone; use the version that "
            "made it, or remove it"
        )
    return values


def check_same(path, saved, wanted):
    """Refuse a file made with other settings or data, naming the first that differs.

    A setting that the file lacks did not exist when it was made: today's default stands for it.
    """
    saved = known_fields(path, saved)
    for name, value in sorted(wanted.items()):
        before = saved.get(name, getattr(Config, name, None))
        if before == value:
            continue
        if name == "sha256":  # of series and labels
            raise InputError(
                f"{path}: made from other data of the same name; rename these, remove it, or set "
                "another OUT"
            )
        raise InputError(
            f"{path}: made with {name} = {before!r}, this run has {value!r}; change that, remove "
            "it, or set another OUT"
        )


def finite(weights):
    """Are a state dict's values finite?"""
    return all(value.isfinite().all() for value in weights.values())


def load_checkpoint(path):
    """A checkpoint's dict. weights_only: nothing that a file carries is executed."""
    require_file(path, "not there; run the stage that makes it")
    with errors_naming(path):
        checkpoint = torch.load(path, "cpu", weights_only=True)
        if not isinstance(checkpoint, dict):
            raise InputError(f"holds a {type(checkpoint).__name__}")
    return checkpoint


def read_checkpoint(path, result, config=None, dataset=None):
    """A finished checkpoint's dict and the Config that made it.

    result: "stage1", "stage2" or "fcn". Where config or dataset is given, the file has to have been
    made with its settings, or from its data: else InputError.
    """
    checkpoint = load_checkpoint(path)
    with errors_naming(path):
        saved = dict(checkpoint["identity"])
        wanted = config.settings_of(result) if config else {}
        if dataset:
            wanted["sha256"] = dataset.sha256
        check_same(path, saved, wanted)
        saved.pop("sha256")
        saved = known_fields(path, saved)
        if not finite(checkpoint["state"]):
            raise InputError("weights not finite")
        return checkpoint, Config(**saved)  # checks every value again


def ready(model, checkpoint, path, precision):
    """A module with a checkpoint's weights, on the device, in eval mode, without gradients."""
    with errors_naming(path):
        model.load_state_dict(checkpoint["state"])
    return model.to(pick_device(precision)).eval().requires_grad_(False)


@contextlib.contextmanager
def hold(folder, lock=".lock", wait=False):
    """Hold a folder for this process. A second process is refused, or waits its turn.

    lock: the file that is locked. Whoever holds a folder by one lock may hold it by another one.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / lock, "a") as file:  # closing it, or dying, lets go
        try:
            if fcntl is None:
                raise OSError("no fcntl")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise InputError(
                    f"{folder}: another process works on it; wait or set another OUT"
                ) from None
            say(f"{folder}: waiting for the process that works on it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # some network file systems have none
            warn(f"{folder}: no lock; start no second process on it")
        yield


def read_log(run_dir):
    """The records of a run's log.jsonl, half lines left out."""
    path = Path(run_dir) / "log.jsonl"
    records = []
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError):  # a crash cut it
                records.append(dict(json.loads(line)))
    return records


def git_commit():
    """The checkout's commit, `-dirty` behind it where files have changed; None outside one."""
    here = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError):  # no git
        return (
            subprocess.run(command, cwd=here, capture_output=True, text=True).stdout.strip() or None
        )


def processor(device):
    """What computes, for the log: the GPU's name, or the CPU's and how many threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.machine()  # like x86_64
    with contextlib.suppress(OSError):  # a system without this file
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        name = found[1] if found else name
    return f"{name}, {torch.get_num_threads()} threads"


def steps_per_epoch(n, batch):
    """Batches of n series; a last one of a single series, which has no variance, is dropped."""
    return math.ceil(n / batch) - (1 if n % batch == 1 else 0)


GO_ON = (
    "The same command goes on from the last saved step; if it stops at the same step again, try a "
    "smaller learning rate"
)


def resume_file(folder, stage):
    """Where the last saved step of a training that is not finished stands."""
    return Path(folder) / f"{stage}.resume.pt"


def remove_resume_file(folder, stage):
    """Remove a finished training's resume file, and what a kill has left half written."""
    for left in (*Path(folder).glob(f"{stage}.*.tmp"), resume_file(folder, stage)):
        left.unlink(missing_ok=True)


class Training:
    """All of a training loop but the mathematics: batches, log, going on after an interruption.

    Iterating gives index batches (B,) until total_steps; after each step the loop calls
    step_done(). An interrupted run, even one ended by kill -9, goes on from its resume file and
    ends bit for bit the same (on a CPU).

    stage: the name of its log lines and files. identity: what has to be the same to go on, settings
    and the data's sha256. n: series. steps: the schedule's, 0 where epochs decide. extra: what its
    files carry beside weights and identity.
    """

    SECONDS = 60  # between two resume files

    def __init__(
        self,
        folder,
        stage,
        model,
        optimizers,
        identity,
        *,
        n,
        batch,
        epochs,
        steps,
        seed,
        extra=None,
    ):
        self.folder = Path(folder)
        self.stage = stage
        self.model = model
        self.optimizers = optimizers
        self.identity = identity
        self.extra = extra or {}
        self.n_series = n
        self.batch = batch
        self.steps_per_epoch = steps_per_epoch(n, batch)
        self.total_steps = steps or epochs * self.steps_per_epoch
        self.log_every = max(1, self.total_steps // 200)  # about 200 logged steps
        self.device = next(model.parameters()).device
        self.generator = torch.Generator(self.device).manual_seed(seed)  # batches and draws
        self.step = 0  # steps done
        self.row_order = torch.zeros(0, dtype=torch.int64)  # of the epoch
        self.last_line = "nothing"
        self.started = time.time()
        self.saved = time.time()
        self.resume_path = resume_file(folder, stage)
        if self.resume_path.exists():
            self._resume()
        self._start_log()

    def __iter__(self):
        while self.step < self.total_steps:
            step_in_epoch = self.step % self.steps_per_epoch
            start = step_in_epoch * self.batch
            if start == 0:  # a new epoch
                self.row_order = torch.randperm(
                    self.n_series, generator=self.generator, device=self.device
                )
            yield self.row_order[start : start + self.batch]
            # Here the loop has done with the step: it asks for the next batch.
            if time.time() - self.saved > self.SECONDS:
                self._save()

    def cosine(self, learning_rate, warmup=0):
        """The learning rate of the coming step: from `learning_rate` by a cosine to 0 (§5.1.1).

        In the first `warmup` steps it rises linearly to that.
        """
        rising = min(1, (self.step + 1) / (warmup + 1))
        return rising * learning_rate * 0.5 * (1 + math.cos(math.pi * self.step / self.total_steps))

    def step_done(self, loss, **terms):
        """Count the step just taken; log it if due."""
        self.step += 1
        if self.is_logged_step:
            self.log(loss=loss.detach(), **terms)

    @property
    def is_logged_step(self):
        """Is the step just taken one that is logged?"""
        return self.step % self.log_every == 0 or self.step in (1, self.total_steps)

    @property
    def is_half_way_or_end(self):
        """Is the step just taken the one half-way, or the last?"""
        return self.step in (self.total_steps // 2, self.total_steps)

    def just_ended(self, epochs):
        """Was the step just taken the last one, or the end of every `epochs`-th epoch?

        True before the first step too. epochs 0: never.
        """
        if epochs == 0:
            return False
        return self.step == self.total_steps or self.step % (epochs * self.steps_per_epoch) == 0

    def log(self, **values):
        """Write floats of the step just taken into log.jsonl, some onto stderr. Refuses NaN."""
        values = {name: float(value) for name, value in values.items()}  # waits for the device
        text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        if not all(map(math.isfinite, values.values())):
            raise InputError(
                f"{self.stage}: not finite at step {self.step}: {text}; before: {self.last_line}. "
                f"{GO_ON}"
            )
        self.last_line = f"step {self.step}: {text}"
        epoch = (self.step - 1) // self.steps_per_epoch + 1
        record = {"stage": self.stage, "step": self.step, "epoch": epoch, **values}
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        if self.step % (10 * self.log_every) == 0 or self.step == self.total_steps:
            minutes = (time.time() - self.started) / 60
            of = minutes * self.total_steps / self.step
            say(f"{self.stage}, {minutes:.1f} of {of:.1f} min, {self.last_line}")

    def finish(self, path, leave_out=None):
        """Write the checkpoint: weights, identity, step, seconds, extra.

        leave_out: the part of the model, if any, that only training needs.
        """
        state = {}
        for name, weight in self.model.state_dict().items():
            if name.split(".")[0] != leave_out:
                state[name] = weight.cpu()
        self._write(path, state, state=state)
        self.remove_resume_file()

    def remove_resume_file(self):
        """Remove the resume file of a training that is finished."""
        remove_resume_file(self.folder, self.stage)

    def _write(self, path, weights, **content):
        """Write content, extra, identity, step and seconds.

        weights: the part of content that is checked; InputError where they are not finite.
        """
        if not finite(weights):
            raise InputError(
                f"{self.stage}: weights not finite at step {self.step}, nothing is written. {GO_ON}"
            )
        content |= self.extra
        content["identity"] = self.identity
        content["step"] = self.step
        content["seconds"] = time.time() - self.started
        write_atomic(path, lambda file: torch.save(content, file))

    def _save(self):
        weights = self.model.state_dict()
        self._write(
            self.resume_path,
            weights,
            model=weights,
            generator=self.generator.get_state(),
            dropout=torch.get_rng_state(),  # the global generator, of which dropout on a CPU draws
            optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
            order=self.row_order,
            device=self.device.type,
        )
        self.saved = time.time()

    def _resume(self):
        state = load_checkpoint(self.resume_path)
        with errors_naming(self.resume_path):
            before, now = state.get("device", self.device.type), self.device.type
            if before != now:  # another generator of random numbers
                raise InputError(
                    f"{self.resume_path}: interrupted on {before}, this is {now}; go on there "
                    f"(DEVICE={before}), or remove it to start anew"
                )
            check_same(self.resume_path, state["identity"], self.identity)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.generator.set_state(state["generator"])
            torch.set_rng_state(state.get("dropout", torch.get_rng_state()))  # older files: none
            self.row_order = state["order"].to(self.device)
            self.step = state["step"]
            self.started -= state["seconds"]  # spent before the interruption

    def _start_log(self):
        # What was logged after the resume file was saved will be logged again: drop it.
        kept = []
        for record in read_log(self.folder):
            if record.get("stage") != self.stage or record.get("step", 0) <= self.step:
                kept.append(record)
        start = {
            "event": "start",
            "stage": self.stage,
            "from_step": self.step,
            "argv": sys.argv,
            "device": str(self.device),
            "processor": processor(self.device),
            "python": sys.version,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scikit-learn": importlib.metadata.version("scikit-learn"),  # whose probes judge
            "commit": git_commit(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }
        kept.append(start | self.identity)
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomic(self.folder / "log.jsonl", lambda file: file.write(lines.encode()))


def main():
    """Refuse a wrong value or an unknown dataset anywhere in run.sh's grid before anything runs."""
    parser = Parser(prog="run.sh", allow_abbrev=False)
    for position in ("methods", "augmentations", "seeds"):
        parser.add_argument(position, type=lambda text: text.split(","))
    parser.add_argument("--datasets", nargs="+", default=["toy"])
    parser.add_argument("--dry-run", action="store_true")  # look no dataset up
    add_flags(parser, "views")
    args, unknown = parser.parse_known_args()
    if unknown:
        raise InputError(
            f"unrecognized arguments: {' '.join(unknown)}; DATASET METHOD AUGMENTATION SEED come "
            "first, flags behind them; see --help"
        )
    grid = itertools.product(args.datasets, args.methods, args.augmentations, args.seeds)
    for dataset, method, augmentation, seed in grid:
        if not re.fullmatch("[0-9]+", seed):
            raise InputError(f"SEED {seed}: should be a whole number")
        if method == "naive":
            augmentation = "none"
        fixed = {"method": method, "augmentation": augmentation, "seed": int(seed)}
        make_config(args, dataset=dataset, **fixed)  # the preset depends on the dataset
    folders = {}  # {folder below OUT: dataset}
    for dataset in args.datasets:
        name = resolve_dataset(dataset)
        folder = name_of_dataset(name)
        if folders.setdefault(folder, name) != name:
            raise InputError(
                f"{folders[folder]} and {name} would share the folder {folder}; run one of them "
                "with another OUT"
            )
        if name == "toy" or args.dry_run:
            continue
        if os.sep in name:
            load_dataset(name)  # own data: every row is checked
        else:
            find_files(name)  # a UCR set is downloaded if need be


if __name__ == "__main__":
    run_command(main)
