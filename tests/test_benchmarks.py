"""The benchmark: its plain ways compute what the engine computes, its counts are right."""

import json
import platform
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import all as all_workloads
from benchmarks import formats, page, plain, sampling
from benchmarks.all import WORKLOADS, measure
from benchmarks.annotation_memory import VARIANT_THOUGHTS, peak
from benchmarks.bench import VARIANTS, Bench, NotMeasured
from benchmarks.counts import (
    Pass,
    annotation_passes,
    attention_operations,
    beam_search_passes,
    least_bytes,
    operations,
    product_operations,
    run_products,
    sampling_passes,
    scoring_passes,
    training_operations,
)
from benchmarks.figures import save_figures
from benchmarks.kernels import KernelCount
from benchmarks.models import build_backbone, build_reward_model, random_prompts
from benchmarks.reward import SCORES, backward
from benchmarks.sizes import SIZES
from benchmarks.timing import Call, alternate
from src.sampling.engine import sample
from src.sampling.rollouts import annotate
from src.sampling.samplers import DETERMINISTIC, Sampling
from src.sampling.trajectories import Request
from src.search.beam_search import SearchPlan, beam_search
from src.search.guides import RewardGuide
from tests.commands import ROOT

TINY = ("tiny-gpt2", "tiny-llama")
NO_NOISE = Sampling("noise", noise_std=0.0)
every_shape = pytest.mark.parametrize("shape", TINY)


def backbone(shape):
    return build_backbone(shape, "float32", "cpu")


def request(model, sampling, n_samples=3, questions=2):
    ids = random_prompts(model.config, questions, 7).tolist()
    return Request(ids, list(range(questions)), n_samples, 4, 5, 0, sampling)


def product_flops(call):
    """What torch counts for products with weights; attention is not among them."""
    with FlopCounterMode(display=False) as counter:
        call()
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))


@every_shape
@pytest.mark.parametrize("last_logits", [False, True])
def test_plain_sampling_is_the_engines_without_randomness(shape, last_logits):
    model = backbone(shape)
    asked = request(model, DETERMINISTIC, n_samples=1)
    thoughts, answers = plain.sample(model, asked, last_logits)
    trajectories = sample(model, asked)
    torch.testing.assert_close(thoughts, trajectories.thoughts[:, 0], rtol=1e-4, atol=1e-4)
    assert answers.tolist() == [tokens for (tokens,) in trajectories.tokens]


@every_shape
def test_plain_dropout_drops_where_the_engine_drops(shape, monkeypatch):
    model, dropped = backbone(shape), []
    functions = SimpleNamespace(dropout=lambda out, p: dropped.append(p) or out)
    monkeypatch.setattr(plain, "F", functions)
    plain.sample(model, request(model, VARIANTS["dropout, own prompts"]))
    sites = len(model.dropout_sites) * len(model.blocks)
    assert dropped == [0.2] * (sites * 4)  # the prompt and 3 of 4 thoughts
    plain.sample(model, request(model, VARIANTS["dropout, shared prompt"]))
    assert len(dropped) == sites * (4 + 3)


@every_shape
def test_plain_beam_search_is_ours_without_noise(shape):
    model, reward_model = backbone(shape), build_reward_model(shape, "float32", "cpu")
    asked = request(model, NO_NOISE, questions=1)
    thoughts, rewards, answers = plain.beam_search(model, reward_model, asked, 2, 2)
    ours = beam_search(model, RewardGuide(reward_model), asked, SearchPlan(2, 2))
    torch.testing.assert_close(thoughts, ours.trajectories.thoughts[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rewards, ours.rewards[0].sum(-1), rtol=1e-4, atol=1e-4)
    assert answers.tolist() == ours.trajectories.tokens[0]


@every_shape
def test_plain_rewards_and_gradients_are_ours(shape):
    model = build_reward_model(shape, "float32", "cpu").double()
    ids, thoughts = random_prompts(model.config, 2, 7), torch.randn(2, 3, 4, 32).double()
    labels, gradients = torch.rand(2, 3, 4), {}
    for name, scores in SCORES.items():
        model.zero_grad()
        backward(model, scores, ids, thoughts, labels, "float32")
        gradients[name] = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    ours, expected = (scores(model, ids, thoughts) for scores in SCORES.values())
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients["ours"], gradients["plain"], rtol=1e-4, atol=1e-5)


@every_shape
@pytest.mark.parametrize("variant", VARIANTS)
def test_products_of_sampling_are_those_that_torch_counts(shape, variant):
    model = backbone(shape)
    asked = request(model, VARIANTS[variant])
    passes = sampling_passes(asked)
    counted = product_operations(model, passes)
    assert counted == product_flops(lambda: sample(model, asked))
    assert counted == product_flops(lambda: run_products(model, passes))


