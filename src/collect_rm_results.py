"""Tables of every way to choose, with its budget: python -m src.collect_rm_results FOLDER

results.md has a line a method beside what it costs, accuracy.md a line a pool; results.csv has both.
"""

import argparse
import csv
import io
import json
from pathlib import Path

from src.inference.runner import gold_of
from utils import records
from utils.errors import UserError, reports_user_errors
from utils.files import write_text
from utils.metrics import majority_vote, measured

# What each method needs beside the sampling of its pool, by the clocks of src.inference.methods.
METHODS = {
    "majority": (),
    "best_of_n": ("reward",),
    "weighted_vote": ("reward",),
    "bayesian_vote": ("candidate",),
    "bayesian_geometric": ("candidate",),
    "reward_bayesian": ("reward", "candidate"),
    "beam_search": ("reward",),
}
POOL = ("prm", "benchmark", "questions", "sampler", "strength", "seed", "N")
COLUMNS = (
    *POOL, "method", "accuracy", "low", "high", "gain", "gain_low", "gain_high", "coverage",
    "trajectories", "latent_passes", "answer_tokens", "ms",
)  # fmt: skip
# flags by which beams and the pool of the same questions and sampler may differ
_OWN = {"prm_id", "prm_mode", "num_return_sequences", "pool", "bayesian_vote", "num_beams",
        "num_beam_candidates", "score_by"}  # fmt: skip
SHOWN = ("accuracy", "gain over vote", "trajectories", "latent passes", "answer tokens", "ms")


def load_runs(folder):
    """(settings, metrics, folder) of every finished run of src.infer_gpt2_rm below a folder."""
    for path in sorted(folder.rglob("metrics.json")):
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        if "prm_mode" in config.get("settings", {}):  # a checkpoint has files of the same names
            yield config["settings"], json.loads(path.read_text(encoding="utf-8")), path.parent


def rows_of(settings, metrics, folder, pools):
    """A row for each N and method of a run; the budget is a question's, ms those of one process.

    pools: {key: (N, folder)} of the largest pools, where beams find the vote of equal budget.
    """
    for n, summary in metrics["by_n"].items():
        same = _pool_of(settings, metrics, n)
        for method in METHODS:
            measure = summary.get("voting_accuracy" if method == "majority" else method)
            if measure is None or (n == "1" and method not in ("majority", "beam_search")):
                continue  # of one trajectory all choose the same
            gain = summary.get(f"{method}_gain")
            if method == "beam_search":
                gain = _beam_gain(settings, folder, pools)
            row = same | {"method": method, "accuracy": measure["value"]}
            row |= {"low": measure["low"], "high": measure["high"]}
            row |= {"coverage": summary["coverage"]["value"]}
            if gain:
                row |= {"gain": gain["value"], "gain_low": gain["low"], "gain_high": gain["high"]}
            if settings["prm_mode"] == "beam_search" or int(n) == settings["num_return_sequences"]:
                row |= _budget(metrics["speed"].get("per_question", {}), METHODS[method])
            yield row


def _pool_of(settings, metrics, n):
    sampler = settings["sampling_by"]
    beams = settings["prm_mode"] == "beam_search"
    return {
        "prm": Path(settings["prm_id"]).name + (" (mean)" if settings["score_by"] == "mean" else ""),
        "benchmark": Path(settings["data_path"]).stem,
        "questions": metrics["questions"],
        "sampler": sampler,
        "strength": settings["dropout_p"] if sampler == "dropout" else settings["noise_std"],
        "seed": settings["seed"],
        "N": f"{settings['num_beams']} x {settings['num_beam_candidates']}" if beams else int(n),
    }


