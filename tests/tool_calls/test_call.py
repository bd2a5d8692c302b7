"""Reading calls: where they may stand, what is none, and hostile text."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmpi.rewards import boxed_answer, think_format
from fastmpi.tool_calls.call import (
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_LENGTH,
    Call,
    is_call,
    parse_call,
    read_call,
)

OCR = '{"name": "OCR_v4", "arguments": {"image": "image/image_1.jpg"}}'
READ = Call("OCR_v4", {"image": "image/image_1.jpg"})


@pytest.mark.parametrize(
    "text",
    [
        rf"\boxed{{{OCR}}}",
        rf"<think> OCR.2 </think> \boxed{{ {OCR} }}<|im_end|>",
        rf"\boxed{{Case 5}} \boxed{{{OCR}}}",
        f"\\boxed{{\n```json\n{OCR}\n```\n}}",
        f"\\boxed{{```{OCR}```}}",
        f"so\n```json\n{OCR}\n```\ndone",
        f"``` {OCR} ```",
        f"```python\nprint(1)\n```\n```json\n{OCR}\n```",
        f"```json\n{{}}\n```\n```json\n{OCR}\n```",
        f"```json\n{OCR}\n``` or ```\nprint(1)\n```",
        f"```json\n{{}}\n``` \\boxed{{{OCR}}}",
    ],
)
def test_where_a_call_may_stand(text):
    assert parse_call(text) == READ


@pytest.mark.parametrize(
    "text",
    [
        OCR,  # in nothing
        rf"\boxed{{{OCR}",
        rf"\boxed{{{OCR[:-1]}}}",
        rf"\boxed{{call {OCR}}}",
        rf"\boxed{{{OCR}; {OCR}}}",
        rf"\boxed{{{OCR}}} \boxed{{Case 5}}",  # the last box counts
        f"```json\n{OCR}\n``` \\boxed{{Case 5}}",  # and no fence beside a box
        f"\\boxed{{```json\n{OCR}\n```",
        f"\\boxed{{```json\n{OCR}}}",
        f"\\boxed{{\n{OCR}\n```}}",
        f"```json\n{OCR}",
        f"```json\n{OCR}\nand more```",
        f"```json {OCR[:-1]} ```",
        f"```json\n{OCR}\n```\n```json\n{{}}\n```",
        f"``{OCR}``",
        "",
    ],
)
def test_where_none_stands(text):
    assert parse_call(text) is None


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "OCR_v4"}',
        '{"arguments": {}}',
        '{"name": "OCR_v4", "arguments": {}, "thought": ""}',
        '{"name": "OCR_v4", "args": {}}',
        '{"name": 4, "arguments": {}}',
        '{"name": null, "arguments": {}}',
        '{"name": "OCR_v4", "arguments": []}',
        '{"name": "OCR_v4", "arguments": "{}"}',
        '{"name": "OCR_v4", "name": "OCR_v4", "arguments": {}}',
        '{"name": "OCR_v4", "arguments": {"k": 1, "k": 1}}',
        '{"name": "OCR_v4", "arguments": {"k": NaN}}',
        '{"name": "OCR_v4", "arguments": {"k": Infinity}}',
        '{"name": "OCR_v4", "arguments": {"k": -Infinity}}',
        '{"name": "OCR_v4", "arguments": {"k": 1e999}}',
        '{"name": "OCR_v4", "arguments": {"k": -1e999}}',
        '{"name": "OCR_v4", "arguments": {"k": ' + "9" * (MAX_DIGITS + 1) + "}}",
        '{"name": "OCR_v4", "arguments": {"k": 0.' + "9" * MAX_DIGITS + "}}",
        r'{"name": "OCR_v4", "arguments": {"text": "\ud800"}}',
        '{"name": "OCR_v4", "arguments": {"text": "\ud800"}}',
        r'{"name": "OCR_v4", "arguments": {"\udfff": 1}}',
        '{"name": "OCR_v4", "arguments": {"text": "a\nb"}}',
        "{'name': 'OCR_v4', 'arguments': {}}",
        '{"name": "OCR_v4", "arguments": {},}',
        '{"name": "OCR_v4", "arguments": {"k": [1}]}',
        '{"name": "OCR_v4", "arguments": {"k": __import__("os")}}',
        '[{"name": "OCR_v4", "arguments": {}}]',
        '{"name": "OCR_v4", "arguments": {"text": "' + "a" * MAX_LENGTH + '"}}',
        "{}",
        "[]",
        '"OCR_v4"',
        "4",
        "",
    ],
)
def test_what_is_no_call(text):
    assert read_call(text) is None and not is_call(text)
    assert parse_call(rf"\boxed{{{text}}}") is None
    assert parse_call(f"```json\n{text}\n```") is None


def nested(depth):
    """A call of so many objects and lists inside each other; the call's own two count."""
    return '{"name": "a", "arguments": {"k": ' + "[" * (depth - 2) + "]" * (depth - 2) + "}}"


