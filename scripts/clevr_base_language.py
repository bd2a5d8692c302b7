"""The second half of the CLEVR base's training: to read policies, and what the tower sees.

The tower no longer changes, so the visual tokens of every picture are made once; a step then costs
the language model alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from clevr_base_model import MERGE, PATCH, PICTURE
from clevr_base_pictures import Picture, cut
from clevr_base_rows import Rows, SeenProcessor
from clevr_base_steps import Stepper
from clevr_base_tower import JITTER, encode
from tiny_base_model import Batch, collate, greedy
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastmpi.data.images import Image
from fastmpi.data.processor import Processor
from fastmpi.data.scenes import Scene
from fastmpi.policies.clevr_world import load_part

KINDS = ("ask", "trace", "follow")
BATCH_SIZE = 32
VARIANTS = 2  # of each picture: as it is; mirrored and moved
GRID = (1, PICTURE[1] // PATCH, PICTURE[0] // PATCH)
PROBE_ROWS = 100


@dataclass(frozen=True)
class Phase:
    """Shares of the kinds of batches, as in KINDS, until `until` of the steps."""

    until: float
    shares: tuple[float, float, float]


PHASES = (
    Phase(0.25, (0.4, 0.6, 0.0)),  # read policies and pictures, each alone
    Phase(0.5, (0.4, 0.2, 0.4)),
    Phase(1.0, (0.2, 0.15, 0.65)),
)
DEPTHS = (1, 2, 2)  # of trees


def see(
    visual: nn.Module, pictures: Sequence[Picture], scenes: Sequence[Scene], seed: int
) -> tuple[dict[str, Image], list[Scene], list[str]]:
    """Visual tokens of `VARIANTS` of each picture by name, their scenes, and the names."""
    rng = np.random.default_rng(seed)
    images: dict[str, Image] = {}
    seen: list[Scene] = []
    for start in range(0, len(pictures), 20):
        part, those = pictures[start : start + 20], scenes[start : start + 20]
        for variant in range(VARIANTS):
            moved = [_variant(rng, picture, variant) for picture in part]
            for tokens, scene in zip(_tokens(visual, moved), those, strict=True):
                name = f"{len(images)}"
                images[name] = Image(name, tokens, GRID, len(tokens))
                seen.append(scene)
    return images, seen, list(images)


def losses(
    model: nn.Module, batch: Batch, image_token: int, *, bf16: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """As in tiny_base_model, but `pixel_values` are visual tokens already."""
    scored = batch.weights > 0
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), sdpa_kernel(SDPBackend.MATH):
        rows = model.get_input_embeddings()(batch.ids)
        if batch.pixels:
            rows = rows.index_put(
                torch.nonzero(batch.ids == image_token, as_tuple=True),
                batch.pixels["pixel_values"],
            )
        hidden = model.model.language_model(
            inputs_embeds=rows, position_ids=batch.positions, use_cache=False
        ).last_hidden_state
        logits = model.lm_head(hidden[scored]).float()
    targets = batch.targets[scored]
    logprob = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    return targets, logprob, logits.argmax(-1) == targets


def train_language(
    args: argparse.Namespace,
    model: nn.Module,
    processor: Processor,
    seen: tuple[dict[str, Image], list[Scene], list[str]],
    report: Callable[[str, dict], None],
) -> None:
    """Train all but the tower on what `see` gave."""
    images, scenes, names = seen
    rows = Rows(SeenProcessor(processor, images), scenes, names, args.seed + 2)
    test = test_rows(args.clevr_dir, args.test, processor, args.seed + 3)
    rng = np.random.default_rng(args.seed + 4)
    stepper = Stepper([model.model.language_model], args.learning_rate, args.steps)
    yes_no = torch.tensor([rows.ids[" yes"], rows.ids[" no"]])
    running: dict[str, float] = {}
    for step in range(args.steps):
        phase = next(p for p in PHASES if step < p.until * args.steps)
        kind, depth = str(rng.choice(KINDS, p=phase.shares)), int(rng.choice(DEPTHS))
        batch = collate(rows.batch(kind, BATCH_SIZE, depth), processor)
        targets, logprob, correct = losses(model, batch, processor.image_token_id)
        weights = batch.weights[batch.weights > 0]
        stepper.step(-(weights * logprob).sum() / weights.sum())
        asked = torch.isin(targets, yes_no)
        _observe(running, f"{kind} yes/no", correct[asked])
        _observe(running, f"{kind} other", correct[~asked])
        if (step + 1) % args.probe_every == 0 or step + 1 == args.steps:
            probe = {f"N={n}": accuracy(model, test, PROBE_ROWS, n) for n in (1, 2)}
            report(f"language {step + 1}", running | probe)


def test_rows(folder: str, split: str, processor: Processor, seed: int) -> Rows:
    """Rows over the pictures of a split, read from their files."""
    scenes = load_part(folder, split)
    return Rows(processor, scenes, [str(scene.image) for scene in scenes], seed)


def accuracy(
    model: nn.Module, rows: Rows, count: int, depth: int, *, with_policy: bool = True
) -> float:
    """Share of exact boxed answers on trees that training never met."""
    questions = [rows.question(rows.tree(depth, unseen=True)) for _ in range(count)]
    right = 0
    for start in range(0, count, 50):
        part = questions[start : start + 50]
        prompts = [rows.prompt(question, with_policy=with_policy) for question in part]
        for response, question in zip(greedy(model, rows.processor, prompts), part, strict=True):
            right += response.endswith(f"</think>\\boxed{{{question.row['answer']}}}")
    return right / count


@torch.no_grad()
def _tokens(visual: nn.Module, pictures: Sequence[Picture]) -> list[Tensor]:
    cells = (PICTURE[0] // PATCH // MERGE) * (PICTURE[1] // PATCH // MERGE)
    return [part.clone() for part in encode(visual, pictures).split(cells)]


def _variant(rng: np.random.Generator, picture: Picture, number: int) -> Picture:
    reach = JITTER["whole"] if number else 0
    x, y = (int(n) for n in rng.integers(-reach, reach + 1, 2))
    return cut(picture, x, y, PICTURE, mirror=number > 0)


def _observe(running: dict[str, float], name: str, correct: Tensor) -> None:
    if len(correct):
        value = correct.float().mean().item()
        running[name] = 0.9 * running.get(name, value) + 0.1 * value
