"""--report_to: the trackers of both trainings."""

import json
import os
import sys
from types import SimpleNamespace

import pytest
import transformers.integrations.integration_utils as integrations
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from transformers import TrainerCallback

from src.training import trackers
from src.training.backbone_recipe import Recipe
from src.training.backbone_trainer import BackboneTrainer
from tests.commands import assert_one_line_error, assert_success, command, run_here
from tests.conftest import raises_user_error
from tests.recipes import load_recipe, load_yaml
from tests.test_train_reward import pool, recipe  # noqa: F401  (pool is a fixture)
from tests.test_training import write_recipe
from utils.datasets import load_dataset

STAGES = [
    {"thoughts": 0, "hidden_steps": 0, "epochs": 1, "learning_rate": 1e-3},
    {"thoughts": 2, "hidden_steps": -1, "epochs": 1, "learning_rate": 1e-3},
]


class Recorder(GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "recorder"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.settings, self.lines, self.finished = {}, [], False

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step=None):
        self.lines.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture(autouse=True)
def restored_environment(monkeypatch):
    """Tells pytest to restore what the Trainer's trackers are told by the environment."""
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.setenv(name, "")


def few_problems(folder):
    """The path of a small validation file."""
    path = folder / "few.json"
    path.write_text(json.dumps(load_dataset("data/tiny_valid.json")[:20]))
    return str(path)


def logged(trainer_recipe, stop_after=None, monkeypatch=None):
    """What a backbone's training logs, up to an interruption after some optimizer steps."""
    recorder, taken, step = Recorder(), 0, BackboneTrainer._step

    def counted(self, *args):
        nonlocal taken
        taken += 1
        if taken == stop_after:
            raise InterruptedError
        return step(self, *args)

    trainer = BackboneTrainer(trainer_recipe, Accelerator(cpu=True, log_with=recorder))
    if stop_after is None:
        trainer.run()
    else:
        with monkeypatch.context() as patch, pytest.raises(InterruptedError):
            patch.setattr(BackboneTrainer, "_step", counted)
            trainer.run()
    assert recorder.finished
    return recorder


def test_a_backbone_s_metrics_are_logged_with_steps_that_go_on_after_a_resume(
    tmp_path, monkeypatch
):
    values = {
        "stages": STAGES,
        "problems_per_epoch": 150,
        "batch_size": 2,
        "valid": few_problems(tmp_path),
    }
    whole = logged(load_yaml(write_recipe(tmp_path / "whole.yaml", **values), Recipe))
    assert json.loads(whole.settings["stages"])[0]["epochs"] == 1
    accuracies = [line for _, line in whole.lines if "valid_accuracy" in line]
    history = json.loads((tmp_path / "whole/metrics.json").read_text())["history"]
    assert [x["valid_accuracy"] for x in accuracies] == [x["valid_accuracy"] for x in history]
    assert [(x["stage"], x["epoch"]) for x in accuracies] == [(0, 1), (1, 1)]
    running = [(step, line) for step, line in whole.lines if "loss" in line]
    assert [step % 50 for step, line in running if line["stage"] == 0] == [0]
    assert running[0][1].keys() == {"loss", "right", "learning_rate", "stage", "epoch"}
    steps = [step for step, _ in whole.lines]
    assert steps == sorted(steps) and steps[-1] > 100

    recipe_again = load_yaml(write_recipe(tmp_path / "again.yaml", **values), Recipe)
    first = logged(recipe_again, 75, monkeypatch)
    rest = logged(recipe_again)
    assert [step for step, _ in first.lines + rest.lines] == steps
    assert rest.lines[-1] == whole.lines[-1]


@pytest.mark.quick
def test_a_tracker_is_no_part_of_what_is_resumed(tmp_path):
    path = write_recipe(tmp_path / "x.yaml")
    plain = load_yaml(path, Recipe)
    other = load_yaml(write_recipe(tmp_path / "x.yaml", report_to="wandb"), Recipe)
    assert plain.fingerprint() == other.fingerprint()


@pytest.mark.quick
@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_tracker_is_one_line_that_names_its_package(tmp_path, monkeypatch, name):
    monkeypatch.setitem(trackers._INSTALLED, name, lambda: False)
    path = write_recipe(tmp_path / "backbone.yaml")
    result = run_here(command("train_backbone", path, "--report_to", name))
    assert_one_line_error(result, f"report_to: {name} needs a package: pip install {name}")
    path = recipe(tmp_path / "reward.yaml", tmp_path)
    result = run_here(command("train", path, "--report_to", name))
    assert_one_line_error(result, f"report_to: {name} needs a package: pip install {name}")
    with raises_user_error("reward.yaml", name):
        load_recipe(recipe(tmp_path / "reward.yaml", tmp_path, report_to=[name]))
    assert not (tmp_path / "backbone").exists() and not (tmp_path / "reward").exists()


