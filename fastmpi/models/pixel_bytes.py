"""A vision tower that takes pictures as bytes: its first layer becomes the op `patch_embed`.

Unusual: the layer keeps its weights, and for the time of a call another forward; threads that
encode with one tower, to train and to sample ahead, take turns. On CUDA an eighth of the bytes go
to the device, and normalising them costs no pass of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastmpi.ops.backend import choose_backend
from fastmpi.ops.patch_embed import patch_embed

if TYPE_CHECKING:
    from fastmpi.data.images import Image

_one_at_a_time = Lock()


def takes_bytes(weight: Tensor, images: Sequence[Image]) -> bool:
    """Whether `images` go into a layer of this weight as bytes: on CUDA, if all are kept so."""
    kept = all(image.patches is not None for image in images)
    return kept and choose_backend(None, weight) == "triton"


@contextmanager
def embeds_bytes(layer: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Iterator[None]:
    """Inside, `layer` embeds rows (N, channels * patch * patch) of bytes, whatever their dtype;
    other threads wait outside.

    layer: a patch embedding of transformers, whose `proj` is a Conv3d over two frames.
    """
    proj = layer.proj
    assert isinstance(proj, nn.Conv3d)
    numbers = (torch.tensor(values, device=proj.weight.device) for values in (mean, std))
    mean_of_channel, std_of_channel = numbers

    def forward(pixels: Tensor) -> Tensor:
        weight = _as_autocast(proj.weight)
        # the model has cast them to its own dtype, which holds 0 to 255 exactly
        rows = patch_embed(pixels.to(torch.uint8), weight, mean_of_channel, std_of_channel)
        return rows if proj.bias is None else rows + proj.bias.to(rows.dtype)

    with _one_at_a_time:
        layer.forward = forward
        try:
            yield
        finally:
            del layer.forward


def _as_autocast(weight: Tensor) -> Tensor:
    device = weight.device.type
    enabled = torch.is_autocast_enabled(device)
    return weight.to(torch.get_autocast_dtype(device)) if enabled else weight
