"""Training of a backbone: stages, validation, checkpoints, resume."""

import io
import json
import math
import time
import warnings
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from src.models import BACKBONES
from src.models.latent_reasoner import GenerationDefaults
from src.models.precision import resolve_precision
from src.models.tokenizers import UNKNOWN_SHARE, add_tokens, build_tokenizer, rows_with_unknown
from src.sampling import rng
from src.training.attention import training_attention
from src.training.coconut_loss import CoconutLoss
from src.training.codi_loss import CodiLoss
from src.training.colar_loss import ColarLoss
from src.training.curriculum import FileProblems, Stage, batches, make_source
from utils.config import check_seed
from utils.datasets import load_dataset
from utils.errors import UserError, warn
from utils.files import write_bytes, write_json, write_text
from utils.processes import where
from utils.progress import Pace, progress

CHECKED = 10_000  # rows of a training file in which unknown words are looked for
LOSSES = {"coconut": CoconutLoss, "codi": CodiLoss, "colar": ColarLoss}
DROPOUTS = (
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
    "attention_dropout",
)  # HF's own are off: stages have one


@dataclass
class Lora:
    """Adapters in place of all weights (peft's LoraConfig): rank r, alpha, dropout, target_modules by name.

    also_train: names of parameters, or parts of them, that are trained whole beside the adapters.
    """

    r: int
    alpha: int
    target_modules: list[str]
    dropout: float = 0.0
    also_train: list[str] = field(default_factory=list)


@dataclass
class Recipe:
    """training_args/backbone_*.yaml.

    base: a plain GPT-2 or LLaMA by path or hub id; without one the model is new, with the word-level
    tokenizer of the tiny benchmark. config: values of the model's config. loss: weights of the parts of
    the loss, see the backbone's class in src/training. train: "tiny" for the generated stream
    (problems_per_epoch of it make an epoch), or a data file; held_out: files whose questions are left
    out of it. mixed_precision: bf16, no, or auto, which is bf16 where the device computes it fast.
    allow_unknown: go on where more than a tenth of the questions hold words unknown to the tokenizer.
    batch_size counts the problems of one optimizer step, over all processes.
    generation: values of the finished model's generation_config.json, such as noise_std; latent_length is
    that of the last stage unless it is given. validate_every: epochs between two validations.
    save_every: optimizer steps between two saves.
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
        if self.model_type not in LOSSES:
            raise ValueError(
                f"model_type must be one of {', '.join(LOSSES)}, not {self.model_type!r}"
            )
        weights = LOSSES[self.model_type].weights
        if not set(self.loss) <= set(weights):
            raise ValueError(f"loss must give weights to {', '.join(weights)}, not {self.loss!r}")
        self.loss = weights | self.loss
        if not self.stages:
            raise ValueError("stages is empty")
        for stage in self.stages:
            stage.check_keys(LOSSES[self.model_type].stage_keys)
        BACKBONES[self.model_type].generation_defaults(self.generation)
        unknown = self.generation.keys() - {field.name for field in fields(GenerationDefaults)}
        if unknown:
            raise ValueError(f"generation: unknown key {sorted(unknown)[0]}")
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


@dataclass
class Cursor:
    """Where training stands: the next batch of an epoch of a stage; ``step`` counts in the stage."""

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    history: list = field(default_factory=list)


def new_model(recipe):
    """The model before training, and its tokenizer with the special tokens."""
    cls = BACKBONES[recipe.model_type]
    values = {key: 0 for key in DROPOUTS if hasattr(cls.config_class(), key)} | recipe.config
    if recipe.base is None:
        tokenizer = build_tokenizer(cls)
        eos = tokenizer.eos_token_id
        values |= {"vocab_size": len(tokenizer), "bos_token_id": eos, "eos_token_id": eos}
        try:
            return add_tokens(cls(cls.config_class(**values)), tokenizer), tokenizer
        except Exception as error:  # whatever odd values make of the parsers
            raise UserError(
                f"config: makes no model ({' '.join(str(error).split())[:200]})"
            ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(recipe.base)
        config = AutoConfig.from_pretrained(recipe.base)
        for key, value in values.items():
            setattr(config, key, value)
        model = cls.from_pretrained(recipe.base, config=config, dtype=torch.float32)
    except Exception as error:  # whatever a missing or spoilt checkpoint makes of the parsers
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"base: {recipe.base} can't be loaded ({reason})") from None
    return add_tokens(model, tokenizer), tokenizer


def adapted(model, lora):
    """The model with LoRA adapters inside, by peft; its merge_and_unload() gives the plain one back.

    Raises UserError without peft, or when the recipe's names fit nothing.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("lora: needs peft: pip install peft") from None
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules,
        fan_in_fan_out=model.config.model_type == "gpt2",
    )  # fmt: skip
    try:
        with warnings.catch_warnings():  # peft calls what transformers has renamed
            warnings.simplefilter("ignore", FutureWarning)
            found = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"lora: {' '.join(str(error).split())[:200]}") from None
    for part in lora.also_train:
        chosen = [parameter for name, parameter in model.named_parameters() if part in name]
        if not chosen:
            raise UserError(f"lora.also_train: no parameter of the model is named {part}")
        for parameter in chosen:
            parameter.requires_grad_(True)
    return found


