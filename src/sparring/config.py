"""The recipe: every option, typed, frozen, documented here and checked before anything loads.

`python -m sparring.config` prints the reference page docs/recipe.md.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from sparring.errors import UserError, nearest

T = TypeVar("T")


# ---------------------------------------------------------------------------------------------- types of the options


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a valid regular expression: {error}") from None
    return pattern


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class FrozenDict(dict[Any, Any]):
    """A dict that cannot be changed, so that a recipe can be hashed and shared."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a recipe is frozen; load a new one with the changed value")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:  # the default way to copy and unpickle would set item by item
        return FrozenDict, (dict(self),)


Text = Annotated[str, AfterValidator(_not_blank)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_list_to_tuple)]
Regex = Annotated[Text, AfterValidator(_regular_expression)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PerIteration = PositiveFloat | Annotated[tuple[PositiveFloat, ...], BeforeValidator(_list_to_tuple)]

Metric = Literal["exact_match", "exact_match_greedy", "nll_per_token", "nll_per_reply"]
Shape = Literal["auto", "messages", "prompt_completion", "alpaca", "sharegpt", "real_generated"]
Column = Literal["messages", "prompt", "completion", "instruction", "input", "output", "conversations", "real", "generated"]
Columns = Annotated[dict[Column, Text], AfterValidator(FrozenDict)]


class Section(BaseModel):
    """A frozen group of options that refuses unknown keys, silent type conversion, NaN and infinity.

    Rules between options are validators of the later field: they see the earlier fields in `info.data` (those that are
    valid), so every problem is reported at once. Defaults are validated for that reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True, protected_namespaces=())


# ---------------------------------------------------------------------------------------------- the sections


class ModelSection(Section):
    path: Text = Field(
        description="The SFT (or base) model: a local folder, a Hub id, a .gguf file, `package:NAME/FILE.gguf` for a file "
        "inside an installed Python package, or `builtin:tiny` for a toy model made on the spot."
    )
    revision: Text | None = Field(None, description="Branch, tag or commit of a Hub model.")
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16",
        description="Number format of the frozen model while it samples; bfloat16 halves its memory. Training and the saved "
        "weights do not depend on it.",
    )
    chat_template: Text | None = Field(
        None, description="A Jinja file that replaces the tokenizer's chat template, or gives one to a model that has none."
    )


class DataSection(Section):
    path: Text = Field(
        description="SFT rows: a .jsonl, .json, .csv or .parquet file, a Hub id, or `builtin:tasks` for the generated task family."
    )
    name: Text | None = Field(None, description="Configuration name of a Hub data set.")
    split: Text = Field("train", description="Split of a Hub data set.")
    revision: Text | None = Field(None, description="Branch, tag or commit of a Hub data set.")
    shape: Shape = Field("auto", description="How a row stores its turns; `auto` goes by the column names and says what it found.")
    columns: Columns = Field(
        default_factory=FrozenDict,
        description="Names of the row's own columns for the standard ones, for example `{prompt: question, completion: answer}`.",
    )
    max_examples: PositiveInt | None = Field(
        None, description="Random subset of this many rows, held-out rows included; all rows when null."
    )
    held_out: PositiveInt | Annotated[float, Field(gt=0, lt=1)] = Field(
        200,
        description="Rows kept from training for evaluation, chosen by a hash of the prompt: a count, or a fraction between 0 and 1. "
        "A fraction keeps every prompt on the same side in every data set.",
    )
    max_prompt_tokens: PositiveInt = Field(512, description="Rows with a longer prompt are dropped and counted.")
    max_reply_tokens: PositiveInt = Field(512, description="Rows with a longer human reply are dropped or cut: see `too_long`.")
    too_long: Literal["drop", "cut"] = Field(
        "drop",
        description="What happens to a human reply over `max_reply_tokens`. A cut reply gets no end-of-turn token. Prompts are never cut.",
    )

    @field_validator("held_out")
    @classmethod
    def _leaves_training_rows(cls, held_out: int | float, info: ValidationInfo) -> int | float:
        rows = info.data.get("max_examples")
        if rows is not None and held_out >= rows:
            raise ValueError(f"leaves no rows to train on, because max_examples is {rows}")
        return held_out


class OptimSection(Section):
    """What the SFT stage and the self-play stage share."""

    optimizer: Literal["rmsprop", "adamw"] = Field("rmsprop", description="The paper trains with rmsprop.")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="Learning rate after the warm-up.")
    warmup: Fraction = Field(0.1, description="Share of the schedule's horizon over which the learning rate rises from 0.")
    horizon_epochs: PositiveFloat | None = Field(
        None,
        description="Epochs after which the schedule would reach its end, when that is later than the stop at `epochs` "
        "(the published scripts schedule 6 and stop early); equal to `epochs` when null.",
    )
    batch_size: PositiveInt = Field(64, description="Duels (or SFT rows) per optimizer step, whatever the micro-batches.")
    weight_decay: NonNegativeFloat = Field(0.0, description="Decoupled weight decay of adamw, L2 term of rmsprop; the paper uses none.")
    max_grad_norm: PositiveFloat | None = Field(1.0, description="The gradient is scaled down to this norm; null never scales it.")
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="Number format of the computation. The weights and the optimizer stay in float32 either way."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass: less memory, more time.")
    micro_batch_tokens: PositiveInt = Field(4096, description="Tokens, padding included, computed at once; bounds the memory.")
    checkpoint_every: PositiveInt = Field(50, description="Optimizer steps between checkpoints; a kill loses at most these.")

    @field_validator("epochs", check_fields=False)  # the subclasses define epochs, each in its own type
    @classmethod
    def _stops_within_horizon(cls, epochs: float | tuple[float, ...], info: ValidationInfo) -> float | tuple[float, ...]:
        horizon = info.data.get("horizon_epochs")
        last = max(epochs, default=0) if isinstance(epochs, tuple) else epochs
        if horizon is not None and last > horizon:
            raise ValueError(f"the stop at {last:g} epochs is after horizon_epochs, {horizon:g}, where the schedule ends")
        return epochs


class TrainSection(OptimSection):
    lr: PerIteration = Field(5e-7, description="Peak learning rate, one value or one per iteration; the paper uses 5e-7, later 1e-7.")
    epochs: PerIteration = Field(2.0, description="Passes over the duels after which an iteration stops, one value or one per iteration.")


class SftSection(OptimSection):
    lr: PositiveFloat = Field(2e-5, description="Peak learning rate.")
    epochs: PositiveFloat = Field(1.0, description="Passes over the training rows.")
    optimizer: Literal["rmsprop", "adamw"] = Field("adamw", description="The usual choice for SFT is adamw.")


class BaselineSection(Section):
    kind: Literal["continued-sft"] = Field(
        "continued-sft",
        description="The control at equal cost: the start model trained further on the human replies, with as many floating-point "
        "operations as all self-play iterations together.",
    )
    lr: PositiveFloat | None = Field(None, description="Peak learning rate; the SFT stage's (or 1e-5 without one) when null.")
    batch_size: PositiveInt | None = Field(None, description="Rows per optimizer step; the SFT stage's (or train's) when null.")


class SamplingSection(Section):
    engine: Literal["transformers"] = Field("transformers", description="What runs the opponent while it samples.")
    temperature: NonNegativeFloat = Field(1.0, description="1 samples the model's own distribution; 0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus sampling; 1 keeps the whole distribution.")
    max_new_tokens: PositiveInt = Field(256, description="Longest reply; a reply cut here gets no end-of-turn token.")
    replies_per_prompt: PositiveInt = Field(
        1, description="Opponent replies per prompt in every iteration; more make the gradient less noisy."
    )
    batch_tokens: PositiveInt = Field(16384, description="Prompt and new tokens of the rows that are sampled together.")
    shard_rows: PositiveInt = Field(256, description="Prompts per committed file; a kill loses at most one.")

    @field_validator("replies_per_prompt")
    @classmethod
    def _replies_can_differ(cls, replies: int, info: ValidationInfo) -> int:
        if replies > 1 and info.data.get("temperature") == 0:
            raise ValueError("at temperature 0 all replies to a prompt are the same; use 1 reply or a temperature above 0")
        return replies


class ObjectiveSection(Section):
    loss: Literal["logistic", "hinge", "exponential", "correlation"] = Field(
        "logistic", description="The decreasing convex function ell of equation 4.7."
    )
    beta: PerIteration = Field(
        1.0,
        description="The lambda of equation 4.7, one value or one per iteration. The paper uses 0.1, then 5.0 in its last iteration; "
        "1.0 is the default because smaller values overshoot (docs/theory.md).",
    )
    window: PositiveInt = Field(2, description="Iterations whose replies are trained on, the newest first; the paper uses 2.")


class EvaluateSection(Section):
    answer_pattern: Regex | None = Field(
        None,
        description="Regular expression that finds the answer in a reply (its last match; group 1 if it has one). Exact match compares "
        "it with the human reply's. No exact match when null.",
    )
    greedy: bool = Field(False, description="Also answer the held-out prompts greedily and report exact_match_greedy.")
    metric: Metric | None = Field(
        None, description="Picks the best iteration and feeds `patience`; exact_match where there is a pattern, else nll_per_token."
    )

    @field_validator("greedy")
    @classmethod
    def _greedy_is_scored(cls, greedy: bool, info: ValidationInfo) -> bool:
        if greedy and info.data.get("answer_pattern", "invalid") is None:
            raise ValueError("greedy replies are scored by exact match, which needs evaluate.answer_pattern")
        return greedy

    @field_validator("metric")
    @classmethod
    def _metric_is_measured(cls, metric: str | None, info: ValidationInfo) -> str | None:
        if metric in ("exact_match", "exact_match_greedy") and info.data.get("answer_pattern", "invalid") is None:
            raise ValueError("needs evaluate.answer_pattern")
        if metric == "exact_match_greedy" and info.data.get("greedy") is False:
            raise ValueError("needs evaluate.greedy: true")
        return metric

    @property
    def chosen_metric(self) -> str:
        return self.metric or ("exact_match" if self.answer_pattern is not None else "nll_per_token")


class StopSection(Section):
    indistinguishable: bool = Field(
        True,
        description="End the game when the player cannot tell held-out human replies from the opponent's: the confidence interval "
        "of its duel accuracy reaches down to one half.",
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="Level of that two-sided interval (Wilson).")
    patience: PositiveInt | None = Field(
        None, description="End the game after this many iterations in a row without a new best value of `evaluate.metric`; never when null."
    )


class Recipe(Section):
    """A whole game. The fields are the top-level keys of the YAML file."""

    run_dir: Text = Field(description="Folder of this run: all state lives there.")
    # Below 2**32, because NumPy takes no larger seed.
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="Seeds the data subset, the order of batches and every reply.")
    model: ModelSection = Field(description="The model that plays.")
    data: DataSection = Field(description="Its SFT data.")
    sft: SftSection | None = Field(
        None,
        description="Fine-tune the model on the same rows before the game; `sft: {}` takes all defaults, null starts with the "
        "model as it is.",
    )
    iterations: PositiveInt = Field(3, description="Self-play iterations at most; the paper plays 4.")
    sampling: SamplingSection = Field(default_factory=SamplingSection, description="How the opponent's replies are drawn.")
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection, description="What the player minimises.")
    train: TrainSection = Field(default_factory=TrainSection, description="How the player is trained.")
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection, description="What is measured after every iteration.")
    stop: StopSection = Field(default_factory=StopSection, description="When the game ends.")
    baseline: BaselineSection | None = Field(
        None, description="A control to show beside the game; `baseline: continued-sft` is short for its defaults, null plays without."
    )
    showcase: Texts = Field(
        ("List the popular forms of transportation in Southampton.",),
        description="Prompts that every iteration answers, shown side by side; the default is the paper's running example.",
    )

    @field_validator("baseline", mode="before")
    @classmethod
    def _baseline_shorthand(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("objective", "train")
    @classmethod
    def _one_value_per_iteration(cls, section: T, info: ValidationInfo) -> T:
        iterations = info.data.get("iterations")
        wrong = [(key, value) for key, value in vars(section).items() if isinstance(value, tuple) and len(value) != iterations]
        if iterations is None or not wrong:
            return section
        # One error per option, each under its own key; a ValueError could carry one only.
        rule = "{count} values, but iterations is {iterations}; give one value, or one per iteration"
        raise ValidationError.from_exception_data(
            cls.__name__,
            [
                InitErrorDetails(
                    type=PydanticCustomError("contradiction", rule, {"count": len(value), "iterations": iterations}),
                    loc=(key,),
                    input=value,
                )
                for key, value in wrong
            ],
        )


def at_iteration(value: T | Sequence[T], iteration: int) -> T:
    """The value for iteration t (from 0) of an option that is a scalar or one value per iteration."""
    return value[iteration] if isinstance(value, (tuple, list)) else value  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------------- reading and writing


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe, overrides: Iterable[str] = ()) -> Recipe:
    """Read and check a recipe: a YAML file, a dict or a Recipe, with `section.key=value` overrides on top.

    Raises one UserError that lists every problem: the key, its value, the rule and the nearest valid key.
    """
    from_file = isinstance(source, (str, Path))
    values = _read_yaml(Path(source)) if from_file else _plain(source)
    overrides = list(overrides)
    for override in overrides:
        values = _apply_override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise _as_user_error(error, str(source) if from_file else "recipe", overrides) from None


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe: every key with the value that the run will use."""
    return yaml.dump(recipe.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _plain(value: Any) -> Any:
    """A private copy in plain dicts and lists, so that nothing of the caller's is shared; paths become text."""
    if isinstance(value, Section):
        value = value.model_dump(warnings=False)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


# The scalars of YAML 1.2's core schema. PyYAML's own (YAML 1.1) read `5e-7` as text, `no` as false, `1:30` as 90 and
# `2026-01-01` as a date.
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9]\d*)", list("-+0123456789")),
    "float": (r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)", list("-+0123456789.")),
    "merge": (r"<<", ["<"]),
}


