"""Sampling on a GPU: as on the CPU, compiled as uncompiled, in bfloat16.

tests/test_memory.py has a GPU that runs out of memory.
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
from tests.conftest import RANDOM

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

SAMPLINGS = {
    "noise": Sampling("noise", noise_std=0.5),
    "shared prompt": Sampling("dropout", dropout_p=0.2, dropout_prompt=False),
    "own prompts": Sampling("dropout", dropout_p=0.2, dropout_answer=True),
}
PROMPTS = [[20, 21, 22, 23, 24], [30, 31, 32], [40, 41, 42, 43]]  # two are padded


def request_of(name, n_samples=8):
    return Request(PROMPTS, [7, 3, 11], n_samples, 6, 12, 5, SAMPLINGS[name])


def assert_close(actual, expected, tolerance=1e-3):
    shared = torch.minimum(actual.num_thoughts, expected.num_thoughts)
    assert (actual.num_thoughts == expected.num_thoughts).float().mean() > 0.9
    length = int(shared.min())
    actual, expected = (x.thoughts[:, :, :length].float().cpu() for x in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("kind", RANDOM)
def test_a_gpu_samples_what_a_cpu_samples(kind, name):
    model, _ = RANDOM[kind]()
    on_cpu = sample(model, request_of(name))
    on_gpu = sample(model.cuda(), request_of(name))
    assert_close(on_gpu, on_cpu)
    assert on_gpu.tokens == on_cpu.tokens


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_compiled_steps_sample_the_same(kind, name):
    missing = compilation.missing_compiler(torch.device("cuda"))
    if missing:
        pytest.skip(f"{missing} is missing")
    model = RANDOM[kind]()[0].cuda()
    eager = sample(model, request_of(name))
    model.compilation = compilation.Compilation()
    compiled = sample(model, request_of(name))
    assert model.compilation.seconds > 0
    assert_close(compiled, eager)
    assert compiled.tokens == eager.tokens


@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_bfloat16_thinks_nearly_what_float32_thinks(kind):
    model = RANDOM[kind]()[0].cuda()
    exact = sample(model, request_of("noise"))
    rounded = sample(model.to(torch.bfloat16), request_of("noise"))
    first = (x.thoughts[:, :, 0].float() for x in (rounded, exact))
    torch.testing.assert_close(*first, rtol=0.05, atol=0.05)
    assert torch.isfinite(rounded.thoughts).all()


def test_annotation_on_a_gpu_equals_that_on_a_cpu():
    model, request = RANDOM["coconut"]()[0], request_of("own prompts", 4)

    def is_right(q, ids):
        return sum(ids) % 2 == 0

    on_cpu = annotate(model, request, 8, is_right)
    on_gpu = annotate(model.cuda(), request, 8, is_right)
    assert torch.equal(on_gpu.corrects, on_cpu.corrects)
    assert torch.equal(on_gpu.estimations, on_cpu.estimations)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_the_samples_of_one(tmp_path):
    flags = "--data_path data/tiny_valid.json --limit 16 --n_samples 8 --batch_size 2".split()
    for count in (1, 2):
        line = command("infer_gpt2", *flags, "--output_dir", tmp_path / str(count), processes=count)
        subprocess.run(line, check=True, cwd=ROOT)
    one, two = ((tmp_path / f"{count}/samples.jsonl").read_text() for count in (1, 2))
    assert one == two
