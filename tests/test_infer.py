"""python -m src.infer_gpt2: output, resume, processes, errors."""

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

from src import infer_gpt2
from src.models.loading import load_backbone
from src.runs import evaluate, run_folder
from src.sampling.engine import sample
from src.sampling.samplers import Sampling
from src.sampling.trajectories import Request
from tests.commands import (
    ROOT,
    infer_command,
    interrupted_once,
    launch,
    outputs,
    run,
    run_here,
    start,
)
from utils import records
from utils.metrics import majority_vote

LIMIT, N = 24, 8
COMMON = ("--data_path", "data/tiny_valid.json", "--limit", LIMIT, "--n_samples", N)
COMMON += ("--max_new_tokens", 12)


@pytest.fixture(scope="module")
def checkpoint():
    return ROOT / "checkpoints/tiny-coconut"


@pytest.fixture(scope="module")
def flags(checkpoint):
    return ("--model_id", checkpoint, *COMMON)


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """An uninterrupted run in one process, in batches of 8."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = run(infer_command(*flags, "--output_dir", folder, "--save_latents", "true"))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_output(whole):
    folder, stdout = whole
    rows = json.loads((ROOT / "data/tiny_valid.json").read_text())[:LIMIT]
    records = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [record["idx"] for record in records] == list(range(LIMIT))
    for record, row in zip(records, rows, strict=True):
        assert record["question"] == row["question"]
        assert len(record["texts"]) == len(record["predictions"]) == len(record["correct"]) == N
        assert record["correct"] == [p == float(row["answer"]) for p in record["predictions"]]
        assert record["vote"] == majority_vote(record["predictions"])
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics["by_n"]) == ["1", "4", "8"]
    assert metrics["by_n"]["8"]["pass@8"] == metrics["by_n"]["8"]["coverage"]
    assert metrics["speed"]["latent_steps_per_second"] > 0
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["seed"] == 42
    assert {"versions", "device", "git_commit"} <= config.keys()
    last = stdout.splitlines()[-3:]
    assert [line.split(":")[0] for line in last] == ["Pass@k", "Coverage", "Voting Accuracy"]
    assert not list(folder.glob("*rank*"))


def test_saved_latents(whole, checkpoint):
    folder, _ = whole
    assert len(list((folder / "latents").iterdir())) == LIMIT
    tensors = load_file(folder / "latents" / "000003.safetensors")
    model, tokenizer = load_backbone("coconut", str(checkpoint))
    question = json.loads((ROOT / "data/tiny_valid.json").read_text())[3]["question"]
    prompt = tokenizer(model.format_prompt(question))["input_ids"]
    sampled = sample(model, Request([prompt], [3], N, 6, 12, 42, Sampling("dropout", 0.1)))
    torch.testing.assert_close(tensors["latent_embeds"], sampled.thoughts[0], rtol=1e-4, atol=1e-4)
    assert tensors["input_ids"].tolist() == prompt
    record = json.loads((folder / "samples.jsonl").read_text().splitlines()[3])
    assert tensors["corrects"].tolist() == record["correct"]


@pytest.mark.parametrize("size", [1, 16])
def test_batch_size_changes_nothing(whole, flags, tmp_path, size):
    done = run_here(infer_command(*flags, "--output_dir", tmp_path / "x", "--batch_size", size))
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path / "x") == outputs(whole[0])


def test_two_processes_change_nothing(whole, flags, tmp_path):
    done = launch(
        infer_command(*flags, "--output_dir", tmp_path / "x", "--batch_size", 2, processes=2)
    )
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path / "x") == outputs(whole[0])
    assert done.stdout.count("Voting Accuracy:") == 1
    assert json.loads((tmp_path / "x/config.json").read_text())["processes"] == 2


def test_few_samples_are_the_head_of_many(whole, flags, tmp_path):
    done = run_here(infer_command(*flags, "--n_samples", 4, "--output_dir", tmp_path / "x"))
    assert done.returncode == 0, done.stderr
    few = [json.loads(line) for line in (tmp_path / "x/samples.jsonl").read_text().splitlines()]
    many = [json.loads(line) for line in (whole[0] / "samples.jsonl").read_text().splitlines()]
    assert [r["texts"] for r in few] == [r["texts"][:4] for r in many]
    metrics = outputs(tmp_path / "x")[1]["by_n"]
    assert metrics == {n: outputs(whole[0])[1]["by_n"][n] for n in ("1", "4")}


def test_a_killed_run_goes_on(whole, flags, tmp_path):
    """Killed at four random moments, it ends with the files of an uninterrupted run."""
    command = infer_command(
        *flags, "--batch_size", 2, "--output_dir", tmp_path / "x", "--save_latents", "true"
    )
    chance, kills = random.Random(0), 0
    for _ in range(4):
        (process,) = start(command, tmp_path)
        samples, wanted = tmp_path / "x" / "samples.jsonl", chance.randrange(1, 5)
        before = len(samples.read_bytes().splitlines()) if samples.exists() else 0
        while process.is_alive():
            if samples.exists() and len(samples.read_bytes().splitlines()) >= before + wanted:
                time.sleep(chance.random() / 50)
                process.kill()
            time.sleep(0.002)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 2
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path / "x") == outputs(whole[0])
    assert_same_latents(tmp_path / "x", whole[0])


def assert_same_latents(one, other):
    files = [path.name for path in sorted((other / "latents").iterdir())]
    assert [path.name for path in sorted((one / "latents").iterdir())] == files
    for name in files:
        a, b = load_file(one / "latents" / name), load_file(other / "latents" / name)
        assert torch.equal(a["input_ids"], b["input_ids"])
        assert torch.equal(a["corrects"], b["corrects"])
        torch.testing.assert_close(a["latent_embeds"], b["latent_embeds"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("moment", range(16))
def test_interrupted_at_any_write(whole, flags, tmp_path, monkeypatch, moment):
    """An interruption just before or after a write, or between the steps of one."""
    places = (
        (os, "replace", 3), (os, "fsync", 3), (Path, "unlink", 3), (records, "append", 3),
        (records, "gather", 2), (run_folder, "write_json", 1), (evaluate, "write_json", 1),
        (evaluate, "write_bytes", 3), (evaluate, "measure", 1),
    )  # fmt: skip
    command = infer_command(
        *flags, "--output_dir", tmp_path / "x", "--save_latents", "true", "--batch_size", 6
    )
    monkeypatch.setattr("sys.argv", command[2:])
    (tmp_path / "x").mkdir()
    assert interrupted_once(infer_gpt2.main, places, moment, monkeypatch)
    infer_gpt2.main()
    assert outputs(tmp_path / "x") == outputs(whole[0])
    assert_same_latents(tmp_path / "x", whole[0])
    assert not list((tmp_path / "x").rglob("*.tmp"))


def test_torn_and_sharded_remains_are_taken_up(whole, flags, tmp_path):
    """What two killed processes leave: two parts, one cut off inside a line."""
    folder = shutil.copytree(whole[0], tmp_path / "x")
    (folder / "metrics.json").unlink()
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").write_text("".join(lines[:5]) + lines[5][:70])
    (folder / "samples.rank1.jsonl").write_text("".join(lines[9:12]))
    done = run_here(infer_command(*flags, "--output_dir", folder, "--save_latents", "true"))
    assert done.returncode == 0, done.stderr
    assert outputs(folder) == outputs(whole[0])


def test_a_finished_run_is_reported_again(whole, flags, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "x")
    command = infer_command(*flags, "--output_dir", folder, "--save_latents", "true")
    before = (folder / "metrics.json").read_text()
    done = run_here([*command, "--report_n", "2", "8"])
    assert done.returncode == 0
    assert "Voting Accuracy:" in done.stdout
    after = json.loads((folder / "metrics.json").read_text())
    assert list(after["by_n"]) == ["2", "8"]
    assert after["speed"] == json.loads(before)["speed"]


def test_greedy(flags, tmp_path):
    greedy = infer_command(
        *flags, "--n_samples", 1, "--do_sample", "false", "--output_dir", tmp_path / "greedy"
    )
    still = infer_command(
        *flags, "--n_samples", 1, "--sampling_by", "noise", "--noise_std", 0.0,
        "--output_dir", tmp_path / "still",
    )  # fmt: skip
    assert run_here(greedy).returncode == run_here(still).returncode == 0
    assert outputs(tmp_path / "greedy") == outputs(tmp_path / "still")


def test_bfloat16(flags, tmp_path):
    command = infer_command(*flags, "--model_dtype", "bfloat16", "--output_dir", tmp_path / "x")
    done = run_here(command)
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path / "x")[1]["questions"] == LIMIT


def assert_one_line(done, *parts):
    assert done.returncode != 0
    message = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(message) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert str(part) in message[0]


@pytest.mark.parametrize(
    ("wrong", "parts"),
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
def test_user_errors(flags, tmp_path, wrong, parts):
    where = () if "--output_dir" in wrong else ("--output_dir", tmp_path / "x")
    done = run_here(infer_command(*flags, *where, *wrong))
    assert not (tmp_path / "x").exists()  # nothing is written before all is checked
    assert_one_line(done, *parts)


def test_other_settings_in_the_folder(whole, flags, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "x")
    command = infer_command(*flags, "--output_dir", folder, "--save_latents", "true", "--seed", 1)
    assert_one_line(run_here(command), "--seed", "--overwrite true")
    assert outputs(folder) == outputs(whole[0])
    done = run_here([*command, "--overwrite", "true"])
    assert done.returncode == 0, done.stderr
    assert outputs(folder)[0] != outputs(whole[0])[0]


def test_a_full_disk_keeps_what_was_finished(whole, flags, tmp_path):
    """A limit on the size of files stands for the full disk: the write fails in the middle."""
    command = infer_command(*flags, "--batch_size", 2, "--output_dir", tmp_path / "x")
    size = (whole[0] / "samples.jsonl").stat().st_size
    assert_one_line(run(command, file_limit=size // 2), "what was finished is kept")
    kept = (tmp_path / "x" / "samples.jsonl").read_text().count("\n")
    assert 0 < kept < LIMIT
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path / "x") == outputs(whole[0])


def test_other_data_or_weights_under_the_same_name(flags, checkpoint, tmp_path):
    """A run is not mixed with samples of a data file or a checkpoint that has changed since."""
    model = shutil.copytree(checkpoint, tmp_path / "model")
    data = shutil.copy(ROOT / "data/tiny_valid.json", tmp_path / "data.json")
    command = infer_command(
        *flags,
        "--limit",
        2,
        "--model_id",
        model,
        "--data_path",
        data,
        "--output_dir",
        tmp_path / "x",
    )
    assert run_here(command).returncode == 0
    data.write_text(data.read_text().replace("Mia", "Pia"))
    assert_one_line(run_here(command), "another data_sha256")
    shutil.copy(ROOT / "data/tiny_valid.json", data)
    weights = load_file(model / "model.safetensors")
    save_file({name: w + 1 for name, w in weights.items()}, model / "model.safetensors")
    assert_one_line(run_here(command), "another model_sha256")


def test_foreign_and_damaged_folders(whole, flags, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "x")
    command = infer_command(*flags, "--output_dir", folder, "--save_latents", "true")
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    for spoilt, message in (
        ("123\n", "line 1 is damaged"),
        ('{"idx": 99}\n', "samples of other questions"),
        (lines[0][:40] + "\n", "line 1 is damaged"),
    ):
        (folder / "samples.jsonl").write_text(spoilt)
        assert_one_line(run_here(command), message)
    (folder / "config.json").write_text("[]")
    assert_one_line(run_here(command), "not the config.json of a run")
    (folder / "config.json").unlink()
    assert_one_line(run_here([*command, "--overwrite", "true"]), "holds other files")


def test_a_line_torn_inside_a_character(tmp_path):
    """Questions hold signs of several bytes; a cut may fall into one."""
    records.append(tmp_path, 0, [{"idx": 0, "question": "£5 for a café?"}])
    records.append(tmp_path, 1, [{"idx": 1, "question": "£6?"}])
    whole = (tmp_path / "samples.rank1.jsonl").read_bytes()
    (tmp_path / "samples.rank1.jsonl").write_bytes(whole + whole[: whole.index("£".encode()) + 1])
    (tmp_path / "samples_backup.jsonl").write_text("mine")
    assert sorted(records.gather(tmp_path)) == [0, 1]
    assert (tmp_path / "samples_backup.jsonl").read_text() == "mine"
    assert not (tmp_path / "samples.rank1.jsonl").exists()


def test_a_full_disk_while_latents_are_written(flags, tmp_path):
    command = infer_command(*flags, "--output_dir", tmp_path / "x", "--save_latents", "true")
    assert_one_line(run(command, file_limit=4096), "what was finished is kept")
