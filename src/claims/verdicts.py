"""Comparisons of two measures, and the rules by which they decide a claim.

The rules are fixed here, before anything is run.
"""

from dataclasses import dataclass

import numpy as np

from utils.metrics import measured

HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"
MARGIN = 1.0  # points; the smallest gain that would matter
CLOSE = 2.0  # points; within which two methods match
RULES = {
    "greater": (
        "The first is greater: the 95 % interval of the difference lies above 0, and so does the "
        "difference of every seed (so more seeds make it harder). It does not hold if the interval "
        f"reaches below 0 and rules out a gain of {MARGIN:g} point, unless the second is so close "
        "to 100 % that there is no room for one."
    ),
    "rises": (
        "The first is greater, by however little: the 95 % interval lies above 0. It does not hold "
        "if the interval lies below 0."
    ),
    "close": (
        f"The two match: the 95 % interval lies within {CLOSE:g} points of 0. It does not hold if "
        "the interval lies wholly outside."
    ),
    "same": "The two are identical: no answer differs. It does not hold if one does.",
}
WHOLE = (
    "A claim holds if each of its comparisons holds, does not hold if one of them does not, and is "
    "undecided at this size otherwise."
)


@dataclass(frozen=True)
class Comparison:
    """Two measures of the same questions, percent. What is judged is first minus second.

    where: the benchmark and what else. rule: a key of RULES. names: of the two. first, second:
    their means over seeds and questions. value, low, high: the difference with its 95 % interval
    over questions, of the mean over seeds. seeds: the difference for each seed.
    """

    where: str
    rule: str
    names: tuple
    first: float
    second: float
    value: float
    low: float
    high: float
    seeds: tuple

    @property
    def verdict(self):
        return _JUDGES[self.rule](self)


def compare(where, rule, names, first, second):
    """The Comparison of two measures (S, Q) from 0 to 1: S seeds, Q questions.

    A question that is NaN (it has no such measure) in any seed is left out.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    first, second = np.broadcast_arrays(first, second)  # greedy has no seeds
    known = ~np.isnan(first - second).any(axis=0)  # (Q,)
    first, second = first[:, known], second[:, known]
    measure = measured((first - second).mean(axis=0))
    seeds = tuple(round(100 * float(x), 2) for x in (first - second).mean(axis=1))
    means = (round(100 * float(x.mean()), 2) for x in (first, second))
    return Comparison(
        where, rule, names, *means, measure["value"], measure["low"], measure["high"], seeds
    )


def _greater(comparison):
    if comparison.low > 0 and min(comparison.seeds) > 0:
        return HOLDS
    has_room = 100 - comparison.second >= MARGIN
    excluded = comparison.low <= 0 and comparison.high < MARGIN
    return FAILS if excluded and has_room else OPEN


def _rises(comparison):
    if comparison.low > 0:
        return HOLDS
    return FAILS if comparison.high < 0 else OPEN


def _close(comparison):
    if comparison.low >= -CLOSE and comparison.high <= CLOSE:
        return HOLDS
    outside = comparison.low > CLOSE or comparison.high < -CLOSE
    return FAILS if outside else OPEN


def _same(comparison):
    return HOLDS if comparison.first == comparison.second == 100.0 else FAILS


_JUDGES = {"greater": _greater, "rises": _rises, "close": _close, "same": _same}


def verdict_of(comparisons):
    """The verdict on a claim, from those of its comparisons (WHOLE)."""
    verdicts = {comparison.verdict for comparison in comparisons}
    if FAILS in verdicts:
        return FAILS
    return OPEN if OPEN in verdicts else HOLDS
