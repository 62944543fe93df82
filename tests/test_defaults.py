"""What a user gets who gives no flags: model, sampler parameters, lengths, number format."""

import json
import re
import shutil

import pytest
import torch

from src.models import BACKBONES, precision
from src.models.coconut import COCONUT
from src.models.latent_reasoner import GenerationDefaults
from src.models.loading import (
    checkpoint_defaults,
    default_reward_model,
    load_backbone,
    load_reward_model,
)
from src.models.precision import slowness
from src.runs.arguments import InferenceArguments, LlamaInferenceArguments, RewardArguments
from src.runs.commands import COMMANDS
from src.runs.flags_page import PAGE, flags_page
from tests.commands import (
    ROOT,
    assert_one_line_error,
    assert_success,
    command,
    edit_json,
    run_here,
    samples_of,
)
from tests.conftest import random_reward_model, save_checkpoint
from utils.cli import parse_flags

pytestmark = pytest.mark.quick

PARAMETERS = {"dropout": "dropout_p", "noise": "noise_std"}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("sampler", PARAMETERS)
def test_default_sampler_parameters_and_lengths_are_the_checkpoint_s(name, sampler):
    values = json.loads((ROOT / f"checkpoints/tiny-{name}/generation_config.json").read_text())
    arguments_class = LlamaInferenceArguments if name == "colar" else InferenceArguments
    arguments = arguments_class(model_type=name, sampling_by=sampler)
    parameter = PARAMETERS[sampler]
    for key in (parameter, "latent_length", "max_new_tokens"):
        assert getattr(arguments, key) == values[key]
    model, _ = load_backbone(name, str(ROOT / f"checkpoints/tiny-{name}"))
    assert getattr(model.defaults, parameter) == values[parameter]


def test_a_checkpoint_without_defaults_has_the_paper_s(checkpoint):
    (checkpoint / "generation_config.json").unlink(missing_ok=True)
    assert checkpoint_defaults("coconut", str(checkpoint)) == GenerationDefaults()
    paper = {name: backbone.paper_defaults for name, backbone in BACKBONES.items()}
    assert [paper[name].noise_std for name in ("coconut", "codi", "colar")] == [0.6, 1.4, 0.01]
    assert [paper[name].dropout_p for name in ("coconut", "codi", "colar")] == [0.2, 0.2, 0.03]


def test_a_saved_checkpoint_keeps_its_defaults(tmp_path):
    model, tokenizer = load_backbone("coconut", str(ROOT / "checkpoints/tiny-coconut"))
    save_checkpoint(tmp_path / "x", model, tokenizer)
    again = COCONUT.from_pretrained(tmp_path / "x")
    assert again.defaults == model.defaults != GenerationDefaults()


@pytest.mark.parametrize(
    "path", ["utils/sweep.sh", "run_tests.sh", "run_tts_with_rm.sh", "run_annotation.sh"]
)
def test_scripts_leave_sampler_parameters_to_the_checkpoint(path):
    code = [line.partition("#")[0] for line in (ROOT / path).read_text().splitlines()]
    code = [line for line in code if not line.startswith("RELEASE_DROPOUT_P=")]
    assert not [line for line in code if re.search(r"\b0\.\d", line)]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_leaves_sampler_parameters_to_the_checkpoint(name, capsys):
    with pytest.raises(SystemExit):
        parse_flags(COMMANDS[name].arguments, name, "", ["--help"])
    assert not re.search(r"(dropout_p|noise_std)[^-]*\d\.\d", capsys.readouterr().out)


def test_the_published_model_is_the_default_where_its_folder_exists(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "checkpoints/tiny-coconut", tmp_path / "checkpoints/tiny-coconut")
    monkeypatch.chdir(tmp_path)
    assert InferenceArguments().model_id == "checkpoints/tiny-coconut"
    shutil.copytree(ROOT / "checkpoints/tiny-coconut", tmp_path / "checkpoints/coconut")
    assert InferenceArguments().model_id == "checkpoints/coconut"
    assert RewardArguments().prm_id == "checkpoints/latentRM-coconut"
    reward_model = default_reward_model("coconut", "checkpoints/tiny-coconut")
    assert reward_model == "checkpoints/tiny-latentRM-coconut"


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("infer_gpt2", ("--n_samples", 2)),
        ("infer_llama", ("--do_sample", "false")),
        ("infer_gpt2_rm", ("--num_return_sequences", 2)),
        ("annotate_data", ("--n_samples", 2, "--n_samples_per_step", 0)),
    ],
)
def test_the_first_line_of_a_command_names_model_sampler_and_data(module, flags, tmp_path):
    name = "colar" if "llama" in module else "coconut"
    folder_flag = "--save_path" if module == "annotate_data" else "--output_dir"
    line = command(module, "--limit", 2, *flags, folder_flag, tmp_path / "x")
    first = assert_success(run_here(line)).stdout.splitlines()[0]
    sampler = "greedy" if "--do_sample" in flags else "dropout-"
    for part in (f"{name} checkpoints/tiny-{name} (bundled)", sampler, "2 questions", "float32"):
        assert part in first


