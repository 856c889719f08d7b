"""What people bring: data files, labels, settings and commands, samples to be scored."""

import dataclasses
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import evaluate
import ncvqvae
import prior
from data import Config, InputError
from helpers import (
    HERE,
    ROWS,
    TINY,
    command,
    no_figures,
    npz,
    own_data,
    run_all,
    shell,
    tiny_config,
    zip_bytes,
)

# ---- the archive's files ----


def write_ucr(
    root, name="Tiny", suffix=".tsv", train=ROWS, test=ROWS, newline="\n", encoding="utf-8"
):
    """A UCR folder in one of the three formats the archive comes in."""
    folder = Path(root) / name
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("TRAIN", train), ("TEST", test)):
        if suffix == ".ts":
            lines = ["# a comment", "@problemName Tiny", "@classLabel true 1 2", "@data"]
            lines += [",".join(map(str, x)) + ":" + y for y, x in rows]
        else:
            separator = "\t" if suffix == ".tsv" else "  "
            lines = [separator.join([y, *map(str, x)]) for y, x in rows]
        text = newline.join(lines) + newline
        (folder / f"{name}_{split}{suffix}").write_bytes(text.encode(encoding))
    return folder


@pytest.mark.parametrize("suffix", [".tsv", ".ts", ".txt"])
@pytest.mark.parametrize("newline,encoding", [("\n", "utf-8"), ("\r\n", "utf-8-sig")])
def test_reading_standardises_by_the_train_split(tmp_path, suffix, newline, encoding):
    write_ucr(tmp_path, suffix=suffix, newline=newline, encoding=encoding, test=ROWS[:2])
    d = data.load_dataset("Tiny", tmp_path)
    raw = np.array([x for _, x in ROWS])
    assert d.mean == pytest.approx(raw.mean()) and d.std == pytest.approx(raw.std())
    np.testing.assert_allclose(d.to_original(d.x_test), raw[:2], atol=1e-6)
    assert d.y_train.tolist() == [0, 1, 0] and d.classes == [1, 2]
    assert d.x_train.dtype == torch.float32


def test_tiny_scales_are_standardised_like_any_other(tmp_path):
    rows = [(y, [v * 1e-13 for v in x]) for y, x in ROWS]  # tesla
    write_ucr(tmp_path, train=rows, test=rows)
    d = data.load_dataset("Tiny", tmp_path)
    assert d.x_train.double().std(correction=0).item() == pytest.approx(1, rel=1e-6)


def test_labels_are_one_class_however_they_are_spelled_and_never_merge(tmp_path):
    x = ROWS[0][1]
    write_ucr(tmp_path, train=[("1", x), ("-1.0", ROWS[1][1])], test=[("1.0000e+00", x), ("-1", x)])
    d = data.load_dataset("Tiny", tmp_path)
    assert d.classes == [-1, 1] and d.y_test.tolist() == [1, 0] and d.label("1.0") == 1
    with pytest.raises(InputError, match="class 7: Tiny has -1, 1"):
        d.label(7)
    assert data.parse_label("inf") == "inf" and data.parse_label("1_0") == "1_0"
    big = [str(2**60), str(2**60 + 1)]
    write_ucr(
        tmp_path,
        train=list(zip(big, [x, x[::-1]], strict=True)),
        test=list(zip(big, [x, x], strict=False)),
    )
    assert data.load_dataset("Tiny", tmp_path).classes == [2**60, 2**60 + 1]


LONG = list(range(9))


BAD_FILES = {
    "NaN": (
        [("1", LONG), ("2", [math.nan, *LONG[1:]])],
        ROWS,
        r"TRAIN.tsv, series 2 holds NaN or inf",
    ),
    "inf": (
        ROWS,
        [("1", LONG), ("2", [*LONG[:-1], math.inf])],
        r"TEST.tsv, series 2 holds NaN or inf",
    ),
    "lengths": (
        [("1", LONG), ("2", LONG[1:])],
        ROWS,
        r"TRAIN.tsv, row 2: .*length 8, not as before",
    ),
    "word": (
        [("1", LONG), ("2", ["x", *LONG[1:]])],
        ROWS,
        r"TRAIN.tsv, row 2: .*could not convert string to float: 'x'",
    ),
    "Python's own": (
        [("1", LONG), ("2", ["1_0", *LONG[1:]])],
        ROWS,
        r"TRAIN.tsv, row 2: .*1_0 is no number",
    ),
    "empty": ([], ROWS, r"TRAIN.tsv: no series"),
    "test label": (ROWS, [("1", LONG), ("3", LONG)], r"TEST.tsv, series 2 has label 3"),
    "one class": (
        [("1", LONG), ("1", LONG)],
        [("1", LONG)] * 2,
        r"TRAIN.tsv has one class, 1; give two or more, or no labels",
    ),
    "one series": (ROWS, ROWS[:1], r"3 train and 1 test series; each split needs 2"),
    "short": (
        *[[("1", LONG[:7]), ("2", LONG[:7])]] * 2,
        r"series of 7 values; a frame of the STFT needs 8",
    ),
    "another length": (
        ROWS,
        [("1", LONG[:8]), ("2", LONG[:8])],
        r"train series of 9 values, test series of 8; all need the same length",
    ),
    "constant": (
        [("1", [0.1] * 9), ("2", [0.1] * 9)],
        ROWS,
        r"mean 0.1, standard deviation .*: nothing to standardise; its values are all alike",
    ),
    "too large": (
        [("1", [1e200] * 9), ("2", [-1e200] * 9)],
        ROWS,
        r"standard deviation inf: nothing",
    ),
    "far": (
        ROWS,
        [("1", LONG), ("2", [1e60] * 9)],
        r"TEST.tsv, series 2 lies over 1e9 standard dev",
    ),
    "split lengths": (
        ROWS,
        [("1", LONG + [9]), ("2", LONG + [9])],
        r"train series of 9 values, test series of 10",
    ),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_bad_file_is_named_with_its_row(tmp_path, fault):
    train, test, message = BAD_FILES[fault]
    write_ucr(tmp_path, train=train, test=test)
    with pytest.raises(InputError, match=message) as error:
        data.load_dataset("Tiny", tmp_path)
    assert "Tiny" in str(error.value) and "\n" not in str(error.value)


def test_other_encodings_are_refused(tmp_path):
    write_ucr(tmp_path, "Latin", train=[("é", LONG), ("è", LONG)], encoding="latin-1")
    with pytest.raises(InputError, match="row 1: .*not UTF-8"):
        data.load_dataset("Latin", tmp_path)
    write_ucr(tmp_path, "Nul", train=[("a", LONG), ("a\0", LONG)])
    with pytest.raises(InputError, match="row 2: .*not UTF-8"):
        data.load_dataset("Nul", tmp_path)


def ts_file(path, *header, rows=("1,2,3,4,5,6,7,8:a", "8,7,6,5,4,3,2,1:b")):
    path.write_text("\n".join([*header, "@data", *rows]) + "\n")
    return path


def test_a_ts_header_is_all_that_stands_before_the_data(tmp_path):
    header = (
        "% a comment",
        "  # another",
        "@problemName X",
        "@univariate true",
        "",
        "@classLabel true a b",
    )
    x, labels = data.read_split(ts_file(tmp_path / "x.ts", *header))
    assert x.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1]]
    assert labels == ["a", "b"]
    bare = ts_file(tmp_path / "x.ts", "@classLabel false", rows=("1,2,3,4,5,6,7,8",) * 2)
    assert data.read_split(bare)[1] is None


