"""The folder of a run: what it was made from, and whether a command may go on in it."""

import json
import platform
import subprocess
from pathlib import Path

import accelerate
import torch
import transformers

from src.models.loading import checkpoint_files
from utils.errors import UserError
from utils.files import is_temporary, sha256


def identity_of(settings, rows):
    """What a run's results depend on: its settings, and the digests of data and model."""
    return {
        "settings": settings.result_settings(),
        "questions": len(rows),
        "data_sha256": sha256([settings.data_path]),
        "model_sha256": sha256(checkpoint_files(settings.model_type, settings.model_id)),
    }


def environment(processes, batch_size):
    """Where a run was made, for the reader of its config.json."""
    device = processes.device
    cuda = device.type == "cuda"
    return {
        "batch_size": batch_size,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
        },
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu {platform.machine()}",
        "processes": processes.num_processes,
        "threads_per_process": torch.get_num_threads(),
        "git_commit": _git_commit(),
    }


def check_folder(folder, identity, overwrite):
    """Raises UserError when the folder holds something else than the run of this identity."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder")
    path = folder / "config.json"
    if not path.exists():
        if folder.exists() and not all(is_temporary(file) for file in folder.iterdir()):
            raise UserError(f"{folder}: holds other files; name a new or empty folder")
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        old_settings = old["settings"]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path}: not the config.json of a run; choose another folder") from None
    if overwrite:
        return
    settings = identity["settings"]
    other = [f"--{key}" for key in settings if old_settings.get(key) != settings[key]]
    other += [key for key in identity if key != "settings" and old.get(key) != identity[key]]
    if other:
        raise UserError(
            f"{folder} holds a run with another {other[0]}; choose another folder or --overwrite true"
        )


def _git_commit():
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:  # no git on this machine
        return None
    return done.stdout.strip() or None
