"""Best-of-N: a pool of trajectories and the reward model's scores of it.

A pool grows through sizes, so that what each size costs is measured. Its counters are {size:
Counter} of the step by which it grew to that size: ``trajectories``; ``latent_steps``, forward
passes that yield a thought; ``tokens``, answer tokens written; ``candidate_tokens``, answer tokens
read for the Bayesian vote; ``reward_steps``, thoughts and answer tokens that the reward model read;
``seconds``, and of them ``candidate_seconds`` and ``reward_seconds``. A search has
``lookahead_steps`` and ``lookahead_tokens``, too: the passes and tokens that it looked ahead.

Shapes: Q questions, N trajectories of each, T thoughts, A answer tokens, D model width.
"""

from dataclasses import replace
from itertools import pairwise

import torch
from torch.nn.utils.rnn import pad_sequence

from src.sampling.compilation import timed_apart
from src.sampling.engine import sample
from src.sampling.memory import question_parts, rows_in_flight, rows_within, sample_parts
from src.sampling.trajectories import Trajectories, concatenate_lists, pad_right
from src.search.bayesian_vote import LikelihoodPool, sample_with_state
from utils.progress import timed


def sample_pool(model, request, sizes, counters, parse=None, reward_model=None):
    """A pool of the largest of ``sizes`` for each question, and what its records hold beside it.

    parse(ids): the number in an answer's token ids; given, the pool has answer likelihoods.
    reward_model: given, the pool has rewards. Returns Trajectories and {key: a value for each
    question}, with the keys of ``score_pools``, and "candidates" with "log_probs".
    """
    request, rows = replace(request, n_samples=sizes[-1]), len(request.prompts) * sizes[-1]
    if parse:  # the state of a pool stays in memory while it grows
        rows = rows_in_flight(model, request)
    pools = [
        _grow_pool(model, part, sizes, counters, parse, reward_model)
        for _, part in question_parts(request, rows)
    ]
    trajectories, fields = zip(*pools, strict=True)
    joined = {key: [value for part in fields for value in part[key]] for key in fields[0]}
    return Trajectories.join(trajectories), joined


def _grow_pool(model, request, sizes, counters, parse, reward_model):
    """``sample_pool`` of questions whose pools fit into memory together."""
    likelihoods = LikelihoodPool(model, parse, len(request.prompts)) if parse else None
    parts, rewards = [], []
    for first, size in pairwise([0, *sizes]):
        part = replace(request, first_sample=first, n_samples=size - first)
        counter = counters[size]
        with timed_apart(model, counter):
            parts.append(_sample(model, part, likelihoods, counter))
            if reward_model is not None:
                with timed(counter, "reward_seconds"):
                    eos = model.config.eos_token_id
                    rewards.append(score_trajectories(reward_model, part.prompts, parts[-1], eos))
                counter.update(reward_steps=num_scored(reward_model, parts[-1]))
        num_forward_passes = int((parts[-1].num_thoughts + model.stops_itself).sum())
        counter.update(latent_steps=num_forward_passes)
        count_answers(counter, parts[-1])
    fields = {}
    if rewards:
        fields = {key: concatenate_lists([part[key] for part in rewards]) for key in rewards[0]}
    if likelihoods is not None:
        fields |= _likelihood_fields(likelihoods)
    return Trajectories.concatenate(parts), fields


def _sample(model, request, likelihoods, counter):
    """Further Trajectories of a pool, which are added to ``likelihoods`` where there are any."""
    if likelihoods is None:
        return sample(model, request)
    parts, before = [], likelihoods.tokens_read
    for part in sample_parts(request, rows_in_flight(model, request)):
        trajectories, state = sample_with_state(model, part)
        with timed(counter, "candidate_seconds"):
            likelihoods.add(part, state, trajectories)
        parts.append(trajectories)
    counter.update(candidate_tokens=likelihoods.tokens_read - before)
    return Trajectories.concatenate(parts)


def _likelihood_fields(likelihoods):
    of_questions = likelihoods.likelihoods()
    return {
        "candidates": [question.answers for question in of_questions],
        "log_probs": [rounded(question.log_probs) for question in of_questions],  # (N, K) each
    }


def count_answers(counter, trajectories):
    """Adds trajectories and answer tokens to a counter."""
    written = sum(len(ids) for answers in trajectories.tokens for ids in answers)
    counter.update(trajectories=trajectories.num_thoughts.numel(), tokens=written)


def num_scored(reward_model, trajectories):
    """Thoughts and answer tokens of Trajectories that the reward model reads to score them."""
    if not reward_model.scores_answer:
        return int(trajectories.num_thoughts.sum())
    pairs = zip(trajectories.tokens, trajectories.finished, strict=True)
    tokens = sum(sum(map(len, answers)) + sum(finished) for answers, finished in pairs)
    return int(trajectories.num_thoughts.sum()) + tokens


def score_trajectories(reward_model, prompts, trajectories, eos):
    """``score_pools`` of Trajectories; eos: the generator's end-of-text id."""
    answers = [trajectories.answer_ids(q, eos) for q in range(len(prompts))]
    thoughts, num_thoughts = trajectories.thoughts, trajectories.num_thoughts
    return score_pools(reward_model, prompts, thoughts, num_thoughts, answers)


@torch.inference_mode()
def score_pools(reward_model, prompts, thoughts, num_thoughts, answer_ids):
    """The rewards of Q questions' trajectories: {key: for each question a list of N values}.

    "scores": the rewards r_t of a trajectory's thoughts; where the model scores answers,
    "answer_scores": log p of its answer. prompts: Q lists of token ids, each read once, or once for
    each part of a question's trajectories where they do not fit into memory together. thoughts
    (Q, N, T, D), of which num_thoughts (Q, N) exist. answer_ids: Q tensors (N, A), padded with -1.
    """
    answers = pad_sequence([ids.T for ids in answer_ids], batch_first=True, padding_value=-1)
    answers = answers.transpose(1, 2)  # (Q, N, A)
    n, steps = thoughts.shape[1:3]
    positions = steps + answers.shape[2]  # of a row, all read at once
    rows = rows_within(reward_model, positions, positions, max(map(len, prompts)), n)
    scores = []
    for questions in torch.arange(len(prompts)).split(max(1, rows // n)):
        ids, prompt_lengths = pad_right([prompts[q] for q in questions], 0)  # (q, L), (q,)
        mask = (torch.arange(ids.shape[1]) < prompt_lengths[:, None]).long()
        pool = (x[questions].split(rows, dim=1) for x in (thoughts, num_thoughts, answers))
        members = [_score(reward_model, ids, mask, *part) for part in zip(*pool, strict=True)]
        scores.append(torch.cat(members, dim=1))
    scores = torch.cat(scores)  # (Q, N, T), or (Q, N, T + 1) with the answer's
    fields = {"scores": rewards_of_thoughts(scores[..., :steps], num_thoughts)}
    if scores.shape[2] > steps:
        fields["answer_scores"] = rounded(scores[..., steps])
    return fields


def _score(reward_model, *inputs):
    return reward_model(*(x.to(reward_model.device) for x in inputs)).float().cpu()


def rewards_of_thoughts(rewards, num_thoughts):
    """Lists from rewards (Q, N, T), without those of thoughts that do not exist."""
    return [
        [row[:n] for row, n in zip(rounded(of_question), lengths, strict=True)]
        for of_question, lengths in zip(rewards, num_thoughts.tolist(), strict=True)
    ]


def rounded(values):
    """Nested lists of a matrix, to 4 decimals."""
    return [[round(x, 4) for x in row] for row in values.tolist()]
