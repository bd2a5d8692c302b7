"""Scene graphs in the layout of CLEVR_v1.0: dataclasses, JSON in and out, folders.

A CLEVR folder holds `images/<split>/` and `scenes/CLEVR_<split>_scenes.json`. The picture of a
scene is whatever `image_filename` names: PNG and JPEG may be mixed in one split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Attributes = Mapping[str, Sequence[str]]

CLEVR_ATTRIBUTES: Attributes = {
    "shape": ("cube", "sphere", "cylinder"),
    "color": ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow"),
    "size": ("small", "large"),
    "material": ("rubber", "metal"),
}

# CLEVR writes the directions of its base camera into every scene, also where the camera moved.
CLEVR_DIRECTIONS: Mapping[str, tuple[float, float, float]] = {
    "behind": (-0.75449, 0.65631, 0.0),
    "front": (0.75449, -0.65631, 0.0),
    "left": (-0.65631, -0.75449, 0.0),
    "right": (0.65631, 0.75449, 0.0),
    "above": (0.0, 0.0, 1.0),
    "below": (0.0, 0.0, -1.0),
}

# CLEVR's generator calls an object left of another only beyond this distance, in scene units.
RELATION_MARGIN = 0.2

Vector = tuple[float, float, float]
Relationships = Mapping[str, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class SceneObject:
    """One object: its four attributes, and where it stands.

    `pixel_coords` are x, y in pixels and the depth in scene units; `coords_3d` is the centre in
    scene units; `rotation` is about the vertical axis in degrees.
    """

    shape: str
    color: str
    size: str
    material: str
    pixel_coords: Vector
    coords_3d: Vector
    rotation: float

    def has(self, attribute: str, value: str) -> bool:
        return bool(getattr(self, attribute) == value)

    def to_json(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "size": self.size,
            "material": self.material,
            "3d_coords": list(self.coords_3d),
            "rotation": self.rotation,
            "pixel_coords": list(self.pixel_coords),
            "color": self.color,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SceneObject:
        """Read one entry of `objects`; a missing key or an unknown value is a `ValueError`."""
        return cls(
            **{name: _attribute(data, name) for name in CLEVR_ATTRIBUTES},
            pixel_coords=_vector(data, "pixel_coords"),
            coords_3d=_vector(data, "3d_coords"),
            rotation=_number(data, "rotation"),
        )


@dataclass(frozen=True)
class Scene:
    """The objects of one picture. `image` is its file, None where it is yet to be rendered."""

    objects: tuple[SceneObject, ...]
    image: Path | None = None
    index: int = 0
    directions: Mapping[str, Vector] = field(default_factory=lambda: dict(CLEVR_DIRECTIONS))
    relationships: Relationships = field(default_factory=dict)
    # Only scenes of the built-in generator know their camera (position and target in scene
    # units, focal length in mm of a 32 mm sensor) and the picture size of `pixel_coords`.
    camera: Mapping[str, Any] | None = None
    image_size: tuple[int, int] | None = None

    def to_json(self, split: str = "train") -> dict[str, Any]:
        """This scene as CLEVR writes it, with `camera` and `image_size` added where known."""
        data: dict[str, Any] = {
            "split": split,
            "image_index": self.index,
            "image_filename": self.image.name if self.image else image_filename(split, self.index),
            "objects": [item.to_json() for item in self.objects],
            "directions": {name: list(value) for name, value in self.directions.items()},
            "relationships": {
                name: [list(related) for related in rows]
                for name, rows in self.relationships.items()
            },
        }
        if self.camera is not None:
            data["camera"] = dict(self.camera)
        if self.image_size is not None:
            data["image_size"] = list(self.image_size)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any], images: Path | None = None) -> Scene:
        """Read one entry of `scenes`; `images` is the folder that holds its picture."""
        objects = tuple(SceneObject.from_json(item) for item in _value(data, "objects", list))
        directions = data.get("directions", CLEVR_DIRECTIONS)
        image_size = data.get("image_size")
        return cls(
            objects=objects,
            image=_image_path(data, images) if images is not None else None,
            index=int(data.get("image_index", 0)),
            directions={name: _vector(directions, name) for name in directions},
            relationships=_relationships(data, objects, directions),
            camera=data.get("camera"),
            image_size=(int(image_size[0]), int(image_size[1])) if image_size else None,
        )


def image_filename(split: str, index: int) -> str:
    """CLEVR's name of picture `index` of `split`."""
    return f"CLEVR_{split}_{index:06d}.png"


