"""The feature pipeline from clips or files to records: what is sent, what comes back, what nobody may see."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_evaluation import Spy, holds, of, tensors

from runs import DP, tiny
from vleak.attacks import ATTACKS, Knowledge
from vleak.certificates.gaussian import identification_bound
from vleak.errors import InputError
from vleak.evaluation import bench, evaluate, weights
from vleak.evaluation.bench import anomalous_classes, extract
from vleak.results import summarise
from vleak.seeds import generator


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Train the extractors once for this file, on few clips, away from the user's cache."""
    before = os.environ.get("XDG_CACHE_HOME"), weights._CLIPS
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    weights._CLIPS = 60
    yield
    weights._CLIPS = before[1]
    if before[0] is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before[0]


def features(**changes: Any) -> Any:
    return tiny(**{"pipeline": "feature", "defenses": ("none",), "clips": 6, "enhance": "none"} | changes)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = features(attacks=("low_rank",), defenses=("none", DP), reference_frames=(0, 1), iterations=20)
    return evaluate(settings, tmp_path_factory.mktemp("exact") / "run")


def test_segments_come_back_exactly_and_are_led_back_to_frames(exact: dict[str, Any]) -> None:
    cells = [c for c in of(exact, "low_rank", "none") if c["knowledge"]["reference_frames"] == 0]
    assert {cell["status"] for cell in cells} == {"ok"}
    found = [cell["scores"]["segments"] for cell in cells]
    assert sum(each["exact"] for each in found) >= 6  # of 6 clips with 2 each
    assert sum(each["null_exact"] for each in found) == 0
    assert all(cell["scores"]["segments"]["in_order"] is None for cell in cells)  # it claims no order
    gains = [cell["scores"]["psnr_gain_db"] for cell in cells]
    assert sum(gains) / len(gains) > 0.0
    assert all(cell["media"] and cell["scores"]["order"] for cell in cells)
    assert {cell["model"] for cell in cells} == {"c3d_small>mlp>bce"}


def test_exact_segments_are_a_leak_and_noise_ends_it(exact: dict[str, Any]) -> None:
    rows = [row for row in summarise(exact) if not row.null]
    plain = [row for row in rows if row.defense == "none"]
    noisy = [row for row in rows if row.defense != "none"]
    assert {row.verdict for row in plain} == {"leaks"}
    assert all(row.segments and row.segments.exact > row.segments.guessed for row in plain)
    assert all(row.segments and row.segments.exact == row.segments.guessed == 0 for row in noisy)


def test_who_sees_no_update_gains_nothing(exact: dict[str, Any]) -> None:
    for name in ("grey", "public_mean", "reference_still"):
        cells = of(exact, name)
        assert len(cells) == 6
        assert all(cell["scores"]["psnr_gain_db"] <= 0 for cell in cells)
        assert all(cell["scores"]["segments"]["cosine_gain"] <= 1e-6 for cell in cells)


def test_frames_of_the_scene_void_the_bound(exact: dict[str, Any]) -> None:
    bounds = {
        cell["knowledge"]["reference_frames"]: cell["certificate"]["bound"]
        for cell in of(exact, "low_rank", "dp")
    }
    assert bounds == {0: pytest.approx(identification_bound(6, 0.1)), 1: 1.0}


