"""Reads the weights of a checkpoint that may be of any code base, without running its code."""

from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file

from utils.errors import UserError

# The first of these patterns that a folder has files of names its weights.
_PARTS = ("*.safetensors", "pytorch_model*.bin")  # several files are parts of one model
_SINGLE = ("*.bin", "*.pt", "checkpoint_*")  # one file is a whole model
_OF_TRAINING = ("training_args", "optimizer", "scheduler", "rng_state")  # files that hold no model


def read_weights(source):
    """{name: tensor} of a checkpoint: a file, a folder, or a hub id. Raises UserError."""
    path = Path(source)
    if not path.exists():
        path = _fetch(source)
    weights = {}
    for file in [path] if path.is_file() else _weight_files(path):
        weights |= _read(file)
    return weights


def _fetch(source):
    """The folder of a hub id."""
    patterns = [*_PARTS, *_SINGLE, "*.json", "*.txt"]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except Exception as error:  # the hub's errors share no base class
        reason = f"no such file or folder, and not to be had from the hub ({type(error).__name__})"
        raise UserError(f"{source}: {reason}") from None


def _weight_files(folder):
    for pattern in _PARTS:
        if files := sorted(folder.glob(pattern)):
            return files
    files = {file for pattern in _SINGLE for file in folder.glob(pattern) if file.is_file()}
    files = sorted(file for file in files if not file.name.startswith(_OF_TRAINING))
    if not files:
        raise UserError(f"{folder}: no weights there (.safetensors, .bin, .pt or checkpoint_*)")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{folder}: holds {names}; give the path of one of them")
    return files


def _read(file):
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: can't be read ({type(error).__name__})") from None
    except Exception as error:  # a damaged pickle fails in many ways
        reason = f"damaged, or more than weights ({type(error).__name__})"
        raise UserError(f"{file}: can't be read: {reason}") from None
    if not isinstance(weights, dict) or not weights:
        raise UserError(f"{file}: holds no state dict, {{name: tensor}}")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f"{file}: holds no state dict: {name} is no tensor")
    return weights
