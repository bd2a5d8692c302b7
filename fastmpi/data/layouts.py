"""Random scenes: CLEVR's own free placement, and one object per quadrant for small pictures.

`free` follows CLEVR's generator: positions in [-3, 3]^2, rejected where objects come too close,
hide behind one another or leave the picture; the camera moves by up to half a unit. `quadrants`
gives every object its own quarter of the picture, with jitter: at 64x64 a model whose visual
tokens cover 32x32 pixels each sees one object per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fastmpi.data.camera import CLEVR_CAMERA, QUADRANT_CAMERA, Camera
from fastmpi.data.raycast import RADIUS, cast, outline
from fastmpi.data.scenes import (
    CLEVR_ATTRIBUTES,
    CLEVR_DIRECTIONS,
    Attributes,
    Scene,
    SceneObject,
    spatial_relationships,
)

LAYOUTS = ("free", "quadrants")
DEFAULT_SIZE = {"free": (480, 320), "quadrants": (64, 64)}

REACH = 3.0  # objects stand in [-REACH, REACH]^2
CAMERA_JITTER = 0.5
MIN_GAP = 0.25  # between the outlines of two objects on the ground
MIN_MARGIN = 0.4  # between two objects along each of the four directions
MIN_VISIBLE = 200 / (480 * 320)  # of the picture's area, per object
MAX_TRIES = 200
ORIGIN = (0.0, 0.0, 0.0)


def sample_scene(
    rng: np.random.Generator,
    num_objects: int,
    attributes: Attributes = CLEVR_ATTRIBUTES,
    layout: str = "free",
    size: tuple[int, int] | None = None,
) -> Scene:
    """Draw a scene of `num_objects` objects whose attributes are uniform over `attributes`.

    An attribute missing from `attributes` is uniform over CLEVR's values. Layout, size and
    errors are those of `place_objects`; an unknown value is a `ValueError` as well.
    """
    return place_objects(rng, sample_objects(rng, num_objects, attributes), layout, size)


def sample_objects(
    rng: np.random.Generator, num_objects: int, attributes: Attributes = CLEVR_ATTRIBUTES
) -> list[SceneObject]:
    """Draw objects that stand nowhere yet: attributes alone."""
    values = checked_attributes(attributes)
    return [
        unplaced({name: str(rng.choice(choices)) for name, choices in values.items()})
        for _ in range(num_objects)
    ]


def unplaced(values: Mapping[str, str]) -> SceneObject:
    """An object with these attributes, at the origin until it is placed."""
    return SceneObject(**values, pixel_coords=ORIGIN, coords_3d=ORIGIN, rotation=0.0)


def place_objects(
    rng: np.random.Generator,
    objects: Sequence[SceneObject],
    layout: str = "free",
    size: tuple[int, int] | None = None,
) -> Scene:
    """Turn and place objects at random, keeping their order and their attributes.

    `size` (width, height) is the picture that `pixel_coords` refer to, by default (480, 320), or
    (64, 64) for `quadrants`. Raises `ValueError` for an unknown layout, for more objects than
    fit, for a picture below 16 pixels, and in `quadrants` for more than four objects and for a
    picture that is not square.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is none of {', '.join(LAYOUTS)}")
    size = size or DEFAULT_SIZE[layout]
    if min(size) < 16 or (layout == "quadrants" and size[0] != size[1]):
        raise ValueError(f"a picture of {size[0]} x {size[1]} pixels does not suit {layout!r}")
    return (_quadrants if layout == "quadrants" else _free)(rng, objects, size)


def checked_attributes(attributes: Attributes) -> dict[str, tuple[str, ...]]:
    """CLEVR's attributes, narrowed to the given ones; `ValueError` for an unknown name or value."""
    for name, values in attributes.items():
        unknown = sorted(set(values) - set(CLEVR_ATTRIBUTES.get(name, ())))
        if unknown or not values or name not in CLEVR_ATTRIBUTES:
            raise ValueError(f"attribute {name!r}: CLEVR has no such value(s) {unknown}")
    return {name: tuple(attributes.get(name, values)) for name, values in CLEVR_ATTRIBUTES.items()}