@pytest.mark.parametrize(
    "shape, variant", [("tiny-gpt2", "noise"), ("tiny-llama", "dropout, own prompts")]
)
def test_products_of_annotation_are_those_that_torch_counts(shape, variant):
    model, answers = backbone(shape), iter(range(10**6))
    asked = replace(request(model, VARIANTS[variant]), latent_length=2, max_new_tokens=2)
    flops = product_flops(lambda: annotate(model, asked, 3, lambda q, ids: next(answers) % 2))
    assert product_operations(model, annotation_passes(asked, 3)) == flops


@every_shape
def test_products_of_search_and_rewards_are_those_that_torch_counts(shape):
    """Up to the last block of the reward model's prompts, which has more than keys and values."""
    model, reward_model = backbone(shape), build_reward_model(shape, "float32", "cpu")
    asked = request(model, VARIANTS["noise"])
    generator, rewards = beam_search_passes(asked, 2, 3)
    search = (model, RewardGuide(reward_model), asked, SearchPlan(2, 3))
    flops = product_flops(lambda: beam_search(*search))
    counted = product_operations(model, generator) + product_operations(reward_model, rewards)
    assert counted == pytest.approx(flops, rel=0.02)
    ids, thoughts = random_prompts(model.config, 2, 7), torch.randn(2, 3, 4, 32)
    passes = scoring_passes(2, 7, 3, 4)
    flops = product_flops(
        lambda: backward(
            reward_model, SCORES["ours"], ids, thoughts, torch.rand(2, 3, 4), "float32"
        )
    )
    counted = training_operations(reward_model, passes)
    counted -= 3 * attention_operations(reward_model, passes)
    assert counted == pytest.approx(flops, rel=0.03)


def test_counts_of_a_pass_are_those_by_hand():
    model = backbone("tiny-gpt2")  # 3 layers, width 32: 12 * 32^2 weights a layer
    work = Pass(rows=2, new=1, last=1, prompt=7, groups=1, suffix=3, logits=2)
    weights = 3 * 12 * 32**2 + 32 * 300
    assert product_operations(model, [work]) == 2 * 2 * weights
    assert attention_operations(model, [work]) == 3 * 2 * (4 * 32) * (7 + 3 + 1)
    # A key and a value of each layer: the prompt once, two rows of 4 positions.
    assert least_bytes(model, [work]) == 4 * (weights + 3 * 2 * 32 * (7 + 2 * 4))
    prompt = Pass(rows=1, new=5, last=1)
    block = 2 * 32**2 * 12  # of the last one, keys and values of all, and the rest of one token
    assert product_operations(model, [prompt]) == 2 * 5 * block + 2 * 32**2 * (2 * 5 + 10)
    assert attention_operations(model, [prompt]) == 4 * 32 * (2 * (1 + 2 + 3 + 4 + 5) + 5)
    assert operations(model, [work, prompt]) == sum(
        of(model, [part])
        for of in (product_operations, attention_operations)
        for part in (work, prompt)
    )


def test_calls_alternate_and_the_first_run_of_a_cpu_counts():
    order = []
    calls = {
        name: Call(lambda x, name=name: order.append(name + x), lambda: "!") for name in ("a", "b")
    }
    timings = alternate(calls, "cpu", 3)
    assert order == ["a!", "b!"] * 3
    assert all(len(timing.times) == 3 for timing in timings.values())
    assert timings["a"].times[0] == timings["a"].first_s


@pytest.mark.skipif(platform.system() != "Linux", reason="the peak can't be reset")
def test_peak_memory_of_a_call_is_measured():
    timing = alternate({"": Call(lambda: torch.ones(1 << 24).sum())}, "cpu", 1)[""]
    assert 60 < timing.work_mib < 80


@pytest.mark.skipif(platform.system() != "Linux", reason="the peak can't be reset")
@pytest.mark.parametrize("variant", VARIANT_THOUGHTS)
def test_annotation_stays_within_its_memory(variant):
    highest, before = peak("tiny-gpt2", variant, gib=4, n_rollouts=4)
    assert before < highest < 4096


def test_kernels_are_counted_without_views():
    x = torch.ones(4, 4)
    with KernelCount() as count:
        (x.view(16) + 1).mul_(2).view(4, 4).mT.any().item()
    assert (count.kernels, count.synchronizations) == (4, 1)  # add, mul_, any, and the item


def test_changed_predictions_of_a_number_format_are_shares(monkeypatch):
    monkeypatch.setattr(formats, "QUESTIONS", 2)
    monkeypatch.setattr(formats, "SAMPLES", 2)
    rows = formats.changed(["tiny-gpt2"], "bfloat16", "cpu")
    assert [row["what"] for row in rows] == ["answer tokens", "numbers, greedy", "numbers, noise"]
    assert 0 < rows[0]["share"] < 1 and all(0 <= row["share"] <= 1 for row in rows)
    assert {row["share"] for row in formats.changed(["tiny-gpt2"], "float32", "cpu")} == {0}


@pytest.fixture(scope="module")
def results():
    return measure("tiny", "cpu", repeats=1)


