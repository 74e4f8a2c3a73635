"""The part of a recipe that may be published, and the licence of a base model or data set if it can be found on this machine."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparring.config import ENGINES, Recipe, Section
from sparring.errors import UserError
from sparring.own_code import is_own_code
from sparring.policy.load import local_path

LOCAL_SUFFIXES = {".gguf", ".jsonl", ".json", ".csv", ".parquet", ".gz", ".zst", ".jinja"}
HIDDEN = "(not shown)"


def public(recipe: Recipe) -> dict[str, Any]:
    """The recipe for publication: without the run directory, with only the last part of local paths, and without names of machines."""
    values = recipe.model_dump(exclude={"run_dir"})
    sources = [section for section in (values["data"], values["data"]["prompts"]) if section]
    sources += [control["pairs"] for control in values["controls"] if control["pairs"]]
    places = [(values["model"], "path"), (values["model"], "chat_template"), *((source, "path") for source in sources)]
    for section, key in places:
        section[key] = _last_parts(section[key])
    for section, key in ((values["target"], "checker"), (values["target"], "random_like"), (values["objective"], "loss")):
        if is_own_code(section[key]):
            section[key] = Path(section[key]).name
    if values["evaluate"]["benchmarks"]:
        folders = values["evaluate"]["benchmarks"]["task_folders"]
        values["evaluate"]["benchmarks"]["task_folders"] = [Path(folder).name for folder in folders]
    for section, option in (path.split(".") for spec in ENGINES.values() for path in spec.private):
        _hide(values["sampling"][section], getattr(recipe.sampling, section), option)
    _hide(values["launcher"], recipe.launcher, "main_process_ip", "config_file")
    return values


def _last_parts(path: str | tuple[str, ...] | None) -> str | None:
    """The last part of a local path, or of each of several; other names unchanged."""
    if path is None:
        return None
    paths = (path,) if isinstance(path, str) else path
    return ", ".join(Path(one).name if is_local(one) else one for one in paths)


def _hide(values: dict[str, Any], section: Section, *names: str) -> None:
    """Hide options that have no meaning on other machines and may reveal details of the user's own."""
    defaults = type(section)()
    for name in names:
        if getattr(section, name) != getattr(defaults, name):
            values[name] = HIDDEN


def is_local(path: str) -> bool:
    """Whether a path of the recipe names a file or folder of this machine, and not a Hub id, a package's file or a built-in."""
    if path.startswith(("builtin:", "package:")):
        return False
    local = Path(path).expanduser()
    return (
        glob.has_magic(path)
        or local.exists()
        or local.suffix.lower() in LOCAL_SUFFIXES
        or path.startswith((".", "/", "~"))
        or path.count("/") > 1
    )


def is_hub_id(path: str) -> bool:
    """Whether the recipe's path is meant as a Hub id: neither local, built-in, nor in a package."""
    return not path.startswith(("builtin:", "package:")) and not is_local(path)


HUB_NAME = re.compile(r"[a-z0-9][a-z0-9.\-]*")


@dataclass(frozen=True)
class Licence:
    """`name` is an identifier of the Hub's list (apache-2.0, cc-by-nc-4.0, other ...), None if it is not known; `source` says where it was
    read."""

    name: str | None
    source: str

    def __str__(self) -> str:
        return f"{self.name or 'unknown'} ({self.source})"


def licence_of(path: str, what: str, given: Mapping[str, str | None]) -> Licence:
    """The licence of the model (`what` is "base") or data in a path of the recipe.

    given: the licences that the user gives by the option --WHAT-licence; without one the card next to the files, the Hub's card in the
    local cache, or the field of a GGUF file is read. Nothing is downloaded.
    """
    said, option = given.get(what), f"--{what}-licence"
    if said is not None:
        if not HUB_NAME.fullmatch(said):
            raise UserError(
                f"{said!r} is not the identifier of a licence", where=option, remedy="write it as the Hub does: apache-2.0, mit, other"
            )
        return Licence(said, f"as the publisher says, by {option}")
    if path.startswith("builtin:"):
        return Licence("apache-2.0", "part of sparring")
    if is_hub_id(path):
        return _of_card(_cached_card(path, "model" if what == "base" else "dataset"), f"the card of {path}")
    try:
        file = local_path(path)
    except UserError:
        return Licence(None, "its package is no longer on this machine")
    if file.suffix == ".gguf":
        return _of_gguf(file)
    return _of_card((file if file.is_dir() else file.parent) / "README.md", "the README.md next to it")


def _cached_card(repo: str, kind: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "README.md", repo_type=kind)
    return Path(found) if isinstance(found, str) else None


def _of_card(card: Path | None, source: str) -> Licence:
    from huggingface_hub import metadata_load

    if card is None or not card.is_file():
        return Licence(None, f"{source} is not on this machine" if card is None else "there is no card next to it")
    try:
        said: Any = (metadata_load(card) or {}).get("license")
    except (OSError, ValueError, yaml.YAMLError):
        return Licence(None, f"{source} cannot be read")
    return _named(said[0] if isinstance(said, list) and said else said, source)


def _of_gguf(file: Path) -> Licence:
    try:
        from gguf import GGUFReader
    except ImportError:
        return Licence(None, "reading it from a GGUF file needs `pip install 'sparring[gguf]'`")
    field = GGUFReader(file).get_field("general.license") if file.is_file() else None
    return _named(field.contents() if field else None, "the GGUF file")


def _named(name: Any, source: str) -> Licence:
    usable = isinstance(name, str) and HUB_NAME.fullmatch(name)
    return Licence(name, f"from {source}") if usable else Licence(None, f"{source} names none")
