"""The plan of a game: every stage with its work, memory and time, in the order of selfplay.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from sparring.config import ControlSection, OptimSection, Recipe, at_iteration, sft_settings
from sparring.planning import memory
from sparring.planning.hardware import Hardware, devices_wanted, of_sampling, of_training
from sparring.planning.lengths import Lengths
from sparring.planning.memory import Memory
from sparring.planning.shape import Shape
from sparring.planning.work import SCORING, TRAINING, Work, sampling_work, seconds, shares_of_sampling, training_forward_passes, tree_work
from sparring.policy.footprint import MASTER_BYTES, NUMBER_BYTES, OPTIMIZER_BYTES, Parallel, gathered_at_once, held_at_most, tokens_at_once
from sparring.policy.machine import with_precision
from sparring.stage_names import PROBE, START, is_used, iteration_name, iteration_stage


@dataclass(frozen=True)
class StagePlan:
    """A stage of the plan: its owner (sft, start, iterations/000, ...), kind (train, measure, ...), work, memory, and seconds."""

    owner: str
    kind: str
    work: Work
    memory: Memory
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The estimate for a recipe: memory and time of every stage, and `disk` in bytes for the whole run."""

    recipe: Recipe
    shape: Shape
    hardware: Hardware
    lengths: Lengths
    parallel: Parallel
    micro_batch_tokens: int
    disk: float
    stages: tuple[StagePlan, ...]

    @property
    def seconds(self) -> float:
        """Estimated wall-clock time of all stages together."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak(self) -> StagePlan:
        """The stage that needs the most memory; of equal ones that with the most operations."""
        return max(self.stages, key=lambda stage: (stage.memory.total, stage.work.flops))

    @property
    def fits(self) -> bool:
        """Whether the peak fits into a device's memory and there are as many devices as the recipe needs."""
        return self.peak.memory.total <= self.device.memory and self.wanted[0] <= self.hardware.count

    @property
    def device(self) -> Hardware:
        """The device of each training process."""
        return self.hardware.shared_by(self.parallel.devices)

    @property
    def wanted(self) -> tuple[int, str]:
        """The most devices that an option requires, and that option."""
        return devices_wanted(self.recipe, self.hardware)


def estimate(recipe: Recipe, shape: Shape, lengths: Lengths, hardware: Hardware) -> Plan:
    """The plan of `recipe` on `hardware`, all iterations played."""
    if any(section.precision is None for section in recipe.trained.values()):
        recipe = with_format(recipe, hardware)
    game = _Game(recipe, shape, lengths, hardware)
    stages = tuple(game.stages())
    return Plan(recipe, shape, hardware, lengths, game.parallel, game.micro_batch(recipe.train), game.disk(), stages)


def with_format(recipe: Recipe, hardware: Hardware) -> Recipe:
    """The recipe with the number format that a run chooses on such devices, announced; with a warning if it names a slow one."""
    return with_precision(recipe, hardware.kind, fast=None if hardware.kind == "cpu" else "bf16")  # all GPUs of the table have fast bf16


