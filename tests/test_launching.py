"""Stages on many ranks, by the commands: started by accelerate, by hand, on two machines; ranks killed, runs gone on with, bad input.

Ranks started by hand are forks of the zygote, which cost no imports; `accelerate launch` starts real ones, some ten seconds a stage.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from conftest import Game
from safetensors.torch import load_file
from zygote import Result, Running, Sabotage, Zygote, environments_of_ranks, free_port, working

from sparring import launch as launching
from sparring import locks
from sparring.config import LauncherSection, Recipe, SamplerSettings, load_recipe
from sparring.data.chat import Chat
from sparring.errors import UserError
from sparring.evaluation.measure import read_measured
from sparring.launch import check_launcher, command, parallel_of, process_count, ranks_here, with_config
from sparring.opponent.engines import load_sampler
from sparring.opponent.hf import TransformersEngine
from sparring.policy.compute import memory_error
from sparring.policy.footprint import Parallel
from sparring.rundir import RunDir
from sparring.stages.check import check
from sparring.stages.context import RunContext
from sparring.stages.results import measure
from sparring.stages.run_stage import TargetReached
from sparring.stages.train import sft

# as in tests/training/test_ranks.py, after more steps
WEIGHTS = 2e-4
ONE_ITERATION = {"iterations": 1, "sft": None, "controls": None, "showcase": [], "train__epochs": 6, "train__lr": 1e-4}
TWO_RANKS = ["launcher.kind=accelerate", "launcher.processes=2", "launcher.cpu=true"]
TRAIN, SCORE, MEASURE = "iterations/000/train", "iterations/000/score", "iterations/000/measure"


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Game:
    """A game of one iteration, played in one process."""
    game = Game(tmp_path_factory.mktemp("inline") / "game", zygote, ONE_ITERATION)
    return game.play()


@pytest.fixture
def begun(inline: Game, tmp_path: Path, zygote: Zygote) -> Game:
    """The same game before the opponent's log-probs."""
    game = Game(tmp_path / "game", zygote, ONE_ITERATION)
    shutil.copytree(inline.root, game.root, symlinks=True)
    for name in (SCORE, TRAIN, MEASURE, "iterations/000/evaluate"):
        shutil.rmtree(game.root / name)
    (game.root / "summary.json").unlink()
    return game


@pytest.fixture
def scored(begun: Game, inline: Game) -> Game:
    """The same before training."""
    shutil.copytree(inline.root / SCORE, begun.root / SCORE)
    return begun


def ranks(
    game: Game,
    stage: str,
    count: int = 2,
    overrides: dict[int, list[str]] | None = None,
    environment: dict[str, str] | None = None,
    **more: dict[int, Any],
) -> list[Running]:
    """`sparring stage` by hand in several processes, named as torchrun names them."""
    started = []
    for rank, names in enumerate(environments_of_ranks(count)):
        own = {name: value[rank] for name, value in more.items() if rank in value}
        arguments = ["stage", "recipe.yaml", stage, *TWO_RANKS, *(overrides or {}).get(rank, [])]
        started.append(game.zygote.start(arguments, game.folder, environment=names | (environment or {}), **own))
    return started


def results(started: list[Running]) -> list[Result]:
    return [one.wait() for one in started]


def assert_same_player(game: Game, inline: Game) -> None:
    ours, theirs = (load_file(each.root / TRAIN / "model" / "model.safetensors") for each in (game, inline))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=WEIGHTS)
    names = [sorted(path.name for path in (each.root / TRAIN / "model").iterdir()) for each in (game, inline)]
    assert names[0] == names[1], "a plain Hugging Face folder"
    assert game.json(f"{TRAIN}/done.json")["inputs"].keys() == inline.json(f"{TRAIN}/done.json")["inputs"].keys()


# --- by hand


