"""The commands that grade replies: grade and check-checker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparring.cli.shared import RunFolder, outcome, stdout
from sparring.console import set_up_logging

CHECKERS = "exact, number, choice, math or path/to/file.py:function"
Pattern = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX",
        help="Regular expression that finds the answer in a reply; evaluate.answer_pattern of the recipe when not given, '' for none.",
        show_default=False,
    ),
]


def grade_replies(
    run: RunFolder,
    checker: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Grade the replies again by this checker: {CHECKERS}. The stored grades when not given.",
            show_default=False,
        ),
    ] = None,
    iteration: Annotated[
        list[int] | None,
        typer.Option(min=0, metavar="N", help="Only this iteration; may be repeated. All players when not given.", show_default=False),
    ] = None,
    pattern: Pattern = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many prompts of every iteration, chosen by a hash.", show_default=False)
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write it as JSON, with the full texts.", show_default=False)
    ] = None,
) -> None:
    """Show the grades of a run's replies, or grade them again by another checker: pass rates, examples, disagreements. Nothing is
    sampled, and the run is not changed."""
    with outcome():
        set_up_logging(quiet=True)
        from sparring.grading.print_grades import show_grades

        show_grades(run, checker, pattern, iteration or [], limit, json_file, stdout())


def check_checker(
    checker: Annotated[str, typer.Argument(metavar="CHECKER", help=f"{CHECKERS[0].upper()}{CHECKERS[1:]}.", show_default=False)],
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|RECIPE|DATA", help="Where rows come from: a run, a recipe, or a data file or Hub id.", show_default=False
        ),
    ],
    pattern: Pattern = None,
    answer: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="For a data file: the column with the right answer.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows to try, chosen by a hash.")] = 500,
) -> None:
    """Try a checker on replies whose correct grade is known, such as human replies, empty ones, the prompt, the answer among wrong ones.
    Reports what it wrongly passes and the effect on the winners of a game. Loads no model."""
    with outcome():
        set_up_logging(quiet=True)
        from sparring.grading.print_trial import print_trial
        from sparring.grading.trial import try_checker

        print_trial(try_checker(checker, source, pattern, answer, limit), stdout())
