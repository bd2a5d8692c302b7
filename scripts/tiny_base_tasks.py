"""The three kinds of training rows of the tiny base, drawn without end.

describe: a picture; its objects by quadrant, then chains of narrowing yes/no questions.
trace: a policy, no picture; half of its paths in random order.
follow: the task itself, in the exact prompts that the package renders at run time.

Unusual: tokens that nobody could predict (which value a chain asks for, which path of a trace
comes next) carry no loss. A tenth of all trees never occurs, see `fastmpi.assets.held_out`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmpi.assets import ATTRIBUTES, CASES, MATERIAL, NUM_OBJECTS, PICTURE_SIZE, held_out
from fastmpi.data.images import Image
from fastmpi.data.processor import Processor
from fastmpi.data.prompts import render, response_text
from fastmpi.data.renderer import render_scene, sample_scene
from fastmpi.data.samples import Prompt, Sample
from fastmpi.data.scenes import Scene
from fastmpi.policies.clevr_text import policy_names, policy_text, question_text, reasoning_text
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

TASK_WORDS = ("describe", "trace", "none")
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
    world = {**ATTRIBUTES, "material": (MATERIAL,)}
    numbers = rng.choice(NUM_OBJECTS, count)
    return [sample_scene(rng, int(n), attributes=world, layout="quadrants") for n in numbers]


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
        # "Ġ" stands for a blank in a byte-level vocabulary.
        vocabulary = processor.tokenizer.get_vocab()
        self.ids = {piece.replace("Ġ", " "): token for piece, token in vocabulary.items()}

    def batch(self, kind: str, size: int, depth: int) -> list[Sample]:
        """`size` rows of one kind; a sixteenth of the follow rows shows no policy.

        `depth` is that of the trees; a description has none.
        """
        if kind == "describe":
            return [self.describe() for _ in range(size)]
        if kind == "trace":
            return [self.trace(depth) for _ in range(size)]
        return [self.follow(depth, with_policy=i >= size // 16) for i in range(size)]

    def describe(self) -> Sample:
        index = int(self.rng.integers(len(self.scenes)))
        scene, image = self.scenes[index], self.processor.image(self.files[index], self.folder)
        pieces = [*inventory(scene), *self._chains(scene)]
        turn = {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": DESCRIBE}],
        }
        return self._sample([turn], [image], pieces)

    def trace(self, depth: int) -> Sample:
        tree = self.tree(depth)
        paths = tree_paths(tree)
        pieces: list[Piece] = []
        for index in self.rng.permutation(len(paths))[: num_traced(len(paths))]:
            pieces += [*paths[index], (" ;", 1.0)]
        ask = {"role": "user", "content": trace_prompt(tree.name)}
        return self._sample([*self.policy(tree).messages, ask], [], pieces)

    def follow(self, depth: int, *, with_policy: bool = True) -> Sample:
        question = self.question(self.tree(depth))
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

    def policy(self, tree: ClevrTree) -> Policy:
        text = policy_text(tree, style="compact")
        return Policy(tree.name, [{"role": "system", "content": text}], [])

    def question(self, tree: ClevrTree) -> Question:
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
        return Question(row, tree, self.policy(tree))

    def _sample(self, messages: list[dict], images: list[Image], pieces: list[Piece]) -> Sample:
        prompt = self.processor.prompt(messages, images)
        words, weights = zip(*pieces, strict=True)
        ids = np.array([*(self.ids[word] for word in words), self.processor.eos_token_ids[0]])
        sample = Sample.from_prompt(prompt, ids)
        sample.weights[len(prompt.ids) :] = (*weights, 1.0)
        return sample

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