def test_ranks_by_hand_killed_and_gone_on_with(begun: Game, inline: Game) -> None:
    # rank 0 chooses an open number format, here that of the run, for all: another machine's device may be fast at another
    only_rank_0 = {1: [Sabotage("sparring.policy.machine:fast_precision", do="crash")]}
    for result in results(ranks(begun, SCORE, overrides={rank: ["train.precision=null"] for rank in (0, 1)}, sabotage=only_rank_0)):
        assert result.code == 0, result.err
    logps = begun.json(f"{SCORE}/done.json")
    assert logps["facts"]["ranks"] == 2 and logps["inputs"] == inline.json(f"{SCORE}/done.json")["inputs"], "the launcher is no input"

    one, two = results(ranks(begun, TRAIN, sabotage={1: [working(TRAIN, 11)]}))
    assert two.code == -signal.SIGKILL and one.code not in (0, 2), "rank 0 cannot go on alone"
    assert list((begun.root / f"{TRAIN}.partial").glob("checkpoint-*"))
    one, two = results(ranks(begun, TRAIN))
    assert (one.code, two.code) == (0, 0), one.err
    assert "resuming at step" in one.err and two.err == "", "only rank 0 speaks"
    assert_same_player(begun, inline)
    result = begun.run()  # in one process: what the ranks have finished is finished
    assert result.code == 0 and "training" not in result.err, result.err


def test_rank_0_alone_reads_back_what_it_is_about_to_give_its_final_name(begun: Game, inline: Game) -> None:
    """The others may come to it when the folder has moved."""
    shutil.rmtree(begun.root / "iterations/000/generate")
    for result in results(
        ranks(begun, "iterations/000/generate", sabotage={1: [Sabotage("sparring.stages.generate:checked_facts", do="crash")]})
    ):
        assert result.code == 0, result.err
    facts = [game.json("iterations/000/generate/done.json")["facts"] for game in (begun, inline)]
    assert facts[0]["logp_check"].keys() == facts[1]["logp_check"].keys() and facts[0]["replies"] == facts[1]["replies"]


def test_ranks_that_outlive_their_run_keep_others_out(begun: Game) -> None:
    """As after a SIGKILL of `sparring run`, which its ranks do not notice."""
    with RunDir(begun.root).ranks_lock():
        result = begun.run()
        assert result.code == 2 and "another process works in this run directory" in result.err
        one, two = results(ranks(begun, SCORE))
        assert one.code == 2 and "another process works in this run directory" in one.err and (two.code, two.err) == (2, "")


def test_ranks_with_different_recipes_and_stages_out_of_turn(begun: Game) -> None:
    one, two = results(ranks(begun, SCORE, overrides={1: ["objective.beta=0.25", "train.lr=1e-5"]}))
    assert (one.code, two.code) == (2, 2) and two.err == ""
    assert "rank 1 was started with another recipe" in one.err and "objective.beta: 1.0 -> 0.25" in one.err and "Traceback" not in one.err
    one, two = results(ranks(begun, TRAIN))
    assert (one.code, two.code) == (2, 2) and f"{SCORE} comes before {TRAIN} and is not finished" in one.err
    one, two = results(ranks(begun, "iterations/000/evaluate"))
    assert (one.code, two.code) == (2, 2) and "is not a stage of this game that runs on ranks" in one.err


def test_ranks_end_the_game_where_the_process_that_plays_does(begun: Game, inline: Game) -> None:
    """Iterations that a longer recipe has left count neither for a control's cost nor as stages of this game."""
    shutil.rmtree(begun.root)
    shutil.copytree(inline.root, begun.root, symlinks=True)
    recipe = ["controls=continued-sft", "controls.batch_size=16"]
    assert begun.run("iterations=2", *recipe).code == 0
    assert begun.run("iterations=1", *recipe).code == 0
    expected = begun.json("continued-sft/train/done.json")["inputs"]
    for part in ("train", "measure", "evaluate"):
        shutil.rmtree(begun.root / "continued-sft" / part)
    one, two = results(ranks(begun, "continued-sft/train", overrides={rank: ["iterations=1", *recipe] for rank in (0, 1)}))
    assert (one.code, two.code) == (0, 0), one.err
    assert begun.json("continued-sft/train/done.json")["inputs"] == expected
    one, two = results(ranks(begun, "iterations/001/train", overrides={rank: ["iterations=1"] for rank in (0, 1)}))
    assert (one.code, two.code) == (2, 2) and "is not a stage of this game" in one.err and "Traceback" not in one.err


def test_slurm_names_the_ranks(begun: Game) -> None:
    port = str(free_port())
    started = [
        begun.zygote.start(
            ["stage", "recipe.yaml", SCORE, *TWO_RANKS],
            begun.folder,
            environment={
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": str(rank),
                "MASTER_PORT": port,
                "ACCELERATE_USE_CPU": "true",
            },
        )
        for rank in range(2)
    ]
    assert [result.code for result in results(started)] == [0, 0], started[0].err
    assert begun.json(f"{SCORE}/done.json")["facts"]["ranks"] == 2


