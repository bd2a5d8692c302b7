"""Binary decision trees over the objects of a CLEVR scene.

A condition asks whether any of the remaining objects has a value. Yes keeps only those objects,
no keeps all of them. Which condition may stand where: never an attribute that was answered yes
above (all remaining objects share it), never an (attribute, value) asked above; where nothing is
left, an outcome follows early. With CLEVR's attributes every tree of 2, 4 or 6 layers then has
exactly 4, 16 or 55 outcomes; with fewer attributes it has whatever the rule gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmpi.data.scenes import CLEVR_ATTRIBUTES, Attributes, Scene, SceneObject

Answer = tuple["Node", bool]


@dataclass(frozen=True)
class Leaf:
    """An outcome. `id` is the place in the tree (its condition's id, then .1 or .2)."""

    id: str
    case: str


@dataclass(frozen=True)
class Node:
    """A condition: has any remaining object this value? `id` is "1", "1.1", "1.1.2", ..."""

    id: str
    attribute: str
    value: str
    if_true: Node | Leaf
    if_false: Node | Leaf


@dataclass(frozen=True)
class Step:
    """One answered condition, and the indices of the objects that remain after it."""

    condition: str
    attribute: str
    value: str
    satisfied: bool
    remaining: tuple[int, ...]


@dataclass(frozen=True)
class Walk:
    """The way of one scene through the tree."""

    objects: tuple[SceneObject, ...]
    steps: tuple[Step, ...]
    leaf: Leaf

    @property
    def case(self) -> str:
        return self.leaf.case


@dataclass(frozen=True)
class ClevrTree:
    """A named decision tree of `depth` layers; `root` is a `Leaf` only where depth is 0."""

    name: str
    depth: int
    root: Node | Leaf

    @classmethod
    def sample(
        cls,
        rng: np.random.Generator,
        depth: int,
        name: str,
        attributes: Attributes = CLEVR_ATTRIBUTES,
        outcomes: Sequence[str] | None = None,
    ) -> ClevrTree:
        """Draw a tree: at each condition an attribute, then its value, uniformly.

        Outcomes are the shuffled "Case 1" ... "Case <number of leaves>", each once; or, where a
        pool `outcomes` is given, drawn from it, as evenly as its size allows. `ValueError` for a
        depth below 1, for no attributes, and for fewer than two outcomes in the pool.
        """
        if depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth}")
        if not any(attributes.values()):
            raise ValueError("attributes: there is no value to ask for")
        root = _grow(rng, depth, "1", attributes, (), ())
        leaves = sum(isinstance(item, Leaf) for item in _items(root))
        cases = _draw_cases(rng, leaves, outcomes)
        return cls(name, depth, _label(root, iter(cases)))

    def nodes(self) -> list[Node]:
        """All conditions, each before its own children, yes before no."""
        return [item for item in _items(self.root) if isinstance(item, Node)]

    def leaves(self) -> list[Leaf]:
        """All outcomes, in the same order."""
        return [item for item in _items(self.root) if isinstance(item, Leaf)]

    def walk(self, scene: Scene) -> Walk:
        """Answer conditions on `scene` from the first to an outcome."""
        steps, place = [], self.root
        remaining = tuple(range(len(scene.objects)))
        while isinstance(place, Node):
            kept = tuple(i for i in remaining if _has(scene.objects[i], place))
            remaining = kept or remaining
            steps.append(Step(place.id, place.attribute, place.value, bool(kept), remaining))
            place = place.if_true if kept else place.if_false
        return Walk(scene.objects, tuple(steps), place)

    def path(self, leaf_id: str) -> tuple[Answer, ...]:
        """The conditions that lead to a leaf, each with its answer."""
        for leaf, path in _paths(self.root, ()):
            if leaf.id == leaf_id:
                return path
        raise ValueError(f"policy {self.name}: no outcome at {leaf_id!r}")

    def reachable(self, attributes: Attributes = CLEVR_ATTRIBUTES) -> list[Leaf]:
        """The leaves that some scene of one or more objects with `attributes` reaches.

        Exact: an object that remains at the end has been there at every condition, so it alone
        reaches the leaf too, and it exists unless all values of an attribute were denied.
        """
        return [leaf for leaf, path in _paths(self.root, ()) if witness_values(path, attributes)]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "depth": self.depth, "root": _node_to_json(self.root)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ClevrTree:
        """Read what `to_json` gave; a missing key or an unknown attribute is a `ValueError`."""
        try:
            return cls(str(data["name"]), int(data["depth"]), _node_from_json(data["root"], "1"))
        except KeyError as error:
            raise ValueError(f"decision tree: missing key {error}") from error


