"""The machine: what it is, and how fast it multiplies matrices and copies memory."""

import datetime
import os
import platform
import statistics
import subprocess
from pathlib import Path

import torch
import transformers

from benchmarks.timing import REPEATS, timed

TOKENS = {"cpu": (128, 512, 2048), "cuda": (512, 2048, 8192, 32768)}  # rows of a timed product
_COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}
_AT_ONCE = {"cpu": 1, "cuda": 10}  # calls between two looks at the clock


def about(device):
    """What a reader needs to judge or to repeat the figures."""
    return {
        "device": device,
        "machine": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
    }


def _cpu_name():
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit():
    """The commit, with "+" where code differs from it; "unknown" without git."""
    git = ("git", "-C", str(Path(__file__).parent))
    try:
        name = _output(*git, "rev-parse", "--short", "HEAD")
        changed = _output(*git, "status", "--porcelain", "-uno", "--", ".", "../src", "../utils")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed else "")


def _output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@torch.inference_mode()
def product_rate(model, device):
    """Operations per second: the fastest of a layer's products, over several numbers of rows.

    In the model's number format. One rate for all workloads: products of few rows are slower, and
    that is part of what separates a workload from the limit.
    """
    rates = []
    for module in model.residual_outputs(model.blocks[0]):
        weight = module.weight  # (in, out) or (out, in), which is as fast
        for tokens in TOKENS[device]:
            x = torch.ones(tokens, weight.shape[1], dtype=weight.dtype, device=device)
            operations = 2 * tokens * weight.numel() * _AT_ONCE[device]
            rates.append(operations / _median_seconds(device, lambda x=x, w=weight: x @ w.T))
    return max(rates)


def copy_bandwidth(device):
    """Bytes per second of a copy within the device's memory, those read and those written."""
    source = torch.ones(_COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    moved = 2 * source.numel() * _AT_ONCE[device]
    return moved / _median_seconds(device, lambda: target.copy_(source))


def _median_seconds(device, call):
    def several():
        for _ in range(_AT_ONCE[device]):
            call()

    several()
    return statistics.median(timed(device, several) for _ in range(REPEATS))
