"""Slots are refilled, the batch shrinks, and prompts are read as slots come free."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastmpi.rollout import continuous
from fastmpi.rollout.held import HeldSegments
from fastmpi.rollout.native import NativeEngine
from fastmpi.rollout.sampling import SamplingParams

PARAMS = SamplingParams(32, temperature=3.0, seed=5, stop_token_ids=tuple(range(40, 100)))


@pytest.fixture
def rows(qwen, monkeypatch) -> list[int]:
    """Rows of every decoding step."""
    seen: list[int] = []
    decode = qwen.decode
    monkeypatch.setattr(
        qwen, "decode", lambda tokens, *rest: seen.append(len(tokens)) or decode(tokens, *rest)
    )
    return seen


def test_a_free_slot_takes_the_next_response(qwen, example_prompts, rows):
    groups = NativeEngine(qwen, max_responses=4).generate(example_prompts(qwen), 6, PARAMS)
    lengths = [len(response.ids) for group in groups for response in group]
    assert max(rows) == 4 and rows[-1] < 4
    in_waves = sum(max(lengths[start : start + 4]) - 1 for start in range(0, 36, 4))
    assert len(rows) < 0.8 * in_waves
    written = sum(lengths) - len(lengths)  # the first ones come with the prompts
    assert written <= sum(rows) < 1.4 * written


def test_prompts_are_read_several_at_once(qwen, example_prompts, monkeypatch):
    read = []
    prefill = continuous.prefill
    monkeypatch.setattr(
        continuous,
        "prefill",
        lambda m, some, *rest: read.append(len(some)) or prefill(m, some, *rest),
    )
    prompts = example_prompts(qwen)
    NativeEngine(qwen).generate(prompts, 2, PARAMS)
    assert read == [6]
    NativeEngine(qwen, max_prompt_tokens=80).generate(prompts, 2, PARAMS)
    assert read[1:] == [4, 2]
    del read[:]
    NativeEngine(qwen, max_responses=4).generate(prompts, 2, PARAMS)
    assert read[0] == 2 and sum(read) == 6


def test_what_lies_in_the_way_is_read_again(qwen, example_prompts, monkeypatch):
    """A trunk that is held where no prompt fits beside it is given up."""
    prompts = example_prompts(qwen)
    whole = NativeEngine(qwen).generate(prompts, 2, PARAMS)
    cleared = []
    take = HeldSegments.take

    def stubborn(self, request):
        if self.segments and not cleared and len(self.segments) == 1:
            return False
        return take(self, request)

    clear = HeldSegments.clear
    monkeypatch.setattr(HeldSegments, "take", stubborn)
    monkeypatch.setattr(
        HeldSegments, "clear", lambda self: cleared.append(len(self.segments)) or clear(self)
    )
    engine = NativeEngine(qwen, max_responses=1, min_shared_tokens=4)
    again = engine.generate(prompts, 2, PARAMS)
    assert cleared == [1]
    for ours, theirs in zip(again, whole, strict=True):
        assert [r.ids.tolist() for r in ours] == [r.ids.tolist() for r in theirs]


def test_stops_at_the_first_token_are_found(qwen, example_prompts, rows):
    params = replace(PARAMS, stop_token_ids=tuple(range(qwen.head.shape[0])))
    groups = NativeEngine(qwen, max_responses=4).generate(example_prompts(qwen), 3, params)
    assert {len(response.ids) for group in groups for response in group} == {1} and not rows
