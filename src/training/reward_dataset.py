"""Training data of LatentRM: the trajectories of annotated pools, their labels, batches."""

import math

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler, default_collate

from src.training.curriculum import last_digits, result_digits
from utils.datasets import load_dataset
from utils.errors import UserError
from utils.shards import Pool

LABELS = ("rollout", "outcome")


class TrajectoryDataset(Dataset):
    """The questions of some pools. An item holds the N trajectories of one question.

    folders: of the pools. backbone, tokenizer: class and tokenizer of the generator.
    labels: "rollout" (the pools' estimations) or "outcome" (their corrects).
    mixed_only: leave out questions that all trajectories solve, or none.
    with_digits: items also hold the digits of the true results and of the answers.
    Raises UserError when no question remains or when the pools do not fit together.
    """

    def __init__(
        self, folders, backbone, tokenizer, labels="outcome", mixed_only=False, with_digits=False
    ):
        self.backbone, self.tokenizer = backbone, tokenizer
        self.labels, self.with_digits = labels, with_digits
        self.pools = [Pool(folder) for folder in folders]
        self.index = [  # (pool, position in it) of each item
            (pool, position)
            for pool in self.pools
            for position in range(len(pool))
            if not mixed_only or len(pool.tensor(position, "corrects").unique()) == 2
        ]
        empty = [pool.folder for pool in self.pools if not len(pool)]
        if empty or not self.index:
            where = (empty or folders)[0]
            raise UserError(f"{where}: no question whose trajectories differ; annotate more")
        self._check_pools()
        self.rows = {pool: load_dataset(pool.manifest["data_path"]) for pool in self.pools}

    def _check_pools(self):
        num_trajectories, _, self.width = self.pools[0].tensor(0, "latent_embeds").shape  # N, D
        for pool in self.pools:
            shape = pool.tensor(0, "latent_embeds").shape
            if (shape[0], shape[2]) != (num_trajectories, self.width):
                first = self.pools[0].folder
                raise UserError(f"{pool.folder}: trajectories of another shape than {first}")
            if pool.manifest["settings"]["sampling_by"] == "tokens":
                fault = "all trajectories of a question have the same thoughts"
                raise UserError(f"{pool.folder}: {fault}; a LatentRM needs another sampler")
            if self.labels == "rollout" and not pool.manifest["settings"]["n_samples_per_step"]:
                mend = "set labels: outcome or annotate with them"
                raise UserError(f"{pool.folder}: has no rollouts; {mend}")

    def _gold_ids(self, rows):
        """Token ids that a right trajectory writes, a list for each row, end-of-text included."""
        eos = self.tokenizer.eos_token
        texts = [self.backbone.format_answer(row["answer"]) + eos for row in rows]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _widths(self, key):
        return [pool.width(position, key) for pool, position in self.index]

    @property
    def prompt_lengths(self):
        """Tokens of each question's prompt."""
        return self._widths("input_ids")

    @property
    def max_positions(self):
        """Positions of the longest prompt, the most thoughts and the longest answer together."""
        golds = [ids for rows in self.rows.values() for ids in self._gold_ids(rows)]
        max_answer = max(*map(len, golds), *self._widths("answer_ids"))  # right or sampled
        return max(self.prompt_lengths) + max(self._widths("latent_embeds")) + max_answer

    def __len__(self):
        return len(self.index)

    def __getitem__(self, i):
        pool, position = self.index[i]
        question = pool[position]
        row = self.rows[pool][question["idx"]]
        estimations = question["estimations"]  # (N, T)
        outcomes = question["corrects"].float()[:, None].expand_as(estimations)
        kept = ("latent_embeds", "latent_lengths", "answer_ids", "corrects", "predictions")
        item = {key: question[key] for key in kept} | {
            "input_ids": question["input_ids"][0],  # (L,)
            "labels": estimations if self.labels == "rollout" else outcomes,  # (N, T)
            "gold_ids": torch.tensor(self._gold_ids([row])[0]),  # (A,)
            "question_ids": i,
        }
        if self.with_digits:
            item["digits"] = _digits(row, question["predictions"], estimations.shape[1] // 2)
        return item


def _digits(row, predictions, num_steps):
    """Digits of a row's results ("step"), of its answer ("true") and of predictions ("own")."""
    numbers = ["" if math.isnan(x) else str(abs(round(x))) for x in predictions.tolist()]
    return {
        "step": torch.tensor(result_digits(row, num_steps)),  # (T // 2, DIGITS)
        "true": torch.tensor(last_digits(row["answer"].replace(",", ""))),  # (DIGITS,)
        "own": torch.tensor([last_digits(number) for number in numbers]),  # (N, DIGITS)
    }


def collate(items):
    """A batch of Q questions.

    input_ids, attention_mask (Q, L); latent_embeds (Q, N, T, D); latent_lengths, corrects,
    predictions (Q, N); labels (Q, N, T); answer_ids (Q, N, A), the trajectories' answers, and
    gold_ids (Q, A), the right ones, both padded with -1; question_ids (Q,), the numbers of the
    items; digits: None, or a dict of "step" (Q, T // 2, DIGITS), "true" (Q, DIGITS) and "own"
    (Q, N, DIGITS). All padding is on the right.
    """
    prompts, golds = ([item[key] for item in items] for key in ("input_ids", "gold_ids"))
    has_digits = "digits" in items[0]
    names = ("latent_lengths", "corrects", "predictions", "question_ids")
    return default_collate([{name: item[name] for name in names} for item in items]) | {
        "input_ids": pad_sequence(prompts, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(x) for x in prompts], batch_first=True),
        "answer_ids": _pad_columns(items, "answer_ids", -1),
        "latent_embeds": _pad_columns(items, "latent_embeds", 0.0),
        "labels": _pad_columns(items, "labels", 0.0),
        "gold_ids": pad_sequence(golds, batch_first=True, padding_value=-1),
        "digits": default_collate([item["digits"] for item in items]) if has_digits else None,
    }


def _pad_columns(items, key, value):
    """The items' tensors (N, X, ...), padded to the largest X, in one (Q, N, X, ...)."""
    columns = [item[key].transpose(0, 1) for item in items]  # (X, N, ...)
    return pad_sequence(columns, batch_first=True, padding_value=value).transpose(1, 2)


class LengthSampler(Sampler):
    """Item numbers in another order each epoch, by batches of prompts of similar length.

    The order depends on seed, epoch and ``batch_size``, over all processes, only, so a resumed run
    and any number of processes see the same batches. Questions that fill no batch are left out.
    """

    BLOCK = 64  # batches whose questions are sorted by length together

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
