"""Reading a GTA folder: what it holds, and how each mistake in it is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmpi.policies.gta.folder import read_gta


def change(folder: Path, edit: Callable[[Any], Any], name: str = "dataset.json") -> None:
    path = folder / name
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def turn(data: Any, dialog: str, number: int) -> Any:
    return data[dialog]["dialogs"][number]


def function(data: Any, dialog: str = "0", number: int = 1) -> Any:
    return turn(data, dialog, number)["tool_calls"][0]["function"]


def test_every_call_is_there_with_what_it_returned(gta_folder: Path) -> None:
    found = read_gta(gta_folder)
    assert [dialog.id for dialog in found.dialogs] == ["0", "1", "7", "9"]
    assert found.num_calls == 9
    first = found.dialogs[0].calls
    assert [(call.tool, call.returned, call.made) for call in first] == [
        ("OCR", "(1, 2, 30, 12) Tea 2.50", False),
        ("Calculator", "5.0", False),
    ]
    assert first[0].thought == "I should read the receipt."
    assert {call.query for call in first} == {"What do I pay?"}


def test_several_calls_in_a_turn_each_get_their_return(gta_folder: Path) -> None:
    calls = read_gta(gta_folder).dialogs[1].calls
    assert [(c.arguments["image"], c.returned) for c in calls] == [
        ("image/image_2.jpg", "two cups"),
        ("image/image_3.jpg", "one cup"),
        ("image/image_2.jpg", "2"),
    ]


def test_returns_of_different_tools_may_come_in_another_order(gta_folder: Path) -> None:
    def edit(data: Any) -> None:
        second = {"function": {"name": "OCR", "arguments": {"image": "image/image_3.jpg"}}}
        turn(data, "1", 1)["tool_calls"][1] = second
        turn(data, "1", 2)["name"] = "OCR"

    change(gta_folder, edit)
    calls = read_gta(gta_folder).dialogs[1].calls
    assert [(c.tool, c.returned) for c in calls[:2]] == [
        ("ImageDescription", "one cup"), ("OCR", "two cups"),
    ]  # fmt: skip


def test_pictures_that_tools_made(gta_folder: Path) -> None:
    found = read_gta(gta_folder)
    calls = found.dialogs[2].calls
    assert [(call.returned, call.made) for call in calls] == [
        ("image/made_1.jpg", True),
        ("image/made_2.jpg", True),
    ]
    assert found.pictures["image/made_1.jpg"] == (gta_folder / "image/made_1.jpg").resolve()
    assert found.made_without_source() == ["image/made_2.jpg"]


def test_a_call_without_a_return_is_kept(gta_folder: Path) -> None:
    assert read_gta(gta_folder).dialogs[3].calls[1].returned is None


def test_a_later_word_of_the_user_joins_the_query(gta_folder: Path) -> None:
    more = {"role": "user", "content": "For two, please."}
    change(gta_folder, lambda data: data["0"]["dialogs"].insert(3, more))
    calls = read_gta(gta_folder).dialogs[0].calls
    assert [call.query for call in calls] == ["What do I pay?", "What do I pay?\nFor two, please."]


def outside(data: Any) -> None:
    data["0"]["files"][0]["path"] = "image/../../secret.jpg"


MISTAKES: list[tuple[Callable[[Any], Any], str]] = [
    (outside, "dialog '0': image path .* points outside"),
    (lambda d: d["0"]["files"][0].update(path="/etc/hostname"), "points outside"),
    (lambda d: d["0"]["files"][0].update(path="image/no.jpg"), "image 'image/no.jpg' does not"),
    (lambda d: d["0"]["files"][0].update(path="toolmeta.json"), "toolmeta.json"),
    (lambda d: d["0"]["files"][0].update(type="audio"), "only images are understood"),
    (lambda d: d["7"]["dialogs"][2]["content"].update(content="../x.jpg"), "dialog '7': .*outside"),
    (lambda d: function(d).update(name="OCRR"), "'0': turn 1: tool 'OCRR' .* mean 'OCR'"),
    (lambda d: function(d).update(arguments={"img": "x"}), "no argument 'img'; did you mean 'im"),
    (lambda d: function(d).update(arguments={}), "OCR: argument 'image' is missing"),
    (lambda d: function(d).update(arguments={"image": [1]}), "argument 'image' is a list"),
    (lambda d: function(d).update(arguments=None), "key 'arguments': expected an object"),
    (lambda d: turn(d, "0", 2).update(name="Calculator"), "turn 2: a return of 'Calculator'"),
    (lambda d: turn(d, "0", 2)["content"].update(type="sound"), "text or image, not 'sound'"),
    (lambda d: turn(d, "0", 0).update(role="judge"), "turn 0: key 'role': 'judge'"),
    (lambda d: turn(d, "0", 0).update(content=None), "turn 0: key 'content': expected text"),
    (lambda d: turn(d, "0", 1).update(thought=3), "key 'thought': expected text"),
    (lambda d: d["0"]["dialogs"].pop(0), "turn 0: a call before the user has said anything"),
    (lambda d: d["0"].pop("dialogs"), "dialog '0': key 'dialogs': expected a list"),
    (lambda d: d.update({"0": []}), "dialog '0': entry: expected an object"),
    (lambda d: [d.pop(key) for key in "0179"], "no dialog calls a tool"),
]


@pytest.mark.parametrize(("edit", "message"), MISTAKES)
def test_mistakes_are_named(gta_folder: Path, edit: Callable[[Any], Any], message: str) -> None:
    change(gta_folder, edit)
    with pytest.raises(ValueError, match=message) as caught:
        read_gta(gta_folder)
    assert "dataset.json" in str(caught.value)


def test_a_link_out_of_the_folder_is_refused(gta_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (gta_folder / "image/image_1.jpg").unlink()
    (gta_folder / "image/image_1.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(ValueError, match="points outside"):
        read_gta(gta_folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset.json", None, "dataset.json: no such file; a GTA folder has one"),
        ("toolmeta.json", None, "toolmeta.json: no such file"),
        ("dataset.json", "{", "dataset.json cannot be read"),
        ("dataset.json", "[" * 100_000, "dataset.json cannot be read"),
        ("dataset.json", "[]", "dataset.json: expected an object"),
        ("toolmeta.json", '{"OCR": {"inputs": 3}}', "tool 'OCR': key 'inputs': expected a list"),
    ],
)
def test_broken_files_are_named(
    gta_folder: Path, name: str, content: str | None, message: str
) -> None:
    (gta_folder / name).unlink()
    if content is not None:
        (gta_folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_gta(gta_folder)
