"""The recipe: what it takes, what it refuses and with which words, and that every option is documented and read."""

from __future__ import annotations

import ast
import copy
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sparring.config import (
    Column,
    Recipe,
    ShapeName,
    TrainSection,
    at_iteration,
    in_words,
    load_recipe,
    recipe_of_run,
    section_of,
    to_yaml,
    walk_fields,
)
from sparring.config.load import resolved
from sparring.config.messages import INSTEAD, SAME
from sparring.config.yaml_dialect import MOST_DEPTH, MOST_VALUES, dump_yaml, parse_yaml
from sparring.control import unlike_lr
from sparring.errors import UserError

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "sparring"
CONFIG = SOURCE / "config"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
FIELDS = dict(walk_fields())

SMALLEST = "run_dir: runs/x\nmodel: {path: m}\ndata: {path: d}\n"


def recipe_dict(**values: Any) -> dict[str, Any]:
    return {"run_dir": "runs/x", "model": {"path": "m"}, "data": {"path": "d"}, **values}


def with_value(key: str, value: Any) -> dict[str, Any]:
    """The smallest recipe with one dotted key set."""
    values = node = recipe_dict()
    *sections, name = key.split(".")
    for section in sections:
        node = node.setdefault(section, {"path": "p.jsonl"} if section == "pairs" else {})
    if key.startswith("controls.pairs."):
        values["controls"]["kind"] = "dpo"
    node[name] = value
    return values


def value_of(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for name in key.split("."):
        value = value[int(name)] if name.isdigit() else getattr(value, name)
    return value


def refusal(source: Any, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(source, overrides)
    return str(caught.value)


def problems(source: Any, *overrides: str) -> list[str]:
    """The lines of the refusal, one problem each."""
    return [line[2:] for line in refusal(source, *overrides).splitlines() if line.startswith("  ") and not line.startswith("  ->")]


@pytest.fixture
def recipe_file(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# ---------------------------------------------------------------------------------------------- what is taken


def test_defaults_are_the_papers() -> None:
    recipe = load_recipe(recipe_dict())
    assert (recipe.train.lr, recipe.train.epochs, recipe.train.batch_size, recipe.train.optimizer) == (5e-7, 2.0, 64, "rmsprop")
    assert (recipe.sampling.temperature, recipe.sampling.top_p, recipe.objective.window) == (1.0, 1.0, 2)
    assert (recipe.objective.loss, recipe.objective.beta, recipe.sft, recipe.controls) == ("logistic", 1.0, None, ())
    assert recipe.objective.nll_weight == 0.0 and not recipe.objective.learns_from_identical(0)


@pytest.mark.parametrize(
    ("objective", "t", "effective"),
    [
        ({"beta": [1, 2, 3]}, 1, {"loss": "logistic", "beta": 2.0}),
        ({"loss": "hinge", "nll_weight": [0, 0.5, 1]}, 0, {"loss": "hinge", "beta": 1.0}),
        ({"loss": "hinge", "nll_weight": [0, 0.5, 1]}, 2, {"loss": "hinge", "beta": 1.0, "nll_weight": 1.0}),
        ({"loss": "space"}, 0, {"loss": "space", "mu": 4.0}),
        ({"loss": "space", "mu": 1}, 0, {"loss": "space", "mu": 1.0}),
        ({"loss": "t-spin"}, 0, {"loss": "t-spin", "beta": 1.0, "history_weight": 0.0}),
        ({"loss": "t-spin"}, 1, {"loss": "t-spin", "beta": 1.0, "history_weight": 0.1}),
        ({"loss": "t-spin", "history_weight": [0, 0.2, 0.3]}, 2, {"loss": "t-spin", "beta": 1.0, "history_weight": 0.3}),
        ({"loss": "alpha-spin", "alpha": [1, 0.5, 0]}, 2, {"loss": "alpha-spin", "beta": 1.0, "alpha": 0.0}),
        ({"loss": "exponential", "beta": 0.1}, 0, {"loss": "exponential", "beta": 0.1}),
        ({"loss": "correlation", "nll_weight": 1}, 0, {"loss": "correlation", "beta": 1.0, "nll_weight": 1.0}),
        ({"loss": "space", "nll_weight": 0.5}, 1, {"loss": "space", "mu": 4.0, "nll_weight": 0.5}),
    ],
)
def test_what_has_an_effect_in_an_iteration(objective: dict[str, Any], t: int, effective: dict[str, Any]) -> None:
    """In the very bytes that the fingerprints of finished runs hold."""
    found = load_recipe(recipe_dict(objective=objective)).objective.at(t, 4).fingerprint()
    assert json.dumps(found) == json.dumps(effective)


@pytest.mark.parametrize(
    ("key", "value", "loaded"),
    [
        ("train.lr", 1, 1.0),
        ("train.lr", [1, 2e-7, 3], (1.0, 2e-7, 3.0)),
        ("train.lr", (1.0, 2.0, 3.0), (1.0, 2.0, 3.0)),
        ("train.epochs", [1, 2, 3], (1.0, 2.0, 3.0)),
        ("objective.beta", [0.1, 0.1, 5], (0.1, 0.1, 5.0)),
        ("objective.window", 99, 99),
        ("train.warmup", 0, 0.0),
        ("train.max_grad_norm", None, None),
        ("train.horizon_epochs", 2, 2.0),
        ("data.held_out", 7, 7),
        ("data.held_out", 0.25, 0.25),
        ("data.columns", {"prompt": "question"}, {"prompt": "question"}),
        ("sampling.temperature", 0, 0.0),
        ("showcase", [], ()),
        ("showcase", ["a", "b"], ("a", "b")),
        ("seed", 2**32 - 1, 2**32 - 1),
        ("run_dir", Path("runs/y"), "runs/y"),
        ("evaluate.answer_pattern", r"#### (-?\d+)", r"#### (-?\d+)"),
    ],
)
def test_taken(key: str, value: Any, loaded: Any) -> None:
    found = value_of(load_recipe(with_value(key, value)), key)
    assert found == loaded
    assert type(found) is type(loaded) or key == "data.columns"


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-7", 5e-7), ("5E-07", 5e-7), ("1", 1.0), ("1.5", 1.5), ("1.", 1.0), (".5", 0.5), ("+1e+0", 1.0), ("1e-6  # small", 1e-6)],
)
def test_numbers_of_a_file(recipe_file: Any, text: str, value: float) -> None:
    assert load_recipe(recipe_file(f"{SMALLEST}train:\n  lr: {text}\n")).train.lr == value


@pytest.mark.parametrize("text", ["no", "on", "1:30", "2026-01-01", "0x1F", "007", "1_000", "=", "'1e-6'", '"3"'])
def test_texts_of_a_file_are_not_taken_for_something_else(recipe_file: Any, text: str) -> None:
    """YAML 1.1 would make a boolean, a sexagesimal number, a date, a hexadecimal, an octal number or a fault of these."""
    source = recipe_file(f"{SMALLEST}showcase: [{text}]\n")
    assert load_recipe(source).showcase == (text.strip("'\""),)


def test_anchors_and_merge_keys(recipe_file: Any) -> None:
    recipe = load_recipe(recipe_file(f"{SMALLEST}sft: &one\n  lr: 1e-5\n  warmup: 0.2\ntrain:\n  <<: *one\n  lr: 1e-6\n"), ["sft.lr=3e-5"])
    assert (recipe.sft.lr, recipe.sft.warmup, recipe.train.lr, recipe.train.warmup) == (3e-5, 0.2, 1e-6, 0.2)


def test_an_override_below_an_alias_leaves_the_other_place_alone(recipe_file: Any) -> None:
    recipe = load_recipe(recipe_file(f"{SMALLEST}sft: &one {{lr: 1e-5}}\ntrain: *one\n"), ["sft.lr=3e-5"])
    assert (recipe.sft.lr, recipe.train.lr) == (3e-5, 1e-5)


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALLEST, encoding="utf-8-sig")
    assert load_recipe(path) == load_recipe(str(path)) == load_recipe({"run_dir": "runs/x", "model": {"path": "m"}, "data": {"path": "d"}})


@pytest.mark.parametrize("controls", ["continued-sft", {}, {"kind": "continued-sft"}, ["continued-sft"], [{}]])
def test_controls_shorthand(controls: Any) -> None:
    assert load_recipe(recipe_dict(controls=controls)).controls == load_recipe(recipe_dict(controls={"lr": None})).controls


DPO = {"kind": "dpo", "pairs": "p.jsonl"}


def test_several_controls() -> None:
    recipe = load_recipe(recipe_dict(controls=["continued-sft", {"name": "one-epoch", "epochs": 1}, DPO, {**DPO, "start": "best"}]))
    assert [control.folder for control in recipe.controls] == ["continued-sft", "one-epoch", "dpo", "spin-dpo"]
    assert [control.title for control in recipe.controls] == ["continued SFT", "one-epoch", "DPO", "SPIN, then DPO"]
    assert load_recipe(yaml.safe_load(to_yaml(recipe))) == recipe


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"controls": ["continued-sft", {}]}, "two controls are called continued-sft; give each its own name"),
        ({"controls": {"kind": "dpo"}}, "controls.pairs: null: dpo needs labelled pairs; set pairs to a file or a Hub id"),
        ({"controls": {"pairs": "p.jsonl"}}, "has no effect on continued-sft"),
        ({"controls": {"start": "best"}}, "controls.start: 'best': has no effect on continued-sft"),
        ({"controls": "sft"}, "wanted: continued-sft, dpo or rft; did you mean continued-sft?"),
        ({"controls": {"name": "dpo"}}, "controls.name: 'dpo': is the name of the control DPO; choose another name"),
        ({"controls": {"beta": 0.2}}, "controls.beta: 0.2: has no effect on continued-sft"),
        ({"controls": {"name": "sft"}}, "controls.name: 'sft': a run keeps something else under this name"),
        ({"controls": {"name": "../x"}}, "a name has lower-case letters, digits and hyphens"),
        ({"controls": ["continued-sft", {**DPO, "epochs": -1}]}, "controls[1].epochs: -1 is refused; wanted: number above 0"),
        ({"controls": ["continued-sft", {**DPO, "epoch": 1}]}, "controls[1].epoch: unknown key"),
        ({"controls": {**DPO, "pairs": {"path": "p", "columns": {"choose": "a"}}}}, "unknown column; did you mean chosen?"),
        ({"seed": 1, "seeds": [1, 2]}, "seeds: [1, 2]: the game is played once per seed, and seed is 1; set one of the two"),
        ({"seeds": []}, "seeds: []: must name at least one"),
        ({"seeds": [1, 1]}, "contains duplicates"),
        ({"seeds": [1, -1]}, "seeds[1]: -1 is refused; wanted: whole number at least 0"),
    ],
)
def test_controls_and_seeds_that_are_refused(values: dict[str, Any], problem: str) -> None:
    assert problem in refusal(recipe_dict(**values))


