"""Training of a PoolJudge: model, data and metrics, for src/training/reward_trainer.py."""

from collections import defaultdict
from dataclasses import fields

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from src.models.candidates import Candidates, candidates_of, greedy_distances
from src.models.loading import checkpoint_folder, load_backbone, weights_sha256
from src.models.pool_judge import PoolJudge, PoolJudgeConfig
from src.sampling.engine import sample
from src.sampling.trajectories import Request
from src.training.losses.pool_judge import JudgeLoss
from utils.answers import is_right
from utils.datasets import load_dataset
from utils.errors import UserError
from utils.metrics import pairwise_auc
from utils.shards import Pool

_AT_ONCE = 64  # questions whose greedy trajectories are sampled together


def new_judge(recipe):
    """JudgeLoss with a new PoolJudge, and the generator's tokenizer."""
    torch.manual_seed(recipe.model_seed)
    generator, tokenizer = load_backbone(recipe.model_type, recipe.model_id)
    generator.requires_grad_(False)
    folder = checkpoint_folder(recipe.model_type, recipe.model_id)
    config = PoolJudgeConfig(
        generator_layers=generator.config.num_hidden_layers,
        generator_width=generator.config.hidden_size,
        hidden_size=recipe.judge_width,
        reads_states=recipe.reads_states,
        reads_votes=recipe.reads_votes,
        generator_type=recipe.model_type,
        generator_architecture=generator.config.model_type,
        generator_sha256=weights_sha256(folder),
    )
    return JudgeLoss(PoolJudge(config), generator), tokenizer


class CandidateDataset(Dataset):
    """The candidates of the questions of some pools, at each of some pool sizes.

    folders: of annotated pools. loss: a JudgeLoss, whose generator thinks every question greedily.
    sizes: an item is a question with the first so many trajectories; None: all of them.
    mixed_only: leave out items that all trajectories solve, or none.
    Raises UserError when no item remains or a pool is smaller than a size.
    """

    def __init__(self, folders, loss, tokenizer, device, sizes=None, mixed_only=False):
        self.pools, self.items = [Pool(folder) for folder in folders], []
        (self.generator,), self.tokenizer = loss._generator, tokenizer
        self.generator.to(device)
        self.numbers = {}  # {answer text: number}; few differ
        for pool in self.pools:
            self._add(pool, sizes, mixed_only, load_dataset(pool.manifest["data_path"]))
        if not self.items:
            raise UserError(f"{folders[0]}: no question whose answers differ; annotate more")

    def _add(self, pool, sizes, mixed_only, rows):
        """Adds the items of a pool; the greedy trajectories of many questions at once."""
        kept = []
        for i in range(len(pool)):
            corrects = pool.tensor(i, "corrects")
            if max(sizes or [0]) > len(corrects):
                fault = f"{len(corrects)} trajectories a question"
                raise UserError(f"{pool.folder}: {fault}, fewer than pool_sizes {sizes}")
            of_question = sizes or [len(corrects)]
            if mixed_only:
                of_question = [n for n in of_question if len(corrects[:n].unique()) == 2]
            if of_question:
                kept.append((i, of_question))
        for first in range(0, len(kept), _AT_ONCE):
            part = kept[first : first + _AT_ONCE]
            questions = [pool[i] for i, _ in part]
            greedy = zip(*self._think_greedily(pool, questions), strict=True)
            for question, (_, of_question), think in zip(questions, part, greedy, strict=True):
                answer = rows[question["idx"]]["answer"]
                self.items += [self._item(question, n, answer, *think) for n in of_question]

    def _think_greedily(self, pool, questions):
        """Thoughts (T, D) and answer ids of the greedy trajectories of some questions."""
        settings = pool.manifest["settings"]
        prompts = [question["input_ids"][0].tolist() for question in questions]
        lengths = (settings["latent_length"], settings["max_new_tokens"])
        found = sample(self.generator, Request(prompts, list(range(len(prompts))), 1, *lengths))
        eos = self.generator.config.eos_token_id
        thoughts = [found.thoughts_of(q)[0].cpu() for q in range(len(prompts))]
        return thoughts, [found.answer_ids(q, eos)[0].tolist() for q in range(len(prompts))]

    def _item(self, question, size, answer, thoughts, greedy_ids):
        """Prompt, greedy thoughts (T, D), Candidates and which of them are right (K,)."""
        found = self._candidates(question, size, thoughts, greedy_ids)
        corrects = torch.zeros_like(found.exists[0])
        for k, number in enumerate(found.numbers[0]):
            corrects[k] = is_right(number, answer)
        return question["input_ids"][0].tolist(), thoughts, found, corrects

    def _candidates(self, question, size, thoughts, greedy_ids):
        sampled = (question["latent_embeds"], question["latent_lengths"])
        distances = greedy_distances(*sampled, thoughts)
        predictions = [None if x != x else x for x in question["predictions"].tolist()]  # NaN
        ids = [[t for t in row if t >= 0] for row in question["answer_ids"].tolist()]
        parts = (predictions[:size], ids[:size], distances[:size])
        return candidates_of(*parts, self._number(greedy_ids), greedy_ids)

    def _number(self, ids):
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        if text not in self.numbers:
            self.numbers[text] = self.generator.parse_answer(text)
        return self.numbers[text]

    @property
    def prompt_lengths(self):
        """Tokens of each item's prompt."""
        return [len(prompt) for prompt, *_ in self.items]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def collate_candidates(items):
    """The arguments of JudgeLoss for Q items. predictions (Q, K): numbers, NaN where none is."""
    prompts, thoughts, found, corrects = zip(*items, strict=True)
    stacked = Candidates.stack(found)
    tensors = {field.name: getattr(stacked, field.name) for field in fields(Candidates)}
    numbers = tensors.pop("numbers")
    predictions = torch.full(stacked.exists.shape, float("nan"), dtype=torch.float64)
    for q, of_question in enumerate(numbers):
        predictions[q, : len(of_question)] = torch.tensor(of_question, dtype=torch.float64)
    return {
        "prompts": list(prompts),
        "thoughts": pad_sequence(thoughts, batch_first=True),  # (Q, T, D)
        "num_thoughts": torch.tensor([len(x) for x in thoughts]),
        "candidates": tensors,
        "corrects": torch.stack(corrects),
        "predictions": predictions,
    }


def judge_metrics(prediction):
    """Percent over Q questions, and the AUC over candidates, from 0 to 1. recall_at_1: the judge's
    choice is right."""
    corrects, numbers = prediction.label_ids[0].astype(bool), prediction.label_ids[1]  # (Q, K)
    scores, exists = np.asarray(prediction.predictions, dtype=np.float64), ~np.isnan(numbers)
    outcomes = defaultdict(list)
    for right, score in zip(corrects, scores, strict=True):
        outcomes["recall_at_1"].append(right[score.argmax()])
        outcomes["vote"].append(right[0])  # the most votes come first
        outcomes["coverage"].append(right.any())
    metrics = {name: round(100 * float(np.mean(of)), 2) for name, of in outcomes.items()}
    known = zip(scores, corrects, exists, strict=True)
    pairs = [(score[there], right[there]) for score, right, there in known]
    auc = pairwise_auc(*zip(*pairs, strict=True))
    return metrics | {"auc": round(auc, 4)}
