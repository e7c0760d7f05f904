"""Observation: everything that an attacker may use. The truth is not in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vleak.attacks.knowledge import Knowledge
from vleak.errors import InputError, unknown_name
from vleak.federated import LOSSES, Channel, LocalTraining, Update, moved


@dataclass(frozen=True)
class Observation:
    """Everything that the curious server has.

    Attributes:
        model: the model that the client trained, with the weights that it was sent.
        update: what arrived.
        knowledge: what the threat model grants besides.
        channel: what the update measures, as the defense states it, for an attacker who knows the defense;
            None where the defense is not known or states none. A known defense without a channel can be
            simulated with ``knowledge.simulate``, see `vleak.attacks.simulation.known_channel`.
        earlier: observations of earlier rounds in which the client trained on the same clips, each with the
            weights that it was sent then; same knowledge.
    """

    model: nn.Module
    update: Update
    knowledge: Knowledge
    channel: Channel | None = None
    earlier: tuple[Observation, ...] = ()

    @property
    def labels(self) -> Tensor:
        """(B,) int64, as granted, or within an attack as inferred.

        Raises:
            InputError: they are not granted, and nobody has inferred them.
        """
        if self.knowledge.labels is None:
            raise InputError("observation: the labels are not granted; infer them with infer_labels()")
        return self.knowledge.labels

    def as_gradient(self) -> Observation:
        """Return a delta as the gradient that it stands for; of a gradient the observation itself.

        The gradient of several steps is a mean over the weights' path. It is attacked at the middle of that
        path, w + delta / 2: the surrogate model of Zhu et al. (ICML 2023, arXiv 2306.00127), halfway.
        """
        local, simulate = self.update.facts.local, self.knowledge.simulate
        if local is None:
            return self
        rate = local.learning_rate * local.steps

        def simulated(clips: Tensor, labels: Tensor, generator: torch.Generator) -> Update:
            assert simulate is not None
            return simulate(clips, labels, generator).as_gradient()

        model = self.model if local.steps == 1 else moved(self.model, self.update.tensors, 0.5)
        return Observation(
            model=model,
            update=_without_decay(self.update.as_gradient(), model, local),
            knowledge=replace(self.knowledge, simulate=None if simulate is None else simulated),
            channel=None if self.channel is None else self.channel.scaled(1 / rate),
        )

    @property
    def empty(self) -> bool:
        """Whether every entry of the update is zero."""
        return not any(bool(tensor.any()) for tensor in self.update.tensors.values())

    def check(self) -> None:
        """Check that model, update, knowledge and channel belong together.

        Raises:
            InputError: rounds are of different models, the update is not the model's, is not finite or names
                an unknown loss, or the knowledge or the channel is that of another batch or model.
        """
        self.update.check(self.model)
        facts = self.update.facts
        if facts.loss not in LOSSES:
            raise unknown_name("loss", facts.loss, LOSSES)
        self.knowledge.check()
        if facts.batch_size != self.knowledge.batch_size:
            raise InputError(
                f"knowledge: batch_size is {self.knowledge.batch_size}, but the update tells of "
                f"{facts.batch_size}; give that one"
            )
        for other in self.earlier:
            other.check()
            if {n: t.shape for n, t in other.update.tensors.items()} != {
                n: t.shape for n, t in self.update.tensors.items()
            }:
                raise InputError(
                    "the updates of two rounds have other tensors; give rounds of one model, or one round"
                )
        if self.channel is not None:
            self.channel.check(self.update)
        for name, tensor in self.update.tensors.items():
            if not torch.isfinite(tensor).all():
                raise InputError(f"update tensor {name!r} holds NaN or infinity; it cannot be attacked")


def _without_decay(gradient: Update, model: nn.Module, local: LocalTraining) -> Update:
    """Return a gradient without the weight decay of SGD, which depends on nothing private."""
    if not local.weight_decay or local.optimizer != "sgd":
        return gradient
    weights = dict(model.named_parameters())
    tensors = {
        name: tensor - local.weight_decay * weights[name].detach().to(tensor)
        for name, tensor in gradient.tensors.items()
    }
    return replace(gradient, tensors=tensors)
