"""Templates that do not end, grow without end or count without end: refused within the limits, and the next one is rendered."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError, TemplateRuntimeError, TemplateSyntaxError

from sparring.data import rendering
from sparring.data.chat import Chat
from sparring.data.rendering import MOST_WRITTEN, Renderer
from sparring.errors import UserError
from sparring.policy.tiny import CHATML, byte_tokenizer

TURNS = [{"role": "user", "content": "why"}]
TIME, MEMORY, LENGTH = r"does not finish within 1 s", r"needs more than 64 MiB of memory", r"it writes [0-9,]+ characters for a"
BOMBS = [
    ("{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}", TIME),
    ("{{ 9 ** (9 ** 9) }}", f"{TIME}|{MEMORY}"),
    ("{% set n = namespace(x=3) %}{% for a in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}", f"{TIME}|{MEMORY}"),
    ("{% set n = namespace(s='a') %}{% for a in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}", MEMORY),
    ("{{ '%999999999d' % 1 }}", MEMORY),
    ("{{ 'a' * 2000000000 }}", MEMORY),
    ("{{ 'a' * 99999999999999 }}", MEMORY),
    ("{{ '{:>999999999}'.format(1) }}", MEMORY),
    ("{{ 'a' | center(999999999) }}", MEMORY),
    ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "RecursionError"),
    (f"{{{{ 'a' * {MOST_WRITTEN + 1000} }}}}", LENGTH),
]


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MOST_SECONDS", 1.0)
    monkeypatch.setattr(rendering, "MOST_BYTES", 2**26)


def renderer(template: str) -> Renderer:
    tokenizer = byte_tokenizer(template)
    return Renderer(lambda messages, **options: tokenizer.apply_chat_template(messages, tokenize=False, **options))


@pytest.mark.parametrize(("bomb", "said"), BOMBS)
def test_a_template_without_bounds(bomb: str, said: str, small_limits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if TIME not in said:  # on a busy machine a second would end it first
        monkeypatch.setattr(rendering, "MOST_SECONDS", 30.0)
    with pytest.raises(TemplateRuntimeError, match=said):
        renderer(bomb)(TURNS)


def test_the_next_conversation_is_rendered(small_limits: None) -> None:
    render = renderer("{% if messages|length > 1 %}" + BOMBS[0][0] + "{% endif %}{{ messages[0].content }}")
    for _ in range(2):
        assert render(TURNS) == "why"
        with pytest.raises(TemplateRuntimeError, match=TIME):
            render(TURNS * 2)


@pytest.mark.parametrize(("bomb", "said"), BOMBS[:5])
def test_a_person_reads_which_template_it_was(bomb: str, said: str, small_limits: None) -> None:
    with pytest.raises(UserError, match=said) as error:
        Chat(byte_tokenizer(CHATML + bomb))
    assert "model.chat_template" in str(error.value) and "correct the template" in str(error.value)


def test_a_bomb_for_some_rows_alone(small_limits: None) -> None:
    chat = Chat(byte_tokenizer(CHATML + "{% if 'boom' in messages[-1].content %}{{ 'a' * 2000000000 }}{% endif %}"))
    with pytest.raises(UserError, match=MEMORY) as error:
        chat.prompt_ids([{"role": "user", "content": "boom"}], where="rows.jsonl, line 7")
    assert str(error.value).startswith("rows.jsonl, line 7: ")
    assert chat.prompt_ids([{"role": "user", "content": "why"}])


@given(
    st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()}), min_size=1, max_size=3),
    st.booleans(),
)
def test_it_renders_what_the_tokenizer_renders(messages: list[dict[str, str]], generation: bool) -> None:
    expected = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
    assert RENDER(messages, add_generation_prompt=generation) == expected


TOKENIZER = byte_tokenizer()
RENDER = renderer(CHATML)


def test_a_conversation_of_megabytes_is_not_the_templates_fault() -> None:
    text = "\ud800 long " * 700_000
    assert text in RENDER([{"role": "user", "content": text}])


@pytest.mark.parametrize("template", ["{{ raise_exception('no tools') }}", "{{ 1 / 0 }}", "{{ messages[0].x.y }}", "{% if %}"])
def test_errors_arrive_with_their_words_and_line(template: str) -> None:
    with pytest.raises(TemplateError) as here:
        try:
            byte_tokenizer(template).apply_chat_template(TURNS, tokenize=False)
        except ZeroDivisionError as error:
            raise TemplateError(f"ZeroDivisionError: {error}") from None
    with pytest.raises(TemplateError) as there:
        renderer(template)(TURNS)
    assert str(there.value) == str(here.value)
    assert getattr(there.value, "lineno", None) == getattr(here.value, "lineno", None)
    assert isinstance(there.value, TemplateSyntaxError) == isinstance(here.value, TemplateSyntaxError)


def test_a_process_that_was_killed_is_replaced() -> None:
    render = renderer("{{ messages[0].content }}")
    pid = int(render([{"role": "user", "content": "1"}])) and _pid(render)
    os.kill(pid, 9)
    with pytest.raises(TemplateRuntimeError, match="its process was killed"):
        render(TURNS)
    assert render(TURNS) == "why"


def _pid(render: Renderer) -> int:
    assert render._process is not None
    peeked = render._process.peek()
    assert peeked is not None
    return peeked[2][0]


LEFT_BEHIND = """
import fcntl, os, signal, sys
from sparring.data.rendering import Renderer
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
render = Renderer(lambda messages: (messages[0] == "hang" and __import__("time").sleep(60)) or "done")
render(["go"])
print(render._process.peek()[2][0], flush=True)
if sys.argv[2] == "hang":
    __import__("threading").Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    render(["hang"])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("at", ["rest", "hang"])
def test_it_holds_no_lock_of_a_run_that_was_killed(at: str, tmp_path: Path) -> None:
    """And ends with it: at once where it rests, by its own alarm where it hangs."""
    lock = tmp_path / "lock"
    done = subprocess.run([sys.executable, "-c", LEFT_BEHIND, str(lock), at], capture_output=True, text=True, timeout=120)
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where somebody has it
    if at == "rest":
        end = time.monotonic() + 30
        while _is_alive(int(done.stdout)):
            assert time.monotonic() < end
            time.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_options_and_content_go_through_json_unchanged() -> None:
    kept = Renderer(lambda messages, **options: json.dumps([messages, options]))
    value = {"role": "user", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1.5, "y": [True, None]}}}]}
    assert json.loads(kept([value], enable_thinking=False, add_generation_prompt=True)) == [
        [value],
        {"enable_thinking": False, "add_generation_prompt": True},
    ]
