"""Continuous batching: a slot whose response ended takes the next one that waits.

Prompts are read when there are slots for their responses, several at once where there is room;
what they share with prompts that are held already is not read again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastmpi.data.images import Image
from fastmpi.models.features import ImageFeatures
from fastmpi.rollout.engine import Response
from fastmpi.rollout.held import HeldSegments
from fastmpi.rollout.plan import Plan
from fastmpi.rollout.prefill import prefill
from fastmpi.rollout.segments import Request, Segment
from fastmpi.rollout.stepping import Decoder

# Free slots are given to waiting responses of prompts that are held when they are at least the
# first share of all, and the next prompts are read for the second. With nobody waiting, the batch
# shrinks when free slots are at least the third share of it.
_SEAT_SHARE = 0.125
_READ_SHARE = 0.25
_SHRINK_SHARE = 0.25
_LOOK_EVERY = 8  # steps

Member = tuple[int, int]


@dataclass(eq=False)
class _Seat:
    """A response that is being written. length: its tokens so far."""

    request: Request
    member: Member
    length: int = 1


class ContinuousBatch:
    """One call of the engine: `requests` laid out, written within `plan`."""

    def __init__(
        self,
        decoder: Decoder,
        plan: Plan,
        requests: Sequence[Request],
        stop_token_ids: Sequence[int],
        *,
        random: Callable[[Member], np.ndarray],
        features: Callable[[list[Image]], ImageFeatures],
        max_prompt_tokens: int,
    ) -> None:
        """random: the (T,) numbers of a response. features: of pictures. max_prompt_tokens: that
        one forward pass reads at most, unless a single prompt has more."""
        self._model, self._sampler = decoder.model, decoder.sampler
        self._cache, self._slots, self._decode = decoder.cache, decoder.slots, decoder.step
        self._random, self._features = random, features
        self._max_prompt_tokens, self._max_tokens = max_prompt_tokens, plan.capacity + 1
        self._stop = np.array(sorted(stop_token_ids), dtype=np.int64)
        self._unread = deque(requests)
        self._waiting: list[Request] = []  # read, with responses that have no slot yet
        self._held = HeldSegments(plan.shared)
        self._seats: list[_Seat | None] = [None] * plan.num_slots
        # whose prompt a slot sees, also after its response has ended: the rows of a prompt are best
        # as many as those of the next one
        self._sees: list[Request | None] = [None] * plan.num_slots
        self._num_rows = 0  # the first slots, which are in the batch
        self._moved = False  # whether the cache must hear who sits where
        self._asynchronous = decoder.asynchronous
        self._steps = 0
        self.num_tokens = 0

    def run(self) -> Iterator[list[tuple[Member, Response]]]:
        """After each step, the responses that ended."""
        while self._unread or self._waiting or self._running:
            self._fill()
            ended = self._take_ended()
            self._shrink()
            if self._running:
                self._step()
                ended += self._take_ended()
            yield ended

    @property
    def _running(self) -> list[int]:
        return [slot for slot, seat in enumerate(self._seats) if seat is not None]

    # filling slots

    def _fill(self) -> None:
        free = deque(slot for slot, seat in enumerate(self._seats) if seat is None)
        waiting = sum(len(request.waiting) for request in self._waiting)
        if waiting and len(free) >= min(waiting, self._share(_SEAT_SHARE)):
            self._seat(free)
        if self._unread and not self._waiting:
            asked = len(self._unread[0].members)
            if len(free) >= min(asked, self._share(_READ_SHARE)) and self._read(len(free)):
                self._seat(free)

    def _share(self, share: float) -> int:
        return math.ceil(share * len(self._seats))

    def _read(self, num_free: int) -> bool:
        """Reads the next prompts, for `num_free` slots; False where there is no room yet."""
        known = set(self._held.segments)
        chosen = self._choose(num_free)
        if not chosen and not self._running:
            known = set()
            self._held.clear()  # nobody reads what lies there, and it may lie in the middle
            chosen = self._choose(num_free)
            assert chosen, "the plan has room for each prompt alone"
        if chosen:
            prefill(self._model, chosen, self._features, self._cache, known)
        self._waiting += chosen
        return bool(chosen)

    def _choose(self, num_free: int) -> list[Request]:
        """Takes the next prompts that fit, and room for them."""
        chosen: list[Request] = []
        tokens = 0
        while self._unread and num_free > 0:
            tokens += len(self._unread[0].prompt.ids)
            if chosen and tokens > self._max_prompt_tokens:
                break
            if not self._held.take(self._unread[0]):
                break
            chosen.append(self._unread.popleft())
            num_free -= len(chosen[-1].members)
        return chosen

    def _seat(self, free: deque[int]) -> None:
        """Gives slots of `free` to waiting responses and draws their first tokens."""
        taken: list[int] = []
        while free and self._waiting:
            request = self._waiting[0]
            taken.append(free.popleft())
            self._seats[taken[-1]] = _Seat(request, request.waiting.pop(0))
            self._sees[taken[-1]] = request
            if not request.waiting:
                self._waiting.pop(0)
        seats = [seat for slot in taken if (seat := self._seats[slot]) is not None]
        self._num_rows = max(self._num_rows, self._rows_for(max(taken) + 1))
        self._moved = True
        self.num_tokens += len(seats)
        device = self._model.device
        slots = torch.tensor(taken, device=device)
        positions = torch.tensor([seat.request.position for seat in seats], device=device)
        random = np.stack([self._random(seat.member) for seat in seats])
        with torch.inference_mode():
            uniform = self._slots.start(slots, positions, random)
            hidden = torch.stack([_hidden(seat.request) for seat in seats])
            self._slots.started(slots, *self._sampler(hidden, uniform))

    # writing

    def _step(self) -> None:
        """One token more for all."""
        if self._moved:
            self._cache.seat(self._rows_of(), self._num_rows)
            self._moved = False
        self._decode(self._num_rows)
        self._steps += 1
        for seat in self._seats:
            if seat is not None:
                seat.length += 1
                self.num_tokens += 1

    def _rows_of(self) -> dict[Segment, list[int]]:
        rows: dict[Segment, list[int]] = {}
        for slot, request in enumerate(self._sees[: self._num_rows]):
            for segment in request.segments if request is not None else ():
                if segment in self._held.segments:
                    rows.setdefault(segment, []).append(slot)
        return rows

    def _take_ended(self) -> list[tuple[Member, Response]]:
        """Responses that ended leave their slots, and segments that nobody needs the memory.

        On a GPU looked for in some steps only, since looking waits for it; tokens behind a stop
        token are cut.
        """
        full = any(seat is not None and seat.length == self._max_tokens for seat in self._seats)
        if self._asynchronous and not full and self._steps % _LOOK_EVERY:
            return []
        stopped = self._slots.stopped[: self._num_rows].tolist()
        ended = [
            (slot, seat)
            for slot, seat in enumerate(self._seats)
            if seat is not None and (stopped[slot] or seat.length == self._max_tokens)
        ]
        if not ended:
            return []
        taken = []
        tokens, logprobs = self._slots.take([slot for slot, _ in ended])
        for (slot, seat), ids, scores in zip(ended, tokens, logprobs, strict=True):
            taken.append((seat.member, self._response(ids, scores, seat.length)))
            self._seats[slot] = None
            self._moved |= self._held.release(seat.request)
        return taken

    def _response(self, tokens: np.ndarray, logprobs: np.ndarray, length: int) -> Response:
        """Cut at its stop token. `ValueError` if the logits were not finite."""
        stops = np.flatnonzero(np.isin(tokens[:length], self._stop))
        if len(stops):
            self.num_tokens -= length - int(stops[0]) - 1
            length = int(stops[0]) + 1
        if not np.isfinite(logprobs[:length]).all():
            raise ValueError("the model's logits are not finite: its weights have diverged")
        return Response(tokens[:length].copy(), logprobs[:length].copy(), len(stops) > 0)

    def _shrink(self) -> None:
        """The last responses move to the first free slots, so that the batch has fewer rows."""
        running = self._running
        num_rows = self._rows_for(len(running))
        if not running or num_rows > (1 - _SHRINK_SHARE) * self._num_rows:
            return
        sources = [slot for slot in running if slot >= num_rows]
        targets = sorted(set(range(num_rows)) - set(running))[: len(sources)]
        if sources:
            length = max(seat.length for slot in sources if (seat := self._seats[slot]))
            self._cache.move(sources, targets, length - 1)
            self._slots.move(sources, targets)
        for source, target in zip(sources, targets, strict=True):
            self._seats[source], self._seats[target] = None, self._seats[source]
            self._sees[target] = self._sees[source]
        self._num_rows = num_rows
        self._moved = True

    def _rows_for(self, count: int) -> int:
        """Rows of a batch that holds the slots before `count`: on a GPU one of few numbers, all
        slots, half of them and so on, since each has tables and a graph of its own."""
        if not self._asynchronous:
            return count
        num_rows = len(self._seats)
        while (half := (num_rows + 1) // 2) >= count and half < num_rows:
            num_rows = half
        return num_rows


def _hidden(request: Request) -> Tensor:
    assert request.hidden is not None, "a prompt is read before its responses are seated"
    return request.hidden
