"""Pictures for the CLEVR base's vision tower: read or drawn, cut, mirrored, and labelled by cell.

A cell of 32x32 pixels is one visual token. It is labelled with the object whose centre is nearest
to its own; no object is left without a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from clevr_base_model import CELL, MERGE, PATCH, PICTURE
from torch import Tensor

from fastmpi.data.renderer import render_scene, sample_scene
from fastmpi.data.scenes import CLEVR_ATTRIBUTES, Scene

REACH = 24  # pixels from a cell's centre to that of its object
DOUBT = 4  # beyond it, where a cell is neither an object's nor empty
EMPTY, UNSURE = -1, -2
DRAWN_SIZE = (240, 160)
NUM_OBJECTS = (2, 6)
# transformers' OPENAI_CLIP_MEAN and _STD, the defaults of Qwen's image processor
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass(frozen=True)
class Picture:
    """pixels (160, 256, 3) bytes; centres (n, 2) x, y in pixels; values (n, 4): the place of each
    object's shape, color, size and material in `CLEVR_ATTRIBUTES`."""

    pixels: np.ndarray
    centres: np.ndarray
    values: np.ndarray


def read_picture(scene: Scene) -> Picture:
    """The picture of a scene of a CLEVR folder."""
    assert scene.image is not None
    with PIL.Image.open(scene.image) as opened:
        return _picture(scene, opened.convert("RGB"))


def draw_scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    """New scenes in CLEVR's layout and camera."""
    numbers = rng.integers(NUM_OBJECTS[0], NUM_OBJECTS[1] + 1, count)
    return [sample_scene(rng, int(number), size=DRAWN_SIZE) for number in numbers]


def draw_picture(scene: Scene) -> Picture:
    """The picture that fastmpi's renderer makes of a scene, without its smoothing."""
    return _picture(scene, render_scene(scene, supersample=1))


def cut(picture: Picture, left: int, top: int, size: tuple[int, int], mirror: bool) -> Picture:
    """The window of `size` (width, height) at `left`, `top`; edges are repeated beyond."""
    height, width = picture.pixels.shape[:2]
    rows = np.arange(top, top + size[1]).clip(0, height - 1)
    columns = np.arange(left, left + size[0]).clip(0, width - 1)
    pixels, centres = picture.pixels[rows][:, columns], picture.centres - (left, top)
    if mirror:
        pixels, centres = pixels[:, ::-1], np.stack([size[0] - centres[:, 0], centres[:, 1]], 1)
    return Picture(pixels, centres, picture.values)


def cells(picture: Picture) -> np.ndarray:
    """Labels (cells,) in reading order: the number of the object, EMPTY or UNSURE."""
    height, width = picture.pixels.shape[:2]
    y, x = np.mgrid[CELL // 2 : height : CELL, CELL // 2 : width : CELL]
    centres = np.stack([x.ravel(), y.ravel()], 1)
    apart = np.linalg.norm(picture.centres[:, None] - centres, axis=-1)  # (objects, cells)
    nearest = apart.min(0)
    labels = np.where(nearest <= REACH, apart.argmin(0), EMPTY)
    labels[(nearest > REACH) & (nearest <= REACH + DOUBT)] = UNSURE
    for number in range(len(apart)):
        if number not in labels and apart[number].min() <= REACH:
            _claim(labels, apart[number], number)
    return labels


def patches(pictures: Sequence[Picture]) -> tuple[Tensor, Tensor]:
    """What the tower takes of pictures of one size: float32 patches (N, 3 * 2 * 16 * 16), grids.

    The same numbers as the base's image processor gives.
    """
    pixels = np.stack([picture.pixels for picture in pictures])
    count, height, width, _ = pixels.shape
    values = (pixels / np.float32(255) - MEAN) / STD
    down, across = height // CELL, width // CELL
    blocks = values.reshape(count, down, MERGE, PATCH, across, MERGE, PATCH, 3)
    rows = blocks.transpose(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, 3, 1, PATCH * PATCH)
    grids = torch.tensor([[1, height // PATCH, width // PATCH]] * count)
    return torch.from_numpy(rows.repeat(2, axis=2).reshape(len(rows), -1)), grids


def _picture(scene: Scene, picture: PIL.Image.Image) -> Picture:
    scale = np.divide(PICTURE, picture.size)
    resized = picture.resize(PICTURE, PIL.Image.Resampling.BICUBIC)
    names = CLEVR_ATTRIBUTES.items()
    values = [[known.index(getattr(o, name)) for name, known in names] for o in scene.objects]
    centres = np.array([item.pixel_coords[:2] for item in scene.objects]) * scale
    return Picture(np.asarray(resized), centres, np.array(values))


def _claim(labels: np.ndarray, apart: np.ndarray, number: int) -> None:
    """Give object `number` the nearest cell that is free, or whose object has another one."""
    for cell in np.argsort(apart)[:4]:
        if labels[cell] < 0 or (labels == labels[cell]).sum() > 1:
            labels[cell] = number
            return
