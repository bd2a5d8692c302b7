"""Rewards: parsing what a model wrote, hostile text, combining functions, bad rewards."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time

import numpy as np
import pytest

from fastmpi.rewards import (
    BUILT_IN,
    boxed_answer,
    exact_answer,
    load_reward,
    score,
    think_format,
    tool_call,
)
from fastmpi.stages.chain import reward_functions
from fastmpi.tool_calls.call import MAX_LENGTH


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{Case 5}", "Case 5"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{a{b}{c{d}}} tail }", "a{b}{c{d}}"),
        (r"\boxed{\boxed{x}}", "x"),
        (r"\boxed{}", ""),
        (r"\boxed{never closed", None),
        (r"\boxed{" + "a" * (MAX_LENGTH - 1) + "}", "a" * (MAX_LENGTH - 1)),
        (r"\boxed{" + "a" * MAX_LENGTH + "}", None),
        (r"\boxed{1} and \boxed{cut", None),  # the last one counts, as it stands
        ("Case 5", None),
        ("", None),
    ],
)
def test_boxed_answer(text, answer):
    assert boxed_answer(text) == answer


def test_exact_answer():
    completions = [
        r"<think>x</think>\boxed{ Case 5 }",
        r"\boxed{case 5}",
        "Case 5",
        r"\boxed{Case 55}",
    ]
    assert exact_answer(completions, answer=["Case 5"] * 4) == [1.0, 0.0, 0.0, 0.0]


def test_tool_call():
    gold = '{"name": "OCR_v4", "arguments": {"image": "a.jpg", "text": "a red cube"}}'
    completions = [
        rf"<think>x</think>\boxed{{{gold}}}",
        rf"\boxed{{{gold.replace('v4', 'v3')}}}",
        rf"\boxed{{{gold.replace('a.jpg', 'b.jpg')}}}",
        f"```json\n{gold.replace('a red cube', 'red')}\n```",
        rf"\boxed{{{gold}",
        "OCR_v4",
        rf"\boxed{{{gold}}}",
    ]
    answers = [*[gold] * 6, "Case 5"]
    rewards = tool_call(completions=completions, answer=answers, arm=["policy_free"] * 7)
    assert rewards == pytest.approx([1, 0.5, 0.75, 0.5 + (1 + 0.5) / 4, 0, 0, None])


def test_tool_call_among_other_rewards():
    """Where no answer is a call it does not apply; alone it is then an error."""
    scored = _score(exact_answer, tool_call, answer=["a", '{"name": "a", "arguments": {}}'])
    assert scored.rewards.tolist() == [0, 0] and np.isnan(scored.parts["tool_call"][0])
    with pytest.raises(ValueError, match="no reward function applies to completion 1"):
        _score(tool_call, answer=['{"name": "a", "arguments": {}}', "Case 5"])


LONG = "9" * 90_000
HOSTILE = [
    "__import__('os').system('true')",
    "9**9**9",
    "1e999",
    "(" * 90_000,
    LONG,
    "(" + ", ".join([LONG[:20_000]] * 4) + ")",
    "</script><script>alert(1)</script>",
    "\u202e\u2066\x00\x1b[31m",
    "\\boxed{" * 10_000,
    "}" * 90_000,
    "a " * 45_000,
    {"a": {"b": [None]}},
]
NO_JSON = ["\ud800", float("nan"), float("inf"), 10**400]


@pytest.mark.parametrize("value", HOSTILE + NO_JSON, ids=lambda value: repr(value)[:16])
def test_a_hostile_value_earns_only_the_tool(value):
    """In every kind of field, within a second, and gold's own values beside it still count."""
    gold = {"expression": "1+1", "bbox": "(0, 0, 9, 9)", "image": "a.jpg", "text": "a b", "k": 1}
    everywhere = json.dumps({"name": "T", "arguments": dict.fromkeys(gold, value)})
    once = json.dumps({"name": "T", "arguments": {**gold, "text": value}})
    answer = json.dumps({"name": "T", "arguments": gold})
    start = time.process_time()
    rewards = tool_call([rf"\boxed{{{everywhere}}}", f"```\n{once}\n```"], answer=[answer] * 2)
    assert time.process_time() - start < 1
    read = value not in NO_JSON
    short = read and len(everywhere) <= MAX_LENGTH
    assert rewards == pytest.approx([0.5 * short, 0.9 * read], abs=1e-4)


def test_recipes_name_what_is_built_in():
    functions = reward_functions(BUILT_IN, trust_recipe_code=False)
    assert functions == [exact_answer, think_format, tool_call]


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (r"<think> C1 red yes</think>\boxed{Case 5}", 1.0),
        ("  <think>\n\n</think>\n\nSo \\boxed{1}.<|im_end|>\n", 1.0),
        (r"\boxed{1}<think>x</think>", 0.0),
        (r"<think>\boxed{1}</think>", 0.0),
        (r"<think>x\boxed{1}", 0.0),
        (r"x<think>y</think>\boxed{1}", 0.0),
        (r"<think>x</think></think>\boxed{1}", 0.0),
        (r"<think><think>x</think>\boxed{1}", 0.0),
        (r"<think>x</think>\boxed{1", 0.0),
        ("", 0.0),
    ],
)
def test_think_format(text, reward):
    assert think_format([text]) == [reward]


