"""The evidence behind ledger row 11: one stage 1, the prior as it is and one with a tied output.

    python -m benchmarks.tied_prior ../tied runs/Symbols/naive-none/seed1 > results/ledger.md

Takes finished runs with samples and labels. The tied prior, which the published naive model has
(there with a bias a position), is trained and scored below the first folder, with the settings and
the classifier of each run; below runs/ tables would take it for that run. Finished ones are
skipped.
"""

import shutil
from pathlib import Path
from unittest import mock

import prior
from benchmarks.rows import find_runs, markdown, markdown_row, name_cells
from data import Parser, read_config, run_command
from evaluate import evaluate_run, shared_folder

SHOWN = ("prior_loss", "fid", "fid_recon", "fid_floor", "is", "is_real", "cas")


class TiedPrior(prior.Prior):
    """A prior whose logits are products with the embedding's rows: a code is one vector."""

    def __init__(self, config, codebook, sizes, n_classes):
        super().__init__(config, codebook, sizes, n_classes)
        self.head[2].weight = self.embedding.weight  # both (K, D)


def tie(out, run_dir):
    """Train and score a tied prior on the run's stage 1 -> metrics.

    In out/DATASET/METHOD-AUG/seedN.
    """
    run_dir = Path(run_dir).resolve()
    folder = Path(out).joinpath(*run_dir.parts[-3:])
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(run_dir / "stage1.pt", folder)
    for path in shared_folder(run_dir).glob("fcn-*.pt"):
        shutil.copy(path, shared_folder(folder))
    config = read_config(run_dir)
    with mock.patch.object(prior, "Prior", TiedPrior):
        prior.train_stage2(folder, config)
        return evaluate_run(folder, config)


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("out", help="a folder outside runs/")
    parser.add_argument("runs", nargs="+", help="finished runs, or folders of them")
    args = parser.parse_args()
    print("# One stage 1, two priors\n")
    print(markdown(["run", "schedule", "output", *SHOWN], []), end="")
    for row in find_runs(args.runs, having="cas"):
        for output, metrics in (("separate", row), ("tied", tie(args.out, row["run_dir"]))):
            scores = [f"{metrics[name]:.3f}" for name in SHOWN]
            print(markdown_row([*name_cells(row), output, *scores]), flush=True)


if __name__ == "__main__":
    run_command(main)
