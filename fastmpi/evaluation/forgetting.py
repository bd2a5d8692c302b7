"""What else the tiny base has lost: two of its other tasks, on new pictures and unseen policies.

`describe` needs the picture and `trace` only text, as MMMU-Pro and MMLU-Pro do for large models
(paper table 9); `harness` runs those. Only the tiny base was ever taught these two, so a model of
another origin scores about nothing. Rows are made from a seed, the same ones on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastmpi.data.renderer import render_scene, sample_scene
from fastmpi.evaluation.metrics import Figure, Item, mean_score
from fastmpi.policies.clevr_text import policy_names, policy_text
from fastmpi.policies.clevr_tree import ClevrTree
from fastmpi.policies.clevr_world import WORLDS, sample_tree
from fastmpi.policies.policy import Policy, PolicySet
from fastmpi.policies.tiny_tasks import (
    DESCRIBE,
    inventory,
    joined,
    num_traced,
    trace_prompt,
    tree_paths,
)

Row = dict[str, Any]

TASKS = ("describe", "trace")
TRACE_DEPTH = 2
MAX_TOKENS = 48
"""Tokens of a response that can matter: what follows a description or a trace is not scored."""
MAX_TEXT = 10_000  # characters of a response that are read


def forgetting_rows(
    folder: str | Path, *, count: int = 100, seed: int = 0
) -> tuple[list[Row], PolicySet]:
    """`count` rows of each task, and the policies that the traces recite.

    Pictures go to `folder`/images; rows name them by absolute path, as `read_rows` does. A row has
    `id`, `task`, `policy_id` ("" where it shows no policy), `images`, `prompt`, `answer`, and a
    trace also `paths`, all the paths of its policy. A trace is asked with the policy in its prompt.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    describe_rng, trace_rng = (np.random.default_rng([seed, stream]) for stream in (20, 21))
    pictures = Path(folder).resolve() / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    described = [_describe(describe_rng, number, pictures) for number in range(count)]
    names = policy_names(trace_rng, count, TRACE_DEPTH, "compact")
    trees = [sample_tree(trace_rng, TRACE_DEPTH, name, WORLDS["tiny"]) for name in names]
    traced = [_trace(trace_rng, number, tree) for number, tree in enumerate(trees)]
    return [*described, *traced], PolicySet.from_policies([_policy(tree) for tree in trees])


def score_forgetting(row: Mapping[str, Any], response: str) -> float:
    """How much of a response is right, from 0 to 1; 1 exactly where all of it is.

    describe: share of right words, quadrant by quadrant and place by place; words too many count
    as wrong ones. trace: of as many paths as were asked for, the share that the policy has. The
    same one twice counts twice: which one comes next is free, and the likeliest is always the same.
    """
    parts = [part.split() for part in response[:MAX_TEXT].split(";")]
    score = {"describe": _described, "trace": _traced}[row["task"]]
    return score(row, parts)


def forgetting(items: Sequence[Item]) -> dict[str, Figure]:
    """Mean score of each task, from items with `task` and `score`."""
    return {
        task: mean_score([item["score"] for item in items if item["task"] == task])
        for task in TASKS
    }


def _describe(rng: np.random.Generator, number: int, pictures: Path) -> Row:
    world = WORLDS["tiny"]
    few, many = world.num_objects
    objects = int(rng.integers(few, many + 1))
    scene = sample_scene(rng, objects, attributes=world.attributes, layout=world.layout)
    path = pictures / f"describe_{number:06d}.png"
    render_scene(scene, world.image_size).save(path)
    return {
        "id": f"describe-{number}",
        "task": "describe",
        "policy_id": "",
        "images": [str(path)],
        "prompt": DESCRIBE,
        "answer": joined(inventory(scene)).strip(),
    }


def _trace(rng: np.random.Generator, number: int, tree: ClevrTree) -> Row:
    paths = [joined(path) for path in tree_paths(tree)]
    chosen = rng.permutation(len(paths))[: num_traced(len(paths))]
    return {
        "id": f"trace-{number}",
        "task": "trace",
        "policy_id": tree.name,
        "images": [],
        "prompt": trace_prompt(tree.name),
        "answer": "".join(f"{paths[index]} ;" for index in chosen),
        "paths": paths,
    }


def _policy(tree: ClevrTree) -> Policy:
    text = policy_text(tree, "compact")
    metadata = {"tree": tree.to_json()}
    return Policy(tree.name, [{"role": "system", "content": text}], metadata=metadata)


def _described(row: Mapping[str, Any], parts: Sequence[Sequence[str]]) -> float:
    gold = [part.split() for part in row["answer"].split(";")[:-1]]
    given = [*parts[: len(gold)], *([()] * (len(gold) - len(parts)))]
    pairs = list(zip(gold, given, strict=True))
    right = sum(a == b for words, others in pairs for a, b in zip(words, others, strict=False))
    return right / sum(max(len(words), len(others)) for words, others in pairs)


def _traced(row: Mapping[str, Any], parts: Sequence[Sequence[str]]) -> float:
    asked = num_traced(len(row["paths"]))
    known = {tuple(path.split()) for path in row["paths"]}
    return sum(tuple(part) in known for part in parts[:asked]) / asked
