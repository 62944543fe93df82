"""Runs the project's commands as a user would."""

import atexit
import contextlib
import importlib
import io
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from unittest import mock

import pytest
import torch

ROOT = Path(__file__).parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
ENVIRONMENT = os.environ | ONE_THREAD
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["tests.commands", "src.sweep", "src.training.reward_trainer", "src.training.backbone_trainer"]
)


def command(module, *flags, processes=1):
    """The command line of ``src.<module>``, under torchrun for several processes."""
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", f"--nproc_per_node={processes}", "--standalone", "-m"]
    return [*start, f"src.{module}", *map(str, flags)]


def infer_command(*flags, processes=1):
    """The command line of src.infer_gpt2."""
    return command("infer_gpt2", *flags, processes=processes)


def launch(command, **environment):
    """Runs the command line itself: seconds slower than ``run``, for what a launcher does."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return _quiet(done)


def run(command, file_limit=None):
    """Runs a command line in processes of its own, as ``launch`` does. They are forked from one that has
    loaded the libraries already.

    file_limit: bytes that a file may have; a write beyond them fails, as on a full disk.
    """
    with tempfile.TemporaryDirectory() as folder:
        workers = start(command, folder, file_limit)
        for worker in workers:
            worker.join(timeout=300)
            if worker.is_alive():
                worker.kill()
                worker.join()  # its exit code is that of the signal
        code = next((worker.exitcode for worker in workers if worker.exitcode), 0)
        out, err = (
            "".join(path.read_text() for path in sorted(Path(folder).glob(f"*.{name}")))
            for name in ("out", "err")
        )
    return _quiet(subprocess.CompletedProcess(command, code, out, err))


def start(command, folder, file_limit=None):
    """The started processes of a command line, whose output goes to files in ``folder``."""
    count = next((int(x.partition("=")[2]) for x in command if x.startswith("--nproc_per_node")), 1)
    module = next(k for k, part in enumerate(command) if part.startswith("src."))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = []
    for rank in range(count):
        group = {} if count == 1 else {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        arguments = (
            command[module:],
            {k: str(v) for k, v in group.items()},
            f"{folder}/{rank}",
            file_limit,
        )
        workers.append(_FORKS.Process(target=_work, args=arguments, daemon=True))
        workers[-1].start()
    return workers


def _work(command, environment, output, file_limit):
    """The life of a process that ``start`` forks."""
    os.chdir(ROOT)
    os.environ.update(ONE_THREAD | environment)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT), stream)
    if file_limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    torch.set_num_threads(1)
    sys.argv, code = command, 0
    try:
        importlib.import_module(command[0]).main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def _quiet(done):
    """A command that has ended: in normal use no library warns."""
    said = [
        line
        for line in done.stderr.splitlines()
        if re.search("warning|deprecated", line, re.IGNORECASE)
    ]
    if done.returncode == 0:
        assert all(line.startswith("warning: ") for line in said), done.stderr
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
