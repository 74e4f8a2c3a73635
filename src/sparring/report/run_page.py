"""report.html: the results of a run on one self-contained page. For a verified or majority target also its rule, the outcomes of prompts,
rates, and prompts with all their replies."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sparring.config import to_yaml
from sparring.config.reference import show
from sparring.data.prepare import read_played
from sparring.data.records import Example, Reply
from sparring.data.tables import read_rows
from sparring.errors import UserError
from sparring.report import plots
from sparring.report.health import PAPER, REMEDY_LOST, Sign, differences_from_paper, signs, warnings
from sparring.report.outcome import REPORT, next_steps, verdict_lines
from sparring.report.page import PageSection, code, figure, figures, packed_data, paragraph, render, render_page, table, text_of
from sparring.report.plots import PlottedScore, both_sides
from sparring.report.run_files import ReportPlayer, RunFiles, read_run, showcase_of
from sparring.report.run_plots import cost_figures, first_figure, quality_figures, training_figures
from sparring.report.tables import (
    RATES,
    benchmark_table,
    headroom_markup,
    how_played,
    outcome_rows,
    score_tables,
    table_markup,
    target_tables,
)
from sparring.report.untrusted import CUT_AT, shortened
from sparring.rundir import now, write_text
from sparring.stage_names import START, iteration_stage
from sparring.targets import TARGETS, Candidate, Candidates, Selection
from sparring.targets.builtin import rule_of
from sparring.targets.select import HUMAN, OUTCOMES, candidates_of, rules_of

MOST_SAMPLES = 2000
MOST_BYTES = 3_600_000  # of the page's 5 MB
MOST_PROMPTS = 8
REPLY_CUT_AT = 1200  # characters of a text


def side_by_side(run: RunFiles) -> Markup:
    """The filters for samples, and the samples as packed data. Long texts are shortened until the page keeps to its size."""
    limit = CUT_AT
    while len(packed := packed_data("sample-data", samples_data(run, limit))) > MOST_BYTES and limit > 100:
        limit //= 2
    count = len(run.players[0].samples)
    return render("samples.html", packed=packed, count=count, shown=min(count, MOST_SAMPLES), limit=limit if limit < CUT_AT else None)


def samples_data(run: RunFiles, limit: int) -> dict[str, Any]:
    """players: names; best: index of the best player; samples: per row its texts and the replies in the order of the players."""
    best = next((player for player in run.players if player.row.is_best), run.played[-1])
    first = run.players[0].samples
    return {
        "players": [player.name for player in run.players],
        "best": run.players.index(best),
        "samples": [
            {
                "id": row_id,
                "prompt": shortened(sample["prompt"], limit),
                "human": shortened(sample["human"], limit),
                "human_tokens": sample.get("human_tokens"),
                "replies": [_reply(player, row_id, limit) for player in run.players],
            }
            for row_id, sample in list(first.items())[:MOST_SAMPLES]
        ],
    }


def _reply(player: ReportPlayer, row_id: str, limit: int) -> dict[str, Any] | None:
    sample = player.samples.get(row_id)
    if sample is None:
        return None
    greedy = sample.get("greedy")
    return {
        "text": shortened(sample["reply"], limit),
        "greedy": None if greedy is None else shortened(greedy, limit),
        "finish": sample["finish_reason"],
        "human_logp": _number(sample["human_logp"]),
        "own_logp": _number(sample["reply_logp"]),
        "margin": _number(sample.get("duel_margin")),
        "tokens": sample.get("reply_tokens"),
        "identical": sample.get("identical", sample["reply"] == sample["human"]),
        "right": sample.get("exact_match"),
    }


def _number(value: float | None) -> float | None:
    """The number rounded; None for NaN and infinity, which JSON does not have."""
    return round(value, 3) if value is not None and math.isfinite(value) else None


def write_report(root: Path, target: Path | None = None) -> Path:
    """Write the page to `target`, or into the run directory; returns its path. Raises UserError if it cannot read or write a file."""
    target = target or root / REPORT
    page = report_page(read_run(root))
    try:
        write_text(target, page)
    except OSError as error:
        raise UserError(f"cannot write the report: {error.strerror}", where=str(target), remedy="name another file by --output") from None
    return target


def report_page(run: RunFiles) -> str:
    """The page as text, the most important first."""
    said = (paragraph(line, "verdict") for line in verdict_lines(run.summary, str(run.root)))
    wrong = (paragraph(line, "warning") for line in warnings([*signs(run.summary, run.recipe), *_while_training(run)]))
    lead = render("first.html", said=Markup("").join(said), figure=first_figure(run), rest=Markup("").join([*wrong, _next(run)]))
    sections = [
        PageSection("scores", "Start, iterations and controls", _scores(run), "Scores"),
        *_benchmarks(run),
        *target_section(run),
        PageSection("quality", "Results", figures(list(quality_figures(run))), "Quality"),
        PageSection("training", "Course of the training", figures(list(training_figures(run))), "Training"),
        *_showcase(run),
        PageSection("samples", "Side by side", side_by_side(run)),
        PageSection("cost", "Time and tokens", figures(list(cost_figures(run))), "Cost"),
        PageSection("data", "Data", _data(run)),
        PageSection("recipe", "Recipe", _recipe(run)),
        PageSection("attempts", "Attempts and environment", _attempts(run), "Environment"),
        PageSection("again", "Play it again", _again(run), "Reproduce"),
    ]
    at = _moment(now())
    state = f"State of the run at {at}." if run.is_over else f"State of an unfinished run at {at}: reload the page for more."
    title = f"sparring: {run.root.resolve().name}"
    return render_page(title, lead, sections, text_of("unpack.js", "samples.js"), state)


def _while_training(run: RunFiles) -> Iterator[Sign]:
    """Symptoms that training itself found, step by step."""
    preferred = "winners" if run.recipe.target.uses_grades else "human replies"
    for player in run.played[1:]:
        step = run.facts(player.row.stage.replace("/evaluate", "/train")).get("human_logp_warning_at_step")
        if step is not None:
            yield Sign(f"During training the margin grew while the {preferred} lost log-prob", player.name, f"by step {step}", REMEDY_LOST)


def _next(run: RunFiles) -> Markup:
    """Commands for a finished run, without the one that shows this page."""
    if not run.is_over:
        return Markup("")
    steps = [(name, value) for name, value in next_steps(run.root, run.summary) if name != "look"]
    width = max(len(value) for _, value in steps)
    return code("\n".join(f"{value:<{width}}  # {name}" for name, value in steps), "What next")


def _scores(run: RunFiles) -> Markup:
    parts = [
        *map(table_markup, score_tables(run.summary)),
        paragraph(
            "Log-probs are sums over a reply's tokens, in nats. NLL is of the human replies: less is better. Margin: by how much more the "
            "player than its opponent prefers the human reply to the opponent's. Length AUC: how well length alone distinguishes them; "
            "0.5 is not at all.",
            "muted",
        ),
    ]
    if "headroom" in run.summary:
        parts.append(headroom_markup(run.summary["headroom"]))
    return Markup("").join(parts)


def _benchmarks(run: RunFiles) -> Iterator[PageSection]:
    """The recipe's benchmarks, with their settings."""
    if found := table_markup(benchmark_table([player.row for player in run.players])):
        yield PageSection("benchmarks", "Benchmarks", found + paragraph(how_played(run.facts(f"{START}/benchmarks")), "muted"))


