"""Training of LatentRM: resume, processes, ablations, metrics, errors."""

import json
import math
import random
import shutil
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import Trainer

from src.models import precision
from src.models.coconut import COCONUT
from src.models.loading import load_backbone, load_reward_model, weights_sha256
from src.models.tokenizers import build_tokenizer
from src.training import reward_trainer
from src.training.command_line import is_finished
from src.training.losses.latent_rm import RewardLoss
from src.training.model_card import model_card
from src.training.reward_dataset import LengthSampler, TrajectoryDataset, collate
from src.training.reward_trainer import last_checkpoint, pool_metrics
from tests.commands import ROOT, command, run, run_here
from tests.conftest import random_latent_rm
from tests.recipes import load_recipe
from utils.errors import UserError

TINY = "checkpoints/tiny-coconut"
JUDGE = {"reads_answer": True, "order_weight": 0.5}
TOKENIZER = build_tokenizer(COCONUT)
WORDS = (COCONUT, TOKENIZER)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """24 questions with 4 trajectories each and rollouts."""
    folder = tmp_path_factory.mktemp("pools")
    done = run_here(command(
        "annotate_data", "--data_path", "data/tiny_valid.json", "--limit", 40, "--n_samples", 4,
        "--n_samples_per_step", 2, "--max_new_tokens", 8, "--sampling_by", "noise",
        "--noise_std", 1.0, "--save_path", folder, "--name", "pool",
    ))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "pool"


def recipe(path, pool, **changes):
    """A YAML file of a short training."""
    values = {
        "output_dir": str(path.with_suffix("")), "model_id": TINY, "train_pools": [str(pool)],
        "eval_pools": {"test_n_4": str(pool)}, "seed": 3, "learning_rate": 1e-3, "max_steps": 6,
        "per_device_train_batch_size": 4, "eval_strategy": "steps", "eval_steps": 2,
        "save_strategy": "steps", "save_steps": 2, "logging_steps": 2, "digits_weight": 0.5,
        "load_best_model_at_end": True, "metric_for_best_model": "test_n_4_recall_at_1",
    } | changes  # fmt: skip
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    return path


def train_command(path, processes=1):
    return command("train", path, processes=processes)


@pytest.fixture(scope="module")
def whole(pool, tmp_path_factory):
    """The folder of an uninterrupted training."""
    path = recipe(tmp_path_factory.mktemp("train") / "whole.yaml", pool, **JUDGE)
    done = run(train_command(path))
    assert done.returncode == 0, done.stderr
    assert "test_n_4_recall_at_1" in done.stdout
    return path.with_suffix("")


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(one, other, tolerance=0.0):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name in one:
        if tolerance and name == "classifier.bias":
            continue  # it has no gradient but rounding errors, of which Adam makes steps
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance)


def test_training_writes_a_reward_model_in_the_published_layout(whole):
    assert not [name for name in weights(whole) if name.startswith("digit_heads")]
    backbone, tokenizer = load_backbone("coconut", TINY)
    model = load_reward_model(whole, backbone, tokenizer)
    start = backbone.transformer.state_dict()
    assert any(not torch.equal(v, start[k]) for k, v in model.transformer.state_dict().items())
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["steps"] == 6
    assert len(metrics["history"]) >= 3
    final = metrics["final"]
    for name in ("recall_at_1", "weighted_vote", "vote", "coverage"):
        assert 0 <= final[f"test_n_4_{name}"] <= 100
    assert final["test_n_4_recall_at_1"] <= final["test_n_4_coverage"]
    assert (whole / "recipe.yaml").is_file()
    assert (whole / "README.md").read_text() == model_card(whole)


@pytest.mark.parametrize("moment", range(6))
def test_resumed_training_gives_the_same_weights(pool, whole, tmp_path, monkeypatch, moment):
    """An interruption in a training step, in an evaluation or while a checkpoint is written."""
    path = recipe(tmp_path / "x.yaml", pool, **JUDGE)
    method = ("training_step", "evaluate", "_save_optimizer_and_scheduler")[moment % 3]
    owner = reward_trainer.RewardTrainer if method == "training_step" else Trainer
    plain, calls = getattr(owner, method), 0
    fatal = random.Random(moment).randint(1, 6 if method == "training_step" else 3)

    def fails(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == fatal:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, fails)
        assert run_here(train_command(path)).returncode == 130
    done = run_here(train_command(path))
    assert done.returncode == 0, done.stderr
    assert_same_weights(path.with_suffix(""), whole)


