"""Pictures in policies: the right object, whole, in the place of its value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from fastmpi.data.layouts import sample_scene
from fastmpi.data.renderer import COLORS, render_scene
from fastmpi.data.scenes import Scene, image_filename, save_scenes
from fastmpi.policies import PolicySet
from fastmpi.policies.clevr_data import ClevrPolicyConfig, build, generate
from fastmpi.policies.clevr_pictures import (
    choose_pictured,
    clevr_policy,
    crop,
    cropped_picture,
    rendered_picture,
)
from fastmpi.policies.clevr_text import policy_text
from fastmpi.policies.clevr_tree import ClevrTree

SIZE = (240, 160)


@pytest.fixture(scope="module")
def clevr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLEVR folder of 24 rendered scenes; half of the pictures are JPEG."""
    folder = tmp_path_factory.mktemp("clevr")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        scenes = []
        for index in range(12):
            scene = sample_scene(rng, 4, size=SIZE)
            path = folder / "images" / split / image_filename(split, index)
            path = path.with_suffix(".jpg") if index % 2 else path
            render_scene(scene, supersample=1).save(path)
            scenes.append(replace(scene, image=path, index=index))
        save_scenes(scenes, folder, split)
    return folder


def scene_of(folder: Path, **attributes: tuple[str, ...]) -> Scene:
    scene = sample_scene(np.random.default_rng(0), 1, attributes, size=SIZE)
    path = folder / "scene.png"
    render_scene(scene).save(path)
    return replace(scene, image=path)


def hue(picture: PIL.Image.Image) -> str:
    """The CLEVR color that the middle of a picture is nearest to, up to its brightness."""
    pixels = np.asarray(picture, float)
    height, width = pixels.shape[:2]
    middle = pixels[height // 2 - 2 : height // 2 + 3, width // 2 - 2 : width // 2 + 3]
    color = np.median(middle.reshape(-1, 3), axis=0)
    directions = {name: np.array(rgb) / np.linalg.norm(rgb) for name, rgb in COLORS.items()}
    return max(directions, key=lambda name: float(color @ directions[name]))


@pytest.mark.parametrize("color", ["red", "cyan", "purple"])
def test_a_crop_holds_the_whole_object_in_the_middle(tmp_path: Path, color: str) -> None:
    scene = scene_of(tmp_path, color=(color,), material=("rubber",))
    picture = crop(scene, scene.objects[0])
    assert hue(picture) == color
    edge = np.concatenate([np.asarray(picture, float)[i] for i in (0, -1)])
    assert np.ptp(edge, axis=-1).max() < 12  # nothing but grey ground


def test_a_crop_shows_the_size(tmp_path: Path) -> None:
    def share(size: str) -> float:
        scene = scene_of(tmp_path, color=("cyan",), size=(size,), shape=("sphere",))
        return float((np.ptp(np.asarray(crop(scene, scene.objects[0]), int), axis=-1) > 30).mean())

    assert share("large") > 2.5 * share("small")


def test_a_crop_stays_inside_the_picture(tmp_path: Path) -> None:
    scene = scene_of(tmp_path)
    corner = replace(scene.objects[0], pixel_coords=(1.0, 159.0, 8.0))
    picture = crop(scene, corner)
    assert 0 < picture.width < 40 and 0 < picture.height < 40


def test_a_value_that_no_scene_has_is_an_error(tmp_path: Path) -> None:
    scene = scene_of(tmp_path, color=("red",))
    with pytest.raises(ValueError, match="no scene has an object of color 'blue'"):
        cropped_picture(np.random.default_rng(0), [scene], "color", "blue")


@pytest.mark.parametrize("color", ["red", "blue", "green"])
def test_a_rendered_picture_has_the_value(color: str) -> None:
    rng = np.random.default_rng(0)
    only = {"material": ("rubber",)}
    assert hue(rendered_picture(rng, "color", color, (48, 48), only)) == color


def test_pictures_stand_in_the_place_of_their_values() -> None:
    tree = ClevrTree.sample(np.random.default_rng(0), 2, "kavo")
    asked = []

    def picture_of(attribute: str, value: str) -> PIL.Image.Image:
        asked.append((attribute, value))
        return PIL.Image.new("RGB", (2, 2))

    policy = clevr_policy(tree, "compact", pictured=frozenset({"1", "1.2"}), picture_of=picture_of)
    nodes = {node.id: node for node in tree.nodes()}
    assert asked == [(nodes[i].attribute, nodes[i].value) for i in ("1", "1.2")]
    assert f"C1 if {nodes['1'].attribute} <image> then" in policy.text
    assert f"C1.1 if {nodes['1.1'].value} then" in policy.text


def test_a_policy_without_pictures_is_its_text() -> None:
    tree = ClevrTree.sample(np.random.default_rng(0), 4, "L4-Kavo")
    policy = clevr_policy(tree)
    assert policy.text == policy_text(tree) and policy.images == []
    assert ClevrTree.from_json(policy.metadata["tree"]) == tree


def test_the_share_of_pictured_conditions() -> None:
    rng = np.random.default_rng(0)
    tree = ClevrTree.sample(rng, 4, "t")
    ids = {node.id for node in tree.nodes()}
    for rate, count in ((0.01, 1), (0.5, round(len(ids) / 2)), (1.0, len(ids))):
        chosen = choose_pictured(rng, tree, rate)
        assert len(chosen) == count and chosen <= ids


def test_a_data_set_from_a_clevr_folder(clevr: Path, tmp_path: Path) -> None:
    config = ClevrPolicyConfig(
        output_dir=str(tmp_path / "set"), num_policies=2, variant="M", num_train=8, num_test=6,
        clevr_dir=str(clevr),
    )  # fmt: skip
    folder = generate(config)
    copied = [path for path in (folder / "images").iterdir() if path.is_file()]
    assert len(copied) == 14 and {path.suffix for path in copied} == {".png", ".jpg"}
    originals = {p.read_bytes() for p in (clevr / "images").rglob("*") if p.is_file()}
    assert all(path.read_bytes() in originals for path in copied)
    policies = PolicySet.from_jsonl(folder / "policies.jsonl")
    assert all(len(policy.images) == 2 for policy in policies.values())


def test_one_split_is_cut_in_two(clevr: Path) -> None:
    config = ClevrPolicyConfig(
        num_policies=2, num_train=6, num_test=6, clevr_dir=str(clevr), test_split="train"
    )
    data = build(config)
    images = [scene.image for scene in data.scenes.values()]
    assert len(set(images)) == 12
    with pytest.raises(ValueError, match="7 scenes are asked for, and there are 6"):
        build(replace(config, num_train=7))
