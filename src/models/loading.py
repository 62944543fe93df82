"""Loads a checkpoint and says in one line what is wrong with it."""

import json
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from src.models import BACKBONES, model_class
from src.models.architectures import class_name
from src.models.latent_rm import LATENT_RMS
from src.models.pool_judge import PoolJudge, PoolJudgeConfig
from src.models.precision import DTYPES
from src.models.tokenizers import missing_tokens
from utils.config import read_yaml
from utils.errors import UserError, warn
from utils.files import sha256

_WEIGHTS = "*.safetensors"
_FILES = [_WEIGHTS, "*.safetensors.index.json", "config.json", "*token*.json"]
_FILES += ["vocab.json", "merges.txt"]
GENERATION = "generation_config.json"
_RECIPE = "recipe.yaml"


def default_backbone(model_type):
    """The checkpoint that commands take by default.

    That is ``checkpoints/<type>``, the place of the published one, when it exists; else the bundled
    one.
    """
    published = Path("checkpoints") / model_type
    return str(published if published.is_dir() else bundled_backbone(model_type))


def bundled_backbone(model_type):
    """The folder of the checkpoint that the repository ships."""
    return Path("checkpoints") / f"tiny-{model_type}"


def default_reward_model(model_type, model_id):
    """The LatentRM that belongs to a backbone's checkpoint by default.

    For a bundled backbone it is the bundled one, else ``checkpoints/latentRM-<type>``.
    """
    bundled = bundled_backbone(model_type)
    name = f"tiny-latentRM-{model_type}" if Path(model_id) == bundled else f"latentRM-{model_type}"
    return str(Path("checkpoints") / name)


@cache
def checkpoint_folder(kind, model_id):
    """The folder of a checkpoint; one that is named by its hub id is fetched first.

    kind: the name of a backbone, or "rm" for a reward model. Raises UserError when there is none.
    """
    path, given = Path(model_id), f"--{'prm' if kind == 'rm' else 'model'}_id {model_id}"
    if path.is_file():
        raise UserError(f"{given}: is a file; give the folder that holds it")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise _not_found(kind, given, "no config.json there")
        return path
    try:
        return Path(snapshot_download(model_id, allow_patterns=[*_FILES, GENERATION, _RECIPE]))
    except Exception as error:  # the hub's errors share no base class
        reason = f"no such folder, and not to be had from the hub ({type(error).__name__})"
        raise _not_found(kind, given, reason) from None


def _not_found(kind, given, reason):
    bundled = "checkpoints/tiny-latentRM-*" if kind == "rm" else f"checkpoints/tiny-{kind}"
    whose = " (COCONUT's; others are trained: training_args/train_*.yaml)" if kind == "rm" else ""
    target = "checkpoints/latentRM-coconut" if kind == "rm" else f"checkpoints/{kind}"
    return UserError(
        f"{given}: {reason}; the bundled model is {bundled}, the published one{whose} comes with "
        f"`hf download ModalityDance/latent-tts-{kind} --local-dir {target}`"
    )


def checkpoint_files(kind, model_id):
    """The files that determine what a checkpoint computes, in order of their names."""
    folder = checkpoint_folder(kind, model_id)
    return sorted({path for pattern in _FILES for path in folder.glob(pattern)})


def weights_sha256(folder):
    """Digest of a checkpoint's weights, by which a LatentRM identifies its generator."""
    return sha256(sorted(Path(folder).glob(_WEIGHTS)))


