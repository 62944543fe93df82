"""Sampling on a GPU: as on the CPU, compiled as uncompiled, in bfloat16, without waiting.

python -m pytest -m gpu -n 0

Random weights magnify rounding, so a few trajectories may part. tests/test_memory.py has
a GPU that runs out of memory.
"""

import subprocess

import pytest
import torch

from src.sampling import compilation
from src.sampling.engine import sample
from src.sampling.rollouts import annotate
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request
from tests.commands import ROOT, command
from tests.conftest import PROMPTS, QUESTIONS, RANDOM
from tests.test_steps import gpt2, llama, steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

SAMPLINGS = {
    "noise": Sampling("noise", noise_std=0.5),
    "shared prompt": Sampling("dropout", dropout_p=0.2, dropout_prompt=False),
    "own prompts": Sampling("dropout", dropout_p=0.2, dropout_answer=True),
    "svp, tokens": Sampling("svp+tokens", svp_alpha=0.2, top_p=0.9),
}


def request_of(name, n_samples=16):
    return Request(PROMPTS, QUESTIONS, n_samples, 6, 12, 5, SAMPLINGS[name])


def model_of(kind):
    """A random model in float32, as commands load it; conftest builds LLaMAs in float64."""
    return RANDOM[kind]()[0].float()


def assert_close(actual, expected, tolerance=1e-3):
    """The first two thoughts are close, and nearly all answers are equal."""
    first = (x.thoughts[:, :, :2].float().cpu() for x in (actual, expected))
    torch.testing.assert_close(*first, rtol=tolerance, atol=tolerance)
    pairs = zip(answers_of(actual), answers_of(expected), strict=True)
    equal = [one == other for one, other in pairs]
    assert sum(equal) >= 0.95 * len(equal)


def answers_of(trajectories):
    return [ids for of_question in trajectories.tokens for ids in of_question]


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("kind", RANDOM)
def test_a_gpu_samples_what_a_cpu_samples(kind, name):
    model = model_of(kind)
    on_cpu = sample(model, request_of(name))
    on_gpu = sample(model.cuda(), request_of(name))
    assert_close(on_gpu, on_cpu)


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_compiled_steps_sample_the_same(kind, name):
    missing = compilation.missing_compiler(torch.device("cuda"))
    if missing:
        pytest.skip(f"{missing} is missing")
    model = model_of(kind).cuda()
    eager = sample(model, request_of(name))
    model.compilation = compilation.Compilation()
    compiled = sample(model, request_of(name))
    assert model.compilation.seconds > 0
    assert_close(compiled, eager)


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_step_does_not_wait_for_the_gpu(make, name):
    model = make(2).cuda()

    def checked(step, *inputs):
        inputs = [x.cuda() if isinstance(x, torch.Tensor) else x for x in inputs]
        torch.cuda.set_sync_debug_mode("error")  # what waits raises
        try:
            return step(*inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    results = steps(model, SAMPLINGS[name], checked)
    assert all(torch.isfinite(result).all() for result in results)


@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_bfloat16_thinks_nearly_what_float32_thinks(kind):
    model = model_of(kind).cuda()
    exact = sample(model, request_of("noise"))
    rounded = sample(model.to(torch.bfloat16), request_of("noise"))
    first = (x.thoughts[:, :, 0].float() for x in (rounded, exact))
    torch.testing.assert_close(*first, rtol=0.1, atol=0.1)
    assert torch.isfinite(rounded.thoughts).all()


def test_annotation_on_a_gpu_is_close_to_that_on_a_cpu():
    model, request = model_of("coconut"), request_of("own prompts", 8)

    def is_right(q, ids):
        return sum(ids) % 2 == 0

    on_cpu = annotate(model, request, 8, is_right)
    on_gpu = annotate(model.cuda(), request, 8, is_right)
    assert (on_gpu.corrects == on_cpu.corrects).float().mean() >= 0.9
    assert (on_gpu.estimations - on_cpu.estimations).abs().mean() < 0.05


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_the_samples_of_one(tmp_path):
    flags = "--data_path data/tiny_valid.json --limit 16 --n_samples 8 --batch_size 2".split()
    for count in (1, 2):
        line = command("infer_gpt2", *flags, "--output_dir", tmp_path / str(count), processes=count)
        subprocess.run(line, check=True, cwd=ROOT)
    one, two = ((tmp_path / f"{count}/samples.jsonl").read_text() for count in (1, 2))
    assert one == two
