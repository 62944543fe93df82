"""The map of the rooms in the README: which folder may import which."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "utils": {"utils"},
    "src/sampling": {"utils", "src.sampling"},
    "src/models": {"utils", "src.sampling", "src.models"},
    "src/search": {"utils", "src.sampling", "src.search"},
    "src/training": {"utils", "src.sampling", "src.models", "src.training"},
    "src/training/losses": {"utils", "src.sampling", "src.models", "src.training"},
    "src/runs": {"utils", "src.sampling", "src.models", "src.search", "src.runs"},
}


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.split(".")[0] in ("src", "utils", "tests", "benchmarks"):
                yield (
                    ".".join(name.split(".")[:2]) if name.startswith("src.") else name.split(".")[0]
                )


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_the_map_allows(room):
    files = list((ROOT / room).glob("*.py"))
    assert files
    for path in files:
        assert set(imported_rooms(path)) <= MAY_IMPORT[room], path


def test_every_room_is_on_the_map():
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert rooms - {"src"} == set(MAY_IMPORT) - {"utils"}