class _Game:
    def __init__(self, recipe: Recipe, shape: Shape, lengths: Lengths, hardware: Hardware) -> None:
        self.recipe, self.shape, self.lengths, self.played = recipe, shape, lengths, lengths.played
        self.contests = replace(self.played, reply=lengths.generated, longest_reply=lengths.longest_generated)  # a winner is generated too
        self.parallel = of_training(recipe, hardware)
        self.hardware = hardware.shared_by(self.parallel.devices)

    def stages(self) -> Iterator[StagePlan]:
        recipe = self.recipe
        if recipe.sft:
            yield self._train("sft", recipe.sft, self.lengths, {1: recipe.sft.epochs * self.lengths.train_rows})
        yield from self._results(START, 1)
        yield from self._headroom()
        forward = 0.0
        for t in range(recipe.iterations):
            played = list(self._iteration(t))
            yield from played
            forward += sum(stage.work.tokens * (recipe.train.forward_passes if stage.kind == "train" else 1) for stage in played)
            yield from self._results(iteration_name(t), 3)
        for section in recipe.controls:
            yield from self._control(section, forward)
            yield from self._results(section.folder, 3)

    def _iteration(self, t: int) -> Iterator[StagePlan]:
        recipe, objective, owner, rows = self.recipe, self.recipe.objective, iteration_name(t), self.played.train_rows
        window = min(t + 1, objective.window)
        epochs, of_window = at_iteration(recipe.train.epochs, t), self._branches(t, window)
        branches, trees = min(of_window), self.contests if recipe.target.uses_grades else self.lengths
        first_pass = min(1.0, epochs)
        yield self._sample(owner, "generate", self.played, rows, recipe.sampling.replies_per_prompt)
        if is_used(iteration_stage(t, "score"), recipe):
            yield self._score(owner, "score", trees, window * rows * first_pass, branches)
        if is_used(iteration_stage(t, "score-start"), recipe):
            yield self._score(owner, "score-start", trees, rows * first_pass, branches)
        yield self._train(owner, recipe.train, trees, {count: epochs * rows * part for count, part in of_window.items()})

    def _branches(self, t: int, window: int) -> dict[int, int]:
        """Branches of a tree -> iterations in the window whose trees have so many: T-SPIN's have the start's replies too, but once."""
        replies = self.recipe.sampling.replies_per_prompt
        if self.recipe.target.uses_grades:
            return {contest_branches(self.recipe): window}
        if not self.recipe.objective.at(t, replies).computes_start_replies:
            return {1 + replies: window}
        of_start = int(window == t + 1)  # iteration 0 is in the window
        return {1 + 2 * replies: window - of_start, 1 + replies: of_start}

    def _sample(self, owner: str, kind: str, lengths: Lengths, rows: int, replicas: int) -> StagePlan:
        samplers = of_sampling(self.recipe, self.hardware)
        work = sampling_work(self.shape, self.recipe, lengths, rows, replicas, samplers)
        shares = shares_of_sampling(self.hardware.kind, self.recipe.sampling.inner)
        held = memory.sampling(self.shape, self.recipe, lengths, rows, replicas, self.hardware, samplers)
        number_bytes = NUMBER_BYTES[self.recipe.sampling_dtype]
        return StagePlan(owner, kind, work, held, seconds(work, shares, self.hardware, samplers.devices, self.shape, number_bytes))

    def _score(self, owner: str, kind: str, lengths: Lengths, duels: float, branches: int) -> StagePlan:
        work = tree_work(self.shape, SCORING, lengths.prompt, _replies(lengths, branches), duels)
        return StagePlan(owner, kind, work, self._scoring(lengths, branches), self._time(work))

    def _train(self, owner: str, settings: OptimSection, lengths: Lengths, items: Mapping[int, float]) -> StagePlan:
        """items: branches of a tree -> how many trees have so many."""
        forward_passes = training_forward_passes(settings.lora is not None, settings.gradient_checkpointing, self.micro_batch(settings))
        parts = [tree_work(self.shape, forward_passes, lengths.prompt, _replies(lengths, count), trees) for count, trees in items.items()]
        work = sum(parts, Work())
        branches = max(items)
        tokens = self._at_once(settings, lengths, branches)
        held = memory.training(self.shape, settings, lengths, branches, tokens, self.hardware.kind, self.parallel)
        return StagePlan(owner, "train", work, held, self._time(work, settings))

    def _control(self, section: ControlSection, forward: float) -> Iterator[StagePlan]:
        """A control's stages, with as many rows as cost `forward` forward tokens (control.py); pairs are assumed as long as the data."""
        lengths = self.lengths
        rows = (section.epochs or 0) * ((section.pairs and section.pairs.max_examples) or lengths.train_rows)
        if section.kind == "rft":
            yield self._rft(section, forward)
            return
        if section.kind == "dpo":
            settings, tree = self.recipe.train, lengths.prompt + lengths.reply + lengths.generated - 2
            items = rows or forward / (settings.forward_passes + 1) / tree
            yield self._score(section.folder, "score", lengths, min(items, lengths.train_rows), 2)
            yield self._train(section.folder, settings, lengths, {2: items})
            return
        own = sft_settings(self.recipe, section)
        items = rows or forward / own.forward_passes / (lengths.prompt + lengths.reply - 1)
        yield self._train(section.folder, own, lengths, {1: items})

    def _rft(self, section: ControlSection, forward: float) -> StagePlan:
        """Training on the winners of iteration 0's replies, whose sampling is part of the cost (control.py)."""
        settings, played = self.recipe.train, self.contests
        branches = min(self.recipe.target.max_winners, self.recipe.sampling.replies_per_prompt + 1)  # the human reply, and winners
        sampled = self._sample(START, "generate", self.played, played.train_rows, self.recipe.sampling.replies_per_prompt)
        of_tree = tree_work(self.shape, SCORING, played.prompt, _replies(played, branches)).tokens
        left = max(0.0, forward - sampled.work.tokens) / settings.forward_passes / of_tree
        return self._train(section.folder, settings, played, {branches: (section.epochs or 0) * played.train_rows or left})

    def _headroom(self) -> Iterator[StagePlan]:
        """The headroom of the start (headroom.py): replies at its temperature, at a lower one and greedy, and a short continued SFT."""
        recipe, rows = self.recipe, self.lengths.held_out_rows
        if not is_used(f"{START}/headroom", recipe):
            return
        if is_used(PROBE, recipe) and recipe.evaluate.headroom_epochs is not None:
            settings = sft_settings(recipe, ControlSection())
            yield self._train("probe", settings, self.lengths, {1: recipe.evaluate.headroom_epochs * self.lengths.train_rows})
        many = self._sample(START, "headroom", self.lengths, rows, max(recipe.evaluate.samples, recipe.sampling.replies_per_prompt))
        one = self._sample(START, "headroom", self.lengths, rows, 1)
        times = 1 if recipe.sampling.lower_temperature is None else 2
        yield StagePlan(START, "headroom", many.work.times(times) + one.work, many.memory, times * many.seconds + one.seconds)

    def _results(self, owner: str, forward_passes: int) -> Iterator[StagePlan]:
        """The evaluation of a player. Of benchmarks only the memory, in one process, since their lengths are not known."""
        yield self._measure(owner, forward_passes)
        section = self.recipe.evaluate.benchmarks
        if section is not None:
            held = memory.scoring(self.shape, self.recipe.train, section.batch_tokens, self.hardware.kind, Parallel())
            yield StagePlan(owner, "benchmarks", Work(), held, 0.0)

    def _measure(self, owner: str, forward_passes: int) -> StagePlan:
        """Replies to the held-out prompts, then log-probs of trees with the own reply, and with the opponent's under both."""
        lengths, rows = self.lengths, self.lengths.held_out_rows
        counts = [self.recipe.evaluate.samples, *([1] if self.recipe.evaluate.greedy else [])]
        sampled = [self._sample(owner, "measure", lengths, rows, count) for count in counts]
        scored = tree_work(self.shape, SCORING, lengths.prompt, _replies(lengths, 2), forward_passes * rows)
        held = memory.measuring(sampled[0].memory, self._scoring(lengths, 2), self.recipe, self.hardware.kind)
        work = sum((one.work for one in sampled), scored)
        return StagePlan(owner, "measure", work, held, sum(one.seconds for one in sampled) + self._time(scored))

    # -- shared pieces ------------------------------------------------------------------------------------------------------------

    def micro_batch(self, settings: OptimSection) -> int:
        """Tokens computed at once, as a run would choose them (policy/compute.py); a longer tree has its own micro-batch."""
        if settings.micro_batch_tokens:
            return settings.micro_batch_tokens
        gathered = gathered_at_once(self.shape.largest_layer, self.shape.outside_layers)
        held = held_at_most(self.shape.parameters, gathered, self.recipe.trains_adapters_alone, self.parallel)
        number_bytes = NUMBER_BYTES[self.recipe.train.number_format]
        return tokens_at_once(self.shape.config, held, self.hardware.memory, self.hardware.kind, number_bytes)

    def _at_once(self, settings: OptimSection, lengths: Lengths, branches: int) -> int:
        """Tokens of the largest micro-batch."""
        others = (branches - 1) * lengths.generated
        whole_batch = settings.batch_size / self.parallel.devices * (lengths.prompt + lengths.reply + others)
        longest = lengths.longest_prompt + lengths.longest_reply + (branches - 1) * lengths.longest_generated
        return round(max(longest, min(self.micro_batch(settings), whole_batch)))

    def _scoring(self, lengths: Lengths, branches: int) -> Memory:
        settings = self.recipe.train
        return memory.scoring(self.shape, settings, self._at_once(settings, lengths, branches), self.hardware.kind, self.parallel)

    def _time(self, work: Work, settings: OptimSection | None = None) -> float:
        """Seconds of training or scoring. settings: those of the training; None for scoring, which computes in the format of `train`."""
        number_bytes = NUMBER_BYTES[(settings or self.recipe.train).number_format]
        return seconds(work, TRAINING[self.hardware.kind], self.hardware, self.parallel.devices, self.shape, number_bytes)

    def disk(self) -> float:
        """Bytes of all players that a run keeps, and of one training checkpoint while its successor is written."""
        recipe, whole = self.recipe, MASTER_BYTES * self.shape.parameters
        trained = memory.trained_weights(self.shape, recipe.train)
        writes_base = recipe.model.path.startswith(("builtin:", "package:")) or recipe.model.path.endswith(".gguf")
        kept = whole * (writes_base + (recipe.sft is not None)) + MASTER_BYTES * trained * recipe.iterations
        return kept + whole * len(recipe.controls) + 2 * (MASTER_BYTES + OPTIMIZER_BYTES[recipe.train.optimizer]) * trained


def _replies(lengths: Lengths, branches: int) -> tuple[float, ...]:
    """Mean tokens of the branches of a tree, the preferred reply first."""
    return (lengths.reply, *[lengths.generated] * (branches - 1))


def contest_branches(recipe: Recipe) -> int:
    """Most branches of the tree of one prompt: only the winners if the loss is their likelihood, else winners and losers."""
    target, sampled = recipe.target, recipe.sampling.replies_per_prompt
    winners = 1 if target.human == "only" else target.max_winners
    if not recipe.objective.kind.uses_margins:
        return min(winners, sampled + (target.human == "mix"))
    return min(winners + min(target.max_losers, sampled), sampled + 1)
