"""When the scores of two players can be paired: benchmarks of the same items, and answers graded by the same rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.checkers.grades import ask
from sparring.checkers.make import held_out_checker
from sparring.config import Recipe
from sparring.data.prepare import read_examples
from sparring.errors import UserError
from sparring.evaluation.benchmarks import RESULTS, SampledMetric, sampled_metrics
from sparring.evaluation.metrics import SAMPLED
from sparring.own_code import is_own_code
from sparring.policy.player import adapter_hash
from sparring.rundir import DONE, PARTIAL, RunDir, StageRecord, differences
from sparring.stage_names import START, owner_of

BY_ANSWER = ("exact_match", "exact_match_greedy")
# statistics of k replies that depend on k; an unbiased estimate such as pass@1 does not
OF_ALL_REPLIES = ("vote_share", "distinct_answers")


def is_graded(metric: str) -> bool:
    """Whether the metric depends on a checker or on the answer pattern."""
    return metric in (*BY_ANSWER, *OF_ALL_REPLIES) or metric.startswith(SAMPLED)


def grading_of(run: RunDir, recipe: Recipe) -> dict[str, Any]:
    """How the held-out replies of a run were graded. A user's function is identified by its source text, not its path."""
    inputs = run.inputs_of(f"{START}/evaluate") or {}
    pattern = recipe.evaluate.answer_pattern
    exact = None if pattern is None else {"kind": "exact", "answer_pattern": pattern}  # of a run from before there were checkers
    checker = inputs.get("checker", exact) or {}
    return {
        "checker": {name: value for name, value in checker.items() if name not in ("path", "answer_pattern")},
        "answer_pattern": checker.get("answer_pattern"),
        "pass_score": inputs.get("pass_score", 1.0),
        "must_end": recipe.target.checker is not None,
    }


def right_answers(run: RunDir, recipe: Recipe) -> dict[str, str | None]:
    """row id -> what the replies to a held-out row are compared with. Only the answers that the rows give where the checker runs in
    processes of its own; empty for a run whose data is not there."""
    file, name = run.root / "data" / "held_out.parquet", recipe.target.grading_checker
    rows = read_examples(file) if file.exists() else []
    if name is not None and (is_own_code(name) or name == "math"):
        return {row.row_id: row.conversation.answer for row in rows if row.conversation.answer is not None}
    with held_out_checker(recipe) as checker:
        return {} if checker is None else {one.row_id: checker.expected(one) for one in ask(rows, {})}


def other_answers(metric: str, mine: Mapping[str, str | None], theirs: Mapping[str, str | None], where: str) -> str | None:
    """Why a score of right replies cannot be compared between runs with these right answers; None if it can. where: the two runs."""
    if not is_graded(metric) or metric in OF_ALL_REPLIES:
        return None
    differ = sum(mine[row_id] != theirs[row_id] for row_id in mine if row_id in theirs)
    return f"has other right answers {where}, to {differ} of the held-out rows (data.answer)" if differ else None


def why_missing(metric: str, recipe: Recipe) -> str:
    """Why a run has not measured a score of answers, to append to a sentence; "" if the reason is unknown."""
    has_answers = recipe.evaluate.answer_pattern is not None or recipe.target.checker is not None
    if is_graded(metric) and not has_answers:
        return " (it has no evaluate.answer_pattern and no target.checker)"
    if is_graded(metric) and metric not in BY_ANSWER:
        return f" (its evaluate.samples is {recipe.evaluate.samples})"
    return ""


def other_grading(metric: str, mine: tuple[RunDir, Recipe, str], theirs: tuple[RunDir, Recipe, str]) -> str | None:
    """Why a score of answers cannot be compared between two runs, each with its recipe and its label; None if it can."""
    if not is_graded(metric):
        return None
    (_, own, label), (_, other, elsewhere) = mine, theirs
    first, second = grading_of(*mine[:2]), grading_of(*theirs[:2])
    where = f"in {label} than in {elsewhere}"
    if first["checker"] != second["checker"] or first["pass_score"] != second["pass_score"]:
        names = f"{_named(own)} and {_named(other)}, by their contents and options"
        return f"is graded by another checker {where} ({names})"
    if first["answer_pattern"] != second["answer_pattern"]:
        return f"finds its answers by another evaluate.answer_pattern {where}"
    if first["must_end"] != second["must_end"]:
        strict, lax = (label, elsewhere) if first["must_end"] else (elsewhere, label)
        return f"passes replies that were cut at the limit in {lax} and not in {strict}, whose recipe has a target.checker"
    if metric in OF_ALL_REPLIES and own.evaluate.samples != other.evaluate.samples:
        return f"uses another evaluate.samples {where} ({own.evaluate.samples} and {other.evaluate.samples})"
    return None


def _named(recipe: Recipe) -> str:
    name = recipe.target.grading_checker
    return "exact" if name is None else name.rpartition("/")[2] if is_own_code(name) else name


