"""The held-out prompts with the human reply and every model's own, as the data that the page's script shows."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from sparring.report.page import packed_data, render
from sparring.report.run_files import ReportPlayer, RunFiles
from sparring.report.untrusted import CUT_AT, shortened

MOST_SAMPLES = 2000
MOST_BYTES = 3_600_000  # of the page's 5 MB


def side_by_side(run: RunFiles) -> Markup:
    """The controls, and the samples packed. Long texts are cut harder and harder until the page keeps to its size."""
    limit = CUT_AT
    packed = packed_data("sample-data", samples_data(run, limit))
    while len(packed) > MOST_BYTES and limit > 100:
        limit //= 2
        packed = packed_data("sample-data", samples_data(run, limit))
    count = len(run.players[0].samples)
    return render("samples.html", packed=packed, count=count, shown=min(count, MOST_SAMPLES), limit=limit if limit < CUT_AT else None)


def samples_data(run: RunFiles, limit: int) -> dict[str, Any]:
    """players: names; best: number of the one to judge by; samples: per row its texts and, in the order of the players, their replies."""
    best = run.best or run.played[-1]
    first = run.players[0].samples
    return {
        "players": [player.name for player in run.players],
        "best": run.players.index(best),
        "samples": [
            {
                "id": row_id,
                "prompt": shortened(sample["prompt"], limit),
                "human": shortened(sample["human"], limit),
                "human_tokens": sample.get("human_tokens"),
                "replies": [_reply(player, row_id, limit) for player in run.players],
            }
            for row_id, sample in list(first.items())[:MOST_SAMPLES]
        ],
    }


def _reply(player: ReportPlayer, row_id: str, limit: int) -> dict[str, Any] | None:
    sample = player.samples.get(row_id)
    if sample is None:
        return None
    greedy = sample.get("greedy")
    return {
        "text": shortened(sample["reply"], limit),
        "greedy": None if greedy is None else shortened(greedy, limit),
        "finish": sample["finish_reason"],
        "human_logp": _number(sample["human_logp"]),
        "own_logp": _number(sample["reply_logp"]),
        "margin": _number(sample.get("duel_margin")),
        "tokens": sample.get("reply_tokens"),
        "identical": sample.get("identical", sample["reply"] == sample["human"]),
        "right": sample.get("exact_match"),
    }


def _number(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return round(value, 3) if value is not None and math.isfinite(value) else None
