"""Making of entries: a run of every situation of the protocol, and what is read off it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from vleak.conformance import conform
from vleak.defenses import Defense, NoDefense, defense_text, parse_defenses
from vleak.errors import InputError, argument
from vleak.evaluation import Progress, evaluate
from vleak.evaluation.objects import AttackLike, DefenseLike
from vleak.pipelines.conditions import defense_record
from vleak.results import RunRecord
from vleak.suite.figures import cost_of, own_part, situation_figures
from vleak.suite.files import finished_entry
from vleak.suite.protocol import Protocol, Situation
from vleak.suite.records import AttackedDefense, Attacker, ClaimCheck, Entry, EntryContent

__all__ = ["make_entries"]


def make_entries(
    protocol: Protocol,
    defenses: Sequence[DefenseLike],
    attack: AttackLike | None = None,
    *,
    runs: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> list[Entry]:
    """Measure defenses by a protocol, and return an entry for each.

    They share the undefended cells of their runs, on which no entry depends otherwise: a cell has the same
    figures whatever else is in its run.

    Args:
        protocol: what is measured.
        defenses: each one strength, as on the command line or an object; "none" for the undefended update.
        attack: that takes the place of the protocol's; None for that.
        runs: folder for the runs, one below it for each situation, where stopped ones are taken up; None
            keeps nothing.
        workers: as of `vleak.evaluate`.
        progress: called as (what, cells finished, cells in all).
        stop: when set, it ends after storing the finished cells.

    Raises:
        InputError: a defense or attack is unknown or several strengths, the generator of clips has changed,
            or the folder holds other runs.
        StoppedError: ``stop`` was set.
        VleakError: a folder cannot be written.
    """
    strengths = [_one_strength(given) for given in defenses]
    if not strengths:
        raise InputError("defenses: expected at least one, such as dp:noise_multiplier=0.5")
    settings = [protocol.settings(situation, strengths, attack) for situation in protocol.situations]
    tell = progress or _silent
    tell("drawing the clips of the protocol", 0, 0)
    protocol.check_clips()
    records = [
        evaluate(
            own, None if runs is None else runs / situation.name, workers=workers,
            progress=_of(situation, tell), stop=stop,
        )
        for situation, own in zip(protocol.situations, settings, strict=True)
    ]  # fmt: skip
    entries = []
    for number, strength in enumerate(strengths):
        tell(f"checking the claims of {strength.label}", number, len(strengths))
        entries.append(_entry(protocol, strength, records))
    return entries


def _one_strength(given: DefenseLike) -> Defense:
    """Return the defense of a text.

    Raises:
        InputError: it is unknown, or a sweep over several strengths, which an entry has one of.
    """
    strengths = parse_defenses(given)
    if len(strengths) > 1:
        example = defense_text(strengths[0])
        raise InputError(
            f"{argument('defenses', given)}: is a sweep of {len(strengths)} strengths, an entry is of one; "
            f"give it, such as {example}"
        )
    return strengths[0]


def _of(situation: Situation, tell: Progress) -> Progress:
    return lambda what, done, total: tell(f"{situation.name}: {what}", done, total)


def _silent(what: str, done: int, total: int) -> None:
    """Nobody is told."""


def _entry(protocol: Protocol, defense: Defense, records: Sequence[RunRecord]) -> Entry:
    parts = [own_part(record, defense) for record in records]
    named = zip(protocol.situations, parts, strict=True)
    attack = parts[0].settings.attacks[0]
    of_protocol = attack == protocol.settings(protocol.situations[0], (NoDefense(),)).resolved().attacks[0]
    return finished_entry(
        EntryContent(
            protocol=protocol.name,
            protocol_sha256=protocol.sha256,
            entry="defense" if of_protocol else "attack",
            environment=parts[0].environment,
            defense=_attacked(defense, parts[0]),
            attack=Attacker(text=attack, of_protocol=of_protocol),
            clips=parts[0].data.names,
            situations=tuple(situation_figures(each.name, part, defense) for each, part in named),
            claims=tuple(
                ClaimCheck(name=check.name, outcome=check.outcome, detail=check.detail)
                for check in conform(defense).checks
            ),
            audit=next((audit for part in parts for audit in part.audits), None),
            cost=next((cost for part in parts if (cost := cost_of(part, defense)) is not None), None),
        )
    )


def _attacked(defense: Defense, part: RunRecord) -> AttackedDefense:
    """Defense with what it proves, as its cells have it: that depends on the client."""
    text = defense_record(defense, None).text
    stated = next(cell.defense for cell in part.cells if cell.defense.text == text)
    return AttackedDefense(
        text=defense_text(defense),
        label=defense.label,
        settings=stated.settings,
        epsilon=stated.epsilon,
        delta=stated.delta,
        unit=stated.unit,
    )
