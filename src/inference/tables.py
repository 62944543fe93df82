"""Tables of all finished runs below a folder: what is measured, how it was chosen, what it costs.

Sampling runs (src.infer_gpt2, src.infer_llama) give results.*, choosing runs (src.infer_*_rm) choices.*.
Percent over questions with 95 % bootstrap intervals; gains are paired differences over the same questions.
"""

import json
from pathlib import Path

import pandas as pd

from src.inference.aggregation import aggregate
from utils import records
from utils.errors import UserError, warn
from utils.files import write_text
from utils.metrics import majority_vote, measured
from utils.records import gold_of

RUN = ["model", "benchmark", "questions", "sampler", "strength", "seed"]
MEASURES = ["coverage", "voting_accuracy", "mean_accuracy", "unparsable"]
SHOWN = {"coverage": "coverage", "voting_accuracy": "vote"}
# What each way to choose needs beside the sampling of its pool, by the clocks of src.inference.methods.
METHODS = {
    "majority": (),
    "best_of_n": ("reward",),
    "weighted_vote": ("reward",),
    "bayesian_vote": ("candidate",),
    "bayesian_geometric": ("candidate",),
    "reward_bayesian": ("reward", "candidate"),
    "beam_search": ("reward",),
}
POOL = ["prm", *RUN[1:], "N"]
COST = ["trajectories", "latent_passes", "answer_tokens", "ms"]
GAINS = {"gain": "gain over vote", "greedy_gain": "gain over greedy"}
# Flags by which runs over the same questions by the same model may differ, for a paired difference: to the
# pool of the same sampler, and to greedy.
_CHOICE = {"prm_id", "prm_mode", "num_return_sequences", "pool", "bayesian_vote", "num_beams",
           "num_beam_candidates", "score_by"}  # fmt: skip
_SAME_MODEL = ("model_dtype", "limit", "latent_length", "max_new_tokens")
SUMMARY_LINES = 12


class FinishedRun:
    """One run's config.json, metrics.json and records. Raises UserError when one of them is damaged or is
    not of this version."""

    def __init__(self, folder):
        self.folder = folder
        self.config, self.metrics = _read(folder / "config.json"), _read(folder / "metrics.json")
        self.settings = self.config["settings"]
        self.chooses = "prm_mode" in self.settings
        self.beams = self.settings.get("prm_mode") == "beam_search"
        self.records = records.read(self.folder)
        try:
            self.columns, self.model_key = self._columns(), self._model_key()
        except KeyError as error:
            raise UserError(
                f"{folder}/config.json: lacks {error}; remove the folder or run again"
            ) from None
        if len(self.records) != self.metrics["questions"]:
            raise UserError(f"{folder}/{records.NAME}: records are missing; run its command again")

    @property
    def greedy(self):
        return self.settings.get("sampling_by") is None

    @property
    def sampler(self):
        """The sampler's name, and its strength."""
        name = self.settings["sampling_by"]
        if name is None:
            return "greedy", 0.0
        return name, self.settings["dropout_p" if name == "dropout" else "noise_std"]

    def _columns(self):
        """What a table says of the run itself."""
        model = self.settings["generator_id" if self.chooses else "model_id"]
        sampler, strength = self.sampler
        return {
            "model": Path(model).name,
            "benchmark": Path(self.settings["data_path"]).stem,
            "questions": self.metrics["questions"],
            "sampler": sampler,
            "strength": strength,
            "seed": self.settings["seed"],
        }

    def _model_key(self):
        """What it shares with a greedy run over the same questions."""
        digests = (self.config["model_sha256"], self.config["data_sha256"])
        return (*digests, *(self.settings[key] for key in _SAME_MODEL))

    def pool_key(self):
        """What beams share with a pool of the same questions and sampler."""
        return tuple(value for key, value in sorted(self.settings.items()) if key not in _CHOICE)


def _read(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path}: damaged; remove the folder or run its command again") from None


