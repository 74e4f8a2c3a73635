"""Out of the run directory: one player as a plain Hugging Face folder with a model card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sparring.errors import UserError
from sparring.report.summary import SUMMARY
from sparring.rundir import read_json
from sparring.stage_names import BASELINE, CONTROL_EVALUATE, CONTROL_TRAIN, iteration_stage


def player_stages(root: Path) -> dict[str, tuple[str, str]]:
    """name -> (stage that holds its model, stage that evaluated it) for every player with weights in this run directory."""
    if not root.is_dir():
        raise UserError("no such run directory", where=str(root), remedy="give the run_dir of a recipe that has been run")
    start = "sft" if (root / "sft").exists() else "base"
    found = {"baseline": (start, BASELINE)}
    count = len(list((root / "iterations").glob("[0-9]*")))
    found |= {str(t): (iteration_stage(t, "train"), iteration_stage(t, "evaluate")) for t in range(count)}
    found["continued-sft"] = (CONTROL_TRAIN, CONTROL_EVALUATE)
    return {name: stages for name, stages in found.items() if (root / stages[0] / "done.json").exists()}


def model_folder(root: Path, name: str) -> Path:
    """The model folder of a player: "best", an iteration's number, "baseline" or "continued-sft"."""
    players = player_stages(root)
    if name == "best":
        name = _best(root)
    name = name.lstrip("0") or "0" if name.isdigit() else name
    if name not in players:
        raise UserError(
            f"this run has no player {name!r}",
            where=str(root),
            remedy=f"it has {', '.join(players) or 'none yet'}"
            + ("" if "baseline" in players else "; its baseline is the model that the recipe names, which is not copied"),
        )
    return root / players[name][0] / "model"


def export(root: Path, target: Path, name: str = "best", dtype: str | None = None) -> Path:
    """Write a player to the new folder `target`: safetensors, tokenizer, generation config, model card. Returns `target`.

    dtype: "bfloat16" or "float16" rounds the weights; None keeps float32, the format they were trained in.
    """
    source = model_folder(root, name)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("this folder exists and is not empty", where=str(target), remedy="give a new folder")
    temporary = target.with_name(target.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    if dtype is not None:
        from sparring.policy.load import convert

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
    chosen = _best(root) if name == "best" else name
    title = {"baseline": "the SFT start", "continued-sft": "the continued-SFT control"}.get(chosen, f"iteration {chosen}")
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

Fine-tuned with self-play (SPIN, [arXiv 2401.01335](https://arxiv.org/abs/2401.01335)) from `{recipe["model"]["path"]}` on `{recipe["data"]["path"]}`
by [sparring]: the model learned to tell human replies from those of its own previous iteration. This is {title}.

## Scores

{_score_table(summary)}

Value and standard error on held-out prompts that no iteration was trained on. The game ended - {summary["stop_reason"]}.

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
    error = f" ± {score['stderr']:.4f}" if "stderr" in score else ""
    return f"{score['value']:.4f}{error}"


def _best(root: Path) -> str:
    summary = root / SUMMARY
    best = read_json(summary)["best"] if summary.exists() else None
    if best is None:
        raise UserError("this run has no best iteration yet", where=str(root), remedy="let it play at least one iteration")
    return str(best["iteration"])
