"""Changed statements, which no chance is in: guarantees, bounds, and what an attack knows of a defense."""

from __future__ import annotations

from collections.abc import Iterator

from vleak.regression.baseline import make_baseline
from vleak.regression.plan import row_text
from vleak.regression.records import Baseline, BaselineRow, Finding
from vleak.results import RunRecord

__all__ = ["findings"]

_EQUAL = 1e-6  # part of a number


def findings(run: RunRecord, baseline: Baseline) -> list[Finding]:
    """What is weaker by what defenses and attacks say of themselves."""
    rows = {row.key: row for row in make_baseline(run).rows}
    return [
        Finding(row=row_text(row), what=what, baseline=before, tonight=after)
        for row in baseline.rows
        if row.key in rows
        for what, before, after in _weaker(row, rows[row.key])
    ]


def _weaker(before: BaselineRow, after: BaselineRow) -> Iterator[tuple[str, str, str]]:
    guarantees = (
        ("epsilon", before.epsilon, after.epsilon),
        ("delta", before.delta, after.delta),
        ("certificate", before.bound, after.bound),
    )
    for name, was, now in guarantees:
        if was is not None and now is None:
            yield f"the {name} is gone", f"{was:.4g}", "none"
        elif was is not None and now is not None and now > was * (1 + _EQUAL):
            yield f"the {name} is weaker", f"{was:.4g}", f"{now:.4g}"
    if before.adaptive and not after.adaptive:
        yield "the attack no longer uses what it knows of the defense", "adaptive", "not adaptive"
    if before.defense_knowledge == "channel" and after.defense_knowledge != "channel":
        yield "the defense no longer states its channel", "channel", after.defense_knowledge
