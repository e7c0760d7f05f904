"""Decision of the guard: what became of an update that a client was about to send, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vleak.federated import Update
from vleak.guarding.findings import Finding
from vleak.guarding.scores import WarningScores
from vleak.guarding.thresholds import Thresholds

Action = Literal["send", "defend more", "refuse"]

NO_PROOF = (
    "no check fired, which proves nothing: a longer or newer attack may get more; what is proven is the "
    "defense's certificate alone"
)


@dataclass(frozen=True)
class Tried:
    """A strength of a defense that was tried on the same clips.

    Attributes:
        defense: as the command line takes it.
        reasons: why an update behind it would not be sent; empty where it would.
    """

    defense: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """Decision about one update.

    Attributes:
        action: "send" the update; "defend more", where ``strength`` passes; or "refuse" to send anything.
        reasons: why, a sentence each.
        update: the update to send; None unless the action is "send".
        scores: warning scores of the update; None where it came to none.
        findings: about the server's model, alarms first.
        strength: for "defend more", the weakest strength tried that passes, as the command line takes it; its
            updates draw other noise and are judged again.
        tried: all strengths that were tried, weakest first.
        thresholds: that were applied.
    """

    action: Action
    reasons: tuple[str, ...]
    update: Update | None = None
    scores: WarningScores | None = None
    findings: tuple[Finding, ...] = ()
    strength: str | None = None
    tried: tuple[Tried, ...] = ()
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __str__(self) -> str:
        """Return action and reasons in one line."""
        remedy = f" by {self.strength}" if self.strength else ""
        return f"{self.action}{remedy}: {'; '.join(self.reasons)}"
