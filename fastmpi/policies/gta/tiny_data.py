"""Rows and pictures of the tiny world's tool policy, in the numbers that are asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from fastmpi.data.layouts import sample_scene
from fastmpi.data.renderer import render_scene
from fastmpi.data.scenes import Scene
from fastmpi.policies.clevr_world import WORLDS
from fastmpi.policies.gta.dialogs import PictureSource
from fastmpi.policies.gta.policy import GTAPolicy
from fastmpi.policies.gta.rows import Row
from fastmpi.policies.gta.tiny import sample_row
from fastmpi.policies.gta.tiny_queries import answerable

MAX_SCENES = 1000


def tiny_rows(
    rng: np.random.Generator, policy: GTAPolicy, count: int, split: str
) -> tuple[list[Row], dict[str, PictureSource]]:
    """`count` rows, each with a scene of its own, and their pictures; the tools take turns."""
    tools = list(policy.tools)
    rows: list[Row] = []
    pictures: dict[str, PictureSource] = {}
    order: list[str] = []
    for number in range(count):
        order = order or [tools[int(i)] for i in rng.permutation(len(tools))]
        tool, name = order.pop(), f"images/{split}_{number:06d}.png"
        scene = _scene_for(rng, tool)
        row_id = f"{split}-{number}"
        rows.append(sample_row(rng, policy, scene, row_id=row_id, image=name, tool=tool))
        pictures[name] = _drawing(scene)
    return rows, pictures


def _scene_for(rng: np.random.Generator, tool: str) -> Scene:
    """A scene of the tiny world that a query of `tool` can be about."""
    world = WORLDS["tiny"]
    for _ in range(MAX_SCENES):
        num_objects = int(rng.integers(world.num_objects[0], world.num_objects[1] + 1))
        where = (world.attributes, world.layout, world.image_size)
        scene = sample_scene(rng, num_objects, *where)
        if answerable(tool, scene):
            return scene
    raise ValueError(f"no scene for a query of {tool} in {MAX_SCENES} draws")


def _drawing(scene: Scene) -> Callable[[], Image.Image]:
    return lambda: render_scene(scene)
