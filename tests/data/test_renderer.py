"""Sampled scenes obey their layout, and the picture shows what the scene says."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from fastmpi.data import layouts
from fastmpi.data.camera import CLEVR_CAMERA, QUADRANT_CAMERA, Camera
from fastmpi.data.raycast import GROUND, RADIUS, cast, outline
from fastmpi.data.renderer import COLORS, render_object, render_scene, sample_scene
from fastmpi.data.scenes import CLEVR_ATTRIBUTES, CLEVR_DIRECTIONS, Scene, SceneObject, load_scenes

SIZE = (64, 64)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def single(shape="sphere", color="red", size="large", material="rubber") -> SceneObject:
    return SceneObject(shape, color, size, material, (0, 0, 0), (0, 0, 0.35), 20.0)


@pytest.mark.parametrize("camera", [CLEVR_CAMERA, QUADRANT_CAMERA])
def test_back_projection_inverts_projection(camera: Camera) -> None:
    point = camera.back_project((17.0, 40.5), SIZE, z=0.35)
    assert point[2] == 0.35
    np.testing.assert_allclose(camera.project([point], SIZE)[0, :2], (17.0, 40.5), atol=1e-9)


def test_the_base_camera_centres_the_origin() -> None:
    np.testing.assert_allclose(CLEVR_CAMERA.project([(0, 0, 0)], (480, 320))[0, :2], (240, 160))


@pytest.mark.skipif("FASTMPI_CLEVR_DIR" not in os.environ, reason="FASTMPI_CLEVR_DIR is not set")
def test_the_base_camera_is_clevrs_up_to_its_jitter() -> None:
    scenes = load_scenes(os.environ["FASTMPI_CLEVR_DIR"], "val", limit=60)
    objects = [item for scene in scenes for item in scene.objects]
    there = np.array([item.pixel_coords for item in objects])[:, :2] + 0.5
    here = CLEVR_CAMERA.project([item.coords_3d for item in objects], (240, 160))[:, :2]
    assert np.abs((here - there).mean(0)).max() < 1.0
    assert np.abs(here - there).mean() < 4.0


@pytest.mark.parametrize("seed", range(20))
def test_quadrants_hold_one_whole_object_each(seed: int) -> None:
    scene = sample_scene(rng(seed), 4, layout="quadrants")
    hits = cast(scene.objects, QUADRANT_CAMERA, SIZE, 1)
    cells = set()
    for number, item in enumerate(scene.objects):
        rows, columns = np.nonzero(hits.index == number)
        assert len(rows) >= 20
        assert len(set(rows // 32)) == len(set(columns // 32)) == 1
        assert abs(columns.mean() + 0.5 - item.pixel_coords[0]) < 2.0
        cells.add((rows[0] // 32, columns[0] // 32))
    assert len(cells) == 4


def test_quadrants_jitter_reaches_the_cell_edges() -> None:
    small = {"size": ("small",)}
    places = np.array(
        [sample_scene(rng(s), 1, small, "quadrants").objects[0].pixel_coords for s in range(200)]
    )
    within = places[:, :2] % 32
    assert within.min() < 7 and within.max() > 25


def test_free_scenes_keep_clevrs_distances_and_stay_inside() -> None:
    for seed in range(4):
        scene = sample_scene(rng(seed), 5, {"size": ("large",)})
        camera = Camera.from_json(scene.camera or {})
        assert np.abs(np.subtract(camera.position, CLEVR_CAMERA.position)).max() <= 0.5
        hits = cast(scene.objects, camera, (120, 80), 1)
        for number, item in enumerate(scene.objects):
            assert (hits.index == number).sum() >= 12
            left, top, right, bottom = outline(item, camera, (480, 320))
            assert min(left, top) > -1 and right < 481 and bottom < 321
        for i, item in enumerate(scene.objects):
            for other in scene.objects[:i]:
                between = np.subtract(item.coords_3d, other.coords_3d)[:2]
                gap = np.linalg.norm(between) - RADIUS[item.size] - RADIUS[other.size]
                assert gap >= 0.25
                for way in ("left", "front"):
                    assert abs(between @ CLEVR_DIRECTIONS[way][:2]) >= 0.4
        related = {b for rows in scene.relationships.values() for row in rows for b in row}
        assert related == set(range(5))


def test_sampling_is_deterministic_and_respects_attributes() -> None:
    only = {"color": ("red", "cyan"), "shape": ("cube",)}
    scene = sample_scene(rng(3), 4, only, "quadrants")
    assert scene == sample_scene(rng(3), 4, only, "quadrants")
    assert {item.shape for item in scene.objects} == {"cube"}
    assert {item.color for item in scene.objects} <= {"red", "cyan"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_objects": 5, "layout": "quadrants"}, "at most 4"),
        ({"num_objects": 2, "layout": "quadrants", "size": (64, 32)}, "64 x 32"),
        ({"num_objects": 2, "size": (96, 8)}, "96 x 8"),
        ({"num_objects": 2, "layout": "ring"}, "'ring' is none of"),
        ({"num_objects": 2, "attributes": {"color": ("pink",)}}, "pink"),
        ({"num_objects": 2, "attributes": {"weight": ("heavy",)}}, "weight"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_scene(rng(), **arguments)


def test_too_many_objects_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "MAX_TRIES", 20)
    with pytest.raises(ValueError, match="60 objects found no place in 20 tries"):
        sample_scene(rng(), 60, {"size": ("large",)})


def test_a_scene_is_always_the_same_picture() -> None:
    scene = sample_scene(rng(1), 3, layout="quadrants")
    first, second = render_scene(scene), render_scene(scene)
    assert first.size == SIZE and first.mode == "RGB"
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("color", COLORS)
def test_an_object_shows_its_colour(color: str) -> None:
    for material in CLEVR_ATTRIBUTES["material"]:
        item = single(color=color, material=material)
        crop = np.asarray(render_object(item, (32, 32)), float)[11:22, 11:22].reshape(-1, 3)
        mean = np.median(crop, axis=0)
        nearest = min(
            COLORS, key=lambda name: 1 - _cosine(mean, COLORS[name]) + 1e-3 * (name == "gray")
        )
        assert nearest == color


def _cosine(a, b) -> float:
    a, b = np.asarray(a, float), np.asarray(b, float)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_attributes_change_the_picture() -> None:
    base = np.asarray(render_object(single("cube"), (32, 32)), float)
    for change in ({"shape": "cylinder"}, {"size": "small"}, {"material": "metal"}):
        other = np.asarray(render_object(replace(single("cube"), **change), (32, 32)), float)
        assert np.abs(base - other).mean() > 2.5


def test_nearer_objects_hide_farther_ones() -> None:
    far = replace(single("cube"), coords_3d=(-0.6, 0.52, 0.7))
    near = replace(single("cylinder"), coords_3d=(0.6, -0.52, 0.7))
    only_near = cast((near,), CLEVR_CAMERA, SIZE, 1).index == 0
    only_far = cast((far,), CLEVR_CAMERA, SIZE, 1).index == 0
    assert (only_near & only_far).any()
    for order in ((far, near), (near, far)):
        index = cast(order, CLEVR_CAMERA, SIZE, 1).index
        np.testing.assert_array_equal(index == order.index(near), only_near)
        np.testing.assert_array_equal(index == order.index(far), only_far & ~only_near)


def test_the_ground_is_grey_and_darker_in_the_shadow() -> None:
    item = replace(single(), coords_3d=(0, 0, 0.7))
    empty = np.asarray(render_scene(Scene(()), SIZE), float)
    full = np.asarray(render_scene(Scene((item,)), SIZE), float)
    assert np.ptp(empty, axis=-1).max() == 0
    ground = cast((item,), CLEVR_CAMERA, SIZE, 1).index == GROUND
    inner = ground & np.roll(ground, 1, 0) & np.roll(ground, -1, 0) & np.roll(ground, 1, 1)
    inner &= np.roll(ground, -1, 1)
    assert (full <= empty + 1)[inner].all()
    assert (full < empty - 30)[inner].any()
