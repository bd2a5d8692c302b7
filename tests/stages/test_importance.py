"""Importance weights, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fastmpi.stages.importance import importance_weights

# two policy-free responses around a policy-aware one; ratios 2, 1/2 | 8 | 4, 1/8, 1
SAMPLED = torch.tensor([-1.0, -2.0, -3.0, -1.5, -0.5, -1.0])
RATIOS = [2.0, 0.5, 8.0, 4.0, 0.125, 1.0]
OLD = SAMPLED + torch.tensor([math.log(ratio) for ratio in RATIOS])
LENGTHS = torch.tensor([2, 1, 3])
AWARE = torch.tensor([False, True, False])


@pytest.mark.parametrize(
    ("mode", "low", "high", "expected"),
    [
        ("token_truncate", None, 3.0, [2, 0.5, 1, 3, 0.125, 1]),
        ("token_truncate", 0.25, None, [2, 0.5, 1, 4, 0.25, 1]),
        ("token_mask", None, 3.0, [2, 0.5, 1, 0, 0.125, 1]),
        ("token_mask", 0.25, 3.0, [2, 0.5, 1, 0, 0, 1]),
        ("sequence_truncate", 0.75, 3.0, [1, 1, 1, 0.75, 0.75, 0.75]),
        ("sequence_mask", 0.75, 3.0, [1, 1, 1, 0, 0, 0]),
        ("sequence_mask", None, 0.75, [0, 0, 1, 0.5, 0.5, 0.5]),
    ],
)
def test_weights_by_hand(mode, low, high, expected):
    weights = importance_weights(
        OLD, SAMPLED, LENGTHS, AWARE, mode=mode, clip_min=low, clip_max=high
    )
    assert weights.dtype == torch.float64
    assert weights.tolist() == pytest.approx(expected, rel=1e-6)


def test_an_exploding_ratio_is_bounded():
    far = SAMPLED - 5000.0
    for mode, expected in [("token_truncate", 3.0), ("sequence_mask", 0.0)]:
        weights = importance_weights(SAMPLED, far, LENGTHS, AWARE, mode=mode, clip_max=3.0)
        assert weights.tolist() == [expected, expected, 1, expected, expected, expected]
