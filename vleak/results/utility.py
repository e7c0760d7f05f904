"""Record of the utility of a defense: what a model learns under it."""

from __future__ import annotations

from pydantic import Field

from vleak.results.base import Finite, Record

__all__ = ["UtilityRecord"]


class UtilityRecord(Record):
    """Federated training under one defense.

    Attributes:
        pipeline, model: as in `Cell`.
        defense: label of the defense. text: as `DefenseRecord.text`. undefended: whether there is none.
        rounds, clients, batch: of the training; so many clips of each client in a round.
        clips: trained on, by all clients together.
        right: for every clip that was held out, whether the trained model has its label right; empty where
            the training failed.
        bytes: mean length of an update. seconds: mean time of a client for one, on the machine of the run.
        status: "ok", or "failed: " and the reason.
    """

    pipeline: str
    model: str
    defense: str
    text: str
    undefended: bool
    rounds: int = Field(ge=1)
    clients: int = Field(ge=1)
    batch: int = Field(ge=1)
    clips: int = Field(ge=0)
    right: tuple[bool, ...] = ()
    bytes: Finite | None = None
    seconds: Finite | None = None
    status: str = Field(default="ok", pattern=r"^(ok$|failed: )")

    @property
    def ok(self) -> bool:
        """Whether the training came to its end."""
        return self.status == "ok"
