"""Training data of the backbones: stages of a curriculum, sources of problems, batches."""

import itertools
import math
import random
from collections import defaultdict, namedtuple
from dataclasses import dataclass, field, replace

import torch
from torch.nn.utils.rnn import pad_sequence

from utils.datasets import load_dataset
from utils.errors import UserError
from utils.tiny_problems import make_problem

BLOCK = 16384  # problems that are tokenized and batched together
DIGITS = 3  # last digits of a result that are predicted
NO_DIGIT = 10  # class of a digit that a number does not have
IGNORED = -100  # target that cross-entropy leaves out
SCHEDULES = ("constant", "linear", "cosine")


@dataclass
class Stage:
    """One stage of a curriculum. Raises ValueError for impossible values."""

    epochs: int  # at least 1
    learning_rate: float  # after the warm-up, in (0, 1)
    thoughts: int = 0  # of a problem (COCONUT, CODI; with 0 only CODI's teacher learns)
    hidden_steps: int = 0  # leading steps that the thoughts replace, -1: all (COCONUT, CODI)
    speeds: list[int] = field(default_factory=list)  # factors r, each problem draws one (CoLaR)
    lr_scheduler_type: str = "constant"  # or linear, cosine: how it falls over the stage
    final_learning_rate: float = 0.0  # at the end of a stage that is linear or cosine
    dropout: float = 0.0  # rate in [0, 1), at the sites where the dropout sampler drops

    def __post_init__(self):
        if self.thoughts < 0 or self.hidden_steps < -1 or self.epochs < 1:
            raise ValueError("a stage needs thoughts >= 0, hidden_steps >= -1 and epochs >= 1")
        if self.speeds and min(self.speeds) < 1:
            raise ValueError("a stage's speeds must be at least 1")
        if not (0 < self.learning_rate < 1 and 0 <= self.final_learning_rate < 1):
            raise ValueError("a stage needs 0 < learning_rate < 1 and 0 <= final_learning_rate < 1")
        if self.lr_scheduler_type not in SCHEDULES:
            names = ", ".join(SCHEDULES)
            raise ValueError(f"a stage's lr_scheduler_type must be one of {names}")
        if self.final_learning_rate and self.lr_scheduler_type == "constant":
            raise ValueError(
                "a stage's final_learning_rate needs lr_scheduler_type: linear, cosine"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"a stage's dropout must be in [0, 1), not {self.dropout}")

    def check_keys(self, known):
        """Raises ValueError when a key is not among those known to the backbone, or missing."""
        for key in {"thoughts", "hidden_steps", "speeds"} - known:
            if getattr(self, key):
                raise ValueError(f"a stage's {key} has no effect for this model_type: leave it out")
        if "speeds" in known and not self.speeds:
            meaning = "the compression factors, such as [1, 2]"
            raise ValueError(f"a stage's speeds are missing, {meaning}")

    def rate_at(self, progress):
        """The learning rate after a share ``progress`` in [0, 1] of the stage's time after the
        warm-up."""
        left = {
            "constant": 1.0,
            "linear": 1 - progress,
            "cosine": (1 + math.cos(math.pi * progress)) / 2,
        }[self.lr_scheduler_type]
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * left


class TinyProblems:
    """Endless training problems of the tiny benchmark, without the questions of its files."""

    remainder = "drop"  # problems cost nothing: those that fill no batch of one length are dropped

    def __init__(self, seed, per_epoch, held_out):
        self.seed, self.per_epoch = seed, per_epoch
        self.held_out = _questions(held_out)

    def __len__(self):
        return self.per_epoch

    def epoch(self, number):
        for i in range(number * self.per_epoch, (number + 1) * self.per_epoch):
            row = make_problem("train", self.seed, i)
            if _normalized_question(row) not in self.held_out:
                yield row


class FileProblems:
    """The rows of a data file that are not held out and that the loss accepts.

    Every pass over the file has another order. per_epoch: problems of an epoch, None: all rows; the
    next epoch goes on where the last one ended. Raises UserError when no row is left.
    """

    remainder = "pad"

    def __init__(self, seed, path, per_epoch, held_out, accepts):
        rows, held_out = load_dataset(path), _questions(held_out)
        self.seed = seed
        kept = [row for row in rows if _normalized_question(row) not in held_out]
        self.num_held_out = len(rows) - len(kept)
        if not kept:
            raise UserError(f"train: all {len(rows)} questions of {path} are in held_out")
        self.rows = [row for row in kept if accepts(row)]
        if not self.rows:
            raise UserError(f"train: {path} has no question with an answer that can be learned")
        self.per_epoch = per_epoch or len(self.rows)

    def __len__(self):
        return self.per_epoch

    def epoch(self, number):
        first, left = number * self.per_epoch, self.per_epoch
        while left:
            pass_number, place = divmod(first, len(self.rows))
            rows = self._shuffled(pass_number)[place : place + left]
            yield from rows
            first, left = first + len(rows), left - len(rows)

    def _shuffled(self, pass_number):
        rows = list(self.rows)
        random.Random(f"{self.seed}/{pass_number}").shuffle(rows)
        return rows


def make_source(train, seed, per_epoch, held_out, accepts):
    """The training problems that a recipe names: "tiny" or a data file.

    accepts(row): whether a row of a file can be learned from.
    """
    if train == "tiny":
        return TinyProblems(seed, per_epoch, held_out)
    return FileProblems(seed, train, per_epoch, held_out, accepts)


def _questions(paths):
    return {_normalized_question(row) for path in paths for row in load_dataset(path)}


