"""How far apart trajectories are: against plain loops, and the same however they were sampled."""

import itertools
import math

import pytest
import torch

from src.sampling.engine import sample
from src.sampling.trajectories import Request
from src.search.diversity import agreement_sizes, agreements, thought_distances
from tests.conftest import NOISE

pytestmark = pytest.mark.quick


def plain_distance(thoughts, lengths):
    """The definition in loops: thoughts (N, T, D), of which lengths (N,) exist."""
    distances = [
        (thoughts[n, t] - thoughts[m, t]).norm().item()
        for n, m in itertools.combinations(range(len(thoughts)), 2)
        for t in range(min(lengths[n], lengths[m]))
    ]
    return sum(distances) / len(distances)


def test_distances_by_hand():
    thoughts = torch.tensor([[[[0.0, 0], [1, 1]], [[3, 4], [1, 3]]]])  # distances 5 and 2
    assert thought_distances(thoughts, torch.tensor([[2, 2]])) == [3.5]
    assert thought_distances(thoughts, torch.tensor([[2, 1]])) == [5.0]  # only one has a second
    assert thought_distances(torch.ones(2, 3, 4, 5), torch.full((2, 3), 4)) == [0, 0]


def test_one_trajectory_has_no_distance():
    with pytest.raises(ValueError, match="one trajectory"):
        thought_distances(torch.zeros(1, 1, 2, 3), torch.tensor([[2]]))


def test_thoughts_of_different_number_equal_the_definition():
    torch.manual_seed(0)
    thoughts, lengths = torch.randn(3, 6, 9, 5) * 3, torch.randint(1, 10, (3, 6))
    expected = [plain_distance(*question) for question in zip(thoughts, lengths, strict=True)]
    assert thought_distances(thoughts, lengths) == pytest.approx(expected, rel=1e-3)
    # What stands in the places of missing thoughts has no effect.
    missing = torch.arange(9) >= lengths[..., None]
    thoughts[missing] = float("nan")
    assert thought_distances(thoughts, lengths) == pytest.approx(expected, rel=1e-3)


def test_agreement_equals_its_definition():
    """Distance to the centroid, and a kernel density with the median distance as its width."""
    torch.manual_seed(0)
    thoughts, lengths = torch.randn(2, 5, 4, 3).double() * 3, torch.randint(1, 5, (2, 5))
    thoughts[torch.arange(4) >= lengths[..., None]] = float("nan")  # these do not exist
    centroid_distances, log_densities = agreements(thoughts, lengths)
    for q, (pool, counts) in enumerate(zip(thoughts, lengths.tolist(), strict=True)):
        centroids = [pool[[k for k in range(5) if counts[k] > t], t].mean(0) for t in range(4)]
        pairs = [
            [plain_distance(pool[[n, m]], [counts[n], counts[m]]) for m in range(5) if m != n]
            for n in range(5)
        ]
        width = sorted(itertools.chain(*pairs))[9]  # of 20, the lower of the two in the middle
        for n, count in enumerate(counts):
            from_centroids = [(pool[n, t] - centroids[t]).norm().item() for t in range(count)]
            distance = sum(from_centroids) / count
            assert centroid_distances[q][n] == pytest.approx(distance, rel=1e-3)
            kernels = [math.exp(-((distance / width) ** 2) / 2) for distance in pairs[n]]
            assert log_densities[q][n] == pytest.approx(math.log(sum(kernels) / 4), rel=1e-3)
    # Equal trajectories are in the centre, at the largest density.
    assert agreements(torch.ones(1, 3, 4, 5), torch.full((1, 3), 4)) == [[[0.0] * 3], [[0.0] * 3]]
    assert agreement_sizes(1) == [] and agreement_sizes(6) == [2, 4, 6]


def test_distances_do_not_depend_on_the_batch(backbone):
    model, tokenizer = backbone
    questions = ["Mia has 12 pens.", "Tom buys 5 bags with 3 apples each.", "How many are 2 and 2?"]
    prompts = model.encode(tokenizer, questions)

    def distances(ids):
        request = Request([prompts[i] for i in ids], ids, 5, 6, 4, 42, NOISE)
        trajectories = sample(model, request)
        return thought_distances(trajectories.thoughts, trajectories.num_thoughts)

    together = distances([0, 1, 2])
    assert len(set(together)) == 3 and min(together) > 0
    assert together == [distances([i])[0] for i in range(3)]
