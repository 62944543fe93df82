"""Flags and keys of the paper's public release that have no effect here, and why."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from utils.errors import UserError, warn

COMMANDS = "the commands that run a model"
REWARD_MODELS, BACKBONES = "the training of a LatentRM", "the training of a backbone"


@dataclass(frozen=True)
class NoEffect:
    """Why a name of the release is accepted and ignored.

    only: the one value that may be ignored, for what this project always does, or None for any.
    places: where; in a training both the keys of the recipe and the flags.
    """

    reason: str
    only: bool | None = None
    places: tuple = (COMMANDS, REWARD_MODELS, BACKBONES)


_PROGRESS = NoEffect("progress is always shown, without a terminal as a line every 15 seconds")
_ARCHITECTURE = "the checkpoint's config.json names the architecture"
_UNMIXED = NoEffect(
    "questions that all trajectories solve, or none, never get rollouts", True, (COMMANDS,)
)
_ALWAYS_SAMPLES = NoEffect("an annotation always samples", True, (COMMANDS,))
IGNORED = {
    "use_wandb": NoEffect("--report_to wandb does that, in a training"),
    "wandb_*": NoEffect("W&B takes it from the environment, as WANDB_PROJECT and WANDB_ENTITY"),
    "sort_by_len": NoEffect("batches always hold questions of similar length", None, (COMMANDS,)),
    "progress_bar": _PROGRESS,
    "batch_progress_bar": _PROGRESS,
    "datasets_progress_bar": _PROGRESS,
    "monitor_interval": _PROGRESS,
    "prm_model_family": NoEffect(_ARCHITECTURE, None, (COMMANDS,)),
    "save_freq": NoEffect("a shard is written every --shard_size questions", None, (COMMANDS,)),
    "save_answers": NoEffect("answers are always saved", None, (COMMANDS,)),
    "remove_all_correct": _UNMIXED,
    "remove_all_false": _UNMIXED,
    "generation_do_sample": _ALWAYS_SAMPLES,
    "generation_latent_do_sample": _ALWAYS_SAMPLES,
    "disable_dropout": NoEffect("a LatentRM always trains without dropout", True, (REWARD_MODELS,)),
    "dataset_num_proc": NoEffect("pools are read as they are", None, (REWARD_MODELS,)),
    "latent_hidden_size": NoEffect("the generator's config.json holds it", None, (REWARD_MODELS,)),
    "save_only_model": NoEffect(
        "checkpoints hold what a training needs to resume", None, (REWARD_MODELS,)
    ),
}


def is_ignored(name, place):
    """Whether a name, without dashes, has no effect in ``place``, one of the above."""
    return _entry(name, place) is not None


def take_ignored(argv, place, known):
    """argv without flags that have no effect, and {flag as it was written: its value, a string}.

    known: flags that argv may hold; they stay, whatever the table says. As in the release, a word
    that follows a flag without "=" is its value, unless it is a flag or a YAML file.
    """
    kept, ignored, words = [], {}, list(argv)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        if not flag.startswith("--") or flag in known or not is_ignored(name, place):
            kept.append(word)
            continue
        if not equals:
            alone = not words or words[0].startswith("--") or words[0].endswith((".yaml", ".yml"))
            value = "true" if alone else words.pop(0)
        ignored[flag] = value
    return kept, ignored


def note_ignored(ignored, place, where=""):
    """Says on stderr, a line each, that names have no effect.

    ignored: {name, perhaps with dashes: value}. where: what a line begins with, such as a file.
    Raises UserError where a value asks for what can't be had.
    """
    entries = {name: _entry(name.lstrip("-").replace("-", "_"), place) for name in ignored}
    for name, entry in entries.items():
        if entry.only is not None and str(ignored[name]).lower() != str(entry.only).lower():
            fault = f"{name} {ignored[name]} is not supported: {entry.reason}"
            raise UserError(f"{where}{fault}; leave it out")
    for name, entry in entries.items():
        warn(f"{where}{name} has no effect here because {entry.reason}")


def _entry(name, place):
    matches = (
        entry
        for pattern, entry in IGNORED.items()
        if fnmatchcase(name, pattern) and place in entry.places
    )
    return next(matches, None)