def padded(length):
    """A call of so many characters."""
    head = '{"name": "a", "arguments": {}'
    return head + " " * (length - len(head) - 1) + "}"


def test_the_last_that_is_within_bounds():
    assert read_call(nested(MAX_DEPTH)) is not None and read_call(nested(MAX_DEPTH + 1)) is None
    assert (
        read_call(padded(MAX_LENGTH)) == Call("a", {}) and read_call(padded(MAX_LENGTH + 1)) is None
    )
    digits = "9" * MAX_DIGITS
    assert read_call(f'{{"name": "a", "arguments": {{"k": {digits}}}}}').arguments["k"] == int(
        digits
    )
    decimals = "0." + "9" * (MAX_DIGITS - 2)
    assert is_call(f'{{"name": "a", "arguments": {{"k": {decimals}}}}}')


@pytest.mark.parametrize(
    "value",
    [
        "}",
        "{",
        "}}}}}",
        'a " quote',
        "a \\ backslash",
        "\\",
        "```",
        "```python\ndef solution():\n    return {1: '}'}\n```",
        "\\boxed{Case 5}",
        "\\boxed{",
        "\\\\boxed{",
        "</script><script>alert(1)</script>",
        "\u202egnirts\u2066",
        "\x00\x1b[31m\x7f\u2028",
        "\U0001f600",
        None,
        True,
        -1.5e-7,
        [1, {"a": "}"}],
    ],
)
def test_values_arrive_as_they_are(value):
    call = Call("AddText", {"text": value})
    for answer in (call.to_json(), json.dumps(json.loads(call.to_json()))):  # plain, and escaped
        assert read_call(answer) == call
        assert parse_call(f"<think> \\boxed{{x}} }} {{ </think> \\boxed{{{answer}}} }}") == call
        assert parse_call(f"\\boxed{{```json\n{answer}\n```}}") == call
        assert parse_call(f"so\n```json\n{answer}\n```") == call
        boxed = f"<think>x</think>\\boxed{{{answer}}}"
        assert boxed_answer(boxed) == answer and think_format([boxed]) == [1.0]


def test_an_escaped_box_is_none():
    assert parse_call(f"\\boxed{{{OCR}}} \\\\boxed{{Case 5}}") == READ
    assert parse_call(f"\\\\\\boxed{{{OCR}}}") == READ  # a backslash, then a box
    assert parse_call(f"\\\\boxed{{{OCR}}}") is None
    assert boxed_answer(r"\\boxed{Case 5}") == "Case 5"  # where no call is meant it still counts
    assert boxed_answer(r"\boxed{Case 4} \\boxed{Case 5}") == "Case 4"


def test_a_box_around_more_than_an_object_balances_plain_braces():
    assert boxed_answer(r'\boxed{{"a": "}"} and}') == '{"a": "}"'
    assert boxed_answer(r'\boxed{{a"b}}') == '{a"b}'
    assert boxed_answer(f"\\boxed{{ {OCR} }} tail }}") == f" {OCR} "
    assert boxed_answer(f"\\boxed{{```json\n{OCR}\n```\n}} }}") == f"```json\n{OCR}\n```\n"


SCALARS = st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.text(max_size=30)
SCALARS |= st.floats(allow_nan=False, allow_infinity=False)
CALLS = st.builds(Call, st.text(max_size=20), st.dictionaries(st.text(max_size=10), SCALARS))


@given(CALLS)
def test_every_call_is_read_back(call):
    assert parse_call(f"\\boxed{{{call.to_json()}}}") == call
    assert parse_call(f"```json\n{json.dumps(json.loads(call.to_json()))}\n```") == call


PIECES = ["\\boxed{", "{", "}", "[", '"', "\\", "```", "json\n", ":", ",", "name", "arguments", "1"]


@given(st.lists(st.sampled_from([*PIECES, OCR, " ", "\ud800"]), max_size=30))
def test_any_text_gives_a_call_or_none(pieces):
    call = parse_call("".join(pieces))
    assert call is None or read_call(call.to_json()) == call


UNITS = ["{", "}", "{}", "[", '"', "\\", "\\boxed{", "\\\\boxed{", '\\boxed{{"', "```", "`"]
UNITS += ["```json\n{", "``` ", " ", "a", "\ud800", "\u202e", "</script>", '{"a":', '"\\"', "9"]
UNITS += [f"\\boxed{{{OCR}}}", f"```json\n{OCR}\n```"]
STARTS = ["", "\\boxed{", '\\boxed{{"name": "', "\\boxed{```json\n", '```json\n{"name": 9']


@pytest.mark.parametrize("unit", UNITS)
def test_ten_megabytes_are_read_within_a_second(unit):
    body = unit * (10_000_000 // len(unit))
    for start in STARTS:
        for function in (parse_call, boxed_answer):
            text = start + body
            began = time.process_time()
            function(text)
            assert time.process_time() - began < 1, (start, function)
