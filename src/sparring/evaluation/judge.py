"""A judge behind an OpenAI-compatible endpoint: every judgment is kept as it comes, and none is paid for twice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from sparring.config import ServerSection
from sparring.evaluation.judge_prompts import AGAIN, Messages
from sparring.opponent.endpoints import Endpoints, read_key
from sparring.progress import progress

OPTION, KEY_OPTION = "--judge", "--key-env"
CHAT = "/chat/completions"
ATTEMPTS = 3  # replies that are asked for until one can be read
MOST_TOKENS = 1024  # of a judgment
FILE = "judgments.jsonl"


@dataclass(frozen=True)
class Task:
    """One judgment to get. `read` gives what a reply means, None where it cannot be read; `form` is how it should end."""

    key: str
    messages: Messages
    read: Callable[[str], Any]
    form: str


@dataclass(frozen=True)
class Judgment:
    """`value` is None where no reply could be read. Tokens are summed over all replies, as the endpoint counts them."""

    key: str
    value: Any
    replies: list[str]
    prompt_tokens: int
    completion_tokens: int


class Judge:
    """Asks one model. Close it."""

    def __init__(self, section: ServerSection) -> None:
        """Raises UserError when the key is missing."""
        assert section.model is not None
        self.section = section
        key = read_key(section, KEY_OPTION)
        self._endpoints = Endpoints(section, key, OPTION, f"{OPTION} and --judge-model", "docs/evaluation.md says what is asked of a judge")

    def close(self) -> None:
        self._endpoints.close()

    def judge(self, folder: Path, tasks: Sequence[Task], phase: str) -> list[Judgment]:
        """The judgments in the order of the tasks; those that the folder's file has a value for are not asked for again.

        Raises UserError when the endpoint refuses or stays silent; what came before is in the file.
        """
        file = folder / FILE
        kept = _read(file)
        missing = [task for task in tasks if task.key not in kept or kept[task.key].value is None]
        with open(file, "a", encoding="utf-8") as lines, progress(phase, len(tasks), "judgments", len(tasks) - len(missing)) as shown:

            async def one(task: Task) -> None:
                kept[task.key] = await self._ask(task)
                _append(lines, kept[task.key])
                shown.advance()

            self._endpoints.run(self._endpoints.all([one(task) for task in missing]))
        return [kept[task.key] for task in tasks]

    async def _ask(self, task: Task) -> Judgment:
        messages, replies, tokens = list(task.messages), [], [0, 0]
        for _ in range(ATTEMPTS):
            answer = await self._endpoints.request("POST", CHAT, self._body(messages))
            text, used = _text(answer), _usage(answer)
            tokens = [tokens[0] + used[0], tokens[1] + used[1]]
            replies.append(f"no chat completion: {json.dumps(answer)[:500]}" if text is None else text)
            value = None if text is None else task.read(text)
            if value is not None:
                return Judgment(task.key, value, replies, *tokens)
            again = AGAIN.format(form=task.form)
            messages = [*task.messages, {"role": "assistant", "content": text or "-"}, {"role": "user", "content": again}]
        return Judgment(task.key, None, replies, *tokens)

    def _body(self, messages: Messages) -> dict[str, Any]:
        return {"model": self.section.model, "messages": messages, "temperature": 0, "max_tokens": MOST_TOKENS}


def _text(answer: Any) -> str | None:
    """The text of a chat completion, None for what has not its form."""
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return text if isinstance(text, str) else None


def _usage(answer: Any) -> tuple[int, int]:
    usage = answer.get("usage") if isinstance(answer, dict) else None
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if type(count) is int and count >= 0 else 0 for count in counts)
    return prompt, completion


def _append(lines: TextIO, judgment: Judgment) -> None:
    lines.write(json.dumps(asdict(judgment), ensure_ascii=False) + "\n")
    lines.flush()
    os.fsync(lines.fileno())


def _read(file: Path) -> dict[str, Judgment]:
    """What an attempt before has left. A kill may have cut the last line short: it is taken away."""
    if not file.exists():
        return {}
    kept, whole = {}, 0
    for line in file.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        judgment = Judgment(**json.loads(line))
        kept[judgment.key] = judgment
        whole += len(line)
    os.truncate(file, whole)
    return kept
