"""The policies on a page: a panel of trees for each run, tables of rules, the texts.

Panels are chosen with radio buttons and shown by CSS alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastmpi.report.cards import image
from fastmpi.report.content import Policies, PolicyText, TreePanel
from fastmpi.report.markup import element, escape, folded
from fastmpi.report.tables import NUM_SHADES, table_block
from fastmpi.report.tree import depth, tree_diagram

_ABOUT = element(
    "p",
    "In each box: the share of right answers, without the policy in the prompt, among the "
    "questions whose right way leads through it, and how many those are. Dotted: no picture leads "
    "there.",
    class_="about",
)
_TEXTS = "The text of the policies, as a model with the policy in its prompt reads it"


def policies_block(policies: Policies) -> str:
    """Trees, rules, texts and notes, as far as there are any."""
    notes = [element("p", escape(note), class_="note") for note in policies.notes]
    tables = map(table_block, policies.tables)
    panels = _panels(policies.panels, policies.chosen)
    return "".join([panels, *tables, *notes, _texts(policies.texts)])


def _panels(panels: Sequence[TreePanel], chosen: int) -> str:
    if not panels:
        return ""
    numbers, several = range(len(panels)), len(panels) > 1
    shown = [_panel(number, panel, several) for number, panel in enumerate(panels)]
    grid = element("div", *shown, class_="panels")
    if not several:
        return _ABOUT + _key() + grid
    chosen_ones = ",".join(f"#panel{number}:checked~.panels>.of{number}" for number in numbers)
    style = element("style", chosen_ones + "{display:grid}")
    buttons = [_button(number, panels[number].run, number == chosen) for number in numbers]
    return element("div", _ABOUT, _key(), style, *buttons, grid, class_="tabs")


def _button(index: int, run: str, checked: bool) -> str:
    state = {"checked": "checked"} if checked else {}
    button = element("input", type="radio", name="panel", id=f"panel{index}", class_="tab", **state)
    label = element("label", escape(run), for_=f"panel{index}")
    return button.removesuffix("</input>") + label


def _panel(index: int, panel: TreePanel, several: bool) -> str:
    trees = []
    for name, tree in panel.trees:
        wide = " wide" if depth(tree) > 3 else ""
        drawing = element("div", tree_diagram(tree, name), class_="scroll", tabindex=0)
        trees.append(element("div", element("h4", escape(name)), drawing, class_="policy" + wide))
    state = f"grid panel of{index}" if several else "grid"
    return element("div", *trees, class_=state)


def _key() -> str:
    boxes = [element("span", class_=f"s{i}") for i in range(NUM_SHADES)]
    scale = element("span", *boxes, class_="scale", aria_hidden="true")
    return element("p", "0 % right ", scale, " 100 %", class_="key-line")


def _texts(texts: Sequence[PolicyText]) -> str:
    if not texts:
        return ""
    inside = []
    for text in texts:
        parts = [_part(part, text.name) for part in text.parts]
        inside.append(element("h4", escape(text.name)) + element("pre", *parts))
    return folded(_TEXTS, *inside)


def _part(part: str | bytes, name: str) -> str:
    return image(part, f"Picture in the policy {name}") if isinstance(part, bytes) else escape(part)
