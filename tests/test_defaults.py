"""What a user gets who gives no flags: which model, which strengths, which number format."""

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
from tests.commands import ROOT, command, run_here
from tests.conftest import random_reward_model
from utils.cli import parse_flags


def settings_of(name):
    return LlamaInferenceArguments if name == "colar" else InferenceArguments


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("by", ["dropout", "noise"])
def test_strengths_are_the_checkpoint_s(name, by):
    values = json.loads((ROOT / f"checkpoints/tiny-{name}/generation_config.json").read_text())
    found = settings_of(name)(model_type=name, sampling_by=by)
    strength = {"dropout": "dropout_p", "noise": "noise_std"}[by]
    assert getattr(found, strength) == values[strength]
    assert (found.latent_length, found.max_new_tokens) == (
        values["latent_length"], values["max_new_tokens"],
    )  # fmt: skip
    model, _ = load_backbone(name, str(ROOT / f"checkpoints/tiny-{name}"))
    assert getattr(model.defaults, strength) == values[strength]


def test_a_checkpoint_without_them_has_the_paper_s(checkpoint):
    (checkpoint / "generation_config.json").unlink(missing_ok=True)
    assert checkpoint_defaults("coconut", str(checkpoint)) == GenerationDefaults()
    paper = {name: backbone.paper_defaults for name, backbone in BACKBONES.items()}
    assert [paper[name].noise_std for name in ("coconut", "codi", "colar")] == [0.6, 1.4, 0.01]
    assert [paper[name].dropout_p for name in ("coconut", "codi", "colar")] == [0.2, 0.2, 0.03]


def test_strengths_survive_saving(tmp_path):
    model, tokenizer = load_backbone("coconut", str(ROOT / "checkpoints/tiny-coconut"))
    model.save_pretrained(tmp_path / "x")
    tokenizer.save_pretrained(tmp_path / "x")
    again = COCONUT.from_pretrained(tmp_path / "x")
    assert again.defaults == model.defaults != GenerationDefaults()


@pytest.mark.parametrize(
    "path", ["utils/sweep.sh", "run_tests.sh", "run_tts_with_rm.sh", "run_annotation.sh"]
)
def test_sweeps_repeat_no_strength(path):
    code = [line.partition("#")[0] for line in (ROOT / path).read_text().splitlines()]
    assert not [line for line in code if re.search(r"\b0\.\d", line)]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_repeats_no_strength(name, capsys):
    with pytest.raises(SystemExit):
        parse_flags(COMMANDS[name].arguments, name, "", ["--help"])
    assert not re.search(r"(dropout_p|noise_std)[^-]*\d\.\d", capsys.readouterr().out)


def test_the_published_model_is_taken_where_it_is_there(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "checkpoints/tiny-coconut", tmp_path / "checkpoints/tiny-coconut")
    monkeypatch.chdir(tmp_path)
    assert InferenceArguments().model_id == "checkpoints/tiny-coconut"
    shutil.copytree(ROOT / "checkpoints/tiny-coconut", tmp_path / "checkpoints/coconut")
    assert InferenceArguments().model_id == "checkpoints/coconut"
    assert RewardArguments().prm_id == "checkpoints/latentRM-coconut"
    assert (
        default_reward_model("coconut", "checkpoints/tiny-coconut")
        == "checkpoints/tiny-latentRM-coconut"
    )


@pytest.mark.parametrize(("module", "flags"), [
    ("infer_gpt2", ("--n_samples", 2)), ("infer_llama", ("--do_sample", "false")),
    ("infer_gpt2_rm", ("--num_return_sequences", 2)),
    ("annotate_data", ("--n_samples", 2, "--n_samples_per_step", 0)),
])  # fmt: skip
def test_the_first_line_says_which_model_runs(module, flags, tmp_path):
    name = "colar" if "llama" in module else "coconut"
    place = (
        ("--save_path", tmp_path) if module == "annotate_data" else ("--output_dir", tmp_path / "x")
    )
    done = run_here(command(module, "--limit", 2, *flags, *place))
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    sampler = "greedy" if "--do_sample" in flags else "dropout-"
    for part in (f"{name} checkpoints/tiny-{name} (bundled)", sampler, "2 questions", "float32"):
        assert part in first


