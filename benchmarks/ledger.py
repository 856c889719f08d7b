"""The evidence behind ledger rows 4 and 20 to 22: reconstruction error of naive models, one choice changed at a time.

    UCR_DIR=datasets python benchmarks/ledger.py runs/ledger > results/ledger.md     # 8 minutes on 2 CPU cores

Trains the thesis' 1000 epochs on the two smallest sets, seeds 1 to 3, and prints recon (mean over the test split) as Markdown.
Finished runs are skipped. Rows 21 and 22 are no flags of the program, so they are patched in here.
"""
import contextlib, csv, os, statistics, sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data, evaluate, ncvqvae

SETS, SEEDS = ("SonyAIBORobotSurface1", "SonyAIBORobotSurface2"), (1, 2, 3)


def unaligned_decode(self, z, frames):
    u = self.blocks(z)
    return F.interpolate(u, size=(u.shape[2], frames), mode="bilinear", align_corners=False)


def uniform_codebook(self, *arguments, original=ncvqvae.VectorQuantizer.__init__):
    original(self, *arguments)
    bound = (6 / self.codebook.shape[1]) ** 0.5                             # He's uniform initialisation
    self.sums.copy_(self.codebook.uniform_(-bound, bound))


@contextlib.contextmanager
def patched(owner, name, value):
    if owner is None:
        yield
        return
    original = getattr(owner, name)
    setattr(owner, name, value)
    yield
    setattr(owner, name, original)


VARIANTS = {                                       # name: (config fields, patch)
    "as here": ({}, (None, "", None)),
    "row 20: BatchNorm inside residual blocks": ({"residual_norm": 1}, (None, "", None)),
    "row 21: corners not aligned": ({}, (ncvqvae.Decoder, "forward", unaligned_decode)),
    "row 22: codebook uniform in ±sqrt(6/64)": ({}, (ncvqvae.VectorQuantizer, "__init__", uniform_codebook)),
    "row 4: EMA counts start at 0": ({"ema_initial_count": 0.0}, (None, "", None)),
}


def main():
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/ledger")
    with open(Path(__file__).resolve().parent.parent / "results" / "published.csv", newline="") as file:
        published = {r["dataset"]: r for r in csv.DictReader(file) if (r["method"], r["metric"]) == ("naive", "recon")}
    print("Naive, 1000 epochs, recon on the full test split, mean (each seed).\n")
    print("| | " + " | ".join(SETS) + " |\n" + "|---" * (len(SETS) + 1) + "|")
    print("| published | " + " | ".join(f"{float(published[s]['mean']):.3f} ± {float(published[s]['std']):.3f}"
                                        for s in SETS) + " |")
    for number, (name, (fields, patch)) in enumerate(VARIANTS.items()):
        cells = []
        for dataset in SETS:
            loaded, recon = data.load_dataset(dataset, os.environ.get("UCR_DIR", "datasets")), []
            for seed in SEEDS:
                config = ncvqvae.Stage1Config(dataset=dataset, seed=seed, **fields)
                with patched(*patch):
                    model = ncvqvae.train_stage1(out / f"{number}" / dataset / f"seed{seed}", config, loaded)
                    recon.append(evaluate.recon(evaluate.encode_split(model, loaded.x_test)))
            cells.append(f"{statistics.mean(recon):.3f} ({', '.join(f'{r:.3f}' for r in recon)})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    data.run_command(main)
