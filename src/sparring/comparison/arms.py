"""The players of a run, read from its folder: their values for every held-out row, and the cost of each from the base model on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sparring.comparison.pairing import (
    PlayedBenchmarks,
    only_in,
    other_answers,
    other_grading,
    played_benchmarks,
    require_same_samples,
    right_answers,
    why_missing,
    why_not,
)
from sparring.comparison.statistics import Paired, Values, over_rows, over_seeds
from sparring.config import ModelSection, recipe_of_run
from sparring.console import counted
from sparring.cost import Cost, control_cost, cost_of, iterations_cost
from sparring.data.tables import read_rows
from sparring.errors import UserError
from sparring.evaluation.benchmarks import SampledMetric
from sparring.evaluation.metrics import SAMPLED, Score, all_metrics, higher_is_better, ratio_score
from sparring.locks import holder
from sparring.report.summary import read_summary
from sparring.rundir import RunDir
from sparring.stage_names import ITEMS, SFT, START, owner_of, player_name, seed_folder, start_title, title_of_player

P = TypeVar("P")
# metric -> numerator and denominator: a sum over rows divided by another
RATIOS = {"nll_per_token": ("nll_per_reply", "human_reply_tokens")}
# measured against each player's own opponent
OF_DUELS = ("duel_margin", "duel_accuracy")
METRICS = [*RATIOS, *(name for name in all_metrics() if name not in (*OF_DUELS, "human_reply_tokens"))]


def is_benchmark(metric: str) -> bool:
    """Whether a score is that of a benchmark: its name has a task before the metric."""
    return "/" in metric


@dataclass(frozen=True)
class Arm:
    """The values of a player of one game: columns with one value per held-out row. `player`: its name."""

    run: Game
    player: str
    title: str
    rows: tuple[str, ...]
    columns: Mapping[str, np.ndarray]
    cost: Cost

    @property
    def label(self) -> str:
        """RUN:PLAYER, as --against takes it."""
        return f"{self.run.label}:{self.player}"

    @cached_property
    def played(self) -> PlayedBenchmarks:
        """Its benchmarks. Reads every sample, so only on request."""
        return played_benchmarks(self.run.run, self.player)

    @property
    def benchmarks(self) -> Mapping[str, SampledMetric]:
        """Benchmark metrics by name."""
        return self.played.metrics

    def values(self, metric: str) -> Values | None:
        """The metric's values, for a benchmark in the order of the samples' names; None if the run has not measured it."""
        if is_benchmark(metric):
            found = self.benchmarks.get(metric)
            return None if found is None or found.values is None else Values.of_mean([found.values[name] for name in sorted(found.values)])
        top, bottom = RATIOS.get(metric, (metric, None))
        if top not in self.columns:
            return None
        return Values(self.columns[top], self.columns[bottom]) if bottom else Values.of_mean(self.columns[top])

    def why_not(self, other: Arm, metric: str) -> str | None:
        """Why the metric cannot be compared between the two, or None if it can."""
        if is_benchmark(metric):
            return next((why for arm in (self, other) if (why := why_not(arm.benchmarks.get(metric), arm.label))), None)
        for arm in (self, other):
            if arm.values(metric) is None:
                return f"is not defined for {arm.run.label}{why_missing(metric, arm.run.recipe)}"
        if why := other_grading(metric, self.run.graded, other.run.graded):
            return why
        where = f"in {self.run.label} than in {other.run.label}"
        if self.run is not other.run and (why := other_answers(metric, self.run.right_answers, other.run.right_answers, where)):
            return why
        if metric in RATIOS and not np.array_equal(self.columns[RATIOS[metric][1]], other.columns[RATIOS[metric][1]]):
            return f"counts different tokens in {self.run.label} than in {other.run.label}: nll_per_reply does not depend on the tokenizer"
        return None


@dataclass(frozen=True)
class RunPlayer:
    """A player of a run: that of its one game, or those of one name in the games of its seeds, which are compared seed by seed."""

    run: Run
    name: str
    title: str
    arms: tuple[Arm, ...]

    @property
    def label(self) -> str:
        """RUN:PLAYER, as --against takes it."""
        return f"{self.run.label}:{self.name}"

    @property
    def cost(self) -> Cost:
        """Cost of all seeds together."""
        return sum((arm.cost for arm in self.arms), Cost())

    @property
    def flops(self) -> float | None:
        """Floating-point operations from the base model on, of all seeds together; None if the sizes of a model cannot be found."""
        known = [arm.cost.flops(arm.run.weights) for arm in self.arms if arm.run.weights is not None]
        return sum(known) if len(known) == len(self.arms) else None

    @property
    def benchmarks(self) -> Mapping[str, SampledMetric]:
        """Benchmark metrics that every seed has, with the results of the first seed."""
        first, *others = [arm.benchmarks for arm in self.arms]
        return {name: metric for name, metric in first.items() if all(name in found for found in others)}

    @property
    def sampled(self) -> list[str]:
        """Scores that name their number of replies and that every seed has."""
        first, *others = [arm.columns for arm in self.arms]
        return [name for name in first if name.startswith(SAMPLED) and all(name in found for found in others)]

    @property
    def stale_benchmarks(self) -> list[str]:
        """Folders of benchmarks that ran before the player was trained again."""
        return [folder for arm in self.arms for folder in arm.played.stale]

    def higher_is_better(self, metric: str) -> bool | None:
        """Which direction is better; None if neither is."""
        if is_benchmark(metric):
            return self.benchmarks[metric].score.get("higher_is_better")
        return higher_is_better(RATIOS[metric][0] if metric in RATIOS else metric)

    def values(self, metric: str) -> Values | None:
        """The metric's values, one for each row, or for each seed; None if any game has not measured it."""
        found = [values for arm in self.arms if (values := arm.values(metric)) is not None]
        if len(found) < len(self.arms):
            return None
        return found[0] if self.run.seeds is None else Values.of_mean([values.mean for values in found])

    def score(self, metric: str) -> Score | None:
        """Value and standard error over rows, or the mean of the seeds' values and its error over seeds; None if it is not measured."""
        values = self.values(metric)
        return None if values is None else ratio_score(values.top_N, values.bottom_N, self.higher_is_better(metric))

    def paired(self, other: RunPlayer, metric: str, confidence: float, seed: int) -> Paired | None:
        """This player minus `other`, over rows or over seeds, each pair on the rows of its seed; None if the two cannot be compared."""
        mine, theirs = self.values(metric), other.values(metric)
        if mine is None or theirs is None or self.why_not(other, metric) is not None:
            return None
        return over_rows(mine, theirs, confidence, seed) if self.run.seeds is None else over_seeds(mine.top_N, theirs.top_N, confidence)

    def why_not(self, other: RunPlayer, metric: str) -> str | None:
        """Why the metric cannot be compared between the two, in the first seed for which that is so; None if it can."""
        return next((why for a, b in zip(self.arms, other.arms, strict=True) if (why := a.why_not(b, metric))), None)

    def require_same_rows(self, other: RunPlayer) -> None:
        """Raises UserError if the two were evaluated on different held-out rows."""
        for mine, theirs in zip(self.arms, other.arms, strict=True):
            ids, labels = (set(mine.rows), set(theirs.rows)), (mine.run.label, theirs.run.label)
            if mine.rows != theirs.rows:
                raise UserError(
                    f"{labels[0]} was scored on {len(ids[0])} held-out rows, {labels[1]} on {len(ids[1])}, with {len(ids[0] & ids[1])} in "
                    f"both{only_in(labels, ids)}",
                    where="sparring compare",
                    remedy="give their recipes the same data section, and the same seed where data.max_examples or the built-in tasks "
                    "depend on it",
                )

    def require_same_samples(self, other: RunPlayer, metric: str) -> None:
        """Raises UserError if both ran this benchmark, but with different samples, prompts or settings."""
        for mine, theirs in zip(self.arms, other.arms, strict=True):
            if mine.why_not(theirs, metric) is None:
                require_same_samples(mine.benchmarks[metric], theirs.benchmarks[metric], (mine.label, theirs.label))


