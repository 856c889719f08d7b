"""The evidence behind ledger row 29: stage 1 with the published straight-through expression.

    python -m benchmarks.straight_through ../straight RUN ... > results/straight_through.md

Takes finished runs of data with labels. z + (z_q - z).detach() is z_q but for rounding: positions
that share a code no longer share a maximum to the last bit, so max pooling sends its gradient to
another one of them. That stage 1 is trained and probed below the first folder, with the settings of
each run; below runs/ tables would take it for one. Finished ones are skipped.
"""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import ncvqvae
from benchmarks.rows import find_runs, markdown, markdown_row, name_cells
from data import Parser, read_config, run_command
from evaluate import evaluate_run

SHOWN = ("recon", "knn", "svm")


class PublishedQuantizer(ncvqvae.VectorQuantizer):
    """A quantiser that passes z's gradient on as the authors' program writes it."""

    def forward(self, z):
        z_q, indices, commitment = super().forward(z)
        return z + (z_q - z).detach(), indices, commitment


def train(out, run_dir):
    """Train and probe stage 1 so, with the run's settings -> metrics.

    In out/DATASET/METHOD-AUG/seedN.
    """
    folder = Path(out).joinpath(*Path(run_dir).resolve().parts[-3:])
    config = replace(read_config(run_dir), stages=1)
    with mock.patch.object(ncvqvae, "VectorQuantizer", PublishedQuantizer):
        ncvqvae.train_stage1(folder, config)
    return evaluate_run(folder, config)  # in eval mode, where only the rounding differs


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("out", help="a folder outside runs/")
    parser.add_argument("runs", nargs="+", help="finished runs, or folders of them")
    args = parser.parse_args()
    print("# Stage 1 by two straight-through expressions\n")
    print(markdown(["run", "schedule", "expression", *SHOWN], []), end="")
    for row in find_runs(args.runs):
        published = train(args.out, row["run_dir"])
        for expression, metrics in (("exact", row), ("published", published)):
            scores = [f"{metrics[name]:.3f}" for name in SHOWN]
            print(markdown_row([*name_cells(row), expression, *scores]), flush=True)


if __name__ == "__main__":
    run_command(main)
