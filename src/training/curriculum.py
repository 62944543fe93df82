"""The COCONUT curriculum (arXiv 2412.06769): from explicit steps to latent thoughts, by stages."""

import itertools
import random
from dataclasses import dataclass

import torch

from src.sampling.engine import pad_right
from utils.data import load_dataset
from utils.tiny_problems import make_problem

BLOCK = 16384  # problems that are tokenized and batched together
DIGITS = 3  # of a step's result that the probe reads
NO_DIGIT = 10  # the class of a digit that is not there


@dataclass
class Stage:
    """One stage: the first ``hidden_steps`` steps are replaced by ``thoughts`` latent thoughts.

    hidden_steps -1 hides all. The learning rate goes linearly from ``learning_rate`` to
    ``final_learning_rate`` over the stage's ``epochs``; dropout as in sampling, after attention
    and MLP.
    """

    thoughts: int
    hidden_steps: int
    epochs: int
    learning_rate: float
    final_learning_rate: float | None = None
    dropout: float = 0.0

    def __post_init__(self):
        if self.thoughts < 0 or self.hidden_steps < -1 or self.epochs < 1:
            raise ValueError("a stage needs thoughts >= 0, hidden_steps >= -1 and epochs >= 1")
        rates = (self.learning_rate, self.final_learning_rate or 0.0)
        if not (self.learning_rate > 0 and all(0 <= rate < 1 for rate in rates)):
            raise ValueError("a stage needs 0 < learning_rate < 1 and 0 <= final_learning_rate < 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"a stage's dropout must be in [0, 1), not {self.dropout}")


class TinyProblems:
    """Endless training problems of the tiny benchmark, without the questions of its files.

    They are free: those that fill no batch of one prompt length are left out.
    """

    rest = "drop"

    def __init__(self, seed, per_epoch, held_out):
        self.seed, self.per_epoch = seed, per_epoch
        self.held_out = {row["question"] for path in held_out for row in load_dataset(path)}

    def epoch(self, number):
        for i in range(number * self.per_epoch, (number + 1) * self.per_epoch):
            row = make_problem("train", self.seed, i)
            if row["question"] not in self.held_out:
                yield row


class FileProblems:
    """The rows of a data file, in an order of their own each epoch."""

    rest = "pad"

    def __init__(self, seed, path):
        self.seed, self.rows = seed, load_dataset(path)

    def epoch(self, number):
        order = list(range(len(self.rows)))
        random.Random(f"{self.seed}/{number}").shuffle(order)
        return (self.rows[i] for i in order)


@dataclass
class Batch:
    """Problems with prompts of one length, or of similar ones.

    prompt (B, L), padded on the right with 0, lengths (B,); text (B, S) from the end-of-thinking token
    to end-of-text, padded on the right with -100; digits (B, K, 3) of the first K steps' results;
    n_targets: by how many tokens the cross-entropy is divided.
    """

    prompt: torch.Tensor
    lengths: torch.Tensor
    text: torch.Tensor
    digits: torch.Tensor
    n_steps: list
    n_targets: float

    def share(self, process, processes, device="cpu"):
        """The rows of one process, on its device. The mean of the processes' gradients is that of
        the whole batch, however its tokens fall on them."""
        mine = slice(process, None, processes)
        tensors = (self.prompt, self.lengths, self.text, self.digits)
        parts = (part[mine].to(device) for part in tensors)
        return Batch(*parts, self.n_steps[mine], self.n_targets / processes)


def answer_text(row, eos):
    """What a trajectory writes when it is right."""
    return "### " + row["answer"] + eos


def target_text(row, hidden_steps, eos):
    """What follows the thoughts: the steps that are left, then the answer."""
    left = [] if hidden_steps < 0 else row["steps"][hidden_steps:]
    return "<|end-latent|>" + " ".join([*left, answer_text(row, eos)])


def batches(rows, tokenizer, format_prompt, stage, batch_size, seed, rest):
    """Shuffled batches of exactly equal prompt length, block by block of the rows.

    What a block holds beyond full batches of one length, by ``rest``: "drop" leaves it out, "pad"
    forms full batches of similar lengths and leaves out less than one batch, "all" keeps that too.
    """
    rows = iter(rows)
    while block := list(itertools.islice(rows, BLOCK)):
        items = _tokenize(block, tokenizer, format_prompt, stage)
        found = _cut(items, batch_size, rest)
        random.Random(f"{seed}/{block[0]['question']}").shuffle(found)
        yield from (_collate(part, stage.thoughts // 2) for part in found)


def _tokenize(rows, tokenizer, format_prompt, stage):
    prompts = tokenizer([format_prompt(row["question"]) for row in rows])["input_ids"]
    texts = [target_text(row, stage.hidden_steps, tokenizer.eos_token) for row in rows]
    return list(zip(rows, prompts, tokenizer(texts)["input_ids"], strict=True))


def _cut(items, size, rest):
    by_length, found, left = {}, [], []
    for item in items:
        by_length.setdefault(len(item[1]), []).append(item)
    for length in by_length if rest == "drop" else sorted(by_length):
        same = by_length[length]
        full = len(same) - len(same) % size
        found += [same[i : i + size] for i in range(0, full, size)]
        left += same[full:]
    if rest == "drop":
        return found
    end = len(left) if rest == "all" else len(left) - len(left) % size
    return found + [left[i : min(i + size, end)] for i in range(0, end, size)]


def _collate(items, n_probed):
    rows, prompts, texts = zip(*items, strict=True)
    prompt, lengths = pad_right(prompts, 0)
    text, _ = pad_right(texts, -100)
    digits = torch.tensor([result_digits(row, n_probed) for row in rows])
    n_steps = [len(row["steps"]) for row in rows]
    return Batch(prompt, lengths, text, digits, n_steps, float((text[:, 1:] != -100).sum()))


def result_digits(row, count):
    """The last three digits of the results of steps 1 .. count, ones first; the last step repeats."""
    results = [step.rpartition("=")[2].rstrip(">") for step in row["steps"]] or [row["answer"]]
    results += results[-1:] * (count - len(results))
    return [digits_of(result) for result in results[:count]]


def digits_of(number):
    """The last three digits of a number's text, ones first; NO_DIGIT where there is none."""
    ones_first = [int(x) if x.isdigit() else NO_DIGIT for x in number[::-1]]
    return (ones_first + [NO_DIGIT] * DIGITS)[:DIGITS]


def make_source(train, seed, per_epoch, held_out):
    """The training problems that a recipe names: "tiny" or a data file."""
    if train == "tiny":
        return TinyProblems(seed, per_epoch, held_out)
    return FileProblems(seed, train)
