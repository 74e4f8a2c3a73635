"""The tables of scores in the terminal, with a row per model and standard errors; and the headroom of the start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from sparring.config import Recipe
from sparring.console import fitting, printable
from sparring.report.page import paragraph, table
from sparring.rundir import read_json
from sparring.stage_names import HEADROOM, START, iteration_stage, seed_folder, start_title

Scores = Mapping[str, Any]


class TableRow(NamedTuple):
    """A model in a table, its opponent in duels, its scores, and the stage of the run with scores and samples ("" for none)."""

    model: str
    opponent: str | None
    scores: Scores
    stage: str
    is_best: bool = False


class Column(NamedTuple):
    """A column of a table; `short` is its header if the terminal is too narrow for the whole table."""

    header: str
    cell: Callable[[TableRow], str]
    short: str | None = None


def rows_of(summary: Mapping[str, Any]) -> Iterator[TableRow]:
    """The models of a run in order: start, iterations, control."""
    best = summary["best"]
    yield TableRow(start_title(summary["start"]["name"]), None, summary["start"]["scores"], f"{START}/evaluate")
    for entry in summary["iterations"]:
        t = entry["iteration"]
        opponent = f"iteration {t - 1}" if t else "start"
        yield TableRow(f"iteration {t}", opponent, entry["scores"], iteration_stage(t, "evaluate"), bool(best) and best["iteration"] == t)
    for entry in summary["controls"]:
        start = entry["from_iteration"]
        opponent = "start" if start is None else f"iteration {start}"
        yield TableRow(entry["name"], opponent, entry["scores"], f"{entry['stage']}/evaluate")


def entries_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """player, as commands name it -> its entry in the summary, in the order of `rows_of`."""
    played = {str(entry["iteration"]): entry for entry in summary["iterations"]}
    return {START: summary["start"], **played, **{entry["stage"]: entry for entry in summary["controls"]}}


def score_text(score: Mapping[str, Any] | None, digits: int) -> str:
    """Value and standard error of a score, or "-" without it."""
    if score is None:
        return "-"
    error = "" if (stderr := score.get("stderr")) is None else f" ± {stderr:.{digits}f}"
    return f"{score['value']:.{digits}f}{error}"


def with_error(name: str, digits: int) -> Callable[[TableRow], str]:
    """A column's function: value and standard error of a score, or "-" without it."""
    return lambda row: score_text(row.scores.get(name), digits)


def _value(name: str, digits: int) -> Callable[[TableRow], str]:
    return lambda row: f"{row.scores[name]['value']:.{digits}f}"


def _count(name: str) -> Callable[[TableRow], str]:
    return lambda row: str(round(row.scores[name]["value"] * row.scores[name]["n"]))


def _accuracy(row: TableRow) -> str:
    score = row.scores["duel_accuracy"]
    return f"{score['value']:.3f} [{score['low']:.2f}, {score['high']:.2f}]"


# Counts of a game with a verified or majority target: the outcome of the prompts, and the pairs
OUTCOMES = ("prompts", "decided", "human_wins", "all_pass", "none_pass", "ties", "few_votes", "unjudged", "winners", "pairs")
RATES = ("pass_rate", "vote_share", "distinct_answers")
FAILURES = "checker_failures"
OUTCOMES_TITLE = "Winners: outcome of every prompt in the window"
RATES_TITLE = "Graded: each opponent's replies to the training prompts"
_LIKELIHOOD_COLUMNS = [
    Column("NLL / token", with_error("nll_per_token", 4)),
    Column("log p human", with_error("real_logp", 2)),
    Column("log p own reply", with_error("generated_logp", 2), "log p own"),
]
DUEL_COLUMNS = [
    Column("against", lambda row: row.opponent or "-"),
    Column("margin", with_error("duel_margin", 2)),
    Column("accuracy (interval)", _accuracy),
]
REPLY_COLUMNS = [
    Column("reply tokens", with_error("reply_tokens", 1), "tokens"),
    Column("human tokens", _value("human_reply_tokens", 1), "human"),
    Column("truncated", _count("truncated"), "trunc."),
    Column("identical", _count("identical"), "ident."),
    Column("empty", _count("empty")),
    Column("length AUC", _value("length_auc", 2), "AUC"),
]