def test_sections_and_recipes_are_taken_as_sources() -> None:
    recipe = load_recipe(recipe_dict(train=TrainSection(lr=1e-6)), ["train.warmup=0.2"])
    assert (recipe.train.lr, recipe.train.warmup) == (1e-6, 0.2)
    assert load_recipe(recipe) == recipe
    assert load_recipe(recipe, ["seed=5"]).seed == 5
    assert "seed: -1 is refused" in refusal(recipe.model_copy(update={"seed": -1}))  # pydantic does not check an update


def test_at_iteration() -> None:
    assert [at_iteration((0.1, 0.1, 5.0), t) for t in range(3)] == [0.1, 0.1, 5.0]
    assert at_iteration(1.0, 2) == 1.0
    assert at_iteration([1, 2], 1) == 2


@pytest.mark.parametrize(
    ("evaluate", "metric"),
    [
        ({}, "nll_per_token"),
        ({"answer_pattern": "x"}, "exact_match"),
        ({"answer_pattern": "x", "metric": "nll_per_reply"}, "nll_per_reply"),
        ({"answer_pattern": "x", "greedy": True, "metric": "exact_match_greedy"}, "exact_match_greedy"),
    ],
)
def test_chosen_metric(evaluate: dict[str, Any], metric: str) -> None:
    assert load_recipe(recipe_dict(evaluate=evaluate)).metric == metric


# ---------------------------------------------------------------------------------------------- frozen, nothing shared


def test_the_callers_dict_is_neither_changed_nor_shared() -> None:
    values = recipe_dict(sft={"lr": 1e-5}, objective={"beta": [1.0, 2.0, 3.0]}, showcase=["a"], controls="continued-sft")
    values["data"]["columns"] = {"prompt": "q"}
    before = copy.deepcopy(values)
    recipe = load_recipe(values, ["sft.lr=2e-5", "data.columns.completion=a", "controls.lr=1e-5"])
    assert values == before
    values["data"]["columns"]["prompt"] = "changed"
    values["objective"]["beta"][0] = 9.0
    values["showcase"].append("b")
    assert (recipe.data.columns["prompt"], recipe.objective.beta, recipe.showcase) == ("q", (1.0, 2.0, 3.0), ("a",))


