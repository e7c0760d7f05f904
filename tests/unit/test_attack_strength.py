"""Matching and the default attack lose neither half a decibel nor a recognition; strength.json has figures.

`python tests/support/strength.py` writes the table anew where a change is meant to change the figures.
"""

from __future__ import annotations

import pytest
from strength import CASES, DEFAULT, LOSS_DB, MUTATIONS, Strength, falls_short, measure, table

from vleak.evaluation.settings import DEFAULT_ATTACKS

QUICK = [name for name, case in CASES.items() if case.quick]
GUARDED = [(name, mutation) for name, case in CASES.items() for mutation in case.guards]


def test_the_table_has_every_case_and_every_mutation_has_one() -> None:
    assert set(table()) == set(CASES)
    assert {mutation for _, mutation in GUARDED} == set(MUTATIONS)
    assert DEFAULT_ATTACKS["raw"] == (DEFAULT,)


@pytest.mark.parametrize(
    ("gain", "recognised", "short"),
    [(5.0, 3, False), (4.6, 3, False), (5.0 - LOSS_DB - 0.1, 3, True), (5.0, 2, True), (9.0, 2, True)],
)
def test_half_a_decibel_or_one_recognition_is_too_much(gain: float, recognised: int, short: bool) -> None:
    assert falls_short(Strength(gain, recognised), Strength(5.0, 3)) == short


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_the_attack_is_as_strong_as_it_was(name: str) -> None:
    found, expected = measure(CASES[name]), table()[name]
    assert not falls_short(found, expected), f"{name}: {found}, the table has {expected}"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mutation"), GUARDED)
def test_the_guard_fails_where_the_attack_is_weakened(name: str, mutation: str) -> None:
    found = measure(CASES[name], MUTATIONS[mutation]())
    assert falls_short(found, table()[name]), f"{name}, {mutation}: {found}, the table has {table()[name]}"
