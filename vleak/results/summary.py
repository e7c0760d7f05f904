"""From the cells of a run to one row an attack and defense, and to sentences that say what still leaks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from vleak.attacks import BASELINES
from vleak.errors import InputError
from vleak.results.statistics import Interval, binomial_interval, mean_interval
from vleak.results.store import SCHEMA_VERSION

NO_INTERVAL = mean_interval([])
NEGLIGIBLE_GAIN_DB = 0.5
"""A gain whose whole interval lies below this is called nothing: no eye sees half a decibel."""
NOT_COMPARED = "not run without defense, so its failure may be the attack's"
FAILS_EVEN_UNDEFENDED = "this attack fails even undefended"
NOT_ADAPTIVE = "the attack does not know the defense"

Verdict = Literal[
    "leaks",
    "linkable, no picture",
    "linkable, picture unclear",
    "nothing found",
    "unclear",
    "too few clips to say",
    "baseline",
    "no result",
]
Cell = dict[str, Any]

_SEVERITY: tuple[Verdict, ...] = (
    "leaks",
    "linkable, picture unclear",
    "linkable, no picture",
    "unclear",
    "too few clips to say",
    "no result",
    "nothing found",
    "baseline",
)
_QUIET: tuple[Verdict, ...] = ("nothing found", "linkable, no picture", "linkable, picture unclear")
"""Verdicts that claim a defense hides something: the headline says what weakens them."""
_NAMED = 6  # labels spelled out in one sentence before "and n more"


@dataclass(frozen=True)
class Segments:
    """What came back of feature matrices, over all clips of a row.

    Attributes:
        recovered: segments with a cosine above 0.99 to what came back, of those that carry gradient.
        exact: segments that came back with a relative error below 0.01; guessed: the same of the best guess
            without the update, which is no leak.
        carrying: segments that the loss lets into the gradient; total: all of them.
        cosine, relative_error: means over clips of their medians.
        in_order: mean share of segments in their own place; None where the attack claims no order.
    """

    recovered: int
    exact: int
    guessed: int
    carrying: int
    total: int
    cosine: float | None
    relative_error: float | None
    in_order: float | None


@dataclass(frozen=True)
class Row:
    """What one attack got through one defense, over all clips of a run.

    Attributes:
        pipeline: "raw" or "feature".
        model: name of the model.
        training_state: "untrained", "early", "late".
        defense: label such as "dp σ=0.1"; "none" without one. Where a run holds several defenses of one
            label, with the settings that tell them apart: "qsgd 4 bit, bucket=64".
        attack: name of the attack.
        null: whether the attack never sees the update.
        adaptive: whether the attack knew the defense in every scored cell.
        knowledge: what the attacker was granted, in words.
        n: clips that were scored.
        failed: clips that were not; they are in no average.
        failures: distinct reasons for that.
        flagged: scored clips whose attack raised a health flag.
        flags: the distinct flags.
        epsilon: the privacy loss that the defense proves, None without one; delta belongs to it.
        delta: see epsilon.
        psnr_db: mean PSNR.
        psnr_gain_db: gain over the best null attacker of each clip.
        ssim: mean structural similarity.
        ssim_gain: its gain over the best null attacker.
        motion_psnr_db: mean PSNR where something moves, None where nothing does.
        identified: clips that the answer picked out among the candidates.
        identification: share of those with its exact interval.
        linked: clips for which an attacker who holds all candidates tells from the update alone which it was.
        linkage: share of those with its exact interval.
        candidates: how many clips it had to be told from.
        chance: what recognition has to beat: 1 / candidates; with reference frames the share of clips at
            which these alone point, where that is more.
        pooled: that the update does not depend on the order of frames or segments.
        segments: of a feature pipeline, how many segments came back of those that carry gradient; else None.
        enhanced_change_db: mean change of PSNR by enhancement, with its interval.
        enhanced_gain_db: gain over the null attackers, theirs enhanced alike.
        enhanced_identified: clips recognised in the enhanced answer; enhanced: how many there are.
        bound: share that the certificates allow, a mean over the scored clips; None without a certificate.
        bound_broken: the interval of a measured share lies above the bound: certificate or code is wrong.
        labels_correct: clips whose label was right.
        labels: clips for which a label was guessed or granted.
        bytes: mean bytes of an update on the wire.
        bytes_ratio: those over the bytes without defense.
        cosine: mean cosine of the update to the undefended one.
        seconds: mean time of the attack a clip.
        verdict: the row in plain words.
        caveats: what weakens the verdict.
        key: what `row_key` gives for every cell of this row.
    """

    pipeline: str
    model: str
    training_state: str
    defense: str
    attack: str
    null: bool
    adaptive: bool
    knowledge: str
    n: int
    failed: int
    failures: tuple[str, ...]
    flagged: int
    flags: tuple[str, ...]
    epsilon: float | None
    delta: float | None
    psnr_db: float | None
    psnr_gain_db: Interval
    ssim: float | None
    ssim_gain: Interval
    motion_psnr_db: float | None
    identified: int
    identification: Interval
    linked: int
    linkage: Interval
    candidates: int | None
    chance: float | None
    bound: float | None
    bound_broken: bool
    labels_correct: int
    labels: int
    bytes: float | None
    bytes_ratio: float | None
    cosine: float | None
    seconds: float | None
    verdict: Verdict
    caveats: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    references: int = 0
    pooled: bool = False
    segments: Segments | None = None
    enhanced_change_db: Interval = NO_INTERVAL
    enhanced_gain_db: Interval = NO_INTERVAL
    enhanced_identified: int = 0
    enhanced: int = 0


def summarise(results: dict[str, Any]) -> list[Row]:
    """Return one row for each pipeline, model, training state, defense, attack and knowledge of a run.

    Defenses are told apart by name and settings, not by their labels.

    Args:
        results: the content of ``results.json``, schema version 1. A clip that occurs twice in a group
            counts once, with its last record.

    Returns:
        Rows by model in the order of the run; within a model the null attackers, then no defense, then the
        defenses in the order they were run in.

    Raises:
        InputError: another schema version, or no list of cells.
    """
    cells = results.get("cells")
    if results.get("schema_version") != SCHEMA_VERSION or not isinstance(cells, list):
        raise InputError(
            f"results of schema version {results.get('schema_version')!r}; "
            f"this vleak reads version {SCHEMA_VERSION}, with a list of cells"
        )
    nulls, groups = null_attacks(cells), dict[tuple[str, ...], dict[str, Cell]]()
    for cell in cells:
        *key, clip = _key(cell)
        groups.setdefault(tuple(key), {})[clip] = cell
    labels = _labels(cells)
    rows = [_row(list(group.values()), nulls, labels) for group in _ordered(groups, nulls)]
    return _with_caveats(_with_ratios(rows))


def headline(rows: Sequence[Row], results: dict[str, Any] | None = None) -> list[str]:
    """Return a few plain sentences that say what still leaks, what does not, and what each defense costs.

    Every defense is judged by the attack and model that got most out of it; they are named where they are not
    those of the first sentence.

    Args:
        rows: what `summarise` made of a run.
        results: that run, for a first sentence where it is not finished.
    """
    worst = _worst_by_defense(row for row in rows if not row.null)
    lines = unfinished(results or {})
    lines += [
        _broken_sentence(row) for row in _worst_by_defense(row for row in rows if row.bound_broken).values()
    ]
    usual = _where(worst["none"], rows) if "none" in worst else ""
    if "none" in worst:
        lines.append(_undefended_sentence(worst["none"], usual))
    defended = [row for label, row in worst.items() if label != "none"]
    for verdict, opening in _OPENINGS.items():
        chosen = [row for row in defended if row.verdict == verdict]
        if chosen:
            described = [
                _describe(row, "" if (where := _where(row, rows)) == usual else where) for row in chosen
            ]
            lines.append(f"{opening}: {_listed(described)}.")
    lines.extend(_cost_sentence(defended))
    return lines if worst else [*lines, "No attack was scored, so this run says nothing about leakage."]


def unfinished(results: dict[str, Any]) -> list[str]:
    """Return one sentence where a run was stopped before its end, none where it is whole.

    Args:
        results: content of results.json; ``planned_cells`` is None where only the journal is left, which
            does not know it.
    """
    if "planned_cells" not in results:
        return []
    done, planned = len(results["cells"]), results["planned_cells"]
    if planned is None:
        return [f"{done} cell{plural(done)} finished, the run did not; rows may be missing."]
    return [f"{done} of {planned} cells finished; rows may be missing."] if done < planned else []


def null_attacks(cells: Iterable[Cell]) -> frozenset[str]:
    """Return the names of the attackers that never see the update: the known ones and all in the scores."""
    named = (name for cell in cells for name in (cell.get("scores") or {}).get("null") or {})
    return frozenset(BASELINES) | frozenset(named)


def row_key(cell: Cell) -> tuple[str, ...]:
    """Return what places a cell in its row.

    That is pipeline, model, training state, label of the defense, attack, knowledge, and the defense's name
    and settings as JSON: a label leaves settings out, so two defenses may share one. Whether the attack was
    adaptive is not part of it: a cell that failed before its attack ran cannot know.
    """
    attack = cell["attack"]
    return (
        str(cell.get("pipeline", "raw")),
        str(cell["model"]),
        str(cell["training_state"]),
        str(cell["defense"]["label"]),
        str(attack["name"]),
        describe_knowledge(cell.get("knowledge") or {}),
        json.dumps(_identity(cell), sort_keys=True),
    )


def describe_knowledge(knowledge: dict[str, Any]) -> str:
    """Return in words what the threat model grants, such as ``"labels inferred, batch of 4"``."""
    frames = knowledge.get("reference_frames") or 0
    parts = [f"labels {knowledge.get('labels', 'inferred')}"]
    if frames:
        parts.append(f"{frames} reference frame{'s' if frames != 1 else ''}")
    if (batch := knowledge.get("batch_size") or 1) != 1:
        parts.append(f"batch of {batch}")
    return ", ".join(parts)


def failure(cell: Cell) -> str:
    """Return why a cell failed, without the word "failed" before it."""
    return str(cell.get("status") or "no status").removeprefix("failed: ")


def finite(value: object) -> float | None:
    """Return a number as float, and None for null, NaN, infinities and anything that is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _key(cell: Cell) -> tuple[str, ...]:
    try:
        return (*(str(part) for part in row_key(cell)), str(cell["clip"]))
    except (KeyError, TypeError, AttributeError) as error:
        name = cell.get("id") if isinstance(cell, dict) else cell
        raise InputError(f"cell {name!r} lacks {error}; expected schema version {SCHEMA_VERSION}") from error


