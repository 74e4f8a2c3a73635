"""A whole game of adapters by the real command: right opponents, interruption, export, and what a recipe may get wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Game
from zygote import Zygote, working

from sparring.data.tables import read_rows
from sparring.policy.adapters import is_adapter
from sparring.policy.batches import Branches
from sparring.policy.load import load_model, merge, weights_hash
from sparring.policy.player import adapter_hash
from sparring.policy.score import plain_logps
from sparring.policy.tiny import make_tiny
from sparring.rundir import RunDir

LORA: dict[str, Any] = {"rank": 4, "alpha": 8.0}
CHANGES: dict[str, Any] = {"train__lora": LORA, "train__lr": 2e-2, "controls": None}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Game:
    """A finished game of three iterations after an SFT stage of its own adapter."""
    found = Game(tmp_path_factory.mktemp("lora") / "game", zygote, {**CHANGES, "iterations": 3, "sft__lora": LORA, "sft__lr": 2e-2})
    return found.play()


def player(game: Game, t: int) -> Path:
    return game.root / f"iterations/{t:03d}/train/model"


def test_players_are_adapters_over_the_merged_sft_model(adapters: Game) -> None:
    assert not is_adapter(adapters.root / "sft/model")
    for t in range(3):
        assert is_adapter(player(adapters, t))
        assert not (player(adapters, t) / "model.safetensors").exists()
        assert json.loads((player(adapters, t) / "adapter_config.json").read_text())["base_model_name_or_path"] == "../../../../sft/model"
    assert not list(adapters.root.rglob("checkpoint-*"))


@pytest.mark.parametrize("t", [1, 2])
def test_the_opponent_is_the_previous_player_merged(adapters: Game, t: int, tmp_path: Path) -> None:
    """Base plus adapter of iteration t - 1, and not the base: log-probs of the opponent pass against the merged model's own."""
    merge(player(adapters, t - 1), tmp_path / "merged")
    merged, base = load_model(tmp_path / "merged"), load_model(adapters.root / "sft/model")
    examples = {row["row_id"]: row for row in read_rows(adapters.root / "data/train.parquet")}
    replies: dict[tuple[int, str], list[list[int]]] = {}
    for i in (t - 1, t):
        for row in read_rows(adapters.root / f"iterations/{i:03d}/generate"):
            replies.setdefault((i, row["row_id"]), []).append(row["token_ids"])
    from_base = []
    rows = read_rows(adapters.root / f"iterations/{t:03d}/score")
    assert len(rows) > 20
    for row in rows[:12]:
        row_id, i = duel_of(row["duel_id"])
        example = examples[row_id]
        tree = Branches(tuple(example["prompt_ids"]), (tuple(example["reply_ids"]), *map(tuple, replies[i, row_id])))
        torch.testing.assert_close(torch.tensor(row["logps"]).double(), plain_logps(merged, tree), atol=1e-5, rtol=1e-5)
        from_base.append((torch.tensor(row["logps"]) - plain_logps(base, tree)).abs().max().item())
    assert min(from_base) > 1e-3, "the base alone would say something else"


def duel_of(duel_id: str) -> tuple[str, int]:
    """(row id, iteration) of a duel's name."""
    row_id, _, iteration = duel_id.rpartition("@")
    return row_id, int(iteration)


def test_an_adapters_hash_is_known_without_its_weights(adapters: Game) -> None:
    """As `sparring evaluate` computes it from the files: that is how a comparison knows whose benchmarks it reads."""
    run = RunDir(adapters.root)
    start = (run.inputs_of("start/measure") or {})["model"]
    assert adapter_hash(run.verified("iterations/001/train"), start) == weights_hash(player(adapters, 1))
    assert adapter_hash(run.verified("sft"), start) is None and weights_hash(adapters.root / "sft/model") == start


def test_every_iteration_starts_at_margin_zero(adapters: Game) -> None:
    rows = [json.loads(line) for line in (adapters.root / "metrics.jsonl").read_text().splitlines()]
    first = [row for row in rows if "iteration" in row and row["step"] == 0]
    assert [row["margin"] for row in first] == [0.0] * 3
    assert all(row["loss"] == pytest.approx(0.693147, abs=1e-6) for row in first)
    assert any(row["margin"] > 0 for row in rows if "iteration" in row), "and learns"


def test_sample_and_export_of_adapters(adapters: Game, tmp_path: Path) -> None:
    said = adapters.command("sample", "run", "say ab")
    assert said.code == 0 and "iteration 2" in said.out
    for arguments, adapter in ((["--adapter"], True), ([], False)):
        target = tmp_path / ("adapter" if adapter else "merged")
        result = adapters.command("export", "run", str(target), "--iteration", "2", *arguments)
        assert result.code == 0, result.err
        assert is_adapter(target) is adapter and (target / "README.md").exists() and (target / "tokenizer.json").exists()
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        ours = load_model(player(adapters, 2))(input_ids=ids).logits
        for name in ("adapter", "merged"):
            torch.testing.assert_close(load_model(tmp_path / name)(input_ids=ids).logits, ours, atol=1e-5, rtol=1e-5)