class Game:
    """One run directory; `label` is its name in tables and messages."""

    def __init__(self, root: Path, label: str, unfinished: bool = False) -> None:
        """unfinished: accept a game that is not finished, with its results so far; otherwise it is refused."""
        self.root, self.label, self.run = root, label, RunDir(root)
        self.recipe = recipe_of_run(root)
        self.graded = self.run, self.recipe, label  # from which `other_grading` reads how replies were graded
        unplayed: dict[str, Any] = {"iterations": [], "controls": [], "best": None, "stop_reason": None}
        self.summary = read_summary(root) or unplayed
        process = holder(root)  # a finished game may be resumed with more iterations or controls
        self.is_unfinished = self.summary["stop_reason"] is None or bool(process and process.alive)
        if self.is_unfinished and not unfinished:
            raise UserError(
                f"this run is not finished: {counted(len(self.summary['iterations']), 'iteration')} scored",
                where=str(root),
                remedy="`sparring run` with its recipe finishes it; --unfinished compares its finished iterations",
            )
        if not self.run.finished(f"{START}/evaluate"):
            raise UserError("this run has no scores yet", where=str(root), remedy="run its recipe first")

    @cached_property
    def arms(self) -> list[Arm]:
        """Start, iterations and controls, in this order."""
        found = [self._arm(START, start_title("SFT" if self.recipe.sft else START), Cost())]
        for t in range(len(self.summary["iterations"])):
            found.append(self._arm(str(t), title_of_player(str(t)), iterations_cost(self.run, self.recipe, t + 1)))
        for control in self.summary["controls"]:
            before = 0 if control["from_iteration"] is None else control["from_iteration"] + 1
            spent = iterations_cost(self.run, self.recipe, before) + control_cost(self.run, self.recipe, control["stage"])
            found.append(self._arm(control["stage"], control["name"], spent))
        return found

    @cached_property
    def right_answers(self) -> Mapping[str, str | None]:
        """row id -> what the replies to a held-out row are compared with."""
        return right_answers(self.run, self.recipe)

    @property
    def best(self) -> str | None:
        """Number of the best iteration as text; None if there is none."""
        return str(self.summary["best"]["iteration"]) if self.summary["best"] else None

    @cached_property
    def weights(self) -> float | None:
        """Weights in the matrices that a token of the base model passes, head included, as in `sparring plan`; None if unknown."""
        from sparring.planning.shape import find_shape

        folders = [folder for folder in (self.root / SFT / "model", self.root / "base" / "model") if folder.is_dir()]
        try:
            shape = find_shape(ModelSection(path=str(folders[0])) if folders else self.recipe.model)
        except UserError:
            return None
        return shape.passed + shape.head

    def _arm(self, player: str, title: str, since_start: Cost) -> Arm:
        stage = self.run.verified(f"{owner_of(player)}/evaluate")
        if ITEMS not in stage.outputs:
            raise UserError(
                "this run was scored by a version of sparring that stored no values per row",
                where=str(stage.path),
                remedy="`sparring run` with its recipe scores its replies again, without sampling or training",
            )
        table = sorted(read_rows(stage.path / ITEMS), key=lambda row: row["row_id"])
        names = [name for name in table[0] if name != "row_id"]
        columns = {name: np.array([row[name] for row in table], dtype=float) for name in names}
        rows = tuple(row["row_id"] for row in table)
        return Arm(self, player, title, rows, columns, cost_of(self.run, self.recipe, [SFT]) + since_start)


