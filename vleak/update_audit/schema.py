"""JSON Schema of an audit, generated from the typed records.

``python -m vleak.update_audit.schema`` writes it to ``docs/schema/audit-1.json``.
"""

from __future__ import annotations

from pathlib import Path

from vleak.results.base import JsonObject
from vleak.results.schema import record_schema, write_schema_file
from vleak.update_audit.records import SCHEMA_VERSION, AuditRecord

__all__ = ["FILE", "audit_schema", "write_schema"]

FILE = Path("docs", "schema", f"audit-{SCHEMA_VERSION}.json")
"""Place of the schema, from the top of the source tree."""


def audit_schema() -> JsonObject:
    """JSON Schema (draft 2020-12) of what `vleak audit --json` writes."""
    return record_schema(AuditRecord, SCHEMA_VERSION)


def write_schema(folder: Path) -> Path:
    """Write the schema below the top of a source tree; return its path."""
    return write_schema_file(folder / FILE, audit_schema())


if __name__ == "__main__":
    print(write_schema(Path.cwd()))
