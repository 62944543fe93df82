"""The recipe of a LatentRM training, a YAML file."""

import os
import sys
from dataclasses import MISSING, dataclass, field, fields
from importlib.util import find_spec

import torch
from transformers import TrainingArguments

from src.models import BACKBONES
from src.models.precision import resolve_precision
from src.training import release_keys
from src.training.losses.latent_rm import REWARD_LOSSES
from src.training.reward_dataset import LABELS
from src.training.trackers import check_installed
from utils.config import build_from, check_seed, seed_of_32_bits
from utils.errors import UserError
from utils.release import REWARD_MODELS

METRICS = ("recall_at_1", "weighted_vote", "vote", "coverage", "mean_accuracy", "auc", "loss")
_MINIMUM = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "learning_rate": 0,
    "gradient_accumulation_steps": 1, "warmup_steps": 0, "weight_decay": 0, "max_grad_norm": 0,
    "save_total_limit": 1, "num_train_epochs": 0, "dataloader_num_workers": 0,
    "eval_accumulation_steps": 1,
}  # fmt: skip
_UNSUPPORTED = {
    "label_smoothing_factor": "leave it out",
    "deepspeed": "leave it out",
    "fsdp": "leave it out",
    "fsdp_config": "leave it out",
    "gradient_checkpointing_kwargs": "leave it out",
    "activation_checkpointing": "use gradient_checkpointing",
    "activation_checkpointing_kwargs": "use gradient_checkpointing",
}
# with the recipe's own keys, the keys that determine the weights
_LASTING = (
    "seed", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1",
    "adam_beta2", "adam_epsilon", "max_grad_norm", "max_steps", "num_train_epochs", "bf16",
    "metric_for_best_model", "load_best_model_at_end",
)  # fmt: skip
# Newer keys. Fingerprints lack those that are off, as do those of trainings that began before.
_OFF_BY_DEFAULT = ("reads_answer", "order_weight", "judges_pool")
# Keys of a pool judge. They are part of its fingerprint only.
_OF_JUDGE = ("pool_sizes", "judge_width", "reads_states", "reads_votes")
_OF_LATENT_RM = (
    "loss", "cumulative", "labels", "train_weights", "extra_layers", "digits_weight",
    "answer_weight", "reads_answer", "order_weight", "gradient_checkpointing",
)  # fmt: skip


