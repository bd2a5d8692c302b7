"""Whether two runs answered the same questions, and whether their scores mean the same.

Data sets number their rows alike, so an id alone says nothing: test-0 of another seed is another
picture under other rules.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastmpi.evaluation.metrics import Item
from fastmpi.report.runs import Evaluation

_COLUMNS = ("policy_id", "prompt", "images", "answer")
# Figures that the similarity of texts does not enter.
_WITHOUT_SIMILARITY = ("tool", "parsed")


def same_questions(ours: Evaluation, theirs: Evaluation, arm: str) -> bool:
    """Whether an id names one question in both: they were asked the same file, or every row whose
    id both have is the same in policy, prompt, pictures and answer. So without a common id too."""
    file = "override" if arm == "override" else "test"
    hashes = [e.run.get("hashes", {}).get(file) for e in (ours, theirs)]
    if hashes[0] is not None and hashes[0] == hashes[1]:
        return True
    others = {item["id"]: _question(item) for item in theirs.items(arm)}
    common = [item for item in ours.items(arm) if item["id"] in others]
    return all(others[item["id"]] == _question(item) for item in common)


def why_not(ours: Evaluation, theirs: Evaluation, suite: str) -> str:
    """Why the scores of a suite cannot be paired, in a few words; "" where they can."""
    if not {item["id"] for item in ours.items(suite)} & {i["id"] for i in theirs.items(suite)}:
        return "no common questions"
    if not same_questions(ours, theirs, suite):
        return "other questions"
    return "" if one_similarity(suite, [ours, theirs]) else "other text similarity"


def similarities(suite: str, evaluations: Sequence[Evaluation]) -> list[str]:
    """What the runs compared texts with in the suite, each once; none where no texts were."""
    notes = [e.suites[suite].notes for e in evaluations if suite in e.suites]
    return sorted({str(found) for note in notes if (found := note.get("similarity"))})


def one_similarity(suite: str, evaluations: Sequence[Evaluation], name: str = "") -> bool:
    """Whether a figure of the suite (without a name: its scores) means the same in all runs."""
    return name in _WITHOUT_SIMILARITY or len(similarities(suite, evaluations)) < 2


def _question(item: Item) -> tuple[object, ...]:
    return tuple(item.get(column) for column in _COLUMNS)
