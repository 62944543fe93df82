"""A step of the engine: how many kernels it starts, and that it compiles as one graph."""

from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters
from transformers import GPT2Config, LlamaConfig

from benchmarks.kernels import KernelCount
from benchmarks.models import NEVER
from src.models import model_class
from src.runs import job
from src.sampling import answers, compilation, engine
from src.sampling.engine import sample
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request

SAMPLINGS = {
    "noise": Sampling("noise", noise_std=0.5),
    "shared prompt": Sampling("dropout", dropout_p=0.2, dropout_prompt=False, dropout_answer=True),
    "own prompts": Sampling("dropout", dropout_p=0.2),
    "svp, tokens": Sampling("svp+tokens", svp_alpha=0.2, top_p=0.9),
}
# A layer's own are 18 at most; a perturbed weight takes two products, a scale and a sum more.
MOST_KERNELS = {"svp, tokens": 22}
PROMPTS = [[20, 21, 22, 23, 24], [30, 31]]  # one is padded


def gpt2(layers):
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": layers, "n_head": 4, "vocab_size": 300}
    model = model_class("coconut", "gpt2")(GPT2Config(**sizes)).eval()
    model.config.end_latent_token_id, model.config.eos_token_id = 1, NEVER
    return model


def llama(layers):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=300,
    )  # fmt: skip
    model = model_class("coconut", "llama")(config).eval()
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
    window, mask = batch.rows.state.suffix.open(1)
    rows = batch.rows
    inputs = (rows.token, rows.position, state.rng_keys, state.prompt_lengths, state.prefix)
    with KernelCount() as answer:
        answers.answer_step(model, sampling, *inputs, window, mask)
    return latent, answer


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_layer_starts_at_most_few_kernels_a_step_and_waits_for_nothing(name):
    few, many = (kernels(layers, SAMPLINGS[name]) for layers in (2, 12))
    for fewer, more in zip(few, many, strict=True):
        assert (more.kernels - fewer.kernels) / 10 <= MOST_KERNELS.get(name, 18)
        assert more.synchronizations == 0


@torch.inference_mode()
def steps(model, sampling, run, n_samples=3):
    """The results of a latent step in which rows read their second thought, and of an answer step.

    run(step, *inputs) computes them.
    """
    request = request_of(sampling, n_samples)
    state = engine.start(model, request)
    engine.read_thought(model, sampling, state, 1)
    window, mask = state.suffix.open(1)
    rows = (state.rng_keys, state.prompt_lengths, state.prefix, window, mask)
    numbers = torch.full_like(state.prompt_lengths, 2)
    latent = run(engine.thought_step, model, sampling, state.thought, numbers, *rows)
    token = torch.arange(len(state))
    return *latent, run(answers.answer_step, model, sampling, token, numbers + 5, *rows)


every_kind = pytest.mark.parametrize(
    ("make", "name"),
    [
        (gpt2, "noise"),
        (gpt2, "own prompts"),
        (llama, "shared prompt"),
        (llama, "svp, tokens"),
    ],
)


@every_kind
def test_steps_are_traced_as_one_graph_that_gives_the_eager_numbers(make, name):
    """fullgraph=True raises where a step can't be one graph. Without code generation."""
    model, sampling = make(1), SAMPLINGS[name]

    def traced(step, *inputs):
        return torch.compile(step, fullgraph=True, dynamic=True, backend="eager")(*inputs)

    assert_equal(steps(model, sampling, traced), steps(model, sampling, lambda f, *x: f(*x)))
    graphs = counters["stats"]["unique_graphs"]
    steps(model, sampling, traced, n_samples=70)
    assert counters["stats"]["unique_graphs"] == graphs  # they serve batches of all sizes


@pytest.mark.slow
@every_kind
def test_a_compiled_model_samples_the_same(make, name):
    if compilation.missing_compiler(torch.device("cpu")):
        pytest.skip("no C++ compiler")
    model, request = make(2), request_of(SAMPLINGS[name])
    eager = sample(model, request)
    model.compilation = compilation.Compilation()
    compiled = sample(model, request)
    assert model.compilation.seconds > 0
    assert compiled.tokens == eager.tokens
    assert_equal((compiled.thoughts,), (eager.thoughts,))


def test_a_step_that_does_not_compile_runs_as_it_is_unless_it_must(monkeypatch, capsys):
    def fails(step):
        def compiled(*inputs):
            raise BackendCompilerFailed(None, RuntimeError("no kernel"), None)

        return compiled

    monkeypatch.setattr(compilation, "compiled", fails)
    model, request = gpt2(1), request_of(SAMPLINGS["noise"])
    eager = sample(model, request)
    model.compilation = compilation.Compilation(required=False)
    assert sample(model, request).tokens == eager.tokens
    assert model.compilation is None
    assert capsys.readouterr().err.count("steps are not compiled") == 1
    model.compilation = compilation.Compilation()
    with pytest.raises(BackendCompilerFailed):
        sample(model, request)


def test_the_speed_of_a_job_does_not_count_what_compiling_takes(monkeypatch):
    """60 s of compiling at the first call; a sample of a question takes 0.1 s."""
    model, clock, counts = SimpleNamespace(compilation=compilation.Compilation()), [0.0], []

    def sample_slowly(model, request):
        compiling = 0 if counts else 60
        counts.append(request.n_samples)
        model.compilation.seconds += compiling
        clock[0] += compiling + 0.1 * 2 * request.n_samples

    monkeypatch.setattr(compilation, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(job, "sample", sample_slowly)
    run = SimpleNamespace(
        rows=[0, 1, 2], arguments=SimpleNamespace(batch_size=2), backbone=lambda: (model, None),
        request=lambda batch: request_of(SAMPLINGS["noise"], n_samples=8),
    )  # fmt: skip
    assert job.Job.seconds_per_trajectory(run) == pytest.approx(0.1)
    assert counts == [1, 2, 4]


def assert_equal(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
