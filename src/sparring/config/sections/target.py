"""The target: which replies win, and how they are graded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from sparring.config.option_types import Contradiction, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section, Text
from sparring.config.sections.data import DataSection
from sparring.config.sections.objective import ObjectiveSection
from sparring.config.targets import HUMAN_TARGET, TARGET_SPECS
from sparring.errors import suggestion
from sparring.own_code import OWN_CODE, is_own_code

if TYPE_CHECKING:  # a static checker cannot read the names from a table
    TargetName = str
else:
    TargetName = Literal[tuple(TARGET_SPECS)]
WHAT = " ".join(f"`{name}`: {spec.what}." for name, spec in TARGET_SPECS.items())
NOT_WITH_HUMAN = ("human", "max_winners", "max_losers", "losers", "near_duplicates")
BUILT_IN_CHECKERS = ("exact", "number", "choice", "math", "random")


class TargetSection(Section):
    """The rule that decides which replies win, and its checker."""

    kind: TargetName = Field(HUMAN_TARGET, description=f"Which replies win. {WHAT} See docs/targets.md.")
    checker: Text | None = None
    """How a reply is graded: `exact` (the answer that `evaluate.answer_pattern` finds, as text), `number`, `choice`, `math`
    (`sparring[math]`), a function of your own as `path/to/file.py:function` (TRL's reward signature), or `random`, a control. Held-out
    replies are graded by it too. See docs/checkers.md."""
    random_like: Text | None = None
    """For `checker: random`: the checker whose scores are shuffled among the replies, so that the pass rate stays the same; held-out
    replies are graded by this checker itself."""
    tolerance: NonNegativeFloat = 0.0
    """For `checker: number`: difference up to which two numbers are equal."""
    pass_score: float = 1.0
    """Score from which a reply passes; built-in checkers give 1 or 0."""
    human: Literal["fallback", "never", "mix", "only"] = "fallback"
    """The role of the human reply, if a prompt has one. `fallback`: it wins if no reply of the opponent does. `never`: it takes no part.
    `mix`: it is always among the winners, and its answer wins the vote; the data is then a ceiling again (docs/theory.md). `only`: it alone
    wins, against the replies that lose."""
    max_winners: PositiveInt = 4
    """Maximum number of distinct winners per prompt, so that easy prompts do not outweigh the others."""
    max_losers: PositiveInt = 4
    """Maximum number of distinct losers per prompt."""
    losers: Literal["all", "answered"] = "all"
    """Which replies can lose: `all` that do not win, or only complete ones in which an answer was found."""
    near_duplicates: Fraction | None = None
    """Share of equal words, in order, from which a winner counts as a repetition of another one and is left out. When null, only equal
    texts are left out; 0.9 also leaves out rewordings."""
    min_votes: Fraction = 0.5
    """For `majority`: share of all replies to a prompt that the winning answer needs; 0.5 is ScPO's first threshold."""
    weigh_votes: bool = True
    """For `majority`: multiply the loss of a prompt by its margin of votes, as ScPO does (arXiv 2411.04109), so that a close vote, which is
    more often wrong, counts less. The gain measured in docs/evidence.md is not significant."""
    timeout_seconds: PositiveFloat = 10.0
    """Longest time that a function of your own, or `math`, may take for a reply; after that the reply gets no score."""
    memory_mb: PositiveInt = 2048
    """Memory of a process in which a function of your own runs; one that imports torch may need more."""
    workers: PositiveInt = 1
    """Processes in which a function of your own, or `math`, runs."""

    @classmethod
    def faults(cls, option: str, value: Any, given: Mapping[str, Any]) -> Iterator[str]:
        kind, checker, like = (given.get(name) for name in ("kind", "checker", "random_like"))
        votes = kind is not None and TARGET_SPECS[kind].votes
        if option in ("checker", "random_like") and value is not None and not is_own_code(value):
            known = [one for one in BUILT_IN_CHECKERS if one != "random" or option == "checker"]
            if value not in known:
                yield f"not a checker; there are {', '.join(known)} and {OWN_CODE}" + suggestion(value, known, before="; ")
        if option == "checker" and kind not in (None, HUMAN_TARGET) and value is None:
            yield f"target.kind {kind} needs one: it says which replies are right, or which answers are equal"
        if option == "checker" and value == "random" and (kind == HUMAN_TARGET or votes):
            yield f"has no effect with target.kind {kind}; it is a control for verified"
        if option == "random_like" and checker == "random" and value is None:
            yield "checker random needs it: its pass rate is that of another checker, which also grades held-out replies"
        if option == "random_like" and "checker" in given and checker != "random" and value is not None:
            yield "has an effect only with checker random"
        if option == "tolerance" and value and "checker" in given and "number" not in (checker, like):
            yield "has an effect only with checker number"
        if option == "pass_score" and "checker" in given and not is_own_code(like or checker) and not 0 < value <= 1:
            yield "built-in checkers give 1 or 0, so it must be above 0 and at most 1: else all replies pass, or none"
        if option in NOT_WITH_HUMAN and kind == HUMAN_TARGET and cls.is_set(option, value):
            yield "has no effect with target.kind human"
        if option in ("min_votes", "weigh_votes") and kind is not None and not votes and cls.is_set(option, value):
            yield "has an effect only with target.kind majority"

    @property
    def uses_grades(self) -> bool:
        """Whether grades decide the winners: all targets but human."""
        return self.kind != HUMAN_TARGET

    @property
    def counts_votes(self) -> bool:
        """Whether the most frequent answer wins: a majority target."""
        return TARGET_SPECS[self.kind].votes

    @property
    def grading_checker(self) -> str | None:
        """The checker that grades held-out replies."""
        return self.random_like if self.checker == "random" else self.checker

    def unused(self, objective: ObjectiveSection) -> dict[str, str]:
        """Option that is set -> why it has no effect on the game; `sparring grade` and `sparring push` may still read it."""
        found: dict[str, str] = {}
        checker = self.grading_checker
        if checker != "math" and not is_own_code(checker):
            why = f"has no effect: {'there is no checker' if checker is None else f'the checker {checker} needs no process of its own'}"
            found |= dict.fromkeys(("timeout_seconds", "memory_mb", "workers"), why)
        if not objective.kind.uses_margins:
            why = f"has no effect on training: objective.loss {objective.loss} learns from winners alone"
            found |= dict.fromkeys(("max_losers", "losers"), why)
        return {option: why for option, why in found.items() if self.is_set(option, getattr(self, option))}

    def contradictions(self, others: Mapping[str, Any]) -> Iterator[Contradiction]:
        data, sampling, objective = (others.get(name) for name in ("data", "sampling", "objective"))
        if data is not None:
            yield from self._against_data(data)
        if sampling is not None and self.counts_votes and sampling.replies_per_prompt == 1:
            yield "kind", "one reply has no majority; set sampling.replies_per_prompt, 8 for example"
        if objective is not None:
            yield from self._against_objective(objective)

    def _against_data(self, data: DataSection) -> Iterator[Contradiction]:
        if data.prompts is not None and not self.uses_grades:
            yield "kind", "data.prompts have no human reply, which always wins here; choose verified or majority"
        needs_answers = self.uses_grades and not self.counts_votes and not is_own_code(self.grading_checker)
        if needs_answers and data.prompts is not None and data.prompts.answer is None:
            yield "kind", "nothing says which replies to data.prompts are right; set data.prompts.answer to a column, or choose majority"
        if self.human == "only" and data.prompts is not None:
            yield "human", "data.prompts have no human reply, which alone wins here; set fallback, never or mix"
        if data.too_long == "cut" and self.uses_grades:
            why = "data.too_long cut leaves human replies without an end, which could win here; set drop, or raise data.max_reply_tokens"
            yield "kind", why
        if data.checker_columns and not is_own_code(self.grading_checker):
            yield "checker", "data.checker_columns are for a function of your own"

    def _against_objective(self, objective: ObjectiveSection) -> Iterator[Contradiction]:
        loss, kind = objective.loss, objective.kind
        if not kind.uses_margins and self.human == "only":
            why = f"with objective.loss {loss} the human reply alone would be trained on, which is continued SFT"
            yield "human", f"{why}; choose fallback, never or mix"
        if not kind.uses_margins and not self.uses_grades:
            why = f"objective.loss {loss} on human replies is only continued SFT: use sft or controls, or choose verified or majority"
            yield "kind", why
        if kind.why_human_alone is not None and self.uses_grades:
            yield "kind", kind.why_human_alone
