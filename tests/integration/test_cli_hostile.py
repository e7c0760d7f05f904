"""The command line given odd and hostile things: one line, no traceback, no hang."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from videos import noise, write_video

from runs import VLEAK, options, tiny
from vleak.cache import cache_folder
from vleak.cli import run, stopping
from vleak.errors import InputError, first_line
from vleak.evaluation import evaluate
from vleak.files import read_regular
from vleak.registry import load_object
from vleak.results import read_run
from vleak.study import Study, run_study

SMALL = options(clips=1, defense="none", iterations=2, enhance="none")
RESUME = ["evaluate", *SMALL, "--out", "run"]
REPORT = ["report", "run"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder; what hangs fails."""

    def hangs(number: int, frame: object) -> NoReturn:
        pytest.fail("it hangs")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", None)
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a finished run."""
    folder = tmp_path_factory.mktemp("hostile") / "run"
    evaluate(tiny(clips=1, defenses=("none",), iterations=2, enhance="none"), folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """Copy the run to `run`."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def refusal(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Run what must be refused by one line; return the line."""
    assert run(arguments) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"vleak: [^\n]+\n", shown.err), shown.err
    assert "internal error" not in shown.err
    assert len(shown.err) < 2000
    return shown.err


# --- files that are none ----------------------------------------------------------------------------------


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name if path.parent == Path() else os.path.relpath(path))


KINDS: dict[str, Callable[[Path], None]] = {
    "a named pipe": os.mkfifo,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
}


