"""The command line: one line for every mistake, and nothing left behind."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from command import files
from videos import noise, write_video

from runs import options, tiny
from vleak.cli import run
from vleak.evaluation import evaluate
from vleak.results import FolderStore, RunHeader

SUPPORT = Path(__file__).resolve().parents[1] / "support"
ODD = Path(os.environ.get("VLEAK_TEST_DATA", SUPPORT.parents[2] / "shared" / "data")) / "odd"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder; warnings stay errors, also where the command line would print them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", None)


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
    evaluate(tiny(clips=2, defenses=("none",), enhance="none"), root / "other")
    return root


LONG = ["--clips", "2", "--frames", "8", "--stride", "2", "--size", "16"]
COMMANDS: dict[str, str] = {
    "evalute": "No such command 'evalute'. Did you mean 'evaluate'",
    "evaluate dp": "unexpected extra argument",
    "list": "expected defenses, attacks, denoisers, models, extractors, heads, metrics, enhancers, data,",
    "list defences": "unknown list 'defences'; did you mean defenses",
    "report": "Missing argument",
    "report nowhere": "nowhere does not exist; give the folder of a run",
    "report file": "file cannot be read as JSON, it is truncated or damaged",
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
    "--data empty": "data 'empty': the folder holds no files and no videos (.264, ",
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
    "--defense instahide": "unknown defense 'instahide'; known: blur, censor, compress, dgc, dp, ",
    "--defense dp:noise_multipler=1": "'noise_multipler'; did you mean noise_multiplier?",
    "--defense dp:noise_multiplier=much": "noise_multiplier takes a number, got 'much'",
    "--defense dp:noise_multiplier=-1": "dp: noise_multiplier is -1.0, expected a finite number",
    "--defense prune:fraction=90": "prune: fraction is 90.0, expected 0 <= fraction < 1",
    "--attack matching:rule=": "rule is given no value; its default is rule=adam",
    "--attack matching:rule=newton": "unknown rule 'newton'; did you mean gauss_newton?",
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
        f"--workers {value}": f"--workers {value}: expected a whole number from 1 to 1024"
        for value in (0, -1)
    },
    "--ray local --workers 2": "--ray local: Ray has a worker for every CPU of its own",
    **{
        f"--{name} {value}": f"--{name} {value}: expected a number above 0"
        for name in ("cell-seconds", "cell-memory")
        for value in ("0", "-1", "nan", "inf")
    },
    **{
        f"--{name} {value}": f"--{name} {value}: expected at least 1"
        for name in ("restarts", "iterations", "segments")
        for value in (0, -1)
    },
}

#: after `vleak evaluate` with a tiny run
RUNS: dict[str, str] = {
    "--frames 8 --data truncated.mkv": "truncated.mkv: damaged: decoded",
    "--frames 8 --data corrupt.mkv": "corrupt.mkv: damaged: decoded",
    "--frames 8 --data whole.mkv --clips 9": "--clips 9 asked, but it gives 2; ask for at most 2",
    "--model c3d": "unknown model 'c3d'; did you mean s3d or c3d_tiny or x3d_s? (or package.module:factory)",
    "--model missing:factory": "cannot import 'missing': ModuleNotFoundError: No module",
    "--model odd_models:nothing": "'odd_models' has no 'nothing'",
    "--model odd_models:constant": "'odd_models:constant' is int, expected a class or a function",
    "--model odd_models:raising": "the factory raised KeyError: 'weights'",
    "--model odd_models:no_module": "returned a list, expected torch.nn.Module",
    "--model odd_models:Nested": "returned dict with the keys out for one clip, expected logits",
    "--model odd_models:plain --input-layout NTCHW": "a clip of shape (1, 3, 4, 16, 16) as NTCHW",
    "--model odd_models:plain --input-layout NHWC": "--input-layout NHWC: expected auto, NCTHW, NTCHW or",
    "--model odd_models:plain --checkpoint nowhere.pt": "--checkpoint nowhere.pt: there is no such file",
    "--model odd_models:plain --checkpoint file": "--checkpoint file: is damaged, or holds more than tensors",
    "--model odd_models:leaves": "the factory ended its process (exit code 3)",
    "--training-state given": "--training-state given: the weights are drawn here; give a --checkpoint",
    "--model odd_models:TwoClasses": "returned (1, 2) for one clip, expected logits",
    "--model odd_models:NoWeights": "has no parameters, so there is no update to attack",
    "--model odd_models:nan_weights": "weight 'conv.weight' of the model holds NaN",
    "--model odd_models:hard": "has no second derivative; replace nn.Hardsigmoid by relu6",
    "--model odd_models:Detached": "the clip has no finite influence on the model's gradient",
    "--model syntax:factory": "cannot import 'syntax': SyntaxError: invalid syntax",
    "--model exits:factory": "cannot import 'exits': ValueError: no weights",
    "--frames 8 --model odd_models:plain": "does not take a clip of shape (1, 3, 8, 16",
    "--model odd_models:TwoSpeeds": "'fast'; nor as NTCHW or pathways; wrap the model in a module",
    "--model odd_models:frozen": "all its parameters are frozen (requires_grad=False), so nothing is sent",
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
        given = options(clips=1, defense="none", enhance="none")
        code = run(["evaluate", "--data", str(path), *given, "--out", path.stem])
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


def test_arguments_of_the_library_are_shown_as_options() -> None:
    from vleak.cli.app import with_options

    assert with_options("reference_frames=7 asked; lower `clips` or `frames`") == (
        "--reference-frames 7 asked; lower --clips or --frames"
    )
    assert (
        with_options("a part alone, or partial=True to attack it")
        == "a part alone, or --partial to attack it"
    )
    untouched = "defense 'dp:seed=3', 'mlp:loss=2,size=4', x.data=1, `pip install`, stride=-less"
    assert with_options(untouched) == untouched.replace(" stride=", " --stride ")


def test_a_bug_is_called_one(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object) -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr("vleak.api.summarise", broken)
    command = ["evaluate", *options(clips=1, defense="none", enhance="none"), "--out", "run"]
    assert run(command) == 2
    line = capfd.readouterr().err.splitlines(keepends=True)[-1]
    assert (
        line
        == "vleak: internal error, ZeroDivisionError: first; VLEAK_DEBUG=1 shows where, please report it\n"
    )
    monkeypatch.setenv("VLEAK_DEBUG", "1")
    assert run(command) == 2
    assert "Traceback" in capfd.readouterr().err


def test_two_runs_at_once_do_not_share_a_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record = evaluate(tiny(clips=1, defenses=("none",), enhance="none"), tmp_path / "run")
    header = RunHeader(**{name: getattr(record, name) for name in RunHeader.model_fields})
    with FolderStore(tmp_path / "run").open(header):
        assert run(["evaluate", *options(clips=1, defense="none", enhance="none"), "--out", "run"]) == 2
    expected = "vleak: run is in use by another run; wait for it, or give another --out\n"
    assert capfd.readouterr().err == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    assert run(["evaluate", *options(), "--out", "shut/run"]) == 2
    expected = "vleak: --out shut/run cannot be used: Permission denied; give another folder\n"
    assert capfd.readouterr().err == expected
