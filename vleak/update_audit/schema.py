"""JSON Schema of an audit, generated from the typed records.

``python -m vleak.update_audit.schema`` writes it to ``docs/schema/audit-1.json``.
"""

from __future__ import annotations

import json
from pathlib import Path

from vleak.files import write_atomic
from vleak.results.base import JsonObject
from vleak.update_audit.records import SCHEMA_VERSION, AuditRecord

__all__ = ["FILE", "audit_schema", "write_schema"]

FILE = Path("docs", "schema", f"audit-{SCHEMA_VERSION}.json")
"""Place of the schema, from the top of the source tree."""


def audit_schema() -> JsonObject:
    """JSON Schema (draft 2020-12) of what `vleak audit --json` writes."""
    schema = AuditRecord.model_json_schema(mode="serialization")
    schema["properties"]["schema_version"]["const"] = SCHEMA_VERSION
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def write_schema(folder: Path) -> Path:
    """Write the schema below the top of a source tree; return its path."""
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(audit_schema(), indent=1, ensure_ascii=False) + "\n")
    return path


if __name__ == "__main__":
    print(write_schema(Path.cwd()))
