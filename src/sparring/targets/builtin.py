"""The targets that come with the package, and their rule in words for the report and for the cards of published models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sparring.config import Recipe, TargetSection
from sparring.targets.select import Candidate, Candidates, Rules, Selection, decide


def human(candidates: Candidates, rules: Rules) -> Selection:
    """SPIN's target (arXiv 2401.01335): the human reply always wins. Every reply of the opponent loses, duplicates included: SPIN's
    expectation is over the opponent's samples.

    `rules` has no effect. A prompt without a human reply has no winner.
    """
    if candidates.human is None:
        return Selection((), candidates.replies, "unjudged")
    is_decided = any(reply.token_ids != candidates.human.token_ids for reply in candidates.replies)
    return Selection((candidates.human,), candidates.replies, "human_wins" if is_decided else "all_pass")


def verified(candidates: Candidates, rules: Rules) -> Selection:
    """Rejection sampling (arXiv 2308.01825) as a duel: complete replies that a checker passes may win; judged ones that failed, or passed
    but were cut at the limit, lose. A reply without a grade neither wins nor loses."""
    judged = [reply for reply in candidates.replies if reply.passed is not None]
    passed = [reply for reply in judged if reply.has_passed]
    failed = [reply for reply in judged if not reply.has_passed]
    return decide(candidates, rules, passed, failed, otherwise="none_pass" if judged else "unjudged")


def majority(candidates: Candidates, rules: Rules) -> Selection:
    """The answer that most replies give wins (self-consistency as a preference, arXiv 2411.04109). Complete replies with the winning
    answer may win; the others lose, those without an answer too.

    Each complete reply with an answer has one vote; equal answers vote together. The winning answer needs `min_votes` of all replies and
    more votes than any other: a tie gives no preference. With `human: mix` or `only` the answer of the human reply, where it can be read,
    is the winning one without a vote, and `weigh_votes` has no effect. If the human reply wins because there is no majority, replies with
    its answer do not lose.
    """
    votes = Counter(reply.answer for reply in candidates.replies if reply.has_vote)
    known = None if candidates.human is None else candidates.human.answer
    if known is not None and rules.human in ("mix", "only"):
        return _won_by(known, candidates, rules, weight=1.0)
    if not votes:
        return decide(candidates, rules, (), (), otherwise="unjudged")
    (first, most), (_, runner_up) = [*votes.most_common(2), (None, 0)][:2]
    # 11 / 20 is the float 0.55, but 0.55 * 20 is above 11
    if most == runner_up or most / len(candidates.replies) < rules.min_votes:
        lost = _without_answer(None if rules.human == "never" else known, candidates)
        return decide(candidates, rules, (), lost, otherwise="ties" if most == runner_up else "few_votes")
    weight = (most - runner_up) / len(candidates.replies) if rules.weigh_votes else 1.0
    return _won_by(first, candidates, rules, weight)


def vote_share(replies: Sequence[Candidate]) -> float:
    """Votes for the leading answer, as a share of all replies; 0 if no reply has a vote."""
    votes = Counter(reply.answer for reply in replies if reply.has_vote)
    return max(votes.values(), default=0) / len(replies)


def _won_by(answer: str | None, candidates: Candidates, rules: Rules, weight: float) -> Selection:
    won = [reply for reply in candidates.replies if reply.has_vote and reply.answer == answer]
    return decide(candidates, rules, won, _without_answer(answer, candidates), otherwise="none_pass", weight=weight)


def _without_answer(answer: str | None, candidates: Candidates) -> list[Candidate]:
    """The replies that have no vote for this answer; all of them for None."""
    return [reply for reply in candidates.replies if not (reply.has_vote and reply.answer == answer)]


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
    weighed = "; a prompt that is won by votes is weighed by their margin" if target.counts_votes and target.weigh_votes else ""
    if not recipe.objective.kind.uses_margins:
        return f"The player is trained on the winners only, by their likelihood (objective.loss: {recipe.objective.name}){weighed}."
    anchored = any(recipe.objective.uses_likelihood(t) for t in range(recipe.iterations))
    kept = ", and to keep the winners likely (objective.nll_weight)" if anchored else ""
    sentence = f"The player learns to distinguish winners from losers in pairs of nearest length (objective.loss: {recipe.objective.name})"
    return f"{sentence}{kept}{weighed}."
