"""Training of LatentRM on the Hugging Face Trainer: recipe, evaluation on pools, resume."""

import json
import math
import os
import shutil
import sys
import tempfile
import typing
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from src.models import BACKBONES
from src.models.latent_rm import LATENT_RMS
from src.models.loading import checkpoint_files, checkpoint_folder, load_backbone, weights_sha256
from src.models.precision import resolve_precision, slowness
from src.training.attention import training_attention
from src.training.reward_data import LABELS, Groups, LengthSampler, collate
from src.training.reward_loss import LOSSES, RewardLoss
from utils.config import build, check_seed, read_yaml, seed_of_32_bits, typed
from utils.errors import UserError, warn
from utils.files import sha256, write_json, write_text
from utils.metrics import best_of_n, majority_vote, pairwise_auc, softmax, weighted_vote
from utils.processes import where
from utils.progress import Pace

METRICS = ("recall_at_1", "weighted_vote", "vote", "coverage", "mean_accuracy", "auc", "loss")
_STARTED = "started.json"  # the recipe and the pools that a folder's checkpoints belong to
_LAST = "last"  # what _COMPLETE says when training ended there
_LEAST = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
    "learning_rate": 0, "warmup_steps": 0, "weight_decay": 0, "max_grad_norm": 0, "save_total_limit": 1,
    "num_train_epochs": 0, "dataloader_num_workers": 0, "eval_accumulation_steps": 1,
}  # fmt: skip
_NOT_HERE = {"gradient_checkpointing", "label_smoothing_factor", "deepspeed", "fsdp", "fsdp_config"}
_COMPLETE = "complete"  # stands in a checkpoint that was written to its end


@dataclass
class RewardRecipe:
    """The keys of training_args/train_*.yaml beside those of transformers.TrainingArguments.

    model_type, model_id: the backbone that the model starts from, and whose thoughts it reads.
    train_pools, eval_pools: folders of src.annotate_data; an eval pool named P gives the metrics
    ``P_recall_at_1`` and so on. loss: weights of contrastive and bce. cumulative: the loss judges
    r_1 + .. + r_t in place of r_t. labels: rollout or outcome.
    train_weights false: the paper's random head, nothing is trained. extra_layers: blocks put on top of
    the backbone's, which at first change nothing. digits_weight: weight of the training-only digit heads.
    answer_weight: above 0 the model also learns to answer, by this weight, and scores the trajectory's
    answer. keep_unmixed: train also on questions that all trajectories solve, or none.
    mixed_precision: bf16, no, or auto, which is bf16 where the device computes it fast. store_dtype:
    number format of the finished checkpoint.
    """

    output_dir: str
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
    seed: int = 42
    store_dtype: str = "float32"

    def __post_init__(self):
        check_seed(self.seed)
        self.mixed_precision = resolve_precision(self.mixed_precision)
        if min(self.extra_layers, self.digits_weight, self.answer_weight) < 0:
            raise ValueError("extra_layers, digits_weight and answer_weight must not be negative")
        if not self.train_pools or not self.eval_pools:
            raise ValueError("train_pools and eval_pools must name at least one pool each")
        if not self.loss or not set(self.loss) <= set(LOSSES):
            raise ValueError(f"loss must give weights to {' and '.join(LOSSES)}, not {self.loss!r}")
        if self.model_type not in BACKBONES:
            raise ValueError(
                f"model_type must be one of {', '.join(BACKBONES)}, not {self.model_type!r}"
            )
        if self.digits_weight and BACKBONES[self.model_type].stops_itself:
            raise ValueError(
                "digits_weight: thoughts of varying number stand for no step; leave it out"
            )
        if self.labels not in LABELS:
            raise ValueError(f"labels must be one of {', '.join(LABELS)}, not {self.labels!r}")
        if self.store_dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError("store_dtype must be float32, float16 or bfloat16")


class Arguments(TrainingArguments):
    """TrainingArguments on a plain "cpu": with its process's number, "cpu:0", transformers 5.17 can't load the
    checkpoint from which two processes go on."""

    @property
    def device(self):
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device


def load_recipe(path):
    """The RewardRecipe and the TrainingArguments of a YAML file. Raises UserError naming the key."""
    values = _with_mixed_precision(path, read_yaml(path))
    own = {field.name for field in fields(RewardRecipe)}
    known = {field.name for field in fields(TrainingArguments)}
    for key in values:
        if key not in own | known:
            raise UserError(
                f"{path}: unknown key {key}; known keys: {', '.join(sorted(own))}, and those of "
                "transformers.TrainingArguments"
            )
    try:
        recipe = build(RewardRecipe, {key: values[key] for key in values if key in own})
        kinds = typing.get_type_hints(TrainingArguments)
        rest = {
            key: typed(value, kinds[key], key) for key, value in values.items() if key not in own
        }
        _check_metric(recipe, rest)
        arguments = _arguments(recipe, rest)
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{path}: {error}") from None
    return recipe, arguments


