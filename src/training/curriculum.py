"""The COCONUT curriculum (arXiv 2412.06769): from explicit steps to latent thoughts, by stages."""

import random
from dataclasses import dataclass

import torch

from utils.data import load_dataset
from utils.errors import UserError
from utils.tiny_problems import make_problem

BLOCK = 16384  # problems that are tokenized and batched together
_DIGITS = 3  # of a step's result that the probe reads; class 10 is "no digit"


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


class TinyProblems:
    """Endless training problems of the tiny benchmark, without the questions of its files."""

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

    def __init__(self, seed, path):
        self.seed, self.rows = seed, load_dataset(path)

    def epoch(self, number):
        order = list(range(len(self.rows)))
        random.Random(f"{self.seed}/{number}").shuffle(order)
        return (self.rows[i] for i in order)


@dataclass
class Batch:
    """Problems with prompts of one length. prompt (B, L); text (B, S) from the end-of-thinking token
    to end-of-text, padded on the right with -100; digits (B, K, 3) of the first K steps' results;
    n_targets: by how many tokens the cross-entropy is divided."""

    prompt: torch.Tensor
    text: torch.Tensor
    digits: torch.Tensor
    n_steps: list
    n_targets: float

    def share(self, process, processes, device="cpu"):
        """The rows of one process, on its device. The mean of the processes' gradients is that of
        the whole batch, however its tokens fall on them."""
        mine = slice(process, None, processes)
        parts = (part[mine].to(device) for part in (self.prompt, self.text, self.digits))
        return Batch(*parts, self.n_steps[mine], self.n_targets / processes)


def target_text(row, hidden_steps, eos):
    """What follows the thoughts: the steps that are left, then the answer."""
    left = [] if hidden_steps < 0 else row["steps"][hidden_steps:]
    return "<|end-latent|>" + " ".join([*left, "###", row["answer"]]) + eos


def batches(rows, tokenizer, format_prompt, stage, batch_size, seed, drop_last=True):
    """Batches of exactly equal prompt length, shuffled, block by block of the rows.

    With ``drop_last`` the batches that a block can't fill are left out: every process then has as
    many, of one size.
    """
    block = []
    for number, row in enumerate(rows, 1):
        block.append(row)
        if number % BLOCK == 0:
            yield from _block_batches(
                block, tokenizer, format_prompt, stage, batch_size, seed, drop_last
            )
            block = []
    if block:
        yield from _block_batches(block, tokenizer, format_prompt, stage, batch_size, seed, drop_last)


def _block_batches(rows, tokenizer, format_prompt, stage, batch_size, seed, drop_last):
    prompts = tokenizer([format_prompt(row["question"]) for row in rows])["input_ids"]
    texts = [target_text(row, stage.hidden_steps, tokenizer.eos_token) for row in rows]
    texts = tokenizer(texts)["input_ids"]
    by_length = {}
    for item in zip(rows, prompts, texts, strict=True):
        by_length.setdefault(len(item[1]), []).append(item)
    found = []
    for items in by_length.values():
        end = len(items) - len(items) % batch_size if drop_last else len(items)
        found += [items[i : i + batch_size] for i in range(0, end, batch_size)]
    random.Random(f"{seed}/{rows[0]['question']}").shuffle(found)
    return (_collate(items, stage.thoughts // 2) for items in found)


def _collate(items, n_probed):
    rows, prompts, texts = zip(*items, strict=True)
    text = torch.full((len(items), max(map(len, texts))), -100)
    for line, ids in zip(text, texts, strict=True):
        line[: len(ids)] = torch.tensor(ids)
    digits = torch.tensor([_result_digits(row, n_probed) for row in rows])
    n_steps = [len(row["steps"]) for row in rows]
    return Batch(torch.tensor(prompts), text, digits, n_steps, float((text[:, 1:] != -100).sum()))


def _result_digits(row, count):
    """The last three digits of the results of steps 1 .. count, ones first; the last step repeats."""
    results = [step.rpartition("=")[2].rstrip(">") for step in row["steps"]] or [row["answer"]]
    results += results[-1:] * (count - len(results))
    return [_digits(result) for result in results[:count]]


def _digits(number):
    ones_first = [int(x) if x.isdigit() else 10 for x in number[::-1]]
    return (ones_first + [10] * _DIGITS)[:_DIGITS]


def make_source(train, seed, per_epoch, held_out):
    """The training problems that a recipe names: "tiny" or a data file."""
    if train != "tiny":
        return FileProblems(seed, train)
    if per_epoch is None:
        raise UserError("key problems_per_epoch is missing; train: tiny needs it")
    return TinyProblems(seed, per_epoch, held_out)
