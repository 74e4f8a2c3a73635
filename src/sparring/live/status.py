"""`sparring status`: the state of a run in one screen."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import starmap
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.console import counted, fitting, printable
from sparring.live.state import ProcessState, RunState, last_step, rates, saved_progress, scores
from sparring.progress import STALE_SECONDS, in_one_line
from sparring.report.outcome import metric_words, verdict
from sparring.report.tables import Column, TableRow, answer_words, models_table, print_table, samples_of, score_text, with_error

MOST_SCORES = 8


def print_status(state: RunState, out: Console) -> None:
    """Print the state of a run, its newest scores, and the command that resumes it unless it is running or finished."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(state):
        table.add_row(name, Text(fitting(value, out)))
    out.print(table)
    if shown := list(scores(state))[-MOST_SCORES:]:
        _print_scores(shown, state.recipe.metric, state.process is ProcessState.FINISHED, out)
    if state.process not in (ProcessState.FINISHED, ProcessState.RUNNING):
        out.print(Text(resume_command(state)), soft_wrap=True)


def resume_command(state: RunState) -> str:
    """The command that resumes the run, with a condition if its process may still be running."""
    condition = "" if state.process is not ProcessState.SILENT else "if its process no longer runs, "
    return f"{condition}resume with:\n  {printable(state.command)}"


def how_it_is(state: RunState) -> str:
    """Whether a process works on the run, since when, and how the last attempt ended."""
    who, last = state.holder, state.attempts[-1] if state.attempts else {}
    written = f"last progress {_ago(state.silent_seconds)}" if state.silent_seconds is not None else "no progress so far"
    match state.process:
        case ProcessState.RUNNING if who is not None:
            note = f"; {written}" if (state.silent_seconds or 0) > STALE_SECONDS else ""
            return f"running: {who.name}, since {_since(who.since)}{note}"
        case ProcessState.SILENT if who is not None:
            return f"{who.name}, since {_since(who.since)}; {written}: it was killed, or its machine or disk cannot be reached"
        case ProcessState.KILLED if who is not None:
            return f"not running: {who.name}, since {_since(who.since)}, was killed"
        case ProcessState.FINISHED:
            return f"finished {_since(state.last_finished)}" if state.last_finished else "finished"
    ended = f" {_since(last['ended'])}" if last.get("ended") else ""
    return f"not running: the last attempt of {len(state.attempts)} ended{ended}: {last.get('outcome', 'its outcome is unknown')}"


def _lines(state: RunState) -> Iterator[tuple[str, str]]:
    yield "run", str(state.root)
    yield "state", how_it_is(state)
    yield "objective", state.recipe.objective.name
    if state.process is ProcessState.FINISHED and state.summary is not None:
        yield "outcome", verdict(state.summary, str(state.root))
        yield from _graded(state)
        return
    if state.stage is not None:
        yield "stage", f"{state.stage} ({state.finished} of {len(state.stages)} finished)"
    if state.process is ProcessState.RUNNING and state.now is not None:
        yield "progress", in_one_line(state.now)
        if sample := state.now["sample"]:
            yield "a reply", " -> ".join(sample)
    yield from _graded(state)
    if (row := last_step(state)) is not None:
        yield "last step", _step(row)
    if state.process is not ProcessState.RUNNING and state.stage is not None:
        rest = saved_progress(state)
        yield "resumes", f"with {state.stage}" + (f", from {rest}" if rest else "")


def _graded(state: RunState) -> Iterator[tuple[str, str]]:
    """The grades of the newest opponent's replies, for verified and majority targets."""
    if found := rates(state):
        values = ", ".join(f"{name.replace('_', ' ')} {score_text(rate, 3)}" for name, rate in found[1].items())
        failed = f", {counted(found[2], 'checker failure')}" if found[2] else ""
        yield "graded", f"{found[0]}: {values or 'no reply has a score or an answer'}{failed}"


def _step(row: dict[str, Any]) -> str:
    where = f"iteration {row['iteration']}" if "iteration" in row else row["stage"]
    numbers = (f"{name} {row[name]:.4g}" for name in ("loss", "margin", "accuracy") if name in row)
    return f"{where}, step {row['step'] + 1}: {', '.join(numbers)}"


def _print_scores(shown: list[tuple[str, dict[str, Any]]], metric: str, is_over: bool, out: Console) -> None:
    first = shown[0][1]
    names = {metric: metric_words(metric).replace("_", " ")}
    if samples_of(first) > 1:
        names |= {name: words for name, words in answer_words(first).items() if name != "exact_match_greedy"}
        names |= {"vote_share": "vote share"} if "vote_share" in first else {}
    names |= {"duel_margin": "duel margin", "duel_accuracy": "duel accuracy"}
    columns = [Column(header, with_error(name, 3)) for name, header in names.items()]
    print_table(models_table(f"Scores{'' if is_over else ' so far'} (± standard error)", columns, list(starmap(TableRow, shown))), out)


def _since(moment: str) -> str:
    """`2026-11-22 11:24 UTC (5 minutes ago)`."""
    try:
        then = datetime.fromisoformat(moment)
        return f"{then:%Y-%m-%d %H:%M} UTC ({_ago((datetime.now(UTC) - then).total_seconds())})"
    except (ValueError, TypeError):  # not what we write
        return moment


def _ago(seconds: float) -> str:
    return f"{timedelta(seconds=max(0, round(seconds)))} ago"
