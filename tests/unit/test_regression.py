"""Baselines, nights and histories: what is judged, what is refused, and what survives a crash."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nights import Change, run_of, shifted

from vleak.errors import InputError, VleakError
from vleak.regression import (
    Baseline,
    History,
    HistoryHeader,
    Night,
    NightLine,
    TestRecord,
    baseline_digest,
    make_baseline,
    read_baseline,
    read_history,
    regress,
    write_baseline,
)
from vleak.regression.schema import regression_schemas, write_schemas
from vleak.report import draw_nights, night_annotations, night_junit, night_markdown, night_sentences

ROOT = Path(__file__).resolve().parents[2]
DRAWS = range(6)


@pytest.fixture(scope="module", name="baseline")
def _baseline() -> Baseline:
    return make_baseline([run_of(draw, utility=0.8) for draw in DRAWS])


def nights(
    baseline: Baseline,
    history: Path,
    count: int,
    change: Change | None = None,
    first: int = 100,
    **given: Any,
) -> list[Night]:
    """Judge nights one after the other."""
    given = {"utility": 0.8, **given}
    return [regress(run_of(first + n, change, **given), baseline, history=history) for n in range(count)]


def worse(night: Night) -> set[tuple[str, str]]:
    return {(test.subject, test.figure) for test in night.tests if test.outcome == "worse"}


# --- baselines --------------------------------------------------------------------------------------------


def test_a_baseline_is_read_as_it_was_written_and_small(tmp_path: Path, baseline: Baseline) -> None:
    path = write_baseline(baseline, tmp_path / "baseline.json")
    assert read_baseline(path) == baseline
    assert path.stat().st_size < 40_000  # 2 rows, 20 clips, 6 draws
    assert baseline.draws == tuple(DRAWS)
    row = baseline.rows[1]
    assert (row.defense, row.attack, row.epsilon, row.bound) == ("dp", "matching", 8.0, 0.4)
    assert len(row.figures["gain"]) == 6
    assert len(row.figures["gain"][0]) == len(row.samples) == 20


def test_the_committed_schemas_are_those_of_the_records(tmp_path: Path, baseline: Baseline) -> None:
    for path in write_schemas(tmp_path):
        committed = ROOT / path.relative_to(tmp_path)
        assert path.read_bytes() == committed.read_bytes(), "run python -m vleak.regression.schema"
    schemas = regression_schemas()
    assert set(baseline.model_dump()) == set(schemas["baseline-1.json"]["properties"])
    assert set(regress(run_of(50), baseline).model_dump()) == set(schemas["night-1.json"]["properties"])


def test_clips_of_one_client_are_one_sample() -> None:
    def in_batches(defense: str, fields: dict[str, Any]) -> None:
        clip = int(fields["id"].split("/")[1])
        fields["batch"] = (clip // 2 * 2, clip // 2 * 2 + 1)
        fields["knowledge"] = {"batch_size": 2}

    row = make_baseline(run_of(0, in_batches, clips=4)).rows[0]
    assert row.samples == ("clip@0 + clip@1", "clip@2 + clip@3")
    alone = make_baseline(run_of(0, clips=4)).rows[0].figures["gain"][0]
    assert row.figures["gain"][0][0] == pytest.approx(np.mean(np.array(alone[:2], float)))


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "expected at least one run"),
        ([run_of(0, clips=1), run_of(0, clips=1)], "two are of draw 0"),
        ([run_of(0, clips=1), run_of(1, clips=1, iterations=9)], r"differ in iterations \(3 before, 9 now\)"),
        ([run_of(0, clips=1).model_copy(update={"planned_cells": 9})], "that of draw 0 is not finished"),
    ],
)
def test_runs_that_make_no_baseline_are_refused(runs: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_baseline(runs)


def damaged(tmp_path: Path, baseline: Baseline, what: str) -> Path:
    """A file that is no baseline."""
    path = write_baseline(baseline, tmp_path / "baseline.json")
    content = json.loads(path.read_text())
    changes: dict[str, Any] = {
        "version": {"schema_version": 99}, "no version": {"schema_version": None}, "field": {"draws": "all"},
        "draws": {"draws": [0]}, "kind": {"kind": "vleak night"},
    }  # fmt: skip
    if what in changes:
        path.write_text(json.dumps(content | changes[what]))
    elif what == "run":
        path.write_text(json.dumps(run_of(0, clips=1).content()))
    elif what == "truncated":
        path.write_bytes(path.read_bytes()[:500])
    elif what == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        path.unlink()
    return path


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("version", "schema_version is 99, this vleak reads 1; update vleak"),
        ("no version", "schema_version is None, this vleak reads 1; make it again"),
        ("field", 'draws is "all", expected'),
        ("draws", "has another shape than 1 draws"),
        ("kind", "holds no baseline; make one with `vleak baseline RUN -o FILE`"),
        ("run", "holds no baseline"),
        ("truncated", "truncated or damaged: .*give a baseline"),
        ("pipe", "it is a named pipe"),
        ("nothing", "No such file"),
    ],
)
def test_files_that_are_no_baseline_are_refused(
    tmp_path: Path, baseline: Baseline, what: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_baseline(damaged(tmp_path, baseline, what))


def test_a_baseline_is_written_whole_or_not_at_all(
    tmp_path: Path, baseline: Baseline, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "baseline.json"
    path.write_text("before")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VleakError, match="No space left"):
        write_baseline(baseline, path)
    assert [child.name for child in tmp_path.iterdir()] == ["baseline.json"]
    assert path.read_text() == "before"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="it is a named pipe"):
        write_baseline(baseline, tmp_path / "pipe")
    with pytest.raises(InputError, match="there is no folder"):
        write_baseline(baseline, tmp_path / "nowhere" / "b.json")


# --- nights -----------------------------------------------------------------------------------------------


def test_a_night_like_the_baseline_holds(baseline: Baseline) -> None:
    night = regress(run_of(100, utility=0.8), baseline)
    assert (night.verdict, night.exit_code, night.not_judged) == ("held", 0, ())
    subjects = {test.subject for test in night.tests}
    assert subjects == {"leakage", "message", "attack", "certificate", "bytes", "utility"}
    assert night.promise is not None
    assert night.promise.tests == len(night.tests) == len({test.name for test in night.tests})


PLANTED: dict[str, tuple[Change, set[tuple[str, str]], int]] = {
    "gain": (shifted(psnr_gain_db=0.5), {("leakage", "gain")}, 7),
    "motion": (shifted(motion_psnr_gain_db=0.5), {("leakage", "motion gain")}, 7),
    "linked": (
        lambda d, f: f["scores"].update(linked=True),
        {("leakage", "linked"), ("certificate", "linked")},
        1,
    ),
    "less noise": (
        lambda d, f: f["update"].update(cosine_to_undefended=0.9 if d == "dp" else 1.0),
        {("message", "cosine")},
        1,
    ),
    "bytes": (lambda d, f: f["update"].update(bytes=1200), {("bytes", "bytes")}, 1),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_weakening_is_found_in_time(tmp_path: Path, baseline: Baseline, what: str) -> None:
    """Shifts by one standard deviation of a clip, from night 3 on; what has no noise at once."""
    change, expected, delay = PLANTED[what]
    before = nights(baseline, tmp_path / "h", 2)
    after = nights(baseline, tmp_path / "h", delay, change, first=200)
    assert all(night.verdict == "held" for night in before)
    first = next(night for night in after if night.verdict == "failed")
    assert worse(first) >= expected
    assert {subject for subject, _ in worse(first)} == {subject for subject, _ in expected}
    test = next(test for test in first.tests if test.outcome == "worse")
    assert test.since in (2, 3, 4)
    assert after[-1].verdict == "failed"  # it stays in force


def test_identification_that_rises_also_breaks_the_certificate(tmp_path: Path, baseline: Baseline) -> None:
    def all_identified(defense: str, fields: dict[str, Any]) -> None:
        fields["identified"] = True
        fields["scores"]["identified"] = True

    last = nights(baseline, tmp_path / "h", 2, all_identified)[-1]
    assert worse(last) == {("leakage", "identified"), ("certificate", "identified")}


def test_an_attack_that_got_weaker_is_no_better_defense(tmp_path: Path, baseline: Baseline) -> None:
    def broken(defense: str, fields: dict[str, Any]) -> None:
        fields["scores"]["psnr_gain_db"] -= 1.0
        fields["scores"]["motion_psnr_gain_db"] -= 1.0

    last = nights(baseline, tmp_path / "h", 3, broken)[-1]
    assert worse(last) == {("attack", "gain"), ("attack", "motion gain")}
    assert "the attack on the undefended model got weaker" in " ".join(night_sentences(last))


def test_utility_is_one_sample_a_night(tmp_path: Path) -> None:
    baseline = make_baseline([run_of(draw, utility=0.8, clips=3) for draw in range(8)])
    found = nights(baseline, tmp_path / "h", 24, utility=0.5, clips=3)
    first = next(night for night in found if night.verdict == "failed")
    assert worse(first) == {("utility", "accuracy")}
    soonest = next(test.soonest for test in found[0].tests if test.figure == "accuracy")
    assert first.night == soonest  # as said on the first night


def test_a_defense_that_got_stronger_holds(tmp_path: Path, baseline: Baseline) -> None:
    last = nights(baseline, tmp_path / "h", 8, shifted(psnr_gain_db=-2.0, motion_psnr_gain_db=-2.0))
    assert [night.verdict for night in last] == ["held"] * 8
    assert [move.name for move in last[-1].moves] == []
    back = nights(baseline, tmp_path / "h", 6, first=300)
    assert {night.verdict for night in back} == {"held"}
    assert any(move.night == 9 and move.name.endswith("| gain") for move in back[-1].moves)


def test_an_alarm_ends_when_the_level_is_back(tmp_path: Path, baseline: Baseline) -> None:
    weak = nights(baseline, tmp_path / "h", 5, shifted(psnr_gain_db=3.0))
    assert weak[-1].verdict == "failed"
    assert [night.verdict for night in nights(baseline, tmp_path / "h", 4, first=300)] == ["held"] * 4


def test_years_of_correlated_figures_keep_the_promise(tmp_path: Path) -> None:
    """The whole way, from runs to alarms: years of 12 nights, of small runs, at the promise of such years."""
    failed = 0
    for year in range(3):
        baseline = make_baseline([run_of(1000 * year + draw, clips=4) for draw in range(3)])
        verdicts = nights(baseline, tmp_path / f"{year}", 12, first=1000 * year + 500, clips=4, utility=None)
        failed += any(night.verdict == "failed" for night in verdicts)
    assert failed == 0  # at most 5 % in 365 nights


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda d, f: f["defense"].update(epsilon=9.0) if d == "dp" else None, "the epsilon is weaker"),
        (lambda d, f: f["defense"].pop("epsilon", None), "the epsilon is gone"),
        (lambda d, f: f.update(certificate=None), "the certificate is gone"),
        (
            lambda d, f: f["attack"].update(adaptive=False),
            "the attack no longer uses what it knows of the defense",
        ),
        (lambda d, f: f["attack"].update(defense_knowledge="simulated"), "no longer states its channel"),
    ],
)
def test_statements_that_got_weaker_fail_the_night(baseline: Baseline, change: Change, what: str) -> None:
    night = regress(run_of(100, change, utility=0.8), baseline)
    assert night.verdict == "failed"
    assert what in night.findings[0].what


# --- what cannot be judged --------------------------------------------------------------------------------


def test_runs_of_other_settings_clips_or_weights_are_not_judged(tmp_path: Path, baseline: Baseline) -> None:
    other = run_of(100, iterations=7)
    data = other.data.model_copy(update={"sha256": "other"})
    model = other.models[0].model_copy(update={"weights_sha256": "other"})
    night = regress(
        other.model_copy(update={"data": data, "models": (model,)}), baseline, history=tmp_path / "h"
    )
    assert (night.verdict, night.exit_code, night.tests) == ("not judged", 2, ())
    for part in ("iterations (3 before, 7 now)", "clips (the data has another digest)", "weights of c3d"):
        assert part in night.not_judged[0]
    assert read_history(tmp_path / "h") == (None, [])  # such a night is none
    unfinished = regress(run_of(100).model_copy(update={"planned_cells": 99}), baseline)
    assert "is not finished" in unfinished.not_judged[0]


def test_cells_that_failed_are_named_and_speak_for_no_alarm(baseline: Baseline) -> None:
    def failing(defense: str, fields: dict[str, Any]) -> None:
        if defense == "dp" and fields["id"].endswith("/3"):
            fields.update(status="failed: out of luck", scores=None, update=None)

    night = regress(run_of(100, failing, utility=0.8), baseline)
    assert night.verdict == "not judged"
    assert "dp, matching: 1 of 20 cells failed (clip@3): out of luck" in night.not_judged
    gain = next(test for test in night.tests if test.name.endswith("dp | matching | inferred | gain"))
    assert (gain.samples, gain.outcome) == (19, "held")
    nothing = regress(
        run_of(100, lambda d, f: f.update(status="failed: all", scores=None, update=None)), baseline
    )
    assert nothing.verdict == "not judged"
    assert all(test.outcome == "not judged" for test in nothing.tests)


def test_a_defense_that_is_missing_is_named(baseline: Baseline) -> None:
    run = run_of(100, utility=0.8)
    cells = tuple(cell for cell in run.cells if cell.defense.name == "none")
    night = regress(run.model_copy(update={"cells": cells, "planned_cells": len(cells)}), baseline)
    assert night.exit_code == 2
    assert "dp, matching, gain: tonight's run has no such figure" in night.not_judged


def test_too_few_clips_to_ever_alarm_are_told_with_how_many_would_do() -> None:
    night = regress(run_of(9, clips=1), make_baseline(run_of(0, clips=1)))
    assert night.verdict == "not judged"
    assert any("1 clips in 1 draws can never alarm within a year; 3 clips" in r for r in night.not_judged)


@pytest.mark.parametrize(
    ("draws", "mode", "message"),
    [
        ([100], "replay", "no run is of a draw of the baseline (0, 1, 2, 3, 4, 5); evaluate with draw=0"),
        ([0], "statistical", "every run is of a draw of the baseline"),
        ([0], "both", "every run is of a draw of the baseline"),
        ([100], "both", "no run is of a draw of the baseline"),
        ([100, 101], None, "2 are of fresh draws; give one a night"),
        ([100], "weekly", "mode=weekly: expected replay, statistical, both"),
        ([], None, "expected at least one run"),
    ],
)
def test_modes_ask_for_their_runs(baseline: Baseline, draws: list[int], mode: Any, message: str) -> None:
    with pytest.raises(InputError) as raised:
        regress([run_of(draw) for draw in draws], baseline, mode=mode)
    assert message in str(raised.value)


# --- replay -----------------------------------------------------------------------------------------------


def test_a_replay_of_the_same_code_is_equal(baseline: Baseline) -> None:
    night = regress([run_of(2, utility=0.8), run_of(100, utility=0.8)], baseline, mode="both")
    assert (night.verdict, night.replayed, night.moved) == ("held", (2,), ())
    assert night.compared > 200
    assert night.tests


def test_a_replay_tells_which_figure_moved_and_by_how_much(baseline: Baseline) -> None:
    def drifted(defense: str, fields: dict[str, Any]) -> None:
        if fields["id"] == "dp/7":
            fields["scores"]["psnr_gain_db"] += 0.02

    night = regress(run_of(2, drifted, utility=0.8), baseline)
    assert night.verdict == "failed"
    (moved,) = night.moved
    assert (moved.row, moved.sample, moved.figure, moved.worse) == ("dp, matching", "clip@7", "gain", True)
    assert moved.tonight is not None
    assert moved.baseline is not None
    assert moved.tonight - moved.baseline == pytest.approx(0.02, abs=1e-5)
    assert "clip@7: gain" in night_sentences(night)[1]
    lower = regress(run_of(2, utility=0.7), baseline)
    assert [(m.figure, m.worse) for m in lower.moved] == [("accuracy", True)]


def test_a_replay_with_other_versions_is_not_judged(baseline: Baseline) -> None:
    night = regress(run_of(2, utility=0.8, environment={"torch": "3"}), baseline)
    assert night.verdict == "not judged"
    assert "another torch (2, then 3)" in night.not_judged[0]
    assert regress(run_of(100, utility=0.8, environment={"torch": "3"}), baseline).verdict == "held"


# --- histories --------------------------------------------------------------------------------------------


def test_a_history_grows_by_a_line_and_refuses_a_draw_twice(tmp_path: Path, baseline: Baseline) -> None:
    path = tmp_path / "history.jsonl"
    assert [night.night for night in nights(baseline, path, 3)] == [1, 2, 3]
    header, lines = read_history(path)
    assert header is not None
    assert header.baseline_sha256 == baseline_digest(baseline)
    assert [line.draw for line in lines] == [100, 101, 102]
    assert path.read_bytes().count(b"\n") == 4
    with pytest.raises(InputError, match="draw=101: was judged before, as night 2"):
        regress(run_of(101, utility=0.8), baseline, history=path)
    other = make_baseline([run_of(draw) for draw in (7, 8)])
    with pytest.raises(InputError, match="is of another baseline"):
        regress(run_of(103), other, history=path)


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_torn_night_is_dropped_and_judged_again(tmp_path: Path, baseline: Baseline, cut: int) -> None:
    path = tmp_path / "history.jsonl"
    nights(baseline, path, 2)
    whole = path.read_bytes()
    nights(baseline, path, 1, first=300)
    path.write_bytes(path.read_bytes()[: len(whole) + cut])
    assert len(read_history(path)[1]) == 2
    again = nights(baseline, path, 1, first=300)
    assert again[0].night == 3
    assert len(read_history(path)[1]) == 3
    header = whole[: whole.index(b"\n")]
    path.write_bytes(header[: max(1, cut)])  # killed at its first line
    assert nights(baseline, path, 1)[0].night == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Dear Sir", "holds no history"),
        (b'{"kind": "vleak night"}\n', "holds no history"),
        (b'{"kind":"vleak history","schema_version":9}\n', "schema_version is 9"),
        (b'{"kind":"vleak history","schema_version":1}\n', "line 1: baseline_sha256 is missing"),
    ],
)
def test_files_that_are_no_history_are_refused_and_kept(
    tmp_path: Path, baseline: Baseline, content: bytes, message: str
) -> None:
    path = tmp_path / "history"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        nights(baseline, path, 1)
    assert path.read_bytes() == content


def test_a_damaged_night_is_named(tmp_path: Path, baseline: Baseline) -> None:
    path = tmp_path / "history"
    nights(baseline, path, 3)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], b"{}}", *lines[3:]]))
    with pytest.raises(InputError, match="line 3 is damaged"):
        nights(baseline, path, 1, first=300)
    path.write_bytes(b"\n".join([*lines[:2], *lines[3:]]))
    with pytest.raises(InputError, match="line 3: a night is missing"):
        nights(baseline, path, 1, first=300)


def test_places_that_cannot_hold_a_history_are_refused(tmp_path: Path, baseline: Baseline) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "pipe", "it is a named pipe"),
        (tmp_path, "it is a folder"),
        (tmp_path / "nowhere" / "h", "there is no folder"),
        (Path("/dev/full"), "it is a device"),
    ):
        with pytest.raises(InputError, match=message):
            nights(baseline, path, 1)


def test_a_full_disk_leaves_the_history_as_it_was(
    tmp_path: Path, baseline: Baseline, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "history", os.pwrite
    nights(baseline, path, 1)
    before = path.read_bytes()

    def full(handle: int, content: bytes, place: int) -> int:
        if place >= len(before) + 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, content[:100], place)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(VleakError, match="the night cannot be added: No space left on device"):
        nights(baseline, path, 1, first=300)
    assert path.read_bytes() == before


def test_two_nights_at_once_are_refused(tmp_path: Path, baseline: Baseline) -> None:
    path = tmp_path / "history"
    with History(path), pytest.raises(InputError, match="another night is being judged with it"):
        nights(baseline, path, 1)
    assert nights(baseline, path, 1)[0].night == 1


WRITERS = """
import os, signal, sys, time
from vleak.regression import History, HistoryHeader, NightLine, read_history
path, lives = sys.argv[1], int(sys.argv[2])
header = HistoryHeader(baseline_sha256="a", tests=("x",) * 400)

