"""Out of the run directory: one player as a plain Hugging Face folder with a model card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sparring.errors import UserError
from sparring.policy.load import convert
from sparring.report.players import model_folder, player_name
from sparring.report.summary import SUMMARY
from sparring.rundir import read_json


def export(root: Path, target: Path, name: str = "best", dtype: str | None = None) -> Path:
    """Write a player to the new folder `target`: safetensors, tokenizer, generation config, model card. Returns `target`.

    dtype: "bfloat16" or "float16" rounds the weights; None keeps float32, the format they were trained in.
    """
    source = model_folder(root, name)
    if not (root / SUMMARY).exists():
        raise UserError("this run has no scores for the model card yet", where=str(root), remedy="let it play at least one iteration")
    target = target.resolve()  # `.` has no name to put beside
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("this folder exists and is not empty", where=str(target), remedy="give a new folder")
    temporary = target.with_name(target.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    if dtype is not None:
        convert(temporary, dtype)
    (temporary / "README.md").write_text(model_card(root, name), encoding="utf-8")
    if target.exists():
        target.rmdir()
    temporary.rename(target)
    return target


def model_card(root: Path, name: str) -> str:
    """What the model is, how it was made, and every score with its error."""
    recipe_text = (root / "recipe.yaml").read_text(encoding="utf-8")
    recipe = yaml.safe_load(recipe_text)
    summary = read_json(root / SUMMARY)
    chosen = player_name(root, name)
    start = f"the start ({summary['baseline']['name']})"
    title = {"baseline": start, "continued-sft": "the continued-SFT control"}.get(chosen, f"iteration {chosen}")
    reason = summary["stop_reason"]
    ended = "The game is not over yet" if reason is None else f"The game ended - {reason}"
    front = yaml.safe_dump(
        {
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "base_model": recipe["model"]["path"],
            "tags": ["spin", "self-play", "sparring"],
        }
    )
    return f"""---
{front}---

# {title} of a self-play game

Fine-tuned with self-play (SPIN, [arXiv 2401.01335](https://arxiv.org/abs/2401.01335)) by sparring: the model learned to tell human replies
from those of its own previous iteration. This is {title}, started from `{recipe["model"]["path"]}`, trained on `{recipe["data"]["path"]}`.

## Scores

{_score_table(summary)}

Value and standard error on held-out prompts that no iteration was trained on. {ended}.

## Recipe

```yaml
{recipe_text.strip()}
```

## Reference

Chen, Deng, Yuan, Ji, Gu: Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models. ICML 2024, arXiv 2401.01335.
"""


def _score_table(summary: Mapping[str, Any]) -> str:
    models = {"baseline": summary["baseline"]["scores"]}
    models |= {f"iteration {entry['iteration']}": entry["scores"] for entry in summary["iterations"]}
    models |= {entry["name"]: entry["scores"] for entry in summary["controls"]}
    names = list(dict.fromkeys(metric for scores in models.values() for metric in scores))
    lines = [f"| metric | n | {' | '.join(models)} |", f"|---|---|{'---|' * len(models)}"]
    for metric in names:
        n = next(scores[metric]["n"] for scores in models.values() if metric in scores)
        lines.append(f"| {metric} | {n} | {' | '.join(_cell(scores.get(metric)) for scores in models.values())} |")
    return "\n".join(lines)


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    error = f" ± {score['stderr']:.4f}" if score.get("stderr") is not None else ""
    return f"{score['value']:.4f}{error}"