def test_a_recipe_cannot_be_changed() -> None:
    recipe = load_recipe(with_value("data.columns", {"prompt": "q"}))
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.lr = 1.0
    for change in (
        lambda columns: columns.update(prompt="x"),
        lambda columns: columns.__setitem__("prompt", "x"),
        lambda columns: columns.pop("prompt"),
        lambda columns: columns.clear(),
    ):
        with pytest.raises(TypeError, match="frozen"):
            change(recipe.data.columns)
    assert recipe.data.columns == {"prompt": "q"}


def test_a_recipe_is_hashable_and_can_be_copied_and_pickled() -> None:
    recipe = load_recipe(with_value("data.columns", {"prompt": "q"}))
    for twin in (copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe)), recipe.model_copy(deep=True)):
        assert twin == recipe
        assert hash(twin) == hash(recipe)


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        # types
        ("iterations", "3", "'3' is refused; wanted: whole number above 0 and below 1000, but this is text"),
        ("iterations", True, "true is refused; wanted: whole number above 0"),
        ("iterations", 2.0, "2.0 is refused; wanted: whole number above 0"),
        ("iterations", [3], "[3] is refused; wanted: whole number above 0"),
        ("iterations", None, "null is refused; wanted: whole number above 0"),
        ("train.lr", True, "true is refused; wanted: number above 0, or list of numbers above 0"),
        ("train.lr", "1e-6", "but this is text"),
        ("train.lr", {"a": 1}, "{'a': 1} is refused"),
        ("sft.lr", [1e-5], "[1e-05] is refused; wanted: number above 0"),
        ("train.warmup", [0.1], "[0.1] is refused; wanted: number at least 0 and at most 1"),
        ("train.gradient_checkpointing", 1, "1 is refused; wanted: true or false"),
        ("train.gradient_checkpointing", "yes", "'yes' is refused; wanted: true or false, but this is text"),
        ("model.revision", 123, "123 is refused; wanted: text, or null; put it into quotes"),
        ("data.held_out", True, "true is refused; wanted: whole number above 0, or number above 0 and below 1"),
        ("showcase", "a prompt", "'a prompt' is refused; wanted: list of texts"),
        ("data.columns", ["a"], "['a'] is refused; wanted: mapping from messages, prompt"),
        ("train", 5, "5 is refused; wanted: a section, its keys indented below its name; leave it out for the defaults"),
        ("train", None, "null is refused; wanted: a section"),
        ("sft", [1], "[1] is refused; wanted: a section"),
        ("model", "path", "'path' is refused; wanted: a section, its keys indented below its name"),
        ("controls", 5, "5 is refused; wanted: a section"),
        # ranges
        ("seed", -1, "-1 is refused; wanted: whole number at least 0 and below 4294967296"),
        ("seed", 2**32, "4294967296 is refused"),
        ("train.lr", 0, "0 is refused; wanted: number above 0"),
        ("train.lr", float("nan"), "nan is refused; wanted: number above 0"),
        ("train.lr", float("inf"), "inf is refused; wanted: number above 0"),
        ("train.lr", 10**400, " is refused; wanted: number above 0"),
        ("train.warmup", float("nan"), "nan is refused; wanted: number at least 0 and at most 1"),
        ("train.warmup", 1.1, "1.1 is refused; wanted: number at least 0 and at most 1"),
        ("sampling.temperature", float("inf"), "inf is refused; wanted: number at least 0"),
        ("sampling.temperature", -0.1, "-0.1 is refused; wanted: number at least 0"),
        ("sampling.top_p", 0, "0 is refused; wanted: number above 0 and at most 1"),
        ("stop.confidence", 0.5, "0.5 is refused; wanted: number above 0.5 and below 1"),
        ("data.held_out", 0, "0 is refused; wanted: whole number above 0, or number above 0 and below 1"),
        ("data.held_out", 1.0, "1.0 is refused; wanted: whole number above 0, or number above 0 and below 1"),
        ("objective.window", 0, "0 is refused; wanted: whole number above 0"),
        # choices
        ("train.schedule", "cosin", "'cosin' is refused; wanted: linear, cosine or constant; did you mean cosine?"),
        ("controls", "continued", "'continued' is refused; wanted: continued-sft"),
        # blank texts
        ("run_dir", "", "'': must not be blank"),
        ("run_dir", " \n", r"' \n': must not be blank"),
        ("data.split", "", "'': must not be blank"),
        ("evaluate.answer_pattern", "", "'': must not be blank"),
        ("evaluate.answer_pattern", "(a", "'(a': not a valid regular expression: missing ), unterminated subpattern at position 0"),
        # contradictions
        ("objective.beta", [0.1, 1], "[0.1, 1.0]: 2 values, but iterations is 3; give one value, or one per iteration"),
        ("train.lr", [], "[]: 0 values, but iterations is 3"),
        ("train.epochs", [1, 1, 1, 1], "[1.0, 1.0, 1.0, 1.0]: 4 values, but iterations is 3"),
        ("evaluate.metric", "exact_match", "'exact_match': needs evaluate.answer_pattern"),
        ("evaluate.greedy", True, "true: greedy replies are scored by exact match, which needs evaluate.answer_pattern"),
    ],
)
def test_refused(key: str, value: Any, rule: str) -> None:
    (problem,) = problems(with_value(key, value))
    found, _, text = problem.partition(": ")
    assert found == ("controls.kind" if value == "continued" else key)
    assert rule in text


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"train": {"horizon_epochs": 1}}, "train.epochs: 2.0: the stop at 2 epochs is after horizon_epochs, 1, where the schedule ends"),
        ({"train": {"horizon_epochs": 1.5, "epochs": [1, 2, 1]}}, "train.epochs: [1, 2, 1]: the stop at 2 epochs is after"),
        ({"sft": {"horizon_epochs": 0.5}}, "sft.epochs: 1.0: the stop at 1 epochs is after horizon_epochs, 0.5"),
        (
            {"data": {"path": "d", "max_examples": 200, "held_out": 200}},
            "data.held_out: 200: leaves no rows to train on, because max_examples is 200",
        ),
        ({"sampling": {"temperature": 0, "replies_per_prompt": 2}}, "sampling.replies_per_prompt: 2: at temperature 0 all replies"),
        (
            {"evaluate": {"answer_pattern": "x", "metric": "exact_match_greedy"}},
            "evaluate.metric: 'exact_match_greedy': needs evaluate.greedy: true",
        ),
        ({"objective": {"beta": [1, -1, "x"]}}, "objective.beta[1]: -1 is refused; wanted: number above 0"),
        ({"objective": {"beta": [1, 1, "x"]}}, "objective.beta[2]: 'x' is refused; wanted: number above 0, but this is text"),
        ({"train": {"lr": [1, True, 1]}}, "train.lr[1]: true is refused; wanted: number above 0"),
        ({"showcase": ["a", " "]}, "showcase[1]: ' ': must not be blank"),
        ({"showcase": ["a", 3]}, "showcase[1]: 3 is refused; wanted: text; put it into quotes"),
        ({"data": {"path": "d", "columns": {"prompt": 3}}}, "data.columns.prompt: 3 is refused; wanted: text; put it into quotes"),
        ({"data": {"path": "d", "columns": {"prompt": ""}}}, "data.columns.prompt: '': must not be blank"),
    ],
)
def test_contradictions_and_elements(values: dict[str, Any], problem: str) -> None:
    assert problems(recipe_dict(**values))[0].startswith(problem)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"itertions": 3}, "itertions: unknown key; did you mean iterations?"),
        ({"train": {"leaning_rate": 1, "schedul": "linear"}}, "train.schedul: unknown key; did you mean train.schedule?"),
        ({"sft": {"warm_up": 0.1}}, "sft.warm_up: unknown key; did you mean sft.warmup?"),
        ({"controls": {"batchsize": 1}}, "controls.batchsize: unknown key; did you mean controls.batch_size?"),
        ({"beta": 1}, "beta: unknown key; did you mean objective.beta or controls.beta?"),
        ({"lr": 1}, "lr: unknown key; did you mean sft.lr or train.lr or controls.lr or controls.search.lr?"),
        ({"objective": {"lr": 1}}, "objective.lr: unknown key; did you mean sft.lr or train.lr or controls.lr or controls.search.lr?"),
        ({"train.lr": 1}, "train.lr: unknown key; in a recipe, keys of a section are indented below its name"),
        ({"stop": {"zzz": 1}}, "stop.zzz: unknown key; valid keys here: indistinguishable, confidence, patience"),
        ({"data": {"path": "d", "columns": {"promt": "q"}}}, "data.columns.promt: unknown column; did you mean prompt?"),
        ({"data": {"path": "d", "columns": {"zzz": "q"}}}, "data.columns.zzz: unknown column; standard columns: messages, prompt"),
        ({1: 2}, "1: unknown key; valid keys here: run_dir"),
        (
            {"stop": {"confidence:0.9": None}},
            "stop.confidence:0.9: unknown key; a value comes after a colon and a space, as in 'confidence: ...'",
        ),
        ({"train": {"lora": {}}, "lora": {}}, "lora: unknown key"),
        ({"train": {"lora": {"rnk": 4}}}, "train.lora.rnk: unknown key; did you mean train.lora.rank?"),
    ],
)
def test_unknown_keys_name_the_nearest(values: dict[Any, Any], problem: str) -> None:
    assert any(line.startswith(problem) for line in problems({**recipe_dict(), **values}))


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("learning_rate", "that is train.lr here"),
        ("train.learning_rate", "that is train.lr here"),
        ("sft.learning_rate", "that is sft.lr here"),
        ("controls.learning_rate", "that is controls.lr here"),
        ("output_dir", "that is run_dir here"),
        ("train.num_train_epochs", "that is train.epochs here"),
        ("sft.per_device_train_batch_size", "that is sft.batch_size here"),
        ("train.Gradient-Accumulation-Steps", "train.batch_size counts the duels"),
        ("dataset", "that is data.path here"),
        ("base_model", "that is model.path here"),
        ("sft.lora_r", "that is sft.lora.rank here"),
        ("train.lora.lora_alpha", "that is train.lora.alpha here"),
        ("lora_target_modules", "that is train.lora.targets here"),
        ("data.max_seq_length", "data.max_prompt_tokens and data.max_reply_tokens"),
    ],
)
def test_names_of_other_trainers_are_translated(key: str, hint: str) -> None:
    assert any(line.startswith(f"{key}: unknown key; {hint}") for line in problems(with_value(key, 1)))


