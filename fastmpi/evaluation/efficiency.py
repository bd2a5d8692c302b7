"""What a prompt costs with the policy in it and without: tokens, milliseconds, bytes of cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmpi.evaluation.folder import EvaluationFolder, SuiteSummary
from fastmpi.evaluation.metrics import Figure, mean, median, saved
from fastmpi.evaluation.prefill import PrefillTimes
from fastmpi.models.forest_model import ForestModel


def efficiency(
    with_policy: Sequence[int], without: Sequence[int], bytes_a_token: int
) -> dict[str, Figure]:
    """Means of tokens and of bytes of keys and values, from the prompts' lengths in tokens."""
    found: dict[str, Figure] = {}
    for name, scale in (("prompt_tokens", 1), ("kv_bytes", bytes_a_token)):
        more, less = ([scale * n for n in lengths] for lengths in (with_policy, without))
        found |= {f"{name}_with": mean(more), f"{name}_without": mean(less)}
        found[f"{name}_saved"] = saved(less, more)
    return found


def prefill_figures(times: PrefillTimes) -> dict[str, Figure]:
    """Medians of milliseconds, and the share that is saved of the median."""
    more, less = times.with_policy, times.without
    return {
        "prefill_ms_with": median(more),
        "prefill_ms_without": median(less),
        "prefill_ms_saved": saved(less, more, np.median),
    }


def add_prefill(folder: EvaluationFolder, times: PrefillTimes) -> None:
    """Puts times that were measured apart into the summary's efficiency."""
    suites = folder.summary()
    known = suites["efficiency"].figures
    suites["efficiency"] = SuiteSummary({**known, **prefill_figures(times)})
    folder.write_summary(suites)


def kv_bytes_a_token(model: ForestModel) -> int:
    """Bytes that a token's keys and values take, all layers together, in the model's precision."""
    text = model.base.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * size * model.head.element_size())
