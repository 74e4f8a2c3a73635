"""Who wins and who loses of the replies to a prompt. Pure functions: replies with their grades in, winners and losers out.

select.py    what a target sees and gives, and what all targets have in common: distinct replies, the human reply's part
human.py     SPIN: the human reply wins, every reply of the opponent loses
verified.py  replies that a checker passes win, those that fail lose
majority.py  replies with the answer of most votes win, the others lose
graded.py    a table of grades as the candidates of every prompt
window.py    the duels that an iteration trains on

Another target is one more module with a function of the type `Target`, and its name in TARGETS.
"""

from collections.abc import Mapping

from sparring.targets.human import human
from sparring.targets.majority import majority
from sparring.targets.select import Candidate, Candidates, Rules, Selection, Target
from sparring.targets.verified import verified

TARGETS: Mapping[str, Target] = {"human": human, "verified": verified, "majority": majority}

__all__ = ["TARGETS", "Candidate", "Candidates", "Rules", "Selection", "Target", "human", "majority", "verified"]
