"""The tables of docs/evidence.md about verified and majority targets, and their numbers in benchmarks/results/evidence_targets.json.

    python benchmarks/evidence_target_tables.py SETTING ARM OTHER METRIC    # their difference over the seeds that both have played

ARM and OTHER as in the results, "majority, duels 3" and sft-1e-03-200 for example; METRIC: a key of COLUMNS.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from common import ROOT
from demo_study import over_seeds
from evidence_targets import FURTHER, TARGET_SETTINGS

from sparring.comparison.statistics import over_seeds as paired_over_seeds

RESULTS = ROOT / "benchmarks" / "results" / "evidence_targets.json"
COLUMNS = {
    "exact_match": "pass@1",
    "exact_match_greedy": "greedy",
    "pass_at_4": "pass@4",
    "maj_at_4": "maj@4",
    "pass_at_8": "pass@8",
    "maj_at_8": "maj@8",
    "nll_per_token": "NLL per token",
}
CONFIDENCE = 0.95
TRANSFER = "transfer "  # before the name of an arm: its scores on FURTHER rows
SFT = re.compile(r"sft-(.+)-([\d.]+)")
Arms = Mapping[str, Mapping[str, Any]]  # arm -> seed -> its scores and cost


def write_results(runs: Path) -> None:
    """Take what was played into evidence_targets.json. Arms and seeds that were played elsewhere stay: the rows of a seed and the order of
    its training are the same on every machine, so that its starts differ by rounding, which training amplifies."""
    found = _results()
    for name in TARGET_SETTINGS:
        for file in sorted((runs / name).glob("seed-*.json")):
            seeds = found.setdefault(name, {})
            number = file.stem.removeprefix("seed-")
            seeds[number] = _with(seeds.get(number, {"machines": [], "arms": {}}), json.loads(file.read_text()))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _with(before: Mapping[str, Any], played: Mapping[str, Any]) -> dict[str, Any]:
    """A seed with the arms just played in place of equal ones from before."""
    machines = [*before["machines"], *([] if played["machine"] in before["machines"] else [played["machine"]])]
    return {"machines": machines, "arms": {**before["arms"], **{arm: _short(entry) for arm, entry in played["arms"].items()}}}


def target_tables(page: str) -> str:
    """The page with its tables of verified and majority targets."""
    found = _results()
    for name in TARGET_SETTINGS:
        lines = "\n".join(_table(name, found[name])) if found.get(name) else "Not played yet."
        mark = re.compile(rf"(<!-- targets: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page = mark.sub(lambda match, lines=lines: f"{match[1]}\n{lines}\n\n{match[2]}", page)
    return page


def _results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def _short(entry: Mapping[str, Any]) -> dict[str, Any]:
    scores = {metric: round(entry["scores"][metric]["value"], 4) for metric in COLUMNS if metric in entry["scores"]}
    return {
        **scores,
        "forward_tokens": entry["forward_tokens"],
        "rates": {k: round(v["value"], 4) for k, v in entry.get("rates", {}).items()},
    }


def _table(name: str, seeds: Mapping[str, Any]) -> Iterator[str]:
    """Every arm at its last iteration, and the continued SFT that is best over all seeds on the test itself, which favours it."""
    found = {arm: {seed: one["arms"][arm] for seed, one in seeds.items() if arm in one["arms"]} for arm in _arms(seeds)}
    arms = {arm: of for arm, of in found.items() if not arm.startswith(TRANSFER)}
    controls = [arm for arm, of in arms.items() if SFT.fullmatch(arm) and len(of) == len(seeds)]
    best = max(controls, key=lambda arm: fmean(one["exact_match"] for one in arms[arm].values()))
    kept = {arm: of for arm, of in arms.items() if not SFT.fullmatch(arm) or arm == best}
    shown = [metric for metric in COLUMNS if all(metric in one for one in kept["start"].values())]
    heads = [
        *(COLUMNS[metric] for metric in shown),
        "pass@1 after each iteration",
        f"minus {_title(best)}: pass@1",
        "million forward tokens",
    ]
    yield f"| arm (seeds) | {' | '.join(heads)} |"
    yield f"|---|{'---|' * len(heads)}"
    for arm, last in _last_of(kept).items():
        of = arms[f"{arm} {last}" if last is not None else arm]
        cells = [_mean([one[metric] for one in of.values()]) for metric in shown]
        rounds = _rounds(arms, arm, last)
        cost = fmean(one["forward_tokens"] for one in of.values()) / 1e6
        yield f"| {_title(arm)} ({len(of)}) | {' | '.join(cells)} | {rounds} | {_difference(of, arms[best])} | {cost:.2f} |"
    if len(arms) < len(found):
        yield from _further_table(name, {arm: found[TRANSFER + arm] for arm in arms if TRANSFER + arm in found}, shown, best)


def _further_table(name: str, arms: Arms, shown: Sequence[str], best: str) -> Iterator[str]:
    """The same players on rows of FURTHER; `best` was chosen on the held-out rows, not on these."""
    _, count, what = FURTHER[TARGET_SETTINGS[name].task]
    yield from ("", f"On {what} ({count} rows):", "")
    yield f"| arm (seeds) | {' | '.join(COLUMNS[metric] for metric in shown)} | minus {_title(best)}: pass@1 |"
    yield f"|---|{'---|' * (len(shown) + 1)}"
    for arm, of in arms.items():
        cells = [_mean([one[metric] for one in of.values()]) for metric in shown]
        yield f"| {_title(_without_iteration(arm))} ({len(of)}) | {' | '.join(cells)} | {_difference(of, arms[best])} |"


def _mean(values: list[float]) -> str:
    found = over_seeds(values)
    return f"{found['mean']:.3f}" + ("" if found["stderr"] is None else f" ± {found['stderr']:.3f}")


def _arms(seeds: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(arm for one in seeds.values() for arm in one["arms"]))


def _last_of(arms: Arms) -> dict[str, int | None]:
    """Arm without its iteration -> its last iteration, None for what has none."""
    found: dict[str, int | None] = {}
    for arm in arms:
        name = _without_iteration(arm)
        found[name] = None if name == arm else max(found.get(name) or 0, int(arm.rpartition(" ")[2]))
    return found


def _without_iteration(arm: str) -> str:
    name, _, number = arm.rpartition(" ")
    return name if number.isdigit() else arm


def _rounds(arms: Arms, arm: str, last: int | None) -> str:
    if last is None:
        return "-"
    return ", ".join(f"{fmean(one['exact_match'] for one in arms[f'{arm} {t}'].values()):.3f}" for t in range(last + 1))


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], metric: str = "exact_match") -> str:
    both = [seed for seed in ours if seed in theirs and metric in ours[seed] and metric in theirs[seed]]
    found = paired_over_seeds(*([of[seed][metric] for seed in both] for of in (ours, theirs)), CONFIDENCE)
    if found.low is None or found.high is None:
        return f"{found.difference:+.3f}"
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _title(arm: str) -> str:
    found = SFT.fullmatch(arm)
    names = {"cool start": "start at temperature 0.7", "rft": "RFT, equal cost"}
    return f"continued SFT, {found[1]}, {found[2]} epochs" if found else names.get(arm, arm)


def main(setting: str, arm: str, other: str, metric: str) -> None:
    seeds = _results()[setting]
    of = [{seed: one["arms"][name] for seed, one in seeds.items() if name in one["arms"]} for name in (arm, other)]
    print(f"{arm} minus {other}, {metric}: {_difference(*of, metric)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
