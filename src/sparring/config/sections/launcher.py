"""Where the heavy stages are computed: in this process, or on several ranks."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from sparring.config.option_types import PathText, PositiveInt, Section, Text

T = TypeVar("T")

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
            raise ValueError(f"machines is {machines}, so machine_rank is from 0 to {machines - 1}")
        return rank

    @field_validator("main_process_ip")
    @classmethod
    def _machines_can_meet(cls, address: str | None, info: ValidationInfo) -> str | None:
        if address is None and info.data.get("machines", 1) > 1 and info.data.get("config_file") is None:
            raise ValueError("is needed with more than one machine: the address of machine 0")
        return address
