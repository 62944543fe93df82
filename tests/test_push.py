"""--push_to_hub: what is sent, when, and that nothing is sent without it.

``Hub`` stands in for huggingface_hub.HfApi; the other tests of the project run offline.
"""

import json
import shutil
from inspect import signature
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects

from src.runs.job import Job
from tests.commands import assert_one_line_error, assert_success, command, run, run_here
from tests.test_train_reward import pool, recipe  # noqa: F401  (pool is a fixture)
from tests.test_training import write_recipe
from utils import hub
from utils.datasets import load_dataset

DATA = ("--data_path", "data/tiny_valid.json", "--limit", 3)
SAMPLE = ("--sampling_by", "noise", "--n_samples", 2)
REPO = ("--push_to_hub", "someone/thing")
RUNS = {
    "infer_gpt2": (*SAMPLE, "--save_latents", "true"),
    "infer_gpt2_rm": SAMPLE,
    "infer_llama": SAMPLE,
    "infer_llama_rm": SAMPLE,
}
RUN_FILES = {"config.json", "flags.yaml", "metrics.json", "samples.jsonl"}
CHECKPOINT = {
    "README.md", "config.json", "metrics.json", "model.safetensors", "recipe.yaml",
    "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


class Hub:
    """What was sent: a list of (repository, its type, {file: content})."""

    sent = []
    fault = None

    def create_repo(self, *given, **named):
        bound = signature(HfApi.create_repo).bind(self, *given, **named).arguments
        assert bound["exist_ok"]
        if self.fault:
            raise self.fault
        return SimpleNamespace(repo_id=bound["repo_id"])

    def upload_folder(self, **named):
        bound = signature(HfApi.upload_folder).bind(self, **named).arguments
        folder = bound["folder_path"]
        paths = (path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in paths]
        names = filter_repo_objects(names, allow_patterns=bound["allow_patterns"])
        files = {name: (folder / name).read_bytes() for name in names}
        self.sent.append((bound["repo_id"], bound["repo_type"], files))


@pytest.fixture
def online(monkeypatch):
    """A hub that takes what is sent to it; its list ``sent``."""
    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_token", lambda: "token")
    monkeypatch.setattr(Hub, "sent", [])
    return Hub.sent


@pytest.fixture
def forbidden(monkeypatch):
    """A hub that must not be called."""

    def call():
        raise AssertionError("the hub was called")

    monkeypatch.setattr(hub, "HfApi", call)


@pytest.mark.parametrize("module", RUNS)
def test_a_finished_run_is_sent_by_repeating_its_command(module, tmp_path, online):
    place = ("--output_dir", tmp_path / "run")
    line = command(module, *DATA, *RUNS[module], *place)
    assert_success(run_here(line))
    assert not online
    (tmp_path / "run/notes.txt").write_text("mine")
    (tmp_path / "run/.samples.jsonl.x.tmp").write_text("half")
    flags = (tmp_path / "run/flags.yaml").read_text()
    result = assert_success(run_here([*line, *REPO]))
    assert "question/s" not in result.stderr  # the run was finished
    assert "pushed" in result.stdout.splitlines()[-1]
    ((repo, kind, files),) = online
    assert (repo, kind) == ("someone/thing", "dataset")
    latents = {f"latents/00000{i}.safetensors" for i in range(3)}
    assert files.keys() == RUN_FILES | (latents if module == "infer_gpt2" else set())
    assert files["samples.jsonl"] == (tmp_path / "run/samples.jsonl").read_bytes()
    assert (tmp_path / "run/flags.yaml").read_text() == flags


def test_a_new_run_is_sent_once_it_is_finished(tmp_path, online):
    """The flag changes neither the folder's name nor what is in it, and may stand in a file."""
    (tmp_path / "flags.yaml").write_text("push_to_hub: someone/thing\n")
    outputs = ("--output_dir", tmp_path / "run")
    line = command("infer_gpt2", "--config", tmp_path / "flags.yaml", *DATA, *SAMPLE, *outputs)
    assert_success(run_here(line))
    ((_, _, files),) = online
    assert json.loads(files["metrics.json"])["questions"] == 3
    assert b"someone" not in b"".join(files.values())


def test_a_pool_is_sent_without_its_other_files(tmp_path, online):
    place = ("--save_path", tmp_path, "--name", "pool", "--n_samples_per_step", 0)
    assert_success(run_here(command("annotate_data", *DATA, *SAMPLE, *place, *REPO)))
    ((_, kind, files),) = online
    assert kind == "dataset"
    names = {"config.json", "flags.yaml", "manifest.json", "shard_00000.safetensors"}
    assert files.keys() == names


def test_a_sweep_sends_its_runs_when_all_are_finished(tmp_path, online):
    cells = [
        f"src.infer_gpt2 --limit 2 --do_sample false --output_dir {tmp_path / name} {flags}"
        for name, flags in (("a", "--push_to_hub someone/a"), ("b", ""))
    ]
    (tmp_path / "cells.txt").write_text("\n".join(cells))
    assert_success(run_here(command("sweep", tmp_path / "cells.txt")))
    assert [repo for repo, _, _ in online] == ["someone/a"]
    assert (tmp_path / "b/metrics.json").is_file()


def small_backbone(folder, **values):
    """The recipe of a backbone's training of a few steps."""
    (folder / "few.json").write_text(json.dumps(load_dataset("data/tiny_valid.json")[:20]))
    stages = [{"epochs": 1, "learning_rate": 1e-3}]
    values = {"stages": stages, "problems_per_epoch": 100} | values
    return write_recipe(folder / "x.yaml", valid=str(folder / "few.json"), **values)


def train_and_push(module, path, online):
    """The files of a checkpoint that is pushed after its training, and again without training."""
    line = command(module, path, *REPO)
    assert_success(run_here(line))
    shutil.copytree(path.with_suffix(""), path.with_suffix(".copy"))
    again = assert_success(run_here(line))
    assert "wrote" not in again.stdout
    (repo, kind, files), repeated = online
    assert (repo, kind, files) == repeated
    assert (repo, kind) == ("someone/thing", "model")
    return files


def test_a_backbone_is_sent_after_its_training_and_again_by_the_same_command(tmp_path, online):
    files = train_and_push("train_backbone", small_backbone(tmp_path), online)
    assert files.keys() == CHECKPOINT | {"generation_config.json"}
    other = small_backbone(tmp_path, seed=2)
    assert_one_line_error(run_here(command("train_backbone", other, *REPO)), "a finished model")


def test_a_reward_model_is_sent_without_the_trainer_s_state(pool, tmp_path, online):  # noqa: F811
    path = recipe(tmp_path / "x.yaml", pool, max_steps=2)
    assert train_and_push("train", path, online).keys() == CHECKPOINT
    assert list((tmp_path / "x").glob("checkpoint-*/optimizer.pt"))


@pytest.mark.quick
def test_nothing_is_sent_without_the_flag(tmp_path, forbidden):
    place = ("--output_dir", tmp_path / "run")
    assert_success(run_here(command("infer_gpt2", *DATA, "--do_sample", "false", *place)))
    place = ("--save_path", tmp_path, "--n_samples_per_step", 0)
    assert_success(run_here(command("annotate_data", *DATA, *SAMPLE, *place)))
    assert_success(run_here(command("train_backbone", small_backbone(tmp_path))))


LINES = {
    "infer_gpt2": (*DATA, "--do_sample", "false"),
    "annotate_data": DATA,
    "train": ("{recipe}",),
    "train_backbone": ("{recipe}",),
}


def assert_refused(module, repo, folder, *parts):
    """A push that can't succeed is refused before anything is done."""
    flags = [str(flag).replace("{recipe}", str(folder / "x.yaml")) for flag in LINES[module]]
    if module.startswith("train"):
        small_backbone(folder)
    result = run_here(command(module, *flags, "--push_to_hub", repo))
    assert_one_line_error(result, f"--push_to_hub {repo}: ", *parts)
    assert not (folder / "x").exists()


@pytest.mark.quick
@pytest.mark.parametrize("module", LINES)
@pytest.mark.parametrize("repo", ["a/b/c", "someone/a--b", "someone/ü", "someone/x.git"])
def test_an_invalid_id_is_refused_at_once(module, repo, tmp_path, online):
    assert_refused(module, repo, tmp_path, "not the id of a repository")


@pytest.mark.quick
@pytest.mark.parametrize("module", LINES)
def test_a_missing_token_is_noticed_at_once(module, tmp_path, online, monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    assert_refused(module, "someone/thing", tmp_path, "no token", "hf auth login", "HF_TOKEN")


@pytest.mark.quick
def test_offline_nothing_is_sent(tmp_path, forbidden):
    assert_refused("infer_gpt2", "someone/thing", tmp_path, "HF_HUB_OFFLINE")


def test_a_process_of_its_own_that_is_offline_sends_nothing(tmp_path):
    place = ("--output_dir", tmp_path / "run")
    result = run(command("infer_gpt2", *DATA, *place, *REPO))
    assert_one_line_error(result, "--push_to_hub someone/thing", "HF_HUB_OFFLINE")
    assert not (tmp_path / "run").exists()


def test_a_failed_upload_is_one_line_and_the_run_stays_finished(tmp_path, online, monkeypatch):
    place = ("--output_dir", tmp_path / "run")
    line = command("infer_gpt2", *DATA, "--do_sample", "false", *place, *REPO)
    monkeypatch.setattr(Hub, "fault", ConnectionError("no\nroute"))
    parts = ("someone/thing: not pushed (ConnectionError: no route)", "is finished", "repeat")
    assert_one_line_error(run_here(line), *parts, after_progress=True)
    assert (tmp_path / "run/metrics.json").is_file()
    monkeypatch.setattr(Hub, "fault", None)
    assert_success(run_here(line))
    assert len(online) == 1


@pytest.mark.quick
def test_only_the_first_process_sends(forbidden):
    arguments, second = SimpleNamespace(push_to_hub="a/b"), SimpleNamespace(is_main_process=False)
    Job.push(SimpleNamespace(arguments=arguments, processes=second))


@pytest.mark.quick
@pytest.mark.parametrize("key", ["push_to_hub", "hub_model_id", "hub_token"])
def test_the_trainer_s_own_keys_are_refused_in_favour_of_the_flag(tmp_path, key):
    path = recipe(tmp_path / "x.yaml", tmp_path)
    values = yaml.safe_load(path.read_text()) | {key: "someone/thing"}
    path.write_text(yaml.safe_dump(values))
    assert_one_line_error(run_here(command("train", path)), key, "--push_to_hub REPO")
