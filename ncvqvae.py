"""Chapter 1: tokens (thesis §4.1.1, §5.1.1; eq. 3.7 to 3.15, 4.1 to 4.5).

    x --stft--> u --Encoder--> z --VectorQuantizer--> z_q --Decoder--> u^ --istft--> x^
    x' = augment(x) -> u' -> the same Encoder -> z' ----> the same Decoder -> u'^ -> x'^
    SSL: z_q and z', average and max pooled -> Projector -> Barlow Twins or VIbCReg

The augmented branch is not quantised. Pulling z_q towards z' orders the codes by what survives the
augmentation, which classes and a prior can use.

    python ncvqvae.py runs/Symbols/vibcreg-slice/seed1 --dataset Symbols --method vibcreg \\
        --augmentation slice --precision bf16  # 6 minutes, one CPU core

Letters: B batch, L length, H = n_fft/2 + 1 frequency bins (5), W frames (L/2 + 1 of u, about L/2^n
of z), D code dimension (64), K codes (32), N = H * W tokens, P projector dimension (4096).
"""
import contextlib, json, math, sys, time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from data import (Config, Parser, add_flags, augment, check_same, git_commit, hold, load_checkpoint,
                  load_dataset, make_config, pick_device, refuse, run_command, usable, write_atomic,
                  write_json)

# ---- Time-frequency transform (§5.1.1) ----
def stft(x, n_fft=8):
    """Short-time Fourier transform, hop n_fft/4. x (B, L) -> u (B, 2, H, W), real and imaginary.

    RuntimeError (torch) where L <= n_fft/2. §5.1.1; the window: ledger 25.
    """
    window = torch.hann_window(n_fft, device=x.device, dtype=x.dtype)
    u = torch.stft(x, n_fft, window=window, return_complex=True)  # (B, H, W) complex
    return torch.view_as_real(u).permute(0, 3, 1, 2)  # (B, 2, H, W)

def istft(u, n_fft, length):
    """Inverse of stft, exactly `length` samples. u (B, 2, H, W) -> x (B, L). §5.1.1, ledger 14."""
    window = torch.hann_window(n_fft, device=u.device, dtype=u.dtype)
    spectrum = torch.view_as_complex(u.permute(0, 2, 3, 1).contiguous())  # (B, H, W) complex
    return torch.istft(spectrum, n_fft, window=window, length=length)

# ---- Encoder and decoder (§5.1.1, Figure 5.1): only time is down-sampled, H stays ----
def n_downsampling(length, latent_width):
    """Number n of halvings: 2^n is the largest power of two up to L / (2 · latent_width), n >= 1.

    latent_width is an aim, no promise: W' is between one and two times as wide.
    """
    return max(1, int(math.log2(max(1, round(length / (2 * latent_width))))))

