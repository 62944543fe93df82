"""Tables of all finished runs below a folder: what is measured, how it was chosen, what it costs.

Sampling runs (src.infer_gpt2, src.infer_llama) give results.*, choosing runs (src.infer_*_rm) give
choices.*. Percent over questions with 95 % bootstrap intervals; gains are paired differences over
the same questions.
"""

from pathlib import Path

import pandas as pd

from src.sampling.samplers import STRENGTHS
from src.search.beam_search import SEARCHES
from src.search.choosers import CHOOSERS, PARTS
from src.search.voting import LEAF_VOTES, aggregate
from utils.answers import is_right
from utils.files import write_text
from utils.metrics import majority_vote, measured

RUN = [  # and the strengths of further samplers, where a run has them
    "model", "benchmark", "questions", "sampler", "dropout_p", "extra_dropout", "noise_std", "seed",
]  # fmt: skip
SHOWN_RUN = ["model", "benchmark", "questions", "sampler", "seed"]  # parameter beside the sampler
MEASURES = ["coverage", "voting_accuracy", "mean_accuracy", "unparsable"]
SHOWN = {"coverage": "coverage", "voting_accuracy": "vote"}
# What each method needs beside the sampling of its pool, of src.search.choosers.PARTS.
METHODS = {name: chooser.parts for name, chooser in CHOOSERS.items() if name != "greedy"}
NOT_MEASURED = dict.fromkeys(("value", "low", "high"), float("nan"))
SHOWN_POOL = ["prm", *SHOWN_RUN[1:], "N"]
COST = ["trajectories", "latent_passes", "answer_tokens", "ms"]
GAINS = {"gain": "gain over vote", "greedy_gain": "gain over greedy"}
SUMMARY_LINES = 12


def sampling_frame(runs):
    """A row for each N of each sampling run: its measures, with the ends of their intervals.

    ``vote_greedy_gain`` is the paired difference of the vote to greedy; empty without a greedy run.
    A run with --stop_error also has its ``stop_error`` and ``samples``, the mean number of samples.
    """
    rows, greedy = [], greedy_runs(runs)
    for run in runs:
        base = None if run.greedy else greedy.get(run.model_key)
        for n, summary in run.metrics["by_n"].items():
            row = run.columns | {"N": int(n)}
            for name in MEASURES:
                row |= _interval(name, summary.get(name, NOT_MEASURED))
            if run.stopped:
                row |= {"stop_error": run.settings["stop_error"]}
                row |= _interval("samples", summary["samples"])
            row |= _interval("vote_greedy_gain", _vote_over_greedy(run, int(n), base))
            rows.append(row | {"seconds": run.metrics["speed"].get("seconds")})
    frame = pd.DataFrame(rows)
    return frame.sort_values([*RUN, *_further_strengths(frame), "N"], ignore_index=True)


def _further_strengths(frame):
    return [name for name in STRENGTHS.values() if name in frame and name not in RUN]


def _interval(name, measure):
    return {name: measure["value"], f"{name}_low": measure["low"], f"{name}_high": measure["high"]}


def greedy_runs(runs):
    """{FinishedRun.model_key: greedy run}."""
    return {run.model_key: run for run in runs if run.greedy}


def _vote_over_greedy(run, n, greedy):
    """The paired difference of the vote of N trajectories to greedy, NaN without a greedy run."""
    if greedy is None:
        return NOT_MEASURED
    return paired_difference(run.records, _votes(run, n), greedy_answers(greedy))


def _votes(run, n):
    return {i: majority_vote(record["predictions"][:n]) for i, record in run.records.items()}


def greedy_answers(run):
    """{idx: number or None} of a greedy run."""
    return {i: record["predictions"][0] for i, record in run.records.items()}


def choice_frame(runs):
    """A row for each N and method of each choosing run: accuracy, gains, cost of a question."""
    greedy = greedy_runs(runs)
    choosing = [run for run in runs if run.chooses]
    by_size = sorted(choosing, key=lambda run: run.metrics["n_samples"])
    pools = {run.pool_key(): run for run in by_size if not run.beams}  # the largest of each key
    rows = [row for run in choosing for row in _choices(run, pools, greedy.get(run.model_key))]
    frame = pd.DataFrame(rows)
    frame["method"] = pd.Categorical(frame["method"], methods_of(frame))  # sorts in this order
    run = ["prm", *RUN[1:], *_further_strengths(frame)]
    return frame.sort_values([*run, "budget", "method", "N"], ignore_index=True)


