"""What backbones are trained on: stages, sources of problems, batches."""

import itertools
import random
from dataclasses import dataclass, field

import torch

from src.sampling.trajectories import pad_right
from utils.datasets import load_dataset
from utils.errors import UserError
from utils.tiny_problems import make_problem

BLOCK = 16384  # problems that are tokenized and batched together
DIGITS = 3  # of a step's result that the probe reads
NO_DIGIT = 10  # the class of a digit that is not there


@dataclass
class Stage:
    """One stage of training; which keys count, the backbone decides.

    COCONUT: the first ``hidden_steps`` steps are replaced by ``thoughts`` latent thoughts; hidden_steps
    -1 hides all. CODI: so they are for the student; with 0 thoughts only the teacher learns. CoLaR:
    ``speeds``, the compression factors r that batches draw from. The learning rate goes linearly from
    ``learning_rate`` to ``final_learning_rate`` over the stage's ``epochs``; dropout as in sampling.
    """

    epochs: int
    learning_rate: float
    thoughts: int = 0
    hidden_steps: int = 0
    speeds: list[int] = field(default_factory=list)
    final_learning_rate: float | None = None
    dropout: float = 0.0

    def __post_init__(self):
        if self.thoughts < 0 or self.hidden_steps < -1 or self.epochs < 1:
            raise ValueError("a stage needs thoughts >= 0, hidden_steps >= -1 and epochs >= 1")
        if self.speeds and min(self.speeds) < 1:
            raise ValueError("a stage's speeds must be at least 1")
        rates = (self.learning_rate, self.final_learning_rate or 0.0)
        if not (self.learning_rate > 0 and all(0 <= rate < 1 for rate in rates)):
            raise ValueError("a stage needs 0 < learning_rate < 1 and 0 <= final_learning_rate < 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"a stage's dropout must be in [0, 1), not {self.dropout}")

    def check_keys(self, known):
        """Raises ValueError when a key is given that the backbone, which knows ``known``, does not use, or when
        speeds are missing where they are needed."""
        for key in {"thoughts", "hidden_steps", "speeds"} - known:
            if getattr(self, key):
                raise ValueError(f"a stage's {key} has no effect for this model_type: leave it out")
        if "speeds" in known and not self.speeds:
            raise ValueError(
                "a stage's speeds are missing, the compression factors, such as [1, 2]"
            )


class TinyProblems:
    """Endless training problems of the tiny benchmark, without the questions of its files.

    They are free: those that fill no batch of one prompt length are left out.
    """

    rest = "drop"

    def __init__(self, seed, per_epoch, held_out):
        self.seed, self.per_epoch = seed, per_epoch
        self.held_out = _questions(held_out)

    def __len__(self):
        return self.per_epoch

    def epoch(self, number):
        for i in range(number * self.per_epoch, (number + 1) * self.per_epoch):
            row = make_problem("train", self.seed, i)
            if _plain(row) not in self.held_out:
                yield row


class FileProblems:
    """The rows of a data file but for those that are held out, in an order of their own each epoch.

    left_out: how many are held out. Raises UserError when nothing is left.
    """

    rest = "pad"

    def __init__(self, seed, path, held_out):
        rows, held_out = load_dataset(path), _questions(held_out)
        self.seed, self.rows = seed, [row for row in rows if _plain(row) not in held_out]
        self.left_out = len(rows) - len(self.rows)
        if not self.rows:
            raise UserError(f"train: all {len(rows)} questions of {path} are in held_out")

    def __len__(self):
        return len(self.rows)

    def epoch(self, number):
        order = list(range(len(self.rows)))
        random.Random(f"{self.seed}/{number}").shuffle(order)
        return (self.rows[i] for i in order)


def _questions(paths):
    """The questions of some data files, as they are compared."""
    return {_plain(row) for path in paths for row in load_dataset(path)}


def _plain(row):
    """A question without what does not tell two of them apart: case and white space."""
    return " ".join(row["question"].lower().split())


@dataclass
class Batch:
    """Problems with prompts of one length, or of similar ones.

    prompt (B, L), padded on the right with 0, lengths (B,); texts: {name: (B, S)}, what the objective
    asked for, padded on the right with -100; digits (B, K, 3) of the first K steps' results; speed: of
    CoLaR; n_targets: by how many tokens the sum over a text is divided.
    """

    prompt: torch.Tensor
    lengths: torch.Tensor
    texts: dict
    digits: torch.Tensor
    n_steps: list
    n_targets: dict
    speed: int | None

    def share(self, process, processes, device="cpu"):
        """The rows of one process, on its device. The mean of the processes' gradients is that of
        the whole batch, however its tokens fall on them."""
        mine = slice(process, None, processes)
        prompt, lengths, digits = (
            part[mine].to(device) for part in (self.prompt, self.lengths, self.digits)
        )
        texts = {name: text[mine].to(device) for name, text in self.texts.items()}
        n_targets = {name: count / processes for name, count in self.n_targets.items()}
        return Batch(prompt, lengths, texts, digits, self.n_steps[mine], n_targets, self.speed)


@dataclass
class _Item:
    row: dict
    speed: int | None
    prompt: list
    texts: dict


def batches(rows, tokenizer, parts, stage, batch_size, seed, rest):
    """Shuffled batches of exactly equal prompt length, block by block of the rows.

    parts(row, stage, speed): the prompt's text, and {name: text} of what is learned from. What a block holds
    beyond full batches of one length, by ``rest``: "drop" leaves it out, "pad" forms full batches of
    similar lengths and leaves out less than one batch, "all" keeps that too.
    """
    rows = iter(rows)
    while block := list(itertools.islice(rows, BLOCK)):
        items = _tokenize(block, tokenizer, parts, stage, seed)
        found = []
        for speed in stage.speeds or [None]:
            found += _cut([item for item in items if item.speed == speed], batch_size, rest)
        random.Random(f"{seed}/{block[0]['question']}").shuffle(found)
        yield from (_collate(part, stage.thoughts // 2) for part in found)


def _tokenize(rows, tokenizer, parts, stage, seed):
    draw = [random.Random(f"{seed}/{row['question']}").choice for row in rows]
    speeds = [choice(stage.speeds) if stage.speeds else None for choice in draw]
    split = [parts(row, stage, speed) for row, speed in zip(rows, speeds, strict=True)]

    def ids(texts):
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    prompts = ids([prompt for prompt, _ in split])
    texts = {name: ids([found[name] for _, found in split]) for name in split[0][1]}
    return [
        _Item(rows[i], speeds[i], prompts[i], {name: text[i] for name, text in texts.items()})
        for i in range(len(rows))
    ]


def _cut(items, size, rest):
    by_length, found, left = {}, [], []
    for item in items:
        by_length.setdefault(len(item.prompt), []).append(item)
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
    prompt, lengths = pad_right([item.prompt for item in items], 0)
    texts = {
        name: pad_right([item.texts[name] for item in items], -100)[0] for name in items[0].texts
    }
    n_targets = {name: float((text[:, 1:] != -100).sum()) for name, text in texts.items()}
    digits = torch.tensor([result_digits(item.row, n_probed) for item in items])
    n_steps = [len(item.row["steps"]) for item in items]
    return Batch(prompt, lengths, texts, digits, n_steps, n_targets, items[0].speed)


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
    return FileProblems(seed, train, held_out)