class Run:
    """A run directory with its one game, or with one game for each of a recipe's `seeds`."""

    def __init__(self, root: Path, label: str, seeds: Sequence[int] | None, unfinished: bool = False) -> None:
        self.root, self.label, self.seeds = root, label, seeds
        parts = [""] if seeds is None else [f"/{seed_folder(seed)}" for seed in seeds]
        self.games = [Game(Path(f"{root}{part}"), f"{label}{part}", unfinished) for part in parts]

    @property
    def is_unfinished(self) -> bool:
        """Whether any game is unfinished."""
        return any(game.is_unfinished for game in self.games)

    @property
    def controls(self) -> list[str]:
        """Folders of the controls of the first game that have scores."""
        return [control["stage"] for control in self.games[0].summary["controls"]]

    @property
    def best(self) -> str | None:
        """Number of the best iteration as text; None if there is none, and for several seeds, which may differ."""
        return self.games[0].best if self.seeds is None else None

    @cached_property
    def players(self) -> list[RunPlayer]:
        """The players that every game has: games may end after different iterations."""
        names = [{arm.player: arm for arm in game.arms} for game in self.games]
        shared = [player for player in names[0] if all(player in found for found in names)]
        return [RunPlayer(self, player, names[0][player].title, tuple(found[player] for found in names)) for player in shared]

    @property
    def left_out(self) -> list[str]:
        """Players of some seeds only."""
        names = dict.fromkeys(arm.player for game in self.games for arm in game.arms)
        return [name for name in names if name not in {player.name for player in self.players}]

    def find(self, name: str) -> RunPlayer:
        """A player by its name; "best" is that of every seed."""
        if name == "best" and self.seeds is not None:
            arms = tuple(_find({arm.player: arm for arm in game.arms}, name, game) for game in self.games)
            return RunPlayer(self, "best", "best iteration", arms)
        return _find({player.name: player for player in self.players}, name, self)


def _find(players: Mapping[str, P], name: str, run: Game | Run) -> P:
    """The player of that name, or the best iteration. Raises UserError for an unknown player."""
    wanted = player_name(run.best or name if name == "best" else name)
    if wanted not in players:
        raise UserError(f"{run.label} has no player {name!r}", where="--against", remedy=f"it has {', '.join(players)}")
    return players[wanted]
