"""docs/checkers.md says what the checkers do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from asking import ask, made

from sparring.checkers import pool

PAGE = (Path(__file__).parents[2] / "docs" / "checkers.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \| (?:`(.+?)`)? ?\| `(.+?)` \| (?:`(.+?)`|-) \|$", re.MULTILINE)


@pytest.mark.parametrize(("kind", "pattern", "reply", "answer"), [tuple(text or None for text in row) for row in ROW.findall(PAGE)])
def test_the_table_of_what_is_read(kind: str, pattern: str | None, reply: str, answer: str | None) -> None:
    with made(kind, pattern) as checker:
        assert checker.grade([ask(reply)])[0][0].answer == answer


def test_every_row_of_that_table_is_tested() -> None:
    table = PAGE.partition("| checker | pattern | reply | answer |")[2].partition("\n\n")[0]
    assert len(ROW.findall(PAGE)) == table.count("\n") - 1 > 20


def test_the_functions_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named as the page does, relative to the current folder."""
    (code,) = re.findall(r"^```python\n(# my_rules\.py\n.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "my_rules.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with made("my_rules.py:all_words") as checker:
        assert [grade.score for grade in checker.grade([ask("a red house", "a house", answer="Red house")])[0]] == [1.0, 0.0]
    with made("my_rules.py:graded") as checker:
        assert [grade.score for grade in checker.grade([ask("it is 18", "17", human="18")])[0]] == [1.0, 0.0]


def test_the_limits_of_the_page() -> None:
    assert f"One call has {pool.BATCH} replies at most" in PAGE
    assert pool.LOADING == 6 and "Loading the file may take six times as long" in PAGE
    assert all(name in PAGE for name in pool.KEPT)
    assert os.path.basename(pool.WORKER) == "worker.py"


def test_what_the_example_prints(capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0]
    exec(code, {"__name__": "__main__"})
    assert capsys.readouterr().out == printed
