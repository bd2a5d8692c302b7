"""The probe lets right models through and catches the ways to be wrong."""

from __future__ import annotations

import pytest
import torch

from fastmpi.models import forest_model, probe
from fastmpi.models.features import ImageFeatures


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_right_model_passes_far_below_the_tolerance(family, load, dtype):
    forest = load(family, dtype=dtype)
    limit = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    assert probe.probe(forest) <= limit
    assert not forest.training


def test_loading_probes(family, load, monkeypatch):
    monkeypatch.setitem(probe.TOLERANCE, torch.float32, -1.0)
    with pytest.raises(ValueError, match=f"'{family}' cannot be trained here: as a forest"):
        load(family, probe=True)


def test_products_are_whole_and_the_settings_come_back(load, monkeypatch):
    """cuDNN's default is TF32, and a program may have asked for it everywhere."""
    forest = load("qwen2_5_vl")
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    seen = []
    hidden = type(forest).hidden

    def watched(self, *args, **kwargs):
        seen.append([setting.fp32_precision for setting in settings])
        return hidden(self, *args, **kwargs)

    monkeypatch.setattr(type(forest), "hidden", watched)
    before = settings[0].fp32_precision
    settings[0].fp32_precision = "tf32"
    try:
        probe.probe(forest)
        assert seen == [["ieee", "ieee"]]
        assert [setting.fp32_precision for setting in settings] == ["tf32", "tf32"]
    finally:
        settings[0].fp32_precision = before


def leaky(self, layer_idx, q, k, v, scale):
    """Plain causal attention: a branch sees the one before it."""
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2)


def severed(self, layer_idx, q, k, v, scale):
    """Each branch without its prefix."""
    own = torch.eye(q.shape[2], dtype=torch.bool)
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=own, scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2)


@pytest.mark.parametrize("attend", [leaky, severed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_mask_is_caught(family, load, attend, dtype, monkeypatch):
    monkeypatch.setattr(forest_model.ForestPattern, "attend", attend)
    with pytest.raises(ValueError, match="logits differ from its own forward by"):
        load(family, dtype=dtype, probe=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_positions_are_caught(family, load, dtype, monkeypatch):
    forest = load(family, dtype=dtype)
    own = forest.family.position_ids
    monkeypatch.setattr(
        type(forest.family),
        "position_ids",
        lambda self, positions: own(torch.arange(positions.shape[2]).expand_as(positions)),
    )
    with pytest.raises(ValueError, match="logits differ from its own forward by"):
        probe.probe(forest)


def test_wrong_features_are_caught(family, load, monkeypatch):
    forest = load(family)
    encode = forest.family.encode

    def reversed_rows(self, model, images) -> ImageFeatures:
        right = encode(model, images)
        return ImageFeatures(right.keys, right.counts, right.rows.flip(0), right.deepstack)

    monkeypatch.setattr(type(forest.family), "encode", reversed_rows)
    with pytest.raises(ValueError, match="logits differ from its own forward by"):
        probe.probe(forest)


def test_lost_deepstack_is_caught(load, monkeypatch):
    forest = load("qwen3_vl")
    monkeypatch.setattr(type(forest.family), "text_inputs", lambda *_: {})
    with pytest.raises(ValueError, match="logits differ from its own forward by"):
        probe.probe(forest)
