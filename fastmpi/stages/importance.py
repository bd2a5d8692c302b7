"""Importance weights of what another engine sampled: training's probability over the engine's.

Unusual: policy-free responses alone are corrected. A policy-aware response was sampled under
another prompt, whose probability is no approximation of the policy-free one; its weight is 1, and
its gap the metric `mpi/policy_gap_logp`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def importance_weights(
    old_logprob: Tensor,
    sampled_logprob: Tensor,
    lengths: Tensor,
    policy_aware: Tensor,
    *,
    mode: str,
    clip_min: float | None = None,
    clip_max: float | None = None,
) -> Tensor:
    """(M,) float64, one for each token, by which its share of the loss is multiplied.

    old_logprob, sampled_logprob: (M,) of training and of the engine. lengths: (S,) tokens of each
    response, in order. policy_aware: (S,) bool. mode: TRL's names; "token_*" takes each token's
    ratio, "sequence_*" the product over the response; "*_truncate" clips it to [clip_min,
    clip_max], "*_mask" sets what lies outside to 0.
    """
    level, bound = mode.split("_")
    response = torch.repeat_interleave(lengths)
    gap = old_logprob.double() - sampled_logprob.double()
    if level == "sequence":
        gap = torch.zeros(len(lengths), dtype=gap.dtype).index_add(0, response, gap)[response]
    ratio = gap.exp()
    low = 0.0 if clip_min is None else clip_min
    high = torch.inf if clip_max is None else clip_max
    if bound == "truncate":
        ratio = ratio.clamp(low, high)
    else:
        ratio = ratio.masked_fill((ratio < low) | (ratio > high), 0.0)
    return torch.where(policy_aware[response], 1.0, ratio)