def quality_columns(scores: Scores) -> list[Column]:
    """Columns for the scores of answers that were measured, then for likelihoods."""
    return [*(Column(words, with_error(name, 3)) for name, words in answer_words(scores).items()), *_LIKELIHOOD_COLUMNS]


def score_tables(summary: Mapping[str, Any]) -> list[tuple[str, list[Column], list[TableRow]]]:
    """(title, columns, rows) of a run's tables: quality, duels if there were any, replies."""
    rows = list(rows_of(summary))
    held_out = next(iter(rows[0].scores.values()))["n"]
    duels = [row for row in rows if row.opponent is not None]
    found = [
        (f"Quality on {held_out} held-out prompts (± standard error)", quality_columns(rows[0].scores), rows),
        ("Duels: human replies against the opponent's, on the same prompts", DUEL_COLUMNS, duels),
        ("Replies to the same prompts", REPLY_COLUMNS, rows),
    ]
    return [one for one in found if one[2]]


def answer_words(scores: Scores) -> dict[str, str]:
    """Score of answers that was measured -> its header. With k replies to a prompt exact match is pass@1."""
    k = samples_of(scores)
    exact = "exact match" if k == 1 else f"pass@1 (k={k})"
    sampled = {f"pass_at_{k}": f"pass@{k}", f"maj_at_{k}": f"maj@{k}"} if k > 1 else {}
    words = {"exact_match": exact, "exact_match_greedy": "exact, greedy", **sampled}
    return {name: word for name, word in words.items() if name in scores}


def samples_of(scores: Scores) -> int:
    """The number of replies to every held-out prompt, from the scores of answers."""
    return max((int(name.removeprefix("pass_at_")) for name in scores if name.startswith("pass_at_")), default=1)


def outcome_rows(summary: Mapping[str, Any]) -> Iterator[TableRow]:
    """For each iteration, the outcomes of the prompts that it trained on, and the rates of its opponent's replies; nothing for the human
    target."""
    for entry in summary["iterations"]:
        if "decided" in entry["counts"]:
            counts = {name: {"value": count, "stderr": None} for name, count in entry["counts"].items()}
            t = entry["iteration"]
            yield TableRow(f"iteration {t}", None, {**counts, **entry["rates"]}, iteration_stage(t, "train"))


def outcome_columns(rows: Sequence[TableRow]) -> list[Column]:
    """Columns of the counts, with the checker's failures where it has any."""
    failed = any(row.scores.get(FAILURES, {"value": 0})["value"] for row in rows)
    return [Column(name.replace("_", " "), with_error(name, 0)) for name in (*OUTCOMES, *([FAILURES] if failed else []))]


def rate_columns(rows: Sequence[TableRow]) -> list[Column]:
    """Columns of the rates that any iteration has."""
    return [Column(name.replace("_", " "), with_error(name, 3)) for name in RATES if any(name in row.scores for row in rows)]


def print_benchmarks(named: Mapping[str, Scores], facts: Mapping[str, Any], console: Console) -> None:
    """Print the benchmark scores of some models, and the settings from the facts of their stage."""
    print_scores("Benchmarks (± standard error)", named, console)
    console.print(how_played(facts))


def how_played(facts: Mapping[str, Any]) -> str:
    """The settings of benchmarks in words, from the facts of their stage."""
    items = "all items" if facts["limit"] is None else f"the first {facts['limit']} items"
    template = "applied" if facts["chat_template"] else "not applied"
    return f"Chat template {template}, {items}, lm-evaluation-harness {facts['harness']}."


def print_scores(title: str, named: Mapping[str, Scores], console: Console) -> None:
    """Print a table with one row per model and one column per score that any of them has."""
    rows = [TableRow(model, None, scores, stage="") for model, scores in named.items()]
    print_table(title, score_columns(rows), rows, console)


def score_columns(rows: Sequence[TableRow], of_benchmarks: bool = False) -> list[Column]:
    """A column for every score that any row has; `of_benchmarks`: only scores of benchmarks, whose names have a task before the metric."""
    names = dict.fromkeys(name for row in rows for name in row.scores if "/" in name or not of_benchmarks)
    return [Column(name, with_error(name, 3)) for name in names]


