"""Field tables of the result schema, written into `docs/schema/index.md` while the site is built.

They are read from the JSON Schema that is committed beside that page, so that the page cannot contradict it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

MARK = "<!-- field tables -->"
FOLDER = Path(__file__).parent / "schema"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace the mark by the schema's file name and one table a record."""
    return markdown.replace(MARK, schema_tables(newest_schema())) if MARK in markdown else markdown


def newest_schema() -> Path:
    """File `results-N.json` with the highest N."""
    return max(FOLDER.glob("results-*.json"), key=lambda path: int(path.stem.partition("-")[2]))


def schema_tables(path: Path) -> str:
    """Markdown of a JSON Schema: a link to the file, then a heading, a sentence and a table a record."""
    schema = json.loads(path.read_text(encoding="utf-8"))
    records = {schema["title"]: schema, **schema["$defs"]}
    parts = [f"The file: [{path.name}]({path.name})."]
    return "\n\n".join(parts + [record_table(name, record) for name, record in records.items()])


def record_table(name: str, record: dict[str, Any]) -> str:
    """Markdown of one record."""
    sentence, _, attributes = record.get("description", "").partition("Attributes:")
    fields = record["properties"]
    meanings = field_meanings(attributes, fields)
    rows = [
        f"| `{field}` | {type_text(spec)} | {default_text(spec)} | {meanings.get(field, '')} |"
        for field, spec in fields.items()
    ]
    head = ["| field | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([f"## {name}", "", " ".join(sentence.split()), "", *head, *rows])


def field_meanings(attributes: str, fields: dict[str, Any]) -> dict[str, str]:
    """Meaning of each field, from the docstring's lines `name, name: meaning`."""
    names = "|".join(sorted(fields, key=len, reverse=True))
    text = " ".join(attributes.split())
    pieces = re.split(rf"(?:^|(?<=[.\s]))((?:(?:{names}), )*(?:{names})): ", text)
    meanings: dict[str, str] = {}
    for given, meaning in zip(pieces[1::2], pieces[2::2], strict=True):
        meanings |= dict.fromkeys(given.split(", "), meaning.strip().rstrip(".").replace("|", "\\|"))
    return meanings


def type_text(spec: dict[str, Any]) -> str:
    """Type of one field in words, records linked to their table."""
    if "$ref" in spec:
        name = spec["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in spec:
        return " or ".join(type_text(part) for part in spec["anyOf"])
    if "enum" in spec or "const" in spec:
        return ", ".join(json.dumps(value) for value in spec.get("enum", [spec.get("const")]))
    if spec.get("type") == "array":
        return f"list of {type_text(spec['items'])}" if "items" in spec else "list"
    if spec.get("type") == "object":
        inner = spec.get("additionalProperties")
        return f"object of {type_text(inner)}" if isinstance(inner, dict) else "object"
    return str(spec.get("type", "any"))


def default_text(spec: dict[str, Any]) -> str:
    """Default of one field; empty where it has none and is always there."""
    return f"`{json.dumps(spec['default'])}`" if "default" in spec else ""
