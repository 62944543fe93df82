"""benchmarks/judge_controls.py: what it scores, and the judge alone against a plain choice."""

import json

import numpy as np
import pytest
import torch

from benchmarks import judge_controls
from benchmarks.judge_controls import SavedPool, controls, first_of_each_answer, replacements
from src.models.loading import load_backbone, load_reward_model
from tests.commands import assert_success, command, infer_command, run_here
from tests.conftest import random_latent_rm

LIMIT, N = 12, 6
DATA = ("--data_path", "data/tiny_valid.json", "--limit", LIMIT, "--max_new_tokens", 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds a pool, a greedy run of the same questions and a random judge that reads answers."""
    folder = tmp_path_factory.mktemp("controls")
    pool = ("--n_samples", N, "--report_n", 4, "--save_latents", "true", "--sampling_by", "noise")
    for name, flags in (("pool", pool), ("greedy", ("--do_sample", "false"))):
        assert_success(run_here(infer_command(*DATA, *flags, "--output_dir", folder / name)))
    model = random_latent_rm(n_embd=128, n_positions=128)
    model.config.reads_answer = True
    model.save_pretrained(folder / "judge")
    return folder


@pytest.fixture(scope="module")
def judge(folder):
    backbone, tokenizer = load_backbone("coconut", "checkpoints/tiny-coconut")
    return load_reward_model(folder / "judge", backbone, tokenizer)


@pytest.fixture(scope="module")
def figures(folder, judge):
    return controls(judge, SavedPool.read(folder / "pool"), folder / "greedy")


def test_own_thoughts_give_the_results_of_best_of_n(folder, figures):
    flags = ("--prm_id", folder / "judge", "--pool", folder / "pool", "--report_n", 4)
    output = folder / "best"
    assert_success(run_here(command("infer_gpt2_rm", *flags, "--output_dir", output)))
    by_n = json.loads((output / "metrics.json").read_text())["by_n"]
    for key, value in figures["controls"]["own"]["by_n"]["4"].items():
        assert value == by_n["4"][key]


def test_thoughts_are_replaced(folder):
    pool = SavedPool.read(folder / "pool")
    found = {name: [x for x, _ in of_all] for name, of_all in replacements(pool).items()}
    own = torch.stack(found["own"])  # (Q, N, T, D): COCONUT's are all of one length
    for name, others in found.items():
        assert torch.stack(others).shape == own.shape, name
    assert torch.equal(found["another trajectory's"][3][1], own[3, 0])
    assert torch.equal(found["another question's"][3], own[2])
    assert not torch.stack(found["zeros"]).any()
    mean = torch.stack(found["mean"])
    torch.testing.assert_close(mean, own.mean((0, 1)).expand_as(own))


@torch.no_grad()
def test_the_judge_alone_chooses_by_one_trajectory_s_thoughts(folder, judge, figures):
    pool, right = SavedPool.read(folder / "pool"), []
    for record, latents in zip(pool.records, pool.latents, strict=True):
        rewards = {}
        for n in first_of_each_answer(record):
            ids = latents["input_ids"][None]
            inputs = (latents["latent_embeds"][None, :1], None, latents["answer_ids"][None, [n]])
            rewards[n] = float(judge(ids, torch.ones_like(ids), *inputs)[0, 0, -1])
        assert len({record["predictions"][n] for n in rewards}) == len(rewards)
        right.append(record["correct"][max(rewards, key=rewards.get)])
    alone = figures["controls"]["own"]["alone"]["value"]
    assert alone == pytest.approx(100 * np.mean(right), abs=0.01)
    gain = figures["controls"]["own"]["alone_gain"]["value"]
    assert gain == pytest.approx(alone - figures["baselines"]["greedy"]["value"], abs=0.02)


def test_the_command_prints_tables_or_json(folder, capsys, monkeypatch):
    argv = ["judge_controls", str(folder / "pool"), "--prm_id", str(folder / "judge")]
    monkeypatch.setattr("sys.argv", [*argv, "--greedy", str(folder / "greedy")])
    judge_controls.main()
    table = capsys.readouterr().out
    assert "| another question's |" in table and "| greedy |" in table
    monkeypatch.setattr("sys.argv", [*argv[:1], str(folder / "judge"), *argv[2:], "--json"])
    with pytest.raises(SystemExit):
        judge_controls.main()
    assert "no run with samples" in capsys.readouterr().err
