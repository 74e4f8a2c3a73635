"""Error messages for a recipe: pydantic's errors in terms of recipe keys, one line per problem, and the names of our options in other
trainers (TRL and the transformers Trainer, axolotl, LLaMA-Factory)."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from sparring.config.option_types import Section
from sparring.config.recipe import Recipe
from sparring.config.reference import description, in_words, section_of, show, types_inside, walk_fields
from sparring.errors import HIDDEN, UserError, nearest, suggestion


class _Place(NamedTuple):
    """Where in a recipe pydantic found a fault."""

    key: str
    field: FieldInfo | None  # None for an unknown key
    rest: tuple[str | int, ...] = ()  # the part of pydantic's location after the key: union branches, list positions

    @property
    def positions(self) -> list[int]:
        return [part for part in self.rest if isinstance(part, int)]


def as_user_error(error: ValidationError, where: str, overrides: list[str]) -> UserError:
    """All of pydantic's errors as one UserError: a line per key with its rule, and the override that set it."""
    grouped: dict[str, list[tuple[Any, _Place]]] = {}
    for item in error.errors(include_url=False):
        place = _locate(item["loc"])
        grouped.setdefault(place.key, []).append((item, place))
    lines = []
    for key, problems in grouped.items():
        # A union (scalar or list) gives one error per branch: those of the elements are more precise than "not a number".
        in_elements = [(item, place) for item, place in problems if place.positions]
        lines += [_describe(item, place) + _culprit(key, overrides) for item, place in in_elements or problems[:1]]
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    text = "\n  ".join(lines)
    return UserError(f"{count} in the recipe\n  {text}", where=where, remedy="`sparring docs recipe` lists every key")


def _culprit(key: str, overrides: list[str]) -> str:
    """Names the last override that set the key, so that the user does not search for it in the file."""
    for override in reversed(overrides):
        path = override_path(override)
        if f"{key}.".startswith(f"{path}.") or f"{path}.".startswith(f"{key}."):
            return f" (from the override {shown_override(override)})"
    return ""


def _locate(loc: tuple[str | int, ...]) -> _Place:
    names: list[str] = []
    section: type[Section] | None = Recipe
    field: FieldInfo | None = None
    for depth, part in enumerate(loc):
        if section is None:  # inside a plain option
            assert field is not None, "no section follows a key"
            if get_origin(field.annotation) is dict:
                names.append(str(part))
            return _Place(".".join(names), field, loc[depth:])
        if isinstance(part, int) and field is not None and get_origin(field.annotation) is tuple and loc[depth - 1] == names[-1]:
            names[-1] += f"[{part}]" if part else ""  # in a list of sections; a single one is not written as a list
            continue
        names.append(str(part))
        field = section.model_fields.get(str(part))
        if field is None:
            break
        section = section_of(field.annotation)
    return _Place(".".join(names), field)


def _describe(item: Any, place: _Place) -> str:
    key, field, rest = place
    if field is None:
        return _describe_unknown(key)
    if item["type"] == "missing":
        return f"{key}: required key is missing. {description(field)}"
    if rest[-1:] == ("[key]",):
        known = _choices(field.annotation)
        otherwise = f"standard columns: {', '.join(known)}"
        return f"{key}: unknown column; {suggestion(key.rpartition('.')[2], known, otherwise)}"
    key += "".join(f"[{position}]" for position in place.positions)
    value = show(item["input"])
    if item["type"] == "secret":
        return f"{key}: {item['msg']}"
    if item["type"] in ("value_error", "contradiction"):
        return f"{key}: {value}: {item['ctx'].get('error') or item['msg']}"
    return f"{key}: {value} is refused; wanted: {_wanted(item, field, place)}"


def _wanted(item: Any, field: FieldInfo, place: _Place) -> str:
    """The rule in words, with a hint for common mistakes."""
    value = item["input"]
    if section_of(field.annotation) is not None:
        return "a section, its keys indented below its name" + ("" if field.is_required() else "; leave it out for the defaults")
    words = _words_at(field, place).replace("`", "")
    if item["type"] == "literal_error" and isinstance(value, str):
        return words + suggestion(value, _choices(field.annotation), before="; ")
    if item["type"] == "string_type" and isinstance(value, (bool, int, float)):
        return f"{words}; put it into quotes"
    if isinstance(value, str) and item["type"] in ("int_type", "float_type", "bool_type"):
        return f"{words}, but this is text"
    return words


def _choices(annotation: Any) -> list[str]:
    """The values of every Literal inside an annotation."""
    return [str(choice) for part in types_inside(annotation) if get_origin(part) is Literal for choice in get_args(part)]


def _words_at(field: FieldInfo, place: _Place) -> str:
    """The type in words of a whole option, or of one element if the place is inside its list or mapping."""
    for part in types_inside(field.annotation):
        if get_origin(part) is dict and place.rest:
            return in_words(get_args(part)[1])
        if get_origin(part) is tuple and place.positions:
            return in_words(get_args(part)[0])
    return in_words(field.annotation, field.metadata)