@pytest.mark.quick
def test_an_incomplete_checkpoint_is_not_resumed(tmp_path):
    for step, complete in ((2, True), (10, True), (12, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
        if complete:
            (folder / "complete").write_text("")
    assert last_checkpoint(tmp_path).name == "checkpoint-10"
    assert last_checkpoint(tmp_path / "none") is None


def test_two_processes_train_the_same_reward_model_as_one(pool, whole, tmp_path):
    path = recipe(tmp_path / "x.yaml", pool, per_device_train_batch_size=2, **JUDGE)
    done = run(train_command(path, processes=2))
    assert done.returncode == 0, done.stderr
    assert_same_weights(path.with_suffix(""), whole, tolerance=2e-4)
    one, two = (json.loads((f / "metrics.json").read_text()) for f in (whole, path.with_suffix("")))
    assert one["final"]["test_n_4_coverage"] == two["final"]["test_n_4_coverage"]
    assert one["final"]["test_n_4_vote"] == two["final"]["test_n_4_vote"]


@pytest.fixture(scope="module")
def short(pool, tmp_path_factory):
    """The folder of the training that each switch below changes."""
    path = tmp_path_factory.mktemp("short") / "x.yaml"
    assert (
        run_here(train_command(recipe(path, pool, max_steps=2, digits_weight=0.0))).returncode == 0
    )
    return path.with_suffix("")


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"bce": 1.0}}, {"labels": "outcome"}, {"cumulative": True}, {"extra_layers": 2},
        {"answer_weight": 1.0}, {"reads_answer": True}, {"order_weight": 0.5},
        {"keep_unmixed": True, "labels": "outcome"},
        {"store_dtype": "float16"}, {"gradient_checkpointing": True},
    ],
)  # fmt: skip
def test_each_ablation_is_a_key_of_the_recipe(pool, short, tmp_path, changes):
    path = recipe(tmp_path / "x.yaml", pool, max_steps=2, digits_weight=0.0, **changes)
    assert run_here(train_command(path)).returncode == 0
    trained = weights(path.with_suffix(""))
    backbone, tokenizer = load_backbone("coconut", TINY)
    model = load_reward_model(path.with_suffix(""), backbone, tokenizer)
    assert len(model.transformer.h) == 4 + changes.get("extra_layers", 0)
    dtype = torch.float16 if "store_dtype" in changes else torch.float32
    assert {tensor.dtype for tensor in trained.values()} == {dtype}
    assert model.reads_answer == ("reads_answer" in changes)
    objectives = {"loss", "labels", "cumulative", "answer_weight", "reads_answer", "order_weight"}
    if changes.keys() & objectives:
        plain = weights(short)
        assert any(not torch.equal(trained[k], plain[k]) for k in trained if k != "classifier.bias")
    if "gradient_checkpointing" in changes:
        assert_same_weights(path.with_suffix(""), short)


def test_flags_win_over_the_recipe_and_a_step_is_accumulated(pool, short, tmp_path):
    """Two micro-batches of 2 questions train as one of 4; recipe.yaml holds what was trained."""
    path = recipe(tmp_path / "x.yaml", pool, digits_weight=0.0, batch_size=8, seed=9)
    flags = ("--per_device_train_batch_size=2", "--batch_size", 4, "--max-steps=2", "--seed", 3)
    done = run_here(command("train", path, *flags))
    assert done.returncode == 0, done.stderr
    trained, expected = weights(tmp_path / "x"), weights(short)
    start = load_backbone("coconut", TINY)[0].state_dict()
    names = start.keys() & expected.keys()
    off, moved = (
        torch.cat([(expected[k] - other[k]).flatten() for k in names]).norm()
        for other in (trained, start)
    )
    assert off < 0.01 * moved  # Adam makes steps of rounding errors where a gradient is near 0
    effective = {"per_device_train_batch_size": 2, "batch_size": 4, "max_steps": 2, "seed": 3}
    trained = yaml.safe_load((tmp_path / "x/recipe.yaml").read_text())
    assert trained == yaml.safe_load(path.read_text()) | effective
    assert is_finished(tmp_path / "x", trained)
    assert not is_finished(tmp_path / "x", trained | {"seed": 9})


