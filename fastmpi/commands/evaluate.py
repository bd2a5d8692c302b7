"""`fastmpi eval`: how good a model is."""

from __future__ import annotations

from collections.abc import Sequence

from fastmpi.commands.command import TRUST_REMOTE, Command, common, merged, quiet, require
from fastmpi.evaluation.result import EvalInputs
from fastmpi.flags import add_flags, flags_of, parse


def evaluate(command: Command, words: Sequence[str]) -> int:
    flags = flags_of(EvalInputs)
    parser = command.parser("model_folder")
    known = {**common(parser, TRUST_REMOTE), **flags}
    add_flags(parser, flags, "the evaluation")
    namespace, values, _ = parse(parser, words, known)
    settings, own = merged(values, known, command.name)
    if namespace.model_folder is not None:
        settings["model"] = namespace.model_folder
    require(settings, flags, command.name)
    inputs = EvalInputs.from_dict(settings)

    from fastmpi.stages.chain import evaluate_files

    quiet()
    for result in evaluate_files(inputs, trust_remote_code=own.get("trust_remote_code", False)):
        print(result.line())
    return 0
