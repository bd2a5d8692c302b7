"""Models that cannot run as a forest, refused by name and with the reason, before any weight.

The forest shares hidden states and knows one attention rule. Whatever makes a token depend on
anything but its own path (recurrent state, windows by index, dropout, routing losses over the
packed tokens) would be silently wrong, so the check is a list of what is known to be right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmpi.models.family import FAMILIES

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TEXT_TOWERS = (
    "qwen2_vl_text",
    "qwen2_5_vl_text",
    "qwen3_vl_text",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
)
VISION_TOWERS = (
    "qwen2_vl_vision",
    "qwen2_vl",  # the name that older checkpoints give the vision config
    "qwen2_5_vl_vision",
    "qwen2_5_vl",
    "qwen3_vl_vision",
    "qwen3_vl",
    "clip_vision_model",
    "siglip_vision_model",
)
_RECURRENT = ("linear_attention", "mamba", "mamba2", "recurrent", "conv", "hybrid", "rwkv")
_WINDOWED = ("sliding_attention", "chunked_attention")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "router_aux_loss_coef")
_BIDIRECTIONAL = ("gemma3", "gemma3n", "gemma4", "paligemma")
_SINKS = ("gpt_oss",)


def supported_config(path: str | Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a model folder or hub name; `ValueError` where there is none, or one of a model
    that cannot run as a forest."""
    from transformers import AutoConfig

    if not Path(path).exists() and str(path).count("/") != 1:
        # Asking the hub takes minutes where there is no network.
        raise ValueError(f"no model folder {str(path)!r}; a model on the hub is named owner/name")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except OSError as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"no model folder {str(path)!r}, nor on the hub: {why}") from error
    check_supported(config)
    return config


def check_supported(config: PretrainedConfig) -> None:
    """`ValueError` with every reason why a model of `config` cannot run as a forest."""
    text = config.get_text_config()
    reasons = [reason for check in _CHECKS for reason in check(config, text)]
    if reasons:
        raise ValueError(f"{config.model_type!r} cannot be trained here: {'; '.join(reasons)}")


def _recurrent(config: Any, text: Any) -> Iterator[str]:
    kinds = {kind for kind in getattr(text, "layer_types", None) or () if kind in _RECURRENT}
    if kinds or hasattr(text, "ssm_cfg") or hasattr(text, "mamba_d_state"):
        names = ", ".join(sorted(kinds)) or "state space"
        yield f"its {names} layers carry a state from token to token, which branches cannot share"


def _windowed(config: Any, text: Any) -> Iterator[str]:
    kinds = {kind for kind in getattr(text, "layer_types", None) or () if kind in _WINDOWED}
    window = getattr(text, "sliding_window", None)
    if kinds or getattr(text, "use_sliding_window", window is not None) and window:
        yield f"its sliding windows (of {window} tokens) are not part of the attention rule"


def _bidirectional(config: Any, text: Any) -> Iterator[str]:
    if config.model_type in _BIDIRECTIONAL or getattr(text, "use_bidirectional_attention", None):
        yield "its image tokens see later ones (bidirectional attention)"


def _sinks(config: Any, text: Any) -> Iterator[str]:
    if text.model_type in _SINKS:
        yield "its attention sinks are not part of the attention rule"


def _softcapped(config: Any, text: Any) -> Iterator[str]:
    if getattr(text, "attn_logit_softcapping", None):
        yield "its softcapped attention scores are not part of the attention rule"


def _experts(config: Any, text: Any) -> Iterator[str]:
    if any(getattr(text, name, None) for name in _EXPERTS):
        yield "the auxiliary loss of its experts' router counts shared tokens once"


def _dropout(config: Any, text: Any) -> Iterator[str]:
    for name, part in (("text", text), ("vision", getattr(config, "vision_config", None))):
        rates = {key: rate for key, rate in _rates(part) if rate}
        for key, rate in rates.items():
            yield f"{name} {key}={rate} would draw one mask for all branches: set it to 0"


def _rates(part: Any) -> Iterator[tuple[str, Any]]:
    names = ("drop", "pdrop")
    for key, value in (vars(part) if part is not None else {}).items():
        if any(name in key for name in names) and isinstance(value, (int, float)):
            yield key, value


def _unknown(config: Any, text: Any) -> Iterator[str]:
    if config.model_type not in FAMILIES:
        yield f"an unknown architecture; known are {', '.join(FAMILIES)}"
        return
    if text.model_type not in TEXT_TOWERS:
        yield f"an unknown text tower {text.model_type!r}; known are {', '.join(TEXT_TOWERS)}"
    vision = config.vision_config.model_type
    if vision not in VISION_TOWERS:
        yield f"an unknown vision tower {vision!r}; known are {', '.join(VISION_TOWERS)}"


_CHECKS: tuple[Callable[[Any, Any], Iterator[str]], ...] = (
    _recurrent,
    _windowed,
    _bidirectional,
    _sinks,
    _softcapped,
    _experts,
    _dropout,
    _unknown,
)
