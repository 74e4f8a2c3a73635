"""The tables of a comparison, one per metric, in the terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from sparring.comparison.compare import ComparisonCell, ComparisonRow, Metric, RunComparison, verdict
from sparring.console import fitting, printable
from sparring.report.outcome import metric_words
from sparring.report.tables import TextTable, print_table, score_text

HEADERS = ("model", "value", "difference", "interval", "p", "p (Holm)", "tokens", "FLOPs", "wall time")


def print_comparison(found: RunComparison, console: Console) -> None:
    """Print the verdict, one table per metric, and the legend."""
    for line in verdict(found):
        console.print(Text(fitting(line, console), style="bold"))
    for metric in found.metrics:
        print_table(metric_table(found, metric), console)
    for line in legend(found):
        console.print(Text(fitting(line, console)))


def markdown(found: RunComparison) -> str:
    """The same tables and lines as Markdown."""
    parts = ["# Comparison\n", *(f"{_escaped(line)}\n" for line in verdict(found))]
    for table in (metric_table(found, metric) for metric in found.metrics):
        head, *rows = (f"| {' | '.join(map(_escaped, row))} |" for row in (table.headers, *table.rows))
        parts.append(f"## {_escaped(table.title)}\n\n" + "\n".join([head, f"|---|{'---:|' * (len(HEADERS) - 1)}", *rows]) + "\n")
    parts.append("\n".join(f"- {_escaped(line)}" for line in legend(found)) + "\n")
    return "\n".join(parts)


def metric_table(found: RunComparison, metric: Metric) -> TextTable:
    """All players in one metric; the title has the direction that is better, the number of units, and the reference."""
    better = {True: "higher is better", False: "lower is better", None: "neither way is better"}[metric.higher_is_better]
    title = f"{metric_words(metric.name)} ({better}), {metric.count} {metric.unit}, difference from {found.reference}"
    return TextTable(title, HEADERS, [_cells(found, row, metric.name) for row in found.rows])


def legend(found: RunComparison) -> Iterator[str]:
    """How the numbers were computed, then the notes on this comparison."""
    shown = [cell.paired for row in found.rows for cell in row.cells.values() if cell.paired]
    tests = " and ".join(dict.fromkeys(one.test for one in shown)) or "none"
    resampled = "rows or samples" if any(metric.asked for metric in found.metrics) else "rows"
    interval = f"bootstrap over {resampled}" if found.unit == "rows" else "Student's t over seeds"
    yield (
        f"± is one standard error, paired for differences; interval: {found.confidence:.0%}, {interval}; p: {tests}, two-sided; "
        f"Holm over all {found.tests} tests shown."
    )
    yield "Holm's correction covers every player but the reference in every metric, held-out ones and benchmarks together."
    yield from (f"{metric.name}: {_asked(metric.asked)}." for metric in found.metrics if metric.asked)
    summed = ", of all seeds together" if found.unit == "seeds" else ""
    yield f"tokens, FLOPs and wall time: everything from the base model to the player, without measurements on held-out rows{summed}."
    if any(row.is_best for row in found.rows):
        yield "*: its run's best iteration by evaluate.metric, chosen on these held-out rows, so its score on them is slightly too high."
    yield from (f"note: {note}" for note in found.notes)


def _cells(found: RunComparison, row: ComparisonRow, metric: str) -> list[str]:
    """The cells of a player's row, in the order of HEADERS."""
    name = f"{row.name}{' *' * row.is_best}{' (not finished)' * row.is_unfinished}"
    cost = [f"{row.cost.tokens:,}", "-" if row.flops is None else f"{row.flops:.3g}", duration(row.cost.wall_seconds)]
    return [name, *_of_metric(found, row, row.cells[metric]), *cost]


def duration(seconds: float) -> str:
    """Seconds as a text for people, such as "12.3 s", "7 min" or "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _asked(asked: Mapping[str, Any]) -> str:
    # of a group the values of its tasks, if they differ
    values = (asked[key].values() if isinstance(asked[key], dict) else [asked[key]] for key in ("task_version", "shots"))
    version, shots = (", ".join(sorted(set(map(str, found)))) for found in values)
    template = "applied" if asked["chat_template"] else "not applied"
    return f"task version {version}, {shots} shots, chat template {template}, lm-evaluation-harness {asked['harness']}"


def _of_metric(found: RunComparison, row: ComparisonRow, cell: ComparisonCell) -> list[str]:
    if f"{row.run}:{row.player}" == found.against:
        return [score_text(cell.score, 4), "reference", "", "", ""]
    paired = cell.paired
    if paired is None:
        return [score_text(cell.score, 4), *["-"] * 4]
    interval = "-" if paired.low is None else f"[{paired.low:+.4f}, {paired.high:+.4f}]"
    error = "" if paired.stderr is None else f" ± {paired.stderr:.4f}"
    return [score_text(cell.score, 4), f"{paired.difference:+.4f}{error}", interval, _p(paired.p), _p(cell.p_holm)]


def _p(p: float | None) -> str:
    return "-" if p is None else "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _escaped(text: str) -> str:
    return printable(text).replace("\n", " ").replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")