def finished_runs(folder):
    """The FinishedRuns below a folder; what else lies there, checkpoints say, is passed over.

    A damaged run gives a warning, or where there is no other a UserError; so does a folder without runs.
    """
    runs, faults = [], []
    for path in sorted(Path(folder).rglob("metrics.json")):
        try:
            if _is_run(path):
                runs.append(FinishedRun(path.parent))
        except UserError as error:
            faults.append(error)
    if not runs:
        raise faults[0] if faults else UserError(f"{folder}: no finished run below it (metrics.json)")
    for fault in faults:
        warn(str(fault))
    return runs


def _is_run(path):
    """Whether a metrics.json is that of a run; a checkpoint has files of the same names."""
    config = path.parent / "config.json"
    if not config.is_file():
        return False
    config, metrics = _read(config), _read(path)
    both = isinstance(config, dict) and isinstance(metrics, dict)
    return both and isinstance(config.get("settings"), dict) and "by_n" in metrics


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
    """A row for each N and way to choose of each choosing run, with its gains and what a question costs."""
    greedy = {run.model_key: run for run in runs if run.greedy}
    chosen = [run for run in runs if run.chooses]
    pools = {}  # the largest of each key
    for run in chosen:
        held = pools.get(run.pool_key())
        if not run.beams and (held is None or run.metrics["n_samples"] > held.metrics["n_samples"]):
            pools[run.pool_key()] = run
    rows = [row for run in chosen for row in _choices(run, pools, greedy.get(run.model_key))]
    frame = pd.DataFrame(rows)
    order = {name: place for place, name in enumerate(METHODS)}
    frame["order"] = frame["method"].map(order)
    frame = frame.sort_values([*POOL[:-1], "budget", "order", "N"], ignore_index=True)
    return frame.drop(columns="order")


def _choices(run, pools, greedy):
    """The rows of one run. Of one trajectory all ways choose the same: only the vote is told."""
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
    """The paired difference of the best beam to the majority vote of as many trajectories, or None."""
    if pool is None or pool.metrics["n_samples"] < n:
        return None
    samples = pool.records
    votes = {i: majority_vote(samples[i]["predictions"][:n]) for i in samples}
    return _paired(run.records, {i: beam["vote"] for i, beam in run.records.items()}, votes)


def _gains_over_greedy(run, n, greedy):
    """{way to choose: its paired difference to one greedy trajectory}; empty without a greedy run."""
    if greedy is None:
        return {}
    found = run.records
    base = {i: record["predictions"][0] for i, record in greedy.records.items()}
    if run.beams:
        chosen = {i: {"beam_search": record["vote"]} for i, record in found.items()}
    else:
        chosen = {i: aggregate(record, n, run.settings["score_by"]) for i, record in found.items()}
    methods = next(iter(chosen.values()))
    return {
        name: _paired(found, {i: answers[name] for i, answers in chosen.items()}, base)
        for name in methods
    }


def _paired(found, answers, base):
    """The difference of two ways to answer the questions of some records, both {idx: number}."""
    gold = {i: gold_of(record) for i, record in found.items()}
    return measured([float(answers[i] == gold[i]) - float(base[i] == gold[i]) for i in found])


def _cost(spent, parts):
    """What a question costs by a method that needs ``parts``; nothing of a pool that was only scored."""
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
    """Writes the tables of all finished runs below a folder, and returns what is worth reading first: lines.

    Raises UserError when there is no finished run, or a damaged one.
    """
    folder = Path(folder)
    runs = finished_runs(folder)
    written, lines = [], []
    sampled = [run for run in runs if not run.chooses]
    if sampled:
        frame = sampling_frame(sampled)
        written += _write(folder, {"results.csv": frame.to_csv(index=False), "results.md": _wide(frame)})
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


def _wide(frame):
    """A line a sampling run: coverage and vote for each N, in percent +- half of the interval."""
    shown = [(name, title, n) for name, title in SHOWN.items() for n in sorted(frame["N"].unique())]
    lines = []
    for key, of_run in frame.groupby(RUN, sort=False):
        by_n = {row["N"]: row for _, row in of_run.iterrows()}
        cells = [_with_half(by_n[n], name) if n in by_n else "" for name, _, n in shown]
        lines.append([*key, *cells, _plain(of_run["seconds"].iloc[0])])
    return _markdown([*RUN, *(f"{title} @{n}" for _, title, n in shown), "seconds"], lines)


