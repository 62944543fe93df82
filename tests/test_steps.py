"""A step of the engine: how many kernels it starts, and that it compiles as one graph."""

from dataclasses import replace

import pytest
import torch

from benchmarks.kernels import KernelCount
from benchmarks.models import NEVER
from src.models import model_class
from src.sampling import answers, engine
from src.sampling.engine import sample
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request
from tests.conftest import random_coconut, random_colar
from transformers import GPT2Config

SAMPLINGS = {
    "noise": Sampling("noise", noise_std=0.5),
    "shared prompt": Sampling("dropout", dropout_p=0.2, dropout_prompt=False, dropout_answer=True),
    "own prompts": Sampling("dropout", dropout_p=0.2),
}
PROMPTS = [[20, 21, 22, 23, 24], [30, 31]]  # one is padded


def gpt2(layers):
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": layers, "n_head": 4, "vocab_size": 300}
    model = model_class("coconut", "gpt2")(GPT2Config(**sizes)).eval()
    model.config.end_latent_token_id, model.config.eos_token_id = 1, NEVER
    return model


def request_of(sampling, n_samples=3, thoughts=4, answer=4):
    return Request(PROMPTS, [0, 1], n_samples, thoughts, answer, 3, sampling)


@torch.inference_mode()
def kernels(layers, sampling):
    """KernelCounts of a latent and of an answer step."""
    model, request = gpt2(layers), request_of(sampling)
    state = engine.start(model, request)
    engine.read_thought(model, sampling, state, 1)
    with KernelCount() as latent:
        engine.read_thought(model, sampling, state, 2)
    batch = answers._Batch(model, request)
    batch.enter(state)
    window, hidden = batch.rows.state.suffix.open(1)
    rows = batch.rows
    inputs = (rows.token, rows.position, state.rng_keys, state.prompt_lengths, state.prefix)
    with KernelCount() as answer:
        answers.answer_step(model, sampling, *inputs, window, hidden)
    return latent, answer


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_layer_starts_at_most_18_kernels_a_step_and_waits_for_nothing(name):
    few, many = (kernels(layers, SAMPLINGS[name]) for layers in (2, 12))
    for fewer, more in zip(few, many, strict=True):
        assert (more.kernels - fewer.kernels) / 10 <= 18
        assert more.synchronizations == 0
