"""The verdict of a comparison, one sentence per metric: which player is first, and whether by more than chance."""

from __future__ import annotations

from collections.abc import Iterator

from sparring.comparison.compare import ComparisonRow, Metric, RunComparison
from sparring.report.outcome import metric_words

NAMED = 3  # players behind the first, before the sentence says how many more
CHANCE = 0.05  # Holm's p above which a difference is taken for chance


def verdict(found: RunComparison) -> Iterator[str]:
    """One sentence for each metric that has a better direction and any values."""
    for metric in found.metrics:
        if metric.higher_is_better is not None and (line := _of_metric(found, metric)) is not None:
            yield line


def _of_metric(found: RunComparison, metric: Metric) -> str | None:
    sign = 1 if metric.higher_is_better else -1
    known = [(row, score["value"]) for row in found.rows if (score := row.cells[metric.name].score) is not None]
    if not known:
        return None
    ranked = sorted(known, key=lambda one: -sign * one[1])
    values = {value for _, value in known}
    if len(values) == 1 < len(known):
        return f"By {metric_words(metric.name)} all are equal, at {values.pop():.4f}."
    first, highest = ranked[0]
    head = f"By {metric_words(metric.name)} {first.name} is first with {highest:.4f}"
    behind = ", ".join(f"{row.name} {value:.4f}" for row, value in ranked[1 : 1 + NAMED])
    behind += f" and {len(ranked) - 1 - NAMED} more" if len(ranked) > 1 + NAMED else ""
    return f"{head}{_against(found, first, metric)}{f'; then {behind}' if behind else ''}."


def _against(found: RunComparison, row: ComparisonRow, metric: Metric) -> str:
    """Its difference from the reference, where it has one."""
    cell = row.cells[metric.name]
    if f"{row.run}:{row.player}" == found.against or cell.paired is None:
        return ""
    if cell.p_holm is None:
        return f", {cell.paired.difference:+.4f} from {found.reference}"
    doubt = "more than chance" if cell.p_holm < CHANCE else "within chance"
    return f", {cell.paired.difference:+.4f} from {found.reference}, {doubt} (p {cell.p_holm:.2g} after Holm)"
