"""The players that a run directory holds: who they are and where their weights lie."""

from __future__ import annotations

from pathlib import Path

from sparring.errors import UserError
from sparring.report.summary import SUMMARY
from sparring.rundir import read_json
from sparring.stage_names import BASELINE, CONTROL_EVALUATE, CONTROL_TRAIN, iteration_stage


def player_stages(root: Path) -> dict[str, tuple[str, str]]:
    """name -> (stage that holds its model, stage that evaluated it) for every player with weights in this run directory."""
    if not root.is_dir():
        raise UserError("no such run directory", where=str(root), remedy="give the run_dir of a recipe that has been run")
    start = "sft" if (root / "sft").exists() else "base"
    found = {"baseline": (start, BASELINE)}
    count = len(list((root / "iterations").glob("[0-9]*")))
    found |= {str(t): (iteration_stage(t, "train"), iteration_stage(t, "evaluate")) for t in range(count)}
    found["continued-sft"] = (CONTROL_TRAIN, CONTROL_EVALUATE)
    return {name: stages for name, stages in found.items() if (root / stages[0] / "done.json").exists()}


def model_folder(root: Path, name: str) -> Path:
    """The model folder of a player: "best", an iteration's number, "baseline" or "continued-sft"."""
    players = player_stages(root)
    name = player_name(root, name)
    if name not in players:
        raise UserError(
            f"this run has no player {name!r}",
            where=str(root),
            remedy=f"it has {', '.join(players) or 'none yet'}"
            + ("" if "baseline" in players else "; its baseline is the model that the recipe names, which is not copied"),
        )
    return root / players[name][0] / "model"


def player_name(root: Path, name: str) -> str:
    """The one name of a player: "best" and numbers with leading zeros resolved."""
    if name == "best":
        return best_player(root)
    return name.lstrip("0") or "0" if name.isdigit() else name


def best_player(root: Path) -> str:
    """Number of the best iteration, as text."""
    summary = root / SUMMARY
    best = read_json(summary)["best"] if summary.exists() else None
    if best is None:
        raise UserError("this run has no best iteration yet", where=str(root), remedy="let it play at least one iteration")
    return str(best["iteration"])
