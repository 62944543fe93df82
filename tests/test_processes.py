"""Processes of a run: their threads, how they share work, and a worker that fails."""

import itertools
import json
import time
from types import SimpleNamespace

import pytest
import torch

from src.runs import job
from src.sampling.memory import Budget
from tests.commands import assert_success, command, fork_group, run, samples_of
from utils import processes
from utils.processes import SharedSums, end_processes, handed_out, start_processes


@pytest.mark.quick
@pytest.mark.parametrize(
    ("environment", "physical", "allowed", "threads"),
    [
        ({"ACCELERATE_USE_CPU": "False", "OMP_NUM_THREADS": "1"}, 4, 8, 4),  # accelerate launch
        ({"ACCELERATE_USE_CPU": "False", "OMP_NUM_THREADS": "1"}, 4, 2, 2),  # in a container
        ({"ACCELERATE_USE_CPU": "False", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}, 4, 8, None),
        ({"OMP_NUM_THREADS": "1"}, 4, 8, None),  # the user's own setting
        ({"ACCELERATE_USE_CPU": "False", "OMP_NUM_THREADS": "3"}, 4, 8, None),
    ],
)
def test_a_single_process_of_accelerate_launch_uses_every_core(
    environment, physical, allowed, threads, monkeypatch
):
    for name in ("ACCELERATE_USE_CPU", "OMP_NUM_THREADS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    set_threads = []
    monkeypatch.setattr(processes.psutil, "cpu_count", lambda logical: physical)
    monkeypatch.setattr(processes, "_allowed_cores", lambda: allowed)
    monkeypatch.setattr(torch, "set_num_threads", set_threads.append)
    processes.use_all_cores()
    assert set_threads == ([] if threads is None else [threads])


def _take_units(rank, folder):
    """Two runs of sleeping work in one group of processes; the last one is slow."""
    group, runs = start_processes(), []
    seconds = 0.08 if rank == group.num_processes - 1 else 0.02
    for _ in range(2):
        sums, taken = SharedSums(), []
        group.wait_for_everyone()
        for unit in handed_out(range(40), sums):
            taken.append(unit)
            time.sleep(seconds)
        runs.append(taken)
    (folder / str(rank)).write_text(json.dumps(runs))
    end_processes()


def test_a_slow_process_gets_fewer_units_and_each_unit_is_done_once(tmp_path):
    for worker in fork_group(_take_units, 4, tmp_path):
        worker.join(timeout=60)
        assert worker.exitcode == 0
    shares = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(4)]
    for of_processes in zip(*shares, strict=True):
        assert sorted(itertools.chain(*of_processes)) == list(range(40))
        *fast, slow = map(len, of_processes)
        assert slow < min(fast)


@pytest.mark.quick
def test_one_process_without_a_group_gets_all_units():
    for _ in range(2):
        assert list(handed_out("abc", SharedSums())) == ["a", "b", "c"]


def _limit_memory(rank, folder):
    """A process that has less free memory the higher its rank is."""
    start_processes()
    job.set_budget = lambda *_: Budget(1000 - rank)
    arguments = SimpleNamespace(latent_length=1, max_new_tokens=1, memory_gib=None)
    run = SimpleNamespace(arguments=arguments, prompts=[[0]], models=list)
    job.Job.limit_memory(run)
    (folder / str(rank)).write_text(str(run.budget.size))
    end_processes()


def test_all_processes_of_a_run_have_the_budget_of_the_least(tmp_path):
    for worker in fork_group(_limit_memory, 2, tmp_path):
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["999", "999"]


def test_a_worker_that_fails_prints_one_line_and_the_sweep_can_continue(tmp_path):
    """The disk is full when the two processes of a sweep write. No launcher prints a traceback."""
    cells = tmp_path / "cells.txt"
    flags = "--data_path data/tiny_valid.json --limit 12 --n_samples 8 --batch_size 2"
    cells.write_text(
        f"src.infer_gpt2 {flags} --output_dir {tmp_path}/a\n"
        f"src.infer_gpt2 {flags} --output_dir {tmp_path}/b --seed 1\n"
    )
    failed = run(command("sweep", cells, "--nproc", 2), file_limit=4096)
    assert failed.returncode == 2, failed.stderr
    assert "Traceback" not in failed.stderr
    lines = [line for line in failed.stderr.splitlines() if not line.startswith("questions:")]
    assert lines and all("what was finished is kept" in line for line in lines), failed.stderr
    assert_success(run(command("sweep", cells)))  # in one process, which starts faster
    assert len(samples_of(tmp_path / "a")) == len(samples_of(tmp_path / "b")) == 12
