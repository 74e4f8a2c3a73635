"""The commands that show runs (sample, status, watch, compare, report), this machine (doctor) and the documentation (docs)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparring.cli.shared import FAULT, INTERRUPTED, Argument, Option, RunFolder, outcome, stdout, stop
from sparring.console import printable, set_up_logging
from sparring.errors import UserError, suggestion

PAGES = Path(__file__).parent.parent / "docs"


def sample(
    run: RunFolder,
    prompt: Annotated[str, Argument(help="The prompt, a user turn.")],
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sampling temperature, 0 for greedy; the recipe's when not given.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system turn before the prompt; none when not given.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the replies; the recipe's when not given.")] = None,
) -> None:
    """Answer one prompt with every iteration, side by side."""
    with outcome():
        set_up_logging(quiet=True)
        from sparring.report.tables import print_replies
        from sparring.samples import answers

        print_replies(prompt, answers(run, prompt, temperature, seed, system), stdout())


def status(run: RunFolder) -> None:
    """The state of a run in one screen: the process that runs it, the stage, the newest numbers, the scores so far, how to resume it."""
    with outcome():
        from sparring.live import print_status, read_state

        print_status(read_state(run), stdout())


def watch(run: RunFolder) -> None:
    """Follow a running run from another terminal or machine until it ends. Exit code 0: the game is finished; 1: it stopped before."""
    with outcome():
        from sparring.live import watch as follow

        try:
            is_finished = follow(run, stdout())
        except KeyboardInterrupt:
            stop("stopped watching; the run is not affected", INTERRUPTED)
        raise typer.Exit(0 if is_finished else FAULT)


def compare(
    runs: Annotated[list[Path], Argument(metavar="RUN...", help="Run directories, also those of recipes with `seeds`.")],
    against: Annotated[
        str | None,
        Option(
            metavar="RUN:PLAYER",
            help="Reference of all comparisons: start, best, a number or a control; the first run's start when not given.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="Metric to compare, may be repeated; exact match and NLL per token, where measured, when not given."),
    ] = None,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Include runs that are not finished, and mark them.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap and of the random sign flips.")] = 0,
    json_file: Annotated[Path | None, Option("--json", metavar="FILE", help="Also write the comparison as JSON.")] = None,
    markdown: Annotated[Path | None, Option("--markdown", metavar="FILE", help="Also write it as Markdown.")] = None,
    html: Annotated[Path | None, Option("--html", metavar="FILE", help="Also write it as a page with plots.")] = None,
) -> None:
    """Compare the players of several runs on the same held-out rows: differences with errors, tests, and the compute of each."""
    with outcome():
        set_up_logging(quiet=True)
        from sparring.comparison.command import Files, show_comparison

        show_comparison(runs, against, metric or [], unfinished, seed, Files(json_file, markdown, html), stdout())


def report(
    run: RunFolder,
    output: Annotated[
        Path | None, Option(metavar="FILE", help="Where to write the page; report.html in the run directory when not given.")
    ] = None,
) -> None:
    """Render a run's report, one self-contained HTML file: verdict, scores, plots, samples side by side, recipe."""
    with outcome():
        set_up_logging()
        from sparring.report.run_page import write_report

        print(printable(f"wrote {write_report(run, output)}"))


def doctor() -> None:
    """Report versions, devices, memory, optional packages and access to the Hub. Exit code 2: no game can be played here."""
    with outcome():
        from sparring.doctor import examine

        examine()


def docs(page: Annotated[str | None, Argument(help="Name of the page; lists all names when not given.")] = None) -> None:
    """Print a page of the documentation, which comes with the package."""
    with outcome():
        if page is not None:
            print(_page(page))
            return
        for name, title in _pages().items():
            print(f"{name:<18}{title}")


def _pages() -> dict[str, str]:
    """Name -> title of every page, in the order of their names."""
    return {path.stem: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for path in sorted(PAGES.glob("*.md"))}


def _page(name: str) -> str:
    """The text of a page, in Markdown. Raises UserError where there is no such page."""
    names = list(_pages())
    if name not in names:
        remedy = suggestion(name, names, otherwise=f"the pages are {', '.join(names)}")
        raise UserError(f"no page named {name!r}", where="sparring docs", remedy=remedy)
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")
