"""The notes of a comparison: what is unfinished, left out, or was computed with other settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sparring.comparison.arms import Run, RunPlayer, is_benchmark
from sparring.comparison.pairing import is_graded, other_prompts


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
