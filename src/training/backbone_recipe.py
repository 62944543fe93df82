"""The recipe of a backbone's training, a YAML file."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from src.models import BACKBONES
from src.models.latent_reasoner import GenerationDefaults
from src.models.precision import resolve_precision
from src.training.curriculum import Stage
from src.training.losses import BACKBONE_LOSSES
from src.training.trackers import TRACKERS
from utils.config import check_seed


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
    weight_decay: float  # of AdamW
    stages: list[Stage]  # the curriculum, not empty
    model_type: str = "coconut"  # a key of BACKBONE_LOSSES
    base: str | None = None  # a plain GPT-2 or LLaMA, path or hub id; None: a new, small model
    config: dict[str, Any] = field(default_factory=dict)  # values of the model's config
    lora: Lora | None = None  # None: all weights are trained
    loss: dict[str, float] = field(default_factory=dict)  # weights, by default default_weights
    generation: dict[str, Any] = field(default_factory=dict)
    held_out: list[str] = field(default_factory=list)  # files of questions that train leaves out
    problems_per_epoch: int | None = None  # of the tiny stream; None for a file
    warmup_steps: int = 0  # optimizer steps at the start of each stage
    max_grad_norm: float = 1.0  # gradients are clipped to this norm
    mixed_precision: str = "no"  # bf16, no, or auto: bf16 where the device computes it fast
    allow_unknown: bool = False  # accept files with words that the tokenizer does not know
    validate_every: int = 1  # in epochs
    save_every: int = 500  # in optimizer steps
    report_to: str = "none"  # or tensorboard, wandb

    def __post_init__(self):
        self._check_model_type()
        self.mixed_precision = resolve_precision(self.mixed_precision)
        check_seed(self.seed)
        if self.report_to not in TRACKERS:
            names = ", ".join(TRACKERS)
            raise ValueError(f"report_to must be one of {names}, not {self.report_to!r}")
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

    def fingerprint(self):
        """The values that a training must be resumed under."""
        return {key: value for key, value in asdict(self).items() if key != "report_to"}

    def _check_model_type(self):
        """Checks the keys that depend on the backbone; fills in its loss's default weights."""
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
