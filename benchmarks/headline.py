"""The README's results, made from results/runs.csv and results/published.csv.

    python benchmarks/headline.py              # writes results/headline.md and the README's table between its two markers
    python benchmarks/headline.py latents FILE.png RUN_NAIVE RUN_NC         # t-SNE of z_q side by side (thesis Figures 6.4 to 6.6)
"""
import contextlib, io, os, re, statistics, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data, evaluate, ncvqvae, prior

RESULTS = Path(__file__).resolve().parent.parent / "results"
NAIVE, *NC = evaluate.MODELS
METRICS = ("recon", "knn", "svm", "fid", "is", "cas")
# What the table of differences shows: our column, the published metric it stands beside.
SHOWN = (("recon", "recon"), ("knn", "knn"), ("knn_train_mode", "knn"), ("svm", "svm"), ("svm_train_mode", "svm"),
         ("fid", "fid"), ("is", "is"), ("cas", "cas"))
NOISE = ("\\* = more than seeds explain: over 2.084 (1/n + 1/m)^1/2 stds for n and m seeds, the std being the pooled one of the "
         "published seeds; for our FID and IS, which hang on our classifier, that of our own seeds.")


# What stands in a run's stage1_settings -> the schedule in words, how its later_settings begin. Runs that changed anything else
# (ablations, a prior of another schedule) are not the grid.
SCHEDULES = {evaluate.settings(ncvqvae.PRESETS[preset] | {"precision": precision}, ncvqvae.Stage1Config):
             (f"{preset}, {precision}", evaluate.settings(prior.PRESETS[preset] | {"precision": precision}, prior.PriorConfig))
             for preset in ("thesis", "fast") for precision in ("float32", "bf16")}


def grid():
    """{(dataset, schedule): {(method, augmentation): {seed: run}}} of the runs on complete data."""
    cells = {}
    for row in evaluate.read_runs(RESULTS / "runs.csv"):
        name, later = SCHEDULES.get(row["stage1_settings"], (None, ""))
        if row["complete_data"] and name and (row["later_settings"] == "none" or row["later_settings"].startswith(later)):
            models = cells.setdefault((row["dataset"], name), {})
            models.setdefault((row["method"], row["augmentation"]), {})[row["seed"]] = row
    return dict(sorted(cells.items()))


def mean(runs, key):
    values = [r[key] for r in runs.values() if r[key] is not None]
    return (statistics.mean(values), len(values)) if values else (None, 0)


def report(cells, theirs):
    """Print everything; returns the first table for the README."""
    compared = {k: models for k, models in cells.items() if NAIVE in models and len(models) > 1}
    def weight(key):                                                           # most models, then the thesis' schedule, then runs
        return len(compared[key]), key[1].startswith("thesis"), sum(map(len, compared[key].values()))
    compared = {k: models for k, models in compared.items()                    # each dataset once
                if k == max((other for other in compared if other[0] == k[0]), key=weight)}
    table = io.StringIO()
    with contextlib.redirect_stdout(table):
        headline(compared, theirs)
    print(f"# Naive against non-contrastive\n\n{table.getvalue()}")
    differences(compared, cells, theirs)
    agreements(compared, theirs)
    for title, *pair in (("The fast preset against the thesis' schedule", "thesis, bf16", "fast, bf16"),
                         ("bf16 against float32", "thesis, float32", "thesis, bf16")):
        print(f"\n# {title}\n\n{NOISE}\n")
        beside(cells, theirs, *pair)
    return table.getvalue()


def headline(cells, theirs):
    print("Naive → the best non-contrastive model by each metric's mean. FID and IS hang on the classifier: compare along a row.\n")
    print("| dataset | whose | " + " | ".join(METRICS) + " |\n" + "|---" * (len(METRICS) + 2) + "|")
    for (name, how), models in cells.items():
        ours, thesis = [], []
        for k in METRICS:
            best = min if k in evaluate.LOWER_IS_BETTER else max
            scores = {m: mean(runs, k) for m, runs in models.items() if mean(runs, k)[1]}
            others = {m: s for m, s in scores.items() if m != NAIVE}
            if NAIVE in scores and others:
                model = best(others, key=lambda m: others[m][0])
                ours.append(f"{scores[NAIVE][0]:.3f} → {others[model][0]:.3f}<br>{'-'.join(model)}, n {scores[NAIVE][1]}, {others[model][1]}")
            else:
                ours.append("")
            model = best(NC, key=lambda m: float(theirs[(name, *m, k)]["mean"]))
            thesis.append(f"{float(theirs[(name, *NAIVE, k)]['mean']):.3f} → {float(theirs[(name, *model, k)]['mean']):.3f}<br>{'-'.join(model)}")
        count = len([m for m in models if m != NAIVE])
        print(f"| {name} | ours: {how}, {count} of {len(NC)} models | " + " | ".join(ours) + " |")
        print(f"| {name} | published, four seeds | " + " | ".join(thesis) + " |")


