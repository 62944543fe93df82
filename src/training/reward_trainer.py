"""Training of LatentRM on the Hugging Face Trainer: the model, metrics on pools, resume."""

import json
import math
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerState

from src.models import BACKBONES
from src.models.latent_rm import LATENT_RMS
from src.models.loading import checkpoint_files, checkpoint_folder, load_backbone, weights_sha256
from src.models.precision import slowness
from src.training.attention import training_attention
from src.training.losses.latent_rm import RewardLoss
from src.training.model_card import write_card
from src.training.pool_judge import (
    CandidateDataset,
    collate_candidates,
    judge_metrics,
    new_judge,
)
from src.training.reward_dataset import LengthSampler, TrajectoryDataset, collate
from src.training.trackers import direct_trainer
from utils.errors import UserError, warn
from utils.files import sha256, write_json, write_text
from utils.metrics import best_of_n, majority_vote, pairwise_auc, softmax, weighted_vote
from utils.processes import where
from utils.progress import Pace
from utils.shards import Pool

_FINGERPRINT_FILE = "started.json"  # the recipe and the pools of a folder's checkpoints
_COMPLETE_FILE = "complete"  # in a checkpoint that was written to its end
_ENDED = "last"  # content of that file when training ended with the checkpoint


def new_model(recipe):
    """RewardLoss with the generator's weights and a random head, and the tokenizer."""
    torch.manual_seed(recipe.model_seed)
    backbone, tokenizer = load_backbone(recipe.model_type, recipe.model_id)
    config = type(backbone.config).from_dict(backbone.config.to_dict())
    backbone_layers = config.num_hidden_layers
    config.num_hidden_layers += recipe.extra_layers
    config.projector_dropout = 0.0  # a LatentRM trains without dropout
    config.scores_answer = recipe.answer_weight > 0
    config.reads_answer = recipe.reads_answer
    config.generator_type = recipe.model_type
    config.generator_sha256 = weights_sha256(checkpoint_folder(recipe.model_type, recipe.model_id))
    model = LATENT_RMS[config.model_type](config)
    heads = ("lm_head.", "lt_head.")  # a LatentRM has none of them
    body = {k: v for k, v in backbone.state_dict().items() if not k.startswith(heads)}
    model.load_state_dict(body, strict=False)
    model.recomputes_blocks = recipe.recomputes_blocks
    for block in model.blocks[backbone_layers:]:
        for layer in model.residual_outputs(block):
            torch.nn.init.zeros_(layer.weight)
    weights = (recipe.digits_weight, recipe.answer_weight, recipe.order_weight)
    loss = RewardLoss(model, recipe.loss, recipe.cumulative, *weights, seed=recipe.model_seed)
    return loss, tokenizer


def load_datasets(recipe, loss, tokenizer):
    """The training data and {name: evaluation data}. Raises UserError when they don't fit."""
    make = _candidates if recipe.judges_pool else _trajectories
    train_set = make(recipe, loss, tokenizer, recipe.train_pools, training=True)
    eval_sets = {
        name: make(recipe, loss, tokenizer, [folder], training=False)
        for name, folder in recipe.eval_pools.items()
    }
    if len(train_set) < recipe.global_batch_size:
        raise UserError(f"train_pools: {len(train_set)} questions fill no batch; annotate more")
    return train_set, eval_sets


def _candidates(recipe, loss, tokenizer, folders, training):
    """The data of a pool judge."""
    how = {"sizes": recipe.pool_sizes, "mixed_only": not recipe.keep_unmixed} if training else {}
    _check_generator(recipe, map(Pool, folders))  # before the generator thinks
    return CandidateDataset(folders, loss, tokenizer, recipe.device, **how)


def _trajectories(recipe, loss, tokenizer, folders, training):
    """The data of a LatentRM."""
    generator, digits = (BACKBONES[recipe.model_type], tokenizer), recipe.digits_weight > 0
    how = {"labels": recipe.labels, "mixed_only": not recipe.keep_unmixed} if training else {}
    dataset = TrajectoryDataset(folders, *generator, with_digits=digits, **how)
    _check_generator(recipe, dataset.pools)
    _check_sizes(recipe, loss.model.config, dataset)
    return dataset


def _check_generator(recipe, pools):
    """Raises UserError for pools of another backbone; warns when its weights have changed."""
    digest = sha256(checkpoint_files(recipe.model_type, recipe.model_id))
    for pool in pools:
        sampled_by = pool.manifest["settings"]["model_type"]
        if sampled_by != recipe.model_type:
            fault = f"thoughts of {sampled_by}, the recipe's model_type is {recipe.model_type}"
            mend = "choose pools and model_id of one backbone"
            raise UserError(f"{pool.folder}: {fault}: {mend}")
        if pool.manifest["model_sha256"] != digest:
            other = f"another checkpoint than model_id {recipe.model_id}"
            warn(f"{pool.folder}: was sampled by {other}")


