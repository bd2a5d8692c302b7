"""`update`: the gradient of one micro-batch of given rollouts; forward, loss and backward.

All arms have the same weights, rollouts, advantages, loss (token mean of the clipped objective on
the first step, so the ratio is 1) and trained parameters (all of the language model; the vision
tower is frozen), and no optimiser step. Each cuts the rollouts into micro-batches of at most
`budget` tokens of its own layout. `packed` is our code without sharing: every sample a root, the
attention, the head and the pictures, encoded once, the same as ours. `error` is that of all
gradients together. `counts` has the counted FLOPs of ours and their ratio, packed over ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial

import torch
from torch import Tensor

from fastmpi.benchmarks.harness import Case, Outputs, Run
from fastmpi.benchmarks.update_grouper import prefix_grouper
from fastmpi.benchmarks.update_inputs import UpdateInputs, UpdateShape, make_inputs
from fastmpi.benchmarks.update_peers import exact, trl
from fastmpi.benchmarks.update_rollouts import (
    QWEN_3B_TEXT,
    QWEN_3B_VISION,
    SMALL_TEXT,
    SMALL_VISION,
)
from fastmpi.data.batch import ForestBatch, microbatches
from fastmpi.models.flops import update_flops
from fastmpi.ops.policy_head import policy_head

PEERS: dict[str, Callable[[UpdateInputs], Run]] = {"trl": trl, "prefix_grouper": prefix_grouper}


def cases(device: torch.device, small: bool) -> list[Case]:
    """Small models of a few million parameters; on CUDA Qwen2.5-VL-3B's shapes."""
    return [case_of(shape, device) for shape in (small_shapes() if small else qwen_shapes())]


def small_shapes() -> list[UpdateShape]:
    """Prompts of about 100, 250 and 600 tokens, 8 + 8 responses of 32 to 64 to each."""
    return [
        _small("prompt=102 prompts=2", num_prompts=2, image_tokens=64, question_tokens=36),
        _small("prompt=246 prompts=2", num_prompts=2, image_tokens=144, question_tokens=100),
        _small("prompt=598 prompts=1", num_prompts=1, image_tokens=256, question_tokens=340),
    ]


def _small(name: str, **sizes: int) -> UpdateShape:
    return UpdateShape(
        name=f"small {name} R=32..64 8+8",
        text=SMALL_TEXT,
        vision=SMALL_VISION,
        dtype=torch.float32,
        response_tokens=(32, 64),
        budget=4096,
        **sizes,
    )


def qwen_shapes() -> list[UpdateShape]:
    """All layers, where only time and memory are known; two of each tower for the error."""
    text = {**QWEN_3B_TEXT, "num_hidden_layers": 2}
    vision = {**QWEN_3B_VISION, "depth": 2, "fullatt_block_indexes": [1]}
    return [
        _qwen("3B", QWEN_3B_TEXT, QWEN_3B_VISION, exact=False),
        _qwen("3B, two layers", text, vision, exact=True),
    ]


def _qwen(
    name: str, text: Mapping[str, object], vision: Mapping[str, object], *, exact: bool
) -> UpdateShape:
    """One prompt of 1024 picture tokens and 128 of text. The budget holds all in every arm."""
    return UpdateShape(
        name=f"{name} prompt=1152 R=256 8+8",
        text=text,
        vision=vision,
        dtype=torch.bfloat16,
        num_prompts=1,
        image_tokens=1024,
        question_tokens=126,
        response_tokens=(256, 256),
        budget=32768,
        checkpointing=True,
        exact=exact,
    )


def case_of(shape: UpdateShape, device: torch.device) -> Case:
    """All arms of one shape."""
    inputs = cache(partial(make_inputs, shape, device))
    arms: dict[str, Callable[[], Run]] = {
        "fastmpi": lambda: ours(inputs()),
        "packed": lambda: ours(inputs(), share=False),
        **{name: lambda peer=peer: peer(inputs()) for name, peer in PEERS.items()},
    }
    return Case(
        name=shape.name,
        arms=arms,
        exact=(lambda: exact(inputs().model, inputs().rollouts)) if shape.exact else None,
        counts=Counts(inputs),
    )


def ours(inputs: UpdateInputs, *, share: bool = True) -> Run:
    """The update as a training step makes it: forests built, pictures encoded, loss, backward."""
    model, rollouts, budget = inputs.model, inputs.rollouts, inputs.shape.budget

    def run() -> Outputs:
        inputs.gradient.zero_()
        batches = microbatches(rollouts.samples, model.processor, budget, share=share)
        features = model.encode_images([image for batch in batches for image in batch.images])
        losses = []
        for batch in batches:
            batch = batch.to(model.device)
            loss = model(batch, partial(policy_loss_of, inputs, batch), features)
            loss.backward()
            losses.append(loss.detach())
        return inputs.outputs(torch.stack(losses).sum())

    return run


def policy_loss_of(
    inputs: UpdateInputs, batch: ForestBatch, hidden: Tensor, head: Tensor
) -> Tensor:
    """The share of `batch` in the loss."""
    scores = batch.sample_scores()
    return policy_head(
        hidden,
        head,
        scores.rows,
        scores.targets,
        batch.sample_ids[scores.samples],
        weights=scores.weights / inputs.rollouts.num_scored_tokens,
        advantages=inputs.rollouts.advantages,
    ).loss


class Counts(Mapping[str, float]):
    """Counted when asked for, since cases are also only listed."""

    def __init__(self, inputs: Callable[[], UpdateInputs]) -> None:
        self._counted = cache(lambda: counted(inputs()))

    def __getitem__(self, key: str) -> float:
        return self._counted()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._counted())

    def __len__(self) -> int:
        return len(self._counted())


def counted(inputs: UpdateInputs) -> dict[str, float]:
    """FLOPs of ours and of packed, and their ratio."""
    found = {}
    for arm, share in (("flops", True), ("packed_flops", False)):
        batches = microbatches(
            inputs.rollouts.samples, inputs.model.processor, inputs.shape.budget, share=share
        )
        counts = update_flops(inputs.model, batches, checkpointing=inputs.shape.checkpointing)
        found[arm] = counts.total
    return {**found, "flops_ratio": found["packed_flops"] / found["flops"]}
