"""Replies with their grades as text, and the tables of `sparring check-checker`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.checkers.grades import Grade
from sparring.checkers.probe import FALSE_POSITIVES, share_of_wrong_winners
from sparring.console import printable
from sparring.grading.trial import CONFIDENCE, Trial, described

SHOWN = 600  # characters of a text


def print_records(title: str, records: Iterable[Mapping[str, str]], console: Console) -> None:
    """One table with a block of named lines for each record; nothing if there are no records."""
    table = Table(title=Text(printable(title)), title_justify="left", show_header=False)
    for record in records:
        for name, text in record.items():
            table.add_row(name, Text(printable(text)))
        table.add_section()
    if table.row_count:
        console.print(table)


def grade_text(grade: Grade) -> str:
    """The answer and the reason of a grade on one line, both shortened."""
    answer = "no answer" if grade.answer is None else f"answer {excerpt(grade.answer, 100)}"
    return f"{answer}; {excerpt(grade.reason, 200)}"


def excerpt(text: str, length: int = SHOWN) -> str:
    """The text, or only its beginning and its end, in which answers usually are."""
    return text if len(text) <= length else f"{text[: length // 2]} [...] {text[-(length // 2) :]}"


PASS_RATES = (0.5, 0.1, 0.02)
SHOULD = {True: "pass", False: "fail", None: "-"}


def print_trial(trial: Trial, console: Console) -> None:
    """Print how a checker graded each kind of probing reply, with examples, then the share of wrong winners and the verdict."""
    rows, count = trial.rows, trial.report.rows
    which = f"{count} rows of {rows.source}" if count == rows.there else f"{count} of {rows.there} rows of {rows.source}, chosen by a hash"
    console.print(Text(printable(f"{described(trial.checker)}, on replies constructed for {which}")))
    _print_kinds(trial, console)
    for tried in trial.report.kinds:
        title = f"{tried.name}: {'these do not pass' if tried.should_pass else 'these pass'}"
        shown = ({"row": one.row_id, "reply": excerpt(one.reply), "grade": grade_text(one.grade)} for one in tried.examples)
        print_records(title, shown, console)
    _print_arithmetic(trial, console)
    console.print(Text(printable(verdict(trial))))


def verdict(trial: Trial) -> str:
    """The verdict on the checker, in one line."""
    if trial.faults:
        return f"Verdict: do not use it as it is: {'; '.join(trial.faults)}."
    if not trial.tries_right_ones:
        return "Verdict: no wrong reply passes, but no row has a human reply, so whether right replies pass was not tried."
    return "Verdict: no fault found: human replies pass, and wrong replies fail."


def _print_kinds(trial: Trial, console: Console) -> None:
    table = Table()
    for header in ("reply", "should", "tried", "passed", "not graded"):
        table.add_column(header, justify="left" if header == "reply" else "right")
    for tried in trial.report.kinds:
        table.add_row(tried.name, SHOULD[tried.should_pass], *map(str, (tried.tried, tried.passed, tried.failed)))
    console.print(table)


def _print_arithmetic(trial: Trial, console: Console) -> None:
    """Print the share of wrong winners by the share of right replies and the checker's false positive rate."""
    shares = {f"f = {FALSE_POSITIVES:.0%}": FALSE_POSITIVES}
    if trial.false_positives is not None:
        measured, upper = trial.false_positives
        shares |= {f"{measured:.1%} (another row's reply)": measured, f"{upper:.1%} (its upper bound, {CONFIDENCE:.0%})": upper}
    console.print("Share of wrong winners, f (1 - a) / (f (1 - a) + a): a is the share of right replies, f that of wrong ones that pass")
    table = Table()
    table.add_column("a", justify="right")
    for header in shares:
        table.add_column(header, justify="right")
    for rate in PASS_RATES:
        table.add_row(f"{rate:.0%}", *(f"{share_of_wrong_winners(rate, share):.1%}" for share in shares.values()))
    console.print(table)
