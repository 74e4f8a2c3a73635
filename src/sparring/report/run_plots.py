"""The figures of one run, with captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from sparring.report import plots
from sparring.report.outcome import WORDS
from sparring.report.page import figure
from sparring.report.plots import Error, PlottedScore, PlottedSeries, both_sides
from sparring.report.run_files import ReportPlayer, RunFiles
from sparring.report.tables import answer_words, samples_of
from sparring.stage_names import SFT, START, iteration_name, iteration_of, title_of

PARTS = {
    "generate": "sampling",
    "grade": "grading",
    "headroom": "headroom",
    "pairs": "preparing",
    "score": "opponent log-probs",
    "score-start": "log-probs of the start",
    "train": "training",
    "measure": "measuring",
    "evaluate": "evaluation",
    "benchmarks": "benchmarks",
}
CONTROL_LOOK, START_LOOK, WON_LOOK, LOST_LOOK = 6, 7, 8, 9  # iterations have lower ones; the last two are for replies, not for players
TOKENS = {"sampled_tokens": "sampled", "scored_tokens": "scored", "trained_tokens": "trained"}


def first_figure(run: RunFiles) -> Markup:
    """The plot at the top: exact match if the recipe has answers, else the likelihood of the human replies."""
    metric, words = next(iter(_shown(run).items()))
    return figure(_score_plot(run, metric, words), f"± standard error over {run.players[0].row.scores[metric]['n']} held-out prompts.")


def quality_figures(run: RunFiles) -> Iterator[Markup]:
    """The other results: scores with their errors, the two-sample test, likelihood, lengths."""
    for metric in list(_shown(run))[1:]:
        yield figure(_score_plot(run, metric, WORDS[metric]), "Bars are standard errors over the held-out prompts.")
    if len(run.played) > 1:
        yield figure(*_two_sample_test(run))
    yield from sampled_figures(run)
    sign = "it may fall, since winners may be worded differently" if run.recipe.target.uses_grades else "a fall is a warning sign"
    yield figure(_score_plot(run, "real_logp", "log p of human replies"), f"In nats, over held-out prompts; {sign}.")
    yield figure(_score_plot(run, "generated_logp", "log p of own replies"), "In nats; every model on the replies that it sampled itself.")
    if lengths := _lengths(run):
        caption = "Boxes hold the middle half, whiskers reach from the 5th to the 95th percentile; the diamond is the mean."
        yield figure(plots.distributions("lengths", "Reply lengths", lengths, "tokens"), caption)


def card_figures(run: RunFiles) -> dict[str, str]:
    """score -> its plot, for the scores in a model card."""
    return {metric: _score_plot(run, metric, words) for metric, words in {**_shown(run), "real_logp": "log p of human replies"}.items()}


def _shown(run: RunFiles) -> dict[str, str]:
    """score -> its name in texts, for the scores that were measured; NLL per token only."""
    return {metric: words for metric, words in WORDS.items() if metric in run.players[0].row.scores and metric != "nll_per_reply"}


def training_figures(run: RunFiles) -> Iterator[Markup]:
    """The training metrics by optimizer step of the self-play iterations, and of the SFT stage if there is one."""
    duels = _phases(run, sft=False)
    whole = _phases(run, sft=True)
    for key, title, label, zero, caption in (
        ("margin", "Margin", "margin, nats", 0.0, "0 at the first step of every iteration, where player and opponent are equal."),
        ("accuracy", "Accuracy", "share of duels won", 0.5, "Share of a batch's duels with a positive margin."),
    ):
        if lines := _series(duels, key):
            yield figure(plots.lines(key, title, lines, "optimizer step", label, zero=zero), caption)
    won, lost = ("winners", "losers") if run.recipe.target.uses_grades else ("human replies", "opponent's replies")
    if lines := _named(duels, {"real_logp": (won, WON_LOOK), "generated_logp": (lost, LOST_LOOK)}):
        yield figure(plots.lines("logps", "Log-probs", lines, "optimizer step", "log p, nats"), "Means of each batch, under the player.")
    if lines := _named(duels, {"reward_real": (won, WON_LOOK), "reward_generated": (lost, LOST_LOOK)}):
        caption = f"Compared with the opponent that the iteration started from. Below 0 the {won} have lost log-prob."
        yield figure(plots.lines("rewards", "Change of log-prob", lines, "optimizer step", "log p ratio", zero=0.0), caption)
    for key, title, logarithmic in (("loss", "Loss", False), ("grad_norm", "Gradient norm", True), ("lr", "Learning rate", False)):
        if lines := _series(whole, key):
            yield figure(plots.lines(key, title, lines, "optimizer step", title.lower(), log_y=logarithmic))


def cost_figures(run: RunFiles) -> Iterator[Markup]:
    """Time and tokens of every stage."""
    costs = [(*_owner_and_part(name), cost) for name, cost in run.summary["stages"].items()]
    yield _summed("Time", "seconds", [(owner, part, cost.get("wall_seconds", 0.0)) for owner, part, cost in costs])
    if tokens := [(owner, word, cost[key]) for owner, _, cost in costs for key, word in TOKENS.items() if cost.get(key)]:
        yield _summed("Tokens", "tokens", tokens)


def _summed(title: str, unit: str, amounts: Sequence[tuple[str, str, float]]) -> Markup:
    """A bar per owner: amounts are (owner, part, value), those of one part are added up."""
    owners = list(dict.fromkeys(owner for owner, _, _ in amounts))
    parts: dict[str, list[float]] = {}
    for owner, part, value in amounts:
        parts.setdefault(part, [0.0] * len(owners))[owners.index(owner)] += value
    return figure(plots.bars(unit, title, owners, list(parts.items()), unit))


def _look(stage: str) -> int:
    """Number of the colour and mark of a stage's player, the same in every plot: by number for iterations, fixed for start and controls."""
    t = iteration_of(stage)
    return START_LOOK if stage in (SFT, f"{START}/evaluate") else CONTROL_LOOK if t is None else t % CONTROL_LOOK