class _Loader(yaml.SafeLoader):
    """Reads the scalars above, refuses a repeated key (PyYAML lets the last one win) and tags such as `!!int`."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None) not in (None, "!"):
            raise yaml.composer.ComposerError(None, None, f"the tag {event.tag!r} has no place in a recipe", event.start_mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here, and not when the dict is made, because by then `<<` has copied its keys into the node.
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in lines:
                raise yaml.composer.ComposerError(None, None, f"key {key.value!r} stands already in line {lines[name]}", key.start_mark)
            lines[name] = key.start_mark.line + 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that _Loader would read as something else."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})\Z"), _first)


def _parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; `where` names the text in the error."""
    loader = None
    try:
        loader = _Loader(text)  # the reader inside checks the characters already here
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"not valid YAML: {error.problem or error.context}", where=where + line) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an integer of thousands of digits
        raise UserError(f"not valid YAML: {error}", where=where) from None
    finally:
        if loader is not None:
            loader.dispose()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError("no such recipe file", where=str(path), remedy="check the path; recipes/tiny.yaml is a working example") from None
    except OSError as error:
        raise UserError(f"cannot read the recipe: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read the recipe: it is not UTF-8 text ({error.reason} at byte {error.start})", where=str(path)) from None
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        found = "nothing" if values is None else _show(values)
        raise UserError(f"a recipe is a mapping of keys to values, this is {found}", where=str(path), remedy="see docs/recipe.md")
    return values


