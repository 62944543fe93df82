"""Figures of all finished runs below some folders: python -m src.plot_results FOLDER..."""

from pathlib import Path

from src.runs.figure_maps import PROJECTIONS
from src.runs.figures import plot
from src.runs.finished_runs import finished_runs
from utils.cli import Parser
from utils.errors import reports_user_errors


@reports_user_errors
def main():
    parser = Parser(prog="src.plot_results", description=__doc__)
    parser.add_argument(
        "folder", type=Path, nargs="+", help="the figures go to FOLDER/figures of the first one"
    )
    parser.add_argument(
        "--projection",
        choices=PROJECTIONS,
        default="pca",
        help="of the maps of thoughts, which need runs with --save_latents true",
    )
    args = parser.parse_args()
    found = {run.folder.resolve(): run for folder in args.folder for run in finished_runs(folder)}
    runs, folder = list(found.values()), args.folder[0] / "figures"
    print("\n".join(map(str, plot(runs, folder, args.projection))))


if __name__ == "__main__":
    main()
