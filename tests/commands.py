"""Runs the project's commands as a user would, and reads what they write."""

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
import time
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
    """Runs a command line in a new process, for tests of launchers. ``run`` is seconds faster."""
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return _check_warnings(result)


def run(command, file_limit=None, delays=None):
    """Runs a command line in processes forked from one that has loaded the libraries already.

    file_limit: the largest size of a file in bytes. A write beyond it fails, as on a full disk.
    delays: {process: seconds that it sleeps before each unit of its work}; each process then prints
    the units that it gets.
    """
    with tempfile.TemporaryDirectory() as folder:
        workers = start(command, folder, file_limit, delays)
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
    return _check_warnings(subprocess.CompletedProcess(command, code, out, err))


def start(command, folder, file_limit=None, delays=None):
    """Starts the processes of a command line and returns them. Their output goes to ``folder``."""
    count = next((int(x.partition("=")[2]) for x in command if x.startswith("--nproc_per_node")), 1)
    module = next(k for k, part in enumerate(command) if part.startswith("src."))
    arguments = command[module:], folder, file_limit, delays
    return fork_group(_work, count, *arguments)


def fork_group(function, count, *arguments):
    """Starts processes that call function(rank, *arguments) in the environment of torchrun."""
    port, workers = _free_port(), []
    for rank in range(count):
        environment = _rank_environment(rank, count, port) if count > 1 else {}
        target = (function, environment, rank, *arguments)
        workers.append(_FORKS.Process(target=_call, args=target, daemon=True))
        workers[-1].start()
    return workers


def _call(function, environment, *arguments):
    os.chdir(ROOT)
    os.environ.update(ONE_THREAD | environment)
    torch.set_num_threads(1)
    function(*arguments)


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _rank_environment(rank, count, port):
    """The environment that torchrun gives to a process."""
    values = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return {key: str(value) for key, value in values.items()}


def _work(rank, command, folder, file_limit, delays):
    """What a process of ``start`` does: it runs the command and exits with its code."""
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{rank}.{name}", os.O_WRONLY | os.O_CREAT), stream)
    if file_limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if delays:
        _slow_down(rank, delays.get(rank, 0))
    sys.argv, code = command, 0
    try:
        importlib.import_module(command[0]).main()
    except SystemExit as exit_:
        code = exit_.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def _slow_down(rank, seconds):
    """Lets this process sleep before each unit of its work and print the unit."""
    job = importlib.import_module("src.runs.job").Job
    work = job._try

    def slow_work(self, unit):
        print(f"process {rank}: {unit}", flush=True)
        time.sleep(seconds)
        return work(self, unit)

    job._try = slow_work


def _check_warnings(result):
    """The result of a command, once checked: no library warns when the command succeeds."""
    lines = result.stderr.splitlines()
    warnings = [line for line in lines if re.search("warning|deprecated", line, re.IGNORECASE)]
    if result.returncode == 0:
        assert all(line.startswith("warning: ") for line in warnings), result.stderr
    return result


def run_here(command):
    """Runs a command line of one process within this process, which is seconds faster."""
    main = importlib.import_module(command[2]).main
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch("sys.argv", command[2:]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def assert_success(result):
    """Fails unless the command exited with 0; returns its result."""
    assert result.returncode == 0, result.stderr
    return result


def assert_one_line_error(result, *parts, after_progress=False):
    """Fails unless the command exited with 2 and one line of error, which holds ``parts``.

    after_progress: the run had begun, so that lines of its progress may come before.
    """
    assert result.returncode == 2, (result.returncode, result.stderr)
    lines = result.stderr.splitlines()
    if after_progress:
        assert "Traceback" not in result.stderr
        lines = [line for line in lines if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: "), lines[0]
    for part in parts:
        assert str(part) in lines[0], lines[0]


def samples_of(folder):
    """The records of a run's samples.jsonl, as they lie in the file."""
    text = (Path(folder) / "samples.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def outputs(folder):
    """samples.jsonl as text, and metrics.json without its speed."""
    metrics = json.loads((Path(folder) / "metrics.json").read_text())
    metrics.pop("speed")
    return (Path(folder) / "samples.jsonl").read_text(), metrics


def edit_json(path, **values):
    """Sets keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def interrupt_and_continue(command, functions, case, monkeypatch):
    """Runs a command within this process, interrupted once, and then again to its end.

    It is interrupted (KeyboardInterrupt) before or after one call of one function.
    functions: (owner, name, most): a function, and how many of its first calls are candidates.
    case: number of the case; the cases go through the functions, first with an interruption after
    the call, then before it, and so on.
    """
    owner, name, most = functions[case % len(functions)]
    fatal = random.Random(case).randint(1, most)
    interrupt_before = case // len(functions) % 2
    main = importlib.import_module(command[2]).main
    original, calls = getattr(owner, name), 0

    def interrupted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == fatal and interrupt_before:
            raise KeyboardInterrupt
        result = original(*args, **kwargs)
        if calls == fatal:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr("sys.argv", command[2:])
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(SystemExit):
            main()
    assert calls >= fatal
    main()
