"""The ray engine on a real cluster of two nodes on this machine: the same replies wherever they are drawn, and after a node is lost.

The tests that need Ray are skipped where it is not installed; `make test-ray` installs it beside the project's environment.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow as pa
import pytest
import torch
from conftest import Game
from exact import LONG, SHORT, STOP, next_token, p_value, same_prompt, sequences, tiny

from sparring.config import SamplerSettings, load_recipe
from sparring.data.records import Conversation, Example, Reply
from sparring.errors import UserError
from sparring.opponent.engines import Sampler, make_engine, require_engine
from sparring.opponent.protocol import Engine, Prompt, Stream
from sparring.opponent.ray_engine import Inbox, stamp
from sparring.opponent.ray_engine import _as_text as as_text
from sparring.opponent.ray_engine import _check_model as check_model
from sparring.opponent.ray_engine import _raise_error_of as raise_error_of
from sparring.opponent.ray_engine import _report as report
from sparring.opponent.replies import CHECK, sample_examples

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed; `make test-ray` installs it and runs this")
STREAM = Stream(3, 1)
CHAT: Any = SimpleNamespace(stop_ids=frozenset({STOP}))  # all that an engine asks of it
QUICK_TO_NOTICE = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 200, "health_check_failure_threshold": 3}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and a second node, one worker's CPU each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": QUICK_TO_NOTICE})
    started.add_node(num_cpus=1)
    yield started
    started.shutdown()


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("player")
    tiny().save_pretrained(folder)
    return folder


def settings_of(plays: str, sampling: dict[str, Any] | None = None, **ray: Any) -> SamplerSettings:
    values = {"engine": plays, "max_new_tokens": 2, "batch_tokens": 4000, **(sampling or {}), "ray": ray}
    recipe = load_recipe({"run_dir": "run", "model": {"path": "p", "dtype": "float32"}, "data": {"path": "d"}, "sampling": values})
    return recipe.sampler


@pytest.fixture
def on_ray(cluster: Any, player: Path) -> Iterator[Callable[..., Engine]]:
    """An engine in the cluster; it leaves when the test ends."""
    made: list[Engine] = []

    def make(sampling: dict[str, Any] | None = None, **section: Any) -> Engine:
        made.append(make_engine(settings_of("ray", sampling, address=cluster.address, **section), CHAT, player, 1.0))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def plain(player: Path, temperature: float = 1.0, **sampling: Any) -> Engine:
    return make_engine(settings_of("transformers", sampling), CHAT, player, temperature)


# ---------------------------------------------------------------------------------------------- the distribution


@needs_ray
def test_frequencies_are_the_models_own(on_ray: Callable[..., Engine], player: Path) -> None:
    """The chi-square test of the transformers engine; and the replies are that engine's, row for row."""
    count, model = 3000, tiny()
    prompts = [*same_prompt(LONG, count), *same_prompt(SHORT, count)]
    replies = on_ray(batch_rows=400).sample(prompts, STREAM)
    for ids, own in ((LONG, replies[:count]), (SHORT, replies[count:])):
        one = {(token,): p for token, p in enumerate(next_token(model, ids)) if p > 0}
        assert p_value([reply.token_ids[:1] for reply in own], one) > 1e-3
        assert p_value([reply.token_ids for reply in own], sequences(model, ids)) > 1e-3
    assert replies == plain(player).sample(prompts, STREAM)


@needs_ray
def test_another_temperature_and_log_probs(on_ray: Callable[..., Engine], player: Path) -> None:
    """`at` reaches the workers: the chi-square rejects its replies as draws at temperature 1. Log-probs come through unrounded."""
    prompts = same_prompt(LONG, 3000)
    replies = on_ray(batch_rows=1000).at(0.7).sample(prompts, STREAM, logps=True)
    assert p_value([reply.token_ids for reply in replies], sequences(tiny(), LONG)) < 1e-6
    expected = plain(player, 0.7).sample(prompts, STREAM, logps=True)
    assert replies == expected
    pairs = zip(replies, expected, strict=True)
    assert all(one == pytest.approx(other, abs=1e-5) for mine, theirs in pairs for one, other in zip(mine.logps, theirs.logps, strict=True))


# ---------------------------------------------------------------------------------------------- a node is lost

EXAMPLES = [Example(f"row{n}", Conversation((), ""), tuple((n * k) % 11 for k in range(1, 4 + n % 5)), (1, 2)) for n in range(400)]
LONG_REPLIES = {"max_new_tokens": 100, "top_p": 0.9}


