"""Chapter 0: what goes in. Settings, series, augmented views, files (thesis §5.1.1, §5.2).

    raw files --load_dataset--> Dataset.x_train (n, L), standardised --augment--> views (B, L)

From top to bottom: every setting of a run and the parser made from it; reading, the toy set,
download; augmentations; what all stages share around a run folder. Nothing here knows a model.

    python -c "import data; print(data.load_dataset('toy').x_train.shape)"       # (1000, 128)

Letters: B batch, L length, n series.
"""
import argparse, contextlib, ctypes, fcntl, hashlib, inspect, io, json, math, os, re, shutil
import socket, subprocess, sys, urllib.request, zipfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch

# name: (train, test, classes, length, Zenodo record). The first four are thesis Table 5.2.
THESIS_SETS = {
    "FordA": (3601, 1320, 2, 500, 11191164), "ElectricDevices": (8926, 7711, 7, 96, 11190880),
    "StarLightCurves": (1000, 8236, 3, 1024, 11198308), "Wafer": (1000, 6164, 2, 152, 11198387),
    "ECG5000": (500, 4500, 5, 140, 11186692), "TwoPatterns": (1000, 4000, 4, 128, 11198356),
    "UWaveGestureLibraryAll": (896, 3582, 8, 945, 11198366), "FordB": (3636, 810, 2, 500, 11191172),
    "ShapesAll": (600, 600, 60, 512, 11198237), "Symbols": (25, 995, 6, 398, 11198322),
    "SonyAIBORobotSurface1": (20, 601, 2, 70, 11198277), "Mallat": (55, 2345, 8, 1024, 11197731),
    "SonyAIBORobotSurface2": (27, 953, 2, 65, 11198290),
}
MAX_ROW = 4_000_000       # characters in a row (about 200,000 numbers): more is no UCR file
MAX_DOWNLOAD = 500 << 20  # bytes


class InputError(ValueError):
    """What the user can mend, in one line: file or flag, value, mend. Commands print it, exit 1."""


# ---- Settings: `ncvqvae.py RUN --flags` writes RUN/config.json, the later stages read it there ----

def number(default, low, high):
    """A field with inclusive bounds. nan lies between no two numbers and is refused like the rest."""
    return field(default=default, metadata=dict(
        wanted=f"{'a whole number' if type(default) is int else 'a number'} from {low} to {high}",
        right=lambda value: type(value) in (int, type(default)) and low <= value <= high))


def choice(default, *others):
    """A field with a few values."""
    return field(default=default, metadata=dict(
        wanted="one of " + ", ".join(map(str, (default, *others))),
        right=lambda value: value in (default, *others)))


