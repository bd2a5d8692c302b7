"""`policy_head`: the policy-gradient loss of scored tokens and its gradient, from hidden states.

Every arm gets the same tensors and makes the same mean clipped loss with the gradient by the hidden
states, and by the head where it is trained. The curve of `chunk_rows` trades memory for speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from fastmpi.benchmarks import peers_head
from fastmpi.benchmarks.harness import Case, Outputs, Run, mean_absolute_error
from fastmpi.benchmarks.head_inputs import (
    HeadInputs,
    HeadShape,
    clipped_loss,
    clipped_slope,
    exact_outputs,
    make_inputs,
)
from fastmpi.benchmarks.head_shapes import head_shapes
from fastmpi.benchmarks.peers import compiled
from fastmpi.benchmarks.peers_head import LogProb
from fastmpi.ops.policy_head import policy_head

CHUNK_ROWS = (256, 512, 1024, 2048, 4096)
FEW_ROWS = (32, 64, 128, 256)


def cases(device: torch.device, small: bool) -> list[Case]:
    """Frozen and trained heads, and the curve at the largest frozen one."""
    shapes = head_shapes(small)
    largest = max((s for s in shapes if not s.trained), key=lambda s: s.counts(2)["flops"])
    return [_case(shape, device) for shape in shapes] + [
        _curve(largest, device, FEW_ROWS if small else CHUNK_ROWS)
    ]


def _case(shape: HeadShape, device: torch.device) -> Case:
    inputs = cache(partial(make_inputs, shape, device))
    scored = {"eager": peers_head.eager, "trl": peers_head.trl, "cce": peers_head.cce,
              "cce_unfiltered": peers_head.cce_unfiltered}  # fmt: skip
    fused = {"liger": peers_head.liger_policy, "liger_triton": peers_head.liger_triton_policy}
    arms: dict[str, Callable[[], Run]] = {
        "fastmpi": lambda: ours(inputs()),
        "compile": lambda: _compiled(inputs()),
        **{name: partial(_scored, inputs, peer) for name, peer in scored.items()},
        **{name: partial(_fused, inputs, peer) for name, peer in fused.items()},
    }
    return Case(
        name=shape.head_name,
        arms=arms,
        exact=lambda: exact_loss(inputs(), shape.trained),
        error=mean_absolute_error("logprob"),
        counts=shape.counts(3 if shape.trained else 2),
    )


def _curve(shape: HeadShape, device: torch.device, chunks: Sequence[int]) -> Case:
    inputs = cache(partial(make_inputs, shape, device))
    arms: dict[str, Callable[[], Run]] = {"fastmpi": lambda: ours(inputs())}
    for rows in chunks:
        arms[f"fastmpi chunk={rows}"] = lambda rows=rows: ours(inputs(), chunk_rows=rows)
    return Case(
        name=f"frozen by rows of a chunk {shape.name}",
        arms=arms,
        exact=lambda: exact_loss(inputs(), shape.trained),
        error=mean_absolute_error("logprob"),
        counts=shape.counts(2),
    )


def exact_loss(inputs: HeadInputs, trained: bool) -> Outputs:
    """Log-probs and gradients of the clipped loss in float64."""
    return exact_outputs(
        inputs.hidden, inputs.head, inputs.targets, clipped_slope(inputs), trained=trained
    )


def ours(inputs: HeadInputs, **options: int) -> Run:
    """One pass over the head."""

    def run() -> Outputs:
        output = policy_head(
            inputs.hidden, inputs.head, inputs.rows, inputs.targets, inputs.sequences,
            weights=inputs.weights, advantages=inputs.advantages, old_logprob=inputs.old_logprob,
            **options,
        )  # fmt: skip
        return {"logprob": output.logprob, **inputs.gradients(output.loss)}

    return run


def _scored(inputs: Callable[[], HeadInputs], peer: Callable[[HeadInputs], LogProb]) -> Run:
    return _run_of(inputs(), peer(inputs()))


def _fused(inputs: Callable[[], HeadInputs], peer: Callable[[HeadInputs], Run]) -> Run:
    return peer(inputs())


def _run_of(inputs: HeadInputs, logprob_of: LogProb) -> Run:
    """A peer's log-probs with the loss in plain torch on them."""

    def run() -> Outputs:
        logprob = logprob_of(inputs.hidden, inputs.head)
        gradients = inputs.gradients(clipped_loss(logprob, inputs))
        return {"logprob": logprob.detach(), **gradients}

    return run


def _compiled(inputs: HeadInputs) -> Run:
    """`eager` and the loss as one compiled function."""
    logprob_of = peers_head.eager(inputs)

    @compiled
    def forward(hidden: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        logprob = logprob_of(hidden, head)
        return clipped_loss(logprob, inputs), logprob

    def run() -> Outputs:
        loss, logprob = forward(inputs.hidden, inputs.head)
        return {"logprob": logprob.detach(), **inputs.gradients(loss)}

    return run