def test_do_sample_false_alone_is_one_trajectory(tmp_path):
    done = run_here(
        command("infer_gpt2", "--limit", 3, "--do_sample", "false", "--output_dir", tmp_path / "x")
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "x/samples.jsonl").read_text().splitlines()]
    assert [len(record["texts"]) for record in records] == [1, 1, 1]


def test_unknown_words_are_counted_and_may_be_allowed(tmp_path):
    rows = json.loads((ROOT / "data/tiny_valid.json").read_text())[:20]
    rows[3]["question"] = "Janet's ducks lay 16 eggs?"
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows))
    flags = ("--data_path", path, "--n_samples", 1)
    few = run_here(command("infer_gpt2", *flags, "--output_dir", tmp_path / "few"))
    assert few.returncode == 0  # one of twenty
    assert (
        "warning: " in few.stderr and "1 of 20 questions" in few.stderr and "'Janet'" in few.stderr
    )
    path.write_text(json.dumps(rows[:6]))
    many = run_here(command("infer_gpt2", *flags, "--output_dir", tmp_path / "many"))
    assert many.returncode == 2 and "1 of 6 questions" in many.stderr
    allowed = ("--allow_unknown", "true", "--output_dir", tmp_path / "many")
    assert run_here(command("infer_gpt2", *flags, *allowed)).returncode == 0


@pytest.fixture
def judge(tmp_path):
    """A reward model for the bundled COCONUT that says nothing of its generator, and that generator."""
    backbone, tokenizer = load_backbone("coconut", str(ROOT / "checkpoints/tiny-coconut"))
    random_reward_model(backbone).save_pretrained(tmp_path / "rm")
    return tmp_path / "rm", backbone, tokenizer


def name_generator(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_reward_model_says_for_whom_it_was_trained(judge, capsys):
    folder, backbone, tokenizer = judge
    load_reward_model(folder, backbone, tokenizer)
    assert "names no generator" in capsys.readouterr().err  # as the published one
    name_generator(folder, generator_type="coconut", generator_sha256="0")
    load_reward_model(folder, backbone, tokenizer)
    assert "other weights" in capsys.readouterr().err
    bundled = ROOT / "checkpoints/tiny-latentRM-coconut"
    digest = json.loads((bundled / "config.json").read_text())["generator_sha256"]
    name_generator(folder, generator_sha256=digest)
    load_reward_model(folder, backbone, tokenizer)
    load_reward_model(bundled, backbone, tokenizer)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_what_the_device_computes_fast(fast, monkeypatch):
    monkeypatch.setattr(precision, "computes_bf16_fast", lambda: fast)
    assert InferenceArguments(model_dtype="auto").model_dtype == ("bfloat16" if fast else "float32")
    assert InferenceArguments().model_dtype == "float32"
    assert precision.resolve_precision("auto") == ("bf16" if fast else "no")
    assert precision.resolve_precision("bf16") == "bf16"
    assert (slowness("bfloat16") is None) == fast
    assert slowness("float32") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="of CPUs")
def test_a_slow_format_is_obeyed_with_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "computes_bf16_fast", lambda: False)
    flags = (
        "--limit",
        2,
        "--n_samples",
        2,
        "--model_dtype",
        "bfloat16",
        "--output_dir",
        tmp_path / "x",
    )
    done = run_here(command("infer_gpt2", *flags))
    assert done.returncode == 0, done.stderr
    assert "warning: --model_dtype bfloat16 is 10 times slower" in done.stderr
    assert (
        json.loads((tmp_path / "x/config.json").read_text())["settings"]["model_dtype"]
        == "bfloat16"
    )


def test_capabilities_of_cpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for capabilities, fast in (
        ({"avx2": True, "avx512_f": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True),
        ({}, False),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert precision.computes_bf16_fast() == fast
