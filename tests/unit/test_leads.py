"""Adaptive and non-adaptive attacker of one row, and what is said of them."""

from typing import Any

import pytest
from records import make_cell, make_run

from vleak.cli.table import leak_table
from vleak.report.words import caveat_text, row_cells
from vleak.results import mean_interval, summarise
from vleak.results.records import Cell
from vleak.results.rows import Row

PRUNED = {"name": "prune", "label": "prune 99 %", "settings": {"fraction": 0.99}}
GAINS = [3.0, 4.0, 5.0, 3.5, 4.5, 2.5, 5.5, 4.0]


def cells(gains: list[float], others: list[float | None], **changes: Any) -> list[Cell]:
    """Cells behind a defense; of the other attacker None where he was not run."""
    return [
        make_cell(
            index, gain, gain > 0, defense=PRUNED,
            non_adaptive=None if other is None
            else {"psnr_gain_db": other, "identified": other > 0} | changes,
        )
        for index, (gain, other) in enumerate(zip(gains, others, strict=True))
    ]  # fmt: skip


def only(found: list[Cell]) -> Row:
    (row,) = summarise(found)
    return row


def test_leads_are_taken_clip_by_clip_on_the_clips_of_both() -> None:
    others: list[float | None] = [gain - 2 - index / 10 for index, gain in enumerate(GAINS)]
    other = only(cells([*GAINS, 30.0], [*others, None])).non_adaptive
    assert other is not None
    assert (other.n, other.identified, other.identification.n) == (8, 7, 8)
    # Far narrower than the spread of either attacker's gains, and without the clip that one of them has.
    assert other.lead_db == mean_interval([2 + index / 10 for index in range(8)])
    assert other.lead_identified.mean == pytest.approx(1 / 8)
    assert other.psnr_gain_db.mean == pytest.approx(sum(GAINS) / 8 - 2.35)


def test_who_was_not_run_or_failed_is_in_no_mean() -> None:
    assert only(cells(GAINS, [None] * 8)).non_adaptive is None
    failed = cells(GAINS, [1.0] * 8, status="failed: attack 'matching' raised ValueError: no")
    assert only(failed).non_adaptive is None
    half = only([*cells(GAINS, [1.0] * 8)[:4], *failed[4:]]).non_adaptive
    assert half is not None
    assert (half.n, half.lead_db.low) == (4, None)


@pytest.mark.parametrize(
    ("gains", "others", "behind"),
    [
        (GAINS, [gain - 1 for gain in GAINS], False),
        (GAINS, [gain + 1 + gain / 9 for gain in GAINS], True),
        ([-0.1] * 8, [0.5, -2.0] * 4, True),  # recognises half, where who knows the defense recognises none
        ([-0.1] * 8, [0.5, *[-2.0] * 7], False),
    ],
    ids=["ahead", "behind in gain", "behind in recognised", "a chance hit"],
)
def test_an_attack_behind_its_non_adaptive_form_says_so(
    gains: list[float], others: list[float | None], behind: bool
) -> None:
    row = only(cells(gains, others))
    assert ("behind_non_adaptive" in row.caveats) is behind
    if behind:
        assert "does not know the defense gets more" in caveat_text(row, "behind_non_adaptive")


def test_both_attackers_stand_in_the_table_and_in_notebooks() -> None:
    rows = summarise(cells(GAINS, [-1.0] * 8))
    assert row_cells(rows[0])["non-adaptive"] == "−5.0 dB, 0 of 8"
    for width in (80, 200):
        table = leak_table(make_run(*cells(GAINS, [-1.0] * 8)), rows, width)
        shown = {str(column.header).replace("-\n", "-"): list(column.cells) for column in table.columns}
        assert shown["non-adaptive"] == ["-5.0 0/8"]
        assert "and recognised of 8." in str(table.caption)
    without = summarise(cells(GAINS, [None] * 8))
    table = leak_table(make_run(*cells(GAINS, [None] * 8)), without, 200)
    assert "non-adaptive" not in {column.header for column in table.columns}
