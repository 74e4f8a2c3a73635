"""Matplotlib's SVG made fit for the page: colours of the reader's theme, ids of its own, words for those who listen."""

from __future__ import annotations

import io
import itertools
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# colours of the plots: each becomes a variable of the page's theme, so that a plot has no colour itself
ROLES = {"#0a0b01": "ink", "#0a0b02": "muted", "#0a0b03": "line", "#0a0b04": "paper", **{f"#0a0c0{n}": f"s{n}" for n in range(10)}}
INK, MUTED, LINE, PAPER, *SERIES = ROLES
_COLOUR, _FONT, _LONG = re.compile("|".join(ROLES)), re.compile(r"font: ([\d.]+px)[^;]*|font-family: [^;]*"), re.compile(r"\d+\.\d+")
_REFERENCE = re.compile(r"#([\w-]+)")
_TOOLTIPS = "texts:"


def set_tooltips(artist: Artist, texts: Sequence[str]) -> None:
    """Set the tooltips of an artist: a text for each of its marks, or one for the whole. They are passed on as the artist's group id."""
    artist.set_gid(_TOOLTIPS + json.dumps(list(texts)))


def to_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an <svg> element. `name` is unique on the page; `title` and `description` are read out in place of the plot."""
    drawn = io.StringIO()
    # not savefig, which renders everything twice
    FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ET.fromstring(drawn.getvalue().encode())
    _drop(root, {"metadata", "style"})
    _add_tooltips(root)
    _name(root, name)
    for element in root.iter():
        _of_the_page(element)
    _describe(root, name, title, description)
    ET.register_namespace("", SVG)
    return ET.tostring(root, encoding="unicode")


def _drop(root: ET.Element, tags: set[str]) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in tags:
                parent.remove(child)


def _add_tooltips(root: ET.Element) -> None:
    """The texts of `set_tooltips` as <title> elements, which browsers show as tooltips."""
    for group in root.iter(f"{{{SVG}}}g"):
        if (tooltips := group.get("id", "")).startswith(_TOOLTIPS):
            texts = json.loads(tooltips.removeprefix(_TOOLTIPS))
            marks = list(group.iter(f"{{{SVG}}}use")) or [group]
            if len(marks) == len(texts):  # NaN has no mark, and which value it is cannot be known
                for mark, text in zip(marks, texts, strict=True):
                    title = ET.Element(f"{{{SVG}}}title")
                    title.text = text
                    mark.insert(0, title)


def _name(root: ET.Element, name: str) -> None:
    """Short ids that no other figure of the page has, and only where something refers to them."""
    for element in root.iter():
        if f"{{{XLINK}}}href" in element.attrib:
            element.set("href", element.attrib.pop(f"{{{XLINK}}}href"))
    used = {id for element in root.iter() for key in ("href", "clip-path") for id in _REFERENCE.findall(element.get(key, ""))}
    ids = {id: f"{name}-{number}" for number, id in zip(itertools.count(), sorted(used), strict=False)}
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in ids:
            element.set("id", ids[own])
        for key in ("href", "clip-path"):
            if key in element.attrib:
                element.set(key, _REFERENCE.sub(lambda found: f"#{ids[found[1]]}", element.attrib[key]))


def _of_the_page(element: ET.Element) -> None:
    """The theme's colours and the page's font; coordinates to a hundredth of a point."""
    if style := element.get("style"):
        style = _FONT.sub(lambda found: f"font-size: {found[1]}" if found[1] else "", style)
        element.set("style", _COLOUR.sub(lambda found: f"var(--{ROLES[found[0]]})", style))
    for key in element.attrib.keys() & {"d", "x", "y"}:
        element.set(key, _LONG.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), element.attrib[key]))


def _describe(root: ET.Element, name: str, title: str, description: str) -> None:
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib.update({"class": "plot", "role": "img", "aria-labelledby": f"{name}-title {name}-text"})
    for position, (tag, part, text) in enumerate((("title", "title", title), ("desc", "text", description))):
        element = ET.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{part}"})
        element.text = text
        root.insert(position, element)
