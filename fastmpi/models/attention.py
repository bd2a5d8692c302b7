"""How a text tower is made to attend by our rule: one registered function, one pattern object.

Unusual: the pattern travels as the keyword argument `fastmpi_pattern` through transformers' own
layers, so that no model file is copied or patched. Our name must not contain "flash", which
transformers takes for FlashAttention; our mask function returns None, so that nothing tries to
infer packing from positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fastmpi.ops.forest_attention import (
    ForestPlan,
    default_backend,
    forest_attention,
    plan_forest,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "fastmpi_forest"
STOCK_ATTENTION = "sdpa"


class AttentionPattern(Protocol):
    """What each query of one call of the text tower sees. Called by every layer in turn."""

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q (B, Hq, L, D), k and v (B, Hkv, L, D) of layer `layer_idx` -> (B, L, Hq, D)."""


class ForestPattern:
    """The forest rule over one flat sequence: row q sees row k iff `k <= q < subtree_end[k]`.

    subtree_end: (T,) int32. backend: of `ops.forest_attention`, None for its default. unread: (T,)
    bool, rows whose output nobody reads. The plan is made by the first layer and used by all, also
    when checkpointing runs them again.
    """

    def __init__(
        self, subtree_end: Tensor, backend: str | None = None, unread: np.ndarray | None = None
    ) -> None:
        self.subtree_end = subtree_end
        self.backend = backend
        self.unread = unread
        self._plan: ForestPlan | None = None

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """(1, H, T, D) -> (1, T, Hq, D); see `AttentionPattern`."""
        if self._plan is None:
            backend = self.backend or default_backend(q)
            self._plan = plan_forest(self.subtree_end, backend, unread=self.unread)
        q, k, v = (x.squeeze(0).transpose(0, 1) for x in (q, k, v))  # (T, H, D)
        return forest_attention(q, k, v, self.subtree_end, scale=scale, plan=self._plan)[None]


def use_forest_attention(model: PreTrainedModel) -> None:
    """Makes the text tower of `model` attend by patterns; the vision tower stays as it is."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, _no_mask)
    model.set_attn_implementation({"text_config": ATTENTION})


@contextmanager
def stock_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, `model` is an ordinary transformers model: `forward` and `generate` work."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = STOCK_ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: nn.Module,
    query: Tensor,  # (B, Hq, L, D), rotary positions applied
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    fastmpi_pattern: AttentionPattern | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; the weights, which it may return, are never built."""
    if fastmpi_pattern is None:
        raise ValueError(
            "this model attends by fastmpi's patterns: call it through ForestModel, or inside "
            "`fastmpi.models.attention.stock_attention(model)`"
        )
    assert dropout == 0.0, "models with attention dropout are refused at load"
    assert attention_mask is None, "the pattern is the mask"
    query, key, value = _autocast(query, key, value)
    return fastmpi_pattern.attend(module.layer_idx, query, key, value, scaling), None


def _autocast(*tensors: Tensor) -> Iterator[Tensor]:
    """Under autocast one dtype for all, as torch's own attention does: values come narrow from
    their projection, while rotary positions widen queries and keys."""
    device = tensors[0].device.type
    enabled = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if enabled else tensors[0].dtype
    return (tensor.to(dtype) for tensor in tensors)


def _no_mask(*_: Any, **__: Any) -> None:
    return None
