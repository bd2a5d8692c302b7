"""The perspective camera of CLEVR's base scene, and a steeper one for small pictures.

Fitted on scenes of CLEVR's generator: the base camera stands where Blender's default camera does,
looks at the origin without roll, with a 35 mm lens on a 32 mm sensor. World: x, y on the ground,
z up. Pixels: x right, y down, the centre of the top left pixel at (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
Vector = tuple[float, float, float]

SENSOR_MM = 32.0


@dataclass(frozen=True)
class Camera:
    """A camera at `position` that looks at `target`, both in scene units."""

    position: Vector
    target: Vector = (0.0, 0.0, 0.0)
    focal_mm: float = 35.0

    def basis(self) -> Array:
        """(3, 3): the columns are the camera's right, up and backward axes."""
        forward = np.subtract(self.target, self.position)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 0.0, 1.0))
        right = right / np.linalg.norm(right)
        return np.stack([right, np.cross(right, forward), -forward], axis=1)

    def focal_pixels(self, size: tuple[int, int]) -> float:
        return self.focal_mm / SENSOR_MM * max(size)

    def project(self, points: npt.ArrayLike, size: tuple[int, int]) -> Array:
        """World points (N, 3) to pixel x, pixel y and depth (N, 3) in a (width, height) picture."""
        local = (np.asarray(points, float) - self.position) @ self.basis()
        depth = -local[:, 2]
        scale = self.focal_pixels(size) / depth
        x = size[0] / 2 + local[:, 0] * scale
        y = size[1] / 2 - local[:, 1] * scale
        return np.stack([x, y, depth], axis=1)

    def back_project(self, pixel: tuple[float, float], size: tuple[int, int], z: float) -> Vector:
        """The point at height `z` that projects to `pixel`."""
        focal = self.focal_pixels(size)
        local = ((pixel[0] - size[0] / 2) / focal, (size[1] / 2 - pixel[1]) / focal, -1.0)
        ray = self.basis() @ local
        x, y, _ = np.asarray(self.position) + ray * (z - self.position[2]) / ray[2]
        return float(x), float(y), float(z)

    def to_json(self) -> dict[str, Any]:
        return {
            "position": list(self.position),
            "target": list(self.target),
            "focal_mm": self.focal_mm,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Camera:
        (px, py, pz), (tx, ty, tz) = data["position"], data["target"]
        return cls((px, py, pz), (tx, ty, tz), float(data["focal_mm"]))


@lru_cache(maxsize=8)
def rays(camera: Camera, size: tuple[int, int], supersample: int) -> Array:
    """Unit directions (height*s, width*s, 3) float32 through the centres of the subpixels."""
    width, height = size
    x = (np.arange(width * supersample) + 0.5) / supersample - width / 2
    y = height / 2 - (np.arange(height * supersample) + 0.5) / supersample
    grid_x, grid_y = np.meshgrid(x, y)
    back = np.full_like(grid_x, -camera.focal_pixels(size))
    directions = np.stack([grid_x, grid_y, back], axis=-1) @ camera.basis().T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    directions = directions.astype(np.float32)
    directions.flags.writeable = False  # shared by every caller through the cache
    return directions


CLEVR_CAMERA = Camera((7.4811, -6.5076, 5.3437))
# Seen from the same side, steeper, with a long lens so that size hardly changes over the picture.
QUADRANT_CAMERA = Camera((13.58, -11.81, 20.0), focal_mm=170.0)