def test_extra_layers_change_nothing_before_training(pool, tmp_path):
    plain = load_recipe(recipe(tmp_path / "a.yaml", pool))
    grown = load_recipe(recipe(tmp_path / "b.yaml", pool, extra_layers=3))
    one, other = (reward_trainer.new_model(x)[0] for x in (plain, grown))
    batch = collate([TrajectoryDataset([pool], *WORDS)[0]])
    arguments = [batch[key] for key in ("input_ids", "attention_mask", "latent_embeds")]
    with torch.no_grad():
        torch.testing.assert_close(one.model.read(*arguments)[0], other.model.read(*arguments)[0])


def test_a_model_that_answers_says_so_in_its_config(pool, tmp_path):
    path = recipe(tmp_path / "x.yaml", pool, answer_weight=1.0, max_steps=2)
    assert run_here(train_command(path)).returncode == 0
    config = json.loads((tmp_path / "x/config.json").read_text())
    assert config["scores_answer"] is True
    assert config["architectures"] == ["GPT2LatentRM"]


def test_two_processes_resume_a_later_epoch_with_the_same_weights(pool, tmp_path):
    """A resumed epoch has the order of an uninterrupted one."""
    epochs = {"max_steps": 9, "eval_steps": 3, "save_steps": 3, "per_device_train_batch_size": 2}
    epochs["eval_on_start"] = True
    whole = recipe(tmp_path / "whole.yaml", pool, **epochs)
    assert run(train_command(whole, processes=2)).returncode == 0
    state = json.loads((tmp_path / "whole/checkpoint-6/trainer_state.json").read_text())
    assert state["epoch"] > 1 and state["epoch"] % 1
    torn = recipe(tmp_path / "torn.yaml", pool, **epochs)
    shutil.copytree(tmp_path / "whole", tmp_path / "torn")
    (tmp_path / "torn/model.safetensors").unlink()
    shutil.rmtree(tmp_path / "torn/checkpoint-9")
    started = json.loads((tmp_path / "torn/started.json").read_text())
    started["recipe"]["output_dir"] = str(tmp_path / "torn")
    (tmp_path / "torn/started.json").write_text(json.dumps(started))
    done = run(train_command(torn, processes=2))
    assert done.returncode == 0, done.stderr
    assert_same_weights(tmp_path / "torn", tmp_path / "whole")


def test_another_recipe_in_the_same_folder_is_refused(pool, tmp_path):
    path = recipe(tmp_path / "x.yaml", pool)
    with mock.patch.object(reward_trainer, "_finish", side_effect=KeyboardInterrupt):
        assert run_here(train_command(path)).returncode == 130
    done = run_here(train_command(recipe(path, pool, learning_rate=1e-2)))
    assert done.returncode == 2 and "another recipe" in done.stderr.splitlines()[-1]
    done = run_here(train_command(recipe(path, pool)))  # the first one is only finished
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "x/metrics.json").read_text())["steps"] == 6


def test_checkpoints_of_something_else_are_not_removed(pool, tmp_path):
    (tmp_path / "x/checkpoint-1").mkdir(parents=True)
    done = run_here(train_command(recipe(tmp_path / "x.yaml", pool)))
    assert done.returncode == 2 and "something else" in done.stderr.splitlines()[-1]
    assert (tmp_path / "x/checkpoint-1").is_dir()


def test_numbers_that_yaml_reads_as_strings_are_numbers(pool, tmp_path):
    path = recipe(tmp_path / "x.yaml", pool, metric_for_best_model="test_n_4_loss")
    path.write_text(path.read_text().replace("learning_rate: 0.001", "learning_rate: 1e-3"))
    loaded = load_recipe(path)
    assert loaded.learning_rate == 1e-3
    assert loaded.greater_is_better is False


