"""The window: which duels an iteration trains on."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparring.data.records import Contest, Duel, Example, Reply, TokenIds, Triplet, is_empty
from sparring.targets.builtin import human
from sparring.targets.select import LEFT_OUT, OUTCOMES, Candidate, Candidates, Rules, Selection, Target


@dataclass(frozen=True)
class Window:
    """The duels with something to learn from, and counts of everything that was considered."""

    duels: Sequence[Duel | Contest]
    counts: dict[str, int]
    indistinguishable: bool = False  # every reply of the opponents equals the human one
    human_alone: bool = False  # no pair, and no winner but human replies, whose likelihood alone is continued SFT

    @property
    def contests(self) -> list[Contest]:
        """All duels of a verified or majority target; none of the human target's are contests."""
        return [duel for duel in self.duels if isinstance(duel, Contest)]


def build_window(
    examples: Sequence[Example],
    replies_by_iteration: Mapping[int, Sequence[Reply]],
    stop_ids: frozenset[int],
    *,
    of_start: Sequence[Reply] | None = None,
    keep_identical: bool = False,
) -> Window:
    """Join each example with its replies of every iteration in the window, by row id (paper, section 6.1: newest and previous).

    A duel whose replies are all equal has an exactly zero gradient under a loss on margins: it is left out and counted, unless
    `keep_identical`. of_start: replies of the start of the game, as many for each row; with them the result has triplets.
    """
    anchors = None if of_start is None else _by_row(of_start)
    duels: list[Duel] = []
    for iteration, replies in sorted(replies_by_iteration.items(), reverse=True):
        by_row = _by_row(replies)
        for example in examples:
            own = by_row[example.row_id]
            assert own, f"row {example.row_id} has no replies of iteration {iteration}"
            won = human(Candidates(tuple(map(Candidate, own)), Candidate(example.reply_ids)), Rules())
            (real,), generated = ([one.token_ids for one in side] for side in (won.winners, won.losers))
            duel = Duel(example.row_id, iteration, example.prompt_ids, real, tuple(generated))
            duels.append(duel if anchors is None else Triplet(**vars(duel), start_ids=anchors[example.row_id]))
    used = duels if keep_identical else [duel for duel in duels if not duel.has_no_margin]
    everything = [reply for replies in replies_by_iteration.values() for reply in replies]
    real_ids = {example.row_id: example.reply_ids for example in examples}
    counts = {
        "duels": len(used),
        "duels_all_identical": sum(duel.is_all_identical for duel in duels),
        "replies": len(everything),
        "replies_identical": sum(reply.token_ids == real_ids[reply.row_id] for reply in everything),
        "replies_truncated": sum(reply.finish_reason == "length" for reply in everything),
        "replies_empty": sum(is_empty(reply.token_ids, stop_ids) for reply in everything),
    }
    return Window(used, counts, indistinguishable=all(duel.is_all_identical for duel in duels))


def select_window(
    prompts: Mapping[str, TokenIds],
    candidates_by_iteration: Mapping[int, Mapping[str, Candidates]],
    target: Target,
    rules: Rules,
    *,
    uses_margins: bool,
    uses_likelihood: bool,
) -> Window:
    """The contests that a target builds from the graded replies of every iteration in the window, the newest first.

    prompts: row id -> token ids; candidates: iteration -> row id -> its replies. uses_margins: the loss compares winners with losers;
    uses_likelihood: it, or its anchor, raises the winners' own likelihood. A prompt without anything for the loss is left out; the
    outcome of every prompt is counted, and the replies that a selection left out.
    """
    contests: list[Contest] = []
    human_alone = True
    outcomes: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for iteration, found in sorted(candidates_by_iteration.items(), reverse=True):
        for row_id, candidates in found.items():
            selection = target(candidates, rules)
            outcomes[selection.outcome] += 1
            contest = _contest(row_id, iteration, prompts[row_id], selection, uses_margins, uses_likelihood)
            if contest is not None:
                contests.append(contest)
                left_out.update(selection.left_out if contest.pairs else {**selection.left_out, "losers_left_out": 0})  # none takes part
                human_alone &= not contest.pairs and all(winner is candidates.human for winner in selection.winners)
    replies = [reply for found in candidates_by_iteration.values() for one in found.values() for reply in one.replies]
    counts = {
        "duels": len(contests),
        "pairs": sum(len(contest.pairs) for contest in contests),
        "winners": sum(len(contest.winners) for contest in contests),
        "losers": sum(len(contest.losers) for contest in contests),
        "replies": len(replies),
        "replies_passed": sum(reply.has_passed for reply in replies),
        "replies_without_answer": sum(reply.answer is None for reply in replies),
        "replies_truncated": sum(not reply.is_complete for reply in replies),
        **{name: left_out[name] for name in LEFT_OUT},
        "prompts": outcomes.total(),
        **{name: outcomes[name] for name in OUTCOMES},
    }
    return Window(contests, counts, human_alone=bool(contests) and human_alone)


def _contest(
    row_id: str, iteration: int, prompt_ids: TokenIds, selection: Selection, uses_margins: bool, uses_likelihood: bool
) -> Contest | None:
    """None if there is nothing to learn: no winner, no loser for a loss on margins alone, or no weight."""
    winners, losers = ([one.token_ids for one in side] for side in (selection.winners, selection.losers))
    pairs = pair(list(map(len, winners)), list(map(len, losers))) if uses_margins else []
    if not winners or not selection.weight or not (pairs or uses_likelihood):
        return None
    return Contest(row_id, iteration, prompt_ids, tuple(winners), tuple(losers) if pairs else (), tuple(pairs), selection.weight)


def _by_row(replies: Sequence[Reply]) -> dict[str, tuple[TokenIds, ...]]:
    """row id -> its replies in the order of their replicas; an empty tuple for a row without any."""
    found: dict[str, tuple[TokenIds, ...]] = defaultdict(tuple)
    for reply in sorted(replies, key=lambda reply: reply.replica):
        found[reply.row_id] += (reply.token_ids,)
    return found


def pair(winners: Sequence[int], losers: Sequence[int]) -> list[tuple[int, int]]:
    """(place of a winner, place of a loser) of every pair, from their lengths in tokens.

    First each reply of the smaller side is paired with the nearest in length of the larger side that is still free; then each remaining
    one of the larger side with the nearest of the smaller, up to an equal share each. So every reply is in a pair, and no reply is in
    many more pairs than others.
    No pairs if one side is empty.
    """
    if not winners or not losers:
        return []
    near = sorted((abs(won - lost), i, j) for i, won in enumerate(winners) for j, lost in enumerate(losers))
    winners_are_fewer = len(winners) <= len(losers)
    most = math.ceil(max(len(winners), len(losers)) / min(len(winners), len(losers)))
    pairs: list[tuple[int, int]] = []
    times_paired: Counter[int] = Counter()  # replies of the smaller side
    placed: set[int] = set()  # replies of the larger side
    for limit in (1, most):
        for _, i, j in near:
            small, large = (i, j) if winners_are_fewer else (j, i)
            if large not in placed and times_paired[small] < limit:
                pairs.append((i, j))
                times_paired[small] += 1
                placed.add(large)
    return sorted(pairs)
