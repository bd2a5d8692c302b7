"""The value of an arithmetic expression that a model wrote, by a whitelist; nothing is executed.

Numbers are Python's: exact integers and 64-bit floats, since the paper compares what Python's
`eval` gives. Operators + - * / // % **, brackets, the functions below and the constants pi, e,
with or without "math." before them; lists only as what sum, min and max take.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable
from typing import Any

Number = int | float

MAX_LENGTH = 1000  # characters of an expression
MAX_DEPTH = 200  # brackets and operators inside each other; a + b + c + d has 3
MAX_EXPONENT = 1000
MAX_BITS = 4096  # of an integer on the way
MAX_PLACES = 30  # that round() rounds to
TOLERANCE = 1e-9  # relative
_CHARACTERS = re.compile(r"[0-9A-Za-z_.+\-*/%(),\[\] \t]+")
_CONSTANTS = {"pi": math.pi, "e": math.e}
_UNARY: dict[type, Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def evaluate(text: str) -> Number | None:
    """The value; None for what is no arithmetic, leaves the bounds or has no finite real value."""
    text = text.strip()
    if len(text) > MAX_LENGTH or not _CHARACTERS.fullmatch(text):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's remarks on what a model wrote
            tree = ast.parse(text, mode="eval")
        return _value(tree.body, MAX_DEPTH)
    except (ArithmeticError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        return None


def same_value(first: str, second: str) -> bool:
    """Whether two expressions have one value: exactly for integers, else within `TOLERANCE`.

    Two that have no value are the same if they are written the same.
    """
    left, right = evaluate(first), evaluate(second)
    if left is None or right is None:
        return first.strip() == second.strip()
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    try:
        return math.isclose(left, right, rel_tol=TOLERANCE, abs_tol=1e-12)
    except OverflowError:  # an integer beyond all floats
        return False


def _value(node: ast.expr, depth: int) -> Number:
    if depth == 0:
        raise ValueError("too deep")
    if isinstance(node, ast.Constant):
        return _bounded(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _bounded(_UNARY[type(node.op)](_value(node.operand, depth - 1)))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left, depth - 1), _value(node.right, depth - 1)
        return _bounded(_BINARY[type(node.op)](left, right))
    if isinstance(node, ast.Call) and not node.keywords:
        function = _FUNCTIONS[_name(node.func, _FUNCTIONS)]
        return _bounded(function(*(_argument(value, depth - 1) for value in node.args)))
    return _CONSTANTS[_name(node, _CONSTANTS)]


def _argument(node: ast.expr, depth: int) -> Number | list[Number]:
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item, depth - 1) for item in node.elts]
    return _value(node, depth)


def _name(node: ast.expr, known: dict[str, Any]) -> str:
    """The known name that `name` or `math.name` is."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        name = node.attr if node.value.id == "math" else ""
    else:
        name = node.id if isinstance(node, ast.Name) else ""
    if name not in known:
        raise ValueError("no arithmetic")
    return name


def _bounded(value: Any) -> Number:
    """The value, if it is an integer of few enough bits or a finite float."""
    if type(value) is int and value.bit_length() <= MAX_BITS:
        return value
    if type(value) is float and math.isfinite(value):
        return value
    raise ValueError("no number within the bounds")


def _power(base: Number, exponent: Number) -> Any:
    if isinstance(base, int) and isinstance(exponent, int):
        if abs(exponent) > MAX_EXPONENT or base.bit_length() * abs(exponent) > MAX_BITS:
            raise ValueError("too large a power")
    return base**exponent  # of floats: OverflowError, or a complex number that `_bounded` refuses


def _round(value: Number, places: int | None = None) -> Number:
    if places is not None and abs(places) > MAX_PLACES:
        raise ValueError("too many places")
    return round(value, places)


_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_OF_MATH = "ceil cos degrees exp floor log log10 log2 radians sin sqrt tan".split()
_FUNCTIONS: dict[str, Callable[..., Any]] = {name: getattr(math, name) for name in _OF_MATH}
_FUNCTIONS |= {"abs": abs, "float": float, "int": int, "max": max, "min": min}
_FUNCTIONS |= {"pow": _power, "round": _round, "sum": sum}
