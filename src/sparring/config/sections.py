"""The sections of a recipe: options, their defaults, and the rules between the options of a section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from sparring.config.option_types import (
    Columns,
    Contradiction,
    EnvironmentName,
    FloatList,
    FolderName,
    Fraction,
    FractionPerIteration,
    FrozenDict,
    MetricName,
    NonNegativeFloat,
    PairColumns,
    Paths,
    PathText,
    PerIteration,
    PositiveFloat,
    PositiveInt,
    PromptColumns,
    Regex,
    Replies,
    Section,
    ShapeName,
    Text,
    Texts,
    Urls,
    WeightPerIteration,
    at_iteration,
)
from sparring.config.specs import DEFAULT, ENGINES, HUMAN_TARGET, ON_GPU, TARGET_SPECS, EngineSpec
from sparring.errors import UserError, suggestion
from sparring.objectives import OBJECTIVES, in_words, kind_of, names_taking
from sparring.objectives.shared import Objective
from sparring.own_code import OWN_CODE, is_own_code

if TYPE_CHECKING:  # a static checker cannot read the names from a table
    EngineName = str
    WorkerName = str
    TargetName = str
else:
    EngineName = Literal[tuple(ENGINES)]
    WorkerName = Literal[tuple(name for name, spec in ENGINES.items() if spec.in_workers)]
    TargetName = Literal[tuple(TARGET_SPECS)]

FILES = "a .jsonl, .json, .csv or .parquet file (the first three also as .gz or .zst), a folder or a pattern of such files, a list of them"


def path_alone(value: Any) -> Any:
    """The section that a path alone is short for."""
    return {"path": value} if isinstance(value, str) else value


class RowsSection(Section):
    """Where rows come from."""

    option: ClassVar[str]

    path: Paths
    name: Text | None = None
    """Configuration name of a Hub data set."""
    split: Text = "train"
    """Split of a Hub data set."""
    revision: Text | None = None
    """Branch, tag or commit of a Hub data set."""

    @property
    def paths(self) -> tuple[str, ...]:
        """`path` as a tuple, also where the recipe gives a single one."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def named(self) -> str:
        """The name of the source in messages."""
        return ", ".join(self.paths)


class PromptsSection(RowsSection):
    """Prompts without a human reply. Their limits in tokens are those of `data`."""

    option: ClassVar[str] = "data.prompts"

    path: Paths = Field(description=f"Rows with a prompt: {FILES}, or a Hub id.")
    columns: PromptColumns = Field(default_factory=FrozenDict)
    """The rows' own column names for `messages`, `conversations`, `prompt`, `instruction`, `input`, `system` and `history`."""
    answer: Text | None = None
    """Column that holds the answer, which a checker compares replies with; none when null."""
    replies: Literal["refuse", "drop"] = "refuse"
    """What happens if a row has a reply. `refuse`: the run stops, because such rows belong to `data.path`. `drop`: the reply is not
    read."""
    max_examples: PositiveInt | None = None
    """Random subset of this many prompts; all when null."""


LEAST_HELD_OUT, MOST_HELD_OUT = 8, 200  # if the recipe gives no number
RESERVED_COLUMNS = ("prompts", "completions", "answer", "human_reply", "row_id")  # arguments of a checker that are no columns