def differences(compared, cells, theirs):
    """NC minus naive, per dataset and model, then what follows from these differences."""
    print(f"Non-contrastive minus naive: ours [published]. {NOISE}\n")
    header = "".join(f" {k.replace('_train_mode', ', train mode')} |" for k, _ in SHOWN)
    print(f"| dataset | schedule | model | seeds |{header}\n" + "|---" * (4 + len(SHOWN)) + "|")
    pairs = {}                                # (dataset, augmentation, key) -> [(our difference, its star), the published ones]
    for (name, how), models in compared.items():
        for model in (m for m in NC if m in models):
            line = []
            for key, metric in SHOWN:
                (ours, n), (base, m) = mean(models[model], key), mean(models[NAIVE], key)
                thesis, thesis_base = (float(theirs[(name, *who, metric)]["mean"]) for who in (model, NAIVE))
                published = thesis - thesis_base, star(thesis - thesis_base, 4, 4, evaluate.pooled_std(theirs, name, metric))
                text = "[{:+.3f}{}]".format(*published)
                if n and m:
                    found = ours - base, star(ours - base, n, m, noise(cells, theirs, name, metric))
                    text = "{:+.3f}{} {}".format(*found, text)
                    pairs.setdefault((name, model[1], key), []).append((found, published))
                line.append(text)
            print(f"| {name} | {how} | {'-'.join(model)} | {len(models[model])} | " + " | ".join(line) + " |")
    by_augmentation(compared, pairs, header)
    starred(pairs, header)


def by_augmentation(compared, pairs, header):
    """Means of the differences by augmentation, over the sets where all models ran."""
    whole = sorted({name for (name, _), models in compared.items() if len(models) == len(evaluate.MODELS)})
    print(f"\nThe same by augmentation, mean over the {2 * len(whole)} rows each has on the sets where all models ran: {', '.join(whole)}\n")
    print(f"| augmentation |{header}\n" + "|---" * (1 + len(SHOWN)) + "|")
    for augmentation in dict.fromkeys(a for _, a in NC):
        line = []
        for key, _ in SHOWN:
            both = [pair for name in whole for pair in pairs.get((name, augmentation, key), [])]
            line.append("{:+.3f} [{:+.3f}]".format(*(statistics.mean(side[0] for side in sides) for sides in zip(*both))) if both else "")
        print(f"| {augmentation} | " + " | ".join(line) + " |")


def starred(pairs, header):
    """How many differences, ours and published, are more than seeds explain."""
    print("\nStarred rows of all, ours [published]; a gain in both is a published one that ours has too:\n")
    print(f"| |{header}\n" + "|---" * (1 + len(SHOWN)) + "|")
    counts = {"rows": [], "gains": [], "losses": [], "gains in both": []}
    for key, metric in SHOWN:
        both = [pair for (_, _, k), found in pairs.items() if k == key for pair in found]
        better = -1 if metric in evaluate.LOWER_IS_BETTER else 1
        gains, losses = ([[sign * d > 0 and s == "*" for d, s in pair] for pair in both] for sign in (better, -better))
        counts["rows"].append(str(len(both)))
        for name, hits in (("gains", gains), ("losses", losses)):
            counts[name].append("{} [{}]".format(*map(sum, zip(*hits))) if both else "")
        counts["gains in both"].append(str(sum(map(all, gains))))
    for name, line in counts.items():
        print(f"| {name} | " + " | ".join(line) + " |")


def agreements(compared, theirs):
    """How many of the means above lie within noise of the published ones, and which do not."""
    print("\nEach model's mean against the published one (train mode: a throw-away copy after the authors' probe, ledger 12):\n")
    print("| metric | within noise | better | worse | which are worse |\n|---|---|---|---|---|")
    for key, metric in (("recon", "recon"), ("recon_train_mode", "recon"), *(pair for pair in SHOWN[1:] if pair[1] not in evaluate.BY_CLASSIFIER)):
        found = {"within noise": [], "better": [], "worse": []}
        for (name, _), models in compared.items():
            for model, runs in models.items():
                ours, n = mean(runs, key)
                if n:
                    judgement = evaluate.agreement(ours, n, metric, theirs[(name, *model, metric)], evaluate.pooled_std(theirs, name, metric))
                    found[judgement].append(f"{name} {'-'.join(model)}")
        print(f"| {key.replace('_train_mode', ', train mode')} | " + " | ".join(str(len(who)) for who in found.values())
              + f" | {', '.join(found['worse'])} |")


