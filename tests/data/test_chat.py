"""Rendering and tokenisation, token for token against the tokenizer's own rendering of the whole conversation."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sparring.data.chat import Chat, load_template
from sparring.data.records import Conversation, Message
from sparring.errors import UserError

TEXT = [
    "What is seven times eight? Seven times eight is fifty six.\n\nassistant user system model\n",
    "You are a helpful assistant. [INST] hello there [/INST] hello to you too\n\n\n",
    "<|user|> <|assistant|> <|system|> USER: a question ASSISTANT: an answer Q: x A: y",
] * 3
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL += ["<start_of_turn>", "<end_of_turn>", "<|end|>"]
ENDS = {"chatml": "<|im_end|>", "zephyr": "</s>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}
NO_SYSTEM = ("gemma", "mistral")
STARTS_WITH_BOS = ("llama3", "gemma", "mistral")


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE that cuts words as GPT-2 does: of two line breaks before a word, the second is a piece of its own."""
    return _wrap(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())


@cache
def llama_like() -> PreTrainedTokenizerFast:
    """Byte-level BPE that, like Llama 3's, keeps line breaks together and puts <s> in front of any text of its own accord."""
    words = pre_tokenizers.Split(Regex(r"\s*\n+| ?\w+| ?[^\s\w]+|\s+"), "isolated")
    pieces = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return _wrap(pieces, decoders.ByteLevel(), adds_bos=True)


@cache
def metaspace() -> PreTrainedTokenizerFast:
    """Like SentencePiece: a text that does not follow an added token begins with a space of the tokenizer's making."""
    return _wrap(pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace(prepend_scheme="first"))


def _wrap(pre_tokenizer, decoder, special=tuple(SPECIAL), adds_bos=False, **options) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    alphabet = pre_tokenizers.ByteLevel.alphabet() if isinstance(decoder, decoders.ByteLevel) else []
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    if adds_bos:
        start = ("<s>", tokenizer.token_to_id("<s>"))
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[start])
    names = {"bos_token": "<s>", "eos_token": "</s>", **options}
    # As in SmolLM2, the pad token is the end of the turn: nothing may rely on it.
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=names["eos_token"], **names)


def chat_in_the_manner_of(name: str) -> Chat:
    return Chat(llama_like() if name in STARTS_WITH_BOS else byte_level(), template(name))


def template(name: str) -> str:
    return load_template(Path(__file__).parent / f"{name}.jinja")


