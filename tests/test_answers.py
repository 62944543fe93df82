"""Answers decoded together: rows leave and enter, and nothing changes."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config

from src.models import model_class
from src.models.attention import _Prompt
from src.models.kv_cache import Grouping
from src.sampling import answers
from src.sampling.answers import decode_states
from src.sampling.engine import decode, think
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request
from tests.test_engine import prompts_of

pytestmark = pytest.mark.quick

SAMPLINGS = {
    "noise": Sampling("noise", noise_std=0.5),
    "own prompts": Sampling("dropout", dropout_p=0.2, dropout_answer=True, dropout_attention=True),
}
COUNTS = [4, 6, 2, 6, 5]  # rows of each request, whose prompts have different lengths


@pytest.fixture(params=SAMPLINGS)
def requests(request, backbone):
    model, tokenizer = backbone
    pairs = zip(prompts_of(tokenizer, model), COUNTS, strict=True)
    sampling = SAMPLINGS[request.param]
    return [Request([ids], [q], n, 6, 12, 7, sampling) for q, (ids, n) in enumerate(pairs)]


@torch.inference_mode()
def decoded_alone(model, requests):
    alone = []
    for request in requests:
        state, thoughts = think(model, request)
        trajectories = decode(model, request, state, thoughts)
        alone.append((trajectories.tokens[0], trajectories.finished[0]))
    return alone


@torch.inference_mode()
def decoded_together(model, requests, room):
    states = (think(model, request)[0] for request in requests)
    return list(decode_states(model, requests[0], states, room))


@pytest.mark.parametrize(("room", "passes"), [(1, 1), (12, 3), (100, 1)])
def test_rows_that_leave_and_enter_write_what_they_write_alone(
    backbone, requests, room, passes, monkeypatch
):
    model, _ = backbone
    alone = decoded_alone(model, requests)
    assert len({len(ids) for tokens, _ in alone for ids in tokens}) > 1  # not all end together
    monkeypatch.setitem(answers.PASSES, "cpu", passes)
    assert decoded_together(model, requests, room) == alone


def test_the_room_is_used_and_never_exceeded(backbone, requests, monkeypatch):
    model, _ = backbone
    in_flight, step = [], answers.answer_step

    def counting(model, sampling, token, *rows):
        in_flight.append(len(token))
        return step(model, sampling, token, *rows)

    monkeypatch.setattr(answers, "answer_step", counting)
    decoded_together(model, requests, room=12)
    assert max(in_flight) <= 12
    assert max(in_flight) > 6  # rows of several requests at once


@torch.inference_mode()
def test_a_state_stays_as_it_is(backbone, requests):
    model, _ = backbone
    state, thoughts = think(model, requests[1])
    first = decode(model, requests[1], state, thoughts)
    again = decode(model, requests[1], state, thoughts)
    assert again.tokens == first.tokens


@torch.inference_mode()
@pytest.mark.parametrize("passes", [1, 4])
def test_finished_rows_stay_within_the_positions_of_the_model(passes, monkeypatch):
    """The prompt, its thoughts and the answer fill the model's positions."""
    ids, thoughts, answer, sampling = list(range(20, 30)), 4, 12, Sampling("noise", noise_std=0.5)
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 60, "initializer_range": 0.3}
    config = GPT2Config(n_positions=len(ids) + thoughts + answer, **sizes)
    model = model_class("coconut", "gpt2")(config).eval()
    model.config.end_latent_token_id, model.config.eos_token_id = 1, -1
    requests = [Request([ids], [q], 16, thoughts, answer, 7, sampling) for q in range(4)]
    written = [ids for tokens, _ in decoded_alone(model, requests) for ids in tokens]
    counts = Counter(token for ids in written for token in set(ids))
    model.config.eos_token_id = min(counts, key=lambda token: abs(counts[token] - 40))
    alone = decoded_alone(model, requests)
    assert len({len(ids) for tokens, _ in alone for ids in tokens}) > 2
    monkeypatch.setitem(answers.PASSES, "cpu", passes)
    assert decoded_together(model, requests, room=32) == alone


def test_a_bias_of_prompts_that_are_read_in_several_parts_stays_aligned(backbone):
    """CUDA's attention refuses a bias whose rows do not start at a multiple of 16 bytes."""
    model, _ = backbone
    lengths = torch.tensor([3, 5, 5, 4, 2])
    _, prefix = model.prefill(model.embed(torch.ones(5, 5, dtype=torch.int64)), lengths)
    groups = torch.cat((torch.arange(1, 5), torch.zeros(40, dtype=torch.int64)))
    prompt = _Prompt(prefix.select(groups), 0, len(groups))
    assert prompt.grouping.repeats is not None
    assert prompt.bias.shape[-1] == 5
    assert prompt.bias.stride(0) % 16 == 0


def test_a_large_group_beside_small_ones_is_read_in_several_parts(backbone, requests):
    model, _ = backbone
    groups = torch.cat((torch.arange(1, 5), torch.zeros(40, dtype=torch.int64)))
    grouping = Grouping.of(groups, 5)
    assert len(grouping.pick) <= 2 * len(groups)
    assert torch.equal(grouping.pick[grouping.place], torch.arange(44))
    assert torch.equal(grouping.repeats[grouping.place // grouping.members], groups)
    counts = zip(requests, (40, 1, 1, 1, 1), strict=True)
    together = [replace(request, n_samples=n) for request, n in counts]
    assert decoded_together(model, together, room=1000) == decoded_alone(model, together)
