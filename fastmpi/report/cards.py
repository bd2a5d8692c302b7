"""Galleries: the pictures of a question, and every run's response marked right or wrong."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from fastmpi.report.content import Gallery, Mark, QuestionCard
from fastmpi.report.markup import element, escape, folded

_SIGNATURES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))
_SIGNS = {"right": "\u2713", "partly": "\u25d0", "wrong": "\u2717"}
OPEN = 2  # marks of a card that are shown; the others open on a click
SHORT = 300  # characters of a question that is shown whole
BEGINNING = 120  # characters that are shown of a longer one


def gallery(content: Gallery) -> str:
    """The cards under their heading."""
    heading = element("h3", escape(content.title), " ", element("small", escape(content.note)))
    cards = element("div", *map(_card, content.cards), class_="cards")
    return element("div", heading, cards, class_="block")


def data_uri(image: bytes) -> str:
    """The picture as a ``data:`` URI; only PNG and JPEG are taken."""
    for signature, media_type in _SIGNATURES:
        if image.startswith(signature):
            return f"data:{media_type};base64,{base64.b64encode(image).decode()}"
    raise ValueError("a picture of the report is neither a PNG nor a JPEG image")


def image(source: bytes | None, alt: str) -> str:
    """One picture, or a box that says that it is missing."""
    if source is None:
        return element("span", "picture not found", class_="missing")
    return element("img", src=data_uri(source), alt=alt).removesuffix("</img>")


def _card(card: QuestionCard) -> str:
    pictures = [image(source, f"Picture of: {card.prompt[:BEGINNING]}") for source in card.images]
    shown = element("div", *pictures, class_="pictures") if pictures else ""
    head = element("header", shown, element("div", _question(card), _answer(card)))
    few = len(card.marks) <= OPEN + 1
    visible, hidden = (card.marks, ()) if few else (card.marks[:OPEN], card.marks[OPEN:])
    more = folded(_tally(hidden), _marks(hidden), class_="more") if hidden else ""
    return element("article", head, _marks(visible), more)


def _question(card: QuestionCard) -> str:
    prompt = card.prompt.strip()
    if len(prompt) <= SHORT:
        return element("p", escape(prompt), class_="question")
    beginning = " ".join(prompt[:BEGINNING].split())
    return folded(f"{escape(beginning)} \u2026", element("pre", escape(prompt)))


def _answer(card: QuestionCard) -> str:
    label = element("span", "Right answer", class_="method")
    return element("p", label, " ", element("code", escape(card.answer)), class_="gold")


def _marks(marks: Sequence[Mark]) -> str:
    return element("ul", *map(_mark, marks), class_="marks")


def _tally(marks: Sequence[Mark]) -> str:
    counts = ((sign, sum(m.verdict == word for m in marks)) for word, sign in _SIGNS.items())
    said = ", ".join(f"{sign} {count}" for sign, count in counts if count)
    return f"{len(marks)} other runs: {said}"


def _mark(mark: Mark) -> str:
    badge = element(
        "span", _SIGNS[mark.verdict], class_=f"mark {mark.verdict}", role="img",
        aria_label=mark.verdict,
    )  # fmt: skip
    detail = f" \u00b7 {mark.detail}" if mark.detail else ""
    run = element("span", escape(mark.run + detail), class_="method")
    response = element("code", element("bdi", escape(mark.response.strip() or "(empty)")))
    return element("li", badge, element("div", run, response))
