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
    """Runs ``python -m module arguments`` in ``count`` processes, as torchrun does, and returns the exit code
    of the first one that failed, or 0. What went wrong the worker has said: no traceback follows it."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0,
    )  # fmt: skip
    logging.disable(logging.ERROR)  # the launcher's own lines about workers that it stops
    try:
        elastic_launch(config, sys.executable)("-u", "-m", module, *arguments)
    except ChildFailedError as error:
        return abs(error.get_first_failure()[1].exitcode) or 1
    except SignalException:
        return 130
    return 0


def use_all_cores():
    """Lets a single process of `accelerate launch` use every core.

    The launcher sets OMP_NUM_THREADS to 1 where nobody has set it, which halves the speed on two cores. Who
    wants one thread starts ``python -m`` with OMP_NUM_THREADS=1 instead.
    """
    launched_alone = "ACCELERATE_USE_CPU" in os.environ and "WORLD_SIZE" not in os.environ
    if launched_alone and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(min(psutil.cpu_count(logical=False) or 1, _allowed_cores()))


def _allowed_cores():
    """The cores that this process may use, which a container may have fewer of than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def where(device, processes):
    """``cuda:0`` or ``cpu with 2 threads``, and the number of processes where there are several."""
    threads = torch.get_num_threads()
    place = (
        f"cpu with {threads} thread{'s' if threads > 1 else ''}"
        if device.type == "cpu"
        else str(device)
    )
    return f"{place}, {processes} processes" if processes > 1 else place


def end_processes():
    """All leave together, so that none loses a peer that it still waits for."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        _destroy_group()


def leave_cleanly():
    """Has the process group destroyed on every way out of the program, errors too.

    Where the interpreter ends with a live gloo group, its threads are destroyed while they run, and the
    process aborts now and then ("terminate called without an active exception").
    """
    atexit.register(_destroy_group)


def _destroy_group():
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
