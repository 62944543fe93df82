"""The shipped recipes load, and the commands in their comments make what they name."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from src.runs.commands import COMMANDS
from src.training.backbone_recipe import Recipe
from tests.commands import ENVIRONMENT, ROOT
from tests.recipes import load_recipe, load_yaml
from utils.benchmarks import BENCHMARKS
from utils.cli import parse_flags

pytestmark = pytest.mark.quick
FILES = sorted((ROOT / "training_args").glob("*.yaml"))
RECIPES = [path for path in FILES if path.name.startswith(("train_", "backbone_"))]
FLAGS = [path for path in FILES if path not in RECIPES]  # of commands, for --config
SHIPPED = {f"data/tiny_{name}.json" for name in ("test", "valid", "multi", "hard")}
PAPER = {f"data/{name}.json" for name in BENCHMARKS}


def comments(path):
    return "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_shipped_recipe_loads_and_names_its_command(path):
    module = "train_backbone" if path.name.startswith("backbone") else "train"
    command = rf"accelerate launch( --multi_gpu)? -m src\.{module} training_args/{path.name}"
    assert re.search(command, comments(path))
    if module == "train":
        recipe = load_recipe(path)
        assert recipe.metric_for_best_model in ("test_n_64_recall_at_1", "test_n_64_auc")
        assert "test_n_64" in recipe.eval_pools
        assert recipe.report_to == []
    else:
        recipe = load_yaml(path, Recipe)
        assert {recipe.train, recipe.valid, *recipe.held_out} <= SHIPPED | PAPER | {"tiny"}
    # the official COCONUT trains in float32, and so does a pool judge
    official = {"backbone_coconut.yaml", "backbone_cot_gpt2.yaml"}
    precision = yaml.safe_load(path.read_text()).get("mixed_precision", "no")
    in_float32 = path.name in official or "pool_judge" in path.name
    assert precision == ("no" if in_float32 else "auto")


@pytest.mark.parametrize("path", FLAGS, ids=lambda path: path.name)
def test_a_shipped_file_of_flags_is_one_of_the_command_that_it_names(path):
    name, flags = re.search(
        rf"python -m (src\.\w+) (--config .*{path.name})", comments(path)
    ).groups()
    arguments = parse_flags(COMMANDS[name].arguments, name, "", flags.split())
    assert arguments.data_path in SHIPPED
    values = yaml.safe_load(path.read_text())
    values["output_dir"] = values["output_dir"].format(sampler=arguments.sampler_name)
    assert {key: getattr(arguments, key) for key in values} == values


@pytest.fixture
def stubs(tmp_path):
    """A PATH whose python records what src.sweep is given and runs nothing."""
    (tmp_path / "python").write_text(
        '#!/bin/sh\n[ "$2" = src.sweep ] && cat "$3" >>"$RECORD"\n'
        '[ "$1" != -c ] || echo 1\nexit 0\n'
    )
    (tmp_path / "python").chmod(0o755)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    "path", [p for p in RECIPES if p.name.startswith("train")], ids=lambda p: p.name
)
def test_a_recipe_s_commands_make_its_pools(path, stubs, tmp_path):
    text = re.sub(r"\\\n# *", "", comments(path))  # continued lines
    lines = re.findall(r"((?:[A-Z_]+=\S+ )*)\./run_annotation\.sh", text)
    assert lines, "names no command that makes its pools"
    record = tmp_path / "record"
    for settings in lines:
        environment = dict(setting.split("=", 1) for setting in settings.split())
        environment |= {
            "SAVE_PATH": str(tmp_path / "annotated"),
            "RECORD": str(record),
            "PATH": stubs,
        }
        done = subprocess.run(
            ["bash", "run_annotation.sh"], cwd=ROOT, env=ENVIRONMENT | environment,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    recipe = load_recipe(path)
    cells = [shlex.split(line) for line in record.read_text().splitlines()]
    made = {cell[cell.index("--name") + 1]: cell for cell in cells}
    for pool in (*recipe.train_pools, *recipe.eval_pools.values()):
        assert Path(pool).parent == Path("outputs/annotated")
        cell = made[Path(pool).name]
        assert cell[cell.index("--model_type") + 1] == recipe.model_type
        assert cell[cell.index("--model_id") + 1] == recipe.model_id
        rollouts = int(cell[cell.index("--n_samples_per_step") + 1])
        needs_none = recipe.labels == "outcome" or recipe.judges_pool
        assert rollouts > 0 or needs_none or pool in recipe.eval_pools.values()


PAGE = ROOT / "docs/recipes.md"
PAPERS = {  # section of docs/recipes.md: its recipes
    "CoT model, where COCONUT starts": ["backbone_cot_gpt2"],
    "COCONUT": ["backbone_coconut"],
    "CODI": ["backbone_codi", "backbone_codi_llama"],
    "CoLaR": ["backbone_colar"],
    "CoT model, where CoLaR starts": ["backbone_cot_llama"],
    "LatentRM": ["train_coconut", "train_codi", "train_colar"],
}
# what the page need not explain: places of files, and how often a training reports
PLACES = {
    "output_dir", "train", "valid", "model_type", "config.prompt_prefix", "format_of", "model_id",
    "train_pools",
    "eval_pools.test_n_4", "eval_pools.test_n_64", "logging_steps", "report_to",
    "per_device_eval_batch_size", "save_strategy",
    "save_steps", "eval_strategy",
}  # fmt: skip


def documented(section):
    """{key: [values]} of the column "ours" of a section; several recipes are parted by ;."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    found = {}
    for line in text.splitlines():
        if not line.startswith("| `"):
            continue
        names, _, ours, _ = (cell.strip() for cell in line.strip("|").split("|"))
        keys = re.findall(r"`([\w.]+)`", names)
        values = [value.strip() for value in ours.split(";")]
        if len(keys) > 1:  # one value of each key
            for key, value in zip(keys, ours.split(","), strict=True):
                found[key] = [value.strip()]
        else:
            found[keys[0]] = values
    return found


def settings_of(name):
    """{dotted key: text} of a recipe; a stage's key has the values of all stages."""
    values = yaml.safe_load((ROOT / f"training_args/{name}.yaml").read_text())
    stages = values.pop("stages", [])
    for key in {key for stage in stages for key in stage}:
        different = list(dict.fromkeys(str(stage.get(key)) for stage in stages))
        every = [stage.get(key) for stage in stages]
        values[f"stages.{key}"] = every[0] if len(different) == 1 else every
    flat = {}
    for key, value in values.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{key}.{name}".rstrip("."): of for name, of in inner}
    return {key: _text_of(value) for key, value in flat.items()}


def _text_of(value):
    if isinstance(value, list):
        return ", ".join(map(_text_of, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def default_of(name, key):
    """The text of a value that a recipe does not give, as the training has it."""
    path = ROOT / f"training_args/{name}.yaml"
    value = load_recipe(path) if name.startswith("train") else load_yaml(path, Recipe)
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part, None)
    return _text_of(value)


@pytest.mark.parametrize("section", PAPERS)
def test_the_page_of_recipes_has_a_row_for_every_key_with_its_value(section):
    page = documented(section)
    for place, name in enumerate(PAPERS[section]):
        settings = settings_of(name)
        assert settings.keys() - PLACES - page.keys() == set(), "no row on the page"
        for key in page:
            values = page[key]
            value = values[min(place, len(values) - 1)]
            if re.fullmatch(r"[\d.]+e-?\d+", value):
                value = f"{float(value):g}"
            ours = settings[key] if key in settings else default_of(name, key)
            assert value == ours, key
