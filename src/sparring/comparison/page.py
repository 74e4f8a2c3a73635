"""The comparison as one HTML page: the tables, and quality against compute."""

from __future__ import annotations

import re
from collections.abc import Iterator

from markupsafe import Markup

from sparring.comparison.compare import Metric, RunComparison, verdict
from sparring.comparison.tables import legend, metric_table
from sparring.report import page, plots
from sparring.report.outcome import metric_words


def html(found: RunComparison) -> str:
    """The comparison as one HTML page: verdict, a section per metric, and how to read the numbers."""
    lead = Markup("").join(page.paragraph(line, "verdict") for line in verdict(found))
    sections = [page.PageSection(_id(metric.name), _heading(metric), _section(found, metric)) for metric in found.metrics]
    notes = Markup("").join(page.paragraph(line, "muted") for line in legend(found))
    sections.append(page.PageSection("notes", "How to read this", notes))
    return page.render_page("Comparison", lead, sections)


def _section(found: RunComparison, metric: Metric) -> Markup:
    body = page.table(*metric_table(found, metric))
    points = list(_points(found, metric.name))
    if points:
        caption = f"{_heading(metric)} against compute"
        plot = plots.quality_against_compute(f"compute-{_id(metric.name)}", caption, points, metric_words(metric.name))
        body += page.figure(plot, "Floating-point operations since the base model. Bars: one standard error. Lines: iterations.")
    return body


def _heading(metric: Metric) -> str:
    words = metric_words(metric.name)
    return f"{words[0].upper()}{words[1:]}"


def _id(name: str) -> str:
    """An HTML id: a benchmark's name may contain any character."""
    return re.sub(r"[^\w-]", "-", name)


def _points(found: RunComparison, metric: str) -> Iterator[plots.ComputePoint]:
    """The points of all players whose compute is known; every control is a separate group."""
    for row in found.rows:
        score = row.cells[metric].score
        if score is not None and row.flops is not None:
            group = row.name if row.is_control else row.run
            yield plots.ComputePoint(row.name, row.flops, score["value"], score["stderr"], group, row.title)
