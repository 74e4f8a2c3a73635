"""The Recipe: its top-level keys, two short sections, and the rules between all sections."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from sparring.config.option_types import FrozenDict, Iterations, PathText, Section, Seed, SeedList, TemplateKwargs, Text, Texts, Trackers
from sparring.config.sections import (
    ControlSection,
    DataSection,
    EvaluateSection,
    LauncherSection,
    ObjectiveSection,
    OptimSection,
    SamplerSettings,
    SamplingSection,
    SftSection,
    StopSection,
    TargetSection,
    TrainSection,
    defaults_with_grades,
)
from sparring.config.specs import ENGINES, HUMAN_TARGET, ON_GPU
from sparring.own_code import is_own_code

Checked = TypeVar("Checked", bound=Section)


class ModelSection(Section):
    """The model that the game, or its SFT stage, starts from."""

    path: PathText
    """The SFT (or base) model: a local folder, a Hub id, a .gguf file, `package:NAME/FILE.gguf` for a file inside an installed Python
    package, or `builtin:tiny` for a generated toy model."""
    revision: Text | None = None
    """Branch, tag or commit of a Hub model."""
    dtype: Literal["bfloat16", "float32"] | None = None
    """Number format of the frozen model while it samples; bfloat16 halves its memory and rounds the weights that the replies are sampled
    from. When null, that of train.precision. The saved weights are float32 either way."""
    chat_template: PathText | None = None
    """A Jinja file that replaces the tokenizer's chat template, or gives one to a model that has none."""
    chat_template_kwargs: TemplateKwargs = Field(default_factory=FrozenDict)
    """Values for variables of the chat template, for example `{enable_thinking: false}`. Saved players carry them in their template."""


class TrackSection(Section):
    """Trackers through Accelerate. Their keys are in their own environment variable or login, never in a recipe."""

    trackers: Trackers
    """Some of tensorboard, trackio, wandb and mlflow; each needs the extra of its name (`sparring[wandb]`)."""
    project: Text = "sparring"
    """Project, or experiment, that the run is shown in. tensorboard has none."""
    name: Text | None = None
    """Name of the run there; that of the run directory when null."""


def in_full(key: str | None, value: Any) -> Any:
    """The section that a kind of launcher or control, or names of trackers, are short for."""
    if key in ("controls", "launcher") and isinstance(value, str):
        return {"kind": value}
    if key == "track" and isinstance(value, (str, list)):
        return {"trackers": [value] if isinstance(value, str) else value}
    return value


