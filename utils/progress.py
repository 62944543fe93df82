"""A progress bar that is readable in a log file too."""

import sys
import time
from contextlib import contextmanager

from tqdm import tqdm

_LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class _Lines:
    """A stream that turns tqdm's carriage returns into lines."""

    def write(self, text):
        text = text.strip("\r\n ")
        if text:
            sys.stderr.write(text + "\n")

    def flush(self):
        sys.stderr.flush()


def progress(total, initial=0, description="questions", disable=False, unit="it"):
    """A tqdm bar; without a terminal it writes a plain line every 15 seconds."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        disable=disable,
        unit=unit,
        dynamic_ncols=terminal,
        mininterval=0.5 if terminal else 15,
        file=None if terminal else _Lines(),
        bar_format=None if terminal else _LINE,
    )


def duration(seconds):
    """``50 s``, ``1 min 30 s``, ``2 h 5 min`` or ``3 days 4 h``."""
    seconds = round(seconds)
    for name, size, smaller, smaller_size in (
        ("days", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if seconds >= size:
            return f"{seconds // size} {name} {seconds % size // smaller_size} {smaller}"
    return f"{seconds} s"


class Pace:
    """Prints once, after ``after`` seconds of steps, how long all of them will take.

    The first step includes preparations and is not timed. left: steps to come at the start. say:
    the function that prints the line, or None.
    """

    def __init__(self, left, say, after=5.0):
        self.left, self.say, self.after = left, say, after
        self.start, self.timed = None, 0

    def step(self):
        if self.start is None:
            self.start = time.monotonic()
            return
        self.timed += 1
        passed = time.monotonic() - self.start
        if self.say is None or passed < self.after:
            return
        each = passed / self.timed
        line = f"a step takes {each:.2g} s: {self.left} steps about {duration(each * self.left)}"
        self.say(f"{line}, evaluations not counted")
        self.say = None


@contextmanager
def timed(counter, name):
    """Adds the seconds that the block takes to ``counter[name]``."""
    start = time.monotonic()
    yield
    counter[name] += time.monotonic() - start
