"""Where the heavy stages are computed: in this process, or on several ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from sparring.config.option_types import PathText, PositiveInt, Section, Text

# The error for DeepSpeed, in a recipe's strategy as in an Accelerate config file
NO_DEEPSPEED = "DeepSpeed was removed: it has no public way to set its optimizer's state, and its checkpoints are pickles"
OF_DEEPSPEED = ("deepspeed-zero2", "deepspeed-zero3")
INSTEAD = "launcher.strategy fsdp2 shards the same weights, gradients and optimizer states, and resumes the run"


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
            raise ValueError(f"{NO_DEEPSPEED}; {INSTEAD}")
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