def test_do_sample_false_alone_is_one_trajectory(tmp_path):
    flags = ("--limit", 3, "--do_sample", "false", "--output_dir", tmp_path / "x")
    assert_success(run_here(command("infer_gpt2", *flags)))
    assert [len(record["texts"]) for record in samples_of(tmp_path / "x")] == [1, 1, 1]


def test_questions_with_unknown_words_are_counted_and_refused_when_many(tmp_path):
    rows = json.loads((ROOT / "data/tiny_valid.json").read_text())[:20]
    rows[3]["question"] = "Janet's ducks lay 16 eggs?"
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows))
    flags = ("--data_path", path, "--n_samples", 1)
    few = run_here(command("infer_gpt2", *flags, "--output_dir", tmp_path / "few"))
    assert few.returncode == 0
    for part in ("warning: ", "1 of 20 questions", "'Janet'"):
        assert part in few.stderr
    path.write_text(json.dumps(rows[:6]))
    line = command("infer_gpt2", *flags, "--output_dir", tmp_path / "many")
    assert_one_line_error(run_here(line), "1 of 6 questions")
    assert run_here([*line, "--allow_unknown", "true"]).returncode == 0


def test_a_reward_model_warns_when_its_generator_is_unknown_or_another(tmp_path, capsys):
    backbone, tokenizer = load_backbone("coconut", str(ROOT / "checkpoints/tiny-coconut"))
    folder = tmp_path / "rm"
    random_reward_model(backbone).save_pretrained(folder)
    load_reward_model(folder, backbone, tokenizer)
    assert "names no generator" in capsys.readouterr().err  # as the published ones
    edit_json(folder / "config.json", generator_type="coconut", generator_sha256="0")
    load_reward_model(folder, backbone, tokenizer)
    assert "other weights" in capsys.readouterr().err
    bundled = ROOT / "checkpoints/tiny-latentRM-coconut"
    digest = json.loads((bundled / "config.json").read_text())["generator_sha256"]
    edit_json(folder / "config.json", generator_sha256=digest)
    load_reward_model(folder, backbone, tokenizer)
    load_reward_model(bundled, backbone, tokenizer)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fast", [True, False])
def test_auto_dtype_is_bf16_where_the_device_computes_it_fast(fast, monkeypatch):
    monkeypatch.setattr(precision, "computes_bf16_fast", lambda: fast)
    assert InferenceArguments(model_dtype="auto").model_dtype == ("bfloat16" if fast else "float32")
    assert InferenceArguments().model_dtype == "float32"
    assert precision.resolve_precision("auto") == ("bf16" if fast else "no")
    assert precision.resolve_precision("bf16") == "bf16"
    assert (slowness("bfloat16") is None) == fast
    assert slowness("float32") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="about CPUs")
def test_a_slow_dtype_is_used_with_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "computes_bf16_fast", lambda: False)
    flags = ("--limit", 2, "--n_samples", 2, "--model_dtype", "bfloat16")
    result = run_here(command("infer_gpt2", *flags, "--output_dir", tmp_path / "x"))
    assert_success(result)
    assert "warning: --model_dtype bfloat16 is 10 times slower" in result.stderr
    config = json.loads((tmp_path / "x/config.json").read_text())
    assert config["settings"]["model_dtype"] == "bfloat16"


def test_cpus_with_bf16_instructions_compute_it_fast(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for capabilities, fast in (
        ({"avx2": True, "avx512_f": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda values=capabilities: values)
        assert precision.computes_bf16_fast() == fast


@pytest.mark.quick
def test_the_page_of_flags_is_current():
    """``python -m src.runs.flags_page`` writes it anew."""
    assert PAGE.read_text() == flags_page()
