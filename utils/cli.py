"""Command lines with one-line errors, from dataclasses or by hand."""

import argparse
import difflib
import sys
from dataclasses import field
from typing import get_type_hints

from transformers import HfArgumentParser

from utils.config import read_yaml, typed
from utils.errors import UserError
from utils.release import COMMANDS, is_ignored, note_ignored, take_ignored

_GENERATION = "generation_"  # what the release's annotation begins the flags of its sampling with


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors, without the lines of usage."""

    def error(self, message):
        raise UserError(f"{message}; see --help")


class _DataclassParser(HfArgumentParser):
    """The flags of a dataclass. Those of its ``generation_flags`` also begin with generation_."""

    error = Parser.error

    def __init__(self, cls, **options):
        self._generation_flags = getattr(cls, "generation_flags", ())
        super().__init__(cls, allow_abbrev=False, **options)

    def add_argument(self, *names, synonyms=None, **options):
        if names[0].removeprefix("--") in self._generation_flags:
            names += tuple(f"--{_GENERATION}{name[2:]}" for name in names if "-" not in name[2:])
        if synonyms:
            options["type"] = lambda text: synonyms.get(text, text)
        return super().add_argument(*names, **options)


def flag(default, text, choices=None, aliases=(), synonyms=None):
    """A field of a dataclass for ``parse_flags``: a flag with its help text.

    synonyms: {another word for a choice: the choice}.
    """
    metadata = {"help": text, "aliases": list(aliases), "synonyms": synonyms}
    if choices:
        metadata["choices"] = list(choices)
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def flag_actions(cls):
    """argparse's actions of the flags of dataclass ``cls``, in order, without --help."""
    actions = _DataclassParser(cls)._actions
    return [action for action in actions if action.dest != "help" and action.nargs != 0]


def parse_flags(cls, prog, description, argv=None):
    """An instance of dataclass ``cls`` from the command line; booleans are written --flag false.

    ``--config FILE`` gives flags by a YAML file; the command line wins over it. Names of the public
    release that have no effect here are named on stderr. Raises UserError for unknown flags (with
    the nearest known one) and impossible values.
    """
    parser = _DataclassParser(cls, prog=prog, description=description)
    parser.add_argument("--config", help="YAML file of flags, such as a run's flags.yaml")
    options = [option for action in parser._actions for option in action.option_strings]
    argv, ignored = take_ignored(sys.argv[1:] if argv is None else argv, COMMANDS, options)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(f"unknown flag {unknown[0]}: {hint(unknown[0].split('=')[0], options)}")
    keys = {}  # of the file, with no effect
    if known.config is not None:
        defaults, keys = _flags_of_file(known.config, cls, parser)
        parser.set_defaults(**defaults)
        known = parser.parse_args(argv)
    values = vars(known)
    path = values.pop("config")
    try:
        arguments = cls(**values)
    except ValueError as error:
        raise UserError(f"{error} (with the flags of {path})" if path else str(error)) from None
    note_ignored(ignored, COMMANDS)
    note_ignored(keys, COMMANDS, f"{path}: ")
    return arguments


def _flags_of_file(path, cls, parser):
    """{field of ``cls``: value} of a YAML file of flags, and {key: value} of keys without effect.

    Raises UserError naming file and key.
    """
    actions = {
        option.lstrip("-"): action
        for action in parser._actions
        for option in action.option_strings
        if action.nargs != 0 and action.dest != "config"  # 0: --help and --no_<flag>
    }
    given = read_yaml(path)
    ignored = {key: x for key, x in given.items() if _has_no_effect(key, actions)}
    kinds, values, keys = get_type_hints(cls), {}, {}
    for key, value in given.items():
        if key in ignored:
            continue
        if key not in actions:
            raise UserError(f"{path}: unknown key {key}: {hint(str(key), actions)}")
        name = actions[key].dest
        if name in keys:
            raise UserError(f"{path}: {keys[name]} and {key} are the same flag; leave one out")
        value = typed(value, kinds[name], f"{path}: {key}")
        keys[name], values[name] = key, _choice(value, actions[key], f"{path}: {key}")
    return values, ignored


def _has_no_effect(key, actions):
    return key not in actions and is_ignored(str(key), COMMANDS)


def _choice(value, action, key):
    """The value, once it is known as one of the action's choices, if there are any."""
    if value is None or not action.choices:
        return value
    choice = action.type(value)
    if choice not in action.choices:
        raise UserError(f"{key} must be one of {', '.join(action.choices)}, not {value!r}")
    return choice


def hint(name, known):
    """What to say of an unknown name: the nearest known one, or --help."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else "see --help"