def _with_mixed_precision(path, values):
    """The values of a recipe, where ``bf16``, the Trainer's key, may stand for ``mixed_precision``."""
    if "bf16" not in values:
        return values
    if "mixed_precision" in values:
        raise UserError(f"{path}: bf16 and mixed_precision say the same: leave one out")
    chosen = "bf16" if typed(values["bf16"], bool, f"{path}: bf16") else "no"
    return {key: value for key, value in values.items() if key != "bf16"} | {
        "mixed_precision": chosen
    }


def _check_metric(recipe, values):
    metric = values.get("metric_for_best_model")
    if metric is None and (values.get("load_best_model_at_end") or recipe.early_stopping_patience):
        raise UserError("metric_for_best_model is missing: the best model is chosen by it")
    if recipe.early_stopping_patience and values.get("eval_strategy", "no") == "no":
        raise UserError("early_stopping_patience needs eval_strategy: steps or epoch")
    known = [f"{pool}_{name}" for pool in recipe.eval_pools for name in METRICS]
    if metric is not None and metric.removeprefix("eval_") not in known:
        raise UserError(
            f"metric_for_best_model: {metric} is not measured; one of {', '.join(known)} is"
        )


def _arguments(recipe, values):
    defaults = {
        "report_to": "none",
        "remove_unused_columns": False,
        "save_total_limit": 2,
        "ddp_find_unused_parameters": False,  # there are none; looking for them costs time and a warning
        "label_names": ["corrects", "predictions"],
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": not sys.stderr.isatty(),  # a bar, or plain lines in a log
        "restore_callback_states_from_checkpoint": True,  # the patience of early stopping
    }
    for key, least in _LEAST.items():
        if values.get(key) is not None and values[key] < least:
            raise UserError(f"{key} must be at least {least}, not {values[key]}")
    for key in _NOT_HERE & values.keys():
        raise UserError(f"{key} is not supported here: leave it out")
    if "8bit" in values.get("optim", "") and find_spec("bitsandbytes") is None:
        raise UserError(f"optim: {values['optim']} needs bitsandbytes: pip install bitsandbytes")
    # `accelerate config` may hold another precision, which the Trainer would take from here
    os.environ["ACCELERATE_MIXED_PRECISION"] = recipe.mixed_precision
    return Arguments(
        output_dir=recipe.output_dir,
        seed=seed_of_32_bits(recipe.seed),
        bf16=recipe.mixed_precision == "bf16",
        **(defaults | values),
    )


def new_model(recipe):
    """The reward model before training, from its backbone's weights and a random head."""
    torch.manual_seed(recipe.seed)
    backbone, tokenizer = load_backbone(recipe.model_type, recipe.model_id)
    config = type(backbone.config).from_dict(backbone.config.to_dict())
    own_layers = config.num_hidden_layers
    config.num_hidden_layers += recipe.extra_layers
    config.projector_dropout = 0.0  # a LatentRM trains without dropout
    config.scores_answer = recipe.answer_weight > 0
    config.generator_type = recipe.model_type
    config.generator_sha256 = weights_sha256(checkpoint_folder(recipe.model_type, recipe.model_id))
    model = LATENT_RMS[config.model_type](config)
    kept = {
        k: v for k, v in backbone.state_dict().items() if not k.startswith(("lm_head.", "lt_head."))
    }
    model.load_state_dict(kept, strict=False)
    for block in model.blocks[own_layers:]:
        for layer in model.residual_outputs(block):
            torch.nn.init.zeros_(layer.weight)
    weights = (recipe.digits_weight, recipe.answer_weight)
    return RewardLoss(model, recipe.loss, recipe.cumulative, *weights), tokenizer


