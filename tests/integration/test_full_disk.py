"""Disks that are really full: one line, what was there stays readable, and with space again it goes on."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from disks import on_small_disk, own_mounts
from nights import run_of

from runs import VLEAK, options, tiny, without_time
from vleak.evaluation import evaluate
from vleak.regression import make_baseline, read_history, write_baseline
from vleak.results import read_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not own_mounts(), reason="this user may not mount a small disk of its own"),
]


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]])
def test_a_run_stops_and_goes_on(workers: list[str], tmp_path: Path) -> None:
    command = shlex.join([*VLEAK, "evaluate", *options(), *workers, "--out", "disk/run"])
    on_small_disk(
        tmp_path,
        48,
        f"{command} 2>first; echo $? >>first; ls -A disk/run/reconstructions >left; "
        f"mount -o remount,size=8m disk; {command} 2>second; echo $? >>second; cp -r disk/run copy",
    )
    first, second = ((tmp_path / name).read_text().splitlines() for name in ("first", "second"))
    assert len(first) == 2
    assert re.match(
        r"vleak: cannot write to disk/run: No space left on device; \d+ finished cells are", first[0]
    )
    assert (first[-1], second[-1]) == ("2", "0")
    assert not [name for name in (tmp_path / "left").read_text().split() if name.startswith(".")]
    assert without_time(read_run(tmp_path / "copy")) == without_time(evaluate(tiny()))


def test_a_night_is_not_added_and_is_judged_again(tmp_path: Path) -> None:
    write_baseline(make_baseline([run_of(draw) for draw in range(4)]), tmp_path / "baseline.json")
    (tmp_path / "night.json").write_text(json.dumps(run_of(100).content()))
    regress = shlex.join([*VLEAK, "regress", "night.json", "--baseline", "baseline.json", "--history"])
    on_small_disk(
        tmp_path,
        64,
        "cat /dev/zero >disk/full 2>/dev/null; "
        f"{regress} disk/history 2>first >out; echo $? >>first; cp disk/history kept; "
        f"{regress} history --markdown disk/page.md 2>page >>out; echo $? >>page; ls -A disk >left; "
        f"rm disk/full; {regress} disk/history >>out 2>second; echo $? >>second; cp disk/history history2",
    )
    first, page, second = ((tmp_path / name).read_text().splitlines() for name in ("first", "page", "second"))
    assert first == [
        "vleak: --history disk/history: the night cannot be added: No space left on device; free space, and "
        "judge it again",
        "2",
    ]
    assert (tmp_path / "kept").read_bytes() == b""
    assert page[-2:] == [
        "vleak: cannot write disk/page.md: No space left on device; free space or choose another folder",
        "2",
    ]
    assert (tmp_path / "left").read_text().split() == ["full", "history"]
    assert second[-1] == "0"
    assert [night.night for night in read_history(tmp_path / "history2")[1]] == [1]
