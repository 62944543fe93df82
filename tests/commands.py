"""Runs the project's commands as a user would."""

import contextlib
import importlib
import io
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(module, *flags, processes=1):
    """The command line of ``src.<module>``, under torchrun for several processes."""
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", f"--nproc_per_node={processes}", "--standalone", "-m"]
    return [*start, f"src.{module}", *map(str, flags)]


def infer_command(*flags, processes=1):
    """The command line of src.infer_gpt2."""
    return command("infer_gpt2", *flags, processes=processes)


def run(command, **environment):
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=300
    )
    if done.returncode == 0:  # normal use is quiet: no library warns
        assert not re.search("warning|deprecated", done.stderr, re.IGNORECASE), done.stderr
    return done


def run_here(command):
    """The same as ``run`` for one process, within this one: seconds less each time."""
    main = importlib.import_module(command[2]).main
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch("sys.argv", command[2:]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def outputs(folder):
    """samples.jsonl as text, and metrics.json without its speed."""
    metrics = json.loads((Path(folder) / "metrics.json").read_text())
    metrics.pop("speed")
    return (Path(folder) / "samples.jsonl").read_text(), metrics


def interrupted_once(main, places, moment, monkeypatch):
    """Runs ``main`` with a KeyboardInterrupt around one call of a function; whether the call came.

    places: (owner, name, most), a function and how many of its first calls may be the one. The moments
    go through the places, first with the interruption after the call, then before it, and so on.
    """
    owner, name, most = places[moment % len(places)]
    calls, fatal = 0, random.Random(moment).randint(1, most)
    before = moment // len(places) % 2
    plain = getattr(owner, name)

    def fails(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == fatal and before:
            raise KeyboardInterrupt
        result = plain(*args, **kwargs)
        if calls == fatal:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        with pytest.raises(SystemExit):
            main()
    return calls >= fatal