@pytest.mark.parametrize("seed", [0, 2**32 + 3, 2**63 - 1])
def test_every_allowed_seed_trains(pool, tmp_path, seed):
    path = recipe(tmp_path / "x.yaml", pool, seed=seed, max_steps=2, digits_weight=0.0)
    assert run_here(train_command(path)).returncode == 0
    loaded = load_recipe(path)
    assert loaded.model_seed == seed
    assert loaded.seed < 2**32  # numpy's
    other = load_recipe(recipe(tmp_path / "y.yaml", pool, seed=seed % 2**32 + 1))
    assert loaded.seed != other.seed


def test_a_reward_model_names_its_generator(whole):
    config = json.loads((whole / "config.json").read_text())
    assert config["generator_type"] == "coconut"
    assert config["generator_sha256"] == weights_sha256(ROOT / TINY)


def test_pools_of_another_backbone_are_refused(pool, tmp_path):
    changes = {"model_type": "codi", "model_id": "checkpoints/tiny-codi", "digits_weight": 0.0}
    done = run_here(train_command(recipe(tmp_path / "x.yaml", pool, **changes)))
    assert done.returncode == 2 and "thoughts of coconut" in done.stderr


def test_both_precisions_train_nearly_the_same_weights(pool, tmp_path):
    """bf16 and fp32 differ by rounding: a few steps end at nearly the same loss and weights."""
    results = {}
    for name in ("no", "bf16"):
        path = recipe(tmp_path / f"{name}.yaml", pool, mixed_precision=name)
        done = run_here(train_command(path))
        assert done.returncode == 0, done.stderr
        metrics = json.loads((path.with_suffix("") / "metrics.json").read_text())
        assert metrics["mixed_precision"] == name
        results[name] = metrics["final"]["test_n_4_loss"], weights(path.with_suffix(""))
    assert results["bf16"][0] == pytest.approx(results["no"][0], rel=0.02)
    for key, weight in results["no"][1].items():
        distance = (weight.float() - results["bf16"][1][key].float()).norm()
        assert distance < 0.05 * weight.float().norm() + 0.02, key


def test_resuming_in_another_precision_is_refused(pool, tmp_path, monkeypatch):
    path = recipe(tmp_path / "x.yaml", pool, mixed_precision="auto")
    monkeypatch.setattr(precision, "computes_bf16_fast", lambda: False)
    with mock.patch.object(reward_trainer, "_finish", side_effect=KeyboardInterrupt):
        assert run_here(train_command(path)).returncode == 130
    monkeypatch.setattr(precision, "computes_bf16_fast", lambda: True)  # another machine
    done = run_here(train_command(path))
    assert done.returncode == 2 and "mixed_precision: no" in done.stderr.splitlines()[-1]
    done = run_here(train_command(recipe(path, pool, mixed_precision="no")))
    assert done.returncode == 0, done.stderr


def test_training_prints_its_model_and_warns_of_a_slow_format(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "computes_bf16_fast", lambda: False)
    path = recipe(tmp_path / "x.yaml", pool, max_steps=2, bf16=True)
    done = run_here(train_command(path))
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert "LatentRM for coconut checkpoints/tiny-coconut" in first and "bfloat16 on cpu" in first
    assert "warning: mixed_precision: bfloat16 is 10 times slower" in done.stderr


def test_a_random_head_is_not_trained(pool, tmp_path):
    path = recipe(tmp_path / "x.yaml", pool, train_weights=False, digits_weight=0.0)
    assert run_here(train_command(path)).returncode == 0
    start = load_backbone("coconut", TINY)[0].transformer.state_dict()
    for name, weight in weights(path.with_suffix("")).items():
        if name.startswith("transformer."):
            assert torch.equal(weight, start[name.removeprefix("transformer.")])
    assert json.loads((path.with_suffix("") / "metrics.json").read_text())["steps"] == 0


