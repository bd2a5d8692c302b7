"""Refusals that several settings share; each a ValueError that names the setting."""

from __future__ import annotations

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


def check_choices(config: Settings) -> None:
    for name, hint in typing.get_type_hints(type(config)).items():
        choices = typing.get_args(hint)
        if typing.get_origin(hint) is Literal and getattr(config, name) not in choices:
            raise ValueError(
                f"{name}: {getattr(config, name)!r} is not one of {', '.join(choices)}"
            )
