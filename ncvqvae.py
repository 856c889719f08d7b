r"""Chapter 1: tokens (thesis §4.1.1, §5.1.1; eq. 2.13, 3.1 to 3.3, 3.7 to 3.15, 4.1 to 4.5).

    x --stft--> u --Encoder--> z --VectorQuantizer--> z_q --Decoder--> u^ --istft--> x^
    x' = augment(x) -> u' -> the same Encoder -> z' ----> the same Decoder -> u'^ -> x'^
    SSL: z_q and z', average and max pooled -> Projector -> Barlow Twins or VIbCReg

The augmented branch is not quantised. The SSL loss pulls z_q and z' together. Its gradient reaches
the encoder through z' directly and through z_q by the straight-through estimator; the codes follow
as moving averages. So they should come to be ordered by what survives the augmentation (§4).

    python ncvqvae.py runs/Symbols/vibcreg-slice/seed1 --dataset Symbols --method vibcreg \
        --augmentation slice --precision bf16  # 6 minutes, one CPU core

Letters: B batch, L length, H = n_fft/2 + 1 frequency bins (5), W frames of u (4 L/n_fft + 1,
rounded down), W' frames of z (W halved some times), D channels and code dimension (64), K codes of
a band (32), N tokens of all bands (H W' each), P projector dimension (4096), n halvings of W; as a
shape, (n, ...), the series of a whole split. TwoPatterns, L 128: u (B, 2, 5, 65), halved three
times, z (B, 64, 5, 8), N 40. What the model calls latents are lists, a z for each band.

"Ledger 4" is row 4 of the ledger in README.md, which says where the thesis' text, the authors'
program and this code differ.
"""

import math
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from data import (
    Dataset,
    InputError,
    Parser,
    Training,
    add_flags,
    augment,
    check_later_stages,
    hold,
    keep_config,
    likes_channels_last,
    load_dataset,
    make_config,
    output_path,
    pick_device,
    read_arrays,
    read_checkpoint,
    ready,
    remove_resume_file,
    run_command,
    say,
    use_fast_layout,
    warn,
    write_json,
    write_npz,
)

# ---------------------------------------------------------------------------------------------
# Time-frequency transform (§5.1.1)
# ---------------------------------------------------------------------------------------------


def stft(x, n_fft=8):
    """Short-time Fourier transform, hop n_fft/4. x (B, L) -> u (B, 2, H, W), real and imaginary.

    RuntimeError (torch) where L <= n_fft/2. §5.1.1. Window: ledger 25.
    """
    window = torch.hann_window(n_fft, device=x.device, dtype=x.dtype)
    u = torch.stft(x, n_fft, window=window, return_complex=True)  # (B, H, W) complex
    return torch.view_as_real(u).permute(0, 3, 1, 2)  # (B, 2, H, W)


def istft(u, n_fft, length):
    """Inverse of stft, exactly `length` samples. u (B, 2, H, W) -> x (B, L). §5.1.1, ledger 14."""
    window = torch.hann_window(n_fft, device=u.device, dtype=u.dtype)
    spectrum = torch.view_as_complex(u.permute(0, 2, 3, 1).contiguous())  # (B, H, W) complex
    return torch.istft(spectrum, n_fft, window=window, length=length)


# ---------------------------------------------------------------------------------------------
# Encoder and decoder (§5.1.1, Figure 5.1): only time is down-sampled, H stays
# ---------------------------------------------------------------------------------------------


