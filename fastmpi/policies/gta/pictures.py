"""Pictures with text in them, drawn with Pillow: receipts, menus, signs, bar charts, formulas.

A picture is first a `Sketch`, a list of shapes. Drawing it and reading its text come from the same
list, so what an OCR tool returns in a made-up history is what the picture says.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]

INK, WHITE = (28, 28, 32), (255, 255, 255)
PAPERS: Sequence[Color] = ((255, 255, 255), (250, 247, 238), (243, 246, 250), (253, 244, 244))
STRONG: Sequence[Color] = (
    (150, 32, 40), (24, 84, 60), (26, 60, 130), (92, 40, 120), (40, 40, 46), (150, 82, 12),
)  # fmt: skip
BARS: Sequence[Color] = (
    (58, 110, 180), (210, 120, 40), (60, 150, 90), (180, 60, 80), (120, 90, 170), (70, 150, 160),
)  # fmt: skip


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font: the same on every machine. Needs a Pillow with FreeType."""
    loaded = ImageFont.load_default(size)
    if not isinstance(loaded, ImageFont.FreeTypeFont):
        raise ValueError("pictures with text need a Pillow that was built with FreeType")
    return loaded


@dataclass(frozen=True)
class Text:
    """Words at (x, y), which is their left, middle or right at the top by `anchor` l, m or r."""

    x: int
    y: int
    words: str
    size: int = 18
    color: Color = INK
    anchor: str = "l"

    @property
    def box(self) -> Box:
        box = font(self.size).getbbox(self.words, anchor=f"{self.anchor}a")
        left, top, right, bottom = (round(value) for value in box)
        return self.x + left, self.y + top, self.x + right, self.y + bottom


@dataclass(frozen=True)
class Rectangle:
    box: Box
    fill: Color | None = None
    outline: Color | None = None
    width: int = 1
    radius: int = 0


Shape = Text | Rectangle


@dataclass(frozen=True)
class Sketch:
    """A picture of `size` (width, height); shapes are drawn in order."""

    size: tuple[int, int]
    background: Color
    shapes: tuple[Shape, ...]

    def draw(self) -> Image.Image:
        """The RGB picture."""
        picture = Image.new("RGB", self.size, self.background)
        pen = ImageDraw.Draw(picture)
        for shape in self.shapes:
            if isinstance(shape, Text):
                place, anchor = (shape.x, shape.y), f"{shape.anchor}a"
                pen.text(place, shape.words, shape.color, font(shape.size), anchor)
            else:
                pen.rounded_rectangle(
                    shape.box, shape.radius, shape.fill, shape.outline, shape.width
                )
        return picture

    def words(self) -> tuple[str, ...]:
        """Its texts from top to bottom, and from left to right in one line."""
        return tuple(text.words for text in self._texts())

    def ocr(self) -> str:
        """What an OCR tool returns: one text a line, after its box in pixels."""
        return "\n".join(f"{bbox_text(text.box)} {text.words}" for text in self._texts())

    def _texts(self) -> list[Text]:
        texts = [shape for shape in self.shapes if isinstance(shape, Text)]
        return sorted(texts, key=lambda text: (text.y, text.box[0]))


def bbox_text(box: Sequence[float]) -> str:
    """A box as calls write it: "(12, 30, 96, 54)"."""
    return f"({', '.join(str(round(value)) for value in box)})"


