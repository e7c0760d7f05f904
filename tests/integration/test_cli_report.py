"""`vleak report`: one run, two side by side, several seeds, and what it refuses in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planted_run import DEFENSES, plant_run, store

from vleak.cli.app import invoke
from vleak.report import compare_page
from vleak.report import page as pages


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the plots out: drawing them takes most of the time, and says nothing here."""
    for module, names in (
        (pages, ("draw_plots", "draw_sandwich", "draw_frontier")),
        (compare_page, ("draw_pairs",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, lambda rows: [])


@pytest.fixture(scope="module", name="results")
def _results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return plant_run(
        tmp_path_factory.mktemp("planted") / "run", clips=2, frames=2, size=8, defenses=DEFENSES[:2]
    )


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, results: dict[str, Any], gain: float = 0.0, **settings: Any) -> None:
    cells = []
    for cell in results["cells"]:
        scores = cell["scores"] | {"psnr_gain_db": cell["scores"]["psnr_gain_db"] + gain}
        cells.append(cell | {"scores": scores})
    Path(name).mkdir()
    store(Path(name), results | {"settings": results["settings"] | settings, "cells": cells})


def said(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    assert invoke(["report", *arguments]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err


@pytest.mark.usefixtures("folder")
def test_runs_that_differ_in_the_seed_alone_are_pooled_and_others_set_side_by_side(results, capsys) -> None:
    write("a", results)
    write("b", results, 0.5, seed=1)
    write("c", results, 0.5, seed=1, iterations=300)
    text = said(["a", "b"], capsys)
    assert "pooled over 2 seeds, as the runs differ in the seed alone:" in text
    assert "report: a/report.html" in text
    assert "report: b/report.html" in text
    assert not Path("b/comparison.html").exists()
    text = said(["a", "c"], capsys)
    assert "side by side: A is a, B is c; they differ in iterations, seed" in text
    assert "report: c/comparison.html" in text
    assert "<b>a</b>" in Path("c/comparison.html").read_text(encoding="utf-8")
    assert "side by side" in said(["a", "b", "--compare", "--out", "page.html"], capsys)
    assert Path("page.html").exists()


@pytest.mark.usefixtures("folder")
def test_pictures_of_own_clips_are_left_out_until_they_are_asked_for(results, capsys) -> None:
    write("a", results, data="videos")
    assert "without pictures, as the clips are not synthetic" in said(["a"], capsys)
    assert "without pictures" not in said(["a", "--no-pictures"], capsys)
    assert "without pictures" not in said(["a", "--pictures"], capsys)


@pytest.mark.usefixtures("folder")
def test_what_cannot_be_reported_is_one_line(results, capsys) -> None:
    write("a", results)
    write("b", results, 0.5, iterations=300)
    write("c", results, 1.0, iterations=600)
    write("again", results)
    write("newer", results | {"schema_version": 99})
    Path("file.html").mkdir()
    for arguments, words in {
        "a a": "report a a: the same run twice",
        "a ./a": "the same run twice",
        "a again --compare": "both runs hold the same cells with the same scores",
        "a again": "both runs hold the same cells with the same scores",
        "a b c": "expected two runs to set side by side, got 3",
        "a --compare": "--compare takes two runs or more, got one",
        "a --pool": "--pool takes two runs or more, got one",
        "a b --pool": "expected another seed for each run",
        "a b --out file.html": "--out file.html: it is a folder",
        "a --out a/results.json": "--out a/results.json: expected a page, a file that ends in .html",
        "a --out nowhere/x.html": "there is no folder nowhere",
        "a newer": "schema_version is 99, this vleak reads up to 2",
        "a empty": "empty does not exist",
    }.items():
        text = said(arguments.split(), capsys, 2)
        assert words in text, arguments
        assert text.count("\n") == 1, arguments
    assert not list(Path().glob("*/*.html"))


@pytest.mark.usefixtures("folder")
def test_pooled_runs_take_no_page(results, capsys) -> None:
    write("a", results)
    write("b", results, 0.5, seed=1)
    assert "leave it out" in said(["a", "b", "--out", "page.html"], capsys, 2)
    assert not Path("page.html").exists()
