"""The tables of sampling engines and of targets: what each needs and can do.

Options, refusals, the plan and `sparring doctor` read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EngineSpec:
    """One engine. `at_once`, `devices`, `fills`, `private` and `urls` name options below `sampling`; its own section there has its name."""

    name: str
    factory: str  # `module:function` below sparring.opponent, called as function(a SamplerSettings, the chat, folder of the player)
    what: str  # how it samples, continues the word "replies"
    package: str | None = None  # the package that it imports
    extra: str | None = None  # the extra of sparring that installs it
    on_ranks: bool = False  # the launcher's ranks sample, each with the whole model; other engines start their own processes
    four_bit: bool = False  # it can sample from a 4-bit base
    dora: bool = True  # it supports DoRA adapters
    hosts: bool = False  # it runs another engine, `sampling.ray.engine`, in workers on many machines
    urls: str | None = None  # addresses of other machines that serve the player; their memory is not counted
    private: tuple[str, ...] = ()  # options with addresses and commands of this site, which are not published
    devices: str | None = None  # how many devices share one copy of the model; None for one
    at_once: str | None = None  # how many replies a copy samples together; None: as `batch_tokens` allows
    usually: int = 256  # how many that are if the option is null
    fills: str | None = None  # the fixed share of a device's memory that it reserves; None if it takes only what it needs
    paged: bool = False  # CUDA graphs and paged attention, which make it faster than the model's own code

    @property
    def in_workers(self) -> bool:
        """Whether an engine that hosts others (Ray) can run it."""
        return not self.hosts and self.urls is None

    @property
    def holds_whole(self) -> bool:
        """Whether a device of this run must hold the whole model."""
        return self.in_workers and self.devices is None

    def refusals(self, lora: Any) -> Iterator[str]:
        """Why it cannot sample from players that are trained with `lora` (a LoraSection, or None)."""
        remedy = f"set sampling.engine to {DEFAULT}, or leave out train.lora"
        if lora is not None and lora.quantize and not self.four_bit:
            yield f"{self.name} would sample from the base in 16 bits, while quantize scores and trains it in 4; {remedy}.quantize"
        if lora is not None and lora.dora and not self.dora:
            yield f"{self.name} serves no DoRA adapters; {remedy}.dora"


DEFAULT = "transformers"
ON_GPU = "vllm"  # paged attention and CUDA graphs, which the model's own code does not have
ENGINES = {
    spec.name: spec
    for spec in (
        EngineSpec(DEFAULT, "engines:make_transformers", "by the model's own code in this run", on_ranks=True, four_bit=True),
        EngineSpec(
            "vllm",
            "vllm_engine:make_vllm",
            "by vLLM inside the run",
            package="vllm",
            extra="vllm",
            dora=False,
            devices="vllm.tensor_parallel",
            at_once="vllm.max_num_seqs",
            fills="vllm.gpu_memory_utilization",
            paged=True,
        ),
        EngineSpec(
            "server",
            "server:make_server",
            "from an OpenAI-compatible server",
            package="httpx2",
            extra="server",
            urls="server.urls",
            private=("server.urls", "server.update_command"),
            at_once="server.concurrency",
            paged=True,
        ),
        EngineSpec(
            "ray",
            "ray_engine:make_ray",
            "by many machines of a Ray cluster",
            package="ray",
            extra="ray",
            hosts=True,
            private=("ray.address",),
        ),
    )
}


@dataclass(frozen=True)
class TargetSpec:
    """One target. Grades decide the winners of all but `human`."""

    name: str
    function: str  # `module:function` below sparring.targets, called as function(candidates, rules)
    what: str  # which replies win, for the description of `target.kind`
    votes: bool = False  # the most frequent answer wins, so that no right answer needs to be known


HUMAN_TARGET = "human"
TARGET_SPECS = {
    spec.name: spec
    for spec in (
        TargetSpec(HUMAN_TARGET, "builtin:human", "the human reply, always (SPIN, whose ceiling is the data)"),
        TargetSpec("verified", "builtin:verified", "replies of the opponent that the checker passes; those that fail lose"),
        TargetSpec(
            "majority",
            "builtin:majority",
            "replies with the most frequent answer of the replies to the prompt; the others lose, and no answer needs to be known",
            votes=True,
        ),
    )
}
