"""Reads frozen dataclasses from JSON and changes them by `key=value`, by their type hints alone."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from vla_align_ros.errors import ConfigurationError

Config = TypeVar("Config")

LATER: Mapping[str, bool] = {"later": True}
"""Metadata of a field that came after runs were stored: its default is what they did without it."""


def rebuild(kind: type[Config], data: Any, *, complete: bool = True) -> Config:
    """Make a `kind` (a dataclass) of what `dataclasses.asdict` and JSON made of one.

    Knows nested dataclasses, tuple[X, ...], Mapping, Literal, X | None and scalars. With `complete`
    every field but a `LATER` one must be there; without, those that have a default may be missing.
    What does not fit is a ValueError that names the field.
    """
    value: Config = _rebuild(kind, data, kind.__name__, complete)
    return value


def store(config: Any) -> dict[str, Any]:
    """`dataclasses.asdict`, but without `LATER` fields that have their default.

    What was stored, compared or hashed before there were such fields thus stays the same.
    """
    values = dataclasses.asdict(config)
    _leave_out_later(config, values)
    return values


def override(config: Config, settings: Sequence[str]) -> Config:
    """Apply `key=value` settings such as `optim.lr=1e-4`; values are JSON, or bare words.

    An unknown key, or a value of another type than the field's, raises ConfigurationError.
    """
    for setting in settings:
        path, separator, text = setting.partition("=")
        if not separator:
            raise ConfigurationError(
                "Not a setting", got=repr(setting), expected="key=value", fix="for example seed=1"
            )
        config = _replace(config, path.split("."), text, path)
    return config


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested {"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        flat |= flatten(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flat


def _leave_out_later(node: Any, values: dict[str, Any]) -> None:
    for field in dataclasses.fields(node):
        part = getattr(node, field.name)
        if _came_later(field) and part == field.default:
            del values[field.name]
        elif dataclasses.is_dataclass(part):
            _leave_out_later(part, values[field.name])


def _rebuild(kind: Any, value: Any, path: str, complete: bool) -> Any:
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _rebuild_dataclass(typing.cast(type, kind), value, path, complete)
    if origin in (typing.Union, types.UnionType):
        return _rebuild_union(options, value, path, complete)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_rebuild(options[0], item, path, complete) for item in value)
    if _fits(value, kind):
        return float(value) if kind is float else value
    raise ValueError(f"{path}: {value!r} is no {_describe(kind)}")


def _rebuild_dataclass(kind: type, value: Any, path: str, complete: bool) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{path}: {value!r} is no {kind.__name__}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(value) - set(fields)):
        raise ValueError(f"{path}: no field {', '.join(unknown)}")
    missing = sorted(
        name
        for name, field in fields.items()
        if name not in value and not (_came_later(field) if complete else _has_default(field))
    )
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} missing")
    hints = typing.get_type_hints(kind)
    parts = {
        name: _rebuild(hints[name], part, f"{path}.{name}", complete)
        for name, part in value.items()
    }
    return kind(**parts)


def _rebuild_union(options: Sequence[Any], value: Any, path: str, complete: bool) -> Any:
    if value is None and types.NoneType in options:
        return None
    errors = []
    for option in options:
        if option is not types.NoneType:
            try:
                return _rebuild(option, value, path, complete)
            except ValueError as error:
                errors.append(str(error))
    raise ValueError(errors[0])


def _came_later(field: dataclasses.Field[Any]) -> bool:
    return field.metadata.get("later", False)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _replace(node: Any, keys: list[str], text: str, path: str) -> Any:
    names = [f.name for f in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []
    if keys[0] not in names:
        raise ConfigurationError(
            "No such setting",
            got=path,
            expected="one of " + ", ".join(names) if names else "a value that has no parts",
            fix="correct --set",
        )
    if len(keys) > 1:
        child = _replace(getattr(node, keys[0]), keys[1:], text, path)
    else:
        child = _parse(text, typing.get_type_hints(type(node))[keys[0]], path)
    return dataclasses.replace(node, **{keys[0]: child})


def _parse(text: str, kind: Any, path: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    try:
        return _rebuild(kind, value, path, complete=False)
    except ValueError as error:
        raise ConfigurationError(
            f"Wrong value for {path}", got=text, expected=_describe(kind), fix="correct --set"
        ) from error


def _fits(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin is Literal:
        return value in typing.get_args(kind)
    if kind is Mapping or origin is Mapping or (isinstance(origin, type) and origin is dict):
        return isinstance(value, dict)
    if kind is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(kind, type) and isinstance(value, kind)


def _describe(kind: Any) -> str:
    return str(kind).replace("collections.abc.", "").replace("typing.", "")
