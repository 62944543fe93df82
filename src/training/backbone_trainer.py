"""Training of a backbone: its stages, validation, checkpoints, resume."""

import io
import itertools
import json
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from src.models.precision import slowness
from src.models.tokenizers import UNKNOWN_SHARE, rows_with_unknown
from src.sampling import rng
from src.training.attention import training_attention
from src.training.backbone_model import add_lora, new_model
from src.training.curriculum import FileProblems, batches, make_source
from src.training.losses import BACKBONE_LOSSES
from src.training.model_card import write_card
from src.training.trackers import finish_trackers, start_trackers
from utils.datasets import load_dataset
from utils.errors import UserError, warn
from utils.files import write_bytes, write_json, write_text
from utils.processes import where
from utils.progress import Pace, progress

_CHECKED_ROWS = 10_000  # rows of a training file in which unknown words are looked for
_STEP_BINS = 32  # of the accuracies by number of steps, from 0; the last one holds longer problems


@dataclass
class Cursor:
    """The progress of a training: the next batch of an epoch of a stage."""

    stage: int = 0
    epoch: int = 0  # of the stage
    batch: int = 0  # of the epoch
    step: int = 0  # optimizer steps of the stage
    total_steps: int = 0  # of all stages
    seconds: float = 0.0  # of training, over all sessions
    best: int | None = None  # index in history of the last stage's best validation
    loss_sum: float = 0.0  # of the main process, over the steps since the last validation
    loss_steps: int = 0
    history: list = field(default_factory=list)  # a dict for each validation


