"""A whole game on a server that is told to serve every new player, killed in the middle of sampling and gone on with."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from conftest import Game, rows, write_rows
from loopback import Fault, Loopback, Served
from test_launching import ranks, results
from zygote import begun, written

from sparring.data.tables import read_rows
from sparring.policy.load import load_model

KEY = "sk-very-secret-0123456789"
UPDATE = """
import json, os, sys, urllib.request
assert "RANK" not in os.environ, "no rank, whoever starts it"
url, model, name = sys.argv[1:]
body = json.dumps({"model": model, "name": name}).encode()
urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=60).read()
"""
# tells all servers, of which one may be gone
UPDATE_ALL = """
import json, sys, urllib.request
model, name, *urls = sys.argv[1:]
body = json.dumps({"model": model, "name": name}).encode()
for url in urls:
    try:
        urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=60).read()
    except OSError as error:
        print(error)
"""


@pytest.fixture
def server() -> Iterator[Loopback]:
    started = Loopback({}, loads=lambda folder: Served(load_model(Path(folder))))
    started.key = KEY
    yield started
    started.close()


def set_up(game: Game, server: Loopback, **changes: Any) -> dict[str, str]:
    """A short recipe for the server, and the environment with its key."""
    script = game.folder / "update.py"
    script.write_text(UPDATE)
    control = server.url.removesuffix("/v1") + "/control"
    section = {
        "urls": [server.url],
        "model": "player-{hash}",
        "api_key_env": "TEST_SERVER_KEY",
        "update_command": f"{sys.executable} -S {script} {control} {{model}} {{name}}",
        "retries": 1,
        "concurrency": 4,
        **changes.pop("section", {}),
    }
    sampling = {"engine": "server", "max_new_tokens": 5, "shard_rows": 4, "server": section}
    write_rows(game.folder / "rows.jsonl", rows(16))
    game.write(sampling=sampling, sft=None, controls=None, showcase=[], data__held_out=4, **changes)
    return {"TEST_SERVER_KEY": KEY}


def replies(game: Game) -> dict[str, Any]:
    found = sorted(game.root.rglob("shard-*.parquet"))
    return {path.relative_to(game.root).as_posix(): read_rows(path) for path in found if "score" not in path.parts}


def test_a_game_goes_on_after_a_kill_as_if_there_was_none(game: Game, server: Loopback, tmp_path: Path) -> None:
    environment = set_up(game, server)
    assert game.run(environment=environment, sabotage=[written("000/generate.partial/shard-.*", nth=2)]).code == -9
    before = len(server.bodies)
    result = game.run(environment=environment)
    assert result.code == 0, result.err
    asked = [tuple(body["prompt"]) for body in server.bodies[before:]]

    kept = game.json("iterations/000/generate/done.json")["facts"]
    assert kept["replies"] == 12 and kept["logp_check"]["rows"] == 4 and kept["logp_check"]["worst"] < 1e-3
    assert game.json("start/measure/done.json")["facts"]["logp_check"]["rows"] == 4
    first = [row["row_id"] for shard, found in replies(game).items() if "000/generate" in shard for row in found]
    assert len(first) == len(set(first)) == 12, "no row lost, none doubled"
    assert asked.count(asked[0]) == 2, "the two committed shards were not drawn again: this prompt is drawn for iterations 0 and 1 only"

    names = [name for _, name in server.loaded]
    assert len(names) == len(set(names)) == 3, "the start, and the player of either iteration; the kill needed no second update"
    assert all(name.startswith("player-") and len(name) == 19 for name in names)
    for file in game.folder.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    assert KEY not in result.out + result.err

    never = Game(tmp_path / "never", game.zygote, {})
    set_up(never, server, iterations=1)
    assert never.run(environment=environment).code == 0
    of_both = replies(game)
    for shard, rows_of in replies(never).items():
        assert of_both[shard] == rows_of, shard
    weights = "model/model.safetensors"
    ends = [each.json("iterations/000/train/done.json")["outputs"][weights] for each in (game, never)]
    assert ends[0] == ends[1]


def refused(game: Game, environment: dict[str, str], *parts: str) -> str:
    result = game.run(environment=environment)
    assert result.code == 2 and "Traceback" not in result.err and KEY not in result.err, result.err
    message = result.err[result.err.index("error: ") :]
    assert not [part for part in parts if part not in message], message
    return message


def test_what_can_go_wrong_ends_with_code_2_and_the_same_command_goes_on(game: Game, server: Loopback, tmp_path: Path) -> None:
    environment = set_up(game, server, iterations=1)
    refused(game, {}, "sampling.server.api_key_env", "TEST_SERVER_KEY is not set")
    refused(game, {"TEST_SERVER_KEY": "wrong"}, "401", "Incorrect API key provided: ***")
    server.fault = lambda n, body: Fault(status=500, body="out of memory")
    refused(game, environment, "no usable answer after 2 attempts", "out of memory")
    server.fault = lambda n, body: None

    set_up(game, server, iterations=1, section={"update_command": "sh -c 'echo cannot serve; exit 3'"})
    server.models = {}
    refused(game, environment, "sampling.server.update_command", "it ended with code 3: cannot serve")
    set_up(game, server, iterations=1, section={"update_command": "no-such-command"})
    refused(game, environment, "sampling.server.update_command", "No such file")
    set_up(game, server, iterations=1, section={"update_command": "true", "ready_timeout_seconds": 1.0})
    refused(game, environment, "after update_command the server serves nothing, but it should serve player-", "ready_timeout_seconds")
    set_up(game, server, iterations=1, section={"update_command": "sleep 60", "ready_timeout_seconds": 0.2})
    refused(game, environment, "sampling.server.update_command", "had not returned after 0.2 s", "in the background")
    assert not list(game.root.rglob("shard-*"))

    set_up(game, server, iterations=1)
    result = game.run(environment=environment)
    assert result.code == 0, result.err


def test_a_server_that_nobody_updates_is_found_out(game: Game, server: Loopback) -> None:
    """After the first iteration it still serves the start of the game."""
    environment = set_up(game, server, iterations=1, section={"model": None, "update_command": None}, train__lr=0.1)
    assert game.run("model.path=builtin:tiny", environment=environment).code == 2  # nothing is served yet; the base is written
    server.models = {"fixed": Served(load_model(game.root / "base" / "model"))}
    refused(game, environment, "does not sample from the player that is scored", "an earlier player", "`sparring docs engines`")
    assert (game.root / "iterations" / "000" / "train" / "done.json").exists()
    assert not list((game.root / "iterations" / "000").glob("measure*/replies/shard-*"))
    server.models = {"fixed": Served(load_model(game.root / "iterations" / "000" / "train" / "model"))}
    result = game.run(environment=environment)
    assert result.code == 0, result.err


def test_rank_0_alone_asks_the_server_and_tells_the_others(game: Game, server: Loopback) -> None:
    """Stages of ranks that were started by hand; what a server refuses is told once, and ends all of them."""
    environment = set_up(game, server, iterations=1)
    assert game.run(environment=environment).code == 0
    expected, asked = replies(game), len(server.bodies)
    stages = ("start/measure", "iterations/000/generate")
    for name in stages:
        shutil.rmtree(game.root / name)
    for name in stages:
        server.fault = lambda n, body: Fault(status=500, body="out of memory")
        one, two = results(ranks(game, name, environment=environment))
        assert (one.code, two.code) == (2, 2) and two.err == "" and "out of memory" in one.err and "Traceback" not in one.err
        server.fault = lambda n, body: None
        before = len(server.bodies)
        one, two = results(ranks(game, name, environment=environment))
        assert (one.code, two.code) == (0, 0) and two.err == "", one.err
        assert len(server.bodies) - before == sum(len(rows) for shard, rows in expected.items() if shard.startswith(name))
        assert game.json(f"{name}/done.json")["facts"]["logp_check"]["rows"] == 4
    assert replies(game) == expected and len(server.bodies) > asked
    assert game.run(environment=environment).code == 0


def test_adapters_are_loaded_into_a_server_of_their_base(game: Game, server: Loopback) -> None:
    """Under a name of their own; the base keeps its name, the only one that is no adapter's."""
    changes = {"train__lora": {"rank": 4}, "train__lr": 1e-2, "iterations": 1, "section": {"model": None, "update_command": None}}
    environment = set_up(game, server, **changes)
    assert game.run(environment=environment).code == 2  # nothing is served yet; the base is written
    server.models = {"base": Served(load_model(game.root / "base" / "model"))}
    result = game.run(environment=environment)
    assert result.code == 0, result.err
    ((path, name),) = server.loaded
    assert path == str((game.root / "iterations/000/train/model").absolute()) and name.startswith("sparring-") and len(name) == 21
    assert {body["model"] for body in server.bodies} == {"base", name}
    assert game.json("iterations/000/measure/done.json")["facts"]["logp_check"]["worst"] < 1e-3


