"""The tables over several seeds: benchmarks.choices and benchmarks.samplers."""

from types import SimpleNamespace

import pandas as pd
import pytest

from benchmarks.choices import hits_of
from benchmarks.samplers import best_of, rows_of

pytestmark = pytest.mark.quick


def record(predictions, **more):
    return {
        "predictions": predictions,
        "correct": [p == 3 for p in predictions],
        "answer": "3",
        "greedy": 2,
    } | more


def run(records, sampler="noise", strength=0.5, seed=1):
    columns = {"sampler": sampler, "noise_std": strength, "svp_alpha": strength, "seed": seed}
    metrics = {"by_n": {"2": {}}, "n_samples": 2}
    return SimpleNamespace(records=dict(enumerate(records)), columns=columns, metrics=metrics)


def test_a_question_counts_with_the_mean_over_seeds():
    judged = {"2": {"answers": [2, 3], "scores": [0.1, 0.9]}}
    reranked = {"rerank_candidates": [2, 3], "rerank_log_probs": [-0.1, -2.0]}
    first = [record([2, 3], judged=judged, **reranked), record([3, 3], judged=judged, **reranked)]
    second = [record([2, 2], judged=judged, **reranked), record([3, 2], judged=judged, **reranked)]
    hits = hits_of([run(first), run(second, seed=2)])
    assert hits[2, "coverage"].tolist() == [0.5, 1]
    assert hits[2, "majority"].tolist() == [0, 1]  # the first of equals
    assert hits[2, "greedy"].tolist() == hits[2, "greedy_rerank"].tolist() == [0, 0]
    assert hits[2, "pool_judge"].tolist() == [1, 1]


def test_a_sampler_is_shown_at_its_strength_of_highest_coverage():
    runs = [
        run([record([2, 3]), record([2, 2])]),
        run([record([3, 3]), record([2, 3])], strength=0.8),
        run([record([3, 2]), record([2, 2])], "svp", 0.2),
    ]
    frame = pd.DataFrame(rows_of(runs))
    best = best_of(frame)
    assert set(zip(best["sampler"], best["strength"], strict=True)) == {
        ("noise", 0.8),
        ("svp", 0.2),
    }
    row = best[(best["sampler"] == "noise") & (best["N"] == 2)].set_index("measure")["value"]
    assert row.to_dict() == {"coverage": 100, "voting_accuracy": 50, "mean_accuracy": 75}
