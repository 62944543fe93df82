"""Keys of the public release's recipe of a LatentRM, in terms of ours."""

import json
import re
from pathlib import Path

from src.models import BACKBONES
from src.models.architectures import ARCHITECTURES
from utils.config import typed
from utils.errors import UserError, warn

_LOSSES = {"contrastive": "contrastive", "ce": "contrastive", "bce": "bce"}
_TRAJECTORIES = ("per_device_train_batch_size", "per_device_eval_batch_size")
# A key, and the keys that it decides: a recipe has one or the other.
RIVALS = {
    "loss_type": ("loss",),
    "train_dataset": ("train_pools",),
    "valid_dataset": ("eval_pools",),
    "generator_model_id": ("model_id",),
    "model_family": ("model_type",),
    "warmup_ratio": ("warmup_steps",),
    "eval_frequency": ("eval_steps", "save_steps"),
    "bf16": ("mixed_precision",),
    "batch_size": ("gradient_accumulation_steps",),
}


def _check_rivals(values):
    """Raises UserError where a recipe has a key and another one that it decides."""
    for key, others in RIVALS.items():
        for other in others:
            if _is_given(key, values) and other in values:
                raise UserError(f"{key} decides {other}: leave one out")


def _is_given(key, values):
    is_architecture = key == "model_family" and values.get(key) in ARCHITECTURES
    return key in values and not is_architecture


def in_our_keys(values):
    """The values of a recipe with the release's keys replaced. Raises UserError naming the key."""
    _check_rivals(values)
    ours = {key: value for key, value in values.items() if key not in _TRANSLATIONS}
    for key, translate in _TRANSLATIONS.items():
        if key in values:
            ours |= translate(values[key], values)
    if "loss_type" in values or "train_dataset" in values:
        for key in set(_TRAJECTORIES) & values.keys():
            warn(f"{key} counts questions here; the release's counts trajectories")
    return ours


def _loss(value, _):
    if value not in _LOSSES:
        raise UserError(f"loss_type must be one of {', '.join(_LOSSES)}, not {value!r}")
    return {"loss": {_LOSSES[value]: 1.0}}


def _train_pools(value, _):
    folders = typed(value, str | list[str], "train_dataset")
    return {"train_pools": [folders] if isinstance(folders, str) else folders}


def _eval_pools(value, _):
    """A folder, some, or {name: folder}. Without a name a pool of N trajectories is test_n_N."""
    pools = typed(value, str | list[str] | dict[str, str], "valid_dataset")
    if isinstance(pools, dict):
        return {"eval_pools": pools}
    named = {}
    for folder in [pools] if isinstance(pools, str) else pools:
        size = _trajectories(Path(folder))
        name = f"test_n_{size}"
        named[Path(folder).name if size is None or name in named else name] = folder
    return {"eval_pools": named}


def _trajectories(folder):
    """N of a pool: by its manifest, or by a name such as valid-64; or None."""
    try:
        text = (folder / "manifest.json").read_text(encoding="utf-8")
        return json.loads(text)["settings"]["n_samples"]
    except (OSError, ValueError, KeyError, TypeError):
        number = re.search(r"(?:^|[-_])(\d+)$", folder.name)
        return number and int(number[1])


def _model_id(value, _):
    return {"model_id": value}


def _model_type(value, _):
    """The release's gpt2 and llama are architectures, which the checkpoint names."""
    if value in BACKBONES:
        return {"model_type": value}
    if value not in ARCHITECTURES:
        known = ", ".join([*BACKBONES, *sorted(ARCHITECTURES)])
        raise UserError(f"model_family must be one of {known}, not {value!r}")
    reason = "the checkpoint's config.json names the architecture; model_type is the backbone"
    warn(f"model_family {value} has no effect here because {reason}")
    return {}


def _warmup(value, _):
    share = typed(value, float, "warmup_ratio")
    if not 0 <= share < 1:
        raise UserError(f"warmup_ratio must be at least 0 and below 1, not {value}")
    return {"warmup_steps": share}


def _evaluations(value, values):
    """Evaluations an epoch: as a share of all steps, each with a checkpoint. The best one is kept.

    Trainer's eval_steps below 1 are such a share.
    """
    frequency = typed(value, int, "eval_frequency")
    epochs = typed(values.get("num_train_epochs", 3.0), float, "num_train_epochs")
    if values.get("max_steps", -1) != -1:
        raise UserError("eval_frequency counts by epochs: with max_steps give eval_steps")
    if values.get("eval_strategy", "steps") != "steps":
        raise UserError("eval_frequency needs eval_strategy: steps")
    if frequency < 1 or frequency * epochs <= 1:
        raise UserError(f"eval_frequency {frequency}: must give more than one evaluation in all")
    share = 1 / (frequency * epochs)
    return {
        "eval_strategy": "steps", "eval_steps": share,
        "save_strategy": values.get("save_strategy", "steps"), "save_steps": share,
        "load_best_model_at_end": values.get(
            "load_best_model_at_end", "metric_for_best_model" in values
        ),
    }  # fmt: skip


def _precision(value, _):
    return {"mixed_precision": "bf16" if typed(value, bool, "bf16") else "no"}


_TRANSLATIONS = {
    "loss_type": _loss,
    "train_dataset": _train_pools,
    "valid_dataset": _eval_pools,
    "generator_model_id": _model_id,
    "model_family": _model_type,
    "warmup_ratio": _warmup,
    "eval_frequency": _evaluations,
    "bf16": _precision,
}
KEYS = tuple(_TRANSLATIONS)
