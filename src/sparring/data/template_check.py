"""Checks of a rendered row (it contains every turn's text, and begins with exactly the prompt), and values for variables of a template.

The values become part of the template's text, so that they apply wherever it is rendered: in sampling, training and benchmarks, and by the
tokenizer that is saved with a player.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from sparring.data.records import Message
from sparring.errors import UserError, suggestion

KWARGS_OPTION = "model.chat_template_kwargs"
Scalar = bool | int | float | str | None


def with_kwargs(template: str, kwargs: Mapping[str, Scalar]) -> str:
    """The template with these values as defaults of its variables.

    Raises UserError for a variable that the template does not mention, since it would have no effect.
    """
    for name in kwargs:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            named = {word for word in re.findall(r"\b[a-z_]\w+\b", template) if "_" in word}
            what = f"the chat template does not mention {name!r}, so that it would have no effect"
            raise UserError(what, where=KWARGS_OPTION, remedy=suggestion(name, named, otherwise="leave it out"))
    defaults = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}" for name, value in kwargs.items()
    )
    # transformers trims the line break after the last block, so it is not rendered. With it, the template's first line still begins a line,
    # where blanks before a block are trimmed too.
    return f"{defaults}\n{template}" if defaults else template


def _literal(value: Scalar) -> str:
    """A value as a Jinja literal, which is that of JSON except for null and for characters that JSON escapes as surrogate pairs."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


THINKING, END_OF_THINKING = "<think>", "</think>"
OPTION = "model.chat_template"
# <|im_end|> without such a token in the tokenizer: the end of the turn as plain text, which the model learns with the reply
PLAIN_TEXT_MARK = re.compile(r"<[^<>/\s][^<>\s]*>")
SHOWN = 60  # characters of a text in a message


class Lost(NamedTuple):
    """The turn whose text is missing in a rendering; `written` is the text found in its place."""

    place: int
    written: str


def lost_turn(rendered: str, turns: Sequence[Message]) -> Lost | None:
    """The first turn whose text does not follow those before it in the rendering; blanks may differ, since many templates trim them.

    The reasoning of an assistant's earlier turn may be missing: templates of reasoning models leave it out of prompts by design, in
    sampling and in training.
    """
    lost = _first_lost(rendered, turns, str.strip)
    return lost and _first_lost(rendered, turns, squeezed)


def cuts_thinking(rendered: str, turns: Sequence[Message]) -> bool:
    """Whether the reasoning of an earlier assistant turn is missing."""
    said = (turn for turn in turns if turn["role"] == "assistant")
    thoughts = [turn.get("reasoning_content") or turn["content"].rpartition(END_OF_THINKING)[0].rpartition(THINKING)[2] for turn in said]
    return any(squeezed(thought) not in squeezed(rendered) for thought in thoughts)


def squeezed(text: str) -> str:
    """The text without white space."""
    return "".join(text.split())


def _first_lost(rendered: str, turns: Sequence[Message], form: Callable[[str], str]) -> Lost | None:
    rendered, at = form(rendered), 0
    for number, turn in enumerate(turns):
        ends = (place + len(text) for text in map(form, _texts(turn)) if (place := rendered.find(text, at)) >= 0)
        end = next(ends, None)
        if end is None:
            return Lost(number, rendered[at:])
        at = end
    return None


def _texts(turn: Message) -> Iterator[str]:
    """The forms in which a template may write the text of a turn."""
    text = turn["content"]
    yield text
    if turn["role"] == "assistant" and END_OF_THINKING in text:
        yield text.rpartition(END_OF_THINKING)[2]
    if turn["role"] == "tool":  # some templates write tool results as JSON
        yield json.dumps(text, ensure_ascii=False)[1:-1]


def opening_of(written: str, reply: Message) -> str | None:
    """The text that a template writes before a reply; None if it does not write reasoning and reply completely and in order."""
    parts = [text for text in (reply.get("reasoning_content", ""), reply["content"]) if text.strip()]
    for form in (str.strip, squeezed):
        text, at, opening = form(written), 0, None
        for part in map(form, parts):
            place = text.find(part, at)
            if place < 0:
                break
            opening = text[:place] if opening is None else opening
            at = place + len(part)
        else:
            if opening and len(parts) == 1:  # a short reply may occur in the opening too: all of it is shown
                opening = text[: text.rfind(form(parts[0]))]
            return opening or ""
    return None


def closing_of(written: str, reply: Message, end_of_turn: str | None) -> str:
    """The text that a template writes between the reply and the end of its turn, blanks ignored."""
    said = squeezed(reply["content"])
    text = written if end_of_turn is None or end_of_turn not in written else written.rpartition(end_of_turn)[0].replace(end_of_turn, "")
    return squeezed(text).rpartition(said)[2] if said else ""


