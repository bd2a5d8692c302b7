"""Refusals that several settings share; each a ValueError that names the setting."""

from __future__ import annotations

import types
import typing
from typing import Literal

from fastmpi.settings import Settings


def check_at_least(config: Settings, low: float, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= low:
            raise ValueError(f"{name} must be at least {low}, not {getattr(config, name)}")


def check_between(config: Settings, low: float, high: float, *names: str) -> None:
    for name in names:
        if not low <= getattr(config, name) <= high:
            raise ValueError(f"{name} must be in [{low}, {high}], not {getattr(config, name)}")


def check_share(config: Settings, *names: str) -> None:
    """A share that is never all."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be in [0, 1), not {getattr(config, name)}")


def check_gib(config: Settings, name: str) -> None:
    """Memory, or None; its bytes must be a number that a tensor may have."""
    gib = getattr(config, name)
    if gib is not None and not 0 < gib < 1e9:
        raise ValueError(f"{name} must be positive and less than 1e9, not {gib}")


def check_choices(config: Settings) -> None:
    """Settings of some words, alone or beside another type as in `bool | Literal["auto"]`."""
    for name, hint in typing.get_type_hints(type(config)).items():
        options = typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else (hint,)
        words = [o for o in options if typing.get_origin(o) is Literal]
        choices = [word for option in words for word in typing.get_args(option)]
        kinds = [option for option in options if option not in words]
        value = getattr(config, name)
        if choices and value not in choices and type(value) not in kinds:
            known = [_KINDS.get(kind, str(kind)) for kind in kinds] + choices
            raise ValueError(f"{name}: {value!r} is not one of {', '.join(known)}")


_UNIONS = (typing.Union, types.UnionType)
_KINDS = {bool: "true, false", int: "a whole number"}
