"""The command line: full disks, readers that went away, and out at any moment with Ctrl-C."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import files, finish

from runs import DP, TINY, VLEAK, journal_length, options, start, tiny, without_time
from vleak.cli import run
from vleak.evaluation import evaluate
from vleak.results import read_run


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder; warnings stay errors, also where the command line would print them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", None)


# --- streams that end -------------------------------------------------------------------------------------


def test_nobody_reads_stdout() -> None:
    process = subprocess.Popen(
        [*VLEAK, "list", "data"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (2, "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_stdout_is_full(tmp_path: Path) -> None:
    evaluate(tiny(clips=1, defenses=("none",)), tmp_path / "run")
    for arguments, message in (
        (["list", "data"], "cannot write to stdout: No space left on device; send it elsewhere"),
        (
            ["evaluate", *options(clips=1, defense="none"), "--out", "run", "--json"],
            "cannot write the results to stdout: No space left on device; they are in run/results.json",
        ),
    ):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*VLEAK, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
            )
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == f"vleak: {message}"
        assert "Exception" not in done.stderr


# --- full disks -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_full_disk_keeps_what_is_finished(tmp_path: Path) -> None:
    limit = 20_000  # bytes of a file: enough for every picture and some lines of the journal
    script = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, -1)); {VLEAK[2]}"
    done = subprocess.run(
        [sys.executable, "-c", script, "evaluate", *options(), "--workers", "1", "--out", "run"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    kept = journal_length(tmp_path / "run")
    assert 1 <= kept < 12
    assert re.fullmatch(
        rf"vleak: cannot write to run: .*; {kept} finished cells are safe, free space and start it again "
        r"with --out run\n",
        done.stderr,
    )
    assert len(read_run(tmp_path / "run").cells) == kept
    assert not [name for name in files(tmp_path / "run") if name.rpartition("/")[2].startswith(".r")]
    resumed = evaluate(tiny(), tmp_path / "run")
    assert without_time(resumed) == without_time(evaluate(tiny()))


# --- out at any moment ------------------------------------------------------------------------------------


def interrupted(arguments: list[str], signal_: signal.Signals, delay: float) -> tuple[int, str, str]:
    """Run the command line in a process that gets the signal so long after its own start-up."""
    script = (
        "import os, signal, sys, threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from vleak.cli import main, stopping\n"
        "listen = stopping.listen\n"
        "def listening():\n"
        "    listen()\n"
        f"    timer = threading.Timer({delay}, os.kill, (os.getpid(), {int(signal_)}))\n"
        "    timer.daemon = True\n"
        "    timer.start()\n"
        "stopping.listen = listening\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("signal_", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
@pytest.mark.parametrize("delay", [0.0, 0.2])
def test_interrupted_in_the_first_moments(signal_: signal.Signals, delay: float, tmp_path: Path) -> None:
    code, out, err = interrupted(["evaluate", *options(iterations=10**6), "--out", "run"], signal_, delay)
    assert (code, out) == (128 + signal_, "")
    assert err in ("vleak: stopped\n", "vleak: stopped before the first cell; nothing was kept\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.04 * step for step in range(30)])
def test_interrupted_at_any_moment_of_loading(delay: float) -> None:
    code, out, err = interrupted(["evaluate", *options(iterations=10**6)], signal.SIGINT, delay)
    assert (code, out) == (130, "")
    assert re.fullmatch(r"vleak: stopped[^\n]*\n", err)


@pytest.fixture
def long_run(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start runs that would take hours, each until its attack is under way."""
    started: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        arguments = ["evaluate", *options(iterations=10**6, defense="none"), "--workers", "2", "--out=my run"]
        started.append(start(arguments, tmp_path))
        deadline = time.monotonic() + 60
        while journal_length(tmp_path / "my run") < 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "resumed", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["stopped", "resumed"]
)
def test_interrupted_in_the_attack_and_resumed_by_the_printed_command(
    resumed: bool, long_run: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = long_run()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # as from a wrapper that passes it on
    code, out, err = finish(process)
    assert (code, out) == (130, "")
    printed = re.fullmatch(r"vleak: stopped, 6 finished cells are kept; to resume: vleak (.*)\n", err)
    assert printed is not None, err
    arguments = shlex.split(printed.group(1))
    assert arguments == [
        "evaluate",
        *options(iterations=10**6, defense="none"),
        "--workers",
        "2",
        "--out",
        "my run",
    ]
    assert len(read_run(tmp_path / "my run").cells) == 6
    if not resumed:
        return
    before = (tmp_path / "my run" / "cells.jsonl").read_bytes()
    again = start(arguments, tmp_path)
    deadline = time.monotonic() + 60
    while not holds_the_lock(tmp_path / "my run") and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    again.send_signal(signal.SIGTERM)
    assert finish(again) == (143, "", err)
    assert (tmp_path / "my run" / "cells.jsonl").read_bytes() == before


def holds_the_lock(folder: Path) -> bool:
    import fcntl

    with open(folder / ".lock") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def test_a_job_in_the_background_does_not_hear_ctrl_c() -> None:
    script = (
        "import os, signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from vleak.cli import stopping\n"
        "stopping.listen(); os.kill(os.getpid(), signal.SIGINT)\n"
        "print('deaf', stopping.asked())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("deaf False\n", "")


def test_running_it_in_process_leaves_the_signals_alone(capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run(["list", "data"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_interrupt_in_process_is_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vleak.api.evaluate", stop)
    assert run(["evaluate", *options(defense=DP)]) == 130
    assert capfd.readouterr().err == "vleak: stopped before the first cell; nothing was kept\n"
    monkeypatch.setattr("vleak.api.load_run", stop)
    assert run(["report", "run"]) == 130
    assert capfd.readouterr().err == "vleak: stopped\n"


# --- threads that do not answer ---------------------------------------------------------------------------

STUCK = """
import time
from vleak import Attack

class Stuck(Attack):
    name, takes = "stuck", frozenset({"frames"})

    def prepare(self, observation, generator, hooks):
        while True:
            time.sleep(0.01)
"""


def stuck(folder: Path, signals: list[signal.Signals], before: str = "") -> tuple[int, str, float]:
    """Send signals to a run whose attack never ends; return exit code, stderr, and seconds until then."""
    (folder / "stuck.py").write_text(STUCK)
    given = {**TINY, "clips": 1, "defense": "none", "attack": "stuck:Stuck", "enhance": "none"}
    named = {name.replace("_", "-"): value for name, value in given.items()}
    arguments = [part for name, value in named.items() for part in (f"--{name}", str(value))]
    process = start(["evaluate", *arguments, "--out", "run"], folder, before)
    deadline = time.monotonic() + 60
    while journal_length(folder / "run") < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None
    began = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.1)
    try:
        code, out, err = finish(process)
    finally:
        process.kill()
    assert out == ""
    return code, err, time.monotonic() - began


@pytest.mark.parametrize("signal_", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_second_signal_ends_at_once_what_does_not_answer(signal_: signal.Signals, tmp_path: Path) -> None:
    short = "from vleak.cli import stopping; stopping._GRACE = 0.2; " if signal_ == signal.SIGINT else ""
    code, err, seconds = stuck(tmp_path, [signal_] * 2, short)
    assert code == 128 + signal_
    assert seconds < 6  # the grace of 2, which the slow test waits for, and the time of a busy machine
    assert err.startswith("vleak: stopped, 2 finished cells are kept; to resume: vleak evaluate ")
    assert err.count("\n") == 1
    assert len(read_run(tmp_path / "run").cells) == 2


@pytest.mark.slow
@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGHUP])
def test_one_signal_of_the_system_ends_at_last_what_does_not_answer(
    signal_: signal.Signals, tmp_path: Path
) -> None:
    code, err, seconds = stuck(tmp_path, [signal_])
    assert (code, len(read_run(tmp_path / "run").cells)) == (128 + signal_, 2)
    assert 4 < seconds < 15
    assert err.startswith("vleak: stopped, 2 finished cells are kept")
