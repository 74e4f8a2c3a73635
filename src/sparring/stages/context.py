"""The state that all stages of a game share: the base model, its chat format, the rows, and the size of micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from sparring.config import DataSection, OptimSection, Recipe
from sparring.console import log
from sparring.data.chat import Chat
from sparring.data.prepare import PROMPTS, prepare, read_examples, write_examples
from sparring.errors import UserError
from sparring.launch import parallel_of, ranks_here
from sparring.policy.compute import free_memory, make_accelerator, token_budget
from sparring.policy.footprint import Parallel
from sparring.policy.load import ModelSource, find_model, load_chat, model_shape
from sparring.policy.player import Player
from sparring.policy.ranks import accelerator_of_rank, from_main, is_sharded, rank_count
from sparring.rundir import StageRecord, read_object, replace_link, write_json
from sparring.stage_names import START, title_of
from sparring.stages.run_stage import Examples, PromptRows, Replying, StageRunner

CHOSEN = "micro_batch.json"


def choose_tokens(recipe: Recipe, root: Path, base: Path) -> int:
    """Tokens per micro-batch of the run in `root`; chosen again, for the model in folder `base`, if device or sharding differ."""
    file, device, parallel = root / CHOSEN, make_accelerator().device, _parallel(recipe)
    shared = f"{parallel.strategy} over {parallel.devices} ranks" if parallel.is_sharded else None
    chosen, reasons = read_object(file) if file.exists() else {}, {"device": device.type, "shared": shared}
    if any(chosen.get(name) != reason for name, reason in reasons.items()):
        shape, free = model_shape(base), free_memory(device)
        if device.type == "cpu":  # the ranks of this machine share its memory
            free //= ranks_here(recipe.launcher)
        tokens = token_budget(shape, free, device.type, recipe.trains_adapters_alone, parallel, recipe.train.number_format)
        size = f"{shape.num_parameters() / 1e6:.3g}M parameters{f', {shared},' if shared else ''}"
        log.info(f"micro_batch_tokens: {tokens}, for {size} and {free / 2**30:.1f} GiB free")
        chosen = {"micro_batch_tokens": tokens, **reasons}
        write_json(file, chosen)
    return read_object(file, "micro_batch_tokens")["micro_batch_tokens"]


def _parallel(recipe: Recipe) -> Parallel:
    """How the ranks share a training: those that compute with this process, which may have been started by hand, or else the launcher's."""
    if accelerator_of_rank() is None:
        return parallel_of(recipe.launcher)
    return Parallel(rank_count(), "fsdp2" if is_sharded() else "ddp")


Optim = TypeVar("Optim", bound=OptimSection)
BASE_LINK = "base-model"
SINGULAR = {"replies": "reply", **{f"{noun}s": noun for noun in ("duel", "duplicate", "prompt", "winner", "loser", "pair")}}
# what follows the noun, for counts whose names say too little
IN_WORDS = {"duels_all_identical": "with identical replies only", "replies_identical": "identical to the human reply"}


@dataclass(frozen=True)
class Common:
    """Arguments of the work of every stage: the stage's name, the folder of the base model, and the chat format."""

    name: str
    base: Path
    chat: Chat

    @property
    def title(self) -> str:
        """The player that the stage belongs to, for the log."""
        return title_of(self.name.rpartition("/")[0] or self.name)


