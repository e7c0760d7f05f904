"""Empirical epsilon: what a defense's messages give away of canaries, beside what it claims."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vleak.auditing.canaries import CanaryRun, canary_runs
from vleak.certificates import LEAST_DRAWS, METHODS, LowerBound, lower_bounds, replacement_epsilon
from vleak.errors import InputError
from vleak.federated import Client

__all__ = ["CanaryBounds", "EmpiricalEpsilon", "empirical_epsilon"]


@dataclass(frozen=True)
class CanaryBounds:
    """Lower bounds on epsilon from one canary.

    Attributes:
        canary: "own clip", or an orthogonal gradient and its norm.
        norm: of its gradient, in clipping norms: below 1 the canary cannot reach the claimed epsilon.
        bounds: one a method, the least assuming first.
    """

    canary: str
    norm: float
    bounds: tuple[LowerBound, ...]


@dataclass(frozen=True)
class EmpiricalEpsilon:
    """Lower bounds on a defense's epsilon, beside the epsilon that it claims of one release.

    Attributes:
        claimed: epsilon of one release, for a unit that is replaced by zero.
        replaced: claimed epsilon for a unit that is replaced by another.
        delta: of all epsilons here.
        unit: what is protected.
        confidence: probability that all bounds are true at once, if their assumptions are.
        draws: messages of each world.
        canaries: bounds by canary.
    """

    claimed: float
    replaced: float
    delta: float
    unit: str
    confidence: float
    draws: int
    canaries: tuple[CanaryBounds, ...]

    def bound(self, method: str) -> LowerBound:
        """Return the largest bound of a method (`vleak.certificates.ASSUMPTIONS`) over the canaries.

        Raises:
            InputError: no bound was computed by it.
        """
        found = [bound for canary in self.canaries for bound in canary.bounds if bound.method == method]
        if not found:
            known = ", ".join(bound.method for bound in self.canaries[0].bounds)
            raise InputError(f"unknown method {method!r}; known: {known}")
        return max(found, key=lambda bound: bound.epsilon)

    @property
    def lower(self) -> LowerBound:
        """The largest bound of all."""
        return max((self.bound(b.method) for b in self.canaries[0].bounds), key=lambda bound: bound.epsilon)

    @property
    def refuted(self) -> bool:
        """Whether the claim is refuted: some bound is above it.

        Of an honest defense with the claim of Gaussian noise, in at most 1 - ``confidence`` of the audits.
        """
        return self.lower.epsilon > self.claimed


def empirical_epsilon(
    client: Client,
    clips: Tensor,
    labels: Tensor,
    numbers: torch.Generator,
    *,
    draws: int = 4000,
    confidence: float = 0.95,
) -> EmpiricalEpsilon:
    """Return lower bounds on the epsilon of what a client sends, from canaries in its batch.

    Every canary has a bound by every method, and together they hold with ``confidence`` (Bonferroni): of an
    honest defense the claim is refuted in at most 1 - ``confidence`` of the audits. The bounds are of what
    arrives, clipped, noised and encoded; the gradients of the batch are computed once. The bound that
    takes the scores for Gaussian ones is left out where the defense's channel does not say that they are.

    Args:
        client: whose defense claims privacy; see `canary_runs` for what of it is audited.
        clips: (N, C, T, H, W) float32 in [0, 1], or what else the client takes; the first one is a canary.
        labels: (N,) int64.
        numbers: CPU generator of the audit; every message has one of its own, seeded from it.
        draws: messages with, and as many without each canary, at least 20.
        confidence: in (0, 1).

    Raises:
        InputError: too few draws, a confidence that is none, or as `canary_runs`.
        CapabilityError: as `canary_runs`.
    """
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < LEAST_DRAWS:
        raise InputError(
            f"draws is {draws}, expected a whole number from {LEAST_DRAWS}; 1,000 say something, 4,000 "
            "nearly all that there is to say"
        )
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}, expected a number between 0 and 1, such as 0.95")
    privacy, runs = canary_runs(client, clips, labels, numbers)
    failure = (1 - confidence) / (METHODS * sum(len(run.canaries) for run in runs))
    found = [bounds for run in runs for bounds in _bounds(run, draws, privacy.delta, 1 - failure, numbers)]
    return EmpiricalEpsilon(
        claimed=privacy.epsilon,
        replaced=replacement_epsilon(privacy.noise_multiplier, privacy.delta),
        delta=privacy.delta,
        unit=privacy.unit,
        confidence=confidence,
        draws=draws,
        canaries=tuple(found),
    )


def _bounds(
    run: CanaryRun, draws: int, delta: float, confidence: float, numbers: torch.Generator
) -> list[CanaryBounds]:
    """Return the bounds of every canary of a run, each with the confidence."""
    pairs = [run.pair(numbers) for _ in range(draws)]
    inside, outside = (np.stack(side) for side in zip(*((p.inside, p.outside) for p in pairs), strict=True))
    found = []
    for index, (canary, norm) in enumerate(zip(run.canaries, run.norms, strict=True)):
        bounds = lower_bounds(inside[:, index], outside[:, index], delta, confidence)
        # A message that leaves out entries has scores of another shape.
        kept = [bound for bound in bounds if run.gaussian or bound.method != "gaussian"]
        found.append(CanaryBounds(canary, norm / run.clip_norm, tuple(kept)))
    return found
