"""What one does with a run that is over."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparring.report.summary import REPORT


def next_steps(root: Path, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what for, the command or the file). Export takes the arm that stands first."""
    run = shlex.quote(str(root))
    ranked = summary.get("ranking")
    which = f" --iteration {ranked[0]['player']}" if ranked else ""
    found = [("look", str(root / REPORT))] if (root / REPORT).exists() else [("look", f"sparring report {run}")]
    return [
        *found,
        ("ask", f'sparring sample {run} "a prompt of yours"'),
        ("compare", f"sparring compare {run} ANOTHER_RUN"),
        ("take away", f"sparring export {run} NEW_FOLDER{which}"),
    ]
