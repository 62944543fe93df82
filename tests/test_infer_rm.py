"""python -m src.infer_gpt2_rm: best-of-N, beam search, saved pools, interruptions, errors."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from src.models.loading import load_backbone, load_reward_model
from src.search import best_of_n
from src.search.voting import aggregate, measure
from tests.commands import (
    assert_one_line_error,
    assert_success,
    command,
    edit_json,
    infer_command,
    interrupt_and_continue,
    outputs,
    run,
    run_here,
    samples_of,
)
from tests.conftest import random_latent_rm
from utils import records

QUESTIONS = json.loads(Path("data/tiny_valid.json").read_text())
LIMIT, N = 14, 6
DATA = ("--data_path", "data/tiny_valid.json", "--limit", LIMIT)
SAMPLER = ("--sampling_by", "noise", "--noise_std", 0.8, "--max_new_tokens", 8)
BEST = ("--prm_mode", "best_of_n", "--num_return_sequences", N, "--report_n", 1, 3, N)
BEAM = ("--prm_mode", "beam_search", "--num_beams", 2, "--num_beam_candidates", 3)
DVTS = ("--prm_mode", "dvts", "--num_beams", 2, "--num_beam_candidates", 2)
MODES = {"best_of_n": BEST, "beam_search": BEAM, "dvts": (*DVTS, "--guide", "agreement")}


def rm_command(prm, mode, *flags, processes=1):
    judge = () if "--guide" in mode else ("--prm_id", prm)
    flags = (*judge, *DATA, *SAMPLER, *mode, *flags)
    return command("infer_gpt2_rm", *flags, processes=processes)


def random_prm(folder, **config):
    model = random_latent_rm(n_embd=128, n_positions=128)
    model.config.update(config)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prm(tmp_path_factory):
    """A random reward model for the bundled COCONUT."""
    return random_prm(tmp_path_factory.mktemp("prm") / "rm")


@pytest.fixture(scope="module")
def whole(prm, tmp_path_factory):
    """{mode: folder} of uninterrupted runs."""
    folders = {}
    for name, mode in MODES.items():
        folders[name] = tmp_path_factory.mktemp("whole") / name
        line = rm_command(prm, mode, "--output_dir", folders[name], "--batch_size", 4)
        assert_success(run(line))
    return folders


def answers(folder):
    """What does not depend on rounding: texts and choice of every question."""
    return [(r["idx"], r["texts"], r["predictions"], r["vote"]) for r in samples_of(folder)]


def assert_same(folder, expected_folder):
    """The same answers, and the same scores up to the rounding of batches of other shapes."""
    assert answers(folder) == answers(expected_folder)
    for record, expected in zip(samples_of(folder), samples_of(expected_folder), strict=True):
        for key in ("scores", "answer_scores", "log_probs"):
            if key in record:
                assert_close(record[key], expected[key])


def assert_close(scores, expected):
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=2e-3)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """The pool that best-of-N samples, by infer_gpt2 and with its thoughts."""
    folder = tmp_path_factory.mktemp("pool") / "x"
    flags = (*DATA, *SAMPLER, "--n_samples", N, "--report_n", 1, 3, N, "--bayesian_vote", "true")
    line = infer_command(*flags, "--output_dir", folder, "--save_latents", "true")
    assert_success(run_here(line))
    return folder


def test_best_of_n_scores_the_pool_of_infer_gpt2(whole, pool, prm):
    assert answers(pool) == answers(whole["best_of_n"])
    model = load_reward_model(prm, *load_backbone("coconut", "checkpoints/tiny-coconut"))
    for record in samples_of(whole["best_of_n"]):
        latents = load_file(pool / "latents" / f"{record['idx']:06d}.safetensors")
        ids = latents["input_ids"][None]
        with torch.no_grad():
            scores = model(ids, torch.ones_like(ids), latents["latent_embeds"][None])[0]
        assert_close(record["scores"], scores.numpy())


def test_a_saved_pool_gives_the_results_of_a_new_one(whole, pool, prm, tmp_path):
    flags = ("--prm_id", prm, "--pool", pool, "--report_n", 1, 3, N, "--output_dir", tmp_path / "x")
    assert_success(run_here(command("infer_gpt2_rm", *flags)))
    assert_same(tmp_path / "x", whole["best_of_n"])
    assert outputs(tmp_path / "x")[1]["by_n"] == outputs(whole["best_of_n"])[1]["by_n"]


def test_metrics_follow_from_the_records(whole):
    by_n = outputs(whole["best_of_n"])[1]["by_n"]
    assert list(by_n) == ["1", "3", str(N)]
    for n, measures in by_n.items():
        right = []
        for record in samples_of(whole["best_of_n"]):
            totals = [sum(scores) for scores in record["scores"][: int(n)]]
            right.append(record["correct"][totals.index(max(totals))])
        accuracy = measures["best_of_n"]["value"]
        assert accuracy == pytest.approx(100 * sum(right) / LIMIT, abs=0.01)
        gain = accuracy - measures["voting_accuracy"]["value"]
        assert measures["best_of_n_gain"]["value"] == pytest.approx(gain, abs=0.02)
        assert measures["best_of_n_gain"]["low"] <= gain + 0.02
        for name in ("weighted_vote", "bayesian_vote", "bayesian_geometric", "reward_bayesian"):
            assert 0 <= measures[name]["value"] <= measures["coverage"]["value"]
    assert by_n["1"]["best_of_n_gain"]["value"] == 0


def test_the_cost_of_a_question_is_told_for_each_n(whole):
    metrics = json.loads((whole["best_of_n"] / "metrics.json").read_text())
    costs = metrics["speed"]["per_question"]
    assert list(costs) == ["1", "3", str(N)]
    for n, cost in costs.items():
        assert cost["trajectories"] == int(n)
        assert cost["latent_steps"] == 6 * int(n)
    for name in ("seconds", "reward_seconds", "candidate_seconds", "candidate_tokens"):
        values = [cost[name] for cost in costs.values()]
        assert 0 < values[0] < values[1] < values[2]


def test_dvts_answers_all_leaves_and_counts_what_it_costs(whole):
    for record in samples_of(whole["dvts"]):
        last = [values[-1] for values in record["scores"]]
        assert len(last) == len(record["texts"]) == 4
        assert record["vote"] == aggregate(record, 4, "last")["best_of_n"]
    by_n = outputs(whole["dvts"])[1]["by_n"]["4"]
    assert by_n["coverage"]["value"] >= max(by_n["dvts"]["value"], by_n["dvts_vote"]["value"])
    metrics = json.loads((whole["dvts"] / "metrics.json").read_text())
    cost = metrics["speed"]["per_question"]["4"]
    # 4 first thoughts, and at each of 5 further steps 2 subtrees; without lookahead.
    assert (cost["trajectories"], cost["latent_steps"]) == (4, 4 + 5 * 2)
    assert cost["lookahead_steps"] == 4 * (5 + 4 + 3 + 2 + 1)
    assert cost["lookahead_tokens"] > cost["tokens"] and cost["candidate_tokens"] > 0


def test_beam_search_answers_by_its_best_beam(whole):
    samples = samples_of(whole["beam_search"])
    for record in samples:
        totals = [sum(scores) for scores in record["scores"]]
        assert len(totals) == 2 and totals[0] >= totals[1]
        assert record["vote"] == record["predictions"][0]
    right = sum(record["correct"][0] for record in samples)
    measures = outputs(whole["beam_search"])[1]["by_n"]["2"]
    assert measures["beam_search"]["value"] == pytest.approx(100 * right / LIMIT, abs=0.01)


@pytest.mark.parametrize("mode", ["best_of_n", "beam_search"])
@pytest.mark.parametrize("key", ["scores_answer", "reads_answer"])
def test_a_reward_model_that_rewards_answers_adds_their_rewards(whole, tmp_path, mode, key):
    prm = random_prm(tmp_path / "rm", **{key: True})
    for size in (1, LIMIT):
        flags = ("--output_dir", tmp_path / str(size), "--batch_size", size)
        assert_success(run_here(rm_command(prm, MODES[mode], *flags)))
    assert_same(tmp_path / "1", tmp_path / str(LIMIT))
    for record, plain in zip(samples_of(tmp_path / "1"), samples_of(whole[mode]), strict=True):
        assert {len(scores) for scores in record["scores"]} == {6}
        assert_close(record["scores"], plain["scores"])  # the thoughts' rewards stay
        assert "answer_scores" not in plain
        assert all(record["answer_scores"])
        if mode == "beam_search":
            pairs = zip(record["scores"], record["answer_scores"], strict=True)
            totals = [sum(scores) + answer for scores, answer in pairs]
            assert record["vote"] == record["predictions"][totals.index(max(totals))]


@pytest.mark.parametrize("mode", MODES)
def test_batch_size_and_processes_change_nothing(whole, prm, tmp_path, mode):
    for size in (1, LIMIT):
        flags = ("--output_dir", tmp_path / str(size), "--batch_size", size)
        assert_success(run_here(rm_command(prm, MODES[mode], *flags)))
        assert_same(tmp_path / str(size), whole[mode])
    flags = ("--output_dir", tmp_path / "two", "--batch_size", 4)
    assert_success(run(rm_command(prm, MODES[mode], *flags, processes=2)))
    assert outputs(tmp_path / "two") == outputs(whole[mode])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", range(10))
def test_an_interrupted_run_continues_to_the_same_files(
    whole, prm, tmp_path, monkeypatch, mode, case
):
    """Interrupted just before or after a write, or between the steps of one."""
    functions = (
        (os, "replace", 3),
        (os, "fsync", 3),
        (records, "append", 3),
        (records, "gather", 2),
        (Path, "unlink", 2),
    )
    line = rm_command(prm, MODES[mode], "--output_dir", tmp_path / "x", "--batch_size", 4)
    interrupt_and_continue(line, functions, case, monkeypatch)
    assert outputs(tmp_path / "x") == outputs(whole[mode])


@pytest.mark.quick
def test_aggregators_by_hand():
    record = {
        "predictions": [1.0, 2.0, 2.0, None],
        "candidates": [1.0, 2.0],
        "log_probs": np.log([[0.9, 0.1], [0.6, 0.4], [0.5, 0.4], [0.1, 0.2]]).tolist(),
        "scores": [[0.0, 0.0], [0.5, 0.0], [0.0, 0.0], [5.0, 0.0]],
        "answer_scores": [0.0, 0.5, 0.0, 5.0],
    }
    assert aggregate(record, 4) == {
        "majority": 2.0,
        "best_of_n": 2.0,  # the fourth scores highest, but has no answer
        "weighted_vote": 2.0,
        "bayesian_vote": 1.0,  # 2.1 against 1.1
        "bayesian_geometric": 1.0,  # 0.027 against 0.0032
        "reward_bayesian": 2.0,  # nearly all weight is on the fourth
    }
    assert aggregate(record, 1)["reward_bayesian"] == 1.0
    unparsable = {"predictions": [None], "candidates": [], "log_probs": [[]], "scores": [[1.0]]}
    assert set(aggregate(unparsable, 1).values()) == {None}


@pytest.mark.quick
def test_gains_are_paired_by_question():
    """Three questions: best-of-2 wins one that the vote loses, and loses none."""
    base = {"answer": "1", "scores": [[0.0], [1.0]]}
    rows = [base | {"predictions": p} for p in ([1.0, 1.0], [2.0, 1.0], [2.0, 2.0])]
    measures = measure(rows, [1, 2])["by_n"]["2"]
    assert measures["voting_accuracy"]["value"] == pytest.approx(33.33)
    assert measures["best_of_n"]["value"] == pytest.approx(66.67)
    assert measures["best_of_n_gain"]["value"] == pytest.approx(33.33)
    assert measures["best_of_n_gain"]["low"] == 0


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--prm_id", "nowhere"), ("--prm_id", "nowhere")),
        (("--prm_id", "checkpoints/tiny-coconut"), ("--prm_id", "classifier")),
        (("--num_beams", 2), ("--num_beams", "no effect")),
        ((*BEAM, "--pool", "x"), ("--pool", "no effect")),
        ((*BEAM, "--num_beams", 0), ("--num_beams", "at least 1")),
        ((*BEAM, "--sampling_by", "dropout", "--dropout_mask", "trajectory"), ("dropout_mask",)),
        ((*BEAM, "--lookahead", "answer"), ("--lookahead answer", "does not score answers")),
        (("--pool", "nowhere"), ("--pool", "nowhere")),
        (("--pool", "nowhere", "--seed", 3), ("--seed", "no effect")),
        (("--pool", "nowhere", "--num_return_sequences", 4), ("--n_samples", "no effect")),
        (("--report_n", 65), ("--report_n",)),
    ],
)
def test_impossible_flags_are_a_one_line_error_before_anything_is_written(
    prm, tmp_path, flags, parts
):
    reward_model = ("--prm_id", prm) if "--prm_id" not in flags else ()
    data = DATA if "--pool" not in flags else ()
    output = ("--output_dir", tmp_path / "x")
    result = run_here(command("infer_gpt2_rm", *reward_model, *data, *flags, *output))
    assert_one_line_error(result, *parts)
    assert not (tmp_path / "x").exists()


@pytest.fixture
def small_pool(pool_of_four, tmp_path):
    """A saved pool of four questions and their file, which a test may damage."""
    folder = shutil.copytree(pool_of_four, tmp_path / "small")
    config = folder / "pool/config.json"
    settings = json.loads(config.read_text())["settings"]
    settings["data_path"] = str(folder / "questions.json")
    edit_json(config, settings=settings)
    return folder


@pytest.fixture(scope="module")
def pool_of_four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    rows = json.loads(Path("data/tiny_valid.json").read_text())[:4]
    (folder / "questions.json").write_text(json.dumps(rows))
    flags = ("--data_path", folder / "questions.json", *SAMPLER, "--n_samples", 4)
    line = infer_command(*flags, "--save_latents", "true", "--output_dir", folder / "pool")
    assert_success(run_here(line))
    return folder


def _damage(folder, fault):
    samples = folder / "pool/samples.jsonl"
    if fault == "questions":
        text = (folder / "questions.json").read_text()
        (folder / "questions.json").write_text(text.replace("pens", "cups").replace("boys", "men"))
    if fault == "latents":
        (folder / "pool/latents/000001.safetensors").write_bytes(b"no")
    if fault == "settings":
        edit_json(folder / "pool/config.json", settings=["n_samples"])
    if fault == "swapped":
        lines = samples_of(folder / "pool")
        lines[2]["correct"] = [not right for right in lines[2]["correct"]]
        samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if fault == "cut":
        lines = samples.read_text().splitlines(keepends=True)
        samples.write_text("".join(lines[:2]))


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ("questions", "question file"),
        ("latents", "latents"),
        ("settings", "no run there"),
        ("swapped", "samples.jsonl"),
        ("cut", "2 of 4"),
    ],
)
def test_a_damaged_pool_is_a_one_line_error(small_pool, prm, tmp_path, fault, part):
    _damage(small_pool, fault)
    flags = ("--prm_id", prm, "--pool", small_pool / "pool", "--output_dir", tmp_path / "out")
    result = run_here(command("infer_gpt2_rm", *flags))
    assert_one_line_error(result, part, after_progress=True)
    if fault != "swapped":  # found before any work
        assert not (tmp_path / "out").exists()


def test_a_pool_with_words_unknown_to_the_model_is_scored(prm, tmp_path):
    """Whoever sampled it has accepted them."""
    rows = [row | {"question": row["question"] + " Janet?"} for row in QUESTIONS[:2]]
    (tmp_path / "odd.json").write_text(json.dumps(rows))
    flags = ("--data_path", tmp_path / "odd.json", "--allow_unknown", "true", *SAMPLER)
    pool = ("--n_samples", 2, "--save_latents", "true", "--output_dir", tmp_path / "pool")
    assert run_here(infer_command(*flags, *pool)).returncode == 0
    flags = ("--prm_id", prm, "--pool", tmp_path / "pool", "--output_dir", tmp_path / "x")
    assert_success(run_here(command("infer_gpt2_rm", *flags)))


def test_a_run_under_the_former_names_of_its_settings_is_continued(whole, prm, tmp_path):
    """Until 2026-11-26 --model_type was --generator_type here, beams had no n_samples, and searches
    no guide and no lookahead."""
    for name, mode in MODES.items():
        folder = shutil.copytree(whole[name], tmp_path / name)
        settings = json.loads((folder / "config.json").read_text())["settings"]
        settings["generator_type"] = settings.pop("model_type")
        settings["generator_id"] = settings.pop("model_id")
        if name != "dvts":
            del settings["guide"], settings["lookahead"]
        n_samples = settings.pop("n_samples")
        settings["num_return_sequences"] = n_samples if name == "best_of_n" else None
        edit_json(folder / "config.json", settings=settings)
        line = rm_command(prm, mode, "--output_dir", folder, "--batch_size", 4)
        assert_success(run_here(line))
        assert outputs(folder) == outputs(whole[name])


def test_costs_after_an_interruption_are_those_of_the_questions_computed(whole, prm, tmp_path):
    folder = shutil.copytree(whole["best_of_n"], tmp_path / "x")
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").write_text("".join(lines[:-1]))
    line = rm_command(prm, BEST, "--output_dir", folder, "--batch_size", LIMIT)
    assert_success(run_here(line))
    cost = json.loads((folder / "metrics.json").read_text())["speed"]["per_question"]
    assert cost[str(N)]["trajectories"] == N


def test_the_reward_model_reads_the_prompt_ids_that_were_sampled_from(pool_of_four):
    """Text that is decoded and encoded again may give other ids."""
    latents = load_file(pool_of_four / "pool/latents/000000.safetensors")
    read_ids = []
    model = random_latent_rm(n_embd=128)
    model.register_forward_pre_hook(lambda _, args: read_ids.append(args[0]))
    best_of_n.score_pools(
        model,
        [latents["input_ids"].tolist()],
        latents["latent_embeds"][None],
        latents["latent_lengths"][None],
        [latents["answer_ids"]],
    )
    assert torch.equal(read_ids[0][0], latents["input_ids"])