def wait_for(found: Callable[[], Any], what: str, seconds: float = 400) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, f"no {what} after {seconds} s"
        time.sleep(0.002)
    return value


def worker_at_work(node: Any) -> psutil.Process | None:
    """The process on a node that is drawing replies at this moment, by the title that Ray gives it."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in raylet.children(recursive=True):
        try:
            if "MapWorker" in (title := " ".join(process.cmdline())) and ".submit" in title:
                return process
        except psutil.NoSuchProcess:
            continue
    return None


def kill_second_node(cluster: Any, shards: Callable[[], int]) -> int:
    """SIGKILL a node in the middle, while its worker has rows in hand; then another node joins. Returns how many shards there were.

    The worker is stopped first, until another has committed more: what it has in hand can only be done again, and is sure to be lost.
    """
    (node,) = cluster.worker_nodes
    wait_for(shards, "first shard")
    worker = wait_for(lambda: worker_at_work(node), "worker at work on the second node")
    worker.send_signal(signal.SIGSTOP)
    before = shards()
    try:
        wait_for(lambda: shards() > before, "shard of the other worker")
    finally:
        worker.kill()
        cluster.remove_node(node, allow_graceful=False)
    committed = shards()
    cluster.add_node(num_cpus=1)
    return committed


@needs_ray
def test_a_node_is_killed_mid_run(cluster: Any, player: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No row lost, none doubled, all as the transformers engine draws them; then a folder that lost a shard is filled."""
    caplog.set_level(logging.INFO, logger="sparring")
    shape = {**LONG_REPLIES, "shard_rows": 20, "replies_per_prompt": 2}
    folder = tmp_path / "shards"
    folder.mkdir()
    with ThreadPoolExecutor(1) as background:
        sampling = background.submit(sample_on, cluster, player, folder, shape)
        committed = kill_second_node(cluster, lambda: len(list(folder.glob("shard-*"))))
        replies = sampling.result()
    assert 0 < committed < 20, "in the middle"
    assert "replaced lost ones" in caplog.text, "Ray started the lost worker again, and it drew replies"
    expected = sample_examples(tmp_path_of(tmp_path, "plain"), EXAMPLES, lambda: plain(player, **LONG_REPLIES), STREAM, 2, 20, "plain")
    assert replies == expected
    assert [(reply.row_id, reply.replica) for reply in replies] == [(e.row_id, replica) for e in EXAMPLES for replica in range(2)]
    shards = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    assert shards == {path.name: path.read_bytes() for path in (tmp_path / "plain").glob("shard-*")}
    assert (folder / CHECK).exists(), "the log-probs were compared with the scorer's"

    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    for name in sorted(shards)[10:12]:
        (folder / name).unlink()
        del times[name]
    assert sample_on(cluster, player, folder, shape) == expected
    assert {path.name: path.read_bytes() for path in folder.glob("shard-*")} == shards
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times, "what was there was not drawn again"


def tmp_path_of(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def sample_on(cluster: Any, player: Path, folder: Path, shape: dict[str, Any]) -> list[Reply]:
    """As the stage `generate` does it."""
    with Sampler(settings_of("ray", shape, address=cluster.address, batch_rows=20), CHAT, player) as sampler:
        return sample_examples(folder, EXAMPLES, lambda: sampler.engine(1.0), STREAM, 2, 20, "sampling", partial(sampler.check, 1.0))


# ---------------------------------------------------------------------------------------------- errors


@needs_ray
def test_a_cluster_that_does_not_answer(player: Path) -> None:
    for address in ("127.0.0.1:1", "nowhere.invalid:6379"):
        with pytest.raises(UserError, match="cannot join the Ray cluster") as refused:
            make_engine(settings_of("ray", address=address), CHAT, player, 1.0)
        assert refused.value.where == "sampling.ray.address"


@needs_ray
@pytest.mark.skipif(getattr(find_spec("vllm"), "origin", None) is not None, reason="vLLM is installed, so its absence cannot be tested")
def test_what_a_worker_refuses_is_told_as_it_is(on_ray: Callable[..., Engine]) -> None:
    with pytest.raises(UserError, match="vllm, which is not installed") as refused:
        on_ray(engine="vllm").sample(same_prompt(LONG, 3), STREAM)
    assert "sparring[vllm]" in str(refused.value)


@needs_ray
def test_a_fault_in_a_worker_carries_its_traceback(on_ray: Callable[..., Engine]) -> None:
    beyond_the_vocabulary = [Prompt("row", 0, (1, 2, 999_999))]
    with pytest.raises(RuntimeError, match=r"(?s)a Ray worker on .* failed:.*in sample"):
        on_ray().sample(beyond_the_vocabulary, STREAM)


@needs_ray
def test_no_node_for_a_worker_ends_in_words(on_ray: Callable[..., Engine], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"no reply came in for 0\.05 minutes"):
        on_ray(cpus_per_worker=64.0, stall_minutes=0.05).sample(same_prompt(LONG, 3), STREAM)
    assert "no node of the Ray cluster has the 64 CPUs" in caplog.text


def test_a_worker_without_memory_names_the_options() -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError()):
        table = pa.table({"error": [as_text(error)], "host": ["node7"]})
        with pytest.raises(UserError, match=r"out of memory: .*\n.*in sampling halve sampling\.batch_tokens"):
            raise_error_of(table)


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed, so that its absence cannot be tested")
def test_without_ray_the_extra_is_named() -> None:
    with pytest.raises(UserError, match=r"sparring\[ray\]"):
        require_engine(settings_of("ray").sampling)


