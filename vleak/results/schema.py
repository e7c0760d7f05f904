"""JSON Schema of results.json, generated from the typed records.

``python -m vleak.results.schema`` writes it to ``docs/schema/results-2.json``.
"""

from __future__ import annotations

import json
from pathlib import Path

from vleak.files import write_atomic
from vleak.results.base import JsonObject, Record
from vleak.results.records import SCHEMA_VERSION, RunRecord

__all__ = ["FILE", "record_schema", "results_schema", "write_schema", "write_schema_file"]

FILE = Path("docs", "schema", f"results-{SCHEMA_VERSION}.json")
"""Place of the schema, from the top of the source tree."""


def results_schema() -> JsonObject:
    """JSON Schema (draft 2020-12) of the content of results.json, as it is written."""
    return record_schema(RunRecord, SCHEMA_VERSION)


def record_schema(kind: type[Record], version: int) -> JsonObject:
    """JSON Schema (draft 2020-12) of a kind of record as it is written, with its version where it has one."""
    schema = kind.model_json_schema(mode="serialization")
    if "schema_version" in schema["properties"]:
        schema["properties"]["schema_version"]["const"] = version
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def write_schema(folder: Path) -> Path:
    """Write the schema below the top of a source tree; return its path."""
    return write_schema_file(folder / FILE, results_schema())


def write_schema_file(path: Path, schema: JsonObject) -> Path:
    """Write a schema as the repository keeps it; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(schema, indent=1, ensure_ascii=False) + "\n")
    return path


if __name__ == "__main__":
    print(write_schema(Path.cwd()))
