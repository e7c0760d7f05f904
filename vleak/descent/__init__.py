"""Descents of gradient matching: what an attack solves, how one runs, and how many run side by side."""

from vleak.descent import timing
from vleak.descent.loop import ENGINES, Descent
from vleak.descent.problem import DescentSettings, Problem, State
from vleak.descent.scheduler import Group, run_descents, run_groups

__all__ = [
    "ENGINES",
    "Descent",
    "DescentSettings",
    "Group",
    "Problem",
    "State",
    "run_descents",
    "run_groups",
    "timing",
]
