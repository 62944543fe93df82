"""The answers that a pool's trajectories gave, as a pool judge reads them.

A candidate is one distinct number among the answers of a question's pool and of its greedy
trajectory. All candidates are read after the greedy trajectory's thoughts, so that reading them
costs a few tokens each, however large the pool is.

Shapes: Q questions, N trajectories, K candidates, T thoughts, A answer tokens, D width, S = T + A
positions of a reading, L layers of the generator.
"""

from collections import Counter
from dataclasses import dataclass, fields

import torch
from torch.nn.utils.rnn import pad_sequence

from src.models.kv_cache import SinglePass
from src.models.latent_rm import insert_after_thoughts
from src.sampling.logits import token_log_probs
from src.sampling.trajectories import pad_right, thought_mask

MOST_CANDIDATES = 16  # of a question, those with the most votes


@dataclass
class Candidates:
    """The candidates of Q questions, those with the most votes first.

    numbers: Q lists of at most K numbers. ids (Q, K, A): their answers' tokens with end-of-text,
    padded with -1. exists (Q, K) bool. votes (Q, K): shares of the pool's trajectories. is_greedy
    (Q, K) bool: the greedy trajectory's answer. distance (Q, K): between the greedy trajectory's
    thoughts and those of the trajectories that gave the answer, in units of the pool's mean; 1
    where none gave it. n_samples (Q,): sizes of the pools.
    """

    numbers: list
    ids: torch.Tensor
    exists: torch.Tensor
    votes: torch.Tensor
    is_greedy: torch.Tensor
    distance: torch.Tensor
    n_samples: torch.Tensor

    @classmethod
    def stack(cls, parts):
        """Those of several questions, from those of one question each."""
        tensors = {
            field.name: [getattr(part, field.name)[0] for part in parts]
            for field in fields(cls)
            if field.name != "numbers"
        }
        ids = pad_sequence([x.T for x in tensors.pop("ids")], batch_first=True, padding_value=-1)
        stacked = {name: torch.stack(values) for name, values in tensors.items()}
        return cls([part.numbers[0] for part in parts], ids.transpose(1, 2), **stacked)

    def to(self, device):
        moved = {
            field.name: getattr(self, field.name).to(device)
            for field in fields(self)
            if field.name != "numbers"
        }
        return Candidates(self.numbers, **moved)


def candidates_of(predictions, answer_ids, distances, greedy_number, greedy_ids):
    """The Candidates of one question.

    predictions: N numbers, or None where an answer can't be parsed. answer_ids: N lists of tokens
    with end-of-text. distances (N,): see ``greedy_distances``. greedy_number, greedy_ids: the
    same of the greedy trajectory. A number's tokens are the greedy ones, or else those of its first
    trajectory.
    """
    votes = Counter(number for number in predictions if number is not None)
    numbers = [number for number, _ in votes.most_common(MOST_CANDIDATES)]
    if greedy_number is not None and greedy_number not in numbers:
        numbers = [*numbers[: MOST_CANDIDATES - 1], greedy_number]
    texts = dict(reversed(list(zip(predictions, answer_ids, strict=True))))  # the first one stays
    texts[greedy_number] = greedy_ids
    votes_of = torch.tensor([float(votes[number]) for number in numbers])
    mean, distance = distances.mean().clamp(min=1e-6), torch.ones(len(numbers))
    for k, number in enumerate(numbers):
        given = torch.tensor([prediction == number for prediction in predictions])
        if given.any():
            distance[k] = distances[given].mean() / mean
    is_greedy = torch.tensor([number == greedy_number for number in numbers], dtype=torch.bool)
    missing = MOST_CANDIDATES - len(numbers)
    ids, _ = pad_right([texts[number] for number in numbers] or [[0]], -1)
    pad = torch.nn.functional.pad
    return Candidates(
        numbers=[numbers],
        ids=pad(ids, (0, 0, 0, MOST_CANDIDATES - len(ids)), value=-1)[None],
        exists=torch.arange(MOST_CANDIDATES)[None] < len(numbers),
        votes=pad(votes_of / len(predictions), (0, missing))[None],
        is_greedy=pad(is_greedy, (0, missing))[None],
        distance=pad(distance, (0, missing), value=1.0)[None],
        n_samples=torch.tensor([len(predictions)]),
    )


