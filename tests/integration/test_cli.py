"""The command line: one JSON on stdout, one line for every mistake, and out at any moment with Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_data_video import noise, write_video

from runs import DP, VLEAK, journal_length, options, start, tiny, without_time
from vleak.cli import run
from vleak.evaluation import evaluate
from vleak.results import read_results

SUPPORT = Path(__file__).resolve().parents[1] / "support"
ODD = Path(os.environ.get("VLEAK_TEST_DATA", SUPPORT.parents[2] / "shared" / "data")) / "odd"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder; warnings stay errors, also where the command line would print them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", None)


def files(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*")}


def vleak(*arguments: str, **given: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*VLEAK, *arguments], capture_output=True, text=True, timeout=120, **given)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


# --- what it says -----------------------------------------------------------------------------------------


def test_version_and_help_are_quick_and_alone_on_stdout() -> None:
    from vleak import __version__

    light = (
        "import sys; from vleak.cli import run; code = run({}); assert 'torch' not in sys.modules; exit(code)"
    )
    for arguments, expected in (
        (["--version"], rf"{re.escape(__version__)}\n"),
        (["--help"], "(?s).*Usage: vleak"),
    ):
        script = light.format(arguments)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.match(expected, done.stdout)
        assert "Options" not in done.stdout or "evaluate" in done.stdout


def test_importing_vleak_is_light() -> None:
    script = (
        "import sys, vleak; print(sorted({'torch', 'numpy', 'rich', 'typer', 'av'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_of_vleak_can_be_had() -> None:
    import vleak

    assert [name for name in vleak.__all__ if not hasattr(vleak, name)] == []
    assert sorted({*vleak.__all__, "__version__"}) == sorted(dir(vleak))
    with pytest.raises(AttributeError, match="module 'vleak' has no attribute 'nothing'"):
        vleak.nothing  # noqa: B018


def test_evaluate_prints_one_json_and_shows_the_table_elsewhere(tmp_path: Path) -> None:
    done = vleak("evaluate", *options(), "--out", "run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "run" / "results.json").read_text())
    assert "What still leaks? synthetic, 3 clips, c3d_tiny untrained" in done.stderr
    assert "dp σ=0.1" in done.stderr
    assert "report: run/report.html" in done.stderr
    assert "vleak: " not in done.stderr  # a warning would begin so
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert without_time(json.loads(done.stdout)) == without_time(evaluate(tiny(), tmp_path / "again"))


def test_evaluate_without_json_leaves_stdout_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", *options(clips=2, defense="none")]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}", folder.name)
    assert f"report: runs/{folder.name}/report.html" in shown.err
    assert len(read_results(folder)["cells"]) == 6


def test_every_option_reaches_the_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {
        "data": "synthetic", "pipeline": "raw", "model": "c3d_tiny_pool", "training-state": "early",
        "clips": 2, "frames": 5, "size": 17, "stride": 3, "restarts": 2, "iterations": 2, "seed": 4,
        "labels": "granted", "device": "cpu", "engine": "reference", "workers": 1, "extractor": "frame_cnn",
        "head": "mlp:depth=3", "loss": "ranking", "segments": 7, "enhance": "none",
    }  # fmt: skip
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    assert (
        run(
            [
                "evaluate",
                *flags,
                "--defense",
                "none",
                "--defense",
                "prune:fraction=0.5",
                "--reference-frames",
                "0,2",
                "--out",
                "run",
            ]
        )
        == 0
    )
    settings = json.loads((tmp_path / "run" / "results.json").read_text())["settings"]
    del given["workers"]  # no score depends on it
    assert settings == {name.replace("-", "_"): value for name, value in given.items()} | {
        "defenses": ["none", "prune:fraction=0.5"],
        "attacks": ["matching"],
        "reference_frames": [0, 2],
    }


def test_report_is_written_again_also_of_a_killed_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    evaluate(tiny(), folder)
    for missing in ("report.html", "results.json"):
        (folder / missing).unlink(missing_ok=True)
        assert run(["report", "run"]) == 0
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.splitlines()[-1] == "report: run/report.html"
        assert "σ=0.1" in (folder / "report.html").read_text(encoding="utf-8")


def test_report_of_a_stopped_run_says_so_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = evaluate(tiny(), tmp_path / "run")
    partial = results | {"cells": results["cells"][:10]}
    (tmp_path / "run" / "results.json").write_text(json.dumps(partial))
    journal = (tmp_path / "run" / "cells.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "cells.jsonl").write_text("".join(journal[:10]))
    assert run(["report", "run"]) == 0
    assert capsys.readouterr().err.splitlines()[0] == "10 of 12 cells finished; rows may be missing."
    (tmp_path / "run" / "results.json").unlink()
    assert run(["report", "run"]) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "10 cells finished, the run did not; rows may be missing."


def shown_table(results: dict[str, Any], width: int = 140) -> str:
    from rich.console import Console

    from vleak.cli.table import leak_table
    from vleak.results import summarise

    console = Console(width=width)
    with console.capture() as capture:
        console.print(leak_table(results, summarise(results), width))
    return capture.get()


def test_the_table_of_a_stopped_run_says_so_and_counts_one_clip(tmp_path: Path) -> None:
    results = evaluate(tiny(clips=1), tmp_path / "run")
    assert "synthetic, 1 clip, c3d_tiny" in shown_table(results)
    assert "rows may be missing" not in shown_table(results)
    stopped = shown_table(results | {"planned_cells": 9}).splitlines()
    caption = next(place for place, line in enumerate(stopped) if "in brackets:" in line)
    assert stopped[caption - 1].strip() == "4 of 9 cells finished; rows may be missing."


def test_a_long_label_leaves_room_for_the_verdict(tmp_path: Path) -> None:
    codecs = tuple(f"compress:codec=qsgd,bits=4,bucket={bucket}" for bucket in (64, 4096))
    results = evaluate(tiny(clips=1, iterations=1, defenses=codecs), tmp_path / "run")
    assert "qsgd 4 bit, bucket=4096" in shown_table(results)
    narrow = " ".join(shown_table(results, 80).split())
    assert "bucket=4096" in narrow
    assert "…" not in narrow


def test_the_table_prints_epsilon_as_the_report_does(tmp_path: Path) -> None:
    results = evaluate(tiny(clips=1), tmp_path / "run")
    for cell in results["cells"]:
        if cell["defense"]["name"] == "dp":
            cell["defense"]["epsilon"] = 498_765.0
    assert " 5.0e5 " in shown_table(results)


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("defenses", {"none", "dp", "prune", "compress"}),
        ("attacks", {"matching"}),
        ("models", {"c3d_tiny", "lrcn", "package.module:factory"}),
        ("data", {"synthetic", "PATH"}),
    ],
)
def test_list_gives_a_script_bare_names(
    kind: str, some: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["list", kind]) == 0
    shown = capsys.readouterr()
    assert some <= set(shown.out.splitlines())
    assert shown.err == ""


def test_list_tells_a_person_what_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vleak.cli.output.stdout_is_terminal", lambda: True)
    for kind in ("defenses", "attacks", "models", "data"):
        assert run(["list", kind]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for phrase in ("dp:noise_multiplier=1.0", "Gradient matching", "after C3D", "nothing to download"):
        assert phrase in text


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["torch"] == torch.__version__
    assert {"vleak", "python", "extension", "loop", "cuda", "cores", "what to do"} <= found.keys()
    assert all(isinstance(value, str) and value for value in found.values())
    assert shown.err == ""
    assert run(["doctor"]) == 0
    assert torch.__version__ in capsys.readouterr().out


def test_nothing_but_results_on_either_stream() -> None:
    """A warning of somebody else's package would show here."""
    for arguments in (["list", "attacks"], ["doctor", "--json"]):
        assert vleak(*arguments).stderr == ""


