"""What is asked for, and the pieces of prompts that are read once for all who begin with them.

Legend: P distinct prompts. A *segment* is a run of tokens: a trunk, with which several prompts
begin, or what a prompt has for itself. A prompt's segments, in order, are the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from fastmpi.data.batch import ForestBatch, TokenRule
from fastmpi.data.samples import Prompt
from fastmpi.rollout.trunks import find_trunks

# Prompts of one group of lengths are padded to its longest.
_LONGEST_OVER_SHORTEST = 1.5


@dataclass(eq=False)
class Segment:
    """length: its tokens. room: those it takes in the pool. depth: trunks above it. needed_by:
    responses that are not written yet. start: where it lies in the pool, None while not read."""

    length: int
    room: int
    depth: int
    needed_by: int = 0
    start: int | None = None


@dataclass(eq=False)
class Request:
    """A distinct prompt and who asked for it: (index of the prompt, index of the response).

    waiting: members without a slot. hidden: (H,) at the prompt's last token and position: that of
    its first response token, once it is read.
    """

    prompt: Prompt
    members: list[tuple[int, int]]
    segments: tuple[Segment, ...] = ()
    waiting: list[tuple[int, int]] = field(default_factory=list)
    hidden: Tensor | None = None
    position: int = 0

    @property
    def room(self) -> int:
        """Tokens of the pool that the prompt takes alone."""
        return sum(segment.room for segment in self.segments)


def make_requests(prompts: Sequence[Prompt], counts: Sequence[int]) -> list[Request]:
    """Equal prompts become one request."""
    requests: dict[tuple[bytes, tuple[str, ...]], Request] = {}
    for index, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        if count:
            key = (prompt.ids.tobytes(), tuple(image.key for image in prompt.images))
            request = requests.setdefault(key, Request(prompt, []))
            request.members.extend((index, i) for i in range(count))
    return list(requests.values())


def lay_out(
    requests: Sequence[Request], rule: TokenRule, min_shared_tokens: int, *, pad: bool = True
) -> list[Request]:
    """Gives `requests` their segments. Returns them with those under one trunk side by side.

    pad: prompts of similar length get equal room, so that neighbours are one batch of matrices.
    """
    batch = ForestBatch.from_prompts([request.prompt for request in requests], rule)
    paths = np.split(batch.flat_index.numpy(), batch.offsets[1:-1].tolist())
    trunks: list[list[Segment]] = [[] for _ in requests]
    for trunk in find_trunks(paths, min_shared_tokens):
        length = len(trunk.rows)
        segment = Segment(length, length, len(trunks[trunk.prompts[0]]))
        for index in trunk.prompts:
            trunks[index].append(segment)
    rest = [
        len(path) - sum(segment.length for segment in above)
        for path, above in zip(paths, trunks, strict=True)
    ]
    rooms = padded(rest) if pad else {length: length for length in rest}
    for request, above, length in zip(requests, trunks, rest, strict=True):
        own = Segment(length, rooms[length], len(above))
        request.segments = (*above, own)
        request.waiting = list(request.members)
        for segment in request.segments:
            segment.needed_by += len(request.members)
    order = sorted(range(len(paths)), key=lambda index: int(paths[index][-1]))  # depth first
    return [requests[index] for index in order]


def padded(lengths: Sequence[int]) -> dict[int, int]:
    """The room of each length: lengths that differ little get the same, that of the longest."""
    ordered = sorted(set(lengths))
    return {
        length: ordered[stop - 1]
        for start, stop in _ranges(ordered)
        for length in ordered[start:stop]
    }


def _ranges(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cuts ascending lengths into (start, stop) ranges in which little is padding."""
    start = 0
    for index, length in enumerate(lengths):
        if length > _LONGEST_OVER_SHORTEST * lengths[start]:
            yield start, index
            start = index
    if lengths:
        yield start, len(lengths)
