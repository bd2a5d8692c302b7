"""The tools of the GTA data set, and what a table of tools refuses."""

from __future__ import annotations

from typing import Any

import pytest

from fastmpi.policies.gta.tools import TOOLS, Argument, Tool, tool_table, type_of

# Name: versions, arguments; an optional argument with its default. From the paper's policy and
# from GTA's toolmeta.json.
EXPECTED: dict[str, tuple[int, list[str | tuple[str, Any]]]] = {
    "Calculator": (1, ["expression"]),
    "OCR": (5, ["image"]),
    "CountGivenObject": (4, ["image", "text"]),
    "ImageDescription": (5, ["image"]),
    "GoogleSearch": (3, ["query", ("k", 10)]),
    "RegionAttributeDescription": (2, ["image", "bbox", "attribute"]),
    "TextToBbox": (1, ["image", "text", ("top1", True)]),
    "Plot": (1, ["command"]),
    "MathOCR": (1, ["image"]),
    "Solver": (1, ["command"]),
    "DrawBox": (1, ["image", "bbox", ("annotation", None)]),
    "AddText": (1, ["image", "text", "position", ("color", "red")]),
    "TextToImage": (3, ["keywords"]),
    "ImageStylization": (3, ["image", "instruction"]),
}


def test_fourteen_types_of_thirty_two_names() -> None:
    assert set(TOOLS) == set(EXPECTED)
    assert len(TOOLS) == 14
    assert sum(len(tool.names) for tool in TOOLS.values()) == 32


@pytest.mark.parametrize("name", EXPECTED)
def test_versions_and_arguments(name: str) -> None:
    versions, arguments = EXPECTED[name]
    tool = TOOLS[name]
    shown = [(a.name, a.default) if a.optional else a.name for a in tool.arguments]
    assert (tool.name, tool.versions, shown) == (name, versions, arguments)


def test_names() -> None:
    assert TOOLS["GoogleSearch"].names == ("GoogleSearch_v1", "GoogleSearch_v2", "GoogleSearch_v3")
    assert TOOLS["Calculator"].names == ("Calculator",)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("OCR_v1", "OCR"),
        ("OCR_v5", "OCR"),
        ("Calculator", "Calculator"),
        ("OCR", None),
        ("OCR_v6", None),
        ("OCR_v0", None),
        ("OCR_v01", None),
        ("Calculator_v1", None),
        ("ocr_v1", None),
        ("OCR_v1\n", None),
        ("", None),
    ],
)
def test_type_of_a_called_name(name: str, kind: str | None) -> None:
    assert type_of(name, TOOLS) == kind


@pytest.mark.parametrize("name", TOOLS)
def test_tools_survive_json(name: str) -> None:
    assert Tool.from_json(TOOLS[name].to_json()) == TOOLS[name]


@pytest.mark.parametrize("name", ["", "a b", "v3", "OCR_v3", "3D", "OCR;", "Ünder"])
def test_tool_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ValueError, match="tool name"):
        Tool(name, "", ())


@pytest.mark.parametrize("versions", [0, -1, 1.5, True])
def test_numbers_of_versions_that_cannot_be(versions: Any) -> None:
    with pytest.raises(ValueError, match="tool Web: .* versions"):
        Tool("Web", "", (), versions)


def test_arguments_that_cannot_be() -> None:
    text = Argument("text", "text", "")
    with pytest.raises(ValueError, match="tool Web: an argument is there twice"):
        Tool("Web", "", (text, text))
    with pytest.raises(ValueError, match="type 'float'"):
        Argument("k", "float", "")
    with pytest.raises(ValueError, match="'k' has a default and is not optional"):
        Argument("k", "int", "", default=1)
    with pytest.raises(ValueError, match="argument name 'a b'"):
        Argument("a b", "int", "")


def test_a_name_is_there_once() -> None:
    with pytest.raises(ValueError, match="'Web' is there twice"):
        tool_table([Tool("Web", "", ()), Tool("Web", "", (), versions=2)])


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"name": "Web", "description": "", "arguments": [{"name": "k"}]},
        {"name": "Web", "description": "", "arguments": [], "outputs": []},
        {"name": "Web", "description": "", "arguments": None},
        {"name": 3, "description": "", "arguments": []},
    ],
)
def test_json_that_is_no_tool(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tool"):
        Tool.from_json(data)
