"""JSON Schemas of baselines, nights and histories, generated from the typed records.

``python -m vleak.regression.schema`` writes them to ``docs/schema``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vleak.files import write_atomic
from vleak.regression.records import (
    BASELINE_VERSION,
    HISTORY_VERSION,
    NIGHT_VERSION,
    Baseline,
    HistoryHeader,
    Night,
    NightLine,
)
from vleak.results.base import JsonObject, Record

__all__ = ["FILES", "regression_schemas", "write_schemas"]

FILES: Mapping[str, tuple[type[Record], int]] = {
    f"baseline-{BASELINE_VERSION}.json": (Baseline, BASELINE_VERSION),
    f"night-{NIGHT_VERSION}.json": (Night, NIGHT_VERSION),
    f"history-header-{HISTORY_VERSION}.json": (HistoryHeader, HISTORY_VERSION),
    f"history-night-{HISTORY_VERSION}.json": (NightLine, HISTORY_VERSION),
}
"""By file below docs/schema, the record and its version."""


def regression_schemas() -> dict[str, JsonObject]:
    """JSON Schemas (draft 2020-12) by file."""
    schemas = {}
    for name, (kind, version) in FILES.items():
        schema = kind.model_json_schema(mode="serialization")
        if "schema_version" in schema["properties"]:
            schema["properties"]["schema_version"]["const"] = version
        schemas[name] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return schemas


def write_schemas(folder: Path) -> list[Path]:
    """Write the schemas below the top of a source tree; return their paths."""
    (folder / "docs" / "schema").mkdir(parents=True, exist_ok=True)
    paths = []
    for name, schema in regression_schemas().items():
        paths.append(folder / "docs" / "schema" / name)
        write_atomic(paths[-1], json.dumps(schema, indent=1, ensure_ascii=False) + "\n")
    return paths


if __name__ == "__main__":
    print(*write_schemas(Path.cwd()), sep="\n")
