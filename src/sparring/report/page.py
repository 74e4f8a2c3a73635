"""The page that any report is: one self-contained HTML file with its style and script inside, and no way out of it.

Nothing here knows what is reported. Text is escaped by the templates; only what is `Markup` already goes through as it is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sparring.report.untrusted import visible

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class PageSection:
    """A part of the page under its own heading; `id` is its address on the page, `contents` its entry in the list of sections."""

    id: str
    title: str
    body: Markup
    contents: str | None = None


@dataclass(frozen=True)
class Cell:
    """A table cell with more than plain text: `note` is in small print below it, `best` marks it."""

    text: str
    note: str = ""
    best: bool = False


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # every text that a template shows goes through here, so that no caller can forget it
    environment.finalize = lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
    return environment


def render(template: str, **values: Any) -> Markup:
    """One of the templates, filled in; all values but Markup are escaped."""
    return Markup(_environment().get_template(template).render(**values))


def render_page(title: str, lead: Markup, sections: Sequence[PageSection], script: str = "", refresh: str = "") -> str:
    """The whole file. `lead` is above the first section; `script` is the page's own JavaScript; `refresh` says what may be newer."""
    page = render(
        "page.html",
        title=title,
        lead=lead,
        sections=sections,
        style=Markup(style_of("theme.css", "plot.css", "page.css")),
        script=Markup(script),
        policy=_policy(script),
        refresh=refresh,
        version=metadata.version("sparring"),
    )
    return str(page)


def _policy(script: str) -> str:
    """The page may use its own script, style and images inside it, and may load or send nothing."""
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    scripts = f"'sha256-{own}'" if script else "'none'"
    return f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def style_of(*names: str) -> str:
    """Style sheets of the templates' folder, one after the other."""
    return "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names)


def script_of(name: str) -> str:
    """A script of the templates' folder. What goes into the page may not hold its own end."""
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    assert "</script" not in text.lower() and "<!--" not in text, name
    return text


def table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[str | Cell]], numbers: bool = True) -> Markup:
    """A table whose first column names the rows; the others are numbers, unless `numbers` is false. It scrolls where it is too wide."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    return render("table.html", caption=caption, headers=headers, rows=cells, numbers=numbers)


def figure(svg: str, caption: str = "") -> Markup:
    """A plot of plots.py with an explanation below it."""
    return render("figure.html", svg=Markup(svg), caption=caption)


def svg_file(svg: str) -> str:
    """A plot of plots.py as a file of its own, for where there is no page with its style; it follows the reader's theme too."""
    start = svg.index(">") + 1
    style = f"<style>{style_of('theme.css', 'plot.css')}.plot {{ width: 36rem; background: var(--paper); }}</style>"
    return f"{svg[:start]}{style}{svg[start:]}"


def figures(plots: Sequence[Markup]) -> Markup:
    """Several figures side by side, if there is room."""
    return Markup('<div class="figures">{}</div>').format(Markup("").join(plots))


def paragraph(text: str, kind: str = "") -> Markup:
    """kind: a class of page.css, or none; text between backticks is code."""
    return render("paragraph.html", text=text, kind=kind)


def code(text: str, label: str) -> Markup:
    """Text of a fixed width that scrolls; `label` says to a screen reader what it is."""
    return render("code.html", text=text, label=label)


def packed_data(id: str, value: Any) -> Markup:
    """A JSON value for the page's script: deflated, in base64, so that nothing in it can be read as HTML. page scripts `unpack(id)` it."""
    packed = base64.b64encode(zlib.compress(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(), 6)).decode()
    return Markup('<script type="application/octet-stream" id="{}">{}</script>').format(id, packed)
