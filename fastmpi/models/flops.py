"""Counted floating-point operations of one update: forward, loss and backward of forest batches.

Legend: T rows of a forest. A product of (m, k) and (k, n) counts 2 m k n; whatever is not a matrix
product counts nothing. Attention is counted by visible pairs of query and key, however a kernel
tiles them, and twice as much backward as forward: what a kernel computes again is its own affair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from fastmpi.data.batch import ForestBatch
    from fastmpi.data.images import Image
    from fastmpi.models.forest_model import ForestModel

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@dataclass(frozen=True)
class Flops:
    """Counts of one pass through a part. again: the forward that gradient checkpointing repeats."""

    forward: float = 0.0
    backward: float = 0.0
    again: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.again

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            self.forward + other.forward, self.backward + other.backward, self.again + other.again
        )


@dataclass(frozen=True)
class UpdateFlops:
    """Counts of an update, by part. linears: of the text tower, without head and embedding."""

    vision: Flops
    linears: Flops
    attention: Flops
    head: Flops

    @property
    def total(self) -> float:
        return sum(part.total for part in (self.vision, self.linears, self.attention, self.head))


def update_flops(
    model: ForestModel, batches: Sequence[ForestBatch], *, checkpointing: bool = False
) -> UpdateFlops:
    """What the update of `batches` asks of `model`, its parts trained or frozen as they are now.

    The vision tower runs once per distinct picture, the text tower once per row, the head once per
    distinct row that is scored. checkpointing: the layers' whole forward runs again.
    `ValueError` for a model whose vision tower is none of Qwen's.
    """
    rows = sum(batch.num_tokens for batch in batches)
    pairs = sum(visible_pairs(batch.subtree_end) for batch in batches)
    images = {image.key: image for batch in batches for image in batch.images}
    scored = sum(len(batch.sample_scores().rows.unique()) for batch in batches)
    return UpdateFlops(
        _vision(model, list(images.values()), checkpointing),
        _text_linears(model, rows, checkpointing),
        _text_attention(model, pairs, checkpointing),
        _head(model, scored),
    )


def visible_pairs(subtree_end: Tensor) -> int:
    """Pairs of query and key under the forest rule: each key is seen by its own subtree."""
    rows = torch.arange(len(subtree_end), device=subtree_end.device)
    return int((subtree_end.long() - rows).sum())


def _text_linears(model: ForestModel, rows: int, checkpointing: bool) -> Flops:
    """Every linear, for every row. Where embeddings and pictures are frozen, nothing trains below
    the first layer, and its inputs need no gradient."""
    tower = model.text_tower
    trains_below = model.trains_vision or tower.embed_tokens.weight.requires_grad
    first = tower.layers[0].self_attn
    frozen = [] if trains_below else [first.q_proj, first.k_proj, first.v_proj]
    inputs = {linear for projection in frozen for linear in _linears(projection, but="lora_B")}
    counts = (_linear(linear, rows, linear not in inputs) for linear in _linears(tower))
    return _again(sum(counts, Flops()), checkpointing)


def _text_attention(model: ForestModel, pairs: int, checkpointing: bool) -> Flops:
    config = model.base.config.get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    forward = 4.0 * pairs * heads * head_dim * config.num_hidden_layers
    return _again(Flops(forward, 2 * forward), checkpointing)


def _head(model: ForestModel, rows: int) -> Flops:
    product = 2.0 * rows * model.head.numel()
    return Flops(product, product * (1 + model.head.requires_grad))


def _vision(model: ForestModel, images: Sequence[Image], checkpointing: bool) -> Flops:
    config = model.base.config
    if config.model_type not in FAMILIES:
        raise ValueError(f"cannot count the vision tower of model type {config.model_type!r}")
    tower, merge = model.base.model.visual, config.vision_config.spatial_merge_size
    grids = [image.grid for image in images]
    patches = sum(t * h * w for t, h, w in grids)
    weight = tower.patch_embed.proj.weight
    trained = weight.requires_grad
    embed = 2.0 * patches * weight.numel()
    linears = (_linear(linear, patches, trained) for linear in _linears(tower.blocks))
    pairs = sum(_vision_pairs(config.vision_config, grid) for grid in grids)
    attention = 4.0 * pairs * config.vision_config.hidden_size
    blocks = sum(linears, Flops(attention, 2 * attention * trained))
    # A merger begins with a norm of its own, so its linears hand gradients down once it trains.
    mergers = (
        _linear(linear, patches // merge**2, model.trains_vision)
        for name, module in tower.named_children()
        if "merger" in name
        for linear in _linears(module)
    )
    embedded = Flops(embed, embed * trained)
    return sum(mergers, embedded + _again(blocks, checkpointing and trained))


def _vision_pairs(config: PretrainedConfig, grid: tuple[int, int, int]) -> int:
    """Pairs in all blocks of the tower: each frame sees itself, or its windows themselves."""
    frames, height, width = grid
    whole = frames * (height * width) ** 2
    if not hasattr(config, "fullatt_block_indexes"):
        return whole * config.depth
    side = config.window_size // config.patch_size
    rows, columns = (sum(n * n for n in _pieces(size, side)) for size in (height, width))
    num_whole = len(config.fullatt_block_indexes)
    return whole * num_whole + frames * rows * columns * (config.depth - num_whole)


def _pieces(size: int, side: int) -> list[int]:
    return [min(side, size - start) for start in range(0, size, side)]


def _linears(module: nn.Module, but: str = "-") -> Iterator[nn.Linear]:
    """All linears of `module`, those of adapters too; without those whose name holds `but`."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and but not in name:
            yield part


def _linear(linear: nn.Linear, rows: int, input_gradient: bool) -> Flops:
    """Backward one product for the gradient of the input, one for that of the weight."""
    product = 2.0 * rows * linear.weight.numel()
    return Flops(product, product * (input_gradient + linear.weight.requires_grad))


def _again(flops: Flops, checkpointing: bool) -> Flops:
    return Flops(flops.forward, flops.backward, flops.forward * checkpointing)
