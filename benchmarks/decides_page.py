"""Generated part of docs/what_decides.md: tables and sentences from finished runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from decides_plan import CLIPS, LOCAL_RATE, Setting, Work, matrix, peers, works
from jacobian import LEVELS, Spectrum
from marked import between_marks, kept_outcomes, rewrite

import vleak
from vleak.files import write_atomic
from vleak.report.numbers import gain_text, percent
from vleak.report.words import verdict_text
from vleak.results.statistics import Interval, mean_interval

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
_CANNOT_TELL = ("unclear", "too_few_clips", "nothing_found", "below_prior", "no_result")


@dataclass(frozen=True)
class Outcome:
    """What one run measured, as it is kept beside the page: runs take hours, and need not be of one day.

    Attributes:
        measured: day of the measurement, ISO.
        software: vleak, torch and Python, with their versions.
        data: digest of the clips. frames: of each.
        gain: mean gain in dB, and its interval; None where there are too few clips.
        psnr_db: mean; None where no clip was scored.
        identified, scored: recognised clips, of so many.
        linked, asked: linked clips, of so many.
        chance: share that is recognised by chance; None where it was not asked.
        verdict: key of the row's verdict. verdict_text: in words.
        methods: what the attack chose.
        seconds_a_clip: CPU seconds of the whole run, by clip; None where it was not kept.
        psnr_by_clip: dB by name of the clip.
        spectrum: of the Jacobian of the updates; None where it was not computed.
    """

    measured: str
    software: str
    data: str
    frames: int
    gain: tuple[float | None, float | None, float | None]
    psnr_db: float | None
    identified: int
    scored: int
    linked: int
    asked: int
    chance: float | None
    verdict: str
    verdict_text: str
    methods: tuple[str, ...]
    seconds_a_clip: float | None
    psnr_by_clip: dict[str, float]
    spectrum: Spectrum | None = None


def outcome(run: vleak.Run, cpu_seconds: float, spectrum: Spectrum | None, today: date) -> Outcome:
    """Return what is kept of a run with one attack that is no baseline."""
    (row,) = (row for row in run.rows if not row.baseline)
    attacked = [cell for cell in run.cells if cell.ok and not cell.attack.baseline]
    environment, gain = run.record.environment, row.psnr_gain_db
    return Outcome(
        measured=today.isoformat(),
        software=f"vleak {environment.vleak}, torch {environment.torch}, Python {environment.python}",
        data=run.record.data.sha256[:12], frames=run.record.settings.frames,
        gain=(gain.mean, gain.low, gain.high), psnr_db=row.psnr_db,
        identified=row.identified, scored=row.n, linked=row.linked, asked=row.linkage.n, chance=row.chance,
        verdict=row.verdict, verdict_text=verdict_text(row), methods=row.methods or (row.attack,),
        seconds_a_clip=cpu_seconds / max(len(attacked), 1),
        psnr_by_clip={
            cell.clip: cell.scores.psnr_db
            for cell in attacked if cell.scores is not None and cell.scores.psnr_db is not None
        },
        spectrum=spectrum,
    )  # fmt: skip


Results = Mapping[Work, Outcome]


def read_outcomes(path: Path) -> dict[Work, Outcome]:
    """Return the kept outcomes of the planned runs; none where there is no file yet.

    Raises:
        InputError: the file was not written by `write_outcomes`.
    """
    return kept_outcomes(
        path, lambda kept: {work: _outcome(kept[work.folder]) for work in works() if work.folder in kept}
    )


def _outcome(kept: dict[str, Any]) -> Outcome:
    seen = kept.pop("spectrum")
    spectrum = seen and Spectrum(seen["size"], seen["effective_rank"], tuple(seen["above"]))
    lists = {name: tuple(kept.pop(name)) for name in ("gain", "methods")}
    return Outcome(**kept, **lists, spectrum=spectrum)


def write_outcomes(path: Path, results: Results) -> None:
    """Keep outcomes, by the names of their runs."""
    content = {work.folder: asdict(each) for work, each in results.items()}
    write_atomic(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def page(text: str, results: Results, today: date) -> str:
    """Return a page with what is between its marks written anew.

    Raises:
        InputError: the page has no marks.
    """
    return between_marks(text, BEGIN, END, tables(results, today))


def write_page(path: Path, results: Results) -> None:
    """Write the tables into a page.

    Raises:
        InputError: the page has no marks, or cannot be read.
    """
    rewrite(path, lambda text: page(text, results, date.today()))


def tables(results: Results, today: date) -> str:
    """Return what stands between the marks."""
    parts = [_provenance(results, today), _in_short(results)]
    for varied, settings in matrix().items():
        known = [setting for setting in settings if Work(setting=setting) in results]
        if known:
            parts += [f"## {varied}", _setting_table(known, results)]
    if any(theirs in results for _, compared in peers() for theirs in compared):
        parts += ["## Beside the published settings of a peer", _peer_table(results)]
    return "\n\n".join(parts)


def _provenance(results: Results, today: date) -> str:
    kept = list(results.values())
    software = "; ".join(sorted({each.software for each in kept}))
    days = sorted({each.measured for each in kept})
    measured = days[0] if len(days) == 1 else f"from {days[0]} to {days[-1]}"
    return (
        f"Written on {today.isoformat()} by `python benchmarks/what_decides.py --data DIR --out FOLDER`; "
        f"measured {measured}: {software}, on a CPU; {CLIPS} clips of {kept[0].frames} frames, "
        f"public clips of other files. No defense. Local steps are SGD at a rate of {LOCAL_RATE}. Intervals "
        "are over clips, 95 %."
    )


def _in_short(results: Results) -> str:
    own = {work: each for work, each in results.items() if _is_own(work)}
    groups = {
        "leak": [work for work, each in own.items() if each.verdict == "leaks"],
        "show which clip it was, and no clear picture": [
            work for work, each in own.items() if each.verdict.startswith("linkable")
        ],
        "cannot be judged by this attack": [
            work for work, each in own.items() if each.verdict in _CANNOT_TELL
        ],
    }
    planned = len([work for work in works() if _is_own(work)])
    lines = [f"Of {len(own)} settings" + ("" if len(own) == planned else f" ({planned} are planned)")]
    for said, alike in groups.items():
        names = "; ".join(_name(work.setting) for work in alike)
        lines.append(f"- {said}: {len(alike)}" + (f" ({names})" if alike and said != "leak" else ""))
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def _is_own(work: Work) -> bool:
    return work.peer is None and work.labels == "inferred"


def _name(setting: Setting) -> str:
    """Return a setting in words, without what is usual."""
    usual = Setting()
    parts = [f"`{setting.network}`", f"8x{setting.size}x{setting.size}", setting.state]
    parts += [f"{setting.mode} mode"] if setting.mode != usual.mode else []
    parts += [f"batch {setting.batch}"] if setting.batch != usual.batch else []
    parts += [_steps(setting)] if setting.local_steps else []
    return ", ".join(parts)


def _steps(setting: Setting) -> str:
    steps = setting.local_steps
    return "gradient" if not steps else f"{steps} local step{'s' if steps > 1 else ''}"


def _setting_table(settings: Sequence[Setting], results: Results) -> str:
    head = ["network", "pixels", "state", "mode", "batch", "sent", "gain in dB", "recognised", "linked",
            "chance", "verdict", "attack", "effective rank",
            *(f"≥ 1/{1 / level:.0f}" for level in LEVELS), "measured"]  # fmt: skip
    rows = []
    for setting in settings:
        each = results[Work(setting=setting)]
        client = [f"`{setting.network}`", str(setting.size), setting.state, setting.mode, str(setting.batch)]
        client.append(_steps(setting))
        methods = ", ".join(f"`{method}`" for method in each.methods)
        rows.append([*client, *_scores(each), each.verdict_text, methods, *_seen(each.spectrum),
                     each.measured])  # fmt: skip
    return _table(head, rows)


def _scores(each: Outcome) -> list[str]:
    linked = f"{each.linked}/{each.asked}" if each.asked else "–"
    chance = "–" if each.chance is None else percent(each.chance)
    return [
        gain_text(Interval(*each.gain, n=each.scored)),
        f"{each.identified}/{each.scored}",
        linked,
        chance,
    ]


def _seen(spectrum: Spectrum | None) -> list[str]:
    if spectrum is None:
        return ["–"] * (1 + len(LEVELS))
    rank = f"{spectrum.effective_rank:.0f} of {spectrum.size}"
    return [rank, *(f"{100 * share:.1f} %" for share in spectrum.above)]


def _peer_table(results: Results) -> str:
    head = ["setting", "attack", "iterations", "PSNR in dB", "gain in dB", "less the default", "recognised",
            "CPU s a clip", "measured"]  # fmt: skip
    rows = []
    for ours, theirs in peers():
        if ours not in results:
            continue
        default = results[ours]
        rows.append([_name(ours.setting), "default", "", *_peer_scores(default, default)])
        rows += [
            [_name(ours.setting), f"breaching, `{work.peer}`", str(work.iterations),
             *_peer_scores(results[work], default)]
            for work in theirs
            if work in results
        ]  # fmt: skip
    return _table(head, rows)


def _peer_scores(each: Outcome, default: Outcome) -> list[str]:
    return [
        "–" if each.psnr_db is None else f"{each.psnr_db:.1f}",
        gain_text(Interval(*each.gain, n=each.scored)),
        "" if each is default else gain_text(_lead(each, default)),
        f"{each.identified}/{each.scored}",
        "–" if each.seconds_a_clip is None else f"{each.seconds_a_clip:.1f}",
        each.measured,
    ]


def _lead(each: Outcome, default: Outcome) -> Interval:
    """Return by how many dB answers are better than those of the default attack, clip by clip."""
    ours, theirs = default.psnr_by_clip, each.psnr_by_clip
    return mean_interval([theirs[clip] - ours[clip] for clip in ours if clip in theirs])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
