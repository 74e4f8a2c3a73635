"""A checker that cannot grade: some failures are counted, many end the run with an example, and nothing that it failed on is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import ask, made

from sparring.checkers.grades import Grade, require_few_failures
from sparring.data.records import Reply
from sparring.data.tables import items_done, read_rows
from sparring.errors import UserError
from sparring.stages.grade import grade_all

FINE, FAILED = Grade(1.0, "5", "equal"), Grade(None, None, "raised ValueError: boom", failed=True)
FLAG = """
from pathlib import Path
def f(completions):
    flag = Path({flag!r})
    return [one(c[0]["content"], flag.exists()) for c in completions]
def one(text, works):
    if not works and int(text) % {every} == 0:
        raise ValueError("boom")
    return 1.0
"""


@pytest.mark.parametrize(("failures", "ends"), [(0, False), (5, False), (6, True), (100, True)])
def test_more_than_one_in_twenty_ends_the_run(failures: int, ends: bool) -> None:
    texts, grades = [str(n) for n in range(100)], [FINE] * (100 - failures) + [FAILED] * failures
    if not ends:
        assert require_few_failures(texts, grades, "f.py:f") == failures
        return
    with pytest.raises(UserError) as caught:
        require_few_failures(texts, grades, "f.py:f")
    assert f"{failures} of 100 replies could not be graded, more than 5%; the first of them: raised ValueError: boom" in str(caught.value)
    assert "target.checker (f.py:f)" in str(caught.value) and repr(texts[100 - failures]) in str(caught.value)


def test_no_score_is_no_failure() -> None:
    assert require_few_failures(["a"], [Grade(None, None, "no score given")], "f.py:f") == 0
    assert require_few_failures([], [], "number") == 0


def grade(folder: Path, every: int) -> dict[str, int]:
    """Of 20 prompts with two replies each; one in `every` raises while there is no file FLAG. Twice the same, as another attempt."""
    stage = folder / "stage"
    stage.mkdir(exist_ok=True)
    (folder / "f.py").write_text(FLAG.format(flag=str(folder / "flag"), every=every))
    asked = [ask(str(2 * n), str(2 * n + 1), row_id=f"r{n:02d}") for n in range(20)]
    replies = [Reply(f"r{n:02d}", k, (1,), "stop") for n in range(20) for k in (0, 1)]
    with made(f"{folder / 'f.py'}:f") as checker:
        return grade_all(stage, asked, replies, checker, "test")


def test_a_few_are_kept_and_counted(tmp_path: Path) -> None:
    assert grade(tmp_path, every=20) == {"replies": 40, "without_answer": 40, "failures": 2}
    assert [row["text"] for row in read_rows(tmp_path / "stage") if row["failed"]] == ["0", "20"]


def test_what_ended_the_run_is_graded_anew_though_the_file_is_the_same(tmp_path: Path) -> None:
    """It may have needed more time, more memory, or a server that was down: none of that is part of a fingerprint."""
    with pytest.raises(UserError, match="8 of 40 replies could not be graded"):
        grade(tmp_path, every=5)
    assert items_done(tmp_path / "stage") == 0
    (tmp_path / "flag").touch()
    assert grade(tmp_path, every=5)["failures"] == 0


def test_a_function_that_always_fails_is_given_up_early(tmp_path: Path) -> None:
    """It might take its time limit for each of a hundred thousand replies."""
    log = tmp_path / "calls"
    (tmp_path / "f.py").write_text(f"def f(completions):\n    open({str(log)!r}, 'a').write('x')\n    1 / 0")
    with made(f"{tmp_path / 'f.py'}:f") as checker, pytest.raises(UserError, match="16 of 16 replies could not be graded"):
        checker.grade([ask(*map(str, range(500)))])
    assert len(log.read_text()) == 17, "a batch, and then each of its replies by itself"
