import numpy as np
import PIL.Image
import pytest

from fastmpi.data.processor import Processor
from fastmpi.data.prompts import render, response_text
from fastmpi.data.samples import Sample
from fastmpi.policies.policy import Policy


def picture(color: str, size: tuple[int, int] = (64, 64)) -> PIL.Image.Image:
    return PIL.Image.new("RGB", size, color)


def row(**changes) -> dict:
    base = {"id": "r1", "policy_id": "kavo", "images": [picture("red")], "prompt": "question kavo"}
    return {**base, "reasoning": "C1 red yes", "answer": "Case 5", **changes}


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl", "llava"])
def processor(request, tiny_folder) -> Processor:
    return Processor.from_pretrained(tiny_folder(request.param))


def policy() -> Policy:
    parts = [{"type": "text", "text": "policy kavo : shows "}, {"type": "image"}]
    return Policy("kavo", [{"role": "system", "content": parts}], [picture("blue", (32, 96))])


def test_placeholders_expand_to_the_picture(processor):
    prompt = render(row(), processor)
    image = processor.image(picture("red"))
    assert (prompt.ids == processor.image_token_id).sum() == image.num_tokens
    assert [i.key for i in prompt.images] == [image.key]
    if processor.rope == "mrope":
        assert image.num_tokens == np.prod(image.grid) // processor.merge_size**2


def test_policy_comes_first_with_its_pictures(processor):
    free, aware = render(row(), processor), render(row(), processor, policy())
    assert [i.key for i in aware.images][1:] == [i.key for i in free.images]
    assert aware.images[0].key == processor.image(policy().images[0]).key
    text = processor.decode(aware.ids)
    assert text.index("policy kavo") < text.index("question kavo")
    assert "policy" not in processor.decode(free.ids)


def test_prompts_of_one_policy_begin_alike(processor):
    one = render(row(), processor, policy()).ids
    two = render(row(prompt="question again", images=[picture("green")]), processor, policy()).ids
    differ = np.flatnonzero(one[: min(len(one), len(two))] != two[: min(len(one), len(two))])
    assert "policy kavo" in processor.decode(one[: differ[0]])


def test_image_count_must_agree(processor):
    placeholder = processor.tokenizer.convert_ids_to_tokens(processor.image_token_id)
    with pytest.raises(ValueError, match=r"row 'r1': the prompt has 2 image placeholders"):
        render(row(prompt=f"what is {placeholder}?"), processor)


def test_responses_end_the_turn(processor):
    text = response_text(row())
    assert text == "<think>C1 red yes</think>\\boxed{Case 5}"
    assert response_text(row(), reasoning=False) == "\\boxed{Case 5}"
    ids = processor.encode_response(text)
    assert ids[-1] == processor.eos_token_ids[0]
    assert processor.decode(ids) == text


def test_sample_weights(processor):
    prompt, response = render(row(), processor), processor.encode_response("hi")
    sample = Sample.from_prompt(prompt, response)
    assert sample.weights.sum() == len(response)
    assert not sample.weights[: len(prompt.ids)].any()
    everything = Sample.all_text(prompt, response, processor.image_token_id)
    is_image = everything.ids == processor.image_token_id
    assert not everything.weights[is_image].any() and everything.weights[0] == 0
    assert everything.weights[~is_image][1:].all()


def test_placeholders_are_forbidden(processor):
    assert processor.image_token_id in processor.forbidden_token_ids
    assert not set(processor.eos_token_ids) & set(processor.forbidden_token_ids)


def test_pictures_are_processed_once(processor, tmp_path, monkeypatch):
    picture("red").save(tmp_path / "a.png")
    as_bytes = {"bytes": (tmp_path / "a.png").read_bytes()}
    made = []
    process = processor._process
    monkeypatch.setattr(processor, "_process", lambda p: made.extend(p) or process(p))
    for source in ("a.png", "a.png", picture("red"), picture("red"), as_bytes):
        image = processor.image(source, tmp_path)
        assert image.key == process([picture("red")])[0].key
    assert len(made) == 2, "once for the path, once for the pixels"
    processor.image(picture("red", (64, 32)))
    assert len(made) == 3


def test_policy_of_plain_text_is_never_dropped(processor):
    template = "{% for m in messages %}{% for p in m['content'] | selectattr('type', 'equalto', "
    processor.tokenizer.chat_template = (
        template + "'text') %}{{ p['text'] }}{% endfor %}{% endfor %}"
    )
    plain = Policy("kavo", [{"role": "system", "content": "policy kavo"}], [])
    prompt = render(row(images=[]), processor, plain)
    assert processor.decode(prompt.ids).startswith("policy kavo")


def test_pictures_that_a_template_leaves_out_of_system_turns(processor):
    """As Qwen3-VL's own template does."""
    token = processor.tokenizer.convert_ids_to_tokens(processor.image_token_id)
    processor.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{% for p in m['content'] %}"
        "{% if 'text' in p %}{{ p['text'] }}{% elif m['role'] == 'user' %}"
        f"{token}{{% endif %}}{{% endfor %}}{{% endfor %}}"
    )
    assert not processor.shows_system_pictures
    prompt = render(row(), processor, policy())
    assert len(prompt.images) == 2
    text = processor.decode(prompt.ids)
    assert text.index("policy kavo") < text.index("question kavo") and text.count("<user>") == 1


def test_begin_of_text_that_the_template_does_not_write(processor, monkeypatch):
    first = int(processor.encode("kavo")[0])
    monkeypatch.setattr(type(processor), "_begins_with", first)
    ids = render(row(), processor).ids
    assert ids[0] == first and ids[1] != first
    monkeypatch.setattr(type(processor), "_begins_with", int(ids[1]))
    assert render(row(), processor).ids.tolist() == ids[1:].tolist()


def test_template_beside_the_processor(tiny_folder, tmp_path):
    import json
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llava"), folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        Processor.from_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert Processor.from_pretrained(folder).tokenizer.chat_template == template