def _describe_unknown(key: str) -> str:
    shown, key = key, re.sub(r"\[\d+\]", "", key)
    if before := re.match(r"([\w.]+):", key):  # YAML reads `{kind:majority}` as one word
        return f"{shown}: unknown key; a value comes after a colon and a space, as in '{before[1].rpartition('.')[2]}: ...'"
    parent, _, name = key.rpartition(".")
    everywhere = [path for path, _ in walk_fields()]
    if key in everywhere:  # a top-level `train.lr: 1e-6` is valid as an override, not in a file
        return f"{shown}: unknown key; in a recipe, keys of a section are indented below its name"
    elsewhere = [path for path in everywhere if path.rpartition(".")[2] == name]
    if elsewhere:
        return f"{shown}: unknown key; did you mean {' or '.join(elsewhere)}?"
    if theirs := hint(key):
        return f"{shown}: unknown key; {theirs}"
    prefix = f"{parent}." if parent else ""
    here = [path.removeprefix(prefix) for path in everywhere if path.startswith(prefix) and "." not in path.removeprefix(prefix)]
    guess = nearest(name, here)
    return f"{shown}: unknown key; " + (f"did you mean {prefix}{guess}?" if guess else f"valid keys here: {', '.join(here)}")


def override_path(override: str) -> str:
    """The dotted key that an override sets."""
    return override.partition("=")[0].strip()


def shown_override(override: str) -> str:
    """The override for a message; its value is hidden if it may contain a secret."""
    path = override_path(override)
    return show(f"{path}={HIDDEN}" if re.search(r"(?i)url|key|token|secret|password|command", path) else override)


# our key: their names
_NAMES = {
    "model.path": "model_name_or_path model_name base_model",
    "model.revision": "model_revision",
    "model.dtype": "torch_dtype",
    "model.chat_template": "template chat_template_jinja",
    "data.path": "dataset datasets dataset_name dataset_path dataset_dir train_file",
    "data.name": "dataset_config dataset_config_name",
    "data.split": "dataset_train_split dataset_split",
    "data.max_examples": "max_samples max_train_samples",
    "data.held_out": "val_size val_set_size test_split",
    "data.max_prompt_tokens": "max_prompt_length",
    "train.lr": "learning_rate",
    "train.epochs": "num_train_epochs num_epochs",
    "train.batch_size": "train_batch_size per_device_train_batch_size",
    "train.optimizer": "optim",
    "train.schedule": "lr_scheduler lr_scheduler_type",
    "train.warmup": "warmup_ratio warmup_steps",
    "train.max_grad_norm": "gradient_clipping",
    "train.precision": "bf16 fp16 mixed_precision",
    "train.checkpoint_every": "save_steps",
    "train.gradient_checkpointing": "activation_checkpointing",
    "train.lora": "use_peft peft_config adapter finetuning_type",
    "train.lora.rank": "lora_r lora_rank",
    "train.lora.alpha": "lora_alpha",
    "train.lora.dropout": "lora_dropout",
    "train.lora.targets": "lora_target lora_target_modules lora_target_linear target_modules",
    "train.lora.rslora": "use_rslora peft_use_rslora",
    "train.lora.dora": "use_dora peft_use_dora",
    "train.lora.quantize": "load_in_4bit quantization_bit",
    "sampling.replies_per_prompt": "num_generations",
    "sampling.max_new_tokens": "max_completion_length",
    "sampling.vllm.gpu_memory_utilization": "vllm_gpu_memory_utilization",
    "sampling.engine": "use_vllm infer_backend",
    "objective.loss": "loss_type pref_loss",
    "objective.beta": "pref_beta dpo_beta",
    "objective.nll_weight": "rpo_alpha pref_ftx",
    "run_dir": "output_dir",
    "track.name": "run_name wandb_name",
    "track.trackers": "report_to",
    "track.project": "wandb_project",
    "launcher.processes": "num_processes nproc_per_node",
    "launcher.strategy": "deepspeed fsdp",
}
_LENGTHS = "data.max_prompt_tokens and data.max_reply_tokens limit a row's two parts"
# their names: what there is instead
_INSTEAD = {
    "gradient_accumulation_steps": "train.batch_size counts the duels of one step on all devices together",
    "micro_batch_size": "train.batch_size counts the duels of one step; train.micro_batch_tokens says how many tokens are computed at once",
    "max_steps": "an iteration's length is train.epochs",
    "max_length max_seq_length max_seq_len sequence_len cutoff_len": _LENGTHS,
    "packing sample_packing": "duels are always packed",
    "ref_model": "the reference is the opponent: the player of the iteration before",
    "trust_remote_code": "code of a model's repository is never run",
    "flash_attention attn_implementation": "the fastest attention that fits is chosen automatically",
    "logging_steps": "every step is logged, in metrics.jsonl",
    "eval_steps eval_strategy": "players are measured once after every iteration",
    "push_to_hub": "`sparring push` does that after the game",
    "resume_from_checkpoint": "the same command resumes where it stopped",
    "load_in_8bit": "a frozen base is kept in 4 bits by `lora: {quantize: 4bit}`",
}
SAME = {name: key for key, names in _NAMES.items() for name in names.split()}
INSTEAD = {name: what for names, what in _INSTEAD.items() for name in names.split()}


def hint(key: str) -> str | None:
    """The key to use for the dotted `key` if its last part is another trainer's name; None otherwise.

    A key of the same section is preferred: `sft.learning_rate` is sft.lr.
    """
    section, _, name = key.rpartition(".")
    name = name.lower().replace("-", "_")
    if name not in SAME:
        return INSTEAD.get(name)
    ours = SAME[name]
    here = f"{section}.{ours.partition('.')[2]}"
    return f"that is {here if here in dict(walk_fields()) else ours} here"
