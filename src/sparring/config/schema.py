"""The options: every section of a recipe, its keys, their defaults and the rules between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from sparring.config.option_types import (
    Columns,
    EnvironmentName,
    FolderName,
    Fraction,
    FractionPerIteration,
    FrozenDict,
    Metric,
    NonNegativeFloat,
    PairColumns,
    PerIteration,
    PositiveFloat,
    PositiveInt,
    Regex,
    Section,
    Seed,
    SeedList,
    Shape,
    Text,
    Texts,
    Trackers,
    Urls,
    WeightPerIteration,
)

T = TypeVar("T")
Optimizer = Literal["rmsprop", "adamw", "adafactor", "rmsprop8bit", "adamw8bit"]


class ModelSection(Section):
    path: Text = Field(
        description="The SFT (or base) model: a local folder, a Hub id, a .gguf file, `package:NAME/FILE.gguf` for a file "
        "inside an installed Python package, or `builtin:tiny` for a toy model made on the spot."
    )
    revision: Text | None = Field(None, description="Branch, tag or commit of a Hub model.")
    dtype: Literal["bfloat16", "float32"] | None = Field(
        None,
        description="Number format of the frozen model while it samples; bfloat16 halves its memory and rounds the weights that "
        "the replies are drawn from. That of train.precision when null. The saved weights are float32 either way.",
    )
    chat_template: Text | None = Field(
        None, description="A Jinja file that replaces the tokenizer's chat template, or gives one to a model that has none."
    )


class DataSection(Section):
    option: ClassVar[str] = "data"

    path: Text = Field(
        description="SFT rows: a .jsonl, .json, .csv or .parquet file, a Hub id, or `builtin:tasks` for the generated task family."
    )
    name: Text | None = Field(None, description="Configuration name of a Hub data set.")
    split: Text = Field("train", description="Split of a Hub data set.")
    revision: Text | None = Field(None, description="Branch, tag or commit of a Hub data set.")
    shape: Shape = Field("auto", description="How a row stores its turns; `auto` goes by the column names and says what it found.")
    columns: Columns = Field(
        default_factory=FrozenDict,
        description="Names of the row's own columns for the standard ones, for example `{prompt: question, completion: answer}`.",
    )
    max_examples: PositiveInt | None = Field(
        None, description="Random subset of this many rows, held-out rows included; all rows when null."
    )
    held_out: PositiveInt | Annotated[float, Field(gt=0, lt=1)] = Field(
        200,
        description="Rows kept from training for evaluation, chosen by a hash of the prompt: a count, or a fraction between 0 and 1. "
        "A fraction keeps every prompt on the same side in every data set.",
    )
    max_prompt_tokens: PositiveInt = Field(512, description="Rows with a longer prompt are dropped and counted.")
    max_reply_tokens: PositiveInt = Field(512, description="Rows with a longer human reply are dropped or cut: see `too_long`.")
    too_long: Literal["drop", "cut"] = Field(
        "drop",
        description="What happens to a human reply over `max_reply_tokens`. A cut reply gets no end-of-turn token. Prompts are never cut.",
    )

    @field_validator("held_out")
    @classmethod
    def _leaves_training_rows(cls, held_out: int | float, info: ValidationInfo) -> int | float:
        rows = info.data.get("max_examples")
        if rows is not None and held_out >= rows:
            raise ValueError(f"leaves no rows to train on, because max_examples is {rows}")
        return held_out


class LoraSection(Section):
    """An adapter by PEFT (arXiv 2106.09685); the words in brackets are PEFT's own."""

    rank: PositiveInt = Field(16, description="Inner size of the two factors (r); the usual 8 to 64.")
    alpha: PositiveFloat = Field(32.0, description="Their product is scaled by alpha / rank (lora_alpha); twice the rank is usual.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Share of an adapter's inputs that training drops (lora_dropout). Above 0 the first-step margin of the second "
        "iteration and later ones is no longer exactly 0, since the opponent never drops any.",
    )
    targets: Text | Texts = Field(
        "all-linear",
        description="Modules that get an adapter (target_modules): `all-linear` is every linear layer but the head; or a list of the "
        "model's module names, or a regular expression over them.",
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) (use_rslora, arXiv 2312.03732).")
    dora: bool = Field(False, description="Train the norms of the weights beside their directions (use_dora, arXiv 2402.09353).")
    quantize: Literal["4bit"] | None = Field(
        None,
        description="4bit keeps the frozen base in 4 bits (QLoRA, NF4 by bitsandbytes, `sparring[8bit]`), while it samples and scores "
        "too; on CUDA only.",
    )

    @property
    def four_bit(self) -> bool:
        return self.quantize == "4bit"


