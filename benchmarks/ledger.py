"""The evidence behind ledger rows 4 and 20 to 22: reconstruction of naive models, one choice changed at a time.

    UCR_DIR=datasets python benchmarks/ledger.py runs/ledger > results/ledger.md     # 10 minutes on 2 CPU cores

Trains the thesis' 1000 epochs on the two smallest sets, seeds 1 to 3, and prints recon (mean over the test split) as
Markdown. Finished runs are skipped. Rows 21 and 22 are no flags of the program, so they are patched in here.
"""
import contextlib, statistics, sys
from pathlib import Path

import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data, ncvqvae
from benchmarks.tables import read_published

SETS, SEEDS = ("SonyAIBORobotSurface1", "SonyAIBORobotSurface2"), (1, 2, 3)


def unaligned_decode(self, z, frames):
    u = nn.Sequential.forward(self, z)
    return F.interpolate(u, (u.shape[2], frames), mode="bilinear", align_corners=False)


def uniform_codebook(self, *arguments, original=ncvqvae.VectorQuantizer.__init__):
    original(self, *arguments)
    bound = (6 / self.codebook.shape[1]) ** 0.5                             # He's uniform initialisation
    self.sums.copy_(self.codebook.uniform_(-bound, bound))


@contextlib.contextmanager
def patched(owner, name, value):
    """owner.name is value inside the block; nothing happens where owner is None."""
    original = getattr(owner, name, None)
    if owner:
        setattr(owner, name, value)
    yield
    if owner:
        setattr(owner, name, original)


VARIANTS = {                                       # name: (config fields, patch)
    "as here": ({}, (None, "", None)),
    "row 4: EMA counts start at 0": ({"ema_initial_count": 0.0}, (None, "", None)),
    "row 20: BatchNorm inside no residual block": ({"residual_norm": "none"}, (None, "", None)),
    "row 20: in the decoder's too": ({"residual_norm": "both"}, (None, "", None)),
    "row 21: corners not aligned": ({}, (ncvqvae.Decoder, "forward", unaligned_decode)),
    "row 22: codebook uniform in ±sqrt(6/64)": ({}, (ncvqvae.VectorQuantizer, "__init__", uniform_codebook)),
}


def main():
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/ledger")
    published = read_published()
    print("Naive, 1000 epochs, recon on the full test split, mean (each seed).\n")
    print("| | " + " | ".join(SETS) + " |\n" + "|---" * (len(SETS) + 1) + "|")
    theirs = [published[name, "naive", "none", "recon"] for name in SETS]
    print("| published | " + " | ".join(f"{float(r['mean']):.3f} ± {float(r['std']):.3f}" for r in theirs) + " |")
    for number, (name, (fields, patch)) in enumerate(VARIANTS.items()):
        cells = []
        for set_name in SETS:
            dataset, recon = data.load_dataset(set_name), []
            for seed in SEEDS:
                config = data.Config(dataset=set_name, seed=seed, validate_epochs=0, **fields)
                with patched(*patch):
                    model = ncvqvae.train_stage1(out / f"{number}" / set_name / f"seed{seed}", config, dataset)
                    recon.append(ncvqvae.encode_split(model, dataset.x_test)["errors"].sum(1).mean().item())
            cells.append(f"{statistics.mean(recon):.3f} ({', '.join(f'{r:.3f}' for r in recon)})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    data.run_command(main)
