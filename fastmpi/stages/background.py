"""One piece of work on a thread beside the main one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

ResultT = TypeVar("ResultT")


class Cancelled(Exception):
    """Raised in the work of a job that nobody waits for any more."""


class BackgroundJob(Generic[ResultT]):
    """`work(check)` on a thread; `check()` raises `Cancelled` once the job is cancelled, so that
    work which calls it often ends soon."""

    def __init__(self, work: Callable[[Callable[[], None]], ResultT], name: str) -> None:
        self._cancelled = threading.Event()
        self._result: list[ResultT] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._thread.start()

    def result(self) -> ResultT:
        """Waits. Raises what the work has raised, with its own traceback."""
        self._join()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def cancel(self) -> None:
        """Ends the thread at the work's next `check`; what it has found or raised is dropped."""
        self._cancelled.set()
        self._join()
        self._error = None  # its traceback holds this job, and all that the work held

    def _join(self) -> None:
        while self._thread.is_alive():
            self._thread.join(timeout=1.0)  # with a timeout, Ctrl-C is heard on every system

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled

    def _run(self, work: Callable[[Callable[[], None]], ResultT]) -> None:
        try:
            self._result.append(work(self._check))
        except BaseException as error:  # given to whoever takes the result
            self._error = error
