"""README.md of a checkpoint: the hub's metadata, the figures, commands that work."""

import json
import re
import shlex

import pytest
import yaml

from src.training.model_card import model_card
from tests.commands import ROOT, assert_success, command, run_here

SHIPPED = sorted(path.relative_to(ROOT) for path in (ROOT / "checkpoints").glob("tiny-*"))
BACKBONE = {
    "valid_accuracy": 43.5, "valid_accuracy_by_steps": {"1": 60.0}, "minutes": 12.5,
    "mixed_precision": "no", "parameters": 124_000_000,
}  # fmt: skip
CODI = {
    "output_dir": "outputs/codi", "model_type": "codi", "base": "openai-community/gpt2",
    "train": "data/gsm_train.json", "valid": "openai/gsm8k:main:test",
}  # fmt: skip


def is_judge(folder):
    return folder.name.startswith("tiny-judge-")


def parts_of(text):
    """(metadata, body) of a card."""
    _, metadata, body = text.split("---\n", 2)
    return yaml.safe_load(metadata), body


def card_of(folder, recipe, metrics):
    """(metadata, body) of the card of a folder with this recipe and these metrics."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return parts_of(model_card(folder))


@pytest.mark.quick
@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_shipped_cards_are_current(folder):
    """They come from ``python -m src.training.model_card checkpoints/tiny-*``."""
    assert len(SHIPPED) >= 6
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert parts_of(text) == parts_of(model_card(folder))


@pytest.mark.quick
@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_shipped_cards_hold_the_figures_of_metrics_json(folder):
    metadata, body = parts_of((folder / "README.md").read_text(encoding="utf-8"))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metadata["license"] == "mit" and metadata["library_name"] == "transformers"
    assert {"latent-reasoning", "test-time-scaling"} <= set(metadata["tags"])
    (index,) = metadata["model-index"]
    values = [m["value"] for result in index["results"] for m in result["metrics"]]
    if "final" in metrics:
        pools = yaml.safe_load((folder / "recipe.yaml").read_text())["eval_pools"]
        names = ("recall_at_1",) if is_judge(folder) else ("recall_at_1", "weighted_vote", "auc")
        assert values == [metrics["final"][f"{p}_{name}"] for p in pools for name in names]
        assert "reward-model" in metadata["tags"]
        solves = "problems better than its generator" in " ".join(body.split())
        assert solves != is_judge(folder)
    else:
        assert values == [metrics["valid_accuracy"]]
        assert str(metrics["valid_accuracy_by_steps"]["4"]) in body


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_the_commands_of_a_shipped_card_work(folder, tmp_path):
    text = (folder / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python -m src\.(.*)$", text, re.MULTILINE)
    assert len(lines) == (1 if is_judge(folder) else 2)
    for k, line in enumerate(lines):
        flags = ("--limit", 1, "--output_dir", tmp_path / str(k))
        assert_success(run_here(command(*shlex.split(line), *flags)))
    trained = re.findall(r"^accelerate launch -m (\S+) (\S+)$", text, re.MULTILINE)
    is_backbone = folder.name.count("-") == 1  # tiny-codi
    module = "src.train_backbone" if is_backbone else "src.train"
    assert trained == [(module, f"{folder.as_posix()}/recipe.yaml")]


@pytest.mark.quick
def test_a_card_names_base_and_data_of_the_hub_and_claims_no_license_of_others(tmp_path):
    metadata, body = card_of(tmp_path, CODI, BACKBONE)
    assert metadata["base_model"] == "openai-community/gpt2"
    assert metadata["datasets"] == ["openai/gsm8k", "whynlp/gsm8k-aug"]
    assert "license" not in metadata
    assert "The license of `openai-community/gpt2` applies." in body
    assert "43.5 %" in body and "12.5 minutes in float32" in body
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"]["name"] == "gsm8k-main-test"


@pytest.mark.quick
def test_a_card_without_a_validation_or_with_a_local_base_is_written(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    nothing = BACKBONE | {"valid_accuracy": None, "valid_accuracy_by_steps": None}
    metadata, _ = card_of(tmp_path, CODI | {"base": str(base)}, nothing)
    assert "model-index" not in metadata and "base_model" not in metadata
    (base / "recipe.yaml").write_text("train: tiny\n")  # trained here from scratch
    assert card_of(tmp_path, CODI | {"base": str(base)}, BACKBONE)[0]["license"] == "mit"
