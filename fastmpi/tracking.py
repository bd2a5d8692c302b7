"""Where the numbers of a run go: `metrics.jsonl`, a progress bar, and what the user asks for.

One line of `metrics.jsonl` is one log: {"step": 10, "epoch": 0.5, "loss": 1.2, ...}; the values are
means over the steps since the line before. Unusual: a resumed run first drops the lines written
after its checkpoint, so the file reads as if the run had never stopped.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fastmpi.files import append_whole, make_folder, write_whole

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

METRICS_FILE = "metrics.jsonl"
COMPLETIONS_FOLDER = "completions"
_SHOWN = ("loss", "reward", "perf/tokens_per_s")  # beside the bar


class RunningMeans:
    """Means of named values over the steps since they were last taken."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """One step's values; a value that does not apply to the step is left out or NaN."""
        for name, value in values.items():
            if not math.isnan(value):
                self._sums[name] = self._sums.get(name, 0.0) + float(value)
                self._counts[name] = self._counts.get(name, 0) + 1

    def peek(self) -> dict[str, float]:
        """The means so far."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def take(self) -> dict[str, float]:
        """The means, and start again."""
        means = self.peek()
        self._sums.clear()
        self._counts.clear()
        return means

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a log that spans a kill comes out the same."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo everything since `state_dict`."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])


class Writer(Protocol):
    """A further place for the metrics."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line's values."""

    def close(self) -> None:
        """Flush and let go."""


class Tracker:
    """Writes a run's metrics and shows its progress; does nothing on processes but the first."""

    def __init__(
        self,
        output_dir: str | Path,
        *,
        name: str,
        total_steps: int,
        start_step: int = 0,
        report_to: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        show_progress: bool = True,
        is_main: bool = True,
    ) -> None:
        self.folder = Path(output_dir)
        self.name, self.total_steps, self.is_main = name, total_steps, is_main
        self._writers: list[Writer] = []
        self._bar: _Bar | None = None
        if is_main:
            make_folder(self.folder)
            _drop_after(self.folder / METRICS_FILE, start_step)
            makers: dict[str, Callable[..., Writer]] = {
                "tensorboard": _TensorBoard,
                "wandb": _Wandb,
            }
            self._writers = [makers[w](self.folder, name, config or {}) for w in report_to]
            if show_progress:
                self._bar = _Bar(name, total_steps, start_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line; `metrics` are finite floats."""
        if not self.is_main:
            return
        line = json.dumps({"step": step, **metrics}, allow_nan=False, default=float)
        append_whole(self.folder / METRICS_FILE, f"{line}\n".encode())
        for writer in self._writers:
            writer.log(step, metrics)
        if self._bar is not None:
            self._bar.log(step, metrics)

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bar to `step` and show the latest values."""
        if self._bar is not None:
            self._bar.advance(step, metrics)

    def message(self, text: str) -> None:
        """One line for the reader of the terminal."""
        if self.is_main:
            self._bar.print(text) if self._bar is not None else print(text)

    def write_completions(self, step: int, records: Sequence[Mapping[str, Any]]) -> Path | None:
        """`completions/completions_{step:05d}.parquet`, one row per response."""
        if not self.is_main:
            return None
        import pyarrow
        import pyarrow.parquet

        path = self.folder / COMPLETIONS_FOLDER / f"completions_{step:05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(r) for r in records]), path)
        return path

    def close(self) -> None:
        """Take the bar down and close the writers."""
        if self._bar is not None:
            self._bar.close()
        for writer in self._writers:
            writer.close()


def read_metrics(output_dir: str | Path) -> list[dict[str, float]]:
    """The lines of a run's `metrics.jsonl`, oldest first; `ValueError` names one that is damaged.
    A last line that has not ended is left out: the run may be writing it, or was killed at it."""
    path = Path(output_dir) / METRICS_FILE
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [_metrics_of(path, number, line) for number, line in enumerate(lines, 1)]


def _metrics_of(path: Path, number: int, line: bytes) -> dict[str, float]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {number} is damaged: {error}") from None
    if not isinstance(values, dict) or "step" not in values:
        raise ValueError(f"{path}, line {number} is damaged: it is no log of a step")
    return values


def _drop_after(path: Path, step: int) -> None:
    """Keep the lines up to `step`; a last line cut short by a kill goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    write_whole(path, "".join(line + "\n" for line in kept))


class _Bar:
    """A rich progress bar; where there is no terminal, a plain line for each log."""

    def __init__(self, name: str, total_steps: int, start_step: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self.name, self.total_steps = name, total_steps
        self.console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        if self.console.is_terminal:
            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
            columns += [Remaining(), TextColumn("{task.fields[values]}")]
            self._progress = Progress(*columns, console=self.console)
            self._task = self._progress.add_task(
                name, total=total_steps, completed=start_step, values=""
            )
            self._progress.start()

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step, values=_shown(metrics))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._progress is None:
            self.print(f"{self.name} step {step}/{self.total_steps} {_shown(metrics)}")

    def print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _shown(metrics: Mapping[str, float]) -> str:
    found = [(name.split("/")[-1], metrics[name]) for name in _SHOWN if name in metrics]
    return "  ".join(f"{name} {value:.4g}" for name, value in found)


def check_report_to(names: Sequence[str]) -> None:
    """`ValueError` for a tracker whose package is missing, with what installs it."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"report_to: {name} is missing; pip install 'fastmpi[{name}]'")


class _TensorBoard:
    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(folder / "tensorboard"))
        self._writer.add_text("config", json.dumps(dict(config), indent=1, default=str))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """The project comes from WANDB_PROJECT and the key from WANDB_API_KEY, as wandb reads them."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(name=f"{folder.name}-{name}", dir=str(folder), config=dict(config))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()
