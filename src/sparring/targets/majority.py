"""The majority target: the answer that most replies give wins (self-consistency as a preference, arXiv 2411.04109)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sparring.targets.select import Candidate, Candidates, Rules, Selection, decide


def majority(candidates: Candidates, rules: Rules) -> Selection:
    """Complete replies with the winning answer may win; the others lose, those without an answer too.

    Each complete reply with an answer has one vote; equal answers vote together. The winning answer needs `min_votes` of all replies and
    more votes than any other: a tie gives no preference. With `human: mix` or `only` the answer of the human reply, where it can be read,
    is the winning one without a vote, and `weigh_votes` has no effect. If the human reply wins because there is no majority, replies with
    its answer do not lose.
    """
    votes = Counter(reply.answer for reply in candidates.replies if reply.has_vote)
    known = candidates.human.answer if candidates.human is not None and rules.human in ("mix", "only") else None
    if known is not None:
        return _won_by(known, candidates, rules, weight=1.0)
    if not votes:
        return decide(candidates, rules, (), (), otherwise="unjudged")
    (first, most), *others = votes.most_common(2)
    if others and others[0][1] == most:
        return decide(candidates, rules, (), _unlike_human(candidates, rules), otherwise="ties")
    if most / len(candidates.replies) < rules.min_votes:  # 11 / 20 is the float 0.55, but 0.55 * 20 is above 11
        return decide(candidates, rules, (), _unlike_human(candidates, rules), otherwise="few_votes")
    runner_up = others[0][1] if others else 0
    weight = (most - runner_up) / len(candidates.replies) if rules.weigh_votes else 1.0
    return _won_by(first, candidates, rules, weight)


def vote_share(replies: Sequence[Candidate]) -> float:
    """Votes for the leading answer, as a share of all replies; 0 if no reply has a vote."""
    votes = Counter(reply.answer for reply in replies if reply.has_vote)
    return max(votes.values(), default=0) / len(replies)


def _unlike_human(candidates: Candidates, rules: Rules) -> list[Candidate]:
    """The replies whose answer differs from that of the human reply, if the human reply takes part."""
    answer = None if candidates.human is None or rules.human == "never" else candidates.human.answer
    return [reply for reply in candidates.replies if not (reply.has_vote and reply.answer == answer)]


def _won_by(answer: str | None, candidates: Candidates, rules: Rules, weight: float) -> Selection:
    won = [reply for reply in candidates.replies if reply.has_vote and reply.answer == answer]
    lost = [reply for reply in candidates.replies if not (reply.has_vote and reply.answer == answer)]
    return decide(candidates, rules, won, lost, otherwise="none_pass", weight=weight)
