"""The names of the stages in a run directory, and their order."""

from __future__ import annotations

import re
from pathlib import Path

from sparring.config import Recipe
from sparring.errors import UserError, nearest
from sparring.rundir import PARTIAL

SFT, BASELINE, CONTROL = "sft", "baseline", "continued-sft"
CONTROL_TRAIN = f"{CONTROL}/train"
SCORES = "scores.json"  # what an evaluation leaves
OF_ITERATION = ("generate", "score", "score-start", "train", "measure", "evaluate", "benchmarks")


def iteration_name(t: int) -> str:
    return f"iterations/{t:03d}"


def iteration_of(stage: str) -> int | None:
    """The iteration that a stage, or a player, is part of."""
    found = re.match(r"iterations/(\d+)", stage)
    return int(found[1]) if found else None


def title_of(owner: str) -> str:
    """What people call a player."""
    t = iteration_of(owner)
    return owner.replace("-", " ") if t is None else f"iteration {t}"


def iteration_stage(t: int, part: str) -> str:
    return f"{iteration_name(t)}/{part}"


def measure_stage(owner: str) -> str:
    """What is drawn from and computed with the weights of a player: held-out replies and log-probs."""
    return f"{owner}/measure"


def evaluate_stage(owner: str) -> str:
    """What follows from that: scores, samples, showcase. Cheap, and made anew when the recipe asks for other scores."""
    return f"{owner}/evaluate"


def benchmark_stage(owner: str) -> str:
    """The recipe's benchmarks, where it has any."""
    return f"{owner}/benchmarks"


def stage_names(root: Path, iterations: int) -> list[str]:
    """Every stage that the run has or may get, in the order in which they build on each other."""
    on_disk = [int(path.name) + 1 for path in (root / "iterations").glob("[0-9]*")]
    count = max([iterations, *on_disk])
    played = [iteration_stage(t, part) for t in range(count) for part in OF_ITERATION]
    evaluated = {owner: [measure_stage(owner), evaluate_stage(owner), benchmark_stage(owner)] for owner in (BASELINE, CONTROL)}
    return ["base", "data", SFT, *evaluated[BASELINE], *played, CONTROL_TRAIN, *evaluated[CONTROL]]


def stages_from(name: str, root: Path, iterations: int) -> list[str]:
    """The stages to redo for --restart-from: `name`, which may be a whole iteration (iterations/001), and all after it."""
    names = stage_names(root, iterations)
    first = next((i for i, candidate in enumerate(names) if candidate == name or candidate.startswith(name.rstrip("/") + "/")), None)
    if first is None:
        guess = nearest(name, names)
        raise UserError(
            f"no stage named {name!r}" + (f"; did you mean {guess}?" if guess else ""),
            where="--restart-from",
            remedy=f"the stages are {', '.join(names)}; iterations/NNN means a whole iteration",
        )
    return names[first:]


def stages_of_game(root: Path, recipe: Recipe) -> list[str]:
    """The stages of this very game, in order: without those that it has no use for."""
    absent = {name for name, section in ((SFT, recipe.sft), (CONTROL, recipe.baseline)) if section is None}
    if not any((root / f"base{ending}").exists() for ending in ("", PARTIAL)):  # a model in a folder of its own is not copied
        absent.add("base")
    return [name for name in stage_names(root, recipe.iterations) if name.split("/")[0] not in absent]