def n_downsampling(length, latent_width, n_fft=8):
    """Number n of halvings of u's frames that leaves about latent_width of them. Ledger 1.

    n is the largest with 2^n <= L / (hop latent_width), rounded, but at least 1; the hop is
    n_fft/4. So W' is about 1 to 2 times latent_width; less where L < 2 hop latent_width.
    """
    ratio = round(length / (n_fft // 4 * latent_width))
    return int(math.log2(max(2, ratio)))


class ResidualBlock(nn.Module):
    """x + (LeakyReLU - Conv 3x3 - [BatchNorm] - LeakyReLU - Conv), x (B, D, H, W). §5.1.1.

    kernel: of the second convolution, 1 or 3. norm: whether the BatchNorm is there.
    """

    def __init__(self, width, kernel, norm):
        super().__init__()
        # NOTE(ledger 2): the second convolution is 1x1, in the thesis 3x3: --residual-kernel 3.
        self.convs = nn.Sequential(
            nn.LeakyReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width) if norm else nn.Identity(),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(width, width, kernel, padding=kernel // 2),
        )

    def forward(self, x):
        return x + self.convs(x)


def residual_blocks(width, kernel, norm):
    """A list of four residual blocks, a BatchNorm after each (ledger 31)."""
    blocks = []
    for _ in range(4):
        blocks.append(nn.Sequential(ResidualBlock(width, kernel, norm), nn.BatchNorm2d(width)))
    return blocks


class HalvingConv(nn.Conv2d):
    """Convolution 3x4 that halves the frames: x (B, 2 or D, H, W) -> (B, D, H, W // 2). §5.1.1."""

    def __init__(self, in_channels, width):
        super().__init__(in_channels, width, kernel_size=(3, 4), stride=(1, 2))

    def forward(self, x):
        # The border is copied (the thesis: zeros): a row above and below, a column left, and one
        # right if W is even. An odd W needs none: the last window of 4 ends on x's last column.
        # NOTE(ledger 35): with a column that no window reads, oneDNN's bf16 kernel for AMX (torch
        # 2.13) reads memory that nobody wrote, and gives NaN.
        even = x.shape[3] % 2 == 0
        right = 1 if even else 0
        return super().forward(F.pad(x, (1, right, 1, 1), mode="replicate"))


class Encoder(nn.Sequential):
    """u (B, 2, H, W) -> z (B, D, H, W'), W halved n times. §5.1.1, Figure 5.1."""

    def __init__(self, n, width=64, kernel=1, norm=True):
        layers = []
        channels = 2
        for _ in range(n):
            conv = HalvingConv(channels, width)
            layers.append(nn.Sequential(conv, nn.BatchNorm2d(width), nn.LeakyReLU(inplace=True)))
            channels = width
        layers += residual_blocks(width, kernel, norm)
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """z (B, D, H, W') -> u^ (B, 2, H, frames): n + 1 doublings, then a resize. §5.1.1.

    As in the authors' program, not the thesis (ledger 31): one doubling more than the encoder has
    halvings, and the resize takes it back; the last two have neither BatchNorm nor activation.
    """

    def __init__(self, n, width=64, kernel=1, norm=False):
        doubling = {"kernel_size": (3, 4), "stride": (1, 2), "padding": 1}  # of the frames
        layers = residual_blocks(width, kernel, norm)
        for _ in range(n - 1):
            conv = nn.ConvTranspose2d(width, width, **doubling)
            layers.append(nn.Sequential(conv, nn.BatchNorm2d(width), nn.LeakyReLU(inplace=True)))
        layers.append(nn.ConvTranspose2d(width, 2, **doubling))
        layers.append(nn.ConvTranspose2d(2, 2, **doubling))
        super().__init__(*layers)

    def forward(self, z, frames):
        u = super().forward(z)  # (B, 2, H, > frames)
        size = (u.shape[2], frames)
        return F.interpolate(u, size, mode="bilinear", align_corners=True)


# ---------------------------------------------------------------------------------------------
# Vector quantisation (§2.6.3; van den Oord et al. 2017, appendix A.1)
# ---------------------------------------------------------------------------------------------


class VectorQuantizer(nn.Module):
    """Nearest code, straight-through gradient, codes that follow their vectors' moving average.

    z (B, D, H, W') -> z_q like z in float32, indices int64 (B, H, W'), commitment loss (mean,
    the second term of eq. 4.1, without beta). In training the codebook moves after it was used:
    code k becomes m_k / N_k, the moving average of the z that chose it (sums, m_k) over that of how
    many did (counts, N_k). This replaces the gradient of the first term, |sg[z] - z_q|^2. A code
    that no z chooses any more stays while m_k and N_k shrink alike, until N_k nears eps: 109 steps
    from a count of 1, about 160 from a usual one. Then it drifts to 0.
    """

    def __init__(self, n_codes=32, dim=64, decay=0.9, initial_count=1.0, eps=1e-5):
        super().__init__()
        self.decay = decay
        self.eps = eps
        codebook = torch.randn(n_codes, dim)  # of z's scale, as z comes out of a BatchNorm
        self.register_buffer("codebook", codebook)  # (K, D) e_k: m_k / N_k, see _update
        # NOTE(ledger 4): counts start at 1. From 0, as in the authors' program, a code that the
        # first batch does not use has N_k = 0: it becomes m_k / eps, 1e5 times too large, and is
        # out of reach until m_k has shrunk by that: log(1e-5) / log(0.9) = 109 steps.
        self.register_buffer("counts", torch.full((n_codes,), float(initial_count)))  # (K) N_k
        # Of a count of 0 the authors' program has the codes themselves as sums, not 0 times them.
        sums = codebook * (initial_count or 1.0)
        self.register_buffer("sums", sums)  # (K, D) m_k

    def distances(self, z):
        """Squared Euclidean distance of z's vectors (B, D, H, W') to each code: (B, H, W', K)."""
        z = z.permute(0, 2, 3, 1)  # (B, H, W', D)
        cross = z @ self.codebook.T  # (B, H, W', K)
        return z.square().sum(-1, keepdim=True) - 2 * cross + self.codebook.square().sum(1)

    def lookup(self, indices):
        """Codes of indices (B, H, W') as z_q (B, D, H, W')."""
        return self.codebook[indices].permute(0, 3, 1, 2)

    def forward(self, z):
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(self.codebook.dtype)  # float32, as sums over a batch are too coarse in bf16
            indices = self.distances(z.detach()).argmin(-1)  # eq. 2.13
            z_q = self.lookup(indices)  # (B, D, H, W')
            commitment = F.mse_loss(z, z_q)  # |z - sg[z_q]|^2 of eq. 4.1; codes have no gradient
            if self.training:
                self._update(z.detach(), indices)  # a new codebook; z_q keeps the old
            # Straight-through: the value is z_q, the gradient passes to z unchanged. In this order
            # z_q stays exact, and equal codes stay equal (ledger 29).
            return z_q + (z - z.detach()), indices, commitment

    @torch.no_grad()
    def _update(self, z, indices):
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])  # (B*H*W', D)
        one_hot = F.one_hot(indices.flatten(), len(self.codebook)).to(flat.dtype)  # (B*H*W', K)
        self.counts.lerp_(one_hot.sum(0), 1 - self.decay)  # N_k = 0.9 N_k + 0.1 n_k
        self.sums.lerp_(one_hot.T @ flat, 1 - self.decay)  # m_k = 0.9 m_k + 0.1 sum of its z
        total = self.counts.sum()  # Laplace smoothing: no count is 0
        smoothed = (self.counts + self.eps) / (total + len(self.counts) * self.eps) * total
        self.codebook.copy_(self.sums / smoothed[:, None])