class BackboneTrainer:
    """Runs a recipe from its cursor to its end. One object a process; ``accelerator`` joins them."""

    def __init__(self, recipe, accelerator):
        self.recipe, self.accelerator = recipe, accelerator
        self.place = (accelerator.process_index, accelerator.num_processes, accelerator.device)
        if recipe.batch_size % accelerator.num_processes:
            raise UserError(
                f"batch_size must be a multiple of {accelerator.num_processes} processes"
            )
        torch.manual_seed(recipe.seed)
        self.model, self.tokenizer = new_model(recipe)
        self.source = make_source(
            recipe.train, recipe.seed, recipe.problems_per_epoch, recipe.held_out
        )
        self.valid = load_dataset(recipe.valid)
        self._check_words()
        self.output = Path(recipe.output_dir)
        self.state_file = self.output / "training_state.pt"
        self.clock = time.monotonic()
        self.cursor = Cursor()
        self.adapted = adapted(self.model, recipe.lora) if recipe.lora else None
        loss = LOSSES[recipe.model_type]
        self.module = loss(self.model, recipe.loss, self.tokenizer.eos_token)
        saved = self._load()
        self.wrapped = accelerator.prepare(self.module)
        self.optimizer = self._new_optimizer()
        if saved:
            self.optimizer.load_state_dict(saved)

    def introduction(self):
        """What is trained on what, one line."""
        recipe, accelerator = self.recipe, self.accelerator
        start = f"from {recipe.base}" if recipe.base else "from scratch"
        questions = f"{len(self.source)} questions an epoch of {recipe.train}"
        left_out = getattr(self.source, "left_out", 0)
        held = f" ({left_out} left out, which are in held_out)" if left_out else ""
        precision = {"bf16": "bfloat16", "no": "float32"}[recipe.mixed_precision]
        return (
            f"training {recipe.model_type} {start} on {questions}{held}; {precision} on "
            f"{where(accelerator.device, accelerator.num_processes)}"
        )

    def _check_words(self):
        """Raises UserError where the tokenizer does not know the words of the training or validation file."""
        files = [("valid", self.recipe.valid, self.valid)]
        if isinstance(self.source, FileProblems):
            files.append(("train", self.recipe.train, self.source.rows[:CHECKED]))
        for key, path, rows in files:
            unknown = rows_with_unknown(self.model, self.tokenizer, rows)
            if not unknown:
                continue
            line = f"{key}: {path}: {len(unknown)} of {len(rows)} questions hold unknown words"
            if len(unknown) > UNKNOWN_SHARE * len(rows) and not self.recipe.allow_unknown:
                raise UserError(
                    f"{line}: set base to a model that knows them, or allow_unknown: true"
                )
            warn(line)

    def _new_optimizer(self):
        optimizer = torch.optim.AdamW(
            [p for p in self.wrapped.parameters() if p.requires_grad],
            betas=(0.9, 0.98),
            weight_decay=self.recipe.weight_decay,
        )
        return self.accelerator.prepare(optimizer)

    def run(self):
        """Trains to the end and writes the model, its recipe and its metrics."""
        self.pace = Pace(self._steps_left(), print if self.accelerator.is_main_process else None)
        while self.cursor.stage < len(self.recipe.stages):
            self._stage(self.recipe.stages[self.cursor.stage])
            self.cursor.stage += 1
            self.cursor.epoch = self.cursor.batch = self.cursor.step = 0
            self.optimizer = self._new_optimizer()  # reset per stage, as the paper does
            self._save()
        self._finish()

    def _stage(self, stage):
        total = self._steps_per_epoch() * stage.epochs
        bar = progress(
            total,
            self.cursor.step,
            f"stage {self.cursor.stage}",
            disable=not self.accelerator.is_main_process,
        )
        while self.cursor.epoch < stage.epochs:
            self._epoch(stage, total, bar)
            self.cursor.epoch, self.cursor.batch = self.cursor.epoch + 1, 0
            if (
                self.cursor.epoch % self.recipe.validate_every == 0
                or self.cursor.epoch == stage.epochs
            ):
                self._validate(stage, bar)
            self._save()
        bar.close()

    def _steps_left(self):
        epochs = sum(stage.epochs for stage in self.recipe.stages[self.cursor.stage :])
        return epochs * self._steps_per_epoch() - self.cursor.step

    def _global_epoch(self):
        return sum(s.epochs for s in self.recipe.stages[: self.cursor.stage]) + self.cursor.epoch

    def _steps_per_epoch(self):
        """Optimizer steps of an epoch, exactly known only when its batches are made: an estimate."""
        return math.ceil(len(self.source) / self.recipe.batch_size)

    def _epoch(self, stage, total, bar):
        recipe, number = self.recipe, self._global_epoch()
        found = batches(
            self.source.epoch(number), self.tokenizer, self.module.parts, stage,
            recipe.batch_size, f"{recipe.seed}/{number}", self.source.rest,
        )  # fmt: skip
        self.wrapped.train()
        position = None
        for position, batch in enumerate(found):
            if position < self.cursor.batch:
                continue
            loss, right = self._step(batch, stage, total)
            self.cursor.batch, self.cursor.step = position + 1, self.cursor.step + 1
            bar.update()
            self.pace.step()
            if self.cursor.step % 50 == 0:
                bar.set_postfix_str(
                    f"loss {loss:.3f}, right {right.float().mean():.2f}", refresh=False
                )
            if self.cursor.step % recipe.save_every == 0:
                self._save()
        if position is None:
            raise UserError(
                f"batch_size: an epoch holds no full batch of {recipe.batch_size} problems"
            )

    def _step(self, batch, stage, total):
        recipe, cursor = self.recipe, self.cursor
        needed = self.module.positions(batch, stage)
        if needed > self.model.config.max_position_embeddings:
            raise UserError(
                f"config: the model has {self.model.config.max_position_embeddings} positions, a problem "
                f"needs {needed}: raise them, or drop the longest problems"
            )
        final = (
            stage.learning_rate if stage.final_learning_rate is None else stage.final_learning_rate
        )
        done = min(1.0, cursor.step / max(1, total))
        rate = stage.learning_rate + (final - stage.learning_rate) * done
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (cursor.step + 1) / max(1, recipe.warmup_steps))
        self.optimizer.zero_grad()
        torch.manual_seed(self._module_seed())
        with self.accelerator.autocast(), training_attention(self.accelerator.device):
            share = batch.share(*self.place)
            loss, right = self.wrapped(share, stage, self._share_keys())
            self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.wrapped.parameters(), recipe.max_grad_norm)
        self.optimizer.step()
        return loss.detach(), right

    def _module_seed(self):
        """For the dropout of adapters and projector: a function of seed, stage, step and process."""
        key = torch.zeros((), dtype=torch.int64)
        for value in (self.recipe.seed, self.cursor.stage, self.cursor.step, self.place[0]):
            key = rng.fold(key, value)
        return int(key)

    def _share_keys(self):
        """Random keys of this process's rows: a function of seed, stage, step and row."""
        process, processes, device = self.place
        rows = torch.arange(process, self.recipe.batch_size, processes)
        step = torch.full_like(rows, self.cursor.stage << 32 | self.cursor.step)
        return rng.row_keys(self.recipe.seed, step, rows, device)

    @torch.no_grad()
    def accuracy(self, stage):
        """Percent of validation problems solved greedily: overall, and by number of steps.

        The processes share the batches.
        """
        self.wrapped.eval()
        if stage.speeds:  # the one nearest to the prompt's default
            stage = replace(stage, speeds=[min(stage.speeds, key=lambda speed: abs(speed - 2))])
        counts = torch.zeros(2, 32, dtype=torch.float64)  # right and seen, by number of steps
        found = batches(self.valid, self.tokenizer, self.module.parts, stage, 128, "valid", "all")
        for i, batch in enumerate(found):
            if i % self.accelerator.num_processes != self.accelerator.process_index:
                continue
            with self.accelerator.autocast():
                right = self.module.solved(batch.share(0, 1, self.accelerator.device), stage)
            at = torch.tensor(batch.n_steps).clamp(max=31)
            counts[0].index_add_(0, at, right.double().cpu())
            counts[1].index_add_(0, at, torch.ones(len(at), dtype=torch.float64))
        counts = self.accelerator.reduce(counts.to(self.accelerator.device)).cpu()
        right, seen = counts.tolist()
        by_steps = {
            str(k): round(100 * r / n, 1)
            for k, (r, n) in enumerate(zip(right, seen, strict=True))
            if n
        }
        return round(100 * sum(right) / sum(seen), 2), by_steps

    def _tick(self):
        """Adds the time since the last call to the seconds of training, over all sessions."""
        now = time.monotonic()
        self.cursor.seconds += now - self.clock
        self.clock = now

    def _validate(self, stage, bar):
        overall, by_steps = self.accuracy(stage)
        self._tick()
        self.cursor.history.append(
            {
                "stage": self.cursor.stage,
                "epoch": self.cursor.epoch,
                "minutes": round(self.cursor.seconds / 60, 2),
                "valid_accuracy": overall,
                "by_steps": by_steps,
            }
        )
        if self.accelerator.is_main_process:
            bar.write(json.dumps(self.cursor.history[-1]))

    def _save(self):
        self._tick()
        if not self.accelerator.is_main_process:
            return
        state = {
            "recipe": asdict(self.recipe),
            "cursor": asdict(self.cursor),
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        buffer = io.BytesIO()  # so that a full disk is an OSError, not one of torch's
        torch.save(state, buffer)
        write_bytes(self.state_file, buffer.getbuffer())

    def _load(self):
        """Takes up a saved state; returns the optimizer's part, or None at a fresh start."""
        if not self.state_file.exists():
            if (self.output / "config.json").exists():
                raise UserError(
                    f"output_dir: {self.output} holds a finished model; name another folder"
                )
            return None
        try:
            state = torch.load(self.state_file, map_location="cpu", weights_only=True)
        except Exception as error:  # a spoilt archive fails in many ways
            reason = f"{self.state_file} is damaged ({type(error).__name__})"
            raise UserError(f"{reason}; remove it to start anew") from None
        if state["recipe"] | {"mixed_precision": None} == asdict(self.recipe) | {
            "mixed_precision": None
        }:
            before = state["recipe"]["mixed_precision"]
            if before != self.recipe.mixed_precision:
                raise UserError(
                    f"{self.state_file} was made with another precision than this machine's: set "
                    f"mixed_precision: {before} to go on"
                )
        else:
            raise UserError(
                f"{self.state_file} was made by another recipe; go on with that one or remove the file"
            )
        self.cursor = Cursor(**state["cursor"])
        self.module.load_state_dict(state["module"])
        return state["optimizer"]

    def _finish(self):
        if not self.accelerator.is_main_process:
            return
        model = self.adapted.merge_and_unload() if self.adapted else self.model
        thoughts = self.recipe.stages[-1].thoughts
        generation = ({"latent_length": thoughts} if thoughts else {}) | self.recipe.generation
        for key, value in generation.items():
            setattr(model.generation_config, key, value)
        model.generation_config._from_model_config = (
            False  # transformers would not read these keys again
        )
        model.save_pretrained(self.output)
        self.tokenizer.save_pretrained(self.output)
        last = self.cursor.history[-1] if self.cursor.history else {}
        metrics = {
            "seed": self.recipe.seed,
            "mixed_precision": self.recipe.mixed_precision,
            "valid_accuracy": last.get("valid_accuracy"),
            "valid_accuracy_by_steps": last.get("by_steps"),
            "minutes": round(self.cursor.seconds / 60, 1),
            "processes": self.accelerator.num_processes,
            "threads_per_process": torch.get_num_threads(),
            "parameters": self.model.num_parameters(),
            "history": self.cursor.history,
        }
        write_json(self.output / "metrics.json", metrics)
        self.state_file.unlink(missing_ok=True)
        print(f"wrote {self.output}: valid accuracy {last.get('valid_accuracy')} %")


def copy_recipe(yaml_path, output_dir):
    """Keeps the YAML file beside the model that it makes."""
    write_text(Path(output_dir) / "recipe.yaml", Path(yaml_path).read_text(encoding="utf-8"))
