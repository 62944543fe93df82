"""The recipe of a backbone's training, a YAML file."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from src.models import BACKBONES, architectures
from src.models.latent_reasoner import GenerationDefaults, generation_key
from src.models.precision import resolve_precision
from src.training.curriculum import Stage
from src.training.losses import BACKBONE_LOSSES
from src.training.losses.cot import COT
from src.training.trackers import TRACKERS
from utils.config import check_seed

_POSITIVE = (
    "batch_size", "problems_per_epoch", "per_device_train_batch_size", "validate_every",
    "early_stopping_patience", "save_steps",
)  # fmt: skip


@dataclass
class Lora:
    """Adapters are trained, not all weights; the keys of peft's LoraConfig, and also_train."""

    r: int  # rank
    alpha: int
    target_modules: list[str]
    dropout: float = 0.0
    also_train: list[str] = field(default_factory=list)  # parts of names of parameters


@dataclass
class Recipe:
    """The keys of training_args/backbone_*.yaml. Raises ValueError for impossible values.

    generation: values of the finished model's generation_config.json, such as noise_std;
    latent_length is that of the last stage unless it is given.
    """

    output_dir: str  # of the training's state and of the finished model
    train: str  # a data file, or "tiny", the generated stream of the tiny benchmark
    valid: str  # a data file
    seed: int  # from 0 to 2^63 - 1
    batch_size: int  # problems of one optimizer step, over all processes
    stages: list[Stage]  # the curriculum, not empty
    model_type: str = "coconut"  # a key of BACKBONE_LOSSES
    format_of: str | None = None  # model_type cot: the backbone whose prompt and answer it learns
    base: str | None = None  # a plain GPT-2 or LLaMA, path or hub id; None: a new, small model
    architecture: str | None = None  # gpt2 or llama, without a base; None: the published one
    config: dict[str, Any] = field(default_factory=dict)  # values of the model's config
    initialize_tokens_from: str | None = None  # new tokens start as copies of this one
    lora: Lora | None = None  # None: all weights are trained
    model_dropout: float = (
        0.0  # GPT-2's own: after embedding, attention's softmax and residual maps
    )
    loss: dict[str, float | bool] = field(default_factory=dict)  # by default default_settings
    generation: dict[str, Any] = field(default_factory=dict)
    held_out: list[str] = field(default_factory=list)  # files of questions that train leaves out
    problems_per_epoch: int | None = None  # of the tiny stream, or of a file; None: all rows
    per_device_train_batch_size: int | None = None  # problems of a forward pass; None: all at once
    weight_decay: float = 0.0  # of AdamW
    decay_vectors: bool = True  # false: no decay of biases and norms, as transformers' Trainer
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    new_optimizer: str = "stage"  # or epoch: when AdamW starts anew
    warmup_steps: float = 0.0  # optimizer steps at the start of a stage; below 1: a share of it
    max_grad_norm: float = 1.0  # gradients are clipped to this norm; 0: they are not
    mixed_precision: str = "no"  # bf16, no, or auto: bf16 where the device computes it fast
    allow_unknown: bool = False  # accept files with words that the tokenizer does not know
    validate_every: int = 1  # in epochs
    eval_on_start: bool = False  # validate before the first step, too
    load_best_model_at_end: bool = False  # keep the last stage's best weights by validation
    early_stopping_patience: int | None = None  # validations of the last stage without a better one
    save_steps: int = 500  # in optimizer steps
    report_to: str = "none"  # or tensorboard, wandb

    def __post_init__(self):
        self._check_model_type()
        self.mixed_precision = resolve_precision(self.mixed_precision)
        check_seed(self.seed)
        if self.report_to not in TRACKERS:
            names = ", ".join(TRACKERS)
            raise ValueError(f"report_to must be one of {names}, not {self.report_to!r}")
        for name in _POSITIVE:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("weight_decay", "warmup_steps", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative")
        for name in ("adam_beta1", "adam_beta2", "model_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if self.new_optimizer not in ("stage", "epoch"):
            raise ValueError(f"new_optimizer must be stage or epoch, not {self.new_optimizer!r}")
        if self.train == "tiny" and self.problems_per_epoch is None:
            raise ValueError("key problems_per_epoch is missing; train: tiny needs it")
        if self.model_dropout and any(stage.dropout for stage in self.stages):
            raise ValueError("a stage's dropout and model_dropout act at the same sites: leave one")

    def fingerprint(self):
        """The values that a training must be resumed under."""
        return {key: value for key, value in asdict(self).items() if key != "report_to"}

    def _check_model_type(self):
        """Checks the keys that depend on the backbone; fills in its loss's default weights."""
        if self.model_type not in BACKBONE_LOSSES:
            names = ", ".join(BACKBONE_LOSSES)
            raise ValueError(f"model_type must be one of {names}, not {self.model_type!r}")
        loss = BACKBONE_LOSSES[self.model_type]
        self._check_loss(loss.default_settings)
        if (self.model_type == COT) != (self.format_of is not None):
            raise ValueError("format_of is for model_type: cot, which needs it")
        if self.model_type == COT and self.base is None:
            raise ValueError("base is missing: a CoT model starts from a plain GPT-2 or LLaMA")
        self._check_architecture()
        if self.format_of not in (None, *BACKBONES):
            names = ", ".join(BACKBONES)
            raise ValueError(f"format_of must be one of {names}, not {self.format_of!r}")
        if not self.stages:
            raise ValueError("stages is empty")
        for stage in self.stages:
            stage.check_keys(loss.stage_keys)
        if self.generation:
            self._check_generation()

    def _check_architecture(self):
        if self.architecture is None:
            return
        if self.base is not None:
            raise ValueError("architecture has no effect with a base: leave it out")
        known = architectures(self.model_type)
        if self.architecture not in known:
            raise ValueError(f"architecture must be {' or '.join(known)}, not {self.architecture}")

    def _check_loss(self, defaults):
        """Fills in the loss's settings. Raises ValueError for an unknown one, or another type."""
        for key, value in self.loss.items():
            if key not in defaults:
                names = ", ".join(defaults) or "nothing"
                raise ValueError(f"loss: unknown key {key}; this model_type's loss knows {names}")
            if isinstance(value, bool) != isinstance(defaults[key], bool):
                kind = "true or false" if isinstance(defaults[key], bool) else "a number"
                raise ValueError(f"loss.{key} must be {kind}, not {value!r}")
        self.loss = defaults | self.loss

    def _check_generation(self):
        if self.model_type == COT:
            raise ValueError("generation has no effect for model_type: cot; leave it out")
        BACKBONES[self.model_type].generation_defaults(self.generation)
        known = {generation_key(field.name) for field in fields(GenerationDefaults)}
        unknown = self.generation.keys() - known
        if unknown:
            raise ValueError(f"generation: unknown key {sorted(unknown)[0]}")
