"""The figure "latent_rm": what is drawn is what the records hold."""

import numpy as np
import pytest

from src.runs.figure_latent_rm import BINS, QUARTILES, reward_panel
from src.runs.figure_style import METHOD_COLORS, OUTCOME_COLORS
from src.runs.figures import draw
from src.search.choosers import trajectory_scores
from src.search.voting import aggregate
from tests.plotted import band, choosing, colored, record, write_run
from utils.metrics import measured, pairwise_auc, softmax

NAME = "latent_rm-some-rm-noise_std-0.8"
QUESTIONS, N, T = 12, 8, 3


def random_records(seed=0, lengths=None, answers=True):
    """Records of QUESTIONS mixed questions with N scored trajectories of T thoughts each.

    lengths: numbers of thoughts instead of T. answers: whether answers have rewards too.
    """
    rng, records = np.random.default_rng(seed), []
    for i in range(QUESTIONS):
        counts = rng.choice(lengths, size=N) if lengths else [T] * N
        scores = [rng.normal(i, 1, size=n).round(4).tolist() for n in counts]
        fields = {"scores": scores}
        if answers:
            fields["answer_scores"] = rng.normal(0, 3, size=N).round(4).tolist()
        predictions = [1.0, 2.0, *rng.choice([1.0, 1.0, 2.0, 3.0, None], size=N - 2).tolist()]
        records.append(record(i, predictions, thought_distance=1.0, **fields))
    return records


def panel_of(folder, records, **settings):
    return reward_panel([write_run(folder / "run", records, choosing(0.8, **settings))])


def corrects(records):
    return np.array([row["correct"] for row in records])


def test_auc_is_that_of_the_score_of_the_first_thoughts(tmp_path):
    records = random_records()
    panel = panel_of(tmp_path, records)
    prefixes = np.array([row["scores"] for row in records]).cumsum(axis=2)  # (Q, N, T)
    for t in range(T):
        expected = pairwise_auc(prefixes[..., t], corrects(records))
        assert panel.auc[t, 0] == pytest.approx(expected, abs=1e-4)
        assert panel.auc[t, 1] < expected < panel.auc[t, 2]
    full = np.array([trajectory_scores(row, "sum") for row in records])
    assert panel.full_auc[0] == pytest.approx(pairwise_auc(full, corrects(records)), abs=1e-4)
    assert panel.mixed == QUESTIONS


def test_the_score_of_a_trajectory_that_has_ended_stays(tmp_path):
    records = random_records(lengths=[1, 2, 4])
    panel = panel_of(tmp_path, records, score_by="mean")
    scores = [[np.mean(rewards[:3]) for rewards in row["scores"]] for row in records]
    expected = pairwise_auc(np.array(scores), corrects(records))
    assert len(panel.auc) == 4
    assert panel.auc[2, 0] == pytest.approx(expected, abs=1e-4)


def test_thoughts_of_few_trajectories_are_left_out(tmp_path):
    records = random_records()
    records[0]["scores"][0] += [1.0] * 5
    panel = panel_of(tmp_path, records)
    assert len(panel.auc) == len(panel.rewards["right"]) == T


def test_rewards_are_standardized_within_their_question(tmp_path):
    records = random_records()  # whose means differ by far more than their rewards
    panel = panel_of(tmp_path, records)
    rewards = np.array([row["scores"] for row in records])
    answers = np.array([row["answer_scores"] for row in records])
    for outcome in ("right", "wrong"):
        chosen = corrects(records) == (outcome == "right")
        for values, drawn in (
            *zip(np.moveaxis(rewards, 2, 0), panel.rewards[outcome], strict=True),
            (answers, panel.answer_rewards[outcome]),
        ):
            scaled = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
            assert drawn == pytest.approx(np.percentile(scaled[chosen], QUARTILES))


def test_reliability_compares_the_weight_of_an_answer_with_its_accuracy(tmp_path):
    records = random_records()
    panel = panel_of(tmp_path, records)
    for vote in ("majority", "weighted_vote"):
        points = []
        for row in records:
            weights = np.full(N, 1 / N)
            if vote == "weighted_vote":
                weights = softmax(trajectory_scores(row, "sum"))
            answer = aggregate(row, N)[vote]
            own = [w for w, p in zip(weights, row["predictions"], strict=True) if p == answer]
            points.append((sum(own), float(answer == 1.0)))
        points.sort(key=lambda point: point[0])
        groups = np.array_split(np.array(points), BINS)
        expected = [[100 * g[:, 0].mean(), *measured(g[:, 1]).values()] for g in groups]
        assert panel.reliability[vote] == pytest.approx(np.array(expected))


def test_what_is_drawn_are_the_numbers_of_the_panel(tmp_path):
    run = write_run(tmp_path / "run", random_records(), choosing(0.8))
    panel = reward_panel([run])
    rewards, reliability, auc = draw([run])[NAME].axes
    for outcome, color in OUTCOME_COLORS.items():
        low, median, high = panel.rewards[outcome].T
        x, y = colored(rewards, color)
        assert list(x) == [1, 2, 3] and list(y) == list(median)
        assert {*zip(x, low, strict=True), *zip(x, high, strict=True)} <= band(rewards, color)
        assert panel.answer_rewards[outcome][1] in colored(rewards, color, "None")[1]
    for vote in ("majority", "weighted_vote"):
        x, y = colored(reliability, METHOD_COLORS[vote])
        assert np.column_stack((x, y)).tolist() == panel.reliability[vote][:, :2].tolist()
    assert list(colored(auc, "black")[1]) == panel.auc[:, 0].tolist()
    assert list(colored(auc, "black", "None")[1]) == [panel.full_auc[0]]
    assert auc.get_xticklabels()[-1].get_text() == "answer"


def test_a_reward_model_that_scores_no_answers_has_no_such_point(tmp_path):
    run = write_run(tmp_path / "run", random_records(answers=False), choosing(0.8))
    panel = reward_panel([run])
    assert panel.full_auc is None and panel.answer_rewards is None
    for axis in draw([run])[NAME].axes[::2]:
        assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "3"]


def test_seeds_are_averaged_by_question(tmp_path):
    runs = [
        write_run(tmp_path / str(seed), random_records(seed), choosing(0.8, seed=seed))
        for seed in (1, 2)
    ]
    one, other = (reward_panel([run]) for run in runs)
    both = reward_panel(runs)
    assert both.mixed == one.mixed == other.mixed
    assert both.auc[:, 0] == pytest.approx((one.auc + other.auc)[:, 0] / 2, abs=1e-4)
    assert len(draw(runs)[NAME].axes) == 3  # one row


@pytest.mark.parametrize("predictions", [[1.0] * 4, [2.0, 3.0, None, None], [None] * 4])
def test_without_a_mixed_question_there_is_no_figure(tmp_path, predictions):
    rows = [record(0, predictions, scores=[[0.1, 0.2]] * 4, thought_distance=1.0)]
    assert NAME not in draw([write_run(tmp_path / "run", rows, choosing(0.8))])


def test_one_mixed_question_with_equal_scores_is_drawn(tmp_path):
    """Equal rewards rank nothing, so none is shown; every AUC is one half."""
    rows = [record(0, [1.0, None, 2.0, 1.0], scores=[[0.1, 0.2]] * 4, thought_distance=1.0)]
    run = write_run(tmp_path / "run", rows, choosing(0.8))
    assert reward_panel([run]).auc.tolist() == [[0.5] * 3] * 2
    assert NAME in draw([run])
