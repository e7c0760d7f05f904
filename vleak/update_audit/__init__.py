"""Audit of an update that was captured: a user's own model and client, and no private clip needed."""

from vleak.update_audit.given import KINDS, Given, Source, read_given
from vleak.update_audit.records import SCHEMA_VERSION, AuditRecord, DetectionScore
from vleak.update_audit.run import DEFENSES_TRIED, Audit, audit, audit_each
from vleak.update_audit.verdict import RISK_SCALE

__all__ = [
    "DEFENSES_TRIED",
    "KINDS",
    "RISK_SCALE",
    "SCHEMA_VERSION",
    "Audit",
    "AuditRecord",
    "DetectionScore",
    "Given",
    "Source",
    "audit",
    "audit_each",
    "read_given",
]
