"""What all arms of a step of stage 3 start from: a model, rows, a policy, a reward.

Unusual: a row is word for word the same to fastmpi's trainer and to TRL's, in the same order, and
no picture comes twice, since a frozen tower's features would be kept. Tokens that end a response
are never sampled, so every response has the same length in every arm. The first step learns from
given responses, so that the arms' gradients can be compared.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from fastmpi.benchmarks.harness import Outputs
from fastmpi.benchmarks.step_rows import Row, large_picture_processor, random_policy, random_row
from fastmpi.benchmarks.step_run import MAX_GRAD_NORM, clipped
from fastmpi.benchmarks.update_peers import exact
from fastmpi.benchmarks.update_rollouts import Rollouts, random_model, random_text
from fastmpi.data.prompts import render
from fastmpi.data.samples import Sample
from fastmpi.models.forest_model import ForestModel
from fastmpi.ops.group_advantage import group_advantage
from fastmpi.policies.policy import Policy

NUM_ROWS = 64  # more than a bench takes steps
SETTINGS = {  # of AdamW and the loss, by the names of both trainers
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": MAX_GRAD_NORM,
    "beta": 0.0,
    "epsilon": 0.2,
    "loss_type": "dapo",
    "scale_rewards": "group",
    "temperature": 1.0,
    "num_iterations": 1,
    "gradient_accumulation_steps": 1,
    "max_steps": 1_000_000,  # the bench ends before
}


@dataclass(frozen=True)
class StepShape:
    """One case. policy, image, question, response: tokens of each part. free, aware: responses of
    each arm of a group; one group is one step. exact: whether float64 fits."""

    name: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    dtype: torch.dtype
    policy: int
    image: int
    question: int
    response: int
    free: int
    aware: int
    checkpointing: bool = False
    exact: bool = True

    @property
    def responses(self) -> int:
        """Of one group."""
        return self.free + self.aware


@dataclass(frozen=True, eq=False)
class StepInputs:
    """model: with its starting weights, which no arm changes. rows: in the order in which all arms
    take them."""

    shape: StepShape
    model: ForestModel
    policy: Policy
    rows: Sequence[Row]

    def own_model(self) -> ForestModel:
        """The model for one arm to train."""
        return ForestModel(copy.deepcopy(self.model.base), self.model.processor).train()

    def reward(self, completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        """The share of even tokens of each response, all of which have the whole length."""
        assert all(len(ids) == self.shape.response for ids in completion_ids)
        return [float(np.mean(np.asarray(ids) % 2 == 0)) for ids in completion_ids]

    @cached_property
    def given(self) -> list[np.ndarray]:
        """The responses of the first step, those without the policy first."""
        rng, shape = np.random.default_rng(1), self.shape
        length, processor = shape.response, self.model.processor
        return [random_text(processor, rng, length) for _ in range(shape.responses)]

    def exact(self) -> Outputs:
        """Loss and clipped gradient of the first step in float64: one pooled group, one plain row
        for each response, after the prompt without the policy."""
        prompt = render(self.rows[0], self.model.processor)
        samples = [Sample.from_prompt(prompt, ids) for ids in self.given]
        rewards = torch.tensor(self.reward(self.given), dtype=torch.float64)
        pooled = group_advantage(rewards, torch.zeros(len(samples), dtype=torch.int64))
        rollouts = Rollouts(samples, [prompt] * len(samples), pooled.advantages)
        found = exact(self.model, rollouts.to(self.model.device))
        return {**found, "gradient": clipped(found["gradient"])}


def make_inputs(shape: StepShape, device: torch.device) -> StepInputs:
    """A random model, and rows of noise and random words."""
    model = random_model(shape.text, shape.vision, device, shape.dtype)
    model.processor = large_picture_processor(model.processor)
    rng = np.random.default_rng(0)
    policy = random_policy(rng, shape.policy)
    rows = [random_row(rng, i, shape.image, shape.question) for i in range(NUM_ROWS)]
    return StepInputs(shape, model, policy, rows)
