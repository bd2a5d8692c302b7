"""Pictures through `Processor`: equal to transformers' own processors, whatever the file holds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from fastmpi.data.images import load_image
from fastmpi.data.pixels import rule_of
from fastmpi.data.processor import Processor
from fastmpi.ops.images import CropRule, PatchRule

SIZES = [(64, 48), (1, 1), (5, 900), (301, 77)]  # width, height


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl", "llava"])
def processor(request, tiny_folder) -> Processor:
    return Processor.from_pretrained(tiny_folder(request.param))


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng((width, height))
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(picture: PIL.Image.Image, kind: str = "PNG", **options) -> dict:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue()}


def every_kind() -> dict[str, dict]:
    """Files of every kind of pixels."""
    rgb = PIL.Image.fromarray(noise(61, 43))
    deep = PIL.Image.fromarray(noise(61, 43, 2).view("<u2").reshape(43, 61))
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    return {
        "rgb": encoded(rgb),
        "jpeg": encoded(rgb, "JPEG"),
        "grey": encoded(rgb.convert("L")),
        "grey and alpha": encoded(rgb.convert("LA")),
        "black and white": encoded(rgb.convert("1")),
        "palette": encoded(rgb.quantize(17)),
        "palette with a transparent colour": encoded(rgb.quantize(17), transparency=3),
        "alpha": encoded(PIL.Image.fromarray(noise(61, 43, 4))),
        "16 bit": encoded(deep),
        "cmyk": encoded(rgb.convert("CMYK"), "TIFF"),
        "turned": encoded(rgb, "JPEG", exif=turned),
    }


def check(processor: Processor, picture: PIL.Image.Image, image) -> None:
    """`image` against what transformers makes of the decoded picture."""
    expected = processor.image_processor(images=picture, return_tensors="pt")
    pixels = expected["pixel_values"]
    if processor.rope == "linear":
        pixels = pixels[0]
    else:
        assert image.grid == tuple(expected["image_grid_thw"][0].tolist())
    assert image.pixels.dtype == torch.float32
    assert torch.equal(image.pixels, pixels)


@pytest.mark.parametrize("kind", list(every_kind()))
def test_every_kind_of_picture(processor: Processor, kind: str) -> None:
    source = every_kind()[kind]
    assert not isinstance(processor.pixel_rule, str)
    check(processor, load_image(source), processor.image(source))


def test_a_batch_of_sizes(processor: Processor) -> None:
    pictures = [PIL.Image.fromarray(noise(*size)) for size in SIZES]
    if processor.rope == "linear":
        pictures.pop(2)  # the others refuse more than 200 : 1; transformers takes any here
    images = processor.images(pictures)
    for picture, image in zip(pictures, images, strict=True):
        check(processor, picture, image)
        assert image.key == processor.image(picture).key
    assert len({image.key for image in images}) == len(images)


def test_bytes_are_kept_and_offered_as_patches(processor: Processor) -> None:
    image = processor.image(PIL.Image.fromarray(noise(64, 48)))
    assert image.stored.dtype == torch.uint8
    if processor.rope == "linear":
        assert image.patches is None and image.num_bytes == image.pixels.numel()
        return
    patches = image.patches
    assert len(patches) == np.prod(image.grid) and image.num_bytes == patches.numel()
    assert image.pixels.shape == (len(patches), 2 * patches.shape[1])


def test_pictures_of_a_call_are_read_and_made_once(processor, tmp_path, monkeypatch) -> None:
    picture = PIL.Image.fromarray(noise(64, 48))
    picture.save(tmp_path / "a.png")
    made = []
    process = processor._process
    monkeypatch.setattr(processor, "_process", lambda p: made.append(len(p)) or process(p))
    first = processor.images(["a.png", picture, "a.png", picture], tmp_path)
    assert made == [2] and len({image.key for image in first}) == 1
    again = processor.images([picture, "a.png"], tmp_path)
    assert made == [2, 0] and again[0] is first[1] and again[1] is first[0]
    assert processor.images([]) == []


def test_a_bad_picture_names_itself(processor: Processor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'gone\.png' does not exist"):
        processor.images([PIL.Image.fromarray(noise(64, 48)), "gone.png"], tmp_path)
    if processor.rope == "mrope":
        with pytest.raises(ValueError, match="picture 1: .* 200 times"):
            processor.images([PIL.Image.new("RGB", (9, 9)), PIL.Image.new("RGB", (900, 4))])


def pil_processors():
    from transformers import CLIPImageProcessorPil, Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil, CLIPImageProcessorPil


def test_the_stock_settings_are_known() -> None:
    qwen, clip = pil_processors()
    assert rule_of(qwen()) == PatchRule(14, 2, 56 * 56, 28 * 28 * 1280)
    assert rule_of(qwen(patch_size=16, min_pixels=65536)).patch_size == 16
    assert rule_of(clip()) == CropRule(224, 224, 224)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        (0, {"do_resize": False}, "do_resize is off"),
        (0, {"do_normalize": False}, "do_normalize is off"),
        (0, {"resample": 2}, "not bicubic"),
        (0, {"do_pad": True}, "do_pad is on"),
        (0, {"do_center_crop": True}, "do_center_crop is on"),
        (0, {"image_mean": [0.5]}, "image_mean"),
        (1, {"size": {"height": 30, "width": 30}}, "size has the keys"),
        (1, {"do_center_crop": False}, "do_center_crop is off"),
        (1, {"crop_size": {"height": 230, "width": 30}}, "not inside"),
        (1, {"resample": 0}, "not bicubic"),
    ],
)
def test_other_settings_are_left_to_transformers(kind: int, settings: dict, reason: str) -> None:
    refusal = rule_of(pil_processors()[kind](**settings))
    assert isinstance(refusal, str) and reason in refusal


def test_subclasses_and_other_processors_are_left_to_transformers() -> None:
    from transformers import SiglipImageProcessorPil

    class Mine(pil_processors()[0]):
        pass

    assert "Mine is not" in rule_of(Mine())
    assert "SiglipImageProcessorPil is not" in rule_of(SiglipImageProcessorPil())


def test_what_transformers_must_make_is_made_by_it(tiny_folder) -> None:
    """With another filter: equal to transformers, and unequal to bicubic."""
    own = Processor.from_pretrained(tiny_folder("qwen3_vl"))
    stock = Processor.from_pretrained(tiny_folder("qwen3_vl"))
    other = Processor(
        stock.config,
        stock.tokenizer,
        pil_processors()[0](**{**stock.image_processor.to_dict(), "resample": 2}),
    )
    assert isinstance(other.pixel_rule, str)
    picture = PIL.Image.fromarray(noise(64, 48))
    image = other.image(picture)
    check(other, picture, image)
    assert image.patches is None and image.num_bytes == 4 * image.pixels.numel()
    assert not torch.equal(image.pixels, own.image(picture).pixels)
