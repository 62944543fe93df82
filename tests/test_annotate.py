"""python -m src.annotate_data: shards, resume, processes, errors; and what reads the shards."""

import json
import os
import re
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.runs import annotate as annotate_module
from src.runs import run_folder
from tests.commands import (
    ROOT,
    assert_one_line_error,
    assert_success,
    command,
    edit_json,
    interrupt_and_continue,
    run,
    run_here,
    start,
)
from tests.conftest import raises_user_error
from utils import shards
from utils.shards import Pool

COMMON = ("--data_path", "data/tiny_valid.json", "--limit", 20, "--n_samples", 3, "--shard_size", 6)
COMMON += ("--max_new_tokens", 8, "--sampling_by", "noise", "--noise_std", 0.8)
COMMON += ("--n_samples_per_step", 3)


def annotate(folder, *flags, processes=1):
    output = ("--save_path", folder.parent, "--name", folder.name)
    return command("annotate_data", *COMMON, *output, *flags, processes=processes)


def contents(folder):
    """The manifest, and the bytes of every shard."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest, {path.name: path.read_bytes() for path in folder.glob("shard_*")}


def labels(folder):
    """{key: tensor} of all shards, without the thoughts, which other batches round differently."""
    tensors = {}
    for path in sorted(folder.glob("shard_*")):
        tensors |= {k: v for k, v in load_file(path).items() if not k.endswith("latent_embeds")}
    return tensors


def assert_same_labels(folder, expected_folder):
    actual, expected = labels(folder), labels(expected_folder)
    assert actual.keys() == expected.keys()
    for key in actual:
        torch.testing.assert_close(actual[key], expected[key], equal_nan=True, rtol=0, atol=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted pool, made by one process."""
    folder = tmp_path_factory.mktemp("pools") / "whole"
    result = assert_success(run(annotate(folder, "--batch_size", 6)))
    assert "question" in result.stderr and "labelled" in result.stderr
    return folder


def test_shards_have_the_published_layout(whole):
    tensors, (n, t, d) = labels(whole), (3, 6, 128)
    manifest = json.loads((whole / "manifest.json").read_text())
    skipped = [i for i in range(20) if tensors[f"{i}.input_ids"].dim() == 0]
    assert 0 < len(skipped) < 20
    assert manifest["labelled"] == 20 - len(skipped)
    for i in skipped:
        assert f"{i}.corrects" not in tensors
        assert int(tensors[f"{i}.input_ids"]) in (0, n)  # how many trajectories are right
    for i in set(range(20)) - set(skipped):
        assert tensors[f"{i}.input_ids"].shape[0] == n
        assert tensors[f"{i}.input_ids"].dtype == torch.int64
        estimations, corrects = tensors[f"{i}.estimations"], tensors[f"{i}.corrects"]
        assert (estimations.shape, estimations.dtype) == ((n, t), torch.float32)
        assert (corrects.shape, corrects.dtype) == ((n,), torch.bool)
        assert corrects.any() and not corrects.all()
        # No noise comes after the last thought: its label is the outcome.
        assert torch.equal(estimations[:, -1], corrects.float())
    with_thoughts = load_file(whole / "shard_00000.safetensors")
    for i in set(range(6)) - set(skipped):
        assert with_thoughts[f"{i}.latent_embeds"].shape == (n, t, d)


def test_a_pool_without_rollouts_keeps_every_question_and_labels_by_outcome(tmp_path):
    assert_success(run_here(annotate(tmp_path / "x", "--n_samples_per_step", 0)))
    pool = Pool(tmp_path / "x")
    assert len(pool) == 20
    group = pool[7]
    assert group["idx"] == 7
    assert torch.equal(group["estimations"], group["corrects"].float()[:, None].expand(3, 6))


@pytest.mark.parametrize("size", [1, 4, 20])
def test_batch_size_changes_no_label(whole, tmp_path, size):
    assert_success(run_here(annotate(tmp_path / "x", "--batch_size", size)))
    assert_same_labels(tmp_path / "x", whole)


def test_two_processes_write_the_shards_of_one(whole, tmp_path):
    assert_success(run(annotate(tmp_path / "x", "--batch_size", 6, processes=2)))
    assert contents(tmp_path / "x") == contents(whole)


@pytest.fixture(scope="module")
def whole_in_parts(tmp_path_factory):
    """The folder of a pool whose shards were joined from the parts of batches."""
    folder = tmp_path_factory.mktemp("pools") / "in_parts"
    assert_success(run_here(annotate(folder, "--batch_size", 4)))
    return folder


def test_a_slow_process_changes_no_shard(whole_in_parts, tmp_path):
    line = annotate(tmp_path / "x", "--batch_size", 4, processes=3)
    result = assert_success(run(line, delays={2: 1.0}))
    units = [len(re.findall(f"process {rank}: ", result.stdout)) for rank in range(3)]
    assert sum(units) == 7
    assert units[2] < 7 / 3
    assert contents(tmp_path / "x") == contents(whole_in_parts)
    assert not list((tmp_path / "x").glob("part_*"))


def parts_and_shards(folder):
    return [*folder.glob("part_*"), *folder.glob("shard_*")]


