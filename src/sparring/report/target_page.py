"""The part of the report on a verified or majority target: the rule, outcomes of prompts, rates, examples of winners and losers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from sparring.report import plots
from sparring.report.contests import shown_prompts
from sparring.report.page import PageSection, figure, figures, paragraph, render, table
from sparring.report.plots import PlottedScore
from sparring.report.rule import rule_of
from sparring.report.run_files import RunFiles
from sparring.report.tables import OUTCOME_COLUMNS, OUTCOMES_TITLE, RATES, RATES_TITLE, Column, Row, outcome_rows, rate_columns

RATE_CAPTIONS = {
    "pass_rate": "Share of the replies to training prompts that the checker passes.",
    "vote_share": "Share of the replies to a training prompt that give its leading answer.",
    "distinct_answers": "Different answers to a training prompt. They get fewer in every game that succeeds; of one nothing can be chosen.",
}


def target_section(run: RunFiles) -> Iterator[PageSection]:
    """Nothing for a game in which the human reply always wins."""
    if not run.recipe.target.uses_grades:
        return
    rows = list(outcome_rows(run.summary))
    parts = [
        paragraph(" ".join(rule_of(run.recipe))),
        *(paragraph(line) for line in _notes(run)),
        _table(OUTCOMES_TITLE, OUTCOME_COLUMNS, rows),
        _table(f"{RATES_TITLE} (± standard error)", rate_columns(rows), rows),
        paragraph("Each opponent is the player of the iteration before. Rates are of prompts that are trained on: no scores.", "muted"),
        figures(list(target_figures(run))),
        _examples(run),
    ]
    yield PageSection("target", f"Who won: target {run.recipe.target.kind}", Markup("").join(parts), "Winners")


def prompt_counts(run: RunFiles) -> Markup:
    """What became of `data.prompts`; nothing where the recipe has none."""
    counts = run.facts("data").get("prompt_counts", {})
    rows = [[name.replace("_", " "), f"{count:,}"] for name, count in counts.items()]
    return table("Prompts without replies", ["prompts", "count"], rows) if rows else Markup("")


def _notes(run: RunFiles) -> Iterator[str]:
    unanswered = run.facts("data").get("prompt_counts", {}).get("prompts", 0)
    if unanswered:
        yield (
            f"{unanswered:,} of the prompts have no human reply: nothing is known of its likelihood, and only the model's own replies can "
            "win there. Scores and duels are of the held-out rows, which all have one."
        )
    start, last = (player.row.scores["real_logp"]["value"] for player in (run.played[0], run.played[-1]))
    if last < start:
        yield (
            f"The log-prob of the held-out human replies fell from {start:.2f} to {last:.2f} nats. Winners are the model's own replies for "
            "the most part, which need not be worded as people's are: by itself that is no fault. Judge by the scores."
        )


def _table(caption: str, columns: Sequence[Column], rows: Sequence[Row]) -> Markup:
    cells = [[row.model, *(column.cell(row) for column in columns)] for row in rows]
    return table(caption, ["iteration", *(column.header for column in columns)], cells) if rows and columns else Markup("")


def _examples(run: RunFiles) -> Markup:
    """Of the newest iteration that was scored."""
    t = len(run.summary["iterations"]) - 1
    prompts = shown_prompts(run, t) if t >= 0 else []
    if not prompts:
        return Markup("")
    title = Markup("<h3>{}</h3>").format(f"Winners and losers of some prompts of iteration {t}")
    return title + render("replies.html", prompts=prompts)


def target_figures(run: RunFiles) -> Iterator[Markup]:
    """Rates over the iterations with their errors over prompts."""
    rows = list(outcome_rows(run.summary))
    for name in RATES:
        found = [(row.model, row.scores[name]) for row in rows if name in row.scores]
        if found:
            words = name.replace("_", " ")
            values = [
                PlottedScore(model, rate["value"], None if rate["stderr"] is None else (rate["stderr"],) * 2) for model, rate in found
            ]
            yield figure(plots.scores(f"rate-{name}", words.capitalize(), values, words), RATE_CAPTIONS[name])
