"""The text that a package index shows: README.md, whose links lead to files that only a clone has. All else is in pyproject.toml."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
PICTURE = re.compile(r"!\[[^\]]+\]\((?!https?://)([^)\s]+)\)\n")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?://|#)([^)#\s]+)(#[^)\s]*)?\)")


def long_description(address: str | None) -> str:
    """README.md with links that work anywhere: to the files at the project's `address`, or else the command that prints the page.

    Pictures, which only a clone or the address has as files, are left out.
    """

    def elsewhere(found: re.Match[str]) -> str:
        words, path, part = found[1], found[2], found[3] or ""
        if address is not None:
            return f"[{words}]({address.rstrip('/')}/{path}{part})"
        command = f"`sparring docs {Path(path).stem}`"
        return command if words == path else f"{words} ({command})"

    return LINK.sub(elsewhere, PICTURE.sub("", (HERE / "README.md").read_text(encoding="utf-8")))


if __name__ == "__main__":
    urls = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    setup(long_description=long_description(urls.get("Files")), long_description_content_type="text/markdown")