@dataclass(frozen=True)
class Config:
    """Every setting of a run; the comment behind a field is its --help. InputError: a wrong value."""
    # The run and stage 1
    dataset: str = "toy"                         # toy, a UCR name, or the path of an own .npz
    method: str = choice("naive", "barlow", "vibcreg")  # §4.1.1, §3.3.1, §3.3.2
    augmentation: str = "none"                   # warp, slice, gauss, ... joined by + (§5.1.1)
    seed: int = number(1, 0, 2**32)              # weights, batches, views; the thesis ran four
    precision: str = choice("float32", "tf32", "bf16")  # of convolutions and products
    stage1_epochs: int = number(1000, 0, 10**6)  # §5.1.1
    stage1_steps: int = number(0, 0, 10**9)      # optimiser steps instead of epochs where not 0
    stage1_batch: int = number(128, 2, 10**6)    # §5.1.1; BatchNorm needs two series
    stage1_lr: float = number(1e-3, 1e-12, 1e3)  # AdamW, cosine to 0 (§5.1.1)
    stage1_weight_decay: float = number(1e-5, 0, 10)  # §5.1.1; the authors' config: 1e-3 (ledger 3)
    n_fft: int = number(8, 4, 4096)              # §5.1.1; hop n_fft/4
    width: int = number(64, 1, 4096)             # D: channels of encoder and decoder, size of a code
    latent_width: int = number(8, 1, 10**6)      # frames of z aimed at; text: 32 (ledger 1)
    residual_kernel: int = choice(1, 3)          # second convolution of a residual block (ledger 2)
    residual_norm: str = choice("encoder", "both", "none")  # BatchNorm in it (ledger 20)
    n_codes: int = number(32, 1, 10**6)          # K, codebook size (§5.1.1)
    ema_decay: float = number(0.9, 0, 0.999999)  # of the codebook's moving averages (§5.1.1)
    ema_initial_count: float = number(1.0, 0, 1e9)  # uses of each code at the start (ledger 4)
    beta: float = number(1.0, 0, 1e9)            # commitment, eq. 4.1
    eta: float = number(1.0, 0, 1e9)             # factor on eta of eq. 4.5: 1/P barlow, 0.01 vibcreg
    zeta: float = number(0.1, 0, 1e9)            # augmented reconstruction, eq. 4.5
    barlow_lambda: float = number(0.005, 0, 1e9) # redundancy reduction, eq. 3.7
    similarity_weight: float = number(25.0, 0, 1e9)  # lambda of eq. 3.15, on a mean (ledger 5)
    variance_weight: float = number(25.0, 0, 1e9)  # mu of eq. 3.15
    covariance_weight: float = number(100.0, 0, 1e9)  # nu of eq. 3.15, no 1/(B-1) in C (ledger 6)
    projector_dim: int = number(4096, 1, 10**6)  # P, all three layers (§5.1.1)
    # Stage 2
    stage2_epochs: int = number(1000, 0, 10**6)  # §5.1.1
    stage2_steps: int = number(0, 0, 10**9)      # optimiser steps instead of epochs where not 0
    stage2_batch: int = number(256, 1, 10**6)    # §5.1.1
    stage2_lr: float = number(1e-3, 1e-12, 1e3)  # AdamW, cosine to 0 (§5.1.1)
    stage2_weight_decay: float = number(1e-5, 0, 10)  # §5.1.1
    prior_hidden: int = number(256, 1, 10**5)    # E, Table 5.1
    prior_layers: int = number(4, 1, 1000)       # Table 5.1
    prior_heads: int = number(2, 1, 1000)        # Table 5.1; 4 in the paper (ledger 17)
    prior_ff_ratio: int = number(1, 1, 1000)     # Table 5.1
    class_dropout: float = number(0.2, 0, 1)     # share of series trained without their class
    embedding: str = choice("codebook", "random")  # start of the token vectors (§4.1.2)
    loss_on: str = choice("masked", "all")       # tokens in the cross-entropy, eq. 3.5 (ledger 7)
    token_temperature: float = number(0.0, 0, 1e9)  # 1: drawn from softmax(-d^2) (ledger 9)
    # Sampling and evaluation
    stages: int = choice(2, 1)                   # 1 stops after stage 1 and its probes
    validate_epochs: int = number(20, 0, 10**6)  # between looks at the test split; 0: never
    decode_steps: int = number(10, 1, 10**5)     # T, §5.1.1
    choice_temperature: float = number(4.0, 0, 1e9)  # Gumbel noise on the confidence, falls to 0
    guidance: float = number(1.0, -1e3, 1e3)     # s in l_0 + s (l_c - l_0); 1: the class alone
    sample_batch: int = number(256, 1, 10**6)    # series decoded at once
    fcn_epochs: int = number(1000, 1, 10**6)     # classifier behind FID and IS (ledger 15)
    cas_epochs: int = number(1000, 1, 10**6)     # classifier on generated series (ledger 16)
    fcn_batch: int = number(256, 2, 10**6)       # both classifiers
    fcn_lr: float = number(1e-3, 1e-12, 1e3)     # both; AdamW, cosine to 0
    fcn_weight_decay: float = number(1e-5, 0, 10)  # both

    def __post_init__(self):
        for f in fields(self):
            if f.metadata and not f.metadata["right"](getattr(self, f.name)):
                raise InputError(f"--{f.name.replace('_', '-')} {getattr(self, f.name)}: should be "
                                 f"{f.metadata['wanted']}")
        given = f"--method {self.method} --augmentation {self.augmentation}: "
        names = set(self.augmentation.split("+"))
        for wrong, message in (
            ((self.method == "naive") != (names == {"none"}), given + "naive takes none, others a view"),
            (not names <= {"none", *AUGMENTATIONS}, given + "should be of " + ", ".join(AUGMENTATIONS)),
            (self.n_fft % 4, f"--n-fft {self.n_fft}: should be a multiple of 4, a hop is n_fft/4"),
            (self.method == "vibcreg" and self.projector_dim % 64,
             f"--projector-dim {self.projector_dim}: should be a multiple of 64, a group of IterNorm"),
            (self.prior_hidden % self.prior_heads,
             f"--prior-heads {self.prior_heads}: should divide --prior-hidden {self.prior_hidden}"),
            (not self.stage1_epochs + self.stage1_steps, "--stage1-epochs 0: nothing to train"),
            (not self.stage2_epochs + self.stage2_steps, "--stage2-epochs 0: nothing to train"),
        ):
            if wrong:
                raise InputError(message)

    def behind(self, result):
        """The fields that a result depends on, as a dict. result: stage1, stage2 or metrics."""
        values = asdict(self)
        names = [name for name in values if name not in ("stages", "validate_epochs")]  # move nothing
        end = {"stage1": names.index("stage2_epochs"), "stage2": names.index("decode_steps")}
        return {name: values[name] for name in names[:end.get(result)]}