# --- mistakes ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the files and folders that a user might give by mistake."""
    root = tmp_path_factory.mktemp("things")
    for folder in ("empty", "letters", "posing", "thesis", "package"):
        (root / folder).mkdir()
    (root / "letters" / "a.txt").write_text("Dear Sir")
    (root / "posing" / "a.mp4").write_text("Dear Sir")
    (root / "thesis" / "thesis.tex").write_text("Chapter 1")
    (root / "text.mp4").write_text("Dear Sir")
    (root / "file").write_text("mine")
    (root / "syntax.py").write_text("def factory(:\n")
    (root / "exits.py").write_text("raise ValueError('no weights\\nfound')\n")
    write_video(root / "short.mkv", noise(3))
    whole = write_video(root / "whole.mkv", noise(40)).read_bytes()
    (root / "truncated.mkv").write_bytes(whole[: len(whole) // 2])
    sound = write_video(root / "corrupt.mkv", noise(40), "mpeg4").read_bytes()
    middle = len(sound) // 2
    (root / "corrupt.mkv").write_bytes(sound[:middle] + bytes(3000) + sound[middle + 3000 :])
    (root / "header.mkv").write_bytes(bytes(200) + whole[200:])
    shutil.copy(SUPPORT / "odd_models.py", root)
    evaluate(tiny(clips=2, defenses=("none",)), root / "other")
    return root


SMALL = ["--clips", "2", "--frames", "4", "--size", "16", "--iterations", "2"]
LONG = ["--clips", "2", "--frames", "8", "--stride", "2", "--size", "16"]
COMMANDS: dict[str, str] = {
    "evalute": "No such command 'evalute'. Did you mean 'evaluate'",
    "evaluate dp": "unexpected extra argument",
    "list": "expected defenses, attacks, models, extractors, heads, metrics, enhancers, data, such as ",
    "list defences": "unknown list 'defences'; did you mean defenses",
    "report": "Missing argument",
    "report nowhere": "nowhere does not exist; give the folder of a run",
    "report file": "file is no folder; give the folder of a run",
    "report empty": "empty holds no run",
}

#: after `vleak evaluate`
OPTIONS: dict[str, str] = {
    "--defence dp": "No such option: --defence",
    "--clips": "--clips",
    "--clips two": "'--clips': expected a whole number, got 'two'; see `vleak evaluate --help`",
    "--size 16.5": "'--size': expected a whole number, got '16.5'",
    "--data nowhere": "data 'nowhere': does not exist; give a video, a folder of videos, or 'synth",
    "--data sythetic": "data 'sythetic': does not exist; give a video",
    "--data empty": "data 'empty': the folder holds no files and no videos (.3g2, ",
    "--data letters": "data 'letters': the folder holds 1 other files and no videos",
    "--data posing": "a.mp4: is no video, or damaged at its start",
    "--data text.mp4": "text.mp4: is no video, or damaged at its start",
    "--data header.mkv": "header.mkv: is no video, or damaged at its start",
    "--data short.mkv": "short.mkv has 3 frames, 8 frames at stride 2 need 15; lower --frames",
    "--seed -1": "--seed -1: expected a whole number from 0 to",
    "--seed 9223372036854775808": "expected a whole number from 0 to 9223372036854775807",
    "--size 100000": "--size 100000: expected a whole number from 8 to 1024",
    "--frames 100000": "--frames 100000: expected a whole number from 2 to 1024",
    "--size 1024 --frames 1024": "take 3600.0 GiB, the limit is 4 GiB; lower --clips, --frames",
    "--defense dpp": "unknown defense 'dpp'; did you mean dp?",
    "--defense soteria": "unknown defense 'soteria'; known: compress, dp, none, prune",
    "--defense dp:noise_multipler=1": "'noise_multipler'; did you mean noise_multiplier?",
    "--defense dp:noise_multiplier=much": "noise_multiplier takes a number, got 'much'",
    "--defense dp:noise_multiplier=-1": "dp: noise_multiplier is -1.0, expected a finite number",
    "--defense prune:fraction=90": "prune: fraction is 90.0, expected 0 <= fraction < 1",
    "--attack match": "unknown attack 'match'; did you mean matching",
    "--training-state lat": "unknown training state 'lat'; did you mean late?",
    "--device gpu": "unknown device 'gpu'; did you mean cpu?",
    "--device cuda": "no CUDA device is visible to PyTorch; use --device cpu",
    "--engine nativ": "unknown engine 'nativ'; did you mean native?",
    "--pipeline video": "unknown pipeline 'video'; known: all, feature, raw",
    "--labels known": "unknown labels 'known'; known: granted, inferred",
    **{
        f"--{name} {value}": f"--{name} {value}: expected a whole number from "
        for name in ("clips", "frames", "size", "stride")
        for value in (0, -1)
    },
    **{
        f"--{name} {value}": f"--{name} {value}: expected at least 1"
        for name in ("restarts", "iterations", "workers")
        for value in (0, -1)
    },
}

#: after `vleak evaluate` with a tiny run
RUNS: dict[str, str] = {
    "--frames 8 --data truncated.mkv": "truncated.mkv: damaged: decoded",
    "--frames 8 --data corrupt.mkv": "corrupt.mkv: damaged: decoded",
    "--frames 8 --data whole.mkv --clips 9": "--clips 9 asked, but it gives 2; ask for at most 2",
    "--model c3d": "unknown model 'c3d'; did you mean c3d_tiny? (or package.module:factory)",
    "--model missing:factory": "cannot import 'missing': ModuleNotFoundError: No module",
    "--model odd_models:nothing": "'odd_models' has no 'nothing'",
    "--model odd_models:constant": "'odd_models:constant' is int, expected a class or a function",
    "--model odd_models:raising": "the factory raised KeyError: 'weights'",
    "--model odd_models:no_module": "returned a list, expected torch.nn.Module",
    "--model odd_models:Pair": "returned tuple for one clip, expected logits of shape (1, 6)",
    "--model odd_models:PerFrame": "returned (1, 4, 6) for one clip, expected logits",
    "--model odd_models:TwoClasses": "returned (1, 2) for one clip, expected logits",
    "--model odd_models:NoWeights": "has no parameters, so there is no update to attack",
    "--model odd_models:nan_weights": "weight 'conv.weight' of the model holds NaN",
    "--model odd_models:hard": "has no second derivative; replace nn.Hardsigmoid by relu6",
    "--model odd_models:Detached": "the clip has no finite influence on the model's gradient",
    "--model syntax:factory": "cannot import 'syntax': SyntaxError: invalid syntax",
    "--model exits:factory": "cannot import 'exits': ValueError: no weights",
    "--frames 8 --model odd_models:plain": "does not take a clip of shape (1, 3, 8, 16",
    "--out file": "--out file is a file; give a folder, new or of a stopped run",
    "--out file/below": "--out file/below cannot be used: Not a directory; give another",
    "--out thesis": "--out thesis holds something that is not a run of vleak; give a new",
    "--out other": "--out other holds another run: settings defenses is ['none'] there and",
}

SMALL = "evaluate --clips 2 --frames 4 --size 16 --iterations 2 "
MISTAKES = (
    COMMANDS
    | {"evaluate " + command: message for command, message in OPTIONS.items()}
    | {SMALL + command: message for command, message in RUNS.items()}
)


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_costs_one_line(
    command: str, things: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in command and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.chdir(things)
    monkeypatch.syspath_prepend(str(things))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = files(things)
    assert run(command.split()) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"vleak: [^\n]+\n", shown.err)
    assert "internal error" not in shown.err
    assert MISTAKES[command] in shown.err
    assert files(things) == before


@pytest.mark.skipif(not ODD.is_dir(), reason=f"no {ODD}: VLEAK_TEST_DATA names the folder with odd videos")
def test_odd_videos_work_or_cost_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    codes = {}
    for path in sorted(ODD.iterdir()):
        code = run(["evaluate", "--data", str(path), *options(clips=1, defense="none"), "--out", path.stem])
        shown = capfd.readouterr()
        codes[path.name] = code
        assert shown.out == ""
        assert code == 0 or re.fullmatch(rf"vleak: .*{re.escape(path.name)}[^\n]+\n", shown.err), shown.err
    assert codes.pop("corrupted.mp4", 0) in (0, 2)  # its first frames are sound
    assert codes.pop("h264_10bits.mp4", 0) == 0


def test_a_bare_command_shows_its_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    shown = capfd.readouterr()
    assert "Usage: vleak" in shown.out
    assert shown.err == ""


def test_a_bug_is_called_one(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object) -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr("vleak.results.summarise", broken)
    assert run(["evaluate", *options(clips=1, defense="none"), "--out", "run"]) == 2
    err = capfd.readouterr().err
    assert (
        err
        == "vleak: internal error, ZeroDivisionError: first; VLEAK_DEBUG=1 shows where, please report it\n"
    )
    monkeypatch.setenv("VLEAK_DEBUG", "1")
    assert run(["evaluate", *options(clips=1, defense="none"), "--out", "run"]) == 2
    assert "Traceback" in capfd.readouterr().err


def test_two_runs_at_once_do_not_share_a_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from vleak.results.store import Store

    evaluate(tiny(clips=1, defenses=("none",)), tmp_path / "run")
    header = json.loads((tmp_path / "run" / "run.json").read_text())
    with Store(tmp_path / "run", header):
        assert run(["evaluate", *options(clips=1, defense="none"), "--out", "run"]) == 2
    expected = "vleak: run is in use by another run; wait for it, or give another --out\n"
    assert capfd.readouterr().err == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    assert run(["evaluate", *options(), "--out", "shut/run"]) == 2
    expected = "vleak: --out shut/run cannot be used: Permission denied; give another folder\n"
    assert capfd.readouterr().err == expected


# --- streams that end -------------------------------------------------------------------------------------


def test_nobody_reads_stdout() -> None:
    process = subprocess.Popen(
        [*VLEAK, "list", "data"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (2, "")


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
        rf"vleak: cannot write to run: .*; {kept} finished cells are safe, free space and give the same "
        r"command with --out run\n",
        done.stderr,
    )
    assert len(read_results(tmp_path / "run")["cells"]) == kept
    assert not [name for name in files(tmp_path / "run") if name.rpartition("/")[2].startswith(".r")]
    resumed = evaluate(tiny(), tmp_path / "run")
    assert without_time(resumed) == without_time(evaluate(tiny(), tmp_path / "whole"))


def own_mounts() -> bool:
    """Tell whether this user may mount a file system that only its own processes see."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.skipif(not own_mounts(), reason="this user may not mount a small disk of its own")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    command = shlex.join([*VLEAK, "evaluate", *options(), "--out", "disk/run"])
    script = (
        f"mount -t tmpfs -o size=48k none disk || exit 9; {command} 2>first; echo $? >>first; "
        f"mount -o remount,size=8m disk; {command} 2>second; echo $? >>second; cp -r disk/run copy"
    )
    subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script], check=True, timeout=120
    )
    first, second = ((tmp_path / name).read_text().splitlines() for name in ("first", "second"))
    assert len(first) == 2
    assert re.match(
        r"vleak: cannot write to disk/run: No space left on device; \d+ finished cells are", first[0]
    )
    assert (first[-1], second[-1]) == ("2", "0")
    assert without_time(read_results(tmp_path / "copy")) == without_time(evaluate(tiny(), tmp_path / "whole"))


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


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2, 0.3])
def test_interrupted_in_the_first_moments(signal_: signal.Signals, delay: float, tmp_path: Path) -> None:
    code, out, err = interrupted(["evaluate", *options(iterations=10**6), "--out", "run"], signal_, delay)
    assert (code, out) == (2, "")
    assert err in ("vleak: stopped\n", "vleak: stopped before the first cell; nothing was kept\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.04 * step for step in range(30)])
def test_interrupted_at_any_moment_of_loading(delay: float) -> None:
    code, out, err = interrupted(["evaluate", *options(iterations=10**6)], signal.SIGINT, delay)
    assert (code, out) == (2, "")
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


def test_interrupted_in_the_attack_and_resumed_by_the_printed_command(
    long_run: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = long_run()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # as from a wrapper that passes it on
    code, out, err = finish(process)
    assert (code, out) == (2, "")
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
    assert len(read_results(tmp_path / "my run")["cells"]) == 6
    before = (tmp_path / "my run" / "cells.jsonl").read_bytes()

    again = start(arguments, tmp_path)
    deadline = time.monotonic() + 60
    while not holds_the_lock(tmp_path / "my run") and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    again.send_signal(signal.SIGTERM)
    assert finish(again) == (2, "", err)
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

    monkeypatch.setattr("vleak.evaluation.evaluate", stop)
    assert run(["evaluate", *options(defense=DP)]) == 2
    assert capfd.readouterr().err == "vleak: stopped before the first cell; nothing was kept\n"
    monkeypatch.setattr("vleak.results.read_results", stop)
    assert run(["report", "run"]) == 2
    assert capfd.readouterr().err == "vleak: stopped\n"