@pytest.mark.parametrize("name", ["results.json", "run.json", "cells.jsonl"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_at_once(
    kind: str, name: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / name).unlink()
    KINDS[kind](folder / name)
    assert f"it is {kind}, expected a regular file" in refusal(REPORT, capfd)


@pytest.mark.parametrize("name", ["run.json", "cells.jsonl", ".lock"])
def test_no_run_goes_on_in_a_named_pipe(name: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert "it is a named pipe, expected a regular file" in refusal(RESUME, capfd)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_and_paths_that_are_no_regular_files(
    kind: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "clips.npy").unlink()
    KINDS[kind](folder / "clips.npy")
    assert run(REPORT) == 0  # without pictures
    capfd.readouterr()
    KINDS[kind](Path("odd"))
    if kind != "a folder":
        assert f"it is {kind}" in refusal(["report", "odd"], capfd)
        assert "odd is a file; give a folder" in refusal(["evaluate", *SMALL, "--out", "odd"], capfd)


def test_a_file_beyond_the_limit_is_not_read(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.truncate(folder / "results.json", 2**31)
    assert "it has 2147483648 bytes, the limit is 536870912" in refusal(REPORT, capfd)
    (folder / "whole").write_bytes(b"1234")
    assert read_regular(folder / "whole", 4) == b"1234"
    with pytest.raises(OSError, match="it has 4 bytes, the limit is 3"):
        read_regular(folder / "whole", 3)


# --- records ----------------------------------------------------------------------------------------------

DAMAGED: dict[str, bytes] = {
    "objects without end": b'{"a":' * 100_000,
    "lists without end": b"[" * 200_000,
    "no UTF-8": b'\xff\xfe{"schema_version": 2}',
    "empty": b"",
    "zeros": bytes(1000),
    "NaN": b'{"schema_version": NaN}',
    "beyond float": b'{"schema_version": 1e999}',
    "beyond int": b'{"schema_version": ' + b"9" * 6000 + b"}",
    "no object": b"null",
    "twice": b'{"schema_version": 2, "schema_version": 3}',
    "surrogate": b'{"schema_version": 2, "\\ud800": "\\ud800"}',
}


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("name", ["results.json", "run.json"])
def test_records_that_are_none(
    name: str, content: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if name == "run.json":
        (folder / "results.json").unlink()
    (folder / name).write_bytes(DAMAGED[content])
    assert name in refusal(REPORT, capfd)


def test_a_key_that_is_there_twice_is_named(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = folder / "results.json"
    path.write_bytes(path.read_bytes().replace(b'"settings": {', b'"settings": {"frames": 4, ', 1))
    assert "the key 'frames' is there twice" in refusal(REPORT, capfd)


def test_records_with_a_byte_order_mark_are_read(folder: Path) -> None:
    whole = read_run(folder)
    path = folder / "results.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_run(folder) == whole


LINES: dict[str, bytes] = {
    "no fields": b'{"id": "a"}',
    "NaN": b'{"id": "a", "clip_index": NaN}',
    "infinity": b'{"id": "a", "scores": -Infinity}',
    "a list as id": b'{"id": ["a"]}',
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_journal_that_is_no_cell(
    line: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "results.json").unlink()
    lines = (folder / "cells.jsonl").read_bytes()
    (folder / "cells.jsonl").write_bytes(LINES[line] + b"\n" + lines)
    assert "cells.jsonl, line 1: " in refusal(REPORT, capfd)


@pytest.mark.parametrize("line", [DAMAGED["lists without end"], DAMAGED["no UTF-8"], b"\xff"])
def test_what_follows_a_torn_line_is_left_out(line: bytes, folder: Path) -> None:
    (folder / "results.json").unlink()
    first, *_ = (folder / "cells.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "cells.jsonl").write_bytes(first + line + b"\n")
    assert len(read_run(folder).cells) == 1


@pytest.mark.slow
@pytest.mark.parametrize("value", [10**400, -(10**30), float("nan"), "\ud800", {}])
@pytest.mark.parametrize(
    "path",
    [("planned_cells",), ("data", "clips"), ("settings", "frames"), ("models", 0, "chance"),
     ("cells", 0, "clip_index"), ("cells", 0, "attack", "seconds"),
     ("cells", 0, "scores", "psnr_db"), ("cells", 0, "scores", "candidates"),
     ("cells", 0, "update", "bytes")],
    ids=lambda path: ".".join(map(str, path)),
)  # fmt: skip
def test_a_value_that_cannot_be(
    path: tuple[str | int, ...], value: object, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("run.json", "cells.jsonl"):
        (folder / name).unlink()
    content: Any = json.loads((folder / "results.json").read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (folder / "results.json").write_text(json.dumps(content))
    code = run(REPORT)
    shown = capfd.readouterr()
    assert (code, shown.out) in ((0, ""), (2, ""))
    assert code == 0 or re.fullmatch(r"vleak: [^\n]+\n", shown.err), shown.err
    assert "internal error" not in shown.err


# --- numbers ----------------------------------------------------------------------------------------------

NUMBERS: dict[str, str] = {
    "--iterations 1000000000000": "--iterations 1000000000000: expected at most 1000000",
    "--restarts 1000000000": "--restarts 1000000000: expected at most 1000",
    "--segments 1000000000": "--segments 1000000000: expected at most 10000",
    "--segments -1": "--segments -1: expected at least 1",
    "--workers 1000000000": "--workers 1000000000: expected a whole number from 1 to 1024",
    "--attack matching:iterations=1000000000000": "--iterations 1000000000000: expected at most",
    "--attack matching:restarts=1000000000000": "--restarts 1000000000000: expected at most 1000",
    "--seed 18446744073709551616": "--seed 18446744073709551616: expected a whole number from 0",
    "--frames 1000000000000": "--frames 1000000000000: expected a whole number from 2",
    "--size " + "9" * 5000: "expected a whole number, got '999",
    "--clips nan": "expected a whole number, got 'nan'",
    "--reference-frames -1": "--reference-frames -1: expected numbers from 0",
    "--reference-frames 1000000000000": "--reference-frames 1000000000000: expected a whole number",
    "--reference-frames ,": "--reference-frames ',': expected whole numbers with commas",
    "--defense dp:noise_multiplier=1e-320": "noise_multiplier is 1e-320, expected 0 or at least 1e-200",
    "--defense dp:noise_multiplier=1e308": "and their product to be at most 1e+12",
    "--defense dp:noise_multiplier=nan": "noise_multiplier takes a finite number, got 'nan'",
    "--defense dp:noise_multiplier=inf": "noise_multiplier takes a finite number, got 'inf'",
    "--defense dp:max_grad_norm=1e-320": "max_grad_norm is 1e-320, expected at least 1e-12",
    "--defense dp:max_grad_norm=1e300": "expected max_grad_norm and their product to be at most 1e+12",
    "--defense dp:max_grad_norm=-0.0": "max_grad_norm is -0.0, expected a finite number above 0",
    "--defense dp:delta=5e-324": "delta is 5e-324, expected at least 1e-300",
    "--defense dp:sample_rate=1e-320": "sample_rate is 1e-320, expected at least 1e-12",
    "--defense dp:rounds=1" + "0" * 400: "expected at most 1e+12",
    "--defense dp:rounds=" + "9" * 5000: "rounds takes a whole number",
}
STUDIES: dict[str, str] = {
    "--size 0": "--size 0: expected a whole number from 8 to 1024",
    "--size -1": "--size -1: expected a whole number from 8 to 1024",
    "--size 1000000000": "--size 1000000000: expected a whole number from 8 to 1024",
    "--frames 0": "--frames 0: expected a whole number from 2 to 1024",
    "--stride 0": "--stride 0: expected a whole number from 1",
    "--clips 1000000000": "--clips 1000000000: expected a whole number from 1",
    "--seed -1": "--seed -1: expected a whole number from 0",
    "--quick --frames 1000000000": "--frames 1000000000: expected a whole number from 2",
    "--quick --iterations 1000000000": "--iterations 1000000000: expected at most 1000000",
    "--iterations 0": "--iterations 0: expected at least 1",
    "--iterations 1000000000000": "--iterations 1000000000000: expected at most",
    "--workers 0": "--workers 0: expected a whole number from 1 to 1024",
}
TRAININGS: dict[str, str] = {
    "c3d_small --size 0": "--size 0: expected a whole number from 8 to 1024",
    "c3d_small --size -1": "--size -1: expected a whole number from 8 to 1024",
    "frame_cnn --frames 1000000000": "--frames 1000000000: expected a whole number from 2 to 1024",
    "network --size 1024 --frames 1024": "GiB, the limit is 4 GiB",
    "c3d_small --size 1024 --frames 1024": "GiB, the limit is 4 GiB",
}
COMMANDS = {
    **{f"evaluate {given}": message for given, message in NUMBERS.items()},
    **{f"study {given}": message for given, message in STUDIES.items()},
    **{f"train {given}": message for given, message in TRAININGS.items()},
    "bench --frames 1000000000000": "--frames 1000000000000: expected a whole number from 2",
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda text: text[:60])
def test_numbers_that_no_machine_could_run(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert COMMANDS[command] in refusal(command.split(), capfd)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_no_bug(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*given: object, **named: object) -> NoReturn:
        raise error

    monkeypatch.setattr("vleak.api.evaluate", full)
    assert "not enough memory; lower --clips" in refusal(["evaluate", *SMALL], capfd)


def test_minus_zero_is_zero() -> None:
    from vleak.defenses import DEFENSES, defense_text

    assert defense_text(DEFENSES.build("dp:noise_multiplier=-0.0")) == "dp:noise_multiplier=0.0"


def test_a_study_of_the_library_is_refused_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="size=0: expected a whole number from 8"):
        run_study(Study(size=0), tmp_path / "study")


# --- names ------------------------------------------------------------------------------------------------

LONG = "x" * 5000
NAMES: dict[tuple[str, str], str] = {
    ("--defense", ""): "unknown defense ''",
    ("--defense", ","): "unknown defense ','",
    ("--defense", "dp:="): "unknown setting of defense dp ''",
    ("--defense", "dp:noise_multiplier"): "expected dp:setting=value, got 'noise_multiplier'",
    ("--defense", "dp\n"): r"unknown defense 'dp\n'; did you mean dp?",
    ("--defense", "\x1b[31mdp"): "unknown defense",
    ("--defense", "sys:exit"): "defense 'sys:exit' (sys:exit) cannot be made: SystemExit",
    ("--metric", ""): "unknown metric ''",
    ("--metric", "sys:exit"): "metric 'sys:exit' (sys:exit) cannot be made: SystemExit",
    ("--model", "a\0b:c"): "cannot import",
    ("--model", ".a:x"): "cannot import",
    ("--data", "a\udcff.mp4"): "does not exist",
    ("--data", "a\0b"): "data",
    ("--data", LONG): "data",
    ("--out", "file"): "--out file is a file; give a folder",
    ("--out", "file/below"): "--out file/below cannot be used: Not a directory",
    ("--out", LONG): "cannot be used: File name too long",
    ("--out", "a\0b"): "null byte",
    ("--nope", "x"): "No such option: --nope",
    ("--enhance", "spandrel:/"): "spandrel",
    ("--reference-frames", "1.0"): "expected whole numbers with commas",
}


@pytest.mark.parametrize("given", NAMES, ids=lambda given: ascii(" ".join(given))[1:50])
def test_odd_names(given: tuple[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("mine")
    assert NAMES[given] in refusal(["evaluate", *SMALL, *given], capfd)


# --- plug-ins ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    ["SystemExit", pytest.param("GeneratorExit", marks=pytest.mark.slow), "KeyboardInterrupt", "os._exit"],
)
def test_what_ends_the_program_fails_its_cell_alone(
    how: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "_exit", os._exit)  # to put it back
    stopping.guard_exit()
    raised = "SystemExit: os._exit(0)" if how == "os._exit" else f"{how}: enough"
    parts = ["--defense", f"hostile_parts:Leaver:how={how}", "--attack", f"hostile_parts:Quitter:how={how}"]
    arguments = ["evaluate", *SMALL, *parts, "--attack", "matching", "--out", "run", "--json"]
    assert run(arguments) == 2
    shown = capfd.readouterr()
    last = shown.err.splitlines()[-1]
    assert last.startswith("vleak: no result for ")
    assert raised in last
    cells = {(cell.defense.name, cell.attack.name): cell.status for cell in read_run(Path("run")).cells}
    assert cells["none", "matching"] == "ok"
    assert json.loads(shown.out)["cells"]
    assert sum(raised in status for status in cells.values()) == 3


ODD: dict[str, tuple[str, str]] = {
    "raises at import": ("raise BaseException('x')", "cannot import 'odd': BaseException: x"),
    "ends at import": ("raise SystemExit('x')", "cannot import 'odd': SystemExit: x"),
    "no Python": ("\0", "cannot import 'odd': "),
    "raises at the name": ("def __getattr__(n): raise ValueError('z')", "'odd' looks for 'A': ValueError: z"),
    "takes nothing": (
        "from vleak import Attack\nclass A(Attack):\n  takes = None\n  def prepare(self, *given): ...",
        "takes of A is None, expected a set of frames and features",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_plug_in_that_cannot_be_used(
    kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text, message = ODD[kind]
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("odd.py").write_text(text)
    try:
        assert message in refusal(["evaluate", *SMALL, "--attack", "odd:A"], capfd)
    finally:
        sys.modules.pop("odd", None)


def test_an_error_whose_text_is_no_text() -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert first_line(OddError()) == "its text raises ValueError"
    assert first_line(ValueError("a\udcff\nb")) == r"a\udcff"


def test_a_folder_whose_name_is_no_text(capfd: pytest.CaptureFixture[str]) -> None:
    folder = Path("a\udcff")
    folder.mkdir()
    write_video(folder / "v.mkv", noise(16))
    assert run(["evaluate", *SMALL, "--data", str(folder), "--out", "run"]) == 0
    assert read_run(Path("run")).settings.data == r"a\udcff"


PACKAGES = ("opacus", "torch", "rich", "typer", "yaml", "pydantic", "safetensors")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """Run of plug-ins that print and close stdout, in a folder whose files have the names of packages."""
    folder = tmp_path_factory.mktemp("packages")
    for name in PACKAGES:
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong one')\n")
    parts = [
        "--defense", "hostile_parts:Leaver:how=print", "--defense", "dp_hooks:noise_multiplier=1",
        "--attack", "hostile_parts:Quitter:how=close", "--metric", "hostile_parts:Judge:how=print",
    ]  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "vleak.cli", "evaluate", *SMALL, *parts, "--engine", "reference", "--json"],
        capture_output=True, text=True, timeout=120, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "support")},
    )  # fmt: skip


def test_stdout_has_the_results_alone(done: subprocess.CompletedProcess[str]) -> None:
    assert "hello from a plug-in" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(json.loads(done.stdout)["cells"]) >= 4


# --- surroundings -----------------------------------------------------------------------------------------


def test_files_of_the_working_folder_do_not_stand_in_for_packages(
    done: subprocess.CompletedProcess[str],
) -> None:
    assert "the wrong one" not in done.stdout + done.stderr
    cells = [cell for cell in json.loads(done.stdout)["cells"] if cell["defense"]["name"] == "dp_hooks"]
    assert cells
    # They came past the defense, which needs opacus, and failed at the stdout that a plug-in closed.
    assert all(cell["status"].endswith("I/O operation on closed file.") for cell in cells)


def test_a_module_of_the_working_folder_is_found_and_its_folder_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "wave.py").write_text("import hostile_neighbour\nthing = hostile_neighbour.thing\n")
    (tmp_path / "hostile_neighbour.py").write_text("thing = 'mine'\n")
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    try:
        assert load_object("model", "wave:thing") == "mine"  # not the one of the standard library
        assert sys.path[-1] == str(tmp_path)
    finally:
        for name in ("wave", "hostile_neighbour"):
            sys.modules.pop(name, None)


def test_no_home_is_said_and_not_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(OSError, match="the user has no home folder; set XDG_CACHE_HOME"):
        cache_folder("weights")


ENVIRONMENTS: dict[str, dict[str, str]] = {
    "no folder for temporary files": {"TMPDIR": "/nowhere/at/all"},
    "a read-only one": {"TMPDIR": "/proc"},
    "no folder for the cache": {"XDG_CACHE_HOME": "/dev/null/cache"},
    "a read-only cache": {"XDG_CACHE_HOME": "/proc/cache"},
    "output in ASCII": {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_odd_environments_have_a_normal_run(name: str) -> None:
    command = [*VLEAK, "evaluate", *SMALL, "--out", "run", "--json"]
    done = subprocess.run(
        command, capture_output=True, timeout=300, env={**os.environ, **ENVIRONMENTS[name]}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode("ascii" if "ASCII" in name else "utf-8"))["cells"]
    assert b"Traceback" not in done.stderr


FULL: dict[str, BaseException] = {
    "Python": MemoryError(),
    "the allocator": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    "a device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
}


@pytest.mark.parametrize("who", FULL)
def test_a_cell_that_runs_out_of_memory_says_what_would_fit(
    who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **named: object) -> NoReturn:
        raise FULL[who]

    monkeypatch.setattr("vleak.attacks.matching.matching.Matching.prepare", full)
    record = evaluate(tiny(clips=2, batch=(2,), defenses=("none",), iterations=2, enhance="none"))
    statuses = {cell.status for cell in record.cells if not cell.attack.baseline}
    assert statuses == {
        "failed: attack 'matching' ran out of memory; lower to batch=1, frames=2 or size=8, workers=1"
    }


SHELL: dict[str, tuple[int, str]] = {
    "--version >&-": (2, "vleak: cannot write to stdout: Bad file descriptor; send it elsewhere\n"),
    "list nothing 2>&-": (2, ""),
    "list nothing >&- 2>&- <&-": (2, ""),
    "list nothing 2>/dev/full": (2, ""),
    "--version >/dev/full 2>&1": (2, ""),
}


@pytest.mark.parametrize("line", SHELL)
def test_streams_that_are_closed_or_full(line: str) -> None:
    command = f'exec "$0" -c "from vleak.cli import main; main()" {line}'
    done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == SHELL[line]


def test_a_working_folder_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    try:
        line = refusal(["evaluate", *SMALL, "--data", "x"], capfd)
        assert "the working folder is gone; change to another" in line
        assert "cannot import 'x'" in refusal(["evaluate", *SMALL, "--model", "x:y"], capfd)
    finally:
        os.chdir(tmp_path)
