"""Retrieval: the mean of the public clips, weighted by how well each would explain the update."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vleak.attacks.base import Hooks, Observation, Reconstruction
from vleak.attacks.learned.public import PublicClipsAttack, check_public
from vleak.attacks.learned.rehearsal import Sender
from vleak.attacks.simulation import known_channel
from vleak.attacks.work import knowledge_of_defense
from vleak.errors import InputError
from vleak.federated import Channel, Update
from vleak.seeds import generator as seeded

__all__ = ["Retrieval"]

_AT_ONCE, _ENTRIES_AT_ONCE = 8, 2**26
"""Clips whose gradients are computed together, and entries that these have at most."""
_KEPT_ENTRIES = 2**28
"""Entries of all rehearsed messages together, 1 GiB: of large models fewer are rehearsed."""
_STEPS = tuple(10 ** (half / 2) for half in range(13))
"""Temperatures that are tried, beside infinity: multiples of the noise where it is known, otherwise
fractions of how far the messages of different clips are apart."""


class Retrieval(PublicClipsAttack):
    """Posterior mean over the public clips: no descent, no search.

    The attacker plays the client on every public clip, under the private clip's label, or, with "bce", behind
    noise and where it is not granted, under both labels. Each clip then counts by the likelihood of the
    update under the channel of the defense, exp(-|update - its message|^2 / (2 temperature)). Behind Gaussian
    noise the temperature is the noise's variance or more, otherwise a fraction of the messages' spread; which
    of them is chosen by rehearsal: public clips are sent through the defense and retrieved from the others,
    without those of the same file. Where nothing does better it is infinite, and the answer the public mean.

    It cannot show what no public clip shows. Where public clips are of the attacked videos, it is hard to
    beat behind strong noise. One clip a client.
    """

    name: ClassVar[str] = "retrieval"
    takes: ClassVar[frozenset[str]] = frozenset({"frames", "features"})

    def __init__(self, *, rehearsals: int = 24) -> None:
        """Set the hyper-parameters.

        Args:
            rehearsals: public clips sent through the defense to choose the temperature, at least 1; fewer
                where there are fewer.

        Raises:
            InputError: a number below 1.
        """
        if rehearsals < 1:
            raise InputError(f"retrieval: expected at least 1 rehearsal, got {rehearsals}")
        self.rehearsals = rehearsals

    def prepare(self, observation: Observation, generator: torch.Generator, hooks: Hooks) -> Reconstruction:
        """Return the weighted mean, with the likeliest of the labels that were tried."""
        knowledge = observation.knowledge
        public = check_public(knowledge, self.name)
        if knowledge.batch_size > 1:
            raise InputError(
                f"attack 'retrieval' takes one clip a client, got a batch of {knowledge.batch_size}; choose "
                "matching or inverter"
            )
        channel = known_channel(observation)
        client = _Client(observation, channel or Channel(), public)
        count = max(1, min(self.rehearsals, len(public), _KEPT_ENTRIES // client.entries - 1))
        chosen = torch.randperm(len(public), generator=seeded("retrieval", len(public)))[:count]
        sent = torch.stack([client.measured(observation.update), *client.rehearsed(chosen)])
        evidence = _Evidence.of(client, sent, chosen, hooks)
        temperature = _best_temperature(evidence, knowledge.public_groups, public)
        posterior = evidence.posterior(0, temperature, torch.ones(len(public), dtype=torch.bool))
        label = client.labels[posterior.sum(0).argmax()]
        return Reconstruction(
            clips=torch.tensordot(posterior.sum(1), public.double(), 1).float()[None],
            labels=label.reshape(1),
            defense_knowledge=knowledge_of_defense(channel),
        )


class _Client:
    """The client as the attacker plays it.

    Attributes:
        labels: (L,) int64, what is tried, the inferred or granted label first.
        deviation: of Gaussian noise of which the channel tells; None of any other.
        entries: P, how many entries of the update are compared.
    """

    def __init__(self, observation: Observation, channel: Channel, public: Tensor) -> None:
        knowledge, facts = observation.knowledge, observation.update.facts
        own = observation.labels
        # With cross-entropy the whole update has been asked for the label already.
        guessed = knowledge.labels_inferred and channel.noise_energy > 0 and facts.loss == "bce"
        self.labels = torch.cat([own, 1 - own]) if guessed else own
        self.public, self.deviation = public, channel.noise_deviation or None
        self._channel, self._sender = channel, Sender(
            observation.model, facts.loss, facts.mode, own,
            replace(channel, kept_fraction=1.0),  # the masks tell what was kept
            knowledge.simulate,
        )  # fmt: skip
        self._names = list(observation.update.tensors)
        self.entries = sum(tensor.numel() for tensor in observation.update.tensors.values())

    def measured(self, update: Update) -> Tensor:
        """Return the entries (P,) of an update, zero where they carry no measurement of this one."""
        return self._flat({name: tensor[None] for name, tensor in update.tensors.items()})[0]

    def rehearsed(self, chosen: Tensor) -> Iterator[Tensor]:
        """Yield what arrives (P,) of public clips, with the defense's noise."""
        simulate, channel = self._sender.simulate, self._channel
        for index in chosen.tolist():
            source = seeded("retrieval", "sent", index)
            clip = self.public[index][None]
            if simulate is not None and channel.masks is None:
                yield self.measured(simulate(clip, self.labels[:1], source))
                continue
            # The masks are of this update, and another message would have others.
            plain = self.messages(clip, self.labels[:1])[0]
            noisy = max(int((plain != 0).sum()), 1)
            deviation = math.sqrt(channel.noise_energy / noisy)
            yield plain + deviation * torch.randn(plain.shape, generator=source) * (plain != 0)

    def messages(self, clips: Tensor, label: Tensor) -> Tensor:
        """Return (n, P), what would be sent of clips (n, *clip shape) under a label (1,) on average."""
        return self._flat(replace(self._sender, labels=label).expected(clips[:, None]))

    def hypotheses(self) -> Iterator[tuple[slice, int, Tensor]]:
        """Yield a few clips at a time: their positions, the position of the label, their messages (n, P)."""
        count = max(1, min(_AT_ONCE, _ENTRIES_AT_ONCE // self.entries))
        for place, label in enumerate(self.labels):
            for first in range(0, len(self.public), count):
                rows = slice(first, min(first + count, len(self.public)))
                clips = self.public[rows]
                yield rows, place, self.messages(clips, label[None])

    def _flat(self, tensors: dict[str, Tensor]) -> Tensor:
        masks = self._channel.masks
        rows = {name: tensors[name].cpu() for name in self._names}
        if masks is not None:
            rows = {name: row * masks[name].cpu() for name, row in rows.items()}
        return torch.cat([row.reshape(len(row), -1) for row in rows.values()], 1)


@dataclass(frozen=True)
class _Evidence:
    """Agreement of messages that arrived with those of every public clip under every label.

    Attributes:
        fit: (Q, M, L) float64, minus half the squared distance, up to a constant; the update comes first.
        chosen: (Q - 1,), which clips were rehearsed.
        deviation: of known Gaussian noise; None of any other.
    """

    fit: Tensor
    chosen: Tensor
    deviation: float | None

    @classmethod
    def of(cls, client: _Client, sent: Tensor, chosen: Tensor, hooks: Hooks) -> _Evidence:
        """Compare messages (Q, P), of which all but the first are of the chosen clips."""
        public, kinds = len(client.public), len(client.labels)
        inner = torch.zeros(len(sent), public, kinds, dtype=torch.float64)
        norms = torch.zeros(public, kinds, dtype=torch.float64)
        for done, (rows, label, messages) in enumerate(client.hypotheses()):
            if hooks.stopped():
                break
            hooks.report(done)
            inner[:, rows, label] = (sent @ messages.T).double()
            norms[rows, label] = messages.double().square().sum(1)
        gain = 1.0
        if client.deviation is None:  # a defense may send the gradient at another scale
            own = inner[torch.arange(1, len(sent)), chosen, 0].sum()
            gain = max(float(own / norms[chosen, 0].sum().clamp(min=1e-30)), 1e-6)
        return cls(gain * inner - gain**2 * norms / 2, chosen, client.deviation)

    def temperatures(self) -> list[float]:
        """Return the temperatures to try, from the one that trusts the update most to infinity."""
        if self.deviation is not None:
            return [*(self.deviation**2 * step for step in _STEPS), math.inf]
        spread = float(self.fit[:, :, 0].std(1).mean()) if self.fit.shape[1] > 1 else 0.0
        return [*(spread / step for step in reversed(_STEPS)), math.inf] if spread > 0 else [math.inf]

    def posterior(self, query: int, temperature: float, allowed: Tensor) -> Tensor:
        """Return the weights (M, L) of one message, 0 where a clip is not allowed (M,); they sum to 1."""
        fit = self.fit[query] / temperature
        fit = fit.masked_fill(~allowed[:, None], -math.inf)
        return fit.flatten().softmax(0).view_as(fit)


def _best_temperature(evidence: _Evidence, groups: Tensor | None, public: Tensor) -> float:
    """Return the temperature at which rehearsed clips are nearest to what is retrieved of the others."""
    groups = torch.arange(len(public)) if groups is None else groups
    likeness = public.flatten(1).double() @ public.flatten(1).double().T
    temperatures = evidence.temperatures()
    errors = torch.zeros(len(temperatures), dtype=torch.float64)
    rehearsed = 0
    for query, own in enumerate(evidence.chosen.tolist(), 1):
        others = groups != groups[own]
        if not bool(others.any()):
            continue
        rehearsed += 1
        for place, temperature in enumerate(temperatures):
            weights = evidence.posterior(query, temperature, others).sum(1)
            weights[own] -= 1
            errors[place] += weights @ likeness @ weights
    if not rehearsed:  # all are of one file: nothing tells but the noise, where it is known
        return temperatures[0 if evidence.deviation is not None else -1]
    # Where several do alike, the highest claims least.
    return max(t for t, e in zip(temperatures, errors.tolist(), strict=True) if e <= float(errors.min()))
