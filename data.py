"""Chapter 0: everything on disk. Raw series in (thesis §5.2), augmented batches out (§5.1.1), run folders.

    raw files -> load_dataset -> Dataset.x_train (n, L), standardised -> Batches (indices) -> augment -> a batch (B, L)

The second half holds what the three stages share around their training loops: flags made from a dataclass, atomic
files, the resume file, the lock on a run folder, the log. Nothing here knows a model.

    python -c "import data; print(data.load_dataset('Symbols', 'datasets'))"      # a second, once it is downloaded

Letters: B batch, L length, n series.
"""
import argparse, contextlib, ctypes, fcntl, hashlib, http.client, inspect, io, json, math, os, pickle, platform, re, shutil, socket
import subprocess, sys, time, urllib.error, urllib.request, zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

# name: (train, test, classes, length, Zenodo record). The first four are thesis Table 5.2.
THESIS_SETS = {
    "FordA": (3601, 1320, 2, 500, 11191164),                "ElectricDevices": (8926, 7711, 7, 96, 11190880),
    "StarLightCurves": (1000, 8236, 3, 1024, 11198308),     "Wafer": (1000, 6164, 2, 152, 11198387),
    "ECG5000": (500, 4500, 5, 140, 11186692),               "TwoPatterns": (1000, 4000, 4, 128, 11198356),
    "UWaveGestureLibraryAll": (896, 3582, 8, 945, 11198366), "FordB": (3636, 810, 2, 500, 11191172),
    "ShapesAll": (600, 600, 60, 512, 11198237),             "SonyAIBORobotSurface1": (20, 601, 2, 70, 11198277),
    "SonyAIBORobotSurface2": (27, 953, 2, 65, 11198290),    "Symbols": (25, 995, 6, 398, 11198322),
    "Mallat": (55, 2345, 8, 1024, 11197731),
}
MIN_LENGTH = 8           # = n_fft: a shorter series has no STFT frame
MAX_LINE = 4_000_000     # characters in a row (about 200,000 numbers): more is no UCR file, refuse before parsing
MAX_DOWNLOAD = 500 << 20 # bytes
TOY_NOISE = 0.2          # std of the toy set's noise. Geurts has 1; low noise lets the short default schedule learn the prior too


class InputError(ValueError):
    """Something the user can mend: one line that names the file, the value and the mend. Commands print it and exit 1."""


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------

@dataclass
class Dataset:
    """A dataset, standardised with one scalar mean and std of the training set (thesis §5.2, Table 5.2).

    x_* are float32 (n, L) in standardised units, y_* int64 (n,) in 0..K-1 or None without labels; `classes[k]` is the
    label that the file used for class k. `complete` is False where counts differ from Table 5.2.
    """
    name: str
    x_train: torch.Tensor
    y_train: torch.Tensor | None
    x_test: torch.Tensor
    y_test: torch.Tensor | None
    mean: float
    std: float
    classes: list
    complete: bool
    sha256: str          # of the raw values and labels: a checkpoint remembers which data made it

    @property
    def length(self):
        return self.x_train.shape[1]

    def info(self):
        """Plain values that a checkpoint keeps, so that samples return to original units without the data at hand."""
        return dict(name=self.name, mean=self.mean, std=self.std, classes=self.classes, complete=self.complete,
                    sha256=self.sha256, length=self.length, n_train=len(self.x_train), n_test=len(self.x_test))


def parse_label(text):
    """Labels are numbers in most files ("1", "1.0" and "1.0000000e+00" are one class) and words in some."""
    try:
        value = float(text)
    except ValueError:
        return str(text)
    return int(value) if value.is_integer() else value if math.isfinite(value) else str(text)


