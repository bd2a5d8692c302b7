"""Sizes that the formulas of memory and time take: of a text tower, its precision, what of it
trains, and a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastmpi.ops import attention_sdpa

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from fastmpi.data.batch import ForestBatch

_HEAD_NORMS = ("qwen3_vl_text",)


@dataclass(frozen=True)
class TextShape:
    """Sizes of a text tower. head_norms: norms over each head of queries and keys (Qwen3)."""

    layers: int
    hidden: int
    query: int
    key: int
    heads: int
    wide: int
    vocabulary: int
    head_norms: bool = False

    @classmethod
    def of(cls, config: PretrainedConfig) -> TextShape:
        """Of a whole model's config, or of its text part."""
        text: Any = config.get_text_config()
        heads = text.num_attention_heads
        dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        return cls(
            text.num_hidden_layers,
            text.hidden_size,
            heads * dim,
            text.num_key_value_heads * dim,
            heads,
            text.intermediate_size,
            text.vocab_size,
            text.model_type in _HEAD_NORMS,
        )

    @property
    def key_heads(self) -> int:
        return self.key * self.heads // self.query

    @property
    def linear_parameters(self) -> int:
        """Of all layers, without biases, head and embedding."""
        attention = 2 * self.hidden * (self.query + self.key)
        return self.layers * (attention + 3 * self.hidden * self.wide)

    def key_value_bytes(self, precision: Precision) -> int:
        """Keys and values of one token, all layers."""
        return 2 * self.key * self.layers * precision.compute


@dataclass(frozen=True)
class Precision:
    """weights: bytes of a weight. compute: bytes of what linears work in. They differ under
    autocast."""

    weights: int
    compute: int

    @classmethod
    def of(cls, dtype: torch.dtype, *, autocast: bool = False) -> Precision:
        """Autocast is to bfloat16."""
        return cls(dtype.itemsize, 2 if autocast else dtype.itemsize)

    @property
    def autocast(self) -> bool:
        return self.weights != self.compute

    @property
    def logits(self) -> int:
        """Bytes of a logit."""
        return max(4, self.weights)


@dataclass(frozen=True)
class Training:
    """What trains. lora_rank: 0 for the weights themselves. adapters: linears of a layer that have
    one. parameters: all of the model's. trained: those with a gradient. head: whether the output
    embedding trains. reference: whether a frozen copy of the model is kept. shards: processes that
    hold a part of each matrix (fsdp)."""

    parameters: int
    trained: int
    head: bool
    lora_rank: int = 0
    adapters: int = 7
    reference: bool = False
    shards: int = 1


@dataclass(frozen=True)
class BatchShape:
    """rows: T. scored: U. tile_keys, tile_pairs: keys, and pairs of query and key, that the tiles
    of "sdpa" read in one layer; 0 for other backends."""

    rows: int
    scored: int
    tile_keys: int = 0
    tile_pairs: int = 0

    @classmethod
    def of(cls, batch: ForestBatch, *, tiled: bool) -> BatchShape:
        """tiled: whether attention runs by "sdpa"."""
        scored = len(batch.sample_scores().rows.unique())
        return cls(batch.num_tokens, scored, *(_tiles(batch.subtree_end) if tiled else ()))

    @classmethod
    def of_chain(cls, rows: int) -> BatchShape:
        """One sequence of `rows` rows, all scored, in the tiles of "sdpa": no forest of as many
        rows has more pairs."""
        bounds = attention_sdpa.tile_bounds(np.full(rows, rows, np.int32))
        pairs = sum((end - start) * end for start, end in pairwise(bounds))
        return cls(rows, rows, sum(bounds[1:]), pairs)


def _tiles(subtree_end: Tensor) -> tuple[int, int]:
    tiles = attention_sdpa.prepare(subtree_end)
    sizes = zip(tiles.heights, tiles.num_keys, strict=True)
    return sum(tiles.num_keys), sum(height * keys for height, keys in sizes)
