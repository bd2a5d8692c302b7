"""A policy's decision tree as inline SVG, root on the left.

Outcomes are stacked downwards, so that a tree of 55 outcomes is long but never wide.
"""

from __future__ import annotations

from fastmpi.report.content import TreeNode
from fastmpi.report.markup import element, escape

ROW, COLUMN, BOX_W, BOX_H, MARGIN = 34, 176, 124, 26, 6
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
    if not _children(node):
        return node.label
    branches = ((word, getattr(node, word)) for word in ("yes", "no"))
    written = ", ".join(f"{word}: {describe(child)}" for word, child in branches if child)
    return f"{node.label} ({written})"


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
    box = element(
        "rect", x=x, y=f"{y - BOX_H / 2:.1f}", width=BOX_W, height=BOX_H, rx=6,
        class_=f"box {kind}{state}",
    )  # fmt: skip
    text = escape(node.label)
    if node.detail:
        text = element("tspan", escape(node.detail) + " ", class_="detail") + text
    label = element("text", text, x=x + BOX_W / 2, y=f"{y:.1f}", dy="0.35em", class_="middle")
    return [box, label] + [part for child in _children(node) for part in _boxes(child, places)]
