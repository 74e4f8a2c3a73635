"""The targets: which replies to a prompt win and which lose. Pure functions from graded replies to winners and losers.

select.py   input and output of a target, and what all targets share: distinct replies, the role of the human reply; a table of grades
            as candidates
builtin.py  the targets human, verified and majority
window.py   the duels that an iteration trains on

To add a target, add a module with a function of the type `Target` and its entry in config/specs.py.
"""

import importlib
from collections.abc import Mapping

from sparring.config.specs import TARGET_SPECS, TargetSpec
from sparring.targets.builtin import human, majority, verified
from sparring.targets.select import Candidate, Candidates, Rules, Selection, Target


def _function(spec: TargetSpec) -> Target:
    module, _, name = spec.function.partition(":")
    return getattr(importlib.import_module(f"sparring.targets.{module}"), name)


TARGETS: Mapping[str, Target] = {name: _function(spec) for name, spec in TARGET_SPECS.items()}

__all__ = ["TARGETS", "Candidate", "Candidates", "Rules", "Selection", "Target", "human", "majority", "verified"]
