"""The targets that come with the package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

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