def without_open_thinking(prompt_text: str, reply: Message) -> Message:
    """The reply as the continuation of a prompt that opens the thinking."""
    text = reply["content"].lstrip()
    if text.startswith(THINKING) and prompt_text.rstrip().endswith(THINKING):
        return {**reply, "content": text.removeprefix(THINKING)}
    return reply


def _refusal(source: str, what: str, where: str | None, remedy: str) -> UserError:
    """remedy: continues "set the option to a template"."""
    return UserError(f"{source} {what}", where=where, remedy=f"set {OPTION} to a template {remedy}")


def lost_error(source: str, turn: Message, written: str, where: str | None) -> UserError:
    """written: what the template wrote in place of the turn."""
    role, given = turn["role"], _clipped(turn["content"])
    what = f"does not write the text of a turn of the {role}: it got {given!r} and wrote {_clipped(written)!r}"
    return _refusal(source, what, where, f"that writes the {role}'s turns as they are, or drop the row")


def no_reasoning_error(source: str, turn: Message, where: str | None) -> UserError:
    """The template does not write the assistant's reasoning."""
    thought = _clipped(turn["reasoning_content"])
    what = f"does not write the assistant's reasoning ({thought!r}) before its text {_clipped(turn['content'])!r}"
    return _refusal(source, what, where, "that writes it, put it into the text as the model writes it, or set data.reasoning: drop")


def cut_error(source: str, reply: Message, written: str, where: str | None) -> UserError:
    """The rendering does not contain the whole reply."""
    whole = "\n".join(text for text in (reply.get("reasoning_content"), reply["content"]) if text)
    given, written = _difference(whole, written)
    what = f"changes the reply of the assistant, so that another text would be trained on: it got {given!r} and wrote {written!r}"
    otherwise = ", or set data.reasoning: drop" if "reasoning_content" in reply else ""
    return _refusal(source, what, where, f"that writes the assistant's turns as they are{otherwise}")


def opening_error(source: str, opening: str, reply: str, where: str | None, kwargs_help: bool) -> UserError:
    """The template writes something between the sampling prefix and the reply that is trained on."""
    what = (
        f"writes {_clipped(opening)!r} between the prefix under which the assistant's replies are sampled and the human reply "
        f"{_clipped(reply)!r}: sampled replies do not have it, so that this text alone would distinguish the two"
    )
    if END_OF_THINKING not in opening:
        return _refusal(source, what, where, "that writes the assistant's header only if add_generation_prompt is set")
    if not kwargs_help:
        return _refusal(source, what, where, "that writes no thinking tags for replies without reasoning")
    remedy = f"set {KWARGS_OPTION}: {{enable_thinking: false}}, so that the prefix has it too, or give rows with reasoning"
    return UserError(f"{source} {what}", where=where, remedy=remedy)


def closing_error(source: str, closing: str, reply: str, where: str | None) -> UserError:
    """The template writes something between the reply that is trained on and the end of its turn."""
    what = (
        f"writes {_clipped(closing)!r} between the human reply {_clipped(reply)!r} and the end of its turn: sampled replies may "
        "not have it, so that this text alone would distinguish the two"
    )
    return _refusal(source, what, where, "that ends the assistant's turn right after its text")


def prefix_error(source: str, prompt_text: str, full_text: str, where: str | None) -> UserError:
    """The prompt with its reply does not begin with the prompt alone."""
    at = _equal_until(prompt_text, full_text)
    sampled, scored = prompt_text[max(0, at - 20) : at + 20], full_text[max(0, at - 20) : at + 20]
    what = (
        "writes the prompt differently once the reply is there, so a reply would be sampled under one prefix and "
        f"scored under another: {sampled!r} without the reply, {scored!r} with it"
    )
    return _refusal(source, what, where or OPTION, "whose rendering with the reply begins with its rendering without")


def marker_error(source: str, found: re.Match[str], role: str, where: str | None) -> UserError:
    """A turn contains a special token of the template."""
    near = found.string[max(0, found.start() - SHOWN // 3) : found.start() + SHOWN]
    what = f"a turn of the {role} contains {found[0]!r}, a token with which {source} marks turns: {_clipped(near)!r}"
    remedy = "give turns without the tokens of a template (messages: a list of role and content), or drop the row"
    return UserError(what, where=where, remedy=remedy)


def _difference(given: str, written: str) -> tuple[str, str]:
    """Both texts, from shortly before their first difference."""
    given, written = given.strip(), written.strip()
    first = max(0, _equal_until(given, written) - SHOWN // 3)
    return _clipped(given[first:]), _clipped(written[first:])


def _equal_until(one: str, other: str) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _clipped(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
