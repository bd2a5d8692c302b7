"""The triton backend of `forest_attention`: our own kernels, in `fastmpi.kernels`.

Legend as in `forest_attention`. Nothing recompiles when T or the forest changes: kernels are
compiled for a head size, a dtype and a number of query heads per key head.

Unusual: sizes of blocks depend on the head size, so that lists of blocks are made when the first
layer asks for them, and kept for the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmpi.ops import backend

MAX_HEAD_DIM = 256
_PROGRAMS = 512  # that share the keys' gradients: a few for each multiprocessor of a large GPU


def refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Why this backend cannot run; empty if it can."""
    if device.type != "cuda" and not backend.kernels_run_on_cpu():
        return f"needs a CUDA device, not {device.type!r}"
    if dtype not in backend.KERNEL_DTYPES:
        return f"takes float32, bfloat16 or float16, not {dtype}"
    return "" if head_dim <= MAX_HEAD_DIM else f"takes heads up to {MAX_HEAD_DIM}, not {head_dim}"


class Schedules:
    """Lists of blocks of one forest, made when first asked for. No call waits for the device."""

    def __init__(self, subtree_end: Tensor) -> None:
        self.subtree_end = subtree_end
        self._made: dict[Any, Any] = {}

    def of_queries(self, block_m: int, block_n: int) -> Tensor:
        """Key blocks of each query block: `query_schedule`."""
        from fastmpi.kernels.forest_attention_plan import query_schedule

        key = (block_m, block_n)
        if key not in self._made:
            self._made[key] = query_schedule(self.subtree_end, block_m, block_n)
        return self._made[key]

    def of_keys(self, block_m: int, block_n: int, programs: int | None) -> tuple[Tensor, Tensor]:
        """Query blocks of each key block, in parts: `key_schedule`."""
        from fastmpi.kernels.forest_attention_plan import key_schedule

        key = (block_m, block_n, programs)
        if key not in self._made:
            self._made[key] = key_schedule(self.subtree_end, block_m, block_n, programs=programs)
        return self._made[key]


def prepare(subtree_end: Tensor) -> Schedules:
    """The forest's lists of blocks, none of them made yet."""
    return Schedules(subtree_end)


def attend(
    q: Tensor, k: Tensor, v: Tensor, schedules: Schedules, scale: float, deterministic: bool
) -> Tensor:
    """(T, Hq, D), (T, Hkv, D) twice -> (T, Hq, D)."""
    from fastmpi.kernels.forest_attention_tiles import tiles

    if scale < 0:  # the kernels find the highest score before they scale
        q, scale = -q, -scale
    q, k, v = (_rows_contiguous(x) for x in (q, k, v))
    tile = tiles(q.shape[-1], q.dtype)
    forward = schedules.of_queries(tile.forward.block_m, tile.forward.block_n)
    backward: tuple[Tensor | None, ...] = (None, None, None)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        programs = None if deterministic else max(1, _PROGRAMS // k.shape[1])
        backward = (
            schedules.of_queries(tile.query_grad.block_m, tile.query_grad.block_n),
            *schedules.of_keys(tile.key_grad.block_m, tile.key_grad.block_n, programs),
        )
    return _forest_attention(q, k, v, schedules.subtree_end, forward, *backward, scale)[0]


@torch.library.custom_op("fastmpi::forest_attention", mutates_args=())
def _forest_attention(
    q: Tensor,  # (T, Hq, D)
    k: Tensor,  # (T, Hkv, D)
    v: Tensor,  # (T, Hkv, D)
    subtree_end: Tensor,  # (T,) int32
    schedule: Tensor,  # of the queries, forward
    query_schedule: Tensor | None,  # of the queries, backward; None: there is none
    key_lists: Tensor | None,
    key_parts: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """out (T, Hq, D) and the log-sum-exp of the scores, (Hq, T) fp32, which has no gradient."""
    from fastmpi.kernels.forest_attention import forest_attention

    with torch.cuda.device_of(q):  # kernels are launched on the current device
        return forest_attention(q, k, v, subtree_end, schedule, scale)


@_forest_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    from fastmpi.kernels.forest_attention import new_row_numbers

    return q.new_empty(q.shape), new_row_numbers(q)


@torch.library.custom_op("fastmpi::forest_attention_backward", mutates_args=())
def _forest_attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    subtree_end: Tensor,
    query_schedule: Tensor,
    key_lists: Tensor,
    key_parts: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in their shapes and dtypes."""
    from fastmpi.kernels.forest_attention_backward import key_grad, query_grad

    with torch.cuda.device_of(q):
        dq, delta = query_grad(q, k, v, out, grad_out, lse, subtree_end, query_schedule, scale)
        dk, dv = key_grad(q, k, v, grad_out, lse, delta, subtree_end, key_lists, key_parts, scale)
    return dq, dk, dv


@_forest_attention_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, subtree_end, _, query_schedule, key_lists, key_parts, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, subtree_end, query_schedule, key_lists, key_parts)


def _backward(ctx: Any, grad_out: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, *forest = ctx.saved_tensors
    grad_out = _rows_contiguous(grad_out)
    grads = _forest_attention_backward(q, k, v, out, grad_out, lse, *forest, ctx.scale)
    return *grads, *[None] * 6


_forest_attention.register_autograd(_backward, setup_context=_save)


def _rows_contiguous(x: Tensor) -> Tensor:
    """x itself if the numbers of a row are neighbours, as the kernels read them; else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()
