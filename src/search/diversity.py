"""How far apart the sampled trajectories of a question are."""

import torch


def thought_distances(thoughts, num_thoughts):
    """The mean distance between the thoughts of two trajectories of a question: Q floats.

    This is the mean, over pairs of trajectories and over t, of the Euclidean distance between their
    t-th thoughts, where both have so many. thoughts (Q, N, T, D), as they were fed back, of which
    num_thoughts (Q, N) exist. Rounded to 4 digits: batches of other shapes differ in later ones.
    Raises ValueError where N is 1, as there are no pairs.
    """
    if thoughts.shape[1] < 2:
        raise ValueError("one trajectory has no distance to another")
    lengths = num_thoughts.to(thoughts.device)
    return [_mean_distance(*question) for question in zip(thoughts, lengths, strict=True)]


def _mean_distance(thoughts, lengths):
    """The same for one question: (N, T, D), (N,). One thought at a time, so N^2 / 2 distances."""
    total, pairs = thoughts.new_zeros((), dtype=torch.float64), 0
    for t in range(int(lengths.max())):
        distances = torch.pdist(thoughts[lengths > t, t].double())
        total += distances.sum()
        pairs += distances.numel()
    return float(f"{total.item() / pairs:.4g}")
