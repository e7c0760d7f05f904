"""Claims and audited epsilons of defenses: what a baseline keeps of them, and what broke by a night.

Claims are checked anew, by the code that is installed, on what the defenses send. Audits are those of the
runs. Both are among the tests that the promise on false alarms is divided by: a claim is checked at the level
of one test, and an audit fails a night only where its e-value reaches that of one test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vleak.conformance import FALSE_ALARM, Check, conform
from vleak.defenses import parse_defenses
from vleak.errors import InputError, VleakError, first_line
from vleak.federated import Defense
from vleak.regression.records import AuditState, Baseline, ClaimState, Finding
from vleak.results import RunRecord

__all__ = ["Statements", "audit_states", "claim_states", "judge_statements", "statement_count"]

Progress = Callable[[str, int, int], None]


@dataclass
class Statements:
    """What a night found of claims and audits.

    Attributes:
        findings: what broke. not_judged: what could not be compared, and why. notes: what the baseline lacks.
    """

    findings: list[Finding] = field(default_factory=list)
    not_judged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def claim_states(
    defenses: Sequence[str], progress: Progress, *, false_alarm: float = FALSE_ALARM
) -> tuple[ClaimState, ...]:
    """Check the claims of defenses, and that they keep their contract.

    Args:
        defenses: texts, as a run's settings have them.
        progress: called as (what, defenses checked, defenses in all).
        false_alarm: chance that a claim about randomness that holds is called broken.
    """
    found = list[ClaimState]()
    for place, text in enumerate(defenses):
        progress("checking claims", place, len(defenses))
        try:
            made = conform(_one(text), false_alarm=false_alarm)
        except VleakError as error:
            found.append(
                ClaimState(defense=text, name="all", outcome="not checked", detail=first_line(error))
            )
            continue
        found += [_state(text, check) for check in made.checks]
    return tuple(found)


def _one(text: str) -> Defense:
    strengths = parse_defenses(text)
    if len(strengths) != 1:
        raise InputError(f"defense {text!r} names {len(strengths)} strengths; give its settings")
    return strengths[0]


def _state(text: str, check: Check) -> ClaimState:
    settings = "" if check.claim is None else ", ".join(f"{k} {v}" for k, v in vars(check.claim).items())
    return ClaimState(
        defense=text, name=check.name, settings=settings, outcome=check.outcome, detail=check.detail
    )


def audit_states(records: Sequence[RunRecord]) -> tuple[AuditState, ...]:
    """Return of every defense and model what the audits of some runs found: the largest lower bound."""
    states: dict[tuple[str, str, str], AuditState] = {}
    for audit in (audit for record in records for audit in record.audits if audit.ok):
        key = (audit.pipeline, audit.model, audit.text)
        own = AuditState(
            pipeline=audit.pipeline, model=audit.model, defense=audit.text, label=audit.defense,
            claimed=audit.claimed, epsilon=audit.epsilon, refuted=audit.refuted,
        )  # fmt: skip
        before = states.get(key)
        if before is not None:
            own = own.model_copy(
                update={
                    "epsilon": None if None in (own.epsilon, before.epsilon) else max(_of(own), _of(before)),
                    "refuted": own.refuted or before.refuted,
                }
            )
        states[key] = own
    return tuple(states.values())


def _of(state: AuditState) -> float:
    return math.inf if state.epsilon is None else state.epsilon


def statement_count(baseline: Baseline) -> int:
    """Return how many claims and audits a night is asked for."""
    return len(baseline.audits) + sum(state.outcome == "holds" for state in baseline.claims or ())


def judge_statements(
    run: RunRecord, baseline: Baseline, log_threshold: float, progress: Progress
) -> Statements:
    """Compare claims and audits of a night with those of a baseline.

    Args:
        run: of the night. baseline: that it is compared with.
        log_threshold: logarithm of the e-value of one test.
        progress: as of `claim_states`.
    """
    found = Statements()
    _judge_audits(run, baseline, log_threshold, found)
    if baseline.claims is None:
        found.notes.append(
            "the baseline keeps no claims, so that none was compared; make it again by `vleak baseline`"
        )
        return found
    level = min(FALSE_ALARM, math.exp(-log_threshold))
    now = claim_states(run.settings.defenses, progress, false_alarm=level)
    tonight = {(state.defense, state.name): state for state in now}
    asked = [state for state in baseline.claims if state.defense in run.settings.defenses]
    for before in (state for state in asked if state.outcome == "holds"):
        _judge_claim(before, tonight.get((before.defense, before.name)), found)
    held = {(state.defense, state.name) for state in baseline.claims}
    found.findings += [
        _broken(state, "not claimed") for state in now
        if state.outcome == "broken" and (state.defense, state.name) not in held
    ]  # fmt: skip
    return found


def _judge_claim(before: ClaimState, after: ClaimState | None, found: Statements) -> None:
    if after is None:
        what = f"the claim {before.name!r} is gone"
        found.findings.append(Finding(row=before.defense, what=what, baseline="holds", tonight="not claimed"))
    elif after.outcome == "broken":
        found.findings.append(_broken(after, "holds"))
    elif after.outcome == "not checked":
        found.not_judged.append(f"{after.defense}: the claim {after.name!r} was not checked: {after.detail}")
    elif after.settings != before.settings:
        what = f"the claim {before.name!r} is another one"
        found.findings.append(
            Finding(row=before.defense, what=what, baseline=before.settings, tonight=after.settings)
        )


def _broken(state: ClaimState, before: str) -> Finding:
    return Finding(
        row=state.defense, what=f"the claim {state.name!r} is broken: {state.detail}", baseline=before,
        tonight="broken",
    )  # fmt: skip


def _judge_audits(run: RunRecord, baseline: Baseline, log_threshold: float, found: Statements) -> None:
    if not baseline.audits and any(audit.ok for audit in run.audits):
        found.notes.append("the baseline keeps no audits, so that tonight's stand by themselves")
    tonight = {(audit.pipeline, audit.model, audit.text): audit for audit in run.audits}
    for before in baseline.audits:
        audit = tonight.get((before.pipeline, before.model, before.defense))
        if audit is None or not audit.ok:
            why = "the run has none; evaluate with `audit_draws`" if audit is None else audit.status
            found.not_judged.append(f"{before.label} on {before.model}: no audit of its epsilon: {why}")
    for audit in (audit for audit in run.audits if audit.ok and audit.refuted):
        where = f"{audit.defense} on {audit.model}"
        claimed, least = _epsilon(audit.claimed), _epsilon(audit.epsilon)
        if audit.e_value is not None and audit.e_value > 0 and math.log(audit.e_value) >= log_threshold:
            what = f"the claimed epsilon is refuted, by the canary {audit.canary!r}"
            found.findings.append(
                Finding(row=where, what=what, baseline=f"claimed {claimed}", tonight=f"at least {least}")
            )
        else:
            found.not_judged.append(
                f"{where}: at least epsilon {least} where {claimed} is claimed, by evidence that is enough "
                "for one night and not for a year; evaluate with more `audit_draws`"
            )


def _epsilon(value: float | None) -> str:
    return "infinity" if value is None else f"{value:.4g}"
