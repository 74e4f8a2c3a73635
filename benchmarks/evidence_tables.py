"""The tables of docs/evidence.md, between their marks, and the numbers behind them in benchmarks/results/evidence.json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT
from demo_study import over_seeds
from evidence_settings import SETTINGS, successors
from evidence_target_tables import target_tables, write_results

from sparring.comparison.statistics import Paired, Values, holm, over_rows
from sparring.comparison.statistics import over_seeds as paired_over_seeds
from sparring.evaluation.metrics import ratio_score

PAGE = ROOT / "docs" / "evidence.md"
RESULTS = ROOT / "benchmarks" / "results" / "evidence.json"
MATCHES = ("exact_match", "exact_match_greedy")
METRICS = {"exact_match": "exact match, T=1", "exact_match_greedy": "exact match, greedy", "nll_per_token": "NLL per token"}
CONTROLS = {"best-epoch": "continued SFT, searched epochs", "equal": "continued SFT, equal operations"}
NUMBERS = re.compile(r"\[\s+([-\d.e,\s]+?)\s+\]")
CONFIDENCE = 0.95
# how often a token of each kind passed the weights
PASSES = {"sampled_tokens": 1, "scored_tokens": 1, "trained_tokens": 3}
OTHERS = {"start": "start", "cool start": "start at temperature 0.7", **CONTROLS}
Played = list[dict[str, Any]]  # one for each seed


def write_tables(runs: Path) -> None:
    """Take what was played into evidence.json, where settings that were played elsewhere stay, and rewrite the page."""
    found = {**_results(), **{name: one for name in SETTINGS if (one := _read(runs / name))}}
    text = json.dumps({"settings": found}, indent=1) + "\n"
    one_line = NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text)
    RESULTS.write_text(one_line, encoding="utf-8")
    write_results(runs)
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def rendered(page: str) -> str:
    """The page with its tables made from evidence.json."""
    found = _results()
    for name in SETTINGS:
        for kind, lines in TABLES.items():
            table = "\n".join(lines(name, found[name])) if name in found else "Not played yet."
            mark = re.compile(rf"(<!-- table: {name} {kind} -->\n).*?(<!-- end -->)", re.DOTALL)
            page = mark.sub(lambda match, table=table: f"{match[1]}\n{table}\n\n{match[2]}", page)
    return target_tables(page)


def _results() -> dict[str, Any]:
    """Of each setting; every seed has its machine and commit."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["settings"] if RESULTS.exists() else {}


def _read(folder: Path) -> dict[str, Any] | None:
    files = sorted(folder.glob("seed-*.json"), key=lambda file: int(file.stem.partition("-")[2]))
    if not files:
        return None
    seeds = [int(file.stem.partition("-")[2]) for file in files]
    played = [json.loads(file.read_text()) for file in files]
    if len(played) > 1:  # their spread says more than that of the rows of each
        played = [{key: value for key, value in seed.items() if key != "items"} for seed in played]
    return {
        "seeds": seeds,
        "search": json.loads((folder / "search.json").read_text()),
        "played": played,
        "guards": {file.stem.partition("-")[2]: json.loads(file.read_text()) for file in sorted(folder.glob("guards-*.json"))},
    }


