"""Reading and writing a recipe, with overrides `section.key=value` on top of what the file says."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sparring.config.messages import as_user_error, override_path, shown_override
from sparring.config.option_types import Section, at_iteration
from sparring.config.recipe import Recipe, in_full
from sparring.config.reference import show
from sparring.config.sections import OF_DEEPSPEED, ControlSection, OptimSection, SftSection
from sparring.config.yaml_dialect import dump_yaml, parse_scalar, parse_yaml
from sparring.errors import UserError, nearest, suggestion
from sparring.files import MOST_TEXT_BYTES, require_plain, require_regular

OLD_KEYS = {"baseline": "controls"}  # former name -> name


def apply_override(values: dict[str, Any], override: str) -> dict[str, Any]:
    """`values` with one key set; sections on the path are copied or created, never changed in place."""
    keys = override_path(override).split(".")
    keys[0] = OLD_KEYS.get(keys[0], keys[0])
    if "=" not in override or not all(keys):
        what = f"override {shown_override(override)} is not of the form section.key=value"
        raise UserError(what, remedy="write KEY=VALUE, for example train.lr=1e-6; a data file is named in data.path")
    result = node = dict(values)
    for depth, key in enumerate(keys[:-1], 1):
        child = in_full(key, node.get(key)) if depth == 1 else node.get(key)
        if isinstance(child, list) and len(child) == 1 and keys[:depth] == ["controls"]:
            child = child[0]
        if child is not None and not isinstance(child, dict):
            raise UserError(f"override {shown_override(override)}: {'.'.join(keys[:depth])} is {show(child)}, which has no keys of its own")
        node[key] = dict(child or {})
        node = node[key]
    node[keys[-1]] = _override_value(override)
    return result


def _override_value(override: str) -> Any:
    """The typed value: a quoted text, [list] or {mapping} is YAML, anything else a plain scalar."""
    text, where = override.partition("=")[2].strip(), f"override {shown_override(override)}"
    if text[:1] not in ("[", "{", "'", '"'):
        return parse_scalar(text, where)
    try:
        return parse_yaml(text, where)
    except UserError as error:
        raise UserError(error.what, where=where, remedy="a text that begins with [ { or a quote must itself be quoted") from None


S = TypeVar("S", bound=Section)
FORMER_START = "baseline"
BUILTIN, RECIPES = "builtin:", Path(__file__).parent.parent / "recipes"


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe, overrides: Iterable[str] = ()) -> Recipe:
    """Read and check a recipe: a YAML file, `builtin:NAME`, a dict or a Recipe, with `section.key=value` overrides on top.

    Raises one UserError that lists every problem: the key, its value, the rule and the nearest valid key.
    """
    from_file = isinstance(source, (str, Path))
    values = _read_yaml(_located(str(source))) if from_file else _plain(source)
    overrides = list(overrides)
    return _checked(_with_new_keys(values, overrides, logging.WARNING), str(source) if from_file else "recipe", overrides)


def _checked(values: Any, name: str, overrides: list[str]) -> Recipe:
    for override in overrides:
        values = apply_override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise as_user_error(error, name, overrides) from None


def _with_new_keys(values: Any, overrides: Iterable[str], level: int) -> Any:
    """A recipe of an earlier version: its keys by the names that they have now. `level`: of the log line that says so."""
    keys = set(values) if isinstance(values, dict) else set()
    overridden = {override_path(override).partition(".")[0] for override in overrides}
    for old, new in OLD_KEYS.items():
        if {old, new} <= keys:
            raise UserError(f"`{old}` is the former name of `{new}`, and the recipe has both", where=old, remedy=f"keep `{new}`")
        if old in keys | overridden:
            logging.getLogger("sparring").log(level, f"recipe: `{old}` is now called `{new}`; it is read as `{new}`")
    return {OLD_KEYS.get(key, key): value for key, value in values.items()} if keys else values


def builtin_recipes() -> dict[str, Path]:
    """`builtin:NAME` -> file of every recipe that comes with the package."""
    files = sorted(RECIPES.rglob("*.yaml"))
    return {f"{BUILTIN}{path.parent.name if path.stem == 'recipe' else path.stem}": path for path in files}


def _located(name: str) -> Path:
    """The file of a recipe's name. Raises UserError for an unknown `builtin:NAME`."""
    known = builtin_recipes() if name.startswith(BUILTIN) else {}
    if known and name not in known:
        remedy = suggestion(name, known, otherwise=f"there are {', '.join(known)}")
        raise UserError("no recipe of this name comes with the package", where=name, remedy=remedy)
    return known.get(name, Path(name))


