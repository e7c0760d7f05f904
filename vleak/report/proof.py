"""Words about what is proven: figures between guess and ceiling, and audits of what defenses claim."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vleak.report.numbers import epsilon_text, percent
from vleak.results.audit import AuditRecord
from vleak.results.rows import Figure, Row

__all__ = [
    "accusations",
    "at_least",
    "audit_note",
    "audits_of",
    "broken_sentence",
    "refuted_sentence",
    "sandwich_text",
    "seed_note",
]


def sandwich_text(figure: Figure) -> str:
    """Figure between guess and ceiling in one line: ``"8 % ≤ 33 % ≤ 35 %"``; a dash for what is unknown."""
    guess = "–" if figure.baseline is None else percent(figure.baseline)
    ceiling = "–" if figure.ceiling is None else percent(figure.ceiling)
    # A figure below the guess is no news, one above the ceiling is: only the signs that hold are written.
    return f"{guess} {_sign(figure.baseline, figure.share)} {percent(figure.share)} " + (
        f"{'>' if figure.broken else _sign(figure.share, figure.ceiling)} {ceiling}"
    )


def _sign(low: float | None, high: float | None) -> str:
    return "·" if low is None or high is None else "≤" if low <= high else ">"


def at_least(row: Row) -> str:
    """Lower bound on epsilon beside the claimed one: ``"≥ 2.9"``; empty without an audit."""
    if row.audit is None or not row.audit.ok:
        return ""
    return f"≥ {_epsilon(row.audit.epsilon)}"


def audit_note(rows: Sequence[Row]) -> list[str]:
    """One sentence on what the lower bounds are, none where there is none."""
    audits = [audit for audit in audits_of(rows) if audit.ok]
    if not audits:
        return []
    rate = 1 / (1 - audits[0].confidence)
    return [
        f"ε ≥: what {min(a.draws for a in audits)} messages with canaries and as many without show of one "
        f"release, the clip replaced by zero; an honest run is refuted at most once in {rate:,.0f}."
    ]


def seed_note(rows: Sequence[Row]) -> list[str]:
    """One sentence on noise that can be searched through, none where nothing is proven or it cannot be."""
    proving = [row for row in rows if row.epsilon is not None]
    if any(row.audit is not None and row.audit.searchable for row in proving):
        return [
            "ε supposes that nobody searches the seeds: 32 bits of them decide about the noise here, as of "
            "PyTorch's CPU generator."
        ]
    if any(row.audit is None or row.audit.searchable is None for row in proving):
        return [
            "ε supposes that nobody searches the seeds of the noise, of which PyTorch's CPU generator keeps "
            "32 bits; whether it is drawn from that was not audited."
        ]
    return []


def audits_of(rows: Iterable[Row]) -> list[AuditRecord]:
    """Audits of the rows, each once, also those of defenses that could not be audited."""
    found = {(row.audit.model, row.audit.text): row.audit for row in rows if row.audit is not None}
    return list(found.values())


def accusations(rows: Sequence[Row]) -> list[str]:
    """Sentences that accuse certificate or code, the loudest of a run."""
    seen: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.bound_broken:
            seen.setdefault((row.defense, row.model), row)
    broken = [broken_sentence(row) for row in seen.values()]
    return broken + [refuted_sentence(audit) for audit in audits_of(rows) if audit.refuted]


def broken_sentence(row: Row) -> str:
    """Sentence on the figure of a row that is furthest above what is proven."""
    figure = min((each for each in row.figures if each.broken), key=lambda each: each.tail or 0.0)
    what = {
        "recognised": f"{row.attack} recognised {figure.successes} of {figure.trials} clips",
        "linked": f"{figure.successes} of {figure.trials} clips are linked",
        "told": f"who is told the labels links {percent(figure.share)} of {figure.trials:,} messages",
    }[figure.name]
    return (
        f"BOUND BROKEN: under {row.defense} on {row.model} ({row.training_state}) {what}, where the "
        f"certificate allows {percent(figure.ceiling or 0.0)} (chance of that {figure.tail or 0.0:.0e}); the "
        "certificate or the defense's code is wrong."
    )


def refuted_sentence(audit: AuditRecord) -> str:
    """Sentence on a claim that the messages refute."""
    shown = audit.epsilon is None or (audit.claimed is not None and audit.epsilon > audit.claimed)
    why = (
        f"{2 * audit.draws:,} messages show an epsilon of {_epsilon(audit.epsilon)} or more "
        f"({audit.method}, canary: {audit.canary})"
        if shown
        else f"{2 * audit.draws:,} messages speak against it by an e-value of {audit.e_value or 0.0:.0e} "
        f"({audit.e_claim if audit.e_claim == 'noise' else f'canary: {audit.e_claim}'})"
    )
    return (
        f"CLAIM REFUTED: {audit.defense} on {audit.model} claims epsilon {_epsilon(audit.claimed)} of one "
        f"release, and {why}; the claim or the defense's code is wrong."
    )


def _epsilon(value: float | None) -> str:
    return "∞" if value is None else epsilon_text(value)
