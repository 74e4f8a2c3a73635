"""A judge on loopback: chat completions by a function of the question, with the faults of loopback.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopback import Loopback

QUESTIONS = [
    {"question_id": 1, "category": "writing", "turns": ["Say a.", "And b?"]},
    {"question_id": 2, "category": "math", "turns": ["1+1?", "And 2+2?"]},
    {"question_id": 3, "category": "math", "turns": ["3+3?", "Sure?"]},
]


class JudgeServer(Loopback):
    """`says` makes the reply's text of the last message; `sends` may replace the whole answer."""

    def __init__(self, says: Callable[[str], str] = lambda text: "Fine.\nScore: 7") -> None:
        super().__init__({"judge": None})
        self.says = says
        self.sends: Callable[[str], Any] | None = None

    def completion(self, body: dict[str, Any]) -> Any:
        text = body["messages"][-1]["content"]
        if self.sends is not None:
            return self.sends(text)
        message = {"role": "assistant", "content": self.says(text)}
        usage = {"prompt_tokens": len(text), "completion_tokens": 5}
        return {"object": "chat.completion", "choices": [{"index": 0, "message": message}], "usage": usage}


def write_questions(folder: Path, questions: list[dict[str, Any]] = QUESTIONS) -> Path:
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(question) + "\n" for question in questions), encoding="utf-8")
    return file
