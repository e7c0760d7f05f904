"""Page of an audit: verdict first, then what fits, what was rebuilt, where it leaks, what would help."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from vleak.files import write_atomic
from vleak.report.film import film_strip
from vleak.report.html import render_page
from vleak.report.panels import ClipPanel, Picture
from vleak.results.pictures import as_bytes
from vleak.update_audit import Audit

__all__ = ["OUTCOMES", "TONES", "audit_page", "write_audit"]

TONES = {"high": "leaks", "moderate": "unclear", "low": "safe", "undetermined": "unclear"}
"""Style of a level of risk."""
OUTCOMES = {"fits": "safe", "note": "plain", "doubt": "unclear", "wrong": "leaks"}
"""Style of an outcome of a check, the worst outcome last."""


def write_audit(audit: Audit, path: Path | str, *, pictures: bool = False) -> Path:
    """Write the page of an audit, one file that loads nothing; return its path.

    Args:
        audit: that was made.
        path: of the page.
        pictures: whether the rebuilt clips are on it, which are as private as the clips; a private clip that
            was given as the truth never is.

    Raises:
        VleakError: the page cannot be written.
    """
    write_atomic(Path(path), audit_page(audit, pictures=pictures))
    return Path(path)


def audit_page(audit: Audit, *, pictures: bool = False, among: str = "") -> str:
    """Return the HTML of the page of an audit.

    Args:
        audit: that was made.
        pictures: as of `write_audit`.
        among: name of the update, where it is one of several whose list is index.html beside the page.
    """
    record = audit.record
    return render_page(
        "audit.html",
        record=record,
        among=among,
        tone=TONES[record.risk.level],
        outcomes=OUTCOMES,
        panels=_panels(audit) if pictures else [],
        withheld=audit.clips is not None and not pictures,
        facts={"Update": record.update.model_dump(), "Budget": record.budget.model_dump()},
    )


def _panels(audit: Audit) -> list[ClipPanel]:
    """Return what was rebuilt of every clip beside the answer without the update."""
    if audit.clips is None:
        return []
    pairs = zip(audit.clips, audit.prior, strict=True)
    return [ClipPanel(f"clip {number}", _pictures(*pair)) for number, pair in enumerate(pairs, 1)]


def _pictures(clip: Tensor, prior: Tensor) -> tuple[Picture, ...]:
    return (
        Picture(title="rebuilt from the update", role="attack", strip=film_strip(as_bytes(clip))),
        Picture(title="best public answer", role="baseline", strip=film_strip(as_bytes(prior))),
    )
