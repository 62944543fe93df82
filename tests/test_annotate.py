"""python -m src.annotate_data: shards, resume, processes, errors; and what reads the shards."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from src import annotate_data
from src.runs import annotate as annotation
from src.runs import run_folder
from tests.commands import ROOT, command, interrupted_once, run, run_here
from utils import shards
from utils.errors import UserError
from utils.shards import Pool

COMMON = ("--data_path", "data/tiny_valid.json", "--limit", 20, "--n_samples", 3, "--shard_size", 6)
COMMON += ("--max_new_tokens", 8, "--sampling_by", "noise", "--noise_std", 0.8)


def annotate(folder, *flags, processes=1):
    flags = (
        *COMMON,
        "--n_samples_per_step",
        3,
        "--save_path",
        folder.parent,
        "--name",
        folder.name,
        *flags,
    )
    return command("annotate_data", *flags, processes=processes)


def contents(folder):
    """The manifest, and the bytes of every shard."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest, {path.name: path.read_bytes() for path in folder.glob("shard_*")}


def labels(folder):
    """{key: tensor} of all shards without the thoughts, which other batches round differently."""
    found = {}
    for path in sorted(folder.glob("shard_*")):
        found |= {k: v for k, v in load_file(path).items() if not k.endswith("latent_embeds")}
    return found


def assert_same_labels(one, other):
    one, other = labels(one), labels(other)
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], equal_nan=True, rtol=0, atol=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pools") / "whole"
    done = run(annotate(folder, "--batch_size", 6))
    assert done.returncode == 0, done.stderr
    assert "question" in done.stderr and "labelled" in done.stderr
    return folder


def test_shards_have_the_published_layout(whole):
    found, (n, t, d) = labels(whole), (3, 6, 128)
    manifest = json.loads((whole / "manifest.json").read_text())
    skipped = [i for i in range(20) if found[f"{i}.input_ids"].dim() == 0]
    assert 0 < len(skipped) < 20
    assert manifest["labelled"] == 20 - len(skipped)
    thoughts = load_file(whole / "shard_00000.safetensors")
    for i in range(20):
        if i in skipped:
            assert f"{i}.corrects" not in found
            assert int(found[f"{i}.input_ids"]) in (0, n)  # how many solve it
            continue
        assert found[f"{i}.input_ids"].shape[0] == n
        assert found[f"{i}.input_ids"].dtype == torch.int64
        estimations, corrects = found[f"{i}.estimations"], found[f"{i}.corrects"]
        assert (estimations.shape, estimations.dtype) == ((n, t), torch.float32)
        assert (corrects.shape, corrects.dtype) == ((n,), torch.bool)
        assert corrects.any() and not corrects.all()
        assert torch.equal(
            estimations[:, -1], corrects.float()
        )  # noise is over after the last thought
        if i < 6:
            assert thoughts[f"{i}.latent_embeds"].shape == (n, t, d)


def test_pools_for_validation_keep_every_question(tmp_path):
    done = run_here(annotate(tmp_path / "x", "--n_samples_per_step", 0))
    assert done.returncode == 0, done.stderr
    pool = Pool(tmp_path / "x")
    assert len(pool) == 20
    found = pool[7]
    assert found["idx"] == 7
    assert torch.equal(found["estimations"], found["corrects"].float()[:, None].expand(3, 6))


@pytest.mark.parametrize("size", [1, 4, 20])
def test_the_batch_size_changes_nothing(whole, tmp_path, size):
    assert run_here(annotate(tmp_path / "x", "--batch_size", size)).returncode == 0
    assert_same_labels(tmp_path / "x", whole)


def test_two_processes_equal_one(whole, tmp_path):
    done = run(annotate(tmp_path / "x", "--batch_size", 6, processes=2))
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "x") == contents(whole)


@pytest.mark.parametrize("moment", range(10))
def test_interrupted_at_any_write(whole, tmp_path, monkeypatch, moment):
    """An interruption just before or after a write, or between the steps of one."""
    places = (
        (os, "replace", 5), (shards, "write_bytes", 4), (annotation, "annotate", 4),
        (run_folder, "write_json", 1), (shards, "write_json", 1),
    )  # fmt: skip
    monkeypatch.setattr("sys.argv", annotate(tmp_path / "x", "--batch_size", 6)[2:])
    assert interrupted_once(annotate_data.main, places, moment, monkeypatch)
    annotate_data.main()
    assert contents(tmp_path / "x") == contents(whole)


def test_a_finished_pool_is_not_made_again(whole, monkeypatch):
    before = contents(whole)
    monkeypatch.setattr(annotation, "annotate", None)
    assert run_here(annotate(whole)).returncode == 0
    assert contents(whole) == before


@pytest.mark.parametrize(
    ("wrong", "parts"),
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
def test_user_errors(whole, wrong, parts):
    done = run_here(annotate(whole, *wrong))
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert all(part in line for part in parts), line


@pytest.fixture
def pool(whole, tmp_path):
    """A copy of the pool that may be spoilt."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_pool_is_read_as_it_was_written(whole):
    pool = Pool(whole)
    written = {}
    for path in whole.glob("shard_*"):
        written |= load_file(path)
    assert [idx for _, idx in pool.labelled] == sorted(idx for _, idx in pool.labelled)
    for place in range(len(pool)):
        found = pool[place]
        assert pool.width(place, "input_ids") == found["input_ids"].shape[1]
        for key in ("latent_embeds", "estimations", "corrects"):
            assert torch.equal(found[key], written[f"{found['idx']}.{key}"])


def test_a_lost_shard_is_made_again(pool, whole):
    (pool / "shard_00001.safetensors").unlink()
    done = run_here(annotate(pool, "--batch_size", 6))
    assert done.returncode == 0, done.stderr
    assert contents(pool) == contents(whole)


def _spoil(folder, fault):
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
        manifest = json.loads((folder / "manifest.json").read_text())
        changed = folder / "questions.json"
        changed.write_text((ROOT / "data/tiny_valid.json").read_text().replace("pens", "cups"))
        (folder / "manifest.json").write_text(json.dumps(manifest | {"data_path": str(changed)}))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", "shard_00001"), ("cut", "shard_00001"), ("one bit", "shard_00001"),
        ("foreign", "shard_00001"), ("unfinished", "no finished pool"), ("no manifest", "manifest.json"),
        ("other questions", "questions.json"),
    ],
)  # fmt: skip
def test_a_spoilt_pool_is_one_clear_line(pool, fault, said):
    _spoil(pool, fault)
    with pytest.raises(UserError) as error:
        Pool(pool)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