class DataSection(RowsSection):
    """The SFT rows: where they come from, how they are read, and which are held out."""

    option: ClassVar[str] = "data"

    path: Paths = Field(
        description=f"SFT rows: {FILES}, a Hub id, `builtin:tasks` for a generated family of short tasks, or `builtin:digits` for three "
        "digits to sort, which the toy model can learn."
    )
    shape: ShapeName = "auto"
    """How a row stores its turns; `auto` detects it from the column names and reports it."""
    columns: Columns = Field(default_factory=FrozenDict)
    """The rows' own column names for the standard ones, for example `{prompt: question, completion: answer, system: persona}`."""
    max_examples: PositiveInt | None = None
    """Random subset of this many rows, held-out rows included; all rows when null."""
    held_out: PositiveInt | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Rows kept from training for evaluation, chosen by a hash of the prompt: a count, or a fraction between 0 and 1. A fraction keeps
    every prompt on the same side in every data set. When null, a tenth of the rows, at least 8 and at most 200."""
    max_prompt_tokens: PositiveInt = 512
    """Rows with a longer prompt are dropped and counted."""
    max_reply_tokens: PositiveInt = 512
    """Rows with a longer human reply are dropped or cut: see `too_long`."""
    too_long: Literal["drop", "cut"] = "drop"
    """What happens to a human reply over `max_reply_tokens`. A cut reply gets no end-of-turn token, so `target` verified and majority
    refuse `cut`. Prompts are never cut."""
    on_bad_row: Literal["stop", "drop"] = "stop"
    """What happens to a row that cannot be read or used, also of the prompts and of labelled pairs. `stop`: the run stops and names it.
    `drop`: such rows are left out and counted, and the first is shown."""
    reasoning: Literal["keep", "drop"] = "keep"
    """What happens to an assistant's reasoning in a key of its own (`reasoning_content`, `thinking` or `reasoning`). `keep`: the chat
    template gets it, and a row is refused if the template drops it. `drop`: it is left out."""
    answer: Text | None = None
    """Column of the SFT rows that holds the answer; when null, a checker reads it from the human reply."""
    prompts: Annotated[PromptsSection | None, BeforeValidator(path_alone)] = None
    """Further prompts without replies, on which a game with `target` verified or majority is played as well. `prompts: PATH` is short for
    its `path`."""
    checker_columns: Texts = ()
    """Columns of the rows and of the prompts that `target.checker` gets when it is a function of your own."""

    @classmethod
    def faults(cls, option: str, value: Any, given: Mapping[str, Any]) -> Iterator[str]:
        rows = given.get("max_examples")
        if option == "held_out" and value is not None and rows is not None and value >= rows:
            yield f"leaves no rows to train on, because max_examples is {rows}"
        if option == "checker_columns" and "answer" in value:
            yield "a checker gets the column of data.answer as answer: set data.answer, and data.prompts.answer, to it instead"
        if option == "checker_columns" and (reserved := next((name for name in value if name in RESERVED_COLUMNS), None)):
            yield f"{reserved} is an argument that a checker has already; give the column another name"

    def held_out_of(self, rows: int) -> int | float:
        """The number or fraction held out of `rows`: the recipe's, else enough for a score with an error, but little of a small file."""
        if self.held_out is not None:
            return self.held_out
        return max(LEAST_HELD_OUT, min(MOST_HELD_OUT, rows // 10))


class PairsSection(RowsSection):
    """Labelled preference pairs. The limits of prompts and replies are those of `data`."""

    option: ClassVar[str] = "controls.pairs"

    path: Paths = Field(description=f"Rows with `prompt`, `chosen` and `rejected`: {FILES}, or a Hub id.")
    columns: PairColumns = Field(default_factory=FrozenDict)
    """The rows' own column names for `prompt`, `chosen`, `rejected`, `system` and `history`."""
    max_examples: PositiveInt | None = None
    """Random subset of this many pairs; all when null."""


COOL = 0.7  # the lower temperature of a headroom
ENGINE_LIST = ", ".join(f"`{name}` {spec.what}" + (f" (`sparring[{spec.extra}]`)" if spec.extra else "") for name, spec in ENGINES.items())


class VllmSection(Section):
    """vLLM inside the run; options have vLLM's names."""

    tensor_parallel: PositiveInt = 1
    """Devices that share every layer (tensor_parallel_size)."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Share of a device's memory that it takes; less where other programs need some."""
    max_model_len: PositiveInt | None = None
    """Longest prompt with its reply; the model's context when null. Less takes less memory."""
    max_num_seqs: PositiveInt | None = None
    """Replies that are sampled at once (max_num_seqs); vLLM's default when null."""
    enforce_eager: bool | None = None
    """No compilation and no CUDA graphs: a faster start, slower sampling. When null, only on a CPU, where seeds per row fail without it."""


class ServerSection(Section):
    """An OpenAI-compatible endpoint that takes token ids and returns them."""

    urls: Urls = ("http://127.0.0.1:8000/v1",)
    """Base URLs up to and including /v1, one server or several that serve the same player; the default is vLLM's own."""
    model: Text | None = None
    """Name of the served model; `{hash}` in it is replaced by the first 12 digits of the player's content hash, so that an earlier player
    can never answer in its place. When null, the only model that the server has."""
    api_key_env: EnvironmentName | None = None
    """Environment variable that holds the key. The key itself is never in a recipe, a file or a message."""
    concurrency: PositiveInt = 32
    """Concurrent requests to each URL; every request is one reply."""
    timeout_seconds: PositiveFloat = 600.0
    """Longest wait for one reply, its time in the server's queue included."""
    retries: Annotated[int, Field(ge=0)] = 6
    """Further attempts at a request, after waits that double from half a second to a minute, or as the server asks."""
    update_command: Text | None = None
    """Command that makes the servers load the next player, run before it samples: `{model}` is the player's folder, `{name}` its served
    name. It may return before they have loaded it; the run then waits for them."""
    ready_timeout_seconds: PositiveFloat = 1800.0
    """Longest wait for `update_command` to return, and then for the servers."""


class RaySection(Section):
    """Sampling on the nodes of a Ray cluster."""

    address: Text | None = None
    """The cluster: `auto` for the one that this machine belongs to, or HOST:PORT of its head. When null, that of the environment's
    RAY_ADDRESS, and without one Ray is started on this machine alone."""
    engine: WorkerName = DEFAULT
    """What runs in every worker."""
    max_workers: PositiveInt | None = None
    """Maximum number of workers, each with a copy of the player; when null, as many as the cluster has room for, nodes that join later
    included."""
    cpus_per_worker: PositiveFloat = 1.0
    """CPUs of one worker, which are also its threads."""
    gpus_per_worker: NonNegativeFloat | None = None
    """GPUs of one worker; 1 when null and the cluster has any, else 0."""
    batch_rows: PositiveInt = 32
    """Replies per call of a worker. Unfinished replies of a lost worker are sampled again; short calls waste time."""
    stall_minutes: PositiveFloat = 30.0
    """The run stops when no call has finished for this long: there is no room for a worker, or workers crash repeatedly."""


class SamplingSection(Section):
    """The sampling of the opponent's replies."""

    engine: EngineName | None = Field(
        None,
        description=f"How the opponent's replies are sampled: {ENGINE_LIST}. When null, `{ON_GPU}` on a GPU where it is installed and "
        f"the game runs in one process, else `{DEFAULT}`; a run keeps what it began with. See docs/engines.md.",
    )
    temperature: NonNegativeFloat = 1.0
    """1 samples the model's own distribution; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; 1 keeps the whole distribution."""
    max_new_tokens: PositiveInt = 256
    """Longest reply; a reply cut here gets no end-of-turn token."""
    replies_per_prompt: Replies = 1
    """Opponent replies per prompt in every iteration; more make the gradient less noisy."""
    batch_tokens: PositiveInt = 32768
    """Prompt and new tokens of the rows that are sampled together. More are faster, but their KV cache takes memory."""
    shard_rows: PositiveInt = 128
    """Prompts per committed file; a kill loses at most one, and progress shows after each. vllm and server are faster with more, because
    they batch only rows of one file."""
    vllm: VllmSection = Field(default_factory=VllmSection)
    """How vLLM runs; for `engine: vllm` only."""
    server: ServerSection = Field(default_factory=ServerSection)
    """Where the server is; for `engine: server` only."""
    ray: RaySection = Field(default_factory=RaySection)
    """The cluster and its workers; for `engine: ray` only."""

    @classmethod
    def faults(cls, option: str, value: Any, given: Mapping[str, Any]) -> Iterator[str]:
        if option == "replies_per_prompt" and value > 1 and given.get("temperature") == 0:
            yield "at temperature 0 all replies to a prompt are the same; use 1 reply or a temperature above 0"

    @property
    def lower_temperature(self) -> float | None:
        """The lower temperature at which a start is sampled for its headroom; None if the game itself samples at no higher one."""
        return COOL if self.temperature > COOL else None

    @property
    def engine_name(self) -> str:
        """The engine, with the default for null (opponent/engines.py chooses before a game is played)."""
        return self.engine or DEFAULT

    @property
    def spec(self) -> EngineSpec:
        """The spec of `engine_name`."""
        return ENGINES[self.engine_name]

    @property
    def inner(self) -> EngineSpec:
        """The spec of the engine that computes: the engine itself, or the one in Ray's workers."""
        return ENGINES[self.ray.engine] if self.spec.hosts else self.spec

    @property
    def engines(self) -> str:
        """Both names: `vllm`, or `ray, vllm`."""
        return ", ".join(dict.fromkeys((self.engine_name, self.inner.name)))

    def option(self, name: str) -> Any:
        """The value of an option of a spec, such as `vllm.tensor_parallel`."""
        return reduce(getattr, name.split("."), self)

    @property
    def devices_of_a_copy(self) -> int:
        """Number of devices that share one copy of the model."""
        return self.option(self.inner.devices) if self.inner.devices else 1


@dataclass(frozen=True)
class SamplerSettings:
    """All of a recipe that decides how a player replies to a prompt, and how an engine computes it."""

    sampling: SamplingSection
    dtype: str  # the number format of the model that samples
    four_bit: bool  # whether its base is kept in 4 bits

    def with_sampling(self, **values: Any) -> SamplerSettings:
        """A copy with other options of sampling."""
        return replace(self, sampling=self.sampling.model_copy(update=values))


# Options of `sampling` that hold those of one engine
ENGINE_SECTIONS = tuple(name for name in SamplingSection.model_fields if name in ENGINES)


def unused_sections(sampling: SamplingSection) -> list[str]:
    """Sections of engines that were set although another engine is used."""
    others = set(ENGINE_SECTIONS) - {sampling.engine_name, sampling.inner.name}
    return [name for name in ENGINE_SECTIONS if name in others and getattr(sampling, name) != getattr(SamplingSection(), name)]


# Defaults of verified and majority targets (docs/evidence.md): without an NLL term their duels degrade the model, at any beta
WITH_GRADES = {"beta": 0.5, "nll_weight": 1.0}


def defaults_with_grades(loss: str) -> dict[str, float]:
    """The defaults that apply to an objective; none for an unknown one."""
    kind = kind_of(loss)
    return {option: value for option, value in WITH_GRADES.items() if kind is not None and kind.takes(option)}


class ObjectiveSection(Section):
    """The loss and its options."""

    loss: Text = Field("logistic", description=f"What is minimised, see docs/theory.md. {in_words()}.")
    beta: PerIteration = 1.0
    """The lambda of equation 4.7 (the alpha of T-SPIN, which scales its margins), one value or one per iteration. The paper uses 0.1, then
    5.0 in its last iteration; 1.0 is the default because smaller values overshoot (docs/theory.md), and 0.5 where `target` is verified or
    majority. Not for `space`."""
    nll_weight: WeightPerIteration = 0.0
    """Weight of a term added to the loss: the negative log-likelihood of the human reply (of the winners) per token. 0, the default, is
    SPIN; larger ones keep these replies likely. The default is 1 where `target` is verified or majority, because without it such duels
    collapsed (docs/evidence.md). One value or one per iteration."""
    mu: PositiveFloat | None = None
    """Noise ratio of `loss: space`: the weight of the opponent's replies relative to the human one. When null,
    `sampling.replies_per_prompt`, so that every reply has the same weight (1 for pairs of winner and loser)."""
    history_weight: WeightPerIteration = 0.1
    """Weight of T-SPIN's preference of the newest replies over those of the start (the paper's beta), one value or one per iteration. In
    iteration 0 it is 0, as in the paper, because its replies are those of the start."""
    alpha: FractionPerIteration = 0.9
    """Share of the opponent in the mixture of `loss: alpha-spin`, one value or one per iteration: 1 is SPIN, 0 compares with the start of
    the game alone. See docs/theory.md for the effect of 0.9 with exact minimisation. Set `window` to `iterations` for replies of all
    opponents."""
    window: PositiveInt = 2
    """Iterations whose replies are trained on, the newest first; the paper uses 2."""

    @classmethod
    def faults(cls, option: str, value: Any, given: Mapping[str, Any]) -> Iterator[str]:
        loss = value if option == "loss" else given.get("loss", "")
        kind, others = kind_of(loss), names_taking(option)
        if option == "loss" and kind is None:
            yield f"not an objective; there are {', '.join(OBJECTIVES)}" + suggestion(loss, OBJECTIVES, before="; ")
        if kind is not None and others and not kind.takes(option) and cls.is_set(option, value):
            yield f"has no effect while objective.loss is {loss}; it is for {others}"

    @property
    def kind(self) -> type[Objective]:
        """The class of the objective, with its requirements and options."""
        kind = kind_of(self.loss)
        assert kind is not None, self.loss
        return kind

    @property
    def name(self) -> str:
        """Its name in logs and reports; only the file name of a path."""
        return Path(self.loss).name if is_own_code(self.loss) else self.loss

    def uses_likelihood(self, iteration: int) -> bool:
        """Whether the loss raises the winners' own likelihood."""
        return not self.kind.uses_margins or at_iteration(self.nll_weight, iteration) > 0

    def learns_from_identical(self, iteration: int) -> bool:
        """Whether a duel has a gradient although all its replies equal the human one: true unless the loss is on margins only."""
        return self.kind.learns_from_identical or at_iteration(self.nll_weight, iteration) > 0

    def at(self, iteration: int, replies_per_prompt: int) -> Objective:
        """The objective with the values of its options in an iteration (from 0)."""
        values = {option: at_iteration(getattr(self, option), iteration) for option in type(self).model_fields if self.kind.takes(option)}
        return self.kind(**values).in_iteration(iteration, replies_per_prompt)


TARGET_LIST = " ".join(f"`{name}`: {spec.what}." for name, spec in TARGET_SPECS.items())
NOT_WITH_HUMAN = ("human", "max_winners", "max_losers", "losers", "near_duplicates")
BUILT_IN_CHECKERS = ("exact", "number", "choice", "math", "random")


class TargetSection(Section):
    """The rule that decides which replies win, and its checker."""

    kind: TargetName = Field(HUMAN_TARGET, description=f"Which replies win. {TARGET_LIST} See docs/targets.md.")
    checker: Text | None = None
    """How a reply is graded: `exact` (the answer that `evaluate.answer_pattern` finds, as text), `number`, `choice`, `math`
    (`sparring[math]`), a function of your own as `path/to/file.py:function` (TRL's reward signature), or `random`, a control. Held-out
    replies are graded by it too. See docs/checkers.md."""
    random_like: Text | None = None
    """For `checker: random`: the checker whose scores are shuffled among the replies, so that the pass rate stays the same; held-out
    replies are graded by this checker itself."""
    tolerance: NonNegativeFloat = 0.0
    """For `checker: number`: difference up to which two numbers are equal."""
    pass_score: float = 1.0
    """Score from which a reply passes; built-in checkers give 1 or 0."""
    human: Literal["fallback", "never", "mix", "only"] = "fallback"
    """The role of the human reply, if a prompt has one. `fallback`: it wins if no reply of the opponent does. `never`: it takes no part.
    `mix`: it is always among the winners, and its answer wins the vote; the data is then a ceiling again (docs/theory.md). `only`: it alone
    wins, against the replies that lose."""
    max_winners: PositiveInt = 4
    """Maximum number of distinct winners per prompt, so that easy prompts do not outweigh the others."""
    max_losers: PositiveInt = 4
    """Maximum number of distinct losers per prompt."""
    losers: Literal["all", "answered"] = "all"
    """Which replies can lose: `all` that do not win, or only complete ones in which an answer was found."""
    near_duplicates: Fraction | None = None
    """Share of equal words, in order, from which a winner counts as a repetition of another one and is left out. When null, only equal
    texts are left out; 0.9 also leaves out rewordings."""
    min_votes: Fraction = 0.5
    """For `majority`: share of all replies to a prompt that the winning answer needs; 0.5 is ScPO's first threshold."""
    weigh_votes: bool = True
    """For `majority`: multiply the loss of a prompt by its margin of votes, as ScPO does (arXiv 2411.04109), so that a close vote, which is
    more often wrong, counts less. The gain measured in docs/evidence.md is not significant."""
    timeout_seconds: PositiveFloat = 10.0
    """Longest time that a function of your own, or `math`, may take for a reply; after that the reply gets no score."""
    memory_mb: PositiveInt = 2048
    """Memory of a process in which a function of your own runs; one that imports torch may need more."""
    workers: PositiveInt = 1
    """Processes in which a function of your own, or `math`, runs."""

    @classmethod
    def faults(cls, option: str, value: Any, given: Mapping[str, Any]) -> Iterator[str]:
        kind, checker, like = (given.get(name) for name in ("kind", "checker", "random_like"))
        votes = kind is not None and TARGET_SPECS[kind].votes
        if option in ("checker", "random_like") and value is not None and not is_own_code(value):
            known = [one for one in BUILT_IN_CHECKERS if one != "random" or option == "checker"]
            if value not in known:
                yield f"not a checker; there are {', '.join(known)} and {OWN_CODE}" + suggestion(value, known, before="; ")
        if option == "checker" and kind not in (None, HUMAN_TARGET) and value is None:
            yield f"target.kind {kind} needs one: it says which replies are right, or which answers are equal"
        if option == "checker" and value == "random" and (kind == HUMAN_TARGET or votes):
            yield f"has no effect with target.kind {kind}; it is a control for verified"
        if option == "random_like" and checker == "random" and value is None:
            yield "checker random needs it: its pass rate is that of another checker, which also grades held-out replies"
        if option == "random_like" and "checker" in given and checker != "random" and value is not None:
            yield "has an effect only with checker random"
        if option == "tolerance" and value and "checker" in given and "number" not in (checker, like):
            yield "has an effect only with checker number"
        if option == "pass_score" and "checker" in given and not is_own_code(like or checker) and not 0 < value <= 1:
            yield "built-in checkers give 1 or 0, so it must be above 0 and at most 1: else all replies pass, or none"
        if option in NOT_WITH_HUMAN and kind == HUMAN_TARGET and cls.is_set(option, value):
            yield "has no effect with target.kind human"
        if option in ("min_votes", "weigh_votes") and kind is not None and not votes and cls.is_set(option, value):
            yield "has an effect only with target.kind majority"

    @property
    def uses_grades(self) -> bool:
        """Whether grades decide the winners: all targets but human."""
        return self.kind != HUMAN_TARGET

    @property
    def human_alone_wins(self) -> bool:
        """Whether no generated reply ever wins: the human target, and `human: only`."""
        return not self.uses_grades or self.human == "only"

    @property
    def counts_votes(self) -> bool:
        """Whether the most frequent answer wins: a majority target."""
        return TARGET_SPECS[self.kind].votes

    @property
    def grading_checker(self) -> str | None:
        """The checker that grades held-out replies."""
        return self.random_like if self.checker == "random" else self.checker

    def unused(self, objective: ObjectiveSection) -> dict[str, str]:
        """Option that is set -> why it has no effect on the game; `sparring grade` and `sparring push` may still read it."""
        found: dict[str, str] = {}
        checker = self.grading_checker
        if checker != "math" and not is_own_code(checker):
            why = f"has no effect: {'there is no checker' if checker is None else f'the checker {checker} needs no process of its own'}"
            found |= dict.fromkeys(("timeout_seconds", "memory_mb", "workers"), why)
        if not objective.kind.uses_margins:
            why = f"has no effect on training: objective.loss {objective.loss} learns from winners alone"
            found |= dict.fromkeys(("max_losers", "losers"), why)
        return {option: why for option, why in found.items() if self.is_set(option, getattr(self, option))}

    def contradictions(self, others: Mapping[str, Any]) -> Iterator[Contradiction]:
        data, sampling, objective = (others.get(name) for name in ("data", "sampling", "objective"))
        if data is not None:
            yield from self._against_data(data)
        if sampling is not None and self.counts_votes and sampling.replies_per_prompt == 1:
            yield "kind", "one reply has no majority; set sampling.replies_per_prompt, 8 for example"
        if objective is not None:
            yield from self._against_objective(objective)

    def _against_data(self, data: DataSection) -> Iterator[Contradiction]:
        if data.prompts is not None and not self.uses_grades:
            yield "kind", "data.prompts have no human reply, which always wins here; choose verified or majority"
        needs_answers = self.uses_grades and not self.counts_votes and not is_own_code(self.grading_checker)
        if needs_answers and data.prompts is not None and data.prompts.answer is None:
            yield "kind", "nothing says which replies to data.prompts are right; set data.prompts.answer to a column, or choose majority"
        if self.human == "only" and data.prompts is not None:
            yield "human", "data.prompts have no human reply, which alone wins here; set fallback, never or mix"
        if data.too_long == "cut" and self.uses_grades:
            why = "data.too_long cut leaves human replies without an end, which could win here; set drop, or raise data.max_reply_tokens"
            yield "kind", why
        if data.checker_columns and not is_own_code(self.grading_checker):
            yield "checker", "data.checker_columns are for a function of your own"

    def _against_objective(self, objective: ObjectiveSection) -> Iterator[Contradiction]:
        loss, kind = objective.loss, objective.kind
        if not kind.uses_margins and self.human == "only":
            why = f"with objective.loss {loss} the human reply alone would be trained on, which is continued SFT"
            yield "human", f"{why}; choose fallback, never or mix"
        if not kind.uses_margins and not self.uses_grades:
            why = f"objective.loss {loss} on human replies is only continued SFT: use sft or controls, or choose verified or majority"
            yield "kind", why
        if kind.why_human_alone is not None and self.uses_grades:
            yield "kind", kind.why_human_alone


Optimizer = Literal["rmsprop", "adamw", "adafactor", "rmsprop8bit", "adamw8bit"]
Precision = Literal["bf16", "fp32"]


class LoraSection(Section):
    """An adapter by PEFT (arXiv 2106.09685); PEFT's names are in brackets."""

    rank: PositiveInt = 16
    """Inner size of the two factors (r); 8 to 64 is usual."""
    alpha: PositiveFloat = 32.0
    """Their product is scaled by alpha / rank (lora_alpha); twice the rank is usual."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that training drops (lora_dropout). Above 0 the first-step margin of the second iteration and later ones
    is no longer exactly 0, since the opponent never drops any."""
    targets: Text | Texts = "all-linear"
    """Modules that get an adapter (target_modules): `all-linear` is every linear layer but the head; or a list of the model's module names,
    or a regular expression over them."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (use_rslora, arXiv 2312.03732)."""
    dora: bool = False
    """Train the norms of the weights in addition to their directions (use_dora, arXiv 2402.09353)."""
    quantize: Literal["4bit"] | None = None
    """4bit keeps the frozen base in 4 bits (QLoRA, NF4 by bitsandbytes, `sparring[8bit]`), while it samples and scores too; on CUDA
    only."""

    @property
    def four_bit(self) -> bool:
        """Whether the frozen base is kept in 4 bits."""
        return self.quantize == "4bit"


class OptimSection(Section):
    """Options that the SFT stage and the self-play stage share."""

    optimizer: Optimizer = "rmsprop"
    """The paper trains with rmsprop. adafactor keeps only means of rows and columns as its state, and multiplies `lr` by each matrix's root
    mean square, so it needs a larger `lr`; the 8-bit ones need `sparring[8bit]`. Bytes per parameter: docs/fast-path.md."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warm-up."""
    warmup: Fraction = 0.1
    """Share of the schedule's horizon over which the learning rate rises from 0."""
    horizon_epochs: PositiveFloat | None = None
    """Epochs after which the schedule would reach its end, when that is later than the stop at `epochs` (the published scripts schedule 6
    and stop early); equal to `epochs` when null."""
    batch_size: PositiveInt = 64
    """Duels (or SFT rows) per optimizer step, whatever the micro-batches."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled for adamw and adafactor, L2 term of rmsprop; the paper uses none."""
    max_grad_norm: PositiveFloat | None = 1.0
    """The gradient is scaled down to this norm; null never scales it."""
    precision: Precision | None = None
    """Number format of the computation. When null, bf16, or fp32 on a device without fast bfloat16 products, such as a CPU that has no
    AVX-512; logged, and kept for the whole run. The weights that are trained and saved stay in float32."""
    lora: LoraSection | None = None
    """Train an adapter on the frozen model instead of all weights; `lora: {}` takes all defaults. It needs a larger `lr` than full
    training. After an SFT stage the adapter is merged into the weights; a player keeps its adapter separate."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    micro_batch_tokens: PositiveInt | None = None
    """Tokens, padding included, computed at once; bounds the memory. When null, chosen from the model's size, its sharding by the launcher
    and the memory that is free when the run starts, at most 1024 on a CPU (512 in float32), where more is not faster; logged, and kept for
    the whole run."""
    checkpoint_every: PositiveInt = 50
    """Optimizer steps between checkpoints; a kill loses at most these."""

    @property
    def four_bit(self) -> bool:
        """Whether the frozen base is kept in 4 bits."""
        return self.lora is not None and self.lora.four_bit

    @property
    def can_be_sharded(self) -> bool:
        """Whether a launcher can shard the training: not with a 4-bit base, or optimizer states of another shape than the weights."""
        return not self.four_bit and self.optimizer in ("rmsprop", "adamw")

    @property
    def forward_passes(self) -> int:
        """Cost of training on a token in forward passes of 2 N floating-point operations: 1 forward plus 2 backward, or 1 if frozen."""
        return 2 if self.lora else 3

    @property
    def number_format(self) -> Precision:
        """`precision`; if null, a run chooses it before anything is computed."""
        assert self.precision is not None
        return self.precision

    @property
    def max_tokens(self) -> int:
        """`micro_batch_tokens`; if null, a run chooses it before anything is computed."""
        assert self.micro_batch_tokens is not None
        return self.micro_batch_tokens

    @field_validator("epochs", check_fields=False)  # the subclasses define epochs, each in its own type
    @classmethod
    def _stops_within_horizon(cls, epochs: float | tuple[float, ...], info: ValidationInfo) -> float | tuple[float, ...]:
        horizon = info.data.get("horizon_epochs")
        last = max(epochs, default=0) if isinstance(epochs, tuple) else epochs
        if horizon is not None and last > horizon:
            raise ValueError(f"the stop at {last:g} epochs is after horizon_epochs, {horizon:g}, where the schedule ends")
        return epochs


class TrainSection(OptimSection):
    """Options of the training of each iteration."""

    lr: PerIteration = 5e-7
    """Peak learning rate, one value or one per iteration; the paper uses 5e-7, later 1e-7."""
    epochs: PerIteration = 2.0
    """Passes over the duels after which an iteration stops, rounded up to whole steps; one value or one per iteration."""

    def at(self, iteration: int) -> TrainSection:
        """The options with their values in an iteration (from 0)."""
        return self.model_copy(update={name: at_iteration(getattr(self, name), iteration) for name in ("lr", "epochs")})


class SftSection(OptimSection):
    """Options of the SFT stage before the game."""

    lr: PositiveFloat = 2e-5
    """Peak learning rate."""
    epochs: PositiveFloat = 1.0
    """Passes over the training rows, rounded up to whole steps."""
    optimizer: Optimizer = "adamw"
    """The usual choice for SFT is adamw."""


def require_shardable(settings: OptimSection, section: str) -> None:
    """Raise UserError for options that do not work with sharding; `section`: the key of the settings."""
    if settings.can_be_sharded:
        return
    option, value = ("lora.quantize", "4bit") if settings.four_bit else ("optimizer", settings.optimizer)
    remedy = "use rmsprop or adamw without quantize, or launcher.strategy: ddp, where every rank holds the whole model"
    raise UserError(f"{value} does not work if the launcher shards the model", where=f"{section}.{option}", remedy=remedy)


# names in a run directory that a control must not use
TAKEN_NAMES = ("base", "base-model", "baseline", "best", "data", "evaluations", "iterations", "probe", "sft", "start", "trackers")

# folder -> name in tables, logs and plots, for controls without a name
CONTROL_TITLES = {"continued-sft": "continued SFT", "dpo": "DPO", "rft": "RFT", "spin-dpo": "SPIN, then DPO"}


class SearchSection(Section):
    """Values to try for a control."""

    lr: Annotated[FloatList, Field(min_length=2)]
    """Peak learning rates, two or more."""


def scientific(value: float) -> str:
    """1e-5, 25e-7: a number as a part of a folder's name."""
    _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    return f"{''.join(map(str, digits))}e{exponent}"


class ControlSection(Section):
    """One control: another method, trained from the same start at the same cost."""

    kind: Literal["continued-sft", "dpo", "rft"] = "continued-sft"
    """How it is trained: `continued-sft`, the start trained further on the human replies; `dpo`, trained on labelled pairs (arXiv
    2305.18290) with its start as the reference; `rft`, rejection-sampling fine-tuning (arXiv 2308.01825): the start trained on the human
    replies and on those of its own replies that `target.checker` passes."""
    name: FolderName | None = None
    """Its folder in the run, needed if there are several of a kind; when null, its kind, or `spin-dpo` for `start: best`."""
    start: Literal["start", "best"] = "start"
    """What it starts from; `best` is the game's best iteration, so that DPO follows SPIN. For `dpo` only."""
    pairs: Annotated[PairsSection | None, BeforeValidator(path_alone)] = None
    """The pairs of `dpo`; `pairs: PATH` is short for its `path`."""
    beta: PositiveFloat = 0.1
    """For `dpo`: strength of the constraint to its reference; 0.1 is the usual value."""
    epochs: PositiveFloat | None = None
    """Passes over its rows, rounded up to whole steps. When null, it costs as many floating-point operations as all self-play iterations
    together."""
    lr: PositiveFloat | None = None
    """Peak learning rate. When null, the SFT stage's (or 1e-5 without one), and for `dpo` and `rft` train's in iteration 0."""
    search: SearchSection | None = None
    """Tries several values for a fair comparison: `search: {lr: [1e-6, 1e-5]}` is short for two controls with these learning rates, each at
    the full cost and each with its own place in tables and verdict."""
    batch_size: PositiveInt | None = None
    """Rows per optimizer step. When null, the SFT stage's (or train's without one), and train's for `dpo` and `rft`."""

    @classmethod
    def faults(cls, option: str, value: Any, given: Mapping[str, Any]) -> Iterator[str]:
        kind = given.get("kind")
        if option == "search" and value is not None and given.get("lr") is not None:
            yield f"lr is given as {given['lr']:g}; set one of the two"
        if option == "name" and value in TAKEN_NAMES:
            yield "a run keeps something else under this name"
        if option == "name" and value in CONTROL_TITLES and value != kind:
            yield f"is the name of the control {CONTROL_TITLES[value]}; choose another name"
        if option in ("start", "pairs", "beta") and kind in ("continued-sft", "rft") and cls.is_set(option, value):
            yield f"has no effect on {kind}"
        if option == "pairs" and kind == "dpo" and value is None:
            yield "dpo needs labelled pairs; set pairs to a file or a Hub id"

    def each(self) -> tuple[ControlSection, ...]:
        """Itself, or one control for every value of `search`, with that value in its name."""
        if self.search is None:
            return (self,)
        return tuple(self.model_copy(update={"search": None, "lr": lr, "name": f"{self.folder}-{scientific(lr)}"}) for lr in self.search.lr)

    @property
    def folder(self) -> str:
        """Its name in the run directory and on the command line."""
        return self.name or ("spin-dpo" if self.start == "best" else self.kind)

    @property
    def title(self) -> str:
        """Its name in tables, logs and plots."""
        return CONTROL_TITLES.get(self.folder, self.folder)


class BenchmarksSection(Section):
    """Tasks of lm-evaluation-harness (`sparring[eval]`)."""

    suites: Texts = ()
    """Known sets: `open-llm-leaderboard`, the paper's six tasks and their mean; `paper-extra`, four further tasks of the paper."""
    tasks: Texts = ()
    """Any other tasks of the harness, or of `task_folders`: TASK, TASK@SHOTS, TASK:METRIC or TASK@SHOTS:METRIC. Without SHOTS the task's
    own number, without METRIC all its metrics."""
    task_folders: Texts = ()
    """Folders with task files of your own (YAML in the harness's format), whose data may be local files."""
    limit: PositiveInt | None = None
    """Only this many items of every task, the first ones; all when null."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1234
    """Seed of the few-shot examples; the default is the harness's, so numbers can be compared with published ones."""
    chat_template: bool = False
    """Format the questions with the model's chat template, shots as turns. The paper's numbers are without it."""
    batch_tokens: PositiveInt = 8192
    """Tokens per batch, new ones included; a larger batch takes more memory and changes results by rounding."""

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.suites and not self.tasks:
            raise ValueError("no benchmark is named; name a suite or a task")
        return self


class EvaluateSection(Section):
    """What is measured of every player on the held-out rows."""

    answer_pattern: Regex | None = None
    """Regular expression that finds the answer in a reply (its last match; group 1 if it has one). Exact match compares it with the answer
    in the human reply, unless `target.checker` grades it. Without pattern and checker there is no exact match."""
    samples: PositiveInt = 1
    """Replies to every held-out prompt. Exact match is then the mean over them (pass@1), with errors by prompt, and pass@k, maj@k and
    distinct answers are reported too. More replies give smaller standard errors."""
    greedy: bool = False
    """Also answer the held-out prompts greedily and report exact_match_greedy."""
    metric: MetricName | None = None
    """Metric that selects the best iteration and that `patience` uses; exact_match where there is a pattern or a checker, else
    nll_per_token."""
    headroom: bool | None = None
    """After the start is measured, sample k new replies to every held-out prompt, k more at temperature 0.7 where the game samples at a
    higher one, and a greedy one (k is the larger of `samples` and `sampling.replies_per_prompt`), and report what a lower temperature,
    majority and verified targets could gain. When null, where `target` is verified or majority."""
    headroom_epochs: PositiveFloat | None = None
    """Epochs of a short continued SFT of the start, for its held-out NLL before and after; none when null."""
    benchmarks: BenchmarksSection | None = None
    """Benchmarks to run on the start, every iteration and the controls; none when null. See docs/evaluation.md."""

    def contradictions(self, others: Mapping[str, Any]) -> Iterator[Contradiction]:
        """Options that contradict the checker that grades the held-out replies."""
        sampling: SamplingSection | None = others.get("sampling")
        if sampling is not None and sampling.temperature == 0 and self.samples > 1:
            yield "samples", "at temperature 0 all replies to a prompt are the same; use 1 sample or a sampling.temperature above 0"
        target: TargetSection | None = others.get("target")
        if target is None:  # it is not known whether there is a checker
            return
        checker = target.grading_checker
        if checker == "exact" and self.answer_pattern is None:
            yield "answer_pattern", "target.checker exact needs it to find the answer; (?s).+ takes the whole reply"
        if target.counts_votes and is_own_code(checker) and self.answer_pattern is None:
            yield "answer_pattern", "majority counts votes for answers, and a function of your own extracts none: this pattern finds them"
        if target.losers == "answered" and is_own_code(checker) and self.answer_pattern is None:
            why = "with target.losers answered a reply loses only if it has an answer, which this pattern finds for a function of your own"
            yield "answer_pattern", why
        if self.headroom_epochs is not None and (self.headroom is False or not (self.headroom or target.uses_grades)):
            yield "headroom_epochs", "has no effect where no headroom is measured; set evaluate.headroom: true"
        if self.metric == "exact_match_greedy" and not self.greedy:
            yield "metric", "needs evaluate.greedy: true"
        if checker is None and self.answer_pattern is None:
            yield from self._without_answers()

    def _without_answers(self) -> Iterator[Contradiction]:
        needs = "needs evaluate.answer_pattern, or a target.checker"
        if self.greedy:
            yield "greedy", f"greedy replies are scored by exact match, which {needs}"
        if self.metric in ("exact_match", "exact_match_greedy"):
            yield "metric", needs
        if self.samples > 1:
            yield "samples", f"several replies to a prompt are scored by their answers, which {needs}"
        if self.headroom:
            yield "headroom", f"it is reported in exact matches, which {needs}"


class StopSection(Section):
    """The rules that end a game before its last iteration."""

    indistinguishable: bool = True
    """End the game when the player cannot distinguish held-out human replies from the opponent's: the confidence interval of its duel
    accuracy reaches down to one half."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Level of that two-sided interval (Wilson)."""
    patience: PositiveInt | None = None
    """End the game after this many iterations in a row without a new best value of `evaluate.metric`; never when null."""
    plateau: bool = True
    """With `target` verified or majority, end the game when the pass rate (majority: the share of votes) of the training prompts has not
    risen by more than its standard error since the iteration before."""
    min_pass_at_k: Fraction | None = 0.9
    """With `target` verified or majority and `evaluate.samples` above 1, end the game when pass@k falls below this share of the start's:
    replies have lost their diversity. Never when null."""
    min_distinct: Fraction | None = None
    """The same for distinct answers per prompt, which need `evaluate.answer_pattern` where `target.checker` is a function of your own.
    These fall in every game that succeeds, so the rule is off by default."""

    def contradictions(self, others: Mapping[str, Any]) -> Iterator[Contradiction]:
        """Limits that could never be reached, because what they limit is not measured."""
        target: TargetSection | None = others.get("target")
        evaluate: EvaluateSection | None = others.get("evaluate")
        if target is None or evaluate is None:
            return
        for name in ("min_pass_at_k", "min_distinct"):
            if getattr(self, name) is None or not self.is_set(name, getattr(self, name)):
                continue
            if not target.uses_grades:
                yield name, "has an effect only with target.kind verified or majority: set it to null, or leave it out"
            elif evaluate.samples == 1:
                yield name, "needs several replies to a held-out prompt: set evaluate.samples, 8 for example"
            elif name == "min_distinct" and is_own_code(target.grading_checker) and evaluate.answer_pattern is None:
                yield name, "counts answers, and a function of your own extracts none: set evaluate.answer_pattern, which finds them"


# The error for DeepSpeed, in a recipe's strategy as in an Accelerate config file
NO_DEEPSPEED = "DeepSpeed was removed: it has no public way to set its optimizer's state, and its checkpoints are pickles"
OF_DEEPSPEED = ("deepspeed-zero2", "deepspeed-zero3")
INSTEAD_OF_DEEPSPEED = "launcher.strategy fsdp2 shards the same weights, gradients and optimizer states, and resumes the run"


class LauncherSection(Section):
    """Where stages are computed: in this process, or on several ranks."""

    kind: Literal["inline", "accelerate"] = "accelerate"
    """Computes everything in one process (`inline`), or starts the heavy stages on many ranks by `accelerate launch`."""
    config_file: PathText | None = None
    """A file that `accelerate config` wrote; keys of this section that are given too override it."""
    processes: PositiveInt | None = None
    """Ranks on all machines together; one per GPU of this machine, times `machines`, when null."""
    machines: PositiveInt = 1
    """Machines; they share the run directory and the model's folder."""
    machine_rank: Annotated[int, Field(ge=0)] = 0
    """Number of this machine: 0 plays the game, the others wait for its calls and start their ranks."""
    main_process_ip: Text | None = None
    """Address of machine 0, needed with more than one."""
    main_process_port: Annotated[int, Field(ge=1, le=65534)] | None = None
    """Port of machine 0 where the ranks meet; several machines use the next one too, for its calls. When null: any free one, or 29500 with
    several machines."""
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """How the ranks share the model. `ddp`: each holds all of it. `fsdp2`: PyTorch shards weights, gradients and optimizer. A `config_file`
    with FSDP shards too."""
    cpu: bool = False
    """Ranks on CPU, connected by gloo."""

    @property
    def shards(self) -> bool:
        """Whether the ranks share the optimizer state, if they are several. A config file is not read here: see launch.with_config."""
        return self.kind != "inline" and self.strategy != "ddp"

    @field_validator("strategy", mode="before")
    @classmethod
    def _deepspeed_was_removed(cls, value: Any) -> Any:
        if value in OF_DEEPSPEED:
            raise ValueError(f"{NO_DEEPSPEED}; {INSTEAD_OF_DEEPSPEED}")
        return value

    @classmethod
    def faults(cls, option: str, value: Any, given: Mapping[str, Any]) -> Iterator[str]:
        machines = given.get("machines", 1)
        if given.get("kind") == "inline" and cls.is_set(option, value):
            yield "has no effect while launcher.kind is inline; set launcher.kind to accelerate"
        if option == "machine_rank" and "machines" in given and value >= machines:
            yield f"machines is {machines}, so machine_rank is from 0 to {machines - 1}"
        if option == "main_process_ip" and value is None and machines > 1 and given.get("config_file") is None:
            yield "is needed with more than one machine: the address of machine 0"