@pytest.mark.parametrize("name", sorted({*SAME, *INSTEAD}))
def test_another_trainers_name_leads_to_keys_that_exist(name: str) -> None:
    assert name not in FIELDS and (name in SAME) != (name in INSTEAD)
    named = [SAME[name]] if name in SAME else re.findall(r"\b(?:data|train|sampling)\.[a-z_]+", INSTEAD[name])
    assert set(named) <= set(FIELDS)
    assert any(line.startswith(f"{name}: unknown key; ") and all(key in line for key in named) for line in problems(with_value(name, 1)))


def test_a_search_is_a_control_for_every_value() -> None:
    recipe = load_recipe(
        recipe_dict(controls=[{"kind": "continued-sft"}]), ["controls.search={lr: [1e-5, 2.5e-4, 0.003]}", "controls.epochs=2"]
    )
    assert [(one.folder, one.lr, one.epochs, one.search) for one in recipe.controls] == [
        ("continued-sft-1e-5", 1e-5, 2, None),
        ("continued-sft-25e-5", 2.5e-4, 2, None),
        ("continued-sft-3e-3", 0.003, 2, None),
    ]
    assert load_recipe(yaml.safe_load(to_yaml(recipe))) == recipe
    named = load_recipe(recipe_dict(controls=[{**DPO, "name": "pairs", "search": {"lr": [1e-6, 1e-5]}}, "continued-sft"]))
    assert [one.folder for one in named.controls] == ["pairs-1e-6", "pairs-1e-5", "continued-sft"]


@pytest.mark.parametrize(
    ("search", "problem"),
    [
        ({"lr": [1e-5]}, "controls.search.lr: [1e-05] is refused"),
        ({"lr": [1e-5, 1e-5]}, "controls.search.lr: [1e-05, 1e-05]: contains duplicates"),
        ({"lr": [1e-5, -1]}, "controls.search.lr[1]: -1 is refused; wanted: number above 0"),
        ({"beta": [1, 2]}, "controls.search.lr: required key is missing"),
    ],
)
def test_a_search_that_is_none(search: dict[str, Any], problem: str) -> None:
    assert problems(recipe_dict(controls={"search": search}))[0].startswith(problem)


def test_a_learning_rate_is_searched_or_given() -> None:
    assert "controls.search: {'lr': [1e-05, 0.0001]}: lr is given as 1e-06" in refusal(
        recipe_dict(controls={"lr": 1e-6, "search": {"lr": [1e-5, 1e-4]}})
    )


@pytest.mark.parametrize(
    ("changes", "lr", "batch_size"),
    [
        ({}, 1e-5, 64),
        ({"sft": {"lr": 3e-5, "batch_size": 8}}, 3e-5, 8),
        ({"sft": {"lr": 3e-5}, "controls": {"lr": 1e-3, "batch_size": 4}}, 1e-3, 4),
        ({"controls": "DPO", "train": {"lr": [2e-6, 1e-6, 1e-6], "batch_size": 16}, "sft": {"batch_size": 8}}, 2e-6, 16),
    ],
)
def test_resolved_says_what_a_control_takes(changes: dict[str, Any], lr: float, batch_size: int) -> None:
    changes = {"controls": "continued-sft", **changes}
    (control,) = resolved(load_recipe(recipe_dict(**{**changes, **({"controls": DPO} if changes["controls"] == "DPO" else {})}))).controls
    assert (control.lr, control.batch_size) == (lr, batch_size)


