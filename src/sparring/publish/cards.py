"""The cards of a model and of a data set: description, method, scores, and usage."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparring.config import PromptsSection, Recipe
from sparring.config.yaml_dialect import dump_yaml
from sparring.publish.names import Licence, is_hub_id, licence_of, public
from sparring.publish.pairs import splits
from sparring.report.health import signs, warnings
from sparring.report.outcome import verdict
from sparring.report.tables import entries_of, score_text, template_and_items
from sparring.report.untrusted import LONGEST_TEXT, code_span, one_line, visible, words
from sparring.stage_names import START, start_title, title_of_player
from sparring.targets.builtin import checker_name, rule_of

TAGS = ["spin", "self-play", "sparring"]
METHOD = "self-play (SPIN, [arXiv 2401.01335](https://arxiv.org/abs/2401.01335))"
SEVERAL_LICENCES = "\n\nNo licence is named for the whole data set: the licences of data and prompts differ, or one is not known."
# counts of `write_pairs` -> their columns
REPLY_COUNTS = {"rows": "rows", "identical": "reply equals the human one", "truncated": "cut at the length limit"}
PAIR_COUNTS = {
    "prompts": "prompts with pairs",
    "unanswered": "of them without a human reply",
    "rows": "pairs",
    "chosen_human": "of them won by the human reply or one equal to it",
    "truncated": "losers cut at the length limit",
}
CITATION = """## Reference

Chen, Deng, Yuan, Ji, Gu: Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models. ICML 2024, arXiv 2401.01335.

```bibtex
@inproceedings{chen2024selfplay,
  title     = {Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models},
  author    = {Chen, Zixiang and Deng, Yihe and Yuan, Huizhuo and Ji, Kaixuan and Gu, Quanquan},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2024},
}
```
"""


@dataclass(frozen=True)
class About:
    """Facts of a card that are not in the run: the repositories on the Hub, and the licences of base model and data.

    pairs: control -> licence of its labelled pairs, if it has any; prompts: licence of `data.prompts`, of which the game was played on
    `unanswered`. revision: the branch of the model that the card belongs to; revisions: those of all iterations.
    """

    base: Licence
    data: Licence
    pairs: Mapping[str, Licence] = field(default_factory=dict)
    prompts: Licence | None = None
    unanswered: int = 0
    repo: str | None = None
    dataset_repo: str | None = None
    revision: str | None = None
    revisions: tuple[str, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe, given: Mapping[str, str | None] | None = None, **more: Any) -> About:
        """given: licences that the user gives for "base", "data", "pairs" and "prompts"; others are looked up."""
        given, prompts = given or {}, recipe.data.prompts
        return cls(
            licence_of(recipe.model.path, "base", given),
            licence_of(recipe.data.paths[0], "data", given),
            {section.folder: licence_of(section.pairs.paths[0], "pairs", given) for section in recipe.controls if section.pairs},
            None if prompts is None else licence_of(prompts.paths[0], "prompts", given),
            **more,
        )

    @property
    def is_of_one_licence(self) -> bool:
        """Whether `data` and `data.prompts` have the same licence: the data set of replies has rows of both."""
        return self.prompts is None or self.prompts.name == self.data.name


def model_card(
    recipe: Recipe, summary: Mapping[str, Any], player: str, about: About, adapter: bool = False, plots: Mapping[str, str] | None = None
) -> str:
    """The card of a model: what it is, how it was trained, and every score with its error. Names no folder of this machine.

    plots: score -> file of its plot, next to the card.
    """
    shown = public(recipe)
    title, learned_from = words(model_title(summary, player)), _learned_from(shown, recipe, player)
    origin = code_span(shown["model"]["path"])
    made = f"{origin} as it is" if player == START and recipe.sft is None else f"started from {origin}, trained on {learned_from}"
    body = f"""{_how(recipe, about, player)}
This is {title}, {made}.

{_outcome(summary)}{_warnings(summary, recipe)}

## Scores