def checkpoint_defaults(model_type, model_id):
    """The GenerationDefaults of a checkpoint, without loading it.

    Raises UserError when its generation_config.json can't be read or holds an impossible value.
    """
    path = checkpoint_folder(model_type, model_id) / GENERATION
    backbone = BACKBONES[model_type]
    if not path.is_file():
        return backbone.generation_defaults({})
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return backbone.generation_defaults(values)
    except (UserError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: {error}; correct it or remove the key") from None


def rewards_answers(prm_id):
    """Whether a LatentRM has a reward for the answer, too.

    Raises UserError when the checkpoint is missing or its config.json can't be read.
    """
    config = _reward_config(prm_id)
    return any(getattr(config, name, False) for name in ("scores_answer", "reads_answer"))


def gives_probabilities(prm_id):
    """Whether sigmoid(r_t) of a LatentRM is a probability: its recipe.yaml has a BCE loss of r_t,
    not of sums of rewards (cumulative); and it has no reward for the answer, another logit.

    Raises UserError when the checkpoint is missing or the recipe can't be read.
    """
    path = checkpoint_folder("rm", prm_id) / _RECIPE
    recipe = read_yaml(path) if path.is_file() else {}
    sums = recipe.get("cumulative") or recipe.get("reads_answer")
    return bool(dict(recipe.get("loss") or {}).get("bce")) and not sums


def checkpoint_architecture(model_type, model_id):
    """The name of a checkpoint's architecture, without loading its weights.

    Raises UserError when config.json can't be read or is not that of such a backbone.
    """
    folder = checkpoint_folder(model_type, model_id)
    return _read_config(BACKBONES[model_type], folder, f"--model_id {model_id}").model_type


def load_backbone(model_type, model_id, dtype="float32", device="cpu"):
    """The model in evaluation mode and its tokenizer, from a folder or a hub id.

    Raises UserError when the checkpoint is missing, damaged, of another architecture, without its
    special tokens, or holds a number that is not finite.
    """
    backbone, folder = BACKBONES[model_type], checkpoint_folder(model_type, model_id)
    given = f"--model_id {model_id}"
    config = _read_config(backbone, folder, given)
    tokenizer = _read_tokenizer(backbone, config, folder, given)
    cls = model_class(model_type, config.model_type)
    model = _read_weights(cls, folder, given, DTYPES[dtype])
    return model.to(device).eval(), tokenizer


def load_reward_model(prm_id, backbone, tokenizer, dtype="float32", device="cpu"):
    """The LatentRM in evaluation mode that scores the thoughts of ``backbone``.

    Raises UserError when the checkpoint is missing, damaged, no LatentRM, or was trained for a
    backbone of another type, width or vocabulary. Warns when it was trained for other weights, or
    does not say for which.
    """
    given, folder = f"--prm_id {prm_id}", checkpoint_folder("rm", prm_id)
    config = _reward_config(prm_id)
    if config.model_type not in (*LATENT_RMS, PoolJudgeConfig.model_type):
        raise UserError(
            f"{given}: config.json says model_type {config.model_type!r}; choose another --prm_id"
        )
    warning = _check_generator(given, config, backbone)
    judges = config.model_type == PoolJudgeConfig.model_type
    differs = _differs if judges else _mismatch
    mismatch = differs(config, backbone.config, tokenizer)
    if mismatch:
        raise UserError(f"{given}: {mismatch}; choose the reward model of this backbone")
    if judges:  # small, and it reads numbers in float32
        model = _read_weights(PoolJudge, folder, given, torch.float32)
    else:
        model = _read_weights(LATENT_RMS[config.model_type], folder, given, DTYPES[dtype])
        model.config.end_latent_token_id = backbone.config.end_latent_token_id
    if warning:
        warn(warning)
    return model.to(device).eval()


def _reward_config(prm_id):
    try:
        return AutoConfig.from_pretrained(checkpoint_folder("rm", prm_id))
    except UserError:
        raise
    except Exception as error:  # a damaged file raises many kinds
        raise _damaged(f"--prm_id {prm_id}", error) from None


def _differs(config, generator, tokenizer):
    """Why a PoolJudge of ``config`` can't read a generator of another config, or None."""
    sizes = (config.generator_layers, config.generator_width)
    given = (generator.num_hidden_layers, generator.hidden_size)
    if sizes == given:
        return None
    read, found = (f"{layers} layers of width {width}" for layers, width in (sizes, given))
    return f"reads {read}, the backbone has {found}"


def _mismatch(config, generator, tokenizer):
    """Why a LatentRM of ``config`` can't read what a generator of another config makes, or None."""
    if config.hidden_size != generator.hidden_size:
        widths = f"{config.hidden_size}, the backbone has {generator.hidden_size}"
        return f"reads thoughts of width {widths}"
    positions, needed = config.max_position_embeddings, generator.max_position_embeddings
    if positions < needed:
        return f"has {positions} positions, the backbone {needed}"
    if config.vocab_size < len(tokenizer):
        return f"knows {config.vocab_size} tokens, the backbone {len(tokenizer)}"
    return None


def _check_generator(given, config, backbone):
    """Compares the backbone with the generator that a LatentRM's config names.

    Raises UserError where it is of another type. Returns a warning where it has other weights or is
    not named, else None.
    """
    model_type = next(name for name, cls in BACKBONES.items() if isinstance(backbone, cls))
    trained_for = getattr(config, "generator_type", None)
    if trained_for is None:
        return f"{given}: its config.json names no generator; taken to be trained for {model_type}"
    if trained_for != model_type:
        raise UserError(
            f"{given}: was trained for {trained_for}, not for {model_type}: its scores would mean "
            f"nothing; choose a reward model of {model_type}"
        )
    if getattr(config, "generator_sha256", None) != weights_sha256(backbone.name_or_path):
        return (
            f"{given}: was trained for a {model_type} with other weights than "
            f"{backbone.name_or_path}; its scores may mean little"
        )
    return None


class Loader:
    """Loads models onto one device and keeps the last ones, for the next run of a sweep."""

    def __init__(self, device):
        self.device = device
        self._kept = {}  # "backbone" or "reward model": (its key, what was loaded)

    def backbone(self, model_type, model_id, dtype):
        """``load_backbone``."""
        key = (model_type, model_id, dtype)
        if self._kept.get("backbone", (None,))[0] != key:
            self._kept.clear()  # frees the memory first; a reward model belongs to its backbone
            self._kept["backbone"] = (key, load_backbone(*key, self.device))
        return self._kept["backbone"][1]

    def reward_model(self, prm_id, dtype):
        """``load_reward_model`` for the backbone that was loaded last."""
        if self._kept.get("reward model", (None,))[0] != (prm_id, dtype):
            self._kept.pop("reward model", None)
            _, backbone = self._kept["backbone"]
            model = load_reward_model(prm_id, *backbone, dtype, self.device)
            self._kept["reward model"] = ((prm_id, dtype), model)
        return self._kept["reward model"][1]


def _damaged(given, error):
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{given}: the checkpoint can't be read ({reason}); fetch it again")


def _read_config(backbone, folder, given):
    """The config; raises UserError where it does not suit the ``backbone``, one of BACKBONES."""
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # a damaged file raises many kinds
        raise _damaged(given, error) from None
    if fault := _config_fault(backbone, config):
        raise UserError(f"{given}: {fault}")
    return config


def _read_tokenizer(backbone, config, folder, given):
    """The tokenizer; raises UserError where it does not suit the ``backbone`` or the config."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"{given}: no tokenizer.json there; fetch the checkpoint again")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # a damaged file raises many kinds
        raise _damaged(given, error) from None
    if fault := _tokenizer_fault(backbone, config, tokenizer):
        raise UserError(f"{given}: {fault}")
    return tokenizer


def _config_fault(backbone, config):
    """Why a config is not that of the ``backbone``, with the mend, or None."""
    mend, name = "choose another --model_type or checkpoint", backbone.__name__
    if config.model_type not in backbone.architectures:
        needed = " or ".join(map(repr, backbone.architectures))
        return f"config.json says model_type {config.model_type!r}, {name} needs {needed}: {mend}"
    named = {_backbone_of(written): written for written in config.architectures or []}
    named.pop(None, None)
    if named and backbone not in named:
        return f"config.json says {next(iter(named.values()))}, not {name}: {mend}"
    lacking = [key for key in backbone.config_keys if not hasattr(config, key)]
    if lacking:
        return f"config.json lacks {lacking[0]}: not a {name} checkpoint; {mend}"
    return None


def _backbone_of(name):
    """The backbone of which ``name``, from a config's ``architectures``, is a class, or None."""
    for backbone in BACKBONES.values():
        names = {class_name(backbone, architecture) for architecture in backbone.architectures}
        if name in names:
            return backbone
    return None


def _tokenizer_fault(backbone, config, tokenizer):
    """Why a tokenizer can't serve the ``backbone``, with the mend, or None."""
    missing = missing_tokens(tokenizer, backbone.special_tokens)
    if missing or tokenizer.eos_token_id is None:
        names = ", ".join(missing) or "an end-of-text token"
        return f"the tokenizer lacks {names}: not a latent reasoning checkpoint; choose another"
    if len(tokenizer) > config.vocab_size:
        return (
            f"the tokenizer has {len(tokenizer)} tokens, the model only {config.vocab_size}: they "
            "belong to different checkpoints"
        )
    return None


def _read_weights(cls, folder, given, dtype):
    logging.disable_progress_bar()  # of weights that are read
    how = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    try:
        model, info = cls.from_pretrained(folder, ignore_mismatched_sizes=True, **how)
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise _damaged(given, error) from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            name = sorted(map(str, info[kind]))[0]
            fault = f"not a {cls.__name__} checkpoint: {kind.replace('_', ' ')} such as {name}"
            raise UserError(f"{given}: {fault}; choose another checkpoint")
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise UserError(f"{given}: {name} holds NaN or infinity; fetch the checkpoint again")
    return model
