"""Verdicts over the seeds of several runs: what leaks at any of them leaks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vleak.errors import InputError, argument
from vleak.results.records import RunRecord
from vleak.results.rows import Row, SettingKey, Verdict, setting_key
from vleak.results.summary import leak_order, summarise

__all__ = ["SeedVerdict", "over_seeds"]


@dataclass(frozen=True)
class SeedVerdict:
    """Verdict on one setting, by the attack and the seed that got most out of it.

    Attributes:
        key: what the rows behind it share.
        verdict: of `row`.
        row: the row that leaks most, of all attacks at all seeds.
        found: seeds at which the strongest attack has this verdict.
        seeds: seeds at which the setting was run.
        attacks: attacks that were run on it.
    """

    key: SettingKey
    verdict: Verdict
    row: Row
    found: int
    seeds: int
    attacks: tuple[str, ...]


def over_seeds(runs: Sequence[RunRecord]) -> list[SeedVerdict]:
    """Verdicts of runs that differ in the seed alone, one for each setting, in the order of the first run.

    The choice is among all attacks at all seeds: each verdict is at the level 1 - 0.05 / (attacks x seeds).

    Args:
        runs: at least one, of settings that are equal but for the seed.

    Raises:
        InputError: no run, two of one seed, or settings that differ in something else; names it.
    """
    _check(runs)
    tables = [summarise(run, seeds=len(runs)) for run in runs]
    keys = dict.fromkeys(setting_key(row.key) for rows in tables for row in rows if not row.baseline)
    return [_verdict(key, tables) for key in keys]


def _verdict(key: SettingKey, tables: Iterable[Sequence[Row]]) -> SeedVerdict:
    by_seed = [[row for row in rows if not row.baseline and setting_key(row.key) == key] for rows in tables]
    strongest = [min(rows, key=leak_order) for rows in by_seed if rows]
    most = min(strongest, key=leak_order)
    return SeedVerdict(
        key=key,
        verdict=most.verdict,
        row=most,
        found=sum(row.verdict == most.verdict for row in strongest),
        seeds=len(strongest),
        attacks=tuple(dict.fromkeys(row.attack for rows in by_seed for row in rows)),
    )


def _check(runs: Sequence[RunRecord]) -> None:
    if not runs:
        raise InputError("runs: expected at least one run, got none")
    seeds = [run.settings.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise InputError(
            f"{argument('runs', ', '.join(map(str, seeds)))}: expected another seed for each run; leave out "
            "those of a seed that is there already"
        )
    first = runs[0].settings.model_dump(exclude={"seed"})
    for run in runs[1:]:
        own = run.settings.model_dump(exclude={"seed"})
        if name := next((name for name in first if own[name] != first[name]), None):
            raise InputError(
                f"runs: seed {run.settings.seed} has {argument(name, own[name])} and seed {seeds[0]} has "
                f"{argument(name, first[name])}; give runs that differ in the seed alone"
            )
