"""Audits of what a defense sends: lower bounds on epsilon from canaries, beside what it claims."""

from vleak.auditing.canaries import CanaryRun, canary_runs
from vleak.auditing.empirical import CanaryBounds, EmpiricalEpsilon, empirical_epsilon
from vleak.auditing.release import Release
from vleak.auditing.sequential import ClaimAudit, Evidence, audit_claim

__all__ = [
    "CanaryBounds",
    "CanaryRun",
    "ClaimAudit",
    "EmpiricalEpsilon",
    "Evidence",
    "Release",
    "audit_claim",
    "canary_runs",
    "empirical_epsilon",
]
