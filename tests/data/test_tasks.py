"""The built-in task family: every answer by another route than the generator's, rows distinct, kinds in equal shares."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any

import pytest

from sparring.checkers.grades import find_answer
from sparring.data.tasks import ROWS, task_rows

SEEDS = (0, 1, 2**32 - 1)
ANSWER = re.compile("[^=]+$")


@cache
def pairs(seed: int) -> list[tuple[str, str]]:
    return [(row["messages"][1]["content"], row["messages"][2]["content"]) for row in task_rows(seed)]


def kind_and_answer(question: str) -> tuple[str, str]:
    """Which kind a question is, and its answer, found from the words of the question alone."""
    if found := re.fullmatch(r"[A-Z]\w+ has (\d+) (\w+) and gets (\d+) more\. How many are there now\?", question):
        return "story", str(sum(map(int, found.group(1, 3))))
    if found := re.fullmatch(r"[A-Z]\w+ has (\d+) (\w+) and gives (\d+) away\. How many are left\?", question):
        return "story", str(int(found[1]) - int(found[3]))
    task, _, items = question.rstrip("?").partition(": ")
    words = items.split(", ")
    if task == "Sort these words from A to Z":
        ranked = {word: sum(other < word for other in words) for word in words}
        return "sort", ", ".join(sorted(words, key=ranked.__getitem__))
    if task == "Write these words in reverse order":
        return "reverse", ", ".join(words[index] for index in range(len(words) - 1, -1, -1))
    if found := re.fullmatch("Which of these numbers is the (largest|smallest)", task):
        ordered = sorted(map(int, words))
        return "compare", str(ordered[-1] if found[1] == "largest" else ordered[0])
    raise AssertionError(question)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_answer_is_right(seed: int) -> None:
    kinds: Counter[str] = Counter()
    for question, reply in pairs(seed):
        kind, answer = kind_and_answer(question)
        kinds[kind] += 1
        assert find_answer(re.compile("[^=]+$"), reply) == answer, question
        if kind == "story":
            left, sign, right, equals, result = reply.split()
            assert equals == "=" and {"+": int(left) + int(right), "-": int(left) - int(right)}[sign] == int(result) > 0
            assert {left, right} == set(re.findall(r"\d+", question)), "the sum that the story tells"
        else:
            assert reply == answer
    assert kinds == dict.fromkeys(("story", "sort", "reverse", "compare"), ROWS // 4)


@pytest.mark.parametrize("seed", SEEDS)
def test_questions_are_distinct(seed: int) -> None:
    questions = [question for question, _ in pairs(seed)]
    assert len(questions) == len(set(questions)) == ROWS


def test_the_items_of_a_question_are_distinct() -> None:
    """Else "the largest" or the order would not be one answer."""
    for question, _ in pairs(0):
        items = question.rstrip("?").partition(": ")[2].split(", ")
        assert len(items) == len(set(items))


def test_the_same_seed_gives_the_same_rows_and_another_other_ones() -> None:
    assert task_rows(0) == task_rows(0)
    first, second = ({question for question, _ in pairs(seed)} for seed in (0, 1))
    assert len(first & second) < ROWS / 10


def test_rows_have_the_messages_shape() -> None:
    rows: list[dict[str, Any]] = task_rows(0)
    for row in rows:
        assert list(row) == ["messages", "answer"]
        assert find_answer(ANSWER, row["messages"][-1]["content"]) == row["answer"]
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        assert all(message["content"].strip() == message["content"] != "" for message in row["messages"])


def test_the_kinds_are_mixed_from_the_start() -> None:
    """A subset or a kill after a few rows has every kind."""
    assert set(Counter(kind_and_answer(question)[0] for question, _ in pairs(0)[:40]).values()) == {10}
