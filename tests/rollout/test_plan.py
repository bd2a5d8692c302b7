"""How a memory is divided between prompts and responses."""

from __future__ import annotations

import numpy as np
import pytest

from fastmpi.data.samples import Prompt
from fastmpi.rollout.plan import Plan, make_plan
from fastmpi.rollout.segments import Request, Segment


def _request(count: int, *segments: Segment) -> Request:
    return Request(Prompt(np.zeros(1, np.int64)), [(0, i) for i in range(count)], segments)


def _requests(number: int = 6, count: int = 4) -> list[Request]:
    """Each 10 tokens for itself and 100 with the others."""
    policy = Segment(100, 100, 0)
    return [_request(count, policy, Segment(9, 10, 1)) for _ in range(number)]


def _plan(requests, max_tokens=6, *, max_responses=1000, num_tokens=None) -> Plan:
    return make_plan(
        requests,
        max_tokens,
        max_responses=max_responses,
        num_tokens=num_tokens,
        token_bytes=2**20,
    )


def test_without_a_bound_all_are_held():
    assert _plan(_requests()) == Plan(24, 5, 160)
    assert _plan(_requests(), max_tokens=1) == Plan(24, 0, 160)


def test_at_most_so_many_responses_and_half_as_many_prompts_again():
    assert _plan(_requests(), max_responses=8) == Plan(8, 5, 130)
    assert _plan(_requests(), max_responses=3) == Plan(3, 5, 120)


@pytest.mark.parametrize(
    ("num_tokens", "slots"), [(1000, 24), (280, 24), (279, 23), (200, 10), (160, 6), (115, 1)]
)
def test_a_stated_memory_is_used_and_never_exceeded(num_tokens, slots):
    plan = _plan(_requests(), num_tokens=num_tokens)
    assert plan.num_tokens == num_tokens and plan.num_slots == slots
    assert plan.shared >= 110


def test_each_prompt_fits_alone():
    requests = [*_requests(2, 1), _request(1, Segment(300, 300, 0))]
    assert _plan(requests, num_tokens=305) == Plan(1, 5, 300)
    assert _plan(requests, max_responses=1) == Plan(1, 5, 300)
    requests = [*_requests(2, 4), _request(1, Segment(300, 300, 0))]
    assert _plan(requests, num_tokens=310) == Plan(2, 5, 300)


def test_a_prompt_that_does_not_fit():
    with pytest.raises(ValueError, match=r"prompt of 110 tokens .* of 6 need 0.112 GiB, .* 0.111"):
        _plan(_requests(), num_tokens=114)
