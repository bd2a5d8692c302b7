"""The first half of the CLEVR base's training: its vision tower learns what stands in each cell.

The scene graph says where every object is, so a linear layer on the visual tokens can be told at
once what each of them shows. That is far cheaper than to learn to see through language. First come
small windows around objects, half of them of drawn pictures, then whole real pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType

import numpy as np
import torch
from clevr_base_model import CELL, HIDDEN, PICTURE
from clevr_base_pictures import UNSURE, Picture, cells, cut, patches
from torch import Tensor, nn

from fastmpi.data.scenes import CLEVR_ATTRIBUTES

SIZES = tuple(len(values) for values in CLEVR_ATTRIBUTES.values())
SHAPE_WEIGHT = 3.0  # shapes are hardest to tell
WINDOW = 2 * CELL
WINDOWS, WHOLE = 64, 12  # pictures a step
JITTER = {"window": 16, "whole": 12}  # pixels
DRAWN_SHARE = 0.5  # of the windows, until DRAWN_UNTIL of the steps with windows
DRAWN_UNTIL = 0.6


class CellHead(nn.Module):
    """Reads a visual token: whether an object is there (1), and which values it has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(HIDDEN, 1 + sum(SIZES))

    def forward(self, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        there, values = self.linear(tokens).split([1, sum(SIZES)], -1)
        return there[:, 0], values.split(SIZES, -1)


def encode(visual: nn.Module, pictures: Sequence[Picture]) -> Tensor:
    """Visual tokens (pictures * cells, H) in float32, of pictures of one size."""
    pixels, grids = patches(pictures)
    with torch.autocast("cpu", torch.bfloat16):
        return visual(pixels, grid_thw=grids).pooler_output.float()


def cell_loss(
    head: CellHead, tokens: Tensor, pictures: Sequence[Picture]
) -> tuple[Tensor, list[float]]:
    """The loss, and the share of right values of each attribute."""
    labels = np.concatenate([_cell_values(picture) for picture in pictures])
    target = torch.from_numpy(labels)
    there, values = head(tokens)
    known, shown = target[:, 0] != UNSURE, target[:, 0] == 1
    loss = nn.functional.binary_cross_entropy_with_logits(there[known], target[known, 0].float())
    shares = []
    for place, logits in enumerate(values):
        wanted = target[shown, 1 + place]
        weight = SHAPE_WEIGHT if place == 0 else 1.0
        loss = loss + weight * nn.functional.cross_entropy(logits[shown], wanted)
        shares.append((logits[shown].argmax(-1) == wanted).float().mean().item())
    return loss, shares


def draw_batch(
    rng: np.random.Generator, real: Sequence[Picture], drawn: Sequence[Picture], progress: float
) -> list[Picture]:
    """Windows of one step, at `progress` (0 to 1) through the steps with windows."""
    share = DRAWN_SHARE if progress < DRAWN_UNTIL else 0.0
    return [_window(rng, drawn if rng.random() < share else real) for _ in range(WINDOWS)]


def draw_whole(rng: np.random.Generator, real: Sequence[Picture]) -> list[Picture]:
    """Whole pictures of one step, moved a little, half of them mirrored."""
    reach = JITTER["whole"]
    chosen = [real[index] for index in rng.integers(len(real), size=WHOLE)]
    moves = rng.integers(-reach, reach + 1, (WHOLE, 2))
    return [
        cut(picture, int(x), int(y), PICTURE, bool(rng.random() < 0.5))
        for picture, (x, y) in zip(chosen, moves, strict=True)
    ]


def attend_together(visual: nn.Module) -> None:
    """Let the tower attend in all pictures of a batch at once; they have one size in training.

    transformers goes through them one by one, which takes longer than to multiply.
    """
    for block in visual.blocks:
        block.attn.forward = MethodType(_attention, block.attn)


def attend_apart(visual: nn.Module) -> None:
    """Undo `attend_together`."""
    for block in visual.blocks:
        del block.attn.forward


def _attention(layer, hidden_states, cu_seqlens, position_embeddings, **_) -> Tensor:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    length, count = len(hidden_states), len(cu_seqlens) - 1
    q, k, v = layer.qkv(hidden_states).view(length, 3, layer.num_heads, -1).unbind(1)
    q, k = apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    q, k, v = (x.view(count, length // count, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
    mixed = (q.to(v.dtype) @ k.to(v.dtype).mT * layer.scaling).softmax(-1).to(v.dtype) @ v
    return layer.proj(mixed.transpose(1, 2).reshape(length, -1))


def _window(rng: np.random.Generator, pictures: Sequence[Picture]) -> Picture:
    picture = pictures[rng.integers(len(pictures))]
    reach = JITTER["window"]
    x, y = picture.centres[rng.integers(len(picture.centres))] - WINDOW / 2
    dx, dy = rng.integers(-reach, reach + 1, 2)
    mirror = bool(rng.random() < 0.5)
    return cut(picture, round(x + dx), round(y + dy), (WINDOW, WINDOW), mirror)


def _cell_values(picture: Picture) -> np.ndarray:
    """(cells, 5): 1 where an object is, 0 where none is, or UNSURE; then its values."""
    labels = cells(picture)
    values = np.where(labels[:, None] >= 0, picture.values[labels.clip(0)], -1)
    there = np.where(labels == UNSURE, UNSURE, labels >= 0)
    return np.concatenate([there[:, None], values], 1)