@pytest.mark.quick
def test_a_tracker_that_does_not_start_is_one_line(tmp_path, monkeypatch):
    def fails(self, values):
        raise RuntimeError("api_key not\nconfigured")

    monkeypatch.setattr(Recorder, "store_init_configuration", fails)
    values = {"report_to": "wandb", "valid": few_problems(tmp_path)}
    trainer_recipe = load_yaml(write_recipe(tmp_path / "x.yaml", **values), Recipe)
    trainer = BackboneTrainer(trainer_recipe, Accelerator(cpu=True, log_with=Recorder()))
    with raises_user_error("report_to: wandb", "api_key not configured", "leave out --report_to"):
        trainer.run()


@pytest.mark.quick
@pytest.mark.parametrize("module", ["train", "train_backbone"])
def test_an_unknown_tracker_is_refused(tmp_path, module):
    result = run_here(command(module, tmp_path / "x.yaml", "--report_to", "tensorbord"))
    assert_one_line_error(result, "--report_to", "'tensorbord'")
    if module == "train_backbone":
        with raises_user_error("report_to must be one of none, tensorboard, wandb"):
            load_yaml(write_recipe(tmp_path / "x.yaml", report_to="x"), Recipe)


@pytest.mark.quick
def test_the_flag_wins_over_the_recipe(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers._INSTALLED, "wandb", lambda: False)
    path = recipe(tmp_path / "reward.yaml", tmp_path, report_to="wandb")
    assert load_recipe(path, "none").report_to == []
    values = {"stages": [STAGES[0]], "problems_per_epoch": 100, "valid": few_problems(tmp_path)}
    path = write_recipe(tmp_path / "x.yaml", report_to="wandb", **values)
    assert_success(run_here(command("train_backbone", path, "--report_to", "none")))


def test_the_flag_reaches_the_trainer_of_a_reward_model(pool, tmp_path, monkeypatch):  # noqa: F811
    """A stand-in for TensorBoard's callback; its logs belong below output_dir."""
    steps, folders = [], set()

    class Callback(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            steps.append(state.global_step)
            folders.add(os.environ["TENSORBOARD_LOGGING_DIR"])

    monkeypatch.setitem(trackers._INSTALLED, "tensorboard", lambda: True)
    monkeypatch.setitem(integrations.INTEGRATION_TO_CALLBACK, "tensorboard", Callback)
    path = recipe(tmp_path / "x.yaml", pool)
    assert_success(run_here(command("train", path, "--report_to", "tensorboard")))
    assert steps == sorted(steps) and steps[0] == 2 and steps[-1] == 6
    assert folders == {str(tmp_path / "x/logs")}


def test_w_and_b_without_a_login_is_one_line(pool, tmp_path, monkeypatch):  # noqa: F811
    def login():
        raise RuntimeError("No API key")

    monkeypatch.setitem(trackers._INSTALLED, "wandb", lambda: True)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(login=login))
    result = run_here(command("train", recipe(tmp_path / "x.yaml", pool), "--report_to", "wandb"))
    assert_one_line_error(result, "report_to: wandb does not start (No API key)", "log in")


def events(folder):
    """{tag: [(step, value)]} of the TensorBoard files below a folder."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = {}
    for path in sorted(folder.rglob("events.out*")):
        accumulator = reader.EventAccumulator(str(path)).Reload()
        for tag in accumulator.Tags()["scalars"]:
            of_tag = [(event.step, event.value) for event in accumulator.Scalars(tag)]
            found.setdefault(tag, []).extend(of_tag)
    return found


def files_of(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_tensorboard_adds_logs_and_changes_no_file_of_a_backbone(tmp_path):
    pytest.importorskip("tensorboard")
    values = {
        "stages": [STAGES[0]],
        "problems_per_epoch": 700,
        "valid": few_problems(tmp_path),
    }
    for name, flags in (("plain", ()), ("tracked", ("--report_to", "tensorboard"))):
        (tmp_path / name).mkdir()
        path = write_recipe(tmp_path / name / "x.yaml", output_dir=str(tmp_path / "x"), **values)
        assert_success(run_here(command("train_backbone", path, *flags)))
        (tmp_path / "x").rename(tmp_path / name / "x")
    found = events(tmp_path / "tracked/x/logs")
    assert [step for step, _ in found["loss"]] == [50]
    metrics = json.loads((tmp_path / "tracked/x/metrics.json").read_text())
    assert found["valid_accuracy"][0][1] == pytest.approx(metrics["valid_accuracy"])
    plain, tracked = files_of(tmp_path / "plain/x"), files_of(tmp_path / "tracked/x")
    tracked = {name: data for name, data in tracked.items() if not name.startswith("logs/")}
    assert plain.keys() == tracked.keys()
    differ = {name for name in plain if plain[name] != tracked[name]}
    assert differ <= {"metrics.json"}  # the minutes


def test_tensorboard_shows_a_reward_model_s_training(pool, tmp_path):  # noqa: F811
    pytest.importorskip("tensorboard")
    path = recipe(tmp_path / "x.yaml", pool, report_to="tensorboard")
    assert_success(run_here(command("train", path)))
    found = events(tmp_path / "x/logs")
    assert [step for step, _ in found["train/loss"]] == [2, 4, 6]
