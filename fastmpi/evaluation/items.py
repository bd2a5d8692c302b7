"""Items: rows of a data set with what a model answered to them and how right it is. No torch.

An answer that is a tool call (see `tool_calls.call`) is scored as one, any other is right where the
text in `\\boxed{}` equals it. All calls of an arm are scored together, since a similarity that runs
a model is slow one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastmpi.data.rows import Row
from fastmpi.evaluation.metrics import Figure, Item, mean_score, share
from fastmpi.rewards import boxed_answer
from fastmpi.tool_calls.call import is_call, parse_call, read_call
from fastmpi.tool_calls.score import CallScore, score_calls
from fastmpi.tool_calls.similarity import Similarity, text_similarity

_NOT_KEPT = ("reasoning", "images")
CALL_METRICS = ("tool", "argument", "overall")
METRICS = ("accuracy", "parsed", *CALL_METRICS, "kept_old")


@dataclass(frozen=True)
class Answer:
    """What a model wrote to one row. finished: False where the length limit cut it off."""

    id: str
    response: str
    prompt_tokens: int
    response_tokens: int
    finished: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def mark(
    rows: Sequence[Row],
    answers: Sequence[Answer],
    *,
    folder: Path | None = None,
    similarity: Similarity = text_similarity,
) -> list[dict[str, Any]]:
    """The items of rows and their answers, in the same order; see `folder.py` for their columns.

    folder: of the data file, which the pictures are named relative to. Pictures that are no files
    are left out.
    """
    calls = _call_scores(rows, answers, "answer", similarity)
    kept = _call_scores(rows, answers, "old_answer", similarity)
    items = []
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        assert row["id"] == answer.id, (row["id"], answer.id)
        verdict = _verdict(row, answer.response, calls.get(number), kept.get(number))
        items.append({**_columns(row, folder), **verdict, **answer.to_dict()})
    return items


def mark_scored(
    rows: Sequence[Row],
    answers: Sequence[Answer],
    score: Callable[[Row, str], float],
    *,
    folder: Path,
) -> list[dict[str, Any]]:
    """Items of a task with a score of its own, from 0 to 1; 1 is right."""
    items = []
    for row, answer in zip(rows, answers, strict=True):
        found = score(row, answer.response)
        verdict = {"parsed": None, "correct": found == 1, "score": found}
        items.append({**_columns(row, folder), **verdict, **answer.to_dict()})
    return items


def value(item: Item, metric: str) -> float | None:
    """One of `METRICS` of one item, from 0 to 1; None where it does not have it."""
    if metric == "accuracy":
        return float(item["correct"])
    if metric == "parsed":
        return float(item["parsed"] is not None)
    found = item.get("scores", {}).get(metric) if metric in CALL_METRICS else item.get(metric)
    return None if found is None else float(found)


def score(item: Item) -> float:
    """The one number of an item: `overall` of a tool call, else whether it is right."""
    overall = value(item, "overall")
    return float(item["correct"]) if overall is None else overall


def figures(items: Sequence[Item]) -> dict[str, Figure]:
    """Each metric that some of the items have, over those."""
    found = {}
    for metric in METRICS:
        values = [v for item in items if (v := value(item, metric)) is not None]
        if values:
            scored = metric in ("argument", "overall")
            found[metric] = mean_score(values) if scored else share([v == 1 for v in values])
    return found


def _verdict(
    row: Row, response: str, call: CallScore | None, kept: CallScore | None
) -> dict[str, Any]:
    if call is not None:
        parsed = parse_call(response)
        scores = {name: getattr(call, name) for name in CALL_METRICS}
        verdict: dict[str, Any] = {
            "parsed": None if parsed is None else parsed.to_json(),
            "correct": call.overall == 1,
            "scores": scores,
        }
        same_as_old = kept is not None and _is_old(kept, call)
    else:
        text = boxed_answer(response)
        verdict = {"parsed": text, "correct": _same(text, row["answer"])}
        same_as_old = _same(text, row.get("old_answer"))
    if row.get("old_answer") not in (None, row["answer"]):
        verdict["kept_old"] = same_as_old
    return verdict


def _is_old(kept: CallScore, call: CallScore) -> bool:
    """Whether a call is the old rules': changed rules change its name, and free text may vary.

    Where old and new call have the same name, the whole call tells them apart.
    """
    return kept.tool == 1 and (call.tool == 0 or kept.overall == 1)


def _same(parsed: str | None, answer: str | None) -> bool:
    return parsed is not None and answer is not None and parsed.strip() == answer.strip()


def _call_scores(
    rows: Sequence[Row], answers: Sequence[Answer], column: str, similarity: Similarity
) -> dict[int, CallScore]:
    """Number of the row -> its score, of the rows whose `column` is a tool call."""
    golds = {number: read_call(row[column]) for number, row in _with_call(rows, column)}
    called = [parse_call(answers[number].response) for number in golds]
    known = [gold for gold in golds.values() if gold is not None]
    return dict(zip(golds, score_calls(called, known, similarity=similarity), strict=True))


def _with_call(rows: Sequence[Row], column: str) -> list[tuple[int, Row]]:
    return [(n, row) for n, row in enumerate(rows) if is_call(row.get(column) or "")]


def _columns(row: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """The row's own columns, pictures by their names in the data file."""
    kept = {name: value for name, value in row.items() if name not in _NOT_KEPT}
    names = [source for source in row.get("images", ()) if isinstance(source, (str, Path))]
    if folder is not None:
        root = folder.resolve()  # as read_rows resolves the pictures
        names = [Path(name).relative_to(root).as_posix() for name in names]
    return {**kept, "images": [str(name) for name in names]}
