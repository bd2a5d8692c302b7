"""The tiny models are ordinary folders that transformers loads without torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer

from fastmpi.models.tiny import FAMILIES, tiny_config, tiny_model, tiny_tokenizer
from fastmpi.models.tokenizer import build_tokenizer, compact_words

TOKENIZER = tiny_tokenizer("qwen2_5_vl")


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, tiny_model(request.param, seed=3, folder=folder)


def test_folder_loads_bitwise(saved):
    _, folder, model = saved
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_saved_tokenizer_is_the_trained_one(saved):
    family, folder, _ = saved
    text = "policy kavo : C1 if red then C1.1 else Case 3 end \U0001f600 x\ty"
    assert AutoTokenizer.from_pretrained(folder)(text) == tiny_tokenizer(family)(text)


def test_forward_reads_the_image(saved):
    family, folder, model = saved
    processor = image_processor(family, folder)
    logits = [forward(family, model, processor, color) for color in ((255, 0, 0), (0, 0, 255))]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def image_processor(family, folder):
    from transformers import CLIPImageProcessor, Qwen2VLImageProcessor

    kind = CLIPImageProcessor if family == "llava" else Qwen2VLImageProcessor
    return kind.from_pretrained(folder)


def forward(family, model, processor, color):
    pixels = processor(images=[Image.new("RGB", (112, 84), color)], return_tensors="pt")
    count = 9 if family == "llava" else int(pixels["image_grid_thw"].prod()) // 4
    image_token = model.config.image_token_id
    ids = torch.tensor([[90, *[image_token] * count, 91, 92]])
    extra = {} if family == "llava" else {"mm_token_type_ids": (ids == image_token).int()}
    with torch.no_grad():
        return model(input_ids=ids, **pixels, **extra).logits[0, -1]


def test_seed_alone_decides_the_weights():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first, second, other = (tiny_model("qwen2_5_vl", seed=seed) for seed in (1, 1, 2))
    weights = [model.get_input_embeddings().weight for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_tying(family, tied):
    model = tiny_model(family, dtype=torch.float64, tie_word_embeddings=tied)
    same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert same == tied and model.dtype == torch.float64


def test_unknown_family_is_named():
    with pytest.raises(ValueError, match="'gemma3' is not one of qwen2_5_vl"):
        tiny_config("gemma3", TOKENIZER)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_round_trips(text):
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text


@pytest.mark.parametrize("word", compact_words())
def test_words_are_single_tokens(word):
    assert len(TOKENIZER(word)["input_ids"]) == 1


def test_compact_prompt_has_a_token_a_word():
    messages = [
        {"role": "system", "content": "policy : C1 if red then C1.1 else Case 3 end"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "question"}]},
        {"role": "assistant", "content": "<think>C1 red yes</think>\\boxed{Case 5}"},
    ]
    ids = TOKENIZER.apply_chat_template(messages)["input_ids"]
    pieces = [TOKENIZER.decode(token) for token in ids]
    expected = ["<|im_start|>", "system\n", "policy", " :", " C1", " if", " red", " then"]
    expected += [" C1.1", " else", " Case", " 3", " end", "<|im_end|>", "\n"]
    expected += ["<|im_start|>", "user\n", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]
    expected += ["question", "<|im_end|>", "\n", "<|im_start|>", "assistant\n", "<think>", "C1"]
    expected += [" red", " yes", "</think>", "\\boxed{", "Case", " 5", "}", "<|im_end|>", "\n"]
    assert pieces == expected


def test_template_without_policy_has_no_system_turn():
    user = [{"role": "user", "content": "question"}]
    text = TOKENIZER.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nquestion<|im_end|>\n<|im_start|>assistant\n"


def test_template_refuses_other_parts():
    video = [{"role": "user", "content": [{"type": "video"}]}]
    with pytest.raises(Exception, match="of type text or image, not video"):
        TOKENIZER.apply_chat_template(video, tokenize=False)


def test_vocabulary_too_small_is_named():
    with pytest.raises(ValueError, match="max_vocab_size=300 leaves"):
        build_tokenizer(compact_words(), max_vocab_size=300)


def test_vocabulary_fits():
    assert np.all(np.array([len(tiny_tokenizer(family)) for family in FAMILIES]) <= 600)
