"""Windows of responses, sampled and rewarded by the model that is trained, by vLLM, or by an engine
that the caller gave; with `async_generate` each beside the updates on the window before it.

Window t + 1 is then sampled by the weights as they were before the first update on window t. What
is sampled does not depend on when: a thread samples with weights that stand still, and whoever
could see it half-done (an evaluation, a checkpoint) waits for it first. A checkpoint holds the
window, so that a resumed run samples no other. Unusual: the thread asks no other process anything.
Batches of several processes are joined, and with dynamic sampling refilled, on the main thread.

The ratio that is clipped stays the one to the weights at the start of the window's own updates, not
to those that sampled it: a bound on the update is no bound on staleness. The difference between the
two is an importance weight outside of the clipping, truncated, for policy-free responses alone
(`importance.py`). That is decoupled PPO (arXiv 2110.00641; arXiv 2505.24298, Eq. 5), and what TRL's
`vllm_importance_sampling_correction` and verl's rollout correction with three policies do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastmpi.rollout.vllm_server import VLLMServerEngine
from fastmpi.stages.background import BackgroundJob
from fastmpi.stages.model_engines import ModelCopy, TrainedModel
from fastmpi.stages.profiling import region
from fastmpi.stages.rollout_metrics import rollout_metrics
from fastmpi.stages.shares import lazy_prompts
from fastmpi.stages.window import Window

if TYPE_CHECKING:
    from fastmpi.rollout.engine import Engine
    from fastmpi.stages.rl import PolicyRolloutTrainer
    from fastmpi.stages.sampler import WindowSampler
    from fastmpi.stages.step import TrainState

# Makes an engine that calls the function given to it often; what that raises ends the sampling.
EngineMaker = Callable[[Callable[[], None]], "Engine"]
_AHEAD = "ahead."  # begins the names of a checkpoint's tensors of the next window


@dataclass(frozen=True)
class Sampled:
    """A window without log-probs. kept: the groups to train on, fewer than a window's where dynamic
    sampling found no more. batches: of rows, drawn for it. metrics: what there is to log.
    step: how many optimiser steps had been taken by the weights that sampled it."""

    kept: Window
    batches: int
    metrics: dict[str, float]
    step: int


@dataclass(frozen=True)
class OwnBatches:
    """What the thread has sampled, of this process alone. seconds: by metric, see `Watch`."""

    windows: list[Window]
    seconds: dict[str, float]


@dataclass(frozen=True)
class InFlight:
    """A window that is being sampled. make_engine, state: for batches that are needed after it."""

    job: BackgroundJob[OwnBatches]
    make_engine: EngineMaker
    state: TrainState
    metrics: dict[str, float]


class Watch:
    """Seconds since it was made."""

    def __init__(self, sampler: WindowSampler) -> None:
        self.sampler = sampler
        self._began, self._before = time.perf_counter(), sampler.seconds()

    def seconds(self) -> dict[str, float]:
        """By metric: of sampling, and of its parts."""
        parts = {name: now - self._before[name] for name, now in self.sampler.seconds().items()}
        return {"perf/gen_s": time.perf_counter() - self._began, **parts}


class Rollouts:
    """Samples the windows of a trainer one after the other."""

    def __init__(self, trainer: PolicyRolloutTrainer) -> None:
        self.trainer = trainer
        self._in_flight: InFlight | None = None
        self._ready: Sampled | None = None  # the next window, if it has been waited for already
        self._copy: ModelCopy | None = None
        self._trained: TrainedModel | None = None

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """Samples with the model's weights of now; waits for the window in flight first."""
        self.settle()
        trainer = self.trainer
        if trainer.engine is None and trainer.args.use_vllm:
            with trainer.vllm.awake() as engine:
                yield engine
        elif trainer.engine is None and trainer.is_sharded:
            with (
                trainer.whole_model() as model
            ):  # elsewhere in memory each time, so nothing is kept
                yield TrainedModel(trainer, model)
        else:
            if self._copy is not None:
                self._copy.free()  # memory of a stated size is there once
            self._trained = self._trained or TrainedModel(trainer)
            yield trainer.engine or self._trained

    def next(self, metrics: dict[str, float]) -> Window | None:
        """The next window; None where dynamic sampling cannot fill it, and `state` then says why
        the run ends. Adds what there is to log to `metrics`. Begins the window after it, if this
        is to overlap and another one will be needed."""
        began = time.perf_counter()
        self.settle()
        if self.trainer.args.async_generate:
            metrics["perf/gen_wait_s"] = time.perf_counter() - began
        found, self._ready = self._ready or self._sample(), None
        metrics |= found.metrics
        metrics["rollout/off_policy_steps"] = float(self.trainer.state.global_step - found.step)
        if not self._is_full(found):
            return None
        self._begin()
        return found.kept

    def settle(self) -> None:
        """Waits for the window in flight, if there is one; what went wrong is raised here."""
        flight, self._in_flight = self._in_flight, None
        if flight is None:
            return
        sampler = self.trainer.sampler
        own = flight.job.result()
        watch = Watch(sampler)
        with region("rollout"):
            engine = flight.make_engine(lambda: None)
            filled = sampler.fill(engine, flight.state, own.windows)
        seconds = {name: own.seconds[name] + more for name, more in watch.seconds().items()}
        found = self._sampled(*filled, flight.state.global_step, seconds)
        self._ready = replace(found, metrics=found.metrics | flight.metrics)

    def close(self) -> None:
        """Ends the thread; what it was sampling is dropped, and so is the copy of the model."""
        flight, self._in_flight = self._in_flight, None
        self._copy = self._trained = None
        if flight is not None:
            flight.job.cancel()

    # ---- sampling ---------------------------------------------------------------------------

    def _sample(self) -> Sampled:
        """The next window, now."""
        sampler, state = self.trainer.sampler, self.trainer.state
        watch = Watch(sampler)
        with region("rollout"), self.engine() as engine:
            filled = sampler.fill(engine, state)
        found = self._sampled(*filled, state.global_step, watch.seconds())
        if self.trainer.args.use_vllm:
            found.metrics["perf/sync_s"] = self.trainer.vllm.sync_s
        return found

    def _begin(self) -> None:
        """Begins the window after this one, if it may overlap and the run is to use it."""
        trainer = self.trainer
        ends = trainer.state.global_step + trainer.steps_of_window >= trainer.total_steps
        if ends or not trainer.args.async_generate:
            return
        metrics: dict[str, float] = {}
        make_engine = self._engine_maker(metrics)
        state = replace(trainer.state)  # reward functions see it as it is now

        def work(check: Callable[[], None]) -> OwnBatches:
            watch = Watch(trainer.sampler)
            with region("rollout"):
                windows = trainer.sampler.own_batches(make_engine(check), state, check)
            return OwnBatches(windows, watch.seconds())

        job = BackgroundJob(work, "fastmpi-rollouts")
        self._in_flight = InFlight(job, make_engine, state, metrics)

    def _engine_maker(self, metrics: dict[str, float]) -> EngineMaker:
        """Of engines with the model's weights of now, whatever becomes of the model."""
        if self.trainer.args.use_vllm:
            server = self.trainer.vllm.synced()
            assert isinstance(server, VLLMServerEngine)
            metrics["perf/sync_s"] = self.trainer.vllm.sync_s
            return server.checking
        self._trained = None  # memory of a stated size is there once
        self._copy = self._copy or ModelCopy(self.trainer)
        self._copy.update()
        return self._copy.engine

    def _sampled(
        self,
        sampled: Window,
        kept: Window,
        batches: int,
        step: int,
        seconds: dict[str, float],
    ) -> Sampled:
        trainer, args = self.trainer, self.trainer.args
        saved = trainer.policy_tokens[sampled.rows.numpy()]
        metrics = rollout_metrics(sampled, args.group_size, trainer.accuracy, saved)
        metrics |= {**trainer.sampler.custom_metrics, **seconds}
        tokens = float(sampled.lengths.sum())
        metrics["perf/gen_tokens_per_s"] = tokens / seconds["perf/gen_s"]
        if args.dynamic_sampling:
            metrics["sampling/batches"] = float(batches)
        return Sampled(kept, batches, metrics, step)

    def _is_full(self, found: Sampled) -> bool:
        """Whether the window is full; else says in `state` why the run ends."""
        trainer, wanted = self.trainer, self.trainer.sampler.rows_per_batch
        groups = len(found.kept) // trainer.args.group_size
        if groups < wanted:
            low, high = trainer.args.dynamic_sampling_range
            trainer.state.stopped = (
                f"dynamic sampling found {groups} of {wanted} groups with a mean "
                f"{trainer.accuracy} in ({low}, {high}) among {found.batches} batches of rows "
                "(max_resample_batches); the rest is solved, or out of reach"
            )
        return groups >= wanted

    # ---- checkpoints ------------------------------------------------------------------------

    def state_dict(self) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
        """The next window, waited for, as JSON values and tensors; None if it was not begun."""
        self.settle()
        if self._ready is None:
            return None, {}
        found = self._ready
        values = {"batches": found.batches, "metrics": found.metrics, "step": found.step}
        return values, {_AHEAD + name: t for name, t in found.kept.tensors().items()}

    def load_state_dict(self, values: dict[str, Any] | None, tensors: dict[str, Tensor]) -> None:
        """Undo `state_dict`; takes its tensors out of `tensors`."""
        self._ready = None
        own = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_AHEAD)}
        if values is None:
            return
        own = {name.removeprefix(_AHEAD): values for name, values in own.items()}
        prompts = lazy_prompts(own["rows"].tolist(), self.trainer.prompt)
        self._ready = Sampled(Window.from_tensors(own, prompts), **values)