def methods_of(frame):
    """The methods of a choice frame: choices from pools, then searches with their variants."""
    return [*METHODS, *sorted(set(frame["method"]) - METHODS.keys())]


def _choices(run, pools, greedy):
    """The rows of one run."""
    rows = _searches if run.beams else _choices_from_pool
    return rows(run, {"prm": reward_model_name(run.settings)} | run.columns, pools, greedy)


def _searches(run, shared, pools, greedy):
    """The rows of a search: its best trajectory and, of DVTS, the votes of its leaves."""
    ((n, summary),) = run.metrics["by_n"].items()
    spent = run.metrics["speed"].get("per_question", {}).get(n, {})
    beams, proposals = run.settings["num_beams"], run.settings["num_beam_candidates"]
    size = {"N": f"{beams} x {proposals}", "budget": beams * proposals}
    pool = pools.get(run.pool_key())
    for name, answers in search_answers(run).items():
        row = (
            shared
            | size
            | {"method": name + search_variant(run)}
            | _interval("accuracy", summary[name])
        )
        row["coverage"] = summary["coverage"]["value"]
        if pool is not None and pool.metrics["n_samples"] >= size["budget"]:
            gain = paired_difference(run.records, answers, _votes(pool, size["budget"]))
            row |= _interval("gain", gain)
        if greedy is not None:
            gain = paired_difference(run.records, answers, greedy_answers(greedy))
            row |= _interval("greedy_gain", gain)
        yield row | search_cost(spent)


def search_answers(run):
    """{method: {idx: answer}} of a search."""
    mode, score_by = run.settings["prm_mode"], run.settings["score_by"]
    answers = {mode: {i: record["vote"] for i, record in run.records.items()}}
    if mode == "dvts":
        n = int(run.metrics["n_samples"])
        votes = {i: aggregate(record, n, score_by) for i, record in run.records.items()}
        for name, vote in LEAF_VOTES.items():
            answers[name] = {i: of_question[vote] for i, of_question in votes.items()}
    return answers


def search_variant(run):
    """What the name of a search says of its guide, or of a LatentRM's lookahead."""
    guide, lookahead = run.settings["guide"], run.settings["lookahead"]
    if guide != "rm":
        return f" {guide}"
    return "" if lookahead == "0" else f" lookahead {lookahead}"


def is_search(method):
    """Whether a method is a search, whatever guides it."""
    return method.partition(" ")[0] in (*SEARCHES, *LEAF_VOTES)


def _choices_from_pool(run, shared, pools, greedy):
    """The rows of a pool. With one trajectory all methods agree: only the vote gets a row."""
    for n, summary in run.metrics["by_n"].items():
        spent = run.metrics["speed"].get("per_question", {}).get(n, {})
        if greedy is not None and "majority_gain_over_greedy" not in summary:
            summary = summary | _gains_over_greedy(run, int(n), greedy_answers(greedy))
        for method in METHODS:
            measure = summary.get("voting_accuracy" if method == "majority" else method)
            if measure is None or (n == "1" and method != "majority"):
                continue
            row = shared | {"N": n, "budget": int(n), "method": method}
            row |= _interval("accuracy", measure)
            row["coverage"] = summary["coverage"]["value"]
            for column, name in (("gain", "gain"), ("greedy_gain", "gain_over_greedy")):
                gain = summary.get(f"{method}_{name}")
                row |= _interval(column, gain) if gain else {}
            yield row | pool_cost(spent, METHODS[method])


def reward_model_name(settings):
    """The LatentRM's, or the guide's in its place; with the score where it is not the default."""
    prm_id, score_by = settings["prm_id"], settings["score_by"]
    name, default = (Path(prm_id).name, "sum") if prm_id else (settings["guide"], "last")
    return name if score_by == default else f"{name} ({score_by})"


def _gains_over_greedy(run, n, base):
    """The paired differences to greedy answers ``base``, named as in metrics.json."""
    chosen = chosen_answers(run, n)
    return {
        f"{name}_gain_over_greedy": paired_difference(run.records, chosen[name], base)
        for name in chosen
    }


