"""The attention hook: only the text tower, only through patterns, and back again."""

from __future__ import annotations

import pytest
import torch

from fastmpi.models.attention import ATTENTION, ForestPattern, stock_attention
from fastmpi.models.tiny import tiny_model
from fastmpi.ops.forest_attention import forest_attention


def test_only_the_text_tower_is_hooked(family, load):
    config = load(family).base.config
    assert config.get_text_config()._attn_implementation == ATTENTION
    assert config.vision_config._attn_implementation == "sdpa"
    assert "flash" not in ATTENTION


def test_a_call_without_a_pattern_says_what_to_do(family, load):
    model = load(family).base
    with pytest.raises(ValueError, match="call it through ForestModel, or inside"):
        model(input_ids=torch.tensor([[1, 2, 3]]))


def test_stock_attention_gives_the_model_back(family, load):
    forest = load(family)
    stock = tiny_model(family, seed=7)
    ids = torch.tensor([[70, 71, 72]])
    with torch.no_grad(), stock_attention(forest.base):
        assert torch.equal(forest.base(input_ids=ids).logits, stock(input_ids=ids).logits)
        found = forest.base.generate(ids, max_new_tokens=3, do_sample=False)
    assert torch.equal(found, stock.generate(ids, max_new_tokens=3, do_sample=False))
    with pytest.raises(RuntimeError), stock_attention(forest.base):
        raise RuntimeError
    assert forest.base.config.get_text_config()._attn_implementation == ATTENTION


@pytest.mark.parametrize("backend", [None, "sdpa", "reference"])
def test_forest_pattern_is_the_op(backend):
    end = torch.tensor([5, 5, 3, 5, 5, 6], dtype=torch.int32)
    q, k, v = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    pattern = ForestPattern(end, backend)
    rows = [x[0].transpose(0, 1) for x in (q, k, v)]
    expected = forest_attention(*rows, end, scale=0.1, backend=backend)[None]
    assert torch.equal(pattern.attend(0, q, k, v, 0.1), expected)
    assert torch.equal(pattern.attend(1, q, k, v, 0.1), expected)
