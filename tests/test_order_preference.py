"""The order preference: its corruptions, and its loss against a plain transcription."""

import math
from itertools import combinations

import pytest
import torch

from src.sampling import rng
from src.training.losses.latent_rm import RewardLoss
from src.training.losses.order_preference import corrupted_orders
from tests.conftest import random_latent_rm

pytestmark = pytest.mark.quick

T = 7
LENGTHS = torch.arange(1, T + 1).expand(300, T)  # (Q, N): each number of thoughts 300 times


@pytest.fixture(scope="module")
def orders():
    """{number of thoughts: the orders (300, K, T) of 300 trajectories, and which exist (K,)}."""
    keys = rng.row_keys(5, torch.arange(300)[:, None], torch.arange(T), "cpu")
    orders, exists = corrupted_orders(keys, LENGTHS, T)
    assert torch.equal(exists, exists[:1].expand_as(exists))
    return {n: (orders[:, n - 1], exists[0, n - 1].tolist()) for n in range(1, T + 1)}


@pytest.mark.parametrize("n", range(1, T + 1))
def test_corruptions_are_those_of_their_names(orders, n):
    found, exists = orders[n]
    assert exists == [n >= 2, n >= 4, n >= 3, n >= 3]
    assert torch.equal(found.sort(dim=-1)[0], torch.arange(T).expand_as(found))  # permutations
    moved = found != torch.arange(T)
    assert not moved[..., n:].any() and not moved[:, [not x for x in exists]].any()
    by_kind = found[..., :n].transpose(0, 1).tolist()
    swap, swaps, thirds, backwards = (set(map(tuple, orders)) for orders in by_kind)
    whole = list(range(n))
    if exists[0]:
        assert swap == {tuple(_swapped(whole, i)) for i in range(n - 1)}
    if exists[1]:
        pairs = [(i, j) for i, j in combinations(range(n - 1), 2) if j > i + 1]
        assert swaps == {tuple(_swapped(_swapped(whole, i), j)) for i, j in pairs}
    if exists[2]:
        a, b, c = whole[: n // 3], whole[n // 3 : 2 * n // 3], whole[2 * n // 3 :]
        others = (a + c + b, b + a + c, b + c + a, c + a + b, c + b + a)
        assert thirds == set(map(tuple, others))
        assert backwards == {tuple(whole[::-1])}


def _swapped(items, i):
    return [*items[:i], items[i + 1], items[i], *items[i + 2 :]]


def plain_preference(s):
    """The loss of one trajectory from s_0 and {k: s_k} of its corruptions."""
    own, others = s
    first = [max(0, 0.05 + s_k - own) for s_k in others.values()]
    pairs = [max(0, 0.0125 + others[j] - others[i]) for i, j in combinations(sorted(others), 2)]
    return sum(first) / len(first) + (sum(pairs) / len(pairs) if pairs else 0)


def test_the_loss_is_its_plain_transcription():
    torch.manual_seed(0)
    model = random_latent_rm()
    num_thoughts = torch.tensor([[6, 3, 1, 5], [4, 2, 6, 6], [1, 1, 5, 4]])
    corrects = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0]]).bool()
    thoughts = torch.randn(3, 4, 6, 32)
    batch = {
        "input_ids": torch.randint(20, 60, (3, 5)), "attention_mask": torch.ones(3, 5).long(),
        "latent_embeds": thoughts, "latent_lengths": num_thoughts, "labels": torch.rand(3, 4, 6),
        "corrects": corrects, "question_ids": torch.tensor([7, 1, 3]), "step": 11,
    } | dict.fromkeys(("answer_ids", "gold_ids", "digits", "predictions"))  # fmt: skip

    def s(q, x):
        with torch.no_grad():
            rewards = model(batch["input_ids"][[q]], batch["attention_mask"][[q]], x[None, None])
        return sum(math.log(1 / (1 + math.exp(-r))) for r in rewards[0, 0].tolist()) / len(x)

    keys = rng.row_keys(2, batch["question_ids"][:, None], torch.arange(4), "cpu")
    orders, exists = corrupted_orders(rng.fold(keys, 11), num_thoughts, 6)
    questions = [[], [], [0.0]]  # no right trajectory
    for q, n in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 3)]:  # right, more than one thought
        x = thoughts[q, n, : num_thoughts[q, n]]
        corrupted = {k: s(q, x[orders[q, n, k, : len(x)]]) for k in range(4) if exists[q, n, k]}
        questions[q].append(plain_preference((s(q, x), corrupted)))
    expected = sum(sum(losses) / len(losses) for losses in questions) / 3
    plain = RewardLoss(model, {"bce": 1.0})(**batch)["loss"]
    whole = RewardLoss(model, {"bce": 1.0}, order_weight=0.5, seed=2)(**batch)["loss"]
    torch.testing.assert_close(whole - plain, torch.tensor(0.5 * expected), rtol=1e-3, atol=1e-5)
