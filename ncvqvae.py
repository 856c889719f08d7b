"""Chapter 1: tokenization (thesis §4.1.1, §5.1.1; eq. 3.7-3.15, 4.1-4.5).

    x (B, L) --stft--> u (B, 2, H, F) --Encoder--> z (B, D, H, W) --VectorQuantizer--> z_q --Decoder--> u^ --istft--> x^
    x' = augment(x) ---> u' ---------> Encoder --> z' (not quantised) ----------------------> Decoder --> u'^ -> x'^
    SSL: z_q and z', average and max pooled -> Projector -> Barlow Twins or VIbCReg

    python ncvqvae.py runs/Symbols/vibcreg-slice/seed1 --dataset Symbols --method vibcreg --augmentation slice --seed 1

With --precision bf16 that takes 5 minutes on one CPU core (AMD EPYC) and gives recon 0.073, KNN 0.52, SVM 0.58; seed 2 gives
0.081, 0.51, 0.66 (results/runs.csv). Published, four seeds: 0.067, 0.42, 0.62.

Letters: B batch, L length, H = n_fft/2 + 1 frequency bins (5), F = L/2 + 1 STFT frames, W frames of z,
D code dimension (64), K codes (32), N = H * W tokens, P projector dimension (4096).
"""
import argparse, math, os, sys
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from data import (AUGMENTATIONS, Batches, InputError, Log, Recorded, Resume, adamw, add_flags, augment, check_precision,
                  check_same, cosine, hold, load_checkpoint, load_dataset, make_config, pick_device, plain, read_json,
                  run_command, set_lr, write_atomic, write_json)


@dataclass
class Stage1Config:
    dataset: str = "toy"              # toy, a UCR name, or the path of an own .npz
    method: str = "naive"             # naive, barlow or vibcreg (thesis §3.3)
    augmentation: str = "none"        # warp, slice, gauss, ... joined by + (§5.1.1); none for naive
    seed: int = 1                     # weights, batches and augmentations; the thesis ran four
    stage1_epochs: int = 1000         # §5.1.1
    stage1_steps: int = 0             # optimiser steps instead of epochs where not 0 (the fast preset)
    stage1_batch: int = 128           # §5.1.1
    stage1_lr: float = 1e-3           # AdamW, cosine to 0 (§5.1.1)
    stage1_weight_decay: float = 1e-5 # §5.1.1; 1e-3 in the authors' config (ledger 3)
    n_fft: int = 8                    # §5.1.1; hop n_fft/4
    width: int = 64                   # channels of encoder and decoder
    latent_width: int = 8             # frames of z aimed at: 32 in the text, 8 behind the tables (ledger 1)
    residual_kernel: int = 1          # second convolution of a residual block: 3 in the text (ledger 2)
    residual_norm: int = 0            # 1: BatchNorm between a residual block's convolutions, as in the text (ledger 20)
    n_codes: int = 32                 # K, codebook size (§5.1.1)
    ema_decay: float = 0.9            # of the codebook's moving averages (§5.1.1)
    ema_initial_count: float = 1.0    # code counts at the start; 0 kills codes unused in batch 1 (ledger 4)
    beta: float = 1.0                 # commitment weight, eq. 4.1
    zeta: float = 0.1                 # weight of the augmented reconstruction, eq. 4.5
    ssl_weight: float = 1.0           # factor on eta of eq. 4.5, which is 1/P for barlow and 0.01 for vibcreg
    barlow_lambda: float = 0.005      # redundancy reduction, eq. 3.7
    similarity_weight: float = 25.0   # lambda of eq. 3.15, on a mean over features (ledger 5; times P for the text's sum)
    variance_weight: float = 25.0     # mu of eq. 3.15
    covariance_weight: float = 100.0  # nu of eq. 3.15, on C without 1/(B-1) (ledger 6)
    projector_dim: int = 4096         # P, all three layers (§5.1.1)
    precision: str = "float32"        # or bf16: convolutions and projector products in bfloat16 (autocast)


PRESETS = {
    "thesis": {},
    "fast": dict(stage1_steps=800, stage1_lr=3e-3),              # chosen on held-out train series: results/fast.md
    "toy": dict(stage1_steps=300, stage1_lr=3e-3, stage1_batch=64, projector_dim=1024),
}
METHODS = ("naive", "barlow", "vibcreg")


