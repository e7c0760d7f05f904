"""Sequential audit of a defense's claim: it stops as soon as the draws refute it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vleak.auditing.canaries import canary_runs
from vleak.certificates import CurveTest, NoiseTest
from vleak.errors import InputError
from vleak.federated import Client

__all__ = ["ClaimAudit", "audit_claim"]


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

    Claims are that the trade-off curve is at least that of the noise multiplier, for each canary
    (`vleak.certificates.CurveTest`, which assumes nothing), and that the noise is Gaussian with the deviation
    that the channel states (`NoiseTest`). The mean of their e-values is an e-value for all claims together,
    so that the audit may stop at any draw.

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
    curves = {name: CurveTest(privacy.noise_multiplier) for run in runs for name in run.canaries}
    deviation = runs[0].noise_deviation
    noise = None if deviation is None else NoiseTest(deviation)
    draws, evidence = 0, dict.fromkeys([*curves, *([] if noise is None else ["noise"])], 0.0)
    while draws + 2 * len(runs) <= most_draws and _log_mean(evidence) < -math.log(level):
        for run in runs:
            pair = run.pair(numbers)
            for name, inside, outside in zip(run.canaries, pair.inside, pair.outside, strict=True):
                evidence[name] = curves[name].observe(inside, outside)
            if noise is not None:
                evidence["noise"] = [noise.observe(value) for value in pair.noise][-1]
        draws += 2 * len(runs)
    log_e = _log_mean(evidence)
    strongest = max(evidence, key=lambda name: evidence[name])
    return ClaimAudit(log_e >= -math.log(level), math.exp(min(log_e, 700.0)), draws, strongest)


def _log_mean(evidence: dict[str, float]) -> float:
    """Return the logarithm of the mean of e-values, given by their logarithms."""
    return float(np.logaddexp.reduce(list(evidence.values()))) - math.log(len(evidence))
