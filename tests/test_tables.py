"""The tables of finished runs: whatever lies in a folder, gains by hand, and a summary that is short."""

import json
import shutil

import pandas as pd
import pytest

from src.runs.tables import SUMMARY_LINES, choice_frame, finished_runs, summary
from tests.commands import command, run_here
from utils import records
from utils.metrics import trajectory_score

DATA = ("--data_path", "data/tiny_valid.json", "--limit", 12)
NOISE = ("--sampling_by", "noise")
BEAMS = ("--prm_mode", "beam_search", "--num_beams", 2, "--num_beam_candidates", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A greedy run, a pool, a choosing run and beams, and things that are no runs."""
    folder = tmp_path_factory.mktemp("runs")
    for name, line in {
        "greedy": ("infer_gpt2", *DATA, "--do_sample", "false"),
        "sampled": ("infer_gpt2", *DATA, *NOISE, "--n_samples", 4),
        "best": (
            "infer_gpt2_rm",
            *DATA,
            *NOISE,
            "--num_return_sequences",
            4,
            "--report_n",
            1,
            2,
            4,
        ),
        "beams": ("infer_gpt2_rm", *DATA, *NOISE, *BEAMS),
    }.items():
        done = run_here(command(*line, "--output_dir", folder / name))
        assert done.returncode == 0, done.stderr
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint/config.json").write_text('{"model_type": "gpt2"}')
    (folder / "checkpoint/metrics.json").write_text('{"steps": 3}')
    for name, config, metrics in (
        ("other", None, "{}"), ("number", "5", "[]"), ("empty", '{"settings": {}}', '{"by_n": {}}'),
    ):  # fmt: skip
        (folder / name).mkdir()
        (folder / name / "metrics.json").write_text(metrics)
        if config:
            (folder / name / "config.json").write_text(config)
    shutil.copytree(folder / "best", folder / "lost")
    (folder / "lost/samples.jsonl").unlink()
    return folder


def test_whatever_lies_there_is_tabled(folder):
    done = run_here(command("collect_results", folder))
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()  # of what can't be tabled a line each
    assert (
        len(said) == 2
        and "empty/config.json: lacks" in said[0]
        and "records are missing" in said[1]
    )
    sampled, chosen = (pd.read_csv(folder / f"{name}.csv") for name in ("results", "choices"))
    assert set(sampled["sampler"]) == {"greedy", "noise"}
    assert set(chosen["method"]) == {
        "majority", "best_of_n", "weighted_vote", "bayesian_vote", "bayesian_geometric", "reward_bayesian",
        "beam_search",
    }  # fmt: skip
    assert sorted(set(chosen["N"])) == ["1", "2", "2 x 2", "4"]
    for name in ("results.md", "choices.md", "accuracy.md"):
        assert str(folder / name) in done.stdout
        assert (folder / name).read_text().startswith("| ")


def test_gains_are_paired_with_greedy_and_vote(folder):
    frame = choice_frame(finished_runs(folder))
    found = {name: records.read(folder / name) for name in ("greedy", "best", "beams")}

    def right(name, key):
        return sum(record[key] == float(record["answer"]) for record in found[name].values())

    greedy = sum(record["correct"][0] for record in found["greedy"].values())
    beams = frame[frame["method"] == "beam_search"].iloc[0]
    assert beams["accuracy"] == pytest.approx(100 * right("beams", "vote") / 12, abs=0.01)
    assert beams["greedy_gain"] == pytest.approx(
        100 * (right("beams", "vote") - greedy) / 12, abs=0.01
    )
    vote = frame[(frame["method"] == "majority") & (frame["N"] == "4")].iloc[0]
    assert vote["greedy_gain"] == pytest.approx(
        100 * (right("best", "vote") - greedy) / 12, abs=0.01
    )
    gain = (
        100 * (right("beams", "vote") - right("best", "vote")) / 12
    )  # of 2 x 2 against the vote of 4
    assert beams["gain"] == pytest.approx(gain, abs=0.01)


def test_what_a_smaller_pool_costs_is_measured(folder):
    frame = choice_frame(finished_runs(folder))
    votes = frame[frame["method"] == "majority"].set_index("N")
    assert votes.loc[["1", "2", "4"], "trajectories"].tolist() == [1, 2, 4]
    assert votes.loc[["1", "2", "4"], "latent_passes"].tolist() == [6, 12, 24]
    times = votes.loc[["1", "2", "4"], "ms"].tolist()
    assert 0 < times[0] < times[1] < times[2]
    of_four = frame[frame["N"] == "4"].set_index("method")["ms"]
    assert of_four["majority"] < of_four["best_of_n"] < of_four["reward_bayesian"]


def test_the_summary_is_short(folder):
    frame = choice_frame(finished_runs(folder))
    lines = summary(frame)
    assert lines[0].split()[:3] == ["benchmark", "sampler", "N"]
    assert [line.split()[3] for line in lines[1:-1]] == ["2", "4"]
    apart = summary(pd.concat([frame, frame.assign(questions=9, prm="other")]))
    assert apart[0].split()[:3] == ["model", "benchmark", "questions"]
    assert len(apart) == 1 + 4 + 1 and any(line.startswith("other") for line in apart)
    many = pd.concat([frame.assign(benchmark=f"set{k}") for k in range(40)])
    for part in (many, many[many["benchmark"] < "set14"]):
        assert 2 < len(summary(part)) <= SUMMARY_LINES
    assert "30 more such lines are left out" in summary(many)[-1]
    largest = summary(many[many["benchmark"].isin([f"set{k}" for k in range(6)])])
    assert {line.split()[3] for line in largest[1:-1]} == {
        "4"
    }  # the smaller pools are left out first


def test_a_pool_that_grows_is_the_pool_at_once(folder, tmp_path):
    line = ("infer_gpt2_rm", *DATA, *NOISE, "--num_return_sequences", 4, "--report_n", 4)
    assert run_here(command(*line, "--output_dir", tmp_path / "once")).returncode == 0
    grown, once = (records.read(path) for path in (folder / "best", tmp_path / "once"))
    for i, record in once.items():
        for key in ("texts", "predictions", "candidates", "vote"):
            assert record[key] == grown[i][key]
        for key in ("scores", "answer_scores", "log_probs"):
            for one, other in zip(record[key], grown[i][key], strict=True):
                assert one == pytest.approx(other, abs=2e-3)


def test_one_rule_makes_a_score():
    """The answer's reward is added whole, whether the rewards of the thoughts are summed or averaged."""
    assert trajectory_score(6.0, 3, "sum", -1.0) == 5.0
    assert trajectory_score(6.0, 3, "mean", -1.0) == 1.0
    assert trajectory_score(6.0, 3, "mean") == 2.0


@pytest.mark.parametrize("score_by", ["sum", "mean"])
def test_beams_and_pools_score_alike(score_by, tmp_path):
    """One beam with one proposal is sample 0: it has the score that best-of-1 gives it."""
    one = (*BEAMS[:2], "--num_beams", 1, "--num_beam_candidates", 1)
    for name, mode in (("beam", one), ("best", ("--num_return_sequences", 1))):
        line = ("infer_gpt2_rm", *DATA, *NOISE, *mode, "--score_by", score_by)
        assert run_here(command(*line, "--output_dir", tmp_path / name)).returncode == 0
    beam, best = (records.read(tmp_path / name) for name in ("beam", "best"))
    for i in beam:
        assert beam[i]["scores"][0] == pytest.approx(best[i]["scores"][0], abs=2e-3)
        assert beam[i]["answer_scores"] == pytest.approx(best[i]["answer_scores"], abs=2e-3)
    assert (
        json.loads((tmp_path / "beam/config.json").read_text())["settings"]["score_by"] == score_by
    )
