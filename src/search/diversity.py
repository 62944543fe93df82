"""How far apart the sampled trajectories of a question are, and how well each agrees with them."""

import torch

from src.sampling.trajectories import thought_mask
from utils.metrics import powers_of_two

EXACT = "donot_use_mm_for_euclid_dist"  # by products of matrices, small distances lose digits


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


def agreement_sizes(n_samples):
    """The sizes of a pool for which agreement is recorded: powers of two from 2 on, and N."""
    return [n for n in powers_of_two(n_samples) if n > 1]


def agreements(thoughts, num_thoughts):
    """How each of n trajectories of a question lies among all n: two lists of Q lists of n floats.

    The first has distances to the centroid: the mean over t of the Euclidean distance between the
    trajectory's t-th thought and the mean of all t-th thoughts. The second has log densities: a
    Gaussian kernel over the mean distance between the thoughts of two trajectories, mean over the
    other trajectories, its width the median of all these distances. thoughts (Q, n, T, D), of which
    num_thoughts (Q, n) exist; n at least 2. Rounded to 4 digits.
    """
    lengths = num_thoughts.to(thoughts.device)
    found = [_agreement(*question) for question in zip(thoughts, lengths, strict=True)]
    return [[_four_digits(question[k]) for question in found] for k in range(2)]


def _four_digits(values):
    return [float(f"{x:.4g}") for x in values.tolist()]


def _agreement(thoughts, lengths):
    """Distances to the centroid and log densities (n,) of one question: (n, T, D), (n,)."""
    exist = thought_mask(lengths, int(lengths.max()))  # (n, T')
    from_centroid = thoughts.new_zeros(len(exist), dtype=torch.float64)  # sums over t
    distances = from_centroid.new_zeros(len(exist), len(exist))
    for t in range(exist.shape[1]):
        rows = exist[:, t].nonzero()[:, 0]
        at_t = thoughts[rows, t].double()  # (n', D)
        from_centroid[rows] += (at_t - at_t.mean(0)).norm(dim=1)
        distances[rows[:, None], rows] += torch.cdist(at_t, at_t, compute_mode=EXACT)
    both = torch.minimum(lengths[:, None], lengths)  # thoughts that two trajectories have
    return from_centroid / lengths, _log_densities(distances / both)


def _log_densities(distances):
    """Of n points with these distances (n, n): (n,)."""
    own = torch.eye(len(distances), dtype=torch.bool, device=distances.device)
    width = distances[~own].median().clamp(min=1e-9)  # equal trajectories have no distance
    kernels = (-0.5 * (distances / width) ** 2).masked_fill(own, -torch.inf)
    return kernels.logsumexp(1) - torch.log(width.new_tensor(len(distances) - 1))
