"""One table of all finished runs below a folder: python -m src.collect_results outputs/run_tests_tiny"""

import argparse
import csv
import io
import json
from pathlib import Path

from utils.errors import UserError, reports_user_errors
from utils.files import write_text

MEASURES = ("coverage", "voting_accuracy", "mean_accuracy", "unparsable")
RUN = ("model", "benchmark", "questions", "sampler", "strength", "seed")
COLUMNS = (*RUN, "N", *MEASURES, "seconds")
SHOWN = {"coverage": "coverage", "voting_accuracy": "vote"}


def rows_of(folder):
    """The table's rows of one run: a dict of COLUMNS for each N; measures as metrics.json has them."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("settings")
    if settings is None:  # a checkpoint has files of the same names
        return
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    sampler = settings["sampling_by"] or "greedy"
    strength = {"dropout": settings["dropout_p"], "noise": settings["noise_std"]}.get(sampler, 0.0)
    same = {
        "model": Path(settings["model_id"]).name,
        "benchmark": Path(settings["data_path"]).stem,
        "questions": metrics["questions"],
        "sampler": sampler,
        "strength": strength,
        "seed": settings["seed"],
        "seconds": metrics["speed"].get("seconds", ""),
    }
    for n, summary in metrics["by_n"].items():
        yield same | {"N": int(n)} | {name: summary[name] for name in MEASURES}


def to_markdown(rows):
    """A line a run: coverage and voting accuracy for each N, in percent +- half the 95 % interval."""
    sizes = sorted({row["N"] for row in rows})
    runs = {}
    for row in rows:
        runs.setdefault(tuple(row[key] for key in RUN), {})[row["N"]] = row
    measured = [(name, title, n) for name, title in SHOWN.items() for n in sizes]
    header = [*RUN, *(f"{title} @{n}" for _, title, n in measured), "seconds"]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for key, by_n in runs.items():
        cells = [_cell(by_n[n][name]) if n in by_n else "" for name, _, n in measured]
        seconds = next(iter(by_n.values()))["seconds"]
        lines.append("| " + " | ".join(map(str, [*key, *cells, seconds])) + " |")
    return "\n".join(lines) + "\n"


def _cell(measure):
    return f"{measure['value']:.1f} ±{(measure['high'] - measure['low']) / 2:.1f}"


def to_csv(rows):
    """Each measure in three columns: itself, and the ends of its interval."""
    ends = [f"{name}_{end}" for name in MEASURES for end in ("low", "high")]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*COLUMNS, *ends], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        flat = row | {name: row[name]["value"] for name in MEASURES}
        flat |= {f"{name}_{end}": row[name][end] for name in MEASURES for end in ("low", "high")}
        writer.writerow(flat)
    return stream.getvalue()


@reports_user_errors
def main():
    parser = argparse.ArgumentParser(prog="src.collect_results", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    runs = sorted(path.parent for path in folder.rglob("metrics.json"))
    rows = [row for run in runs for row in rows_of(run)]
    if not rows:
        raise UserError(f"{folder}: no finished run below it (metrics.json)")
    rows.sort(key=lambda row: [row[key] for key in (*RUN, "N")])
    write_text(folder / "results.md", to_markdown(rows))
    write_text(folder / "results.csv", to_csv(rows))
    print(to_markdown(rows), end="")
    print(f"wrote {folder}/results.md and {folder}/results.csv")


if __name__ == "__main__":
    main()
