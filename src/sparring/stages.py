"""The stages of a game: what each is made from (its fingerprint) and the work that makes it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from sparring.config import OptimSection, Recipe, SftSection, at_iteration, unused_sections
from sparring.console import log
from sparring.data.chat import Chat, load_template
from sparring.data.fingerprint import chat_fingerprint, source_fingerprint
from sparring.data.prepare import prepare, read_examples, write_examples
from sparring.data.records import Duel, Example, Message
from sparring.data.sources import local_file
from sparring.data.window import Window, build_window
from sparring.errors import UserError
from sparring.evaluation.evaluate import ITEMS, SAMPLES, Evaluator
from sparring.evaluation.harness import HarnessModel, benchmark_inputs, require_harness, run_benchmarks
from sparring.evaluation.measure import Measurer, Opponent, read_measured
from sparring.evaluation.metrics import Score
from sparring.launch import check_launcher, launch, process_count, ranks_here
from sparring.opponent.engines import Sampler, answer, require_engine
from sparring.opponent.protocol import Stream
from sparring.opponent.replies import checked_facts, read_replies, sample_examples
from sparring.policy.adapters import new_adapter
from sparring.policy.budget import free_memory, token_budget
from sparring.policy.compute import COMPUTE_DTYPES, make_accelerator, release_memory
from sparring.policy.load import copy_extras, find_model, load_tokenizer, merge, model_facts, model_shape
from sparring.policy.player import Policy
from sparring.policy.ranks import from_main, require_equal
from sparring.policy.shares import Parallel
from sparring.progress import at_stage
from sparring.rundir import RunDir, StageRecord, digest, fsync, read_json, replace_link, write_json
from sparring.stage_names import (
    BASELINE,
    SCORES,
    SFT,
    benchmark_stage,
    evaluate_stage,
    iteration_name,
    iteration_stage,
    measure_stage,
    title_of,
)
from sparring.training.checkpoint import remove_checkpoints
from sparring.training.fit import FitResult, fit
from sparring.training.opponent_pass import joined_logps, score_duels
from sparring.training.optimizers import require_four_bit, require_optimizer, require_shardable
from sparring.training.plan import TrainPlan, make_plan
from sparring.training.ranked import score_player
from sparring.training.successors import objective_task
from sparring.training.tasks import SftTask, Task

Optim = TypeVar("Optim", bound=OptimSection)
# What makes a stage in its folder and returns its facts; and what does a part of that
Work, Part = Callable[[Path], dict[str, Any]], Callable[[Path], None]
CHOSEN = "chosen.json"
START_LINK = "start"
# these change speed, memory or what a kill costs, and results by no more than rounding
NOT_FINGERPRINTED = {"checkpoint_every", "micro_batch_tokens", "gradient_checkpointing"}


class Stages:
    """Everything a game does, one method per stage; each returns at once when the stage is finished with equal inputs."""

    def __init__(self, recipe: Recipe, run: RunDir, target: str | None = None) -> None:
        """target: the one stage that this process computes as one of several ranks; None where it plays the game."""
        self.recipe, self.run, self.target = recipe, run, target

    # -- before the game ----------------------------------------------------------------------------------------------------------

    @cached_property
    def base(self) -> Policy:
        """The model that the recipe names, as a folder of safetensors; a GGUF file or a built-in is written out once."""
        source = find_model(self.recipe.model, self.recipe.seed)
        if source.folder is not None:
            adapts = any(section and section.lora for section in (self.recipe.sft, self.recipe.train))
            return Policy(self._linked(source.folder) if adapts else source.folder, source.fingerprint)

        def work(stage: Path) -> dict[str, Any]:
            source.make(stage / "model")
            return {}

        return Policy.of_stage(self.stage("base", {"model": source.fingerprint}, work))

    def _linked(self, folder: Path) -> Path:
        """A link in the run to a base model outside of it, by which the adapters find it wherever either is moved."""
        link = self.run.root / START_LINK

        def lay() -> None:
            if link.exists() and link.samefile(folder):
                return
            if link.is_dir() and not link.is_symlink():
                raise UserError(
                    "a folder is where the run keeps its link to the base model",
                    where=str(link),
                    remedy="remove it where it is a copy, or set model.path to it",
                )
            replace_link(link, folder.absolute())

        from_main(lay)
        return link

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
        return self.stage("data", inputs, work)

    @cached_property
    def train_examples(self) -> list[Example]:
        return read_examples(self.data.path / "train.parquet")

    @cached_property
    def held_out(self) -> list[Example]:
        return read_examples(self.data.path / "held_out.parquet")

    @cached_property
    def measurer(self) -> Measurer:
        score = partial(score_player, settings=self.with_budget(self.recipe.train))
        return Measurer(self.recipe, self.chat, self.held_out, score)

    @cached_property
    def evaluator(self) -> Evaluator:
        return Evaluator(self.recipe, self.chat, self.held_out)

    def check(self) -> None:
        """Raise UserError for what can be known before any work: missing files first, before a model is fetched for nothing."""
        local_file(self.recipe.data)
        require_engine(self.recipe)
        if self.recipe.evaluate.benchmarks:
            require_harness(self.recipe.evaluate.benchmarks)
        self._announce_unused()
        check_launcher(self.recipe.launcher)
        for name, section in (("train", self.recipe.train), ("sft", self.recipe.sft)):
            if section:
                require_optimizer(section.optimizer, f"{name}.optimizer")
                require_four_bit(section, f"{name}.lora.quantize")
                if self.recipe.launcher.shards:
                    require_shardable(section, name)
        if self.recipe.model.chat_template:
            load_template(self.recipe.model.chat_template)
        for name, section in (("train", self.recipe.train), ("sft", self.recipe.sft)):
            if section and section.lora:
                new_adapter(model_shape(self.base.folder), section.lora, 0, where=f"{name}.lora.targets")
        self._announce_whole()
        self._check_context()
        self.evaluator.check_pattern()
        for section in (self.recipe.sft, self.recipe.train):
            if section:
                self.with_budget(section)  # from what is free before anything is loaded

    def _announce_unused(self) -> None:
        """Name the sections of engines that do not play, and the stages that the objective has no use for."""
        sampling, objective = self.recipe.sampling, self.recipe.objective
        if not objective.uses_opponent_logps:
            log.info(f"objective.loss {objective.loss} compares likelihoods alone: no opponent log-probs are computed")
        for name in unused_sections(sampling):
            log.info(f"sampling.{name} has no effect: sampling.engine is {sampling.engine}")

    def _announce_whole(self) -> None:
        """Say what holds the whole model on one device where the launcher cuts the weights for everything else."""
        parallel, recipe = self._parallel(), self.recipe
        if not parallel.gathers:
            return
        whole = f"the whole model on a device, {model_shape(self.base.folder).num_parameters() / 1e9:.2g} billion weights"
        if recipe.sampling.inner_engine == "transformers":
            log.info(f"sampling: whoever draws replies has {whole}; {parallel.strategy} shards all else, sampling.engine vllm cuts them")
        if recipe.evaluate.benchmarks:
            log.info(f"evaluate.benchmarks: they are played by one process with {whole}")

    def _check_context(self) -> None:
        """Raise UserError when a row, a showcase prompt or the longest reply does not fit the model's context."""
        context, _ = model_facts(self.base.folder)
        if context is None:
            return
        new = self.recipe.sampling.max_new_tokens
        if new >= context:
            what = f"{new} is beyond the model's context of {context} tokens"
            raise UserError(what, where="sampling.max_new_tokens", remedy=f"give less than {context}")
        prompts = [(f"row {e.row_id}", len(e.prompt_ids), len(e.reply_ids)) for e in [*self.train_examples, *self.held_out]]
        prompts += [("a showcase prompt", len(self.chat.prompt_ids(turns)), 0) for turns in self._showcase()]
        for name, prompt, reply in prompts:
            if prompt + max(new, reply) > context:
                raise UserError(
                    f"{name}: {prompt} prompt tokens and {max(new, reply)} reply tokens exceed the model's context of {context}",
                    where="data.max_prompt_tokens, sampling.max_new_tokens",
                    remedy="lower data.max_prompt_tokens (longer prompts are dropped), data.max_reply_tokens or sampling.max_new_tokens",
                )

    def sft(self) -> Policy:
        """The start of the game: the base model, fine-tuned on the human replies when the recipe asks for it."""
        settings = self.recipe.sft
        if settings is None:
            return self.base
        plan = make_plan(settings, len(self.train_examples), lr=settings.lr, epochs=settings.epochs, seed=self.recipe.seed, name="sft")
        return self.sft_stage(SFT, self.base, plan, settings, {SFT: fingerprinted(settings)})

    def evaluate_baseline(self, start: Policy) -> Policy:
        return self.results(BASELINE, start, None, round_index=0)

    # -- one iteration ------------------------------------------------------------------------------------------------------------

    def generate(self, opponent: Policy, t: int) -> StageRecord:
        """Stage 1 of the game: the opponent's replies to every training prompt."""
        sampling = self.recipe.sampling

        def work(stage: Path) -> dict[str, Any]:
            rule = "greedily" if sampling.temperature == 0 else f"at temperature {sampling.temperature:g}, top-p {sampling.top_p:g}"
            log.info(f"iteration {t}: the opponent {opponent.hash[:12]} replies {rule} ({sampling.engine}, {self.recipe.sampling_dtype})")
            with Sampler(self.recipe, self.chat, opponent.folder) as sampler:
                replies = sample_examples(
                    stage,
                    self.train_examples,
                    lambda: sampler.engine(sampling.temperature),
                    Stream(self.recipe.seed, t),
                    sampling.replies_per_prompt,
                    sampling.shard_rows,
                    f"iteration {t}: sampling",
                    partial(sampler.check, sampling.temperature),
                    self.chat.decode,
                )
            prompt_tokens = sampling.replies_per_prompt * sum(len(example.prompt_ids) for example in self.train_examples)
            sampled_tokens = prompt_tokens + sum(len(reply.token_ids) for reply in replies)
            # read by rank 0, which is the one that gives the stage its final name
            return {"replies": len(replies), "sampled_tokens": sampled_tokens, **from_main(partial(checked_facts, stage))}

        inputs = {
            **self._sampling_inputs(opponent, t),
            "replies_per_prompt": sampling.replies_per_prompt,
            "data": self.data.outputs["train.parquet"],
        }
        return self.stage(iteration_stage(t, "generate"), inputs, work, shared=self._samples_on_ranks)

    def window(self, t: int) -> Window:
        """The duels of the newest `objective.window` iterations."""
        objective = self.recipe.objective
        iterations = range(max(0, t - objective.window + 1), t + 1)
        replies = {i: read_replies(self.run.root / iteration_stage(i, "generate")) for i in iterations}
        of_start = read_replies(self.run.root / iteration_stage(0, "generate")) if objective.uses_start_replies else None
        keep = objective.learns_from_identical(t)
        window = build_window(self.train_examples, replies, self.chat.stop_ids, of_start=of_start, keep_identical=keep)
        log.info(f"iteration {t}: " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in window.counts.items()))
        return window

    def train(self, opponent: Policy, window: Window, t: int) -> Policy:
        """Stage 2: opponent log-probs first, then the player, who starts as the opponent."""
        settings, objective = self.recipe.train, self.objective(t)
        lr, epochs = (at_iteration(value, t) for value in (settings.lr, settings.epochs))
        plan = self._plan(window, t)
        scored = self._scored(opponent, window, t)

        def work(stage: Path) -> dict[str, Any]:
            logps = {name: joined_logps(record.path for record in records) for name, records in scored.items()}
            task = objective_task(window.duels, objective, logps.get("opponent_logps", {}), logps.get("start_logps", {}))
            facts = self.fit_model(stage, opponent, task, plan, settings, phase=f"iteration {t}: training", labels={"iteration": t})
            return {**facts, "counts": window.counts}

        inputs = {
            "train": {**fingerprinted(settings), "lr": lr, "epochs": epochs},
            "objective": objective,
            "opponent": opponent.hash,
            **self._score_inputs(scored, window),
            "seed": self.recipe.seed,
        }
        return Policy.of_stage(self.stage(iteration_stage(t, "train"), inputs, work, shared=True))

    def evaluate(self, player: Policy, opponent: Policy, t: int) -> Policy:
        """Stage 3: the player on the held-out rows."""
        return self.results(iteration_name(t), player, opponent, round_index=t + 1)

    def scores(self, player: Policy) -> dict[str, Score]:
        assert player.evaluated is not None
        files = [stage / SCORES for stage in (player.evaluated, player.benchmarks) if stage]
        return {name: score for file in files for name, score in read_json(file).items()}

    def scores_of(self, stage: str) -> dict[str, Score]:
        """What a finished evaluation found."""
        return read_json(self.run.root / stage / SCORES)

    def score(self, opponent: Policy, window: Window, t: int) -> StageRecord:
        """The opponent's log-probs of the duels, in the micro-batches of the training that follows."""
        return self._score_stage(t, "score", opponent, window.duels, self._plan(window, t), f"iteration {t}: opponent log-probs")

    def _score_stage(self, t: int, part: str, model: Policy, duels: list[Duel], plan: TrainPlan, phase: str) -> StageRecord:
        settings = self.recipe.train

        def work(stage: Path) -> dict[str, Any]:
            return score_duels(stage, model.folder, duels, plan, self.with_budget(settings), phase)

        return self.stage(iteration_stage(t, part), self.scoring_inputs(model, duels, plan, settings), work, shared=True)

    def score_start(self, opponent: Policy, window: Window, t: int) -> StageRecord | None:
        """Log-probs under the start of the game, of the duels that no earlier iteration has scored so; None when there are none.

        The opponent of iteration 0 is the start: what it has scored there is not scored again.
        """
        start, settings = self.sft(), self.recipe.train
        known = joined_logps(record.path for record in self._of_start(t))
        plan = self._plan(window, t)
        used = {index for step in range(plan.first_pass_steps()) for index in plan.batch(step)}
        duels = [duel for index, duel in enumerate(window.duels) if index in used and duel.duel_id not in known]
        if not duels:
            return None
        once = make_plan(settings, len(duels), lr=1.0, epochs=1.0, seed=plan.seed, name=f"iteration {t}: scoring under the start")
        return self._score_stage(t, "score-start", start, duels, once, f"iteration {t}: log-probs of the start")

    # -- shared pieces ------------------------------------------------------------------------------------------------------------

    def scoring_inputs(self, opponent: Policy, duels: Sequence[Duel], plan: TrainPlan, settings: OptimSection) -> dict[str, Any]:
        """What log-probs of duels depend on."""
        return {
            "opponent": opponent.hash,
            "duels": digest([vars(duel) for duel in duels]),
            "batches": {
                "first_pass_steps": plan.first_pass_steps(),
                "batch_size": plan.batch_size,
                "seed": plan.seed,
                "precision": settings.precision,
                **self._base_format(),
            },
        }

    def objective(self, t: int) -> dict[str, Any]:
        """What an iteration minimises: the options that have an effect in it."""
        return self.recipe.objective.at(t, self.recipe.sampling.replies_per_prompt)

    def _scored(self, opponent: Policy, window: Window, t: int) -> dict[str, list[StageRecord]]:
        """The stages that hold the log-probs which the objective needs, those made first that are not there yet."""
        needs, found = self.recipe.objective, {}
        if needs.uses_opponent_logps:
            found["opponent_logps"] = [self.score(opponent, window, t)]
        if needs.uses_start:
            newest = self.score_start(opponent, window, t)
            found["start_logps"] = [*self._of_start(t), *([newest] if newest else [])]
        return found

    def _of_start(self, t: int) -> list[StageRecord]:
        """The stages before iteration t that hold log-probs under the start of the game."""
        names = [iteration_stage(0, "score"), *(iteration_stage(i, "score-start") for i in range(1, t))]
        return [record for name in names if (record := self.run.finished(name))]

    def _score_inputs(self, scored: dict[str, list[StageRecord]], window: Window) -> dict[str, Any]:
        """What a training stage knows its duels by: their log-probs, or where it needs none the duels themselves."""
        if not scored:
            return {"duels": digest([vars(duel) for duel in window.duels])}
        start = [record.digest for record in scored.get("start_logps", [])]
        return {"opponent_logps": scored["opponent_logps"][0].digest, **({"start_logps": start} if start else {})}

    def _plan(self, window: Window, t: int) -> TrainPlan:
        settings = self.recipe.train
        lr, epochs = (at_iteration(value, t) for value in (settings.lr, settings.epochs))
        return make_plan(settings, len(window.duels), lr=lr, epochs=epochs, seed=self.order_seed(t), name=f"iteration {t}")

    def sft_stage(
        self, name: str, start: Policy, plan: TrainPlan, settings: SftSection, inputs: dict[str, Any], derived: bool = False
    ) -> Policy:
        def work(stage: Path) -> dict[str, Any]:
            return self.fit_model(stage, start, SftTask(self.train_examples), plan, settings, phase=name, labels={"stage": name})

        inputs = {**inputs, "start": start.hash, "data": self.data.outputs["train.parquet"], "seed": self.recipe.seed}
        make = self.derived_stage if derived else self.stage
        return Policy.of_stage(make(name, inputs, work, shared=True))

    def results(self, owner: str, player: Policy, opponent: Policy | None, round_index: int, derived: bool = False) -> Policy:
        """Measure and score a player on the held-out rows, in the two stages below `owner`."""
        measured = self.measure(owner, player, opponent, round_index, derived)
        evaluated = self._evaluated(owner, player, measured)
        benchmarks = self._benchmarked(owner, player)
        return player.with_results(measured.path, evaluated.path, benchmarks and benchmarks.path)

    def measure(self, owner: str, player: Policy, opponent: Policy | None, round_index: int, derived: bool = False) -> StageRecord:
        """The first of the two: everything that the player's weights are needed for."""

        def draw(stage: Path) -> None:
            self.measurer.draw(stage, player.folder, round_index, title_of(owner))

        def measure(stage: Path) -> dict[str, Any]:
            against = Opponent(opponent.folder, opponent.measured) if opponent else None
            return self.measurer.measure(stage, player.folder, against, round_index, title_of(owner))

        inputs = {
            **self._sampling_inputs(player, round_index),
            "opponent": opponent.hash if opponent else None,
            "data": self.data.outputs["held_out.parquet"],
            "greedy": self.recipe.evaluate.greedy,
            "precision": self.recipe.train.precision,
            **self._base_format(),
        }
        make = self.derived_stage if derived else self.stage
        return make(measure_stage(owner), inputs, measure, shared=True, alone=None if self._samples_on_ranks else draw)

    @property
    def _samples_on_ranks(self) -> bool:
        """Other engines than transformers bring their own processes."""
        return self.recipe.sampling.engine == "transformers"

    def _evaluated(self, owner: str, player: Policy, measured: StageRecord) -> StageRecord:
        def work(stage: Path) -> dict[str, Any]:
            self.evaluator.evaluate(stage, read_measured(measured.path))
            if self.recipe.showcase:
                self._answer_showcase(stage / "showcase.json", player)
            return {}

        inputs = {
            "measured": measured.digest,
            "answer_pattern": self.recipe.evaluate.answer_pattern,
            "confidence": self.recipe.stop.confidence,
            "showcase": [self.recipe.showcase_system, *self.recipe.showcase],
            "tables": [SCORES, ITEMS, SAMPLES],
        }
        return self.derived_stage(evaluate_stage(owner), inputs, work)

    def _benchmarked(self, owner: str, player: Policy) -> StageRecord | None:
        section, train = self.recipe.evaluate.benchmarks, self.recipe.train
        if section is None:
            return None
        template = self.chat.template if section.chat_template else None
        model = HarnessModel(player.folder, COMPUTE_DTYPES[train.precision], template, train.four_bit)
        inputs = {
            **benchmark_inputs(section),
            "model": player.hash,
            "precision": train.precision,
            **self._base_format(),
            "chat": chat_fingerprint(self.chat) if section.chat_template else None,
        }
        return self.derived_stage(benchmark_stage(owner), inputs, lambda stage: run_benchmarks(stage, section, model))

    def _answer_showcase(self, file: Path, player: Policy) -> None:
        """Answers to the recipe's showcase prompts, each under one random stream that is the same in every iteration."""
        with Sampler(self.recipe, self.chat, player.folder) as sampler:
            engine = sampler.engine(self.recipe.sampling.temperature)
            replies = answer(engine, self.chat, self._showcase(), self.recipe.seed)
        shown = zip(self.recipe.showcase, replies, strict=True)
        write_json(file, [{"prompt": prompt, "reply": reply} for prompt, reply in shown])

    def _showcase(self) -> list[list[Message]]:
        system = self.recipe.showcase_system
        first = [Message(role="system", content=system)] if system else []
        return [[*first, Message(role="user", content=text)] for text in self.recipe.showcase]

    def stage(self, name: str, inputs: dict[str, Any], work: Work, shared: bool = False, alone: Part | None = None) -> StageRecord:
        """A stage of the run directory; what it held in memory is gone when it returns.

        shared: the recipe's launcher may start it; alone: the part of the work that this process then does before, where not all of it
        is the ranks'.
        """
        with at_stage(name):
            if self.target is not None:
                record = self._stage_of_rank(name, inputs, work)
            elif shared and self.recipe.launcher.kind == "accelerate":
                record = self._launched(name, inputs, alone)
            else:
                record = self.run.stage(name, inputs, work)
        release_memory()
        return record

    def _launched(self, name: str, inputs: dict[str, Any], alone: Part | None) -> StageRecord:
        begun = self.run.begin(name, inputs)
        if isinstance(begun, StageRecord):
            return begun
        if alone is not None:
            alone(begun)
            release_memory()
        with at_stage(name, lent=True):
            launch(self.recipe, self.run.root, name)
        record = self.run.finished(name)
        assert record is not None, f"the ranks of {name} have left it unfinished"
        return record

    def _stage_of_rank(self, name: str, inputs: dict[str, Any], work: Work) -> StageRecord:
        """All ranks do the work of the target stage, and rank 0 alone begins and commits it."""
        require_equal(inputs, f"would make {name} from other inputs", "the ranks must see the same model, data and run directory")

        def begin() -> StageRecord | Path:
            if name != self.target and not self.run.finished(name):
                raise UserError(f"{name} comes before {self.target} and is not finished", remedy="`sparring run` plays up to it")
            return self.run.begin(name, inputs)

        begun = from_main(begin)
        if isinstance(begun, StageRecord):
            return begun
        began = time.monotonic()
        facts = work(begun)
        return from_main(lambda: self.run.commit(name, inputs, {**facts, "wall_seconds": round(time.monotonic() - began, 3)}))

    def derived_stage(self, name: str, inputs: dict[str, Any], work: Work, **more: Any) -> StageRecord:
        """A stage that follows from others and from the recipe, cheaply or by its nature: with other inputs it is simply made anew."""

        def clear() -> None:
            if changes := self.run.remove_changed(name, inputs):
                log.info(f"{name} is made anew: {'; '.join(changes)}")

        from_main(clear)
        return self.stage(name, inputs, work, **more)

    def _base_format(self) -> dict[str, str]:
        """A quantised base computes something else; without one nothing is said, as before there were any."""
        return {"quantize": "4bit"} if self.recipe.train.four_bit else {}

    def _sampling_inputs(self, model: Policy, round_index: int) -> dict[str, Any]:
        """What replies depend on; how many are drawn together does not count among it."""
        sampling = self.recipe.sampling
        by_ray = {"engine": f"ray, {sampling.inner_engine}"} if sampling.engine == "ray" else {}
        return {
            "sampling": {**sampling.model_dump(include={"engine", "temperature", "top_p", "max_new_tokens"}), **by_ray},
            "dtype": self.recipe.sampling_dtype,
            **self._base_format(),
            "model": model.hash,
            "round": round_index,
            "seed": self.recipe.seed,
        }

    def fit_model(self, stage: Path, start: Policy, task: Task, plan: TrainPlan, settings: OptimSection, **shown: Any) -> dict[str, Any]:
        """Train, save the model, then drop the checkpoints; a kill between any two of these loses none of the training."""
        fitted = stage / "fit.json"
        if not from_main(fitted.exists):
            result = fit(stage, start.folder, task, plan, self.with_budget(settings), **shown)

            def save() -> None:
                self._save_model(result, stage / "model", merged=settings.lora is not None and isinstance(task, SftTask))
                write_json(fitted, result.facts)

            from_main(save)

        def finish() -> dict[str, Any]:
            remove_checkpoints(stage)
            return read_json(fitted)

        return from_main(finish)

    def _save_model(self, result: FitResult, folder: Path, merged: bool) -> None:
        """Write a folder that anything can load, with the chat template and the end of turn that the model was trained under.

        An adapter of an SFT stage is added to the weights: the game's own adapters start from there.
        """
        own = folder.with_name("adapter") if merged else folder
        result.weights.save_pretrained(own)
        if merged:
            merge(own, folder)
            shutil.rmtree(own)
        copy_extras(self.base.folder, folder)
        self.chat.tokenizer.save_pretrained(folder)
        generation = read_json(folder / "generation_config.json") if (folder / "generation_config.json").exists() else {}
        write_json(folder / "generation_config.json", {**generation, "eos_token_id": sorted(self.chat.stop_ids)})
        for file in folder.iterdir():  # on the disk before the checkpoints go
            fsync(file)

    def with_budget(self, settings: Optim) -> Optim:
        """The settings with the size of their micro-batches."""
        return settings if settings.micro_batch_tokens else settings.model_copy(update={"micro_batch_tokens": self.chosen_tokens})

    @cached_property
    def chosen_tokens(self) -> int:
        """`micro_batch_tokens` where the recipe names none. Kept with the run: opponent pass, training, a resumed run must round alike."""
        return from_main(self._choose_tokens)

    def _choose_tokens(self) -> int:
        file, device, parallel = self.run.root / CHOSEN, make_accelerator().device, self._parallel()
        shared = f"{parallel.strategy} over {parallel.devices} ranks" if parallel.cuts else None
        chosen, reasons = read_json(file) if file.exists() else {}, {"device": device.type, "shared": shared}
        if any(chosen.get(name) != reason for name, reason in reasons.items()):
            shape, free = model_shape(self.base.folder), free_memory(device)
            if device.type == "cpu":  # which the ranks of this machine share
                free //= ranks_here(self.recipe.launcher)
            tokens = token_budget(shape, free, device.type, self.recipe.trains_adapters_alone, parallel)
            size = f"{shape.num_parameters() / 1e6:.0f}M parameters{f', {shared},' if shared else ''}"
            log.info(f"micro_batch_tokens: {tokens}, for {size} and {free / 2**30:.1f} GiB free")
            chosen = {"micro_batch_tokens": tokens, **reasons}
            write_json(file, chosen)
        return chosen["micro_batch_tokens"]

    def _parallel(self) -> Parallel:
        """How the launcher's ranks share a training; whole on each where only a config file says how many there are."""
        launcher = self.recipe.launcher
        if launcher.kind == "inline" or (launcher.config_file is not None and launcher.processes is None):
            return Parallel()
        return Parallel(process_count(launcher), launcher.strategy)

    def order_seed(self, t: int) -> int:
        """Another order of batches in every iteration."""
        return self.recipe.seed * 1000 + t + 1


def fingerprinted(settings: OptimSection) -> dict[str, Any]:
    """The options of a training stage that its result depends on."""
    return settings.model_dump(exclude=NOT_FINGERPRINTED)
