"""Two tasks of the tiny base beside its policies: to list a picture, and to recite a policy.

describe: a picture, "describe" -> its objects by quadrant ("small red cube ; none ; ...").
trace: a policy and no picture, "trace <name>" -> half of its paths, as the responses they get.

The base is trained on them (`scripts/tiny_base_tasks.py`) and an evaluation asks them again, to
see what a training on policies has made it forget.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastmpi.assets import PICTURE_SIZE
from fastmpi.data.scenes import Scene
from fastmpi.policies.clevr_tree import ClevrTree, Leaf, Node

DESCRIBE = "describe"
LEAF_WEIGHT = 3.0  # finding a leaf in the policy is the hard part of tracing it
QUADRANTS = ((False, False), (False, True), (True, False), (True, True))  # (lower, right)

Piece = tuple[str, float]
"""A token, and the weight of its loss in training: 0 where nobody could predict it."""


def trace_prompt(name: str) -> str:
    return f"trace {name}"


def inventory(scene: Scene) -> Iterator[Piece]:
    """The four quadrants in reading order, each an object or none."""
    width, height = scene.image_size or PICTURE_SIZE
    found = {}
    for item in scene.objects:
        x, y, _ = item.pixel_coords
        found[(y > height / 2, x > width / 2)] = item
    for place in QUADRANTS:
        there = found.get(place)
        words = (there.size, there.color, there.shape) if there else ("none",)
        yield from ((f" {word}", 1.0) for word in (*words, ";"))


def tree_paths(tree: ClevrTree) -> list[list[Piece]]:
    """Every way through a tree, as the response that a scene on it would get."""
    return list(_paths(tree.root, ()))


def joined(pieces: Iterator[Piece] | list[Piece]) -> str:
    """The pieces as the text that a tokenizer reads back into them."""
    return "".join(word for word, _ in pieces)


def num_traced(paths: int) -> int:
    """How many of a tree's paths a trace lists: half, as the last could be told by elimination."""
    return paths // 2


def _paths(node: Node | Leaf, above: tuple[Piece, ...]) -> Iterator[list[Piece]]:
    if isinstance(node, Leaf):
        *words, number = node.case.split()
        box = [("</think>", 1.0), ("\\boxed{", 1.0), *((word, 1.0) for word in words)]
        yield [("<think>", 1.0), *above, *box, (f" {number}", LEAF_WEIGHT), ("}", 1.0)]
        return
    for child, answer in ((node.if_true, " yes"), (node.if_false, " no")):
        condition = f" C{node.id}" if above else f"C{node.id}"
        step = ((condition, 1.0), (f" {node.value}", 1.0), (answer, 0.0))
        yield from _paths(child, (*above, *step))
