"""The tables of `sparring check-checker`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.checkers.probe import FALSE_POSITIVES, Tried, share_of_wrong_winners
from sparring.console import printable
from sparring.grading.examples import excerpt, grade_text, print_records
from sparring.grading.options import described
from sparring.grading.trial import CONFIDENCE, Trial

PASS_RATES = (0.5, 0.1, 0.02)
SHOULD = {True: "pass", False: "fail", None: "-"}


def print_trial(trial: Trial, console: Console) -> None:
    """Print how a checker graded each kind of probing reply, with examples, then the share of wrong winners and the verdict."""
    rows, count = trial.rows, trial.report.rows
    which = f"{count} rows of {rows.source}" if count == rows.there else f"{count} of {rows.there} rows of {rows.source}, chosen by a hash"
    console.print(Text(printable(f"{described(trial.checker)}, on replies made up for {which}")))
    _print_kinds(trial, console)
    for tried in trial.report.kinds:
        print_records(f"{tried.name}: {_title(tried)}", _records(tried), console)
    _print_arithmetic(trial, console)
    console.print(Text(printable(verdict(trial))))


def verdict(trial: Trial) -> str:
    """The verdict on the checker, in one line."""
    if trial.faults:
        return f"Verdict: do not use it as it is: {'; '.join(trial.faults)}."
    if not trial.tries_right_ones:
        return "Verdict: it let nothing through that it should not, but no row has a human reply: whether right replies pass was not tried."
    return "Verdict: it behaves: human replies pass, and what should fail does."


def _print_kinds(trial: Trial, console: Console) -> None:
    table = Table()
    for header in ("reply", "should", "tried", "passed", "not graded"):
        table.add_column(header, justify="left" if header == "reply" else "right")
    for tried in trial.report.kinds:
        table.add_row(tried.name, SHOULD[tried.should_pass], *map(str, (tried.tried, tried.passed, tried.failed)))
    console.print(table)


def _title(tried: Tried) -> str:
    return "these do not pass" if tried.should_pass else "these pass"


def _records(tried: Tried) -> list[dict[str, str]]:
    return [{"row": one.row_id, "reply": excerpt(one.reply), "grade": grade_text(one.grade)} for one in tried.examples]


def _print_arithmetic(trial: Trial, console: Console) -> None:
    """Share of wrong winners by the pass rate of the player and the checker's share of false positives."""
    shares = {f"f = {FALSE_POSITIVES:.0%}": FALSE_POSITIVES}
    if trial.false_positives is not None:
        measured, upper = trial.false_positives
        shares |= {f"{measured:.1%} (another row's reply)": measured, f"{upper:.1%} (its upper bound, {CONFIDENCE:.0%})": upper}
    console.print("Wrong ones among the winners, f (1 - a) / (f (1 - a) + a), for a share a of right replies and f of wrong ones that pass")
    table = Table()
    table.add_column("a", justify="right")
    for header in shares:
        table.add_column(header, justify="right")
    for rate in PASS_RATES:
        table.add_row(f"{rate:.0%}", *(f"{share_of_wrong_winners(rate, share):.1%}" for share in shares.values()))
    console.print(table)