def check_pools(recipe, model, groups):
    """Raises UserError when pools hold thoughts of another backbone, or what the model can't read; warns when
    they are of other weights."""
    digest = sha256(checkpoint_files(recipe.model_type, recipe.model_id))
    for pool in groups.pools:
        sampled_by = pool.manifest["settings"]["model_type"]
        if sampled_by != recipe.model_type:
            raise UserError(
                f"{pool.folder}: thoughts of {sampled_by}, the recipe's model_type is {recipe.model_type}: "
                "choose pools and model_id of one backbone"
            )
        if pool.manifest["model_sha256"] != digest:
            warn(
                f"{pool.folder}: was sampled by another checkpoint than model_id {recipe.model_id}"
            )
    if groups.width != model.config.hidden_size:
        raise UserError(
            f"{groups.pools[0].folder}: thoughts of width {groups.width}, the model reads "
            f"{model.config.hidden_size}: choose another model_id"
        )
    longest = max(groups.lengths) + groups.longest_thinking + groups.longest_answer
    if longest > model.config.max_position_embeddings:
        raise UserError(
            f"{groups.pools[0].folder}: a prompt, its thoughts and an answer take {longest} positions, "
            f"the model has {model.config.max_position_embeddings}: choose another model_id"
        )


def pool_metrics(prediction):
    """Percent over the questions of a pool, from scores (Q, N), corrects (Q, N) and predictions.

    recall_at_1 is best-of-N accuracy (the release's name for it); auc is pairwise, from 0 to 1.
    """
    corrects, answers = prediction.label_ids
    scores = np.asarray(prediction.predictions, dtype=np.float64)  # (Q, N)
    found = {name: [] for name in METRICS[:5]}
    for right, numbers, score in zip(corrects.astype(bool), answers, scores, strict=True):
        parsed = [None if math.isnan(number) else number for number in numbers.tolist()]
        gold = {
            n for n, ok in zip(parsed, right, strict=True) if ok
        }  # the right answer, if any gave it
        found["recall_at_1"].append(best_of_n(parsed, score) in gold)
        found["weighted_vote"].append(weighted_vote(parsed, softmax(score)) in gold)
        found["vote"].append(majority_vote(parsed) in gold)
        found["coverage"].append(bool(right.any()))
        found["mean_accuracy"].append(right.mean())
    metrics = {name: round(100 * float(np.mean(values)), 2) for name, values in found.items()}
    return metrics | {"auc": round(pairwise_auc(scores, corrects.astype(bool)), 4)}


def _global_batch(arguments):
    return arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps


class RewardTrainer(Trainer):
    """Trainer with batches of similar length and the fastest attention."""

    def _get_train_sampler(self, train_dataset=None):
        sampler = LengthSampler(
            self.train_dataset.lengths, _global_batch(self.args), self.args.seed
        )
        self.add_callback(_TellEpoch(sampler))
        return sampler

    def training_step(self, *args, **kwargs):
        with training_attention(self.args.device):
            return super().training_step(*args, **kwargs)


class _TellEpoch(TrainerCallback):
    """Tells the sampler its epoch; behind the loaders of a resumed run nothing else reaches it."""

    def __init__(self, sampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))


class _MarkComplete(TrainerCallback):
    """Marks a checkpoint once all of it is on the disk: a kill may leave half of one."""

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE
            write_text(path, _LAST if control.should_training_stop else "")


