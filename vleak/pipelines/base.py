"""Pipeline: data, model and loss of one kind of cells, and everything that cells share."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from vleak.attacks import (
    Knowledge,
    Observation,
    Reconstruction,
    answerable,
    link_rank,
    link_scores,
    order_identifiable,
    simulated_channel,
)
from vleak.certificates import identification_bound
from vleak.defenses import Defense, defense_text
from vleak.federated import Channel, Client, Privacy, Update
from vleak.models import TRAINING_STATES, accuracy
from vleak.pipelines.case import Answer, Case, Judgement
from vleak.pipelines.honest import HonestUpdates
from vleak.pipelines.pictures import Pictures
from vleak.pipelines.rivals import rivals
from vleak.pipelines.scoring import finite
from vleak.results.records import (
    AttackRecord,
    Cell,
    CertificateRecord,
    DefenseRecord,
    KnowledgeRecord,
    ModelRecord,
    Scores,
)
from vleak.seeds import derive_seed, generator

__all__ = ["Conditions", "Pipeline", "Progress", "Samples", "Stop", "model_record"]

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, cells finished, cells in all)."""
Stop = Callable[[], bool]
"""Asked between iterations; True ends the work."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Conditions under which all cells of a pipeline run.

    Attributes:
        device: device of models and attacks.
        training_state: a key of `vleak.models.TRAINING_STATES`.
        labels_granted: whether the attack is told the labels.
        seed: seed of the run.
    """

    device: torch.device
    training_state: str = "untrained"
    labels_granted: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Samples:
    """Samples of a training task, as its loss takes them.

    Attributes:
        private: (N, *shape), what the clients hold.
        labels: (N,) int64.
        public: (M, *shape), what everybody holds.
        public_labels: (M,) int64.
        classes: number of classes. labels_drawn: whether labels were drawn at random.
    """

    private: Tensor
    labels: Tensor
    public: Tensor
    public_labels: Tensor
    classes: int
    labels_drawn: bool = False


