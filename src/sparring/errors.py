"""The error type for problems that the user can fix, and secrets kept out of every message."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator

HIDDEN = "***"
LEAST_SECRET = 8  # characters: a shorter one protects nothing and would match inside ordinary words
# the beginnings of the keys of hubs, model providers, trackers and clouds
_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:hf|sk|pk|gsk|xai|gh[opsu]|github_pat|glpat|r8|nvapi|wandb_v1)[-_]|AKIA|AIza)"
    r"(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{16,}"  # a digit is required, so that words joined by hyphens do not match
)
_IN_URL = (
    (re.compile(r"(?<=:/)(/*)[^\s/\"'<>]*@"), rf"\g<1>{HIDDEN}@"),  # user and password; a path has one slash
    (re.compile(r"(?i)([?&][\w.-]*(?:key|token|secret|passw|sig)[\w.-]*=)[^\s&\"'<>\])}]+"), rf"\g<1>{HIDDEN}"),
)
_BEARER = re.compile(r"(?i)(?<=\bbearer )[^\s\"']+")
_OF_A_SECRET = re.compile(r"(?i)(?:token|key|secret|password|passwd)$")


def without_secrets(text: str) -> str:
    """`text` with *** for passwords in URLs, keys of known services, and values of environment variables whose names say secret."""
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


class UserError(Exception):
    """Bad input. The command line prints it without a traceback and exits with code 2.

    `what` says what is wrong, with the value and the rule; `where` names the file, row or recipe key;
    `remedy` says what to do next. Secrets are removed from all three.
    """

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what = without_secrets(what)
        self.where, self.remedy = (text and without_secrets(text) for text in (where, remedy))
        lines = [f"{self.where}: {self.what}" if where else self.what]
        if remedy:
            lines.append(f"  -> {self.remedy}")
        super().__init__("\n".join(lines))


def nearest(word: str, valid: Iterable[str]) -> str | None:
    """The valid name that contains `word` (sft gives continued-sft), or the closest in spelling; None when nothing is close."""
    names = list(valid)
    matches = [name for name in names if word and word in re.split(r"[^a-z0-9]+", name)] or difflib.get_close_matches(word, names, 1, 0.5)
    return matches[0] if matches else None


def suggestion(word: str, valid: Iterable[str], otherwise: str = "", before: str = "") -> str:
    """The nearest valid name as a question, after the text `before`; `otherwise` if nothing is close."""
    guess = nearest(word, valid)
    return f"{before}did you mean {guess}?" if guess else otherwise


def first_line(error: BaseException) -> str:
    """A library's error in short: its first line, and the second if that ends in a colon, at most 300 characters; else its type's name."""
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    return (f"{first} {more[0].strip()}" if first.endswith(":") and more else first)[:300]


def require_package(package: str, what: str, where: str, extra: str, otherwise: str = "") -> None:
    """Raise UserError if Python cannot import the package. what: the beginning of the message; extra: of sparring, which installs it."""
    if not is_installed(package):
        raise UserError(f"{what} is not installed", where=where, remedy=f"pip install 'sparring[{extra}]'{otherwise}")


def is_installed(package: str) -> bool:
    """Whether Python can import the package. A folder of that name without code does not count, although Python would import it."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None
