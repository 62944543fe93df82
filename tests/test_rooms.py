"""The code's layout: which folder may import which, short functions, short lines."""

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "utils": {"utils"},
    "src/sampling": {"utils", "src.sampling"},
    "src/sampling/samplers": {"utils", "src.sampling"},
    "src/models": {"utils", "src.sampling", "src.models"},
    "src/search": {"utils", "src.sampling", "src.search"},
    "src/training": {"utils", "src.sampling", "src.models", "src.training"},
    "src/training/losses": {"utils", "src.sampling", "src.models", "src.training"},
    "src/runs": {"utils", "src.sampling", "src.models", "src.search", "src.runs"},
    "src/claims": {
        *("utils", "src.sampling", "src.models", "src.search", "src.runs", "src.claims"),
    },
}
CODE = ("src", "utils", "tests", "benchmarks")
TEXTS = (
    "README.md",
    "docs/*.md",
    "training_args/*.yaml",
    "checkpoints/README.md",
    "*.sh",
    "utils/*.sh",
)
LONGEST_FUNCTION = 40  # lines, with definition and docstring
LONGEST_LINE = 100


def imported_rooms(path):
    """The project's folders from which a file imports, as ``utils`` or ``src.sampling``."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names.append(node.module)
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    parts = [name.split(".") for name in names]
    return {".".join(p[: 2 if p[0] == "src" else 1]) for p in parts if p[0] in CODE}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_folder_imports_only_what_the_map_allows(room):
    files = list((ROOT / room).glob("*.py"))
    assert files
    for path in files:
        assert imported_rooms(path) <= MAY_IMPORT[room], path


def test_every_folder_of_src_is_on_the_map():
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert rooms - {"src"} == set(MAY_IMPORT) - {"utils"}


def map_of_readme():
    """{folder: what it may import} by the table in README's section "Code layout".

    Its last column lists folders in backticks, or says "all above" or "all above but" some.
    """
    section = (ROOT / "README.md").read_text().partition("## Code layout")[2].partition("\n## ")[0]
    rooms, above = {}, set()
    for line in section.splitlines():
        folder = re.match(r"\| `(utils|src/\w+)` \|", line)
        if folder is None:
            continue
        imports = line.rstrip("| ").rpartition("|")[2]
        named = set(re.findall(r"`([^`]+)`", imports))
        allowed = above - named if "all above" in imports else named
        rooms[folder[1]] = {room.replace("/", ".") for room in allowed | {folder[1]}}
        above.add(folder[1])
    return rooms


def test_the_map_is_that_of_the_readme():
    inner = ("src/training/losses", "src/sampling/samplers")
    of_folders = {room: may for room, may in MAY_IMPORT.items() if room not in inner}
    assert map_of_readme() == of_folders


def long_functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if lines > LONGEST_FUNCTION:
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines"


@pytest.mark.parametrize("folder", CODE)
def test_every_function_fits_on_a_screen(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    assert not [function for path in files for function in long_functions(path)]


def long_lines(path):
    """Lines that could be wrapped: no table rows, URLs, or code in fences."""
    in_fence = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_fence = not in_fence
        is_prose = not in_fence and not line.startswith("|") and "://" not in line
        if is_prose and len(line) > LONGEST_LINE:
            yield f"{path.relative_to(ROOT)}:{number}: {len(line)} characters"


@pytest.mark.parametrize("pattern", TEXTS)
def test_no_line_of_a_text_recipe_or_script_is_too_long(pattern):
    files = sorted(ROOT.glob(pattern))
    assert files
    assert not [line for path in files for line in long_lines(path)]
