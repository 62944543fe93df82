"""The order preference: thoughts in their own order score above those in a corrupted order.

An independent replication of the paper adds this loss to BCE, for right trajectories only. The
corruptions, from mild to severe: two neighbours swapped, two disjoint pairs of neighbours swapped,
the three thirds in another order, all thoughts reversed. They exist for trajectories of at least 2,
4, 3 and 3 thoughts.

Shapes: Q questions, N trajectories of each, T thoughts, K = 4 corruptions.
"""

from itertools import combinations

import torch
import torch.nn.functional as F

from src.sampling import rng

NUM_CORRUPTIONS = 4
_LEAST_THOUGHTS = (2, 4, 3, 3)
_MARGIN, _MARGIN_OF_PAIRS = 0.05, 0.0125
_OTHER_ORDERS = ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))  # of the thirds
_SWAP, _FIRST_PAIR, _SECOND_PAIR, _THIRDS = range(4)  # sites of the random numbers


def corrupted_orders(keys, num_thoughts, most):
    """The orders of the corruptions (Q, N, K, T), T = ``most``, and which of them exist (Q, N, K).

    keys (Q, N): of src.sampling.rng. num_thoughts (Q, N): how many thoughts exist. An order names
    for each place the thought that stands there. Missing thoughts stay in their places, and all
    thoughts do where a corruption does not exist.
    """
    place = torch.arange(most, device=keys.device)
    n = num_thoughts[..., None]  # (Q, N, 1)
    keys = keys[..., None]
    thirds = _thirds_in_another_order(keys, n, place)
    backwards = torch.where(place < n, n - 1 - place, place)
    orders = (_one_swap(keys, n, place), _two_swaps(keys, n, place), thirds, backwards)
    exists = n >= n.new_tensor(_LEAST_THOUGHTS)  # (Q, N, K)
    return torch.where(exists[..., None], torch.stack(orders, dim=-2), place), exists


def _one_swap(keys, n, place):
    return place + _swap(place, _below(keys, _SWAP, n - 1))


def _two_swaps(keys, n, place):
    # two of the n - 2 numbers, then one step apart: pairs of neighbours that do not overlap
    one = _below(keys, _FIRST_PAIR, n - 2)
    other = (one + 1 + _below(keys, _SECOND_PAIR, n - 3)) % (n - 2).clamp(min=1)
    first, second = torch.minimum(one, other), torch.maximum(one, other) + 1
    return place + _swap(place, first) + _swap(place, second)


def _thirds_in_another_order(keys, n, place):
    choice = _below(keys, _THIRDS, torch.full_like(n, len(_OTHER_ORDERS)))  # (Q, N, 1)
    rank = n.new_tensor(_OTHER_ORDERS)[choice[..., 0]]  # (Q, N, 3), of each third
    third = (place >= n // 3).long() + (place >= 2 * n // 3)  # (Q, N, T)
    rank = rank.take_along_dim(third, dim=-1).masked_fill(place >= n, 3)  # missing ones last
    return rank.argsort(dim=-1, stable=True)


def _below(keys, site, bound):
    """A random number from 0 to bound - 1 for each key; bounds below 1 count as 1."""
    return rng.fold(keys, site) % bound.clamp(min=1)


def _swap(place, first):
    """What is added to an order to swap the thoughts at ``first`` and after it."""
    return (place == first).long() - (place == first + 1).long()


def mean_log_sigmoid(rewards, mask):
    """s: the mean over the thoughts that exist (..., T) of log sigmoid(reward), (...)."""
    return (F.logsigmoid(rewards) * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def order_preference(own, corrupted, exists, right):
    """mean_k relu(0.05 + s_k - s_0) + mean over i < j of relu(0.0125 + s_j - s_i), (Q,).

    own (Q, N): s_0, of the thoughts in their own order. corrupted (Q, N, K): s_k. exists
    (Q, N, K): which corruptions do. right (Q, N) bool. The means are over what exists; that over a
    question's right trajectories is 0 where none has a corruption.
    """
    to_own = _mean(F.relu(_MARGIN + corrupted - own[..., None]), exists)
    mild, severe = torch.tensor([*combinations(range(NUM_CORRUPTIONS), 2)], device=own.device).T
    to_milder = F.relu(_MARGIN_OF_PAIRS + corrupted[..., severe] - corrupted[..., mild])
    to_milder = _mean(to_milder, exists[..., severe] & exists[..., mild])
    return _mean(to_own + to_milder, right & exists.any(-1))


def _mean(values, mask):
    """Over the last dimension, where mask is true; 0 where it never is."""
    return (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)
