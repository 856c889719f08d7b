"""Chapter 0: what goes in. Settings, series, augmented views, files (thesis §5.1.1, §5.2).

    raw files --load_dataset--> Dataset.x_train (n, L), standardised --augment--> views (B, L)

Nothing here knows a model. Letters: B batch, L length, n series.

    python -c "import data; print(data.load_dataset('toy').x_train.shape)"  # (1000, 64)
"""
import argparse, contextlib, fcntl, hashlib, inspect, io, itertools, json, math, os, re
import subprocess, sys, tempfile, urllib.request, zipfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch

# name: (train, test, classes, length, Zenodo record), the first four of thesis Table 5.2.
THESIS_SETS = {
    "FordA": (3601, 1320, 2, 500, 11191164), "ElectricDevices": (8926, 7711, 7, 96, 11190880),
    "StarLightCurves": (1000, 8236, 3, 1024, 11198308), "Wafer": (1000, 6164, 2, 152, 11198387),
    "ECG5000": (500, 4500, 5, 140, 11186692), "TwoPatterns": (1000, 4000, 4, 128, 11198356),
    "UWaveGestureLibraryAll": (896, 3582, 8, 945, 11198366), "FordB": (3636, 810, 2, 500, 11191172),
    "ShapesAll": (600, 600, 60, 512, 11198237), "Symbols": (25, 995, 6, 398, 11198322),
    "SonyAIBORobotSurface1": (20, 601, 2, 70, 11198277), "Mallat": (55, 2345, 8, 1024, 11197731),
    "SonyAIBORobotSurface2": (27, 953, 2, 65, 11198290),
}

class InputError(ValueError):
    """What the user can mend, in one line: commands print it and exit 1."""

def refuse(wrong, message):
    """Raise InputError(message) where something is wrong."""
    if wrong:
        raise InputError(message)

@contextlib.contextmanager
def usable(what):
    """Whatever a cut, foreign or hostile file raises in the block becomes one line."""
    try:
        yield
    except Exception as error:
        text = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        if not text.startswith(f"{what}: "):  # else an InputError that says all already
            text = f"{what}: cannot be used ({text}); mend or remove it"
        raise InputError(text) from None

# ---- Settings: `ncvqvae.py RUN --flags` writes RUN/config.json for the later stages ----
def number(default, low, high=10**6):
    """A field with inclusive bounds; nan lies between no two numbers."""
    kinds = (int,) if type(default) is int else (int, float)  # True is of neither
    return field(default=default, metadata=dict(
        wanted=f"{'a whole' if kinds == (int,) else 'a'} number from {low} to {high}",
        right=lambda value: type(value) in kinds and low <= value <= high))

def choice(*values):
    """A field with a few values; the first is the default."""
    return field(default=values[0], metadata=dict(
        wanted=f"one of {', '.join(map(str, values))}", right=lambda value: value in values))

