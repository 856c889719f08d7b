"""The evidence behind ledger row 11: one stage 1, the prior as it is and one with a tied output.

    python benchmarks/ledger.py runs/tied runs/Symbols/naive-none/seed1 > results/ledger.md

Takes any finished runs. The tied prior, which the published naive model has (there with a bias a
position), is trained and scored below the first folder, with the settings and the classifier of
each run. Finished ones are skipped.
"""
import shutil, sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data, evaluate, prior
from benchmarks import tables

SHOWN = ("prior_loss", "fid", "fid_recon", "fid_floor", "is", "is_real", "cas")


class TiedPrior(prior.Prior):
    """A prior whose logits are products with the embedding's rows: a code is one vector."""
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.head[2].weight = self.embedding.weight  # both (K, D)


def tie(out, run_dir):
    """Train and score a tied prior on the run's stage 1, in out/DATASET/METHOD-AUG/seedN.

    -> metrics
    """
    run_dir = Path(run_dir).resolve()
    folder = Path(out).joinpath(*run_dir.parts[-3:])
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(run_dir / "stage1.pt", folder)
    for path in run_dir.parent.parent.glob("fcn-*.pt"):
        shutil.copy(path, folder.parent.parent)
    config = data.read_config(run_dir)
    with mock.patch.object(prior, "Prior", TiedPrior):
        prior.train_stage2(folder, config)
        return evaluate.evaluate_run(folder, config)


def main():
    out, *run_dirs = sys.argv[1:]
    columns = ["run", "schedule", "output", *SHOWN]
    print("# One stage 1, two priors\n\n" + tables.markdown(columns, []), end="")
    known = tables.schedules()
    for run_dir in run_dirs:
        run = "/".join(Path(run_dir).resolve().parts[-3:])
        how = known.get(tables.settings(data.read_config(run_dir)), "")
        separate = data.read_json(Path(run_dir) / "metrics.json")
        for output, m in (("separate", separate), ("tied", tie(out, run_dir))):
            cells = [run, how, output, *(f"{m[k]:.3f}" for k in SHOWN)]
            print(tables.markdown_row(cells), flush=True)


if __name__ == "__main__":
    data.run_command(main)