@pytest.mark.parametrize(
    ("train_lr", "controls", "unlike"),
    [
        (1e-4, "continued-sft", True),
        (2e-6, "continued-sft", True),
        (3e-5, "continued-sft", False),
        (1e-4, {"lr": 1e-4}, False),
        (1e-4, {"search": {"lr": [1e-6, 1e-5]}}, False),
        (1e-4, DPO, False),
    ],
)
def test_a_control_of_another_learning_rate_is_told(train_lr: float, controls: Any, unlike: bool) -> None:
    recipe = load_recipe(recipe_dict(train={"lr": train_lr}, controls=controls))
    told = unlike_lr(recipe, recipe.controls[0])
    assert (told is not None) == unlike
    if told is not None:
        assert f"its learning rate is 1e-05 and the game's {train_lr:g}" in told and "controls.search='{lr: [1e-05," in told


@pytest.mark.parametrize("track", ["wandb", ["wandb"], {"trackers": ["wandb"]}])
def test_track_shorthand(track: Any) -> None:
    found = load_recipe({**recipe_dict(), "track": track}, ["track.project=mine"]).track
    assert found is not None and found.trackers == ("wandb",) and found.project == "mine" and found.name is None


@pytest.mark.parametrize(
    ("track", "problem"),
    [
        ([], "track.trackers: []: must name at least one"),
        (["wandb", "wandb"], "track.trackers: ['wandb', 'wandb']: contains duplicates"),
        ("tensorbord", "track.trackers[0]: 'tensorbord' is refused; wanted: tensorboard, trackio, wandb or mlflow"),
        (3, "track: 3 is refused"),
    ],
)
def test_trackers_that_are_none(track: Any, problem: str) -> None:
    assert problems({**recipe_dict(), "track": track})[0].startswith(problem)


@pytest.mark.parametrize("key", sorted(FIELDS))
def test_every_misspelt_key_is_led_back(key: str) -> None:
    """Whatever the depth: the last letter dropped, the message names the right key."""
    section, _, name = key.rpartition(".")
    values = with_value(f"{section}.{name[:-1]}_".lstrip("."), 1)
    unknown = [line for line in problems(values) if "unknown key" in line]
    assert len(unknown) == 1
    assert unknown[0].endswith(f"did you mean {key}?") or len(name) < 3 or key == "seeds"  # "seed_" is as near to seed


@pytest.mark.parametrize("key", [key for key, field in FIELDS.items() if not section_of(field.annotation)])
def test_every_option_refuses_a_wrong_type_under_its_clean_name(key: str) -> None:
    # the only key of a section that has a required one
    (problem,) = (found for found in problems(with_value(key, {"wrong": object})) if "required key" not in found)
    assert problem.startswith((f"{key}: {{'wrong': ", f"{key}.wrong: unknown column", f"{key}.wrong: <class 'object'> is refused"))
    assert "[" not in problem.partition(":")[0]


def test_missing_keys() -> None:
    assert problems({}) == [
        "run_dir: required key is missing. Run directory: holds all files of this run.",
        "model: required key is missing. The model that plays.",
        "data: required key is missing. Its SFT data.",
    ]
    assert problems({**recipe_dict(), "model": {}})[0].startswith("model.path: required key is missing. The SFT (or base) model")


def test_all_problems_at_once() -> None:
    """Also the contradictions, next to wrong types in the same section and elsewhere."""
    values = recipe_dict(
        seed=True,
        trian={},
        sft={"lr": "x", "foo": 1, "horizon_epochs": 0.5},
        objective={"beta": [1.0], "loss": "hing"},
        train={"lr": [1.0, 2.0], "epochs": [3.0], "horizon_epochs": 4},
        evaluate={"metric": "exact_match"},
        controls={"lr": -1},
    )
    message = refusal(values)
    assert message.startswith("recipe: 10 problems in the recipe\n")
    assert message.endswith("  -> `sparring docs recipe` lists every key")
    keys = {line.partition(":")[0] for line in problems(values)}
    assert keys == {
        *("seed", "trian", "sft.lr", "sft.foo", "sft.epochs", "objective.loss", "train.lr", "train.epochs"),
        *("evaluate.metric", "controls.lr"),
    }


def test_a_wrong_section_hides_its_contradictions_only() -> None:
    keys = [line.partition(":")[0] for line in problems(recipe_dict(iterations="3", train={"lr": [1.0]}, objective={"beta": [0.0]}))]
    assert keys == ["iterations", "objective.beta[0]"]  # whether one lr is right cannot be known


def test_long_values_are_cut() -> None:
    assert len(problems(with_value("seed", "9" * 5000))[0]) < 250
    assert problems(with_value("seed", 10**5000))[0].startswith("seed: an integer of thousands of digits is refused")


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nmodel:\n  path: a\n  path: b\n", ", line 4: not valid YAML: duplicate key 'path', first defined on line 3"),
        ("seed: 1\n'seed': 2\n", ", line 2: not valid YAML: duplicate key 'seed', first defined on line 1"),
        ("train: {lr: 1, lr: 2}\n", ", line 1: not valid YAML: duplicate key 'lr', first defined on line 1"),
        ("seed: 1\n  x: [\n", ", line 2: not valid YAML: mapping values are not allowed here"),
        ("seed: [1\n", "a bracket or a quote may not be closed"),
        ('evaluate: {answer_pattern: "\\d"}\n', "unknown escape character 'd'\n  -> put a regular expression in single quotes"),
        ("seed: 1\n\tx: 1\n", ", line 2: not valid YAML: found character '\\t' that cannot start any token\n  -> indent with spaces"),
        ("seed: 1\n---\nseed: 2\n", "not valid YAML: but found another document"),
        ("seed: !!int x\n", ", line 1: not valid YAML: the tag 'tag:yaml.org,2002:int' is not allowed in a recipe"),
        ("a: !!python/object/apply:os.system [ls]\n", "is not allowed in a recipe"),
        ("seed: *x\n", "not valid YAML: found undefined alias 'x'"),
        ("seed: \x07\n", "not valid YAML: unacceptable character"),
        ("[a]: 1\n", "not valid YAML: found unhashable key"),
        (f"seed: {'9' * 5000}\n", "not valid YAML: a whole number of 5,000 digits; no option takes more than 18"),
        ("", "a recipe is a mapping of keys to values, this is nothing"),
        ("- a\n", "a recipe is a mapping of keys to values, this is ['a']"),
        ("hello\n", "a recipe is a mapping of keys to values, this is 'hello'"),
    ],
)
def test_broken_files(recipe_file: Any, text: str, message: str) -> None:
    path = recipe_file(text)
    found = refusal(path)
    assert found.startswith(str(path))
    assert message in found


