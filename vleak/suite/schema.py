"""JSON Schema of an entry of the suite, generated from the typed records.

``python -m vleak.suite.schema`` writes it to ``docs/schema``.
"""

from __future__ import annotations

from pathlib import Path

from vleak.results.base import JsonObject
from vleak.results.schema import record_schema, write_schema_file
from vleak.suite.records import ENTRY_VERSION, Entry

__all__ = ["FILE", "entry_schema", "write_schema"]

FILE = Path("docs", "schema", f"suite-entry-{ENTRY_VERSION}.json")
"""Place of the schema, from the top of the source tree."""


def entry_schema() -> JsonObject:
    """JSON Schema (draft 2020-12) of the file of an entry."""
    return record_schema(Entry, ENTRY_VERSION)


def write_schema(folder: Path) -> Path:
    """Write the schema below the top of a source tree; return its path."""
    return write_schema_file(folder / FILE, entry_schema())


if __name__ == "__main__":
    print(write_schema(Path.cwd()))
