"""Tools as GTAPolicy describes them: names, versions and arguments, as data to extend.

The fourteen types are those of the GTA data set; the versions are the policy's (paper, section on
GTAPolicy). A tool of several versions is called by `<name>_v1`, `<name>_v2`, ...; a tool of one
version by its plain name, as the paper writes `Calculator`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ARGUMENT_TYPES = ("text", "image", "int", "bool")


@dataclass(frozen=True)
class Argument:
    """One argument of a tool. `type` is GTA's: text, image (a path), int or bool.

    `default` is what an optional argument has where the call leaves it out; None is JSON's null.
    """

    name: str
    type: str
    description: str
    optional: bool = False
    default: str | int | bool | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z]\w*", self.name):
            raise ValueError(f"argument name {self.name!r}: letters, digits and _ are allowed")
        if self.type not in ARGUMENT_TYPES:
            raise ValueError(
                f"argument {self.name!r}: type {self.type!r} is none of {', '.join(ARGUMENT_TYPES)}"
            )
        if self.default is not None and not self.optional:
            raise ValueError(f"argument {self.name!r} has a default and is not optional")

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Tool:
    """A type of tool, in one or more versions that share description and arguments."""

    name: str
    description: str
    arguments: tuple[Argument, ...]
    versions: int = 1

    def __post_init__(self) -> None:
        # "v3" and "OCR_v3" would read as versions.
        if not re.fullmatch(r"[A-Za-z]\w*", self.name, re.ASCII) or re.search(
            r"(^|_)v[0-9]+$", self.name
        ):
            raise ValueError(
                f"tool name {self.name!r}: letters, digits and _, no version at the end"
            )
        if type(self.versions) is not int or self.versions < 1:
            raise ValueError(f"tool {self.name}: {self.versions} versions")
        if len({argument.name for argument in self.arguments}) < len(self.arguments):
            raise ValueError(f"tool {self.name}: an argument is there twice")

    @property
    def names(self) -> tuple[str, ...]:
        """What its versions are called by, the first version first."""
        if self.versions == 1:
            return (self.name,)
        return tuple(f"{self.name}_v{k}" for k in range(1, self.versions + 1))

    def to_json(self) -> dict[str, Any]:
        arguments = [argument.to_json() for argument in self.arguments]
        return {**vars(self), "arguments": arguments}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tool:
        """Read what `to_json` gave; a missing or unknown key is a `ValueError`."""
        try:
            arguments = tuple(Argument(**argument) for argument in data["arguments"])
            return cls(**{**data, "arguments": arguments})
        except (TypeError, KeyError) as error:
            raise ValueError(f"tool {data.get('name')!r}: {error}") from error


def tool_table(tools: Iterable[Tool]) -> Mapping[str, Tool]:
    """Tools by name, in their order; a name that is given twice is a `ValueError`."""
    table: dict[str, Tool] = {}
    for tool in tools:
        if tool.name in table:
            raise ValueError(f"tool name {tool.name!r} is there twice")
        table[tool.name] = tool
    return table


def type_of(name: str, tools: Mapping[str, Tool]) -> str | None:
    """The tool type that a called name belongs to ("OCR" for "OCR_v4"); None where there is none.

    A versioned tool's plain name belongs to none: it cannot be called.
    """
    stem = re.sub(r"_v[0-9]{1,9}\Z", "", name)
    return stem if stem in tools and name in tools[stem].names else None


_IMAGE = Argument("image", "image", "path of the image, exactly as given, e.g. image/image_1.jpg")
_BBOX = Argument("bbox", "text", 'the box in pixels, written "(x1, y1, x2, y2)", top left first')

TOOLS: Mapping[str, Tool] = tool_table(
    [
        Tool(
            "Calculator",
            "Evaluates an arithmetic expression and returns its value. Use it for sums, products, "
            "ratios and roots of numbers that "
            "are already known, never for guesses; the units stay out of the expression.",
            (
                Argument(
                    "expression", "text", "the expression in Python's syntax, e.g. round(75 / 3, 2)"
                ),
            ),
        ),
        Tool(
            "OCR",
            "Finds the text in an image and returns every piece of it with its bounding box, in "
            "reading order. Use it for receipts, signs, labels, tables, menus and screenshots.",
            (_IMAGE,),
            versions=5,
        ),
        Tool(
            "CountGivenObject",
            "Counts how often the described object occurs in an image and returns the "
            "number. Objects that are partly hidden count as well.",
            (_IMAGE, Argument("text", "text", "the object to count, in English, e.g. red apple")),
            versions=4,
        ),
        Tool(
            "ImageDescription",
            "Describes an image in a short English paragraph: what is there, what it looks like "
            "and where it is. Use it for an overview; it reads no small print.",
            (_IMAGE,),
            versions=5,
        ),
        Tool(
            "GoogleSearch",
            "Searches the web and returns the titles and snippets of the first results. Use "
            "it for facts that neither the images nor the history show.",
            (
                Argument("query", "text", "what to search for"),
                Argument("k", "int", "number of results", optional=True, default=10),
            ),
            versions=3,
        ),
        Tool(
            "RegionAttributeDescription",
            "Describes one attribute of what a region of an image shows, such as its color, its "
            "material or what a person there does.",
            (_IMAGE, _BBOX, Argument("attribute", "text", "the attribute to describe")),
            versions=2,
        ),
        Tool(
            "TextToBbox",
            "Finds the described object in an image and returns its bounding box with a "
            "score. The box is what DrawBox and RegionAttributeDescription need.",
            (
                _IMAGE,
                Argument("text", "text", "the object to find, in English"),
                Argument(
                    "top1",
                    "bool",
                    "true for the best box only, false for all of them",
                    optional=True,
                    default=True,
                ),
            ),
        ),
        Tool(
            "Plot",
            "Runs matplotlib code and returns the picture that it draws. Use it for charts of "
            "numbers that are already known.",
            (
                Argument(
                    "command",
                    "text",
                    "Markdown Python code block that defines a function solution(), which returns "
                    "the matplotlib figure",
                ),
            ),
        ),
        Tool(
            "MathOCR",
            "Reads the mathematical formulas in an image and returns them in LaTeX. Text around "
            "them is left out.",
            (_IMAGE,),
        ),
        Tool(
            "Solver",
            "Runs sympy code and returns the result. Use it for equations and for algebra with "
            "unknowns; for plain arithmetic there is Calculator.",
            (
                Argument(
                    "command",
                    "text",
                    "Markdown Python code block that defines a function solution(), which returns "
                    "the result as text",
                ),
            ),
        ),
        Tool(
            "DrawBox",
            "Draws a box on an image, with a label where one is given, and returns the new image.",
            (
                _IMAGE,
                _BBOX,
                Argument("annotation", "text", "the label of the box", optional=True),
            ),
        ),
        Tool(
            "AddText",
            "Writes text on an image and returns the new image. The image that was given stays as "
            "it was.",
            (
                _IMAGE,
                Argument("text", "text", "what to write"),
                Argument(
                    "position",
                    "text",
                    'where to write: "(x, y)" in pixels, or two letters for left, middle or right '
                    "(l, m, r) and top, middle or bottom (t, m, b), e.g. mt",
                ),
                Argument("color", "text", "color of the text", optional=True, default="red"),
            ),
        ),
        Tool(
            "TextToImage",
            "Makes a new image from keywords and returns it. It sees none of the images that were "
            "given.",
            (
                Argument(
                    "keywords",
                    "text",
                    "keywords in English, separated by commas, e.g. a dog, beach",
                ),
            ),
            versions=3,
        ),
        Tool(
            "ImageStylization",
            "Changes an image as an instruction says, for example its style, and returns the new "
            "image; what the instruction leaves open stays as it was.",
            (_IMAGE, Argument("instruction", "text", "what to change, in one English sentence")),
            versions=3,
        ),
    ]
)
