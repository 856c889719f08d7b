"""Thesis Tables 6.1 to 6.7 and README's, from finished runs beside the published values.

    python -m benchmarks.tables runs/                     # Tables 6.1 to 6.7 of these runs
    python -m benchmarks.tables runs/ --export results/   # merged into runs.csv, logs/; then
                                                          # every table there, README's

Rows of other settings never share a table.
"""

import re
import statistics
from pathlib import Path

from benchmarks import compare
from benchmarks.rows import (
    BY_CLASSIFIER,
    COLUMNS_BESIDE,
    LOWER_IS_BETTER,
    MODELS,
    NAIVE,
    RECON,
    agreement,
    export,
    find_runs,
    grid,
    is_whole,
    judged,
    markdown,
    mean,
    minutes,
    one_schedule,
    pooled_std,
    published,
    read_rows,
    values_of,
    write_text,
)
from data import Parser, run_command

PROBED = (*COLUMNS_BESIDE["knn"], *COLUMNS_BESIDE["svm"])
STAGE1_TABLES = (
    ("6.1", "Mean reconstruction error", "mean", RECON),
    ("6.2", "Best reconstruction error", "best", RECON),
    ("6.3", "Mean probe accuracy", "mean", PROBED),
    ("6.4", "Best probe accuracy", "best", PROBED),
)
SAMPLE_TABLES = (
    ("6.5", "Best FID and IS", "best", ("fid", "is")),
    ("6.6", "Mean FID and IS", "mean", ("fid", "is")),
    ("6.7", "Mean CAS", "mean", ("cas_thesis",)),
)


def thesis_tables(rows):
    """TABLES.md: thesis Tables 6.1 to 6.7, ours, the published value, and a judgement.

    Stage 1's settings part all tables, the later ones 6.5 to 6.7.
    """
    text = (
        "Ours: mean ± std over n seeds, or the best of n. [Published: four seeds, train-mode "
        "probes (ledger 12), another FCN (ledger 15).] Within noise: under 2.33 pooled stds of "
        "the published seeds for one seed of ours, 1.47 for four.\n\n"
    )
    complete = []
    left_out = set()
    for row in rows:
        if not is_whole(row):
            left_out.add(row["dataset"])
        elif (row["method"], row["augmentation"]) in MODELS:
            complete.append(row)
    for first in sorted({row["stage1_settings"] for row in complete}):
        chosen = [row for row in complete if row["stage1_settings"] == first]
        heading = f"## Stage 1: {first or 'the schedule of the thesis'}"
        text += f"{heading}\n\n"
        for table in STAGE1_TABLES:
            text += one_table(*table, each_stage1_once(chosen))
        for later in sorted({row["later_settings"] for row in chosen} - {"none"}):
            alike = [row for row in chosen if row["later_settings"] == later]
            text += f"{heading}; then: {later or 'the schedule of the thesis'}\n\n"
            for table in SAMPLE_TABLES:
                text += one_table(*table, alike)
    if left_out:
        names = ", ".join(sorted(left_out))
        text += f"Left out of every mean, their data is incomplete: {names}.\n"
    return text


def each_stage1_once(rows):
    """One row per stage 1, however many priors it has; one that was probed in train mode wins."""
    found = {}
    for row in sorted(rows, key=lambda row: row["knn_train_mode"] is not None):
        found[row["dataset"], row["method"], row["augmentation"], row["seed"]] = row
    return list(found.values())


def one_table(number, title, kind, metrics, rows):
    """A dataset per row, a model per column, a line per metric in each cell."""
    lines = []
    for dataset in sorted({row["dataset"] for row in rows}):
        line = [dataset]
        for model in MODELS:
            runs = {}
            for row in rows:
                if (row["dataset"], row["method"], row["augmentation"]) == (dataset, *model):
                    runs[row["seed"]] = row
            values = [table_cell(runs, kind, dataset, model, metric) for metric in metrics]
            if not runs:
                values = dict.fromkeys(values)  # the published value once
            line.append("<br>".join(values))
        lines.append(line)
    columns = ["dataset", *map(" ".join, MODELS)]
    return f"### Table {number}: {title} ({', '.join(metrics)})\n\n{markdown(columns, lines)}\n"


