"""The verified target: replies that a checker passes win, those that fail lose (rejection sampling, arXiv 2308.01825, as a duel)."""

from __future__ import annotations

from sparring.targets.select import Candidates, Rules, Selection, decide


def verified(candidates: Candidates, rules: Rules) -> Selection:
    """Complete replies that passed may win; judged ones that failed, or passed but were cut at the limit, lose.

    A reply without a grade neither wins nor loses.
    """
    judged = [reply for reply in candidates.replies if reply.passed is not None]
    if not judged:
        return decide(candidates, rules, (), (), otherwise="unjudged")
    passed = [reply for reply in judged if reply.has_passed]
    failed = [reply for reply in judged if not reply.has_passed]
    return decide(candidates, rules, passed, failed, otherwise="none_pass")
