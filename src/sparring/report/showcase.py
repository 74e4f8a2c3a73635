"""Prompts that all players have answered, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWCASE = "showcase.json"
HELD_OUT = 2  # prompts that are shown where the recipe names none


def shown_of(showcase: Sequence[Mapping[str, str]], samples: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, str]]:
    """(prompt, reply) entries of a player: the recipe's own, or those of the first held-out rows, which are the same for all."""
    return list(showcase) or [{"prompt": samples[row]["prompt"], "reply": samples[row]["reply"]} for row in sorted(samples)[:HELD_OUT]]
