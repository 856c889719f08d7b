"""All tests: bash run.sh test (under 3 minutes on 2 cores); bash run.sh test --slow runs the long ones too.

In the order of the thesis: data (§5.2), augmentations (§5.1.1), stage 1 (§4.1.1), losses (§3.3), prior (§3.2, §4.1.2),
metrics (§2.7), then whole runs. An oracle is a slow transcription of the equation, in loops and float64, written here.
"""
import contextlib, csv, dataclasses, gzip, importlib.util, io, json, math, os, random, re, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data, evaluate, ncvqvae, prior
from data import InputError
from ncvqvae import NCVQVAE, Stage1Config
from prior import Prior, PriorConfig

HERE = Path(__file__).resolve().parent


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def assert_same_gradient(fast, slow, *inputs):
    """Value and gradient of two scalar functions agree."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    a, b = fast(*inputs), slow(*inputs)
    torch.testing.assert_close(a, b)
    for ga, gb in zip(torch.autograd.grad(a, inputs), torch.autograd.grad(b, inputs)):
        torch.testing.assert_close(ga, gb)


# ------------------------------------------------------------------------------------------------------ data (§5.2)

ROWS = [("1", [0.0, 1, 2, 3, 4, 5, 6, 7, 8]), ("2", [8.0, 7, 6, 5, 4, 3, 2, 1, 0]), ("1", [0.5, 1, 2, 3, 4, 5, 6, 7, 9])]


def write_ucr(root, name="Tiny", suffix=".tsv", train=ROWS, test=ROWS, newline="\n", encoding="utf-8"):
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
        (folder / f"{name}_{split}{suffix}").write_bytes((newline.join(lines) + newline).encode(encoding))
    return folder


@pytest.mark.parametrize("suffix", [".tsv", ".ts", ".txt"])
@pytest.mark.parametrize("newline,encoding", [("\n", "utf-8"), ("\r\n", "utf-8-sig")])
def test_reading_standardises_by_the_train_split_and_keeps_labels(tmp_path, suffix, newline, encoding):
    write_ucr(tmp_path, suffix=suffix, newline=newline, encoding=encoding, test=ROWS[:2])
    d = data.load_dataset("Tiny", tmp_path, download=False)
    raw = np.array([x for _, x in ROWS])
    assert d.mean == pytest.approx(raw.mean()) and d.std == pytest.approx(raw.std())
    np.testing.assert_allclose(d.x_test * d.std + d.mean, raw[:2], atol=1e-6)
    assert d.y_train.tolist() == [0, 1, 0] and d.classes == [1, 2] and d.x_train.dtype == torch.float32


def test_labels_are_one_class_however_they_are_spelled(tmp_path):
    write_ucr(tmp_path, train=[("1", ROWS[0][1]), ("-1.0", ROWS[1][1])], test=[("1.0000e+00", ROWS[0][1]), ("-1", ROWS[1][1])])
    d = data.load_dataset("Tiny", tmp_path, download=False)
    assert d.classes == [-1, 1] and d.y_test.tolist() == [1, 0]


LONG = list(range(9))
BAD_FILES = {
    "NaN": ([("1", LONG), ("2", [math.nan, *LONG[1:]])], ROWS, r"TRAIN.tsv, row 2: value 1 is nan"),
    "inf": (ROWS, [("1", LONG), ("2", [*LONG[:-1], math.inf])], r"TEST.tsv, row 2: value 9 is inf"),
    "lengths": ([("1", LONG), ("2", LONG[1:])], ROWS, r"TRAIN.tsv, row 2: length 8, but row 1 has 9"),
    "word": ([("1", LONG), ("2", ["x", *LONG[1:]])], ROWS, r"TRAIN.tsv, row 2: 'x' is not a number"),
    "empty": ([], ROWS, r"TRAIN.tsv: no series"),
    "test label": (ROWS, [("1", LONG), ("3", LONG)], r"TEST.tsv, series 2 has label 3"),
    "one class": ([("1", LONG), ("1", LONG)], ROWS, r"TRAIN.tsv has the one class 1"),
    "one series": (ROWS, ROWS[:1], r"TEST.tsv has 1 series"),
    "short": ([("1", LONG[:7]), ("2", LONG[:7])],) * 2 + (r"length 7, at least 8",),
    "constant": ([("1", [5.0] * 9), ("2", [5.0] * 9)], ROWS, r"every value .* is 5, its standard deviation is 0"),
    "split lengths": (ROWS, [("1", LONG + [9]), ("2", LONG + [9])], r"length 9 in .* but 10 in"),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_bad_file_is_named_with_its_row(tmp_path, fault):
    train, test, message = BAD_FILES[fault]
    write_ucr(tmp_path, train=train, test=test)
    with pytest.raises(InputError, match=message) as error:
        data.load_dataset("Tiny", tmp_path, download=False)
    assert "Tiny" in str(error.value) and "\n" not in str(error.value)


def test_thesis_sets_are_counted(tmp_path, capsys):
    write_ucr(tmp_path, name="FordA")
    assert not data.load_dataset("FordA", tmp_path).complete
    assert "training series 3 of 3601" in capsys.readouterr().err


def npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def test_own_data_with_words_for_labels_and_without_labels(tmp_path):
    x = np.random.default_rng(0).standard_normal((6, 1, 31)) * 7 + 100
    y = np.array(["b", "a", "c"] * 2)
    d = data.load_dataset(npz(tmp_path / "own.npz", X_train=x, y_train=y, X_test=x, y_test=y))
    assert (d.name, d.length, d.classes, d.y_train.tolist()) == ("own", 31, ["a", "b", "c"], [1, 0, 2] * 2)
    assert data.parse_label("inf") == "inf" and data.parse_label("1.0000000e+00") == data.parse_label("1") == 1
    d = data.load_dataset(npz(tmp_path / "bare.npz", X_train=x[:, 0], X_test=x[:, 0]))
    assert d.y_train is None and d.classes == []
    np.testing.assert_allclose(prior.to_original_units(d.x_test, d.info()), x, rtol=1e-6)


@pytest.mark.parametrize("arrays,message", [
    (dict(X_train=np.ones((3, 2, 9)), X_test=np.ones((3, 2, 9))), "2 channels .* univariate"),
    (dict(X_train=np.ones((3, 9))), "needs X_train and X_test"),
    (dict(X_train=np.ones((3, 9)), X_test=np.ones((3, 9)), y_train=np.ones(3)), "only one of y_train, y_test"),
    (dict(X_train=np.ones((3, 9)), X_test=np.ones((3, 9)), y_train=[1, 2, 1], y_test=[1, 2, np.nan]),
     "X_test, series 3 has the label 'nan'; give it one"),
    (dict(X_train=np.full((3, 9), np.nan), X_test=np.ones((3, 9))), "X_train, row 1: holds NaN"),
    (dict(X_train=np.array([[1], [1, 2]], dtype=object), X_test=np.ones((3, 9))), "cannot be read as .npz"),
])
def test_bad_own_data_is_refused(tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        data.load_dataset(npz(tmp_path / "own.npz", **arrays))


def test_two_patterns_has_balanced_classes_and_both_steps():
    x, y = data.two_patterns(401, 128, seed=3, noise=0.0)
    assert x.shape == (401, 128) and x.dtype == torch.float32
    assert np.ptp(np.bincount(y.numpy(), minlength=4)) <= 1
    assert torch.equal(x, data.two_patterns(401, 128, seed=3, noise=0.0)[0])
    for series, label in zip(x, y):
        jumps = [int(v) for v in series[series != 0].sign().unique_consecutive()]       # e.g. down-up, up-down
        first, second = ([-1, 1] if label // 2 else [1, -1]), ([-1, 1] if label % 2 else [1, -1])
        merged = first + second if first[1] != second[0] else first + second[1:]        # +- followed by -+ shares a sign
        assert jumps == merged and set(series.unique().tolist()) == {-5.0, 0.0, 5.0}


# ------------------------------------------------------------------------------------------ augmentations (§5.1.1)

@pytest.mark.parametrize("spec", [*data.AUGMENTATIONS, "warp+gauss", "slice+flip+slope"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_augmentations_keep_shape_dtype_and_seed(spec, dtype):
    x = draw(6, 37, dtype=dtype)
    y = data.augment(x, spec, generator(1))
    assert y.shape == x.shape and y.dtype == dtype and torch.isfinite(y).all() and not torch.equal(x, y)
    assert torch.equal(y, data.augment(x, spec, generator(1)))
    assert torch.equal(x, draw(6, 37, dtype=dtype))                          # the original view is untouched


def test_unknown_augmentation_is_refused():
    with pytest.raises(InputError, match="'wrap'.*warp"):
        data.augment(draw(2, 9), "wrap")


def test_window_warp_against_a_loop():
    B, L = 5, 41
    x, g = draw(B, L), generator(7)
    y = data.window_warp(x, g)
    g = generator(7)                                                         # the same draws: factor, then place
    s = 0.9 + 1.1 * torch.rand(B, 1, generator=g, dtype=torch.float64).numpy()[:, 0]
    w = round(0.4 * (L - 1))
    a = np.floor(torch.rand(B, 1, generator=g, dtype=torch.float64).numpy()[:, 0] * (L - w))
    for b in range(B):
        step = np.ones(L - 1)                                                # warped time between neighbours
        step[int(a[b]):int(a[b]) + w] = s[b]
        tau = np.concatenate([[0], np.cumsum(step)])
        np.testing.assert_allclose(y[b], np.interp(np.linspace(0, tau[-1], L), tau, x[b]), atol=1e-9)
    np.testing.assert_allclose(y[:, [0, -1]], x[:, [0, -1]], atol=1e-9)      # end points stay


def test_slice_and_shuffle_permutes_four_contiguous_pieces():
    x = torch.arange(40.0).repeat(200, 1)
    y = data.slice_and_shuffle(x, generator())
    assert torch.equal(y.sort(1).values, x)
    breaks = ((y[:, 1:] - y[:, :-1]) != 1).sum(1)
    assert breaks.max() == 3 and len(y.unique(dim=0)) > 150
    assert len(y[:, 0].unique()) > 20                                        # any piece may come first


def test_slice_and_shuffle_index_by_index():
    B, L = 4, 23
    x, g = draw(B, L), generator(3)
    y = data.slice_and_shuffle(x, g)
    g = generator(3)                                                         # the same draws: cuts, then new places
    cuts = torch.rand(B, L - 1, generator=g).argsort(1)[:, :3] + 1
    place = torch.rand(B, 4, generator=g).argsort(1)
    for b in range(B):
        pieces = np.split(x[b].numpy(), sorted(cuts[b].tolist()))
        expected = [value for p in range(4) for value in pieces[place[b].tolist().index(p)]]
        np.testing.assert_array_equal(y[b], expected)


def test_augmentation_moments():
    x = torch.ones(40000, 8)
    assert (data.amplitude_resize(x, generator()).std() - 0.2).abs() < 0.005
    assert (data.amplitude_resize(x, generator()).mean() - 1).abs() < 0.005
    assert (data.gaussian_noise(x, generator()) - x).std() == pytest.approx(0.05, abs=0.001)
    assert (data.AUGMENTATIONS["jitter"](x, generator()) - x).std() == pytest.approx(0.1, abs=0.002)
    assert (data.flip(x, generator())[:, 0] < 0).float().mean() == pytest.approx(0.5, abs=0.02)
    line = data.slope(x, generator()) - x
    assert line[:, 0].abs().max() == 0 and line[:, 1].abs().max() <= 0.01 and line[:, 7].std() == pytest.approx(
        7 * 0.01 / math.sqrt(3), rel=0.05)


def test_phase_shift_turns_a_wave():
    wave = torch.sin(2 * math.pi * torch.arange(400.0) / 4)[None]            # bin 2 of n_fft = 8
    turned = data.phase_shift(wave, generator())
    angle = -math.pi / 4 + math.pi / 2 * torch.rand(1, generator=generator()).item()
    expected = torch.sin(2 * math.pi * torch.arange(400.0) / 4 + angle)[None]
    torch.testing.assert_close(turned[:, 8:-8], expected[:, 8:-8], atol=1e-4, rtol=0)


def test_batches_visit_every_series_and_drop_a_lone_one():
    b = data.Batches(257, 128, generator())
    sizes = [len(next(b)) for _ in range(4)]
    assert sizes == [128] * 4 and b.per_epoch == 2
    b = data.Batches(10, 4, generator())
    assert sorted(torch.cat([next(b) for _ in range(3)]).tolist()) == list(range(10))
    twin = data.Batches(10, 4, generator())
    next(b), twin.load_state_dict(b.state_dict()), twin.generator.set_state(b.generator.get_state())
    assert all(torch.equal(next(b), next(twin)) for _ in range(7))


# ----------------------------------------------------------------------------------------------- stage 1 (§4.1.1)

@pytest.mark.parametrize("length", [8, 15, 24, 84, 131, 500, 577])
def test_istft_inverts_stft_to_the_exact_length(length):
    x = draw(3, length)
    u = ncvqvae.stft(x, 8)
    assert u.shape == (3, 2, 5, length // 2 + 1)
    torch.testing.assert_close(ncvqvae.istft(u, 8, length), x)


@pytest.mark.parametrize("n_fft", [8, 16])
def test_istft_is_the_library_s_on_any_spectrum(n_fft):
    u = draw(3, 2, n_fft // 2 + 1, 70 // (n_fft // 4) + 1)                   # no signal has this spectrum

    def library(u):
        spectrum = torch.view_as_complex(u.permute(0, 2, 3, 1).contiguous())
        return torch.istft(spectrum, n_fft, window=torch.hann_window(n_fft, dtype=u.dtype), length=70)
    weight = draw(3, 70, seed=1)
    assert_same_gradient(lambda u: (ncvqvae.istft(u, n_fft, 70) * weight).sum(), lambda u: (library(u) * weight).sum(), u)


def test_stft_against_the_fourier_sum():
    x = draw(2, 20)
    u = ncvqvae.stft(x, 8)
    padded = np.pad(x.numpy(), ((0, 0), (4, 4)), mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(8) / 8)
    for frame in range(11):
        for k in range(5):
            value = (padded[:, 2 * frame:2 * frame + 8] * window * np.exp(-2j * np.pi * k * np.arange(8) / 8)).sum(1)
            np.testing.assert_allclose(u[:, 0, k, frame], value.real, atol=1e-12)
            np.testing.assert_allclose(u[:, 1, k, frame], value.imag, atol=1e-12)


@pytest.mark.parametrize("length,width,n,frames", [(500, 8, 4, 15), (128, 8, 3, 8), (70, 8, 2, 9), (398, 8, 4, 12),
                                                   (24, 8, 1, 6), (8, 8, 1, 2), (500, 32, 3, 31), (1024, 8, 6, 8)])
def test_encoder_and_decoder_shapes(length, width, n, frames):
    assert ncvqvae.n_downsampling(length, width) == n
    u = ncvqvae.stft(draw(2, length, dtype=torch.float32), 8)
    z = ncvqvae.Encoder(n)(u)
    assert z.shape == (2, 64, 5, frames)
    assert ncvqvae.Decoder(n)(z, u.shape[3]).shape == u.shape


@pytest.mark.parametrize("fields,message", [
    (dict(method="nave"), "--method nave"), (dict(method="naive", augmentation="warp"), "naive takes none"),
    (dict(method="barlow", augmentation="wrap"), "--augmentation wrap"), (dict(precision="half"), "--precision half"),
    (dict(n_fft=6), "--n-fft 6: not a multiple of 4"),
])
def test_a_config_that_cannot_train_is_refused(tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        ncvqvae.train_stage1(tmp_path / "r", Stage1Config(**fields))
    assert not (tmp_path / "r").exists()


def tiny_quantizer(K=6, D=3):
    torch.manual_seed(0)
    return ncvqvae.VectorQuantizer(K, D).double()


def test_quantizer_takes_the_nearest_code_and_passes_the_gradient_straight_through():
    q, z = tiny_quantizer(), draw(2, 3, 5, 4).requires_grad_()
    book = q.codebook.clone()
    z_q, idx, commitment = q(z)
    distance = (z.detach().permute(0, 2, 3, 1)[..., None, :] - book).norm(dim=-1)
    assert torch.equal(idx, distance.argmin(-1))
    assert torch.equal(z_q, book[idx].permute(0, 3, 1, 2))                   # exactly, and from before the update
    torch.testing.assert_close(commitment, (z - z_q.detach()).square().mean())
    weight = draw(2, 3, 5, 4, seed=1)
    gradient, = torch.autograd.grad((z_q * weight).sum(), z, retain_graph=True)
    assert torch.equal(gradient, weight)
    gradient, = torch.autograd.grad(commitment, z)
    torch.testing.assert_close(gradient, 2 * (z - z_q).detach() / z.numel())


def test_moving_averages_against_a_loop():
    q = tiny_quantizer()
    K = len(q.codebook)
    N, m, book = np.ones(K), q.codebook.numpy().copy(), q.codebook.numpy().copy()
    unused = 0
    for step in range(5):
        z = draw(2, 3, 5, 4, seed=step) * 0.5 + 1
        q(z)
        flat = z.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
        winner = ((flat[:, None] - book[None]) ** 2).sum(-1).argmin(1)
        for k in range(K):
            mine = flat[winner == k]
            unused += len(mine) == 0
            N[k] = 0.9 * N[k] + 0.1 * len(mine)
            m[k] = 0.9 * m[k] + 0.1 * mine.sum(0)
        for k in range(K):
            book[k] = m[k] / ((N[k] + 1e-5) / (N.sum() + K * 1e-5) * N.sum())
        np.testing.assert_allclose(q.codebook, book)
    assert unused                                                            # codes that win nothing were there


def test_eval_moves_nothing_and_the_order_of_series_changes_nothing():
    model = tiny_model().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = draw(9, 40, dtype=torch.float32)
    out = evaluate.encode_split(model, x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    turned = evaluate.encode_split(model, x.flip(0), batch=4)
    assert torch.equal(out["tokens"], turned["tokens"].flip(0))
    torch.testing.assert_close(out["recon_time"], turned["recon_time"].flip(0))
    assert torch.equal(model.tokens(x), out["tokens"])
    torch.testing.assert_close(model.series(out["tokens"]), out["x_hat"])


def tiny_config(**fields):
    return Stage1Config(**{**dict(width=16, projector_dim=64, stage1_batch=8), **fields})


def tiny_model(length=40, **fields):
    torch.manual_seed(0)
    return NCVQVAE(tiny_config(**fields), length)


@pytest.mark.parametrize("method", ["naive", "barlow", "vibcreg"])
def test_total_loss_is_equation_4_5(method):
    model = tiny_model(method=method, augmentation="none" if method == "naive" else "slice", zeta=0.3, beta=0.7,
                       ssl_weight=2.0).train()
    x, x_aug = draw(8, 40, dtype=torch.float32), draw(8, 40, seed=1, dtype=torch.float32)
    import copy
    twin = copy.deepcopy(model)
    loss, terms, _ = model(x, None if method == "naive" else x_aug)

    def mse(a, b):
        return ((a - b) ** 2).mean()
    u = ncvqvae.stft(x, 8)
    z = twin.encoder(u)
    z_q, _, _ = twin.quantizer(z)
    u_hat = twin.decoder(z_q, 21)
    expected = mse(ncvqvae.istft(u_hat, 8, 40), x) + mse(u_hat, u) + 0.7 * mse(z, z_q.detach())
    if method != "naive":
        u = ncvqvae.stft(x_aug, 8)
        z_aug = twin.encoder(u)                                              # not quantised, statistics of its own
        u_hat = twin.decoder(z_aug, 21)
        expected = expected + 0.3 * (mse(ncvqvae.istft(u_hat, 8, 40), x_aug) + mse(u_hat, u))
        p1, = twin.projector(torch.cat([z_q.mean((2, 3)), z_q.amax((2, 3))], 1))
        p2, = twin.projector(torch.cat([z_aug.mean((2, 3)), z_aug.amax((2, 3))], 1))
        ssl = ncvqvae.barlow_twins_loss(p1, p2) / 64 if method == "barlow" else 0.01 * ncvqvae.vibcreg_loss(p1, p2)
        expected = expected + 2.0 * ssl
        torch.testing.assert_close(terms["ssl"], 2.0 * ssl.detach())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


# ------------------------------------------------------------------------------------------------- losses (§3.3)

def slow_barlow(z1, z2, lambd=0.005):
    """Eq. 3.7 and 3.8, entry by entry."""
    B, P = z1.shape
    z1, z2 = z1 - z1.mean(0), z2 - z2.mean(0)
    loss = 0
    for i in range(P):
        for j in range(P):
            c = (z1[:, i] * z2[:, j]).sum() / (z1[:, i].square().sum().sqrt() * z2[:, j].square().sum().sqrt())
            loss = loss + ((1 - c) ** 2 if i == j else lambd * c ** 2)
    return loss


def slow_vibcreg(z1, z2):
    """Eq. 3.9 to 3.15, with ledger 5 (mean over features) and 6 (no 1/(B-1))."""
    B, P = z1.shape

    def v(z):
        return sum(torch.clamp(1 - torch.sqrt(((z[:, f] - z[:, f].mean()) ** 2).sum() / (B - 1) + 1e-4), min=0)
                   for f in range(P)) / P

    def c(z):
        hat = [(z[:, f] - z[:, f].mean()) / ((z[:, f] - z[:, f].mean()) ** 2).sum().sqrt() for f in range(P)]
        return sum((hat[i] * hat[j]).sum() ** 2 for i in range(P) for j in range(P) if i != j) / P ** 2
    s = sum(((z1[b] - z2[b]) ** 2).sum() for b in range(B)) / (B * P)
    return 25 * s + 25 * (v(z1) + v(z2)) + 100 * (c(z1) + c(z2))


@pytest.mark.parametrize("fast,slow", [(ncvqvae.barlow_twins_loss, slow_barlow), (ncvqvae.vibcreg_loss, slow_vibcreg)])
def test_ssl_losses_against_their_equations(fast, slow):
    assert_same_gradient(fast, slow, draw(7, 5), 0.3 * draw(7, 5, seed=1) + draw(7, 5) + 2)


def test_identical_views_correlate_fully():
    z = draw(50, 1)
    assert ncvqvae.barlow_twins_loss(z, 3 * z + 1).item() == pytest.approx(0, abs=1e-15)


def test_iter_norm_against_a_loop_and_towards_exact_whitening():
    z = draw(64, 8) @ (torch.eye(8, dtype=torch.float64) + 0.1 * draw(8, 8, seed=1))

    def slow(z):
        out = []
        for g in range(2):
            x = (z[:, 4 * g:4 * g + 4] - z[:, 4 * g:4 * g + 4].mean(0)).T
            S = x @ x.T / 64 + 1e-5 * torch.eye(4, dtype=z.dtype)
            P = torch.eye(4, dtype=z.dtype)
            for _ in range(5):
                P = (3 * P - torch.linalg.matrix_power(P, 3) @ (S / S.trace())) / 2
            out.append((P @ x).T / S.trace().sqrt())
        return torch.cat(out, 1)
    weight = draw(64, 8, seed=2)
    assert_same_gradient(lambda z: (ncvqvae.iter_norm(z, 2) * weight).sum(), lambda z: (slow(z) * weight).sum(), z)
    distances = []
    for T in (1, 5, 10):
        w = ncvqvae.iter_norm(z, 1, iterations=T, eps=0.0)
        distances.append((w.T @ w / 64 - torch.eye(8, dtype=z.dtype)).norm().item())
    assert distances[0] > distances[1] > distances[2] and distances[2] < 1e-9


def test_projector_keeps_the_views_statistics_apart():
    torch.manual_seed(0)
    p = ncvqvae.Projector(10, 64, whiten=True)
    a, b = draw(6, 10, dtype=torch.float32), 5 + 3 * draw(6, 10, seed=1, dtype=torch.float32)
    for together, alone in zip(p(a, b), (*p(a), *p(b))):
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------- prior (§3.2, §4.1.2)

def tiny_prior(K=7, N=10, classes=3, **fields):
    torch.manual_seed(0)
    return Prior(PriorConfig(prior_hidden=32, prior_layers=2, **fields), draw(K, 8, seed=5, dtype=torch.float32), N, classes)


def test_mask_tokens_counts_and_mean_share():
    N = 20
    mask = prior.mask_tokens(torch.zeros(30000, N, dtype=torch.int64), generator(5))
    g = generator(5)
    r = 1 - torch.rand(30000, 1, generator=g)
    expected = [max(1, math.ceil(math.cos(math.pi * v / 2) * N)) for v in r[:, 0].tolist()]
    assert mask.sum(1).tolist() == expected
    big = prior.mask_tokens(torch.zeros(30000, 400, dtype=torch.int64), generator(6))
    assert big.float().mean() == pytest.approx(2 / math.pi, abs=0.01)
    assert (mask.float().mean(0) - mask.float().mean()).abs().max() < 0.02       # every position alike


def test_attention_is_every_devices_attention():
    block, h = prior.Block(32, 2, 1).double(), draw(3, 7, 32)
    block.norm1.weight.data.fill_(2.0)
    qkv = block.qkv(block.norm1(h)).view(3, 7, 3, 2, 16)
    a = torch.stack([F.scaled_dot_product_attention(*(qkv[:, :, i, head] for i in range(3))) for head in range(2)], dim=2)
    expected = h + block.out(a.reshape(3, 7, 32))
    torch.testing.assert_close(block(h), expected + block.ff(block.norm2(expected)))


def test_prior_looks_at_known_tokens_and_class_but_not_behind_the_mask():
    p = tiny_prior()
    t = torch.randint(0, 7, (2, 10), generator=generator())
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[:, :4] = True
    y = torch.tensor([0, 2])
    logits = p(t, mask, y)
    assert logits.shape == (2, 10, 7)
    behind, seen = t.clone(), t.clone()
    behind[:, 0] = (t[:, 0] + 1) % 7
    seen[:, 9] = (t[:, 9] + 1) % 7
    assert torch.equal(p(behind, mask, y), logits)
    assert not torch.allclose(p(seen, mask, y)[:, 0], logits[:, 0])
    assert not torch.allclose(p(t, mask, torch.tensor([1, 3])), logits)


def test_embedding_starts_as_the_codebook_unless_random():
    book = draw(7, 8, seed=5, dtype=torch.float32)
    assert torch.equal(tiny_prior().embedding.weight.data, book)
    assert not torch.equal(tiny_prior(embedding="random").embedding.weight.data, book)


def test_masked_cross_entropy_against_a_loop():
    logits, t = draw(3, 4, 5), torch.randint(0, 5, (3, 4), generator=generator())
    mask = prior.mask_tokens(t, generator(1))

    def slow(logits):
        total = [-(logits[b, i].exp() / logits[b, i].exp().sum()).log()[t[b, i]]
                 for b in range(3) for i in range(4) if mask[b, i]]
        return sum(total) / len(total)
    assert_same_gradient(lambda x: prior.masked_cross_entropy(x, t, mask), slow, logits)


class Recorder(torch.nn.Module):
    """A prior that prefers token (position mod K), and notes what it is asked."""
    def __init__(self, K=5, N=12):
        super().__init__()
        self.n_tokens, self.n_classes, self.K, self.calls = N, 3, K, []

    def forward(self, tokens, mask, labels):
        self.calls.append((tokens.clone(), mask.clone(), labels.clone()))
        return 3 * F.one_hot(torch.arange(self.n_tokens) % self.K, self.K).float().expand(len(tokens), -1, -1)


@pytest.mark.parametrize("N,T,B", [(12, 10, 3), (3, 10, 1), (75, 10, 2), (40, 1, 2)])
def test_decoding_follows_the_schedule_and_never_changes_what_it_knows(N, T, B):
    p = Recorder(N=N)
    out = prior.iterative_decode(p, torch.arange(B), generator(), steps=T)
    assert len(p.calls) == T and out.shape == (B, N)
    for t in range(1, T):
        (before, mask_before, _), (tokens, mask, _) = p.calls[t - 1], p.calls[t]
        assert mask.sum(1).tolist() == [math.floor(math.cos(math.pi / 2 * t / T) * N)] * B
        assert not (mask & ~mask_before).any() and torch.equal(tokens[~mask_before], before[~mask_before])
    assert torch.equal(out[~p.calls[-1][1]], p.calls[-1][0][~p.calls[-1][1]])


def test_decoding_fills_in_around_known_tokens():
    known = torch.randint(0, 5, (4, 12), generator=generator())
    mask = prior.mask_tokens(known, generator(1))
    out = prior.iterative_decode(Recorder(), torch.zeros(4, dtype=torch.int64), generator(), 10, 4.0, 1.0, known, mask)
    assert torch.equal(out[~mask], known[~mask])


def test_a_fresh_start_runs_its_first_pass_once_per_class():
    p, labels = tiny_prior(), torch.tensor([2, 0, 3, 0, 2, 2])                # 3: no class
    nothing = torch.zeros(6, p.n_tokens, dtype=torch.int64)
    slow = prior.iterative_decode(p, labels, generator(), 4, 4.0, 1.5, nothing, torch.ones_like(nothing, dtype=torch.bool))
    sizes = []
    handle = p.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    assert torch.equal(prior.iterative_decode(p, labels, generator(), 4, 4.0, 1.5), slow)
    handle.remove()
    assert sizes == [6, 12, 12, 12]                                           # 3 classes, then 6 series; two logits each


def test_without_noise_the_least_confident_are_masked_again():
    class Ladder(Recorder):                                                  # position i is sure with odds i + 1
        def forward(self, tokens, mask, labels):
            super().forward(tokens, mask, labels)
            logits = torch.zeros(len(tokens), self.n_tokens, self.K)
            logits[..., 0] = 20 + torch.arange(self.n_tokens)
            return logits
    p = Ladder()
    prior.iterative_decode(p, torch.zeros(1, dtype=torch.int64), generator(), 4, choice_temperature=0.0)
    for _, mask, _ in p.calls[1:]:
        assert mask[0].tolist() == sorted(mask[0].tolist(), reverse=True)


def test_guidance_extrapolates_from_the_unconditional_logits_in_one_pass():
    p = tiny_prior()
    t, y = torch.randint(0, 7, (2, 10), generator=generator()), torch.tensor([0, 2])
    mask = prior.mask_tokens(t, generator(1))
    conditional, nothing = p(t, mask, y), p(t, mask, torch.tensor([3, 3]))
    torch.testing.assert_close(prior.guided_logits(p, t, mask, y, 2.5), nothing + 2.5 * (conditional - nothing))
    torch.testing.assert_close(prior.guided_logits(p, t, mask, y, 1.0), conditional)
    r = Recorder()
    prior.guided_logits(r, *r_inputs(r), 2.0)
    assert len(r.calls) == 1 and len(r.calls[0][0]) == 4


def r_inputs(r):
    return torch.zeros(2, r.n_tokens, dtype=torch.int64), torch.ones(2, r.n_tokens, dtype=torch.bool), torch.tensor([0, 1])


def test_every_series_keeps_its_class_through_sampling():
    class ByClass(Recorder):                                                 # class c draws nothing but token c
        def __init__(self):
            super().__init__(K=4, N=10)
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, tokens, mask, labels):
            return (60.0 * F.one_hot(labels, 4))[:, None].expand(-1, 10, -1)
    model = tiny_model().eval()
    labels = torch.tensor([2, 0, 1, 3, 0, 2, 1])
    series = prior.sample(ByClass(), model, labels, generator(), prior.SampleConfig(sample_batch=3))
    torch.testing.assert_close(series, model.series(labels[:, None].expand(-1, 25)[:, :25]) if model.tokens(
        torch.zeros(1, 40)).shape[1] == 25 else model.series(labels[:, None].expand(-1, 10)))


# ---------------------------------------------------------------------------------------------- metrics (§2.7)

def test_frechet_distance_has_the_closed_form_and_survives_singular_covariances():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4000, 6)) @ rng.standard_normal((6, 6))
    b = rng.standard_normal((3000, 6)) @ rng.standard_normal((6, 6)) + 1
    s1, s2 = np.cov(a.T), np.cov(b.T)
    roots = np.sqrt(np.linalg.eigvals(s1 @ s2).real.clip(0)).sum()           # eq. 2.21, the unsymmetric way
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2) - 2 * roots
    assert evaluate.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert evaluate.frechet_distance(a[:, :1], 2 * a[:, :1] + 3) == pytest.approx(
        (a[:, 0].mean() + 3) ** 2 + a[:, 0].var(ddof=1), rel=1e-6)           # (mu1-mu2)^2 + (sd1-sd2)^2
    flat = np.column_stack([a[:5, 0], np.zeros(5)])
    assert evaluate.frechet_distance(flat, flat) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError):
        evaluate.frechet_distance(a[:1], b)


def test_inception_score_of_hand_examples():
    assert evaluate.inception_score(np.full((50, 4), 0.25)) == pytest.approx(1)
    assert evaluate.inception_score(np.eye(4)[np.arange(400) % 4], splits=1) == pytest.approx(4)
    p = np.array([[0.9, 0.1], [0.3, 0.7]])
    kl = [sum(p[i, k] * math.log(p[i, k] / p[:, k].mean()) for k in range(2)) for i in range(2)]
    assert evaluate.inception_score(p, splits=1) == pytest.approx(math.exp(sum(kl) / 2))


def test_probe_scales_by_the_train_split_and_scores_the_test_split():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((60, 4)) * [1, 100, 1, 1]
    y = (z[:, 0] > 0).astype(int)                                            # told by a feature that scaling rescues
    knn, svm = evaluate.probe(z[:40], y[:40], z[40:], y[40:])
    low, high = z[:40].min(0), z[:40].max(0)
    s = 2 * (z - low) / (high - low) - 1
    nearest = ((s[40:, None] - s[None, :40]) ** 2).sum(-1).argsort(1)[:, :5]
    assert knn == pytest.approx(((y[nearest].mean(1) > 0.5) == y[40:]).mean())
    assert svm > 0.9


def test_probing_in_train_mode_moves_a_copy_alone():
    model = tiny_model().eval()
    x, y = draw(30, 40, dtype=torch.float32), torch.arange(30) % 2
    own = data.Dataset("own", x[:20], y[:20], x[20:] * 3, y[20:], 0.0, 1.0, [0, 1], True, "")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    knn, svm, recon = evaluate.probe_in_train_mode(model, own)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and not model.training
    frozen = evaluate.encode_split(model, own.x_test)
    assert 0 <= knn <= 1 and 0 <= svm <= 1 and recon != evaluate.recon(frozen)
    assert evaluate.recon(frozen) == pytest.approx((frozen["recon_time"].mean() + frozen["recon_timefreq"].mean()).item())


def test_nearest_neighbour_ratio_and_class_proportions_and_code_usage():
    train, test = draw(30, 5), draw(20, 5, seed=1)
    fake = train[:10] + 0.01
    def nearest(a):
        return np.mean([min(float((s - t).norm()) for t in train) for s in a])
    assert evaluate.nearest_neighbour_ratio(fake, train, test) == pytest.approx(nearest(fake) / nearest(test))
    labels = evaluate.class_proportions(torch.tensor([0] * 7 + [1] * 2 + [2]), 3, 1000)
    assert torch.bincount(labels).tolist() == [700, 200, 100]
    assert torch.bincount(evaluate.class_proportions(torch.tensor([0, 0, 1]), 2, 1000)).tolist() == [667, 333]
    assert evaluate.code_usage(torch.tensor([[0, 0, 3, 3]]), 8) == (2, pytest.approx(2.0))


def test_tables_judge_by_the_published_noise():
    published = {("A", m, "none", "recon"): dict(mean="0.5", std=s) for m, s in (("naive", "0.03"), ("barlow", "0.04"))}
    pooled = evaluate.pooled_std(published, "A", "recon")
    assert pooled == pytest.approx(math.sqrt((0.03 ** 2 + 0.04 ** 2) / 2))
    one, four = 2.33 * pooled, 1.47 * pooled

    def judge(difference, n, metric="recon"):
        return evaluate.agreement(0.5 + difference, n, metric, published["A", "naive", "none", "recon"], pooled)
    assert judge(0.99 * one, 1) == judge(-0.99 * four, 4) == "within noise"
    assert (judge(1.01 * one, 1), judge(-1.01 * four, 4), judge(1.01 * one, 1, "cas")) == ("worse", "better", "better")
    cell = evaluate.table_cell([0.4, 0.6], "mean", "recon", published["A", "naive", "none", "recon"], pooled)
    assert cell == "0.500 ± 0.141 (n 2) [0.500 ± 0.030], within noise"


def fake_run(folder, seed, stages=2, recon=0.5, **stage1):
    run = Path(folder) / f"A/naive-none/seed{seed}"
    config = dict(stage1=dataclasses.asdict(Stage1Config(dataset="/some/where/A.npz", seed=seed, **stage1)),
                  evaluate=dataclasses.asdict(evaluate.EvalConfig(stages=stages, cas_epochs=100)))
    metrics = {**dict.fromkeys(evaluate.METRICS), **dict(recon=recon, knn=1 / 3, svm=1.0, complete_data=True, n_train=20)}
    if stages == 2:
        config["stage2"] = dataclasses.asdict(PriorConfig())
        metrics |= {"fid": 3.0, "is": 2.0, "cas": 0.9}
    data.write_json(run / "config.json", config)
    data.write_json(run / "metrics.json", metrics)
    log = [dict(event="start", stage="stage1", argv=["/home/me/ncvqvae.py", "--dataset=/data/A.npz"], torch="2.13", device="cpu",
                commit="abc", time="2026-01-02T03:04:05")] + [dict(stage="stage1", step=i, loss=1.0) for i in range(500)]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, log)) + "\n")
    return metrics


def test_export_keeps_every_value_and_replaces_a_run_that_ran_again(tmp_path):
    out = tmp_path / "results"
    metrics = fake_run(tmp_path / "runs", 1)
    fake_run(tmp_path / "runs", 2, stages=1, recon=0.7)
    fake_run(tmp_path / "fast", 1, recon=9.0, stage1_steps=800)
    evaluate.export([tmp_path / "runs"], out)
    evaluate.export([tmp_path / "fast"], out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    evaluate.export([tmp_path / "runs", tmp_path / "fast"], out)
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with open(out / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["seed"], r["stage1_epochs"], r["stage1_steps"], r["later_settings"]) for r in rows] == [
        ("1", "1000", "", "cas_epochs=100"), ("1", "", "800", "cas_epochs=100"), ("2", "1000", "", "none")]
    assert {k: evaluate.from_cell(rows[0][k]) for k in metrics} == metrics and rows[0]["date"] == "2026-01-02"
    tables = (out / "TABLES.md").read_text()
    assert "0.600 ± 0.141 (n 2)" in tables                                   # a run without stage 2 counts in stage 1's tables
    assert "9.000 (n 1)" in tables and "## Stage 1: stage1_steps=800\n" in tables
    logs = [gzip.decompress(p.read_bytes()).decode().splitlines() for p in sorted((out / "logs").iterdir())]
    assert [len(lines) for lines in logs] == [200] * 3 and json.loads(logs[0][-1])["step"] == 499
    assert json.loads(logs[0][0])["argv"] == ["ncvqvae.py", "--dataset=A.npz"]
    fake_run(tmp_path / "runs", 1, recon=0.4)
    evaluate.export([tmp_path / "runs"], out)
    assert "0.550 ± 0.212 (n 2)" in (out / "TABLES.md").read_text()
    fake_run(tmp_path / "runs", 2, recon=0.7)                                # went on to stage 2: one row, one log
    evaluate.export([tmp_path / "runs"], out)
    with open(out / "runs.csv", newline="") as file:
        assert [r["later_settings"] for r in csv.DictReader(file)] == ["cas_epochs=100"] * 3
    assert len(list((out / "logs").iterdir())) == 3 and "0.550 ± 0.212 (n 2)" in (out / "TABLES.md").read_text()


def benchmark(name):
    spec = importlib.util.spec_from_file_location(name, HERE / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_headline_takes_the_best_mean_and_stars_what_seeds_do_not_explain(tmp_path, monkeypatch):
    headline = benchmark("headline")
    fast = evaluate.settings(ncvqvae.PRESETS["fast"], Stage1Config)
    rows = [(("naive", "none"), 1, "", 0.20, 0.50, True), (("naive", "none"), 2, "", 0.22, 0.54, True),
            (("barlow", "warp"), 1, "", 0.10, 0.90, True), (("barlow", "warp"), 2, "", 0.12, 0.90, True),
            (("vibcreg", "slice"), 1, "", 0.211, 0.53, True), (("vibcreg", "gauss"), 1, "", 0.01, 0.99, False),
            (("vibcreg", "gauss"), 1, "zeta=0.2", 0.02, 0.98, True), (("naive", "none"), 1, fast, 0.30, 0.40, True),
            (("vibcreg", "warp"), 1, fast, 0.03, 0.97, True)]
    with open(tmp_path / "runs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, evaluate.COLUMNS)
        writer.writeheader()
        for (method, augmentation), seed, settings, recon, knn, complete in rows:
            writer.writerow(row := dict(dataset="Symbols", method=method, augmentation=augmentation, seed=seed, recon=recon, knn=knn,
                                        stage1_settings=settings, later_settings="none", complete_data=complete))
        writer.writerow(row | dict(recon=9.0, later_settings="fcn_epochs=300"))      # a prior of another schedule
    monkeypatch.setattr(headline, "RESULTS", tmp_path)
    cells = headline.grid()                       # neither incomplete data nor an ablation nor a mixture of schedules
    assert cells["Symbols", "fast, float32"]["vibcreg", "warp"][1]["recon"] == 0.03
    assert {how: {"-".join(m): sorted(runs) for m, runs in models.items()} for (_, how), models in cells.items()} == {
        "thesis, float32": {"naive-none": [1, 2], "barlow-warp": [1, 2], "vibcreg-slice": [1]},
        "fast, float32": {"naive-none": [1], "vibcreg-warp": [1]}}
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        table = headline.report(cells, evaluate.read_published())
    assert [line.split("|")[2].strip() for line in table.splitlines() if line.startswith("| Symbols")] == [
        "ours: thesis, float32, 2 of 6 models", "published, four seeds"]     # the schedule with more models alone
    assert "0.210 → 0.110<br>barlow-warp, n 2, 2" in table and "0.520 → 0.900<br>barlow-warp, n 2, 2" in table
    line = {m: next(x for x in text.getvalue().splitlines() if x.startswith(f"| Symbols | thesis, float32 | {m} "))
            for m in ("barlow-warp", "vibcreg-slice")}
    assert "| -0.100* [+0.033*] | +0.380* [+0.085*] |" in line["barlow-warp"]
    assert "| +0.001 [-0.043*] | +0.010 [-0.084*] |" in line["vibcreg-slice"]
    assert "\n| recon | 0 | 1 | 2 | Symbols naive-none, Symbols vibcreg-slice |\n" in text.getvalue()
    assert "\n| knn | 1 | 2 | 0 |  |\n" in text.getvalue()
    recon_and_knn = {name: "|".join(next(x for x in text.getvalue().splitlines() if x.startswith(f"| {name} |")).split("|")[2:4])
                     for name in ("rows", "gains", "losses", "gains in both")}
    assert recon_and_knn == {"rows": " 2 | 2 ", "gains": " 1 [1] | 1 [1] ", "losses": " 0 [1] | 0 [1] ", "gains in both": " 0 | 1 "}


def test_ablation_sets_each_weight_beside_the_thesis_one_of_the_same_schedule():
    ablation = benchmark("ablation")
    rows = [dict(dataset="Symbols", method="vibcreg", augmentation="warp", seed=seed, recon=recon, knn=0.5, svm=None,
                 stage1_settings=settings, complete_data=complete)
            for seed, settings, recon, complete in (
                (1, "ssl_weight=2.0 precision=bf16", 0.7, True), (1, "precision=bf16", 0.8, True),
                (1, "stage1_steps=800", 0.10, True), (2, "stage1_steps=800", 0.12, True), (1, "", 9.0, True),
                (1, "stage1_steps=800 zeta=0.2", 0.11, True), (2, "stage1_steps=800 zeta=0.2", 0.13, True),
                (1, "stage1_steps=800 zeta=0.05", 0.60, True), (1, "stage1_steps=800 zeta=0.15", 9.0, False),
                (1, "stage1_steps=800 ssl_weight=0.5", 0.30, True), (1, "stage1_steps=800 zeta=0.2 ssl_weight=2.0", 9.0, True))]
    text = "\n".join(ablation.report(ablation.cells(rows), evaluate.read_published()))
    zeta, ssl = text.split("## ssl_weight")
    row = "| Symbols | vibcreg-warp | stage1_steps=800 | recon | "
    assert row + "0.600* (1) | 0.110 (2) |  | 0.120 (2) |" in zeta and row + "0.300* (1) | 0.110 (2) |  |" in ssl
    assert "| 0.05 | **0.1** | 0.15 | 0.2 |" in zeta and "| 0.5 | **1** | 2 |" in ssl and "9.000" not in text
    assert "| precision=bf16 | recon |  | 0.800 (1) | 0.700* (1) |" in ssl and "precision=bf16" not in zeta
    assert text.count("| knn |") == 3 and "| svm |  |  |  |  |" in zeta


def test_cells_of_runs_csv():
    for value in (None, True, False, 3, -3, 0.25, 1e-30, math.inf):          # nn_ratio may be infinite
        assert evaluate.from_cell("" if value is None else str(value)) == value


def test_figures_of_a_collapsed_latent_space(tmp_path):
    x = draw(12, 20, dtype=torch.float32)
    own = data.Dataset("own", x, torch.arange(12) % 2, x, torch.arange(12) % 2, 0.0, 1.0, [0, 1], True, "")
    (tmp_path / "log.jsonl").write_text('{"stage": "stage1", "step": 1, "loss": 1.0}\n')
    evaluate.draw_figures(tmp_path, own, dict(pooled=torch.ones(12, 64), x_hat=x), None, None, None)
    assert (tmp_path / "figures/latents.png").stat().st_size > 1000


def test_fcn_shapes_and_learning(tmp_path):
    x, y = data.two_patterns(40, 64, seed=0, noise=0.1)
    config = evaluate.EvalConfig(fcn_batch=16)
    fcn = evaluate.train_fcn(x / 5, y, 4, 30, config, tmp_path, "fcn", 0, torch.device("cpu"))
    assert fcn.features(x).shape == (40, 128) and fcn(x).shape == (40, 4) and not fcn.training
    features, p = evaluate.classify(fcn, x / 5)
    assert evaluate.accuracy(p, y) > 0.9 and p.sum(1) == pytest.approx(np.ones(40))
    score = evaluate.classification_accuracy_score(x / 5, y, x / 5, y, 4, evaluate.EvalConfig(fcn_batch=16, cas_epochs=30),
                                                   tmp_path, 1, torch.device("cpu"))
    assert score > 0.9


# ------------------------------------------------------------------------------------------------------- whole runs

TINY = ("--width=16 --projector-dim=64 --stage1-steps=6 --stage2-steps=6 --prior-hidden=32 --prior-layers=1 "
        "--fcn-epochs=2 --cas-epochs=1").split()


def shell(*arguments, cwd, **env):
    env = {**os.environ, "PYTHON": sys.executable, "OUT": str(Path(cwd) / "runs"), "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(["bash", str(HERE / "run.sh"), *arguments], cwd=cwd, env=env, capture_output=True, text=True)


def own_data(folder, labels=True, length=31):
    rng = np.random.default_rng(0)
    x = 50 + 3 * rng.standard_normal((40, length)).cumsum(1)
    y = np.array(["up", "down", "flat", "up"] * 10)
    ys = dict(y_train=y[:24], y_test=y[24:]) if labels else {}
    return npz(Path(folder) / "own.npz", X_train=x[:24], X_test=x[24:], **ys)


def test_a_tiny_run_end_to_end(tmp_path):
    done = shell(own_data(tmp_path), "vibcreg", "warp+gauss", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/own/vibcreg-warp+gauss/seed1"
    m = json.loads((run / "metrics.json").read_text())
    assert tuple(m) == evaluate.METRICS and all(v is not None for v in m.values())
    assert m["recon"] == pytest.approx(m["recon_time"] + m["recon_timefreq"]) and m["n_classes"] == 3
    with np.load(run / "samples.npz") as s:
        assert s["X"].shape == (1000, 1, 31) and sorted(set(s["y"])) == ["down", "flat", "up"]
        assert abs(s["X"].mean() - 50) < 25                                  # original units
    assert {f.name for f in (run / "figures").iterdir()} == {
        f"{n}.png" for n in ("reconstructions", "latents", "losses", "samples", "generated_pca")}
    first = json.loads((run / "log.jsonl").read_text().splitlines()[0])
    assert first["argv"] and first["torch"] and first["device"] and len(first["sha256"]) == 64
    assert not list(tmp_path.rglob("*.resume.pt")) and not list(tmp_path.rglob("*.tmp"))
    assert "| own | vibcreg-warp+gauss | 1 |" in done.stdout
    stamp = (run / "metrics.json").stat().st_mtime_ns
    again = shell(str(tmp_path / "own.npz"), "vibcreg", "warp+gauss", *TINY, cwd=tmp_path)
    assert again.returncode == 0 and (run / "metrics.json").stat().st_mtime_ns == stamp          # skipped

    real, reconstructed, conditional = benchmark("parts").parts(run)
    assert real[0] == pytest.approx(0, abs=1e-5) and real[2] == m["fcn_accuracy"] and reconstructed[0] > 0
    dataset = data.load_dataset(str(tmp_path / "own.npz"))
    fcn = evaluate.dataset_fcn(tmp_path / "runs/own", dataset, evaluate.EvalConfig(fcn_epochs=2, cas_epochs=1), torch.device("cpu"))
    with np.load(run / "samples.npz") as s:
        features, p = evaluate.classify(fcn, torch.from_numpy(((s["X"][:, 0] - dataset.mean) / dataset.std).astype(np.float32)))
        given = np.array([dataset.classes[k] for k in p.argmax(1)]) == s["y"]
    assert conditional == pytest.approx((evaluate.frechet_distance(features, evaluate.classify(fcn, dataset.x_test)[0]),
                                         evaluate.inception_score(p), given.mean()))


def test_a_run_without_labels_leaves_null_what_needs_them(tmp_path, monkeypatch):
    run, cpu = tmp_path / "own/naive-none/seed1", torch.device("cpu")
    ncvqvae.train_stage1(run, tiny_config(stage1_steps=3, dataset=own_data(tmp_path, labels=False)), device=cpu)
    prior.train_stage2(run, PriorConfig(stage2_steps=3, prior_hidden=32, prior_layers=1), device=cpu)
    m = evaluate.evaluate_run(run, evaluate.EvalConfig(), cpu)
    assert {k for k, v in m.items() if v is None} == {"knn", "svm", "fid", "fid_floor", "is", "cas", "fcn_accuracy"}
    with np.load(run / "samples.npz") as s:
        assert s.files == ["X"] and s["X"].shape == (256, 1, 31)


def test_three_test_series_a_lone_last_batch_and_a_constant_series(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 20)).cumsum(1)
    x[4] = 1.5
    own = npz(tmp_path / "few.npz", X_train=x[:9], y_train=np.arange(9) % 2, X_test=x[9:], y_test=np.array([0, 1, 0]))
    run, cpu = tmp_path / "few/barlow-gauss/seed1", torch.device("cpu")
    ncvqvae.train_stage1(run, tiny_config(stage1_epochs=2, dataset=own, method="barlow", augmentation="gauss"), device=cpu)
    prior.train_stage2(run, PriorConfig(stage2_epochs=2, stage2_batch=8, prior_hidden=32, prior_layers=1), device=cpu)
    m = evaluate.evaluate_run(run, evaluate.EvalConfig(fcn_epochs=1, cas_epochs=1, fcn_batch=8), cpu)
    assert m["n_test"] == 3 and all(v is not None and math.isfinite(v) for v in m.values())
    steps = [json.loads(line) for line in open(run / "log.jsonl")]
    assert max(r["step"] for r in steps if r["stage"] == "stage1" and "step" in r) == 2          # 8 of 9 series, twice


def test_dry_run_prints_the_product_with_naive_once_per_seed(tmp_path):
    done = shell("Symbols,FordA", "naive,barlow", "warp,slice", "1,2", "--stage1-epochs", "3", "--dry-run", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 2 * 2 * 3 and len(set(lines)) == len(lines)
    assert all("--stage1-epochs=3" in line for line in lines) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments,message", [
    (("toy", "naive", "none", "1", "--no-such-flag", "3"), "--no-such-flag: no such flag"),
    (("toy", "nave"), "METHOD nave"), (("toy", "naive", "none", "one"), "SEED one"),
    (("toy", "naive", "none", "1", "--zeta"), "--zeta needs a value"),
])
def test_wrong_arguments_are_refused_before_anything_runs(tmp_path, arguments, message):
    done = shell(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_flags_are_routed_to_the_stage_that_owns_them(capsys):
    evaluate.command_route(["--augmentations=warp+gauss", "--zeta=0.2", "--precision=bf16", "--cas-epochs=3", "--preset=fast"])
    assert capsys.readouterr().out.splitlines() == ["--zeta=0.2 --precision=bf16 --preset=fast", "--precision=bf16 --preset=fast",
                                                    "--precision=bf16 --cas-epochs=3 --preset=fast"]
    for flags, message in ((["--stage1-lr=fast"], "--stage1-lr fast: not float"), (["--preset=slow"], "--preset slow"),
                           (["--augmentations=wrap"], "AUGMENTATION wrap"), (["--seed=3"], "--seed: no such flag")):
        with pytest.raises(InputError, match=message):
            evaluate.command_route(flags)


# ----------------------------------------------------------------------------------------- recorded steps and precision

class FakeCuda:
    """Stands in for torch.cuda: a recording runs the function and replay() runs it again on the recorded tensors."""
    def __init__(self, monkeypatch, fails=False):
        self.replays, self.recording, outer = 0, None, self

        class Graph:
            def replay(self):
                outer.replays += 1
                new = self.step(*self.static)
                self.out.copy_(new)

        @contextlib.contextmanager
        def graph(g):
            if fails:
                raise RuntimeError("operation not permitted when stream is capturing")
            outer.recording = g
            yield
            outer.recording = None

        class Stream:
            def wait_stream(self, other):
                pass
        for name, value in dict(CUDAGraph=Graph, graph=graph, Stream=Stream, current_stream=Stream,
                                stream=lambda s: contextlib.nullcontext()).items():
            monkeypatch.setattr(torch.cuda, name, value)

    def step(self, x):
        """Adds x to a sum and returns it; while being recorded nothing is done, as on the device."""
        if self.recording is not None:
            self.recording.step, self.recording.static, self.recording.out = self.add, (x,), torch.zeros(x.shape)
            return self.recording.out
        return self.add(x)

    total = 0.0

    def add(self, x):
        self.total += float(x.sum())
        return x * 2


def test_a_recorded_step_does_every_step_once_whatever_the_shapes(monkeypatch):
    fake = FakeCuda(monkeypatch)
    step = data.Recorded(fake.step, torch.device("cuda"))
    expected = 0.0
    for i in range(20):
        x = torch.full((3 if i % 4 else 2,), float(i))                       # a smaller batch ends each epoch
        assert torch.equal(step(x), 2 * x)
        expected += float(x.sum())
        assert fake.total == expected
    assert fake.replays == 20 - 2 * data.Recorded.WARM_UP


def test_a_step_that_cannot_be_recorded_goes_on_op_by_op(monkeypatch, capsys):
    fake = FakeCuda(monkeypatch, fails=True)
    step = data.Recorded(fake.step, torch.device("cuda"))
    for i in range(8):
        assert torch.equal(step(torch.full((2,), float(i))), torch.full((2,), 2.0 * i))
    assert fake.total == 2 * sum(range(8)) and fake.replays == 0
    assert len(capsys.readouterr().err.splitlines()) == 1
    plain = data.Recorded(fake.step, torch.device("cpu"))
    assert torch.equal(plain(torch.ones(2)), torch.full((2,), 2.0)) and not plain.graphs


def test_learning_rates_are_set_as_numbers_and_as_tensors():
    model = torch.nn.Linear(2, 1)
    for lr in (0.1, torch.tensor(0.1)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        data.set_lr(optimizer, 0.025)
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.025)
        assert torch.is_tensor(optimizer.param_groups[0]["lr"]) == torch.is_tensor(lr)


@pytest.mark.parametrize("method", ["naive", "vibcreg"])
def test_bf16_stays_near_float32_and_keeps_its_statistics_in_float32(method):
    x, x_aug = draw(8, 40, dtype=torch.float32), draw(8, 40, seed=1, dtype=torch.float32)
    losses = []
    for precision in ("float32", "bf16"):
        model = tiny_model(method=method, augmentation="none" if method == "naive" else "slice", precision=precision).train()
        loss, terms, _ = model(x, None if method == "naive" else x_aug)
        loss.backward()
        u, z = model.encode(x)
        assert {t.dtype for t in (loss, u, z, *model.decode(z), model.quantizer.codebook, *terms.values())} == {torch.float32}
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
        losses.append(loss.item())
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.03)
    torch.manual_seed(0)
    exact = evaluate.FCN(3)
    rounded = evaluate.FCN(3, "bf16")
    rounded.load_state_dict(exact.state_dict())
    assert rounded.features(x).dtype == torch.float32
    torch.testing.assert_close(rounded.features(x), exact.features(x), atol=0.05, rtol=0.05)


# ------------------------------------------------------------------------------------------------------------ faults

# Runs a module's command and dies by kill -9 in front of the n-th rename of a finished file: config, log, one resume
# file per step (SECONDS = 0), checkpoint, metrics. n = 0 never dies.
DRIVER = """
import os, runpy, sys
sys.path.insert(0, sys.argv.pop(1))
import data
data.Resume.SECONDS = 0
moment, calls, replace = int(sys.argv.pop(1)), [0], os.replace
def dying_replace(a, b):
    calls[0] += 1
    if calls[0] == moment:
        os.kill(os.getpid(), 9)
    replace(a, b)
