"""Stopping when the vote is decided: the test keeps its error rate, live runs equal whole pools."""

import json
import os

import numpy as np
import pytest

from src.runs import evaluate
from src.runs.arguments import InferenceArguments
from src.runs.figure_adaptive import ADAPTIVE_LOOK, FIXED_LOOK, LIVE_LOOK
from src.runs.figures import draw
from src.runs.finished_runs import FinishedRun, finished_runs
from src.runs.tables import collect
from src.search.adaptive import ERRORS, checkpoints, decided, evidence, stopped_size, threshold
from src.search.voting import measure
from tests.commands import (
    ROOT,
    assert_success,
    edit_json,
    infer_command,
    interrupt_and_continue,
    outputs,
    run,
    run_here,
    samples_of,
)
from tests.plotted import GREEDY, noise, record, write_run
from utils import records
from utils.metrics import majority_vote

ERROR, N = 0.2, 12
FLAGS = ("--model_id", ROOT / "checkpoints/tiny-coconut", "--data_path", "data/tiny_valid.json")
FLAGS += ("--limit", 10, "--n_samples", N, "--sampling_by", "noise", "--max_new_tokens", 12)
STOP = (*FLAGS, "--stop_error", ERROR)


@pytest.mark.quick
def test_evidence_is_the_mean_likelihood_ratio_of_leads_over_equality():
    shares = (np.arange(20000) + 0.5) / 40000 + 0.5  # of the leader, uniform from 1/2 to 1
    for a, b in ((0, 0), (1, 0), (0, 1), (9, 0), (7, 3), (40, 24)):
        ratios = np.exp(a * np.log(2 * shares) + b * np.log(2 * (1 - shares)))
        assert float(evidence(a, b)) == pytest.approx(ratios.mean(), rel=1e-4)
        # A supermartingale: with equal shares its mean over the next vote is itself.
        assert (evidence(a + 1, b) + evidence(a, b + 1)) / 2 == evidence(a, b)
    assert threshold(1, 0.5) == 6 and threshold(2, 0.5) == 18


@pytest.mark.quick
@pytest.mark.parametrize(
    "shares",
    [(0.5, 0.5), (0.4, 0.3, 0.3), (0.28, 0.27, *[0.03] * 15), (0.9, 0.1), (0.02,) * 50],
    ids=["tie", "three", "long tail", "clear", "uniform"],
)
def test_it_rarely_stops_at_another_answer_than_the_mode(shares):
    """By simulation, looking at every checkpoint; of equal shares the first is taken for the mode.

    Nothing but the test stops: the pool has no end. The true rates are far below the stated ones.
    """
    rng, trials = np.random.default_rng(0), 400
    draws = rng.choice(len(shares), size=(trials, 80), p=np.divide(shares, sum(shares)))
    for error in (0.5, 0.1):
        stops = []
        for row in draws.tolist():
            heads = (row[:size] for size in checkpoints(80, error))
            stops.append(next((majority_vote(h) for h in heads if decided(h, 9999, error)), None))
        wrong = np.mean([stop not in (None, 0) for stop in stops])
        assert wrong <= error + 2 * (error / trials) ** 0.5
        if shares[0] == 0.9:
            assert np.mean([stop == 0 for stop in stops]) > 0.95  # and it does stop