# ---------------------------------------------------------------------------------------------------------------------
# Time-frequency transform (thesis §5.1.1 "Time Frequency Modelling")
# ---------------------------------------------------------------------------------------------------------------------

@lru_cache
def _hann(n_fft, device, dtype):
    return torch.hann_window(n_fft, device=device, dtype=dtype)


def stft(x, n_fft=8):
    """Short-time Fourier transform, hop n_fft/4, Hann. x (B, L) float -> u (B, 2, n_fft/2+1, L//hop+1), re and im.

    Raises RuntimeError (torch) where L <= n_fft/2. Thesis §5.1.1.
    """
    u = torch.stft(x, n_fft, window=_hann(n_fft, x.device, x.dtype), return_complex=True)    # (B, H, F) complex
    return torch.view_as_real(u).permute(0, 3, 1, 2)                                        # (B, 2, H, F)


def istft(u, n_fft, length):
    """Inverse of stft, cut to exactly `length` samples. u (B, 2, H, F) -> x (B, length). Thesis §5.1.1, ledger 14.

    Overlap-add: windowed frames, summed where they lie over each other, over the summed squares of the window. This is
    torch.istft without its check on the host, for which a GPU would have to wait at every call.
    """
    window = _hann(n_fft, u.device, u.dtype)
    spectrum = torch.view_as_complex(u.permute(0, 3, 2, 1).contiguous())                    # (B, F, H) complex
    x = _overlap_add(torch.fft.irfft(spectrum, n_fft) * window)                             # (B, (F + 3) hop)
    cut = slice(n_fft // 2, n_fft // 2 + length)                                            # the centred frames' padding off
    return x[:, cut] / _envelope(n_fft, u.shape[3], u.device, u.dtype)[:, cut]


def _overlap_add(frames):
    """Sum frames (B, F, n_fft) where they overlap, frame f starting at f * hop: (B, (F + 3) hop), hop = n_fft/4."""
    quarters = frames.unflatten(2, (4, -1))                                                 # (B, F, 4, hop)
    return sum(F.pad(quarters[:, :, j], (0, 0, j, 3 - j)) for j in range(4)).flatten(1)


@lru_cache
def _envelope(n_fft, n_frames, device, dtype):
    return _overlap_add(_hann(n_fft, device, dtype).square().expand(1, n_frames, n_fft))    # (1, (F + 3) hop)


# ---------------------------------------------------------------------------------------------------------------------
# Encoder and decoder (thesis §5.1.1, Figure 5.1). Only the time axis is down-sampled; H stays.
# ---------------------------------------------------------------------------------------------------------------------

def n_downsampling(length, latent_width):
    """Number n of halving blocks: 2^n is the largest power of two not above L / (2 · latent_width), and n >= 1."""
    return max(1, int(math.log2(max(1, round(length / (2 * latent_width))))))


class ResidualBlock(nn.Module):
    """x + (LeakyReLU - Conv 3x3 - LeakyReLU - Conv 1x1). Thesis §5.1.1."""

    def __init__(self, width, kernel, norm):
        super().__init__()
        # NOTE(ledger 2): the text has 3x3 twice, the code behind the tables 1x1; --residual-kernel 3.
        # NOTE(ledger 20): the text has a BatchNorm in between, and with it the published recon is missed by far on small
        # sets; --residual-norm 1.
        self.convs = nn.Sequential(nn.LeakyReLU(), nn.Conv2d(width, width, 3, padding=1),
                                   nn.BatchNorm2d(width) if norm else nn.Identity(),
                                   nn.LeakyReLU(inplace=True), nn.Conv2d(width, width, kernel, padding=kernel // 2))

    def forward(self, x):
        return x + self.convs(x)


class ReplicatePad(nn.Module):
    """One more row and column on each side, equal to their neighbours. (Autocast would go by float32 on a CPU.)"""

    def forward(self, u):
        with torch.autocast(u.device.type, enabled=False):
            return F.pad(u, (1, 1, 1, 1), mode="replicate")


class Encoder(nn.Module):
    """u (B, 2, H, F) -> z (B, D, H, W) with W about F / 2^n. Thesis §5.1.1, Figure 5.1."""

    def __init__(self, n, width=64, residual_kernel=1, residual_norm=0):
        super().__init__()
        down = [nn.Sequential(ReplicatePad(), nn.Conv2d(2 if i == 0 else width, width, (3, 4), (1, 2)),
                              nn.BatchNorm2d(width), nn.LeakyReLU(inplace=True)) for i in range(n)]
        residual = [nn.Sequential(ResidualBlock(width, residual_kernel, residual_norm), nn.BatchNorm2d(width))
                    for _ in range(4)]
        self.blocks = nn.Sequential(*down, *residual)

    def forward(self, u):
        return self.blocks(u)


class Decoder(nn.Module):
    """z (B, D, H, W) -> u^ (B, 2, H, frames): the encoder mirrored, then a bilinear resize. Thesis §5.1.1."""

    def __init__(self, n, width=64, residual_kernel=1, residual_norm=0):
        super().__init__()
        residual = [nn.Sequential(ResidualBlock(width, residual_kernel, residual_norm), nn.BatchNorm2d(width))
                    for _ in range(4)]
        up = [nn.Sequential(nn.ConvTranspose2d(width, width, (3, 4), (1, 2), 1), nn.BatchNorm2d(width),
                            nn.LeakyReLU(inplace=True)) for _ in range(n - 1)]
        self.blocks = nn.Sequential(*residual, *up, nn.ConvTranspose2d(width, 2, (3, 4), (1, 2), 1),
                                    nn.ConvTranspose2d(2, 2, (3, 4), (1, 2), 1))   # n + 1 doublings: twice too wide

    def forward(self, z, frames):
        u = self.blocks(z)
        return F.interpolate(u, size=(u.shape[2], frames), mode="bilinear", align_corners=True)  # ledger 21


# ---------------------------------------------------------------------------------------------------------------------
# Vector quantisation (thesis §2.6.3 eq. 2.13, §5.1.1; moving averages: van den Oord et al. 2017, appendix A.1)
# ---------------------------------------------------------------------------------------------------------------------

class VectorQuantizer(nn.Module):
    """Nearest code by Euclidean distance, straight-through gradient, codebook moved by exponential moving averages.

    forward: z (B, D, H, W) float32 -> z_q like z, indices int64 (B, H, W), commitment loss (scalar mean, eq. 4.1).
    In training mode the codebook moves after it was used; in eval mode nothing moves. No gradient reaches the codebook.
    """

    def __init__(self, n_codes=32, dim=64, decay=0.9, initial_count=1.0, eps=1e-5):
        super().__init__()
        self.decay, self.eps = decay, eps
        codebook = torch.randn(n_codes, dim)                     # the scale of z, which leaves a BatchNorm (ledger 22)
        self.register_buffer("codebook", codebook)               # (K, D) e_k = sums_k / smoothed counts_k
        # NOTE(ledger 4): the authors start at 0, and a code that batch 1 does not use is divided by about 1e-5.
        self.register_buffer("counts", torch.full((n_codes,), initial_count))   # (K) N_k, moving average of uses
        self.register_buffer("sums", codebook.clone())           # (K, D) m_k, moving average of the z that chose k

    def distances(self, z):
        """Squared Euclidean distance of every vector of z (B, D, H, W) to every code: (B, H, W, K)."""
        flat = z.permute(0, 2, 3, 1)                                                          # (B, H, W, D)
        return flat.square().sum(-1, keepdim=True) - 2 * flat @ self.codebook.T + self.codebook.square().sum(1)

    def lookup(self, indices):
        """Codes of indices (B, H, W) as z_q (B, D, H, W)."""
        return self.codebook[indices].permute(0, 3, 1, 2)

    def forward(self, z):
        indices = self.distances(z.detach()).argmin(-1)                                       # (B, H, W), eq. 2.13
        z_q = self.lookup(indices)
        commitment = F.mse_loss(z, z_q)                          # mean of |z - sg[z_q]|^2; z_q carries no gradient
        if self.training:
            self._update(z.detach(), indices)                    # makes a new codebook, z_q keeps the old values
        return z_q + (z - z.detach()), indices, commitment       # straight-through: value z_q exactly, gradient to z

    @torch.no_grad()
    def _update(self, z, indices):
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])                                  # (B*H*W, D)
        one_hot = F.one_hot(indices.flatten(), len(self.codebook)).to(flat.dtype)             # (B*H*W, K)
        self.counts.lerp_(one_hot.sum(0), 1 - self.decay)        # N_k = 0.9 N_k + 0.1 n_k
        self.sums.lerp_(one_hot.T @ flat, 1 - self.decay)        # m_k = 0.9 m_k + 0.1 sum of z that chose k
        total = self.counts.sum()
        smoothed = (self.counts + self.eps) / (total + len(self.counts) * self.eps) * total   # Laplace: never 0
        self.codebook.copy_(self.sums / smoothed[:, None])


# ---------------------------------------------------------------------------------------------------------------------
# Self-supervision (thesis §3.3). Both losses need the square sum of a P x P matrix A^T B of features, A, B (batch, P).
# |A^T B|_F^2 = trace(A^T B B^T A) = <A A^T, B B^T>: two batch x batch Gram matrices give the same number and gradient in
# O(B^2 P) time without the P x P matrix; the diagonal (a_i . b_i) is a column sum, and off-diagonal = all - diagonal.
# ---------------------------------------------------------------------------------------------------------------------

class _GramProduct(torch.autograd.Function):
    """<A A^T, B B^T> = |A^T B|_F^2 of a, b (B, P). Its gradient, 2 B B^T A and 2 A A^T B, reuses the Gram matrices."""

    @staticmethod
    def forward(ctx, a, b):
        gram_a = a @ a.T                                         # (B, B)
        gram_b = gram_a if b is a else b @ b.T
        ctx.save_for_backward(a, b, gram_a, gram_b)
        ctx.same = b is a
        return (gram_a * gram_b).sum()

    @staticmethod
    def backward(ctx, g):
        a, b, gram_a, gram_b = ctx.saved_tensors
        if ctx.same:
            return 4 * g * (gram_a @ a), None
        return 2 * g * (gram_b @ a), 2 * g * (gram_a @ b)


def _off_diagonal_square_sum(a, b):
    """Sum over i != j of (a_i . b_j)^2 for the columns of a, b (B, P), by Gram matrices (see above); and the diagonal."""
    diagonal = (a * b).sum(0)                                    # (P) c_ii
    return _GramProduct.apply(a, b) - diagonal.square().sum(), diagonal


def _unit_columns(z):
    """Centre each feature over the batch and scale it to length 1 (eq. 3.8, 3.11). (B, P) -> (B, P)."""
    z = z - z.mean(0)
    return z * (z * z).sum(0).clamp_min(1e-24).rsqrt()


def barlow_twins_loss(z1, z2, lambd=0.005):
    """Barlow Twins: sum (1 - c_ii)^2 + lambd * sum_{i != j} c_ij^2. z1, z2 (B, P) float -> scalar. Eq. 3.7, 3.8."""
    off_diagonal, c_ii = _off_diagonal_square_sum(_unit_columns(z1), _unit_columns(z2))
    return (1 - c_ii).square().sum() + lambd * off_diagonal


def vibcreg_loss(z1, z2, similarity=25.0, variance=25.0, covariance=100.0, gamma=1.0, eps=1e-4):
    """VIbCReg: lambda s(Z, Z') + mu [v(Z) + v(Z')] + nu [c(Z) + c(Z')]. z1, z2 (B, P) float -> scalar. Eq. 3.9-3.15.

    s is the mean over batch and features (ledger 5) and C has no 1/(B-1) (ledger 6): the weights were tuned for these.
    """
    def v(z):                                                    # eq. 3.10: each feature's std stays at gamma or above
        return F.relu(gamma - torch.sqrt(z.var(0) + eps)).mean()

    def c(z):                                                    # eq. 3.14: mean square of off-diagonal correlations
        unit = _unit_columns(z)
        return _off_diagonal_square_sum(unit, unit)[0] / z.shape[1] ** 2

    # NOTE(ledger 5): eq. 3.9 sums over features; --similarity-weight 102400 (25 * P) gives that.
    # NOTE(ledger 6): eq. 3.13 divides by B-1; --covariance-weight (100 / (B-1)^2) gives that.
    return similarity * F.mse_loss(z1, z2) + variance * (v(z1) + v(z2)) + covariance * (c(z1) + c(z2))


def iter_norm(z, groups=64, iterations=5, eps=1e-5):
    """Iterative whitening of feature groups over the batch. z (B, P) float32 -> (B, P). Thesis §3.3.2; Huang et al. 2019.

    Newton's iteration P_{k+1} = (3 P_k - P_k^3 S) / 2 drives P_k to S^{-1/2}, S the group's covariance over its trace.
    No running averages: the projector is thrown away after training. Raises ValueError where groups does not divide P.
    """
    B, P = z.shape
    if P % groups:
        raise ValueError(f"iter_norm: {groups} groups do not divide {P} features")
    x = (z - z.mean(0)).T.reshape(groups, P // groups, B)                                     # (G, d, B)
    eye = torch.eye(P // groups, dtype=z.dtype, device=z.device)
    covariance = x @ x.transpose(1, 2) / B + eps * eye                                        # (G, d, d)
    trace = covariance.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]                        # (G, 1, 1)
    s, p = covariance / trace, eye.expand_as(covariance)
    for _ in range(iterations):
        p = 1.5 * p - 0.5 * (p @ p @ p) @ s
    return (p @ x / trace.sqrt()).reshape(P, B).T


class Projector(nn.Module):
    """Linear - BN - ReLU twice, Linear, for VIbCReg then IterNorm in groups of 64 with a learned scale and shift.

    Takes views (B, in_dim), gives as many (B, dim). The products run over all views at once, since reading the weights
    costs more than using them; each view keeps its own batch statistics. Thesis §4.1.1, §5.1.1.
    """

    def __init__(self, in_dim=128, dim=4096, whiten=False):
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(in_dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(dim, track_running_stats=False) for _ in range(2)])
        self.whiten = whiten
        if whiten:
            if dim % 64:
                raise InputError(f"--projector-dim {dim}: IterNorm needs a multiple of 64")
            self.scale, self.shift = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, *views):
        h = torch.cat(views)                                                                  # (views * B, in_dim)
        for linear, norm in zip(self.linears, self.norms):
            h = torch.cat([norm(view) for view in linear(h).chunk(len(views))]).relu_()
        out = [z.float() for z in self.linears[2](h).chunk(len(views))]
        if self.whiten:
            with torch.autocast(h.device.type, enabled=False):   # covariances stay float32
                out = [iter_norm(z, z.shape[1] // 64) * self.scale + self.shift for z in out]
        return out


# ---------------------------------------------------------------------------------------------------------------------
# The two-branch model (thesis §4.1, Figure 4.1)
# ---------------------------------------------------------------------------------------------------------------------

def pool(z):
    """Global average and max pool, concatenated: z (B, D, H, W) -> (B, 2D). Thesis §4.1.1."""
    return torch.cat([z.mean((2, 3)), z.amax((2, 3))], dim=1)


class NCVQVAE(nn.Module):
    """Original branch: a VQ-VAE on the STFT. Augmented branch: the same encoder and decoder, not quantised. §4.1.1.

    `length` is that of the series; with_projector=False leaves out what only training needs.
    """

    def __init__(self, config, length, with_projector=True):
        super().__init__()
        if config.method not in METHODS:
            raise InputError(f"method {config.method!r}: not one of {', '.join(METHODS)}")
        self.config, self.length, self.frames = config, length, length // (config.n_fft // 4) + 1
        n = n_downsampling(length, config.latent_width)
        self.encoder = Encoder(n, config.width, config.residual_kernel, config.residual_norm)
        self.decoder = Decoder(n, config.width, config.residual_kernel, config.residual_norm)
        self.quantizer = VectorQuantizer(config.n_codes, config.width, config.ema_decay, config.ema_initial_count)
        if with_projector and config.method != "naive":
            self.projector = Projector(2 * config.width, config.projector_dim, whiten=config.method == "vibcreg")

    def _autocast(self, x):
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def encode(self, x):
        """x (B, L) -> u (B, 2, H, F), z (B, D, H, W), both float32."""
        u = stft(x, self.config.n_fft)
        with self._autocast(x):
            z = self.encoder(u)
        return u, z.float()

    def decode(self, z):
        """z or z_q (B, D, H, W) -> u^ (B, 2, H, F), x^ (B, L), both float32."""
        with self._autocast(z):
            u = self.decoder(z, self.frames)
        u = u.float()
        return u, istft(u, self.config.n_fft, self.length)

    def ssl_loss(self, z_q, z_aug):
        """eta * L_SSL of eq. 4.5 on the pooled z_q (straight-through) and z'."""
        c = self.config
        with self._autocast(z_q):
            p1, p2 = self.projector(pool(z_q), pool(z_aug))                                   # (B, P) each
        if c.method == "barlow":
            return c.ssl_weight / c.projector_dim * barlow_twins_loss(p1, p2, c.barlow_lambda)
        return c.ssl_weight * 0.01 * vibcreg_loss(p1, p2, c.similarity_weight, c.variance_weight, c.covariance_weight)

    def forward(self, x, x_aug=None):
        """The loss of eq. 4.5 and its terms. x, x_aug (B, L) -> scalar, dict of detached scalars, indices (B, H, W).

        x_aug is None for the naive model, whose loss is L_VQ of eq. 4.3 alone.
        """
        u, z = self.encode(x)
        z_q, indices, commitment = self.quantizer(z)
        u_hat, x_hat = self.decode(z_q)
        recon_time, recon_freq = F.mse_loss(x_hat, x), F.mse_loss(u_hat, u)                   # eq. 4.2
        # eq. 4.1: the codebook's own half is the moving average, the commitment is what the encoder feels
        loss = recon_time + recon_freq + self.config.beta * commitment                        # eq. 4.3
        terms = dict(recon_time=recon_time, recon_freq=recon_freq, commitment=commitment)
        if x_aug is not None:
            u_aug, z_aug = self.encode(x_aug)                    # a pass of its own: its own BatchNorm statistics
            u_aug_hat, x_aug_hat = self.decode(z_aug)
            recon_aug = F.mse_loss(x_aug_hat, x_aug) + F.mse_loss(u_aug_hat, u_aug)           # eq. 4.4
            ssl = self.ssl_loss(z_q, z_aug)
            loss = loss + ssl + self.config.zeta * recon_aug                                  # eq. 4.5
            terms |= dict(recon_aug=recon_aug, ssl=ssl)
        return loss, {"loss": loss.detach(), **{k: v.detach() for k, v in terms.items()}}, indices

    @torch.no_grad()
    def tokens(self, x):
        """Token indices of x (B, L): int64 (B, N), N = H * W, frequency-major."""
        return self.quantizer.distances(self.encode(x)[1]).argmin(-1).flatten(1)

    @torch.no_grad()
    def series(self, tokens):
        """Series decoded from token indices (B, N) by the stage-1 codebook: (B, L), standardised units."""
        H = self.config.n_fft // 2 + 1
        return self.decode(self.quantizer.lookup(tokens.reshape(len(tokens), H, -1)))[1]


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------

def check_stage1(config):
    """Refuse a combination that could not train, before anything is read or written."""
    if config.method not in METHODS:
        raise InputError(f"--method {config.method}: not one of {', '.join(METHODS)}")
    if (config.method == "naive") != (config.augmentation == "none"):
        raise InputError(f"--method {config.method} --augmentation {config.augmentation}: naive takes none, barlow and "
                         f"vibcreg take {', '.join(AUGMENTATIONS)} (join several by +)")
    for name in config.augmentation.split("+") if config.method != "naive" else ():
        if name not in AUGMENTATIONS:
            raise InputError(f"--augmentation {name}: not one of {', '.join(AUGMENTATIONS)} (join several by +)")
    if config.n_fft < 4 or config.n_fft % 4:
        raise InputError(f"--n-fft {config.n_fft}: not a multiple of 4, the hop is a quarter of it")
    check_precision(config)


def train_step(model, optimizer, x, x_aug=None):
    """One optimiser step on a batch x, x_aug (B, L). Returns NCVQVAE.forward's terms and indices."""
    optimizer.zero_grad()
    loss, terms, indices = model(x, x_aug)
    loss.backward()
    optimizer.step()
    return terms, indices


def train_stage1(run_dir, config, dataset=None, device=None):
    """Train stage 1 and write run_dir/stage1.pt; a finished run returns at once, an interrupted one goes on.

    dataset is loaded from config.dataset (and UCR_DIR) where not given. Returns the trained NCVQVAE in eval mode.
    """
    check_stage1(config)
    run_dir, device = Path(run_dir), device or pick_device()
    path = run_dir / "stage1.pt"
    if path.exists():
        check_same(path, "the finished run", load_checkpoint(path).get("config", {}), plain(config))
        return load_stage1(run_dir, device)[0]
    dataset = dataset or load_dataset(config.dataset, os.environ.get("UCR_DIR", "datasets"))
    if dataset.length < config.n_fft:
        raise InputError(f"{dataset.name}: length {dataset.length} is under --n-fft {config.n_fft}")

    # All of this stage's randomness: weights from the global generator, batches and augmentations from one of our own.
    torch.manual_seed(config.seed)
    generator = torch.Generator(device).manual_seed(config.seed)
    # channels_last: the STFT's channels lie innermost already, and convolutions over so few rows run faster that way.
    model = NCVQVAE(config, dataset.length).to(device, memory_format=torch.channels_last)
    optimizer = adamw(model, config.stage1_lr, config.stage1_weight_decay)
    batches = Batches(len(dataset.x_train), config.stage1_batch, generator)
    total = config.stage1_steps or config.stage1_epochs * batches.per_epoch
    resume = Resume(run_dir / "stage1.resume.pt", {**plain(config), "sha256": dataset.sha256}, generator,
                    model, optimizer, batches)
    write_json(run_dir / "config.json", read_json(run_dir / "config.json") | {"stage1": plain(config)})
    log = Log(run_dir, "stage1", total, resume, device, dataset.sha256)

    x_train = dataset.x_train.to(device)                         # the whole set lives on the device
    model.train()
    update = Recorded(partial(train_step, model, optimizer), device)
    for step in range(resume.step, total):
        x = x_train[next(batches)]                                                            # (B, L)
        views = (x,) if config.method == "naive" else (x, augment(x, config.augmentation, generator))
        set_lr(optimizer, config.stage1_lr * cosine(step, total))
        terms, indices = update(*views)
        if log.due(step + 1):
            codes = len(indices.unique())
            log(step + 1, step // batches.per_epoch + 1, **terms, codes=codes)
            if codes == 1:
                print(f"WARNING: step {step + 1}: every token is the same code; the codebook collapsed. Try another "
                      "--seed, a smaller --stage1-lr or --ema-initial-count 1", file=sys.stderr)
        resume.save_when_due(step + 1)

    model.eval()
    state = {k: v.cpu() for k, v in model.state_dict().items() if not k.startswith("projector.")}
    checkpoint = dict(config=plain(config), state=state, step=total, data=dataset.info(), seconds=resume.seconds())
    write_atomic(path, lambda file: torch.save(checkpoint, file))
    resume.remove()
    return model


def load_stage1(run_dir, device=None):
    """The trained tokenizer of a run folder: NCVQVAE in eval mode without projector, and its checkpoint's dict."""
    path = Path(run_dir) / "stage1.pt"
    checkpoint = load_checkpoint(path)
    try:
        model = NCVQVAE(Stage1Config(**checkpoint["config"]), checkpoint["data"]["length"], with_projector=False)
        model.load_state_dict(checkpoint["state"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: no stage-1 checkpoint of this program ({str(error).splitlines()[0][:120]}); remove "
                         "it and run stage 1 again") from None
    return model.to(device or pick_device()).eval().requires_grad_(False), checkpoint


def main():
    parser = argparse.ArgumentParser(description="Train stage 1 (tokenization).", allow_abbrev=False)
    parser.add_argument("run_dir", help="output folder of the run")
    parser.add_argument("--preset", default="thesis", help=f"one of {', '.join(PRESETS)}; flags override it")
    add_flags(parser, Stage1Config)
    given = parser.parse_args()
    config = make_config(Stage1Config, PRESETS, given.preset, given)
    with hold(given.run_dir):
        train_stage1(given.run_dir, config)


if __name__ == "__main__":
    run_command(main)
