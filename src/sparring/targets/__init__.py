"""The targets: which replies to a prompt win and which lose. Pure functions from graded replies to winners and losers.

select.py    input and output of a target, and what all targets share: distinct replies, the role of the human reply; a table of
             grades as candidates
human.py     SPIN: the human reply wins, every reply of the opponent loses
verified.py  replies that a checker passes win, those that fail lose
majority.py  replies with the answer of most votes win, the others lose
window.py    the duels that an iteration trains on

To add a target, add a module with a function of the type `Target` and its entry in config/targets.py.
"""

import importlib
from collections.abc import Mapping

from sparring.config.targets import TARGET_SPECS, TargetSpec
from sparring.targets.human import human
from sparring.targets.majority import majority
from sparring.targets.select import Candidate, Candidates, Rules, Selection, Target
from sparring.targets.verified import verified


def _function(spec: TargetSpec) -> Target:
    module, _, name = spec.function.partition(":")
    return getattr(importlib.import_module(f"sparring.targets.{module}"), name)


TARGETS: Mapping[str, Target] = {name: _function(spec) for name, spec in TARGET_SPECS.items()}

__all__ = ["TARGETS", "Candidate", "Candidates", "Rules", "Selection", "Target", "human", "majority", "verified"]
