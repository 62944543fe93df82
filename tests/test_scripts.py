"""The sweeps, and the tables that they write."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.models import BACKBONES
from tests.commands import ENVIRONMENT, ROOT, launch, run_here
from tests.conftest import RANDOM

RUNS = {"run_tests.sh": "coconut", "run_tests_llama.sh": "colar"}
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
# A python that writes down how src.sweep was called, and runs nothing.
STUB = """#!/bin/sh
[ "$1" != -c ] || echo 1
[ "$2" != src.sweep ] || printf '%s\\n' "$@" >"$RECORD"
"""


@pytest.fixture
def sweep(tmp_path):
    """Runs a script, but its src.sweep within this process, which has loaded the libraries already."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text(STUB)
    (tmp_path / "bin/python").chmod(0o755)

    def run_script(script, **environment):
        record = tmp_path / "record"
        environment |= {"RECORD": str(record), "PATH": f"{tmp_path}/bin{os.pathsep}{PATH}"}
        done = launch(["bash", script], **environment)
        assert done.returncode == 0, done.stderr
        return run_here(["python", *record.read_text().splitlines()])

    return run_script


@pytest.mark.parametrize("script", RUNS)
def test_sweep_writes_one_table_and_skips_what_is_finished(
    script, sweep, tmp_path_factory, tmp_path
):
    longer = {"coconut": {"n_positions": 160}, "colar": {"max_position_embeddings": 256}}[
        RUNS[script]
    ]
    model, tokenizer = RANDOM[RUNS[script]](**longer)
    checkpoint, out = tmp_path_factory.mktemp("checkpoints") / "random", tmp_path / "out"
    model.float().save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    lists = {
        "MODELS": f"{RUNS[script]}:{checkpoint}", "SPLITS": "tiny_valid", "DROPOUT_PS": "0.1",
        "NOISE_STDS": "0.5", "NS": "1 4", "SEEDS": "1", "LIMIT": "6", "NPROC": "1", "OUTPUT_DIR": str(out),
    }  # fmt: skip

    done = sweep(script, **lists)
    assert done.returncode == 0, done.stderr
    with (out / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    cells = {(r["benchmark"], r["sampler"], r["dropout_p"], r["noise_std"], r["N"]) for r in rows}
    assert cells == {
        ("tiny_valid", *sampler, n)
        for sampler in (("dropout", "0.1", ""), ("noise", "", "0.5"))
        for n in ("1", "4")
    }
    for row in rows:
        assert float(row["coverage_low"]) <= float(row["coverage"]) <= float(row["coverage_high"])
    table = (out / "results.md").read_text()
    assert table.count("\n") == 2 + 2  # a line a run
    first = next(row for row in rows if row["sampler"] == "dropout" and row["N"] == "4")
    half = (float(first["coverage_high"]) - float(first["coverage_low"])) / 2
    assert f"| {float(first['coverage']):.1f} ±{half:.1f} |" in table
    assert table in done.stdout
    said = done.stdout.splitlines()
    assert said[0].startswith(RUNS[script]) and "2 cells: about" in said[1]

    samples = {path: path.stat().st_mtime_ns for path in out.rglob("samples.jsonl")}
    lost = min(samples)
    content = lost.read_text()
    shutil.rmtree(lost.parent)
    done = sweep(script, **lists)
    assert done.returncode == 0, done.stderr
    assert "1 cell: about" in done.stdout
    assert lost.read_text() == content  # made anew, the others left alone
    assert all(path.stat().st_mtime_ns == at for path, at in samples.items() if path != lost)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PROFILE": "big"}, "PROFILE=big: must be tiny or paper"),
        ({"SPLITS": "tiny_test nope"}, "data/nope.json: no such file"),
    ],
)
@pytest.mark.parametrize("script", [*RUNS, "run_tts_with_rm.sh"])
def test_impossible_sweeps(script, environment, message):
    done = subprocess.run(
        ["bash", script], cwd=ROOT, env=ENVIRONMENT | environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("backbone", BACKBONES)
def test_run_tts_with_rm_puts_every_method_beside_its_budget(tmp_path, backbone, sweep):
    small = {
        "BACKBONE": backbone, "SPLITS": "tiny_multi", "SAMPLERS": "noise:0.05", "NS": "1 4",
        "BEAMS": "2x2", "LIMIT": "6", "NPROC": "1", "OUTPUT_DIR": str(tmp_path / "out"),
    }  # fmt: skip
    done = sweep("run_tts_with_rm.sh", **small)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out/choices.csv").open() as stream:
        rows = {(row["N"], row["method"]): row for row in csv.DictReader(stream)}
    assert {method for n, method in rows if n == "4"} == {
        "majority", "best_of_n", "weighted_vote", "bayesian_vote", "bayesian_geometric",
        "reward_bayesian",
    }  # fmt: skip
    assert float(rows["1", "majority"]["trajectories"]) == 1
    if backbone != "colar":
        assert float(rows["4", "majority"]["latent_passes"]) == 24
    assert float(rows["4", "reward_bayesian"]["ms"]) > float(rows["4", "majority"]["ms"])
    assert rows["2 x 2", "beam_search"]["gain"] != ""  # against the vote of 4 trajectories
    assert rows["4", "majority"]["greedy_gain"] != ""
    assert "tiny_multi" in (tmp_path / "out/accuracy.md").read_text()
    *_, header, line, note, tables = done.stdout.splitlines()
    assert header.startswith("benchmark") and "gain over greedy" in header
    assert line.startswith("tiny_multi") and note.startswith("*") and tables.startswith("tables:")
    again = sweep("run_tts_with_rm.sh", **small)
    assert again.returncode == 0 and "question/s" not in again.stderr
    other = sweep(
        "run_tts_with_rm.sh", **small | {"NS": "2 4"}
    )  # nothing is sampled for other sizes
    assert other.returncode == 0 and "question/s" not in other.stderr
    assert "| 2 |" in (tmp_path / "out/choices.md").read_text()


def test_run_annotation_makes_the_pools_of_its_recipe(tmp_path, sweep):
    small = {
        "SIZE": "small", "TRAIN": "a:5:3:1:noise:0.8", "VALID": "b:4:2:0:dropout:0.1", "NPROC": "1",
        "TRAIN_DATA": "data/tiny_valid.json", "SAVE_PATH": str(tmp_path / "pools"),
    }  # fmt: skip
    done = sweep("run_annotation.sh", **small)
    assert done.returncode == 0, done.stderr
    for name, n, rollouts in (("a", 3, 1), ("b", 2, 0)):
        settings = json.loads((tmp_path / "pools" / name / "manifest.json").read_text())["settings"]
        assert (settings["n_samples"], settings["n_samples_per_step"]) == (n, rollouts)


@pytest.mark.parametrize(
    ("environment", "said"), [({"PROFILE": "large"}, "PROFILE"), ({"BACKBONE": "codj"}, "codj")]
)
def test_an_unknown_annotation_is_one_line(environment, said):
    done = launch(["./run_annotation.sh"], **environment)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_sweep_shares_its_cells_among_processes(tmp_path, sweep):
    """The script itself, with two processes: one start for all cells, and the tables of one process."""
    small = {
        "SPLITS": "tiny_multi", "NS": "1 4", "BEAMS": "2x2", "LIMIT": "20", "BATCH_SIZE": "4",
    }  # fmt: skip
    for count in (1, 2):
        group = {"NPROC": str(count), "OUTPUT_DIR": str(tmp_path / str(count))}
        if count == 1:
            done = sweep("run_tts_with_rm.sh", **small, **group)
        else:
            done = launch(["./run_tts_with_rm.sh"], PATH=PATH, **small, **group)
        assert done.returncode == 0, done.stderr
        assert "3 cells: about" in done.stdout and f"on {count} process" in done.stdout
        assert done.stdout.count("tables: ") == 1
    one, two = (
        {
            path.relative_to(tmp_path / n): path.read_text()
            for path in (tmp_path / n).rglob("samples.jsonl")
        }
        for n in ("1", "2")
    )
    assert one.keys() == two.keys() and len(one) == 3
    for path, text in one.items():
        pairs = zip(text.splitlines(), two[path].splitlines(), strict=True)
        assert all(json.loads(a)["texts"] == json.loads(b)["texts"] for a, b in pairs)
