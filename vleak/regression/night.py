"""Judgement of a night: a run against a baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from vleak.errors import InputError, argument
from vleak.regression.baseline import (
    RunLike,
    baseline_digest,
    differing_settings,
    read_baseline,
    records_of,
)
from vleak.regression.evidence import promise
from vleak.regression.findings import findings
from vleak.regression.history import History
from vleak.regression.moves import find_moves
from vleak.regression.plan import PlannedTest, plan_tests
from vleak.regression.records import (
    Baseline,
    HistoryHeader,
    LevelMove,
    Night,
    NightLine,
    Promise,
    Verdict,
)
from vleak.regression.replay import Replayed, replay
from vleak.regression.statements import Statements, judge_statements, statement_count
from vleak.regression.testing import Tested, Tonight
from vleak.results import RunRecord

__all__ = ["MODES", "Mode", "regress"]

Mode = Literal["replay", "statistical", "both"]
MODES: tuple[Mode, ...] = ("replay", "statistical", "both")
Progress = Callable[[str, int, int], None]


def regress(
    runs: RunLike | Sequence[RunLike],
    baseline: Baseline | Path | str,
    *,
    mode: Mode | None = None,
    history: Path | str | None = None,
    progress: Progress | None = None,
) -> Night:
    """Judge whether a defense got weaker since a baseline.

    A run of a draw that the baseline holds is *replayed*: every figure has to be equal to tolerance. A run of
    another draw is *tested*: is anything worse, beyond what differs from draw to draw anyway?

    Args:
        runs: tonight's run; or one of each kind.
        baseline: as `make_baseline` returns it, or its file.
        mode: "replay", "statistical" or "both" for what has to be done; None for whatever the runs allow.
        history: file of earlier nights, which this one is judged with and appended to; without one, the
            night is judged by itself.
        progress: called as (what, tests made, tests in all).

    Returns:
        The judgement. Runs of other settings, clips or weights, and cells that failed, are in ``not_judged``.

    Raises:
        InputError: no run of the kind that ``mode`` asks for, two fresh ones, a draw that was judged before,
            or a baseline or history that cannot be used.
        VleakError: the history cannot be written.
    """
    if not isinstance(baseline, Baseline):
        baseline = read_baseline(baseline)
    replays, fresh = _split(records_of(runs), baseline, mode)
    report = progress or (lambda what, done, total: None)
    with nullcontext(None) if history is None else History(history) as kept:
        return _judge(replays, fresh, baseline, kept, report)


def _split(
    records: Sequence[RunRecord], baseline: Baseline, mode: Mode | None
) -> tuple[list[RunRecord], RunRecord | None]:
    """Runs to replay, and the fresh one, of those that the mode asks for."""
    if mode is not None and mode not in MODES:
        raise InputError(f"{argument('mode', mode)}: expected {', '.join(MODES)}")
    replays = [record for record in records if record.settings.draw in baseline.draws]
    fresh = [record for record in records if record.settings.draw not in baseline.draws]
    held = ", ".join(map(str, baseline.draws))
    if mode in ("replay", "both") and not replays:
        raise InputError(
            f"{argument('mode', mode)}: no run is of a draw of the baseline ({held}); evaluate with "
            f"{argument('draw', baseline.draws[0])}"
        )
    if mode in ("statistical", "both") and not fresh:
        raise InputError(
            f"{argument('mode', mode)}: every run is of a draw of the baseline ({held}), which is no fresh "
            "randomness; evaluate with another `draw`"
        )
    if not records:
        raise InputError("runs: expected at least one run, got none")
    if mode != "replay" and len(fresh) > 1:
        raise InputError(f"runs: {len(fresh)} are of fresh draws; give one a night")
    return ([] if mode == "statistical" else replays), (fresh[0] if fresh and mode != "replay" else None)


def _judge(
    replays: Sequence[RunRecord],
    fresh: RunRecord | None,
    baseline: Baseline,
    history: History | None,
    report: Progress,
) -> Night:
    digest, unfit = baseline_digest(baseline), list[str]()
    replayed = Replayed(0, [], [])
    fit = [run for run in [*replays, *([fresh] if fresh else [])] if not _note_unfit(run, baseline, unfit)]
    for run in fit:
        if run is not fresh:
            _add(replayed, replay(run, baseline))
    stated, said = [finding for run in fit[:1] for finding in findings(run, baseline)], Statements()
    tonight = None
    if fresh is not None and fresh in fit:
        tests = _tests(baseline, history, digest)
        level = _promise(len(tests), baseline)
        tonight = Tonight(fresh, tests, level, history.lines if history else [])
        _refuse_again(fresh.settings.draw, history)
        tonight.judge(report)
    if fit:
        level = tonight.promise if tonight else _promise(len(plan_tests(baseline)), baseline)
        said = judge_statements(fit[-1], baseline, level.log_threshold, report)
        stated += said.findings
    missing = [*unfit, *replayed.not_judged, *(tonight.not_judged if tonight else []), *said.not_judged]
    worse = (
        stated or replayed.moved or (tonight and any(one.record.outcome == "worse" for one in tonight.tested))
    )
    verdict: Verdict = "failed" if worse else "not judged" if missing else "held"
    if history is not None and tonight is not None and fresh is not None:
        history.add(_line(tonight, fresh, verdict))
    return Night(
        verdict=verdict,
        night=tonight.number if tonight else 1,
        draw=None if fresh is None else fresh.settings.draw,
        baseline_sha256=digest,
        promise=tonight.promise if tonight else None,
        tests=tuple(one.record for one in tonight.tested) if tonight else (),
        findings=tuple(stated),
        replayed=tuple(run.settings.draw for run in replays),
        compared=replayed.compared,
        moved=tuple(replayed.moved),
        not_judged=tuple(missing),
        notes=tuple(said.notes),
        moves=_moves(history),
    )


def _promise(tests: int, baseline: Baseline) -> Promise:
    """Return the promise over the tests of figures, and over the claims and audits that are asked for."""
    return promise(max(1, tests + statement_count(baseline)))


def _note_unfit(run: RunRecord, baseline: Baseline, reasons: list[str]) -> bool:
    """Add the reasons why a run cannot be compared at all; tell whether there are any."""
    name = f"the run of draw {run.settings.draw}"
    found = []
    if run.planned_cells != len(run.cells):
        found.append(f"{name} is not finished; resume it with the same `out`")
    if differences := differing_settings(baseline, run):
        found.append(
            f"{name} cannot be compared with the baseline: other {'; '.join(differences)}; evaluate with the "
            "settings and data of the baseline"
        )
    reasons += found
    return bool(found)


def _add(total: Replayed, one: Replayed) -> None:
    total.compared += one.compared
    total.moved += one.moved
    total.not_judged += one.not_judged


def _tests(baseline: Baseline, history: History | None, digest: str) -> list[PlannedTest]:
    """Tests of the baseline; with a history those that it began with, which the promise is divided by."""
    tests = plan_tests(baseline)
    if history is None:
        return tests
    history.begin(HistoryHeader(baseline_sha256=digest, tests=tuple(test.name for test in tests)))
    assert history.header is not None
    by_name = {test.name: test for test in tests}
    if unknown := [name for name in history.header.tests if name not in by_name]:
        raise InputError(
            f"{argument('history', history.path)}: has a test that this vleak does not make, {unknown[0]!r}; "
            "begin another history"
        )
    return [by_name[name] for name in history.header.tests]


def _refuse_again(draw: int, history: History | None) -> None:
    before = next((line for line in history.lines if line.draw == draw), None) if history else None
    if before is not None:
        raise InputError(
            f"{argument('draw', draw)}: was judged before, as night {before.night}; evaluate with another "
            "`draw`, such as the date"
        )


def _line(tonight: Tonight, run: RunRecord, verdict: Verdict) -> NightLine:
    tested: Sequence[Tested] = tonight.tested
    return NightLine(
        night=tonight.number,
        draw=run.settings.draw,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        vleak=run.environment.vleak,
        torch=run.environment.torch,
        verdict=verdict,
        means=tuple(one.mean for one in tested),
        log_e=tuple(one.record.log_e for one in tested),
        opened=tuple(one.opened for one in tested),
        alarm=tuple(one.alarm for one in tested),
        ranks=tuple(one.ranks for one in tested),
    )


def _moves(history: History | None) -> tuple[LevelMove, ...]:
    """Moves of level in the nightly means of every test."""
    if history is None or history.header is None:
        return ()
    found = []
    for place, name in enumerate(history.header.tests):
        means = [line.means[place] for line in history.lines]
        series = np.array(means, dtype=np.float64)
        cuts = find_moves(series)
        edges = [0, *cuts, len(series)]
        levels = [float(np.nanmean(series[a:b])) for a, b in pairwise(edges)] if cuts else []
        found += [
            LevelMove(name=name, night=cut + 1, before=levels[index], after=levels[index + 1])
            for index, cut in enumerate(cuts)
        ]
    return tuple(found)