PRESETS = {                                      # field values, nothing more; a given flag wins
    "thesis": {},
    # Chosen on held-out train series, with the first edition's model (results/fast.md).
    "fast": dict(stage1_steps=800, stage1_lr=3e-3, stage2_steps=800, fcn_epochs=300, cas_epochs=100),
    "toy": dict(stage1_steps=300, stage1_lr=3e-3, stage1_batch=64, projector_dim=1024,
                stage2_steps=800, stage2_lr=2e-3, stage2_batch=64, prior_hidden=128,
                fcn_epochs=25, cas_epochs=15),
}


class Parser(argparse.ArgumentParser):
    """A parser that refuses a wrong call in one line instead of a page of usage."""

    def error(self, message):
        raise InputError(f"{message}; see --help")


def add_flags(parser, first="dataset", last=None, left_out=()):
    """--preset and a --flag per field from first to last; helps are the comments in Config's source."""
    comments = dict(re.findall(r"^    (\w+): .*?# (.*)$", inspect.getsource(Config), re.M))
    names = [f.name for f in fields(Config)]
    end = names.index(last) + 1 if last else len(names)
    parser.add_argument("--preset", choices=PRESETS, help="start values [toy: toy; else thesis]")
    for f in fields(Config)[names.index(first):end]:
        if f.name not in left_out:
            parser.add_argument("--" + f.name.replace("_", "-"), type=f.type, metavar="VALUE",
                                default=argparse.SUPPRESS,
                                help=f"{comments[f.name]} [{f.default}]".replace("%", "%%"))


def make_config(args, start=None, **fixed):
    """The Config of parsed flags: `start` or the preset, over it the flags, over them `fixed`."""
    given = {f.name: getattr(args, f.name) for f in fields(Config) if hasattr(args, f.name)} | fixed
    preset = "toy" if given.get("dataset", Config.dataset) == "toy" else "thesis"
    start = dict(start or {}) | (PRESETS[args.preset or preset] if args.preset or not start else {})
    for stage in ("stage1", "stage2"):
        if f"{stage}_epochs" in given:           # else the preset's steps would overrule them
            start.pop(f"{stage}_steps", None)
    return Config(**(start | given))


# ---- Reading ----

@dataclass
class Dataset:
    """A dataset, standardised by one scalar mean and std of the train split (paper §4.2.6)."""
    name: str
    length: int                                  # L
    mean: float
    std: float
    classes: list                                # classes[k]: the data's own label of class k
    complete: bool                               # False: counts differ from thesis Table 5.2
    sha256: str                                  # of the raw values and labels
    x_train: torch.Tensor | None = None          # float32 (n, L), standardised
    y_train: torch.Tensor | None = None          # int64 (n,) in 0..K-1, None without labels
    x_test: torch.Tensor | None = None
    y_test: torch.Tensor | None = None

    def info(self):
        """The plain values a checkpoint keeps; Dataset(**info) is the set without its series."""
        return {f.name: getattr(self, f.name) for f in fields(self)[:7]}

    def to_original(self, x):
        """Standardised series (n, L) -> float64 NumPy (n, L) in the data's own units."""
        return x.double().numpy() * self.std + self.mean

    def label(self, word):
        """Index of the class that the data calls `word`. Raises InputError for an unknown one."""
        words, word = [str(c) for c in self.classes], str(parse_label(str(word)))
        if word not in words:
            raise InputError(f"class {word}: {self.name} has {', '.join(words) or 'no labels'}")
        return words.index(word)


def parse_label(text):
    """Labels are numbers in most files ("1", "1.0", "1.0e+00" are one class), words in some."""
    for kind in (int, float):                    # int first: large ones stay apart
        try:
            value = kind("_" if "_" in text else text)     # Python reads "1_0" as 10
        except ValueError:
            continue
        if math.isfinite(value):
            return int(value) if value == int(value) else value
    return text


