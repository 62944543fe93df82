"""What LatentRM is trained on: groups of trajectories from pools, their labels, batches."""

import math

import torch
from torch.utils.datasets import Dataset, Sampler

from src.training.curriculum import digits_of, result_digits
from utils.datasets import load_dataset
from utils.errors import UserError
from utils.shards import Pool

LABELS = ("rollout", "outcome")


class Groups(Dataset):
    """The questions of some pools, each with its N trajectories, for the reward model of a ``backbone`` class.

    labels: "rollout" (the pools' estimations) or "outcome" (their corrects). mixed_only: without the
    questions that all trajectories solve, or none. with_digits: also the digits of the true results.
    Raises UserError when pools do not go together.
    """

    def __init__(
        self, folders, backbone, tokenizer, labels="outcome", mixed_only=False, with_digits=False
    ):
        self.pools = [Pool(folder) for folder in folders]
        self.labels = labels
        self.places = [
            (p, place)
            for p, pool in enumerate(self.pools)
            for place in range(len(pool))
            if not mixed_only or _mixed(pool.tensor(place, "corrects"))
        ]
        empty = [pool.folder for pool in self.pools if not len(pool)]
        if empty or not self.places:
            where = (empty or folders)[0]
            raise UserError(f"{where}: no question whose trajectories differ; annotate more")
        self.samples, _, self.width = self.pools[0].tensor(0, "latent_embeds").shape  # N, D
        for pool in self.pools:
            samples, _, width = pool.tensor(0, "latent_embeds").shape
            if (samples, width) != (self.samples, self.width):
                raise UserError(f"{pool.folder}: trajectories of another shape than {folders[0]}")
            if labels == "rollout" and not pool.manifest["settings"]["n_samples_per_step"]:
                raise UserError(
                    f"{pool.folder}: has no rollouts; set labels: outcome or annotate with them"
                )
        self.rows = [load_dataset(pool.manifest["data_path"]) for pool in self.pools]
        self.backbone, self.tokenizer, self.with_digits = backbone, tokenizer, with_digits

    def _right_answers(self, rows):
        """Token ids of what a trajectory writes when it is right, a list a row."""
        texts = [
            self.backbone.format_answer(row["answer"]) + self.tokenizer.eos_token for row in rows
        ]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    @property
    def longest_answer(self):
        """Tokens of the longest answer, the right ones and the trajectories' own, with end-of-text."""
        right = max(len(ids) for rows in self.rows for ids in self._right_answers(rows))
        own = (self.pools[p].width(place, "answer_ids") for p, place in self.places)
        return max(right, *own)

    @property
    def longest_thinking(self):
        """Thoughts of the longest trajectory."""
        return max(self.pools[p].width(place, "latent_embeds") for p, place in self.places)

    @property
    def lengths(self):
        """Prompt tokens of every question."""
        return [self.pools[p].width(place, "input_ids") for p, place in self.places]

    def __len__(self):
        return len(self.places)

    def __getitem__(self, i):
        p, place = self.places[i]
        found = self.pools[p][place]
        corrects, row = found["corrects"], self.rows[p][found["idx"]]
        (gold,) = self._right_answers([row])
        labels = corrects.float()[:, None].expand_as(found["estimations"])  # (N, T)
        item = {
            "input_ids": found["input_ids"][0],  # (L,)
            "latent_embeds": found["latent_embeds"],  # (N, T, D)
            "latent_lengths": found["latent_lengths"],  # (N,)
            "answer_ids": found["answer_ids"],  # (N, A)
            "labels": found["estimations"] if self.labels == "rollout" else labels,
            "corrects": corrects,
            "predictions": found["predictions"],
            "gold_ids": torch.tensor(gold),  # (A,)
        }
        if self.with_digits:
            thoughts = found["latent_embeds"].shape[1]
            item["digits"] = self._digits(row, found["predictions"], thoughts // 2)
        return item

    def _digits(self, row, predictions, steps):
        own = [_number_digits(number) for number in predictions.tolist()]
        return {
            "step": torch.tensor(result_digits(row, steps)),  # (T // 2, 3)
            "true": torch.tensor(digits_of(row["answer"].replace(",", ""))),  # (3,)
            "own": torch.tensor(own),  # (N, 3)
        }


def _mixed(corrects):
    return bool(corrects.any()) and not bool(corrects.all())


def _number_digits(number):
    return digits_of("" if math.isnan(number) else str(abs(round(number))))


def collate(items):
    """A batch: prompts (Q, L) and thoughts (Q, N, T, D) padded on the right, everything else stacked."""
    prompts = [item["input_ids"] for item in items]
    ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)  # (Q, L)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    golds = torch.nn.utils.rnn.pad_sequence(
        [item["gold_ids"] for item in items], batch_first=True, padding_value=-1
    )
    batch = {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
        "answer_ids": _stacked(items, "answer_ids", -1),  # (Q, N, A)
        "latent_embeds": _stacked(items, "latent_embeds", 0.0),  # (Q, N, T, D)
        "labels": _stacked(items, "labels", 0.0),  # (Q, N, T)
        "gold_ids": golds,  # (Q, A)
        "digits": None,
    }
    if "digits" in items[0]:
        names = items[0]["digits"]
        batch["digits"] = {k: torch.stack([item["digits"][k] for item in items]) for k in names}
    for key in ("latent_lengths", "corrects", "predictions"):
        batch[key] = torch.stack([item[key] for item in items])
    return batch


def _stacked(items, key, fill):
    """The items' tensors (N, X, ...), made as wide as the widest, in one (Q, N, X, ...)."""
    parts = [item[key].transpose(0, 1) for item in items]  # (X, N, ...)
    padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=fill)
    return padded.transpose(1, 2)


class LengthSampler(Sampler):
    """Places in an order of their own each epoch, by batches of prompts of similar length.

    The order is a function of (seed, epoch, batch size over all processes), so a resumed run and any
    number of processes see the same batches. What fills no batch is left out of the epoch.
    """

    BLOCK = 64  # batches that are sorted by length together

    def __init__(self, lengths, batch_size, seed):
        self.lengths, self.batch_size = torch.tensor(lengths), batch_size
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.lengths) // self.batch_size * self.batch_size

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)[: len(self)]
        batches = []
        for block in order.split(self.BLOCK * self.batch_size):
            block = block[self.lengths[block].argsort(stable=True)]
            batches += block.split(self.batch_size)
        for k in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[k].tolist()