def _override_path(override: str) -> str:
    return override.partition("=")[0].strip()


def _apply_override(values: dict[str, Any], override: str) -> dict[str, Any]:
    """`values` with one key set; sections on the way are copied or made, never changed in place."""
    keys = _override_path(override).split(".")
    if "=" not in override or not all(keys):
        raise UserError(f"override {override!r} is not of the form section.key=value")
    result = node = dict(values)
    for depth, key in enumerate(keys[:-1], 1):
        child = node.get(key)
        if isinstance(child, str) and keys[:depth] == ["baseline"]:
            child = {"kind": child}
        if child is not None and not isinstance(child, dict):
            raise UserError(f"override {override!r}: {'.'.join(keys[:depth])} is {_show(child)}, which has no keys of its own")
        node[key] = dict(child or {})
        node = node[key]
    node[keys[-1]] = _override_value(override)
    return result


def _override_value(override: str) -> Any:
    """The typed value: a quoted text, [list] or {mapping} is YAML, anything else a plain scalar, `#` and `: ` included."""
    text = override.partition("=")[2].strip()
    if text[:1] in ("[", "{", "'", '"'):
        try:
            return _parse_yaml(text, f"override {override!r}")
        except UserError as error:
            raise UserError(
                error.what, where=f"override {override!r}", remedy="a text that begins with [ { or a quote must itself stand in quotes"
            ) from None
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    try:
        return loader.construct_object(yaml.ScalarNode(tag, text))
    except (yaml.YAMLError, ValueError):  # `<<`, which only means something as a key, or an integer of thousands of digits
        return text
    finally:
        loader.dispose()


