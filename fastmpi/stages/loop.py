"""The training loop of all three stages.

A stage says which rows it can use (`check`), what an optimiser step trains on (`next_step`), and
what of it a checkpoint must keep. What a run begins with is in `beginning.py`, a step in `step.py`,
what it tells of itself in `logs.py`. Unusual: nothing is written before everything has been checked
and the first step's samples are there; no random generator is drawn from, since order and sampling
are functions of (seed, epoch) and (seed, stream).
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from fastmpi import checkpoint as checkpoints
from fastmpi.config import TrainingConfig
from fastmpi.data.cache import BoundedCache
from fastmpi.files import model_written
from fastmpi.models.forest_model import ForestModel
from fastmpi.stages.balancing import MeasuredBalance
from fastmpi.stages.launching import is_sharded_run, make_accelerator
from fastmpi.stages.lifeline import lifeline
from fastmpi.stages.logs import Logs
from fastmpi.stages.profiling import StepProfiler, peak_gb, region
from fastmpi.stages.rows import Rows
from fastmpi.stages.saving import (
    check_all_see,
    exported,
    load_checkpoint,
    save_checkpoint,
    save_last,
)
from fastmpi.stages.step import MAX_OUTLINE_BYTES, StepInput, TrainState
from fastmpi.tracking import RunningMeans, Tracker, check_report_to

if TYPE_CHECKING:
    from fastmpi.data.processor import Processor
    from fastmpi.policies import Policy

Evaluate = Callable[[ForestModel, int], Mapping[str, float]]
MAX_SKIPPED_IN_ROW = 10  # steps without a finite loss and gradient that end a run


@dataclass(frozen=True)
class TrainResult:
    """What `train` hands back. metrics: the run's last values and totals. stopped: why the run
    ended before its last step, if it did."""

    metrics: dict[str, float]
    output_dir: Path
    global_step: int
    stopped: str | None = None


class Trainer(Logs):
    """Common to the stages.

    model: a folder or hub name, or a loaded ForestModel (which is then trained in place).
    args: the stage's config. train_dataset: rows, see `stages/rows.py`. eval_dataset: rows that
        the stage is measured on every args.eval_steps steps, without training on them.
    policies: policy_id -> Policy. processing_class: replaces the model's own Processor.
    image_folder: what relative image paths are relative to, and must stay inside.
    evaluate: called as evaluate(model, step) at the same steps. Both log under "eval/".
    """

    config_class: ClassVar[type[TrainingConfig]]
    columns: ClassVar[tuple[str, ...]] = ("prompt",)

    def __init__(
        self,
        model: str | Path | ForestModel,
        args: TrainingConfig | None = None,
        train_dataset: Sequence[Mapping[str, Any]] | None = None,
        eval_dataset: Sequence[Mapping[str, Any]] | None = None,
        *,
        policies: Mapping[str, Policy] | None = None,
        processing_class: Processor | None = None,
        image_folder: str | Path | None = None,
        evaluate: Evaluate | None = None,
    ) -> None:
        if train_dataset is None:
            raise ValueError(f"{type(self).__name__} needs a train_dataset")
        self.args = self.config_class() if args is None else args
        if not isinstance(self.args, self.config_class):
            given = type(self.args).__name__
            raise ValueError(f"args must be a {self.config_class.__name__}, not {given}")
        self.accelerator = make_accelerator(self.args)
        self.is_sharded = is_sharded_run(self.args, self.accelerator)
        self.rows = Rows(train_dataset, self.columns)
        self.eval_rows = None if eval_dataset is None else Rows(eval_dataset, self.columns)
        self.policies, self.evaluate = policies, evaluate
        self.image_folder = None if image_folder is None else Path(image_folder)
        self.model = model if isinstance(model, ForestModel) else self._load_model(model)
        if processing_class is not None:  # what samples and what is saved must be the same one
            self.model.processor = processing_class
        self.processor = self.model.processor
        self.outlines = BoundedCache(MAX_OUTLINE_BYTES)
        self.state = TrainState()
        self.means = RunningMeans()
        self._profiler: StepProfiler | None = None
        self._last_metrics: dict[str, float] = {}
        check_report_to(self.args.report_to)
        self.check()
        self.total_steps = self._total_steps()

    # ---- what a stage says ------------------------------------------------------------------

    @abstractmethod
    def check(self) -> None:
        """ValueError for rows that the stage cannot use; nothing has been written yet."""

    @abstractmethod
    def next_step(self) -> StepInput | None:
        """The next step's samples and objective; None ends the run (state.stopped says why)."""

    @abstractmethod
    def close(self) -> None:
        """Ends what prepares steps ahead."""

    def settle(self) -> None:  # noqa: B027
        """Waits for what runs beside the steps, if anything does; called before evaluations."""

    @abstractmethod
    def eval_metrics(self, rows: Rows) -> dict[str, float]:
        """How well the model does on rows that it does not train on."""

    @abstractmethod
    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What the stage must keep to continue, the same on all processes: JSON values and
        tensors."""

    @abstractmethod
    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Undo everything since `state_dict`."""

    # ---- the run ----------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | Path | bool | None = None) -> TrainResult:
        """Train to the last step, from the start, from a checkpoint's path, or ("auto") from the
        newest checkpoint in output_dir if there is one. The trained model ends up in output_dir,
        merged if an adapter was trained. ValueError where a new run would mix with the checkpoints
        of another."""
        found = checkpoints.find_checkpoint(self.args.output_dir, resume_from_checkpoint)
        others = checkpoints.checkpoints(self.args.output_dir)
        if found is None and others:
            raise ValueError(
                f"{others[-1]} is there already: continue it with resume_from_checkpoint='auto', "
                "or choose another output_dir"
            )
        if found is not None and found.resolve() in [path.resolve() for path in others[:-1]]:
            raise ValueError(
                f"{others[-1]} is newer than {found}: remove what comes after the checkpoint to "
                "continue from, or choose another output_dir"
            )
        with lifeline(self.accelerator):
            return self._train(found)

    def _train(self, found: Path | None) -> TrainResult:
        check_all_see(self, found)
        self.begin()
        if found is not None:
            load_checkpoint(self, found)
        if self.args.balance_by == "seconds" and self.accelerator.num_processes > 1:
            self.balance = MeasuredBalance(self, found)
        self.model.train()
        self._resumed_from = found
        if self.args.profile and self.accelerator.is_main_process:
            folder = Path(self.args.output_dir) / "profile"
            self._profiler = StepProfiler(folder, lambda text: self.tracker.message(text))
        try:
            while self.state.global_step < self.total_steps and self._step():
                pass
        finally:
            self.close()
            if self._profiler is not None:
                self._profiler.close()
            if self._tracker is not None:
                self._tracker.close()
        return self._finish()

    def _step(self) -> bool:
        """One optimiser step with its log, evaluation and checkpoint; False: no further step."""
        wall, cpu = time.perf_counter(), time.process_time()
        with region("next step"):
            step = self.next_step()
        tracker = self.tracker
        if step is None:
            at, why = self.state.global_step, self.state.stopped
            tracker.message(f"{self.stage} stops at step {at} of {self.total_steps}: {why}")
            if self.means.peek():
                self._write_log(tracker)
            return False
        metrics = {**step.metrics, **self.optimizer_step(step)}
        seconds = time.perf_counter() - wall
        self.state.global_step += 1
        self.state.train_seconds += seconds
        self.state.cpu_seconds += time.process_time() - cpu
        metrics |= {
            "step_time": seconds,
            "perf/tokens_per_s": metrics["perf/tokens"] / seconds,
            "perf/peak_gb": peak_gb(self.accelerator.device),
        }
        self.means.add(metrics)
        tracker.advance(self.state.global_step, metrics)
        self._log(tracker, step)
        self._check_skipped(tracker)
        if self._profiler is not None:
            self._profiler.step()
        if self.balance is not None:
            self.balance.step_done()
        self._evaluate(tracker)
        self._save_if_due()
        return True

    def _check_skipped(self, tracker: Tracker) -> None:
        """Tells of a step that was skipped; RuntimeError, with the state saved, after ten in a
        row."""
        at, in_row = self.state.global_step, self.state.skipped_in_row
        if not in_row:
            return
        tracker.message(
            f"{self.stage}: step {at} is skipped, its loss or gradient is not finite "
            f"({self.state.skipped_steps} skipped so far)"
        )
        if in_row >= MAX_SKIPPED_IN_ROW:
            save_checkpoint(self)
            raise RuntimeError(
                f"{self.stage}: {in_row} steps in a row had no finite loss and gradient; lower "
                "learning_rate, or look for samples with an extreme loss. The state is in "
                f"{self.args.output_dir}/checkpoint-{at}"
            )

    # ---- length and end ---------------------------------------------------------------------

    def _total_steps(self) -> int:
        if self.args.max_steps > 0:
            return self.args.max_steps
        return max(1, math.ceil(self.args.num_train_epochs * self.steps_per_epoch))

    def _finish(self) -> TrainResult:
        """Save what is left to save: a last checkpoint, then the merged model."""
        if self.args.save_strategy == "steps":
            save_last(self)
        if self.checkpoints_layers:
            self.model.gradient_checkpointing(False)
        if self.args.use_peft and not self.is_sharded:
            self.model.merge_lora()
        self.model.eval()
        with exported(self) as model:
            if self.accelerator.is_main_process:
                with model_written(Path(self.args.output_dir)) as folder:
                    model.save_pretrained(folder)
        self.accelerator.wait_for_everyone()
        metrics = {
            "step": float(self.state.global_step),
            "train_seconds": self.state.train_seconds,
            "cpu_seconds": self.state.cpu_seconds,
            "num_tokens": float(self.state.num_tokens),
            **self._last_metrics,
        }
        return TrainResult(
            metrics, Path(self.args.output_dir), self.state.global_step, self.state.stopped
        )

    def _evaluate(self, tracker: Tracker) -> None:
        at = self.state.global_step
        if not self.args.eval_steps or (at % self.args.eval_steps and at != self.total_steps):
            return
        self.settle()
        self.model.eval()
        metrics: dict[str, float] = {}
        if self.eval_rows is not None:
            metrics |= self.eval_metrics(self.eval_rows)
        if self.evaluate is not None:
            with self.whole_model() as model:
                metrics |= self.evaluate(model, at)
        self.model.train()
        if metrics:
            tracker.log(at, {f"eval/{name}": float(value) for name, value in metrics.items()})

    # ---- checkpoints ------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        due = self.state.global_step % self.args.save_steps == 0
        if self.args.save_strategy == "steps" and due:
            save_checkpoint(self)
