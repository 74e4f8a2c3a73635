"""A judge behind an OpenAI-compatible endpoint: every judgment is stored as it arrives and never requested twice."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparring.config import ENGINES, ServerSection
from sparring.console import log
from sparring.data.turns import without_surrogates
from sparring.errors import require_package
from sparring.evaluation.judge_prompts import AGAIN, ChatMessages
from sparring.progress import progress
from sparring.rundir import digest

OPTION, KEY_OPTION = "--judge", "--key-env"
CHAT = "/chat/completions"
ATTEMPTS = 3  # requests until a reply can be parsed
MOST_TOKENS = 1024  # of a judgment
MOST_WITH_REASONING = 8192  # if the endpoint counts reasoning tokens too
MOST_KEPT = 20_000  # characters of a reply: some endpoints do not stop at max_tokens
OF_ONE_QUESTION = (400, 413, 422)  # status codes for one refused request: a content filter, a context that is too short
FILE = "judgments.jsonl"


@dataclass(frozen=True)
class JudgeTask:
    """One judgment to request. `read` parses a reply, None if it cannot be parsed; `form` is the required last line."""

    key: str
    messages: ChatMessages
    read: Callable[[str], Any]
    form: str

    @property
    def asked(self) -> str:
        """Hash of the messages to the judge: an earlier version may have used the same key for other texts."""
        return digest(self.messages)


@dataclass
class Judgment:
    """`value` is None if no reply could be parsed. `replies` are those of all attempts; tokens are their sum as counted by the endpoint,
    `uncounted` the number of replies without a count. `asked` is that of the task."""

    key: str
    value: Any = None
    replies: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    asked: str = ""


class Judge:
    """A client of one judge model; close it after use."""

    def __init__(self, section: ServerSection) -> None:
        """Raises UserError if the key or the HTTP package is missing."""
        assert section.model is not None
        package = str(ENGINES["server"].package)
        require_package(package, f"a judge needs the package {package}, which", OPTION, "server")
        from sparring.opponent.endpoints import Endpoints, Names, read_key

        self.section = section
        self._settings: dict[str, Any] = {"temperature": 0, "max_tokens": MOST_TOKENS}
        names = Names(
            where=OPTION,
            server=f"{OPTION} and --judge-model",
            key=KEY_OPTION,
            limits="--concurrency, --timeout-seconds, --retries",
            manual="`sparring docs evaluation` says what a judge must support",
        )
        self._endpoints = Endpoints(section, read_key(section, KEY_OPTION), names)

    def close(self) -> None:
        """Close the connections. It judges no more."""
        self._endpoints.close()

    def judge(self, folder: Path, tasks: Sequence[JudgeTask], phase: str, earlier: Sequence[Judgment] = ()) -> list[Judgment]:
        """The judgments in the order of the tasks; those with a value in the folder's file are not requested again.

        earlier: judgments of an earlier call; those that are needed here too are copied into the file first.
        Raises UserError if the endpoint refuses or does not answer; the file keeps the judgments so far.
        """
        file = folder / FILE
        stored = read_judgments(file)
        known = {(one.key, one.asked): one for one in stored or earlier}
        kept = {task.key: known.get((task.key, task.asked)) or Judgment(task.key, asked=task.asked) for task in tasks}
        if not stored:
            _append(file, [one for one in kept.values() if one.replies])
        missing = [task for task in tasks if kept[task.key].value is None]
        with progress(phase, len(tasks), "judgments", len(tasks) - len(missing)) as shown:

            async def one(task: JudgeTask) -> None:
                await self._ask(task, kept)
                _append(file, [kept[task.key]])
                shown.advance()

            self._endpoints.run(self._endpoints.all([one(task) for task in missing]))
        return [kept[task.key] for task in tasks]

    async def _ask(self, task: JudgeTask, judgments: Mapping[str, Judgment]) -> None:
        """Request one of the judgments until a reply can be parsed, and add the replies and their cost to it."""
        from sparring.opponent.endpoints import Refused

        found, messages = judgments[task.key], task.messages
        most = len(found.replies) + ATTEMPTS
        while found.value is None and len(found.replies) < most:
            sent = dict(self._settings)
            try:
                answer = await self._endpoints.request("POST", CHAT, {"model": self.section.model, "messages": messages, **sent})
            except Refused as error:
                if error.status == 400 and (self._settings != sent or self._adapts(error.what)):
                    continue
                # a refusal is due to this content only if the endpoint has answered other requests
                if error.status not in OF_ONE_QUESTION or all(judgment.value is None for judgment in judgments.values()):
                    raise
                found.replies.append(error.what)
                break
            text = _text(answer)
            _count_tokens(found, answer)
            found.replies.append(self._endpoints.hidden(f"no chat completion: {json.dumps(answer)}" if text is None else text)[:MOST_KEPT])
            found.value = None if text is None else task.read(text)
            again = AGAIN.format(form=task.form)
            messages = [*task.messages, {"role": "assistant", "content": text or "-"}, {"role": "user", "content": again}]

    def _adapts(self, what: str) -> bool:
        """Drop a setting that the endpoint refuses, as some do for reasoning models, for all requests; False if there is none."""
        if "max_completion_tokens" in what and "max_tokens" in self._settings:
            del self._settings["max_tokens"]
            self._settings["max_completion_tokens"] = MOST_WITH_REASONING
        elif "temperature" in self._settings and re.search("temperature.*support|support.*temperature", what, re.IGNORECASE):
            del self._settings["temperature"]
        else:
            return False
        log.info(f"judge: the endpoint refuses a setting; requests now have {self._settings}")
        return True


def _text(answer: Any) -> str | None:
    """The text of a chat completion, as one string or in parts; None for another format."""
    try:
        content = answer["choices"][0]["message"]["content"]
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    except (KeyError, IndexError, TypeError):
        return None
    return without_surrogates(text)


def _count_tokens(found: Judgment, answer: Any) -> None:
    """Add the tokens of one reply, as far as the endpoint has counted them."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if type(count) is int and count >= 0 else None for count in counts)
    found.prompt_tokens += prompt or 0
    found.completion_tokens += completion or 0
    found.uncounted += prompt is None or completion is None


def _append(file: Path, judgments: Iterable[Judgment]) -> None:
    with open(file, "a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(asdict(judgment), ensure_ascii=False) + "\n" for judgment in judgments)
        lines.flush()
        os.fsync(lines.fileno())


def read_judgments(file: Path) -> list[Judgment]:
    """The stored judgments, the newest of a key last. A last line that was cut by a kill is removed."""
    if not file.exists():
        return []
    found, whole = [], 0
    for line in file.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        found.append(Judgment(**json.loads(line)))
        whole += len(line)
    if whole < file.stat().st_size:
        os.truncate(file, whole)
    return found
