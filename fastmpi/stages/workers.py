"""Worker processes for jobs that do not depend on one another.

Unlike `concurrent.futures`, a failure stops every process at once: a job that raises, a process
that dies (out of memory, say) and Ctrl-C all end the whole pool, and the error names the job.
Where the process that started them is killed, they end too: a job that went on would write into
the folder of whoever starts it again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

# One thread each, and nothing printed across the display of the process that shows them.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


class JobError(RuntimeError):
    """A job that failed for another reason than a user's mistake; `details` is its traceback."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    job: str | None = None


class Workers:
    """`num_workers` processes with one thread each. Use it as a context manager."""

    def __init__(self, num_workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._workers = []
        with _environment(ENVIRONMENT), _interrupts_ignored():
            for _ in range(num_workers):
                here, there = context.Pipe()
                process = context.Process(target=_serve, args=(there,), daemon=True)
                process.start()
                there.close()
                self._workers.append(_Worker(process, here))

    @property
    def has_room(self) -> bool:
        return any(worker.job is None for worker in self._workers)

    @property
    def running(self) -> list[str]:
        """Names of the jobs that run now."""
        return [worker.job for worker in self._workers if worker.job is not None]

    def submit(self, name: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        """Starts `function(**arguments)` on a free worker; all of it must pickle."""
        worker = next(worker for worker in self._workers if worker.job is None)
        worker.job = name
        worker.connection.send((function, dict(arguments)))

    def collect(self, timeout_s: float) -> dict[str, Any]:
        """Results of the jobs that ended within the time, by name.

        ValueError where a job raised one (a user's mistake), else JobError; both name the job.
        """
        busy = [worker for worker in self._workers if worker.job is not None]
        ready = wait([worker.connection for worker in busy], timeout_s)
        return dict(_result(worker) for worker in busy if worker.connection in ready)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.connection.close()  # an idle worker ends by itself
            if worker.job is not None or kind is not None:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join()


def _result(worker: _Worker) -> tuple[str, Any]:
    assert worker.job is not None
    name, worker.job = worker.job, None
    try:
        kind, value, details = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join(5)
        code = worker.process.exitcode
        raise JobError(f"{name}: its process died with exit code {code}") from None
    if kind == "user":
        raise ValueError(f"{name}: {value}")
    if kind == "bug":
        raise JobError(f"{name}: {value}", details)
    return name, value


def _serve(connection: Connection) -> None:
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        result = _attempt(function, arguments)
        try:
            connection.send(result)
        except BrokenPipeError:
            return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _attempt(function: Callable[..., Any], arguments: dict[str, Any]) -> tuple[str, Any, str]:
    try:
        return "done", function(**arguments), ""
    except ValueError as error:
        return "user", str(error), traceback.format_exc()
    except Exception as error:
        return "bug", f"{type(error).__name__}: {error}", traceback.format_exc()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Children started inside ignore Ctrl-C, which the terminal sends to all of them: the process
    that started them ends them, and they print nothing. Only the main thread may ask for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Children started inside inherit these; what was set before is put back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
