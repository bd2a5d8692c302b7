"""Scene JSON as CLEVR writes it. With FASTMPI_CLEVR_DIR set, a real folder is read as well."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from fastmpi.data.layouts import sample_scene
from fastmpi.data.renderer import render_scene
from fastmpi.data.scenes import (
    CLEVR_DIRECTIONS,
    Scene,
    SceneObject,
    image_filename,
    load_scenes,
    save_scenes,
    scenes_file,
    spatial_relationships,
)

CLEVR_DIR = os.environ.get("FASTMPI_CLEVR_DIR")
needs_clevr = pytest.mark.skipif(not CLEVR_DIR, reason="FASTMPI_CLEVR_DIR is not set")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A CLEVR folder of three small generated scenes; the second picture is a JPEG."""
    rng = np.random.default_rng(0)
    images = tmp_path / "images" / "val"
    images.mkdir(parents=True)
    scenes = []
    for index in range(3):
        scene = sample_scene(rng, 2 + index, layout="quadrants")
        name = image_filename("val", index)
        path = images / (name.replace("png", "jpg") if index == 1 else name)
        render_scene(scene).save(path)
        scenes.append(Scene(**{**vars(scene), "image": path, "index": index}))
    save_scenes(scenes, tmp_path, "val")
    return tmp_path


def edit(folder: Path, change) -> None:
    path = scenes_file(folder, "val")
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_saved_folder_loads_as_it_was(folder: Path) -> None:
    scenes = load_scenes(folder, "val")
    assert [len(scene.objects) for scene in scenes] == [2, 3, 4]
    assert scenes[1].image == folder / "images" / "val" / "CLEVR_val_000001.jpg"
    again = [Scene.from_json(scene.to_json("val"), folder / "images" / "val") for scene in scenes]
    assert again == scenes
    assert load_scenes(folder, "val", limit=1) == scenes[:1]


def test_json_has_the_keys_of_clevr(folder: Path) -> None:
    data = load_scenes(folder, "val")[0].to_json("val")
    expected = {"split", "image_index", "image_filename", "objects", "directions", "relationships"}
    assert expected <= set(data)
    assert set(data["objects"][0]) == {
        "shape", "size", "material", "color", "3d_coords", "pixel_coords", "rotation",
    }  # fmt: skip


def test_relationships_are_missing_in_the_file_then_computed(folder: Path) -> None:
    before = load_scenes(folder, "val")
    edit(folder, lambda data: [scene.pop("relationships") for scene in data["scenes"]])
    assert load_scenes(folder, "val") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("scenes"), "missing key 'scenes'"),
        (lambda d: d["scenes"][2].pop("objects"), "scene 2: missing key 'objects'"),
        (lambda d: d["scenes"][1]["objects"][0].update(shape="cone"), "scene 1: .*'cone' is none"),
        (lambda d: d["scenes"][1]["objects"][0].update(rotation="x"), "scene 1: key 'rotation'"),
        (lambda d: d["scenes"][0]["objects"][0].update({"3d_coords": [1]}), "key '3d_coords'"),
        (lambda d: d["scenes"][0].update(image_filename="../a.png"), "not a plain file name"),
        (lambda d: d["scenes"][0].update(image_filename="none.png"), "none.png does not exist"),
    ],
)
def test_bad_files_are_named(folder: Path, change, message: str) -> None:
    edit(folder, change)
    with pytest.raises(ValueError, match=message) as error:
        load_scenes(folder, "val")
    assert "CLEVR_val_scenes.json" in str(error.value)


def test_an_object_counts_as_left_only_beyond_the_margin() -> None:
    right = np.array(CLEVR_DIRECTIONS["right"])
    objects = [
        SceneObject("cube", "red", "small", "metal", (0, 0, 0), tuple(right * distance), 0.0)
        for distance in (0.0, 0.15, 0.5)
    ]
    related = spatial_relationships(objects)
    assert related["left"] == ((), (), (0, 1))
    assert related["right"] == ((2,), (2,), ())
    assert related["front"] == ((), (), ())
    assert set(related) == {"left", "right", "front", "behind"}


def test_a_missing_split_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="CLEVR_test_scenes.json"):
        load_scenes(folder, "test")


@needs_clevr
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_scenes(split: str) -> None:
    scenes = load_scenes(CLEVR_DIR or "", split, limit=50)
    for scene in scenes:
        computed = spatial_relationships(scene.objects, scene.directions)
        assert computed == dict(scene.relationships)
        again = Scene.from_json(scene.to_json(split), scene.image.parent if scene.image else None)
        assert again == scene