def _quadrants(
    rng: np.random.Generator, objects: Sequence[SceneObject], size: tuple[int, int]
) -> Scene:
    if len(objects) > 4:
        raise ValueError(f"layout 'quadrants' holds at most 4 objects, not {len(objects)}")
    cells = rng.permutation(4)[: len(objects)]
    placed = [
        _in_cell(rng, item, (int(cell) % 2, int(cell) // 2), size)
        for item, cell in zip(objects, cells, strict=True)
    ]
    return _scene(placed, QUADRANT_CAMERA, size)


def _in_cell(
    rng: np.random.Generator, item: SceneObject, cell: tuple[int, int], size: tuple[int, int]
) -> SceneObject:
    """Turn the object, then move it uniformly over the places that keep it inside its cell."""
    width, height = size[0] / 2, size[1] / 2
    corner = np.array([cell[0] * width, cell[1] * height])
    rotation = float(rng.uniform(0, 360))
    middle = (corner[0] + width / 2, corner[1] + height / 2)
    place = QUADRANT_CAMERA.back_project(middle, size, RADIUS[item.size])
    item = replace(item, coords_3d=place, rotation=rotation)
    left, top, right, bottom = outline(item, QUADRANT_CAMERA, size)
    # One pixel of margin: the outline changes a little with the place.
    low = corner + 1 + np.subtract(middle, (left, top))
    high = corner + (width, height) - 1 - np.subtract((right, bottom), middle)
    pixel = rng.uniform(np.minimum(low, high), np.maximum(low, high))
    place = QUADRANT_CAMERA.back_project((pixel[0], pixel[1]), size, place[2])
    return replace(item, coords_3d=place)


def _free(rng: np.random.Generator, objects: Sequence[SceneObject], size: tuple[int, int]) -> Scene:
    for _ in range(MAX_TRIES):
        shift = rng.uniform(-CAMERA_JITTER, CAMERA_JITTER, 3)
        x, y, z = (float(v) for v in np.add(CLEVR_CAMERA.position, shift))
        camera = replace(CLEVR_CAMERA, position=(x, y, z))
        placed = _place_all(rng, objects)
        if placed is not None and _all_visible(placed, camera, size):
            return _scene(placed, camera, size)
    raise ValueError(f"{len(objects)} objects found no place in {MAX_TRIES} tries; use fewer")


def _place_all(
    rng: np.random.Generator, objects: Sequence[SceneObject]
) -> list[SceneObject] | None:
    placed: list[SceneObject] = []
    for item in objects:
        for _ in range(MAX_TRIES):
            x, y = rng.uniform(-REACH, REACH, 2)
            place = (float(x), float(y), RADIUS[item.size])
            candidate = replace(item, coords_3d=place, rotation=float(rng.uniform(0, 360)))
            if all(_apart(candidate, other) for other in placed):
                placed.append(candidate)
                break
        else:
            return None
    return placed


def _apart(a: SceneObject, b: SceneObject) -> bool:
    between = np.subtract(a.coords_3d, b.coords_3d)[:2]
    if np.linalg.norm(between) - RADIUS[a.size] - RADIUS[b.size] < MIN_GAP:
        return False
    ways = [CLEVR_DIRECTIONS[name][:2] for name in ("left", "front")]
    return all(abs(between @ way) >= MIN_MARGIN for way in ways)


def _all_visible(objects: list[SceneObject], camera: Camera, size: tuple[int, int]) -> bool:
    """Whether each object lies inside the picture and shows enough pixels, on a small picture."""
    small = (max(size[0] // 4, 32), max(size[1] // 4, 32))
    for item in objects:
        left, top, right, bottom = outline(item, camera, small)
        if min(left, top) < 0 or right > small[0] or bottom > small[1]:
            return False
    index = cast(tuple(objects), camera, small, 1).index
    counts = np.bincount(index[index >= 0].ravel(), minlength=len(objects))
    return bool((counts >= MIN_VISIBLE * small[0] * small[1]).all())


def _scene(objects: list[SceneObject], camera: Camera, size: tuple[int, int]) -> Scene:
    pixels = camera.project([item.coords_3d for item in objects] or np.empty((0, 3)), size)
    placed = tuple(
        replace(item, pixel_coords=(float(x), float(y), float(depth)))
        for item, (x, y, depth) in zip(objects, pixels, strict=True)
    )
    return Scene(
        placed,
        relationships=spatial_relationships(placed),
        camera=camera.to_json(),
        image_size=size,
    )
