"""The cells of a sweep: a file of command lines, the job of each, and how long they will take."""

import shlex

from src.runs.commands import COMMANDS
from utils.cli import parse_flags
from utils.errors import UserError
from utils.progress import duration

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
            if job.arguments in [other.arguments for other in jobs]:
                continue  # two ways to say the same, such as two purposes with one noise_std
            if job.folder in line_of:
                other = line_of[job.folder]
                raise UserError(f"{job.folder} is the folder of line {other} too; name another")
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


def check(jobs, nproc):
    """Checks all unfinished jobs before any starts; prints how long they will take."""
    by_size = sorted(jobs, key=lambda job: job.trajectories)
    for job in by_size:
        job.prepare()
    largest = {job.model_key: job for job in by_size}  # of each model, by number of trajectories
    for job in largest.values():
        job.introduce()
    total = sum(job.trajectories * job.trajectory_cost for job in jobs)
    expected = START_SECONDS + total * by_size[-1].seconds_per_trajectory() / nproc
    cells = "1 cell" if len(jobs) == 1 else f"{len(jobs)} cells"
    processes = "1 process" if nproc == 1 else f"{nproc} processes"
    estimate = f"about {duration(expected)} on {processes}, by a measurement of one second"
    print(f"{cells}: {estimate}", flush=True)


def complete(jobs, todo, processes):
    """Runs the jobs of ``todo``; the others measure their records again, perhaps for other N."""
    for job in jobs:
        if job in todo and processes.is_main_process:
            print(f"[{todo.index(job) + 1}/{len(todo)}] {job.folder}", flush=True)
        job.complete()
