"""Times and peak memory of calls, in alternation."""

import ctypes
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

REPEATS = 5
_MIB = 2**20


@dataclass
class Call:
    """What is timed: ``run(x)`` with x = ``setup()``, which is not timed; ``run()`` without it."""

    run: Callable
    setup: Callable | None = None


@dataclass
class Timing:
    """Seconds of the timed runs, and of the very first one, which may compile.

    peak_mib: the highest memory of the device, on a CPU of the process. work_mib: of it, what was
    not in use before the call.
    """

    times: list = field(default_factory=list)
    first_s: float = 0.0
    peak_mib: float = 0.0
    work_mib: float = 0.0

    @property
    def seconds(self):
        return statistics.median(self.times)

    def as_dict(self):
        return {
            "seconds": round(self.seconds, 6),
            "times": [round(seconds, 6) for seconds in self.times],
            "first_s": round(self.first_s, 6),
            "peak_mib": round(self.peak_mib),
            "work_mib": round(self.work_mib),
        }


def alternate(calls, device, repeats=REPEATS):
    """{label: Timing} of {label: Call}: each once, then each a second time, and so on.

    On CUDA the first run of each is a warm-up, which is not among ``times``; on a CPU the median is
    not moved by it. A call that runs out of the memory of a GPU gets None.
    """
    timings = {label: Timing() for label in calls}
    rounds = repeats + (device == "cuda")
    for number in range(rounds):
        for label, call in calls.items():
            if timings[label] and not _fits(call, device, number, timings[label]):
                timings[label] = None
                torch.cuda.empty_cache()  # now that the call's frames are gone
    return timings


def _fits(call, device, number, timing):
    """Runs the call; false where the memory of a GPU does not suffice."""
    try:
        _run(call, device, number, timing)
    except torch.cuda.OutOfMemoryError:
        return False
    return True


def _run(call, device, number, timing):
    """Runs and times the call for the ``number``-th time; the first time measures memory, too."""
    inputs = () if call.setup is None else (call.setup(),)
    before = reset_peak(device) if number == 0 else None
    seconds = timed(device, call.run, *inputs)
    if number == 0:
        timing.first_s = seconds
        timing.peak_mib = peak_mib(device)
        timing.work_mib = timing.peak_mib - before
    if number > 0 or device != "cuda":
        timing.times.append(seconds)


def timed(device, call, *args):
    """Seconds of one call, until the device has finished."""
    _synchronize(device)
    start = time.perf_counter()
    call(*args)
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def reset_peak(device):
    """Starts a new peak; returns the memory that is in use now, in MiB."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / _MIB
    if platform.system() != "Linux":
        return peak_mib(device)
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "malloc_trim"):  # glibc keeps freed memory, which would hide its reuse
        c_library.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mib("VmRSS")


def peak_mib(device):
    """The peak since the reset in MiB; on other systems than Linux since the start."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / _MIB
    if platform.system() == "Linux":
        return _status_mib("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB  # macOS counts bytes


def _status_mib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**10
