"""Which players and metrics are compared, with which reference, the numbers of each, the verdict, and notes: what is unfinished, left out,
or was computed with other settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparring.comparison.arms import METRICS, OF_DUELS, Run, RunPlayer, is_benchmark
from sparring.comparison.pairing import how_asked, is_graded, other_prompts
from sparring.comparison.statistics import Paired, holm
from sparring.config import recipe_of_run
from sparring.cost import Cost
from sparring.errors import UserError, suggestion
from sparring.evaluation.metrics import Score
from sparring.report.outcome import metric_words
from sparring.stage_names import START, seed_folder

NAMED = 3  # players after the first that the sentence names; of the others it gives the number
SIGNIFICANCE = 0.05  # a difference with a higher p (Holm) is reported as not significant


def verdict(found: RunComparison) -> Iterator[str]:
    """One sentence for each metric that has a better direction and any values."""
    for metric in found.metrics:
        if metric.higher_is_better is not None and (line := _of_metric(found, metric)) is not None:
            yield line


def _of_metric(found: RunComparison, metric: Metric) -> str | None:
    sign = 1 if metric.higher_is_better else -1
    known = [(row, score["value"]) for row in found.rows if (score := row.cells[metric.name].score) is not None]
    if not known:
        return None
    ranked = sorted(known, key=lambda one: -sign * one[1])
    values = {value for _, value in known}
    if len(values) == 1 < len(known):
        return f"By {metric_words(metric.name)} all are equal, at {values.pop():.4f}."
    first, highest = ranked[0]
    head = f"By {metric_words(metric.name)} {first.name} is first with {highest:.4f}"
    behind = ", ".join(f"{row.name} {value:.4f}" for row, value in ranked[1 : 1 + NAMED])
    behind += f" and {len(ranked) - 1 - NAMED} more" if len(ranked) > 1 + NAMED else ""
    return f"{head}{_against(found, first, metric)}{f'; then {behind}' if behind else ''}."


def _against(found: RunComparison, row: ComparisonRow, metric: Metric) -> str:
    """The player's difference from the reference; empty if there is none."""
    cell = row.cells[metric.name]
    if f"{row.run}:{row.player}" == found.against or cell.paired is None:
        return ""
    if cell.p_holm is None:
        return f", {cell.paired.difference:+.4f} from {found.reference}"
    doubt = "significant" if cell.p_holm < SIGNIFICANCE else "not significant"
    return f", {cell.paired.difference:+.4f} from {found.reference}, {doubt} (p {cell.p_holm:.2g} after Holm)"


# the metrics that are compared by default, as far as they were measured
DEFAULT_METRICS = ("exact_match", "exact_match_greedy", "nll_per_token")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Metric:
    """What is compared. Differences are paired over `count` of `unit`: "held-out rows", "samples" of a benchmark, or "seeds".

    asked: of a benchmark, its task's version, shots, whether a chat template was applied, and the harness's version.
    """

    name: str
    higher_is_better: bool | None
    unit: str
    count: int
    asked: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ComparisonCell:
    """One metric of one player. `paired` is None for the reference and where the two cannot be compared; `p_holm` is adjusted over all."""

    score: Score | None
    paired: Paired | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class ComparisonRow:
    """One player. `is_best` by its run's metric; `is_unfinished` where its run has not ended."""

    run: str
    player: str
    title: str
    is_control: bool
    is_best: bool
    is_unfinished: bool
    cost: Cost
    flops: float | None
    cells: dict[str, ComparisonCell]

    @property
    def name(self) -> str:
        """Run and player, as tables show them."""
        return f"{self.run}: {self.title}"


