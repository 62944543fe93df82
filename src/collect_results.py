"""Tables and figures of all finished runs below a folder: python -m src.collect_results FOLDER"""

from pathlib import Path

from src.runs.figures import figures_line
from src.runs.finished_runs import finished_runs
from src.runs.tables import collect
from utils.cli import Parser
from utils.errors import reports_user_errors


@reports_user_errors
def main():
    parser = Parser(prog="src.collect_results", description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="results.*, choices.*, accuracy.md and figures are written there"
    )
    folder = parser.parse_args().folder
    runs = finished_runs(folder)
    print("\n".join(collect(runs, folder)), flush=True)
    print(figures_line(runs, folder))


if __name__ == "__main__":
    main()
