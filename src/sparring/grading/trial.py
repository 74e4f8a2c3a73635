"""`sparring check-checker`: rows of a run, a recipe or a data file, and which wrong replies to them a checker passes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from sparring.checkers.grades import MOST_FAILURES, Checker, Grade, GradingRequest, ask
from sparring.checkers.make import CheckerSettings, checker_settings, make_checker
from sparring.checkers.probe import FALSE_POSITIVES, ProbeReport, Tried, probe, share_of_wrong_winners
from sparring.config import DataSection, PromptsSection, Recipe, builtin_recipes, load_recipe, section_from_options
from sparring.console import printable
from sparring.data.conversations import has_no_user_text, is_empty, load_conversations, load_prompts
from sparring.data.prepare import read_examples
from sparring.data.records import Conversation
from sparring.errors import UserError
from sparring.evaluation.metrics import wilson_interval
from sparring.rundir import RECIPE, RunDir
from sparring.stage_names import recipe_of_game

CHECKER, PATTERN, ANSWER = "CHECKER", "--pattern", "--answer"
RIGHT, WRONG, SPRAYED = "human reply", "human reply of another row", ("sprayed", "sprayed, reversed")
LEAST_RIGHT = 0.95  # share of human replies that must pass: the data has errors too
MENTIONED = 0.5  # with a larger share of passing sprayed answers it suffices to mention it; one in ten is last by chance
CONFIDENCE = 0.95
SHOWN = 600  # characters of a text
PASS_RATES = (0.5, 0.1, 0.02)
SHOULD = {True: "pass", False: "fail", None: "-"}


@contextlib.contextmanager
def checker_of(settings: CheckerSettings, option: str) -> Iterator[Checker]:
    """The checker, closed at the end. `option`: the option that names it. Raises UserError, with the names of the command's options, if it
    cannot be created or a user's function fails on everything."""
    words = {"target.checker": option, "evaluate.answer_pattern": PATTERN}
    with in_words_of(words), contextlib.closing(make_checker(settings)) as checker:
        yield checker


def settings_for(recipe: Recipe | None, name: str | None, pattern: str | None, option: str) -> CheckerSettings:
    """The settings of a checker, with the options of a recipe if there is one.

    name: None for the checker of the recipe's held-out replies; pattern: None for the recipe's, empty for none; option: the option that
    names the checker. Raises UserError for the control `random`.
    """
    if name == "random":
        raise UserError("random shuffles the scores of another checker, as a control for games; it cannot grade", where=option)
    of_recipe = recipe and checker_settings(recipe, name or recipe.target.grading_checker)
    settings = of_recipe or CheckerSettings(name or "exact", None)
    return settings if pattern is None else replace(settings, answer_pattern=pattern or None)


@contextlib.contextmanager
def in_words_of(options: Mapping[str, str]) -> Iterator[None]:
    """Replace recipe keys by the command's options in a UserError. `options`: key -> option."""
    try:
        yield
    except UserError as error:
        parts = {"what": error.what, "where": error.where, "remedy": error.remedy}
        for key, option in options.items():
            parts = {name: text and text.replace(key, option) for name, text in parts.items()}
        raise UserError(parts["what"] or "", where=parts["where"], remedy=parts["remedy"]) from None


def described(fingerprint: Mapping[str, Any]) -> str:
    """A checker in words: its name, pattern and tolerance."""
    kind = fingerprint["kind"]
    if kind == "own":
        kind = f"{fingerprint['path']}:{fingerprint['function']} (sha256 {fingerprint['sha256'][:12]})"
    pattern, tolerance = fingerprint.get("answer_pattern"), fingerprint.get("tolerance")
    return kind + (f", pattern {pattern!r}" if pattern is not None else "") + (f", tolerance {tolerance:g}" if tolerance else "")


@dataclass(frozen=True)
class TrialRows:
    """The first `limit` prompts by row id, with their answers."""

    source: str
    recipe: Recipe | None  # None for a data file
    asked: list[GradingRequest]
    there: int  # how many prompts there are


def trial_rows(source: str, answer: str | None, limit: int) -> TrialRows:
    """Rows with a human reply or an answer. Raises UserError if they cannot be read, or there is no such row."""
    path = Path(source)
    is_recipe, is_run = source in builtin_recipes() or path.suffix.lower() in (".yaml", ".yml"), (path / RECIPE).is_file()
    if answer is not None and (is_recipe or is_run):
        raise UserError(f"{answer!r} is for a data file; a recipe names the column itself", where=ANSWER, remedy="leave it out")
    if is_run:
        recipe, asked = _of_run(path)
    elif is_recipe:
        recipe = load_recipe(path)
        asked = [*_with_replies(recipe.data, recipe.seed), *(_prompts(recipe.data.prompts, recipe.data) if recipe.data.prompts else [])]
    else:
        recipe, asked = None, _of_file(source, answer)
    usable = {one.row_id: one for one in asked if one.human is not None or one.answer is not None}
    if not usable:
        what = "no row has a human reply or an answer, so it is not known how a checker should grade"
        raise UserError(what, where=source, remedy=None if answer else f"name the column with the answer: {ANSWER}")
    return TrialRows(source, recipe, [usable[row_id] for row_id in sorted(usable)[:limit]], len(usable))


