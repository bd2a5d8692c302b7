"""The products of a fused LM head: logits of a chunk of rows, and what their gradient is good for.

Legend: T rows of hidden states of size H, V vocabulary, M scores on U distinct rows. The products
are torch's (cuBLAS), with float32 results from 16-bit operands: rounding logits to bfloat16 would
cost about 0.01 nats a token. Between them a row kernel turns the logits of a chunk into their
gradient, in their own memory. One buffer serves all chunks, so memory does not grow with T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastmpi.kernels.target import architecture

CHUNK_LOGITS = 11 << 24  # 704 MiB of float32
TILE = 128  # rows, and columns, of a tile of the products
ALIGNMENT = 16  # logits; rows then start at a multiple of 16 bytes as 16-bit numbers too
FLOAT16_TARGET = 8  # the largest float16 gradient stays near 2**8: 2**8 from infinity


class HeadScores(NamedTuple):
    """M scores sorted by row, then by target; equal ones in the order given."""

    rows: Tensor  # (U,) the distinct rows, ascending
    offsets: Tensor  # (U + 1,) where each row's scores start
    targets: Tensor  # (M,) int32
    order: Tensor  # (M,) int32, the place of each in the order given


def row_options(softcap: float | None) -> dict[str, int]:
    """How a program of a row kernel reads its row; see `head_rows`. SCORES: at a time.

    Two programs of 16 warps fill a multiprocessor, with 32 kB of loads each in flight. More rows at
    a time would leave less of each in the cache for the second pass. The soft-cap takes registers:
    at half the depth, two programs still fit.
    """
    if architecture() == 0:  # several tiles from a small vocabulary
        return {"DEPTH": 2, "LANES": 128, "SCORES": 4, "num_warps": 1}
    depth = 4 if softcap is None else 2
    return {"DEPTH": depth, "LANES": 2048, "SCORES": 32, "num_warps": 16}


def group_scores(rows: Tensor, targets: Tensor, vocabulary: int) -> HeadScores:
    """Scores by distinct row. The host waits once, for their number."""
    order = (rows.long() * vocabulary + targets).argsort(stable=True)
    distinct, counts = rows.long()[order].unique_consecutive(return_counts=True)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return HeadScores(distinct, offsets, targets[order].int(), order.int())


def processors(device: torch.device) -> int:
    """Multiprocessors of the device."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def default_chunk_rows(vocabulary: int, width: int, processors: int, *, trained: bool) -> int:
    """Rows of a chunk within the budget that keep most multiprocessors busy.

    The product for d hidden has the fewest tiles, rows / 128 x width / 128, each as long as the
    vocabulary: a last wave of few tiles would leave most of the device idle. A trained head's
    gradient is read and written once a chunk, so chunks may then be half as large as that gradient.
    """
    budget = max(CHUNK_LOGITS, vocabulary * width // 2 if trained else 0)
    most = max(1, budget // vocabulary // TILE)

    def busy(row_tiles: int) -> float:
        tiles = row_tiles * -(-width // TILE)
        return tiles / (-(-tiles // processors) * processors)

    return TILE * max(range(1, most + 1), key=lambda tiles: (busy(tiles), tiles))


def gradient_scale(dtype: torch.dtype, bound: Tensor, scores: HeadScores) -> Tensor | None:
    """(1,) the power of two that keeps float16 gradients from underflow; None for other types.

    bound: (M,) about the largest |d loss / d logprob| of each score.
    """
    if dtype != torch.float16 or len(bound) == 0:
        return None
    largest = bound.amax() * scores.offsets.diff().amax()
    exponent = FLOAT16_TARGET - torch.frexp(largest.float()).exponent
    return torch.exp2(exponent.clamp(max=100).float()).reshape(1)


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right in float32."""
    with torch.autocast(left.device.type, enabled=False):  # it would round the result
        if left.is_cuda and left.dtype != torch.float32:
            return torch.mm(left, right, out_dtype=torch.float32, out=out)
        return torch.mm(left.float(), right.float(), out=out)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, total in float32."""
    with torch.autocast(left.device.type, enabled=False):
        if left.is_cuda and left.dtype != torch.float32:
            torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
        else:
            total.addmm_(left.float(), right.float())


def in_place_gradient(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, padded) of `dtype` in the memory of (N, padded) float32 logits: each row's second half
    if it is half as wide (`write_row_gradient` says why)."""
    return logits.view(dtype)[:, -logits.shape[1] :]


def over_chunks(
    hidden: Tensor,  # (T, H)
    head: Tensor,  # (V, H)
    scores: HeadScores,
    launch: Callable[[Tensor, Tensor | None, int], None],
    *,
    chunk_rows: int | None,
    dtype: torch.dtype,
    dhidden: Tensor | None = None,  # (T, H) zeros to fill
    dhead: Tensor | None = None,  # (V, H) float32 to add to
    scale: Tensor | None = None,
) -> None:
    """The row kernel on all rows, and the products of the gradient that it leaves.

    `launch(logits, gradient, first_row)` gets the (N, padded) logits of rows first_row .. first_row
    + N of `scores.rows`, and where to put their gradient, times `scale`: None if neither `dhidden`
    nor `dhead` is there to take it.
    """
    vocabulary, padded = len(head), -(-len(head) // ALIGNMENT) * ALIGNMENT
    if chunk_rows is None:
        chunk_rows = default_chunk_rows(
            *head.shape, processors(hidden.device), trained=dhead is not None
        )
    chunk_rows = min(chunk_rows, len(scores.rows))
    buffer = torch.empty(chunk_rows, padded, dtype=torch.float32, device=hidden.device)
    weight = head.to(dtype)
    differentiable = dhidden is not None or dhead is not None
    with torch.cuda.device_of(hidden):  # kernels are launched on the current device
        for first_row in range(0, len(scores.rows), max(chunk_rows, 1)):
            rows = scores.rows[first_row : first_row + chunk_rows]
            chunk = hidden.index_select(0, rows).to(dtype)
            logits = buffer[: len(rows)]
            product(chunk, weight.T, out=logits[:, :vocabulary])
            gradient = in_place_gradient(logits, dtype) if differentiable else None
            launch(logits, gradient, first_row)
            if dhidden is not None:
                found = product(gradient[:, :vocabulary], weight)
                dhidden.index_copy_(0, rows, unscaled(found, scale).to(dhidden.dtype))
            if dhead is not None:
                add_product(dhead, gradient[:, :vocabulary].T, chunk)
    if dhead is not None:
        unscaled(dhead, scale)


def unscaled(gradient: Tensor, scale: Tensor | None) -> Tensor:
    """The gradient itself, in place."""
    return gradient if scale is None else gradient.div_(scale)
