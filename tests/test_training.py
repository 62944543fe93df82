"""The curriculum: batches, the loss against the plain way, resume, processes."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file

from src.models import precision
from src.models.loading import checkpoint_defaults
from src.sampling import rng
from src.sampling.engine import sample
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request
from src.training.backbone_recipe import Recipe
from src.training.backbone_trainer import BackboneTrainer
from src.training.curriculum import Stage, TinyProblems, batches, make_source
from src.training.losses.coconut import CoconutLoss
from src.training.model_card import model_card
from tests.commands import ROOT, command, run, run_here
from tests.conftest import random_coconut
from tests.recipes import load_yaml
from utils.datasets import load_dataset
from utils.errors import UserError
from utils.progress import Pace

ROWS = load_dataset(ROOT / "data/tiny_valid.json")[:200]
STAGE = {"thoughts": 2, "hidden_steps": 0, "epochs": 1, "learning_rate": 1e-3}
PLAIN = {"epochs": 1, "learning_rate": 1e-3}
CONFIG = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "initializer_range": 0.06}


def accept_all(row):
    return True


def stage_of(thoughts, hidden_steps, **values):
    return Stage(
        epochs=1, learning_rate=1e-3, thoughts=thoughts, hidden_steps=hidden_steps, **values
    )


def loss_of(model, tokenizer, probe=0.0):
    return CoconutLoss(model, CoconutLoss.default_settings | {"probe": probe}, tokenizer)


def some_batches(stage, size=4, remainder="drop"):
    model, tokenizer = random_coconut(n_positions=128)
    format_row = loss_of(model, tokenizer).format_row
    batch_list = batches(ROWS, tokenizer, format_row, stage, size, "seed", remainder)
    return model, tokenizer, list(batch_list)


@pytest.mark.quick
def test_batches_hold_prompts_of_one_length():
    stage = stage_of(4, 2)
    _, tokenizer, batch_list = some_batches(stage)
    assert len(batch_list) > 20
    for batch in batch_list:
        assert batch.prompts.shape[0] == 4
        assert tokenizer.pad_token_id not in batch.prompts
        assert batch.digits.shape == (4, 2, 3)
        assert set(batch.prompt_lengths.tolist()) == {batch.prompts.shape[1]}


@pytest.mark.quick
def test_problems_that_fill_no_batch_are_padded_or_kept():
    stage = stage_of(4, 2)
    for remainder, expected in (("pad", len(ROWS) - len(ROWS) % 7), ("all", len(ROWS))):
        _, _, batch_list = some_batches(stage, 7, remainder)
        assert sum(len(batch.prompts) for batch in batch_list) == expected
    assert any(len(set(batch.prompt_lengths.tolist())) > 1 for batch in batch_list)


@pytest.mark.quick
def test_a_stage_hides_its_steps_from_the_text():
    row = {"question": "", "steps": ["<<1+2=3>>", "<<3*4=12>>"], "answer": "12"}
    module = loss_of(*random_coconut())

    def text(hidden_steps):
        return module.format_row(row, stage_of(0, hidden_steps))[1]["text"]

    assert text(0) == "<|end-latent|><<1+2=3>>\n<<3*4=12>>\n### 12<|endoftext|>"
    assert text(1) == "<|end-latent|><<3*4=12>>\n### 12<|endoftext|>"
    assert text(3) == text(-1) == "<|end-latent|>### 12<|endoftext|>"


@pytest.mark.quick
def test_probe_targets_are_the_digits_of_the_results():
    row = {
        "question": "A shirt costs 9 dollars.",
        "steps": ["<<1+2=3>>", "<<3*4=12>>"],
        "answer": "12",
    }
    model, tokenizer = random_coconut()
    format_row = loss_of(model, tokenizer).format_row
    (batch,) = batches([row], tokenizer, format_row, stage_of(6, -1), 1, "s", "all")
    assert batch.digits.tolist() == [[[3, 10, 10], [2, 1, 10], [2, 1, 10]]]  # the last step repeats


@pytest.mark.quick
def test_the_tiny_stream_leaves_out_held_out_questions(tmp_path):
    whole = list(TinyProblems(3, 50, []).epoch(1))
    path = tmp_path / "held_out.json"
    path.write_text(json.dumps([whole[4], whole[7]]))
    stream = list(make_source("tiny", 3, 50, [path], accept_all).epoch(1))
    assert stream == [row for i, row in enumerate(whole) if i not in (4, 7)]


@pytest.mark.quick
def test_a_training_file_is_read_without_held_out_questions(tmp_path):
    """Questions that differ in case and white space only are the same."""
    rows = ROWS[:20]
    loud = rows[3] | {"question": "  " + rows[3]["question"].upper()}
    for name, part in (("train", rows), ("held_out", [loud, rows[7]])):
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    held_out = [tmp_path / "held_out.json"]
    source = make_source(str(tmp_path / "train.json"), 3, None, held_out, accept_all)
    assert source.num_held_out == 2
    questions = [row["question"] for row in source.epoch(0)]
    assert sorted(questions) == sorted(
        row["question"] for i, row in enumerate(rows) if i not in (3, 7)
    )


@pytest.mark.quick
def test_short_epochs_go_on_where_the_last_one_ended(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(ROWS[:10]))
    whole = make_source(str(path), 3, None, [], accept_all)
    short = make_source(str(path), 3, 4, [], accept_all)
    assert len(short) == 4
    expected = [row for number in range(2) for row in whole.epoch(number)]
    assert [row for number in range(5) for row in short.epoch(number)] == expected


@pytest.mark.quick
def test_rows_that_the_loss_does_not_accept_are_left_out(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(ROWS[:10]))
    source = make_source(str(path), 3, None, [], lambda row: row in ROWS[:3])
    assert sorted(row["question"] for row in source.epoch(0)) == sorted(
        row["question"] for row in ROWS[:3]
    )
    with pytest.raises(UserError, match="no question with an answer that can be learned"):
        make_source(str(path), 3, None, [], lambda row: False)


def plain_loss(model, batch, thoughts):
    """By the Hugging Face model, without a cache: one forward over all embeddings a thought."""
    x = model.transformer.wte(batch.prompts)
    for _ in range(thoughts):
        state = model.transformer(inputs_embeds=x).last_hidden_state[:, -1:]
        x = torch.cat((x, state), dim=1)
    x = torch.cat((x, model.transformer.wte(batch.texts["text"][:, :-1].clamp(min=0))), dim=1)
    hidden = model.transformer(inputs_embeds=x).last_hidden_state
    logits = model.lm_head(hidden[:, -batch.texts["text"].shape[1] + 1 :])
    return F.cross_entropy(
        logits.flatten(0, 1), batch.texts["text"][:, 1:].flatten(), ignore_index=-100
    )


@pytest.mark.quick
def test_padding_of_prompts_changes_no_loss():
    """The loss of a batch of different lengths is that of its rows alone."""
    model, tokenizer, _ = some_batches(stage_of(6, -1))
    rows, stage = sorted(ROWS[:8], key=lambda row: len(row["question"])), stage_of(6, -1)
    module = loss_of(model, tokenizer)

    def summed(part):
        (batch,) = batches(part, tokenizer, module.format_row, stage, len(part), "s", "all")
        loss, right = module(batch, stage)
        return loss * batch.num_targets["text"], right.tolist()

    together = summed(rows)
    alone = [summed([row]) for row in rows]
    torch.testing.assert_close(together[0], sum(loss for loss, _ in alone), rtol=1e-4, atol=1e-4)


@pytest.mark.quick
@pytest.mark.parametrize(("thoughts", "hidden_steps"), [(0, 0), (2, 1), (6, -1)])
def test_coconut_loss_and_gradients_equal_the_uncached_ones(thoughts, hidden_steps):
    model, tokenizer, batch_list = some_batches(stage_of(thoughts, hidden_steps))
    module = loss_of(model, tokenizer)
    loss, _ = module(batch_list[0], stage_of(thoughts, hidden_steps))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected = plain_loss(model, batch_list[0], thoughts)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().clamp(min=1e-3)
        assert (gradients[name] - parameter.grad).abs().max() < 1e-3 * scale, name


def test_the_probe_s_loss_falls_in_training():
    model, tokenizer, batch_list = some_batches(stage_of(6, -1))
    module = loss_of(model, tokenizer, probe=1.0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    first = None
    for _ in range(40):
        loss, _ = module(batch_list[0], stage_of(6, -1))
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 2


@pytest.mark.quick
def test_training_drops_under_the_sampler_s_masks():
    """Training reads a prompt and thinks under the masks of the sampling engine."""
    model, tokenizer, batch_list = some_batches(stage_of(6, -1))
    sampling = Sampling("dropout", dropout_p=0.1)
    rng_keys = rng.row_keys(5, torch.arange(4), torch.zeros(4, dtype=torch.int64), "cpu")
    states, _ = loss_of(model, tokenizer).read(batch_list[0], "text", 6, sampling, rng_keys)
    sampled = sample(model, Request(batch_list[0].prompts.tolist(), range(4), 1, 6, 1, 5, sampling))
    torch.testing.assert_close(torch.stack(states, 1), sampled.thoughts[:, 0], rtol=1e-4, atol=1e-4)


def write_recipe(path, **values):
    valid = path.with_name("few_questions.json")
    valid.write_text(json.dumps(ROWS[:64]))
    recipe = {
        "output_dir": str(path.with_suffix("")), "config": CONFIG, "train": "tiny", "seed": 1,
        "problems_per_epoch": 300, "valid": str(valid), "batch_size": 8,
        "weight_decay": 0.01, "warmup_steps": 5, "loss": {"probe": 1.0}, "save_steps": 10,
        "stages": [
            {"thoughts": 0, "hidden_steps": 0, "epochs": 1, "learning_rate": 1e-3},
            {"thoughts": 4, "hidden_steps": -1, "epochs": 2, "learning_rate": 1e-3,
             "lr_scheduler_type": "linear", "final_learning_rate": 1e-4, "dropout": 0.1},
        ],
    } | values  # fmt: skip
    path.write_text(yaml.safe_dump({k: v for k, v in recipe.items() if v is not None}))
    return path


def train(recipe, processes=1):
    return run(command("train_backbone", recipe, processes=processes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    recipe = write_recipe(tmp_path_factory.mktemp("training") / "whole.yaml")
    done = train(recipe)
    assert done.returncode == 0, done.stderr
    return recipe.with_suffix("")


def test_training_writes_a_checkpoint_with_its_recipe_and_metrics(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["seed"] == 1
    assert [entry["stage"] for entry in metrics["history"]] == [0, 1, 1]
    assert 0 <= metrics["valid_accuracy"] <= 100
    assert (trained / "recipe.yaml").read_text() == trained.with_suffix(".yaml").read_text()
    assert (trained / "README.md").read_text() == model_card(trained)
    assert not (trained / "training_state.pt").exists()


def test_resumed_training_gives_the_same_weights(trained, tmp_path, monkeypatch):
    """Stopped by force after 15 and 43 optimizer steps, with the last save some steps before."""
    recipe = load_yaml(write_recipe(tmp_path / "resumed.yaml"), Recipe)
    plain_step = BackboneTrainer._step
    for allowed in (15, 33, None):
        taken = 0

        def counted(self, *args, allowed=allowed):
            nonlocal taken
            taken += 1
            if taken == allowed:
                raise InterruptedError
            return plain_step(self, *args)

        monkeypatch.setattr(BackboneTrainer, "_step", counted)
        trainer = BackboneTrainer(recipe, Accelerator(cpu=True))
        if allowed is None:
            trainer.run()
        else:
            with pytest.raises(InterruptedError):
                trainer.run()
    one = load_file(trained / "model.safetensors")
    other = load_file(tmp_path / "resumed" / "model.safetensors")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6)


def test_two_processes_train_the_same_coconut_as_one(trained, tmp_path):
    recipe = write_recipe(tmp_path / "two.yaml")
    done = train(recipe, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1
    one = load_file(trained / "model.safetensors")
    other = load_file(tmp_path / "two" / "model.safetensors")
    # Adam turns rounding differences of tiny gradients into steps: compare functions, not bits
    distance = sum((one[name] - other[name]).pow(2).sum() for name in one).sqrt()
    size = sum(one[name].pow(2).sum() for name in one).sqrt()
    assert distance < 2e-3 * size
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["processes"] == 2


@pytest.mark.parametrize("seed", [20251123, 2**63 - 1])
def test_every_allowed_seed_trains(tmp_path, seed):
    stages = [{"epochs": 1, "learning_rate": 1e-3}]
    path = write_recipe(tmp_path / "x.yaml", seed=seed, problems_per_epoch=200, stages=stages)
    done = run_here(command("train_backbone", path))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "x/metrics.json").read_text())["seed"] == seed


def test_the_finished_model_has_the_last_stage_s_number_of_thoughts(trained, tmp_path):
    """generation_config.json holds the last stage's thoughts, and the recipe's generation."""
    assert checkpoint_defaults("coconut", str(trained)).latent_length == 4
    path = write_recipe(
        tmp_path / "x.yaml", problems_per_epoch=100,
        generation={"noise_std": 0.3, "max_new_tokens": 9},
        stages=[{"epochs": 1, "learning_rate": 1e-3, "thoughts": 2, "hidden_steps": 1}],
    )  # fmt: skip
    assert run_here(command("train_backbone", path)).returncode == 0
    defaults = checkpoint_defaults("coconut", str(tmp_path / "x"))
    assert (defaults.latent_length, defaults.noise_std, defaults.max_new_tokens) == (2, 0.3, 9)


def test_training_prints_its_data_and_its_pace(tmp_path, monkeypatch):
    rows = ROWS[:40]
    for name, part in (("train", rows), ("held_out", rows[:4])):
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    monkeypatch.setattr(precision, "computes_bf16_fast", lambda: False)
    monkeypatch.setattr(Pace.__init__, "__defaults__", (0.0,))
    path = write_recipe(
        tmp_path / "x.yaml", train=str(tmp_path / "train.json"), problems_per_epoch=None,
        held_out=[str(tmp_path / "held_out.json")], mixed_precision="auto",
    )  # fmt: skip
    done = run_here(command("train_backbone", path))
    assert done.returncode == 0, done.stderr
    first, pace = done.stdout.splitlines()[:2]
    assert "36 questions an epoch" in first and "4 left out" in first and "float32 on cpu" in first
    assert "a step takes" in pace and "15 steps about" in pace
    assert json.loads((tmp_path / "x/metrics.json").read_text())["mixed_precision"] == "no"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 4096}, "no full batch of 4096"),
        ({"save_steps": 0}, "save_steps must be at least 1"),
        ({"mixed_precision": "fp8"}, "mixed_precision must be"),
        ({"config": CONFIG | {"n_head": 3}}, "config: makes no model"),
        ({"config": CONFIG | {"n_positions": 20}}, "the model has 20 positions"),
        ({"loss": {"porbe": 1.0}}, "loss: unknown key porbe"),
        ({"loss": {"probe": True}}, "loss.probe must be a number"),
        ({"new_optimizer": "step"}, "new_optimizer must be stage or epoch"),
        ({"per_device_train_batch_size": 3}, "per_device_train_batch_size: 3 does not divide 8"),
        ({"model_dropout": 0.1}, "a stage's dropout and model_dropout"),
        ({"initialize_tokens_from": "<<"}, "initialize_tokens_from: no token is new"),
        ({"model_type": "cot", "loss": {}, "stages": [PLAIN]}, "format_of"),
        ({"stages": [STAGE | {"lr_scheduler_type": "step"}]}, "lr_scheduler_type must be one of"),
        ({"stages": [STAGE | {"final_learning_rate": 1e-4}]}, "final_learning_rate needs"),
        ({"stages": [STAGE | {"speeds": [2]}]}, "speeds has no effect"),
        ({"model_type": "colar", "loss": {}, "stages": [PLAIN]}, "speeds are missing"),
        ({"model_type": "codj"}, "model_type must be one of coconut"),
        ({"held_out": ["data/none.json"]}, "data/none.json: no such data file"),
        ({"stages": [STAGE | {"thoughts": -2}]}, "thoughts >= 0"),
        ({"stages": [STAGE | {"learning_rate": -1}]}, "learning_rate"),
        ({"stages": [STAGE | {"epochs": 0}]}, "epochs >= 1"),
        ({"stages": [STAGE | {"dropout": 1.0}]}, "dropout must be in"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_an_impossible_backbone_recipe_is_refused(tmp_path, values, message):
    path = write_recipe(tmp_path / "odd.yaml", **values)
    with pytest.raises(UserError, match=message):
        BackboneTrainer(load_yaml(path, Recipe), Accelerator(cpu=True)).run()


@pytest.mark.quick
def test_a_damaged_training_state_is_named(tmp_path):
    recipe = write_recipe(tmp_path / "cut.yaml")
    state = tmp_path / "cut" / "training_state.pt"
    state.parent.mkdir()
    state.write_bytes(b"PK")
    done = run_here(command("train_backbone", recipe))
    assert f"{state} is damaged" in done.stderr


def trainer_of(tmp_path, name="x", **values):
    path = write_recipe(tmp_path / f"{name}.yaml", **values)
    return BackboneTrainer(load_yaml(path, Recipe), Accelerator(cpu=True))


SHORT = {"problems_per_epoch": 150, "stages": [STAGE | {"thoughts": 4, "hidden_steps": -1}]}


def test_several_passes_of_a_step_train_the_same_as_one(tmp_path):
    """With model_dropout, whose masks belong to the rows."""
    values = SHORT | {"model_dropout": 0.1}
    for name, size in (("whole", None), ("parts", 2)):
        trainer_of(tmp_path, name, **values, per_device_train_batch_size=size).run()
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    distance = sum((one[name] - other[name]).pow(2).sum() for name in one).sqrt()
    assert distance < 2e-3 * sum(one[name].pow(2).sum() for name in one).sqrt()


@pytest.mark.quick
def test_learning_rates_follow_the_named_schedule(tmp_path):
    def rates(warmup_steps, steps=10, **stage):
        values = SHORT | {"warmup_steps": warmup_steps, "stages": [STAGE | stage]}
        trainer, found = trainer_of(tmp_path, **values), []
        for trainer.cursor.step in range(steps):
            found.append(trainer._learning_rate(trainer.recipe.stages[0], steps) / 1e-3)
        return found

    assert rates(0) == [1.0] * 10
    assert rates(0.2)[:3] == rates(2)[:3] == [0.5, 1.0, 1.0]
    linear = rates(0, lr_scheduler_type="linear", final_learning_rate=5e-4)
    assert linear == pytest.approx([1 - 0.05 * step for step in range(10)])
    cosine = rates(2, lr_scheduler_type="cosine")
    expected = [0.5, 1.0] + [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert cosine == pytest.approx(expected)
    assert rates(0.2, lr_scheduler_type="cosine")[2:] == pytest.approx(expected[2:])


def interrupted_after(count):
    """BackboneTrainer._validate that is interrupted at the call after ``count``."""
    plain_validate, calls = BackboneTrainer._validate, []

    def validate(self, *args):
        calls.append(args)
        if len(calls) > count:
            raise InterruptedError
        plain_validate(self, *args)

    return validate


def test_the_best_weights_are_kept_and_training_stops_without_better_ones(tmp_path, monkeypatch):
    accuracies = iter([10.0, 5.0, 20.0, 20.0, 19.0])
    seen = []

    def accuracy(self, stage):
        seen.append({name: w.clone() for name, w in self.model.state_dict().items()})
        return next(accuracies), {}

    monkeypatch.setattr(BackboneTrainer, "accuracy", accuracy)
    stage = STAGE | {"epochs": 9}
    values = {"problems_per_epoch": 100, "eval_on_start": True, "stages": [stage]}
    values |= {"load_best_model_at_end": True, "early_stopping_patience": 2}
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(BackboneTrainer, "_validate", interrupted_after(3))
        trainer_of(tmp_path, **values, new_optimizer="epoch").run()
    assert (tmp_path / "x/best_weights.pt").is_file()
    trainer_of(tmp_path, **values, new_optimizer="epoch").run()
    metrics = json.loads((tmp_path / "x/metrics.json").read_text())
    assert [entry["epoch"] for entry in metrics["history"]] == [0, 1, 2, 3, 4]
    assert metrics["valid_accuracy"] == 20.0
    weights = load_file(tmp_path / "x/model.safetensors")
    for name, weight in weights.items():
        assert torch.equal(weight, seen[2][name])
    assert not torch.equal(seen[2]["transformer.wte.weight"], seen[4]["transformer.wte.weight"])
    assert not list((tmp_path / "x").glob("*.pt"))


@pytest.mark.quick
def test_biases_and_norms_may_be_spared_from_weight_decay(tmp_path):
    for spared in (False, True):
        trainer = trainer_of(tmp_path, **SHORT, weight_decay=0.1, decay_vectors=not spared)
        groups = trainer.optimizer.param_groups
        decays = {p.ndim: group["weight_decay"] for group in groups for p in group["params"]}
        assert decays == {1: 0.0 if spared else 0.1, 2: 0.1}
        count = sum(len(group["params"]) for group in groups)
        assert count == len(list(trainer.loss.parameters()))


def test_a_new_optimizer_starts_with_every_epoch(tmp_path):
    """Its state counts the steps of one epoch only."""
    values = {"problems_per_epoch": 100, "stages": [STAGE | {"epochs": 2}]}
    steps = {}
    for name in ("stage", "epoch"):
        trainer = trainer_of(tmp_path, name, **values, new_optimizer=name)
        plain_keep, counts = trainer._keep_best, []

        def keep_best(plain_keep=plain_keep, trainer=trainer, counts=counts):
            counts.append(int(next(iter(trainer.optimizer.state.values()))["step"]))
            plain_keep()

        trainer._keep_best = keep_best
        trainer.run()
        steps[name] = counts
    first = steps["epoch"][0]
    assert steps["stage"][1] == steps["stage"][0] + steps["epoch"][1]
    assert steps["stage"][0] == first
