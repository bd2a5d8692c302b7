"""Sample scenes: the picture, the question, and every method's response marked right or wrong."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from fastmpi.report.content import ResponseMark, SceneSample
from fastmpi.report.markup import element, escape

_SIGNATURES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))


def scene_cards(samples: Sequence[SceneSample]) -> str:
    return element("div", *(_card(sample) for sample in samples), class_="cards")


def data_uri(image: bytes) -> str:
    """The picture as a ``data:`` URI; only PNG and JPEG are taken."""
    for signature, media_type in _SIGNATURES:
        if image.startswith(signature):
            return f"data:{media_type};base64,{base64.b64encode(image).decode()}"
    raise ValueError("a scene of the report is neither a PNG nor a JPEG image")


def _card(sample: SceneSample) -> str:
    picture = ""
    if sample.image is not None:
        picture = element("img", src=data_uri(sample.image), alt=f"Scene of: {sample.prompt}")
        picture = picture.removesuffix("</img>")
    question = element("p", element("code", escape(sample.prompt)))
    answer = element("p", "Policy says: ", element("strong", escape(sample.answer)))
    header = element("header", picture, element("div", question, answer))
    marks = element("ul", *(_response(mark) for mark in sample.responses), class_="marks")
    return element("article", header, marks)


def _response(mark: ResponseMark) -> str:
    sign, word = ("\u2713", "right") if mark.correct else ("\u2717", "wrong")
    badge = element("span", sign, class_=f"mark {word}", role="img", aria_label=word)
    method = element("span", escape(mark.method), class_="method")
    response = element("code", element("bdi", escape(mark.response.strip() or "(empty)")))
    return element("li", badge, element("div", method, response))
