"""Games with verified and majority targets, SPIN and continued SFT: one start per seed for all arms, several replies per prompt.

Arms are added to what is played; a run that is finished is not played again. `play` is called by evidence.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import machine
from evidence_arms import Scoring
from evidence_runs import RUNS, copy_start, share_start
from evidence_settings import SMOL, TINY
from evidence_tasks import write_rows

import sparring
from sparring.config import load_recipe
from sparring.cost import control_cost, iterations_cost
from sparring.data.tables import read_rows
from sparring.rundir import RunDir, read_json
from sparring.stage_names import ITEMS, SCORES, START, iteration_name

COOL = 0.7
OF_START = ("base", "sft", "start")  # shared by arms with prompts and without: only the data stage differs
OF_PROMPTS = (*OF_START, "iterations/000/generate")  # by arms with prompts: the start's replies to all of them are the same
# task -> the file with rows that no run of it has, how many of them the last players are scored on too, and what they are
FURTHER = {
    "words": ("transfer.jsonl", 200, "SVAMP, which no arm was trained on"),
    "tasks": ("search.jsonl", 500, "further prompts of these tasks, which no arm has seen"),
    "chain": ("search.jsonl", 500, "further prompts of this task, which no arm has seen"),
}
Arm = Mapping[str, Any]


@dataclass(frozen=True)
class TargetSetting:
    """`recipe` lacks the run directory, the seed and the rows' file. `arms`: name -> what a game has over the recipe, section by section.
    `control_lrs` x `control_epochs`: continued SFT of the start, every one of them played in every seed."""

    title: str
    task: str
    recipe: dict[str, Any]
    arms: Mapping[str, Arm]
    control_lrs: Sequence[float]
    control_epochs: Sequence[float]
    prompts: dict[str, Any] = field(default_factory=dict)
    rows: str = "test"  # "search" for a setting whose outcome chooses options: the test never sees its rows


def target(
    kind: str, loss: str = "sft", human: str = "mix", checker: str = "exact", like: str = "exact", **objective: Any
) -> dict[str, Any]:
    """An arm with a verified or majority target; losses on margins get their beta and NLL weight from `objective`. like: the checker whose
    passes `random` assigns at random."""
    more = {"random_like": like} if checker == "random" else {"weigh_votes": False} if kind == "majority" else {}
    return {"target": {"kind": kind, "checker": checker, "human": human, **more}, "objective": {"loss": loss, "window": 1, **objective}}


def _joined(recipe: dict[str, Any], *changes: Arm) -> dict[str, Any]:
    for change in changes:
        recipe = {**recipe, **{key: {**recipe.get(key, {}), **one} if isinstance(one, dict) else one for key, one in change.items()}}
    return recipe


# `after` of an arm: the arm whose player it starts from, and how many of that arm's iterations come first.
AFTER = "after"


# Trained at the cost of the whole game on iteration 0's winners: what the further iterations are worth
RFT: Arm = {"controls": [{"kind": "rft"}]}


# The human reply of an SFT row is known and costs nothing, so that it is among the winners ("mix"): what rejection sampling does too.
TARGET_ARMS: dict[str, Arm] = {
    "majority, likelihood": target("majority"),
    "verified, likelihood": {**target("verified"), **RFT},
    "random, likelihood": target("verified", checker="random"),
    "majority, duels": target("majority", "logistic", beta=0.5, nll_weight=1.0),
    "verified, duels": target("verified", "logistic", beta=0.5, nll_weight=0.0),
    "verified, duels and NLL": target("verified", "logistic", beta=0.5, nll_weight=1.0),
    # only where a human reply is: further prompts have none
    "human against failing": _joined(target("verified", "logistic", "only", beta=0.5, nll_weight=0.0), {"data": {"prompts": None}}),
}
# What one seed of tiny-over-duels suggested, written before these runs: a prompt's loss weighed by its margin of votes
WEIGHED = {"target": {"weigh_votes": True}}
CHOSEN: dict[str, Arm] = {
    "majority, likelihood, weighed": _joined(target("majority"), WEIGHED),
    "majority, duels, weighed": _joined(target("majority", "logistic", beta=0.5, nll_weight=1.0), WEIGHED),
    "majority, likelihood, weighed, 8 rounds": _joined(target("majority"), WEIGHED, {"iterations": 8}),
}
SPIN: Arm = {
    "data": {"prompts": None},
    "objective": {"loss": "logistic", "beta": 1.0, "window": 1},
    "train": {"lr": 1e-4, "optimizer": "rmsprop"},
}


def _tiny(rows: int, epochs: float) -> dict[str, Any]:
    return {
        **TINY,
        "data": {"held_out": 400, "max_examples": 400 + rows},
        "sft": {**TINY["sft"], "epochs": epochs},
        "sampling": {"max_new_tokens": 16, "replies_per_prompt": 8},
        "train": {"optimizer": "adamw", "lr": 1e-3, "epochs": 2, "batch_size": 32, "precision": "fp32"},
        "evaluate": {"answer_pattern": ".+", "greedy": True, "samples": 8, "headroom": False},
        "stop": {"indistinguishable": False, "plateau": False, "min_pass_at_k": None},
    }


TINY_PROMPTS = {"replies": "drop", "answer": "completion", "max_examples": 2000}

ANCHORED = target("majority", "logistic", beta=0.5, nll_weight=1.0)
# What could make a duel worth its cost: beta, the weight of the winners' likelihood, which replies lose, learning rate, and order
DUELS: dict[str, Arm] = {
    f"majority, beta {beta:g}, NLL {nll:g}": target("majority", "logistic", beta=beta, nll_weight=nll)
    for beta in (0.1, 0.5, 2.0)
    for nll in (0.0, 1.0, 4.0)
}
DUELS |= {
    "majority, likelihood": target("majority"),
    "majority, beta 0.5, NLL 1, one loser": _joined(ANCHORED, {"target": {"max_losers": 1}}),
    "majority, beta 0.5, NLL 1, weighed": _joined(ANCHORED, WEIGHED),
    "majority, beta 0.5, NLL 1, lr 3e-4": _joined(ANCHORED, {"train": {"lr": 3e-4}}),
    "majority, likelihood, lr 3e-4": _joined(target("majority"), {"train": {"lr": 3e-4}}),
    "majority, likelihood, weighed": _joined(target("majority"), WEIGHED),
    "majority, likelihood, no human": target("majority", human="never"),
    "majority, likelihood, then duels": {**ANCHORED, "after": ("majority, likelihood", 2)},
}

# The order that the search leaves open: first likelihood, then duels, compared with likelihood alone from the same player
ORDER: dict[str, Arm] = {
    "majority, likelihood, weighed": CHOSEN["majority, likelihood, weighed"],
    "majority, likelihood, weighed, then duels": {**CHOSEN["majority, duels, weighed"], AFTER: ("majority, likelihood, weighed", 2)},
}

WORDS = {
    **SMOL,
    "data": {"held_out": 200, "max_examples": 500},
    "sft": {"lr": 3e-5, "epochs": 3, "batch_size": 20},
    "iterations": 2,
    "sampling": {"max_new_tokens": 24, "replies_per_prompt": 4},
    "train": {"optimizer": "adamw", "lr": 1e-5, "epochs": 1, "batch_size": 20},
    "evaluate": {"answer_pattern": r"= *(-?[\d.]+)$", "greedy": True, "samples": 4, "headroom": False},
    "stop": {"indistinguishable": False, "plateau": False, "min_pass_at_k": None},
    "report": False,
}
WORD_ARMS = {
    "verified, likelihood": {**target("verified", checker="number"), **RFT},
    "majority, likelihood": target("majority", checker="number"),
    "verified, duels and NLL": target("verified", "logistic", checker="number", beta=0.5, nll_weight=1.0),
    "random, likelihood": target("verified", checker="random", like="number"),
    "SPIN": {**SPIN, "train": {}},
}

# recipes/demo.yaml, somewhat larger
DEMO = {
    **SMOL,
    "data": {"held_out": 200, "max_examples": 340},
    "sft": {"lr": 1e-4, "epochs": 6, "batch_size": 20},
    "iterations": 2,
    "sampling": {"max_new_tokens": 32, "replies_per_prompt": 4},
    "train": {"optimizer": "adamw", "lr": 5e-5, "epochs": 1, "batch_size": 20},
    "evaluate": {"answer_pattern": "[^=]+$", "greedy": True, "samples": 2, "headroom": False},
    "stop": {"indistinguishable": False, "plateau": False, "min_pass_at_k": None},
    "report": False,
}
DEMO_ARMS = {
    "verified, likelihood": {**target("verified"), **RFT},
    "SPIN": {**SPIN, "train": {"lr": 1e-5, "epochs": 2}},  # about as many operations as the other games, which have more prompts
    "majority, likelihood": target("majority"),
    "verified, duels and NLL": target("verified", "logistic", beta=0.5, nll_weight=1.0),
    "random, likelihood": target("verified", checker="random"),
}


def _gym(rows: int, longest: int) -> dict[str, Any]:
    """The demo's game on a task of reasoning-gym. longest: of a reply, in tokens."""
    return _joined(
        DEMO,
        {
            "data": {"max_examples": 200 + rows},
            "iterations": 4,  # two were planned; the first seed of the chains still rose after them
            "sampling": {"max_new_tokens": longest},
            "evaluate": {"answer_pattern": r"= *(-?\d+)$"},
        },
    )


