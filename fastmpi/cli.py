"""The command `fastmpi`.

Every command reads `--config x.yaml` and flags that override it; both are checked alike, and an
unknown key is an error that names the nearest known one. A user's mistake ends with one line,
`error: ...`, and exit code 2. Imports of torch wait until a command needs it, so help is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastmpi import __version__
from fastmpi.bench import BENCHES, COLUMNS, BenchInputs, known_benches
from fastmpi.evaluation.result import EvalInputs
from fastmpi.flags import Flag, Parser, add_flags, flags_of, parse, plain_value
from fastmpi.recipe import STAGES, Recipe, find_recipe, stage_plan
from fastmpi.settings import Settings, coerce, did_you_mean, read_yaml

CONFIG = Flag("config", str, None, "YAML file of the settings below; flags override it.")
TRUST_REMOTE = Flag("trust_remote_code", bool, False, "Run Python code in the model's folder.")
TRUST_RECIPE = Flag("trust_recipe_code", bool, False, "Run reward functions named by dotted path.")
OVERWRITE = Flag("overwrite", bool, False, "Start anew where the output folder has results.")


@dataclass(kw_only=True)
class StageInputs(Settings):
    """What a stage takes beside its Config."""

    model: str = "tiny"
    """Folder or hub name of the model; "tiny" is the one inside this package."""

    train_dataset: str
    """JSONL file of the training rows."""

    policies: str | None = None
    """JSONL file of the policies."""

    resume_from_checkpoint: str | None = None
    """"auto" for the newest checkpoint in output_dir, or the path of one."""


@dataclass(kw_only=True)
class RewardInputs(StageInputs):
    """What the RL stage takes beside its Config."""

    reward_funcs: list[str]
    """Reward functions: exact_answer, think_format, or the dotted path of your own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns about torchvision, say
    try:
        return _dispatch(words)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"fastmpi {__version__}")
        return 0
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return COMMANDS[name].run(words[length:])
    if words[0] == "data":
        kinds = [name.split()[1] for name in COMMANDS if name.startswith("data ")]
        raise ValueError(f"fastmpi data makes one of: {', '.join(kinds)}")
    raise ValueError(f"unknown command {words[0]!r}{did_you_mean(words[0], COMMANDS)}")


def _overview() -> str:
    what = "Teach a vision-language model a policy until it follows it without seeing it."
    lines = ["usage: fastmpi COMMAND [--config x.yaml] [flags]", "", what, "", "commands:"]
    lines += [f"  {name:<20}{command.help}" for name, command in COMMANDS.items()]
    lines += ["", "fastmpi COMMAND --help explains its flags."]
    return "\n".join(lines)


def _parser(command: str, positional: str | None = None, choices: str | None = None) -> Parser:
    usage = " ".join(filter(None, [f"fastmpi {command}", positional, "[flags]"]))
    parser = Parser(prog=f"fastmpi {command}", usage=usage, description=COMMANDS[command].help)
    if positional is not None:
        parser.add_argument(positional, nargs="?", help=choices)
    return parser


def _common(parser: Parser, *flags: Flag) -> dict[str, Flag]:
    known = {flag.name: flag for flag in (CONFIG, *flags)}
    add_flags(parser, known, "the run")
    return known