def test_one_of_two_servers_dies_and_stays_away(game: Game, server: Loopback) -> None:
    """In the middle of a file of replies: the other one draws the rest, and those of all later stages."""
    other = Loopback({}, loads=server.loads)
    other.key = KEY
    dying = threading.Event()

    def die(n: int, body: dict[str, Any]) -> Fault | None:
        if n < 5:  # of the start's own replies
            return None
        if not dying.is_set():
            dying.set()
            other.close()
        return Fault(cut=True)

    other.fault = die
    urls, script = [server.url, other.url], game.folder / "update_all.py"
    script.write_text(UPDATE_ALL)
    controls = " ".join(url.removesuffix("/v1") + "/control" for url in urls)
    command = f"{sys.executable} -S {script} {{model}} {{name}} {controls}"
    section = {"urls": urls, "update_command": command, "ready_timeout_seconds": 1.0, "retries": 3}
    environment = set_up(game, server, iterations=1, section=section)
    result = game.run(environment=environment)
    assert result.code == 0, result.err
    assert dying.is_set() and f"the server at {other.url} is left out for this player: no answer 1 s after update_command" in result.err
    drawn = [(row["row_id"], row["replica"]) for shard, found in replies(game).items() if "000/generate" in shard for row in found]
    assert len(drawn) == len(set(drawn)) == 12