def _showcase(run: RunFiles) -> Iterator[PageSection]:
    """The showcase prompts, each answered by every model, as in the paper; without any, held-out prompts."""
    shown = [
        ShownPrompt(shortened(prompt), "Prompt", tuple(ShownReply(name, shortened(reply)) for name, reply in replies.items()))
        for prompt, replies in showcase_of(run.players)
    ]
    if shown:
        yield PageSection("showcase", "Showcase", render("replies.html", prompts=shown))


def _data(run: RunFiles) -> Markup:
    data = run.facts("data")
    counts = [[name.replace("_", " "), f"{count:,}"] for name, count in data.get("counts", {}).items() if count]
    parts = [table("Rows read, kept and left out", ["rows", "count"], counts)] if counts else []
    if unused := data.get("unused_columns"):
        parts.append(paragraph(f"Columns of the rows that nothing reads: {', '.join(map(shortened, unused))}."))
    parts.append(prompt_counts(run))
    played = run.summary["iterations"]
    names = list(dict.fromkeys(name for entry in played for name, count in entry["counts"].items() if count))
    if names:
        rows = [[f"{entry['iteration']}", *(f"{entry['counts'].get(name, 0):,}" for name in names)] for entry in played]
        by_grades = run.recipe.target.uses_grades  # a prompt may have several pairs, so its count is not called "duels"
        headers = ["prompts trained on" if by_grades and name == "duels" else name.replace("_", " ") for name in names]
        caption = "Prompts and replies of each iteration's window" if by_grades else "Duels that each iteration trained on"
        parts.append(table(caption, ["iteration", *headers], rows))
    return Markup("").join(parts)


