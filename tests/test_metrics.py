import itertools
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from src.runs.figure_data import hits_of
from src.runs.tables import paired_difference
from src.search.voting import measure, measure_search
from utils import metrics
from utils.answers import after_hash, is_right, parse_number

pytestmark = pytest.mark.quick


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(itertools.combinations(range(n), k))
                hits = sum(any(i < c for i in subset) for subset in subsets)
                assert math.isclose(metrics.pass_at_k(n, c, k), hits / len(subsets))


def test_pass_at_k_is_exact_for_large_n():
    n, c, k = 100_000, 3, 50_000
    exact = 1 - Fraction(n - k, n) * Fraction(n - k - 1, n - 1) * Fraction(n - k - 2, n - 2)
    assert metrics.pass_at_k(n, c, k) == float(exact)
    with pytest.raises(ValueError, match="pass@k needs"):
        metrics.pass_at_k(4, 1, 5)


@pytest.mark.parametrize(
    ("predictions", "vote"),
    [
        ([1.0, 2.0, 2.0], 2.0),
        ([3.0, 2.0, 2.0, 3.0], 3.0),  # a tie goes to the first
        ([None, None, None, 5.0], 5.0),  # unparsable answers do not vote
        ([None, None], None),
        ([0.0, -0.0, 1.0], 0.0),  # they are equal
    ],
)
def test_majority_vote_ignores_unparsable_answers_and_breaks_ties_by_order(predictions, vote):
    assert metrics.majority_vote(predictions) == vote


def test_summary_of_two_questions_by_hand():
    pools = [([1.0, 2.0, 1.0, None], "1"), ([3.0, 3.0, 4.0, 4.0], "4")]
    summary = metrics.summarize(pools, [1, 4])
    value = {n: {name: m["value"] for name, m in row.items()} for n, row in summary.items()}
    assert value["1"] == {
        "pass@1": 50.0,
        "coverage": 50.0,
        "voting_accuracy": 50.0,
        "mean_accuracy": 50.0,
        "unparsable": 0.0,
        "distinct_answers": 100.0,
    }
    assert value["4"]["coverage"] == 100.0
    assert value["4"]["voting_accuracy"] == 50.0
    assert value["4"]["mean_accuracy"] == 50.0
    assert value["4"]["unparsable"] == 12.5
    assert value["4"]["distinct_answers"] == 50.0  # 2 of 4 each; the unparsable one is no answer
    assert value["4"]["pass@1"] == 50.0
    assert value["4"]["pass@2"] == round(100 * (5 / 6), 2)
    assert value["4"]["pass@4"] == 100.0
    with pytest.raises(ValueError, match="fewer than 5"):
        metrics.summarize(pools, [5])


def test_bootstrap_interval_is_the_normal_one_for_a_large_share():
    values = np.repeat([0.0, 1.0], [700, 300])
    low, high = metrics.bootstrap_interval(values)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert abs(low - (0.3 - half)) < 0.01
    assert abs(high - (0.3 + half)) < 0.01
    assert metrics.bootstrap_interval(values) == (low, high)


def test_powers_of_two_end_with_n_itself():
    assert metrics.powers_of_two(1) == [1]
    assert metrics.powers_of_two(64) == [1, 2, 4, 8, 16, 32, 64]
    assert metrics.powers_of_two(48) == [1, 2, 4, 8, 16, 32, 48]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("<<16-3=13>> ### 18", 18.0),
        ("### 1,234.50", 1234.5),
        ("# 3 ### -7", -7.0),
        ("### 12 dollars", None),
        ("18", None),
        ("###", None),
        ("### nan", None),
        ("### inf", None),
        ("### 1_000", None),
    ],
)
def test_an_answer_is_a_plain_number_after_the_hashes(text, number):
    assert after_hash(text) == number


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("18", [18.0], [18.4, 17.999999, None]),  # an integer is not rounded
        ("1,018.00", [1018.0], [1018.001]),
        ("4.33", [4.33, 4.333333, 4.325, 4.334999], [4.3, 4.335, 4.3249999, None, math.nan]),
        ("1.005", [1.005, 1.0045, 1.0054], [1.0055, 1.0]),  # as a float 1.0045 is less
        ("-0.5", [-0.5, -0.45, -0.549], [0.5, -0.55, -0.4]),
        ("1,234.50", [1234.5, 1234.504], [1234.51]),
        ("2.5e-06", [2.5e-6, 2.54e-6], [2.6e-6, 0.0]),
        ("3244047.0999999996", [3244047.0999999996], [3244047.1]),  # GSM-Hard
        ("0.33333333333333333333", [1 / 3], [0.3333]),  # more digits than a float has
        ("0.5", [0.5], [1e300, -1e300, math.inf]),
    ],
)
def test_a_right_answer_with_decimals_is_met_by_what_rounds_to_it(answer, right, wrong):
    assert all(is_right(number, answer) is True for number in right)
    assert not any(is_right(number, answer) for number in wrong)


def test_the_vote_counts_equal_predictions_and_is_judged_by_rounding():
    predictions = [4.333, 4.33, 5.0, 5.0]
    scores = metrics.question_scores(predictions, "4.33", 4)
    assert (scores["mean_accuracy"], scores["voting_accuracy"]) == (0.5, 0.0)
    assert scores["distinct_answers"] == 0.75


def test_parse_number_reads_the_answers_of_data_files():
    assert parse_number("1,000") == 1000.0
    assert parse_number("-3.5") == -3.5


def test_every_measure_of_a_run_judges_by_the_same_rule():
    record = {
        "idx": 0,
        "answer": "4.33",
        "predictions": [4.333, 4.33, 5.0, None],
        "correct": [True, True, False, False],
        "scores": [[3.0], [2.0], [0.0], [0.0]],
        "vote": 4.333,
    }
    by_n = measure([record], [1, 4])["by_n"]["4"]
    value = {name: of["value"] for name, of in by_n.items()}
    assert value["mean_accuracy"] == 50.0
    for name in ("coverage", "voting_accuracy", "best_of_n", "weighted_vote"):
        assert value[name] == 100.0
    by_n = measure_search([record], "dvts", "sum")["by_n"]["4"]
    for name in ("dvts", "dvts_vote", "dvts_weighted_vote", "coverage"):
        assert by_n[name]["value"] == 100.0
    assert hits_of(SimpleNamespace(records={0: record}), 4) == [(1.0, 1.0)]
    base = {0: math.nan}  # as a table holds it where no answer was parsed
    assert paired_difference({0: record}, {0: record["vote"]}, base)["value"] == 100.0
