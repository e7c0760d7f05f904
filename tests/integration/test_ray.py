"""Cells on Ray: the numbers of one process, and no cell, worker or driver that dies harms the run."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import finish
from costly_parts import Costly
from evaluations import timeless

import vleak
from runs import VLEAK, journal_length, options, start, tiny
from vleak.errors import InputError, VleakError
from vleak.evaluation import Limits, cluster, evaluate
from vleak.results import RunRecord

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: vleak[ray]"),
    pytest.mark.filterwarnings("ignore"),  # of Ray's own
]

FEW: dict[str, Any] = {"clips": 1, "defenses": ("none",), "enhance": "none"}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder for temporary files, of a short path: it is in the command of every process of Ray."""
    tmp_path_factory.getbasetemp()  # is elsewhere
    with tempfile.TemporaryDirectory(prefix="vr") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture(scope="module")
def connection() -> Iterator[None]:
    """One Ray for several tests: a connection that the caller made is used, and left."""
    import ray

    with cluster._connected(ray, "local", 2**28):
        yield


def of_ray(folder: Path) -> list[str]:
    """Command lines of the processes whose files are in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, UnicodeDecodeError):
            continue
        if str(folder) in line and state != "Z":
            found.append(line[:200])
    return found


def wait_for(what: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.2)


def statuses(record: RunRecord, attack: str) -> list[str]:
    return [cell.status for cell in record.cells if cell.attack.name == attack]


def costly(marks: Path, way: str, tries: int, limits: Limits | None = None) -> RunRecord:
    attacks = (Costly(way=way, marks=str(marks), tries=tries), "matching")
    return evaluate(tiny(**FEW, attacks=attacks), ray="local", limits=limits)


def test_the_numbers_of_one_process_of_two_and_of_ray_are_equal(short: Path) -> None:
    alone = timeless(evaluate(tiny(), workers=1))
    assert timeless(evaluate(tiny(), workers=2)) == alone
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    apart = evaluate(tiny(), ray="local")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert timeless(apart) == alone
    assert not of_ray(short)
    assert not list(short.glob("vleak-*"))


def test_an_address_that_accepts_and_says_nothing() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begin = time.monotonic()
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(
            VleakError, match=rf"^ray={place} cannot be used: no Ray answers within 10 seconds"
        ):
            evaluate(tiny(), ray=place)
    assert time.monotonic() - begin < 60, "Ray itself takes two minutes, and then ends the process"


def test_of_python(connection: None, tmp_path: Path) -> None:
    given: dict[str, Any] = {"clips": 2, "frames": 4, "size": 16, "iterations": 2, "attacks": "matching"}
    run = vleak.evaluate(**given, defenses="none", out=tmp_path / "run", ray="local")
    assert {cell.status for cell in run.cells} == {"ok"}
    assert run.pictures(run.cells[-1])["reconstruction"].shape == (3, 4, 16, 16)


def test_a_worker_that_dies_is_replaced(connection: None, tmp_path: Path) -> None:
    record = costly(tmp_path, "die", tries=2)
    assert {cell.status for cell in record.cells} == {"ok"}
    assert len(list(tmp_path.iterdir())) == 1 + 2


@pytest.mark.parametrize(
    ("way", "limits", "status"),
    [
        ("leave", None, "failed: ended its process, or lost its node, 3 times"),
        ("hang", Limits(seconds=20), "failed: took longer than cell_seconds=20, 3 times"),
        ("interrupt", None, "failed: raised KeyboardInterrupt, 3 times"),
    ],
)
def test_a_cell_that_fails_three_times_is_recorded_and_the_others_go_on(
    way: str, limits: Limits | None, status: str, connection: None, tmp_path: Path
) -> None:
    record = costly(tmp_path, way, tries=10**6, limits=limits)
    assert statuses(record, "costly") == [status]
    assert statuses(record, "matching") == ["ok"]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("way", ["fork", "print"])
def test_plug_ins_that_fork_or_print_change_nothing(way: str, connection: None, tmp_path: Path) -> None:
    assert {cell.status for cell in costly(tmp_path, way, tries=10**6).cells} == {"ok"}


def test_memory_beyond_the_limit_fails_the_cell_only(connection: None, tmp_path: Path) -> None:
    record = costly(tmp_path, "fill", tries=10**6, limits=Limits(gibibytes=4))
    (status,) = statuses(record, "costly")
    assert status.startswith("failed: attack 'costly' ran out of memory; lower to ")
    assert statuses(record, "matching") == ["ok"]


def test_what_cannot_be_sent_is_named(connection: None, tmp_path: Path) -> None:
    attack = Costly(way="print", marks=str(tmp_path), tries=0)
    attack.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(
        InputError, match=r"^attack 'costly' cannot be sent to the workers of Ray: cannot pickle"
    ):
        evaluate(tiny(**FEW, attacks=(attack,)), ray="local")


def test_a_node_of_another_version_is_refused(connection: None, monkeypatch: pytest.MonkeyPatch) -> None:
    own = cluster._versions()
    monkeypatch.setattr(cluster, "_versions", lambda: own | {"vleak": "9.9"})
    with pytest.raises(VleakError, match=r"^node .* has vleak 0\.1\.0, this machine 9\.9; install the same"):
        evaluate(tiny(**FEW), ray="local")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_driver_that_ends_leaves_no_process_of_ray(
    number: signal.Signals, code: int, short: Path, tmp_path: Path
) -> None:
    arguments = options(clips=6, iterations=60, enhance="none")
    process = start(["evaluate", *arguments, "--ray", "local", "--out", "run"], tmp_path)
    try:
        wait_for(lambda: journal_length(tmp_path / "run") >= 1)
        process.send_signal(number)
    except BaseException:
        process.kill()
        raise
    ended, out, err = finish(process)
    assert (ended, out) == (code, "")
    if number != signal.SIGKILL:
        assert err.splitlines()[-1].startswith("vleak: stopped, ")
        assert not of_ray(short)
    wait_for(lambda: not of_ray(short), 20)
    kept = journal_length(tmp_path / "run")
    changes: dict[str, Any] = {"clips": 6, "iterations": 60, "enhance": "none"}
    assert 1 <= kept < 24
    resumed = evaluate(tiny(**changes), tmp_path / "run", workers=2)
    assert timeless(resumed) == timeless(evaluate(tiny(**changes), workers=2))


def test_a_cluster_by_its_address(short: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Where this user has a token, a cluster asks for it; Ray sends none to an address unless told to.
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "RAY_AUTH_MODE": "disabled"}
    script = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
    head = subprocess.Popen(
        [sys.executable, "-c", script, "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
         "--include-dashboard=false", f"--temp-dir={short}/ray",
         "--object-store-memory=200000000", "--disable-usage-stats"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=env,
    )  # fmt: skip
    try:
        wait_for(lambda: any("raylet/raylet " in line for line in of_ray(short)))
        wait_for(lambda: not socket.socket().connect_ex(("127.0.0.1", port)))
        done = subprocess.run(
            [*VLEAK, "evaluate", *options(), "--ray", f"127.0.0.1:{port}", "--out", str(tmp_path / "run")],
            capture_output=True, text=True, timeout=240, env=env,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert any("raylet" in line for line in of_ray(short)), "the cluster is not the run's to end"
    finally:
        head.terminate()
        head.wait(30)
    assert timeless(vleak.load_run(tmp_path / "run").record) == timeless(evaluate(tiny(), workers=1))