def greedy_distances(thoughts, num_thoughts, greedy):
    """Distances (N,) of trajectories' thoughts (N, T, D) from a greedy trajectory's (T', D).

    The mean, over the steps that both have, of the Euclidean distance. num_thoughts (N,).
    """
    steps = min(thoughts.shape[1], greedy.shape[0])
    both = thought_mask(num_thoughts, steps)  # (N, S)
    apart = (thoughts[:, :steps].float() - greedy[:steps].float()).norm(dim=-1)  # (N, S)
    return (apart * both).sum(1) / both.sum(1)


@dataclass
class Reading:
    """The generator's states at the R candidates that exist, in the order of their questions.

    states (R, S, L + 1, D): inputs of the first layer and outputs of every layer, at the thoughts,
    the end-of-thinking token and the answer's tokens. valid, is_thought (R, S) bool. log_probs
    (R,): log p(answer, end-of-text | greedy thoughts).
    """

    states: torch.Tensor
    valid: torch.Tensor
    is_thought: torch.Tensor
    log_probs: torch.Tensor


@torch.no_grad()
def read_candidates(generator, prefix, thoughts, num_thoughts, candidates):
    """The Reading of Candidates after the greedy trajectories' thoughts (Q, T, D).

    prefix: the PrefixCache of the Q prompts. num_thoughts (Q,): of the greedy trajectories.
    """
    device, exists = generator.device, candidates.exists.to(generator.device)
    questions = exists.nonzero()[:, 0]  # (R,)
    rows = candidates.ids.to(device)[exists]  # (R, A)
    if not len(rows):
        return _nothing_read(generator)
    num_thoughts = num_thoughts.to(device)[questions]  # (R,)
    end = torch.full_like(rows[:, :1], generator.config.end_latent_token_id)
    # The last token, end-of-text, is predicted, not read.
    inputs = generator.embed(torch.cat((end, rows[:, :-1].clamp(min=0)), dim=1))  # (R, A, D)
    x = thoughts.to(device, inputs.dtype)[questions]  # (R, T, D)
    x = insert_after_thoughts(x, inputs, num_thoughts)  # (R, S, D)
    groups = prefix.groups_of(len(exists))[questions]  # (R,)
    steps = torch.arange(x.shape[1], device=device)  # (S,)
    positions = prefix.lengths[groups, None] + steps  # (R, S)
    positions = positions.clamp(max=generator.config.max_position_embeddings - 1)  # of padding only
    prefix, layers = prefix.select(groups), []
    last = generator.extend(x, positions, prefix, SinglePass(device), hidden_states=layers)
    answer = num_thoughts[:, None] + torch.arange(rows.shape[1], device=device)  # (R, A)
    before = last.take_along_dim(answer[..., None], dim=1)  # (R, A, D)
    weight = generator.get_output_embeddings().weight
    log_probs = token_log_probs(generator, weight, before, rows.clamp(min=0))
    return Reading(
        states=torch.stack(layers, dim=2),
        valid=steps < (num_thoughts + (rows >= 0).sum(1))[:, None],
        is_thought=steps < num_thoughts[:, None],
        log_probs=log_probs.masked_fill(rows < 0, 0).sum(-1),
    )


def _nothing_read(generator):
    """The Reading of no candidate at all."""
    config, device = generator.config, generator.device
    shape = (0, 1, config.num_hidden_layers + 1, config.hidden_size)
    valid = torch.zeros(0, 1, dtype=torch.bool, device=device)
    return Reading(torch.zeros(shape, device=device), valid, valid, torch.zeros(0, device=device))
