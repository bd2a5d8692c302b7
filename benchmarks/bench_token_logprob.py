"""`token_logprob` and `token_loss`: the scoring pass, and the loss of the supervised stages.

The arm `matmul` is the products of the head alone, in one call of the vendor's library each: its
time over ours is our share of that library's own rate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from fastmpi.benchmarks import peers_head
from fastmpi.benchmarks.harness import Case, Outputs, Run, mean_absolute_error
from fastmpi.benchmarks.head_inputs import HeadInputs, HeadShape, exact_outputs, make_inputs
from fastmpi.benchmarks.head_shapes import head_shapes
from fastmpi.benchmarks.peers import compiled
from fastmpi.benchmarks.peers_head import LogProb
from fastmpi.ops.token_logprob import token_logprob, token_loss

SCORING: dict[str, Callable[[HeadInputs], LogProb]] = {
    "eager": peers_head.eager,
    "compile": lambda inputs: compiled(peers_head.eager(inputs)),
    "trl": peers_head.trl,
    "liger": peers_head.liger,
    "liger_triton": peers_head.liger_triton,
    "cce": peers_head.cce,
    "torch": peers_head.torch_linear,
}
TRAINING = {name: SCORING[name] for name in ("eager", "trl", "cce")}
FUSED: dict[str, Callable[[HeadInputs], Run]] = {
    "liger": peers_head.liger_supervised,
    "torch": peers_head.torch_supervised,
}


def cases(device: torch.device, small: bool) -> list[Case]:
    """Scoring does not ask whether the head is trained; the loss does."""
    shapes = head_shapes(small)
    scoring = [_scoring(shape, device) for shape in shapes if not shape.trained]
    return scoring + [_training(shape, device) for shape in shapes]


def _scoring(shape: HeadShape, device: torch.device) -> Case:
    inputs = cache(partial(make_inputs, shape, device))
    arms: dict[str, Callable[[], Run]] = {
        "fastmpi": lambda: _without_gradient(inputs(), _our_logprob(inputs())),
        "matmul": lambda: _products(inputs(), 1),
    }
    for name, peer in SCORING.items():
        arms[name] = lambda peer=peer: _without_gradient(inputs(), peer(inputs()))
    return Case(
        name=f"forward {shape.name}",
        arms=arms,
        exact=lambda: exact_outputs(inputs().hidden, inputs().head, inputs().targets),
        error=mean_absolute_error("logprob"),
        counts=shape.counts(1),
    )


def _training(shape: HeadShape, device: torch.device) -> Case:
    inputs = cache(partial(make_inputs, shape, device))
    products = 3 if shape.trained else 2
    arms: dict[str, Callable[[], Run]] = {
        "fastmpi": lambda: _our_loss(inputs()),
        "matmul": lambda: _products(inputs(), products),
        "compile": lambda: _compiled(inputs()),
    }
    for name, peer in TRAINING.items():
        arms[name] = lambda peer=peer: _supervised(inputs(), peer(inputs()))
    for name, fused in FUSED.items():
        arms[name] = lambda fused=fused: fused(inputs())
    return Case(
        name=f"loss {shape.head_name}",
        arms=arms,
        exact=lambda: _exact_gradients(inputs(), shape.trained),
        counts=shape.counts(products),
    )


def _exact_gradients(inputs: HeadInputs, trained: bool) -> Outputs:
    """Gradients of the mean negative log-prob in float64."""
    found = exact_outputs(
        inputs.hidden, inputs.head, inputs.targets,
        lambda logprob, part: torch.full_like(logprob, -1 / len(inputs.hidden)), trained=trained,
    )  # fmt: skip
    return {name: found[name] for name in found if name != "logprob"}


def _our_logprob(inputs: HeadInputs) -> LogProb:
    return lambda hidden, head: token_logprob(hidden, head, inputs.rows, inputs.targets)[0]


def _our_loss(inputs: HeadInputs) -> Run:
    def run() -> Outputs:
        output = token_loss(inputs.hidden, inputs.head, inputs.rows, inputs.targets, inputs.weights)
        return inputs.gradients(output.loss)

    return run


def _without_gradient(inputs: HeadInputs, logprob_of: LogProb) -> Run:
    def run() -> Outputs:
        with torch.no_grad():
            return {"logprob": logprob_of(inputs.hidden, inputs.head)}

    return run


def _supervised(inputs: HeadInputs, logprob_of: LogProb) -> Run:
    return lambda: inputs.gradients(-logprob_of(inputs.hidden, inputs.head).mean())


def _compiled(inputs: HeadInputs) -> Run:
    """`eager` and the loss as one compiled function."""
    logprob_of = peers_head.eager(inputs)
    loss_of = compiled(lambda hidden, head: -logprob_of(hidden, head).mean())
    return lambda: inputs.gradients(loss_of(inputs.hidden, inputs.head))


def _products(inputs: HeadInputs, count: int) -> Run:
    """The first `count` of: logits, their gradient's product with the head, and with the hidden."""
    hidden, head = inputs.hidden.detach(), inputs.head.detach()

    def run() -> dict[str, Tensor]:
        logits = hidden @ head.T
        found = {"hidden": logits @ head} if count > 1 else {"logits": logits}
        if count > 2:
            found["head"] = logits.T @ hidden
        return found

    return run
