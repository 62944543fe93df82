"""Figures of all finished runs and backbones below some folders.

python -m src.plot_results FOLDER...
"""

from pathlib import Path

from src.runs.figure_maps import PROJECTIONS
from src.runs.figure_training import training_histories
from src.runs.figures import plot
from src.runs.finished_runs import finished_runs
from utils.cli import Parser
from utils.errors import UserError, reports_user_errors


def _runs(folder):
    """The finished runs below a folder; it needs none if it holds trainings."""
    try:
        return finished_runs(folder)
    except UserError:
        if training_histories([folder]):
            return []
        raise


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
    histories = training_histories(args.folder)
    found = {run.folder.resolve(): run for folder in args.folder for run in _runs(folder)}
    runs, folder = list(found.values()), args.folder[0] / "figures"
    paths = plot(runs, folder, args.projection, histories=histories)
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    main()
