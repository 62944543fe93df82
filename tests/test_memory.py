"""Work is bounded by bytes for any model, and results do not depend on the bound."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, LlamaConfig

from src.runs import annotate as annotate_job
from src.runs import evaluate, job
from src.sampling import memory
from src.sampling.engine import sample, think
from src.sampling.logits import next_tokens, token_log_probs
from src.sampling.memory import (
    WORK_BYTES,
    Budget,
    cached_numbers,
    logits_within,
    question_parts,
    rows_in_flight,
    rows_within,
    set_budget,
    tokens_within,
)
from src.sampling.rollouts import annotate
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request
from src.search.beam_search import SearchPlan, beam_search
from src.search.best_of_n import sample_pool
from src.search.guides import AgreementGuide, RewardGuide
from tests.commands import (
    assert_one_line_error,
    assert_success,
    command,
    infer_command,
    outputs,
    run_here,
)
from tests.conftest import (
    NOISE,
    PROMPTS,
    QUESTIONS,
    RANDOM,
    random_coconut,
    random_reward_model,
)
from utils import device_memory
from utils.errors import UserError

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
DROPOUT = Sampling("dropout", dropout_p=0.3)
SHARED_PROMPT = replace(DROPOUT, dropout_prompt=False)


def model_of(config, dtype=torch.float32):
    """What the bounds need of a model."""
    return SimpleNamespace(config=config, dtype=dtype, device=torch.device("cpu"))


def request(sampling, n=3):
    return Request(PROMPTS, QUESTIONS, n, 4, 5, 5, sampling)


@pytest.mark.parametrize("name", RANDOM)
def test_cached_numbers_are_those_of_a_position_in_the_cache(name):
    model, _ = RANDOM[name]()
    cache = model.new_cache(3, 5)
    assert sum(x.numel() for x in cache.layers) == 3 * 5 * cached_numbers(model.config)


def test_rows_of_a_1b_llama_fit_the_bound():
    positions = 128  # 64 thoughts and 64 answer tokens
    rows = rows_within(model_of(LLAMA_1B), positions, new=1)
    cache_bytes = positions * cached_numbers(LLAMA_1B) * 4
    used = rows * cache_bytes * memory._COPIES
    assert 0.45 * WORK_BYTES["cpu"] < used <= WORK_BYTES["cpu"] / 2
    assert rows_within(model_of(LLAMA_1B, torch.bfloat16), positions, new=1) > 1.9 * rows
    # What a row reads at once counts, too, and so does a prompt that it holds.
    assert rows_within(model_of(LLAMA_1B), positions, new=128) < 0.8 * rows
    assert rows_within(model_of(LLAMA_1B), positions, 1, prompt=128) < 0.6 * rows
    assert rows_within(model_of(LLAMA_1B), positions, 1, prompt=128, sharers=64) > 0.9 * rows


def test_logits_of_a_large_vocabulary_fit_their_share():
    rows = logits_within(model_of(LLAMA_1B))
    assert 1 < rows * 128_256 * 4 * 3 <= WORK_BYTES["cpu"] / 16
    assert logits_within(model_of(GPT2Config())) > 2 * rows


def test_a_smaller_model_computes_more_rows_at_once():
    gpt2 = model_of(GPT2Config(n_layer=6))
    assert rows_within(gpt2, 70, 1) > rows_within(model_of(LLAMA_1B), 70, 1)
    assert tokens_within(gpt2) > tokens_within(model_of(LLAMA_1B))


def test_at_least_one_row_and_token_fit_any_bound(monkeypatch):
    monkeypatch.setitem(WORK_BYTES, "cpu", 1)
    llama = model_of(LLAMA_1B)
    assert rows_within(llama, 128, 1) == tokens_within(llama) == logits_within(llama) == 1
    assert rows_in_flight(llama, request(DROPOUT)) == 1
    assert [len(part.prompts) for _, part in question_parts(request(DROPOUT), 1)] == [1, 1, 1]


def test_more_samples_of_a_shared_prompt_cost_their_suffix_only():
    """Bytes of the caches: N = 256 against N = 64, and what a row is thought to cost."""
    model, long = random_coconut()[0], [[20] * 60]
    sizes = {
        n: bytes_of_caches(model, Request(long, [0], n, 4, 5, 5, SHARED_PROMPT)) for n in (64, 256)
    }
    position = cached_numbers(model.config) * 4
    assert sizes[64]["prefix"] == sizes[256]["prefix"] == 60 * position
    assert sizes[256]["suffix"] == 4 * sizes[64]["suffix"] == 256 * 9 * position
    resampled = Request(long, [0], 64, 4, 5, 5, DROPOUT)
    assert bytes_of_caches(model, resampled)["prefix"] == 64 * 60 * position
    shared = replace(resampled, sampling=SHARED_PROMPT)
    assert rows_in_flight(model, shared) > 3 * rows_in_flight(model, resampled)


def bytes_of_caches(model, request):
    """Of the State before the answers."""
    with torch.inference_mode():
        state, _ = think(model, request)
    prefix = sum(x.nbytes for pair in state.prefix.layers for x in pair)
    return {"prefix": prefix, "suffix": sum(x.nbytes for x in state.suffix.layers)}


def test_models_that_work_together_share_a_budget(monkeypatch):
    models = [model_of(GPT2Config()), model_of(GPT2Config(n_layer=2))]
    monkeypatch.setattr(device_memory, "free", lambda device: 3 * device_memory.GIB)
    monkeypatch.setattr(device_memory, "held", lambda device: device_memory.GIB)
    budget = set_budget(models, 128)
    assert budget.size == 1.5 * device_memory.GIB  # half of what is free
    rows = [rows_within(model, 128, 1) for model in models]
    assert budget.halve()
    assert all(rows_within(m, 128, 1) <= n / 2 for m, n in zip(models, rows, strict=True))
    # 90 % of the limit, less what the process holds, and down to a size that is seldom missed.
    assert set_budget(models, 128, gib=4).size == 2 * device_memory.GIB
    assert set_budget(models, 128, gib=64).size == 48 * device_memory.GIB
    monkeypatch.setattr(device_memory, "free", lambda device: 0)
    least = set_budget(models, 128)
    assert not least.halve()
    assert rows_within(models[0], 128, 1) >= 1


def test_a_limit_below_what_the_process_holds_names_one_that_works(monkeypatch):
    monkeypatch.setattr(device_memory, "held", lambda device: device_memory.GIB)
    model = model_of(GPT2Config())
    with pytest.raises(UserError, match=r"--memory_gib 1: .* take 1.00 GiB on cpu") as error:
        set_budget([model], 128, gib=1)
    enough = float(str(error.value).rpartition(" ")[2])
    assert set_budget([model], 128, enough).size > 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be .."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_out_of_memory_is_known_by_its_message(error, expected):
    assert device_memory.ran_out(error) == expected


@pytest.mark.skipif(device_memory._malloc_trim() is None, reason="glibc only")
def test_memory_that_an_earlier_job_freed_is_not_held():
    cpu = torch.device("cpu")
    blocks = [bytearray(b"x" * 50_000) for _ in range(4000)]
    last = blocks[-1]  # above the others: the C library can't give them back by itself
    before = device_memory.held(cpu)
    del blocks
    set_budget([model_of(GPT2Config())], 128)
    assert device_memory.held(cpu) < before - (150 << 20)
    assert last


def right(q, ids):
    """An arbitrary rule, by which random answers are right about as often as not."""
    return (q + sum(ids)) % 3 == 1


def all_results(model, reward_model, request):
    """What sampling, annotation, best-of-N with the Bayesian vote and searches give."""
    labelled = annotate(model, request, 2, right)
    counters = {1: Counter(), 3: Counter()}
    pool, fields = sample_pool(model, request, [1, 3], counters, len, reward_model)
    beams = beam_search(model, RewardGuide(reward_model), request, SearchPlan(2, 2))
    plan = SearchPlan(2, 2, "dvts", "last", "answer")
    leaves = beam_search(model, AgreementGuide(model, len), request, plan)
    searched = [beams.trajectories, leaves.trajectories]
    every = [sample(model, request), labelled.trajectories, pool, *searched]
    tokens = [trajectories.tokens for trajectories in every]
    numbers = [trajectories.thoughts for trajectories in every]
    numbers += [labelled.estimations, labelled.skipped, beams.rewards]
    numbers += [torch.tensor(scores) for scores in fields["log_probs"]]
    costs = [{k: n for k, n in c.items() if "seconds" not in k} for c in counters.values()]
    counts = [costs, fields["candidates"], beams.counts, leaves.counts, labelled.skipped.tolist()]
    return tokens + counts, numbers, fields["scores"]


@pytest.mark.parametrize(
    ("name", "sampling"),
    [("coconut", NOISE), ("coconut", SHARED_PROMPT), ("coconut", DROPOUT), ("colar", DROPOUT)],
)
def test_results_do_not_depend_on_the_budget(name, sampling):
    model, _ = RANDOM[name]()
    reward_model = random_reward_model(model)
    exact, numbers, scores = all_results(model, reward_model, request(sampling))
    model.budget = reward_model.budget = Budget(1)
    exact_of_tiny, numbers_of_tiny, scores_of_tiny = all_results(
        model, reward_model, request(sampling)
    )
    assert exact_of_tiny == exact
    torch.testing.assert_close(numbers_of_tiny, numbers, rtol=1e-4, atol=1e-4)
    for of_tiny, expected in zip(scores_of_tiny, scores, strict=True):
        for row_of_tiny, row in zip(of_tiny, expected, strict=True):
            assert row_of_tiny == pytest.approx(row, abs=2e-4)


def test_logits_in_chunks_give_the_same_tokens_and_log_probs(monkeypatch):
    model, _ = random_coconut()
    hidden = torch.randn(3, 4, 32)
    ids = torch.arange(12).view(3, 4)
    with torch.no_grad():
        logits = model.lm_head(hidden)
        expected = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        for size in (None, 1):
            model.budget = size and Budget(size)
            assert torch.equal(
                next_tokens(model, hidden.flatten(0, 1)), logits.flatten(0, 1).argmax(-1)
            )
            log_probs = token_log_probs(model, model.lm_head.weight, hidden, ids)
            torch.testing.assert_close(log_probs, expected)


CPU_FAULT = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
)
FAULTS = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_FAULT), MemoryError()]
INFER = ("--data_path", "data/tiny_valid.json", "--limit", 8, "--n_samples", 2, "--batch_size", 2)


def failing(function, faults):
    """The function, but calls whose number, from 1 on, is in ``faults`` end in this exception."""
    number = 0

    def wrapped(*args, **kwargs):
        nonlocal number
        number += 1
        result = function(*args, **kwargs)
        if number in faults:
            raise faults[number]
        return result

    return wrapped


def test_a_run_that_ran_out_of_memory_goes_on_with_less(tmp_path, monkeypatch):
    """The distances come late in a unit: what its pool cost must not be counted twice."""
    line = infer_command(*INFER, "--max_new_tokens", 8)
    assert_success(run_here([*line, "--output_dir", str(tmp_path / "whole")]))
    distances = failing(evaluate.thought_distances, dict(zip((2, 3, 5), FAULTS, strict=True)))
    monkeypatch.setattr(evaluate, "thought_distances", distances)
    result = assert_success(run_here([*line, "--output_dir", str(tmp_path / "x")]))
    assert result.stderr.count("warning: out of memory on cpu: going on with smaller batches") == 1
    assert outputs(tmp_path / "x") == outputs(tmp_path / "whole")
    assert costs(tmp_path / "x") == costs(tmp_path / "whole")


def costs(folder):
    """What a question cost, without times."""
    speed = json.loads((folder / "metrics.json").read_text())["speed"]["per_question"]
    return {n: {k: v for k, v in cost.items() if "seconds" not in k} for n, cost in speed.items()}


def test_an_annotation_that_ran_out_of_memory_writes_the_same_shards(tmp_path, monkeypatch):
    flags = (*INFER, "--n_samples_per_step", 2, "--max_new_tokens", 8, "--shard_size", 4)
    line = command("annotate_data", *flags, "--save_path", tmp_path)
    assert_success(run_here([*line, "--name", "whole"]))
    monkeypatch.setattr(annotate_job, "annotate", failing(annotate, {2: FAULTS[0], 4: FAULTS[0]}))
    result = assert_success(run_here([*line, "--name", "x"]))
    assert result.stderr.count("out of memory") == 1
    for path in (tmp_path / "whole").glob("shard_*"):
        assert (tmp_path / "x" / path.name).read_bytes() == path.read_bytes()


def test_an_annotation_that_runs_out_of_memory_while_writing_counts_a_unit_once(
    tmp_path, monkeypatch
):
    line = command("annotate_data", *INFER, "--n_samples_per_step", 0, "--save_path", tmp_path)
    write_part = failing(annotate_job.shards.write_part, {1: FAULTS[2]})
    monkeypatch.setattr(annotate_job.shards, "write_part", write_part)
    seen, work_on = [], annotate_job.Annotation.work_on

    def watched(annotation, unit):
        result = work_on(annotation, unit)
        seen.append(annotation.seen)
        return result

    monkeypatch.setattr(annotate_job.Annotation, "work_on", watched)
    result = assert_success(run_here([*line, "--name", "x"]))
    assert result.stderr.count("out of memory") == 1
    assert seen == [2, 4, 6, 8]


def test_memory_that_is_never_enough_is_a_one_line_error(tmp_path, monkeypatch):
    line = infer_command(*INFER, "--output_dir", tmp_path / "x")
    always = failing(evaluate.sample_pool, dict.fromkeys(range(99), FAULTS[0]))
    monkeypatch.setattr(evaluate, "sample_pool", always)
    result = run_here(line)
    parts = ("out of memory on cpu", "--batch_size 2", "--memory_gib")
    assert_one_line_error(result, *parts, after_progress=True)


@pytest.mark.parametrize(
    ("gib", "part"), [(0.1, "models and libraries take"), (0, "must be a number above 0")]
)
def test_too_little_memory_is_a_one_line_error_and_writes_nothing(gib, part, tmp_path):
    line = infer_command(*INFER, "--output_dir", tmp_path / "x", "--memory_gib", gib)
    result = run_here(line)
    assert result.returncode == 2
    assert_one_line_error(result, "--memory_gib", part)
    assert not (tmp_path / "x").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_annotation_on_a_full_gpu_goes_on_with_less(tmp_path, monkeypatch):
    """Rollouts of 64 trajectories that need gigabytes at once, where 256 MiB are left."""
    flags = ("--data_path", "data/tiny_valid.json", "--limit", 8, "--n_samples", 8)
    flags += ("--n_samples_per_step", 256, "--max_new_tokens", 12, "--save_path", tmp_path)
    line, device = command("annotate_data", *flags), torch.device("cuda", 0)
    assert_success(run_here([*line, "--name", "whole"]))

    def budget_beyond_what_is_left(models, positions, gib):
        budget = set_budget(models, positions, gib)
        budget.size = 64 * device_memory.GIB
        device_memory.cap(device, device_memory.held(device) + (256 << 20))
        return budget

    monkeypatch.setattr(job, "set_budget", budget_beyond_what_is_left)
    try:
        result = assert_success(run_here([*line, "--name", "x"]))
    finally:
        device_memory.cap(device, None)
    assert result.stderr.count("warning: out of memory on cuda") == 1
    shards = [load_file(tmp_path / name / "shard_00000.safetensors") for name in ("x", "whole")]
    labels, expected = ({k: v for k, v in s.items() if "estimations" in k} for s in shards)
    assert labels.keys() == expected.keys()
    for key, values in expected.items():  # other batches round differently: few rollouts change
        assert (labels[key] - values).abs().mean() < 0.02