@dataclass(frozen=True)
class RunComparison:
    """`unit` is what differences on held-out rows are paired over: those "rows", or "seeds". `count` of them."""

    against: str
    unit: str
    count: int
    metrics: tuple[Metric, ...]
    rows: tuple[ComparisonRow, ...]
    notes: tuple[str, ...]
    confidence: float
    seed: int

    @property
    def reference(self) -> str:
        """The player that all are compared with, by its name in the tables."""
        return next((row.name for row in self.rows if f"{row.run}:{row.player}" == self.against), self.against)

    @property
    def tests(self) -> int:
        """How many p-values there are: the family of Holm's correction."""
        return sum(cell.p_holm is not None for row in self.rows for cell in row.cells.values())


def compare(
    folders: Sequence[Path], against: str | None = None, metrics: Sequence[str] = (), unfinished: bool = False, seed: int = 0
) -> RunComparison:
    """All players of the runs in `folders`, each minus the player `against` ("RUN:best", "RUN:start", "RUN:N"; the first run's start).

    metrics: which to compare; DEFAULT_METRICS and benchmarks, as far as the reference has them, when empty. seed: of the resampling.
    Raises UserError for runs with other held-out rows, benchmarks with other samples or settings, unfinished runs (unless `unfinished`),
    unknown players and metrics.
    """
    runs = _runs(folders, unfinished)
    _require_distinct(runs)
    reference = _reference(runs, against)
    arms = [player for run in runs for player in run.players]
    if reference.label not in [arm.label for arm in arms]:
        arms.insert(0, reference)  # "best" of several seeds is not one of their players
    for arm in arms:
        reference.require_same_rows(arm)
    chosen = _metrics(metrics, arms, reference)
    rows = _adjusted([_row(arm, reference, chosen, seed) for arm in arms])
    unit, count = ("rows", len(reference.arms[0].rows)) if reference.run.seeds is None else ("seeds", len(reference.arms))
    found = tuple(notes(runs, arms, reference, chosen, everything=not metrics))
    shown = tuple(_metric(name, reference) for name in chosen)
    return RunComparison(reference.label, unit, count, shown, tuple(rows), found, CONFIDENCE, seed)


def _runs(folders: Sequence[Path], unfinished: bool) -> list[Run]:
    """One run per folder if all have the same seeds, or none; otherwise one per game, so that seeds are compared over rows."""
    labels = _labels(folders)
    seeds = [recipe_of_run(folder).seeds for folder in folders]
    if all(one == seeds[0] for one in seeds):
        return [Run(folder, label, seeds[0], unfinished) for folder, label in zip(folders, labels, strict=True)]
    found = []
    for folder, label, own in zip(folders, labels, seeds, strict=True):
        parts = [""] if own is None else list(map(seed_folder, own))
        found += [Run(folder / part, f"{label}/{part}".rstrip("/"), None, unfinished) for part in parts]
    return found