class ResidualBlock(nn.Module):
    """x + (LeakyReLU - Conv 3x3 - [BatchNorm] - LeakyReLU - Conv 1x1). §5.1.1."""
    def __init__(self, width, kernel, norm):
        super().__init__()
        # NOTE(ledger 2): the text has 3x3 twice; --residual-kernel 3.
        self.convs = nn.Sequential(
            nn.LeakyReLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width) if norm else nn.Identity(), nn.LeakyReLU(inplace=True),
            nn.Conv2d(width, width, kernel, padding=kernel // 2))

    def forward(self, x):
        return x + self.convs(x)  # (B, D, H, W)

def _residual_blocks(width, kernel, norm):
    for _ in range(4):
        yield nn.Sequential(ResidualBlock(width, kernel, norm), nn.BatchNorm2d(width))

class HalvingConv(nn.Conv2d):
    """Convolution 3x4 that halves the frames: x (B, C, H, W) -> (B, D, H, W // 2). §5.1.1."""
    def __init__(self, in_channels, width):
        super().__init__(in_channels, width, kernel_size=(3, 4), stride=(1, 2))

    def forward(self, x):
        # NOTE: no column on the right of an odd W, where no output would read it: oneDNN's bf16
        # kernel for AMX (torch 2.13) multiplies such a column with memory that nobody wrote.
        right = 1 - x.shape[3] % 2
        return super().forward(F.pad(x, (1, right, 1, 1), mode="replicate"))

class Encoder(nn.Sequential):
    """u (B, 2, H, W) -> z (B, D, H, W / 2^n). §5.1.1, Figure 5.1."""
    def __init__(self, n, width=64, residual_kernel=1, residual_norm=True):
        down = [nn.Sequential(HalvingConv(channels, width), nn.BatchNorm2d(width),
                              nn.LeakyReLU(inplace=True)) for channels in [2] + (n - 1) * [width]]
        super().__init__(*down, *_residual_blocks(width, residual_kernel, residual_norm))

class Decoder(nn.Sequential):
    """z (B, D, H, W') -> u^ (B, 2, H, frames): the encoder mirrored, then resized. §5.1.1."""
    def __init__(self, n, width=64, residual_kernel=1, residual_norm=False):
        def double(a, b):  # the number of frames
            return nn.ConvTranspose2d(a, b, (3, 4), (1, 2), 1)
        # n + 1 doublings, one more than the encoder's halvings: ledger 31.
        super().__init__(*_residual_blocks(width, residual_kernel, residual_norm), *(
            nn.Sequential(double(width, width), nn.BatchNorm2d(width), nn.LeakyReLU(inplace=True))
            for _ in range(n - 1)), double(width, 2), double(2, 2))

    def forward(self, z, frames):
        u = super().forward(z)  # (B, 2, H, > frames); aligned corners: ledger 21
        return F.interpolate(u, (u.shape[2], frames), mode="bilinear", align_corners=True)

# ---- Vector quantisation (§2.6.3; van den Oord et al. 2017, appendix A.1) ----
class VectorQuantizer(nn.Module):
    """Nearest code, straight-through gradient, codes that follow their vectors' moving average.

    z (B, D, H, W) float32 -> z_q like z, indices int64 (B, H, W), commitment loss (mean, eq. 4.1).
    In training the codebook moves after its use; the moving average, no gradient, minimises
    eq. 4.1's first half, sg[z] against z_q.
    """
    def __init__(self, n_codes=32, dim=64, decay=0.9, initial_count=1.0, eps=1e-5):
        super().__init__()
        self.decay, self.eps = decay, eps
        codebook = torch.randn(n_codes, dim)  # the scale of z, behind a BatchNorm
        self.register_buffer("codebook", codebook)  # (K, D) e_k = m_k / N_k
        # NOTE(ledger 4): from 0 a code that batch 1 does not use is lost for some 100 steps.
        self.register_buffer("counts", torch.full((n_codes,), float(initial_count)))  # (K) N_k
        self.register_buffer("sums", codebook.clone())  # (K, D) m_k

    def distances(self, z):
        """Squared Euclidean distance of z's vectors (B, D, H, W) to each code: (B, H, W, K)."""
        z, codes = z.permute(0, 2, 3, 1), self.codebook  # (B, H, W, D), (K, D)
        return z.square().sum(-1, keepdim=True) - 2 * z @ codes.T + codes.square().sum(1)

    def lookup(self, indices):
        """Codes of indices (B, H, W) as z_q (B, D, H, W)."""
        return self.codebook[indices].permute(0, 3, 1, 2)

    def forward(self, z):
        indices = self.distances(z.detach()).argmin(-1)  # eq. 2.13
        z_q = self.lookup(indices)  # (B, D, H, W)
        commitment = F.mse_loss(z, z_q)  # |z - sg[z_q]|^2 of eq. 4.1
        if self.training:
            self._update(z.detach(), indices)  # a new codebook; z_q keeps the old
        # Straight-through: the value is exactly z_q, the gradient passes to z as if it were z.
        return z_q + (z - z.detach()), indices, commitment

    @torch.no_grad()
    def _update(self, z, indices):
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])  # (B*H*W, D)
        one_hot = F.one_hot(indices.flatten(), len(self.codebook)).to(flat.dtype)  # (B*H*W, K)
        self.counts.lerp_(one_hot.sum(0), 1 - self.decay)  # N_k = 0.9 N_k + 0.1 n_k
        self.sums.lerp_(one_hot.T @ flat, 1 - self.decay)  # m_k = 0.9 m_k + 0.1 sum of its z
        total = self.counts.sum()  # Laplace smoothing: no count is 0
        smoothed = (self.counts + self.eps) / (total + len(self.counts) * self.eps) * total
        self.codebook.copy_(self.sums / smoothed[:, None])

