"""Loads a checkpoint and says in one line what is wrong with it."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from src.models import BACKBONES
from src.models.special_tokens import missing_tokens, set_token_ids
from utils.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_backbone(model_type, path, dtype="float32", device="cpu"):
    """The model in evaluation mode and its tokenizer, from a folder or a hub id.

    Raises UserError when the checkpoint is missing, damaged, of another architecture, without its
    special tokens, or holds a number that is not finite.
    """
    cls = BACKBONES[model_type]
    config, tokenizer = _read_config(model_type, path)
    if config.model_type != cls.config_class.model_type:
        raise UserError(
            f"--model_id {path}: config.json says model_type {config.model_type!r}, {model_type} needs "
            f"{cls.config_class.model_type!r}: choose another --model_type or checkpoint"
        )
    _check_tokens(path, tokenizer, config)
    model = _read_weights(cls, path, DTYPES[dtype])
    return set_token_ids(model, tokenizer).to(device).eval(), tokenizer


def _not_found(model_type, path):
    return UserError(
        f"--model_id {path}: no checkpoint there; the embedded model is checkpoints/tiny-{model_type}, "
        f"the published one comes with `hf download ModalityDance/latent-tts-{model_type} "
        f"--local-dir checkpoints/latent-tts-{model_type}`"
    )


def _read_config(model_type, path):
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise _not_found(model_type, path)
    try:
        return AutoConfig.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        if Path(path).is_dir():
            raise _damaged(path, error) from None
        raise _not_found(model_type, path) from None


def _damaged(path, error):
    reason = str(error).strip().splitlines()[0]
    return UserError(f"--model_id {path}: the checkpoint can't be read ({reason}); fetch it again")


def _check_tokens(path, tokenizer, config):
    missing = missing_tokens(tokenizer)
    if missing or tokenizer.eos_token_id is None:
        names = ", ".join(missing) or "an end-of-text token"
        raise UserError(
            f"--model_id {path}: the tokenizer lacks {names}; it is not a latent reasoning checkpoint"
        )
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"--model_id {path}: the tokenizer has {len(tokenizer)} tokens, the model only "
            f"{config.vocab_size}: they belong to different checkpoints"
        )


def _read_weights(cls, path, dtype):
    try:
        model, info = cls.from_pretrained(
            path, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise _damaged(path, error) from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            name = sorted(map(str, info[kind]))[0]
            raise UserError(
                f"--model_id {path}: not a {cls.__name__} checkpoint: {kind.replace('_', ' ')} such as "
                f"{name}; choose another --model_type or checkpoint"
            )
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise UserError(
                f"--model_id {path}: {name} holds NaN or infinity; fetch the checkpoint again"
            )
    return model
