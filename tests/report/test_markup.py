"""Text of a model can do nothing to a page."""

from __future__ import annotations

from fastmpi.report.markup import element, escape


def test_escape_keeps_readable_text():
    assert escape("a < b\n\tCase 3 \u05d0") == "a &lt; b\n\tCase 3 \u05d0"
    assert escape('"\u2066\ud800') == "&quot;[U+2066][U+D800]"


def test_attributes_are_escaped():
    made = element("img", alt='"><script>', class_="a", aria_label=None)
    assert made == '<img alt="&quot;&gt;&lt;script&gt;" class="a"></img>'