# ---- Self-supervision (§3.3) ----
def _unit_columns(z):
    """Each feature centred over the batch, of length 1 (eq. 3.8, 3.11): (B, P) -> (B, P)."""
    # NOTE(ledger 26): eq. 3.11 prints each row over its norm; its sentence says features.
    z = z - z.mean(0)
    return z * (z * z).sum(0).clamp_min(1e-24).rsqrt()

def _off_diagonal_and_diagonal(a, b):
    """Sum over i != j of c_ij^2, and c_ii (P), of C = a^T b; a, b (B, P)."""
    c_ii = (a * b).sum(0)
    # |a^T b|_F^2 = <a a^T, b b^T>: two B x B Gram matrices instead of the P x P of C.
    return ((a @ a.T) * (b @ b.T)).sum() - c_ii.square().sum(), c_ii

def barlow_twins_loss(z1, z2, lambd=0.005):
    """sum_i (1 - c_ii)^2 + lambd sum_{i != j} c_ij^2 of projections (B, P) -> scalar. Eq. 3.7, 3.8.

    c_ii to 1: both views say the same. c_ij to 0: no two features do.
    """
    off_diagonal, c_ii = _off_diagonal_and_diagonal(_unit_columns(z1), _unit_columns(z2))
    return (1 - c_ii).square().sum() + lambd * off_diagonal

def vibcreg_loss(z1, z2, similarity=25.0, variance=25.0, covariance=100.0, gamma=1.0, eps=1e-4):
    """lambda s(Z, Z') + mu [v(Z) + v(Z')] + nu [c(Z) + c(Z')] of (B, P) -> scalar. Eq. 3.15."""
    def v(z):  # eq. 3.10: a std of gamma at least, or all series are one point
        return F.relu(gamma - torch.sqrt(z.var(0) + eps)).mean()

    def c(z):  # eq. 3.14: no two features say the same
        unit = _unit_columns(z)
        return _off_diagonal_and_diagonal(unit, unit)[0] / z.shape[1] ** 2

    # NOTE(ledger 5): eq. 3.9 sums over features; --similarity-weight 102400 (25 P) gives that.
    # NOTE(ledger 6): eq. 3.13 has 1/(B-1); --covariance-weight 100 / (B-1)^2 gives that.
    s = F.mse_loss(z1, z2)  # eq. 3.9
    return similarity * s + variance * (v(z1) + v(z2)) + covariance * (c(z1) + c(z2))

