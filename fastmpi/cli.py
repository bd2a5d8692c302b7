"""The command `fastmpi`.

Every command reads `--config x.yaml` and flags that override it; both are checked alike, and an
unknown key is an error that names the nearest known one. A user's mistake ends with one line,
`error: ...`, and exit code 2. Imports of torch wait until a command needs it, so help is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from fastmpi import __version__
from fastmpi.commands.bench import bench
from fastmpi.commands.command import Command
from fastmpi.commands.data import clevr_policy, gta_policy
from fastmpi.commands.env import env
from fastmpi.commands.estimate import estimate
from fastmpi.commands.evaluate import evaluate
from fastmpi.commands.recipe import compare, run
from fastmpi.commands.report import report
from fastmpi.commands.train import stage
from fastmpi.settings import did_you_mean

_COMMANDS = (
    Command("data clevr-policy", "Make ClevrPolicy: policies, rows and pictures.", clevr_policy),
    Command("data gta-policy", "Make GTAPolicy: tool calls under routing rules.", gta_policy),
    Command("cpt", "Stage 1: continual pretraining on policy and reasoning.", stage("cpt")),
    Command("sft", "Stage 2: fine-tuning on responses, without the policy.", stage("sft")),
    Command("rl", "Stage 3: reinforcement learning with PolicyRollout.", stage("rl")),
    Command("run", "All stages of a recipe, each on the model before it.", run),
    Command("estimate", "Memory, tokens and time of a recipe before it runs.", estimate),
    Command("compare", "Several methods of a recipe, in one table and one report.", compare),
    Command("eval", "How well a model follows its policies, in several suites.", evaluate),
    Command("report", "Any number of runs on one page: tables, curves, trees, answers.", report),
    Command("bench", "Time an op beside every peer that is installed.", bench),
    Command("env", "Versions, devices, and which backends work here.", env),
)
COMMANDS: Mapping[str, Command] = {command.name: command for command in _COMMANDS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns about torchvision, say
    try:
        return _dispatch(words)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _ran_out(error):
            raise
        print(f"error: out of memory: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _ran_out(error: BaseException) -> bool:
    """Of memory, on the host or the GPU; torch's CPU allocator has no type of its own for it."""
    kinds = ("MemoryError", "OutOfMemoryError")  # by name: torch need not be imported here
    return type(error).__name__ in kinds or "can't allocate memory" in str(error)


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
