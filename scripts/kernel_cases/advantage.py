"""Launches of the kernels of `group_advantage`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fastmpi.kernels import group_advantage as advantage_kernels

SAMPLES = 16


def _group_advantage(scale: str, by_arm: bool, filtered: bool) -> None:
    rewards, ids = torch.zeros(SAMPLES), torch.zeros(SAMPLES, dtype=torch.int64)
    advantage_kernels.group_advantage(
        rewards, ids, ids if by_arm else None, rewards if filtered else None, scale, 1e-4, (0, 1)
    )


CASES: dict[str, Callable[[], Any]] = {
    "advantage group": partial(_group_advantage, "group", False, False),
    "advantage batch by arm": partial(_group_advantage, "batch", True, False),
    "advantage none filtered": partial(_group_advantage, "none", False, True),
}
