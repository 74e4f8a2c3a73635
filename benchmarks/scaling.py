"""Opponent pass + one epoch over more and more duels, and over longer replies: memory should stay flat, time go with the tokens.

    python benchmarks/scaling.py [key=value ...]

keys: duels=64,256 tokens=40 longer=120 (reply tokens; the longer ones for the first number of duels alone) model=smollm2, or one of
training_speed.py's random ones

Random token ids, prompts of 20 to 40 tokens and two replies of half to one and a half times `tokens` each, bfloat16, rmsprop, 16 duels a
step. Every run is a process of its own. Prints a table and writes benchmarks/results/scaling.json (of random weights: scaling-MODEL.json).
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from common import MODEL, WORK, options_of, print_origin, random_model, ready_model, save
from training_speed import Work, run

DEFAULTS = {"duels": "64,256", "tokens": "40", "longer": "120", "model": "smollm2"}


def rows(duels: int, tokens: int, highest: int) -> list[dict[str, Any]]:
    draw = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(100, highest) for _ in range(draw.randint(low, high))]

    lengths = tokens // 2, tokens * 3 // 2
    return [{"prompt_ids": ids(20, 40), "chosen_ids": ids(*lengths), "rejected_ids": ids(*lengths)} for _ in range(duels)]


def measured(duels: int, tokens: int, model: Path) -> dict[str, Any]:
    file = WORK / f"scaling-{duels}-{tokens}.json"
    made = rows(duels, tokens, 40_000 if model == MODEL else 500)
    file.write_text(json.dumps(made))
    found = run("ours", Work(file, model, (1,), "rmsprop", 1, 0))
    computed = sum(len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) - 2 for row in made)
    return {"duels": duels, "reply_tokens": tokens, "tokens": computed, **found, "seconds": found["seconds"][1]}


def main(options: dict[str, str]) -> None:
    if options["model"] == "smollm2":
        ready_model()
    model = MODEL if options["model"] == "smollm2" else random_model(options["model"])
    counts = [int(count) for count in options["duels"].split(",")]
    found = [measured(count, int(options["tokens"]), model) for count in counts]
    found.append(measured(counts[0], int(options["longer"]), model))
    print_origin()
    print("\n".join(table(found)))
    save("scaling" if model == MODEL else f"scaling-{model.name}", {"results": found})


def table(found: list[dict[str, Any]]) -> list[str]:
    """The rows of the table in docs/fast-path.md."""
    lines = ["| duels | tokens of a reply | tokens in trees | seconds | ms per token | peak memory, GB |", "|---|---|---|---|---|---|"]
    for one in found:
        cost = 1e3 * one["seconds"] / one["tokens"]
        shown = f"{one['tokens']:,} | {one['seconds']:.1f} | {cost:.2f} | {one['peak_memory_gb']:.2f}"
        lines.append(f"| {one['duels']} | {one['reply_tokens']} | {shown} |")
    return lines


if __name__ == "__main__":
    main(options_of(DEFAULTS, sys.argv[1:]))
