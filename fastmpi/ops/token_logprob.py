"""The ops ``token_logprob`` and ``token_loss``: one pass over the LM head.

On CUDA the kernels run: `token_logprob` makes its logits again in the backward pass, `token_loss`
makes the gradient at once with the loss, a product less. Elsewhere the reference runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmpi.ops.backend import choose_backend
from fastmpi.ops.head_arguments import (
    check_head_arguments,
    check_scores,
    column,
    fake_gradient,
    gradient_buffers,
    keep_gradients,
    needed_gradients,
    scale_gradients,
    waiting_gradients,
)
from fastmpi.ops.tensor_checks import check_device, check_shape
from fastmpi.reference import token_logprob as reference
from fastmpi.reference.token_logprob import TokenLoss

__all__ = ["TokenLoss", "token_logprob", "token_loss"]


def token_logprob(
    hidden: Tensor,  # (T, H)
    head: Tensor,  # (V, H)
    rows: Tensor,  # (M,) int64
    targets: Tensor,  # (M,) int64
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_rows: int | None = None,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``log_softmax(hidden[rows] @ head.T / temperature, -1)[arange(M), targets]``, and entropies.

    Returns (logprob, entropy), (M,) each, in nats; float64 for float64 ``hidden``, else float32.
    Both are differentiable in ``hidden`` and ``head``. Never holds (T, V) logits: distinct rows are
    computed once, ``chunk_rows`` at a time, which sets the peak of memory: 4 V bytes a row, at most
    704 MiB by default on CUDA, or half of the gradient of a trained head where that is more.
    ``dtype`` is the precision of the product's operands, by default that of ``hidden``; logits, and
    the gradient of a float32 ``head``, are float32 whatever it is. ``softcap`` is the model's own
    ``softcap * tanh(logits / softcap)``, before the temperature. ``backend``: "triton" or
    "reference"; None chooses by the device. Raises ``ValueError`` for shapes that disagree and for
    rows or targets out of range.
    """
    check_head_arguments(hidden, head, rows, targets, temperature, softcap, chunk_rows, dtype)
    if choose_backend(backend, hidden) == "triton":
        logprob, entropy, _ = _token_logprob(
            hidden, head, rows, targets, temperature, softcap, chunk_rows, dtype
        )
        return logprob, entropy
    check_scores(hidden, head, rows, targets)
    return reference.token_logprob(
        hidden, head, rows, targets, temperature=temperature, softcap=softcap,
        chunk_rows=chunk_rows, dtype=dtype,
    )  # fmt: skip


