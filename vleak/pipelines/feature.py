"""Pipeline of features: a head sees the feature matrices of a frozen extractor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from vleak.attacks import Knowledge, Reconstruction
from vleak.errors import InputError
from vleak.federated import LOSSES, freeze_others
from vleak.metrics import carrying_segments, match_segments
from vleak.models import BagPair, check_head, check_second_derivative, train, training_steps
from vleak.pipelines.bags import bag_pairs, public_pairs
from vleak.pipelines.base import Pipeline
from vleak.pipelines.case import Answer, Case
from vleak.pipelines.conditions import Conditions, Progress, Samples, Stop, model_record
from vleak.pipelines.pictures import ClipPictures
from vleak.pipelines.scoring import segment_scores
from vleak.pipelines.sources import FeatureSource, guessed_features
from vleak.results.records import Scores
from vleak.seeds import generator

__all__ = ["FeaturePipeline", "HeadFactory"]

HeadFactory = Callable[[int, int, int | None], nn.Module]
"""Makes a head of the numbers of segments, features and outputs; no number of outputs for scores."""


class FeaturePipeline(Pipeline):
    """Matrices of features, one a clip, or pairs of them for the loss "ranking"."""

    kind: ClassVar[str] = "feature"

    def __init__(
        self,
        source: FeatureSource,
        *,
        head: HeadFactory,
        loss: str,
        name: str,
        conditions: Conditions,
        progress: Progress,
    ) -> None:
        """Train the head on public features and compute the honest updates.

        Args:
            source: of the features.
            head: makes the head of (segments, features, outputs); outputs is None for scores.
            loss: a key of `vleak.federated.LOSSES`.
            name: name of the model in records.
            conditions: what all cells have in common.
            progress: told what is being done.

        Raises:
            InputError: the head does not fit, or the loss needs clips of both kinds and there is one.
            CapabilityError: the head has no second derivative.
        """
        self.source = source
        samples, self._positions = _samples(source, loss, conditions)
        model = _trained_head(source, samples, head, loss, conditions)
        freeze_others(model, conditions.trainable)
        record = model_record(
            model, samples, conditions, name=name, pipeline=self.kind, extractor_accuracy=source.accuracy,
            matrix=(source.features.shape[1], source.features.shape[2]),
        )  # fmt: skip
        model = model.to(conditions.device)
        check_second_derivative(model, samples.private[:1], LOSSES[loss])
        super().__init__(
            model=model, model_record=record, loss=loss, samples=samples, pictures=source.pictures,
            clip_names=source.clip_names, conditions=conditions, progress=progress,
        )  # fmt: skip
        self._carrying = self._carrying_segments()
        guesses = guessed_features(self.knowledge((0,), 0))
        own = [
            {key: self._own_bag(clip, bag) for key, bag in guesses.items()}
            for clip in range(len(samples.private))
        ]
        self._baselines = source.baselines(own)

    def knowledge(
        self, clips: Sequence[int], reference_frames: int, labels: Tensor | None = None
    ) -> Knowledge:
        """Knowledge of the features, which is the same for every clip."""
        return Knowledge(
            clip_shape=tuple(self.samples.private.shape[1:]),
            batch_size=len(clips),
            classes=self.samples.classes,
            public_clips=self.samples.public,
            # Bags of a pair are of two videos.
            public_groups=None if self.loss == "ranking" else self.source.public_groups,
            nonnegative=self.source.nonnegative,
            unit_norm=self.source.unit_norm,
            labels=labels,
        )

    def baseline_knowledge(
        self, clips: Sequence[int], reference_frames: int, labels: Tensor | None = None
    ) -> Knowledge:
        """Knowledge of frames where there are any: baselines guess those."""
        features = self.knowledge(clips, reference_frames, labels)
        return self.source.baseline_knowledge(clips, reference_frames, labels, features)

    def parts(self, cases: Sequence[Case], reconstruction: Reconstruction) -> list[Reconstruction]:
        """Parts of an answer to a batch; segments that are claimed without their order or bag are matched.

        The gradient of a mean over bags does not tell which segments are of one bag.
        """
        claimed = reconstruction.recovered
        if len(cases) == 1 or reconstruction.ordered or claimed is None:
            return super().parts(cases, reconstruction)
        truths = self.samples.private[list(cases[0].batch)].flatten(0, -2)
        rows, claimed = reconstruction.clips.flatten(0, -2), claimed.flatten()
        matching, _ = match_segments(torch.where(claimed[:, None], rows, 0.0), truths)
        sorted_rows = replace(
            reconstruction,
            clips=rows[matching].view_as(reconstruction.clips),
            recovered=claimed[matching].view(reconstruction.clips.shape[:-1]),
        )
        return [sorted_rows.part(index) for index in range(len(cases))]

    def similarity(self, answer: Tensor, truth: Tensor) -> float:
        """Likeness of features: the mean cosine of segments, in any order; of pairs that of both bags."""
        bags = zip(answer.view(-1, *answer.shape[-2:]), truth.view(-1, *truth.shape[-2:]), strict=True)
        return sum(float(match_segments(one, other)[1].mean()) for one, other in bags)

    def answer(
        self, case: Case, reconstruction: Reconstruction, generator: torch.Generator, stop: Stop
    ) -> Answer:
        """Answer in features, and in frames where a way leads there."""
        if case.baseline:
            return self.source.guess(reconstruction, lambda sample: self._own_bag(case.clip, sample))
        features = self._own_bag(case.clip, reconstruction.clips[0])
        recovered = reconstruction.recovered
        if recovered is not None:
            recovered = self._own_bag(case.clip, recovered[0])
        inversion = self.source.to_frames(case, features, recovered, generator, stop)
        clip = None if inversion is None else inversion.clips[0]
        return Answer(reconstruction, clip=clip, features=features, inversion=inversion)

    def scores(self, case: Case, answer: Answer) -> Scores:
        """Scores of the features, and of the frames where there are any: they say what is identified then."""
        assert answer.features is not None
        candidates = self.candidates(case.clip)
        segments = segment_scores(
            answer.features,
            candidates.index(case.clip),
            self.source.features[candidates],
            self._baselines[case.reference_frames][case.clip],
            self._carrying[case.clip],
            ordered=answer.reconstruction.ordered,
        )
        scores = self.pictures.scores(answer.clip, case.clip, case.reference_frames, candidates)
        changes = {"segments": segments}
        if answer.clip is None:
            changes |= {key: getattr(segments, key) for key in ("identified", "rank", "candidates")}
        return scores.model_copy(update=changes)

    def _contents(self) -> list[Tensor]:
        """The matrices, and frames where there are any: an extractor may round equal clips differently."""
        frames = [self.pictures.data.clips] if isinstance(self.pictures, ClipPictures) else []
        return [self.source.features, *frames]

    def _own_bag(self, clip: int, sample: Tensor) -> Tensor:
        """Part of a sample, or of its mask, that is the clip itself and not its companion."""
        return sample if self._positions is None else sample[self._positions[clip]]

    def _carrying_segments(self) -> Tensor:
        """Segments of every clip that have a gradient, (N, S) bool."""
        device, loss = next(self.model.parameters()).device, LOSSES[self.loss]
        carrying = [
            carrying_segments(self.model, loss, sample.to(device), label.to(device)).view(sample.shape[:-1])
            for sample, label in zip(self.samples.private, self.samples.labels, strict=True)
        ]
        return torch.stack([self._own_bag(clip, mask) for clip, mask in enumerate(carrying)])


def _samples(source: FeatureSource, loss: str, conditions: Conditions) -> tuple[Samples, list[int] | None]:
    """Samples of a loss, and the position of every clip in its pair; None where a sample is one matrix."""
    if loss != "ranking":
        return Samples(
            source.features, source.labels, source.public, source.public_labels, source.classes,
            source.labels_drawn, source.public_from,
        ), None  # fmt: skip
    private, positions = bag_pairs(source.features, source.labels)
    public = public_pairs(source.public, source.public_labels)
    if training_steps(conditions.training_state) and not len(public):
        raise InputError(
            "loss 'ranking': training needs public clips of both kinds, normal and anomalous, and there are "
            "none; give more files, or the training state 'untrained'"
        )
    samples = Samples(
        private, source.labels, public, source.public_labels, source.classes, source.labels_drawn,
        source.public_from,
    )  # fmt: skip
    return samples, positions


def _trained_head(
    source: FeatureSource, samples: Samples, head: HeadFactory, loss: str, conditions: Conditions
) -> nn.Module:
    """Head of a loss, trained on public features, on the CPU."""
    segments, features = source.features.shape[1:]
    outputs = source.classes if loss == "cross_entropy" else None
    model = head(segments, features, outputs)
    if loss == "ranking":
        model = BagPair(model)
    steps, numbers = (
        training_steps(conditions.training_state),
        generator(conditions.seed, "training", "head"),
    )
    train(model, samples.public, samples.public_labels, steps, numbers, LOSSES[loss])
    check_head(model, samples.private[:1], loss, source.classes)
    return model
