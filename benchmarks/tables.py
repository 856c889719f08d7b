"""Thesis Tables 6.1 to 6.7, README's table and those of the thesis' questions, from finished runs.

    python -m benchmarks.tables runs/ --export results/   # merged into runs.csv, logs/; then
                                                          # every table there, README's

A table holds the runs of one schedule.
"""

import statistics
from pathlib import Path

from benchmarks import compare
from benchmarks.rows import (
    BY_CLASSIFIER,
    LOWER_IS_BETTER,
    MODELS,
    NAIVE,
    RESULTS,
    export,
    fill,
    grid,
    judged,
    markdown,
    mean,
    minutes,
    of_preset,
    pooled_std,
    published,
    read_rows,
    seeds_of,
    star,
    values_of,
    write_text,
)
from data import THESIS_SETS, Parser, run_command

# Heading, metric, mean or best over the seeds.
THESIS_TABLES = (
    ("Table 6.1: mean reconstruction error", "recon", "mean"),
    ("Table 6.2: best reconstruction error", "recon", "best"),
    ("Table 6.3: mean KNN accuracy", "knn", "mean"),
    ("Table 6.3: mean SVM accuracy", "svm", "mean"),
    ("Table 6.4: best KNN accuracy", "knn", "best"),
    ("Table 6.4: best SVM accuracy", "svm", "best"),
    ("Table 6.5: best FID", "fid", "best"),
    ("Table 6.5: best IS", "is", "best"),
    ("Table 6.6: mean FID", "fid", "mean"),
    ("Table 6.6: mean IS", "is", "mean"),
    ("Table 6.7: mean CAS, the thesis' 1000 epochs (ledger 34)", "cas_thesis", "mean"),
    ("CAS by the schedule's own classifier, and of real series", "cas", "mean"),
    ("Reconstruction error as published: last mini-batch", "recon_last_batch", "mean"),
    ("KNN accuracy as published: train mode", "knn_train_mode", "mean"),
    ("SVM accuracy as published: train mode", "svm_train_mode", "mean"),
)
PRESET_ORDER = ("thesis", "fast", "best")


def thesis_tables(cells):
    """TABLES.md: the thesis' tables of a grid's cells, a section a schedule, one number a cell."""
    text = """# Thesis Tables 6.1 to 6.7

Ours [published], a mean over seeds or the best of them; published ones are of four seeds. \\* =
further from the published mean than seeds explain: over 2.33 stds for one seed of ours, 1.47 for
four, the std being the root mean square of the published models' stds over seeds. FID and IS hang
on the classifier, and the published one is another (ledger 15): no mark there. A cell in brackets
alone was not run. Where a seed ran twice by the thesis' schedule, that with 1000 epochs of CAS
counts. Minutes are of runs that drew samples.
"""
    by_preset = {(PRESET_ORDER.index(words.split(",")[0]), words) for _, words in cells}
    for _, words in sorted(by_preset):
        found = {}  # {dataset: models}
        for dataset in THESIS_SETS:
            if (dataset, words) in cells:
                found[dataset] = cells[dataset, words]
        text += f"\n## Schedule: {words}\n"
        for heading, metric, kind in THESIS_TABLES:
            text += table(heading, found, metric, kind)
        text += minutes_table(found)
    return text


def table(heading, found, metric, kind):
    """A dataset a row, a model a column. found: {dataset: models}. "" where no run has the metric.

    CAS has a column more: what real series reach.
    """
    lines = []
    with_real = metric == "cas"
    for dataset, models in found.items():
        seeds = seeds_of(models, [metric])
        if not seeds:
            continue
        line = [dataset]
        for model in MODELS:
            line.append(table_cell(models.get(model, {}), kind, dataset, model, metric))
        if with_real:
            real = [value for runs in models.values() for value in values_of(runs, "cas_real")]
            line.append(f"{statistics.mean(real):.3f}" if real else "")
        lines.append([*line, seeds])
    if not lines:
        return ""
    columns = ["dataset", *map(" ".join, MODELS), *(["real"] if with_real else []), "seeds"]
    return f"\n### {heading}\n\n{markdown(columns, lines)}"