# ---------------------------------------------------------------------------------------------
# Self-supervision (§3.3)
# ---------------------------------------------------------------------------------------------


def _full_precision(z):
    """z in float32, as autocast's bf16 is too coarse for sums over a batch; float64 stays."""
    return z.to(torch.promote_types(z.dtype, torch.float32))


def _unit_columns(z):
    """Each feature centred over the batch, of length 1 (eq. 3.8, 3.11): (B, P) -> (B, P)."""
    # NOTE(ledger 26): eq. 3.11 divides each row by its norm; its text says "along the batch
    # dimension", which is each column, as here.
    z = z - z.mean(0)
    return z * (z * z).sum(0).clamp_min(1e-24).rsqrt()


def _correlation_terms(a, b):
    """a, b (B, P) -> of C = a^T b, (P, P): the sum over i != j of c_ij^2, and the diagonal (P)."""
    c_ii = (a * b).sum(0)
    # The sum of all c_ij^2 is trace(C^T C) = trace(b^T a a^T b) = trace((a a^T) (b b^T)), which of
    # symmetric matrices is the sum of their elementwise product. So two B x B matrices are enough;
    # C, P x P, is never made.
    with torch.autocast(a.device.type, enabled=False):  # a caller's would multiply in bf16
        all_squares = ((a @ a.T) * (b @ b.T)).sum()
    off_diagonal = all_squares - c_ii.square().sum()
    return off_diagonal, c_ii


def barlow_twins_loss(z1, z2, lambd=0.005):
    """sum_i (1 - c_ii)^2 + lambd sum_{i != j} c_ij^2 of projections (B, P) -> scalar. Eq. 3.7, 3.8.

    c_ii is pulled to 1: both views say the same. c_ij is pulled to 0: no two features say the same.
    ValueError for one row.
    """
    if len(z1) < 2:
        raise ValueError("barlow_twins_loss: a correlation needs at least 2 rows")
    z1, z2 = _full_precision(z1), _full_precision(z2)
    off_diagonal, c_ii = _correlation_terms(_unit_columns(z1), _unit_columns(z2))
    return (1 - c_ii).square().sum() + lambd * off_diagonal


