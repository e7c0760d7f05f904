"""Records of a study with planted effects, so that tests know what a claim has to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vleak.evaluation import Settings
from vleak.results.records import (
    AttackRecord,
    Cell,
    DataRecord,
    DefenseRecord,
    EnhancedScores,
    EnhancementRecord,
    EnvironmentRecord,
    KnowledgeRecord,
    ModelRecord,
    RunRecord,
    Scores,
    SegmentScores,
    SettingsRecord,
)
from vleak.seeds import generator
from vleak.study.keys import FeatureRun, RawRun, RunKey
from vleak.study.measures import Results
from vleak.study.run import plan
from vleak.study.settings import Study

CLIPS = tuple(f"c{index}" for index in range(8))
QUICK = Study(quick=True, clips=8)
SPREAD = tuple(0.01 * index for index in range(8))
"""Differences between clips, small against every planted effect."""


@dataclass(frozen=True, kw_only=True)
class Planted:
    """Effects to plant.

    Attributes:
        gain: PSNR gain in dB of a run without defense or reference frame.
        cosine: gain in cosine of a feature run.
        hidden: dB that a compression takes away.
        per_frame: dB that a reference frame adds to PSNR, moving and whole. beyond: and to the gain.
        enhancement: dB that enhancement adds.
    """

    gain: Callable[[RunKey], float] = lambda key: 5.0
    cosine: Callable[[FeatureRun], float] = lambda key: 0.1
    hidden: float = 1.0
    per_frame: float = 1.0
    beyond: float = -1.0
    enhancement: float = -1.0

    def results(self, study: Study) -> Results:
        """Return the records of every run of a study."""
        return {key: self._run(key) for key in plan(study)}

    def _run(self, key: RunKey) -> RunRecord:
        labels: tuple[str, ...] = ("none",)
        counts: tuple[int, ...] = (0,)
        if isinstance(key, RawRun):
            labels, counts = ("none", *key.compressions), key.reference_frames
        cells = [
            self._cell(key, label, count, index)
            for label in labels
            for count in counts
            for index in range(len(CLIPS))
        ]
        return RunRecord(
            environment=EnvironmentRecord(
                vleak="0", torch="0", python="3", platform="Linux", extension="built", device="cpu"
            ),
            settings=SettingsRecord(
                data="planted", pipeline=key.pipeline, model="planted", extractor="", head="", loss="",
                training_state="untrained", defenses=labels, attacks=("matching",), clips=8, frames=4,
                size=16, stride=2, segments=4, reference_frames=counts, enhance="none", restarts=1,
                iterations=1, labels="inferred", seed=0, device="cpu", engine="native",
            ),
            data=DataRecord(
                name="planted", clips=len(CLIPS), public_clips=1, public_source="other seeds", classes=("a",),
                labels=(0,) * len(CLIPS), names=CLIPS, notes=(), sha256="0",
            ),
            models=(
                ModelRecord(
                    # as many for every size
                    name="planted", pipeline=key.pipeline, training_state="untrained", parameters=100,
                    training_steps=0, weights_sha256="0", train_accuracy=None, held_out_accuracy=None,
                    chance=0.5,
                ),
            ),
            planned_cells=len(cells),
            cells=tuple(cells),
        )  # fmt: skip

    def _cell(self, key: RunKey, label: str, count: int, index: int) -> Cell:
        level = self.gain(key) + SPREAD[index] - (self.hidden if label != "none" else 0.0)
        psnr = level + self.per_frame * count
        feature = isinstance(key, FeatureRun)
        return Cell(
            id=f"{label}/{count}/{CLIPS[index]}",
            pipeline=key.pipeline,
            model="planted",
            training_state="untrained",
            defense=DefenseRecord(name=label, label=label),
            attack=AttackRecord(name="matching", adaptive=True),
            knowledge=KnowledgeRecord(reference_frames=count),
            clip=CLIPS[index],
            clip_index=index,
            seed=index,
            scores=Scores(
                psnr_gain_db=level + self.beyond * count,
                motion_psnr_db=psnr,
                psnr_db=psnr,
                segments=segments(self.cosine(key) + SPREAD[index] / 10) if feature else None,
                identified=True,
                rank=1,
                candidates=8,
            ),
            enhanced=enhancement(self.enhancement + SPREAD[index]),
        )


def segments(cosine_gain: float) -> SegmentScores:
    """Return scores of four segments, two with a gradient, one recovered."""
    return SegmentScores(
        segments=4, carrying=2, recovered=1, exact=0, baseline_exact=0, cosine=0.5, relative_error=0.5,
        in_order=None, cosine_gain=cosine_gain, identified=True, rank=1, candidates=8,
    )  # fmt: skip


def enhancement(change_db: float) -> EnhancementRecord:
    """Return an enhancement that changes PSNR by so much."""
    scores = EnhancedScores(
        psnr_db=10.0, psnr_gain_db=1.0, ssim=0.5, motion_psnr_db=None, identified=True, rank=1,
        detail_rms=0.0, invented=None,
    )  # fmt: skip
    return EnhancementRecord(
        method="classical", noise=0.0, steps=("bicubic",), before=scores, after=scores,
        psnr_change_db=change_db, psnr_gain_change_db=change_db, identification_moved="none",
    )  # fmt: skip


def leaks(raw: float = 5.0, frame_cnn: float = 5.0, simple: float = 5.0) -> Planted:
    """Plant gains of raw frames, of one extractor, and of the simplest classifiers."""

    def gain(key: RunKey) -> float:
        if isinstance(key, FeatureRun):
            return frame_cnn if key.extractor == "frame_cnn" else 5.0
        assert isinstance(key, RawRun)
        return simple if key.width == 8 or key.depth == 1 else raw

    return Planted(gain=gain)


class PlantedRuns:
    """Stand-in for `evaluate` that leaves planted runs with pictures, and the folders that it made."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.results = {key.folder: run for key, run in leaks(raw=9.0).results(QUICK).items()}
        self.settings = {key.folder: key.settings(QUICK) for key in plan(QUICK)}

    def evaluate(self, settings: Settings, folder: Path, **options: object) -> RunRecord:
        assert settings == self.settings[folder.name]
        self.folders.append(folder.name)
        folder.mkdir(parents=True)
        numbers = generator("pictures", folder.name)
        np.save(folder / "clips.npy", torch.randint(256, (8, 3, 2, 8, 8), generator=numbers).byte().numpy())
        np.save(folder / "a.npy", torch.randint(256, (3, 2, 8, 8), generator=numbers).byte().numpy())
        run = self.results[folder.name]
        media = {"media": "a.npy", "media_enhanced": "a.npy"}
        cells = tuple(cell.model_copy(update=media) for cell in run.cells)
        run = run.model_copy(update={"cells": cells})
        (folder / "results.json").write_text(run.model_dump_json(), encoding="utf-8")
        return run