def _recipe(run: RunFiles) -> Markup:
    found = differences_from_paper(run.recipe)
    rows = [[key, show(ours), show(papers)] for key, (ours, papers) in found.items()]
    equal = [key for key in PAPER if key not in found]
    parts = [
        table("Where this differs from the experiment of the paper (arXiv 2401.01335)", ["key", "here", "paper"], rows, numbers=False),
        paragraph(f"As in the paper: {', '.join(equal)}.") if equal else Markup(""),
        Markup("<h3>The whole recipe</h3>"),
        code(to_yaml(run.recipe), "The whole recipe"),
    ]
    return Markup("").join(parts)


def _attempts(run: RunFiles) -> Markup:
    rows = [
        [
            _moment(attempt["started"]),
            _moment(attempt["ended"] or "-"),
            attempt["outcome"],
            attempt["sparring"],
            attempt["python"],
            ", ".join(f"{name} {version}" for name, version in attempt["libraries"].items()),
            ", ".join(f"{name} {value}" for name, value in attempt["hardware"].items()),
        ]
        for attempt in run.attempts
    ]
    headers = ["started", "ended", "outcome", "sparring", "Python", "libraries", "hardware"]
    return table("Every start of this run", headers, rows, numbers=False)


def _moment(written: str) -> str:
    """`2026-11-29 05:57:24 UTC`, with no-break spaces."""
    return written.replace("T", " ").replace("+00:00", " UTC").replace(" ", "\N{NO-BREAK SPACE}")


def _again(run: RunFiles) -> Markup:
    note = paragraph("The run directory holds its recipe with every value filled in. The same game from the start, in a new directory:")
    command = shlex.join(["sparring", "run", str(run.root / "recipe.yaml"), f"run_dir={run.recipe.run_dir}-again"])
    return note + code(command, "Command that plays this run again")


WON, LOST, NEITHER = "wins", "loses", "neither wins nor loses"


@dataclass(frozen=True)
class ShownReply:
    """`by`: "human", the number of the reply, or a model; `role`: whether it won; `facts`: its grade, if it has one."""

    by: str
    text: str
    role: str = ""
    facts: str = ""


@dataclass(frozen=True)
class ShownPrompt:
    """`heading`: the outcome as text; `replies`: the human one first, then winners, then losers."""

    prompt: str
    heading: str
    replies: tuple[ShownReply, ...]


def shown_prompts(run: RunFiles, t: int) -> list[ShownPrompt]:
    """At most MOST_PROMPTS prompts of iteration t, decided ones first; empty if the run directory does not contain their grades."""
    graded, generated = (run.root / iteration_stage(t, part) for part in ("grade", "generate"))
    shards = sorted(graded.glob("shard-*.parquet"))
    if not shards or not generated.is_dir():
        return []
    # prompts without replies come after the others
    rows = [row for shard in dict.fromkeys((shards[0], shards[-1])) for row in read_rows(shard)]
    by_row: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_row.setdefault(row["row_id"], []).append(row)
    replies = [Reply.of_row(row) for row in read_rows(generated, by_row)]
    examples = read_played(run.root / "data", by_row)
    found = candidates_of(rows, replies, examples, run.recipe.target.pass_score)
    target, rules = TARGETS[run.recipe.target.kind], rules_of(run.recipe)
    selected = {row_id: target(candidates, rules) for row_id, candidates in found.items()}
    order = sorted(examples, key=lambda example: (OUTCOMES.index(selected[example.row_id].outcome), example.row_id))
    return [_shown(e, found[e.row_id], selected[e.row_id], by_row[e.row_id]) for e in order[:MOST_PROMPTS]]


def _shown(example: Example, candidates: Candidates, selection: Selection, rows: Sequence[Mapping[str, Any]]) -> ShownPrompt:
    roles = {WON: 0, LOST: 1, NEITHER: 2}
    replies = sorted(_replies(candidates, selection, rows), key=lambda reply: (reply.by != "human", roles[reply.role]))
    prompt = example.conversation.prompt[-1]["content"]
    return ShownPrompt(shortened(prompt, REPLY_CUT_AT), selection.outcome.replace("_", " "), tuple(replies))


