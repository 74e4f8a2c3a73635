"""The report of a game under way: drawn beside it, and never in its way."""

from __future__ import annotations

import time
from pathlib import Path

from sparring.console import log
from sparring.report.summary import REPORT

REDRAW_SECONDS = 60.0


def keep_report(root: Path, is_over: bool) -> None:
    """Draw the report of a run that is being played. What goes wrong is told and costs the game nothing, be it the plotting library.

    While the game goes on, a page younger than a minute stays as it is: drawing takes seconds, which short iterations would feel.
    """
    page = root / REPORT
    try:
        if is_over or not page.exists() or time.time() - page.stat().st_mtime >= REDRAW_SECONDS:
            from sparring.report.run_page import write_report  # here, for it loads Matplotlib

            write_report(root)
    except Exception as error:
        log.warning(f"{REPORT} was not rendered ({type(error).__name__}; the traceback is in run.log): `sparring report {root}` retries")
        log.debug("the report ended here", exc_info=True)
