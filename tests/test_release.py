"""The command lines, recipes and variables of the paper's public release mean what ours do."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from src.training.command_line import RecipeSource
from src.training.reward_recipe import recipe_values
from tests.commands import ROOT, assert_one_line_error, command, launch, run_here
from tests.recipes import load_recipe
from tests.test_flags_file import parsed, write_flags
from utils.release import BACKBONES, COMMANDS, IGNORED, REWARD_MODELS, take_ignored

pytestmark = pytest.mark.quick

# Its command, and the same in our words
LINES = {
    "run_tests, dropout": (
        "infer_gpt2 --data_path=data/tiny_test.json --model_type=codi --do_sample=True"
        " --sampling_by=dropout --batch_size=8 --dropout_p=0.2 --n_samples=64",
        "infer_gpt2 --model_type codi --dropout_p 0.2",
    ),
    "run_tests, noise": (
        "infer_gpt2 --model_type=coconut --do_sample=True --sampling_by=noise --noise_std=0.6",
        "infer_gpt2 --sampling_by noise --noise_std 0.6",
    ),
    "bf16": ("infer_gpt2 --model_dtype bf16", "infer_gpt2 --model_dtype bfloat16"),
    "fp16": ("infer_gpt2 --model_dtype=fp16", "infer_gpt2 --model_dtype float16"),
    "fp32": ("infer_gpt2 --model_dtype fp32", "infer_gpt2"),
    "colar": (
        "infer_llama --model_type=colar --max_latent_length=32 --max_new_tokens=20 --do_sample=True"
        " --sampling_by=dropout --dropout_p=0.03 --n_samples=8 --model_dtype=fp32",
        "infer_llama --latent_length 32 --max_new_tokens 20 --dropout_p 0.03 --n_samples 8",
    ),
    "best-of-N": (
        "infer_gpt2_rm --generator_type=coconut --prm_mode=best_of_n --num_return_sequences=16"
        " --seed=0 --prm_model_family=gpt2 --sort_by_len=True --progress_bar=False",
        "infer_gpt2_rm --n_samples 16 --seed 0",
    ),
    "beams": (
        "infer_gpt2_rm --seed=0 --prm_mode=beam_search --num_beams=2 --num_beam_candidates=8"
        " --num_return_sequences=16 --model_dtype fp32 --sort_by_len false",
        "infer_gpt2_rm --seed 0 --prm_mode beam_search --num_beams 2 --num_beam_candidates 8",
    ),
    "the one answer of beams": (
        "infer_gpt2_rm --prm_mode=beam_search --num_return_sequences=1",
        "infer_gpt2_rm --prm_mode beam_search",
    ),
    "run_annotation": (
        "annotate_data --save_path=pools/coconut --batch_size=32 --model_type=coconut --seed=42"
        " --generation_latent_do_sample_by=dropout --generation_dropout_p=0.2 --use_wandb=False"
        " --n_samples_per_step=64 --n_samples=8 --name=train",
        "annotate_data --save_path pools/coconut --batch_size 32 --dropout_p 0.2 --name train",
    ),
    "annotation by noise": (
        "annotate_data --generation_latent_do_sample_by noise --generation_noise_std 0.6"
        " --generation_latent_do_sample True --generation_max_new_tokens=20"
        " --generation_latent_length 4 --generation_num_return_sequences 4 --name x"
        " --monitor_interval 5 --datasets_progress_bar --wandb_project pools --save_freq=-1",
        "annotate_data --sampling_by noise --noise_std 0.6 --max_new_tokens 20 --latent_length 4"
        " --n_samples 4 --name x",
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_a_command_of_the_release_has_the_arguments_of_ours(name):
    theirs, ours = (parsed(*line.split()) for line in LINES[name])
    assert theirs == ours


def test_a_short_format_in_a_file_is_the_long_one(tmp_path):
    path = write_flags(tmp_path, "model_dtype: bf16\ngeneration_dropout_p: 0.1\nuse_wandb: true\n")
    ours = ("annotate_data", "--model_dtype", "bfloat16", "--dropout_p", 0.1)
    assert parsed("annotate_data", "--config", path) == parsed(*ours)


def notes(text):
    return [line for line in text.splitlines() if "has no effect here because" in line]


def a_value(name):
    return "4" if IGNORED[name].only is None else str(IGNORED[name].only)


def names_in(place):
    return [name for name, entry in IGNORED.items() if place in entry.places]


def test_the_release_s_names_without_effect_are_all_in_the_table():
    named = """use_wandb wandb_* sort_by_len progress_bar batch_progress_bar datasets_progress_bar
    monitor_interval prm_model_family save_freq save_answers remove_all_correct remove_all_false
    generation_do_sample generation_latent_do_sample disable_dropout dataset_num_proc
    latent_hidden_size save_only_model"""
    assert sorted(IGNORED) == sorted(named.split())


@pytest.mark.parametrize("name", names_in(COMMANDS))
def test_a_flag_without_effect_is_named_in_one_line(name, tmp_path, capsys):
    flag = name.replace("*", "project")
    expected = f"{flag} has no effect here because {IGNORED[name].reason}"
    for given in ([f"--{flag}={a_value(name)}"], [f"--{flag}", a_value(name)]):
        assert parsed("annotate_data", *given, "--seed", 3) == parsed("annotate_data", "--seed", 3)
        assert notes(capsys.readouterr().err) == [f"warning: --{expected}"]
    path = write_flags(tmp_path, f"{flag}: {a_value(name)}\n")
    assert parsed("annotate_data", "--config", path) == parsed("annotate_data")
    assert notes(capsys.readouterr().err) == [f"warning: {path}: {expected}"]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--use_wandbs", "x"), ("unknown flag --use_wandbs",)),
        (("--dataset_piece", "0.5"), ("unknown flag --dataset_piece",)),
        (("--disable_dropout", "true"), ("unknown flag --disable_dropout",)),
        (("--remove_all_false=False",), ("--remove_all_false False is not supported", "leave it")),
        (("--model_dtype", "bf32"), ("--model_dtype", "bfloat16")),
        (("--generation_dropout", "1"), ("did you mean --generation_dropout_p?",)),
        (("--generation_seed", "1"), ("unknown flag --generation_seed",)),
    ],
)
def test_what_would_change_the_result_is_an_error(flags, parts, tmp_path):
    line = command("annotate_data", "--save_path", tmp_path / "x", *flags)
    assert_one_line_error(run_here(line), *parts)


@pytest.mark.parametrize("count", [3, 8, 64])
def test_another_number_than_that_of_beam_search_is_an_error(count):
    line = command("infer_gpt2_rm", "--prm_mode", "beam_search", "--num_return_sequences", count)
    parts = ("--num_return_sequences", "num_beams x num_beam_candidates = 16")
    assert_one_line_error(run_here(line), *parts)


OURS = {
    "output_dir": "out", "model_id": "checkpoints/tiny-coconut", "train_pools": ["pools/train"],
    "eval_pools": {"test_n_64": "pools/valid-64"}, "num_train_epochs": 30, "seed": 42,
    "metric_for_best_model": "test_n_64_recall_at_1",
}  # fmt: skip
STEPS = {
    "eval_strategy": "steps", "eval_steps": 1 / 120, "save_strategy": "steps",
    "save_steps": 1 / 120, "load_best_model_at_end": True,
}  # fmt: skip
# Changes to the recipe in the release's keys, and in ours; None takes a key away
RECIPES = {
    "ce": ({"loss_type": "ce"}, {}),
    "contrastive": ({"loss_type": "contrastive"}, {"loss": {"contrastive": 1.0}}),
    "bce": ({"loss_type": "bce"}, {"loss": {"bce": 1.0}}),
    "train_dataset": ({"train_pools": None, "train_dataset": "pools/train"}, {}),
    "train datasets": (
        {"train_pools": None, "train_dataset": ["a", "b"]}, {"train_pools": ["a", "b"]},
    ),
    "valid_dataset": ({"eval_pools": None, "valid_dataset": "pools/valid-64"}, {}),
    "valid datasets": (
        {"eval_pools": None, "valid_dataset": ["pools/valid-64", "a_4", "b-4", "other"]},
        {"eval_pools": {
            "test_n_64": "pools/valid-64", "test_n_4": "a_4", "b-4": "b-4", "other": "other",
        }},
    ),
    "named datasets": (
        {"eval_pools": None, "valid_dataset": {"test_n_64": "x", "y": "z"}},
        {"eval_pools": {"test_n_64": "x", "y": "z"}},
    ),
    "backbone": ({"model_family": "codi"}, {"model_type": "codi"}),
    "architecture": ({"model_family": "gpt2", "model_type": "codi"}, {"model_type": "codi"}),
    "generator": ({"model_id": None, "generator_model_id": "checkpoints/tiny-coconut"}, {}),
    "eval_frequency": ({"eval_frequency": 4}, STEPS),
    "warmup_ratio": ({"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
    "disable_dropout": ({"disable_dropout": True}, {}),
    "all of it": (
        {
            "train_pools": None, "train_dataset": "pools/train", "eval_pools": None,
            "valid_dataset": OURS["eval_pools"], "loss_type": "ce", "warmup_ratio": 0.1,
            "eval_frequency": 4, "bf16": False, "save_only_model": True, "save_total_limit": 12,
            "early_stopping_patience": 24, "run_name": "run1", "disable_dropout": True,
        },
        STEPS | {
            "warmup_steps": 0.1, "save_total_limit": 12, "early_stopping_patience": 24,
            "run_name": "run1",
        },
    ),
    "W&B": ({"use_wandb": True, "wandb_project": "x", "save_only_model": True}, {}),
}  # fmt: skip


def write_recipe(path, changes):
    values = {key: value for key, value in (OURS | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(values))
    return path


def built(path):
    recipe = load_recipe(path)
    return recipe.to_dict() | recipe.fingerprint()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_in_the_release_s_keys_is_that_in_ours(name, tmp_path):
    theirs, ours = (built(write_recipe(tmp_path / "x.yaml", x)) for x in RECIPES[name])
    assert theirs == ours


def test_a_pool_is_named_by_its_manifest(tmp_path):
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid/manifest.json").write_text(json.dumps({"settings": {"n_samples": 16}}))
    path = write_recipe(
        tmp_path / "x.yaml", {"eval_pools": None, "valid_dataset": str(tmp_path / "valid")}
    )
    assert recipe_values(RecipeSource(path))["eval_pools"] == {"test_n_16": f"{tmp_path}/valid"}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"loss_type": "mse"}, ("loss_type must be one of contrastive, ce, bce",)),
        ({"loss_type": "bce", "loss": {"bce": 1.0}}, ("loss_type decides loss: leave one out",)),
        ({"train_dataset": "x"}, ("train_dataset decides train_pools",)),
        ({"train_pools": None, "train_dataset": 3}, ("train_dataset must be of type",)),
        ({"valid_dataset": "x"}, ("valid_dataset decides eval_pools",)),
        ({"model_family": "bert"}, ("model_family must be one of coconut", "gpt2")),
        ({"model_family": "codi", "model_type": "codi"}, ("model_family decides model_type",)),
        ({"generator_model_id": "x"}, ("generator_model_id decides model_id",)),
        ({"eval_frequency": 4, "eval_steps": 5}, ("eval_frequency decides eval_steps",)),
        ({"eval_frequency": 4, "max_steps": 9}, ("max_steps", "give eval_steps")),
        ({"eval_frequency": 4, "eval_strategy": "epoch"}, ("eval_strategy: steps",)),
        ({"eval_frequency": 0}, ("eval_frequency 0",)),
        ({"warmup_ratio": 2}, ("warmup_ratio must be at least 0 and below 1",)),
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, ("warmup_ratio decides warmup_steps",)),
        ({"disable_dropout": False}, ("disable_dropout False is not supported",)),
        ({"dataset_piece": 0.5}, ("unknown key dataset_piece",)),
        ({"batch_size": 8, "gradient_accumulation_steps": 1}, ("gradient_accumulation_steps",)),
        ({"batch_size": 12}, ("batch_size must be a multiple of per_device_train_batch_size 8",)),
        ({"batch_size": 0}, ("batch_size",)),
    ],
)
def test_a_faulty_recipe_in_the_release_s_keys_is_one_line(changes, parts, tmp_path):
    path = write_recipe(tmp_path / "x.yaml", changes)
    assert_one_line_error(run_here(command("train", path)), path, *parts)


@pytest.mark.parametrize(
    ("module", "place"), [("train", REWARD_MODELS), ("train_backbone", BACKBONES)]
)
def test_a_recipe_s_key_without_effect_is_named_in_one_line(module, place, tmp_path):
    """The recipe ends with a mistake, so that nothing is trained; that is said after."""
    names = [name.replace("*", "project") for name in names_in(place)]
    assert "use_wandb" in names
    values = {
        name.replace("*", "project"): yaml.safe_load(a_value(name)) for name in names_in(place)
    }
    path = write_recipe(tmp_path / "x.yaml", {"seed": -1} | values)
    flags = [f"--{name}={value}" for name, value in values.items()]
    result = run_here(command(module, path, *flags))
    assert result.returncode == 2
    lines = notes(result.stderr)
    assert len(lines) == 2 * len(names) == len(result.stderr.splitlines()) - 1
    for name in names:
        assert any(line.startswith(f"warning: --{name} has no effect") for line in lines)
        assert any(line.startswith(f"warning: {path}: {name} has no effect") for line in lines)


# The file's changes, the flags, and what they make of the recipe
OVERRIDES = {
    "number": ({}, {"learning_rate": "1e-4"}, {"learning_rate": 1e-4}),
    "word": ({"eval_strategy": "steps"}, {"eval_strategy": "no"}, {"eval_strategy": "no"}),
    "mapping": ({}, {"loss": "{bce: 1}"}, {"loss": {"bce": 1.0}}),
    "nothing": ({"early_stopping_patience": 3}, {"early_stopping_patience": "null"}, {}),
    "the release's key over ours": ({}, {"train_dataset": "a"}, {"train_pools": ["a"]}),
    "ours over the release's": (
        {"loss_type": "bce"}, {"loss": "{bce: 0.5}"}, {"loss": {"bce": 0.5}},
    ),
    "one over many": (
        {"eval_steps": 5, "save_steps": 5}, {"eval_frequency": "4"}, STEPS,
    ),
    "batch_size": (
        {"gradient_accumulation_steps": 4}, {"batch_size": "16"},
        {"gradient_accumulation_steps": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_flag_is_typed_as_in_the_file_and_wins_over_it(name, tmp_path, monkeypatch):
    changes, flags, ours = OVERRIDES[name]
    theirs = write_recipe(tmp_path / "x.yaml", changes)
    given = []
    monkeypatch.setattr("src.train.train", lambda recipe, text: given.append((recipe, text)))
    result = run_here(command("train", theirs, *(f"--{key}={x}" for key, x in flags.items())))
    assert result.returncode == 0, result.stderr
    ((recipe, text),) = given
    ours = write_recipe(tmp_path / "ours.yaml", ours)
    assert recipe.to_dict() | {"batch_size": None} == load_recipe(ours).to_dict()
    written = tmp_path / "written.yaml"
    written.write_text(text)
    assert load_recipe(written).to_dict() == recipe.to_dict()


@pytest.mark.parametrize(
    ("module", "flags", "parts"),
    [
        ("train", ("--learning_rat=1",), ("unknown flag --learning_rat: did you mean --learning",)),
        ("train", ("--max_steps=many",), ("with --max_steps=many: max_steps must be of type int",)),
        ("train", ("--max_steps",), ("--max_steps needs a value",)),
        ("train", ("--loss={",), ("--loss: not valid YAML",)),
        ("train", ("--loss_type=bce", "--loss", "{bce: 1}"), ("loss_type decides loss",)),
        ("train", ("--disable_dropout=False",), ("--disable_dropout False is not supported",)),
        ("train_backbone", ("--batch_siz=1",), ("did you mean --batch_size?",)),
        ("train_backbone", ("--seed=x",), ("with --seed=x", "seed must be of type int")),
    ],
)
def test_a_faulty_flag_of_a_training_is_named(module, flags, parts, tmp_path):
    path = write_recipe(tmp_path / "x.yaml", {})
    if module == "train_backbone":
        path = ROOT / "training_args/backbone_tiny_coconut.yaml"
    assert_one_line_error(run_here(command(module, path, *flags)), *parts)


def test_without_flags_recipe_yaml_is_the_file(tmp_path):
    path = write_recipe(tmp_path / "x.yaml", {})
    path.write_text("# a comment\n" + path.read_text())
    source = RecipeSource(path)
    assert source.text(recipe_values(source)) == path.read_text()


SCRIPTS = {
    "run_tests.sh": (
        {"MODEL_TYPE": "codi", "Ns": "1 4", "SEEDs": "1 2", "batch_sizes": "4"},
        {"MODELS": "codi:checkpoints/tiny-codi", "NS": "1 4", "SEEDS": "1 2", "BATCH_SIZE": "4"},
    ),
    "run_tests_llama.sh": (
        {"MODEL_TYPE": "colar", "Ns": "8", "SEEDs": "0", "batch_sizes": "16"},
        {"NS": "8", "SEEDS": "0", "BATCH_SIZE": "16"},
    ),
    "run_tts_with_rm.sh": (
        {"MODEL_TYPE": "codi", "Ns": "1 4", "SEEDs": "0", "batch_sizes": "32 8"},
        {"BACKBONE": "codi", "NS": "1 4", "SEED": "0", "BATCH_SIZE": "8"},
    ),
    "run_annotation.sh": (
        {"MODEL_TYPE": "codi", "Ns": "4 64", "SEEDs": "42", "batch_sizes": "32"},
        {
            "BACKBONE": "codi", "SEED": "42", "BATCH_SIZE": "32",
            "VALID": "codi-valid-4::4:0:dropout codi-valid-64::64:0:dropout",
        },
    ),
}  # fmt: skip


@pytest.fixture
def cells(tmp_path):
    """Runs a script with a python that does nothing; returns its result and its cells."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text("#!/bin/sh\n")
    (tmp_path / "bin/python").chmod(0o755)

    def written(script, **environment):
        path = f"{tmp_path}/bin{os.pathsep}{Path(sys.executable).parent}{os.pathsep}"
        environment |= {"PATH": path + os.environ["PATH"], "NPROC": "1"}
        if script == "run_annotation.sh":
            environment |= {"PROFILE": "paper", "SAVE_PATH": str(tmp_path)}
        result = launch(["bash", script], OUTPUT_DIR=str(tmp_path), **environment)
        return result, "".join(path.read_text() for path in sorted(tmp_path.glob("cells*.txt")))

    return written


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_release_s_variables_make_the_cells_of_ours(script, cells):
    theirs, ours = (cells(script, **variables) for variables in SCRIPTS[script])
    assert theirs[0].returncode == ours[0].returncode == 0, theirs[0].stderr
    assert theirs[1] == ours[1] != ""
    several = "8 questions a batch" in theirs[0].stderr
    assert several == (script == "run_tts_with_rm.sh")


