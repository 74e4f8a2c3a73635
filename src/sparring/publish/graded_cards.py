"""Cards of games with a verified or majority target: the rule and checker, and that winners are the model's own replies."""

from __future__ import annotations

from collections.abc import Mapping

from sparring.config import Recipe
from sparring.report.rule import checker_name, rule_of

Counts = Mapping[int, Mapping[str, int]]
HEADERS = {
    "prompts": "prompts with pairs",
    "unanswered": "of them without a human reply",
    "rows": "pairs",
    "chosen_human": "of them won by a human reply",
    "truncated": "losers cut at the length limit",
}


def how_learned(recipe: Recipe, unanswered: int) -> str:
    """The first lines of a player's card. unanswered: prompts without a human reply that the game was played on."""
    target, count = recipe.target, recipe.sampling.replies_per_prompt
    return f"""Fine-tuned by sparring in a self-play game with a {target.kind} target (`target.kind: {target.kind}`, checker
`{checker_name(target)}`): in every iteration the previous player replied {count} times to every training prompt.
{" ".join(rule_of(recipe))}

{_whose(recipe, unanswered)}"""


def pairs_body(recipe: Recipe, counts: Counts, unanswered: int) -> str:
    """The body of the data set's card: the rule, a table of counts, and the configurations."""
    lines = [
        f"| iteration | {' | '.join(HEADERS.values())} |",
        f"|---|{'---|' * len(HEADERS)}",
        *(f"| {t} | {' | '.join(str(found[name]) for name in HEADERS)} |" for t, found in counts.items()),
    ]
    table, sampled = "\n".join(lines), recipe.sampling.replies_per_prompt
    winners_only = " The game itself was trained on winners only; these are the pairs that it would have formed."
    note = "" if recipe.objective.kind.uses_margins else winners_only
    return f"""{" ".join(rule_of(recipe))}{note}

{_whose(recipe, unanswered)}

{table}

Two configurations with a split per iteration that has rows for it:

- `preference`: pairs of a winner and a loser, as `prompt`, `chosen`, `rejected` in lists of turns, which TRL's `DPOTrainer` takes; with
  `row_id`, `iteration`, `chosen_by` (`human` if it equals the human reply, token for token, else `model`), the checker's scores and
  answers, votes (how many of {sampled} replies ended and gave the same answer; a cut reply has none), `weight` of the prompt, and the
  loser's `finish_reason`.
- `spin`: `real`, `generated` as whole conversations, which the SPIN authors' code takes: each reply of the model paired with the human one,
  whichever won. Prompts without a human reply are not in it."""


def _whose(recipe: Recipe, unanswered: int) -> str:
    """Whether winners are human or generated replies, and how many prompts have no human reply."""
    asked = f"{unanswered} of the prompts had no human reply." if unanswered else "Every prompt had a human reply."
    if recipe.target.human == "only":
        return f"Winners are human replies. {asked}"
    written = "the model's own replies" if recipe.target.human == "never" else "human replies and the model's own replies"
    return f"Winners are {written}. No person has written or read the model's replies, and a checker or a vote can be wrong. {asked}"
