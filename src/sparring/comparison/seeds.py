"""Statistics over the games of several seeds: mean and spread of every score, and tests over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from sparring.comparison.arms import METRICS, Run, RunPlayer
from sparring.comparison.command import as_json
from sparring.comparison.compare import DEFAULT_METRICS, RunComparison, compare
from sparring.comparison.tables import print_comparison
from sparring.config import recipe_of_run
from sparring.report.tables import TextTable, print_table
from sparring.stage_names import START


def over_seeds_summary(root: Path) -> dict[str, Any]:
    """For every player that all seeds have: mean, standard deviation and standard error over seeds, and the value of each seed.

    `tests`: all players compared with the start, and with every control.
    """
    games = _games(root)
    names = list(dict.fromkeys([*METRICS, *games.players[0].sampled, *_compared(games)]))
    return {
        "seeds": list(games.seeds or ()),
        "players": [{"player": one.name, "title": one.title, "scores": _scores(one, names)} for one in games.players],
        "left_out": games.left_out,
        "tests": [as_json(found) for found in _comparisons(games)],
    }


def print_over_seeds(root: Path, console: Console) -> None:
    """Mean and spread of the scores that are compared, then the tests."""
    games = _games(root)
    shown = _compared(games)
    title = f"Over {len(games.games)} seeds: mean ± standard error (standard deviation)"
    rows = [[arm.title, *(_cell(_spread(arm, name)) for name in shown)] for arm in games.players]
    print_table(TextTable(title, ["model", *shown], rows), console)
    for found in _comparisons(games):
        print_comparison(found, console)


def _games(root: Path) -> Run:
    return Run(root, str(root), recipe_of_run(root).seeds)


def _comparisons(games: Run) -> Iterator[RunComparison]:
    there = [player.name for player in games.players]
    for player in (START, *(name for name in games.controls if name in there)):
        yield compare([games.root], f"{games.label}:{player}", _compared(games))


def _compared(games: Run) -> list[str]:
    """The scores that are tested: on held-out rows, and of the recipe's benchmarks. Results of `sparring evaluate`, which only some
    players may have, are left to `sparring compare`."""
    arms = [arm for player in games.players for arm in player.arms]
    held_out = [name for name in DEFAULT_METRICS if games.players[0].score(name) is not None]
    benchmarks = [name for name, metric in arms[0].benchmarks.items() if metric.is_main]
    return [*held_out, *(n for n in benchmarks if all(n in arm.played.by_recipe and arm.values(n) is not None for arm in arms))]


def _scores(arm: RunPlayer, names: Sequence[str]) -> dict[str, Any]:
    return {name: spread for name in names if (spread := _spread(arm, name)) is not None}


def _spread(arm: RunPlayer, metric: str) -> dict[str, Any] | None:
    score, found = arm.score(metric), arm.values(metric)
    if score is None or found is None:
        return None
    values = found.top_N.tolist()
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": score["value"], "stderr": score["stderr"], "standard_deviation": deviation, "values": values}


def _cell(spread: dict[str, Any] | None) -> str:
    if spread is None:
        return "-"
    error = "" if spread["stderr"] is None else f" ± {spread['stderr']:.4f} ({spread['standard_deviation']:.4f})"
    return f"{spread['mean']:.4f}{error}"
