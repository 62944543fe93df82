"""The processes of torchrun or accelerate launch: how they start, share work and leave."""

import atexit
import itertools
import logging
import os
import sys
import uuid
from datetime import timedelta

import accelerate
import psutil
import torch

from utils.errors import UserError


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


class SharedSums:
    """Sums to which all processes of the group add, such as how many units are handed out.

    They lie in the store of the process group, which serves one request at a time: two processes
    never get the same value, and none waits for the work of another. All processes must create
    their SharedSums in the same order; one process alone needs no group.
    """

    _created = itertools.count()

    def __init__(self):
        self.store = _group_store()
        self.prefix = f"sums {next(self._created)}"  # all the sums of a group share its store

    def add(self, name, amount):
        """The sum of this name with ``amount`` added to it; it starts at 0.

        Raises UserError when the process or launcher that keeps the store has ended.
        """
        try:
            return self.store.add(f"{self.prefix} {name}", amount)
        except torch.distributed.DistNetworkError:
            raise UserError("lost the other processes: one of them failed or was ended") from None


def _group_store():
    """The store of the process group; one of this process where there is no group."""
    if torch.distributed.is_initialized():
        return torch.distributed.group.WORLD.get_group_store()
    return torch.distributed.HashStore()


def handed_out(units, sums):
    """Yields the units that this process gets: the next one of the list whenever it is free.

    units: the same list on every process; sums: their SharedSums. So a slow process gets fewer
    units, and at the end the others wait for one unit at most.
    """
    while (number := sums.add("handed out", 1) - 1) < len(units):
        yield units[number]


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
