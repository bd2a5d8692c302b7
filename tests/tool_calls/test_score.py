"""Scores of calls, computed by hand for every kind of field."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmpi.policies.gta.tools import TOOLS
from fastmpi.tool_calls.call import Call, parse_call
from fastmpi.tool_calls.score import DEFAULTS, CallScore, score_call, score_calls
from fastmpi.tool_calls.similarity import token_f1


def argument(predicted, gold, tool="Tool_v1", called=None):
    """The argument score of one call of a tool."""
    score = score_call(Call(called or tool, predicted), Call(tool, gold), similarity=token_f1)
    assert score.tool == float(called in (None, tool))
    return score.argument


@pytest.mark.parametrize("field", ["position", "color", "image", "k", "top1"])
@pytest.mark.parametrize(
    ("predicted", "gold", "score"),
    [
        ("image/image_1.jpg", "image/image_1.jpg", 1),
        ("image/image_1.jpg", "image/image_2.jpg", 0),
        ("Red", "red", 0),
        ("red ", "red", 0),
        ("", "", 1),
        (4, 4, 1),
        (4.0, 4, 1),
        (4, 5, 0),
        ("4", 4, 0),
        (True, True, 1),
        (True, False, 0),
        (True, 1, 0),
        (0, False, 0),
        ("true", True, 0),
        (None, None, 1),
        (None, False, 0),
        (2**62, 2.0**62, 1),
        (2**62 + 1, 2.0**62, 0),
    ],
)
def test_exact_fields(field, predicted, gold, score):
    assert argument({field: predicted}, {field: gold}) == score


TEXTS = ["attribute", "text", "query", "command", "annotation", "keywords", "instruction", "other"]


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize(
    ("predicted", "gold", "score"),
    [
        ("a red cube", "a red cube", 1),
        ("red cube", "a red cube", 0.8),
        ("sphere", "a red cube", 0),
        ("7", 7, 0),
        (7, "7", 0),
        (None, "a", 0),
        ("a", None, 0),
        (None, None, 1),
        (7, 7.0, 1),
        (1, True, 0),
        (["a", 1], ["a", 1], 1),
        (["a", 1], ["a", True], 0),
        (["a"], ["a", "a"], 0),
        (["a", "a"], ["a"], 0),
        ({"x": [1]}, {"x": [1.0]}, 1),
        ({"x": 1}, {"x": True}, 0),
        ({"x": 1}, {"y": 1}, 0),
        ({}, [], 0),
        ([], {}, 0),
        (5, {"x": 1}, 0),
        ({"x": 1}, 5, 0),
        ("a", ["a"], 0),
        (["a"], "a", 0),
    ],
)
def test_text_fields_and_unknown_ones(field, predicted, gold, score):
    assert argument({field: predicted}, {field: gold}) == pytest.approx(score)


@pytest.mark.parametrize(
    ("predicted", "gold", "score"),
    [
        ("3*4", "12", 1),
        ("(9.99 + 5) * 2", "9.99*2 + 10", 1),
        ("13", "12", 0),
        ("__import__('os')", "12", 0),
        ("9**9**9", "9**9**9", 1),  # no value, but the same words
        ("9**9**9", "12", 0),
        (12, "12", 0),  # no expression
        (12, 12, 1),
    ],
)
def test_expression(predicted, gold, score):
    assert argument({"expression": predicted}, {"expression": gold}) == score


@pytest.mark.parametrize(
    ("predicted", "gold", "score"),
    [
        ("(0, 0, 10, 10)", "(0, 0, 10, 10)", 1),
        (" ( 0,0 ,10.0,10 ) ", "(0, 0, 10, 10)", 1),
        ("(0, 0, 10, 10)", "(5, 0, 15, 10)", 50 / 150),
        ("(0, 0, 10, 10)", "(5, 5, 15, 20)", 25 / (100 + 150 - 25)),
        ("(2, 2, 4, 4)", "(0, 0, 10, 10)", 4 / 100),
        ("(-10, -10, 0, 0)", "(-5.5, -10, 0, 0)", 0.55),
        ("(0, 0, 10, 10)", "(10, 0, 20, 10)", 0),
        ("(0, 0, 10, 10)", "(20, 20, 30, 30)", 0),  # apart both ways
        ("(0, 0, 10, 10)", "(0, 20, 10, 30)", 0),
        ("(10, 10, 0, 0)", "(0, 0, 10, 10)", 0),  # not top left first
        ("(10, 0, 0, 10)", "(0, 0, 10, 10)", 0),
        ("(5, 5, 5, 9)", "(5, 5, 5, 9)", 1),  # no area, but gold itself
        ("(5.0, 5, 5, 9)", "(5, 5, 5, 9)", 0),
        ("(5, 5, 9, 5)", "(5, 5, 9, 5.0)", 0),
        ("the box", "the box", 1),
        ("(0, 0, 10, 10)", "the box", 0),
        ("[0, 0, 10, 10]", "(0, 0, 10, 10)", 0),
        ("0, 0, 10, 10", "(0, 0, 10, 10)", 0),
        ("(0, 0, 10)", "(0, 0, 10, 10)", 0),
        ("(0, 0, 10, 10, 10)", "(0, 0, 10, 10)", 0),
        ("(0, 0, 10, 10) or so", "(0, 0, 10, 10)", 0),
        ("(0, 0, 1e3, 10)", "(0, 0, 1000, 10)", 0),
        ("(0, 0, nan, 10)", "(0, 0, 10, 10)", 0),
        ("(0, 0, " + "9" * 400 + ", 10)", "(0, 0, 10, 10)", 0),
        ("(0, 0, \u0661, 10)", "(0, 0, 1, 10)", 0),  # an Arabic digit
        ([0, 0, 10, 10], "(0, 0, 10, 10)", 0),
        ([0, 0, 10, 10], [0, 0, 10, 10], 1),
        ("", "(0, 0, 10, 10)", 0),
    ],
)
def test_bbox(predicted, gold, score):
    assert argument({"bbox": predicted}, {"bbox": gold}) == pytest.approx(score, abs=1e-12)


def test_mean_over_the_union_of_fields():
    gold = {"image": "a.jpg", "bbox": "(0, 0, 10, 10)", "attribute": "the red colour"}
    half = {"image": "a.jpg", "bbox": "(0, 0, 10, 5)", "attribute": "the colour"}
    assert argument(half, gold) == pytest.approx((1 + 0.5 + 0.8) / 3)
    assert argument({"image": "a.jpg"}, gold) == pytest.approx(1 / 3)
    assert argument({**gold, "more": 1, "still": "more"}, gold) == pytest.approx(3 / 5)
    assert argument({}, gold) == 0
    assert argument({}, {}) == 1
    assert argument({"image": "a.jpg"}, {}) == 0


def test_the_tool_by_its_exact_name_and_the_arguments_whatever_it_is():
    gold = Call("OCR_v4", {"image": "a.jpg"})
    assert score_call(gold, gold) == CallScore(1, 1) and score_call(gold, gold).overall == 1
    for name in ("OCR_v3", "OCR", "ocr_v4", "OCR_v4 ", "MathOCR", ""):
        score = score_call(Call(name, {"image": "a.jpg"}), gold)
        assert score == CallScore(0, 1) and score.overall == 0.5
    wrong = score_call(Call("OCR_v4", {"image": "b.jpg"}), gold)
    assert wrong == CallScore(1, 0) and wrong.overall == 0.5


def test_no_call_scores_nothing():
    assert score_call(None, Call("OCR_v4", {"image": "a.jpg"})) == CallScore(0, 0)
    assert score_call(None, Call("Now", {})) == CallScore(0, 0)


@pytest.mark.parametrize(
    ("tool", "needed", "field", "default", "other"),
    [
        ("GoogleSearch_v2", "query", "k", 10, 4),
        ("TextToBbox", "text", "top1", True, False),
        ("AddText", "text", "color", "red", "blue"),
        ("DrawBox", "image", "annotation", None, "cat"),
    ],
)
def test_an_optional_argument_left_out_is_its_default(tool, needed, field, default, other):
    def score(predicted, gold):
        return argument({needed: "a", **predicted}, {needed: "a", **gold}, tool)

    assert score({}, {field: default}) == 1
    assert score({field: default}, {field: default}) == 1
    assert score({field: default}, {}) == 1
    assert score({field: other}, {}) == 0.5
    assert score({}, {field: other}) == 0.5
    assert score({field: other}, {field: default}) == 0.5
    assert score({field: other}, {field: other}) == 1
    # and it earns nothing where all else is wrong
    assert argument({needed: "b", field: default}, {needed: "a"}, tool) == 0
    assert argument({field: default}, {needed: "a"}, tool) == 0


def test_defaults_are_those_of_golds_tool():
    added = {"k": 10, "top1": True, "color": "red", "annotation": None}
    assert argument({"image": "b.jpg", **added}, {"image": "a.jpg"}, "OCR_v1") == 0
    assert argument({"image": "a.jpg", **added}, {"image": "a.jpg"}, "OCR_v1") == 1 / 5
    assert argument({"query": "a"}, {"query": "a", "k": 10}, "OCR_v1") == 0.5
    assert argument({"query": "a"}, {"query": "a", "k": 10}, "GoogleSearch_v1", "OCR_v1") == 1
    own = {"Weather": {"unit": "C"}}
    gold = Call("Weather_v12", {"place": "Rome"})
    called = Call("Weather_v12", {"place": "Rome", "unit": "C"})
    assert score_call(called, gold, defaults=own).argument == 1
    assert score_call(called, gold).argument == 0.5


def test_the_defaults_are_those_that_the_tools_are_described_with():
    described = {
        tool.name: {argument.name: argument.default for argument in tool.arguments}
        for tool in TOOLS.values()
    }
    assert all(described[tool].items() >= defaults.items() for tool, defaults in DEFAULTS.items())
    optional = {
        (tool.name, argument.name)
        for tool in TOOLS.values()
        for argument in tool.arguments
        if argument.optional
    }
    assert optional == {(tool, field) for tool, fields in DEFAULTS.items() for field in fields}


def test_texts_of_many_calls_go_through_one_call_of_the_similarity():
    seen = []

    def measure(pairs):
        seen.append(list(pairs))
        return np.array([0.1, 0.2, 0.4])

    gold = Call("T", {"text": "a", "image": "i", "query": "b"})
    calls = [
        Call("T", {"query": "x", "text": "y", "image": "i"}),
        None,
        Call("T", {"image": "i"}),
        Call("T", {"text": "z"}),
    ]
    scores = score_calls(calls, [gold] * 4, similarity=measure)
    assert seen == [[("y", "a"), ("x", "b"), ("z", "a")]]  # predicted first, in gold's order
    assert [score.argument for score in scores] == pytest.approx(
        [(0.1 + 1 + 0.2) / 3, 0, 1 / 3, 0.4 / 3]
    )
    with pytest.raises(ValueError):
        score_calls([gold], [gold, gold])


SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5)
FIELDS = ["image", "k", "text", "bbox", "expression", "annotation", "other"]
ARGUMENTS = st.dictionaries(st.sampled_from(FIELDS), SCALARS | st.lists(SCALARS, max_size=2))
CALLS = st.builds(Call, st.sampled_from(["OCR_v1", "GoogleSearch_v1", "DrawBox"]), ARGUMENTS)


@given(CALLS, CALLS)
def test_any_call_scores_from_0_to_1(call, gold):
    score = score_call(call, gold)
    assert 0 <= score.argument <= 1 and score.tool in (0, 1) and 0 <= score.overall <= 1


@given(CALLS)
def test_gold_scores_1_and_what_is_added_lowers_it(call):
    assert score_call(call, call) == CallScore(1, 1)
    assert score_call(parse_call(f"\\boxed{{{call.to_json()}}}"), call) == CallScore(1, 1)
    more = Call(call.name, {**call.arguments, "made up": 1})
    size = len(call.arguments)
    assert score_call(more, call).argument == pytest.approx(size / (size + 1))
