"""The rules and tips of the paper's GTAPolicy, as data: 20 rules and 4 tips."""

from __future__ import annotations

from fastmpi.policies.gta.rules import Account, Choice, Formulas, Range, Rule, Target, Test


def _rich(yes: int, no: int) -> Choice:
    return Choice(Range("credits", over=500), yes, no)


_A, _D = Account(("A",)), Account(("D",))
_FAMILIES: list[tuple[str, list[tuple[Test, Target | Choice]]]] = [
    (
        "ImageDescription",
        [(_A, 5), (Account(("B", "C")), _rich(4, 3)), (_D, _rich(2, 1))],
    ),
    (
        "OCR",
        [
            (Range("credits", at_most=250), 5),
            (Range("credits", over=250, at_most=750), Choice(Account(("A", "B")), 4, 3)),
            (Range("credits", over=750), Choice(Range("age", under=21), 2, 1)),
            (Formulas(), "MathOCR"),
        ],
    ),
    (
        "GoogleSearch",
        [
            (Range("age", under=21), 1),
            (Range("age", at_least=21), Choice(Range("credits", under=500), 2, 3)),
        ],
    ),
    ("TextToImage", [(Account(("A", "B", "C")), 1), (_D, _rich(2, 3))]),
    ("RegionAttributeDescription", [(Account(("A", "B")), 2), (Account(("C", "D")), 1)]),
    (
        "CountGivenObject",
        [
            (Range("credits", under=250), 1),
            (Range("credits", at_least=250, under=500), 2),
            (Range("credits", at_least=500, under=750), 3),
            (Range("credits", at_least=750), 4),
        ],
    ),
    (
        "ImageStylization",
        [
            (Range("age", under=21), 1),
            (Range("age", at_least=21, under=60), 2),
            (Range("age", at_least=60), 3),
        ],
    ),
]

TIPS = (
    "Where several images are given, call ImageDescription on each of them first.",
    "Before RegionAttributeDescription, call TextToBbox to find the region that it describes.",
    "Give the path of an image exactly as it stands in the request, such as image/image_1.jpg.",
    "Call GoogleSearch with k = 1, unless the question is open-ended; then with k = 4.",
)


def paper_rules(style: str) -> tuple[Rule, ...]:
    """The 20 rules: "1" to "20" in the full style, "<tool>.<number>" in the compact one."""
    rules = [
        (tool, place, when, then)
        for tool, family in _FAMILIES
        for place, (when, then) in enumerate(family, start=1)
    ]
    return tuple(
        Rule(str(number) if style == "full" else f"{tool}.{place}", tool, (when,), then)
        for number, (tool, place, when, then) in enumerate(rules, start=1)
    )
