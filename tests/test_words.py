"""Documentation, messages, docstrings and comments use none of the words that docs/style.md replaces."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STYLE = ROOT / "docs" / "style.md"
# Where the words are searched: prose of pages, comments of their blocks; strings and comments of Python files; the whole of other files
PLACES = ("README.md", "CHANGELOG.md", "docs/*.md", "recipes/**/*.md", "recipes/**/*.yaml", "benchmarks/tasks/*.yaml")
PLACES += ("src/sparring/**/*.py", "src/sparring/report/templates/*.*", "benchmarks/**/*.py", "scripts/*.py")
# the table itself, the prompts of a judge, whose words are part of what they measure, and a key of benchmarks/results
NOT_SEARCHED = {"docs/style.md", "src/sparring/evaluation/judge_prompts.py", "benchmarks/step_profile.py"}

# What is no prose of a page: tables that a script writes, fenced blocks except for their comments, code, comments of HTML, link targets
MADE = re.compile(r"^<!-- (?:table|targets): .*?^<!-- end -->$", re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"^( *)```(\w*)\n.*?^ *```$", re.DOTALL | re.MULTILINE)
SHELL_COMMENT = re.compile(r"(?:^|(?<=\s))# .*$", re.MULTILINE)
SPAN = r"`[^`\n]*`"
CODE = re.compile(rf"^ {{4,}}(?![-*\d|])[^\n]*$|{SPAN}|<!--.*?-->|(?<=\])\([^)\s]*\)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Found:
    """An old word in a file; `line` counts from 1."""

    place: str
    line: int
    word: str
    use: str

    def __str__(self) -> str:
        return f"{self.place}:{self.line}: {self.word!r}: use {self.use}"


def old_words(page: str) -> dict[str, str]:
    """Every word of the second table, with what to use instead."""
    table = page.partition("| not | use |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = [re.fullmatch(r"\| (.+) \| (.+) \|", line) for line in table.strip().splitlines()]
    return {word: row[2] for row in rows if row for word in re.findall(r"`([^`]+)`", row[1])}


OLD = old_words(STYLE.read_text(encoding="utf-8"))


def blank(found: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", found[0])


def comments(found: re.Match[str]) -> str:
    """A fenced block with nothing but its comments; what a command prints (`text`) is the program's."""
    if found[2] not in ("bash", "yaml", "python"):
        return blank(found)
    lines = found[0].split("\n")
    kept = [SHELL_COMMENT.search(line) for line in lines]
    return "\n".join(" " * hit.start() + hit[0] if hit else " " * len(line) for line, hit in zip(lines, kept, strict=True))


def prose(page: str) -> str:
    """The page with everything else replaced by blanks, so that lines keep their numbers."""
    return CODE.sub(blank, FENCE.sub(comments, MADE.sub(blank, page)))


def strings(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string and comment, without the code in backticks."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, re.sub(SPAN, blank, node.value)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], re.sub(SPAN, blank, token.string)


def search(text: str, place: str, line: int = 1, words: dict[str, str] = OLD) -> list[Found]:
    found = []
    for word, use in words.items():
        pattern = r"(?<![\w-])" + r"\s+".join(map(re.escape, word.split())) + r"(?![\w-])"
        hits = re.finditer(pattern, text, re.IGNORECASE)
        found += [Found(place, line + text.count("\n", 0, hit.start()), word, use) for hit in hits]
    return found


def search_file(path: Path, place: str) -> list[Found]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return [found for line, value in strings(text) for found in search(value, place, line)]
    return search(prose(text) if path.suffix in (".md", ".html") else text, place)


FILES = [path for pattern in PLACES for path in sorted(ROOT.glob(pattern)) if str(path.relative_to(ROOT)) not in NOT_SEARCHED]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_old_word(path: Path) -> None:
    found = search_file(path, str(path.relative_to(ROOT)))
    assert not found, "\n" + "\n".join(map(str, sorted(found, key=lambda one: one.line)))


def test_the_table_is_read() -> None:
    assert len(OLD) > 50 and OLD["mend"] == "fix" and OLD["lane"] == "job"
    rows = STYLE.read_text(encoding="utf-8").partition("| not | use |")[2].count("\n| `")
    assert rows == len({*OLD.values()}), "a row that no test reads, or two rows for one replacement"


def test_no_replacement_is_an_old_word() -> None:
    assert [found for use in OLD.values() for found in search(re.sub("`[^`]*`", "", use), "style.md")] == []


def test_the_glossary_uses_no_old_word() -> None:
    glossary = STYLE.read_text(encoding="utf-8").partition("## Words that are not used")[0]
    assert search(prose(glossary), "style.md") == []


def test_what_is_found_and_what_is_not(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Fine `draw` here.\n\nMend it, and the run goes\non.\n\n```bash\n# drawn\nsparring draw\n```\n\n```text\nstands\n```\n\n    draw\n"
    )
    assert [(found.line, found.word) for found in sorted(search_file(page, "page.md"), key=lambda one: one.line)] == [
        (3, "mend"),
        (3, "goes on"),
        (7, "drawn"),
    ]
    assert str(search("mend it", "page.md")[0]) == "page.md:1: 'mend': use fix"
    code = tmp_path / "code.py"
    code.write_text('"""Mend."""\n\n\ndef f():\n    """`mend` is a name."""\n    return f"mend {1}", "amends"  # mend\n')
    assert sorted((found.line, found.word) for found in search_file(code, "code.py")) == [(1, "mend"), (6, "mend"), (6, "mend")]
    script = tmp_path / "code.js"
    script.write_text("    // mend\n")
    assert [(found.line, found.word) for found in search_file(script, "code.js")] == [(1, "mend")]
