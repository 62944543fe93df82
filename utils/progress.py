"""A progress bar that is readable in a log file too."""

import sys

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
