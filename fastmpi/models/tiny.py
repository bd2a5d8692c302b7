"""Tiny random vision-language models for tests and examples: ordinary `save_pretrained` folders.

Unusual: sizes are chosen where bugs hide, not for beauty. Grouped-query attention everywhere;
windowed vision attention in Qwen2.5-VL; a text head dimension that is not hidden / heads,
DeepStack and interleaved M-RoPE in Qwen3-VL; 1-D positions and a class token in LLaVA.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmpi.models.tokenizer import build_tokenizer, compact_words

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava")


def tiny_model(
    family: str,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    folder: str | Path | None = None,
    *,
    tie_word_embeddings: bool | None = None,
) -> PreTrainedModel:
    """A random model of `family` in `dtype` (fp32 by default), in evaluation mode.

    With `folder` it is saved there with tokenizer, chat template and image processor, so that
    `AutoModelForImageTextToText`, `AutoTokenizer` and the image processors load it. Embeddings
    are tied in qwen3_vl and untied in the others unless `tie_word_embeddings` says otherwise.
    The same seed gives the same weights; the global random state is left alone.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    tokenizer = tiny_tokenizer(family)
    config = tiny_config(family, tokenizer, tie_word_embeddings=tie_word_embeddings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        _randomise_vectors(model)
    model = model.to(dtype or torch.float32).eval()
    if folder is not None:
        save_model_folder(model, tokenizer, tiny_image_processor(family), folder)
    return model


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a tiny model: the compact policy language, byte-level underneath."""
    image_token = "<image>" if family == "llava" else "<|image_pad|>"
    return build_tokenizer(compact_words(), image_token=image_token)


def tiny_config(
    family: str, tokenizer: PreTrainedTokenizerFast, *, tie_word_embeddings: bool | None = None
) -> PretrainedConfig:
    """The transformers config of `family`. Raises ValueError for another family."""
    makers = {"qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl, "llava": _llava}
    if family not in makers:
        raise ValueError(f"family {family!r} is not one of {', '.join(FAMILIES)}")
    tied = family == "qwen3_vl" if tie_word_embeddings is None else tie_word_embeddings
    return makers[family](tokenizer, tied)


def tiny_image_processor(family: str) -> Any:
    """The family's stock image processor with small sizes (PIL when torchvision is missing)."""
    from transformers import CLIPImageProcessor, Qwen2VLImageProcessor

    if family == "llava":
        size = {"height": 42, "width": 42}
        return CLIPImageProcessor(size={"shortest_edge": 42}, crop_size=size)
    patch_size = 14 if family == "qwen2_5_vl" else 16
    edge = 2 * patch_size
    return Qwen2VLImageProcessor(
        patch_size=patch_size,
        merge_size=2,
        size={"shortest_edge": edge**2, "longest_edge": 64 * edge**2},
    )


def save_model_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    image_processor: Any,
    folder: str | Path,
) -> None:
    """Write model, tokenizer and image processor as one `save_pretrained` folder."""
    for part in (model, tokenizer, image_processor):
        part.save_pretrained(folder)


def text_settings(tokenizer: PreTrainedTokenizerFast, **sizes: Any) -> dict[str, Any]:
    """A text config's vocabulary and special ids beside its sizes."""
    return {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **sizes,
    }


def qwen_token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The placeholder ids that a Qwen config names."""
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def _randomise_vectors(model: PreTrainedModel) -> None:
    """Norm weights of 1 and biases of 0 would hide a forgotten or misplaced one."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


def _qwen2_5_vl(tokenizer: PreTrainedTokenizerFast, tied: bool) -> PretrainedConfig:
    from transformers import Qwen2_5_VLConfig

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = text_settings(
        tokenizer,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        rope_parameters=rope,
    )
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "initializer_range": 0.1,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=tied,
        **qwen_token_ids(tokenizer),
    )


def _qwen3_vl(tokenizer: PreTrainedTokenizerFast, tied: bool) -> PretrainedConfig:
    from transformers import Qwen3VLConfig

    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    }
    text = text_settings(
        tokenizer,
        hidden_size=64,
        head_dim=32,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        rope_parameters=rope,
    )
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 16,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
        "initializer_range": 0.1,
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=tied,
        **qwen_token_ids(tokenizer),
    )


def _llava(tokenizer: PreTrainedTokenizerFast, tied: bool) -> PretrainedConfig:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    text = LlamaConfig(
        **text_settings(
            tokenizer,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.1,
            tie_word_embeddings=tied,
        )
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=42,
        patch_size=14,
        projection_dim=32,
    )
    return LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=9,
        tie_word_embeddings=tied,
    )
