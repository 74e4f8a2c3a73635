"""The report of a running game: rendered next to it, without disturbing it."""

from __future__ import annotations

import time
from pathlib import Path

from sparring.console import log
from sparring.report.outcome import REPORT

UPDATE_SECONDS = 60.0


def update_report(root: Path, is_over: bool) -> None:
    """Render the report of a running game. Errors, also of the plotting library, are logged and do not end the game.

    While the game runs, a page younger than a minute is kept: rendering takes seconds, which would slow short iterations down.
    """
    page = root / REPORT
    try:
        if is_over or not page.exists() or time.time() - page.stat().st_mtime >= UPDATE_SECONDS:
            from sparring.report.run_page import write_report  # imported late: it loads Matplotlib

            write_report(root)
    except Exception as error:
        log.warning(f"{REPORT} was not rendered ({type(error).__name__}; the traceback is in run.log): `sparring report {root}` retries")
        log.debug("the report ended here", exc_info=True)
