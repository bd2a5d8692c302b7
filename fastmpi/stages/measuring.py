"""Seconds of a stage's optimiser step, measured on a few real ones in a folder of their own.

Unusual: a first step warms up and is not counted, and in RL every response is sampled to a stated
length, whatever the model would have said: time depends on little else, and nothing else is as
unknown before a run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmpi.stages.chain import build_trainer
from fastmpi.stages.estimating import sized
from fastmpi.stages.model_engines import TrainedModel
from fastmpi.stages.rl import PolicyRolloutTrainer
from fastmpi.tracking import read_metrics

if TYPE_CHECKING:
    from fastmpi.data.samples import Prompt
    from fastmpi.models.cost import CostModel
    from fastmpi.recipe import StagePlan
    from fastmpi.rollout.engine import Response
    from fastmpi.rollout.sampling import SamplingParams
    from fastmpi.stages.clock import MicrobatchClock
    from fastmpi.stages.estimating import StageEstimate
    from fastmpi.stages.record import DataFiles

STEPS = 3
_T_95 = 4.303  # Student's t at 97.5 % for the two degrees of freedom of three steps


@dataclass(frozen=True)
class StepTime:
    """Seconds. step: mean of an optimiser step, its share of a window's rollout and scoring with
    it. spread: half of a 95 % interval of that mean. rollout: of step, sampling and scoring.
    warm_up: what the first step took longer. cost: of micro-batches. update: what it says that
    those of a measured step took; encoded: patches of pictures encoded for one."""

    step: float
    spread: float
    rollout: float
    warm_up: float
    cost: CostModel | None = None
    update: float = 0.0
    encoded: float = 0.0

    def of_stage(self, found: StageEstimate) -> StepTime:
        """The same for the mean of the stage's steps: three may be larger than most, and pictures
        are encoded only once. Measured responses stand for all others: those of an estimate share
        less than a model's."""
        if self.cost is None:
            return self
        steps = [sum(map(self.cost.seconds, step)) for step in found.work]
        mean = self.update if found.rollout else statistics.fmean(steps)
        more = mean - self.update + (found.encoded - self.encoded) * self.cost.patch
        return replace(self, step=max(self.step + more, 0.0))

    def run(self, steps: int) -> tuple[float, float, float]:
        """(seconds, low, high) of `steps` steps."""
        middle, wide = self.warm_up + steps * self.step, steps * self.spread
        return middle, max(self.warm_up, middle - wide), middle + wide


def measure_stage(
    plan: StagePlan,
    model: str,
    data: DataFiles,
    folder: Path,
    *,
    response_tokens: int | None = None,
    trust_recipe_code: bool = False,
    trust_remote_code: bool = False,
) -> StepTime:
    """Runs a step to warm up and then three, or as many more as reach the next window of responses.

    The trained weights land in `folder`, which is the caller's to remove.
    """
    plan, tokens = sized(plan, response_tokens)
    plan = replace(plan, config=_short(plan.config, folder, trust_remote_code))
    trainer = build_trainer(plan, model, data, trust_recipe_code=trust_recipe_code)
    per_window = 1
    if isinstance(trainer, PolicyRolloutTrainer):
        trainer.engine = _FixedLength(trainer, tokens)
        per_window = trainer.steps_of_window
    trainer.total_steps = 1 + max(STEPS, per_window)
    trainer.times_microbatches = True
    trainer.train()
    return with_cost(step_time(read_metrics(folder), per_window), trainer.clock)


def with_cost(time: StepTime, clock: MicrobatchClock) -> StepTime:
    """With the cost model of the steps after the first. Pictures that the first step encodes are
    no warm-up."""
    first = [one for one in clock.timed if one.step == 0]
    later = [one for one in clock.timed if one.step > 0]
    cost, steps = clock.cost_model(later), later[-1].step
    encoded = (later[-1].encoded - first[-1].encoded) / steps
    update = sum(cost.seconds(one.work) for one in later) / steps
    warm_up = max(0.0, time.warm_up - (first[-1].encoded - encoded) * cost.patch)
    return replace(time, cost=cost, update=update, encoded=encoded, warm_up=warm_up)


def _short(config: Any, folder: Path, trust_remote_code: bool) -> Any:
    changes: dict[str, Any] = {
        "output_dir": str(folder),
        "logging_steps": 1,
        "eval_steps": 0,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "profile": False,
        "trust_remote_code": trust_remote_code,
    }
    if hasattr(config, "dynamic_sampling"):
        changes |= {
            "async_generate": False,
            "dynamic_sampling": False,
            "mask_truncated_completions": False,
            "log_completions": False,
        }
    return replace(config, **changes)


class _FixedLength:
    """The engine of training, whose responses all have `tokens` tokens."""

    def __init__(self, trainer: PolicyRolloutTrainer, tokens: int) -> None:
        self.trainer, self.tokens = trainer, tokens
        self._engine: TrainedModel | None = None  # made once the trainer has begun

    def generate(
        self,
        prompts: Sequence[Prompt],
        num_responses: int | Sequence[int],
        params: SamplingParams,
        *,
        streams: Sequence[int] | None = None,
    ) -> list[list[Response]]:
        endless = replace(params, max_tokens=self.tokens, stop_token_ids=())
        self._engine = self._engine or TrainedModel(self.trainer)
        return self._engine.generate(prompts, num_responses, endless, streams=streams)


def step_time(lines: Sequence[Mapping[str, float]], per_window: int) -> StepTime:
    """From a line of metrics for each step, the first of which is the warm-up. per_window: steps
    that a window of responses lasts; its rollout counts in equal shares."""
    rollout = [line.get("perf/gen_s", 0.0) + line.get("perf/logp_s", 0.0) for line in lines]
    update = [line["step_time"] - gen for line, gen in zip(lines, rollout, strict=True)]
    windows = [seconds for seconds in rollout[1:] if seconds]
    share = statistics.fmean(windows) / per_window if windows else 0.0
    # Where every step samples, what varies is the whole of it.
    counted = [line["step_time"] for line in lines] if per_window == 1 else update
    last = counted[1:][-STEPS:]
    spread = _T_95 * statistics.stdev(last) / math.sqrt(STEPS)
    step = statistics.fmean(update[1:]) + share
    first = lines[0]["step_time"] - statistics.fmean(update[1:]) - share * per_window
    return StepTime(step, spread, share, max(0.0, first))
