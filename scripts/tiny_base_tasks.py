"""Training rows of the tiny base about decision trees and pictures, drawn without end.

describe: a picture; its objects by quadrant, then chains of narrowing yes/no questions.
objects: pictures of one object each, as policies show them; what the objects are.
trace: a policy; half of its paths in random order.
follow: the task itself, in the exact prompts that the package renders at run time.

The policies of the last two may show values in pictures (ClevrPolicy-M).

Unusual: tokens that nobody could predict (which value a chain asks for, which path of a trace
comes next) carry no loss. A tenth of all trees never occurs, see `fastmpi.assets.held_out`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fastmpi.assets import ATTRIBUTES, CASES, MATERIAL, NUM_OBJECTS, PICTURE_SIZE, held_out
from fastmpi.data.images import Image
from fastmpi.data.layouts import sample_objects
from fastmpi.data.processor import Processor
from fastmpi.data.prompts import render, response_text
from fastmpi.data.renderer import render_object, render_scene, sample_scene
from fastmpi.data.samples import Prompt, Sample
from fastmpi.data.scenes import Scene, SceneObject
from fastmpi.policies.clevr_pictures import choose_pictured, clevr_policy
from fastmpi.policies.clevr_text import policy_names, question_text, reasoning_text
from fastmpi.policies.clevr_tree import ClevrTree
from fastmpi.policies.policy import Policy
from fastmpi.policies.tiny_tasks import (
    DESCRIBE,
    Piece,
    inventory,
    num_traced,
    trace_prompt,
    tree_paths,
)

TASK_WORDS = ("describe", "trace", "none", *ATTRIBUTES)
WORLD = {**ATTRIBUTES, "material": (MATERIAL,)}
OBJECTS_A_ROW = 4
PICTURE_RATE = 0.5  # share of a policy's values that it shows in pictures, where it shows any
NUM_CHAINS = 4
CHAIN_DEPTH = 3
MAX_SCENE_TRIES = 150


@dataclass(frozen=True)
class Question:
    """One row of the task with its tree, and the policy that the prompt may show."""

    row: dict
    tree: ClevrTree
    policy: Policy


def draw_scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    """Scenes of the base's world: two to four objects, one per quadrant."""
    numbers = rng.choice(NUM_OBJECTS, count)
    return [sample_scene(rng, int(n), attributes=WORLD, layout="quadrants") for n in numbers]


def piece_ids(processor: Processor) -> dict[str, int]:
    """Token of each piece; "Ġ" stands for a blank in a byte-level vocabulary."""
    vocabulary = processor.tokenizer.get_vocab()
    return {piece.replace("Ġ", " "): token for piece, token in vocabulary.items()}


def weighted_sample(
    processor: Processor,
    ids: Mapping[str, int],
    messages: list[dict],
    images: list[Image],
    pieces: Sequence[Piece],
) -> Sample:
    """A chat, and the response that `pieces` make, each with the weight of its loss."""
    prompt = processor.prompt(messages, images)
    words, weights = zip(*pieces, strict=True)
    response = np.array([*(ids[word] for word in words), processor.eos_token_ids[0]])
    sample = Sample.from_prompt(prompt, response)
    sample.weights[len(prompt.ids) :] = (*weights, 1.0)
    return sample


