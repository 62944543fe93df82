"""All samplers at equal numbers of trajectories: python -m benchmarks.samplers RUNS --output_dir F

RUNS: a folder of src.tune_sampler, or other runs of src.infer_gpt2 on one benchmark. The figure has
each sampler at its strength for coverage, as src.tune_sampler chooses it: coverage, vote and mean
accuracy against N, with 95 % intervals of the bootstrap over questions. Writes samplers-MODEL.csv
and .png and prints tables; with --base also the paired gain in coverage of each sampler over this
one.
"""

from collections import defaultdict

import numpy as np
import pandas as pd

from benchmarks.seeds import interval_cell, markdown, parser_of, save_panels
from src.runs.figure_style import GREEDY_LOOK, draw_curve, set_size_axis
from src.runs.finished_runs import finished_runs
from src.runs.tuning import TOLERANCE
from src.sampling.samplers import STRENGTHS
from utils.errors import UserError, reports_user_errors
from utils.metrics import measured, powers_of_two, question_scores

COLORS = {  # of Okabe and Ito
    "dropout": "#0072B2",
    "noise": "#D55E00",
    "svp": "#009E73",
    "weight_noise": "#CC79A7",
    "tokens": "#000000",
}
MEASURES = {
    "coverage": "coverage",
    "voting_accuracy": "majority vote",
    "mean_accuracy": "mean accuracy",
}


def outcomes_of(runs):
    """{(sampler, strength, N, measure): a value for each question and seed, (seeds, Q)}"""
    groups, outcomes = defaultdict(list), {}
    for run in runs:
        sampler = run.columns["sampler"]
        strength = float(run.columns[STRENGTHS[sampler]])
        groups[sampler, strength].append(run)
    for (sampler, strength), same in sorted(groups.items()):
        for n in powers_of_two(min(run.metrics["n_samples"] for run in same)):
            scores = [_scores(run, n) for run in same]
            for name in MEASURES:
                values = [[of_question[name] for of_question in of_run] for of_run in scores]
                outcomes[sampler, strength, n, name] = np.array(values, dtype=float)
    return outcomes


def _scores(run, n):
    records = [run.records[i] for i in sorted(run.records)]
    return [question_scores(r["predictions"], r["answer"], n) for r in records]


def frame_of(outcomes):
    """The frame of the csv: a row for each of ``outcomes``."""
    keys = ("sampler", "strength", "N", "measure")
    return pd.DataFrame(
        dict(zip(keys, key, strict=True))
        | {"seeds": len(values), "questions": values.shape[1]}
        | measured(values.mean(axis=0))
        for key, values in outcomes.items()
    )


def best_of(frame):
    """The rows of each sampler's strength with the highest coverage at the largest N, or the
    weakest that covers as much but for TOLERANCE, as src.tune_sampler chooses."""
    last = frame[(frame["measure"] == "coverage") & (frame["N"] == frame["N"].max())]
    highest = last.groupby("sampler")["value"].transform("max")
    near = last[last["value"] >= highest - TOLERANCE]
    best = near.groupby("sampler")["strength"].min().reset_index()
    return frame.merge(best, on=["sampler", "strength"])


def table_of(frame):
    """A markdown table: every sampler and strength at the largest N."""
    lines = [["sampler", "strength", *MEASURES.values()]]
    of_largest = frame[frame["N"] == frame["N"].max()]
    for (sampler, strength), group in of_largest.groupby(["sampler", "strength"], sort=False):
        row = group.set_index("measure")
        cells = [interval_cell(row.loc[name]) for name in MEASURES]
        lines.append([sampler, f"{strength:g}", *cells])
    return markdown(lines)


def gains_of(best, outcomes, base):
    """A markdown table: by how much each sampler of ``best_of`` covers more than ``base``."""
    last = best[(best["measure"] == "coverage") & (best["N"] == best["N"].max())]
    keys = [tuple(row) for row in last[["sampler", "strength", "N", "measure"]].to_numpy()]
    means = {key: outcomes[key].mean(axis=0) for key in keys}  # (Q,) each
    (of_base,) = (means[key] for key in keys if key[0] == base)
    lines = [["sampler", "strength", f"coverage over {base}"]]
    for key in keys:
        if key[0] != base:
            gain = interval_cell(measured(means[key] - of_base), sign="+")
            lines.append([key[0], f"{key[1]:g}", gain])
    return markdown(lines)


def draw(frame, greedy, title, path):
    """A panel for each measure, a line for each sampler; greedy: its accuracy in percent."""
    samplers = sorted(set(zip(frame["sampler"], frame["strength"], strict=True)))
    colors = {sampler: COLORS.get(sampler[0], "#777777") for sampler in samplers}
    entries = {f"{s} {x:g}": {"color": colors[s, x], "marker": "o"} for s, x in samplers}

    def draw_panel(axis, of_measure):
        for sampler, group in of_measure.groupby(["sampler", "strength"]):
            points = group.sort_values("N")[["value", "low", "high"]].to_numpy()
            draw_curve(axis, sorted(group["N"]), points, colors[sampler], "-")
        if greedy is not None:
            axis.axhline(greedy, **GREEDY_LOOK)
        set_size_axis(axis, sorted(frame["N"].unique()))
        axis.set_xlabel("N")

    panels = {name: frame[frame["measure"] == measure] for measure, name in MEASURES.items()}
    entries |= {} if greedy is None else {"greedy": GREEDY_LOOK}
    save_panels(path, title, "questions, %", panels, draw_panel, entries)


@reports_user_errors
def main(argv=None):
    parser = parser_of("samplers", __doc__)
    parser.add_argument("--base", help="a sampler over which gains are printed")
    args = parser.parse_args(argv)
    runs = finished_runs(args.runs)
    sampled = [run for run in runs if run.columns["sampler"] in STRENGTHS]
    if len({(run.columns["model"], run.columns["benchmark"]) for run in sampled}) != 1:
        raise UserError(f"{args.runs}: runs of one model on one benchmark are needed")
    outcomes = outcomes_of(sampled)
    frame = frame_of(outcomes)
    best = best_of(frame)
    if args.base and args.base not in set(best["sampler"]):
        fault = "no run has this sampler with the most trajectories"
        raise UserError(f"--base {args.base}: {fault} in {args.runs}")
    greedy = next(
        (r.metrics["by_n"]["1"]["mean_accuracy"]["value"] for r in runs if r.greedy), None
    )
    model, benchmark = sampled[0].columns["model"], sampled[0].columns["benchmark"]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / f"samplers-{model}"
    frame.to_csv(path.with_suffix(".csv"), index=False)
    title = f"{model}, {benchmark}: each sampler at its strength for coverage"
    draw(best, greedy, title, path.with_suffix(".png"))
    tables = [table_of(frame), "strengths for coverage:", table_of(best)]
    tables += [gains_of(best, outcomes, args.base)] if args.base else []
    print(f"greedy {greedy}", *tables, sep="\n\n")


if __name__ == "__main__":
    main()
