"""exact, number and choice: by hand, by properties, and what goes wrong in public code."""

from __future__ import annotations

import os
from decimal import Decimal
from fractions import Fraction

import pytest
from asking import ask, made
from hypothesis import given
from hypothesis import strategies as st

from sparring.checkers.builtin import chosen_letter, last_number, leading_letter
from sparring.checkers.make import CheckerSettings, make_checker
from sparring.errors import UserError

HASHES = r"#### (.+)"

# ---------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", "18"),
        ("It is 18.", "18"),
        ("18.00", "18"),
        ("1,234", "1234"),
        ("1,234.50 euros", "2469/2"),
        ("1 234", "1234"),
        ("1\u00a0234\u202f567", "1234567"),
        ("1'234", "1234"),
        ("3, 4", "4"),
        ("3,4", "4"),
        ("1234,567", "567"),  # four digits before the comma: no thousands separator
        ("1, 234", "234"),
        ("In 2019 100 came", "100"),
        ("1/2", "1/2"),
        ("6 / 4", "3/2"),
        ("1 1/2", "3/2"),
        ("-1 1/2", "-3/2"),
        ("7 3/2", "3/2"),  # not mixed: the fraction is no part of one
        (r"\frac{1}{2}", "1/2"),
        (r"-\dfrac{3}{4}", "-3/4"),
        (r"\frac{-1}{2}", "-1/2"),
        (r"-\frac{ -1.5 }{2}", "3/4"),
        (r"5 = \frac{a}{b}", "5"),
        ("1{,}234", "1234"),
        (r"1,\!234,\!567", "1234567"),
        (r"18\,000", "18000"),
        (r"3\,4", "4"),
        ("18 cm^2", "18"),
        ("18 m^{-1}", "18"),
        ("2^3 = 8", "8"),
        ("50%", "50"),
        ("$18", "18"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("\u22125", "-5"),
        ("5-3", "3"),
        ("10 - 4", "4"),
        ("(2)-1", "1"),
        (".5", "1/2"),
        ("1e3", "1000"),
        ("2.5E-1", "1/4"),
        ("1e\u22121", "1/10"),
        ("3eggs", "3"),
        ("18/hour", "18"),
        ("first 3, then 7", "7"),
        ("9" * 100, "9" * 100),
    ],
)
def test_numbers_by_hand(text: str, value: str) -> None:
    assert last_number(text) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "x2",
        "H2O",
        "x2.5",
        "1/0",
        "12/05/2024",
        "10^6",
        r"3 \times 10^{-6}",
        "x^2",
        r"\frac{x}{2}",
        r"\frac{1}{0}",
        "1.2.3",
        "9" * 101,
        "1e100",
        "1e101",
        "1e999999999",
        "1e-999999999",
        "." * 9,
        "inf",
        "nan",
    ],
)
def test_no_number(text: str) -> None:
    assert last_number(text) is None


def test_a_number_that_cannot_be_read_hides_the_ones_before_it() -> None:
    """Else a reply that ends in a date or in endless digits would be graded by some other number of it."""
    assert last_number("18, on 12/05/2024") is None
    assert last_number("18 " + "7" * 500) is None
    assert last_number(r"18 or \frac{x}{2}") is None


@given(st.fractions(max_denominator=10**6), st.text(alphabet="abc \n.", max_size=20))
def test_a_fraction_is_read_back(value: Fraction, before: str) -> None:
    assert last_number(f"{before} {value}") == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**12), max_value=10**12))
def test_decimals_and_thousands_separators_are_exact(value: Decimal) -> None:
    assert last_number(f"= {value:f}") == Fraction(value)
    assert last_number(f"= {value:,f}") == Fraction(value)
    assert last_number(f"= {value:e}") == Fraction(value)


@given(st.text(max_size=200))
def test_reading_is_idempotent(text: str) -> None:
    value = last_number(text)
    assert value is None or last_number(str(value)) == value


@given(st.integers(-50, 50), st.integers(1, 9), st.integers(-50, 50), st.integers(1, 9))
def test_equality_is_that_of_fractions(a: int, b: int, c: int, d: int) -> None:
    with made("number") as checker:
        (grade,) = checker.grade([ask(f"so {a}/{b}", answer=f"{c}/{d}")])[0]
    assert grade.score == float(Fraction(a, b) == Fraction(c, d))
    assert grade.answer == str(Fraction(a, b))


