"""Frames of the private clips: what baselines say of them, fidelity to them, and their enhancement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from vleak.attacks import BASELINES, SHARED_GUESSES, Knowledge, Observation, answerable
from vleak.data import ClipSet
from vleak.enhance import Enhancer, plain
from vleak.federated import Update
from vleak.metrics import Metric, measure
from vleak.pipelines.scoring import clip_scores, enhancement_scores
from vleak.results.records import EnhancementRecord, Scores
from vleak.seeds import generator

__all__ = [
    "BaselineAnswers",
    "ClipPictures",
    "NoPictures",
    "Pictures",
    "apart",
    "empty_update",
    "mapped_answers",
]

BaselineAnswers = dict[int, list[dict[str, Tensor]]]
"""Answers of the baselines: by number of reference frames, for every clip, by name of the baseline."""


class Pictures(ABC):
    """Frames of the private clips, as far as the data has any."""

    @abstractmethod
    def scores(self, clip: Tensor | None, index: int, references: int, candidates: Sequence[int]) -> Scores:
        """Scores of a rebuilt clip (C, T, H, W); empty where there are no frames.

        Args:
            clip: rebuilt frames in [0, 1].
            index: position of the private clip in the data.
            references: number of reference frames, which says what the baselines are.
            candidates: positions of the clips among which one is to be identified.
        """

    @abstractmethod
    def enhance(
        self, clip: Tensor | None, index: int, references: int, candidates: Sequence[int]
    ) -> tuple[EnhancementRecord, Tensor] | None:
        """Scores of enhancement and the enhanced clip (C, T, 2H, 2W); None where nothing is enhanced."""


class NoPictures(Pictures):
    """Data without frames: nothing to look at, nothing to score."""

    def scores(self, clip: Tensor | None, index: int, references: int, candidates: Sequence[int]) -> Scores:
        """No score."""
        return Scores()

    def enhance(
        self, clip: Tensor | None, index: int, references: int, candidates: Sequence[int]
    ) -> tuple[EnhancementRecord, Tensor] | None:
        """Nothing."""
        return None


class ClipPictures(Pictures):
    """Frames of a data set of clips."""

    def __init__(
        self,
        data: ClipSet,
        *,
        reference_frames: Sequence[int] = (0,),
        seed: int = 0,
        method: str = "none",
        enhancer: Enhancer | None = None,
        metrics: Mapping[str, Metric] | None = None,
        granted: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Ask the baselines once for all cells, and enhance their answers as those of attacks.

        Args:
            data: the clips.
            reference_frames: numbers of reference frames that the run looks at.
            seed: seed of the run.
            method: name of the enhancer, for records.
            enhancer: brings a clip to twice the resolution; None for no enhancement.
            metrics: further metrics by name.
            granted: labels (N,) of the clips and (M,) of the public ones, where the attacker is told labels.
        """
        self.data, self.method, self.metrics, self.granted = data, method, metrics or {}, granted
        self.enhancer = None if data.fine is None else enhancer
        self.baselines = {count: self._ask_baselines(count, seed) for count in reference_frames}
        self._interpolated: BaselineAnswers = {}
        self._enhanced: BaselineAnswers = {}
        if self.enhancer is not None:
            bring_up = self.enhancer
            self._interpolated = mapped_answers(self.baselines, plain)
            self._enhanced = mapped_answers(self.baselines, lambda clip: bring_up(clip).clip)

    def knowledge(self, clips: Sequence[int], references: int, labels: Tensor | None = None) -> Knowledge:
        """Knowledge of the frames of a client's clips: the threat model without the defense.

        Args:
            clips: positions of the clips in the data.
            references: number of reference frames that are granted for each.
            labels: (B,) int64, the labels where they are granted.
        """
        frames = None
        if references and self.data.references is not None:
            # A copy, because a view would reach the frames of other clips.
            frames = self.data.references[list(clips), :, :references].clone()
        return Knowledge(
            clip_shape=tuple(self.data.clips.shape[1:]),
            batch_size=len(clips),
            classes=len(self.data.classes),
            public_clips=self.data.public_clips,
            public_groups=apart(self.data),
            public_labels=None if self.granted is None else self.granted[1],
            references=frames,
            labels=labels,
        )

    def scores(self, clip: Tensor | None, index: int, references: int, candidates: Sequence[int]) -> Scores:
        """Fidelity, motion, order and identification, beside the baselines, and further metrics."""
        if clip is None:
            return Scores()
        answers = self.baselines[references][index]
        names = ("reference_still", "public_mean", "grey")
        prior = next(answers[name] for name in names if name in answers)
        scores = self._clip_scores(clip, index, candidates, answers, prior)
        return scores.model_copy(
            update={
                "baseline_identified": self._baseline_identifies(index, candidates, answers)
                if references
                else None,
                "metrics": {
                    name: measure(metric, clip, self.data.clips[index], name=name)
                    for name, metric in self.metrics.items()
                },
            }
        )

    def enhance(
        self, clip: Tensor | None, index: int, references: int, candidates: Sequence[int]
    ) -> tuple[EnhancementRecord, Tensor] | None:
        """Scores before and after enhancement, the baselines treated alike, and the enhanced clip."""
        if self.enhancer is None or self.data.fine is None or clip is None:
            return None
        enhanced = self.enhancer(clip)
        answers = (self._interpolated[references][index], self._enhanced[references][index])
        position, fine = candidates.index(index), self.data.fine[list(candidates)]
        record = enhancement_scores(self.method, plain(clip), enhanced, position, fine, answers)
        return record, enhanced.clip

    def _clip_scores(
        self,
        clip: Tensor,
        index: int,
        candidates: Sequence[int],
        answers: Mapping[str, Tensor],
        prior: Tensor,
    ) -> Scores:
        return clip_scores(clip, candidates.index(index), self.data.clips[list(candidates)], answers, prior)

    def _baseline_identifies(
        self, index: int, candidates: Sequence[int], answers: Mapping[str, Tensor]
    ) -> bool:
        """Whether reference frames alone identify the clip: what identification has to beat then."""
        return any(
            self._clip_scores(clip, index, candidates, answers, clip).identified
            for name, clip in answers.items()
            if name.startswith("reference")
        )

    def _ask_baselines(self, references: int, seed: int) -> list[dict[str, Tensor]]:
        """Answers (C, T, H, W) of the baselines for every clip, by name."""
        model, update = empty_update()

        def knowledge(index: int) -> Knowledge:
            labels = None if self.granted is None else self.granted[0][[index]]
            return self.knowledge((index,), references, labels)

        names, unused = answerable(knowledge(0)), generator(seed, "null")

        def answers(index: int, chosen: Sequence[str]) -> dict[str, Tensor]:
            observation = Observation(model, update, knowledge(index))
            return {name: BASELINES.build(name).reconstruct(observation, unused).clips[0] for name in chosen}

        shared = answers(0, [name for name in names if name in SHARED_GUESSES])
        own = [name for name in names if name not in SHARED_GUESSES]
        return [shared | (answers(index, own) if own else {}) for index in range(len(self.data.clips))]


def apart(data: ClipSet) -> Tensor | None:
    """Groups of the public clips, (M,), of which no private clip is; None where they are not known."""
    return None if data.public_from == "same-file" else data.public_groups


def mapped_answers(answers: BaselineAnswers, change: Callable[[Tensor], Tensor]) -> BaselineAnswers:
    """Answers of the baselines after a change; those that several clips share are changed once."""
    changed: dict[int, Tensor] = {}

    def apply(answer: Tensor) -> Tensor:
        if id(answer) not in changed:
            changed[id(answer)] = change(answer)
        return changed[id(answer)]

    return {
        count: [{name: apply(answer) for name, answer in by_name.items()} for by_name in clips]
        for count, clips in answers.items()
    }


def empty_update() -> tuple[nn.Module, Update]:
    """Model of one zero and its update, which baselines are shown where nothing was sent."""
    model = nn.ParameterList([torch.zeros(1)])
    return model, Update({name: torch.zeros(p.shape) for name, p in model.named_parameters()}, 0)