@dataclass(kw_only=True)
class RewardRecipe(TrainingArguments):
    """The keys of training_args/train_*.yaml: ours, and all of transformers.TrainingArguments.

    The metrics of an eval pool P are ``P_recall_at_1`` and so on, see METRICS. A seed lies between
    0 and 2^63 - 1; ``model_seed`` keeps it, ``seed`` becomes the Trainer's, of 32 bits.
    Raises ValueError or UserError, one line that names the key.
    """

    output_dir: str = field()  # required, unlike TrainingArguments'
    model_id: str  # the generator: the model starts from its weights and reads its thoughts
    train_pools: list[str]  # folders of src.annotate_data
    eval_pools: dict[str, str]  # {name: folder}
    model_type: str = "coconut"  # of the generator
    loss: dict[str, float] = field(default_factory=lambda: {"contrastive": 1.0})  # weights
    cumulative: bool = False  # the loss judges r_1 + .. + r_t, not r_t
    labels: str = "rollout"  # or outcome
    train_weights: bool = True  # false: the random head stays as it is, the paper's ablation
    extra_layers: int = 0  # blocks on top of the generator's, which at first change nothing
    digits_weight: float = 0.0  # of the training-only digit heads
    answer_weight: float = 0.0  # above 0, the model also learns to answer, and scores answers
    reads_answer: bool = False  # the classifier reads and rewards the trajectory's answer, too
    order_weight: float = 0.0  # of the order preference of the thoughts
    # train a PoolJudge (src/models/pool_judge.py) in place of a LatentRM
    judges_pool: bool = False
    pool_sizes: list[int] | None = None  # trajectories of a pool, a judge learns from each size
    judge_width: int = 128
    reads_states: bool = True  # of the generator; false: votes only
    reads_votes: bool = True  # of the pool; false: states only
    keep_unmixed: bool = False  # also train on questions that all trajectories solve, or none
    # questions of one optimizer step, over all processes; by it gradient_accumulation_steps follows
    # from per_device_train_batch_size, which are questions too
    batch_size: int | None = None
    early_stopping_patience: int | None = None  # evaluations without a better metric
    mixed_precision: str = "no"  # bf16, no, or auto: bf16 where the device computes it fast
    store_dtype: str = "float32"  # number format of the finished checkpoint
    # the backward pass computes every block again: less memory, the same weights
    gradient_checkpointing: bool = False
    # other defaults than those of TrainingArguments:
    report_to: str | list[str] | None = "none"
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
        self._check_trainer_keys()
        # the Trainer reads the precision from here, where `accelerate config` may hold another one
        os.environ["ACCELERATE_MIXED_PRECISION"] = self.mixed_precision
        # the decoder does it; the Trainer must not ask the model for transformers' own
        self.recomputes_blocks, self.gradient_checkpointing = self.gradient_checkpointing, None
        super().__post_init__()
        self.gradient_checkpointing = False
        self._accumulate()

    def _accumulate(self):
        """Sets gradient_accumulation_steps, so that a step takes batch_size questions."""
        if self.batch_size is None:
            return
        at_once = self.train_batch_size * self.world_size
        if self.batch_size < 1 or self.batch_size % at_once:
            each = f"per_device_train_batch_size {self.train_batch_size}"
            mend = f"a multiple of {each} x {self.world_size} processes"
            raise UserError(f"batch_size must be {mend}, not {self.batch_size}")
        self.gradient_accumulation_steps = self.batch_size // at_once

    def _check_own_keys(self):
        for key in ("extra_layers", "digits_weight", "answer_weight", "order_weight"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative")
        if self.reads_answer and self.answer_weight:
            raise ValueError("reads_answer has no effect with answer_weight: leave one out")
        self._check_judge()
        if not self.train_pools or not self.eval_pools:
            raise ValueError("train_pools and eval_pools must name at least one pool each")
        if not self.loss or not set(self.loss) <= set(REWARD_LOSSES):
            names = " and ".join(REWARD_LOSSES)
            raise ValueError(f"loss must give weights to {names}, not {self.loss!r}")
        for key, choices in (("model_type", BACKBONES), ("labels", LABELS)):
            if (value := getattr(self, key)) not in choices:
                raise ValueError(f"{key} must be one of {', '.join(choices)}, not {value!r}")
        if self.digits_weight and BACKBONES[self.model_type].stops_itself:
            reason = "thoughts of varying number stand for no step"
            raise ValueError(f"digits_weight: {reason}; leave it out")
        if self.store_dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError("store_dtype must be float32, float16 or bfloat16")

    def _check_judge(self):
        """Refuses keys of the other kind of reward model."""
        kind = "a pool judge" if self.judges_pool else "a LatentRM"
        for key in _OF_LATENT_RM if self.judges_pool else _OF_JUDGE:
            if getattr(self, key) != _default(key):
                raise ValueError(f"{key} has no effect on {kind} (judges_pool): leave it out")
        if not (self.reads_states or self.reads_votes):
            raise ValueError("reads_states and reads_votes are both false: nothing is left to read")
        if self.judge_width < 4 or self.judge_width % 4:
            raise ValueError(f"judge_width must be a multiple of 4, not {self.judge_width}")
        if self.pool_sizes is not None and (not self.pool_sizes or min(self.pool_sizes) < 1):
            raise ValueError(f"pool_sizes must be numbers of at least 1, not {self.pool_sizes}")

    def _check_trainer_keys(self):
        for key, minimum in _MINIMUM.items():
            value = getattr(self, key)
            if value is not None and value < minimum:
                raise UserError(f"{key} must be at least {minimum}, not {value}")
        if "8bit" in self.optim and find_spec("bitsandbytes") is None:
            raise UserError(f"optim: {self.optim} needs bitsandbytes: pip install bitsandbytes")
        names = [self.report_to] if isinstance(self.report_to, str) else self.report_to or []
        check_installed(names)
        metric, patience = self.metric_for_best_model, self.early_stopping_patience
        if metric is None and (self.load_best_model_at_end or patience):
            raise UserError("metric_for_best_model is missing: the best model is chosen by it")
        if patience and self.eval_strategy == "no":
            raise UserError("early_stopping_patience needs eval_strategy: steps or epoch")
        known = [f"{pool}_{name}" for pool in self.eval_pools for name in METRICS]
        if metric is not None and metric.removeprefix("eval_") not in known:
            fault = f"{metric} is not measured; one of {', '.join(known)} is"
            raise UserError(f"metric_for_best_model: {fault}")

    @property
    def device(self):
        device = super().device  # transformers 5.17 can't resume two processes on "cpu:0", "cpu:1"
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def global_batch_size(self):
        """Questions of one optimizer step, over all processes."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps

    def fingerprint(self):
        """{"recipe": .., "arguments": ..}: the values that determine the weights."""
        arguments = {name: getattr(self, name) for name in _LASTING}
        recipe = {name: getattr(self, name) for name in _OWN_KEYS if name != "batch_size"}
        recipe = {name: x for name, x in recipe.items() if x or name not in _OFF_BY_DEFAULT}
        if not self.judges_pool:
            recipe = {name: x for name, x in recipe.items() if name not in _OF_JUDGE}
        recipe["seed"] = self.model_seed
        return {"recipe": recipe, "arguments": arguments | {"batch": self.global_batch_size}}


def _default(key):
    """The default of a recipe's key."""
    (of_key,) = (field for field in fields(RewardRecipe) if field.name == key)
    return of_key.default if of_key.default_factory is MISSING else of_key.default_factory()


_TRAINER_KEYS = [field.name for field in fields(TrainingArguments)]
_NEW_KEYS = [field.name for field in fields(RewardRecipe) if field.name not in _TRAINER_KEYS]
_OWN_KEYS = ["output_dir", "seed", *_NEW_KEYS]


def recipe_values(source):
    """{key: value} of a RecipeSource in our keys. Raises UserError that names file, flag or key."""
    known = [*_NEW_KEYS, *_TRAINER_KEYS, *release_keys.KEYS]
    values = source.values(REWARD_MODELS, known, release_keys.RIVALS)
    try:
        _check_keys(values, known)
        return release_keys.in_our_keys(values)
    except UserError as error:
        raise UserError(f"{source.name}: {error}") from None


def build_recipe(values, where, report_to=None):
    """A RewardRecipe of ``recipe_values``, with ``where`` at the start of errors."""
    return build_from(
        RewardRecipe, values if report_to is None else values | {"report_to": report_to}, where
    )


def _check_keys(values, known):
    """Refuses keys that are no recipe's."""
    for key in values:
        if key not in known:
            keys = f"{', '.join(sorted(_OWN_KEYS))}, and those of transformers.TrainingArguments"
            raise UserError(f"unknown key {key}; known keys: {keys}")
        if key.startswith(("hub_", "push_to_hub")):
            raise UserError(f"{key} is not supported here: use the flag --push_to_hub REPO")
        if key in _UNSUPPORTED:
            raise UserError(f"{key} is not supported here: {_UNSUPPORTED[key]}")