class Pipeline(ABC):
    """One kind of training task from clip to judgement. The truth lives here; an attack never gets this.

    Attributes:
        kind: "raw" or "feature".
        name: name of the model, as records have it.
        model: what is trained, and whose update leaks.
        model_record: the model as records have it.
        loss: a key of `vleak.federated.LOSSES`.
        samples: what the model is trained on.
        pictures: frames of the private clips.
        clip_names: names of the private clips.
        conditions: what all cells have in common.
        order_identifiable: whether an update depends on the order of frames or segments.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        *,
        model: nn.Module,
        model_record: ModelRecord,
        loss: str,
        samples: Samples,
        pictures: Pictures,
        clip_names: tuple[str, ...],
        conditions: Conditions,
    ) -> None:
        """Compute the honest updates of all clips with a model that is ready."""
        self.model, self.model_record, self.name = model, model_record, model_record.name
        self.loss, self.samples, self.pictures = loss, samples, pictures
        self.clip_names, self.conditions = clip_names, conditions
        self._rivals = rivals(self._contents(), samples.labels if loss == "ranking" else None)
        kinds, client = 1 if loss == "ranking" else samples.classes, Client(model, loss=loss)
        self._honest = HonestUpdates(client, samples.private, samples.labels, kinds, conditions.seed)
        self.order_identifiable = order_identifiable(model, tuple(samples.private.shape[1:]), loss=loss)

    @property
    def id_prefix(self) -> str:
        """Model and training state: first part of the ids of cells."""
        return f"{self.name}.{self.conditions.training_state}"

    @property
    def labels_granted(self) -> bool:
        """Whether labels are public: which bag of a pair is the anomalous one is."""
        return self.conditions.labels_granted or self.loss == "ranking"

    def baselines(self, reference_frames: int) -> tuple[str, ...]:
        """Names of the baselines that can answer with so many reference frames."""
        return answerable(self.baseline_knowledge(0, reference_frames))

    def candidates(self, clip: int) -> list[int]:
        """Positions of the clips among which one is to be identified: all that public knowledge allows."""
        return self._rivals[clip]

    def _contents(self) -> list[Tensor]:
        """What clips are told apart by, as `rivals` takes it."""
        return [self.samples.private]

    def seed(self, case: Case) -> int:
        """Seed of the client's message: every attack meets the same message."""
        return derive_seed(
            self.conditions.seed, self.id_prefix, defense_text(case.defense), self.clip_names[case.clip]
        )

    def attack_generator(self, case: Case) -> torch.Generator:
        """Random numbers of the attack: the same for every defense and attack on a clip."""
        return generator(self.conditions.seed, self.id_prefix, self.clip_names[case.clip], "attack")

    def client(self, defense: Defense) -> Client:
        """Client with a defense and a model of its own: a call swaps the tensors of a module."""
        return Client(copy.deepcopy(self.model), loss=self.loss, defense=defense)

    def update(self, case: Case, client: Client) -> Update:
        """Message of the client of a case.

        Raises:
            CapabilityError: the defense cannot work on this model.
        """
        clip = slice(case.clip, case.clip + 1)
        numbers = generator(self.seed(case), "client")
        return client.update(self.samples.private[clip], self.samples.labels[clip], numbers)

    @abstractmethod
    def knowledge(self, clip: int, reference_frames: int, labels: Tensor | None = None) -> Knowledge:
        """Knowledge of what the model takes, without the defense; labels (1,) where they are granted."""

    @abstractmethod
    def baseline_knowledge(self, clip: int, reference_frames: int, labels: Tensor | None = None) -> Knowledge:
        """Knowledge of what baselines guess, which are frames where there are any."""

    def observe(self, case: Case, update: Update, client: Client) -> Observation:
        """Everything that the attacker of a case may use; never the truth.

        Args:
            case: the cell.
            update: message of its client.
            client: whose public code an attacker who knows the defense can run.
        """
        labels = None
        if self.labels_granted:  # cloned, because a view would reach the labels of other clips
            labels = self.samples.labels[case.clip : case.clip + 1].clone()
        if case.baseline:
            knowledge = self.baseline_knowledge(case.clip, case.reference_frames, labels)
        else:
            knowledge = self.knowledge(case.clip, case.reference_frames, labels)
        knowledge, update = _own_copies(knowledge, update)
        if not case.attack.adaptive:
            return Observation(client.model, update, knowledge)
        knowledge = replace(knowledge, simulate=client.update)
        return Observation(client.model, update, knowledge, client.channel(update))

    @abstractmethod
    def answer(
        self, case: Case, reconstruction: Reconstruction, generator: torch.Generator, stop: Stop
    ) -> Answer:
        """Answer of an attack in the terms of the data; features are led back to frames where possible.

        Args:
            case: the cell.
            reconstruction: what the attack returned.
            generator: random numbers of the attack, as the attack left them.
            stop: ends the way back to frames early.
        """

    @abstractmethod
    def scores(self, case: Case, answer: Answer) -> Scores:
        """Scores of an answer, without label and linkage."""

    def judge(self, case: Case, update: Update, observation: Observation, answer: Answer) -> Judgement:
        """Compare an answer with the truth.

        Args:
            case: the cell.
            update: message of its client.
            observation: what the attacker had.
            answer: what came of it.

        Raises:
            InputError: the answer is not finite or has another shape than the truth.
            CapabilityError: a metric from outside failed; names it.
        """
        candidates = self.candidates(case.clip)
        enhanced = self.pictures.enhance(answer.clip, case.clip, case.reference_frames, candidates)
        correct = bool(answer.reconstruction.labels[0] == self.samples.labels[case.clip])
        linked, rank = self._link(case, update, observation, candidates)
        scores = self.scores(case, answer).model_copy(
            update={
                "label_correct": None if self.loss == "ranking" else correct,
                "linked": linked,
                "link_rank": rank,
            }
        )
        return Judgement(
            scores=scores,
            update=self._honest.compare(case.clip, update),
            enhancement=None if enhanced is None else enhanced[0],
            picture=answer.clip,
            enhanced=None if enhanced is None else enhanced[1],
        )

    def _link(
        self, case: Case, update: Update, observation: Observation, candidates: list[int]
    ) -> tuple[bool | None, int | None]:
        """Whether the update itself points at the clip, and its rank; baselines never saw the update."""
        label = None
        if self.labels_granted and self.loss != "ranking":
            label = int(self.samples.labels[case.clip])
        hypotheses = self._honest.candidates(candidates, label)
        if case.baseline or len(hypotheses) < 2:
            return None, None
        # Who looks for the sharpest attacker knows the defense, whatever the attack of the cell knows.
        channel = Client(self.model, self.loss, case.defense).channel(update)
        if channel is None:
            channel = self._simulated_channel(case.defense, observation)
        ranked = link_scores(replace(observation, channel=channel), hypotheses)
        rank = link_rank(ranked, candidates.index(case.clip))
        return rank == 1, rank

    def _simulated_channel(self, defense: Defense, observation: Observation) -> Channel:
        """Channel of a defense that states none, as an attacker finds it who runs the defense himself."""
        knowledge = observation.knowledge
        if knowledge.labels is None:  # of public clips, for which one label is as good as another
            knowledge = replace(knowledge, labels=torch.zeros(knowledge.batch_size, dtype=torch.int64))
        return simulated_channel(replace(observation, knowledge=knowledge), self.client(defense).update)

    def blank(self, case: Case) -> Cell:
        """Record of a cell as far as it is known before the cell runs and its defense has said anything."""
        return Cell(
            id=case.id,
            pipeline=self.kind,
            model=self.name,
            training_state=self.conditions.training_state,
            defense=DefenseRecord(name=case.defense.name, label=case.defense.name),
            attack=AttackRecord(
                name=case.attack_name,
                baseline=case.baseline,
                counterpart=case.counterpart,
                settings=dict(case.attack_settings),
                iterations=0,
                restarts=0,
                seconds=0.0,
            ),
            knowledge=KnowledgeRecord(
                labels="granted" if self.labels_granted else "inferred",
                reference_frames=case.reference_frames,
                batch_size=1,
                defense=case.attack.adaptive,
                public_clips=len(self.samples.public),
            ),
            clip=self.clip_names[case.clip],
            clip_index=case.clip,
            seed=self.seed(case),
            order_identifiable=self.order_identifiable,
            status="",
        )

    def stated(self, record: Cell, case: Case) -> Cell:
        """Record of a cell with what its defense says about itself: label, settings and certificate.

        Args:
            record: of the cell, from `blank`.
            case: the cell.

        Raises:
            VleakError: what the defense states is of no use.
        """
        privacy = Client(self.model, self.loss, case.defense).privacy()
        changes: dict[str, object] = {"defense": _defense_record(case.defense, privacy)}
        if privacy is not None:
            bound = identification_bound(self._open_candidates(case), privacy.noise_multiplier)
            changes["certificate"] = CertificateRecord(kind="identification", bound=bound)
        return record.model_copy(update=changes)

    def _open_candidates(self, case: Case) -> int:
        """Number of candidates that only the update can exclude.

        A granted label may exclude some, and frames of the scene all others.
        """
        if case.reference_frames:
            return 1
        labels, own = self.samples.labels[self.candidates(case.clip)], self.samples.labels[case.clip]
        return int((labels == own).sum()) if self.labels_granted else len(labels)


