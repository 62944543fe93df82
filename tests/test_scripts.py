"""The shell scripts: sweeps with their tables, choosing, annotation."""

import csv
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from src.runs.commands import COMMANDS
from tests.commands import assert_success, launch, run_here, samples_of
from tests.conftest import save_random_checkpoint
from utils.cli import parse_flags

RUNS = {"run_tests.sh": "coconut", "run_tests_llama.sh": "colar"}
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
# A python that runs nothing. It records the command line of src.sweep.
STUB = """#!/bin/sh
[ "$1" != -c ] || echo 1
[ "$2" != src.sweep ] || printf '%s\\n' "$@" >"$RECORD"
"""


def write_stub(tmp_path):
    """The folder of the STUB."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text(STUB)
    (tmp_path / "bin/python").chmod(0o755)
    return tmp_path / "bin"


@pytest.fixture
def sweep(tmp_path):
    """Runs a script, but its src.sweep in this process, which has loaded the libraries already."""
    stub = write_stub(tmp_path)

    def run_script(script, **environment):
        record = tmp_path / "record"
        environment |= {"RECORD": str(record), "PATH": f"{stub}{os.pathsep}{PATH}"}
        assert_success(launch(["bash", script], **environment))
        return run_here(["python", *record.read_text().splitlines()])

    return run_script


@pytest.fixture
def small_sweep(tmp_path):
    """The settings of a sweep over six questions, for a backbone: noise, dropout and greedy."""

    def settings(backbone):
        checkpoint = save_random_checkpoint(backbone, tmp_path / "checkpoint")
        return {
            "MODELS": f"{backbone}:{checkpoint}",
            "SPLITS": "tiny_valid",
            "DROPOUT_PS": "0.1",
            "NOISE_STDS": "0.5",
            "NS": "1 4",
            "SEEDS": "1",
            "LIMIT": "6",
            "NPROC": "1",
            "OUTPUT_DIR": str(tmp_path / "out"),
        }

    return settings


def read_csv(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("script", RUNS)
def test_a_sweep_tables_its_runs_and_repeats_none(script, sweep, small_sweep, tmp_path):
    settings = small_sweep(RUNS[script])
    result = assert_success(sweep(script, **settings))
    rows = read_csv(tmp_path / "out/results.csv")
    cells = {(r["benchmark"], r["sampler"], r["dropout_p"], r["noise_std"], r["N"]) for r in rows}
    assert cells == {("tiny_valid", "greedy", "", "", "1")} | {
        ("tiny_valid", *sampler, n)
        for sampler in (("dropout", "0.1", ""), ("noise", "", "0.5"))
        for n in ("1", "4")
    }
    assert all((row["vote_greedy_gain"] == "") == (row["sampler"] == "greedy") for row in rows)
    for row in rows:
        assert float(row["coverage_low"]) <= float(row["coverage"]) <= float(row["coverage_high"])
    table = (tmp_path / "out/results.md").read_text()
    assert table.count("\n") == 2 + 3  # a line for each run
    first = next(row for row in rows if row["sampler"] == "dropout" and row["N"] == "4")
    half = (float(first["coverage_high"]) - float(first["coverage_low"])) / 2
    assert f"| {float(first['coverage']):.1f} ±{half:.1f} |" in table
    assert table in result.stdout
    lines = result.stdout.splitlines()
    assert lines[0].startswith(RUNS[script])
    assert "3 cells: about" in lines[1]
    # A repeated sweep runs only what is missing.
    paths = sorted((tmp_path / "out").rglob("samples.jsonl"))
    times = {path: path.stat().st_mtime_ns for path in paths}
    lost, content = paths[0], paths[0].read_text()
    shutil.rmtree(lost.parent)
    result = assert_success(sweep(script, **settings))
    assert len(paths) == 3
    assert "1 cell: about" in result.stdout
    assert lost.read_text() == content
    assert all(path.stat().st_mtime_ns == times[path] for path in paths[1:])


def test_a_sweep_of_many_seeds_has_one_greedy_cell_a_model_and_benchmark(sweep, small_sweep):
    settings = small_sweep("coconut") | {"SPLITS": "tiny_valid tiny_multi", "SEEDS": "1 2"}
    assert_success(sweep("run_tests.sh", **settings | {"NOISE_STDS": "", "NS": "1"}))
    cells = (Path(settings["OUTPUT_DIR"]) / "cells.txt").read_text().splitlines()
    greedy = [cell for cell in cells if "--do_sample false" in cell]
    assert len(cells) == 2 + 2 * 2 and len(greedy) == 2


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PROFILE": "big"}, "PROFILE=big: must be tiny or paper"),
        ({"SPLITS": "tiny_test nope"}, "data/nope.json: no such file"),
    ],
)
@pytest.mark.parametrize("script", [*RUNS, "run_tts_with_rm.sh"])
def test_a_sweep_of_unknown_profile_or_data_is_refused(script, environment, message):
    result = launch(["bash", script], **environment)
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.parametrize("backbone", ["codi", "colar"])  # COCONUT: see the last test
def test_run_tts_with_rm_tables_every_method_beside_its_cost(tmp_path, backbone, sweep):
    settings = {
        "BACKBONE": backbone,
        "SPLITS": "tiny_multi",
        "SAMPLERS": "noise:0.05",
        "NS": "1 4",
        "BEAMS": "2x2",
        "LIMIT": "6",
        "NPROC": "1",
        "OUTPUT_DIR": str(tmp_path / "out"),
    }
    result = assert_success(sweep("run_tts_with_rm.sh", **settings))
    assert_every_method_is_tabled(tmp_path / "out", backbone)
    *_, header, line, note, tables, figures = result.stdout.splitlines()
    assert header.startswith("benchmark") and "gain over greedy" in header
    assert line.startswith("tiny_multi")
    assert note.startswith("*")
    assert tables.startswith("tables:")
    assert figures.startswith("figures:")


@pytest.mark.parametrize(
    ("backbone", "everywhere"), [("coconut", "dropout-0.1-embedding-attention"), ("colar", None)]
)
def test_the_paper_profile_chooses_at_the_release_s_dropout_too(tmp_path, backbone, everywhere):
    settings = {
        "PROFILE": "paper",
        "BACKBONE": backbone,
        "GENERATOR": f"checkpoints/tiny-{backbone}",
        "PRM": f"checkpoints/tiny-latentRM-{backbone}",
        "SPLITS": "tiny_multi",
        "BEAMS": "",
        "NPROC": "1",
        "OUTPUT_DIR": str(tmp_path),
    }
    settings |= {"RECORD": os.devnull, "PATH": f"{write_stub(tmp_path)}{os.pathsep}{PATH}"}
    assert_success(launch(["bash", "run_tts_with_rm.sh"], **settings))
    names = []
    for line in (tmp_path / "cells.txt").read_text().splitlines():
        name, *flags = shlex.split(line)
        names.append(parse_flags(COMMANDS[name].arguments, name, "", flags).sampler_name)
    assert (everywhere in names) == (everywhere is not None)
    plain = [name for name in names if re.fullmatch(r"(dropout|noise)-[0-9.]+|greedy", name)]
    assert len(plain) == 3 == len(names) - (everywhere is not None)


@pytest.mark.quick
def test_a_sweep_takes_the_command_of_the_checkpoint_s_architecture(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}, indent=2))
    for backbone, model, expected in (
        ("codi", tmp_path, "src.infer_llama"),
        ("codi", "checkpoints/tiny-codi", "src.infer_gpt2"),
        ("codi", "ModalityDance/latent-tts-codi", "src.infer_gpt2"),
        ("colar", "ModalityDance/latent-tts-colar", "src.infer_llama"),
    ):
        line = f". utils/sweep.sh; infer_command {backbone} {model}"
        assert assert_success(launch(["bash", "-c", line])).stdout.strip() == expected


def assert_every_method_is_tabled(folder, backbone):
    rows = {(row["N"], row["method"]): row for row in read_csv(folder / "choices.csv")}
    assert {method for n, method in rows if n == "4"} == {
        "majority",
        "best_of_n",
        "weighted_vote",
        "bayesian_vote",
        "bayesian_geometric",
        "reward_bayesian",
    }
    assert float(rows["1", "majority"]["trajectories"]) == 1
    if backbone != "colar":  # which decides itself when to stop thinking
        assert float(rows["4", "majority"]["latent_passes"]) == 24
    assert float(rows["4", "reward_bayesian"]["ms"]) > float(rows["4", "majority"]["ms"])
    assert rows["2 x 2", "beam_search"]["gain"] != ""  # against the vote of 4 trajectories
    assert rows["4", "majority"]["greedy_gain"] != ""
    assert "tiny_multi" in (folder / "accuracy.md").read_text()


def test_run_annotation_makes_the_pools_that_it_is_given(tmp_path, sweep):
    settings = {
        "SIZE": "small",
        "TRAIN": "a:5:3:1:noise:0.8",
        "VALID": "b:4:2:0:dropout:0.1",
        "NPROC": "1",
        "TRAIN_DATA": "data/tiny_valid.json",
        "SAVE_PATH": str(tmp_path / "pools"),
    }
    assert_success(sweep("run_annotation.sh", **settings))
    for name, n, rollouts in (("a", 3, 1), ("b", 2, 0)):
        manifest = json.loads((tmp_path / "pools" / name / "manifest.json").read_text())
        assert manifest["settings"]["n_samples"] == n
        assert manifest["settings"]["n_samples_per_step"] == rollouts


@pytest.mark.parametrize(
    ("environment", "message"), [({"PROFILE": "large"}, "PROFILE"), ({"BACKBONE": "codj"}, "codj")]
)
def test_run_annotation_refuses_an_unknown_profile_or_backbone(environment, message):
    result = launch(["./run_annotation.sh"], **environment)
    assert result.returncode == 2
    assert message in result.stderr


def test_two_processes_share_the_cells_of_a_sweep_with_the_same_answers(tmp_path, sweep):
    """The script itself, with two processes: one start for all cells."""
    settings = {
        "SPLITS": "tiny_multi",
        "NS": "1 4",
        "BEAMS": "2x2",
        "LIMIT": "8",
        "BATCH_SIZE": "2",
    }
    answers = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        group = {"NPROC": str(count), "OUTPUT_DIR": str(folder)}
        if count == 1:
            result = sweep("run_tts_with_rm.sh", **settings, **group)
        else:
            result = launch(["./run_tts_with_rm.sh"], PATH=PATH, **settings, **group)
        assert_success(result)
        assert "3 cells: about" in result.stdout and f"on {count} process" in result.stdout
        assert result.stdout.count("tables: ") == 1
        runs = [path.parent for path in folder.rglob("samples.jsonl")]
        answers.append({
            run.relative_to(folder): [record["texts"] for record in samples_of(run)]
            for run in runs
        })  # fmt: skip
    assert len(answers[0]) == 3
    assert answers[0] == answers[1]
    assert_every_method_is_tabled(tmp_path / "1", "coconut")
    # Nothing is sampled a second time, for other N of the same pool.
    settings |= {"NPROC": "1", "OUTPUT_DIR": str(tmp_path / "1"), "NS": "2 4"}
    again = assert_success(sweep("run_tts_with_rm.sh", **settings))
    assert "question/s" not in again.stderr
    assert "| 2 |" in (tmp_path / "1/choices.md").read_text()
