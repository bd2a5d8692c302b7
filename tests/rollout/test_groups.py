"""PolicyRollout's groups: arms, explicit numbers, no policy in what is scored; DAPO's filter."""

from __future__ import annotations

from collections import Counter

import numpy as np
import PIL.Image
import pytest

from fastmpi.policies.policy import Policy
from fastmpi.rollout.groups import PolicyRollout, Rollout
from fastmpi.rollout.native import NativeEngine
from fastmpi.rollout.sampling import SamplingParams

PARAMS = SamplingParams(max_tokens=6, seed=1, stop_token_ids=())


def _policy(name: str) -> Policy:
    text = f"policy {name} : C1 if red then Case 3 else Case 5 end"
    return Policy(name, [{"role": "system", "content": [{"type": "text", "text": text}]}])


POLICIES = {name: _policy(name) for name in ("kavo", "mira")}


def _row(number: int, policy: str = "kavo", shade: int = 0) -> dict:
    picture = PIL.Image.new("RGB", (64, 64), (shade, 0, 0))
    return {
        "id": f"row-{number}",
        "policy_id": policy,
        "images": [picture],
        "prompt": f"question {policy}",
        "reasoning": "",
        "answer": "Case 3",
    }


ROWS = [_row(0), _row(1, "mira"), _row(2, shade=200), _row(3)]  # rows 0 and 3 have equal prompts


def _sample(
    model, free, aware, rows, policies=POLICIES, engine=None, first_group=0
) -> list[Rollout]:
    counts = {"num_generations": free, "num_policy_generations": aware}
    groups = PolicyRollout(model.processor, policies, **counts)
    engine = engine or NativeEngine(model)
    return groups.generate(groups.prompts(rows), engine, PARAMS, first_group=first_group)


def test_groups_hold_both_arms(qwen):
    rollouts = _sample(qwen, 3, 2, ROWS, first_group=10)
    counts = Counter((r.row, r.group, r.arm) for r in rollouts)
    assert counts == {
        (row, 10 + row, arm): count
        for row in range(4)
        for arm, count in (("policy_free", 3), ("policy_aware", 2))
    }
    assert [r.group for r in rollouts] == sorted(r.group for r in rollouts)


def test_what_is_scored_never_holds_the_policy(qwen):
    rollouts = _sample(qwen, 1, 1, ROWS)
    for rollout in rollouts:
        text = qwen.processor.decode(rollout.prompt.ids)
        assert "question" in text and "policy" not in text and "if red" not in text
        assert len(rollout.prompt.images) == 1


def test_the_policy_aware_arm_is_sampled_with_the_policy(qwen):
    class Spy(NativeEngine):
        def generate(self, prompts, num_responses, params, **options):
            self.prompts = [self.model.processor.decode(prompt.ids) for prompt in prompts]
            self.counts, self.streams = num_responses, options["streams"]
            return super().generate(prompts, num_responses, params, **options)

    spy = Spy(qwen)
    _sample(qwen, 3, 2, ROWS, engine=spy, first_group=5)
    assert spy.counts == [3] * 4 + [2] * 4
    assert all("policy" not in prompt for prompt in spy.prompts[:4])
    wanted = [f"policy {row['policy_id']} : C1 if red" for row in ROWS]
    assert all(part in prompt for part, prompt in zip(wanted, spy.prompts[4:], strict=True))
    assert len(set(spy.streams)) == 8


def test_groups_with_equal_prompts_stay_apart(qwen):
    rollouts = _sample(qwen, 2, 0, ROWS)
    first, last = ([r.response.ids for r in rollouts if r.group == g] for g in (0, 3))
    assert len(first) == len(last) == 2 and not np.array_equal(first, last)


def test_a_group_repeats_in_another_batch(qwen):
    together = _sample(qwen, 2, 2, ROWS, first_group=4)
    alone = _sample(qwen, 2, 2, ROWS[2:3], first_group=6)
    ids = [r.response.ids.tolist() for r in together if r.group == 6]
    assert ids == [r.response.ids.tolist() for r in alone]


def test_zero_policy_generations_is_plain_grpo(qwen):
    rollouts = _sample(qwen, 4, 0, ROWS[:1], policies={})
    assert [r.arm for r in rollouts] == ["policy_free"] * 4


def test_wrong_groups(qwen):
    with pytest.raises(ValueError, match="row 'row-1': no policy 'mira' is known"):
        _sample(qwen, 1, 1, ROWS, {"kavo": POLICIES["kavo"]})
    with pytest.raises(ValueError, match="a group needs at least one response"):
        PolicyRollout(qwen.processor, {}, num_generations=0, num_policy_generations=0)
    with pytest.raises(ValueError, match="must not be negative"):
        PolicyRollout(qwen.processor, {}, num_generations=4, num_policy_generations=-1)
