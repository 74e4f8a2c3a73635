"""`sparring export`: one player as a plain Hugging Face folder with a model card."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from sparring.console import log
from sparring.errors import UserError, first_line
from sparring.players import BASE, Players
from sparring.policy.adapters import base_of, is_adapter, name_base
from sparring.policy.folder import HUB_FILES, check_files
from sparring.policy.load import convert, merge, name_ends
from sparring.publish.cards import About, model_card
from sparring.publish.names import is_hub_id
from sparring.report.outcome import higher_ranked
from sparring.report.page import svg_file
from sparring.report.run_files import read_run
from sparring.report.run_plots import card_figures
from sparring.stage_names import title_of_player

PLOTS = "plots"


def export(
    root: Path, target: Path, name: str = "best", dtype: str | None = None, adapter: bool = False, about: About | None = None
) -> Path:
    """Write a player to the new folder `target`: safetensors, tokenizer, generation config, model card. Returns `target`.

    dtype: "bfloat16" or "float16" rounds the weights; None keeps float32, the format they were trained in.
    adapter: write a LoRA player as its adapter alone; otherwise it is merged into the weights of its base.
    about: licences and Hub repositories for the card; looked up if None.
    """
    players = Players(root)
    player = players.find(name)
    if players.summary is None:
        raise UserError("this run has no scores for the model card yet", where=str(root), remedy="let it play at least one iteration")
    if (higher := higher_ranked(players.summary, player)) is not None:
        log.warning(f"{title_of_player(player)}: {higher}")
    target = new_folder(target)
    temporary = target.with_name(target.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    _write_model(players, player, temporary, adapter)
    if not players.is_trained(player):
        _carry_chat(players, temporary)
    if dtype is not None:
        convert(temporary, dtype)
    about = about or About.of(players.recipe, unanswered=players.unanswered)
    card = model_card(players.recipe, players.summary, player, about, adapter, _write_plots(root, temporary))
    (temporary / "README.md").write_text(card, encoding="utf-8")
    if target.exists():
        target.rmdir()
    temporary.rename(target)
    return target


def _carry_chat(players: Players, folder: Path) -> None:
    """Save the chat template and the end-of-turn ids of the game with a model that was not trained: its own files lack them."""
    chat, model = players.chat(), players.recipe.model
    if model.chat_template or model.chat_template_kwargs:
        chat.tokenizer.save_pretrained(folder)
    name_ends(folder, chat.stop_ids)


def new_folder(path: Path) -> Path:
    """The absolute path of a folder that does not exist or is empty. Raises UserError for any other path."""
    try:
        path = path.resolve()  # `.` has no name for the temporary folder next to it
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError("this folder exists and is not empty", where=str(path), remedy="give a new folder")
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        raise UserError(f"cannot create this folder: {first_line(error)}", where=str(path)[:100], remedy="choose another") from None
    return path


def _write_plots(root: Path, target: Path) -> dict[str, str]:
    """Plot the run's scores over its players into `target`/plots; returns score -> file, relative to `target`."""
    (target / PLOTS).mkdir()
    files = {}
    for name, svg in card_figures(read_run(root)).items():
        files[name] = f"{PLOTS}/{name}.svg"
        (target / files[name]).write_text(svg_file(svg), encoding="utf-8")
    return files


def _write_model(players: Players, player: str, target: Path, adapter: bool) -> None:
    folder = players.folder(player)
    if adapter and not is_adapter(folder):
        raise UserError(
            f"{title_of_player(player)} is a full model, not an adapter",
            where="--adapter",
            remedy="leave it out; train.lora makes adapters",
        )
    if is_adapter(folder) and not adapter:
        merge(folder, target)
        return
    check_files(folder)
    shutil.copytree(folder, target, ignore=_not_of_a_model)
    if adapter:  # its config has the path of the base relative to the run, which is wrong in another folder
        path = players.recipe.model.path
        own = is_hub_id(path) and players.recipe.sft is None and not players.run.finished(BASE)
        name_base(target, path if own else str(base_of(folder).resolve()), revision=players.recipe.model.revision if own else None)


def _not_of_a_model(_: str, names: Sequence[str]) -> list[str]:
    """Other files in a folder that the recipe names: pickles, another model card, repository files."""
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in HUB_FILES)]