def iter_norm(z, groups=64, iterations=5, eps=1e-5):
    """Whiten feature groups over the batch. z (B, P) float -> (B, P). §3.3.2; Huang et al. 2019.

    ValueError where groups does not divide P. No running averages: only training needs it.
    """
    B, P = z.shape
    if P % groups:
        raise ValueError(f"{groups} groups do not divide {P} features")
    x = (z - z.mean(0)).T.reshape(groups, P // groups, B)  # (G, d, B)
    eye = torch.eye(P // groups, dtype=z.dtype, device=z.device)  # (d, d)
    covariance = x @ x.transpose(1, 2) / B + eps * eye  # (G, d, d)
    trace = covariance.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]  # (G, 1, 1)
    s, p = covariance / trace, eye.expand_as(covariance)  # eigenvalues of s in (0, 1]
    # Newton's iteration drives p to s^{-1/2} without eigenvectors, whose gradient explodes where
    # eigenvalues meet. Five rounds whiten strong directions and spare the noise of weak ones.
    for _ in range(iterations):
        p = 1.5 * p - 0.5 * (p @ p @ p) @ s
    return (p @ x / trace.sqrt()).reshape(P, B).T  # (B, P)

class Projector(nn.Module):
    """Linear - BN - ReLU twice, Linear; for VIbCReg then IterNorm by 64, with scale and shift.

    Views (B, in_dim) -> list of (B, dim). One product for all: reading weights costs more than
    using them. Each has its own batch statistics. §4.1.1, §5.1.1.
    """
    def __init__(self, in_dim=128, dim=4096, whiten=False):
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(n, dim) for n in (in_dim, dim, dim)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(dim, track_running_stats=False)
                                    for _ in range(2)])
        self.whiten = whiten
        if whiten:
            self.scale, self.shift = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, *views):
        h = torch.cat(views)  # (views * B, in)
        for linear, norm in zip(self.linears, self.norms):  # (views * B, P)
            h = torch.cat([norm(view) for view in linear(h).chunk(len(views))]).relu_()
        views = [z.float() for z in self.linears[2](h).chunk(len(views))]  # (B, P) each
        if self.whiten:
            with torch.autocast(h.device.type, enabled=False):  # in float32
                views = [iter_norm(z, z.shape[1] // 64) * self.scale + self.shift for z in views]
        return views

# ---- The model (§4.1, Figure 4.1) ----
def pool(z):
    """Global average and max pool, concatenated: z (B, D, H, W) -> (B, 2D). §4.1.1."""
    # z_q has ties: adaptive_max_pool2d sends the gradient to one of them, as the program does,
    # amax would split it (ledger 29).
    return torch.cat([z.mean((2, 3)), F.adaptive_max_pool2d(z, 1).flatten(1)], dim=1)

class Band(nn.Module):
    """A frequency band of u with an encoder, a codebook and a decoder of its own. Eq. 3.1, 3.2.

    bins: first and last + 1 of the frequency bins that are the band's. Zero-padding the others, not
    cutting them out, leaves the latent its full height: H * W' tokens, however few bins a band has.
    """
    def __init__(self, config, length, bins, latent_width):
        super().__init__()
        n, norm = n_downsampling(length, latent_width), config.residual_norm
        H, frames = config.n_fft // 2 + 1, length // (config.n_fft // 4) + 1
        self.grid = H, frames >> n  # H, W' of its z
        refuse(frames >> n < 1, f"--n-fft {config.n_fft}: of {frames} frames of a series of length "
               f"{length} none would be left; make it smaller or --latent-width larger")
        mask = torch.zeros(H, 1)
        mask[slice(*bins)] = 1
        self.register_buffer("mask", mask, persistent=False)  # (H, 1) 1: a bin of the band
        # NOTE(ledger 20): BatchNorm in both in the text, in the program in the encoder alone.
        self.encoder = Encoder(n, config.width, config.residual_kernel, norm != "none")
        self.decoder = Decoder(n, config.width, config.residual_kernel, norm == "both")
        self.quantizer = VectorQuantizer(config.n_codes, config.width, config.ema_decay,
                                         config.ema_initial_count)

class NCVQVAE(nn.Module):
    """NC-VQVAE of §4.1 for series of `length`; a naive one has no augmented branch.

    The projector is for training alone. Latents are lists, one per band.
    """
    def __init__(self, config, length, with_projector=True):
        super().__init__()
        self.config, self.length = config, length
        H = config.n_fft // 2 + 1
        edges = [0, H] if config.bands == 1 else [0, 1, H]  # bin 0 is the low band
        self.bands = nn.ModuleList([Band(config, length, bins, width) for bins, width in zip(
            zip(edges, edges[1:]), (config.latent_width, config.latent_width_high))])
        self.sizes = [math.prod(band.grid) for band in self.bands]  # tokens of each
        if with_projector and config.method != "naive":
            self.projector = Projector(2 * config.width * len(self.bands), config.projector_dim,
                                       whiten=config.method == "vibcreg")

    def _autocast(self, x):
        bf16 = self.config.precision == "bf16"
        return torch.autocast(x.device.type, torch.bfloat16, enabled=bf16)

    def encode(self, x):
        """x (B, L) -> u (B, 2, H, W) and [z (B, D, H, W')], float32."""
        u = stft(x, self.config.n_fft)
        with self._autocast(x):
            z = [band.encoder(u * band.mask) for band in self.bands]  # eq. 3.1
        return u, [z_k.float() for z_k in z]

    def quantize(self, z):
        """[z] -> [z_q], token ids int64 (B, N), band k's from K k on, commitment loss."""
        z_q, ids, commitment = zip(*(band.quantizer(z_k) for band, z_k in zip(self.bands, z)))
        ids = [i.flatten(1) + k * self.config.n_codes for k, i in enumerate(ids)]
        return z_q, torch.cat(ids, 1), sum(commitment)

    def decode(self, z):
        """[z] or [z_q] -> u^ (B, 2, H, W), x^ (B, L). The STFT is linear: one inverse for all."""
        frames = self.length // (self.config.n_fft // 4) + 1  # W of u
        with self._autocast(z[0]):
            parts = [band.decoder(z_k, frames) for band, z_k in zip(self.bands, z)]
        # Each band decodes its own bins: the masks add up to one. float32, as both gradients meet.
        u = sum(band.mask * part.float() for band, part in zip(self.bands, parts))  # eq. 3.2
        return u, istft(u, self.config.n_fft, self.length)

    def ssl_loss(self, *latents):
        """eta · L_SSL of eq. 4.5 of two lists of latents, pooled and projected."""
        c = self.config
        with self._autocast(latents[0][0]):
            p1, p2 = self.projector(*(torch.cat([pool(z_k) for z_k in z], 1) for z in latents))
        if c.method == "barlow":  # eta = 1/P: the loss has as many terms as features
            return c.eta / c.projector_dim * barlow_twins_loss(p1, p2, c.barlow_lambda)
        return c.eta * 0.01 * vibcreg_loss(p1, p2, c.similarity_weight, c.variance_weight,
                                           c.covariance_weight)

    def forward(self, x, x_aug=None):
        """Eq. 4.5 of x and its view x' (B, L) -> loss, its terms (detached), token ids (B, N).

        x_aug is None for the naive model, whose loss is L_VQ of eq. 4.3. views = 2: both are views.
        """
        u, z = self.encode(x)
        z_q, tokens, commitment = self.quantize(z)
        u_hat, x_hat = self.decode(z_q)  # the gradient goes straight through
        terms = dict(recon_time=F.mse_loss(x_hat, x), recon_freq=F.mse_loss(u_hat, u),  # eq. 4.2
                     commitment=self.config.beta * commitment)  # eq. 4.1
        if x_aug is not None:
            u_aug, z_aug = self.encode(x_aug)  # BatchNorm statistics of its own
            if self.config.views == 1:
                u_aug_hat, x_aug_hat = self.decode(z_aug)
                # Without it models overfit severely: the encoder pleases the SSL loss by ignoring
                # the view (§4.1.1). It also shows the decoder series that the data lacks.
                recon_aug = F.mse_loss(x_aug_hat, x_aug) + F.mse_loss(u_aug_hat, u_aug)  # eq. 4.4
                terms["recon_aug"] = self.config.zeta * recon_aug
            # z_q against z': the codes shall be alike; x' needs none.
            # NOTE(ledger 32): two equal views meet before the codes.
            terms["ssl"] = self.ssl_loss(z_q if self.config.views == 1 else z, z_aug)
        return sum(terms.values()), {k: v.detach() for k, v in terms.items()}, tokens  # eq. 4.5

    def codebook(self):
        """The codes of all bands: (K, D)."""
        return torch.cat([band.quantizer.codebook for band in self.bands])

    @torch.no_grad()
    def tokens(self, x, temperature=0.0, generator=None):
        """Token ids int64 (B, N) of x (B, L): nearest, or from softmax(-d^2 / temperature)."""
        ids = []
        for k, (band, z_k) in enumerate(zip(self.bands, self.encode(x)[1])):
            logits = -band.quantizer.distances(z_k).flatten(1, 2)  # (B, N, K)
            if temperature > 0:
                logits = logits + temperature * gumbel(logits.shape, generator, x.device)
            ids.append(logits.argmax(-1) + k * self.config.n_codes)
        return torch.cat(ids, 1)

    @torch.no_grad()
    def series(self, tokens):
        """Series of token ids (B, N), by the stage-1 codebook: (B, L), standardised units."""
        parts = zip(self.bands, tokens.split(self.sizes, 1))  # each (B, N of the band)
        return self.decode([band.quantizer.lookup(ids.unflatten(1, band.grid) % self.config.n_codes)
                            for band, ids in parts])[1]

def gumbel(shape, generator, device):
    """Standard Gumbel noise: the argmax of log p + noise is a draw from p."""
    uniform = torch.rand(shape, generator=generator, device=device).clamp_min(1e-20)
    return -torch.log(-torch.log(uniform))

# ---- Training: what all loops share ----
GO_ON = ("The same command goes on from the last saved step; if it stops at the same step again, "
         "try a smaller learning rate")

class Training:
    """Iterates over index batches (B,); `update` makes a step of each. An interrupted run, even by
    kill -9, goes on from its resume file and ends bit for bit the same (on a CPU).

    kind: "stage1", "stage2" or "fcn", whose settings count; on n series of data sha256. A last
    batch of one series, which has no variance, is dropped.
    """
    SECONDS = 60  # between two resume files

    def __init__(self, folder, kind, model, config, sha256, n, name=None):
        self.folder, self.stage, self.model = Path(folder), name or kind, model
        self.identity = config.behind(kind) | {"sha256": sha256}
        self.device = next(model.parameters()).device
        if self.device.type != "mps":  # wrong gradients there; else short rows are convolved faster
            model.to(memory_format=torch.channels_last)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)  # batches, draws
        batch, epochs, self.lr, decay = (getattr(config, f"{kind}_{name}") for name in
                                         ("batch", "epochs", "lr", "weight_decay"))
        muon, groups = kind == "stage2" and config.optimizer == "muon", ([], [])
        for name, p in model.named_parameters():
            groups[muon and "blocks" in name and p.ndim == 2].append(p)
        self.optimizers = [torch.optim.AdamW(groups[0], weight_decay=decay, fused=True)]
        if muon:  # orthogonal steps, scaled to AdamW's: one learning rate serves both
            self.optimizers.append(torch.optim.Muon(groups[1], weight_decay=decay,
                                                    adjust_lr_fn="match_rms_adamw"))
        self.n, self.batch, self.per_epoch = n, batch, batches_per_epoch(n, batch)
        self.total = getattr(config, f"{kind}_steps", 0) or epochs * self.per_epoch
        self.every = max(1, self.total // 200)  # about 200 logged steps
        self.step, self.order, self.last = 0, torch.zeros(0, dtype=torch.int64), "nothing"
        self.started = self.saved = time.time()
        self.resume = self.folder / f"{self.stage}.resume.pt"
        if self.resume.exists():
            self._go_on()
        self._start_log()

    def __iter__(self):
        while self.step < self.total:
            start = self.step % self.per_epoch * self.batch
            if start == 0:  # a new epoch
                self.order = torch.randperm(self.n, generator=self.generator, device=self.device)
            yield self.order[start:start + self.batch]
            if time.time() - self.saved > self.SECONDS:  # the step is done
                self._save()

    def update(self, loss, **terms):
        """Backward, a step at the cosine's rate (§5.1.1), the log if due."""
        self.model.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * self.step / self.total))
            optimizer.step()
        self.step += 1
        if self.due:
            self.log(loss=loss.detach(), **terms)

    @property
    def due(self):
        """Is the step just taken one that is logged?"""
        return self.step % self.every == 0 or self.step in (1, self.total)

    def validates(self, epochs):
        """Did the step just taken end the schedule, or `epochs` epochs? 0: never."""
        return epochs > 0 and (self.step == self.total or not self.step % (epochs * self.per_epoch))

    def log(self, **values):
        """Floats of the step just taken: into log.jsonl, some onto stderr; no NaN."""
        values = {k: float(v) for k, v in values.items()}  # waits for the device
        text = ", ".join(f"{k} {v:.4g}" for k, v in values.items())
        refuse(not all(map(math.isfinite, values.values())), f"{self.stage}: not finite at step "
               f"{self.step}: {text}; before: {self.last}. {GO_ON}")
        self.last, epoch = f"step {self.step}: {text}", (self.step - 1) // self.per_epoch + 1
        record = dict(stage=self.stage, step=self.step, epoch=epoch, **values)
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        if self.step % (10 * self.every) == 0 or self.step == self.total:
            minutes = (time.time() - self.started) / 60
            print(f"{self.stage}, {minutes:.1f} of {minutes * self.total / self.step:.1f} min, "
                  f"{self.last}", file=sys.stderr, flush=True)

    def finish(self, path, **extra):
        """Write the checkpoint: weights but the projector's, identity, step, seconds, extra."""
        state = {k: v.cpu() for k, v in self.model.state_dict().items() if "projector" not in k}
        self._write(path, state, state=state, **extra)
        self.resume.unlink(missing_ok=True)

    def _write(self, path, weights, **content):
        refuse(not finite(weights), f"{self.stage}: weights not finite at step {self.step}, "
               f"nothing is written. {GO_ON}")
        content |= dict(identity=self.identity, step=self.step, seconds=time.time() - self.started)
        write_atomic(path, lambda file: torch.save(content, file))

    def _save(self):
        weights = self.model.state_dict()
        self._write(self.resume, weights, model=weights, generator=self.generator.get_state(),
                    optimizers=[o.state_dict() for o in self.optimizers], order=self.order)
        self.saved = time.time()

    def _go_on(self):
        state = load_checkpoint(self.resume)
        with usable(self.resume):  # of another device type
            check_same(self.resume, state["identity"], self.identity)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"]):
                optimizer.load_state_dict(saved)
            self.generator.set_state(state["generator"])
            self.order, self.step = state["order"].to(self.device), state["step"]
            self.started -= state["seconds"]  # spent before the interruption

    def _start_log(self):
        # What was logged behind the resume file will be logged again: drop it.
        kept = [r for r in read_log(self.folder)
                if r.get("stage") != self.stage or r.get("step", 0) <= self.step]
        kept.append(dict(event="start", stage=self.stage, from_step=self.step, argv=sys.argv,
                         device=str(self.device), python=sys.version, torch=torch.__version__,
                         commit=git_commit(), time=time.strftime("%Y-%m-%dT%H:%M:%S"),
                         **self.identity))
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomic(self.folder / "log.jsonl", lambda file: file.write(lines.encode()))

