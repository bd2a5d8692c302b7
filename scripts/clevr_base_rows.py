"""The rows that teach the CLEVR base's language model, drawn without end.

ask: a picture, then chains of narrowing yes/no questions in the form of a response.
trace: a policy, no picture; half of its paths in random order.
follow: the task itself, in the exact prompts that the package renders at run time.

As for the tiny base, tokens that nobody could predict carry no loss, and a tenth of all trees
never occurs (`fastmpi.assets.held_out`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tiny_base_tasks import piece_ids, weighted_sample

from fastmpi.assets import CASES, held_out
from fastmpi.data.images import Image
from fastmpi.data.processor import Processor
from fastmpi.data.prompts import render, response_text
from fastmpi.data.samples import Prompt, Sample
from fastmpi.data.scenes import CLEVR_ATTRIBUTES, Scene
from fastmpi.policies.clevr_pictures import clevr_policy
from fastmpi.policies.clevr_text import policy_names, question_text, reasoning_text
from fastmpi.policies.clevr_tree import ClevrTree
from fastmpi.policies.tiny_tasks import Piece, num_traced, trace_prompt, tree_paths

ASK = "describe"
TASK_WORDS = (ASK, "trace")
NUM_CHAINS = 8
CHAIN_DEPTH = 3
MAX_SCENE_TRIES = 150
NO_POLICY = 16  # one follow row in so many shows no policy


class SeenProcessor(Processor):
    """A processor whose pictures are known by name, as visual tokens instead of pixels."""

    def __init__(self, processor: Processor, images: Mapping[str, Image]) -> None:
        super().__init__(processor.config, processor.tokenizer, processor.image_processor)
        self.known = images

    def images(self, sources: Sequence[Any], folder: Any = None) -> list[Image]:
        return [self.known[source] for source in sources]


@dataclass(frozen=True)
class Question:
    """One row of the task and its tree."""

    row: dict[str, Any]
    tree: ClevrTree


class Rows:
    """Rows over `scenes`, whose pictures the processor knows by `names`."""

    def __init__(
        self, processor: Processor, scenes: Sequence[Scene], names: Sequence[str], seed: int
    ) -> None:
        self.processor, self.scenes, self.names = processor, scenes, names
        self.rng = np.random.default_rng(seed)
        self.ids = piece_ids(processor)

    def batch(self, kind: str, size: int, depth: int) -> list[Sample]:
        """`size` rows of one kind, with trees of `depth` layers where the kind has trees."""
        if kind == "ask":
            return [self.ask() for _ in range(size)]
        if kind == "trace":
            return [self.trace(depth) for _ in range(size)]
        return [self.follow(depth, with_policy=i >= size // NO_POLICY) for i in range(size)]

    def ask(self) -> Sample:
        index = int(self.rng.integers(len(self.scenes)))
        pieces = [piece for _ in range(NUM_CHAINS) for piece in self._chain(self.scenes[index])]
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ASK}]}
        images = self.processor.images([self.names[index]])
        return weighted_sample(self.processor, self.ids, [turn], images, pieces)

    def trace(self, depth: int) -> Sample:
        tree = self.tree(depth)
        paths = tree_paths(tree)
        chosen = self.rng.permutation(len(paths))[: num_traced(len(paths))]
        pieces = [piece for index in chosen for piece in (*paths[index], (" ;", 1.0))]
        turn = {"role": "user", "content": trace_prompt(tree.name)}
        messages = [*clevr_policy(tree, "compact").messages, turn]
        return weighted_sample(self.processor, self.ids, messages, [], pieces)

    def follow(self, depth: int, *, with_policy: bool = True) -> Sample:
        question = self.question(self.tree(depth))
        response = self.processor.encode_response(response_text(question.row))
        return Sample.from_prompt(self.prompt(question, with_policy=with_policy), response)

    def prompt(self, question: Question, *, with_policy: bool = True) -> Prompt:
        policy = clevr_policy(question.tree, "compact") if with_policy else None
        return render(question.row, self.processor, policy)

    def tree(self, depth: int, *, unseen: bool = False) -> ClevrTree:
        """A random tree; `unseen` ones are those that training never meets."""
        while True:
            name = policy_names(self.rng, 1, depth, style="compact")[0]
            tree = ClevrTree.sample(self.rng, depth, name, outcomes=CASES)
            if held_out((node.id, node.value) for node in tree.nodes()) == unseen:
                return tree

    def question(self, tree: ClevrTree) -> Question:
        """A scene for `tree`, all leaves that it can reach equally likely where scenes allow."""
        wanted = str(self.rng.choice([leaf.id for leaf in tree.reachable()]))
        for index in self.rng.integers(len(self.scenes), size=MAX_SCENE_TRIES):
            walk = tree.walk(self.scenes[index])
            if walk.leaf.id == wanted:
                break
        row = {
            "id": f"{tree.name}-{index}",
            "policy_id": tree.name,
            "images": [self.names[index]],
            "prompt": question_text(tree.name, style="compact"),
            "reasoning": reasoning_text(walk, style="compact"),
            "answer": walk.case,
        }
        return Question(row, tree)

    def _chain(self, scene: Scene) -> Iterator[Piece]:
        """A path through a random tree: a yes narrows the objects and uses up its attribute."""
        objects, condition, used, asked = list(scene.objects), " C1", set(), set()
        for _ in range(CHAIN_DEPTH):
            attribute, value = self._ask(objects, scene, used, asked)
            kept = [item for item in objects if item.has(attribute, value)]
            yield from ((condition, 1.0), (f" {value}", 0.0), (" yes" if kept else " no", 1.0))
            condition += ".1" if kept else ".2"
            objects = kept or objects
            used |= {attribute} if kept else set()
            asked.add((attribute, value))
        yield " ;", 0.0

    def _ask(self, objects: list, scene: Scene, used: set[str], asked: set) -> tuple[str, str]:
        """As many yes as no; most no are about a value of an object that was narrowed away."""
        pairs = [(a, v) for a in CLEVR_ATTRIBUTES if a not in used for v in CLEVR_ATTRIBUTES[a]]
        pairs = [pair for pair in pairs if pair not in asked]
        present = [pair for pair in pairs if any(item.has(*pair) for item in objects)]
        absent = [pair for pair in pairs if pair not in present]
        away = [pair for pair in absent if any(item.has(*pair) for item in scene.objects)]
        no = away if away and self.rng.random() < 0.7 else absent
        pool = (present if self.rng.random() < 0.5 else no) or pairs
        return pool[self.rng.integers(len(pool))]
