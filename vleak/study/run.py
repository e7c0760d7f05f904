"""Run of a study: its plan, its runs, its record."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vleak.data import FeatureSet, load_data, recognise
from vleak.errors import InputError, argument
from vleak.evaluation import StoppedError, evaluate
from vleak.evaluation.run import count_workers
from vleak.files import write_atomic
from vleak.models import build_extractor
from vleak.pipelines import extractor_for
from vleak.results.records import RunRecord
from vleak.study.claims import CLAIMS
from vleak.study.keys import RunKey
from vleak.study.measures import Results
from vleak.study.records import STUDY_FILE, ClaimRecord, StudyRecord
from vleak.study.runs import EXTRACTORS, REFERENCE_FRAMES
from vleak.study.settings import Study

Progress = Callable[[str, int, int], None]
"""Callback (what, runs finished, runs in all)."""


def plan(study: Study) -> list[RunKey]:
    """Return the runs of all claims, each once.

    Raises:
        InputError: fewer clips than an interval needs.
    """
    study.check()
    return list(dict.fromkeys(key for claim in CLAIMS for key in claim.runs(study)))


def judge(study: Study, results: Results) -> tuple[ClaimRecord, ...]:
    """Return all claims with their verdicts.

    Args:
        study: settings of the study.
        results: records of all runs of its `plan`.
    """
    return tuple(claim.record(study, results) for claim in CLAIMS)


def run_study(
    study: Study,
    out: Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> StudyRecord:
    """Run every run of a study that is not finished yet, and write ``study.json``.

    Args:
        study: settings.
        out: folder; every run is a folder below it, and a stopped one is resumed.
        workers: as for `vleak.evaluation.evaluate`.
        progress: called as (what, runs finished, runs in all).
        stop: when set, the study ends after the finished cells.

    Returns:
        The content of ``study.json``.

    Raises:
        InputError: settings or data cannot be used, or a folder holds another run.
        StoppedError: ``stop`` was set before the end.
        VleakError: the folder cannot be written.
    """
    count_workers(workers)
    keys, report = plan(study), progress or (lambda what, done, total: None)
    report("looking at the data", 0, len(keys))
    _check_data(study)
    _make(out)
    report("preparing the extractors", 0, len(keys))
    _train_extractors(study)
    results: dict[RunKey, RunRecord] = {}
    for number, key in enumerate(keys):
        report(key.name, number, len(keys))
        if stop is not None and stop.is_set():
            raise StoppedError(f"stopped with {number} of {len(keys)} runs finished")
        results[key] = evaluate(key.settings(study), out / key.folder, workers=workers, stop=stop)
    report("judging", len(keys), len(keys))
    record = _record(study, results)
    content = json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(out / STUDY_FILE, content)
    return record


def _record(study: Study, results: Results) -> StudyRecord:
    first = next(iter(results.values()))
    return StudyRecord(
        settings=study,
        environment=first.environment,
        data=first.data,
        runs=tuple(key.name for key in results),
        claims=judge(study, results),
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{argument('out', folder)} cannot be used: {error.strerror}; give another folder"
        ) from error


def _check_data(study: Study) -> None:
    """Refuse data that some of the runs could not use, before the first of them.

    Raises:
        InputError: the data cannot be loaded, has no frames, or leaves no public clips.
    """
    for name in EXTRACTORS:
        build_extractor(name, frames=study.attacked_frames, size=study.size, seed=0)
    references = 0 if recognise(study.data) == "features" else max(REFERENCE_FRAMES)
    data = load_data(
        study.data,
        clips=study.clips,
        frames=study.attacked_frames,
        size=study.size,
        stride=study.stride,
        seed=study.seed,
        references=references,
    )
    if isinstance(data, FeatureSet):
        raise InputError(
            f"{argument('data', study.data)} holds features, which have no frames; give videos to a study"
        )
    if not len(data.public_clips):
        raise InputError(
            f"{argument('clips', study.clips)}: all clips of {study.data} are attacked, none is left to "
            "train the enhancement network on; lower it, or give more videos"
        )


def _train_extractors(study: Study) -> None:
    """Train the extractors that are not in the cache yet, side by side."""

    def train(name: str) -> None:
        extractor_for(name, frames=study.attacked_frames, size=study.size)

    with ThreadPoolExecutor(len(EXTRACTORS)) as pool:
        list(pool.map(train, EXTRACTORS))