def recipe_of(game: Game) -> dict[str, Any]:
    return yaml.safe_load((game.folder / "recipe.yaml").read_text(encoding="utf-8"))


def without_measurements(game: Game, inline: Game, owner: str) -> None:
    """`game` as it was before `owner` was measured, iteration 0 trained."""
    shutil.rmtree(game.root)
    shutil.copytree(inline.root, game.root, symlinks=True)
    for part in ("measure", "evaluate"):
        shutil.rmtree(game.root / owner / part)


def assert_same_measurements(game: Game, inline: Game, owner: str) -> None:
    ours, theirs = (read_measured(each.root / owner / "measure") for each in (game, inline))
    assert ours.replies == theirs.replies
    for row, other in zip(ours.logps, theirs.logps, strict=True):
        assert row.pop("row_id") == other.pop("row_id")
        assert row == pytest.approx(other, rel=1e-5)


def test_measuring_on_shards_killed_and_gone_on_with(begun: Game, inline: Game) -> None:
    """Replies with the whole model on every rank, log-probs with half of it each."""
    without_measurements(begun, inline, "iterations/000")
    sharded = {rank: ["launcher.strategy=fsdp2"] for rank in (0, 1)}
    killed = {1: [Sabotage("sparring.training.ranked:score_trees", nth=2)]}
    _, two = results(ranks(begun, MEASURE, overrides=sharded, sabotage=killed))
    assert two.code == -signal.SIGKILL and not (begun.root / MEASURE).exists()
    kept = [path.stat().st_ino for path in begun.root.rglob("measure.partial/replies/shard-*")]
    one, two = results(ranks(begun, MEASURE, overrides=sharded))
    assert (one.code, two.code) == (0, 0), one.err
    assert kept == [path.stat().st_ino for path in begun.root.rglob("000/measure/replies/shard-*")] and kept
    assert_same_measurements(begun, inline, "iterations/000")


