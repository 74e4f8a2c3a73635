"""How the opponent's replies are sampled, and the engines for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from sparring.config.engines import DEFAULT, ENGINES, ON_GPU, EngineSpec
from sparring.config.option_types import EnvironmentName, NonNegativeFloat, PositiveFloat, PositiveInt, Replies, Section, Text, Urls

if TYPE_CHECKING:  # a static checker cannot read the names from a table
    EngineName = str
    WorkerName = str
else:
    EngineName = Literal[tuple(ENGINES)]
    WorkerName = Literal[tuple(name for name, spec in ENGINES.items() if spec.in_workers)]
COOL = 0.7  # the lower temperature of a headroom
WHAT = ", ".join(f"`{name}` {spec.what}" + (f" (`sparring[{spec.extra}]`)" if spec.extra else "") for name, spec in ENGINES.items())


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
        description=f"How the opponent's replies are sampled: {WHAT}. When null, `{ON_GPU}` on a GPU where it is installed and "
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
