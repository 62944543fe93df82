"""A hundred mistakes that users make: each is one clear line and exit code 2, without a traceback, and
nothing that was there is lost."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.commands import ROOT, command, run_here

GOOD = {"question": "How many pens does Mia have?", "steps": ["<<1+1=2>>"], "answer": "2"}
INFER = ("--data_path", "{data}", "--n_samples", 2, "--output_dir", "{out}")
NOISE = ("--sampling_by", "noise")
CHOOSE = ("--data_path", "{data}", "--num_return_sequences", 2, "--output_dir", "{out}")
BEAMS = ("--prm_mode", "beam_search", "--data_path", "{data}", "--output_dir", "{out}")
RERUN = ("--data_path", "{asked}", "--n_samples", 2, "--output_dir", "{run}")
ANNOTATE = ("--data_path", "{data}", "--save_path", "{out}", "--name", "x")


@dataclass
class Mistake:
    """A command with the texts that its one line must hold. Flags may name the places of ``places``.

    files: {place or path below the workspace: content} that are written first, a string or bytes.
    recipe: changes to a recipe that would run; the flags are then its path.
    """

    module: str
    flags: tuple
    said: tuple
    files: dict = field(default_factory=dict)
    recipe: dict | None = None


def data(content, *said, module="infer_gpt2", flags=INFER):
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    return Mistake(module, flags, ("data.json", *said), {"data.json": text})


def flag(*flags, said, module="infer_gpt2", base=INFER):
    return Mistake(module, (*base, *flags), said)


def reward(said, **changes):
    return Mistake("train", ("{recipe}",), ("recipe.yaml", said), recipe=changes)


def backbone(said, **changes):
    return Mistake("train_backbone", ("{recipe}",), (said,), recipe=changes)


def row(**changes):
    return [GOOD, GOOD | changes]


DATA = [
    Mistake("infer_gpt2", ("--data_path", "data/none.json"), ("data/none.json", "prepare_data")),
    Mistake("infer_gpt2", ("--data_path", "data"), ("data:", "no such data file")),
    Mistake("annotate_data", ("--data_path", "none.json"), ("none.json",)),
    data(json.dumps([GOOD, GOOD])[:60], "not valid JSON"),
    data(b"\xff\xfe\x00", "not valid JSON"),
    data([], "non-empty"), data({"a": 1}, "JSON list"), data([GOOD, 3], "row 1", "object"),
    data([{"question": "How?", "steps": []}], "row 0", '"answer"'),
    data([{"steps": [], "answer": "1"}], '"question"'), data([{"question": "x", "answer": "1"}], '"steps"'),
    data(row(question=" "), "row 1", "non-empty string"), data(row(question=3), "row 1"),
    data(row(steps="<<1+1=2>>"), "row 1", "list of strings"), data(row(steps=[1]), "list of strings"),
    data(row(answer=[2]), "row 1", "number"), data(row(answer=True), "number"),
    data(row(answer="3/4"), "3/4"), data(row(answer="$5"), "$5"), data(row(answer=None), "None"),
    data(row(question="pens " * 200), "row 1", "longest questions"),
    data([GOOD | {"question": "Quantum chromodynamics?"}], "1 of 1", "--allow_unknown true"),
    data([GOOD | {"question": "Janet's ducks?"}], "unknown", module="infer_gpt2_rm", flags=CHOOSE),
    data([GOOD | {"question": "Janet's ducks?"}], "unknown", module="annotate_data", flags=ANNOTATE),
    data([GOOD | {"question": "Janet's ducks?"}], "unknown", module="infer_llama"),
]  # fmt: skip

FLAGS = [
    flag("--n_sample", 4, said=("did you mean --n_samples?",)),
    flag("--wandb", "true", said=("unknown flag --wandb", "--help")),
    flag("--n_samples", said=("--n_samples", "expected one argument")),
    flag("--n_samples", "many", said=("--n_samples", "many")),
    flag("--n_samples", 0, said=("--n_samples", "at least 1")),
    flag("--batch_size", -2, said=("--batch_size", "at least 1")),
    flag("--limit", 0, said=("--limit", "at least 1")),
    flag("--latent_length", 0, said=("--latent_length", "at least 1")),
    flag("--max_new_tokens", 0, said=("--max_new_tokens", "at least 1")),
    flag("--max_new_tokens", 500, said=("max_new_tokens", "positions")),
    flag("--latent_length", 500, said=("positions",)),
    flag("--seed", -1, said=("--seed", "2^63")), flag("--seed", 2**63, said=("--seed", "2^63")),
    flag("--seed", "x", said=("--seed",)),
    flag("--report_n", 0, said=("--report_n",)), flag("--report_n", 1, 3, said=("--report_n", "2")),
    flag("--do_sample", "perhaps", said=("--do_sample",)),
    flag("--do_sample", "false", said=("--do_sample", "leave out --n_samples")),
    flag("--do_sample", "false", "--n_samples", 1, "--noise_std", 1, said=("--noise_std has no effect",)),
    flag("--sampling_by", "nois", said=("dropout", "noise")),
    flag(*NOISE, "--noise_std", -1, said=("noise_std",)),
    flag(*NOISE, "--noise_std", "nan", said=("noise_std",)),
    flag(*NOISE, "--noise_std", "loud", said=("--noise_std", "loud")),
    flag(*NOISE, "--dropout_p", 0.1, said=("--dropout_p has no effect",)),
    flag("--dropout_p", 1.0, said=("dropout_p", "[0, 1)")),
    flag("--dropout_mask", "never", said=("--dropout_mask", "step")),
    flag("--model_type", "codj", said=("--model_type", "coconut, codi, colar")),
    flag("--model_type", "colar", said=("--model_type", "llama in its name")),
    flag("--model_type", "coconut", said=("gpt2 in its name",), module="infer_llama"),
    flag("--model_dtype", "fp8", said=("--model_dtype", "auto")),
    flag("--shard_size", 0, said=("--shard_size",), module="annotate_data", base=ANNOTATE),
    flag("--n_samples_per_step", -1, said=("at least 0",), module="annotate_data", base=ANNOTATE),
    flag(
        "--model_type", "colar", "--dropout_embedding", "true", said=("no such dropout",),
        module="annotate_data", base=ANNOTATE,
    ),
    flag("--num_beams", 2, said=("--num_beams has no effect",), module="infer_gpt2_rm", base=CHOOSE),
    flag("--prm_mode", "best", said=("--prm_mode", "best_of_n"), module="infer_gpt2_rm", base=CHOOSE),
    flag("--score_by", "product", said=("--score_by", "mean"), module="infer_gpt2_rm", base=CHOOSE),
    flag("--num_beams", 0, said=("--num_beams", "1"), module="infer_gpt2_rm", base=BEAMS),
    flag("--pool", "x", said=("--pool has no effect",), module="infer_gpt2_rm", base=BEAMS),
    flag("--num_beam_candidates", 0, said=("at least 1",), module="infer_gpt2_rm", base=BEAMS),
    flag(
        "--sampling_by", "dropout", "--dropout_mask", "trajectory", said=("--dropout_mask",),
        module="infer_gpt2_rm", base=BEAMS,
    ),
    Mistake("infer_gpt2_rm", ("--pool", "nowhere"), ("--pool nowhere", "save_latents")),
    Mistake("infer_gpt2_rm", ("--pool", "{run}", "--seed", 3), ("--seed has no effect",)),
    Mistake("infer_gpt2_rm", ("--pool", "{run}"), ("without --save_latents true",)),
    Mistake("train", (), ("recipe",)), Mistake("train_backbone", ("a", "b"), ("b",)),
    Mistake("prepare_data", (), ("benchmark",)), Mistake("prepare_data", ("small",), ("small", "tiny")),
    Mistake("prepare_data", ("tiny", "--train", "all"), ("--train", "all")),
    Mistake("prepare_data", ("paper", "--source", "nowhere", "--output_dir", "{out}"), ("nowhere",)),
    Mistake("collect_results", ("{out}",), ("no finished run",)),
    Mistake("sweep", ("nowhere.txt",), ("nowhere.txt",)),
    Mistake("sweep", ("{cells}",), ("cells.txt", "line 1", "src.infer"), {"cells.txt": "src.infer --x"}),
    Mistake("sweep", ("{cells}",), ("cells.txt", "line 1", "--x"), {"cells.txt": "src.infer_gpt2 --x 1"}),
    Mistake("sweep", ("{cells}",), ("cells.txt", "line 1"), {"cells.txt": "src.infer_gpt2 'open"}),
    Mistake("sweep", ("{cells}",), ("not a text file",), {"cells.txt": b"\xff\xfe\x00"}),
    Mistake(
        "sweep", ("{cells}",), ("line 3", "folder of line 1"),
        {"cells.txt": "src.infer_gpt2 --output_dir x\n\nsrc.infer_gpt2 --output_dir x --seed 3"},
    ),
    Mistake("train", ("{recipe}",), ("recipe.yaml",), {"recipe.yaml": "[1, 2]: 3"}),
    Mistake("prepare_data", ("tiny", "--train", -5, "--output_dir", "{out}"), ("--train",)),
    Mistake("sweep", ("{cells}", "--nproc", 0), ("--nproc",), {"cells.txt": "src.infer_gpt2"}),
]  # fmt: skip

MODELS = [
    flag("--model_id", "checkpoints/none", said=("checkpoints/none", "hf download")),
    flag("--model_id", "README.md", said=("is a file", "folder")),
    flag("--model_id", "data", said=("no config.json",)),
    flag("--model_id", "checkpoints/tiny-codi", said=("says CODI, not COCONUT",)),
    flag("--model_type", "codi", "--model_id", "checkpoints/tiny-coconut", said=("says COCONUT, not CODI",)),
    flag("--model_id", "checkpoints/tiny-colar", said=("model_type 'llama'",)),
    flag("--model_id", "checkpoints/tiny-latentRM-coconut", said=("not a COCONUT checkpoint",)),
    *(
        Mistake("infer_gpt2", (*INFER, "--model_id", "{model}"), said, {f"model/{name}": content})
        for name, content, said in (
            ("config.json", "{", ("can't be read",)),
            ("model.safetensors", b"cut", ("can't be read",)),
            ("tokenizer.json", "{}", ("can't be read",)),
            ("generation_config.json", "[", ("generation_config.json",)),
            ("generation_config.json", "[]", ("generation_config.json",)),
            ("generation_config.json", '{"noise_std": "loud"}', ("generation_config.json", "noise_std")),
            ("generation_config.json", '{"dropout_p": 2}', ("generation_config.json", "dropout_p")),
            ("generation_config.json", '{"latent_length": 0}', ("generation_config.json", "latent_length")),
        )
    ),
    *(
        flag("--prm_id", prm, said=said, module="infer_gpt2_rm", base=base)
        for base in (CHOOSE, BEAMS)
        for prm, said in (
            ("nowhere", ("--prm_id nowhere", "hf download")),
            ("checkpoints/tiny-coconut", ("--prm_id", "classifier")),
            ("checkpoints/tiny-latentRM-codi", ("trained for codi, not for coconut",)),
            ("checkpoints/tiny-latentRM-colar", ("trained for colar, not for coconut",)),
        )
    ),
    flag("--generator_id", "nowhere", said=("--model_id nowhere",), module="infer_gpt2_rm", base=CHOOSE),
]  # fmt: skip

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
    reward("unknown key learning_rat", learning_rat=1e-3), reward("model_id is missing", model_id=None),
    reward("train_pools", train_pools=[]), reward("train_pools", train_pools="{pool}"),
    reward("train_pools[0]", train_pools=[3]), reward("eval_pools", eval_pools=["a"]),
    reward("eval_pools.test", eval_pools={"test": 3}),
    reward("max_steps must be of type int", max_steps=[3]), reward("max_steps", max_steps="1e3"),
    reward("learning_rate must be a finite number", learning_rate="fast"),
    reward("learning_rate", learning_rate=[1e-3]), reward("learning_rate", learning_rate=-1.0),
    reward("eval_steps", eval_steps="often"), reward("eval_steps", eval_steps=[2]),
    reward("save_total_limit", save_total_limit={}),
    reward("bf16 must be of type bool", bf16="yes"),
    reward("leave one out", bf16=True, mixed_precision="no"),
    reward("mixed_precision must be auto", mixed_precision="fp8"),
    reward("seed", seed=-1), reward("seed", seed=2**63), reward("seed", seed="x"),
    reward("lr_scheduler_type", lr_scheduler_type=["cosine"]), reward("cosin", lr_scheduler_type="cosin"),
    reward("per_device_train_batch_size", per_device_train_batch_size=0),
    reward("num_train_epochs", num_train_epochs=float("nan")), reward("loss.bce", loss={"bce": float("inf")}),
    reward("gradient_checkpointing", gradient_checkpointing=True),
    reward("eval_strategy", early_stopping_patience=2, metric_for_best_model="test_loss"),
    reward("bitsandbytes", optim="paged_adamw_8bit"), reward("at least 1", eval_accumulation_steps=0),
    reward("labels", labels="gold"), reward("loss", loss={"mse": 1.0}), reward("loss.bce", loss={"bce": "x"}),
    reward("loss", loss=[1]), reward("model_type", model_type="codj"), reward("store_dtype", store_dtype="f8"),
    reward("is not measured", metric_for_best_model="test_recall"),
    reward("extra_layers", extra_layers=-1), reward("extra_layers", extra_layers=1.5),
]  # fmt: skip
STAGE = {"epochs": 1, "learning_rate": 1e-3}
BACKBONE = [
    backbone("unknown key epochs", epochs=3), backbone("stages is missing", stages=None),
    backbone("stages is empty", stages=[]), backbone("stages[0].epochs", stages=[STAGE | {"epochs": "two"}]),
    backbone("stages[0]", stages=[3]), backbone("batch_size", batch_size=0),
    backbone("batch_size must be of type int", batch_size=[8]), backbone("seed", seed=-1),
    backbone("seed", seed=2**63), backbone("seed must be of type int", seed="x"),
    backbone("weight_decay", weight_decay="much"), backbone("mixed_precision", mixed_precision="fp8"),
    backbone("problems_per_epoch has no effect", train="data/tiny_valid.json"),
    backbone("problems_per_epoch", problems_per_epoch=None), backbone("none.json", valid="none.json"),
    backbone("none.json", held_out=["none.json"]),
    backbone("in held_out", train="{data}", held_out=["{data}"], problems_per_epoch=None),
    backbone("loss", loss={"probe": "much"}), backbone("loss must give weights", loss={"porbe": 1}),
    backbone("generation: unknown key", generation={"noise": 1}),
    backbone("noise_std", generation={"noise_std": -1}),
    backbone("makes no model", config={"n_embd": "wide"}), backbone("makes no model", config={"n_head": 0}),
    backbone("config must hold", config=[1]), backbone("config: makes no model", config={"n_head": 3}),
    backbone("base: ", base="{out}/none"), backbone("unknown words", valid="{odd}"),
    backbone("holds a finished model", output_dir="checkpoints/tiny-coconut"),
]  # fmt: skip
EVERY = [*DATA, *FLAGS, *MODELS, *FOLDERS, *REWARD, *BACKBONE]


def test_there_are_a_hundred():
    assert len(EVERY) >= 100
    assert {m.module for m in EVERY} >= {path.stem for path in (ROOT / "src").glob("*.py")} - {
        "__init__", "infer_llama_rm"
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, and the data file that it answered."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "data.json").write_text(json.dumps([GOOD, GOOD]))
    flags = ("--data_path", folder / "data.json", "--n_samples", 2, "--output_dir", folder / "run")
    assert run_here(command("infer_gpt2", *flags)).returncode == 0
    return folder


@pytest.fixture
def places(finished, tmp_path):
    """A workspace: the names that flags may hold."""
    shutil.copytree(finished / "run", tmp_path / "run")
    shutil.copytree(ROOT / "checkpoints/tiny-coconut", tmp_path / "model")
    (tmp_path / "data.json").write_text(json.dumps([GOOD, GOOD]))
    (tmp_path / "odd.json").write_text(json.dumps([GOOD | {"question": "Quarks?"}]))
    return {
        "data": tmp_path / "data.json", "odd": tmp_path / "odd.json", "out": tmp_path / "out",
        "run": tmp_path / "run", "model": tmp_path / "model", "cells": tmp_path / "cells.txt",
        "recipe": tmp_path / "recipe.yaml", "pool": tmp_path / "pool",
        "asked": finished / "data.json",
    }  # fmt: skip


def filled(value, places):
    """The value with its places named, in whatever it is made of."""
    if isinstance(value, dict):
        return {key: filled(x, places) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [filled(x, places) for x in value]
    return value.format(**places) if isinstance(value, str) else value


def recipe_of(mistake, places):
    """A recipe that would run but for the mistake's changes."""
    if mistake.module == "train":
        values = {
            "output_dir": "{out}", "model_id": "checkpoints/tiny-coconut", "train_pools": ["{pool}"],
            "eval_pools": {"test": "{pool}"}, "learning_rate": 1e-3, "max_steps": 2,
        }  # fmt: skip
    else:
        values = {
            "output_dir": "{out}", "config": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 96},
            "train": "tiny", "problems_per_epoch": 300, "valid": "data/tiny_valid.json", "seed": 1,
            "batch_size": 8, "weight_decay": 0.0, "stages": [STAGE],
        }  # fmt: skip
    changes = dict(mistake.recipe)
    if "config" in changes and isinstance(changes["config"], dict):
        changes["config"] = values["config"] | changes["config"]
    values = filled(values | changes, places)
    return yaml.safe_dump({key: value for key, value in values.items() if value is not None})


def contents(*folders):
    return {
        path: path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("number", range(len(EVERY)))
def test_a_mistake_is_one_line(number, places, finished, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    mistake, workspace = EVERY[number], places["data"].parent
    for name, content in mistake.files.items():
        (workspace / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if mistake.recipe is not None:
        places["recipe"].write_text(recipe_of(mistake, places))
    flags = filled(mistake.flags, places)
    before = contents(workspace, finished)
    done = run_here(command(mistake.module, *flags))
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for part in mistake.said:
        assert str(part) in lines[0]
    after = contents(workspace, finished)
    assert {path: after.get(path) for path in before} == before
    assert not [path for path in after if path not in before and Path(path).name != "cells.txt"]