def _main_table(name: str, found: dict[str, Any]) -> Iterator[str]:
    """Every arm but the successors; differences in exact match (in likelihood where a task has no answers or no player finds one)."""
    played: Played = found["played"]
    metrics = [metric for metric in METRICS if metric in played[0]["scores"]["start"]]
    compared = next((metric for metric in metrics if len(_distinct(played, metric)) > 1), metrics[0])
    others = [other for other in ("start", *CONTROLS) if _in_all(played, other)]
    left_out = "" if compared in MATCHES else "cool start"  # whose likelihood is that of the start
    arms = {arm: title for arm, title in OTHERS.items() if _in_all(played, arm) and arm != left_out}
    arms |= _numbered(played, "SPIN") | _numbered(played, "official")
    pairs = {arm: {other: _paired(played, compared, arm, other) for other in others if other != arm} for arm in arms}
    adjusted = iter(holm([pair.p for found in pairs.values() for pair in found.values() if pair.p is not None]))
    unit, count = ("seeds", f"{len(played)} seeds") if len(played) > 1 else ("rows", "1 seed")
    tests = " and ".join(sorted({f"the {pair.test} test" for found in pairs.values() for pair in found.values()}))
    yield f"{SETTINGS[name].title}; {count}, {played[0]['rows']} held-out rows each; mean ± standard error over {unit}, differences"
    yield f"in {METRICS[compared]} with p of {tests} over {unit}, Holm-corrected over the table; forward tokens, in"
    yield "thousands: what the arm cost beyond the start, a token of sampling or scoring counted once, of training three times.\n"
    named = ["forward tokens", *(METRICS[metric] for metric in metrics), "minus start", "minus searched epochs", "minus equal operations"]
    yield "| arm | " + " | ".join(named) + " |\n|---|" + "---|" * len(named)
    for arm, title in arms.items():
        scores = [_mean(played, arm, metric) for metric in metrics]
        gaps = [_gap(pairs[arm].get(other), adjusted) for other in ("start", *CONTROLS)]
        yield f"| {title} | " + " | ".join([_cost(played, arm), *scores, *gaps]) + " |"


def _successors_table(name: str, found: dict[str, Any]) -> Iterator[str]:
    """One row for each objective: start, every iteration, and the last one less the best of those before it."""
    played: Played = found["played"]
    if not SETTINGS[name].with_successors:
        return
    count = len(_numbered(played, "SPIN"))
    for metric, title in METRICS.items():
        names = ["start", *(f"iteration {t}" for t in range(count)), "last minus best before"]
        yield f"{title}\n\n| objective | " + " | ".join(names) + " |\n|---|" + "---|" * len(names)
        for objective in ("SPIN", *successors(found["search"])):
            arms = [f"{objective} {t}" for t in range(count)]
            if not _in_all(played, arms[0]):
                continue
            cells = [_mean(played, arm, metric) if _in_all(played, arm) else "" for arm in ("start", *arms)]
            kept = _show(_kept(played, arms, metric), "+.3f") if count > 1 and all(cells) else ""
            yield f"| {objective} | " + " | ".join([*cells, kept]) + " |"
        yield ""


def _transfer_table(_: str, found: dict[str, Any]) -> Iterator[str]:
    """Players of one training set on another one's rows."""
    played: Played = found["played"]
    arms = [arm for arm in played[0]["scores"] if arm.startswith("transfer ")]
    if arms:
        yield "| arm | exact match, T=1 | exact match, greedy | NLL per token |\n|---|---|---|---|"
    for arm in arms:
        player = arm.removeprefix("transfer ")
        yield f"| {OTHERS.get(player, player)} | " + " | ".join(_mean(played, arm, metric) for metric in METRICS) + " |"


def _guards_table(_: str, found: dict[str, Any]) -> Iterator[str]:
    """The benchmarks of every seed that they were played for."""
    for seed, scores in found["guards"].items():
        names = list(scores["start"])
        n = " / ".join(str(scores["start"][name]["n"]) for name in names)
        yield (
            f"Seed {seed}, first {n} items, ± standard error over items\n\n| arm | " + " | ".join(names) + " |\n|---|" + "---|" * len(names)
        )
        for arm, one in scores.items():
            cells = [f"{one[name]['value']:.3f} ± {one[name]['stderr']:.3f}" for name in names]
            yield f"| {OTHERS.get(arm, arm)} | " + " | ".join(cells) + " |"
        yield ""


def _search_table(_: str, found: dict[str, Any]) -> Iterator[str]:
    """What was searched, in this order, and what was taken."""
    searched = found["search"]
    yield "| searched | values and what each scored | taken |\n|---|---|---|"
    for key, worth in searched["looked_at"].items():
        yield f"| {key} | {_worths(worth)} | {searched['chosen'][key]:g} |"
    if worth := searched.get("t_spin"):
        yield f"| beta of T-SPIN | {_worths(worth)} | {max(worth, key=worth.__getitem__)} |"
    taken = "; ".join(f"{kind}: " + ", ".join(f"{k} {v:g}" for k, v in one.items()) for kind, one in searched["controls"].items())
    looked_at = _worths(searched["controls_looked_at"]) or "not searched"
    yield f"| controls (learning rate, epochs) | {looked_at} | {taken} |"