@pytest.mark.quick
def test_when_a_vote_is_decided_by_hand():
    assert checkpoints(64, 0.05) == [9, 11, 13, 16, 20, 25, 31, 38, 47, 58, 64]
    assert evidence(8, 0) < threshold(1, 0.05) <= evidence(9, 0)
    assert stopped_size([1.0] * 64, 0.05) == 9
    # The second answer to appear needs more evidence than the first.
    assert stopped_size([2.0] + [1.0] * 63, 0.05) == 16
    assert stopped_size([1.0, 2.0] * 32, 0.05) == 64
    assert stopped_size([None] * 64, 0.05) == 64
    # Of 5 the first three decide, whatever the error: the others can't change the vote.
    assert checkpoints(5, 0.05) == [3, 4, 5]
    assert stopped_size([1.0, 1.0, 1.0, 2.0, 2.0], 0.05) == 3
    assert stopped_size([1.0, 1.0, 2.0, 1.0, 2.0], 0.05) == 4
    assert stopped_size([1.0, 2.0, 1.0, 2.0, 1.0], 0.05) == 5
    assert not decided([1.0, 1.0, 2.0, 2.0], 5, 0.05)
    assert checkpoints(1, 0.05) == [1] and stopped_size([None], 0.05) == 1


@pytest.mark.quick
def test_the_measures_of_stopped_votes_by_hand():
    rows = [record(0, [1.0] * 8), record(1, [2.0, 1.0] * 3 + [1.0, 1.0])]
    adaptive = measure(rows, [1, 8])["adaptive"]
    assert list(adaptive) == [str(error) for error in ERRORS]
    # At 0.5: 4 of 8; the other question is open until 4 to 3 and then 5 to 3 votes.
    assert adaptive["0.5"]["samples"] == {"value": 6.0, "low": 4.0, "high": 8.0}
    assert adaptive["0.5"]["accuracy"]["value"] == 100
    assert adaptive["0.01"]["samples"]["value"] == 6.5  # 5 of 8 can't be overtaken
    assert adaptive["0.01"]["gain"] == {"value": 0, "low": 0, "high": 0}
    assert "adaptive" not in measure(rows, [1])


