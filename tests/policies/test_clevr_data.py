"""Whole data sets: what is written can be trained on, is balanced, and follows from the seed."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from fastmpi import assets
from fastmpi.data.renderer import render_scene, sample_scene
from fastmpi.data.rows import read_rows
from fastmpi.data.scenes import image_filename, save_scenes
from fastmpi.policies import PolicySet, clevr_data
from fastmpi.policies.clevr_data import ClevrPolicyConfig, build, generate
from fastmpi.policies.clevr_override import override_trees
from fastmpi.policies.clevr_tree import ClevrTree, Leaf, Node
from fastmpi.policies.clevr_world import WORLDS, world_of

TINY = ClevrPolicyConfig(
    world="tiny", num_policies=2, num_train=16, num_cot=10, num_test=8, seed=3
)  # fmt: skip


def into(folder: Path, config: ClevrPolicyConfig = TINY, **changes) -> ClevrPolicyConfig:
    return replace(config, output_dir=str(folder), **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_files_are_a_data_set(tmp_path: Path) -> None:
    folder = generate(into(tmp_path / "set"))
    policies = PolicySet.from_jsonl(folder / "policies.jsonl")
    splits = {
        name: read_rows(
            folder / f"{name}.jsonl", policies=policies, columns=("answer", "policy_id")
        )
        for name in ("train", "train_cot", "test")
    }
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 32, "train_cot": 10, "test": 8,
    }  # fmt: skip
    assert "reasoning" not in splits["train"][0]
    assert splits["train_cot"][0]["reasoning"].startswith("C1 ")
    assert PIL.Image.open(splits["test"][0]["images"][0]).size == (64, 64)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["num_rows"]["train"] == 32
    assert set(meta["policies"]) == set(policies)
    assert list(tmp_path.iterdir()) == [folder]


def test_train_and_test_share_no_scene() -> None:
    data = build(TINY)
    train = {name for row in data.train for name in row["images"]}
    test = {name for row in data.test for name in row["images"]}
    assert len(train) == 16 and len(test) == 8
    seen = [data.scenes[name].objects for name in train | test]
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])


def test_answers_come_from_the_tree_and_outcomes_are_balanced() -> None:
    data = build(replace(TINY, num_test=64))
    for tree in data.trees:
        rows = [row for row in data.test if row["policy_id"] == tree.name]
        assert all(tree.walk(data.scenes[r["images"][0]]).case == r["answer"] for r in rows)
        counts = Counter(row["leaf"] for row in rows)
        reachable = {leaf.id for leaf in tree.reachable(assets.ATTRIBUTES)}
        assert set(counts) == reachable
        assert max(counts.values()) - min(counts.values()) <= 1


def test_rows_per_policy_chooses_balanced_scenes() -> None:
    data = build(replace(TINY, num_train=60, rows_per_policy=16))
    assert Counter(row["policy_id"] for row in data.train) == dict.fromkeys(data.policies, 16)
    assert len({row["id"] for row in data.train}) == 32
    by_leaf = Counter((row["policy_id"], row["leaf"]) for row in data.train)
    assert min(by_leaf.values()) >= 3


def test_the_tiny_world_is_the_one_of_the_embedded_base() -> None:
    data = build(replace(TINY, num_policies=5))
    for tree in data.trees:
        assert assets.held_out((node.id, node.value) for node in tree.nodes())
        assert {leaf.case for leaf in tree.leaves()} <= set(assets.CASES)
        assert data.policies[tree.name].text.startswith(f"policy {tree.name} : C1 if ")
    objects = [item for scene in data.scenes.values() for item in scene.objects]
    assert {item.material for item in objects} == {assets.MATERIAL}
    assert {item.color for item in objects} <= set(assets.ATTRIBUTES["color"])


def test_the_compact_world_of_clevr_has_its_attributes_and_trees_no_base_has_seen() -> None:
    data = build(replace(TINY, world="clevr_compact", num_policies=8, num_train=40))
    for tree in data.trees:
        assert assets.held_out((node.id, node.value) for node in tree.nodes())
        assert data.policies[tree.name].text.startswith(f"policy {tree.name} : C1 if ")
    assert "material" in {node.attribute for tree in data.trees for node in tree.nodes()}
    assert data.picture("images/test_000000.png").size == (240, 160)
    assert {len(scene.objects) for scene in data.scenes.values()} <= set(range(2, 7))


@pytest.mark.parametrize(
    ("attribute", "value", "style", "world"),
    [
        ("color", "red", "compact", "tiny"),
        ("color", "brown", "compact", "clevr_compact"),
        ("material", "rubber", "compact", "clevr_compact"),
        ("material", "rubber", "full", "clevr"),
    ],
)
def test_a_tree_belongs_to_the_smallest_world_with_its_values(
    attribute: str, value: str, style: str, world: str
) -> None:
    root = Node("1", attribute, value, Leaf("1.1", "Case 1"), Leaf("1.2", "Case 2"))
    assert world_of(ClevrTree("kavo", 1, root), style) is WORLDS[world]


def test_a_tree_of_no_world_is_named() -> None:
    root = Node("1", "color", "pink", Leaf("1.1", "Case 1"), Leaf("1.2", "Case 2"))
    with pytest.raises(ValueError, match="policy kavo: no world"):
        world_of(ClevrTree("kavo", 1, root), "compact")


def test_in_memory_rows_carry_their_pictures() -> None:
    data = build(TINY)
    (row,) = data.with_pictures(data.test[:1])
    assert row["images"][0].size == (64, 64)
    assert data.test[0]["images"] == ["images/test_000000.png"]


def test_everything_follows_from_the_seed(tmp_path: Path) -> None:
    first = contents(generate(into(tmp_path / "a", variant="M")))
    assert contents(generate(into(tmp_path / "b", variant="M"))) == first
    assert contents(generate(into(tmp_path / "c", variant="M", seed=4))) != first


def test_more_test_rows_leave_the_rest_alone() -> None:
    small, large = build(TINY), build(replace(TINY, num_test=20))
    assert large.trees == small.trees
    assert large.train == small.train
    assert large.test[:8] == small.test


def test_variant_m_shows_values_in_pictures(tmp_path: Path) -> None:
    folder = generate(into(tmp_path / "set", variant="M", depth=3, picture_rate=0.5))
    for policy in PolicySet.from_jsonl(folder / "policies.jsonl").values():
        tree = ClevrTree.from_json(policy.metadata["tree"])
        assert len(policy.images) == round(len(tree.nodes()) / 2)
        assert policy.text.count("<image>") == len(policy.images)
        assert sum(node.value in policy.text.split() for node in tree.nodes()) < len(tree.nodes())


def test_the_full_world_follows_the_paper() -> None:
    config = ClevrPolicyConfig(
        depth=4, num_policies=3, num_train=6, num_test=3, num_objects=(2, 3), image_size=(96, 64)
    )
    data = build(config)
    assert all(len(tree.leaves()) == 16 for tree in data.trees)
    assert all(name.startswith("L4-") for name in data.policies)
    assert len(data.train) == len(data.train_cot) == 18
    assert data.picture(data.test[0]["images"][0]).size == (96, 64)
    paper = ClevrPolicyConfig()
    assert (paper.num_policies, paper.num_train_rows, paper.num_test) == (10, 20_000, 2000)


def test_the_override_suite_has_another_tree_under_each_name(tmp_path: Path) -> None:
    config = into(tmp_path / "set", num_policies=3, num_test=48, variant="M")
    folder = generate(config)
    policies = PolicySet.from_jsonl(folder / "override_policies.jsonl")
    data = build(config)
    rows = read_rows(folder / "override.jsonl", policies=policies)
    assert list(policies) == [tree.name for tree in data.trees]
    for old in data.trees:
        policy = policies[old.name]
        tree = ClevrTree.from_json(policy.metadata["tree"])
        assert (tree.name, tree.depth) == (old.name, old.depth)
        assert tree.root not in [known.root for known in data.trees]  # nor the tree of another name
        assert policy.metadata["override"] == "whole" and policy.images
        for row in rows:
            if row["policy_id"] == old.name:
                walk = tree.walk(data.scenes["images/" + Path(row["images"][0]).name])
                assert (row["answer"], row["leaf"]) == (walk.case, walk.leaf.id)
    same = ("id", "policy_id", "prompt")
    assert [{k: row[k] for k in same} for row in rows] == [
        {k: row[k] for k in same} for row in data.test
    ]
    assert [row["old_answer"] for row in rows] == [row["answer"] for row in data.test]
    assert sum(row["old_answer"] != row["answer"] for row in rows) > len(rows) / 2


def test_the_override_suite_leaves_the_rest_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = build(replace(TINY, variant="M"))

    def last(rng, trees, world):  # draws more than the real one
        return [override_trees(rng, trees, world) for _ in range(3)][-1]

    monkeypatch.setattr(clevr_data, "override_trees", last)
    after = build(replace(TINY, variant="M"))
    assert after.override != before.override
    assert (after.trees, after.train, after.train_cot, after.test) == (
        before.trees, before.train, before.train_cot, before.test,
    )  # fmt: skip


def test_a_failed_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(PolicySet, "to_jsonl", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        generate(into(tmp_path / "set"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        generate(into(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    assert (generate(into(tmp_path / "empty")) / "test.jsonl").is_file()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"world": "moon"}, "world is one of clevr, clevr_compact, tiny"),
        ({"variant": "X"}, "variant"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"depth": 16, "world": "clevr"}, "depth is at most 15, the values that the world"),
        ({"num_cot": 10**6}, "num_cot = 1000000, of 20000"),
        ({"num_cot": -1}, "num_cot must not be negative"),
        ({"seed": -1}, "seed must not be negative"),
        ({"rows_per_policy": 0}, "rows_per_policy must be at least 1"),
        ({"rows_per_policy": 3000}, "rows_per_policy is at most num_train = 2000"),
        ({"picture_rate": 0.0}, "picture_rate"),
        ({"clevr_dir": "x", "world": "tiny"}, "clevr_dir"),
        ({"num_object": [1, 2]}, "did you mean 'num_objects'"),
    ],
)
def test_bad_settings_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClevrPolicyConfig.from_dict(values)


def test_bad_object_numbers_are_named() -> None:
    with pytest.raises(ValueError, match="num_objects"):
        build(replace(TINY, num_objects=(3, 2)))


needs_clevr = pytest.mark.skipif(
    "FASTMPI_CLEVR_DIR" not in os.environ, reason="FASTMPI_CLEVR_DIR is not set"
)


@needs_clevr
@pytest.mark.parametrize("splits", [("train", "val"), ("val", "val")])
def test_a_clevr_folder(tmp_path: Path, splits: tuple[str, str]) -> None:
    config = ClevrPolicyConfig(
        output_dir=str(tmp_path / "set"), depth=4, num_policies=3, variant="M", num_train=40,
        num_test=30, clevr_dir=os.environ["FASTMPI_CLEVR_DIR"],
        train_split=splits[0], test_split=splits[1],
    )  # fmt: skip
    data = build(config)
    train = {data.scenes[row["images"][0]].image for row in data.train}
    test = {data.scenes[row["images"][0]].image for row in data.test}
    assert len(train) == 40 and len(test) == 30 and not train & test
    folder = generate(config)
    policies = PolicySet.from_jsonl(folder / "policies.jsonl")
    rows = read_rows(folder / "test.jsonl", policies=policies, check_images=True)
    assert PIL.Image.open(rows[0]["images"][0]).size == (240, 160)
    assert all(len(policy.images) > 0 for policy in policies.values())


def clevr_folder(folder: Path, count: int) -> str:
    """A CLEVR folder of `count` rendered scenes in split "train"."""
    images = folder / "images" / "train"
    images.mkdir(parents=True)
    scenes = []
    for index in range(count):
        scene = sample_scene(np.random.default_rng(index), 2, size=(96, 64))
        path = images / image_filename("train", index)
        render_scene(scene, supersample=1).save(path)
        scenes.append(replace(scene, image=path, index=index))
    save_scenes(scenes, folder, "train")
    return str(folder)


def test_parts_of_one_split(tmp_path: Path) -> None:
    config = ClevrPolicyConfig(
        world="clevr_compact", depth=1, num_policies=1, num_train=6, num_test=2, num_cot=2,
        clevr_dir=clevr_folder(tmp_path, 10), train_split="train[:6]", test_split="train[6:8]",
    )  # fmt: skip
    scenes = build(config).scenes
    numbers = {name.split("/")[1][:4]: set() for name in scenes}
    for name, scene in scenes.items():
        numbers[name.split("/")[1][:4]].add(scene.index)
    assert numbers == {"trai": set(range(6)), "test": {6, 7}}


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("train[:6]", "train[5:]", "scenes in common"),
        ("train[6:6]", "train", "has no scenes"),
        ("train[1]", "train", "no part like"),
        ("train[-2:]", "train", "no part like"),
    ],
)
def test_bad_parts_are_named(tmp_path: Path, train: str, test: str, message: str) -> None:
    folder = clevr_folder(tmp_path, 8)
    config = ClevrPolicyConfig(
        num_train=1, num_test=1, clevr_dir=folder, train_split=train, test_split=test
    )
    with pytest.raises(ValueError, match=message):
        build(config)


@needs_clevr
def test_too_few_scenes_are_an_error() -> None:
    config = ClevrPolicyConfig(clevr_dir=os.environ["FASTMPI_CLEVR_DIR"], num_train=5000)
    with pytest.raises(ValueError, match="5000 scenes are asked for"):
        build(config)
