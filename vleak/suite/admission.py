"""Admission of an entry: rules that keep figures out which say nothing, such as those of masked gradients.

A defense may look strong because the attack was broken, did not know it, or met an error. Each rule is about
one of these, after the advice of Athalye et al. (ICML 2018, arXiv 1802.00420) and Carlini et al. (2019, arXiv
1902.06705) on the evaluation of defenses.
"""

from __future__ import annotations

from collections.abc import Iterator

from vleak.suite.records import EntryContent, Refusal, SituationFigures

__all__ = ["refusals_of"]


def refusals_of(content: EntryContent) -> tuple[Refusal, ...]:
    """Rules that an entry breaks; empty where it is admitted.

    The answer depends on the content alone, so that whoever reads an entry can ask again.
    """
    found = [refusal for figures in content.situations for refusal in _of_situation(figures, content)]
    return (*found, *_of_claims(content))


def _of_situation(figures: SituationFigures, content: EntryContent) -> Iterator[Refusal]:
    undefended, defended = figures.undefended, figures.defended
    for who, each in (("undefended", undefended), ("defended", defended)):
        if len(each.clips) != len(content.clips) or each.failed:
            why = "; ".join(each.failures) or "it was stopped"
            yield Refusal(
                rule="all cells",
                situation=figures.name,
                reason=f"{len(each.clips)} of {len(content.clips)} {who} clips were scored: {why}",
            )
            return
    if undefended.verdict != "leaks":
        yield Refusal(
            rule="undefended leaks",
            situation=figures.name,
            reason="the same attack gets nothing beyond doubt out of the undefended updates of these clips, "
            "so that its failure says nothing of the defense",
        )
    if not content.defense.undefended and not (figures.adaptive and figures.knowledge != "none"):
        yield Refusal(
            rule="attack knows the defense",
            situation=figures.name,
            reason="the attack does not use what is known of the defense, neither its channel nor a "
            "simulation",
        )
    if figures.unaware is not None and figures.unaware.ahead:
        yield Refusal(
            rule="attack is at its best",
            situation=figures.name,
            reason="the same attack gets more out of these clips where it does not know the defense",
        )
    if figures.broken:
        yield Refusal(
            rule="claims hold",
            situation=figures.name,
            reason="a measured share is above what the defense proves: the certificate or the code is wrong",
        )


def _of_claims(content: EntryContent) -> Iterator[Refusal]:
    for check in content.claims:
        if check.outcome == "broken":
            yield Refusal(rule="claims hold", situation=None, reason=f"{check.name}: {check.detail}")
    audit = content.audit
    if audit is not None and audit.refuted:
        epsilon = "infinite" if audit.epsilon is None else f"{audit.epsilon:.3g}"
        yield Refusal(
            rule="claims hold",
            situation=None,
            reason=f"its messages refute the epsilon that it claims: {audit.claimed} is claimed, at least "
            f"{epsilon} was found",
        )