# ---------------------------------------------------------------------------------------------- telling what is wrong


def _as_user_error(error: ValidationError, where: str, overrides: list[str]) -> UserError:
    grouped: dict[str, list[Any]] = {}
    for item in error.errors(include_url=False):
        grouped.setdefault(_locate(item["loc"])[0], []).append(item)
    lines = []
    for key, items in grouped.items():
        # A union (scalar or list) gives one error per branch: the wrong elements say more than "not a number".
        elements = [item for item in items if any(isinstance(part, int) for part in _locate(item["loc"])[2])]
        lines += [_describe(item) + _culprit(key, overrides) for item in elements or items[:1]]
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    text = "\n  ".join(lines)
    return UserError(f"{count} in the recipe\n  {text}", where=where, remedy="every key is documented in docs/recipe.md")


def _culprit(key: str, overrides: list[str]) -> str:
    """Names the last override that touched the key, so that nobody searches for it in the file."""
    for override in reversed(overrides):
        path = _override_path(override)
        if f"{key}.".startswith(f"{path}.") or f"{path}.".startswith(f"{key}."):
            return f" (from the override {_show(override)})"
    return ""


def _locate(loc: tuple[str | int, ...]) -> tuple[str, FieldInfo | None, tuple[str | int, ...]]:
    """Dotted key, its field (None for an unknown key), and what pydantic says beyond it: union branches, list positions."""
    names: list[str] = []
    section: type[Section] | None = Recipe
    field: FieldInfo | None = None
    for depth, part in enumerate(loc):
        if section is None or part not in section.model_fields:
            rest = loc[depth:]
            if section is not None:
                return ".".join([*names, str(part)]), None, rest
            if field is not None and get_origin(field.annotation) is dict:
                names.append(str(part))
            return ".".join(names), field, rest
        names.append(str(part))
        field = section.model_fields[str(part)]
        section = section_of(field.annotation)
    return ".".join(names), field, ()