class RunContext(StageRunner):
    """A recipe in its run directory, with its stages, base model and data; each is prepared on first access."""

    @cached_property
    def base(self) -> Player:
        """The model that the recipe names, as a folder of safetensors; a GGUF file or a built-in is written out once."""
        source = find_model(self.recipe.model, self.recipe.seed)
        if source.folder is not None:
            adapts = any(section.lora for section in self.recipe.trained.values())
            return Player(START, _linked(source.folder, self.run.root) if adapts else source.folder, source.fingerprint)

        return Player.of_stage(self.run_stage("base", partial(_make_base, model=source)))

    @cached_property
    def chat(self) -> Chat:
        """The base model's tokenizer, with the recipe's chat template if it names one."""
        chat = load_chat(self.base.folder, self.recipe.model)
        for notice in chat.notices:
            log.info(f"chat: {notice}")
        return chat

    @cached_property
    def data(self) -> StageRecord:
        """data/: train and held-out rows, tokenised and split once for the whole run."""
        work = partial(_prepare_data, data=self.recipe.data, chat=self.chat, seed=self.recipe.seed)
        return self.run_stage("data", work)

    def replying(self, model: Player, sampling_round: int) -> Replying:
        """How a player replies in a round."""
        return Replying(self.recipe.sampler, model, sampling_round, self.recipe.seed)

    def common(self, stage: str) -> Common:
        """The arguments that the work of every stage has."""
        return Common(stage, self.base.folder, self.chat)

    @cached_property
    def train_examples(self) -> Examples:
        """The training rows with a human reply."""
        return self._examples("train.parquet")

    @cached_property
    def prompts(self) -> Examples:
        """The rows of data.prompts, which have no human reply; empty without data.prompts."""
        return self._examples(PROMPTS) if self.recipe.data.prompts else Examples()

    @cached_property
    def prompt_rows(self) -> PromptRows:
        """All examples whose prompts the opponent replies to."""
        return PromptRows(self.train_examples, self.prompts)

    @cached_property
    def held_out(self) -> Examples:
        """The held-out rows."""
        return self._examples("held_out.parquet")

    def _examples(self, file: str) -> Examples:
        return Examples(read_examples(self.data.path / file), self.data.outputs[file])

    def with_budget(self, settings: Optim) -> Optim:
        """The settings with the size of their micro-batches."""
        return settings if settings.micro_batch_tokens else settings.model_copy(update={"micro_batch_tokens": self.chosen_tokens})

    @cached_property
    def chosen_tokens(self) -> int:
        """`micro_batch_tokens` if the recipe has none. Stored, so that opponent pass, training and a resumed run round alike."""
        base = self.base.folder
        return from_main(lambda: choose_tokens(self.recipe, self.run.root, base))


def _make_base(stage: Path, *, model: ModelSource) -> dict[str, Any]:
    assert model.make is not None, "a model without a folder can be made"
    model.make(stage / "model")
    return {}


def _prepare_data(stage: Path, *, data: DataSection, chat: Chat, seed: int) -> dict[str, Any]:
    prepared = prepare(data, chat, seed)
    for notice in prepared.notices:
        log.info(f"data: {notice}")
    write_examples(stage / "train.parquet", prepared.train)
    write_examples(stage / "held_out.parquet", prepared.held_out)
    log.info(f"data: {counts_text(prepared.counts)}")
    facts = {"counts": prepared.counts, "unused_columns": list(prepared.unused)}
    if data.prompts is None:
        return facts
    write_examples(stage / PROMPTS, prepared.prompts)
    log.info(f"data: prompts without a reply: {counts_text(prepared.prompt_counts)}")
    return {**facts, "prompt_counts": prepared.prompt_counts}


def counts_text(counts: Mapping[str, int]) -> str:
    """Counts as a line of the log, zeros left out."""
    return ", ".join(f"{count} {_words(name, count)}" for name, count in counts.items() if count)


def _words(name: str, count: int) -> str:
    """The words after a count: `reply truncated` for 1, `replies truncated` for 2."""
    first, *more = name.split("_")
    noun = SINGULAR.get(first, first) if count == 1 else first
    return " ".join([noun, IN_WORDS.get(name, " ".join(more))]).rstrip()


def _linked(folder: Path, root: Path) -> Path:
    """A link in the run directory to a base model outside of it, through which adapters find their base after a move."""
    link = root / BASE_LINK

    def replace() -> None:
        if link.exists() and link.samefile(folder):
            return
        if link.is_dir() and not link.is_symlink():
            raise UserError(
                "this is a folder, but the run needs a link to the base model here",
                where=str(link),
                remedy="remove it if it is a copy of the base model, or set model.path to it",
            )
        replace_link(link, folder.absolute())

    from_main(replace)
    return link