@pytest.mark.parametrize(
    "header,rows,message",
    [
        (["@univariate false"], ["1,2:3,4:a"], "x.ts: several channels; one is read"),
        (["@dimensions 2"], ["1,2:3,4:a"], "x.ts: several channels; one is read"),
        (["@classLabel true a"], ["1,2:3,4:a"], "x.ts, row 3: 2 channels; one is read"),
        (["@targetLabel true"], ["1,2:0.3"], "x.ts: a regression target"),
        (["@timestamps true"], ["(0,1),(1,2):a"], "x.ts: time stamps"),
        (["@classLabel true a"], ["1,?,3:a"], "x.ts, row 3: value 2 is missing"),
        (["@classLabel true a"], ["1,2,3"], "x.ts, row 3: no label after a colon"),
    ],
)
def test_a_ts_file_says_why_it_is_not_read(tmp_path, header, rows, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        data.read_split(ts_file(tmp_path / "x.ts", *header, rows=rows))
    assert "\n" not in str(error.value)


def test_thesis_sets_are_counted(tmp_path, capsys):
    write_ucr(tmp_path, name="FordA")
    assert not data.load_dataset("FordA", tmp_path).complete
    said = "train, test, classes, length are (3, 3, 2, 9), Table 5.2 has (3601, 1320, 2, 500)"
    assert said in capsys.readouterr().err


def test_no_complete_set_of_the_thesis_is_warned_of(capsys):
    found = [
        n
        for n in data.THESIS_SETS
        if None not in data.find_splits(n, os.environ.get("UCR_DIR") or HERE / "datasets")
    ]
    if not found:
        pytest.skip("no data")
    for name in found:
        data.load_dataset(name)
    assert capsys.readouterr().err == ""


# ---- own data ----


def test_own_data_with_words_for_labels_and_without_labels(tmp_path):
    x = np.random.default_rng(0).standard_normal((6, 1, 31)) * 7 + 100
    for y in (np.array(["b", "a", "c"] * 2), np.array([b"b", b"a", b"c"] * 2)):
        d = data.load_dataset(npz(tmp_path / "own.npz", X_train=x, y_train=y, X_test=x, y_test=y))
        assert (d.name, d.length, d.classes) == ("own", 31, ["a", "b", "c"])
        assert d.y_train.tolist() == [1, 0, 2] * 2
    d = data.load_dataset(npz(tmp_path / "bare.npz", X_train=x[:, 0], X_test=x[:, 0]))
    assert d.y_train.tolist() == [0] * 6 and d.classes == []
    np.testing.assert_allclose(data.Dataset(**d.info()).to_original(d.x_test), x[:, 0], rtol=1e-6)


def test_the_digest_tells_every_change_of_the_series_and_labels_of_both_splits(tmp_path):
    x = np.random.default_rng(0).standard_normal((6, 9))
    y = np.array(["b", "a", "c"] * 2)
    own = dict(X_train=x, X_test=x + 1, y_train=y, y_test=y)
    digests = {data.load_dataset(npz(tmp_path / "own.npz", **own)).sha256}
    for name in own:
        changed = own[name].copy()
        changed[3] = changed[4]
        path = npz(tmp_path / "own.npz", **own | {name: changed})
        digests.add(data.load_dataset(path).sha256)
    every, words = np.concatenate([x, x + 1]), np.concatenate([y, y])
    for cut in (3, 6, 9):  # where the test split begins
        of = dict(X_train=every[:cut], X_test=every[cut:], y_train=words[:cut], y_test=words[cut:])
        digests.add(data.load_dataset(npz(tmp_path / "own.npz", **of)).sha256)
    renamed = own | {name: np.char.add(own[name], "!") for name in ("y_train", "y_test")}
    digests.add(data.load_dataset(npz(tmp_path / "own.npz", **renamed)).sha256)
    assert len(digests) == 8


@pytest.mark.parametrize(
    "arrays,message",
    [
        (dict(X_train=np.ones((3, 2, 9)), X_test=np.ones((3, 2, 9))), r"\(3, 2, 9\).* one channel"),
        (dict(X_train=np.ones((3, 9))), "needs .*'X_test'"),
        (
            dict(X_train=np.ones((3, 9)), X_test=np.ones((3, 9)), y_train=np.ones(3)),
            "needs y_train and y_test, or neither",
        ),
        (
            dict(X_train=np.ones((3, 9)), X_test=np.ones((3, 9)), y_train=[1, 2], y_test=[1, 2, 1]),
            r"expected \(3,\)",
        ),
        (
            dict(
                X_train=np.ones((3, 9)),
                X_test=np.ones((3, 9)),
                y_train=[1, 2, 1],
                y_test=[1, 2, np.nan],
            ),
            "test, series 3 has label 'nan'",
        ),
        (
            dict(
                X_train=np.ones((3, 9)),
                X_test=np.ones((3, 9)),
                y_train=[1.0, 2.0, 1.0],
                y_test=["1", "2", "?"],  # the missing one is named, not series 1
            ),
            "test, series 3 has label '\\?'",
        ),
        (
            dict(X_train=np.full((3, 9), np.nan), X_test=np.ones((3, 9))),
            "train, series 1 holds NaN",
        ),
        (dict(X_train=np.ones((3, 9)) * 1j, X_test=np.ones((3, 9))), "complex128"),
        (
            dict(X_train=np.array([[1], [1, 2]], dtype=object), X_test=np.ones((3, 9))),
            "own.npz, X_train: an object array; save X_train.astype",
        ),
    ],
)
def test_bad_own_data_is_refused(tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        data.load_dataset(npz(tmp_path / "own.npz", **arrays))


def test_damaged_npz_files_are_refused(tmp_path):
    path = tmp_path / "own.npz"
    np.savez_compressed(path, X_train=np.arange(9000.0).reshape(9, 1000), X_test=np.ones((3, 1000)))
    whole = path.read_bytes()
    np.save(tmp_path / "single.npy", np.ones(3))
    for content in (
        b"",
        b"no zip",
        whole[:300],
        whole[:200] + b"\xff" * 40 + whole[240:],
        (tmp_path / "single.npy").read_bytes(),
        zip_bytes("X_train.npy", "X_test.npy", content=b"?"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match="own.npz"):
            data.load_dataset(str(path))


@pytest.mark.parametrize(
    "header,labelled",
    [
        ("", True),
        ("label,a,b,c,d,e,f,g,h", True),
        ("Class," + ",".join(map(str, range(8))), True),
        ("t0,t1,t2,t3,t4,t5,t6,t7,t8", False),
    ],
)
def test_own_data_as_a_csv_a_split(tmp_path, header, labelled):
    """Label first; with a header, where its first column is called so."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = ["1,0,1,2,3,4,5,6,7", "2,7,6,5,4,3,2,1,0", "1,0,2,4,6,8,6,4,2"]
    for split in ("TRAIN", "TEST"):
        (folder / f"mine_{split}.csv").write_text("\n".join(filter(None, [header, *rows])) + "\n")
    d = data.load_dataset(str(folder))
    assert (d.name, d.length, d.classes) == ("mine", *((8, [1, 2]) if labelled else (9, [])))
    assert d.x_train.shape == (3, d.length)
    assert data.load_dataset("mine", tmp_path).sha256 == d.sha256  # as a set of the archive


@pytest.mark.parametrize(
    "text,message",
    [
        (",label,0,1\n0,a,1,2\n", "row 1: its first column has no name: an index"),
        ('"","V1","V2"\n"1",1,2\n', "row 1: its first column has no name: an index"),
        ("1;0,5;0,7\n", "row 1: semicolons; .csv has commas, and points"),
        ("1,0,NA\n", "row 1: value 2 is missing"),
        (
            '"label","t0","t1"\n"1",a,1,2\n',
            "row 2: 4 cells under a header of 3; mend it, or the header",
        ),
    ],
)
def test_what_other_programs_write_is_refused_by_its_reason(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        data.read_split(tmp_path / "x.csv")


def test_what_other_programs_write_is_read(tmp_path, capsys):
    (tmp_path / "x.csv").write_text("#1,1,2\n#2,3,4\n")  # labels, no comments
    assert data.read_split(tmp_path / "x.csv")[1] == ["#1", "#2"]
    (tmp_path / "x.txt").write_text("# label x\n1.0e+00 1 2\n2.0e+00 3 4\n")  # numpy.savetxt
    x, labels = data.read_split(tmp_path / "x.txt")
    assert x.tolist() == [[1, 2], [3, 4]] and labels == ["1.0e+00", "2.0e+00"]
    arff = "@relation X\n@attribute a numeric\n@data\n1,2,a\n"
    (tmp_path / "x.ts").write_text(arff)
    with pytest.raises(InputError, match="x.ts: an .arff file"):
        data.read_split(tmp_path / "x.ts")
    series = np.random.default_rng(0).standard_normal((6, 12))
    own = npz(tmp_path / "own.npz", X_train=series[..., None], X_test=series[..., None])
    assert data.load_dataset(own).length == 12  # channels last
    low = npz(tmp_path / "low.npz", x_train=series, X_test=series)
    with pytest.raises(InputError, match=r"has \['x_train', 'X_test'\], needs"):
        data.load_dataset(low)
    with pytest.raises(InputError, match="x.ts: own data are an .npz, or a folder: give the"):
        data.load_dataset(str(tmp_path / "x.ts"))
    series[2, 3] = 1e20  # a masked array's
    data.load_dataset(npz(tmp_path / "masked.npz", X_train=series, X_test=series[:2]))
    said = capsys.readouterr().err
    assert said.count("WARNING") == 1 and "series 3 has a value of 1e+20" in said


def test_labels_of_one_split_alone_are_refused_and_words_are_found_as_they_are(tmp_path):
    x = "0,1,2,3,4,5,6,7"
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine_TRAIN.csv").write_text(f"01,{x}\n02,{x[::-1]}\nA,{x}\n")
    (folder / "mine_TEST.csv").write_text(f"01,{x}\nA,{x}\n")
    assert data.load_dataset(str(folder)).label("01") == 0
    (folder / "mine_TEST.csv").write_text(f"a,b,c,d,e,f,g,h\n{x}\n{x}\n")
    with pytest.raises(InputError, match="mine: one split has labels, the other has none"):
        data.load_dataset(str(folder))


@pytest.mark.parametrize(
    "y,message",
    [
        (np.array([1.0, np.nan, 2.0]), "train, series 2 has label 'nan'"),
        (np.array([b"a", b"\xe9", b"b"]), "own.npz, y_train: .*decode"),
        (
            np.array(["a", None, "b"], dtype=object),
            r"own.npz, y_train: an object array; save y_train",
        ),
    ],
)
def test_labels_are_read_one_way_everywhere(tmp_path, y, message):
    x = np.ones((3, 9)) * np.arange(9)
    with pytest.raises(InputError, match=message) as error:
        data.load_dataset(
            npz(tmp_path / "own.npz", X_train=x, X_test=x, y_train=y, y_test=np.array([1, 2, 1]))
        )
    assert "\n" not in str(error.value)


def test_arrays_that_are_not_asked_for_are_not_read(tmp_path):
    x, y = np.ones((4, 9)) * np.arange(9), np.array(["a", "b"] * 2)
    notes = np.array([{"by": "me"}], dtype=object)
    own = npz(tmp_path / "own.npz", X_train=x, y_train=y, X_test=x, y_test=y, notes=notes)
    assert data.load_dataset(own).classes == ["a", "b"]


def test_numbers_that_mislead_are_a_warning(tmp_path, capsys):
    def said(**changes):
        x = np.random.default_rng(0).standard_normal((20, 30))
        y = np.arange(20) % 2
        for row, value in changes.get("x", {}).items():
            x[row] = x[row] * value if changes.get("scale") else np.where(x[row] > 2, value, x[row])
        d = data.load_dataset(
            npz(
                tmp_path / "own.npz",
                X_train=x,
                y_train=changes.get("y", y),
                X_test=x,
                y_test=changes.get("y", y),
            )
        )
        return capsys.readouterr().err, d

    assert said()[0] == ""
    assert "as many classes as train series, 20: is" in said(y=np.arange(20))[0]
    missing, _ = said(x=dict.fromkeys(range(20), -9999.0))
    assert re.search("own.npz, train, series .* has a value of -9999 where nine of ten", missing)
    small, _ = said(x=dict.fromkeys(range(0, 20, 2), 1000.0), scale=True)
    assert "series 2 and 9 others vary 500 times less" in small


# ---- settings and commands ----


WRONG = """stage1_batch=0 stage1_batch=1 stage1_batch=-5 stage1_lr=nan stage1_lr=inf stage1_lr=-1
stage1_lr=0 stage2_lr=nan fcn_lr=-1 stage1_weight_decay=nan stage1_weight_decay=inf
stage1_weight_decay=-1 n_codes=0 width=0 latent_width=0 latent_width=-3 prior_layers=0
prior_layers=-1 prior_heads=0 prior_heads=3 prior_hidden=0 prior_hidden=-32 projector_dim=0
projector_dim=100 ema_decay=1 ema_decay=2 ema_decay=-0.1 ema_initial_count=-1 class_dropout=1.1
class_dropout=-1 class_dropout=nan choice_temperature=nan token_temperature=nan token_temperature=-1
guidance=nan guidance=inf decode_steps=0 decode_steps=-1 n_fft=6 n_fft=0 seed=-1
seed=99999999999999999999 stage1_epochs=0 stage2_epochs=0 stage1_steps=-3 beta=nan zeta=-1 eta=inf
residual_kernel=2 residual_norm=7 precision=half embedding=none loss_on=some stages=3 fcn_batch=0
fcn_epochs=0 cas_epochs=-2 validate_epochs=-1 prior_ff_ratio=0""".split()


@pytest.mark.parametrize("wrong", WRONG)
def test_a_value_out_of_range_is_refused_in_one_line(tmp_path, capsys, monkeypatch, wrong):
    name, value = wrong.split("=")
    flag = "--" + name.replace("_", "-")
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "ncvqvae.py",
            str(tmp_path / "run"),
            "--method",
            "vibcreg",
            "--augmentation",
            "slice",
            f"{flag}={value}",
        ],
    )
    with pytest.raises(SystemExit) as stop:
        data.run_command(ncvqvae.main)
    assert flag in str(stop.value.code) and value in str(stop.value.code)
    assert "\n" not in str(stop.value.code)
    assert not (tmp_path / "run").exists() and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "fields,message",
    [
        (dict(method="nave"), "--method nave"),
        (dict(method="naive", augmentation="warp"), "none is for naive alone"),
        (dict(method="barlow"), "none is for naive alone"),
        (dict(method="barlow", augmentation="wrap"), "wrap: should be names of"),
        (dict(method="barlow", augmentation="warp+none"), "warp.none: should be names of"),
        (dict(views=2), "--views 2"),
        (dict(bands=3), "--bands 3"),
        (dict(dataset=3), "--dataset 3"),
        (dict(seed=True), "--seed True"),
        (dict(seed=1.0), "--seed 1.0"),
    ],
)
def test_a_config_that_cannot_train_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Config(**fields)


def test_every_field_has_a_help_and_every_number_its_bounds():
    for f in dataclasses.fields(Config):
        if f.type is not str:
            assert f.metadata["bounds"].accepts(f.default) and not f.metadata["bounds"].accepts(
                math.nan
            )
            assert not f.metadata["bounds"].accepts(str(f.default) + "x")
    parser = data.Parser()
    data.add_flags(parser)
    assert all(len(action.help) > 5 for action in parser._actions)


def test_flags_win_over_the_preset_and_epochs_over_its_steps():
    def parse(*words):
        parser = data.Parser(allow_abbrev=False)
        data.add_flags(parser)
        return data.make_config(parser.parse_args(words))

    assert parse().stage1_steps == data.PRESETS["toy"]["stage1_steps"]
    assert parse("--preset", "thesis") == Config()
    assert parse("--dataset", "Symbols") == Config(dataset="Symbols")
    fast = parse(
        "--dataset", "Symbols", "--preset", "fast", "--stage2-steps", "7", "--stage1-epochs", "3"
    )
    assert (fast.stage1_epochs, fast.stage1_steps) == (3, 0)
    assert (fast.stage2_steps, fast.stage1_lr) == (7, 3e-3)
    parser = data.Parser()
    data.add_flags(parser)
    best = dataclasses.asdict(Config(**data.PRESETS["best"]))
    for words, noise in (([], 16), (["--preset", "fast"], 4), (["--preset", "thesis"], 4)):
        config = data.make_config(parser.parse_args(words), best)
        assert config.choice_temperature == noise and config.latent_width == 32  # as trained
    for words, message in (
        (["--zeta"], "expected one argument"),
        (["--zet", "1"], "unrecognized"),
        (["--seed", "x"], "invalid int"),
        (["--preset", "slow"], "invalid choice"),
    ):
        with pytest.raises(InputError, match=message):
            parse(*words)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (
            ("toy", "naive", "none", "1", "--no-such-flag", "3"),
            "unrecognized arguments: --no-such-flag",
        ),
        (("toy,", "naive"), "DATASET is empty"),
        (("", "naive"), "DATASET is empty"),
        (("toy", ""), "--method : should be"),
        (("toy", "naive", "none", ""), "SEED : should be"),
        (("toy", "naive", "none", "1", "5"), "too many positions"),
        (("test", "--help"), "test takes --slow alone, not '--help'"),
        (("toy", "--seed", "3"), "--seed: goes without a flag: DATASET METHOD"),
        (("toy", "naive", "--dataset=FordA"), "--dataset=FordA: goes without a flag"),
        (("a,b", "naive"), "'a,b': rename it: a comma stands"),
        (("-x.npz", "naive"), "-x.npz: no such file"),
        (("--preset", "fast", "Coffee"), "Coffee; DATASET METHOD AUGMENTATION SEED come first"),
        (("toy", "-n", "3"), "unrecognized arguments: -n 3; DATASET METHOD"),
        (("toy", "naive", "--", "--zeta", "3"), "unrecognized arguments: "),
        (("toy", "--datasets", "x"), "--datasets: goes without a flag"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(tmp_path, arguments, message):
    (tmp_path / "a,b").touch()
    done = shell(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("nave", "none", "1"), "--method nave"),
        (("naive", "none", "one"), "SEED one"),
        (("naive", "none", "1", "--zeta"), "expected one argument"),
        (("naive,barlow", "none,wrap", "1"), "--augmentation"),
        (("naive", "none", "1", "--stage2-lr=-1"), "--stage2-lr -1"),
    ],
)
def test_every_value_of_the_grid_is_checked(arguments, message):
    """By data.py, which run.sh asks first."""
    with pytest.raises(InputError, match=message) as error:
        command(data, *arguments)
    assert "\n" not in str(error.value)


def test_the_grid_is_checked_with_the_preset_that_its_dataset_has():
    """A prior of the thesis has 256 hidden units, toy's 128: 256 heads divide the former alone."""
    words = ("naive", "none", "1", "--prior-heads", "256", "--dry-run", "--datasets")
    command(data, *words, "FordA")
    with pytest.raises(InputError, match="--prior-heads 256"):
        command(data, *words, "FordA", "toy")


def test_a_grid_that_asks_for_help_gets_it_and_runs_nothing(tmp_path):
    for words in (["toy", "naive", "-h"], ["toy", "naive", "none", "1", "--zeta", "1", "-h"]):
        done = shell(*words, cwd=tmp_path)
        assert done.returncode == 0 and "all settings of all stages" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_paths_are_looked_up_before_anything_runs_and_kept(tmp_path, monkeypatch):
    own_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    npz("bad.npz", X_train=np.full((3, 31), np.nan), X_test=np.ones((3, 31)))
    with pytest.raises(InputError, match="bad.npz, train, series 1 holds NaN"):
        command(data, "naive", "none", "1", "--datasets", "own.npz", "bad.npz")
    with pytest.raises(InputError, match="typo.npz: no such file"):
        command(data, "naive", "none", "1", "--datasets", "own.npz", "typo.npz")
    with pytest.raises(InputError, match="mine: no such file, or no folder with mine_TRAIN.csv"):
        command(data, "naive", "none", "1", "--datasets", "own.npz", "./mine")
    command(data, "naive", "none", "1", "--datasets", "own.npz", "~/own.npz", "toy")
    command(ncvqvae, tmp_path / "r", "--dataset", "own.npz", "--stage1-steps", 1, "--width", 8)
    config = data.read_config(tmp_path / "r")
    assert config.dataset == str(tmp_path.resolve() / "own.npz")  # from any folder
    (tmp_path / "cut.npz").write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"np.savez\(file, X_train=array, X_test=array\)"):
        data.load_dataset(str(tmp_path / "cut.npz"))
    monkeypatch.setenv("UCR_DIR", "~/ucr")
    write_ucr(tmp_path / "ucr")
    assert data.load_dataset("Tiny").length == 9


# ---- samples ----


def test_samples_of_all_classes_and_files_that_are_not_ours(tmp_path, capsys, monkeypatch):
    no_figures(monkeypatch)
    run, own = tmp_path / "own/naive-none/seed1", own_data(tmp_path)
    run_all(run, tiny_config(stage1_steps=1, stage2_steps=1, dataset=own, stages=2))
    out = tmp_path / "x.npz"
    for _ in range(2):  # over a file of ours
        command(prior, "sample", run, "--n", 8, "--class", "all", "--out", out)
    with np.load(out) as s:  # 6, 6, 12 of 24
        assert sorted(s["y"]) == ["down"] * 2 + ["flat"] * 2 + ["up"] * 4
    before = Path(own).read_bytes()
    for module, words in ((prior, ("sample", run)), (ncvqvae, ("encode", run, out))):
        with pytest.raises(InputError, match="own.npz: is there and is no file of ours"):
            command(module, *words, "--out", own)
    assert Path(own).read_bytes() == before

    command(ncvqvae, "encode", run, out, "--out", tmp_path / "tokens.npz")
    for module, words, key in (
        (prior, ("sample", run, "--out", tmp_path / "tokens.npz"), "X"),
        (ncvqvae, ("encode", run, out, "--out", out), "tokens"),  # over its own input
    ):
        with pytest.raises(InputError, match=f"is there and is no file of ours with {key}"):
            command(module, *words)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/config.json").write_text("{}")  # of another program
    for _ in range(2):
        command(prior, "sample", run, "--n", 2, "--out", tmp_path / "elsewhere/x.npz")
    with monkeypatch.context() as patch:
        patch.setattr(prior, "sample", lambda *inputs: pytest.fail("draws what it cannot write"))
        with pytest.raises(InputError, match="--out /proc/x.npz: cannot be used"):
            command(prior, "sample", run, "--out", "/proc/x.npz")
    model, checkpoint = ncvqvae.load_stage1(run)
    d = data.Dataset(**checkpoint["data"])
    with np.load(out) as s, np.load(tmp_path / "tokens.npz") as t:
        x = d.standardise(s["X"][:, 0])
        assert np.array_equal(t["tokens"], model.tokens(x))
        z_q = model.codebook()[torch.from_numpy(t["tokens"])].mean(1)
        np.testing.assert_allclose(t["z_q"], z_q, atol=1e-5)
        x_hat = d.to_original(model.series(torch.from_numpy(t["tokens"])))
        np.testing.assert_allclose(t["X_hat"][:, 0], x_hat, rtol=1e-4)


@pytest.mark.parametrize(
    "arrays,message",
    [
        (dict(X=np.full((3, 31), np.nan)), "X: series 1 holds NaN, inf"),
        (
            dict(X=np.r_[np.ones((2, 31)), np.full((1, 31), 1e12)]),
            "X: series 3 holds NaN, inf, or a",
        ),
        (dict(X=np.ones((3, 30))), "X: length 30, own has 31"),
        (dict(X=np.ones((1, 31))), "1 series;"),
        (dict(X=np.ones((3, 2, 31))), "2 channels"),
        (dict(Y=np.ones((3, 31))), r"has \['Y'\], needs \['X'\]"),
        (dict(X=np.ones((3, 31)), y=["up"]), r"y: \(1,\), expected \(3,\)"),
        (dict(X=np.ones((2, 31)), y=[b"up", b"side"]), "class side: own has down"),
    ],
)
def test_a_peers_samples_are_refused_by_what_is_wrong_with_them(tmp_path, arrays, message):
    own = own_data(tmp_path)
    with pytest.raises(InputError, match=message):
        command(evaluate, "samples", npz(tmp_path / "peer.npz", **arrays), "--dataset", own)


@pytest.mark.parametrize("labels", [("7" * 23, "8" * 23), ("1", str(2**63 + 1))])
def test_samples_of_classes_whose_labels_are_large_are_read_again(tmp_path, labels):
    words = np.array(labels * 5)
    x = 50 + np.random.default_rng(0).standard_normal((10, 31))
    own = npz(tmp_path / "own.npz", X_train=x, X_test=x, y_train=words, y_test=words)
    d = data.load_dataset(own)
    assert d.classes == list(map(int, labels))
    prior.save_samples(tmp_path / "x.npz", d, torch.tensor([0, 1]), X=d.x_train[:2])
    y = data.read_arrays(tmp_path / "x.npz", ("X", "y"), needed=("X", "y"))["y"]
    assert [d.label(word) for word in y] == [0, 1]


def test_an_npy_is_no_npz_and_says_so(tmp_path):
    np.save(tmp_path / "gen.npy", np.ones((3, 31)))
    message = r"gen.npy: no .npz, or a cut one; np.savez\(file, X=array\)"
    with pytest.raises(InputError, match=message):
        command(evaluate, "samples", tmp_path / "gen.npy", "--dataset", own_data(tmp_path))


# ---- first lines, separators, missing values: one rule for .tsv, .txt and .csv ----

SERIES = [[1.5, 1, 2, 3, 2, 1, 0, 1], [2, 2, 1, 0, 1, 2, 3, 2.5], [0, 1, 0, 2, 1, 2, 3, 3]]


def table(path, first=None, labels="aba", separator=","):
    """Write SERIES behind a first line, with labels or (None) without."""
    lines = [] if first is None else [first]
    for i, values in enumerate(SERIES):
        cells = ([labels[i]] if labels else []) + [str(value) for value in values]
        lines.append(separator.join(cells))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("suffix,separator", [(".csv", ","), (".tsv", "\t"), (".txt", " ")])
@pytest.mark.parametrize(
    "header",
    [
        "label 0 1 2 3 4 5 6 7",
        "label 1 2 3 4 5 6 7 8",
        "y 0.0 0.5 1.0 1.5 2.0 2.5 3.0 3.5",
        "label 0.0 0.333 0.667 1.0 1.333 1.667 2.0 2.333",  # rounded, so not in even steps
        "label 0 0 1 1 2 2 3 3",
        "class 4000 3998 3996 3994 3992 3990 3988 3986",  # wavenumbers of a spectrum
        "target 40 30 20 10 5 4 3 2",
    ],
)
def test_a_header_of_numbers_is_no_series(tmp_path, suffix, separator, header, capsys):
    path = table(tmp_path / f"x{suffix}", header.replace(" ", separator), separator=separator)
    x, labels = data.read_split(path)
    assert x.tolist() == SERIES and labels == list("aba") and not capsys.readouterr().err


def test_a_header_whose_first_column_is_another_name_says_how_it_is_read(tmp_path, capsys):
    x, labels = data.read_split(
        table(tmp_path / "x.tsv", "activity\t" + "\t".join("01234567"), separator="\t")
    )
    assert x.tolist() == SERIES and labels == list("aba")  # a .tsv has labels
    said = capsys.readouterr().err
    assert "x.tsv, row 1: read as a header, not as a series of class activity" in said
    header = "activity,t0,t1,t2,t3,t4,t5,t6,t7"
    with pytest.raises(InputError, match="row 2: could not convert string to float: 'a'"):
        data.read_split(table(tmp_path / "x.csv", header))
    x, labels = data.read_split(table(tmp_path / "x.csv", header, labels="121"))
    assert labels is None and x.shape == (3, 9)
    assert "the first column, activity, is read as a value" in capsys.readouterr().err
    for plain in ("t0,t1,t2,t3,t4,t5,t6,t7", "0,1,2,3,4,5,6,7"):
        x, labels = data.read_split(table(tmp_path / "x.csv", plain, labels=None))
        assert x.tolist() == SERIES and labels is None and not capsys.readouterr().err
    for unnamed in ("V1,V2,V3,V4,V5,V6,V7,V8,V9", "0,1,2,3,4,5,6,7,8"):  # of R, of pandas
        x, labels = data.read_split(table(tmp_path / "x.csv", unnamed, labels="121"))
        assert labels is None and x.shape == (3, 9)
        said = capsys.readouterr().err
        assert f"the first column, {unnamed.split(',')[0]}, is read as a value" in said
        table(tmp_path / "x.csv", unnamed, labels="000")  # series that all begin at 0
        assert data.read_split(tmp_path / "x.csv")[1] is None and not capsys.readouterr().err


@pytest.mark.parametrize(
    "header", ["a,b,c,d,e,f,g,h,label", "id,class,c,d,e,f,g,h,i", "0,1,2,3,4,5,6,7,y"]
)
def test_a_label_column_that_is_not_the_first_is_refused(tmp_path, header):
    with pytest.raises(InputError, match=r"x.csv, row 1: column \d is called \w+; put it first"):
        data.read_split(table(tmp_path / "x.csv", header, labels="121"))


@pytest.mark.parametrize(
    "cell", ["-inf", "n/a", "#N/A", "-", "--", ".", "NULL", "<NA>", "0.5o", "1_0"]
)
def test_a_wrong_value_makes_no_header_of_the_first_line(tmp_path, cell):
    path = table(tmp_path / "x.csv")
    path.write_text(path.read_text().replace("a,1.5", f"a,{cell}", 1))
    if cell == "-inf":
        assert data.read_split(path)[0].shape == (3, 8)  # refused with its row later
        return
    with pytest.raises(InputError, match="x.csv, row 1: "):
        data.read_split(path)


@pytest.mark.parametrize(
    "name,text,message",
    [
        ("x.csv", "My measurements\na,1,2\n", "row 1: expects commas between values"),
        ("x.csv", "1 2 3\n1 2 3\n", "row 1: expects commas between values"),
        ("x.txt", "1,2,3\n", "row 1: expects blanks between values"),
        ("x.txt", "1, 2, 3\n", "row 1: expects blanks between values"),
        ("x.tsv", "1 2 3\n", "row 1: expects tabs between values"),
        ("x.tsv", "1,2,3\n", "row 1: expects tabs between values"),
        ("x.csv", "label,t0,t1\na,1,2\nlabel,t0,t1\nb,2,3\n", "row 3: the header once more"),
        ("x.tsv", "1 2 3 " * 30000, "row 1: expects tabs between values"),
        ("x.tsv", "1\t1\t2\t\n1\t1\t2\t3\n", "row 1: value 3 is missing"),
    ],
)
def test_separators_and_titles_are_said(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        data.read_split(tmp_path / name)


def test_an_index_in_front_is_seen_in_every_format(tmp_path):
    for suffix, separator in ((".csv", ","), (".tsv", "\t")):
        path = tmp_path / f"x{suffix}"
        path.write_text(",label,0,1\n0,1,1,2\n1,2,2,3\n".replace(",", separator))
        with pytest.raises(InputError, match="row 1: its first column has no name: an index"):
            data.read_split(path)


def test_quotes_belong_to_no_cell(tmp_path):
    (tmp_path / "x.csv").write_text('"label","t0","t1"\n"a, b","1.5","2"\n"c","3","4e0"\n')
    x, labels = data.read_split(tmp_path / "x.csv")
    assert x.tolist() == [[1.5, 2], [3, 4]] and labels == ["a, b", "c"]


def test_a_first_line_in_even_steps_is_asked_about(tmp_path, capsys):
    data.read_split(table(tmp_path / "x.csv", "1,2,3,4,5,6,7,8,9", labels="121"))
    assert "the first series rises in even steps, no other does" in capsys.readouterr().err
    data.read_split(table(tmp_path / "x.csv", labels="121"))
    assert not capsys.readouterr().err


def test_a_class_called_y_or_target_keeps_its_first_series(tmp_path):
    path = table(tmp_path / "x.csv", "y,1,2,4,8,16,32,64,128", labels="yny")
    assert data.read_split(path)[1] == list("yyny")
    path = table(tmp_path / "x.csv", "target,1,2,1,2,3,2,1,0", labels="ttt")
    assert data.read_split(path)[1] == ["target", *"ttt"]


def test_both_splits_are_read_in_one_format(tmp_path, capsys):
    table(tmp_path / "st_TRAIN.csv")
    table(tmp_path / "st_TEST.csv")
    table(tmp_path / "st_TRAIN.tsv", separator="\t", labels="bbb")
    folder = tmp_path / "st"
    folder.mkdir()
    for path in tmp_path.glob("st_*"):
        path.rename(folder / path.name)
    assert [path.suffix for path in data.find_files(str(folder))] == [".csv", ".csv"]
    assert "TRAIN is there as .tsv, .csv, TEST as .csv; .csv is read" in capsys.readouterr().err


def test_nothing_of_the_users_is_replaced_by_a_download(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "download_dataset", lambda *names: pytest.fail("downloads"))
    monkeypatch.chdir(tmp_path)
    for name, file in (("Half", "Half_TRAIN.ts"), ("Arff", "Arff_TRAIN.arff")):
        (tmp_path / "ucr" / name).mkdir(parents=True)
        (tmp_path / "ucr" / name / file).write_text("mine")
        with pytest.raises(InputError, match=f"{name}: has {file}; needs {name}_TRAIN and"):
            data.load_dataset(name, tmp_path / "ucr")
        assert (tmp_path / "ucr" / name / file).read_text() == "mine"
    own_data(tmp_path, name="mine.npz")
    (tmp_path / "folder").mkdir()
    for name, path in (("mine", "mine.npz"), ("folder", "folder")):
        with pytest.raises(InputError, match=f"for what is here write ./{path}"):
            data.load_dataset(name, tmp_path / "ucr")


@pytest.mark.parametrize("code,places", [(-9999, 0.3), (1e20, 0.3), (-999, 0.002)])
def test_codes_for_missing_values_are_asked_about_however_many(tmp_path, capsys, code, places):
    x = np.random.default_rng(0).standard_normal((20, 50))
    x[:, : max(1, int(50 * places))] = code
    data.load_dataset(npz(tmp_path / "own.npz", X_train=x, X_test=x[::-1]))
    assert f"series 1 has a value of {code:g}" in capsys.readouterr().err
    mostly_zero = np.where(np.abs(x) < 1.5, 0, x)
    mostly_zero[:, :15] = 0
    mostly_zero[3, 4] = -9999
    data.load_dataset(npz(tmp_path / "zero.npz", X_train=mostly_zero, X_test=mostly_zero))
    assert "series 4 has a value of -9999" in capsys.readouterr().err


def test_labels_with_blanks_are_one_class_and_a_missing_one_is_said(tmp_path):
    x = np.random.default_rng(0).standard_normal((4, 12))

    def load(*labels):
        y = np.array(labels)
        return data.load_dataset(npz(tmp_path / "o.npz", X_train=x, y_train=y, X_test=x, y_test=y))

    assert load("walk", "walk ", "run", "run").classes == ["run", "walk"]
    with pytest.raises(InputError, match="series 2 has label 'none', which stands for a missing"):
        load("mild", "none", "mild", "severe")
    with pytest.raises(InputError, match="series 3 has label '<NA>', which stands for a missing"):
        load("mild", "severe", "<NA>", "severe")  # pandas
    (tmp_path / "x.csv").write_text(",1,5,2\na,3,4,5\n")  # no header: it is refused by its row
    assert data.read_split(tmp_path / "x.csv")[1] == ["", "a"]


def test_samples_of_other_units_are_asked_about(tmp_path, capsys):
    own = data.load_dataset(own_data(tmp_path))
    raw = own.to_original(own.x_test)
    own.check_and_standardise(raw, "x.npz, X")
    assert not capsys.readouterr().err
    own.check_and_standardise((raw - own.mean) / own.std, "x.npz, X")
    assert "x.npz, X: mean" in capsys.readouterr().err
    with pytest.raises(InputError, match="x.npz, X: 0 series"):
        own.check_and_standardise(raw[:0], "x.npz, X")
    with warnings.catch_warnings(), pytest.raises(InputError, match="series 1 holds"):
        warnings.simplefilter("error")  # NumPy's would be a second line
        small = dataclasses.replace(own, std=0.1)
        small.check_and_standardise(np.full_like(raw, 1e308), "x.npz, X")


def test_a_refused_or_narrower_command_leaves_a_finished_run_as_it_is(tmp_path, monkeypatch):
    no_figures(monkeypatch)
    run, own = tmp_path / "own/naive-none/seed1", own_data(tmp_path)
    short = {"dataset": own, "stage1_steps": 1, "stage2_steps": 1, "guidance": 1.5}
    config = tiny_config(**short)
    run_all(run, config)
    before = (run / "config.json").read_bytes()
    for other in ({"guidance": 5.0}, {"stage2_steps": 2}, {"cas_epochs": 2}):
        with pytest.raises(InputError, match="made with"):
            ncvqvae.train_stage1(run, dataclasses.replace(config, **other))
        assert (run / "config.json").read_bytes() == before
    (tmp_path / "moved").mkdir()
    moved = shutil.copy(own, tmp_path / "moved/own.npz")
    ncvqvae.train_stage1(run, tiny_config(dataset=str(moved), stage1_steps=1, stages=1))
    kept = data.read_config(run)
    assert (kept.stages, kept.guidance, kept.stage2_steps) == (1, 1.5, 1)
    assert kept.dataset == str(moved)
    assert evaluate.evaluate_run(run)["stages"] == 2  # finished before
    ncvqvae.train_stage1(run, config)
    assert (run / "config.json").read_bytes() == before


def test_output_files_replace_files_of_ours_alone_and_none_of_a_run(tmp_path, monkeypatch, capsys):
    no_figures(monkeypatch)
    run = tmp_path / "own/naive-none/seed1"
    run_all(run, tiny_config(dataset=own_data(tmp_path), stage1_steps=1, stage2_steps=1))
    theirs = npz(tmp_path / "theirs.npz", X=np.zeros((2, 31)), y=np.array(["up", "down"]))
    for out, message in (
        (theirs, "is there and is no file of ours"),
        (run / "samples.npz", "is a file of that run"),
    ):
        before = Path(out).read_bytes()
        with pytest.raises(InputError, match=message):
            command(prior, "sample", run, "--n", "2", "--out", out)
        with pytest.raises(InputError, match=message):
            command(ncvqvae, "encode", run, theirs, "--out", out)
        assert Path(out).read_bytes() == before
    for _ in range(2):
        command(prior, "sample", run, "--n", "2", "--class", "all", "--out", tmp_path / "x.npz")
    assert "--n 2: too few series, none is of class" in capsys.readouterr().err
    monkeypatch.setenv("HOME", str(tmp_path))
    command(prior, "sample", run, "--n", "2", "--out", "~/home.npz")
    assert (tmp_path / "home.npz").exists()


def test_numbers_of_numpy_and_paths_are_settings_too(tmp_path):
    config = Config(seed=np.int64(3), stage1_lr=np.float64(0.5), dataset="toy")
    assert type(config.seed) is int and config == Config(seed=3, stage1_lr=0.5)
    assert str(Config(fcn_weight_decay=0).settings_of("fcn")["fcn_weight_decay"]) == "0.0"
    assert data.load_dataset(Path(own_data(tmp_path))).length == 31


def test_a_link_to_data_has_the_name_of_the_link(tmp_path):
    (tmp_path / "link.npz").symlink_to(own_data(tmp_path, name="3f8a"))
    (tmp_path / "3f8a.npz").rename(tmp_path / "3f8a")
    assert data.load_dataset(tmp_path / "link.npz").name == "link"
    with pytest.raises(InputError, match="~nosuchuser/x.npz: no such file"):
        data.load_dataset("~nosuchuser/x.npz")


def test_a_folder_of_a_run_elsewhere_keeps_its_own_classifier(tmp_path):
    out = tmp_path.resolve()
    assert evaluate.shared_folder(out / "own/naive-none/seed12") == out / "own"
    assert evaluate.shared_folder(out / "own/scored/x") == out / "own"
    assert evaluate.shared_folder(out / "seed1") == out / "seed1"  # nothing above it is ours
    assert evaluate.shared_folder(out / "myrun") == out / "myrun"


def test_commands_on_what_is_not_there_make_nothing(tmp_path):
    for words in (("run", tmp_path / "none"), ("compare", tmp_path / "none")):
        with pytest.raises(InputError, match="none"):
            command(evaluate, *words)
    assert not (tmp_path / "none").exists()


def test_a_grid_whose_sets_share_a_folder_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = own_data(tmp_path / "a"), own_data(tmp_path / "b")
    done = shell(f"{one},{two}", "naive", cwd=tmp_path)
    assert done.returncode == 2 and "would share the folder own" in done.stderr
    assert not (tmp_path / "runs").exists()
    done = shell(one, "naive", "none", "²", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("a whole number")


def test_run_sh_names_a_folder_by_what_it_is_and_needs_no_home(tmp_path):
    (tmp_path / "mine").mkdir()
    table(tmp_path / "mine/mine_TRAIN.csv")
    table(tmp_path / "mine/mine_TEST.csv")
    words = ("naive", "none", "1", *TINY, "--n-fft=4", "--stages=1")
    env = {name: value for name, value in os.environ.items() if name != "HOME"}
    env |= {"PYTHON": sys.executable, "OUT": "out", "OMP_NUM_THREADS": "1", "DEVICE": "cpu"}
    done = subprocess.run(
        ["bash", str(HERE / "run.sh"), ".", *words],
        cwd=tmp_path / "mine",
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine/out/mine/naive-none/seed1/metrics.json").exists()
    env = {"OUT": str(tmp_path / "mine/out"), "CDPATH": str(tmp_path.parent)}
    done = shell(f"{tmp_path.name}/mine", *words, cwd=tmp_path.parent, **env)
    assert "mine/naive-none/seed1/metrics.json: finished before" in done.stderr
    done = shell("--dry-run", cwd=tmp_path, OUT="~", HOME=str(tmp_path))
    assert f"env OUT={tmp_path} " in done.stdout


def test_progress_that_nobody_reads_stops_no_run(tmp_path):
    own = own_data(tmp_path)
    words = [f"--dataset={own}", "--method=naive", *TINY]
    with open("/dev/full", "w") if os.path.exists("/dev/full") else open(os.devnull, "w") as full:
        done = subprocess.run(
            [sys.executable, str(HERE / "ncvqvae.py"), str(tmp_path / "run"), *words], stderr=full
        )
    assert done.returncode == 0 and (tmp_path / "run/stage1.pt").exists()
    done = subprocess.run(
        [sys.executable, str(HERE / "ncvqvae.py"), "--help"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "--method" in done.stdout
