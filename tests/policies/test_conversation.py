"""Policies and pictures as an endpoint takes them."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from fastmpi.policies.conversation import MAX_SIDE, picture_part, policy_parts
from fastmpi.policies.policy import Policy


def shown(part: dict) -> Image.Image:
    head, data = part["image_url"]["url"].split(",")
    assert (part["type"], head) == ("image_url", "data:image/png;base64")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_words_and_pictures_keep_their_order(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), "blue").save(tmp_path / "blue.png")
    content = [{"type": "text", "text": "Like "}, {"type": "image"}, {"type": "image"}]
    messages = [{"role": "system", "content": content}, {"role": "user", "content": "end"}]
    images = [Image.new("RGB", (5, 5), "red"), tmp_path / "blue.png"]
    parts = policy_parts(Policy("kavo", messages, images))
    assert [part["type"] for part in parts] == ["text", "image_url", "image_url", "text"]
    assert [shown(part).getpixel((0, 0)) for part in parts[1:3]] == [(255, 0, 0), (0, 0, 255)]
    assert parts[3] == {"type": "text", "text": "end"}


@pytest.mark.parametrize(("size", "sent"), [((3000, 1500), (MAX_SIDE, 512)), ((7, 3), (7, 3))])
def test_large_pictures_are_shrunk(size: tuple[int, int], sent: tuple[int, int]) -> None:
    picture = Image.new("RGB", size)
    assert shown(picture_part(picture)).size == sent
    assert picture.size == size
