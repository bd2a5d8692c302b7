"""`fastmpi estimate`: what a recipe will hold, count and take, before it runs."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmpi.commands.command import TRUST_RECIPE, TRUST_REMOTE, Command, common, quiet
from fastmpi.flags import Flag, add_flags, parse, plain_value
from fastmpi.recipe import find_recipe

if TYPE_CHECKING:
    from fastmpi.stages.estimating import StageEstimate
    from fastmpi.stages.measuring import StepTime

_FLAGS = (
    Flag(
        "measure",
        bool,
        False,
        "Run one step of each stage to warm up and then three, and time them.",
    ),
    Flag(
        "response_tokens",
        int | None,
        None,
        "Tokens of every response of the rl stage; none: its max_completion_length.",
    ),
    Flag("device", str | None, None, '"cpu" or "cuda", for memory; none: what there is.'),
)


def estimate(command: Command, words: Sequence[str]) -> int:
    parser = command.parser("recipe")
    flags = {flag.name: flag for flag in _FLAGS}
    known = {**common(parser, TRUST_REMOTE, TRUST_RECIPE), **flags}
    add_flags(parser, flags, "the estimate; settings of the recipe as --sft.learning-rate 1e-4")
    namespace, values, dotted = parse(parser, words, known, dotted=True)
    path = namespace.recipe or values.get("config")
    if path is None:
        raise ValueError("estimate needs a recipe: fastmpi estimate recipe.yaml")
    _check(values)
    recipe = find_recipe(path, {}, {name: plain_value(text) for name, text in dotted.items()})
    _estimate(recipe, values)
    return 0


def _check(values: dict[str, Any]) -> None:
    if (tokens := values.get("response_tokens")) is not None and tokens < 1:
        raise ValueError(f"--response-tokens must be at least 1, not {tokens}")
    if values.get("device") not in (None, "cpu", "cuda"):
        raise ValueError(f"--device: {values['device']!r} is not one of cpu, cuda")


def _estimate(recipe: Any, values: dict[str, Any]) -> None:
    from fastmpi.stages.estimating import estimate_stage, recipe_data
    from fastmpi.stages.measuring import measure_stage
    from fastmpi.stages.record import resolve_model

    quiet()
    model = resolve_model(recipe.model)
    options = {
        "response_tokens": values.get("response_tokens"),
        "trust_recipe_code": values.get("trust_recipe_code", False),
        "trust_remote_code": values.get("trust_remote_code", False),
    }
    with tempfile.TemporaryDirectory() as folder:
        trust = options["trust_remote_code"]
        data = recipe_data(recipe, Path(folder), trust_remote_code=trust)
        for plan in recipe.stages():
            found = estimate_stage(plan, model, data, device=values.get("device"), **options)
            time = None
            if values.get("measure"):
                time = measure_stage(plan, model, data, Path(folder) / plan.kind, **options)
                time = time.of_stage(found)
            _print(found, time)


def _print(found: StageEstimate, time: StepTime | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in [*_tokens(found), *_memory(found), *_time(found, time)]:
        table.add_row(f"  {name}", value)
    means = f"tokens and FLOPs are means of the first {found.scanned} of them"
    print(f"{found.kind}: {found.steps} steps; {means}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    for note in found.notes:
        print(f"  note: {note}")


def _tokens(found: StageEstimate) -> list[tuple[str, str]]:
    ratio = found.tokens / found.merged_tokens
    flops = "not counted for this model" if found.flops is None else f"{found.flops:.3g}"
    rows = [
        ("tokens of a step, before merging", f"{found.tokens:,.0f}"),
        ("tokens of a step, after", f"{found.merged_tokens:,.0f} ({ratio:.2f} x fewer)"),
        ("micro-batches of a step, at most", str(found.microbatches)),
    ]
    if (rollout := found.rollout) is not None:
        rows += [
            ("prompt tokens of a window, before merging", f"{rollout.prompt_tokens:,}"),
            ("prompt tokens of a window, after", f"{rollout.merged_prompt_tokens:,}"),
            ("responses of a window, and their tokens", f"{rollout.responses}, {rollout.tokens:,}"),
        ]
    return [*rows, ("counted FLOPs of a step", flops)]


def _memory(found: StageEstimate) -> list[tuple[str, str]]:
    sizes = {**_update_bytes(found), **_rollout_bytes(found)}
    sizes["peak of the update"] = found.update.peak + found.features
    sizes["peak"] = found.peak
    way = "on" if found.checkpointing else "off"
    return [
        *((name, _bytes(size)) for name, size in sizes.items()),
        ("(gradient checkpointing of this stage)", way),
    ]


def _update_bytes(found: StageEstimate) -> dict[str, int]:
    update, other = found.update, found.other
    with_, without = (update, other) if found.checkpointing else (other, update)
    return {
        "weights": update.weights,
        "frozen reference": update.reference,
        "gradients": update.gradients,
        "AdamW state": update.optimizer,
        "picture features": found.features,
        "activations, no checkpointing": without.activations + without.working,
        "activations, gradient checkpointing": with_.activations + with_.working,
        "head and logits chunk": update.head,
    }


def _rollout_bytes(found: StageEstimate) -> dict[str, int]:
    sizes = {}
    if found.rollout is not None:
        memory = found.rollout.memory
        sizes = {
            "keys and values of a rollout": memory.shared,
            "the same without sharing": memory.unshared,
            "peak of the rollout": found.rollout_peak,
        }
    if found.copy is not None:
        sizes["copy that samples meanwhile"] = found.copy
    return sizes


def _time(found: StageEstimate, time: StepTime | None) -> list[tuple[str, str]]:
    if time is None:
        return [("time", "unknown: --measure runs three steps")]
    middle, low, high = time.run(found.steps)
    rows = [("seconds of a step", f"{time.step:.3g} +- {time.spread:.2g}")]
    if found.rollout is not None:
        rows.append(("of it rollout and scoring", f"{time.rollout:.3g}"))
    return [*rows, ("time of the stage", f"{_span(middle)} ({_span(low)} to {_span(high)})")]


def _bytes(size: float) -> str:
    units = ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:,.0f} B" if units[0] == "B" else f"{size:,.2f} {units[0]}"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