def chosen_answers(run, n):
    """Answers from the first n trajectories: a column an aggregator, a row a question."""
    score_by = run.settings["score_by"]
    return pd.DataFrame({i: aggregate(r, n, score_by) for i, r in run.records.items()}).T


def paired_difference(records, answers, base):
    """The difference of two ways to answer the questions of some records, both {idx: number}."""
    gains = []
    for i, record in records.items():
        right, base_right = (is_right(of[i], record["answer"]) for of in (answers, base))
        gains.append(float(right) - float(base_right))
    return measured(gains)


def pool_cost(spent, parts):
    """The cost of a question for a method that needs ``parts``; empty for a saved pool."""
    if "trajectories" not in spent:
        return {}
    idle = sum(spent.get(f"{part}_seconds", 0) for part in PARTS if part not in parts)

    def total(name):
        return round(spent.get(name, 0) + sum(spent.get(f"{part}_{name}", 0) for part in parts))

    return {
        "trajectories": total("trajectories"),
        "latent_passes": total("latent_steps"),
        "answer_tokens": total("tokens"),
        "ms": round(1000 * (spent["seconds"] - idle), 1),
    }


def search_cost(spent):
    """The cost of a question for a search: what it looked ahead and what its guide read, too."""
    if "trajectories" not in spent:
        return {}
    tokens = ("tokens", "lookahead_tokens", "candidate_tokens")
    return {
        "trajectories": round(spent["trajectories"]),
        "latent_passes": round(spent["latent_steps"] + spent.get("lookahead_steps", 0)),
        "answer_tokens": round(sum(spent.get(name, 0) for name in tokens)),
        "ms": round(1000 * spent["seconds"], 1),
    }


def collect(runs, folder):
    """Writes the tables of some finished runs to a folder; returns the lines to print."""
    folder, texts, lines = Path(folder), {}, []
    sampled = [run for run in runs if not run.chooses]
    if sampled:
        frame = sampling_frame(sampled)
        texts |= {"results.csv": frame.to_csv(index=False), "results.md": _by_run(frame)}
        lines = texts["results.md"].splitlines()
    if len(sampled) < len(runs):
        frame = choice_frame(runs)
        texts |= {"choices.csv": frame.to_csv(index=False), "choices.md": _by_choice(frame)}
        texts["accuracy.md"] = _by_pool(frame)
        lines = summary(frame)
    for name, text in texts.items():
        write_text(folder / name, text)
    return [*lines, f"tables: {', '.join(str(folder / name) for name in texts)}"]


def _markdown(table):
    cells = table.astype(object).fillna("")
    rows = [cells.columns, ["---"] * len(cells.columns), *cells.values]
    return "".join("| " + " | ".join(map(str, row)) + " |\n" for row in rows)


def _with_half(frame, name):
    """``78.5 ±2.6``: a measure and half of its interval; nothing where it was not measured."""
    half = (frame[f"{name}_high"] - frame[f"{name}_low"]) / 2
    cells = frame[name].map("{:.1f}".format) + half.map(" ±{:.1f}".format)
    return cells.where(frame[name].notna(), "")


def _gains(frame, name):
    """``+5.5 [2.5, 9.0]``, or nothing where a gain was not measured."""
    columns = frame.reindex(columns=[name, f"{name}_low", f"{name}_high"]).itertuples(index=False)
    cells = ["" if pd.isna(row[0]) else "{:+.1f} [{:.1f}, {:.1f}]".format(*row) for row in columns]
    return pd.Series(cells, index=frame.index)


def with_sampler(frame):
    """The frame with sampler and parameter in one column: ``noise_std 0.8``, or ``greedy``.

    Dropout at further sites names them: ``dropout_p 0.1 + embedding + attention``; several samplers
    are ``noise_std 0.8 + temperature 1.0``. A run whose questions stopped names its rate:
    ``noise_std 0.8, stop_error 0.05``.
    """
    label = pd.Series("", index=frame.index)
    for name in STRENGTHS.values():
        given = frame.reindex(columns=[name])[name].notna()
        more = name + " " + frame.loc[given, name].astype(str) if given.any() else ""
        label[given] += label[given].map(lambda text: " + " if text else "") + more
    label = label.where(label != "", frame["sampler"])
    extra = frame["extra_dropout"].notna()
    label[extra] += " + " + frame.loc[extra, "extra_dropout"].astype(str)
    if "stop_error" in frame:
        stopped = frame["stop_error"].notna()
        label[stopped] += ", stop_error " + frame.loc[stopped, "stop_error"].astype(str)
    return frame.assign(sampler=label)


