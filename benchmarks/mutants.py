"""Can the tests fail? One plausible one-line mistake at a time, applied to a copy: which test catches it?

    python benchmarks/mutants.py > results/mutants.md              # about 15 minutes on 2 CPU cores
    python benchmarks/mutants.py 3 17                              # mutants 3 and 17 alone

A mutant is caught when `pytest -x` fails; the table names the first test that did. A survivor is a missing test.
"""
import os, re, shutil, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent

MUTANTS = [  # file, what stands there, the mistake
    ("data.py", "(x - mean) / std", "(x - mean) * std"),
    ("data.py", "float(x_train.mean()), float(x_train.std())", "float(x_test.mean()), float(x_test.std())"),
    ("data.py", 'encoding="utf-8-sig"', 'encoding="utf-8"'),
    ("data.py", "if not np.isfinite(values).all():", "if np.isnan(values).any():"),
    ("data.py", "len(values) != len(rows[0])", "len(values) > len(rows[0])"),
    ("data.py", "if len(x) < 2:", "if len(x) < 1:"),
    ("data.py", "x.shape[1] < MIN_LENGTH", "x.shape[1] < MIN_LENGTH - 1"),
    ("data.py", "if len(line) > MAX_LINE:", "if len(line) > 100 * MAX_LINE:"),
    ("data.py", "if len(classes) < 2:", "if len(classes) < 1:"),
    ("data.py", 'lower() in ("", "nan")', 'lower() in ("",)'),
    ("data.py", "                complete = False\n", "                pass\n"),
    ("data.py", "y[i] // 2), (begin2, end2, y[i] % 2)", "y[i] % 2), (begin2, end2, y[i] // 2)"),
    ("data.py", "if reply.status != 200 or not body:", "if reply.status >= 400:"),
    ("data.py", "                read_split(staging / file)\n", ""),
    ("data.py", "            shutil.rmtree(staging, ignore_errors=True)\n", "            pass\n"),
    ("data.py", "a + (tau - a) / s", "a + (tau - a) * s"),
    ("data.py", "(L - w)).floor()", "(L - w - 3)).floor()"),
    ("data.py", "place.gather(1, piece) * L + i", "place.gather(1, piece) * L - i"),
    ("data.py", "return x * (1 + std *", "return x * (std *"),
    ("data.py", "math.ceil(n / self.batch_size) - (n % self.batch_size == 1)", "math.ceil(n / self.batch_size)"),
    ("data.py", "        os.replace(temporary, path)\n", "        shutil.copy(temporary, path)\n"),
    ("data.py", "generator.set_state(state[\"generator\"])", "pass"),
    ("data.py", "weights_only=True", "weights_only=False"),
    ("data.py", "r[\"step\"] > resume.step", "r[\"step\"] > resume.step + 1"),
    ("data.py", "fcntl.LOCK_EX |", "fcntl.LOCK_SH |"),
    ("ncvqvae.py", "permute(0, 3, 1, 2)                                        # (B, 2, H, F)",
     "permute(0, 3, 1, 2) * 1.01"),
    ("ncvqvae.py", "int(math.log2(max(1, round(length / (2 * latent_width)))))", "round(math.log2(max(1, length / (2 * latent_width))))"),
    ("ncvqvae.py", ".argmin(-1)                                       # (B, H, W), eq. 2.13", ".argmax(-1)"),
    ("ncvqvae.py", "return z_q + (z - z.detach()), indices", "return z_q + 0.5 * (z - z.detach()), indices"),
    ("ncvqvae.py", "        if self.training:\n            self._update", "        if True:\n            self._update"),
    ("ncvqvae.py", "self.counts.lerp_(one_hot.sum(0), 1 - self.decay)", "self.counts.lerp_(one_hot.sum(0), self.decay)"),
    ("ncvqvae.py", "(self.counts + self.eps)", "(self.counts)"),
    ("ncvqvae.py", "F.mse_loss(z, z_q)                          #", "F.mse_loss(z, z_q, reduction='sum')  #"),
    ("ncvqvae.py", "(1 - c_ii).square()", "c_ii.square()"),
    ("ncvqvae.py", "_GramProduct.apply(a, b) - diagonal.square().sum(), diagonal", "_GramProduct.apply(a, b), diagonal"),
    ("ncvqvae.py", "    z = z - z.mean(0)\n", ""),
    ("ncvqvae.py", "torch.sqrt(z.var(0) + eps)", "(z.var(0) + eps)"),
    ("ncvqvae.py", "(v(z1) + v(z2))", "(v(z1) + v(z1))"),
    ("ncvqvae.py", "/ z.shape[1] ** 2", "/ z.shape[1]"),
    ("ncvqvae.py", "x @ x.transpose(1, 2) / B", "x @ x.transpose(1, 2) / (B - 1)"),
    ("ncvqvae.py", "p = 1.5 * p - 0.5 *", "p = 1.5 * p - 0.4 *"),
    ("ncvqvae.py", "[norm(view) for view in linear(h).chunk(len(views))]", "[norm(linear(h))]"),
    ("ncvqvae.py", "z.mean((2, 3)), z.amax((2, 3))", "z.mean((2, 3)), z.mean((2, 3))"),
    ("ncvqvae.py", "self.config.zeta * recon_aug", "recon_aug"),
    ("ncvqvae.py", "x_hat, x), F.mse_loss(u_hat, u)   ", "x_hat, x), F.l1_loss(u_hat, u)   "),
    ("ncvqvae.py", "if not k.startswith(\"projector.\")", "if True"),
    ("ncvqvae.py", "return 4 * g * (gram_a @ a), None", "return 2 * g * (gram_a @ a), None"),
    ("ncvqvae.py", "return 2 * g * (gram_b @ a), 2 * g * (gram_a @ b)", "return 2 * g * (gram_a @ a), 2 * g * (gram_b @ b)"),
    ("ncvqvae.py", "torch.fft.irfft(spectrum, n_fft) * window", "torch.fft.irfft(spectrum, n_fft)"),
    ("ncvqvae.py", "(0, 0, j, 3 - j)", "(0, 0, 3 - j, j)"),
    ("data.py", "            ours.copy_(given)\n", "            pass\n"),
    ("data.py", "                self.recording = False\n", ""),
    ("prior.py", " / math.sqrt(E // self.heads)).softmax", ").softmax"),
    ("prior.py", "r * (math.pi / 2)", "r * math.pi / 3"),
    ("prior.py", ".ceil().clamp(1, N)", ".floor().clamp(1, N)"),
    ("prior.py", "(losses * weight).sum() / weight.sum()", "(losses * weight).mean()"),
    ("prior.py", "torch.where(mask[..., None], self.mask_vector, self.embedding(tokens))",
     "torch.where(mask[..., None], self.mask_vector + 0.1 * self.embedding(tokens), self.embedding(tokens))"),
    ("prior.py", "self.embedding.weight.data.copy_(codebook)", "pass"),
    ("prior.py", "classes, guidance)[row]", "classes, guidance)[row.sort()[0]]"),
    ("prior.py", "unconditional + guidance * (conditional - unconditional)", "conditional + guidance * (conditional - unconditional)"),
    ("prior.py", "tokens = torch.where(mask, drawn, tokens)", "tokens = drawn"),
    ("prior.py", "confidence.masked_fill(~mask, math.inf)", "confidence.masked_fill(~mask, 0)"),
    ("prior.py", "share = math.cos(math.pi / 2 * (t + 1) / steps)", "share = math.cos(math.pi / 2 * t / steps)"),
    ("prior.py", "confidence.argsort(1).argsort(1) < again", "confidence.argsort(1, descending=True).argsort(1) < again"),
    ("prior.py", "x * data[\"std\"] + data[\"mean\"]", "x * data[\"std\"]"),
    ("evaluate.py", "MinMaxScaler((-1, 1))", "'passthrough'"),
    ("evaluate.py", "neighbours = min(5, len(z_train))", "neighbours = 1"),
    ("evaluate.py", "- 2 * cross", "- cross"),
    ("evaluate.py", "np.sqrt(values.clip(0))", "values.clip(0)"),
    ("evaluate.py", "marginal = part.mean(0, keepdims=True)", "marginal = p.mean(0, keepdims=True) ** 1.1"),
    ("evaluate.py", "torch.cdist(part, train).amin(1)", "torch.cdist(part, train).mean(1)"),
    ("evaluate.py", "exp(-torch.special.xlogy(p, p).sum())", "exp2(-torch.special.xlogy(p, p).sum())"),
    ("evaluate.py", "return model.eval()\n\n\ndef fcn_identity", "return model\n\n\ndef fcn_identity"),
    ("run.sh", "[ \"$method\" = naive ] && augs=(none)", "[ \"$method\" = none ] && augs=(none)"),
]