def test_killed_processes_lose_no_finished_batch(whole_in_parts, tmp_path):
    """Two processes are killed between two batches; three others continue."""
    folder = tmp_path / "x"
    line = annotate(folder, "--batch_size", 4, processes=2)
    killed = start(line, tmp_path, delays={0: 0.4, 1: 0.2})
    while len(parts_and_shards(folder)) < 2 and killed[0].is_alive():
        time.sleep(0.01)
    for worker in killed:
        worker.kill()
        worker.join()
    done = {
        int(name.partition(".")[0]) for path in parts_and_shards(folder) for name in load_file(path)
    }
    assert done and not (folder / "manifest.json").exists()
    result = assert_success(run(annotate(folder, "--batch_size", 4, processes=3), delays={0: 0.1}))
    again = {int(i) for i in re.findall(r"\d+", " ".join(re.findall(r"\[.*]", result.stdout)))}
    assert again == set(range(20)) - done
    assert contents(folder) == contents(whole_in_parts)


@pytest.mark.parametrize("case", range(10))
def test_an_interrupted_annotation_continues_to_the_same_shards(
    whole_in_parts, tmp_path, monkeypatch, case
):
    """Interrupted just before or after a write, or between the steps of one."""
    functions = (
        (os, "replace", 12),
        (shards, "write_bytes", 11),
        (annotate_module, "annotate", 7),
        (run_folder, "write_json", 1),
        (shards, "write_json", 1),
    )
    line = annotate(tmp_path / "x", "--batch_size", 4)
    interrupt_and_continue(line, functions, case, monkeypatch)
    assert contents(tmp_path / "x") == contents(whole_in_parts)
    assert not list((tmp_path / "x").glob("part_*"))


def test_a_finished_pool_is_not_made_again(whole, monkeypatch):
    before = contents(whole)
    monkeypatch.setattr(annotate_module, "annotate", None)
    assert_success(run_here(annotate(whole)))
    assert contents(whole) == before


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--seed", 3), ("--seed", "--overwrite")),
        (("--n_samples_per_step", -1), ("--n_samples_per_step", "at least 0")),
        (("--shard_size", 0), ("--shard_size",)),
        (("--dropout_embedding", "true"), ("--dropout_embedding", "no effect")),
        (("--model_id", "nowhere"), ("nowhere",)),
        (("--max_new_tokens", 120, "--name", "long"), ("row", "--max_new_tokens"[2:])),
        (("--n_sample", 3), ("--n_sample", "did you mean")),
    ],
)
def test_impossible_flags_are_a_one_line_error(whole, flags, parts):
    assert_one_line_error(run_here(annotate(whole, *flags)), *parts)


@pytest.fixture
def pool(whole, tmp_path):
    """A copy of the pool, which a test may damage."""
    return shutil.copytree(whole, tmp_path / "copy")


def test_a_pool_reads_the_tensors_that_were_written(whole):
    pool = Pool(whole)
    written = {}
    for path in whole.glob("shard_*"):
        written |= load_file(path)
    assert [idx for _, idx in pool.labelled] == sorted(idx for _, idx in pool.labelled)
    for position in range(len(pool)):
        group = pool[position]
        assert pool.width(position, "input_ids") == group["input_ids"].shape[1]
        for key in ("latent_embeds", "estimations", "corrects"):
            assert torch.equal(group[key], written[f"{group['idx']}.{key}"])


def test_a_missing_shard_is_made_again(pool, whole):
    (pool / "shard_00001.safetensors").unlink()
    assert_success(run_here(annotate(pool, "--batch_size", 6)))
    assert contents(pool) == contents(whole)


def test_parts_of_other_batches_are_kept(pool, whole):
    """A run in other batches has done two questions of a shard. It was interrupted there, and once
    before that between a shard and the removal of its parts."""
    shard = load_file(pool / "shard_00001.safetensors")
    for name in ("manifest.json", "shard_00001.safetensors"):
        (pool / name).unlink()
    done = {i: {} for i in (7, 10)}
    for name, tensor in shard.items():
        idx, _, key = name.partition(".")
        if int(idx) in done:
            done[int(idx)][key] = tensor
    shards.write_part(pool, done)
    shards.write_part(pool, {2: {"input_ids": torch.tensor(0)}})
    assert_success(run_here(annotate(pool, "--batch_size", 6)))
    assert contents(pool) == contents(whole)
    assert not list(pool.glob("part_*"))


def test_a_damaged_part_is_a_one_line_error(pool):
    (pool / "part_0000007.safetensors").write_bytes(b"{")
    assert_one_line_error(run_here(annotate(pool)), "part_0000007", "remove it and run again")


def _damage(folder, fault):
    path = folder / "shard_00001.safetensors"
    if fault == "missing":
        path.unlink()
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    if fault == "one bit":
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    if fault == "foreign":
        save_file({"x": torch.zeros(1)}, path)
    if fault == "unfinished":
        (folder / "manifest.json").unlink()
    if fault == "no manifest":
        (folder / "manifest.json").write_text("[]")
    if fault == "other questions":
        changed = folder / "questions.json"
        changed.write_text((ROOT / "data/tiny_valid.json").read_text().replace("pens", "cups"))
        edit_json(folder / "manifest.json", data_path=str(changed))


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ("missing", "shard_00001"),
        ("cut", "shard_00001"),
        ("one bit", "shard_00001"),
        ("foreign", "shard_00001"),
        ("unfinished", "no finished pool"),
        ("no manifest", "manifest.json"),
        ("other questions", "questions.json"),
    ],
)
def test_a_damaged_pool_is_a_one_line_error(pool, fault, part):
    _damage(pool, fault)
    with raises_user_error(part):
        Pool(pool)