GYM_PROMPTS = {"replies": "drop", "answer": "answer", "max_examples": 400}
GYM_ARMS = {
    "verified, likelihood": {**target("verified", checker="number"), **RFT},
    "majority, likelihood": target("majority", checker="number"),
    "SPIN": DEMO_ARMS["SPIN"],
}

TARGET_SETTINGS: dict[str, TargetSetting] = {
    "tiny-over-targets": TargetSetting(
        "toy model, 100 rows, start over-fitted, 2,000 unanswered prompts",
        "sorting",
        _tiny(100, 200),
        {**TARGET_ARMS, **CHOSEN, "SPIN": SPIN},
        (1e-4, 3e-4, 1e-3),
        (2, 8, 32, 200, 400),
        TINY_PROMPTS,
    ),
    "tiny-under-targets": TargetSetting(
        "toy model, 400 rows, start under-trained, 2,000 unanswered prompts",
        "sorting",
        _tiny(400, 20),
        {**TARGET_ARMS, "SPIN": SPIN},
        (3e-4, 1e-3, 3e-3),
        (2, 8, 32, 200),
        TINY_PROMPTS,
    ),
    "tiny-over-duels": TargetSetting(
        "toy model, 100 rows, start over-fitted: what makes a duel worth its cost",
        "sorting",
        _tiny(100, 200),
        DUELS,
        (3e-4,),
        (32,),
        TINY_PROMPTS,
        "search",
    ),
    "tiny-over-order": TargetSetting(
        "toy model, 100 rows, start over-fitted: duels after two iterations of likelihood",
        "sorting",
        _tiny(100, 200),
        ORDER,
        (1e-3,),
        (200,),
        TINY_PROMPTS,
    ),
    "tasks-targets": TargetSetting(
        "SmolLM2-135M, the demo's task family, 140 rows, 400 further prompts with their answers alone",
        "tasks",
        DEMO,
        DEMO_ARMS,
        (3e-5, 1e-4),
        (8,),
        {"replies": "drop", "answer": "answer", "max_examples": 400},
    ),
    "words-targets": TargetSetting(
        "SmolLM2-135M, 300 word problems, three epochs, 500 further problems with their answers alone",
        "words",
        WORDS,
        WORD_ARMS,
        (3e-5,),
        (3, 8),
        {"replies": "drop", "answer": "completion", "max_examples": 500},
    ),
    "legs-targets": TargetSetting(
        "SmolLM2-135M, reasoning-gym's leg counting, 80 rows, 400 further prompts with their answers alone",
        "legs",
        _gym(80, 48),
        GYM_ARMS,
        (3e-5, 1e-4),
        (8, 20),
        GYM_PROMPTS,
    ),
    "chain-targets": TargetSetting(
        "SmolLM2-135M, reasoning-gym's chains of sums, 140 rows, 400 further prompts with their answers alone",
        "chain",
        _gym(140, 32),
        GYM_ARMS,
        (3e-5,),
        (8, 20),  # 20: the cost of four iterations
        GYM_PROMPTS,
    ),
}


