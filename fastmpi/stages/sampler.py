"""Fills generation windows: rows are drawn, their groups sampled and scored, and, with dynamic
sampling, replaced until enough of them can teach something (DAPO, arXiv 2503.14476).

Unusual: the only state is how many batches of rows were drawn. Which rows a batch holds and which
random numbers its groups use follow from that number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastmpi.data.prefetch import Prefetcher
from fastmpi.ops.group_advantage import group_advantage
from fastmpi.rewards import RewardFunction, score
from fastmpi.rollout.groups import ARMS, PolicyRollout, Rollout
from fastmpi.rollout.sampling import SamplingParams
from fastmpi.stages.rows import Row, Rows, shuffled
from fastmpi.stages.window import Window

if TYPE_CHECKING:
    from fastmpi.config import PolicyRolloutConfig
    from fastmpi.data.processor import Processor
    from fastmpi.data.samples import Prompt
    from fastmpi.policies import Policy
    from fastmpi.rollout.engine import Engine


@dataclass(frozen=True)
class DrawnRows:
    """A batch of rows: which they are, and the prompts of each arm."""

    rows: list[Row]
    indices: np.ndarray
    prompts: dict[str, list[Prompt]]

    @property
    def num_bytes(self) -> int:
        """Of the pictures, which outweigh the rest."""
        prompts = [prompt for of_arm in self.prompts.values() for prompt in of_arm]
        return sum(image.num_bytes for prompt in prompts for image in prompt.images)


class WindowSampler:
    """Samples this process's share of every window. accuracy: the reward function that dynamic
    sampling looks at. rank, size: of this process among all. of_all: makes the processes' batches
    one, the same on every process."""

    def __init__(
        self,
        args: PolicyRolloutConfig,
        rows: Rows,
        processor: Processor,
        policies: Mapping[str, Policy] | None,
        reward_funcs: Sequence[RewardFunction],
        *,
        accuracy: str,
        image_folder: Path | None = None,
        rank: int = 0,
        size: int = 1,
        of_all: Callable[[Window], Window] = lambda window: window,
    ) -> None:
        self.args, self.rows, self.processor = args, rows, processor
        self.policies, self.reward_funcs, self.accuracy = policies, reward_funcs, accuracy
        self.image_folder, self.rank, self.size = image_folder, rank, size
        self.of_all = of_all
        self.batches_drawn = 0
        depth = args.dataloader_prefetch_factor
        self.ahead = Prefetcher(self.draw, depth=depth, size=lambda drawn: drawn.num_bytes)
        self.reward_s = 0.0  # how long reward functions have taken in all
        self.custom_metrics: dict[str, float] = {}  # what reward functions logged

    @property
    def rows_per_batch(self) -> int:
        """Rows that all processes draw together: the groups of a window."""
        return self.args.groups_per_window * self.size

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches of an epoch; rows that are left over wait for the next shuffle."""
        return len(self.rows) // self.rows_per_batch

    def fill(
        self, engine: Engine, trainer_state: Any, own: Sequence[Window] = ()
    ) -> tuple[Window, Window, int]:
        """(everything sampled, the groups to train on, batches drawn), of all processes together,
        which draw equally many batches. Fewer groups than a window holds if max_resample_batches
        did not give enough. own: `own_batches`, sampled before."""
        sampled: list[Window] = []
        kept: list[Window] = []
        while self._needs_more(kept):
            ready = len(sampled) < len(own)
            batch = own[len(sampled)] if ready else self.batch(engine, trainer_state)
            sampled.append(self.of_all(batch))
            kept.append(self._informative(sampled[-1]))
        return Window.join(sampled), Window.join(kept).part(0, self._wanted), len(sampled)

    def own_batches(
        self, engine: Engine, trainer_state: Any, check: Callable[[], None] = lambda: None
    ) -> list[Window]:
        """The batches of a window that can be sampled without asking the other processes: all of
        them where there is no other, else the first. check: called before each."""
        sampled: list[Window] = []
        kept: list[Window] = []
        while self._needs_more(kept) and (self.size == 1 or not sampled):
            check()
            sampled.append(self.batch(engine, trainer_state))
            kept.append(self._informative(sampled[-1]))
        return sampled

    def _needs_more(self, kept: Sequence[Window]) -> bool:
        """Whether a window needs a further batch. kept: what is trained on of each so far."""
        found, most = sum(map(len, kept)), self.args.max_resample_batches
        return not kept or (found < self._wanted and len(kept) < most)

    @property
    def _wanted(self) -> int:
        """Responses of a window."""
        return self.rows_per_batch * self.args.group_size

    def batch(self, engine: Engine, trainer_state: Any) -> Window:
        """The next batch of rows, their groups sampled and scored."""
        drawn = self.ahead.take(self.batches_drawn)
        first_group = self.batches_drawn * self.rows_per_batch
        first_group += self.rank * self.args.groups_per_window
        rollouts = self._groups().generate(
            drawn.prompts, engine, self._sampling_params(), first_group=first_group
        )
        self.batches_drawn += 1
        return self._scored(rollouts, drawn.rows, drawn.indices, trainer_state)

    def draw(self, batch: int) -> DrawnRows:
        """The rows of batch `batch`, which follow from its number alone, and their prompts."""
        count = self.args.groups_per_window
        epoch, place = divmod(batch, self.batches_per_epoch)
        first = place * self.rows_per_batch + self.rank * count
        indices = shuffled(len(self.rows), self.args.seed, epoch)[first : first + count]
        rows = [self.rows[int(i)] for i in indices]
        return DrawnRows(rows, indices, self._groups().prompts(rows))

    def seconds(self) -> dict[str, float]:
        """What parts of sampling have taken so far, by their metric."""
        return {"perf/reward_s": self.reward_s, "perf/data_wait_s": self.ahead.waited_s}

    def close(self) -> None:
        """Ends the thread that draws ahead."""
        self.ahead.close()

    def one_each(self, engine: Engine, rows: Sequence[Row], trainer_state: Any) -> Window:
        """One policy-free response to each of any rows, scored."""
        groups = self._groups(1, 0)
        rollouts = groups.generate(groups.prompts(rows), engine, self._sampling_params())
        return self._scored(rollouts, rows, np.arange(len(rows)), trainer_state)

    def _groups(self, free: int | None = None, aware: int | None = None) -> PolicyRollout:
        return PolicyRollout(
            self.processor,
            self.policies or {},
            num_generations=self.args.num_generations if free is None else free,
            num_policy_generations=self.args.policy_generations if aware is None else aware,
            folder=self.image_folder,
        )

    def _sampling_params(self) -> SamplingParams:
        args = self.args
        return SamplingParams(
            args.max_completion_length, args.temperature, args.top_p, args.top_k, seed=args.seed
        )

    def _scored(
        self,
        rollouts: Sequence[Rollout],
        rows: Sequence[Mapping[str, Any]],
        indices: np.ndarray,
        trainer_state: Any,
    ) -> Window:
        """Rewards of the responses. Reward functions see every column of the rows, and `arm`."""
        responses = [rollout.response for rollout in rollouts]
        own = [rows[rollout.row] for rollout in rollouts]
        names = sorted({name for row in rows for name in row} - {"prompt"})
        columns = {name: [row.get(name) for row in own] for name in names}
        extra: dict[str, list[Any]] = {}
        began = time.perf_counter()
        result = score(
            self.reward_funcs,
            self.args.reward_weights,
            [row["prompt"] for row in own],
            [self.processor.decode(response.ids) for response in responses],
            [response.ids.tolist() for response in responses],
            {**columns, "arm": [rollout.arm for rollout in rollouts]},
            trainer_state=trainer_state,
            log_extra=lambda name, values: extra.update({name: list(values)}),
            log_metric=lambda name, value: self.custom_metrics.update({name: float(value)}),
        )
        self.reward_s += time.perf_counter() - began
        return Window(
            prompts=[rollout.prompt for rollout in rollouts],
            rows=torch.tensor([int(indices[rollout.row]) for rollout in rollouts]),
            policy_aware=torch.tensor([rollout.arm == ARMS[1] for rollout in rollouts]),
            ids=torch.from_numpy(np.concatenate([r.ids for r in responses])),
            sampled_logprob=torch.from_numpy(np.concatenate([r.logprobs for r in responses])),
            lengths=torch.tensor([len(response.ids) for response in responses]),
            finished=torch.tensor([response.finished for response in responses]),
            parts={name: torch.from_numpy(values) for name, values in result.parts.items()},
            rewards=torch.from_numpy(result.rewards),
            advantages=torch.zeros(len(rollouts), dtype=torch.float64),
            extra=extra,
        )

    def _informative(self, window: Window) -> Window:
        """The groups that dynamic sampling keeps; all without it."""
        if not self.args.dynamic_sampling:
            return window
        size = self.args.group_size
        kept = group_advantage(
            window.rewards,
            torch.arange(len(window)) // size,
            accuracy=window.parts[self.accuracy],
            keep_between=self.args.dynamic_sampling_range,
        ).kept
        groups = [window.part(i, i + size) for i in range(0, len(window), size) if kept[i]]
        return Window.join([window.part(0, 0), *groups])
