"""Checkers that read an answer from a text and compare: exact, number, choice. No text is ever evaluated."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from sparring.checkers.grades import NO_ANSWER, NOTHING_TO_COMPARE, Checker, Grade, GradingRequest, answer_text, right_text

MAX_DIGITS = 100  # a longer number, or a larger power of ten, is not an answer

_SPACE = r"(?:[ \u00a0\u202f]|\\,)"
_COMMA = r"(?:,(?:\\!)?|\{,\})"  # LaTeX writes 1{,}234 and 1,\!234 too
_SIGN = "[-\u2212]"
# Digits with separators between them: 1,234.5 and 1 234, but 1.2.3 and 3,4 too: `_plain` says which are one number.
_DIGITS = rf"(?:[0-9]++(?:(?:[.'\u2019]|{_COMMA})[0-9]++|{_SPACE}[0-9]{{3}}(?![0-9]))*+|(?<!\.)\.[0-9]++(?!\.[0-9]))"
_PART = rf"[^{{}}]{{1,{MAX_DIGITS}}}"  # of \frac
_NUMBER = re.compile(
    rf"""
    (?P<raised>\^\{{?)?+
    (?:(?<![\w%)\].])(?P<sign>{_SIGN})(?:\\?[$€£¥₹])?)?  # 5-3 and (1)-2 have no sign, -5 and -$5 have one
    (?<![A-Za-z_0-9])(?<![0-9][.,])                      # x2 and the tail of x2.5 are no numbers
    (?:
        \\[dt]?frac(?=[^0-9]{{,{MAX_DIGITS}}}[0-9])\{{(?P<top>{_PART})\}}\{{(?P<bottom>{_PART})\}}
      | (?P<digits>{_DIGITS})
        (?: [eE](?P<power>[-+\u2212]?[0-9]++)(?!\w)
          | (?P<divided>(?:{_SPACE}?/{_SPACE}?{_DIGITS})++)
          | {_SPACE}(?P<part>[0-9]++/[0-9]++)(?![0-9/.,])
        )?+
    )
    """,
    re.VERBOSE,
)
_GROUPED = re.compile(rf"[0-9]{{1,3}}(?:(?:{_COMMA}[0-9]{{3}})+|(?:['\u2019][0-9]{{3}})+|(?:{_SPACE}[0-9]{{3}})+)(\.[0-9]+)?")
_PLAIN = re.compile(r"[0-9]+(\.[0-9]+)?|\.[0-9]+")


def last_number(text: str) -> Fraction | None:
    """The value of the last number of `text`. None: it has none, or the last one is not readable (over 100 digits, a date, x/0, 10^6)."""
    last = None
    for found in _NUMBER.finditer(text):
        before = text[max(0, found.start() - 1) : found.start()]
        if not (found["raised"] and before.isalpha()):  # neither the 2 of cm^2 nor that of x2 is a number
            last = found
    if last is None or last["raised"]:
        return None
    value = _value(last)
    if value is None or max(value.numerator, value.denominator) >= 10**MAX_DIGITS:  # 1e100: it could not be read back
        return None
    return -value if last["sign"] else value


def _value(found: re.Match[str]) -> Fraction | None:
    if found["top"]:
        return _ratio(_signed(found["top"]), _signed(found["bottom"]))
    digits = found["digits"]
    if found["divided"]:
        below = found["divided"].split("/")[1:]  # 12/05/2024 is no number
        return _ratio(_plain(digits), _plain(below[0].strip())) if len(below) == 1 else None
    if found["part"]:
        top, bottom = map(_plain, found["part"].split("/"))
        part, whole = _ratio(top, bottom), _plain(digits)
        if part is not None and part < 1 and whole is not None and whole.denominator == 1:
            return whole + part  # 1 1/2
        return part
    return _scaled(_plain(digits), found["power"])


def _plain(digits: str) -> Fraction | None:
    """The value of digits with separators. Commas that are not thousands separators separate numbers: 3,4 ends in 4."""
    if len(digits) > 2 * MAX_DIGITS:
        return None
    if not _GROUPED.fullmatch(digits):
        digits = re.split(f"{_COMMA}|['\u2019]|{_SPACE}", digits)[-1]
    if not (_GROUPED.fullmatch(digits) or _PLAIN.fullmatch(digits)):
        return None
    digits = re.sub(r"[^0-9.]", "", digits)
    return Fraction(digits) if len(digits.replace(".", "")) <= MAX_DIGITS else None


def _signed(text: str) -> Fraction | None:
    """The value of the numerator or denominator of \\frac."""
    digits = text.strip()
    value = _plain(re.sub(rf"^{_SIGN}\s*", "", digits))
    return -value if value is not None and re.match(_SIGN, digits) else value


def _ratio(top: Fraction | None, bottom: Fraction | None) -> Fraction | None:
    return top / bottom if top is not None and bottom else None


def _scaled(value: Fraction | None, power: str | None) -> Fraction | None:
    """`value` times ten to the `power`, read only between -100 and 100: 1e999999999 must cost nothing."""
    if value is None or power is None:
        return value
    sign, size = power[0] in "-\u2212", power.lstrip("+-\u2212").lstrip("0") or "0"
    if len(size) > 3 or int(size) > MAX_DIGITS:
        return None
    return value / 10 ** int(size) if sign else value * 10 ** int(size)


_MARKS = r"[*_$\s]*+"  # bold, mathematics, blanks
# Letters that are words as well (a, I, any small one) count only where the line or the sentence ends behind them.
_BARE = r"(?:[B-HJ](?![\w'\u2019])|[A-Ja-j](?=[*_$]*+(?:[.,;:!)\]]|\s*+$|[ \t]*+\n)))"
_SAID = re.compile(
    rf"\b(?i:answer){_MARKS}(?:"
    rf"(?:is\b|[:=]){_MARKS}:?+{_MARKS}(?:(?i:option|choice)\b{_MARKS})?+(?:\((?P<closed>[A-Ja-j])\)|(?P<bare>{_BARE}))"
    r"|\((?P<alone>[A-Ja-j])\))"
)
_AT_START = re.compile(rf"{_MARKS}(?:\(([A-Ja-j])\)|([A-Ja-j])\)|([A-Ja-j])[.:](?!\w)|([A-Ja-j]){_MARKS}\Z)")


def chosen_letter(text: str) -> str | None:
    """The letter, as a capital, of the last "answer is (B)" or "answer: B", else `leading_letter`."""
    said = [match["closed"] or match["bare"] or match["alone"] for match in _SAID.finditer(text)]
    return said[-1].upper() if said else leading_letter(text)


def leading_letter(text: str) -> str | None:
    """The letter, as a capital, of "(B)", "B)", "B." or "B:" at the very start of a text, or of a text that is the letter alone."""
    found = _AT_START.match(text)
    return next(letter for letter in found.groups() if letter).upper() if found else None


Read = Callable[[str], str | None]


class TextChecker(Checker):
    """Two answers are equal where their normal forms are.

    `read` turns a text, or what `pattern` finds in one, into an answer's normal form; None: there is none in it.
    """

    def __init__(self, name: str, read: Read, pattern: re.Pattern[str] | None) -> None:
        self.name, self._read, self._pattern = name, read, pattern
        self.fingerprint: dict[str, Any] = {"kind": name, "answer_pattern": pattern.pattern if pattern else None}

    def grade(self, asked: Sequence[GradingRequest]) -> list[list[Grade]]:
        return [self._grade_prompt(one) for one in asked]

    def expected(self, asked: GradingRequest) -> str | None:
        return self._read_from(right_text(self._pattern, asked))

    def _grade_prompt(self, asked: GradingRequest) -> list[Grade]:
        gold = self.expected(asked)
        answers = [self._read_from(answer_text(self._pattern, reply)) for reply in asked.replies]
        shared = self._shared(answer for answer in answers if answer is not None)
        return [self._grade(answer, shared, gold) for answer in answers]

    def _read_from(self, text: str | None) -> str | None:
        return None if text is None else self._read(text)

    def _grade(self, answer: str | None, shared: Mapping[str, str], gold: str | None) -> Grade:
        if answer is None:
            return graded(None, False, gold)
        return graded(shared[answer], gold is not None and self._equal(answer, gold), gold)

    def _equal(self, answer: str, gold: str) -> bool:
        return answer == gold

    def _shared(self, answers: Iterable[str]) -> dict[str, str]:
        """The text under which each answer of one prompt votes."""
        return {answer: answer for answer in answers}


class NumberChecker(TextChecker):
    """Numbers by exact value, or by an absolute difference of `tolerance` at most. The normal form is a fraction: 18, 1/3."""

    def __init__(self, pattern: re.Pattern[str] | None, tolerance: float) -> None:
        super().__init__("number", read_number, pattern)
        self._tolerance = Fraction(repr(tolerance))  # 0.1 is one tenth
        self.fingerprint["tolerance"] = tolerance

    def _equal(self, answer: str, gold: str) -> bool:
        return abs(Fraction(answer) - Fraction(gold)) <= self._tolerance

    def _shared(self, answers: Iterable[str]) -> dict[str, str]:
        """The smallest one represents all that are equal to it, then the smallest of the others, and so on: independent of their order."""
        shared: dict[str, str] = {}
        representative = None
        for value in sorted({Fraction(answer) for answer in answers}):
            if representative is None or value - representative > self._tolerance:
                representative = value
            shared[str(value)] = str(representative)
        return shared


def graded(answer: str | None, is_equal: bool, gold: str | None) -> Grade:
    """The grade of an extracted answer (or None), compared with the right one."""
    if gold is None:
        return Grade(None, answer, NOTHING_TO_COMPARE)
    if answer is None:
        return Grade(0.0, None, NO_ANSWER)
    return Grade(1.0, answer, "equal") if is_equal else Grade(0.0, answer, f"differs from {gold[:60]!r}")


def read_text(text: str) -> str | None:
    """The text without surrounding white space; None where nothing is left."""
    return text.strip() or None


def read_number(text: str) -> str | None:
    """The last number of a text in its normal form; None where there is none."""
    value = last_number(text)
    return None if value is None else str(value)