def test_recursive_alias(recipe_file: Any) -> None:
    assert "*a refers to a value that contains it" in refusal(recipe_file(f"{SMALLEST}train: &a {{sub: *a, lr: *a}}\n"))


def lists_of_aliases(levels: int, width: int) -> str:
    """Nested `width ** levels` values, in a few lines."""
    lines = [f"- &a0 [{','.join(['x'] * width)}]"]
    lines += [f"- &a{level} [{','.join([f'*a{level - 1}'] * width)}]" for level in range(1, levels)]
    return "showcase:\n" + "\n".join(f"  {line}" for line in lines) + "\n"


def merged_mappings(levels: int, width: int) -> str:
    lines = ["x0: &m0 {a: 1, b: 2}"]
    return "\n".join([*lines, *(f"x{n}: &m{n} {{<<: [{','.join([f'*m{n - 1}'] * width)}]}}" for n in range(1, levels))]) + "\n"


@pytest.mark.parametrize("make", [lists_of_aliases, merged_mappings])
@pytest.mark.parametrize(("levels", "width"), [(9, 9), (30, 2), (3, 200), (12, 4)])
def test_a_text_that_grows_without_end_is_refused_while_it_is_read(
    make: Callable[[int, int], str], levels: int, width: int, recipe_file: Any
) -> None:
    message = refusal(recipe_file(SMALLEST + make(levels, width)))
    assert re.search(", line [0-9]+: not valid YAML: (more than 10,000 values, counting the values of aliases|nested more than)", message)


@given(st.integers(1, 9), st.integers(1, 9))
def test_what_aliases_stand_for_is_counted(levels: int, width: int) -> None:
    sizes = [1 + width]
    while len(sizes) < levels:
        sizes.append(1 + width * sizes[-1])
    is_allowed = 3 + sum(sizes) <= MOST_VALUES  # the mapping, its key and its list
    try:
        assert len(parse_yaml(lists_of_aliases(levels, width), "here")["showcase"]) == levels and is_allowed
    except UserError:
        assert not is_allowed


@pytest.mark.parametrize("depth", [MOST_DEPTH + 1, 1000, 20_000])
@pytest.mark.parametrize(("opening", "closing"), ["[]", ("{a: ", "}")])
def test_nesting_without_end(opening: str, closing: str, depth: int, recipe_file: Any) -> None:
    deep = opening * depth + closing * depth
    assert f"not valid YAML: nested more than {MOST_DEPTH} deep" in refusal(recipe_file(f"{SMALLEST}showcase: {deep}\n"))
    assert f"nested more than {MOST_DEPTH} deep" in refusal(recipe_dict(), f"showcase={deep}")


def test_a_text_of_megabytes(recipe_file: Any) -> None:
    assert "the limit for such a file is 1,048,576" in refusal(recipe_file(f"{SMALLEST}# {'x' * 2**20}\n"))


@pytest.mark.parametrize("option", ["seed", "iterations", "train.lr", "objective.beta", "run_dir", "sampling.max_new_tokens"])
@pytest.mark.parametrize("digits", [19, 400, 5000])
@pytest.mark.parametrize("form", ["{}", "-{}", "[{}]"])
def test_numbers_of_many_digits_on_the_command_line(option: str, digits: int, form: str) -> None:
    message = refusal(recipe_dict(), f"{option}={form.format('9' * digits)}")
    assert f"a whole number of {digits:,} digits; no option takes more than 18" in message and len(message) < 400


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_recipe_that_is_a_pipe_or_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", Path("/dev/zero")):
        assert "not a regular file" in refusal(path)


def test_unreadable_files(tmp_path: Path) -> None:
    assert "no such recipe file" in refusal(tmp_path / "none.yaml")
    assert "cannot read the recipe: Is a directory" in refusal(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"run_dir: \xff\xe9\n")
    assert "it is not UTF-8 text" in refusal(tmp_path / "latin.yaml")


def test_the_file_is_named_with_its_problems(recipe_file: Any) -> None:
    path = recipe_file(f"{SMALLEST}seed: x\n")
    assert refusal(path).startswith(f"{path}: 1 problem in the recipe\n  seed: 'x' is refused")


# ---------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.lr=1e-6", "train.lr", 1e-6),
        ("train.lr = 1", "train.lr", 1.0),
        ("objective.beta=[0.1,1,5e0]", "objective.beta", (0.1, 1.0, 5.0)),
        ("sft=null", "sft", None),
        ("sft=", "sft", None),
        ("sft={}", "sft.lr", 2e-5),
        ("sft={lr: 1e-5, warmup: 0}", "sft.lr", 1e-5),
        ("sft.lr=1e-5", "sft.lr", 1e-5),
        ("controls=continued-sft", "controls.0.kind", "continued-sft"),
        ("controls.lr=1e-5", "controls.0.lr", 1e-5),
        ("controls=[continued-sft, {kind: dpo, pairs: p.jsonl}]", "controls.1.pairs.path", "p.jsonl"),
        ("seeds=[3, 0]", "seeds", (3, 0)),
        ("data.columns.prompt=question", "data.columns", {"prompt": "question"}),
        ("model.path=a=b", "model.path", "a=b"),
        ("model.path=a: b", "model.path", "a: b"),
        ("model.revision='123'", "model.revision", "123"),
        ("run_dir=runs/a #2", "run_dir", "runs/a #2"),
        ("run_dir=<<", "run_dir", "<<"),
        ("run_dir=*x", "run_dir", "*x"),
        ("run_dir=!x", "run_dir", "!x"),
        (r"evaluate.answer_pattern=#### (-?\d+)", "evaluate.answer_pattern", r"#### (-?\d+)"),
        (r"evaluate.answer_pattern='[0-9]+'", "evaluate.answer_pattern", "[0-9]+"),
        ("train.gradient_checkpointing=true", "train.gradient_checkpointing", True),
        ("showcase=[one, 'two, three']", "showcase", ("one", "two, three")),
        ("showcase=[]", "showcase", ()),
    ],
)
def test_overrides(override: str, key: str, value: Any) -> None:
    assert value_of(load_recipe(recipe_dict(), [override]), key) == value


@pytest.mark.parametrize("controls", [None, "continued-sft", {"batch_size": 4}])
def test_overriding_below_every_form_of_controls(controls: Any) -> None:
    recipe = load_recipe(recipe_dict(controls=controls), ["controls.lr=1e-5"])
    (control,) = recipe.controls
    assert (control.kind, control.lr) == ("continued-sft", 1e-5)
    assert control.batch_size == (4 if isinstance(controls, dict) else None)
    assert load_recipe(recipe, ["controls.lr=1e-4"]).controls[0].lr == 1e-4


