"""What the two training commands share: their flags, and the push of a finished checkpoint."""

from pathlib import Path

from src.training.trackers import TRACKERS
from utils.cli import Parser
from utils.hub import FLAG, HELP, check_push, push

# Of a finished checkpoint, without the trainer's state and its own checkpoints.
_FILES = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
    "*token*.json", "vocab.json", "merges.txt", "metrics.json", "recipe.yaml", "README.md",
)  # fmt: skip


def training_flags(prog, description):
    """recipe (a path), report_to and push_to_hub of the command line, the latter two or None."""
    parser = Parser(prog=prog, description=description)
    parser.add_argument("recipe", type=Path, help="a YAML file, see training_args/")
    parser.add_argument(
        "--report_to", choices=TRACKERS,
        help="tracker, which writes to output_dir/logs; default: the recipe's, or none",
    )  # fmt: skip
    parser.add_argument(FLAG, metavar="REPO", help=HELP)
    flags = parser.parse_args()
    check_push(flags.push_to_hub)
    return flags


def is_finished(output_dir, text):
    """Whether a folder holds the finished model of the recipe with this YAML text."""
    folder, recipe = Path(output_dir), Path(output_dir) / "recipe.yaml"
    if (folder / "training_state.pt").exists() or not list(folder.glob("*.safetensors")):
        return False
    return recipe.is_file() and recipe.read_text(encoding="utf-8") == text


def push_checkpoint(output_dir, repo):
    """Sends a finished checkpoint to the hub. Raises UserError when that fails."""
    push(Path(output_dir), repo, "model", _FILES)