def read_split(path):
    """Read one UCR split file: x float64 (n, L) and a list of n labels.

    .tsv (label first, tabs), .txt (label first, blanks), .ts (header, values by commas, `:label` last).
    Raises InputError with file and row for a cell that is no finite number, unequal lengths, an overlong row, no rows.
    """
    path = Path(path)
    rows, labels, first_row = [], [], None
    with open(path, encoding="utf-8-sig", errors="replace") as file:      # -sig: a byte-order mark is no digit
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            where = f"{path}, row {number}"
            if len(line) > MAX_LINE:
                raise InputError(f"{where}: over {MAX_LINE:,} characters long; a row is one univariate series")
            line = line.strip()
            if not line or path.suffix == ".ts" and line[0] in "#@":
                continue
            if path.suffix == ".ts":
                *channels, label = line.split(":")
                if len(channels) != 1:
                    raise InputError(f"{where}: {len(channels)} channels, expected 1 and a label; "
                                     "this is a univariate model")
                cells = channels[0].split(",")
            else:
                label, *cells = line.split("\t" if path.suffix == ".tsv" else None)
            try:
                values = np.array(cells, dtype=np.float64)
            except ValueError:
                bad = next(c for c in cells if not _is_number(c))
                raise InputError(f"{where}: {bad[:40]!r} is not a number; mend or remove the row") from None
            if not np.isfinite(values).all():
                column = int(np.flatnonzero(~np.isfinite(values))[0]) + 1
                raise InputError(f"{where}: value {column} is {values[column - 1]}; fill the gap or remove the row, "
                                 "nothing is filled silently")
            first_row = first_row or number
            if rows and len(values) != len(rows[0]):
                raise InputError(f"{where}: length {len(values)}, but row {first_row} has {len(rows[0])}; "
                                 "cut or resample to one length")
            rows.append(values)
            labels.append(label.strip())
    if not rows:
        raise InputError(f"{path}: no series in it; replace the file")
    return np.stack(rows), labels


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_arrays(path):
    """The arrays of an .npz by name, never unpickled."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as .npz ({error}); save plain arrays with numpy.savez") from None


def _read_npz(path):
    """Own data: X_train, y_train, X_test, y_test, X (n, L) or (n, 1, L); y of numbers or strings, or no y at all."""
    arrays = read_arrays(path)
    if "X_train" not in arrays or "X_test" not in arrays:
        raise InputError(f"{path}: has {sorted(arrays)}, needs X_train and X_test (and y_train, y_test for labels)")
    if ("y_train" in arrays) != ("y_test" in arrays):
        raise InputError(f"{path}: only one of y_train, y_test is there; give both or neither")
    out = []
    for split in ("train", "test"):
        x, y = arrays[f"X_{split}"], arrays.get(f"y_{split}")
        if x.dtype.kind not in "fiu":
            raise InputError(f"{path}, X_{split}: dtype {x.dtype}, expected numbers in one rectangular array")
        if x.ndim == 3 and x.shape[1] != 1:
            raise InputError(f"{path}, X_{split}: {x.shape[1]} channels in shape {x.shape}; this is a univariate "
                             "model, give (n, L) or (n, 1, L)")
        x = x[:, 0] if x.ndim == 3 else x
        if x.ndim != 2:
            raise InputError(f"{path}, X_{split}: shape {x.shape}, expected (n, L) or (n, 1, L)")
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if len(bad):
            raise InputError(f"{path}, X_{split}, row {bad[0] + 1}: holds NaN or inf; fill the gap or remove the row")
        if y is not None and y.shape != (len(x),):
            raise InputError(f"{path}, y_{split}: shape {y.shape} for {len(x)} series, expected ({len(x)},)")
        out += [x.astype(np.float64), None if y is None else [str(v) for v in y.tolist()]]
    return out


def load_dataset(name, root="datasets", download=True):
    """Load `toy`, a UCR set from root/NAME (downloaded where missing), or the path of an own .npz.

    Returns a Dataset. Raises InputError that names dataset, file and row for NaN, unequal lengths, one class, fewer than
    2 series, a length under 8, a label that only the test split has, a constant training set (thesis §5.2, Table 5.2).
    """
    if str(name) == "toy":
        x_train, y_train = two_patterns(1000, 128, seed=0, noise=TOY_NOISE)
        x_test, y_test = two_patterns(1000, 128, seed=1, noise=TOY_NOISE)
        x_train, x_test, files = x_train.double().numpy(), x_test.double().numpy(), ["toy", "toy"]
        y_train, y_test = ([str(v) for v in y.tolist()] for y in (y_train, y_test))
    elif str(name).endswith(".npz"):
        x_train, y_train, x_test, y_test = _read_npz(name)
        files = [f"{name}, X_train", f"{name}, X_test"]
        name = Path(name).stem
    else:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise InputError(f"dataset {name!r}: not a UCR name, not 'toy', not a path that ends in .npz")
        files = [find_split(name, root, split) for split in ("TRAIN", "TEST")]
        if None in files:
            if not download:
                raise InputError(f"{name}: not in {root}")
            download_dataset(name, root)
            files = [find_split(name, root, split) for split in ("TRAIN", "TEST")]
        (x_train, y_train), (x_test, y_test) = map(read_split, files)

    for x, file in ((x_train, files[0]), (x_test, files[1])):
        if len(x) < 2:
            raise InputError(f"{name}: {file} has {len(x)} series, at least 2 are needed")
        if x.shape[1] < MIN_LENGTH:
            raise InputError(f"{name}: {file} has length {x.shape[1]}, at least {MIN_LENGTH} (n_fft) is needed")
    if x_train.shape[1] != x_test.shape[1]:
        raise InputError(f"{name}: length {x_train.shape[1]} in {files[0]} but {x_test.shape[1]} in {files[1]}")

    classes = []
    if y_train is not None:
        for labels, file in ((y_train, files[0]), (y_test, files[1])):
            for row, label in enumerate(labels, 1):
                if str(label).strip().lower() in ("", "nan"):
                    raise InputError(f"{name}: {file}, series {row} has the label {str(label)!r}; give it one or remove it")
        y_train, y_test = ([parse_label(v) for v in y] for y in (y_train, y_test))
        if any(isinstance(v, str) for v in y_train + y_test):              # a mixture of numbers and words is words
            y_train, y_test = ([str(v) for v in y] for y in (y_train, y_test))
        classes, y_train = np.unique(np.array(y_train), return_inverse=True)
        classes = classes.tolist()
        if len(classes) < 2:
            raise InputError(f"{name}: {files[0]} has the one class {classes[0]!r}, at least 2 are needed (an .npz "
                             "without y_train and y_test trains without labels)")
        index = {c: k for k, c in enumerate(classes)}
        for row, label in enumerate(y_test, 1):
            if label not in index:
                raise InputError(f"{name}: {files[1]}, series {row} has label {label!r}, which the training split "
                                 f"never shows ({classes}); mend or remove the row")
        y_test = np.array([index[v] for v in y_test])
    digest = hashlib.sha256()
    for array in (x_train, x_test, y_train, y_test):
        digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())

    mean, std = float(x_train.mean()), float(x_train.std())
    if not std > 1e-12 * max(1.0, abs(mean)):
        raise InputError(f"{name}: every value in {files[0]} is {mean:g}, its standard deviation is 0; nothing to learn")
    tensors = [torch.from_numpy(((x - mean) / std).astype(np.float32)) for x in (x_train, x_test)]
    y_train, y_test = (None if y is None else torch.as_tensor(y, dtype=torch.int64) for y in (y_train, y_test))
    complete = True
    if name in THESIS_SETS:
        found = (len(x_train), len(x_test), len(classes), x_train.shape[1])
        for what, ours, thesis in zip(("training series", "test series", "classes", "length"), found, THESIS_SETS[name]):
            if ours != thesis:
                complete = False
                print(f"WARNING: {name} is not the archive's: {what} {ours} of {thesis} (thesis Table 5.2). Results are "
                      "marked complete_data: false.", file=sys.stderr)
    return Dataset(name, tensors[0], y_train, tensors[1], y_test, mean, std, classes, complete, digest.hexdigest())


def two_patterns(n, length, seed, noise=1.0):
    """The two-patterns process of Geurts (2002): noise with two steps, each up (-5, 5) or down (5, -5), in 4 classes.

    Returns x float32 (n, length) in original units and y int64 (n,), y = 2 * (first goes up) + (second goes up).
    Place and width of both steps are random and they do not overlap. Classes are balanced to within one series.
    """
    rng = np.random.default_rng(seed)
    x = noise * rng.standard_normal((n, length))
    y = rng.permutation(np.arange(n) % 4)
    for i in range(n):
        # Four cut points split the series into gap, step, gap, step, gap; a step is at least length/8 wide.
        least = length // 8
        gaps = np.sort(rng.integers(0, length - 2 * least + 1, size=4))
        begin1, end1, begin2, end2 = gaps + np.array([0, least, least, 2 * least])
        for begin, end, up in ((begin1, end1, y[i] // 2), (begin2, end2, y[i] % 2)):
            half = (begin + end) // 2
            x[i, begin:half] += -5 if up else 5
            x[i, half:end] += 5 if up else -5
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


# ---------------------------------------------------------------------------------------------------------------------
# Download. Every mirror is checked by reading both splits from a temporary folder; only then does the folder get its name.
# ---------------------------------------------------------------------------------------------------------------------

def find_split(name, root, split):
    """Path of root/NAME/NAME_TRAIN.tsv (or .ts, .txt), None where there is none."""
    paths = (Path(root) / name / f"{name}_{split}{suffix}" for suffix in (".tsv", ".ts", ".txt"))
    return next((path for path in paths if path.is_file()), None)


def _fetch(url):
    """Bytes behind a URL, or InputError with the reason. A 202 without content is not a file."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"User-Agent": "ncvqvae"}), timeout=60) as reply:
            body = reply.read(MAX_DOWNLOAD + 1)
            if reply.status != 200 or not body:
                raise InputError(f"answered {reply.status} with {len(body)} bytes")
            if reply.length:                                # what Content-Length promised and the line did not bring
                raise InputError(f"connection cut, {reply.length} bytes missing")
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise InputError(str(error) or type(error).__name__) from None
    if len(body) > MAX_DOWNLOAD:
        raise InputError(f"larger than {MAX_DOWNLOAD >> 20} MB")
    return body


