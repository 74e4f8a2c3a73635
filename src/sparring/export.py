"""Out of the run directory: one player as a plain Hugging Face folder with a model card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from sparring.config import Recipe
from sparring.config.yaml_dialect import dump_yaml
from sparring.errors import UserError
from sparring.players import BASE, Player, Players
from sparring.policy.adapters import base_of, is_adapter, name_base
from sparring.policy.hub import HUB_FILES
from sparring.policy.load import convert, merge
from sparring.stage_names import BASELINE, CONTROL

LOCAL_SUFFIXES = {".gguf", ".jsonl", ".json", ".csv", ".parquet", ".jinja"}


def export(root: Path, target: Path, name: str = "best", dtype: str | None = None, adapter: bool = False) -> Path:
    """Write a player to the new folder `target`: safetensors, tokenizer, generation config, model card. Returns `target`.

    dtype: "bfloat16" or "float16" rounds the weights; None keeps float32, the format they were trained in.
    adapter: of a player that is a LoRA adapter, write the adapter alone; it is added to its base's weights otherwise.
    """
    players = Players(root)
    player = players.find(name)
    if players.summary is None:
        raise UserError("this run has no scores for the model card yet", where=str(root), remedy="let it play at least one iteration")
    target = target.resolve()  # `.` has no name to put beside
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("this folder exists and is not empty", where=str(target), remedy="give a new folder")
    temporary = target.with_name(target.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    _write_model(players, player, temporary, adapter)
    if players.recipe.model.chat_template and not player.is_trained:  # the game was played under it, but the model does not carry it
        players.chat().tokenizer.save_pretrained(temporary)
    if dtype is not None:
        convert(temporary, dtype)
    (temporary / "README.md").write_text(model_card(players.recipe, players.summary, player, adapter), encoding="utf-8")
    if target.exists():
        target.rmdir()
    temporary.rename(target)
    return target


def _write_model(players: Players, player: Player, target: Path, adapter: bool) -> None:
    folder = players.folder(player)
    if adapter and not is_adapter(folder):
        raise UserError(
            f"{player.title} is a whole model and no adapter", where="--adapter", remedy="leave it out; train.lora makes adapters"
        )
    if is_adapter(folder) and not adapter:
        merge(folder, target)
        return
    shutil.copytree(folder, target, ignore=_not_of_a_model)
    if adapter:  # its base is named by a way within the run, which does not lead there from anywhere else
        path = players.recipe.model.path
        own = _is_hub_id(path) and players.recipe.sft is None and not players.run.finished(BASE)
        name_base(target, path if own else str(base_of(folder).resolve()), revision=players.recipe.model.revision if own else None)


def _not_of_a_model(_: str, names: Sequence[str]) -> list[str]:
    """What else lies in a folder that the recipe names: pickles, another model card, the parts of a repository."""
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in HUB_FILES)]


def model_card(recipe: Recipe, summary: Mapping[str, Any], player: Player, adapter: bool = False) -> str:
    """What the model is, how it was made, and every score with its error. Names no folder of this machine."""
    shown = public(recipe)
    start = f"the start ({summary['baseline']['name']})"
    title = {BASELINE: start, CONTROL: "the continued-SFT control"}.get(player.name, player.title)
    return f"""---
{_front_matter(recipe, "peft" if adapter else "transformers")}---

# {title} of a self-play game

Fine-tuned with self-play (SPIN, [arXiv 2401.01335](https://arxiv.org/abs/2401.01335)) by sparring: the model learned to tell human replies
from those of its own previous iteration. This is {title}, started from `{shown["model"]["path"]}`, trained on `{shown["data"]["path"]}`.

## Scores

{_score_table(summary)}

Value and standard error on held-out prompts that no iteration was trained on. {_choice(summary)}

## Recipe

```yaml
{dump_yaml(shown).strip()}
```

## Reference

Chen, Deng, Yuan, Ji, Gu: Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models. ICML 2024, arXiv 2401.01335.
"""


def public(recipe: Recipe) -> dict[str, Any]:
    """The recipe as others may read it: without the run's own folder, and of local paths only the last part."""
    values = recipe.model_dump(exclude={"run_dir"})
    for section, key in (("model", "path"), ("model", "chat_template"), ("data", "path")):
        path = values[section][key]
        if path is not None and _is_local(path):
            values[section][key] = Path(path).name
    return values


def _is_local(path: str) -> bool:
    """Whether a path of the recipe names a file or folder of this machine, and not a Hub id, a package's file or a built-in."""
    if path.startswith(("builtin:", "package:")):
        return False
    local = Path(path).expanduser()
    return local.exists() or local.suffix.lower() in LOCAL_SUFFIXES or path.startswith((".", "/", "~")) or path.count("/") > 1


def _is_hub_id(path: str) -> bool:
    return not path.startswith(("builtin:", "package:")) and not _is_local(path)


def _front_matter(recipe: Recipe, library: str) -> str:
    """The card's YAML for the Hub, which takes nothing but a Hub id as base_model."""
    path = recipe.model.path
    return yaml.safe_dump(
        {
            "library_name": library,
            "pipeline_tag": "text-generation",
            **({"base_model": path} if _is_hub_id(path) else {}),
            "tags": ["spin", "self-play", "sparring"],
        }
    )


def _choice(summary: Mapping[str, Any]) -> str:
    reason, best = summary["stop_reason"], summary["best"]
    ended = "The game is not over yet." if reason is None else f"The game ended - {reason}."
    if best is None:
        return ended
    return (
        f"{ended} The best iteration, {best['iteration']}, was chosen by its {best['metric']} on these same prompts, "
        "so its score flatters it a little."
    )


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