os.replace = dying_replace
sys.argv = sys.argv[1:]
runpy.run_path(os.path.join(sys.path[0], sys.argv[0]), run_name="__main__")
"""


def drive(moment, command, cwd, timeout=None):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DEVICE": "cpu", "OUT": str(cwd)}
    return subprocess.run([sys.executable, "-c", DRIVER, str(HERE), str(moment), *command], cwd=cwd, env=env,
                          capture_output=True, text=True, timeout=timeout)           # on time out: kill -9


def stages(folder):
    tiny = {name: [f for f in TINY if any(f[2:].split("=")[0].replace("-", "_") == field.name
                                          for field in dataclasses.fields(config))]
            for name, config in (("1", Stage1Config), ("2", PriorConfig), ("3", evaluate.EvalConfig))}
    run = str(folder / "own/vibcreg-slice/seed1")
    return [["ncvqvae.py", run, "--dataset", str(folder / "own.npz"), "--method", "vibcreg", "--augmentation", "slice",
             *tiny["1"]], ["prior.py", "train", run, *tiny["2"]], ["evaluate.py", "run", run, *tiny["3"]]]


def outcome(folder):
    """Everything a run computes: tensors of the checkpoints, metrics without the seconds, samples."""
    run = folder / "own/vibcreg-slice/seed1"
    tensors = {f"{s} {k}": v for s in ("stage1", "stage2")
               for k, v in torch.load(run / f"{s}.pt", weights_only=True)["state"].items()}
    metrics = {k: v for k, v in json.loads((run / "metrics.json").read_text()).items() if "seconds" not in k}
    with np.load(run / "samples.npz") as file:
        return tensors, metrics, file["X"], [json.loads(line).get("step") for line in open(run / "log.jsonl")]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    own_data(folder)
    for command in stages(folder):
        done = drive(0, command, folder)
        assert done.returncode == 0, done.stderr
    return folder


def assert_ends_as(uninterrupted, folder):
    ours, theirs = outcome(folder), outcome(uninterrupted)
    assert all(torch.equal(v, theirs[0][k]) for k, v in ours[0].items()) and ours[1] == theirs[1]
    assert np.array_equal(ours[2], theirs[2])
    steps = [s for s in ours[3] if s]
    assert sorted(steps) == sorted(s for s in theirs[3] if s)                # no step is logged twice
    assert not list(folder.rglob("*.resume.pt"))


@pytest.mark.parametrize("moments", [(5, 6, 12), *(pytest.param(m, marks=pytest.mark.slow) for m in (
    (1, 1, 1), (2, 3, 2), (3, 4, 5), (8, 8, 9), (9, 9, 15)))])
def test_killed_at_any_moment_a_rerun_ends_bit_for_bit_the_same(tmp_path, uninterrupted, moments):
    own_data(tmp_path)
    for moment, command in zip(moments, stages(tmp_path)):
        assert drive(moment, command, tmp_path).returncode == -9
        done = drive(0, command, tmp_path)
        assert done.returncode == 0, done.stderr
    assert_ends_as(uninterrupted, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_at_random_times_a_rerun_ends_bit_for_bit_the_same(tmp_path, uninterrupted, seed):
    own_data(tmp_path)
    chance = random.Random(seed)
    for command in stages(tmp_path):
        with contextlib.suppress(subprocess.TimeoutExpired):                 # it may have ended before
            drive(0, command, tmp_path, timeout=chance.uniform(1.5, 8))
        done = drive(0, command, tmp_path)
        assert done.returncode == 0, done.stderr
    assert_ends_as(uninterrupted, tmp_path)


def test_a_full_disk_leaves_the_last_good_file(tmp_path):
    path = tmp_path / "good.pt"
    data.write_atomic(path, lambda f: torch.save({"a": torch.ones(3)}, f))
    code = ("import sys, resource, signal; sys.path.insert(0, sys.argv[1]); import data, torch\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))\n"
            "data.run_command(lambda: data.write_atomic(sys.argv[2], lambda f: torch.save({'a': torch.ones(10**6)}, f)))")
    done = subprocess.run([sys.executable, "-c", code, str(HERE), str(path)], capture_output=True, text=True)
    assert done.returncode == 1 and "cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert torch.equal(data.load_checkpoint(path)["a"], torch.ones(3)) and [p.name for p in tmp_path.iterdir()] == ["good.pt"]


class Evil:
    def __reduce__(self):
        return (os.system, ("touch evil_was_here",))


def test_foreign_checkpoints_are_refused_and_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "stage1.pt"
    torch.save({"config": Evil()}, path)
    with pytest.raises(InputError, match="refused unread"):
        ncvqvae.load_stage1(tmp_path)
    assert not (tmp_path / "evil_was_here").exists()
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(InputError, match="truncated"):
        ncvqvae.load_stage1(tmp_path)
    torch.save(torch.ones(3), path)
    with pytest.raises(InputError, match="not a checkpoint"):
        ncvqvae.load_stage1(tmp_path)
    torch.save({"config": {}, "state": {}, "data": {"length": 40}}, path)
    with pytest.raises(InputError, match="no stage-1 checkpoint"):
        ncvqvae.load_stage1(tmp_path)


def test_another_dataset_or_config_is_refused(tmp_path):
    config = tiny_config(stage1_steps=1, dataset=own_data(tmp_path))
    ncvqvae.train_stage1(tmp_path / "r", config, device=torch.device("cpu"))
    with pytest.raises(InputError, match="stage1_lr = 0.001, this run 0.1"):
        ncvqvae.train_stage1(tmp_path / "r", dataclasses.replace(config, stage1_lr=0.1), device=torch.device("cpu"))
    own_data(tmp_path, length=33)                                            # the file changes under the run
    with pytest.raises(InputError, match="sha256"):
        prior.train_stage2(tmp_path / "r", PriorConfig(stage2_steps=1), device=torch.device("cpu"))
    with pytest.raises(InputError, match="stage2.pt: not there"):
        prior.load_stage2(tmp_path / "r")


def test_a_second_process_on_a_run_folder_is_told_who_holds_it(tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]); import data\ndata.run_command(lambda: data.hold(sys.argv[2]).__enter__())"
    with data.hold(tmp_path):
        done = subprocess.run([sys.executable, "-c", code, str(HERE), str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 1 and f"process {os.getpid()} on" in done.stderr
    assert subprocess.run([sys.executable, "-c", code, str(HERE), str(tmp_path)], capture_output=True).returncode == 0


def test_nan_stops_with_step_and_advice_and_collapse_warns(tmp_path, capsys):
    own = own_data(tmp_path)
    with pytest.raises(InputError, match=r"not finite at step \d+ .*last logged: step .*smaller learning rate"):
        ncvqvae.train_stage1(tmp_path / "nan", tiny_config(stage1_steps=30, stage1_lr=1e30, dataset=own),
                             device=torch.device("cpu"))
    assert not (tmp_path / "nan/stage1.pt").exists()
    ncvqvae.train_stage1(tmp_path / "one", tiny_config(stage1_steps=1, n_codes=1, dataset=own), device=torch.device("cpu"))
    assert "the codebook collapsed" in capsys.readouterr().err


def test_stage_2_leaves_stage_1_alone_and_the_same_seed_gives_the_same_prior(tmp_path):
    config = tiny_config(stage1_steps=2, dataset=own_data(tmp_path))
    ncvqvae.train_stage1(tmp_path / "r", config, device=torch.device("cpu"))
    before = (tmp_path / "r/stage1.pt").read_bytes()
    first = prior.train_stage2(tmp_path / "r", PriorConfig(stage2_steps=3, prior_hidden=32), device=torch.device("cpu"))
    assert (tmp_path / "r/stage1.pt").read_bytes() == before
    (tmp_path / "r/stage2.pt").unlink()
    second = prior.train_stage2(tmp_path / "r", PriorConfig(stage2_steps=3, prior_hidden=32), device=torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


def test_an_endless_row_is_refused_before_it_is_parsed(tmp_path):
    folder = write_ucr(tmp_path)
    (folder / "Tiny_TRAIN.tsv").write_text("1" + "\t0.5" * 10_000_000)
    start = time.time()
    with pytest.raises(InputError, match=r"TRAIN.tsv, row 1: over 4,000,000 characters"):
        data.load_dataset("Tiny", tmp_path, download=False)
    assert time.time() - start < 2


# ---------------------------------------------------------------------------------------------------------- download

def ts_bytes(cut=None):
    lines = ["@data"] + [",".join(map(str, x)) + ":" + y for y, x in ROWS]
    return "\n".join(lines).encode()[:cut]


def zip_bytes(*names, content=ts_bytes()):
    import io, zipfile
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return buffer.getvalue()


GOOD_ZIP = zip_bytes("Mallat_TRAIN.ts", "Mallat_TEST.ts")
MIRROR_FAULTS = {                     # what the zip's address answers: status, body, promised length; the reason in the message
    "404": (404, b"no", None, "404"), "html": (200, b"<html>hello</html>", None, "not a sound zip"),
    "empty": (202, b"", None, "answered 202 with 0 bytes"),
    "half a zip": (200, GOOD_ZIP[:len(GOOD_ZIP) // 2], None, "not a sound zip"),
    "cut mid-file": (200, GOOD_ZIP[:50], len(GOOD_ZIP), "bytes missing|IncompleteRead"),
    "climbing": (200, zip_bytes("../Mallat_TRAIN.ts", "../Mallat_TEST.ts"), None, "the zip has no Mallat_TRAIN"),
    "one split": (200, zip_bytes("Mallat_TRAIN.ts"), None, "the zip has no Mallat_TEST"),
    "html in the zip": (200, zip_bytes("Mallat_TRAIN.ts", "Mallat_TEST.ts", content=b"<html>"), None, "0 channels, expected 1 and a label"),
}


@pytest.fixture
def mirror(monkeypatch):
    """A local stand-in for both mirrors: paths -> (status, body, Content-Length)."""
    import http.server, threading
    answers = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, body, promised = answers.get(self.path, (404, b"", None))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if promised is None else promised))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("UCR_MIRROR", f"http://127.0.0.1:{server.server_port}")
    yield answers
    server.shutdown()


def test_download_from_the_first_mirror(tmp_path, mirror):
    mirror["/aeon-toolkit/Mallat.zip"] = (200, GOOD_ZIP, None)
    d = data.load_dataset("Mallat", tmp_path)
    assert d.x_train.shape == (3, 9) and {p.name for p in tmp_path.rglob("*")} == {"Mallat", "Mallat_TRAIN.ts", "Mallat_TEST.ts"}


@pytest.mark.parametrize("fault", MIRROR_FAULTS)
def test_a_bad_mirror_leaves_nothing_and_the_second_one_serves(tmp_path, mirror, fault):
    root = tmp_path / "inner"
    *mirror["/aeon-toolkit/Mallat.zip"], reason = MIRROR_FAULTS[fault]
    with pytest.raises(InputError, match=r"no mirror has it .*put Mallat_TRAIN.tsv and Mallat_TEST.tsv into") as error:
        data.load_dataset("Mallat", root)
    assert re.search(reason, str(error.value)) and "\n" not in str(error.value) and not [p for p in tmp_path.rglob("*") if p != root]
    for split in ("TRAIN", "TEST"):
        mirror[f"/records/11197731/files/Mallat_{split}.ts"] = (200, ts_bytes(), None)
    assert data.load_dataset("Mallat", root).x_test.shape == (3, 9)


def test_without_a_network_the_message_says_where_files_go(tmp_path, monkeypatch):
    monkeypatch.setenv("UCR_MIRROR", "http://127.0.0.1:9")                   # the discard port: nobody listens
    with pytest.raises(InputError, match="password: someone"):
        data.load_dataset("Mallat", tmp_path)
    assert not list(tmp_path.iterdir())
