"""Random numbers by counter: each is a function of seed, question, sample, step and site."""

import pytest
import torch

from src.sampling import rng

pytestmark = pytest.mark.quick


def keys(seed=1, questions=(0, 1), samples=(0, 0)):
    return rng.row_keys(seed, torch.tensor(questions), torch.tensor(samples), "cpu")


def splitmix64(x):
    """SplitMix64's finalizer on Python integers, with the constants of its paper."""
    mask = (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_fold_is_splitmix64():
    mask = (1 << 64) - 1
    for key, value in ((0, 0), (12345, 7), (-5, 1 << 40), (987654321987654321, -3)):
        folded = int(rng.fold(torch.tensor(key), value))
        assert folded & mask == splitmix64((key + (value + 1) * 0x9E3779B97F4A7C15) & mask)


def test_the_random_numbers_are_those_of_published_results():
    """Results can be reproduced only as long as these values stay."""
    assert keys(42, (0, 7), (0, 63)).tolist() == GOLDEN_KEYS
    mask = rng.dropped(keys(42), 3, 12, 0.5)
    assert [int("".join(str(int(x)) for x in row), 2) for row in mask] == GOLDEN_MASKS
    noise = rng.normal(keys(42)[:1], -1, 4)
    torch.testing.assert_close(noise, torch.tensor([GOLDEN_NOISE]), rtol=1e-6, atol=1e-6)


GOLDEN_KEYS = [-3474249550072520286, -179664481267651664]
GOLDEN_MASKS = [3231, 2417]
GOLDEN_NOISE = [-1.1079535, 1.8391678, 1.1042866, -1.1398568]


def test_keys_differ_by_seed_question_sample_step_and_site():
    keys_seen = set()
    for seed in range(3):
        for question in range(3):
            for sample in range(3):
                for step in range(-2, 3):
                    key = rng.fold(keys(seed, [question], [sample]), step)
                    keys_seen |= {int(rng.fold(key, site)) for site in range(4)}
    assert len(keys_seen) == 3 * 3 * 3 * 5 * 4


def test_masks_drop_at_rate_p_independently():
    rng_keys = rng.row_keys(3, torch.arange(64), torch.arange(64), "cpu")
    for p in (0.05, 0.2, 0.5):
        mask = rng.dropped(rng_keys, 0, 4096, p).double()
        assert abs(mask.mean() - p) < 5 * (p * (1 - p) / mask.numel()) ** 0.5
        lag = (mask[:, 1:] * mask[:, :-1]).mean()  # of neighbours, which are independent
        assert abs(lag - p * p) < 5 * (p * p / mask.numel()) ** 0.5
    assert not rng.dropped(rng_keys, 0, 4096, 0.0).any()
    assert rng.dropped(rng_keys, 0, 4096, 0.999999).double().mean() > 0.999


def test_noise_is_standard_normal_and_independent():
    rng_keys = rng.row_keys(3, torch.arange(64), torch.arange(64), "cpu")
    x = rng.normal(rng_keys, -1, 4096).double()
    assert abs(x.mean()) < 5 / x.numel() ** 0.5
    assert abs(x.var() - 1) < 5 * (2 / x.numel()) ** 0.5
    assert abs((x**4).mean() - 3) < 0.1
    assert (
        abs((x[:, :2048] * x[:, 2048:]).mean()) < 5 / (x.numel() / 2) ** 0.5
    )  # pairs from one sine and cosine
    assert abs((x[0] * x[1]).mean()) < 5 / 4096**0.5
    assert torch.isfinite(x).all()


def test_odd_widths_are_the_start_of_even_ones():
    assert torch.equal(rng.dropped(keys(), 0, 7, 0.5), rng.dropped(keys(), 0, 8, 0.5)[:, :7])
    assert rng.normal(keys(), 0, 5).shape == (2, 5)
