"""Variant M of ClevrPolicy: some conditions show their value in a picture instead of naming it.

"Does any remaining object have the same color as the object in <image>?" The picture shows one
object that has the value; its other attributes are arbitrary. It is cut out of a CLEVR picture
where there is one, and rendered where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from fastmpi.data.camera import CLEVR_CAMERA, Camera
from fastmpi.data.images import load_image
from fastmpi.data.layouts import sample_objects
from fastmpi.data.raycast import RADIUS
from fastmpi.data.renderer import render_object
from fastmpi.data.scenes import CLEVR_ATTRIBUTES, Attributes, Scene, SceneObject
from fastmpi.policies.clevr_text import Part, ValuePicture, policy_parts
from fastmpi.policies.clevr_tree import ClevrTree
from fastmpi.policies.policy import Policy

PictureOf = Callable[[str, str], PIL.Image.Image]
"""From an attribute and a value to a picture of an object that has it."""

# Half the side of a crop, in scene units: a large object and a little ground. It is the same for
# small objects, or their size could not be seen.
CROP_REACH = 1.15
TRIES = 50


def clevr_policy(
    tree: ClevrTree,
    style: str = "full",
    *,
    pictured: frozenset[str] = frozenset(),
    picture_of: PictureOf | None = None,
) -> Policy:
    """The policy of `tree` as one system turn; the tree itself is kept in its metadata.

    The conditions in `pictured` (ids) show a picture from `picture_of` instead of their value.
    """
    content: list[dict[str, Any]] = []
    images: list[str | Path | PIL.Image.Image] = []
    for part in policy_parts(tree, style, pictured):
        content.append(_message_part(part))
        if isinstance(part, ValuePicture):
            assert picture_of is not None
            images.append(picture_of(part.attribute, part.value))
    metadata = {"style": style, "tree": tree.to_json()}
    return Policy(tree.name, [{"role": "system", "content": content}], images, metadata)


def choose_pictured(rng: np.random.Generator, tree: ClevrTree, rate: float) -> frozenset[str]:
    """The ids of round(rate * conditions) conditions of `tree`, at least one."""
    ids = [node.id for node in tree.nodes()]
    count = max(1, round(rate * len(ids)))
    return frozenset(str(place) for place in rng.choice(ids, count, replace=False))


def rendered_picture(
    rng: np.random.Generator,
    attribute: str,
    value: str,
    size: tuple[int, int] = (64, 64),
    attributes: Attributes = CLEVR_ATTRIBUTES,
) -> PIL.Image.Image:
    """A rendered object with this value; the rest of it is drawn from `attributes`."""
    (item,) = sample_objects(rng, 1, {**attributes, attribute: (value,)})
    turned = SceneObject(**{**vars(item), "rotation": float(rng.uniform(0, 360))})
    return render_object(turned, size)


def cropped_picture(
    rng: np.random.Generator, scenes: Sequence[Scene], attribute: str, value: str
) -> PIL.Image.Image:
    """An object with this value, cut out of the picture of one of `scenes`.

    Of a bounded number of candidates the one is taken that stands farthest from other objects.
    `ValueError` where no scene has such an object.
    """
    candidates = [
        (scene, item)
        for index in rng.permutation(len(scenes))[: 10 * TRIES]
        for scene in [scenes[index]]
        for item in scene.objects
        if item.has(attribute, value)
    ][:TRIES]
    if not candidates:
        raise ValueError(f"no scene has an object of {attribute} {value!r} for a policy's picture")
    scene, item = max(candidates, key=lambda pair: _clearance(*pair))
    return crop(scene, item)


def crop(scene: Scene, item: SceneObject) -> PIL.Image.Image:
    """The square around `item` in the picture of `scene`, shrunk where it would leave it."""
    assert scene.image is not None
    picture = load_image(scene.image)
    reach = _pixels_per_unit(item, picture.size) * CROP_REACH
    x, y = item.pixel_coords[:2]
    left, top = max(0, round(x - reach)), max(0, round(y - reach))
    right, bottom = min(picture.width, round(x + reach)), min(picture.height, round(y + reach))
    return picture.crop((left, top, right, bottom))


def _message_part(part: Part) -> dict[str, Any]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


def _pixels_per_unit(item: SceneObject, size: tuple[int, int]) -> float:
    camera: Camera = CLEVR_CAMERA  # the scenes of a CLEVR folder share its lens
    return camera.focal_pixels(size) / item.pixel_coords[2]


def _clearance(scene: Scene, item: SceneObject) -> float:
    """Distance on the picture from the nearest other object, in radii of both, roughly."""
    others = [other for other in scene.objects if other is not item]
    return min((_gap(item, other) for other in others), default=np.inf)


def _gap(a: SceneObject, b: SceneObject) -> float:
    between = float(np.hypot(*np.subtract(a.pixel_coords[:2], b.pixel_coords[:2])))
    depth = min(a.pixel_coords[2], b.pixel_coords[2])
    return between * depth / (RADIUS[a.size] + RADIUS[b.size])
