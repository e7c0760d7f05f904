"""Set-up of a run: its data, its pipelines, and the header of its record."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import cast

import torch
from torch import nn

import vleak
from vleak.attacks import FeatureInversion
from vleak.data import (
    ClipSet,
    FeatureSet,
    PublicFrom,
    check_clip_set,
    first_of,
    load_data,
    recognise,
    redrawn,
)
from vleak.defenses import Defense, defense_text
from vleak.enhance import Enhancer, build_enhancer
from vleak.errors import InputError, VleakError, argument, first_line
from vleak.evaluation.models import classifier_of, extractor_of, head_of
from vleak.evaluation.objects import data_name, data_set, module_name
from vleak.evaluation.settings import Settings
from vleak.evaluation.strengths import ALL, strengths_of
from vleak.evaluation.utility import check_utility
from vleak.federated import Client, steps
from vleak.models import Plain, check_classifier
from vleak.native import loader
from vleak.pipelines import (
    ClipPictures,
    Conditions,
    Data,
    ExtractedFeatures,
    FeatureFiles,
    FeaturePipeline,
    FeatureSource,
    Pipeline,
    Progress,
    RawPipeline,
    data_record,
    labels_of,
    network_for,
)
from vleak.results.records import EnvironmentRecord, RunHeader
from vleak.seeds import generator

__all__ = ["PreparedRun", "prepare"]

_INVERSION = 2
"""Iterations of feature inversion for one of the attack: features are fewer than pixels, and cheaper."""
_QUICK_CLIPS = 8
"""Of a quick run: of fewer no interval is given."""


@dataclass(frozen=True)
class PreparedRun:
    """What the cells of a run share.

    Attributes:
        data: private and public clips or features.
        pipelines: in the order in which they run.
        header: of the record.
        settings: of the run, without the defenses that its clients cannot use.
    """

    data: Data
    pipelines: tuple[Pipeline, ...]
    header: RunHeader
    settings: Settings


def prepare(settings: Settings, progress: Progress) -> PreparedRun:
    """Load the data and make the pipelines.

    Raises:
        InputError: data or models cannot be used, or do not fit together.
        CapabilityError: a model has no second derivative.
    """
    progress("loading clips", 0, 0)
    data = _load(settings, progress)
    data = first_of(data, min(len(data.names), _QUICK_CLIPS)) if settings.quick else data
    _check_batches(settings, len(data.names))
    check_utility(settings, data)
    data, model = _with_model(data, settings)
    pipelines = _pipelines(data, settings, progress, model)
    served, not_served = _served(settings, pipelines, progress)
    _check_clients(served, pipelines)
    binary = settings.loss != "cross_entropy" and "feature" in settings.pipelines()
    progress("describing the data", 0, 0)
    resolved, described = settings.resolved(), data_record(data, binary=binary, progress=_counted(progress))
    header = RunHeader(
        environment=_environment(resolved.device),
        settings=resolved,
        data=described.model_copy(update={"notes": (*described.notes, *_cut_short(settings))}),
        models=tuple(pipeline.model_record for pipeline in pipelines),
        not_served=not_served,
    )
    return PreparedRun(data, tuple(pipelines), header, served)


def _cut_short(settings: Settings) -> tuple[str, ...]:
    """Return what a quick run leaves out, a note."""
    if not settings.quick:
        return ()
    return (
        f"quick run: at most {_QUICK_CLIPS} clips, the weakest and the strongest of every sweep, "
        "no enhancement",
    )


def _check_batches(settings: Settings, clips: int) -> None:
    needed = max(settings.batch) * max(settings.rounds)
    if settings.round_clips == "new" and needed > clips:
        raise InputError(
            f"{argument('round_clips', 'new')}: {max(settings.rounds)} rounds of {max(settings.batch)} new "
            f"clips need {needed}, the data holds {clips} to attack; ask for fewer rounds, or more clips"
        )
    if max(settings.batch) > clips:
        raise InputError(
            f"{argument('batch', max(settings.batch))}: the data holds {clips} clips to attack; ask for a "
            "smaller batch, or more clips"
        )


def _served(
    settings: Settings, pipelines: Sequence[Pipeline], progress: Progress
) -> tuple[Settings, dict[str, str]]:
    """Return the settings with the defenses of ``all`` that every client can use, and why not the others.

    Each sends one message to find out. What was asked for by its own name is left to fail where it does.
    """
    if ALL not in settings.defenses:
        return settings, {}
    asked, reasons = {defense_text(strength) for strength in _named(settings)}, dict[str, str]()
    for strength in settings.strengths():
        text = defense_text(strength)
        progress(f"trying defense {text}", 0, 0)
        if text not in asked and (reason := _refusal(strength, settings, pipelines)):
            reasons[text] = reason
    kept = tuple(each for each in settings.strengths() if defense_text(each) not in reasons)
    return replace(settings, defenses=kept), reasons


def _named(settings: Settings) -> list[Defense]:
    """Return the defenses that were asked for by their names, in all strengths."""
    return list(strengths_of([given for given in settings.defenses if given != ALL], ends=settings.quick))


def _refusal(strength: Defense, settings: Settings, pipelines: Sequence[Pipeline]) -> str:
    """Return why the clients of a run cannot use a defense; empty where they can."""
    for pipeline in pipelines:
        for chosen in settings.clients():
            batch, known = slice(0, chosen.batch_size), pipeline.samples
            samples, labels = known.private[batch], known.labels[batch]
            try:
                own = steps.with_public(strength, known.public, known.public_labels)
                client = Client(pipeline.model, pipeline.loss, own, mode=chosen.mode, local=chosen.local)
                client.check_model()
                client.update(samples, labels, generator(settings.seed, "served"), {})
                client.privacy(len(samples), chosen.rounds)
            except VleakError as error:
                return first_line(error)
    return ""


def _check_clients(settings: Settings, pipelines: Sequence[Pipeline]) -> None:
    """Refuse models that a defense or the mode of the clients cannot serve."""
    for pipeline in pipelines:
        for defense in settings.strengths():
            Client(pipeline.model, pipeline.loss, defense).check_model()
        if "train" in settings.mode:  # in mode "eval" every clip has been through it
            batch = pipeline.samples.private[: max(settings.batch)]
            Client(pipeline.model, pipeline.loss, mode="train").check_model(batch)


def _with_model(data: Data, settings: Settings) -> tuple[Data, Plain | None]:
    """Data, and the classifier of the raw pipeline where it runs; refuses one that a defense cannot serve.

    Labels that were drawn are drawn over as many pseudo-classes as the classifier has logits: one that was
    handed over may have a number of its own.
    """
    if not isinstance(data, ClipSet) or "raw" not in settings.pipelines():
        return data, None
    frames, size = data.clips.shape[2:4]
    model, notes = classifier_of(
        settings.model, frames=frames, size=size, classes=len(data.classes), seed=settings.seed,
        least=2 if data.labels_drawn else None, layout=settings.layout(), checkpoint=settings.checkpoint,
    )  # fmt: skip
    logits = check_classifier(model, data.clips[:1], 2 if data.labels_drawn else len(data.classes))
    if data.labels_drawn and logits != len(data.classes):
        data = redrawn(data, logits, settings.seed)
    for defense in _named(settings):  # before the updates of all clips are computed
        Client(model, "cross_entropy", defense).check_model()
    return data, Plain(model, notes)


def _load(settings: Settings, progress: Progress) -> Data:
    asked = max(settings.reference_frames)
    data = data_set(settings.data)
    if data is not None:
        if settings.public_from != "other-files":
            raise InputError(
                f"{argument('public_from', settings.public_from)}: {data_name(settings.data)} was handed "
                "over with public clips of its own; leave it out, or give a path"
            )
        _check_data(data, settings)
        return first_of(data, settings.clips)
    source = data_name(settings.data)
    features = recognise(source) == "features"
    if features:
        _refuse_frames(settings)
    return load_data(
        source, clips=settings.clips, frames=settings.frames, size=settings.size,
        stride=settings.stride, seed=settings.seed, references=asked,
        fine=settings.enhance != "none" and not features, segments=settings.segments, strict=settings.strict,
        public_from=cast("PublicFrom", settings.public_from),
        progress=_counted(progress),
    )  # fmt: skip


def _counted(progress: Progress) -> Progress:
    """Progress of a part of the set-up, whose counts become words: they are no cells."""
    return lambda what, done, total: progress(f"{what}, {done} of {total}", 0, 0)


@singledispatch
def _check_data(data: Data, settings: Settings) -> None:
    """Refuse data without what the settings ask of it."""
    _refuse_frames(settings)


@_check_data.register
def _check_clips(data: ClipSet, settings: Settings) -> None:
    try:
        check_clip_set(data, (settings.frames, settings.size, settings.size))
    except InputError as error:
        raise InputError(f"data: the ClipSet {error}") from error
    asked = max(settings.reference_frames)
    held = 0 if data.references is None else data.references.shape[2]
    if asked > held:
        raise InputError(
            f"{argument('reference_frames', asked)}: the data holds {held}; give a ClipSet with more "
            "`references`"
        )


def _refuse_frames(settings: Settings) -> None:
    """Refuse what needs frames of data that has none."""
    without = f"{data_name(settings.data)} holds features, which have no frames"
    if "raw" in settings.pipelines():
        raise InputError(f"{argument('data', without)}; give {argument('pipeline', 'feature')}")
    if max(settings.reference_frames):
        asked = ",".join(map(str, settings.reference_frames))
        raise InputError(f"{argument('reference_frames', asked)}: {without}; leave it out")


@singledispatch
def _pipelines(
    data: Data, settings: Settings, progress: Progress, classifier: Plain | None
) -> list[Pipeline]:
    """Pipelines of a run on its data."""
    raise InputError(f"data: expected a ClipSet or a FeatureSet, got {type(data).__name__}")


@_pipelines.register
def _of_clips(
    data: ClipSet, settings: Settings, progress: Progress, classifier: Plain | None
) -> list[Pipeline]:
    progress("preparing the pictures", 0, 0)
    pictures = _pictures(data, settings, "cross_entropy")
    progress("preparing the model", 0, 0)
    pipelines: list[Pipeline] = []
    if classifier is not None:
        model, notes = classifier
        raw = RawPipeline(
            data, model=model, name=module_name("model", settings.model), pictures=pictures,
            conditions=_conditions(settings, "raw"), progress=progress,
        )  # fmt: skip
        raw.model_record = raw.model_record.model_copy(update={"notes": notes})
        pipelines.append(raw)
    if "feature" in settings.pipelines():
        progress("preparing the extractor", 0, 0)
        if pictures.granted is not None and settings.loss != "cross_entropy":
            pictures = _pictures(data, settings, settings.loss)  # this loss's labels are the granted ones
        source = _extracted(data, settings, pictures)
        pipelines.append(
            _feature_pipeline(source, module_name("extractor", settings.extractor), settings, progress)
        )
    return pipelines


def _pictures(data: ClipSet, settings: Settings, loss: str) -> ClipPictures:
    """Frames of the clips, with the labels that a loss knows where the attacker is told these."""
    granted = None
    if settings.labels == "granted" and not data.labels_drawn:
        granted = labels_of(data, loss)
    return ClipPictures(
        data,
        reference_frames=settings.reference_frames,
        seed=settings.seed,
        method=settings.enhance,
        enhancer=_enhancer(settings.enhance, data),
        metrics=settings.metric_objects(),
        granted=granted,
    )


@_pipelines.register
def _of_features(
    data: FeatureSet, settings: Settings, progress: Progress, classifier: Plain | None
) -> list[Pipeline]:
    return [_feature_pipeline(FeatureFiles(data), "files", settings, progress)]


def _extracted(data: ClipSet, settings: Settings, pictures: ClipPictures) -> ExtractedFeatures:
    frames, size = data.clips.shape[2:4]
    extractor, accuracy = extractor_of(settings.extractor, frames=frames, size=size, seed=settings.seed)
    return ExtractedFeatures(
        data,
        extractor=extractor.to(settings.torch_device()),
        accuracy=accuracy,
        loss=settings.loss,
        pictures=pictures,
        inversion=FeatureInversion(
            iterations=_INVERSION * settings.iterations, engine=settings.engine_that_runs()
        ),
    )


def _feature_pipeline(
    source: FeatureSource, extractor: str, settings: Settings, progress: Progress
) -> FeaturePipeline:

    def head(segments: int, features: int, outputs: int | None) -> nn.Module:
        return head_of(
            settings.head, segments=segments, features=features, outputs=outputs, seed=settings.seed
        )

    without_folders = re.sub(r"=[^,]*/", "=", extractor)
    return FeaturePipeline(
        source,
        head=head,
        loss=settings.loss,
        name=f"{without_folders}>{module_name('head', settings.head)}>{settings.loss}",
        conditions=_conditions(settings, "feature"),
        progress=progress,
    )


def _conditions(settings: Settings, pipeline: str) -> Conditions:
    return Conditions(
        training_state=settings.state_of(pipeline),
        labels_granted=settings.labels == "granted",
        trainable=settings.trainable,
        seed=settings.seed,
        draw=settings.draw,
        device=settings.torch_device(),
    )


def _enhancer(method: str, data: ClipSet) -> Enhancer | None:
    if method == "none":
        return None
    return build_enhancer(method, network=network_for(data) if method == "network" else None)


def _environment(device: str) -> EnvironmentRecord:
    return EnvironmentRecord(
        vleak=vleak.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        extension=loader.status().state,
        device=device,
    )
