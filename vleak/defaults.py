"""Defaults that the library, the command line and an attack share."""

from __future__ import annotations

__all__ = ["BUDGET", "NON_ADAPTIVE_CLIPS"]

BUDGET = 800
"""Iterations that `strongest` spends on trials for one model and defense."""
NON_ADAPTIVE_CLIPS = 4
"""Clips behind every defense that are also attacked without knowledge of it."""
