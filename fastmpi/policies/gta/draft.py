"""What the makers of dialogs write on: pictures shown, a request, and calls one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import PIL.Image

from fastmpi.data.renderer import render_scene
from fastmpi.data.scenes import Scene
from fastmpi.policies.clevr_text import CONSONANTS, VOWELS
from fastmpi.policies.gta.dialogs import Call, Dialog, PictureSource
from fastmpi.policies.gta.pictures import Sketch

ItemT = TypeVar("ItemT")
Value = str | int | bool


class Draft:
    """A dialog in the making. `number` counts the pictures of the whole data set."""

    def __init__(self, rng: np.random.Generator, dialog_id: str, first_picture: int) -> None:
        self.rng = rng
        self.query = ""
        self.pictures: dict[str, PictureSource] = {}
        self.contents: list[str] = []
        self._id, self._next = dialog_id, first_picture
        self._shown: list[str] = []
        self._sketches: dict[str, Sketch] = {}
        self._calls: list[Call] = []

    def one(self, items: Sequence[ItemT]) -> ItemT:
        """One of the items."""
        return items[int(self.rng.integers(len(items)))]

    def some(self, items: Sequence[ItemT], count: int) -> list[ItemT]:
        """`count` different ones of the items, in any order."""
        return [items[int(i)] for i in self.rng.permutation(len(items))[:count]]

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return int(self.rng.integers(low, high + 1))

    def name(self, syllables: int = 3) -> str:
        """A made-up proper name that can be spoken."""
        spoken = (self.one(CONSONANTS) + self.one(VOWELS) for _ in range(max(2, syllables)))
        return "".join(spoken).capitalize()

    def ask(self, *versions: str) -> None:
        """The request, one of several ways to say it, in a setting that makes it one of its own."""
        who, where = self.name(2), self.name(3)
        settings = (
            "",
            f"My colleague {who} from {where} would like to know this. ",
            f"This is for {who} at {where}. ",
            f"I am preparing something for the {where} newsletter. ",
            f"{who} sent me this from {where}. ",
        )
        self.query = self.one(settings) + self.one(versions)

    def show(self, picture: Sketch | Scene) -> str:
        """Adds a picture to the request, and returns its name.

        `contents` gets what it shows: two pictures of equal content count as the same.
        """
        if isinstance(picture, Sketch):
            self.contents.append(repr(picture.words()))
            name = self._add(picture.draw)
            self._sketches[name] = picture
        else:
            self.contents.append(repr(picture.objects))
            scene = picture
            name = self._add(lambda: render_scene(scene))
        self._shown.append(name)
        return name

    def ocr(self, image: str) -> str:
        """What an OCR tool reads in a shown sketch."""
        return self.sketch(image).ocr()

    def sketch(self, image: str) -> Sketch:
        """The shapes of a shown picture that is no scene."""
        return self._sketches[image]

    def call(self, tool: str, thought: str, returned: str, **arguments: Value) -> str:
        """A call that returns text, which is handed back."""
        self._calls.append(Call(tool, arguments, self.query, thought, returned))
        return returned

    def make(
        self,
        tool: str,
        thought: str,
        picture: Callable[[], PIL.Image.Image] | None = None,
        **arguments: Value,
    ) -> str:
        """A call that makes a picture; returns its name. Without `picture` nothing may follow it,
        since nobody could see what it made."""
        made = f"image/image_{self._next}.png"
        self._next += 1
        if picture is not None:
            self.pictures[made] = picture
        self._calls.append(Call(tool, arguments, self.query, thought, made, made=True))
        return made

    def finished(self) -> Dialog:
        assert self.query and self._calls, "a dialog has a request and a call"
        unseen = [call.made and call.returned not in self.pictures for call in self._calls[:-1]]
        assert not any(unseen), "a call after a picture that was not drawn"
        return Dialog(self._id, tuple(self._shown), tuple(self._calls))

    @property
    def next_picture(self) -> int:
        return self._next

    def _add(self, draw: PictureSource) -> str:
        name = f"image/image_{self._next}.png"
        self._next += 1
        self.pictures[name] = draw
        return name


Maker = Callable[[Draft], None]
"""Draws the pictures of a dialog, words its request and writes its calls."""


def priced(draft: Draft, names: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Different names with prices of their own."""
    return [(n, f"{draft.between(4, 79) * 0.15 + 0.4:.2f}") for n in draft.some(names, count)]


def python_block(*lines: str) -> str:
    """Code as the Plot and Solver tools take it."""
    return "\n".join(("```python", *lines, "```"))


def signed(value: int, letter: str = "") -> str:
    """' + 3x', ' - x' or '' for a summand that is not the first."""
    if value == 0:
        return ""
    number = "" if letter and abs(value) == 1 else str(abs(value))
    return f" {'+' if value > 0 else '-'} {number}{letter}"
