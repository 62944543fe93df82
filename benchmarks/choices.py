"""What choosing and searching gain, over several seeds: python -m benchmarks.choices RUNS

RUNS: a folder with runs of src.infer_gpt2_rm or src.infer_llama_rm. For each model, benchmark and
seed there are best-of-N runs with --signals true, of one or several samplers and reward models, and
searches; other runs are ignored. A question counts with the mean over the seeds. Intervals are of
the bootstrap over questions, 95 %; gains are paired.

choices.csv has every method at every N with its cost of a question: milliseconds, and passes, the
generator's thoughts and answer tokens. Its gains are over greedy and over the vote of N
trajectories; mended and lost are the shares of greedy's wrong and right answers, in percent, that
the method turns into right and wrong ones. equal_cost.csv has what every method reaches for the
cost of the vote of 4, 16 and 64 trajectories: at its largest N that costs no more. Its gains are
over greedy and over this vote; it has mended and lost, too.
choices.png, choices_ms.png and the printed tables show the methods of --shown.
"""

from itertools import product

import numpy as np
import pandas as pd

from benchmarks.points import BY, COSTS, GREEDY, affordable, all_points
from benchmarks.seeds import interval_cell, markdown, parser_of, save_panels
from src.runs.figure_style import (
    COVERAGE_LOOK,
    GREEDY_LOOK,
    GREY,
    draw_curve,
    set_log_axis,
    set_size_axis,
)
from src.runs.finished_runs import finished_runs
from src.runs.tables import NOT_MEASURED
from utils.errors import UserError, reports_user_errors, warn
from utils.metrics import measured