def _from_aeon(base, name):
    """{file name: bytes} of both splits out of the flat zip of timeseriesclassification.com."""
    try:
        with zipfile.ZipFile(io.BytesIO(_fetch(f"{base}/aeon-toolkit/{name}.zip"))) as archive:
            files = {}
            for split in ("TRAIN", "TEST"):
                # Members are read by their exact flat name and never extracted: a path like ../x cannot climb out.
                member = next((m for s in (".ts", ".txt") if (m := f"{name}_{split}{s}") in archive.namelist()), None)
                if member is None:
                    raise InputError(f"the zip has no {name}_{split}.ts or .txt")
                if archive.getinfo(member).file_size > MAX_DOWNLOAD:
                    raise InputError(f"{member} unpacks to more than {MAX_DOWNLOAD >> 20} MB")
                files[member] = archive.read(member)
            return files
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise InputError(f"not a sound zip ({error})") from None


def _from_zenodo(base, name):
    """{file name: bytes} of both splits from the set's Zenodo record."""
    if name not in THESIS_SETS:
        raise InputError("no record number is known for this set")
    record = THESIS_SETS[name][4]
    return {f"{name}_{s}.ts": _fetch(f"{base}/records/{record}/files/{name}_{s}.ts") for s in ("TRAIN", "TEST")}