def _describe(item: Any) -> str:
    key, field, rest = _locate(item["loc"])
    if field is None:
        return _describe_unknown(key)
    if item["type"] == "missing":
        return f"{key}: required key is missing. {field.description}"
    if rest[-1:] == ("[key]",):
        return f"{key}: unknown column; {_suggest(key.rpartition('.')[2], list(get_args(Column)), 'standard columns')}"
    key += "".join(f"[{part}]" for part in rest if isinstance(part, int))
    value = _show(item["input"])
    if item["type"] == "value_error":
        return f"{key}: {value}: {item['ctx']['error']}"
    if item["type"] == "contradiction":
        return f"{key}: {value}: {item['msg']}"
    return f"{key}: {value} is refused; wanted: {_wanted(item, field, rest)}"


def _wanted(item: Any, field: FieldInfo, rest: tuple[str | int, ...]) -> str:
    """The rule in plain words, with a hint for the usual slips."""
    section, value = section_of(field.annotation), item["input"]
    if section is not None:
        return "a section, its keys indented below its name" + ("" if field.is_required() else "; leave it out for the defaults")
    words = _words_at(field, rest).replace("`", "")
    if item["type"] == "literal_error" and isinstance(value, str):
        guess = nearest(value, [str(choice) for choice in _choices(field.annotation)])
        return f"{words}; did you mean {guess}?" if guess else words
    if item["type"] == "string_type" and isinstance(value, (bool, int, float)):
        return f"{words}; put it into quotes"
    if isinstance(value, str) and item["type"] in ("int_type", "float_type", "bool_type"):
        return f"{words}, but this is text"
    return words


def _words_at(field: FieldInfo, rest: tuple[str | int, ...]) -> str:
    """The words for a whole option, or for one element where `rest` points into its list or mapping."""
    for part in (field.annotation, *map(_bare, get_args(field.annotation))):
        if get_origin(part) is dict and rest:
            return in_words(get_args(part)[1])
        if get_origin(part) is tuple and any(isinstance(step, int) for step in rest):
            return in_words(get_args(part)[0])
    return in_words(field.annotation, field.metadata)


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _describe_unknown(key: str) -> str:
    parent, _, name = key.rpartition(".")
    everywhere = [path for path, _ in walk_fields()]
    if key in everywhere:  # a top-level `train.lr: 1e-6`: fine as an override, not in a file
        return f"{key}: unknown key; in a recipe, keys of a section stand indented below its name"
    elsewhere = [path for path in everywhere if path.rpartition(".")[2] == name]
    if elsewhere:
        return f"{key}: unknown key; did you mean {' or '.join(elsewhere)}?"
    prefix = f"{parent}." if parent else ""
    here = [path.removeprefix(prefix) for path in everywhere if path.startswith(prefix) and "." not in path.removeprefix(prefix)]
    return f"{key}: unknown key; {_suggest(name, here, 'valid keys here', prefix)}"


