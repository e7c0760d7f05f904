"""Generated part of docs/published.md: the table of published defenses, from finished runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from marked import between_marks, kept_outcomes, rewrite

import vleak
from vleak.errors import InputError
from vleak.files import write_atomic
from vleak.report.numbers import epsilon_text, gain_text, percent
from vleak.results import Row
from vleak.results.statistics import Interval

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
HEAD = (
    "as published", "ε of the run: claimed", "by what is done", "ε of the update", "ε of one step: claimed",
    "at least", "recognised", "linked", "chance", "gain in dB", "failed checks",
)  # fmt: skip


@dataclass(frozen=True)
class Leak:
    """What the strongest attack got out of the updates of all clips.

    Attributes:
        gain: mean gain in dB, and its interval; None where there are too few clips.
        identified, scored: recognised clips, of so many. linked, asked: linked clips, of so many.
    """

    gain: tuple[float | None, float | None, float | None]
    identified: int
    scored: int
    linked: int
    asked: int


@dataclass(frozen=True)
class Audit:
    """Audit of one release.

    Attributes:
        epsilon: its lower bound. method: of the bound. draws: messages with and without each canary.
        refuted: whether the claim is.
    """

    epsilon: float
    method: str
    draws: int
    refuted: bool


@dataclass(frozen=True)
class Outcome:
    """What was measured of a recipe, as it is kept beside the page.

    Attributes:
        measured: day, ISO. software: vleak, torch and Python, with their versions. data: digest of the clips.
        clips: attacked.
        claimed, recomputed: epsilon of a training run as published, and by what is done.
        step, sent: epsilon that the defense claims of one gradient, and of the update that was attacked.
        audit: of one gradient; None where nothing is claimed.
        broken: names of the checks that failed.
        defended, undefended: what leaks with the defense, and without it in the same run.
        chance: share of clips that guessing gets right.
    """

    measured: str
    software: str
    data: str
    clips: int
    claimed: float | None
    recomputed: float | None
    step: float | None
    sent: float | None
    audit: Audit | None
    broken: tuple[str, ...]
    defended: Leak
    undefended: Leak
    chance: float | None

    @classmethod
    def of(
        cls,
        run: vleak.Run,
        recipe: Any,
        broken: tuple[str, ...],
        epsilons: tuple[float | None, float | None],
        audit: Audit | None,
        today: date,
    ) -> Outcome:
        """Return what is kept of a run with a recipe's defense.

        Raises:
            InputError: a clip of the run has no result.
        """
        rows = [row for row in run.rows if not row.baseline]
        for cell in run.cells:
            if not cell.ok:
                raise InputError(f"cell {cell.id}: {cell.status}; no row of the table without it")
        bare = [row for row in rows if row.defense == "none"]
        guarded = [row for row in rows if row.defense != "none"] or bare
        environment = run.record.environment
        return cls(
            measured=today.isoformat(),
            software=f"vleak {environment.vleak}, torch {environment.torch}, Python {environment.python}",
            data=run.record.data.sha256[:12], clips=run.record.data.clips,
            claimed=recipe.claimed, recomputed=recipe.recomputed, step=epsilons[0], sent=epsilons[1],
            audit=audit, broken=broken, defended=_leak(guarded), undefended=_leak(bare),
            chance=next((row.chance for row in guarded if row.chance is not None), None),
        )  # fmt: skip


def _leak(rows: Sequence[Row]) -> Leak:
    """Return of each score that of the attack which got most."""
    best = max(rows, key=lambda row: -math.inf if row.psnr_gain_db.mean is None else row.psnr_gain_db.mean)
    named, linked = max(rows, key=lambda row: row.identified), max(rows, key=lambda row: row.linked)
    gain = best.psnr_gain_db
    return Leak((gain.mean, gain.low, gain.high), named.identified, named.n, linked.linked, linked.linkage.n)


Results = Mapping[str, Outcome]


def read_outcomes(path: Path) -> dict[str, Outcome]:
    """Return the kept outcomes by recipe; none where there is no file yet.

    Raises:
        InputError: the file was not written by `write_outcomes`.
    """
    return kept_outcomes(path, lambda kept: {name: _outcome(each) for name, each in kept.items()})


def _outcome(kept: dict[str, Any]) -> Outcome:
    leaks = {side: Leak(**kept.pop(side)) for side in ("defended", "undefended")}
    leaks = {side: Leak(tuple(leak.gain), *list(vars(leak).values())[1:]) for side, leak in leaks.items()}
    audit = kept.pop("audit")
    return Outcome(**kept | {"broken": tuple(kept["broken"])}, **leaks, audit=audit and Audit(**audit))


def write_outcomes(path: Path, results: Results) -> None:
    """Keep outcomes, by the names of their recipes."""
    write_atomic(path, json.dumps({name: asdict(each) for name, each in results.items()}, indent=1) + "\n")


def write_page(path: Path, results: Results) -> None:
    """Write the table into a page.

    Raises:
        InputError: the page has no marks, or cannot be read.
    """
    rewrite(path, lambda text: between_marks(text, BEGIN, END, table(results)))


def table(results: Results) -> str:
    """Return what stands between the marks."""
    lines = [HEAD, ["---"] * len(HEAD), *(_cells(name, each) for name, each in results.items())]
    return "\n".join(["| " + " | ".join(cells) + " |" for cells in lines] + ["", _provenance(results)])


def _cells(name: str, each: Outcome) -> list[str]:
    leak, bare = each.defended, each.undefended
    return [
        name,
        *(_epsilon(value) for value in (each.claimed, each.recomputed, each.sent, each.step)),
        "–" if each.audit is None else _least(each.audit),
        _both(f"{leak.identified}/{leak.scored}", f"{bare.identified}/{bare.scored}", leak == bare),
        _both(f"{leak.linked}/{leak.asked}", f"{bare.linked}/{bare.asked}", leak == bare),
        "–" if each.chance is None else percent(each.chance),
        _both(_gain(leak), _gain(bare), leak == bare),
        ", ".join(each.broken) or "none",
    ]


def _least(audit: Audit) -> str:
    return epsilon_text(audit.epsilon) + (" (refuted)" if audit.refuted else "")


def _epsilon(value: float | None) -> str:
    return "–" if value is None else epsilon_text(value)


def _gain(leak: Leak) -> str:
    rounded = (None if value is None else round(value, 1) + 0.0 for value in leak.gain)  # + 0.0: no -0
    return gain_text(Interval(*rounded, n=leak.scored))


def _both(defended: str, undefended: str, alike: bool) -> str:
    return defended if alike else f"{defended} (undefended {undefended})"


def _provenance(results: Results) -> str:
    kept = list(results.values())
    software = "; ".join(sorted({each.software for each in kept}))
    days, digests = sorted({each.measured for each in kept}), sorted({each.data for each in kept})
    measured = days[0] if len(days) == 1 else f"from {days[0]} to {days[-1]}"
    draws = sorted({each.audit.draws for each in kept if each.audit is not None})
    clips = max(each.clips for each in kept)
    return (
        "Written by `python benchmarks/published.py --data DIR --out FOLDER`; "
        f"measured {measured}: {software}, on a CPU; {clips} clips (SHA-256 {', '.join(digests)}); "
        f"audits of {', '.join(map(str, draws))} messages with and without canaries, "
        "at 95 %, delta 1e-5."
    )
