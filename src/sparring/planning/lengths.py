"""How many rows there are and how many tokens they have: measured on the recipe's data, given on the command line, or assumed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sparring.config import ModelSection, PromptsSection, Recipe
from sparring.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sparring.data.chat import Chat
    from sparring.data.records import Conversation

SAMPLE_ROWS = 300


@dataclass(frozen=True)
class Given:
    """Rows and mean tokens that the user gives as options; None for those that are measured or assumed."""

    rows: int | None = None
    prompt_tokens: float | None = None
    reply_tokens: float | None = None
    generated_tokens: float | None = None


@dataclass(frozen=True)
class Lengths:
    """Rows of the data, and mean tokens of a prompt, a human reply and a generated one; `source`: how they were found, in words. The
    fields with `unanswered` are of the prompts of `data.prompts`."""

    train_rows: int
    held_out_rows: int
    prompt: float
    reply: float
    generated: float
    longest_prompt: int
    longest_reply: int
    longest_generated: int
    source: str
    are_bounds: bool = False
    unanswered_rows: int = 0
    unanswered_prompt: float = 0.0
    longest_unanswered: int = 0

    @property
    def played(self) -> Lengths:
        """The lengths of all prompts that the opponent replies to: the training rows and the prompts without replies."""
        rows = self.train_rows + self.unanswered_rows
        prompt = (self.train_rows * self.prompt + self.unanswered_rows * self.unanswered_prompt) / rows
        longest = max(self.longest_prompt, self.longest_unanswered)
        return replace(self, train_rows=rows, unanswered_rows=0, prompt=prompt, longest_prompt=longest)


def find_lengths(recipe: Recipe, given: Given) -> Lengths:
    """Lengths of the rows and of the prompts of `data.prompts`: given, else measured on a sample if file and tokenizer are on this machine,
    else assumed. Raises UserError if their number cannot be known."""
    lengths, section = _of_rows(recipe, given), recipe.data.prompts
    if section is None:
        return lengths
    asked = _local_prompts(recipe, section)
    chat = None if asked is None else local_chat(recipe.model)
    known = [count for count in (section.max_examples, None if asked is None else len(asked)) if count is not None]
    if not known:
        what = f"the number of prompts in {section.named} is not known before it is downloaded"
        raise UserError(what, where="data.prompts.max_examples", remedy="set it")
    if asked == []:
        return lengths
    if chat is None or asked is None:
        return replace(lengths, unanswered_rows=min(known), unanswered_prompt=lengths.prompt, longest_unanswered=lengths.longest_prompt)
    sample = [len(chat.prompt_ids(conversation.prompt, where=where)) for where, conversation in asked[:SAMPLE_ROWS]]
    fitting = [length for length in sample if length <= recipe.data.max_prompt_tokens]
    rows = min([round(len(asked) * len(fitting) / len(sample)), *([section.max_examples] if section.max_examples else [])])
    if not rows:
        return lengths
    mean, longest = given.prompt_tokens or fmean(fitting), max(fitting)
    return replace(lengths, unanswered_rows=rows, unanswered_prompt=mean, longest_unanswered=longest)


def _of_rows(recipe: Recipe, given: Given) -> Lengths:
    found = _measured(recipe) or _assumed(recipe, given)
    tokens = {"prompt": given.prompt_tokens, "reply": given.reply_tokens, "generated": given.generated_tokens}
    _require_possible(recipe, tokens)
    own: dict[str, Any] = {name: value for name, value in tokens.items() if value is not None}
    named = [f"{value:g} {name}" for name, value in own.items()]
    if given.rows is not None:
        named.append(f"{given.rows:,} rows")
        own["train_rows"], own["held_out_rows"] = _split(recipe, given.rows)
    if given.reply_tokens is not None and given.generated_tokens is None:
        own["generated"] = min(given.reply_tokens, recipe.sampling.max_new_tokens)
    own |= {f"longest_{name}": math.ceil(max(own[name], getattr(found, f"longest_{name}"))) for name in ("prompt", "reply") if name in own}
    if given.prompt_tokens and given.reply_tokens:  # of the values found, only the longest are used
        return replace(found, **own, are_bounds=False, source=f"given: {', '.join(named)}")
    return replace(found, **own, source=f"{found.source}; given: {', '.join(named)}" if named else found.source)


def _local_prompts(recipe: Recipe, section: PromptsSection) -> list[tuple[str, Conversation]] | None:
    """The prompts of files on this machine, each once, without those that SFT rows have; None if they would have to be downloaded."""
    from sparring.data.conversations import load_conversations, load_prompts
    from sparring.data.sources import local_files

    if local_files(section) is None:
        return None
    loaded = load_prompts(section, recipe.data)
    found = {conversation.prompt_key: (where, conversation) for where, conversation in loaded.rows}
    if _is_local(recipe) and recipe.data.max_examples is None:  # rows that are not in the subset leave their prompts
        words = {row.prompt_words for _, row in load_conversations(recipe.data, recipe.seed).rows}
        return [asked for asked in found.values() if asked[1].prompt_words not in words]
    return list(found.values())


def _require_possible(recipe: Recipe, means: Mapping[str, float | None]) -> None:
    for name, value in means.items():
        if value is not None and not math.isfinite(value):
            raise UserError(f"{value} is not a number of tokens", where=f"--{name}-tokens")
    generated, most = means["generated"], recipe.sampling.max_new_tokens
    if generated is not None and generated > most:
        what = f"{generated:g} tokens are more than sampling.max_new_tokens allows, {most}"
        raise UserError(what, where="--generated-tokens", remedy="give less, or a larger sampling.max_new_tokens")


def _measured(recipe: Recipe) -> Lengths | None:
    """Lengths of a sample of the rows, tokenised as in a run; None if the data or the tokenizer would have to be downloaded."""
    from sparring.data.prepare import prepare

    chat = local_chat(recipe.model) if _is_local(recipe) else None
    if chat is None:
        return None
    section, limit = recipe.data, recipe.data.max_examples
    of_sample = {"max_examples": min(limit or SAMPLE_ROWS, SAMPLE_ROWS), "held_out": 1, "prompts": None}
    sample = prepare(section.model_copy(update=of_sample), chat, recipe.seed)
    examples, counts = [*sample.train, *sample.held_out], sample.counts
    looked_at = len(examples) + counts["prompt_too_long"] + counts["reply_too_long"]
    rows = round((counts["read"] - sum(counts[name] for name in ("empty", "duplicates", "untrained", "bad"))) * len(examples) / looked_at)
    train, held_out = _split(recipe, min(limit or rows, rows))
    prompts, replies = [len(e.prompt_ids) for e in examples], [len(e.reply_ids) for e in examples]
    return _lengths(recipe, train, held_out, prompts, replies, f"measured on {len(examples)} rows of {section.named}")


def _lengths(
    recipe: Recipe, train: int, held_out: int, prompts: Sequence[int], replies: Sequence[int], source: str, are_bounds: bool = False
) -> Lengths:
    most = recipe.sampling.max_new_tokens
    return Lengths(
        train_rows=train,
        held_out_rows=held_out,
        prompt=fmean(prompts),
        reply=fmean(replies),
        generated=fmean(min(reply, most) for reply in replies),
        longest_prompt=max(prompts),
        longest_reply=max(replies),
        longest_generated=most,
        are_bounds=are_bounds,
        source=f"{source}; generated replies as long as the human ones, {most} at most",
    )


def _assumed(recipe: Recipe, given: Given) -> Lengths:
    from sparring.data.conversations import load_conversations

    data = recipe.data
    there = load_conversations(data, recipe.seed).counts["read"] if _is_local(recipe) else None  # before any row is left out
    known = [count for count in (data.max_examples, there) if count is not None]
    rows = given.rows or min(known, default=None)
    if rows is None:
        raise UserError(
            f"the number of rows in {data.named} is not known before it is downloaded",
            where="data.max_examples",
            remedy="set it, or give --rows N",
        )
    train, held_out = _split(recipe, rows)
    source = "assumed: every prompt and reply as long as data.max_prompt_tokens and data.max_reply_tokens allow: an upper bound"
    return _lengths(recipe, train, held_out, [data.max_prompt_tokens], [data.max_reply_tokens], source, are_bounds=True)


def _is_local(recipe: Recipe) -> bool:
    """Whether the data need not be downloaded."""
    from sparring.data.sources import local_files

    return recipe.data.named.startswith("builtin:") or local_files(recipe.data) is not None


def _split(recipe: Recipe, rows: int) -> tuple[int, int]:
    """(training rows, held-out rows) of `rows`."""
    held_out = recipe.data.held_out_of(rows)
    kept = max(1, round(held_out * rows)) if isinstance(held_out, float) else held_out
    if kept >= rows:
        raise UserError(f"data.held_out is {held_out}, but there are {rows} rows", where="data.held_out", remedy="hold out fewer")
    return rows - kept, kept


def local_chat(model: ModelSection) -> Chat | None:
    """The tokenizer with its template; None if it is not on this machine."""
    from sparring.data.chat import Chat, load_template
    from sparring.policy.load import load_tokenizer, local_path, require_gguf
    from sparring.policy.tiny import byte_tokenizer

    template = load_template(model.chat_template) if model.chat_template else None
    path, local = model.path, local_path(model.path)
    tokenizer: PreTrainedTokenizerBase
    if path.startswith("builtin:"):
        tokenizer = byte_tokenizer()
    elif path.startswith("package:") or local.suffix == ".gguf":
        require_gguf()
        tokenizer = _gguf_tokenizer(local)
    else:
        has_one = any((local / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))
        found = local if has_one else _in_hub_cache(model)
        if found is None:
            return None
        tokenizer = load_tokenizer(found)
    return Chat(tokenizer, template, kwargs=model.chat_template_kwargs)


def _in_hub_cache(model: ModelSection) -> Path | None:
    """The cached folder of a Hub model whose tokenizer was downloaded before; None if there is none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model.path, "tokenizer_config.json", revision=model.revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    import contextlib
    import io

    from transformers import AutoTokenizer

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # transformers shows a bar per tensor
            return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"cannot read the tokenizer of the GGUF file: {error}", where=str(file)) from error
