"""What choosing gains, over several seeds: python -m benchmarks.choices RUNS --output_dir FOLDER

RUNS: a folder with runs of src.infer_gpt2_rm or src.infer_llama_rm with a pool judge and --signals
true, one for each model, benchmark and seed. A question counts with the mean over the seeds;
intervals are of the bootstrap over questions, 95 %; gains are paired. Writes choices.csv and
choices.png and prints a table a model.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from src.runs.figure_style import (
    COVERAGE_LOOK,
    GREEDY_LOOK,
    STYLE,
    draw_curve,
    draw_legend,
    load_matplotlib,
    panel_grid,
    set_size_axis,
)
from src.runs.finished_runs import finished_runs
from src.runs.tables import METHODS, choice_frame
from src.search.voting import aggregate
from utils.answers import is_right
from utils.errors import UserError, reports_user_errors
from utils.metrics import measured

COLORS = {"majority": "#000000", "greedy_rerank": "#009E73", "pool_judge": "#D55E00"}
SHOWN = {"majority": "vote", "greedy_rerank": "greedy reranks", "pool_judge": "pool judge"}


def hits_of(runs):
    """{(N, method): whether it is right, the mean over runs, (Q,)}, "coverage" included."""
    found = defaultdict(list)
    for run in runs:
        records = [run.records[i] for i in sorted(run.records)]
        for n in map(int, run.metrics["by_n"]):
            chosen = [aggregate(record, n) for record in records]
            of_n = {name: [_hit(c[name], r) for c, r in zip(chosen, records, strict=True)]
                    for name in chosen[0]}  # fmt: skip
            of_n["coverage"] = [any(record["correct"][:n]) for record in records]
            for name, values in of_n.items():
                found[n, name].append(np.array(values, dtype=float))
    return {key: np.mean(values, axis=0) for key, values in found.items()}


def _hit(number, record):
    return is_right(number, record["answer"])


def rows_of(model, benchmark, runs):
    """The rows of the csv for one model and benchmark."""
    hits, costs = hits_of(runs), _costs(runs)
    for (n, name), values in sorted(hits.items()):
        row = {"model": model, "benchmark": benchmark, "questions": len(values)}
        row |= {"seeds": len(runs), "N": n, "method": name} | measured(values)
        for base in ("majority", "greedy"):
            gain = measured(values - hits[n, base])
            row |= {f"over_{base}_{key}": x for key, x in gain.items()}
        yield row | {"ms": costs.get((n, name))}


def _costs(runs):
    """{(N, method): milliseconds a question, the mean over runs}."""
    frame = choice_frame(runs)
    frame = frame[frame["method"].isin(METHODS)]
    means = frame.groupby(["budget", frame["method"].astype(str)])["ms"].mean()
    return {(int(n), name): round(ms, 1) for (n, name), ms in means.items()}


def table_of(frame):
    """A markdown table of one model: a row a benchmark and N."""
    lines = [["benchmark", "N", "greedy", *SHOWN.values(), "judge over vote", "judge over greedy",
              "coverage"]]  # fmt: skip
    for (benchmark, n), group in frame.groupby(["benchmark", "N"], sort=False):
        row = group.set_index("method")
        cells = [f"{row.loc[name, 'value']:.1f}" for name in ("greedy", *SHOWN)]
        gains = [_gain(row.loc["pool_judge"], base) for base in ("majority", "greedy")]
        lines.append([benchmark, n, *cells, *gains, f"{row.loc['coverage', 'value']:.1f}"])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _gain(row, base):
    value, low, high = (row[f"over_{base}_{key}"] for key in ("value", "low", "high"))
    return f"{value:+.1f} [{low:.1f}, {high:.1f}]"


def draw(frame, path):
    """Accuracy against N of every model and benchmark."""
    panels = list(frame.groupby(["model", "benchmark"], sort=False))
    title = "How many questions each choice gets right"
    with load_matplotlib().rc_context(STYLE):
        figure, axes = panel_grid(title, "right, %", len(panels))
        for axis, ((model, benchmark), group) in zip(axes, panels, strict=True):
            axis.set_title(f"{model}, {benchmark}")
            _draw_panel(axis, group)
        entries = {label: {"color": COLORS[name], "marker": "o"}
                   for name, label in SHOWN.items()}  # fmt: skip
        looks = {"greedy": GREEDY_LOOK, "coverage": COVERAGE_LOOK}
        draw_legend(figure, entries | looks, columns=5)
        figure.savefig(path, dpi=200)


def _draw_panel(axis, group):
    sizes = sorted(group["N"].unique())
    by_method = {name: rows.sort_values("N") for name, rows in group.groupby("method")}
    for name in SHOWN:
        points = by_method[name][["value", "low", "high"]].to_numpy()
        draw_curve(axis, sizes, points, COLORS[name], "-")
    axis.axhline(by_method["greedy"]["value"].iloc[0], **GREEDY_LOOK)
    axis.plot(sizes, by_method["coverage"]["value"], **COVERAGE_LOOK)
    set_size_axis(axis, sizes)
    axis.set_xlabel("N")


@reports_user_errors
def main(argv=None):
    parser = argparse.ArgumentParser(prog="benchmarks.choices", description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/choices"))
    args = parser.parse_args(argv)
    groups = defaultdict(list)
    for run in finished_runs(args.runs):
        groups[run.columns["model"], run.columns["benchmark"]].append(run)
    rows = [row for key, runs in groups.items() for row in rows_of(*key, runs)]
    frame = pd.DataFrame(rows)
    if "pool_judge" not in set(frame["method"]):
        raise UserError(f"{args.runs}: no run of a pool judge; give --prm_id one")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    frame.to_csv(args.output_dir / "choices.csv", index=False)
    draw(frame[frame["N"] > 1], args.output_dir / "choices.png")
    for model, of_model in frame[frame["N"] > 1].groupby("model", sort=False):
        print(f"\n{model}\n\n{table_of(of_model)}")


if __name__ == "__main__":
    main()
