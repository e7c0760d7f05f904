"""Base of the typed records, and the kinds of values that they hold."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Finite", "JsonObject", "Record", "Setting"]

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""A number that JSON can hold."""
Setting = int | float | str | bool | None
"""Value of one setting of a defense, attack, model or metric."""

JsonObject = dict[str, Any]
"""A JSON object as it was read, before it is validated into a record."""


class Record(BaseModel):
    """Base of all records: immutable, no unknown fields, no NaN."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_serialization_defaults_required=True,
    )