def model_record(
    model: nn.Module,
    samples: Samples,
    conditions: Conditions,
    *,
    name: str,
    pipeline: str,
    extractor_accuracy: float | None = None,
    matrix: tuple[int | None, int | None] = (None, None),
) -> ModelRecord:
    """Record of a model after its training; the model is on the CPU.

    Args:
        model: trained.
        samples: its samples.
        conditions: of the pipeline.
        name: as records have it.
        pipeline: kind of the pipeline.
        extractor_accuracy: held-out accuracy of the extractor before it.
        matrix: segments and features of its input; None for frames.
    """
    digest, drawn = hashlib.sha256(), samples.labels_drawn
    for parameter in model.parameters():
        digest.update(parameter.detach().contiguous().numpy().tobytes())
    if matrix != (None, None):  # another extractor makes other features of equal clips
        digest.update(samples.private.numpy().tobytes() + samples.public.numpy().tobytes())
    return ModelRecord(
        name=name,
        pipeline=pipeline,
        training_state=conditions.training_state,
        parameters=sum(p.numel() for p in model.parameters()),
        training_steps=TRAINING_STATES[conditions.training_state],
        weights_sha256=digest.hexdigest(),
        train_accuracy=None if drawn else accuracy(model, samples.public, samples.public_labels),
        held_out_accuracy=None if drawn else accuracy(model, samples.private, samples.labels),
        chance=1 / samples.classes,
        extractor_accuracy=extractor_accuracy,
        segments=matrix[0],
        features=matrix[1],
    )


def _own_copies(knowledge: Knowledge, update: Update) -> tuple[Knowledge, Update]:
    """Copies that an attack may write into; their storage holds neither truth nor what other cells use."""
    public = knowledge.public_clips
    own = replace(knowledge, public_clips=None if public is None else public.clone())
    return own, replace(update, tensors={name: tensor.clone() for name, tensor in update.tensors.items()})


def _defense_record(defense: Defense, privacy: Privacy | None) -> DefenseRecord:
    record = DefenseRecord(name=defense.name, label=defense.label, settings={**defense.settings()})
    if privacy is None:
        return record
    return record.model_copy(
        update={
            "epsilon": finite(privacy.epsilon),
            "delta": privacy.delta,
            "unit": privacy.unit,
            "adjacency": privacy.adjacency,
            "training_epsilon": finite(privacy.training_epsilon),
        }
    )
