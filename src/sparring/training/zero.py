"""DeepSpeed's ZeRO 2 in training: it shards optimizer and gradients. strategies.py refuses its stage 3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from sparring.config import OptimSection
from sparring.policy.load import load_model
from sparring.policy.ranks import is_main, rank_count
from sparring.policy.score import Scorer
from sparring.training.checkpoint import OPTIMIZER, Saveable
from sparring.training.optimizers import make_optimizer, require_shardable
from sparring.training.whole import WholeWeights

STEP = "step"


class DeepSpeedZero:
    """Implements `RankedWeights`. Its engine clips and updates in one call, which stands in `clip`."""

    in_step = True

    def __init__(self, folder: Path, settings: OptimSection, accelerator: Accelerator, seed: int) -> None:
        self.accelerator = accelerator
        self.model = load_model(folder)
        self.scorer = Scorer(self.model)

    def prepare(self, settings: OptimSection) -> None:
        require_shardable(settings, "train")
        optimizer = make_optimizer(self.model, settings)
        # one process's optimizer numbers its parameters in this order, and so do checkpoints
        self._order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        config = self.accelerator.deepspeed_plugin.deepspeed_config
        config.update({**_formats(settings.precision), "gradient_clipping": settings.max_grad_norm or 0.0})
        exact = [parameter.detach().clone() for parameter in self._order] if settings.precision == "bf16" else []
        self.passes, self.optimizer = self.accelerator.prepare(self.scorer, optimizer)
        if exact:  # DeepSpeed has made its float32 masters from weights that it had rounded before
            _set(self._order, exact)

    def backward(self, loss: Tensor, is_last: bool) -> None:
        self.passes.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed takes the mean over the ranks, and the step's loss is the sum of their parts
        self.passes.backward(loss * rank_count())

    def clip(self, limit: float | None) -> float:
        """Also updates, unless the gradient is not finite: then DeepSpeed leaves the update out."""
        self.passes.step()
        return float(self.passes.get_global_grad_norm())

    def publish(self) -> None:
        """Done by DeepSpeed."""

    def saveable(self) -> Saveable:
        from deepspeed.utils import safe_get_full_fp32_param

        state = {}
        for name, parameter in self.model.named_parameters():
            whole = safe_get_full_fp32_param(parameter)  # all ranks take part
            if is_main():
                state[name] = whole.view(_shape(parameter)).cpu()
        return WholeWeights(self.model, state)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link()
        steps, keys = self._inner_state()
        found = {}
        for number, parameter in enumerate(self._order):
            for key in keys:
                whole = safe_get_full_optimizer_state(parameter, key)
                if is_main():
                    found[f"{number}.{key}"] = whole.view(_shape(parameter)).cpu()
            if steps is not None and is_main():
                found[f"{number}.{STEP}"] = steps.clone()
        return found

    def restore_optimizer(self, folder: Path) -> None:
        tensors = load_file(folder / OPTIMIZER)
        keys = sorted({name.split(".", 1)[1] for name in tensors} - {STEP})
        inner = self.passes.optimizer.optimizer
        for flat in self._flat_masters():
            inner.state[flat] = {key: torch.zeros_like(flat) for key in keys}
            if f"0.{STEP}" in tensors:
                inner.state[flat][STEP] = tensors[f"0.{STEP}"].clone()
        self._link()
        for key in keys:
            _set(self._order, [tensors[f"{number}.{key}"] for number in range(len(self._order))], key)

    def _link(self) -> None:
        """DeepSpeed finds a parameter's part of the flat state by links made after the first group's first step: too early for
        the other groups."""
        self.passes.optimizer._hp_optimizer_states_linked = False
        self.passes.optimizer._lazy_init_hp_params_optimizer_state()

    def _inner_state(self) -> tuple[Tensor | None, list[str]]:
        """(optimizer steps done, names of the state's tensors) of the optimizer that DeepSpeed runs over flat parts of the weights."""
        state: dict[str, Any] = next(iter(self.passes.optimizer.optimizer.state.values()), {})
        return state.get(STEP), sorted(key for key, value in state.items() if key != STEP and torch.is_tensor(value))

    def _flat_masters(self) -> list[Tensor]:
        return self.passes.optimizer.single_partition_of_fp32_groups


def _formats(precision: str) -> dict[str, Any]:
    return {
        # for its counters alone: micro-batches are counted in tokens here
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": precision == "bf16", "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }


def _set(parameters: Sequence[nn.Parameter], values: Sequence[Tensor], key: str | None = None) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    for parameter, value in zip(parameters, values, strict=True):
        value = value.to(device=parameter.device, dtype=torch.float32)
        if key is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)


def _shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)
