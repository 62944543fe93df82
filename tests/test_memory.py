"""How many rows are computed at once: their memory stays within a bound for any model."""

from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from src.sampling.memory import WORK_BYTES, cached_numbers, rows_within, tokens_within
from tests.conftest import RANDOM

pytestmark = pytest.mark.quick

LLAMA_1B = LlamaConfig(
    hidden_size=2048,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=8192,
    vocab_size=128_256,
    head_dim=64,
)


def model_of(config, dtype=torch.float32):
    """What the bounds need of a model."""
    return SimpleNamespace(config=config, dtype=dtype, device=torch.device("cpu"))


@pytest.mark.parametrize("name", RANDOM)
def test_cached_numbers_are_those_of_a_position_in_the_cache(name):
    model, _ = RANDOM[name]()
    cache = model.new_cache(3, 5)
    assert cache.buffer.numel() == 3 * 5 * cached_numbers(model.config)


def test_rows_of_a_1b_llama_fit_the_bound():
    positions = 128  # 64 thoughts and 64 answer tokens
    rows = rows_within(model_of(LLAMA_1B), positions)
    cache_bytes = positions * cached_numbers(LLAMA_1B) * 4
    logits_bytes = LLAMA_1B.vocab_size * 8
    used = rows * (cache_bytes + logits_bytes)
    assert 0.5 * WORK_BYTES["cpu"] < used <= WORK_BYTES["cpu"]
    assert rows_within(model_of(LLAMA_1B, torch.bfloat16), positions) > 1.5 * rows
    # Logits at many positions count, too.
    assert rows_within(model_of(LLAMA_1B), positions, logits=64) < rows / 4


def test_a_smaller_model_computes_more_rows_at_once():
    gpt2 = model_of(GPT2Config())
    assert rows_within(gpt2, 70) > rows_within(model_of(LLAMA_1B), 70)
    assert tokens_within(gpt2) > tokens_within(model_of(LLAMA_1B))


def test_at_least_one_row_and_token_fit_any_bound(monkeypatch):
    monkeypatch.setitem(WORK_BYTES, "cpu", 1)
    assert rows_within(model_of(LLAMA_1B), 128) == tokens_within(model_of(LLAMA_1B)) == 1
