"""Which answer each chooser takes, their accuracy, their gain over the vote and over greedy."""

import numpy as np

from src.search.adaptive import ERRORS, stopped_size
from src.search.choosers import CHOOSERS, Pool
from utils.answers import is_right
from utils.metrics import majority_vote, measured, summarize

# Votes of the leaves of DVTS: their names in its measures, and in ``aggregate``.
LEAF_VOTES = {"dvts_vote": "majority", "dvts_weighted_vote": "weighted_vote"}


def aggregate(record, n, score_by="sum"):
    """{chooser: answer} of a record's first n trajectories; an answer is a number or None.

    What the record holds decides which of CHOOSERS there are.
    """
    pool = Pool(record, n, score_by)
    return {
        name: chooser.choose(pool)
        for name, chooser in CHOOSERS.items()
        if all(map(pool.has, chooser.parts))
    }


def measure(records, report_n, score_by="sum"):
    """{"n_samples", "by_n": {N: {measure: {"value", "low", "high"}}}} in percent.

    Beside the measures of utils.metrics these are the accuracy of every chooser and
    ``<name>_gain``, its paired difference to the majority vote, with a bootstrap interval; where
    the greedy answers are recorded, also ``<name>_gain_over_greedy``, the vote's included. Also
    "thought_distance" (src.search.diversity) of the whole pools, no percentage, where all records
    have it; those of runs before 2026-11-26 may not. Also "adaptive", see ``_measure_adaptive``.
    """
    pools = [(record["predictions"], record["answer"]) for record in records]
    by_n = summarize(pools, report_n)
    for n in report_n:
        answers = [aggregate(record, n, score_by) for record in records]
        hits = {name: _hits([chosen[name] for chosen in answers], records) for name in answers[0]}
        by_n[str(n)] |= _choices(hits)
    largest = max(report_n)
    measures = {"n_samples": largest} | _distance(records) | {"by_n": by_n}
    return measures | (_measure_adaptive(records, largest) if largest > 1 else {})


def _choices(hits):
    """The measures of choosers, from {name: whether it is right (Q,)}."""
    measures, majority, greedy = {}, hits["majority"], hits.get("greedy")
    for name, values in hits.items():
        if name != "majority":
            measures[name] = measured(values)
            measures[f"{name}_gain"] = measured(values - majority)
        if greedy is not None and name != "greedy":
            measures[f"{name}_gain_over_greedy"] = measured(values - greedy)
    return measures


def _measure_adaptive(records, n):
    """{"adaptive": {error rate: {"accuracy", "gain", "samples"}}} of pools of n trajectories.

    accuracy: of the vote that stops once it is decided (src.search.adaptive), in percent. gain: its
    paired difference to the vote of n. samples: the mean number of trajectories.
    """
    pools = [record["predictions"][:n] for record in records]
    vote, by_error = _hits([majority_vote(pool) for pool in pools], records), {}
    for error in ERRORS:
        sizes = [stopped_size(pool, error) for pool in pools]
        stopped = [majority_vote(pool[:k]) for pool, k in zip(pools, sizes, strict=True)]
        hits = _hits(stopped, records)
        by_error[str(error)] = {
            "accuracy": measured(hits),
            "gain": measured(hits - vote),
            "samples": measured(sizes, scale=1),
        }
    return {"adaptive": by_error}


def measure_stopped(records, n_samples):
    """The same form for pools that stopped when they were decided, of at most N trajectories.

    Only measures that do not need N trajectories of every question: the vote's accuracy, the mean
    number of "samples" (no percentage), and the unparsable answers' share of all.
    """
    pools = [record["predictions"] for record in records]
    measures = {
        "voting_accuracy": measured(_hits([record["vote"] for record in records], records)),
        "samples": measured([len(pool) for pool in pools], scale=1),
        "unparsable": measured([np.mean([p is None for p in pool]) for pool in pools]),
    }
    return {"n_samples": n_samples, "by_n": {str(n_samples): measures}}


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
