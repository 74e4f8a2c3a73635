"""What `sparring plan` leaves out of two large games: bytes between the devices and to disk, by stage. The tables of docs/scale.md.

    python benchmarks/scale_plan.py

Hours are the plan's. FSDP2 gathers the computing weights of the whole model in every pass of a micro-batch (2 bytes a parameter: once where
it scores, twice where it trains), and sums its gradients over the devices in float32 (4 bytes a parameter) in every backward one. A
checkpoint is float32 weights and the optimizer's state. Rows are as long as the recipe allows, as in the plan. Measuring, some seconds
each time, is in the sum only.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.config import OptimSection, load_recipe
from sparring.policy.footprint import MASTER_BYTES, OPTIMIZER_BYTES

ROOT = Path(__file__).parent.parent
# Bytes a second: of NVLink, which every device receives by inside of a machine; and of a machine's eight adapters of 400 Gb/s together, for
# what a machine gathers comes into it once and is handed on by NVLink.
NVLINK, NETWORK = 450e9, 400e9
DISK = 2e9  # bytes a second that one machine writes to a shared file system
DEVICES_OF_A_MACHINE = 8


@dataclass(frozen=True)
class Game:
    name: str
    recipe: str
    hardware: str
    overrides: tuple[str, ...]

    @property
    def command(self) -> str:
        return " ".join(["sparring plan", self.recipe, "--hardware", self.hardware, *self.overrides])


LARGE = ("data.max_examples=200500", "launcher.machines=8", "launcher.processes=64")
ON_ALL_MACHINES = ("sampling.engine=ray", "sampling.ray.engine=vllm", "sampling.ray.gpus_per_worker=8", "sampling.vllm.tensor_parallel=8")
RARER = ("sft.checkpoint_every=500", "train.checkpoint_every=500")
GAMES = (
    Game("7B, 50,000 prompts, 8 cards", "recipes/zephyr-7b/recipe.yaml", "8xH100-80G", ()),
    Game("70B, 200,000 prompts, 64 cards", "recipes/llama-70b-fsdp/recipe.yaml", "64xH100-80G", LARGE),
    Game("70B, changed", "recipes/llama-70b-fsdp/recipe.yaml", "64xH100-80G", (*LARGE, *ON_ALL_MACHINES, *RARER)),
)


def plan(game: Game) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "sparring", "plan", game.recipe, "--hardware", game.hardware, "--json", str(file)]
        subprocess.run([*command, *game.overrides], cwd=ROOT, check=True, capture_output=True)
        return json.loads(file.read_text(encoding="utf-8"))


def settings_of(game: Game, stage: str) -> OptimSection:
    """The section of the recipe that trains in this stage; continued SFT takes that of the SFT stage where there is one."""
    recipe = load_recipe(ROOT / game.recipe, list(game.overrides))
    return recipe.train if stage.startswith("iterations") or recipe.sft is None else recipe.sft


@dataclass(frozen=True)
class Moved:
    """Of a stage: what every device receives, and what is written in checkpoints, in bytes; the hours that both take by themselves."""

    stage: str
    hours: float
    received: float
    written: float
    talk_hours: float
    disk_hours: float


def moved(game: Game, found: dict[str, Any]) -> Iterator[Moved]:
    parameters, devices = found["model"]["parameters"], found["training_devices"]["devices"]
    rate = NVLINK if devices <= DEVICES_OF_A_MACHINE else NETWORK
    for stage in found["stages"]:
        name, kind = stage["stage"], stage["stage"].rsplit("/", 1)[1]
        passes = math.ceil(stage["tokens"] / devices / found["micro_batch_tokens"])
        received = passes * parameters * {"train": 8, "score": 2}.get(kind, 0) * (devices - 1) / devices
        written = checkpoint_bytes(game, found, stage) if kind == "train" else 0
        yield Moved(name, stage["hours"], received, written, received / rate / 3600, written / DISK / 3600)


def checkpoint_bytes(game: Game, found: dict[str, Any], stage: dict[str, Any]) -> float:
    """Of all checkpoints of a stage; after its last step there is none."""
    section, data = settings_of(game, stage["stage"]), found["data"]
    generated = data["generated"] - 1 if stage["stage"].startswith("iterations") else 0
    items = stage["tokens"] / (data["prompt"] + data["reply"] - 1 + generated)
    count = (math.ceil(items / section.batch_size) - 1) // section.checkpoint_every
    return count * found["model"]["parameters"] * (MASTER_BYTES + OPTIMIZER_BYTES[section.optimizer])


def table(game: Game) -> Iterator[str]:
    found = plan(game)
    yield f"| {game.name} | hours | received by a device, TB | hours for receiving | checkpoints, TB | hours for writing |"
    yield "|---|---|---|---|---|---|"
    rows = list(moved(game, found))
    for row in [*(row for row in rows if not row.stage.endswith("/measure")), total(rows)]:
        yield (
            f"| {row.stage} | {row.hours:.2f} | {row.received / 1e12:.1f} | {row.talk_hours:.2f} | {row.written / 1e12:.1f} | "
            f"{row.disk_hours:.2f} |"
        )


def total(rows: list[Moved]) -> Moved:
    return Moved("together", *(sum(getattr(row, name) for row in rows) for name in list(Moved.__dataclass_fields__)[1:]))


if __name__ == "__main__":
    for game in GAMES:
        print(f"{game.command}\n\n" + "\n".join(table(game)) + "\n")
