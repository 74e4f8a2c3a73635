"""The stages of a game: one table of their names, in the order in which they build on each other, what holds for each, and their times.

`play`, the ranks of a launcher, `--restart-from`, `status`, `sparring plan` and the cost of a player read it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sparring.config import CONTROL_TITLES, Recipe, recipe_of_run
from sparring.errors import UserError, suggestion
from sparring.progress import GameProgress
from sparring.rundir import PARTIAL, RunDir

SFT, START = "sft", "start"
SCORES, ITEMS, SAMPLES, SHOWCASE = "scores.json", "items.parquet", "samples.parquet", "showcase.json"  # of an evaluation
METRICS = "metrics.jsonl"  # of training: one line per optimizer step
PROBE, HEADROOM = "probe/train", "headroom.json"  # a short continued SFT, and the scores of the headroom
MOST_DIGITS = 18  # of an iteration's number: there are 999 at most, and Python itself refuses to read thousands of digits
LONGEST_NAME = 100  # of a player in a message


def always(*_: object) -> bool:
    """True, for `Stage`, whatever is passed."""
    return True


class Stage(NamedTuple):
    """part: the last part of its name. on_ranks: recipe -> whether its launcher may start it on several ranks. derived: it is recomputed
    when its inputs change; for other stages changed inputs are an error. used: (recipe, owner) -> whether a game of the recipe has it.
    replaced: a derived stage of grades or scores, which is kept until the recomputed one is finished; others, which may hold a model, are
    deleted first."""

    part: str
    on_ranks: Callable[[Recipe], bool] | None = None
    derived: bool = False
    used: Callable[[Recipe, str], bool] = always
    replaced: bool = False


def _of_dpo(recipe: Recipe, owner: str) -> bool:
    return any(section.folder == owner and section.kind == "dpo" for section in recipe.controls)


FIRST = (Stage("base"), Stage("data"), Stage(SFT, on_ranks=always, used=lambda recipe, _: recipe.sft is not None))
OF_PLAYER = (
    Stage("measure", on_ranks=always),  # all that needs the player's weights: held-out replies and log-probs
    Stage("evaluate", derived=True, replaced=True),  # scores, samples and showcase, from the measurements
    Stage("benchmarks", derived=True, used=lambda recipe, _: recipe.evaluate.benchmarks is not None),
)
OF_PROBE = (Stage("train", always, True, lambda recipe, _: recipe.shows_headroom and recipe.evaluate.headroom_epochs is not None),)
OF_START = (*OF_PLAYER, Stage("headroom", derived=True, used=lambda recipe, _: recipe.shows_headroom, replaced=True))
OF_ITERATION = (
    Stage("generate", on_ranks=lambda recipe: recipe.sampling.spec.on_ranks),
    Stage("grade", derived=True, used=lambda recipe, _: recipe.target.uses_grades, replaced=True),
    Stage("score", on_ranks=always, used=lambda recipe, _: recipe.objective.kind.uses_opponent_logps),
    Stage("score-start", on_ranks=always, used=lambda recipe, owner: recipe.objective.kind.uses_start and iteration_of(owner) != 0),
    Stage("train", on_ranks=always),
    *OF_PLAYER,
)
OF_CONTROL = (
    Stage("pairs", derived=True, used=_of_dpo),
    Stage("score", on_ranks=always, derived=True, used=_of_dpo),
    Stage("train", on_ranks=always, derived=True),
    *(stage._replace(derived=True) for stage in OF_PLAYER),
)
# by owner; any other one is a control
OF_OWNER = {"": FIRST, START: OF_START, "probe": OF_PROBE}


def stage_of(name: str) -> Stage | None:
    """The line of the table for a stage's name; None for any other name."""
    owner, _, part = name.rpartition("/")
    if re.fullmatch(r"iterations/\d{3}", owner):
        stages: tuple[Stage, ...] = OF_ITERATION
    else:
        stages = OF_OWNER.get(owner) or (OF_CONTROL if re.fullmatch(r"[a-z0-9-]+", owner) else ())
    return next((stage for stage in stages if stage.part == part), None)


def iteration_name(t: int) -> str:
    """The folder of an iteration."""
    return f"iterations/{t:03d}"


def iteration_of(stage: str) -> int | None:
    """The iteration that a stage, or a player, is part of."""
    found = re.match(r"iterations/(\d+)", stage)
    return int(found[1]) if found else None


def owner_of(player: str) -> str:
    """The folder of a player's stages. `player` is what commands take: an iteration's number, start or a control's folder."""
    return iteration_name(int(player)) if player.isdigit() else player


def player_of(stage: str) -> str:
    """The player whose model is in a stage: that of an iteration or a control, else (base, sft) the start."""
    owner = stage.rpartition("/")[0]
    t = iteration_of(owner)
    return (owner or START) if t is None else str(t)


def title_of(owner: str) -> str:
    """What people call a player, by the folder that holds its stages; the same in logs, tables, plots and cards."""
    t = iteration_of(owner)
    return f"iteration {t}" if t is not None else "SFT" if owner == SFT else CONTROL_TITLES.get(owner, owner)