def vibcreg_loss(z1, z2, similarity=25.0, variance=25.0, covariance=100.0, gamma=1.0, eps=1e-4):
    """lambda s(Z, Z') + mu [v(Z) + v(Z')] + nu [c(Z) + c(Z')] of (B, P) -> scalar. Eq. 3.15.

    ValueError for one row, which has no variance.
    """
    if len(z1) < 2:
        raise ValueError("vibcreg_loss: a variance needs at least 2 rows")
    z1, z2 = _full_precision(z1), _full_precision(z2)

    def v(z):  # eq. 3.10: a std of at least gamma, so that series do not become one point
        return F.relu(gamma - torch.sqrt(z.var(0) + eps)).mean()

    def c(z):  # eq. 3.12 to 3.14: no two features say the same
        unit = _unit_columns(z)
        off_diagonal, _ = _correlation_terms(unit, unit)
        return off_diagonal / z.shape[1] ** 2

    # NOTE(ledger 5): eq. 3.9 sums over features, the mean here is 1/P of that sum;
    # --similarity-weight 102400 (25 P, P = 4096) restores it.
    # NOTE(ledger 6): in c, eq. 3.13 has 1/(B-1); --covariance-weight 0.0062, 100 / (B-1)^2 for a
    # batch of 128, restores that.
    s = F.mse_loss(z1, z2)  # eq. 3.9
    return similarity * s + variance * (v(z1) + v(z2)) + covariance * (c(z1) + c(z2))


def iter_norm(z, groups=64, iterations=5, eps=1e-5):
    """Whiten feature groups over the batch. z (B, P) float -> (B, P). §3.3.2; Huang et al. 2019.

    groups: the number G of groups, of d = P / G features each; 64 groups of 64 where P is 4096.
    ValueError where G does not divide P. There are no running averages, as only training needs it.
    """
    B, P = z.shape
    if P % groups:
        raise ValueError(f"{groups} groups do not divide {P} features")
    d = P // groups
    x = (z - z.mean(0)).T.reshape(groups, d, B)  # (G, d, B)
    eye = torch.eye(d, dtype=z.dtype, device=z.device)  # (d, d)
    covariance = x @ x.transpose(1, 2) / B + eps * eye  # (G, d, d)
    trace = covariance.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]  # (G, 1, 1)
    s = covariance / trace  # eigenvalues in (0, 1]
    p = eye.expand_as(s)  # (G, d, d)
    # Newton's iteration drives p to s^{-1/2}, at which p p s = 1 and p stays. Eigenvectors would do
    # that at once, but their gradient explodes where eigenvalues meet. Five rounds are few on
    # purpose: they whiten the strong directions and do not blow up the noise of the weak ones.
    for _ in range(iterations):
        p = 1.5 * p - 0.5 * (p @ p @ p) @ s
    whitened = p @ x / trace.sqrt()  # covariance^{-1/2} = s^{-1/2} / sqrt(trace)
    return whitened.reshape(P, B).T  # (B, P)


