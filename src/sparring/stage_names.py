"""The names of the stages in a run directory, and their order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sparring.config import CONTROL_TITLES, Recipe, recipe_of_run
from sparring.errors import UserError, nearest
from sparring.rundir import PARTIAL

SFT, START = "sft", "start"
SCORES = "scores.json"  # what an evaluation leaves
PROBE, HEADROOM = "probe/train", "headroom.json"  # a short continued SFT, and what a start leaves to gain
OF_PLAYER = ("measure", "evaluate", "benchmarks")
MOST_DIGITS = 18  # of an iteration's number: there are 999 at most, and Python itself refuses to read thousands of digits
LONGEST_NAME = 100  # of a player, as a message repeats it
OF_ITERATION = ("generate", "grade", "score", "score-start", "train", *OF_PLAYER)
OF_CONTROL = ("pairs", "score", "train", *OF_PLAYER)  # the first two of DPO alone


def iteration_name(t: int) -> str:
    return f"iterations/{t:03d}"


def iteration_of(stage: str) -> int | None:
    """The iteration that a stage, or a player, is part of."""
    found = re.match(r"iterations/(\d+)", stage)
    return int(found[1]) if found else None


def title_of(owner: str) -> str:
    """What people call a player, by the folder that holds its stages; the same in logs, tables, plots and cards."""
    t = iteration_of(owner)
    return f"iteration {t}" if t is not None else "SFT" if owner == SFT else CONTROL_TITLES.get(owner, owner)


def title_of_player(name: str) -> str:
    """The same by what commands take: an iteration's number, start or a control's folder."""
    return title_of(iteration_name(int(name)) if name.isdigit() else name)


def start_title(name: str) -> str:
    """The start in tables, by what summary.json calls it: `start (SFT)` after an SFT stage."""
    return START if name == START else f"{START} ({name})"


def iteration_stage(t: int, part: str) -> str:
    return f"{iteration_name(t)}/{part}"


def control_stage(control: str, part: str) -> str:
    return f"{control}/{part}"


def seed_folder(seed: int | str) -> str:
    """The game of one seed within the folder of a recipe with `seeds`; "*" for any."""
    return f"seed-{seed}"


def recipe_of_game(root: Path) -> Recipe:
    """The recipe of the one game in a run directory. Raises UserError where there is none, or several."""
    recipe = recipe_of_run(root)
    if recipe.seeds is not None:
        games = ", ".join(str(root / seed_folder(seed)) for seed in recipe.seeds)
        raise UserError("this folder holds the games of several seeds", where=str(root), remedy=f"name one of them: {games}")
    return recipe


def player_name(text: str) -> str:
    """A player's name as it was typed, with an end: an iteration's number may have leading zeros."""
    return str(int(text)) if text.isdecimal() and len(text) <= MOST_DIGITS else text[:LONGEST_NAME]


def measure_stage(owner: str) -> str:
    """The stage of measurements that need the weights of a player: held-out replies and log-probs."""
    return f"{owner}/measure"


def evaluate_stage(owner: str) -> str:
    """The stage of scores, samples and showcase, computed from the measurements. Cheap, and recomputed if the recipe changes scores."""
    return f"{owner}/evaluate"


def benchmark_stage(owner: str) -> str:
    """The recipe's benchmarks, where it has any."""
    return f"{owner}/benchmarks"


def headroom_stage() -> str:
    """What the start of the game leaves to gain, measured before anything is played."""
    return f"{START}/headroom"


def stage_names(root: Path, iterations: int, controls: Sequence[str]) -> list[str]:
    """Every stage that the run has or may get with these controls, in the order in which they build on each other."""
    on_disk = [int(path.name) + 1 for path in (root / "iterations").glob("[0-9][0-9][0-9]")]
    count = max([iterations, *on_disk])
    played = [iteration_stage(t, part) for t in range(count) for part in OF_ITERATION]
    of_controls = [control_stage(control, part) for control in controls for part in OF_CONTROL]
    of_start = [*(f"{START}/{part}" for part in OF_PLAYER), PROBE, headroom_stage()]
    return ["base", "data", SFT, *of_start, *played, *of_controls]


def stages_from(name: str, root: Path, iterations: int, controls: Sequence[str]) -> list[str]:
    """The stages to redo for --restart-from: `name`, which may be a whole iteration (iterations/001), and all after it."""
    trained = [path for pattern in ("*/train/*.json", "*/train.partial/*.json") for path in sorted(root.glob(pattern))]
    owners = [path.parent.parent for path in trained]
    earlier = [owner.name for owner in owners if not owner.is_symlink()]  # controls of another recipe too; `best` is a link
    names = stage_names(root, iterations, list(dict.fromkeys([*controls, *earlier])))
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
    controls = [section.folder for section in recipe.controls]
    return [name for name in stage_names(root, recipe.iterations, controls) if _is_of_game(name, root, recipe)]


def _is_of_game(name: str, root: Path, recipe: Recipe) -> bool:
    _, _, part = name.rpartition("/")
    if name == "base":  # a model in a folder of its own is not copied
        return any((root / f"base{ending}").exists() for ending in ("", PARTIAL))
    if part == "benchmarks":
        return recipe.evaluate.benchmarks is not None
    return is_used(name, recipe)


def is_used(name: str, recipe: Recipe) -> bool:
    """Whether a game of this recipe has a use for the stage. An SFT stage, log-probs of another objective or pairs of another control of
    that name may be left from an earlier recipe: they are no part of what a player has cost."""
    if name == SFT:
        return recipe.sft is not None
    if name in (PROBE, headroom_stage()):
        return recipe.shows_headroom and (name != PROBE or recipe.evaluate.headroom_epochs is not None)
    owner, _, part = name.rpartition("/")
    kinds = {section.folder: section.kind for section in recipe.controls}
    if owner in kinds:
        return kinds[owner] == "dpo" or part not in ("pairs", "score")
    uses = {
        "grade": recipe.target.moves,
        "score": recipe.objective.kind.uses_opponent_logps,
        "score-start": recipe.objective.kind.uses_start and iteration_of(owner) != 0,
    }
    return uses.get(part, True)
