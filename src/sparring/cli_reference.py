"""docs/cli.md, from the commands themselves: `python -m sparring.cli_reference > docs/cli.md`."""

from __future__ import annotations

from typing import Any

import typer

from sparring.cli import app
from sparring.config.reference import markdown

INTRODUCTION = """# Commands

<!-- made by `python -m sparring.cli_reference > docs/cli.md` -->

Every command exits with 0 on success, 2 for an error that you can fix (the message says how), 1 for a fault of the program, and 130
when it was interrupted. `sparring COMMAND --help` prints the text of this page.
"""


def cli_reference() -> str:
    """One section per command, in the order of `sparring --help`."""
    group = typer.main.get_group(app)
    return "\n".join([INTRODUCTION, *(_section(name, command) for name, command in group.commands.items())])


def _section(name: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = " ".join(["sparring", name, *(["[OPTIONS]"] if options else []), *map(_placeholder, arguments)])
    with command.make_context(name, [], resilient_parsing=True) as context:  # as for --help, which needs no arguments
        records = [(_placeholder(one), one.help) for one in arguments] + [one.get_help_record(context) for one in options]
    rows = [f"| {markdown(f'`{names}`')} | {markdown(said or '')} |" for names, said in records]
    table = "\n".join(["| | |", "|---|---|", *rows])
    below = f"\n{markdown(command.epilog)}\n" if command.epilog else ""
    return f"## sparring {name}\n\n{markdown(command.help or '')}\n\n    {usage}\n\n{table}\n{below}"


def _placeholder(argument: Any) -> str:
    return argument.metavar or argument.name.upper()


if __name__ == "__main__":
    print(cli_reference(), end="")
