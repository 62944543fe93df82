"""YAML files to typed dataclasses: unknown, duplicate and missing keys are errors."""

import dataclasses
import types
import typing
from pathlib import Path

import yaml

from utils.errors import UserError


class _Loader(yaml.SafeLoader):
    pass


def _mapping(loader, node):
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise UserError(f"line {node.start_mark.line + 1}: key {sorted(twice)[0]!r} is given twice")
    return {
        key: loader.construct_object(value, deep=True)
        for key, (_, value) in zip(keys, node.value, strict=True)
    }


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path):
    """The keys and values of a YAML file. Raises UserError naming file and fault."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; settings are in training_args/")
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except (UserError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: the file must hold keys and values")
    return values


def load_yaml(path, cls):
    """The YAML file ``path`` as an instance of dataclass ``cls``; nested dataclasses are filled too.

    Raises UserError naming file, key and mend.
    """
    try:
        return build(cls, read_yaml(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    except UserError as error:
        line = str(error)
        raise UserError(line if line.startswith(str(path)) else f"{path}: {line}") from None


def build(cls, values, prefix=""):
    """A dataclass from a plain dict, with types checked. Raises UserError naming the key."""
    if not isinstance(values, dict):
        raise UserError(f"{prefix or 'the file'} must hold keys and values")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise UserError(f"unknown key {prefix}{key}; known keys: {', '.join(fields)}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UserError(f"key {prefix}{name} is missing")
    return cls(**{key: _convert(value, hints[key], prefix + key) for key, value in values.items()})


def _convert(value, kind, key):
    if isinstance(kind, types.UnionType):
        if value is None and type(None) in kind.__args__:
            return None
        kind = next(arg for arg in kind.__args__ if arg is not type(None))
    if typing.get_origin(kind) is list:
        if not isinstance(value, list):
            raise UserError(f"{key} must be a list")
        (item,) = typing.get_args(kind)
        return [_convert(x, item, f"{key}[{i}].") for i, x in enumerate(value)]
    if dataclasses.is_dataclass(kind):
        return build(kind, value, key if key.endswith(".") else f"{key}.")
    return _scalar(value, kind, key)


def _scalar(value, kind, key):
    if kind is float and type(value) in (int, str):  # YAML reads 1e-4 as a string
        try:
            return float(value)
        except ValueError:
            pass
    if type(value) is not kind:
        raise UserError(f"{key} must be of type {kind.__name__}, not {value!r}")
    return value


def number(key, value):
    """A number of a YAML file, which reads 1e-4 as a string. Raises ValueError naming the key."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key} must be a number, not {value!r}") from None
