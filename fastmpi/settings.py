"""Settings as dataclasses that refuse what they do not understand.

One strict reader serves YAML files and command line flags: an unknown key is a `ValueError` that
names the nearest known one, and numbers that YAML leaves as text (`1e-5`) are read as numbers.
Unusual: the string below a field is its documentation, and the help of the command line.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

SettingsT = TypeVar("SettingsT", bound="Settings")


class Settings:
    """Base of a dataclass of settings."""

    @classmethod
    def from_dict(cls: type[SettingsT], values: Mapping[str, Any]) -> SettingsT:
        """Build from plain values; a key that is unknown or missing, or a value of the wrong type,
        is a ValueError."""
        hints = typing.get_type_hints(cls)
        for key in values:
            if key not in hints:
                raise ValueError(f"{cls.__name__} has no {key!r}{did_you_mean(key, hints)}")
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            needed = field.default is field.default_factory is dataclasses.MISSING
            if needed and field.name not in values:
                raise ValueError(f"{cls.__name__}.{field.name} is missing")
        return cls(**{k: coerce(f"{cls.__name__}.{k}", v, hints[k]) for k, v in values.items()})

    @classmethod
    def from_yaml(cls: type[SettingsT], path: str | Path) -> SettingsT:
        """`from_dict` of a YAML file; errors name the file."""
        try:
            return cls.from_dict(read_yaml(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` reads them back."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def to_yaml(self) -> str:
        """The YAML that `from_yaml` reads."""
        import yaml

        return str(yaml.safe_dump(self.to_dict(), sort_keys=False))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; anything else is a ValueError that names the file."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known key, empty where none is near."""
    close = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else ""


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Name of each setting -> the string below it in the source, inherited ones included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs.update(_own_docs(base))
    return docs


def _own_docs(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    docs = {}
    for field, text in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            docs[field.target.id] = inspect.cleandoc(ast.literal_eval(text.value))  # type: ignore[union-attr]
    return docs


def coerce(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint`, where nothing is lost by it; else ValueError naming the key."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(name, value, args)
    if origin is Literal:
        return value  # __post_init__ names the choices
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        if origin is tuple and len(value) != len(args):
            raise ValueError(f"{name}: expected {len(args)} values, found {len(value)}")
        inner_types = args if origin is tuple else args * len(value)
        return origin(coerce(name, v, t) for v, t in zip(value, inner_types, strict=True))
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return _float(name, value)
    if isinstance(value, hint if origin is None else origin) and (
        hint is not int or not isinstance(value, bool)
    ):
        _check_plain(name, value)
        return value
    expected = getattr(hint, "__name__", str(hint))
    raise ValueError(f"{name}: expected {expected}, found {value!r}")


def _check_plain(name: str, value: Any) -> None:
    """What no setting can be: text that names nothing, or a number that no tensor holds."""
    if value == "":
        raise ValueError(f"{name} is empty")
    if isinstance(value, str) and "\0" in value:  # the system takes it for the end of a path
        raise ValueError(f"{name}: {value!r} has a character of code 0")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}: {value!r:.40} has more than 64 bits")


def _coerce_union(name: str, value: Any, options: tuple[Any, ...]) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    for option in options[:-1]:
        try:
            return coerce(name, value, option)
        except ValueError:
            continue
    return coerce(name, value, options[-1])


def _float(name: str, value: int | float | str) -> float:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{name}: expected a number, found {value!r:.40}") from None
    if not math.isfinite(number):  # no comparison with a bound finds a NaN
        raise ValueError(f"{name}: expected a finite number, found {value!r}")
    return number
