"""From a pool of answers to one: aggregators, their accuracy, their gain over the vote."""

import numpy as np

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


def trajectory_scores(record, score_by):
    """The scores of a record's N trajectories, a list (utils.metrics.trajectory_score)."""
    answers = record.get("answer_scores") or [0.0] * len(record["scores"])
    return [
        trajectory_score(sum(rewards), len(rewards), score_by, answer)
        for rewards, answer in zip(record["scores"], answers, strict=True)
    ]


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


def measure_beams(records, num_beams):
    """The same form for beam search: the best beam's accuracy, and what the survivors cover."""
    best = _hits([record["vote"] for record in records], records)
    covered = [any(record["correct"]) for record in records]
    by_n = {str(num_beams): {"beam_search": measured(best), "coverage": measured(covered)}}
    return {"n_samples": num_beams, "by_n": by_n}
