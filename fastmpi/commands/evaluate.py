"""`fastmpi eval`: how good a model is."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastmpi.commands.command import (
    OVERWRITE,
    TRUST_REMOTE,
    Command,
    common,
    merged,
    quiet,
)
from fastmpi.commands.suites_table import print_suites
from fastmpi.evaluation.folder import SUITES
from fastmpi.evaluation.result import EvalInputs
from fastmpi.flags import Flag, add_flags, flags_of, parse

SUITE = Flag(
    "suite",
    str | None,
    None,
    f"Some of {','.join(SUITES)}; none: task, and in-context where there are policies.",
)


def evaluate(command: Command, words: Sequence[str]) -> int:
    flags = flags_of(EvalInputs)
    parser = command.parser("model_folder")
    # On the command line the list is `--suite a,b`, in a file `suites: [a, b]`.
    shown = {"suite": SUITE, **{n: flag for n, flag in flags.items() if n != "suites"}}
    known = {**common(parser, OVERWRITE, TRUST_REMOTE), **shown}
    add_flags(parser, shown, "the evaluation")
    namespace, values, _ = parse(parser, words, known)
    settings, own = merged(values, {**known, **flags}, command.name)
    if namespace.model_folder is not None:
        settings["model"] = namespace.model_folder
    if (suite := settings.pop("suite", None)) is not None:
        settings["suites"] = [name.strip() for name in suite.split(",")]
    inputs = EvalInputs.from_dict(settings)

    from fastmpi.stages.evaluating import evaluate_files

    quiet()
    suites = evaluate_files(
        inputs,
        overwrite="always" if own.get("overwrite", False) else "never",
        trust_remote_code=own.get("trust_remote_code", False),
        on_batch=_progress if sys.stderr.isatty() else None,
    )
    print_suites(suites)
    if inputs.output_dir is not None:
        print(f"the answers and the summary are in {inputs.output_dir}")
    return 0


def _progress(arm: str, done: int, total: int) -> None:
    print(f"\r{arm}: {done} of {total}", end="\n" if done == total else "", file=sys.stderr)