class OptimSection(Section):
    """What the SFT stage and the self-play stage share."""

    optimizer: Optimizer = Field(
        "rmsprop",
        description="The paper trains with rmsprop. adafactor keeps only means of rows and columns as its state, and multiplies `lr` by "
        "each matrix's root mean square, so that it wants a larger one; the 8-bit ones need `sparring[8bit]`. Bytes per parameter: "
        "docs/fast-path.md.",
    )
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="Learning rate after the warm-up.")
    warmup: Fraction = Field(0.1, description="Share of the schedule's horizon over which the learning rate rises from 0.")
    horizon_epochs: PositiveFloat | None = Field(
        None,
        description="Epochs after which the schedule would reach its end, when that is later than the stop at `epochs` "
        "(the published scripts schedule 6 and stop early); equal to `epochs` when null.",
    )
    batch_size: PositiveInt = Field(64, description="Duels (or SFT rows) per optimizer step, whatever the micro-batches.")
    weight_decay: NonNegativeFloat = Field(0.0, description="Decoupled for adamw and adafactor, L2 term of rmsprop; the paper uses none.")
    max_grad_norm: PositiveFloat | None = Field(1.0, description="The gradient is scaled down to this norm; null never scales it.")
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="Number format of the computation. The weights that are trained and saved stay in float32."
    )
    lora: LoraSection | None = Field(
        None,
        description="Train an adapter over the frozen model instead of all weights; `lora: {}` takes all defaults. It wants a larger `lr` "
        "than full training. After an SFT stage it is added to the weights; a player keeps its own.",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass: less memory, more time.")
    micro_batch_tokens: PositiveInt | None = Field(
        None,
        description="Tokens, padding included, computed at once; bounds the memory. When null, from the model's size, how the launcher's "
        "ranks share it and the memory that is free when the run starts, and 1024 at most on a CPU, where more is not faster; announced, "
        "and kept for the whole run.",
    )
    checkpoint_every: PositiveInt = Field(50, description="Optimizer steps between checkpoints; a kill loses at most these.")

    @property
    def four_bit(self) -> bool:
        """Whether the frozen base is kept in 4 bits."""
        return self.lora is not None and self.lora.four_bit

    @property
    def passes(self) -> int:
        """Forward passes, of 2 N floating-point operations, that a token of training costs: 1 and 2 backward, 1 through frozen weights."""
        return 2 if self.lora else 3

    @property
    def max_tokens(self) -> int:
        """`micro_batch_tokens`, which a run chooses before anything is computed (stages.py)."""
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
    lr: PerIteration = Field(5e-7, description="Peak learning rate, one value or one per iteration; the paper uses 5e-7, later 1e-7.")
    epochs: PerIteration = Field(
        2.0, description="Passes over the duels after which an iteration stops, rounded up to whole steps; one value or one per iteration."
    )


class SftSection(OptimSection):
    lr: PositiveFloat = Field(2e-5, description="Peak learning rate.")
    epochs: PositiveFloat = Field(1.0, description="Passes over the training rows, rounded up to whole steps.")
    optimizer: Optimizer = Field("adamw", description="The usual choice for SFT is adamw.")


class PairsSection(Section):
    """Labelled preference pairs. What a prompt and a reply may be is said by `data`: its limits hold here too."""

    option: ClassVar[str] = "baseline.pairs"

    path: Text = Field(description="Rows with `prompt`, `chosen` and `rejected`: a .jsonl, .json, .csv or .parquet file, or a Hub id.")
    name: Text | None = Field(None, description="Configuration name of a Hub data set.")
    split: Text = Field("train", description="Split of a Hub data set.")
    revision: Text | None = Field(None, description="Branch, tag or commit of a Hub data set.")
    columns: PairColumns = Field(
        default_factory=FrozenDict, description="Names of the row's own columns for `prompt`, `chosen` and `rejected`."
    )
    max_examples: PositiveInt | None = Field(None, description="Random subset of this many pairs; all when null.")


class BaselineSection(Section):
    """One control: another way to spend as much on the same start."""

    kind: Literal["continued-sft", "dpo"] = Field(
        "continued-sft",
        description="What it is: `continued-sft`, the start model trained further on the human replies; `dpo`, trained on labelled pairs "
        "(arXiv 2305.18290), its start being the reference.",
    )
    name: FolderName | None = Field(
        None, description="Its folder in the run, where several of a kind are wanted; its kind when null, `spin-dpo` for `start: best`."
    )
    start: Literal["start", "best"] = Field(
        "start", description="What it starts from; `best` is the game's best iteration, so that DPO follows SPIN. For `dpo` only."
    )
    pairs: PairsSection | None = Field(None, description="The pairs of `dpo`; `pairs: PATH` is short for its `path`.")
    beta: PositiveFloat = Field(0.1, description="Of `dpo`: how strongly it is held to its reference; 0.1 is what most use.")
    epochs: PositiveFloat | None = Field(
        None,
        description="Passes over its rows, rounded up to whole steps. When null, as many as cost the floating-point operations of all "
        "self-play iterations together.",
    )
    lr: PositiveFloat | None = Field(
        None, description="Peak learning rate. When null, the SFT stage's (or 1e-5 without one), and for `dpo` train's in iteration 0."
    )
    batch_size: PositiveInt | None = Field(
        None, description="Rows per optimizer step. When null, the SFT stage's (or train's without one), and train's for `dpo`."
    )

    @field_validator("name")
    @classmethod
    def _folder_is_free(cls, name: str | None) -> str | None:
        if name in TAKEN_NAMES:
            raise ValueError("a run keeps something else under this name")
        return name

    @field_validator("pairs", mode="before")
    @classmethod
    def _pairs_shorthand(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("start", "pairs", "beta")
    @classmethod
    def _dpo_alone_takes_it(cls, value: T, info: ValidationInfo) -> T:
        if info.data.get("kind") == "continued-sft" and value != cls.model_fields[info.field_name or ""].default:
            raise ValueError("has no effect on continued-sft")
        if info.data.get("kind") == "dpo" and info.field_name == "pairs" and value is None:
            raise ValueError("dpo needs labelled pairs; set pairs to a file or a Hub id")
        return value

    @property
    def folder(self) -> str:
        """Its name in the run directory and on the command line."""
        return self.name or ("spin-dpo" if self.start == "best" else self.kind)

    @property
    def title(self) -> str:
        """Its name in tables."""
        return self.name or {"continued-sft": "continued SFT", "dpo": "DPO", "spin-dpo": "SPIN, then DPO"}[self.folder]


# what stands beside the controls in a run directory
TAKEN_NAMES = ("base", "baseline", "best", "data", "evaluations", "iterations", "sft", "start", "trackers")


class VllmSection(Section):
    """vLLM inside the run, by its own words."""

    tensor_parallel: PositiveInt = Field(1, description="Devices that share every layer (tensor_parallel_size).")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.85, description="Share of a device's memory that it takes; less where other programs need some."
    )
    max_model_len: PositiveInt | None = Field(
        None, description="Longest prompt with its reply; the model's context when null. Less takes less memory."
    )
    max_num_seqs: PositiveInt | None = Field(None, description="Replies that are drawn at once; vLLM's own choice when null.")
    enforce_eager: bool | None = Field(
        None,
        description="No compilation and no CUDA graphs: an earlier start, slower tokens. When null, on a CPU alone, where a row's own seed "
        "fails without it.",
    )


class ServerSection(Section):
    """An OpenAI-compatible endpoint that takes token ids and returns them."""

    urls: Urls = Field(
        ("http://127.0.0.1:8000/v1",),
        description="Base URLs up to and including /v1, one server or several that serve the same player; the default is vLLM's own.",
    )
    model: Text | None = Field(
        None,
        description="Name of the served model; `{hash}` in it stands for the first 12 digits of the player's content hash, so that an "
        "earlier player can never answer in its place. The only model that the server has when null.",
    )
    api_key_env: EnvironmentName | None = Field(
        None, description="Environment variable that holds the key. The key itself never stands in a recipe, a file or a message."
    )
    concurrency: PositiveInt = Field(32, description="Requests under way at each URL; every request is one reply.")
    timeout_seconds: PositiveFloat = Field(600.0, description="Longest wait for one reply, its time in the server's queue included.")
    retries: Annotated[int, Field(ge=0)] = Field(
        6, description="Further attempts at a request, after waits that double from half a second to a minute, or as the server asks."
    )
    update_command: Text | None = Field(
        None,
        description="Command that has the servers serve the next player, run before it samples: `{model}` is the player's folder, `{name}` "
        "its served name. It returns when the servers start to load; the run then waits for them.",
    )
    ready_timeout_seconds: PositiveFloat = Field(
        1800.0, description="Longest wait for `update_command` to return, and then for the servers."
    )


class RaySection(Section):
    """Sampling on the nodes of a Ray cluster."""

    address: Text | None = Field(
        None,
        description="The cluster: `auto` for the one that this machine belongs to, or HOST:PORT of its head. When null, that of the "
        "environment's RAY_ADDRESS, and without one Ray is started on this machine alone.",
    )
    engine: Literal["transformers", "vllm"] = Field("transformers", description="What runs in every worker.")
    max_workers: PositiveInt | None = Field(
        None, description="Copies of the player at most; when null, as many as the cluster has room for, nodes that join later included."
    )
    cpus_per_worker: PositiveFloat = Field(1.0, description="CPUs of one worker, which are also its threads.")
    gpus_per_worker: NonNegativeFloat | None = Field(None, description="GPUs of one worker; 1 when null and the cluster has any, else 0.")
    batch_rows: PositiveInt = Field(
        32, description="Replies that a worker draws in one call. What a lost worker had in work is drawn again; short calls waste time."
    )
    stall_minutes: PositiveFloat = Field(
        30.0, description="The run stops when no call has ended for so long: there is no room for a worker, or they die again and again."
    )


class SamplingSection(Section):
    engine: Literal["transformers", "vllm", "server", "ray"] = Field(
        "transformers",
        description="What runs the opponent while it samples: `transformers` or `vllm` (`sparring[vllm]`) inside the run, a `server` "
        "that is there, or `ray` (`sparring[ray]`) on many nodes. See docs/engines.md.",
    )
    temperature: NonNegativeFloat = Field(1.0, description="1 samples the model's own distribution; 0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus sampling; 1 keeps the whole distribution.")
    max_new_tokens: PositiveInt = Field(256, description="Longest reply; a reply cut here gets no end-of-turn token.")
    replies_per_prompt: PositiveInt = Field(
        1, description="Opponent replies per prompt in every iteration; more make the gradient less noisy."
    )
    batch_tokens: PositiveInt = Field(
        32768,
        description="Prompt and new tokens of the rows that are sampled together. More are faster; their keys and values take memory.",
    )
    shard_rows: PositiveInt = Field(
        128,
        description="Prompts per committed file; a kill loses at most one, and progress shows after each. vllm and server want more, for "
        "they fill up with rows of one file.",
    )
    vllm: VllmSection = Field(default_factory=VllmSection, description="How vLLM runs; for `engine: vllm` only.")
    server: ServerSection = Field(default_factory=ServerSection, description="Where the server is; for `engine: server` only.")
    ray: RaySection = Field(default_factory=RaySection, description="The cluster and its workers; for `engine: ray` only.")

    @field_validator("replies_per_prompt")
    @classmethod
    def _replies_can_differ(cls, replies: int, info: ValidationInfo) -> int:
        if replies > 1 and info.data.get("temperature") == 0:
            raise ValueError("at temperature 0 all replies to a prompt are the same; use 1 reply or a temperature above 0")
        return replies

    @property
    def inner_engine(self) -> str:
        """What computes: the engine itself, or the one in Ray's workers."""
        return self.ray.engine if self.engine == "ray" else self.engine


# The losses that an option has an effect on; the others refuse it.
SPIN_LOSSES = ("logistic", "hinge", "exponential", "correlation")
TAKEN_BY = {"beta": (*SPIN_LOSSES, "t-spin", "alpha-spin"), "mu": ("space",), "history_weight": ("t-spin",), "alpha": ("alpha-spin",)}


class ObjectiveSection(Section):
    loss: Literal["logistic", "hinge", "exponential", "correlation", "space", "t-spin", "alpha-spin"] = Field(
        "logistic",
        description="The decreasing convex function ell of equation 4.7; or a successor of SPIN (docs/theory.md): `space` tells each reply "
        "from the opponent's by itself (arXiv 2512.07175), `t-spin` needs no opponent log-probs and also prefers the newest replies to "
        "those of the start (arXiv 2601.08198), `alpha-spin` plays against a mixture of the opponent and the start (arXiv 2404.04291). "
        "The last two with the logistic ell.",
    )
    beta: PerIteration = Field(
        1.0,
        description="The lambda of equation 4.7 (the alpha of T-SPIN, which scales its gaps), one value or one per iteration. The paper "
        "uses 0.1, then 5.0 in its last iteration; 1.0 is the default because smaller values overshoot (docs/theory.md). Not for `space`.",
    )
    nll_weight: WeightPerIteration = Field(
        0.0,
        description="Weight of an anchor beside the loss: the negative log-likelihood of the human reply per token. 0 is SPIN; larger ones "
        "keep the human replies likely. One value or one per iteration.",
    )
    mu: PositiveFloat | None = Field(
        None,
        description="Noise ratio of `loss: space`, how much the opponent's replies weigh against the human one; "
        "`sampling.replies_per_prompt`, so that every reply weighs the same, when null.",
    )
    history_weight: WeightPerIteration = Field(
        0.1,
        description="Weight of T-SPIN's preference of the newest replies to those of the start (the paper's beta), one value or one per "
        "iteration. Iteration 0 takes 0, as the paper does: its replies are those of the start.",
    )
    alpha: FractionPerIteration = Field(
        0.9,
        description="Share of the opponent in the mixture of `loss: alpha-spin`, one value or one per iteration: 1 is SPIN, 0 compares "
        "with the start of the game alone. See docs/theory.md for what 0.9 means in exact play. Set `window` to `iterations` for replies "
        "of all opponents.",
    )
    window: PositiveInt = Field(2, description="Iterations whose replies are trained on, the newest first; the paper uses 2.")

    @field_validator(*TAKEN_BY)
    @classmethod
    def _has_an_effect(cls, value: T, info: ValidationInfo) -> T:
        name, loss = info.field_name or "", info.data.get("loss")
        if loss is not None and loss not in TAKEN_BY[name] and value != cls.model_fields[name].default:
            raise ValueError(f"has no effect while objective.loss is {loss}; it is for {', '.join(TAKEN_BY[name])}")
        return value

    @property
    def uses_opponent_logps(self) -> bool:
        return self.loss != "t-spin"

    @property
    def uses_start(self) -> bool:
        """Whether log-probs under the start of the game are needed."""
        return self.loss == "alpha-spin"

    @property
    def uses_start_replies(self) -> bool:
        return self.loss == "t-spin"

    def learns_from_identical(self, iteration: int) -> bool:
        """Whether a duel has a gradient though all its replies equal the human one: where not only gaps between replies count."""
        return self.loss == "space" or at_iteration(self.nll_weight, iteration) > 0

    def at(self, iteration: int, replies_per_prompt: int) -> dict[str, Any]:
        """What has an effect in an iteration (from 0), with its value there; nothing else."""
        found: dict[str, Any] = {"loss": self.loss}
        found |= {name: at_iteration(getattr(self, name), iteration) for name, losses in TAKEN_BY.items() if self.loss in losses}
        if self.loss == "space":
            found["mu"] = self.mu or float(replies_per_prompt)
        if self.loss == "t-spin" and iteration == 0:
            found["history_weight"] = 0.0
        nll_weight = at_iteration(self.nll_weight, iteration)
        return {**found, "nll_weight": nll_weight} if nll_weight else found


class BenchmarksSection(Section):
    """Tasks of lm-evaluation-harness (`sparring[eval]`)."""

    suites: Texts = Field(
        (), description="Known sets: `open-llm-leaderboard`, the paper's six tasks and their mean; `paper-extra`, its further four."
    )
    tasks: Texts = Field(
        (),
        description="Any other tasks of the harness, or of `task_folders`: TASK, TASK@SHOTS, TASK:METRIC or TASK@SHOTS:METRIC; without "
        "them the task's own shots, and all its metrics.",
    )
    task_folders: Texts = Field(
        (), description="Folders with task files of your own (YAML in the harness's format), whose data may be local files."
    )
    limit: PositiveInt | None = Field(None, description="Play the first so many items of every task only; all when null.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        1234, description="Draws the few-shot examples; the default is the harness's own, so that numbers can be compared with others."
    )
    chat_template: bool = Field(
        False, description="Wrap the questions into the model's chat template, shots as turns. The paper's numbers are without it."
    )
    batch_tokens: PositiveInt = Field(
        8192, description="Tokens, new ones included, that are computed together; more take more memory, and change results by rounding."
    )

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.suites and not self.tasks:
            raise ValueError("names neither suites nor tasks")
        return self


class EvaluateSection(Section):
    answer_pattern: Regex | None = Field(
        None,
        description="Regular expression that finds the answer in a reply (its last match; group 1 if it has one). Exact match compares "
        "it with the human reply's. No exact match when null.",
    )
    greedy: bool = Field(False, description="Also answer the held-out prompts greedily and report exact_match_greedy.")
    metric: Metric | None = Field(
        None, description="Picks the best iteration and feeds `patience`; exact_match where there is a pattern, else nll_per_token."
    )

    benchmarks: BenchmarksSection | None = Field(
        None, description="Benchmarks to play with the start, every iteration and the control; none when null. See docs/evaluation.md."
    )

    @field_validator("greedy")
    @classmethod
    def _greedy_is_scored(cls, greedy: bool, info: ValidationInfo) -> bool:
        if greedy and info.data.get("answer_pattern", "invalid") is None:
            raise ValueError("greedy replies are scored by exact match, which needs evaluate.answer_pattern")
        return greedy

    @field_validator("metric")
    @classmethod
    def _metric_is_measured(cls, metric: str | None, info: ValidationInfo) -> str | None:
        if metric in ("exact_match", "exact_match_greedy") and info.data.get("answer_pattern", "invalid") is None:
            raise ValueError("needs evaluate.answer_pattern")
        if metric == "exact_match_greedy" and info.data.get("greedy") is False:
            raise ValueError("needs evaluate.greedy: true")
        return metric

    @property
    def chosen_metric(self) -> str:
        return self.metric or ("exact_match" if self.answer_pattern is not None else "nll_per_token")


class StopSection(Section):
    indistinguishable: bool = Field(
        True,
        description="End the game when the player cannot tell held-out human replies from the opponent's: the confidence interval "
        "of its duel accuracy reaches down to one half.",
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="Level of that two-sided interval (Wilson).")
    patience: PositiveInt | None = Field(
        None, description="End the game after this many iterations in a row without a new best value of `evaluate.metric`; never when null."
    )


class LauncherSection(Section):
    kind: Literal["inline", "accelerate"] = Field(
        "accelerate",
        description="The process that plays the game computes all (`inline`), or `accelerate launch` starts the heavy stages on many.",
    )
    config_file: Text | None = Field(
        None, description="A file that `accelerate config` wrote; it then says everything but the keys of this section that are given too."
    )
    processes: PositiveInt | None = Field(
        None, description="Ranks on all machines together; one per GPU of this machine, times `machines`, when null."
    )
    machines: PositiveInt = Field(1, description="Machines; they share the run directory and the model's folder.")
    machine_rank: Annotated[int, Field(ge=0)] = Field(
        0, description="Which of them this is: 0 plays the game, the others follow it and lend their ranks."
    )
    main_process_ip: Text | None = Field(None, description="Address of machine 0, needed with more than one.")
    main_process_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        None, description="Port of machine 0 where the ranks meet. When null: any free one, or 29500 with several machines."
    )
    strategy: Literal["ddp", "fsdp2", "deepspeed-zero2", "deepspeed-zero3"] = Field(
        "ddp",
        description="How the ranks share the model. `ddp`: each holds all of it. `fsdp2`: PyTorch shards weights, gradients and optimizer. "
        "`deepspeed-zero2` shards gradients and optimizer, `deepspeed-zero3` the weights too; they need `sparring[deepspeed]`. "
        "A `config_file` has its own.",
    )
    cpu: bool = Field(False, description="Ranks on CPU, connected by gloo.")

    @property
    def shards(self) -> bool:
        """Whether a rank holds a part of the optimizer only. What a config file says is not read here."""
        return self.kind == "accelerate" and self.strategy != "ddp"

    @field_validator("config_file", "processes", "machines", "machine_rank", "main_process_ip", "main_process_port", "strategy", "cpu")
    @classmethod
    def _inline_takes_none_of_it(cls, value: T, info: ValidationInfo) -> T:
        if info.data.get("kind") == "inline" and value != cls.model_fields[info.field_name or ""].default:
            raise ValueError("has no effect while launcher.kind is inline; set launcher.kind to accelerate")
        return value

    @field_validator("machine_rank")
    @classmethod
    def _machine_exists(cls, rank: int, info: ValidationInfo) -> int:
        machines = info.data.get("machines")
        if machines is not None and rank >= machines:
            raise ValueError(f"machines is {machines}, so that ranks go from 0 to {machines - 1}")
        return rank

    @field_validator("main_process_ip")
    @classmethod
    def _machines_can_meet(cls, address: str | None, info: ValidationInfo) -> str | None:
        if address is None and info.data.get("machines", 1) > 1 and info.data.get("config_file") is None:
            raise ValueError("is needed with more than one machine: the address of machine 0")
        return address