def _plain(value):
    """A number as it was before a column with gaps made floats of it; nothing for a gap."""
    if pd.isna(value):
        return ""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _long(frame):
    """A line for every way to choose, beside its cost."""
    lines = []
    for _, row in frame.iterrows():
        gains = [_gain(row, name) for name in GAINS]
        cost = [_plain(row.get(name, float("nan"))) for name in COST]
        lines.append(
            [*(row[key] for key in [*POOL, "method"]), _with_half(row, "accuracy"), *gains, *cost]
        )
    costs = [name.replace("_", " ") for name in COST]
    return _markdown([*POOL, "method", "accuracy", *GAINS.values(), *costs], lines)


def _by_method(frame):
    """A line a pool: every way to choose with its gain over the vote, bold where its interval is above 0."""
    lines = []
    for key, pool in frame.groupby([*POOL, "budget"], sort=False):
        by_method = {row["method"]: row for _, row in pool.iterrows()}
        cells = [_accuracy_and_gain(by_method[m]) if m in by_method else "" for m in METHODS]
        lines.append([*key[:-1], *cells, pool["coverage"].iloc[0]])
    return _markdown([*POOL, *METHODS, "coverage"], lines)


def _accuracy_and_gain(row):
    gain = _gain(row)
    if not gain:
        return _with_half(row, "accuracy")
    accuracy = f"{row['accuracy']:.1f}"
    return f"**{accuracy}** ({gain})" if row["gain_low"] > 0 else f"{accuracy} ({gain})"


def summary(frame):
    """At most SUMMARY_LINES lines: for each benchmark and N the vote, and the best way to choose.

    Where there are more, the smaller N are left out first.
    """
    sizes, lines = sorted(n for n in frame["budget"].unique() if n > 1), []
    while sizes and not lines:
        chosen = frame[frame["budget"].isin(sizes)]
        pools = [pool for _, pool in chosen.groupby([*POOL[:-1], "budget"], sort=False)]
        lines = [line for line in map(_best_line, pools) if line]
        if len(lines) > SUMMARY_LINES - 2 and len(sizes) > 1:
            sizes, lines = sizes[1:], []
    if not lines:
        return _long(frame).splitlines()[:SUMMARY_LINES]
    header = ["model", "benchmark", "questions", "sampler", "N", "greedy", "vote", "best way to choose*"]
    left_out = len(lines[SUMMARY_LINES - 2 :])
    table = [[*header, *GAINS.values()], *lines[: SUMMARY_LINES - 2]]
    for key in ("questions", "model"):  # said where there are several
        place = header.index(key)
        if len({line[place] for line in table[1:]}) == 1:
            table = [[*line[:place], *line[place + 1 :]] for line in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in table]
    note = "* chosen on these questions, so somewhat flattered; percent"
    more = f"; {left_out} more such lines are left out" if left_out else ""
    return [*(row.rstrip() for row in rows), note + more]


def _best_line(pool):
    """The cells of one line of the summary, or None where there is nothing but the vote."""
    votes = pool[pool["method"] == "majority"]
    others = pool[pool["method"] != "majority"]
    if votes.empty or others.empty:
        return None
    best = others.loc[others["accuracy"].idxmax()]
    vote, greedy = votes["accuracy"].iloc[0], ""
    if "greedy_gain" in best and not pd.isna(best["greedy_gain"]):
        greedy = f"{best['accuracy'] - best['greedy_gain']:.1f}"
    way = best["method"] if best["method"] != "beam_search" else f"beam_search {best['N']}"
    name = f"{way} {best['accuracy']:.1f}"
    sampler = f"{best['sampler']} {best['strength']}"
    gains = [_gain(best, column) for column in GAINS]
    who = [best["prm"], best["benchmark"], str(best["questions"])]
    return [*who, sampler, str(best["budget"]), greedy, f"{vote:.1f}", name, *gains]