def scenes_file(folder: str | Path, split: str) -> Path:
    return Path(folder) / "scenes" / f"CLEVR_{split}_scenes.json"


def load_scenes(folder: str | Path, split: str, limit: int | None = None) -> list[Scene]:
    """Read `scenes/CLEVR_<split>_scenes.json` of a CLEVR folder, at most `limit` scenes.

    A file that is missing, malformed or names a picture that does not exist is a `ValueError`
    that names the file and the number of the scene.
    """
    path = scenes_file(folder, split)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a CLEVR folder has one per split")
    try:
        entries = _value(json.loads(path.read_text(encoding="utf-8")), "scenes", list)
    except (json.JSONDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    images = Path(folder) / "images" / split
    entries = entries[:limit]
    return [_load_scene(path, number, entry, images) for number, entry in enumerate(entries)]


def save_scenes(scenes: Sequence[Scene], folder: str | Path, split: str) -> Path:
    """Write the scenes' JSON (not their pictures) where `load_scenes` looks for it."""
    path = scenes_file(folder, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "info": {"split": split, "version": "1.0"},
        "scenes": [scene.to_json(split) for scene in scenes],
    }
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def spatial_relationships(
    objects: Sequence[SceneObject], directions: Mapping[str, Vector] = CLEVR_DIRECTIONS
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """For each horizontal direction and object, the indices of the objects that lie that way."""
    horizontal = {k: v for k, v in directions.items() if k not in ("above", "below")}
    return {
        name: tuple(_lying(objects, here, direction) for here in objects)
        for name, direction in horizontal.items()
    }


def _lying(objects: Sequence[SceneObject], here: SceneObject, way: Vector) -> tuple[int, ...]:
    def distance(there: SceneObject) -> float:
        pairs = zip(here.coords_3d, there.coords_3d, way, strict=True)
        return sum((b - a) * w for a, b, w in pairs)

    return tuple(
        index
        for index, there in enumerate(objects)
        if there is not here and distance(there) > RELATION_MARGIN
    )


def _load_scene(path: Path, number: int, entry: Any, images: Path) -> Scene:
    try:
        return Scene.from_json(entry, images)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: scene {number}: {error}") from error


def _image_path(data: Mapping[str, Any], images: Path) -> Path:
    name = _value(data, "image_filename", str)
    path = images / name
    if Path(name).name != name:
        raise ValueError(f"image_filename {name!r} is not a plain file name")
    if not path.is_file():
        raise ValueError(f"picture {path} does not exist")
    return path


def _relationships(
    data: Mapping[str, Any], objects: Sequence[SceneObject], directions: Mapping[str, Vector]
) -> Relationships:
    if "relationships" not in data:
        return spatial_relationships(objects, directions)
    return {
        name: tuple(tuple(int(i) for i in related) for related in rows)
        for name, rows in _value(data, "relationships", dict).items()
    }


def _value(data: Any, key: str, kind: type) -> Any:
    if not isinstance(data, Mapping):
        raise ValueError(f"expected an object with key {key!r}, got {type(data).__name__}")
    if key not in data:
        raise ValueError(f"missing key {key!r}")
    if not isinstance(data[key], kind):
        raise ValueError(f"key {key!r}: expected {kind.__name__}, got {type(data[key]).__name__}")
    return data[key]


def _attribute(data: Mapping[str, Any], name: str) -> str:
    value = _value(data, name, str)
    if value not in CLEVR_ATTRIBUTES[name]:
        raise ValueError(f"key {name!r}: {value!r} is none of {', '.join(CLEVR_ATTRIBUTES[name])}")
    return str(value)


def _number(data: Mapping[str, Any], key: str) -> float:
    value = _value(data, key, object)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"key {key!r}: expected a number, got {value!r}")
    return float(value)


def _vector(data: Mapping[str, Any], key: str) -> Vector:
    value = _value(data, key, object)
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 3:
        raise ValueError(f"key {key!r}: expected three numbers, got {value!r}")
    x, y, z = (float(item) for item in value)
    return x, y, z
