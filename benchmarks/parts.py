"""Where samples lose: the FCN behind FID and IS looks at real, reconstructed and generated series of finished runs.

    UCR_DIR=datasets python benchmarks/parts.py runs > results/parts.md          # seconds a run

Reconstructions of the test split show what stage 1 alone costs, class-conditional samples what the prior adds to that, and
unconditional ones, which FID and IS are defined on, what it costs to do without the class. "own class": share of the series to
which the FCN gives the class they were labelled with or made for.
"""
import os, sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data, evaluate


def parts(run_dir):
    """FID, IS and share of own class of real test series, their reconstructions and class-conditional samples."""
    model, first = evaluate.load_stage1(run_dir)
    dataset = data.load_dataset(first["config"]["dataset"], os.environ.get("UCR_DIR", "datasets"))
    config = evaluate.EvalConfig(**data.read_json(Path(run_dir) / "config.json")["evaluate"])
    fcn = evaluate.dataset_fcn(Path(run_dir).parent.parent, dataset, config, data.pick_device())
    samples = data.read_arrays(Path(run_dir) / "samples.npz")
    generated = torch.from_numpy(((samples["X"][:, 0] - dataset.mean) / dataset.std).astype(np.float32))
    y = torch.tensor([dataset.classes.index(label) for label in samples["y"].tolist()])
    looked_at = (dataset.x_test, evaluate.encode_split(model, dataset.x_test)["x_hat"], generated)
    features, p = zip(*(evaluate.classify(fcn, x) for x in looked_at))
    return [(evaluate.frechet_distance(f, features[0]), evaluate.inception_score(q), evaluate.accuracy(q, labels))
            for f, q, labels in zip(features, p, (dataset.y_test, dataset.y_test, y))]


if __name__ == "__main__":
    print("| dataset | model | seed | stage 1 | stage 2 | real: IS, own class | reconstructed: FID, IS, own class | "
          "class-conditional samples: FID, IS, own class | unconditional samples: FID, IS |\n" + "|---" * 9 + "|")
    for row in evaluate.find_runs(sys.argv[1:]):
        if row["cas"] is not None and row["complete_data"]:
            (_, *real), *made = parts(row["run_dir"])
            lengths = [f"{row[f'{s}_steps']} steps" if row[f"{s}_steps"] else f"{row[f'{s}_epochs']} epochs" for s in ("stage1", "stage2")]
            scores = [", ".join(f"{v:.3f}" for v in cell) for cell in (real, *made, (row["fid"], row["is"]))]
            print(f"| {row['dataset']} | {row['method']}-{row['augmentation']} | {row['seed']} | " + " | ".join(lengths + scores) + " |",
                  flush=True)
