"""`sparring check-checker`: which wrong replies a checker passes, and the effect on the winners of a game."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sparring.checkers.grades import MOST_FAILURES
from sparring.checkers.probe import FALSE_POSITIVES, ProbeReport, Tried, probe
from sparring.evaluation.metrics import wilson_interval
from sparring.grading.trial_rows import TrialRows, checker_of, settings_for, trial_rows

CHECKER = "CHECKER"
RIGHT, WRONG, SPRAYED = "human reply", "human reply of another row", ("sprayed", "sprayed, reversed")
LEAST_RIGHT = 0.95  # share of human replies that must pass: the data has errors too
MENTIONED = 0.5  # with a larger share of passing sprayed answers a mention is enough; one in ten is last by chance
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Trial:
    """`false_positives`: the share of wrong replies that pass, as measured on human replies of other rows, with its upper bound at
    CONFIDENCE (Wilson); None if none was tried. `faults`: the checker's faults, one sentence each."""

    rows: TrialRows
    checker: dict[str, Any]
    report: ProbeReport
    false_positives: tuple[float, float] | None
    faults: list[str]

    @property
    def tries_right_ones(self) -> bool:
        """Whether any human reply was tried."""
        return self.report[RIGHT].tried > 0


def try_checker(name: str, source: str, pattern: str | None, answer: str | None, limit: int) -> Trial:
    """Try the checker `name` on rows of `source`. Raises UserError if the checker or the rows cannot be loaded, or no row has an answer."""
    rows = trial_rows(source, answer, limit)
    recipe = rows.recipe
    with checker_of(settings_for(recipe, name, pattern, CHECKER), CHECKER) as checker:
        report = probe(checker, rows.asked, seed=0, pass_score=recipe.target.pass_score if recipe else 1.0)
        return Trial(rows, checker.fingerprint, report, _false_positives(report[WRONG]), list(faults(report)))


def faults(report: ProbeReport) -> Iterator[str]:
    """The faults of a checker, one sentence each."""
    right = report[RIGHT]
    if right.passed < LEAST_RIGHT * right.tried:
        yield f"it fails {right.tried - right.passed} of {right.tried} human replies, which should pass"
    for tried in report.kinds:
        if tried.should_pass is False and tried.passed > FALSE_POSITIVES * tried.tried:
            yield f"it passes {tried.passed} of {tried.tried} replies of the kind '{tried.name}', which should fail"
    if all(report[name].passed > MENTIONED * report[name].tried for name in SPRAYED):
        passed, count = (sum(getattr(report[name], part) for name in SPRAYED) for part in ("passed", "tried"))
        yield f"it passes {passed} of {count} replies that list the right answer among wrong ones: it suffices to mention it"
    failed, count = (sum(getattr(tried, part) for tried in report.kinds) for part in ("failed", "tried"))
    if failed > MOST_FAILURES * count:
        yield f"it failed to grade {failed} of {count} replies; a run stops if more than {MOST_FAILURES:.0%} fail"


def _false_positives(wrong: Tried) -> tuple[float, float] | None:
    if not wrong.tried:
        return None
    share = wrong.passed / wrong.tried
    return share, wilson_interval(share, wrong.tried, CONFIDENCE)[1]
