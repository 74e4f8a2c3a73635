"""The rule of a verified or majority target in words, for the report and for the cards of published models."""

from __future__ import annotations

from pathlib import Path

from sparring.config import Recipe, TargetSection

HUMAN_PART = {
    "fallback": "The human reply, if a prompt has one, wins if no reply of the model does.",
    "never": "Human replies take no part.",
    "mix": "The human reply, if a prompt has one, is always among the winners.",
    "only": "Only the human reply wins, against the replies that lose.",
}


def rule_of(recipe: Recipe) -> list[str]:
    """Sentences on which replies win and which lose, the human reply's part, limits and duplicates, and the loss.

    For verified and majority targets. Only the file name of a checker's path is shown.
    """
    target = recipe.target
    who = _by_votes(target) if target.counts_votes else _by_checker(target)
    return [who, _human(target), _left_out(target), _learned(recipe)]


def checker_name(target: TargetSection) -> str:
    """The checker of the held-out replies, and of the opponent's unless their scores are shuffled."""
    return Path(target.grading_checker or "").name


def _by_checker(target: TargetSection) -> str:
    checker = checker_name(target)
    least = "" if target.pass_score == 1.0 else f" with a score of {target.pass_score:g} or more"
    if target.checker == "random":
        return (
            f"A control: the winners are chosen at random, as many as the checker {checker} passes{least}; the other replies with a "
            "score lose."
        )
    return (
        f"A reply of the model wins if the checker {checker} passes it{least} and it ended its turn; the other replies with a score lose."
    )


def _by_votes(target: TargetSection) -> str:
    return (
        f"The answer that most replies of the model to a prompt give wins, if {target.min_votes:.0%} of them or more do and no other has "
        "as many votes; replies with another answer, or with none, lose. Answers are read and compared by the checker "
        f"{checker_name(target)}; a reply that was cut at the limit has no vote. A right answer need not be known."
    )


def _human(target: TargetSection) -> str:
    sentence = HUMAN_PART[target.human]
    known = " Its answer, if one is found, wins without a vote."
    return sentence + known if target.counts_votes and target.human in ("mix", "only") else sentence


def _left_out(target: TargetSection) -> str:
    near = "" if target.near_duplicates is None else f", nor a winner that shares {target.near_duplicates:.0%} of its words with another"
    answered = " Only complete replies with an answer can lose." if target.losers == "answered" else ""
    limits = f"A prompt has at most {target.max_winners} winners and {target.max_losers} losers, without duplicates{near}."
    return limits + answered


def _learned(recipe: Recipe) -> str:
    target = recipe.target
    weighed = "; each prompt is weighed by its margin of votes" if target.counts_votes and target.weigh_votes else ""
    if not recipe.objective.kind.uses_margins:
        return f"The player is trained on the winners only, by their likelihood (objective.loss: {recipe.objective.name}){weighed}."
    anchored = any(recipe.objective.uses_likelihood(t) for t in range(recipe.iterations))
    kept = ", and to keep the winners likely (objective.nll_weight)" if anchored else ""
    sentence = f"The player learns to distinguish winners from losers in pairs of nearest length (objective.loss: {recipe.objective.name})"
    return f"{sentence}{kept}{weighed}."
