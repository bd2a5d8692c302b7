"""A decision tree in words: the policy, the question that names it, the reasoning that walks it.

Two styles. `full` reads like the instructions of a person: a general part, the policy's name, and
one numbered section for each condition. `compact` is one word for one token, for models so small
that every token counts:

    policy kavo : C1 if red then C1.1 else C1.2 ; C1.1 if cube then Case 3 else Case 5 ; ... end

A policy is a list of parts, text or `ValuePicture`; only variant M of the data has the latter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fastmpi.data.scenes import SceneObject
from fastmpi.policies.clevr_tree import ClevrTree, Leaf, Node, Walk

STYLES = ("full", "compact")

GENERAL_INSTRUCTION = """\
You decide how to respond to a picture of simple objects. Every object has a shape (cube, sphere \
or cylinder), a color (gray, red, blue, green, brown, purple, cyan or yellow), a size (small or \
large) and a material (rubber or metal).

The policy below is a list of numbered conditions. Begin at Condition 1 with all objects of the \
picture. Each condition asks about the objects that still remain. If at least one of them \
satisfies it, keep only those that do and follow "yes". If none does, keep all of them and follow \
"no". Go on until a case is named: this case is the response."""

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(frozen=True)
class ValuePicture:
    """Stands in a policy's text for the value of condition `condition`: a picture shows it."""

    condition: str
    attribute: str
    value: str


Part = str | ValuePicture


def policy_text(tree: ClevrTree, style: str = "full") -> str:
    """The whole policy as text.

    >>> policy_text(tree, "compact")
    'policy kavo : C1 if red then Case 3 else Case 5 end'
    """
    return "".join(str(part) for part in policy_parts(tree, style))


def policy_parts(
    tree: ClevrTree, style: str = "full", pictured: frozenset[str] = frozenset()
) -> list[Part]:
    """The policy as alternating text and pictures; `pictured` names the conditions with one."""
    checked_style(style)
    if style == "full":
        return _merged(_full_parts(tree, pictured))
    return _merged(_compact_parts(tree, pictured))


def question_text(name: str, style: str = "full") -> str:
    """The question about a picture; it names the policy and says nothing of its rules."""
    if checked_style(style) == "compact":
        return f"question {name}"
    return f"Following Policy {name}, what is the response to this image?"


def reasoning_text(walk: Walk, style: str = "full") -> str:
    """The way to the outcome, step by step, with the id of every condition on it."""
    if checked_style(style) == "compact":
        return " ".join(
            f"C{step.condition} {step.value} {'yes' if step.satisfied else 'no'}"
            for step in walk.steps
        )
    start = f"The image shows {describe(walk.objects)}."
    lines = [_reason(walk, number) for number in range(len(walk.steps))]
    return "\n".join([start, *lines, f"The response is {walk.case}."])


def policy_names(
    rng: np.random.Generator, count: int, depth: int, style: str = "full"
) -> list[str]:
    """`count` different names that can be spoken: "L2-Kavo" in full style, "kavo" in compact.

    The number in the name is the depth of the tree.
    """
    checked_style(style)
    names: dict[str, None] = {}
    while len(names) < count:
        # Two syllables give 4900 names; three only where they could run short.
        syllables = 2 if count <= 1000 else 3
        names["".join(_syllable(rng) for _ in range(syllables))] = None
    return [f"L{depth}-{name.capitalize()}" if style == "full" else name for name in names]


def describe(objects: Sequence[SceneObject]) -> str:
    """'a large red metal cube and 2 small gray rubber spheres', in order of appearance."""
    counts = Counter((o.size, o.color, o.material, o.shape) for o in objects)
    phrases = [
        f"a {' '.join(kind)}" if number == 1 else f"{number} {' '.join(kind)}s"
        for kind, number in counts.items()
    ]
    if not phrases:
        return "no objects"
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if phrases[1:] else phrases)


def checked_style(style: str) -> str:
    if style not in STYLES:
        raise ValueError(f"style {style!r} is none of {', '.join(STYLES)}")
    return style


def _full_parts(tree: ClevrTree, pictured: frozenset[str]) -> Iterator[Part]:
    yield f"{GENERAL_INSTRUCTION}\n\nPolicy {tree.name}\n"
    for node in tree.nodes():
        yield f"\n# Condition {node.id}:\n"
        if node.id in pictured:
            yield f"Does any remaining object have the same {node.attribute} as the object in "
            yield ValuePicture(node.id, node.attribute, node.value)
            yield "?\n"
        else:
            yield f"Does any remaining object have the {node.attribute} {node.value}?\n"
        yield f"If yes, {_full_target(node.if_true)}. If no, {_full_target(node.if_false)}.\n"


def _full_target(child: Node | Leaf) -> str:
    return f"respond {child.case}" if isinstance(child, Leaf) else f"go to Condition {child.id}"


def _compact_parts(tree: ClevrTree, pictured: frozenset[str]) -> Iterator[Part]:
    yield f"policy {tree.name} :"
    for number, node in enumerate(tree.nodes()):
        yield f"{' ;' if number else ''} C{node.id} if "
        if node.id in pictured:
            yield f"{node.attribute} "
            yield ValuePicture(node.id, node.attribute, node.value)
        else:
            yield node.value
        yield f" then {_compact_target(node.if_true)} else {_compact_target(node.if_false)}"
    yield " end"


def _compact_target(child: Node | Leaf) -> str:
    return child.case if isinstance(child, Leaf) else f"C{child.id}"


def _merged(parts: Iterator[Part]) -> list[Part]:
    """Join neighbouring pieces of text."""
    merged: list[Part] = []
    for part in parts:
        if merged and isinstance(part, str) and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def _reason(walk: Walk, number: int) -> str:
    step = walk.steps[number]
    asked = f"Condition {step.condition}: {step.attribute} {step.value}?"
    if not step.satisfied:
        return f"{asked} No, none of the remaining objects."
    kept = [walk.objects[i] for i in step.remaining]
    return f"{asked} Yes. Remaining: {describe(kept)}."


def _syllable(rng: np.random.Generator) -> str:
    return str(rng.choice(list(CONSONANTS))) + str(rng.choice(list(VOWELS)))