def _identity(cell: Cell) -> dict[str, Any]:
    defense = cell["defense"]
    return {"defense": defense.get("name"), **(defense.get("settings") or {})}


def _labels(cells: Sequence[Cell]) -> dict[tuple[str, str], str]:
    """Return labels that are one defense's alone, by label and identity as in `row_key`."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in cells:
        key = row_key(cell)
        found.setdefault(key[3], {})[key[6]] = _identity(cell)
    labels = {}
    for label, variants in found.items():
        names = dict.fromkeys(name for settings in variants.values() for name in settings)
        told = [n for n in names if len({json.dumps(v.get(n)) for v in variants.values()}) > 1]
        for identity, settings in variants.items():
            parts = [f"{n}={str(settings[n]).replace('e-0', 'e-')}" for n in told if n in settings]
            labels[label, identity] = ", ".join([label, *parts])
    return labels


def _ordered(groups: dict[tuple[str, ...], dict[str, Cell]], nulls: frozenset[str]) -> list[dict[str, Cell]]:
    """Sort by first appearance, null attackers and the undefended first within a model."""
    models = {key[:3]: place for place, key in reversed(list(enumerate(groups)))}
    defenses = {(key[3], key[6]): place for place, key in reversed(list(enumerate(groups)))}

    def place(key: tuple[str, ...]) -> tuple[int, bool, int]:
        return models[key[:3]], key[4] not in nulls, -1 if key[3] == "none" else defenses[key[3], key[6]]

    return [groups[key] for key in sorted(groups, key=place)]


def _row(cells: list[Cell], nulls: frozenset[str], labels: dict[tuple[str, str], str]) -> Row:
    ok = [cell for cell in cells if cell.get("status") == "ok" and cell.get("scores")]
    failed = [cell for cell in cells if not (cell.get("status") == "ok" and cell.get("scores"))]
    key = row_key(cells[0])
    pipeline, model, state, label, attack, knowledge, identity = key
    scores = [cell["scores"] for cell in ok]
    identified = sum(bool(score.get("identified")) for score in scores)
    identification = binomial_interval(identified, len(scores))
    asked = [bool(score["linked"]) for score in scores if score.get("linked") is not None]
    linkage = binomial_interval(sum(asked), len(asked))
    gain = mean_interval(_numbers(scores, "psnr_gain_db"))
    candidates = max((int(score["candidates"]) for score in scores if score.get("candidates")), default=None)
    chance = _chance(scores, candidates)
    bound = _mean([b for b in map(_bound, ok or failed) if b is not None])
    guesses = [score["label_correct"] for score in scores if score.get("label_correct") is not None]
    flagged = [cell for cell in ok if cell.get("flags")]
    privacy = cells[0]["defense"]
    return Row(
        pipeline=pipeline,
        model=model,
        training_state=state,
        defense=labels[label, identity],
        attack=attack,
        null=attack in nulls,
        adaptive=all(cell["attack"].get("adaptive") for cell in ok),
        knowledge=knowledge,
        n=len(ok),
        failed=len(failed),
        failures=_distinct(failure(cell) for cell in failed),
        flagged=len(flagged),
        flags=_distinct(str(flag) for cell in flagged for flag in cell["flags"]),
        epsilon=finite(privacy.get("epsilon")),
        delta=finite(privacy.get("delta")),
        psnr_db=_mean(_numbers(scores, "psnr_db")),
        psnr_gain_db=gain,
        ssim=_mean(_numbers(scores, "ssim")),
        ssim_gain=mean_interval(_numbers(scores, "ssim_gain")),
        motion_psnr_db=_mean(_numbers(scores, "motion_psnr_db")),
        identified=identified,
        identification=identification,
        linked=sum(asked),
        linkage=linkage,
        candidates=candidates,
        chance=chance,
        bound=bound,
        bound_broken=bound is not None and max(identification.low or 0.0, linkage.low or 0.0) > bound,
        labels_correct=sum(map(bool, guesses)),
        labels=len(guesses),
        bytes=_mean(_numbers([cell.get("update") or {} for cell in ok], "bytes")),
        bytes_ratio=None,
        cosine=_mean(_numbers([cell.get("update") or {} for cell in ok], "cosine_to_undefended")),
        seconds=_mean(_numbers([cell["attack"] for cell in ok], "seconds")),
        verdict="baseline"
        if attack in nulls and ok
        else _verdict(gain, identification, linkage, chance or 1.0, candidates, _segments(scores)),
        key=key,
        references=int((cells[0].get("knowledge") or {}).get("reference_frames") or 0),
        pooled=any(cell.get("order_identifiable") is False for cell in cells),
        segments=_segments(scores),
        **_enhancement(ok),
    )


def _chance(scores: Sequence[dict[str, Any]], candidates: int | None) -> float | None:
    if not candidates:
        return None
    alone = [bool(s["null_identified"]) for s in scores if s.get("null_identified") is not None]
    return max(1 / candidates, sum(alone) / len(alone) if alone else 0.0)


def _segments(scores: Sequence[dict[str, Any]]) -> Segments | None:
    found = [score["segments"] for score in scores if score.get("segments")]
    if not found:
        return None
    places = _numbers(found, "in_order")
    return Segments(
        recovered=sum(int(each["recovered"]) for each in found),
        exact=sum(int(each["exact"]) for each in found),
        guessed=sum(int(each["null_exact"]) for each in found),
        carrying=sum(int(each["carrying"]) for each in found),
        total=sum(int(each["segments"]) for each in found),
        cosine=_mean(_numbers(found, "cosine")),
        relative_error=_mean(_numbers(found, "relative_error")),
        in_order=_mean(places),
    )


def _enhancement(cells: Sequence[Cell]) -> dict[str, Any]:
    made = [cell["enhanced"] for cell in cells if cell.get("enhanced")]
    after = [each["after"] for each in made]
    return {
        "enhanced_change_db": mean_interval(_numbers(made, "psnr_change_db")),
        "enhanced_gain_db": mean_interval(_numbers(after, "psnr_gain_db")),
        "enhanced_identified": sum(bool(each.get("identified")) for each in after),
        "enhanced": len(made),
    }


def _verdict(
    gain: Interval,
    identification: Interval,
    linkage: Interval,
    chance: float,
    candidates: int | None,
    segments: Segments | None,
) -> Verdict:
    if identification.n == 0:
        return "no result"
    guess = 1 / candidates if candidates else 1.0
    # A segment that came back to the second digit is no luck, however few clips there are.
    exact = segments is not None and segments.exact > segments.guessed
    if exact or _above(identification, chance) or _above(gain, 0.0):
        return "leaks"
    # Of features alone there is no picture: whether they point at their clip is all there is to say.
    small = gain.n == 0 or (gain.high is not None and gain.high <= NEGLIGIBLE_GAIN_DB)
    no_picture = small and not _above(identification, chance)
    if _above(linkage, guess):
        return "linkable, no picture" if no_picture else "linkable, picture unclear"
    if gain.n and gain.high is None:
        return "too few clips to say"
    return "nothing found" if no_picture else "unclear"


def _above(interval: Interval, level: float) -> bool:
    return interval.low is not None and interval.low > level


def _with_ratios(rows: list[Row]) -> list[Row]:
    """Set the bytes of each row in relation to the undefended update of the same model."""
    plain = {row.model: row.bytes for row in rows if row.defense == "none" and not row.null and row.bytes}
    return [
        replace(row, bytes_ratio=row.bytes / plain[row.model]) if row.bytes and plain.get(row.model) else row
        for row in rows
    ]


def _with_caveats(rows: list[Row]) -> list[Row]:
    """Say of each row what weakens it: an attack that fails without any defense proves nothing about one."""
    working = {_setting(row) for row in rows if row.defense == "none" and row.verdict == "leaks"}
    undefended = {_setting(row) for row in rows if row.defense == "none" and row.n}

    def caveats(row: Row) -> tuple[str, ...]:
        found = []
        if row.defense != "none" and row.verdict not in ("leaks", "no result"):
            if _setting(row) not in undefended:
                found.append(NOT_COMPARED)
            elif _setting(row) not in working:
                found.append(FAILS_EVEN_UNDEFENDED)
            if not row.adaptive:
                found.append(NOT_ADAPTIVE)
        if row.flagged:
            found.append(f"{row.flagged} of {row.n} flagged")
        if row.failed:
            found.append(f"{row.failed} failed")
        return tuple(found)

    return [row if row.null else replace(row, caveats=caveats(row)) for row in rows]


def _setting(row: Row) -> tuple[str, ...]:
    return row.pipeline, row.model, row.training_state, row.attack, row.knowledge


_OPENINGS: dict[Verdict, str] = {
    "leaks": "Still leaking",
    "linkable, picture unclear": "Linkable, picture unclear",
    "linkable, no picture": "Linkable, no picture (who holds the candidate clips can tell which it was)",
    "unclear": "Unclear",
    "too few clips to say": "Too few clips to say",
    "no result": "No result, because every cell failed",
    "nothing found": "Nothing found",
}


def leak_order(row: Row) -> tuple[int, float, float]:
    """Return a sort key that puts the row with most leakage first."""
    share, gain = row.identification.mean, row.psnr_gain_db.mean
    return (
        _SEVERITY.index(row.verdict),
        # What reference frames give by themselves is not the update's.
        -(share - (row.chance or 0.0) if share is not None else -1.0),
        -(gain if gain is not None else -math.inf),
    )


def _worst_by_defense(rows: Iterable[Row]) -> dict[str, Row]:
    worst: dict[str, Row] = {}
    for row in rows:
        if row.defense not in worst or leak_order(row) < leak_order(worst[row.defense]):
            worst[row.defense] = row
    return worst


def _undefended_sentence(row: Row, where: str) -> str:
    if row.verdict == "no result":
        return "Without defense no attack gave a result, so nothing can be said of any defense."
    clips = "clip is" if row.n == 1 else "clips are"
    text = f"Without defense {row.identified} of {row.n} {clips} recognised{_gain(row)}{where}"
    if row.verdict == "leaks":
        return f"{text}."
    return f"{text}: {row.verdict}, so the attack's failure under a defense would prove nothing."


def _where(row: Row, rows: Sequence[Row]) -> str:
    """Name the attack and model only where the run holds more than one."""
    attacks = {other.attack for other in rows if not other.null}
    models = {(other.model, other.training_state) for other in rows}
    text = f" by {row.attack}" if len(attacks) > 1 else ""
    if row.references:
        text += f", given {row.references} frame{plural(row.references)} of the scene"
    return text + (f" on {row.model}, {row.training_state}" if len(models) > 1 else "")


def _describe(row: Row, where: str) -> str:
    parts = [f"ε {epsilon_text(row.epsilon)}"] if row.epsilon is not None else []
    if row.n:
        parts.append(_counts(row, where))
        if row.psnr_gain_db.mean is not None:
            parts.append(f"{_decibel(row.psnr_gain_db.mean)}{_at_most_decibel(row)}")
    if row.bound is not None:
        parts.append(_guarantee(row.bound))
    if row.verdict in _QUIET:
        parts.extend(c for c in row.caveats if c in (NOT_COMPARED, FAILS_EVEN_UNDEFENDED, NOT_ADAPTIVE))
    return f"{row.defense} ({'; '.join(parts)})" if parts else row.defense


def _counts(row: Row, where: str) -> str:
    """Say how many were recognised and linked; what is not told from chance, with its upper end."""
    chance = row.chance or 1.0
    recognised = f"{row.identified} of {row.n} recognised{where}"
    texts = [recognised + _at_most(row, row.identification, chance)]
    if row.linkage.n:
        guess = 1 / row.candidates if row.candidates else 1.0
        texts.append(f"{row.linked} linked{_at_most(row, row.linkage, guess)}")
    return ", ".join(texts)


def _at_most(row: Row, share: Interval, chance: float) -> str:
    if row.verdict not in _QUIET or share.high is None or _above(share, chance):
        return ""
    return f" (at most {percent(share.high)})"


def _at_most_decibel(row: Row) -> str:
    high = row.psnr_gain_db.high
    return f" (at most {_decibel(high)})" if row.verdict in _QUIET and high is not None else ""


def _decibel(gain: float) -> str:
    return f"{round(gain, 1) + 0.0:+.1f} dB".replace("-", "−")  # + 0.0 makes 0 of -0


def _guarantee(bound: float) -> str:
    if bound >= 0.995:
        return "the guarantee rules nothing out"
    return f"the guarantee allows at most {percent(bound)} recognised"


def _gain(row: Row) -> str:
    gain = row.psnr_gain_db.mean
    if gain is None:
        return ""
    if round(gain, 1) < 0:
        return f" ({-gain:.1f} dB below the prior)"
    return f" ({_decibel(gain)} over the prior)"


def _broken_sentence(row: Row) -> str:
    linked = (row.linkage.low or 0.0) > (row.identification.low or 0.0)
    interval = row.linkage if linked else row.identification
    what = f"linked {row.linked}" if linked else f"recognised {row.identified}"
    return (
        f"BOUND BROKEN: {row.attack} {what} of {row.n} clip{plural(row.n)} under {row.defense} on "
        f"{row.model} ({row.training_state}), at least {percent(interval.low or 0.0)}, where the certificate "
        f"allows {percent(row.bound or 0.0)}; the certificate or the defense's code is wrong."
    )


def _cost_sentence(rows: list[Row]) -> list[str]:
    known = [row for row in rows if row.bytes_ratio is not None]
    other = [f"{row.defense} {ratio(row.bytes_ratio)}" for row in known if ratio(row.bytes_ratio) != "×1"]
    if not known:
        return []
    if not other:
        return ["Bytes sent: as many as without defense."]
    same = "; the others as many" if len(other) < len(known) else ""
    return [f"Bytes sent, against no defense: {_listed(other)}{same}."]


def _listed(items: list[str]) -> str:
    more = len(items) - _NAMED
    return "; ".join(items[:_NAMED]) + (f"; and {more} more" if more > 0 else "")


def plural(count: object) -> str:
    """Return what makes a noun agree with a count: "" for 1, "s" for all else."""
    return "" if count == 1 else "s"


def epsilon_text(value: float) -> str:
    """Return a privacy loss for people: three digits below a thousand, above as ``"5.0e5"``."""
    if float(f"{value:.3g}") < 1000:
        return number(value)
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def percent(share: float) -> str:
    """Return a share in [0, 1] as whole per cent: ``"35 %"``."""
    return f"{100 * share:.0f} %"


def ratio(value: float | None) -> str:
    """Return a ratio of bytes for people, to two digits: ``"×0.031"``, ``"×1"``."""
    return "–" if value is None else f"×{number(float(f'{value:.2g}'))}"


def number(value: float | None) -> str:
    """Return a number to three digits, without an exponent below a million: ``"1230"``, ``"0.031"``."""
    if value is None:
        return "–"
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e")
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _numbers(records: Iterable[dict[str, Any]], name: str) -> list[float]:
    return [value for record in records if (value := finite(record.get(name))) is not None]


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _bound(cell: Cell) -> float | None:
    certificate = cell.get("certificate") or {}
    return finite(certificate.get("bound")) if certificate.get("kind") == "identification" else None


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
