"""CLEVR-like pictures without Blender: `sample_scene`, then `render_scene`.

CLEVR's shapes, colours and camera on a grey ground under one light; metal mirrors a bright sky and
has a sharp highlight, rubber is matt. Rendering has no randomness: a scene is always the same
picture. It resembles CLEVR, and makes no claim to replace it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastmpi.data.camera import CLEVR_CAMERA, Camera
from fastmpi.data.layouts import sample_scene
from fastmpi.data.raycast import GROUND, RADIUS, Hits, cast
from fastmpi.data.scenes import Scene, SceneObject

__all__ = ["COLORS", "render_object", "render_scene", "sample_scene"]

Array = npt.NDArray[Any]

COLORS = {  # CLEVR's own RGB values
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
GROUND_LEVEL = 0.56  # grey of the ground under full light, of 1


def _unit(*vector: float) -> Array:
    return (np.asarray(vector) / np.linalg.norm(vector)).astype(np.float32)


# From the left, in front and above, as the base camera sees it.
LIGHT = _unit(0.1, -0.9, 1.15)
# An upright strip of light that walls of metal mirror.
WINDOW = _unit(0.98, -0.2)


def render_scene(
    scene: Scene, size: tuple[int, int] | None = None, *, supersample: int = 2
) -> Image.Image:
    """The RGB picture of `scene` at `size` (width, height), by default the scene's own.

    A scene without a camera is seen by CLEVR's base camera.
    """
    size = size or scene.image_size or (480, 320)
    camera = Camera.from_json(scene.camera) if scene.camera else CLEVR_CAMERA
    hits = cast(scene.objects, camera, size, supersample)
    colors = _shade(scene.objects, hits, camera)
    each = range(supersample)
    colors = np.stack([colors[i::supersample, j::supersample] for i in each for j in each]).mean(0)
    return Image.fromarray((colors.clip(0, 1) * 255).round().astype(np.uint8))


def render_object(item: SceneObject, size: tuple[int, int]) -> Image.Image:
    """`item` alone, large and in the middle, as a picture of its attributes.

    The camera's distance does not depend on the object, so small objects stay small.
    """
    radius = RADIUS[item.size]
    centred = SceneObject(
        item.shape,
        item.color,
        item.size,
        item.material,
        pixel_coords=(size[0] / 2, size[1] / 2, 0.0),
        coords_3d=(0.0, 0.0, radius),
        rotation=item.rotation,
    )
    camera = Camera((4.8, -4.18, 4.2), (0.0, 0.0, 0.5), focal_mm=70.0)
    return render_scene(Scene((centred,), camera=camera.to_json()), size)


def _shade(objects: tuple[SceneObject, ...], hits: Hits, camera: Camera) -> Array:
    ground = hits.index == GROUND
    colors = np.empty(hits.point.shape, np.float32)
    colors[ground] = _ground(objects, hits.point[ground])[:, None]
    for number, item in enumerate(objects):
        shown = hits.index == number
        parts = (hits.point[shown], hits.normal[shown], hits.roundness[shown])
        colors[shown] = _surface(item, *parts, camera)
    return colors


def _ground(objects: tuple[SceneObject, ...], points: Array) -> Array:
    """Grey level: dimmer with the distance, darkened by a soft shadow beside each object."""
    x, y = points[:, 0], points[:, 1]
    level = GROUND_LEVEL * (1.08 - 0.02 * np.hypot(x, y).clip(0, 12))
    for item in objects:
        radius = np.float32(RADIUS[item.size])
        cx, cy = np.asarray(item.coords_3d[:2], np.float32) - LIGHT[:2] / LIGHT[2] * radius * 0.6
        spread = ((x - cx) ** 2 + (y - cy) ** 2) / (1.25 * radius) ** 2
        level *= 1 - 0.5 * np.exp(-spread)
    return level


def _surface(
    item: SceneObject, points: Array, normals: Array, roundness: Array, camera: Camera
) -> Array:
    color = np.asarray(COLORS[item.color], np.float32) / 255
    if item.material == "rubber":
        diffuse = (normals @ LIGHT).clip(0)
        return color * (0.5 + 0.55 * diffuse)[:, None]
    return _metal(color, points, normals + 0.5 * roundness, camera)


def _metal(color: Array, points: Array, normals: Array, camera: Camera) -> Array:
    """Metal mirrors a dark horizon and a bright sky.

    Its normals come blended with the direction from the centre: CLEVR's edges are bevelled, and a
    perfectly flat mirror would show one colour.
    """
    normals = normals / np.linalg.norm(normals, axis=-1, keepdims=True)
    view = points - np.asarray(camera.position, np.float32)
    view /= np.linalg.norm(view, axis=-1, keepdims=True)
    mirrored = view - 2 * (view * normals).sum(-1, keepdims=True) * normals
    sky = np.abs(mirrored[:, 2]) ** 1.5
    toward = (mirrored @ LIGHT).clip(0)
    strip = (normals[:, :2] @ WINDOW).clip(0) ** 20
    body = color * (0.3 + 0.25 * (normals @ LIGHT).clip(0) + 0.6 * sky)[:, None]
    return body + (0.75 * toward**24 + 0.25 * toward**5 + 0.6 * strip)[:, None]
