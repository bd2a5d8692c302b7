"""Rows to prompts. The one place where a policy enters a prompt, and where it does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmpi.data.samples import Prompt

if TYPE_CHECKING:
    from fastmpi.data.processor import Processor
    from fastmpi.policies.policy import Policy

Row = Mapping[str, Any]


def render(
    row: Row, processor: Processor, policy: Policy | None = None, *, folder: Path | None = None
) -> Prompt:
    """The prompt of `row`: its pictures, then its question, as a user turn.

    With `policy`, the policy's messages (usually one system turn) and pictures come first, so
    that all prompts of one policy begin alike. `ValueError` names the row in trouble.
    """
    messages: list[dict[str, Any]] = [] if policy is None else list(policy.messages)
    sources = [] if policy is None else list(policy.images)
    try:
        images = [processor.image(source) for source in sources]
        images += [processor.image(source, folder) for source in row["images"]]
        return processor.prompt([*messages, _user_turn(row)], images)
    except ValueError as error:
        raise ValueError(f"row {row.get('id')!r}: {error}") from error


def response_text(row: Row, *, reasoning: bool = True) -> str:
    """The gold response: `<think>reasoning</think>\\boxed{answer}`, or the box alone."""
    boxed = f"\\boxed{{{row['answer']}}}"
    return f"<think>{row['reasoning']}</think>{boxed}" if reasoning else boxed


def _user_turn(row: Row) -> dict[str, Any]:
    pictures = [{"type": "image"} for _ in row["images"]]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": row["prompt"]}]}