def read_split(path):
    """Read a UCR split: x float64 (n, L) and a list of n labels.

    .tsv (label first, tabs), .txt (label first, blanks), .ts (header, commas, `:label` last).
    Raises InputError with file and row: not a number, unequal lengths, overlong, no rows, no UTF-8.
    """
    path, rows, labels, row = Path(path), [], [], 0
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:  # -sig: a BOM is no digit
        while line := file.readline(MAX_ROW + 1):
            row += 1
            if len(line) > MAX_ROW or re.search("[\udc80-\udcff]", line):
                raise InputError(f"{path}, row {row}: over {MAX_ROW:,} characters or not UTF-8; a row "
                                 "is one series of numbers")
            line = line.strip()
            if not line or path.suffix == ".ts" and line[0] in "#@":
                continue
            if path.suffix == ".ts":
                *body, label = line.rsplit(":", 1)           # another channel's colon is no number
                cells = "".join(body).split(",")
            else:
                label, *cells = line.split("\t" if path.suffix == ".tsv" else None)
            if strange := [c for c in cells if "_" in c]:    # Python reads 1_0 as 10
                cells = ["x"]
            try:
                values = np.array(cells, dtype=np.float64)
            except ValueError:
                strange += [c for c in cells if isinstance(parse_label(c.strip()), str)]
                raise InputError(f"{path}, row {row}: {strange[0][:40]!r} is not a number; mend or "
                                 "remove the row. One channel, the label as the format has it") from None
            if rows and len(values) != len(rows[0]):
                raise InputError(f"{path}, row {row}: length {len(values)}, before it {len(rows[0])}; "
                                 "cut or resample to one length")
            rows.append(values)
            labels.append(label.strip())
    if not rows:
        raise InputError(f"{path}: no series in it; replace the file")
    return np.stack(rows), labels


