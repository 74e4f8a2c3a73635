"""What happens where a checker cannot grade: some failures are counted, and many end the run."""

from __future__ import annotations

from collections.abc import Sequence

from sparring.checkers.grades import Grade
from sparring.errors import UserError

MOST_FAILURES = 0.05  # share of replies that a function of one's own may fail to score


def require_few_failures(texts: Sequence[str], grades: Sequence[Grade], name: str) -> int:
    """How many of the replies the checker of that name could not grade. Raises UserError where they are more than MOST_FAILURES."""
    failed = [(text, grade.reason) for text, grade in zip(texts, grades, strict=True) if grade.failed]
    if len(failed) > MOST_FAILURES * len(grades):
        text, reason = failed[0]
        raise UserError(
            f"{len(failed)} of {len(grades)} replies could not be graded, more than {MOST_FAILURES:.0%}; the first of them: {reason}",
            where=f"target.checker ({name}), on the reply {text[:200]!r}",
            remedy="correct the function, name columns that it needs in data.checker_columns, or raise target.timeout_seconds or "
            "target.memory_mb; nothing has to be sampled again",
        )
    return len(failed)
