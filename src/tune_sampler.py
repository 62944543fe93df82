"""Chooses the strengths of samplers: python -m src.tune_sampler --model_id FOLDER

It sweeps dropout_p and noise_std, or the strengths of --samplers, on a validation file, and writes
for each the value with the highest coverage and the one with the best majority vote into the
checkpoint's generation_config.json (dropout_p, dropout_p_for_vote, noise_std, noise_std_for_vote).
"""

from pathlib import Path

from src.runs.arguments import TuningArguments
from src.runs.figures import figures_line
from src.runs.finished_runs import FinishedRun
from src.runs.launch import run_cells
from src.runs.tables import collect
from src.runs.tuning import cells, choices_of, curves_of, grids_of, table_of, write_choices
from utils.cli import parse_flags
from utils.errors import reports_user_errors


@reports_user_errors
def main():
    arguments = parse_flags(TuningArguments, "src.tune_sampler", __doc__)
    folder = Path(arguments.output_dir)
    lines = cells(arguments, grids_of(arguments))
    run_cells(lines.values(), folder / "cells.txt", arguments.nproc)
    runs = list(map(FinishedRun, lines))
    collect(runs, folder)
    curves, greedy = curves_of(runs)
    lines = [*table_of(curves, greedy), figures_line(runs, folder, ["diversity"])]
    lines += write_choices(arguments, choices_of(curves))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
