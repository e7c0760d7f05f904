"""Observation: everything that an attacker may use. The truth is not in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vleak.attacks.knowledge import Knowledge
from vleak.errors import InputError, unknown_name
from vleak.federated import LOSSES, Channel, Update


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
    """

    model: nn.Module
    update: Update
    knowledge: Knowledge
    channel: Channel | None = None

    @property
    def labels(self) -> Tensor:
        """(B,) int64, as granted, or within an attack as inferred.

        Raises:
            InputError: they are not granted, and nobody has inferred them.
        """
        if self.knowledge.labels is None:
            raise InputError("observation: the labels are not granted; infer them with infer_labels()")
        return self.knowledge.labels

    @property
    def empty(self) -> bool:
        """Whether every entry of the update is zero."""
        return not any(bool(tensor.any()) for tensor in self.update.tensors.values())

    def check(self) -> None:
        """Check that model, update, knowledge and channel belong together.

        Raises:
            InputError: the update is not the model's, is not finite or names an unknown loss, or the
                knowledge or the channel is that of another batch or model.
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
        if self.channel is not None:
            self.channel.check(self.update)
        for name, tensor in self.update.tensors.items():
            if not torch.isfinite(tensor).all():
                raise InputError(f"update tensor {name!r} holds NaN or infinity; it cannot be attacked")