def _normalized_question(row):
    """Questions that differ in case and white space only are the same."""
    return " ".join(row["question"].lower().split())


@dataclass
class Batch:
    """B problems whose prompts have the same length, or similar ones."""

    prompts: torch.Tensor  # token ids (B, L), padded on the right with 0
    prompt_lengths: torch.Tensor  # (B,), in tokens
    texts: dict  # {name: token ids (B, S)}, padded on the right with IGNORED; the loss names them
    digits: torch.Tensor  # (B, K, DIGITS), the last digits of the results of the first K steps
    num_steps: list  # reasoning steps of each of the B problems
    num_targets: dict  # {name: divisor of the summed loss of that text}, see _num_targets
    speed: int | None  # CoLaR's compression factor r

    def shard(self, process, num_processes, device="cpu"):
        """One process's rows, on its device. num_targets is divided by the number of processes, so
        that the mean of their gradients is the gradient of the whole batch."""
        rows = slice(process, None, num_processes)
        return replace(
            self,
            prompts=self.prompts[rows].to(device),
            prompt_lengths=self.prompt_lengths[rows].to(device),
            texts={name: text[rows].to(device) for name, text in self.texts.items()},
            digits=self.digits[rows].to(device),
            num_steps=self.num_steps[rows],
            num_targets={name: n / num_processes for name, n in self.num_targets.items()},
        )


_Example = namedtuple("_Example", "row speed prompt texts")  # a tokenized problem


def batches(rows, tokenizer, format_row, stage, batch_size, seed, remainder):
    """Yields shuffled batches of prompts of the same length, block by block of the rows.

    format_row(row, stage, speed): the text of the prompt, and {name: text} to learn from.
    remainder: what happens to problems that fill no batch of one length. "drop" leaves them out,
    "pad" batches similar lengths and drops less than one batch of each speed, at random, "all"
    keeps these too.
    """
    rows = iter(rows)
    while block := list(itertools.islice(rows, BLOCK)):
        examples = _tokenize(block, tokenizer, format_row, stage, seed)
        groups, draw = [], random.Random(f"{seed}/{block[0]['question']}")
        for speed in stage.speeds or [None]:
            same_speed = [example for example in examples if example.speed == speed]
            groups += _group_by_length(same_speed, batch_size, remainder, draw)
        draw.shuffle(groups)
        yield from (_collate(group, stage.thoughts // 2) for group in groups)


def _tokenize(rows, tokenizer, format_row, stage, seed):
    draws = [random.Random(f"{seed}/{row['question']}") for row in rows]
    speeds = [draw.choice(stage.speeds or [None]) for draw in draws]
    formatted = [format_row(row, stage, speed) for row, speed in zip(rows, speeds, strict=True)]

    def encode(texts):
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    prompts = encode([prompt for prompt, _ in formatted])
    names = formatted[0][1]
    ids = {name: encode([texts[name] for _, texts in formatted]) for name in names}
    return [
        _Example(row, speeds[i], prompts[i], {name: ids[name][i] for name in names})
        for i, row in enumerate(rows)
    ]


def _group_by_length(examples, size, remainder, draw):
    """Lists of ``size`` examples with prompts of one length; ``remainder`` as in ``batches``.

    draw: a random.Random.
    """
    by_length = defaultdict(list)
    for example in examples:
        by_length[len(example.prompt)].append(example)
    groups, left = [], []
    for length in by_length if remainder == "drop" else sorted(by_length):
        same = by_length[length]
        full = len(same) - len(same) % size
        groups += [same[i : i + size] for i in range(0, full, size)]
        left += same[full:]
    if remainder == "drop":
        return groups
    if remainder == "pad":
        kept = draw.sample(range(len(left)), len(left) - len(left) % size)
        left = [left[i] for i in sorted(kept)]
    return groups + [left[i : i + size] for i in range(0, len(left), size)]


def _collate(examples, num_probed):
    names, speed = examples[0].texts, examples[0].speed
    texts = {name: _pad([example.texts[name] for example in examples], IGNORED) for name in names}
    return Batch(
        prompts=_pad([example.prompt for example in examples], 0),
        prompt_lengths=torch.tensor([len(example.prompt) for example in examples]),
        texts=texts,
        digits=torch.tensor([result_digits(example.row, num_probed) for example in examples]),
        num_steps=[len(example.row["steps"]) for example in examples],
        num_targets={
            name: _num_targets(name, [len(example.texts[name]) for example in examples], speed)
            for name in names
        },
        speed=speed,
    )


def _num_targets(name, lengths, speed):
    """Tokens of a text after its first one, or CoLaR's groups of r tokens of the steps."""
    if speed and name == "steps":
        return float(sum(-(-length // speed) for length in lengths))
    return float(sum(length - 1 for length in lengths))


def _pad(sequences, value):
    return pad_sequence(list(map(torch.tensor, sequences)), batch_first=True, padding_value=value)


def result_digits(row, num_steps):
    """The last digits of the results of the first ``num_steps`` steps; the last step repeats."""
    results = [step.rpartition("=")[2].rstrip(">") for step in row["steps"]] or [row["answer"]]
    results += results[-1:] * (num_steps - len(results))
    return [last_digits(result) for result in results[:num_steps]]


def last_digits(number):
    """The last DIGITS digits of a number's text, ones first; NO_DIGIT where there is none."""
    ones_first = [int(x) if x.isdigit() else NO_DIGIT for x in number[::-1]]
    return (ones_first + [NO_DIGIT] * DIGITS)[:DIGITS]
