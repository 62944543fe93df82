"""Answers decoded together: rows leave and enter, and nothing changes."""

import pytest
import torch

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


@pytest.mark.parametrize("room", [1, 12, 100])
@pytest.mark.parametrize("passes", [1, 3])
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
