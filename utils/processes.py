"""The processes of torchrun or accelerate launch: how they start and how they leave."""

import atexit
import logging
import os
import sys
import uuid
from datetime import timedelta

import accelerate
import psutil
import torch


def start_processes():
    """The processes that were launched, one device each; a Mac computes on its CPU."""
    use_all_cores()
    cpu = not torch.cuda.is_available()
    processes = accelerate.PartialState(cpu=cpu, timeout=timedelta(days=7))
    leave_cleanly()
    return processes


def launch_workers(count, module, arguments):
    """Runs ``python -m module arguments`` in ``count`` processes, as torchrun does.

    Returns the exit code of the first one that failed, or 0. A failed worker has reported its error
    itself, so the launcher's traceback is suppressed.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=uuid.uuid4().hex,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
    )  # fmt: skip
    logging.disable(logging.ERROR)  # the launcher's lines about workers that it stops
    try:
        elastic_launch(config, sys.executable)("-u", "-m", module, *arguments)
    except ChildFailedError as error:
        return abs(error.get_first_failure()[1].exitcode) or 1
    except SignalException:
        return 130
    return 0


def use_all_cores():
    """Lets a single process of `accelerate launch` use every core.

    The launcher sets OMP_NUM_THREADS to 1 where it is not set, which halves the speed on two cores.
    For one thread, start ``python -m`` with OMP_NUM_THREADS=1 instead.
    """
    launched_alone = "ACCELERATE_USE_CPU" in os.environ and "WORLD_SIZE" not in os.environ
    if launched_alone and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(min(psutil.cpu_count(logical=False) or 1, _allowed_cores()))


def _allowed_cores():
    """How many cores this process may use; in a container they may be fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def where(device, processes):
    """``cuda:0`` or ``cpu with 2 threads``, and the number of processes where there are several."""
    name, threads = str(device), torch.get_num_threads()
    if device.type == "cpu":
        name = f"cpu with {threads} thread{'s' if threads > 1 else ''}"
    return f"{name}, {processes} processes" if processes > 1 else name


def end_processes():
    """All processes leave together, so that none loses a peer that it still waits for."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        _destroy_group()


def leave_cleanly():
    """Registers the destruction of the process group at every exit, errors included.

    When the interpreter exits with a live gloo group, the group's threads are destroyed while they
    run, and the process sometimes aborts ("terminate called without an active exception").
    """
    atexit.register(_destroy_group)


def _destroy_group():
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
