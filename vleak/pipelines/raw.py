"""Pipeline of raw frames: a classifier sees the clips themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from vleak.attacks import Knowledge, Reconstruction
from vleak.data import ClipSet
from vleak.federated import freeze_others
from vleak.models import check_classifier, check_second_derivative, train, training_steps
from vleak.pipelines.base import Pipeline
from vleak.pipelines.case import Answer, Case
from vleak.pipelines.conditions import Conditions, Progress, Samples, Stop, model_record
from vleak.pipelines.pictures import ClipPictures
from vleak.results.records import Scores
from vleak.seeds import generator

__all__ = ["RawPipeline"]


class RawPipeline(Pipeline):
    """Clips of frames, trained on by cross-entropy."""

    kind: ClassVar[str] = "raw"
    pictures: ClipPictures

    def __init__(
        self,
        data: ClipSet,
        *,
        model: nn.Module,
        name: str,
        pictures: ClipPictures,
        conditions: Conditions,
        progress: Progress,
    ) -> None:
        """Train the model on the public clips and compute the honest updates.

        Args:
            data: the clips.
            model: a classifier on the CPU; it is trained in place.
            name: name of the model in records.
            pictures: of the same data.
            conditions: what all cells have in common.
            progress: told what is being done.

        Raises:
            InputError: the model does not fit the clips, or there is nothing to train on.
            CapabilityError: the model has no second derivative.
        """
        classes = len(data.classes)
        samples = Samples(
            data.clips, data.labels, data.public_clips, data.public_labels, classes, data.labels_drawn,
            data.public_from,
        )  # fmt: skip
        check_classifier(model, data.clips[:1], classes)
        steps = training_steps(conditions.training_state)
        train(model, data.public_clips, data.public_labels, steps, generator(conditions.seed, "training"))
        check_classifier(model, data.clips[:1], classes)
        freeze_others(model, conditions.trainable)
        progress("classifying the clips", 0, 0)
        record = model_record(model, samples, conditions, name=name, pipeline=self.kind)
        model = model.to(conditions.device)
        check_second_derivative(
            model, data.clips[:1]
        )  # where it will run: a device may lack what the CPU has
        progress("comparing the clips", 0, 0)
        super().__init__(
            model=model,
            model_record=record,
            loss="cross_entropy",
            samples=samples,
            pictures=pictures,
            clip_names=data.names,
            conditions=conditions,
            progress=progress,
        )

    def knowledge(
        self, clips: Sequence[int], reference_frames: int, labels: Tensor | None = None
    ) -> Knowledge:
        """Knowledge of the frames of some clips."""
        return self.pictures.knowledge(clips, reference_frames, labels)

    def baseline_knowledge(
        self, clips: Sequence[int], reference_frames: int, labels: Tensor | None = None
    ) -> Knowledge:
        """Knowledge of the frames of a clip."""
        return self.pictures.knowledge(clips, reference_frames, labels)

    def similarity(self, answer: Tensor, truth: Tensor) -> float:
        """Likeness of frames: the negative squared error."""
        return -float((answer - truth).square().mean())

    def answer(
        self, case: Case, reconstruction: Reconstruction, generator: torch.Generator, stop: Stop
    ) -> Answer:
        """Answer in frames, as it is."""
        return Answer(reconstruction, clip=reconstruction.clips[0])

    def scores(self, case: Case, answer: Answer) -> Scores:
        """Scores of the frames."""
        return self.pictures.scores(answer.clip, case.clip, case.reference_frames, self.candidates(case.clip))
