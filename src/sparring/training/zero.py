"""DeepSpeed's ZeRO in training: stage 2 shards optimizer and gradients, stage 3 the weights too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors.torch import load_file
from torch import Tensor, nn

from sparring.config import OptimSection
from sparring.policy.compute import COMPUTE_DTYPES
from sparring.policy.empty_model import empty_like
from sparring.policy.ranks import is_main, rank_count
from sparring.policy.score import Scorer
from sparring.policy.strategies import stage_of_deepspeed
from sparring.training.checkpoint import OPTIMIZER, Saveable
from sparring.training.optimizers import make_optimizer
from sparring.training.sharded import Sharded, gathered_weights

STEP = "step"


class DeepSpeedZero(Sharded):
    """Implements `RankedWeights`. Its engine clips and updates in one call, which is in `clip`."""

    def prepare(self, settings: OptimSection) -> None:
        optimizer = make_optimizer(self.model, settings)
        # one process's optimizer numbers its parameters in this order, and so do checkpoints
        self._order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        config = self.accelerator.deepspeed_plugin.deepspeed_config
        config["gradient_clipping"] = settings.max_grad_norm or 0.0
        exact = [parameter.data for parameter in self._order] if settings.precision == "bf16" else []
        self.wrapped, self.optimizer = _prepared(self.scorer, settings.precision, self.accelerator, optimizer)
        if exact:  # DeepSpeed made its float32 masters from weights that it had already rounded
            _set(self._order, (broadcast(values.to(self.accelerator.device)) for values in exact))

    def backward(self, loss: Tensor, is_last: bool) -> None:
        self.wrapped.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed takes the mean over the ranks, and the step's loss is the sum of their parts
        self.wrapped.backward(loss * rank_count())

    def clip(self, limit: float | None) -> float:
        """Also updates the weights, unless the gradient is not finite: DeepSpeed skips the update then."""
        self.wrapped.step()
        return float(self.wrapped.get_global_grad_norm())

    def sync_compute_weights(self) -> None:
        """Done by DeepSpeed."""

    def saveable(self) -> Saveable:
        from deepspeed.utils import safe_get_full_fp32_param

        return gathered_weights(self.weights, lambda parameter: safe_get_full_fp32_param(parameter).view(_shape(parameter)))

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
        """Load a checkpoint of one process's format into this rank's shards."""
        tensors = load_file(folder / OPTIMIZER)
        keys = sorted({name.split(".", 1)[1] for name in tensors} - {STEP})
        inner = self.wrapped.optimizer.optimizer
        for flat in self._flat_masters():
            inner.state[flat] = {key: torch.zeros_like(flat) for key in keys}
            if f"0.{STEP}" in tensors:
                inner.state[flat][STEP] = tensors[f"0.{STEP}"].clone()
        self._link()
        for key in keys:
            _set(self._order, [tensors[f"{number}.{key}"] for number in range(len(self._order))], key)

    def _link(self) -> None:
        """Stages 1 and 2 find a parameter's part of the flat state by links made after the first group's first step: too early for
        the other groups."""
        if stage_of_deepspeed() != 3:
            self.wrapped.optimizer._hp_optimizer_states_linked = False
            self.wrapped.optimizer._lazy_init_hp_params_optimizer_state()

    def _inner_state(self) -> tuple[Tensor | None, list[str]]:
        """(optimizer steps done, names of the state's tensors) of the optimizer that DeepSpeed runs over flat parts of the weights."""
        state: dict[str, Any] = next(iter(self.wrapped.optimizer.optimizer.state.values()), {})
        return state.get(STEP), sorted(key for key, value in state.items() if key != STEP and torch.is_tensor(value))

    def _flat_masters(self) -> list[Tensor]:
        of = self.wrapped.optimizer
        return of.fp32_partitioned_groups_flat if stage_of_deepspeed() == 3 else of.single_partition_of_fp32_groups


def freeze(scorer: Scorer, precision: str, accelerator: Accelerator) -> nn.Module:
    """The module that runs the scorer without training: sharded by stage 3, else unchanged, in the number format of training."""
    if stage_of_deepspeed() != 3:
        for parameter in scorer.parameters():  # DeepSpeed rounds adapters as it does all weights
            parameter.data = parameter.data.to(COMPUTE_DTYPES[precision])
        return scorer
    return _prepared(scorer, precision, accelerator)


def _prepared(scorer: Scorer, precision: str, accelerator: Accelerator, *optimizer: torch.optim.Optimizer) -> Any:
    """The scorer, and an optimizer, prepared by Accelerate. DeepSpeed distributes the weights of rank 0."""
    config = accelerator.deepspeed_plugin.deepspeed_config
    config.update(_formats(precision))
    if stage_of_deepspeed() == 3:
        _partition(scorer, precision, config)
    prepared = accelerator.prepare(scorer, *optimizer)
    _fetch_head_at_once(scorer)
    return prepared


def _partition(scorer: Scorer, precision: str, config: dict[str, Any]) -> None:
    """Shard one parameter at a time: the engine would first put the whole model on every device."""
    from deepspeed.runtime.zero import Init

    for parameter in scorer.parameters():  # the engine casts no shards
        parameter.data = empty_like(parameter.data, COMPUTE_DTYPES[precision])
    Init(module=scorer, config_dict_or_path={**_formats(precision), "zero_optimization": config["zero_optimization"]})


def _fetch_head_at_once(scorer: Scorer) -> None:
    """Have stage 3 fetch the head's weights for all chunks of a micro-batch together.

    DeepSpeed fetches on module calls, whose sequence must be the same on all ranks; but ranks call the head as often as their replies have
    chunks. So its hooks go, and `ChunkedHead`, which is called once, fetches the weights, before the forward and before the backward pass.
    """
    if stage_of_deepspeed() != 3 or scorer.takes_whole_logits:  # then the model calls its head itself, once
        return
    from deepspeed.runtime.zero import register_external_parameter

    head = scorer.model.get_output_embeddings()
    for module in head.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    for parameter in head.parameters():
        register_external_parameter(scorer.head, parameter)


def _formats(precision: str) -> dict[str, Any]:
    return {
        # for its counters alone: micro-batches are counted in tokens here
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": precision == "bf16", "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }


def _set(parameters: Sequence[nn.Parameter], values: Iterable[Tensor], key: str | None = None) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    for parameter, value in zip(parameters, values, strict=True):
        value = value.to(device=parameter.device, dtype=torch.float32)
        if key is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)


def _shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)