@dataclass(frozen=True)
class Config:
    """Every setting of a run; a field's comment is its --help. Raises InputError."""
    # The run and stage 1
    dataset: str = "toy"  # toy, a UCR name, or the path of an own .npz
    method: str = choice("naive", "barlow", "vibcreg")  # §4.1.1, §3.3.1, §3.3.2
    augmentation: str = "none"  # warp, slice, gauss, ... joined by + (§5.1.1)
    seed: int = number(1, 0, 2**32)  # weights, batches, views; the thesis ran four
    views: int = choice(1, 2)  # 2: x_A = T(x), x_B = T'(x), x itself unseen (drafts, ledger 32)
    bands: int = choice(1, 2)  # 2: row 0 of u apart from the others, TimeVQVAE (§3.1, ledger 33)
    precision: str = choice("float32", "tf32", "bf16")  # of convolutions and products
    stage1_epochs: int = number(1000, 1)  # §5.1.1
    stage1_steps: int = number(0, 0)  # 0: epochs decide
    stage1_batch: int = number(128, 2)  # §5.1.1; BatchNorm needs two series
    stage1_lr: float = number(1e-3, 1e-12, 1e3)  # AdamW, cosine to 0 (§5.1.1)
    stage1_weight_decay: float = number(1e-5, 0, 10)  # §5.1.1; program: 1e-3 (ledger 3)
    n_fft: int = number(8, 4, 4096)  # §5.1.1; hop n_fft/4
    width: int = number(64, 1, 4096)  # D: channels, and size of a code
    latent_width: int = number(8, 1)  # frames of z aimed at; text: 32 (ledger 1)
    latent_width_high: int = number(32, 1)  # of the high band
    residual_kernel: int = choice(1, 3)  # second convolution of a residual block (ledger 2)
    residual_norm: str = choice("encoder", "both", "none")  # BatchNorm in it (ledger 20)
    n_codes: int = number(32, 1)  # K, codebook size (§5.1.1)
    ema_decay: float = number(0.9, 0, 0.999999)  # of the moving averages (§5.1.1)
    ema_initial_count: float = number(1.0, 0)  # uses of each code at the start (ledger 4)
    beta: float = number(1.0, 0)  # commitment, eq. 4.1
    eta: float = number(1.0, 0)  # factor on eq. 4.5's: 1/P, 0.01
    zeta: float = number(0.1, 0)  # augmented reconstruction, eq. 4.5
    barlow_lambda: float = number(0.005, 0)  # redundancy reduction, eq. 3.7
    similarity_weight: float = number(25.0, 0)  # lambda of eq. 3.15, on a mean (ledger 5)
    variance_weight: float = number(25.0, 0)  # mu of eq. 3.15
    covariance_weight: float = number(100.0, 0)  # nu of eq. 3.15, no 1/(B-1) in C (ledger 6)
    projector_dim: int = number(4096, 1)  # P, all three layers (§5.1.1)
    # Stage 2
    stage2_epochs: int = number(1000, 1)  # §5.1.1
    stage2_steps: int = number(0, 0)  # 0: epochs decide
    stage2_batch: int = number(256, 1)  # §5.1.1
    stage2_lr: float = number(1e-3, 1e-12, 1e3)  # AdamW, cosine to 0 (§5.1.1)
    stage2_weight_decay: float = number(1e-5, 0, 10)  # §5.1.1
    optimizer: str = choice("adamw", "muon")  # of the prior's matrices; §5.1.1: AdamW
    prior_hidden: int = number(256, 1, 10**5)  # E, Table 5.1
    prior_layers: int = number(4, 1, 1000)  # Table 5.1
    prior_heads: int = number(2, 1, 1000)  # Table 5.1; 4 in the paper (ledger 17)
    prior_ff_ratio: int = number(1, 1, 1000)  # Table 5.1
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
    fcn_steps: int = number(0, 0)  # 0: epochs decide
    cas_epochs: int = number(1000, 1)  # classifier on generated series (ledger 16)
    cas_steps: int = number(0, 0)  # 0: epochs decide
    steps_per_class: int = number(0, 0)  # both classifiers take so many at least, if steps decide
    fcn_batch: int = number(256, 2)  # both classifiers
    fcn_lr: float = number(1e-3, 1e-12, 1e3)  # both; AdamW, cosine to 0
    fcn_weight_decay: float = number(1e-5, 0, 10)  # both

    def __post_init__(self):
        for f in fields(self):
            value, right = getattr(self, f.name), f.metadata.get("right", lambda v: type(v) is str)
            refuse(not right(value), f"--{f.name.replace('_', '-')} {value}: should be "
                                     f"{f.metadata.get('wanted', 'a name')}")
        views, wrong = set(self.augmentation.split("+")), f"--augmentation {self.augmentation}: "
        refuse((self.method == "naive") != (views == {"none"}), wrong + "none is for naive alone")
        refuse(views != {"none"} and views - {*AUGMENTATIONS},
               f"{wrong}none of {[*AUGMENTATIONS]} joined by +")
        refuse(self.method == "naive" and self.views == 2, "--views 2: naive looks at one series")
        refuse(self.n_fft % 4, f"--n-fft {self.n_fft}: should be a multiple of 4, its hops")
        refuse(self.method == "vibcreg" and self.projector_dim % 64,  # IterNorm's groups
               f"--projector-dim {self.projector_dim}: should be a multiple of 64 for vibcreg")
        refuse(self.prior_hidden % self.prior_heads,
               f"--prior-heads {self.prior_heads}: does not divide --prior-hidden")

    def behind(self, result):
        """The fields that "stage1", "stage2", "fcn" or "metrics" depend on."""
        not_behind = "dataset", "stages", "validate_epochs"  # sha256 stands for the dataset
        kept = {k: v for k, v in asdict(self).items() if k not in not_behind}
        if result == "fcn":
            return {k: v for k, v in kept.items() if re.match("fcn_|precision|seed", k)}
        end = {"stage1": "stage2_epochs", "stage2": "decode_steps"}.get(result)
        return dict(itertools.takewhile(lambda item: item[0] != end, kept.items()))

