"""Flags that compare cells fire on records in which they should, and on no others."""

from __future__ import annotations

from typing import Any

import pytest
from records import make_cell

from vleak.results.flags import (
    BEATS_UNDEFENDED,
    FAILS_UNDEFENDED,
    NO_BETTER,
    OTHER_SETTINGS,
    WEAKER_BEATS,
    with_flags,
)
from vleak.results.records import Cell

DP = {"name": "dp", "label": "dp"}
BLIND = {"name": "matching_blind", "counterpart": "matching", "adaptive": False}
LESS = {"name": "matching", "settings": {"spatial": 0.003}}


def flags_of(*cells: Cell) -> list[tuple[str, ...]]:
    return [cell.flags for cell in with_flags(cells)]


def cell(gain: float, identified: bool = True, **changes: Any) -> Cell:
    return make_cell(0, gain, identified, **changes)


@pytest.mark.parametrize(
    ("gain", "identified", "flags"),
    [(-0.1, False, (NO_BETTER,)), (-0.1, True, ()), (0.1, False, ())],
)
def test_no_better_than_the_best_baseline(gain: float, identified: bool, flags: tuple[str, ...]) -> None:
    assert flags_of(cell(gain, identified)) == [flags]


def test_a_baseline_is_no_better_than_itself_without_a_flag() -> None:
    assert flags_of(cell(-1.0, False, attack={"name": "grey", "baseline": True})) == [()]


def test_fails_even_undefended() -> None:
    failed, defended = cell(-0.1, False), cell(-0.2, False, defense=DP)
    assert flags_of(failed, defended) == [(NO_BETTER,), (FAILS_UNDEFENDED,)]
    assert flags_of(cell(3.0), defended) == [(), ()]
    assert flags_of(defended) == [()]  # nothing to compare with
    assert flags_of(failed, cell(-0.2, False, defense=DP, attack="inverter"))[1] == ()


@pytest.mark.parametrize(("gain", "flags"), [(4.1, (BEATS_UNDEFENDED,)), (3.9, ())])
def test_leaks_more_than_undefended(gain: float, flags: tuple[str, ...]) -> None:
    assert flags_of(cell(3.0), cell(gain, defense=DP)) == [(), flags]


@pytest.mark.parametrize("defense", [DP, {"name": "none", "label": "none"}])
@pytest.mark.parametrize(
    ("other", "flag"),
    [(BLIND, WEAKER_BEATS), (LESS, OTHER_SETTINGS)],
    ids=["the non-adaptive form", "another total variation"],
)
@pytest.mark.parametrize(
    ("own", "their", "beaten"),
    [
        ((3.0, True), (8.0, True), True),
        ((3.0, True), (3.9, True), False),  # less than a decibel says nothing
        ((3.0, False), (2.5, True), True),  # recognised comes first
        ((3.0, True), (8.0, False), False),
    ],
)
def test_an_attack_that_is_beaten_says_so(
    own: tuple[float, bool], their: tuple[float, bool], beaten: bool, other: Any, flag: str, defense: Any
) -> None:
    first, second = cell(*own, defense=defense), cell(*their, defense=defense, attack=other)
    assert flags_of(first, second)[0] == ((flag,) if beaten else ())
    assert flag not in flags_of(first, second)[1] or not beaten
    assert flags_of(first) == [()]


def test_the_best_of_several_weaker_attacks_counts() -> None:
    blind = [cell(gain, defense=DP, attack={**BLIND, "settings": {"spatial": s}})
             for gain, s in ((8.0, 0.1), (1.0, 0.2))]  # fmt: skip
    assert flags_of(cell(3.0, defense=DP), *blind)[0] == (WEAKER_BEATS,)


def test_only_the_same_message_is_compared() -> None:
    better = {"gain": 8.0, "attack": LESS}
    for change in ({"clip": "clip@1"}, {"defense": DP}, {"knowledge": {"reference_frames": 1}},
                   {"model": "lrcn"}, {"client": {"batch_size": 2}}):  # fmt: skip
        assert flags_of(cell(3.0), cell(**better, **change))[0] == ()
    assert flags_of(cell(3.0), cell(8.0, attack="inverter"))[0] == ()  # other attacks are other rows
