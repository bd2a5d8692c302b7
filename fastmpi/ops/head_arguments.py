"""What the ops on the LM head share: argument checks, and a loss that brings its own gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastmpi.ops.backend import KERNEL_DTYPES
from fastmpi.ops.tensor_checks import check_device, check_shape, check_values


def check_head_arguments(
    hidden: Tensor,  # (T, H)
    head: Tensor,  # (V, H)
    rows: Tensor,  # (M,)
    targets: Tensor,  # (M,)
    temperature: float,
    softcap: float | None,
    chunk_rows: int | None,
    dtype: torch.dtype | None,
) -> None:
    """Raise ``ValueError`` for shapes and options that cannot be; `check_scores` sees values."""
    check_shape("hidden", hidden, (None, None))
    check_shape("head", head, (None, hidden.shape[1]))
    for name, tensor in {"hidden": hidden, "head": head}.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must hold floats, got {tensor.dtype}")
    check_shape("rows", rows, (None,))
    check_shape("targets", targets, (len(rows),))
    check_device(hidden.device, head=head, rows=rows, targets=targets)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be above 0 or None, got {softcap}")
    if chunk_rows is not None and (not isinstance(chunk_rows, int) or chunk_rows < 1):
        raise ValueError(f"chunk_rows must be an integer of at least 1 or None, got {chunk_rows}")
    if dtype is not None and dtype not in (*KERNEL_DTYPES, hidden.dtype):
        raise ValueError(f"dtype must be a float type no wider than hidden's, got {dtype}")


def check_scores(
    hidden: Tensor, head: Tensor, rows: Tensor, targets: Tensor, **numbers: Tensor | None
) -> None:
    """Raise ``ValueError`` unless rows and targets exist and all numbers are finite.

    Custom ops do this themselves, inside, where `torch.compile` does not look.
    """
    check_values({"rows": (rows, len(hidden)), "targets": (targets, len(head))}, numbers)


def column(values: Tensor) -> Tensor:
    """(M,) float32, contiguous: what a kernel reads."""
    return values.detach().to(torch.float32).contiguous()


def needed_gradients(hidden: Tensor, head: Tensor) -> dict[str, bool]:
    """Whether a loss on them is to be differentiated in ``hidden`` and in ``head``."""
    enabled = torch.is_grad_enabled()
    return {
        "need_hidden": enabled and hidden.requires_grad,
        "need_head": enabled and head.requires_grad,
    }


def waiting_dtype(dtype: torch.dtype) -> torch.dtype:
    """How a gradient waits for that of the loss: float16 would underflow before a loss scale."""
    return torch.float32 if dtype == torch.float16 else dtype


def gradient_buffers(
    hidden: Tensor, head: Tensor, need_hidden: bool, need_head: bool
) -> dict[str, Tensor | None]:
    """What the kernels fill: dhidden (T, H) and dhead (V, H), the latter a sum in float32."""
    return {
        "dhidden": torch.zeros_like(hidden, dtype=waiting_dtype(hidden.dtype))
        if need_hidden
        else None,
        "dhead": torch.zeros_like(head, dtype=torch.float32) if need_head else None,
    }


def waiting_gradients(
    hidden: Tensor, head: Tensor, *, dhidden: Tensor | None, dhead: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The filled buffers as a custom op returns them; (0,) for one that is not needed."""
    return (
        fake_gradient(False, hidden) if dhidden is None else dhidden,
        fake_gradient(False, head) if dhead is None else dhead.to(waiting_dtype(head.dtype)),
    )


def fake_gradient(needed: bool, like: Tensor) -> Tensor:
    """What stands for a gradient that waits; (0,) for one that is not needed."""
    shape = like.shape if needed else (0,)
    return like.new_empty(shape, dtype=waiting_dtype(like.dtype))


def keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Autograd context of an op (hidden, head, ...) -> (loss, measures..., dhidden, dhead)."""
    ctx.save_for_backward(*output[-2:])
    ctx.dtypes = (inputs[0].dtype, inputs[1].dtype)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


@once_differentiable
def scale_gradients(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    """Its backward pass."""
    unused = (None,) * (len(ctx.needs_input_grad) - 2)
    if grad_loss is None:
        return (None, None, *unused)
    scaled = (
        (gradient * grad_loss).to(dtype) if needed else None
        for gradient, dtype, needed in zip(
            ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad, strict=False
        )
    )
    return (*scaled, *unused)
