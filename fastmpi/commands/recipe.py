"""`fastmpi run` and `compare`: all that a recipe says."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmpi.commands.command import (
    OVERWRITE,
    TRUST_RECIPE,
    TRUST_REMOTE,
    Command,
    common,
    quiet,
    tell,
)
from fastmpi.commands.suites_table import print_suites
from fastmpi.files import write_whole
from fastmpi.flags import add_flags, flags_of, parse, plain_value
from fastmpi.recipe import Recipe, find_recipe


def run(command: Command, words: Sequence[str]) -> int:
    recipe, own = _recipe(command, words)

    from fastmpi.stages import chain

    quiet()
    result = chain.run(recipe, **_trust(own))
    if result.suites:
        print_suites(result.suites)
    tell(f"the model is in {result.model}")
    return 0


def compare(command: Command, words: Sequence[str]) -> int:
    recipe, own = _recipe(command, words)

    from rich.console import Console

    from fastmpi.report import text_table
    from fastmpi.stages import comparison
    from fastmpi.stages.workers import JobError

    console = Console(stderr=True)
    try:
        page = comparison.compare(recipe, console, **_trust(own))
    except JobError as error:
        path = Path(recipe.output_dir) / "error.txt"
        write_whole(path, error.details or str(error))
        print(f"error: {error}; the traceback is in {path}", file=sys.stderr)
        return 1
    assert page.glance is not None
    Console(width=None if sys.stdout.isatty() else 120).print(text_table(page.glance))
    for finding in page.findings:
        print(f"- {finding}")
    print(f"{recipe.output_dir}/summary.json and {recipe.output_dir}/report.html are written")
    return 0


def _recipe(command: Command, words: Sequence[str]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of `run` and `compare`, with `--sft.max-steps 5` and the like laid over it."""
    recipe_flags = {
        name: flag for name, flag in flags_of(Recipe).items()
        if flag.hint in (str, int, str | None)
    }  # fmt: skip
    parser = command.parser("recipe")
    known = common(parser, OVERWRITE, TRUST_REMOTE, TRUST_RECIPE)
    add_flags(parser, recipe_flags, "the recipe; deeper settings as --sft.learning-rate 1e-4")
    known = {**known, **recipe_flags}
    namespace, values, dotted = parse(parser, words, known, dotted=True)
    settings, own = {k: v for k, v in values.items() if k in recipe_flags}, values
    path = namespace.recipe or own.get("config")
    if path is None:
        raise ValueError(f"{command.name} needs a recipe: fastmpi {command.name} recipe.yaml")
    return find_recipe(path, settings, {k: plain_value(v) for k, v in dotted.items()}), own


def _trust(own: Mapping[str, Any]) -> dict[str, bool]:
    names = ("overwrite", "trust_recipe_code", "trust_remote_code")
    return {name: own.get(name, False) for name in names}
