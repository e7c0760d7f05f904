"""Empirical epsilon: what a defense's messages give away of canaries, beside what it claims."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vleak.auditing.canaries import CanaryRun, Pair, canary_runs
from vleak.auditing.sequential import Evidence
from vleak.certificates import METHODS, LowerBound, least_draws, lower_bounds, replacement_epsilon
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
        confidence: of the audit: one minus the chance that it refutes an honest claim. Half of that chance is
            the bounds', so that they all are true at once with more than this, and half that of the e-value.
        draws: messages of each world.
        canaries: bounds by canary.
        e_value: evidence against the claim by the same draws, as in `vleak.auditing.ClaimAudit`.
        e_claim: against which claim it is strongest.
        searchable: whether the noise can be searched through, as it depends on 32 bits of a seed alone.
    """

    claimed: float
    replaced: float
    delta: float
    unit: str
    confidence: float
    draws: int
    canaries: tuple[CanaryBounds, ...]
    e_value: float
    e_claim: str
    searchable: bool

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
        """Whether the claim is refuted: some bound is above it, or the e-value reached 2 / (1 - confidence).

        Of an honest defense with the claim of Gaussian noise, in at most 1 - ``confidence`` of the audits.
        """
        return self.lower.epsilon > self.claimed or self.e_value >= 2 / (1 - self.confidence)


def empirical_epsilon(
    client: Client,
    clips: Tensor,
    labels: Tensor,
    numbers: torch.Generator,
    *,
    draws: int = 4000,
    confidence: float = 0.95,
    progress: Callable[[int], None] | None = None,
) -> EmpiricalEpsilon:
    """Return lower bounds on the epsilon of what a client sends, from canaries in its batch.

    Every canary has a bound by every method, and all together hold with ``confidence`` (Bonferroni): of an
    honest defense the claim is refuted in at most 1 - ``confidence`` of the audits. Half of that error goes
    to the bounds and half to an e-value (`Evidence`), which finds too little noise with fewer draws. The
    bounds are of what arrives, clipped, noised and encoded; the gradients of the batch are computed once.
    The bound that takes the scores for Gaussian ones is left out where the defense's channel does not say
    that they are.

    Args:
        client: whose defense claims privacy; see `canary_runs` for what of it is audited.
        clips: (N, C, T, H, W) float32 in [0, 1], or what else the client takes; the first one is a canary.
        labels: (N,) int64.
        numbers: CPU generator of the audit; every message has one of its own, seeded from it.
        draws: messages with, and as many without each canary, at least 20.
        confidence: in (0, 1).
        progress: called with the number of draws so far; may raise to end the audit.

    Raises:
        InputError: too few draws, a confidence that is none, or as `canary_runs`.
        CapabilityError: as `canary_runs`.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}, expected a number between 0 and 1, such as 0.95")
    privacy, runs = canary_runs(client, clips, labels, numbers)
    failure = (1 - confidence) / (2 * METHODS * sum(len(run.canaries) for run in runs))
    _check_draws(draws, 1 - failure)
    evidence, pairs = Evidence(privacy, runs), [list[Pair]() for _ in runs]
    for draw in range(draws):
        for run, drawn in zip(runs, pairs, strict=True):
            drawn.append(run.pair(numbers))
            evidence.observe(run, drawn[-1])
        if progress is not None:
            progress(draw + 1)
    found = [each for run, drawn in zip(runs, pairs, strict=True)
             for each in _bounds(run, drawn, privacy.delta, 1 - failure)]  # fmt: skip
    return EmpiricalEpsilon(
        claimed=privacy.epsilon,
        replaced=replacement_epsilon(privacy.noise_multiplier, privacy.delta),
        delta=privacy.delta,
        unit=privacy.unit,
        confidence=confidence,
        draws=draws,
        canaries=tuple(found),
        e_value=math.exp(min(evidence.log_e, 700.0)),
        e_claim=evidence.strongest,
        searchable=any(run.repeats() for run in runs),
    )


def _check_draws(draws: int, confidence: float) -> None:
    """Refuse too few draws for any bound.

    Raises:
        InputError: says how many would do.
    """
    least = least_draws(confidence)
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < least:
        raise InputError(
            f"draws is {draws}, expected a whole number from {least}; 1,000 say something, 4,000 nearly all "
            "that there is to say"
        )


def _bounds(run: CanaryRun, pairs: list[Pair], delta: float, confidence: float) -> list[CanaryBounds]:
    """Return the bounds of every canary of a run, each with the confidence."""
    inside, outside = (np.stack(side) for side in zip(*((p.inside, p.outside) for p in pairs), strict=True))
    found = []
    for index, (canary, norm) in enumerate(zip(run.canaries, run.norms, strict=True)):
        bounds = lower_bounds(inside[:, index], outside[:, index], delta, confidence)
        # A message that leaves out entries has scores of another shape.
        kept = [bound for bound in bounds if run.gaussian or bound.method != "gaussian"]
        found.append(CanaryBounds(canary, norm / run.clip_norm, tuple(kept)))
    return found
