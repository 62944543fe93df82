"""python -m src.infer_gpt2: output, interruptions, processes, errors."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.models.loading import load_backbone
from src.runs import evaluate, run_folder
from src.sampling.engine import sample
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request
from src.search.diversity import thought_distances
from tests.commands import (
    ROOT,
    assert_one_line_error,
    assert_success,
    infer_command,
    interrupt_and_continue,
    launch,
    outputs,
    run,
    run_here,
    samples_of,
    start,
)
from utils import records
from utils.metrics import majority_vote

LIMIT, N = 24, 8
CHECKPOINT = ROOT / "checkpoints/tiny-coconut"
FLAGS = ("--model_id", CHECKPOINT, "--data_path", "data/tiny_valid.json", "--limit", LIMIT)
FLAGS += ("--n_samples", N, "--max_new_tokens", 12)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The folder and the printed lines of an uninterrupted run in one process, in batches of 8."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    line = infer_command(*FLAGS, "--output_dir", folder, "--save_latents", "true")
    return folder, assert_success(run(line)).stdout


@pytest.fixture(scope="module")
def whole(whole_run):
    return whole_run[0]


@pytest.fixture
def copied_run(whole, tmp_path):
    """A copy of the uninterrupted run, which a test may damage."""
    return shutil.copytree(whole, tmp_path / "x")


def test_a_run_writes_samples_metrics_and_config(whole_run):
    folder, stdout = whole_run
    rows = json.loads((ROOT / "data/tiny_valid.json").read_text())[:LIMIT]
    samples = samples_of(folder)
    assert [record["idx"] for record in samples] == list(range(LIMIT))
    for record, row in zip(samples, rows, strict=True):
        assert record["question"] == row["question"]
        assert len(record["texts"]) == len(record["predictions"]) == len(record["correct"]) == N
        assert record["correct"] == [p == float(row["answer"]) for p in record["predictions"]]
        assert record["vote"] == majority_vote(record["predictions"])
        thoughts = load_file(folder / f"latents/{record['idx']:06d}.safetensors")
        distances = thought_distances(
            thoughts["latent_embeds"][None], thoughts["latent_lengths"][None]
        )
        assert [record["thought_distance"]] == distances
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics["by_n"]) == ["1", "4", "8"]
    assert metrics["by_n"]["8"]["pass@8"] == metrics["by_n"]["8"]["coverage"]
    mean = sum(record["thought_distance"] for record in samples) / LIMIT
    assert metrics["thought_distance"]["value"] == pytest.approx(mean, abs=1e-4)
    assert metrics["speed"]["latent_steps_per_second"] > 0
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["seed"] == 42
    assert {"versions", "device", "git_commit"} <= config.keys()
    assert "Distance of two trajectories' thoughts, mean: " in stdout
    last = [f"Pass@{k}" for k in (1, 2, 4, 8)] + ["Coverage", "Voting Accuracy"]
    assert [line.split(":")[0] for line in stdout.splitlines()[-6:]] == last
    assert f"Pass@2: {metrics['by_n']['8']['pass@2']['value']:.2f}\n" in stdout
    assert not list(folder.glob("*rank*"))


def test_saved_latents_are_those_of_the_engine(whole):
    assert len(list((whole / "latents").iterdir())) == LIMIT
    tensors = load_file(whole / "latents" / "000003.safetensors")
    model, tokenizer = load_backbone("coconut", str(CHECKPOINT))
    question = json.loads((ROOT / "data/tiny_valid.json").read_text())[3]["question"]
    prompt = tokenizer(model.format_prompt(question))["input_ids"]
    sampling = Sampling("dropout", model.defaults.dropout_p)
    sampled = sample(model, Request([prompt], [3], N, 6, 12, 42, sampling))
    torch.testing.assert_close(tensors["latent_embeds"], sampled.thoughts[0], rtol=1e-4, atol=1e-4)
    assert tensors["input_ids"].tolist() == prompt
    assert tensors["corrects"].tolist() == samples_of(whole)[3]["correct"]


@pytest.mark.parametrize("size", [1, 16])
def test_batch_size_changes_nothing(whole, tmp_path, size):
    flags = ("--output_dir", tmp_path / "x", "--batch_size", size)
    assert_success(run_here(infer_command(*FLAGS, *flags)))
    assert outputs(tmp_path / "x") == outputs(whole)


def test_two_processes_change_nothing(whole, tmp_path):
    flags = ("--output_dir", tmp_path / "x", "--batch_size", 2)
    result = assert_success(launch(infer_command(*FLAGS, *flags, processes=2)))
    assert outputs(tmp_path / "x") == outputs(whole)
    assert result.stdout.count("Voting Accuracy:") == 1
    assert json.loads((tmp_path / "x/config.json").read_text())["processes"] == 2


def test_a_slow_process_changes_nothing(whole, tmp_path):
    """It gets fewer batches than the others."""
    line = infer_command(*FLAGS, "--batch_size", 2, "--output_dir", tmp_path / "x", processes=3)
    result = assert_success(run(line, delays={0: 0.8}))
    batches = [result.stdout.count(f"process {rank}: ") for rank in range(3)]
    assert sum(batches) == LIMIT / 2
    assert batches[0] < min(batches[1:])
    assert outputs(tmp_path / "x") == outputs(whole)
    assert f"{LIMIT}/{LIMIT} [" in result.stderr  # the bar counts what all processes have done


def test_few_samples_are_the_first_of_many(whole, tmp_path):
    flags = ("--n_samples", 4, "--output_dir", tmp_path / "x")
    assert_success(run_here(infer_command(*FLAGS, *flags)))
    few, many = samples_of(tmp_path / "x"), samples_of(whole)
    assert [r["texts"] for r in few] == [r["texts"][:4] for r in many]
    metrics = outputs(tmp_path / "x")[1]["by_n"]
    assert metrics == {n: outputs(whole)[1]["by_n"][n] for n in ("1", "4")}


def count_lines(path):
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def test_a_killed_run_continues_to_the_same_files(whole, tmp_path):
    """Killed at four random moments."""
    folder = tmp_path / "x"
    flags = ("--batch_size", 2, "--output_dir", folder, "--save_latents", "true")
    command = infer_command(*FLAGS, *flags)
    rng, kills = random.Random(0), 0
    for _ in range(4):
        (process,) = start(command, tmp_path)
        samples = folder / "samples.jsonl"
        enough = count_lines(samples) + rng.randrange(1, 5)
        while process.is_alive():
            if count_lines(samples) >= enough:
                time.sleep(rng.random() / 50)
                process.kill()
            time.sleep(0.002)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 2
    assert_success(run(command))
    assert outputs(folder) == outputs(whole)
    assert_same_latents(folder, whole)


def assert_same_latents(folder, expected_folder):
    """The same tensors, thoughts up to rounding."""
    names = [path.name for path in sorted((expected_folder / "latents").iterdir())]
    assert [path.name for path in sorted((folder / "latents").iterdir())] == names
    for name in names:
        actual = load_file(folder / "latents" / name)
        expected = load_file(expected_folder / "latents" / name)
        assert torch.equal(actual["input_ids"], expected["input_ids"])
        assert torch.equal(actual["corrects"], expected["corrects"])
        torch.testing.assert_close(
            actual["latent_embeds"], expected["latent_embeds"], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("case", range(16))
def test_an_interrupted_run_continues_to_the_same_files(whole, tmp_path, monkeypatch, case):
    """Interrupted just before or after a write, or between the steps of one."""
    functions = (
        (os, "replace", 3),
        (os, "fsync", 3),
        (Path, "unlink", 3),
        (records, "append", 3),
        (records, "gather", 2),
        (run_folder, "write_json", 1),
        (evaluate, "write_json", 1),
        (evaluate, "write_bytes", 3),
        (evaluate, "measure", 1),
    )
    folder = tmp_path / "x"
    folder.mkdir()
    flags = ("--output_dir", folder, "--save_latents", "true", "--batch_size", 6)
    interrupt_and_continue(infer_command(*FLAGS, *flags), functions, case, monkeypatch)
    assert outputs(folder) == outputs(whole)
    assert_same_latents(folder, whole)
    assert not list(folder.rglob("*.tmp"))


def test_a_run_continues_from_the_parts_of_two_killed_processes(whole, copied_run):
    """One part is cut off inside a line."""
    (copied_run / "metrics.json").unlink()
    lines = (copied_run / "samples.jsonl").read_text().splitlines(keepends=True)
    (copied_run / "samples.jsonl").write_text("".join(lines[:5]) + lines[5][:70])
    (copied_run / "samples.rank1.jsonl").write_text("".join(lines[9:12]))
    flags = ("--output_dir", copied_run, "--save_latents", "true")
    assert_success(run_here(infer_command(*FLAGS, *flags)))
    assert outputs(copied_run) == outputs(whole)


def test_a_finished_run_is_reported_again_for_other_n(copied_run):
    flags = ("--output_dir", copied_run, "--save_latents", "true", "--report_n", 2, 8)
    before = json.loads((copied_run / "metrics.json").read_text())
    result = assert_success(run_here(infer_command(*FLAGS, *flags)))
    assert "Voting Accuracy:" in result.stdout
    after = json.loads((copied_run / "metrics.json").read_text())
    assert list(after["by_n"]) == ["2", "8"]
    assert after["speed"] == before["speed"]


def test_greedy_equals_zero_noise(tmp_path):
    for name, sampler in {
        "greedy": ("--do_sample", "false"),
        "zero": ("--sampling_by", "noise", "--noise_std", 0.0),
    }.items():
        flags = ("--n_samples", 1, *sampler, "--output_dir", tmp_path / name)
        assert_success(run_here(infer_command(*FLAGS, *flags)))
    assert outputs(tmp_path / "greedy") == outputs(tmp_path / "zero")


def test_bfloat16_answers_every_question(tmp_path):
    flags = ("--model_dtype", "bfloat16", "--output_dir", tmp_path / "x")
    assert_success(run_here(infer_command(*FLAGS, *flags)))
    assert outputs(tmp_path / "x")[1]["questions"] == LIMIT


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--n_sample", 4), ("--n_sample", "did you mean --n_samples?")),
        (("--do_sample", "false"), ("leave out --n_samples",)),
        (("--sampling_by", "noise", "--dropout_mask", "step"), ("--dropout_mask has no effect",)),
        (
            ("--do_sample", "false", "--n_samples", 1, "--noise_std", 1),
            ("--noise_std has no effect",),
        ),
        (("--seed", 2**70), ("--seed must lie",)),
        (("--output_dir", "README.md"), ("README.md", "is a file")),
        (("--output_dir", "tests", "--overwrite", "true"), ("holds other files",)),
        (("--model_id", "README.md"), ("give the folder",)),
        (("--do_sample", "perhaps"), ("--do_sample",)),
        (("--sampling_by", "dropuot"), ("dropout", "noise")),
        (("--dropout_p", 1.5), ("dropout_p must be in [0, 1)",)),
        (("--report_n", 4, 128), ("--report_n", "--n_samples 8")),
        (("--batch_size", 0), ("--batch_size must be at least 1",)),
        (("--data_path", "data/none.json"), ("data/none.json", "prepare_data")),
        (("--model_id", "checkpoints/none"), ("hf download", "checkpoints/tiny-coconut")),
        (("--max_new_tokens", 500), ("lower max_new_tokens",)),
    ],
    ids=lambda value: str(value[0]) if value else "",
)
def test_impossible_flags_are_a_one_line_error_before_anything_is_written(tmp_path, flags, parts):
    output = () if "--output_dir" in flags else ("--output_dir", tmp_path / "x")
    result = run_here(infer_command(*FLAGS, *output, *flags))
    assert not (tmp_path / "x").exists()
    assert_one_line_error(result, *parts)


def test_a_run_with_other_settings_needs_overwrite(whole, copied_run):
    flags = ("--output_dir", copied_run, "--save_latents", "true", "--seed", 1)
    command = infer_command(*FLAGS, *flags)
    assert_one_line_error(run_here(command), "--seed", "--overwrite true")
    assert outputs(copied_run) == outputs(whole)
    assert_success(run_here([*command, "--overwrite", "true"]))
    assert outputs(copied_run)[0] != outputs(whole)[0]


def test_a_full_disk_keeps_what_was_finished_and_the_run_can_continue(whole, tmp_path):
    """A limit on the size of files stands for the full disk: a write fails in the middle."""
    command = infer_command(*FLAGS, "--batch_size", 2, "--output_dir", tmp_path / "x")
    size = (whole / "samples.jsonl").stat().st_size
    assert_disk_is_full(run(command, file_limit=size // 2))
    kept = (tmp_path / "x" / "samples.jsonl").read_text().count("\n")
    assert 0 < kept < LIMIT
    assert_success(run(command))
    assert outputs(tmp_path / "x") == outputs(whole)


def test_a_full_disk_while_latents_are_written_is_a_one_line_error(tmp_path):
    command = infer_command(*FLAGS, "--output_dir", tmp_path / "x", "--save_latents", "true")
    assert_disk_is_full(run(command, file_limit=4096))


def assert_disk_is_full(result):
    assert_one_line_error(result, "what was finished is kept", after_progress=True)


def test_a_run_is_not_continued_with_changed_data_or_weights(tmp_path):
    """Data file and checkpoint keep their names."""
    model = shutil.copytree(CHECKPOINT, tmp_path / "model")
    data = shutil.copy(ROOT / "data/tiny_valid.json", tmp_path / "data.json")
    flags = ("--limit", 2, "--model_id", model, "--data_path", data)
    command = infer_command(*FLAGS, *flags, "--output_dir", tmp_path / "x")
    assert_success(run_here(command))
    data.write_text(data.read_text().replace("Mia", "Pia"))
    assert_one_line_error(run_here(command), "another data_sha256")
    shutil.copy(ROOT / "data/tiny_valid.json", data)
    weights = load_file(model / "model.safetensors")
    save_file({name: w + 1 for name, w in weights.items()}, model / "model.safetensors")
    assert_one_line_error(run_here(command), "another model_sha256")


def test_foreign_and_damaged_folders_are_refused(copied_run):
    command = infer_command(*FLAGS, "--output_dir", copied_run, "--save_latents", "true")
    lines = (copied_run / "samples.jsonl").read_text().splitlines(keepends=True)
    for text, message in (
        ("123\n", "line 1 is damaged"),
        ('{"idx": 99}\n', "samples of other questions"),
        (lines[0][:40] + "\n", "line 1 is damaged"),
    ):
        (copied_run / "samples.jsonl").write_text(text)
        assert_one_line_error(run_here(command), message)
    (copied_run / "config.json").write_text("[]")
    assert_one_line_error(run_here(command), "not the config.json of a run")
    (copied_run / "config.json").unlink()
    assert_one_line_error(run_here([*command, "--overwrite", "true"]), "holds other files")


@pytest.mark.quick
def test_a_line_cut_inside_a_character_is_left_out(tmp_path):
    """Questions hold characters of several bytes."""
    records.append(tmp_path, 0, [{"idx": 0, "question": "£5 for a café?"}])
    records.append(tmp_path, 1, [{"idx": 1, "question": "£6?"}])
    part, other_file = tmp_path / "samples.rank1.jsonl", tmp_path / "samples_backup.jsonl"
    line = part.read_bytes()
    part.write_bytes(line + line[: line.index("£".encode()) + 1])
    other_file.write_text("not a part of the run")
    assert sorted(records.gather(tmp_path)) == [0, 1]
    assert other_file.read_text() == "not a part of the run"
    assert not part.exists()
