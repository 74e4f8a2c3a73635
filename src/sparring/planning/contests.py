"""What a plan takes of a game whose target moves: prompts that nobody has answered, and how many replies to a prompt are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from sparring.config import PromptsSection, Recipe
from sparring.errors import UserError
from sparring.planning.lengths import SAMPLE_ROWS, Given, Lengths, chat_at_hand, find_lengths

if TYPE_CHECKING:
    from sparring.data.chat import Chat
    from sparring.data.records import Conversation


def find_played_lengths(recipe: Recipe, given: Given) -> Lengths:
    """`find_lengths` with the prompts of `data.prompts`: measured on a sample where file and tokenizer are at hand, else as long as the
    others. A given mean of the prompts holds for them too. Raises UserError where their number cannot be known."""
    lengths, section = find_lengths(recipe, given), recipe.data.prompts
    if section is None:
        return lengths
    asked, most = _local_prompts(recipe, section), recipe.data.max_prompt_tokens
    chat = None if asked is None else chat_at_hand(recipe.model)
    known = [count for count in (section.max_examples, asked and len(asked)) if count is not None]
    if not known:
        what = f"how many prompts {section.named} has is not known before it is fetched"
        raise UserError(what, where="data.prompts.max_examples", remedy="set it")
    if chat is None or asked is None:
        unmeasured = {"unanswered_prompt": lengths.prompt, "longest_unanswered": lengths.longest_prompt}
        return replace(lengths, unanswered_rows=min(known), **unmeasured)
    sample = _sample(asked, chat)
    fitting = [length for length in sample if length <= most]
    rows = min([round(len(asked) * len(fitting) / len(sample)), *([section.max_examples] if section.max_examples else [])])
    if not rows:
        return lengths
    mean, longest = given.prompt_tokens or fmean(fitting), max(fitting)
    return replace(lengths, unanswered_rows=rows, unanswered_prompt=mean, longest_unanswered=longest)


def contest_branches(recipe: Recipe) -> int:
    """Branches of the tree of one prompt, at most: winners alone where only their likelihood counts, else with the losers."""
    target, drawn = recipe.target, recipe.sampling.replies_per_prompt
    winners = 1 if target.human == "only" else target.max_winners
    if not recipe.objective.kind.uses_gaps:
        return min(winners, drawn + (target.human == "mix"))
    return min(winners + min(target.max_losers, drawn), drawn + 1)


def rft_branches(recipe: Recipe) -> int:
    """The same of the control `rft`: the human reply and the ones that passed."""
    return min(recipe.target.max_winners, recipe.sampling.replies_per_prompt + 1)


def assumptions_of_answers(recipe: Recipe) -> list[str]:
    """What a plan takes for granted of a target that moves and of several replies to held-out prompts; a line each."""
    found = []
    if recipe.target.moves:
        count = contest_branches(recipe)
        limits = "target.max_winners, target.max_losers and sampling.replies_per_prompt allow; prompts that nobody wins cost less"
        if recipe.objective.kind.uses_gaps:
            found.append(f"every prompt is trained on with {count} replies, winners and losers, the most that {limits}")
        else:
            limits = limits.replace(", target.max_losers", "")
            found.append(f"every prompt is trained on with {count} winners, the most that {limits}; the opponent scores nothing")
        found.append("winners and losers are as long as other replies of the model")
    if recipe.target.checker is not None:
        found.append("grading is not counted: a checker computes no tokens of the model")
    if recipe.evaluate.samples > 1:
        found.append(f"every held-out prompt gets evaluate.samples ({recipe.evaluate.samples}) replies from every player")
    return found


def _local_prompts(recipe: Recipe, section: PromptsSection) -> list[tuple[str, Conversation]] | None:
    """The prompts of files on this machine, each once; None for those that would have to be fetched."""
    from sparring.data.prompts import load_prompts
    from sparring.data.sources import local_files

    if local_files(section) is None:
        return None
    loaded = load_prompts(section, recipe.data)
    return list({conversation.prompt_key: (where, conversation) for where, conversation in loaded.rows}.values())


def _sample(asked: Sequence[tuple[str, Conversation]], chat: Chat) -> list[int]:
    """Tokens of some of them."""
    return [len(chat.prompt_ids(conversation.prompt, where=where)) for where, conversation in asked[:SAMPLE_ROWS]]
