"""How a memory of keys and values is divided between prompts and responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastmpi.rollout.segments import Request, Segment

GIB = 1024**3


@dataclass(frozen=True)
class Plan:
    """num_slots: responses that are written together. capacity: own tokens that each may hold.
    shared: tokens of the prompts that are read."""

    num_slots: int
    capacity: int
    shared: int

    @property
    def num_tokens(self) -> int:
        return self.num_slots * self.capacity + self.shared


def make_plan(
    requests: Sequence[Request],
    max_tokens: int,
    *,
    max_responses: int,
    num_tokens: int | None,
    token_bytes: int,
) -> Plan:
    """The most slots that can be kept busy within `num_tokens`; None: what `max_responses` take.

    Room is left for half as many prompts again as the slots are of, so that the next ones are read
    before the last response of the ones before has ended. `ValueError` for a prompt that does not
    fit even alone.
    """
    capacity = max_tokens - 1  # the last token is never read
    longest = max(request.room for request in requests)
    if num_tokens is not None and longest + capacity > num_tokens:
        needs = (longest + capacity) * token_bytes / GIB
        raise ValueError(
            f"rollout_memory_gib: a prompt of {longest} tokens and a response of {max_tokens} need "
            f"{needs:.3g} GiB, and there are {num_tokens * token_bytes / GIB:.3g}"
        )
    best = Plan(1, capacity, longest)
    for responses, held in _choices(requests, max_responses):
        shared = max(held, longest)
        slots = responses
        if num_tokens is not None:
            left = num_tokens - shared
            slots = min(slots, left // capacity if capacity else slots * (left >= 0))
        if slots > best.num_slots:
            best = Plan(slots, capacity, shared)
    if num_tokens is None:
        return best
    return Plan(best.num_slots, capacity, num_tokens - best.num_slots * capacity)


def _choices(requests: Sequence[Request], max_responses: int) -> list[tuple[int, int]]:
    """(responses of the first k prompts, tokens of half as many prompts again) for each k."""
    held, responses, total, seen = [0], [0], 0, set[Segment]()
    for request in requests:
        fresh = [segment for segment in request.segments if segment not in seen]
        seen.update(fresh)
        held.append(held[-1] + sum(segment.room for segment in fresh))
        total += len(request.members)
        responses.append(min(total, max_responses))
    last = len(requests)
    return [(responses[k], held[min(k + (k + 1) // 2, last)]) for k in range(1, last + 1)]
