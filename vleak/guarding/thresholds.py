"""Thresholds of the guard: the largest score, and the largest figure of a check, that is let pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from vleak.errors import InputError, unknown_name


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Largest values that are let pass; infinity switches one off.

    The defaults were chosen on models of the seeds from 1000 and on synthetic clips of seed 1000, which no
    table of the documentation uses; `docs/detection.md` says what they catch and what they miss.

    Attributes:
        gain_db: of the attack on itself, in dB over the best answer without the update.
        correlation: of the attack on itself, residual correlation of its answer with the clip, -1 to 1.
        jacobian_energy: see `WarningScores`; it holds back what the short attack cannot yet read. Chosen on a
            small convolutional network: of a deep one it is strict.
        parallel_rows, passing_kernels, class_trap, class_bias, feature_trap: of the checks of these names.
        round_change, lone_units, dominant_clip, dominant_frame, batch_norm: likewise, see `CHECKS`.
    """

    gain_db: float = 0.75
    correlation: float = 0.7
    jacobian_energy: float = 0.02
    parallel_rows: float = 0.4
    passing_kernels: float = 0.25
    class_trap: float = 4.0
    class_bias: float = 10.0
    feature_trap: float = 0.7
    round_change: float = 2.0
    lone_units: float = 0.12
    dominant_clip: float = 12.0
    dominant_frame: float = 1.6
    batch_norm: float = 50.0

    def __post_init__(self) -> None:
        """Check that each is a number.

        Raises:
            InputError: one is not; NaN is none, since nothing is above it.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
                raise InputError(
                    f"threshold {field.name} is {value!r}, expected a number, or infinity to switch it off"
                )

    @classmethod
    def of(cls, given: Mapping[str, float] | Thresholds | None) -> Thresholds:
        """Return the defaults with some of them changed.

        Raises:
            InputError: an unknown name (the nearest are named), or a value that is no number.
        """
        if isinstance(given, Thresholds):
            return given
        known = [field.name for field in fields(cls)]
        for name in given or {}:
            if name not in known:
                raise unknown_name("threshold", str(name), known)
        return replace(cls(), **dict(given or {}))
