"""What a run tells of itself: its metrics, in means over some steps, and where it is."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from fastmpi.files import write_whole
from fastmpi.stages.beginning import Beginning
from fastmpi.stages.step import StepInput
from fastmpi.tracking import RunningMeans, Tracker


class Logs(Beginning):
    """Of a Trainer, which inherits this."""

    means: RunningMeans
    _last_metrics: dict[str, float]
    _tracker: Tracker | None = None
    _resumed_from: Path | None = None

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Optimiser steps that see each row once."""

    @property
    def tracker(self) -> Tracker:
        """Made when the first step's samples are ready, since it is the first thing to write."""
        if self._tracker is None:
            self._tracker = self._make_tracker()
        return self._tracker

    def _make_tracker(self) -> Tracker:
        tracker = Tracker(
            self.args.output_dir,
            name=self.stage,
            total_steps=self.total_steps,
            start_step=self.state.global_step,
            report_to=self.args.report_to,
            config=self._plain_config(),
            show_progress=not self.args.disable_tqdm,
            is_main=self.accelerator.is_main_process,
        )
        if self.accelerator.is_main_process:
            write_whole(Path(self.args.output_dir) / "config.yaml", self.args.to_yaml())
        if self._resumed_from is not None:
            tracker.message(f"{self.stage} resumes from {self._resumed_from}")
        return tracker

    def _log(self, tracker: Tracker, step: StepInput) -> None:
        at = self.state.global_step
        if at % self.args.logging_steps and at != self.total_steps:
            return
        self._write_log(tracker)
        if step.completions is not None:
            tracker.write_completions(at, step.completions())

    def _write_log(self, tracker: Tracker) -> None:
        """The means since the last log, and where the run is."""
        totals = {
            "epoch": self.state.global_step / self.steps_per_epoch,
            "num_tokens": float(self.state.num_tokens),
            "cpu_seconds": self.state.cpu_seconds,
            "skipped_steps": float(self.state.skipped_steps),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        self._last_metrics = {**self.means.take(), **totals}
        tracker.log(self.state.global_step, self._last_metrics)