class BackboneTrainer:
    """Trains by a Recipe to its end, from the state in its output folder on. Each process has one.

    Raises UserError when recipe, data and output folder don't fit together.
    """

    def __init__(self, recipe, accelerator):
        self.recipe, self.accelerator = recipe, accelerator
        self.process, self.num_processes = accelerator.process_index, accelerator.num_processes
        self.device = accelerator.device
        self.num_passes = self._passes_of_a_step()
        torch.manual_seed(recipe.seed)
        self.model, self.tokenizer = new_model(recipe)
        per_epoch, held_out = recipe.problems_per_epoch, recipe.held_out
        loss = BACKBONE_LOSSES[recipe.model_type]
        self.source = make_source(recipe.train, recipe.seed, per_epoch, held_out, loss.accepts)
        self.valid = load_dataset(recipe.valid)
        self._check_words()
        self.output = Path(recipe.output_dir)
        self.state_file = self.output / "training_state.pt"
        self.best_file = self.output / "best_weights.pt"
        self.clock = time.monotonic()
        self.cursor = Cursor()
        self.loss_sum = torch.zeros((), device=self.device)  # read rarely: reading waits for a GPU
        self.lora_model = add_lora(self.model, recipe.lora) if recipe.lora else None
        self.loss = loss(self.model, recipe.loss, self.tokenizer, recipe.model_dropout)
        optimizer_state = self._load()
        self.wrapped_loss = accelerator.prepare(self.loss)
        self.optimizer = self._new_optimizer()
        if optimizer_state:
            self.optimizer.load_state_dict(optimizer_state)

    def _passes_of_a_step(self):
        """Forward passes of one process in an optimizer step. Raises UserError."""
        rows, left = divmod(self.recipe.batch_size, self.num_processes)
        if left:
            raise UserError(f"batch_size must be a multiple of {self.num_processes} processes")
        size = self.recipe.per_device_train_batch_size or rows
        if rows % size:
            fault = f"per_device_train_batch_size: {size} does not divide {rows}"
            raise UserError(f"{fault}, a process's problems of a step")
        return rows // size

    def introduction(self):
        """One line: which model is trained on what, and where."""
        recipe = self.recipe
        start = f"from {recipe.base}" if recipe.base else "from scratch"
        questions = f"{len(self.source)} questions an epoch of {recipe.train}"
        if held_out := getattr(self.source, "num_held_out", 0):
            questions += f" ({held_out} left out, which are in held_out)"
        precision = {"bf16": "bfloat16", "no": "float32"}[recipe.mixed_precision]
        device = where(self.device, self.num_processes)
        return f"training {recipe.model_type} {start} on {questions}; {precision} on {device}"

    def _check_words(self):
        """Raises UserError when the tokenizer doesn't know the words of over a tenth of a file."""
        files = [("valid", self.recipe.valid, self.valid)]
        if isinstance(self.source, FileProblems):
            files.append(("train", self.recipe.train, self.source.rows[:_CHECKED_ROWS]))
        for key, path, rows in files:
            unknown = len(rows_with_unknown(self.model, self.tokenizer, rows))
            line = f"{key}: {path}: {unknown} of {len(rows)} questions hold unknown words"
            if unknown > UNKNOWN_SHARE * len(rows) and not self.recipe.allow_unknown:
                mend = "set base to a model that knows them, or allow_unknown: true"
                raise UserError(f"{line}: {mend}")
            if unknown:
                warn(line)

    def _new_optimizer(self):
        recipe = self.recipe
        trained = [p for p in self.wrapped_loss.parameters() if p.requires_grad]
        exempt = [p for p in trained if p.ndim == 1 and not recipe.decay_vectors]
        decayed = [p for p in trained if p.ndim > 1 or recipe.decay_vectors]
        groups = [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": exempt, "weight_decay": 0.0},
        ]
        betas = (recipe.adam_beta1, recipe.adam_beta2)
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], betas=betas)
        return self.accelerator.prepare(optimizer)

    def run(self):
        """Trains to the end and writes the model and its metrics."""
        start_trackers(self.accelerator, self.recipe, self.cursor.total_steps)
        try:
            self._run_stages()
        finally:
            finish_trackers(self.accelerator)
        if self.accelerator.is_main_process:
            self._finish()

    def _run_stages(self):
        if self.recipe.eval_on_start and not self.cursor.history:
            self._validate(self.recipe.stages[0], print)
        is_main, cursor, stages = self.accelerator.is_main_process, self.cursor, self.recipe.stages
        epochs = sum(stage.epochs for stage in stages[cursor.stage :])
        self.pace = Pace(epochs * self._steps_per_epoch() - cursor.step, print if is_main else None)
        while cursor.stage < len(stages):
            self._run_stage(stages[cursor.stage])
            cursor.stage += 1
            cursor.epoch = cursor.batch = cursor.step = 0
            self.optimizer.state.clear()  # the same as a new one
            self._save()

    def _steps_per_epoch(self):
        """An upper bound: an epoch may leave problems out that fill no batch."""
        return math.ceil(len(self.source) / self.recipe.batch_size)

    def _run_stage(self, stage):
        cursor, quiet = self.cursor, not self.accelerator.is_main_process
        total_steps = self._steps_per_epoch() * stage.epochs
        bar = progress(total_steps, cursor.step, f"stage {cursor.stage}", disable=quiet)
        while cursor.epoch < stage.epochs and not self._stops_early():
            if self.recipe.new_optimizer == "epoch" and cursor.batch == 0:
                self.optimizer.state.clear()
            self._run_epoch(stage, total_steps, bar)
            cursor.epoch, cursor.batch = cursor.epoch + 1, 0
            if cursor.epoch % self.recipe.validate_every == 0 or cursor.epoch == stage.epochs:
                self._validate(stage, bar.write)
                self._keep_best()
            self._save()
        bar.close()

    def _in_last_stage(self):
        return self.cursor.stage == len(self.recipe.stages) - 1

    def _stops_early(self):
        """Whether the last stage has had too many validations without a better one."""
        patience, best = self.recipe.early_stopping_patience, self.cursor.best
        if patience is None or best is None:
            return False
        return len(self.cursor.history) - 1 - best >= patience

    def _keep_best(self):
        """Notes the last stage's best validation, and writes its weights if they will be needed."""
        history, best = self.cursor.history, self.cursor.best
        accuracy = history[-1]["valid_accuracy"]
        worse = best is not None and accuracy <= history[best]["valid_accuracy"]
        if worse or not self._in_last_stage():
            return
        self.cursor.best = len(history) - 1
        if self.recipe.load_best_model_at_end and self.accelerator.is_main_process:
            _write_tensors(self.best_file, self.loss.state_dict())

    def _run_epoch(self, stage, total_steps, bar):
        recipe, cursor = self.recipe, self.cursor
        number = sum(stage.epochs for stage in recipe.stages[: cursor.stage]) + cursor.epoch
        epoch_batches = batches(
            self.source.epoch(number), self.tokenizer, self.loss.format_row, stage,
            recipe.batch_size, f"{recipe.seed}/{number}", self.source.remainder,
        )  # fmt: skip
        self.wrapped_loss.train()
        for batch in itertools.islice(epoch_batches, cursor.batch, None):
            loss, right = self._step(batch, stage, total_steps)
            self.loss_sum += loss
            cursor.loss_steps += 1
            cursor.batch += 1
            cursor.step += 1
            cursor.total_steps += 1
            bar.update()
            self.pace.step()
            if cursor.step % 50 == 0:
                self._show(bar, float(loss), float(right.float().mean()))
            if cursor.step % recipe.save_steps == 0:
                self._save()
        if not cursor.batch:
            size = recipe.batch_size
            raise UserError(f"batch_size: an epoch holds no full batch of {size} problems")

    def _show(self, bar, loss, right):
        """Running metrics of this process: beside the bar, and in the tracker."""
        bar.set_postfix_str(f"loss {loss:.3f}, right {right:.2f}", refresh=False)
        rate = self.optimizer.param_groups[0]["lr"]
        self._log({"loss": loss, "right": right, "learning_rate": rate})

    def _log(self, values):
        place = {"stage": self.cursor.stage, "epoch": self.cursor.epoch}
        self.accelerator.log(values | place, step=self.cursor.total_steps)

    def _step(self, batch, stage, total_steps):
        """One optimizer step; the loss (scalar) and right predictions of this process's rows."""
        self._check_positions(batch, stage)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(stage, total_steps)
        self.optimizer.zero_grad()
        torch.manual_seed(self._torch_seed())
        losses = [self._forward_backward(batch, stage, part) for part in range(self.num_passes)]
        if self.recipe.max_grad_norm:
            parameters = self.wrapped_loss.parameters()
            self.accelerator.clip_grad_norm_(parameters, self.recipe.max_grad_norm)
        self.optimizer.step()
        losses, right = zip(*losses, strict=True)
        return sum(losses), torch.cat(right)

    def _forward_backward(self, batch, stage, part):
        """Adds the gradients of one of ``num_passes`` parts of this process's rows; its share of
        the loss (scalar), and its right predictions."""
        first = self.process + part * self.num_processes
        count = self.num_processes * self.num_passes
        last = part == self.num_passes - 1
        waits = nullcontext() if last else self.accelerator.no_sync(self.wrapped_loss)
        with waits, self.accelerator.autocast(), training_attention(self.device):
            shard = batch.shard(first, count, self.device)
            loss, right = self.wrapped_loss(shard, stage, self._rng_keys(first, count))
            loss = loss / self.num_passes
            self.accelerator.backward(loss)
        return loss.detach(), right

    def _check_positions(self, batch, stage):
        available = self.model.config.max_position_embeddings
        needed = self.loss.num_positions(batch, stage)
        if needed > available:
            fault = f"the model has {available} positions, a problem needs {needed}"
            raise UserError(f"config: {fault}: raise them, or drop the longest problems")

    def _learning_rate(self, stage, total_steps):
        """The stage's schedule, after a linear warm-up."""
        step, warmup = self.cursor.step, self.recipe.warmup_steps
        if warmup < 1:
            warmup = math.ceil(warmup * total_steps)
        if step < warmup:
            return stage.learning_rate * (step + 1) / warmup
        return stage.rate_at(min(1.0, (step - warmup) / max(1, total_steps - warmup)))

    def _torch_seed(self):
        """For the dropout of adapters and projector: depends on seed, stage, step and process."""
        key = torch.zeros((), dtype=torch.int64)
        for value in (self.recipe.seed, self.cursor.stage, self.cursor.step, self.process):
            key = rng.fold(key, value)
        return int(key)

    def _rng_keys(self, first, count):
        """Random keys of a shard's rows: they depend on seed, stage, step and row."""
        rows = torch.arange(first, self.recipe.batch_size, count)
        step = torch.full_like(rows, self.cursor.stage << 32 | self.cursor.step)
        return rng.row_keys(self.recipe.seed, step, rows, self.device)

    @torch.no_grad()
    def accuracy(self, stage):
        """Percent of the validation problems solved greedily: of all, and by number of steps."""
        counts = torch.zeros(2, _STEP_BINS, dtype=torch.float64)  # solved and all problems
        for batch in self._valid_batches(stage, 128):
            with self.accelerator.autocast():
                solved = self.loss.solved(batch.shard(0, 1, self.device), stage)
            num_steps = torch.tensor(batch.num_steps).clamp(max=_STEP_BINS - 1)
            counts[0] += num_steps.bincount(solved.cpu().double(), minlength=_STEP_BINS)
            counts[1] += num_steps.bincount(minlength=_STEP_BINS)
        solved, total = self.accelerator.reduce(counts.to(self.device)).tolist()
        by_steps = {str(k): round(100 * solved[k] / n, 1) for k, n in enumerate(total) if n}
        return round(100 * sum(solved) / sum(total), 2), by_steps

    @torch.no_grad()
    def valid_loss(self, stage):
        """The mean loss of the validation problems, in batches of a training pass, no dropout."""
        total = torch.zeros(2, dtype=torch.float64)  # loss and problems
        size = self.recipe.batch_size // (self.num_processes * self.num_passes)
        for batch in self._valid_batches(stage, size):
            rows = torch.arange(len(batch.prompts))
            keys = rng.row_keys(self.recipe.seed, torch.zeros_like(rows), rows, self.device)
            with self.accelerator.autocast():
                loss, _ = self.loss(batch.shard(0, 1, self.device), stage, keys)
            total += torch.tensor([float(loss) * len(rows), len(rows)])
        loss, count = self.accelerator.reduce(total.to(self.device)).tolist()
        return round(loss / count, 4)

    def _valid_batches(self, stage, size):
        """This process's batches of validation problems; the loss is in evaluation mode then."""
        self.wrapped_loss.eval()
        settings = (self.tokenizer, self.loss.format_row, stage, size, "valid", "all")
        valid_batches = batches(self.valid, *settings)
        return itertools.islice(valid_batches, self.process, None, self.num_processes)

    def _validate(self, stage, show):
        stage = replace(stage, dropout=0.0)
        if stage.speeds:  # the one nearest to the prompt's default
            stage = replace(stage, speeds=[min(stage.speeds, key=lambda speed: abs(speed - 2))])
        overall, by_steps = self.accuracy(stage)
        valid_loss = self.valid_loss(stage)
        self._add_time()
        entry = {
            "stage": self.cursor.stage,
            "epoch": self.cursor.epoch,
            "minutes": round(self.cursor.seconds / 60, 2),
            "train_loss": self._mean_loss(),
            "valid_loss": valid_loss,
            "valid_accuracy": overall,
            "by_steps": by_steps,
        }
        self.cursor.history.append(entry)
        self._log({"valid_accuracy": overall, "valid_loss": valid_loss})
        if self.accelerator.is_main_process:
            show(json.dumps(entry))

    def _mean_loss(self):
        """The mean loss of the steps since the last validation, None without any."""
        steps, total = self.cursor.loss_steps, float(self.loss_sum)
        self.loss_sum.zero_()
        self.cursor.loss_steps = 0
        return round(total / steps, 4) if steps else None

    def _add_time(self):
        """Adds the time since the last call to the seconds of training, over all sessions."""
        now = time.monotonic()
        self.cursor.seconds += now - self.clock
        self.clock = now

    def _save(self):
        self._add_time()
        if not self.accelerator.is_main_process:
            return
        self.cursor.loss_sum = float(self.loss_sum)
        state = {
            "recipe": self.recipe.fingerprint(),
            "cursor": asdict(self.cursor),
            "module": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        _write_tensors(self.state_file, state)

    def _load(self):
        """Restores a saved state; returns the optimizer's part, or None at a fresh start."""
        if not self.state_file.exists():
            if (self.output / "config.json").exists():
                fault = f"output_dir: {self.output} holds a finished model"
                raise UserError(f"{fault}; name another folder")
            return None
        state = _read_tensors(self.state_file)
        before, now = state["recipe"].get("mixed_precision"), self.recipe.mixed_precision
        if state["recipe"] | {"mixed_precision": now} != self.recipe.fingerprint():
            mend = "go on with that one or remove the file"
            raise UserError(f"{self.state_file} was made by another recipe; {mend}")
        if before != now:
            fault = f"{self.state_file} was made with another precision than this machine's"
            raise UserError(f"{fault}: set mixed_precision: {before} to go on")
        self.cursor = Cursor(**state["cursor"])
        self.loss_sum.fill_(self.cursor.loss_sum)
        self.loss.load_state_dict(state["module"])
        return state["optimizer"]

    def _finish(self):
        recipe, history = self.recipe, self.cursor.history
        last = history[-1] if history else {}
        if recipe.load_best_model_at_end and self.cursor.best is not None:
            last = history[self.cursor.best]
            self.loss.load_state_dict(_read_tensors(self.best_file))
        model = self.lora_model.merge_and_unload() if self.lora_model else self.model
        thoughts = recipe.stages[-1].thoughts
        generation = ({"latent_length": thoughts} if thoughts else {}) | recipe.generation
        for key, value in generation.items():
            setattr(model.generation_config, key, value)
        # else transformers would drop these keys when it reads the file again
        model.generation_config._from_model_config = False
        model.save_pretrained(self.output)
        self.tokenizer.save_pretrained(self.output)
        metrics = {
            "seed": recipe.seed,
            "mixed_precision": recipe.mixed_precision,
            "valid_accuracy": last.get("valid_accuracy"),
            "valid_accuracy_by_steps": last.get("by_steps"),
            "minutes": round(self.cursor.seconds / 60, 1),
            "processes": self.accelerator.num_processes,
            "threads_per_process": torch.get_num_threads(),
            "parameters": self.model.num_parameters(),
            "history": history,
        }
        write_json(self.output / "metrics.json", metrics)
        for file in (self.state_file, self.best_file):
            file.unlink(missing_ok=True)
        print(f"wrote {self.output}: valid accuracy {last.get('valid_accuracy')} %")


def _write_tensors(path, values):
    buffer = io.BytesIO()  # so that a full disk is an OSError, not one of torch's
    torch.save(values, buffer)
    write_bytes(path, buffer.getbuffer())


def _read_tensors(path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        fault = f"{path} is missing, and the training needs it"
        raise UserError(f"{fault}; remove the folder to start anew") from None
    except Exception as error:  # a damaged archive fails in many ways
        reason = f"{path} is damaged ({type(error).__name__})"
        raise UserError(f"{reason}; remove it to start anew") from None


def train(recipe, accelerator, text):
    """Trains a Recipe to its end, from the state in its folder on, and says what it does.

    text: the recipe's YAML, kept beside the model. Raises UserError, as BackboneTrainer.
    """
    trainer = BackboneTrainer(recipe, accelerator)
    if accelerator.is_main_process:
        print(trainer.introduction(), flush=True)
        write_text(Path(recipe.output_dir) / "recipe.yaml", text)
    slow = slowness("bfloat16") if recipe.mixed_precision == "bf16" else None
    if slow:
        warn(f"mixed_precision: {slow}; auto chooses what is fast")
    trainer.run()
    if accelerator.is_main_process:
        write_card(recipe.output_dir)
