"""Reads frozen dataclasses from JSON and changes them by `key=value`, by their type hints alone."""

from __future__ import annotations

import collections.abc
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

_WORDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "a word or text",
    types.NoneType: "null",
}


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

    They are applied in their order and checked together at the end, so that some may be valid only
    beside others. A part that is None is made of the settings below it, and of its defaults. An
    unknown key, or a value of another type than the field's, raises ConfigurationError.
    """
    draft = _Draft.of(config)
    for setting in settings:
        path, separator, text = setting.partition("=")
        if not separator:
            raise ConfigurationError(
                "Not a setting", got=repr(setting), expected="key=value", fix="for example seed=1"
            )
        draft.change(path.split("."), text, path)
    changed: Config = draft.build()
    return changed


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


@dataclasses.dataclass
class _Draft:
    """A frozen dataclass that settings are applied to: its checks run when it is built."""

    kind: type
    values: dict[str, Any]
    path: str = ""

    @classmethod
    def of(cls, node: Any, path: str = "") -> _Draft:
        names = [field.name for field in dataclasses.fields(node)]
        return cls(type(node), {name: getattr(node, name) for name in names}, path)

    def change(self, keys: Sequence[str], text: str, path: str) -> None:
        """Set what `keys` lead to; `path`: all of them, for messages."""
        key, *below = keys
        names = [field.name for field in dataclasses.fields(self.kind)]
        if key not in names:
            raise _no_such(path, "one of " + ", ".join(names))
        kind = typing.get_type_hints(self.kind)[key]
        if not below:
            self.values[key] = _parse(text, kind, path)
            return
        part = self.values.get(key)
        if not isinstance(part, _Draft):
            part = self._open(key, kind, part)
            if part is None:
                raise _no_such(path, "a value that has no parts")
            self.values[key] = part
        part.change(below, text, path)

    def _open(self, key: str, kind: Any, part: Any) -> _Draft | None:
        path = f"{self.path}.{key}" if self.path else key
        if dataclasses.is_dataclass(part):
            return _Draft.of(part, path)
        options = [option for option in typing.get_args(kind) if dataclasses.is_dataclass(option)]
        return _Draft(typing.cast(type, options[0]), {}, path) if part is None and options else None

    def build(self) -> Any:
        missing = [
            field.name
            for field in dataclasses.fields(self.kind)
            if field.name not in self.values and not _has_default(field)
        ]
        if missing:
            raise ConfigurationError(
                f"{self.path} lacks a setting",
                got=", ".join(f"{self.path}.{key}" for key in self.values),
                expected=" and ".join(f"{self.path}.{key}" for key in missing) + " too",
                fix=f"--set {self.path}.{missing[0]}=...",
            )
        parts = self.values.items()
        return self.kind(**{key: p.build() if isinstance(p, _Draft) else p for key, p in parts})


def _no_such(path: str, expected: str) -> ConfigurationError:
    return ConfigurationError("No such setting", got=path, expected=expected, fix="correct --set")


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
    """Say what a setting of `kind` takes, in the words of who types it."""
    options = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin is Literal:
        return " or ".join(json.dumps(option) for option in options)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in options)
    if origin is tuple:
        return f"a list [...], each of it {_describe(options[0])}"
    if kind is Mapping or origin in (Mapping, collections.abc.Mapping, dict):
        return "an object {...}"
    if dataclasses.is_dataclass(kind):
        names = ", ".join(field.name for field in dataclasses.fields(kind))
        return f"its parts one by one, as KEY.PART=VALUE: {names}"
    return _WORDS.get(kind, str(kind))
