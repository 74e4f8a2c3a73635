"""The targets: which replies to a prompt win and which lose. Pure functions from graded replies to winners and losers.

select.py    input and output of a target, and what all targets share: distinct replies, the role of the human reply; a table of
             grades as candidates
human.py     SPIN: the human reply wins, every reply of the opponent loses
verified.py  replies that a checker passes win, those that fail lose
majority.py  replies with the answer of most votes win, the others lose
window.py    the duels that an iteration trains on

To add a target, add a module with a function of the type `Target` and its name in TARGETS.
"""

from collections.abc import Mapping

from sparring.targets.human import human
from sparring.targets.majority import majority
from sparring.targets.select import Candidate, Candidates, Rules, Selection, Target
from sparring.targets.verified import verified

TARGETS: Mapping[str, Target] = {"human": human, "verified": verified, "majority": majority}

__all__ = ["TARGETS", "Candidate", "Candidates", "Rules", "Selection", "Target", "human", "majority", "verified"]