STAND_IN = """
import logging
logging.getLogger("bitsandbytes.backends.cpu.ops").warning("a kernel is missing")
logging.getLogger("bitsandbytes.cextension").error("a library is missing")
print("imported")
class nn:
    class Linear8bitLt: pass
    class Linear4bit: pass
"""
# In a new process, nobody has imported PEFT yet
RUN = """
import logging, sys
for name in [name for name in sys.modules if name.partition(".")[0] in ("peft", "bitsandbytes")]:
    del sys.modules[name]
logging.getLogger("bitsandbytes").setLevel(logging.NOTSET)
sys.path.insert(0, ".")
sys.argv = ["sparring", "run", "recipe.yaml"]
from sparring.cli import main
main()
"""


def test_on_a_cpu_bitsandbytes_complains_to_nobody(game: Game) -> None:
    """PEFT imports it, and by its own words everything is missing on a CPU: what is shown are the game's own lines and no others."""
    (game.folder / "bitsandbytes.py").write_text(STAND_IN)
    game.write(**CHANGES, iterations=1, sft=None)
    result = game.command(python=RUN)
    assert result.code == 0 and "imported" in result.out, result.err
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in result.err.splitlines()), result.err


def test_a_whole_model_has_no_adapter_to_export(adapters: Game, tmp_path: Path) -> None:
    result = adapters.command("export", "run", str(tmp_path / "x"), "--iteration", "start", "--adapter")
    assert result.code == 2 and "--adapter" in result.err and "Traceback" not in result.err


def test_an_interrupted_game_ends_in_the_same_bits(tmp_path: Path, zygote: Zygote) -> None:
    """With dropout, in bfloat16, over a base outside of the run; killed between a checkpoint and the end of a training stage."""
    start = tmp_path / "start"
    make_tiny(start, 3)
    lora = {**LORA, "dropout": 0.2}
    changes = {**CHANGES, "model__path": str(start), "sft": None, "train__lora": lora, "train__precision": "bf16", "model__dtype": None}
    whole, killed = (Game(tmp_path / name, zygote, changes) for name in ("whole", "killed"))
    assert whole.run().code == 0
    killed.copy_stages(whole, before="iterations/000/train")
    assert killed.run(sabotage=[working("iterations/000/train", 3)]).code < 0
    assert list(killed.root.rglob("checkpoint-*"))
    shutil.move(start, tmp_path / "moved")  # the base of a half-done run may lie elsewhere the next day
    killed.write(**{**changes, "model__path": str(tmp_path / "moved")})
    result = killed.run()
    assert result.code == 0, result.err
    for t in range(2):
        files = [game.root / f"iterations/{t:03d}/train/model/adapter_model.safetensors" for game in (whole, killed)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert (killed.root / "base-model").is_symlink()


def test_a_base_that_was_changed_is_noticed(tmp_path: Path, zygote: Zygote) -> None:
    """By what does not play: to sample from an adapter, or to export it, over other weights would be another player."""
    make_tiny(tmp_path / "start", 3)
    changes = {**CHANGES, "model__path": str(tmp_path / "start"), "sft": None, "iterations": 1, "showcase": []}
    game = Game(tmp_path / "game", zygote, changes)
    assert game.run().code == 0
    assert game.command("sample", "run", "say ab").code == 0
    make_tiny(tmp_path / "start", 4)
    for command in (["sample", "run", "say ab"], ["export", "run", str(tmp_path / "out"), "--iteration", "0"]):
        result = game.command(*command)
        assert result.code == 2 and "no longer the" in result.err and "Traceback" not in result.err


def test_an_sft_adapter_over_a_base_outside_of_a_run_that_is_a_link(tmp_path: Path, zygote: Zygote) -> None:
    make_tiny(tmp_path / "start", 3)
    (tmp_path / "far" / "away").mkdir(parents=True)
    changes = {"model__path": str(tmp_path / "start"), "sft__lora": LORA, "sft__lr": 2e-2, "controls": None, "iterations": 1}
    game = Game(tmp_path / "game", zygote, changes)
    game.root.symlink_to(tmp_path / "far" / "away", target_is_directory=True)
    result = game.run()
    assert result.code == 0, result.err
    assert not is_adapter(game.root / "sft/model") and not is_adapter(player(game, 0))


def test_what_vllm_cannot_serve(game: Game) -> None:
    game.write(**{**CHANGES, "train__lora": {"dora": True}})
    result = game.run("sampling.engine=ray", "sampling.ray.engine=vllm")
    assert result.code == 2 and "vllm serves no DoRA adapters" in result.err and "Traceback" not in result.err


def test_lora_at_the_top_is_short_for_train_lora(game: Game) -> None:
    game.write(lora={"rank": 2})
    result = game.command("recipe", "recipe.yaml")
    assert result.code == 0 and "rank: 2" in result.out
    both = game.command("recipe", "recipe.yaml", "train.lora.rank=4")
    assert both.code == 2 and "lora" in both.err


def test_four_bits_without_a_gpu(game: Game) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    result = game.run("train.lora.quantize=4bit")
    assert result.code == 2 and "train.lora.quantize" in result.err and "CUDA" in result.err and "Traceback" not in result.err


def test_targets_nobody_has(game: Game) -> None:
    """StoredReply before anything is sampled."""
    game.write(**{**CHANGES, "train__lora": {"targets": ["no_such_proj"]}})
    result = game.run()
    assert result.code == 2 and "no_such_proj" in result.err and "train.lora.targets" in result.err and "Traceback" not in result.err
    assert not (game.root / "sft").exists() and not (game.root / "sft.partial").exists()
