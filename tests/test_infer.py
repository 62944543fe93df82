"""python -m src.infer_gpt2: output, resume, processes, errors."""

import json
import random
import shutil
import signal
import subprocess
import time

import pytest
from safetensors.torch import load_file, save_file

from tests.commands import ENVIRONMENT, ROOT, infer_command, outputs, run
from utils.metrics import majority_vote

LIMIT, N = 24, 8
COMMON = ("--data_path", "data/tiny_valid.json", "--limit", LIMIT, "--n_samples", N)
COMMON += ("--max_new_tokens", 12, "--dropout_p", 0.2)


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


def test_saved_latents(whole):
    folder, _ = whole
    assert len(list((folder / "latents").iterdir())) == LIMIT
    tensors = load_file(folder / "latents" / "000003.safetensors")
    assert tensors["latent_embeds"].shape == (N, 6, 32)
    record = json.loads((folder / "samples.jsonl").read_text().splitlines()[3])
    assert tensors["corrects"].tolist() == record["correct"]


@pytest.mark.parametrize("size", [1, 16])
def test_batch_size_changes_nothing(whole, flags, tmp_path, size):
    done = run(infer_command(*flags, "--output_dir", tmp_path / "x", "--batch_size", size))
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path / "x") == outputs(whole[0])


def test_two_processes_change_nothing(whole, flags, tmp_path):
    done = run(infer_command(*flags, "--output_dir", tmp_path / "x", "--batch_size", 2, processes=2))
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path / "x") == outputs(whole[0])
    assert done.stdout.count("Voting Accuracy:") == 1
    assert json.loads((tmp_path / "x/config.json").read_text())["processes"] == 2


def test_few_samples_are_the_head_of_many(whole, flags, tmp_path):
    done = run(infer_command(*flags, "--n_samples", 4, "--output_dir", tmp_path / "x"))
    assert done.returncode == 0, done.stderr
    few = [json.loads(line) for line in (tmp_path / "x/samples.jsonl").read_text().splitlines()]
    many = [json.loads(line) for line in (whole[0] / "samples.jsonl").read_text().splitlines()]
    assert [r["texts"] for r in few] == [r["texts"][:4] for r in many]
    metrics = outputs(tmp_path / "x")[1]["by_n"]
    assert metrics == {n: outputs(whole[0])[1]["by_n"][n] for n in ("1", "4")}


def test_a_killed_run_goes_on(whole, flags, tmp_path):
    """Killed again and again at random moments, it ends with the files of an uninterrupted run."""
    command = infer_command(*flags, "--batch_size", 2, "--output_dir", tmp_path / "x")
    chance = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(
            command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        samples, wanted = tmp_path / "x" / "samples.jsonl", chance.randrange(1, 5)
        before = len(samples.read_bytes().splitlines()) if samples.exists() else 0
        while process.poll() is None:
            if samples.exists() and len(samples.read_bytes().splitlines()) >= before + wanted:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.002)
        process.wait()
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path / "x") == outputs(whole[0])


def test_torn_and_sharded_remains_are_taken_up(whole, flags, tmp_path):
    """What two killed processes leave: two parts, one cut off inside a line."""
    folder = shutil.copytree(whole[0], tmp_path / "x")
    (folder / "metrics.json").unlink()
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").write_text("".join(lines[:5]) + lines[5][:70])
    (folder / "samples.rank1.jsonl").write_text("".join(lines[9:12]))
    done = run(infer_command(*flags, "--output_dir", folder, "--save_latents", "true"))
    assert done.returncode == 0, done.stderr
    assert outputs(folder) == outputs(whole[0])


def test_a_finished_run_is_reported_again(whole, flags, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "x")
    command = infer_command(*flags, "--output_dir", folder, "--save_latents", "true")
    before = (folder / "metrics.json").read_text()
    done = run([*command, "--report_n", "2", "8"])
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
        *flags, "--n_samples", 1, "--sampling_by", "noise", "--noise_std", 0,
        "--output_dir", tmp_path / "still",
    )  # fmt: skip
    assert run(greedy).returncode == run(still).returncode == 0
    assert outputs(tmp_path / "greedy") == outputs(tmp_path / "still")


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
        (("--do_sample", "false"), ("--n_samples 1",)),
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
    done = run(infer_command(*flags, "--output_dir", tmp_path / "x", *wrong))
    assert_one_line(done, *parts)


def test_other_settings_in_the_folder(whole, flags, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "x")
    command = infer_command(*flags, "--output_dir", folder, "--save_latents", "true", "--seed", 1)
    assert_one_line(run(command), "--seed", "--overwrite true")
    assert outputs(folder) == outputs(whole[0])
    done = run([*command, "--overwrite", "true"])
    assert done.returncode == 0, done.stderr
    assert outputs(folder)[0] != outputs(whole[0])[0]


def test_a_full_disk_keeps_what_was_finished(whole, flags, tmp_path):
    """A limit on the size of files stands for the full disk: the write fails in the middle."""
    command = infer_command(*flags, "--batch_size", 2, "--output_dir", tmp_path / "x")
    size = (whole[0] / "samples.jsonl").stat().st_size
    limited = ["bash", "-c", f'ulimit -f {size // 2048}; trap "" XFSZ; exec "$@"', "_", *command]
    assert_one_line(run(limited), "what was finished is kept")
    kept = (tmp_path / "x" / "samples.jsonl").read_text().count("\n")
    assert 0 < kept < LIMIT
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path / "x") == outputs(whole[0])


def test_other_data_or_weights_under_the_same_name(whole, flags, checkpoint, tmp_path):
    """A run is not mixed with samples of a data file or a checkpoint that has changed since."""
    folder = shutil.copytree(whole[0], tmp_path / "x")
    model = shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["model_id"] = str(model)
    (folder / "config.json").write_text(json.dumps(config))
    command = infer_command(
        *flags, "--model_id", model, "--output_dir", folder, "--save_latents", "true"
    )
    assert run(command).returncode == 0
    weights = load_file(model / "model.safetensors")
    save_file({name: w + 1 for name, w in weights.items()}, model / "model.safetensors")
    assert_one_line(run(command), "another weights_sha256")
