"""How evenly four processes end when one of them is slow: python -m benchmarks.sharing

The units of work are sleeps, so that the cores of this machine do not matter. The last process
sleeps four times as long as the others. Prints for some numbers of units how long a run takes, in
times of the ideal, when units are handed out as in a run, and when each process has a fixed share.
"""

import os
import sys
import time

from utils.processes import (
    SharedSums,
    end_processes,
    handed_out,
    launch_workers,
    start_processes,
)

PROCESSES = 4
SLOWNESS = 4
WORK = 8.0  # seconds that one fast process would take for all units
UNITS = (32, 64, 128, 256)


def seconds_of_run(processes, units, seconds):
    """How long all processes take for the units that each of them gets."""
    processes.wait_for_everyone()
    start = time.monotonic()
    for _ in units:
        time.sleep(seconds)
    processes.wait_for_everyone()
    return time.monotonic() - start


def main():
    if "WORLD_SIZE" not in os.environ:
        sys.exit(launch_workers(PROCESSES, "benchmarks.sharing", []))
    processes = start_processes()
    rank = processes.process_index
    slowness = SLOWNESS if rank == PROCESSES - 1 else 1
    ideal = WORK / (PROCESSES - 1 + 1 / SLOWNESS)
    for count in UNITS:
        units, seconds = range(count), slowness * WORK / count
        shared = seconds_of_run(processes, handed_out(units, SharedSums()), seconds)
        fixed = seconds_of_run(processes, units[rank::PROCESSES], seconds)
        if processes.is_main_process:
            times = f"handed out {shared / ideal:.2f}, fixed shares {fixed / ideal:.2f}"
            print(f"{count} units: {times} times the ideal {ideal:.2f} s", flush=True)
    end_processes()


if __name__ == "__main__":
    main()
