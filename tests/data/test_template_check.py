"""The chat template gives back what it was given: every turn's text, the reply's, and nothing between the prefix and the reply."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_chat import SPECIAL, Chat, Conversation, Message, _wrap, conversation, decoders, own_ids, pre_tokenizers, template, turns

from sparring.config import ModelSection
from sparring.data.prepare import chat_fingerprint
from sparring.data.template_check import closing_of, lost_turn, opening_of, squeezed, with_kwargs
from sparring.errors import UserError

NO_THINKING = {"enable_thinking": False}
THOUGHT = "<think>\nsome thought\n</think>\n\n"
# template -> its variables, with which it takes replies without any thinking
PLAIN: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("chatml", "zephyr", "llama3", "gemma", "gemma3", "mistral", "phi3", "phi4", "r1", "smollm3")},
    "qwen3": NO_THINKING,
}


@cache
def tokenizer(special: tuple[str, ...] = ("<|user|>", "<|assistant|>", "<|system|>", "<|im_sep|>")):
    made = _wrap(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(), special=(*SPECIAL, *special))
    made.add_tokens(["<think>", "</think>"])
    return made


@cache
def chat(name: str, **kwargs: Any) -> Chat:
    return Chat(tokenizer(), template(name), kwargs=kwargs)


def decoded(found: Chat, said: Conversation) -> tuple[str, str]:
    return tuple(found.tokenizer.decode(ids) for ids in found.encode(said))  # type: ignore[return-value]


def refused(found: Chat, said: Conversation, *words: str) -> UserError:
    with pytest.raises(UserError) as caught:
        found.encode(said, where="rows.jsonl, line 3")
    assert caught.value.where == "rows.jsonl, line 3" and "model.chat_template" in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    return caught.value


# --- what is taken is given back token for token ---

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=12)


@given(st.sampled_from(sorted(PLAIN)), st.lists(TEXT, min_size=1, max_size=3), st.booleans(), TEXT.filter(str.strip))
def test_every_text_is_in_the_ids_and_nothing_stands_before_the_reply(name, texts, system, reply) -> None:
    found = chat(name, **PLAIN[name])
    both = [Message(role=role, content=f"<{text}>") for text in texts for role in ("user", "assistant")]
    prompt = ([Message(role="system", content="<be brief>")] if system else []) + both[:-1]
    prompt_ids, reply_ids = found.encode(Conversation(tuple(prompt), reply))
    text, written = found.tokenizer.decode(prompt_ids), found.tokenizer.decode(reply_ids[:-1])
    assert lost_turn(text, prompt) is None
    assert squeezed(written) == squeezed(reply)
    assert reply_ids[-1] == found.end_of_turn_id
    assert found.row_prompt_ids(prompt) == found.prompt_ids(prompt) == prompt_ids


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_the_ids_are_those_of_the_templates_own_rendering(name: str) -> None:
    found = chat(name, **PLAIN[name])
    messages = turns("u: a question", "a: an answer", "u: another", "a: the reply")
    prompt_ids, _ = found.encode(Conversation(messages[:-1], "the reply"))
    assert prompt_ids == own_ids(found, messages[:-1], add_generation_prompt=True)
    if name != "qwen3":  # of which the past reply has no block in the prompt, and the last has
        whole = found.tokenizer.decode(own_ids(found, messages))
        assert whole.startswith("".join(decoded(found, Conversation(messages[:-1], "the reply"))).removesuffix("</s>"))


# --- thinking ---


def test_a_template_that_cuts_thinking_from_replies_is_refused() -> None:
    refused(chat("r1"), conversation("u: q", f"a: {THOUGHT}an answer"), "changes the reply of the assistant", "some thought", "an answer")
    assert decoded(chat("r1"), conversation("u: q", "a: an answer"))[1] == "an answer</s>"


def test_an_opened_thinking_that_a_past_turn_does_not_have_is_another_prefix() -> None:
    refused(chat("r1-open"), conversation("u: q", f"a: {THOUGHT}an answer"), "sampled under one prefix", "<think>")


def test_an_empty_block_before_the_human_reply_is_refused_and_the_remedy_works() -> None:
    error = refused(chat("qwen3"), conversation("u: q", "a: an answer"), r"'<think>\n\n</think>\n\n'", "'an answer'", "distinguish the two")
    assert "model.chat_template_kwargs: {enable_thinking: false}" in str(error)
    prompt, reply = decoded(chat("qwen3", **NO_THINKING), conversation("u: q", "a: an answer"))
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n") and reply == "an answer<|im_end|>"


def test_thinking_that_the_template_writes_is_part_of_the_reply() -> None:
    inline = decoded(chat("qwen3"), conversation("u: q", f"a: {THOUGHT}an answer"))
    apart = decoded(chat("qwen3"), Conversation(turns("u: q"), "an answer", reasoning="some thought"))
    assert inline == apart == ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", f"{THOUGHT}an answer<|im_end|>")
    refused(chat("qwen3", **NO_THINKING), conversation("u: q", f"a: {THOUGHT}an answer"), "sampled under one prefix")


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_reaches_the_key_that_the_template_reads(key: str) -> None:
    found = Chat(tokenizer(), template("qwen3").replace("reasoning_content", key))
    assert decoded(found, Conversation(turns("u: q"), "an answer", reasoning="some thought"))[1] == f"{THOUGHT}an answer<|im_end|>"


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "phi4"])
def test_reasoning_that_a_template_has_no_use_for_is_refused_in_any_turn(name: str) -> None:
    past = (*turns("u: q"), Message(role="assistant", content="a", reasoning_content="some thought"), *turns("u: q2"))
    for said in (Conversation(turns("u: q"), "an answer", reasoning="some thought"), Conversation(past, "an answer")):
        refused(chat(name), said, "does not write the assistant's reasoning ('some thought')", "data.reasoning: drop")


def test_thinking_cut_from_earlier_turns_is_announced() -> None:
    for name, reply in (("qwen3", f"{THOUGHT}ok"), ("r1", "ok")):
        found = Chat(tokenizer(), template(name))
        prompt = decoded(found, conversation("u: q", f"a: {THOUGHT}an answer", "u: q2", f"a: {reply}"))[0]
        assert "some thought" not in prompt and "an answer" in prompt
        assert found.notices[-1] == "the chat template leaves the assistant's reasoning in earlier turns out of all prompts"


def test_a_flag_that_the_template_takes_out_of_the_text_is_refused() -> None:
    refused(chat("smollm3"), conversation("s: be brief /no_think now", "u: q", "a: r"), "turn of the system", "/no_think now")


# --- what stands behind a reply ---


@pytest.mark.parametrize("name", [name for name in PLAIN if "content" in template(name)])
@pytest.mark.parametrize("suffix", [" Done.", "</answer>", "1"])
def test_words_between_a_reply_and_the_end_of_its_turn_are_refused(name: str, suffix: str) -> None:
    found, said = chat(name, **PLAIN[name]), conversation("u: q", "a: some reply")
    prompt, _ = found.encode(said)
    changed = Chat(tokenizer(), template(name), kwargs=PLAIN[name])
    render = changed._renderer
    changed._renderer = lambda messages, **options: render(messages, **options).replace("some reply", f"some reply{suffix}")  # type: ignore[assignment]
    assert changed.prompt_ids(turns("u: q")) == prompt
    refused(changed, said, f"writes {suffix.strip()!r} between the human reply 'some reply' and the end of its turn", "distinguish the two")


@given(TEXT.filter(str.strip), TEXT.filter(str.strip))
def test_what_stands_behind_a_reply_is_found(reply: str, closing: str) -> None:
    said = Message(role="assistant", content=reply)
    assert closing_of(f"{reply}<|end|>\n", said, "<|end|>") == closing_of(f"{reply}\n", said, None) == ""
    assert squeezed(closing).endswith(closing_of(f"{reply} {closing}<|end|>\n", said, "<|end|>"))
    if squeezed(reply) not in squeezed(reply + closing)[1:]:
        assert closing_of(f"{reply} {closing}<|end|>\n", said, "<|end|>") == squeezed(closing)


# --- headers and roles ---


def test_a_template_that_ignores_add_generation_prompt_is_refused() -> None:
    text = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    refused(Chat(tokenizer(), text), conversation("u: q", "a: r"), r"'<|im_start|>assistant\n'", "'r'", "add_generation_prompt")


@pytest.mark.parametrize("content", ["the result", "a", "q", ""])
def test_a_role_without_a_branch_is_named_however_short_its_text(content: str) -> None:
    prompt = (*turns("u: q", "a: calling"), Message(role="tool", content=content))
    error = refused(chat("phi3"), Conversation(prompt, "r"), "a turn of the tool", repr(content), "writes the tool's turns")
    with pytest.raises(UserError) as caught:
        chat("phi3").row_prompt_ids(prompt, where="rows.jsonl, line 3")
    assert str(caught.value) == str(error)


def test_a_role_that_is_written_as_json_is_given_back() -> None:
    text = template("chatml").replace("{{ m.content }}", "{{ m.content | tojson if m.role == 'tool' else m.content }}")
    prompt = (*turns("u: q"), Message(role="tool", content='{"x": "a\nb"}'))
    assert '\\"x\\"' in decoded(Chat(tokenizer(), text), Conversation(prompt, "r"))[0]


@pytest.mark.parametrize(
    ("change", "role"),
    [
        ("{{ m.content[:23] }}", "user"),
        ("{{ m.content | replace('long', '') }}", "user"),
        ("{{ m.content | replace('&', '&amp;') }}", "user"),
        ("{{ m.content if m.role != 'assistant' or loop.last else '' }}", "assistant"),
    ],
)
def test_a_template_that_changes_a_turn_is_refused(change: str, role: str) -> None:
    said = conversation("u: a long question, longer than most, & more", "a: past answer", "u: q", "a: r")
    refused(Chat(tokenizer(), template("chatml").replace("{{ m.content }}", change)), said, f"a turn of the {role}")


def test_blanks_may_change() -> None:
    text = template("chatml").replace("{{ m.content }}", "{{ m.content.split() | join(' ') }}")
    assert decoded(Chat(tokenizer(), text), conversation("u: two\n lines", "a: also\n two"))[1] == "also two<|im_end|>"


# --- rows in template form ---

WRAPPED = {"chatml": "<|im_start|>user\nhello<|im_end|>", "llama3": "<|start_header_id|>user", "gemma": "<start_of_turn>user\nhello"}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_text_with_the_templates_marks_is_refused(name: str, place: int) -> None:
    pairs = ["u: one", "a: two", "u: three", "a: four"]
    pairs[place] = f"{pairs[place][:3]}see {WRAPPED[name]}"
    role = ("user", "assistant")[place % 2]
    error = refused(chat(name), conversation(*pairs), f"a turn of the {role} contains", "without the tokens of a template")
    if place < 3:
        with pytest.raises(UserError, match=re.escape(error.what)):
            chat(name).row_prompt_ids(turns(*pairs[:3]))
    assert chat(name).prompt_ids(turns("u: what a model said may spell anything", f"a: {WRAPPED[name]}", "u: go on"))


def test_marks_of_thinking_and_of_other_templates_are_text() -> None:
    for name, text in (("chatml", "<start_of_turn>user </s>"), ("mistral", "<|im_start|>"), ("qwen3", f"{THOUGHT}a"), ("zephyr", "[INST]")):
        assert chat(name).encode(conversation("u: q", f"a: {text}"))


# --- the functions by themselves ---


@given(st.lists(TEXT, max_size=4), st.integers(0, 3))
def test_a_missing_turn_is_found_and_no_other(texts: list[str], missing: int) -> None:
    messages = [Message(role="user", content=f"<{n}{text}>") for n, text in enumerate(texts)]
    kept = [turn for n, turn in enumerate(messages) if n != missing]
    lost = lost_turn("".join(f"[{turn['content']}]" for turn in kept), messages)
    assert (lost and lost.place) == (missing if missing < len(messages) else None)


@given(TEXT, TEXT.filter(str.strip), TEXT)
def test_what_stands_before_a_reply_is_found(opening: str, reply: str, closing: str) -> None:
    written = f"{opening}<{reply}>{closing}"
    found = opening_of(written, Message(role="assistant", content=f"<{reply}>"))
    assert squeezed(found or "") == squeezed(opening)


# --- variables of the template ---

SCALAR = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9).filter(lambda text: text.isprintable() or "\n" in text)
)
SHOWING = "{{ x | tojson }}{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}"


@given(SCALAR)
def test_any_scalar_arrives_as_it_was_given(value: Any) -> None:
    import json

    model = ModelSection(path="x", chat_template_kwargs={"x": value})
    found = Chat(tokenizer(), SHOWING, kwargs=model.chat_template_kwargs)
    text = tokenizer().apply_chat_template([{"role": "user", "content": "q"}], chat_template=found.template, tokenize=False)
    assert json.loads(text.removesuffix("q<|im_end|>")) == value


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_variables_change_nothing_else(name: str) -> None:
    messages = [dict(turn) for turn in turns("u: a", "a: b", "u: c")]
    text = "  {%- if unused_name %}{% endif %}\n" + template(name)
    plain, given_one = (tokenizer().apply_chat_template(messages, chat_template=one, tokenize=False) for one in (text, _with(text)))
    assert plain == given_one


def _with(text: str) -> str:
    return with_kwargs(text, {"unused_name": 0})


def test_a_caller_may_still_give_the_variable() -> None:
    text = chat("qwen3", **NO_THINKING).template
    shown = tokenizer().apply_chat_template(
        [{"role": "user", "content": "q"}], chat_template=text, tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    assert shown.endswith("<|im_start|>assistant\n")


def test_a_variable_that_the_template_does_not_mention_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"model.chat_template_kwargs: .*does not mention 'enable_thinkin'.*\n  -> did you mean enable_thinking"
    ):
        Chat(tokenizer(), template("qwen3"), kwargs={"enable_thinkin": False})


@pytest.mark.parametrize("name", ["messages", "tools", "bos_token", "add_generation_prompt", "a b", "X", "", "true", "x}}{{"])
def test_names_that_are_no_variables_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="not a variable"):
        ModelSection(path="x", chat_template_kwargs={name: 1})


@pytest.mark.parametrize("value", [[1], {"a": 1}, float("nan"), "\ud800"])
def test_values_that_are_no_scalars_are_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        ModelSection(path="x", chat_template_kwargs={"x": value})


def test_the_fingerprint_changes_with_the_variables_alone() -> None:
    plain, again, other = (chat_fingerprint(Chat(tokenizer(), template("qwen3"), kwargs=kwargs)) for kwargs in (None, {}, NO_THINKING))
    assert plain == again != other


# --- templates as they are published, where a package carries them ---

REAL = Path(find_spec("trl").origin).parent / "chat_templates" if find_spec("trl") else Path("none")  # type: ignore[union-attr,arg-type]
NAMES = ("qwen2_5", "qwen3", "qwen3_instruct_2507", "llama3", "llama3_1", "llama3_2", "gemma", "gemma3", "phi3", "phi3_5", "cohere", "lfm2")


def published(name: str, **kwargs: Any) -> Chat:
    path = REAL / f"{name}.jinja"
    if not path.exists():
        pytest.skip(f"no package here carries {path.name}")
    text = path.read_text(encoding="utf-8")
    marks = set(re.findall(r"<\|[^|<>' ]+\|>|<\uff5c[^\uff5c<>]+\uff5c>|<(?:start|end)_of_turn>", text))
    return Chat(tokenizer(tuple(sorted(marks - set(SPECIAL)))), text, kwargs=kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_published_templates_give_back_plain_rows(name: str) -> None:
    found = published(name, **(NO_THINKING if name == "qwen3" else {}))
    for pairs in (("u: q one", "a: a one"), ("s: be brief", "u: q one", "a: a one"), ("u: q one", "a: a one", "u: q two", "a: a two")):
        prompt, reply = decoded(found, conversation(*pairs))
        assert lost_turn(prompt, turns(*pairs)[:-1]) is None
        assert reply == pairs[-1][3:] + found.tokenizer.convert_ids_to_tokens(found.end_of_turn_id)
        if "be brief" not in prompt:
            assert found.encode(conversation(*pairs))[0] == own_ids(found, turns(*pairs)[:-1], add_generation_prompt=True)


def test_published_thinking_templates() -> None:
    said = conversation("u: q", "a: an answer")
    refused(published("qwen3"), said, r"'<think>\n\n</think>\n\n'", "enable_thinking: false")
    thinking = Conversation(turns("u: q"), "an answer", reasoning="some thought")
    assert decoded(published("qwen3"), thinking)[1] == f"{THOUGHT}an answer<|im_end|>"
    refused(published("deepseek_r1_distill"), said, "sampled under one prefix", "<think>")
    refused(published("gptoss"), said, "<|channel|>final<|message|>")
