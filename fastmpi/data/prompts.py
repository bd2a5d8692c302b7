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
    that all prompts of one policy begin alike. Where the chat template leaves pictures of a system
    turn out (Qwen3-VL's does), the policy opens the user turn instead. `ValueError` names the row
    in trouble.
    """
    turns = [] if policy is None else [_with_parts(message) for message in policy.messages]
    sources = [] if policy is None else list(policy.images)
    if sources and not processor.shows_system_pictures:
        turns = [{**turn, "role": "user"} for turn in turns]
    try:
        images = processor.images(sources) + processor.images(row["images"], folder)
        return processor.prompt(_joined([*turns, _user_turn(row)]), images)
    except ValueError as error:
        raise ValueError(f"row {row.get('id')!r}: {error}") from error


def response_text(row: Row, *, reasoning: bool = True) -> str:
    """The gold response: `<think>reasoning</think>\\boxed{answer}`, or the box alone."""
    boxed = f"\\boxed{{{row['answer']}}}"
    return f"<think>{row['reasoning']}</think>{boxed}" if reasoning else boxed


def _with_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with its content as parts: some templates drop plain strings silently."""
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    return {**message, "content": parts}


def _joined(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns, a user's turn that follows another joined to it."""
    joined: list[dict[str, Any]] = []
    for turn in turns:
        if joined and joined[-1]["role"] == turn["role"] == "user":
            turn = {**turn, "content": [*joined.pop()["content"], *turn["content"]]}
        joined.append(turn)
    return joined


def _user_turn(row: Row) -> dict[str, Any]:
    pictures = [{"type": "image"} for _ in row["images"]]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": row["prompt"]}]}
