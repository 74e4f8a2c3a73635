"""The only place where conversations are tokenised: data, sampling, training, evaluation and export all use it.

A prompt is tokenised alone, because that is the prefix under which replies are sampled; a human reply is what the chat template
adds to that prefix, up to and including the token with which the model itself ends a turn.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from sparring.data import template_check
from sparring.data.records import Conversation, Message, TokenIds
from sparring.data.rendering import Render, Renderer
from sparring.data.template_check import END_OF_THINKING, OPTION, THINKING, Scalar
from sparring.data.turns import REASONING
from sparring.errors import UserError
from sparring.files import MOST_TEXT_BYTES, require_regular

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Placeholders whose position in a rendering shows what the template writes around them.
_ASKED, _ANSWERED, _SYSTEM = "sparring probe question", "sparring probe answer", "sparring probe system"
_THOUGHT = "sparring probe thought"
_QUESTION, _ANSWER = Message(role="user", content=_ASKED), Message(role="assistant", content=_ANSWERED)


def load_template(path: str | Path) -> str:
    """The text of a Jinja chat template. Raises UserError for a file that is missing, unreadable, not UTF-8 or blank."""
    where, file = f"{OPTION}: {path}", Path(path).expanduser()
    require_regular(file, where, MOST_TEXT_BYTES)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("no such file", where=where, remedy="give the path of a Jinja chat template") from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}", where=where) from None
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror or error}", where=where) from None
    if not text.strip():
        raise UserError("the file is blank", where=where, remedy="give a Jinja chat template, or null for the model's own")
    return text


class Chat:
    """A tokenizer with its chat template, probed once for how it treats system turns and ends a turn.

    template: Jinja text that replaces the tokenizer's own; null keeps that. kwargs: values for its variables.
    end_of_turn_ids: further ids that end a reply, as the model's generation config lists them.

    `stop_ids` are the ids at which sampling stops, `end_of_turn_id` the one that every uncut human reply ends in. `notices`
    has one line for each decision about this template; it may grow while conversations are rendered.
    Rendering happens only in transformers' sandbox, in a process with limits (rendering.py). Nothing here reads the pad token, which may
    equal the end of turn.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        end_of_turn_ids: Iterable[int] = (),
        kwargs: Mapping[str, Scalar] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.notices: list[str] = []
        self.source = "the model's own chat template" if template is None else f"the chat template of {OPTION}"
        self.template = template_check.with_kwargs(template if template is not None else _own_template(tokenizer), kwargs or {})
        render = partial(tokenizer.apply_chat_template, chat_template=self.template, tokenize=False)
        self._renderer = Renderer(cast(Render, render))  # it returns text where it does not tokenize
        self.end_of_turn_id, self._template_ends_turns = self._probe_end_of_turn()
        self._takes_system = self._probe_system()
        self._lost_of_roles: dict[tuple[str, ...], int | None] = {}
        self._probe_start()
        ends = {self.end_of_turn_id, tokenizer.eos_token_id, *end_of_turn_ids}
        self.stop_ids: frozenset[int] = frozenset(token for token in ends if token is not None)

    def prompt_ids(self, prompt: Sequence[Message], where: str | None = None) -> TokenIds:
        """The prefix under which a reply is sampled and scored: the rendered turns and the header of the assistant's next.

        Raises UserError, naming `where`, when the template refuses the turns.
        """
        return self._ids(self._render(self._folded(prompt), where, add_generation_prompt=True))

    def row_prompt_ids(self, prompt: Sequence[Message], where: str | None = None) -> TokenIds:
        """`prompt_ids` of a row. Raises UserError if the rendering does not contain the text of every turn."""
        return self._ids(self._row_prompt(self._folded(prompt), where))

    def encode(self, conversation: Conversation, where: str | None = None) -> tuple[TokenIds, TokenIds]:
        """(prompt_ids, reply_ids) of an SFT row, the reply with its end-of-turn token.

        Together they are the tokenizer's own rendering of the whole conversation, less what the template writes after the end
        of the turn. Where a token would span the boundary, the prompt keeps its ids and the reply is tokenised alone.
        Raises UserError if the rendering does not consist of the row's texts and the template's own marks.
        """
        prompt, reply = self._folded(conversation.prompt), conversation.turn
        self._check_turns([reply], where)
        prompt_text = self._row_prompt(prompt, where)
        full_text = self._render([*prompt, reply], where)
        if not full_text.startswith(prompt_text):
            raise template_check.prefix_error(self.source, prompt_text, full_text, where)
        self._check_reply(prompt_text, full_text[len(prompt_text) :], reply, where)
        prompt_ids, full_ids = self._ids(prompt_text), self._ids(full_text)
        if full_ids[: len(prompt_ids)] == prompt_ids:
            reply_ids = full_ids[len(prompt_ids) :]
        else:
            reply_ids = self._reply_alone(full_text[len(prompt_text) :], prompt_ids, full_ids)
        return prompt_ids, self._up_to_end_of_turn(reply_ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text for display, without special tokens. Never encode it again: the ids are the reply."""
        return self._text(ids, skip_special_tokens=True)

    def _ids(self, text: str) -> TokenIds:
        # The template writes every special token itself; the tokenizer must not add them a second time.
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _text(self, ids: Iterable[int], skip_special_tokens: bool) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
        return cast(str, text)  # of one sequence; several would be a list

    def _token(self, token_id: int) -> str:
        return cast(str, self.tokenizer.convert_ids_to_tokens(token_id))  # of one id; several would be a list

    def _render(self, messages: Sequence[Message], where: str | None, add_generation_prompt: bool = False) -> str:
        try:
            return self._render_raw(messages, add_generation_prompt)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages) or "none"
            what = f"the chat template refuses this conversation: {_reason(error)} (roles of its turns: {roles})"
            raise UserError(what, where=where, remedy=f"fix or drop the row, or set {OPTION} to a template that accepts it") from None

    def _render_raw(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        return self._renderer([self._as_taken(message) for message in messages], add_generation_prompt=add_generation_prompt)

    def _as_taken(self, message: Message) -> dict[str, str]:
        """The turn with its reasoning under the key that the template reads."""
        taken = {"role": message["role"], "content": message["content"]}
        if "reasoning_content" in message and self._reasoning_key is not None:
            taken[self._reasoning_key] = message["reasoning_content"]
        return taken

    def _folded(self, prompt: Sequence[Message]) -> list[Message]:
        """The turns in a form that the template supports: without a system role, the system text opens the first user turn."""
        system = [message["content"] for message in prompt if message["role"] == "system"]
        if self._takes_system or not system:
            return list(prompt)
        self._note("the chat template has no system role: system turns are put in front of the first user turn")
        turns = [message for message in prompt if message["role"] != "system"]
        first = next((n for n, turn in enumerate(turns) if turn["role"] == "user"), None)
        if first is None:
            return [Message(role="user", content="\n\n".join(system)), *turns]
        turns[first] = Message(role="user", content="\n\n".join([*system, turns[first]["content"]]))
        return turns

    # --- checks that the rendering contains the row's texts ---

    def _row_prompt(self, prompt: Sequence[Message], where: str | None) -> str:
        """The rendered prompt of a row, which holds the text of each of its turns."""
        self._check_turns(prompt, where)
        text = self._render(prompt, where, add_generation_prompt=True)
        lost = template_check.lost_turn(text, prompt)
        if lost is None and (place := self._lost_role(tuple(turn["role"] for turn in prompt))) is not None:
            lost = template_check.Lost(place, text)
        if lost is not None:
            raise template_check.lost_error(self.source, prompt[lost.place], lost.written, where)
        if template_check.cuts_thinking(text, prompt):
            self._note("the chat template leaves the assistant's reasoning in earlier turns out of all prompts")
        return text

    def _lost_role(self, roles: tuple[str, ...]) -> int | None:
        """The first turn whose text the template leaves out for these roles. It is probed with unique texts, since a short text of a row
        may occur elsewhere by chance."""
        if roles not in self._lost_of_roles:
            turns = [Message(role=role, content=f"{_ASKED} {place}.") for place, role in enumerate(roles)]
            try:
                lost = template_check.lost_turn(self._render_raw(turns, True), turns)
            except TemplateError:  # it accepts these turns only with the texts of the row
                lost = None
            self._lost_of_roles[roles] = None if lost is None else lost.place
        return self._lost_of_roles[roles]

    def _check_reply(self, prompt_text: str, written: str, reply: Message, where: str | None) -> None:
        continuation = template_check.without_open_thinking(prompt_text, reply)
        opening = template_check.opening_of(written, continuation)
        if opening is None:
            raise template_check.cut_error(self.source, reply, written, where)
        thinks = "reasoning_content" in reply  # then the reply begins with a thinking tag, as sampled ones do
        if self._marker.search(opening) if thinks else opening.strip():
            raise template_check.opening_error(self.source, opening, reply["content"], where, "enable_thinking" in self.template)
        closing = template_check.closing_of(written, continuation, self._end_of_turn)
        if closing and not (self._end_of_turn is None and template_check.PLAIN_TEXT_MARK.fullmatch(closing)):
            raise template_check.closing_error(self.source, closing, reply["content"], where)

    def _check_turns(self, turns: Sequence[Message], where: str | None) -> None:
        """Refuse texts that contain the template's own marks, and reasoning that the template does not render."""
        for turn in turns:
            if "reasoning_content" in turn and self._reasoning_key is None:
                raise template_check.no_reasoning_error(self.source, turn, where)
            for text in (turn["content"], turn.get("reasoning_content", "")):
                if found := self._marker.search(text):
                    raise template_check.marker_error(self.source, found, turn["role"], where)

    @property
    def _end_of_turn(self) -> str | None:
        """The end-of-turn token as text; None if the template does not write one."""
        return self._token(self.end_of_turn_id) if self._template_ends_turns else None

    @cached_property
    def _marker(self) -> re.Pattern[str]:
        """Matches the special tokens with which the template marks turns. Thinking tags are excluded: replies may contain them."""
        try:
            text = self._render_raw([_QUESTION, _ANSWER, _QUESTION])
        except TemplateError:
            text = self._render_raw([_QUESTION, _ANSWER])
        known = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder} - {self.tokenizer.unk_token_id}
        tokens = [self._token(token) for token in known.intersection(self._ids(text))]
        marks = sorted({token for token in tokens if token.strip() and token not in (THINKING, END_OF_THINKING)}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, marks)) or r"(?!)")

    @cached_property
    def _reasoning_key(self) -> str | None:
        """The key under which the template reads an assistant's reasoning; None if it does not render it."""
        for key in REASONING:
            with contextlib.suppress(TemplateError):
                if _THOUGHT in self._renderer([{**_QUESTION}, {**_ANSWER, key: _THOUGHT}]):
                    return key
        return None

    def _reply_alone(self, reply_text: str, prompt_ids: TokenIds, full_ids: TokenIds) -> TokenIds:
        """Ids of the reply tokenised alone, for a boundary that a token would span.

        Some tokenizers put a space before the first text, but not after an added token. So both ways are tried, and the one that decodes
        to the rendering is used.
        """
        self._note("tokens would span the boundary between prompt and reply: such replies are tokenised alone")
        alone = self._ids(reply_text)
        marker = self._token(self.end_of_turn_id)
        candidates = [alone, self._ids(marker + reply_text)[len(self._ids(marker)) :]]
        wanted = self._text(full_ids, skip_special_tokens=False)
        return next((ids for ids in candidates if self._text(prompt_ids + ids, skip_special_tokens=False) == wanted), alone)

    def _up_to_end_of_turn(self, ids: TokenIds) -> TokenIds:
        """The reply up to the end of its turn: the last such token, since a template may also end the reasoning with one."""
        end = self.end_of_turn_id
        if not self._template_ends_turns or end not in ids:
            return (*ids, end)
        return ids[: len(ids) - ids[::-1].index(end)]

    # --- probes: properties of this template, determined once ---

    def _probe_end_of_turn(self) -> tuple[int, bool]:
        """(id of the token that ends an assistant turn, whether the template writes it)."""
        try:
            text = self._render_raw([_QUESTION, _ANSWER])
        except TemplateError as error:
            what = f"the chat template cannot render a question and its answer: {_reason(error)}"
            raise UserError(what, where=OPTION, remedy="correct the template") from None
        if _ASKED not in text or _ANSWERED not in text:
            what = "the chat template leaves out the text of a user or assistant turn"
            raise UserError(what, where=OPTION, remedy="correct the template")
        end = self._first_marker(self._ids(text[text.rindex(_ANSWERED) + len(_ANSWERED) :]))
        if end is not None:
            return end, True
        if self.tokenizer.eos_token_id is None:
            what = "the chat template writes no token after a reply and the tokenizer has no end-of-sequence token: replies would never end"
            raise UserError(what, where=OPTION, remedy="give a template that ends assistant turns, or set the tokenizer's eos_token")
        self._note(f"the chat template writes no token after a reply: {self._token(self.tokenizer.eos_token_id)!r} is appended")
        return self.tokenizer.eos_token_id, False

    def _first_marker(self, ids: TokenIds) -> int | None:
        """The first special token, else the first added one that is not blank (some models forget to mark theirs)."""
        added = self.tokenizer.added_tokens_decoder
        special = {*self.tokenizer.all_special_ids, *(token for token, entry in added.items() if entry.special)}
        marked = {token for token, entry in added.items() if entry.content.strip()}
        # A text that a tokenizer cannot encode, a line break for example, ends no turn.
        known = [token for token in ids if token != self.tokenizer.unk_token_id]
        return next((token for kind in (special, marked) for token in known if token in kind), None)

    def _probe_system(self) -> bool:
        """Whether a system turn reaches the rendering; some templates refuse it, some drop it silently."""
        try:
            return _SYSTEM in self._render_raw([Message(role="system", content=_SYSTEM), _QUESTION], True)
        except TemplateError:
            return False

    def _probe_start(self) -> None:
        """Add notices for surprising properties of the ids: a missing start token, a prompt that depends on the date."""
        if "strftime_now" in self.template:
            self._note("the chat template writes today's date into prompts: the rows keep the date on which they were prepared")
        bos = self.tokenizer.bos_token_id
        usual = self.tokenizer(_ASKED, verbose=False)["input_ids"]
        if bos is not None and usual[:1] == [bos] and bos not in self.prompt_ids([_QUESTION], where=OPTION):
            self._note(f"the tokenizer starts texts with {self._token(bos)!r}, but the chat template does not write it: prompts have none")

    def _note(self, notice: str) -> None:
        if notice not in self.notices:
            self.notices.append(notice)


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        several = isinstance(tokenizer.chat_template, dict) and tokenizer.chat_template
        what = _reason(error) if several else "the model has no chat template, so nothing says how turns are written"
        raise UserError(what, where=OPTION, remedy=f"set {OPTION} to a Jinja file; a fine-tuned sibling of the model has one") from None


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{text} (template line {error.lineno})" if isinstance(error, TemplateSyntaxError) else text