def batches_per_epoch(n, batch):
    """Batches of n series; a last one of a single series is dropped."""
    return math.ceil(n / batch) - (n % batch == 1)

def finite(weights):
    """Are a state dict's values finite?"""
    return all(v.isfinite().all() for v in weights.values())

def read_log(run_dir):
    """The records of a run's log.jsonl, half lines left out."""
    path, records = Path(run_dir) / "log.jsonl", []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, TypeError):  # a crash cut it
            records.append(dict(json.loads(line)))
    return records

@torch.no_grad()
def encode_split(model, x, batch=256):
    """One pass of a split x (n, L) through stage 1, in the mode it is in. -> CPU tensors:

    pooled z_q (n, D), tokens (n, N), x_hat (n, L), errors (n, 2), the MSE in time and in frequency.
    """
    device, parts = next(model.parameters()).device, []
    for part in (part.to(device) for part in x.split(batch)):  # (B, L)
        u, z = model.encode(part)
        z_q, tokens, _ = model.quantize(z)
        u_hat, x_hat = model.decode(z_q)  # (B, 2, H, W), (B, L)
        errors = [(x_hat - part).square().mean(1), (u_hat - u).square().mean((1, 2, 3))]
        pooled = torch.cat([z_k.mean((2, 3)) for z_k in z_q], 1)  # (B, D) of each band
        parts.append([t.cpu() for t in (pooled, tokens, x_hat, torch.stack(errors, 1))])
    return dict(zip(("pooled", "tokens", "x_hat", "errors"), map(torch.cat, zip(*parts))))

