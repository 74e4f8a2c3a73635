"""docs/evidence.md: its rows and its tables."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Game, play_sums
from zygote import Zygote

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def scripts(fresh_scripts: None, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.fixture
def copied(played: Game, tmp_path: Path) -> Path:
    return Path(shutil.copytree(played.root, tmp_path / "copied", symlinks=True))


def test_the_arms_score_as_the_run_does(copied: Path) -> None:
    """Log-probs of the same weights on the same rows are the run's own; a cool start says less that is unlikely."""
    from evidence_arms import Scoring, read_items

    scoring = Scoring(copied)
    held_out = scoring.examples("held_out")
    own = json.loads((copied / "start/evaluate/scores.json").read_text())
    folders = [scoring.measure(name, scoring.folder("start"), held_out, heat) for name, heat in (("warm", 1.0), ("cool", 0.1))]
    warm, cool = (json.loads((folder / "scores.json").read_text()) for folder in folders)
    for scores in (warm, cool):
        assert scores["nll_per_token"]["value"] == pytest.approx(own["nll_per_token"]["value"], rel=1e-5)
    per_token = [scores["generated_logp"]["value"] / scores["reply_tokens"]["value"] for scores in (warm, cool)]
    assert per_token[0] < per_token[1]
    items = read_items(folders[0])
    assert sum(items["nll_per_reply"]) / sum(items["human_reply_tokens"]) == pytest.approx(warm["nll_per_token"]["value"], rel=1e-4)
    assert read_items(copied / "start/evaluate")["nll_per_reply"] == pytest.approx(items["nll_per_reply"], rel=1e-4)


def test_the_official_negatives(copied: Path) -> None:
    """Greedy under another prompt, ended where they were cut; training on them moves the weights."""
    from evidence_arms import Scoring, _official_duels, official

    scoring = Scoring(copied)
    start, end = scoring.folder("start"), scoring.chat.end_of_turn_id
    duels = _official_duels(scoring, start, 0)
    assert duels and all(len(duel.generated_ids) == 1 and duel.generated_ids[0][-1] == end for duel in duels)
    assert _official_duels(scoring, start, 0) == duels
    found = official(scoring)
    assert len(found) == scoring.recipe.iterations
    first, second = (copied / "official" / f"00{t}" / "model" / "model.safetensors" for t in (0, 1))
    assert (start / "model.safetensors").read_bytes() != first.read_bytes() != second.read_bytes()
    written = second.stat().st_mtime_ns
    assert official(scoring) == found and second.stat().st_mtime_ns == written  # kept


def made_up_seed(start: float, last: float) -> dict[str, Any]:
    alike = {"exact_match": start, "exact_match_greedy": start, "nll_per_token": 1.0}
    scores = dict.fromkeys(("start", "equal", "best-epoch", "cool start", "SPIN 0", "official 0"), alike)
    scores["SPIN 1"] = {"exact_match": last, "exact_match_greedy": last, "nll_per_token": 0.5}
    part = {"generate": {"sampled_tokens": 1000}, "score": {"scored_tokens": 2000}, "train": {"trained_tokens": 3000}}
    stages = {f"iterations/00{t}/{name}": facts for t in range(2) for name, facts in part.items()}
    return {"rows": 400, "scores": scores, "stages": {"sft": {"trained_tokens": 5}, **stages, "equal/train": {"trained_tokens": 7000}}}


def arms_table(played: list[dict[str, Any]]) -> str:
    from evidence_tables import TABLES

    return "\n".join(TABLES["arms"]("tiny-under", {"played": played}))


def test_tables_of_made_up_seeds() -> None:
    """Mean, spread, differences; the cost of an iteration is that of all before it too, without the start's own."""
    table = arms_table([made_up_seed(0.5, 0.6), made_up_seed(0.4, 0.6), made_up_seed(0.3, 0.6)])
    assert "| start | 0 | 0.400 ± 0.058 | 0.400 ± 0.058 | 1.000 ± 0.000 |" in table
    assert "| SPIN, iteration 0 | 12 |" in table and "| continued SFT, equal operations | 21 |" in table
    [last] = [line for line in table.splitlines() if line.startswith("| SPIN, iteration 1 | 24 |")]
    assert "0.600 ± 0.000" in last and "+0.200" in last
    assert "±" in table and "nan" not in table  # a spread of 0 is no division by 0


def test_a_single_seed_is_compared_row_by_row() -> None:
    """By hand: of twelve rows the last iteration gains eleven, so McNemar's p is 2 / 2^11, and Holm multiplies the least of 18 by 18."""
    seed = made_up_seed(0.25, 1.0)
    ones = [1.0] * 12
    rows = {"exact_match": [1.0] + [0.0] * 11, "exact_match_greedy": ones, "nll_per_reply": [3.0] * 12, "human_reply_tokens": ones}
    seed["items"] = dict.fromkeys(seed["scores"], rows)
    seed["items"]["SPIN 1"] = {**rows, "exact_match": ones, "nll_per_reply": [2.0] * 12}
    table = arms_table([seed])
    assert "1 seed, 400 held-out rows each; mean ± standard error over rows" in table and "p of the McNemar test over rows" in table
    [last] = [line for line in table.splitlines() if line.startswith("| SPIN, iteration 1 |")]
    assert "1.000 ± 0.000 | 1.000 ± 0.000 | 2.000 ± 0.000 | +0.917 (p 0.018)" in last
    assert "| start | 0 | 0.083 ± 0.083 | 1.000 ± 0.000 | 3.000 ± 0.000 |" in table


