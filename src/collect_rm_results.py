"""A table of every way to choose, with its budget: python -m src.collect_rm_results FOLDER"""

import argparse
import csv
import io
import json
from pathlib import Path

from utils.errors import UserError, reports_user_errors
from utils.files import write_text

# What each method needs beside the sampling of its pool, by the clocks of src.inference.methods.
METHODS = {
    "majority": (),
    "best_of_n": ("reward",),
    "weighted_vote": ("reward",),
    "bayesian_vote": ("candidate",),
    "bayesian_geometric": ("candidate",),
    "reward_bayesian": ("reward", "candidate"),
    "beam_search": (),
}
RUN = ("benchmark", "questions", "sampler", "strength", "budget", "method")
COLUMNS = (
    *RUN, "accuracy", "low", "high", "gain", "gain_low", "gain_high", "coverage",
    "trajectories", "latent_passes", "answer_tokens", "ms",
)  # fmt: skip
SHOWN = ("accuracy", "gain over vote", "trajectories", "latent passes", "answer tokens", "ms")


def rows_of(folder):
    """A row for each method of a finished run; the budget is a question's, ms those of one process."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("settings", {})
    if "prm_mode" not in config:
        return
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    beams = config["prm_mode"] == "beam_search"
    ((n, summary),) = list(metrics["by_n"].items())[-1:]
    sampler, spent = config["sampling_by"], metrics["speed"]["per_question"]
    same = {
        "benchmark": Path(config["data_path"]).stem,
        "questions": metrics["questions"],
        "sampler": sampler,
        "strength": config["dropout_p"] if sampler == "dropout" else config["noise_std"],
        "budget": f"{config['num_beams']} x {config['num_beam_candidates']}" if beams else f"N = {n}",
        "coverage": summary["coverage"]["value"],
        "trajectories": spent["trajectories"],
        "latent_passes": spent["latent_steps"],
    }
    for method, parts in METHODS.items():
        measure = summary.get("voting_accuracy" if method == "majority" and not beams else method)
        if measure is None:
            continue
        gain = summary.get(f"{method}_gain", {})
        others = sum(
            spent.get(f"{part}_seconds", 0) for part in ("reward", "candidate") if part not in parts
        )
        read = spent.get("candidate_tokens", 0) if "candidate" in parts else 0
        yield same | {
            "method": method,
            "accuracy": measure["value"],
            "low": measure["low"],
            "high": measure["high"],
            "gain": gain.get("value", ""),
            "gain_low": gain.get("low", ""),
            "gain_high": gain.get("high", ""),
            "answer_tokens": round(spent["tokens"] + read, 1),
            "ms": round(1000 * (spent["seconds"] - others), 2),
        }


def to_markdown(rows):
    """The rows in percent, with 95 % intervals."""
    lines = ["| " + " | ".join((*RUN, *SHOWN)) + " |", "|" + " --- |" * (len(RUN) + len(SHOWN))]
    for row in rows:
        half = (row["high"] - row["low"]) / 2
        gain = (
            f"{row['gain']:+.1f} [{row['gain_low']:.1f}, {row['gain_high']:.1f}]"
            if row["gain"] != ""
            else ""
        )
        budget = (row["trajectories"], row["latent_passes"], row["answer_tokens"], row["ms"])
        cells = [*(row[key] for key in RUN), f"{row['accuracy']:.1f} ±{half:.1f}", gain]
        lines.append(
            "| " + " | ".join(map(str, [*cells, *(f"{x:.0f}" for x in budget[:3]), budget[3]])) + " |"
        )
    return "\n".join(lines) + "\n"


def to_csv(rows):
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


@reports_user_errors
def main():
    parser = argparse.ArgumentParser(prog="src.collect_rm_results", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    runs = sorted(path.parent for path in folder.rglob("metrics.json"))
    rows = [row for run in runs for row in rows_of(run)]
    if not rows:
        raise UserError(f"{folder}: no finished run of src.infer_gpt2_rm below it (metrics.json)")
    size = lambda row: (row["latent_passes"], row["budget"])  # noqa: E731
    rows.sort(key=lambda row: [*(row[key] for key in RUN[:4]), *size(row)])
    write_text(folder / "results.md", to_markdown(rows))
    write_text(folder / "results.csv", to_csv(rows))
    print(to_markdown(rows), end="")
    print(f"wrote {folder}/results.md and {folder}/results.csv")


if __name__ == "__main__":
    main()
