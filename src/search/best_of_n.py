"""Best-of-N: a pool of trajectories and the reward model's scores of it.

A pool grows through sizes, so that what each size costs is measured. Its counters are {size:
Counter} of the step by which it grew to that size: ``trajectories``; ``latent_steps``, forward
passes that yield a thought; ``tokens``, answer tokens written; ``candidate_tokens``, answer tokens
read for the Bayesian vote; ``confidence_tokens``, those read for log-probabilities of answers and
self-certainty; ``greedy_trajectories``, ``greedy_latent_steps``, ``greedy_tokens`` of the greedy
answer; ``rerank_tokens`` and ``judge_tokens``, read of its pool's answers; ``reward_steps``,
thoughts and answer tokens that the reward model read; ``seconds``, and of them ``PART_seconds`` of
each part of src.search.choosers.PARTS. A search has ``lookahead_steps`` and ``lookahead_tokens``,
too: the passes and tokens that it looked ahead.

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
from src.search.adaptive import checkpoints, decided
from src.search.bayesian_vote import LikelihoodPool, sample_with_state
from src.search.confidence import ConfidencePool
from src.search.diversity import agreement_sizes, agreements
from utils.progress import timed
from utils.records import rounded


def sample_pool(model, request, sizes, counters, parse=None, reward_model=None, signals=False):
    """A pool of the largest of ``sizes`` for each question, and what its records hold beside it.

    parse(ids): the number in an answer's token ids; given, the pool has answer likelihoods.
    reward_model: given, the pool has rewards. signals: whether it has what the choosers without
    training read, but for the greedy trajectory (src.search.greedy). Returns Trajectories and {key:
    a value for each question}, with the keys of ``score_pools``, of ConfidencePool, "candidates"
    with "log_probs", and "centroid_distances" and "log_densities", {size: n values}.
    """
    request, rows = replace(request, n_samples=sizes[-1]), len(request.prompts) * sizes[-1]
    if parse or signals:  # the state of a pool stays in memory while it grows
        rows = rows_in_flight(model, request)
    pools = []
    for _, part in question_parts(request, rows):
        readers = {}
        if parse:
            readers["candidate"] = LikelihoodPool(model, parse, len(part.prompts))
        if signals:
            readers["confidence"] = ConfidencePool(model)
        pools.append(_grow_pool(model, part, sizes, counters, readers, reward_model))
    trajectories, fields = zip(*pools, strict=True)
    joined = {key: [value for part in fields for value in part[key]] for key in fields[0]}
    return Trajectories.join(trajectories), joined


def _grow_pool(model, request, sizes, counters, readers, reward_model):
    """``sample_pool`` of questions whose pools fit into memory together."""
    parts, rewards, agreement = [], [], None
    if "confidence" in readers and request.sampling.varies_thoughts:
        agreement = _Agreement(request)
    for first, size in pairwise([0, *sizes]):
        part = replace(request, first_sample=first, n_samples=size - first)
        counter = counters[size]
        with timed_apart(model, counter):
            parts.append(_sample(model, part, readers, counter))
            if agreement is not None:
                with timed(counter, "agreement_seconds"):
                    agreement.add(parts[-1])
            if reward_model is not None:
                with timed(counter, "reward_seconds"):
                    eos = model.config.eos_token_id
                    rewards.append(score_trajectories(reward_model, part.prompts, parts[-1], eos))
                counter.update(reward_steps=num_scored(reward_model, parts[-1]))
        count_trajectories(model, request, counter, parts[-1])
    fields = {}
    if rewards:
        fields = {key: concatenate_lists([part[key] for part in rewards]) for key in rewards[0]}
    for reader in readers.values():
        fields |= reader.fields()
    if agreement is not None:
        fields |= agreement.fields()
    return Trajectories.concatenate(parts), fields


def _sample(model, request, readers, counter):
    """Further Trajectories of a pool, which are added to ``readers``, {part: a pool}."""
    if not readers:
        return sample(model, request)
    parts = []
    for part in sample_parts(request, rows_in_flight(model, request)):
        trajectories, state = sample_with_state(model, part)
        for name, reader in readers.items():
            before = reader.tokens_read
            with timed(counter, f"{name}_seconds"):
                reader.add(part, state, trajectories)
            counter[f"{name}_tokens"] += reader.tokens_read - before
        parts.append(trajectories)
    return Trajectories.concatenate(parts)


class _Agreement:
    """What ``agreements`` gives of a growing pool, for each of ``agreement_sizes``."""

    def __init__(self, request):
        self.todo, self.pool = agreement_sizes(request.n_samples), None
        self.of_sizes = {}

    def add(self, trajectories):
        """Adds further Trajectories."""
        parts = [part for part in (self.pool, trajectories) if part is not None]
        self.pool = Trajectories.concatenate(parts)
        thoughts, num_thoughts = self.pool.thoughts, self.pool.num_thoughts
        while self.todo and self.todo[0] <= num_thoughts.shape[1]:
            n = self.todo.pop(0)
            self.of_sizes[str(n)] = agreements(thoughts[:, :n], num_thoughts[:, :n])

    def fields(self):
        """{key: for each question {size n: n values}}"""
        questions = range(len(self.pool.tokens))
        return {
            key: [{n: pair[k][q] for n, pair in self.of_sizes.items()} for q in questions]
            for k, key in enumerate(("centroid_distances", "log_densities"))
        }


def sample_until_decided(model, request, error, parse, counter):
    """The answers of Q questions, token ids each, as many as their votes need.

    All are sampled in rounds from one checkpoint to the next, without those that are decided; at
    most n_samples of the request. parse(ids): the number in an answer, or None. What it costs is
    added to ``counter``.
    """
    answers, numbers = ([[] for _ in request.prompts] for _ in range(2))
    open_questions, first = list(range(len(request.prompts))), 0
    for size in checkpoints(request.n_samples, error):
        round_ = replace(
            request,
            prompts=[request.prompts[q] for q in open_questions],
            question_ids=[request.question_ids[q] for q in open_questions],
            first_sample=first,
            n_samples=size - first,
        )
        with timed_apart(model, counter):
            trajectories = sample(model, round_)
        count_trajectories(model, request, counter, trajectories)
        for q, new in zip(open_questions, trajectories.tokens, strict=True):
            answers[q] += new
            numbers[q] += map(parse, new)
        is_open = [q for q in open_questions if not decided(numbers[q], request.n_samples, error)]
        open_questions, first = is_open, size
        if not open_questions:
            break
    return answers


def count_trajectories(model, request, counter, trajectories):
    """Adds the forward passes and answers of a request's trajectories to a counter."""
    passes = trajectories.num_thoughts + model.stops_itself  # (Q, n)
    if not request.sampling.varies_thoughts:  # they are computed once for all samples
        passes = passes[:, :1]
    counter.update(latent_steps=int(passes.sum()))
    count_answers(counter, trajectories)


def count_answers(counter, trajectories):
    """Adds trajectories and answer tokens to a counter."""
    written = sum(len(ids) for answers in trajectories.tokens for ids in answers)
    counter.update(trajectories=trajectories.num_thoughts.numel(), tokens=written)


def num_scored(reward_model, trajectories):
    """Thoughts and answer tokens of Trajectories that the reward model reads to score them."""
    if not reward_model.rewards_answer:
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

    "scores": the rewards r_t of a trajectory's thoughts; where the model rewards answers,
    "answer_scores": the reward of its answer. prompts: Q lists of token ids, each read once, or
    once for each part of a question's trajectories where they do not fit into memory together.
    thoughts (Q, N, T, D), of which num_thoughts (Q, N) exist. answer_ids: Q tensors (N, A), padded
    with -1.
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