def download_dataset(name, root="datasets"):
    """Download a UCR set into root/NAME from the first mirror whose files pass every check of `read_split`.

    UCR_MIRROR (a base address, both mirrors' paths below it) replaces the hosts. Raises InputError with each mirror's
    reason and where to put the files by hand; leaves nothing behind when it fails.
    """
    base = os.environ.get("UCR_MIRROR")
    mirrors = [(_from_aeon, base or "https://timeseriesclassification.com"), (_from_zenodo, base or "https://zenodo.org")]
    final, reasons = Path(root) / name, []
    for mirror, host in mirrors:
        staging = Path(root) / f".{name}.download-{os.getpid()}"
        try:
            print(f"{name}: downloading from {host}", file=sys.stderr)
            files = mirror(host, name)
            staging.mkdir(parents=True, exist_ok=True)
            for file, content in files.items():
                (staging / file).write_bytes(content)
                read_split(staging / file)
            if final.exists():                                  # an incomplete folder: complete it, file by file
                for file in files:
                    os.replace(staging / file, final / file)
            else:
                os.replace(staging, final)
            return
        except InputError as error:
            reasons.append(f"{host}: {error}")
        except OSError as error:
            raise InputError(f"{name}: cannot write to {root} ({error}); set UCR_DIR to a folder with space") from None
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    raise InputError(f"{name}: not in {root} and no mirror has it ({'; '.join(reasons)}). Get the archive from "
                     "www.cs.ucr.edu/~eamonn/time_series_data_2018 (password: someone) and put "
                     f"{name}_TRAIN.tsv and {name}_TEST.tsv into {final}/")


# ---------------------------------------------------------------------------------------------------------------------
# Augmentations (thesis §5.1.1, drafts). All map x (B, L) to (B, L) on x's device and in its dtype, a fresh draw per series.
# ---------------------------------------------------------------------------------------------------------------------