def _merged(
    values: Mapping[str, Any], known: Mapping[str, Flag], command: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings from YAML and flags, and the flags that only the command line may give."""
    only_here = ("config", "trust_remote_code", "trust_recipe_code", "overwrite")
    own = {name: values[name] for name in only_here if name in values}
    settings = {name: value for name, value in values.items() if name not in only_here}
    if own.get("config") is not None:
        from_file = read_yaml(own["config"])
        for key in from_file:
            if key not in known or key in only_here:
                near = did_you_mean(key, [name for name in known if name not in only_here])
                raise ValueError(f"{own['config']}: {command} has no setting {key!r}{near}")
            from_file[key] = coerce(f"{own['config']}: {key}", from_file[key], known[key].hint)
        settings = {**from_file, **settings}
    return settings, own


def _require(settings: Mapping[str, Any], flags: Mapping[str, Flag], command: str) -> None:
    for name, flag in flags.items():
        if flag.required and settings.get(name) is None:
            raise ValueError(f"{command} needs --{name.replace('_', '-')}")


def _quiet() -> None:
    """Hides the bars that transformers draws for every folder it reads or writes; downloads keep
    theirs."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _stage(kind: str, words: Sequence[str]) -> int:
    inputs: type[StageInputs] = RewardInputs if kind == "rl" else StageInputs
    own_flags = flags_of(inputs)
    if kind == "rl":
        own_flags["reward_funcs"] = replace(
            own_flags["reward_funcs"], required=False, default=["exact_answer", "think_format"]
        )
    config_flags = flags_of(STAGES[kind], leave_out=["trust_remote_code"])
    parser = _parser(kind)
    known = _common(parser, TRUST_REMOTE, TRUST_RECIPE)
    add_flags(parser, own_flags, "inputs")
    add_flags(parser, config_flags, f"{STAGES[kind].__name__}")
    known = {**known, **own_flags, **config_flags}
    _, values, _ = parse(parser, words, known)
    settings, own = _merged(values, known, kind)
    _require(settings, own_flags, kind)
    return _train(kind, settings, own)


def _train(kind: str, settings: dict[str, Any], own: Mapping[str, Any]) -> int:
    outside = {name: settings.pop(name, None) for name in ("policies", "resume_from_checkpoint")}
    model = settings.pop("model", "tiny")
    plan = stage_plan(kind, settings)
    trusted = own.get("trust_remote_code", False)
    plan = replace(plan, config=replace(plan.config, trust_remote_code=trusted))

    from fastmpi.stages.chain import build_trainer, resolve_model
    from fastmpi.stages.record import DataFiles

    _quiet()
    data = DataFiles(outside["policies"], None, None, None)
    trust = own.get("trust_recipe_code", False)
    trainer = build_trainer(plan, resolve_model(model), data, trust_recipe_code=trust)
    result = trainer.train(resume_from_checkpoint=outside["resume_from_checkpoint"])
    print(f"{kind}: {result.global_step} steps, the model is in {result.output_dir}")
    return 0


def _recipe(command: str, words: Sequence[str]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of `run` and `compare`, with `--sft.max-steps 5` and the like laid over it."""
    recipe_flags = {
        name: flag for name, flag in flags_of(Recipe).items()
        if flag.hint in (str, int, str | None)
    }  # fmt: skip
    parser = _parser(command, "recipe")
    known = _common(parser, OVERWRITE, TRUST_REMOTE, TRUST_RECIPE)
    add_flags(parser, recipe_flags, "the recipe; deeper settings as --sft.learning-rate 1e-4")
    known = {**known, **recipe_flags}
    namespace, values, dotted = parse(parser, words, known, dotted=True)
    settings, own = {k: v for k, v in values.items() if k in recipe_flags}, values
    path = namespace.recipe or own.get("config")
    if path is None:
        raise ValueError(f"{command} needs a recipe: fastmpi {command} recipe.yaml")
    return find_recipe(path, settings, {k: plain_value(v) for k, v in dotted.items()}), own


def _trust(own: Mapping[str, Any]) -> dict[str, bool]:
    names = ("overwrite", "trust_recipe_code", "trust_remote_code")
    return {name: own.get(name, False) for name in names}


def _run(words: Sequence[str]) -> int:
    recipe, own = _recipe("run", words)

    from fastmpi.stages.chain import run

    _quiet()
    result = run(recipe, **_trust(own))
    for evaluation in (result.with_policy, result.without_policy):
        if evaluation is not None:
            print(evaluation.line())
    print(f"the model is in {result.model}")
    return 0


def _compare(words: Sequence[str]) -> int:
    recipe, own = _recipe("compare", words)

    from rich.console import Console

    from fastmpi.report import results_table
    from fastmpi.stages.comparison import compare
    from fastmpi.stages.workers import JobError

    console = Console(stderr=True)
    try:
        rows, findings = compare(recipe, console, **_trust(own))
    except JobError as error:
        path = Path(recipe.output_dir) / "error.txt"
        path.write_text(error.details or str(error), encoding="utf-8")
        print(f"error: {error}; the traceback is in {path}", file=sys.stderr)
        return 1
    Console(width=None if sys.stdout.isatty() else 120).print(results_table(rows))
    for finding in findings:
        print(f"- {finding}")
    print(f"{recipe.output_dir}/summary.json and {recipe.output_dir}/report.html are written")
    return 0


def _eval(words: Sequence[str]) -> int:
    flags = flags_of(EvalInputs)
    parser = _parser("eval", "model_folder")
    known = {**_common(parser, TRUST_REMOTE), **flags}
    add_flags(parser, flags, "the evaluation")
    namespace, values, _ = parse(parser, words, known)
    settings, own = _merged(values, known, "eval")
    if namespace.model_folder is not None:
        settings["model"] = namespace.model_folder
    _require(settings, flags, "eval")
    inputs = EvalInputs.from_dict(settings)

    from fastmpi.stages.chain import evaluate_files

    _quiet()
    for result in evaluate_files(inputs, trust_remote_code=own.get("trust_remote_code", False)):
        print(result.line())
    return 0


def _clevr_policy(words: Sequence[str]) -> int:
    from fastmpi.policies.clevr_data import ClevrPolicyConfig, generate

    flags = flags_of(ClevrPolicyConfig)
    parser = _parser("data clevr-policy")
    known = {**_common(parser), **flags}
    add_flags(parser, flags, "the data set")
    _, values, _ = parse(parser, words, known)
    settings, _ = _merged(values, known, "data clevr-policy")
    folder = generate(ClevrPolicyConfig.from_dict(settings))
    print(f"{folder}: policies.jsonl, train.jsonl, train_cot.jsonl, test.jsonl, images/")
    return 0


def _bench(words: Sequence[str]) -> int:
    described = "; ".join(f"{name}: {what}" for name, what in BENCHES.items())
    flags = flags_of(BenchInputs, leave_out=["name"])
    parser = _parser("bench", "name", described)
    parser.epilog = COLUMNS
    add_flags(parser, flags, "the measurement")
    namespace, values, _ = parse(parser, words, flags)
    if namespace.name is None:
        raise ValueError(f"bench needs a name: one of {known_benches()}")
    inputs = BenchInputs.from_dict({"name": namespace.name, **values})

    from fastmpi.benchmarks.command import run_bench

    run_bench(inputs)
    return 0


def _env(words: Sequence[str]) -> int:
    parser = _parser("env")
    as_json = {"json": Flag("json", bool, False, "Print JSON.")}
    add_flags(parser, as_json, "output")
    _, values, _ = parse(parser, words, as_json)

    from fastmpi.environment import environment, environment_tables

    found = environment()
    if values.get("json"):
        import json

        print(json.dumps(found.to_dict(), indent=1))
        return 0
    from rich.console import Console

    for table in environment_tables(found):
        Console().print(table)
    return 0


@dataclass(frozen=True)
class Command:
    help: str
    run: Callable[[Sequence[str]], int]


def _of_kind(kind: str) -> Callable[[Sequence[str]], int]:
    return lambda words: _stage(kind, words)


COMMANDS: Mapping[str, Command] = {
    "data clevr-policy": Command("Make ClevrPolicy: policies, rows and pictures.", _clevr_policy),
    "cpt": Command("Stage 1: continual pretraining on policy and reasoning.", _of_kind("cpt")),
    "sft": Command("Stage 2: fine-tuning on responses, without the policy.", _of_kind("sft")),
    "rl": Command("Stage 3: reinforcement learning with PolicyRollout.", _of_kind("rl")),
    "run": Command("All stages of a recipe, each on the model before it.", _run),
    "compare": Command("Several methods of a recipe, in one table and one report.", _compare),
    "eval": Command("Accuracy of a model, with and without the policy.", _eval),
    "bench": Command("Time an op beside every peer that is installed.", _bench),
    "env": Command("Versions, devices, and which backends work here.", _env),
}
