"""Rows of a GTAPolicy data set: one for each gold call, with profile, request and history.

    {"id", "policy_id", "images", "prompt", "reasoning", "answer",     as every row
     "tool": "OCR", "rule": "5", "profile": {...}, "formulas": false, "dialog": "17"}

`answer` is the JSON text of the call. `tool`, `profile` and `formulas` are what `GTAPolicy.route`
takes: for a call of MathOCR these are "OCR" and true, since a rule on the picture leads there.
History names tools without versions, or a version could be copied instead of derived.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastmpi.policies.gta.dialogs import Call, Dialog, Dialogs, PictureSource
from fastmpi.policies.gta.policy import GTAPolicy
from fastmpi.policies.gta.profiles import ProfileSource, routed_tool
from fastmpi.policies.gta.reasoning import gta_reasoning
from fastmpi.policies.gta.rules import Profile
from fastmpi.policies.gta.text import profile_text
from fastmpi.tool_calls.call import Call as ToolCall

Row = dict[str, Any]

INSTRUCTION = """\
Make the next tool call for this user. Think first; then give the call inside \\boxed{} as a JSON \
object with the keys "name" and "arguments". The name includes the version of the tool that this \
user may call."""


def dialog_rows(
    policy: GTAPolicy,
    dialogs: Iterable[Dialog],
    profiles: ProfileSource,
    source: Dialogs,
    split: str,
) -> list[Row]:
    """The rows of all calls, dialog by dialog; pictures that `source` lacks are only names."""
    rows: list[Row] = []
    for dialog in dialogs:
        profile = profiles.profile_for(dialog)
        for number in range(len(dialog.calls)):
            rows.append(_row(policy, dialog, number, profile, source.pictures, split))
    return rows


def overridden(rows: Sequence[Row], policy: GTAPolicy) -> list[Row]:
    """The rows with the calls that the changed `policy` asks for, the old ones as `old_answer`."""
    changed = []
    for row in rows:
        routing = policy.route(row["tool"], Profile.from_json(row["profile"]), row["formulas"])
        call = ToolCall(routing.name, json.loads(row["answer"])["arguments"])
        new = {"answer": call.to_json(), "old_answer": row["answer"], "rule": routing.rule}
        changed.append({**row, **new})
    return changed


def _row(
    policy: GTAPolicy,
    dialog: Dialog,
    number: int,
    profile: Profile,
    pictures: Mapping[str, PictureSource],
    split: str,
) -> Row:
    call, before = dialog.calls[number], dialog.calls[:number]
    shown = [name for name in visible(dialog, number) if name in pictures]
    tool, formulas = routed_tool(policy, call.tool)
    routing = policy.route(tool, profile, formulas)
    return {
        "id": f"{split}-{dialog.id}-{number + 1}",
        "policy_id": policy.name,
        "images": shown,
        "prompt": prompt_text(profile, call.query, shown, before),
        "reasoning": reasoning_text(policy, call, tool, profile, formulas),
        "answer": ToolCall(routing.name, dict(call.arguments)).to_json(),
        "tool": tool,
        "rule": routing.rule,
        "profile": profile.to_json(),
        "formulas": formulas,
        "dialog": dialog.id,
    }


def visible(dialog: Dialog, number: int) -> list[str]:
    """Names of the pictures there are when call `number` is made, each once, in order."""
    made = (call.returned for call in dialog.calls[:number] if call.made and call.returned)
    return list(dict.fromkeys([*dialog.images, *made]))


def prompt_text(
    profile: Profile, query: str, images: Sequence[str], history: Sequence[Call]
) -> str:
    """What the model is asked. The pictures stand before it, in the order of `images`."""
    past = [_past(number, call) for number, call in enumerate(history, start=1)]
    parts = [
        ("User profile", profile_text(profile)),
        ("Request", query),
        ("Images", "\n".join(images) or "none"),
        ("History", "\n".join(past) or "none"),
        ("Instruction", INSTRUCTION),
    ]
    return "\n\n".join(f"# {title}\n{text}" for title, text in parts)


def reasoning_text(
    policy: GTAPolicy, call: Call, tool: str, profile: Profile, formulas: bool
) -> str:
    """Why this call: the thought of the dialog, then the rules that lead to its version."""
    thought = [" ".join(call.thought.split())] if call.thought.strip() else []
    return "\n".join([*thought, gta_reasoning(policy, tool, profile, formulas)])


def _past(number: int, call: Call) -> str:
    arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
    if call.returned is None:
        returned = "nothing recorded"
    else:
        returned = f"the image {call.returned}" if call.made else call.returned
    return f"{number}. {call.tool} {arguments}\nreturned: {returned}"
