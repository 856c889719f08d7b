"""What the method itself guarantees; python -m pytest --collect-only -q lists it.

In the order of the modules and of the thesis: data (§5.1.1, §5.2), ncvqvae (§4.1.1, §3.3), prior
(§3.2, §4.1.2), evaluate (§2.7), whole runs. An oracle is a slow transcription of the equation, in
loops and float64, written here. tests/test_reading.py: files and settings that people bring.
tests/test_faults.py: what may go wrong around a run.

All tests: bash run.sh test (3 to 4 minutes on 2 cores), with the long ones: test --slow.
"""

import contextlib
import copy
import dataclasses
import functools
import json
import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import data
import evaluate
import ncvqvae
import prior
from data import Config, InputError
from helpers import (
    HERE,
    TINY,
    command,
    draw,
    generator,
    linear_training,
    no_figures,
    npz,
    own_data,
    run_all,
    shell,
    tiny_config,
    tiny_model,
)
from ncvqvae import NCVQVAE
from prior import Prior

# ---- data: sets and settings (§5.2) ----


def test_two_patterns_has_balanced_classes_and_both_steps():
    x, y = data.two_patterns(401, 128, seed=3, noise=0.0)
    assert x.shape == (401, 128) and x.dtype == torch.float32
    assert np.ptp(np.bincount(y.numpy(), minlength=4)) <= 1
    assert torch.equal(x, data.two_patterns(401, 128, seed=3, noise=0.0)[0])
    assert 2 * 16 <= (x != 0).sum(1).min() < 2 * 20  # two steps of an eighth of the length at least
    for series, label in zip(x, y, strict=True):
        # e.g. down-up, up-down
        jumps = [int(v) for v in series[series != 0].sign().unique_consecutive()]
        first, second = ([-1, 1] if label // 2 else [1, -1]), ([-1, 1] if label % 2 else [1, -1])
        # +-, -+ share a sign
        merged = first + second if first[1] != second[0] else first + second[1:]
        assert jumps == merged and set(series.unique().tolist()) == {-5.0, 0.0, 5.0}


def test_the_toy_set_has_splits_of_its_own():
    d = data.load_dataset("toy")
    assert d.x_train.shape == d.x_test.shape == (1000, 64) and d.classes == [0, 1, 2, 3]
    assert torch.cdist(d.x_test, d.x_train).min() > 0.1  # no test series is a train series


def test_a_result_hangs_on_every_field_up_to_its_own_stage():
    names, config = [f.name for f in dataclasses.fields(Config)], Config(seed=7, fcn_lr=0.5)
    last = dict(stage1="projector_dim", stage2="token_temperature", metrics="fcn_weight_decay")
    wanted = {result: names[: names.index(name) + 1] for result, name in last.items()}
    wanted["fcn"] = [
        "seed",
        "precision",
        "fcn_epochs",
        "fcn_steps",
        "fcn_batch",
        "fcn_lr",
        "fcn_weight_decay",
    ]
    for result, fields in wanted.items():
        assert config.settings_of(result) == {
            k: getattr(config, k)
            for k in fields
            if k not in ("dataset", "stages", "validate_epochs")
        }, result


# ---- data: augmentations (§5.1.1) ----


@pytest.mark.parametrize(
    "spec", [*data.AUGMENTATIONS, "warp+gauss", "amplitude+flip+slope+phase+jitter"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_augmentations_keep_shape_dtype_and_seed(spec, dtype):
    x = draw(6, 37, dtype=dtype)
    y = data.augment(x, spec, generator(1))
    assert y.shape == x.shape and y.dtype == dtype and torch.isfinite(y).all()
    assert not torch.equal(x, y)
    assert torch.equal(y, data.augment(x, spec, generator(1)))
    assert torch.equal(x, draw(6, 37, dtype=dtype))  # the original view is untouched


def test_amplitude_is_one_factor_a_series_and_warp_has_it_first():
    x = draw(5, 20) + 3
    factor = data.amplitude_resize(x, generator(1)) / x
    torch.testing.assert_close(factor, factor[:, :1].expand_as(x))
    assert factor[:, 0].std() > 0.05
    g = generator(2)
    assert torch.equal(
        data.augment(x, "warp", generator(2)), data.window_warp(data.amplitude_resize(x, g), g)
    )
    g = generator(2)  # the first of a name is the first applied
    assert torch.equal(
        data.augment(x, "slope+amplitude", generator(2)), data.amplitude_resize(data.slope(x, g), g)
    )


def test_flip_reverses_time():
    x = draw(4000, 11)
    y = data.flip(x, generator())
    turned = (y == x.flip(1)).all(1)
    assert (turned ^ (y == x).all(1)).all()
    assert turned.double().mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("length", [128, 37, 8])
def test_phase_is_drawn_per_bin_and_frame(length):
    x = draw(3, length)
    n_fft = 2 ** math.ceil(math.log2(length))
    angle = -math.pi / 4 + math.pi / 2 * torch.rand(
        3, n_fft // 2 + 1, length // (n_fft // 4) + 1, generator=generator(), dtype=torch.float64
    )
    window = torch.ones(n_fft, dtype=torch.float64)
    u = torch.stft(x, n_fft, hop_length=n_fft // 4, window=window, return_complex=True)
    turned = u.abs() * torch.exp(1j * (u.angle() + angle))
    expected = torch.istft(turned, n_fft, hop_length=n_fft // 4, window=window, length=length)
    torch.testing.assert_close(data.phase_shift(x, generator()), expected)


@pytest.mark.parametrize("length", [70, 398, 128, 65])
def test_roundtrip_is_an_stft_whose_inverse_was_not_told_the_length(length):
    x, window = draw(3, length), torch.hann_window(32, dtype=torch.float64)
    u = torch.stft(x, 32, hop_length=8, window=window, return_complex=True)
    back = torch.istft(u, 32, hop_length=8, window=window)
    expected = torch.zeros_like(x)
    expected[:, : back.shape[1]] = back
    torch.testing.assert_close(data.augment(x, "roundtrip"), expected)
    assert (data.augment(x, "roundtrip") == 0).sum(1).tolist() == [length % 8] * 3


def test_window_warp_against_a_loop():
    B, L = 5, 41
    x, g = draw(B, L), generator(7)
    y = data.window_warp(x, g)
    g = generator(7)  # the same draws: factor, then place
    s = 0.9 + 1.1 * torch.rand(B, 1, generator=g, dtype=torch.float64).numpy()[:, 0]
    w = round(0.4 * (L - 1))
    a = np.floor(torch.rand(B, 1, generator=g, dtype=torch.float64).numpy()[:, 0] * (L - w))
    for b in range(B):
        step = np.ones(L - 1)  # warped time between neighbours
        step[int(a[b]) : int(a[b]) + w] = s[b]
        tau = np.concatenate([[0], np.cumsum(step)])
        np.testing.assert_allclose(
            y[b], np.interp(np.linspace(0, tau[-1], L), tau, x[b]), atol=1e-9
        )
    np.testing.assert_allclose(y[:, [0, -1]], x[:, [0, -1]], atol=1e-9)  # end points stay


def test_slice_and_shuffle_permutes_four_contiguous_pieces():
    x = torch.arange(40.0).repeat(200, 1)
    y = data.slice_and_shuffle(x, generator())
    assert torch.equal(y.sort(1).values, x)
    breaks = ((y[:, 1:] - y[:, :-1]) != 1).sum(1)
    assert breaks.max() == 3 and len(y.unique(dim=0)) > 150
    assert len(y[:, 0].unique()) > 20  # any piece may come first


def test_slice_and_shuffle_index_by_index():
    B, L = 4, 23
    x, g = draw(B, L), generator(3)
    y = data.slice_and_shuffle(x, g)
    g = generator(3)  # the same draws: cuts, then new places
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
    line = data.slope(x, generator()) - x
    assert line[:, 0].abs().max() == 0 and line[:, 1].abs().max() <= 0.01
    assert line[:, 7].std() == pytest.approx(7 * 0.01 / math.sqrt(3), rel=0.05)


# ---- ncvqvae: stage 1 (§4.1.1) ----


@pytest.mark.parametrize("length", [8, 15, 24, 84, 131, 500, 577])
def test_istft_inverts_stft_to_the_exact_length(length):
    x = draw(3, length)
    u = ncvqvae.stft(x, 8)
    assert u.shape == (3, 2, 5, length // 2 + 1)
    torch.testing.assert_close(ncvqvae.istft(u, 8, length), x)


def test_stft_against_the_fourier_sum():
    x = draw(2, 20)
    u = ncvqvae.stft(x, 8)
    padded = np.pad(x.numpy(), ((0, 0), (4, 4)), mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(8) / 8)
    for frame in range(11):
        for k in range(5):
            wave = np.exp(-2j * np.pi * k * np.arange(8) / 8)
            value = (padded[:, 2 * frame : 2 * frame + 8] * window * wave).sum(1)
            np.testing.assert_allclose(u[:, 0, k, frame], value.real, atol=1e-12)
            np.testing.assert_allclose(u[:, 1, k, frame], value.imag, atol=1e-12)


@pytest.mark.parametrize(
    "length,width,n,frames",
    [
        (500, 8, 4, 15),
        (128, 8, 3, 8),
        (70, 8, 2, 9),
        (398, 8, 4, 12),
        (24, 8, 1, 6),
        (8, 8, 1, 2),
        (500, 32, 3, 31),
        (1024, 8, 6, 8),
    ],
)
def test_encoder_and_decoder_shapes(length, width, n, frames):
    assert ncvqvae.n_downsampling(length, width) == n
    u = ncvqvae.stft(draw(2, length, dtype=torch.float32), 8)
    z = ncvqvae.Encoder(n)(u)
    assert z.shape == (2, 64, 5, frames)
    assert ncvqvae.Decoder(n)(z, u.shape[3]).shape == u.shape


def test_no_column_of_the_padded_series_is_left_without_an_output(monkeypatch):
    """An unread column met memory that nobody wrote: NaN in bf16 on some processors."""
    seen, conv2d = [], F.conv2d
    monkeypatch.setattr(
        F, "conv2d", lambda x, *a, **k: seen.append(x.shape[3]) or conv2d(x, *a, **k)
    )
    conv = ncvqvae.HalvingConv(2, 3).double()
    for width in range(2, 600):
        x = draw(1, 2, 5, width)
        out = conv(x)
        assert out.shape == (1, 3, 5, width // 2)
        assert seen.pop() == 2 * (width // 2 - 1) + 4, width  # what strides of 2 of a width 4 read
        if width < 20:  # the same as with a column on either side
            padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
            expected = conv2d(padded, conv.weight, conv.bias, (1, 2))
            torch.testing.assert_close(out, expected)
            seen.clear()


def test_latent_frames_follow_the_hop_and_are_never_none():
    model = ncvqvae.NCVQVAE(tiny_config(n_fft=16, latent_width=8), 256)
    assert model.bands[0].grid == (9, 8)
    for n_fft in (4, 8, 16, 28, 64):
        hop = n_fft // 4
        for width in (1, 3, 8, 32):
            for length in range(n_fft, 600, 7):
                n = ncvqvae.n_downsampling(length, width, n_fft)
                left = (length // hop + 1) // 2**n
                assert n >= 1 and left >= 1
                if length >= 4 * hop * width:  # shorter ones are halved once at least
                    assert 0.6 * width < left <= 2 * width + 2, (n_fft, width, length)


def published(u, state, n, frames=None, norm=True):
    """Encoder (frames None) or decoder of the published program in eval mode, layer by layer, with
    the weights of a state dict in order.

    norm: BatchNorm between a residual block's two convolutions.
    """
    values = iter([v for k, v in state.items() if not k.endswith("num_batches_tracked")])

    def conv(x, transposed=False, **options):
        convolve = F.conv_transpose2d if transposed else F.conv2d
        return convolve(x, next(values), next(values), **options)

    def batch_norm(x):
        weight, bias, mean, var = (next(values)[:, None, None] for _ in range(4))
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def down(x):
        x = torch.cat([x[..., :1], x, x[..., -1:]], 3)  # replicate
        x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
        return F.leaky_relu(batch_norm(conv(x, stride=(1, 2))), 0.01)

    def residual(x):
        h = conv(F.leaky_relu(x, 0.01), padding=1)
        h = batch_norm(h) if norm else h
        return batch_norm(x + conv(F.leaky_relu(h, 0.01)))

    for _ in range(n if frames is None else 0):
        u = down(u)
    for _ in range(4):
        u = residual(u)
    if frames is not None:
        for _ in range(n - 1):
            u = F.leaky_relu(batch_norm(conv(u, True, stride=(1, 2), padding=1)), 0.01)
        u = conv(conv(u, True, stride=(1, 2), padding=1), True, stride=(1, 2), padding=1)
        place = torch.linspace(0, u.shape[3] - 1, frames, dtype=u.dtype)  # corners aligned
        left = place.floor().long().clamp(max=u.shape[3] - 2)
        u = u[..., left] * (1 - (place - left)) + u[..., left + 1] * (place - left)
    assert next(values, None) is None  # every weight was used
    return u


@pytest.mark.parametrize(
    "where,encoder,decoder",
    [("encoder", True, False), ("both", True, True), ("none", False, False)],
)
def test_batch_norm_in_residual_blocks_is_the_published_one(where, encoder, decoder):
    torch.manual_seed(0)
    config = Config(residual_norm=where) if where != "encoder" else Config()
    band = NCVQVAE(config, 70).double().bands[0]
    for buffer in band.encoder.buffers():  # running statistics of a trained model
        if buffer.dim():
            buffer.copy_(torch.rand(buffer.shape, generator=generator(1)) + 0.5)
    band.eval()
    u = ncvqvae.stft(draw(2, 70), 8)
    z = band.encoder(u)
    torch.testing.assert_close(z, published(u, band.encoder.state_dict(), 2, norm=encoder))
    expected = published(z, band.decoder.state_dict(), 2, 36, norm=decoder)
    torch.testing.assert_close(band.decoder(z, 36), expected)


def tiny_quantizer(K=6, D=3):
    torch.manual_seed(0)
    return ncvqvae.VectorQuantizer(K, D).double()


def test_quantizer_takes_the_nearest_code_and_passes_the_gradient_straight_through():
    q, z = tiny_quantizer(), draw(2, 3, 5, 4).requires_grad_()
    book = q.codebook.clone()
    z_q, idx, commitment = q(z)
    distance = (z.detach().permute(0, 2, 3, 1)[..., None, :] - book).norm(dim=-1)
    assert torch.equal(idx, distance.argmin(-1))
    assert torch.equal(z_q, book[idx].permute(0, 3, 1, 2))  # exactly, and from before the update
    torch.testing.assert_close(commitment, (z - z_q.detach()).square().mean())
    weight = draw(2, 3, 5, 4, seed=1)
    (gradient,) = torch.autograd.grad((z_q * weight).sum(), z, retain_graph=True)
    assert torch.equal(gradient, weight)
    (gradient,) = torch.autograd.grad(commitment, z)
    torch.testing.assert_close(gradient, 2 * (z - z_q).detach() / z.numel())


@pytest.mark.parametrize("count", [1.0, 0.0, 8.0])
def test_moving_averages_against_a_loop(count):
    torch.manual_seed(0)
    q = ncvqvae.VectorQuantizer(6, 3, initial_count=count).double()
    K = len(q.codebook)
    N, book = np.full(K, count), q.codebook.numpy().copy()
    m = book * (count if count else 1.0)
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
    assert unused  # codes that win nothing were there


def assert_no_ties(distances):
    """The nearest code is so much nearer than the next that no rounding swaps them."""
    nearest, second = distances.topk(2, largest=False).values.unbind(-1)
    assert (second - nearest).min() > 1e-4


def test_eval_moves_nothing_and_the_order_of_series_changes_nothing():
    model = tiny_model().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = draw(9, 40, dtype=torch.float32)
    out = ncvqvae.encode_split(model, x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert_no_ties(model.bands[0].quantizer.distances(model.encode(x)[1][0]))
    turned = ncvqvae.encode_split(model, x.flip(0), batch=4)
    assert torch.equal(out["tokens"], turned["tokens"].flip(0))
    torch.testing.assert_close(out["errors"], turned["errors"].flip(0))
    u = ncvqvae.stft(x, 8)
    z_q = model.bands[0].quantizer.lookup(out["tokens"].view(9, 5, -1))
    errors = [
        ((out["x_hat"] - x) ** 2).mean(1),
        ((model.bands[0].decoder(z_q, 21) - u) ** 2).mean((1, 2, 3)),
    ]
    torch.testing.assert_close(out["errors"], torch.stack(errors, 1))
    assert torch.equal(model.tokens(x), out["tokens"])
    torch.testing.assert_close(model.series(out["tokens"]), out["x_hat"])
    book = model.codebook()[out["tokens"]]  # (n, N, D)
    torch.testing.assert_close(out["averages"], book.mean(1))


def test_tokens_are_drawn_by_their_distance_where_a_temperature_asks():
    model, x = tiny_model(n_codes=3).eval(), draw(1, 40, dtype=torch.float32)
    d2 = model.bands[0].quantizer.distances(model.encode(x)[1][0]).flatten(1, 2)[0]  # (N, K)
    drawn = F.one_hot(model.tokens(x.expand(8000, -1), 5.0, generator()), 3).double().mean(0)
    torch.testing.assert_close(drawn, (-d2 / 5).softmax(-1).double(), atol=0.025, rtol=0)
    assert torch.equal(model.tokens(x), d2.argmin(-1)[None])


WEIGHTS = dict(
    barlow_lambda=0.02, similarity_weight=3.0, variance_weight=5.0, covariance_weight=7.0
)  # all different, none the default


def scaled_ssl_loss(method, p1, p2):
    """As the thesis scales it, a projector of 64; with WEIGHTS."""
    if method == "barlow":
        return ncvqvae.barlow_twins_loss(p1, p2, 0.02) / 64
    return 0.01 * ncvqvae.vibcreg_loss(p1, p2, similarity=3, variance=5, covariance=7)


@pytest.mark.parametrize("method", ["naive", "barlow", "vibcreg"])
def test_total_loss_is_equation_4_5(method):
    model = tiny_model(
        method=method,
        augmentation="none" if method == "naive" else "slice",
        zeta=0.3,
        beta=0.7,
        eta=2.0,
        **WEIGHTS,
    ).train()
    x, x_aug = draw(8, 40, dtype=torch.float32), draw(8, 40, seed=1, dtype=torch.float32)
    twin = copy.deepcopy(model)
    loss, terms, tokens = model(x, None if method == "naive" else x_aug)

    def mse(a, b):
        return ((a - b) ** 2).mean()

    band, u = twin.bands[0], ncvqvae.stft(x, 8)
    z = band.encoder(u)
    z_q, indices, _ = band.quantizer(z)
    u_hat = band.decoder(z_q, 21)
    expected = mse(ncvqvae.istft(u_hat, 8, 40), x) + mse(u_hat, u) + 0.7 * mse(z, z_q.detach())
    assert torch.equal(tokens, indices.flatten(1))
    if method != "naive":
        u = ncvqvae.stft(x_aug, 8)
        z_aug = band.encoder(u)  # not quantised, statistics of its own
        u_hat = band.decoder(z_aug, 21)
        expected = expected + 0.3 * (mse(ncvqvae.istft(u_hat, 8, 40), x_aug) + mse(u_hat, u))
        (p1,) = twin.projector(torch.cat([z_q.mean((2, 3)), z_q.amax((2, 3))], 1))
        (p2,) = twin.projector(torch.cat([z_aug.mean((2, 3)), z_aug.amax((2, 3))], 1))
        ssl = scaled_ssl_loss(method, p1, p2)
        expected = expected + 2.0 * ssl
        torch.testing.assert_close(terms["ssl"], 2.0 * ssl.detach())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss.detach(), sum(terms.values()))
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("method", ["barlow", "vibcreg"])
def test_two_views_are_partners_and_x_is_not_seen(tmp_path, monkeypatch, method):
    """Loss by hand: x_A quantised and decoded, continuous z_A against z_B, x_B not decoded."""
    model = tiny_model(
        method=method, augmentation="gauss", views=2, beta=0.7, eta=2.0, **WEIGHTS
    ).train()
    a, b = draw(8, 40, dtype=torch.float32), draw(8, 40, seed=1, dtype=torch.float32)
    twin, cut = copy.deepcopy(model), copy.deepcopy(model)
    loss, terms, _ = model(a, b)
    band, u = twin.bands[0], ncvqvae.stft(a, 8)
    z_a = band.encoder(u)  # each view by itself: statistics of its own
    z_q, _, _ = band.quantizer(z_a)
    u_hat = band.decoder(z_q, 21)
    z_b = band.encoder(ncvqvae.stft(b, 8))
    p = [twin.projector(torch.cat([z.mean((2, 3)), z.amax((2, 3))], 1))[0] for z in (z_a, z_b)]
    recon = F.mse_loss(ncvqvae.istft(u_hat, 8, 40), a) + F.mse_loss(u_hat, u)
    expected = recon + 0.7 * F.mse_loss(z_a, z_q.detach()) + 2 * scaled_ssl_loss(method, *p)
    torch.testing.assert_close(loss, expected)
    assert set(terms) == {"recon_time", "recon_freq", "commitment", "ssl"}
    for (name, x), y in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(x, y), name  # BatchNorm saw A, then B

    def nothing(self, z):
        codes = torch.zeros(len(z), *z.shape[2:], dtype=torch.int64)
        return torch.zeros_like(z), codes, z.new_zeros(())

    monkeypatch.setattr(ncvqvae.VectorQuantizer, "forward", nothing)  # the quantiser cut out
    cut.zero_grad()
    cut.ssl_loss(*(cut.encode(v)[1] for v in (a, b))).backward()
    assert all(p.grad.abs().sum() > 0 for p in cut.bands[0].encoder[0].parameters() if p.ndim > 1)
    monkeypatch.undo()

    seen, encode = [], NCVQVAE.encode

    def spy(self, x):
        if self.training:
            seen.append(x.clone())
        return encode(self, x)

    monkeypatch.setattr(NCVQVAE, "encode", spy)
    own = own_data(tmp_path)
    config = tiny_config(
        method=method, augmentation="gauss", views=2, stage1_steps=3, dataset=own, validate_epochs=1
    )
    ncvqvae.train_stage1(tmp_path / "r", config)
    x = data.load_dataset(own).x_train
    assert len(seen) == 6 and not any(torch.equal(row, one) for row in torch.cat(seen) for one in x)
    for views in (seen[::2], seen[1::2]):  # each T(x), neither T(T(x)): noise of 0.05
        rows = torch.cat(views)
        noise = torch.cat([row - x[(x - row).square().sum(1).argmin()] for row in rows])
        assert noise.std().item() == pytest.approx(0.05, rel=0.1)
    assert not torch.equal(seen[0], seen[1])


def two_bands(**fields):
    return tiny_model(bands=2, latent_width=2, latent_width_high=16, **fields)


def test_two_bands_are_zero_padded_to_full_height(monkeypatch):
    """Eq. 3.1, 3.2 by hand: u split into its low row and the others, the rest zero; each half has
    an encoder, a codebook and a decoder; the halves, inverted apart, add up to the series."""
    model, x = two_bands().eval(), draw(5, 40, dtype=torch.float32)
    low, high = model.bands
    assert low.mask.flatten().tolist() == [1, 0, 0, 0, 0]
    assert high.mask.flatten().tolist() == [0, 1, 1, 1, 1]
    u, z = model.encode(x)
    u_low, u_high = torch.zeros_like(u), u.clone()
    u_low[:, :, 0], u_high[:, :, 0] = u[:, :, 0], 0
    torch.testing.assert_close(z[0], low.encoder(u_low))
    torch.testing.assert_close(z[1], high.encoder(u_high))
    assert [tuple(z_k.shape[2:]) for z_k in z] == [low.grid, high.grid] == [(5, 2), (5, 10)]
    assert model.sizes == [5 * 2, 5 * 10]  # tokens: 5 W' a band

    other = u.clone()
    other[:, :, 1:] += 1  # what is not of a band changes nothing in it
    monkeypatch.setattr(ncvqvae, "stft", lambda x, n_fft: other)
    assert torch.equal(model.encode(x)[1][0], z[0]) and not torch.equal(model.encode(x)[1][1], z[1])
    monkeypatch.undo()

    z_q, tokens, commitment = model.quantize(z)
    u_hat, x_hat = model.decode(z_q)
    halves = torch.zeros(2, *u.shape)
    halves[0, :, :, 0] = low.decoder(z_q[0], 21)[:, :, 0]
    halves[1, :, :, 1:] = high.decoder(z_q[1], 21)[:, :, 1:]
    torch.testing.assert_close(u_hat, halves.sum(0))
    torch.testing.assert_close(x_hat, sum(ncvqvae.istft(half, 8, 40) for half in halves))
    torch.testing.assert_close(
        commitment, sum(F.mse_loss(a, b) for a, b in zip(z, z_q, strict=True))
    )
    _, terms, _ = model(x)  # the two frequency terms of eq. 3.2
    mine = ((u_low - halves[0]).square().sum() + (u_high - halves[1]).square().sum()) / u.numel()
    torch.testing.assert_close(terms["recon_freq"], mine.detach())


def test_every_field_of_a_band_reaches_its_own_part():
    model = tiny_model(
        bands=2,
        latent_width=2,
        latent_width_high=4,
        residual_kernel=3,
        n_codes=5,
        ema_decay=0.8,
        ema_initial_count=0.5,
    )
    assert model.sizes == [5 * 2, 5 * 5]  # 21 frames halved three times, and twice
    for band in model.bands:
        kernels = [
            [
                c.kernel_size
                for c in part.modules()
                if type(c) is torch.nn.Conv2d and c.stride == (1, 1)
            ]
            for part in (band.encoder, band.decoder)
        ]
        assert kernels == [[(3, 3)] * 8] * 2  # two in each of four residual blocks
        assert (len(band.quantizer.codebook), band.quantizer.decay) == (5, 0.8)
        assert band.quantizer.counts.tolist() == [0.5] * 5
    assert tiny_model(latent_width=2, latent_width_high=4).sizes == [5 * 2]


@pytest.mark.parametrize("bands", [1, 2])
def test_tokens_and_series_are_each_others_inverse(bands):
    model = tiny_model(bands=bands, latent_width_high=16).eval()
    x = draw(6, 40, dtype=torch.float32)
    z_q, ids, _ = model.quantize(model.encode(x)[1])
    tokens, sizes = model.tokens(x), model.sizes
    assert torch.equal(tokens, ids) and tokens.shape[1] == sum(sizes)
    assert len(model.codebook()) == 32 * bands
    for k, part in enumerate(tokens.split(sizes, 1)):  # each band's ids are its codes'
        assert part.min() >= 32 * k and part.max() < 32 * (k + 1)
    looked_up = model.codebook()[tokens]
    torch.testing.assert_close(looked_up[:, : sizes[0]].transpose(1, 2), z_q[0].flatten(2))
    torch.testing.assert_close(model.series(tokens), model.decode(z_q)[1])


def test_the_projector_sees_both_bands():
    model = two_bands(method="barlow", augmentation="slice").train()
    z, z_aug = (
        [
            draw(8, 16, 5, 2, seed=s, dtype=torch.float32),
            draw(8, 16, 5, 10, seed=s + 1, dtype=torch.float32),
        ]
        for s in (0, 5)
    )
    both = [
        torch.cat([torch.cat([part.mean((2, 3)), part.amax((2, 3))], 1) for part in side], 1)
        for side in (z, z_aug)
    ]
    assert both[0].shape == (8, 64)
    expected = ncvqvae.barlow_twins_loss(*(model.projector(side)[0] for side in both)) / 64
    torch.testing.assert_close(model.ssl_loss(z, z_aug), expected)


def test_the_maximum_of_tied_codes_sends_its_gradient_to_one_place():
    z = torch.zeros(2, 3, 5, 4)
    z[:, :, 1, 2] = z[:, :, 4, 0] = 1.0  # a code that is there twice
    z.requires_grad_()
    pooled = ncvqvae.pool(z)
    torch.testing.assert_close(pooled, torch.cat([z.mean((2, 3)), z.amax((2, 3))], 1))
    (gradient,) = torch.autograd.grad(pooled[:, 3:].sum(), z)
    assert ((gradient == 1).sum((2, 3)) == 1).all() and ((gradient == 0).sum((2, 3)) == 19).all()


# ---- ncvqvae: losses (§3.3) ----


def assert_same_gradient(fast, slow, *inputs):
    """Value and gradient of two scalar functions agree."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    a, b = fast(*inputs), slow(*inputs)
    torch.testing.assert_close(a, b)
    for ga, gb in zip(torch.autograd.grad(a, inputs), torch.autograd.grad(b, inputs), strict=True):
        torch.testing.assert_close(ga, gb)


def slow_barlow(z1, z2, lambd=0.005):
    """Eq. 3.7 and 3.8, entry by entry."""
    B, P = z1.shape
    z1, z2 = z1 - z1.mean(0), z2 - z2.mean(0)
    loss = 0
    for i in range(P):
        for j in range(P):
            lengths = z1[:, i].square().sum().sqrt() * z2[:, j].square().sum().sqrt()
            c = (z1[:, i] * z2[:, j]).sum() / lengths
            loss = loss + ((1 - c) ** 2 if i == j else lambd * c**2)
    return loss


def slow_vibcreg(z1, z2, similarity=25, variance=25, covariance=100):
    """Eq. 3.9 to 3.15, with ledger 5 (mean over features) and 6 (no 1/(B-1))."""
    B, P = z1.shape

    def v(z):
        variances = [((z[:, f] - z[:, f].mean()) ** 2).sum() / (B - 1) for f in range(P)]
        return sum(torch.clamp(1 - torch.sqrt(s + 1e-4), min=0) for s in variances) / P

    def c(z):
        z = [z[:, f] - z[:, f].mean() for f in range(P)]
        hat = [f / (f**2).sum().sqrt() for f in z]
        pairs = [(i, j) for i in range(P) for j in range(P) if i != j]
        return sum((hat[i] * hat[j]).sum() ** 2 for i, j in pairs) / P**2

    s = sum(((z1[b] - z2[b]) ** 2).sum() for b in range(B)) / (B * P)
    return similarity * s + variance * (v(z1) + v(z2)) + covariance * (c(z1) + c(z2))


@pytest.mark.parametrize(
    "fast,slow,weights",
    [
        (ncvqvae.barlow_twins_loss, slow_barlow, {}),
        (ncvqvae.vibcreg_loss, slow_vibcreg, {}),
        (ncvqvae.barlow_twins_loss, slow_barlow, dict(lambd=0.3)),
        (ncvqvae.vibcreg_loss, slow_vibcreg, dict(similarity=3, variance=5, covariance=7)),
    ],
)
def test_ssl_losses_against_their_equations(fast, slow, weights):
    assert_same_gradient(
        lambda *z: fast(*z, **weights),
        lambda *z: slow(*z, **weights),
        draw(7, 5),
        0.3 * draw(7, 5, seed=1) + 0.3 * draw(7, 5) + 2,
    )


def test_identical_views_correlate_fully():
    z = draw(50, 1)
    assert ncvqvae.barlow_twins_loss(z, 3 * z + 1).item() == pytest.approx(0, abs=1e-15)


def test_iter_norm_against_a_loop_and_towards_exact_whitening():
    z = draw(64, 8) @ (torch.eye(8, dtype=torch.float64) + 0.1 * draw(8, 8, seed=1))

    def slow(z):
        out = []
        for g in range(2):
            x = (z[:, 4 * g : 4 * g + 4] - z[:, 4 * g : 4 * g + 4].mean(0)).T
            S = x @ x.T / 64 + 1e-5 * torch.eye(4, dtype=z.dtype)
            P = torch.eye(4, dtype=z.dtype)
            for _ in range(5):
                P = (3 * P - torch.linalg.matrix_power(P, 3) @ (S / S.trace())) / 2
            out.append((P @ x).T / S.trace().sqrt())
        return torch.cat(out, 1)

    weight = draw(64, 8, seed=2)
    assert_same_gradient(
        lambda z: (ncvqvae.iter_norm(z, 2) * weight).sum(), lambda z: (slow(z) * weight).sum(), z
    )
    distances = []
    for T in (1, 5, 10):
        w = ncvqvae.iter_norm(z, 1, iterations=T, eps=0.0)
        distances.append((w.T @ w / 64 - torch.eye(8, dtype=z.dtype)).norm().item())
    assert distances[0] > distances[1] > distances[2] and distances[2] < 1e-9


def test_projector_whitens_groups_of_64_then_scales_and_shifts():
    torch.manual_seed(0)
    projector, x = ncvqvae.Projector(6, 192, whiten=True), draw(99, 6, dtype=torch.float32)
    projector.scale.data.uniform_(0.5, 2)
    projector.shift.data.uniform_(-1, 1)
    h = x
    for linear in projector.linears[:2]:
        h = linear(h)
        h = ((h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()).relu()
    whitened = torch.cat(
        [ncvqvae.iter_norm(part, 1) for part in projector.linears[2](h).split(64, 1)], 1
    )
    torch.testing.assert_close(
        projector(x)[0], whitened * projector.scale + projector.shift, atol=2e-4, rtol=2e-3
    )


def test_projector_keeps_the_views_statistics_apart():
    torch.manual_seed(0)
    assert ncvqvae.Projector(10, 32, whiten=True)(torch.randn(6, 10))[0].shape == (6, 32)
    p = ncvqvae.Projector(10, 64, whiten=True)
    a, b = draw(6, 10, dtype=torch.float32), 5 + 3 * draw(6, 10, seed=1, dtype=torch.float32)
    for together, alone in zip(p(a, b), (*p(a), *p(b)), strict=True):
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


# ---- prior (§3.2, §4.1.2) ----


def tiny_prior(K=7, N=10, classes=3, **fields):
    torch.manual_seed(0)
    return Prior(
        Config(prior_hidden=32, prior_layers=2, **fields),
        draw(K, 8, seed=5, dtype=torch.float32),
        [N],
        classes,
    )


def test_mask_tokens_counts_and_mean_share():
    N = 20
    mask = prior.mask_tokens(torch.zeros(30000, N, dtype=torch.int64), generator(5))
    g = generator(5)
    r = 1 - torch.rand(30000, 1, generator=g)
    for count, v in zip(mask.sum(1).tolist(), r[:, 0].tolist(), strict=True):
        share = math.cos(math.pi * v / 2) * N  # in float32 a rounding away
        assert max(1, math.ceil(share - 1e-5)) <= count <= max(1, math.ceil(share + 1e-5))
    big = prior.mask_tokens(torch.zeros(30000, 400, dtype=torch.int64), generator(6))
    assert big.float().mean() == pytest.approx(2 / math.pi, abs=0.01)
    assert (mask.float().mean(0) - mask.float().mean()).abs().max() < 0.02  # every position alike


def test_attention_is_every_devices_attention():
    block, h = prior.Block(32, 2, 1, 0.0).double(), draw(3, 7, 32)
    block.norm1.weight.data.fill_(2.0)
    qkv = block.qkv(block.norm1(h)).view(3, 7, 3, 2, 16)
    a = torch.stack(
        [
            F.scaled_dot_product_attention(*(qkv[:, :, i, head] for i in range(3)))
            for head in range(2)
        ],
        dim=2,
    )
    expected = h + block.out(a.reshape(3, 7, 32))
    torch.testing.assert_close(block(h), expected + block.ff(block.norm2(expected)))


def test_the_prior_is_the_published_chain_of_layers():
    """Embedding or mask vector, class in front, positions, LayerNorms around the blocks, head."""
    p, t = tiny_prior().double(), torch.randint(0, 7, (2, 10), generator=generator())
    mask, y = prior.mask_tokens(t, generator(1)), torch.tensor([0, 3])
    e = torch.stack(
        [
            p.mask_vector if mask[b, i] else p.embedding.weight[t[b, i]]
            for b in range(2)
            for i in range(10)
        ]
    ).view(2, 10, 8)
    h = torch.cat([p.classes.weight[y][:, None], e], 1) + p.positions
    h = p.to_hidden(F.layer_norm(h, (8,), p.norm_in.weight, p.norm_in.bias))
    for block in p.blocks:
        h = block(h)
    h = p.to_code(F.layer_norm(h, (32,), p.norm_out.weight, p.norm_out.bias))[:, 1:]
    head = p.head(h)
    torch.testing.assert_close(p(t, mask, y).double(), head, atol=1e-6, rtol=1e-6)
    # not nothing, at the codes' scale
    assert p.mask_vector.abs().min() > 0 and p.mask_vector.std() > 0.3
    assert (mask.any(), p.mask_vector.requires_grad) == (True, True)


def test_the_priors_feed_forward_and_head_are_the_published_ones():
    """Linear, GELU, linear; GELU, LayerNorm, linear."""
    torch.manual_seed(0)
    block, h = prior.Block(32, 2, 3, 0.0), draw(3, 7, 32, dtype=torch.float32)
    widen, _, narrow = block.ff
    assert widen.out_features == 96
    torch.testing.assert_close(block.ff(h), narrow(F.gelu(widen(h))))
    p, h = tiny_prior(), draw(3, 8, dtype=torch.float32)
    torch.testing.assert_close(p.head(h), p.head[-1](F.layer_norm(F.gelu(h), (8,))))


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
    assert tiny_prior().classes.num_embeddings == 3 + 1
    assert not torch.equal(tiny_prior(embedding="random").embedding.weight.data, book)


def test_masked_cross_entropy_against_a_loop():
    logits, t = draw(3, 4, 5), torch.randint(0, 5, (3, 4), generator=generator())
    mask = prior.mask_tokens(t, generator(1))

    def slow(logits):
        total = [
            -(logits[b, i].exp() / logits[b, i].exp().sum()).log()[t[b, i]]
            for b in range(3)
            for i in range(4)
            if mask[b, i]
        ]
        return sum(total) / len(total)

    assert_same_gradient(lambda x: prior.masked_cross_entropy(x, t, mask), slow, logits)


def test_muon_steps_the_matrices_of_the_blocks_and_adamw_all_else():
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"blocks": torch.nn.Linear(4, 4), "head": torch.nn.Linear(4, 2)})
    x = draw(6, 4, dtype=torch.float32)
    twin = copy.deepcopy(model)
    config = Config(optimizer="muon", stage2_weight_decay=0.3)
    ours = prior.make_optimizers(model, config)
    theirs = [
        torch.optim.AdamW([twin.blocks.bias, *twin.head.parameters()], 0.1, weight_decay=0.3),
        torch.optim.Muon(
            [twin.blocks.weight], 0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"
        ),
    ]
    for _ in range(9):
        for net, optimizers in ((model, ours), (twin, theirs)):
            net.zero_grad()
            net.head(net.blocks(x).relu()).square().mean().backward()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = 0.1
                optimizer.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert len(prior.make_optimizers(model, Config())) == 1


class Recorder(torch.nn.Module):
    """A prior that prefers token (position mod K), and notes what it is asked."""

    def __init__(self, K=5, N=12):
        super().__init__()
        self.n_tokens, self.sizes, self.no_class, self.K, self.calls = N, [N], 3, K, []

    def forward(self, tokens, mask, labels):
        self.calls.append((tokens.clone(), mask.clone(), labels.clone()))
        preferred = F.one_hot(torch.arange(self.n_tokens) % self.K, self.K)
        return 3 * preferred.float().expand(len(tokens), -1, -1)


@pytest.mark.parametrize("N,T,B", [(12, 10, 3), (3, 10, 1), (75, 10, 2), (40, 1, 2)])
def test_decoding_follows_the_schedule_and_never_changes_what_it_knows(N, T, B):
    p = Recorder(N=N)
    out = prior.iterative_decode(p, torch.arange(B), generator(), steps=T)
    assert len(p.calls) == T and out.shape == (B, N)
    for t in range(1, T):
        (before, mask_before, _), (tokens, mask, _) = p.calls[t - 1], p.calls[t]
        assert mask.sum(1).tolist() == [math.floor(math.cos(math.pi / 2 * t / T) * N)] * B
        assert not (mask & ~mask_before).any()
        assert torch.equal(tokens[~mask_before], before[~mask_before])
    assert torch.equal(out[~p.calls[-1][1]], p.calls[-1][0][~p.calls[-1][1]])


def test_decoding_fills_in_around_known_tokens():
    known = torch.randint(0, 5, (4, 12), generator=generator())
    mask = prior.mask_tokens(known, generator(1))
    out = prior.iterative_decode(
        Recorder(), torch.zeros(4, dtype=torch.int64), generator(), 10, 4.0, 1.0, known, mask
    )
    assert torch.equal(out[~mask], known[~mask])


def test_without_noise_the_least_confident_are_masked_again():
    class Ladder(Recorder):  # position i draws one of 12 - i tokens: log p rises along the series
        def forward(self, tokens, mask, labels):
            super().forward(tokens, mask, labels)
            possible = torch.arange(12) < 12 - torch.arange(12)[:, None]
            return torch.where(possible, 0.0, -1e9).expand(len(tokens), -1, -1)

    p = Ladder(K=12)
    prior.iterative_decode(
        p, torch.zeros(1, dtype=torch.int64), generator(), 4, choice_temperature=0.0
    )
    for t, (_, mask, _) in enumerate(p.calls):
        masked = math.floor(math.cos(math.pi / 2 * t / 4) * 12)
        assert mask[0].tolist() == [True] * masked + [False] * (12 - masked)


def test_guidance_extrapolates_from_the_unconditional_logits_in_one_pass():
    p = tiny_prior()
    t, y = torch.randint(0, 7, (2, 10), generator=generator()), torch.tensor([0, 2])
    mask = prior.mask_tokens(t, generator(1))
    conditional, nothing = p(t, mask, y), p(t, mask, torch.tensor([3, 3]))
    torch.testing.assert_close(
        prior.guided_logits(p, t, mask, y, 2.5), nothing + 2.5 * (conditional - nothing)
    )
    torch.testing.assert_close(prior.guided_logits(p, t, mask, y, 1.0), conditional)
    r = Recorder()
    t = torch.zeros(2, r.n_tokens, dtype=torch.int64)
    prior.guided_logits(r, t, torch.ones_like(t, dtype=torch.bool), torch.tensor([0, 1]), 2.0)
    assert len(r.calls) == 1 and len(r.calls[0][0]) == 4


def test_gumbel_noise_makes_the_argmax_a_draw():
    p = torch.tensor([0.5, 0.3, 0.2])
    drawn = (p.log() + prior.gumbel((60000, 3), generator(), "cpu")).argmax(1)
    torch.testing.assert_close(
        torch.bincount(drawn).double() / 60000, p.double(), atol=0.01, rtol=0
    )


def test_noise_on_the_confidence_has_the_sign_of_gumbel_s_and_falls_to_zero():
    """Each pass by hand: tokens drawn, those of the largest log p + noise kept, the noise being
    4 (1 - (t + 1) / T) Gumbel."""
    logits = 2 * draw(40, 5)

    class Fixed(Recorder):
        def forward(self, tokens, mask, labels):
            super().forward(tokens, mask, labels)
            return logits.expand(len(tokens), -1, -1)

    p, g, steps, log_p = Fixed(N=40), generator(3), 4, logits.log_softmax(-1).expand(2, -1, -1)
    out = prior.iterative_decode(
        p, torch.zeros(2, dtype=torch.int64), generator(3), steps, choice_temperature=4.0
    )
    mask, tokens = torch.ones(2, 40, dtype=torch.bool), torch.zeros(2, 40, dtype=torch.int64)
    for t in range(steps):
        assert torch.equal(p.calls[t][1], mask) and torch.equal(p.calls[t][0], tokens)
        drawn = torch.multinomial(log_p.exp().flatten(0, 1), 1, generator=g).view(2, 40)
        tokens = torch.where(mask, drawn, tokens)
        noise = 4.0 * (1 - (t + 1) / steps) * -torch.log(-torch.log(torch.rand(2, 40, generator=g)))
        confidence = log_p.gather(-1, tokens[..., None])[..., 0] + noise
        confidence[~mask] = math.inf
        still_masked = math.floor(math.cos(math.pi / 2 * (t + 1) / steps) * 40)
        mask = confidence.argsort(1).argsort(1) < still_masked
    assert torch.equal(out, tokens)


def banded_prior():
    torch.manual_seed(0)
    codebook = draw(10, 8, dtype=torch.float32)
    return Prior(Config(prior_hidden=32, prior_layers=1), codebook, [3, 8], 2)


def test_the_prior_of_two_bands_goes_from_low_to_high():
    p = banded_prior()
    t = torch.cat(
        [
            torch.randint(0, 5, (4, 3), generator=generator()),
            torch.randint(5, 10, (4, 8), generator=generator(1)),
        ],
        1,
    )
    y, parts = torch.tensor([0, 1, 2, 1]), t.split([3, 8], 1)
    masks = [prior.mask_tokens(part, generator(2)) for part in parts]
    logits = p(t, torch.cat(masks, 1), y).softmax(-1)
    # codes of the other band
    assert (logits[:, :3, 5:] == 0).all() and (logits[:, 3:, :5] == 0).all()
    low = p(t[:, :3], masks[0], y)  # nothing of the high band is there to be seen
    # the low one is known
    high = p(t, torch.cat([torch.zeros_like(masks[0]), masks[1]], 1), y)[:, 3:]
    losses = [
        -v.log_softmax(-1).gather(-1, part[..., None])[..., 0]
        for v, part in zip((low, high), parts, strict=True)
    ]
    of_masked = [loss[mask].mean() for loss, mask in zip(losses, masks, strict=True)]
    torch.testing.assert_close(prior.band_losses(p, t, masks, y), sum(of_masked) / 2)
    of_all = [loss.mean() for loss in losses]
    torch.testing.assert_close(prior.band_losses(p, t, masks, y, "all"), sum(of_all) / 2)
    calls = []
    handle = p.register_forward_pre_hook(
        lambda _, inputs: calls.append([v.clone() for v in inputs])
    )
    out = prior.iterative_decode(p, torch.arange(3), generator(), 4, guidance=1.5)
    handle.remove()
    assert [len(c[0][0]) for c in calls] == [3] * 4 + [11] * 4
    for tokens, mask, _ in calls[4:]:  # drawing the high band leaves the low one
        assert torch.equal(tokens[:3, :3], out[:, :3]) and not mask[:, :3].any()
    assert calls[4][1][:, 3:].all() and (out[:, :3] < 5).all() and (out[:, 3:] >= 5).all()


def test_every_series_keeps_its_class_through_sampling(monkeypatch):
    class ByClass(Recorder):  # class c draws nothing but token c
        def __init__(self, N):
            super().__init__(K=4, N=N)
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, tokens, mask, labels):
            return (60.0 * F.one_hot(labels, 4))[:, None].expand(-1, self.n_tokens, -1)

    model = tiny_model().eval()
    N = model.tokens(torch.zeros(1, 40)).shape[1]
    labels = torch.randint(0, 4, (600,), generator=generator())  # three batches
    series = prior.sample(ByClass(N), model, labels, generator(), Config())
    tokens = labels[:, None].expand(-1, N)
    torch.testing.assert_close(series, model.series(tokens))


@pytest.mark.parametrize(
    "counts,total",
    [
        ([7, 2, 1], 1000),
        ([2, 1], 1000),
        ([400, *[1] * 59], 1000),
        ([1] * 60, 1000),
        ([998, 1, 1], 1000),
        ([3, 5, 8], 16),
        ([1] * 1200, 1200),
    ],
)
def test_class_counts_add_up_to_what_was_asked(counts, total):
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = prior.class_proportions(y[torch.randperm(len(y), generator=generator())], total)
    got = torch.bincount(labels, minlength=len(counts))
    assert len(labels) == total and got.min() >= 1
    share = torch.tensor(counts).double() * total / sum(counts)
    assert ((got - share).abs() < 1).all()


# ---- evaluate: metrics (§2.7) ----


def slow_fid(a, b):
    """Eq. 2.21, the unsymmetric way."""
    s1, s2 = np.cov(a.T), np.cov(b.T)
    roots = np.sqrt(np.linalg.eigvals(s1 @ s2).astype(complex)).real.sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2) - 2 * roots


def test_frechet_distance_has_the_closed_form_and_survives_singular_covariances():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4000, 6)) @ rng.standard_normal((6, 6))
    b = rng.standard_normal((3000, 6)) @ rng.standard_normal((6, 6)) + 1
    s1, s2 = np.cov(a.T), np.cov(b.T)
    roots = np.sqrt(np.linalg.eigvals(s1 @ s2).real.clip(0)).sum()  # eq. 2.21, the unsymmetric way
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2) - 2 * roots
    assert evaluate.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert evaluate.frechet_distance(a[:, :1], 2 * a[:, :1] + 3) == pytest.approx(
        (a[:, 0].mean() + 3) ** 2 + a[:, 0].var(ddof=1), rel=1e-6
    )  # (mu1-mu2)^2 + (sd1-sd2)^2
    flat = np.column_stack([a[:5, 0], np.zeros(5)])
    assert evaluate.frechet_distance(flat, flat) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError):
        evaluate.frechet_distance(a[:1], b)
    for scale in (1e-3, 1.0, 1e3):
        a, b = draw(60, 5).numpy(), draw(70, 5, seed=1).numpy() @ np.triu(np.ones((5, 5))) + 1
        a, b = scale * a, scale * b
        assert evaluate.frechet_distance(a, b) == pytest.approx(slow_fid(a, b), rel=1e-8)


def slow_is(p):
    """Eq. 2.19, in ten shuffled splits."""
    scores = []
    for part in np.array_split(p[np.random.default_rng(0).permutation(len(p))], 10):
        pairs = [(v, m) for row in part for v, m in zip(row, part.mean(0), strict=True) if v > 0]
        scores.append(math.exp(sum(v * math.log(v / m) for v, m in pairs) / len(part)))
    return sum(scores) / 10


def test_inception_score_of_hand_examples():
    assert evaluate.inception_score(np.full((50, 4), 0.25)) == pytest.approx(1)
    assert evaluate.inception_score(np.eye(4)[np.arange(400) % 4], splits=1) == pytest.approx(4)
    p = np.array([[0.9, 0.1], [0.3, 0.7]])
    kl = [sum(p[i, k] * math.log(p[i, k] / p[:, k].mean()) for k in range(2)) for i in range(2)]
    assert evaluate.inception_score(p, splits=1) == pytest.approx(math.exp(sum(kl) / 2))
    sorted_by_class = 4 * np.eye(4)[np.arange(90) // 30] + draw(90, 4).numpy()
    p = np.exp(sorted_by_class) / np.exp(sorted_by_class).sum(1, keepdims=True)
    # shuffled before the ten splits
    assert evaluate.inception_score(p) == pytest.approx(slow_is(p), rel=1e-9)
    assert evaluate.inception_score(np.eye(3)) == 1  # a split each
    with pytest.raises(ValueError, match="no rows"):
        evaluate.inception_score(p[:0])


def test_probe_scales_by_the_train_split_and_scores_the_test_split(monkeypatch):
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    rng, pipelines, make = np.random.default_rng(0), [], evaluate.make_pipeline
    monkeypatch.setattr(
        evaluate, "make_pipeline", lambda *steps: pipelines.append(make(*steps)) or pipelines[-1]
    )
    z = rng.standard_normal((60, 4)) * [1, 100, 1, 1]
    y = (z[:, 0] > 0).astype(int)  # told by a feature that scaling rescues
    knn, svm = evaluate.probe(z[:40], y[:40], z[40:], y[40:])
    low, high = z[:40].min(0), z[:40].max(0)
    s = 2 * (z - low) / (high - low) - 1
    nearest = ((s[40:, None] - s[None, :40]) ** 2).sum(-1).argsort(1)[:, :5]
    assert knn == pytest.approx(((y[nearest].mean(1) > 0.5) == y[40:]).mean())
    assert svm > 0.9
    z, y = rng.standard_normal((600, 6)), rng.integers(0, 3, 600)  # noise: every detail decides
    low, high = z[:300].min(0), z[:300].max(0)
    scores = evaluate.probe(z[:300], y[:300], z[300:], y[300:])
    for score, pipeline, classifier in zip(
        scores, pipelines[2:], (KNeighborsClassifier(5), SVC(kernel="linear", C=1.0)), strict=True
    ):
        scaled = pipeline[0].transform(z)
        np.testing.assert_allclose(scaled, 2 * (z - low) / (high - low) - 1, atol=1e-12)
        assert score == classifier.fit(scaled[:300], y[:300]).score(scaled[300:], y[300:])
    assert evaluate.probe(z[:3], [0, 1, 1], z[3:], y[3:])  # KNN of as many as there are


def test_samples_nearer_to_train_series_than_new_ones_hint_at_memorising(tmp_path, capsys):
    d = data.load_dataset(own_data(tmp_path, labels=False))

    def said(x, x_hat=None):
        out = evaluate.score_samples(x, None, None, d, Config(), tmp_path, x_hat)
        return out, capsys.readouterr().err

    assert said(d.x_test) == ({"nn_ratio": 1.0}, "")
    out, text = said(d.x_train)
    assert out == {"nn_ratio": 0.0} and "nn_ratio 0.00 < 0.50, half of what test" in text
    # smooth, as reconstructions are, and so nearer to others, but new
    smooth = F.avg_pool1d(d.x_test[:, None], 5, 1, 2, count_include_pad=False)[:, 0]
    smoother = F.avg_pool1d(smooth[:, None], 5, 1, 2, count_include_pad=False)[:, 0]
    out, text = said(smooth, x_hat=smoother)
    assert out["nn_ratio_recon"] < out["nn_ratio"] < 1 and text == ""
    nearest = d.x_train[torch.cdist(d.x_test, d.x_train).argmin(1)]
    out, text = said(0.2 * d.x_test + 0.8 * nearest, x_hat=smooth)
    yardstick = f"{0.9 * out['nn_ratio_recon']:.2f}"
    assert f"< {yardstick}, nine tenths of what reconstructions of test series have, hin" in text
    out, text = said(2 * d.x_test, x_hat=4 * d.x_test)  # of models that know nothing yet
    assert 1 < out["nn_ratio"] < 0.9 * out["nn_ratio_recon"] and text == ""


def slow_prdc(real, fake, k=5):
    """Kynkäänniemi et al. 2019, eq. 1, 2; Naeem et al. 2020, eq. 3, 4: every pair by itself."""
    real, fake = (np.asarray(f, dtype=np.float64) for f in (real, fake))

    def distance(a, b):
        return math.sqrt(sum((a - b) ** 2))

    def hits(centres, points):  # [i][j]: is point j in the ball of centre i
        radii = []
        for i, centre in enumerate(centres):
            others = [distance(centre, c) for j, c in enumerate(centres) if j != i]
            radii.append(sorted(others)[k - 1])
        return np.array(
            [[distance(c, p) <= r for p in points] for c, r in zip(centres, radii, strict=True)]
        )

    in_real, in_fake = hits(real, fake), hits(fake, real)
    return dict(
        precision=in_real.any(0).mean(),
        recall=in_fake.any(0).mean(),
        density=in_real.sum() / (k * len(fake)),
        coverage=in_real.any(1).mean(),
    )


def test_precision_recall_density_and_coverage_against_loops():
    real, fake = draw(30, 3), 0.7 * draw(20, 3, seed=1) + 0.4
    expected = slow_prdc(real, fake)
    found = evaluate.precision_recall_density_coverage(real.numpy(), fake.numpy())
    assert found == pytest.approx(expected) and len(set(expected.values())) == 4
    far = evaluate.precision_recall_density_coverage(real, real + 100)
    assert set(far.values()) == {0.0}
    copies = evaluate.precision_recall_density_coverage(real, real[:1].repeat(20, 1))
    assert copies["precision"] == 1 and copies["coverage"] < 0.3  # near the data, little of it
    four = draw(4, 128).repeat(10, 1)  # each ten times: ties, which matrix products lose
    ties = evaluate.precision_recall_density_coverage(four, four)
    assert (ties["precision"], ties["density"]) == (1, 2)
    many, others = draw(300, 3), draw(270, 3, seed=1)  # more than one part
    assert evaluate.precision_recall_density_coverage(many, others) == pytest.approx(
        slow_prdc(many, others)
    )
    two = evaluate.precision_recall_density_coverage(real[:2], real[:2])
    assert two["density"] == 2 and two["coverage"] == 1  # each in both balls, of one neighbour
    with pytest.raises(ValueError, match="at least 2 rows"):
        evaluate.precision_recall_density_coverage(real, fake[:1])


def test_nearest_neighbour_ratio_and_code_usage():
    train, test = draw(30, 5), draw(20, 5, seed=1)
    fake = train[:10] + 0.01

    def nearest(a):
        return np.mean([min(float((s - t).norm()) for t in train) for s in a])

    ratio = evaluate.nearest_neighbour_ratio(fake, train, test)
    assert ratio == pytest.approx(nearest(fake) / nearest(test))
    many = draw(300, 50, dtype=torch.float32) + 1e3
    assert evaluate.nearest_neighbour_ratio(fake, many[:, :5], many[:, :5]) is None
    assert evaluate.code_usage(torch.tensor([[0, 0, 3, 3]]), 8) == (2, pytest.approx(2.0))


def test_few_samples_are_judged_beside_as_few_real_ones(tmp_path, capsys):
    """evaluate.py samples: floor and is_real of as many series; the classifier by its name; a
    class that is not in y leaves no CAS."""
    own = own_data(tmp_path, n_test=300)
    d = data.load_dataset(own)
    real = d.to_original(d.x_test)
    flags = ("--dataset", own, "--fcn-steps", 5, "--cas-steps", 7, "--fcn-batch", 20)

    def score(**arrays):
        command(evaluate, "samples", npz(tmp_path / "peer.npz", **arrays), *flags)
        said = capsys.readouterr()
        return json.loads(said.out), said.err

    os.environ["OUT"] = str(tmp_path / "runs")
    try:
        few, warned = score(X=real[:8], y=["up", "down"] * 4)
        many, quiet = score(X=real)
        whole, _ = score(X=real, y=np.array(d.classes)[d.y_test])
    finally:
        del os.environ["OUT"]
    assert "8 series are few" in warned and "are few" not in quiet
    assert "no y" in quiet and "cas" not in many and "no y" not in warned
    assert "class flat of own is not in y: no CAS" in warned and few["cas"] is None
    assert whole["cas"] is not None and few["cas_real"] is None  # nothing to compare it with
    fcn, file, steps = evaluate.dataset_fcn(
        tmp_path / "runs/own", d, Config(seed=0, fcn_steps=5, cas_steps=7, fcn_batch=20)
    )
    assert few["classifier"] == dict(file=str(file), steps=5, accuracy=few["fcn_accuracy"])
    assert steps == 5
    features, p = evaluate.classify(fcn, d.x_test)
    chosen = np.random.default_rng(0).choice(24, 8, replace=False)
    floor, _ = evaluate.classify(fcn, d.x_train[chosen])
    assert few["fid_floor"] == pytest.approx(slow_fid(floor, features), rel=1e-4)
    assert few["is_real"] == pytest.approx(
        evaluate.inception_score(p[np.random.default_rng(0).permutation(300)[:8]])
    )
    assert many["is_real"] == pytest.approx(slow_is(p)) and few["is_real"] < many["is_real"]
    assert few["precision"] == 1 and few["coverage"] < many["coverage"] == 1
    assert few["coverage_real"] == slow_prdc(features, floor)["coverage"] < many["coverage_real"]


def test_fcn_has_the_published_padding_and_learns(tmp_path):
    convs = [c[0] for c in evaluate.FCN(3).convs]
    assert [(c.in_channels, c.out_channels, c.kernel_size) for c in convs] == [
        (1, 128, (1, 8)),
        (128, 256, (1, 5)),
        (256, 128, (1, 3)),
    ]
    torch.manual_seed(0)
    fcn, x = evaluate.FCN(3).double().eval(), draw(2, 21)
    h = x[:, None]
    for conv, norm, _ in fcn.convs:  # (k-1)//2 before, k//2 behind
        k = conv.weight.shape[3]
        h = F.conv1d(F.pad(h, ((k - 1) // 2, k // 2)), conv.weight[:, :, 0], conv.bias)
        assert h.shape[2] == 21
        h = F.relu(F.batch_norm(h, norm.running_mean, norm.running_var, norm.weight, norm.bias))
    torch.testing.assert_close(fcn.features(x).double(), h.mean(2), atol=1e-6, rtol=1e-6)
    x, y = data.two_patterns(40, 64, seed=0, noise=0.1)
    config = Config(fcn_batch=16, fcn_epochs=30, cas_epochs=30)
    fcn, _ = evaluate.train_fcn(x / 5, y, 4, config, tmp_path, "fcn")
    assert fcn.features(x).shape == (40, 128) and fcn(x).shape == (40, 4) and not fcn.training
    features, p = evaluate.classify(fcn, x / 5)
    assert evaluate.accuracy(p, y) > 0.9 and p.sum(1) == pytest.approx(np.ones(40))
    own = data.Dataset("own", 64, 0.0, 1.0, [0, 1, 2, 3], True, "", x / 5, y, x / 5, y)
    assert evaluate.classification_accuracy_score(x / 5, y, own, config, tmp_path) > 0.9


def test_cas_of_real_series_has_the_training_of_cas(tmp_path):
    """As many steps as on the samples, whatever the number of real series."""
    d = data.load_dataset(own_data(tmp_path))
    config = tiny_config(cas_epochs=2, fcn_batch=10, fcn_epochs=3)  # 2 epochs of 5 batches
    x, labels = draw(50, 31, dtype=torch.float32), torch.arange(50) % 3
    out = evaluate.score_samples(x, x, labels, d, config, tmp_path / "own/naive-none/seed1")
    again, training = evaluate.train_fcn(
        d.x_train, d.y_train, 3, Config(seed=0, fcn_steps=10, fcn_batch=10), tmp_path, "again"
    )
    assert training.total_steps == 10
    p = evaluate.classify(again, d.x_test)[1]
    assert out["cas_real"] == evaluate.accuracy(p, d.y_test)
    steps = {data.load_checkpoint(p)["step"] for p in (tmp_path / "own").glob("fcn-*.pt")}
    assert steps == {10, 9}  # 9: three epochs of three batches, the classifier behind FID
    assert out["classifier"]["steps"] == 9


def test_classifiers_take_more_steps_where_there_are_many_classes():
    def of(n_classes, n=301):
        x = torch.zeros(n, 8)
        return data.Dataset("x", 8, 0.0, 1.0, list(range(n_classes)), True, "", x, None, x, None)

    config = Config(fcn_steps=600, cas_steps=500, steps_per_class=20, seed=7)
    for n_classes, fcn_steps, cas_steps in ((2, 600, 500), (60, 1200, 1200)):
        fcn = evaluate.fcn_config(config, of(n_classes))
        cas = evaluate.cas_config(config, of(n_classes), 999)
        assert (fcn.fcn_steps, fcn.seed, cas.fcn_steps, cas.seed) == (fcn_steps, 0, cas_steps, 7)
    config = Config(fcn_epochs=3, cas_epochs=5, fcn_batch=100, steps_per_class=20)
    assert evaluate.fcn_config(config, of(60)).fcn_steps == 3 * 3  # a last batch of one is left
    assert evaluate.cas_config(config, of(60), 402).fcn_steps == 5 * 5
    for preset in ("fast", "best", "toy"):  # CAS and what it can reach: one training
        config = Config(**data.PRESETS[preset], precision="bf16", seed=0)
        for n_classes in (2, 60):
            set_ = of(n_classes)
            assert evaluate.fcn_config(config, set_) == evaluate.cas_config(config, set_, 9)


def test_a_classifier_of_other_epochs_is_another_file(tmp_path):
    d = data.load_dataset(own_data(tmp_path))
    for epochs in (1, 2, 1):
        evaluate.dataset_fcn(tmp_path / "own", d, tiny_config(fcn_epochs=epochs))
    assert len(list((tmp_path / "own").glob("fcn-*.pt"))) == 2


def test_figures_of_a_collapsed_latent_space(tmp_path):
    x = draw(12, 20, dtype=torch.float32)
    y = torch.arange(12) % 2
    own = data.Dataset("own", 20, 0.0, 1.0, ["$0_$50", "_x_"], True, "", x, y, x, y)
    (tmp_path / "log.jsonl").write_text('{"stage": "stage1", "step": 1, "loss": 1.0}\n')
    test = dict(averages=torch.ones(12, 64), x_hat=x)
    with matplotlib.rc_context({"font.size": 17}):  # a notebook's
        evaluate.draw_figures(tmp_path, own, None, test, None)
        assert matplotlib.rcParams["font.size"] == 17
    assert (tmp_path / "figures/latents.png").stat().st_size > 1000
    figure, _ = evaluate.draw_latents(own, test["averages"])
    shown = [
        text.get_text().strip("\u200b").replace("\\$", "$")
        for text in figure.axes[1].get_legend().get_texts()
    ]
    assert shown == own.classes  # as they are
    figure.canvas.draw()


def test_compare_has_each_metric_under_its_name(tmp_path, capsys):
    run = tmp_path / "own/naive-none/seed1"
    m = {k: float(i) for i, k in enumerate(evaluate.METRICS)} | dict(
        knn=None, seconds_stage1=60, seconds_stage2=30, seconds_evaluate=90
    )
    data.write_json(run / "metrics.json", m)
    command(evaluate, "compare", run)
    names, _, values = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
    )
    row = dict(zip(names, values, strict=True))
    assert row.pop("run") == "own/naive-none/seed1" and row.pop("minutes") == "3.0"
    assert row == {k: "" if m[k] is None else f"{m[k]:.4g}" for k in row}
    assert tuple(row) == evaluate.SHOWN


def test_compare_leaves_out_a_run_that_is_not_finished(tmp_path, capsys):
    run = tmp_path / "own/naive-none/seed1"
    data.write_json(run / "metrics.json", dict.fromkeys(evaluate.METRICS))
    damaged = []
    for name, text in (("null", "null"), ("words", '{"fid": "abc"}')):
        damaged.append(tmp_path / name)
        damaged[-1].mkdir()
        (damaged[-1] / "metrics.json").write_text(text)
    command(evaluate, "compare", tmp_path / "own/naive-none/seed2", *damaged, run)
    said = capsys.readouterr()
    assert "seed2: no metrics.json, not finished: left out" in said.err
    assert len(said.out.splitlines()) == 3 and "own/naive-none/seed1" in said.out


# ---- evaluate: every number of metrics.json ----


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A tiny run, trained and scored once: its settings, its data as NumPy reads them, its metrics.

    calls: {function of evaluate.py: [(*inputs, output), ...]}, those behind the metrics. What was
    counted, voted on or ranked is taken from them: rounding may move it, here it is the same.
    """
    folder = tmp_path_factory.mktemp("scored")
    run = folder / "own/vibcreg-slice/seed3"
    config = tiny_config(
        dataset=own_data(folder, n_test=200),
        method="vibcreg",
        augmentation="slice",
        seed=3,
        stage1_steps=40,
        stage1_lr=3e-3,
        stage2_steps=20,
        fcn_epochs=3,
        fcn_lr=1e-2,
        cas_epochs=2,
        decode_steps=4,
        choice_temperature=2.0,
        guidance=1.5,
    )
    with np.load(config.dataset) as f:  # other shares of the classes in the test split
        words = np.where(np.arange(200) < 90, "down", f["y_test"])
        np.savez(config.dataset, **{**f, "y_test": words})
    ncvqvae.train_stage1(run, config)
    prior.train_stage2(run)
    calls = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "draw_figures", lambda *inputs: None)
        for name in (
            "encode_split",
            "probe",
            "prior_loss",
            "sample",
            "accuracy",
            "precision_recall_density_coverage",
        ):
            judge = getattr(evaluate, name)

            def spy(*inputs, name=name, judge=judge):
                calls.setdefault(name, []).append((*inputs, judge(*inputs)))
                return calls[name][-1][-1]

            patch.setattr(evaluate, name, spy)
        metrics = evaluate.evaluate_run(run)
    with np.load(config.dataset) as f:
        raw, words = ({s: f[f"{letter}_{s}"] for s in ("train", "test")} for letter in "Xy")
    mean, std, names = raw["train"].mean(), raw["train"].std(), ["down", "flat", "up"]
    return SimpleNamespace(
        folder=folder,
        run=run,
        config=config,
        metrics=metrics,
        calls=calls,
        raw=raw,
        mean=mean,
        std=std,
        names=names,
        x={s: torch.from_numpy(((raw[s] - mean) / std).astype(np.float32)) for s in raw},
        y={s: np.array([names.index(w) for w in words[s]]) for s in raw},
    )


@pytest.fixture(scope="module")
def encoded(scored):
    """Both splits in the stage 1 of the file, part by part in eval mode; x_hat of the test split.

    tokens are those of the run: of two as near codes either.
    """
    model = NCVQVAE(scored.config, 31, with_projector=False)
    model.load_state_dict(torch.load(scored.run / "stage1.pt", weights_only=True)["state"])
    model.eval()
    (band,), u, z, tokens, z_q = model.bands, {}, {}, {}, {}
    for split, call in zip(("train", "test"), scored.calls["encode_split"], strict=True):
        u[split] = ncvqvae.stft(scored.x[split], 8)
        z[split] = band.encoder(u[split]).detach()
        tokens[split] = call[-1]["tokens"]  # (n, N)
        z_q[split] = band.quantizer.codebook[tokens[split]]  # (n, N, D)
    latents = z_q["test"].transpose(1, 2).unflatten(2, z["test"].shape[2:])
    u_hat = band.decoder(latents, u["test"].shape[3]).detach()
    return SimpleNamespace(
        model=model,
        codebook=band.quantizer.codebook,
        u=u,
        z=z,
        tokens=tokens,
        averages={s: z_q[s].mean(1) for s in z_q},
        u_hat=u_hat,
        x_hat=ncvqvae.istft(u_hat, 8, 31),
    )


@pytest.fixture(scope="module")
def prior_of_file(scored, encoded):
    """The prior of the file, in eval mode."""
    p = Prior(scored.config, encoded.codebook, [encoded.tokens["test"].shape[1]], 3)
    p.load_state_dict(torch.load(scored.run / "stage2.pt", weights_only=True)["state"])
    return p.eval()


@pytest.fixture(scope="module")
def drawn(scored, encoded, prior_of_file):
    """The samples of the run, drawn again from the files' weights, standardised."""

    def batches(labels, seed):  # of 256, from one generator
        g, config = generator(seed), scored.config
        how = (config.decode_steps, config.choice_temperature, config.guidance)
        return torch.cat(
            [
                encoded.model.series(prior.iterative_decode(prior_of_file, part, g, *how))
                for part in labels.split(256)
            ]
        )

    # 6, 6, 12 of 24 train series
    labels = torch.arange(3).repeat_interleave(torch.tensor([250, 250, 500]))
    return SimpleNamespace(
        labels=labels,
        conditional=batches(labels, 3001),
        unconditional=batches(torch.full((256,), 3), 3000)[:200],
    )


@pytest.fixture(scope="module")
def looks(scored, encoded, drawn):
    """What the classifier of the file sees in four sets: features (n, P), probabilities (n, K)."""
    fcn = evaluate.FCN(3)
    fcn.load_state_dict(
        torch.load(scored.metrics["classifier"]["file"], weights_only=True)["state"]
    )
    fcn.eval()
    chosen = np.random.default_rng(0).choice(24, 200, replace=True)
    sets = dict(
        real=scored.x["test"],
        fake=drawn.unconditional,
        recon=encoded.x_hat,
        floor=scored.x["train"][chosen],
    )
    return {
        k: SimpleNamespace(
            features=fcn.features(v).detach().double().numpy(),
            p=fcn(v).detach().double().softmax(1).numpy(),
        )
        for k, v in sets.items()
    }


RECOMPUTED = set()


def recomputes(*keys):
    """Decorates a test that works out these keys of metrics.json and returns {key: value}."""
    RECOMPUTED.update(keys)

    def decorate(by_hand):
        @functools.wraps(by_hand)
        def test(scored, **fixtures):
            expected = by_hand(scored, **fixtures)
            assert set(expected) == set(keys)
            for key, value in expected.items():
                value = float(torch.as_tensor(value).detach())
                assert scored.metrics[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key

        return test

    return decorate


def test_tokens_of_both_splits_are_the_nearest_codes_in_eval_mode(scored, encoded):
    for split in scored.x:
        distance = torch.cdist(encoded.z[split].flatten(2).transpose(1, 2), encoded.codebook[None])
        chosen = distance.gather(-1, encoded.tokens[split][..., None])[..., 0]
        torch.testing.assert_close(chosen, distance.amin(-1), atol=1e-3, rtol=0)


@recomputes("recon", "recon_time", "recon_timefreq", "recon_last_batch")
def test_recon_is_of_the_whole_test_split_and_recon_last_batch_of_its_last_72(scored, encoded):
    """200 series: a mini-batch of 128, and what is left."""
    time = ((encoded.x_hat - scored.x["test"]) ** 2).mean(1)
    frequency = ((encoded.u_hat - encoded.u["test"]) ** 2).mean((1, 2, 3))
    return dict(
        recon=(time + frequency).mean(),
        recon_time=time.mean(),
        recon_timefreq=frequency.mean(),
        recon_last_batch=(time + frequency)[128:].mean(),
    )


@recomputes("codes_used", "perplexity")
def test_code_use_is_that_of_the_test_split(scored, encoded):
    tokens = encoded.tokens["test"]
    share = torch.bincount(tokens.flatten()).double() / tokens.numel()
    entropy = -sum(v * math.log(v) for v in share.tolist() if v)
    return dict(codes_used=len(tokens.unique()), perplexity=math.exp(entropy))


@recomputes("knn", "svm")
def test_probes_see_the_mean_codes_and_labels_of_both_splits(scored, encoded):
    ((z_train, y_train, z_test, y_test, scores),) = scored.calls["probe"]
    averages = encoded.averages
    torch.testing.assert_close([z_train, z_test], [averages["train"], averages["test"]])
    assert y_train.tolist() == scored.y["train"].tolist()
    assert y_test.tolist() == scored.y["test"].tolist()
    knn, svm = scores
    return dict(knn=knn, svm=svm)


@recomputes("prior_loss_train", "prior_loss")
def test_prior_losses_are_of_one_masking_of_each_split_with_its_labels(
    scored, encoded, prior_of_file
):
    losses = []
    for split, call in zip(("train", "test"), scored.calls["prior_loss"], strict=True):
        tokens, labels = encoded.tokens[split], scored.y[split]
        _, asked_tokens, asked_labels, _ = call  # few labels hardly move it
        assert torch.equal(asked_tokens, tokens)
        assert asked_labels.tolist() == labels.tolist()
        mask = prior.mask_tokens(tokens, generator(0))
        log_p = prior_of_file(tokens, mask, torch.from_numpy(labels)).log_softmax(-1)
        log_p = log_p.gather(-1, tokens[..., None])[..., 0]
        losses.append(-(log_p * mask).sum() / mask.sum())
    return dict(prior_loss_train=losses[0], prior_loss=losses[1])


def test_a_run_draws_without_a_class_and_in_the_train_splits_shares_of_classes(scored):
    """At least 256 series of no class, which is 3; at least 1000 of classes of 6, 6, 12 of 24."""
    no_class, by_class = (labels.tolist() for _, _, labels, *_ in scored.calls["sample"])
    assert no_class == [3] * 256
    assert by_class == [0] * 250 + [1] * 250 + [2] * 500


def test_samples_npz_has_the_conditional_series_in_units_of_the_data_beside_their_labels(
    scored, drawn
):
    with np.load(scored.run / "samples.npz") as s:
        assert s["X"].shape == (1000, 1, 31)
        assert s["y"].tolist() == [scored.names[k] for k in drawn.labels]
        expected = drawn.conditional.double() * scored.std + scored.mean
        np.testing.assert_allclose(s["X"][:, 0], expected, rtol=1e-5)
    assert scored.metrics["n_generated"] == 1000


def test_the_classifier_behind_fid_learns_the_train_split_with_seed_0(scored, tmp_path):
    """Whatever the seed of the run; 3 epochs of one batch each."""
    classifier = scored.metrics["classifier"]
    assert classifier["steps"] == 3
    state = torch.load(classifier["file"], weights_only=True)["state"]
    again, _ = evaluate.train_fcn(
        scored.x["train"],
        torch.from_numpy(scored.y["train"]),
        3,
        dataclasses.replace(scored.config, seed=0),
        tmp_path,
        "again",
    )
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), state.values(), strict=True)
    )


@recomputes("fid", "fid_recon", "fid_floor")
def test_fid_compares_samples_reconstructions_and_train_series_with_the_test_split(scored, looks):
    """Samples of no class; as many train series as there are samples."""
    return dict(
        fid=slow_fid(looks["fake"].features, looks["real"].features),
        fid_recon=slow_fid(looks["recon"].features, looks["real"].features),
        fid_floor=slow_fid(looks["floor"].features, looks["real"].features),
    )


@recomputes("is", "is_real")
def test_inception_scores_are_of_samples_without_a_class_and_of_the_test_split(scored, looks):
    return {"is": slow_is(looks["fake"].p), "is_real": slow_is(looks["real"].p)}


@recomputes("precision", "recall", "density", "coverage", "coverage_real")
def test_precision_recall_density_and_coverage_are_of_the_features_behind_fid(scored, looks):
    """coverage_real: of the train series behind fid_floor."""
    (real, fake, _), (again, train, _) = scored.calls["precision_recall_density_coverage"]
    np.testing.assert_allclose(real, looks["real"].features, atol=1e-4)
    np.testing.assert_allclose(fake, looks["fake"].features, atol=1e-4)
    np.testing.assert_allclose(train, looks["floor"].features, atol=1e-4)
    assert again is real
    return slow_prdc(real, fake) | dict(coverage_real=slow_prdc(real, train)["coverage"])


def share_of_hits(call, p, y):
    """The accuracy of a call, of probabilities near p and of labels y."""
    asked_p, asked_y, _ = call
    np.testing.assert_allclose(asked_p, p, atol=1e-4)
    assert asked_y.tolist() == y.tolist()
    return np.mean([row.argmax() == k for row, k in zip(asked_p, y, strict=True)])


@recomputes("fcn_accuracy")
def test_fcn_accuracy_is_that_of_the_classifier_behind_fid_on_the_test_split(scored, looks):
    call, *_ = scored.calls["accuracy"]
    return dict(fcn_accuracy=share_of_hits(call, looks["real"].p, scored.y["test"]))


@recomputes("cas", "cas_on_recon")
def test_cas_is_of_a_classifier_that_learns_the_conditional_samples(
    scored, drawn, encoded, tmp_path
):
    """With the seed of the run; it is scored on the test split, real and reconstructed."""
    config = dataclasses.replace(scored.config, fcn_epochs=2)
    fcn, _ = evaluate.train_fcn(drawn.conditional, drawn.labels, 3, config, tmp_path, "cas")
    found = {}
    _, *calls, _ = scored.calls["accuracy"]
    for key, x, call in zip(
        ("cas", "cas_on_recon"), (scored.x["test"], encoded.x_hat), calls, strict=True
    ):
        p = fcn(x).double().softmax(1).numpy()
        found[key] = share_of_hits(call, p, scored.y["test"])
    return found


@recomputes("cas_real")
def test_cas_real_is_of_one_that_learns_the_train_split_as_long(scored, tmp_path):
    """With seed 0, for 2 epochs of 1000 samples; it is scored on the test split."""
    fcn, _ = evaluate.train_fcn(
        scored.x["train"],
        torch.from_numpy(scored.y["train"]),
        3,
        Config(seed=0, fcn_lr=1e-2, fcn_steps=8),
        tmp_path,
        "as long as cas",
    )
    p = fcn(scored.x["test"]).double().softmax(1).numpy()
    *_, call = scored.calls["accuracy"]
    return dict(cas_real=share_of_hits(call, p, scored.y["test"]))


@recomputes("nn_ratio", "nn_ratio_recon")
def test_nn_ratios_are_of_samples_without_a_class_and_of_reconstructions(scored, encoded, drawn):
    def nearest(a):
        return np.mean([((s - scored.x["train"]) ** 2).sum(1).min().sqrt() for s in a])

    real = nearest(scored.x["test"])
    return dict(
        nn_ratio=nearest(drawn.unconditional) / real, nn_ratio_recon=nearest(encoded.x_hat) / real
    )


@recomputes("n_train", "n_test", "length", "n_classes", "complete_data")
def test_counts_are_those_of_the_data(scored):
    return dict(n_train=24, n_test=200, length=31, n_classes=3, complete_data=True)


@recomputes("seconds_stage1", "seconds_stage2")
def test_seconds_of_training_are_those_of_the_checkpoints(scored):
    return {
        f"seconds_{stage}": torch.load(scored.run / f"{stage}.pt", weights_only=True)["seconds"]
        for stage in ("stage1", "stage2")
    }


def test_no_number_of_metrics_json_is_left_out_above():
    """But n_generated, which samples.npz is compared with, and the time that scoring took."""
    assert set(evaluate.METRICS) - RECOMPUTED == {"n_generated", "seconds_evaluate"}


def score_file(scored, monkeypatch, capsys, file, *flags):
    """What evaluate.py samples prints of a file, beside the run."""
    monkeypatch.setenv("OUT", str(scored.folder))
    capsys.readouterr()
    command(evaluate, "samples", file, "--dataset", scored.config.dataset, *flags)
    return json.loads(capsys.readouterr().out)


def test_samples_of_a_class_that_the_data_lack_are_refused(scored, tmp_path, monkeypatch, capsys):
    peer = npz(tmp_path / "peer.npz", X=scored.raw["test"], y=["sideways"] * 200)
    flags = ("--fcn-epochs", 1, "--cas-epochs", 1)
    with pytest.raises(InputError, match="class sideways: own has down, flat, up"):
        score_file(scored, monkeypatch, capsys, peer, *flags)


def test_the_test_split_as_samples_has_a_ratio_of_1_and_no_fid(
    scored, tmp_path, monkeypatch, capsys
):
    """In units of the data."""
    peer = npz(tmp_path / "peer.npz", X=scored.raw["test"])
    flags = ("--fcn-epochs", 3, "--fcn-lr", 1e-2)
    found = score_file(scored, monkeypatch, capsys, peer, *flags)
    assert (found["nn_ratio"], found["n"]) == (pytest.approx(1, abs=1e-5), 200)
    assert found["fid"] < 1e-3 < found["fid_floor"]


def test_a_runs_samples_npz_scores_as_the_run_to_the_last_digit(scored, monkeypatch, capsys):
    flags = ("--fcn-epochs", 3, "--cas-epochs", 2, "--fcn-lr", 1e-2, "--seed", 3)
    found = score_file(scored, monkeypatch, capsys, scored.run / "samples.npz", *flags)
    keys = (
        "nn_ratio",
        "fid",
        "is",
        "fid_floor",
        "is_real",
        "fcn_accuracy",
        "cas",
        "cas_real",
        "precision",
        "recall",
        "density",
        "coverage",
        "coverage_real",
        "classifier",
    )
    assert {k: found[k] for k in keys} == {k: scored.metrics[k] for k in keys}


def test_all_classes_are_those_of_the_runs_own_train_split(tmp_path):
    own = own_data(tmp_path)
    with np.load(own) as file:
        words = np.where(np.arange(16) < 14, "up", file["y_test"])  # other shares than the train's
        np.savez(own, **{**file, "y_test": words})
    run, out = tmp_path / "own/naive-none/seed1", tmp_path / "x.npz"
    ncvqvae.train_stage1(run, tiny_config(stage1_steps=1, stage2_steps=1, dataset=own))
    prior.train_stage2(run)
    command(prior, "sample", run, "--n", 8, "--class", "all", "--out", out)
    assert sorted(np.load(out)["y"]) == ["down"] * 2 + ["flat"] * 2 + ["up"] * 4
    with pytest.raises(data.InputError, match="--n 0: should be from 1"):
        command(prior, "sample", run, "--n", 0, "--out", out)
    own_data(tmp_path, n_test=17)
    with pytest.raises(data.InputError, match="the data of own have changed since"):
        command(prior, "sample", run, "--n", 8, "--class", "all", "--out", out)


def test_a_prior_of_older_layer_names_is_read(tmp_path):
    run = tmp_path / "r"
    ncvqvae.train_stage1(
        run, tiny_config(stage1_steps=1, stage2_steps=1, dataset=own_data(tmp_path))
    )
    weights = prior.train_stage2(run).state_dict()
    checkpoint = data.load_checkpoint(run / "stage2.pt")
    older = {}
    for name, weight in checkpoint["state"].items():
        older[name.replace("to_hidden.", "into.").replace("to_code.", "back.")] = weight
    del checkpoint["codebook"]
    torch.save(checkpoint | {"state": older}, run / "stage2.pt")
    for name, weight in prior.load_stage2(run)[0].state_dict().items():
        assert weight.equal(weights[name])


def test_each_band_has_masks_of_its_own(tmp_path, monkeypatch):
    asked, mask_tokens = [], prior.mask_tokens

    def spy(tokens, generator):
        asked.append(tokens.shape[1])
        return mask_tokens(tokens, generator)

    monkeypatch.setattr(prior, "mask_tokens", spy)
    config = tiny_config(
        dataset=own_data(tmp_path),
        bands=2,
        latent_width=2,
        latent_width_high=4,
        stage1_steps=1,
        stage2_steps=2,
        validate_epochs=0,
    )
    sizes = ncvqvae.train_stage1(tmp_path / "r", config).sizes
    trained = prior.train_stage2(tmp_path / "r")
    assert len(set(sizes)) == 2 and asked == 2 * sizes
    tokens = torch.randint(0, 64, (8, sum(sizes)), generator=generator())
    prior.prior_loss(trained, tokens, torch.zeros(8, dtype=torch.int64))
    assert asked == 3 * sizes


@pytest.mark.parametrize(
    "words,label", [(("--class", "flat"), 1), ((), 3)], ids=["class flat", "no class"]
)
def test_prior_sample_draws_the_class_asked_for_with_the_settings_of_the_run(
    scored, encoded, prior_of_file, tmp_path, words, label
):
    """No class is 3, and has no y."""
    out = tmp_path / "x.npz"
    command(prior, "sample", scored.run, "--n", 30, "--seed", 5, "--out", out, *words)
    labels = torch.full((30,), label)
    tokens = prior.iterative_decode(prior_of_file, labels, generator(5), 4, 2.0, 1.5)
    expected = encoded.model.series(tokens).double() * scored.std + scored.mean
    with np.load(out) as s:
        np.testing.assert_allclose(s["X"][:, 0], expected, rtol=1e-5)
        assert ("y" in s.files) == bool(words) and (not words or set(s["y"]) == {"flat"})


def test_every_field_of_the_evaluation_changes_what_it_says(tmp_path, monkeypatch):
    """One run, scored with one field changed at a time: which metrics move; no other does."""
    no_figures(monkeypatch)
    own = own_data(tmp_path, n_test=40)
    base = tiny_config(
        dataset=own,
        stage1_steps=3,
        stage2_steps=20,
        fcn_epochs=2,
        cas_epochs=1,
        decode_steps=3,
        fcn_batch=20,
    )
    run_all(tmp_path / "a/own/r/s", base)
    m = data.read_json(tmp_path / "a/own/r/s/metrics.json")
    near = {"precision", "recall", "density", "coverage"}
    samples = {"fid", "is", "cas", "cas_on_recon", "nn_ratio"} | near
    real = {"fid_floor", "is_real", "coverage_real", "fcn_accuracy"}
    of_fcn = {"fid", "fid_recon", "is"} | real | near
    cas = {"cas", "cas_real", "cas_on_recon"}
    both = of_fcn | cas
    moves = {
        "decode_steps": (1, samples),
        "choice_temperature": (0.0, samples),
        "guidance": (3.0, {"cas", "cas_on_recon"}),
        "fcn_epochs": (1, of_fcn),
        "fcn_steps": (7, of_fcn),
        "cas_epochs": (2, cas),
        "cas_steps": (23, cas),
        "steps_per_class": (9, set()),
        "fcn_batch": (24, both),  # the former: epochs decide
        "fcn_lr": (1e-2, both),
        "fcn_weight_decay": (9.0, both),
    }
    names = [f.name for f in dataclasses.fields(Config)]
    # those two: tests of their own
    assert {*names[names.index("stages") :]} == {*moves, "stages", "validate_epochs"}
    for name, (value, expected) in moves.items():
        run = tmp_path / f"{name}/own/r/s"
        run.mkdir(parents=True)
        for file in ("stage1.pt", "stage2.pt"):
            (run / file).write_bytes((tmp_path / "a/own/r/s" / file).read_bytes())
        new = evaluate.evaluate_run(run, dataclasses.replace(base, **{name: value}))
        moved = {k for k in evaluate.METRICS if "seconds" not in k and new[k] != m[k]}
        # what is counted may stay by chance
        counted = {"fcn_accuracy", "coverage_real"} | cas | near
        assert expected - counted <= moved <= expected, (name, moved)
        steps = {
            r["stage"]: r["step"]
            for r in data.read_log(run)
            if r.get("stage") == "cas" and "step" in r
        }
        assert steps == {"cas": {"cas_epochs": 100, "cas_steps": 23, "fcn_batch": 42}.get(name, 50)}
        before, after = (
            np.load(folder / "samples.npz")["X"] for folder in (tmp_path / "a/own/r/s", run)
        )
        same = np.array_equal(before, after)
        of_sampling = ("decode_steps", "choice_temperature", "guidance")
        assert same == (name not in of_sampling), name


# ---- runs: training loops ----


def test_a_training_loop_follows_adamw_and_the_cosine(tmp_path, monkeypatch):
    """Three epochs of the classifier's loop on a linear model against torch's own scheduler."""
    models = []

    class Linear(torch.nn.Linear):
        def __init__(self, n_classes, precision):
            super().__init__(4, n_classes)
            models.append(copy.deepcopy(self))

    monkeypatch.setattr(evaluate, "FCN", Linear)
    x, y = draw(10, 4, dtype=torch.float32), torch.arange(10) % 3
    config = Config(fcn_batch=3, fcn_epochs=3, fcn_lr=0.1, fcn_weight_decay=0.3, seed=7)
    model, training = evaluate.train_fcn(x, y, 3, config, tmp_path, "fcn")
    # the tenth series is left alone: dropped
    assert training.steps_per_epoch == 3 and training.total_steps == training.step == 9
    twin = models[0].train()
    optimizer = torch.optim.AdamW(twin.parameters(), 0.1, weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    g = generator(7)
    for _ in range(3):
        for rows in torch.randperm(10, generator=g)[:9].split(3):
            optimizer.zero_grad()
            F.cross_entropy(twin(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    torch.testing.assert_close(model.weight, twin.weight)
    torch.testing.assert_close(model.bias, twin.bias)


def test_every_loop_has_its_own_rate_decay_and_length(tmp_path, monkeypatch):
    steps, step = [], torch.optim.AdamW.step

    def spy(self, *inputs):
        (group,) = self.param_groups
        steps.append((group["lr"], group["weight_decay"]))
        return step(self, *inputs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    config = tiny_config(
        dataset=own_data(tmp_path),
        stage1_steps=4,
        stage1_lr=0.1,
        stage1_warmup=2,
        stage1_weight_decay=0.01,
        stage2_epochs=2,
        stage2_batch=8,
        stage2_lr=0.2,
        stage2_weight_decay=0.02,
        fcn_epochs=5,
        fcn_lr=0.3,
        fcn_weight_decay=0.03,
    )
    d = data.load_dataset(config.dataset)  # 24 series: 3 batches of stage 2, one of the classifier
    for total, lr, rising, decay, train in (
        (4, 0.1, (1 / 3, 2 / 3), 0.01, lambda: ncvqvae.train_stage1(tmp_path / "r", config)),
        (6, 0.2, (), 0.02, lambda: prior.train_stage2(tmp_path / "r", config)),
        (
            5,
            0.3,
            (),
            0.03,
            lambda: evaluate.train_fcn(d.x_train, d.y_train, 3, config, tmp_path, "cas"),
        ),
    ):
        steps.clear()
        train()
        expected = [lr * (1 + math.cos(math.pi * t / total)) / 2 for t in range(total)]
        for t, share in enumerate(rising):
            expected[t] *= share
        assert [rate for rate, _ in steps] == pytest.approx(expected)
        assert {decay for _, decay in steps} == {decay}


def test_about_200_steps_are_logged_and_batches_are_epochs_of_a_permutation(tmp_path):
    model = torch.nn.Linear(4, 1)
    training = linear_training(tmp_path, model, n=9, stage="stage2", steps=401, seed=7)
    for _ in training:  # every second step is logged, and the first and the last
        training.step_done(torch.ones(()))
    logged = [r for r in data.read_log(tmp_path) if r["stage"] == "stage2" and "step" in r]
    assert [r["step"] for r in logged] == [1, *range(2, 401, 2), 401]
    training, seen = linear_training(tmp_path, model, n=10, batch=3, epochs=3, seed=7), []
    for rows in training:
        seen.append(rows)
        training.step_done(torch.ones(()))
    g = generator(7)
    assert torch.equal(
        torch.cat(seen), torch.cat([torch.randperm(10, generator=g)[:9] for _ in range(3)])
    )
    for n, batch, epochs, steps, expected in ((256, 128, 9, 4, (4, 2)), (256, 256, 7, 0, (7, 1))):
        other = linear_training(tmp_path, model, n, "cas", batch, epochs, steps)
        assert (other.total_steps, other.steps_per_epoch) == expected and other.stage == "cas"


def test_the_test_split_is_looked_at_every_so_many_epochs_and_nothing_moves(tmp_path):
    logs, states = [], []
    for every in (2, 0):
        run, own = tmp_path / f"{every}/own/naive-none/seed1", own_data(tmp_path)
        config = tiny_config(
            stage1_epochs=5,
            stage2_epochs=3,
            stage1_batch=10,
            stage2_batch=10,
            prior_dropout=0.5,  # not in what is looked at
            validate_epochs=every,
            dataset=own,
        )
        model = ncvqvae.train_stage1(run, config)
        p = prior.train_stage2(run)
        logs.append([r for r in data.read_log(run) if "step" in r])
        states.append({**model.state_dict(), **p.state_dict()})
    looks = [(r["stage"], r["epoch"]) for r in logs[0] if "val_recon" in r or "val_prior_loss" in r]
    assert looks == [("stage1", 2), ("stage1", 4), ("stage1", 5), ("stage2", 2), ("stage2", 3)]
    assert [r for r in logs[0] if "loss" in r] == logs[1]  # no draw was consumed
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    d = data.load_dataset(own)
    assert logs[0][-1]["val_prior_loss"] == pytest.approx(
        prior.prior_loss(p, model.tokens(d.x_test), d.y_test)
    )
    last = [r for r in logs[0] if "val_recon" in r][-1]
    recon = ncvqvae.encode_split(model, d.x_test)["errors"].sum(1).mean().item()
    assert last["val_recon"] == pytest.approx(recon)


def test_passes_of_both_splits_move_batchnorm_and_codebook(tmp_path, monkeypatch):
    """As the published program's (ledger 12), but for its last, behind the published recon."""
    own, seen, leak = own_data(tmp_path), [], ncvqvae.leak
    d = data.load_dataset(own)

    def spy(model, x, batch):
        before = {k: v.clone() for k, v in model.state_dict().items()}
        leak(model, x, batch)
        moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
        seen.append((len(x), batch, model.training, moved))

    monkeypatch.setattr(ncvqvae, "leak", spy)
    states = {}
    for epochs in (0, 2):
        run = tmp_path / f"{epochs}/own/naive-none/seed1"
        config = tiny_config(dataset=own, stage1_epochs=6, leak_epochs=epochs)
        states[epochs] = ncvqvae.train_stage1(run, config).state_dict()
    splits = [(len(d.x_train), 8, True), (len(d.x_test), 8, True)]
    assert [look[:3] for look in seen] == 3 * splits  # before step 1, after epochs 2 and 4, not 6
    for *_, moved in seen:  # no weight, nothing of the decoder
        last_parts = {name.split(".")[-1] for name in moved if "decoder" not in name}
        statistics = {"running_mean", "running_var", "num_batches_tracked"}
        assert last_parts == statistics | {"codebook", "counts", "sums"}
        assert not any("decoder" in name for name in moved)
    assert any(not torch.equal(v, states[2][k]) for k, v in states[0].items())


def test_class_dropout_is_a_share_and_tokens_keep_their_label(tmp_path, monkeypatch):
    seen, run, forward = [], tmp_path / "run", Prior.forward

    def spy(self, tokens, mask, labels):
        seen.append((tokens, labels))
        return forward(self, tokens, mask, labels)

    monkeypatch.setattr(Prior, "forward", spy)
    config = tiny_config(
        dataset=own_data(tmp_path),
        stage1_steps=30,
        stage2_steps=60,
        class_dropout=0.25,
        validate_epochs=0,
        stage2_batch=10,
    )
    ncvqvae.train_stage1(run, config)
    prior.train_stage2(run)
    tokens, labels = map(torch.cat, zip(*seen, strict=True))
    assert (labels == 3).double().mean().item() == pytest.approx(0.25, abs=0.05)
    # "up" is half of the series
    assert torch.bincount(labels)[2] > torch.bincount(labels)[:2].max()
    d = data.load_dataset(config.dataset)
    of_train = ncvqvae.load_stage1(run)[0].tokens(d.x_train).tolist()
    rows = {tuple(t): y for t, y in zip(of_train, d.y_train.tolist(), strict=True)}
    assert len(rows) == 24
    assert all(
        y in (3, rows[tuple(t)]) for t, y in zip(tokens.tolist(), labels.tolist(), strict=True)
    )


def test_tokens_drawn_in_training_come_from_the_frozen_tokenizer(tmp_path, monkeypatch):
    modes, tokens = [], NCVQVAE.tokens

    def spy(self, x, *drawn):
        modes.append((self.training, *drawn[:1]))
        return tokens(self, x, *drawn)

    monkeypatch.setattr(NCVQVAE, "tokens", spy)
    config = tiny_config(
        dataset=own_data(tmp_path), stage1_steps=1, stage2_steps=3, token_temperature=0.5
    )
    ncvqvae.train_stage1(tmp_path / "r", config)
    prior.train_stage2(tmp_path / "r")
    assert modes == [(False,)] * 2 + [(False, 0.5)] * 3  # both splits' nearest, once; then draws


def test_the_seed_reaches_the_first_weights_of_every_stage(tmp_path):
    """With a learning rate of nearly nothing what differs is where training started."""
    still, weights = (
        dict(stage1_steps=1, stage2_steps=1, stage1_lr=1e-12, stage2_lr=1e-12, fcn_lr=1e-12),
        [],
    )
    own = own_data(tmp_path)
    for seed in (1, 2):
        config, run = tiny_config(dataset=own, seed=seed, **still), tmp_path / str(seed)
        model, p = ncvqvae.train_stage1(run, config), prior.train_stage2(run)
        fcn, _ = evaluate.train_fcn(torch.randn(9, 31), torch.arange(9) % 3, 3, config, run, "cas")
        weights.append([model.bands[0].encoder[0][0].weight, p.head[2].weight, fcn.head.weight])
        torch.testing.assert_close(p.embedding.weight, model.codebook(), atol=1e-6, rtol=0)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(*weights, strict=True))


def test_what_stage_1_fails_to_learn_is_warned_of(tmp_path, capsys, monkeypatch):
    """Half-way and at the end: one code for all, or reconstructions no better than a constant."""
    config = tiny_config(dataset=own_data(tmp_path), stage1_steps=60, stage1_lr=1e-2)
    ncvqvae.train_stage1(tmp_path / "well", config)
    assert "WARNING" not in capsys.readouterr().err

    def nothing(self, latents):
        u, x = decode(self, latents)
        return 0 * u, 0 * x

    def one_code(self, latents):
        z_q, ids, commitment = quantize(self, latents)
        return z_q, 0 * ids, commitment

    decode, quantize = NCVQVAE.decode, NCVQVAE.quantize
    config = dataclasses.replace(config, stage1_steps=4)
    monkeypatch.setattr(NCVQVAE, "decode", nothing)
    at_end = property(lambda training: training.step == training.total_steps)
    monkeypatch.setattr(data.Training, "is_logged_step", at_end)  # half-way may be between two
    ncvqvae.train_stage1(tmp_path / "nothing", config)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert [line.split(": ")[1] for line in warnings] == ["step 2", "step 4"]
    assert all("no better than a constant" in line for line in warnings)
    monkeypatch.setattr(NCVQVAE, "decode", decode)
    monkeypatch.setattr(NCVQVAE, "quantize", one_code)
    ncvqvae.train_stage1(tmp_path / "one", dataclasses.replace(config, stage1_steps=1))
    assert "step 1: the codebook collapsed to one code" in capsys.readouterr().err

    def one_code_of_the_high_band(self, latents):
        z_q, ids, commitment = quantize(self, latents)
        return z_q, ids.where(ids < self.config.n_codes, self.config.n_codes), commitment

    monkeypatch.setattr(NCVQVAE, "quantize", one_code_of_the_high_band)
    two_bands = dataclasses.replace(config, stage1_steps=1, bands=2)
    ncvqvae.train_stage1(tmp_path / "high", two_bands)
    assert "step 1: the codebook collapsed to one code" in capsys.readouterr().err
    monkeypatch.setattr(NCVQVAE, "quantize", quantize)
    ncvqvae.train_stage1(
        tmp_path / "single", dataclasses.replace(config, stage1_steps=1, n_codes=1)
    )
    assert "collapsed" not in capsys.readouterr().err  # it was asked for one


def test_the_same_seed_gives_the_same_prior(tmp_path):
    config = tiny_config(stage1_steps=2, stage2_steps=3, dataset=own_data(tmp_path))
    ncvqvae.train_stage1(tmp_path / "r", config)
    first = prior.train_stage2(tmp_path / "r")
    (tmp_path / "r/stage2.pt").unlink()
    torch.rand(3)
    second = prior.train_stage2(tmp_path / "r")
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


CHANGES = dict(
    seed=2,
    precision="bf16",
    stage1_steps=2,
    stage1_batch=12,
    stage1_lr=1e-2,
    stage1_warmup=1,
    stage1_weight_decay=5.0,
    views=2,
    bands=2,
    n_fft=16,
    width=8,
    latent_width=2,
    residual_kernel=3,
    residual_norm="none",
    n_codes=5,
    ema_decay=0.5,
    ema_initial_count=0.0,
    leak_epochs=1,
    beta=2.0,
    eta=2.0,
    zeta=0.5,
    similarity_weight=1.0,
    variance_weight=1.0,
    covariance_weight=1.0,
    projector_dim=128,
    augmentation="gauss",
    method="barlow",
)


CHANGES2 = dict(
    seed=2,
    precision="bf16",
    stage2_steps=2,
    stage2_batch=12,
    stage2_lr=1e-2,
    stage2_weight_decay=5.0,
    optimizer="muon",
    prior_hidden=64,
    prior_layers=2,
    prior_heads=4,
    prior_ff_ratio=2,
    prior_dropout=0.5,
    class_dropout=1.0,
    embedding="random",
    loss_on="all",
    token_temperature=1.0,
)


def test_every_field_changes_what_it_says_and_nothing_of_the_stage_before(tmp_path, monkeypatch):
    own = own_data(tmp_path)
    base = tiny_config(
        dataset=own,
        method="vibcreg",
        augmentation="slice",
        stage1_steps=3,
        stage2_steps=3,
        stage2_batch=8,
        fcn_epochs=1,
    )

    def weights(state):
        return torch.cat([v.flatten().double() for v in state.values() if v.is_floating_point()])

    names = [f.name for f in dataclasses.fields(Config)]
    unseen = {"stage1_epochs", "barlow_lambda", "latent_width_high"}
    assert set(base.settings_of("stage1")) - unseen == set(CHANGES)
    reference = weights(ncvqvae.train_stage1(tmp_path / "base", base).state_dict())
    for name, value in CHANGES.items():
        changed = dataclasses.replace(base, **{name: value})
        new = weights(ncvqvae.train_stage1(tmp_path / name, changed).state_dict())
        assert new.shape != reference.shape or not torch.equal(new, reference), name
    later = dict.fromkeys(names[names.index("stage2_epochs") : names.index("stages")])
    assert set(later) - {"stage2_epochs"} | {"seed", "precision"} == set(CHANGES2)
    (tmp_path / "base/copy").mkdir()
    for name, value in {"": None, **CHANGES2}.items():
        if name in ("seed", "precision"):
            continue
        run = tmp_path / f"two{name}"
        run.mkdir()
        (run / "stage1.pt").write_bytes((tmp_path / "base/stage1.pt").read_bytes())
        changed = dataclasses.replace(base, **({name: value} if name else {}))
        new = weights(prior.train_stage2(run, changed).state_dict())
        if name:
            assert new.shape != reference.shape or not torch.equal(new, reference), name
        else:
            reference = new
        assert (run / "stage1.pt").read_bytes() == (tmp_path / "base/stage1.pt").read_bytes()


# ---- runs: precisions and devices ----


@pytest.mark.parametrize("method", ["naive", "vibcreg"])
def test_bf16_stays_near_float32_and_keeps_its_statistics_in_float32(method, monkeypatch):
    x, x_aug = draw(8, 40, dtype=torch.float32), draw(8, 40, seed=1, dtype=torch.float32)
    whiten = ncvqvae.iter_norm

    def exact(z, groups):
        assert z.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return whiten(z, groups)

    monkeypatch.setattr(ncvqvae, "iter_norm", exact)
    losses = []
    for precision in ("float32", "bf16"):
        model = tiny_model(
            method=method,
            augmentation="none" if method == "naive" else "slice",
            precision=precision,
        ).train()
        loss, terms, _ = model(x, None if method == "naive" else x_aug)
        loss.backward()
        u, (z,) = model.encode(x)
        assert {
            t.dtype for t in (loss, u, z, *model.decode([z]), model.codebook(), *terms.values())
        } == {torch.float32}
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
        losses.append(loss.item())
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.03)
    torch.manual_seed(0)
    exact, rounded = evaluate.FCN(3), evaluate.FCN(3, "bf16")
    rounded.load_state_dict(exact.state_dict())
    assert rounded.features(x).dtype == torch.float32
    torch.testing.assert_close(rounded.features(x), exact.features(x), atol=0.05, rtol=0.05)
    assert not torch.equal(rounded.features(x), exact.features(x))


def test_where_channels_last_is_wrong_nothing_lies_so(monkeypatch):
    """On mps its gradients are; z_q would lie so, as it is looked up."""
    for module in (data, ncvqvae):
        monkeypatch.setattr(module, "likes_channels_last", lambda tensor: False)
    seen = []

    def note(part, inputs, out):
        for tensor in (*inputs, out):
            tensor.register_hook(lambda gradient: seen.append(gradient.is_contiguous()))
            seen.append(tensor.is_contiguous())

    model, fcn = tiny_model(), evaluate.FCN(3)
    for whole in (model, fcn):
        data.use_fast_layout(whole)
        for part in whole.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.register_forward_hook(note)
    x = draw(8, 40, dtype=torch.float32)
    model(x)[0].backward()
    F.cross_entropy(fcn(x), torch.arange(8) % 3).backward()
    assert len(seen) > 20 and all(seen)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_the_precision_asked_for_is_that_of_every_product(tmp_path, precision):
    products, x = {}, draw(8, 40, dtype=torch.float32)

    def note(name, model):
        kinds = torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear
        for key, part in model.named_modules():
            if isinstance(part, kinds):
                part.register_forward_hook(
                    lambda part, inputs, out, key=f"{name} {key}": products.update({key: out.dtype})
                )
        return model

    for bands in (1, 2):
        note(
            "stage 1",
            tiny_model(
                method="vibcreg",
                augmentation="slice",
                bands=bands,
                latent_width=2,
                precision=precision,
            ),
        )(x, x + 1)
    tokens = torch.zeros(8, 10, dtype=torch.int64)
    mask, labels = prior.mask_tokens(tokens, generator()), torch.arange(8) % 3
    p = note("prior", tiny_prior(precision=precision))
    assert p(tokens, mask, labels).dtype == torch.float32
    config = tiny_config(precision=precision, fcn_epochs=1)
    fcn, _ = evaluate.train_fcn(x, labels, 3, config, tmp_path, "fcn")
    note("fcn", fcn)(x)
    assert products.pop("fcn head") == torch.float32  # of pooled features
    assert {key.split(".")[0] for key in products} == {
        "stage 1 bands",
        "stage 1 projector",
        "prior blocks",
        "prior to_hidden",
        "prior to_code",
        "prior head",
        "fcn convs",
    }
    assert set(products.values()) == {torch.bfloat16 if precision == "bf16" else torch.float32}
    own = data.load_dataset(own_data(tmp_path))
    assert evaluate.dataset_fcn(tmp_path, own, config)[0].precision == precision
    data.pick_device(precision)
    for backend in (torch.backends.cudnn, torch.backends.cuda.matmul):
        assert backend.allow_tf32 == (precision == "tf32")
    data.pick_device()


@pytest.mark.parametrize("how", ["autocast", "bf16"])
def test_copied_pieces_stand_half_precision(how):
    """What others copy under autocast or feed with bf16: float32 inside."""
    torch.manual_seed(0)
    q, z = ncvqvae.VectorQuantizer(5, 8), draw(2, 8, 5, 4, dtype=torch.float32)
    twin = copy.deepcopy(q)
    expected = q(z.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        found = twin(z.bfloat16())
    assert torch.equal(found[0], expected[0]) and torch.equal(twin.codebook, q.codebook)
    for loss in (ncvqvae.barlow_twins_loss, ncvqvae.vibcreg_loss):
        constant = torch.ones(6, 8, dtype=torch.bfloat16)
        assert loss(constant, constant).isfinite()
        with pytest.raises(ValueError, match="at least 2 rows"):
            loss(constant[:1], constant[:1])
        z = draw(2, 30, 64, dtype=torch.float32).bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            found = loss(*z)
        torch.testing.assert_close(found, loss(*z.float()), rtol=1e-5, atol=0)


class OneDevice(TorchDispatchMode):
    """No operation but a copy has tensors or generators of two devices: not even an index or a
    scalar, which kernels of a GPU may let pass."""

    def __torch_dispatch__(self, function, types, inputs=(), named=None):
        out = function(*inputs, **(named or {}))
        devices = {v.device for v in tree_leaves((inputs, named, out)) if hasattr(v, "device")}
        copies = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        assert copies or len(devices) < 2, f"{function} on two devices"
        return out


@pytest.fixture
def meta(monkeypatch):
    """The device "meta", which has shapes and no values, in the place of a GPU."""

    def inverse(u, n_fft, window, length):  # torch's own looks at values
        return (torch.fft.irfft(u, n_fft, dim=1) * window[:, None]).flatten(1)[:, :length]

    class Unseeded:  # there is no torch.Generator of this device
        def __new__(cls, device="cpu", make=torch.Generator):
            return super().__new__(cls) if str(device) == "meta" else make(device)

        def manual_seed(self, seed):
            return None

    monkeypatch.setattr(torch, "Generator", Unseeded)
    monkeypatch.setattr(torch, "istft", inverse)
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "equal", lambda *tensors: False)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: t)
    with OneDevice():
        yield torch.device("meta")


@pytest.mark.parametrize(
    "method,views,bands", [("naive", 1, 1), ("vibcreg", 1, 2), ("barlow", 2, 1)]
)
def test_a_step_of_stage_1_stays_on_the_device(meta, method, views, bands):
    view = "none" if method == "naive" else "+".join(data.AUGMENTATIONS)
    model = (
        tiny_model(method=method, augmentation=view, views=views, bands=bands, latent_width=2)
        .to(meta)
        .train()
    )
    x = torch.zeros(8, 40, device=meta)
    loss, terms, tokens = model(x, None if method == "naive" else data.augment(x, view))
    loss.backward()
    for t in (loss, tokens, *terms.values(), *(p.grad for p in model.parameters())):
        assert t.device == meta
    model.eval()
    for tokens in (model.tokens(x), model.tokens(x, 1.0)):
        assert model.series(tokens).device == tokens.device == meta
    encoded = ncvqvae.encode_split(model, torch.zeros(8, 40))  # a split is moved batch by batch
    assert all(v.device == meta for v in encoded.values())


def test_the_prior_and_the_classifier_stay_on_the_device(monkeypatch, meta):
    p, labels = banded_prior().to(meta), torch.zeros(4, dtype=torch.int64, device=meta)
    tokens = torch.zeros(4, 11, dtype=torch.int64, device=meta)
    masks = [prior.mask_tokens(part) for part in tokens.split(p.sizes, 1)]
    for loss_on in ("masked", "all"):
        prior.band_losses(p, tokens, masks, labels, loss_on).backward()
    assert all(w.grad.device == meta for w in p.parameters())
    assert prior.iterative_decode(p, labels, steps=3, guidance=2.0).device == meta
    fcn = evaluate.FCN(3).to(meta)
    F.cross_entropy(fcn(torch.zeros(4, 40, device=meta)), labels).backward()
    assert all(w.grad.device == meta for w in fcn.parameters())
    for name, value in (("__int__", 1), ("__float__", 0.5), ("numpy", None)):
        monkeypatch.setattr(torch.Tensor, name, lambda t, value=value: value)
    assert prior.prior_loss(p, tokens, labels) == 0.5
    assert evaluate.classify(fcn, torch.zeros(4, 40)) == (None, None)


def test_training_stays_on_the_device(tmp_path, monkeypatch, meta):
    """Both loops whole, but for what needs values: the optimisers, the log, the files."""

    class Still:
        param_groups, zero_grad, step = [], lambda self: None, lambda self: None

    monkeypatch.setattr(torch.optim, "AdamW", lambda *inputs, **named: Still())
    for module in (ncvqvae, prior, evaluate):
        monkeypatch.setattr(module, "pick_device", lambda precision: meta)
    steps = []

    def step_done(self, loss, **terms):
        steps.append(self.stage)
        self.step += 1

    monkeypatch.setattr(data.Training, "step_done", step_done)
    monkeypatch.setattr(data.Training, "is_logged_step", False)
    monkeypatch.setattr(data.Training, "is_half_way_or_end", False)
    monkeypatch.setattr(data.Training, "log", lambda self, **values: None)
    monkeypatch.setattr(data.Training, "finish", lambda self, path, **extra: None)
    config = tiny_config(
        dataset=own_data(tmp_path),
        method="vibcreg",
        augmentation="slice",
        views=2,
        bands=2,
        stage1_steps=2,
        stage2_steps=2,
        token_temperature=1.0,
        embedding="random",
    )
    d = data.load_dataset(config.dataset)
    stage1 = NCVQVAE(config, d.length).to(meta).eval()
    monkeypatch.setattr(ncvqvae, "load_stage1", lambda *inputs: (stage1, None))
    monkeypatch.setattr(prior, "load_stage1", lambda *inputs: (stage1, None))
    monkeypatch.setattr(prior, "load_prior", lambda *inputs: (None, None))
    looks = []
    monkeypatch.setattr(prior, "prior_loss", lambda p, *inputs: looks.extend(inputs))
    ncvqvae.train_stage1(tmp_path / "r", config, d)
    prior.train_stage2(tmp_path / "r", config, d)
    evaluate.train_fcn(d.x_train, d.y_train, 3, config, tmp_path, "fcn")
    assert steps == ["stage1"] * 2 + ["stage2"] * 2 + ["fcn"]
    assert len(looks) == 2 and all(t.device == meta for t in looks)
    p, saved = Prior(config, torch.zeros(64, 16), stage1.sizes, 3).to(meta), []
    monkeypatch.setattr(prior, "load_stage2", lambda *inputs: (p, stage1, dict(data=d.info())))
    monkeypatch.setattr(prior, "save_samples", lambda *inputs, X: saved.append(X))
    command(prior, "sample", tmp_path / "r", "--n", 3)
    assert saved[0].shape == (3, 31) and saved[0].device == meta


# ---- runs: end to end ----


def test_a_tiny_run_end_to_end(tmp_path, capsys):
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    words = (own_data(folder, name="my own.npz"), "vibcreg", "warp+gauss", "01", *TINY)
    done = shell(*words, cwd=tmp_path, MPLBACKEND="of a notebook")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/my own/vibcreg-warp+gauss/seed1"
    m = json.loads((run / "metrics.json").read_text())
    assert tuple(m)[: len(evaluate.METRICS)] == evaluate.METRICS
    assert all(m[k] is not None for k in evaluate.METRICS)
    assert {f.name for f in (run / "figures").iterdir()} == {
        f"{n}.png" for n in ("reconstructions", "latents", "losses", "samples", "generated")
    }
    first = json.loads((run / "log.jsonl").read_text().splitlines()[0])
    assert first["argv"] and first["torch"] and first["device"] and len(first["sha256"]) == 64
    assert first["scikit-learn"] and first["numpy"] == np.__version__
    assert first["processor"].endswith(", 1 threads")  # as shell() asks for
    assert not list(tmp_path.rglob("*.resume.pt")) and not list(tmp_path.rglob("*.tmp"))
    assert "| my own/vibcreg-warp+gauss/seed1 |" in done.stdout and "fid_recon" in done.stdout
    assert "is_real" in done.stdout
    before = {
        p: p.stat().st_mtime_ns for p in run.rglob("*.*") if p.name not in ("config.json", ".lock")
    }
    command(
        ncvqvae,
        run,
        "--dataset",
        words[0],
        "--method",
        "vibcreg",
        "--augmentation",
        "warp+gauss",
        *TINY,
        "--stages",
        "1",
    )  # less is asked: nothing is lost
    command(prior, "train", run)
    command(evaluate, "run", run)
    assert capsys.readouterr().err.count("finished before") == 2
    assert before == {p: p.stat().st_mtime_ns for p in before}
    own_data(folder, length=33, name="my own.npz")  # new data, old results
    new = shell(*words, cwd=tmp_path)
    assert new.returncode == 1 and "stage1.pt: made from other data" in new.stderr
    assert "1 of 1 runs failed" in new.stderr


def test_a_run_without_labels_leaves_null_what_needs_them(tmp_path):
    run = tmp_path / "own/naive-none/seed1"
    m = run_all(
        run, tiny_config(stage1_steps=3, stage2_steps=3, dataset=own_data(tmp_path, labels=False))
    )
    assert {k for k in evaluate.METRICS if m[k] is None} == {
        "knn",
        "svm",
        "fid",
        "fid_floor",
        "fid_recon",
        "is",
        "is_real",
        "cas",
        "cas_real",
        "cas_on_recon",
        "precision",
        "recall",
        "density",
        "coverage",
        "coverage_real",
        "fcn_accuracy",
    }
    with np.load(run / "samples.npz") as s:
        assert s.files == ["made_by", "X"] and s["X"].shape == (16, 1, 31)


def test_three_test_series_a_lone_last_batch_and_a_constant_series(tmp_path):
    x = np.random.default_rng(0).standard_normal((12, 20)).cumsum(1)
    x[4] = 1.5
    own = npz(
        tmp_path / "few.npz",
        X_train=x[:9],
        y_train=np.arange(9) % 2,
        X_test=x[9:],
        y_test=np.array([0, 1, 0]),
    )
    run = tmp_path / "few/barlow-gauss/seed1"
    m = run_all(
        run,
        tiny_config(
            stage1_epochs=2,
            stage2_epochs=2,
            stage2_batch=8,
            fcn_batch=8,
            dataset=own,
            method="barlow",
            augmentation="gauss",
            validate_epochs=1,
        ),
    )
    assert m["n_test"] == 3
    assert all(m[k] is not None and math.isfinite(m[k]) for k in evaluate.METRICS)
    steps = [r for r in data.read_log(run) if "step" in r]
    assert max(r["step"] for r in steps if r["stage"] == "stage1") == 2  # 8 of 9 series, twice


def test_bands_and_views_compose_through_all_stages(tmp_path):
    run = tmp_path / "own/vibcreg-slice/seed1"
    config = tiny_config(
        dataset=own_data(tmp_path),
        method="vibcreg",
        augmentation="slice",
        bands=2,
        views=2,
        stage1_steps=4,
        stage2_steps=4,
        token_temperature=1.0,
    )
    m = run_all(run, config)
    assert all(m[k] is not None and math.isfinite(m[k]) for k in evaluate.METRICS)
    model = ncvqvae.load_stage1(run)[0]
    d = data.load_dataset(config.dataset)
    # a sample: no series twice
    floor = d.x_train[np.random.default_rng(0).choice(24, 16, replace=False)]
    fcn, *_ = evaluate.dataset_fcn(tmp_path / "own", d, evaluate.fcn_config(config, d))
    real, real_train = (evaluate.classify(fcn, x)[0] for x in (d.x_test, floor))
    assert m["fid_floor"] == pytest.approx(slow_fid(real_train, real), rel=1e-3, abs=1e-4)
    test = ncvqvae.encode_split(model, d.x_test)
    assert test["averages"].shape == (16, 32)
    assert m["codes_used"] == len(test["tokens"].unique()) > len((test["tokens"] % 32).unique())
    with pytest.raises(InputError, match="stage1.pt: made with bands = 2, this run has 1"):
        ncvqvae.train_stage1(run, dataclasses.replace(config, bands=1))
    command(prior, "sample", run, "--n", 3, "--out", tmp_path / "x.npz")
    assert np.load(tmp_path / "x.npz")["X"].shape == (3, 1, 31)


def test_dry_run_prints_the_product_with_naive_once_per_seed(tmp_path):
    done = shell(
        "Symbols,FordA",
        "naive,barlow",
        "warp,slice",
        "1,2",
        "--stage1-epochs",
        "3",
        "--dry-run",
        cwd=tmp_path,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 2 * 2 * 3 and len(set(lines)) == len(lines)
    assert all("--stage1-epochs 3" in line for line in lines) and not (tmp_path / "runs").exists()


def test_printed_jobs_name_all_that_the_shell_had(tmp_path):
    (tmp_path / "link.sh").symlink_to(HERE / "run.sh")  # as into ~/bin
    done = subprocess.run(
        ["bash", tmp_path / "link.sh", "Mallat", "naive", "none", "1", "--dry-run"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OUT": "runs/some bands", "UCR_DIR": "ucr", "PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    words = subprocess.run(  # what a job's shell makes of it
        ["bash", "-c", f"set -- {line}; printf '%s\\n' \"$@\""], capture_output=True, text=True
    ).stdout.splitlines()
    assert words[0] == "env" and "OUT=runs/some bands" in words and "UCR_DIR=ucr" in words
    assert "DEVICE=cpu" in words and f"PYTHON={sys.executable}" in words
    assert words[-4:] == ["Mallat", "naive", "none", "1"]
    done = subprocess.run(["sh", HERE / "run.sh", "toy"], capture_output=True, text=True)
    if "bash" not in os.path.realpath("/bin/sh"):
        assert done.returncode == 2 and "run it as bash run.sh" in done.stderr


# ---- README.md ----


def test_the_readmes_lines_that_fill_a_gap(tmp_path, monkeypatch):
    """As they stand, but for the run's folder: what is kept does not hang on what the gap holds."""
    no_figures(monkeypatch)
    run, own = tmp_path / "own/naive-none/seed1", own_data(tmp_path, length=128)
    run_all(run, tiny_config(latent_width=32, stage1_steps=1, stage2_steps=1, dataset=own))
    (code,) = re.findall("```python\n(.*?)```", (HERE / "README.md").read_text(), re.S)
    code = re.sub(r'"runs/\S+"', repr(str(run)), code)
    x = data.load_dataset(own).x_test
    kept, seen = [], []
    for value in (0.0, 5.0):
        x[:, -16:] = value  # four of 32 latent frames
        scope = {"x": x}
        exec(code, scope)
        mask = scope["mask"].flatten(1)
        assert scope["x_new"].shape == x.shape and not scope["x_new"].equal(x)
        tokens = scope["tokens"].flatten(1)
        assert scope["stage1"].tokens(scope["x_new"]).shape == tokens.shape
        assert scope["filled"][~mask].equal(tokens[~mask])
        kept.append(tokens[~mask])
        seen.append(tokens[mask])
    assert len(kept[0]) == len(x) * 5 * 22
    # Rounding may move a token that is as near to two codes.
    assert (kept[0] != kept[1]).double().mean() < 0.002 < (seen[0] != seen[1]).double().mean()


def test_every_equation_of_the_readme_is_where_it_says():
    import inspect

    rows = re.findall(
        r"^((?:\d\.\d+,? ?)+) `(\w+)\.(\w+)`[;.]$", (HERE / "README.md").read_text(), re.M
    )
    modules = dict(data=data, ncvqvae=ncvqvae, prior=prior, evaluate=evaluate)
    found = {}
    for numbers, file, name in rows:
        source = inspect.getsource(getattr(modules[file], name))
        for number in numbers.split(", "):
            alone = rf"(?<![§\d.]){re.escape(number)}(?!\d|\.\d)"  # no section, no other's part
            found[number] = re.search(alone, source) is not None
    wanted = [2.13, 2.19, 2.21, *(f"3.{i}" for i in range(1, 16)), *(f"4.{i}" for i in range(1, 6))]
    assert set(found) == set(map(str, wanted)) and all(found.values()), found


def test_every_piece_of_the_copy_table_runs_in_an_empty_file(tmp_path):
    """README's rows `piece | names in file | imports | example`: source taken by name, alone."""
    import ast

    row = r"^\| [^|]+ \| ([^|]*` in `\w+\.py`) \| `([^`]+)` \| `([^`]+)` \|$"
    rows = re.findall(row, (HERE / "README.md").read_text(), re.M)
    assert len(rows) >= 8
    for number, (takes, imports, example) in enumerate(rows):
        pieces = []
        for names, file in re.findall(r"((?:`\w+`,? ?)+) in `(\w+\.py)`", takes):
            source = (HERE / file).read_text()
            defined = {}
            for node in ast.parse(source).body:
                for target in getattr(node, "targets", [node]):  # a function or class is its own
                    defined[getattr(target, "name", getattr(target, "id", None))] = node
            for name in re.findall(r"`(\w+)`", names):
                node = defined[name]
                first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
                pieces.append("\n".join(source.splitlines()[first - 1 : node.end_lineno]))
        text = "\n\n".join([imports.replace("; ", "\n"), *pieces, example])
        (tmp_path / f"{number}.py").write_text(text + "\n")
    code = "import runpy, sys\nfor file in sys.argv[1:]:\n    runpy.run_path(file)"
    files = [f"{n}.py" for n in range(len(rows))]
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *files], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# ---- training by hand, and lines that nothing above would miss ----

CLOSE = {"atol": 1e-4, "rtol": 1e-3}


def test_stage_1_trains_as_a_loop_by_hand(tmp_path):
    own = own_data(tmp_path)
    config = tiny_config(
        dataset=own, method="vibcreg", augmentation="gauss", seed=7, stage1_steps=3, stage1_batch=10
    )
    model, x = ncvqvae.train_stage1(tmp_path / "r", config), data.load_dataset(own).x_train
    torch.manual_seed(7)
    twin, g = NCVQVAE(config, 31).train(), generator(7)
    ncvqvae.use_fast_layout(twin)
    optimizer = torch.optim.AdamW(twin.parameters(), weight_decay=1e-5, fused=True)
    for step, rows in enumerate(torch.randperm(24, generator=g).split(10)):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * step / 3)) / 2
        optimizer.zero_grad()
        twin(x[rows], data.augment(x[rows], "gauss", g))[0].backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], msg=name, **CLOSE)


def test_stage_2_trains_as_a_loop_by_hand(tmp_path):
    own = own_data(tmp_path)
    config = tiny_config(
        dataset=own,
        seed=7,
        stage1_steps=1,
        stage2_steps=3,
        stage2_batch=10,
        stage2_lr=0.01,
        optimizer="muon",
    )
    d, stage1 = data.load_dataset(own), ncvqvae.train_stage1(tmp_path / "r", config)
    ours, t = prior.train_stage2(tmp_path / "r"), stage1.tokens(d.x_train)
    torch.manual_seed(7)
    twin, g = Prior(config, stage1.codebook(), stage1.sizes, 3), generator(7)
    optimizers = prior.make_optimizers(twin, config)
    for step, rows in enumerate(torch.randperm(24, generator=g).split(10)):
        mask = prior.mask_tokens(t[rows], g)
        y = torch.where(torch.rand(len(rows), generator=g) < 0.2, 3, d.y_train[rows])
        twin.zero_grad()
        prior.masked_cross_entropy(twin(t[rows], mask, y), t[rows], mask).backward()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * step / 3)) / 2
            optimizer.step()
    for (name, a), b in zip(ours.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name, **CLOSE)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("method", ["barlow", "vibcreg"])
def test_the_gradient_is_that_of_eq_4_5(method, views):
    model = tiny_model(
        method=method, augmentation="slice", views=views, zeta=0.3, beta=0.7, eta=2.0, **WEIGHTS
    ).train()
    x, x_aug = draw(8, 40, dtype=torch.float32), draw(8, 40, seed=1, dtype=torch.float32)
    twin = copy.deepcopy(model)
    model(x, x_aug)[0].backward()
    (u, z), (u_aug, z_aug) = twin.encode(x), twin.encode(x_aug)
    z_q, _, commitment = twin.quantize(z)
    (u_hat, x_hat), (u_aug_hat, x_aug_hat) = twin.decode(z_q), twin.decode(z_aug)
    loss = F.mse_loss(x_hat, x) + F.mse_loss(u_hat, u) + 0.7 * commitment
    loss = loss + (views == 1) * 0.3 * (F.mse_loss(x_aug_hat, x_aug) + F.mse_loss(u_aug_hat, u_aug))
    p = twin.projector(*(ncvqvae.pool(v[0]) for v in (z_q if views == 1 else z, z_aug)))
    (loss + 2.0 * scaled_ssl_loss(method, *p)).backward()
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name, atol=1e-5, rtol=1e-3)


def test_vibcreg_alone_is_whitened():
    for method in ("barlow", "vibcreg"):
        model = tiny_model(method=method, augmentation="slice").train()
        (p,) = model.projector(draw(99, 32, dtype=torch.float32))
        assert (p.mean(0).abs().max().item() < 1e-4) == (method == "vibcreg")  # IterNorm centres


def test_as_many_are_drawn_as_large_splits_have(monkeypatch):
    asked = []
    monkeypatch.setattr(
        evaluate,
        "sample",
        lambda p, s, labels, *_: asked.append(labels) or torch.zeros(len(labels), 8),
    )
    p = torch.nn.Linear(1, 1)
    p.no_class, y = 2, torch.arange(1200) % 2
    d = data.Dataset("x", 8, 0.0, 1.0, [0, 1], True, "", None, y, torch.zeros(300, 8), y[:300])
    drawn = evaluate.draw_samples(p, None, d, Config())
    assert (len(drawn["generated"]), len(drawn["conditional"])) == (300, 1200)
    assert [torch.bincount(labels).tolist() for labels in asked] == [[0, 0, 300], [600, 600]]


def test_the_prior_loss_of_more_than_a_batch_is_a_mean_over_tokens():
    p, y = tiny_prior().eval(), torch.arange(600) % 3
    t = torch.randint(0, 7, (600, 10), generator=generator())
    mask = prior.mask_tokens(t, generator(0))
    expected = prior.masked_cross_entropy(p(t, mask, y), t, mask).item()
    assert prior.prior_loss(p, t, y) == pytest.approx(expected, rel=1e-5)


def test_a_gap_of_two_bands_leaves_what_is_known():
    p, y = banded_prior(), torch.tensor([0, 1, 2, 1])
    t = torch.cat(
        [
            torch.randint(0, 5, (4, 3), generator=generator()),
            torch.randint(5, 10, (4, 8), generator=generator(1)),
        ],
        1,
    )
    mask = torch.rand(4, 11, generator=generator(2)) < 0.5
    out = prior.iterative_decode(p, y, generator(), 3, tokens=t, mask=mask)
    assert torch.equal(out[~mask], t[~mask]) and not torch.equal(out[mask], t[mask])


def test_drawn_tokens_are_of_the_series_of_their_labels(tmp_path, monkeypatch):
    seen, losses = [], prior.band_losses
    monkeypatch.setattr(
        prior, "band_losses", lambda p, t, m, y, *a: seen.append((t, y)) or losses(p, t, m, y, *a)
    )
    own = own_data(tmp_path)
    config = tiny_config(
        dataset=own,
        stage1_steps=30,
        stage2_steps=3,
        stage2_batch=10,
        token_temperature=1e-9,
        class_dropout=0.0,
        validate_epochs=0,
    )
    stage1, d = ncvqvae.train_stage1(tmp_path / "r", config), data.load_dataset(own)
    prior.train_stage2(tmp_path / "r")
    rows = {
        tuple(t): y
        for t, y in zip(stage1.tokens(d.x_train).tolist(), d.y_train.tolist(), strict=True)
    }
    assert len(rows) == 24 and all(
        rows[tuple(t)] == y
        for ts, ys in seen
        for t, y in zip(ts.tolist(), ys.tolist(), strict=True)
    )


def test_dropout_is_on_both_things_that_a_block_adds():
    block, h = prior.Block(32, 2, 1, 1.0).train(), draw(3, 7, 32, dtype=torch.float32)
    assert torch.equal(block(h), h)


def test_defaults_are_those_of_the_thesis():
    """§5.1.1, Table 5.1."""
    thesis = dict(
        stage1_epochs=1000,
        stage1_batch=128,
        stage1_lr=1e-3,
        stage1_weight_decay=1e-5,
        n_fft=8,
        width=64,
        n_codes=32,
        ema_decay=0.9,
        beta=1.0,
        eta=1.0,
        zeta=0.1,
        barlow_lambda=0.005,
        similarity_weight=25.0,
        variance_weight=25.0,
        covariance_weight=100.0,
        projector_dim=4096,
        stage2_epochs=1000,
        stage2_batch=256,
        stage2_lr=1e-3,
        stage2_weight_decay=1e-5,
        prior_hidden=256,
        prior_layers=4,
        prior_heads=2,
        prior_ff_ratio=1,
        class_dropout=0.2,
        decode_steps=10,
        choice_temperature=4.0,
        guidance=1.0,
        fcn_epochs=1000,
        fcn_batch=256,
        fcn_lr=1e-3,
        fcn_weight_decay=1e-5,
        cas_epochs=1000,
    )
    assert {name: getattr(Config(), name) for name in thesis} == thesis


def test_epochs_of_every_stage_win_over_the_presets_steps():
    parser = data.Parser()
    data.add_flags(parser)
    for stage in ("stage1", "stage2", "fcn", "cas"):
        config = data.make_config(parser.parse_args(["--preset", "fast", f"--{stage}-epochs", "3"]))
        assert (getattr(config, f"{stage}_epochs"), getattr(config, f"{stage}_steps")) == (3, 0), (
            stage
        )


def test_figures_show_the_series_and_classes_they_name(monkeypatch):
    x, y = draw(40, 20, dtype=torch.float32), torch.arange(40) % 3
    own = data.Dataset("own", 20, 5.0, 2.0, [0, 1, 2], True, "", x, y, x, y)
    figure, _ = evaluate.draw_reconstructions(own, x + 1)
    for axis in figure.axes:
        real, made = (line.get_ydata() for line in axis.lines)
        i = int(axis.get_title().split()[-1]) - 1
        np.testing.assert_allclose([real, made], [x[i] * 2 + 5, x[i] * 2 + 7], rtol=1e-5)
    shown = []
    monkeypatch.setattr(
        evaluate, "scatter_classes", lambda axis, points, y, classes: shown.append((points, y))
    )
    evaluate.draw_latents(own, 100 * F.one_hot(y, 16).float() + x[:, :16])
    for points, labels in shown:
        for k in range(3):
            assert points[labels == k].std(0).max() < 0.2 * points.std(0).max()


def test_figures_of_samples_show_each_split_and_class_where_it_says(monkeypatch):
    def split(value, n):  # series of class k are k above the value
        y = torch.arange(n) % 2
        return torch.full((n, 20), value) + y[:, None], y

    (train, y_train), (test, y_test), (made, y_made) = (
        split(0.0, 12),
        split(10.0, 14),
        split(20.0, 16),
    )
    free = torch.full((14, 20), 30.0)
    own = data.Dataset("own", 20, 5.0, 2.0, ["no", "yes"], True, "", train, y_train, test, y_test)
    figure, _ = evaluate.draw_series(
        own, {"generated": free, "conditional": made, "labels": y_made}
    )
    shown = {}
    for axis in figure.axes:
        values = {value for line in axis.lines for value in (line.get_ydata() - 5) / 2}
        shown[axis.get_title()] = values
        *lines, one = axis.lines
        assert one.get_color() == "black" != lines[0].get_color()
        assert np.array_equal(one.get_ydata(), lines[0].get_ydata())
    assert shown == {
        "train, class no (6)": {0},
        "train, class yes (6)": {1},
        "train, any class (12)": {0, 1},
        "test, class no (7)": {10},
        "test, class yes (7)": {11},
        "test, any class (14)": {10, 11},
        "samples, class no (8)": {20},
        "samples, class yes (8)": {21},
        "samples, any class (14)": {30},
    }
    asked = []

    def two_columns(z, fitted_on=None):
        asked.append((z, fitted_on))
        return np.stack([z[:, 0], z[:, 0]], 1)

    monkeypatch.setattr(evaluate, "pca", two_columns)
    monkeypatch.setattr(evaluate, "tsne", two_columns)
    averages = {"averages": torch.full((14, 3), 50.0)}
    monkeypatch.setattr(evaluate, "encode_split", lambda stage1, x: averages)
    of_test = torch.full((14, 3), 40.0)
    figure, _ = evaluate.draw_real_and_generated(own, None, of_test, free)
    for axis, real, generated in zip(
        figure.axes, ({10, 11}, {10, 11}, {40}, {40}), (30, 30, 50, 50), strict=True
    ):
        grey, blue = (set(dots.get_offsets()[:, 0].tolist()) for dots in axis.collections)
        assert (grey, blue) == (real, {generated}), axis.get_title()
    assert [None if fit is None else set(fit[:, 0].tolist()) for _, fit in asked] == [
        {10, 11},
        None,
        {40},
        None,
    ]
    log = [
        {"stage": "stage1", "step": step, "epoch": 1, "loss": 1.0 * step, "val_recon": 2.0}
        for step in (1, 2)
    ]
    log += [{"event": "start", "stage": "stage2"}, {"stage": "stage2", "step": 1, "loss": 7.0}]
    figure, _ = evaluate.draw_losses(log)
    curves = {}
    for axis in figure.axes:
        for line in axis.lines:
            curves[axis.get_title(), line.get_label()] = line.get_xydata().tolist()
    assert curves == {
        ("stage1", "loss"): [[1, 1], [2, 2]],
        ("stage1", "recon of the test split"): [[1, 2], [2, 2]],
        ("stage2", "loss"): [[1, 7]],
    }


def test_pca_is_fitted_on_the_rows_it_is_given():
    z = draw(30, 4).numpy()
    assert evaluate.pca(z, z[:10])[:10].mean(0) == pytest.approx([0, 0], abs=1e-9)
    assert abs(evaluate.pca(z)[:10].mean(0)).max() > 0.01


def test_codes_start_at_the_scale_of_z():
    torch.manual_seed(0)
    q = ncvqvae.VectorQuantizer(64, 64)
    assert q.codebook.std().item() == pytest.approx(1, abs=0.05)
    p = Prior(Config(), q.codebook, [200], 30)
    assert all(v.std().item() == pytest.approx(1, abs=0.1) for v in (p.positions, p.classes.weight))


def test_the_toy_set_has_noise_of_a_fifth():
    d = data.load_dataset("toy")
    clean = data.two_patterns(1000, 64, 0, noise=0.0)[0].numpy()
    assert (d.to_original(d.x_train) - clean).std() == pytest.approx(0.2, abs=0.005)
