"""Entries of the suite with planted figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vleak.results import binomial_interval, mean_interval
from vleak.suite import (
    AttackedDefense,
    Attacker,
    ClipFigures,
    Entry,
    EntryContent,
    Figures,
    Measured,
    Protocol,
    Situation,
    SituationFigures,
    Unaware,
    finished_entry,
)

CLIPS = 12
PROTOCOL = Protocol(
    name="planted-1",
    about="planted",
    situations=(Situation(name="gradient"), Situation(name="steps", local_steps=2, local_rate=0.1)),
    clips=CLIPS,
)
TINY = Protocol(
    name="tiny-1",
    about="a test",
    situations=(
        Situation(name="gradient", audited=True, utility_rounds=1),
        Situation(name="steps", local_steps=2, local_rate=0.1),
    ),
    clips=3, frames=4, size=16, seed=1000, attack="matching", iterations=3, non_adaptive=2, audit_draws=40,
)  # fmt: skip


def figures(gains: Sequence[float], recognised: int, linked: int = 0, **changes: Any) -> Figures:
    """Figures of clips with these gains, of which the first so many are recognised, or linked."""
    clips = tuple(
        ClipFigures(clip=f"clip@{n}", recognised=n < recognised, gain_db=gain, linked=n < linked)
        for n, gain in enumerate(gains)
    )
    share, count = (lambda found: Measured.of(binomial_interval(found, len(clips)))), len(clips)
    return Figures(
        clips=clips, failed=0, failures=(), recognised=share(min(recognised, count)),
        gain_db=Measured.of(mean_interval(list(gains))), linked=share(min(linked, count)),
        verdict="leaks", flags=(), flagged=0, method=("matching",), seconds=1.0,
    ).model_copy(update=changes)  # fmt: skip


def situation(name: str, own: Figures, **changes: Any) -> SituationFigures:
    """Figures of a situation of which the undefended update leaks."""
    return SituationFigures(
        name=name, data_sha256="a", weights_sha256="b",
        undefended=figures([9.0 + 0.1 * n for n in range(CLIPS)], CLIPS, CLIPS), defended=own,
        unaware=None, adaptive=True, knowledge="channel", bound=None, broken=False, bytes=1000.0,
        bytes_ratio=0.5, cosine=0.9,
    ).model_copy(update=changes)  # fmt: skip


def unaware(ahead: bool) -> Unaware:
    """The attacker who does not know the defense, on four clips."""
    other = figures([1.0, 1.0, 1.0, 1.0], 1)
    return Unaware(
        clips=other.clips, recognised=other.recognised, gain_db=other.gain_db, lead_db=other.gain_db,
        ahead=ahead,
    )  # fmt: skip


def content(
    text: str = "prune:fraction=0.9",
    defended: Figures | None = None,
    *,
    attack: str = "strongest",
    change: dict[str, Any] | None = None,
    **changes: Any,
) -> EntryContent:
    """Content of an entry that is admitted.

    Args:
        text: of the defense; its label is the same.
        defended: figures in both situations.
        attack: its text.
        change: of the figures of the second situation.
        changes: of the whole content.
    """
    own = figures([0.5] * CLIPS, 1, 2) if defended is None else defended
    return EntryContent.model_validate(
        {
            "protocol": PROTOCOL.name, "protocol_sha256": PROTOCOL.sha256,
            "entry": "defense" if attack == "strongest" else "attack",
            "environment": {
                "vleak": "1", "torch": "2", "python": "3.11", "platform": "Linux", "extension": "built",
                "device": "cpu",
            },
            "defense": AttackedDefense(
                text=text, label=text, settings={}, epsilon=None, delta=None, unit=None
            ),
            "attack": Attacker(text=attack, of_protocol=attack == "strongest"),
            "clips": tuple(f"clip@{n}" for n in range(CLIPS)),
            "situations": (situation("gradient", own), situation("steps", own, **(change or {}))),
            "claims": (), "audit": None, "cost": None,
        }
        | changes
    )  # fmt: skip


def entry(*arguments: Any, **changes: Any) -> Entry:
    """Finished entry, as `content` has it."""
    return finished_entry(content(*arguments, **changes))
