"""What users of the tiny world ask of the tools, and the arguments that answer it.

    read                    OCR
    caption                 ImageDescription
    count red               CountGivenObject: what to count is in the query
    draw red cube           TextToImage: so are the keywords
    style sketch            ImageStylization: and the instruction
    search large 4          GoogleSearch: what the large object is ("red cube") is in the picture
    inspect large color     RegionAttributeDescription: where the large object is is in the picture

An object is named by a value that it alone has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastmpi.assets import ATTRIBUTES, PICTURE_SIZE
from fastmpi.data.scenes import Scene, SceneObject

IMAGE = "image/image_1.jpg"  # what calls call the one picture by
STYLES = ("sketch", "cartoon", "poster")
NUM_RESULTS = (1, 2, 4, 8)  # that a search asks for
QUERY_WORDS = ("read", "caption", "count", "draw", "style", "search", "inspect", *STYLES)
VALUES = tuple(value for values in ATTRIBUTES.values() for value in values)

Query = tuple[str, dict[str, Any]]
"""The words of a query, and the arguments of its call."""


def answerable(tool: str, scene: Scene) -> bool:
    """Whether there is a query of `tool` about `scene`: two need an object that stands out."""
    return tool not in ("GoogleSearch", "RegionAttributeDescription") or bool(standing_out(scene))


def standing_out(scene: Scene) -> list[tuple[SceneObject, str, str]]:
    """The objects that alone have a value, with attribute and value."""
    pairs = [(name, value) for name, values in ATTRIBUTES.items() for value in values]
    having = [([o for o in scene.objects if o.has(*pair)], *pair) for pair in pairs]
    return [(items[0], name, value) for items, name, value in having if len(items) == 1]


def sample_query(rng: np.random.Generator, tool: str, scene: Scene) -> Query:
    """A query of `tool` about `scene`. `ValueError` for a tool that the tiny world has not."""
    if tool in ("OCR", "ImageDescription"):
        return ("read" if tool == "OCR" else "caption"), {"image": IMAGE}
    if tool == "CountGivenObject":
        value = str(rng.choice(VALUES))
        return f"count {value}", {"image": IMAGE, "text": value}
    if tool == "TextToImage":
        keywords = " ".join(str(rng.choice(ATTRIBUTES[name])) for name in ("color", "shape"))
        return f"draw {keywords}", {"keywords": keywords}
    if tool == "ImageStylization":
        style = str(rng.choice(STYLES))
        return f"style {style}", {"image": IMAGE, "instruction": style}
    if tool in ("GoogleSearch", "RegionAttributeDescription"):
        return (_search if tool == "GoogleSearch" else _inspect)(rng, scene)
    raise ValueError(f"the tiny world has no queries of {tool!r}")


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as JSON."""
    return json.dumps({"name": name, "arguments": dict(arguments)})


def box_text(item: SceneObject, scene: Scene) -> str:
    """The quadrant in which an object stands, in pixels: "(0, 32, 32, 64)" for the lower left."""
    width, height = scene.image_size or PICTURE_SIZE
    x, y = (int(item.pixel_coords[0] > width / 2), int(item.pixel_coords[1] > height / 2))
    half = (PICTURE_SIZE[0] // 2, PICTURE_SIZE[1] // 2)
    return str((x * half[0], y * half[1], (x + 1) * half[0], (y + 1) * half[1]))


def _search(rng: np.random.Generator, scene: Scene) -> Query:
    found = standing_out(scene)
    item, _, value = found[rng.integers(len(found))]
    count = int(rng.choice(NUM_RESULTS))
    return f"search {value} {count}", {"query": f"{item.color} {item.shape}", "k": count}


def _inspect(rng: np.random.Generator, scene: Scene) -> Query:
    found = standing_out(scene)
    item, name, value = found[rng.integers(len(found))]
    attribute = str(rng.choice([other for other in ATTRIBUTES if other != name]))
    box = box_text(item, scene)
    return f"inspect {value} {attribute}", {"image": IMAGE, "bbox": box, "attribute": attribute}