def _uniform(x, low, high, generator):
    """One U[low, high] per series: (B, 1)."""
    return low + (high - low) * torch.rand(len(x), 1, generator=generator, device=x.device, dtype=x.dtype)


def _normal(x, shape, generator):
    return torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)


def amplitude_resize(x, generator=None, std=0.2):
    """Multiply each series by 1 + N(0, std²). x (B, L) -> (B, L). Thesis §5.1.1."""
    return x * (1 + std * _normal(x, (len(x), 1), generator))


def window_warp(x, generator=None, window=0.4, low=0.9, high=2.0):
    """Slow a random window by a factor of U[low, high], interpolate back to length L. x (B, L) -> (B, L). Thesis §5.1.1.

    Stretching the window [a, a + w] by s gives the warped axis tau(i) = i before it, a + s(i - a) inside, i + (s - 1)w
    behind. Output j reads the series where tau(i) = j · tau(L-1)/(L-1), so both end points stay where they are.
    """
    L = x.shape[1]
    w = max(1, round(window * (L - 1)))                                       # in steps between samples
    s = _uniform(x, low, high, generator)                                     # (B, 1)
    a = (_uniform(x, 0, 1, generator) * (L - w)).floor()                      # (B, 1) in 0 .. L-1-w
    j = torch.arange(L, device=x.device, dtype=x.dtype)                       # (L)
    tau = j * ((L - 1 + (s - 1) * w) / (L - 1))                               # (B, L) positions on the warped axis
    i = torch.where(tau < a, tau, torch.where(tau < a + s * w, a + (tau - a) / s, tau - (s - 1) * w))
    left = i.floor().clamp(0, L - 2)                                          # linear interpolation between neighbours
    weight = (i - left).clamp(0, 1)
    left = left.long()
    return x.gather(1, left) * (1 - weight) + x.gather(1, left + 1) * weight


def slice_and_shuffle(x, generator=None, pieces=4):
    """Cut each series at pieces - 1 random places and permute the pieces. x (B, L) -> (B, L). Thesis §5.1.1."""
    B, L = x.shape
    # Distinct cuts in 1 .. L-1: the places of the pieces - 1 smallest of L - 1 random numbers.
    cuts = 1 + torch.rand(B, L - 1, generator=generator, device=x.device).argsort(1)[:, :pieces - 1]   # (B, pieces-1)
    place = torch.rand(B, pieces, generator=generator, device=x.device).argsort(1)                    # (B, pieces)
    i = torch.arange(L, device=x.device)
    piece = (i >= cuts[:, :, None]).sum(1)                                    # (B, L) which piece position i lies in
    return x.gather(1, (place.gather(1, piece) * L + i).argsort(1))           # by new place, then by old position


def gaussian_noise(x, generator=None, std=0.05):
    """Add N(0, std²) to each point. x (B, L) -> (B, L). Thesis §5.1.1."""
    return x + std * _normal(x, x.shape, generator)


def flip(x, generator=None):
    """Turn each series' sign with probability 1/2. x (B, L) -> (B, L). Drafts."""
    return torch.where(_uniform(x, 0, 1, generator) < 0.5, -x, x)


def slope(x, generator=None, limit=0.01):
    """Add a line through the origin, U[-limit, limit] per time step. x (B, L) -> (B, L). Drafts."""
    return x + _uniform(x, -limit, limit, generator) * torch.arange(x.shape[1], device=x.device, dtype=x.dtype)


def phase_shift(x, generator=None, limit=math.pi / 4, n_fft=8):
    """Turn the phase of a series' STFT by U[-limit, limit], one angle per series. x (B, L) -> (B, L). Drafts."""
    window = torch.hann_window(n_fft, device=x.device, dtype=x.dtype)
    u = torch.stft(x, n_fft, window=window, return_complex=True)              # (B, n_fft//2+1, frames)
    angle = _uniform(x, -limit, limit, generator)[:, :, None]                 # (B, 1, 1)
    return torch.istft(u * torch.polar(torch.ones_like(angle), angle), n_fft, window=window, length=x.shape[1])


