"""First line of a page: what still leaks, in one sentence, and how many defenses got which verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vleak.report.filters import VERDICT_TONES
from vleak.report.numbers import plural
from vleak.report.words import VERDICTS
from vleak.results.rows import Row, Verdict
from vleak.results.summary import strongest

__all__ = ["Count", "answer", "tally"]

_FAILED: dict[Verdict, str] = {
    "no_result": "No attack gave a result",
    "too_few_clips": "Too few clips to say",
    "unclear": "Unclear even without defense",
}
"""What is said where not even undefended updates leak."""
Count = tuple[str, str, int]
"""Verdict in words, its class in the style sheet, and how many defenses have it."""


def answer(rows: Sequence[Row]) -> str:
    """Return the sentence that stands above all others on the page of a run.

    Args:
        rows: rows of the run. A defense is judged by the attack that gets most out of it.
    """
    if any(row.bound_broken or row.refuted for row in rows):
        return "A proof does not hold"
    worst = strongest(row for row in rows if not row.baseline).values()
    undefended = next((row for row in worst if row.undefended), None)
    defended = [row for row in worst if not row.undefended]
    leaking = sum(row.verdict == "leaks" for row in defended)
    if leaking:
        verb = "leaks" if leaking == 1 else "leak"
        return f"{leaking} of {len(defended)} defense{plural(len(defended))} still {verb}"
    if undefended is not None and undefended.verdict != "leaks":
        return _FAILED.get(undefended.verdict, "No picture is rebuilt even without defense")
    if not defended:
        return "Updates leak without defense" if undefended else "Nothing was attacked"
    return f"No leak was found behind {len(defended)} defense{plural(len(defended))}"


def tally(rows: Sequence[Row]) -> list[Count]:
    """Return how many defenses have each verdict, most leakage first.

    Args:
        rows: as for `answer`.
    """
    worst = strongest(row for row in rows if not row.baseline).values()
    counts = Counter(row.verdict for row in worst if not row.undefended)
    return [
        (text, VERDICT_TONES.get(verdict, "plain"), counts[verdict])
        for verdict, text in VERDICTS.items()
        if counts[verdict]
    ]
