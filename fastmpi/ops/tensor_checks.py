"""Checks that the torch ops share: a wrong argument is a ``ValueError``, no kernel crash."""

from __future__ import annotations

import torch
from torch import Tensor


def check_tensor(name: str, value: object) -> None:
    """``value`` is a tensor; of arrays, which have devices and dtypes too, torch knows nothing."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")


def check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """``tensor`` is one, of this shape; None stands for any length."""
    check_tensor(name, tensor)
    agrees = tensor.ndim == len(shape) and all(
        length is None or length == actual
        for length, actual in zip(shape, tensor.shape, strict=True)
    )
    if not agrees:
        wanted = ", ".join("*" if length is None else str(length) for length in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(tensor.shape)}")


def check_device(device: torch.device, **tensors: Tensor | None) -> None:
    """All tensors that are given are on ``device``."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} must be on {device}, got {tensor.device}")


def check_index(name: str, index: Tensor, size: int) -> None:
    """``index`` holds int32 or int64 values in [0, size)."""
    if index.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be int32 or int64, got {index.dtype}")
    if index.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(index))
    if low < 0 or high >= size:
        raise ValueError(f"{name} must lie in [0, {size}), got values from {low} to {high}")


def check_finite(name: str, tensor: Tensor) -> None:
    """``tensor`` holds neither NaN nor infinity."""
    bad = (~torch.isfinite(tensor)).nonzero()
    if len(bad):
        index = bad[0].tolist()
        raise ValueError(f"{name}{index} is {tensor[tuple(index)].item()}, not a finite number")


def check_values(indices: dict[str, tuple[Tensor, int]], numbers: dict[str, Tensor | None]) -> None:
    """`check_index` of each (index, size) and `check_finite` of each number that is given.

    The host waits for the device once, if nothing is wrong.
    """
    given = {name: tensor for name, tensor in numbers.items() if tensor is not None}
    rules = [torch.isfinite(tensor).all() for tensor in given.values()]
    rules += [((index >= 0) & (index < size)).all() for index, size in indices.values()]
    whole = all(index.dtype in (torch.int32, torch.int64) for index, _ in indices.values())
    if whole and bool(torch.stack(rules).all()):
        return
    for name, (index, size) in indices.items():
        check_index(name, index, size)
    for name, tensor in given.items():
        check_finite(name, tensor)
