"""The types of the options, and the base class of the sections."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from sparring.errors import holds_a_password, looks_like_a_key

T = TypeVar("T")


def _can_be_used(text: str) -> str:
    """Neither file names nor tokenizers accept lone surrogates or NUL."""
    if not text.strip():
        raise ValueError("must not be blank")
    wrong = re.search("[\x00\ud800-\udfff]", text)
    if wrong is not None:
        raise ValueError(f"holds U+{ord(wrong[0]):04X}, which is not a character of text")
    return text


def _must(fit: Callable[[str], object], rule: str) -> AfterValidator:
    """Refuses a text that does not `fit`, with the rule as the message."""

    def check(text: str) -> str:
        if not fit(text):
            raise ValueError(rule)
        return text

    return AfterValidator(check)


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a valid regular expression: {error}") from None
    return pattern


def _secret(message: str) -> PydanticCustomError:
    """An error that does not show the value, which may be a password."""
    return PydanticCustomError("secret", message)


def _base_url(url: str) -> str:
    parts = urlsplit(url)
    try:
        is_web = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is not a number, or above 65535
        is_web = False
    if not is_web:
        raise ValueError("not an http or https URL")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise _secret("a URL of a server has no user, password or parameters; a key belongs in the variable that api_key_env names")
    return url.rstrip("/")


def _environment_name(name: str) -> str:
    if looks_like_a_key(name) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise _secret("not the name of an environment variable; the key itself does not belong here")
    return name


def _not_empty(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise ValueError("must name at least one")
    if len(set(values)) < len(values):
        raise ValueError("contains duplicates")
    return values


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# Variables that a rendering sets for every chat template, and keywords of Jinja
GIVEN = ("messages", "tools", "documents", "add_generation_prompt")
WORDS = ("true", "false", "none", "not", "is", "in", "and", "or", "if", "else", "for", "loop", "self")


def _is_variable(name: str) -> bool:
    """Whether a chat template may have a variable of this name that can be given a value."""
    return bool(re.fullmatch(r"[a-z_][a-z0-9_]*", name)) and name not in (*GIVEN, *WORDS) and not name.endswith("_token")


class FrozenDict(dict[Any, Any]):
    """A dict that cannot be changed, so that a recipe can be hashed and shared."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a recipe is frozen; load a new one with the changed value")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]  # dict has None in its place
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:  # the default copy and unpickle would set items one by one
        return FrozenDict, (dict(self),)


Text = Annotated[str, AfterValidator(_can_be_used)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_list_to_tuple)]
Urls = Annotated[tuple[Annotated[Text, AfterValidator(_base_url)], ...], BeforeValidator(_list_to_tuple), AfterValidator(_not_empty)]
_PASSWORD = "holds a password or a key, as in a URL; a path or a Hub id has none, and the run directory stores the recipe"
PathText = Annotated[Text, _must(lambda path: not holds_a_password(path), _PASSWORD)]
# One path, or the paths of several files
Paths = PathText | Annotated[tuple[PathText, ...], BeforeValidator(_list_to_tuple), AfterValidator(_not_empty)]
EnvironmentName = Annotated[Text, AfterValidator(_environment_name)]
_NAME = "a name has lower-case letters, digits and hyphens, and begins with a letter"
FolderName = Annotated[Text, _must(re.compile("[a-z][a-z0-9-]*").fullmatch, _NAME)]
Regex = Annotated[Text, AfterValidator(_regular_expression)]
PositiveInt = Annotated[int, Field(gt=0)]
# Folders of iterations are numbered with three digits.
Iterations = Annotated[int, Field(gt=0, lt=1000)]
# Each prompt is in memory this many times at once; the published runs use one.
Replies = Annotated[int, Field(gt=0, le=1000)]
# Below 2**32, the limit of NumPy's seeds.
Seed = Annotated[int, Field(ge=0, lt=2**32)]
SeedList = Annotated[tuple[Seed, ...], BeforeValidator(_list_to_tuple), AfterValidator(_not_empty)]
FloatList = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_list_to_tuple), AfterValidator(_not_empty)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PerIteration = PositiveFloat | Annotated[tuple[PositiveFloat, ...], BeforeValidator(_list_to_tuple)]
WeightPerIteration = NonNegativeFloat | Annotated[tuple[NonNegativeFloat, ...], BeforeValidator(_list_to_tuple)]
FractionPerIteration = Fraction | Annotated[tuple[Fraction, ...], BeforeValidator(_list_to_tuple)]

