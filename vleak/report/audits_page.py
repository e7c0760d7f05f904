"""Several audits of one client: one row an update, highest risk first, an index and a page each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from vleak.errors import VleakError
from vleak.files import write_atomic
from vleak.report.audit_page import OUTCOMES, TONES, audit_page
from vleak.report.html import render_page
from vleak.update_audit import Audit, AuditRecord

__all__ = ["AuditRow", "audit_rows", "write_audits"]

_LEVELS = ("high", "moderate", "undetermined", "low")
"""Levels of risk, the first most in need of a look: of what is undetermined nobody knows that it is low."""


@dataclass(frozen=True)
class AuditRow:
    """One update among several.

    Attributes:
        name: of the update, as the audits are given.
        shown: the same in short: the name of its file, with folders where another update has the same.
        page: name of the file of its page.
        record: of its audit.
        outcome: the worst of its checks of consistency.
        fits: the same in words, with the checks of which it is the outcome.
        recognised: clips that were recognised, of those behind the update; empty without the truth.
        gain_db: mean PSNR over that of the answer without the update; None without the truth.
        vouched: frames that the attacker vouches for, of those of a clip; empty without an answer.
    """

    name: str
    shown: str
    page: str
    record: AuditRecord
    outcome: str
    fits: str
    recognised: str
    gain_db: float | None
    vouched: str


def audit_rows(audits: Mapping[str, Audit]) -> list[AuditRow]:
    """Return audits of one model as rows, highest risk first; what is undetermined stands above what is low.

    Among equals the one of which the attacker vouches for more frames is first, then the one that fits less.

    Args:
        audits: by the name of the update, such as its file.
    """
    rows = [
        _row(name, shown, f"{number:02}-{_slug(name)}.html", audits[name].record)
        for number, (name, shown) in enumerate(zip(audits, _short(list(audits)), strict=True), 1)
    ]
    return sorted(rows, key=_rank)


def write_audits(audits: Mapping[str, Audit], folder: Path | str, *, pictures: bool = False) -> Path:
    """Write a page for every audit, and one that lists them; return the path of that one.

    Args:
        audits: by the name of the update, at least one; all of one model.
        folder: in which the pages are, made if need be; the list is its index.html.
        pictures: as of `write_audit`.

    Raises:
        VleakError: a page cannot be written; the list is written last.
    """
    folder, rows = Path(folder), audit_rows(audits)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise VleakError(f"cannot make the folder {folder}: {error.strerror}; choose another") from error
    for row in rows:
        page = audit_page(audits[row.name], pictures=pictures, among=row.shown)
        write_atomic(folder / row.page, page)
    index = folder / "index.html"
    first = rows[0].record
    write_atomic(index, render_page("audits.html", rows=rows, first=first, tones=TONES, outcomes=OUTCOMES))
    return index


def _row(name: str, shown: str, page: str, record: AuditRecord) -> AuditRow:
    outcome = max((check.outcome for check in record.consistency), key=list(OUTCOMES).index, default="fits")
    which = dict.fromkeys(check.name for check in record.consistency if check.outcome == outcome)
    scores, sure = record.measured, record.confidence
    return AuditRow(
        name=name,
        shown=shown,
        page=page,
        record=record,
        outcome=outcome,
        fits=outcome if outcome == "fits" else f"{outcome}: {', '.join(which)}",
        recognised=f"{sum(s.recognised for s in scores)} of {len(scores)}" if scores else "",
        gain_db=fmean(score.psnr_gain_db for score in scores) if scores else None,
        vouched=f"{sure.frames_verified} of {sure.frames}" if record.answered_by else "",
    )


def _rank(row: AuditRow) -> tuple[int, int, int]:
    worst = list(OUTCOMES).index(row.outcome)
    return _LEVELS.index(row.record.risk.level), -row.record.confidence.frames_verified, -worst


def _short(names: Sequence[str]) -> list[str]:
    """Return as many of the last parts of paths as tell them apart."""
    parts = [Path(name).parts for name in names]
    for count in range(1, max(map(len, parts))):
        short = ["/".join(each[-count:]) for each in parts]
        if len(set(short)) == len(names):
            return short
    return list(names)


def _slug(name: str) -> str:
    """Return the name of a file without folder and ending, as a link and every disk take it."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(name).stem)[:60].strip("-") or "update"