def test_the_last_override_wins() -> None:
    recipe = load_recipe(recipe_dict(sft={"lr": 1e-4}), ["sft=null", "sft.warmup=0.3", "seed=1", "seed=2"])
    assert (recipe.sft.lr, recipe.sft.warmup, recipe.seed) == (2e-5, 0.3, 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "override 'train.lr' is not of the form section.key=value"),
        ("", "override '' is not of the form section.key=value"),
        ("=3", "override '=3' is not of the form section.key=value"),
        ("train..lr=1", "override 'train..lr=1' is not of the form section.key=value"),
        (".seed=1", "override '.seed=1' is not of the form section.key=value"),
        ("run_dir.x=1", "override 'run_dir.x=1': run_dir is 'runs/x', which has no keys of its own"),
        ("model.path.x.y=1", "override 'model.path.x.y=1': model.path is 'm', which has no keys of its own"),
        (
            "train.lr=abc",
            "train.lr: 'abc' is refused; wanted: number above 0, or list of numbers above 0, but this is text (from the override",
        ),
        ('iterations="3"', "iterations: '3' is refused; wanted: whole number above 0 and below 1000, but this is text (from the override"),
        ("train.lor=1", "train.lor: unknown key; did you mean train.lora? (from the override 'train.lor=1')"),
        ("trian.lr=1", "trian: unknown key; did you mean train? (from the override 'trian.lr=1')"),
        ("sft={lr: 1, foo: 2}", "sft.foo: unknown key; valid keys here: "),
        (
            "stop={plateau:false}",
            "stop.plateau:false: unknown key; a value comes after a colon and a space, as in 'plateau: ...' (from the",
        ),
        ("sft={lr: x}", "sft.lr: 'x' is refused; wanted: number above 0, but this is text (from the override 'sft={lr: x}')"),
        ("sft={lr: 1, lr: 2}", "override 'sft={lr: 1, lr: 2}': not valid YAML: duplicate key 'lr', first defined on line 1"),
        ("evaluate.answer_pattern=[0-9]+", "override 'evaluate.answer_pattern=[0-9]+': not valid YAML"),
        ("objective.beta=[0.1,1]", "objective.beta: [0.1, 1.0]: 2 values, but iterations is 3"),
        ("run_dir=", "run_dir: null is refused; wanted: text (from the override 'run_dir=')"),
    ],
)
def test_bad_overrides_name_themselves(override: str, message: str) -> None:
    assert message in refusal(recipe_dict(), override)


# ---------------------------------------------------------------------------------------------- properties

TRICKY = ["1e-6", "5", "no", "null", "~", "true", "0x10", "1:30", "2026-01-01", "<<", "=", "a: b", "# x", "- a", "{x}", "*a", "!t"]
TRICKY += ["1_000", "007", "  x  ", "\tx", "one\ntwo\n\n", "\rx", "é\u2028\x85\ufeffx", "'", '"', ".nan", "-.inf", "\x01\x07", "\U0001f600"]
texts = st.sampled_from(TRICKY) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=30
).filter(str.strip)
positive = st.floats(1e-12, 1e12, exclude_min=True)
counts = st.integers(1, 10**12)


def any_section(**options: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=options)


@st.composite
def recipe_values(draw: st.DrawFn) -> dict[str, Any]:
    iterations = draw(st.integers(1, 5))
    per_iteration = positive | st.lists(positive, min_size=iterations, max_size=iterations)
    optim = {
        "warmup": st.floats(0, 1),
        "batch_size": counts,
        "max_grad_norm": positive | st.none(),
        "precision": st.sampled_from(["bf16", "fp32"]),
    }
    columns = st.dictionaries(st.sampled_from(get_args(Column)), texts)
    held_out = st.integers(1, 999) | st.floats(0, 1, exclude_min=True, exclude_max=True)
    sections = any_section(
        sft=st.none() | any_section(lr=positive, **optim),
        train=any_section(lr=per_iteration, epochs=per_iteration, gradient_checkpointing=st.booleans(), **optim),
        objective=any_section(beta=per_iteration, window=counts),
        sampling=any_section(
            temperature=positive,
            top_p=st.floats(0, 1, exclude_min=True),
            replies_per_prompt=st.integers(1, 1000),
            engine=st.sampled_from(["transformers", "vllm", "server"]),
            vllm=any_section(tensor_parallel=counts, max_model_len=counts | st.none(), enforce_eager=st.booleans() | st.none()),
            server=any_section(model=texts, concurrency=counts, timeout_seconds=positive),
        ),
        stop=any_section(confidence=st.floats(0.5, 1, exclude_min=True, exclude_max=True), patience=counts | st.none()),
        controls=st.none()
        | st.just("continued-sft")
        | any_section(lr=positive | st.none(), epochs=positive)
        | st.just([{}, {"kind": "dpo", "pairs": "p.jsonl", "start": "best"}]),
        showcase=st.lists(texts, max_size=3),
        seed=st.integers(0, 2**32 - 1),
    )
    data = {"path": draw(texts), **draw(any_section(columns=columns, held_out=held_out, name=texts, max_examples=st.integers(1000, 2000)))}
    return {"run_dir": draw(texts), "model": {"path": draw(texts)}, "data": data, "iterations": iterations, **draw(sections)}


@pytest.mark.parametrize(
    ("section", "part"),
    [
        ({"urls": []}, "sampling.server.urls: []: must name at least one"),
        ({"urls": ["http://a/v1", "http://a/v1"]}, "contains duplicates"),
        ({"urls": ["a:8000/v1"]}, "sampling.server.urls[0]: 'a:8000/v1': not an http or https URL"),
        ({"urls": ["http://a:80000/v1"]}, "sampling.server.urls[0]: 'http://a:80000/v1': not an http or https URL"),
        ({"urls": ["http://a:port/v1"]}, "sampling.server.urls[0]: 'http://a:port/v1': not an http or https URL"),
        ({"urls": ["http://me:sk-secret@a/v1"]}, "sampling.server.urls[0]: a URL of a server has no user, password"),
        ({"urls": ["http://a/v1?key=sk-secret"]}, "sampling.server.urls[0]: a URL of a server has no user, password"),
        ({"api_key_env": "sk-secret"}, "sampling.server.api_key_env: not the name of an environment variable"),
        ({"retries": -1}, "sampling.server.retries: -1 is refused"),
        ({"timeout": 3}, "sampling.server.timeout: unknown key; did you mean"),
    ],
    ids=str,
)
def test_a_server_is_named_without_secrets(section: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe_dict(sampling={"engine": "server", "server": section}))
    assert part in str(caught.value) and "sk-secret" not in str(caught.value), str(caught.value)