def _replies(candidates: Candidates, selection: Selection, rows: Sequence[Mapping[str, Any]]) -> Iterator[ShownReply]:
    graded = {row["replica"]: row for row in rows}
    if candidates.human is not None:
        human = candidates.human
        role = WON if any(winner is human for winner in selection.winners) else NEITHER
        yield ShownReply("human", shortened(human.text, REPLY_CUT_AT), role, _facts(graded.get(HUMAN), is_complete=True))
    of_model = [row for row in rows if row["replica"] != HUMAN]
    for row, candidate in zip(of_model, candidates.replies, strict=True):
        text = shortened(candidate.text, REPLY_CUT_AT)
        yield ShownReply(str(row["replica"]), text, _role(candidate, selection), _facts(row, candidate.is_complete))


def _role(candidate: Candidate, selection: Selection) -> str:
    """The role of a reply. An exact copy of a winner or a loser has the role of that one; a reply cut at the limit never wins."""
    if candidate.is_complete and any(candidate.text == winner.text for winner in selection.winners):
        return WON
    return LOST if any(candidate.text == loser.text for loser in selection.losers) else NEITHER


def _facts(row: Mapping[str, Any] | None, is_complete: bool) -> str:
    if row is None:
        return "not graded"
    score = "no score" if row["score"] is None else f"score {row['score']:g}"
    answer = "no answer" if row["answer"] is None else f"answer {shortened(row['answer'], REPLY_CUT_AT)}"
    return " · ".join([score, answer, shortened(row["reason"], REPLY_CUT_AT), *([] if is_complete else ["cut at the limit"])])


def target_section(run: RunFiles) -> Iterator[PageSection]:
    """The section on winners and losers; none for a game in which the human reply always wins."""
    if not run.recipe.target.uses_grades:
        return
    parts = [
        paragraph(" ".join(rule_of(run.recipe))),
        *(paragraph(line) for line in _notes(run)),
        *map(table_markup, target_tables(run.summary)),
        paragraph("Each opponent is the player of the iteration before. Rates are of training prompts: they are not scores.", "muted"),
        figures(list(target_figures(run))),
        _examples(run),
    ]
    yield PageSection("target", f"Who won: target {run.recipe.target.kind}", Markup("").join(parts), "Winners")


def prompt_counts(run: RunFiles) -> Markup:
    """How many of `data.prompts` were used and dropped; empty if the recipe has none."""
    counts = run.facts("data").get("prompt_counts", {})
    rows = [[name.replace("_", " "), f"{count:,}"] for name, count in counts.items()]
    return table("Prompts without replies", ["prompts", "count"], rows) if rows else Markup("")


def _notes(run: RunFiles) -> Iterator[str]:
    unanswered = run.facts("data").get("prompt_counts", {}).get("prompts", 0)
    if unanswered:
        yield (
            f"{unanswered:,} of the prompts have no human reply, so only the model's own replies can win there. Scores and duels are of "
            "the held-out rows, which all have a human reply."
        )
    start, last = (player.row.scores["real_logp"]["value"] for player in (run.played[0], run.played[-1]))
    if last < start and not run.recipe.target.human_alone_wins:  # else it is among the warnings
        yield (
            f"The log-prob of the held-out human replies fell from {start:.2f} to {last:.2f} nats. The model's own replies win too, and "
            "their wording may differ from that of people, so this alone is not a problem. Judge by the scores."
        )


def _examples(run: RunFiles) -> Markup:
    """Example prompts with all their replies, of the newest iteration that was scored."""
    t = len(run.summary["iterations"]) - 1
    prompts = shown_prompts(run, t) if t >= 0 else []
    if not prompts:
        return Markup("")
    title = Markup("<h3>{}</h3>").format(f"Winners and losers of some prompts of iteration {t}")
    return title + render("replies.html", prompts=prompts)


def target_figures(run: RunFiles) -> Iterator[Markup]:
    """One plot per rate: its value in every iteration, with the standard error over prompts."""
    rows = list(outcome_rows(run.summary))
    for name, caption in RATES.items():
        found = [(row.model, row.scores[name]) for row in rows if name in row.scores]
        if found:
            words = name.replace("_", " ")
            values = [PlottedScore(model, rate["value"], both_sides(rate["stderr"])) for model, rate in found]
            yield figure(plots.scores(f"rate-{name}", words.capitalize(), values, words), caption)
