"""A window's responses, sampled and rewarded by the model that is trained, by vLLM, or by an engine
that the caller gave."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fastmpi.rollout.native import NativeEngine
from fastmpi.stages.profiling import region
from fastmpi.stages.rollout_metrics import rollout_metrics

if TYPE_CHECKING:
    from fastmpi.rollout.engine import Engine, Response
    from fastmpi.stages.rl import PolicyRolloutTrainer
    from fastmpi.stages.window import Window


def sample_window(trainer: PolicyRolloutTrainer, metrics: dict[str, float]) -> Window | None:
    """Samples until the window is full; None where dynamic sampling cannot fill it, and `state`
    then says why the run ends. Adds what there is to log to `metrics`."""
    began, sampler = time.perf_counter(), trainer.sampler
    waited = sampler.ahead.waited_s
    with region("rollout"), sampling(trainer) as engine:
        sampled, kept, batches = sampler.fill(engine, trainer.state)
    saved = trainer.policy_tokens[sampled.rows.numpy()]
    metrics |= rollout_metrics(sampled, trainer.args.group_size, trainer.accuracy, saved)
    metrics |= sampler.custom_metrics
    metrics["perf/gen_s"] = time.perf_counter() - began
    metrics["perf/data_wait_s"] = sampler.ahead.waited_s - waited
    if trainer.args.use_vllm:
        metrics["perf/sync_s"] = trainer.vllm.sync_s
    if trainer.args.dynamic_sampling:
        metrics["sampling/batches"] = float(batches)
    return kept if _all_full(trainer, kept, batches) else None


def _all_full(trainer: PolicyRolloutTrainer, kept: Window, batches: int) -> bool:
    """Whether the window is full; else says in `state` why the run ends."""
    wanted = trainer.sampler.rows_per_batch
    found = len(kept) // trainer.args.group_size
    if found < wanted:
        low, high = trainer.args.dynamic_sampling_range
        trainer.state.stopped = (
            f"dynamic sampling found {found} of {wanted} groups with a mean {trainer.accuracy} in "
            f"({low}, {high}) among {batches} batches of rows (max_resample_batches); the rest is "
            "solved, or out of reach"
        )
    return found >= wanted


@contextmanager
def sampling(trainer: PolicyRolloutTrainer) -> Iterator[Engine]:
    """The engine, with the model's weights of now."""
    if trainer.engine is None and trainer.args.use_vllm:
        with trainer.vllm.awake() as engine:
            yield engine
    else:
        yield trainer.engine or TrainedModel(trainer)


class TrainedModel(NativeEngine):
    """The engine by default: the model itself, with the precision and the features of training."""

    def __init__(self, trainer: PolicyRolloutTrainer) -> None:
        super().__init__(trainer.model, features=trainer.features.of)
        self._precision = trainer.precision

    def generate(self, *args: Any, **kwargs: Any) -> list[list[Response]]:
        with self._precision():
            return super().generate(*args, **kwargs)