def beside(cells, theirs, one, other):
    """Schedule `one`, `other` and their difference, a model and the seeds both have at a time."""
    seconds = ("seconds_stage1", "seconds_stage2")
    print(f"| dataset | model | schedule | seeds | {' | '.join((*METRICS, *seconds))} |\n" + "|---" * 12 + "|")
    for name in dict.fromkeys(name for name, _ in cells):
        both = [cells.get((name, how), {}) for how in (one, other)]
        for model in (m for m in evaluate.MODELS if m in both[0] and m in both[1]):
            seeds = both[0][model].keys() & both[1][model].keys()
            a, b = ({s: side[model][s] for s in seeds} for side in both)
            if not seeds:
                continue
            for how, runs in ((one, a), (other, b)):
                cell = [f"{mean(runs, k)[0]:.{3 if k in METRICS else 0}f}" if mean(runs, k)[1] else "" for k in (*METRICS, *seconds)]
                print(f"| {name} | {'-'.join(model)} | {how} | {', '.join(map(str, sorted(seeds)))} | " + " | ".join(cell) + " |")
            cell = []
            for k in METRICS:
                (x, n), (y, m) = mean(a, k), mean(b, k)
                cell.append(f"{y - x:+.3f}{star(y - x, n, m, noise(cells, theirs, name, k))}" if n and m else "")
            for k in seconds:
                x, y = mean(a, k)[0], mean(b, k)[0]
                cell.append(f"{x / y:.2f} times as fast" if x and y else "")
            print(f"| {name} | {'-'.join(model)} | difference | | " + " | ".join(cell) + " |")


def noise(cells, theirs, name, metric):
    """Std over seeds: the published models' pooled one; FID and IS hang on the classifier, so there ours. None: unknown."""
    if metric not in evaluate.BY_CLASSIFIER:
        return evaluate.pooled_std(theirs, name, metric)
    groups = [[r[metric] for r in runs.values() if r[metric] is not None]
              for (dataset, _), models in cells.items() if dataset == name for runs in models.values()]
    variances = [statistics.variance(values) for values in groups if len(values) > 1]
    return statistics.mean(variances) ** 0.5 if variances else None


def star(difference, n, m, std):
    return "*" if std is not None and evaluate.beyond_noise(difference, n, m, std) else ""


def latents(out, run_dirs):
    """t-SNE of the test split's pooled z_q by class, a panel per run."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "savefig.dpi": 130})
    figure, axes = plt.subplots(1, len(run_dirs), figsize=(4.6 * len(run_dirs) + 1, 4.2))
    for axis, run_dir in zip(axes, run_dirs):
        model, first = evaluate.load_stage1(run_dir)
        config = first["config"]
        dataset = data.load_dataset(config["dataset"], os.environ.get("UCR_DIR", "datasets"))
        chosen = np.random.default_rng(0).permutation(len(dataset.x_test))[:1000]
        z, y = evaluate.encode_split(model, dataset.x_test)["pooled"].numpy()[chosen], dataset.y_test.numpy()[chosen]
        evaluate.scatter_classes(axis, evaluate.tsne(z), y, dataset.classes)
        axis.set(title=f"{dataset.name}, {config['method']}-{config['augmentation']}", xlabel="t-SNE 1", ylabel="t-SNE 2")
    if len(dataset.classes) <= 12:
        axes[-1].legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=2)
    figure.tight_layout()
    figure.savefig(out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["latents"]:
        latents(sys.argv[2], sys.argv[3:])
    else:
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            table = report(grid(), evaluate.read_published())
        data.write_atomic(RESULTS / "headline.md", lambda file: file.write(text.getvalue().encode()))
        readme = RESULTS.parent / "README.md"
        before, _, after = re.split(r"(?<=<!-- headline -->\n)(.*?)(?=<!-- end -->)", readme.read_text(), flags=re.S)
        data.write_atomic(readme, lambda file: file.write((before + table + after).encode()))
