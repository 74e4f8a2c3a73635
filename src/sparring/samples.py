"""`sparring sample`: one prompt answered by every player of a run."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.config import load_recipe
from sparring.data.chat import Chat, load_template
from sparring.data.records import Message
from sparring.errors import UserError
from sparring.evaluation.evaluate import answer, load_sampler, make_engine
from sparring.policy.load import find_model, load_tokenizer, model_facts
from sparring.report.players import player_stages
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
        if source.folder is None:
            raise UserError("this run has no player yet", where=str(root), remedy="run its recipe first")
        folders = {"baseline": source.folder, **folders}
    found = {}
    for name, folder in folders.items():
        context, eos = model_facts(folder)
        template = recipe.model.chat_template
        chat = Chat(load_tokenizer(folder), load_template(template) if template and name == "baseline" else None, eos)
        _check_fits(chat, prompt, recipe.sampling.max_new_tokens, context)
        engine = make_engine(
            recipe, chat, load_sampler(recipe, folder), recipe.sampling.temperature if temperature is None else temperature
        )
        shown = f"iteration {name}" if name.isdigit() else name
        found[shown] = answer(engine, chat, [prompt], recipe.seed if seed is None else seed)[0]
    return found


def _check_fits(chat: Chat, prompt: str, max_new_tokens: int, context: int | None) -> None:
    length = len(chat.prompt_ids([Message(role="user", content=prompt)]))
    if context is not None and length + max_new_tokens > context:
        raise UserError(
            f"{length} prompt tokens and sampling.max_new_tokens ({max_new_tokens}) exceed the model's context of {context}",
            where="prompt",
            remedy="give a shorter prompt",
        )


def print_answers(prompt: str, found: dict[str, str], console: Console) -> None:
    table = Table(title=Text(f"Prompt: {printable(prompt)}"), title_justify="left", show_header=False)
    for name, text in found.items():
        table.add_row(name, Text(printable(text)))
    console.print(table)
