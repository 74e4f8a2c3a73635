"""The figures of the reports, plotted by Matplotlib and returned as SVG text for `page.figure`. Independent of the source of the numbers.

The `name` of a figure is unique on its page, and its ids are made from it. Every figure is one plot that fits the width of a phone, and
distinguishes series by marks or dashes as well as by colour. Marks, bars and boxes show their values as tooltips.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from sparring.report.page import INK, LINE, MUTED, PAPER, SERIES, set_tooltips, to_svg
from sparring.report.untrusted import visible

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

WIDTH, HEIGHT = 5.2, 3.1  # inches of 72 units: text of 10 units is legible on a phone
# margins in inches, given instead of measured: a layout engine takes longer than the plotting
LEFT, LETTER, RIGHT, TOP, LEGEND, BOTTOM, NAMES, SLANTED = 0.85, 0.082, 0.1, 0.34, 0.22, 0.52, 0.3, 0.6
MOST_POINTS, MOST_MARKS = 300, 30  # of a line
LEGEND_COLUMNS = {3: 13, 2: 22}  # columns of a legend -> the most letters of a name with which they fit
# in fractions of the axes: a letter of a name next to its point, its horizontal and vertical distance, and half of a mark
NAME_LETTER, NAME_GAP, NAME_HEIGHT, MARK_WIDTH = 0.0148, 0.022, 0.08, 0.014
LONGEST_LABEL = 36
MARKS = "osD^vPX*"
DASHES: list[tuple[int, tuple[float, ...]]] = [(0, ()), (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2))]
_STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched and follows the page's font
    "text.parse_math": False,  # a run may be called $x$
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
Error = tuple[float, float]  # how far the bar reaches below and above the value


@dataclass(frozen=True)
class PlottedSeries:
    """A named line; x and y of equal length. `look`: number of the colour, mark and dash."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    look: int


@dataclass(frozen=True)
class PlottedScore:
    """A named value with its error bar, if it has one; `apart` marks a model that is not a player of the game, such as a control. `look`:
    number of the colour and mark."""

    name: str
    value: float
    error: Error | None = None
    apart: bool = False
    look: int = 0


@dataclass(frozen=True)
class ComputePoint:
    """A model: its compute `x` in floating-point operations, and its score. Points of one `group` are joined in order. `beside`: the label
    next to the point, if there is room."""

    name: str
    x: float
    y: float
    yerr: float | None
    group: str
    beside: str


def both_sides(stderr: float | None) -> Error | None:
    """The error bar of a standard error; None without one."""
    return None if stderr is None else (stderr, stderr)


