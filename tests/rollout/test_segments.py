"""Equal prompts become one request, prompts under one trunk lie side by side, rooms are few."""

from __future__ import annotations

import pytest

from fastmpi.data.samples import Prompt
from fastmpi.rollout.held import HeldSegments
from fastmpi.rollout.segments import Request, Segment, lay_out, make_requests, padded


@pytest.mark.parametrize(
    ("lengths", "rooms"),
    [
        ([3, 4, 9, 10, 30], {3: 4, 4: 4, 9: 10, 10: 10, 30: 30}),
        ([15, 10, 10], {10: 15, 15: 15}),
        ([16, 10], {10: 10, 16: 16}),
        ([], {}),
    ],
)
def test_lengths_that_differ_little_get_the_same_room(lengths, rooms):
    assert padded(lengths) == rooms


def test_equal_prompts_are_one_request(qwen, example_prompts):
    first, second, *_ = example_prompts(qwen)
    twin = Prompt(first.ids.copy(), first.images)
    requests = make_requests([first, second, twin, first], [2, 1, 1, 0])
    assert [r.members for r in requests] == [[(0, 0), (0, 1), (2, 0)], [(1, 0)]]


def test_segments_are_the_prompt(qwen, example_prompts):
    prompts = example_prompts(qwen)
    requests = make_requests(prompts, range(1, 7))
    ordered = lay_out(requests, qwen.processor, 4)
    assert {id(r) for r in ordered} == {id(r) for r in requests}
    for request in ordered:
        assert sum(s.length for s in request.segments) == len(request.prompt.ids)
        assert [s.depth for s in request.segments] == list(range(len(request.segments)))
        assert request.waiting == request.members
    assert requests[2].segments[0] is requests[3].segments[0]  # one policy
    for segment in {s for r in requests for s in r.segments}:
        below = [r for r in ordered if segment in r.segments]
        assert segment.needed_by == sum(len(r.members) for r in below)
        first = ordered.index(below[0])
        assert ordered[first : first + len(below)] == below


def _request(*segments: Segment, count: int = 1) -> Request:
    for segment in segments:
        segment.needed_by += count
    return Request(None, [(0, i) for i in range(count)], segments)


def test_held_segments_are_shared_and_freed_with_the_last_response():
    trunk = Segment(4, 4, 0)
    one, two, three = (_request(trunk, Segment(2, 3, 1)) for _ in range(3))
    held = HeldSegments(10)
    assert held.take(one) and held.take(two) and not held.take(three)
    assert [s.start for s in (*one.segments, two.segments[1])] == [0, 4, 7]
    assert three.segments[1].start is None
    assert held.release(one) and held.take(three) and three.segments[1].start == 4
    assert held.segments == {trunk, two.segments[1], three.segments[1]}
    assert held.release(two) and trunk in held.segments
    assert held.release(three) and not held.segments
    assert held.take(_request(Segment(10, 10, 0), count=2))


def test_no_room_takes_nothing():
    held = HeldSegments(5)
    request = _request(Segment(3, 3, 0), Segment(3, 3, 1))
    assert not held.take(request) and not held.segments
    assert all(segment.start is None for segment in request.segments)
    assert held.take(_request(Segment(5, 5, 0)))


def test_forgotten_segments_are_read_again():
    held = HeldSegments(5)
    request = _request(Segment(3, 3, 0))
    held.take(request)
    held.clear()
    assert not held.segments and request.segments[0].start is None
    assert held.take(_request(Segment(5, 5, 0)))
