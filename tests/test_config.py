from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from utils.config import load_yaml, typed
from utils.errors import UserError


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
        ("rate: fast\ninner: []\n", "rate must be a finite number"),
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


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("1e-4", float, 1e-4), (3, float, 3.0), (None, int | None, None), (2, int | None, 2),
        ("x", str | list[str], "x"), (["a"], str | list[str], ["a"]),
        ({"a": "1e3"}, dict[str, float], {"a": 1e3}), ({"a": [1]}, dict[str, Any], {"a": [1]}),
        (False, Literal[False] | None, False),
    ],
)  # fmt: skip
def test_values_become_what_their_hints_say(value, kind, expected):
    assert typed(value, kind, "key") == expected


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (True, int, "key must be of type int"), ([3], int, "key must be of type int"),
        ([3], int | None, "key must be of type int"), ("x", float | None, "key must be a finite number"),
        (3, str | list[str], "key must be of type list or str"), ({}, float, "key must be of type float"),
        (float("nan"), float, "finite"),
        ([1, "x"], list[int], r"key\[1\] must be of type int"), ({"a": "x"}, dict[str, float], "key.a must be"),
        ([], dict[str, float], "key must hold keys and values"), (True, Literal[False], "key must be of type"),
    ],
)  # fmt: skip
def test_values_of_another_type_are_named(value, kind, said):
    with pytest.raises(UserError, match=said):
        typed(value, kind, "key")