def receipt(
    rng: np.random.Generator, shop: str, items: Sequence[tuple[str, str]], footer: str
) -> Sketch:
    """A narrow paper strip: the shop, then names and prices, then one line below a rule."""
    width, size = int(rng.integers(300, 360)), int(rng.integers(17, 21))
    step = size + 12
    shapes: list[Shape] = [
        Text(width // 2, 22, shop, size + 6, INK, "m"),
        Text(width // 2, 22 + step + 8, "RECEIPT", size - 3, (90, 90, 96), "m"),
    ]
    y = 22 + 2 * step + 14
    for name, price in items:
        shapes += [Text(24, y, name, size), Text(width - 24, y, price, size, INK, "r")]
        y += step
    shapes += [
        Rectangle((24, y + 4, width - 24, y + 5), (120, 120, 126)),
        Text(width // 2, y + 18, footer, size - 3, (90, 90, 96), "m"),
    ]
    return Sketch((width, y + 60), _one(rng, PAPERS), tuple(shapes))


def menu(rng: np.random.Generator, place: str, items: Sequence[tuple[str, str]]) -> Sketch:
    """A board with a dark head, two columns of names and prices in light letters."""
    ground, size = _one(rng, STRONG), int(rng.integers(20, 25))
    step = size + 18
    width, height = 420, 110 + step * len(items)
    shapes: list[Shape] = [
        Rectangle((10, 10, width - 11, height - 11), None, WHITE, 3, 12),
        Text(width // 2, 30, place, size + 8, (255, 236, 160), "m"),
    ]
    for row, (name, price) in enumerate(items):
        y = 84 + row * step
        shapes += [Text(40, y, name, size, WHITE), Text(width - 40, y, price, size, WHITE, "r")]
    return Sketch((width, height), ground, tuple(shapes))


def sign(rng: np.random.Generator, lines: Sequence[str]) -> Sketch:
    """A sign on two posts before a bright sky: the first line large, the others below it."""
    ground = _one(rng, STRONG)
    large = min(40, 600 // max(len(lines[0]), 10))
    small = min(22, 700 // max(12, *(len(line) for line in lines)))
    height = 70 + large + (small + 14) * (len(lines) - 1)
    shapes: list[Shape] = [
        Rectangle((90, height, 104, height + 110), (110, 110, 112)),
        Rectangle((376, height, 390, height + 110), (110, 110, 112)),
        Rectangle((30, 30, 450, 30 + height), ground, WHITE, 4, 16),
        Text(240, 56, lines[0], large, WHITE, "m"),
    ]
    for row, line in enumerate(lines[1:]):
        y = 56 + large + 18 + row * (small + 14)
        shapes.append(Text(240, y, line, small, (240, 240, 236), "m"))
    sky = (int(rng.integers(168, 200)), int(rng.integers(200, 222)), int(rng.integers(228, 246)))
    return Sketch((480, height + 120), sky, tuple(shapes))


def chart(rng: np.random.Generator, title: str, bars: Sequence[tuple[str, int]]) -> Sketch:
    """A bar chart with its value above each bar and its name below."""
    width, height, base = 480, 340, 288
    most = max(value for _, value in bars)
    slot = (width - 60) / len(bars)
    color = _one(rng, BARS)
    shapes: list[Shape] = [
        Text(width // 2, 12, title, 20, INK, "m"),
        Rectangle((30, base, width - 30, base + 1), INK),
    ]
    for number, (name, value) in enumerate(bars):
        middle = round(30 + slot * (number + 0.5))
        top = base - max(2, round(200 * value / most))
        half = round(slot * 0.32)
        shapes += [
            Rectangle((middle - half, top, middle + half, base), color),
            Text(middle, top - 22, str(value), 16, INK, "m"),
            Text(middle, base + 10, name, 16, INK, "m"),
        ]
    return Sketch((width, height), WHITE, tuple(shapes))


def formula(rng: np.random.Generator, title: str, pieces: Sequence[tuple[str, bool]]) -> Sketch:
    """A sheet of squared paper with one formula; a piece is (characters, raised as exponent?)."""
    size, width, height = int(rng.integers(34, 44)), 480, 200
    shapes: list[Shape] = [
        Rectangle((x, 0, x, height), (214, 226, 240)) for x in range(0, width, 24)
    ]
    shapes += [Rectangle((0, y, width, y), (214, 226, 240)) for y in range(0, height, 24)]
    shapes.append(Text(24, 20, title, 18, (80, 80, 86)))
    sizes = [size * 3 // 5 if raised else size for _, raised in pieces]
    lengths = [font(s).getlength(words) for (words, _), s in zip(pieces, sizes, strict=True)]
    x = (width - sum(lengths)) / 2
    for (words, raised), letter, length in zip(pieces, sizes, lengths, strict=True):
        y = 88 - (size // 4 if raised else 0)
        shapes.append(Text(round(x), y, words, letter))
        x += length
    return Sketch((width, height), (252, 252, 250), tuple(shapes))


def _one(rng: np.random.Generator, colors: Sequence[Color]) -> Color:
    return colors[int(rng.integers(len(colors)))]
