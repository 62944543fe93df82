"""Tables of all finished runs below a folder: what is measured, how it was chosen, what it costs.

Sampling runs (src.infer_gpt2, src.infer_llama) give results.*, choosing runs (src.infer_*_rm) give
choices.*. Percent over questions with 95 % bootstrap intervals; gains are paired differences over
the same questions.
"""

from pathlib import Path

import pandas as pd

from src.runs.finished_runs import finished_runs
from src.search.voting import aggregate
from utils.files import write_text
from utils.metrics import majority_vote, measured
from utils.records import gold_of

RUN = ["model", "benchmark", "questions", "sampler", "dropout_p", "noise_std", "seed"]
SHOWN_RUN = ["model", "benchmark", "questions", "sampler", "seed"]  # parameter beside the sampler
MEASURES = ["coverage", "voting_accuracy", "mean_accuracy", "unparsable"]
SHOWN = {"coverage": "coverage", "voting_accuracy": "vote"}
# What each method needs beside the sampling of its pool, by the counters of src.search.best_of_n.
METHODS = {
    "majority": (),
    "best_of_n": ("reward",),
    "weighted_vote": ("reward",),
    "bayesian_vote": ("candidate",),
    "bayesian_geometric": ("candidate",),
    "reward_bayesian": ("reward", "candidate"),
    "beam_search": ("reward",),
}
SHOWN_POOL = ["prm", *SHOWN_RUN[1:], "N"]
COST = ["trajectories", "latent_passes", "answer_tokens", "ms"]
GAINS = {"gain": "gain over vote", "greedy_gain": "gain over greedy"}
SUMMARY_LINES = 12


def sampling_frame(runs):
    """A row for each N of each sampling run: its measures, with the ends of their intervals."""
    rows = []
    for run in runs:
        for n, summary in run.metrics["by_n"].items():
            row = run.columns | {"N": int(n)}
            for name in MEASURES:
                row |= _interval(name, summary[name])
            rows.append(row | {"seconds": run.metrics["speed"].get("seconds")})
    return pd.DataFrame(rows).sort_values([*RUN, "N"], ignore_index=True)


def _interval(name, measure):
    return {name: measure["value"], f"{name}_low": measure["low"], f"{name}_high": measure["high"]}


def choice_frame(runs):
    """A row for each N and method of each choosing run: accuracy, gains, cost of a question."""
    greedy = {run.model_key: run for run in runs if run.greedy}
    choosing = [run for run in runs if run.chooses]
    by_size = sorted(choosing, key=lambda run: run.metrics["n_samples"])
    pools = {run.pool_key(): run for run in by_size if not run.beams}  # the largest of each key
    rows = [row for run in choosing for row in _choices(run, pools, greedy.get(run.model_key))]
    frame = pd.DataFrame(rows)
    frame["method"] = pd.Categorical(frame["method"], list(METHODS))  # sorts in this order
    return frame.sort_values(["prm", *RUN[1:], "budget", "method", "N"], ignore_index=True)


def _choices(run, pools, greedy):
    """The rows of one run. With one trajectory all methods agree: only the vote gets a row."""
    shared = {"prm": _reward_model_name(run.settings)} | run.columns
    for n, summary in run.metrics["by_n"].items():
        spent = run.metrics["speed"].get("per_question", {}).get(n, {})
        over_greedy = _gains_over_greedy(run, int(n), greedy)
        for method in METHODS:
            measure = summary.get("voting_accuracy" if method == "majority" else method)
            if measure is None or (n == "1" and method not in ("majority", "beam_search")):
                continue
            row = shared | _pool_size(run, n) | {"method": method} | _interval("accuracy", measure)
            row["coverage"] = summary["coverage"]["value"]
            gain = summary.get(f"{method}_gain")
            if run.beams:
                gain = _gain_over_vote(run, pools.get(run.pool_key()), row["budget"])
            row |= _interval("gain", gain) if gain else {}
            row |= _interval("greedy_gain", over_greedy[method]) if over_greedy else {}
            yield row | _cost(spent, METHODS[method])


def _pool_size(run, n):
    """N as tables show it, and ``budget``, the trajectories that equal it in cost."""
    if not run.beams:
        return {"N": n, "budget": int(n)}
    beams, proposals = run.settings["num_beams"], run.settings["num_beam_candidates"]
    return {"N": f"{beams} x {proposals}", "budget": beams * proposals}


