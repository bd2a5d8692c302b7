"""What all arms of `bench_update` share: one model, one set of rollouts, one buffer of gradients.

Unusual: every trained parameter's `grad` is a view of one flat tensor. An update adds into it, as
accumulation over micro-batches does, so gradients are allocated before any arm runs and an arm's
peak memory is what it holds above weights and gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastmpi.benchmarks.harness import Outputs
from fastmpi.benchmarks.update_rollouts import Rollouts, random_model, random_rollouts
from fastmpi.models.attention import STOCK_ATTENTION
from fastmpi.models.forest_model import ForestModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class UpdateShape:
    """One case. budget: tokens of a micro-batch, in every arm. exact: whether float64 fits."""

    name: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    dtype: torch.dtype
    num_prompts: int
    image_tokens: int
    question_tokens: int
    response_tokens: tuple[int, int]
    budget: int
    responses: int = 16  # 8 + 8
    checkpointing: bool = False
    exact: bool = True


@dataclass(frozen=True)
class UpdateInputs:
    """A case's tensors. gradient: flat, of all trained parameters in their order."""

    shape: UpdateShape
    model: ForestModel
    rollouts: Rollouts
    gradient: Tensor

    def outputs(self, loss: Tensor) -> Outputs:
        """What an update hands back: the gradients are where they were added up."""
        return {"gradient": self.gradient, "loss": loss}


def make_inputs(shape: UpdateShape, device: torch.device) -> UpdateInputs:
    """The model in training mode, and its rollouts, on `device`."""
    model = random_model(shape.text, shape.vision, device, shape.dtype)
    model.gradient_checkpointing(shape.checkpointing)
    rollouts = random_rollouts(
        model.processor,
        num_prompts=shape.num_prompts,
        responses=shape.responses,
        image_tokens=shape.image_tokens,
        question_tokens=shape.question_tokens,
        response_tokens=shape.response_tokens,
    )
    return UpdateInputs(shape, model, rollouts.to(device), flat_gradient(model))


def flat_gradient(model: nn.Module) -> Tensor:
    """Zeros whose views are the gradients of the trained parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    flat = torch.zeros(sum(p.numel() for p in trained), dtype=trained[0].dtype)
    flat = flat.to(trained[0].device)
    for parameter, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        parameter.grad = part.view_as(parameter)
    return flat


def clipped_loss(logprob: Tensor, sequences: Tensor, rollouts: Rollouts) -> Tensor:
    """The token mean of PPO's clipped objective at ratio 1, in plain torch. logprob, sequences:
    (M,), of any part of the samples."""
    ratio = (logprob - logprob.detach()).exp()
    advantage = rollouts.advantages.to(logprob.dtype)[sequences]
    objective = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    return -objective.sum() / rollouts.num_scored_tokens


def stock_copy(model: ForestModel) -> PreTrainedModel:
    """transformers' own model, with its own attention, around the same parameters."""
    base = model.base
    shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    stock = copy.deepcopy(base, shared)
    stock.set_attn_implementation({"text_config": STOCK_ATTENTION})
    return stock
