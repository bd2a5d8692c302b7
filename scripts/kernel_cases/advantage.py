"""Launches of the kernels of `group_advantage` and `policy_loss`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fastmpi.kernels import group_advantage as advantage_kernels
from fastmpi.kernels import policy_loss as loss_kernels

SAMPLES = 16


def _group_advantage(scale: str, by_arm: bool, filtered: bool) -> None:
    rewards, ids = torch.zeros(SAMPLES), torch.zeros(SAMPLES, dtype=torch.int64)
    advantage_kernels.group_advantage(
        rewards, ids, ids if by_arm else None, rewards if filtered else None, scale, 1e-4, (0, 1)
    )


def _policy_loss(
    scale: str = "group",
    by_arm: bool = False,
    given: bool = False,
    old: bool = True,
    ref: bool = False,
    by_sequence: bool = False,
) -> None:
    column, ids = torch.zeros(SAMPLES), torch.zeros(SAMPLES, dtype=torch.int64)
    rewards = (column, None, None, None) if given else (None, column, ids, ids if by_arm else None)
    loss_kernels.policy_loss(
        column, ids, column.double(), *rewards, column if old else None, column if ref else None,
        scale=scale, eps=1e-4, epsilon=0.2, epsilon_high=0.28, delta=None, beta=0.1 if ref else 0.0,
        by_sequence=by_sequence,
    )  # fmt: skip


CASES: dict[str, Callable[[], Any]] = {
    "advantage group": partial(_group_advantage, "group", False, False),
    "advantage batch by arm": partial(_group_advantage, "batch", True, False),
    "advantage none filtered": partial(_group_advantage, "none", False, True),
    "loss first step": partial(_policy_loss, old=False),
    "loss with KL": partial(_policy_loss, ref=True),
    "loss batch by arm": partial(_policy_loss, scale="batch", by_arm=True),
    "loss given advantages": partial(_policy_loss, given=True),
    "loss by sequence": partial(_policy_loss, scale="none", by_sequence=True),
}
