"""What a terminal shows while jobs run in other processes: one bar a job, or, where there is no
terminal, one line when a job begins and one when it has ended."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


@dataclass(frozen=True)
class RunningJob:
    """A job, its step of so many (0: unknown), and the latest values."""

    name: str
    step: int = 0
    total: int = 0
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        return "  ".join(f"{name} {value:.4g}" for name, value in self.values.items())


class JobDisplay:
    """Use it as a context manager, and call `update` as often as you like."""

    def __init__(self, console: Console, num_jobs: int) -> None:
        self.console, self.num_jobs = console, num_jobs
        self._latest: dict[str, RunningJob] = {}
        self._began: dict[str, float] = {}
        self._done: set[str] = set()
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(bar_width=24),
                TextColumn("{task.fields[count]}"), TimeElapsedColumn(),
                TextColumn("{task.fields[values]}"),
            )  # fmt: skip
            self._bars = Progress(*columns, console=console)
            self._tasks[""] = self._bars.add_task("jobs", total=num_jobs, count="", values="")

    def __enter__(self) -> JobDisplay:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, running: Sequence[RunningJob], done: Collection[str]) -> None:
        """The jobs that run now, and the names of all that have ended."""
        for job in running:
            if job.name not in self._began:
                self._began[job.name] = time.perf_counter()
                self._begin(job)
            self._latest[job.name] = job
            self._move(job)
        for name in set(done) - self._done:
            self._done.add(name)
            self._end(self._latest.get(name, RunningJob(name)))

    def _begin(self, job: RunningJob) -> None:
        if self._bars is None:
            self._print(f"{job.name} ...")
        else:
            self._tasks[job.name] = self._bars.add_task(job.name, total=None, count="", values="")

    def _move(self, job: RunningJob) -> None:
        if self._bars is not None:
            count = f"{job.step}/{job.total}" if job.total else ""
            self._bars.update(
                self._tasks[job.name], completed=job.step, total=job.total or None, count=count,
                values=job.shown,
            )  # fmt: skip

    def _end(self, job: RunningJob) -> None:
        seconds = time.perf_counter() - self._began.get(job.name, time.perf_counter())
        self._print(f"[{len(self._done)}/{self.num_jobs}] {job.name}: {seconds:.0f} s  {job.shown}")
        if self._bars is not None:
            count = f"{len(self._done)}/{self.num_jobs}"
            self._bars.update(self._tasks[""], completed=len(self._done), count=count)
            if job.name in self._tasks:
                self._bars.remove_task(self._tasks.pop(job.name))

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
