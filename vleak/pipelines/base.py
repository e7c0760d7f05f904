"""Pipeline: data, model and loss of one kind of cells, and everything that cells share."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from vleak.attacks import (
    Knowledge,
    Observation,
    Reconstruction,
    answerable,
    order_identifiable,
)
from vleak.certificates import identification_bound
from vleak.defenses import Defense, NoDefense, defense_text
from vleak.federated import Client, Privacy, Update, drops, without_dropout
from vleak.metrics import assign
from vleak.pipelines.case import Answer, Case, ClientSettings, Judgement
from vleak.pipelines.ceilings import Ceilings
from vleak.pipelines.conditions import Conditions, Progress, Samples, Stop, defense_record
from vleak.pipelines.honest import HonestKey, HonestUpdates, KeptUpdates, compare
from vleak.pipelines.learned import LearnedDefenses
from vleak.pipelines.linking import Linkage, link, simulated
from vleak.pipelines.pictures import Pictures
from vleak.pipelines.rivals import rivals
from vleak.pipelines.rounds import Round, bystander, move, own_copies
from vleak.results.records import (
    AttackRecord,
    CeilingRecord,
    Cell,
    CertificateRecord,
    DefenseRecord,
    KnowledgeRecord,
    ModelRecord,
    Scores,
    UpdateRecord,
)
from vleak.seeds import derive_seed, generator

__all__ = ["Pipeline"]

NO_DEFENSE = NoDefense()


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
        progress: Progress | None = None,
    ) -> None:
        """Compute the honest updates of all clips with a model that is ready; ``progress`` counts them."""
        self.model, self.model_record, self.name = model, model_record, model_record.name
        self.loss, self.samples, self.pictures = loss, samples, pictures
        self.clip_names, self.conditions = clip_names, conditions
        self._rivals = rivals(self._contents(), samples.labels if loss == "ranking" else None)
        self._honest, self._learned = KeptUpdates(self._computed), LearnedDefenses(model, samples)
        self._ceilings = Ceilings(model, loss, samples, conditions.seed)
        self._honest_updates(ClientSettings(), progress=progress)
        shape = tuple(samples.private.shape[1:])
        self.order_identifiable = order_identifiable(model, shape, loss=loss)

    @property
    def id_prefix(self) -> str:
        """Model and training state: first part of the ids of cells."""
        return f"{self.name}.{self.conditions.training_state}"

    @property
    def doing(self) -> str:
        """What is being computed in one cell for all of them; empty while nothing is."""
        return self._honest.doing

    @property
    def labels_granted(self) -> bool:
        """Whether labels are public: which bag of a pair is the anomalous one is."""
        return self.conditions.labels_granted or self.loss == "ranking"

    def baselines(self, reference_frames: int) -> tuple[str, ...]:
        """Names of the baselines that can answer with so many reference frames."""
        labels = self.samples.labels[:1] if self.labels_granted else None
        return answerable(self.baseline_knowledge((0,), reference_frames, labels))

    def candidates(self, clip: int) -> list[int]:
        """Positions of the clips among which one is to be identified: all that public knowledge allows."""
        return self._rivals(clip)

    def _contents(self) -> list[Tensor]:
        """What clips are told apart by, as `rivals` takes it."""
        return [self.samples.private]

    def seed(self, case: Case) -> int:
        """Seed of the client's message: every attack meets the same message."""
        client = (case.client.text,) if case.client.text else ()  # what tells it from the default client
        return derive_seed(
            self.conditions.cell_seed, self.id_prefix, defense_text(case.defense), *self._batch(case), *client
        )

    def attack_generator(self, case: Case) -> torch.Generator:
        """Random numbers of the attack: the same for every client, defense and attack on these clips."""
        return generator(self.conditions.cell_seed, self.id_prefix, *self._batch(case), "attack")

    def _batch(self, case: Case) -> tuple[str, ...]:
        return tuple(self.clip_names[clip] for clip in case.batch)

    def _client(self, settings: ClientSettings, model: nn.Module, defense: Defense = NO_DEFENSE) -> Client:
        kept = self._learned.of(defense)
        model = kept.model if model is self.model else model
        return Client(model, self.loss, kept.defense, mode=settings.mode, local=settings.local)

    def _own_model(self, settings: ClientSettings, defense: Defense) -> nn.Module:
        """Copy of the model that the clients of a defense train."""
        return copy.deepcopy(self._client(settings, self.model, defense).model)

    def rounds(self, case: Case, defense: Defense | None = None) -> tuple[Round, ...]:
        """Rounds in which the client of a case trained on its clips, the last one always among them.

        Args:
            case: the cell.
            defense: in place of that of the case, with the same random numbers; None for its own.

        Raises:
            CapabilityError: the defense cannot work on this model.
        """
        defense = case.defense if defense is None else defense
        settings, numbers, memory = case.client, generator(self.seed(case), "client"), dict[str, Tensor]()
        server, seen = generator(self.seed(case), "server"), list[Round]()
        model = self._own_model(settings, case.defense)
        for left in reversed(range(settings.rounds)):
            update: Update | None = None
            if not left or float(torch.rand((), generator=server)) < settings.participation:
                batch = [(clip + left * settings.new_clips * len(case.batch)) % len(self.clip_names)
                         for clip in case.batch]  # fmt: skip
                update = self._client(settings, model, defense).update(
                    self.samples.private[batch], self.samples.labels[batch], numbers, memory
                )
                if not left or not settings.new_clips:
                    seen.append(Round(model, update))
            elif len(self.samples.public):
                other = self._client(settings, model)
                update = bystander(other, self.samples.public, self.samples.public_labels, server)
            if left and update is not None:
                model = move(model, update, settings.server_rate)
        return tuple(seen)

    @abstractmethod
    def knowledge(
        self, clips: Sequence[int], reference_frames: int, labels: Tensor | None = None
    ) -> Knowledge:
        """Knowledge of what the model takes, without the defense; labels (B,) where they are granted."""

    @abstractmethod
    def baseline_knowledge(
        self, clips: Sequence[int], reference_frames: int, labels: Tensor | None = None
    ) -> Knowledge:
        """Knowledge of what baselines guess, which are frames where there are any."""

    def observe(self, case: Case, rounds: Sequence[Round]) -> Observation:
        """Everything that the attacker of a case may use; never the truth.

        Args:
            case: the cell.
            rounds: those of its client, from `rounds`.
        """
        *earlier, last = [self._observed(case, each) for each in rounds]
        return replace(last, earlier=tuple(earlier))

    def _observed(self, case: Case, seen: Round) -> Observation:
        client, update = self._client(case.client, seen.model, case.defense), seen.update
        labels = None
        if self.labels_granted:  # a copy, because a view would reach the labels of other clips
            labels = self.samples.labels[list(case.batch)]
        of = self.baseline_knowledge if case.baseline else self.knowledge
        knowledge = of(case.batch, case.reference_frames, labels)
        knowledge, update = own_copies(knowledge, update)
        if not case.attack.adaptive:
            return Observation(client.model, update, knowledge)
        knowledge = replace(knowledge, simulate=client.update)
        return Observation(client.model, update, knowledge, client.channel(update))

    def parts(self, cases: Sequence[Case], reconstruction: Reconstruction) -> list[Reconstruction]:
        """Parts of an answer to a batch, one for each clip: answers and truths are matched one to one.

        Args:
            cases: one for every clip of the batch, in its order.
            reconstruction: of the whole batch.
        """
        if len(cases) == 1:
            return [reconstruction]
        truths = self.samples.private[list(cases[0].batch)]
        similarity = torch.stack([
            torch.tensor([self.similarity(answer, truth) for answer in reconstruction.clips])
            for truth in truths
        ])  # fmt: skip
        return [reconstruction.part(index) for index in assign(similarity)]

    @abstractmethod
    def similarity(self, answer: Tensor, truth: Tensor) -> float:
        """Likeness of a rebuilt sample and a private one, larger where they are alike."""

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
        linkage = self._link(case, update, observation, candidates)
        label = None if self.loss == "ranking" else correct
        scores = self.scores(case, answer).model_copy(update={"label_correct": label, **linkage.scores()})
        return Judgement(
            scores=scores,
            update=self._compared(case, update),
            enhancement=None if enhanced is None else enhanced[0],
            picture=answer.clip,
            enhanced=None if enhanced is None else enhanced[1],
            ceilings=None if case.baseline else self._further(case, update),
        )

    def _further(self, case: Case, update: Update) -> CeilingRecord:
        """Ceilings beside the certificate."""
        client = self._client(case.client, self.model, case.defense)
        proven, candidates = self._privacy(case), self._open_candidates(case)
        return self._ceilings.of(case, update, client.channel(update), proven, candidates)

    def _link(self, case: Case, update: Update, observation: Observation, candidates: list[int]) -> Linkage:
        """What the update itself tells about its clip; baselines never saw the update."""
        # Who looks for the sharpest attacker knows the defense, whatever the attack of the cell knows.
        if case.baseline or case.client.new_clips or case.client.participation < 1:
            return Linkage()  # the first round that is seen has other weights than the candidates' updates
        # Its companions in the batch are no alternatives to a clip: they are in the update too.
        candidates = [clip for clip in candidates if clip == case.clip or clip not in case.batch]
        if len(candidates) < 2:
            return Linkage()
        if observation.earlier:  # of several rounds the first has the weights of the candidates' updates
            observation = observation.earlier[0]
            update = observation.update
        channel = self._client(case.client, self.model, case.defense).channel(update)
        if channel is None:
            own = self._own_model(case.client, case.defense)
            channel = simulated(self._client(case.client, own, case.defense), observation)
        told = self.labels_granted and self.loss != "ranking"
        return link(
            self._honest_updates(case.client, case.defense), replace(observation, channel=channel),
            candidates, case.clip,
            label=int(self.samples.labels[case.clip]) if told else None,
            alone=len(case.batch) == case.client.rounds == 1,
        )  # fmt: skip

    def _compared(self, case: Case, update: Update) -> UpdateRecord:
        """The update beside the one that the same client sends without a defense."""
        masks = case.client.mode == "train" and drops(self.model)  # each message has its own
        if len(case.batch) == case.client.rounds == 1 and not masks:
            return compare(update, self._honest_updates(case.client, case.defense).updates[case.clip])
        plain = self.rounds(case, NO_DEFENSE)
        return compare(update, plain[-1].update)

    def _honest_updates(
        self, client: ClientSettings, defense: Defense = NO_DEFENSE, progress: Progress | None = None
    ) -> HonestUpdates:
        """Undefended updates of single clips by clients of some settings, on the model of a defense."""
        model = self._client(client, self.model, defense).model
        extended = None if model is self.model else defense
        return self._honest.of((ClientSettings(mode=client.mode, local=client.local), extended), progress)

    def _computed(self, key: HonestKey, progress: Progress) -> HonestUpdates:
        client, extended = key
        kinds = 1 if self.loss == "ranking" else self.samples.classes
        model = self._own_model(client, NO_DEFENSE if extended is None else extended)
        # Whoever compares with them does not know the masks of dropout.
        return HonestUpdates(
            self._client(client, without_dropout(model)), self.samples.private,
            self.samples.labels, kinds, self.conditions.seed, progress=progress,
        )  # fmt: skip

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
                batch_size=len(case.batch),
                defense=case.attack.adaptive,
                public_clips=len(self.samples.public),
                public_from=self.samples.public_from,
            ),
            clip=self.clip_names[case.clip],
            clip_index=case.clip,
            seed=self.seed(case),
            client=case.client.record(drops(self.model)),
            batch=case.batch,
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
        privacy = self._privacy(case)
        changes: dict[str, object] = {"defense": defense_record(case.defense, privacy)}
        # Of a batch the bound speaks of one clip beside known others, not of the best matching of answers.
        if privacy is not None and len(case.batch) == 1:
            bound = identification_bound(self._open_candidates(case), privacy.noise_multiplier)
            changes["certificate"] = CertificateRecord(kind="identification", bound=bound)
        return record.model_copy(update=changes)

    def _privacy(self, case: Case) -> Privacy | None:
        """Certificate of all that a client sends of the same clips."""
        updates = 1 if case.client.new_clips else case.client.rounds
        return self._client(case.client, self.model, case.defense).privacy(len(case.batch), updates)

    def _open_candidates(self, case: Case) -> int:
        """Number of candidates that only the update can exclude.

        A granted label may exclude some, and frames of the scene all others.
        """
        if case.reference_frames:
            return 1
        labels, own = self.samples.labels[self.candidates(case.clip)], self.samples.labels[case.clip]
        return int((labels == own).sum()) if self.labels_granted else len(labels)