def token_loss(
    hidden: Tensor,  # (T, H)
    head: Tensor,  # (V, H)
    rows: Tensor,  # (M,) int64
    targets: Tensor,  # (M,) int64
    weights: Tensor,  # (M,)
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_rows: int | None = None,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> TokenLoss:
    """``-(weights * logprob).sum()`` with the log-probs of `token_logprob`, and its options.

    Only the loss is differentiable; log-probs and entropies come along, detached.
    """
    check_head_arguments(hidden, head, rows, targets, temperature, softcap, chunk_rows, dtype)
    check_shape("weights", weights, (len(rows),))
    check_device(hidden.device, weights=weights)
    if choose_backend(backend, hidden) == "triton":
        loss, logprob, entropy, _, _ = _token_loss(
            hidden, head, rows, targets, weights.detach(), temperature, softcap, chunk_rows, dtype,
            **needed_gradients(hidden, head),
        )  # fmt: skip
        return TokenLoss(loss, logprob, entropy)
    check_scores(hidden, head, rows, targets, weights=weights)
    return reference.token_loss(
        hidden, head, rows, targets, weights.detach(), temperature=temperature, softcap=softcap,
        chunk_rows=chunk_rows, dtype=dtype,
    )  # fmt: skip


# ---- token_logprob: forward, and backward from saved statistics -------------------------------


@torch.library.custom_op("fastmpi::token_logprob", mutates_args=())
def _token_logprob(
    hidden: Tensor,
    head: Tensor,
    rows: Tensor,
    targets: Tensor,
    temperature: float,
    softcap: float | None,
    chunk_rows: int | None,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    from fastmpi.kernels.token_logprob import token_scores

    check_scores(hidden, head, rows, targets)
    return token_scores(
        hidden, head, rows, targets, temperature=temperature, softcap=softcap,
        chunk_rows=chunk_rows, dtype=dtype or hidden.dtype,
    )  # fmt: skip


@_token_logprob.register_fake
def _(hidden: Tensor, head: Tensor, rows: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    logprob, entropy, log_sum = (hidden.new_empty(len(rows), dtype=torch.float32) for _ in "les")
    return logprob, entropy, log_sum


@torch.library.custom_op("fastmpi::token_logprob_backward", mutates_args=())
def _token_logprob_backward(
    hidden: Tensor,
    head: Tensor,
    rows: Tensor,
    targets: Tensor,
    grad_logprob: Tensor,
    grad_entropy: Tensor | None,
    entropy: Tensor,
    log_sum: Tensor,
    temperature: float,
    softcap: float | None,
    chunk_rows: int | None,
    dtype: torch.dtype | None,
    need_hidden: bool,
    need_head: bool,
) -> tuple[Tensor, Tensor]:
    from fastmpi.kernels.token_logprob import token_gradients

    buffers = gradient_buffers(hidden, head, need_hidden, need_head)
    token_gradients(
        hidden, head, rows, targets, column(grad_logprob),
        None if grad_entropy is None else column(grad_entropy), entropy, log_sum,
        temperature=temperature, softcap=softcap, chunk_rows=chunk_rows,
        dtype=dtype or hidden.dtype, **buffers,
    )  # fmt: skip
    return waiting_gradients(hidden, head, **buffers)


@_token_logprob_backward.register_fake
def _(hidden: Tensor, head: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    need_hidden, need_head = rest[-2:]
    return fake_gradient(need_hidden, hidden), fake_gradient(need_head, head)


def _keep_scores(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, head, rows, targets, *ctx.options = inputs
    ctx.save_for_backward(hidden, head, rows, targets, *output[1:])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _score_gradients(
    ctx: Any, grad_logprob: Tensor | None, grad_entropy: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    hidden, head, rows, targets, entropy, log_sum = ctx.saved_tensors
    need_hidden, need_head = ctx.needs_input_grad[:2]
    if grad_logprob is None:
        grad_logprob = torch.zeros_like(log_sum)
    dhidden, dhead = _token_logprob_backward(
        hidden, head, rows, targets, grad_logprob, grad_entropy, entropy, log_sum, *ctx.options,
        need_hidden, need_head,
    )  # fmt: skip
    return (
        dhidden.to(hidden.dtype) if need_hidden else None,
        dhead.to(head.dtype) if need_head else None,
        *(None,) * 6,
    )


_token_logprob.register_autograd(_score_gradients, setup_context=_keep_scores)


# ---- token_loss: loss and gradients at once ----------------------------------------------------


@torch.library.custom_op("fastmpi::token_loss", mutates_args=())
def _token_loss(
    hidden: Tensor,
    head: Tensor,
    rows: Tensor,
    targets: Tensor,
    weights: Tensor,
    temperature: float,
    softcap: float | None,
    chunk_rows: int | None,
    dtype: torch.dtype | None,
    need_hidden: bool,
    need_head: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from fastmpi.kernels.token_logprob import token_scores

    check_scores(hidden, head, rows, targets, weights=weights)
    weights = column(weights)
    buffers = gradient_buffers(hidden, head, need_hidden, need_head)
    logprob, entropy, _ = token_scores(
        hidden, head, rows, targets, weights, temperature=temperature, softcap=softcap,
        chunk_rows=chunk_rows, dtype=dtype or hidden.dtype, **buffers,
    )  # fmt: skip
    loss = -(weights * logprob).sum(dtype=torch.float64).float()
    return loss, logprob, entropy, *waiting_gradients(hidden, head, **buffers)


@_token_loss.register_fake
def _(
    hidden: Tensor, head: Tensor, rows: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    need_hidden, need_head = rest[-2:]
    logprob, entropy = (hidden.new_empty(len(rows), dtype=torch.float32) for _ in "le")
    return (
        hidden.new_empty((), dtype=torch.float32),
        logprob,
        entropy,
        fake_gradient(need_hidden, hidden),
        fake_gradient(need_head, head),
    )


_token_loss.register_autograd(scale_gradients, setup_context=keep_gradients)
