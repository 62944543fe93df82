"""The tables over several seeds: benchmarks.choices and benchmarks.samplers."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from benchmarks import choices
from benchmarks.points import Point, affordable, all_points
from benchmarks.samplers import best_of, frame_of, gains_of, outcomes_of
from src.runs.finished_runs import finished_runs
from utils import records

pytestmark = pytest.mark.quick

SETTINGS = {
    "model_id": "a", "data_path": "data/x.json", "sampling_by": "noise", "noise_std": 0.5,
    "seed": 1, "model_dtype": "float32", "limit": None, "latent_length": 6, "max_new_tokens": 8,
    "prm_mode": "best_of_n", "prm_id": "judge", "score_by": "sum", "guide": None, "lookahead": None,
}  # fmt: skip
DVTS = {
    "prm_mode": "dvts", "prm_id": None, "guide": "agreement", "lookahead": "answer",
    "score_by": "last", "num_beams": 2, "num_beam_candidates": 2,
}  # fmt: skip


def record(predictions, **more):
    return {
        "predictions": predictions,
        "correct": [p == 3 for p in predictions],
        "answer": "3",
        "greedy": 2,
    } | more


def judged(predictions, **sizes):
    """A record with a judge's answers, {size: the best one}."""
    views = {n[1:]: {"answers": [2, 3], "scores": [3 - a, a - 2]} for n, a in sizes.items()}
    return record(predictions, judged=views)


def spent(ms, **parts):
    """What a question costs: ``ms`` in all, of which each part takes some."""
    seconds = {f"{part}_seconds": value / 1000 for part, value in parts.items()}
    counts = {"trajectories": 1, "latent_steps": ms, "tokens": 0}
    greedy = {"greedy_latent_steps": 1, "greedy_tokens": 0, "greedy_seconds": 0.001}
    return counts | greedy | seconds | {"seconds": ms / 1000}


def write_run(folder, of_questions, cost, **settings):
    """A finished run. cost: {N: what a question costs}."""
    metrics = {
        "questions": len(of_questions),
        "n_samples": max(cost),
        "by_n": {str(n): {} for n in cost},
        "speed": {"per_question": {str(n): of_size for n, of_size in cost.items()}},
    }
    config = {"settings": SETTINGS | settings, "model_sha256": "m", "data_sha256": "d"}
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "config.json").write_text(json.dumps(config))
    lines = [{"idx": i} | of_question for i, of_question in enumerate(of_questions)]
    (folder / records.NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))


COST = {1: spent(6, judge=1), 4: spent(16, judge=2)}  # of the vote: 4 and 13 ms


@pytest.fixture
def folder(tmp_path):
    """Two seeds of a pool with a judge and of a search, a LatentRM on the first pool, greedy."""
    runs = tmp_path / "runs"
    first = [judged([2, 3, 3, 2], n1=2, n4=3), judged([3, 2, 2, 2], n1=3, n4=3)]
    second = [judged([2, 2, 2, 3], n1=2, n4=3), judged([3, 3, 2, 2], n1=3, n4=2)]
    for seed, pool in ((1, first), (2, second)):
        write_run(runs / f"pool-{seed}", pool, COST, seed=seed)
        found = [record([3, 2, 2, 2], vote=3, scores=[[0.0]] * 4) for _ in pool]
        write_run(runs / f"dvts-{seed}", found, {4: spent(14)}, seed=seed, **DVTS)
    rewards = {"scores": [[0.0], [9.0], [0.0], [0.0]]}
    scored = [record(of_question["predictions"], **rewards) for of_question in first]
    write_run(runs / "rm", scored, COST, prm_id="rm")
    greedy = {"sampling_by": None, "noise_std": None}
    write_run(runs / "greedy", [record([2])] * 2, {1: spent(1)}, **greedy)
    config = json.loads((runs / "greedy/config.json").read_text())
    del config["settings"]["prm_mode"]  # of src.infer_gpt2
    (runs / "greedy/config.json").write_text(json.dumps(config))
    return runs


def points(folder):
    return all_points([run for run in finished_runs(folder) if run.chooses])["a", "x"]


def test_a_question_counts_with_the_mean_over_seeds(folder):
    found = points(folder)
    assert found["coverage", 1].hits.tolist() == [0, 1]
    assert found["majority", 4].hits.tolist() == [0, 0.5]  # the first of equals
    assert found["pool_judge", 4].hits.tolist() == [1, 0.5]
    assert found["greedy", 1].hits.tolist() == [0, 0]
    assert found["dvts agreement", 4].hits.tolist() == [1, 1]
    assert found["best_of_n", 4].hits.tolist() == [1, 0] and found["best_of_n", 4].seeds == 1
    assert found["majority", 4].cost == {"ms": 13, "passes": 16}
    assert found["pool_judge", 4].cost["ms"] == 16 and found["greedy", 1].cost["ms"] == 1


def test_the_largest_size_within_a_budget_counts():
    def point(ms):
        return Point(np.zeros(1), "", {} if ms is None else {"ms": ms}, seeds=1)

    costs = {
        "majority": {1: 2, 4: 5, 16: 10},
        "judge": {1: 4.9, 4: 5, 16: 5.1},
        "search": {4: 6, 16: 30},
        "jumps": {1: 7, 4: 3, 16: 6},
        "saved": {4: None},
        "greedy": {1: 50},
    }
    found = {(m, n): point(ms) for m, sizes in costs.items() for n, ms in sizes.items()}
    largest = {m: affordable(found, m, "ms", 5) for m in costs}
    assert largest == {
        "majority": 4, "judge": 4, "search": None, "jumps": 4, "saved": None, "greedy": 1,
    }  # fmt: skip


