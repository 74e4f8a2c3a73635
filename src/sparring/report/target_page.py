"""The part of the report on a verified or majority target: rule, outcomes of prompts, rates, and prompts with all their replies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from sparring.data.prepare import read_played
from sparring.data.records import Example, Reply
from sparring.data.tables import read_rows
from sparring.report import plots
from sparring.report.page import PageSection, figure, figures, paragraph, render, table
from sparring.report.plots import PlottedScore, both_sides
from sparring.report.rule import rule_of
from sparring.report.run_files import RunFiles
from sparring.report.tables import RATES, outcome_rows, table_markup, target_tables
from sparring.report.untrusted import shortened
from sparring.stage_names import iteration_stage
from sparring.targets import TARGETS, Candidate, Candidates, Selection
from sparring.targets.select import HUMAN, OUTCOMES, candidates_of, rules_of

MOST_PROMPTS = 8
CUT_AT = 1200  # characters of a text
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
    return ShownPrompt(shortened(prompt, CUT_AT), selection.outcome.replace("_", " "), tuple(replies))


def _replies(candidates: Candidates, selection: Selection, rows: Sequence[Mapping[str, Any]]) -> Iterator[ShownReply]:
    graded = {row["replica"]: row for row in rows}
    if candidates.human is not None:
        human = candidates.human
        role = WON if any(winner is human for winner in selection.winners) else NEITHER
        yield ShownReply("human", shortened(human.text, CUT_AT), role, _facts(graded.get(HUMAN), is_complete=True))
    of_model = [row for row in rows if row["replica"] != HUMAN]
    for row, candidate in zip(of_model, candidates.replies, strict=True):
        text = shortened(candidate.text, CUT_AT)
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
    answer = "no answer" if row["answer"] is None else f"answer {shortened(row['answer'], CUT_AT)}"
    return " · ".join([score, answer, shortened(row["reason"], CUT_AT), *([] if is_complete else ["cut at the limit"])])


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
    if last < start:
        yield (
            f"The log-prob of the held-out human replies fell from {start:.2f} to {last:.2f} nats. Most winners are the model's own "
            "replies, whose wording may differ from that of people, so this alone is not a problem. Judge by the scores."
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
