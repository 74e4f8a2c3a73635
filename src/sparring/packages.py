"""Optional packages: whether they are here."""

from __future__ import annotations

import importlib.util


def is_installed(package: str) -> bool:
    """A folder of that name is not one: Python would import it too, as an empty package."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None