def read_arrays(path):
    """The arrays of an .npz by name, never unpickled. Raises InputError for whatever is not one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: np.asarray(file[key]) for key in file.files}
    except Exception as error:                   # damaged files make zipfile, zlib, numpy raise all
        raise InputError(f"{path}: cannot be read as .npz ({reason(error)}); numpy.savez makes one") \
            from None


def as_series(x, where):
    """An array (n, L) or (n, 1, L) of real numbers as float64 (n, L). Raises InputError otherwise."""
    x = x[:, 0] if x.ndim == 3 and x.shape[1] == 1 else x
    if x.ndim != 2 or x.dtype.kind not in "fiu":
        raise InputError(f"{where}: {x.dtype} {x.shape}, expected numbers (n, L) or (n, 1, L); "
                         "this is a univariate model")
    return x.astype(np.float64)


def read_npz(path):
    """Own data X_train, y_train, X_test, y_test: [(x (n, L), labels or None)] of both splits."""
    arrays, splits = read_arrays(path), []
    if not {"X_train", "X_test"} <= set(arrays) or ("y_train" in arrays) != ("y_test" in arrays):
        raise InputError(f"{path}: has {sorted(arrays)}, needs X_train and X_test, and y_train and "
                         "y_test or neither")
    for split in ("train", "test"):
        x, y = as_series(arrays[f"X_{split}"], f"{path}, X_{split}"), arrays.get(f"y_{split}")
        if y is not None and y.shape != x.shape[:1]:
            raise InputError(f"{path}, y_{split}: shape {y.shape}, expected ({len(x)},)")
        splits.append((x, None if y is None else [str(v) for v in
                                                  (np.char.decode(y) if y.dtype.kind == "S" else y).tolist()]))
    return splits


def load_dataset(name, root=None, download=True):
    """`toy`, a UCR set in root/NAME (root: $UCR_DIR or datasets; downloaded), or an own .npz's path.

    Returns a Dataset. Raises InputError naming file and series: NaN, one class, under 2 series, a
    length under 8, a label that the test split alone has, nothing to standardise (§5.2).
    """
    root, path, complete, classes = root or os.environ.get("UCR_DIR") or "datasets", name, True, []
    files = [f"{path}, X_train", f"{path}, X_test"]
    if name == "toy":
        splits = [two_patterns(1000, 128, seed, noise=0.2) for seed in (0, 1)]
        splits = [(x.double().numpy(), [str(v) for v in y.tolist()]) for x, y in splits]
    elif name.endswith(".npz"):
        name, splits = Path(path).stem, read_npz(path)
    elif not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise InputError(f"dataset {name!r}: no UCR name, not toy, no path that ends in .npz")
    else:
        if None in find_splits(name, root) and download:
            download_dataset(name, root)
        if None in (files := find_splits(name, root)):
            raise InputError(f"{name}: not in {root}")
        splits = [read_split(file) for file in files]
    (x_train, y_train), (x_test, y_test) = splits
    if x_train.shape[1] != x_test.shape[1]:
        raise InputError(f"{name}: length {x_train.shape[1]} in {files[0]}, {x_test.shape[1]} in "
                         f"{files[1]}; cut or resample to one length")
    if min(len(x_train), len(x_test)) < 2 or x_train.shape[1] < 8:
        raise InputError(f"{name}: {len(x_train)} training and {len(x_test)} test series of length "
                         f"{x_train.shape[1]}; at least 2 of length 8, an STFT frame, are needed")
    if y_train is not None:
        parsed = [[parse_label(w) for w in y] for y in (y_train, y_test)]
        if any(isinstance(v, str) for v in parsed[0] + parsed[1]):           # a mixture is words
            parsed = [y_train, y_test]
        classes = sorted(set(parsed[0]))
        for words, file in zip(parsed, files):
            for row, word in enumerate(words, 1):
                if word not in classes or str(word).lower() in ("", "nan"):
                    raise InputError(f"{name}: {file}, series {row} has label {word!r}; a label is a "
                                     "number or a word that the train split shows. Mend or remove it")
        if len(classes) < 2:
            raise InputError(f"{name}: {files[0]} has the one class {classes[0]!r}, at least 2 are "
                             "needed (an .npz without y_train and y_test trains without labels)")
        y_train, y_test = (torch.tensor([classes.index(v) for v in y]) for y in parsed)
    with np.errstate(all="ignore"):              # what overflows is caught below
        mean, std = float(x_train.mean()), float(x_train.std())
        scaled = [(x - mean) / std for x in (x_train, x_test)]
        for raw, x, file in zip((x_train, x_test), scaled, files):
            if not (finite := np.isfinite(raw).all(1)).all():
                raise InputError(f"{name}: {file}, series {int(finite.argmin()) + 1} holds NaN or inf; "
                                 "fill the gap or remove it, nothing is filled silently")
            if not 1e-13 * np.abs(x_train).max() < std < math.inf:      # float64 resolves 1e-16
                raise InputError(f"{name}: {files[0]} has mean {mean:g} and standard deviation {std:g}: "
                                 "nothing to standardise; rescale it or remove its offset")
            if not (near := np.abs(x).max(1) < 1e9).all():   # its square would leave float32
                raise InputError(f"{name}: {file}, series {int(near.argmin()) + 1} lies over 1e9 "
                                 "standard deviations from the train split's mean; mend or remove it")
    found = (len(x_train), len(x_test), len(classes), x_train.shape[1])
    what = ("training series", "test series", "classes", "length")
    for word, ours, thesis in zip(what, found, THESIS_SETS.get(name, found)):
        if ours != thesis:
            complete = False
            print(f"WARNING: {name} is not the archive's: {word} {ours} of {thesis} (thesis Table "
                  "5.2). Results are marked complete_data: false.", file=sys.stderr)
    digest = hashlib.sha256()
    for array in (x_train, x_test, y_train, y_test):
        digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    x_train, x_test = (torch.from_numpy(x.astype(np.float32)) for x in scaled)
    return Dataset(name, x_train.shape[1], mean, std, classes, complete, digest.hexdigest(),
                   x_train, y_train, x_test, y_test)


def two_patterns(n, length, seed, noise=1.0):
    """The process of Geurts (2002): noise with two steps, each up (-5, 5) or down (5, -5).

    x float32 (n, length) in original units, y int64 (n,) = 2 (first is up) + (second is up). Steps
    have random place and width and do not overlap. Classes are balanced to within one series.
    """
    rng = np.random.default_rng(seed)
    x = noise * rng.standard_normal((n, length))
    y = rng.permutation(np.arange(n) % 4)
    least = length // 8                          # of a step's width
    for i in range(n):
        # Four cut points split the series into gap, step, gap, step, gap.
        cuts = np.sort(rng.integers(0, length - 2 * least + 1, size=4)) + [0, least, least, 2 * least]
        for begin, end, up in ((*cuts[:2], y[i] // 2), (*cuts[2:], y[i] % 2)):
            half = (begin + end) // 2
            x[i, begin:half] += -5 if up else 5
            x[i, half:end] += 5 if up else -5
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


# ---- Download: both splits are read in a temporary folder before the folder gets its name ----

def find_splits(name, root):
    """Paths of root/NAME/NAME_TRAIN.tsv (or .ts, .txt) and NAME_TEST; None for what is missing."""
    stems = [Path(root) / name / f"{name}_{split}" for split in ("TRAIN", "TEST")]
    return [next((p for s in (".tsv", ".ts", ".txt") if (p := Path(f"{stem}{s}")).is_file()), None)
            for stem in stems]


def _fetch(url):
    """Bytes behind a URL. A 202 without content is no file, nor is half of one."""
    request = urllib.request.Request(url, headers={"User-Agent": "ncvqvae"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        body = reply.read(MAX_DOWNLOAD + 1)
        if reply.status != 200 or not body or reply.length or len(body) > MAX_DOWNLOAD:
            raise InputError(f"answered {reply.status}, {len(body)} bytes, {reply.length} missing")
    return body


def _from_aeon(host, name):
    """{file name: bytes} of both splits out of the flat zip of timeseriesclassification.com."""
    wanted = re.compile(rf"{name}_(TRAIN|TEST)\.(ts|txt)")   # exact flat names: ../x cannot climb out
    with zipfile.ZipFile(io.BytesIO(_fetch(f"{host}/aeon-toolkit/{name}.zip"))) as archive:
        return {m.filename: archive.read(m) for m in archive.infolist()
                if wanted.fullmatch(m.filename) and m.file_size < MAX_DOWNLOAD}


def _from_zenodo(host, name):
    """{file name: bytes} of both splits from the set's Zenodo record."""
    urls = {f"{name}_{split}.ts": f"{host}/records/{THESIS_SETS[name][4]}/files/{name}_{split}.ts"
            for split in ("TRAIN", "TEST")}
    return {file: _fetch(url) for file, url in urls.items()}


