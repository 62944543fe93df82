"""Tables of all finished runs below a folder: python -m src.collect_results FOLDER"""

from pathlib import Path

from src.runs.tables import collect
from utils.cli import Parser
from utils.errors import reports_user_errors


@reports_user_errors
def main():
    parser = Parser(prog="src.collect_results", description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="results.*, choices.* and accuracy.md are written there"
    )
    print("\n".join(collect(parser.parse_args().folder)))


if __name__ == "__main__":
    main()
