"""Command lines with one-line errors, from dataclasses or by hand."""

import argparse
import difflib

from transformers import HfArgumentParser

from utils.errors import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors, without the lines of usage."""

    def error(self, message):
        raise UserError(f"{message}; see --help")


class _DataclassParser(HfArgumentParser):
    error = Parser.error


def parse_flags(cls, prog, description, argv=None):
    """An instance of dataclass ``cls`` from the command line; booleans are written --flag false.

    Raises UserError for unknown flags (with the nearest known one) and impossible values.
    """
    parser = _DataclassParser(cls, prog=prog, description=description, allow_abbrev=False)
    try:
        known, unknown = parser.parse_known_args(argv)
        if unknown:
            raise UserError(_unknown(unknown[0], parser))
        return cls(**vars(known))
    except ValueError as error:
        raise UserError(str(error)) from None


def _unknown(flag, parser):
    flags = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(flag.split("=")[0], flags, 1)
    hint = f"did you mean {near[0]}?" if near else "see --help"
    return f"unknown flag {flag}: {hint}"
