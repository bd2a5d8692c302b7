"""Pictures rebuilt from what is stored: processing them again must give the same."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from fastmpi.data.images import Image
from fastmpi.data.pictures import picture
from fastmpi.data.processor import Processor
from fastmpi.models.tiny import FAMILIES


def noise(height: int, width: int) -> PIL.Image.Image:
    rng = np.random.default_rng(height + width)
    return PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(60, 90), (33, 200), (120, 56)])
def test_processing_a_rebuilt_picture_gives_the_same_image(family, size, tiny_folder):
    processor = Processor.from_pretrained(tiny_folder(family))
    image = processor.image(noise(*size))
    again = processor.image(picture(image, processor.merge_size))
    assert again.key == image.key
    assert again.grid == image.grid and again.num_tokens == image.num_tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_of_the_right_size_comes_back_byte_for_byte(family, tiny_folder):
    processor = Processor.from_pretrained(tiny_folder(family))
    first = picture(processor.image(noise(70, 100)), processor.merge_size)
    assert first.mode == "RGB"
    second = picture(processor.image(first), processor.merge_size)
    assert np.array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_own_processor_keeps_a_rebuilt_picture(family, tiny_folder):
    """What an engine does with it: transformers' processor, and no code of fastmpi."""
    processor = Processor.from_pretrained(tiny_folder(family))
    image = processor.image(noise(45, 130))
    out = processor.image_processor(
        images=picture(image, processor.merge_size), return_tensors="pt"
    )
    assert np.array_equal(out["pixel_values"].numpy().reshape(image.pixels.shape), image.pixels)


def test_pixels_of_transformers_are_no_picture(tiny_folder):
    processor = Processor.from_pretrained(tiny_folder("qwen2_5_vl"))
    image = processor.image(noise(60, 60))
    floats = Image(image.key, image.pixels, image.grid, image.num_tokens)
    with pytest.raises(ValueError, match="floats, not as bytes"):
        picture(floats, processor.merge_size)
