"""A small GTA folder, made on the spot in GTA's own format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

INPUTS: dict[str, list[tuple[str, bool]]] = {
    "OCR": [("image", False)],
    "MathOCR": [("image", False)],
    "Calculator": [("expression", False)],
    "ImageDescription": [("image", False)],
    "CountGivenObject": [("image", False), ("text", False)],
    "DrawBox": [("image", False), ("bbox", False), ("annotation", True)],
    "AddText": [("image", False), ("text", False), ("position", False), ("color", True)],
    "Solver": [("command", False)],
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def calls(*named: tuple[str, dict[str, Any]], thought: str = "") -> dict[str, Any]:
    functions = [{"name": name, "arguments": arguments} for name, arguments in named]
    made = [{"type": "function", "function": function} for function in functions]
    return {"role": "assistant", "thought": thought, "tool_calls": made}


def returned(name: str, content: str, kind: str = "text") -> dict[str, Any]:
    return {"role": "tool", "name": name, "content": {"type": kind, "content": content}}


def dialog(images: list[str], *turns: dict[str, Any]) -> dict[str, Any]:
    answer = {"role": "assistant", "content": "Here you are."}
    files = [{"type": "image", "path": path, "url": None} for path in images]
    return {"tools": [], "files": files, "dialogs": [*turns, answer], "gt_answer": None}


def gta_dialogs() -> dict[str, Any]:
    """Calls after one another, two calls in a turn, pictures that tools made, no call at all."""
    one, two, three = "image/image_1.jpg", "image/image_2.jpg", "image/image_3.jpg"
    return {
        "0": dialog(
            [one],
            user("What do I pay?"),
            calls(("OCR", {"image": one}), thought="I should read the receipt."),
            returned("OCR", "(1, 2, 30, 12) Tea 2.50"),
            calls(("Calculator", {"expression": "2.50 * 2"})),
            returned("Calculator", "5.0"),
        ),
        "1": dialog(
            [two, three],
            user("How many cups are on both?"),
            calls(("ImageDescription", {"image": two}), ("ImageDescription", {"image": three})),
            returned("ImageDescription", "two cups"),
            returned("ImageDescription", "one cup"),
            calls(("CountGivenObject", {"image": two, "text": "cup"})),
            returned("CountGivenObject", "2"),
        ),
        "7": dialog(
            ["image/image_4.jpg"],
            user("Mark the cup and write HERE on it."),
            calls(("DrawBox", {"image": "image/image_4.jpg", "bbox": "(1, 2, 3, 4)"})),
            returned("DrawBox", "image/made_1.jpg", "image"),
            calls(
                ("AddText", {"image": "image/made_1.jpg", "text": "HERE", "position": "mt"}),
            ),
            returned("AddText", "image/made_2.jpg", "image"),
        ),
        "8": dialog(["image/image_5.jpg"], user("Thank you!")),
        "9": dialog(
            ["image/image_5.jpg"],
            user("Solve it."),
            calls(("MathOCR", {"image": "image/image_5.jpg"})),
            returned("MathOCR", "x + {1} = 2"),
            calls(("Solver", {"command": "def solution():\n    return '}{'"})),
        ),
    }


def write_gta(folder: Path, dialogs: dict[str, Any]) -> Path:
    (folder / "image").mkdir(parents=True, exist_ok=True)
    for number in range(1, 6):
        picture = Image.new("RGB", (12, 8), (40 * number, 0, 0))
        picture.save(folder / f"image/image_{number}.jpg")
    Image.new("RGB", (12, 8), (0, 0, 255)).save(folder / "image/made_1.jpg")
    tools = {
        name: {
            "name": name,
            "description": name,
            "inputs": [{"type": "text", "name": i, "optional": optional} for i, optional in inputs],
            "outputs": [{"type": "text", "name": None}],
        }
        for name, inputs in INPUTS.items()
    }
    (folder / "toolmeta.json").write_text(json.dumps(tools))
    (folder / "dataset.json").write_text(json.dumps(dialogs))
    return folder


@pytest.fixture
def gta_folder(tmp_path: Path) -> Path:
    """Five dialogs with nine calls; one picture that a tool made is there, the other is not."""
    return write_gta(tmp_path / "gta", gta_dialogs())
