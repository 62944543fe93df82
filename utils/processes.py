"""The processes of torchrun or accelerate launch: how they start and how they leave."""

import atexit
import os
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


def use_all_cores():
    """Lets a single process of `accelerate launch` use every core.

    The launcher sets OMP_NUM_THREADS to 1 where nobody has set it, which halves the speed on two cores. Who
    wants one thread starts ``python -m`` with OMP_NUM_THREADS=1 instead.
    """
    launched_alone = "ACCELERATE_USE_CPU" in os.environ and "WORLD_SIZE" not in os.environ
    if launched_alone and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(psutil.cpu_count(logical=False) or 1)


def where(device, processes):
    """``cuda:0`` or ``cpu with 2 threads``, and the number of processes where there are several."""
    threads = torch.get_num_threads()
    place = (
        f"cpu with {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else str(device)
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
