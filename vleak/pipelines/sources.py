"""Sources of feature matrices: an extractor on clips, or files without frames."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vleak.attacks import BASELINES, FeatureInversion, Knowledge, Observation, Reconstruction, answerable
from vleak.data import ClipSet, FeatureSet, PublicFrom
from vleak.models import Extractor
from vleak.pipelines.bags import labels_of
from vleak.pipelines.case import Answer, Case
from vleak.pipelines.conditions import Stop
from vleak.pipelines.pictures import (
    BaselineAnswers,
    ClipPictures,
    NoPictures,
    Pictures,
    apart,
    empty_update,
    mapped_answers,
)
from vleak.seeds import generator

__all__ = ["ExtractedFeatures", "FeatureFiles", "FeatureSource", "extract", "guessed_features"]


class FeatureSource(ABC):
    """Feature matrices of private and public clips, and what leads from them to frames.

    Attributes:
        features: (N, S, F), of the private clips.
        public: (M, S, F).
        labels, public_labels: (N,) and (M,) int64, as the loss sees them.
        classes: number of classes.
        clip_names: names of the private clips.
        nonnegative, unit_norm: public properties of the features.
        accuracy: held-out accuracy of the extractor; None where unknown.
        pictures: frames of the private clips.
        labels_drawn: whether labels were drawn at random.
        public_from: as of `vleak.data.ClipSet`. public_groups: as of `vleak.attacks.Knowledge`.
    """

    features: Tensor
    public: Tensor
    labels: Tensor
    public_labels: Tensor
    classes: int
    clip_names: tuple[str, ...]
    nonnegative: bool
    unit_norm: bool
    accuracy: float | None
    pictures: Pictures
    labels_drawn: bool
    public_from: PublicFrom | None
    public_groups: Tensor | None

    @abstractmethod
    def baseline_knowledge(
        self, clips: Sequence[int], references: int, labels: Tensor | None, features: Knowledge
    ) -> Knowledge:
        """Knowledge of what baselines guess: frames where there are any, otherwise the features given."""

    @abstractmethod
    def baselines(self, own: list[dict[str, Tensor]]) -> BaselineAnswers:
        """Answers (S, F) of all baselines: own ones, and features of the frames that baselines guess.

        Args:
            own: for every clip, answers of baselines that guess features.
        """

    @abstractmethod
    def guess(self, reconstruction: Reconstruction, own_bag: Callable[[Tensor], Tensor]) -> Answer:
        """Answer of a baseline.

        Args:
            reconstruction: what the baseline returned.
            own_bag: takes the clip's own matrix (S, F) out of a sample.
        """

    @abstractmethod
    def to_frames(
        self, case: Case, features: Tensor, recovered: Tensor | None, generator: torch.Generator, stop: Stop
    ) -> Reconstruction | None:
        """Frames of rebuilt features (S, F); None where no way leads there.

        Args:
            case: the cell.
            features: rebuilt.
            recovered: (S,) bool, segments that the attack claims to have; None for all.
            generator: random numbers of the attack.
            stop: ends the descent early.
        """


class ExtractedFeatures(FeatureSource):
    """Features that a frozen, public extractor makes of clips."""

    pictures: ClipPictures

    def __init__(
        self,
        data: ClipSet,
        *,
        extractor: Extractor,
        accuracy: float | None,
        loss: str,
        pictures: ClipPictures,
        inversion: FeatureInversion,
    ) -> None:
        """Extract the features.

        Args:
            data: the clips.
            extractor: on the device where it is to run.
            accuracy: its held-out accuracy; None where unknown.
            loss: a key of `vleak.federated.LOSSES`; all but "cross_entropy" know only two kinds of clips.
            pictures: of the same data.
            inversion: leads features back to frames.
        """
        self.pictures, self.accuracy, self.clip_names = pictures, accuracy, data.names
        self._extractor, self._inversion = extractor, inversion
        self.nonnegative, self.unit_norm = extractor.nonnegative, extractor.unit_norm
        self.features, self.public = extract(extractor, data.clips), extract(extractor, data.public_clips)
        self.labels, self.public_labels = labels_of(data, loss)
        self.classes = len(data.classes) if loss == "cross_entropy" else 2
        self.labels_drawn, self.public_from = data.labels_drawn, data.public_from
        self.public_groups = apart(data)

    def baseline_knowledge(
        self, clips: Sequence[int], references: int, labels: Tensor | None, features: Knowledge
    ) -> Knowledge:
        """Knowledge of the frames of some clips."""
        return self.pictures.knowledge(clips, references, labels)

    def baselines(self, own: list[dict[str, Tensor]]) -> BaselineAnswers:
        """Features of the frames that baselines guess, and their own guesses of features."""
        guessed = mapped_answers(
            self.pictures.baselines, lambda clip: extract(self._extractor, clip[None])[0]
        )
        return {
            count: [answers | own[clip] for clip, answers in enumerate(clips)]
            for count, clips in guessed.items()
        }

    def guess(self, reconstruction: Reconstruction, own_bag: Callable[[Tensor], Tensor]) -> Answer:
        """Frames that a baseline guessed, and their features."""
        clip = reconstruction.clips[0]
        return Answer(reconstruction, clip=clip, features=extract(self._extractor, clip[None])[0])

    def to_frames(
        self, case: Case, features: Tensor, recovered: Tensor | None, generator: torch.Generator, stop: Stop
    ) -> Reconstruction | None:
        """Frames whose features the extractor makes these of."""
        return self._inversion.rebuild(
            copy.deepcopy(self._extractor),
            features[None],
            self.pictures.knowledge((case.clip,), case.reference_frames),
            generator,
            recovered=None if recovered is None else recovered[None],
            stop=stop,
        )


class FeatureFiles(FeatureSource):
    """Features from files, which no frames belong to."""

    def __init__(self, data: FeatureSet) -> None:
        """Take the features as they are."""
        self.features, self.public = data.features, data.public_features
        self.labels, self.public_labels, self.classes = data.labels, data.public_labels, len(data.classes)
        self.clip_names, self.accuracy, self.pictures = data.names, None, NoPictures()
        self.nonnegative, self.unit_norm = data.nonnegative, data.unit_norm
        self.labels_drawn, self.public_from = data.labels_drawn, data.public_from
        self.public_groups = None  # a video each

    def baseline_knowledge(
        self, clips: Sequence[int], references: int, labels: Tensor | None, features: Knowledge
    ) -> Knowledge:
        """Knowledge of the features."""
        return features

    def baselines(self, own: list[dict[str, Tensor]]) -> BaselineAnswers:
        """Guesses of features alone."""
        return {0: own}

    def guess(self, reconstruction: Reconstruction, own_bag: Callable[[Tensor], Tensor]) -> Answer:
        """Features that a baseline guessed."""
        return Answer(reconstruction, features=own_bag(reconstruction.clips[0]))

    def to_frames(
        self, case: Case, features: Tensor, recovered: Tensor | None, generator: torch.Generator, stop: Stop
    ) -> Reconstruction | None:
        """No frames."""
        return None


def extract(extractor: Extractor, clips: Tensor) -> Tensor:
    """Features (N, S, F) of clips (N, C, T, H, W), on the CPU; N may be 0."""
    device = next(extractor.parameters()).device
    if not len(clips):
        return extract(extractor, clips.new_full((1, *clips.shape[1:]), 0.5))[:0]
    with torch.no_grad():
        return torch.cat([extractor(part.to(device)).cpu() for part in torch.split(clips, 16)])


def guessed_features(knowledge: Knowledge) -> dict[str, Tensor]:
    """Answers of baselines that guess features, by name."""
    model, update = empty_update()
    observation, unused = Observation(model, update, knowledge), generator("null")
    return {
        f"{name} of features": BASELINES.build(name).reconstruct(observation, unused).clips[0]
        for name in answerable(knowledge)
    }
