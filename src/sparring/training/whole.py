"""Weights that were sharded, gathered to be written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class WholeWeights:
    """`state`: the weights by name on rank 0; on the others it is empty. `masters`: the sharded model."""

    masters: PreTrainedModel
    state: dict[str, Tensor]

    def save_pretrained(self, folder: Path) -> None:
        self.masters.save_pretrained(folder, state_dict=self.state)
