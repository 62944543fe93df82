"""From a pool of answers to one: aggregators, their accuracy, their gain over the vote."""

import numpy as np
import torch

from utils.answers import is_right
from utils.metrics import (
    best_of_n,
    majority_vote,
    measured,
    softmax,
    summarize,
    trajectory_score,
    weighted_vote,
)

# Votes of the leaves of DVTS: their names in its measures, and in ``aggregate``.
LEAF_VOTES = {"dvts_vote": "majority", "dvts_weighted_vote": "weighted_vote"}


def trajectory_scores(record, score_by):
    """The scores of a record's N trajectories, a list (utils.metrics.trajectory_score)."""
    lengths = [len(rewards) for rewards in record["scores"]]
    padded = [r + [0.0] * (max(lengths) - len(r)) for r in record["scores"]]  # (N, T)
    answers = record.get("answer_scores") or [0.0] * len(lengths)
    rewards, answers = (torch.tensor(x, dtype=torch.float64) for x in (padded, answers))
    return trajectory_score(rewards, torch.tensor(lengths), score_by, answers).tolist()


def aggregate(record, n, score_by="sum"):
    """{aggregator: answer} of a record's first n trajectories; an answer is a number or None.

    What the record holds decides which aggregators there are. predictions (N numbers or None) give
    majority. scores (a list of its thoughts' rewards for each trajectory) and answer_scores (N)
    give best_of_n and weighted_vote, after You et al., arXiv 2510.07745, section 4. log_probs
    (N, K) of the K candidates give bayesian_vote, the largest mean over trajectories of
    p(answer | trajectory), and its geometric form; with scores also reward_bayesian, the mean
    under the weights of weighted_vote.
    """
    predictions = record["predictions"][:n]
    answers, weights = {"majority": majority_vote(predictions)}, None
    if "scores" in record:
        scores = trajectory_scores(record, score_by)[:n]
        weights = softmax(scores)  # (n,)
        answers["best_of_n"] = best_of_n(predictions, scores)
        answers["weighted_vote"] = weighted_vote(predictions, weights)
    if "log_probs" in record:
        numbers = [number for number in record["candidates"] if number in predictions]  # K'
        log_probs = np.asarray(record["log_probs"], dtype=np.float64)[:n, : len(numbers)]  # (n, K')
        uniform = np.full(n, 1 / n)
        answers["bayesian_vote"] = _most_probable(numbers, uniform @ np.exp(log_probs))
        answers["bayesian_geometric"] = _most_probable(numbers, uniform @ log_probs)
        if weights is not None:
            answers["reward_bayesian"] = _most_probable(numbers, weights @ np.exp(log_probs))
    return answers


def _most_probable(numbers, values):
    return numbers[int(np.argmax(values))] if numbers else None


def measure(records, report_n, score_by="sum"):
    """{"n_samples", "by_n": {N: {measure: {"value", "low", "high"}}}} in percent.

    Beside the measures of utils.metrics these are the accuracy of every aggregator and
    ``<name>_gain``, its paired difference to the majority vote, with a bootstrap interval. Also
    "thought_distance" (src.search.diversity) of the whole pools, no percentage, where all records
    have it; those of runs before 2026-11-26 may not.
    """
    pools = [(record["predictions"], record["answer"]) for record in records]
    by_n = summarize(pools, report_n)
    for n in report_n:
        answers = [aggregate(record, n, score_by) for record in records]
        hits = {name: _hits([chosen[name] for chosen in answers], records) for name in answers[0]}
        majority = hits.pop("majority")
        for name, values in hits.items():
            by_n[str(n)][name] = measured(values)
            by_n[str(n)][f"{name}_gain"] = measured(values - majority)
    return {"n_samples": max(report_n)} | _distance(records) | {"by_n": by_n}


def _distance(records):
    distances = [record.get("thought_distance") for record in records]
    if None in distances:
        return {}
    return {"thought_distance": measured(distances, scale=1, decimals=4)}


def _hits(answers, records):
    """1.0 where an answer is right, else 0.0, (Q,)."""
    pairs = zip(answers, records, strict=True)
    return np.array([float(is_right(number, record["answer"])) for number, record in pairs])


def measure_search(records, mode, score_by):
    """The same form for a search, ``mode`` beam_search or dvts, with N the survivors it returns.

    These are the accuracy of the best one by its score and the coverage of all; for DVTS, which
    returns the leaves of its subtrees, also that of their majority and their weighted vote.
    """
    best = _hits([record["vote"] for record in records], records)
    covered = [any(record["correct"]) for record in records]
    measures, size = {mode: measured(best), "coverage": measured(covered)}, num_survivors(records)
    if mode == "dvts":
        votes = [aggregate(record, size, score_by) for record in records]
        for name, method in LEAF_VOTES.items():
            hits = _hits([vote[method] for vote in votes], records)
            measures[name] = measured(hits)
    return {"n_samples": size, "by_n": {str(size): measures}}


def num_survivors(records):
    """How many trajectories a search returns for each question of its records."""
    return len(records[0]["predictions"])
