"""Keeps secrets out of messages and logs. All output is filtered here, because any library may repeat a secret."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

HIDDEN = "***"
LEAST_SECRET = 8  # characters: a shorter one protects nothing and would match inside ordinary words
# the beginnings of the keys of hubs, model providers, trackers and clouds
_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:hf|sk|pk|gsk|xai|gh[opsu]|github_pat|glpat|r8|nvapi|wandb_v1)[-_]|AKIA|AIza)"
    r"(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{16,}"  # with a digit, as none of twenty words joined by hyphens has
)
_IN_URL = (
    (re.compile(r"(?<=:/)(/*)[^\s/\"'<>]*@"), rf"\g<1>{HIDDEN}@"),  # user and password; a path has one slash
    (re.compile(r"(?i)([?&][\w.-]*(?:key|token|secret|passw|sig)[\w.-]*=)[^\s&\"'<>\])}]+"), rf"\g<1>{HIDDEN}"),
)
_BEARER = re.compile(r"(?i)(?<=\bbearer )[^\s\"']+")
_OF_A_SECRET = re.compile(r"(?i)(?:token|key|secret|password|passwd)$")


def without_secrets(text: str) -> str:
    """`text` without passwords in URLs, what looks like a key of a known service, and the values of the environment that are named so."""
    for value in _of_environment():
        text = text.replace(value, HIDDEN)
    for pattern, replacement in _IN_URL:
        text = pattern.sub(replacement, text)
    return _KEY.sub(HIDDEN, _BEARER.sub(HIDDEN, text))


def holds_a_password(text: str) -> bool:
    """Whether the text, taken for a URL, has a user and password or a key in it."""
    return any(pattern.search(text) for pattern, _ in _IN_URL)


def looks_like_a_key(text: str) -> bool:
    """Whether the whole text has the form of a key."""
    return _KEY.fullmatch(text) is not None


def _of_environment() -> Iterator[str]:
    """The values of variables such as HF_TOKEN and OPENAI_API_KEY."""
    return (value for name, value in os.environ.items() if len(value) >= LEAST_SECRET and _OF_A_SECRET.search(name))
