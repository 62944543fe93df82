"""YAML recipes and values of hand-written files: typed, and checked."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from tests.conftest import raises_user_error
from tests.recipes import load_yaml
from utils.config import typed

pytestmark = pytest.mark.quick


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


def test_yaml_fills_a_dataclass_and_its_defaults(tmp_path):
    loaded = load(tmp_path, "rate: 1e-4\ninner:\n  - {size: 3}\ntags: [a]\n")
    assert loaded == Outer(1e-4, [Inner(3)], None, ["a"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate: 1\ninner: []\nrato: 2\n", "unknown key rato; known keys: rate"),
        ("rate: 1\nrate: 2\ninner: []\n", "key 'rate' is given twice"),
        ("inner: []\n", "key rate is missing"),
        ("rate: fast\ninner: []\n", "rate must be a finite number"),
        ("rate: 1\ninner: [{size: 1.5}]\n", r"inner\[0\].size must be of type int"),
        ("rate: 1\ninner: 3\n", "inner must be a list"),
        ("rate: [1\n", "not valid YAML"),
        ("- 1\n", "must hold keys"),
    ],
)
def test_a_faulty_recipe_is_a_one_line_error_that_names_file_and_key(tmp_path, text, message):
    with raises_user_error("x.yaml", match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("1e-4", float, 1e-4),
        (3, float, 3.0),
        (None, int | None, None),
        (2, int | None, 2),
        ("x", str | list[str], "x"),
        (["a"], str | list[str], ["a"]),
        ({"a": "1e3"}, dict[str, float], {"a": 1e3}),
        ({"a": [1]}, dict[str, Any], {"a": [1]}),
        (False, Literal[False] | None, False),
    ],
)
def test_values_become_what_their_type_hints_say(value, kind, expected):
    assert typed(value, kind, "key") == expected


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (True, int, "key must be of type int"),
        ([3], int, "key must be of type int"),
        ([3], int | None, "key must be of type int"),
        ("x", float | None, "key must be a finite number"),
        (3, str | list[str], "key must be of type list or str"),
        ({}, float, "key must be of type float"),
        (float("nan"), float, "finite"),
        ([1, "x"], list[int], r"key\[1\] must be of type int"),
        ({"a": "x"}, dict[str, float], "key.a must be"),
        ([], dict[str, float], "key must hold keys and values"),
        (True, Literal[False], "key must be of type"),
    ],
)
def test_a_value_of_another_type_is_an_error_that_names_its_key(value, kind, message):
    with raises_user_error(match=message):
        typed(value, kind, "key")
