"""The recipe of a backbone's training, a YAML file."""

from dataclasses import dataclass, field, fields
from typing import Any

from src.models import BACKBONES
from src.models.base import GenerationDefaults
from src.models.precision import resolve_precision
from src.training.curriculum import Stage
from src.training.losses import BACKBONE_LOSSES
from utils.config import check_seed


@dataclass
class Lora:
    """Adapters in place of all weights: r, alpha, dropout and target_modules of peft's LoraConfig.

    also_train: parts of names of parameters that are trained whole beside the adapters.
    """

    r: int
    alpha: int
    target_modules: list[str]
    dropout: float = 0.0
    also_train: list[str] = field(default_factory=list)


@dataclass
class Recipe:
    """The keys of training_args/backbone_*.yaml.

    output_dir: folder of the training's state and of the finished model.
    train: a data file, or "tiny", the generated stream of the tiny benchmark.
    valid: a data file. held_out: data files whose questions are left out of the training.
    seed: from 0 to 2^63 - 1.
    batch_size: problems of one optimizer step, over all processes.
    stages: the curriculum, at least one Stage.
    model_type: a key of BACKBONE_LOSSES.
    base: path or hub id of a plain GPT-2 or LLaMA. None: a new model, with the word-level tokenizer
        of the tiny benchmark. config: values of the model's config.
    lora: adapters to train; None trains all weights.
    loss: weights of the terms of the loss, see default_weights of the backbone's loss.
    generation: values of the finished model's generation_config.json, such as noise_std;
        latent_length is that of the last stage unless it is given.
    problems_per_epoch: of the tiny stream, which has no end; None for a file.
    weight_decay, warmup_steps (in optimizer steps of each stage), max_grad_norm: of AdamW.
    mixed_precision: bf16, no, or auto, which is bf16 where the device computes it fast.
    allow_unknown: accept that over a tenth of a file's questions hold words unknown to the tokenizer.
    validate_every: epochs between two validations. save_every: steps between two saves.

    Raises ValueError for impossible values.
    """

    output_dir: str
    train: str
    valid: str
    seed: int
    batch_size: int
    weight_decay: float
    stages: list[Stage]
    model_type: str = "coconut"
    base: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    lora: Lora | None = None
    loss: dict[str, float] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    held_out: list[str] = field(default_factory=list)
    problems_per_epoch: int | None = None
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    mixed_precision: str = "no"
    allow_unknown: bool = False
    validate_every: int = 1
    save_every: int = 500

    def __post_init__(self):
        self._check_model_type()
        self.mixed_precision = resolve_precision(self.mixed_precision)
        check_seed(self.seed)
        for name in ("batch_size", "problems_per_epoch", "validate_every", "save_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("weight_decay", "warmup_steps", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative")
        if self.train == "tiny" and self.problems_per_epoch is None:
            raise ValueError("key problems_per_epoch is missing; train: tiny needs it")
        if self.train != "tiny" and self.problems_per_epoch is not None:
            raise ValueError("problems_per_epoch has no effect with a file as train: leave it out")

    def _check_model_type(self):
        """Checks the keys whose values depend on the backbone, and fills the weights of its loss."""
        if self.model_type not in BACKBONE_LOSSES:
            names = ", ".join(BACKBONE_LOSSES)
            raise ValueError(f"model_type must be one of {names}, not {self.model_type!r}")
        loss = BACKBONE_LOSSES[self.model_type]
        if not self.loss.keys() <= loss.default_weights.keys():
            names = ", ".join(loss.default_weights)
            raise ValueError(f"loss must give weights to {names}, not {self.loss!r}")
        self.loss = loss.default_weights | self.loss
        if not self.stages:
            raise ValueError("stages is empty")
        for stage in self.stages:
            stage.check_keys(loss.stage_keys)
        BACKBONES[self.model_type].generation_defaults(self.generation)
        unknown = self.generation.keys() - {field.name for field in fields(GenerationDefaults)}
        if unknown:
            raise ValueError(f"generation: unknown key {sorted(unknown)[0]}")