AUGMENTATIONS = {
    "warp": lambda x, g: window_warp(amplitude_resize(x, g), g),
    "slice": slice_and_shuffle,
    "gauss": gaussian_noise,
    "flip": flip,
    "jitter": lambda x, g: gaussian_noise(x, g, std=0.1),
    "slope": slope,
    "amplitude": amplitude_resize,
    "phase": phase_shift,
}


def augment(x, spec, generator=None):
    """The augmented view x' = T(x). x (B, L) -> (B, L); spec joins names by + ("warp+gauss") and applies them in order.

    Raises InputError for a name that is not in AUGMENTATIONS. Thesis §5.1.1, drafts.
    """
    for name in spec.split("+"):
        if name not in AUGMENTATIONS:
            raise InputError(f"augmentation {name!r}: not one of {', '.join(AUGMENTATIONS)} (join several by +)")
        x = AUGMENTATIONS[name](x, generator)
    return x


class Batches:
    """Endless shuffled index batches over n series; its state_dict makes a resume exact.

    next() gives int64 (B,) on the generator's device. A last batch of one series is dropped: BatchNorm and the SSL
    losses have no variance there.
    """
    def __init__(self, n, batch_size, generator):
        self.n, self.batch_size, self.generator = n, min(batch_size, n), generator
        self.per_epoch = math.ceil(n / self.batch_size) - (n % self.batch_size == 1)
        self.order, self.position = torch.zeros(0, dtype=torch.int64), self.per_epoch

    def __next__(self):
        if self.position == self.per_epoch:
            self.order = torch.randperm(self.n, generator=self.generator, device=self.generator.device)
            self.position = 0
        start = self.position * self.batch_size
        self.position += 1
        return self.order[start:start + self.batch_size]

    def state_dict(self):
        return {"order": self.order, "position": self.position}

    def load_state_dict(self, state):
        self.order, self.position = state["order"].to(self.generator.device), state["position"]


# ---------------------------------------------------------------------------------------------------------------------
# Run folders: flags, files, resume, lock, log
# ---------------------------------------------------------------------------------------------------------------------

def pick_device():
    """cuda, else mps, else cpu; the environment variable DEVICE overrides."""
    if name := os.environ.get("DEVICE"):
        try:
            return torch.zeros(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"DEVICE={name}: {str(error).splitlines()[0]}; give cuda, mps or cpu") from None
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def add_flags(parser, config):
    """One --flag per field of a config dataclass; its help is the comment behind the field, its default the field's."""
    source = "".join(inspect.getsource(c) for c in config.__mro__[:-1])               # fields may be inherited
    comments = dict(re.findall(r"^    (\w+): .*?# (.*)$", source, re.M))
    for f in fields(config):
        parser.add_argument("--" + f.name.replace("_", "-"), type=f.type, default=argparse.SUPPRESS, metavar="VALUE",
                            help=f"{comments.get(f.name, '')} [{f.default}]".replace("%", "%%"))


def make_config(config, presets, preset, given):
    """Defaults, overridden by the preset's fields, overridden by the flags that were given."""
    if preset not in presets:
        raise InputError(f"--preset {preset}: not one of {', '.join(presets)}")
    names = {f.name for f in fields(config)}
    return config(**{**presets[preset], **{k: v for k, v in vars(given).items() if k in names}})


def keep_freed_memory():
    """Tell glibc to keep what is freed: a step's 64 MB gradients would go back to the kernel and be zeroed anew each time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)                    # neither macOS nor musl has it
    if mallopt:
        mallopt(-4, 0)                                    # M_MMAP_MAX: large blocks come from the heap too
        mallopt(-1, 2 ** 31 - 1)                          # M_TRIM_THRESHOLD: which does not shrink


def run_command(main):
    """Run a module's main() and turn what the user can mend into one line and exit code 1."""
    keep_freed_memory()
    try:
        main()
    except InputError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last checkpoint")
    except BrokenPipeError:                               # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_atomic(path, write):
    """write(file) into a temporary name beside path, then rename: path is always whole, the old one or the new one."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:              # torch's zip writer reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be written ({reason}); what was there before is intact. Free space, then run "
                         "the same command again") from None


def write_json(path, value):
    write_atomic(path, lambda file: file.write((json.dumps(value, indent=1) + "\n").encode()))


def read_json(path):
    """A JSON file's value, {} where there is none."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); remove it and run again") from None