{_score_table(summary)}

Value and standard error on held-out prompts that no iteration was trained on. {_benchmarks(recipe)}{_choice(summary)}{_images(plots or {})}

## Use

{_usage(recipe, about, adapter)}"""
    origins = f"{_origins(shown, recipe, about, player)}{_link('The replies that the players sampled', 'datasets/', about.dataset_repo)}"
    return _card(_model_metadata(recipe, summary, player, about, adapter), title, body, origins, shown)


def dataset_card(recipe: Recipe, counts: Mapping[int, Mapping[str, int]], about: About) -> str:
    """The card of the data set of replies. counts: those of `write_pairs`. Names no folder of this machine."""
    shown, by_grades = public(recipe), recipe.target.uses_grades
    what = pairs_body(recipe, counts, about.unanswered) if by_grades else _replies_body(counts)
    shape, iterations = next((shape, found) for shape, found in splits(counts).items() if found)
    unanswered = f", and prompts of `{shown['data']['prompts']['path']}`, which have no replies" if recipe.data.prompts else ""
    body = f"""\
The prompts and human replies are those of {code_span(shown["data"]["path"])} (the training part){unanswered}; the other replies
were sampled by each iteration's opponent in a game of {METHOD}, played by sparring
from {code_span(shown["model"]["path"])}. {what}

```python
from datasets import load_dataset
rows = load_dataset("{about.dataset_repo or "FOLDER"}", "{shape}", split="iteration_{iterations[0]}")
```

These are texts. The game was played on token ids, and encoding a reply's text again may give other ids; a reply that was cut
ends without an end-of-turn token, which a text cannot show (`finish_reason` is `length` there)."""
    origins = f"{_origins(shown, recipe, about)}{'' if about.is_of_one_licence else SEVERAL_LICENCES}{_link('The player', '', about.repo)}"
    title = "Winning and losing replies" if by_grades else "Human and generated replies"
    return _card(_dataset_metadata(counts, about), title, body, origins, shown)


def _card(metadata: str, title: str, body: str, origins: str, shown: Mapping[str, Any]) -> str:
    text = visible(dump_yaml(shown).strip())
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))  # a showcase prompt may hold a fence itself
    return f"""---
{metadata}
---

# {title} of a self-play game

{body}

## Where it comes from

{origins}

## Recipe

{fence}yaml
{text}
{fence}

{CITATION}"""


def _how(recipe: Recipe, about: About, player: str) -> str:
    if not _has_played(recipe, player):
        return _beside_the_game(recipe, player)
    then = "" if player.isdigit() else "\nAfter that its best iteration was trained by DPO on labelled pairs."
    if recipe.target.uses_grades:
        return f"{how_learned(recipe, about.unanswered)}{then}\n"
    return f"""Fine-tuned with {METHOD} by sparring: the model learned to distinguish human replies
from those of its own previous iteration.{then}"""


def _beside_the_game(recipe: Recipe, player: str) -> str:
    """The first lines of the card of the start or of a control, which were not trained by the game's rule."""
    game = f"a self-play game of sparring with a {recipe.target.kind} target (`target.kind: {recipe.target.kind}`)"
    if player == START:
        return f"The model that {game} started from. It was not trained by self-play itself."
    own = "from those of the start's own replies that the checker passed, which no person has read"
    rft = f" It learned from human replies and {own}." if _is_rft(recipe, player) else ""
    return f"A control of {game}: trained for comparison with the players of the game, and not by self-play.{rft}"


def how_learned(recipe: Recipe, unanswered: int) -> str:
    """The first lines of a player's card in a game with graded replies. unanswered: prompts without a human reply that it was played on."""
    target, count = recipe.target, recipe.sampling.replies_per_prompt
    return f"""Fine-tuned by sparring in a self-play game with a {target.kind} target (`target.kind: {target.kind}`, checker
`{checker_name(target)}`): in every iteration the previous player replied {count} times to every training prompt.
{" ".join(rule_of(recipe))}

{_whose(recipe, unanswered)}"""


