"""A trainer's own loop, one step at a time, and how long the parts of a step take.

Unusual: the loop runs in a thread that waits after every step, so that what is timed is `train()`
as its users call it, and arms can take turns all the same.
"""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# (called after each step)
Loop = Callable[[Callable[[], None]], None]


class Stepper:
    """`stepper()` lets `loop` go on to the end of its next step. loop: called once, on a thread of
    its own, with the function that it must call after each step. An error of the loop is raised by
    the step that met it. The loop ends when nothing refers to the stepper any longer.
    """

    def __init__(self, loop: Loop) -> None:
        turns = _Turns()
        self._turns = turns
        threading.Thread(target=turns.run, args=(loop,), daemon=True, name="step").start()
        weakref.finalize(self, turns.end)

    def __call__(self) -> None:
        self._turns.take()


class _Over(BaseException):
    """Ends a loop from inside; no `except Exception` may keep it."""


class _Turns:
    """Either the caller runs or the loop."""

    def __init__(self) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._over = False

    def run(self, loop: Loop) -> None:
        try:
            self._wait()
            loop(self._step_done)
            raise RuntimeError("the loop ended before the bench did")
        except _Over:
            return
        except BaseException as error:
            self._error = error
        self._done.release()

    def take(self) -> None:
        if self._error is None:
            self._go.release()
            self._done.acquire()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        self._over = True
        self._go.release()

    def _step_done(self) -> None:
        self._done.release()
        self._wait()

    def _wait(self) -> None:
        self._go.acquire()
        if self._over:
            raise _Over


class Laps:
    """Seconds of named parts of a step; a part inside another is not counted in the outer one.

    On CUDA each part begins and ends on an idle device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._inner: list[list[float]] = []  # of each open part, what parts inside it took
        self._found: dict[str, list[float]] = {}
        self.reset()

    def reset(self) -> None:
        self._found = defaultdict(lambda: [0.0, 0.0])

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The block is a part of this name."""
        began = self._now()
        self._inner.append([0.0, 0.0])
        try:
            yield
        finally:
            taken = [b - a for a, b in zip(began, self._now(), strict=True)]
            inside = self._inner.pop()
            for i in range(2):
                self._found[name][i] += taken[i] - inside[i]
                if self._inner:
                    self._inner[-1][i] += taken[i]

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its calls being a part of this name."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    @property
    def ms(self) -> dict[str, dict[str, float]]:
        """name -> milliseconds of the wall clock, and on the CPU of the process's own time."""
        keys = ("ms",) if self._device.type == "cuda" else ("ms", "cpu_ms")
        return {
            name: {key: 1e3 * seconds for key, seconds in zip(keys, found, strict=False)}
            for name, found in self._found.items()
        }

    def _now(self) -> tuple[float, float]:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter(), time.process_time()
