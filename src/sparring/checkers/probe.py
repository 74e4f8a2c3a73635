"""Probes of a checker: replies that are known to be right or wrong."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sparring.checkers.builtin import last_number, leading_letter
from sparring.checkers.grades import Checker, Grade, GradingRequest

FALSE_POSITIVES = 0.01  # share of wrong replies that a good checker passes at most
DISTRACTORS = 9
EXAMPLES = 3
SEEN = 200  # rows whose answers are distractors of answers that are neither numbers nor letters
TRIES = 20  # to find a row with another answer
UNKNOWN = "I do not know"


@dataclass(frozen=True)
class ProbeExample:
    """One probing reply and the grade that the checker gave it."""

    row_id: str
    reply: str
    grade: Grade


@dataclass(frozen=True)
class Tried:
    """One kind of reply, and how many of them were tried, passed and could not be graded."""

    name: str
    should_pass: bool | None  # None where either may be right: a rule that takes the last number passes some sprayed answers
    tried: int
    passed: int
    failed: int
    examples: tuple[ProbeExample, ...]  # whose grade is not the expected one


@dataclass(frozen=True)
class ProbeReport:
    """The results by kind of reply. `rows`: the number of probed prompts, which have a human reply or a right answer."""

    rows: int
    kinds: tuple[Tried, ...]

    def __getitem__(self, name: str) -> Tried:
        return next(tried for tried in self.kinds if tried.name == name)


KINDS: dict[str, bool | None] = {
    "human reply": True,
    "empty": False,
    "blank": False,
    "prompt": False,
    "sprayed": None,
    "sprayed, reversed": None,
    "half of the human reply": False,
    "human reply of another row": False,
    UNKNOWN: False,
}


def probe(checker: Checker, asked: Sequence[GradingRequest], seed: int, pass_score: float = 1.0) -> ProbeReport:
    """Grade made-up replies to every prompt that has a human reply, or at least a right answer; `asked.replies` are not read.

    A score of `pass_score` or more passes. The same `seed` makes up the same replies.
    """
    known = [(one, gold) for one in asked if (gold := _gold(checker, one)) is not None or one.human is not None]
    rows, golds = [one for one, _ in known], [gold for _, gold in known]
    made = [_made_up(n, rows, golds, seed) for n in range(len(rows))]
    graded = checker.grade([replace(one, replies=tuple(replies.values())) for one, replies in zip(rows, made, strict=True)])
    found: dict[str, list[ProbeExample]] = {name: [] for name in KINDS}
    for one, replies, grades in zip(rows, made, graded, strict=True):
        for (name, reply), grade in zip(replies.items(), grades, strict=True):
            found[name].append(ProbeExample(one.row_id, reply, grade))
    return ProbeReport(len(rows), tuple(_counted(name, examples, pass_score) for name, examples in found.items()))


def share_of_wrong_winners(pass_rate: float, false_positives: float) -> float:
    """Of the replies that pass, the share that is wrong: f (1 - a) / (f (1 - a) + a).

    a: the share of replies that are right; f: the share of wrong replies that pass.
    """
    wrong = false_positives * (1 - pass_rate)
    return wrong / (wrong + pass_rate) if wrong + pass_rate else 0.0


def _counted(name: str, examples: Sequence[ProbeExample], pass_score: float) -> Tried:
    passed = [example.grade.score is not None and example.grade.score >= pass_score for example in examples]
    failed = sum(example.grade.failed for example in examples)
    shown = [example for example, is_passed in zip(examples, passed, strict=True) if is_passed != bool(KINDS[name])]
    return Tried(name, KINDS[name], len(examples), sum(passed), failed, tuple(shown[:EXAMPLES]))


def _made_up(n: int, rows: Sequence[GradingRequest], golds: Sequence[str | None], seed: int) -> Mapping[str, str]:
    """kind -> the reply of that kind to row `n`; a row without a human reply or a right answer gets fewer kinds."""
    one, gold, chance = rows[n], golds[n], random.Random(f"{seed} {rows[n].row_id}")
    replies = {"empty": "", "blank": " \n\n ", "prompt": "\n".join(message["content"] for message in one.prompt), UNKNOWN: UNKNOWN}
    if one.human is not None:
        replies |= {"human reply": one.human, "half of the human reply": one.human[: len(one.human) // 2]}
    if gold is not None:
        words = _among_decoys(gold, [other for other in golds[:SEEN] if other is not None], chance)
        replies |= {"sprayed": ", ".join(words), "sprayed, reversed": ", ".join(reversed(words))}
    other = _another_human_reply(n, rows, golds, chance)
    return replies if other is None else {**replies, "human reply of another row": other}


def _another_human_reply(n: int, rows: Sequence[GradingRequest], golds: Sequence[str | None], chance: random.Random) -> str | None:
    """The human reply of a random row with another answer, as far as answers are known."""
    for other in (chance.randrange(len(rows)) for _ in range(TRIES)):
        if rows[other].human not in (None, rows[n].human) and (golds[n] is None or golds[other] != golds[n]):
            return rows[other].human
    return None


def _gold(checker: Checker, asked: GradingRequest) -> str | None:
    """The right answer as the checker reads it, or as in the data for a user's function."""
    return checker.expected(asked) or (asked.answer or "").strip() or None


def _among_decoys(gold: str, golds: Sequence[str], chance: random.Random) -> list[str]:
    """The right answer at a random place among others of the same type: letters, numbers near it, or other rows' answers."""
    value = last_number(gold)
    if letter := leading_letter(gold):
        others = [other for other in "ABCDEFGHIJ" if other != letter]
    elif value is not None:
        others = [str(value + step) for step in range(-DISTRACTORS, DISTRACTORS + 1) if step]
    else:
        others = sorted(set(golds) - {gold})
    words = [gold, *chance.sample(others, min(DISTRACTORS, len(others)))]
    chance.shuffle(words)
    return words
