"""What defenses cost beside what they leak, and which of them no other one beats in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vleak.report.numbers import ratio
from vleak.results import Interval, Row
from vleak.results.statistics import mean_interval
from vleak.results.summary import strongest

__all__ = ["Cost", "CostTable", "compared", "cost_table", "frontier", "leak", "undominated"]


@dataclass(frozen=True)
class Cost:
    """What leakage is set against.

    Attributes:
        title: of the plot. axis: label of its axis. praise: what a defense on the line does as well.
        pick: returns the quantity of a row. sign: 1 where more of it is better, -1 where less is.
        logarithmic: whether its axis is.
    """

    title: str
    axis: str
    praise: str
    pick: Callable[[Row], Interval]
    sign: int
    logarithmic: bool = False

    def useful(self, row: Row) -> float:
        """Return how useful the defense of a row is by this quantity."""
        return self.sign * (self.pick(row).mean or 0.0)


_ACCURACY = Cost(
    "Leakage against utility",
    "accuracy after federated training  (right: more useful)",
    "trains as well",
    lambda row: row.accuracy,
    1,
)
_BYTES = Cost(
    "Leakage against bytes",
    "bytes sent, against no defense  (left: cheaper)",
    "sends as little",
    lambda row: mean_interval([] if row.bytes_ratio is None else [row.bytes_ratio]),
    -1,
    logarithmic=True,
)


def frontier(rows: Sequence[Row], useful: Callable[[Row], float] = _ACCURACY.useful) -> list[Row]:
    """Return the rows that no other beats in one of leakage and use, and equals in the other.

    Args:
        rows: one a defense, each with a gain.
        useful: returns how useful a row's defense is, by its accuracy unless something else is given.
    """
    points = [(leak(row), useful(row)) for row in rows]

    def beaten(gain: float, use: float) -> bool:
        return any(
            other <= gain and right >= use and (other, right) != (gain, use) for other, right in points
        )

    return [row for row, point in zip(rows, points, strict=True) if not beaten(*point)]


def compared(rows: Sequence[Row]) -> tuple[Cost, list[Row]] | None:
    """Return what leakage is set against, and one row a defense, at the attack that gets most out of it.

    That is accuracy; where none was measured the bytes sent, where those differ. None where there is nothing
    to compare.

    Args:
        rows: rows of the run.
    """
    worst = strongest(row for row in rows if not row.baseline and row.n).values()
    for cost in (_ACCURACY, _BYTES):
        shown = [
            row for row in worst if cost.pick(row).mean is not None and row.psnr_gain_db.mean is not None
        ]
        if len(shown) > 1 and (cost is _ACCURACY or len({ratio(cost.pick(row).mean) for row in shown}) > 1):
            return cost, shown
    return None


@dataclass(frozen=True)
class CostTable:
    """Defenses with what they cost, least leakage first.

    Attributes:
        rows: one a defense, each with whether no other one beats it.
        praise: what one that is not beaten does as well, such as "trains as well".
        trained: whether accuracies were measured.
    """

    rows: list[tuple[Row, bool]]
    praise: str
    trained: bool


def cost_table(rows: Sequence[Row]) -> CostTable | None:
    """Return the table of what is compared, None where that is nothing.

    Args:
        rows: rows of the run.
    """
    found = compared(rows)
    if found is None:
        return None
    cost, shown = found
    best = frontier(shown, cost.useful)
    ordered = sorted(shown, key=leak)
    return CostTable([(row, row in best) for row in ordered], cost.praise, cost is _ACCURACY)


def undominated(rows: Sequence[Row]) -> list[str]:
    """Return the defenses that no other one beats in leakage and accuracy; none without accuracies."""
    table = cost_table(rows)
    return [row.defense for row, best in table.rows if best] if table is not None and table.trained else []


def leak(row: Row) -> float:
    """Return what leaks behind a defense: the gain in dB."""
    return row.psnr_gain_db.mean or 0.0
