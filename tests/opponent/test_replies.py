"""Sampling in shards: what is committed stays, what is not is drawn again, and no row is there twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers

from sparring.config import SamplingSection
from sparring.data.records import Conversation, Example, Reply
from sparring.errors import UserError
from sparring.opponent.hf import TransformersEngine
from sparring.opponent.protocol import Engine, Prompt, Stream
from sparring.opponent.replies import as_columns, checked_facts, read_replies, sample_examples

EXAMPLES = [Example(f"row{index}", Conversation((), ""), (index, index + 1), (1, 2)) for index in range(11)]
STREAM = Stream(7, 1)


class Killed(BaseException):
    pass


class FakeEngine(Engine):
    """Answers at once, remembers what it was asked, and dies at the call that it is told to."""

    def __init__(self, dies_at_call: int | None = None) -> None:
        self.calls: list[list[tuple[str, int]]] = []
        self.dies_at_call = dies_at_call

    def sample(self, prompts: Sequence[Prompt], stream: Stream, logps: bool = False) -> list[Reply]:
        assert stream == STREAM
        self.calls.append([(prompt.row_id, prompt.replica) for prompt in prompts])
        if len(self.calls) - 1 == self.dies_at_call:
            raise Killed
        reasons = ("stop", "length")
        return [Reply(p.row_id, p.replica, (*p.token_ids, p.replica), reasons[p.token_ids[0] % 2]) for p in prompts]


def sample(folder: Path, engine: Engine, replicas: int = 2, shard_rows: int = 3) -> list[Reply]:
    folder.mkdir(exist_ok=True)
    return sample_examples(folder, EXAMPLES, lambda: engine, STREAM, replicas, shard_rows, "sampling")


ALL = [(example.row_id, replica) for example in EXAMPLES for replica in range(2)]


def keys(replies: Sequence[Reply]) -> list[tuple[str, int]]:
    return [(reply.row_id, reply.replica) for reply in replies]


def test_every_row_and_replica_once_in_shards_of_prompts(tmp_path: Path) -> None:
    engine = FakeEngine()
    replies = sample(tmp_path, engine)
    assert keys(replies) == ALL
    assert [len(call) for call in engine.calls] == [6, 6, 6, 4], "three prompts of two replies each"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"shard-{start:08d}-{stop:08d}.parquet" for start, stop in ((0, 6), (6, 12), (12, 18), (18, 22))
    ]
    assert replies[0] == Reply("row0", 0, (0, 1, 0), "stop") and replies[3] == Reply("row1", 1, (1, 2, 1), "length")
    assert read_replies(tmp_path) == replies


@pytest.mark.parametrize("dies_at_call", [0, 1, 3])
def test_a_kill_loses_the_shard_in_work_alone(dies_at_call: int, tmp_path: Path) -> None:
    first = FakeEngine(dies_at_call)
    with pytest.raises(Killed):
        sample(tmp_path, first)
    kept = {path: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.iterdir()}
    assert len(kept) == dies_at_call

    second = FakeEngine()
    replies = sample(tmp_path, second)
    assert keys(replies) == ALL
    finished = [key for call in first.calls[:dies_at_call] for key in call]
    again = [key for call in second.calls for key in call]
    assert finished + again == ALL, "nothing finished is drawn again"
    assert all((path.read_bytes(), path.stat().st_ino) == content for path, content in kept.items())


def test_a_shard_that_was_being_written_does_not_count(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        sample(tmp_path, FakeEngine(dies_at_call=2))
    (tmp_path / "shard-00000012-00000018.parquet.tmp").write_bytes(b"PAR1 half of a")
    engine = FakeEngine()
    assert keys(sample(tmp_path, engine)) == ALL
    assert len(engine.calls) == 2


def test_a_missing_shard_in_the_middle_is_filled(tmp_path: Path) -> None:
    expected = sample(tmp_path, FakeEngine())
    (tmp_path / "shard-00000006-00000012.parquet").unlink()
    engine = FakeEngine()
    assert sample(tmp_path, engine) == expected
    assert engine.calls == [ALL[6:12]]


@pytest.mark.parametrize("shard_rows", [1, 2, 7, 100])
def test_after_a_kill_another_shard_size_gives_the_same_replies(shard_rows: int, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        sample(tmp_path / "killed", FakeEngine(dies_at_call=2))
    engine = FakeEngine()
    assert sample(tmp_path / "killed", engine, shard_rows=shard_rows) == sample(tmp_path / "never", FakeEngine())
    assert [key for call in engine.calls for key in call] == ALL[12:]


def test_a_finished_folder_loads_no_engine(tmp_path: Path) -> None:
    expected = sample(tmp_path, FakeEngine())

    def none_wanted() -> Engine:
        raise AssertionError("the engine was loaded for nothing")

    assert sample_examples(tmp_path, EXAMPLES, none_wanted, STREAM, 2, 3, "sampling") == expected


def test_the_engine_is_made_once(tmp_path: Path) -> None:
    made: list[FakeEngine] = []

    def make() -> Engine:
        made.append(FakeEngine())
        return made[-1]

    sample_examples(tmp_path, EXAMPLES, make, STREAM, 2, 3, "sampling")
    assert len(made) == 1


def test_the_first_shard_of_every_attempt_is_checked(tmp_path: Path) -> None:
    """Before it is committed; what the first attempt found stays, so that a kill changes nothing."""
    seen: list[list[tuple[str, int]]] = []

    def check(prompts: Sequence[Prompt], replies: Sequence[Reply]) -> dict[str, int]:
        assert keys(replies) == [(prompt.row_id, prompt.replica) for prompt in prompts]
        seen.append(keys(replies))
        assert not list(tmp_path.glob(f"shard-{ALL.index(seen[-1][0]):08d}-*"))
        return {"attempt": len(seen)}

    def attempt(engine: FakeEngine) -> None:
        sample_examples(tmp_path, EXAMPLES, lambda: engine, STREAM, 2, 3, "sampling", check)

    with pytest.raises(Killed):
        attempt(FakeEngine(dies_at_call=2))
    assert checked_facts(tmp_path) == {"logp_check": {"attempt": 1}}
    attempt(FakeEngine())
    assert seen == [ALL[:6], ALL[12:18]] and checked_facts(tmp_path) == {"logp_check": {"attempt": 1}}
    attempt(FakeEngine())
    assert len(seen) == 2, "nothing was drawn"


def test_nothing_of_an_engine_that_fails_the_check_is_committed(tmp_path: Path) -> None:
    def check(prompts: Sequence[Prompt], replies: Sequence[Reply]) -> dict[str, int]:
        raise UserError("another model")

    with pytest.raises(UserError):
        sample_examples(tmp_path, EXAMPLES, FakeEngine, STREAM, 2, 3, "sampling", check)
    assert not list(tmp_path.iterdir())


def test_a_row_of_one_token_survives_the_file() -> None:
    replies = [Reply("a", 0, (5,), "stop"), Reply("b", 0, tuple(range(300)), "length")]
    columns = as_columns(replies)
    assert columns["token_ids"] == [[5], list(range(300))] and columns["finish_reason"] == ["stop", "length"]


@pytest.mark.parametrize("shard_rows", [2, 5, 100])
def test_with_a_real_model_the_shards_do_not_change_the_replies(shard_rows: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.5}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=14, bos_token_id=None, eos_token_id=13, **shape)).eval()
    engine = TransformersEngine(model, SamplingSection(max_new_tokens=6), [13])
    whole = engine.sample([Prompt(e.row_id, replica, e.prompt_ids) for e in EXAMPLES for replica in range(2)], STREAM)
    assert sample(tmp_path, engine, shard_rows=shard_rows) == whole
