"""ClevrPolicy data sets: policies, training rows with and without reasoning, test rows.

`build` makes a data set in memory, `generate` writes one:

    policies.jsonl           the policies, with their trees
    train.jsonl              questions and answers, each training scene with each policy
    train_cot.jsonl          some of these rows with the reasoning that walks the tree
    test.jsonl               questions and answers on scenes of their own, one policy each
    override_policies.jsonl  another policy under each name, see `clevr_override`
    override.jsonl           the test rows with the answers of these
    images/                  the pictures
    meta.json                the settings and what came of them

The split sizes default to the paper's (§2 of arXiv 2510.09474: 2,000 training scenes times 10
policies, 2,526 rows of reasoning, 2,000 test rows). Its reasoning is a model's, filtered; ours is
read off the tree, so it is always right. Everything follows from the seed.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image

from fastmpi.data.renderer import render_scene
from fastmpi.data.scenes import Scene
from fastmpi.policies import clevr_pictures as pictures
from fastmpi.policies.clevr_override import override_rows, override_trees
from fastmpi.policies.clevr_rows import (
    Row,
    picture_name,
    spread,
    testing_rows,
    training_rows,
    without_reasoning,
)
from fastmpi.policies.clevr_text import policy_names
from fastmpi.policies.clevr_tree import ClevrTree
from fastmpi.policies.clevr_world import (
    WORLDS,
    Assigned,
    World,
    choose_scenes,
    clevr_pools,
    draw_scenes,
    sample_tree,
)
from fastmpi.policies.files import new_folder, write_rows
from fastmpi.policies.policy import Policy, PolicySet
from fastmpi.settings import Settings

PAPER_NUM_COT = 2526


@dataclass(frozen=True)
class ClevrPolicyConfig(Settings):
    """What `fastmpi data clevr-policy` makes."""

    output_dir: str = "clevr-policy"
    """New folder for the data set."""
    world: Literal["clevr", "clevr_compact", "tiny"] = "clevr"
    """CLEVR's attributes, in sentences or in few words, or the embedded model's small world."""
    depth: int = 2
    """Layers of the decision trees, N in the paper (2, 4, 6)."""
    num_policies: int = 10
    """Policies, all of the same depth."""
    variant: Literal["T", "M"] = "T"
    """T: policies in text alone. M: some conditions show their value in a picture."""
    picture_rate: float = 0.5
    """Share of the conditions that show a picture in variant M."""
    num_train: int = 2000
    """Training scenes."""
    rows_per_policy: int | None = None
    """Training rows of each policy, balanced over its outcomes; by default, one for each scene."""
    num_cot: int | None = None
    """Training rows that also come with reasoning; by default 2526, or all if there are fewer."""
    num_test: int = 2000
    """Test scenes, with one row each."""
    clevr_dir: str | None = None
    """A CLEVR folder to take scenes and pictures from; by default they are drawn and rendered."""
    train_split: str = "train"
    """Split of the CLEVR folder for the training scenes; `train[1200:]` is a part of it."""
    test_split: str = "val"
    """Split of the CLEVR folder for the test scenes, or a part of it."""
    num_objects: tuple[int, int] | None = None
    """Fewest and most objects of a rendered scene; by default what the world has."""
    image_size: tuple[int, int] | None = None
    """Width and height of rendered pictures; by default the world's size."""
    seed: int = 0
    """Decides everything."""

    def __post_init__(self) -> None:
        for name, choices in (("world", sorted(WORLDS)), ("variant", ("T", "M"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(choices)}")
        for name in ("depth", "num_policies", "num_train", "num_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        most = sum(len(values) for values in WORLDS[self.world].asked.values())
        if self.depth > most:
            raise ValueError(f"depth is at most {most}, the values that the world has to ask for")
        if self.rows_per_policy is not None and self.rows_per_policy < 1:
            raise ValueError(f"rows_per_policy must be at least 1, not {self.rows_per_policy}")
        for name in ("num_cot", "seed"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.picture_rate <= 1:
            raise ValueError(f"picture_rate lies in (0, 1], not {self.picture_rate}")
        if self.clevr_dir is not None and self.world == "tiny":
            raise ValueError("clevr_dir: the tiny world is rendered; its model cannot read CLEVR")
        if self.num_train_rows < (self.num_cot or 0):
            raise ValueError(f"num_cot = {self.num_cot}, of {self.num_train_rows} training rows")
        if (self.rows_per_policy or 0) > self.num_train:
            raise ValueError(f"rows_per_policy is at most num_train = {self.num_train}")

    @property
    def num_train_rows(self) -> int:
        return self.num_policies * (self.rows_per_policy or self.num_train)


@dataclass(frozen=True)
class ClevrPolicyData:
    """A data set in memory. Rows name their pictures; `picture` gives them."""

    config: ClevrPolicyConfig
    trees: tuple[ClevrTree, ...]
    policies: PolicySet
    train: list[Row]
    train_cot: list[Row]
    test: list[Row]
    scenes: dict[str, Scene]
    override_policies: PolicySet
    override: list[Row]

    def picture(self, name: str) -> PIL.Image.Image:
        """The picture that rows call `name`, read or rendered."""
        scene = self.scenes[name]
        if scene.image is None:
            return render_scene(scene)
        with PIL.Image.open(scene.image) as opened:
            return opened.convert("RGB")

    def with_pictures(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with their pictures in them, ready for a trainer."""
        return [{**row, "images": [self.picture(name) for name in row["images"]]} for row in rows]


def build(config: ClevrPolicyConfig) -> ClevrPolicyData:
    """Make the data set; nothing is written, and no picture rendered but the policies' own."""
    # Independent streams: another number of test rows leaves policies and training rows alone.
    names, tree_rng, train_rng, test_rng, rows_rng, picture_rng = (
        np.random.default_rng([config.seed, stream]) for stream in range(6)
    )
    world = _world(config)
    policy_ids = policy_names(names, config.num_policies, config.depth, world.style)
    trees = tuple(sample_tree(tree_rng, config.depth, name, world) for name in policy_ids)
    train, test, pool = _scenes(config, world, trees, train_rng, test_rng)
    policies = [_policy(config, world, tree, pool, picture_rng) for tree in trees]
    count = config.rows_per_policy or config.num_train
    train_rows = training_rows(rows_rng, trees, [s for s, _ in train], count, world.style)
    num_cot = min(PAPER_NUM_COT, len(train_rows)) if config.num_cot is None else config.num_cot
    scenes = {
        picture_name(split, number, scene): scene
        for split, scenes in (("train", train), ("test", test))
        for number, (scene, _) in enumerate(scenes)
    }
    test_rows = [without_reasoning(row) for row in testing_rows(trees, test, world.style)]
    others, override_policies = _others(config, world, trees, pool)
    return ClevrPolicyData(
        config,
        trees,
        PolicySet.from_policies(policies),
        train=[without_reasoning(row) for row in train_rows],
        train_cot=spread(rows_rng, train_rows, num_cot),
        test=test_rows,
        scenes=scenes,
        override_policies=override_policies,
        override=override_rows(test_rows, others, scenes),
    )


def generate(config: ClevrPolicyConfig) -> Path:
    """Write the data set to `config.output_dir` and return that folder.

    `ValueError` where it exists and is not empty. The folder appears only when it is complete.
    """
    return new_folder(config.output_dir, lambda folder: write(build(config), folder))


def write(data: ClevrPolicyData, folder: Path) -> None:
    """Write every file of the data set into an existing folder."""
    (folder / "images").mkdir()
    for name, scene in data.scenes.items():
        if scene.image is None:
            data.picture(name).save(folder / name)
        else:
            shutil.copyfile(scene.image, folder / name)
    data.policies.to_jsonl(folder / "policies.jsonl", "images/policies")
    data.override_policies.to_jsonl(folder / "override_policies.jsonl", "images/override_policies")
    for split in ("train", "train_cot", "test", "override"):
        write_rows(folder / f"{split}.jsonl", getattr(data, split))
    (folder / "meta.json").write_text(json.dumps(summary(data), indent=2), encoding="utf-8")


def summary(data: ClevrPolicyData) -> dict[str, Any]:
    """The settings, the sizes, and per policy how often each outcome is the answer."""
    settings = {k: v for k, v in data.config.to_dict().items() if k != "output_dir"}
    rows = {split: getattr(data, split) for split in ("train", "train_cot", "test")}
    return {
        "settings": settings,
        "num_rows": {split: len(value) for split, value in rows.items()},
        "policies": {
            tree.name: {
                "outcomes": len(tree.leaves()),
                "reachable": len(tree.reachable(_world(data.config).attributes)),
                "answers": {split: _answers(value, tree.name) for split, value in rows.items()},
            }
            for tree in data.trees
        },
    }


def _answers(rows: Sequence[Row], policy_id: str) -> dict[str, int]:
    return dict(sorted(Counter(r["answer"] for r in rows if r["policy_id"] == policy_id).items()))


def _world(config: ClevrPolicyConfig) -> World:
    world = WORLDS[config.world]
    num_objects = config.num_objects or world.num_objects
    if not 1 <= num_objects[0] <= num_objects[1]:
        raise ValueError(f"num_objects: fewest and most objects, not {num_objects}")
    changes = {"num_objects": num_objects, "image_size": config.image_size or world.image_size}
    return World(**{**vars(world), **changes})


def _scenes(
    config: ClevrPolicyConfig,
    world: World,
    trees: Sequence[ClevrTree],
    train_rng: np.random.Generator,
    test_rng: np.random.Generator,
) -> tuple[list[Assigned], list[Assigned], Sequence[Scene] | None]:
    """Training scenes, test scenes, and the scenes to cut the policies' pictures from, if any."""
    if config.clevr_dir is None:
        train = draw_scenes(train_rng, trees, config.num_train, world)
        return train, draw_scenes(test_rng, trees, config.num_test, world), None
    splits = (config.clevr_dir, config.train_split, config.test_split)
    pool, test_pool = clevr_pools(*splits, test_rng, config.num_test)
    train = choose_scenes(train_rng, trees, config.num_train, pool)
    return train, choose_scenes(test_rng, trees, config.num_test, test_pool), pool


def _others(
    config: ClevrPolicyConfig,
    world: World,
    trees: Sequence[ClevrTree],
    pool: Sequence[Scene] | None,
) -> tuple[tuple[ClevrTree, ...], PolicySet]:
    """The trees and policies of the override suite, from streams of their own."""
    tree_rng, picture_rng = (np.random.default_rng([config.seed, stream]) for stream in (6, 7))
    others = override_trees(tree_rng, trees, world)
    policies = [_policy(config, world, tree, pool, picture_rng) for tree in others]
    marked = [replace(p, metadata={**p.metadata, "override": "whole"}) for p in policies]
    return others, PolicySet.from_policies(marked)


def _policy(
    config: ClevrPolicyConfig,
    world: World,
    tree: ClevrTree,
    pool: Sequence[Scene] | None,
    rng: np.random.Generator,
) -> Policy:
    if config.variant == "T":
        return pictures.clevr_policy(tree, world.style)

    def picture_of(attribute: str, value: str) -> PIL.Image.Image:
        if pool is not None:
            return pictures.cropped_picture(rng, pool, attribute, value)
        size = world.picture_size
        return pictures.rendered_picture(rng, attribute, value, size, world.attributes)

    pictured = pictures.choose_pictured(rng, tree, config.picture_rate)
    return pictures.clevr_policy(tree, world.style, pictured=pictured, picture_of=picture_of)