@pytest.mark.parametrize(
    "piece",
    [
        "1",
        "1,",
        "1 ",
        "1/",
        "123,",
        "123 ",
        "1e",
        "-",
        ".1",
        "1'",
        "1 222 ",
        r"\frac{1",
        r"\frac{",
        r"\frac{1}{",
        "1{,}",
        r"1\,",
        "^{",
        "(",
        "[{",
        "1 2/3",
        "$",
    ],
)
def test_a_megabyte_of_anything_is_read(piece: str) -> None:
    """Were the reading quadratic, this would take hours and not a second."""
    last_number(piece * (1_000_000 // len(piece)))


# ---------------------------------------------------------------------------------------------- letters


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (B)", "B"),
        ("the answer is (b).", "B"),
        ("Answer: B", "B"),
        ("answer: b", "B"),
        ("**Answer:** C", "C"),
        ("Answer: **C**", "C"),
        ("answer is\n\nD\n", "D"),
        ("The answer is option J.", "J"),
        ("The answer is B because it is round", "B"),
        ("The answer is A.", "A"),
        ("answer = E", "E"),
        ("(B)", "B"),
        ("B) Paris", "B"),
        ("B. Paris", "B"),
        ("B", "B"),
        (" b \n", "B"),
        ("$B$", "B"),
        ("B) 7. No: the answer is C", "C"),
        ("The answer is B. Wait, the answer is (D)", "D"),
        ("A dog", None),
        ("I think so", None),
        ("The answer is a dog", None),
        ("The answer is I think 5", None),
        ("The answer is not B", None),
        ("The answer is Black", None),
        ("B.C. is a place", None),
        ("K", None),
        ("I would say B", None),
        ("", None),
    ],
)
def test_letters_by_hand(text: str, letter: str | None) -> None:
    assert chosen_letter(text) == letter


@given(st.text(max_size=100))
def test_letters_are_idempotent(text: str) -> None:
    letter = chosen_letter(text)
    assert letter is None or chosen_letter(letter) == leading_letter(letter) == letter


