"""Command lines with one-line errors, from dataclasses or by hand."""

import argparse
import difflib
from dataclasses import field
from typing import get_type_hints

from transformers import HfArgumentParser

from utils.config import read_yaml, typed
from utils.errors import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors, without the lines of usage."""

    def error(self, message):
        raise UserError(f"{message}; see --help")


class _DataclassParser(HfArgumentParser):
    error = Parser.error


def flag(default, text, choices=None, aliases=()):
    """A field of a dataclass for ``parse_flags``: a flag with its help text."""
    metadata = {"help": text, "aliases": list(aliases)}
    if choices:
        metadata["choices"] = list(choices)
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def flag_actions(cls):
    """argparse's actions of the flags of dataclass ``cls``, in order, without --help."""
    actions = _DataclassParser(cls, allow_abbrev=False)._actions
    return [action for action in actions if action.dest != "help" and action.nargs != 0]


def parse_flags(cls, prog, description, argv=None):
    """An instance of dataclass ``cls`` from the command line; booleans are written --flag false.

    ``--config FILE`` gives flags by a YAML file; the command line wins over it. Raises UserError
    for unknown flags (with the nearest known one) and impossible values.
    """
    parser = _DataclassParser(cls, prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", help="YAML file of flags, such as a run's flags.yaml")
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        options = [option for action in parser._actions for option in action.option_strings]
        raise UserError(f"unknown flag {unknown[0]}: {_hint(unknown[0].split('=')[0], options)}")
    if known.config is not None:
        parser.set_defaults(**_flags_of_file(known.config, cls, parser))
        known = parser.parse_args(argv)
    values = vars(known)
    path = values.pop("config")
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{error} (with the flags of {path})" if path else str(error)) from None


def _flags_of_file(path, cls, parser):
    """{field of ``cls``: value} of a YAML file of flags. Raises UserError naming file and key."""
    actions = {
        option.lstrip("-"): action
        for action in parser._actions
        for option in action.option_strings
        if action.nargs != 0 and action.dest != "config"  # 0: --help and --no_<flag>
    }
    kinds, values, keys = get_type_hints(cls), {}, {}
    for key, value in read_yaml(path).items():
        if key not in actions:
            raise UserError(f"{path}: unknown key {key}: {_hint(str(key), actions)}")
        name, choices = actions[key].dest, actions[key].choices
        if name in keys:
            raise UserError(f"{path}: {keys[name]} and {key} are the same flag; leave one out")
        keys[name], values[name] = key, typed(value, kinds[name], f"{path}: {key}")
        if choices and value not in (None, *choices):
            raise UserError(f"{path}: {key} must be one of {', '.join(choices)}, not {value!r}")
    return values


def _hint(name, known):
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else "see --help"
