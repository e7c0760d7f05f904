"""Verdict of an audit: confidence of the attacker, the risk on a stated scale, and where it points to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vleak.update_audit.records import (
    Check,
    Confidence,
    DefenseTrial,
    DetectionScore,
    Measured,
    Pointer,
    Rehearsal,
    Risk,
    RiskLevel,
)

__all__ = ["AGREES", "REBUILT", "RISK_SCALE", "pointers", "risk_of"]

AGREES = 0.5
"""Correlation of two starts beyond the answer without the update, from which they are said to agree."""

REBUILT = 0.3
"""Correlation from which a recognised clip is said to be rebuilt: one in twelve is recognised by luck."""

_HELPS = 0.5
"""Share of the correlation without a defense below which a defense is said to help."""

RISK_SCALE: Mapping[RiskLevel, str] = {
    "high": "somebody who holds this update rebuilds recognisable private clips",
    "moderate": "the update tells of the private clips more than public knowledge does, but the attacker "
    "could "
    "not vouch for a picture",
    "low": "these attacks found nothing in this budget; a longer or better one may",
    "undetermined": "update and facts do not fit together, or no attack was run to its end, so that nothing "
    "is said of risk",
}
"""Meaning of every level."""


def risk_of(
    checks: Sequence[Check],
    confidence: Confidence,
    rehearsals: Sequence[Rehearsal],
    measured: Sequence[Measured],
    detection: Sequence[DetectionScore] = (),
    *,
    asked: bool = True,
) -> Risk:
    """Return the level of risk with its reasons, a planted model among them.

    "undetermined" where a check is wrong or there is no answer. Else "high" where the truth was given and is
    recognised, not by luck; or where starts agree, the answer explains the update as well as needed, and most
    dummies were rebuilt: without that, agreement says nothing, as two starts agree on the same noise. Else
    "moderate" where starts agree, the answer explains the update better than every public clip, and a dummy
    was rebuilt or none was tried; or where the truth is linked. Else "low".

    Args:
        checks: of consistency. confidence: of the attacker. rehearsals: on dummies. measured: with the truth.
        detection: scores of guards. asked: whether an attack was asked for.
    """
    wrong = [check for check in checks if check.outcome == "wrong"]
    if wrong:
        return _risk("undetermined", *(f"{check.name}: {check.detail}" for check in wrong))
    if confidence.explained is None:
        return _risk("undetermined", "no attack gave an answer" if asked else "no attack was asked for")
    agrees = confidence.agreement is not None and confidence.agreement >= AGREES
    enough = confidence.explained_needed is not None and confidence.explained >= confidence.explained_needed
    beyond = confidence.explained > confidence.explained_by_public
    rebuilt = sum(rehearsal.rebuilt for rehearsal in rehearsals)
    practised = bool(rehearsals) and 2 * rebuilt >= len(rehearsals)
    hinted = beyond and agrees and (rebuilt > 0 or not rehearsals)
    found = sum(score.recognised and score.correlation >= REBUILT for score in measured)
    linked = sum(score.linked for score in measured)
    reasons = [
        _words(measured, found, linked),
        f"answers of independent starts {'agree' if agrees else 'do not agree'} "
        f"({_number(confidence.agreement)}, "
        f"needed {AGREES})",
        f"the rebuilt clips cause an update with cosine {confidence.explained:.2f} to the captured one; "
        "the best "
        f"public clip reaches {confidence.explained_by_public:.2f}, needed is "
        f"{_number(confidence.explained_needed)}",
        f"{rebuilt} of {len(rehearsals)} dummies were rebuilt and recognised by the same attack",
        *(
            f"the model has what servers plant, {score.name} in {score.layer!r}: attacks that read it get "
            "more than these"
            for score in detection
            if score.alarm and score.of == "model"
        ),
    ]
    sure = agrees and enough and practised
    if found or sure:
        level: RiskLevel = "high"
        reasons.append(f"the attacker himself {'can' if sure else 'cannot'} tell that he rebuilt them")
    else:
        level = "moderate" if hinted or linked else "low"
    return _risk(level, *filter(None, reasons))


def _words(measured: Sequence[Measured], found: int, linked: int) -> str:
    if not measured:
        return ""
    count = measured[0].candidates
    return (
        f"of {len(measured)} true clips {found} were recognised and {linked} linked, among {count} candidates"
    )


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}"


def _risk(level: RiskLevel, *reasons: str) -> Risk:
    return Risk(level=level, meaning=RISK_SCALE[level], reasons=reasons)


def pointers(risk: Risk, defenses: Sequence[DefenseTrial], stated: str) -> tuple[Pointer, ...]:
    """Return the places in public documents that the results speak to.

    Args:
        risk: of the audit.
        defenses: that were tried on a dummy.
        stated: the client's defense.
    """
    proven = [trial.defense for trial in defenses if trial.epsilon is not None]
    helped = [trial.defense for trial in defenses if trial.left is not None and trial.left < _HELPS]
    return (
        Pointer(
            document="NIST SP 800-226, Guidelines for Evaluating Differential Privacy Guarantees",
            place="unit of privacy, epsilon and delta; privacy of intermediate updates in federated learning",
            result=f"the client states {stated!r}; of the defenses tried {', '.join(proven) or 'none'} "
            "prove an "
            "epsilon, for one update, which stands in the table",
        ),
        Pointer(
            document="OWASP AISVS",
            place="C11.2, evaluation against known attacks, with attacks that know the defense",
            result=f"risk {risk.level}, by attacks that were given the defense",
        ),
        Pointer(
            document="EDPB Opinion 28/2024",
            place="means reasonably likely to be used to extract personal data",
            result=f"risk {risk.level}, by public attacks on one machine within the stated budget; on a "
            "dummy "
            f"{', '.join(helped) or 'no defense'} took more than half of the correlation away",
        ),
    )
