"""Typed records of the client of a cell."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vleak.results.base import Record

__all__ = ["ClientRecord", "LocalRecord"]


class LocalRecord(Record):
    """Local training of a client before it sends a delta, as `vleak.federated.LocalTraining`."""

    steps: int = Field(ge=1)
    batch_size: int = Field(0, ge=0)
    learning_rate: float = Field(gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    optimizer: Literal["sgd", "adam"] = "sgd"


class ClientRecord(Record):
    """Client of a cell.

    Attributes:
        batch_size: private clips of the client.
        mode: mode of the model while it computed.
        local: its local training; None where it sent the gradient of one batch.
        rounds: rounds of training. participation: chance to take part in one that is not the last.
        new_clips: whether it had other clips in every round but the last.
        masks_unknown: whether it drew masks of dropout, which no attack is told.
    """

    batch_size: int = Field(default=1, ge=1)
    mode: Literal["eval", "train"] = "eval"
    local: LocalRecord | None = None
    rounds: int = Field(default=1, ge=1)
    participation: float = Field(default=1.0, gt=0, le=1)
    new_clips: bool = False
    masks_unknown: bool = False
