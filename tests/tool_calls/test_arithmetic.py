"""The value of expressions against Python's own, and what has none."""

from __future__ import annotations

import math
import time
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmpi.tool_calls.arithmetic import (
    MAX_DEPTH,
    MAX_EXPONENT,
    MAX_LENGTH,
    MAX_PLACES,
    evaluate,
    same_value,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        (" 1 + 2*3 - 4 ", 3),
        ("(1 + 2) * 3", 9),
        ("7 / 2", 3.5),
        ("-7 // 2", -4),
        ("-7 % 3", 2),
        ("2 ** 10", 1024),
        ("2 ** -2", 0.25),
        ("-2 ** 2", -4),
        ("+3", 3),
        ("1_000 + 0x10", 1016),
        ("1.5e3", 1500.0),
        ("abs(-3)", 3),
        ("round(75 / 59 * 100)", 127),
        ("round(2.345, 1)", 2.3),
        ("round(1234, -2)", 1200),
        ("max(1, 3, 2) - min([4, 5])", -1),
        ("sum([1, 2, 3]) + sum((4, 5))", 15),
        ("pow(2, 5)", 32),
        ("sqrt(16)", 4.0),
        ("math.sqrt(16)", 4.0),
        ("floor(2.7) + math.ceil(2.1)", 5),
        ("int(7.9) + float(1)", 8.0),
        ("log(8, 2)", 3.0),
        ("log10(1000) + log2(8)", 6.0),
        ("exp(0) + cos(0)", 2.0),
        ("degrees(math.pi)", 180.0),
        ("sin(radians(90))", 1.0),
        ("tan(0)", 0.0),
        ("math.e", math.e),
        ("pi", math.pi),
    ],
)
def test_value(text, value):
    found = evaluate(text)
    assert type(found) is type(value) and found == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "x",
        "1 +",
        "(1",
        "1 1",
        "1, 2",
        "[1, 2]",
        "1 < 2",
        "1 if 1 else 2",
        "1if 2else 3",
        "1 and 2",
        "not 1",
        "~1",
        "5 & 3",
        "1 << 9",
        "2 @ 3",
        "True",
        "None",
        "...",
        "1j",
        "'a' * 3",
        "[1] * 3",
        "(-8) ** 0.5",
        "1 / 0",
        "0 ** -1",
        "sqrt(-1)",
        "log(0)",
        "1e999",
        "1e308 * 10",
        "-1e999",
        "exp(1000)",
        "10.0 ** 400",
        "1e999 - 1e999",
        "float(1)(2)",
        "abs",
        "abs()",
        "abs(1, 2)",
        "abs([1])",
        "abs(*[1])",
        "pow(2, 3, 5)",
        "pow([1], 2)",
        "round(2.5, 0.5)",
        "round(2.5, 1e999)",
        "round([1], 1)",
        "max()",
        "max([])",
        "max([1], [2])",
        "sum([[1], [2]])",
        "sum([1], [2])",
        "max(1, key=abs)",
        "round(number=1)",
        "pi()",
        "pi.real",
        "sqrt.real",
        "os.system(1)",
        "math.factorial(9)",
        "math",
        "math.math.pi",
        "abs.__class__(1)",
        "__import__('os')",
        "__import__",
        "eval(1)",
        "lambda: 1",
        "[x for x in range(9)]",
        "(x := 1)",
        "f'{1}'",
        "1\n+ 1",
        "1; 1",
        "1 # one",
        "\uff11 + 1",  # a full-width digit
        "\u202e1",
        "1\x00",
        "ｓｑｒｔ(4)",
    ],
)
def test_what_has_no_value(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing of a model's text reaches the user's warnings
        assert evaluate(text) is None


def nested(opening, times, inside="1"):
    closing = opening[::-1].translate(str.maketrans("([", ")]", "abcdefghijklmnopqrstuvwxyz"))
    return opening * times + inside + closing * times


@pytest.mark.parametrize(
    ("within", "beyond"),
    [
        ("1+" + " " * (MAX_LENGTH - 3) + "1", "1+" + " " * (MAX_LENGTH - 2) + "1"),
        (f"0**{MAX_EXPONENT}", f"0**{MAX_EXPONENT + 1}"),
        (f"2**-{MAX_EXPONENT}", f"2**-{MAX_EXPONENT + 1}"),
        ("15**1000 * 15", "16**1000"),  # 4 and 5 bits
        ("255**512", "256**456"),  # 8 * 512 = 4096 bits, and 9 * 456
        ("2 ** 1000.5", "2.0 ** 1024"),  # a float has no bits to count
        ("(2**1000)**4 * 2**95", "(2**1000)**4 * 2**96"),
        ("1" + "+1" * (MAX_DEPTH - 1), "1" + "+1" * MAX_DEPTH),
        ("-" * (MAX_DEPTH - 1) + "1", "-" * MAX_DEPTH + "1"),
        ("1" + "**1" * (MAX_DEPTH - 1), "1" + "**1" * MAX_DEPTH),
        ("-" * 99 + nested("abs(", 100), "-" * 100 + nested("abs(", 100)),
        (nested("sum([", 99, "-1"), nested("sum([", 99, "--1")),
        (f"round(1.5, {MAX_PLACES})", f"round(1.5, {MAX_PLACES + 1})"),
        (f"round(15, -{MAX_PLACES})", f"round(15, -{MAX_PLACES + 1})"),
    ],
)
def test_bounds(within, beyond):
    assert evaluate(within) is not None and evaluate(beyond) is None


HOSTILE = ["9**9**9", "9**9**9**9", "(9**9)**(9**9)", "pow(9, pow(9, 9))", "2.5**9**9", "1e999"]
HOSTILE += [
    "round(5, -10**9)",
    "round(0.5, 10**9)",
    "9" * 1_000,
    "9" * 10_000_000,
    "1e" + "9" * 990,
]
HOSTILE += ["(" * 500 + ")" * 500, "-" * 1_000, "1" + "**1" * 300, "[" * 1_000, "abs(" * 200]
HOSTILE += ["*".join(["9**999"] * 160), "sum([" + "9**999," * 140 + "])", "." * 10_000_000]
HOSTILE += ["+".join(["1/3"] * 240), " " * 10_000_000, "1 " * 5_000_000, "%".join(["7**999"] * 150)]


@pytest.mark.parametrize("text", HOSTILE, ids=[text[:12] for text in HOSTILE])
def test_hostile_expressions_end_within_a_second(text):
    began = time.process_time()
    evaluate(text)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("text", ["9**9**9", "9" * 2_000, "(9**9)**(9**9)", "round(5, -10**9)"])
def test_what_would_never_end_has_no_value(text):
    assert evaluate(text) is None


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("3 * 4", "12", True),
        ("0.1 + 0.2", "0.3", True),
        ("6 / 2", "3", True),
        ("3", "6 / 2", True),
        ("3", "3.0000000001", True),
        ("1000000000000", "1000000000001", False),  # integers exactly
        ("1.0000000001", "1.0", True),
        ("1.00000001", "1.0", False),
        ("0.1 + 0.2 - 0.3", "0", True),
        ("1e-9", "0", False),
        ("12", "13", False),
        ("12 apples", "12 apples", True),
        (" 12 apples", "12 apples ", True),
        ("12 apples", "12 pears", False),
        ("12 apples", "12", False),
        ("12", "12 apples", False),
        ("1/0", "1/0", True),  # written the same
        ("1/0", "2/0", False),
        ("0", "x", False),
        ("x", "0", False),
    ],
)
def test_same_value(first, second, same):
    assert same_value(first, second) is same


def test_an_integer_beyond_all_floats_equals_no_float():
    assert not same_value("9 ** 999", "1.5") and not same_value("1.5", "-9 ** 999")
    assert same_value("9 ** 999", "9 ** 998 * 9")


NUMBERS = st.integers(0, 999).map(str) | st.floats(0.001, 1e6).map(repr)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(
            lambda parts: f"({' '.join(parts)})"
        )
        | inner.map("(-{})".format)
        | inner.map("abs({})".format)
    ),
    max_leaves=12,
)


@given(EXPRESSIONS)
def test_agrees_with_python(text):
    try:
        value = eval(text)  # of what this test made
    except ArithmeticError:
        value = None
    found = evaluate(text)
    assert found == value and type(found) is type(value)


@given(st.text(max_size=60) | st.text("0123456789+-*/%().,[] emaxsqrt_", max_size=60))
def test_any_text_has_a_finite_value_or_none(text):
    value = evaluate(text)
    assert value is None or (type(value) in (int, float) and math.isfinite(value))
