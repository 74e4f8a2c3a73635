"""The figures: valid SVG, colours from the page, ids of their own, names that cannot break out."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from sparring.report import plots
from sparring.report.page import TEMPLATES
from sparring.report.plots import MOST_POINTS, ComputePoint, PlottedScore, PlottedSeries

NAMES = ["start", "iteration 0", "<b>&amp;", "$x_1$ \u202e \x00 名前", "a name that is much too long to stand under a plot"]
VALUES = [PlottedScore(name, 0.3 + 0.01 * n, (0.02, 0.03) if n else None, apart=n == 4) for n, name in enumerate(NAMES)]
SERIES = [PlottedSeries(name, range(5), [n + x * x for x in range(5)], n) for n, name in enumerate(NAMES)]
GROWING = [PlottedSeries("a", range(5), [10.0**x for x in range(5)], 0)]
POINTS = [ComputePoint(name, 1e12 * 5**n, 0.3 + 0.1 * n, 0.02, f"run {n % 2}", name) for n, name in enumerate(NAMES)]
DRAWN = {
    "scores": lambda name: plots.scores(name, "T<i>", VALUES, "share", reference=("start", 0.3)),
    "lines": lambda name: plots.lines(name, "T<i>", SERIES, "step", "margin", zero=0.0),
    "log lines": lambda name: plots.lines(name, "T<i>", GROWING, "step", "norm", log_y=True),
    "distributions": lambda name: plots.distributions(name, "T<i>", [(n, [1.0, 2.0, 5.0]) for n in NAMES], "tokens"),
    "bars": lambda name: plots.bars(name, "T<i>", NAMES, [("a", [1.0] * 5), ("b", [2e6] * 5)], "tokens"),
    "compute": lambda name: plots.quality_against_compute(name, "T<i>", POINTS, "exact match"),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_a_figure_is_svg_that_the_page_can_hold(kind: str) -> None:
    root = ET.fromstring(DRAWN[kind]("fig"))
    elements = list(root.iter())
    assert root.get("role") == "img" and root.get("viewBox") and not root.get("width")
    assert not any(element.tag.endswith("}style") for element in elements)
    styles = ";".join(element.get("style", "") for element in elements)
    colours = set(re.findall(r"(?:fill|stroke): ([^;]+)", styles)) - {"none"}
    theme = (TEMPLATES / "theme.css").read_text()
    assert colours and all(f" {colour[4:-1]}: " in theme for colour in colours), "every colour is the page's"
    assert "font-family" not in styles and "font:" not in styles, "and the font too"


@pytest.mark.parametrize("kind", DRAWN)
def test_ids_are_the_figures_own_and_lead_somewhere(kind: str) -> None:
    svg = DRAWN[kind]("fig")
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)) and set(re.findall(r"#([\w-]+)", svg)) <= set(ids)
    assert not set(re.findall(r'\bid="([^"]+)"', DRAWN[kind]("other"))) & set(ids)


def test_the_words_say_what_is_drawn() -> None:
    root = ET.fromstring(DRAWN["scores"]("fig"))
    assert root.get("aria-label").startswith("T<i>. share: start 0.3; iteration 0 0.31")
    drawn = "".join(root.itertext())
    assert "<b>&amp;" in drawn and "$x_1$ [U+202E] [U+0000] 名前" in drawn and "a name that is much too long to sta…" in drawn


def test_every_value_has_its_mark_and_its_error_bar() -> None:
    def marks(values: list[PlottedScore]) -> int:
        return len(re.findall(r'<use [^>]*style="[^"]*var\(--s[0-7]', plots.scores("fig", "t", values, "y")))

    bare = [PlottedScore(str(n), float(n)) for n in range(4)]
    assert marks(bare) == 4
    assert marks([PlottedScore(one.name, one.value, (0.1, 0.1)) for one in bare]) == 12, "a mark and the two ends of its bar"


SVG = "{http://www.w3.org/2000/svg}"


def told(svg: str) -> list[str]:
    """What a pointer that rests on a mark, a bar or a box is told."""
    root = ET.fromstring(svg)
    return [element.find(f"{SVG}title").text for element in root.iter() if element is not root and element.find(f"{SVG}title") is not None]


def test_a_pointer_is_told_the_values() -> None:
    assert told(plots.scores("fig", "t", VALUES[:3], "share")) == [
        "start: share 0.3",
        "iteration 0: share 0.31 [0.29, 0.34]",
        "<b>&amp;: share 0.32 [0.3, 0.35]",
    ]
    assert told(plots.scores("fig", "t", [PlottedScore("a", 0.5, (0.1, 0.1))], "share")) == ["a: share 0.5 ± 0.1"]
    assert told(plots.lines("fig", "t", [PlottedSeries("$x$ \u202e", [7, 8], [0.25, 1e9], 0)], "step", "y")) == [
        "$x$ [U+202E], step 7: 0.25",
        "$x$ [U+202E], step 8: 1e9",
    ]
    boxes = told(plots.distributions("fig", "t", [("a", [1.0, 2.0, 5.0])], "tokens"))
    assert boxes == 3 * ["a: median 2, middle half 1.5 to 3.5, mean 2.667 tokens"], "the box, and its marks that lie above it"
    bars = told(plots.bars("fig", "t", ["a", "b"], [("p", [1.0, 2.0]), ("q", [3.0, 0.0])], "s"))
    assert bars == ["a, p: 1 s", "b, p: 2 s", "a, q: 3 s", "b, q: 0 s"]
    assert told(plots.quality_against_compute("fig", "t", POINTS[:1], "exact match")) == [
        "start: exact match 0.3 ± 0.02, 1e12 floating-point operations"
    ]


def test_a_long_line_is_told_at_some_of_its_points() -> None:
    long, short = (
        PlottedSeries("long", range(900), [float(n) for n in range(900)], 0),
        PlottedSeries("short", range(900, 1000), range(100), 1),
    )
    names = [text.partition(",")[0] for text in told(plots.lines("fig", "t", [long, short], "step", "y"))]
    assert 20 <= names.count("long") <= 30 and 2 <= names.count("short") <= 4, "marks are as dense on both"


def test_a_legend_takes_nothing_from_the_drawing() -> None:
    def height(count: int) -> float:
        named = [PlottedSeries(f"a line of quite a long name {n}", [0, 1], [0, 1], n) for n in range(count)]
        root = ET.fromstring(plots.lines("fig", "t", named, "step", "y"))
        return float(root.get("viewBox").split()[3])

    assert height(1) < height(2) < height(5) and height(5) - height(2) == pytest.approx(3 * plots.LEGEND * 72)


def test_names_keep_clear_of_other_points() -> None:

    def named(height: float) -> list[str]:
        points = [ComputePoint(f"the player {n}", 1e12 * (1 + n / 10), height * n, None, "run", f"the player {n}") for n in range(5)]
        texts = [element.text for element in ET.fromstring(plots.quality_against_compute("fig", "t", points, "y")).iter(f"{SVG}text")]
        return [text for text in texts if text.startswith("the player")]

    assert named(0.2) == [f"the player {n}" for n in range(5)], "on a slope every name has room"
    assert named(0.0) == [], "on a level another point stands in the way of each"


def test_long_lines_are_thinned_to_means() -> None:
    x, y = plots.thinned(range(10_000), [float(n % 2) for n in range(10_000)])
    assert len(x) == len(y) == MOST_POINTS and np.allclose(y, 0.5, atol=0.02) and x[0] < 40 and x[-1] > 9960
    x, y = plots.thinned([0, 1, 2], [1.0, math.nan, 3.0])
    assert list(x) == [0, 2] and list(y) == [1, 3]
    assert len(plots.thinned([], [])[0]) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0])
def test_numbers_that_are_none_do_not_break_a_figure(value: float) -> None:
    ET.fromstring(plots.lines("fig", "t", [PlottedSeries("a", range(3), [1.0, value, 2.0], 0)], "x", "y", log_y=True))
    if math.isfinite(value) or math.isnan(value):
        ET.fromstring(plots.scores("fig", "t", [PlottedScore("a", 1.0), PlottedScore("b", value)], "y"))


def test_a_logarithmic_axis_is_taken_only_where_it_would_have_labels() -> None:
    assert all(f">{text}<" in DRAWN["log lines"]("fig") for text in ("1", "100", "10,000"))
    narrow = plots.lines("fig", "t", [PlottedSeries("a", range(3), [2.0, 4.0, 6.0], 0)], "x", "y", log_y=True)
    assert all(f">{text}<" in narrow for text in ("2", "4", "6"))


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.25, "0.25"), (1500, "1,500"), (2.5e12, "2.5e12"), (-3e-7, "-3e-7"), (999_999, "999,999")]
)
def test_numbers_on_axes(value: float, text: str) -> None:
    assert plots.short_number(value) == text


def test_the_compute_axis_is_logarithmic_where_points_span_decades() -> None:
    assert ">1e13<" in plots.quality_against_compute("fig", "t", POINTS, "y")
    assert ">4e12<" in plots.quality_against_compute(
        "fig", "t", [ComputePoint(str(n), n * 1e12, 0.1, None, "run", str(n)) for n in range(1, 6)], "y"
    )
    ET.fromstring(
        plots.quality_against_compute(
            "fig", "t", [ComputePoint(name, x, 0.1, None, "run", name) for name, x in (("free", 0.0), ("dear", 1e15))], "y"
        )
    )