TABLES: dict[str, Callable[[str, dict[str, Any]], Iterator[str]]] = {
    "arms": _main_table,
    "successors": _successors_table,
    "transfer": _transfer_table,
    "guards": _guards_table,
    "search": _search_table,
}


def _numbered(played: Played, arm: str) -> dict[str, str]:
    """The iterations of one arm that all seeds have."""
    names = [one for one in played[0]["scores"] if re.fullmatch(rf"{re.escape(arm)} \d+", one)]
    titles = {"SPIN": "SPIN, iteration", "official": "official negatives, iteration"}
    return {name: f"{titles[arm]} {name.rpartition(' ')[2]}" for name in names if _in_all(played, name)}


def _in_all(played: Played, arm: str) -> bool:
    """A game may end early, and then some seeds lack an iteration or a control."""
    return all(arm in seed["scores"] for seed in played)


def _cost(played: Played, arm: str) -> str:
    """Forward tokens in thousands, mean over seeds; the official recipe's are not counted."""
    if arm in ("start", "cool start"):
        return "0"
    if arm.startswith("official"):
        return ""
    return f"{sum(_forward_tokens(seed['stages'], arm) for seed in played) / len(played) / 1e3:,.0f}"


def _forward_tokens(stages: dict[str, dict[str, float]], arm: str) -> float:
    spin = re.fullmatch(r"SPIN (\d+)", arm)
    owners = {f"iterations/{t:03d}" for t in range(int(spin[1]) + 1)} if spin else {arm}
    own = [facts for stage, facts in stages.items() if stage.rpartition("/")[0] in owners]
    return sum(passes * facts.get(kind, 0) for facts in own for kind, passes in PASSES.items())


def _distinct(played: Played, metric: str) -> set[float]:
    return {scores[metric] for seed in played for scores in seed["scores"].values() if metric in scores}


def _values(played: Played, arm: str, metric: str) -> list[float]:
    return [seed["scores"][arm][metric] for seed in played]


def _mean(played: Played, arm: str, metric: str) -> str:
    """± over seeds; over the rows of a single one."""
    if len(played) > 1:
        return _show(over_seeds(_values(played, arm, metric)), ".3f")
    rows = _rows(played[0], arm, metric)
    score = ratio_score(rows.top_N, rows.bottom_N)
    return _show({"mean": score["value"], "stderr": score["stderr"]}, ".3f")


def _rows(seed: dict[str, Any], arm: str, metric: str) -> Values:
    items = seed["items"][arm]
    if metric != "nll_per_token":
        return Values.of_mean(items[metric])
    return Values(np.asarray(items["nll_per_reply"]), np.asarray(items["human_reply_tokens"]))


def _kept(played: Played, arms: Sequence[str], metric: str) -> dict[str, Any]:
    """Above 0 is better. The best one before was chosen by the same noisy score, so no change comes out a little below 0."""
    sign = -1 if metric.startswith("nll") else 1
    rows = [[sign * seed["scores"][arm][metric] for arm in arms] for seed in played]
    return over_seeds([row[-1] - max(row[:-1]) for row in rows])


def _paired(played: Played, metric: str, arm: str, other: str) -> Paired:
    if len(played) > 1:
        return paired_over_seeds(_values(played, arm, metric), _values(played, other, metric), CONFIDENCE)
    return over_rows(_rows(played[0], arm, metric), _rows(played[0], other, metric), CONFIDENCE, 0)


def _gap(pair: Paired | None, adjusted: Iterator[float]) -> str:
    if pair is None:
        return ""
    p = "" if pair.p is None else f" (p {next(adjusted):.2g})"
    return f"{pair.difference:+.3f}{p}"


def _show(cell: dict[str, Any], form: str) -> str:
    error = "" if cell["stderr"] is None else f" ± {cell['stderr']:.3f}"
    return f"{cell['mean']:{form}}{error}"


def _worths(worth: dict[str, float | None]) -> str:
    return ", ".join(f"{value}: {'no game' if score is None else f'{score:.3f}'}" for value, score in worth.items())
