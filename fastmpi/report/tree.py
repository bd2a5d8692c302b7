"""A policy's decision tree as inline SVG, root on the left.

Outcomes are stacked downwards, so that a tree of 55 outcomes is long but never wide.
"""

from __future__ import annotations

from fastmpi.report.content import TreeNode
from fastmpi.report.markup import element, escape
from fastmpi.report.tables import shade

ROW, COLUMN, BOX_W, BOX_H, MARGIN = 48, 164, 128, 40, 6
Placed = dict[int, tuple[float, float]]  # id of a node -> left edge and centre line of its box


def tree_diagram(root: TreeNode, name: str) -> str:
    """The drawing of one tree; branches that no scene can take are dotted."""
    places: Placed = {}
    rows = _place(root, 0, 0, places)
    width = MARGIN * 2 + (depth(root) - 1) * COLUMN + BOX_W
    height = MARGIN * 2 + rows * ROW
    title = element("title", escape(f"Decision tree of the policy {name}: {describe(root)}"))
    parts = [*_edges(root, places), *_boxes(root, places)]
    view = f"0 0 {width} {height}"
    return element("svg", title, *parts, viewBox=view, width=width, role="img", class_="tree")


def depth(node: TreeNode) -> int:
    """Number of layers, outcomes included."""
    return 1 + max((depth(child) for child in _children(node)), default=0)


def describe(node: TreeNode) -> str:
    """The tree as words, for readers who do not see the drawing."""
    share = "" if node.share is None else f", {100 * node.share:.0f} % of {node.n}"
    if not _children(node):
        return node.label + share
    branches = ((word, getattr(node, word)) for word in ("yes", "no"))
    written = ", ".join(f"{word}: {describe(child)}" for word, child in branches if child)
    return f"{node.label}{share} ({written})"


def _children(node: TreeNode) -> list[TreeNode]:
    return [child for child in (node.yes, node.no) if child is not None]


def _place(node: TreeNode, column: int, row: int, places: Placed) -> int:
    """Gives every node its place and returns how many rows the node takes."""
    taken = 0
    for child in _children(node):
        taken += _place(child, column + 1, row + taken, places)
    taken = taken or 1
    centres = [places[id(child)][1] for child in _children(node)]
    centre = sum(centres) / len(centres) if centres else MARGIN + (row + 0.5) * ROW
    places[id(node)] = (MARGIN + column * COLUMN, centre)
    return taken


def _edges(node: TreeNode, places: Placed) -> list[str]:
    parts: list[str] = []
    x0, y0 = places[id(node)]
    for word, child in (("yes", node.yes), ("no", node.no)):
        if child is not None:
            x1, y1 = places[id(child)]
            parts += _edge(word, x0 + BOX_W, y0, x1, y1, child.reachable)
            parts += _edges(child, places)
    return parts


def _edge(word: str, x0: float, y0: float, x1: float, y1: float, reachable: bool) -> list[str]:
    middle = x0 + 14
    state = "" if reachable else " unreachable"
    bend = f"M{x0:.1f} {y0:.1f} H{middle:.1f} V{y1:.1f} H{x1:.1f}"
    label = element("text", word, x=middle + 5, y=f"{y1 - 4:.1f}", class_=f"edge-label {word}")
    return [element("path", d=bend, class_=f"edge {word}{state}"), label]


def _boxes(node: TreeNode, places: Placed) -> list[str]:
    x, y = places[id(node)]
    kind = "condition" if _children(node) else "outcome"
    state = "" if node.reachable else " unreachable"
    colour = "" if node.share is None else f" {shade(node.share)}"
    box = element(
        "rect", x=x, y=f"{y - BOX_H / 2:.1f}", width=BOX_W, height=BOX_H, rx=6,
        class_=f"box {kind}{state}",
    )  # fmt: skip
    parts = [box, _label(node, x + BOX_W / 2, y - (8 if node.share is not None else 0))]
    if node.share is not None:
        parts.append(_accuracy(node, x + BOX_W / 2, y + 9))
    own = element("g", *parts, class_=f"node{colour}")
    return [own] + [part for child in _children(node) for part in _boxes(child, places)]


def _label(node: TreeNode, x: float, y: float) -> str:
    text = escape(node.label)
    if node.detail:
        text = element("tspan", escape(node.detail) + " ", class_="detail") + text
    return element("text", text, x=x, y=f"{y:.1f}", dy="0.35em", class_="middle")


def _accuracy(node: TreeNode, x: float, y: float) -> str:
    share = element("tspan", f"{100 * (node.share or 0):.0f} %", class_="share")
    count = element("tspan", f" of {node.n}", class_="detail")
    return element("text", share, count, x=x, y=f"{y:.1f}", dy="0.35em", class_="middle")