def _whose(recipe: Recipe, unanswered: int) -> str:
    """Whether winners are human or generated replies, and how many prompts have no human reply."""
    asked = f"{unanswered} of the prompts had no human reply." if unanswered else "Every prompt had a human reply."
    if recipe.target.human == "only":
        return f"Winners are human replies. {asked}"
    written = "the model's own replies" if recipe.target.human == "never" else "human replies and the model's own replies"
    return f"Winners are {written}. No person has written or read the model's replies, and a checker or a vote can be wrong. {asked}"


def _replies_body(counts: Mapping[int, Mapping[str, int]]) -> str:
    """The body of the data set's card for a game in which the human reply always wins."""
    return f"""The replies were not graded: `rejected` means "from the model".

{_counts_table(REPLY_COUNTS, counts)}

Two configurations with one split per iteration:

- `preference`: `prompt`, `chosen`, `rejected` as lists of turns, which TRL's `DPOTrainer` takes; with `row_id`, `replica` and
  `finish_reason`.
- `spin`: `real`, `generated` as whole conversations, which the SPIN authors' code takes."""


def pairs_body(recipe: Recipe, counts: Mapping[int, Mapping[str, int]], unanswered: int) -> str:
    """The body of the data set's card: the rule, a table of counts, and the configurations."""
    sampled = recipe.sampling.replies_per_prompt
    winners_only = " The game itself was trained on winners only; these are the pairs that it would have formed."
    note = "" if recipe.objective.kind.uses_margins else winners_only
    return f"""{" ".join(rule_of(recipe))}{note}

{_whose(recipe, unanswered)}

{_counts_table(PAIR_COUNTS, counts)}

Two configurations with a split per iteration that has rows for it:

- `preference`: pairs of a winner and a loser, as `prompt`, `chosen`, `rejected` in lists of turns, which TRL's `DPOTrainer` takes; with
  `row_id`, `iteration`, `chosen_by` (`human` if it equals the human reply, token for token, else `model`), the checker's scores and
  answers, votes (how many of {sampled} replies ended and gave the same answer; a cut reply has none), `weight` of the prompt, and the
  loser's `finish_reason`.
- `spin`: `real`, `generated` as whole conversations, which the SPIN authors' code takes: each reply of the model paired with the human one,
  whichever won. Prompts without a human reply are not in it."""


def _counts_table(names: Mapping[str, str], counts: Mapping[int, Mapping[str, int]]) -> str:
    return _table(["iteration", *names.values()], [[t, *(found[name] for name in names)] for t, found in counts.items()])


def _table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(map(str, row))} |" for row in (headers, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(headers)}", *lines[1:]])


def model_title(summary: Mapping[str, Any], player: str) -> str:
    """The name of the player in a model card."""
    start = f"the {start_title(summary['start']['name'])}"
    controls = {entry["stage"]: f"the control {entry['name']}" for entry in summary["controls"]}
    return {START: start, **controls}.get(player, title_of_player(player))


def _model_metadata(recipe: Recipe, summary: Mapping[str, Any], player: str, about: About, adapter: bool) -> str:
    """The YAML that the Hub reads; it accepts only Hub ids as base_model and datasets."""
    from huggingface_hub import ModelCardData

    card = ModelCardData(
        base_model=recipe.model.path if is_hub_id(recipe.model.path) else None,
        datasets=_datasets(recipe, about, player) or None,
        library_name="peft" if adapter else "transformers",
        license=about.base.name,
        model_name=about.repo or one_line(model_title(summary, player)),
        pipeline_tag="text-generation",
        tags=TAGS,
        eval_results=_eval_results(recipe, entries_of(summary).get(player, {}).get("scores", {})),
    )
    return card.to_yaml(line_break="\n")


