"""Mistakes that users make. Each is a one-line error and exit code 2, and no file is lost."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.commands import ROOT, assert_one_line_error, assert_success, command, run_here

GOOD = {"question": "How many pens does Mia have?", "steps": ["<<1+1=2>>"], "answer": "2"}
INFER = ("--data_path", "{data}", "--n_samples", 2, "--output_dir", "{out}")
NOISE = ("--sampling_by", "noise")
CHOOSE = ("--data_path", "{data}", "--num_return_sequences", 2, "--output_dir", "{out}")
BEAMS = ("--prm_mode", "beam_search", "--data_path", "{data}", "--output_dir", "{out}")
RERUN = ("--data_path", "{run_data}", "--n_samples", 2, "--output_dir", "{run}")
ANNOTATE = ("--data_path", "{data}", "--save_path", "{out}", "--name", "x")


@dataclass
class Mistake:
    """A command, and the parts that its error must hold. Flags may name the ``paths``, in braces.

    files: {path below the workspace: content}, strings or bytes that are written first.
    recipe: changes to a recipe that would run, whose path the flags give.
    """

    module: str
    flags: tuple
    parts: tuple
    files: dict = field(default_factory=dict)
    recipe: dict | None = None


def data(content, *parts, module="infer_gpt2", flags=INFER):
    """A faulty data file."""
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    return Mistake(module, flags, ("data.json", *parts), {"data.json": text})


def row(**changes):
    """A data file whose second row is faulty."""
    return [GOOD, GOOD | changes]


def unknown(question, *parts, **command):
    """A data file with words that the model does not know."""
    return data([GOOD | {"question": question}], *parts, **command)


def flag(*flags, parts, module="infer_gpt2", base=INFER):
    """Impossible flags after those of a command that would run."""
    return Mistake(module, (*base, *flags), parts)


def choose(*flags, parts, base=CHOOSE):
    return flag(*flags, parts=parts, module="infer_gpt2_rm", base=base)


def beams(*flags, parts):
    return choose(*flags, parts=parts, base=BEAMS)


def annotate(*flags, parts):
    return flag(*flags, parts=parts, module="annotate_data", base=ANNOTATE)


def cells(content, *parts):
    """A faulty list of cells for src.sweep."""
    return Mistake("sweep", ("{cells}",), parts, {"cells.txt": content})


def reward(part, **changes):
    """A faulty recipe of a reward model."""
    return Mistake("train", ("{recipe}",), ("recipe.yaml", part), recipe=changes)


def backbone(part, **changes):
    """A faulty recipe of a backbone."""
    return Mistake("train_backbone", ("{recipe}",), (part,), recipe=changes)


DATA = [
    Mistake("infer_gpt2", ("--data_path", "data/none.json"), ("data/none.json", "prepare_data")),
    Mistake("infer_gpt2", ("--data_path", "data"), ("data:", "no such data file")),
    Mistake("annotate_data", ("--data_path", "none.json"), ("none.json",)),
    data(json.dumps([GOOD, GOOD])[:60], "not valid JSON"),
    data(b"\xff\xfe\x00", "not valid JSON"),
    data([], "non-empty"),
    data({"a": 1}, "JSON list"),
    data([GOOD, 3], "row 1", "object"),
    data([{"question": "How?", "steps": []}], "row 0", '"answer"'),
    data([{"steps": [], "answer": "1"}], '"question"'),
    data([{"question": "x", "answer": "1"}], '"steps"'),
    data(row(question=" "), "row 1", "non-empty string"),
    data(row(question=3), "row 1"),
    data(row(steps="<<1+1=2>>"), "row 1", "list of strings"),
    data(row(steps=[1]), "list of strings"),
    data(row(answer=[2]), "row 1", "number"),
    data(row(answer=True), "number"),
    data(row(answer="3/4"), "3/4"),
    data(row(answer="$5"), "$5"),
    data(row(answer=None), "None"),
    data(row(question="pens " * 200), "row 1", "longest questions"),
    unknown("Quantum chromodynamics?", "1 of 1", "--allow_unknown true"),
    unknown("Janet's ducks?", "unknown", module="infer_gpt2_rm", flags=CHOOSE),
    unknown("Janet's ducks?", "unknown", module="annotate_data", flags=ANNOTATE),
    unknown("Janet's ducks?", "unknown", module="infer_llama"),
]

FLAGS = [
    flag("--n_sample", 4, parts=("did you mean --n_samples?",)),
    flag("--wandb", "true", parts=("unknown flag --wandb", "--help")),
    flag("--n_samples", parts=("--n_samples", "expected one argument")),
    flag("--n_samples", "many", parts=("--n_samples", "many")),
    flag("--n_samples", 0, parts=("--n_samples", "at least 1")),
    flag("--batch_size", -2, parts=("--batch_size", "at least 1")),
    flag("--limit", 0, parts=("--limit", "at least 1")),
    flag("--latent_length", 0, parts=("--latent_length", "at least 1")),
    flag("--max_new_tokens", 0, parts=("--max_new_tokens", "at least 1")),
    flag("--max_new_tokens", 500, parts=("max_new_tokens", "positions")),
    flag("--latent_length", 500, parts=("positions",)),
    flag("--seed", -1, parts=("--seed", "2^63")),
    flag("--seed", 2**63, parts=("--seed", "2^63")),
    flag("--seed", "x", parts=("--seed",)),
    flag("--report_n", 0, parts=("--report_n",)),
    flag("--report_n", 1, 3, parts=("--report_n", "2")),
    flag("--do_sample", "perhaps", parts=("--do_sample",)),
    flag("--do_sample", "false", parts=("--do_sample", "leave out --n_samples")),
    flag(
        "--do_sample",
        "false",
        "--n_samples",
        1,
        "--noise_std",
        1,
        parts=("--noise_std has no effect",),
    ),
    flag("--sampling_by", "nois", parts=("dropout", "noise")),
    flag(*NOISE, "--noise_std", -1, parts=("noise_std",)),
    flag(*NOISE, "--noise_std", "nan", parts=("noise_std",)),
    flag(*NOISE, "--noise_std", "loud", parts=("--noise_std", "loud")),
    flag(*NOISE, "--dropout_p", 0.1, parts=("--dropout_p has no effect",)),
    flag("--dropout_p", 1.0, parts=("dropout_p", "[0, 1)")),
    flag("--dropout_mask", "never", parts=("--dropout_mask", "step")),
    flag("--model_type", "codj", parts=("--model_type", "coconut, codi, colar")),
    flag("--model_type", "colar", parts=("--model_type", "llama in its name")),
    flag("--model_type", "coconut", parts=("gpt2 in its name",), module="infer_llama"),
    flag("--model_dtype", "fp8", parts=("--model_dtype", "auto")),
    annotate("--shard_size", 0, parts=("--shard_size",)),
    annotate("--n_samples_per_step", -1, parts=("at least 0",)),
    annotate("--model_type", "colar", "--dropout_embedding", "true", parts=("no such dropout",)),
    flag(*NOISE, "--dropout_attention", "true", parts=("--dropout_attention has no effect",)),
    flag("--dropout_embedding", "true", parts=("no such dropout",), module="infer_llama"),
    choose("--num_beams", 2, parts=("--num_beams has no effect",)),
    choose("--prm_mode", "best", parts=("--prm_mode", "best_of_n")),
    choose("--score_by", "product", parts=("--score_by", "mean")),
    beams("--num_beams", 0, parts=("--num_beams", "1")),
    beams("--pool", "x", parts=("--pool has no effect",)),
    beams("--num_beam_candidates", 0, parts=("at least 1",)),
    beams("--sampling_by", "dropout", "--dropout_mask", "trajectory", parts=("--dropout_mask",)),
    choose("--guide", "rm", parts=("--guide has no effect",)),
    choose("--lookahead", 1, parts=("--lookahead has no effect",)),
    beams("--lookahead", "far", parts=("--lookahead", "answer", "'far'")),
    beams("--prm_id", "x", "--guide", "agreement", parts=("--prm_id has no effect",)),
    Mistake(
        "infer_gpt2_rm",
        ("--prm_mode", "dvts", "--guide", "likelihood", "--lookahead", 2),
        ("leave out --lookahead",),
    ),
    choose("--score_by", "prod", parts=("--score_by prod", "tiny-latentRM-coconut", "bce")),
    beams("--guide", "likelihood", "--score_by", "prod", parts=("--score_by prod", "likelihood")),
    Mistake("infer_gpt2_rm", ("--pool", "nowhere"), ("--pool nowhere", "save_latents")),
    Mistake("infer_gpt2_rm", ("--pool", "{run}", "--seed", 3), ("--seed has no effect",)),
    Mistake("infer_gpt2_rm", ("--pool", "{run}"), ("without --save_latents true",)),
    Mistake("train", (), ("recipe",)),
    Mistake("train_backbone", ("a", "b"), ("b",)),
    Mistake("prepare_data", (), ("benchmark",)),
    Mistake("prepare_data", ("small",), ("small", "tiny")),
    Mistake("prepare_data", ("tiny", "--train", "all"), ("--train", "all")),
    Mistake(
        "prepare_data", ("paper", "--source", "nowhere", "--output_dir", "{out}"), ("nowhere",)
    ),
    Mistake("collect_results", ("{out}",), ("no finished run",)),
    Mistake("plot_results", ("{out}",), ("no finished run",)),
    Mistake("plot_results", (), ("folder",)),
    Mistake("tune_sampler", ("--model_id", "some/hub-id"), ("some/hub-id", "hf download")),
    Mistake("convert_checkpoint", (), ("source",)),
    Mistake("convert_checkpoint", ("nowhere", "{out}"), ("nowhere", "hub")),
    Mistake("convert_checkpoint", ("checkpoints/tiny-coconut", "{run}"), ("holds other files",)),
    Mistake("convert_checkpoint", ("checkpoints/tiny-coconut", "{out}"), ("layout is unknown",)),
    Mistake("tune_sampler", ("--n_samples", 1), ("--n_samples", "at least 2")),
    Mistake("tune_sampler", ("--dropout_ps", 0.1, 0.2), ("--dropout_ps", "at least 3")),
    Mistake("reproduce", ("--profile", "paper"), ("data/gsm_test.json", "src.prepare_data paper")),
    Mistake("reproduce", ("--model", "gpt"), ("--model", "coconut")),
    Mistake("sweep", ("nowhere.txt",), ("nowhere.txt",)),
    cells("src.infer --x", "cells.txt", "line 1", "src.infer"),
    cells("src.infer_gpt2 --x 1", "cells.txt", "line 1", "--x"),
    cells("src.infer_gpt2 'open", "cells.txt", "line 1"),
    cells(b"\xff\xfe\x00", "not a text file"),
    cells(
        "src.infer_gpt2 --output_dir x\n\nsrc.infer_gpt2 --output_dir x --seed 3",
        "line 3",
        "folder of line 1",
    ),
    Mistake("train", ("{recipe}",), ("recipe.yaml",), {"recipe.yaml": "[1, 2]: 3"}),
    Mistake("prepare_data", ("tiny", "--train", -5, "--output_dir", "{out}"), ("--train",)),
    Mistake("sweep", ("{cells}", "--nproc", 0), ("--nproc",), {"cells.txt": "src.infer_gpt2"}),
]

MODELS = [
    flag("--model_id", "checkpoints/none", parts=("checkpoints/none", "hf download")),
    flag("--model_id", "README.md", parts=("is a file", "folder")),
    flag("--model_id", "data", parts=("no config.json",)),
    flag("--model_id", "checkpoints/tiny-codi", parts=("says CODI, not COCONUT",)),
    flag(
        "--model_type",
        "codi",
        "--model_id",
        "checkpoints/tiny-coconut",
        parts=("says COCONUT, not CODI",),
    ),
    flag("--model_id", "checkpoints/tiny-colar", parts=("says CoLaR, not COCONUT",)),
    flag("--model_id", "checkpoints/tiny-latentRM-coconut", parts=("not a COCONUT checkpoint",)),
    *(
        Mistake("infer_gpt2", (*INFER, "--model_id", "{model}"), parts, {f"model/{name}": content})
        for name, content, parts in (
            ("config.json", "{", ("can't be read",)),
            ("model.safetensors", b"cut", ("can't be read",)),
            ("tokenizer.json", "{}", ("can't be read",)),
            ("generation_config.json", "[", ("generation_config.json",)),
            ("generation_config.json", "[]", ("generation_config.json",)),
            (
                "generation_config.json",
                '{"noise_std": "loud"}',
                ("generation_config.json", "noise_std"),
            ),
            ("generation_config.json", '{"dropout_p": 2}', ("generation_config.json", "dropout_p")),
            (
                "generation_config.json",
                '{"latent_length": 0}',
                ("generation_config.json", "latent_length"),
            ),
        )
    ),
    *(
        choose("--prm_id", prm, parts=parts, base=base)
        for base in (CHOOSE, BEAMS)
        for prm, parts in (
            ("nowhere", ("--prm_id nowhere", "hf download")),
            ("checkpoints/tiny-coconut", ("--prm_id", "classifier")),
            ("checkpoints/tiny-latentRM-codi", ("trained for codi, not for coconut",)),
            ("checkpoints/tiny-latentRM-colar", ("trained for colar, not for coconut",)),
        )
    ),
    choose("--generator_id", "nowhere", parts=("--model_id nowhere",)),
]

FOLDERS = [
    Mistake("infer_gpt2", ("--output_dir", "README.md"), ("README.md", "is a file")),
    Mistake("infer_gpt2", ("--output_dir", "tests"), ("tests", "holds other files")),
    Mistake("infer_gpt2", ("--output_dir", "tests", "--overwrite", "true"), ("holds other files",)),
    Mistake("infer_gpt2", (*RERUN, "--seed", 5), ("--seed", "--overwrite true")),
    Mistake("infer_gpt2", RERUN, ("not the config.json of a run",), {"run/config.json": "[]"}),
    Mistake("infer_gpt2", RERUN, ("line 1 is damaged",), {"run/samples.jsonl": "torn\n"}),
    Mistake("infer_gpt2", RERUN, ("other questions",), {"run/samples.jsonl": '{"idx": 99}\n'}),
    Mistake("annotate_data", ("--save_path", "README.md"), ("README.md",)),
    Mistake("annotate_data", ("--save_path", ".", "--name", "tests"), ("holds other files",)),
    Mistake("collect_results", ("{run}",), ("metrics.json", "damaged"), {"run/metrics.json": "{"}),
    Mistake("collect_results", ("{run}",), ("config.json", "damaged"), {"run/config.json": "{"}),
]

REWARD = [
    reward("unknown key learning_rat", learning_rat=1e-3),
    reward("model_id is missing", model_id=None),
    reward("train_pools", train_pools=[]),
    reward("train_pools", train_pools="{pool}"),
    reward("train_pools[0]", train_pools=[3]),
    reward("eval_pools", eval_pools=["a"]),
    reward("eval_pools.test", eval_pools={"test": 3}),
    reward("max_steps must be of type int", max_steps=[3]),
    reward("max_steps", max_steps="1e3"),
    reward("learning_rate must be a finite number", learning_rate="fast"),
    reward("learning_rate", learning_rate=[1e-3]),
    reward("learning_rate", learning_rate=-1.0),
    reward("eval_steps", eval_steps="often"),
    reward("eval_steps", eval_steps=[2]),
    reward("save_total_limit", save_total_limit={}),
    reward("bf16 must be of type bool", bf16="yes"),
    reward("leave one out", bf16=True, mixed_precision="no"),
    reward("mixed_precision must be auto", mixed_precision="fp8"),
    reward("seed", seed=-1),
    reward("seed", seed=2**63),
    reward("seed", seed="x"),
    reward("lr_scheduler_type", lr_scheduler_type=["cosine"]),
    reward("cosin", lr_scheduler_type="cosin"),
    reward("per_device_train_batch_size", per_device_train_batch_size=0),
    reward("num_train_epochs", num_train_epochs=float("nan")),
    reward("loss.bce", loss={"bce": float("inf")}),
    reward("gradient_checkpointing must be of type bool", gradient_checkpointing="yes"),
    reward("leave it out", gradient_checkpointing_kwargs={}),
    reward("eval_strategy", early_stopping_patience=2, metric_for_best_model="test_loss"),
    reward("bitsandbytes", optim="paged_adamw_8bit"),
    reward("at least 1", eval_accumulation_steps=0),
    reward("labels", labels="gold"),
    reward("loss", loss={"mse": 1.0}),
    reward("loss.bce", loss={"bce": "x"}),
    reward("loss", loss=[1]),
    reward("model_type", model_type="codj"),
    reward("store_dtype", store_dtype="f8"),
    reward("is not measured", metric_for_best_model="test_recall"),
    reward("extra_layers", extra_layers=-1),
    reward("extra_layers", extra_layers=1.5),
]
STAGE = {"epochs": 1, "learning_rate": 1e-3}
BACKBONE = [
    backbone("unknown key epochs", epochs=3),
    backbone("stages is missing", stages=None),
    backbone("stages is empty", stages=[]),
    backbone("stages[0].epochs", stages=[STAGE | {"epochs": "two"}]),
    backbone("stages[0]", stages=[3]),
    backbone("batch_size", batch_size=0),
    backbone("batch_size must be of type int", batch_size=[8]),
    backbone("seed", seed=-1),
    backbone("seed", seed=2**63),
    backbone("seed must be of type int", seed="x"),
    backbone("weight_decay", weight_decay="much"),
    backbone("mixed_precision", mixed_precision="fp8"),
    backbone("problems_per_epoch", problems_per_epoch=None),
    backbone("none.json", valid="none.json"),
    backbone("none.json", held_out=["none.json"]),
    backbone("in held_out", train="{data}", held_out=["{data}"], problems_per_epoch=None),
    backbone("loss", loss={"probe": "much"}),
    backbone("loss: unknown key porbe", loss={"porbe": 1}),
    backbone("per_device_train_batch_size: 3 does not divide", per_device_train_batch_size=3),
    backbone("initialize_tokens_from: no token is new", initialize_tokens_from="<<"),
    backbone("model_dropout", model_dropout=1.5),
    backbone("format_of", model_type="cot", loss={}, stages=[{"epochs": 1, "learning_rate": 1e-3}]),
    backbone("generation: unknown key", generation={"noise": 1}),
    backbone("noise_std", generation={"noise_std": -1}),
    backbone("makes no model", config={"n_embd": "wide"}),
    backbone("makes no model", config={"n_head": 0}),
    backbone("config must hold", config=[1]),
    backbone("config: makes no model", config={"n_head": 3}),
    backbone("base: ", base="{out}/none"),
    backbone("unknown words", valid="{odd}"),
    backbone("holds a finished model", output_dir="checkpoints/tiny-coconut"),
]
MISTAKES = [*DATA, *FLAGS, *MODELS, *FOLDERS, *REWARD, *BACKBONE]
MODULES = {path.stem for path in (ROOT / "src").glob("*.py")} - {"__init__", "infer_llama_rm"}


def test_a_hundred_mistakes_cover_every_command():
    assert len(MISTAKES) >= 100
    assert {mistake.module for mistake in MISTAKES} >= MODULES


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run and its data file."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "data.json").write_text(json.dumps([GOOD, GOOD]))
    flags = ("--data_path", folder / "data.json", "--n_samples", 2, "--output_dir", folder / "run")
    assert_success(run_here(command("infer_gpt2", *flags)))
    return folder


@pytest.fixture
def paths(finished, tmp_path):
    """A workspace: {name that flags may hold: path}."""
    shutil.copytree(finished / "run", tmp_path / "run")
    shutil.copytree(ROOT / "checkpoints/tiny-coconut", tmp_path / "model")
    (tmp_path / "data.json").write_text(json.dumps([GOOD, GOOD]))
    (tmp_path / "odd.json").write_text(json.dumps([GOOD | {"question": "Quarks?"}]))
    names = {
        "data": "data.json",
        "odd": "odd.json",
        "out": "out",
        "run": "run",
        "model": "model",
        "cells": "cells.txt",
        "recipe": "recipe.yaml",
        "pool": "pool",
    }
    paths = {name: tmp_path / file for name, file in names.items()}
    return paths | {"run_data": finished / "data.json"}


def filled(value, paths):
    """The value with its names of paths replaced, also inside of dicts and lists."""
    if isinstance(value, dict):
        return {key: filled(x, paths) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [filled(x, paths) for x in value]
    return value.format(**paths) if isinstance(value, str) else value


REWARD_RECIPE = {
    "output_dir": "{out}",
    "model_id": "checkpoints/tiny-coconut",
    "train_pools": ["{pool}"],
    "eval_pools": {"test": "{pool}"},
    "learning_rate": 1e-3,
    "max_steps": 2,
}
BACKBONE_RECIPE = {
    "output_dir": "{out}",
    "config": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 96},
    "train": "tiny",
    "problems_per_epoch": 300,
    "valid": "data/tiny_valid.json",
    "seed": 1,
    "batch_size": 8,
    "weight_decay": 0.0,
    "stages": [STAGE],
}


def recipe_of(mistake, paths):
    """A recipe that would run but for the mistake's changes. None takes a key away."""
    values = REWARD_RECIPE if mistake.module == "train" else BACKBONE_RECIPE
    changes = dict(mistake.recipe)
    if isinstance(changes.get("config"), dict):
        changes["config"] = values["config"] | changes["config"]
    values = filled(values | changes, paths)
    return yaml.safe_dump({key: value for key, value in values.items() if value is not None})


def contents(*folders):
    """{path: bytes} of all files."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths}


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_a_mistake_is_a_one_line_error_and_changes_no_file(number, paths, finished, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    mistake, workspace = MISTAKES[number], paths["data"].parent
    for name, content in mistake.files.items():
        (workspace / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if mistake.recipe is not None:
        paths["recipe"].write_text(recipe_of(mistake, paths))
    flags = filled(mistake.flags, paths)
    before = contents(workspace, finished)
    result = run_here(command(mistake.module, *flags))
    assert_one_line_error(result, *mistake.parts)
    after = contents(workspace, finished)
    assert {path: after.get(path) for path in before} == before
    assert not [path for path in after if path not in before and Path(path).name != "cells.txt"]
