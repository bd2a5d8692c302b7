"""The weight of one token in the loss of a whole optimiser step.

Unusual: the normaliser is that of the step (all micro-batches, all processes), computed once by the
caller, so a sum of per-token losses under these weights does not depend on how the step was cut.
"""

from __future__ import annotations

from torch import Tensor

from fastmpi.ops.tensor_checks import check_shape

LOSS_TYPES = ("grpo", "bnpo", "dapo", "dr_grpo")


def loss_weights(
    lengths: Tensor,  # (S,) scored tokens of each sequence; 0 for a masked one
    loss_type: str,
    *,
    max_completion_length: int,
    num_sequences: int,
    total_tokens: int,
) -> Tensor:
    """(S,) the weight of every token of each sequence, float64.

    grpo: ``1 / (num_sequences * length)``, the mean over sequences of their token means; dapo:
    ``1 / total_tokens``; dr_grpo: ``1 / (num_sequences * max_completion_length)``, free of length
    bias. bnpo equals dapo: TRL's normalises by the tokens of a micro-batch, which here would make
    the step depend on its cut. ``num_sequences`` and ``total_tokens`` count the whole step; masked
    sequences count in the first only, as in TRL. Sequences without tokens get 0.
    """
    check_shape("lengths", lengths, (None,))
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type must be one of {LOSS_TYPES}, got {loss_type!r}")
    if num_sequences < len(lengths):
        raise ValueError(
            f"num_sequences = {num_sequences} is less than the {len(lengths)} lengths given"
        )
    if total_tokens < int(lengths.sum()):
        raise ValueError(
            f"total_tokens = {total_tokens} is less than the {int(lengths.sum())} tokens given"
        )
    lengths = lengths.double()
    if loss_type == "grpo":
        weights = 1 / (num_sequences * lengths.clamp(min=1))
    elif loss_type == "dr_grpo":
        weights = lengths.new_full(lengths.shape, 1 / (num_sequences * max_completion_length))
    else:
        weights = lengths.new_full(lengths.shape, 1 / max(total_tokens, 1))
    return weights.masked_fill(lengths == 0, 0.0)
