"""Items made ahead of their use, in order, on a thread of their own.

Unusual: an item is named by its number and made from that alone, so making it ahead changes
nothing but the time. What the thread holds is bounded in items and in bytes; what goes wrong in it
is raised where the item is taken.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class Prefetcher(Generic[ItemT]):
    """`make(n + 1)`, `make(n + 2)`, ... while `make(n)` is used, at most `depth` of them ahead.

    stop: no item of this number or later is made ahead, None for no end. depth: 0 makes each item
    when it is taken, without a thread. max_bytes: no further item is begun while those that wait
    hold this much or more, by `size`.
    """

    def __init__(
        self,
        make: Callable[[int], ItemT],
        *,
        stop: int | None = None,
        depth: int = 2,
        max_bytes: int = 2**30,
        size: Callable[[ItemT], int] | None = None,
    ) -> None:
        if depth < 0:
            raise ValueError(f"depth must not be negative, got {depth}")
        self.make, self.stop, self.depth, self.max_bytes = make, stop, depth, max_bytes
        self.size = size or (lambda item: 0)
        self.waited_s = 0.0  # how long `take` has waited in all
        self._next = 0  # the item that comes out next
        self._ready: deque[tuple[ItemT, int]] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def take(self, number: int) -> ItemT:
        """Item `number`; what was made ahead serves if that is the one after the last taken.

        Raises what making it has raised.
        """
        began = time.perf_counter()
        if number != self._next:
            self.close()
        self._next = number
        try:
            return self._taken() if self.depth else self.make(number)
        finally:
            self._next += 1
            self.waited_s += time.perf_counter() - began

    def _taken(self) -> ItemT:
        with self._changed:
            if self._thread is None:
                self._start()
            # With a timeout, Ctrl-C is heard on every system.
            while not self._ready and self._error is None:
                self._changed.wait(timeout=1.0)
            if not self._ready:
                assert self._error is not None
                raise self._error
            item, _ = self._ready.popleft()
            self._changed.notify_all()
            return item

    def _start(self) -> None:
        self._closed = False
        self._thread = threading.Thread(
            target=self._run, args=(self._next,), name="fastmpi-prefetch", daemon=True
        )
        self._thread.start()

    def _run(self, number: int) -> None:
        try:
            first = number
            while self._has_room() and (number == first or not self._ends_before(number)):
                item = self.make(number)
                number += 1
                with self._changed:
                    self._ready.append((item, self.size(item)))
                    self._changed.notify_all()
        except BaseException as error:  # given to whoever takes the item
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _has_room(self) -> bool:
        """Waits until another item may be begun; False where none ever will."""
        with self._changed:
            while not self._closed and self._full():
                self._changed.wait()
            return not self._closed

    def _ends_before(self, number: int) -> bool:
        return self.stop is not None and number >= self.stop

    def _full(self) -> bool:
        held = sum(num_bytes for _, num_bytes in self._ready)
        return len(self._ready) >= self.depth or bool(self._ready and held >= self.max_bytes)

    def close(self) -> None:
        """Ends the thread, after the item that it is making; a later `take` starts anew."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._thread, self._error = None, None
        self._ready.clear()
