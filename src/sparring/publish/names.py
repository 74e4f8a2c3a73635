"""What of a recipe others may read: names that mean something elsewhere, and no folder, host or command of this machine."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from sparring.config import Recipe, Section
from sparring.own_code import is_own_code

LOCAL_SUFFIXES = {".gguf", ".jsonl", ".json", ".csv", ".parquet", ".gz", ".zst", ".jinja"}
HIDDEN = "(not shown)"


def public(recipe: Recipe) -> dict[str, Any]:
    """The recipe without the run's own folder, of local paths only the last part, and of other machines nothing."""
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
    _hide(values["sampling"]["server"], recipe.sampling.server, "urls", "update_command")
    _hide(values["sampling"]["ray"], recipe.sampling.ray, "address")
    _hide(values["launcher"], recipe.launcher, "main_process_ip", "config_file")
    return values


def _last_parts(path: str | tuple[str, ...] | None) -> str | None:
    """Of a local path, or of each of several, the last part; what is named elsewhere as it is."""
    if path is None:
        return None
    paths = (path,) if isinstance(path, str) else path
    return ", ".join(Path(one).name if is_local(one) else one for one in paths)


def _hide(values: dict[str, Any], section: Section, *names: str) -> None:
    """What only means something on the machines of the game, and may say more of them than their owner likes."""
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