def _check_sizes(recipe, config, dataset):
    """Raises UserError for trajectories that the model can't read."""
    fault, width, available = None, config.hidden_size, config.max_position_embeddings
    if dataset.width != width:
        fault = f"thoughts of width {dataset.width}, the model reads {width}"
    elif (needed := dataset.max_positions + recipe.reads_answer) > available:
        takes = f"a prompt, its thoughts and an answer take {needed} positions"
        fault = f"{takes}, the model has {available}"
    if fault:
        raise UserError(f"{dataset.pools[0].folder}: {fault}: choose another model_id")


def pool_metrics(prediction):
    """Percent over the Q questions of a pool, and the pairwise AUC from 0 to 1. recall_at_1 is the
    release's name of the accuracy of best-of-N."""
    corrects, answers = prediction.label_ids[0].astype(bool), prediction.label_ids[1]  # (Q, N)
    scores = np.asarray(prediction.predictions, dtype=np.float64)  # (Q, N)
    outcomes = defaultdict(list)
    for right, numbers, score in zip(corrects, answers, scores, strict=True):
        parsed = [None if math.isnan(number) else number for number in numbers.tolist()]
        # the numbers that are right, as far as any trajectory gave them
        gold = {number for number, ok in zip(parsed, right, strict=True) if ok}
        outcomes["recall_at_1"].append(best_of_n(parsed, score) in gold)
        outcomes["weighted_vote"].append(weighted_vote(parsed, softmax(score)) in gold)
        outcomes["vote"].append(majority_vote(parsed) in gold)
        outcomes["coverage"].append(bool(right.any()))
        outcomes["mean_accuracy"].append(right.mean())
    metrics = {name: round(100 * float(np.mean(of)), 2) for name, of in outcomes.items()}
    return metrics | {"auc": round(pairwise_auc(scores, corrects), 4)}


class RewardTrainer(Trainer):
    """Trainer with batches of similar length and the fastest attention; the loss knows the step."""

    def _get_train_sampler(self, train_dataset=None):
        lengths = self.train_dataset.prompt_lengths
        sampler = LengthSampler(lengths, self.args.global_batch_size, self.args.seed)
        self.add_callback(_SetEpoch(sampler))
        return sampler

    def training_step(self, model, inputs, *args, **kwargs):
        inputs = inputs | {"step": self.state.global_step}
        with training_attention(self.args.device):
            return super().training_step(model, inputs, *args, **kwargs)


class _SetEpoch(TrainerCallback):
    """Sets the sampler's epoch, which does not reach it behind the loaders of a resumed run."""

    def __init__(self, sampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))


class _Patience(EarlyStoppingCallback):
    """Counts evaluations of the pool of metric_for_best_model; the Trainer reports each pool."""

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if f"eval_{args.metric_for_best_model.removeprefix('eval_')}" in metrics:
            super().on_evaluate(args, state, control, metrics=metrics, **kwargs)


class _MarkComplete(TrainerCallback):
    """Marks a checkpoint once it is wholly on the disk: a kill may leave half of one."""

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE_FILE
            write_text(path, _ENDED if control.should_training_stop else "")


class _PrintPace(TrainerCallback):
    """Prints after the first steps how long all of them will take."""

    def on_train_begin(self, args, state, control, **kwargs):
        steps = state.max_steps - state.global_step
        self.pace = Pace(steps, print if state.is_world_process_zero else None)

    def on_step_end(self, args, state, control, **kwargs):
        self.pace.step()