@pytest.mark.parametrize("piece", ["answer ", "answer:", "answer is ", " ", "*", "(", "A", "answer\n"])
def test_a_megabyte_of_letters_is_read(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    chosen_letter(text)
    chosen_letter("answer" + text)
    chosen_letter("answer is" + text)


# ---------------------------------------------------------------------------------------------- grades


def test_grades_by_hand() -> None:
    with made("number", HASHES) as checker:
        right, wrong, lost, other = checker.grade([ask("#### 18.0", "#### 17", "It is 18", "18 #### none", answer="18")])[0]
    assert (right.score, right.answer, right.reason) == (1.0, "18", "equal")
    assert (wrong.score, wrong.answer, wrong.reason) == (0.0, "17", "differs from '18'")
    # no fall-back to the whole text: the pattern finds nothing, or nothing that is a number
    for grade in (lost, other):
        assert (grade.score, grade.answer, grade.reason, grade.failed) == (0.0, None, "no answer found", False)


@pytest.mark.parametrize(
    ("kind", "pattern", "answer", "human", "expected"),
    [
        ("number", HASHES, "18", "#### 7", "18"),  # the column goes before the human reply
        ("number", HASHES, "It is 3. #### 18", None, "18"),
        ("number", HASHES, None, "2 + 5 #### 7", "7"),
        ("number", HASHES, None, "2 + 5 = 7", None),
        ("number", HASHES, " ", "#### 7", "7"),  # an empty cell is no answer
        ("number", HASHES, "none", "#### 7", None),  # one that cannot be read is no reason to take another
        ("number", None, None, "2 + 5 = 7", "7"),
        ("exact", HASHES, " a b ", None, "a b"),
        ("exact", HASHES, "so #### a b", None, "a b"),
        ("choice", None, "b", None, "B"),
        ("choice", HASHES, "(C) Paris", None, "C"),
        ("choice", None, None, "The answer is D.", "D"),
        ("choice", None, "Paris", None, None),
        ("choice", None, "1", None, None),
        ("exact", HASHES, None, None, None),
    ],
)
def test_what_is_right(kind: str, pattern: str | None, answer: str | None, human: str | None, expected: str | None) -> None:
    with made(kind, pattern) as checker:
        assert checker.expected(ask(answer=answer, human=human)) == expected


@pytest.mark.parametrize(
    ("kind", "pattern"), [("exact", HASHES), ("number", HASHES), ("number", None), ("choice", None), ("choice", HASHES)]
)
def test_unreadable_never_equals_unreadable(kind: str, pattern: str | None) -> None:
    with made(kind, pattern) as checker:
        unknown, empty = checker.grade([ask("?", "", human="?")])[0]
        graded = checker.grade([ask("?", "", answer="A) 3" if kind == "choice" else "#### 3")])[0]
    assert {grade.score for grade in (unknown, empty)} == {None}
    assert {grade.reason for grade in (unknown, empty)} == {"nothing to compare with"}
    assert {grade.score for grade in graded} == {0.0}
    assert {grade.answer for grade in (unknown, empty, *graded)} == {None}


def test_votes_are_over_equal_answers() -> None:
    with made("number", HASHES) as checker:
        grades = checker.grade([ask("#### 18", "#### 18.0", "#### $18.00", "#### 36/2", "#### 1,8", "#### 017")])[0]
    assert [grade.answer for grade in grades] == ["18", "18", "18", "18", "8", "17"]
    assert {grade.score for grade in grades} == {None}  # nothing to compare with, and yet votes


def test_a_tolerance_is_exact_at_its_edge() -> None:
    with made("number", tolerance=0.1) as checker:
        grades = checker.grade([ask("1.1", "0.9", "1.1000001", "1", answer="1")])[0]
    assert [grade.score for grade in grades] == [1.0, 1.0, 0.0, 1.0]


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_replies_changes_nothing(values: list[int], chance) -> None:
    """Equal within the tolerance: the text of one representative, whoever comes first."""
    replies = [f"{value / 2}" for value in values]
    shuffled = list(replies)
    chance.shuffle(shuffled)
    with made("number", tolerance=1.0) as checker:
        first, second = checker.grade([ask(*replies, answer="0"), ask(*shuffled, answer="0")])
    assert dict(zip(replies, first, strict=True)) == dict(zip(shuffled, second, strict=True))
    for reply, grade in zip(replies, first, strict=True):
        assert 0 <= Fraction(reply) - Fraction(grade.answer) <= 1
        assert grade.score == float(abs(Fraction(reply)) <= 1)


@pytest.mark.parametrize("kind", ["exact", "number", "choice"])
def test_no_text_is_evaluated(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(os, "system", called.append)
    reply = "#### __import__('os').system('x')"
    with made(kind, HASHES) as checker:
        grades = checker.grade([ask(reply, "#### 9**9**9**9", "#### exit()", answer="B) 1" if kind == "choice" else "1")])[0]
    assert called == [] and {grade.score for grade in grades} == {0.0}


@pytest.mark.parametrize(("kind", "pattern"), [("exact", "(?s).+"), ("number", None), ("choice", None)])
@pytest.mark.parametrize("reply", ["(" * 20_000, "[" * 20_000 + "]" * 20_000, "7" * 1_000_000, "\\frac{" * 20_000])
def test_huge_replies(kind: str, pattern: str | None, reply: str) -> None:
    with made(kind, pattern) as checker:
        (grade,) = checker.grade([ask(reply, answer="B")])[0]
    assert grade.score == (None if kind == "number" else 0.0)  # B is no number to compare with


# ---------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (CheckerSettings("exact", None), r"(?s)exact needs evaluate\.answer_pattern.*\(\?s\)\.\+"),
        (CheckerSettings("exactt", None), "(?s)no checker 'exactt'.*did you mean exact"),
        (CheckerSettings("qqq", None), r"(?s)no checker 'qqq'.*path/to/file\.py:function"),
        (CheckerSettings("exact", "("), "not a regular expression"),
        (CheckerSettings("number", None, tolerance=-1.0), "0 or more"),
        (CheckerSettings("number", None, tolerance=float("nan")), "0 or more"),
        (CheckerSettings("choice", None, tolerance=1.0), "only the checker number has a tolerance"),
        (CheckerSettings("random", None), "random needs another checker"),
        (CheckerSettings("random", None, random_like=CheckerSettings("random", None)), "random needs another checker"),
    ],
)
def test_settings_that_cannot_be(settings: CheckerSettings, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_checker(settings)
    assert caught.value.where == "target.checker"


def test_the_fingerprint_is_what_grades_depend_on() -> None:
    kinds = [("number", None, 0.0), ("number", HASHES, 0.0), ("number", None, 0.5), ("choice", None, 0.0), ("exact", HASHES, 0.0)]
    prints = [str(make_checker(CheckerSettings(kind, pattern, tolerance=near)).fingerprint) for kind, pattern, near in kinds]
    assert len(set(prints)) == len(prints)
    same = make_checker(CheckerSettings("number", None, workers=3, timeout_seconds=1.0, seed=5)).fingerprint
    assert str(same) == prints[0]