def _short_name(player: ReportPlayer) -> str:
    return player.name.partition(" (")[0]


def _score_plot(run: RunFiles, metric: str, words: str) -> str:
    values = [_plotted(player, score, both_sides(score["stderr"])) for player in run.players for score in [player.row.scores[metric]]]
    return plots.scores(metric, f"{words[0].upper()}{words[1:]}", values, words, ("start", values[0].value))


def _plotted(player: ReportPlayer, score: Mapping[str, Any], error: Error | None) -> PlottedScore:
    return PlottedScore(_short_name(player), score["value"], error, player.apart, _look(player.row.stage))


def _two_sample_test(run: RunFiles) -> tuple[str, str]:
    found = [(player, player.row.scores["duel_accuracy"]) for player in run.players[1:]]
    values = [_plotted(p, s, (max(0.0, s["value"] - s["low"]), max(0.0, s["high"] - s["value"]))) for p, s in found]
    plot = plots.scores("test", "Two-sample test", values, "accuracy in held-out duels", ("chance", 0.5))
    level = f"{run.recipe.stop.confidence * 100:g}%"
    ends = run.recipe.stop.indistinguishable and not run.recipe.target.uses_grades
    over = ", and the game is over" if ends else ""
    return plot, f"Can the player distinguish human replies from its opponent's? {level} intervals; at one half it cannot{over}."


def _lengths(run: RunFiles) -> list[tuple[str, list[float]]]:
    """Tokens of the human replies and of every model's; empty if an earlier version did not store them."""
    columns = [("human", run.players[0], "human_tokens"), *((_short_name(player), player, "reply_tokens") for player in run.players)]
    found: list[tuple[str, list[float]]] = []
    for name, player, key in columns:
        lengths = [length for sample in player.samples.values() if (length := sample.get(key)) is not None]
        if not lengths or len(lengths) < len(player.samples):
            return []
        found.append((name, lengths))
    return found


Phases = dict[str, list[tuple[int, dict[str, Any]]]]


def _phases(run: RunFiles, sft: bool) -> Phases:
    """owner -> [(step of the whole run, row)] of the iterations, after the SFT stage if `sft`: one axis for all plots."""
    owners: dict[str, int | None] = {SFT: None} if sft else {}
    owners |= {iteration_name(t): t for t in range(len(run.summary["iterations"]))}
    numbered = list(enumerate(row for row in run.steps if row.get("stage", SFT) == SFT))  # the SFT stage counts, shown or not
    return {owner: [(x, row) for x, row in numbered if row.get("iteration") == t] for owner, t in owners.items()}


def _series(phases: Phases, key: str) -> list[PlottedSeries]:
    """A line per phase."""
    found = {owner: [(x, row[key]) for x, row in rows if row.get(key) is not None] for owner, rows in phases.items()}
    return [
        PlottedSeries(title_of(owner), [x for x, _ in points], [y for _, y in points], _look(owner))
        for owner, points in found.items()
        if points
    ]


def _named(phases: Phases, names: dict[str, tuple[str, int]]) -> list[PlottedSeries]:
    """A line per key through all phases, with its name and look; empty if any row lacks a key."""
    rows = [row for rows in phases.values() for row in rows]
    if not rows or any(row.get(key) is None for _, row in rows for key in names):
        return []
    return [PlottedSeries(name, [x for x, _ in rows], [row[key] for _, row in rows], look) for key, (name, look) in names.items()]


def _owner_and_part(stage: str) -> tuple[str, str]:
    """`iterations/001/train` -> ("iteration 1", "training")."""
    owner, _, part = stage.rpartition("/")
    if not owner:
        return (title_of(stage), "training" if stage == SFT else "preparing")
    return title_of(owner), PARTS[part]


def sampled_figures(run: RunFiles) -> Iterator[Markup]:
    """pass@1, pass@k and maj@k of the players of the game; nothing with one reply to a prompt."""
    scores = [player.row.scores for player in run.played]
    if samples_of(scores[0]) == 1:
        return
    words = answer_words(scores[0])
    names = [name for name in words if name != "exact_match_greedy" and all(name in found for found in scores)]
    series = [
        PlottedSeries(words[name], range(len(scores)), [found[name]["value"] for found in scores], look) for look, name in enumerate(names)
    ]
    caption = "0 is the start. pass@k: one of k replies is right; maj@k: the most frequent answer of k is right. Errors are in the table."
    yield figure(plots.lines("sampled", "Several replies to a prompt", series, "iterations played", "share of held-out prompts"), caption)
