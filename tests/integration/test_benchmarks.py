"""The benchmarks measure the same work of everybody; their speed is no test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def inner_loop(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import inner_loop

    return inner_loop


@pytest.fixture
def breaching_loop(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import breaching_loop

    return breaching_loop


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_bare_loop_is_as_long_as_it_says() -> None:
    text = (BENCHMARKS / "bare_loop.py").read_text(encoding="utf-8")
    assert f"the file has {len(text.splitlines())} lines" in text
    assert len(text.splitlines()) < 40


@pytest.mark.parametrize(
    "case", ["A", "B", *(pytest.param(case, marks=pytest.mark.slow) for case in ("C", "D", "E"))]
)
def test_all_do_the_same_work(case: str, inner_loop: Any) -> None:
    tiny = inner_loop.build(case, tiny=True)
    made = {name: inner_loop.CONTESTANTS[name](tiny, 10) for name in ("bare", "reference", "native")}
    inner_loop.check_same_work(tiny, made)
    assert len(made["bare"].histories()) == (8 if case == "E" else 1)


def test_one_who_does_less_is_found(inner_loop: Any) -> None:
    tiny = inner_loop.build("A", tiny=True)
    made = {name: inner_loop.CONTESTANTS[name](tiny, 10) for name in ("bare", "reference")}
    cheap = inner_loop.Case(
        tiny.name, tiny.title, tiny.model, tiny.trials, spatial=0.0, temporal=tiny.temporal
    )
    made["reference"] = inner_loop.CONTESTANTS["reference"](cheap, 10)
    with pytest.raises(SystemExit, match=r"case A: reference computes 0\.\d+, expected 0\.\d+"):
        inner_loop.check_same_work(tiny, made)


def test_one_who_steps_elsewhere_is_found(inner_loop: Any) -> None:
    class Lazy(inner_loop.BareLoop):
        def run(self, iterations: int) -> None:
            before = self.x.detach().clone()
            super().run(iterations)
            self.x.data[..., :1] = before[..., :1]

    tiny = inner_loop.build("C", tiny=True)
    made = {"bare": inner_loop.CONTESTANTS["bare"](tiny, 10), "lazy": inner_loop.InTurn(Lazy, tiny, 10)}
    with pytest.raises(SystemExit, match="the step of lazy leads elsewhere in 6"):
        inner_loop.check_same_work(tiny, made)


def test_one_who_stops_early_is_found(inner_loop: Any) -> None:
    short = inner_loop.CONTESTANTS["reference"](inner_loop.build("B", tiny=True), 3)
    run = inner_loop.in_full(short)
    run(3)
    with pytest.raises(SystemExit, match="ended before 1 iterations"):
        run(1)


def test_cases_are_drawn_from_their_names_alone(inner_loop: Any) -> None:
    before = torch.get_rng_state()
    first, second = (inner_loop.build("E", tiny=True) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    starts = torch.stack([trial.start for trial in first.trials])
    assert torch.equal(starts, torch.stack([trial.start for trial in second.trials]))
    assert len(torch.unique(starts, dim=0)) == 8


@pytest.mark.slow
def test_the_contract_of_the_figures() -> None:
    done = script("inner_loop.py", "--case", "B", "--rounds", "1", "--no-memory", "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert set(results) == {"environment", "cases"}
    (record,) = results["cases"]
    assert record["case"] == "B"
    for name in ("forward_backward", "bare", "reference", "native"):
        assert record[name]["cpu_s"] > 0
    assert record["bare"]["faster_than_bare"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert record["breaching"] is None or record["breaching"]["cpu_s"] > 0
    assert "MLP 2048-512-32-2" in done.stderr


@pytest.mark.slow
def test_peaks_count_what_is_alive() -> None:
    done = script("inner_loop.py", "--case", "B", "--peaks-of", "bare")
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout)
    assert set(peaks) == {"peak_bytes", "prepare_peak_bytes"}
    weights = 4 * 2048 * 512
    # At least the gradient of the first layer and its derivative; the weights and the update are not counted.
    assert 2 * weights < peaks["peak_bytes"] < 10 * weights


def test_breachings_variation_by_hand(breaching_loop: Any) -> None:
    clips = torch.zeros(1, 1, 2, 2, 2)
    clips[0, 0, 0] = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    # A pixel at the upper left differs from both neighbours by 1, and from the next frame by 1.
    assert breaching_loop.clip_variation(clips, 1.0, 0.0) == pytest.approx(2 / 8, abs=1e-6)
    assert breaching_loop.clip_variation(clips, 0.0, 1.0) == pytest.approx(1 / 4)
    # Beyond the border it takes zeros: a bright clip without any edge is not free.
    assert breaching_loop.clip_variation(torch.ones(1, 1, 1, 2, 2), 1.0, 0.0) == pytest.approx(4 / 4)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["nowhere", None])
def test_time_to_quality_says_what_is_missing(data: str | None, tmp_path: Path, breaching_loop: Any) -> None:
    if data is None and breaching_loop.load() is not None:
        pytest.skip("breaching is installed")
    done = script("time_to_quality.py", "--data", str(tmp_path / data if data else tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("time_to_quality: ")
    assert done.stderr.count("\n") == 1
    assert ("there are no clips at" if data else "breaching is not installed") in done.stderr


@pytest.mark.slow
def test_the_worth_of_a_pass_is_a_ratio() -> None:
    done = script("passes.py", "--case", "A", "--pass", "convolution", "--rounds", "1", "--json")
    (record,) = json.loads(done.stdout)["cases"]
    assert record["without"]["convolution"]["median"] > 1.2
