"""The figure "map": what is drawn are the saved thoughts, projected."""

import sys
import types

import numpy as np
import pytest
import torch

from src.runs.figure_maps import TRAJECTORIES, chosen_questions, question_maps
from src.runs.figure_style import OUTCOME_COLORS
from src.runs.figures import draw
from tests.commands import assert_one_line_error, assert_success, command, run_here
from tests.plotted import GREEDY, colors, dropout, noise, record, write_run

NAME = "map-some-model-some_test"
MIXED, RIGHT, WRONG = [1.0, 2.0, 1.0, 3.0], [1.0] * 4, [2.0] * 4
SAVED = {"save_latents": True}


def latents(seed, n, lengths=None, thoughts=3, width=5):
    """The saved tensors of a question, random."""
    embeds = torch.randn(n, thoughts, width, generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor(lengths or [thoughts] * n)
    embeds[torch.arange(thoughts) >= lengths[:, None]] = 0
    return {"latent_embeds": embeds, "latent_lengths": lengths}


def write(folder, settings, pools, seed=0, **shape):
    """A run with the given predictions of its questions, and random thoughts."""
    records = [record(i, predictions, thought_distance=1.0) for i, predictions in enumerate(pools)]
    thoughts = {}
    for row in records:
        size = len(row["predictions"])
        other = {"input_ids": torch.ones(2), "answer_ids": torch.ones(size, 1)}
        own = latents(100 * seed + row["idx"], size, **shape)
        thoughts[row["idx"]] = own | other | {"corrects": torch.tensor(row["correct"])}
    return write_run(folder, records, settings | SAVED, thoughts)


def write_all(folder, pools=(MIXED,), **shape):
    """Runs of dropout, noise and greedy over the same questions."""
    greedy = [[1.0] for _ in pools]
    return [
        write(folder / "dropout", dropout(0.1), pools, 1, **shape),
        write(folder / "noise", noise(0.8), pools, 2, **shape),
        write(folder / "greedy", GREEDY, greedy, 3),
    ]


def dots(axis, outcome):
    """The points (K, 2) of one outcome in an axis."""
    color = colors.to_rgb(OUTCOME_COLORS[outcome])
    (found,) = [c for c in axis.collections if tuple(c.get_facecolor()[0][:3]) == color]
    return np.asarray(found.get_offsets())


def saved(run, idx=0):
    from safetensors.torch import load_file

    return load_file(run.folder / f"latents/{idx:06d}.safetensors")["latent_embeds"].double()


def assert_same_shape(points, expected):
    """Equal but for the sign of each axis."""
    signs = np.sign((points * expected).sum(axis=0))
    np.testing.assert_allclose(points, expected * signs, atol=1e-6)


def test_pca_of_all_thoughts_of_a_question(tmp_path):
    runs = write_all(tmp_path)
    axes = draw(runs)[NAME].axes
    vectors = [saved(run).reshape(-1, 5).numpy() for run in (runs[2], *runs[:2])]
    everything = np.concatenate(vectors)
    mean = everything.mean(axis=0)
    _, sizes, directions = np.linalg.svd(everything - mean, full_matrices=False)
    greedy, *pools = [(part - mean) @ directions[:2].T for part in vectors]
    right = np.repeat([True, False, True, False], 3)  # of MIXED, three thoughts each
    for axis, points in zip(axes, pools, strict=True):
        path = axis.lines[0].get_xydata()
        drawn = np.concatenate([dots(axis, "right"), dots(axis, "wrong"), path])
        expected = np.concatenate([points[right], points[~right], greedy])
        assert_same_shape(drawn, expected)
        assert axis.get_xlabel() == f"PC 1, {100 * sizes[0] ** 2 / (sizes**2).sum():.0f} %"
        assert [text.get_text() for text in axis.texts][:3] == ["1", "2", "3"]
        low, high = axis.get_xlim()
        assert low < drawn[:, 0].min() and drawn[:, 0].max() < high
    assert [axis.get_title() for axis in axes] == [
        "question 0, dropout_p 0.1", "question 0, noise_std 0.8",
    ]  # fmt: skip


def test_drift_and_spread_tell_a_shifted_pool_from_a_wide_one(tmp_path):
    path = torch.zeros(1, 2, 50)
    wide = torch.randn(64, 2, 50, generator=torch.Generator().manual_seed(0))
    runs = []
    for k, (settings, thoughts) in enumerate(
        ((dropout(0.1), wide / 10 + 0.5), (noise(0.8), wide), (GREEDY, path))
    ):
        size = len(thoughts)
        rows = [record(0, [1.0, *[2.0] * (size - 1)], thought_distance=1.0)]
        own = {"latent_embeds": thoughts, "latent_lengths": torch.full((size,), 2)}
        own |= {key: torch.ones(size, 1) for key in ("input_ids", "answer_ids")}
        own["corrects"] = torch.tensor(rows[0]["correct"])
        runs.append(write_run(tmp_path / str(k), rows, settings | SAVED, {0: own}))
    ((of_question,),) = [question_maps(runs[:2], runs[2], "pca")]
    shifted, centred = of_question.clouds
    assert shifted.drift == pytest.approx(0.5 * 50**0.5, rel=0.02)
    assert shifted.spread == pytest.approx(0.1 * 50**0.5, rel=0.05)
    assert centred.drift < 0.5 and centred.spread == pytest.approx(50**0.5, rel=0.05)


def test_thoughts_that_do_not_exist_are_not_drawn(tmp_path):
    runs = write_all(tmp_path, lengths=[1, 3, 2, 5], thoughts=5)
    for axis in draw(runs)[NAME].axes:
        counts = [len(dots(axis, outcome)) for outcome in ("right", "wrong")]
        assert counts == [1 + 2, 3 + 5]
        assert len(axis.lines[0].get_xydata()) == 3  # the greedy path has three thoughts


def test_questions_are_the_first_with_right_and_wrong_answers(tmp_path):
    one = write(tmp_path / "a", dropout(0.1), [RIGHT, MIXED, MIXED, MIXED, WRONG, MIXED])
    other = write(tmp_path / "b", noise(0.8), [MIXED, RIGHT, MIXED, MIXED, WRONG, WRONG])
    assert chosen_questions([one, other]) == [2, 3, 0]
    assert chosen_questions([other]) == [0, 2, 3]


def test_without_a_mixed_question_there_is_no_map(tmp_path, capsys):
    runs = write_all(tmp_path, pools=(RIGHT, WRONG))
    assert NAME not in draw(runs)
    assert capsys.readouterr().err == ""
    assert NAME not in draw(runs, "tsne")
    assert "--projection tsne has no effect" in capsys.readouterr().err


def test_the_sampler_of_a_kind_is_the_one_that_covers_most(tmp_path):
    runs = write_all(tmp_path, pools=(MIXED, WRONG))
    better = write(tmp_path / "more", noise(1.2), (MIXED, MIXED), 4)
    titles = [axis.get_title() for axis in draw([*runs, better])[NAME].axes]
    assert titles[2:] == ["question 0, noise_std 1.2", "question 1, noise_std 1.2"]


def test_at_most_so_many_trajectories_are_drawn(tmp_path):
    runs = write_all(tmp_path, pools=(MIXED * 20,))
    for axis in draw(runs)[NAME].axes:
        assert len(dots(axis, "right")) + len(dots(axis, "wrong")) == 3 * TRAJECTORIES


@pytest.mark.parametrize("missing", ["greedy", "thoughts", "file"])
def test_a_map_that_lacks_something_is_left_out_with_a_warning(tmp_path, capsys, missing):
    runs = write_all(tmp_path)
    if missing == "thoughts":  # the runs were made without --save_latents true: nothing to say
        for run in runs:
            run.settings["save_latents"] = False
    if missing == "file":
        (runs[0].folder / "latents/000000.safetensors").unlink()
    figures = draw(runs[:2] if missing == "greedy" else runs)
    assert list(figures) == ["coverage-some-model"]
    said = {"greedy": "--do_sample false --save_latents true", "thoughts": "", "file": "missing"}
    err = capsys.readouterr().err
    assert said[missing] in err and bool(err) == (missing != "thoughts")


def test_tsne_is_that_of_scikit_learn(tmp_path, monkeypatch):
    """A stand-in for the library, which is not installed everywhere."""

    class TSNE:
        def __init__(self, **settings):
            assert settings.pop("perplexity") == pytest.approx(26 / 3)  # fewer than the points
            assert settings == {"init": "pca", "random_state": 0}

        def fit_transform(self, vectors):
            assert vectors.shape == (27, 5)
            return vectors[:, 3:]

    monkeypatch.setitem(sys.modules, "sklearn", types.ModuleType("sklearn"))
    manifold = types.ModuleType("sklearn.manifold")
    manifold.TSNE = TSNE
    monkeypatch.setitem(sys.modules, "sklearn.manifold", manifold)
    runs = write_all(tmp_path)
    axis = draw(runs, "tsne")[NAME].axes[0]
    (path,) = axis.lines  # no mean, which is no projection of the mean
    assert path.get_xydata().tolist() == saved(runs[2])[0, :, 3:].tolist()
    assert axis.get_xlabel() == "t-SNE 1"


def test_maps_of_runs_of_the_commands(tmp_path, monkeypatch):
    data = ("--data_path", "data/tiny_valid.json", "--limit", 6, "--save_latents", "true")
    pool = ("--n_samples", 8, "--sampling_by", "noise", "--output_dir", tmp_path / "noise")
    greedy = ("--do_sample", "false", "--output_dir", tmp_path / "greedy")
    for flags in (pool, greedy):
        assert_success(run_here(command("infer_gpt2", *data, *flags)))
    result = assert_success(run_here(command("plot_results", tmp_path)))
    assert "map-tiny-coconut-tiny_valid.png" in result.stdout
    monkeypatch.setitem(sys.modules, "sklearn", None)
    line = command("plot_results", tmp_path, "--projection", "tsne")
    assert_one_line_error(run_here(line), "pip install scikit-learn")
