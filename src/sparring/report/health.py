"""Symptoms of a run that did not fail but went wrong, with remedies, and differences of its recipe from the paper's experiment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from typing import Any, NamedTuple

from sparring.config import Recipe
from sparring.console import log
from sparring.report.tables import TableRow, entries_of, rows_of

PAPER: dict[str, Any] = {
    "model.path": "alignment-handbook/zephyr-7b-sft-full",
    "data.path": "UCLA-AGI/SPIN_iter0",
    "data.max_examples": 50_000,
    "data.max_prompt_tokens": 512,
    "data.max_reply_tokens": 512,
    "sft": None,
    "iterations": 4,
    "sampling.temperature": 1.0,
    "sampling.top_p": 1.0,
    "sampling.max_new_tokens": 256,
    "sampling.replies_per_prompt": 1,
    "target.kind": "human",
    "objective.loss": "logistic",
    "objective.beta": (0.1, 0.1, 0.1, 5.0),
    "objective.window": 2,
    "train.optimizer": "rmsprop",
    "train.lr": (5e-7, 5e-7, 1e-7, 1e-7),
    "train.schedule": "linear",
    "train.warmup": 0.1,
    "train.epochs": 2.0,
    "train.horizon_epochs": 6.0,
    "train.batch_size": 64,
    "train.weight_decay": 0.0,
    "train.precision": "bf16",
    "train.lora": None,
}


def differences_from_paper(recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """key -> (this recipe's value, the paper's), for the settings of PAPER that differ."""
    ours = {key: reduce(getattr, key.split("."), recipe) for key in PAPER}
    return {key: (ours[key], value) for key, value in PAPER.items() if _plain(ours[key]) != _plain(value)}


def _plain(value: Any) -> Any:
    """A single value in place of equal values for all iterations."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


MOST_CUT, MOST_BY_LENGTH, MOST_EQUAL = 0.2, 0.8, 0.9


class Sign(NamedTuple):
    """A symptom in one arm: what it is, its size, and the remedy."""

    what: str
    arm: str
    amount: str
    remedy: str


def signs(summary: Mapping[str, Any], recipe: Recipe) -> list[Sign]:
    """All symptoms, arm by arm in the order of the game."""
    found: list[Sign] = []
    before: TableRow | None = None
    for row, entry in zip(rows_of(summary), entries_of(summary).values(), strict=True):
        found += _of_replies(row, recipe)
        if failures := entry.get("held_out_failures"):
            found.append(Sign("Held-out replies could not be graded and count as wrong", row.model, f"{failures}", _FAILURES))
        if "iteration" in entry:
            assert before is not None
            found += _of_duels(row, entry.get("counts", {}), recipe)
            if recipe.target.human_alone_wins:  # else the player need not approach the human replies
                found += _of_human(row, before)
        before = row
    return found


def warnings(found: Iterable[Sign]) -> list[str]:
    """A line for every symptom, with the arms that have it."""
    lines: dict[tuple[str, str], list[str]] = {}
    for sign in found:
        lines.setdefault((sign.what, sign.remedy), []).append(f"{sign.arm} {sign.amount}".strip())
    return [f"{what}: {', '.join(arms)}. {remedy}." for (what, remedy), arms in lines.items()]


def log_new_symptoms(before: Mapping[str, Any] | None, summary: Mapping[str, Any], recipe: Recipe) -> None:
    """Log the symptoms that the last summary did not have, so that a long game can be fixed before its end."""
    known = set(signs(before, recipe)) if before else set()
    for line in warnings(sign for sign in signs(summary, recipe) if sign not in known):
        log.warning(f"warning: {line}")


def _of_replies(row: TableRow, recipe: Recipe) -> Iterator[Sign]:
    n, cut = row.scores["truncated"]["n"], row.scores["truncated"]["value"]
    if cut > MOST_CUT:
        most = recipe.sampling.max_new_tokens
        remedy = f"Raise sampling.max_new_tokens ({most}): the missing end alone distinguishes a cut reply from a human one"
        yield Sign("Replies are cut", row.model, f"{round(cut * n)} of {n}", remedy)
    auc = row.scores["length_auc"]["value"]
    if auc > MOST_BY_LENGTH:
        yield Sign("Length alone distinguishes the replies from human ones (AUC)", row.model, f"{auc:.2f}", _LENGTH)
    equal = row.scores["identical"]["value"]
    if equal > MOST_EQUAL:
        yield Sign("Nearly all replies equal the human ones", row.model, f"{equal:.0%}", _NOTHING_TO_LEARN)


def _of_duels(row: TableRow, counts: Mapping[str, int], recipe: Recipe) -> Iterator[Sign]:
    duels, batch = counts.get("duels"), recipe.train.batch_size
    if duels and duels < batch:
        remedy = "An epoch is then a single step: lower train.batch_size, or use more rows"
        what = "prompts to learn from" if recipe.target.uses_grades else "duels"
        yield Sign(f"Fewer {what} than a batch of {batch}", row.model, f"{duels}", remedy)
    prompts = counts.get("replies", 0) // recipe.sampling.replies_per_prompt  # duels of equal replies may be left out of "duels"
    if prompts and counts.get("duels_all_identical", 0) > MOST_EQUAL * prompts:
        yield Sign("Nearly all duels are of equal replies", row.model, f"{counts['duels_all_identical']} of {prompts}", _NOTHING_TO_LEARN)


def _of_human(row: TableRow, before: TableRow) -> Iterator[Sign]:
    old, new = before.scores["real_logp"]["value"], row.scores["real_logp"]["value"]
    if new < old:
        yield Sign("The held-out human replies lost log-prob", row.model, f"from {old:.2f} to {new:.2f} nats", REMEDY_LOST)


_FAILURES = "`sparring grade` shows the reasons: correct the function, or raise target.timeout_seconds or target.memory_mb"
_LENGTH = "The player learns the length first: raise sampling.max_new_tokens, fine-tune the start longer, or raise objective.nll_weight"
REMEDY_LOST = "Lower train.lr, raise objective.beta or objective.nll_weight, which keeps the human replies likely"
_NOTHING_TO_LEARN = "There is nothing to distinguish: sample at a higher sampling.temperature, or stop here"