def table_cell(runs, kind, dataset, model, metric):
    """`0.157 [0.110]*`: the mean or best of the runs, the published one, a mark beyond noise."""
    values = values_of(runs, metric)
    theirs = published(dataset, model, metric)
    bracket = f" [{theirs[kind]:.3f}]" if theirs else ""
    if not values:
        return bracket.strip()
    if kind == "best":
        best = min(values) if metric in LOWER_IS_BETTER else max(values)
        return f"{best:.3f}{bracket}"
    ours = statistics.mean(values)
    mark = ""
    if theirs and metric not in BY_CLASSIFIER:
        mark = star(ours - theirs["mean"], len(values), 4, pooled_std(dataset, metric))
    return f"{ours:.3f}{bracket}{mark}"


def minutes_table(found):
    """Minutes of a whole run, the mean over seeds, where they were spent, and hours of all runs."""
    lines = []
    total = 0.0
    for dataset, models in found.items():
        line = [dataset]
        processors = set()
        for model in MODELS:
            spent = []
            for row in models.get(model, {}).values():
                total += minutes(row)
                if row["later_settings"] != "none":  # all stages
                    spent.append(minutes(row))
                    processors.add(row["processor"] or "not logged")
            line.append(f"{statistics.mean(spent):.0f}" if spent else "")
        if processors:
            lines.append([*line, "; ".join(sorted(processors))])
    if not lines:
        return ""
    columns = ["dataset", *map(" ".join, MODELS), "processor"]
    return (
        f"\n### Minutes of a run, the other core busy too\n\n{markdown(columns, lines)}\n"
        f"All runs together, those of stage 1 alone too: {total / 60:.1f} hours.\n"
    )


README_COLUMNS = {"recon": "recon_last_batch", "KNN": "knn", "SVM": "svm"}


def readme_table(cells, model=("vibcreg", "slice")):
    """README's table, by `fast`: naive beside one non-contrastive model, published in brackets.

    recon is measured as the published one, of the last mini-batch (ledger 13).
    """
    compared = of_preset(cells, "fast")
    columns = ["set"]
    for name in README_COLUMNS:
        columns += [f"{name}, naive", f"{name}, NC"]
    lines = []
    for (dataset, _), models in compared.items():
        if model not in models:
            continue
        line = [dataset]
        for metric in README_COLUMNS.values():
            for who in (NAIVE, model):
                value, n = mean(models[who], metric)
                bracket = f"[{published(dataset, who, metric)['mean']:.2f}]"
                line.append(f"{value:.2f} {bracket}" if n else bracket)
        spent = []
        for who in (NAIVE, model):
            spent += [minutes(row) for row in models[who].values() if row["cas"] is not None]
        line.append(f"{statistics.mean(spent):.0f}" if spent else "")
        lines.append(line)

    def not_worse(metric):
        found = judged(compared, metric)
        total = sum(map(len, found.values()))
        return f"{total - len(found['worse'])} of {total}"

    return (
        f"{markdown([*columns, 'minutes'], lines)}\n"
        "Over all sets and seven models, within noise of the published mean or better: recon "
        f"{not_worse('recon_last_batch')}, KNN {not_worse('knn')}, SVM {not_worse('svm')}; "
        f"probed the published way, KNN {not_worse('knn_train_mode')}, SVM "
        f"{not_worse('svm_train_mode')}. {compare.higher_fid(compare.differences(compared))}"
    )


def write_tables(out):
    """Every table made from out/runs.csv, and, of our own results/, that of README.md."""
    rows = read_rows(out / "runs.csv")
    cells = grid(rows)
    write_text(out / "TABLES.md", thesis_tables(cells))
    write_text(out / "headline.md", compare.headline(cells))
    write_text(out / "samples.md", compare.samples(rows))
    write_text(out / "presets.md", compare.presets(cells))
    write_text(out / "departures.md", compare.departures(rows))
    write_text(out / "ablation.md", compare.ablation(rows))
    if out.resolve() == RESULTS:  # beside other folders lie other READMEs
        fill(RESULTS.parent / "README.md", {"results": readme_table(cells)})
    fill(out / "README.md", compare.questions(cells))


def main():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", help="folders of runs")
    parser.add_argument(
        "--export",
        metavar="DIR",
        type=Path,
        required=True,
        help="merge the runs into DIR/runs.csv and make every table from it",
    )
    args = parser.parse_args()
    if args.folders:
        export(args.folders, args.export)
    write_tables(args.export)


if __name__ == "__main__":
    run_command(main)