PRESETS = {  # field values, nothing more; a given flag wins
    "thesis": {},
    # Chosen on held-out series: results/fast.md.
    "fast": dict(stage1_steps=800, stage1_batch=64, stage1_lr=3e-3, projector_dim=1024,
                 stage2_steps=2000, stage2_batch=64, stage2_lr=4e-3, prior_hidden=128,
                 optimizer="muon", fcn_batch=64, fcn_lr=3e-3, fcn_steps=600, cas_steps=600,
                 steps_per_class=20, validate_epochs=100)}
PRESETS["best"] = PRESETS["fast"] | dict(stage2_steps=4000, decode_steps=20, guidance=2.0)
PRESETS["toy"] = PRESETS["fast"] | dict(stage1_steps=300, stage2_steps=700, validate_epochs=5)

class Parser(argparse.ArgumentParser):
    """Refuses a wrong call in one line, not a page of usage."""
    def error(self, message):
        raise InputError(f"{message}; see --help")

def add_flags(parser, first="dataset", last="fcn_weight_decay", also=()):
    """--preset, and a --flag per field from first to last with Config's comment as its help."""
    known = Config.__dataclass_fields__
    comments = dict(re.findall(r"^    (\w+): .*?# (.*)$", inspect.getsource(Config), re.M))
    parser.add_argument("--preset", choices=PRESETS, help="start values [toy: toy; else thesis]")
    names = [*known]
    for name in [*also, *names[names.index(first):names.index(last) + 1]]:
        parser.add_argument("--" + name.replace("_", "-"), type=known[name].type, metavar="VALUE",
                            default=argparse.SUPPRESS,  # so that only given flags count
                            help=f"{comments[name]} [{known[name].default}]")

def make_config(args, start=None, **fixed):
    """The Config of flags: over `start` or the preset the flags, over them `fixed`."""
    flags = {k: v for k, v in vars(args).items() if k in Config.__dataclass_fields__} | fixed
    preset = "toy" if flags.get("dataset", Config.dataset) == "toy" else "thesis"
    start = start if start and not args.preset else (start or {}) | PRESETS[args.preset or preset]
    # Given epochs win over a preset's steps.
    steps = {f"{s}_steps": 0 for s in ("stage1", "stage2", "fcn", "cas") if f"{s}_epochs" in flags}
    return Config(**(start | steps | flags))

# ---- Reading ----
@dataclass
class Dataset:
    """A dataset, standardised by one scalar mean and std of the train split (paper §4.2.6)."""
    name: str
    length: int  # L
    mean: float
    std: float
    classes: list  # classes[k]: the data's own label of class k
    complete: bool  # False: counts differ from thesis Table 5.2
    sha256: str  # of the raw values and labels
    x_train: torch.Tensor | None = None  # float32 (n, L), standardised
    y_train: torch.Tensor | None = None  # int64 (n,) in 0..K-1; all 0 where K is 0, no labels
    x_test: torch.Tensor | None = None
    y_test: torch.Tensor | None = None

    def info(self):
        """What a checkpoint keeps; Dataset(**info) is the set without its series."""
        return {f.name: getattr(self, f.name) for f in fields(self)[:7]}

    def to_original(self, x):
        """Standardised series (..., L) -> float64 NumPy (..., L) in the data's own units."""
        return x.double().numpy() * self.std + self.mean

    def label(self, word):
        """Index of the class that the data calls `word`. InputError for an unknown one."""
        words, word = [str(c) for c in self.classes], str(parse_label(str(word)))
        refuse(word not in words, f"class {word}: {self.name} has {', '.join(words) or 'none'}")
        return words.index(word)