def _reward_model_name(settings):
    return Path(settings["prm_id"]).name + (" (mean)" if settings["score_by"] == "mean" else "")


def _gain_over_vote(run, pool, n):
    """The paired difference of the best beam to the vote of as many trajectories, or None."""
    if pool is None or pool.metrics["n_samples"] < n:
        return None
    samples = pool.records
    votes = {i: majority_vote(samples[i]["predictions"][:n]) for i in samples}
    return _paired(run.records, {i: beam["vote"] for i, beam in run.records.items()}, votes)


def _gains_over_greedy(run, n, greedy):
    """{method: its paired difference to one greedy trajectory}; empty without a greedy run."""
    if greedy is None:
        return {}
    base = {i: record["predictions"][0] for i, record in greedy.records.items()}
    if run.beams:
        votes = {i: record["vote"] for i, record in run.records.items()}
        return {"beam_search": _paired(run.records, votes, base)}
    score_by = run.settings["score_by"]
    chosen = pd.DataFrame({i: aggregate(r, n, score_by) for i, r in run.records.items()}).T
    return {name: _paired(run.records, chosen[name], base) for name in chosen}


def _paired(records, answers, base):
    """The difference of two ways to answer the questions of some records, both {idx: number}."""
    gold = {i: gold_of(record) for i, record in records.items()}
    return measured([float(answers[i] == gold[i]) - float(base[i] == gold[i]) for i in records])


def _cost(spent, parts):
    """The cost of a question for a method that needs ``parts``; empty for a saved pool."""
    if "trajectories" not in spent:
        return {}
    idle = [part for part in ("reward", "candidate") if part not in parts]
    seconds = spent["seconds"] - sum(spent.get(f"{part}_seconds", 0) for part in idle)
    read = spent.get("candidate_tokens", 0) if "candidate" in parts else 0
    return {
        "trajectories": round(spent["trajectories"]),
        "latent_passes": round(spent["latent_steps"]),
        "answer_tokens": round(spent.get("tokens", 0) + read),
        "ms": round(1000 * seconds, 1),
    }


def collect(folder):
    """Writes the tables of all finished runs below a folder; returns the lines to print.

    Raises UserError when there is no finished run, or only damaged ones.
    """
    folder = Path(folder)
    runs = finished_runs(folder)
    written, lines = [], []
    sampled = [run for run in runs if not run.chooses]
    if sampled:
        frame = sampling_frame(sampled)
        written += _write(
            folder, {"results.csv": frame.to_csv(index=False), "results.md": _wide(frame)}
        )
        lines = _wide(frame).splitlines()
    if len(sampled) < len(runs):
        frame = choice_frame(runs)
        written += _write(
            folder,
            {
                "choices.csv": frame.to_csv(index=False),
                "choices.md": _long(frame),
                "accuracy.md": _by_method(frame),
            },
        )
        lines = summary(frame)
    return [*lines, f"tables: {', '.join(written)}"]


def _write(folder, texts):
    for name, text in texts.items():
        write_text(folder / name, text)
    return [str(folder / name) for name in texts]


def _markdown(header, lines):
    rows = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*rows, *("| " + " | ".join(map(str, line)) + " |" for line in lines)]) + "\n"


def _with_half(row, name):
    """``78.5 ±2.6``: a measure and half of its interval."""
    return f"{row[name]:.1f} ±{(row[f'{name}_high'] - row[f'{name}_low']) / 2:.1f}"


def _gain(row, name="gain"):
    """``+5.5 [2.5, 9.0]``, or nothing where it was not measured."""
    if name not in row or pd.isna(row[name]):
        return ""
    return f"{row[name]:+.1f} [{row[f'{name}_low']:.1f}, {row[f'{name}_high']:.1f}]"


def _with_sampler(frame):
    """The frame with sampler and parameter in one column: ``noise_std 0.8``, or ``greedy``."""
    label = frame["sampler"].copy()
    for name in ("dropout_p", "noise_std"):
        given = frame[name].notna()
        label[given] = name + " " + frame.loc[given, name].astype(str)
    return frame.assign(sampler=label)


