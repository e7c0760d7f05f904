"""Descents of gradient matching: what an attack solves, how one runs, and how many run side by side."""

from vleak.descent.loop import ENGINES, Descent
from vleak.descent.problem import DescentSettings, Problem, State
from vleak.descent.scheduler import Group, run_descents, run_groups
from vleak.descent.timing import Call, Measured, interleaved, iterations_needed

__all__ = [
    "ENGINES",
    "Call",
    "Descent",
    "DescentSettings",
    "Group",
    "Measured",
    "Problem",
    "State",
    "interleaved",
    "iterations_needed",
    "run_descents",
    "run_groups",
]
