"""Runs the cells of a sweep in one group of processes: python -m src.sweep CELLS --nproc 2

CELLS holds a command line a cell, such as ``src.infer_gpt2 --limit 100``; each can also be run by
itself (python -m src.infer_gpt2 ..). All cells are checked before the first one starts. run_*.sh
write such files.
"""

import os
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from src.models.loading import Loader
from src.runs.commands import COMMANDS, introduce
from src.runs.tables import collect
from src.sampling.engine import sample
from utils.cli import Parser, parse_flags
from utils.errors import UserError, reports_user_errors
from utils.processes import end_processes, launch_workers, start_processes
from utils.progress import duration

# A trajectory of best-of-N or beam search in all, in units of the time that sampling one takes.
CHOICE_COST = 3.5
START_SECONDS = 10  # until the processes are at work


def read_cells(path, processes, loader):
    """The jobs of a file of command lines. Raises UserError naming the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file of command lines") from None
    jobs, line_of = [], {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            job = _job(shlex.split(line), processes, loader)
            if job.folder in line_of:
                raise UserError(
                    f"{job.folder} is the folder of line {line_of[job.folder]} too; name another"
                )
        except (UserError, ValueError) as error:
            raise UserError(f"{path}: line {number}: {error}") from None
        line_of[job.folder] = number
        jobs.append(job)
    return jobs


def _job(line, processes, loader):
    name, *flags = line
    if name not in COMMANDS:
        raise UserError(f"{name} is none of {', '.join(COMMANDS)}")
    arguments = parse_flags(COMMANDS[name].arguments, name, "", flags)
    return COMMANDS[name].job(arguments, processes, loader)


def expected_seconds(jobs, processes):
    """How long unfinished jobs will take together, by a measurement of about a second.

    Samples a few questions with twice as many trajectories each time until the second is over.
    """
    job = max(jobs, key=lambda job: job.trajectories)
    model, _ = job.backbone()
    batch = list(range(len(job.rows)))[: job.arguments.batch_size]
    request, first_start, count = job.request(batch), time.monotonic(), 1
    while True:
        start = time.monotonic()
        sample(model, replace(request, n_samples=count))
        end = time.monotonic()
        if end > first_start + 1:
            break
        count = min(2 * count, job.arguments.n_samples)
    cost = {job: CHOICE_COST if hasattr(job.arguments, "prm_id") else 1 for job in jobs}
    total = sum(job.trajectories * cost[job] for job in jobs)
    return START_SECONDS + total * (end - start) / (count * len(batch)) / processes


def check(jobs, nproc):
    """Checks all unfinished jobs before any starts; prints how long they will take."""
    largest = {}  # of each model the job with the most trajectories
    for job in sorted(jobs, key=lambda job: job.trajectories):
        job.prepare()
        largest[job.arguments.model_type, job.arguments.model_id] = job
    for job in largest.values():
        introduce(job)
    cells = "1 cell" if len(jobs) == 1 else f"{len(jobs)} cells"
    processes = "1 process" if nproc == 1 else f"{nproc} processes"
    expected = duration(expected_seconds(jobs, nproc))
    print(f"{cells}: about {expected} on {processes}, by a measurement of one second", flush=True)


def complete(jobs, todo, processes):
    """Runs the unfinished jobs; the others measure their records again, perhaps for other N."""
    for job in jobs:
        if job in todo and processes.is_main_process:
            print(f"[{todo.index(job) + 1}/{len(todo)}] {job.folder}", flush=True)
        job.complete()


@reports_user_errors
def main():
    parser = Parser(prog="src.sweep", description=__doc__)
    parser.add_argument("cells", type=Path, help="a file of command lines")
    parser.add_argument("--nproc", type=int, default=1, help="processes")
    parser.add_argument("--results", type=Path, help="folder whose runs are tabled at the end")
    args = parser.parse_args()
    if args.nproc < 1:
        raise UserError(f"--nproc must be at least 1, not {args.nproc}")
    is_worker = "WORLD_SIZE" in os.environ
    if (
        args.nproc > 1 and "OMP_NUM_THREADS" not in os.environ
    ):  # as many threads as a worker will have
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
        print("\n".join(collect(args.results)))


if __name__ == "__main__":
    main()
