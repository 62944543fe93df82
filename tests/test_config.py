from dataclasses import dataclass, field
from pathlib import Path

import pytest

from src.training.backbone import Recipe
from utils.config import load_yaml
from utils.errors import UserError

ARGS = Path(__file__).parents[1] / "training_args"


@dataclass
class Inner:
    size: int


@dataclass
class Outer:
    rate: float
    inner: list[Inner]
    name: str | None = None
    tags: list[str] = field(default_factory=list)


def load(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return load_yaml(path, Outer)


def test_values(tmp_path):
    loaded = load(tmp_path, "rate: 1e-4\ninner:\n  - {size: 3}\ntags: [a]\n")
    assert loaded == Outer(1e-4, [Inner(3)], None, ["a"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate: 1\ninner: []\nrato: 2\n", "unknown key rato; known keys: rate"),
        ("rate: 1\nrate: 2\ninner: []\n", "key 'rate' is given twice"),
        ("inner: []\n", "key rate is missing"),
        ("rate: fast\ninner: []\n", "rate must be of type float"),
        ("rate: 1\ninner: [{size: 1.5}]\n", r"inner\[0\].size must be of type int"),
        ("rate: 1\ninner: 3\n", "inner must be a list"),
        ("rate: [1\n", "not valid YAML"),
        ("- 1\n", "must hold keys"),
    ],
)
def test_faults_name_file_and_key(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path, text)
    assert "x.yaml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted(ARGS.glob("backbone_*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_load(path):
    assert load_yaml(path, Recipe).stages
