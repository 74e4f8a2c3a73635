"""`sparring plan`: from a recipe to the printed plan."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from sparring.config import Recipe
from sparring.errors import UserError
from sparring.planning.advice import advise, require_playable
from sparring.planning.as_json import as_json
from sparring.planning.contests import find_played_lengths
from sparring.planning.estimate import Plan, estimate
from sparring.planning.given_shape import GivenShape
from sparring.planning.hardware import find_hardware
from sparring.planning.lengths import Given
from sparring.planning.published import published_hours
from sparring.planning.shape import find_shape
from sparring.planning.tables import print_plan
from sparring.rundir import write_json


def plan_of(recipe: Recipe, hardware: str | None = None, given: Given | None = None, model: GivenShape | None = None) -> Plan:
    """The plan of a recipe; all else as on the command line. Loads no weights. Raises UserError for what cannot be planned."""
    device = find_hardware(hardware)  # first: a slip in its name must not wait for the data
    require_playable(recipe, device.kind)
    shape = find_shape(recipe.model, model)
    return estimate(recipe, shape, find_played_lengths(recipe, given or Given()), device)


def show_plan(
    recipe: Recipe, hardware: str | None, given: Given, model: GivenShape, json_file: Path | None, as_published: bool, console: Console
) -> None:
    """Print the plan, and write it to `json_file` when there is one."""
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UserError("the folder does not exist", where=f"--json ({json_file})", remedy=f"make {json_file.absolute().parent} first")
    plan = plan_of(recipe, hardware, given, model)
    proposals = advise(plan)
    published = []
    if as_published:
        published = [published_hours(recipe, plan.shape, plan.lengths, plan.hardware, t) for t in range(recipe.iterations)]
    if json_file is not None:
        write_json(json_file, as_json(plan, proposals, published))
    print_plan(plan, proposals, published, console)
