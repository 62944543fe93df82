"""The package of pyproject.toml: its console commands, its folders, its dependencies."""

import importlib
import tomllib

import pytest

from tests.commands import ROOT

pytestmark = pytest.mark.quick

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS = PYPROJECT["project"]["scripts"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_console_command_has_its_script_s_name_and_an_importable_main(name):
    module, function = SCRIPTS[name].split(":")
    assert name == f"latent-tts-{module.removeprefix('src.').replace('_', '-')}"
    assert function == "main"
    assert callable(getattr(importlib.import_module(module), function))


def test_every_script_is_a_console_command():
    modules = {f"src.{path.stem}:main" for path in (ROOT / "src").glob("*.py")}
    assert set(SCRIPTS.values()) == modules - {"src.__init__:main"}


def test_the_package_holds_every_folder_of_code():
    for room in ("src", "utils"):
        folders = {path.parent for path in (ROOT / room).rglob("*.py")}
        assert all((folder / "__init__.py").is_file() for folder in folders)
    assert PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"] == ["src*", "utils*"]


def test_dependencies_are_those_of_requirements_txt():
    assert "dependencies" not in PYPROJECT["project"]
    dynamic = PYPROJECT["tool"]["setuptools"]["dynamic"]["dependencies"]
    assert (ROOT / dynamic["file"][0]).is_file()
