"""The tasks of the evidence: rows as JSON lines, one file to search on, one to test on, without a prompt in common."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from real_data import unwrap_dolly

from sparring.data.tasks import task_rows

Row = dict[str, str]
DIGITS, SORTS = 8, 6000
TASKS_SEED, GYM_ROWS = 1_000_000, 3000
SEARCHED_SHARE = 0.45


def write_rows(task: str, data: Path, folder: Path) -> None:
    """`folder`/search.jsonl, test.jsonl and, where the task has one, transfer.jsonl; which rows are which goes by a hash of the prompt."""
    if (folder / "test.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = {row["prompt"]: row for row in TASKS[task](data, folder)}.values()
    _write(folder / "search.jsonl", (row for row in rows if _is_searched(row)))
    if task in TRANSFER:
        _write(folder / "transfer.jsonl", TRANSFER[task](data))
    _write(folder / "test.jsonl", (row for row in rows if not _is_searched(row)))


def _sorting(_: Path, __: Path) -> Iterator[Row]:
    """Eight digits to sort: one right answer, and a model of 100,000 weights can learn it."""
    draw = random.Random(0)
    for _ in range(SORTS):
        digits = [str(draw.randrange(10)) for _ in range(DIGITS)]
        yield {"prompt": "sort " + "".join(digits), "completion": "".join(sorted(digits))}


def _words(data: Path, _: Path) -> Iterator[Row]:
    """MAWPS and ASDiv problems of one operation; of those that differ in their numbers alone the first."""
    texts: set[str] = set()
    for row in _problems(data / "mawps_asdiv_train.csv"):
        if row["Question"] not in texts:
            texts.add(row["Question"])
            yield _worked(row)


def _svamp(data: Path) -> Iterator[Row]:
    return map(_worked, _problems(data / "svamp_test.csv"))


def _problems(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8", newline="") as opened:
        for row in csv.DictReader(opened):
            operands = row["Equation"].split()[1:]
            if len(operands) == 2 and all(one.startswith("number") for one in operands):
                yield row


def _worked(row: Row) -> Row:
    """The question with its numbers, and the reply `35 - 17 = 18`."""
    numbers = {f"number{place}": _plain(number) for place, number in enumerate(row["Numbers"].split())}
    operation, first, second = row["Equation"].split()
    question = " ".join(numbers.get(word, word) for word in row["Question"].split())
    return {"prompt": question, "completion": f"{numbers[first]} {operation} {numbers[second]} = {_plain(row['Answer'])}"}


def _plain(number: str) -> str:
    return f"{float(number):g}" if abs(float(number)) < 1e5 else number.removesuffix(".0")


def _gsm8k(data: Path, _: Path) -> Iterator[Row]:
    for line in (data / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield {"prompt": row["question"], "completion": row["answer"]}


def _dolly(data: Path, folder: Path) -> Iterator[Row]:
    rows = unwrap_dolly(data / "dolly_1k.jsonl", folder / "dolly.jsonl").read_text(encoding="utf-8")
    return map(json.loads, rows.splitlines())


def _tasks(_: Path, __: Path) -> Iterator[Row]:
    """The built-in family of the demo, generated with a seed that no recipe has."""
    for row in task_rows(TASKS_SEED):
        system, question, reply = (message["content"] for message in row["messages"])
        yield {"system": system, "prompt": question, "completion": reply, "answer": row["answer"]}


def _legs(_: Path, __: Path) -> Iterator[Row]:
    """reasoning-gym's leg counting, two animals or three, with the products and sums written out."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    for item in _gym("leg_counting", min_animals=2, max_animals=3, min_instances=2, max_instances=9):
        counts = item["metadata"]["animals"]
        products = [number * ANIMALS[animal] for animal, number in counts.items()]
        steps = [f"{number} * {ANIMALS[animal]} = {product}" for (animal, number), product in zip(counts.items(), products, strict=True)]
        yield _gym_row(item, [*steps, f"{' + '.join(map(str, products))} = {sum(products)}"])


def _chain(_: Path, __: Path) -> Iterator[Row]:
    """reasoning-gym's chains of three numbers of one or two digits, worked one operation at a time."""
    for item in _gym("chain_sum", min_terms=3, max_terms=3, min_digits=1, max_digits=2):
        first, *rest = item["metadata"]["expression"].split()
        value, steps = int(first), []
        for sign, number in zip(rest[::2], rest[1::2], strict=True):
            after = value + int(number) * (1 if sign == "+" else -1)
            steps.append(f"{value} {sign} {number} = {after}")
            value = after
        yield _gym_row(item, steps)


def _gym(name: str, **options: int) -> Iterator[dict[str, Any]]:
    """GYM_ROWS items. reasoning-gym (`pip install reasoning-gym==0.1.25`) is needed once, to write the rows."""
    from reasoning_gym import create_dataset

    yield from itertools.islice(create_dataset(name, size=GYM_ROWS, seed=0, **options), GYM_ROWS)


def _gym_row(item: dict[str, Any], steps: list[str]) -> Row:
    """The question without the blank lines around it. The last number of the steps is the answer, or the worked reply would be wrong."""
    reply = "; ".join(steps)
    if reply.rpartition("= ")[2] != item["answer"]:
        raise ValueError(f"{item['question']!r}: the steps {reply!r} do not end in {item['answer']}")
    return {"prompt": " ".join(item["question"].split()), "completion": reply, "answer": item["answer"]}


TASKS: dict[str, Callable[[Path, Path], Iterable[Row]]] = {"sorting": _sorting, "words": _words, "gsm8k": _gsm8k, "dolly": _dolly}
TASKS |= {"tasks": _tasks, "legs": _legs, "chain": _chain}
TRANSFER = {"words": _svamp}


def _is_searched(row: Row) -> bool:
    return hashlib.sha256(row["prompt"].encode()).digest()[0] < 256 * SEARCHED_SHARE


def _write(file: Path, rows: Iterable[Row]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
