"""What the player minimises, one file per objective: formula, options, requirements. docs/contributing.md shows how to add one.

spin.py        equation 4.7 with each of its four functions
space.py t_spin.py alpha_spin.py   the objectives that followed it
likelihood.py  the likelihood of winners alone; the NLL term of the other losses
own.py         a function of the user
shared.py      the interface and what the objectives share
"""

from sparring.objectives.alpha_spin import AlphaSpin
from sparring.objectives.likelihood import Likelihood
from sparring.objectives.own import OwnObjective
from sparring.objectives.shared import Objective
from sparring.objectives.space import Space
from sparring.objectives.spin import Spin
from sparring.objectives.t_spin import TSpin
from sparring.own_code import OWN_CODE, is_own_code

KINDS: tuple[type[Objective], ...] = (Spin, Space, TSpin, AlphaSpin, Likelihood, OwnObjective)
OBJECTIVES = {name: kind for kind in KINDS for name in kind.names}


def kind_of(loss: str) -> type[Objective] | None:
    """The class of a value of `objective.loss`; None for an unknown value."""
    return OBJECTIVES.get(OWN_CODE if is_own_code(loss) else loss)


def names_taking(option: str) -> str:
    """The values of `objective.loss` with which an option has an effect."""
    return ", ".join(name for name, kind in OBJECTIVES.items() if kind.takes(option))


def in_words() -> str:
    """One sentence that lists every value of `objective.loss` with its description."""
    return "; ".join(f"{', '.join(f'`{name}`' for name in kind.names)} {kind.about}" for kind in KINDS)