def test_searches_and_pools_are_compared_at_equal_n_and_at_equal_cost(folder, tmp_path, capsys):
    shown = ["majority", "pool_judge", "best_of_n", "dvts agreement"]
    choices.main([str(folder), "--output_dir", str(tmp_path), "--shown", *shown])
    frame, equal = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("choices", "equal_cost"))
    search = frame[frame["method"] == "dvts agreement"].iloc[0]
    assert (search["size"], search["N"], search["ms"]) == ("2 x 2", 4, 14)
    assert (search["over_majority_value"], search["over_greedy_value"]) == (75, 100)
    judge = frame[(frame["method"] == "pool_judge") & (frame["N"] == 4)].iloc[0]
    assert judge["mended"] == 75 and pd.isna(judge["lost"])  # greedy has no right answer to lose
    at = {kind: rows.set_index("method") for kind, rows in equal.groupby("equal")}
    assert "dvts agreement" not in at["ms"].index  # 14 ms, the vote of 4 has 13
    assert at["passes"].loc["dvts agreement", "over_majority_value"] == 75
    assert at["ms"].loc["pool_judge", ["N", "value", "over_majority_value"]].tolist() == [1, 50, 25]
    assert at["ms"].loc["majority", "over_majority_value"] == 0
    out, err = capsys.readouterr()
    assert "warning: a on x: best_of_n of 4 has 1 of 2 seeds" in err
    line = next(line for line in out.splitlines() if line.startswith("| x |"))
    cells = "x 4 0.0 25.0 75.0 50.0 **100.0** 100.0 13.0 50.0~(1) 50.0~(4) -".split()
    assert line.strip("| ").split(" | ") == [cell.replace("~", " ") for cell in cells]
    assert {path.name for path in tmp_path.glob("*.png")} == {"choices.png", "choices_ms.png"}


def test_what_greedy_s_answers_become():
    def point(*hits):
        return Point(np.array(hits), "", {}, seeds=2)

    greedy, chosen = point(1.0, 0.0, 1.0, 0.0, 0.0), point(0.5, 1.0, 1.0, 0.0, 0.5)
    row = choices._measures(chosen, None, greedy)
    assert (row["mended"], row["lost"]) == (50, 25)
    row = choices._measures(chosen, None, replace(greedy, seeds=1))
    assert (row["mended"], row["lost"]) == (None, None)


def test_a_name_has_the_sampler_where_there_are_several(folder):
    pool = [judged([2, 3, 3, 2], n1=2, n4=3)] * 2
    tokens = {"sampling_by": "tokens", "noise_std": None, "temperature": 0.7}
    write_run(folder / "tokens", pool, COST, **tokens)
    names = {name for name, _ in points(folder)}
    assert {"majority by noise", "majority by tokens", "dvts agreement"} <= names
    write_run(folder / "weak", pool, COST, noise_std=0.1)
    names = {name for name, _ in points(folder)}
    assert {"majority by noise_std 0.1", "majority by noise_std 0.5", "greedy"} <= names


def test_mistakes_are_one_line(folder, tmp_path, capsys):
    def error_of(*flags):
        with pytest.raises(SystemExit):
            choices.main([str(folder), "--output_dir", str(tmp_path), *flags])
        return capsys.readouterr().err

    assert "--shown beams: no run has it; there are" in error_of("--shown", "majority", "beams")
    tokens = {"sampling_by": "tokens", "noise_std": None, "temperature": 0.7}
    write_run(folder / "tokens", [judged([2, 3, 3, 2], n1=2, n4=3)] * 2, COST, **tokens)
    shown = ("--shown", "majority by noise", "pool_judge by tokens")
    assert "pool_judge by tokens: another sampler than that of" in error_of(*shown)
    shutil.rmtree(folder / "tokens")
    assert "--shown must begin with the vote" in error_of("--shown", "pool_judge")
    pool = [judged([2, 3, 3, 2], n1=2, n4=3)] * 2
    write_run(folder / "second", pool, COST, seed=2)
    assert "second: both are pool_judge of 1 trajectories with one seed" in error_of()
    write_run(folder / "third", pool[:1], COST, seed=3)
    assert "third: differ in checkpoint files or questions" in error_of()


def run(of_questions, sampler="noise", strength=0.5, seed=1):
    columns = {"sampler": sampler, "noise_std": strength, "svp_alpha": strength, "seed": seed}
    metrics = {"by_n": {"2": {}}, "n_samples": 2}
    return SimpleNamespace(records=dict(enumerate(of_questions)), columns=columns, metrics=metrics)


def test_a_sampler_is_shown_at_its_strength_of_highest_coverage():
    runs = [
        run([record([2, 3]), record([2, 2])]),
        run([record([3, 3]), record([2, 3])], strength=0.8),
        run([record([3, 2]), record([2, 2])], "svp", 0.2),
    ]
    outcomes = outcomes_of(runs)
    best = best_of(frame_of(outcomes))
    assert set(zip(best["sampler"], best["strength"], strict=True)) == {
        ("noise", 0.8),
        ("svp", 0.2),
    }
    row = best[(best["sampler"] == "noise") & (best["N"] == 2)].set_index("measure")["value"]
    assert row.to_dict() == {"coverage": 100, "voting_accuracy": 50, "mean_accuracy": 75}
    levels = {0.05: 92.0, 0.1: 93.2, 0.2: 93.5}  # the weakest that is level with the best
    shared = {"sampler": "dropout", "N": 16, "measure": "coverage"}
    frame = pd.DataFrame([shared | {"strength": s, "value": x} for s, x in levels.items()])
    assert best_of(frame)["strength"].tolist() == [0.1]
    table = gains_of(best, outcomes, "svp").splitlines()
    assert [line.split("| ")[3][:5] for line in table[2:]] == ["+50.0"]