def download_dataset(name, root):
    """Download a UCR set into root/NAME from the first host whose files pass `read_split`.

    $UCR_MIRROR replaces the hosts' addresses. Raises InputError with each host's reason and where
    to put the files by hand; leaves nothing behind when it fails.
    """
    reasons, final, mirror = [], Path(root) / name, os.environ.get("UCR_MIRROR")
    staging = Path(root) / f".download-{os.getpid()}"
    hosts = [(_from_aeon, "https://timeseriesclassification.com"), (_from_zenodo, "https://zenodo.org")]
    for get, host in hosts if name in THESIS_SETS else hosts[:1]:
        try:
            print(f"{name}: downloading from {mirror or host}", file=sys.stderr)
            files = get(mirror or host, name)
            (staging / name).mkdir(parents=True, exist_ok=True)
            for file, content in files.items():
                (staging / name / file).write_bytes(content)
            for split in find_splits(name, staging):
                read_split(split or f"{name}_TRAIN or {name}_TEST in the zip")
            final.mkdir(exist_ok=True)           # an incomplete folder is completed
            for file in files:
                os.replace(staging / name / file, final / file)
            return
        except Exception as error:               # hosts, zips and disks fail in many ways
            reasons.append(f"{host}: {reason(error)}")
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    raise InputError(f"{name}: not in {root} and cannot be downloaded ({'; '.join(reasons)}). Get it "
                     "from www.cs.ucr.edu/~eamonn/time_series_data_2018 (password: someone) and put "
                     f"{name}_TRAIN.tsv and {name}_TEST.tsv into {final}/")


# ---- Augmentations (thesis §5.1.1; drafts of the project thesis): x (B, L) -> (B, L) ----
# On x's device, in its dtype, a fresh draw per series.

def _uniform(x, shape, low, high, generator):
    unit = torch.rand(shape, generator=generator, device=x.device, dtype=x.dtype)
    return low + (high - low) * unit


def amplitude_resize(x, generator=None, std=0.2):
    """Multiply each series by 1 + N(0, std²): peaks of a class differ in height. Thesis §5.1.1."""
    return x * (1 + std * torch.randn(x[:, :1].shape, generator=generator, device=x.device, dtype=x.dtype))


