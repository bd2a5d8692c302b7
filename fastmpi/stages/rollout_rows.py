"""The rows that stage 3 samples for: checked before the first step, policies and all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastmpi.data.batch import outline
from fastmpi.data.prompts import render
from fastmpi.stages.rows import policy_of
from fastmpi.stages.step import outline_bytes

if TYPE_CHECKING:
    from fastmpi.stages.rl import PolicyRolloutTrainer

# Arguments of reward functions, which a column of that name would replace.
_OF_REWARDS = frozenset(
    ("prompts", "completions", "completion_ids", "arm", "trainer_state", "log_extra", "log_metric")
)


def check_rows(trainer: PolicyRolloutTrainer) -> np.ndarray:
    """(rows,) tokens that the policy of each row adds to its prompt: sampled with, never trained
    on; 0 where no response is policy-aware. `ValueError` for a row that cannot be sampled for."""
    policy_tokens = np.zeros(len(trainer.rows))
    added: dict[str, int] = {}
    for index, row in enumerate(trainer.rows):
        if taken := _OF_REWARDS.intersection(row):
            name = min(taken)
            raise ValueError(f"row {row['id']!r}: {name!r} is what rewards are given, not a column")
        length = _check_prompt(trainer, row, index)
        if trainer.args.policy_generations:
            policy_tokens[index] = _policy_tokens(trainer, row, length, added)
    for row in trainer.eval_rows or []:
        _check_prompt(trainer, row)
    return policy_tokens


def _check_prompt(
    trainer: PolicyRolloutTrainer, row: dict[str, Any], index: int | None = None
) -> int:
    """Tokens of the policy-free prompt, which must leave room for the response."""
    prompt = render(row, trainer.processor, folder=trainer.image_folder)
    if index is not None and trainer.accelerator.num_processes > 1:
        trainer.outlines.get(index, lambda: outline(prompt), outline_bytes)
    length = len(prompt.ids)
    longest = length + trainer.args.max_completion_length
    trainer.check_fits(row, longest, "prompt with max_completion_length")
    return length


def _policy_tokens(
    trainer: PolicyRolloutTrainer, row: dict[str, Any], length: int, added: dict[str, int]
) -> int:
    """Tokens that the row's policy adds; the same for all its rows, kept in `added`."""
    if row.get("policy_id") is None:
        raise ValueError(f"row {row['id']!r} has no 'policy_id'")
    policy, name = policy_of(row, trainer.policies), row["policy_id"]
    if name not in added:
        aware = render(row, trainer.processor, policy, folder=trainer.image_folder)
        added[name] = len(aware.ids) - length
    return added[name]