@pytest.mark.quick
@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"stop_error": 1.0}, "--stop_error must lie between 0 and 1, not 1.0"),
        ({"do_sample": False}, "--stop_error has no effect with one trajectory"),
        ({"save_latents": True}, "--save_latents has no effect with --stop_error"),
        ({"signals": True}, "--signals has no effect with --stop_error"),
        ({"bayesian_vote": True}, "--bayesian_vote has no effect with --stop_error"),
        ({"report_n": [4]}, "--report_n has no effect with --stop_error"),
    ],
)
def test_flags_that_do_not_go_with_stopping_are_refused(flags, part):
    with pytest.raises(ValueError, match=part):
        InferenceArguments(**{"stop_error": 0.1} | flags)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folders of a pool of N trajectories for each question, and of a run that stopped."""
    folder = tmp_path_factory.mktemp("runs")
    assert_success(run_here(infer_command(*FLAGS, "--output_dir", folder / "pool")))
    line = infer_command(*STOP, "--output_dir", folder / "stopped")
    (folder / "stdout").write_text(assert_success(run_here(line)).stdout)
    return folder


def test_a_run_that_stops_has_the_head_of_each_pool(whole):
    pools, stopped = samples_of(whole / "pool"), samples_of(whole / "stopped")
    sizes = [stopped_size(pool["predictions"], ERROR) for pool in pools]
    assert len(set(sizes)) > 1
    for size, pool, record_ in zip(sizes, pools, stopped, strict=True):
        assert record_["texts"] == pool["texts"][:size]
        assert record_["vote"] == majority_vote(pool["predictions"][:size])
    metrics = json.loads((whole / "stopped/metrics.json").read_text())
    expected = outputs(whole / "pool")[1]["adaptive"][str(ERROR)]
    summary = metrics["by_n"][str(N)]
    assert set(summary) == {"voting_accuracy", "samples", "unparsable"}
    assert (summary["voting_accuracy"], summary["samples"]) == (
        expected["accuracy"],
        expected["samples"],
    )
    cost = metrics["speed"]["per_question"][str(N)]
    assert cost["trajectories"] == np.mean(sizes)
    assert cost["latent_steps"] == pytest.approx(6 * np.mean(sizes))
    lines = (whole / "stdout").read_text().splitlines()
    assert f"Samples a question, mean: {np.mean(sizes):.2f}" in lines


def test_batch_size_processes_and_an_interruption_change_nothing(whole, tmp_path, monkeypatch):
    line = infer_command(*STOP, "--output_dir", tmp_path / "one", "--batch_size", 1)
    assert_success(run_here(line))
    line = infer_command(*STOP, "--output_dir", tmp_path / "two", "--batch_size", 3, processes=2)
    assert_success(run(line))
    line = infer_command(*STOP, "--output_dir", tmp_path / "again", "--batch_size", 4)
    functions = ((records, "append", 2), (os, "fsync", 2), (evaluate, "write_json", 1))
    interrupt_and_continue(line, functions, 0, monkeypatch)
    for name in ("one", "two", "again"):
        assert outputs(tmp_path / name) == outputs(whole / "stopped")


def test_flags_yaml_gives_a_stopped_run_again(whole, tmp_path):
    line = infer_command("--config", whole / "stopped/flags.yaml", "--output_dir", tmp_path / "x")
    assert_success(run_here(line))
    assert outputs(tmp_path / "x") == outputs(whole / "stopped")


def test_tables_and_figures_of_pools_that_stopped(whole, tmp_path):
    runs = finished_runs(whole)
    collect(runs, tmp_path)
    header, _, *lines = (tmp_path / "results.md").read_text().splitlines()
    rows = [dict(zip(header.split(" | "), line.split(" | "), strict=True)) for line in lines]
    (stopped,) = [row for row in rows if "stop_error" in row["sampler"]]
    samples = FinishedRun(whole / "stopped").metrics["by_n"][str(N)]["samples"]["value"]
    assert stopped["sampler"] == f"noise_std 0.8, stop_error {ERROR}"
    assert stopped["mean samples"] == f"{samples:.1f}" and stopped[f"coverage @{N}"] == ""
    assert list(draw(runs)) == ["coverage-tiny-coconut"]  # a pool of 12 has little to save


@pytest.mark.quick
def test_the_figure_shows_votes_of_fixed_and_of_stopped_pools(tmp_path):
    """Two seeds of 16 trajectories for two questions, greedy, and a run that stopped."""
    pools = {1: [[1.0] * 16, [2.0, 1.0] * 8], 2: [[1.0] * 16, [1.0] * 16]}
    for seed, of_seed in pools.items():
        rows = [record(i, pool) for i, pool in enumerate(of_seed)]
        write_run(tmp_path / f"pool{seed}", rows, noise(0.5, seed=seed))
    write_run(tmp_path / "greedy", [record(0, [1.0]), record(1, [2.0])], GREEDY)
    rows = [record(i, pool) for i, pool in enumerate(pools[1])]
    write_run(tmp_path / "stopped", rows, noise(0.5, seed=1))
    config = json.loads((tmp_path / "stopped/config.json").read_text())
    edit_json(tmp_path / "stopped/config.json", settings=config["settings"] | {"stop_error": 0.5})
    figures = draw(finished_runs(tmp_path), kinds=("adaptive",))
    assert list(figures) == ["adaptive-some-model"]
    (axis,) = figures["adaptive-some-model"].axes
    lines = {line.get_marker(): line for line in axis.lines}
    fixed, adaptive, live = (
        lines[look["marker"]] for look in (FIXED_LOOK, ADAPTIVE_LOOK, LIVE_LOOK)
    )
    assert list(fixed.get_xdata()) == [1, 2, 4, 8, 16]
    assert list(fixed.get_ydata()) == [75] * 5  # one of the four pools ties, and 2.0 is first
    sizes = [
        np.mean([stopped_size(pool, error) for rows in pools.values() for pool in rows])
        for error in ERRORS
    ]
    assert list(adaptive.get_xdata()) == sizes and list(adaptive.get_ydata()) == [75] * len(ERRORS)
    assert live.get_xdata() == [16] and live.get_ydata() == [50]
