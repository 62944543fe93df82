"""YAML files to typed values and dataclasses: unknown, duplicate and missing keys are errors."""

import dataclasses
import hashlib
import math
import re
import types
import typing
from pathlib import Path

import yaml

from utils.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans, true and false: ``no`` is a word here (mixed_precision: no)."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


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
    values = parse_yaml(Path(path).read_text(encoding="utf-8"), path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: the file must hold keys and values")
    return values


def parse_yaml(text, where):
    """The value that a YAML text holds. Raises UserError that begins with ``where``."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None


def build_from(cls, values, where):
    """``build``, with ``where`` at the start of all errors: the file that holds the values."""
    try:
        return build(cls, values)
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None


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
    return cls(**{key: typed(value, hints[key], prefix + key) for key, value in values.items()})


def typed(value, kind, key):
    """``value`` checked against, or converted to, the type hint ``kind``.

    kind: a class, a union, list[..], dict[..], Literal or a dataclass. YAML reads a number such as
    1e-4 as a string; it is converted. Raises UserError naming the key.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is typing.Any or (value is None and type(None) in args):
        return value
    if origin in (types.UnionType, typing.Union):
        return _first_that_fits(value, kind, key)
    if origin is list and isinstance(value, list):
        return [typed(x, args[0], f"{key}[{i}]") for i, x in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {name: typed(x, args[1], f"{key}.{name}") for name, x in value.items()}
    if origin in (list, dict):
        form = "be a list" if origin is list else "hold keys and values"
        raise UserError(f"{key} must {form}, not {value!r}")
    if dataclasses.is_dataclass(kind):
        return build(kind, value, key if key.endswith(".") else f"{key}.")
    if kind is float and type(value) in (int, str, float):
        return _finite(value, key)
    if origin is typing.Literal and value in args:
        return value
    if type(value) is kind:
        return value
    raise _wrong_type(value, kind, key)


def _first_that_fits(value, union, key):
    kinds = [kind for kind in typing.get_args(union) if kind is not type(None)]
    for kind in kinds:
        try:
            return typed(value, kind, key)
        except UserError:
            if len(kinds) == 1:
                raise
    raise _wrong_type(value, union, key)


def _finite(value, key):
    try:
        if math.isfinite(float(value)):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise UserError(f"{key} must be a finite number, of type float, not {value!r}")


def _wrong_type(value, kind, key):
    args = getattr(kind, "__args__", None) or (kind,)
    names = {getattr(arg, "__name__", str(arg)) for arg in args} - {"NoneType"}
    return UserError(f"{key} must be of type {' or '.join(sorted(names))}, not {value!r}")


def check_seed(seed, name="seed"):
    """The one rule for seeds. Raises ValueError."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"{name} must lie between 0 and 2^63 - 1, not {seed}")


def seed_of_32_bits(seed):
    """A seed for libraries that take 32 bits: the seed itself, or a digest of a larger one."""
    return seed if seed < 2**32 else int(hashlib.sha256(str(seed).encode()).hexdigest()[:8], 16)
