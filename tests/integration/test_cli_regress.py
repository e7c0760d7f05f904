"""`vleak baseline` and `vleak regress`: exit codes, files, and one line for every mistake."""

from __future__ import annotations

import json
import os
import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from nights import Change, run_of, shifted

from runs import DP, tiny
from vleak.cli import run
from vleak.evaluation import evaluate
from vleak.regression import Night, make_baseline, read_baseline, read_history, regress, write_baseline


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder; warnings stay errors, also where the command line would print them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", None)


def write(name: str, draw: int, change: Change | None = None, **given: int) -> None:
    Path(name).write_text(json.dumps(run_of(draw, change, **given).content()))


@pytest.fixture
def files() -> None:
    """Runs of a baseline, the baseline, and three nights."""
    for draw in range(4):
        write(f"b{draw}.json", draw)
    write_baseline(make_baseline([run_of(draw) for draw in range(4)]), "baseline.json")
    write("same.json", 100)
    write("weak.json", 101, shifted(psnr_gain_db=5.0))
    write("other.json", 102, iterations=9)


def call(line: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = run(shlex.split(line))
    shown = capfd.readouterr()
    return code, shown.out, shown.err


def test_a_baseline_is_made_of_runs(files: None, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = call("baseline b0.json b1.json b2.json b3.json -o made.json", capfd)
    assert (code, out) == (0, "")
    first, claims, last = err.splitlines()
    assert (first, last) == ("2 rows, 4 draws, 13 kB", "baseline: made.json")
    assert re.fullmatch(r"\d+ of \d+ claims and parts of the contract hold; 0 epsilons audited", claims)
    made = read_baseline("made.json")
    assert {claim.defense for claim in made.claims or ()} == set(made.settings.defenses)
    assert made.model_copy(update={"claims": None}) == read_baseline("baseline.json")
    code, _, err = call("baseline b0.json --out one.json", capfd)
    assert (code, "of 1 draw a night can tell little apart" in err) == (0, True)


def test_exit_codes_are_held_failed_and_not_judged(files: None, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("regress same.json --baseline baseline.json", capfd)[0] == 0
    code, out, err = call("regress weak.json --baseline baseline.json", capfd)
    assert (code, out) == (1, "")
    assert "dp, matching: leaks more: gain" in err
    code, _, err = call("regress other.json --baseline baseline.json", capfd)
    assert code == 2
    assert err.splitlines()[-1].startswith("not judged: the run of draw 102 cannot be compared")


def test_all_outputs_at_once(files: None, capfd: pytest.CaptureFixture[str]) -> None:
    line = (
        "regress weak.json --baseline baseline.json --history history.jsonl --junit junit.xml "
        "--markdown night.md --plot plot.svg --page night.html --json --github"
    )
    code, out, err = call(line, capfd)
    assert code == 1
    night = Night.model_validate(json.loads(out))
    assert (night.verdict, night.draw, night.night) == ("failed", 101, 1)
    assert "::error title=vleak regress::dp, matching: leaks more" in err  # stdout is for JSON alone
    assert ElementTree.parse("junit.xml").getroot().get("failures") == "1"
    assert Path("night.md").read_text().startswith("# ❌ failed")
    assert "(plot.svg)" in Path("night.md").read_text()
    page = Path("night.html").read_text(encoding="utf-8")
    assert "<h1>Something got weaker</h1>" in page
    assert page.count('class="verdict leaks">worse<') == 2  # the count, and the row
    assert ElementTree.parse("plot.svg").getroot().tag.endswith("svg")
    assert len(read_history("history.jsonl")[1]) == 1
    code, out, _ = call("regress same.json --baseline baseline.json --github", capfd)
    assert (code, out.startswith("::notice title=vleak regress::held")) == (0, True)


def test_a_summary_that_is_shown_elsewhere_links_no_plot(
    files: None, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("elsewhere").mkdir()
    line = (
        "regress same.json --baseline baseline.json --history h.jsonl --plot p.svg --markdown elsewhere/s.md"
    )
    assert call(line, capfd)[0] == 0
    assert "p.svg" not in Path("elsewhere/s.md").read_text()


def test_reasons_name_options(files: None, capfd: pytest.CaptureFixture[str]) -> None:
    Path("cut.json").write_text(json.dumps(run_of(100).content() | {"planned_cells": 41}))
    code, _, err = call("regress cut.json --baseline baseline.json", capfd)
    assert code == 2
    assert "resume it with the same --out" in err


def test_the_workflow_keeps_the_history_of_every_night() -> None:
    """`actions/cache` alone saves nothing after a night that failed, and a job run again is another draw."""
    text = (Path(__file__).parents[2] / "examples" / "nightly" / "nightly.yml").read_text()
    assert re.findall(r"uses: (actions/cache.*?)@", text) == ["actions/cache/restore", "actions/cache/save"]
    _, _, save = text.partition("actions/cache/save")
    assert "if: always() && hashFiles('history.jsonl') != ''" in save
    keys = re.findall(r"^ +key: (.*)", text, re.MULTILINE)
    assert keys == ["vleak-history-${{ github.run_id }}-${{ github.run_attempt }}"] * 2
    assert 'DRAW: "${{ github.run_id }}${{ github.run_attempt }}"' in text


def test_python_judges_as_the_command_does(files: None, capfd: pytest.CaptureFixture[str]) -> None:
    import vleak

    _, out, _ = call("regress weak.json --baseline baseline.json --json", capfd)
    assert vleak.regress(vleak.load_run("weak.json"), "baseline.json") == Night.model_validate_json(out)
    assert vleak.make_baseline(vleak.load_run("b0.json")).draws == (0,)
    assert regress(run_of(2), read_baseline("baseline.json"), mode="replay").verdict == "held"


MISTAKES: dict[str, str] = {
    "baseline": "Missing argument",
    "baseline b0.json": "Missing option '--out'",
    "baseline nowhere -o x": "nowhere does not exist; give the folder of a run",
    "baseline b0.json b0.json -o x": "runs: two are of draw 0; give each another --draw",
    "baseline b0.json -o pipe": "--out pipe: it is a named pipe, expected a regular file; give another file",
    "baseline b0.json -o nowhere/x": "--out nowhere/x: there is no folder nowhere; make it first",
    "regress same.json": "Missing option '--baseline'",
    "regress same.json --baseline nowhere": "nowhere cannot be read: No such file or directory; give",
    "regress same.json --baseline same.json": "same.json holds no baseline; make one with `vleak baseline",
    "regress same.json --baseline cut.json": "cut.json cannot be read as JSON, it is truncated or damaged",
    "regress same.json --baseline pipe": "pipe cannot be read: it is a named pipe",
    "regress same.json --baseline newer.json": "newer.json: schema_version is 2, this vleak reads 1;",
    "regress nowhere --baseline baseline.json": "nowhere does not exist",
    "regress same.json --baseline baseline.json --mode weekly": "--mode weekly: expected replay, stat",
    "regress same.json --baseline baseline.json --mode replay": "--mode replay: no run is of a draw of the",
    "regress b0.json --baseline baseline.json --mode statistical": "evaluate with another --draw",
    "regress same.json --baseline baseline.json --history pipe": "--history pipe: it is a named pipe",
    "regress same.json --baseline baseline.json --history b0.json": "b0.json holds no history; give another",
    "regress same.json --baseline baseline.json --junit pipe": "--junit pipe: it is a named pipe",
    "regress same.json --baseline baseline.json --markdown .": "--markdown .: it is a folder",
    "regress same.json --baseline baseline.json --page .": "--page .: it is a folder",
    "regress same.json --baseline baseline.json --plot p.svg": "--plot p.svg: draws a history; give --h",
    "regress same.json --baseline baseline.json --junit baseline.json": "is the file of --baseline;",
    "regress same.json --baseline baseline.json --page same.json": "--page same.json: is the file of the run",
    "baseline b0.json b1.json -o b1.json": "--out b1.json: is the file of the run, b1.json; give another",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    line: str, files: None, capfd: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo("pipe")
    text = Path("baseline.json").read_text()
    Path("cut.json").write_text(text[:700])
    Path("newer.json").write_text(re.sub('"schema_version": 1', '"schema_version": 2', text))
    before = {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    code, out, err = call(line, capfd)
    assert (code, out) == (2, "")
    assert MISTAKES[line] in err
    assert len(err.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before


def test_a_draw_changes_noise_and_starts_alone_and_is_replayed_to_the_digit() -> None:
    defended = {"clips": 2, "defenses": (DP,), "engine": "reference", "enhance": "none"}
    first, other, again = (evaluate(tiny(draw=draw, **defended)) for draw in (1, 2, 1))
    assert first.data == other.data
    assert first.models == other.models
    gains = [[cell.scores and cell.scores.psnr_gain_db for cell in record.cells] for record in (first, other)]
    baselines = sum(cell.attack.baseline for cell in first.cells)
    assert gains[0][:baselines] == gains[1][:baselines]
    assert all(a != b for a, b in zip(gains[0][baselines:], gains[1][baselines:], strict=True))
    night = regress(again, make_baseline([first, other]), mode="replay")
    assert (night.verdict, night.moved) == ("held", ())
    assert night.compared == 2 * (9 + 10)  # figures of two clips; with noise there is a link chance
