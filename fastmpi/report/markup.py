"""HTML escaping for text that a model wrote.

Besides ``<>&"'``, characters that move or hide text without being seen (bidirectional controls,
zero-width marks, C0 controls) are spelled out, so that a response cannot rearrange the page.
"""

from __future__ import annotations

import html
import unicodedata

_KEPT_CONTROLS = "\n\t"


def escape(text: object) -> str:
    """`html.escape(str(text))`, with invisible characters written as ``[U+202E]``."""
    return html.escape("".join(_visible(character) for character in str(text)), quote=True)


def _visible(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    if hidden and character not in _KEPT_CONTROLS:
        return f"[U+{ord(character):04X}]"
    return character


def element(tag: str, *children: str, **attributes: object) -> str:
    """One HTML or SVG element; children are markup, attribute values are escaped.

    ``class_`` becomes ``class``, and other underscores become hyphens.
    """
    names = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())
    written = "".join(f' {name}="{escape(value)}"' for name, value in names if value is not None)
    return f"<{tag}{written}>{''.join(children)}</{tag}>"


def folded(summary: str, *content: str, class_: str = "folded") -> str:
    """Markup that is closed until the reader opens it: `<details>`, which needs no script."""
    return element("details", element("summary", summary), *content, class_=class_)
