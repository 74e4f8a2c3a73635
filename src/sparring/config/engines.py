"""What every sampling engine needs, takes and refuses: options, refusals, the plan and `sparring doctor` all read this one table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EngineSpec:
    """One engine. `at_once`, `devices`, `fills` and `urls` name options below `sampling`; its own section there has its name.

    factory: `module:function` below sparring.opponent, called as function(recipe, chat, folder of the player)
    what: how it draws, after the word "replies"
    package, extra: what it imports, and the extra of sparring that installs that
    on_ranks: the launcher's ranks draw, each with the whole model; other engines bring processes of their own
    four_bit, dora: whether it draws from a base in 4 bits, and serves DoRA adapters
    hosts: it runs another engine, `sampling.ray.engine`, in workers on many machines
    urls: where other machines serve the player; their memory is not ours
    devices: how many devices share one copy of the model; None for one
    at_once, usually: how many replies a copy draws together, and how many where that option is null; None: as `batch_tokens` allows
    fills: the share of a device's memory that it takes whatever it needs; None for what it needs
    paged: CUDA graphs and paged attention, which make it faster than a model's own code
    """

    name: str
    factory: str
    what: str
    package: str | None = None
    extra: str | None = None
    on_ranks: bool = False
    four_bit: bool = False
    dora: bool = True
    hosts: bool = False
    urls: str | None = None
    devices: str | None = None
    at_once: str | None = None
    usually: int = 256
    fills: str | None = None
    paged: bool = False

    @property
    def in_workers(self) -> bool:
        """Whether an engine that hosts others can run it."""
        return not self.hosts and self.urls is None

    @property
    def holds_whole(self) -> bool:
        """Whether a device of this run has to hold the whole model."""
        return self.in_workers and self.devices is None

    def refusals(self, lora: Any) -> Iterator[str]:
        """Why it cannot draw from players that are trained with `lora` (a LoraSection, or None)."""
        if lora is not None and lora.quantize and not self.four_bit:
            yield f"{self.name} would sample from the base in 16 bits, while quantize scores and trains it in 4; {_remedy('quantize')}"
        if lora is not None and lora.dora and not self.dora:
            yield f"{self.name} serves no DoRA adapters; {_remedy('dora')}"


def _remedy(option: str) -> str:
    return f"set sampling.engine to {DEFAULT}, or leave out train.lora.{option}"


DEFAULT = "transformers"
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
            at_once="server.concurrency",
            paged=True,
        ),
        EngineSpec("ray", "ray_engine:make_ray", "by many machines of a Ray cluster", package="ray", extra="ray", hosts=True),
    )
}
