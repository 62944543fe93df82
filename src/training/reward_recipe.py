"""The recipe of a LatentRM training, a YAML file: our keys and those of the Hugging Face Trainer."""

import os
import sys
from dataclasses import dataclass, field, fields
from importlib.util import find_spec

import torch
from transformers import TrainingArguments

from src.models import BACKBONES
from src.models.precision import resolve_precision
from src.training.losses.latent_rm import REWARD_LOSSES
from src.training.reward_dataset import LABELS
from utils.config import build, check_seed, read_yaml, seed_of_32_bits, typed
from utils.errors import UserError

METRICS = ("recall_at_1", "weighted_vote", "vote", "coverage", "mean_accuracy", "auc", "loss")
_MINIMUM = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "learning_rate": 0,
    "gradient_accumulation_steps": 1, "warmup_steps": 0, "weight_decay": 0, "max_grad_norm": 0,
    "save_total_limit": 1, "num_train_epochs": 0, "dataloader_num_workers": 0,
    "eval_accumulation_steps": 1,
}  # fmt: skip
_UNSUPPORTED = {
    "gradient_checkpointing", "label_smoothing_factor", "deepspeed", "fsdp", "fsdp_config",
}  # fmt: skip


@dataclass(kw_only=True)
class RewardRecipe(TrainingArguments):
    """The keys of training_args/train_*.yaml, beside those of transformers.TrainingArguments.

    output_dir: folder of the checkpoints and the finished model.
    model_type, model_id: the generator. The model starts from its weights and reads its thoughts.
    train_pools: folders of src.annotate_data.
    eval_pools: {name: folder}; the metrics of pool P are ``P_recall_at_1`` and so on, see METRICS.
    loss: weights of contrastive and bce.
    cumulative: the loss judges r_1 + .. + r_t, not r_t.
    labels: rollout (share of right rollouts of a prefix) or outcome (of the whole trajectory).
    train_weights: false leaves the random head untrained, the paper's ablation.
    extra_layers: blocks on top of the generator's, which at first change nothing.
    digits_weight: weight of the training-only digit heads.
    answer_weight: above 0, the model also learns to answer, by this weight, and scores answers.
    keep_unmixed: train also on questions that all trajectories solve, or none.
    early_stopping_patience: evaluations without a better metric after which training stops.
    mixed_precision: bf16, no, or auto, which is bf16 where the device computes it fast.
    seed: from 0 to 2^63 - 1. ``model_seed`` keeps it; ``seed`` becomes the Trainer's, of 32 bits.
    store_dtype: number format of the finished checkpoint.

    Raises ValueError or UserError, one line that names the key.
    """

    output_dir: str = field()  # unlike TrainingArguments', without a default
    model_id: str
    train_pools: list[str]
    eval_pools: dict[str, str]
    model_type: str = "coconut"
    loss: dict[str, float] = field(default_factory=lambda: {"contrastive": 1.0})
    cumulative: bool = False
    labels: str = "rollout"
    train_weights: bool = True
    extra_layers: int = 0
    digits_weight: float = 0.0
    answer_weight: float = 0.0
    keep_unmixed: bool = False
    early_stopping_patience: int | None = None
    mixed_precision: str = "no"
    store_dtype: str = "float32"

    # other defaults than those of TrainingArguments
    report_to: None | str | list[str] = "none"
    remove_unused_columns: bool | None = False
    save_total_limit: int | None = 2
    ddp_find_unused_parameters: bool | None = False  # there are none; the search costs time
    label_names: list[str] | None = field(default_factory=lambda: ["corrects", "predictions"])
    use_cpu: bool = field(default_factory=lambda: not torch.cuda.is_available())
    disable_tqdm: bool | None = field(default_factory=lambda: not sys.stderr.isatty())
    restore_callback_states_from_checkpoint: bool = True  # the patience of early stopping

    def __post_init__(self):
        check_seed(self.seed)
        self.model_seed, self.seed = self.seed, seed_of_32_bits(self.seed)
        self.mixed_precision = resolve_precision(self.mixed_precision)
        self.bf16 = self.mixed_precision == "bf16"
        self._check_own_keys()
        self._check_metric()
        self._check_trainer_keys()
        # the Trainer reads the precision from here, where `accelerate config` may hold another one
        os.environ["ACCELERATE_MIXED_PRECISION"] = self.mixed_precision
        super().__post_init__()

    def _check_own_keys(self):
        if min(self.extra_layers, self.digits_weight, self.answer_weight) < 0:
            raise ValueError("extra_layers, digits_weight and answer_weight must not be negative")
        if not self.train_pools or not self.eval_pools:
            raise ValueError("train_pools and eval_pools must name at least one pool each")
        if not self.loss or not set(self.loss) <= set(REWARD_LOSSES):
            names = " and ".join(REWARD_LOSSES)
            raise ValueError(f"loss must give weights to {names}, not {self.loss!r}")
        if self.model_type not in BACKBONES:
            names = ", ".join(BACKBONES)
            raise ValueError(f"model_type must be one of {names}, not {self.model_type!r}")
        if self.digits_weight and BACKBONES[self.model_type].stops_itself:
            raise ValueError(
                "digits_weight: thoughts of varying number stand for no step; leave it out"
            )
        if self.labels not in LABELS:
            raise ValueError(f"labels must be one of {', '.join(LABELS)}, not {self.labels!r}")
        if self.store_dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError("store_dtype must be float32, float16 or bfloat16")

    def _check_metric(self):
        metric, patience = self.metric_for_best_model, self.early_stopping_patience
        if metric is None and (self.load_best_model_at_end or patience):
            raise UserError("metric_for_best_model is missing: the best model is chosen by it")
        if patience and self.eval_strategy == "no":
            raise UserError("early_stopping_patience needs eval_strategy: steps or epoch")
        known = [f"{pool}_{name}" for pool in self.eval_pools for name in METRICS]
        if metric is not None and metric.removeprefix("eval_") not in known:
            raise UserError(
                f"metric_for_best_model: {metric} is not measured; one of {', '.join(known)} is"
            )

    def _check_trainer_keys(self):
        for key, minimum in _MINIMUM.items():
            value = getattr(self, key)
            if value is not None and value < minimum:
                raise UserError(f"{key} must be at least {minimum}, not {value}")
        if "8bit" in self.optim and find_spec("bitsandbytes") is None:
            raise UserError(f"optim: {self.optim} needs bitsandbytes: pip install bitsandbytes")

    @property
    def device(self):
        """The process's device; a plain "cpu", since transformers 5.17 can't load the checkpoint of
        two processes on "cpu:0"."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def global_batch_size(self):
        """Questions of one optimizer step, over all processes."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps

    def fingerprint(self):
        """{"recipe": .., "arguments": ..}: the values that determine the weights."""
        names = ("seed", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay",
                 "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "max_steps",
                 "num_train_epochs", "bf16", "metric_for_best_model",
                 "load_best_model_at_end")  # fmt: skip
        arguments = {name: getattr(self, name) for name in names}
        recipe = {name: getattr(self, name) for name in _OWN_KEYS} | {"seed": self.model_seed}
        return {"recipe": recipe, "arguments": arguments | {"batch": self.global_batch_size}}


