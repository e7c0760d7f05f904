"""Order in which threads take the clients of a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vleak.evaluation.threads import rows_begun_early


def clients(*sizes: int) -> list[Any]:
    """Return the clients of rows a, b, c, of so many clips each."""
    kinds = zip("abcdef", sizes, strict=False)
    return [(SimpleNamespace(kind=kind, name=f"{kind}{n}"),) for kind, size in kinds for n in range(size)]


def names(ordered: list[Any]) -> str:
    return " ".join(client[0].name for client in ordered)


@pytest.mark.parametrize(
    ("lanes", "expected"),
    [
        (1, "a0 a1 a2 b0 b1 b2 c0 c1 c2"),
        (2, "a0 b0 a1 a2 c0 b1 b2 c1 c2"),
        (5, "a0 b0 c0 a1 a2 b1 b2 c1 c2"),
    ],
)
def test_rows_begin_before_the_rest_of_those_ahead(lanes: int, expected: str) -> None:
    assert names(rows_begun_early(clients(3, 3, 3), lanes)) == expected


@pytest.mark.parametrize("lanes", [1, 2, 3, 8])
@pytest.mark.parametrize("sizes", [(), (1,), (1, 1, 1), (4, 1, 2, 3)])
def test_every_client_comes_once(lanes: int, sizes: tuple[int, ...]) -> None:
    made = clients(*sizes)
    assert sorted(map(id, rows_begun_early(made, lanes))) == sorted(map(id, made))