def _suggest(name: str, valid: list[str], title: str, prefix: str = "") -> str:
    guess = nearest(name, valid)
    return f"did you mean {prefix}{guess}?" if guess else f"{title}: {', '.join(valid)}"


def _show(value: Any, limit: int = 100) -> str:
    """A value as the person wrote it, in one line of bounded length."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    try:
        text = repr(list(value) if isinstance(value, tuple) else value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        text = "an integer of thousands of digits"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


# ---------------------------------------------------------------------------------------------- walking and documenting


def section_of(annotation: Any) -> type[Section] | None:
    """The section class behind a field's annotation (`X` or `X | None`), or None for a plain value."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def walk_fields(section: type[Section] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every option as (dotted key, pydantic field), sections before their keys."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        child = section_of(field.annotation)
        if child is not None:
            yield from walk_fields(child, f"{prefix}{name}.")


def _choices(annotation: Any) -> list[Any]:
    """The values of every Literal inside an annotation."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in _choices(part)]


_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", NoneType: "null"}


def in_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type with its bounds in plain words: `number above 0, or null`. Errors and docs/recipe.md use the same words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return in_words(parts[0], parts[1:])
    if section_of(annotation) is not None:
        return "section, or null" if NoneType in parts else "section"
    if origin in (Union, UnionType):
        return ", or ".join(in_words(part) for part in parts)
    if origin is Literal:
        *most, last = (f"`{choice}`" for choice in parts)
        return f"{', '.join(most)} or {last}" if most else last
    if origin is tuple:
        return f"list of {re.sub('text|number', lambda noun: noun[0] + 's', in_words(parts[0]))}"
    if origin is dict:
        return f"mapping from {in_words(parts[0])} to {in_words(parts[1])}"
    return _WORDS[annotation] + _bounds(metadata)


def _bounds(metadata: Sequence[Any]) -> str:
    flat = [rule for item in metadata for rule in (item.metadata if isinstance(item, FieldInfo) else [item])]
    signs = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    words = [f"{word} {getattr(rule, sign)}" for sign, word in signs.items() for rule in flat if getattr(rule, sign, None) is not None]
    return f" {' and '.join(words)}" if words else ""


_INTRODUCTION = """\
# Recipe reference

A recipe is a YAML file that describes a whole game. `sparring run RECIPE.yaml` plays it; `sparring recipe RECIPE.yaml`
prints it with every default filled in. This is the smallest one:

```yaml
run_dir: runs/first
model: {path: builtin:tiny}
data: {path: builtin:tasks}
```

- Any key can be changed on the command line: `sparring run RECIPE.yaml train.lr=1e-6 objective.beta=[0.1,0.1,5] sft=null`.
- Where a list is allowed beside a number, it holds one value per iteration.
- Numbers and texts are what they look like, as in YAML 1.2: `5e-7` is a number, `"3"` and `no` are texts.
- Unknown or repeated keys, wrong types, values out of range and contradictions are refused before anything loads.
"""


def recipe_reference() -> str:
    """The page docs/recipe.md: every key with its type, default and description."""
    pages = [_INTRODUCTION, "## Top level\n", _table(Recipe)]
    for name, field in Recipe.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            pages += [f"## {name}\n", f"{field.description}\n", _table(section)]
    return "\n".join(pages)


def _table(section: type[Section]) -> str:
    rows = ["| key | type | default | description |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        key = f"[`{name}`](#{name})" if section_of(field.annotation) else f"`{name}`"
        cells = (key, _markdown(in_words(field.annotation, field.metadata)), _default(field), _markdown(field.description or ""))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Section):
        return "its defaults"
    if isinstance(value, float):
        return f"`{value:g}`".replace("e-0", "e-")
    return _markdown(f"`{value if isinstance(value, str) else _show(value)}`")


def _markdown(text: str) -> str:
    """Text for a table cell: `|` escaped everywhere, HTML and emphasis only outside `code`, where an escape would show."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()).replace("|", r"\|"))
    return "".join(piece if piece.startswith("`") else re.sub(r"([*<\[\]])", r"\\\1", piece) for piece in pieces)


if __name__ == "__main__":
    sys.stdout.write(recipe_reference())
