"""The licence of a base model or data set, as far as this machine knows it: a guess is worse than "unknown"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparring.errors import UserError
from sparring.policy.load import package_file
from sparring.publish.names import is_hub_id

HUB_NAME = re.compile(r"[a-z0-9][a-z0-9.\-]*")


@dataclass(frozen=True)
class Licence:
    """`name` is an identifier of the Hub's list (apache-2.0, cc-by-nc-4.0, other ...), None where nothing at hand says one; `source` says
    where it was read."""

    name: str | None
    source: str

    def __str__(self) -> str:
        return f"{self.name or 'unknown'} ({self.source})"


def licence_of(path: str, kind: str, given: str | None, option: str) -> Licence:
    """The licence of a recipe's model.path or data.path.

    kind: "model" or "dataset", the Hub's words. given: the user's statement, by `option`; else the card next to the files, the Hub's
    card in the local cache, or a GGUF file's own field is read. Nothing is fetched.
    """
    if given is not None:
        if not HUB_NAME.fullmatch(given):
            raise UserError(
                f"{given!r} is not an identifier of a licence", where=option, remedy="write it as the Hub does: apache-2.0, mit, other"
            )
        return Licence(given, f"as the publisher says, by {option}")
    if path.startswith("builtin:"):
        return Licence("apache-2.0", "part of sparring")
    if is_hub_id(path):
        return _of_card(_cached_card(path, kind), f"the card of {path}")
    try:
        file = package_file(path.removeprefix("package:")) if path.startswith("package:") else Path(path).expanduser()
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
    name = said[0] if isinstance(said, list) and said else said
    usable = isinstance(name, str) and HUB_NAME.fullmatch(name)
    return Licence(name, f"from {source}") if usable else Licence(None, f"{source} names none")


def _of_gguf(file: Path) -> Licence:
    try:
        from gguf import GGUFReader
    except ImportError:
        return Licence(None, "reading it from a GGUF file needs `pip install 'sparring[gguf]'`")
    field = GGUFReader(file).get_field("general.license") if file.is_file() else None
    name = field.contents() if field else None
    usable = isinstance(name, str) and HUB_NAME.fullmatch(name)
    return Licence(name, "from the GGUF file") if usable else Licence(None, "the GGUF file names none")