@pytest.mark.parametrize(
    "unit", ["{", "}", "{}", r"\boxed{", r"\boxed{}", "<think>", "</think>", "\x00\x1b[31m", "a"]
)
def test_hostile_text_takes_linear_time(unit):
    text = unit * (10_000_000 // len(unit))
    start = time.process_time()
    for completion in (text, r"\boxed{" + text, "<think>" + text + "</think>" + text):
        exact_answer([completion], answer=["x"])
        tool_call([completion], answer=['{"name": "x", "arguments": {}}'])
        think_format([completion])
    assert time.process_time() - start < 20  # quadratic would take hours


def _score(*functions, weights=None, completions=("a", "b"), **columns):
    size = len(completions)
    return score(
        functions, weights, ["p"] * size, list(completions), [[1]] * size, columns, trainer_state=7
    )


def test_functions_get_columns_and_are_summed_by_weight():
    def uses_columns(
        prompts, completions, completion_ids, answer, arm, policy_id, trainer_state, **_
    ):
        assert prompts == ["p", "p"] and completion_ids == [[1], [1]] and trainer_state == 7
        assert arm == ["policy_free", "policy_aware"] and policy_id == ["kavo", "kavo"]
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    async def sometimes(completions, **_):
        await asyncio.sleep(0)
        return [None, np.float32(3.0)]

    columns = {
        "answer": ["a", "x"],
        "arm": ["policy_free", "policy_aware"],
        "policy_id": ["kavo"] * 2,
    }
    scored = _score(uses_columns, sometimes, weights=[0.5, 2.0], **columns)
    assert scored.rewards.tolist() == [0.5, 6.0]
    assert scored.parts["uses_columns"].tolist() == [1.0, 0.0]
    assert math.isnan(scored.parts["sometimes"][0]) and scored.parts["sometimes"][1] == 3.0


def test_async_functions_run_together_and_inside_a_running_loop():
    started = []

    def make(name):
        async def function(completions, **_):
            started.append(name)
            while len(started) < 2:  # returns only when the other one runs too
                await asyncio.sleep(0.001)
            return [1] * len(completions)

        function.__name__ = name
        return function

    async def notebook():
        return _score(make("first"), make("second"))

    assert asyncio.run(notebook()).rewards.tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "reward function 'bad' returned 1 rewards for 2 completions"),
        ([1.0, float("nan")], "reward function 'bad' returned nan for completion 1"),
        ([float("-inf"), 1], "reward function 'bad' returned -inf for completion 0"),
        ([1.0, "1"], "reward function 'bad' returned '1' for completion 1"),
        ([1.0, [1.0]], r"reward function 'bad' returned \[1.0\] for completion 1"),
        (3.0, "reward function 'bad' returned a float, not a list"),
        (None, "reward function 'bad' returned a NoneType, not a list"),
        ([None, 1.0], "no reward function applies to completion 0"),
    ],
)
def test_bad_rewards(returned, message):
    def bad(**_):
        return returned

    with pytest.raises(ValueError, match=message):
        _score(bad)


def test_bad_calls():
    with pytest.raises(ValueError, match="at least one reward function"):
        _score()
    with pytest.raises(ValueError, match="two reward functions are called 'think_format'"):
        _score(think_format, think_format)
    with pytest.raises(ValueError, match="reward_weights has 2 values for 1 reward functions"):
        _score(think_format, weights=[1, 2])
    with pytest.raises(ValueError, match="the weight of reward function 'think_format' is nan"):
        _score(think_format, weights=[float("nan")])
    with pytest.raises(ValueError, match="column 'answer' has 1 values for 2 completions"):
        _score(exact_answer, answer=["a"])


def test_load_reward(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "LIMIT = 3\ndef length(completions, **_): return [0.0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_reward("fastmpi.rewards:exact_answer") is exact_answer
    assert load_reward("fastmpi.rewards.think_format") is think_format
    assert load_reward("my_rewards.length").__name__ == "length"
    with pytest.raises(ValueError, match="'my_rewards:LIMIT' is a int, not callable"):
        load_reward("my_rewards:LIMIT")
    with pytest.raises(ValueError, match="'my_rewards:lenght' cannot be imported"):
        load_reward("my_rewards:lenght")
    with pytest.raises(ValueError, match="'no_such_module.f' cannot be imported"):
        load_reward("no_such_module.f")
    with pytest.raises(ValueError, match="must read"):
        load_reward("length")
    sys.modules.pop("my_rewards")
