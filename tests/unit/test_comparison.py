"""Two runs side by side: matched rows, differences clip by clip, and the page of it."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
from planted_run import DEFENSES, plant_run, store
from scipy.stats import ttest_ind, ttest_rel

from vleak.errors import InputError
from vleak.report import compare_page, comparison_sentences, write_comparison
from vleak.results import RunRecord, compare_runs, differ_in_seed_alone, read_run
from vleak.results.statistics import difference_interval


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("comparison") / "first"
    return folder, plant_run(folder, clips=8, frames=2, size=8, defenses=DEFENSES[:2])


def changed(results: dict[str, Any], *, gain: float = 0.0, label: str = "dp σ=0.1", **settings: Any) -> Any:
    """The same run with other settings, and a gain that is added behind one defense."""
    cells = []
    for number, cell in enumerate(results["cells"]):
        scores = dict(cell["scores"])
        if cell["defense"]["label"] == label and not cell["attack"]["baseline"]:
            scores["psnr_gain_db"] += gain + 0.01 * (number % 3)
        cells.append({**cell, "scores": scores})
    return {**results, "settings": results["settings"] | settings, "cells": cells}


def record(results: dict[str, Any]) -> RunRecord:
    return RunRecord.model_validate(results)


def test_differences_are_clip_by_clip_and_of_two_samples_where_clips_differ(planted) -> None:
    results = planted[1]
    second = changed(results, gain=-1.0, iterations=300)
    found = compare_runs(record(results), record(second))
    assert {pair.row.defense: pair.change for pair in found.pairs} == {"none": "same", "dp σ=0.1": "less"}
    gains = [[c.scores.psnr_gain_db for c in record(run).cells if c.defense.label == "dp σ=0.1"]
             for run in (results, second)]  # fmt: skip
    pair = found.pairs[1]
    low, high = ttest_rel(gains[1], gains[0]).confidence_interval()
    assert (pair.gain_change.low, pair.gain_change.high) == pytest.approx((low, high))
    assert pair.paired == 8
    assert found.differing["iterations"] == (150, 300)
    second["data"] = second["data"] | {"sha256": "1"}
    pair = compare_runs(record(results), record(second)).pairs[1]
    low, high = ttest_ind(gains[1], gains[0], equal_var=False).confidence_interval()
    assert (pair.gain_change.low, pair.gain_change.high) == pytest.approx((low, high))
    assert pair.paired == 0


def test_a_difference_of_few_values_has_no_interval() -> None:
    few = difference_interval([1.0, 3.0], [0.0] * 9)
    assert (few.mean, few.low, few.reason) == (2.0, None, "few_clips")
    assert difference_interval([], [1.0]).mean is None
    assert difference_interval([2.0] * 8, [1.0] * 8).low == 1.0
    assert few.mean == statistics.fmean([1.0, 3.0])


def test_rows_are_matched_by_what_runs_do_not_differ_in(planted) -> None:
    results = planted[1]
    other = changed(results, model="cnn_lstm")
    other["cells"] = [c | {"model": "cnn_lstm"} for c in other["cells"]]
    other["models"] = [results["models"][0] | {"name": "cnn_lstm"}]
    pairs = compare_runs(record(results), record(other)).pairs
    assert all(pair.first and pair.second for pair in pairs)
    other["cells"] = [c for c in other["cells"] if c["defense"]["label"] == "none"]
    pairs = compare_runs(record(results), record(other)).pairs
    assert [(pair.row.defense, pair.change) for pair in pairs] == [
        ("none", "same"),
        ("dp σ=0.1", "first_only"),
    ]


def test_the_choice_between_pooling_and_comparing_goes_by_the_settings(planted) -> None:
    one, seed, more = (record(changed(planted[1], **given)) for given in ({}, {"seed": 1}, {"iterations": 9}))
    assert differ_in_seed_alone([one, seed])
    assert not differ_in_seed_alone([one, one])
    assert not differ_in_seed_alone([one, seed, more])


def test_a_run_is_not_compared_with_itself(planted) -> None:
    one = record(planted[1])
    slower = [cell.model_copy(update={"attack": cell.attack.model_copy(update={"seconds": 9.0})})
              for cell in one.cells]  # fmt: skip
    with pytest.raises(InputError, match="the same scores"):
        compare_runs(one, one.model_copy(update={"cells": tuple(slower)}))


def test_the_page_says_which_leaks_more_and_what_differs(planted, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(compare_page, "draw_pairs", lambda pairs: [])
    folder, results = planted
    bad = "<script>alert(1)</script>"
    second = changed(results, gain=1.0, model=bad)
    second["cells"][-1] |= {"flags": [bad]}
    (tmp_path / "second").mkdir()
    store(tmp_path / "second", second)
    runs = (read_run(folder), read_run(tmp_path / "second"))
    page = write_comparison((folder, tmp_path / "second"), runs)
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "second" / "comparison.html"
    assert "<h1>B leaks more in 1 of 2 shared rows</h1>" in text
    assert text.count("<script") == 1
    assert "&lt;script&gt;" in text
    assert comparison_sentences(compare_runs(*runs))[0].startswith(
        "B leaks more than A: dp σ=0.1 by matching (+1.0 dB"
    )
    assert "data:image" in text
    other = write_comparison((folder, tmp_path / "second"), runs, tmp_path / "page.html", pictures=False)
    assert "data:image" not in other.read_text(encoding="utf-8")