def window_warp(x, generator=None, window=0.4, low=0.9, high=2.0):
    """Slow a random window by U[low, high], interpolate back to length L. Thesis §5.1.1.

    Stretching the window [a, a + w] by s gives the warped axis tau(i) = i before it, a + s(i - a)
    inside, i + (s - 1)w behind. Output j reads where tau = j tau(L-1)/(L-1): end points stay.
    """
    B, L = x.shape
    w = max(1, round(window * (L - 1)))                              # in steps between samples
    s = _uniform(x, (B, 1), low, high, generator)                    # (B, 1)
    a = (_uniform(x, (B, 1), 0, 1, generator) * (L - w)).floor()     # (B, 1) in 0 .. L-1-w
    j = torch.arange(L, device=x.device, dtype=x.dtype)              # (L)
    tau = j * ((L - 1 + (s - 1) * w) / (L - 1))                      # (B, L) on the warped axis
    later = torch.where(tau < a + s * w, a + (tau - a) / s, tau - (s - 1) * w)
    i = torch.where(tau < a, tau, later)                             # (B, L) places in x
    left = i.floor().clamp(0, L - 2)                                 # linear between neighbours
    weight = (i - left).clamp(0, 1)
    left = left.long()
    return x.gather(1, left) * (1 - weight) + x.gather(1, left + 1) * weight


def slice_and_shuffle(x, generator=None, pieces=4):
    """Cut each series at pieces - 1 random places and permute the pieces. Thesis §5.1.1.

    Peaks turn up at times the data never shows: that there is one should matter more than where.
    """
    B, L = x.shape
    # Distinct cuts in 1 .. L-1: the places of the pieces - 1 smallest of L - 1 random numbers.
    cuts = 1 + torch.rand(B, L - 1, generator=generator, device=x.device).argsort(1)[:, :pieces - 1]
    place = torch.rand(B, pieces, generator=generator, device=x.device).argsort(1)  # (B, pieces)
    i = torch.arange(L, device=x.device)
    piece = (i >= cuts[:, :, None]).sum(1)                           # (B, L) piece that i lies in
    return x.gather(1, (place.gather(1, piece) * L + i).argsort(1))  # by new place, then by old


def gaussian_noise(x, generator=None, std=0.05):
    """Add N(0, std²) to each point: high frequencies, which VQ-VAEs reconstruct worst. §5.1.1."""
    return x + std * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def flip(x, generator=None):
    """Reverse time with probability 1/2. Drafts (ledger 24)."""
    return torch.where(_uniform(x, (len(x), 1), 0, 1, generator) < 0.5, x.flip(1), x)


def slope(x, generator=None, limit=0.01):
    """Add a line through the origin, U[-limit, limit] per time step. Drafts."""
    time = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
    return x + _uniform(x, (len(x), 1), -limit, limit, generator) * time


def phase_shift(x, generator=None, limit=math.pi / 4):
    """Add U[-limit, limit] to the phase of each bin and frame of an STFT. Drafts (ledger 23)."""
    n_fft = 2 ** math.ceil(math.log2(x.shape[1]))                    # hop n_fft/4, no window
    window = torch.ones(n_fft, device=x.device, dtype=x.dtype)
    u = torch.stft(x, n_fft, window=window, return_complex=True)     # (B, n_fft/2+1, frames)
    turn = torch.polar(torch.ones_like(u.real), _uniform(x, u.shape, -limit, limit, generator))
    return torch.istft(u * turn, n_fft, window=window, length=x.shape[1])


def roundtrip(x, generator=None):
    """What the published views went through at last (ledger 18): the last L mod 8 samples are 0.

    An STFT of n_fft 32 and hop 8 and its inverse are the identity, but not told the length, the
    inverse ends with the last whole hop.
    """
    tail = x.shape[1] % 8
    return torch.nn.functional.pad(x[:, :x.shape[1] - tail], (0, tail))


AUGMENTATIONS = {
    "warp": lambda x, g: window_warp(amplitude_resize(x, g), g),
    "slice": slice_and_shuffle, "gauss": gaussian_noise, "amplitude": amplitude_resize,
    "flip": flip, "slope": slope, "phase": phase_shift, "roundtrip": roundtrip,
    "jitter": lambda x, g: gaussian_noise(x, g, std=0.1),
}


def augment(x, spec, generator=None):
    """The view x' = T(x), x (B, L) -> (B, L); spec joins AUGMENTATIONS by +, applied in order."""
    for name in spec.split("+"):
        if name not in AUGMENTATIONS:
            raise InputError(f"augmentation {name!r}: should be of {', '.join(AUGMENTATIONS)}")
        x = AUGMENTATIONS[name](x, generator)
    return x


# ---- Around a run folder: device, files that are whole or not there, the lock ----