@pytest.mark.parametrize("loss", ["bce", "ranking", "cross_entropy"])
def test_the_truth_is_in_no_observation(loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FeatureSpy(Spy):
        takes = frozenset({"frames", "features"})

    monkeypatch.setitem(ATTACKS, "matching", FeatureSpy)
    monkeypatch.setattr(Spy, "seen", [])
    kept: list[bench.Bench] = []
    original = bench.prepare

    def prepare(*given: Any) -> Any:
        benches, header = original(*given)
        kept.extend(benches)
        return benches, header

    monkeypatch.setattr("vleak.evaluation.run.prepare", prepare)
    evaluate(features(attacks=("matching",), loss=loss, labels="granted"), tmp_path / "run", workers=1)
    assert len(Spy.seen) == 6
    truth = kept[0].features.truth  # type: ignore[union-attr]
    for observation in Spy.seen:
        reached = list(tensors(observation))
        assert any(holds(each, kept[0].public[0]) for each in reached)  # the search does find features
        for clip in (*truth, *kept[0].data.clips):  # type: ignore[union-attr]
            assert not any(holds(each, clip) for each in reached)
        held = [each for each in reached if each.dtype == torch.int64]
        assert all(each.untyped_storage().nbytes() <= 8 * 6 for each in held if each.numel() == 1)
        labels = observation.knowledge.labels
        assert labels is not None
        assert labels.untyped_storage().nbytes() == 8  # a view would reach those of other clips


def test_pairs_are_told_apart_and_judged_among_their_kind(tmp_path: Path) -> None:
    results = evaluate(
        features(attacks=("low_rank",), loss="ranking", defenses=("dp:noise_multiplier=1",)), tmp_path / "run"
    )
    kinds = [label >= 3 for label in results["data"]["labels"]]  # of six motions the last three
    for cell in of(results, "low_rank"):
        rivals = kinds.count(kinds[cell["clip_index"]])
        assert cell["scores"]["candidates"] == rivals
        assert cell["knowledge"]["labels"] == "granted"
        assert cell["scores"]["label_correct"] is None
        if cell["defense"]["name"] == "dp":
            assert cell["defense"]["unit"] == "one bag pair"
            assert cell["certificate"]["bound"] == pytest.approx(identification_bound(rivals, 1.0))
        else:
            assert cell["scores"]["linked"] is True  # no two pairs are alike


def test_one_of_a_kind_makes_pairs_alike_and_linkage_is_not_asked(tmp_path: Path) -> None:
    results = evaluate(features(attacks=("low_rank",), loss="ranking", clips=2, seed=4), tmp_path / "run")
    kinds = {label >= 3 for label in results["data"]["labels"]}
    assert len(kinds) == 2  # the seed draws one of each
    assert {cell["scores"]["linked"] for cell in of(results, "low_rank")} == {None}


def write_features(folder: Path) -> None:
    folder.mkdir()
    numbers = generator("files")
    for name in [f"Abuse00{i}_x264" for i in range(5)] + [f"Normal_Videos_00{i}_x264" for i in range(5)]:
        rows = torch.randn(8, 64, generator=numbers).relu()  # sparse, as behind a ReLU
        rows = rows / rows.norm(dim=1, keepdim=True)
        np.savetxt(folder / f"{name}.txt", rows.numpy(), fmt="%.7f")


def test_features_from_files_need_no_frames(tmp_path: Path) -> None:
    write_features(tmp_path / "ucf")
    settings = features(data=str(tmp_path / "ucf"), attacks=("low_rank",), clips=4, segments=8,
                        head="mlp:width=32", enhance="classical")  # fmt: skip
    results = evaluate(settings, tmp_path / "run")
    cells = of(results, "low_rank")
    assert {cell["status"] for cell in cells} == {"ok"}
    assert {cell["media"] for cell in results["cells"]} == {None}
    assert all(cell["scores"]["psnr_db"] is None and cell["enhanced"] is None for cell in cells)
    assert sum(cell["scores"]["segments"]["recovered"] for cell in cells) >= 0.9 * 4 * 8
    (row,) = [row for row in summarise(results) if not row.null]
    assert (row.verdict, row.psnr_gain_db.n) == ("leaks", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pipeline": "raw"}, "holds features, which have no frames; give pipeline=feature"),
        ({"pipeline": "all"}, "holds features, which have no frames; give pipeline=feature"),
        ({"reference_frames": (0, 2)}, "holds features, which have no frames; leave it out"),
    ],
)
def test_what_needs_frames_is_refused_of_feature_files(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_features(tmp_path / "ucf")
    with pytest.raises(InputError, match=message):
        evaluate(features(data=str(tmp_path / "ucf"), **changes), tmp_path / "run")


def test_classes_that_count_as_anomalous() -> None:
    assert anomalous_classes(["Abuse", "Normal", "Arson"]) == [True, False, True]
    assert anomalous_classes(["a", "b", "c"]) == [False, True, True]


def test_both_pipelines_in_one_run(tmp_path: Path) -> None:
    results = evaluate(features(pipeline="all", clips=2, attacks=("matching", "low_rank")), tmp_path / "run")
    asked = {(cell["pipeline"], cell["attack"]["name"]) for cell in results["cells"]}
    assert asked >= {("raw", "matching"), ("feature", "matching"), ("feature", "low_rank")}
    assert ("raw", "low_rank") not in asked
    assert [model["pipeline"] for model in results["models"]] == ["raw", "feature"]


def test_extracting_nothing_gives_nothing() -> None:
    extractor, _ = weights.extractor_for("frame_cnn", frames=4, size=16)
    assert extract(extractor, torch.rand(0, 3, 4, 16, 16)).shape == (0, 4, 256)


def test_a_batch_of_matrices_is_what_the_knowledge_says() -> None:
    knowledge = Knowledge(clip_shape=(2, 4, 8), batch_size=1, classes=2)
    assert knowledge.of_features
    assert knowledge.batch_shape == (1, 2, 4, 8)
    assert not Knowledge(clip_shape=(3, 4, 8, 8), batch_size=1, classes=2).of_features
