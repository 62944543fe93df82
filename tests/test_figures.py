"""The figures of finished runs: what is plotted is what was measured."""

import json
import shutil
import sys

import numpy as np
import pytest

from src.runs.figure_data import sampler_labels
from src.runs.figure_style import METHOD_COLORS, base_method, sampler_colors
from src.runs.figure_training import training_figures, training_histories
from src.runs.figures import FORMATS, draw, figures_line
from src.runs.finished_runs import FinishedRun, finished_runs
from src.runs.tables import choice_frame
from src.search.voting import aggregate
from tests.commands import ROOT, assert_one_line_error, assert_success, command, edit_json, run_here
from tests.plotted import band, colored
from utils.answers import is_right
from utils.datasets import load_dataset
from utils.metrics import measured

DATA = ("--data_path", "data/tiny_valid.json", "--limit", 12)
NOISE = ("--sampling_by", "noise")
POOL = ("--n_samples", 4, "--report_n", 1, 2, 4)
RUNS = {
    "greedy": ("infer_gpt2", *DATA, "--do_sample", "false"),
    "dropout": ("infer_gpt2", *DATA, *POOL, "--dropout_p", 0.2),
    "noise": ("infer_gpt2", *DATA, *POOL, *NOISE, "--seed", 43),
    "best": ("infer_gpt2_rm", *DATA, *POOL, *NOISE),
    "beams": (
        *("infer_gpt2_rm", *DATA, *NOISE, "--prm_mode", "beam_search"),
        *("--num_beams", 2, "--num_beam_candidates", 2),
    ),
    "dvts": (
        *("infer_gpt2_rm", *DATA, *NOISE, "--prm_mode", "dvts", "--guide", "agreement"),
        *("--num_beams", 2, "--num_beam_candidates", 2),
    ),
}
NAMES = (
    "coverage-tiny-coconut",
    "cost-tiny-latentRM-coconut-noise_std-0.8",
    "gains-tiny-latentRM-coconut-noise_std-0.8",
    "latent_rm-tiny-latentRM-coconut-noise_std-0.8",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of every kind; the pools of seed 42 (best) and 43 (noise) have the same sampler."""
    folder = tmp_path_factory.mktemp("runs")
    for name, line in RUNS.items():
        assert_success(run_here(command(*line, "--output_dir", folder / name)))
    return folder


@pytest.fixture(scope="module")
def figures(folder):
    return draw(finished_runs(folder))


def by_n(folder, name):
    return json.loads((folder / name / "metrics.json").read_text())["by_n"]


def test_plot_results_writes_every_figure_in_both_formats(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "runs")
    result = assert_success(run_here(command("plot_results", tmp_path / "runs")))
    paths = [tmp_path / f"runs/figures/{name}.{end}" for name in NAMES for end in FORMATS]
    assert result.stdout.splitlines() == list(map(str, paths))
    starts = {"png": b"\x89PNG", "pdf": b"%PDF"}
    assert all(path.read_bytes().startswith(starts[path.suffix[1:]]) for path in paths)
    assert {path.name for path in paths[0].parent.iterdir()} == {path.name for path in paths}


def test_several_folders_go_into_one_set_of_figures(folder, tmp_path):
    for name in ("noise", "dropout"):
        shutil.copytree(folder / name, tmp_path / name)
    line = command("plot_results", tmp_path / "noise", tmp_path / "dropout", tmp_path)
    result = assert_success(run_here(line))
    assert [path.rpartition("/")[2] for path in result.stdout.split()] == [
        f"{NAMES[0]}.{end}" for end in FORMATS
    ]
    assert (tmp_path / "noise/figures").is_dir()


@pytest.mark.parametrize(("measure", "style"), [("coverage", "-"), ("voting_accuracy", "--")])
def test_coverage_and_vote_with_their_bands_are_those_of_metrics_json(
    folder, figures, measure, style
):
    (axis,) = figures[NAMES[0]].axes
    assert len(axis.lines) == 2 * 2 + 1 and len(axis.collections) == 2 * 2
    colors = sampler_colors([("dropout", 0.2, "dropout_p 0.2"), ("noise", 0.8, "noise_std 0.8")])
    dropout, best, noise = (by_n(folder, name) for name in ("dropout", "best", "noise"))
    x, y = colored(axis, colors["dropout_p 0.2"], style)
    assert list(x) == [1, 2, 4]
    assert list(y) == [dropout[str(n)][measure]["value"] for n in x]
    ends = {(float(n), dropout[n][measure][end]) for n in dropout for end in ("low", "high")}
    assert ends <= band(axis, colors["dropout_p 0.2"])
    # Seeds are averaged.
    x, y = colored(axis, colors["noise_std 0.8"], style)
    means = [np.mean([run[str(n)][measure]["value"] for run in (best, noise)]) for n in x]
    assert y == pytest.approx(means, abs=0.011)


def test_one_sampler_is_named_at_its_lines_and_several_in_a_legend(folder, figures):
    (legend,) = figures[NAMES[0]].legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *("dropout_p 0.2", "noise_std 0.8"),
        *("coverage", "majority vote", "greedy"),
    ]
    figure = draw([FinishedRun(folder / "best")])[NAMES[0]]
    assert not figure.legends
    assert {text.get_text() for text in figure.axes[0].texts} == {"coverage", "majority vote"}


def test_a_single_n_has_its_interval_as_a_line(folder):
    run = FinishedRun(folder / "dropout")
    run.metrics["by_n"] = {"4": run.metrics["by_n"]["4"]}
    (axis,) = draw([run])[NAMES[0]].axes
    lines = [x.get_segments()[0][:, 1].tolist() for x in axis.collections if x.get_linewidth()[0]]
    measures = [run.metrics["by_n"]["4"][name] for name in ("coverage", "voting_accuracy")]
    assert lines == [[measure["low"], measure["high"]] for measure in measures]


def test_greedy_is_a_horizontal_line(folder, figures):
    (axis,) = figures[NAMES[0]].axes
    (line,) = [line for line in axis.lines if line.get_linestyle() == ":"]
    assert set(line.get_ydata()) == {by_n(folder, "greedy")["1"]["voting_accuracy"]["value"]}


def test_costs_and_accuracies_are_those_of_the_tables(folder, figures):
    frame = choice_frame(finished_runs(folder))
    axes = figures[NAMES[1]].axes
    assert len(axes) == 2
    frame["passes"] = frame["latent_passes"] + frame["answer_tokens"]
    for axis, cost in zip(axes, ("passes", "ms"), strict=True):
        for method, color in METHOD_COLORS.items():
            rows = frame[frame["method"].map(base_method) == method].sort_values(cost)
            searches = method in ("beam_search", "dvts")
            x, y = colored(axis, color, "None" if searches else "-")
            assert list(x) == rows[cost].tolist() and list(y) == rows["accuracy"].tolist()
        votes = frame[frame["method"] == "majority"]
        assert list(axis.lines[0].get_ydata()) == votes["coverage"].tolist()
        assert axis.get_xscale() == "log"


def test_gains_by_steps_are_paired_differences_to_greedy(folder, figures):
    (axis,) = figures[NAMES[2]].axes
    best, greedy = FinishedRun(folder / "best").records, FinishedRun(folder / "greedy").records
    rows = load_dataset("data/tiny_valid.json")
    steps = sorted({len(rows[i]["steps"]) for i in best})
    assert [round(x) for x in axis.get_xticks()] == steps and len(steps) > 1
    assert len(axis.containers) == 3  # the vote and two more, each with error bars
    for container in axis.containers:
        points, _, (bars,) = container
        method = container.get_label()
        assert points.get_color() == METHOD_COLORS[method]
        for k, n in enumerate(steps):
            gains = [
                float(is_right(aggregate(best[i], 4)[method], rows[i]["answer"]))
                - float(is_right(greedy[i]["predictions"][0], rows[i]["answer"]))
                for i in best
                if len(rows[i]["steps"]) == n
            ]
            expected = measured(gains)
            assert points.get_ydata()[k] == expected["value"]
            ends = bars.get_segments()[k][:, 1].tolist()
            assert ends == pytest.approx([expected["low"], expected["high"]])


def test_other_data_than_was_answered_leaves_out_the_gains(folder, tmp_path, capsys):
    data = tmp_path / "tiny_valid.json"
    data.write_text(json.dumps(load_dataset("data/tiny_valid.json")[:12]))
    for name in ("greedy", "best"):
        shutil.copytree(folder / name, tmp_path / name)
        config = tmp_path / name / "config.json"
        settings = json.loads(config.read_text())["settings"]
        edit_json(config, settings=settings | {"data_path": str(data)})
    assert list(draw(finished_runs(tmp_path))) == [*NAMES[:2], NAMES[3]]
    assert "is not the file" in capsys.readouterr().err
    data.unlink()
    assert list(draw(finished_runs(tmp_path))) == [*NAMES[:2], NAMES[3]]
    assert "no such data file" in capsys.readouterr().err


def test_a_benchmark_has_a_panel_and_a_model_a_figure(folder, tmp_path):
    for name in ("dropout", "other_data", "other_model"):
        shutil.copytree(folder / "dropout", tmp_path / name)
    edit_json(tmp_path / "other_data/config.json", data_sha256="0")
    edit_json(tmp_path / "other_model/config.json", model_sha256="0")
    figures = draw(finished_runs(tmp_path))
    panels = {name: len(figure.axes) for name, figure in figures.items()}
    assert panels == {NAMES[0]: 2, f"{NAMES[0]}--2": 1}


def test_samplers_of_one_label_are_told_apart_by_what_differs(folder, tmp_path):
    for name in ("one", "other"):
        shutil.copytree(folder / "dropout", tmp_path / name)
    settings = json.loads((tmp_path / "other/config.json").read_text())["settings"]
    edit_json(tmp_path / "other/config.json", settings=settings | {"latent_length": 5})
    labels = sampler_labels(finished_runs(tmp_path)).values()
    assert set(labels) == {f"dropout_p 0.2, latent_length {n}" for n in (5, 6)}


def test_nothing_to_draw_is_a_one_line_error(folder, tmp_path):
    assert_one_line_error(run_here(command("plot_results", tmp_path)), "no finished run")
    shutil.copytree(folder / "greedy", tmp_path / "greedy")
    assert_one_line_error(run_here(command("plot_results", tmp_path)), "nothing to draw")
    assert not (tmp_path / "figures").exists()


def test_without_matplotlib_the_tables_are_written_and_say_so(folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "dropout", tmp_path / "dropout")
    line = figures_line(finished_runs(tmp_path), tmp_path)
    assert line.startswith("figures: ") and str(tmp_path / "figures") in line
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = assert_success(run_here(command("collect_results", tmp_path)))
    assert "no figures: matplotlib can't be loaded" in result.stdout.splitlines()[-1]
    assert (tmp_path / "results.md").exists()
    assert_one_line_error(run_here(command("plot_results", tmp_path)), "pip install")


def test_the_figure_of_trainings_shows_their_histories(tmp_path):
    """Of the bundled backbones, whose histories have no loss, and of one that has it."""
    bundled = [ROOT / "checkpoints" / f"tiny-{name}" for name in ("coconut", "latentRM-coconut")]
    history = [
        {"stage": 0, "epoch": epoch, "minutes": 2.0 * epoch, "valid_accuracy": 10.0 * epoch,
         "train_loss": 3.0 / epoch if epoch else None}
        for epoch in range(3)
    ]  # fmt: skip
    (tmp_path / "new").mkdir()
    (tmp_path / "new/recipe.yaml").write_text("seed: 1")
    (tmp_path / "new/metrics.json").write_text(json.dumps({"history": history}))
    histories = training_histories([*bundled, tmp_path])
    assert list(histories) == ["tiny-coconut", "new"]
    ((_, figure),) = training_figures(histories)
    loss, accuracy = figure.axes
    assert [line.get_label() for line in accuracy.lines] == ["tiny-coconut", "new"]
    assert accuracy.lines[1].get_xydata().tolist() == [[0, 0], [2, 10], [4, 20]]
    assert loss.lines[1].get_xydata().tolist() == [[2, 3.0], [4, 1.5]]
    assert len(accuracy.lines[0].get_xydata()) == len(histories["tiny-coconut"])
    done = run_here(command("plot_results", tmp_path))
    assert_success(done)
    assert (tmp_path / "figures/training.png").is_file()
