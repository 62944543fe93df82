"""The table of choosers: from a pool of answers to one. Each is a function of a Pool.

A new chooser is one function and one entry of CHOOSERS. What it reads is computed and recorded with
the pool (src.search.best_of_n); a record without it, of an older run or of one that did not ask for
it, is measured without this chooser.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from utils.metrics import best_of_n, majority_vote, softmax, trajectory_score, weighted_vote

# What is computed beside sampling, each with counters of its own, and its keys in a record.
PARTS = {
    "reward": ("scores",),
    "candidate": ("candidates", "log_probs"),
    "greedy": ("greedy",),
    "rerank": ("rerank_candidates", "rerank_log_probs"),
    "judge": ("judged",),
    "confidence": ("answer_log_probs", "self_certainties"),
    "agreement": ("centroid_distances", "log_densities"),
}
GREEDY_SHARE = 1 / 2  # its weight for each sample, chosen on data/tiny_valid.json


@dataclass(frozen=True)
class Pool:
    """The first n trajectories of a question, of its record in samples.jsonl.

    score_by: how a trajectory's rewards make its score (utils.metrics.trajectory_score).
    """

    record: dict
    n: int
    score_by: str = "sum"

    def has(self, part):
        """Whether the record has this part for n trajectories; agreement, only for some n."""
        values = [self.record.get(key, {}) for key in PARTS[part] if key in self.record]
        sizes = [value for value in values if isinstance(value, dict)]
        return len(values) == len(PARTS[part]) and all(str(self.n) in value for value in sizes)

    def first(self, key):
        """The first n values of a key."""
        return self.record[key][: self.n]

    @cached_property
    def predictions(self):
        """n numbers, None where an answer can't be parsed."""
        return self.first("predictions")

    @cached_property
    def scores(self):
        """The scores of the n trajectories by the reward model."""
        return trajectory_scores(self.record, self.score_by)[: self.n]

    @cached_property
    def candidates(self):
        """The K' numbers in the n answers."""
        return [number for number in self.record["candidates"] if number in self.predictions]

    @cached_property
    def log_probs(self):
        """(n, K') log p(candidate | trajectory)."""
        log_probs = np.asarray(self.first("log_probs"), dtype=np.float64)
        return log_probs[:, : len(self.candidates)]


def trajectory_scores(record, score_by):
    """The scores of a record's N trajectories, a list (utils.metrics.trajectory_score)."""
    lengths = [len(rewards) for rewards in record["scores"]]
    padded = [r + [0.0] * (max(lengths) - len(r)) for r in record["scores"]]  # (N, T)
    answers = record.get("answer_scores") or [0.0] * len(lengths)
    rewards, answers = (torch.tensor(x, dtype=torch.float64) for x in (padded, answers))
    return trajectory_score(rewards, torch.tensor(lengths), score_by, answers).tolist()


def _majority(pool):
    return majority_vote(pool.predictions)


def _best_of_n(pool):
    """You et al., arXiv 2510.07745, section 4."""
    return best_of_n(pool.predictions, pool.scores)


def _weighted_vote(pool):
    return weighted_vote(pool.predictions, softmax(pool.scores))


def _most_probable(numbers, values):
    return numbers[int(np.argmax(values))] if numbers else None


def _bayesian_vote(pool):
    """The largest mean over trajectories of p(answer | trajectory)."""
    uniform = np.full(pool.n, 1 / pool.n)
    return _most_probable(pool.candidates, uniform @ np.exp(pool.log_probs))


def _bayesian_geometric(pool):
    return _most_probable(pool.candidates, np.full(pool.n, 1 / pool.n) @ pool.log_probs)


def _reward_bayesian(pool):
    """The mean under the weights of weighted_vote."""
    return _most_probable(pool.candidates, softmax(pool.scores) @ np.exp(pool.log_probs))


def _greedy(pool):
    return pool.record["greedy"]


