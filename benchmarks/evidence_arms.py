"""The official recipe's negatives as an arm of the evidence, and scores of a run's players on other rows or with other options."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sparring.checkers.make import held_out_checker
from sparring.config import Recipe, at_iteration
from sparring.data.chat import Chat
from sparring.data.prepare import read_examples
from sparring.data.records import Conversation, Duel, Example, Message
from sparring.data.tables import read_rows as read_table_rows
from sparring.evaluation.evaluate import Grading, write_scores
from sparring.evaluation.measure import Measurer, read_measured
from sparring.opponent.engines import make_engine
from sparring.opponent.protocol import Prompt, Stream
from sparring.players import Players
from sparring.policy.compute import release_memory
from sparring.stage_names import ITEMS, recipe_of_game
from sparring.training.fit import fit
from sparring.training.opponent_pass import read_logps, score_duels
from sparring.training.plan import make_plan
from sparring.training.ranked import score_player
from sparring.training.tasks import SpinTask

ROUND = 1000  # names the random streams of what is measured here: no iteration of a game gets so far
MICRO_BATCH = 1024
OFFICIAL_PROMPT = "### Instruction: {}\n\n### Response: "  # what the paper's code samples under; it trains under the chat template
# what two arms of one seed are compared in, row by row
OF_ROWS = ("exact_match", "exact_match_greedy", "nll_per_reply", "human_reply_tokens")


class Scoring:
    """Scores model folders as the run in `root` scores its players, at any temperature, on its held-out rows or on others."""

    def __init__(self, root: Path) -> None:
        self.root, self.players = root, Players(root)
        recipe = recipe_of_game(root)
        train = recipe.train.model_copy(update={"micro_batch_tokens": recipe.train.micro_batch_tokens or MICRO_BATCH})
        self.recipe: Recipe = recipe.model_copy(update={"train": train})
        self.chat: Chat = self.players.chat()

    def folder(self, player: str) -> Path:
        return self.players.folder(self.players.find(player))

    def examples(self, part: str) -> list[Example]:
        return read_examples(self.root / "data" / f"{part}.parquet")

    def measure(self, name: str, model: Path, examples: Sequence[Example], temperature: float = 1.0) -> Path:
        """The folder with the scores, `root`/extra/NAME; what is there is not measured again."""
        target = self.root / "extra" / name
        if not (target / ITEMS).exists():
            target.mkdir(parents=True, exist_ok=True)
            recipe, settings = self.recipe, self.recipe.sampler.with_sampling(temperature=temperature)
            shape: dict[str, Any] = recipe.evaluate.model_dump(include={"samples", "greedy"})
            score = partial(score_player, settings=recipe.train)
            Measurer(settings, self.chat, examples, score, seed=recipe.seed, **shape).measure(target, model, None, ROUND, name)
            with held_out_checker(recipe) as checker:
                grading = Grading.of(recipe, checker)
                write_scores(target, read_measured(target), self.chat, examples, grading, recipe.stop.confidence)
        return target

    def read_rows(self, file: Path, count: int) -> list[Example]:
        """Examples of the first `count` rows of a file, under the run's chat template."""
        found = []
        for line in file.read_text(encoding="utf-8").splitlines()[:count]:
            row = json.loads(line)
            system = (Message(role="system", content=row["system"]),) if "system" in row else ()
            conversation = Conversation((*system, Message(role="user", content=row["prompt"])), row["completion"])
            found.append(Example(conversation.row_id, conversation, *self.chat.encode(conversation)))
        return found


def read_items(evaluated: Path) -> dict[str, list[float]]:
    """metric -> its value for every row, to four places."""
    rows = read_table_rows(evaluated / ITEMS)
    return {metric: [round(row[metric], 4) for row in rows] for metric in OF_ROWS if metric in rows[0]}


def official(scoring: Scoring) -> list[Path]:
    """Iterations on the negatives of the paper's code, from the run's start and with its settings, one reply to a prompt: greedy, sampled
    under another prompt, cut at the limit with an end of turn appended, decoded and encoded again. The folders with every one's scores."""
    model, found, duels = scoring.folder("start"), [], []
    for t in range(scoring.recipe.iterations):
        stage = scoring.root / "official" / f"{t:03d}"
        if not (stage / "model" / "done").exists():
            shutil.rmtree(stage, ignore_errors=True)
            duels = _official_duels(scoring, model, t) + [duel for duel in duels if duel.source_iteration == t - 1]
            _train(scoring, stage, model, duels, t)
        model = stage / "model"
        found.append(scoring.measure(f"official-{t}", model, scoring.examples("held_out")))
    return found


def _official_duels(scoring: Scoring, model: Path, t: int) -> list[Duel]:
    chat, examples = scoring.chat, scoring.examples("train")
    asked = [OFFICIAL_PROMPT.format(example.conversation.prompt[-1]["content"]) for example in examples]
    prompts = [Prompt(example.row_id, 0, tuple(chat.tokenizer(text)["input_ids"])) for example, text in zip(examples, asked, strict=True)]
    replies = make_engine(scoring.recipe.sampler, chat, model, 0.0).sample(prompts, Stream(scoring.recipe.seed, t))
    release_memory()
    duels = []
    for example, reply in zip(examples, replies, strict=True):
        text = chat.decode(reply.token_ids).strip() or " "
        _, ids = chat.encode(Conversation(example.conversation.prompt, text))
        duels.append(Duel(example.row_id, t, example.prompt_ids, example.reply_ids, (ids,)))
    return [duel for duel in duels if not duel.has_no_margin]


def _train(scoring: Scoring, stage: Path, model: Path, duels: list[Duel], t: int) -> None:
    recipe, settings = scoring.recipe, scoring.recipe.train
    lr, epochs, beta = (at_iteration(value, t) for value in (settings.lr, settings.epochs, recipe.objective.beta))
    plan = make_plan(settings, len(duels), lr=lr, epochs=epochs, seed=recipe.seed * 1000 + t + 1, name=stage.name)
    for part in ("score", "train"):
        (stage / part).mkdir(parents=True)
    score_duels(stage / "score", model, duels, plan, settings, f"official {t}: opponent log-probs")
    task = SpinTask(duels, read_logps(stage / "score"), beta, "logistic")
    fitted = fit(stage / "train", model, task, plan, settings, phase=f"official {t}", labels={})
    fitted.save(stage / "model")
    scoring.chat.tokenizer.save_pretrained(stage / "model")
    shutil.rmtree(stage / "train")
    (stage / "model" / "done").touch()
