"""The figures of a target that moves: rates of each opponent's replies, and what several replies to a held-out prompt say."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from sparring.report import plots
from sparring.report.page import figure
from sparring.report.plots import Score, Series
from sparring.report.run_files import RunFiles
from sparring.report.tables import RATES, answer_words, outcome_rows, samples_of

TOLD = {
    "pass_rate": "Share of the replies to training prompts that the checker passes.",
    "vote_share": "Share of the replies to a training prompt that give its leading answer.",
    "distinct_answers": "Different answers to a training prompt. They get fewer in every game that succeeds; of one nothing can be chosen.",
}


def target_figures(run: RunFiles) -> Iterator[Markup]:
    """Rates over the iterations with their errors over prompts."""
    rows = list(outcome_rows(run.summary))
    for name in RATES:
        found = [(row.model, row.scores[name]) for row in rows if name in row.scores]
        if found:
            words = name.replace("_", " ")
            values = [Score(model, rate["value"], None if rate["stderr"] is None else (rate["stderr"],) * 2) for model, rate in found]
            yield figure(plots.scores(f"rate-{name}", words.capitalize(), values, words), TOLD[name])


def sampled_figures(run: RunFiles) -> Iterator[Markup]:
    """pass@1, pass@k and maj@k of the players of the game; nothing of one reply to a prompt."""
    scores = [player.row.scores for player in run.played]
    if samples_of(scores[0]) == 1:
        return
    words = {name: word for name, word in answer_words(scores[0]).items() if name != "exact_match_greedy"}
    names = {name: word for name, word in words.items() if all(name in found for found in scores)}
    series = [Series(word, range(len(scores)), [found[name]["value"] for found in scores]) for name, word in names.items()]
    told = "0 is the start. pass@k: one of k replies is right; maj@k: the answer that most of them give is. Errors are in the table."
    yield figure(plots.lines("sampled", "Several replies to a prompt", series, "iterations played", "share of held-out prompts"), told)