def _greedy_voter(pool):
    """The vote of n samples and the greedy answer, which weighs as much as half of them.

    So another answer is taken only where it leads over the greedy one by more than n / 2 votes.
    It costs n + 1 trajectories.
    """
    votes = [pool.record["greedy"], *pool.predictions]  # the first wins a tie
    return weighted_vote(votes, [GREEDY_SHARE * pool.n, *[1] * pool.n])


def _greedy_rerank(pool):
    """The most probable one after the greedy thoughts, of the n answers and the greedy one."""
    known = zip(pool.record["rerank_candidates"], pool.record["rerank_log_probs"], strict=True)
    given = {*pool.predictions, pool.record["greedy"]}
    log_probs = {number: log_prob for number, log_prob in known if number in given}
    return max(log_probs, key=log_probs.get, default=None)


def _pool_judge(pool):
    """The highest score of a PoolJudge (src.models.pool_judge), the greedy answer included."""
    judged = pool.record["judged"][str(pool.n)]
    scores = dict(zip(judged["answers"], judged["scores"], strict=True))
    return max(scores, key=scores.get, default=None)


def _log_prob_vote(pool):
    """Each vote counts p(answer | its own trajectory), end-of-text included."""
    return weighted_vote(pool.predictions, np.exp(pool.first("answer_log_probs")))


def _log_prob_best(pool):
    return best_of_n(pool.predictions, pool.first("answer_log_probs"))


def _borda(values):
    """n votes for the trajectory with the largest of n values, down to one vote: (n,).

    Kang et al. 2025, arXiv 2502.18581, with exponent 1. Of equal values the first is the largest.
    """
    order = np.argsort(-np.asarray(values), kind="stable")
    votes = np.empty(len(order))
    votes[order] = np.arange(len(order), 0, -1)
    return votes


def _self_certainty_vote(pool):
    return weighted_vote(pool.predictions, _borda(pool.first("self_certainties")))


def _certain_bayesian(pool):
    """The mean of p(answer | trajectory) under the weights of self_certainty_vote."""
    weights = _borda(pool.first("self_certainties"))
    return _most_probable(pool.candidates, weights @ np.exp(pool.log_probs))


def _agreement_vote(pool):
    """By nearness of the thoughts to the centroid, see src.search.diversity.agreements."""
    nearness = np.negative(pool.record["centroid_distances"][str(pool.n)])
    return weighted_vote(pool.predictions, _borda(nearness))


def _density_vote(pool):
    """By the density of thoughts there, see src.search.diversity.agreements."""
    return weighted_vote(pool.predictions, _borda(pool.record["log_densities"][str(pool.n)]))


@dataclass(frozen=True)
class Chooser:
    """choose(pool): a number or None. parts: of PARTS, those that it needs."""

    choose: Callable
    parts: tuple = ()


CHOOSERS = {  # tables have this order
    "majority": Chooser(_majority),
    "best_of_n": Chooser(_best_of_n, ("reward",)),
    "weighted_vote": Chooser(_weighted_vote, ("reward",)),
    "bayesian_vote": Chooser(_bayesian_vote, ("candidate",)),
    "bayesian_geometric": Chooser(_bayesian_geometric, ("candidate",)),
    "reward_bayesian": Chooser(_reward_bayesian, ("reward", "candidate")),
    "greedy": Chooser(_greedy, ("greedy",)),
    "greedy_voter": Chooser(_greedy_voter, ("greedy",)),
    "greedy_rerank": Chooser(_greedy_rerank, ("greedy", "rerank")),
    "pool_judge": Chooser(_pool_judge, ("greedy", "judge")),
    "log_prob_vote": Chooser(_log_prob_vote, ("confidence",)),
    "log_prob_best": Chooser(_log_prob_best, ("confidence",)),
    "self_certainty_vote": Chooser(_self_certainty_vote, ("confidence",)),
    "certain_bayesian": Chooser(_certain_bayesian, ("candidate", "confidence")),
    "agreement_vote": Chooser(_agreement_vote, ("agreement",)),
    "density_vote": Chooser(_density_vote, ("agreement",)),
}
