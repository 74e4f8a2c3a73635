"""What is measured of a player, on a model of a few weights: the numbers, and going on after a kill at any point."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparring.config import Recipe, load_recipe
from sparring.data.chat import Chat
from sparring.data.records import Conversation, Example
from sparring.data.tables import read_rows
from sparring.evaluation.measure import GREEDY, LOGPS, REPLIES, Measured, Measurer, read_measured
from sparring.opponent import engines
from sparring.opponent.hf import TransformersEngine
from sparring.opponent.protocol import Prompt, Stream
from sparring.opponent.replies import read_replies
from sparring.policy.batches import Branches
from sparring.policy.load import load_model, load_tokenizer, model_facts
from sparring.policy.player import Player
from sparring.policy.score import plain_logps
from sparring.policy.tiny import make_tiny
from sparring.training import ranked

pytestmark = pytest.mark.long


class Killed(BaseException):
    pass


def recipe(**sections: Any) -> Recipe:
    return load_recipe(
        {
            "run_dir": "run",
            "model": {"path": "builtin:tiny"},
            "data": {"path": "builtin:tasks"},
            "sampling": {"max_new_tokens": 5, "shard_rows": 3, "batch_tokens": 70, **sections.pop("sampling", {})},
            "train": {"precision": "fp32", "micro_batch_tokens": 100},
            "evaluate": {"answer_pattern": ".", "greedy": True},
            **sections,
        }
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of an opponent and of another player."""
    folders = tmp_path_factory.mktemp("opponent"), tmp_path_factory.mktemp("player")
    for seed, folder in enumerate(folders):
        make_tiny(folder, seed)
    return folders


@pytest.fixture(scope="module")
def chat(models: tuple[Path, Path]) -> Chat:
    return Chat(load_tokenizer(models[0]), None, model_facts(models[0])[1])


@pytest.fixture(scope="module")
def held_out(chat: Chat) -> list[Example]:
    found = [Conversation(({"role": "user", "content": "ab" * (n % 3)},), "c" * (1 + n)) for n in range(7)]
    return [Example(f"row{n}", conversation, *chat.encode(conversation)) for n, conversation in enumerate(found)]


Measure = Callable[..., Measured]


def measurer(recipe: Recipe, chat: Chat, held_out: list[Example]) -> Measurer:
    evaluate = recipe.evaluate

    def score(player: Path, lots: Any) -> list[list[list[float]]]:
        return ranked.score_player(player, lots, recipe.train)

    return Measurer(recipe.sampler, chat, held_out, score, seed=recipe.seed, samples=evaluate.samples, greedy=evaluate.greedy)


