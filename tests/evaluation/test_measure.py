"""What is measured of a player, on a model of a few weights: the numbers, and going on after a kill at any point."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparring.config import Recipe, load_recipe
from sparring.data import tables
from sparring.data.chat import Chat
from sparring.data.records import Conversation, Example
from sparring.data.tables import read_rows
from sparring.evaluation import measure as measuring
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


@pytest.fixture
def measure(models: tuple[Path, Path], chat: Chat, held_out: list[Example], baseline: Path) -> Measure:
    def measured(stage: Path, player: Path = models[1], **sections: Any) -> Measured:
        stage.mkdir(exist_ok=True)
        opponent = Player("start", models[0], "hash", baseline)
        measurer(recipe(**sections), chat, held_out).measure(stage, player, opponent, 1, "iterations/000")
        return read_measured(stage)

    return measured


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


def test_without_greedy_there_is_none(measure: Measure, tmp_path: Path) -> None:
    measured = measure(tmp_path / "stage", evaluate={"answer_pattern": "."})
    assert measured.greedy is None and not (tmp_path / "stage" / GREEDY).exists()
    assert measured.replies == measure(tmp_path / "with").replies


@pytest.mark.parametrize("sampling", [{"batch_tokens": 1}, {"batch_tokens": 9999}, {"shard_rows": 1}, {"shard_rows": 99}])
def test_how_many_are_drawn_together_does_not_matter(measure: Measure, sampling: dict[str, int], tmp_path: Path) -> None:
    assert measure(tmp_path / "stage", sampling=sampling) == measure(tmp_path / "other")


# --- killed and gone on with

POINTS = [(TransformersEngine, "_decode"), (tables, "write_table"), (measuring, "write_table"), (ranked, "score_player")]


@contextlib.contextmanager
def killed_at(holder: Any, name: str, call: int, after: bool) -> Iterator[list[int]]:
    """Die at the n-th call of a function; yields a one-element list, the count of its calls."""
    original, count = getattr(holder, name), [0]

    def dies(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        mine = count[0] == call
        if mine and not after:
            raise Killed
        result = original(*args, **kwargs)
        if mine:
            raise Killed
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holder, name, dies)
        yield count


def shards(stage: Path) -> dict[Path, int]:
    return {path: path.stat().st_ino for path in stage.rglob("*.parquet")}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("holder", "name"), POINTS, ids=["sampling", "shard", "log-probs", "model"])
def test_a_kill_at_any_call_changes_nothing(measure: Measure, holder: Any, name: str, after: bool, tmp_path: Path) -> None:
    expected = measure(tmp_path / "never")
    with killed_at(holder, name, -1, after) as calls:
        measure(tmp_path / "counted")
    assert calls[0] >= {measuring: 1, ranked: 2}.get(holder, 3)
    for call in range(1, calls[0] + 1):
        stage = tmp_path / f"{call}"
        with killed_at(holder, name, call, after), pytest.raises(Killed):
            measure(stage)
        kept = shards(stage)
        assert measure(stage, sampling={"shard_rows": call}) == expected, call
        assert kept.items() <= shards(stage).items(), "nothing committed is done again"
        assert not list(stage.rglob("*.tmp"))
    assert calls[0] == call


def test_what_is_measured_needs_no_model(measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = measure(tmp_path / "stage")
    monkeypatch.setattr(engines, "load_sampler", None)
    monkeypatch.setattr(ranked, "score_player", None)
    assert measure(tmp_path / "stage") == expected


def test_greedy_replies_asked_for_later_are_drawn_alone(measure: Measure, tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    measure(stage, evaluate={"answer_pattern": "."})
    kept = shards(stage)
    assert measure(stage) == measure(tmp_path / "other") and kept.items() <= shards(stage).items()


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