def load_checkpoint(path):
    """A checkpoint's dict on the CPU. Only tensors and plain types: weights_only never executes what a file carries."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(checkpoint, dict):
            raise InputError(f"{path}: holds a {type(checkpoint).__name__}, not a checkpoint; remove it and run again")
        return checkpoint
    except FileNotFoundError:
        raise InputError(f"{path}: not there; run the stage that makes it") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = "carries objects that are not tensors or plain types, refused unread" \
            if isinstance(error, pickle.UnpicklingError) else "truncated or not a checkpoint"
        raise InputError(f"{path}: {reason} ({str(error).splitlines()[0][:100]}); remove it and run again") from None


def check_same(path, kind, saved, wanted):
    """Refuse a file whose config or data is not the one asked for, naming what differs."""
    for key in sorted(set(saved) | set(wanted)):
        if saved.get(key) != wanted.get(key):
            raise InputError(f"{path}: {kind} has {key} = {saved.get(key)!r}, this run {wanted.get(key)!r}; give the "
                             "value it has, remove the run folder, or set another OUT")


class Resume:
    """What an interrupted training needs to go on bit for bit, written beside its result about once a minute.

    model, optimizer and batches have a state_dict; the generator, step and seconds go along. identity (plain values)
    says what is being trained: a file that says otherwise is refused.
    """
    SECONDS = 60

    def __init__(self, path, identity, generator, model, optimizer, batches):
        self.path, self.identity, self.generator = Path(path), identity, generator
        self.parts = dict(model=model, optimizer=optimizer, batches=batches)
        self.step, self.before, self.started, self.saved = 0, 0.0, time.time(), time.time()
        if self.path.exists():
            state = load_checkpoint(self.path)
            check_same(self.path, "the interrupted run", state.get("identity", {}), identity)
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            for group in optimizer.param_groups:                             # a checkpoint's tensors come to the CPU
                if torch.is_tensor(group["lr"]):
                    group["lr"] = group["lr"].to(group["params"][0].device)
            generator.set_state(state["generator"])
            self.step, self.before = state["step"], state["seconds"]

    def seconds(self):
        """Seconds of training, those before an interruption counted in."""
        return self.before + time.time() - self.started

    def save_when_due(self, step):
        if time.time() - self.saved < self.SECONDS:
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        if not all(v.isfinite().all() for v in state["model"].values()):
            raise InputError(f"step {step}: the model's values are no longer finite; not written, the last checkpoint "
                             "is intact. Try a smaller learning rate")
        state |= dict(identity=self.identity, generator=self.generator.get_state(), step=step, seconds=self.seconds())
        write_atomic(self.path, lambda file: torch.save(state, file))
        self.saved = time.time()

    def remove(self):
        self.path.unlink(missing_ok=True)


def adamw(model, lr, weight_decay):
    """AdamW in one fused call. On CUDA its learning rate is a tensor, so that a recorded step follows `set_lr`."""
    device = next(model.parameters()).device
    cuda = device.type == "cuda"
    return torch.optim.AdamW(model.parameters(), lr=torch.tensor(lr, device=device) if cuda else lr,
                             weight_decay=weight_decay, fused=True, capturable=cuda)


def set_lr(optimizer, lr):
    for group in optimizer.param_groups:
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def check_precision(config):
    if config.precision not in ("float32", "bf16"):
        raise InputError(f"--precision {config.precision}: not one of float32, bf16")


class Recorded:
    """A training step that CUDA records once and then replays with one launch; elsewhere the function itself.

    step(*tensors) -> anything made of tensors. It must not wait for the device nor draw random numbers, and finds all
    but its arguments where it was. The first calls with arguments of a shape run as they are and warm up, the next one
    is recorded. Replays write their results over the last ones. What cannot be recorded goes on as it is, and says so.
    """
    WARM_UP = 3

    def __init__(self, step, device):
        self.step, self.recording, self.calls, self.graphs = step, device.type == "cuda", {}, {}

    def __call__(self, *inputs):
        if not self.recording:
            return self.step(*inputs)
        shapes = tuple(x.shape for x in inputs)
        if shapes not in self.graphs:
            self.calls[shapes] = self.calls.get(shapes, 0) + 1
            if self.calls[shapes] <= self.WARM_UP:
                side = torch.cuda.Stream()                # warming up on a side stream is what recording asks for
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    out = self.step(*inputs)
                torch.cuda.current_stream().wait_stream(side)
                return out
            graph, static = torch.cuda.CUDAGraph(), [x.clone() for x in inputs]
            try:
                with torch.cuda.graph(graph):
                    out = self.step(*static)
            except RuntimeError as error:
                print(f"the training step cannot be recorded on this GPU and runs op by op ({str(error).splitlines()[0]})",
                      file=sys.stderr)
                self.recording = False
                return self.step(*inputs)
            self.graphs[shapes] = graph, static, out
        graph, static, out = self.graphs[shapes]
        for ours, given in zip(static, inputs):
            ours.copy_(given)
        graph.replay()
        return out


@contextlib.contextmanager
def hold(folder, wait=False):
    """Hold a folder for this process. A second process is told who holds it, or waits for its turn."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            raise InputError(f"{folder}: {file.read().strip() or 'another process'} is working on it; "
                             "wait for it or set another OUT") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield                                             # closing the file, or dying, lets go