def section_from_options(kind: type[S], values: Mapping[str, Any], options: Mapping[str, str]) -> S:
    """A section built from a command's options, validated like a recipe. `options`: key -> its command-line option.

    Raises UserError naming the option.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        option = options.get(str(item["loc"][0])) if item["loc"] else None
        shown = "" if item["type"] == "secret" or option is None else f"{show(item['input'])}: "
        what = shown + item["msg"].removeprefix("Value error, ")
        raise UserError(what, where=option or ", ".join(options.values()), remedy="--help lists the options") from None


def recipe_of_run(root: Path) -> Recipe:
    """The recipe of a run directory. Raises UserError if there is none."""
    if not (root / "recipe.yaml").is_file():
        remedy = "give the run_dir of a recipe that has been run"
        raise UserError("not a run directory: no recipe.yaml in it", where=str(root), remedy=remedy)
    require_plain(root)
    require_layout(root)
    path = root / "recipe.yaml"
    values = _with_new_keys(_read_yaml(path), [], logging.DEBUG)
    launcher = values.get("launcher")
    if isinstance(launcher, dict) and launcher.get("strategy") in OF_DEEPSPEED:  # finished stages can still be read
        values = {**values, "launcher": {**launcher, "strategy": "fsdp2"}}
    return _checked(values, str(path), [])


def require_layout(root: Path) -> None:
    """Raise UserError for a run of an earlier version, whose folder of the start's scores is called `baseline`."""
    former, start = root / FORMER_START, root / "start"
    what = f"this run was written by an earlier version, which called the folder of the start's scores `{FORMER_START}`"
    if start.is_symlink() or former.is_symlink():  # `start` was the link through which adapters find their base model
        raise UserError(what, where=str(root), remedy="play its recipe again in another run_dir, or use the version that wrote it")
    if former.exists() and start.exists():
        raise UserError(f"this run has both {FORMER_START} and start", where=str(root), remedy=f"delete {former} if it is not of this run")
    if former.exists():
        raise UserError(what, where=str(root), remedy="`sparring run` its recipe once: that renames it and keeps what is finished")


def convert_layout(root: Path) -> None:
    """Give a run of an earlier version today's names; called by the process that holds its lock. Raises UserError if it has adapters."""
    former, start = root / FORMER_START, root / "start"
    if former.is_symlink() or start.is_symlink() or start.exists() or not former.exists():
        return require_layout(root)
    (root / "summary.json").unlink(missing_ok=True)  # written again at the end
    if (root / "chosen.json").exists():
        (root / "chosen.json").rename(root / "micro_batch.json")
    former.rename(start)  # last: until then a kill leaves a run that is converted again
    logging.getLogger("sparring").info(f"run of an earlier version: its folder `{FORMER_START}` is now called `start`")


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe: every key with the value that the run will use."""
    return dump_yaml(recipe.model_dump())


def _plain(value: Any) -> Any:
    """A private copy in plain dicts and lists, which shares nothing with the caller's; paths become text."""
    if isinstance(value, Section):
        value = value.model_dump(warnings=False)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _read_yaml(path: Path) -> dict[str, Any]:
    require_regular(path, str(path), MOST_TEXT_BYTES)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        known = "check the path; builtin:tiny is a working example, and `sparring init` writes one"
        guess = nearest(path.name, (file.name for file in path.parent.glob("*.y*ml")))
        remedy = f"did you mean {path.parent / guess}?" if guess else known
        raise UserError("no such recipe file", where=str(path), remedy=remedy) from None
    except OSError as error:
        remedy = f"name the file, such as {path / 'recipe.yaml'}" if path.is_dir() else "check the file and its permissions"
        raise UserError(f"cannot read the recipe: {error.strerror}", where=str(path), remedy=remedy) from None
    except UnicodeDecodeError as error:
        what = f"cannot read the recipe: it is not UTF-8 text ({error.reason} at byte {error.start})"
        raise UserError(what, where=str(path), remedy="save the file in UTF-8") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        what = f"a recipe is a mapping of keys to values, this is {'nothing' if values is None else show(values)}"
        raise UserError(what, where=str(path), remedy="`sparring docs recipe` shows one")
    return values


SFT_LR = 1e-5  # of continued SFT without an SFT stage: half of the usual rate of a first SFT


def control_lr(recipe: Recipe, section: ControlSection) -> float:
    """The learning rate of a control."""
    if section.lr is not None:
        return section.lr
    if section.kind != "continued-sft":
        return at_iteration(recipe.train.lr, 0)
    return recipe.sft.lr if recipe.sft else SFT_LR


def control_batch_size(recipe: Recipe, section: ControlSection) -> int:
    """Rows per optimizer step of a control."""
    inherited = recipe.sft if recipe.sft and section.kind == "continued-sft" else recipe.train
    return section.batch_size or inherited.batch_size


def sft_settings(recipe: Recipe, section: ControlSection) -> SftSection:
    """Of continued SFT: the SFT stage's settings, or train's where there is none, with the control's own lr and batch size."""
    shared = OptimSection.model_fields.keys() - {"optimizer"}
    inherited = recipe.sft or SftSection(**{name: getattr(recipe.train, name) for name in shared})
    own = {"lr": control_lr(recipe, section), "batch_size": control_batch_size(recipe, section), "horizon_epochs": None}
    return inherited.model_copy(update=own)


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with all defaults that follow from it alone: the same game. Values that depend on the rows, the model or the machine
    stay null."""
    controls = tuple(
        section.model_copy(update={"lr": control_lr(recipe, section), "batch_size": control_batch_size(recipe, section)})
        for section in recipe.controls
    )
    dtype = recipe.sampling_dtype if recipe.train.precision else recipe.model.dtype
    return recipe.model_copy(
        update={
            "controls": controls,
            "model": recipe.model.model_copy(update={"dtype": dtype}),
            "evaluate": recipe.evaluate.model_copy(update={"metric": recipe.metric}),
        }
    )
