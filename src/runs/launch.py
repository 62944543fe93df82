"""Runs the project's commands as a user would, for the commands that need many of them."""

import os
import shlex
import subprocess
import sys

import torch

from utils.errors import UserError
from utils.files import write_text


def default_processes():
    """One process a GPU; without a GPU one a core, at most four."""
    return torch.cuda.device_count() or min(4, os.cpu_count() or 1)


def default_batch_size():
    """Questions a batch. A GPU needs thousands of rows at once to be busy."""
    return 64 if torch.cuda.is_available() else 8


def sampling_command(architecture, chooses=False):
    """The command that samples from a backbone's checkpoint, or chooses among its trajectories."""
    return f"src.infer_{architecture}" + ("_rm" if chooses else "")


def command_line(module, flags):
    """``src.infer_gpt2 --limit 100``, from {flag: value}; a list gives several values.

    A value of None leaves the flag out.
    """
    words = [module]
    for name, value in flags.items():
        if value is not None:
            values = value if isinstance(value, list | tuple) else [value]
            words += [f"--{name}", *map(_word, values)]
    return shlex.join(words)


def _word(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def run_cells(lines, path, nproc):
    """Runs command lines by src.sweep in ``nproc`` processes; the file ``path`` keeps them."""
    write_text(path, "".join(f"{line}\n" for line in lines))
    run(["-m", "src.sweep", str(path), "--nproc", str(nproc)])


def run(arguments):
    """Runs Python with some arguments. If it fails this process ends with its exit code: it has
    reported its error itself. Raises UserError where a signal ended it."""
    code = subprocess.run([sys.executable, *arguments], check=False).returncode
    if code < 0:
        line = shlex.join(["python", *arguments])
        raise UserError(f"`{line}` was ended by signal {-code}; out of memory? Run again to go on")
    if code:
        sys.exit(code)
