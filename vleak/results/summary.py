"""Summary of a run: its cells gathered into rows, each with a verdict and what weakens it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import get_args

from vleak.results.leads import non_adaptive_of
from vleak.results.records import Cell, EnhancementRecord, RunRecord, Scores, SegmentScores
from vleak.results.rows import Caveat, Row, RowKey, Segments, Verdict, row_key, setting_key
from vleak.results.sandwich import ACCUSED, ceilings_of, figures_of, with_audits, with_broken
from vleak.results.statistics import Interval, binomial_interval, mean_interval
from vleak.results.utility import UtilityRecord

__all__ = ["NEGLIGIBLE_GAIN_DB", "leak_order", "strongest", "summarise"]

NEGLIGIBLE_GAIN_DB = 0.5
"""A gain whose whole interval lies below this is called nothing: no eye sees half a decibel. One whose whole
interval lies as far below zero is of an attack that is worse than guessing: it judges nothing."""
_ERROR = 0.05  # of all verdicts on a setting together

_SEVERITY: tuple[Verdict, ...] = get_args(Verdict)


def summarise(record: RunRecord | Sequence[Cell], *, seeds: int = 1) -> list[Row]:
    """Rows of a run: one for each pipeline, model, training state, defense, attack and knowledge.

    Defenses are told apart by name and settings, not by their labels. A setting is judged by the attack that
    gets most out of it; lest the choice among k attacks find what is not there, each verdict is at the level
    1 - 0.05 / k (Bonferroni), while the intervals of a row are those of its own numbers, 95 %.

    Args:
        record: the run, or its cells. A clip that occurs twice in a row counts once, with its last cell.
        seeds: runs of other seeds among which the one that leaks most decides, this one included.

    Returns:
        Rows by model in the order of the run; within a model the baselines, then no defense, then the
        defenses in the order they were run in.
    """
    cells = record.cells if isinstance(record, RunRecord) else record
    groups: dict[RowKey, dict[str, Cell]] = {}
    for cell in cells:
        groups.setdefault(row_key(cell), {})[cell.clip] = cell
    labels = _labels(cells)
    attacks = Counter(setting_key(key) for key, of in groups.items() if not _first(of).attack.baseline)
    rows = []
    for key in _ordered(groups):
        count, found = max(attacks[setting_key(key)], 1), list(groups[key].values())
        row = _row(key, found, labels[key.label, key.defense])
        rows.append(_judged(replace(row, attacks=count, judged_at_once=count * seeds), found, seeds))
    rows = with_broken(_with_caveats(_with_ratios(rows)), ACCUSED / 2 / seeds)
    if not isinstance(record, RunRecord):
        return rows
    return with_audits(_with_accuracy(rows, record.utility), record.audits)


def _first(cells: Mapping[str, Cell]) -> Cell:
    return next(iter(cells.values()))


def leak_order(row: Row) -> tuple[int, float, float]:
    """Sort key that puts the row with most leakage first."""
    share, gain = row.identification.mean, row.psnr_gain_db.mean
    return (
        _SEVERITY.index(row.verdict),
        # What reference frames give by themselves is not the update's.
        -(share - (row.chance or 0.0) if share is not None else -1.0),
        -(gain if gain is not None else -math.inf),
    )


def strongest(rows: Iterable[Row]) -> dict[str, Row]:
    """By label of the defense, the row that leaks most."""
    strongest: dict[str, Row] = {}
    for row in rows:
        if row.defense not in strongest or leak_order(row) < leak_order(strongest[row.defense]):
            strongest[row.defense] = row
    return strongest


def _labels(cells: Sequence[Cell]) -> dict[tuple[str, str], str]:
    """By label, and name and settings of a defense, a label that is its alone."""
    variants: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        variants.setdefault(cell.defense.label, {})[cell.defense.text] = cell
    labels = {}
    for label, alike in variants.items():
        facts = {
            text: {"defense": cell.defense.name, **cell.defense.settings} for text, cell in alike.items()
        }
        names = dict.fromkeys(name for settings in facts.values() for name in settings)
        apart = [n for n in names if len({repr(settings.get(n)) for settings in facts.values()}) > 1]
        for text, settings in facts.items():
            parts = [f"{n}={str(settings[n]).replace('e-0', 'e-')}" for n in apart if n in settings]
            labels[label, text] = ", ".join([label, *parts])
    return labels


def _ordered(groups: Mapping[RowKey, Mapping[str, Cell]]) -> list[RowKey]:
    """Keys by first appearance of their model, baselines and the undefended first within it."""
    models = {key[:3]: index for index, key in reversed(list(enumerate(groups)))}
    defenses = {key[3:5]: index for index, key in reversed(list(enumerate(groups)))}

    def position(key: RowKey) -> tuple[int, bool, int]:
        cell = _first(groups[key])
        first = -1 if cell.defense.undefended else defenses[key[3:5]]
        return models[key[:3]], not cell.attack.baseline, first

    return sorted(groups, key=position)


def _row(key: RowKey, cells: list[Cell], label: str) -> Row:
    scored = [cell for cell in cells if cell.ok]
    failed = [cell for cell in cells if not cell.ok]
    scores = [cell.scores for cell in scored if cell.scores is not None]
    first, flagged = cells[0], [cell for cell in scored if cell.flags]
    guesses = [score.label_correct for score in scores if score.label_correct is not None]
    updates = [cell.update for cell in scored if cell.update is not None]
    guess = _guess(scores, key.client.batch_size)
    row = Row(
        key=key,
        pipeline=key.pipeline,
        model=key.model,
        training_state=key.training_state,
        defense=label,
        undefended=first.defense.undefended,
        attack=key.attack,
        methods=_by_frequency(cell.attack.method for cell in scored if cell.attack.method),
        baseline=first.attack.baseline,
        adaptive=all(cell.attack.adaptive for cell in scored),
        defense_knowledge=(scored or cells)[0].attack.defense_knowledge,
        knowledge=first.knowledge,
        client=key.client,
        n=len(scored),
        failed=len(failed),
        failures=_distinct(cell.failure or "" for cell in failed),
        flagged=len(flagged),
        flags=_distinct(flag for cell in flagged for flag in cell.flags),
        epsilon=first.defense.epsilon,
        delta=first.defense.delta,
        replaced_epsilon=first.defense.replaced_epsilon,
        psnr_db=_mean(score.psnr_db for score in scores),
        psnr_gain_db=_gain(scores, _ERROR),
        ssim=_mean(score.ssim for score in scores),
        ssim_gain=mean_interval(_known(score.ssim_gain for score in scores)),
        motion_psnr_db=_mean(score.motion_psnr_db for score in scores),
        identified=sum(score.identified for score in scores),
        identification=_identification(scores, _ERROR),
        linked=sum(bool(score.linked) for score in scores),
        linkage=_linkage(scores, _ERROR),
        candidates=max((score.candidates for score in scores if score.candidates), default=None),
        guess=guess,
        chance=_chance(scores, guess),
        link_chance=_mean(score.link_chance for score in scores),
        bound=_mean(c.certificate.bound for c in scored or failed if c.certificate is not None),
        labels_correct=sum(guesses),
        labels=len(guesses),
        bytes=_mean(update.bytes for update in updates),
        bytes_ratio=None,
        cosine=_mean(update.cosine_to_undefended for update in updates),
        seconds=_mean(cell.attack.seconds for cell in scored),
        verdict="baseline",
        pooled=not all(cell.order_identifiable for cell in cells),
        segments=_segments([score.segments for score in scores if score.segments is not None]),
        metrics=_metrics(scores),
        figures=() if first.attack.baseline else figures_of(cells, _chance(scores, guess), guess),
        ceilings=ceilings_of(scored),
        batch_identified=_by_batch(scored) if key.client.batch_size > 1 else None,
        non_adaptive=non_adaptive_of(scored),
    )
    return _enhanced(row, [cell.enhanced for cell in scored if cell.enhanced is not None])


def _by_frequency(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name, _ in Counter(names).most_common())


def _gain(scores: Iterable[Scores], error: float) -> Interval:
    return mean_interval(_known(score.psnr_gain_db for score in scores), 1 - error)


def _identification(scores: Iterable[Scores], error: float) -> Interval:
    """Share of clips that were picked out, of those that have others to be told from."""
    told_apart = [score.identified for score in scores if score.candidates is None or score.candidates > 1]
    return binomial_interval(sum(told_apart), len(told_apart), 1 - error)


def _linkage(scores: Iterable[Scores], error: float) -> Interval:
    asked = [score.linked for score in scores if score.linked is not None]
    return binomial_interval(sum(asked), len(asked), 1 - error)


def _enhanced(row: Row, enhancements: Sequence[EnhancementRecord]) -> Row:
    return replace(
        row,
        enhanced=len(enhancements),
        enhanced_change_db=mean_interval([each.psnr_change_db for each in enhancements]),
        enhanced_gain_db=mean_interval([each.after.psnr_gain_db for each in enhancements]),
        enhanced_identified=sum(each.after.identified for each in enhancements),
    )


def _judged(row: Row, cells: Sequence[Cell], seeds: int) -> Row:
    """Row with its verdict, judged together with those of other attacks and seeds.

    Linkage is a property of the update, which all attacks share.
    """
    scores, error = [c.scores for c in cells if c.ok and c.scores is not None], _ERROR / row.judged_at_once
    strict = replace(
        row,
        psnr_gain_db=_gain(scores, error),
        identification=_identification(scores, error),
        linkage=_linkage(scores, _ERROR / seeds),
    )
    verdict: Verdict = "baseline" if row.baseline and row.n else _verdict(strict)
    return replace(row, verdict=verdict)


def _by_batch(cells: Sequence[Cell]) -> float | None:
    """Mean number of clips of a batch that were identified."""
    counts: dict[tuple[int, ...], int] = {}
    for cell in cells:
        identified = cell.scores is not None and cell.scores.identified
        counts[cell.batch] = counts.get(cell.batch, 0) + bool(identified)
    return _mean(counts.values())


def _guess(scores: Sequence[Scores], batch: int) -> float | None:
    """Mean chance of a guess over the clips that there is something to tell from; twins are no candidates."""
    asked = [score.candidates for score in scores if score.candidates and score.candidates > 1]
    if not asked:
        return 1.0 if any(score.candidates for score in scores) else None
    return math.fsum(min(1.0, batch / count) for count in asked) / len(asked)


def _chance(scores: Sequence[Scores], guess: float | None) -> float | None:
    alone = [score.baseline_identified for score in scores if score.baseline_identified is not None]
    return None if guess is None else max(guess, sum(alone) / len(alone) if alone else 0.0)


def _segments(scores: Sequence[SegmentScores]) -> Segments | None:
    if not scores:
        return None
    return Segments(
        recovered=sum(score.recovered for score in scores),
        exact=sum(score.exact for score in scores),
        baseline_exact=sum(score.baseline_exact for score in scores),
        carrying=sum(score.carrying for score in scores),
        total=sum(score.segments for score in scores),
        cosine=_mean(score.cosine for score in scores),
        relative_error=_mean(score.relative_error for score in scores),
        in_order=_mean(score.in_order for score in scores),
    )


def _metrics(scores: Sequence[Scores]) -> dict[str, float]:
    names = dict.fromkeys(name for score in scores for name in score.metrics)
    means = {name: _mean(score.metrics.get(name) for score in scores) for name in names}
    return {name: mean for name, mean in means.items() if mean is not None}


def _verdict(row: Row) -> Verdict:
    gain, chance, segments = row.psnr_gain_db, row.chance or 1.0, row.segments
    if row.n == 0:
        return "no_result"
    guess = 1.0 if row.guess is None else row.guess
    # A segment that came back to the second digit is no luck, however few clips there are.
    exact = segments is not None and segments.exact > segments.baseline_exact
    if exact or _above(row.identification, chance) or _above(gain, 0.0):
        return "leaks"
    linkable = _above(row.linkage, guess)
    if gain.high is not None and gain.high < -NEGLIGIBLE_GAIN_DB:
        return "linkable_below_prior" if linkable else "below_prior"
    # Of features alone there is no picture: whether they point at their clip is all there is to say.
    no_picture = gain.n == 0 or (gain.high is not None and gain.high <= NEGLIGIBLE_GAIN_DB)
    if linkable:
        return "linkable_no_picture" if no_picture else "linkable_picture_unclear"
    if gain.n and gain.high is None:
        return "too_few_clips"
    return "nothing_found" if no_picture else "unclear"


def _above(interval: Interval, level: float) -> bool:
    return interval.low is not None and interval.low > level


def _with_ratios(rows: list[Row]) -> list[Row]:
    """Set the bytes of each row in relation to the undefended update of the same model."""
    plain = {row.model: row.bytes for row in rows if row.undefended and not row.baseline and row.bytes}
    return [
        replace(row, bytes_ratio=row.bytes / plain[row.model]) if row.bytes and plain.get(row.model) else row
        for row in rows
    ]


def _with_caveats(rows: list[Row]) -> list[Row]:
    """Add to each row what weakens it: an attack that fails without any defense proves nothing about one."""
    undefended = {_setting(row): row.verdict for row in rows if row.undefended and row.n}

    def caveats(row: Row) -> tuple[Caveat, ...]:
        found: list[Caveat] = []
        if not row.undefended and row.verdict not in ("leaks", "no_result"):
            if _setting(row) not in undefended:
                found.append("not_compared")
            elif undefended[_setting(row)] != "leaks":
                found.append("fails_undefended")
            if not row.adaptive:
                found.append("not_adaptive")
        if _behind_non_adaptive(row):
            found.append("behind_non_adaptive")
        found += ["flagged"] if row.flagged else []
        return (*found, "failed") if row.failed else tuple(found)

    return [row if row.baseline else replace(row, caveats=caveats(row)) for row in rows]


def _behind_non_adaptive(row: Row) -> bool:
    """Whether a row's attack gets less than it does without knowledge of the defense: that is not its best.

    Either its gain is behind beyond doubt, or the other one recognises clips, and it does not.
    """
    other = row.non_adaptive
    if other is None:
        return False
    behind = other.lead_db.high is not None and other.lead_db.high < 0
    chance = row.chance or 1.0
    return behind or (row.verdict != "leaks" and _above(other.identification, chance))


def _with_accuracy(rows: Sequence[Row], utility: Sequence[UtilityRecord]) -> list[Row]:
    """Add the accuracy under each defense, and its change against no defense, clip by clip."""
    by_key = {(each.pipeline, each.model, each.text): each for each in utility if each.ok}
    plain = {(each.pipeline, each.model): each.right for each in utility if each.ok and each.undefended}

    def completed(row: Row) -> Row:
        found = by_key.get((row.pipeline, row.model, row.key.defense))
        if found is None or row.baseline:
            return row
        accuracy = mean_interval([float(right) for right in found.right])
        without = plain.get((row.pipeline, row.model), ())
        row = replace(row, accuracy=accuracy, step_seconds=found.seconds)
        if row.undefended or len(without) != len(found.right):
            return row
        pairs = zip(found.right, without, strict=True)
        change = mean_interval([float(here) - float(there) for here, there in pairs])
        return replace(row, accuracy_change=change)

    return [completed(row) for row in rows]


def _setting(row: Row) -> tuple[object, ...]:
    """Fields shared by rows that differ in the defense alone."""
    return (*row.key[:3], *row.key[5:])


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return math.fsum(known) / len(known) if known else None


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
