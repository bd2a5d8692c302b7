"""Asks a model the rows of an arm, and keeps its answers so that a killed run goes on.

Answers are appended batch by batch. A run that goes on asks again whatever was not a whole batch,
so that every prompt is answered beside the same others as without the interruption, and the files
come out the same to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fastmpi.data.prompts import render
from fastmpi.data.rows import Row
from fastmpi.data.samples import Prompt
from fastmpi.evaluation.folder import json_line, write_jsonl
from fastmpi.evaluation.items import Answer
from fastmpi.evaluation.result import EvalConfig
from fastmpi.files import append_whole
from fastmpi.models.forest_model import ForestModel
from fastmpi.policies.policy import Policy
from fastmpi.rollout.engine import Engine
from fastmpi.rollout.sampling import SamplingParams
from fastmpi.settings import did_you_mean

OnBatch = Callable[[int], None]


@dataclass(frozen=True)
class Asked:
    """Whom rows are put to.

    policies: put into the prompts, by policy_id, where None is for rows that show none; None
    altogether: left out.
    """

    model: ForestModel
    engine: Engine
    policies: Mapping[str, Policy | None] | None

    def check(self, rows: Sequence[Row]) -> None:
        """`ValueError` for no rows, and for a row whose policy is wanted and unknown."""
        if not rows:
            raise ValueError("there are no rows to evaluate")
        if self.policies is None:
            return
        for row in rows:
            if (name := row["policy_id"]) not in self.policies:
                near = did_you_mean(name, self.policies)
                raise ValueError(f"row {row['id']!r}: unknown policy_id {name!r}{near}")

    def prompt(self, row: Row) -> Prompt:
        policy = None if self.policies is None else self.policies[row["policy_id"]]
        return render(row, self.model.processor, policy)


def answer_rows(
    asked: Asked,
    rows: Sequence[Row],
    config: EvalConfig,
    *,
    kept: AnswerFile | None = None,
    on_batch: OnBatch | None = None,
) -> list[Answer]:
    """The answers to all rows, in order. kept: where they go, and where some may be already.

    An answer depends on the weights, its prompt, the settings and the number of its row alone.
    on_batch: called with the number of rows answered so far.
    """
    asked.check(rows)
    answers = [] if kept is None else kept.whole_batches(rows, config.batch_size)
    for start in range(len(answers), len(rows), config.batch_size):
        batch = rows[start : start + config.batch_size]
        said = _answer_batch(asked, batch, start, config)
        if kept is not None:
            kept.append(said)
        answers += said
        if on_batch is not None:
            on_batch(len(answers))
    return answers


def _answer_batch(
    asked: Asked, rows: Sequence[Row], start: int, config: EvalConfig
) -> list[Answer]:
    params = SamplingParams(
        max_tokens=config.max_completion_length,
        temperature=config.temperature,
        seed=config.seed,
    )
    prompts = [asked.prompt(row) for row in rows]
    streams = list(range(start, start + len(rows)))
    said = asked.engine.generate(prompts, 1, params, streams=streams)
    decode = asked.model.processor.decode
    return [
        Answer(row["id"], decode(one.ids), len(prompt.ids), len(one.ids), bool(one.finished))
        for row, prompt, (one,) in zip(rows, prompts, said, strict=True)
    ]


class AnswerFile:
    """Answers on disk, one JSON object a line, while an arm is not complete."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def whole_batches(self, rows: Sequence[Row], batch_size: int) -> list[Answer]:
        """The answers that are there, as far as they are whole batches; the file is cut to these.

        `ValueError` where they are not those of `rows`.
        """
        answers = self._read()
        if len(answers) != len(rows):
            answers = answers[: len(answers) // batch_size * batch_size]
        for row, answer in zip(rows, answers, strict=False):
            if row["id"] != answer.id:
                raise ValueError(
                    f"{self.path} answers row {answer.id!r} where the data has {row['id']!r}; "
                    "remove it to ask anew"
                )
        write_jsonl(self.path, [answer.to_dict() for answer in answers])
        return answers

    def append(self, answers: Sequence[Answer]) -> None:
        """Adds a batch; what is half-written when the process is killed is dropped at reading."""
        append_whole(self.path, b"".join(map(_line, answers)))

    def _read(self) -> list[Answer]:
        if not self.path.is_file():
            return []
        answers = []
        for line in self.path.read_bytes().split(b"\n"):
            try:
                answers.append(answer_of(json.loads(line)))
            except (KeyError, ValueError):
                break  # it was being written, or the file ends
        return answers


def answer_of(item: Mapping[str, Any]) -> Answer:
    """The answer that an item holds."""
    return Answer(**{field.name: item[field.name] for field in fields(Answer)})


def _line(answer: Answer) -> bytes:
    return json_line(answer.to_dict()).encode("utf-8", errors="backslashreplace")
