"""The model that a backbone's training starts with: from scratch or from a base, with adapters."""

import warnings

import torch
from transformers import AutoConfig, AutoTokenizer

from src.models import BACKBONES, architectures, model_class
from src.models.architectures import combine
from src.models.cot import CoT
from src.models.tokenizers import add_tokens, build_tokenizer
from src.training.losses.cot import COT
from utils.errors import UserError

# Of GPT-2's config. They are model_dropout; a stage's own dropout acts where the sampler does.
_DROPOUTS = ("attn_pdrop", "embd_pdrop", "resid_pdrop")


def new_model(recipe):
    """The model before training, and its tokenizer with the special tokens. Raises UserError."""
    base = recipe.base
    fault = "config: makes no model" if base is None else f"base: {base} can't be loaded"
    try:
        cls = _model_class(recipe)
        dropouts = dict.fromkeys(_DROPOUTS, recipe.model_dropout)
        known = {key: p for key, p in dropouts.items() if hasattr(cls.config_class(), key)}
        values = known | recipe.config
        if base is None:
            model, tokenizer = _from_scratch(cls, values)
        else:
            model, tokenizer = _from_base(cls, base, values)
    except Exception as error:  # odd values and damaged checkpoints fail in many ways
        raise UserError(f"{fault} ({_one_line(error)})") from None
    if recipe.model_dropout and not known:
        raise UserError(f"model_dropout: {cls.config_class.model_type} has none; leave it out")
    if recipe.model_type == COT:
        model.backbone = BACKBONES[recipe.format_of]
    return add_tokens(model, tokenizer, recipe.initialize_tokens_from), tokenizer


def _model_class(recipe):
    """The class of the recipe's backbone, or of its CoT model, in the base's architecture."""
    architecture = recipe.architecture
    if recipe.base is not None:
        architecture = AutoConfig.from_pretrained(recipe.base).model_type
    if recipe.model_type == COT:
        return combine(CoT, architecture)
    return model_class(recipe.model_type, architecture or architectures(recipe.model_type)[0])


def _from_scratch(cls, values):
    tokenizer = build_tokenizer(cls)
    eos = tokenizer.eos_token_id
    ids = {"vocab_size": len(tokenizer), "bos_token_id": eos, "eos_token_id": eos}
    return cls(cls.config_class(**(values | ids))), tokenizer


def _from_base(cls, base, values):
    tokenizer, config = AutoTokenizer.from_pretrained(base), AutoConfig.from_pretrained(base)
    for key, value in values.items():
        setattr(config, key, value)
    return cls.from_pretrained(base, config=config, dtype=torch.float32), tokenizer


def _one_line(error):
    return " ".join(str(error).split())[:200]


def add_lora(model, lora):
    """Puts LoRA adapters into the model and returns peft's wrapper. Raises UserError."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("lora: needs peft: pip install peft") from None
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
        target_modules=lora.target_modules, fan_in_fan_out=model.config.model_type == "gpt2",
    )  # fmt: skip
    try:
        with warnings.catch_warnings():  # peft calls what transformers has renamed
            warnings.simplefilter("ignore", FutureWarning)
            wrapper = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"lora: {_one_line(error)}") from None
    for part in lora.also_train:
        matching = [parameter for name, parameter in model.named_parameters() if part in name]
        if not matching:
            raise UserError(f"lora.also_train: no parameter of the model is named {part}")
        for parameter in matching:
            parameter.requires_grad_(True)
    return wrapper
