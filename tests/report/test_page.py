"""The page's skeleton: what goes into it is escaped, visible and inside a strict policy."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser

import pytest
from markupsafe import Markup

from sparring.report.page import TEMPLATES, PageSection, code, packed_data, paragraph, render_page, table, text_of
from sparring.report.untrusted import CUT_AT, shortened, visible

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</script></style></textarea><b>",
    "{{ 7 * 7 }}{% raw %}",
    "<!--",
]


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and the text between."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    @property
    def structure(self) -> list[tuple[str, list[str]]]:
        return [(tag, sorted(attributes)) for tag, attributes in self.tags]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def policy_of(page: str) -> str:
    (found,) = [attributes["content"] for _, attributes in Tags(page).tags if attributes.get("http-equiv") == "Content-Security-Policy"]
    return found


def page_of(text: str) -> str:
    body = Markup("").join([paragraph(text), table(text, [text, text], [[text, text]]), code(text, text)])
    return render_page(text, paragraph(text, "verdict"), [PageSection("a", text, body, text)], "let a = 1;", text)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_text_everywhere(text: str) -> None:
    parsed, harmless = Tags(page_of(text)), Tags(page_of("harmless"))
    assert parsed.structure == harmless.structure
    assert parsed.text.count(text) == harmless.text.count("harmless") >= 8


def test_the_policy_names_the_pages_own_script_alone() -> None:
    page = page_of("text")
    policy = policy_of(page)
    assert policy.startswith("default-src 'none';") and "http" not in policy
    (text,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}';" in policy
    assert "script-src 'none'" in policy_of(render_page("t", Markup(""), []))


def test_nothing_in_a_page_needs_an_exception_from_the_policy() -> None:
    for tag, attributes in Tags(page_of("text")).tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src")], (tag, attributes)
        assert not [value for value in attributes.values() if value and value.startswith("http")], (tag, attributes)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a[U+202E]b"),
        ("\u2066x\u2069\u200f", "[U+2066]x[U+2069][U+200F]"),
        ("\x00\x1b[31m\x7f", "[U+0000][U+001B][31m[U+007F]"),
        ("lone \ud800 half", "lone [U+D800] half"),
        ("a\r\nb\tc\n", "a\nb\tc\n"),
        ("a\rb", "a[U+000D]b"),
        ("שלום naïve 👩‍💻 नमस्ते", "שלום naïve 👩‍💻 नमस्ते"),
    ],
)
def test_unseen_characters_are_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert shown.replace("\n", "") in Tags(paragraph(text)).text.replace("\n", "")
    paragraph(text).encode()


def test_a_long_text_is_cut_with_a_note() -> None:
    text = "word " * 200_000
    cut = shortened(text)
    assert len(cut) < CUT_AT + 100 and cut.endswith("[cut by the report: 20,000 of 1,000,000 characters]")
    assert shortened("x" * CUT_AT) == "x" * CUT_AT


@pytest.mark.parametrize("text", [*HOSTILE, "\u2028 </SCRIPT >"])
def test_packed_data_is_plain_letters_and_comes_back(text: str) -> None:
    packed = packed_data("a", {"text": text})
    inner = re.fullmatch(r'<script type="application/octet-stream" id="a">([A-Za-z0-9+/=]*)</script>', packed)[1]
    assert json.loads(zlib.decompress(base64.b64decode(inner))) == {"text": text}


def test_every_script_can_stand_in_a_page() -> None:
    for path in TEMPLATES.glob("*.js"):
        assert render_page("t", Markup(""), [], text_of(path.name))