def _by_run(frame):
    """A line a sampling run: coverage and vote for each N, in percent ± half of the interval.

    The gain of the vote over greedy is shown for the largest N only.
    """
    frame = with_sampler(frame)
    cells = {title: _with_half(frame, name) for name, title in SHOWN.items()}
    run = [*SHOWN_RUN, "folder"]
    table = frame[[*run, "N"]].assign(**cells).set_index([*run, "N"]).unstack("N", sort=False)
    table = table.sort_index(axis=1)
    table.columns = [f"{title} @{n}" for title, n in table.columns]
    largest = frame[frame["N"] == frame["N"].max()].set_index(run)
    if largest["vote_greedy_gain"].notna().any():
        gains = _gains(largest, "vote_greedy_gain")
        table[f"vote over greedy @{frame['N'].max()}"] = gains
    if "samples" in frame:
        samples = frame.groupby(run, sort=False)["samples"].first()
        table["mean samples"] = samples.map("{:.1f}".format, na_action="ignore")
    seconds = frame.groupby(run, sort=False)["seconds"].first()
    table["seconds"] = seconds.map("{:.10g}".format, na_action="ignore")
    return _markdown(table.reset_index().drop(columns="folder"))


def _by_choice(frame):
    """A line for every method, beside its cost."""
    frame = with_sampler(frame)
    table = frame[[*SHOWN_POOL, "method"]].astype(str)
    table["accuracy"] = _with_half(frame, "accuracy")
    for name, title in GAINS.items():
        table[title] = _gains(frame, name)
    for name, cost in frame.reindex(columns=COST).items():
        table[name.replace("_", " ")] = cost.map("{:.10g}".format, na_action="ignore")
    return _markdown(table)


def _by_pool(frame):
    """A line a pool: each method with its gain over the vote, bold if its interval is above 0."""
    frame, gains = with_sampler(frame), _gains(frame, "gain")
    accuracy = frame["accuracy"].map("{:.1f}".format)
    better = frame.reindex(columns=["gain_low"])["gain_low"] > 0
    cells = accuracy.mask(better, "**" + accuracy + "**") + " (" + gains + ")"
    cells = cells.where(gains != "", _with_half(frame, "accuracy"))
    pool = [*SHOWN_POOL, "budget", "folder"]
    table = frame[pool].assign(method=frame["method"].astype(str), cell=cells)
    table = table.set_index([*pool, "method"])["cell"].unstack("method", sort=False)
    table = table.reindex(columns=[method for method in methods_of(frame) if method in table])
    table["coverage"] = frame.groupby(pool, sort=False)["coverage"].first()
    return _markdown(table.reset_index().drop(columns=["budget", "folder"]))


def summary(frame):
    """At most SUMMARY_LINES lines: for each benchmark and N the vote and the best method.

    Where there are more, the smaller N are left out first.
    """
    shown = with_sampler(frame)
    pools = shown[shown["budget"] > 1].groupby([*SHOWN_POOL[:-1], "budget"], sort=False)
    rows = pd.DataFrame([row for row in (_best_row(pool) for _, pool in pools) if row])
    if rows.empty:
        return _by_choice(frame).splitlines()[:SUMMARY_LINES]
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
    best = others.loc[[others["accuracy"].idxmax()]]
    gains = {title: _gains(best, name).iloc[0] for name, title in GAINS.items()}
    best = best.iloc[0]
    over_greedy = best.get("greedy_gain", float("nan"))
    greedy = "" if pd.isna(over_greedy) else f"{best['accuracy'] - over_greedy:.1f}"
    method = f"{best['method']} {best['N']}" if is_search(best["method"]) else best["method"]
    return {
        "model": best["prm"],
        "benchmark": best["benchmark"],
        "questions": best["questions"],
        "sampler": best["sampler"],
        "N": best["budget"],
        "greedy": greedy,
        "vote": f"{votes['accuracy'].iloc[0]:.1f}",
        "best method*": f"{method} {best['accuracy']:.1f}",
        **gains,
    }
