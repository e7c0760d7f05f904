"""Trials: the attacker sends himself public clips through the client and the defense, and attacks them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vleak.attacks.base import Attack, Hooks, Observation, Reconstruction, Task, reconstruct_all
from vleak.attacks.expectation import prior_answer
from vleak.attacks.knowledge import Knowledge, Simulate
from vleak.attacks.learned.rehearsal import StoppedError
from vleak.attacks.matching.adaptive import energy_of
from vleak.attacks.simulation import simulated_channel
from vleak.errors import VleakError
from vleak.federated import Channel, Client, Update, column_bases, surviving_entries
from vleak.seeds import generator

__all__ = ["Evidence", "Trial", "aligned", "channel_of_trial", "evidence_of", "noise_is_scaled", "trials"]


@dataclass(frozen=True)
class Trial:
    """A message of public clips, as the attacker would meet it.

    Attributes:
        clips: (B, C, T, H, W), what was sent.
        observation: of it. These clips, and the others of their videos, are not among its public clips.
    """

    clips: Tensor
    observation: Observation

    def gain(self, answer: Tensor) -> float:
        """Return by how many dB an answer is nearer to the clips than the answer without the update."""
        prior = prior_answer(self.observation.knowledge)
        return 10 * math.log10(self._error(prior) / self._error(self.matched(answer)))

    def matched(self, answer: Tensor) -> Tensor:
        """Return the clips of an answer, each in the place of the one that it is matched to."""
        return aligned(answer, self.clips)

    def _error(self, clips: Tensor) -> float:
        return max(float((clips - self.clips).double().square().mean()), 1e-12)


@dataclass(frozen=True)
class Evidence:
    """Result of an attack on all trials.

    Attributes:
        name: what was tried.
        gains: by trial the PSNR gain over the answer without the update, in dB, after `share`; empty where
            the attack failed.
        share: part of the way from the answer without the update to the attack's that is best in the trials,
            in [0, 1].
        answers: (B, *clip_shape) a trial, each clip in the place of the one that it is matched to.
        failure: why it failed; empty where it did not.
    """

    name: str
    gains: tuple[float, ...] = ()
    share: float = 0.0
    answers: tuple[Tensor, ...] = ()
    failure: str = ""

    @property
    def gain(self) -> float:
        """Mean gain in dB; minus infinity where the attack failed."""
        return sum(self.gains) / len(self.gains) if self.gains else -math.inf

    def shared(self, answer: Tensor, knowledge: Knowledge) -> Tensor:
        """Return the answer, as far as the trials speak for it."""
        prior = prior_answer(knowledge)
        return torch.lerp(prior, answer.to(prior), self.share)


def aligned(answer: Tensor, to: Tensor) -> Tensor:
    """Return the clips of an answer (B, ...) in the order in which they are nearest to others (B, ...)."""
    if len(answer) == 1:
        return answer
    errors = torch.cdist(to.flatten(1).double(), answer.flatten(1).double()).square()
    return answer[torch.from_numpy(linear_sum_assignment(errors.numpy())[1])]


def trials(observation: Observation, channel: Channel | None, count: int) -> list[Trial]:
    """Return trials on public clips, of different videos as far as there are any.

    Args:
        observation: as in `Attack.prepare`; of several rounds the first is tried.
        channel: what is known of the defense, or None.
        count: how many, at most.
    """
    observation = observation.earlier[0] if observation.earlier else observation
    knowledge = replace(observation.knowledge, labels=None)
    public = knowledge.public_clips
    batch = knowledge.batch_size
    if public is None or len(public) < batch + 2:
        return []
    groups = torch.arange(len(public)) if knowledge.public_groups is None else knowledge.public_groups
    order = _spread(groups, generator("trials", len(public)))
    found = []
    for index in range(min(count, len(public) // batch)):
        chosen = order[index * batch : (index + 1) * batch]
        kept = ~torch.isin(groups, groups[chosen])
        if int(kept.sum()) < 2:
            kept = ~torch.isin(torch.arange(len(public)), chosen)
        found.append(_trial(observation, channel, index, public[chosen], kept))
    return found


def evidence_of(attacks: Mapping[str, Attack], tried: Sequence[Trial], hooks: Hooks) -> list[Evidence]:
    """Return what every attack gets out of the trials; one that fails leaves the others alone.

    Args:
        attacks: to be tried, by name.
        tried: at least one.
        hooks: of the caller.

    Raises:
        StoppedError: the caller wants no more; what stopped attacks gained says nothing.
    """
    tasks = [
        Task(attack, trial.observation, generator("trials", "attack", index), stop=hooks.stop)
        for attack in attacks.values()
        for index, trial in enumerate(tried)
    ]
    outcomes = reconstruct_all(tasks)
    if hooks.stopped():
        raise StoppedError
    rows = [outcomes[start : start + len(tried)] for start in range(0, len(outcomes), len(tried))]
    return [_evidence(name, row, tried) for name, row in zip(attacks, rows, strict=True)]


def _evidence(name: str, outcomes: Sequence[Reconstruction | Exception], tried: Sequence[Trial]) -> Evidence:
    answers = []
    for outcome, trial in zip(outcomes, tried, strict=True):
        if isinstance(outcome, Reconstruction):
            answers.append(trial.matched(outcome.clips))
        elif isinstance(outcome, VleakError):
            return Evidence(name, failure=str(outcome))
        else:
            raise outcome
    share = _best_share(answers, tried)
    evidence = Evidence(name, (), share, tuple(answers))
    gains = tuple(
        trial.gain(evidence.shared(answer, trial.observation.knowledge))
        for answer, trial in zip(answers, tried, strict=True)
    )
    return replace(evidence, gains=gains)


def _best_share(answers: Sequence[Tensor], tried: Sequence[Trial]) -> float:
    """Return the share of least squared error over the trials."""
    along, length = 0.0, 0.0
    for answer, trial in zip(answers, tried, strict=True):
        prior = prior_answer(trial.observation.knowledge)
        step, wanted = answer - prior, trial.clips - prior
        along += float((step * wanted).sum())
        length += float(step.square().sum())
    return min(max(along / length, 0.0), 1.0) if length > 0 else 0.0


def _trial(
    observation: Observation, channel: Channel | None, index: int, clips: Tensor, kept: Tensor
) -> Trial:
    """Return the trial of some clips; ``kept`` (M,) says which public clips stay public."""
    knowledge = observation.knowledge
    labels = (index + torch.arange(len(clips))) % knowledge.classes
    update = _client(observation)(clips, labels, generator("trials", "sent", index))
    inferred = knowledge.labels_inferred  # then a wrong label is a part of what can go wrong
    knowledge = replace(
        knowledge,
        labels=labels,
        labels_inferred=False,
        public_clips=_rows(knowledge.public_clips, kept),
        public_groups=_rows(knowledge.public_groups, kept),
        public_labels=_rows(knowledge.public_labels, kept),
    )
    # What arrived may be a part of the message.
    tensors = {name: update.tensors[name] for name in observation.update.tensors}
    update = replace(update, tensors=tensors, partial=observation.update.partial)
    sent = replace(observation, update=update, knowledge=knowledge, earlier=())
    channel = None if channel is None else channel_of_trial(channel, sent, observation.update)
    knowledge = replace(knowledge, labels=None) if inferred else knowledge
    return Trial(clips, replace(sent, knowledge=knowledge, channel=channel))


def _rows(values: Tensor | None, kept: Tensor) -> Tensor | None:
    return None if values is None else values[kept]


def _client(observation: Observation) -> Simulate:
    """Return the client as far as the attacker knows it: with the defense, or without."""
    simulate, facts = observation.knowledge.simulate, observation.update.facts
    if simulate is not None:
        return simulate
    return Client(observation.model, facts.loss, mode=facts.mode, local=facts.local).update


def noise_is_scaled(channel: Channel | None, simulate: Simulate | None) -> bool:
    """Return whether the noise of a trial is that of the observed update, to scale: nothing else tells it."""
    return channel is not None and _depends_on_message(channel) and simulate is None


def _depends_on_message(channel: Channel) -> bool:
    return channel.source == "stated" and channel.noise_deviation is None and channel.noise_energy > 0


def channel_of_trial(channel: Channel, sent: Observation, of: Update) -> Channel:
    """Return the channel of a trial's message.

    Noise that is not said to be Gaussian, such as that of rounding, depends on the message: it is measured by
    sending public clips, so that the trials of a defense are the same for all of its updates.

    Args:
        channel: of the observed update.
        sent: the trial's observation, with labels.
        of: the observed update.
    """
    noise, simulate = channel.noise_energy, sent.knowledge.simulate
    if noise_is_scaled(channel, simulate):
        noise *= energy_of(sent.update) / max(energy_of(of), 1e-30)
    elif _depends_on_message(channel) and simulate is not None:
        noise = simulated_channel(sent, simulate).noise_energy
    masks = None if channel.masks is None else _masks_of_trial(channel.masks, sent.update, of)
    rank = max((basis.shape[1] for basis in (channel.bases or {}).values()), default=0)
    bases = column_bases(sent.update, rank) if rank else None
    return replace(channel, masks=masks, bases=bases, noise_energy=noise, senders=sent.update.senders)


def _masks_of_trial(masks: Mapping[str, Tensor], sent: Update, of: Update) -> dict[str, Tensor]:
    """Return the masks of a trial's message: what survived, but where a layer is left out that arrived."""
    survived = surviving_entries(sent)
    placed = {name for name, mask in masks.items() if bool(of.tensors[name][~mask].any())}
    return {name: masks[name] if name in placed else kept for name, kept in survived.items()}


def _spread(groups: Tensor, source: torch.Generator) -> Tensor:
    """Return an order of clips, drawn at random, in which those of different groups come first."""
    order = torch.randperm(len(groups), generator=source)
    seen: dict[int, int] = {}
    turns = []
    for group in groups[order].tolist():
        turns.append(seen.get(group, 0))
        seen[group] = turns[-1] + 1
    return order[torch.tensor(turns).argsort(stable=True)]