def test_other_engines_draw_before_the_ranks_start(begun: Game, inline: Game, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks, here one in this process, find the replies there, and score."""
    without_measurements(begun, inline, "start")
    monkeypatch.chdir(begun.folder)
    others = ["launcher.strategy=fsdp2", "sampling.engine=server"]
    recipe = load_recipe(recipe_of(begun), [*TWO_RANKS, *others])
    happened = []

    def engine(settings: SamplerSettings, chat: Chat, folder: Path, temperature: float) -> TransformersEngine:
        happened.append("engine")
        return TransformersEngine(load_sampler(settings, folder), settings.sampling, chat.stop_ids)

    def launched(recipe: Recipe, root: Path, stage: str, calls: object) -> None:
        happened.append(stage)
        with pytest.raises(TargetReached):
            measure(RunContext(recipe, RunDir(root), target=stage), start, None, sampling_round=0)

    monkeypatch.setattr("sparring.opponent.engines.make_engine", engine)
    monkeypatch.setattr("sparring.stages.run_stage.launch", launched)
    context = RunContext(recipe, RunDir(Path(recipe.run_dir)))
    start = sft(context)
    measure(context, start, None, sampling_round=0)
    assert happened == ["engine", "start/measure"]
    assert_same_measurements(begun, inline, "start")


# --- by accelerate: here on two machines; tests/test_target_games.py has it on one


def children(running: Running, words: str) -> list[psutil.Process]:
    """The processes below a command that are ranks."""
    found = []
    for process in psutil.Process(running.pid).children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if words in line and "accelerate" not in line:
            found.append(process)
    return found


def in_training(game: Game) -> Callable[[], bool]:
    return lambda: any((game.root / f"{TRAIN}.partial").glob("checkpoint-*/step.json"))


def test_two_machines_one_killed(scored: Game, inline: Game) -> None:
    """Two addresses of this machine: machine 0 plays, machine 1 follows, each with one rank; machine 1 dies in the middle."""
    meeting = [*TWO_RANKS, "launcher.machines=2", "launcher.main_process_ip=127.0.0.2", f"launcher.main_process_port={free_port()}"]
    first = scored.start(*meeting)
    second = scored.start(*meeting, "launcher.machine_rank=1")
    first.wait_for(in_training(scored))
    for process in [*children(second, "sparring stage"), *psutil.Process(second.pid).children(recursive=True)]:
        process.kill()
    os.kill(second.pid, signal.SIGKILL)
    second.wait()
    result = first.wait()
    assert result.code == 1, result.err
    first, second = scored.start(*meeting), scored.start(*meeting, "launcher.machine_rank=1")
    one, two = first.wait(), second.wait()
    assert (one.code, two.code) == (0, 0), one.err + two.err
    assert "resuming at step" in one.err
    assert_same_player(scored, inline)


def test_a_machine_lends_its_ranks_once(begun: Game) -> None:
    """Typed again while the first one still waits, the command would send as many ranks again."""
    with locks.hold(begun.root, ".lock-machine-1"):
        result = begun.run(*TWO_RANKS, "launcher.machines=2", "launcher.main_process_ip=127.0.0.1", "launcher.machine_rank=1")
    assert result.code == 2 and "another process works in this run directory" in result.err


def test_a_machine_says_that_it_waits(begun: Game, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(launching, "answer_calls", lambda *_: None)
    caplog.set_level("WARNING", "sparring")  # as in a new process
    caplog.handler.setLevel(0)
    more = [*TWO_RANKS, "launcher.machines=2", "launcher.main_process_ip=127.0.0.1", "launcher.machine_rank=1"]
    launching.follow(load_recipe(recipe_of(begun), more), begun.root)
    assert "machine 1 of 2: waiting for calls of machine 0" in caplog.text


# --- bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "inline", "processes": 2}, "has no effect while launcher.kind is inline"),
        ({"machines": 2}, "the address of machine 0"),
        ({"machines": 2, "machine_rank": 2, "main_process_ip": "127.0.0.1"}, "machine_rank is from 0 to 1"),
        ({"strategy": "zero"}, "ddp"),
        (
            {"strategy": "deepspeed-zero3"},
            "launcher.strategy: 'deepspeed-zero3': DeepSpeed was removed: .*; launcher.strategy fsdp2",
        ),
    ],
)
def test_what_contradicts_itself(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_recipe({"run_dir": "run", "model": {"path": "builtin:tiny"}, "data": {"path": "builtin:tasks"}, "launcher": changes})


def test_the_short_form_and_overrides_of_it() -> None:
    recipe = {"run_dir": "run", "model": {"path": "builtin:tiny"}, "data": {"path": "builtin:tasks"}, "launcher": "inline"}
    assert load_recipe(recipe).launcher == load_recipe({**recipe, "launcher": {"kind": "inline"}}).launcher
    assert load_recipe(recipe, ["launcher.kind=accelerate", "launcher.processes=2"]).launcher.processes == 2


def test_what_this_machine_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*nothing.yaml"):
        check_launcher(LauncherSection(config_file=str(tmp_path / "nothing.yaml")))
    with pytest.raises(UserError, match="spread evenly"):
        check_launcher(LauncherSection(processes=3, machines=2, main_process_ip="127.0.0.1", cpu=True))
    with taken_port() as port, pytest.raises(UserError, match="choose another port, the same on all machines"):
        check_launcher(LauncherSection(processes=2, machines=2, main_process_ip="127.0.0.1", main_process_port=port, cpu=True))
    file = tmp_path / "accelerate.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_machines: 2\nmain_process_ip: null\n", encoding="utf-8"
    )
    with pytest.raises(UserError, match="the address of machine 0 is missing, here and in"):
        launching._calls_address(LauncherSection(machines=2, config_file=str(file)))


def test_a_taken_port_for_the_calls_of_machine_0(begun: Game) -> None:
    with taken_port() as port:
        meeting = ["launcher.machines=2", "launcher.main_process_ip=127.0.0.1", f"launcher.main_process_port={port - 1}"]
        result = begun.run(*TWO_RANKS, *meeting)
    assert result.code == 2 and f"(127.0.0.1:{port})" in result.err and "Traceback" not in result.err


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("num_processes: [", "Accelerate cannot read it"),
        ("just words", "Accelerate cannot read it"),
        ("num_processes: 2", "`distributed_type` must be specified"),
        ("distributed_type: MULTI_CPU\nnum_procs: 2", "unknown keys .*num_procs"),
        ("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_machines: 2", "names 2 machines, and launcher.machines is 1"),
        ("distributed_type: MULTI_CPU\nuse_cpu: true\nmain_process_port: PORT", "choose another, or leave it out"),
        ("distributed_type: DEEPSPEED", "DEEPSPEED; DeepSpeed was removed: .* pickles"),
        ("distributed_type: XLA", "XLA; supported: FSDP, MULTI_GPU"),
        ("distributed_type: FSDP\nnum_processes: '4'", "not a whole number"),
        ("distributed_type: FSDP\nnum_processes:", "num_processes: None, which is not a whole number"),
        ("distributed_type: FSDP\nnum_processes: 2\nnum_machines: '2'", "num_machines: '2', which is not a whole number"),
        ("distributed_type: FSDP\nuse_cpu: true\nnum_processes: 4\nnum_machines: 3\nmain_process_ip: h", "4 processes cannot be spread"),
    ],
)
def test_a_file_of_accelerates_own_that_cannot_be_used(text: str, words: str, tmp_path: Path) -> None:
    with taken_port() as port:
        (tmp_path / "own.yaml").write_text(text.replace("PORT", str(port)), encoding="utf-8")
        with pytest.raises(UserError, match=words):
            check_launcher(LauncherSection(config_file=str(tmp_path / "own.yaml"), machines=3 if "num_machines: 3" in text else 1))


SEVERAL = "num_processes: 6\nnum_machines: 3\nmain_process_ip: 10.0.0.1"


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("distributed_type: FSDP\nnum_processes: 4", {}, Parallel(4, "fsdp2")),
        ("distributed_type: FSDP\nnum_processes: 4", {"processes": 2}, Parallel(2, "fsdp2")),
        ("distributed_type: FSDP\nnum_processes: 1", {}, Parallel()),
        ("distributed_type: MULTI_GPU\nnum_processes: 4", {}, Parallel(4, "ddp")),
        ("distributed_type: MULTI_CPU\nnum_processes: 4", {"strategy": "fsdp2"}, Parallel(4, "fsdp2")),
        (f"distributed_type: MULTI_CPU\n{SEVERAL}", {"machines": 3}, Parallel(6, "ddp")),
        ("distributed_type: FSDP\nmain_process_ip: 10.0.0.1", {"machines": 2}, Parallel(2, "fsdp2")),
        ("distributed_type: 'NO'", {"strategy": "fsdp2"}, Parallel()),
    ],
)
def test_ranks_and_sharding_of_a_config_file(text: str, options: dict[str, Any], expected: Parallel, tmp_path: Path) -> None:
    """Also where launcher.processes is null: the memory of a micro-batch and the refusal of optimizers follow from them. What starts
    the ranks is told the same number, by an option of Accelerate that starts as many."""
    (tmp_path / "own.yaml").write_text(text + "\nuse_cpu: true", encoding="utf-8")
    launcher = LauncherSection(config_file=str(tmp_path / "own.yaml"), **options)
    if not torch.cuda.is_available():  # without num_processes they are one for each GPU
        assert parallel_of(launcher) == expected and ranks_here(launcher) == expected.devices // launcher.machines
    told = launch_arguments(command(launcher, tmp_path, TRAIN))
    assert told.num_processes == process_count(launcher) and told.num_machines == launcher.machines
    assert told.use_fsdp or told.multi_gpu or told.num_processes == 1
    assert with_config(with_config(launcher)) == with_config(launcher)


def launch_arguments(words: list[str]) -> Any:
    """What `accelerate launch` makes of the command that starts ranks."""
    from accelerate.commands import launch

    return launch._validate_launch_command(launch.launch_command_parser().parse_args(words[3:]))[0]


@pytest.mark.parametrize(("port", "expected"), [(None, 29777), (29511, 29511)])
def test_a_port_beside_a_file_overrides_its_own(port: int | None, expected: int, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"distributed_type: FSDP\n{SEVERAL}\nmain_process_port: 29777\n", encoding="utf-8")
    launcher = LauncherSection(config_file=str(tmp_path / "own.yaml"), main_process_port=port, machines=3)
    assert f"--main_process_port {expected}" in " ".join(command(launcher, tmp_path, TRAIN))
    assert launching._calls_address(launcher) == ("10.0.0.1", expected + 1)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("cpu", [False, True])
def test_the_users_own_accelerate_config_does_not_count(processes: int, cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which `accelerate config` has left in the cache: two ranks would be refused by its one GPU, and one would take its DeepSpeed."""
    from accelerate.commands import launch
    from accelerate.commands.config import config_args

    own = tmp_path / "default_config.yaml"
    own.write_text("distributed_type: DEEPSPEED\ngpu_ids: '0'\nmain_process_port: 1\ndeepspeed_config: {zero_stage: 3}\n", encoding="utf-8")
    for module in (launch, config_args):
        monkeypatch.setattr(module, "default_config_file", str(own))
    options = command(LauncherSection(processes=processes, cpu=cpu), tmp_path, TRAIN)
    args, defaults, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(options[3:]))
    assert args.gpu_ids == "all" and not args.use_deepspeed and not args.use_fsdp and not defaults.deepspeed_config
    assert (args.num_processes, args.multi_gpu, args.mixed_precision, args.main_process_port) == (processes, processes > 1, "no", 0)


