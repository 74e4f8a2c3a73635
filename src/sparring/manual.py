"""The pages of the documentation, which come with the package: so that an error can name one that everybody has."""

from __future__ import annotations

from pathlib import Path

from sparring.errors import UserError, nearest

PAGES = Path(__file__).parent / "docs"


def pages() -> dict[str, str]:
    """Name -> title of every page, in the order of their names."""
    return {path.stem: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for path in sorted(PAGES.glob("*.md"))}


def page(name: str) -> str:
    """The text of a page, in Markdown. Raises UserError where there is no such page."""
    names = list(pages())
    if name not in names:
        guess = nearest(name, names)
        remedy = f"did you mean {guess}?" if guess else f"the pages are {', '.join(names)}"
        raise UserError(f"no page named {name!r}", where="sparring docs", remedy=remedy)
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")
