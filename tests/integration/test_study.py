"""Study: its plan, its verdicts on planted results, its record and its page."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from planted_study import CLIPS, QUICK, SPREAD, Planted, PlantedRuns, leaks

from vleak.cli.app import invoke
from vleak.errors import InputError
from vleak.evaluation import StoppedError
from vleak.report import write_study
from vleak.results.records import RunRecord
from vleak.results.statistics import mean_interval
from vleak.seeds import generator
from vleak.study import ClaimRecord, Study, StudyRecord, read_study, run_study
from vleak.study import run as study_run
from vleak.study.claim import Judgement
from vleak.study.claims.extractors import strongest_heads
from vleak.study.keys import FeatureRun, RawRun, RunKey
from vleak.study.measures import Comparison, Measurement, Results, difference
from vleak.study.run import judge, plan
from vleak.study.variance import variance_shares


def comparison(low: float | None) -> Comparison:
    values = [] if low is None else [low + spread for spread in SPREAD]
    return Comparison("a over b", mean_interval(values), "dB", ())


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ((1.0, 2.0), "holds"),
        ((1.0, -2.0), "mixed"),
        ((1.0, 0.0 - 0.035), "mixed"),  # the interval holds zero
        ((-1.0, -2.0), "does not hold"),
        ((-0.035,), "does not hold"),
        ((None,), "does not hold"),
    ],
)
def test_a_verdict_is_what_the_intervals_say(effects: tuple[float | None, ...], verdict: str) -> None:
    assert Judgement(tuple(map(comparison, effects))).verdict == verdict


def test_shares_of_variance_of_known_tables() -> None:
    additive = {(a, b): 3.0 * (a == "x") + 4.0 * (b == "u") for a in "xy" for b in "uv"}
    assert variance_shares(additive) == pytest.approx((9 / 25, 16 / 25))
    # All of it interaction: of the three degrees of freedom each factor has one, and explains nothing.
    crossed = {(a, b): float((a == "x") == (b == "u")) for a in "xy" for b in "uv"}
    assert variance_shares(crossed) == pytest.approx((-0.5, -0.5))
    assert variance_shares(dict.fromkeys(additive, 1.0)) == (0.0, 0.0)


def test_a_factor_of_many_levels_is_not_favoured() -> None:
    """Shares of pure noise are 0 on the whole, however many levels a factor has."""
    numbers = generator("noise")
    drawn = []
    for _ in range(300):
        noise = torch.randn(2, 5, generator=numbers).tolist()
        drawn.append(variance_shares({(str(a), str(b)): noise[a][b] for a in range(2) for b in range(5)}))
    for share in zip(*drawn, strict=True):
        assert abs(sum(share) / len(share)) < 0.05


def test_differences_are_clip_by_clip() -> None:
    more = {clip: Measurement(10.0 * n + 1.0 + SPREAD[n], "m") for n, clip in enumerate(CLIPS)}
    less = {clip: Measurement(10.0 * n, "l") for n, clip in reversed(list(enumerate(CLIPS)))}
    compared = difference("x", {**more, "other": Measurement(5.0, "o")}, less, "dB")
    assert compared.effect.n == 8
    assert compared.effect.mean == pytest.approx(1.035)
    assert compared.effect.low is not None
    assert compared.effect.low > 1.0
    assert set(compared.cells) == {"m", "l"}


# --- plan -------------------------------------------------------------------------------------------------


def test_too_few_clips_are_refused() -> None:
    with pytest.raises(InputError, match="clips=7: expected at least 8"):
        plan(Study(clips=7))


def test_runs_have_names_and_folders_of_their_own() -> None:
    keys = plan(Study())
    assert len({key.folder for key in keys}) == len({key.name for key in keys}) == len(keys) == 42
    assert all(Path(key.folder).name == key.folder for key in keys)


def test_the_plan_runs_what_its_keys_say() -> None:
    for key in plan(Study()):
        settings = key.settings(Study())
        assert settings.pipeline == key.pipeline
        if isinstance(key, FeatureRun):
            assert (settings.extractor, settings.head, settings.loss) == key.factors
            assert settings.attacks is None
        elif isinstance(key, RawRun):
            assert settings.model.endswith(("c3d_tiny", f"width={key.width}", f"depth={key.depth}"))
            assert (settings.enhance, settings.reference_frames) == (key.enhancement, key.reference_frames)
    quick = plan(QUICK)
    assert len(quick) == 14
    assert all(key.settings(QUICK).frames == 4 and key.settings(QUICK).iterations == 80 for key in quick)
    assert not any(isinstance(key, RawRun) and key.enhancement == "network" for key in quick)


# --- judging planted results ------------------------------------------------------------------------------


def verdict(key: str, planted: Planted, study: Study = QUICK) -> str:
    (record,) = [claim for claim in judge(study, planted.results(study)) if claim.key == key]
    return record.verdict


def recovers(field: str, value: str, high: float = 0.9) -> Planted:
    """Plant a high gain in cosine for the feature runs with one value of one field."""
    return Planted(cosine=lambda key: high if getattr(key, field) == value else 0.1)


def test_each_claim_can_hold_and_can_fail() -> None:
    assert verdict("extractors", leaks(raw=9.0)) == "holds"
    assert verdict("extractors", leaks(raw=1.0)) == "does not hold"
    assert verdict("extractors", leaks(raw=6.0, frame_cnn=9.0)) == "mixed"
    simple = replace(leaks(simple=9.0), cosine=recovers("head", "linear").cosine)
    assert verdict("complexity", simple) == "holds"
    assert verdict("complexity", leaks(simple=9.0)) == "mixed"
    assert verdict("complexity", Planted()) == "does not hold"
    assert verdict("enhancement", Planted(enhancement=1.0)) == "holds"
    assert verdict("enhancement", Planted(enhancement=-1.0)) == "does not hold"
    assert verdict("references", Planted(per_frame=1.0, beyond=0.5)) == "holds"
    assert verdict("references", Planted(per_frame=1.0, beyond=-1.0)) == "mixed"
    assert verdict("references", Planted(per_frame=-1.0, beyond=-1.0)) == "does not hold"
    assert verdict("compression", Planted(hidden=1.0)) == "holds"
    assert verdict("compression", Planted(hidden=-1.0)) == "does not hold"
    assert verdict("factors", recovers("extractor", "c3d_small")) == "holds"
    assert verdict("factors", recovers("loss", "bce")) == "does not hold"


def test_the_whole_plan_can_be_judged() -> None:
    claims = judge(Study(), leaks(raw=9.0).results(Study()))
    assert claims[0].verdict == "holds"
    assert len(claims[0].comparisons) == 30
    assert len(claims[-1].grid) == 30


def test_the_factor_that_decides_is_named() -> None:
    factors = judge(QUICK, recovers("loss", "bce").results(QUICK))[-1]
    assert "loss 100 %" in factors.remarks[0]


def test_the_strongest_head_of_each_extractor_and_loss_is_shown() -> None:
    def gain(key: RunKey) -> float:
        return 7.0 if isinstance(key, FeatureRun) and key.head_depth == 2 else 5.0

    strongest = strongest_heads(QUICK, Planted(gain=gain).results(QUICK))
    assert [(key.extractor, key.loss) for key in strongest] == [
        ("c3d_small", "bce"), ("c3d_small", "ranking"), ("frame_cnn", "bce"), ("frame_cnn", "ranking"),
    ]  # fmt: skip
    assert {key.head_text for key in strongest} == {"mlp:depth=2"}


def with_cells(run: RunRecord, *changes: dict[str, Any]) -> RunRecord:
    """Return a run with further cells, each the first one with changes."""
    first = run.cells[0]
    more = tuple(first.model_copy(update=change) for change in changes)
    return run.model_copy(update={"cells": (*run.cells, *more)})


def lucky(run: RunRecord) -> dict[str, Any]:
    scores = run.cells[0].scores
    assert scores is not None
    return {"scores": scores.model_copy(update={"psnr_gain_db": 99.0})}


def test_an_attack_that_failed_on_most_clips_is_not_the_strongest() -> None:
    results = dict(Planted().results(QUICK))
    key = next(key for key in results if key.name == "compressed")
    other = results[key].cells[0].attack.model_copy(update={"name": "other"})
    results[key] = with_cells(results[key], lucky(results[key]) | {"attack": other})
    (compression,) = [claim for claim in judge(QUICK, results) if claim.key == "compression"]
    assert all(row.clips == 8 for row in compression.comparisons)


def test_failed_cells_baselines_and_non_adaptive_attacks_do_not_count() -> None:
    results = Planted().results(QUICK)
    spoiled: Results = {
        key: with_cells(
            run,
            {"clip": "c99", "status": "failed: x"},
            lucky(run) | {"knowledge": run.cells[0].knowledge.model_copy(update={"defense": False})},
            lucky(run) | {"attack": run.cells[0].attack.model_copy(update={"baseline": True})},
        )
        for key, run in results.items()
    }
    for before, after in zip(judge(QUICK, results), judge(QUICK, spoiled), strict=True):
        assert before.comparisons == after.comparisons


# --- record and page --------------------------------------------------------------------------------------


def test_a_claim_is_json_by_the_contract() -> None:
    for claim in judge(QUICK, Planted().results(QUICK)):
        record = json.loads(json.dumps(claim.model_dump(mode="json"), allow_nan=False))
        assert set(record) >= {"name", "effect", "interval", "verdict", "cells"}
        assert record["verdict"] in ("holds", "does not hold", "mixed")
        assert record["cells"]
        assert len(record["interval"]) == 2
        assert all(len(point) == 4 for points in record["points"].values() for point in points)
        assert ClaimRecord.model_validate(record) == claim


@pytest.fixture
def planted_runs(monkeypatch: pytest.MonkeyPatch) -> PlantedRuns:
    runs = PlantedRuns()
    monkeypatch.setattr(study_run, "evaluate", runs.evaluate)
    monkeypatch.setattr(study_run, "extractor_for", lambda name, **options: None)
    return runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyRecord]:
    """Folder and record of a study on planted runs."""
    folder, runs = tmp_path_factory.mktemp("study"), PlantedRuns()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_run, "evaluate", runs.evaluate)
        patch.setattr(study_run, "extractor_for", lambda name, **options: None)
        return folder, run_study(QUICK, folder)


def test_a_study_runs_its_plan_and_leaves_its_record(planted_runs: PlantedRuns, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    study = run_study(QUICK, tmp_path, progress=lambda *what: told.append(what))
    assert planted_runs.folders == [key.folder for key in plan(QUICK)]
    assert read_study(tmp_path) == study
    assert told[-1] == ("judging", 14, 14)
    assert {claim.key: claim.verdict for claim in study.claims}["extractors"] == "holds"


def test_the_page_of_a_study_shows_claims_measurements_and_pictures(
    finished: tuple[Path, StudyRecord],
) -> None:
    folder, study = finished
    page = write_study(folder).read_text(encoding="utf-8")
    for claim in study.claims:
        assert claim.name in page
        assert all(row.name in page for row in claim.comparisons)
        for picture in claim.pictures:
            assert page.count(f"<b>{picture.title}</b>") >= 4  # one a clip
    assert "not run on this clip" not in page
    assert "is missing" not in page
    assert "http" not in page.replace("http://www.w3.org", "").replace('http-equiv="', "")


@pytest.mark.usefixtures("planted_runs")
def test_the_command_prints_the_record_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["study", "--quick", "--clips", "8", "--out", str(tmp_path), "--json"]) == 0
    printed, messages = capsys.readouterr()
    assert json.loads(printed) == json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert "holds" in messages
    assert (tmp_path / "study.html").exists()


def test_the_command_refuses_too_few_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["study", "--clips", "7", "--out", str(tmp_path)]) == 2
    assert "--clips 7: expected at least 8" in capsys.readouterr().err


def test_a_stopped_study_runs_nothing_more(planted_runs: PlantedRuns, tmp_path: Path) -> None:
    stop = threading.Event()
    with pytest.raises(StoppedError, match="3 of 14 runs finished"):
        run_study(
            QUICK, tmp_path, progress=lambda what, done, total: stop.set() if done == 3 else None, stop=stop
        )
    assert len(planted_runs.folders) == 3
    assert not (tmp_path / "study.json").exists()


def hostile(study: StudyRecord, text: str) -> StudyRecord:
    claim = study.claims[0]
    row = claim.comparisons[0].model_copy(update={"name": text, "unit": text})
    picture = claim.pictures[0].model_copy(update={"title": text})
    changed = claim.model_copy(
        update={"key": text, "name": text, "comparisons": (row,), "remarks": (text,), "pictures": (picture,)}
    )
    data = study.data.model_copy(update={"name": text, "names": (text,), "notes": (text,)})
    return study.model_copy(update={"claims": (changed,), "data": data, "runs": (text,)})


def test_hostile_names_stay_text(finished: tuple[Path, StudyRecord], tmp_path: Path) -> None:
    bad = '"><script>alert(1)</script>'
    study = hostile(finished[1], bad)
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "study.json").write_text(study.model_dump_json(), encoding="utf-8")
    page = write_study(tmp_path).read_text(encoding="utf-8")
    assert page.count("<script") == 1  # the page's own
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "cannot be read as a study"),
        ({"schema_version": 1}, "schema version 1, expected 2"),
        ({"claims": [{"key": 3}]}, r"claims\.0\.key is 3, expected"),
        ({"other": 1}, "other is no field"),
    ],
)
def test_a_study_that_cannot_be_read_is_refused(
    finished: tuple[Path, StudyRecord], tmp_path: Path, change: str | dict[str, Any], message: str
) -> None:
    record = finished[1].model_dump(mode="json")
    text = change if isinstance(change, str) else json.dumps(record | change)
    (tmp_path / "study.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        write_study(tmp_path)
