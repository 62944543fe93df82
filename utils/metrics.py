"""Measures of a pool of N sampled answers a question, and their uncertainty over questions."""

import math
from collections import Counter
from functools import cache

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from utils.answers import is_right


@cache
def pass_at_k(n, c, k):
    """Unbiased pass@k, 1 - C(n - c, k) / C(n, k), of c right answers among n; exact for every n.

    Chen et al. 2021 (arXiv 2107.03374), with integers of any size instead of a product of floats.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    total = math.comb(n, k)
    return (total - math.comb(n - c, k)) / total  # int / int rounds once


def majority_vote(predictions):
    """The most frequent number; the first to occur wins a tie; None (unparsable) takes no part."""
    counts = Counter(number for number in predictions if number is not None)
    return counts.most_common(1)[0][0] if counts else None  # a tie keeps the order of occurrence


def softmax(scores):
    """Weights (N,) that sum to 1."""
    scores = np.asarray(scores, dtype=np.float64)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def weighted_vote(predictions, weights):
    """The number with the largest sum of weights (N,); the first wins a tie; None takes no part."""
    sums = {}
    for number, weight in zip(predictions, weights, strict=True):
        if number is not None:
            sums[number] = sums.get(number, 0.0) + float(weight)
    return max(sums, key=sums.get, default=None)


def best_of_n(predictions, scores):
    """The answer with the highest score, the first of equals; None takes no part."""
    parsed = [i for i, number in enumerate(predictions) if number is not None]
    best = max(parsed, key=lambda i: scores[i], default=None)
    return None if best is None else predictions[best]


def pairwise_auc(scores, corrects):
    """How often a right trajectory scores above a wrong one of the same question, ties half.

    scores (Q, N), corrects (Q, N) bool; mean over the questions that have both, NaN without any.
    """
    questions = zip(scores, corrects, strict=True)
    shares = [question_auc(*question) for question in questions if is_mixed(question[1])]
    return float(np.mean(shares)) if shares else math.nan


def is_mixed(corrects):
    """Whether a question has both right and wrong trajectories, of corrects (N,) bool."""
    return bool(corrects.any() and not corrects.all())


def question_auc(scores, corrects):
    """``pairwise_auc`` of one question that has both, of scores (N, ...): an array (...)."""
    gap = scores[corrects][:, None] - scores[~corrects][None]  # (right, wrong, ...)
    return ((gap > 0) + 0.5 * (gap == 0)).mean(axis=(0, 1))


def powers_of_two(n):
    """1, 2, 4 .. below n, and n itself."""
    return sorted({2**i for i in range(n.bit_length()) if 2**i < n} | {n})


def question_scores(predictions, answer, n):
    """The measures of one question by its first n predictions, each from 0 to 1.

    answer: the text of the right answer, see utils.answers.is_right.
    """
    head = predictions[:n]
    right = sum(is_right(p, answer) for p in head)
    scores = {f"pass@{k}": pass_at_k(n, right, k) for k in powers_of_two(n)}
    scores["coverage"] = float(right > 0)
    scores["voting_accuracy"] = float(is_right(majority_vote(head), answer))
    scores["mean_accuracy"] = right / n
    scores["unparsable"] = sum(p is None for p in head) / n
    scores["distinct_answers"] = distinct_share(head)
    return scores


def distinct_share(predictions):
    """The number of different answers among N, divided by N; None (unparsable) is no answer."""
    return len({p for p in predictions if p is not None}) / len(predictions)


def bootstrap_interval(values, resamples=1000, seed=0):
    """95 % percentile interval (low, high) of the mean of ``values`` (Q,) over questions."""
    values = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    means = values[picks].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def summarize(pools, report_n):
    """{N: {measure: {"value", "low", "high"}}} in percent.

    pools: a (predictions, answer) pair a question: a list of numbers or None, and the text of the
    right answer.
    Raises ValueError when a pool is smaller than the largest N.
    """
    if any(len(predictions) < max(report_n) for predictions, _ in pools):
        raise ValueError(f"a pool holds fewer than {max(report_n)} samples")
    return {str(n): _summary([question_scores(*pool, n) for pool in pools]) for n in report_n}


def _summary(scores):
    return {name: measured([row[name] for row in scores]) for name in scores[0]}


def measured(values, scale=100, decimals=2):
    """{"value", "low", "high"}: the mean over questions with its interval, by default in percent.

    scale: by what all three are multiplied. decimals: to which they are rounded.
    """
    values = np.asarray(values, dtype=np.float64)
    low, high = bootstrap_interval(values)
    interval = {"value": values.mean(), "low": low, "high": high}
    return {key: round(scale * float(x), decimals) for key, x in interval.items()}


# How the rewards of a trajectory's thoughts make its score, see trajectory_score.
SCORES = ("sum", "mean", "last", "min", "prod")


def trajectory_score(rewards, num_thoughts, score_by, answer=0.0):
    """The scores (...) of trajectories, the one rule for best-of-N, votes and searches.

    Of a trajectory's rewards it is the "sum" (You et al., arXiv 2510.07745, section 4), the "mean",
    the "last" or the smallest ("min") one, or the logarithm of the product of probabilities
    sigmoid(r_t) ("prod"; last, min and prod: huggingface/search-and-learn); plus the reward of its
    answer, where there is one. rewards: a tensor (..., T), of which num_thoughts (...) exist; the
    others are 0. answer: a tensor (...) or a number.
    """
    position = torch.arange(rewards.shape[-1], device=rewards.device)
    missing = position >= num_thoughts[..., None]  # (..., T)
    if score_by == "last":
        score = rewards.take_along_dim(num_thoughts[..., None] - 1, dim=-1)[..., 0]
    elif score_by == "min":
        score = rewards.masked_fill(missing, math.inf).amin(-1)
    else:
        parts = logsigmoid(rewards).masked_fill(missing, 0) if score_by == "prod" else rewards
        # Added one after the other, not in pairs: sums of stored rewards stay what they were.
        score = parts.cumsum(-1)[..., -1]
        score = score / num_thoughts if score_by == "mean" else score
    return score + answer
