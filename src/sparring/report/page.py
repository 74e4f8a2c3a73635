"""The page of a report: one self-contained HTML file with its style, script and figures, which loads and sends nothing.

The content of reports is not known here. Text is escaped by the templates; only `Markup` is inserted unchanged.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sparring.report.untrusted import visible

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
ET.register_namespace("", SVG)
ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
# colours of the plots: each becomes a variable of the page's theme, so that a plot has no colour itself
ROLES = {"#0a0b01": "ink", "#0a0b02": "muted", "#0a0b03": "line", "#0a0b04": "paper", **{f"#0a0c0{n}": f"s{n}" for n in range(10)}}
INK, MUTED, LINE, PAPER, *SERIES = ROLES
_COLOUR, _FONT, _LONG = re.compile("|".join(ROLES)), re.compile(r"font: ([\d.]+px)[^;]*|font-family: [^;]*"), re.compile(r"\d+\.\d+")
_NOT_OF_THE_PAGE = re.compile(r"<(metadata|style)\b.*?</\1>\s*", re.DOTALL)
_TOOLTIPS = "texts:"


def set_tooltips(artist: Artist, texts: Sequence[str]) -> None:
    """Set the tooltips of an artist: a text for each of its marks, or one for the whole. They are passed on as the artist's group id."""
    artist.set_gid(_TOOLTIPS + json.dumps(list(texts)))


def to_svg(figure: Figure, title: str, description: str) -> str:
    """The figure as an <svg> element. `title` and `description` are for screen readers."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # imported late: the tables of a terminal need none of it

    rendered = io.StringIO()
    FigureCanvasSVG(figure).print_svg(rendered)  # not savefig, which renders everything twice
    root = ET.fromstring(_NOT_OF_THE_PAGE.sub("", rendered.getvalue()).encode())
    root.attrib = {"class": "plot", "viewBox": root.attrib["viewBox"], "role": "img", "aria-label": f"{title}. {description}"}
    for group in root.iter(f"{{{SVG}}}g"):
        # an id such as axes_1 is in every figure, and nothing refers to it; those that clips and marks refer to are hashes
        _add_tooltips(group, group.attrib.pop("id", ""))
    for element in root.iter():
        _of_the_page(element)
    return ET.tostring(root, encoding="unicode")


def _add_tooltips(group: ET.Element, id: str) -> None:
    """The texts of `set_tooltips` as <title> elements, which browsers show as tooltips."""
    texts = json.loads(id.removeprefix(_TOOLTIPS)) if id.startswith(_TOOLTIPS) else []
    marks = list(group.iter(f"{{{SVG}}}use")) or [group]
    if len(marks) == len(texts):  # a NaN has no mark, and then it is not known which text belongs to which mark
        for mark, text in zip(marks, texts, strict=True):
            title = ET.Element(f"{{{SVG}}}title")
            title.text = text
            mark.insert(0, title)


def _of_the_page(element: ET.Element) -> None:
    """Use the theme's colours and the page's font, and round coordinates to a hundredth of a point."""
    if style := element.get("style"):
        style = _FONT.sub(lambda found: f"font-size: {found[1]}" if found[1] else "", style)
        element.set("style", _COLOUR.sub(lambda found: f"var(--{ROLES[found[0]]})", style))
    for key in element.attrib.keys() & {"d", "x", "y"}:
        element.set(key, _LONG.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), element.attrib[key]))


TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class PageSection:
    """A part of the page under its own heading; `id` is its anchor, `contents` its entry in the list of sections."""

    id: str
    title: str
    body: Markup
    contents: str | None = None


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # applied to every text in a template, so that no caller can forget it
    environment.finalize = lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
    return environment


def render(template: str, **values: Any) -> Markup:
    """One of the templates, filled in; all values but Markup are escaped."""
    return Markup(_environment().get_template(template).render(**values))


def render_page(title: str, lead: Markup, sections: Sequence[PageSection], script: str = "", refresh: str = "") -> str:
    """The whole file. `lead` is above the first section; `script` is the page's JavaScript; `refresh` says of when the page is."""
    assert "</script" not in script.lower() and "<!--" not in script, "it would end the page's script"
    page = render(
        "page.html",
        title=title,
        lead=lead,
        sections=sections,
        style=Markup(text_of("theme.css", "plot.css", "page.css")),
        script=Markup(script),
        policy=_policy(script),
        refresh=refresh,
        version=metadata.version("sparring"),
    )
    return str(page)


def _policy(script: str) -> str:
    """The content security policy: the page may use its own script, style and images, and may load or send nothing."""
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    scripts = f"'sha256-{own}'" if script else "'none'"
    return f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def text_of(*names: str) -> str:
    """Style sheets or scripts of the templates' folder, one after the other."""
    return "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names)


def table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[str]], best: int | None = None, numbers: bool = True) -> Markup:
    """A table whose first column names the rows; the others are numbers, unless `numbers` is false. It scrolls where it is too wide.
    best: the row that is marked."""
    return render("table.html", caption=caption, headers=headers, rows=rows, numbers=numbers, best=best)


def figure(svg: str, caption: str = "") -> Markup:
    """A plot of plots.py with an explanation below it."""
    return render("figure.html", svg=Markup(svg), caption=caption)


def svg_file(svg: str) -> str:
    """A plot of plots.py as a separate file with its style, for use outside of a page; it follows the reader's theme too."""
    start = svg.index(">") + 1
    style = f"<style>{text_of('theme.css', 'plot.css')}.plot {{ width: 36rem; background: var(--paper); }}</style>"
    return f"{svg[:start]}{style}{svg[start:]}"


def figures(plots: Sequence[Markup]) -> Markup:
    """Several figures side by side, if there is room."""
    return Markup('<div class="figures">{}</div>').format(Markup("").join(plots))


def paragraph(text: str, kind: str = "") -> Markup:
    """A paragraph; kind: a class of page.css, or none. Text between backticks is code."""
    return render("paragraph.html", text=text, kind=kind)


def code(text: str, label: str) -> Markup:
    """Text in a fixed-width font that scrolls; `label` describes it to a screen reader."""
    return render("code.html", text=text, label=label)


def packed_data(id: str, value: Any) -> Markup:
    """A JSON value for the page's script: deflated, in base64, so that nothing in it can be read as HTML. page scripts `unpack(id)` it."""
    packed = base64.b64encode(zlib.compress(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(), 6)).decode()
    return Markup('<script type="application/octet-stream" id="{}">{}</script>').format(id, packed)
