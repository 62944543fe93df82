"""Trackers of a training: TensorBoard and Weights & Biases, which write below output_dir/logs."""

import importlib
import json
import os
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, is_tensorboard_available, is_wandb_available

from utils.errors import UserError

TRACKERS = ("none", "tensorboard", "wandb")
_PROJECT = "latent-tts"
_INSTALLED = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


def check_installed(names):
    """Raises UserError when the package of one of these trackers is missing."""
    for name in names:
        if name in _INSTALLED and not _INSTALLED[name]():
            raise UserError(f"report_to: {name} needs a package: pip install {name}")


def logs_folder(output_dir):
    return Path(output_dir) / "logs"


def make_accelerator(recipe):
    """The Accelerator of a backbone's Recipe, with its tracker. Raises UserError."""
    tracker = None if recipe.report_to == "none" else recipe.report_to
    check_installed([tracker])
    logs = str(logs_folder(recipe.output_dir)) if tracker else None
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=recipe.mixed_precision,
        log_with=tracker,
        project_config=ProjectConfiguration(logging_dir=logs),
    )


def start_trackers(accelerator, recipe, step):
    """Starts the accelerator's trackers, if any, after ``step`` optimizer steps.

    What an interrupted session logged later than that is dropped from TensorBoard. Raises UserError
    when a tracker does not start.
    """
    if not accelerator.log_with:
        return
    logs = logs_folder(recipe.output_dir)
    logs.mkdir(parents=True, exist_ok=True)
    settings = {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in asdict(recipe).items()
    }
    kwargs = {
        "tensorboard": {"purge_step": step + 1},
        "wandb": {"name": Path(recipe.output_dir).name, "dir": str(logs)},
    }
    with _starting(recipe.report_to):
        accelerator.init_trackers(_PROJECT, config=settings, init_kwargs=kwargs)


@contextmanager
def _starting(name):
    """Makes one line of a tracker's errors, such as W&B's without a login."""
    try:
        yield
    except Exception as error:  # each package has its own kinds
        reason = " ".join(str(error).split())[:200]
        fault = f"report_to: {name} does not start ({reason})"
        raise UserError(f"{fault}; log in there, or leave out --report_to") from None


def finish_trackers(accelerator):
    """Writes what the trackers still hold. Unlike end_training it leaves the processes joined."""
    for tracker in accelerator.trackers:
        tracker.finish()


def direct_trainer(recipe):
    """Tells the trackers of the Hugging Face Trainer, by its own means, where to write.

    Raises UserError when W&B, which the Trainer starts later, has no login.
    """
    if not recipe.report_to:
        return
    logs = logs_folder(recipe.output_dir)
    logs.mkdir(parents=True, exist_ok=True)
    os.environ |= {"TENSORBOARD_LOGGING_DIR": str(logs), "WANDB_DIR": str(logs)}
    os.environ.setdefault("WANDB_PROJECT", _PROJECT)
    if "wandb" in recipe.report_to and recipe.process_index == 0:
        with _starting("wandb"):
            importlib.import_module("wandb").login()
