"""float32 master weights under a model that computes in another number format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparring.policy.load import load_model


class MasterWeights:
    """`model` is what computes, `masters` what the optimizer moves and what is saved: the same model for float32, else a float32 one.

    A bfloat16 parameter near 0.02 is too coarse to move at a learning rate of 5e-7. Gradients are summed over the micro-batches in
    float32, and a parameter's bfloat16 gradient is freed as soon as it was added, so that two of them at most exist at a time.
    Bytes per parameter: 4 of weights and 4 of gradient, 2 more of weights when computing in bfloat16, and the optimizer's state.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.masters: PreTrainedModel = load_model(folder).to(device)
        # loaded and not cast: buffers, and what a model keeps in float32, stay what they are when the model samples
        self.model: PreTrainedModel = self.masters if dtype == torch.float32 else load_model(folder, dtype).to(device)
        if self.model is not self.masters:
            for master, parameter in zip(self.masters.parameters(), self.model.parameters(), strict=True):
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_adding_to(master))

    @torch.no_grad()
    def publish(self) -> None:
        """Give the computing model the masters' values."""
        if self.model is not self.masters:
            for master, parameter in zip(self.masters.parameters(), self.model.parameters(), strict=True):
                parameter.copy_(master)


def _adding_to(master: nn.Parameter) -> Callable[[Tensor], None]:
    def add(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.to(master.dtype, copy=True)
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    return add