def play(data: Path, name: str, seed: int, arms: Sequence[str]) -> None:
    """The arms named (all where none is) of one seed, after its controls; their scores go to runs/evidence/NAME/seed-N.json."""
    setting = TARGET_SETTINGS[name]
    write_rows(setting.task, data, RUNS / name / "rows")
    controls = _played(name, seed, "controls", _controls(setting))
    for arm in arms or setting.arms:
        _played(name, seed, arm, setting.arms[arm])
        _write(name, seed, controls)


def _controls(setting: TargetSetting) -> Arm:
    """A game of one iteration that is not reported: continued SFT is a control of a game, and the human target costs least."""
    each = [(lr, epochs) for lr in setting.control_lrs for epochs in setting.control_epochs]
    named = [{"name": f"sft-{lr:.0e}-{n:g}", "lr": lr, "epochs": n} for lr, n in each]
    return {**SPIN, "iterations": 1, "sampling": {"replies_per_prompt": 1}, "controls": named}


def _folder(name: str, seed: int, arm: str) -> Path:
    return RUNS / name / f"seed-{seed}" / arm.replace(",", "").replace(" ", "-")


def _played(name: str, seed: int, arm: str, options: Arm) -> Path:
    """The run of one arm, with the start of the first run of this seed, and with its replies to the further prompts if the arm has them."""
    setting, root = TARGET_SETTINGS[name], _folder(name, seed, arm)
    start, asked = root.parent / "start", root.parent / "asked"
    has_prompts = "prompts" not in options.get("data", {})
    rows = str(RUNS / name / "rows" / f"{setting.rows}.jsonl")
    recipe = _joined({**setting.recipe, "run_dir": str(root), "seed": seed}, {"data": {"path": rows}}, options)
    if AFTER in options:
        first, played = recipe.pop(AFTER)
        earlier = Scoring(_played(name, seed, first, setting.arms[first])).folder(str(played - 1))
        recipe |= {"model": {**recipe["model"], "path": str(earlier)}, "sft": None, "iterations": recipe["iterations"] - played}
    else:
        share_start(asked if has_prompts and asked.exists() else start, root)
    if has_prompts:
        recipe["data"]["prompts"] = {"path": rows, **setting.prompts}
    sparring.run(recipe)
    if not start.exists():
        copy_start(root, start, OF_START)
    if has_prompts and AFTER not in options and not asked.exists():
        copy_start(root, asked, OF_PROMPTS)
    return root


