"""From a pool of answers to one: every aggregator, its accuracy, its gain over the majority vote."""

import numpy as np

from utils.metrics import (
    best_of_n,
    majority_vote,
    measured,
    softmax,
    summarize,
    trajectory_score,
    weighted_vote,
)
from utils.records import gold_of


def scores_of(record, score_by):
    """The scores of a record's trajectories, a list."""
    answers = record.get("answer_scores") or [0.0] * len(record["scores"])
    pairs = zip(record["scores"], answers, strict=True)
    return [trajectory_score(sum(rewards), len(rewards), score_by, answer) for rewards, answer in pairs]


def aggregate(record, n, score_by="sum"):
    """{aggregator: answer} of a record's first n trajectories; which ones, its contents decide.

    scores, a list of rewards a trajectory, and answer_scores give best_of_n and weighted_vote
    (utils.metrics.trajectory_score);
    log_probs (N, K) give bayesian_vote, the largest mean over trajectories of p(answer | trajectory), and
    its geometric form; both together reward_bayesian, the mean under the reward model's weights.
    """
    predictions = record["predictions"][:n]
    found, weights = {"majority": majority_vote(predictions)}, None
    if "scores" in record:
        scores = scores_of(record, score_by)[:n]
        weights = softmax(scores)
        found["best_of_n"] = best_of_n(predictions, scores)
        found["weighted_vote"] = weighted_vote(predictions, weights)
    if "log_probs" in record:
        numbers = [number for number in record["candidates"] if number in predictions]
        log_probs = np.asarray(record["log_probs"], dtype=np.float64)[:n, : len(numbers)]  # (n, K)
        uniform = np.full(n, 1 / n)
        found["bayesian_vote"] = _most_probable(numbers, uniform @ np.exp(log_probs))
        found["bayesian_geometric"] = _most_probable(numbers, uniform @ log_probs)
        if weights is not None:
            found["reward_bayesian"] = _most_probable(numbers, weights @ np.exp(log_probs))
    return found


def _most_probable(numbers, values):
    return numbers[int(np.argmax(values))] if numbers else None


def measure(records, report_n, score_by="sum"):
    """{"n_samples", "by_n": {N: {measure: {"value", "low", "high"}}}} in percent.

    To the measures of utils.metrics come the accuracy of every aggregator, and ``<name>_gain``: the
    paired difference to the majority vote, with its bootstrap interval.
    """
    pools = [(record["predictions"], gold_of(record)) for record in records]
    by_n = summarize(pools, report_n)
    for n in report_n:
        answers = [aggregate(record, n, score_by) for record in records]
        right = {
            name: np.array(
                [found[name] == gold for found, (_, gold) in zip(answers, pools, strict=True)]
            )
            for name in answers[0]
        }
        vote = right.pop("majority").astype(float)
        for name, hits in right.items():
            by_n[str(n)][name] = measured(hits)
            by_n[str(n)][f"{name}_gain"] = measured(hits - vote)
    return {"n_samples": max(report_n), "by_n": by_n}


def measure_beams(records, num_beams):
    """The same form for beam search: the best beam's accuracy, and what the survivors cover."""
    gold = [gold_of(record) for record in records]
    pairs = list(zip(records, gold, strict=True))
    best = [record["vote"] == right for record, right in pairs]
    covered = [any(record["correct"]) for record in records]
    by_n = {str(num_beams): {"beam_search": measured(best), "coverage": measured(covered)}}
    return {"n_samples": num_beams, "by_n": by_n}
