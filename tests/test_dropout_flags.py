"""--dropout_embedding and --dropout_attention: defaults, old runs, names, labels, generate."""

import json

import pytest
import torch

from src.runs.arguments import (
    AnnotationArguments,
    InferenceArguments,
    LlamaInferenceArguments,
    RewardArguments,
)
from src.runs.figure_data import sampler_labels, variant_of
from src.runs.finished_runs import FinishedRun
from src.runs.tables import sampling_frame, with_sampler
from src.sampling.engine import sample
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request
from tests.commands import assert_one_line_error, assert_success, infer_command, outputs, run_here

pytestmark = pytest.mark.quick

EVERYWHERE = {"dropout_p": 0.1, "dropout_embedding": True, "dropout_attention": True}
LENGTHS = {"latent_length": 6, "max_new_tokens": 16}
NAMES = {  # of runs from before these flags existed
    "dropout-0.2-n64-seed42-687859": (InferenceArguments, {"dropout_p": 0.2}),
    "noise-0.5-n64-seed42-1df0a8": (InferenceArguments, {"sampling_by": "noise", "noise_std": 0.5}),
    "greedy-n1-seed42-3df100": (InferenceArguments, {"do_sample": False}),
    "dropout-0.03-n64-seed42-b134d9": (LlamaInferenceArguments, {"dropout_p": 0.03}),
    "dropout-0.2-n64-seed42-a68191": (RewardArguments, {"dropout_p": 0.2}),
    "dropout-0.2-n8-seed42-1c1b7d": (AnnotationArguments, {"dropout_p": 0.2}),
    "dropout-0.2-n8-seed42-b2d601": (
        AnnotationArguments,
        {"dropout_p": 0.2, "dropout_embedding": False},
    ),
    "noise-0.5-n8-seed42-6fabf3": (
        AnnotationArguments,
        {"sampling_by": "noise", "noise_std": 0.5},
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_runs_without_these_dropouts_keep_their_names(name):
    arguments, flags = NAMES[name]
    assert arguments(**LENGTHS, **flags).run_name.endswith(f"-tiny_test-{name}")


def test_both_are_off_in_inference_and_the_embedding_s_is_the_checkpoint_s_in_annotation():
    for arguments in (InferenceArguments(), RewardArguments(), LlamaInferenceArguments()):
        sampling = arguments.sampling()
        assert not sampling.dropout_embedding and not sampling.dropout_attention
    sampling = AnnotationArguments().sampling()
    assert sampling.dropout_embedding and not sampling.dropout_attention


def test_the_name_of_a_run_tells_where_it_drops():
    names = {
        arguments(**LENGTHS, **EVERYWHERE).sampler_name
        for arguments in (InferenceArguments, RewardArguments)
    }
    assert names == {"dropout-0.1-embedding-attention"}
    annotation = AnnotationArguments(**LENGTHS, **EVERYWHERE)
    assert annotation.sampler_name == "dropout-0.1-attention"


def forget(folder):
    """Makes a run look like those from before these flags existed."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name in ("dropout_embedding", "dropout_attention"):
        del config["settings"][name]
    path.write_text(json.dumps(config))


def test_an_older_run_is_kept_and_can_be_a_pool(tmp_path):
    flags = ("--limit", 2, "--n_samples", 2, "--save_latents", "true")
    line = infer_command(*flags, "--output_dir", tmp_path / "x")
    assert_success(run_here(line))
    whole = outputs(tmp_path / "x")
    forget(tmp_path / "x")
    again = assert_success(run_here(line))
    assert "question/s" not in again.stderr
    assert outputs(tmp_path / "x") == whole
    other = run_here([*line, "--dropout_attention", "true"])
    assert_one_line_error(other, "another --dropout_attention")
    assert RewardArguments(pool=str(tmp_path / "x")).sampling() == InferenceArguments().sampling()


def write_run(folder, **settings):
    """A finished run of one question, with the settings of its sampler."""
    settings |= {"sampling_by": "dropout", "noise_std": None, "seed": 1, "model_dtype": "float32"}
    settings |= {"model_id": "a", "data_path": "x.json", "limit": None} | LENGTHS
    measures = ("coverage", "voting_accuracy", "mean_accuracy", "unparsable")
    by_n = {"1": {name: {"value": 1.0, "low": 1.0, "high": 1.0} for name in measures}}
    files = {
        "config": {"settings": settings, "model_sha256": "m", "data_sha256": "d"},
        "metrics": {"questions": 1, "by_n": by_n, "speed": {}},
        "samples": {"idx": 0, "answer": "1", "predictions": [1]},
    }
    folder.mkdir()
    for name, content in files.items():
        suffix = "jsonl" if name == "samples" else "json"
        (folder / f"{name}.{suffix}").write_text(json.dumps(content) + "\n")
    return FinishedRun(folder)


def test_tables_and_figures_tell_the_samplers_apart(tmp_path):
    runs = [
        write_run(tmp_path / "old", dropout_p=0.1),
        write_run(
            tmp_path / "new", dropout_p=0.1, dropout_embedding=False, dropout_attention=False
        ),
        write_run(tmp_path / "everywhere", **EVERYWHERE),
    ]
    labels = {"dropout_p 0.1", "dropout_p 0.1 + embedding + attention"}
    assert set(sampler_labels(runs).values()) == labels
    assert set(with_sampler(sampling_frame(runs))["sampler"]) == labels
    assert variant_of(runs[0]) == variant_of(runs[1]) != variant_of(runs[2])
    assert runs[0].pool_key() == runs[1].pool_key() != runs[2].pool_key()


def test_generate_takes_both_and_leaves_them_off(coconut):
    model, tokenizer = coconut
    ids = tokenizer([model.format_prompt("How many pens?")], return_tensors="pt")["input_ids"]
    settings = {"do_sample": True, "num_return_sequences": 3, "return_dict_in_generate": True}
    for flags in (EVERYWHERE, {"dropout_p": 0.1}):
        thoughts = model.generate(ids, **settings, **flags).thoughts
        sampling = Sampling("dropout", **flags)
        assert torch.equal(
            thoughts, sample(model, Request(ids.tolist(), [0], 3, sampling=sampling)).thoughts
        )