@pytest.mark.quick
def test_every_workload_is_sized_on_every_device():
    for name in ("cpu", "cuda", "tiny"):
        sized = {f for f in WORKLOADS if any(getattr(sizes, f) for sizes in SIZES[name])}
        on_gpu_only = set() if name == "cuda" else {"compiled"}  # it takes minutes on a CPU
        assert sized == WORKLOADS.keys() - on_gpu_only


def test_every_workload_is_measured_beside_the_plain_way_and_the_limit(results):
    workloads = {row["workload"] for row in results["rows"]}
    # The latent phase comes with the scaling in N; compiled steps take too long for a test.
    assert len(workloads) == len(WORKLOADS)
    for row in results["rows"]:
        assert row["seconds"] > 0 and 0 < row["limit_share"] < 1.5
        compared = row.get("products_s") or row["plain"] or row["workload"] in ("latent phase",)
        assert compared or row["workload"] == "batch" or row["n_samples"] > 2
    assert {"machine", "date", "commit", "torch", "transformers"} <= results["about"].keys()


def test_a_workload_that_can_not_be_measured_is_noted_and_the_others_are_kept(monkeypatch):
    def fails(error):
        def workload(bench):
            raise error

        return workload

    workloads = {
        "n_samples": fails(torch.OutOfMemoryError("CUDA out of memory.")),
        "beams": fails(NotMeasured("Triton is missing")),
        "batches": lambda bench: [{"workload": "batch"}],
    }
    monkeypatch.setattr(all_workloads, "WORKLOADS", workloads)
    monkeypatch.setattr(all_workloads, "_kernels", lambda bench: [])
    bench = Bench(SIZES["tiny"][0], "cpu", backbone("tiny-gpt2"), 1.0, 1.0)
    monkeypatch.setattr(all_workloads.Bench, "of", lambda *sizes: bench)
    monkeypatch.setattr(all_workloads.Bench, "limits", lambda bench: {})
    saved = []
    results = measure("tiny", "cpu", save=lambda results: saved.append(len(results["rows"])))
    assert results["rows"] == [{"workload": "batch"}]
    assert saved == [0, 0, 1, 1]  # after each workload, and at the end
    why = {row["workload"]: row["why"] for row in results["skipped"]}
    assert why == {"n_samples": "out of memory", "beams": "Triton is missing"}


def test_compiled_steps_are_not_measured_without_a_compiler(monkeypatch):
    monkeypatch.setattr(sampling, "missing_compiler", lambda device: "Triton")
    with pytest.raises(NotMeasured, match="Triton is missing"):
        sampling.compiled(SimpleNamespace(device="cuda"))


@pytest.mark.filterwarnings("ignore:Data has no positive values")  # memory of a tiny call
@pytest.mark.parametrize("lost", ["sampling", "latent phase"])
def test_a_page_without_a_workload_has_the_others(results, lost, tmp_path):
    rows = [row for row in results["rows"] if row["workload"] != lost]
    skipped = [{"shape": "tiny-gpt2", "dtype": "float32", "workload": lost, "why": "no memory"}]
    partial = results | {"rows": rows, "skipped": skipped}
    save_figures(partial, tmp_path)
    assert f"- tiny-gpt2, float32, {lost}: no memory" in page.tables(partial)
    assert page.findings(partial) or not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Data has no positive values")  # memory of a tiny call
def test_a_run_fills_the_page(results, tmp_path, monkeypatch):
    for folder in ("docs/results", "docs/figures"):
        (tmp_path / folder).mkdir(parents=True)
    text = (ROOT / "docs/performance.md").read_text()
    (tmp_path / "docs/performance.md").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        all_workloads, "measure", lambda *sizes, progress, save: save(results) or results
    )
    all_workloads.main(["--device", "cpu"])
    page.main(["outputs/benchmarks/cpu.json"])
    filled = (tmp_path / "docs/performance.md").read_text()
    assert all(content in filled for content in page.blocks(results).values())
    for part in ("## On a GPU", "## What is measured"):
        assert filled.partition(part)[2] == text.partition(part)[2]
    assert (tmp_path / "docs/figures/performance-cpu-tiny-gpt2-float32.png").is_file()


def test_mistakes_are_said_in_one_line(tmp_path, capsys):
    for command, argv, part in (
        (page.main, ["not.json"], "not.json: not a file that benchmarks.all wrote"),
        (all_workloads.main, ["--device", "tpu"], "--device"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command(argv)
        message = capsys.readouterr().err
        assert message.startswith("error: ") and part in message
        assert message.count("\n") == 1


@pytest.mark.quick
@pytest.mark.parametrize("path", sorted((ROOT / "docs/results").glob("performance_*.json")))
def test_the_page_shows_the_results_of_the_json(path):
    text = (ROOT / "docs/performance.md").read_text()
    blocks = page.blocks(json.loads(path.read_text()))
    assert all(content in text for content in blocks.values())
