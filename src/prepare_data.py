"""Writes the benchmarks.

python -m src.prepare_data tiny: data/tiny_*.json from their seeds.
python -m src.prepare_data paper: the paper's benchmarks data/gsm_*.json and data/multiarith.json,
and further ones: data/svamp.json, data/gsm_plus.json, data/asdiv_a.json. They come from the hub or
from the publishers' raw files, asdiv_a from the hub only.
"""

import argparse
from pathlib import Path

from utils.benchmarks import BENCHMARKS, PLAIN_TRAIN, convert, has_raw_file, plain_train
from utils.cli import Parser
from utils.datasets import load_dataset
from utils.errors import UserError, reports_user_errors
from utils.files import write_text
from utils.rows import to_json
from utils.tiny_problems import make_split

TINY_SEED = 2510
TINY_SIZES = {"test": 1000, "valid": 500, "multi": 500, "hard": 500}
FURTHER_SEED = TINY_SEED + 1


def write_tiny(folder, train, further):
    """Writes the four files of the tiny benchmark, ``train`` problems to annotate, and ``further``
    ones of the kind of each benchmark.

    No question occurs twice among them: each file leaves out those of the files before it, so
    ``train`` changes the further problems.
    """
    taken = set()
    sizes = TINY_SIZES | ({"train": train} if train else {})
    files = [(f"tiny_{name}", name, TINY_SEED, size) for name, size in sizes.items()]
    if further:
        benchmarks = ("test", "multi", "hard")
        files += [(f"tiny_further_{x}", x, FURTHER_SEED, further) for x in benchmarks]
    for file, name, seed, size in files:
        path = folder / f"{file}.json"
        write_text(path, to_json(make_split(name, seed, size, taken)))
        print(f"{path}: {size} questions")


def write_paper(folder, source, train):
    """Writes the paper's benchmarks; finished files stay.

    train: which training set to write too, None, "aug" (GSM8K-Aug) or "gsm8k" (GSM8K itself).
    """
    for name in BENCHMARKS:
        path = folder / f"{name}.json"
        if name == "gsm_train" and not train:
            continue
        if source is not None and not has_raw_file(name):
            print(f"{path}: left out, it comes from the hub only, without --source")
            continue
        plain = name == "gsm_train" and train == "gsm8k"
        if path.exists():
            count, wanted = len(load_dataset(path)), PLAIN_TRAIN if plain else BENCHMARKS[name].rows
            if count != wanted:
                raise UserError(f"{path}: holds {count} questions, not {wanted}; remove it")
            print(f"{path}: is there, {count} questions")
            continue
        rows = plain_train(source) if plain else convert(name, source)
        write_text(path, to_json(rows))
        print(f"{path}: {len(rows)} questions")


@reports_user_errors
def main():
    parser = Parser(prog="src.prepare_data", description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("data"))
    which = parser.add_subparsers(dest="benchmark", required=True)
    tiny = which.add_parser("tiny", help="the bundled benchmark")
    tiny.add_argument(
        "--train", type=int, default=0, help="also tiny_train.json, so many questions"
    )
    tiny.add_argument(
        "--further", type=int, default=0,
        help="also tiny_further_{test,multi,hard}.json, so many questions each",
    )  # fmt: skip
    paper = which.add_parser("paper", help="the benchmarks of the paper and of later work")
    paper.add_argument(
        "--train", nargs="?", const="aug", choices=("aug", "gsm8k"),
        help="also gsm_train.json: aug (the default) is GSM8K-Aug, 385,620 questions; gsm8k is "
        "GSM8K without gsm_valid, 6,973 questions, from --source only",
    )  # fmt: skip
    paper.add_argument("--source", type=Path, help="a folder of raw files, in place of the hub")
    for part in (tiny, paper):
        part.add_argument("--output_dir", type=Path, default=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.benchmark == "tiny":
        for flag, size in (("--train", args.train), ("--further", args.further)):
            if size < 0:
                raise UserError(f"{flag} must be at least 0, not {size}")
        write_tiny(args.output_dir, args.train, args.further)
    else:
        if args.train == "gsm8k" and args.source is None:
            raise UserError("--train gsm8k: needs --source, the folder of gsm8k_train.jsonl")
        write_paper(args.output_dir, args.source, args.train)


if __name__ == "__main__":
    main()
