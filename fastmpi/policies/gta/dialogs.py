"""Dialogs of a user with a tool-using assistant: what a GTA folder holds, and the generator makes.

A dialog is a query about pictures and the gold calls that answer it, each with what it returned.
Names of pictures are GTA's own, "image/image_96.jpg": calls, prompts and files all use them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

PictureSource = Path | Callable[[], PIL.Image.Image]
"""A file to copy, or a function that draws the picture."""


@dataclass(frozen=True)
class Call:
    """One gold call.

    tool: its plain name, without a version. query: all that the user has said before it.
    thought: why it is made, empty where nobody says. returned: the text that came back, or the
    name of the picture that it made if `made`; None where the folder does not say.
    """

    tool: str
    arguments: Mapping[str, Any]
    query: str
    thought: str = ""
    returned: str | None = None
    made: bool = False


@dataclass(frozen=True)
class Dialog:
    """The gold calls of one user, in order, and the names of the pictures that came with the
    query."""

    id: str
    images: tuple[str, ...]
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class Dialogs:
    """Dialogs, and where their pictures come from. A picture that a tool made may have no source:
    then it is only a name."""

    dialogs: tuple[Dialog, ...]
    pictures: Mapping[str, PictureSource]

    @property
    def num_calls(self) -> int:
        return sum(len(dialog.calls) for dialog in self.dialogs)

    def made_without_source(self) -> list[str]:
        """Names of the pictures that tools made and that are nowhere to be found."""
        made = (c.returned for d in self.dialogs for c in d.calls if c.made and c.returned)
        return sorted({name for name in made if name not in self.pictures})
