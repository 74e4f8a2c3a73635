"""The stages of a game: what each is made from (its fingerprint) and the work that makes it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparring.config import OptimSection, Recipe, SftSection, at_iteration
from sparring.console import log
from sparring.data.chat import Chat, load_template
from sparring.data.fingerprint import chat_fingerprint, source_fingerprint
from sparring.data.prepare import prepare, read_examples, write_examples
from sparring.data.records import Example, Message
from sparring.data.window import Window, build_window
from sparring.errors import UserError
from sparring.evaluation.evaluate import Evaluator, Opponent, load_sampler, make_engine
from sparring.evaluation.metrics import Score
from sparring.opponent.protocol import Stream
from sparring.opponent.replies import read_replies, sample_examples
from sparring.policy.load import copy_extras, find_model, load_tokenizer, model_facts
from sparring.rundir import RunDir, StageRecord, digest, fsync, read_json, write_json
from sparring.stage_names import BASELINE, CONTROL_EVALUATE, CONTROL_TRAIN, iteration_stage
from sparring.training.checkpoint import remove_checkpoints
from sparring.training.fit import FitResult, fit
from sparring.training.opponent_pass import read_logps, score_duels
from sparring.training.plan import TrainPlan, make_plan, steps_plan
from sparring.training.tasks import SftTask, SpinTask, Task

# these change speed, memory or what a kill costs, never a result
NOT_FINGERPRINTED = {"checkpoint_every"}
DEFAULT_CONTROL_LR = 1e-5


@dataclass(frozen=True)
class Policy:
    """A model folder, pinned by the content hash of its weights, and the folder of its evaluation once it has one."""

    folder: Path
    hash: str
    evaluation: Path | None = None

    @classmethod
    def of_stage(cls, record: StageRecord) -> Policy:
        """The model that a stage committed. Its hash comes from the commit, not from reading the weights again."""
        weights = {
            name.removeprefix("model/"): h
            for name, h in record.outputs.items()
            if name.startswith("model/") and name.endswith(".safetensors")
        }
        return cls(record.path / "model", digest(weights))

    def evaluated(self, record: StageRecord) -> Policy:
        return Policy(self.folder, self.hash, record.path)


class Stages:
    """Everything a game does, one method per stage; each returns at once when the stage is finished with equal inputs."""

    def __init__(self, recipe: Recipe, run: RunDir) -> None:
        self.recipe, self.run = recipe, run

    # -- before the game ----------------------------------------------------------------------------------------------------------

    @cached_property
    def base(self) -> Policy:
        """The model that the recipe names, as a folder of safetensors; a GGUF file or a built-in is written out once."""
        source = find_model(self.recipe.model, self.recipe.seed)
        if source.folder is not None:
            return Policy(source.folder, source.fingerprint)

        def work(stage: Path) -> dict[str, Any]:
            source.make(stage / "model")
            return {}

        return Policy.of_stage(self.run.stage("base", {"model": source.fingerprint}, work))

    @cached_property
    def chat(self) -> Chat:
        template = self.recipe.model.chat_template
        _, eos = model_facts(self.base.folder)
        chat = Chat(load_tokenizer(self.base.folder), load_template(template) if template else None, eos)
        chat.tokenizer.chat_template = chat.template  # so that every saved player carries the template it was trained under
        for notice in chat.notices:
            log.info(f"chat: {notice}")
        return chat

    @cached_property
    def data(self) -> StageRecord:
        """data/: train and held-out rows, tokenised and split once for the whole run."""
        section = self.recipe.data

        def work(stage: Path) -> dict[str, Any]:
            prepared = prepare(section, self.chat, self.recipe.seed)
            for notice in prepared.notices:
                log.info(f"data: {notice}")
            write_examples(stage / "train.parquet", prepared.train)
            write_examples(stage / "held_out.parquet", prepared.held_out)
            log.info("data: " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in prepared.counts.items()))
            return {"counts": prepared.counts}

        inputs = {
            "data": {**section.model_dump(exclude={"path"}), "content": source_fingerprint(section)},
            "chat": chat_fingerprint(self.chat),
            "seed": self.recipe.seed,
        }
        return self.run.stage("data", inputs, work)

    @cached_property
    def train_examples(self) -> list[Example]:
        return read_examples(self.data.path / "train.parquet")

    @cached_property
    def evaluator(self) -> Evaluator:
        return Evaluator(self.recipe, self.chat, read_examples(self.data.path / "held_out.parquet"))

    def check_context(self) -> None:
        """Raise UserError when a row, a showcase prompt or the longest reply does not fit the model's context."""
        context, _ = model_facts(self.base.folder)
        if context is None:
            return
        new = self.recipe.sampling.max_new_tokens
        if new >= context:
            raise UserError(
                f"{new} is beyond the model's context of {context} tokens",
                where="sampling.max_new_tokens",
                remedy=f"give less than {context}",
            )
        prompts = [
            (example.row_id, example.prompt_ids, len(example.reply_ids)) for example in [*self.train_examples, *self.evaluator.held_out]
        ]
        prompts += [("showcase", self.chat.prompt_ids([Message(role="user", content=text)]), 0) for text in self.recipe.showcase]
        for name, ids, reply in prompts:
            if len(ids) + max(new, reply) > context:
                raise UserError(
                    f"row {name}: {len(ids)} prompt tokens and {max(new, reply)} reply tokens exceed the model's context of {context}",
                    where="data.max_prompt_tokens, sampling.max_new_tokens",
                    remedy="lower data.max_prompt_tokens (longer prompts are dropped), data.max_reply_tokens or sampling.max_new_tokens",
                )

    def sft(self) -> Policy:
        """The start of the game: the base model, fine-tuned on the human replies when the recipe asks for it."""
        settings = self.recipe.sft
        if settings is None:
            return self.base
        plan = make_plan(settings, len(self.train_examples), lr=settings.lr, epochs=settings.epochs, seed=self.recipe.seed, name="sft")
        return self._sft_stage("sft", self.base, plan, settings, {"sft": _dump(settings)})

    def evaluate_baseline(self, start: Policy) -> Policy:
        return self._evaluate(BASELINE, start, None, round_index=0)

    # -- one iteration ------------------------------------------------------------------------------------------------------------

    def generate(self, opponent: Policy, t: int) -> StageRecord:
        """Stage 1 of the game: the opponent's replies to every training prompt."""
        sampling = self.recipe.sampling

        def work(stage: Path) -> dict[str, Any]:
            rule = "greedily" if sampling.temperature == 0 else f"at temperature {sampling.temperature:g}, top-p {sampling.top_p:g}"
            log.info(f"iteration {t}: the opponent {opponent.hash[:12]} replies {rule} ({sampling.engine}, {self.recipe.model.dtype})")
            replies = sample_examples(
                stage,
                self.train_examples,
                lambda: make_engine(self.recipe, self.chat, load_sampler(self.recipe, opponent.folder), sampling.temperature),
                Stream(self.recipe.seed, t),
                sampling.replies_per_prompt,
                sampling.shard_rows,
                f"iteration {t}: sampling",
            )
            prompt_tokens = sampling.replies_per_prompt * sum(len(example.prompt_ids) for example in self.train_examples)
            return {"replies": len(replies), "sampled_tokens": prompt_tokens + sum(len(reply.token_ids) for reply in replies)}

        inputs = {**self._sampling_inputs(opponent, t), "data": self.data.outputs["train.parquet"]}
        return self.run.stage(iteration_stage(t, "generate"), inputs, work)

    def window(self, t: int) -> Window:
        """The duels of the newest `objective.window` iterations."""
        iterations = range(max(0, t - self.recipe.objective.window + 1), t + 1)
        replies = {i: read_replies(self.run.root / iteration_stage(i, "generate")) for i in iterations}
        window = build_window(self.train_examples, replies, self.chat.stop_ids)
        log.info(f"iteration {t}: " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in window.counts.items()))
        return window

    def train(self, opponent: Policy, window: Window, t: int) -> Policy:
        """Stage 2: opponent log-probs first, then the player, who starts as the opponent."""
        settings, objective = self.recipe.train, self.recipe.objective
        lr, epochs, beta = (at_iteration(value, t) for value in (settings.lr, settings.epochs, objective.beta))
        plan = make_plan(settings, len(window.duels), lr=lr, epochs=epochs, seed=self._order_seed(t), name=f"iteration {t}")
        score = self._score(opponent, window, plan, t)

        def work(stage: Path) -> dict[str, Any]:
            task = SpinTask(window.duels, read_logps(score.path), beta, objective.loss)
            facts = self._fit(stage, opponent, task, plan, settings, phase=f"iteration {t}: training", labels={"iteration": t})
            return {**facts, "counts": window.counts}

        inputs = {
            "train": {**_dump(settings), "lr": lr, "epochs": epochs},
            "objective": {"loss": objective.loss, "beta": beta},
            "opponent": opponent.hash,
            "opponent_logps": score.digest,
            "seed": self.recipe.seed,
        }
        return Policy.of_stage(self.run.stage(iteration_stage(t, "train"), inputs, work))

    def evaluate(self, player: Policy, opponent: Policy, t: int) -> Policy:
        """Stage 3: the player on the held-out rows."""
        return self._evaluate(iteration_stage(t, "evaluate"), player, opponent, round_index=t + 1)

    def scores(self, player: Policy) -> dict[str, Score]:
        assert player.evaluation is not None
        return read_json(player.evaluation / "scores.json")

    # -- the control --------------------------------------------------------------------------------------------------------------

    def continued_sft(self, start: Policy, played: int) -> None:
        """The start model trained further on the human replies, at the floating-point cost of the `played` iterations."""
        section = self.recipe.baseline
        if section is None:
            return
        settings = self._control_settings()
        tokens = sum(len(e.prompt_ids) + len(e.reply_ids) - 1 for e in self.train_examples) / len(self.train_examples)
        # a step of training costs three forward passes: 6 N against 2 N floating-point operations per token and weight
        budget = self._forward_token_cost(played) / 3
        steps = max(1, round(budget / tokens / min(settings.batch_size, len(self.train_examples))))
        epochs = steps * settings.batch_size / len(self.train_examples)
        log.info(f"{section.kind} at equal compute: {steps} steps, {epochs:.2f} epochs, lr {settings.lr:g}, batch {settings.batch_size}")
        plan = steps_plan(settings, len(self.train_examples), lr=settings.lr, steps=steps, epochs=epochs, seed=self._order_seed(played))
        inputs = {"baseline": section.model_dump(), "sft": _dump(settings), "steps": steps, "iterations": played}
        self._drop_stale_control(steps, played)
        player = self._sft_stage(CONTROL_TRAIN, start, plan, settings, inputs)
        self._evaluate(CONTROL_EVALUATE, player, start, round_index=played + 1)

    def _drop_stale_control(self, steps: int, played: int) -> None:
        """The budget follows from the iterations played: a control made for fewer or more of them compares with nothing any more."""
        made_for = self.run.inputs_of(CONTROL_TRAIN)
        if made_for is not None and (made_for.get("steps"), made_for.get("iterations")) != (steps, played):
            for name in (CONTROL_EVALUATE, CONTROL_TRAIN):
                self.run.remove_stage(name)
            log.info(f"removed {CONTROL_TRAIN}: it had the cost of other iterations, and will be done again")

    def _control_settings(self) -> SftSection:
        section, sft, train = self.recipe.baseline, self.recipe.sft, self.recipe.train
        shared = OptimSection.model_fields.keys() - {"optimizer"}
        inherited = sft or SftSection(**{name: getattr(train, name) for name in shared}, lr=DEFAULT_CONTROL_LR)
        changes = {"lr": section.lr or inherited.lr, "batch_size": section.batch_size or inherited.batch_size, "horizon_epochs": None}
        return inherited.model_copy(update=changes)

    def _forward_token_cost(self, played: int) -> float:
        """Cost of the iterations in tokens times forward passes: sampling and scoring count once, training three times."""
        cost = 0.0
        for t in range(played):
            facts = {name: self.run.finished(iteration_stage(t, name)).facts for name in ("generate", "score", "train")}
            cost += facts["generate"]["sampled_tokens"] + facts["score"]["scored_tokens"] + 3 * facts["train"]["trained_tokens"]
        return cost

    # -- shared pieces ------------------------------------------------------------------------------------------------------------

    def _score(self, opponent: Policy, window: Window, plan: TrainPlan, t: int) -> StageRecord:
        settings = self.recipe.train

        def work(stage: Path) -> dict[str, Any]:
            return score_duels(stage, opponent.folder, window.duels, plan, settings, f"iteration {t}: opponent log-probs")

        inputs = {
            "opponent": opponent.hash,
            "duels": digest([vars(duel) for duel in window.duels]),
            "batches": {
                "first_pass_steps": plan.first_pass_steps(),
                "batch_size": plan.batch_size,
                "seed": plan.seed,
                "micro_batch_tokens": settings.micro_batch_tokens,
                "precision": settings.precision,
            },
        }
        return self.run.stage(iteration_stage(t, "score"), inputs, work)

    def _sft_stage(self, name: str, start: Policy, plan: TrainPlan, settings: SftSection, inputs: dict[str, Any]) -> Policy:
        def work(stage: Path) -> dict[str, Any]:
            return self._fit(stage, start, SftTask(self.train_examples), plan, settings, phase=name, labels={"stage": name})

        inputs = {**inputs, "start": start.hash, "data": self.data.outputs["train.parquet"], "seed": self.recipe.seed}
        return Policy.of_stage(self.run.stage(name, inputs, work))

    def _evaluate(self, name: str, player: Policy, opponent: Policy | None, round_index: int) -> Policy:
        def work(stage: Path) -> dict[str, Any]:
            against = Opponent(opponent.folder, opponent.evaluation) if opponent else None
            return self.evaluator.evaluate(stage, player.folder, against, round_index, name)

        inputs = {
            **self._sampling_inputs(player, round_index),
            "opponent": opponent.hash if opponent else None,
            "data": self.data.outputs["held_out.parquet"],
            "evaluate": self.recipe.evaluate.model_dump(exclude={"metric"}),
            "confidence": self.recipe.stop.confidence,
            "showcase": self.recipe.showcase,
            "micro_batch_tokens": self.recipe.train.micro_batch_tokens,
            "precision": self.recipe.train.precision,
        }
        return player.evaluated(self.run.stage(name, inputs, work))

    def _sampling_inputs(self, model: Policy, round_index: int) -> dict[str, Any]:
        return {
            "sampling": self.recipe.sampling.model_dump(),
            "dtype": self.recipe.model.dtype,
            "model": model.hash,
            "round": round_index,
            "seed": self.recipe.seed,
        }

    def _fit(self, stage: Path, start: Policy, task: Task, plan: TrainPlan, settings: OptimSection, **shown: Any) -> dict[str, Any]:
        """Train, save the model, then drop the checkpoints; a kill between any two of these loses none of the training."""
        fitted = stage / "fit.json"
        if not fitted.exists():
            result = fit(stage, start.folder, task, plan, settings, **shown)
            self._save_model(result, stage / "model")
            write_json(fitted, result.facts)
        remove_checkpoints(stage)
        return read_json(fitted)

    def _save_model(self, result: FitResult, folder: Path) -> None:
        """Write a folder that anything can load, with the chat template and the end of turn that the model was trained under."""
        result.model.save_pretrained(folder)
        copy_extras(self.base.folder, folder)
        self.chat.tokenizer.save_pretrained(folder)
        generation = read_json(folder / "generation_config.json") if (folder / "generation_config.json").exists() else {}
        write_json(folder / "generation_config.json", {**generation, "eos_token_id": sorted(self.chat.stop_ids)})
        for file in folder.iterdir():  # on the disk before the checkpoints go
            fsync(file)

    def _order_seed(self, t: int) -> int:
        """Another order of batches in every iteration."""
        return self.recipe.seed * 1000 + t + 1


def _dump(settings: OptimSection) -> dict[str, Any]:
    return settings.model_dump(exclude=NOT_FINGERPRINTED)
