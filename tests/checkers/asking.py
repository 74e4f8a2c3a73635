"""Shared by the tests of checkers: one prompt with its replies, and a checker that is closed in the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sparring.checkers.grades import Checker, GradingRequest
from sparring.checkers.make import CheckerSettings, make_checker


def ask(*replies: str, answer: str | None = None, human: str | None = None, row_id: str = "r", **columns: Any) -> GradingRequest:
    return GradingRequest(row_id, ({"role": "user", "content": "What is it?"},), answer, human, columns, replies)


@contextmanager
def made(kind: str, pattern: str | None = None, **settings: Any) -> Iterator[Checker]:
    checker = make_checker(CheckerSettings(kind, pattern, **settings))
    try:
        yield checker
    finally:
        checker.close()