_TRAINER_KEYS = [field.name for field in fields(TrainingArguments)]
_NEW_KEYS = [field.name for field in fields(RewardRecipe) if field.name not in _TRAINER_KEYS]
_OWN_KEYS = ["output_dir", "seed", *_NEW_KEYS]


def load_recipe(path):
    """The RewardRecipe of a YAML file. Raises UserError that names the file and the key."""
    values = _with_mixed_precision(path, read_yaml(path))
    for key in values:
        if key not in _NEW_KEYS + _TRAINER_KEYS:
            raise UserError(
                f"{path}: unknown key {key}; known keys: {', '.join(sorted(_OWN_KEYS))}, and those "
                "of transformers.TrainingArguments"
            )
    try:
        for key in _UNSUPPORTED & values.keys():
            raise UserError(f"{key} is not supported here: leave it out")
        return build(RewardRecipe, values)
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{path}: {error}") from None


def _with_mixed_precision(path, values):
    """The values of a recipe, in which the Trainer's ``bf16`` may stand for ``mixed_precision``."""
    if "bf16" not in values:
        return values
    if "mixed_precision" in values:
        raise UserError(f"{path}: bf16 and mixed_precision say the same: leave one out")
    precision = "bf16" if typed(values["bf16"], bool, f"{path}: bf16") else "no"
    others = {key: value for key, value in values.items() if key != "bf16"}
    return others | {"mixed_precision": precision}
