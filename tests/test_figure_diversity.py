"""The figure "diversity": its points are means of the records, and when it is drawn."""

import numpy as np
import pytest

from src.runs.figure_diversity import diversity_panels
from src.runs.figure_style import GREY, sampler_colors
from src.runs.figures import draw
from tests.plotted import GREEDY, band, colored, dropout, noise, record, write_run
from utils.metrics import measured

NAME = "diversity-some-model"
SIGMAS = (0.8, 0.4, 1.6)
COLORS = sampler_colors([("noise", "noise (sigma)", "noise (sigma)")])


def pool(strength, shift=0):
    """Records of 3 questions: one right by all, one by the strong ones only, one by none."""
    return [
        record(0, [1.0, 1.0, 1.0, 1.0], thought_distance=strength + shift),
        record(1, [2.0, 2.0, 1.0 if strength > 1 else 2.0, 3.0], thought_distance=2 * strength),
        record(2, [None, 2.0, 3.0, None], thought_distance=3 * strength),
    ]


def write_pools(folder, strengths=SIGMAS, settings=noise, name="", **more):
    return [write_run(folder / f"{name}{x}", pool(x), settings(x, **more)) for x in strengths]


def test_points_are_means_over_questions_with_their_intervals(tmp_path):
    runs = write_pools(tmp_path)
    greedy = write_run(tmp_path / "greedy", [record(i, [1.0]) for i in range(3)], GREEDY)
    figure = draw([*runs, greedy])[NAME]
    distance, distinct = figure.axes
    (color,) = COLORS.values()
    coverage = [[1, 0, 0], [1, 0, 0], [1, 1, 0]]
    for axis, style, values in (
        (distance, "-", coverage), (distinct, "-", coverage), (distance, "--", [[1, 0, 0]] * 3)
    ):  # fmt: skip
        expected = [measured(row, decimals=4) for row in values]
        x, y = colored(axis, color, style)
        assert list(y) == [point["value"] for point in expected]
        ends = {(at, p[end]) for at, p in zip(x, expected, strict=True) for end in ("low", "high")}
        assert ends <= band(axis, color)
    assert colored(distance, color)[0] == pytest.approx([0.8, 1.6, 3.2])  # twice sigma on average
    shares = [np.mean([1 / 4, 2 / 4, 2 / 4])] * 2 + [np.mean([1 / 4, 3 / 4, 2 / 4])]
    assert colored(distinct, color)[0] == pytest.approx(100 * np.array(shares), abs=1e-3)
    # The first two points have one place on the second axis: one of them is labelled there.
    for axis, strengths in ((distance, ["0.4", "0.8", "1.6"]), (distinct, ["0.8", "1.6"])):
        assert [text.get_text() for text in axis.texts] == strengths
        assert set(colored(axis, GREY, ":")[1]) == {100.0}


def test_numbers_are_given_by_question_and_averaged_over_seeds(tmp_path):
    runs = write_pools(tmp_path)
    runs += [write_run(tmp_path / f"43-{x}", pool(x, shift=1), noise(x, seed=43)) for x in SIGMAS]
    ((panel,),) = diversity_panels(runs).values()
    (curve,) = panel.curves
    assert (curve.kind, curve.size, curve.strengths) == ("noise", 4, [0.4, 0.8, 1.6])
    expected = [[x + 0.5, 2 * x, 3 * x] for x in curve.strengths]
    assert curve.per_question["distance"] == pytest.approx(np.array(expected))
    assert curve.per_question["coverage"].tolist() == [[1, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert panel.greedy == []


def test_a_benchmark_is_a_row_and_a_kind_a_line(tmp_path):
    runs = write_pools(tmp_path / "a")
    runs += write_pools(tmp_path / "b", (0.1, 0.2, 0.3), dropout)
    other = write_pools(tmp_path / "c", data_path="data/other.json")
    figure = draw([*runs, *other])[NAME]
    assert len(figure.axes) == 4
    assert [len(axis.lines) for axis in figure.axes] == [2, 2, 4, 4]
    (legend,) = figure.legends
    names = ["dropout (p)", "noise (sigma)", "coverage", "vote"]
    assert [text.get_text() for text in legend.get_texts()] == names


def test_samplers_with_other_settings_are_lines_of_their_own(tmp_path):
    runs = [
        run
        for mask in ("step", "trajectory")
        for run in write_pools(tmp_path / mask, (0.1, 0.2, 0.3), dropout, dropout_mask=mask)
    ]
    (legend,) = draw(runs)[NAME].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[:2] == [f"dropout (p), dropout_mask {mask}" for mask in ("step", "trajectory")]


@pytest.mark.parametrize("fault", ["two strengths", "older version", "other sizes"])
def test_what_can_not_be_compared_is_not_drawn(tmp_path, fault):
    runs = write_pools(tmp_path, SIGMAS[:2] if fault == "two strengths" else SIGMAS)
    assert (NAME in draw(runs)) == (fault != "two strengths")
    if fault == "older version":
        runs[0].records[0].pop("thought_distance")
    if fault == "other sizes":
        runs[0].metrics["n_samples"] = 3
    assert list(draw(runs)) == ["coverage-some-model"]