def witness_values(
    path: Sequence[Answer], attributes: Attributes = CLEVR_ATTRIBUTES
) -> dict[str, list[str]] | None:
    """The values, by attribute, of an object that remains at the end of `path`; None if none can.

    Attributes vary independently: every combination of the listed values will do.
    """
    values = {name: list(attributes.get(name, all_)) for name, all_ in CLEVR_ATTRIBUTES.items()}
    for node, satisfied in path:
        kept = [v for v in values[node.attribute] if (v == node.value) == satisfied]
        values[node.attribute] = kept
    return values if all(values.values()) else None


def disturbs(item: SceneObject, path: Sequence[Answer]) -> bool:
    """Whether a scene with `item` in it must leave `path`: it has a value that was denied."""
    for node, satisfied in path:
        if satisfied and not _has(item, node):
            return False  # narrowed away, without a say from here on
        if not satisfied and _has(item, node):
            return True
    return False


def _has(item: SceneObject, node: Node) -> bool:
    return item.has(node.attribute, node.value)


def _grow(
    rng: np.random.Generator,
    depth: int,
    place: str,
    attributes: Attributes,
    settled: tuple[str, ...],
    asked: tuple[tuple[str, str], ...],
) -> Node | Leaf:
    free = {
        name: [value for value in values if (name, value) not in asked]
        for name, values in attributes.items()
        if name not in settled
    }
    names = [name for name, values in free.items() if values]
    if depth == 0 or not names:
        return Leaf(place, "")
    name = str(rng.choice(names))
    value = str(rng.choice(free[name]))
    asked = (*asked, (name, value))
    return Node(
        place,
        name,
        value,
        if_true=_grow(rng, depth - 1, f"{place}.1", attributes, (*settled, name), asked),
        if_false=_grow(rng, depth - 1, f"{place}.2", attributes, settled, asked),
    )


def _draw_cases(rng: np.random.Generator, count: int, outcomes: Sequence[str] | None) -> list[str]:
    """Shuffled rounds through the pool, in which no two neighbours are equal."""
    pool = list(dict.fromkeys(outcomes or [f"Case {k}" for k in range(1, count + 1)]))
    if len(pool) < 2:
        raise ValueError(f"outcomes: two or more different ones are needed, not {pool}")
    cases: list[str] = []
    while len(cases) < count:
        block = [str(case) for case in rng.permutation(pool)]
        if cases and block[0] == cases[-1]:
            block.reverse()
        cases += block
    return cases[:count]


def _label(item: Node | Leaf, cases: Iterator[str]) -> Node | Leaf:
    if isinstance(item, Leaf):
        return Leaf(item.id, next(cases))
    if_true = _label(item.if_true, cases)
    return Node(item.id, item.attribute, item.value, if_true, _label(item.if_false, cases))


def _items(item: Node | Leaf) -> Iterator[Node | Leaf]:
    yield item
    if isinstance(item, Node):
        yield from _items(item.if_true)
        yield from _items(item.if_false)


def _paths(
    item: Node | Leaf, above: tuple[Answer, ...]
) -> Iterator[tuple[Leaf, tuple[Answer, ...]]]:
    if isinstance(item, Leaf):
        yield item, above
        return
    yield from _paths(item.if_true, (*above, (item, True)))
    yield from _paths(item.if_false, (*above, (item, False)))


def _node_to_json(item: Node | Leaf) -> dict[str, Any]:
    if isinstance(item, Leaf):
        return {"case": item.case}
    return {
        "attribute": item.attribute,
        "value": item.value,
        "if_true": _node_to_json(item.if_true),
        "if_false": _node_to_json(item.if_false),
    }


def _node_from_json(data: Mapping[str, Any], place: str) -> Node | Leaf:
    if "case" in data:
        return Leaf(place, str(data["case"]))
    attribute, value = str(data["attribute"]), str(data["value"])
    if value not in CLEVR_ATTRIBUTES.get(attribute, ()):
        raise ValueError(f"decision tree: condition {place} asks for {attribute} {value!r}")
    return Node(
        place,
        attribute,
        value,
        _node_from_json(data["if_true"], f"{place}.1"),
        _node_from_json(data["if_false"], f"{place}.2"),
    )