def title_of_player(name: str) -> str:
    """The title of a player by its name on the command line."""
    return title_of(owner_of(name))


def start_title(name: str) -> str:
    """The start in tables, by what summary.json calls it: `start (SFT)` after an SFT stage."""
    return START if name == START else f"{START} ({name})"


def iteration_stage(t: int, part: str) -> str:
    """A stage of an iteration, such as iterations/002/train."""
    return f"{iteration_name(t)}/{part}"


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
    """A player's name from what was typed: without leading zeros of an iteration's number, and shortened."""
    if text == "baseline":  # what the start was called before
        return START
    return str(int(text)) if text.isdecimal() and len(text) <= MOST_DIGITS else text[:LONGEST_NAME]


def stage_names(root: Path, iterations: int, controls: Sequence[str]) -> list[str]:
    """Every stage that the run has or may get with these controls, in the order in which they build on each other."""
    on_disk = [int(path.name) + 1 for path in (root / "iterations").glob("[0-9][0-9][0-9]")]
    owners = [*(iteration_name(t) for t in range(max([iterations, *on_disk]))), *controls]
    played = [f"{owner}/{stage.part}" for owner in owners for stage in (OF_CONTROL if owner in controls else OF_ITERATION)]
    measured = [f"{START}/{stage.part}" for stage in OF_PLAYER]
    return [*(stage.part for stage in FIRST), *measured, PROBE, f"{START}/headroom", *played]


def stages_from(name: str, root: Path, iterations: int, controls: Sequence[str]) -> list[str]:
    """The stages to redo for --restart-from: `name`, which may be a whole iteration (iterations/001), and all after it."""
    trained = [path for pattern in ("*/train/*.json", "*/train.partial/*.json") for path in sorted(root.glob(pattern))]
    owners = [path.parent.parent for path in trained]
    # controls of another recipe too; `best` is a link, and the headroom's probe is no control
    earlier = [owner.name for owner in owners if not owner.is_symlink() and owner.name not in OF_OWNER]
    names = stage_names(root, iterations, list(dict.fromkeys([*controls, *earlier])))
    first = next((i for i, candidate in enumerate(names) if candidate == name or candidate.startswith(name.rstrip("/") + "/")), None)
    if first is None:
        raise UserError(
            f"no stage named {name!r}" + suggestion(name, names, before="; "),
            where="--restart-from",
            remedy=f"the stages are {', '.join(names)}; iterations/NNN means a whole iteration",
        )
    return names[first:]


def stages_of_game(root: Path, recipe: Recipe) -> list[str]:
    """The stages of this game, in order, without those that it does not use."""
    controls = [section.folder for section in recipe.controls]
    return [name for name in stage_names(root, recipe.iterations, controls) if _is_of_game(name, root, recipe)]


def _is_of_game(name: str, root: Path, recipe: Recipe) -> bool:
    if name == "base":  # a model in a folder of its own is not copied
        return any((root / f"base{ending}").exists() for ending in ("", PARTIAL))
    return is_used(name, recipe)


def is_used(name: str, recipe: Recipe) -> bool:
    """Whether a game of this recipe uses the stage. An earlier recipe may have left others, such as an SFT stage, log-probs of another
    objective or pairs of another control of that name; they are not part of a player's cost."""
    stage = stage_of(name)
    return stage is not None and stage.used(recipe, name.rpartition("/")[0])


COMPUTED = ("generate", "score", "train")  # stages of an iteration whose cost a control matches


def place_in(root: Path, recipe: Recipe) -> Callable[[str], GameProgress | None]:
    """A function from a stage's name to its place in the run's game, or to None if the game has no such stage."""

    def place(stage: str) -> GameProgress | None:
        names = stages_of_game(root, recipe)
        if stage not in names:
            return None
        number = names.index(stage) + 1
        rest = _seconds(RunDir(root), recipe, names[:number], names[number:])
        own = _seconds(RunDir(root), recipe, names[:number], [stage])
        return GameProgress(number=number, stages=len(names), iterations=recipe.iterations, stage_seconds=own, later_seconds=rest)

    return place


def _seconds(run: RunDir, recipe: Recipe, before: Sequence[str], names: Sequence[str]) -> float | None:
    """The expected time of stages, each that of the last stage of its kind; None if one has no earlier stage of its kind.

    A control's training costs the operations of all iterations: about what sampling, scoring and training took of them.
    """
    took = {"pairs": 0.0}  # it only reads a file
    for name in before:
        if (record := run.finished(name)) is not None:
            took[_part(name)] = record.facts["wall_seconds"]
    if "score" in took:
        took.setdefault("score-start", took["score"])
    controls = {section.folder for section in recipe.controls}
    matched = sum(took.get(part, 0.0) for part in COMPUTED) * recipe.iterations
    seconds = [matched if _part(name) == "train" and name.partition("/")[0] in controls else took.get(_part(name)) for name in names]
    known = [value for value in seconds if value is not None]
    return sum(known) if len(known) == len(seconds) else None


def _part(name: str) -> str:
    return name.rpartition("/")[2]