def scores(name: str, title: str, values: Sequence[PlottedScore], y_label: str, reference: tuple[str, float] | None = None) -> str:
    """One value per model with its error bar, models side by side; `reference` is a named horizontal line."""
    are_slanted = sum(len(label(score.name)) + 2 for score in values) > 62  # the names would overlap side by side

    def fill(axes: Axes) -> None:
        if reference is not None:
            axes.axhline(reference[1], color=MUTED, linewidth=1, linestyle=DASHES[1])
            axes.annotate(
                label(reference[0]), (1, reference[1]), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9, color=MUTED
            )
        row = [(x, score) for x, score in enumerate(values) if not score.apart]
        axes.plot([x for x, _ in row], [score.value for _, score in row], color=MUTED, linewidth=1, alpha=0.5)
        for x, score in enumerate(values):
            _point(axes, x, score.value, score.error, score.look, _tooltip(score.name, y_label, score.value, score.error))
        axes.set_xticks(range(len(values)), [label(score.name) for score in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
        axes.grid(axis="x", visible=False)
        if are_slanted:
            axes.tick_params(axis="x", labelrotation=30)
            for text in axes.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")

    caption = "; ".join(f"{score.name} {score.value:.4g}" for score in values)
    return _plot(name, title, f"{y_label}: {caption}.", fill, y_label=y_label, bottom=NAMES + SLANTED * are_slanted)


def lines(
    name: str, title: str, series: Sequence[PlottedSeries], x_label: str, y_label: str, zero: float | None = None, log_y: bool = False
) -> str:
    """Lines over a common axis; many points are replaced by means of neighbours. `zero`: the value of a base line.

    `log_y`: a logarithmic axis if the values are positive and span decades.
    """

    def fill(axes: Axes) -> None:
        if zero is not None:
            axes.axhline(zero, color=MUTED, linewidth=1)
        if log_y and _spans_decades([y for one in series for y in one.y]):
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        span = max((x for one in series for x in one.x), default=0) - min((x for one in series for x in one.x), default=0)
        for one in series:
            x, y = thinned(one.x, one.y)
            every = _marked_every(x, span)
            mark, dash = MARKS[one.look % len(MARKS)], DASHES[one.look % len(DASHES)]
            (line,) = axes.plot(
                x, y, color=colour(one.look), label=label(one.name), marker=mark, markersize=3.5, markevery=every, ls=dash, lw=1.4
            )
            set_tooltips(
                line, [f"{visible(one.name)}, {x_label} {a:,.0f}: {short_number(b)}" for a, b in zip(x[::every], y[::every], strict=True)]
            )
        axes.yaxis.set_major_formatter(short_number)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _legend(axes, [one.name for one in series])

    caption = "; ".join(f"{one.name} from {one.y[0]:.4g} to {one.y[-1]:.4g}" for one in series if len(one.y))
    return _plot(name, title, f"{y_label} over {x_label}: {caption}.", fill, x_label, y_label, top=_top([one.name for one in series]))


def distributions(name: str, title: str, values: Sequence[tuple[str, Sequence[float]]], x_label: str) -> str:
    """A box per name: quartiles, median, whiskers from the 5th to the 95th percentile; the mean is a diamond."""

    def fill(axes: Axes) -> None:
        boxes = axes.boxplot(
            [numbers for _, numbers in values],
            orientation="horizontal",
            whis=(5, 95),
            showfliers=False,
            showmeans=True,
            patch_artist=True,
            widths=0.55,
            medianprops={"color": INK, "linewidth": 1.6},
            meanprops={"marker": "D", "markersize": 4, "markerfacecolor": PAPER, "markeredgecolor": INK},
            whiskerprops={"color": MUTED},
            capprops={"color": MUTED},
        )
        for box, median, mean, (one, numbers) in zip(*(boxes[part] for part in ("boxes", "medians", "means")), values, strict=True):
            box.set(facecolor=SERIES[0], alpha=0.45, edgecolor=MUTED)
            low, middle, high = np.quantile(numbers, (0.25, 0.5, 0.75))
            caption = f"{visible(one)}: median {middle:.4g}, middle half {low:.4g} to {high:.4g}, mean {np.mean(numbers):.4g} {x_label}"
            for artist in (box, median, mean):
                set_tooltips(artist, [caption])
        axes.set_yticks(range(1, len(values) + 1), [label(one) for one, _ in values])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)

    caption = "; ".join(f"{one}: median {np.median(numbers):.4g}" for one, numbers in values)
    left, height = _label_space([one for one, _ in values]), max(2.2, 1.1 + 0.36 * len(values))
    return _plot(name, title, f"{x_label}. {caption}.", fill, x_label, height=height, left=left)


def bars(name: str, title: str, rows: Sequence[str], parts: Sequence[tuple[str, Sequence[float]]], x_label: str) -> str:
    """A horizontal bar per row, stacked from named parts; every part has one value per row."""

    def fill(axes: Axes) -> None:
        left = np.zeros(len(rows))
        for index, (part, values) in enumerate(parts):
            patches = axes.barh(
                range(len(rows)), values, left=left, height=0.65, label=label(part), color=colour(index), edgecolor=PAPER, linewidth=0.8
            )
            left += np.asarray(values, dtype=float)
            for bar, row, value in zip(patches, rows, values, strict=True):
                set_tooltips(bar, [f"{visible(row)}, {visible(part)}: {short_number(value)} {x_label}"])
        axes.set_yticks(range(len(rows)), [label(row) for row in rows])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(short_number)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlim(0, 1.08 * max(left) or 1)  # the last number has room below it
        _legend(axes, [part for part, _ in parts])

    totals = [sum(values[n] for _, values in parts) for n in range(len(rows))]
    caption = "; ".join(f"{row} {total:.4g}" for row, total in zip(rows, totals, strict=True))
    height, top = max(2.2, 1.3 + 0.34 * len(rows)), _top([part for part, _ in parts])
    return _plot(name, title, f"{x_label}: {caption}.", fill, x_label, height=height, left=_label_space(rows), top=top)


def quality_against_compute(name: str, title: str, points: Sequence[ComputePoint], y_label: str) -> str:
    """The score of each model over the floating-point operations spent on it, on a logarithmic axis if they span decades."""

    def fill(axes: Axes) -> None:
        for index, group in enumerate(groups):
            own = [point for point in points if point.group == group]
            axes.plot([p.x for p in own], [p.y for p in own], color=colour(index), linewidth=1, alpha=0.5, linestyle=DASHES[index % 4])
            for number, p in enumerate(own):
                error = both_sides(p.yerr)
                caption = f"{_tooltip(p.name, y_label, p.y, error)}, {short_number(p.x)} floating-point operations"
                _point(axes, p.x, p.y, error, index, caption, group if number == 0 else None)
        if _spans_decades([point.x for point in points]):
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(short_number)
        axes.margins(x=0.12)
        _name_points(axes, points)
        _legend(axes, groups)

    groups = list(dict.fromkeys(point.group for point in points))
    caption = "; ".join(f"{point.name} {point.y:.4g} at {point.x:.3g}" for point in points)
    described = f"{y_label}: {caption} floating-point operations."
    return _plot(name, title, described, fill, "floating-point operations", y_label, top=_top(groups))


def _name_points(axes: Axes, points: Sequence[ComputePoint]) -> None:
    """Labels next to the points that have room for one; marks and legend distinguish the others."""
    axes.autoscale_view()  # Matplotlib does this later, but the positions of the points are needed now
    to_axes = axes.transData - axes.transAxes
    taken = []  # boxes in fractions of the axes: first the marks with their error bars, then the labels
    for p in points:
        (x, low), (_, high) = to_axes.transform([(p.x, p.y - (p.yerr or 0.0)), (p.x, p.y + (p.yerr or 0.0))])
        taken.append(Bbox.from_extents(x - MARK_WIDTH, low - MARK_WIDTH, x + MARK_WIDTH, high + MARK_WIDTH))
    for p in points:
        text = label(p.beside)
        x, y = to_axes.transform((p.x, p.y))
        width = NAME_LETTER * len(text)
        for left, offset, side in ((x + NAME_GAP, 7, "left"), (x - NAME_GAP - width, -7, "right")):
            box = Bbox.from_bounds(left, y, width, NAME_HEIGHT)
            if left >= 0 and left + width <= 1.02 and not box.count_overlaps(taken):
                taken.append(box)
                axes.annotate(text, (p.x, p.y), xytext=(offset, 4), textcoords="offset points", ha=side, fontsize=8)
                break


def label(text: str) -> str:
    """A name for a plot: visible, on one line, short."""
    text = " ".join(visible(text).split())
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"


def short_number(value: float, position: float = 0.0) -> str:
    """A number as 1,500 or 2e12: Matplotlib's own powers of ten need its math text, which is switched off. position: of a tick, which
    Matplotlib gives and which is not used."""
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.6g}"


