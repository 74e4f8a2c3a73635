"""How long work takes: shares of a device's peak that were measured, fitted or assumed, all of them said with the plan."""

from __future__ import annotations

from dataclasses import dataclass

from sparring.planning.hardware import Hardware
from sparring.planning.work import Work


@dataclass(frozen=True)
class Share:
    """What part of a peak is reached, and how that is known."""

    value: float
    source: str


@dataclass(frozen=True)
class Sampling:
    """Shares of the peak rate and of the bandwidth, and seconds that a layer takes at least in every step."""

    products: Share
    bandwidth: Share
    layer_seconds: Share


TRAINING = {
    "cuda": Share(0.40, "fits the paper's training time within 5%; this code has not run on a GPU yet"),
    "cpu": Share(0.20, "12% to 27% were measured, docs/fast-path.md"),
}
SAMPLING = {
    "cuda": Sampling(
        products=Share(0.30, "assumed"),
        bandwidth=Share(0.28, "fits the paper's generation time, batches of 8 by `generate`"),
        layer_seconds=Share(0.0005, "assumed: Python launches the kernels of a layer in half a millisecond"),
    ),
    "cpu": Sampling(
        products=Share(0.15, "9% to 18% were measured, the less the longer the replies"),
        bandwidth=Share(0.50, "assumed"),
        layer_seconds=Share(0.0002, "assumed"),
    ),
}
# CUDA graphs and paged attention
VLLM = Sampling(
    products=Share(0.40, "assumed"),
    bandwidth=Share(0.60, "assumed"),
    layer_seconds=Share(0.00003, "assumed"),
)


@dataclass(frozen=True)
class Duration:
    seconds: float
    driver: str


def computing(work: Work, hardware: Hardware, devices: int) -> Duration:
    """Training and scoring are bound by operations."""
    return Duration(work.flops / (devices * hardware.flops * TRAINING[hardware.kind].value), "operations")


def sampling(work: Work, hardware: Hardware, devices: int, layers: int, engine: str = "transformers") -> Duration:
    """The slowest of reading weights and cache at every step, of the operations, and of launching kernels."""
    of = _sampling(hardware, engine)
    return max(
        Duration(work.bytes_read / (hardware.bandwidth * of.bandwidth.value), "memory bandwidth"),
        Duration(work.flops / (devices * hardware.flops * of.products.value), "operations"),
        Duration(work.steps * layers * of.layer_seconds.value, "launching kernels"),
        key=lambda duration: duration.seconds,
    )


def assumptions(hardware: Hardware, engine: str) -> list[str]:
    """The shares in words, one line each."""
    training, of = TRAINING[hardware.kind], _sampling(hardware, engine)
    peak, bandwidth = f"{hardware.flops / 1e12:.3g} TFLOP/s", f"{hardware.bandwidth / 1e9:.0f} GB/s"
    return [
        f"training and scoring reach {training.value:.0%} of {peak} ({training.source})",
        f"sampling ({engine}) reads at {of.bandwidth.value:.0%} of {bandwidth} ({of.bandwidth.source}), computes at "
        f"{of.products.value:.0%} of {peak} ({of.products.source}), takes {of.layer_seconds.value * 1e3:g} ms per layer and step at least "
        f"({of.layer_seconds.source})",
        f"{hardware.name}: {hardware.source}; {hardware.memory / 1e9:.0f} GB",
        "not counted: loading, saving, evaluation of texts, talk between devices",
    ]


def _sampling(hardware: Hardware, engine: str) -> Sampling:
    return SAMPLING[hardware.kind] if engine == "transformers" else VLLM
