"""What both trainings share: recipe and flags, and the push of a finished checkpoint."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from src.training.trackers import TRACKERS
from utils.cli import Parser, hint
from utils.config import parse_yaml, read_yaml
from utils.errors import UserError
from utils.hub import FLAG, HELP, check_push, push
from utils.release import is_ignored, note_ignored, take_ignored

# Of a finished checkpoint, without the trainer's state and its own checkpoints.
_FILES = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
    "*token*.json", "vocab.json", "merges.txt", "metrics.json", "recipe.yaml", "README.md",
)  # fmt: skip


@dataclass(frozen=True)
class RecipeSource:
    """A recipe as a command line gives it: a file, and {key: value} that wins over it."""

    path: Path
    overrides: dict = field(default_factory=dict)

    @property
    def name(self):
        """What errors begin with: the file, with the flags."""
        flags = "".join(f" --{key}={value}" for key, value in self.overrides.items())
        return f"{self.path}{flags and f' with{flags}'}"

    def values(self, place, known, rivals=None):
        """{key: value} of the recipe. Names keys of the release without effect on stderr.

        place: which training, of utils.release. known: the keys that a recipe may have. rivals:
        {key: keys that it decides}: a flag takes the place of the file's keys of both kinds.
        Raises UserError for unknown flags.
        """
        for key in self.overrides:
            if key not in known:
                raise UserError(f"unknown flag --{key}: {hint(f'--{key}', _flags(known))}")
        replaced = _replaced(self.overrides, rivals or {})
        values = {key: x for key, x in read_yaml(self.path).items() if key not in replaced}
        ignored = {key: x for key, x in values.items() if is_ignored(str(key), place)}
        note_ignored(ignored, place, f"{self.path}: ")
        return {key: x for key, x in values.items() if key not in ignored} | self.overrides

    def text(self, values):
        """The YAML text of the recipe: the file's own, unless its values are others by now."""
        if values == read_yaml(self.path):
            return self.path.read_text(encoding="utf-8")
        return yaml.safe_dump(values, sort_keys=False)


def _flags(keys):
    return [f"--{key}" for key in keys]


def _replaced(overrides, rivals):
    """The keys of a file that flags take the place of."""
    decided = {other for key in overrides for other in rivals.get(key, ())}
    return decided | {key for key, others in rivals.items() if set(others) & overrides.keys()}


def training_flags(prog, description, place):
    """source (a RecipeSource), report_to and push_to_hub, the latter two None unless given.

    place: which training, of utils.release.
    """
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("recipe", type=Path, help="a YAML file, see training_args/")
    parser.add_argument(
        "--report_to", choices=TRACKERS,
        help="tracker, which writes to output_dir/logs; default: the recipe's, or none",
    )  # fmt: skip
    parser.add_argument(FLAG, metavar="REPO", help=HELP)
    parser.epilog = "--KEY=VALUE gives any key of the recipe, in place of the file's."
    argv, ignored = take_ignored(sys.argv[1:], place, ())
    options = [option for action in parser._actions for option in action.option_strings]
    argv, overrides = _take_overrides(argv, options)
    flags = parser.parse_args(argv)
    check_push(flags.push_to_hub)
    note_ignored(ignored, place)
    flags.source = RecipeSource(flags.recipe, overrides)
    return flags


def _take_overrides(argv, options):
    """argv without the flags that are no ``options``, and {key: value} of those, read as YAML."""
    kept, overrides, words = [], {}, list(argv)
    while words:
        word = words.pop(0)
        flag, equals, text = word.partition("=")
        if not flag.startswith("--") or flag in options:
            kept.append(word)
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                raise UserError(f"{flag} needs a value: {flag}=VALUE")
            text = words.pop(0)
        overrides[flag[2:].replace("-", "_")] = parse_yaml(text, flag)
    return kept, overrides


def is_finished(output_dir, values):
    """Whether a folder holds the finished model of the recipe with these values."""
    folder, recipe = Path(output_dir), Path(output_dir) / "recipe.yaml"
    if (folder / "training_state.pt").exists() or not list(folder.glob("*.safetensors")):
        return False
    return recipe.is_file() and read_yaml(recipe) == values


def push_checkpoint(output_dir, repo):
    """Sends a finished checkpoint to the hub. Raises UserError when that fails."""
    push(Path(output_dir), repo, "model", _FILES)