def parse_label(text):
    """A number where it is one ("1", "1.0", "1e+00" are one class), else the word."""
    for kind in (int, float):  # int first: large ones stay apart
        with contextlib.suppress(ValueError):
            value = kind("_" if "_" in text else text)  # Python reads 1_0 as 10
            if math.isfinite(value):
                return int(value) if value == int(value) else value
    return text  # "inf" and "nan" too

def read_split(path):
    """Read a UCR split: x float64 (n, L) and a list of n labels. InputError with file and row.

    .tsv (label first, tabs), .txt (label first, blanks), .ts (header, commas, `:label` last).
    """
    path, rows, labels = Path(path), [], []
    separator = {".ts": ",", ".tsv": "\t"}.get(path.suffix)  # None: blanks
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:  # -sig: skip a BOM
        for row, line in enumerate(file, 1):
            if not line.strip() or path.suffix == ".ts" and line[0] in "#@":
                continue
            with usable(f"{path}, row {row}"):
                refuse(re.search("[\udc80-\udcff]", line), "not UTF-8")
                if path.suffix == ".ts":
                    body, _, label = line.rpartition(":")  # another channel's colon is no number
                else:
                    label, body = [*line.strip().split(separator, 1), ""][:2]
                values = np.array(body.split(separator), dtype=np.float64)
                refuse("_" in body, "1_0 is no number")  # to Python it is 10
                refuse(rows and len(values) != len(rows[0]), f"length {len(values)}, not as before")
            rows.append(values)
            labels.append(label.strip())
    refuse(not rows, f"{path}: no series in it; replace the file")
    return np.stack(rows), labels

def as_series(x, where):
    """An array (n, L) or (n, 1, L) of real numbers as float64 (n, L)."""
    x = x[:, 0] if x.ndim == 3 and x.shape[1] == 1 else x  # (n, L)
    refuse(x.ndim != 2 or x.dtype.kind not in "fiu",
           f"{where}: {x.dtype} {x.shape}, should be numbers (n, L), one channel")
    return x.astype(np.float64)

def read_npz(path):
    """Own data: [(x (n, L), labels or None)] of both splits."""
    arrays, splits = read_arrays(path), []
    labelled = "y_train" in arrays or "y_test" in arrays
    needed = ["X_train", "X_test"] + ["y_train", "y_test"] * labelled
    refuse(not set(needed) <= set(arrays), f"{path}: has {[*arrays]}, needs {needed}")
    for split in ("train", "test"):
        x, y = as_series(arrays[f"X_{split}"], f"{path}, X_{split}"), arrays.get(f"y_{split}")
        if y is not None:
            refuse(y.shape != x.shape[:1], f"{path}, y_{split}: {y.shape}, expected ({len(x)},)")
            y = [str(v) for v in (np.char.decode(y) if y.dtype.kind == "S" else y).tolist()]
        splits.append((x, y))
    return splits