class Projector(nn.Module):
    """Linear - BN - ReLU twice, then Linear. whiten: IterNorm after it (VIbCReg, §3.3.2).

    Views (B, in_dim) -> list of (B, dim). §4.1.1, §5.1.1. Each Linear multiplies all views at once,
    as loading its weights takes longer than multiplying by them; BatchNorm sees each view by
    itself. IterNorm whitens within groups of 64 features, and only nearly, so that the covariance
    term (eq. 3.14) still has something to do. Whitened features have a std of 1, which would leave
    nothing to the variance term (eq. 3.10), were it not for the learned scale. The shift is the
    authors': no term of the loss sees it.
    """

    def __init__(self, in_dim=128, dim=4096, whiten=False):
        super().__init__()
        linears = [nn.Linear(in_dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)]
        self.linears = nn.ModuleList(linears)
        # Only training uses it: no running statistics.
        norms = [nn.BatchNorm1d(dim, track_running_stats=False) for _ in range(2)]
        self.norms = nn.ModuleList(norms)
        self.whiten = whiten
        if whiten:
            self.scale = nn.Parameter(torch.ones(dim))
            self.shift = nn.Parameter(torch.zeros(dim))

    def forward(self, *views):
        n_views = len(views)
        h = torch.cat(views)  # (n_views * B, in)
        for layer in range(2):
            h = self.linears[layer](h)  # (n_views * B, P)
            h = torch.cat([self.norms[layer](view) for view in h.chunk(n_views)]).relu_()
        h = self.linears[2](h).float()
        projections = list(h.chunk(n_views))  # (B, P) each
        if self.whiten:
            with torch.autocast(h.device.type, enabled=False):  # in float32
                for i, z in enumerate(projections):
                    groups = max(1, z.shape[1] // 64)  # as many as have 64 features each
                    projections[i] = iter_norm(z, groups) * self.scale + self.shift
        return projections


# ---------------------------------------------------------------------------------------------
# The model (§4.1, Figure 4.1)
# ---------------------------------------------------------------------------------------------


def pool(z):
    """Global average and max pool, concatenated: z (B, D, H, W') -> (B, 2D). §4.1.1."""
    # z_q has ties, as codes repeat: adaptive_max_pool2d sends the gradient to one of them, as the
    # authors' program does; amax would split it (ledger 29).
    return torch.cat([z.mean((2, 3)), F.adaptive_max_pool2d(z, 1).flatten(1)], dim=1)


class Band(nn.Module):
    """A frequency band of u with an encoder, a codebook and a decoder of its own. §3.1.1.

    first, last: the frequency bins that are the band's. The others are zero to its encoder (P_LF,
    P_HF of eq. 3.1). As they are not cut out, the latent keeps its full height: H W' tokens,
    however few bins a band has.
    """

    def __init__(self, config, length, first, last, latent_width):
        super().__init__()
        n = n_downsampling(length, latent_width, config.n_fft)
        H = config.n_fft // 2 + 1
        frames = length // (config.n_fft // 4) + 1  # W of u
        self.frames = frames
        self.grid = (H, frames // 2**n)  # H, W' of z
        mask = torch.zeros(H, 1)
        mask[first : last + 1] = 1
        self.register_buffer("mask", mask, persistent=False)  # (H, 1) 1: a bin of the band
        # NOTE(ledger 20): the thesis has BatchNorm in the residual blocks of both, the authors'
        # program in the encoder's alone.
        encoder_norm = config.residual_norm in ("encoder", "both")
        decoder_norm = config.residual_norm == "both"
        self.encoder = Encoder(n, config.width, config.residual_kernel, encoder_norm)
        self.decoder = Decoder(n, config.width, config.residual_kernel, decoder_norm)
        self.quantizer = VectorQuantizer(
            config.n_codes, config.width, config.ema_decay, config.ema_initial_count
        )


class NCVQVAE(nn.Module):
    """NC-VQVAE of §4.1 for series of `length`; a naive one has no augmented branch.

    The projector is for training alone. Latents are lists, one per band, [z] for one band.
    """

    def __init__(self, config, length, with_projector=True):
        super().__init__()
        self.config = config
        self.length = length
        top = config.n_fft // 2  # the last frequency bin
        if config.bands == 1:
            bands = [Band(config, length, 0, top, config.latent_width)]
        else:  # bin 0 is the low band
            low = Band(config, length, 0, 0, config.latent_width)
            high = Band(config, length, 1, top, config.latent_width_high)
            bands = [low, high]
        self.bands = nn.ModuleList(bands)
        self.sizes = [math.prod(band.grid) for band in bands]  # tokens of each
        if with_projector and config.method != "naive":
            in_dim = 2 * config.width * len(bands)
            whiten = config.method == "vibcreg"
            self.projector = Projector(in_dim, config.projector_dim, whiten)

    def _autocast(self, x):
        bf16 = self.config.precision == "bf16"
        return torch.autocast(x.device.type, torch.bfloat16, enabled=bf16)

    def encode(self, x):
        """x (B, L) -> u (B, 2, H, W) and [z (B, D, H, W')], float32."""
        u = stft(x, self.config.n_fft)
        latents = []
        for band in self.bands:
            with self._autocast(x):
                z = band.encoder(u * band.mask)  # P(STFT(x)) of eq. 3.1
            latents.append(z.float())
        return u, latents

    def quantize(self, latents):
        """[z] -> [z_q], token ids int64 (B, N), commitment loss (of eq. 4.1, without beta).

        Of two bands it is the sum (eq. 3.1). The ids of band i, from 0, are i K to (i + 1) K - 1.
        """
        quantized = []
        ids = []
        commitment = 0.0
        for i, (band, z) in enumerate(zip(self.bands, latents, strict=True)):
            z_q, indices, loss = band.quantizer(z)
            quantized.append(z_q)
            ids.append(indices.flatten(1) + i * self.config.n_codes)
            commitment = commitment + loss
        return quantized, torch.cat(ids, 1), commitment

    def decode(self, latents):
        """[z] or [z_q] -> u^ (B, 2, H, W), x^ (B, L). The STFT is linear: one inverse for all."""
        u = 0.0
        for band, z in zip(self.bands, latents, strict=True):
            if not likes_channels_last(z):
                z = z.contiguous()  # z_q lies channels last, as lookup permutes it
            with self._autocast(z):
                part = band.decoder(z, band.frames)
            # The bins outside the band are set to zero: u_LF and u_HF of eq. 3.2 (§3.1.1).
            # From here on all is float32: u^, the inverse STFT and the sum of their gradients.
            u = u + band.mask * part.float()
        return u, istft(u, self.config.n_fft, self.length)

    def ssl_loss(self, latents, latents_aug):
        """eta · L_SSL of eq. 4.5 of two lists of latents (B, D, H, W'), pooled and projected."""
        config = self.config
        pooled = torch.cat([pool(z) for z in latents], 1)  # (B, bands * 2D)
        pooled_aug = torch.cat([pool(z) for z in latents_aug], 1)
        with self._autocast(pooled):
            p1, p2 = self.projector(pooled, pooled_aug)  # (B, P) each
        # The thesis' eta is 1/P for Barlow Twins and 0.01 for VIbCReg (§5.1.1); config.eta is a
        # factor on it.
        if config.method == "barlow":
            eta = config.eta / config.projector_dim
            return eta * barlow_twins_loss(p1, p2, config.barlow_lambda)
        eta = config.eta * 0.01
        return eta * vibcreg_loss(
            p1, p2, config.similarity_weight, config.variance_weight, config.covariance_weight
        )

    def forward(self, x, x_aug=None):
        """Eq. 4.5 of x and its view x' (B, L) -> loss, its terms (detached), token ids (B, N).

        x_aug is None for the naive model, whose loss is L_VQ of eq. 4.3 (of two bands: eq. 3.3).
        With --views 2 x is a view too, and x_aug is not reconstructed.
        """
        u, latents = self.encode(x)
        quantized, tokens, commitment = self.quantize(latents)
        u_hat, x_hat = self.decode(quantized)  # the gradient goes straight through
        terms = {  # the squared norms of eq. 4.1, 4.2 and 4.4 are means over all elements
            "recon_time": F.mse_loss(x_hat, x),  # eq. 4.2; two bands: of their sum (ledger 33)
            "recon_freq": F.mse_loss(u_hat, u),
            "commitment": self.config.beta * commitment,  # the second term of eq. 4.1, with beta
        }
        if x_aug is not None:
            # A pass of its own, so that BatchNorm normalises x' by x' alone.
            u_aug, latents_aug = self.encode(x_aug)
            if self.config.views == 1:
                u_aug_hat, x_aug_hat = self.decode(latents_aug)
                # Without recon_aug the encoder minimises the SSL loss and neglects reconstruction,
                # and models overfit severely (§4.1.1).
                recon_aug = F.mse_loss(x_aug_hat, x_aug) + F.mse_loss(u_aug_hat, u_aug)  # eq. 4.4
                terms["recon_aug"] = self.config.zeta * recon_aug
            # x is compared after quantisation, its view before it: the codes of x should agree with
            # the view (§4.1.1). NOTE(ledger 32): two views are both compared before quantisation.
            compared = quantized if self.config.views == 1 else latents
            terms["ssl"] = self.ssl_loss(compared, latents_aug)
        loss = sum(terms.values())  # eq. 4.5
        return loss, {name: term.detach() for name, term in terms.items()}, tokens

    def codebook(self):
        """The codes of all bands, float32 (bands * K, D)."""
        return torch.cat([band.quantizer.codebook for band in self.bands])

    @torch.no_grad()
    def tokens(self, x, temperature=0.0, generator=None):
        """Token ids int64 (B, N) of x (B, L): nearest, or from softmax(-d^2 / temperature)."""
        _, latents = self.encode(x)
        ids = []
        for i, (band, z) in enumerate(zip(self.bands, latents, strict=True)):
            nearness = -band.quantizer.distances(z).flatten(1, 2)  # (B, H W', K)
            if temperature > 0:
                # argmax(-d^2 + temperature g) is a draw from softmax(-d^2 / temperature)
                nearness = nearness + temperature * gumbel(nearness.shape, generator, x.device)
            ids.append(nearness.argmax(-1) + i * self.config.n_codes)
        return torch.cat(ids, 1)

    @torch.no_grad()
    def series(self, tokens):
        """Token ids (B, N) -> series (B, L), standardised, by the codes and the decoder."""
        quantized = []
        for band, ids in zip(self.bands, tokens.split(self.sizes, 1), strict=True):
            indices = ids % self.config.n_codes  # within the band's own codebook
            quantized.append(band.quantizer.lookup(indices.unflatten(1, band.grid)))
        return self.decode(quantized)[1]


def gumbel(shape, generator, device):
    """Standard Gumbel noise of a shape: the argmax of log p + noise is a draw from p."""
    uniform = torch.rand(shape, generator=generator, device=device).clamp_min(1e-20)
    return -torch.log(-torch.log(uniform))


# ---------------------------------------------------------------------------------------------
# Training and use
# ---------------------------------------------------------------------------------------------


@torch.no_grad()
def encode_split(model, x, batch=256):
    """One pass of a split x (n, L) through stage 1, in the model's mode -> dict of CPU tensors.

    averages (n, bands * D): z_q averaged over H and W', what KNN and SVM see; tokens (n, N);
    x_hat (n, L); errors (n, 2): the MSE of each series in time and in frequency.
    """
    device = next(model.parameters()).device
    parts = {"averages": [], "tokens": [], "x_hat": [], "errors": []}
    for part in x.split(batch):
        part = part.to(device)  # (B, L)
        u, latents = model.encode(part)
        quantized, tokens, _ = model.quantize(latents)
        u_hat, x_hat = model.decode(quantized)  # (B, 2, H, W), (B, L)
        error_time = (x_hat - part).square().mean(1)  # (B)
        error_frequency = (u_hat - u).square().mean((1, 2, 3))  # (B)
        averages = torch.cat([z_q.mean((2, 3)) for z_q in quantized], 1)  # (B, bands * D)
        parts["averages"].append(averages.cpu())
        parts["tokens"].append(tokens.cpu())
        parts["x_hat"].append(x_hat.cpu())
        parts["errors"].append(torch.stack([error_time, error_frequency], 1).cpu())
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


@torch.no_grad()
def leak(model, x, batch):
    """Pass x (n, L) through a model in train mode: batches move its BatchNorm and codebook.

    So the published program probed train and test split while it trained, and what the test split
    moves leaks into the model (ledger 12).
    """
    for part in x.split(batch):
        _, latents = model.encode(part)
        model.quantize(latents)


def train_stage1(run_dir, config, dataset=None):
    """Train stage 1, write run_dir/config.json and stage1.pt -> NCVQVAE in eval mode.

    A run that was finished before returns at once, an interrupted one is resumed. InputError where
    the folder holds a run of other settings or data.
    """
    run_dir = Path(run_dir)
    device = pick_device(config.precision)
    dataset = dataset or load_dataset(config.dataset)
    path = run_dir / "stage1.pt"
    if dataset.length < config.n_fft:
        raise InputError(f"--n-fft {config.n_fft}: {dataset.name} is shorter")
    if path.exists():
        model, _ = load_stage1(run_dir, config, dataset)
    # A later stage of other settings is refused now: before hours of training, and before
    # keep_config writes.
    check_later_stages(run_dir, config, dataset)
    if path.exists():
        keep_config(run_dir, config)  # settings of later stages may be new
        remove_resume_file(run_dir, "stage1")
        say(f"{path}: finished before, with these settings and data")
        return model

    # Weights: the global generator. Batches and views: the one that Training holds.
    torch.manual_seed(config.seed)
    model = NCVQVAE(config, dataset.length).to(device)
    use_fast_layout(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), weight_decay=config.stage1_weight_decay, fused=True
    )
    training = Training(
        run_dir,
        "stage1",
        model,
        [optimizer],
        identity=config.settings_of("stage1") | {"sha256": dataset.sha256},
        n=len(dataset.x_train),
        batch=config.stage1_batch,
        epochs=config.stage1_epochs,
        steps=config.stage1_steps,
        seed=config.seed,
        extra={"data": dataset.info()},
    )
    write_json(run_dir / "config.json", asdict(config))
    x_train = dataset.x_train.to(device)  # the whole set is on the device
    x_test = dataset.x_test.to(device)

    model.train()  # BatchNorm of the batch, a codebook that moves
    for rows in training:  # (B,) indices of a batch's series
        if training.just_ended(config.leak_epochs):  # at step 0 too; not behind the last step
            leak(model, x_train, config.stage1_batch)
            leak(model, x_test, config.stage1_batch)
        x, x_aug = x_train[rows], None  # (B, L)
        if config.views == 2:
            x = augment(x, config.augmentation, training.generator)
        if config.method != "naive":
            x_aug = augment(x_train[rows], config.augmentation, training.generator)
        loss, terms, tokens = model(x, x_aug)
        for group in optimizer.param_groups:
            group["lr"] = training.cosine(config.stage1_lr, config.stage1_warmup)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        training.step_done(loss, **terms)

        of_bands = tokens.split(model.sizes, 1)
        may_collapse = training.is_logged_step and config.n_codes > 1
        if may_collapse and any(len(ids.unique()) == 1 for ids in of_bands):
            warn(
                f"step {training.step}: the codebook collapsed to one code; try another --seed or "
                "a smaller --stage1-lr"
            )
        if training.is_half_way_or_end and terms["recon_time"] > 0.95 * x.var():
            warn(
                f"step {training.step}: the reconstructions are no better than a constant; try "
                "another --seed, a smaller --stage1-lr or a longer --stage1-warmup"
            )
        if training.just_ended(config.validate_epochs):
            model.eval()  # nothing moves, no random number is drawn (Fig. 6.2)
            training.log(val_recon=encode_split(model, x_test)["errors"].sum(1).mean())
            model.train()
    training.finish(path, leave_out="projector")  # about 3 MB
    return load_stage1(run_dir, config, dataset)[0]  # without projector and gradients, checked


def load_stage1(run_dir, config=None, dataset=None):
    """A run's tokenizer: NCVQVAE without projector in eval mode, and its checkpoint's dict.

    InputError where config or dataset is given and the checkpoint was made with another.
    """
    path = Path(run_dir) / "stage1.pt"
    checkpoint, made_with = read_checkpoint(path, "stage1", config, dataset)
    length = checkpoint["data"]["length"]
    model = NCVQVAE(made_with, length, with_projector=False)
    return ready(model, checkpoint, path, made_with.precision), checkpoint


def command_encode(words):
    """Write tokens, averaged codes and reconstructions of an .npz's series X (n, L)."""
    parser = Parser(
        prog="ncvqvae.py encode", description=command_encode.__doc__, allow_abbrev=False
    )
    parser.add_argument("run_dir", help="run folder")
    parser.add_argument("file", help=".npz with X (n, L), in the data's units")
    parser.add_argument("--out", default="tokens.npz", help="file to write [tokens.npz]")
    args = parser.parse_args(words)
    out = output_path(args.out, "tokens")
    model, checkpoint = load_stage1(args.run_dir)
    dataset = Dataset(**checkpoint["data"])  # its scale and classes, no series
    x = read_arrays(args.file, ("X",), needed=("X",))["X"]
    encoded = encode_split(model, dataset.check_and_standardise(x, f"{args.file}, X"))
    arrays = {
        "tokens": encoded["tokens"].numpy(),  # (n, N)
        "z_q": encoded["averages"].numpy(),  # (n, bands * D), averaged over H and W'
        "X_hat": dataset.to_original(encoded["x_hat"])[:, None],  # (n, 1, L)
    }
    write_npz(out, **arrays)
    print(f"{out}: tokens {arrays['tokens'].shape}, z_q {arrays['z_q'].shape}, X_hat")


def main():
    if sys.argv[1:2] == ["encode"]:
        return command_encode(sys.argv[2:])
    parser = Parser(
        allow_abbrev=False,
        description="Train stage 1; here are all settings of all stages. "
        "`ncvqvae.py encode RUN FILE.npz --out tokens.npz` encodes series instead.",
    )
    parser.add_argument("run_dir", help="output folder of the run")
    add_flags(parser)
    args = parser.parse_args()
    config = make_config(args)
    with hold(args.run_dir):
        train_stage1(args.run_dir, config)


if __name__ == "__main__":
    run_command(main)
