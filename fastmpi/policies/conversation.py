"""Policies and pictures as an OpenAI-compatible endpoint takes them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from fastmpi.data.images import ImageSource, load_image
from fastmpi.policies.policy import Policy

Part = dict[str, Any]
MAX_SIDE = 1024  # pixels; a larger picture is shrunk, as endpoints do themselves


def text_part(text: str) -> Part:
    return {"type": "text", "text": text}


def picture_part(source: ImageSource) -> Part:
    """The picture as PNG in a data URL."""
    picture = load_image(source)  # a copy, in RGB
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    content = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{content}"}}


def policy_parts(policy: Policy) -> list[Part]:
    """The policy's words and pictures in their order."""
    pictures = iter(policy.images)
    parts: list[Part] = []
    for message in policy.messages:
        content = message["content"]
        shown: Sequence[Any] = [text_part(content)] if isinstance(content, str) else content
        for part in shown:
            is_text = part["type"] == "text"
            parts.append(text_part(part["text"]) if is_text else picture_part(next(pictures)))
    return parts