def test_ranks_by_hand_at_a_port_that_another_program_has(begun: Game) -> None:
    with taken_port() as port:
        names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        arguments = ["stage", "recipe.yaml", SCORE, *TWO_RANKS]
        result = begun.zygote.run(arguments, begun.folder, environment={**names, "ACCELERATE_USE_CPU": "true"})
    assert result.code == 2 and f"MASTER_PORT (127.0.0.1:{port}): another program has this port" in result.err, result.err
    assert "Traceback" not in result.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_launcher_without_a_gpu(begun: Game, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n", encoding="utf-8")
    for option in ("launcher.processes=2", f"launcher.config_file={own}"):
        result = begun.run("launcher.kind=accelerate", option)
        assert result.code == 2 and "this machine has no GPU" in result.err and "launcher.cpu=true" in result.err


def test_what_is_not_sharded_is_announced_and_micro_batches_are_sized_for_shards(
    begun: Game, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(begun.folder)
    caplog.set_level("INFO", "sparring")
    begun.write(**ONE_ITERATION, train__micro_batch_tokens=None)

    def checked(strategy: str) -> str:
        caplog.clear()
        recipe = load_recipe(recipe_of(begun), [*TWO_RANKS, f"launcher.strategy={strategy}"])
        check(RunContext(recipe, RunDir(Path(recipe.run_dir))))
        return caplog.text

    said = checked("fsdp2")
    assert "sampling needs the whole model on one device" in said and "parameters, fsdp2 over 2 ranks, and" in said
    assert begun.json("micro_batch.json")["shared"] == "fsdp2 over 2 ranks"
    assert "micro_batch_tokens: " not in checked("fsdp2"), "kept"
    said = checked("ddp")
    assert "whole model" not in said and "micro_batch_tokens: " in said and "ranks" not in said
    assert begun.json("micro_batch.json")["shared"] is None


def test_an_optimizer_that_cannot_be_sharded(begun: Game) -> None:
    result = begun.run(*TWO_RANKS, "launcher.strategy=fsdp2", "train.optimizer=adafactor")
    assert result.code == 2 and "train.optimizer: adafactor does not work if the launcher shards the model" in result.err


def test_out_of_memory_names_the_options_and_loses_nothing(begun: Game, inline: Game) -> None:
    result = begun.run(sabotage=[working(TRAIN, 11, "no memory")])
    assert result.code == 2 and "out of memory" in result.err and "train.micro_batch_tokens" in result.err and "Traceback" not in result.err
    again = begun.run("train.micro_batch_tokens=60")
    assert again.code == 0 and "resuming at step" in again.err, again.err
    assert_same_player(begun, inline)


def test_other_errors_are_not_taken_for_it() -> None:
    assert memory_error(RuntimeError("a crash")) is None
    assert memory_error(UserError("out of memory")) is None


def test_the_examples_of_the_page_load() -> None:
    page = (Path(__file__).parent.parent / "docs" / "launching.md").read_text(encoding="utf-8")
    recipe = {"run_dir": "run", "model": {"path": "builtin:tiny"}, "data": {"path": "builtin:tasks"}}
    sections = [*re.findall(r"```yaml\n(.*?)```", page, re.DOTALL), *re.findall(r"`(launcher: \{.*?\})`", page)]
    assert len(sections) >= 3
    for text in sections:
        assert load_recipe({**recipe, **yaml.safe_load(text)}).launcher.kind == "accelerate"
    commands = re.findall(r"sparring run recipe.yaml (launcher.*?)(?:'|\s+#|$)", page.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) >= 3
    for one in commands:
        overrides = one.replace("$SLURM_NODEID", "1").replace("$HEAD", "10.0.0.1").split()
        assert load_recipe(recipe, overrides).launcher.machines == 2