def train_stage1(run_dir, config, dataset=None):
    """Train stage 1, write run_dir/config.json and stage1.pt. -> NCVQVAE in eval mode.

    Finished: returns at once; interrupted: goes on; of other settings or data: InputError.
    """
    run_dir, device = Path(run_dir), pick_device(config.precision)
    path, dataset = run_dir / "stage1.pt", dataset or load_dataset(config.dataset)
    refuse(dataset.length < config.n_fft, f"--n-fft {config.n_fft}: {dataset.name} is shorter")
    if path.exists():
        model, _ = load_stage1(run_dir, config, dataset)
        write_json(run_dir / "config.json", asdict(config))
        print(f"{path}: finished before, with these settings and data", file=sys.stderr)
        return model
    # Weights: the global generator, all else: the one Training holds.
    torch.manual_seed(config.seed)
    model = NCVQVAE(config, dataset.length).to(device)
    training = Training(run_dir, "stage1", model, config, dataset.sha256, len(dataset.x_train))
    write_json(run_dir / "config.json", asdict(config))
    x_train, x_test = dataset.x_train.to(device), dataset.x_test.to(device)  # the whole set
    model.train()  # BatchNorm of the batch, a codebook that moves
    for rows in training:
        x, x_aug = x_train[rows], None  # (B, L)
        if config.views == 2:
            x = augment(x, config.augmentation, training.generator)
        if config.method != "naive":
            x_aug = augment(x_train[rows], config.augmentation, training.generator)
        loss, terms, tokens = model(x, x_aug)
        training.update(loss, **terms)  # backward, optimiser, log
        if training.due and len(tokens.unique()) == len(model.bands):
            print(f"WARNING: step {training.step}: the codebook collapsed to one code; try another "
                  "--seed or a smaller --stage1-lr", file=sys.stderr)
        if training.validates(config.validate_epochs):
            model.eval()  # nothing moves, no draw is consumed (Fig. 6.2)
            training.log(val_recon=encode_split(model, x_test)["errors"].sum(1).mean())
            model.train()
    training.finish(path, data=dataset.info())  # about 3 MB
    return load_stage1(run_dir, config, dataset)[0]