def run(number):
    """Apply a mutant to a copy and test it: (number, what, first failing test or None)."""
    file, old, new = MUTANTS[number - 1] if number else ("data.py", "", "")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(HERE, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "datasets", "__pycache__"))
        text = (copy / file).read_text()
        if number and text.count(old) != 1:
            sys.exit(f"mutant {number}: {old!r} stands {text.count(old)} times in {file}, expected once")
        (copy / file).write_text(text.replace(old, new) if number else text)
        done = subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider",
                               "-o", "markers=slow", "test_ncvqvae.py"], cwd=copy, capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}, timeout=1200)
        caught = re.search(r"^(?:FAILED|ERROR) test_ncvqvae.py(?:::(\S+))?", done.stdout, re.M)
        return number, (caught.group(1) or "import") if caught else None


def main():
    numbers = [int(n) for n in sys.argv[1:]] or list(range(1, len(MUTANTS) + 1))
    if run(0)[1]:
        sys.exit("the tests fail without any mistake")
    print("| # | file | stands | mistake | caught by |\n|---|---|---|---|---|")
    survivors = 0
    with ThreadPoolExecutor(2) as pool:
        for number, test in pool.map(run, numbers):
            file, old, new = MUTANTS[number - 1]
            survivors += test is None
            cells = [c.strip().replace("|", "\\|").replace("\n", " ") for c in (old, new)]
            print(f"| {number} | {file} | `{cells[0]}` | `{cells[1] or '(removed)'}` | {test or '**nothing**'} |", flush=True)
    print(f"\n{len(numbers) - survivors} of {len(numbers)} caught.")


if __name__ == "__main__":
    main()
