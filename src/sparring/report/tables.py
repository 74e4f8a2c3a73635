"""The tables of scores in terminal and report, with a row per model and standard errors; and the headroom of the start."""

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
from sparring.targets.select import OUTCOMES

Scores = Mapping[str, Any]


class TableRow(NamedTuple):
    """A model in a table, its scores, its opponent in duels, and the stage of the run with scores and samples ("" for none)."""

    model: str
    scores: Scores
    opponent: str | None = None
    stage: str = ""
    is_best: bool = False


class Column(NamedTuple):
    """A column of a table of models."""

    header: str
    cell: Callable[[TableRow], str]


class TextTable(NamedTuple):
    """A table as texts, for terminal and page. The first cell of a row names it; `best`: the row that is marked."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: int | None = None


def models_table(title: str, columns: Sequence[Column], rows: Sequence[TableRow], first: str = "model") -> TextTable:
    """A row per model; `first`: the header of their names."""
    cells = [[row.model, *(column.cell(row) for column in columns)] for row in rows]
    best = next((number for number, row in enumerate(rows) if row.is_best), None)
    return TextTable(title, [first, *(column.header for column in columns)], cells, best)


def rows_of(summary: Mapping[str, Any]) -> Iterator[TableRow]:
    """The models of a run in order: start, iterations, control."""
    best = summary["best"]
    yield TableRow(start_title(summary["start"]["name"]), summary["start"]["scores"], None, f"{START}/evaluate")
    for entry in summary["iterations"]:
        t = entry["iteration"]
        opponent = f"iteration {t - 1}" if t else "start"
        yield TableRow(f"iteration {t}", entry["scores"], opponent, iteration_stage(t, "evaluate"), bool(best) and best["iteration"] == t)
    for entry in summary["controls"]:
        start = entry["from_iteration"]
        opponent = "start" if start is None else f"iteration {start}"
        yield TableRow(entry["name"], entry["scores"], opponent, f"{entry['stage']}/evaluate")


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


# rate of a game with a verified or majority target -> what it is
RATES = {
    "pass_rate": "Share of the replies to training prompts that the checker passes.",
    "vote_share": "Share of the replies to a training prompt that give its leading answer.",
    "distinct_answers": "Different answers to a training prompt. Their number falls as the model improves; one answer leaves no choice.",
}
FAILURES = "checker_failures"
# header -> that of a terminal which is too narrow for the whole table
SHORT = {
    "log p own reply": "log p own",
    "reply tokens": "tokens",
    "human tokens": "human",
    "truncated": "trunc.",
    "identical": "ident.",
    "length AUC": "AUC",
}
_LIKELIHOOD_COLUMNS = [
    Column("NLL / token", with_error("nll_per_token", 4)),
    Column("log p human", with_error("real_logp", 2)),
    Column("log p own reply", with_error("generated_logp", 2)),
]
DUEL_COLUMNS = [
    Column("against", lambda row: row.opponent or "-"),
    Column("margin", with_error("duel_margin", 2)),
    Column("accuracy (interval)", _accuracy),
]
REPLY_COLUMNS = [
    Column("reply tokens", with_error("reply_tokens", 1)),
    Column("human tokens", _value("human_reply_tokens", 1)),
    Column("truncated", _count("truncated")),
    Column("identical", _count("identical")),
    Column("empty", _count("empty")),
    Column("length AUC", _value("length_auc", 2)),
]


def score_tables(summary: Mapping[str, Any]) -> list[TextTable]:
    """The tables of a run: quality (scores of answers that were measured, then likelihoods), duels if there were any, replies."""
    rows = list(rows_of(summary))
    scores = rows[0].scores
    held_out = next(iter(scores.values()))["n"]
    quality = [*(Column(words, with_error(name, 3)) for name, words in answer_words(scores).items()), *_LIKELIHOOD_COLUMNS]
    duels = [row for row in rows if row.opponent is not None]
    return [
        models_table(f"Quality on {held_out} held-out prompts (± standard error)", quality, rows),
        models_table("Duels: human replies against the opponent's, on the same prompts", DUEL_COLUMNS, duels),
        models_table("Replies to the same prompts", REPLY_COLUMNS, rows),
    ]


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
            yield TableRow(f"iteration {t}", {**counts, **entry["rates"]})


def target_tables(summary: Mapping[str, Any]) -> list[TextTable]:
    """The outcomes, with the checker's failures if there are any, and the rates that any iteration has."""
    rows = list(outcome_rows(summary))
    failed = any(row.scores.get(FAILURES, {"value": 0})["value"] for row in rows)
    counts = ("prompts", *OUTCOMES, "winners", "pairs", *([FAILURES] if failed else []))
    rates = [name for name in RATES if any(name in row.scores for row in rows)]
    return [
        models_table(title, [Column(name.replace("_", " "), with_error(name, digits)) for name in names], rows, "iteration")
        for title, names, digits in (
            ("Winners: outcome of every prompt in the window", counts, 0),
            ("Graded: each opponent's replies to the training prompts (± standard error)", rates, 3),
        )
    ]


