"""The table of targets, the rules that decide which replies win; the option `target.kind` and sparring.targets read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TargetSpec:
    """One target. Grades decide the winners of all but `human`."""

    name: str
    function: str  # `module:function` below sparring.targets, called as function(candidates, rules)
    what: str  # which replies win, for the description of `target.kind`
    votes: bool = False  # the most frequent answer wins, so that no right answer needs to be known


HUMAN_TARGET = "human"
TARGET_SPECS = {
    spec.name: spec
    for spec in (
        TargetSpec(HUMAN_TARGET, "builtin:human", "the human reply, always (SPIN, whose ceiling is the data)"),
        TargetSpec("verified", "builtin:verified", "replies of the opponent that the checker passes; those that fail lose"),
        TargetSpec(
            "majority",
            "builtin:majority",
            "replies with the most frequent answer of the replies to the prompt; the others lose, and no answer needs to be known",
            votes=True,
        ),
    )
}