SIZES = (4, 16, 64)  # of the votes whose cost is a budget
SHOWN = ("majority", "greedy_rerank", "pool_judge")
LABELS = {
    "majority": "vote",
    "greedy_rerank": "greedy reranks",
    "pool_judge": "pool judge",
    "best_of_n": "best-of-N",
    "dvts": "DVTS",
}
COLORS = ("#000000", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#E69F00")  # of SHOWN, in order
BASES = ("majority", "greedy")  # over which gains are measured


def label(method):
    """How tables and figures name a method: ``DVTS agreement``."""
    base, space, rest = method.partition(" ")
    return LABELS.get(base, base.replace("_", " ")) + space + rest


def rows_of(points):
    """The rows of choices.csv for the Points of one model and benchmark."""
    for (name, n), point in sorted(points.items()):
        sampler = _sampler(name)
        vote = points.get((f"majority{BY}{sampler}" if sampler else "majority", n))
        row = {"N": n, "size": point.size, "method": name}
        yield row | _measures(point, vote, points[GREEDY]) | point.cost


def _sampler(method):
    return method.partition(BY)[2]


def equal_cost_rows(points, vote):
    """The rows of equal_cost.csv; ``vote``: the method whose cost at SIZES is the budget.

    A method that costs more at every N has no row, nor does one of another sampler than the vote.
    """
    methods = sorted({name for name, _ in points if _sampler(name) in ("", _sampler(vote))})
    for kind, size in product(COSTS, SIZES):
        base = points.get((vote, size))
        if base is None or kind not in base.cost:
            continue
        shared = {"equal": kind, "vote_N": size, "budget": base.cost[kind]}
        for name in methods:
            n = affordable(points, name, kind, base.cost[kind])
            if n is not None:
                point = points[name, n]
                row = shared | {"method": name, "N": n, "size": point.size}
                yield row | _measures(point, base, points[GREEDY]) | point.cost


def _measures(point, vote, greedy):
    """Accuracy and gains of a Point over two others, of the same seeds; vote: may be None."""
    row = {"questions": len(point.hits), "seeds": point.seeds} | measured(point.hits)
    for name, base in zip(BASES, (vote, greedy), strict=True):
        comparable = base is not None and base.seeds == point.seeds
        gain = measured(point.hits - base.hits) if comparable else NOT_MEASURED
        row |= {f"over_{name}_{key}": x for key, x in gain.items()}
    comparable = greedy.seeds == point.seeds
    wrong, right = 1 - greedy.hits, greedy.hits
    return row | {
        "mended": _percent(point.hits, wrong) if comparable else None,
        "lost": _percent(1 - point.hits, right) if comparable else None,
    }


def _percent(shares, weights):
    """The mean of ``shares`` (Q,) by ``weights`` (Q,), or None without any weight."""
    return round(100 * float(np.average(shares, weights=weights)), 2) if weights.any() else None


def frame_of(rows_by_panel):
    """A frame of {(model, benchmark): rows}."""
    return pd.DataFrame(
        {"model": model, "benchmark": benchmark} | row
        for (model, benchmark), rows in rows_by_panel.items()
        for row in rows
    )


def tables_of(choices, equal, shown):
    """The markdown tables of one model: accuracies, gains at equal N, gains at equal ms.

    choices, equal: its rows of the csv files.
    """
    vote, *others = shown
    at_n = _by_key(choices, "benchmark", "N", "method")
    at_ms = _by_key(equal[equal["equal"] == "ms"], "benchmark", "vote_N", "method")
    lines = product(choices["benchmark"].unique(), SIZES)
    lines = [line for line in lines if (*line, vote) in at_n]
    names = list(map(label, others))
    head = ["benchmark", "N", "greedy", label(vote), *names, "coverage", "ms"]
    head += [f"{name}, equal ms" for name in names]
    accuracies = [_accuracies(*line, at_n, at_ms, shown) for line in lines]
    gains = [_gain_table(lines, rows, others) for rows in (at_n, at_ms)]
    return [markdown([head, *accuracies]), *gains]


def _accuracies(benchmark, n, at_n, at_ms, shown):
    """The cells of one line. Greedy, vote and coverage are the same at equal N and at equal ms."""
    vote, *others = shown
    base = at_n[benchmark, n, vote]
    plain = [at_n[benchmark, *reversed(GREEDY)], base]
    covered = at_n[benchmark, n, vote.replace("majority", "coverage")]
    cells = [benchmark, n, *(f"{row['value']:.1f}" for row in plain)]
    cells += [_accuracy(at_n.get((benchmark, n, name))) for name in others]
    cells += [f"{covered['value']:.1f}", f"{base['ms']:.1f}"]
    affordable_rows = [at_ms.get((benchmark, n, name)) for name in others]
    return cells + [_accuracy(row) + (f" ({row['N']})" if row else "") for row in affordable_rows]


def _gain_table(lines, rows, methods):
    """A markdown table of gains over the vote and greedy. lines: (benchmark, N)."""
    pairs = list(product(methods, BASES))
    head = ["benchmark", "N", *(f"{label(name)} over {label(base)}" for name, base in pairs)]
    gains = ([_gain(rows.get((*line, name)), base) for name, base in pairs] for line in lines)
    return markdown([head, *([*line, *cells] for line, cells in zip(lines, gains, strict=True))])


def _by_key(frame, *columns):
    """{values of some columns: row}"""
    return {tuple(row[c] for c in columns): row for row in frame.to_dict("records")}


def _accuracy(row):
    """A cell; bold where the intervals of the gains over the vote and over greedy are above 0."""
    if row is None:
        return "-"
    better = all(row[f"over_{base}_low"] > 0 for base in BASES)
    return f"**{row['value']:.1f}**" if better else f"{row['value']:.1f}"


def _gain(row, base):
    known = row is not None and pd.notna(row[f"over_{base}_value"])
    return interval_cell(row, f"over_{base}_", "+") if known else "-"


def draw(frame, x, shown, path):
    """Accuracy against ``x``, a column of the frame, N or ms, a panel a model and benchmark."""
    entries = {label(name): {"color": COLORS[k], "marker": "o"} for k, name in enumerate(shown)}
    entries |= {"greedy": GREEDY_LOOK | ({"marker": "D"} if x == "ms" else {})}
    entries |= {"coverage": COVERAGE_LOOK}
    groups = frame.dropna(subset=x).groupby(["model", "benchmark"], sort=False)
    panels = {", ".join(key): dict(list(of.sort_values(x).groupby("method"))) for key, of in groups}
    title = "How many questions each choice gets right"

    def draw_panel(axis, by_method):
        _draw_panel(axis, by_method, x, shown)

    save_panels(path, title, "right, %", panels, draw_panel, entries)


def _draw_panel(axis, by_method, x, shown):
    """by_method: {method: its rows by growing x}."""
    coverage = by_method[shown[0].replace("majority", "coverage")]
    axis.plot(coverage[x], coverage["value"], **COVERAGE_LOOK)
    for color, name in zip(COLORS, shown, strict=False):
        if name in by_method:
            rows = by_method[name]
            points = rows[["value", "low", "high"]].to_numpy()
            draw_curve(axis, rows[x].to_numpy(), points, color, "-")
    greedy = by_method["greedy"]
    axis.axhline(greedy["value"].iloc[0], **GREEDY_LOOK)
    if x == "ms":
        axis.plot(greedy[x], greedy["value"], "D", color=GREY)
        set_log_axis(axis, (1, 3))
        axis.set_xlabel("milliseconds a question")
    else:
        set_size_axis(axis, list(coverage[x]))
        axis.set_xlabel(x)


def check_shown(shown, panels):
    """Raises UserError where a method to show is unknown, or the first is no vote at SIZES.

    Warns of those that lack seeds which others have.
    """
    vote = shown[0]
    if vote.partition(" ")[0] != "majority":
        raise UserError(f"--shown must begin with the vote, majority, not {vote}")
    if len(shown) > len(COLORS):
        raise UserError(f"--shown takes at most {len(COLORS)} methods, not {len(shown)}")
    known = sorted({name for points in panels.values() for name, _ in points})
    for name in shown:
        if name not in known:
            raise UserError(f"--shown {name}: no run has it; there are {', '.join(known)}")
        if _sampler(name) not in ("", _sampler(vote)):
            raise UserError(f"--shown {name}: another sampler than that of {vote}, the budget")
    for names, points in panels.items():
        if not any("ms" in points[vote, n].cost for n in SIZES if (vote, n) in points):
            sizes = f"{vote} of {' or '.join(map(str, SIZES))} trajectories"
            fault = f"no {sizes} has a measured cost (saved pools have none)"
            raise UserError(f"{' on '.join(names)}: {fault}")
        seeds = max(point.seeds for point in points.values())
        for (name, n), point in points.items():
            if name in shown and point.seeds < seeds:
                missing = f"{name} of {n} has {point.seeds} of {seeds} seeds"
                warn(f"{' on '.join(names)}: {missing}")


@reports_user_errors
def main(argv=None):
    parser = parser_of("choices", __doc__)
    methods = "methods of figures and tables, the vote first; default: " + " ".join(SHOWN)
    parser.add_argument("--shown", nargs="+", default=SHOWN, metavar="METHOD", help=methods)
    args = parser.parse_args(argv)
    panels = all_points([run for run in finished_runs(args.runs) if run.chooses])
    check_shown(args.shown, panels)
    choices = frame_of({key: rows_of(points) for key, points in panels.items()})
    equal = frame_of(
        {key: equal_cost_rows(points, args.shown[0]) for key, points in panels.items()}
    )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, frame in {"choices": choices, "equal_cost": equal}.items():
        frame.to_csv(args.output_dir / f"{name}.csv", index=False)
    several = (choices["N"] > 1) | (choices["method"] == "greedy")
    draw(choices[several], "N", args.shown, args.output_dir / "choices.png")
    draw(choices, "ms", args.shown, args.output_dir / "choices_ms.png")
    titles = ("", "Gains at equal N:\n\n", "Gains at equal milliseconds:\n\n")
    for model, of_model in choices.groupby("model", sort=False):
        tables = tables_of(of_model, equal[equal["model"] == model], args.shown)
        print(f"\n{model}", *map("".join, zip(titles, tables, strict=True)), sep="\n\n")


if __name__ == "__main__":
    main()
