"""Rows of calls: what the prompt says, whose rules decide, and that answers can be boxed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastmpi.data.prompts import response_text
from fastmpi.policies.gta.dialogs import Call, Dialog, Dialogs
from fastmpi.policies.gta.folder import read_gta
from fastmpi.policies.gta.policy import gta_policy, swapped_versions
from fastmpi.policies.gta.profiles import ProfileSource, routed_tool
from fastmpi.policies.gta.rows import Row, dialog_rows, overridden
from fastmpi.policies.gta.rules import Profile, Range
from fastmpi.rewards import boxed_answer
from fastmpi.tool_calls.call import parse_call

POLICY = gta_policy()


def rows_of(source: Dialogs) -> list[Row]:
    profiles = ProfileSource(np.random.default_rng(0), POLICY)
    return dialog_rows(POLICY, source.dialogs, profiles, source, "train")


def test_each_call_of_a_folder_is_a_row(gta_folder: Path) -> None:
    rows = rows_of(read_gta(gta_folder))
    assert [row["id"] for row in rows] == [
        "train-0-1", "train-0-2", "train-1-1", "train-1-2", "train-1-3",
        "train-7-1", "train-7-2", "train-9-1", "train-9-2",
    ]  # fmt: skip
    by_dialog = {row["dialog"]: row["profile"] for row in rows}
    assert all(row["profile"] == by_dialog[row["dialog"]] for row in rows)
    for row in rows:
        profile = Profile.from_json(row["profile"])
        routing = POLICY.route(row["tool"], profile, row["formulas"])
        assert (json.loads(row["answer"])["name"], row["rule"]) == (routing.name, routing.rule)


def test_the_prompt_has_profile_request_pictures_and_history(gta_folder: Path) -> None:
    first, second, *_ = rows_of(read_gta(gta_folder))
    profile = first["profile"]
    assert first["prompt"].startswith(
        f"# User profile\nAccount type: {profile['account_type']}. "
        f"Credits: {profile['credits']}. Age: {profile['age']}.\n\n"
        "# Request\nWhat do I pay?\n\n# Images\nimage/image_1.jpg\n\n# History\nnone\n\n# Inst"
    )
    history = '1. OCR {"image": "image/image_1.jpg"}\nreturned: (1, 2, 30, 12) Tea 2.50\n\n'
    assert history in second["prompt"]
    assert first["reasoning"].startswith("I should read the receipt.\nThe next step needs OCR.")
    assert second["reasoning"].startswith("The next step needs Calculator.")


def test_no_prompt_names_a_version(gta_folder: Path) -> None:
    names = {name for tool in POLICY.tools.values() if tool.versions > 1 for name in tool.names}
    for row in rows_of(read_gta(gta_folder)):
        assert not any(name in row["prompt"] for name in names)


def test_calls_of_one_turn_follow_one_another(gta_folder: Path) -> None:
    rows = {row["id"]: row for row in rows_of(read_gta(gta_folder))}
    assert "returned: two cups" not in rows["train-1-1"]["prompt"]
    assert "returned: two cups" in rows["train-1-2"]["prompt"]
    assert "returned: one cup" not in rows["train-1-2"]["prompt"]


def test_a_picture_that_a_tool_made_is_shown_afterwards(gta_folder: Path) -> None:
    rows = {row["id"]: row for row in rows_of(read_gta(gta_folder))}
    assert rows["train-7-1"]["images"] == ["image/image_4.jpg"]
    assert rows["train-7-2"]["images"] == ["image/image_4.jpg", "image/made_1.jpg"]
    assert "returned: the image image/made_1.jpg" in rows["train-7-2"]["prompt"]
    assert "# Images\nimage/image_4.jpg\nimage/made_1.jpg\n" in rows["train-7-2"]["prompt"]


def test_a_made_picture_that_is_missing_is_only_a_name(gta_folder: Path) -> None:
    (gta_folder / "image/made_1.jpg").unlink()
    rows = {row["id"]: row for row in rows_of(read_gta(gta_folder))}
    assert rows["train-7-2"]["images"] == ["image/image_4.jpg"]
    assert "returned: the image image/made_1.jpg" in rows["train-7-2"]["prompt"]


def test_formulas_lead_from_ocr_to_math_ocr(gta_folder: Path) -> None:
    (row,) = (row for row in rows_of(read_gta(gta_folder)) if row["id"] == "train-9-1")
    assert (row["tool"], row["rule"], row["formulas"]) == ("OCR", "7", True)
    assert json.loads(row["answer"])["name"] == "MathOCR"
    assert "Rule 7: formulas in the image? Yes." in row["reasoning"]
    assert routed_tool(POLICY, "OCR") == ("OCR", False)
    with pytest.raises(ValueError, match="no tool 'Camera'"):
        routed_tool(POLICY, "Camera")


@pytest.mark.parametrize(
    "value", ["plain", "{a}", "}{", "{", "é \u2028 {", '"}"', "\\boxed{x", "\\\\{", "}" * 5]
)
def test_every_answer_can_be_boxed_and_read_back(value: str) -> None:
    call = Call("Solver", {"command": value}, "Solve it.")
    (row,) = rows_of(Dialogs((Dialog("0", (), (call,)),), {}))
    response = response_text(row)
    assert boxed_answer(response) == row["answer"]
    parsed = parse_call(response)
    assert parsed is not None and (parsed.name, parsed.arguments) == ("Solver", {"command": value})


def test_overriding_changes_names_and_nothing_else(gta_folder: Path) -> None:
    rows = rows_of(read_gta(gta_folder))
    _, changed = POLICY.override(swapped_versions(POLICY))
    new = overridden(rows, changed)
    assert [row["old_answer"] for row in new] == [row["answer"] for row in rows]
    for row, old in zip(new, rows, strict=True):
        was, now = json.loads(old["answer"]), json.loads(row["answer"])
        assert now["arguments"] == was["arguments"]
        profile = Profile.from_json(row["profile"])
        routing = changed.route(row["tool"], profile, row["formulas"])
        assert (now["name"], row["rule"]) == (routing.name, routing.rule)
        kept = {"answer", "old_answer", "rule"}
        assert {k: v for k, v in row.items() if k not in kept} == {
            k: v for k, v in old.items() if k not in kept
        }
    assert any(row["answer"] != row["old_answer"] for row in new)


def test_overriding_conditions_moves_a_row_to_another_rule() -> None:
    low = replace(POLICY.rule("4"), when=(Range("credits", at_most=300),))
    middle = replace(POLICY.rule("5"), when=(Range("credits", over=300, at_most=750),))
    _, changed = POLICY.override([low, middle])
    row = {
        "answer": '{"name": "OCR_v4", "arguments": {"image": "image/image_1.jpg"}}',
        "tool": "OCR",
        "rule": "5",
        "formulas": False,
        "profile": {"account_type": "A", "credits": 275, "age": 30},
    }
    (new,) = overridden([row], changed)
    assert (new["rule"], json.loads(new["answer"])["name"]) == ("4", "OCR_v5")


def test_profiles_cover_every_branch_and_stand_on_bounds() -> None:
    calls = [Call(tool, {}, "?") for tool in POLICY.tools if tool != "MathOCR"]
    profiles = ProfileSource(np.random.default_rng(1), POLICY)
    given = [profiles.profile_for(Dialog(str(i), (), (c,))) for i in range(8) for c in calls]
    again = ProfileSource(np.random.default_rng(1), POLICY)
    assert given == [again.profile_for(Dialog(str(i), (), (c,))) for i in range(8) for c in calls]
    names = Counter(
        POLICY.route(call.tool, profile).name
        for profile, call in zip(given, calls * 8, strict=True)
    )
    assert set(names) == {
        name for tool in POLICY.tools.values() for name in tool.names if name != "MathOCR"
    }
    credits = {profile.credits for profile in given}
    assert len(credits & {249, 250, 251, 499, 500, 501, 749, 750, 751}) > 5
    assert {profile.age for profile in given} & {20, 21, 22, 59, 60, 61}
