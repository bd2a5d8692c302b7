"""Questions with their pictures, and what the runs answered: some wrong ones, some right ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastmpi.data.images import resolve_path
from fastmpi.evaluation.metrics import Item
from fastmpi.report.content import Gallery, Mark, QuestionCard
from fastmpi.report.pictures import picture
from fastmpi.report.questions import same_questions
from fastmpi.report.runs import Evaluation

LONGEST_RESPONSE = 1200
LONGEST_PROMPT = 1500
SIDE = 360  # pixels of a picture
MOST_IMAGES = 4  # of a card


def galleries(evaluations: Sequence[Evaluation], subject: Evaluation, count: int) -> list[Gallery]:
    """Up to `count` questions that `subject` answered wrong, and as many that it answered right.

    Policies take turns. A run that was not trained is shown with the policy in its prompt. Runs
    with other questions under the same ids are left out.
    """
    others = [e for e in evaluations if e is not subject]
    ordered = [subject, *(e for e in others if same_questions(e, subject, "task"))]
    left_out = [e.label for e in others if e not in ordered]
    answers = [(_name(e), {item["id"]: item for item in _answers(e)}) for e in ordered]
    items = list(answers[0][1].values())
    found = []
    for right, word in ((False, "wrong"), (True, "right")):
        chosen = in_turn([item for item in items if item["correct"] is right])
        cards = [_card(item, answers, subject) for item in chosen[:count]]
        if cards:
            note = f"{len(cards)} of {len(chosen)}"
            if left_out:
                note += f"; not shown, since they were asked others: {', '.join(left_out)}"
            found.append(Gallery(f"{subject.label}: {word}", note, cards))
    return found


def in_turn(items: Sequence[Item]) -> list[Item]:
    """The items with their policies (of tool calls: their tools) taking turns."""
    turns: dict[str, int] = {}
    keyed = []
    for index, item in enumerate(items):
        kind = str(item.get("tool") or item.get("policy_id"))
        turns[kind] = turns.get(kind, 0) + 1
        keyed.append((turns[kind], index))
    return [items[index] for _, index in sorted(keyed)]


def cut(text: str, length: int, most: int) -> str:
    """The first `most` characters, with a note of how many there are in all."""
    return text if length <= most else f"{text[:most]} \u2026 [cut: {length} characters in all]"


def _name(evaluation: Evaluation) -> str:
    return f"{evaluation.label}, policy in the prompt" if evaluation.untrained else evaluation.label


def _answers(evaluation: Evaluation) -> list[Item]:
    suite = "in-context" if evaluation.untrained else "task"
    return evaluation.items(suite) or evaluation.items("task")


def _card(
    item: Item, answers: Sequence[tuple[str, Mapping[str, Item]]], subject: Evaluation
) -> QuestionCard:
    marks = [_mark(name, found[item["id"]]) for name, found in answers if item["id"] in found]
    prompt = str(item.get("prompt", ""))
    return QuestionCard(
        _images(item, subject.folder.pictures_folder("task")),
        cut(prompt, len(prompt), LONGEST_PROMPT),
        cut(str(item["answer"]), len(str(item["answer"])), LONGEST_PROMPT),
        marks,
        str(item.get("policy_id") or ""),
    )


def _mark(run: str, item: Item) -> Mark:
    response = cut(item["response"], item["response_length"], LONGEST_RESPONSE)
    scores = item.get("scores", {})
    verdict = "right" if item["correct"] else "partly" if scores.get("overall") else "wrong"
    return Mark(run, response, verdict, ", ".join(f"{k} {v:.2f}" for k, v in scores.items()))


def _images(item: Item, folder: Path | None) -> list[bytes | None]:
    names = item.get("images") or []
    return [_image(name, folder) for name in names[:MOST_IMAGES]]


def _image(name: object, folder: Path | None) -> bytes | None:
    """A picture inside the folder of the questions."""
    if not isinstance(name, str) or folder is None:
        return None
    try:
        return picture(resolve_path(name, folder), SIDE)
    except ValueError:
        return None