def _of_run(root: Path) -> tuple[Recipe, list[GradingRequest]]:
    """All rows that the run has prepared, held-out ones included."""
    recipe, run = recipe_of_game(root), RunDir(root)
    if run.finished("data") is None:
        raise UserError("this run has not prepared its data yet", where=str(root), remedy="run its recipe, or name the recipe or the data")
    files = sorted(run.verified("data").path.glob("*.parquet"))
    return recipe, ask([example for file in files for example in read_examples(file)], {})


def _of_file(source: str, answer: str | None) -> list[GradingRequest]:
    """Rows with replies or, if the rows do not have such a shape, prompts with answers."""
    values, options = {"path": source, "answer": answer}, {"path": "DATA", "answer": ANSWER}
    with in_words_of({"data.answer": ANSWER, "data.prompts.answer": ANSWER, "data.columns": "data.columns of a recipe"}):
        data = section_from_options(DataSection, values, options)
        try:
            return _with_replies(data, seed=0)
        except UserError as error:
            try:
                return _prompts(section_from_options(PromptsSection, values, options), data)
            except UserError as of_prompts:
                if answer is None or of_prompts.what == error.what:
                    raise error from None
                remedy = f"{error.remedy}; read as prompts without replies: {of_prompts.where}: {of_prompts.what}"
                raise UserError(error.what, where=error.where, remedy=remedy) from None


def _with_replies(section: DataSection, seed: int) -> list[GradingRequest]:
    return [_asked(c, c.reply) for _, c in load_conversations(section, seed).rows if not is_empty(c)]


def _prompts(section: PromptsSection, data: DataSection) -> list[GradingRequest]:
    return [_asked(c, None) for _, c in load_prompts(section, data).rows if not has_no_user_text(c)]


def _asked(conversation: Conversation, human: str | None) -> GradingRequest:
    return GradingRequest(conversation.row_id, conversation.prompt, conversation.answer, human, conversation.columns, ())


@dataclass(frozen=True)
class Trial:
    """How a checker graded replies whose correct grade is known."""

    rows: TrialRows
    checker: dict[str, Any]  # its fingerprint
    report: ProbeReport
    # the share of wrong replies that pass, as measured on human replies of other rows, with its upper bound at CONFIDENCE (Wilson)
    false_positives: tuple[float, float] | None  # None if none was tried
    faults: list[str]  # one sentence each


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


def print_trial(trial: Trial, console: Console) -> None:
    """Print how a checker graded each kind of probing reply, with examples, then the share of wrong winners and the verdict."""
    rows, count = trial.rows, trial.report.rows
    which = f"{count} rows of {rows.source}" if count == rows.there else f"{count} of {rows.there} rows of {rows.source}, chosen by a hash"
    console.print(Text(printable(f"{described(trial.checker)}, on replies constructed for {which}")))
    table = Table("reply", *(Column(header, justify="right") for header in ("should", "tried", "passed", "not graded")))
    for tried in trial.report.kinds:
        table.add_row(tried.name, SHOULD[tried.should_pass], *map(str, (tried.tried, tried.passed, tried.failed)))
    console.print(table)
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
    if not trial.report[RIGHT].tried:
        return "Verdict: no wrong reply passes, but no row has a human reply, so whether right replies pass was not tried."
    if not any(trial.report[name].tried for name in SPRAYED):
        why = f"which is not known: name its column ({ANSWER}, or data.answer of a recipe)"
        return f"Verdict: human replies pass, and wrong replies fail, but no lists with the right answer were tried, {why}."
    return "Verdict: no fault found: human replies pass, and wrong replies fail."


def _print_arithmetic(trial: Trial, console: Console) -> None:
    """Print the share of wrong winners by the share of right replies and the checker's false positive rate."""
    shares = {f"f = {FALSE_POSITIVES:.0%}": FALSE_POSITIVES}
    if trial.false_positives is not None:
        measured, upper = trial.false_positives
        shares |= {f"{measured:.1%} (another row's reply)": measured, f"{upper:.1%} (its upper bound, {CONFIDENCE:.0%})": upper}
    console.print("Share of wrong winners, f (1 - a) / (f (1 - a) + a): a is the share of right replies, f that of wrong ones that pass")
    table = Table(*(Column(header, justify="right") for header in ("a", *shares)))
    for rate in PASS_RATES:
        table.add_row(f"{rate:.0%}", *(f"{share_of_wrong_winners(rate, share):.1%}" for share in shares.values()))
    console.print(table)
