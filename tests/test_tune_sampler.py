"""src.tune_sampler: a strength for coverage and one for the vote; --tuned_for takes them."""

import json
import shutil

import numpy as np
import pytest

from src.models.coconut import COCONUT
from src.models.loading import checkpoint_defaults
from src.runs import tuning
from src.runs.arguments import AnnotationArguments, InferenceArguments, RewardArguments
from src.runs.figure_diversity import DiversityCurve
from tests.commands import (
    ROOT,
    assert_success,
    command,
    edit_json,
    run_here,
)

BUNDLED = ROOT / "checkpoints/tiny-coconut"


@pytest.fixture
def copy(tmp_path):
    """A copy of the bundled COCONUT, with strengths for the vote."""
    shutil.copytree(BUNDLED, tmp_path / "model")
    values = {"noise_std": 0.8, "dropout_p": 0.1}
    values |= {"noise_std_for_vote": 0.3, "dropout_p_for_vote": 0.05}
    edit_json(tmp_path / "model/generation_config.json", **values)
    return str(tmp_path / "model")


def curve(coverage, vote, strengths=(0.1, 0.2, 0.3)):
    per_question = {"coverage": np.array(coverage)[:, None], "vote": np.array(vote)[:, None]}
    return DiversityCurve((("sampling_by", "noise"),), 4, list(strengths), per_question)


@pytest.mark.quick
def test_of_level_strengths_coverage_takes_the_weakest_and_the_vote_the_strongest():
    found = curve([0.5, 0.897, 0.9, 0.9], [0.6, 0.605, 0.601, 0.2], (0.1, 0.2, 0.3, 0.4))
    assert tuning.best_strength(found, "coverage") == 0.2
    assert tuning.best_strength(found, "vote") == 0.3
    clear = curve([0.5, 0.89, 0.9, 0.8], [0.7, 0.6, 0.5, 0.2], (0.1, 0.2, 0.3, 0.4))
    assert tuning.best_strength(clear, "coverage") == 0.3
    assert tuning.best_strength(clear, "vote") == 0.1


@pytest.mark.quick
def test_a_choice_at_an_end_of_the_grid_gives_a_warning(capsys):
    choices = tuning.choices_of([curve([0.5, 0.9, 0.8], [0.6, 0.4, 0.2])])
    assert choices == {"noise_std": 0.2, "noise_std_for_vote": 0.1}
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1 and "noise_std_for_vote: 0.1 lies at an end" in warnings[0]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("flags", "strength"),
    [
        ({"sampling_by": "noise"}, 0.8),
        ({"sampling_by": "noise", "tuned_for": "coverage"}, 0.8),
        ({"sampling_by": "noise", "tuned_for": "vote"}, 0.3),
        ({"tuned_for": "vote"}, 0.05),
    ],
)
@pytest.mark.parametrize("cls", [InferenceArguments, AnnotationArguments, RewardArguments])
def test_tuned_for_takes_the_checkpoint_s_strength(copy, cls, flags, strength):
    arguments = cls(model_id=copy, **flags)
    assert getattr(arguments, "noise_std" if "sampling_by" in flags else "dropout_p") == strength


@pytest.mark.quick
def test_a_strength_by_purpose_gives_the_run_of_that_strength(copy):
    by_purpose = InferenceArguments(model_id=copy, sampling_by="noise", tuned_for="vote")
    by_value = InferenceArguments(model_id=copy, sampling_by="noise", noise_std=0.3)
    assert by_purpose == by_value
    assert "tuned_for" not in by_purpose.flags()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ({"sampling_by": "noise", "noise_std": 0.5}, "no effect with --noise_std"),
        ({"do_sample": False}, "no effect with --do_sample false"),
    ],
)
def test_tuned_for_without_effect_is_refused(copy, flags, fault):
    with pytest.raises(ValueError, match=f"--tuned_for has {fault}"):
        InferenceArguments(model_id=copy, tuned_for="vote", **flags)


@pytest.mark.quick
def test_a_checkpoint_that_was_not_tuned_for_the_vote_is_named(copy):
    edit_json(ROOT / copy / "generation_config.json", noise_std_for_vote=None)
    with pytest.raises(ValueError, match="has no noise_std_for_vote; python"):
        InferenceArguments(model_id=copy, sampling_by="noise", tuned_for="vote")


KEYS = {"noise": "noise_std", "tokens": "answer_temperature"}


def tune(model, folder, *flags):
    shared = ("--data_path", "data/tiny_valid.json", "--limit", 6, "--n_samples", 4, "--nproc", 1)
    samplers = ("--samplers", "noise", "tokens")
    grids = ("--noise_stds", 0.1, 0.8, 3, "--temperatures", 0.5, 1, 2)
    line = command("tune_sampler", "--model_id", model, *shared, *samplers, *grids, *flags)
    return run_here([*line, "--output_dir", str(folder)])


def test_tune_sampler_writes_what_its_runs_measured(copy, tmp_path):
    pytest.importorskip("matplotlib")
    before = json.loads((tmp_path / "model/generation_config.json").read_text())
    result = assert_success(tune(copy, tmp_path / "tune"))
    lines = result.stdout.splitlines()
    after = json.loads((tmp_path / "model/generation_config.json").read_text())
    for sampler, name in KEYS.items():
        for measure, suffix in (("coverage", ""), ("voting_accuracy", "_for_vote")):
            reached = {}
            for folder in (tmp_path / "tune").glob(f"{sampler}-*-seed42"):
                both = [folder, folder.with_name(folder.name.replace("seed42", "seed43"))]
                values = [json.loads((f / "metrics.json").read_text()) for f in both]
                reached[float(folder.name.split("-")[1])] = sum(
                    metrics["by_n"]["4"][measure]["value"] for metrics in values
                )
            level = [s for s in reached if reached[s] >= max(reached.values()) - 2 * 0.5]
            assert after[name + suffix] == (max(level) if suffix else min(level))
            assert f"{name}{suffix}: {after[name + suffix]}" in lines
    untouched = before.keys() - {f"{n}{s}" for n in KEYS.values() for s in ("", "_for_vote")}
    assert {key: after[key] for key in untouched} == {key: before[key] for key in untouched}
    assert (tmp_path / "tune/figures/diversity-model.png").is_file()
    defaults = checkpoint_defaults("coconut", copy)
    assert defaults.noise_std == after["noise_std"]
    assert defaults.temperature == after["answer_temperature"]
    model = COCONUT.from_pretrained(copy)
    model.save_pretrained(copy)  # transformers refuses to where it takes a key for one of its own
    assert model.defaults == defaults


def test_a_mistake_in_a_run_is_one_line(copy, capfd):
    line = command("tune_sampler", "--model_id", copy, "--data_path", "nope.json")
    result = run_here([*line, "--output_dir", f"{copy}/../tune"])
    lines = capfd.readouterr().err.splitlines()  # of the process that was started
    assert result.returncode == 2 and not result.stderr
    assert len(lines) == 1 and "nope.json: no such data file" in lines[0]
