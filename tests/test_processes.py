"""How processes are launched and leave: cores, exit codes, one line where a worker fails."""

import pytest
import torch

from tests.commands import command, run
from utils import processes


@pytest.mark.parametrize(
    ("environment", "physical", "allowed", "threads"),
    [
        ({"ACCELERATE_USE_CPU": "False", "OMP_NUM_THREADS": "1"}, 4, 8, 4),  # accelerate launch
        ({"ACCELERATE_USE_CPU": "False", "OMP_NUM_THREADS": "1"}, 4, 2, 2),  # in a container
        ({"ACCELERATE_USE_CPU": "False", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}, 4, 8, None),
        ({"OMP_NUM_THREADS": "1"}, 4, 8, None),  # python -m, by the user's wish
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
    chosen = []
    monkeypatch.setattr(processes.psutil, "cpu_count", lambda logical: physical)
    monkeypatch.setattr(processes, "_allowed_cores", lambda: allowed)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    processes.use_all_cores()
    assert chosen == ([] if threads is None else [threads])


def test_a_worker_that_fails_says_one_line(tmp_path):
    """The cells are right, but the disk is full when two processes write: no traceback of a launcher."""
    cells = tmp_path / "cells.txt"
    flags = f"--limit 12 --n_samples 8 --batch_size 2 --output_dir {tmp_path}/out"
    cells.write_text(f"src.infer_gpt2 --data_path data/tiny_valid.json {flags}\n")
    done = run(command("sweep", cells, "--nproc", 2), file_limit=4096)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("questions:")]
    assert lines and all("what was finished is kept" in line for line in lines), done.stderr
    assert run(command("sweep", cells, "--nproc", 2)).returncode == 0  # and it goes on
