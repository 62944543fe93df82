"""src.reproduce: the rules, the plan, and a whole run on a few questions."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from src.claims import setting as settings
from src.claims import stages
from src.claims.claims import CLAIMS
from src.claims.evidence import Evidence
from src.claims.plan import JUDGE, PAPER, SHIPPED, Plan
from src.claims.report import UNTESTED, table, verdict
from src.claims.setting import full_setting, paper_setting, tiny_setting
from src.claims.verdicts import FAILS, HOLDS, OPEN, Comparison, compare, verdict_of
from src.models import BACKBONES
from src.models.latent_reasoner import GenerationDefaults
from src.runs import launch
from src.runs.commands import COMMANDS
from src.runs.finished_runs import FinishedRun
from tests.commands import (
    ROOT,
    assert_one_line_error,
    assert_success,
    command,
    edit_json,
    run,
    run_here,
)
from utils.cli import flag_actions
from utils.config import read_yaml

RECIPE = Path("training_args/train_tiny_coconut_small.yaml")
ONES = np.ones((3, 200))


def mixed(share):
    """(3, 200) of 0 and 1, with the same share of 1 for every seed."""
    return np.tile(np.arange(200) < 200 * share, (3, 1)).astype(float)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("rule", "first", "second", "expected"),
    [
        ("greater", mixed(0.5), mixed(0.3), HOLDS),
        ("greater", mixed(0.3), mixed(0.5), FAILS),
        ("greater", mixed(0.5), mixed(0.5), FAILS),  # a gain of a point is ruled out
        ("greater", mixed(0.5), mixed(0.5)[:, ::-1], OPEN),  # level, with a wide interval
        ("rises", mixed(0.5), mixed(0.49), OPEN),
        ("rises", mixed(0.5), mixed(0.45), HOLDS),
        ("rises", mixed(0.45), mixed(0.5), FAILS),
        ("close", mixed(0.5), mixed(0.5), HOLDS),
        ("close", mixed(0.5), mixed(0.3), FAILS),
        ("close", mixed(0.5), mixed(0.5)[:, ::-1], OPEN),
        ("greater", mixed(0.995), mixed(0.995), OPEN),  # no room for a gain of a point
        ("same", ONES, 1.0, HOLDS),
        ("same", np.vstack([ONES[:2], [[0.0] + [1.0] * 199]]), 1.0, FAILS),
    ],
)
def test_rules(rule, first, second, expected):
    assert compare("", rule, ("a", "b"), first, second).verdict == expected


@pytest.mark.quick
def test_a_gain_has_to_be_there_in_every_seed():
    first = mixed(0.6)
    first[2] = mixed(0.29)[2]
    comparison = compare("", "greater", ("a", "b"), first, mixed(0.3))
    assert comparison.low > 0 and min(comparison.seeds) < 0
    assert comparison.verdict == OPEN


@pytest.mark.quick
def test_a_comparison_is_paired_and_leaves_out_questions_without_a_measure():
    first, second = mixed(0.5), mixed(0.4)
    first[1, :20] = np.nan
    comparison = compare("", "greater", ("a", "b"), first, second)
    assert comparison.first == round(100 * 80 / 180, 2)
    assert comparison.second == round(100 * 60 / 180, 2)
    assert comparison.value == pytest.approx(100 * 20 / 180, abs=0.01)
    assert comparison.seeds == (comparison.value,) * 3


@pytest.mark.quick
def test_one_comparison_that_fails_decides_and_one_that_is_open_leaves_open():
    holds, fails, open_ = (
        compare("", "greater", ("a", "b"), first, second)
        for first, second in (
            (mixed(0.5), mixed(0.3)),
            (mixed(0.3), mixed(0.5)),
            (mixed(0.5), mixed(0.5)[:, ::-1]),
        )
    )
    assert verdict_of([holds, holds]) == HOLDS
    assert verdict_of([holds, open_]) == OPEN
    assert verdict_of([holds, open_, fails]) == FAILS
    assert verdict({"part": []}) == UNTESTED


def all_settings(monkeypatch, tmp_path):
    """Those of every backbone: bundled, in full, and published; the last without the hub."""
    for name in BACKBONES:
        tiny = tiny_setting(name, tmp_path, 2)
        yield from (tiny, full_setting(tiny))
    monkeypatch.setattr(settings, "checkpoint_defaults", lambda *_: GenerationDefaults())
    for name in BACKBONES:
        yield paper_setting(name, tmp_path, 2)


@pytest.mark.quick
def test_every_command_of_a_plan_has_only_flags_that_exist(monkeypatch, tmp_path):
    for setting in all_settings(monkeypatch, tmp_path):
        folders = []
        for lines in Plan(setting).commands().values():
            for line in lines:
                words = line.split()
                if words[0] == "accelerate":
                    continue
                actions = flag_actions(COMMANDS[words[2]].arguments)
                known = {option for action in actions for option in action.option_strings}
                assert {word for word in words if word.startswith("--")} <= known, line
                folders.append(
                    words[words.index("--output_dir") + 1] if "--output_dir" in words else line
                )
        assert len(set(folders)) == len(folders)


@pytest.mark.quick
def test_the_pool_judge_is_left_out_where_there_is_none(monkeypatch, tmp_path):
    by_name = {claim.name: claim for claim in CLAIMS}
    for setting in all_settings(monkeypatch, tmp_path):
        lines = [line for line in Plan(setting).commands()["chosen"] if "-judge-" in line]
        if setting.model_id.startswith("checkpoints/"):
            assert len(lines) == len(setting.benchmarks) * len(setting.seeds)
            assert all(f"--prm_id checkpoints/tiny-judge-{setting.model_type} " in x for x in lines)
            continue
        assert not lines
        for name in ("F", "G"):
            parts = by_name[name].compare(SimpleNamespace(setting=setting))
            assert verdict(parts) == UNTESTED


@pytest.mark.quick
def test_recipes_differ_in_what_is_compared_and_in_the_seed(tmp_path):
    recipes = {
        path.stem: values
        for path, values in Plan(tiny_setting("codi", tmp_path, 1)).recipes().items()
    }
    base = read_yaml(RECIPE)
    assert recipes.keys() == {
        f"{kind}-seed{seed}"
        for kind in (PAPER, "bce-rollout", "contrastive-outcome", "random-head")
        for seed in (42, 43, 44)
    }
    paper = recipes[f"{PAPER}-seed43"]
    assert (paper["loss"], paper["labels"]) == ({"contrastive": 1.0}, "rollout")
    assert (paper["model_type"], paper["model_id"]) == ("codi", "checkpoints/tiny-codi")
    assert paper["seed"] == 1 and paper["max_steps"] == base["max_steps"]
    for kind, key, value in (
        ("bce-rollout", "loss", {"bce": 1.0}),
        ("contrastive-outcome", "labels", "outcome"),
        ("random-head", "train_weights", False),
    ):
        other = recipes[f"{kind}-seed43"]
        same = {"output_dir": paper["output_dir"], key: paper.get(key)}
        assert other[key] == value
        assert {k: v for k, v in (other | same).items() if v is not None} == paper


@pytest.mark.quick
def test_docs_claims_md_has_the_figures_of_its_json():
    text = (ROOT / "docs/claims.md").read_text()
    claims = json.loads((ROOT / "docs/results/claims.json").read_text())["claims"]
    assert [claim["name"] for claim in claims] == [claim.name for claim in CLAIMS]
    for claim in claims:
        assert f"## Claim {claim['name']}: {claim['verdict']}\n" in text
        for row in claim["comparisons"]:
            fields = {key: row[key] for key in Comparison.__dataclass_fields__}
            comparison = Comparison(**fields | {"seeds": tuple(row["seeds"])})
            assert comparison.verdict == row["verdict"]
            assert table("", [comparison])[-2] in text


@pytest.fixture(scope="module")
def micro(tmp_path_factory, request):
    """The Setting of a whole run on 4 questions with 2 seeds, and what it printed."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("claims")
    recipe = read_yaml(RECIPE)
    recipe |= {"max_steps": 1, "warmup_steps": 0, "eval_strategy": "no", "save_strategy": "no"}
    recipe |= {"load_best_model_at_end": False, "per_device_train_batch_size": 4}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    patch = pytest.MonkeyPatch()
    patch.setattr(settings, "SWEEP_FACTORS", (0.25, 1, 3))
    request.addfinalizer(patch.undo)
    setting = replace(
        tiny_setting("coconut", folder / "run", 1),
        limit=4, seeds=(42, 43), train_data="data/tiny_valid.json", train_questions=40,
        valid_questions=4, rollouts=1, recipe=str(folder / "recipe.yaml"),
    )  # fmt: skip
    return setting, reproduce(setting)