def test_early_stopping_ends_training(pool, tmp_path):
    path = recipe(
        tmp_path / "x.yaml", pool, max_steps=40, learning_rate=1e-12, early_stopping_patience=2,
        output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    assert run_here(train_command(path)).returncode == 0
    assert json.loads((tmp_path / "out/metrics.json").read_text())["steps"] == 6  # 2, and 2 more


def test_an_evaluation_counts_once_also_that_at_the_start(pool, tmp_path, monkeypatch):
    """The patience of an interrupted training is that of a whole one; each pool is evaluated."""
    path = recipe(
        tmp_path / "x.yaml", pool, max_steps=40, learning_rate=1e-12, early_stopping_patience=2,
        eval_on_start=True, eval_pools={"test_n_4": str(pool), "other": str(pool)},
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_determine_best_metric", _interrupt_at_step_4)
        assert run_here(train_command(path)).returncode == 130
    warnings = []
    monkeypatch.setattr("transformers.trainer_callback.logger.warning", warnings.append)
    done = run_here(train_command(path))
    assert done.returncode == 0, done.stderr
    assert not warnings
    metrics = json.loads((tmp_path / "x/metrics.json").read_text())
    steps = [log["step"] for log in metrics["history"] if "eval_test_n_4_recall_at_1" in log]
    assert (metrics["steps"], steps) == (6, [0, 2, 4, 6])


def _interrupt_at_step_4(trainer, metrics, trial, plain=Trainer._determine_best_metric):
    if trainer.state.global_step == 4:
        raise KeyboardInterrupt
    return plain(trainer, metrics, trial)


@pytest.mark.parametrize("loss", ["contrastive", "bce"])
@pytest.mark.parametrize("key", ["scores_answer", "reads_answer"])
def test_batching_and_padding_change_no_loss(pool, loss, key):
    """Gradients of a batch are the mean of those of its questions alone."""
    dataset = TrajectoryDataset([pool], *WORDS, "rollout", with_digits=True)
    torch.manual_seed(0)
    judge = random_latent_rm(n_embd=128)
    judge.config.update({"end_latent_token_id": 3, key: True})
    weights = {"digits_weight": 0.5, "order_weight": 0.5}
    weights["answer_weight"] = 0.5 * (key == "scores_answer")
    model = RewardLoss(judge, {loss: 1.0}, **weights)
    order = sorted(range(len(dataset)), key=lambda i: dataset.prompt_lengths[i])
    items = [dataset[i] for i in (order[0], order[-1], order[len(order) // 2])]
    losses = [model(**collate([item]))["loss"] for item in items]
    together = model(**collate(items))["loss"]
    torch.testing.assert_close(together, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


def test_training_learns_the_right_answer_and_evaluation_scores_the_sampled_one(pool):
    dataset = TrajectoryDataset([pool], *WORDS)
    batch = collate([dataset[i] for i in range(3)])
    judge = random_latent_rm(n_embd=128)
    judge.config.end_latent_token_id, judge.config.scores_answer = 3, True
    model = RewardLoss(judge, {"contrastive": 0.0}, answer_weight=1.0)
    prompt = [
        batch[key] for key in ("input_ids", "attention_mask", "latent_embeds", "latent_lengths")
    ]
    gold = batch["gold_ids"][:, None].expand(-1, 4, -1)
    right = TOKENIZER.decode(batch["gold_ids"][0][batch["gold_ids"][0] >= 0])
    assert right.startswith("### ")
    with torch.no_grad():
        expected = -log_prob(judge.read(*prompt, gold)[1], gold).mean()
        torch.testing.assert_close(model.train()(*prompt, **_rest(batch))["loss"], expected)
        thoughts = judge(*prompt, batch["answer_ids"])[..., :-1].sum(-1)
        scores = model.eval()(*prompt, **_rest(batch))["scores"] - thoughts
        answer_scores = log_prob(judge.read(*prompt, batch["answer_ids"])[1], batch["answer_ids"])
    torch.testing.assert_close(scores, answer_scores)


def log_prob(logits, answers):
    """log p (Q, N) of answers (Q, N, A), padded with -1, from logits (Q, N, A, V) before them."""
    tokens = logits.log_softmax(-1).gather(-1, answers.clamp(min=0)[..., None])[..., 0]
    return (tokens * (answers >= 0)).sum(-1)


def _rest(batch):
    names = ("labels", "answer_ids", "gold_ids", "digits", "corrects", "predictions")
    return {name: batch[name] for name in names}


def test_digit_targets_are_those_of_results_and_answers(pool):
    dataset = TrajectoryDataset([pool], *WORDS, "outcome", with_digits=True)
    item, (source, position) = dataset[0], dataset.index[0]
    row = dataset.rows[source][source[position]["idx"]]
    ones_first = [int(x) for x in row["answer"][::-1]]
    assert item["digits"]["true"].tolist() == (ones_first + [10] * 3)[:3]
    first = row["steps"][0].rpartition("=")[2].rstrip(">")
    assert item["digits"]["step"][0].tolist() == ([int(x) for x in first[::-1]] + [10] * 3)[:3]
    assert item["digits"]["own"].shape == (4, 3)
    for digits, right in zip(item["digits"]["own"], item["corrects"], strict=True):
        assert torch.equal(digits, item["digits"]["true"]) == bool(right)


def test_mixed_only_leaves_out_questions_without_a_ranking(tmp_path):
    done = run_here(command(
        "annotate_data", "--data_path", "data/tiny_valid.json", "--limit", 20, "--n_samples", 4,
        "--n_samples_per_step", 0, "--max_new_tokens", 8, "--sampling_by", "noise",
        "--save_path", tmp_path, "--name", "x",
    ))  # fmt: skip
    assert done.returncode == 0, done.stderr
    every = TrajectoryDataset([tmp_path / "x"], *WORDS)
    mixed = TrajectoryDataset([tmp_path / "x"], *WORDS, mixed_only=True)
    assert len(every) == 20 > len(mixed) > 0
    assert all(item["corrects"].any() and not item["corrects"].all() for item in mixed)
    with pytest.raises(UserError, match="no rollouts"):
        TrajectoryDataset([tmp_path / "x"], *WORDS, "rollout")


@pytest.mark.quick
def test_pool_metrics_equal_those_by_hand():
    answers = np.array([[1.0, 2.0, 2.0, math.nan], [5.0, 5.0, 6.0, 7.0], [3.0, 3.0, 3.0, 3.0]])
    corrects = np.array([[True, False, False, False], [False, False, True, False], [False] * 4])
    scores = np.zeros((3, 4))
    scores[0, 0], scores[0, 3], scores[1, 1] = 6.0, 18.0, 2.0  # the unparsable one scores highest
    metrics = pool_metrics(SimpleNamespace(predictions=scores, label_ids=(corrects, answers)))
    assert metrics["recall_at_1"] == pytest.approx(33.33)
    assert metrics["weighted_vote"] == pytest.approx(33.33)
    assert metrics["vote"] == 0
    assert metrics["coverage"] == pytest.approx(66.67)
    assert metrics["mean_accuracy"] == pytest.approx(16.67)
    assert metrics["auc"] == pytest.approx(((2 / 3) + (1 / 3)) / 2)


@pytest.mark.quick
def test_the_order_depends_on_seed_and_epoch_only():
    lengths = [random.Random(i).randint(5, 40) for i in range(103)]
    sampler = LengthSampler(lengths, 8, 1)
    first = list(sampler)
    assert len(first) == len(sampler) == 96
    assert len(set(first)) == 96
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(LengthSampler(lengths, 8, 2)) != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": 1}, "learning_rat"), ({"loss": {"mse": 1.0}}, "contrastive"),
        ({"labels": "gold"}, "labels"), ({"train_pools": []}, "train_pools"),
        ({"model_id": "nowhere"}, "nowhere"), ({"train_pools": ["nowhere"]}, "nowhere"),
        ({"output_dir": "checkpoints/tiny-coconut"}, "finished"),
        ({"metric_for_best_model": "test_n_8_recall"}, "test_n_8_recall"),
        ({"eval_pools": None}, "eval_pools"), ({"eval_steps": "often"}, "eval_steps"),
        ({"metric_for_best_model": None}, "metric_for_best_model"),
        ({"extra_layers": -1}, "negative"), ({"order_weight": -1.0}, "order_weight"),
        ({"reads_answer": True, "answer_weight": 1.0}, "reads_answer"),
        ({"loss": {"bce": "much"}}, "loss.bce"),
        ({"gradient_accumulation_steps": 30}, "batch"),
        ({"per_device_train_batch_size": 100}, "batch"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_reward_recipe_is_one_line(pool, tmp_path, changes, message):
    done = run_here(train_command(recipe(tmp_path / "x.yaml", pool, **changes)))
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert "Traceback" not in done.stderr