def test_a_graded_game_on_a_server(game: Game, server: Loopback) -> None:
    """Winners and losers of what the server samples, over two iterations, killed while it grades. At temperature 0.7 the headroom has no
    lower one."""
    (game.folder / "even.py").write_text("def f(completions):\n    return [float(len(c[0]['content']) % 2 == 0) for c in completions]\n")
    target, evaluate = {"kind": "verified", "checker": "even.py:f"}, {"samples": 2, "metric": "nll_per_token"}
    environment = set_up(game, server, target=target, evaluate=evaluate)
    options = ["sampling.temperature=0.7", "sampling.replies_per_prompt=4", "stop.plateau=false", "stop.min_pass_at_k=null"]
    assert game.run(*options, environment=environment, sabotage=[begun("iterations/001/grade")]).code == -9
    before = len(server.bodies)
    result = game.run(*options, environment=environment)
    assert result.code == 0, result.err
    assert {body["temperature"] for body in server.bodies} == {0.7, 0.0}
    assert len(server.bodies) - before == 2 * 4, "only the held-out replies of the last player are sampled after the kill"
    for t in (0, 1):
        grades = read_rows(game.root / f"iterations/00{t}/grade")
        counts = game.json(f"iterations/00{t}/train/done.json")["facts"]["counts"]
        assert len([row for row in grades if row["replica"] >= 0]) == 12 * 4 and counts["pairs"] > 0
    scores = game.json("start/headroom/headroom.json")["scores"]
    assert "any" in scores and "cool" not in scores


def test_sections_of_other_engines_are_named(game: Game) -> None:
    game.write(sampling__server={"concurrency": 3}, sampling__vllm={"max_model_len": 9}, iterations=1, sft=None, controls=None, showcase=[])
    result = game.run()
    assert result.code == 0, result.err
    for name in ("vllm", "server"):
        assert f"sampling.{name} has no effect: sampling.engine is transformers" in result.err


def test_vllm_where_it_is_not_installed(game: Game) -> None:
    """A folder of this name is not the package."""
    if any(found.metadata["Name"].startswith("vllm") for found in metadata.distributions()):
        pytest.skip("vLLM is installed here")
    (game.folder / "vllm").mkdir()
    game.write(sampling__engine="vllm")
    refused(game, {}, "the engine vllm needs the package vllm", "pip install 'sparring[vllm]'")
    assert not (game.root / "data").exists()