def write(said):
    while True:
        with History(path) as history:
            history.begin(header)
            number = len(history.lines) + 1
            history.add(NightLine(night=number, draw=number, date="d", vleak="1", torch="2", verdict="held",
                means=(0.5,) * 400, log_e=(0.0,) * 400, opened=(1,) * 400, alarm=(False,) * 400,
                ranks=("00" * 40,) * 400))
        os.write(said, number.to_bytes(4, "little"))

torn = known = 0
for life in range(lives):
    hears, says = os.pipe()
    writer = os.fork()
    if not writer:
        write(says)
    os.close(says)
    time.sleep(0.0007 * (1 + life % 40))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    said = os.read(hears, 65536)
    os.close(hears)
    known = int.from_bytes(said[-4:], "little") if said else known
    torn += not open(path, "rb").read().endswith(b"\\n") if os.path.exists(path) else 0
    nights = read_history(path)[1] if os.path.exists(path) else []
    assert len(nights) >= known, (len(nights), known)
    assert [line.night for line in nights] == list(range(1, len(nights) + 1))
    if len(nights) > 40:
        os.remove(path)
        known = 0
print(torn)
"""


@pytest.mark.parametrize("lives", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_a_history_survives_writers_that_are_killed(tmp_path: Path, lives: int) -> None:
    """What a writer said to have kept is there, after kill -9 at so many moments."""
    command = [sys.executable, "-c", WRITERS, str(tmp_path / "history"), str(lives)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


# --- what a person and a machine read ---------------------------------------------------------------------


@pytest.fixture(scope="module", name="failed")
def _failed(baseline: Baseline, tmp_path_factory: pytest.TempPathFactory) -> tuple[Night, Path]:
    path = tmp_path_factory.mktemp("failed") / "history"
    nights(baseline, path, 4)
    night = nights(baseline, path, 5, shifted(psnr_gain_db=2.0), first=200)[-1]
    assert night.verdict == "failed"
    return night, path


def test_markdown_begins_with_the_verdict_and_shows_the_course(failed: tuple[Night, Path]) -> None:
    night, path = failed
    header, lines = read_history(path)
    assert header is not None
    text = night_markdown(night, lines, header.tests, "plot of it.svg")
    assert text.startswith("# ❌ failed\n\nfailed: night 9, draw 204")
    assert "- dp, matching: leaks more: gain" in text
    row = next(line for line in text.splitlines() if line.startswith("| dp, matching | leakage | gain"))
    assert "**worse**" in row
    assert len(row.split("|")[-2].strip()) == 9  # a bar a night
    assert "](plot%20of%20it.svg)" in text


def test_names_from_outside_are_escaped() -> None:
    def hostile(defense: str, fields: dict[str, Any]) -> None:
        fields["defense"]["label"] = "<img src=x onerror=alert(1)>|`%0A::error::\x07"

    def longer(defense: str, fields: dict[str, Any]) -> None:
        hostile(defense, fields)
        fields["update"]["bytes"] = 5000

    night = regress(run_of(9, longer), make_baseline([run_of(draw, hostile) for draw in range(4)]))
    assert night.verdict == "failed"
    assert "<img" not in night_markdown(night)
    ElementTree.fromstring(night_junit(night))
    for line in night_annotations(night):
        assert line.startswith("::error title=vleak regress::")
        assert "%0A::error" not in line.replace("%250A", "")


def test_junit_has_a_case_for_every_test(failed: tuple[Night, Path]) -> None:
    night, _ = failed
    suite = ElementTree.fromstring(night_junit(night))
    assert suite.get("tests") == str(len(night.tests)) == str(len(suite.findall("testcase")))
    failures = [case.get("name") for case in suite.findall("testcase") if case.find("failure") is not None]
    assert failures == ["leakage: gain"]
    assert suite.get("failures") == "1"


def test_junit_tells_once_what_was_not_judged(baseline: Baseline) -> None:
    def lost(defense: str, fields: dict[str, Any]) -> None:
        if defense == "dp":
            fields["defense"] |= {"name": "prune", "label": "prune"}

    night = regress(run_of(100, lost), baseline)
    unjudged = [test for test in night.tests if test.outcome == "not judged"]
    suite = ElementTree.fromstring(night_junit(night))
    assert len(unjudged) > 3
    assert suite.get("tests") == str(len(night.tests) + len(night.not_judged) - len(unjudged))
    assert suite.get("errors") == str(len(night.not_judged))


def test_annotations_are_of_the_three_kinds(baseline: Baseline, failed: tuple[Night, Path]) -> None:
    assert night_annotations(failed[0])[0].startswith("::error title=vleak regress::dp, matching: leaks more")
    held = regress(run_of(100, utility=0.8), baseline)
    assert night_annotations(held) == [
        f"::notice title=vleak regress::held: night 1, draw 100: {len(held.tests)} figures tested"
    ]
    other = regress(run_of(100, iterations=7), baseline)
    assert night_annotations(other)[0].startswith("::warning title=vleak regress::the run of draw 100")


def test_the_plot_shows_what_alarms_first(failed: tuple[Night, Path], baseline: Baseline) -> None:
    night, path = failed
    header, lines = read_history(path)
    assert header is not None
    svg = draw_nights(night, lines, header.tests)
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "var(--" not in svg
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "dp, matching: gain" in texts
    with pytest.raises(InputError, match="no night to draw"):
        draw_nights(night, [], ())


def test_records_of_a_night_are_small(failed: tuple[Night, Path]) -> None:
    night, path = failed
    assert Night.model_validate_json(night.model_dump_json()) == night
    assert len(path.read_bytes().split(b"\n")[1]) < 200 * len(night.tests)
    assert {HistoryHeader, NightLine, TestRecord}  # exported for who reads a history


def test_rows_of_other_clients_are_told_apart() -> None:
    def several(defense: str, fields: dict[str, Any]) -> None:
        if defense == "dp":
            fields["client"] = {"rounds": 3, "mode": "train", "local": {"steps": 5, "learning_rate": 0.1}}

    night = regress(run_of(9, several), make_baseline([run_of(draw, several) for draw in range(3)]))
    rows = {test.row for test in night.tests}
    assert rows == {"none, matching", "dp, matching, train mode, 5 local steps, 3 rounds"}
