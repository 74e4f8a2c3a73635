"""sparring: self-play fine-tuning (SPIN, arXiv 2401.01335) of language models.

    import sparring
    summary = sparring.run("builtin:tiny")

Pieces: `spin_loss` (the objective), `Scorer` (log-probs of replies), `load_recipe`, `Recipe`, `UserError`.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Any

__version__ = metadata.version("sparring")

# loaded on first use: `import sparring` and `sparring --help` must not wait for torch
_HOMES = {
    "run": "sparring.game",
    "load_recipe": "sparring.config",
    "Recipe": "sparring.config",
    "UserError": "sparring.errors",
    "spin_loss": "sparring.objectives.spin",
    "DuelLogps": "sparring.objectives.shared",
    "Scorer": "sparring.policy.score",
    "Branches": "sparring.policy.batches",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sparring' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
