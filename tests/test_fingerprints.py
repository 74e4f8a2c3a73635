"""What the stages of tiny games are made from, compared with tests/fingerprints.json: a run directory of an earlier version resumes only
where every key and value is as it was. Content hashes are left out, since they follow the libraries.

`python tests/test_fingerprints.py` writes the file anew, for a fingerprint that is changed on purpose.
"""

from __future__ import annotations

import json
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import SUMS, TINY, Game, play_sums, rows, write_rows
from zygote import Zygote

from sparring.config import load_recipe
from sparring.rundir import RunDir
from sparring.stages.context import RunContext
from sparring.stages.run_stage import NOT_FINGERPRINTED, NOT_OF_SAMPLER, fingerprint

FILE = Path(__file__).parent / "fingerprints.json"
LORA = {"rank": 4, "alpha": 8.0}
SMALL: dict[str, Any] = {"iterations": 2, "sft": None, "showcase": [], "objective": {"window": 2, "loss": "alpha-spin", "alpha": 0.5}}
# Between them all stages, and every option that adds a key; `benchmarks` alone need the harness, which is not installed here
GAMES: dict[str, dict[str, Any]] = {
    "tiny": TINY,
    "headroom, dpo": {
        **SMALL,
        "train": {**TINY["train"], "lr": [1e-2, 2e-2], "epochs": [1, 2], "lora": LORA},
        "evaluate": {"answer_pattern": "[0-9]+$", "samples": 2, "greedy": True, "headroom": True},
        "controls": [{"kind": "dpo", "pairs": "pairs.jsonl", "batch_size": 4}, {"kind": "continued-sft", "epochs": 1}],
    },
    "majority": SUMS,
    "verified, rft": {
        **SUMS,
        "iterations": 1,
        "target": {"kind": "verified", "checker": "number"},
        "objective": {"loss": "sft"},
        "evaluate": {"samples": 2, "headroom_epochs": 1},
        "controls": [{"kind": "rft", "batch_size": 8}, {"kind": "rft", "name": "rft-twice", "epochs": 2}],
    },
}


def play(name: str, folder: Path, zygote: Zygote) -> Game:
    changes = GAMES[name]
    if "target" in changes:
        return play_sums(folder / "game", zygote, **changes)
    game = Game(folder / "game", zygote, changes)
    pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "no"} for row in rows(12)]
    write_rows(game.folder / "pairs.jsonl", pairs)
    return game.play()


def fingerprints(root: Path) -> dict[str, Any]:
    """stage -> its recorded inputs."""
    found = {done.parent.relative_to(root).as_posix(): json.loads(done.read_text())["inputs"] for done in sorted(root.rglob("done.json"))}
    return json.loads(re.sub(r"\b[0-9a-f]{64}\b", "HASH", json.dumps(found)))


SHARED = {"tiny": "played", "majority": "majority_game"}  # fixtures of conftest.py


@pytest.mark.parametrize("name", GAMES)
def test_fingerprints_are_those_of_earlier_runs(name: str, tmp_path: Path, zygote: Zygote, request: pytest.FixtureRequest) -> None:
    game = request.getfixturevalue(SHARED[name]) if name in SHARED else play(name, tmp_path, zygote)
    assert fingerprints(game.root) == json.loads(FILE.read_text(encoding="utf-8"))[name]


def test_work_reads_nothing_that_is_not_given() -> None:
    """A recipe can reach it neither from around it nor under the name of something that is not pinned."""
    recipe = load_recipe(TINY)

    def around(stage: Path) -> dict[str, Any]:
        return {"seed": recipe.seed}

    with pytest.raises(AssertionError, match="nothing but its arguments"):
        fingerprint(partial(around))
    for whole in (recipe, recipe.train, RunContext(recipe, RunDir(Path("run")))):
        with pytest.raises(AssertionError, match="options as keyword arguments"):
            fingerprint(partial(work, whole))
    for unknown in (recipe, recipe.evaluate, object()):
        with pytest.raises(TypeError, match="as an input of a stage"):
            fingerprint(partial(work, given=unknown))


def work(*_: Any, **given: Any) -> dict[str, Any]:
    return {}


def test_inputs_newer_than_the_first_runs_are_left_out_at_what_was_before() -> None:
    train = load_recipe(TINY).train
    given = {"train": train, "samples": 1, "steps": None, "probe": None, "greedy": False}
    assert fingerprint(partial(work, **given)) == {
        "train": {name: value for name, value in train.model_dump().items() if name not in NOT_FINGERPRINTED},
        "probe": None,
        "greedy": False,
    }
    assert fingerprint(partial(work, samples=2, steps=3)) == {"samples": 2, "steps": 3}


def test_the_sections_of_engines_are_no_part_of_a_fingerprint() -> None:
    """Their names come from SamplingSection, so that the section of a new engine changes the fingerprints of no other engine."""
    assert {"batch_tokens", "shard_rows", "replies_per_prompt", "vllm", "server", "ray"} == NOT_OF_SAMPLER


if __name__ == "__main__":
    started = Zygote()
    with tempfile.TemporaryDirectory() as temporary:
        found = {name: fingerprints(play(name, Path(temporary, str(place)), started).root) for place, name in enumerate(GAMES)}
    started.close()
    stages = {
        name: ",\n".join(f'  "{stage}": {json.dumps(inputs, sort_keys=True)}' for stage, inputs in of.items()) for name, of in found.items()
    }
    FILE.write_text("{\n" + ",\n".join(f' "{name}": {{\n{lines}\n }}' for name, lines in stages.items()) + "\n}\n", encoding="utf-8")
