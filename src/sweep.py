"""Runs the cells of a sweep in one group of processes: python -m src.sweep CELLS --nproc 2

CELLS holds a command line a cell, such as ``src.infer_gpt2 --limit 100``; each can also be run by
itself (python -m src.infer_gpt2 ..). All cells are checked before the first one starts. run_*.sh
write such files.
"""

import os
import sys
from pathlib import Path

import torch

from src.models.loading import Loader
from src.runs.cells import check, complete, read_cells
from src.runs.figures import figures_line
from src.runs.finished_runs import finished_runs
from src.runs.tables import collect
from utils.cli import Parser
from utils.errors import UserError, reports_user_errors
from utils.processes import end_processes, launch_workers, start_processes


@reports_user_errors
def main():
    parser = Parser(prog="src.sweep", description=__doc__)
    parser.add_argument("cells", type=Path, help="a file of command lines")
    parser.add_argument("--nproc", type=int, default=1, help="processes")
    parser.add_argument(
        "--results", type=Path, help="folder whose runs are tabled and drawn at the end"
    )
    args = parser.parse_args()
    if args.nproc < 1:
        raise UserError(f"--nproc must be at least 1, not {args.nproc}")
    is_worker = "WORLD_SIZE" in os.environ
    if args.nproc > 1 and "OMP_NUM_THREADS" not in os.environ:  # as torchrun's workers
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    processes = start_processes()
    jobs = read_cells(args.cells, processes, Loader(processes.device))
    todo = [job for job in jobs if not job.finished]
    if todo and not is_worker:
        check(todo, args.nproc)
    if todo and not is_worker and args.nproc > 1:
        sys.exit(launch_workers(args.nproc, "src.sweep", sys.argv[1:]))
    complete(jobs, todo, processes)
    end_processes()
    if args.results and processes.is_main_process:
        runs = finished_runs(args.results)
        print("\n".join(collect(runs, args.results)), flush=True)
        print(figures_line(runs, args.results))
    for job in jobs:
        job.push()


if __name__ == "__main__":
    main()
