"""Attacks that solve for what a first linear layer saw."""

from vleak.attacks.analytic.closed_form import ClosedForm
from vleak.attacks.analytic.independent import Independent
from vleak.attacks.analytic.low_rank import NOTHING_VERIFIED, ROW_SPACE_ONLY, LowRank
from vleak.attacks.analytic.tokens import Tokens

__all__ = ["NOTHING_VERIFIED", "ROW_SPACE_ONLY", "ClosedForm", "Independent", "LowRank", "Tokens"]
