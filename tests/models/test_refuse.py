"""Each kind of model that would be silently wrong is refused by name, with the reason."""

from __future__ import annotations

import pytest
from transformers import (
    Gemma2Config,
    Gemma3Config,
    GptOssConfig,
    LlavaConfig,
    MistralConfig,
    MixtralConfig,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen3_5Config,
    Qwen3VLMoeConfig,
    SiglipVisionConfig,
)

from fastmpi.models.forest_model import ForestModel
from fastmpi.models.refuse import check_supported
from fastmpi.models.tiny import tiny_config, tiny_tokenizer


def test_the_families_pass(family):
    check_supported(tiny_config(family, tiny_tokenizer(family)))


def test_llava_relatives_pass():
    text = MistralConfig(sliding_window=None)
    check_supported(LlavaConfig(text_config=text, vision_config=SiglipVisionConfig()))


REFUSED = [
    (Qwen3_5Config(), "'qwen3_5' cannot .* its linear_attention layers carry a state"),
    (Gemma3Config(), "'gemma3' .* sliding windows .of 4096 .* image tokens see later ones"),
    (GptOssConfig(), "'gpt_oss' .* attention sinks"),
    (Qwen3VLMoeConfig(), "'qwen3_vl_moe' .* auxiliary loss of its experts"),
    (LlavaConfig(text_config=MixtralConfig()), "'llava' .* auxiliary loss of its experts"),
    (LlavaConfig(text_config=MistralConfig(sliding_window=32)), "sliding windows .of 32 tokens"),
    (LlavaConfig(text_config=Gemma2Config()), "softcapped attention scores"),
    (LlavaConfig(text_config=Gemma2Config()), "unknown text tower 'gemma2'; known are qwen2_vl"),
    (LlavaConfig(vision_config=PixtralVisionConfig()), "unknown vision tower 'pixtral'"),
    (MistralConfig(sliding_window=None), "'mistral' .* unknown architecture; known are qwen2_vl"),
    (
        Qwen2_5_VLConfig(text_config={"use_sliding_window": True, "sliding_window": 16}),
        "sliding windows .of 16 tokens",
    ),
    (
        Qwen2_5_VLConfig(text_config={"attention_dropout": 0.1}),
        "text attention_dropout=0.1 would draw one mask for all branches",
    ),
    (
        LlavaConfig(vision_config=SiglipVisionConfig(attention_dropout=0.2)),
        "vision attention_dropout=0.2",
    ),
]


@pytest.mark.parametrize(("config", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused_with_the_reason(config, message):
    with pytest.raises(ValueError, match=message):
        check_supported(config)


def test_a_folder_is_refused_before_its_weights_are_read(tmp_path):
    config = tiny_config("qwen2_5_vl", tiny_tokenizer("qwen2_5_vl"))
    config.text_config.attention_dropout = 0.5
    config.save_pretrained(tmp_path)  # no weights, no tokenizer
    with pytest.raises(ValueError, match="attention_dropout=0.5"):
        ForestModel.from_pretrained(tmp_path)