@pytest.fixture(scope="module")
def baseline(models: tuple[Path, Path], chat: Chat, held_out: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The opponent's own measurements, with the fresh replies that its successor is judged on."""
    stage = tmp_path_factory.mktemp("start")
    facts = measurer(recipe(), chat, held_out).measure(stage, models[0], None, 0, "start")
    check = facts.pop("logp_check")
    assert facts == {"rows": 7} and check["rows"] == 3 and check["worst"] < 1e-4, "the rows of the first shard"
    return stage


@pytest.fixture(scope="module")
def measure(models: tuple[Path, Path], chat: Chat, held_out: list[Example], baseline: Path) -> Measure:
    def measured(stage: Path, player: Path = models[1], **sections: Any) -> Measured:
        stage.mkdir(exist_ok=True)
        opponent = Player("start", models[0], "hash", baseline)
        measurer(recipe(**sections), chat, held_out).measure(stage, player, opponent, 1, "iterations/000")
        return read_measured(stage)

    return measured


@pytest.fixture(scope="module")
def whole(measure: Measure, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """What a measurement that nobody has stopped finds."""
    return measure(tmp_path_factory.mktemp("whole"))


# --- the numbers


def test_the_replies_are_the_engines_and_the_log_probs_the_models(
    measure: Measure, models: tuple[Path, Path], chat: Chat, held_out: list[Example], baseline: Path, tmp_path: Path
) -> None:
    measured = measure(tmp_path / "stage")
    engine = TransformersEngine(load_model(models[1]), recipe().sampling, chat.stop_ids)
    prompts = [Prompt(example.row_id, 0, example.prompt_ids) for example in held_out]
    assert measured.replies == engine.sample(prompts, Stream(0, 1))
    assert [reply.row_id for reply in measured.greedy] == [example.row_id for example in held_out]
    assert measured.greedy != measured.replies
    fresh = {reply.row_id: reply.token_ids for reply in read_replies(baseline / REPLIES)}
    player, opponent = load_model(models[1]), load_model(models[0])
    for example, reply, row in zip(held_out, measured.replies, measured.logps, strict=True):
        own = plain_logps(player, Branches(example.prompt_ids, (example.reply_ids, reply.token_ids)))
        duel = Branches(example.prompt_ids, (example.reply_ids, fresh[example.row_id]))
        expected = [*own, *plain_logps(player, duel), *plain_logps(opponent, duel)]
        names = ["real", "own", "player_real", "player_generated", "opponent_real", "opponent_generated"]
        assert [row[name] for name in names] == pytest.approx([value.item() for value in expected], rel=1e-5)
        assert row["row_id"] == example.row_id and row.keys() == {"row_id", *names}


def test_the_baseline_has_no_duels(baseline: Path) -> None:
    measured = read_measured(baseline)
    assert measured.logps[0].keys() == {"row_id", "real", "own"} and measured.greedy is not None


def test_a_player_that_is_its_opponent_has_margin_exactly_0(measure: Measure, models: tuple[Path, Path], tmp_path: Path) -> None:
    for row in measure(tmp_path / "stage", models[0]).logps:
        assert row["player_real"] == row["opponent_real"] and row["player_generated"] == row["opponent_generated"]


def test_without_greedy_there_is_none(measure: Measure, whole: Measured, tmp_path: Path) -> None:
    measured = measure(tmp_path / "stage", evaluate={"answer_pattern": "."})
    assert measured.greedy is None and not (tmp_path / "stage" / GREEDY).exists()
    assert measured.replies == whole.replies


@pytest.mark.parametrize("sampling", [{"batch_tokens": 1}, {"batch_tokens": 9999}, {"shard_rows": 1}, {"shard_rows": 99}])
def test_how_many_are_drawn_together_does_not_matter(measure: Measure, whole: Measured, sampling: dict[str, int], tmp_path: Path) -> None:
    assert measure(tmp_path / "stage", sampling=sampling) == whole


# --- killed and gone on with


@contextlib.contextmanager
def killed_after(files: int) -> Iterator[None]:
    """Die as soon as so many files have their final names."""
    original, written = os.replace, 0

    def dies(*args: Any) -> None:
        nonlocal written
        original(*args)
        written += 1
        if written == files:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", dies)
        yield


def shards(stage: Path) -> dict[Path, int]:
    return {path: path.stat().st_ino for path in stage.rglob("*.parquet")}


def test_a_kill_between_any_two_files_changes_nothing(measure: Measure, whole: Measured, tmp_path: Path) -> None:
    """Files with their final names are all that a kill leaves, whatever was computed at that moment; another shard size may go on."""
    measure(tmp_path / "never")
    files = [path for path in (tmp_path / "never").rglob("*") if path.is_file()]
    assert len(files) == 4 + 4 + 1, "shards and the check of the engine for sampled and for greedy replies, log-probs"
    for count in range(1, len(files) + 1):
        stage = tmp_path / f"{count}"
        with killed_after(count), pytest.raises(Killed):
            measure(stage)
        kept = shards(stage)
        assert measure(stage, sampling={"shard_rows": count}) == whole, count
        assert kept.items() <= shards(stage).items(), "nothing committed is done again"
        assert not list(stage.rglob("*.tmp"))


def test_what_is_measured_needs_no_model(measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = measure(tmp_path / "stage")
    monkeypatch.setattr(engines, "load_sampler", None)
    monkeypatch.setattr(ranked, "score_player", None)
    assert measure(tmp_path / "stage") == expected


def test_greedy_replies_asked_for_later_are_drawn_alone(measure: Measure, whole: Measured, tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    measure(stage, evaluate={"answer_pattern": "."})
    kept = shards(stage)
    assert measure(stage) == whole and kept.items() <= shards(stage).items()


def test_the_sampler_is_loaded_once_for_all_replies(measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = engines.make_engine
    monkeypatch.setattr(engines, "make_engine", lambda *args: made.append(args) or original(*args))
    measure(tmp_path / "stage")
    assert len(made) == 1


def test_the_files_are_as_documented(baseline: Path) -> None:
    assert sorted(path.relative_to(baseline).as_posix() for path in baseline.rglob("*.parquet")) == [
        *(f"{GREEDY}/shard-{start:08d}-{stop:08d}.parquet" for start, stop in ((0, 3), (3, 6), (6, 7))),
        LOGPS,
        *(f"{REPLIES}/shard-{start:08d}-{stop:08d}.parquet" for start, stop in ((0, 3), (3, 6), (6, 7))),
    ]
    assert len(read_rows(baseline / LOGPS)) == 7
