"""Generated part of docs/what_decides.md: tables and sentences from finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from decides_plan import CLIPS, LOCAL_RATE, Setting, Work, matrix, peers, works
from jacobian import LEVELS, Spectrum

import vleak
from vleak.errors import InputError
from vleak.report.numbers import percent
from vleak.report.words import verdict_text
from vleak.results import Cell, Row
from vleak.results.statistics import Interval, mean_interval

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
_CANNOT_TELL = ("unclear", "too_few_clips", "nothing_found", "below_prior", "no_result")


@dataclass(frozen=True)
class Finished:
    """A run that ended.

    Attributes:
        run: as `vleak.evaluate` returned it.
        cpu_seconds: of the whole run: clients, trials, attack and judgement.
        spectrum: of the Jacobian of its updates; None where it was not computed.
    """

    run: vleak.Run
    cpu_seconds: float
    spectrum: Spectrum | None = None

    @property
    def row(self) -> Row:
        """Row of the only attack that is no baseline."""
        (row,) = (row for row in self.run.rows if not row.baseline)
        return row

    @property
    def attacked(self) -> dict[str, Cell]:
        """Scored cells of that attack by clip."""
        return {cell.clip: cell for cell in self.run.cells if cell.ok and not cell.attack.baseline}

    @property
    def seconds_a_clip(self) -> float:
        """CPU seconds a clip."""
        return self.cpu_seconds / max(len(self.attacked), 1)


Results = Mapping[Work, Finished]


def page(text: str, results: Results, today: date) -> str:
    """Return a page with what is between its marks written anew.

    Raises:
        InputError: the page has no marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"page: expected the lines {BEGIN} and {END}, between which the tables go; add them")
    return f"{before}{BEGIN}\n\n{tables(results, today)}\n\n{END}{after}"


def write_page(path: Path, results: Results) -> None:
    """Write the tables into a page.

    Raises:
        InputError: the page has no marks, or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"page {path}: {error.strerror}; give the page with the marks") from error
    path.write_text(page(text, results, date.today()), encoding="utf-8")


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
    record = next(iter(results.values())).run.record
    environment = record.environment
    return (
        f"Written on {today.isoformat()} by `python benchmarks/what_decides.py --data DIR --out FOLDER`: "
        f"vleak {environment.vleak}, torch {environment.torch}, Python {environment.python}, device "
        f"{environment.device}, seed {record.settings.seed}; {CLIPS} clips of {record.settings.frames} "
        f"frames, data {record.data.sha256[:12]}, public clips of other files. No defense. Local steps are "
        f"SGD at a rate of {LOCAL_RATE}. Intervals are over clips, 95 %."
    )


def _in_short(results: Results) -> str:
    own = {work: each for work, each in results.items() if _is_own(work)}
    groups = {
        "leak": [work for work, each in own.items() if each.row.verdict == "leaks"],
        "show which clip it was, and no clear picture": [
            work for work, each in own.items() if each.row.verdict.startswith("linkable")
        ],
        "are such that the attack cannot tell": [
            work for work, each in own.items() if each.row.verdict in _CANNOT_TELL
        ],
    }
    planned = len([work for work in works() if _is_own(work)])
    lines = [f"Of {len(own)} settings" + ("" if len(own) == planned else f" ({planned} are planned)")]
    for said, alike in groups.items():
        names = "" if said == "leak" or not alike else ": " + "; ".join(_name(work.setting) for work in alike)
        lines.append(f"- {len(alike)} {said}{names}")
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
            *(f"≥ 1/{1 / level:.0f}" for level in LEVELS)]  # fmt: skip
    rows = []
    for setting in settings:
        finished = results[Work(setting=setting)]
        row = finished.row
        client = [f"`{setting.network}`", str(setting.size), setting.state, setting.mode, str(setting.batch)]
        client.append(_steps(setting))
        rows.append([*client, *_scores(row), verdict_text(row), _methods(row), *_seen(finished.spectrum)])
    return _table(head, rows)


def _scores(row: Row) -> list[str]:
    linked = f"{row.linked}/{row.linkage.n}" if row.linkage.n else "–"
    chance = "–" if row.chance is None else percent(row.chance)
    return [_interval(row.psnr_gain_db), f"{row.identified}/{row.n}", linked, chance]


def _interval(interval: Interval) -> str:
    if interval.mean is None:
        return "–"
    if interval.low is None or interval.high is None:
        return f"{interval.mean:+.1f}"
    return f"{interval.mean:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"


def _methods(row: Row) -> str:
    return ", ".join(f"`{method}`" for method in row.methods) or f"`{row.attack}`"


def _seen(spectrum: Spectrum | None) -> list[str]:
    if spectrum is None:
        return ["–"] * (1 + len(LEVELS))
    rank = f"{spectrum.effective_rank:.0f} of {spectrum.size}"
    return [rank, *(f"{100 * share:.1f} %" for share in spectrum.above)]


def _peer_table(results: Results) -> str:
    head = ["setting", "attack", "iterations", "PSNR in dB", "gain in dB", "less the default", "recognised",
            "CPU s a clip"]  # fmt: skip
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


def _peer_scores(finished: Finished, default: Finished) -> list[str]:
    row, own = finished.row, finished is default
    return [
        "–" if row.psnr_db is None else f"{row.psnr_db:.1f}",
        _interval(row.psnr_gain_db),
        "" if own else _interval(_lead(finished, default)),
        f"{row.identified}/{row.n}",
        f"{finished.seconds_a_clip:.1f}",
    ]


def _lead(finished: Finished, default: Finished) -> Interval:
    """Return by how many dB answers are better than those of the default attack, clip by clip."""
    ours, theirs = _psnr(default), _psnr(finished)
    return mean_interval([theirs[clip] - ours[clip] for clip in ours if clip in theirs])


def _psnr(finished: Finished) -> dict[str, float]:
    scores = {clip: cell.scores for clip, cell in finished.attacked.items()}
    return {
        clip: each.psnr_db for clip, each in scores.items() if each is not None and each.psnr_db is not None
    }


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
