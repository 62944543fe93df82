"""Choosing without training: each chooser by hand, and all of them from one pool."""

import json

import pytest

from src.runs.arguments import InferenceArguments, RewardArguments
from src.search.voting import aggregate, measure
from tests.commands import assert_success, command, infer_command, outputs, run_here, samples_of

DATA = ("--data_path", "data/tiny_valid.json", "--limit", 6)
NEW = (
    *("greedy", "greedy_voter", "log_prob_vote", "log_prob_best"),
    *("self_certainty_vote", "agreement_vote", "density_vote"),
)
POOL = {
    "predictions": [1.0, 2.0, 2.0, None],
    "greedy": 3.0,
    "answer_log_probs": [-0.1, -1.2, -1.3, 0.0],
    "self_certainties": [5.0, 3.0, 4.0, 9.0],
    "centroid_distances": {"2": [1.0, 1.0], "4": [1.0, 9.0, 8.0, 2.0]},
    "log_densities": {"2": [-0.5, -0.5], "4": [-1.0, -0.1, -0.2, -0.3]},
}
pytestmark = pytest.mark.quick


def test_choosers_by_hand():
    assert aggregate(POOL, 4) == {
        "majority": 2.0,
        "greedy": 3.0,
        "greedy_voter": 3.0,  # 4 / 2 votes, and the first of equals
        "log_prob_vote": 1.0,  # 0.90 against 0.30 + 0.27
        "log_prob_best": 1.0,  # the fourth has no answer
        "self_certainty_vote": 1.0,  # 3 votes against 1 + 2, and the first of equals
        "agreement_vote": 1.0,  # 4 votes against 1 + 2
        "density_vote": 2.0,  # 4 + 3 votes against 1
    }
    three = {"predictions": [1.0, 2.0, 2.0], "greedy": 1.0}
    assert aggregate(three, 3)["greedy_voter"] == 1.0  # 1.5 + 1 against 2
    assert aggregate(three | {"greedy": 3.0}, 3)["greedy_voter"] == 2.0
    assert aggregate(three | {"greedy": None}, 3)["greedy_voter"] == 2.0


def test_a_record_is_measured_by_what_it_holds():
    """Agreement is recorded for some sizes only; older runs have nothing of it."""
    assert {"agreement_vote", "density_vote"}.isdisjoint(aggregate(POOL, 3))
    assert set(aggregate({"predictions": [1.0, None]}, 2)) == {"majority"}
    unparsable = POOL | {"predictions": [None] * 4, "greedy": None}
    assert set(aggregate(unparsable, 4).values()) == {None}
    by_n = measure([POOL | {"answer": "2"}, POOL | {"answer": "3"}], [1, 4])["by_n"]["4"]
    assert by_n["greedy"]["value"] == by_n["voting_accuracy"]["value"] == 50
    assert by_n["density_vote_gain"] == {"value": 0, "low": 0, "high": 0}
    for name in ("majority", "density_vote"):  # each is right where greedy is wrong
        gain = by_n[f"{name}_gain_over_greedy"]
        assert (gain["value"], gain["low"], gain["high"]) == (0, -100, 100)
    assert by_n["agreement_vote_gain_over_greedy"]["value"] == -50


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folders of a pool with all signals, and of the greedy answers."""
    folder = tmp_path_factory.mktemp("runs")
    signals = ("--sampling_by", "noise", "--n_samples", 6, "--signals", "true")
    signals += ("--save_latents", "true")
    for name, flags in (("pool", signals), ("greedy", ("--do_sample", "false"))):
        line = infer_command(*DATA, *flags, "--output_dir", folder / name)
        result = assert_success(run_here(line))
        (folder / f"{name}.txt").write_text(result.stdout)
    return folder


def test_one_pool_gives_all_choosers(run):
    records = samples_of(run / "pool")
    greedy = [record["predictions"][0] for record in samples_of(run / "greedy")]
    assert [record["greedy"] for record in records] == greedy
    for record in records:
        assert list(record["centroid_distances"]) == ["2", "4", "6"]
        assert [len(values) for values in record["log_densities"].values()] == [2, 4, 6]
        assert all(value <= 0 for value in record["answer_log_probs"])
    by_n = outputs(run / "pool")[1]["by_n"]["6"]
    for name in NEW:
        assert 0 <= by_n[name]["value"] <= 100 and f"{name}_gain" in by_n
    stdout = (run / "pool.txt").read_text()
    assert all(f"{name}  " in stdout for name in NEW)
    assert "gain" not in (run / "greedy.txt").read_text()


def test_a_reward_model_scores_the_same_pool(run, tmp_path):
    flags = ("--pool", run / "pool", "--output_dir", tmp_path / "x")
    assert_success(run_here(command("infer_gpt2_rm", *flags)))
    by_n, of_pool = (outputs(path)[1]["by_n"]["6"] for path in (tmp_path / "x", run / "pool"))
    assert of_pool.items() <= by_n.items() and "best_of_n_gain_over_greedy" in by_n


def test_the_cost_of_each_signal_is_counted(run):
    metrics = json.loads((run / "pool/metrics.json").read_text())
    cost = metrics["speed"]["per_question"]["6"]
    finished = cost["tokens"] + cost["trajectories"]  # all answers end
    assert (cost["trajectories"], cost["latent_steps"]) == (6, 36)
    assert cost["confidence_tokens"] == pytest.approx(finished, abs=1e-3)
    assert (cost["greedy_trajectories"], cost["greedy_latent_steps"]) == (1, 6)
    parts = [cost[f"{part}_seconds"] for part in ("greedy", "confidence", "agreement")]
    assert min(parts) > 0 and sum(parts) < cost["seconds"]


def test_signals_that_are_off_are_no_part_of_a_run_s_name():
    """The names are those of commit 51a62fa, before there was the flag."""
    off = InferenceArguments(sampling_by="noise", n_samples=4)
    assert off.output_dir == "outputs/tiny-coconut-tiny_test-noise-0.8-n4-seed42-641b08"
    on = InferenceArguments(sampling_by="noise", n_samples=4, signals=True)
    assert on.run_name != off.run_name
    beams = RewardArguments(prm_mode="beam_search", sampling_by="noise")
    assert beams.output_dir.endswith("n16-seed42-a75029")
    with pytest.raises(ValueError, match="--signals has no effect with --prm_mode beam_search"):
        RewardArguments(prm_mode="beam_search", signals=True)