class TrackSection(Section):
    """Trackers through Accelerate. A key of theirs stands in their own variable or login, never in a recipe."""

    trackers: Trackers = Field(
        description="Some of tensorboard, trackio, wandb and mlflow; each needs the extra of its name (`sparring[wandb]`)."
    )
    project: Text = Field("sparring", description="Project, or experiment, that the run is shown in. tensorboard has none.")
    name: Text | None = Field(None, description="Name of the run there; that of the run directory when null.")


class Recipe(Section):
    """A whole game. The fields are the top-level keys of the YAML file."""

    run_dir: Text = Field(description="Folder of this run: all state lives there.")
    seed: Seed = Field(0, description="Seeds the data subset, the order of batches and every reply.")
    seeds: SeedList | None = Field(
        None,
        description="Play the game once for each of these, in `run_dir`/seed-N, and show mean, spread and tests over them; no `seed` then.",
    )
    model: ModelSection = Field(description="The model that plays.")
    data: DataSection = Field(description="Its SFT data.")
    sft: SftSection | None = Field(
        None,
        description="Fine-tune the model on the same rows before the game; `sft: {}` takes all defaults, null starts with the "
        "model as it is.",
    )
    iterations: PositiveInt = Field(3, description="Self-play iterations at most; the paper plays 4.")
    sampling: SamplingSection = Field(default_factory=SamplingSection, description="How the opponent's replies are drawn.")
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection, description="What the player minimises.")
    train: TrainSection = Field(default_factory=TrainSection, description="How the player is trained.")
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection, description="What is measured after every iteration.")
    stop: StopSection = Field(default_factory=StopSection, description="When the game ends.")
    baseline: tuple[BaselineSection, ...] = Field(
        (),
        description="Controls to show beside the game, one or a list of them; `baseline: continued-sft` is short for its defaults, null "
        "plays without.",
    )
    launcher: LauncherSection = Field(
        default_factory=lambda: LauncherSection(kind="inline"),
        description="Where sampling (transformers engine), log-probs and training are computed: in this process, the default, "
        "`launcher: inline` in short, or in many. Results are the same to rounding, and a run may go on under another launcher: "
        "docs/launching.md.",
    )
    track: TrackSection | None = Field(
        None,
        description="Also send metrics and scores to trackers; `track: tensorboard` or `track: [tensorboard, wandb]` is short for their "
        "defaults, null sends nothing. See docs/live.md.",
    )
    showcase_system: Text | None = Field(None, description="System turn before every showcase prompt.")
    showcase: Texts = Field(
        ("List the popular forms of transportation in Southampton.",),
        description="Prompts that every iteration answers, shown side by side; the default is the paper's running example.",
    )
    report: bool = Field(
        True,
        description="Draw report.html after every iteration (once a minute at most) and at the end, some seconds of work; `sparring "
        "report` draws it at any time.",
    )

    @property
    def sampling_dtype(self) -> str:
        return self.model.dtype or {"bf16": "bfloat16", "fp32": "float32"}[self.train.precision]

    @property
    def trains_adapters_alone(self) -> bool:
        return all(section.lora for section in (self.train, self.sft) if section)

    @model_validator(mode="before")
    @classmethod
    def _lora_shorthand(cls, values: Any) -> Any:
        """`lora:` at the top is short for `train.lora`."""
        if not isinstance(values, dict) or "lora" not in values:
            return values
        train = values.get("train") or {}
        if not isinstance(train, dict) or "lora" in train:
            return values  # two of them: the one at the top is refused as an unknown key
        return {**{key: value for key, value in values.items() if key != "lora"}, "train": {**train, "lora": values["lora"]}}

    @field_validator("seeds")
    @classmethod
    def _one_seed_or_several(cls, seeds: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        if seeds is not None and info.data.get("seed"):
            raise ValueError(f"the game is played once per seed, and seed is {info.data['seed']}; set one of the two")
        return seeds

    @field_validator("baseline", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        values = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
        return tuple({"kind": one} if isinstance(one, str) else one for one in values)

    @field_validator("baseline")
    @classmethod
    def _each_has_a_folder(cls, baseline: tuple[BaselineSection, ...]) -> tuple[BaselineSection, ...]:
        folders = [one.folder for one in baseline]
        twice = next((name for name in folders if folders.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two controls are called {twice}; give each a name")
        return baseline

    @field_validator("launcher", mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("track", mode="before")
    @classmethod
    def _track_shorthand(cls, value: Any) -> Any:
        value = [value] if isinstance(value, str) else value
        return {"trackers": value} if isinstance(value, list) else value

    @field_validator("objective", "train")
    @classmethod
    def _one_value_per_iteration(cls, section: T, info: ValidationInfo) -> T:
        iterations = info.data.get("iterations")
        wrong = [(key, value) for key, value in vars(section).items() if isinstance(value, tuple) and len(value) != iterations]
        if iterations is None or not wrong:
            return section
        # One error per option, each under its own key; a ValueError could carry one only.
        rule = "{count} values, but iterations is {iterations}; give one value, or one per iteration"
        raise ValidationError.from_exception_data(
            cls.__name__,
            [
                InitErrorDetails(
                    type=PydanticCustomError("contradiction", rule, {"count": len(value), "iterations": iterations}),
                    loc=(key,),
                    input=value,
                )
                for key, value in wrong
            ],
        )


def unused_sections(sampling: SamplingSection) -> list[str]:
    """Sections of engines that were set to something though another engine plays."""
    defaults = {name: field.get_default(call_default_factory=True) for name, field in type(sampling).model_fields.items()}
    sections = {name: section for name, section in vars(sampling).items() if isinstance(section, Section)}
    playing = {sampling.engine, sampling.inner_engine}
    return [name for name, section in sections.items() if name not in playing and section != defaults[name]]


def at_iteration(value: T | Sequence[T], iteration: int) -> T:
    """The value for iteration t (from 0) of an option that is a scalar or one value per iteration."""
    return value[iteration] if isinstance(value, (tuple, list)) else value  # type: ignore[return-value]