def all_scores_table(title: str, rows: Sequence[TableRow], of_benchmarks: bool = False) -> TextTable:
    """A column for every score that any row has; `of_benchmarks`: only scores of benchmarks, whose names have a task before the metric."""
    names = dict.fromkeys(name for row in rows for name in row.scores if "/" in name or not of_benchmarks)
    return models_table(title, [Column(name, with_error(name, 3)) for name in names], rows)


def benchmark_table(rows: Sequence[TableRow]) -> TextTable:
    """The benchmark scores of some models; without columns if there are none."""
    return all_scores_table("Benchmarks (± standard error)", rows, of_benchmarks=True)


def how_played(facts: Mapping[str, Any]) -> str:
    """The settings of benchmarks in words, from the facts of their stage."""
    return f"Chat template {template_and_items(facts['chat_template'], facts['limit'])}, lm-evaluation-harness {facts['harness']}."


def template_and_items(chat_template: bool, limit: int | None) -> str:
    """Whether the chat template was applied, and to how many items of a benchmark."""
    return f"{'applied' if chat_template else 'not applied'}, {'all items' if limit is None else f'the first {limit} items'}"


def print_table(found: TextTable, console: Console) -> None:
    """Print a table that has rows and columns. If the terminal is too narrow, it gets short headers, and then several tables with the same
    rows are printed."""
    if not _fits(found, console):
        found = found._replace(headers=[SHORT.get(header, header) for header in found.headers])
    while found.rows and len(found.headers) > 1:
        end = next((n for n in range(len(found.headers), 2, -1) if _fits(_part(found, 1, n), console)), 2)
        console.print(_rendered(_part(found, 1, end), console))
        found = _part(found, end, None)._replace(title=f"{found.title.split()[0].rstrip(':,')}, continued")


def print_benchmarks(rows: Sequence[TableRow], facts: Mapping[str, Any], console: Console) -> None:
    """Print the benchmark scores of some models, and the settings from the facts of their stage; nothing without any."""
    found = benchmark_table(rows)
    if len(found.headers) > 1:
        print_table(found, console)
        console.print(how_played(facts))


def table_markup(found: TextTable) -> Markup:
    """The same table for a page; empty without rows or columns."""
    return table(*found) if found.rows and len(found.headers) > 1 else Markup("")


def print_replies(prompt: str, replies: Mapping[str, str], console: Console) -> None:
    """Print a prompt and what every model replied."""
    shown = Table(title=Text(f"Prompt: {printable(prompt)}"), title_justify="left", show_header=False)
    for name, reply in replies.items():
        shown.add_row(name, Text(printable(reply)))
    console.print(shown)


def _part(found: TextTable, start: int, end: int | None) -> TextTable:
    """The first column, and those from `start` to before `end`."""
    headers, *rows = ([row[0], *row[start:end]] for row in (found.headers, *found.rows))
    return found._replace(headers=headers, rows=rows)


def _rendered(found: TextTable, console: Console) -> Table:
    table = Table(title=Text(fitting(found.title, console)), title_justify="left")
    first, *others = (Text(fitting(header, console)) for header in found.headers)
    table.add_column(first, overflow="fold")
    for header in others:
        table.add_column(header, justify="right", no_wrap=True)
    for number, (name, *cells) in enumerate(found.rows):
        shown = [f"{name} *" if number == found.best else name, *cells]
        table.add_row(*(Text(fitting(cell, console)) for cell in shown))
    return table


def _fits(found: TextTable, console: Console) -> bool:
    unlimited = console.options.update(max_width=10_000)
    return Measurement.get(console, unlimited, _rendered(found, console)).maximum <= console.width


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


def headroom_table(found: Mapping[str, Any], title: str = TITLE) -> TextTable:
    """One row with the scores that were measured."""
    scores = found["scores"]
    columns = [Column(name.format(k=found["k"]), with_error(key, 3)) for key, name in NAMES.items() if scores.get(key)]
    return models_table(title, columns, [TableRow(START, scores)])


def print_headroom(found: Mapping[str, Any], console: Console, title: str = TITLE) -> None:
    """Print the headroom as a table, and its sentence."""
    print_table(headroom_table(found, title), console)
    console.print(Text(found["sentence"]))


def headroom_markup(found: Mapping[str, Any]) -> Markup:
    """The headroom's sentence and table for the page."""
    return paragraph(found["sentence"]) + table_markup(headroom_table(found, f"{TITLE} (± standard error over prompts)"))