def _learned_from(shown: Mapping[str, Any], recipe: Recipe, player: str) -> str:
    """The data, the prompts without replies if the player learns from them, and the labelled pairs of a control that has some."""
    data, pairs = code_span(shown["data"]["path"]), _pairs(shown, recipe).get(player)
    if _prompts_of(recipe, player):
        data += f" and prompts of {code_span(shown['data']['prompts']['path'])}, which have no replies{',' if pairs else ''}"
    return f"{data} and the labelled pairs {code_span(pairs)}" if pairs else data


def _prompts_of(recipe: Recipe, player: str) -> PromptsSection | None:
    """`data.prompts` where the player learned from replies to them: every iteration did, and RFT where such replies can pass."""
    return recipe.data.prompts if _has_played(recipe, player) or (_is_rft(recipe, player) and recipe.grades_prompts) else None


def _has_played(recipe: Recipe, player: str) -> bool:
    """Whether it was trained by the rule of the game: an iteration, or a control that starts from the best one."""
    return player.isdigit() or any(section.start == "best" and section.folder == player for section in recipe.controls)


def _is_rft(recipe: Recipe, player: str) -> bool:
    return any(section.kind == "rft" and section.folder == player for section in recipe.controls)


def _pairs(shown: Mapping[str, Any], recipe: Recipe) -> dict[str, str]:
    """control -> the name of the labelled pairs that it learns from."""
    named = zip(recipe.controls, shown["controls"], strict=True)
    return {section.folder: values["pairs"]["path"] for section, values in named if section.pairs}


def _datasets(recipe: Recipe, about: About, player: str) -> list[str]:
    """The training data of the player, by its name on the Hub; the game's own replies replace data that is not there."""
    data = recipe.data.named if is_hub_id(recipe.data.paths[0]) else about.dataset_repo
    asked = _prompts_of(recipe, player)
    prompts = [asked.paths[0]] if asked else []
    pairs = [section.pairs.paths[0] for section in recipe.controls if section.pairs and section.folder == player]
    return [name for name in (data, *filter(is_hub_id, [*prompts, *pairs])) if name]


def _eval_results(recipe: Recipe, scores: Mapping[str, Any]) -> list[Any]:
    """Every score in which one direction is better; the Hub has no field for an error, so the name contains it."""
    from huggingface_hub import EvalResult

    held_out = recipe.data.named if is_hub_id(recipe.data.paths[0]) else "held-out"
    prompts = one_line(f"held-out prompts of {public(recipe)['data']['path']}")
    found = []
    for name, score in scores.items():
        if score.get("higher_is_better") is None:
            continue
        task, of_benchmark, _ = one_line(name).partition("/")
        error = f" ± {score['stderr']:.4f}" if score.get("stderr") is not None else ""
        result = EvalResult(
            task_type="text-generation",
            dataset_type=task if of_benchmark else held_out,
            dataset_name=f"{task}, by lm-evaluation-harness" if of_benchmark else prompts,
            metric_type=one_line(name),
            metric_value=round(score["value"], 6),
            metric_name=f"{one_line(name)}{error}, n {score['n']}, {'higher' if score['higher_is_better'] else 'lower'} is better",
        )
        found.append(result)
    return found


def _dataset_metadata(counts: Mapping[int, Any], about: About) -> str:
    from huggingface_hub import DatasetCardData

    configs = [
        {"config_name": shape, "data_files": [{"split": f"iteration_{t}", "path": f"{shape}/iteration_{t}.parquet"} for t in iterations]}
        for shape, iterations in splits(counts).items()
        if iterations
    ]
    licence = about.data.name if about.is_of_one_licence else None
    card = DatasetCardData(license=licence, task_categories=["text-generation"], tags=[*TAGS, "preference"], configs=configs)
    return card.to_yaml(line_break="\n")


def _outcome(summary: Mapping[str, Any]) -> str:
    return "The game is not over yet." if summary["stop_reason"] is None else words(verdict(summary), LONGEST_TEXT)


