"""AdamW over what is trained, its learning rate as a function of the step, its state as tensors.

Unusual: the learning rate has no state of its own, so resuming needs only the step's number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastmpi.stages.sharding import like

if TYPE_CHECKING:
    from fastmpi.config import TrainingConfig


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Parameters with gradients, by name; ValueError when there are none."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("nothing to train: freeze_vision, freeze_merger and freeze_llm are set")
    return trained


def make_optimizer(
    parameters: dict[str, torch.nn.Parameter], args: TrainingConfig
) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": args.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        fused=True,
    )


def learning_rate(args: TrainingConfig, step: int, total_steps: int) -> float:
    """Learning rate of optimiser step `step` (0, 1, ...) out of `total_steps`; transformers'
    schedules of the same names."""
    warmup = args.warmup_steps or math.ceil(args.warmup_ratio * total_steps)
    if step < warmup:
        return args.learning_rate * step / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    if args.lr_scheduler_type == "cosine":
        return args.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if args.lr_scheduler_type == "linear":
        return args.learning_rate * max(0.0, 1 - done)
    return args.learning_rate


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter]
) -> dict[str, Tensor]:
    """AdamW's state by parameter name: "{name}.exp_avg", "{name}.exp_avg_sq", "{name}.step"."""
    state = optimizer.state
    return {
        f"{name}.{key}": torch.as_tensor(value)
        for name, parameter in parameters.items()
        for key, value in state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, torch.nn.Parameter],
    tensors: Iterable[tuple[str, Tensor]],
) -> None:
    """Undo every step since `optimizer_tensors`, whose tensors are given whole; ValueError for
    another model's state."""
    for key, value in tensors:
        name, _, part = key.rpartition(".")
        if name not in parameters:
            raise ValueError(f"optimizer state of unknown parameter {name!r}")
        parameter = parameters[name]
        # The step counter stays where AdamW made it: fused kernels want it on the device.
        counts = part == "step"
        optimizer.state[parameter][part] = (
            value.to(parameter.device) if counts else like(parameter, value)
        )