def turns(*pairs: str) -> tuple[Message, ...]:
    """`turns("u: hello", "a: hi")`, roles by their first letter."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return tuple(Message(role=roles[pair[0]], content=pair[3:]) for pair in pairs)


def conversation(*pairs: str) -> Conversation:
    *prompt, reply = turns(*pairs)
    return Conversation(tuple(prompt), reply["content"])


def own_ids(chat: Chat, messages: tuple[Message, ...], **options) -> tuple[int, ...]:
    """The reference: what the tokenizer itself makes of these turns."""
    encoded = chat.tokenizer.apply_chat_template([dict(m) for m in messages], chat_template=chat.template, tokenize=True, **options)
    return tuple(encoded["input_ids"])


CONVERSATIONS = [
    ("u: What is 7 times 8?", "a: 56"),
    ("u:   blanks around  ", "a: an answer\nwith two lines "),
    ("u: hello", "a: hi", "u: and 'then'?", "a: naïve café 👍🏽 漢字 <b>&amp;</b>"),
    ("u: {{ 7 * 7 }} {% raw %}", "a: [INST] is text here [/INST]"),
]


@pytest.mark.parametrize("pairs", CONVERSATIONS, ids=["short", "blanks", "turns", "jinja"])
@pytest.mark.parametrize("name", ENDS)
def test_encode_is_the_tokenizers_own_rendering(name, pairs):
    chat = chat_in_the_manner_of(name)
    prompt_ids, reply_ids = chat.encode(conversation(*pairs))
    whole = own_ids(chat, turns(*pairs))
    assert whole[: len(prompt_ids + reply_ids)] == prompt_ids + reply_ids
    assert chat.tokenizer.decode(whole[len(prompt_ids + reply_ids) :]).strip() == ""
    assert chat.tokenizer.convert_ids_to_tokens(reply_ids[-1]) == ENDS[name]
    assert chat.decode(reply_ids).strip() == pairs[-1][3:].strip()
    assert chat.notices == []


@pytest.mark.parametrize("name", ENDS)
def test_prompt_is_what_is_sampled_under(name):
    chat = chat_in_the_manner_of(name)
    messages = turns("u: hello", "a: hi", "u: more")
    expected = own_ids(chat, messages, add_generation_prompt=True)
    assert chat.prompt_ids(messages) == expected
    assert chat.encode(Conversation(messages, "yes"))[0] == expected
    assert expected.count(chat.tokenizer.bos_token_id) == (name in STARTS_WITH_BOS)


@pytest.mark.parametrize("name", [name for name in ENDS if name not in NO_SYSTEM])
def test_system_turn_is_kept(name):
    chat = chat_in_the_manner_of(name)
    prompt_ids, reply_ids = chat.encode(conversation("s: be brief", "u: hello", "a: hi"))
    whole = own_ids(chat, turns("s: be brief", "u: hello", "a: hi"))
    assert whole[: len(prompt_ids + reply_ids)] == prompt_ids + reply_ids
    assert "be brief" in chat.decode(prompt_ids)
    assert chat.notices == []


@pytest.mark.parametrize("name", NO_SYSTEM)
def test_system_turn_opens_the_first_user_turn_where_a_template_has_no_system_role(name):
    chat = chat_in_the_manner_of(name)
    with_system = turns("s: be brief", "u: hello", "a: hi", "u: more")
    folded = turns("u: be brief\n\nhello", "a: hi", "u: more")
    assert chat.prompt_ids(with_system) == chat.prompt_ids(folded)
    assert chat.encode(Conversation(with_system, "ok")) == chat.encode(Conversation(folded, "ok"))
    assert chat.notices == ["the chat template has no system role: system turns are put in front of the first user turn"]


def test_a_system_turn_without_any_user_turn_is_not_lost():
    chat = Chat(byte_level(), template("mistral"))
    assert chat.prompt_ids(turns("s: be brief", "a: hi")) == chat.prompt_ids(turns("u: be brief", "a: hi"))


def test_missing_system_turn_gets_the_templates_default():
    chat = Chat(byte_level(), template("chatml"))
    assert "You are a test." in chat.decode(chat.prompt_ids(turns("u: hello")))
    assert "You are a test." not in chat.decode(chat.prompt_ids(turns("s: other", "u: hello")))


# The prompt ends in a blank here, which most tokenizers join to the next word.
SPACED = (
    "{% for m in messages %}{{ m.role|upper + ': ' + m.content + (eos_token if m.role == 'assistant' else ' ') }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


@pytest.mark.parametrize(
    ("text", "tokenizer", "reply"),
    [
        (template("chatml"), byte_level, "\n\nan answer"),
        (template("llama3"), byte_level, "an answer"),
        (SPACED, byte_level, "an answer"),
        (SPACED, metaspace, "an answer"),
    ],
    ids=["reply begins with line breaks", "prompt ends in line breaks", "space", "sentencepiece"],
)
def test_prompt_keeps_its_ids_where_tokens_would_cross_the_boundary(text, tokenizer, reply):
    chat = Chat(tokenizer(), text)
    messages = (*turns("u: a question"), Message(role="assistant", content=reply))
    prompt = own_ids(chat, messages[:1], add_generation_prompt=True)
    whole = own_ids(chat, messages)
    assert whole[: len(prompt)] != prompt, "this case no longer crosses the boundary"
    prompt_ids, reply_ids = chat.encode(Conversation(messages[:1], reply))
    assert prompt_ids == prompt
    assert reply_ids[-1] == chat.end_of_turn_id
    read = chat.tokenizer.decode(prompt_ids + reply_ids)
    assert chat.tokenizer.decode(whole).startswith(read) and reply in read
    assert chat.notices == ["tokens would span the boundary between prompt and reply: such replies are tokenised alone"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(ENDS)), st.lists(st.text(max_size=20), min_size=1, max_size=3), st.text(min_size=1, max_size=20))
def test_any_text_keeps_the_prompt_and_reads_like_the_rendering(name, contents, reply):
    chat = chat_in_the_manner_of(name)
    # As many assistant turns as fit between the user turns.
    both = [Message(role=role, content=text) for text in contents for role in ("user", "assistant")]
    prompt = tuple(both[:-1])
    prompt_ids, reply_ids = chat.encode(Conversation(prompt, reply))
    whole = own_ids(chat, (*prompt, Message(role="assistant", content=reply)))
    assert prompt_ids == own_ids(chat, prompt, add_generation_prompt=True)
    assert reply_ids[-1] == chat.end_of_turn_id
    assert chat.tokenizer.decode(whole).removeprefix(chat.tokenizer.decode(prompt_ids + reply_ids)).strip() == ""


# --- the end of a turn ---


def test_stop_ids_join_template_tokenizer_and_generation_config():
    tokenizer = llama_like()
    chat = Chat(tokenizer, template("llama3"), end_of_turn_ids=[tokenizer.convert_tokens_to_ids("<|end|>")])
    assert chat.end_of_turn_id == tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert chat.stop_ids == {tokenizer.convert_tokens_to_ids(token) for token in ("<|eot_id|>", "</s>", "<|end|>")}


def test_end_of_turn_is_the_first_token_after_the_reply_not_the_last():
    text = "{% for m in messages %}{{ m.role + '\n' + m.content + '<|end|>\n' }}{% endfor %}"
    text += "{% if add_generation_prompt %}{{ 'assistant\n' }}{% else %}{{ eos_token }}{% endif %}"
    chat = Chat(byte_level(), text)
    prompt_ids, reply_ids = chat.encode(conversation("u: hello", "a: hi"))
    assert chat.tokenizer.decode(prompt_ids + reply_ids) == "user\nhello<|end|>\nassistant\nhi<|end|>"


def test_template_without_end_of_turn_gets_eos_and_says_so():
    text = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    chat = Chat(byte_level(), text)
    prompt_ids, reply_ids = chat.encode(conversation("u: hello", "a: hi"))
    assert prompt_ids + reply_ids == (*own_ids(chat, turns("u: hello", "a: hi")), chat.tokenizer.eos_token_id)
    assert "the chat template writes no token after a reply: '</s>' is appended" in chat.notices


def test_reply_that_spells_the_end_of_turn_is_refused():
    chat = Chat(byte_level(), template("chatml"))
    with pytest.raises(UserError, match=r"a turn of the assistant contains '<\|im_end\|>'"):
        chat.encode(conversation("u: what ends a turn?", "a: this: <|im_end|> and no other"))


def test_eos_that_is_appended_is_not_searched_in_the_reply():
    text = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chat = Chat(byte_level(), text)
    _, reply_ids = chat.encode(conversation("u: q", "a: the token </s> is text here"))
    assert chat.tokenizer.decode(reply_ids) == "the token </s> is text here</s>"


def test_unmarked_added_token_ends_a_turn_and_a_blank_one_does_not():
    tokenizer = _wrap(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(), special=("<s>", "</s>"))
    tokenizer.add_tokens(["\n\n", "<|im_end|>"])
    text = "{% for m in messages %}{{ m.content + '\n\n<|im_end|>' }}{% endfor %}"
    chat = Chat(tokenizer, text)
    assert chat.end_of_turn_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_unknown_token_does_not_end_a_turn():
    vocabulary = {word: n for n, word in enumerate(["[UNK]", "sparring", "probe", "question", "answer", "[END]"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[END]")
    chat = Chat(wrapped, "{% for m in messages %}{{ m.content + ' over ' }}{% endfor %}")
    assert chat.end_of_turn_id == 5 and chat.stop_ids == {5}


def test_no_end_of_turn_at_all_is_refused():
    tokenizer = _wrap(pre_tokenizers.ByteLevel(), decoders.ByteLevel(), special=(), bos_token=None, eos_token=None)
    with pytest.raises(UserError, match=r"replies would never end"):
        Chat(tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}")


# --- what a template can do wrong ---


def test_template_of_the_tokenizer_is_used_when_none_is_given():
    tokenizer = _wrap(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())
    tokenizer.chat_template = {"default": template("zephyr"), "tool_use": template("gemma")}
    assert Chat(tokenizer).template == template("zephyr")
    tokenizer.chat_template = {"other": template("zephyr")}
    with pytest.raises(UserError, match=r"multiple chat templates with no default"):
        Chat(tokenizer)


def test_no_template_is_refused_with_the_remedy():
    with pytest.raises(UserError, match=r"model.chat_template: the model has no chat template") as caught:
        Chat(byte_level())
    assert "set model.chat_template to a Jinja file" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for m in messages %}", r"Unexpected end of template.*\(template line 1\)"),
        ("{{ messages[0].nothing.more }}", "has no attribute 'nothing'"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ raise_exception('only tools here') }}", "only tools here"),
        ("{{ messages.__class__.__mro__ }}", "unsafe|leaves out"),
        ("{{ 'constant' }}", "leaves out the text of a user or assistant turn"),
    ],
)
def test_broken_template_is_a_user_error(text, message):
    with pytest.raises(UserError, match=message) as caught:
        Chat(byte_level(), text)
    assert caught.value.where == "model.chat_template"


def test_refused_conversation_names_row_and_turns():
    chat = Chat(byte_level(), template("gemma"))
    with pytest.raises(UserError, match=r"rows.jsonl, line 7: .*Roles must alternate.*roles of its turns: user, user"):
        chat.encode(conversation("u: one", "u: two", "a: three"), where="rows.jsonl, line 7")
    with pytest.raises(UserError, match=r"rows.jsonl, line 8: "):
        chat.prompt_ids(turns("a: hi"), where="rows.jsonl, line 8")


def test_template_that_changes_the_prompt_is_explained():
    text = "{% for m in messages %}{{ m.role + m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
    with pytest.raises(UserError, match=r"sampled under one prefix") as caught:
        Chat(byte_level(), text).encode(conversation("u: q", "a: r"))
    assert "q</s><think>' without the reply" in caught.value.what
    assert "model.chat_template" in caught.value.remedy


def test_notices_tell_of_missing_bos_and_of_dates():
    chat = Chat(llama_like(), template("llama3").replace("{{- bos_token }}", "{{- strftime_now('%Y') }}"))
    assert any("'<s>'" in notice for notice in chat.notices) and any("date" in notice for notice in chat.notices)


def test_templates_are_sandboxed():
    text = "{{ messages.append(messages[0]) }}" + template("zephyr")
    with pytest.raises(UserError, match=r"unsafe"):
        Chat(byte_level(), text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "cannot read the file: Is a directory"),
        (lambda path: path.write_bytes(b"ab\xff"), "not UTF-8: byte 0xff at offset 2"),
        (lambda path: path.write_text(" \n"), "the file is blank"),
    ],
    ids=["missing", "folder", "encoding", "blank"],
)
def test_unreadable_template_file(tmp_path, make, message):
    path = tmp_path / "chat.jinja"
    make(path)
    with pytest.raises(UserError, match=message) as caught:
        load_template(path)
    assert caught.value.where == f"model.chat_template: {path}"
