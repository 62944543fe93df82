"""The tables of finished runs: src.collect_results, gains, costs, the summary."""

import json
import math
import shutil

import pandas as pd
import pytest
import torch

from src.runs.finished_runs import finished_runs
from src.runs.tables import SUMMARY_LINES, choice_frame, collect, summary
from src.search.choosers import CHOOSERS
from tests.commands import assert_success, command, edit_json, run_here
from utils import records
from utils.metrics import summarize, trajectory_score

DATA = ("--data_path", "data/tiny_valid.json", "--limit", 12)
NOISE = ("--sampling_by", "noise")
BEAMS = ("--prm_mode", "beam_search", "--num_beams", 2, "--num_beam_candidates", 2)


BEST = ("--num_return_sequences", 4, "--report_n", 1, 2, 4, "--signals", "true")
RUNS = {
    "greedy": ("infer_gpt2", *DATA, "--do_sample", "false"),
    "sampled": ("infer_gpt2", *DATA, *NOISE, "--n_samples", 4),
    "best": ("infer_gpt2_rm", *DATA, *NOISE, *BEST),
    "beams": ("infer_gpt2_rm", *DATA, *NOISE, *BEAMS),
}
# Folders that hold no finished run: their config.json (None: there is none) and metrics.json.
NO_RUNS = {
    "checkpoint": ('{"model_type": "gpt2"}', '{"steps": 3}'),
    "other": (None, "{}"),
    "number": ("5", "[]"),
    "empty": ('{"settings": {}}', '{"by_n": {}}'),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of every kind, one without its records, and folders that are no runs."""
    folder = tmp_path_factory.mktemp("runs")
    for name, line in RUNS.items():
        assert_success(run_here(command(*line, "--output_dir", folder / name)))
    for name, (config, metrics) in NO_RUNS.items():
        (folder / name).mkdir()
        (folder / name / "metrics.json").write_text(metrics)
        if config:
            (folder / name / "config.json").write_text(config)
    shutil.copytree(folder / "best", folder / "lost")
    (folder / "lost/samples.jsonl").unlink()
    return folder


def test_runs_that_differ_in_another_setting_have_a_line_each(folder, tmp_path):
    for name in ("one", "other"):
        shutil.copytree(folder / "sampled", tmp_path / name)
    settings = json.loads((tmp_path / "other/config.json").read_text())["settings"]
    edit_json(tmp_path / "other/config.json", settings=settings | {"latent_length": 5})
    assert_success(run_here(command("collect_results", tmp_path)))
    table = (tmp_path / "results.md").read_text().splitlines()
    assert len(table) == 2 + 2 and table[2] == table[3]


def test_collect_results_tables_every_finished_run_and_warns_of_damaged_ones(folder):
    result = assert_success(run_here(command("collect_results", folder)))
    warnings = result.stderr.splitlines()
    assert len(warnings) == 2
    assert "empty/config.json: lacks" in warnings[0]
    assert "records are missing" in warnings[1]
    sampled, chosen = (pd.read_csv(folder / f"{name}.csv") for name in ("results", "choices"))
    assert set(sampled["sampler"]) == {"greedy", "noise"}
    assert set(chosen["method"]) == set(CHOOSERS) - {"greedy", "pool_judge"} | {"beam_search"}
    assert sorted(set(chosen["N"])) == ["1", "2", "2 x 2", "4"]
    for name in ("results.md", "choices.md", "accuracy.md"):
        assert str(folder / name) in result.stdout
        assert (folder / name).read_text().startswith("| ")


def test_gains_are_differences_to_greedy_and_to_the_vote(folder):
    frame = choice_frame(finished_runs(folder))
    runs = {name: records.read(folder / name) for name in ("greedy", "best", "beams")}

    def percent(name):
        run = runs[name].values()
        return 100 * sum(record["vote"] == float(record["answer"]) for record in run) / len(run)

    right = [record["correct"][0] for record in runs["greedy"].values()]
    greedy = 100 * sum(right) / len(right)
    beams = frame[frame["method"] == "beam_search"].iloc[0]
    assert beams["accuracy"] == pytest.approx(percent("beams"), abs=0.01)
    assert beams["greedy_gain"] == pytest.approx(percent("beams") - greedy, abs=0.01)
    # 2 x 2 beams are compared to the vote of 4 trajectories.
    assert beams["gain"] == pytest.approx(percent("beams") - percent("best"), abs=0.01)
    vote = frame[(frame["method"] == "majority") & (frame["N"] == "4")].iloc[0]
    assert vote["greedy_gain"] == pytest.approx(percent("best") - greedy, abs=0.01)
    finished = finished_runs(folder)
    for run in finished:  # a run that measured no such gain takes the answers of a greedy run
        for measures in run.metrics["by_n"].values():
            for name in [name for name in measures if name.endswith("_gain_over_greedy")]:
                del measures[name]
    pd.testing.assert_frame_equal(choice_frame(finished), frame)


# Answers to four questions whose right answer is 1. Greedy solves the first question, a vote of
# three also the second.
GREEDY = [[1], [2], [2], [None]]
POOLS = [[1, 1, 2], [2, 1, 1], [2, 2, 1], [2, 2, 2]]


def write_run(folder, predictions, model="a", **settings):
    """A finished sampling run with these predictions, greedy unless a sampler is given."""
    sizes = [1, len(predictions[0])]
    settings = {
        "model_id": model,
        "data_path": "data/x.json",
        "sampling_by": None,
        "noise_std": None,
        "seed": 1,
        "model_dtype": "float32",
        "limit": None,
        "latent_length": 6,
        "max_new_tokens": 8,
    } | settings
    files = {
        "config": {"settings": settings, "model_sha256": model, "data_sha256": "x"},
        "metrics": {
            "questions": len(predictions),
            "by_n": summarize([(pool, "1") for pool in predictions], sizes),
            "speed": {},
        },
    }
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    lines = [{"idx": i, "answer": "1", "predictions": p} for i, p in enumerate(predictions)]
    (folder / records.NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.quick
def test_the_vote_is_compared_with_greedy_at_every_n(tmp_path):
    noise = {"sampling_by": "noise", "noise_std": 0.5}
    write_run(tmp_path / "greedy", GREEDY)
    write_run(tmp_path / "sampled", POOLS, **noise)
    write_run(tmp_path / "other_model", POOLS, "b", **noise)
    write_run(tmp_path / "other_length", POOLS, **noise | {"latent_length": 5})
    collect(finished_runs(tmp_path), tmp_path)
    frame = pd.read_csv(tmp_path / "results.csv").set_index("folder")
    ends = ["vote_greedy_gain", "vote_greedy_gain_low", "vote_greedy_gain_high"]
    for name in ("greedy", "other_model", "other_length"):
        assert frame.loc[[str(tmp_path / name)], ends].isna().all(axis=None)
    # One of four questions is gained. Of four draws with chance 1/4, 32 % hold none of it and 5 %
    # hold it three times, so that the middle 95 % reach from 0 to 75 %.
    gains = frame.loc[str(tmp_path / "sampled"), ["N", *ends]]
    assert gains.to_numpy().tolist() == [[1, 0, 0, 0], [3, 25, 0, 75]]
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[0].count("vote over greedy") == 1 and "| vote over greedy @3 |" in lines[0]
    assert [line.split(" | ")[-2] for line in lines[2:]].count("+25.0 [0.0, 75.0]") == 1
    assert sum("[" in line for line in lines) == 1


@pytest.mark.quick
def test_without_greedy_the_table_has_no_gain_over_it(tmp_path):
    write_run(tmp_path / "sampled", POOLS, sampling_by="noise", noise_std=0.5)
    collect(finished_runs(tmp_path), tmp_path)
    assert pd.read_csv(tmp_path / "results.csv")["vote_greedy_gain"].isna().all()
    assert "greedy" not in (tmp_path / "results.md").read_text()


def test_costs_grow_with_n_and_with_what_a_method_needs(folder):
    frame = choice_frame(finished_runs(folder))
    votes = frame[frame["method"] == "majority"].set_index("N")
    assert votes.loc[["1", "2", "4"], "trajectories"].tolist() == [1, 2, 4]
    assert votes.loc[["1", "2", "4"], "latent_passes"].tolist() == [6, 12, 24]
    times = votes.loc[["1", "2", "4"], "ms"].tolist()
    assert 0 < times[0] < times[1] < times[2]
    ms = frame[frame["N"] == "4"].set_index("method")["ms"]
    assert ms["majority"] < ms["best_of_n"] < ms["reward_bayesian"]
    assert ms["majority"] < ms["self_certainty_vote"] < ms["certain_bayesian"]
    assert ms["majority"] < min(ms["greedy_voter"], ms["agreement_vote"])
    spent = frame[frame["N"] == "4"].set_index("method")
    assert spent.loc[["density_vote", "greedy_voter"], "trajectories"].tolist() == [4, 5]
    assert spent.loc[["density_vote", "greedy_voter"], "latent_passes"].tolist() == [24, 30]
    tokens = spent["answer_tokens"]
    read = [tokens[name] - tokens["majority"] for name in ("log_prob_vote", "bayesian_vote")]
    assert tokens["certain_bayesian"] - tokens["majority"] == pytest.approx(sum(read), abs=1)


def test_the_summary_names_what_differs_and_leaves_out_lines_beyond_its_limit(folder):
    frame = choice_frame(finished_runs(folder))
    lines = summary(frame)
    assert lines[0].split()[:3] == ["benchmark", "sampler", "N"]
    assert [line.split()[3] for line in lines[1:-1]] == ["2", "4"]
    two_models = summary(pd.concat([frame, frame.assign(questions=9, prm="other")]))
    assert two_models[0].split()[:3] == ["model", "benchmark", "questions"]
    assert len(two_models) == 1 + 4 + 1
    assert any(line.startswith("other") for line in two_models)
    many = pd.concat([frame.assign(benchmark=f"set{k}") for k in range(40)])
    for part in (many, many[many["benchmark"] < "set14"]):
        assert 2 < len(summary(part)) <= SUMMARY_LINES
    assert "30 more such lines are left out" in summary(many)[-1]
    six = summary(many[many["benchmark"].isin([f"set{k}" for k in range(6)])])
    assert {line.split()[3] for line in six[1:-1]} == {"4"}  # smaller pools are left out first


def test_a_pool_that_grows_equals_one_sampled_at_once(folder, tmp_path):
    line = ("infer_gpt2_rm", *DATA, *NOISE, "--n_samples", 4, "--report_n", 4, "--signals", "true")
    assert_success(run_here(command(*line, "--output_dir", tmp_path / "once")))
    grown, once = (records.read(path) for path in (folder / "best", tmp_path / "once"))
    for i, record in once.items():
        for key in ("texts", "predictions", "candidates", "vote", "greedy"):
            assert record[key] == grown[i][key]
        for key in ("centroid_distances", "log_densities"):
            for n, values in record[key].items():
                assert values == pytest.approx(grown[i][key][n], rel=2e-3)
        for key in ("answer_log_probs", "self_certainties"):
            assert record[key] == pytest.approx(grown[i][key], abs=2e-3)
        for key in ("scores", "answer_scores", "log_probs"):
            for one, other in zip(record[key], grown[i][key], strict=True):
                assert one == pytest.approx(other, abs=2e-3)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("score_by", "expected"),
    [
        ("sum", 1.5),
        ("mean", 0.5),
        ("last", 2.0),
        ("min", -1.0),
        ("prod", math.log(1 / ((1 + math.exp(-0.5)) * (1 + math.e) * (1 + math.exp(-2.0))))),
    ],
)
def test_a_score_is_made_of_the_rewards_that_exist_and_the_answer_s_reward(score_by, expected):
    rewards = torch.tensor([[0.5, -1.0, 2.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    scores = trajectory_score(rewards, torch.tensor([3, 1]), score_by, torch.tensor([-1.0, 0.0]))
    one = math.log(1 / (1 + math.exp(-1.0))) if score_by == "prod" else 1.0
    assert scores.tolist() == pytest.approx([expected - 1.0, one])


@pytest.mark.parametrize("score_by", ["sum", "mean"])
def test_a_single_beam_has_the_score_of_best_of_1(score_by, tmp_path):
    """One beam with one proposal is sample 0."""
    one = (*BEAMS[:2], "--num_beams", 1, "--num_beam_candidates", 1)
    for name, mode in (("beam", one), ("best", ("--num_return_sequences", 1))):
        line = ("infer_gpt2_rm", *DATA, *NOISE, *mode, "--score_by", score_by)
        assert_success(run_here(command(*line, "--output_dir", tmp_path / name)))
    beam, best = (records.read(tmp_path / name) for name in ("beam", "best"))
    for i in beam:
        assert beam[i]["scores"][0] == pytest.approx(best[i]["scores"][0], abs=2e-3)
        assert beam[i]["answer_scores"] == pytest.approx(best[i]["answer_scores"], abs=2e-3)
    config = json.loads((tmp_path / "beam/config.json").read_text())
    assert config["settings"]["score_by"] == score_by