def _warnings(summary: Mapping[str, Any], recipe: Recipe) -> str:
    found = warnings(signs(summary, recipe))
    return "\n\nKnown weaknesses of the game:\n\n" + "\n".join(f"- {words(line, LONGEST_TEXT)}" for line in found) if found else ""


def _benchmarks(recipe: Recipe) -> str:
    section = recipe.evaluate.benchmarks
    if section is None:
        return ""
    settings = template_and_items(section.chat_template, section.limit)
    return f"Scores with a task in their name are benchmarks of lm-evaluation-harness (chat template {settings}). "


def _choice(summary: Mapping[str, Any]) -> str:
    best = summary["best"]
    if best is None:
        return ""
    return (
        f"The best iteration, {best['iteration']}, was chosen by its {words(best['metric'])} on these same prompts, "
        "so its score is slightly too high."
    )


def _usage(recipe: Recipe, about: About, adapter: bool) -> str:
    name = about.repo or "FOLDER"
    base = recipe.model.path if is_hub_id(recipe.model.path) else "BASE"
    branch = f" --revision {about.revision}" if about.revision else ""
    serve = f"vllm serve {base} --enable-lora --lora-modules player={name}" if adapter else f"vllm serve {name}{branch}"
    chosen = f', revision="{about.revision}"' if about.revision else ""
    branches = ", ".join(f"`{revision}`" for revision in about.revisions)
    also = f"\n\nThe players of all iterations are branches of this repository: `revision=` one of {branches}." if branches else ""
    needs = " (with `peft` installed, which loads the base model with the adapter)" if adapter else ""
    return f"""With transformers{needs}:

```python
from transformers import pipeline

chat = pipeline("text-generation", "{name}"{chosen})
print(chat([{{"role": "user", "content": "Why is the sky blue?"}}], max_new_tokens=256)[0]["generated_text"][-1]["content"])
```

With vLLM:

```bash
{serve}
```{also}"""


def _origins(shown: Mapping[str, Any], recipe: Recipe, about: About, learner: str | None = None) -> str:
    """The table of sources with their licences. learner: the player of a model's card; prompts without replies and labelled pairs that it
    was not trained on are left out of the table."""
    pairs = _pairs(shown, recipe)
    rows = [("base model", shown["model"]["path"], about.base), ("data", shown["data"]["path"], about.data)]
    if about.prompts is not None and (learner is None or _prompts_of(recipe, learner)):
        rows.append(("prompts without replies", shown["data"]["prompts"]["path"], about.prompts))
    rows += [("labelled pairs", name, about.pairs[control]) for control, name in pairs.items() if control == learner]
    table = _table(["", "name", "licence"], [[what, code_span(name, in_table=True), words(str(licence))] for what, name, licence in rows])
    others = dict.fromkeys((name, str(about.pairs[control])) for control, name in pairs.items() if name != pairs.get(learner or ""))
    body = "".join(
        f"\n\nThe labelled pairs {code_span(name)}, {words(licence)}, were used only for controls of this game." for name, licence in others
    )
    return f"{table}{body}"


def _link(what: str, prefix: str, repo: str | None) -> str:
    return f"\n\n{what}: [{repo}](https://huggingface.co/{prefix}{repo})." if repo else ""


def _score_table(summary: Mapping[str, Any]) -> str:
    models = {"start": summary["start"]["scores"]}
    models |= {f"iteration {entry['iteration']}": entry["scores"] for entry in summary["iterations"]}
    models |= {entry["name"]: entry["scores"] for entry in summary["controls"]}
    names = list(dict.fromkeys(metric for scores in models.values() for metric in scores))
    rows = [
        [
            words(metric),
            next(scores[metric]["n"] for scores in models.values() if metric in scores),
            *(score_text(scores.get(metric), 4) for scores in models.values()),
        ]
        for metric in names
    ]
    return _table(["metric", "n", *map(words, models)], rows)


def _images(plots: Mapping[str, str]) -> str:
    return "".join(f"\n\n![{words(name)} of every player]({file})" for name, file in plots.items())
