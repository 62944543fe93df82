"""Adaptive N: when the vote on a question is decided, so that no more trajectories are needed.

Answers are independent draws; what the vote of more and more of them tends to is the mode, the
likeliest number. ``decided`` tests whether the leader of the vote is the mode. ``error`` bounds the
probability that sampling ever stops by this test at an answer that is not the mode, whatever the
distribution of answers, and however often one looks. (Sampling also stops where the remaining votes
can't change the vote of N; then it is this vote, right or wrong.)

The evidence of a votes for the leader against b for a rival is a ratio of likelihoods: that of a
leader whose share of the two is uniform between 1/2 and 1, over that of equal shares. Where in
truth the rival is as likely as the leader, it is a supermartingale: it ever exceeds x times its
start with probability 1/x at most (Ville's inequality; a one-sided form of the test of Jain et al.
2022, arXiv 2109.05047). An answer starts with its first vote, at evidence of at most 3/2. The k-th
answer to appear gets the share 1 / (k (k + 1)) of the error; these shares sum to 1, so that the
number of answers need not be known. So the threshold is 3/2 k (k + 1) / error.
"""

from collections import Counter
from fractions import Fraction
from functools import cache
from math import comb

from utils.metrics import majority_vote

ERRORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # rates that runs of full pools report


@cache
def evidence(a, b):
    """For the leader with a votes against a rival with b, exact.

    It is the integral over p from 1/2 to 1 of 2 p^a (1 - p)^b, divided by 2^-(a + b), which is
    sum over j <= a of C(a + b + 1, j), divided by (a + b + 1) C(a + b, a).
    """
    n = a + b
    return Fraction(sum(comb(n + 1, j) for j in range(a + 1)), (n + 1) * comb(n, a))


@cache
def threshold(rank, error):
    """Of the evidence for the answer number ``rank``, from 1, to appear."""
    return Fraction(3 * rank * (rank + 1)) / (2 * Fraction(error))


@cache
def checkpoints(n_samples, error):
    """The sizes at which a pool of at most N is looked at, the last is N.

    The first is the smallest at which a unanimous vote is decided; each next one is a quarter
    larger: few rounds of sampling, and few samples too many.
    """
    sizes = [1]
    while sizes[0] <= n_samples // 2 and evidence(sizes[0], 0) < threshold(1, error):
        sizes[0] += 1
    while sizes[-1] < n_samples:
        sizes.append(min(n_samples, sizes[-1] + max(1, sizes[-1] // 4)))
    return sizes


def decided(predictions, n_samples, error):
    """Whether the vote of some predictions, a number or None each, needs no more of N in all.

    Either the test says so, or the remaining votes can't change the vote of N.
    """
    counts = Counter(number for number in predictions if number is not None)
    if not counts:
        return len(predictions) == n_samples
    first, second = ([count for _, count in counts.most_common(2)] + [0])[:2]
    if first - second > n_samples - len(predictions):
        return True
    rank = 1 + list(counts).index(majority_vote(predictions))
    return evidence(first, second) >= threshold(rank, error)


def stopped_size(predictions, error):
    """After how many of N predictions sampling stops."""
    n_samples = len(predictions)
    for size in checkpoints(n_samples, error):
        if decided(predictions[:size], n_samples, error):
            return size
    return n_samples