@pytest.mark.parametrize(
    ("script", "variables", "parts"),
    [
        ("run_tests.sh", {"MODEL_TYPE": "colar"}, ("MODEL_TYPE=colar", "not in MODELS")),
        ("run_tests.sh", {"Ns": "1 4", "NS": "1"}, ("NS=1 and Ns=1 4", "leave one out")),
        ("run_tests.sh", {"batch_sizes": "8 x"}, ("batch_sizes: x",)),
        ("run_tts_with_rm.sh", {"SEEDs": "1 2"}, ("SEEDs=1 2", "one seed")),
        ("run_tts_with_rm.sh", {"SEEDs": "1", "SEED": "2"}, ("SEED=2 and SEEDs=1",)),
        ("run_tests_llama.sh", {"batch_sizes": "8", "BATCH_SIZE": "4"}, ("BATCH_SIZE=4",)),
        ("run_annotation.sh", {"MODEL_TYPE": "codj"}, ("codj",)),
        ("run_annotation.sh", {"Ns": "4", "VALID": "a::4:0:noise"}, ("VALID",)),
    ],
)
def test_a_faulty_variable_of_the_release_is_one_line(script, variables, parts, cells):
    result, text = cells(script, **variables)
    assert_one_line_error(result, *parts)
    assert not text


def test_a_flag_without_a_value_does_not_take_the_recipe_for_it():
    kept, ignored = take_ignored(["--use_wandb", "recipe.yaml", "--seed=1"], REWARD_MODELS, ())
    assert (kept, ignored) == (["recipe.yaml", "--seed=1"], {"--use_wandb": "true"})
