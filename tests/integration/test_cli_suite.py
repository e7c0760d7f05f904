"""`vleak suite`: what it prints and writes, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from entries import CLIPS, PROTOCOL, TINY, entry, figures

from vleak import suite
from vleak.cli import run
from vleak.cli import suite as cli_suite
from vleak.suite import NEWEST, PROTOCOLS, finished_entry, write_entry

NAME, FROZEN = NEWEST, PROTOCOLS[NEWEST]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line knows the planted protocol alone."""
    monkeypatch.setattr(suite, "find_protocol", lambda name: PROTOCOL)


def test_without_a_defense_it_says_what_the_protocol_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["suite"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert NAME in shown
    assert FROZEN.sha256 in shown
    assert all(situation.name in shown for situation in FROZEN.situations)
    assert "vleak suite --leaderboard" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--defense", "nosuch"], "unknown defense 'nosuch'"),
        (["--defense", "dp"], "--defense dp: is a sweep of 4 strengths"),
        (["--defense", "none", "--attack", "nosuch"], "unknown attack 'nosuch'"),
        (["--defense", "none", "-o", "no/folder.json"], "--out no/folder.json: there is no folder no"),
        (["--defense", "none", "-o", "."], "--out .: it is a folder, expected a regular file"),
        (["--attack", "matching"], "--attack matching: of which defense? give --defense too"),
        (["--protocol", "vleak-suite-0"], "unknown protocol 'vleak-suite-0'; did you mean vleak-suite-1?"),
        (["--leaderboard", "nowhere"], "--leaderboard nowhere: is no folder"),
        (["--leaderboard", "."], "--leaderboard .: holds no entry"),
        (
            ["--leaderboard", ".", "-o", "none.json"],
            "--out none.json: expected a page, a file that ends in .html",
        ),
        (["--leaderboard", ".", "--defense", "dp"], "--defense dp: is of an entry"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["suite", *options]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("vleak: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("planted")
def test_a_leaderboard_is_written_from_the_entries_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "entries"
    folder.mkdir()
    write_entry(entry("weak", figures([8.0] * CLIPS, CLIPS)), folder / "a.json")
    write_entry(entry("strong"), folder / "b.json")
    write_entry(entry("masked", change={"adaptive": False}), folder / "c.json")
    assert run(["suite", "--leaderboard", "entries", "-o", "page.html"]) == 0
    shown = capsys.readouterr()
    assert shown.out.index("strong") < shown.out.index("weak")
    assert "refused, with reasons on the page: masked" in shown.out
    assert "leaderboard: page.html" in shown.err
    assert "attack knows the defense (steps)" in (tmp_path / "page.html").read_text(encoding="utf-8")

    whole = (folder / "b.json").read_text()
    (folder / "b.json").write_text(whole[: len(whole) // 2])
    (tmp_path / "page.html").unlink()
    assert run(["suite", "--leaderboard", "entries", "-o", "page.html"]) == 2
    assert "entries/b.json cannot be read as JSON, it is truncated" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()

    other = json.loads(whole) | {"protocol": "planted-0"}
    (folder / "b.json").write_text(json.dumps(other))
    assert run(["suite", "--leaderboard", "entries", "-o", "page.html"]) == 2
    assert "is of the protocol 'planted-0', expected planted-1" in capsys.readouterr().err


def test_a_refused_entry_is_written_and_told_by_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {"good": entry("good"), "bad": entry("bad", change={"broken": True})}
    monkeypatch.setattr(suite, "make_entries", lambda protocol, defenses, *_, **__: [made[defenses[0]]])
    monkeypatch.chdir(tmp_path)
    assert run(["suite", "--defense", "good"]) == 0
    assert "admitted: good.json" in capsys.readouterr().err
    assert run(["suite", "--defense", "bad", "-o", "x.json", "--json"]) == 1
    shown = capsys.readouterr()
    assert "refused, claims hold (steps): a measured share is above" in shown.err
    assert json.loads(shown.out) == json.loads((tmp_path / "x.json").read_text())
    assert finished_entry(made["bad"]) == made["bad"]
    assert run(["suite", "--defense", "good", "-o", "/proc/x.json"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "/proc/x.json" in shown.err.splitlines()[-1]
    monkeypatch.setattr(cli_suite.os, "access", lambda path, mode: False)
    assert run(["suite", "--defense", "good"]) == 2
    assert capsys.readouterr().err == "vleak: --out good.json: its folder cannot be written; give another\n"


@pytest.mark.slow
def test_an_attack_from_outside_makes_an_entry_of_a_defense_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine_suite.py").write_text(
        "from dataclasses import dataclass\n"
        "import vleak\n"
        "from vleak.attacks import Matching\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Halved(vleak.Defense):\n"
        "    name = 'halved'\n"
        "    by: float = 2.0\n\n"
        "    def transmit(self, gradient, generator):\n"
        "        return super().transmit({n: t / self.by for n, t in gradient.items()}, generator)\n\n\n"
        "class Mine(Matching):\n"
        "    name = 'mine'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite, "find_protocol", lambda name: TINY)
    options = ["--defense", "mine_suite:Halved:by=4.0", "--attack", "mine_suite:Mine", "-o", "e.json"]
    assert run(["suite", *options, "--runs", "runs"]) == 1  # three iterations leak nothing
    made = json.loads((tmp_path / "e.json").read_text())
    assert made["entry"] == "attack"
    assert "Mine" in made["attack"]["text"]
    assert made["defense"]["settings"] == {"by": 4.0}
    assert {situation["knowledge"] for situation in made["situations"]} == {"simulated"}
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["gradient", "steps"]
    assert "undefended leaks" in capsys.readouterr().err