class Recipe(Section):
    """A whole game. The fields are the top-level keys of the YAML file."""

    run_dir: PathText
    """Run directory: holds all files of this run."""
    seed: Seed = 0
    """Seeds the data subset, the order of batches and every reply."""
    seeds: SeedList | None = None
    """Play the game once for each of these, in `run_dir`/seed-N, and show mean, spread and tests over them; replaces `seed`."""
    model: ModelSection
    """The model that plays."""
    data: DataSection
    """Its SFT data."""
    sft: SftSection | None = None
    """Fine-tune the model on the same rows before the game; `sft: {}` takes all defaults, null starts with the model as it is."""
    iterations: Iterations = 3
    """Maximum number of self-play iterations; the paper uses 4."""
    sampling: SamplingSection = Field(default_factory=SamplingSection)
    """How the opponent's replies are sampled."""
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection)
    """What the player minimises."""
    train: TrainSection = Field(default_factory=TrainSection)
    """How the player is trained."""
    target: TargetSection = Field(default_factory=TargetSection)
    """Which replies win."""
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    """What is measured after every iteration."""
    stop: StopSection = Field(default_factory=StopSection)
    """When the game ends."""
    controls: tuple[ControlSection, ...] = ()
    """Controls to compare the game with, one or a list of them; `controls: continued-sft` is short for its defaults, null trains none."""
    launcher: LauncherSection = Field(default_factory=lambda: LauncherSection(kind="inline"))
    """Where sampling (transformers engine), log-probs and training are computed: in this process (`launcher: inline`, the default) or in
    several. Results are the same up to rounding, and a run may resume under another launcher: docs/launching.md."""
    track: TrackSection | None = None
    """Also send metrics and scores to trackers; `track: tensorboard` or `track: [tensorboard, wandb]` is short for their defaults, null
    sends nothing. See docs/live.md."""
    showcase_system: Text | None = None
    """System turn before every showcase prompt."""
    showcase: Texts = ()
    """Prompts that every iteration answers, shown side by side. When empty, the first held-out ones."""
    report: bool = True
    """Render report.html after every iteration (once a minute at most) and at the end, which takes some seconds; `sparring report` renders
    it at any time."""

    @property
    def sampling_dtype(self) -> str:
        """The number format of the model that samples: `model.dtype`, else that of `train.precision`."""
        return self.model.dtype or {"bf16": "bfloat16", "fp32": "float32"}[self.train.number_format]

    @property
    def trained(self) -> dict[str, OptimSection]:
        """The sections that train a model of the game, by their keys."""
        return {"train": self.train, **({"sft": self.sft} if self.sft else {})}

    @property
    def sampler(self) -> SamplerSettings:
        """How a player replies."""
        return SamplerSettings(self.sampling, self.sampling_dtype, self.train.four_bit)

    @property
    def metric(self) -> str:
        """The metric that selects the best iteration."""
        has_answers = self.evaluate.answer_pattern is not None or self.target.checker is not None
        return self.evaluate.metric or ("exact_match" if has_answers else "nll_per_token")

    @property
    def shows_headroom(self) -> bool:
        """Whether the headroom is measured: by default for verified and majority targets."""
        return self.target.uses_grades if self.evaluate.headroom is None else self.evaluate.headroom

    @property
    def may_use_vllm(self) -> bool:
        """Whether a new run samples with vLLM if it is installed and there is a GPU. Not with a launcher, whose ranks sample on all GPUs;
        vLLM takes one, or `tensor_parallel` of them."""
        is_open = self.sampling.engine is None and self.launcher.kind == "inline"
        return is_open and not any(ENGINES[ON_GPU].refusals(self.train.lora))

    @property
    def grades_prompts(self) -> bool:
        """Whether replies to `data.prompts` can pass or fail: their answers are known, or a function of the user's own decides."""
        prompts = self.data.prompts
        return prompts is not None and (prompts.answer is not None or is_own_code(self.target.grading_checker))

    @property
    def trains_adapters_alone(self) -> bool:
        """Whether no stage trains the full weights."""
        return all(section.lora for section in self.trained.values())

    @model_validator(mode="before")
    @classmethod
    def _lora_shorthand(cls, values: Any) -> Any:
        """`lora:` at the top is short for `train.lora`."""
        if not isinstance(values, dict) or "lora" not in values:
            return values
        train = values.get("train") or {}
        if not isinstance(train, dict) or "lora" in train:
            return values  # if both are given, the one at the top is refused as an unknown key
        return {**{key: value for key, value in values.items() if key != "lora"}, "train": {**train, "lora": values["lora"]}}

    @model_validator(mode="before")
    @classmethod
    def _defaults_with_grades(cls, values: Any) -> Any:
        """Defaults of beta and NLL weight for verified and majority targets."""
        target, objective = (values.get(key) or {} if isinstance(values, dict) else None for key in ("target", "objective"))
        if not isinstance(target, dict) or not isinstance(objective, dict) or target.get("kind", HUMAN_TARGET) == HUMAN_TARGET:
            return values
        loss = objective.get("loss", ObjectiveSection.model_fields["loss"].default)
        fitting = defaults_with_grades(loss) if isinstance(loss, str) else {}
        return {**values, "objective": {**fitting, **objective}}

    @field_validator("run_dir")
    @classmethod
    def _expand_user(cls, run_dir: str) -> str:
        """Expand `~` as a shell does, since only some libraries do."""
        return os.path.expanduser(run_dir)

    @classmethod
    def faults(cls, option: str, value: Any, given: Mapping[str, Any]) -> Iterator[str]:
        if option == "seeds" and value is not None and given.get("seed"):
            yield f"the game is played once per seed, and seed is {given['seed']}; set one of the two"

    @field_validator("controls", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        values = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
        return tuple(in_full("controls", one) for one in values)

    @field_validator("controls")
    @classmethod
    def _can_be_trained(cls, controls: tuple[ControlSection, ...], info: ValidationInfo) -> tuple[ControlSection, ...]:
        controls = tuple(each for one in controls for each in one.each())
        folders = [one.folder for one in controls]
        twice = next((name for name in folders if folders.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two controls are called {twice}; give each its own name")
        target = info.data.get("target")
        if target is not None and any(one.kind == "rft" for one in controls):
            if not target.uses_grades:
                raise ValueError("rft needs graded replies: set target.kind to verified or majority, with a checker")
            if target.checker == "random":
                like = target.random_like
                raise ValueError(f"rft would learn from passes that checker random assigns by chance; train it in a game of {like}")
        return controls

    @field_validator("launcher", "track", mode="before")
    @classmethod
    def _in_full(cls, value: Any, info: ValidationInfo) -> Any:
        return in_full(info.field_name, value)

    @field_validator("objective", "train", "target", "evaluate", "stop")
    @classmethod
    def _fits_the_others(cls, section: Checked, info: ValidationInfo) -> Checked:
        """Raises one error per option, each under its own key; a ValueError could carry only one."""
        found = [*section.contradictions(info.data)]
        iterations, sampling = info.data.get("iterations"), info.data.get("sampling")
        if isinstance(section, (ObjectiveSection, TrainSection)) and iterations is not None:
            rule = f"values, but iterations is {iterations}; give one value, or one per iteration"
            lists = [(key, len(value)) for key, value in vars(section).items() if isinstance(value, tuple)]
            found += [(key, f"{count} {rule}") for key, count in lists if count != iterations]
        if isinstance(section, TrainSection) and sampling is not None:
            found += [("lora", why) for why in sampling.inner.refusals(section.lora)]
        details = [
            InitErrorDetails(type=PydanticCustomError("contradiction", "{why}", {"why": why}), loc=(key,), input=getattr(section, key))
            for key, why in found
        ]
        if details:
            raise ValidationError.from_exception_data("Recipe", details)
        return section
