"""Leaderboard: of every defense the strongest admitted attack, ranked by what it gets out of clips."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from vleak.errors import InputError
from vleak.results import Interval, binomial_interval, mean_interval
from vleak.suite.protocol import Protocol
from vleak.suite.ranks import Rank, ranks_of
from vleak.suite.records import ClipFigures, Entry, SituationFigures

__all__ = ["Board", "Standing", "leaderboard", "leakage_of"]

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Standing:
    """Defense on the leaderboard, at the attack that gets most out of it.

    Attributes:
        rank: with its interval.
        entry: of the strongest attack that was admitted. others: further admitted entries of the defense.
        leakage: mean over clips, in [0, 1], by `leakage_of`; each clip is the mean over the situations.
        recognised, linked: shares of the rebuilds of all situations, intervals over clips; linked is None
            where no situation has it.
        gain_db: gain over the best attacker who never sees the update.
        aware_gain_db, unaware_gain_db: the same of the attacker who knows the defense and of the one who does
            not, on the clips on which both ran; aware_recognised, unaware_recognised: shares of them. None
            where there is nothing to know.
    """

    rank: Rank
    entry: Entry
    others: tuple[Entry, ...]
    leakage: Interval
    recognised: Interval
    linked: Interval | None
    gain_db: Interval
    aware_gain_db: float | None
    unaware_gain_db: float | None
    aware_recognised: float | None
    unaware_recognised: float | None


@dataclass(frozen=True)
class Board:
    """Leaderboard of one protocol.

    Attributes:
        protocol: that all entries are of.
        standings: ranked defenses, least leakage first.
        refused: entries that are not ranked, as the rules refuse them.
        disqualified: admitted entries of defenses of which another entry has broken a claim.
    """

    protocol: Protocol
    standings: tuple[Standing, ...]
    refused: tuple[Entry, ...]
    disqualified: tuple[Entry, ...]


def leakage_of(clip: ClipFigures, full_gain_db: float) -> float:
    """Leakage of one clip in one situation, in [0, 1].

    The mean of what an attacker may want: that the rebuilt clip is recognised (0 or 1), that the update alone
    points at the clip (0 or 1, left out where it was not asked), and how much was rebuilt: the gain over the
    best answer without the update as a part of ``full_gain_db``, 0 where it is negative, at most 1.
    """
    parts = [float(clip.recognised), min(max(clip.gain_db, 0.0), full_gain_db) / full_gain_db]
    if clip.linked is not None:
        parts.append(float(clip.linked))
    return sum(parts) / len(parts)


def leaderboard(entries: Sequence[Entry], protocol: Protocol) -> Board:
    """Rank the defenses of entries.

    Of several admitted entries of a defense, that of the attack counts which recognises most clips, then the
    one with the highest gain. A defense of which any entry has broken a claim is not ranked.

    Args:
        entries: of one protocol, as `read_entries` returns them.
        protocol: that they are of.

    Raises:
        InputError: two entries of one defense and attack, or entries of different clips.
    """
    _check(entries)
    broken = {
        entry.defense.text for entry in entries for refusal in entry.refusals if refusal.rule == "claims hold"
    }
    admitted = [entry for entry in entries if entry.admitted and entry.defense.text not in broken]
    by_defense: dict[str, list[Entry]] = {}
    for entry in admitted:
        by_defense.setdefault(entry.defense.text, []).append(entry)
    ordered = [sorted(each, key=_strength, reverse=True) for each in by_defense.values()]
    return Board(
        protocol=protocol,
        standings=tuple(_standings(ordered, protocol)),
        refused=tuple(entry for entry in entries if not entry.admitted),
        disqualified=tuple(e for e in entries if e.admitted and e.defense.text in broken),
    )


def _check(entries: Sequence[Entry]) -> None:
    seen: set[tuple[str, str]] = set()
    for entry in entries:
        if (pair := (entry.defense.text, entry.attack.text)) in seen:
            raise InputError(
                f"two entries are of {pair[1]} on {pair[0]}; leave one of them out of the folder"
            )
        seen.add(pair)
        if entry.clips != entries[0].clips:
            raise InputError(f"the entries of {pair[0]} and {entries[0].defense.text} have other clips")


def _strength(entry: Entry) -> tuple[float, float]:
    """Return what attacks on one defense are compared by: recognised clips, then gain."""
    clips = [clip for situation in entry.situations for clip in situation.defended.clips]
    return _mean(float(clip.recognised) for clip in clips), _mean(clip.gain_db for clip in clips)


def _standings(ordered: Sequence[Sequence[Entry]], protocol: Protocol) -> list[Standing]:
    if not ordered:
        return []
    by_clip = [
        _over_situations(entries[0], lambda clip: leakage_of(clip, protocol.full_gain_db))
        for entries in ordered
    ]
    ranks = ranks_of(torch.tensor(by_clip, dtype=torch.float64).T)
    found = [
        _standing(rank, entries, mean_interval(values))
        for rank, entries, values in zip(ranks, ordered, by_clip, strict=True)
    ]
    return sorted(found, key=lambda standing: (standing.rank.rank, standing.entry.defense.label))


def _over_situations(entry: Entry, read: Callable[[ClipFigures], float]) -> list[float]:
    """Return of every clip the mean over the situations."""
    figures = [[read(clip) for clip in each.defended.clips] for each in entry.situations]
    return [_mean(values) for values in zip(*figures, strict=True)]


def _standing(rank: Rank, entries: Sequence[Entry], leakage: Interval) -> Standing:
    entry = entries[0]
    asked = [s for s in entry.situations if all(clip.linked is not None for clip in s.defended.clips)]
    linked = entry.model_copy(update={"situations": tuple(asked)})
    aware, unaware = _both(entry.situations)
    return Standing(
        rank=rank,
        entry=entry,
        others=tuple(entries[1:]),
        leakage=leakage,
        recognised=_share(_over_situations(entry, lambda clip: float(clip.recognised))),
        linked=_share(_over_situations(linked, lambda clip: float(bool(clip.linked)))) if asked else None,
        gain_db=mean_interval(_over_situations(entry, lambda clip: clip.gain_db)),
        aware_gain_db=_mean_or_none([clip.gain_db for clip in aware]),
        unaware_gain_db=_mean_or_none([clip.gain_db for clip in unaware]),
        aware_recognised=_mean_or_none([float(clip.recognised) for clip in aware]),
        unaware_recognised=_mean_or_none([float(clip.recognised) for clip in unaware]),
    )


def _share(values: Sequence[float]) -> Interval:
    """Return the mean of numbers in [0, 1], with an interval no narrower than that of as many yes or no.

    Student's has no width where all clips are alike, which says nothing of the next one.
    """
    total = math.fsum(values)
    low = binomial_interval(math.floor(total + _ROUNDING), len(values)).low
    high = binomial_interval(math.ceil(total - _ROUNDING), len(values)).high
    return Interval(total / len(values), low, high, len(values))


def _both(situations: Sequence[SituationFigures]) -> tuple[list[ClipFigures], list[ClipFigures]]:
    """Return the clips on which the attacker ran with and without knowledge of the defense."""
    aware: list[ClipFigures] = []
    unaware: list[ClipFigures] = []
    for situation in situations:
        if situation.unaware is not None:
            own = {clip.clip: clip for clip in situation.defended.clips}
            pairs = [(own[clip.clip], clip) for clip in situation.unaware.clips if clip.clip in own]
            aware += [one for one, _ in pairs]
            unaware += [other for _, other in pairs]
    return aware, unaware


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return math.fsum(known) / len(known)


def _mean_or_none(values: Sequence[float]) -> float | None:
    return _mean(values) if values else None