def reproduce(setting):
    """Runs src.reproduce with a Setting; the commands that it starts are run in forks."""

    def forked(arguments):
        launched = arguments[arguments.index("launch") :] if "launch" in arguments else arguments
        module = launched[launched.index("-m") + 1 :]
        assert_success(run(["python", "-m", *module]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "run", forked)
        patch.setattr(stages, "run", forked)
        patch.setattr("src.reproduce.setting_of", lambda arguments: setting)
        return assert_success(run_here(command("reproduce"))).stdout


def report_of(setting):
    return json.loads((setting.folder / "report.json").read_text())


def rows_of(setting, name):
    (claim,) = [claim for claim in report_of(setting)["claims"] if claim["name"] == name]
    return {(row["where"], *row["names"]): row for row in claim["comparisons"]}


def mean_of(setting, folder_of, n, measure):
    """The mean over seeds of a measure in metrics.json, percent."""
    runs = [FinishedRun(folder_of(seed)) for seed in setting.seeds]
    return np.mean([run.metrics["by_n"][str(n)][measure]["value"] for run in runs])


def test_the_figures_of_the_report_are_those_of_the_runs(micro):
    setting, _ = micro
    plan = Plan(setting)
    row = rows_of(setting, "4")["Test", "best-of-32", "vote"]
    first = mean_of(setting, lambda seed: plan.chosen(PAPER, "Test", seed), 32, "best_of_n")
    vote = mean_of(setting, lambda seed: plan.scored_pool("Test", seed), 32, "voting_accuracy")
    assert (row["first"], row["second"]) == (pytest.approx(first), pytest.approx(vote))
    row = rows_of(setting, "4")["Hard", "beam search 4 x 8", "vote"]
    beams = mean_of(setting, lambda seed: plan.beams(PAPER, "Hard", seed), 4, "beam_search")
    assert row["first"] == pytest.approx(beams)
    row = rows_of(setting, "C")["MultiArith", "weighted vote", "greedy"]
    chosen = mean_of(
        setting, lambda seed: plan.chosen(SHIPPED, "MultiArith", seed), 64, "weighted_vote"
    )
    greedy = FinishedRun(plan.greedy("MultiArith")).metrics["by_n"]["1"]["voting_accuracy"]["value"]
    assert (row["first"], row["second"]) == (pytest.approx(chosen), pytest.approx(greedy))
    row = rows_of(setting, "G")["Hard, N = 16", "pool judge", "greedy"]
    judged, over = (
        mean_of(setting, lambda seed: plan.chosen(JUDGE, "Hard", seed), 16, measure)
        for measure in ("pool_judge", "pool_judge_gain_over_greedy")
    )
    assert (row["first"], row["value"]) == (pytest.approx(judged), pytest.approx(over))
    row = rows_of(setting, "1")["Test, dropout", "coverage at 64", "at 16"]
    p = setting.chosen["dropout"]
    pool = mean_of(setting, lambda seed: plan.pool("Test", "dropout", p, seed), 64, "coverage")
    assert row["first"] == pytest.approx(pool)


def test_samples_are_the_same_in_other_batches_and_pools(micro):
    setting, _ = micro
    rows = rows_of(setting, "A").values()
    assert len(rows) == 3
    assert all(row["verdict"] == HOLDS and row["first"] == 100 for row in rows)


def test_report_md_has_every_claim_its_commands_and_figures(micro):
    setting, printed = micro
    text = (setting.folder / "report.md").read_text()
    verdicts = {claim["name"]: claim["verdict"] for claim in report_of(setting)["claims"]}
    for claim in CLAIMS:
        assert f"## Claim {claim.name}: {verdicts[claim.name]}\n\n" in text
        assert claim.statement in text.replace("\n", " ")
        assert f"{claim.name}  {verdicts[claim.name]}" in printed
    for name in (
        line.partition("](")[2].rstrip(")") for line in text.splitlines() if line[:2] == "!["
    ):
        assert (setting.folder / name).is_file(), name
    assert "accelerate launch -m src.train" in text and "--seed $SEED" in text
    kinds = {path.name.partition("-")[0] for path in (setting.folder / "claims").glob("*.png")}
    assert kinds == {"all.png", "coverage", "cost", "gains", "diversity", "map", "latent_rm"}


def test_coverage_between_two_strengths_is_interpolated(micro):
    setting, _ = micro
    evidence, grid = Evidence(Plan(setting)), setting.grid("noise")
    low, high = (evidence.diversity("noise", strength, "distance") for strength in grid[1:3])
    before, after = (evidence.coverage("Test", "noise", 64, strength) for strength in grid[1:3])
    between = evidence.coverage_at("noise", "distance", low + 0.25 * (high - low), 64)
    np.testing.assert_allclose(between, 0.75 * before + 0.25 * after)
    np.testing.assert_allclose(evidence.coverage_at("noise", "distance", high, 64), after)


def test_a_diversity_that_a_sampler_does_not_reach_gives_no_coverage(micro):
    setting, _ = micro
    evidence = Evidence(Plan(setting))
    assert evidence.coverage_at("noise", "distance", 1e6, 64) is None
    both = [max(evidence._reached(name, "distance")) for name in ("noise", "dropout")]
    assert evidence.common_diversity("distance") == min(both)


def test_a_folder_of_another_setting_is_refused(micro, tmp_path):
    setting, _ = micro
    with pytest.raises(settings.UserError, match="was begun with another seeds; name another"):
        settings.prepare(replace(setting, seeds=(42,)))
    settings.prepare(replace(setting, nproc=7))
    edit_json(setting.folder / "setting.json", judge="other")
    with pytest.raises(settings.UserError, match="was begun with another judge"):
        settings.prepare(setting)
    before_judges = {key: value for key, value in setting.contents().items() if key != "judge"}
    (setting.folder / "setting.json").write_text(json.dumps(before_judges))
    settings.prepare(setting)
    assert json.loads((setting.folder / "setting.json").read_text()) == setting.contents()


def test_what_the_reward_model_answers_alone_is_renewed_after_a_change(micro):
    setting, _ = micro
    plan = Plan(setting)
    before = json.loads(plan.alone(42).read_text())
    edit_json(plan.alone(42), made_from="other", Test={})
    stages.answer_alone(plan)
    assert json.loads(plan.alone(42).read_text()) == before


def test_a_second_run_computes_nothing_again_and_says_the_same(micro, monkeypatch):
    setting, printed = micro
    monkeypatch.setattr("src.reproduce.draw_figures", lambda *_: {})  # they take half of the time
    before = report_of(setting)
    files = {path: path.stat().st_mtime_ns for path in setting.folder.rglob("samples.jsonl")}
    files |= {path: path.stat().st_mtime_ns for path in setting.folder.rglob("model.safetensors")}
    again = reproduce(setting)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert report_of(setting)["claims"] == before["claims"]
    assert again.splitlines()[-len(CLAIMS) - 1 :] == printed.splitlines()[-len(CLAIMS) - 1 :]


def test_a_reward_model_of_another_recipe_is_refused(micro):
    setting, _ = micro
    plan = Plan(replace(setting, rollouts=1, recipe=str(RECIPE)))
    with pytest.raises(stages.UserError, match="was trained by another recipe; remove it"):
        stages.train(plan)


@pytest.mark.quick
def test_full_has_no_effect_on_the_paper_s_profile():
    result = run_here(command("reproduce", "--profile", "paper", "--full"))
    assert_one_line_error(result, "--full", "leave it out")