def test_a_seed_whose_game_ended_early_leaves_its_arms_out() -> None:
    from evidence_tables import TABLES

    played = [made_up_seed(0.5, 0.6), made_up_seed(0.4, 0.6)]
    for arm in ("SPIN 1", "equal"):
        del played[1]["scores"][arm]
    table = arms_table(played)
    assert "SPIN, iteration 0" in table and "SPIN, iteration 1" not in table and "| continued SFT, equal" not in table
    assert "| SPIN | 0.450" in "\n".join(TABLES["successors"]("tiny-under", {"played": played, "search": {}}))


def test_no_game_of_the_search_is_played_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the value that the recipe has anyway stands in the grid, its game is the best one of the keys before it."""
    import evidence
    from evidence_settings import SETTINGS, T_SPIN_SEARCHED, successors

    games: list[dict[str, float]] = []

    def validated(_: str, values: dict[str, float], of_start: bool) -> float | None:
        games.append(values)
        if values.get("temperature") == 0.7:
            return None
        return -values["start_epochs"] if of_start else values["lr"] + 10 * (values.get("window") == 1)

    monkeypatch.setattr(evidence, "RUNS", tmp_path)
    monkeypatch.setattr(evidence, "_validate", validated)
    monkeypatch.setattr(evidence, "_search_controls", lambda *_: {})
    monkeypatch.setattr(evidence, "_search_t_spin", lambda *_: {"0.5": 0.1, "8": 0.2})
    evidence.search(DATA, "tiny-best")
    found = json.loads((tmp_path / "tiny-best" / "search.json").read_text())
    grid = SETTINGS["tiny-best"].grid
    assert successors(found)[T_SPIN_SEARCHED] == {"loss": "t-spin", "beta": 8.0} and T_SPIN_SEARCHED not in successors({})
    assert list(found["looked_at"]) == list(grid) and found["chosen"]["start_epochs"] == 40 and found["chosen"]["window"] == 1
    assert len(games) == sum(map(len, grid.values())) - 5  # beta 1, 4 replies, 1 epoch, window 2, temperature 1
    assert found["looked_at"]["temperature"] == {"0.7": None, "1.0": 3e-4 + 10}


def test_arms_of_a_seed_that_were_played_elsewhere_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs are lost with their machine: an arm that is played later joins those that its results file has."""
    import evidence_target_tables

    def played(machine: str, **values: float) -> None:
        arms = {arm.replace("_", " "): {"scores": {"exact_match": {"value": value}}, "forward_tokens": 1} for arm, value in values.items()}
        (tmp_path / "legs-targets").mkdir(exist_ok=True)
        (tmp_path / "legs-targets" / "seed-1.json").write_text(json.dumps({"machine": machine, "arms": arms}))
        evidence_target_tables.write_results(tmp_path)

    monkeypatch.setattr(evidence_target_tables, "RESULTS", tmp_path / "results.json")
    played("a", start=0.5, first_0=0.6)
    played("b", start=0.51, second_0=0.7)
    played("b", start=0.51, second_0=0.7)
    (seed,) = json.loads((tmp_path / "results.json").read_text())["legs-targets"].values()
    assert seed["machines"] == ["a", "b"]
    assert {arm: one["exact_match"] for arm, one in seed["arms"].items()} == {"start": 0.51, "first 0": 0.6, "second 0": 0.7}


def test_arms_of_a_seed_share_the_start_and_its_replies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An arm with further prompts gets the replies that an earlier one has sampled for them; one without gets the start alone."""
    import evidence_targets

    shared: dict[str, list[str]] = {}

    def run(recipe: dict[str, Any]) -> None:
        root, stages = Path(recipe["run_dir"]), [*evidence_targets.OF_PROMPTS, "iterations/000/train"]
        shared[root.name] = [stage for stage in stages if (root / stage).exists()]
        for stage in stages:
            (root / stage).mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(evidence_targets, "RUNS", tmp_path)
    monkeypatch.setattr(evidence_targets.sparring, "run", run)
    setting = evidence_targets.TARGET_SETTINGS["words-targets"]
    for arm in ("SPIN", "verified, likelihood", "majority, likelihood"):
        evidence_targets._played("words-targets", 0, arm, setting.arms[arm])
    start = ["base", "sft", "start"]
    assert shared == {"SPIN": [], "verified-likelihood": start, "majority-likelihood": [*start, "iterations/000/generate"]}


def test_a_game_takes_over_the_replies_of_one_with_another_target(verified_game: Game, tmp_path: Path, zygote: Zygote) -> None:
    """Passes at random and another loss: neither the start nor its replies to the prompts are computed again."""
    from evidence_runs import copy_start, share_start
    from evidence_targets import OF_PROMPTS

    copy_start(verified_game.root, tmp_path / "asked", OF_PROMPTS)
    (tmp_path / "game").mkdir()
    share_start(tmp_path / "asked", tmp_path / "game" / "run")
    target = {"kind": "verified", "checker": "random", "random_like": "number"}
    game = play_sums(tmp_path / "game", zygote, target=target, iterations=1, controls=None)
    for stage in ("sft", "iterations/000/generate"):
        assert game.json(f"{stage}/done.json") == verified_game.json(f"{stage}/done.json"), "also the time at which it was finished"