def pick_device(precision="float32"):
    """The device to compute on: $DEVICE, else cuda, else cpu. Sets what float32 means there."""
    # Apple's mps must be asked for (DEVICE=mps): some releases of torch compute wrongly on it.
    name = os.environ.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    # Recent GPUs round convolutions to TF32 unless told not to, products only if told to.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except Exception as error:
        raise InputError(f"DEVICE={name}: {reason(error)}; give cuda, cuda:N, mps or cpu") from None
    return device


def run_command(main):
    """Run a module's main(); what the user can mend becomes one line and exit code 1."""
    # Tell glibc to keep freed blocks: a step's 64 MB gradients would go back to the kernel and be
    # zeroed anew each time. -4 is M_MMAP_MAX, -1 M_TRIM_THRESHOLD; macOS and musl have no mallopt.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(-4, 0)
        mallopt(-1, 2**31 - 1)
    try:
        main()
    except InputError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last checkpoint")
    except BrokenPipeError:                      # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def reason(error):
    """The first line of an exception, its type where it says nothing."""
    return (str(error).splitlines() or [""])[0][:150] or type(error).__name__


def write_atomic(path, write):
    """write(file) under another name beside path, then rename: path is the old file or the new."""
    temporary = Path(path).with_name(Path(path).name + ".tmp")
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:     # RuntimeError: torch's writer on a full disk
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(f"{path}: cannot be written ({reason(error)}); what was there is intact. Mend "
                         "that, then run the same command again") from None


def write_json(path, value):
    """value as JSON into path, whole or not at all."""
    write_atomic(path, lambda file: file.write((json.dumps(value, indent=1) + "\n").encode()))


def read_json(path):
    """A JSON file's object, {} where there is no file."""
    try:
        value = json.loads(Path(path).read_text()) if Path(path).exists() else {}
        if isinstance(value, dict):
            return value
        why = f"holds {value}"
    except (ValueError, OSError) as error:
        why = reason(error)
    raise InputError(f"{path}: no JSON object ({why[:80]}); remove it and run the same command again")


def read_config(run_dir):
    """The Config of a run folder."""
    path = Path(run_dir) / "config.json"
    try:
        return Config(**(read_json(path) or {"dataset": None}))
    except (TypeError, InputError) as error:
        raise InputError(f"{path}: {reason(error)}; run ncvqvae.py on the folder (again)") from None


def load_checkpoint(path):
    """A checkpoint's dict, on the CPU. weights_only: nothing that a file carries is executed."""
    if not Path(path).exists():
        raise InputError(f"{path}: not there; run the stage that makes it")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(checkpoint, dict):
            return checkpoint
        why = f"holds a {type(checkpoint).__name__}"
    except Exception as error:                   # cut, empty, foreign, hostile: all alike
        why = reason(error)
    raise InputError(f"{path}: no checkpoint of this program ({why}); remove it and run again")


def check_same(path, saved, wanted):
    """Refuse a file that was made with other settings or data, naming what differs."""
    saved = saved if isinstance(saved, dict) else {}
    for key in sorted(set(saved) | set(wanted)):
        if saved.get(key) != wanted.get(key):
            raise InputError(f"{path}: made with {key} = {saved.get(key)!r}, this run has "
                             f"{wanted.get(key)!r}; give that value, remove the file, or set another OUT")


@contextlib.contextmanager
def hold(folder, wait=False):
    """Hold a folder for this process. A second process is told who holds it, or waits its turn."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = open(Path(folder) / ".lock", "a+b", buffering=0)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); set another OUT") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode(errors="replace") or "another process"
            raise InputError(f"{folder}: {holder} works on it; wait for it or set another OUT") from None
        except OSError as error:                 # a full disk, or a file system without locks
            print(f"WARNING: {folder}: no lock ({error.strerror}); start no second process on it",
                  file=sys.stderr)
        yield                                    # closing the file, or dying, lets go


def git_commit():
    """The checkout's commit, None outside one."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None


def main():
    """Refuse a wrong value anywhere in a grid: what run.sh asks before anything runs."""
    parser = Parser(prog="run.sh", allow_abbrev=False)
    for position in ("METHODS", "AUGMENTATIONS", "SEEDS"):
        parser.add_argument(position, type=lambda text: text.split(","))
    add_flags(parser, left_out=("dataset", "method", "augmentation", "seed"))
    args = parser.parse_args()
    for method in args.METHODS:
        for augmentation in args.AUGMENTATIONS if method != "naive" else ["none"]:
            for seed in args.SEEDS:
                make_config(args, method=method, augmentation=augmentation, seed=int(seed))


if __name__ == "__main__":
    run_command(main)