def table_cell(runs, kind, dataset, model, metric):
    """`0.157 ± 0.010 (n 2) [0.110 ± 0.019], worse`, or the best, which is not judged."""
    values = values_of(runs, metric)
    n = len(values)
    theirs = published(dataset, model, metric)
    bracket = ""
    if theirs and kind == "mean":
        bracket = f"[{theirs['mean']:.3f} ± {theirs['std']:.3f}]"
    elif theirs:
        bracket = f"[{theirs['best']:.3f}]"
    if n == 0:
        return bracket
    if kind == "best":
        best = min(values) if metric in LOWER_IS_BETTER else max(values)
        return f"{best:.3f} (n {n}) {bracket}".strip()
    ours = statistics.mean(values)
    spread = f" ± {statistics.stdev(values):.3f}" if n > 1 else ""
    cell = f"{ours:.3f}{spread} (n {n}) {bracket}".strip()
    if not theirs or metric in BY_CLASSIFIER:
        return cell
    return f"{cell}, {agreement(ours, n, metric, theirs, pooled_std(dataset, metric))}"


README_COLUMNS = {  # {heading: (our metric, the published one)}
    "recon": ("recon_train_mode_last_batch", "recon"),
    "KNN": ("knn", "knn"),
    "SVM": ("svm", "svm"),
}


def readme_table(cells, model=("vibcreg", "slice")):
    """README's table: naive and one non-contrastive model, a row each, published means in brackets.

    recon is measured as the published one: after a train-mode pass, of the last mini-batch (ledger
    12, 13).
    """
    compared = one_schedule(cells)
    lines = []
    for (dataset, words), models in compared.items():
        if model not in models:
            continue
        for who in (NAIVE, model):
            line = [f"{dataset}, {words.split(',')[0]}", "-".join(who).replace("-none", "")]
            for ours, theirs in README_COLUMNS.values():
                value, n = mean(models[who], ours)
                cell = f"{value:.2f}" if n else ""
                cell += f" [{published(dataset, who, theirs)['mean']:.2f}]"
                line.append(cell)
            spent = [minutes(row) for row in models[who].values() if row["cas"] is not None]
            line.append(f"{statistics.mean(spent):.0f}" if spent else "")
            lines.append(line)
    counts = []
    for name in ("recon", "KNN", "SVM"):
        found = judged(compared, name.lower())
        total = sum(map(len, found.values()))
        counts.append(f"{name} {total - len(found['worse'])} of {total}")
    return (
        f"{markdown(['set, preset', 'model', *README_COLUMNS, 'minutes'], lines)}\n"
        f"Within noise of the published mean, or better, of all models run: {', '.join(counts)}.\n"
    )


def write_tables(out):
    """Every table made from out/runs.csv, and README's, which stands between two markers."""
    rows = read_rows(out / "runs.csv")
    cells = grid(rows)
    write_text(out / "TABLES.md", thesis_tables(rows))
    write_text(out / "headline.md", compare.headline(cells))
    write_text(out / "presets.md", compare.presets(cells))
    write_text(out / "departures.md", compare.departures(rows))
    write_text(out / "ablation.md", compare.ablation(rows))
    readme = out.resolve().parent / "README.md"
    if readme.exists():
        table = readme_table(cells)
        between = r"(?<=<!-- results -->\n).*?(?=<!-- end -->)"
        text = re.sub(between, lambda _: table, readme.read_text(), flags=re.DOTALL)
        write_text(readme, text)


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", help="folders of runs")
    parser.add_argument(
        "--export",
        metavar="DIR",
        type=Path,
        help="merge the runs into DIR/runs.csv and make every table from it",
    )
    args = parser.parse_args()
    if not args.export:
        print(thesis_tables(find_runs(args.folders)))
        return
    if args.folders:
        export(args.folders, args.export)
    write_tables(args.export)


if __name__ == "__main__":
    run_command(main)