@pytest.mark.parametrize("character", ["\x85", "\u2028", "\u2029", "\ufeff", "\t", "\n", "\r"])
def test_unusual_line_ends_survive_yaml(character: str) -> None:
    for text in (f"a{character}", f"{character}a", f"a {character} b"):
        assert parse_yaml(dump_yaml({"key": text}), "here") == {"key": text}


@settings(max_examples=80, deadline=None)
@given(recipe_values())
def test_to_yaml_and_back_gives_the_same_recipe(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    recipe = load_recipe(values)
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8")
    again = load_recipe(path)
    assert again == recipe
    assert to_yaml(again) == to_yaml(recipe)
    assert load_recipe(recipe) == recipe


def test_to_yaml_is_plain_and_complete() -> None:
    chosen = {
        "sft": {"lora": {}},
        "lora": {},
        "controls": DPO,
        "track": "tensorboard",
        "evaluate": {"benchmarks": {"suites": ["paper-extra"]}},
        "data": {"path": "rows.jsonl", "prompts": "prompts.jsonl"},
        "sampling": {"replies_per_prompt": 4},
        "target": {"kind": "majority", "checker": "number"},
    }
    text = to_yaml(load_recipe(recipe_dict(objective={"beta": [0.1, 1, 5]}, **chosen)))
    assert not set("!&") & set(text)  # neither tags nor anchors
    loaded = yaml.safe_load(text)
    assert loaded["objective"]["beta"] == [0.1, 1.0, 5.0]
    for key in FIELDS:
        if key.startswith("controls.search."):  # has become a control for each of its values
            continue
        node = loaded
        for name in key.split("."):
            node = node[0] if isinstance(node, list) else node
            assert name in node
            node = node[name]


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["linear", "continued-sft", "(", "x"])
)
names = st.sampled_from(sorted({name for key in FIELDS for name in key.split(".")})) | st.text(max_size=5) | st.integers(0, 3)
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5), max_leaves=12)


def loads_or_refuses(source: Any, *overrides: str) -> None:
    """Nothing but a Recipe or a UserError may come out, and no word of pydantic's own."""
    message = ""
    try:
        load_recipe(source, overrides)
    except UserError as error:
        message = str(error)
    assert not re.search(r"function-|constrained|Input should|Value error", message)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(names, anything, max_size=6))
def test_any_dict_loads_or_is_refused(values: dict[Any, Any]) -> None:
    loads_or_refuses(values)
    loads_or_refuses({**recipe_dict(), **values})


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(FIELDS)) | st.text(max_size=8), st.text(max_size=12) | st.sampled_from(TRICKY), st.sampled_from(["", "="]))
def test_any_override_takes_or_is_refused(key: str, value: str, sign: str) -> None:
    loads_or_refuses(recipe_dict(), f"{key}{sign}{value}")


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=40) | st.text("abc:{}[]&*!#-?|>'\"\n 1.e,<", max_size=30))
def test_any_file_loads_or_is_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    loads_or_refuses(path)


# ---------------------------------------------------------------------------------------------- shipped, documented, read


def test_the_recipes_that_the_project_promises_exist() -> None:
    assert {"tiny.yaml", "demo.yaml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_parses(path: Path) -> None:
    recipe = load_recipe(path)
    assert load_recipe(recipe) == recipe


@pytest.mark.parametrize("key", FIELDS)
def test_every_option_is_documented(key: str) -> None:
    field = FIELDS[key]
    text = field.description or ""
    assert len(text) >= 10
    assert text[0].isupper() or text[0].isdigit() or text.split()[0] == key.rpartition(".")[2]
    assert text.endswith((".", "`"))
    assert text.count("`") % 2 == 0
    assert in_words(field.annotation, field.metadata)


def test_the_recipe_and_the_data_room_know_the_same_shapes_and_columns() -> None:
    from sparring.data import shapes

    assert set(get_args(ShapeName)) == {"auto", *shapes.SHAPES}
    assert set(get_args(Column)) == shapes.STANDARD_COLUMNS


def attributes(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


@pytest.fixture(scope="module")
def attributes_read() -> set[str]:
    """Names read as an attribute outside sparring.config, and what a property of a section reads when the property is read."""
    files = [path for path in SOURCE.rglob("*.py") if CONFIG not in path.parents]
    read = set().union(*(attributes(ast.parse(path.read_text(encoding="utf-8"))) for path in files))
    options = [ast.parse(path.read_text(encoding="utf-8")) for path in [CONFIG / "sections.py", CONFIG / "recipe.py"]]
    for node in (node for tree in options for node in ast.walk(tree)):
        is_property = isinstance(node, ast.FunctionDef) and any(
            isinstance(mark, ast.Name) and mark.id == "property" for mark in node.decorator_list
        )
        if is_property and node.name in read:
            read |= attributes(node)
    return read


@pytest.mark.parametrize("key", FIELDS)
def test_every_option_is_read(key: str, attributes_read: set[str]) -> None:
    """No knob without a reader."""
    is_read = key.rpartition(".")[2] in attributes_read
    assert is_read, f"nothing in src/sparring reads {key}"


def test_the_former_name_of_a_key_is_read_and_said(caplog: pytest.LogCaptureFixture) -> None:
    recipe = load_recipe({**recipe_dict(), "baseline": "rft", "target": {"kind": "verified", "checker": "number"}}, ["controls.lr=1e-4"])
    assert [(one.kind, one.lr) for one in recipe.controls] == [("rft", 1e-4)]
    assert caplog.messages == ["recipe: `baseline` is now called `controls`; it is read as `controls`"]
    assert load_recipe(recipe_dict(controls="continued-sft"), ["baseline=null"]).controls == ()
    with pytest.raises(UserError, match="`baseline` is the former name of `controls`, and the recipe has both"):
        load_recipe({**recipe_dict(controls="rft"), "baseline": "rft"})


def test_a_run_that_was_trained_under_deepspeed_can_still_be_read(tmp_path: Path) -> None:
    """Its strategy is refused in a recipe that is to be played, and read as fsdp2 in one that was."""
    values = {"run_dir": str(tmp_path), "model": {"path": "builtin:tiny"}, "data": {"path": "builtin:tasks"}}
    recipe = load_recipe({**values, "launcher": {"kind": "accelerate", "processes": 2, "cpu": True}})
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe).replace("strategy: ddp", "strategy: deepspeed-zero2"))
    with pytest.raises(UserError, match=r"launcher\.strategy fsdp2 shards the same weights"):
        load_recipe(tmp_path / "recipe.yaml")
    assert recipe_of_run(tmp_path).launcher.strategy == "fsdp2"
