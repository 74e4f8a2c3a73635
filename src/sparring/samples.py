"""`sparring sample`: one prompt answered by every player of a run."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.config import load_recipe
from sparring.data.chat import Chat, load_template
from sparring.errors import UserError
from sparring.evaluation.evaluate import answer, make_engine
from sparring.policy.load import find_model, load_tokenizer, model_facts
from sparring.report.export import player_stages
from sparring.report.tables import printable


def answers(root: Path, prompt: str, temperature: float | None, seed: int | None) -> dict[str, str]:
    """player -> its reply to `prompt` as a first user turn, all under the same random stream."""
    recipe_file = root / "recipe.yaml"
    if not recipe_file.exists():
        raise UserError(
            "not a run directory: no recipe.yaml in it", where=str(root), remedy="give the run_dir of a recipe that has been run"
        )
    recipe = load_recipe(recipe_file)
    folders = {name: root / stage / "model" for name, (stage, _) in player_stages(root).items()}
    if "baseline" not in folders:
        source = find_model(recipe.model, recipe.seed)
        assert source.folder is not None, "a made model is in base/"
        folders = {"baseline": source.folder, **folders}
    found = {}
    for name, folder in folders.items():
        _, eos = model_facts(folder)
        template = recipe.model.chat_template
        chat = Chat(load_tokenizer(folder), load_template(template) if template and name == "baseline" else None, eos)
        engine = make_engine(recipe, chat, folder, recipe.sampling.temperature if temperature is None else temperature)
        found[name if not name.isdigit() else f"iteration {name}"] = answer(engine, chat, [prompt], recipe.seed if seed is None else seed)[
            0
        ]
    return found


def print_answers(prompt: str, found: dict[str, str], console: Console) -> None:
    table = Table(title=Text(f"Prompt: {printable(prompt)}"), title_justify="left", show_header=False)
    for name, text in found.items():
        table.add_row(name, Text(printable(text)))
    console.print(table)
