"""Which players and metrics are compared, against whom, and the numbers of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparring.comparison.arms import METRICS, OF_DUELS, START, Arm, Game, SeedArm, Seeds
from sparring.comparison.statistics import Paired, holm
from sparring.config import recipe_of_run
from sparring.cost import Cost
from sparring.errors import UserError, nearest
from sparring.evaluation.metrics import Score

# what is compared where nobody asks for something else, as far as it was measured
DEFAULT_METRICS = ("exact_match", "exact_match_greedy", "nll_per_token")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Cell:
    """One metric of one player. `paired` is None for the reference and where the two cannot be compared; `p_holm` is adjusted over all."""

    score: Score | None
    paired: Paired | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Row:
    """One player. `is_best` by its run's metric; `is_going` where its run has not ended."""

    run: str
    player: str
    title: str
    is_control: bool
    is_best: bool
    is_going: bool
    cost: Cost
    flops: float | None
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Comparison:
    """`unit` is what differences are paired over: "rows" held out, or "seeds". `count` of them."""

    against: str
    unit: str
    count: int
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    confidence: float
    seed: int


def compare(
    folders: Sequence[Path], against: str | None = None, metrics: Sequence[str] = (), unfinished: bool = False, seed: int = 0
) -> Comparison:
    """All players of the runs in `folders`, each less the player `against` ("RUN:best", "RUN:start", "RUN:N"; the first run's start).

    metrics: which to compare; DEFAULT_METRICS as far as they were measured when empty. seed: of the resampling.
    Raises UserError for runs with other held-out rows, runs still going (unless `unfinished`), unknown players and metrics.
    """
    runs = _runs(folders, unfinished)
    reference = _reference(runs, against)
    arms = [arm for run in runs for arm in run.arms]
    if reference.label not in [arm.label for arm in arms]:
        arms.insert(0, reference)  # the best of every seed
    for arm in arms:
        reference.require_same_rows(arm)  # type: ignore[arg-type]
    chosen = _metrics(metrics, arms, reference)
    rows = _adjusted([_row(arm, reference, chosen, seed) for arm in arms])
    unit, count = ("seeds", len(reference.arms)) if isinstance(reference, SeedArm) else ("rows", len(reference.rows))
    notes = tuple(dict.fromkeys(_notes(runs, arms, reference, chosen)))
    return Comparison(reference.label, unit, count, chosen, tuple(rows), notes, CONFIDENCE, seed)


def _runs(folders: Sequence[Path], unfinished: bool) -> list[Game] | list[Seeds]:
    """Games, or folders of several seeds where all are such and have the same ones; the games within them else."""
    labels = [str(folder) for folder in folders]
    seeds = [recipe_of_run(folder).seeds for folder in folders]
    if seeds[0] is not None and all(one == seeds[0] for one in seeds):
        groups = [Seeds(folder, label, seeds[0], unfinished) for folder, label in zip(folders, labels, strict=True)]
        _require_distinct(groups)
        return groups
    found: list[Game] = []
    for folder, label, own in zip(folders, labels, seeds, strict=True):
        found += [Game(folder, label, unfinished)] if own is None else Seeds(folder, label, own, unfinished).games
    _require_distinct(found)
    return found


def _require_distinct(runs: Sequence[Game] | Sequence[Seeds]) -> None:
    seen: set[Path] = set()
    for run in runs:
        if run.root.resolve() in seen:
            raise UserError("this run is named twice", where=run.label, remedy="name every run once")
        seen.add(run.root.resolve())


def _reference(runs: Sequence[Game] | Sequence[Seeds], against: str | None) -> Arm | SeedArm:
    if against is None:
        return runs[0].find(START)
    label, _, player = against.rpartition(":")
    if not label and len(runs) == 1:
        return runs[0].find(player)
    found = next((run for run in runs if run.label == label or str(Path(label)) == run.label), None)
    if found is None:
        names = ", ".join(run.label for run in runs)
        raise UserError(
            f"{against!r} is no player of the runs that are compared: {names}",
            where="--against",
            remedy=f"name a run and its player, such as {runs[0].label}:best",
        )
    return found.find(player)


def _metrics(asked: Sequence[str], arms: Sequence[Arm | SeedArm], reference: Arm | SeedArm) -> tuple[str, ...]:
    for name in asked:
        if name not in METRICS:
            raise _unknown_metric(name)
        for arm in arms:
            if (why := arm.why_not(reference, name)) is not None:  # type: ignore[arg-type]
                raise UserError(f"{name} {why}", where="--metric", remedy="leave it out, or compare runs that share it")
    chosen = asked or [name for name in DEFAULT_METRICS if reference.score(name) is not None]
    return tuple(dict.fromkeys(chosen))


def _unknown_metric(name: str) -> UserError:
    if name in OF_DUELS:
        what = f"{name} is measured against each player's own opponent, so that no two players' are comparable"
        return UserError(what, where="--metric", remedy=f"compare {', '.join(DEFAULT_METRICS)}")
    guess = nearest(name, METRICS)
    known = f"did you mean {guess}?" if guess else f"there are {', '.join(METRICS)}"
    return UserError(f"no metric {name!r} has a value for every row", where="--metric", remedy=known)


def _row(arm: Arm | SeedArm, reference: Arm | SeedArm, metrics: Sequence[str], seed: int) -> Row:
    is_reference = arm.label == reference.label
    cells = {
        name: Cell(arm.score(name), None if is_reference else arm.paired(reference, name, CONFIDENCE, seed))  # type: ignore[arg-type]
        for name in metrics
    }
    best = isinstance(arm, Arm) and arm.player == arm.run.best
    is_control = arm.player in arm.run.controls
    return Row(arm.run.label, arm.player, arm.title, is_control, best, arm.run.is_going, arm.cost, arm.flops, cells)


def _adjusted(rows: Sequence[Row]) -> list[Row]:
    """With Holm's correction over all tests of the comparison, metrics and players alike."""
    tests = [(n, name, cell.paired.p) for n, row in enumerate(rows) for name, cell in row.cells.items() if cell.paired]
    tests = [(n, name, p) for n, name, p in tests if p is not None]
    found = [replace(row, cells=dict(row.cells)) for row in rows]
    for (n, name, _), p in zip(tests, holm([p for *_, p in tests]), strict=True):
        found[n].cells[name] = replace(found[n].cells[name], p_holm=p)
    return found


def _notes(
    runs: Sequence[Game] | Sequence[Seeds], arms: Sequence[Arm | SeedArm], reference: Arm | SeedArm, metrics: Sequence[str]
) -> Iterator[str]:
    """What a reader of the table must know."""
    for run in runs:
        if run.is_going:
            yield f"{run.label} is still going: what it has so far is shown"
        if isinstance(run, Seeds) and run.left_out:
            yield f"{run.label}: not every seed has {', '.join(run.left_out)}; left out"
    for arm in arms:
        yield from (f"{name} {why}" for name in metrics if (why := arm.why_not(reference, name)))  # type: ignore[arg-type]
        if arm.flops is None:
            yield f"{arm.run.label}: no FLOPs, because the sizes of its model cannot be found"
    games = [game for run in runs for game in (run.games if isinstance(run, Seeds) else [run])]
    for key in ("temperature", "top_p", "max_new_tokens"):
        values = {game.label: getattr(game.recipe.sampling, key) for game in games}
        if len(set(values.values())) > 1:
            yield f"replies were drawn under another sampling.{key}: " + ", ".join(f"{value:g} in {name}" for name, value in values.items())