def load_model(path, kind, build, config=None, dataset=None):
    """A finished model in eval mode, its checkpoint's dict. build(config, checkpoint) -> module.

    Settings and data have to be those of config and dataset where these are given.
    """
    checkpoint, wanted = load_checkpoint(path), config.behind(kind) if config else {}
    wanted |= {"sha256": dataset.sha256} if dataset else {}
    with usable(path):
        made_with = dict(checkpoint["identity"])
        check_same(path, {k: made_with.get(k) for k in wanted}, wanted)
        made_with.pop("sha256")
        model = build(config := Config(**made_with), checkpoint)  # checks every value again
        model.load_state_dict(checkpoint["state"])
        refuse(not finite(checkpoint["state"]), "weights not finite")
    return model.to(pick_device(config.precision)).eval().requires_grad_(False), checkpoint

def load_stage1(run_dir, config=None, dataset=None):
    """A run's tokenizer: NCVQVAE without projector, its checkpoint's dict."""
    return load_model(Path(run_dir) / "stage1.pt", "stage1", lambda made_with, saved: NCVQVAE(
        made_with, saved["data"]["length"], with_projector=False), config, dataset)

def main():
    parser = Parser(allow_abbrev=False, description="Stage 1, and all settings of all stages.")
    parser.add_argument("run_dir", help="output folder of the run")
    add_flags(parser)
    args = parser.parse_args()
    config = make_config(args)
    with hold(args.run_dir):
        train_stage1(args.run_dir, config)

if __name__ == "__main__":
    run_command(main)
