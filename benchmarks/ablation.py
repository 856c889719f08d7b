"""The two weights of eq. 4.5 varied: zeta as in thesis section 6.3, and the factor on eta that the project thesis swept.

    for weight in zeta=0.05 zeta=0.15 zeta=0.2 ssl-weight=0.5 ssl-weight=2; do
        OUT=runs/ablation/$weight bash run.sh Symbols,TwoPatterns barlow,vibcreg warp,slice 1,2 --preset fast --stages 1 --$weight
    done
    python evaluate.py tables runs/ablation --export results/ablation    # runs.csv and logs, apart from those of the grid
    python benchmarks/ablation.py                                        # writes results/ablation.md

The runs at the thesis' weights, zeta 0.1 and factor 1, are those of the same schedule in results/runs.csv.
"""
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
import data, evaluate, headline, ncvqvae

RESULTS = headline.RESULTS
SWEEPS = {"zeta": (0.05, 0.1, 0.15, 0.2), "ssl_weight": (0.5, 1.0, 2.0)}
THESIS = {name: getattr(ncvqvae.Stage1Config(), name) for name in SWEEPS}


def cells(rows):
    """{(dataset, method, augmentation, other settings): {(name, weight): {seed: run}}}; a run at the thesis' weights is in both sweeps."""
    found = {}
    for row in rows:
        if not row["complete_data"]:
            continue
        changed = dict(s.split("=") for s in row["stage1_settings"].split())
        weights = THESIS | {name: float(changed.pop(name)) for name in SWEEPS if name in changed}
        model = found.setdefault((row["dataset"], row["method"], row["augmentation"], " ".join(map("=".join, changed.items()))), {})
        for name in SWEEPS:
            if all(weights[other] == THESIS[other] for other in SWEEPS if other != name):
                model.setdefault((name, weights[name]), {})[row["seed"]] = row
    return dict(sorted(found.items()))


def report(found, theirs):
    lines = ["# The weights of eq. 4.5", "",
             f"Mean over seeds (n), the thesis' weight in bold. The difference from it: {headline.NOISE}", ""]
    for name, weights in SWEEPS.items():
        lines += [f"## {name}", "", "| dataset | model | stage 1 | metric | "
                  + " | ".join(f"**{w:g}**" if w == THESIS[name] else f"{w:g}" for w in weights) + " |", "|---" * (4 + len(weights)) + "|"]
        for (dataset, method, augmentation, settings), model in found.items():
            if not any(n == name and w != THESIS[n] for n, w in model):              # not swept
                continue
            for metric in ("recon", "knn", "svm"):
                line, (base, m) = [], headline.mean(model.get((name, THESIS[name]), {}), metric)
                for weight in weights:
                    value, n = headline.mean(model.get((name, weight), {}), metric)
                    mark = headline.star(value - base, n, m, evaluate.pooled_std(theirs, dataset, metric)) if n and m else ""
                    line.append(f"{value:.3f}{mark} ({n})" if n else "")
                lines.append(f"| {dataset} | {method}-{augmentation} | {settings} | {metric} | " + " | ".join(line) + " |")
        lines.append("")
    return lines


if __name__ == "__main__":
    rows = [row for file in ("runs.csv", "ablation/runs.csv") for row in evaluate.read_runs(RESULTS / file)]
    text = "\n".join(report(cells(rows), evaluate.read_published()))
    data.write_atomic(RESULTS / "ablation.md", lambda file: file.write(text.encode()))
