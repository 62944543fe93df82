"""Bounds by bytes: what is in flight stays within them, whatever the model's shape."""

from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from src.sampling.memory import WORK_BYTES, cached_numbers, rows_within, tokens_within
from tests.conftest import RANDOM

LLAMA_1B = LlamaConfig(
    hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
    intermediate_size=8192, vocab_size=128_256, head_dim=64,
)  # fmt: skip


def shape_of(config, dtype=torch.float32):
    return SimpleNamespace(config=config, dtype=dtype, device=torch.device("cpu"))


@pytest.mark.parametrize("name", RANDOM)
def test_a_position_takes_what_the_cache_really_takes(name):
    model, _ = RANDOM[name]()
    cache = model.new_cache(3, 5)
    assert cache.buffer.numel() == 3 * 5 * cached_numbers(model.config)


def test_rows_of_a_llama_of_1b_fit_into_the_bound():
    positions = 128  # 64 thoughts and 64 answer tokens
    rows = rows_within(shape_of(LLAMA_1B), positions)
    in_use = rows * (positions * cached_numbers(LLAMA_1B) * 4 + LLAMA_1B.vocab_size * 8)
    assert 0.5 * WORK_BYTES["cpu"] < in_use <= WORK_BYTES["cpu"]
    assert rows_within(shape_of(LLAMA_1B, torch.bfloat16), positions) > 1.5 * rows
    assert (
        rows_within(shape_of(LLAMA_1B), positions, logits=64) < rows / 4
    )  # a text's logits count too


def test_a_smaller_model_may_have_more_in_flight():
    gpt2 = shape_of(GPT2Config())
    assert rows_within(gpt2, 70) > rows_within(shape_of(LLAMA_1B), 70)
    assert tokens_within(gpt2) > tokens_within(shape_of(LLAMA_1B))


def test_something_is_always_in_flight(monkeypatch):
    monkeypatch.setitem(WORK_BYTES, "cpu", 1)
    assert rows_within(shape_of(LLAMA_1B), 128) == tokens_within(shape_of(LLAMA_1B)) == 1
