"""A checker that cannot grade: some failures are counted, many end the run with an example, and nothing that it failed on is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import ask, made

from sparring.checkers.grades import Grade, require_few_failures
from sparring.data.records import Reply
from sparring.data.tables import items_done, read_rows
from sparring.errors import UserError
from sparring.stages.grade import PROMPTS_PER_CALL, PROMPTS_PER_SHARD, grade_all

FINE, FAILED = Grade(1.0, "5", "equal"), Grade(None, None, "raised ValueError: boom", failed=True)
FLAG = r"""
from pathlib import Path
def f(completions):
    flag = Path({flag!r})
    with open({log!r}, "a") as log:
        log.writelines(c[0]["content"] + "\n" for c in completions)
    return [one(c[0]["content"], flag.exists()) for c in completions]
def one(text, works):
    n = int(text)
    if not works and ({fails}):
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


def grade(folder: Path, fails: str, prompts: int = 20) -> dict[str, int]:
    """Two replies to each prompt, numbered; those raise for which `fails` holds of their number n, while there is no file FLAG."""
    stage = folder / "stage"
    stage.mkdir(exist_ok=True)
    (folder / "f.py").write_text(FLAG.format(flag=str(folder / "flag"), log=str(folder / "log"), fails=fails))
    asked = [ask(str(2 * n), str(2 * n + 1), row_id=f"r{n:03d}") for n in range(prompts)]
    replies = [Reply(f"r{n:03d}", k, (1,), "stop") for n in range(prompts) for k in (0, 1)]
    with made(f"{folder / 'f.py'}:f") as checker:
        return grade_all(stage, asked, replies, checker, "test")


def test_a_few_are_kept_and_counted(tmp_path: Path) -> None:
    assert grade(tmp_path, "n % 20 == 0") == {"replies": 40, "without_answer": 40, "failures": 2}
    assert [row["text"] for row in read_rows(tmp_path / "stage") if row["failed"]] == ["0", "20"]


def test_what_ended_the_run_is_graded_anew_though_the_file_is_the_same(tmp_path: Path) -> None:
    """It may have needed more time, more memory, or a server that was down: none of that is part of a fingerprint."""
    with pytest.raises(UserError, match="8 of 40 replies could not be graded"):
        grade(tmp_path, "n % 5 == 0")
    assert items_done(tmp_path / "stage") == 0
    (tmp_path / "flag").touch()
    assert grade(tmp_path, "n % 5 == 0")["failures"] == 0


def test_it_ends_as_soon_as_too_many_of_all_replies_failed(tmp_path: Path) -> None:
    """A function that hangs on half of 16,000 replies would take its time limit for each of them."""
    with pytest.raises(UserError, match="64 of 1000 replies could not be graded"):
        grade(tmp_path, "n % 2", prompts=500)
    tried = set(map(int, (tmp_path / "log").read_text().split()))
    assert tried == set(range(2 * PROMPTS_PER_CALL))


def test_a_few_failures_in_each_of_many_calls_are_no_reason_to_end(tmp_path: Path) -> None:
    """All of a later call's first replies among them: the function has worked before."""
    first = 2 * PROMPTS_PER_CALL
    assert grade(tmp_path, f"{first} <= n < {first} + 16", prompts=300)["failures"] == 16


def test_failures_in_a_later_shard_leave_no_failed_grades_of_an_earlier_one(tmp_path: Path) -> None:
    later = 2 * PROMPTS_PER_SHARD
    with pytest.raises(UserError, match="could not be graded"):
        grade(tmp_path, f"n < 4 or n >= {later}", prompts=400)
    assert items_done(tmp_path / "stage") == 0
    (tmp_path / "flag").touch()
    assert grade(tmp_path, f"n < 4 or n >= {later}", prompts=400)["failures"] == 0


def test_failures_of_an_earlier_attempt_count(tmp_path: Path) -> None:
    """Its finished shard is kept with 16 failures; 40 of the 800 replies may fail."""
    every = 2 * PROMPTS_PER_SHARD
    assert grade(tmp_path, f"16 <= n % {every} < 32", prompts=400)["failures"] == 32
    (tmp_path / "stage" / f"shard-{PROMPTS_PER_SHARD:08d}-00000400.parquet").unlink()
    with pytest.raises(UserError, match="41 of 800 replies"):
        grade(tmp_path, f"n - {every} in range(20, 45)", prompts=400)


def test_a_function_that_always_fails_is_given_up_early(tmp_path: Path) -> None:
    """It might take its time limit for each of a hundred thousand replies."""
    log = tmp_path / "calls"
    (tmp_path / "f.py").write_text(f"def f(completions):\n    open({str(log)!r}, 'a').write('x')\n    1 / 0")
    with made(f"{tmp_path / 'f.py'}:f") as checker, pytest.raises(UserError, match="16 of 16 replies could not be graded"):
        checker.grade([ask(*map(str, range(500)))])
    assert len(log.read_text()) == 17, "a batch, and then each of its replies by itself"