def _write(name: str, seed: int, controls: Path) -> None:
    """Scores and cost of every arm that is finished: of a game each iteration, of the rest one."""
    scoring = Scoring(controls)
    found = {"start": _entry(controls / f"{START}/evaluate", 0)}
    found["cool start"] = _entry(scoring.measure("cool", scoring.folder("start"), scoring.examples("held_out"), COOL), 0)
    trained = _trained_controls(controls)
    found |= trained | _on_further_rows(scoring, name, {arm: arm for arm in ("cool start", START, *trained)})
    arms = TARGET_SETTINGS[name].arms
    for arm in arms:
        root = _folder(name, seed, arm)
        if (root / "summary.json").exists() and read_json(root / "summary.json")["stop_reason"] is not None:
            _write_game(name, root, arm, found, *arms[arm].get(AFTER, (arm, 0)))
    (RUNS / name / f"seed-{seed}.json").write_text(json.dumps({"machine": machine(), "arms": found}))


def _write_game(name: str, root: Path, arm: str, found: dict[str, Any], first: str, before: int) -> None:
    """Add an arm's iterations and controls to `found`; `before` of its iterations are those of the arm `first`."""
    recipe, played = load_recipe(root / "recipe.yaml"), len(read_json(root / "summary.json")["iterations"])
    found |= {f"{arm} {t}": found[f"{first} {t}"] for t in range(before)}
    spent = found[f"{arm} {before - 1}"]["forward_tokens"] if before else 0
    for t in range(played):
        cost = spent + iterations_cost(RunDir(root), recipe, t + 1).forward_tokens
        rates = read_json(root / iteration_name(t) / "grade" / "done.json")["facts"]["rates"] if recipe.target.uses_grades else {}
        found[f"{arm} {before + t}"] = {**_entry(root / f"{iteration_name(t)}/evaluate", cost), "rates": rates}
    trained = _trained_controls(root)
    last = {f"{arm} {before + played - 1}": str(played - 1)}
    found |= trained | _on_further_rows(Scoring(root), name, last | {control: control for control in trained})


def _trained_controls(root: Path) -> dict[str, Any]:
    """Scores and cost of a run's controls, by their names."""
    run, recipe = RunDir(root), load_recipe(root / "recipe.yaml")
    costs = {section.folder: control_cost(run, recipe, section.folder).forward_tokens for section in recipe.controls}
    return {control: _entry(root / f"{control}/evaluate", cost) for control, cost in costs.items()}


def _entry(stage: Path, cost: float) -> dict[str, Any]:
    scores = {metric: {key: score[key] for key in ("value", "stderr", "n")} for metric, score in read_json(stage / SCORES).items()}
    rows = read_rows(stage / ITEMS)
    items = {metric: [round(row[metric], 4) for row in rows] for metric in ("exact_match", "nll_per_reply") if metric in rows[0]}
    return {"scores": scores, "items": items, "forward_tokens": cost}


def _on_further_rows(scoring: Scoring, name: str, players: Mapping[str, str]) -> dict[str, Any]:
    """players: arm -> its name in the run; the cool start is the start at temperature COOL."""
    if (task := TARGET_SETTINGS[name].task) not in FURTHER:
        return {}
    file, count, _ = FURTHER[task]
    examples = scoring.read_rows(RUNS / name / "rows" / file, count)
    found = {}
    for arm, player in players.items():
        model, heat = (START, COOL) if player == "cool start" else (player, 1.0)
        found[f"transfer {arm}"] = _entry(scoring.measure(f"transfer-{player}".replace(" ", "-"), scoring.folder(model), examples, heat), 0)
    return found
