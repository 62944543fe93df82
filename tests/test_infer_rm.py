"""python -m src.infer_gpt2_rm: choice from a pool, beams, saved pools, resume, processes, errors."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from src import infer_gpt2_rm
from src.models.loading import load_backbone, load_reward_model
from src.search import best_of_n
from src.search.voting import aggregate, measure
from tests.commands import command, infer_command, interrupted_once, outputs, run, run_here
from tests.conftest import random_latent_rm
from utils import records

LIMIT, N = 14, 6
DATA = ("--data_path", "data/tiny_valid.json", "--limit", LIMIT)
SAMPLER = ("--sampling_by", "noise", "--noise_std", 0.8, "--max_new_tokens", 8)
BEST = ("--prm_mode", "best_of_n", "--num_return_sequences", N, "--report_n", 1, 3, N)
BEAM = ("--prm_mode", "beam_search", "--num_beams", 2, "--num_beam_candidates", 3)
MODES = {"best_of_n": BEST, "beam_search": BEAM}


def rm_command(prm, mode, *flags, processes=1):
    flags = ("--prm_id", prm, *DATA, *SAMPLER, *mode, *flags)
    return command("infer_gpt2_rm", *flags, processes=processes)


def random_prm(folder, scores_answer):
    model = random_latent_rm(n_embd=128, n_positions=128)
    model.config.scores_answer = scores_answer
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prm(tmp_path_factory):
    """A random reward model for the bundled COCONUT: its scores decide, whatever they say."""
    return random_prm(tmp_path_factory.mktemp("prm") / "rm", scores_answer=False)


@pytest.fixture(scope="module")
def whole(prm, tmp_path_factory):
    """{mode: folder} of uninterrupted runs."""
    folders = {}
    for name, mode in MODES.items():
        folders[name] = tmp_path_factory.mktemp("whole") / name
        done = run(rm_command(prm, mode, "--output_dir", folders[name], "--batch_size", 4))
        assert done.returncode == 0, done.stderr
    return folders


def records_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def answers(folder):
    """What does not depend on rounding: texts and choice of every question."""
    return [(r["idx"], r["texts"], r["predictions"], r["vote"]) for r in records_of(folder)]


def assert_same(one, other):
    """The same answers; scores to rounding, since batches of other shapes round differently."""
    assert answers(one) == answers(other)
    for a, b in zip(records_of(one), records_of(other), strict=True):
        for key in ("scores", "answer_scores", "log_probs"):
            if key in a:
                np.testing.assert_allclose(a[key], b[key], rtol=1e-3, atol=2e-3)


def test_the_pool_is_that_of_infer_gpt2_and_is_scored(whole, prm, tmp_path):
    flags = (*DATA, *SAMPLER, "--n_samples", N, "--report_n", 1, 3, N, "--bayesian_vote", "true")
    done = run_here(infer_command(*flags, "--output_dir", tmp_path / "x", "--save_latents", "true"))
    assert done.returncode == 0, done.stderr
    assert answers(tmp_path / "x") == answers(whole["best_of_n"])
    backbone = load_backbone("coconut", "checkpoints/tiny-coconut")
    model = load_reward_model(prm, *backbone)
    for record in records_of(whole["best_of_n"]):
        latents = load_file(tmp_path / "x" / "latents" / f"{record['idx']:06d}.safetensors")
        ids = latents["input_ids"][None]
        with torch.no_grad():
            scores = model(ids, torch.ones_like(ids), latents["latent_embeds"][None])[0]
        np.testing.assert_allclose(record["scores"], scores.numpy(), rtol=1e-3, atol=2e-3)
    # the same pool, sampled once and scored afterwards
    saved = ("--prm_id", prm, "--pool", tmp_path / "x", "--report_n", 1, 3, N)
    done = run_here(command("infer_gpt2_rm", *saved, "--output_dir", tmp_path / "scored"))
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "scored", whole["best_of_n"])
    one, other = (
        outputs(folder)[1]["by_n"] for folder in (tmp_path / "scored", whole["best_of_n"])
    )
    assert one == other


def test_metrics_are_those_of_the_records(whole):
    folder = whole["best_of_n"]
    metrics = outputs(folder)[1]
    records = records_of(folder)
    assert list(metrics["by_n"]) == ["1", "3", str(N)]
    for n, found in metrics["by_n"].items():
        chosen = []
        for record in records:
            totals = [sum(scores) for scores in record["scores"][: int(n)]]
            chosen.append(record["correct"][totals.index(max(totals))])
        assert found["best_of_n"]["value"] == pytest.approx(100 * sum(chosen) / LIMIT, abs=0.01)
        gain = found["best_of_n"]["value"] - found["voting_accuracy"]["value"]
        assert found["best_of_n_gain"]["value"] == pytest.approx(gain, abs=0.02)
        assert found["best_of_n_gain"]["low"] <= gain + 0.02
        for name in ("weighted_vote", "bayesian_vote", "bayesian_geometric", "reward_bayesian"):
            assert 0 <= found[name]["value"] <= found["coverage"]["value"]
    assert metrics["by_n"]["1"]["best_of_n_gain"]["value"] == 0
    budget = json.loads((folder / "metrics.json").read_text())["speed"]["per_question"]
    assert list(budget) == ["1", "3", str(N)]
    for n, spent in budget.items():
        assert spent["trajectories"] == int(n)
        assert spent["latent_steps"] == 6 * int(n)
    for name in ("seconds", "reward_seconds", "candidate_seconds", "candidate_tokens"):
        values = [spent[name] for spent in budget.values()]
        assert 0 < values[0] < values[1] < values[2]


def test_the_best_beam_answers(whole):
    records = records_of(whole["beam_search"])
    for record in records:
        totals = [sum(scores) for scores in record["scores"]]
        assert len(totals) == 2 and totals[0] >= totals[1]
        assert record["vote"] == record["predictions"][0]
    right = sum(record["correct"][0] for record in records)
    found = outputs(whole["beam_search"])[1]["by_n"]["2"]
    assert found["beam_search"]["value"] == pytest.approx(100 * right / LIMIT, abs=0.01)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_scores_answers_scores_them_too(whole, tmp_path, mode):
    prm = random_prm(tmp_path / "rm", scores_answer=True)
    for size in (1, LIMIT):
        flags = ("--output_dir", tmp_path / str(size), "--batch_size", size)
        assert run_here(rm_command(prm, MODES[mode], *flags)).returncode == 0
    assert_same(tmp_path / "1", tmp_path / str(LIMIT))
    for record, plain in zip(records_of(tmp_path / "1"), records_of(whole[mode]), strict=True):
        assert {len(scores) for scores in record["scores"]} == {6}
        # what comes after the thoughts does not move their rewards
        np.testing.assert_allclose(record["scores"], plain["scores"], rtol=1e-3, atol=2e-3)
        assert "answer_scores" not in plain
        assert all(score < 0 for score in record["answer_scores"])
        if mode == "beam_search":
            pairs = zip(record["scores"], record["answer_scores"], strict=True)
            totals = [sum(scores) + answer for scores, answer in pairs]
            assert record["vote"] == record["predictions"][totals.index(max(totals))]


@pytest.mark.parametrize("mode", MODES)
def test_batches_and_processes_change_nothing(whole, prm, tmp_path, mode):
    for size in (1, LIMIT):
        folder = tmp_path / str(size)
        done = run_here(rm_command(prm, MODES[mode], "--output_dir", folder, "--batch_size", size))
        assert done.returncode == 0, done.stderr
        assert_same(folder, whole[mode])
    flags = ("--output_dir", tmp_path / "two", "--batch_size", 4)
    assert run(rm_command(prm, MODES[mode], *flags, processes=2)).returncode == 0
    assert outputs(tmp_path / "two") == outputs(whole[mode])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("moment", range(10))
def test_interrupted_at_any_write(whole, prm, tmp_path, monkeypatch, mode, moment):
    """An interruption just before or after a write, or between the steps of one."""
    places = (
        (os, "replace", 3), (os, "fsync", 3), (records, "append", 3),
        (records, "gather", 2), (Path, "unlink", 2),
    )  # fmt: skip
    line = rm_command(prm, MODES[mode], "--output_dir", tmp_path / "x", "--batch_size", 4)
    monkeypatch.setattr("sys.argv", line[2:])
    assert interrupted_once(infer_gpt2_rm.main, places, moment, monkeypatch)
    infer_gpt2_rm.main()
    assert outputs(tmp_path / "x") == outputs(whole[mode])


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
        "reward_bayesian": 2.0,  # nearly all weight lies on the fourth
    }
    assert aggregate(record, 1)["reward_bayesian"] == 1.0
    nothing = {"predictions": [None], "candidates": [], "log_probs": [[]], "scores": [[1.0]]}
    assert set(aggregate(nothing, 1).values()) == {None}


def test_gains_are_paired():
    """Three questions: best-of-2 wins one that the vote loses, and loses none."""
    base = {"answer": "1", "scores": [[0.0], [1.0]]}
    rows = [base | {"predictions": p} for p in ([1.0, 1.0], [2.0, 1.0], [2.0, 2.0])]
    found = measure(rows, [1, 2])["by_n"]["2"]
    assert found["voting_accuracy"]["value"] == pytest.approx(33.33)
    assert found["best_of_n"]["value"] == pytest.approx(66.67)
    assert found["best_of_n_gain"]["value"] == pytest.approx(33.33)
    assert found["best_of_n_gain"]["low"] == 0


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--prm_id", "nowhere"), ("--prm_id", "nowhere")),
        (("--prm_id", "checkpoints/tiny-coconut"), ("--prm_id", "classifier")),
        (("--num_beams", 2), ("--num_beams", "no effect")),
        ((*BEAM, "--pool", "x"), ("--pool", "no effect")),
        ((*BEAM, "--num_beams", 0), ("--num_beams", "at least 1")),
        ((*BEAM, "--sampling_by", "dropout", "--dropout_mask", "trajectory"), ("dropout_mask",)),
        (("--pool", "nowhere"), ("--pool", "nowhere")),
        (("--pool", "nowhere", "--seed", 3), ("--seed", "no effect")),
        (("--pool", "nowhere", "--num_return_sequences", 4), ("--n_samples", "no effect")),
        (("--report_n", 65), ("--report_n",)),
    ],
)
def test_user_errors(prm, tmp_path, flags, parts):
    given = ("--prm_id", prm) if "--prm_id" not in flags else ()
    data = DATA if "--pool" not in flags else ()
    done = run_here(command("infer_gpt2_rm", *given, *data, *flags, "--output_dir", tmp_path / "x"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert all(part in line for part in parts), line
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    data = folder / "questions.json"
    rows = json.loads(Path("data/tiny_valid.json").read_text())[:4]
    data.write_text(json.dumps(rows))
    done = run_here(infer_command(
        "--data_path", data, *SAMPLER, "--n_samples", 4, "--save_latents", "true",
        "--output_dir", folder / "x",
    ))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("questions", "question file"),
        ("latents", "latents"),
        ("swapped", "samples.jsonl"),
        ("cut", "2 of 4"),
    ],
)
def test_a_spoilt_pool_is_one_clear_line(saved, prm, tmp_path, fault, said):
    pool = tmp_path / "x"
    shutil.copytree(saved / "x", pool)
    rows, data = (saved / "questions.json").read_text(), saved / "questions.json"
    latents = sorted((pool / "latents").iterdir())
    if fault == "questions":
        data.write_text(rows.replace("pens", "cups").replace("boys", "men"))
    if fault == "latents":
        latents[1].write_bytes(b"no")
    if fault == "swapped":
        lines = [json.loads(line) for line in (pool / "samples.jsonl").read_text().splitlines()]
        lines[2]["correct"] = [not right for right in lines[2]["correct"]]
        (pool / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if fault == "cut":
        lines = (pool / "samples.jsonl").read_text().splitlines(keepends=True)
        (pool / "samples.jsonl").write_text("".join(lines[:2]))
    try:
        done = run_here(command(
            "infer_gpt2_rm", "--prm_id", prm, "--pool", pool, "--output_dir", tmp_path / "out"
        ))  # fmt: skip
    finally:
        data.write_text(rows)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error:") and said in line, line


def test_the_reward_model_s_prompts_are_the_sampled_ids(saved, prm):
    """Never text decoded and encoded again: a pool's ids reach the model as they stand."""
    latents = load_file(saved / "x" / "latents" / "000000.safetensors")
    seen = []
    model = random_latent_rm(n_embd=128)
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    best_of_n.score_pools(
        model,
        [latents["input_ids"].tolist()],
        latents["latent_embeds"][None],
        latents["latent_lengths"][None],
        [latents["answer_ids"]],
    )
    assert torch.equal(seen[0][0], latents["input_ids"])
