"""The command line: what it prints, and where."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.table import Table

import vleak
from runs import options, tiny, without_time
from vleak.cli import output, run
from vleak.evaluation import evaluate
from vleak.results import RunRecord, read_run, summarise


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder; warnings stay errors, also where the command line would print them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", None)


@pytest.fixture(scope="module")
def record() -> RunRecord:
    """A small run, kept in memory."""
    return evaluate(tiny(engine="reference", enhance="none"))


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
    assert [name for name in vleak.__all__ if not hasattr(vleak, name)] == []
    assert sorted({*vleak.__all__, "__version__"}) == sorted(dir(vleak))
    with pytest.raises(AttributeError, match="module 'vleak' has no attribute 'nothing'"):
        vleak.nothing  # noqa: B018


def test_evaluate_prints_one_json_and_shows_the_table_elsewhere(
    tmp_path: Path, record: RunRecord, capfd: pytest.CaptureFixture[str]
) -> None:
    given = options(engine="reference", enhance="none")
    assert run(["evaluate", *given, "--out", "run", "--json"]) == 0
    shown = capfd.readouterr()
    assert json.loads(shown.out) == json.loads((tmp_path / "run" / "results.json").read_text())
    assert "What still leaks? synthetic, 3 clips, c3d_tiny untrained" in shown.err
    assert "dp σ=0.1" in shown.err
    assert "report: run/report.html" in shown.err
    assert "vleak: " not in shown.err  # a warning, also of another package, would begin so
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert without_time(read_run(tmp_path / "run")) == without_time(record)


def test_evaluate_without_json_leaves_stdout_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", *options(clips=2, defense="none", enhance="none")]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}", folder.name)
    assert f"report: runs/{folder.name}/report.html" in shown.err
    assert len(read_run(folder).cells) == 6


def test_names_between_colons_are_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    output.say("model my_models:one: takes [clips]")
    output.warning("my_models:two: is old", UserWarning, "", 0)
    output.print_lines(["my_models:three:"])
    output.print_table(Table("my_models:four:"))
    shown = capsys.readouterr()
    assert shown.err == "model my_models:one: takes [clips]\nvleak: my_models:two: is old\n"
    assert "my_models:three:" in shown.out
    assert "my_models:four:" in shown.out


def test_every_option_reaches_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    library = vleak.evaluate

    def within_this_process(*, cell_seconds: float, cell_memory: float, **others: Any) -> Any:
        asked.update(others, cell_seconds=cell_seconds, cell_memory=cell_memory)
        return library(**others)

    monkeypatch.setattr("vleak.api.evaluate", within_this_process)
    given = {
        "data": "synthetic", "pipeline": "raw", "model": "c3d_tiny:width=4,depth=1",
        "training-state": "early", "clips": 4, "frames": 5, "size": 9, "stride": 3, "restarts": 2,
        "iterations": 2, "seed": 4, "draw": 3, "budget": 99, "non-adaptive": 1, "public-from": "other-files",
        "labels": "granted", "device": "cpu", "engine": "reference", "workers": 1, "cell-seconds": 900,
        "cell-memory": 64, "extractor": "frame_cnn",
        "head": "mlp:depth=3", "loss": "ranking", "segments": 7, "enhance": "none",
        "trainable": "*.weight", "local-batch": 1, "local-rate": 0.1, "local-momentum": 0.5,
        "local-decay": 0.25, "local-optimizer": "sgd", "participation": 0.5, "round-clips": "new",
        "input-layout": "NCTHW", "audit-draws": 40,
    }  # fmt: skip
    several: dict[str, list[Any]] = {
        "mode": ["train"],
        "batch": [2],
        "local-steps": [2],
        "rounds": [2],
        "local-epochs": [0],
    }
    (tmp_path / "further.py").write_text(
        "from vleak.metrics import Metric\n\n\n"
        "class mae(Metric):\n"
        "    name = 'mae'\n\n"
        "    def score(self, a, b):\n"
        "        return float((a - b).abs().mean())\n"
    )
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    flags += [part for name, values in several.items() for part in (f"--{name}", ",".join(map(str, values)))]
    repeated = ["--attack=matching", "--defense=none", "--defense=prune:fraction=0.5", "--metric=further:mae"]
    assert run(["evaluate", *flags, *repeated, "--reference-frames", "0,2", "--out", "run"]) == 0
    settings = json.loads((tmp_path / "run" / "results.json").read_text())["settings"]
    for name in ("workers", "cell-seconds", "cell-memory"):  # no score depends on them
        assert asked[name.replace("-", "_")] == given.pop(name)
    assert settings == {name.replace("-", "_"): value for name, value in (given | several).items()} | {
        "checkpoint": None,
        "utility": 0,
        "quick": False,
        "defenses": ["none", "prune:fraction=0.5"],
        "attacks": ["matching"],
        "metrics": ["further:mae"],
        "reference_frames": [0, 2],
    }


def test_report_is_written_again_also_of_a_killed_or_stopped_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    evaluate(tiny(clips=1, enhance="none"), folder)

    def report() -> list[str]:
        (folder / "report.html").unlink(missing_ok=True)
        assert run(["report", "run"]) == 0
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.splitlines()[-1] == "report: run/report.html"
        assert "σ=0.1" in (folder / "report.html").read_text(encoding="utf-8")
        return shown.err.splitlines()

    assert report()[0].startswith("Without defense")
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"planned_cells": 9}))
    assert report()[0] == "4 of 9 cells finished; rows may be missing."
    (folder / "results.json").unlink()
    assert report()[0] == "4 cells finished, the run did not; rows may be missing."


def shown_table(record: RunRecord, width: int = 140) -> str:
    from rich.console import Console

    from vleak.cli.table import leak_table

    console = Console(width=width)
    with console.capture() as capture:
        console.print(leak_table(record, summarise(record), width))
    return capture.get()


def test_the_table_of_a_stopped_run_says_so_and_counts_one_clip(record: RunRecord) -> None:
    one = record.data.model_copy(update={"clips": 1})
    assert "synthetic, 1 clip, c3d_tiny" in shown_table(record.model_copy(update={"data": one}))
    assert "rows may be missing" not in shown_table(record)
    stopped = shown_table(record.model_copy(update={"planned_cells": 19})).splitlines()
    caption = next(place for place, line in enumerate(stopped) if "in brackets:" in line)
    assert stopped[caption - 1].strip() == "12 of 19 cells finished; rows may be missing."


def defended(record: RunRecord, *defenses: dict[str, Any]) -> RunRecord:
    """A run whose cells of one clip are behind other defenses."""
    dp = next(cell for cell in record.cells if cell.defense.name == "dp")
    cells = [dp.model_copy(update={"defense": dp.defense.model_copy(update=changes)}) for changes in defenses]
    return record.model_copy(update={"cells": (*record.cells, *cells)})


def test_a_long_label_leaves_room_for_the_verdict(record: RunRecord) -> None:
    codecs = [
        {"name": "compress", "label": "qsgd 4 bit", "settings": {"bits": 4, "bucket": bucket}}
        for bucket in (64, 4096)
    ]
    shown = defended(record, *codecs)
    assert "qsgd 4 bit, bucket=4096" in shown_table(shown)
    narrow = " ".join(shown_table(shown, 80).split())
    assert "bucket=4096" in narrow
    assert "…" not in narrow


def test_the_table_prints_epsilon_as_the_report_does(record: RunRecord) -> None:
    assert " 5.0e5 " in shown_table(defended(record, {"label": "x", "epsilon": 498_765.0}))


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("defenses", {"none", "dp", "prune", "compress", "powersgd", "noise", "mixup", "oasis", "soteria"}),
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