def colour(index: int) -> str:
    """The colour of the index-th series; colours repeat after the last."""
    return SERIES[index % len(SERIES)]


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """At most MOST_POINTS points, each the mean of as many neighbours; values that are not finite are left out."""
    pairs = np.array([(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)], dtype=float).reshape(-1, 2)
    parts = np.array_split(pairs, min(len(pairs), MOST_POINTS)) if len(pairs) else []
    means = np.array([part.mean(axis=0) for part in parts]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def _marked_every(x: np.ndarray, span: float) -> int:
    """Every how many points of a line have a mark, so that marks are equally dense on lines over a part of the axis and over all of it."""
    share = (x[-1] - x[0]) / span if len(x) and span else 1
    return max(1, math.ceil(len(x) / max(2, MOST_MARKS * share)))


def _point(axes: Axes, x: float, y: float, error: Error | None, index: int, caption: str, name: str | None = None) -> None:
    reach = None if error is None else [[error[0]], [error[1]]]
    mark = MARKS[index % len(MARKS)]
    legend_name = label(name) if name else None
    bar = axes.errorbar([x], [y], yerr=reach, label=legend_name, fmt=mark, color=colour(index), markersize=6, capsize=4)
    set_tooltips(bar.lines[0], [caption])


def _tooltip(name: str, y_label: str, value: float, error: Error | None) -> str:
    """A value as text with its error; with the bounds of the error bar if it is asymmetric."""
    if error is None:
        return f"{visible(name)}: {y_label} {value:.4g}"
    below, above = error
    spread = f" ± {above:.2g}" if math.isclose(below, above) else f" [{value - below:.4g}, {value + above:.4g}]"
    return f"{visible(name)}: {y_label} {value:.4g}{spread}"


def _spans_decades(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis can show the values, with at least two labels."""
    return bool(values) and min(values) > 0 and max(values) > 30 * min(values)


def _legend(axes: Axes, entries: Sequence[str]) -> None:
    """Add a legend above the plot if there are several entries."""
    if len(entries) > 1:
        axes.legend(
            ncols=_columns(entries), handlelength=1.8, columnspacing=1.2, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2
        )


def _columns(entries: Sequence[str]) -> int:
    """The most columns of a legend that fit without cutting a name."""
    longest = max(len(label(entry)) for entry in entries)
    return next((columns for columns, most in LEGEND_COLUMNS.items() if longest <= most), 1)


def _top(entries: Sequence[str]) -> float:
    """Inches that the title and the legend take."""
    return TOP + LEGEND * (math.ceil(len(entries) / _columns(entries)) if len(entries) > 1 else 0)


def _label_space(rows: Sequence[str]) -> float:
    """Inches for the names of rows at the left."""
    return 0.2 + LETTER * max(len(label(row)) for row in rows)


def _plot(
    name: str,
    title: str,
    description: str,
    fill: Callable[[Axes], None],
    x_label: str = "",
    y_label: str = "",
    height: float = HEIGHT,
    left: float = LEFT,
    top: float = TOP,
    bottom: float = BOTTOM,
) -> str:
    """A figure of one plot, filled by `fill`, as SVG text; left, top and bottom are margins in inches."""
    height += top - TOP  # a legend takes no space from the plot
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's own fonts render the text
        figure = Figure(figsize=(WIDTH, height))
        box = (left / WIDTH, bottom / height, 1 - (left + RIGHT) / WIDTH, 1 - (top + bottom) / height)
        axes = figure.add_axes(box)
        fill(axes)
        axes.set(xlabel=label(x_label), ylabel=label(y_label))
        figure.text(0.01, 1 - 0.03 / height, visible(title), va="top", fontsize=11, fontweight="bold")
        return to_svg(figure, visible(title), visible(description))
