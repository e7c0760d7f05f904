"""JSON Schema of results.json, generated from the typed records.

``python -m vleak.results.schema`` writes it to ``docs/schema/results-2.json``.
"""

from __future__ import annotations

import json
from pathlib import Path

from vleak.files import write_atomic
from vleak.results.base import JsonObject
from vleak.results.records import SCHEMA_VERSION, RunRecord

__all__ = ["FILE", "results_schema", "write_schema"]

FILE = Path("docs", "schema", f"results-{SCHEMA_VERSION}.json")
"""Place of the schema, from the top of the source tree."""


def results_schema() -> JsonObject:
    """JSON Schema (draft 2020-12) of the content of results.json, as it is written."""
    schema = RunRecord.model_json_schema(mode="serialization")
    schema["properties"]["schema_version"]["const"] = SCHEMA_VERSION
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def write_schema(folder: Path) -> Path:
    """Write the schema below the top of a source tree; return its path."""
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(results_schema(), indent=1, ensure_ascii=False) + "\n")
    return path


if __name__ == "__main__":
    print(write_schema(Path.cwd()))
