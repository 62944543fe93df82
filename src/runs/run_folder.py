"""The folder of a run: what it was made from, and whether a command may continue in it."""

import json
import platform
import subprocess
from pathlib import Path

import accelerate
import torch
import transformers
import yaml

from src.models.loading import checkpoint_files
from src.sampling.samplers import EXTRA_DROPOUTS, PAPER_SAMPLERS, SAMPLER_FLAGS
from utils.datasets import data_sha256
from utils.errors import UserError
from utils.files import is_temporary, remove_temporary, sha256, write_json, write_text
from utils.hub import push

FLAGS = "flags.yaml"
# Which older runs lack. Those of samplers are None where a run does not use them.
LATER_FLAGS = (
    *(
        flag
        for sampler, flags in SAMPLER_FLAGS.items()
        if sampler not in PAPER_SAMPLERS
        for flag in flags
    ),
    "signals",
    "stop_error",
)
_OWN_FILES = (FLAGS, "config.json")  # beside the outputs of the run


def fingerprint_of(settings, num_questions, data_path, model_type, model_id):
    """What a run's results depend on: its settings, and the digests of data and model."""
    return {
        "settings": settings,
        "questions": num_questions,
        "data_sha256": data_sha256(data_path),
        "model_sha256": sha256(checkpoint_files(model_type, model_id)),
    }


def current_names(settings):
    """The settings of a config.json, where runs before 2026-11-26 had other names for some.

    They also lack EXTRA_DROPOUTS, which were off, and LATER_FLAGS; those that choose lack guide and
    lookahead.
    """
    names = {"generator_type": "model_type", "generator_id": "model_id"}
    renamed = {names.get(key, key): value for key, value in settings.items()}
    if "num_return_sequences" in renamed:
        beams = (renamed.get("num_beams") or 0) * (renamed.get("num_beam_candidates") or 0)
        renamed["n_samples"] = renamed.pop("num_return_sequences") or beams
    off = False if renamed.get("sampling_by") == "dropout" else None
    newer = dict.fromkeys(LATER_FLAGS)
    newer["signals"] = None if renamed.get("prm_mode") == "beam_search" else False
    newer |= dict.fromkeys(EXTRA_DROPOUTS, off)
    if "prm_mode" in renamed:
        values = ("rm", "0") if renamed["prm_mode"] == "beam_search" else (None, None)
        newer |= dict(zip(("guide", "lookahead"), values, strict=True))
    return newer | renamed


class RunFolder:
    """The folder of one run; ``open`` creates it.

    Raises UserError when it holds something else than the run of this fingerprint. With
    ``overwrite`` another run is allowed, which ``open`` removes.
    """

    def __init__(self, path, fingerprint, overwrite):
        self.path, self.fingerprint, self.overwrite = Path(path), fingerprint, overwrite
        self._check()

    def _check(self):
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; name a folder")
        config = self.path / "config.json"
        if not config.exists():
            if self.path.exists() and not all(map(is_temporary, self.path.iterdir())):
                raise UserError(f"{self.path}: holds other files; name a new or empty folder")
            return
        try:
            old = json.loads(config.read_text(encoding="utf-8"))
            old_settings = current_names(old["settings"])
        except (ValueError, TypeError, KeyError, AttributeError):
            fault = "not the config.json of a run"
            raise UserError(f"{config}: {fault}; choose another folder") from None
        if not self.overwrite:
            self._compare(old, old_settings)

    def _compare(self, old, old_settings):
        new = self.fingerprint
        other = [f"--{k}" for k, v in new["settings"].items() if old_settings.get(k) != v]
        other += [key for key in new if key != "settings" and old.get(key) != new[key]]
        if other:
            fault = f"{self.path} holds a run with another {other[0]}"
            raise UserError(f"{fault}; choose another folder or --overwrite true")

    def open(self, processes, batch_size, outputs):
        """Creates the folder and its config.json. All processes call it.

        outputs: patterns of the files that --overwrite true removes.
        """
        processes.wait_for_everyone()  # all have looked at the folder as it was
        if processes.is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
            remove_temporary(self.path)
            if self.overwrite:
                self._remove(outputs)
            write_json(
                self.path / "config.json",
                self.fingerprint | _environment(processes, batch_size),
            )
        processes.wait_for_everyone()

    def save_flags(self, flags):
        """Writes the flags {name: value}, a file that --config reads."""
        comment = "# The flags of this run; --config with this file gives it again.\n"
        text = yaml.safe_dump(flags, sort_keys=False, allow_unicode=True)
        write_text(self.path / FLAGS, comment + text)

    def push(self, repo, outputs):
        """Sends the run to a data set repository of the hub. Raises UserError when that fails."""
        push(self.path, repo, "dataset", (*outputs, *_OWN_FILES))

    def _remove(self, outputs):
        """Removes the old run; config.json, which identifies the folder, goes last."""
        for pattern in (*outputs, *_OWN_FILES):
            for path in self.path.glob(pattern):
                path.unlink()


def _environment(processes, batch_size):
    """Where a run was made, for the reader of its config.json."""
    device = processes.device
    on_gpu = device.type == "cuda"
    return {
        "batch_size": batch_size,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
        },
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu {platform.machine()}",
        "processes": processes.num_processes,
        "threads_per_process": torch.get_num_threads(),
        "git_commit": git_commit(),
    }


def git_commit():
    """The commit of this code, or None."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:  # no git on this machine
        return None
    return result.stdout.strip() or None