Tracker = Literal["tensorboard", "trackio", "wandb", "mlflow"]
Trackers = Annotated[tuple[Tracker, ...], BeforeValidator(_list_to_tuple), AfterValidator(_not_empty)]
MetricName = Literal["exact_match", "exact_match_greedy", "nll_per_token", "nll_per_reply"]
ShapeName = Literal["auto", "messages", "prompt_completion", "alpaca", "sharegpt", "real_generated"]
ContextColumn = Literal["system", "history"]
if TYPE_CHECKING:  # readers look up any column's name in these mappings
    Column = str
    PairColumn = str
    PromptColumn = str
else:
    Column = Literal[
        "messages", "prompt", "completion", "instruction", "input", "output", "conversations", "real", "generated", ContextColumn
    ]
    PairColumn = Literal["prompt", "chosen", "rejected", ContextColumn]
    PromptColumn = Literal["messages", "conversations", "prompt", "instruction", "input", ContextColumn]
PromptColumns = Annotated[dict[PromptColumn, Text], AfterValidator(FrozenDict)]
PairColumns = Annotated[dict[PairColumn, Text], AfterValidator(FrozenDict)]
TemplateVariable = Annotated[str, _must(_is_variable, "not a variable of a chat template that can be given a value")]
Encodable = Annotated[str, _must(lambda text: not re.search("[\ud800-\udfff]", text), "contains half of a character (a lone surrogate)")]
TemplateKwargs = Annotated[dict[TemplateVariable, bool | int | float | Encodable | None], AfterValidator(FrozenDict)]
Columns = Annotated[dict[Column, Text], AfterValidator(FrozenDict)]


Contradiction = tuple[str, str]  # the key of an option, and why it contradicts one of another section
LARGEST = 3.4028234663852886e38  # of float32, which optimizers and losses compute in


class Section(BaseModel):
    """A frozen group of options that refuses unknown keys, silent type conversion, NaN and infinity. The text under an option describes it.

    Rules between options are in `faults`, under the later one, so that every problem is reported at once. Defaults are validated for
    that reason.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _keeps_the_rules(cls, value: Any, info: ValidationInfo) -> Any:
        largest = max((abs(one) for one in (value if isinstance(value, tuple) else [value]) if type(one) is float), default=0.0)
        if largest > LARGEST:
            raise ValueError(f"is beyond {LARGEST:.3g}, the largest 32-bit float")
        for why in cls.faults(info.field_name or "", value, info.data):
            raise ValueError(why)
        return value

    @classmethod
    def faults(cls, option: str, value: Any, given: Mapping[str, Any]) -> Iterable[str]:
        """What is wrong with the value of an option. `given`: the values of the options before it, as far as they are valid."""
        return ()

    def contradictions(self, others: Mapping[str, Any]) -> Iterable[Contradiction]:
        """Options that contradict those of `others`, the valid sections before this one in the recipe."""
        return ()

    @classmethod
    def is_set(cls, option: str, value: Any) -> bool:
        """Whether the value is not the default."""
        return bool(value != cls.model_fields[option].default)


def at_iteration(value: T | Sequence[T], iteration: int) -> T:
    """The value for iteration t (from 0) of an option that is a scalar or one value per iteration."""
    return value[iteration] if isinstance(value, (tuple, list)) else value  # type: ignore[return-value]  # an option is no sequence
