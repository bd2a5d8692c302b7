"""`fastmpi report`: runs side by side on one page."""

from __future__ import annotations

from collections.abc import Sequence

from fastmpi.commands.command import Command
from fastmpi.flags import Flag, add_flags, parse

FLAGS = {
    "output": Flag("output", str, "report.html", "The page."),
    "baseline": Flag("baseline", str | None, None, "Label of the run that others are compared "
                     "with; by default the first."),
    "num_questions": Flag("num_questions", int, 6, "Questions with their pictures: so many that "
                          "the last run answered wrong, and so many right."),
}  # fmt: skip


def report(command: Command, words: Sequence[str]) -> int:
    parser = command.parser()
    parser.usage = "fastmpi report RUN... [flags]"
    parser.add_argument("runs", nargs="*", help="Folders of `eval`, `run` or `compare`.")
    add_flags(parser, FLAGS, "the page")
    namespace, values, _ = parse(parser, words, FLAGS)
    settings = {name: values.get(name, flag.default) for name, flag in FLAGS.items()}

    from fastmpi.report import report as write_report

    content = write_report(namespace.runs, settings.pop("output"), **settings)
    for finding in content.findings:
        print(f"- {finding}")
    print(f"{values.get('output', FLAGS['output'].default)} is written")
    return 0
