"""JSON Schemas of baselines, nights and histories, generated from the typed records.

``python -m vleak.regression.schema`` writes them to ``docs/schema``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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
from vleak.results.schema import record_schema, write_schema_file

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
    return {name: record_schema(*kind_and_version) for name, kind_and_version in FILES.items()}


def write_schemas(folder: Path) -> list[Path]:
    """Write the schemas below the top of a source tree; return their paths."""
    place = folder / "docs" / "schema"
    return [write_schema_file(place / name, schema) for name, schema in regression_schemas().items()]


if __name__ == "__main__":
    print(*write_schemas(Path.cwd()), sep="\n")
