"""Sequential audit of a defense's claim: it stops as soon as the draws refute it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vleak.auditing.canaries import CanaryRun, Pair, canary_runs
from vleak.certificates import CurveTest, NoiseTest
from vleak.errors import InputError
from vleak.federated import Client, Privacy

__all__ = ["ClaimAudit", "Evidence", "audit_claim"]


@dataclass(frozen=True)
class ClaimAudit:
    """Outcome of a sequential audit.

    Attributes:
        refuted: whether the e-value reached 1 / level.
        e_value: mean of the e-values of all claims when the audit stopped: at most 1 is expected of an honest
            defense at any stop, and 20 reached with a probability of at most 1/20.
        draws: messages sent until then.
        claim: against which claim the evidence is strongest: a canary's name for the trade-off curve, or
            "noise" for the deviation that the channel states.
    """

    refuted: bool
    e_value: float
    draws: int
    claim: str


class Evidence:
    """E-values against what a defense claims: that the trade-off curve is at least that of the noise
    multiplier, for each canary (`vleak.certificates.CurveTest`, which assumes nothing), and that the noise is
    Gaussian with the deviation that the channel states (`NoiseTest`). Their mean is an e-value for all claims
    together, so that one may stop at any draw.
    """

    def __init__(self, privacy: Privacy, runs: Sequence[CanaryRun]) -> None:
        """Take the claim and the canaries that put it to the test."""
        self._curves = {name: CurveTest(privacy.noise_multiplier) for run in runs for name in run.canaries}
        deviation = runs[0].noise_deviation
        self._noise = None if deviation is None else NoiseTest(deviation)
        names = [*self._curves, *([] if self._noise is None else ["noise"])]
        self._logarithms = dict.fromkeys(names, 0.0)

    def observe(self, run: CanaryRun, pair: Pair) -> None:
        """Take two messages of a run."""
        for name, inside, outside in zip(run.canaries, pair.inside, pair.outside, strict=True):
            self._logarithms[name] = self._curves[name].observe(inside, outside)
        if self._noise is not None:
            self._logarithms["noise"] = [self._noise.observe(value) for value in pair.noise][-1]

    @property
    def log_e(self) -> float:
        """Logarithm of the mean of the e-values so far."""
        values = list(self._logarithms.values())
        return float(np.logaddexp.reduce(values)) - math.log(len(values))

    @property
    def strongest(self) -> str:
        """Claim with the strongest evidence against it: a canary's name for its curve, or "noise"."""
        return max(self._logarithms, key=lambda name: self._logarithms[name])


def audit_claim(
    client: Client,
    clips: Tensor,
    labels: Tensor,
    numbers: torch.Generator,
    *,
    most_draws: int = 500,
    level: float = 0.05,
) -> ClaimAudit:
    """Draw messages until a defense's claim is refuted, or there were enough of them.

    The bets are those of `Evidence`.

    Args:
        client, clips, labels, numbers: as of `empirical_epsilon`.
        most_draws: messages to send at most.
        level: rate of honest defenses that are refuted, at most; in (0, 1).

    Raises:
        InputError: a number out of its range, or as `canary_runs`.
        CapabilityError: as `canary_runs`.
    """
    if not 0 < level < 1:
        raise InputError(f"level is {level}, expected a number between 0 and 1, such as 0.05")
    privacy, runs = canary_runs(client, clips, labels, numbers)
    if isinstance(most_draws, bool) or not isinstance(most_draws, int) or most_draws < 2 * len(runs):
        raise InputError(f"most_draws is {most_draws}, expected a whole number from {2 * len(runs)}")
    evidence, draws = Evidence(privacy, runs), 0
    while draws + 2 * len(runs) <= most_draws and evidence.log_e < -math.log(level):
        for run in runs:
            evidence.observe(run, run.pair(numbers))
        draws += 2 * len(runs)
    refuted = evidence.log_e >= -math.log(level)
    return ClaimAudit(refuted, math.exp(min(evidence.log_e, 700.0)), draws, evidence.strongest)