def _budget(spent, parts):
    """What a question costs by a method that needs ``parts``; nothing of a pool that was only scored."""
    if "trajectories" not in spent:
        return {}
    idle = [part for part in ("reward", "candidate") if part not in parts]
    seconds = spent["seconds"] - sum(spent.get(f"{part}_seconds", 0) for part in idle)
    read = spent.get("candidate_tokens", 0) if "candidate" in parts else 0
    return {
        "trajectories": round(spent["trajectories"]),
        "latent_passes": round(spent["latent_steps"]),
        "answer_tokens": round(spent["tokens"] + read),
        "ms": round(1000 * seconds, 1),
    }


def _key(settings):
    """What beams share with a pool of the same questions and sampler."""
    return tuple(value for key, value in sorted(settings.items()) if key not in _OWN)


def _beam_gain(settings, folder, pools):
    """The paired difference of the best beam to the majority vote of as many trajectories, or None."""
    n, found = settings["num_beams"] * settings["num_beam_candidates"], pools.get(_key(settings))
    if found is None or found[0] < n:
        return None
    beams, samples, gains = records.read(folder), records.read(found[1]), []
    for i, beam in beams.items():
        gold, vote = gold_of(beam), majority_vote(samples[i]["predictions"][:n])
        gains.append(float(beam["vote"] == gold) - float(vote == gold))
    return measured(gains)


def _cell(row, with_gain):
    half = f"{row['accuracy']:.1f} ±{(row['high'] - row['low']) / 2:.1f}"
    if not with_gain or "gain" not in row:
        return half
    gain = _gain(row)
    return (
        f"**{row['accuracy']:.1f}** ({gain})"
        if row["gain_low"] > 0
        else f"{row['accuracy']:.1f} ({gain})"
    )


def _gain(row):
    return f"{row['gain']:+.1f} [{row['gain_low']:.1f}, {row['gain_high']:.1f}]" if "gain" in row else ""


def _table(header, lines):
    rows = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*rows, *("| " + " | ".join(map(str, line)) + " |" for line in lines)]) + "\n"


def to_markdown(rows):
    """Every method beside its budget; in percent, with 95 % intervals."""
    budget = ("trajectories", "latent_passes", "answer_tokens", "ms")
    lines = [
        [*(row[key] for key in (*POOL, "method")), _cell(row, False), _gain(row)]
        + [row.get(key, "") for key in budget]
        for row in rows
    ]
    return _table([*POOL, "method", *SHOWN], lines)


def to_wide(rows):
    """A line a pool: every method with its gain over the vote, bold where the interval is above 0."""
    pools = {}
    for row in rows:
        pools.setdefault(tuple(row[key] for key in POOL), {})[row["method"]] = row
    lines = []
    for key, found in pools.items():
        cells = [_cell(found[method], True) if method in found else "" for method in METHODS]
        lines.append([*key, *cells, next(iter(found.values()))["coverage"]])
    return _table([*POOL, *METHODS, "coverage"], lines)


def to_csv(rows):
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _order(row):
    beams = isinstance(row["N"], str)
    size = tuple(int(x) for x in row["N"].split(" x ")) if beams else (row["N"],)
    return [*(row[key] for key in POOL[:6]), beams, size, list(METHODS).index(row["method"])]


@reports_user_errors
def main():
    parser = argparse.ArgumentParser(prog="src.collect_rm_results", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    runs = list(load_runs(folder))
    pooled = [run for run in runs if run[0]["prm_mode"] == "best_of_n"]
    pooled.sort(key=lambda run: run[1]["n_samples"])  # the largest comes last and stays
    pools = {_key(settings): (metrics["n_samples"], path) for settings, metrics, path in pooled}
    rows = sorted((row for run in runs for row in rows_of(*run, pools)), key=_order)
    if not rows:
        raise UserError(f"{folder}: no finished run of src.infer_gpt2_rm below it (metrics.json)")
    write_text(folder / "results.md", to_markdown(rows))
    write_text(folder / "accuracy.md", to_wide(rows))
    write_text(folder / "results.csv", to_csv(rows))
    print(to_markdown(rows), end="")
    print(f"wrote {folder}/results.md, accuracy.md and results.csv")


if __name__ == "__main__":
    main()