def load_dataset(name, root=None):
    """`toy`, a UCR set in root/NAME (root: $UCR_DIR or datasets), or an own .npz's path -> Dataset.

    InputError: NaN, one class, too few or short, a label of the test split alone. §5.2.
    """
    root = root or os.environ.get("UCR_DIR") or "datasets"
    files = f"{name}, train", f"{name}, test"
    if name == "toy":  # less noise than Geurts' 1: learnt in minutes; short: an FCN sees both steps
        splits = [two_patterns(1000, 64, seed, noise=0.2) for seed in (0, 1)]
        splits = [(x.double().numpy(), [str(v) for v in y.tolist()]) for x, y in splits]
    elif name.endswith(".npz"):
        splits, name = read_npz(name), Path(name).stem
    else:
        refuse(not re.fullmatch(r"[A-Za-z0-9_-]+", name),
               f"dataset {name!r}: should be toy, a UCR name, or a path that ends in .npz")
        if None in find_splits(name, root):
            download_dataset(name, root)
        files = find_splits(name, root)
        splits = [read_split(file) for file in files]
    (x_train, y_train), (x_test, y_test) = splits
    (n, L), (m, L_test) = x_train.shape, x_test.shape
    refuse(L != L_test or L < 8 or min(n, m) < 2,  # 8: a frame of the STFT
           f"{name}: {n} train series of {L}, {m} test series of {L_test} values; need 2 of 8 each")
    classes = []
    if y_train is not None:
        parsed = [[parse_label(w) for w in y] for y in (y_train, y_test)]
        if any(isinstance(v, str) and v != "nan" for v in parsed[0] + parsed[1]):
            parsed = [y_train, y_test]  # a mixture of numbers and words is words
        index = {c: k for k, c in enumerate(sorted(set(parsed[0])))}  # label -> 0..K-1
        classes = list(index)
        for words, file in zip(parsed, files):
            for row, word in enumerate(words, 1):
                refuse(word not in index or len(index) < 2 or str(word).lower() in ("", "nan"),
                       f"{name}: {file}, series {row} has label {word!r}; should be one of at "
                       f"least 2 of the train split: {classes}")
        y_train, y_test = (torch.tensor([index[v] for v in y]) for y in parsed)
    else:
        y_train, y_test = torch.zeros(n, dtype=torch.int64), torch.zeros(m, dtype=torch.int64)
    with np.errstate(all="ignore"):  # what overflows is refused here
        mean, std = float(x_train.mean()), float(x_train.std())
        scaled = [(x - mean) / std for x in (x_train, x_test)]
        for raw, x, file in zip((x_train, x_test), scaled, files):
            finite, near = np.isfinite(raw).all(1), np.abs(x).max(1) < 1e9
            refuse(not finite.all(), f"{name}: {file}, series {finite.argmin() + 1} holds NaN or "
                                     "inf; fill the gap or remove it")
            refuse(not 1e-13 * np.abs(x_train).max() < std < math.inf,  # float64 resolves 1e-16
                   f"{name}: {files[0]} has mean {mean:g}, standard deviation {std:g}: nothing to "
                   "standardise; rescale it")
            refuse(not near.all(), f"{name}: {file}, series {near.argmin() + 1} lies over 1e9 "
                                   "standard deviations off; mend or remove it")
    found = (n, m, len(classes), L)
    if not (complete := found == THESIS_SETS.get(name, found)[:4]):
        print(f"WARNING: {name}: train, test, classes, length are {found}, Table 5.2 has "
              f"{THESIS_SETS[name][:4]}", file=sys.stderr)
    raw = [np.asarray(a).tobytes() for a in (x_train, x_test, y_train, y_test)]
    x_train, x_test = (torch.from_numpy(x.astype(np.float32)) for x in scaled)  # (n, L)
    return Dataset(name, L, mean, std, classes, complete, hashlib.sha256(b"".join(raw)).hexdigest(),
                   x_train, y_train, x_test, y_test)

