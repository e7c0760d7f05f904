"""Feature pipeline from clips or files to records: what is sent, what comes back, what nobody may see."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluations import cells_of, scores_of
from observers import Spy, holds, tensors

from runs import DP, tiny
from vleak.attacks import Knowledge
from vleak.certificates import identification_bound
from vleak.data import load_clips
from vleak.errors import InputError
from vleak.evaluation import Settings, evaluate
from vleak.models import build_extractor
from vleak.models.extractors import train_extractor
from vleak.pipelines import anomalous_classes, extract
from vleak.results import summarise
from vleak.results.records import RunRecord, SegmentScores
from vleak.seeds import generator


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Train the extractors once for this file, little and on few clips, away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("vleak.pipelines.weights._CLIPS", 60)
        patch.setitem(train_extractor.__kwdefaults__, "steps", 40)
        yield


def features(**changes: Any) -> Settings:
    return tiny(**{"pipeline": "feature", "defenses": ("none",), "clips": 6, "enhance": "none"} | changes)


def segments_of(record: RunRecord, attack: str, defense: str | None = None) -> list[SegmentScores]:
    found = [scores_of(cell).segments for cell in cells_of(record, attack, defense)]
    return [segments for segments in found if segments is not None]


@pytest.fixture(scope="module")
def exact() -> RunRecord:
    """Run of the exact attack, without and with DP-SGD."""
    return evaluate(
        features(attacks=("low_rank",), clips=4, defenses=("none", DP), iterations=20, engine="reference")
    )


@pytest.fixture(scope="module")
def still() -> RunRecord:
    """Run of attackers who have one reference frame, and an attack that costs nothing."""
    settings = features(attacks=(Spy(),), clips=4, defenses=("none", DP), reference_frames=(1,))
    return evaluate(settings, workers=1)


def test_segments_come_back_exactly_and_are_led_back_to_frames(exact: RunRecord) -> None:
    cells = cells_of(exact, "low_rank", "none")
    assert len(cells) == 4
    assert {cell.status for cell in cells} == {"ok"}
    segments = [scores_of(cell).segments for cell in cells]
    assert sum(found.exact for found in segments if found is not None) >= 4  # of 4 clips with 2 each
    assert [found.baseline_exact for found in segments if found is not None] == [0] * 4
    assert all(found is not None and found.in_order is None for found in segments)  # it claims no order
    gains = [scores_of(cell).psnr_gain_db or 0.0 for cell in cells]
    assert sum(gains) / len(gains) > 0.0
    assert all(scores_of(cell).order is not None for cell in cells)
    assert {cell.model for cell in cells} == {"c3d_small>mlp>bce"}


def test_exact_segments_are_a_leak_and_noise_ends_it(exact: RunRecord) -> None:
    rows = [row for row in summarise(exact) if not row.baseline]
    assert {row.verdict for row in rows if row.defense == "none"} == {"leaks"}
    plain = segments_of(exact, "low_rank", "none")
    assert sum(found.exact for found in plain) > sum(found.baseline_exact for found in plain)
    assert all(found.exact == found.baseline_exact == 0 for found in segments_of(exact, "low_rank", "dp"))


def test_who_sees_no_update_gains_nothing(still: RunRecord) -> None:
    for name in ("grey", "public_mean", "reference_still"):
        cells = cells_of(still, name)
        assert len(cells) == 4
        assert all((scores_of(cell).psnr_gain_db or 0.0) <= 0 for cell in cells)
        gains = [found.cosine_gain for found in segments_of(still, name)]
        assert len(gains) == 4
        assert all(gain is not None and gain <= 1e-6 for gain in gains)


def test_frames_of_the_scene_void_the_bound(exact: RunRecord, still: RunRecord) -> None:
    bounds = {
        cell.knowledge.reference_frames: cell.certificate.bound
        for cell in (*cells_of(exact, "low_rank", "dp"), *cells_of(still, "spy", "dp"))
        if cell.certificate is not None
    }
    assert bounds == {0: pytest.approx(identification_bound(4, 0.1)), 1: 1.0}


@pytest.mark.parametrize("loss", ["bce", "ranking", pytest.param("cross_entropy", marks=pytest.mark.slow)])
def test_the_truth_is_in_no_observation(loss: str) -> None:
    spy, data = Spy(), load_clips("synthetic", clips=6, frames=4, size=16)
    extractor = build_extractor("c3d_small", frames=4, size=16, seed=0)
    settings = features(
        data=data, clips=None, extractor=extractor, attacks=(spy,), loss=loss, labels="granted"
    )
    evaluate(settings, workers=1)
    assert len(spy.seen) == 6
    public = extract(extractor, data.public_clips)
    for observation in spy.seen:
        reached = list(tensors(observation))
        assert any(holds(tensor, public[0]) for tensor in reached)  # the search does find features
        for clip in (*extract(extractor, data.clips), *data.clips):
            assert not any(holds(tensor, clip) for tensor in reached)
        # A view would reach the labels of other clips.
        assert observation.labels.untyped_storage().nbytes() == 8


def test_pairs_are_told_apart_and_judged_among_their_kind() -> None:
    record = evaluate(
        features(attacks=(Spy(),), loss="ranking", defenses=("dp:noise_multiplier=1",)), workers=1
    )
    kinds = [label >= 3 for label in record.data.labels]  # of six motions the last three
    assert len(cells_of(record, "spy")) == 12
    for cell in cells_of(record, "spy"):
        candidates, scores = kinds.count(kinds[cell.clip_index]), scores_of(cell)
        assert scores.candidates == candidates
        assert cell.knowledge.labels == "granted"
        assert scores.label_correct is None
        if cell.defense.name == "dp":
            assert cell.defense.unit == "one bag pair"
            assert cell.certificate is not None
            assert cell.certificate.bound == pytest.approx(identification_bound(candidates, 1.0))
        else:
            assert scores.linked is True  # no two pairs are alike


def test_one_of_a_kind_makes_pairs_alike_and_linkage_is_not_asked() -> None:
    record = evaluate(features(attacks=("low_rank",), loss="ranking", clips=2, seed=4))
    assert len({label >= 3 for label in record.data.labels}) == 2  # the seed draws one of each
    assert {scores_of(cell).linked for cell in cells_of(record, "low_rank")} == {None}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of feature files, five videos of each kind."""
    folder = tmp_path_factory.mktemp("ucf")
    numbers = generator("files")
    for name in [f"Abuse00{i}_x264" for i in range(5)] + [f"Normal_Videos_00{i}_x264" for i in range(5)]:
        rows = torch.randn(8, 64, generator=numbers).relu()  # sparse, as behind a ReLU
        rows = rows / rows.norm(dim=1, keepdim=True)
        np.savetxt(folder / f"{name}.txt", rows.numpy(), fmt="%.7f")
    return str(folder)


