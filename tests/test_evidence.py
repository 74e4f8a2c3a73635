"""docs/evidence.md: its rows and its tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def rows_of(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_page_shows_what_the_results_say() -> None:
    from evidence_tables import PAGE, rendered

    page = PAGE.read_text(encoding="utf-8")
    assert rendered(page) == page, "write it again: python benchmarks/evidence.py DATA tables"


def test_every_setting_has_its_place_on_the_page() -> None:
    from evidence_settings import SETTINGS
    from evidence_tables import PAGE

    page = PAGE.read_text(encoding="utf-8")
    for name, setting in SETTINGS.items():
        assert f"<!-- table: {name} arms -->" in page and f"<!-- table: {name} search -->" in page
        assert (f"<!-- table: {name} successors -->" in page) == setting.with_successors


def test_what_is_searched_on_is_not_tested_on(tmp_path: Path) -> None:
    from evidence_tasks import write_rows

    write_rows("sorting", tmp_path, tmp_path)
    searched, tested = (rows_of(tmp_path / f"{part}.jsonl") for part in ("search", "test"))
    assert not {row["prompt"] for row in searched} & {row["prompt"] for row in tested}
    assert len(searched) > 1400 and len(tested) > 1400  # 1,000 to train on and 400 to measure, in either
    assert all(sorted(row["prompt"].removeprefix("sort ")) == list(row["completion"]) for row in tested)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data in {DATA}")
def test_word_problems_are_right(tmp_path: Path) -> None:
    from evidence_tasks import write_rows

    write_rows("words", DATA, tmp_path)
    operations = {"+": float.__add__, "-": float.__sub__, "*": float.__mul__, "/": float.__truediv__}
    for row in [*rows_of(tmp_path / "test.jsonl"), *rows_of(tmp_path / "transfer.jsonl")]:
        first, operation, second, _, result = row["completion"].split()
        assert first in row["prompt"].split() and second in row["prompt"].split(), row
        assert operations[operation](float(first), float(second)) == pytest.approx(float(result), rel=0.01), row
    assert "number0" not in (tmp_path / "test.jsonl").read_text()


def test_tables_of_made_up_seeds() -> None:
    from evidence_tables import TABLES

    def seed(start: float, last: float) -> dict[str, object]:
        scores = {
            arm: {"exact_match": start, "exact_match_greedy": start, "nll_per_token": 1.0} for arm in ("start", "equal", "best-epoch")
        }
        scores |= {"cool start": scores["start"], "SPIN 0": scores["start"], "official 0": scores["start"]}
        return {"rows": 400, "scores": {**scores, "SPIN 1": {"exact_match": last, "exact_match_greedy": last, "nll_per_token": 0.5}}}

    found = {"played": [seed(0.5, 0.6), seed(0.4, 0.6), seed(0.3, 0.6)]}
    table = "\n".join(TABLES["arms"]("tiny-under", found))
    assert "| start | 0.400 ± 0.058 | 0.400 ± 0.058 | 1.000 ± 0.000 |" in table
    [last] = [line for line in table.splitlines() if line.startswith("| SPIN, iteration 1 |")]
    assert "0.600 ± 0.000" in last and "+0.200" in last
    assert "±" in table and "nan" not in table  # a spread of 0 is no division by 0