def test_another_players_folder_is_noticed(tmp_path: Path) -> None:
    """On a node that does not share the run directory: the folder is not there, or is left from another run."""
    tiny().save_pretrained(tmp_path / "player")
    expected = stamp(tmp_path / "player")
    assert set(expected) >= {"model.safetensors", "config.json"}
    check_model(tmp_path / "player", expected, "node7")
    with pytest.raises(UserError, match="does not exist on the node node7") as refused:
        check_model(tmp_path / "other", expected, "node7")
    assert "file system" in str(refused.value)
    os.utime(tmp_path / "player" / "model.safetensors", (1, 1))
    with pytest.raises(UserError, match="has other files on the node node7"):
        check_model(tmp_path / "player", expected, "node7")


# ---------------------------------------------------------------------------------------------- the inbox

PARTS = [[Prompt(f"row{part}", place, (1,)) for place in range(3)] for part in range(4)]


def reply(part: int, place: int) -> Reply:
    return Reply(f"row{part}", place, (part, place), "stop")


def test_replies_in_any_order_come_out_in_their_parts() -> None:
    inbox = Inbox(PARTS)
    assert list(inbox.put([reply(1, 2), reply(1, 0), reply(0, 1)])) == []
    assert list(inbox.put([reply(1, 1), reply(2, 0)])) == [], "complete, but the first part is not"
    parts = [[reply(part, place) for place in range(3)] for part in range(4)]
    assert list(inbox.put([reply(0, 2), reply(0, 0), reply(3, 0)])) == [(0, parts[0]), (1, parts[1])]
    assert list(inbox.put([reply(3, 2), reply(3, 1)])) == [(3, parts[3])], "the part before it is not complete"
    assert list(inbox.put([reply(2, 2), reply(2, 1)])) == [(2, parts[2])]
    inbox.check_complete()


@pytest.mark.parametrize("second", [reply(0, 0), reply(1, 0), reply(5, 0), Reply("row0", 7, (1,), "stop")], ids=str)
def test_a_reply_that_nobody_waits_for_is_a_fault(second: Reply) -> None:
    inbox = Inbox(PARTS)
    list(inbox.put([reply(0, 0), reply(0, 1), reply(0, 2), reply(1, 0)]))
    with pytest.raises(RuntimeError, match="twice, or an unknown one"):
        list(inbox.put([second]))


def test_the_log_says_who_drew_how_much(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="sparring")
    report(Counter({("node1/5", False): 300, ("node2/6", True): 90, ("node1/7", False): 10}))
    assert "3 Ray workers on 2 nodes sampled 310 + 90 replies; 1 of the workers replaced lost ones" in caplog.text


def test_a_lost_reply_is_a_fault() -> None:
    inbox = Inbox(PARTS)
    list(inbox.put([reply(part, place) for part in range(4) for place in range(3) if (part, place) != (1, 1)]))
    with pytest.raises(RuntimeError, match="lost 1 replies, such as that of row row1, replica 1"):
        inbox.check_complete()


# ---------------------------------------------------------------------------------------------- the whole game


@needs_ray
def test_a_whole_game(cluster: Any, game: Game) -> None:
    section = {"address": cluster.address, "batch_rows": 8}
    shape = {"iterations": 1, "controls": None, "sft": None, "showcase": []}
    game.write(**shape, sampling__engine="ray", sampling__ray=section)
    result = game.run()
    assert result.code == 0, result.err
    assert "(ray, float32)" in result.err and "Ray workers on" in result.err
    assert "ray::" not in result.err and "raylet" not in result.out + result.err, "Ray's own lines stay away"