def git_commit():
    """The checkout's commit, None outside one."""
    folder = Path(__file__).resolve().parent
    try:
        reply = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return reply.stdout.strip() or None if reply.returncode == 0 else None


class Log:
    """log.jsonl of a run (a JSON object per line) and the line a person watches: one that updates, or sparse ones."""

    def __init__(self, run_dir, stage, total, resume, device, sha256=None):
        self.path, self.stage, self.total, self.resume = Path(run_dir) / "log.jsonl", stage, total, resume
        self.every = max(1, total // 200)                 # about 200 logged steps, whatever the schedule
        self.first, self.started, self.shown, self.last = resume.step, time.time(), -1, None
        # Steps that were logged after the checkpoint we go on from will be logged again: drop them.
        old = self.path.read_text().splitlines() if self.path.exists() else []
        lines = [line for line in old if (r := _json_line(line))
                 and not (r.get("stage") == stage and "step" in r and r["step"] > resume.step)]
        lines.append(json.dumps(dict(
            event="start", stage=stage, from_step=resume.step, argv=sys.argv, python=platform.python_version(),
            torch=torch.__version__, numpy=np.__version__, commit=git_commit(), device=str(device),
            sha256=sha256, time=time.strftime("%Y-%m-%dT%H:%M:%S"))))
        write_atomic(self.path, lambda file: file.write(("\n".join(lines) + "\n").encode()))

    def due(self, step):
        return step % self.every == 0 or step in (1, self.total)

    def __call__(self, step, epoch, **values):
        """Log finished step `step` (1-based). Values are floats; a NaN among them stops the run."""
        values = {k: float(v) for k, v in values.items()}
        text = " ".join(f"{k} {v:.4g}" for k, v in values.items())
        if not all(math.isfinite(v) for v in values.values()):
            raise InputError(f"{self.stage}: loss is not finite at step {step} (epoch {epoch}): {text}; last logged: "
                             f"{self.last or 'nothing'}. Try a smaller learning rate; the last checkpoint is intact")
        self.last = f"step {step} {text}"
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(dict(stage=self.stage, step=step, epoch=epoch, **values)) + "\n")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error}); free space, then run the same command again") \
                from None
        elapsed = time.time() - self.started
        rate = (step - self.first) / max(elapsed, 1e-9)
        left = (self.total - step) / max(rate, 1e-9)
        line = (f"{self.stage} epoch {epoch} step {step}/{self.total} | {text} | {rate:.2f} steps/s | "
                f"{int(left // 60)}:{int(left % 60):02d} left")
        if sys.stderr.isatty():
            columns = shutil.get_terminal_size().columns
            print("\r" + line[:columns - 1].ljust(columns - 1), end="\n" if step == self.total else "", file=sys.stderr,
                  flush=True)
        elif step * 10 // self.total != self.shown:       # ten lines and the first
            self.shown = step * 10 // self.total
            print(line, file=sys.stderr, flush=True)


def _json_line(line):
    try:
        return json.loads(line)
    except ValueError:                                    # a line that a crash cut short
        return None


def cosine(step, total):
    """Factor on the learning rate before step `step` (0-based) of `total`: cosine from 1 to 0 (thesis §5.1.1)."""
    return 0.5 * (1 + math.cos(math.pi * step / total))


def plain(config):
    """A config dataclass as plain values for JSON and checkpoints."""
    return asdict(config)