def _wide(frame):
    """A line a sampling run: coverage and vote for each N, in percent +- half of the interval."""
    shown = [(name, title, n) for name, title in SHOWN.items() for n in sorted(frame["N"].unique())]
    lines = []
    for key, of_run in _with_sampler(frame).groupby(SHOWN_RUN, sort=False):
        by_n = {row["N"]: row for _, row in of_run.iterrows()}
        cells = [_with_half(by_n[n], name) if n in by_n else "" for name, _, n in shown]
        lines.append([*key, *cells, _plain(of_run["seconds"].iloc[0])])
    return _markdown([*SHOWN_RUN, *(f"{title} @{n}" for _, title, n in shown), "seconds"], lines)


def _plain(value):
    """A number as it was before a column with gaps made floats of it; nothing for a gap."""
    if pd.isna(value):
        return ""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _long(frame):
    """A line for every method, beside its cost."""
    lines = []
    for _, row in _with_sampler(frame).iterrows():
        gains = [_gain(row, name) for name in GAINS]
        cost = [_plain(row.get(name, float("nan"))) for name in COST]
        lines.append(
            [
                *(row[key] for key in [*SHOWN_POOL, "method"]),
                _with_half(row, "accuracy"),
                *gains,
                *cost,
            ]
        )
    costs = [name.replace("_", " ") for name in COST]
    return _markdown([*SHOWN_POOL, "method", "accuracy", *GAINS.values(), *costs], lines)


def _by_method(frame):
    """A line a pool: each method with its gain over the vote, bold if its interval is above 0."""
    lines = []
    for key, pool in _with_sampler(frame).groupby([*SHOWN_POOL, "budget"], sort=False):
        by_method = {row["method"]: row for _, row in pool.iterrows()}
        cells = [_accuracy_and_gain(by_method[m]) if m in by_method else "" for m in METHODS]
        lines.append([*key[:-1], *cells, pool["coverage"].iloc[0]])
    return _markdown([*SHOWN_POOL, *METHODS, "coverage"], lines)


def _accuracy_and_gain(row):
    gain = _gain(row)
    if not gain:
        return _with_half(row, "accuracy")
    accuracy = f"{row['accuracy']:.1f}"
    return f"**{accuracy}** ({gain})" if row["gain_low"] > 0 else f"{accuracy} ({gain})"


def summary(frame):
    """At most SUMMARY_LINES lines: for each benchmark and N the vote and the best method.

    Where there are more, the smaller N are left out first.
    """
    shown = _with_sampler(frame)
    pools = shown[shown["budget"] > 1].groupby([*SHOWN_POOL[:-1], "budget"], sort=False)
    rows = pd.DataFrame([row for row in (_best_row(pool) for _, pool in pools) if row])
    if rows.empty:
        return _long(frame).splitlines()[:SUMMARY_LINES]
    while len(rows) > SUMMARY_LINES - 2 and rows["N"].nunique() > 1:
        rows = rows[rows["N"] > rows["N"].min()]
    left_out = len(rows) - (SUMMARY_LINES - 2)
    rows = rows.head(SUMMARY_LINES - 2).astype(str)
    same = [key for key in ("model", "questions") if rows[key].nunique() == 1]
    rows = rows.drop(columns=same)
    table = [list(rows.columns), *rows.values.tolist()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in table]
    note = "* chosen on these questions, so somewhat flattered; percent"
    more = f"; {left_out} more such lines are left out" if left_out > 0 else ""
    return [*(line.rstrip() for line in lines), note + more]


def _best_row(pool):
    """One row of the summary, {column: cell}, or None where there is nothing but the vote."""
    votes = pool[pool["method"] == "majority"]
    others = pool[pool["method"] != "majority"]
    if votes.empty or others.empty:
        return None
    best = others.loc[others["accuracy"].idxmax()]
    greedy = ""
    if "greedy_gain" in best and not pd.isna(best["greedy_gain"]):
        greedy = f"{best['accuracy'] - best['greedy_gain']:.1f}"
    method = best["method"] if best["method"] != "beam_search" else f"beam_search {best['N']}"
    return {
        "model": best["prm"],
        "benchmark": best["benchmark"],
        "questions": best["questions"],
        "sampler": best["sampler"],
        "N": best["budget"],
        "greedy": greedy,
        "vote": f"{votes['accuracy'].iloc[0]:.1f}",
        "best method*": f"{method} {best['accuracy']:.1f}",
        **{title: _gain(best, name) for name, title in GAINS.items()},
    }