class Tasks:
    """Rows over one set of scenes, drawn into `folder`; all randomness comes from `seed`."""

    def __init__(self, processor: Processor, folder: Path, num_scenes: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.processor = processor
        self.folder = folder
        self.scenes = draw_scenes(self.rng, num_scenes)
        self.files = [f"{seed}-{index}.png" for index in range(num_scenes)]
        for scene, file in zip(self.scenes, self.files, strict=True):
            render_scene(scene, PICTURE_SIZE).save(folder / file)
        self.objects = self._draw_objects(num_scenes // 4, seed)
        self.showing = {
            (attribute, value): [f for item, f in self.objects if item.has(attribute, value)]
            for attribute, values in ATTRIBUTES.items()
            for value in values
        }
        self.ids = piece_ids(processor)

    def batch(
        self, kind: str, size: int, depth: int = 0, pictured_share: float = 0.0
    ) -> list[Sample]:
        """`size` rows of one kind; a sixteenth of the follow rows shows no policy.

        `depth` is that of the trees; `pictured_share` of them show some values in pictures.
        """
        if kind == "describe":
            return [self.describe() for _ in range(size)]
        if kind == "objects":
            return [self.describe_objects() for _ in range(size)]
        pictured = [bool(flag) for flag in self.rng.random(size) < pictured_share]
        if kind == "trace":
            return [self.trace(depth, pictured=flag) for flag in pictured]
        return [
            self.follow(depth, with_policy=number >= size // 16, pictured=flag)
            for number, flag in enumerate(pictured)
        ]

    def describe(self) -> Sample:
        index = int(self.rng.integers(len(self.scenes)))
        scene, image = self.scenes[index], self.processor.image(self.files[index], self.folder)
        pieces = [*inventory(scene), *self._chains(scene)]
        turn = {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": DESCRIBE}],
        }
        return self.sample([turn], [image], pieces)

    def describe_objects(self) -> Sample:
        chosen = [self.objects[i] for i in self.rng.integers(len(self.objects), size=OBJECTS_A_ROW)]
        images = [self.processor.image(file, self.folder) for _, file in chosen]
        ask = [{"type": "image"}] * len(images) + [{"type": "text", "text": DESCRIBE}]
        pieces = [
            (f" {word}", 1.0)
            for item, _ in chosen
            for word in (item.size, item.color, item.shape, ";")
        ]
        return self.sample([{"role": "user", "content": ask}], images, pieces)

    def trace(self, depth: int, *, pictured: bool = False) -> Sample:
        tree = self.tree(depth)
        policy = self.policy(tree, pictured=pictured)
        paths = tree_paths(tree)
        pieces: list[Piece] = []
        for index in self.rng.permutation(len(paths))[: num_traced(len(paths))]:
            pieces += [*paths[index], (" ;", 1.0)]
        ask = {"role": "user", "content": trace_prompt(tree.name)}
        images = self.processor.images(list(policy.images))
        return self.sample([*policy.messages, ask], images, pieces)

    def follow(self, depth: int, *, with_policy: bool = True, pictured: bool = False) -> Sample:
        question = self.question(self.tree(depth), pictured=pictured)
        prompt = self.prompt(question, with_policy=with_policy)
        response = self.processor.encode_response(response_text(question.row))
        return Sample.from_prompt(prompt, response)

    def prompt(self, question: Question, *, with_policy: bool = True) -> Prompt:
        policy = question.policy if with_policy else None
        return render(question.row, self.processor, policy, folder=self.folder)

    def tree(self, depth: int, *, unseen: bool = False) -> ClevrTree:
        """A random tree; `unseen` ones are those that training never meets."""
        while True:
            name = policy_names(self.rng, 1, depth, style="compact")[0]
            tree = ClevrTree.sample(self.rng, depth, name, attributes=ATTRIBUTES, outcomes=CASES)
            if held_out((node.id, node.value) for node in tree.nodes()) == unseen:
                return tree

    def policy(self, tree: ClevrTree, *, pictured: bool = False) -> Policy:
        places = choose_pictured(self.rng, tree, PICTURE_RATE) if pictured else frozenset()

        def picture_of(attribute: str, value: str) -> Path:
            return self.folder / str(self.rng.choice(self.showing[(attribute, value)]))

        return clevr_policy(tree, "compact", pictured=places, picture_of=picture_of)

    def question(self, tree: ClevrTree, *, pictured: bool = False) -> Question:
        """A scene for `tree`, all cases that it can reach equally likely where the scenes allow."""
        wanted = str(self.rng.choice([leaf.case for leaf in tree.reachable(ATTRIBUTES)]))
        for index in self.rng.integers(len(self.scenes), size=MAX_SCENE_TRIES):
            walk = tree.walk(self.scenes[index])
            if walk.case == wanted:
                break
        row = {
            "id": f"{tree.name}-{index}",
            "policy_id": tree.name,
            "images": [self.files[index]],
            "prompt": question_text(tree.name, style="compact"),
            "reasoning": reasoning_text(walk, style="compact"),
            "answer": walk.case,
        }
        return Question(row, tree, self.policy(tree, pictured=pictured))

    def sample(self, messages: list[dict], images: list[Image], pieces: list[Piece]) -> Sample:
        """A chat, and the response that `pieces` make."""
        return weighted_sample(self.processor, self.ids, messages, images, pieces)

    def _draw_objects(self, count: int, seed: int) -> list[tuple[SceneObject, str]]:
        """Objects alone, each turned at random, and the files of their pictures."""
        found = []
        for number, item in enumerate(sample_objects(self.rng, count, WORLD)):
            turned = replace(item, rotation=float(self.rng.uniform(0, 360)))
            file = f"{seed}-object-{number}.png"
            render_object(turned, PICTURE_SIZE).save(self.folder / file)
            found.append((item, file))
        return found

    def _chains(self, scene: Scene) -> list[Piece]:
        pieces: list[Piece] = []
        for _ in range(NUM_CHAINS):
            pieces += [*self._chain(scene), (" ;", 0.0)]
        return pieces

    def _chain(self, scene: Scene) -> Iterator[Piece]:
        """A path through a random tree: a yes narrows the objects and uses up its attribute."""
        objects, condition, used, asked = list(scene.objects), " C1", set(), set()
        for _ in range(CHAIN_DEPTH):
            attribute, value = self._ask(objects, scene, used, asked)
            kept = [item for item in objects if item.has(attribute, value)]
            answer = " yes" if kept else " no"
            yield from ((condition, 1.0), (f" {value}", 0.0), (answer, 1.0))
            condition += ".1" if kept else ".2"
            objects = kept or objects
            used |= {attribute} if kept else set()
            asked.add((attribute, value))

    def _ask(self, objects: list, scene: Scene, used: set[str], asked: set) -> tuple[str, str]:
        """As many yes as no; most no are about a value of an object that was narrowed away."""
        pairs = [(a, v) for a in ATTRIBUTES if a not in used for v in ATTRIBUTES[a]]
        pairs = [pair for pair in pairs if pair not in asked]
        present = [pair for pair in pairs if any(item.has(*pair) for item in objects)]
        absent = [pair for pair in pairs if pair not in present]
        away = [pair for pair in absent if any(item.has(*pair) for item in scene.objects)]
        no = away if away and self.rng.random() < 0.7 else absent
        pool = present if self.rng.random() < 0.5 else no
        pool = pool or pairs
        return pool[self.rng.integers(len(pool))]
