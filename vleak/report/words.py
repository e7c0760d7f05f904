"""Sentences about a run: what still leaks, what does not, and what each defense costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vleak.report.costs import undominated
from vleak.report.numbers import decibel, epsilon_text, percent, plural, ratio
from vleak.report.proof import accusations, at_least
from vleak.results.records import ClientRecord, KnowledgeRecord, RunRecord
from vleak.results.rows import Caveat, Row, Verdict
from vleak.results.seeds import SeedVerdict
from vleak.results.statistics import MIN_CLIPS, Interval
from vleak.results.summary import strongest

__all__ = [
    "VERDICTS",
    "Sentence",
    "Topic",
    "caveat_text",
    "client_text",
    "headline",
    "headline_sentences",
    "interval_note",
    "knowledge_text",
    "non_adaptive_text",
    "row_cells",
    "seeds_sentences",
    "unfinished",
    "verdict_text",
]

Topic = Verdict | Literal["unfinished", "bound_broken", "undefended", "cost"]
"""What a sentence of the headline is about: rows of one verdict, or one of these."""

VERDICTS: dict[Verdict, str] = {
    "leaks": "leaks",
    "linkable_picture_unclear": "linkable, picture unclear",
    "linkable_no_picture": "linkable, no picture",
    "linkable_below_prior": "linkable; attack below its prior, judges no picture",
    "unclear": "unclear",
    "too_few_clips": "too few clips to say",
    "no_result": "no result",
    "nothing_found": "nothing found",
    "below_prior": "attack below its prior, judges nothing",
    "baseline": "baseline",
}
_CAVEATS: dict[Caveat, str] = {
    "not_compared": "not run without defense, so its failure may be the attack's",
    "fails_undefended": "this attack fails even undefended",
    "not_adaptive": "the attack does not know the defense",
    "behind_non_adaptive": "who does not know the defense gets more by the same attack",
}
_QUIET: tuple[Verdict, ...] = ("nothing_found", "linkable_no_picture", "linkable_picture_unclear")
"""Verdicts that claim a defense hides something: the headline says what weakens them."""
_OPENINGS: dict[Verdict, str] = {
    "leaks": "Still leaking",
    "linkable_picture_unclear": "Linkable, picture unclear",
    "linkable_no_picture": "Linkable, no picture (who holds the candidate clips can tell which it was)",
    "linkable_below_prior": "Linkable, and no attack judges the picture, as all fell below their own prior",
    "unclear": "Unclear",
    "too_few_clips": "Too few clips to say",
    "no_result": "No result, because every cell failed",
    "nothing_found": "Nothing found",
    "below_prior": "Not judged, as every attack fell below its own prior (worse than the best baseline)",
}
_NAMED = 6  # labels spelled out in one sentence before "and n more"


def verdict_text(row: Row) -> str:
    """Verdict of a row in words."""
    return VERDICTS[row.verdict]


def caveat_text(row: Row, caveat: Caveat) -> str:
    """One caveat of a row in words."""
    if caveat == "flagged":
        return f"{row.flagged} of {row.n} flagged"
    return f"{row.failed} failed" if caveat == "failed" else _CAVEATS[caveat]


def non_adaptive_text(row: Row) -> str:
    """What not knowing the defense changes, and the clips recognised; empty where that was not run."""
    other = row.non_adaptive
    if other is None:
        return ""
    lead = other.lead_db.mean
    parts = [] if lead is None else [decibel(-lead)]
    return ", ".join([*parts, f"{other.identified} of {other.n}"])


def interval_note(interval: Interval) -> str:
    """Reason why there is no interval; empty where there is one."""
    if interval.reason is None:
        return ""
    if interval.reason == "no_clips":
        return "no clip was scored"
    return f"{interval.n} clip{plural(interval.n)}; an interval needs at least {MIN_CLIPS}"


def client_text(client: ClientRecord) -> str:
    """What a client does beyond one gradient of one clip, such as "batch of 4, 5 local steps"; else empty."""
    parts = [] if client.batch_size == 1 else [f"batch of {client.batch_size}"]
    if client.mode == "train":
        parts.append("train mode, dropout masks unknown" if client.masks_unknown else "train mode")
    if client.local is not None:
        steps, size = client.local.steps, client.local.batch_size
        of = f" of {size}" if size else ""
        adam = " of Adam" if client.local.optimizer == "adam" else ""
        parts.append(f"{steps} local step{plural(steps)}{of}{adam}")
    if client.rounds > 1:
        clips = " of new clips" if client.new_clips else ""
        chance = "" if client.participation == 1 else f", {client.participation:.0%} of them"
        parts.append(f"{client.rounds} rounds{clips}{chance}")
    return ", ".join(parts)


def knowledge_text(knowledge: KnowledgeRecord) -> str:
    """Grants of a threat model, such as ``"labels inferred, 1 reference frame"``."""
    frames = knowledge.reference_frames
    parts = [f"labels {knowledge.labels}"]
    if frames:
        parts.append(f"{frames} reference frame{plural(frames)}")
    if knowledge.public_from == "same-file":
        parts.append("public clips of the attacked videos")
    return ", ".join(parts)


@dataclass(frozen=True)
class Sentence:
    """Sentence of the headline and what it is about."""

    topic: Topic
    text: str


def row_cells(row: Row) -> dict[str, str]:
    """Cells of a short table row by column."""
    frames = f" +{row.reference_frames} reference frame{plural(row.reference_frames)}"
    gain, share = row.psnr_gain_db, row.identification
    return {
        "defense": "no update seen" if row.baseline else row.defense,
        "attack": ", ".join(
            part
            for part in (row.attack + (frames if row.reference_frames else ""), client_text(row.client))
            if part
        ),
        "ε": "" if row.epsilon is None else epsilon_text(row.epsilon),
        "gain": "–" if gain.mean is None else decibel(gain.mean),
        "recognised": f"{row.identified} of {share.n}" if share.n else "–",
        "non-adaptive": non_adaptive_text(row),
        "linked": f"{row.linked} of {row.linkage.n}" if row.linkage.n else "–",
        "verdict": ", ".join([verdict_text(row), *(caveat_text(row, caveat) for caveat in row.caveats)]),
    }


def headline(rows: Sequence[Row], record: RunRecord | None = None) -> list[str]:
    """A few plain sentences that say what still leaks, what does not, and what each defense costs.

    Args:
        rows: rows of a run, as `vleak.results.summarise` gives them.
        record: that run, for a first sentence where it is not finished.
    """
    return [sentence.text for sentence in headline_sentences(rows, record)]


def headline_sentences(rows: Sequence[Row], record: RunRecord | None = None) -> list[Sentence]:
    """Sentences of the headline with their topics.

    Every defense is judged by the attack and model that got most out of it; they are named where they are not
    those of the first sentence.

    Args:
        rows, record: as for `headline`.
    """
    worst = strongest(row for row in rows if not row.baseline)
    undefended = next((row for row in worst.values() if row.undefended), None)
    usual = "" if undefended is None else _where(undefended, rows)
    defended = [row for row in worst.values() if not row.undefended]
    sentences = [] if record is None else [Sentence("unfinished", text) for text in unfinished(record)]
    sentences += [Sentence("bound_broken", text) for text in accusations(rows)]
    if undefended is not None:
        sentences.append(Sentence("undefended", _undefended_sentence(undefended, usual)))
    sentences += _verdict_sentences(defended, rows, usual)
    sentences += [Sentence("cost", text) for text in _accuracy_sentence(list(worst.values()))]
    sentences += [Sentence("cost", text) for text in _cost_sentence(defended)]
    if not worst:
        text = "No attack was scored, so this run says nothing about leakage."
        sentences.append(Sentence("unfinished", text))
    return sentences


def _verdict_sentences(defended: Sequence[Row], rows: Sequence[Row], usual: str) -> list[Sentence]:
    """One sentence for each verdict that a defense got.

    Args:
        defended: the worst row of every defense.
        rows: all rows.
        usual: attack and model that need no mention.
    """
    sentences = []
    for verdict, opening in _OPENINGS.items():
        described = [
            _describe(row, "" if (where := _where(row, rows)) == usual else where)
            for row in defended
            if row.verdict == verdict
        ]
        if described:
            sentences.append(Sentence(verdict, f"{opening}: {_listed(described)}."))
    return sentences


def seeds_sentences(verdicts: Sequence[SeedVerdict]) -> list[str]:
    """One sentence for each setting of several runs: its verdict, at how many seeds, by which attack.

    Args:
        verdicts: from `vleak.results.over_seeds`.
    """
    several = len({(each.row.model, each.row.training_state) for each in verdicts}) > 1
    sentences = []
    for each in verdicts:
        row = each.row
        granted = ", ".join(part for part in (client_text(row.client), knowledge_text(row.knowledge)) if part)
        where = f" on {row.model}, {row.training_state}" if several else ""
        by = f"{row.attack}, the strongest of {len(each.attacks)}" if len(each.attacks) > 1 else row.attack
        gain = row.psnr_gain_db.mean
        dropped = "" if gain is None else f", {decibel(gain)}"
        sentences.append(
            f"{row.defense}{where} ({granted}): {verdict_text(row)} at {each.found} of {each.seeds} "
            f"seed{plural(each.seeds)} (most by {by}: {row.identified} of {row.n} recognised{dropped})."
        )
    return sentences


def unfinished(record: RunRecord) -> list[str]:
    """What is missing where a run was stopped before its end, a sentence each; none where it is whole."""
    done, planned = len(record.cells), record.planned_cells
    missing = _untrained(record)
    if planned is None:
        return [f"{done} cell{plural(done)} finished, the run did not; rows may be missing.", *missing]
    return [f"{done} of {planned} cells finished; rows may be missing."] * (done < planned) + missing


def _untrained(record: RunRecord) -> list[str]:
    """One sentence where accuracies were asked for and some defenses were not trained under."""
    planned = len(record.settings.defenses) - len(record.not_served) if record.settings.utility else 0
    done = len(record.utility)
    if done >= planned:
        return []
    return [f"Trained under {done} of {planned} defenses (no defense counts as one); accuracies are missing."]


def _undefended_sentence(row: Row, where: str) -> str:
    if row.verdict == "no_result":
        return "Without defense no attack gave a result, so nothing can be said of any defense."
    count = row.identification.n
    clips = "clip is" if count == 1 else "clips are"
    text = f"Without defense {row.identified} of {count} {clips} recognised{_gain(row)}{where}"
    if not count:
        text = f"Without defense there is no clip to tell from others{_gain(row)}{where}"
    if row.verdict == "leaks":
        return f"{text}."
    return f"{text}: {verdict_text(row)}, so the attack's failure under a defense would prove nothing."


def _where(row: Row, rows: Sequence[Row]) -> str:
    """Attack and model of a row, where the run holds more than one."""
    attacks = {other.attack for other in rows if not other.baseline}
    models = {(other.model, other.training_state) for other in rows}
    text = f" by {row.attack}" if len(attacks) > 1 else ""
    if row.reference_frames:
        text += f", given {row.reference_frames} frame{plural(row.reference_frames)} of the scene"
    return text + (f" on {row.model}, {row.training_state}" if len(models) > 1 else "")


def _describe(row: Row, where: str) -> str:
    parts = [] if row.epsilon is None else [_epsilon(row, row.epsilon)]
    if row.n:
        parts.append(_counts(row, where))
        if row.psnr_gain_db.mean is not None:
            parts.append(f"{decibel(row.psnr_gain_db.mean)}{_at_most_decibel(row)}")
    if row.bound is not None:
        parts.append(_guarantee(row.bound))
        if row.link_chance is not None and row.link_chance < 0.995:  # else it is linked anyway
            parts.append(f"who also knows the labels links {percent(row.link_chance)} of messages")
    if row.verdict in _QUIET:
        parts.extend(_CAVEATS[caveat] for caveat in row.caveats if caveat in _CAVEATS)
    return f"{row.defense} ({'; '.join(parts)})" if parts else row.defense


def _epsilon(row: Row, epsilon: float) -> str:
    """Return what a defense proves, for both adjacencies, and what its messages show of it."""
    text = f"ε {epsilon_text(epsilon)}"
    if row.replaced_epsilon is not None:
        text += f" ({epsilon_text(row.replaced_epsilon)} if replaced by another)"
    return f"{text}, {shown} by what is sent" if (shown := at_least(row)) else text


def _counts(row: Row, where: str) -> str:
    """Counts of recognised and linked clips; what is not told from chance, with its upper end."""
    chance = row.chance or 1.0
    recognised = f"{row.identified} of {row.identification.n} recognised{where}"
    texts = [recognised + _at_most(row, row.identification, chance)]
    if not row.identification.n:
        texts = ["no clip to tell from others"]
    if row.linkage.n:
        guess = 1.0 if row.guess is None else row.guess
        texts.append(f"{row.linked} linked{_at_most(row, row.linkage, guess)}")
    return ", ".join(texts)


def _at_most(row: Row, share: Interval, chance: float) -> str:
    above = share.low is not None and share.low > chance
    if row.verdict not in _QUIET or share.high is None or above:
        return ""
    return f" (at most {percent(share.high)})"


def _at_most_decibel(row: Row) -> str:
    high = row.psnr_gain_db.high
    return f" (at most {decibel(high)})" if row.verdict in _QUIET and high is not None else ""


def _guarantee(bound: float) -> str:
    if bound >= 0.995:
        return "the guarantee rules nothing out"
    return f"the guarantee allows at most {percent(bound)} recognised"


def _gain(row: Row) -> str:
    gain = row.psnr_gain_db.mean
    if gain is None:
        return ""
    if round(gain, 1) < 0:
        return f" ({-gain:.1f} dB below the best baseline)"
    return f" ({decibel(gain)} over the best baseline)"


def _cost_sentence(rows: list[Row]) -> list[str]:
    known = [row for row in rows if row.bytes_ratio is not None]
    other = [f"{row.defense} {ratio(row.bytes_ratio)}" for row in known if ratio(row.bytes_ratio) != "×1"]
    if not known:
        return []
    if not other:
        return ["Bytes sent: as many as without defense."]
    same = "; the others as many" if len(other) < len(known) else ""
    return [f"Bytes sent, against no defense: {_listed(other)}{same}."]


def _accuracy_sentence(rows: Sequence[Row]) -> list[str]:
    """What training is left under each defense; intervals are of the change against no defense."""
    undefended = [row for row in rows if row.undefended and row.accuracy.mean is not None]
    if not undefended:
        return []
    each = []
    for row in rows:
        change = row.accuracy_change
        if change.mean is not None and change.low is not None and change.high is not None:
            points = f"{100 * change.mean:+.0f} points [{100 * change.low:+.0f}, {100 * change.high:+.0f}]"
            accuracy = percent(row.accuracy.mean or 0.0)
            each.append(f"{row.defense} {accuracy} ({points.replace('-', '−')})")
    told = f"Accuracy after federated training: {percent(undefended[0].accuracy.mean or 0.0)} without defense"
    best = undominated(rows)
    marked = [f"No other defense leaks less and trains as well as: {_listed(best)}."] if best else []
    return [f"{told}; {_listed(each)}." if each else f"{told}.", *marked]


def _listed(items: list[str]) -> str:
    more = len(items) - _NAMED
    return "; ".join(items[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
