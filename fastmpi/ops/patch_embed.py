"""The op ``patch_embed``: pixels as bytes to embeddings, no float picture between on CUDA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmpi.ops.backend import choose_backend
from fastmpi.ops.tensor_checks import check_device, check_shape
from fastmpi.reference import patch_embed as reference

__all__ = ["fold_patch_weight", "patch_embed"]


def patch_embed(
    patches: Tensor,  # (N, C * p * p) uint8
    weight: Tensor,  # (E, C, 2, p, p)
    mean: Tensor,  # (C,)
    std: Tensor,  # (C,)
    *,
    backend: str | None = None,
) -> Tensor:
    """A tower's 3-D patch convolution of still images, from raw pixels: (N, E).

    Equals ``conv3d`` of ``(pixels / 255 - mean) / std``, the one frame given twice, without bias.
    The kernel reads an eighth of the bytes of two float frames: their weights are added, and the
    normalisation is folded into weight and bias, see `fold_patch_weight`. Differentiable in
    ``weight``; the result has its dtype. Raises ``ValueError`` for shapes and types that do not
    fit.
    """
    _check_arguments(patches, weight, mean, std)
    if choose_backend(backend, weight) == "reference":
        return reference.patch_embed(patches, weight, mean, std)
    folded, bias = reference.fold_patch_weight(weight, mean, std)
    return _patch_embed(patches, folded, bias, weight.dtype)


def fold_patch_weight(
    weight: Tensor,  # (E, C, 2, p, p)
    mean: Tensor,  # (C,)
    std: Tensor,  # (C,)
) -> tuple[Tensor, Tensor]:
    """Weight (E, C * p * p) and bias (E,): `patch_embed` is ``(patches - 128) @ weight.T + bias``.

    In float32, float64 for a float64 weight; differentiable. ``mean`` and ``std`` are of pixels in
    [0, 1]. Raises ``ValueError`` for shapes and types that do not fit.
    """
    _check_weight(weight, mean, std)
    return reference.fold_patch_weight(weight, mean, std)


def _check_weight(weight: Tensor, mean: Tensor, std: Tensor) -> None:
    check_shape("weight", weight, (None, None, 2, None, None))
    if not weight.is_floating_point() or weight.shape[3] != weight.shape[4]:
        raise ValueError(
            f"weight must be floats of square patches, got {weight.dtype} {tuple(weight.shape)}"
        )
    check_shape("mean", mean, (weight.shape[1],))
    check_shape("std", std, (weight.shape[1],))
    check_device(weight.device, mean=mean, std=std)


def _check_arguments(patches: Tensor, weight: Tensor, mean: Tensor, std: Tensor) -> None:
    _check_weight(weight, mean, std)
    check_shape("patches", patches, (None, weight[0, :, 0].numel()))
    check_device(weight.device, patches=patches)
    if patches.dtype != torch.uint8:
        raise ValueError(f"patches must be uint8, got {patches.dtype}")


@torch.library.custom_op("fastmpi::patch_embed", mutates_args=())
def _patch_embed(patches: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """``(patches - 128) @ weight.T + bias``, of the folded weight (E, K) in `dtype`.

    The weight comes in float32, so that its gradient is not rounded before it is unfolded.
    """
    from fastmpi.kernels.patch_embed import patch_embed as launch

    with torch.cuda.device_of(patches):  # kernels are launched on the current device
        return launch(patches, weight.to(dtype), bias)


@_patch_embed.register_fake
def _(patches: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.new_empty(len(patches), len(weight), dtype=dtype)


@torch.library.custom_op("fastmpi::patch_embed_backward", mutates_args=())
def _patch_embed_backward(gradient: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the folded weight (E, K) and bias (E,), in float32, from (N, E).

    A plain product of 16-bit operands: it runs once a step, and the bytes are few beside it.
    """
    centred = (patches.to(torch.int16) - 128).to(gradient.dtype)
    if gradient.device.type == "cuda" and gradient.dtype != torch.float32:
        weight = torch.mm(gradient.T, centred, out_dtype=torch.float32)
    else:
        weight = gradient.T.float() @ centred.float()
    return weight, gradient.sum(0, dtype=torch.float32)


@_patch_embed_backward.register_fake
def _(gradient: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    weight = gradient.new_empty(gradient.shape[1], patches.shape[1], dtype=torch.float32)
    return weight, gradient.new_empty(gradient.shape[1], dtype=torch.float32)


def _save_patches(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor, None]:
    weight, bias = _patch_embed_backward(gradient, ctx.saved_tensors[0])
    return None, weight, bias, None


_patch_embed.register_autograd(_differentiate, setup_context=_save_patches)