def _labels(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as few as distinguish it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    labels = []
    for place, own in enumerate(parts):
        others = [*parts[:place], *parts[place + 1 :]]
        tails = (last for last in range(1, len(own)) if all(other[-last:] != own[-last:] for other in others))
        labels.append(Path(*own[-next(tails, len(own)) :]).as_posix())
    return labels


def _require_distinct(runs: Sequence[Run]) -> None:
    seen: set[Path] = set()
    for run in runs:
        if run.root.resolve() in seen:
            raise UserError("this run is given twice", where=run.label, remedy="give every run once")
        seen.add(run.root.resolve())


def _reference(runs: Sequence[Run], against: str | None) -> RunPlayer:
    if against is None:
        return runs[0].find(START)
    label, _, player = against.rpartition(":")
    if not label and len(runs) == 1:
        return runs[0].find(player)
    found = next((run for run in runs if label == run.label or Path(label).resolve() == run.root.resolve()), None)
    if found is None:
        names = ", ".join(run.label for run in runs)
        raise UserError(
            f"{against!r} is not a player of the compared runs: {names}",
            where="--against",
            remedy=f"name a run and its player, such as {runs[0].label}:best",
        )
    return found.find(player)


def _metrics(asked: Sequence[str], arms: Sequence[RunPlayer], reference: RunPlayer) -> tuple[str, ...]:
    for name in asked:
        _require_metric(name, arms, reference)
    chosen = tuple(dict.fromkeys(asked)) or (
        *(name for name in DEFAULT_METRICS if reference.score(name) is not None),
        *(name for name, metric in reference.benchmarks.items() if metric.is_main and _others_with(name, arms, reference)),
    )
    for name in filter(is_benchmark, chosen):
        for arm in arms:
            reference.require_same_samples(arm, name)
    return chosen


def _require_metric(name: str, arms: Sequence[RunPlayer], reference: RunPlayer) -> None:
    """Raises UserError for an unknown metric, and for one that any player lacks or that is not comparable with the reference's.

    A benchmark need not have been run on all players.
    """
    if name not in METRICS:
        further = [found for arm in arms for found in (*arm.sampled, *arm.benchmarks)]
        if name not in further:
            raise _unknown_metric(name, further)
    if is_benchmark(name) and _others_with(name, arms, reference):
        return
    for arm in arms:
        if (why := arm.why_not(reference, name)) is not None:
            raise UserError(f"{name} {why}", where="--metric", remedy="leave it out, or compare runs that share it")


def _others_with(name: str, arms: Sequence[RunPlayer], reference: RunPlayer) -> list[RunPlayer]:
    """The players that can be compared with the reference in a benchmark."""
    return [arm for arm in arms if arm.label != reference.label and arm.why_not(reference, name) is None]


def _metric(name: str, reference: RunPlayer) -> Metric:
    asked, values = how_asked(reference.benchmarks[name]) if is_benchmark(name) else None, reference.values(name)
    assert values is not None
    unit = "seeds" if reference.run.seeds is not None else "samples" if asked else "held-out rows"
    return Metric(name, reference.higher_is_better(name), unit, len(values.top_N), asked)


def _unknown_metric(name: str, further: Sequence[str]) -> UserError:
    if name in OF_DUELS:
        what = f"{name} is measured against each player's own opponent, so it cannot be compared between players"
        return UserError(what, where="--metric", remedy=f"compare {', '.join(DEFAULT_METRICS)}")
    there = list(dict.fromkeys([*METRICS, *further]))
    what = f"no player has results of a benchmark with {name!r}" if is_benchmark(name) else f"no metric {name!r} has a value for every row"
    return UserError(what, where="--metric", remedy=suggestion(name, there, f"there are {', '.join(there)}"))


def _row(arm: RunPlayer, reference: RunPlayer, metrics: Sequence[str], seed: int) -> ComparisonRow:
    is_reference = arm.label == reference.label
    cells = {
        name: ComparisonCell(arm.score(name), None if is_reference else arm.paired(reference, name, CONFIDENCE, seed)) for name in metrics
    }
    run, is_control = arm.run, arm.name in arm.run.controls
    return ComparisonRow(run.label, arm.name, arm.title, is_control, arm.name == run.best, run.is_unfinished, arm.cost, arm.flops, cells)


def _adjusted(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """The rows with Holm's correction over all tests of the comparison, of all metrics and players."""
    paired = [(n, name, cell.paired) for n, row in enumerate(rows) for name, cell in row.cells.items() if cell.paired]
    tests = [(n, name, one.p) for n, name, one in paired if one.p is not None]
    found = [replace(row, cells=dict(row.cells)) for row in rows]
    for (n, name, _), p in zip(tests, holm([p for *_, p in tests]), strict=True):
        found[n].cells[name] = replace(found[n].cells[name], p_holm=p)
    return found


def notes(runs: Sequence[Run], arms: Sequence[RunPlayer], reference: RunPlayer, metrics: Sequence[str], everything: bool) -> list[str]:
    """One line per note. everything: no metric was chosen, so benchmarks that cannot be compared are noted too."""
    held_out: list[str] = [name for name in metrics if not is_benchmark(name)]
    benchmarks: list[str] = [name for name in metrics if is_benchmark(name)]
    found = [*_of_runs(runs), *_of_players(arms, reference, held_out), *_of_sampling(runs, held_out)]
    if everything or benchmarks:
        found += [*_of_missing(arms, reference, benchmarks, everything), *_of_asking(arms, reference, benchmarks), *_of_stale(arms)]
    return list(dict.fromkeys(found))


def _of_runs(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        if run.is_unfinished:
            yield f"{run.label} is not finished: its results so far are shown"
        if run.left_out:
            yield f"{run.label}: not every seed has {', '.join(run.left_out)}; left out"


def _of_players(arms: Sequence[RunPlayer], reference: RunPlayer, held_out: Sequence[str]) -> Iterator[str]:
    for arm in arms:
        yield from (f"{name} {why}" for name in held_out if (why := arm.why_not(reference, name)))
        if arm.flops is None:
            yield f"{arm.run.label}: no FLOPs, because the sizes of its model cannot be found"


def _of_sampling(runs: Sequence[Run], held_out: Sequence[str]) -> Iterator[str]:
    games = [game for run in runs for game in run.games]
    samples = {game.label: game.recipe.evaluate.samples for game in games}
    if len(set(samples.values())) > 1 and any(map(is_graded, held_out)):
        counts = ", ".join(f"{count} in {name}" for name, count in samples.items())
        yield f"the runs differ in evaluate.samples, the replies per prompt, so their standard errors differ too: {counts}"
    for key in ("temperature", "top_p", "max_new_tokens"):
        values = {game.label: getattr(game.recipe.sampling, key) for game in games}
        if len(set(values.values())) > 1:
            yield f"replies were sampled at another sampling.{key}: " + ", ".join(f"{value:g} in {name}" for name, value in values.items())


def _of_missing(arms: Sequence[RunPlayer], reference: RunPlayer, shown: Sequence[str], everything: bool) -> Iterator[str]:
    """Which players lack which benchmarks; benchmarks with the same reason share a line."""
    main = dict.fromkeys(name for arm in arms for name, metric in arm.benchmarks.items() if metric.is_main)
    gaps: dict[tuple[bool, str], list[str]] = {}
    for name in main if everything else shown:
        if why := _gap(name, arms, reference):
            gaps.setdefault((name in shown, why), []).append(name)
    for (is_shown, why), names in gaps.items():
        yield f"{'' if is_shown else 'left out: '}{', '.join(names)}: {why}"


def _gap(name: str, arms: Sequence[RunPlayer], reference: RunPlayer) -> str | None:
    having = [arm for arm in arms if name in arm.benchmarks]
    if name in reference.benchmarks and (why := next(filter(None, (arm.why_not(reference, name) for arm in having)), None)):
        return why
    runs = {arm.run.label for arm in having}
    missing = [arm for arm in arms if name not in arm.benchmarks]
    who = dict.fromkeys(arm.label if arm.run.label in runs else arm.run.label for arm in missing)
    return f"not run on {', '.join(who)}" if who else None


def _of_asking(arms: Sequence[RunPlayer], reference: RunPlayer, shown: Sequence[str]) -> Iterator[str]:
    for name in shown:
        own = reference.benchmarks[name]
        for arm in (arm for arm in arms if name in arm.benchmarks):
            found = arm.benchmarks[name]
            if found.harness != own.harness:
                yield f"{name} was run by lm-evaluation-harness {own.harness} in {reference.label}, {found.harness} in {arm.label}"
            if other_prompts(own, found):
                yield f"{name}: {reference.run.label} and {arm.run.label} have different chat templates, so their prompts differ"


def _of_stale(arms: Sequence[RunPlayer]) -> Iterator[str]:
    for arm in arms:
        for folder in arm.stale_benchmarks:
            yield f"{folder} is of an earlier player; left out until `sparring evaluate` has run on the current one"