def last_checkpoint(folder):
    """The newest complete checkpoint of a folder, or None."""
    complete = [path.parent for path in Path(folder).glob(f"checkpoint-*/{_COMPLETE_FILE}")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _open_folder(output, fingerprint, is_writer):
    """Claims the output folder for a run, and removes checkpoints that a kill left incomplete.
    Raises UserError when the folder holds a finished model or another run's checkpoints."""
    if (output / "model.safetensors").exists():
        raise UserError(f"output_dir: {output} holds a finished model; name another folder")
    path, checkpoints = output / _FINGERPRINT_FILE, list(output.glob("checkpoint-*"))
    if path.exists():
        _check_fingerprint(output, json.loads(path.read_text(encoding="utf-8")), fingerprint)
    elif checkpoints:
        fault = f"{output} holds checkpoints of something else"
        raise UserError(f"output_dir: {fault}; name another folder")
    if is_writer:
        write_json(path, fingerprint)
        for checkpoint in checkpoints:
            if not (checkpoint / _COMPLETE_FILE).is_file():
                shutil.rmtree(checkpoint)


def _check_fingerprint(output, saved, current):
    begun = f"output_dir: {output} was begun with"
    before, now = (run["recipe"].get("mixed_precision") for run in (saved, current))
    if before not in (None, now):
        mend = "set that to go on, or name another folder"
        raise UserError(f"{begun} mixed_precision: {before}, this is {now}: {mend}")
    if saved != current:
        mend = "go on with them or name another folder"
        raise UserError(f"{begun} another recipe or other pools; {mend}")


def train(recipe, text):
    """Trains a RewardRecipe to its end, from the newest checkpoint on, and writes the model.

    text: the recipe's YAML, kept beside the model. Raises UserError when pools or folder don't fit.
    """
    judges = recipe.judges_pool
    model, tokenizer = (new_judge if judges else new_model)(recipe)
    train_set, eval_sets = load_datasets(recipe, model, tokenizer)
    _begin(recipe, train_set, text)
    callbacks = [_MarkComplete(), _PrintPace()]
    if recipe.early_stopping_patience:
        callbacks.append(_Patience(recipe.early_stopping_patience))
    direct_trainer(recipe)
    trainer = RewardTrainer(
        model=model, args=recipe, data_collator=collate_candidates if judges else collate,
        train_dataset=train_set, eval_dataset=eval_sets,
        compute_metrics=judge_metrics if judges else pool_metrics, callbacks=callbacks,
    )  # fmt: skip
    _train_or_resume(trainer)
    metrics = {}
    for name, dataset in eval_sets.items():
        metrics |= trainer.evaluate(dataset, metric_key_prefix=name)
    if trainer.is_world_process_zero():
        _finish(trainer, tokenizer, metrics)


def _begin(recipe, train_set, text):
    """Opens the output folder and says what is trained; all processes wait for the first one."""
    output, is_writer = Path(recipe.output_dir), recipe.process_index == 0
    pools = [sha256([pool.folder / "manifest.json"]) for pool in train_set.pools]
    fingerprint = json.loads(json.dumps(recipe.fingerprint() | {"pools": pools}))
    _open_folder(output, fingerprint, is_writer)
    if is_writer:
        write_text(output / "recipe.yaml", text)
        precision = {"bf16": "bfloat16", "no": "float32"}[recipe.mixed_precision]
        kind = "pool judge" if recipe.judges_pool else "LatentRM"
        print(
            f"training a {kind} for {recipe.model_type} {recipe.model_id} on {len(train_set)} "
            f"questions; {precision} on {where(recipe.device, recipe.world_size)}", flush=True,
        )  # fmt: skip
        slow = slowness("bfloat16") if recipe.bf16 else None
        if slow:
            warn(f"mixed_precision: {slow}; auto chooses what is fast")
    if recipe.world_size > 1:
        torch.distributed.barrier()


def _train_or_resume(trainer):
    recipe = trainer.args
    checkpoint = last_checkpoint(recipe.output_dir)
    recipe.eval_on_start = recipe.eval_on_start and checkpoint is None  # it would count twice
    if checkpoint is None or (checkpoint / _COMPLETE_FILE).read_text() != _ENDED:
        if recipe.train_weights:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return
    # training had ended when its process was killed: take up its state and weights
    trainer.state = TrainerState.load_from_json(checkpoint / "trainer_state.json")
    best = trainer.state.best_model_checkpoint if recipe.load_best_model_at_end else None
    trainer.model.load_state_dict(load_file(Path(best or checkpoint) / "model.safetensors"))


def _finish(trainer, tokenizer, metrics):
    """Writes metrics, tokenizer and the model in the published layout, without its digit heads."""
    output = Path(trainer.args.output_dir)
    model = trainer.accelerator.unwrap_model(trainer.model).model
    state, timings = trainer.state, ("_runtime", "_per_second")
    minutes = sum(log.get("train_runtime", 0) for log in state.log_history) / 60
    summary = {
        "final": {name: x for name, x in metrics.items() if not name.endswith(timings)},
        "steps": state.global_step,
        "epochs": state.epoch,
        "questions": len(trainer.train_dataset),
        "mixed_precision": trainer.args.mixed_precision,
        "minutes_of_last_session": round(minutes, 1),
        "parameters": model.num_parameters(),
        "history": [log for log in state.log_history if any("recall" in key for key in log)],
    }
    write_json(output / "metrics.json", summary)
    tokenizer.save_pretrained(output)
    with tempfile.TemporaryDirectory(dir=output) as folder:
        model.to(getattr(torch, trainer.args.store_dtype)).save_pretrained(folder)
        (Path(folder) / "config.json").replace(output / "config.json")
        write_card(output)
        weights = "model.safetensors"  # marks a finished folder
        (Path(folder) / weights).replace(output / weights)