class _SayPace(TrainerCallback):
    """Says after the first steps how long all of them will take."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.pace = Pace(
            state.max_steps - state.global_step, print if state.is_world_process_zero else None
        )

    def on_step_end(self, args, state, control, **kwargs):
        self.pace.step()


def last_checkpoint(folder):
    """The newest whole checkpoint of a folder, or None."""
    whole = [path.parent for path in Path(folder).glob(f"checkpoint-*/{_COMPLETE}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _open_folder(output, identity, writes):
    """Claims the output folder for a recipe, and clears what a kill left of a checkpoint.

    Raises UserError when the folder holds a finished model or the training of something else.
    """
    if (output / "model.safetensors").exists():
        raise UserError(f"output_dir: {output} holds a finished model; name another folder")
    path, checkpoints = output / _STARTED, list(output.glob("checkpoint-*"))
    if path.exists():
        begun = json.loads(path.read_text(encoding="utf-8"))
        before, now = (x["recipe"].get("mixed_precision") for x in (begun, identity))
        if before not in (None, now):
            raise UserError(
                f"output_dir: {output} was begun with mixed_precision: {before}, this is {now}: set that "
                "to go on, or name another folder"
            )
        if begun != identity:
            raise UserError(
                f"output_dir: {output} was begun with another recipe or other pools; go on with them or "
                "name another folder"
            )
    elif checkpoints:
        raise UserError(
            f"output_dir: {output} holds checkpoints of something else; name another folder"
        )
    if writes:
        write_json(path, identity)
        for checkpoint in checkpoints:
            if not (checkpoint / _COMPLETE).is_file():
                shutil.rmtree(checkpoint)


def train(recipe, arguments, text):
    """Trains to the end, going on from the newest checkpoint; writes the model and its metrics.

    text: the YAML file of the recipe, which is kept beside the model.
    """
    output = Path(recipe.output_dir)
    model, tokenizer = new_model(recipe)
    with_digits = recipe.digits_weight > 0
    words = (BACKBONES[recipe.model_type], tokenizer)
    groups = Groups(recipe.train_pools, *words, recipe.labels, not recipe.keep_unmixed, with_digits)
    pools = {
        name: Groups([path], *words, with_digits=with_digits)
        for name, path in recipe.eval_pools.items()
    }
    for part in (groups, *pools.values()):
        check_pools(recipe, model.model, part)
    if len(groups) < _global_batch(arguments):
        raise UserError(f"train_pools: {len(groups)} questions fill no batch; annotate more")
    identity = {"recipe": asdict(recipe), "arguments": _lasting(arguments)}
    identity["pools"] = [sha256([pool.folder / "manifest.json"]) for pool in groups.pools]
    identity = json.loads(json.dumps(identity))
    _open_folder(output, identity, arguments.process_index == 0)
    if arguments.process_index == 0:
        write_text(output / "recipe.yaml", text)
        print(_introduction(recipe, arguments, len(groups)), flush=True)
        slow = slowness("bfloat16") if arguments.bf16 else None
        if slow:
            warn(f"mixed_precision: {slow}; auto chooses what is fast")
    if arguments.world_size > 1:
        torch.distributed.barrier()
    callbacks = [_MarkComplete(), _SayPace()]
    if recipe.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(recipe.early_stopping_patience))
    trainer = RewardTrainer(
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=groups,
        eval_dataset=pools,
        compute_metrics=pool_metrics,
        callbacks=callbacks,
    )
    last = last_checkpoint(output)
    if last is not None and (last / _COMPLETE).read_text() == _LAST:
        _take_up_the_end(trainer, last)
    elif recipe.train_weights:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    metrics = {}
    for name, pool in pools.items():
        metrics |= trainer.evaluate(pool, metric_key_prefix=name)
    if trainer.is_world_process_zero():
        _finish(recipe, trainer, tokenizer, metrics)
    return metrics


def _introduction(recipe, arguments, questions):
    precision = {"bf16": "bfloat16", "no": "float32"}[recipe.mixed_precision]
    return (
        f"training a LatentRM for {recipe.model_type} {recipe.model_id} on {questions} questions; "
        f"{precision} on {where(arguments.device, arguments.world_size)}"
    )


def _take_up_the_end(trainer, last):
    """State and weights of a training that had ended when its process was killed."""
    trainer.state = TrainerState.load_from_json(last / "trainer_state.json")
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    trainer.model.load_state_dict(load_file(Path(best or last) / "model.safetensors"))


def _lasting(arguments):
    """What of the TrainingArguments determines the weights."""
    names = ("seed", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1",
             "adam_beta2", "adam_epsilon", "max_grad_norm", "max_steps", "num_train_epochs", "bf16",
             "metric_for_best_model", "load_best_model_at_end")  # fmt: skip
    return {name: getattr(arguments, name) for name in names} | {"batch": _global_batch(arguments)}


def _finish(recipe, trainer, tokenizer, metrics):
    """Writes the published layout: without the heads that only training has."""
    output, model = Path(recipe.output_dir), trainer.accelerator.unwrap_model(trainer.model).model
    kept = {k: v for k, v in metrics.items() if not k.endswith(("_runtime", "_per_second"))}
    minutes = sum(log.get("train_runtime", 0) for log in trainer.state.log_history) / 60
    write_json(
        output / "metrics.json",
        {
            "final": kept,
            "steps": trainer.state.global_step,
            "epochs": trainer.state.epoch,
            "questions": len(trainer.train_dataset),
            "mixed_precision": recipe.mixed_precision,
            "minutes_of_last_session": round(minutes, 1),
            "parameters": model.num_parameters(),
            "history": [
                log for log in trainer.state.log_history if any("recall" in k for k in log)
            ],
        },
    )
    tokenizer.save_pretrained(output)
    with tempfile.TemporaryDirectory(dir=output) as folder:
        model.to(getattr(torch, recipe.store_dtype)).save_pretrained(folder)
        for name in ("config.json", "model.safetensors"):  # by the last one the folder is finished
            (Path(folder) / name).replace(output / name)
