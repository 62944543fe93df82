"""Processes of a run: their threads, and a worker that fails."""

import pytest
import torch

from tests.commands import assert_success, command, run
from utils import processes


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


def test_a_worker_that_fails_prints_one_line_and_the_sweep_can_continue(tmp_path):
    """The disk is full when the two processes of a sweep write. No launcher prints a traceback."""
    cells = tmp_path / "cells.txt"
    flags = f"--limit 12 --n_samples 8 --batch_size 2 --output_dir {tmp_path}/out"
    cells.write_text(f"src.infer_gpt2 --data_path data/tiny_valid.json {flags}\n")
    failed = run(command("sweep", cells, "--nproc", 2), file_limit=4096)
    assert failed.returncode == 2, failed.stderr
    assert "Traceback" not in failed.stderr
    lines = [line for line in failed.stderr.splitlines() if not line.startswith("questions:")]
    assert lines and all("what was finished is kept" in line for line in lines), failed.stderr
    assert_success(run(command("sweep", cells, "--nproc", 2)))
