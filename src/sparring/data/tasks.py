"""Built-in data from seeded generators; all texts were written for this package.

`builtin:digits`: three digits to sort, which a toy model learns in seconds.

`builtin:tasks`: a family of short tasks with exact answers, in equal shares of four kinds: a sum or difference as a story, words to
sort, words to reverse, and numbers to compare. The answer is the text after the last "=" of a reply, or the whole reply:
`evaluate.answer_pattern: "[^=]+$"`. The column `answer` holds it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

ROWS = 4000
SYSTEM = "Answer briefly."

_PEOPLE = ("Ada", "Ben", "Chloe", "Dan", "Elsa", "Finn", "Grace", "Hugo", "Iris", "Jon", "Kim", "Leo", "Maya", "Noah", "Olga", "Paul")
_THINGS = ("apples", "books", "coins", "stamps", "shells", "marbles", "pencils", "cards", "eggs", "keys", "lemons", "buttons")
_WORDS = """
    apple bread cloud dance eagle forest garden harbor island jungle kettle lemon market needle ocean pepper quartz river silver
    tunnel umbrella valley window yellow zebra anchor bridge candle desert engine feather guitar hammer insect jacket ladder mirror
    nickel orange pocket rabbit saddle temple velvet wagon acorn basket copper dragon ember falcon glacier helmet ink jewel kitten
    lantern magnet
""".split()


def task_rows(seed: int) -> list[dict[str, Any]]:
    """`ROWS` distinct rows of the `messages` shape with their `answer`, the same for the same seed."""
    draw = random.Random(seed)
    kinds: tuple[Callable[[random.Random], tuple[str, str]], ...] = (_story, _sort, _reverse, _compare)
    rows: dict[str, str] = {}
    while len(rows) < ROWS:
        question, reply = kinds[len(rows) % len(kinds)](draw)
        rows.setdefault(question, reply)
    return [
        {"messages": _turns(("system", SYSTEM), ("user", question), ("assistant", reply)), "answer": reply.rpartition("= ")[2]}
        for question, reply in rows.items()
    ]


def digit_rows(seed: int) -> list[dict[str, Any]]:
    """Every three digits once, in an order given by the seed: "sort 715" -> "157"."""
    numbers = [f"{number:03d}" for number in range(1000)]
    random.Random(seed).shuffle(numbers)
    return [{"messages": _turns(("user", f"sort {digits}"), ("assistant", "".join(sorted(digits))))} for digits in numbers]


def _turns(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def _story(draw: random.Random) -> tuple[str, str]:
    person, thing, (low, high) = draw.choice(_PEOPLE), draw.choice(_THINGS), sorted(draw.sample(range(11, 90), 2))
    if draw.random() < 0.5:
        return f"{person} has {low} {thing} and gets {high} more. How many are there now?", f"{low} + {high} = {low + high}"
    return f"{person} has {high} {thing} and gives {low} away. How many are left?", f"{high} - {low} = {high - low}"


def _sort(draw: random.Random) -> tuple[str, str]:
    words = draw.sample(_WORDS, draw.choice((3, 4)))
    return f"Sort these words from A to Z: {', '.join(words)}", ", ".join(sorted(words))


def _reverse(draw: random.Random) -> tuple[str, str]:
    words = draw.sample(_WORDS, draw.choice((3, 4)))
    return f"Write these words in reverse order: {', '.join(words)}", ", ".join(reversed(words))


def _compare(draw: random.Random) -> tuple[str, str]:
    numbers = draw.sample(range(100, 1000), draw.choice((3, 4)))
    most = draw.random() < 0.5
    question = f"Which of these numbers is the {'largest' if most else 'smallest'}: {', '.join(map(str, numbers))}?"
    return question, str(max(numbers) if most else min(numbers))
