"""math: math-verify's own examples, votes, and what takes it for ever."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import threading

import pytest
from asking import ask, made

from sparring.checkers import math as module
from sparring.checkers.make import CheckerSettings, make_checker
from sparring.errors import UserError

pytestmark = pytest.mark.long

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed: sparring[math]"
)


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_installed", lambda package: False)
    with pytest.raises(UserError, match=r"sparring\[math\]"):
        make_checker(CheckerSettings("math", None))


@needs_math_verify
@pytest.mark.parametrize(
    ("answer", "reply", "score"),
    [
        (r"\frac{1}{2}", "The answer is 0.5", 1.0),
        (r"$\frac{1}{2}$", r"so \boxed{\frac12}", 1.0),
        ("x^2+1", "$1 + x^2$", 1.0),
        ("x^2+1", "1", 0.0),
        ("1,234", "it is 1234", 1.0),
        (r"\{1,3\} \cup \{2,4\}", r"${1,2,3,4}$", 1.0),  # of math-verify's README
        ("18", "$x = 18$", 1.0),
        ("18", "17", 0.0),
        ("18", "none", 0.0),
        ("18", "", 0.0),
        ("18", r"$\boxed{?}$", 0.0),
        ("18", "$1/0$", 0.0),
        ("?", "?", None),
        ("?", "18", None),
    ],
)
def test_by_hand(answer: str, reply: str, score: float | None) -> None:
    with made("math") as checker:
        (grade,) = checker.grade([ask(reply, answer=answer)])[0]
    assert (grade.score, grade.failed) == (score, False)


# Right answer, reply, and whether they are equal: forms of math-verify's README and tests
EXAMPLES = [
    (r"${1,3} \cup {2,4}$", "${1,2,3,4}$", True),
    (r"$\{1,3\} \cup \{2,4\}$", "${1,2,3,4}$", True),
    ("$-5$", "-5", True),
    ("$7425000$", "7,425,000", True),
    ("$0.4$", ".4", True),
    ("$1000.99$", "$1,000.99", True),
    ("$2$", "AZYUK2A", False),
    ("$10/9$", r"\frac{10}{9}", True),
    ("$1/3$", r"$\frac13 $", True),
    (r"$\sqrt{3}$", r"$\sqrt3 $", True),
    ("$1/3$", r"$\dfrac{1}{3} $", True),
    ("$1/3$", r"$\left( \frac{1}{3} \right)$", True),
    ("$1/3$", r"$\frac{1}{3} \text{meters}$", True),
    ("$1/3$", r"$k = \frac{1}{3}$", True),
    ("$9$", r"Answer \[ 9 \]", True),
    ("$9$", "Answer $$ 9 $$", True),
    ("$10$", r"Answer \( (9+1) \)", True),
    ("$[0,1)$", "$[0,1)$", True),
    ("$[0,9)$", "$[0,1)$", False),
    ("$(0,9)$", "$[0,9)$", False),
    (r"$28\%$", "28 percent", True),
    ("$0.28$", "28", False),
    ("$2-2p$", r"Thus $x-p=\boxed{2-2p}$.", True),
    (r"$\frac{14}{3}$", r"$f(0)=2+\frac{5}{3}+1=\boxed{\frac{14}{3}}$", True),
    ("$14916$", r"Therefore, $\boxed{14{,}916}$ is our answer.", True),
    ("$x^2+2x+1$", "$(x+1)^2$", True),
    (r"$\begin{pmatrix} 0 & 3 \\ 0 & -1 \end{pmatrix}$", r"$\begin{pmatrix} 0 & 3 \\ 0 & -1 \end{pmatrix}$", True),
    ("$(3,2)$", "$(2,3)$", False),
]


@needs_math_verify
def test_grades_are_those_of_math_verify_on_its_own_examples() -> None:
    from math_verify import parse, verify

    with made("math") as checker:
        grades = [prompt[0].score for prompt in checker.grade([ask(reply, answer=right) for right, reply, _ in EXAMPLES])]
    found = [verify(parse(right), parse(reply)) for right, reply, _ in EXAMPLES]
    assert grades == [float(one) for one in found] and found == [equal for _, _, equal in EXAMPLES]


@needs_math_verify
def test_it_is_verify_with_the_right_answer_first() -> None:
    """PushOptions matters: an equation may stand for its right side, and not the other way round."""
    from math_verify import parse, verify

    pairs = [("1", "$x=1$"), ("x=1", "$1$"), ("(1,2)", r"$\{1,2\}$"), ("1 < x < 2", "$(1,2)$"), ("(1,2)", "$1 < x < 2$")]
    with made("math") as checker:
        grades = [prompt[0].score for prompt in checker.grade([ask(reply, answer=gold) for gold, reply in pairs])]
    assert grades == [float(verify(parse(f"${gold}$"), parse(reply))) for gold, reply in pairs]
    assert len(set(grades)) == 2


@needs_math_verify
def test_votes_whatever_the_order() -> None:
    replies = ["$1/2$", "0.5", r"\boxed{\frac{2}{4}}", "$x^2$", "$x x$", "none", "7", "$7.0$"]
    shuffled = random.Random(0).sample(replies, len(replies))
    with made("math") as checker:
        first, second = checker.grade([ask(*replies), ask(*shuffled)])
        assert dict(zip(replies, first, strict=True)) == dict(zip(shuffled, second, strict=True))
    answers = [grade.answer for grade in first]
    assert answers[5] is None
    groups = [answers[:3], answers[3:5], answers[6:]]
    assert [len(set(group)) for group in groups] == [1, 1, 1] and len(set(answers)) == 4


@needs_math_verify
def test_the_pattern_is_kept_to() -> None:
    with made("math", r"#### (.+)") as checker:
        grades = checker.grade([ask("#### x^2 + 1", "x^2 + 1", "#### 1", answer="x^2+1", human="#### 3")])[0]
        assert [grade.score for grade in grades] == [1.0, 0.0, 0.0]
        assert checker.expected(ask(answer="x^2+1", human="#### 3")) == "x^2+1"
        assert checker.expected(ask(human="7 #### 3")) == "3"
        assert checker.expected(ask(human="7")) is None


@needs_math_verify
def test_what_takes_for_ever_is_a_failure_of_its_reply_alone() -> None:
    with made("math", timeout_seconds=3.0) as checker:
        right, endless, wrong = checker.grade([ask("18", "$" + "(" * 20_000 + "$", "17", answer="18")])[0]
    assert (right.score, wrong.score) == (1.0, 0.0)
    assert (endless.score, endless.answer, endless.failed, endless.reason) == (None, None, True, "timed out after 3 s")


@needs_math_verify
def test_no_text_is_run(tmp_path) -> None:
    mark = tmp_path / "ran"
    code = f"__import__('os').system('touch {mark}')"
    with made("math") as checker:
        grades = checker.grade([ask(code, f"${code}$", rf"\boxed{{{code}}}", answer="18")])[0]
    assert not os.path.exists(mark) and 1.0 not in {grade.score for grade in grades}


@needs_math_verify
def test_it_works_in_a_thread() -> None:
    """math-verify's own time-outs are signals, which no thread but the main one can have."""
    found: list[float | None] = []

    def grade() -> None:
        with made("math") as checker:
            found.extend(grade.score for grade in checker.grade([ask("$0.5$", "17", answer=r"\frac12")])[0])

    thread = threading.Thread(target=grade)
    thread.start()
    thread.join()
    assert found == [1.0, 0.0]


def test_nothing_of_it_is_imported_here() -> None:
    code = "import sys, sparring.checkers.make\nprint({'sympy', 'math_verify'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_math_verify_that_cannot_be_loaded_in_time_ends_at_once() -> None:
    """Else every text would take the time limit of loading."""
    with made("math", timeout_seconds=1e-4) as checker, pytest.raises(UserError) as caught:
        checker.grade([ask("1", answer="1")])
    assert "target.checker math: math-verify cannot be loaded: timed out after 0.0006 s" in str(caught.value)
    assert "loading may take 6 times target.timeout_seconds, which is 0.0001: raise it in the recipe" in str(caught.value)