def test_features_from_files_need_no_frames(files: str, tmp_path: Path) -> None:
    settings = features(data=files, attacks=("low_rank",), clips=4, segments=8,
                        head="mlp:width=32", enhance="classical")  # fmt: skip
    record = evaluate(settings, tmp_path / "run")
    cells = cells_of(record, "low_rank")
    assert {cell.status for cell in record.cells} == {"ok"}
    assert {cell.media for cell in record.cells} == {None}
    assert all(scores_of(cell).psnr_db is None and cell.enhanced is None for cell in cells)
    assert sum(found.recovered for found in segments_of(record, "low_rank")) >= 0.9 * 4 * 8
    assert all(scores_of(cell).rank is not None for cell in cells)  # by features, for want of frames
    assert not (tmp_path / "run" / "clips.npy").exists()
    assert os.listdir(tmp_path / "run" / "reconstructions") == []
    (row,) = [row for row in summarise(record) if not row.baseline]
    assert (row.verdict, row.psnr_gain_db.n) == ("leaks", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pipeline": "raw"}, "holds features, which have no frames; give pipeline=feature"),
        ({"pipeline": "all"}, "holds features, which have no frames; give pipeline=feature"),
        ({"reference_frames": (0, 2)}, "reference_frames=0,2: .*holds features, which have no frames"),
    ],
)
def test_what_needs_frames_is_refused_of_feature_files(
    changes: dict[str, Any], message: str, files: str
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(features(data=files, **changes))


def test_classes_that_count_as_anomalous() -> None:
    assert anomalous_classes(["Abuse", "Normal", "Arson"]) == [True, False, True]
    assert anomalous_classes(["a", "b", "c"]) == [False, True, True]


def test_both_pipelines_in_one_run() -> None:
    record = evaluate(features(pipeline="all", clips=2, attacks=("matching", "low_rank")))
    asked = {(cell.pipeline, cell.attack.name) for cell in record.cells}
    assert asked >= {("raw", "matching"), ("feature", "matching"), ("feature", "low_rank")}
    assert ("raw", "low_rank") not in asked
    assert [model.pipeline for model in record.models] == ["raw", "feature"]


def test_extracting_nothing_gives_nothing() -> None:
    extractor = build_extractor("frame_cnn", frames=4, size=16, seed=0)
    assert extract(extractor, torch.rand(0, 3, 4, 16, 16)).shape == (0, 4, 256)


def test_a_batch_of_matrices_is_what_the_knowledge_says() -> None:
    knowledge = Knowledge(clip_shape=(2, 4, 8), batch_size=1, classes=2)
    assert knowledge.of_features
    assert knowledge.batch_shape == (1, 2, 4, 8)
    assert not Knowledge(clip_shape=(3, 4, 8, 8), batch_size=1, classes=2).of_features