EVALUATIONS = "evaluations"  # the folder in a run with the results of `sparring evaluate`
REMEDY = "evaluate all of them with the same settings (`sparring evaluate`), or choose the metrics with --metric"
SHOWN = 5


@dataclass(frozen=True)
class PlayedBenchmarks:
    """metrics: name, as in scores.json -> its samples; by_recipe: those of `evaluate.benchmarks`; stale: folders of an earlier player."""

    metrics: Mapping[str, SampledMetric]
    by_recipe: frozenset[str]
    stale: tuple[str, ...]


def played_benchmarks(run: RunDir, player: str) -> PlayedBenchmarks:
    """The benchmarks of a player of the run, by name.

    Those of the recipe take precedence; of several other results of one metric, the one with the most samples is used.
    """
    owner = owner_of(player)
    hashes = _hashes(run, owner)
    stale: list[str] = []
    own = [run.verified(f"{owner}/benchmarks")] if run.finished(f"{owner}/benchmarks") else []
    recipes = {one.name: one for record in own for one in _read(record, hashes, stale)}
    found: dict[str, SampledMetric] = {}
    for record in _evaluations(run, player):
        for one in _read(record, hashes, stale):
            if one.name not in found or len(one.values or ()) > len(found[one.name].values or ()):
                found[one.name] = one
    return PlayedBenchmarks({**found, **recipes}, frozenset(recipes), tuple(stale))


def why_not(mine: SampledMetric | None, label: str) -> str | None:
    """Why the metric cannot be paired for this player, or None if it can."""
    if mine is None:
        return f"was not run on {label}"
    return None if mine.values is not None else f"is not a mean over samples (in {label})"


def require_same_samples(mine: SampledMetric, theirs: SampledMetric, labels: tuple[str, str]) -> None:
    """Raises UserError if the samples, the prompts, the settings or the version of the task differ."""
    where = f"{mine.name} ({labels[0]} -> {labels[1]})"
    if changes := list(differences(dict(mine.asked), dict(theirs.asked))):
        raise UserError("the task was run with different settings\n  " + _shortened(changes, "\n  "), where=where, remedy=REMEDY)
    first, second = (set(one.values or ()) for one in (mine, theirs))
    if first != second:
        what = f"{len(first)} samples and {len(second)}, with {len(first & second)} in both{only_in(labels, (first, second))}"
        raise UserError(what, where=where, remedy=REMEDY)
    other = other_prompts(mine, theirs)
    if other and not mine.asked["chat_template"]:  # every run may have its own chat template
        raise UserError(f"{other} of {len(first)} samples had different prompts", where=where, remedy=REMEDY)


def other_prompts(mine: SampledMetric, theirs: SampledMetric) -> int:
    """The number of samples whose prompts differ."""
    return sum(theirs.prompts.get(sample, prompt) != prompt for sample, prompt in mine.prompts.items())


def only_in(labels: Sequence[str], ids: Sequence[set[str]]) -> str:
    """A line for each side that has ids which the other lacks."""
    lines = zip(labels, (ids[0] - ids[1], ids[1] - ids[0]), strict=True)
    return "".join(f"\n  only in {label} ({len(own)}): {_shortened(sorted(own), ', ')}" for label, own in lines if own)


def how_asked(metric: SampledMetric) -> dict[str, Any]:
    """The settings to show with its numbers: one value if all tasks of a group share it."""
    asked = metric.asked
    return {
        "task_version": _shared(asked["version"]),
        "shots": _shared(asked["shots"]),
        "chat_template": asked["chat_template"],
        "harness": metric.harness,
    }


def _hashes(run: RunDir, owner: str) -> set[str]:
    """The hashes of the player in the game and in `sparring evaluate`."""
    own, start = ((run.inputs_of(f"{name}/measure") or {}).get("model") for name in (owner, START))
    record = run.finished(f"{owner}/train")
    return {hash for hash in (own, record and start and adapter_hash(record, start)) if hash}


def _evaluations(run: RunDir, player: str) -> Iterator[StageRecord]:
    own = RunDir(run.root / EVALUATIONS)
    for done in sorted((own.root / player).glob(f"*/{DONE}")):
        # a judge's answers and grades are there too
        if (done.parent / RESULTS).is_dir() and done.parent.suffix != PARTIAL:
            yield own.verified(f"{player}/{done.parent.name}")


def _read(record: StageRecord, hashes: set[str], stale: list[str]) -> Iterator[SampledMetric]:
    if record.inputs.get("model") in hashes:
        yield from sampled_metrics(record.path)
    else:
        stale.append(str(record.path))


def _shared(values: Mapping[str, Any]) -> Any:
    distinct = list(dict.fromkeys(values.values()))
    return distinct[0] if len(distinct) == 1 else dict(values)


def _shortened(words: Sequence[str], between: str) -> str:
    return between.join([*words[:SHOWN], *(["..."] if len(words) > SHOWN else [])])
