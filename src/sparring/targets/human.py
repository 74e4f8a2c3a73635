"""SPIN's target (arXiv 2401.01335): the human reply always wins."""

from __future__ import annotations

from sparring.targets.select import Candidates, Rules, Selection


def human(candidates: Candidates, rules: Rules) -> Selection:
    """Every reply of the opponent loses, duplicates included: SPIN's expectation is over the opponent's samples.

    `rules` has no effect. A prompt without a human reply has no winner.
    """
    if candidates.human is None:
        return Selection((), candidates.replies, "unjudged")
    is_decided = any(reply.token_ids != candidates.human.token_ids for reply in candidates.replies)
    return Selection((candidates.human,), candidates.replies, "human_wins" if is_decided else "all_pass")