def print_table(title: str, columns: list[Column], rows: list[TableRow], console: Console, first: str = "model") -> None:
    """Print a table with the header `first` in the first column. If the terminal is too narrow, it gets short headers, and then several
    tables with the same rows are printed."""
    whole = _table(title, columns, rows, first, console)
    if _fits(whole, console):
        console.print(whole)
        return
    columns = [column._replace(header=column.short or column.header) for column in columns]
    while columns:
        count = next((n for n in range(len(columns), 1, -1) if _fits(_table(title, columns[:n], rows, first, console), console)), 1)
        console.print(_table(title, columns[:count], rows, first, console))
        title, columns = f"{title.split()[0].rstrip(':,')}, continued", columns[count:]


def columns_markup(caption: str, columns: Sequence[Column], rows: Sequence[TableRow], first: str = "model") -> Markup:
    """The same table for a page; empty without rows or columns."""
    if not rows or not columns:
        return Markup("")
    cells = [[row.model, *(column.cell(row) for column in columns)] for row in rows]
    best = next((number for number, row in enumerate(rows) if row.is_best), None)
    return table(caption, [first, *(column.header for column in columns)], cells, best=best)


def print_replies(prompt: str, replies: Mapping[str, str], console: Console) -> None:
    """Print a prompt and what every model replied."""
    shown = Table(title=Text(f"Prompt: {printable(prompt)}"), title_justify="left", show_header=False)
    for name, reply in replies.items():
        shown.add_row(name, Text(printable(reply)))
    console.print(shown)


def _table(title: str, columns: list[Column], rows: list[TableRow], first: str, console: Console) -> Table:
    table = Table(title=Text(fitting(title, console)), title_justify="left")
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(Text(fitting(column.header, console)), justify="right", no_wrap=True)
    for row in rows:
        cells = [f"{row.model} *" if row.is_best else row.model, *(column.cell(row) for column in columns)]
        table.add_row(*(Text(fitting(cell, console)) for cell in cells))
    return table


def _fits(table: Table, console: Console) -> bool:
    unlimited = console.options.update(max_width=10_000)
    return Measurement.get(console, unlimited, table).maximum <= console.width


TITLE = "Headroom of the start"
# score -> its name; k is the number of replies
NAMES = {
    "pass_at_1": "pass@1",
    "greedy": "greedy",
    "cool": "at temperature 0.7",
    "majority": "maj@{k}",
    "any": "pass@{k}",
    "nll": "NLL / token",
    "nll_after": "NLL after more SFT",
}


def headroom_of(root: Path) -> dict[str, Any] | None:
    """The headroom that the run in `root` measured; None if there is none yet."""
    file = root / f"{START}/headroom" / HEADROOM
    return read_json(file) if file.exists() else None


def headrooms_of(recipe: Recipe) -> dict[int, dict[str, Any]]:
    """seed -> the headroom of its start, for those seeds of the recipe for which its run has measured one."""
    root, seeds = Path(recipe.run_dir), recipe.seeds
    folders = {recipe.seed: root} if seeds is None else {seed: root / seed_folder(seed) for seed in seeds}
    return {seed: found for seed, folder in folders.items() if (found := headroom_of(folder)) is not None}


def headroom_table(found: Mapping[str, Any]) -> tuple[list[Column], list[TableRow]]:
    """Columns for the scores that were measured, and one row."""
    scores = found["scores"]
    columns = [Column(name.format(k=found["k"]), with_error(key, 3)) for key, name in NAMES.items() if scores.get(key)]
    return columns, [TableRow(START, None, scores, f"{START}/headroom")]


def print_headroom(found: Mapping[str, Any], console: Console, title: str = TITLE) -> None:
    """Print the headroom as a table, and its sentence."""
    print_table(title, *headroom_table(found), console)
    console.print(Text(found["sentence"]))


def headroom_markup(found: Mapping[str, Any]) -> Markup:
    """The headroom's sentence and table for the page."""
    return paragraph(found["sentence"]) + columns_markup(f"{TITLE} (± standard error over prompts)", *headroom_table(found))
