"""What the logs say about sampled responses; TRL's names where TRL has them.

Unusual: with dynamic sampling the metrics are of all responses sampled, not of those kept: the kept
ones are chosen to be half right.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastmpi.rollout.groups import ARMS
from fastmpi.stages.scoring import importance

if TYPE_CHECKING:
    from fastmpi.stages.rl import PolicyRolloutTrainer
    from fastmpi.stages.window import Window

Sums = dict[str, float]


def rollout_metrics(
    window: Window, group_size: int, accuracy: str, policy_tokens: np.ndarray
) -> dict[str, float]:
    """Of all responses of `window`. accuracy: the reward function that says right or wrong.
    policy_tokens: (S,), what each prompt saves by not showing the policy."""
    sums = _rollout_sums(window, group_size, accuracy, policy_tokens)
    means = {
        name.removesuffix("#"): sums[name.removesuffix("#")] / count
        for name, count in sums.items()
        if name.endswith("#") and count
    }
    metrics: dict[str, float] = {}
    for name, mean in means.items():
        if name.startswith("rewards/"):
            variance = max(sums[f"{name}^2"] / sums[f"{name}#"] - mean**2, 0.0)
            metrics |= {f"{name}/mean": mean, f"{name}/std": math.sqrt(variance)}
        else:
            metrics[name] = mean
    metrics["completions/min_length"] = float(window.lengths.min())
    metrics["completions/max_length"] = float(window.lengths.max())
    aware = metrics.get(f"accuracy/{ARMS[1]}", 0.0)
    if aware and f"accuracy/{ARMS[0]}" in metrics:
        metrics["mpi/internalization"] = metrics[f"accuracy/{ARMS[0]}"] / aware
    return metrics


def importance_metrics(trainer: PolicyRolloutTrainer, window: Window) -> dict[str, float]:
    """Of the importance weights of policy-free tokens, on all processes."""
    weights = importance(trainer.args, window)
    assert weights is not None
    free = weights[~torch.repeat_interleave(window.policy_aware, window.lengths)]
    sums = trainer.reduce({"sum": float(free.sum()), "count": float(len(free))})
    name = "sampling/importance_sampling_ratio"
    return {
        f"{name}/min": float(trainer.gather(free.min()[None]).min()),
        f"{name}/mean": sums["sum"] / sums["count"],
        f"{name}/max": float(trainer.gather(free.max()[None]).max()),
    }


def completions_table(trainer: PolicyRolloutTrainer, part: Window) -> list[dict[str, Any]]:
    """A line for each of a step's responses."""
    rows = [trainer.rows[i] for i in part.rows.tolist()]
    return [
        {
            "step": trainer.state.global_step,
            "id": str(row["id"]),
            "policy_id": row.get("policy_id"),
            "arm": ARMS[int(part.policy_aware[i])],
            "prompt": row["prompt"],
            "completion": trainer.processor.decode(part.response(i)),
            **{name: float(values[i]) for name, values in part.parts.items()},
            "reward": float(part.rewards[i]),
            "advantage": float(part.advantages[i]),
            **{name: values[i] for name, values in part.extra.items()},
        }
        for i, row in enumerate(rows)
    ]


def _rollout_sums(
    window: Window, group_size: int, accuracy: str, policy_tokens: np.ndarray
) -> Sums:
    rewards = window.rewards.numpy()
    groups = rewards.reshape(-1, group_size)
    deviations = groups.std(1, ddof=1)
    columns = {
        "reward": rewards,
        "reward_std": deviations,
        "frac_reward_zero_std": (np.ptp(groups, axis=1) == 0).astype(float),
        "completions/mean_length": window.lengths.numpy(),
        "completions/clipped_ratio": (~window.finished).numpy().astype(float),
        "mpi/prompt_tokens_saved": policy_tokens,
    }
    for name, values in window.parts.items():
        columns[f"rewards/{name}"] = values.numpy()
    aware = window.policy_aware.numpy()
    for arm, mask in zip(ARMS, (~aware, aware), strict=True):
        columns[f"reward/{arm}"] = rewards[mask]
        columns[f"accuracy/{arm}"] = window.parts[accuracy].numpy()[mask]
    return {key: value for name, column in columns.items() for key, value in _sums(name, column)}


def _sums(name: str, values: np.ndarray) -> list[tuple[str, float]]:
    """Sum, count and sum of squares of the values that apply."""
    values = values[~np.isnan(values)].astype(np.float64)
    squares = float((values**2).sum())
    return [(name, float(values.sum())), (f"{name}#", float(len(values))), (f"{name}^2", squares)]
