"""Conformance: a defense is held to its contract and to its claims, on the messages that it sends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vleak.conformance.checks import CHECKS, check_claim
from vleak.conformance.contract import CONTRACT
from vleak.conformance.probe import Probe
from vleak.errors import ContractError, InputError, VleakError, first_line, require
from vleak.federated import Defense, steps
from vleak.federated.claims import Claim

__all__ = ["FALSE_ALARM", "Check", "Conformance", "conform"]

FALSE_ALARM = 1e-6
"""Chance that a claim about randomness that holds is called broken, in one check of it."""


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: of the claim, or of the part of the contract.
        claim: what is claimed, with its settings; None for the contract.
        outcome: "holds"; "broken", also where the defense broke its contract so that nothing could be asked;
            or "not checked" where it refused the probe.
        detail: what was seen of a claim that is broken, or why it was not checked; else empty.
    """

    name: str
    claim: Claim | None
    outcome: Literal["holds", "broken", "not checked"]
    detail: str = ""


@dataclass(frozen=True)
class Conformance:
    """Results of all checks of a defense.

    Attributes:
        label: of the defense, with its strength.
        checks: contract first, then the claims in the order in which they are stated.
    """

    label: str
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing is broken."""
        return all(check.outcome != "broken" for check in self.checks)

    @property
    def refusal(self) -> str:
        """Why the defense sends nothing of the probe, so that its messages were not checked; else empty."""
        first = self.checks[0]
        return first.detail if first.outcome == "not checked" else ""


def conform(defense: Defense, *, seed: int = 0, false_alarm: float = FALSE_ALARM) -> Conformance:
    """Check a defense on a small model and random clips: its contract, and each of its claims.

    Neighbouring batches are replayed with equal randomness, which shows sensitivity, control flow and
    divisor without statistics (after Re:cord-play, arXiv 2602.17454). Claims about randomness are tested on
    some messages of one batch.

    Args:
        defense: any defense; one that claims nothing is held to its contract.
        seed: of clips, weights and randomness.
        false_alarm: chance in (0, 0.1] that a claim about randomness that holds is called broken.

    Raises:
        InputError: no defense, a number out of range, or claims that are of no known kind.
    """
    require("defense", defense, Defense, "an object of vleak.Defense, such as vleak.defenses.DpSgd()")
    if not 0 < false_alarm <= 0.1:
        raise InputError(f"conformance: false_alarm is {false_alarm}, expected a number in (0, 0.1]")
    claims = _claims(defense)
    refused = _checked("model", None, lambda: _takes_model(defense, seed))
    if refused.outcome != "holds":
        named = [*((name, None) for name in CONTRACT), *((claim.name, claim) for claim in claims)]
        checks = [Check(name, claim, refused.outcome, refused.detail) for name, claim in named]
        return Conformance(defense.label, tuple(checks))
    checks = [_checked(name, None, lambda part=part: part(defense, seed)) for name, part in CONTRACT.items()]  # type: ignore[misc]
    checks += [
        _checked(claim.name, claim, lambda claim=claim: check_claim(claim, defense, seed, false_alarm))  # type: ignore[misc]
        for claim in claims
    ]
    return Conformance(defense.label, tuple(checks))


def _takes_model(defense: Defense, seed: int) -> str:
    """Return nothing, or raise where the defense refuses the model of the probe."""
    steps.check_model(defense, Probe(seed=seed).model)
    return ""


def _claims(defense: Defense) -> list[Claim]:
    claims = list(steps.stated_claims(defense))
    for claim in claims:
        if type(claim) not in CHECKS:
            known = ", ".join(sorted(kind.__name__ for kind in CHECKS))
            raise InputError(
                f"defense {type(defense).__name__}: claims returned {type(claim).__name__}, expected one of "
                f"{known}"
            )
    return claims


def _checked(name: str, claim: Claim | None, check: Callable[[], str]) -> Check:
    try:
        broken = check()
    except ContractError as error:
        return Check(name, claim, "broken", first_line(error))
    except VleakError as error:
        return Check(name, claim, "not checked", first_line(error))
    return Check(name, claim, "broken" if broken else "holds", broken)
