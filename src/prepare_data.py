"""Writes the benchmarks: `python -m src.prepare_data tiny` makes data/tiny_*.json from their seed."""

import argparse
import json
from pathlib import Path

from utils.errors import reports_user_errors
from utils.files import write_text
from utils.tiny_problems import make_split

TINY_SEED = 2510
TINY_SIZES = {"test": 1000, "valid": 500, "multi": 500, "hard": 500}


def to_json(rows):
    """A JSON list, a row a line."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"


def write_tiny(folder, train):
    """Writes the four files of the tiny benchmark, and ``train`` problems to annotate.

    No question occurs twice among them.
    """
    taken = set()
    for name, size in (TINY_SIZES | ({"train": train} if train else {})).items():
        path = folder / f"tiny_{name}.json"
        write_text(path, to_json(make_split(name, TINY_SEED, size, taken)))
        print(f"{path}: {size} questions")


@reports_user_errors
def main():
    parser = argparse.ArgumentParser(prog="src.prepare_data", description=__doc__)
    parser.add_argument("benchmark", choices=["tiny"])
    parser.add_argument("--output_dir", type=Path, default=Path("data"))
    parser.add_argument("--train", type=int, default=0, help="also tiny_train.json, so many questions")
    args = parser.parse_args()
    write_tiny(args.output_dir, args.train)


if __name__ == "__main__":
    main()
