r"""Reads a call of a tool out of what a model wrote.

A call is a JSON object with exactly the keys "name" (text) and "arguments" (an object). It counts
inside the last ``\boxed{...}``, where it may stand in a code fence; without any box it counts in
the last code fence that opens on an object. Anything else is no call.

Unusual: the text is hostile until read. Everything here is linear in its length, only one object is
ever parsed, and that under bounds on its length, nesting and digits. Repeated keys, NaN, infinities
and lone surrogates (which no file can hold) make it no call. Nothing here raises.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

BOX = "\\boxed{"
MAX_LENGTH = 100_000  # characters of a call; a long program in `command` has a few thousand
MAX_DEPTH = 8  # objects and lists inside each other; a call has two
MAX_DIGITS = 64  # characters of a number
_FENCE = re.compile(r"```\w*\s*(?=\{)")
_LAST_FENCE = re.compile(r".*(?=```\w*\s*\{)", re.DOTALL)
_SPACE = re.compile(r"\s*")
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[{}\[\]]', re.DOTALL)  # a string, or a bracket


@dataclass(frozen=True)
class Call:
    """A tool's name with its version ("OCR_v4"), and its arguments as JSON values by field."""

    name: str
    arguments: dict[str, Any]

    def to_json(self) -> str:
        """The text that a gold answer is."""
        return json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)


def parse_call(text: str) -> Call | None:
    """The call that a model's answer makes; None if it makes none that is well-formed."""
    start = last_box(text)
    if start >= 0:
        span = boxed_object(text, start)
    else:
        fence = _LAST_FENCE.match(text)
        span = _fenced_object(text, fence.end()) if fence else None
    return _read(text[slice(*span)]) if span else None


def read_call(text: str) -> Call | None:
    """The call that a gold answer is: the bare object, nothing around it."""
    return _read(text.strip())


def is_call(text: str) -> bool:
    """Whether a gold answer is a call."""
    return read_call(text) is not None


def last_box(text: str) -> int:
    r"""Where the inside of the last ``\boxed{`` begins; -1 without one.

    ``\\boxed{`` opens none: it is how a JSON string writes ``\boxed{``.
    """
    start = text.replace("\\\\", "  ").rfind(BOX)
    return start + len(BOX) if start >= 0 else -1


def boxed_object(text: str, start: int) -> tuple[int, int] | None:
    """Begin and end of the object that is all there is in the box whose inside begins at `start`.

    A fence around it is left out, and braces inside its strings open and close nothing. None where
    the box holds anything else, or never closes.
    """
    start = _skip_space(text, start)
    fenced = text.startswith("```", start)
    span = _fenced_object(text, start) if fenced else _object(text, start)
    if span is None:
        return None
    after = _skip_space(text, span[1])
    if fenced:
        after = _skip_space(text, after + len("```"))
    return span if text.startswith("}", after) else None


def _fenced_object(text: str, start: int) -> tuple[int, int] | None:
    """Begin and end of the object in the code fence at `start`; None if that holds aught else."""
    fence = _FENCE.match(text, start)
    span = _object(text, fence.end()) if fence else None
    if span is None or not text.startswith("```", _skip_space(text, span[1])):
        return None
    return span


def _object(text: str, start: int) -> tuple[int, int] | None:
    """Begin and end of the object at `start`, by its brackets outside strings alone."""
    if not text.startswith("{", start):
        return None
    depth = 0
    for token in _TOKEN.finditer(text, start, start + MAX_LENGTH):
        kind = token.group()[0]
        depth += (kind in "{[") - (kind in "}]")
        if depth == 0:
            return start, token.end()
        if depth > MAX_DEPTH:
            return None
    return None


def _skip_space(text: str, start: int) -> int:
    space = _SPACE.match(text, start)
    assert space is not None  # it may be empty
    return space.end()


def _read(text: str) -> Call | None:
    """The call that the whole text is."""
    if _object(text, 0) != (0, len(text)):
        return None
    try:
        found = json.loads(
            text,
            object_pairs_hook=_distinct,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_refuse,
        )
        json.dumps(found, ensure_ascii=False).encode()  # a lone surrogate is an error here
    except ValueError:
        return None
    if found.keys() != {"name", "arguments"}:
        return None
    name, arguments = found["name"], found["arguments"]
    return Call(name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a repeated key")
    return found


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("too many digits")
    return int(digits)


def _finite(digits: str) -> float:
    if len(digits) > MAX_DIGITS or not math.isfinite(value := float(digits)):
        raise ValueError("too many digits, or too large")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
