"""The terminal's tables: every row a model, every number with its standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.rundir import read_json
from sparring.stage_names import BASELINE, CONTROL_EVALUATE, iteration_stage

Scores = Mapping[str, Any]
Column = tuple[str, Callable[[Scores], str]]


def print_summary(summary: Mapping[str, Any], root: Path, console: Console) -> None:
    """The quality table, the reply table, one prompt answered by every model, and the verdict."""
    rows = list(_rows(summary))
    held_out = next(iter(rows[0][1].values()))["n"]
    console.print(_table(f"Quality on {held_out} held-out prompts (+- standard error)", _quality_columns(rows[0][1]), rows))
    console.print(_table("Replies to the held-out prompts", _REPLY_COLUMNS, rows))
    _print_showcase(summary, root, console)
    console.print(Text(verdict(summary)))


def verdict(summary: Mapping[str, Any]) -> str:
    """The outcome in two sentences."""
    best = summary["best"]
    ended = f"The game ended - {summary['stop_reason']}."
    if best is None:
        return f"No iteration was played. {ended}"
    compared = f"{best['metric']} {best['value']:.3f}, baseline {best['baseline_value']:.3f}"
    note = "" if best["beats_baseline"] else " No iteration beats the baseline: `--iteration baseline` exports that."
    return f"Best: iteration {best['iteration']} ({compared}).{note} {ended}"


def _rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, Scores]]:
    best = summary["best"]
    yield f"baseline ({summary['baseline']['name']})", summary["baseline"]["scores"]
    for entry in summary["iterations"]:
        mark = " *" if best and best["iteration"] == entry["iteration"] else ""
        yield f"iteration {entry['iteration']}{mark}", entry["scores"]
    for entry in summary["controls"]:
        yield entry["name"], entry["scores"]


def _quality_columns(scores: Scores) -> list[Column]:
    columns: list[Column] = []
    if "exact_match" in scores:
        columns.append(("exact match", _with_error("exact_match", 3)))
    if "exact_match_greedy" in scores:
        columns.append(("exact, greedy", _with_error("exact_match_greedy", 3)))
    return [
        *columns,
        ("NLL / token", _with_error("nll_per_token", 4)),
        ("margin", _with_error("duel_margin", 2)),
        ("accuracy [interval]", _accuracy),
        ("log p human", _with_error("real_logp", 2)),
        ("log p own reply", _with_error("generated_logp", 2)),
    ]


def _table(title: str, columns: list[Column], rows: list[tuple[str, Scores]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("model", no_wrap=True)
    for name, _ in columns:
        table.add_column(name, justify="right")
    for name, scores in rows:
        table.add_row(name, *(cell(scores) for _, cell in columns))
    return table


def _with_error(name: str, digits: int) -> Callable[[Scores], str]:
    def cell(scores: Scores) -> str:
        score = scores.get(name)
        if score is None:
            return "-"
        error = "" if score["stderr"] is None else f" +- {score['stderr']:.{digits}f}"
        return f"{score['value']:.{digits}f}{error}"

    return cell


def _accuracy(scores: Scores) -> str:
    score = scores.get("duel_accuracy")
    return "-" if score is None else f"{score['value']:.3f} [{score['low']:.2f}, {score['high']:.2f}]"


def _count(name: str) -> Callable[[Scores], str]:
    return lambda scores: str(round(scores[name]["value"] * scores[name]["n"]))


_REPLY_COLUMNS: list[Column] = [
    ("reply tokens", _with_error("reply_tokens", 1)),
    ("human tokens", lambda scores: f"{scores['human_reply_tokens']['value']:.1f}"),
    ("truncated", _count("truncated")),
    ("identical", _count("identical")),
    ("empty", _count("empty")),
    ("length AUC", lambda scores: f"{scores['length_auc']['value']:.2f}"),
]


def _print_showcase(summary: Mapping[str, Any], root: Path, console: Console) -> None:
    stages = [(f"baseline ({summary['baseline']['name']})", BASELINE)]
    stages += [(f"iteration {entry['iteration']}", iteration_stage(entry["iteration"], "evaluate")) for entry in summary["iterations"]]
    stages += [(entry["name"], CONTROL_EVALUATE) for entry in summary["controls"]]
    answers = {name: file for name, stage in stages if (file := root / stage / "showcase.json").exists()}
    shown = {name: read_json(file) for name, file in answers.items()}
    if not shown:
        return
    for index, first in enumerate(next(iter(shown.values()))):
        table = Table(title=Text(f"Prompt: {printable(first['prompt'])}"), title_justify="left", show_header=False)
        for name, entries in shown.items():
            table.add_row(name, Text(printable(entries[index]["reply"])))
        console.print(table)


def printable(text: str) -> str:
    """A model's text without terminal control characters."""
    return "".join(char if char == "\n" or char.isprintable() else "�" for char in text)