def two_patterns(n, length, seed, noise=1.0):
    """The process of Geurts (2002): noise with two steps, each up (-5, 5) or down (5, -5).

    x float32 (n, length) in original units, y int64 (n,) = 2 (first is up) + (second is up),
    balanced to within one series.
    """
    rng = np.random.default_rng(seed)
    x = noise * rng.standard_normal((n, length))
    y = rng.permutation(np.arange(n) % 4)
    least = length // 8  # of a step's width
    for i in range(n):
        # Four cut points split the series into gap, step, gap, step, gap.
        cuts = np.sort(rng.integers(0, length - 2 * least + 1, 4)) + [0, least, least, 2 * least]
        for begin, end, up in ((*cuts[:2], y[i] // 2), (*cuts[2:], y[i] % 2)):
            half = (begin + end) // 2
            x[i, begin:half] += -5 if up else 5
            x[i, half:end] += 5 if up else -5
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)

# ---- Download: what can be read gets its place ----
def find_splits(name, root):
    """Paths of root/NAME/NAME_TRAIN.tsv (.ts, .txt) and NAME_TEST; None for what is missing."""
    stems = [Path(root) / name / f"{name}_{split}" for split in ("TRAIN", "TEST")]
    return [next((p for s in (".tsv", ".ts", ".txt") if (p := Path(f"{stem}{s}")).is_file()), None)
            for stem in stems]

def _fetch(url, folder):
    """Put the file behind a URL into a folder, of a zip both splits."""
    request = urllib.request.Request(url, headers={"User-Agent": "ncvqvae"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        body = reply.read()
        refuse(reply.status != 200 or reply.length,  # a 202 without content, half a file
               f"answered {reply.status}, {len(body)} bytes, {reply.length} missing")
    if not url.endswith(".zip"):
        return (folder / Path(url).name).write_bytes(body)
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        for member in archive.namelist():  # flat names alone: ../x cannot climb out
            if re.fullmatch(rf"{folder.name}_(TRAIN|TEST)\.(ts|txt)", member):
                archive.extract(member, folder)

def download_dataset(name, root):
    """Download a UCR set into root/NAME from the first host that has it whole."""
    hosts = {"https://timeseriesclassification.com": [f"aeon-toolkit/{name}.zip"]}
    if name in THESIS_SETS:
        record = f"records/{THESIS_SETS[name][4]}/files/{name}"
        hosts["https://zenodo.org"] = [f"{record}_TRAIN.ts", f"{record}_TEST.ts"]
    reasons, final = [], Path(root) / name
    Path(root).mkdir(parents=True, exist_ok=True)
    for host, paths in hosts.items():
        print(f"{name}: downloading from {host}", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=root) as staging:
            try:
                (folder := Path(staging) / name).mkdir()
                for path in paths:
                    _fetch(f"{os.environ.get('UCR_MIRROR') or host}/{path}", folder)
                files = find_splits(name, staging)
                refuse(None in files, f"no {name}_TRAIN or _TEST")
                for file in files:
                    read_split(file)
                final.mkdir(exist_ok=True)
                return [os.replace(file, final / file.name) for file in files]
            except Exception as error:  # hosts, zips and disks fail in many ways
                reasons.append(f"{host}: {error or type(error).__name__}")
    raise InputError(f"{name}: not in {root} and no mirror has it ({'; '.join(reasons)}). Get it "
                     "from www.cs.ucr.edu/~eamonn/time_series_data_2018 (password: someone), put "
                     f"{name}_TRAIN.tsv and {name}_TEST.tsv into {final}/")

# ---- Augmentations (§5.1.1; drafts of the project thesis): x (B, L) -> (B, L) ----
# On x's device, in its dtype, a fresh draw per series.
def _uniform(x, shape, low, high, g):
    return low + (high - low) * torch.rand(shape, generator=g, device=x.device, dtype=x.dtype)

def _normal(x, shape, g):
    return torch.randn(shape, generator=g, device=x.device, dtype=x.dtype)

def amplitude_resize(x, generator=None, std=0.2):
    """Each series times 1 + N(0, std^2): peaks differ in height. §5.1.1."""
    return x * (1 + std * _normal(x, (len(x), 1), generator))

def window_warp(x, generator=None, window=0.4, low=0.9, high=2.0):
    """Slow a random window by U[low, high], interpolate back to length L. §5.1.1.

    Stretching [a, a + w] by s: tau(i) = i before it, a + s(i - a) inside, i + (s - 1)w behind.
    Output j reads where tau = j tau(L-1)/(L-1): end points stay.
    """
    B, L = x.shape
    w = max(1, round(window * (L - 1)))  # in steps between samples
    s = _uniform(x, (B, 1), low, high, generator)  # (B, 1)
    a = (_uniform(x, (B, 1), 0, 1, generator) * (L - w)).floor()  # (B, 1) in 0 .. L-1-w
    j = torch.arange(L, device=x.device, dtype=x.dtype)  # (L)
    tau = j * ((L - 1 + (s - 1) * w) / (L - 1))  # (B, L) on the warped axis
    later = torch.where(tau < a + s * w, a + (tau - a) / s, tau - (s - 1) * w)
    i = torch.where(tau < a, tau, later)  # (B, L) places in x
    left = i.floor().clamp(0, L - 2).long()  # (B, L) linear between neighbours
    weight = (i - left).clamp(0, 1)
    return x.gather(1, left) * (1 - weight) + x.gather(1, left + 1) * weight

def slice_and_shuffle(x, generator=None, pieces=4):
    """Cut each series at random places and permute the pieces. §5.1.1.

    That there is a peak should matter more than where.
    """
    B, L = x.shape
    # Distinct cuts in 1 .. L-1: the places of the smallest of L - 1 random numbers.
    cuts = 1 + torch.rand(B, L - 1, generator=generator, device=x.device).argsort(1)[:, :pieces - 1]
    place = torch.rand(B, pieces, generator=generator, device=x.device).argsort(1)  # (B, pieces)
    i = torch.arange(L, device=x.device)  # (L)
    piece = (i >= cuts[:, :, None]).sum(1)  # (B, L) piece that i lies in
    return x.gather(1, (place.gather(1, piece) * L + i).argsort(1))  # by new place, then by old

def gaussian_noise(x, generator=None, std=0.05):
    """Add N(0, std^2): high frequencies, which VQ-VAEs reconstruct worst. §5.1.1."""
    return x + std * _normal(x, x.shape, generator)

def flip(x, generator=None):
    """Reverse time with probability 1/2. Drafts (ledger 24)."""
    return torch.where(_uniform(x, (len(x), 1), 0, 1, generator) < 0.5, x.flip(1), x)

def slope(x, generator=None, limit=0.01):
    """Add a line through the origin, U[-limit, limit] per time step. Drafts."""
    time = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)  # (L)
    return x + _uniform(x, (len(x), 1), -limit, limit, generator) * time

def phase_shift(x, generator=None, limit=math.pi / 4):
    """Add U[-limit, limit] to the phase of each bin and frame. Drafts (ledger 23)."""
    n_fft = 2 ** math.ceil(math.log2(x.shape[1]))  # hop n_fft/4, no window
    window = torch.ones(n_fft, device=x.device, dtype=x.dtype)
    u = torch.stft(x, n_fft, window=window, return_complex=True)  # (B, n_fft/2+1, frames)
    turn = torch.polar(torch.ones_like(u.real), _uniform(x, u.shape, -limit, limit, generator))
    return torch.istft(u * turn, n_fft, window=window, length=x.shape[1])

def roundtrip(x, generator=None):
    """The last L mod 8 samples are 0, as in the published views (ledger 18)."""
    # Not told the length, an inverse STFT of n_fft 32, hop 8 ends with the last whole hop.
    return torch.nn.functional.pad(x[:, :x.shape[1] // 8 * 8], (0, x.shape[1] % 8))

AUGMENTATIONS = {
    "warp": lambda x, g: window_warp(amplitude_resize(x, g), g),
    "slice": slice_and_shuffle, "gauss": gaussian_noise, "amplitude": amplitude_resize,
    "flip": flip, "slope": slope, "phase": phase_shift, "roundtrip": roundtrip,
    "jitter": lambda x, g: gaussian_noise(x, g, std=0.1),
}

def augment(x, spec, generator=None):
    """The view x' = T(x), (B, L) -> (B, L); spec joins AUGMENTATIONS by +, in their order."""
    for name in spec.split("+"):  # e.g. warp+gauss
        x = AUGMENTATIONS[name](x, generator)
    return x

# ---- Device, files that are whole or not there, the lock ----
def pick_device(precision="float32"):
    """$DEVICE, else cuda, else cpu. Sets what float32 means there."""
    # mps has to be asked for: some releases of torch compute wrongly on it.
    name = os.environ.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    # GPUs round convolutions to TF32 unless told not to, products if told to.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    with usable(f"DEVICE={name}"):
        device = torch.Generator(torch.ones(1, device=name).device).device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # cuda:1: else some calls go to the first
    return device

def run_command(main):
    """Run main(); what the user can mend becomes one line and exit code 1."""
    try:
        refuse(not hasattr(torch.optim, "Muon"), f"torch {torch.__version__} is too old: 2.9 or "
               "later is needed; pip install -r requirements.txt, or use run.sh, which does")
        main()
    except BrokenPipeError:  # our reader left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except InputError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except OSError as error:
        sys.exit(f"{error.filename or 'disk'}: cannot be read or written ({error.strerror})")
    except (MemoryError, RuntimeError) as error:  # torch's text says memory, of CPU and of GPU
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        if "memory" not in text.lower():
            raise
        sys.exit(f"{text}; make a batch or a width smaller")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")

def write_atomic(path, write):
    """write(file) under another name, then rename: path is the old file or the new."""
    temporary = Path(f"{path}.tmp")
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # on the disk before it gets its name
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's writer on a full disk
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(f"{path}: cannot be written ({error}); what was there is intact") from None

def write_json(path, value):
    """value as JSON, whole or not at all."""
    write_atomic(path, lambda file: file.write((json.dumps(value, indent=1) + "\n").encode()))

def _read(path, parse, kind=dict):
    """parse(path), where that is there and of a kind."""
    refuse(not Path(path).exists(), f"{path}: not there; run the stage that makes it")
    with usable(path):
        value = parse(path)
        refuse(not isinstance(value, kind), f"holds a {type(value).__name__}")
    return value

def read_arrays(path):
    """The arrays of an .npz by name, never unpickled."""
    arrays = _read(path, lambda path: dict(np.load(path, allow_pickle=False)))
    return {key: np.asarray(value) for key, value in arrays.items()}

def read_json(path):
    """A JSON file's object."""
    return _read(path, lambda path: json.loads(Path(path).read_text()))

def load_checkpoint(path):
    """A checkpoint's dict. weights_only: nothing that a file carries is executed."""
    return _read(path, lambda path: torch.load(path, "cpu", weights_only=True))

def read_config(run_dir):
    """The Config of a run folder."""
    path = Path(run_dir) / "config.json"
    return _read(path, lambda path: Config(**json.loads(path.read_text())), Config)

def check_same(path, saved, wanted):
    """Refuse a file made with other settings or data, naming what differs."""
    for key in sorted(set(saved) | set(wanted)):
        refuse(saved.get(key) != wanted.get(key), f"{path}: made with {key} = {saved.get(key)!r}, "
               f"this run has {wanted.get(key)!r}; change that, remove it, or set another OUT")

@contextlib.contextmanager
def hold(folder, wait=False):
    """Hold a folder for this process. A second one is refused, or waits its turn."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / ".lock", "a") as file:  # closing it, or dying, lets go
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InputError(f"{folder}: another process works on it; wait or set another OUT")
        except OSError:  # some network file systems have none
            print(f"WARNING: {folder}: no lock; start no second process on it", file=sys.stderr)
        yield

def git_commit():
    """The checkout's commit, None outside one."""
    with contextlib.suppress(OSError):  # no git
        return subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).resolve().parent,
                              capture_output=True, text=True).stdout.strip() or None

def main():
    """Refuse a wrong value anywhere in run.sh's grid before anything runs."""
    parser = Parser(prog="run.sh", allow_abbrev=False)
    for position in ("methods", "augmentations", "seeds"):
        parser.add_argument(position, type=lambda text: text.split(","))
    add_flags(parser, "views")
    args = parser.parse_args()
    for method, view, seed in itertools.product(args.methods, args.augmentations, args.seeds):
        refuse(not seed.isdigit(), f"SEED {seed}: should be a whole number")
        make_config(args, method=method, augmentation="none" if method == "naive" else view,
                    seed=int(seed))

if __name__ == "__main__":
    run_command(main)
